"""What the implementations of an op cost, forward and backward, and how they compare in pairs.

Read the figures; nothing here can fail by them. `ratio` is how many times as long the other
provider takes: the median of pairs timed in turn, with the interval that the exact signed-rank test
leaves. `suite bench kernels` measures every case with every provider, and makes records of it;
`suite bench ingest` makes records of the file that `--benchmark-json` writes here.
"""

import math

import pytest
import torch

from kernels import dnc
from kernels.bench.measure import timeable
from kernels.bench.providers import CannotRun, providers
from kernels.bench.timing import on_cpu
from kernels.bench.workload import mapped, workloads
from kernels.dnc import cases as dnc_cases
from kernels.linear import cases as linear_cases
from kernels.ntm import cases as ntm_cases
from suite.stats import hodges_lehmann_interval

PAIRS = 12
OPS = ("dnc.link", "dnc.allocation", "dnc.step", "ntm.address")
# Small cases, which is where a compiler helps a processor most.
COMPILED = (dnc_cases.COPY, ntm_cases.COPY, ntm_cases.PAPER)


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


def _workloads(ops, cases=None):
    for w in workloads("cpu", modes=("full",)):
        if w.op in ops and (cases is None or w.case in cases):
            yield pytest.param(w, id=f"{w.op}-{w.name}")


@pytest.mark.parametrize("workload", [*_workloads(OPS)])
def test_torch_against_the_reference(benchmark, described, workload):
    benchmark.group = workload.op
    described(workload, "torch")
    compare(benchmark, *_calls(workload, "torch", "reference"))


# PyTorch's compiler imports parts of PyTorch that are going to be removed.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("workload", [*_workloads(OPS, COMPILED)])
def test_torch_against_the_compiled_reference(benchmark, described, workload):
    benchmark.group = workload.op
    described(workload, "torch", "compile")
    compare(benchmark, *_calls(workload, "torch", "compile"))


@pytest.mark.parametrize("workload", [*_workloads(("dnc.step",))])
def test_a_step_against_the_pypi_package(benchmark, described, workload):
    if "PyPI dnc" not in providers(workload.op):
        pytest.skip("the PyPI package dnc is not installed")
    calls = _calls(workload, "torch", "PyPI dnc")
    benchmark.group = workload.op
    described(workload, "torch", "PyPI dnc")
    compare(benchmark, *calls)


@pytest.mark.parametrize("workload", [*_workloads(("linear.linear",), linear_cases.LAYERS)])
def test_a_layer_against_the_vendors(benchmark, described, workload):
    """The same operators without our checks and dispatch."""
    benchmark.group = workload.op
    described(workload, "torch", "F.linear")
    compare(benchmark, *_calls(workload, "torch", "F.linear"))


def _in_segments(case, every):
    """A call of a sequence of 16 steps and of its gradients; the controller does nothing."""
    x, start = torch.zeros(16, case.B, 1), dnc.start(torch.zeros(1), case.B, case.N, case.W, case.R)
    to, state = mapped(torch.Tensor.requires_grad_, (dnc_cases.interface(case), start.state))

    def control(x_BX, words_BRW, hidden):
        return to, words_BRW.flatten(1), None

    def call():
        carry = start._replace(state=state)
        features, words, _ = dnc.sequence(control, x, carry, checkpoint_every=every, impl="torch")
        (features.sum() + words.sum()).backward()

    return call


@pytest.mark.parametrize("case", [dnc_cases.COPY, dnc_cases.BABI], ids=lambda c: c.name)
def test_a_sequence_in_segments_against_a_whole_one(benchmark, case):
    """What it costs to hold the links of 4 + 4 steps instead of 16: the ratio is below one."""
    benchmark.group = "dnc.sequence"
    compare(benchmark, *(_in_segments(case, every) for every in (4, None)))
