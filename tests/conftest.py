import functools
import os
import secrets
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOYS = Path(__file__).parent / "toys"

# Before anything imports ``tasks``: its path is fixed at the first import, and workers inherit it.
# The project comes first: its ``tasks`` package is the one that looks for others.
sys.path.insert(0, str(ROOT))
sys.path.append(str(TOYS))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), str(TOYS), os.environ.get("PYTHONPATH", "")])
)

# Kernels are proven on a processor by Triton's interpreter, which has to be asked for before a
# kernel is defined. On a GPU (tests/gpu) they run for real.
if "FDL_GPU_TESTS" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"

# Several test processes share the cores: threads that spin while they wait would starve them, and
# several threads in each would only wait for each other. A benchmark is alone and keeps its own.
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if BESIDE_OTHERS:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray reads in what mode it authenticates once in a process's life: all tests use the same.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


# Each of these groups keeps one process busy for minutes, mostly waiting for processes that it has
# started. They are begun first, and the others take what they leave of the processors.
FIRST = ("hosts", "ray", "sweeps", "gate")


def _rank(item):
    groups = {mark.args[0] for mark in item.iter_markers("xdist_group")}
    return next((i for i, name in enumerate(FIRST) if name in groups), len(FIRST))


def pytest_collection_modifyitems(items):
    items.sort(key=_rank)


def pytest_runtest_setup(item):
    if BESIDE_OTHERS and _rank(item) == len(FIRST):
        _step_back()


@functools.cache
def _step_back():
    os.nice(10)


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    monkeypatch.delenv("SUITE_STORE", raising=False)


@pytest.fixture
def command_line(capfd, monkeypatch):
    """The command line, in this process: its exit code, output and what it said beside it."""
    from suite.cli import main

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["suite", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return called


@pytest.fixture
def toy():
    """Make specs of the toy task."""
    from suite.plan import expand

    def specs(*variants, seeds=(0,), profile="smoke", **kw):
        return expand(
            ["ch90.linear"], profile=profile, variants=variants or ["quick"], seeds=seeds, **kw
        )

    return specs
