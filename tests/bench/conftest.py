"""What pytest-benchmark's files lack: which benchmarks there were, and on what they ran."""

import dataclasses
import statistics
import time

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
    """Write down what a benchmark computes, once it, and what is beside it, does compute that."""

    def describe(workload, provider, *beside):
        known = providers(workload.op)
        gate = Gate(known["reference"])
        checked = {name: gate.check(workload, known[name]) for name in (provider, *beside)}
        assert all(a.ok for found in checked.values() for a in found), checked
        benchmark.extra_info["fdl"] = {
            "op": workload.op,
            "provider": provider,
            "mode": workload.mode,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "case": workload.name,
            "shape": workload.shape,
            "origin": "synthetic",
            "accuracy": [_accuracy(a) for a in checked[provider]],
        }

    return describe


@pytest.fixture
def in_turn(benchmark):
    """Time two callables in adjacent pairs, either first in turn, and write down their ratio.

    It takes their names and the callables, and how many pairs; the ratio is the first one's time
    over the second one's. Given back are the seconds of each pair, by name.
    """

    def timed(sides, pairs, seen=lambda name, result: None):
        seconds = []
        for i in range(pairs):
            took = {}
            for name in list(sides)[:: 1 if i % 2 else -1]:
                began = time.perf_counter()
                result = sides[name]()
                took[name] = time.perf_counter() - began
                seen(name, result)
            seconds.append(took)
        left, right = sides
        ratios = [took[left] / took[right] for took in seconds]
        benchmark.extra_info["ratio"] = statistics.median(ratios)
        benchmark.extra_info["ratio_quartiles"] = statistics.quantiles(ratios)[::2]
        return seconds

    return timed


def _accuracy(found):
    fields = dataclasses.asdict(found)
    fields["err_rel"] = fields.pop("error")
    del fields["eager_error"]
    return fields | {"ratio_vs_eager": found.ratio, "ok": found.ok}
