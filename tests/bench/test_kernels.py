"""What the implementations of an op cost, forward and backward, and how they compare in pairs.

Read the figures; nothing here can fail by them. `ratio` is how many times as long the other
implementation takes: the median of pairs timed in turn (A B B A), with the interval that the exact
signed-rank test leaves.
"""

import importlib
import math
import time

import pytest
import torch

from kernels import dispatch, dnc
from kernels.dnc import cases as dnc_cases
from suite.stats import hodges_lehmann_interval

PAIRS = 12
SECONDS = 0.05
FOLDERS = {"dnc": ("link", "allocation", "step"), "ntm": ("address",)}


def _tensors(args):
    for arg in args:
        if isinstance(arg, tuple):
            yield from _tensors(arg)
        else:
            yield arg


def _both_ways(function, args):
    """A call that computes the values and every gradient."""
    inputs = [t.requires_grad_() for t in _tensors(args)]

    def call():
        out = function(*args)
        outputs = [o for o in _tensors(out if isinstance(out, tuple) else (out,)) if o.grad_fn]
        torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])

    return call


def _seconds(call, n):
    begin = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - begin) / n


def compare(benchmark, ours, other):
    """Time ``ours`` under pytest-benchmark, and in pairs with ``other``; note the ratio."""
    for call in (ours, other):
        call()
    n = max(1, math.ceil(SECONDS / max(_seconds(ours, 3), _seconds(other, 3))))
    ratios = []
    for pair in range(PAIRS):
        order = (ours, other, other, ours) if pair % 2 else (other, ours, ours, other)
        spent = {ours: 0.0, other: 0.0}
        for call in order:
            spent[call] += _seconds(call, n)
        ratios.append(math.log(spent[other] / spent[ours]))
    found = hodges_lehmann_interval(ratios)
    benchmark.extra_info["ratio"] = {
        "estimate": math.exp(found.estimate),
        "low95": math.exp(found.low),
        "high95": math.exp(found.high),
        "pairs": PAIRS,
    }
    benchmark.pedantic(ours, rounds=PAIRS, iterations=n)


def _cases():
    for folder, ops in FOLDERS.items():
        cases = importlib.import_module(f"kernels.{folder}.cases")
        for op in ops:
            for case in cases.BENCH:
                yield pytest.param(folder, op, case, id=f"{folder}.{op}-{case.name}")


@pytest.mark.parametrize(("folder", "op", "case"), [*_cases()])
def test_torch_against_the_reference(benchmark, folder, op, case):
    function = getattr(importlib.import_module(f"kernels.{folder}"), op)
    cases = importlib.import_module(f"kernels.{folder}.cases")
    calls = [
        _both_ways(lambda *a, impl=impl: function(*a, impl=impl), cases.arguments(op, case))
        for impl in ("torch", "reference")
    ]
    benchmark.group = f"{folder}.{op}"
    benchmark.extra_info["fdl"] = {
        "op": f"{folder}.{op}",
        "impl": "torch",
        "against": "reference",
        "shape": case.name,
        "mode": "forward and backward",
        "threads": torch.get_num_threads(),
        "dispatched": dispatch.counts().get(f"{folder}.{op}", {}),
    }
    compare(benchmark, *calls)


class Peer:
    """The memory of the PyPI package ``dnc``, steered by the same interface."""

    def __init__(self, case):
        memory = pytest.importorskip("dnc.memory", reason="the PyPI package dnc is not installed")
        self.memory = memory.Memory(1, case.N, case.W, case.R)

    def step(self, state, to):
        hidden = {
            "memory": state.memory_BNW,
            "link_matrix": state.link_BNN[:, None],
            "precedence": state.precedence_BN[:, None],
            "read_weights": state.read_BRN,
            "write_weights": state.write_BN[:, None],
            "usage_vector": state.usage_BN,
        }
        hidden = self.memory.write(
            to.write_key_B1W,
            to.write_vector_BW[:, None],
            to.erase_BW[:, None],
            to.free_gates_BR,
            to.read_strengths_BR,
            to.write_strength_B1,
            to.write_gate_B1,
            to.allocation_gate_B1,
            hidden,
        )
        modes_BRS = to.read_modes_BSR.transpose(1, 2)
        words, hidden = self.memory.read(to.read_keys_BRW, to.read_strengths_BR, modes_BRS, hidden)
        kept = ("memory", "usage_vector", "precedence", "link_matrix", "read_weights")
        return (words, *(hidden[name] for name in kept))


@pytest.mark.parametrize(
    "case", [c for c in dnc_cases.BENCH if c.B > 1 and c.N < 512], ids=lambda c: c.name
)
def test_a_step_against_the_pypi_package(benchmark, case):
    peer = Peer(case)
    ours = _both_ways(lambda *a: dnc.step(*a, impl="torch"), dnc_cases.arguments("step", case))
    theirs = _both_ways(peer.step, dnc_cases.arguments("step", case))
    benchmark.group = "dnc.step"
    benchmark.extra_info["fdl"] = {"op": "dnc.step", "impl": "torch", "against": "PyPI dnc"}
    compare(benchmark, ours, theirs)


@pytest.mark.parametrize("case", [dnc_cases.COPY, dnc_cases.BABI], ids=lambda c: c.name)
def test_a_sequence_in_segments_against_a_whole_one(benchmark, case):
    """What it costs to hold the links of 4 + 4 steps instead of 16: the ratio is below one."""
    x, start = torch.zeros(16, case.B, 1), dnc.start(torch.zeros(1), case.B, case.N, case.W, case.R)
    args = (dnc_cases.interface(case), start.state)

    def run(to, state, every=None):
        features, words, _ = dnc.sequence(
            lambda x_BX, words_BRW, hidden: (to, words_BRW.flatten(1), None),
            x,
            start._replace(state=state),
            checkpoint_every=every,
            impl="torch",
        )
        return features, words

    calls = [_both_ways(lambda *a, every=every: run(*a, every), args) for every in (4, None)]
    benchmark.group = "dnc.sequence"
    benchmark.extra_info["fdl"] = {"op": "dnc.sequence", "impl": "torch", "checkpoint_every": 4}
    compare(benchmark, *calls)
