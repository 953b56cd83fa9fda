"""What pytest-benchmark's files lack: which benchmarks there were, and on what they ran."""

import dataclasses

import pytest

from kernels.bench.accuracy import Gate
from kernels.bench.providers import providers
from suite import provenance

_outcomes = {"collected": [], "errored": [], "skipped": []}


def pytest_collection_finish(session):
    chosen = [item for item in session.items if "benchmark" in getattr(item, "fixturenames", ())]
    _outcomes["collected"] += [item.nodeid for item in chosen]


def pytest_runtest_logreport(report):
    if report.outcome == "failed":
        _outcomes["errored"].append(report.nodeid)
    elif report.outcome == "skipped":
        _outcomes["skipped"].append(report.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json):
    env, node = provenance.env(), provenance.node()
    output_json["fdl"] = {**_outcomes, "env": env.model_dump(), "node": node.model_dump()}


@pytest.fixture
def described(benchmark):
    """Write down what a benchmark computes, once it is known to compute that."""

    def describe(workload, provider):
        known = providers(workload.op)
        found = Gate(known["reference"]).check(workload, known[provider])
        assert all(a.ok for a in found), found
        benchmark.extra_info["fdl"] = {
            "op": workload.op,
            "provider": provider,
            "mode": workload.mode,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "case": workload.name,
            "shape": workload.shape,
            "origin": "synthetic",
            "accuracy": [_accuracy(a) for a in found],
        }

    return describe


def _accuracy(found):
    fields = dataclasses.asdict(found)
    fields["err_rel"] = fields.pop("error")
    del fields["eager_error"]
    return fields | {"ratio_vs_eager": found.ratio, "ok": found.ok}
