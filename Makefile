# Two commands on a fresh machine: `make reproduce` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUITE := $(BIN)/suite
STAMP := $(VENV)/.installed
# One more than the cores: the tests of clusters and of the gate mostly wait.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) + 1)' 2>/dev/null || echo auto)
STORE ?= runs
SEEDS ?= 0
JOBS ?=

.PHONY: reproduce smoke test test-cluster lint tables check gpu bench clean
.DEFAULT_GOAL := reproduce

# Without a GPU, PyTorch's CPU build saves gigabytes. Its index is only an extra one: where it
# cannot be reached, or there is a GPU, pip takes torch from where it takes everything else.
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
TORCH_FROM := $(if $(TORCH_INDEX),--retries 0 --timeout 20 --extra-index-url $(TORCH_INDEX))

# pip compiles on one core, so that is done afterwards on all. A file that is meant for another Python
# does not compile, and is not needed.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH_FROM) torch torchvision
	$(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

reproduce: $(STAMP)
	$(SUITE) reproduce $(if $(ALL),--all) --seeds $(SEEDS) --store $(STORE) $(if $(JOBS),--jobs $(JOBS))

smoke: $(STAMP)
	$(SUITE) run 'ch*' --profile smoke --store $(STORE)

# The tests start hundreds of processes: without its bytecode each would compile the project anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --no-loadscope-reorder tests

# Three hosts that lose power, network and driver in the middle of a campaign. Needs root, for network
# namespaces, and Debian's openssh-server, openssh-client, rsync and iproute2.
test-cluster: $(STAMP)
	FDL_CLUSTER_TESTS=1 $(BIN)/python -m pytest -q -n 0 -rs tests/cluster tests/suite/test_cluster.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the repository holds of the compiler's output and of the published records, made again.
tables: $(STAMP)
	$(SUITE) bench compile
	$(SUITE) report --store results --into README.md --check

check: lint tables test

# On a machine with an NVIDIA GPU, in minutes: tests, vendors' operators, tuning, all kernels. The
# same command goes on where the last one stopped.
gpu: $(STAMP)
	$(SUITE) gpu --store $(STORE)

# Every case of every kernel with every provider that runs here, then the engine's own overhead.
bench: $(STAMP)
	$(SUITE) bench kernels --store $(STORE)
	$(BIN)/python -m pytest tests/bench/test_engine.py tests/bench/test_loaders.py --benchmark-only -n 0
	$(SUITE) report --store $(STORE)

clean:
	rm -rf $(VENV) build dist *.egg-info
