"""What the implementations of an op cost, forward and backward, and how they compare in pairs.

Read the figures; nothing here can fail by them. `ratio` is how many times as long the other
provider takes: the median of pairs timed in turn, with the interval that the exact signed-rank test
leaves. `suite bench kernels` measures every case with every provider, and makes records of it;
`suite bench ingest` makes records of the file that `--benchmark-json` writes here.
"""

import math

import pytest

from kernels.bench.measure import timeable
from kernels.bench.providers import CannotRun, providers
from kernels.bench.timing import on_cpu
from kernels.bench.workload import workloads
from suite.stats import hodges_lehmann_interval

PAIRS = 12
OPS = ("dnc.link", "dnc.allocation", "dnc.step", "ntm.address")


def compare(benchmark, ours, other):
    """Time ``ours`` under pytest-benchmark, and in pairs with ``other``; note the ratio."""
    timed = on_cpu({"ours": ours, "other": other}, PAIRS, 0)
    pairs = zip(*(timed[name].timings[0].samples_s for name in ("ours", "other")), strict=True)
    found = hodges_lehmann_interval([math.log(b / a) for a, b in pairs])
    benchmark.extra_info["ratio"] = {
        "estimate": math.exp(found.estimate),
        "low95": math.exp(found.low),
        "high95": math.exp(found.high),
        "pairs": PAIRS,
    }
    benchmark.pedantic(ours, rounds=PAIRS, iterations=10, warmup_rounds=1)


def _calls(workload, *names):
    known = providers(workload.op)
    try:
        return [timeable(workload, known[name].build(workload)) for name in names]
    except CannotRun as error:
        pytest.skip(str(error))


def _workloads(ops):
    for w in workloads("cpu", modes=("full",)):
        if w.op in ops:
            yield pytest.param(w, id=f"{w.op}-{w.name}")


@pytest.mark.parametrize("workload", [*_workloads(OPS)])
def test_torch_against_the_reference(benchmark, described, workload):
    benchmark.group = workload.op
    described(workload, "torch")
    compare(benchmark, *_calls(workload, "torch", "reference"))


@pytest.mark.parametrize("workload", [*_workloads(("dnc.step",))])
def test_a_step_against_the_pypi_package(benchmark, described, workload):
    if "PyPI dnc" not in providers(workload.op):
        pytest.skip("the PyPI package dnc is not installed")
    benchmark.group = workload.op
    described(workload, "torch")
    compare(benchmark, *_calls(workload, "torch", "PyPI dnc"))
