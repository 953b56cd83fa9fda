"""Ops watched inside a program: what is kept of their calls, and that watching changes nothing."""

import pytest
import torch

from kernels import dnc, linear
from kernels.bench.observe import Spans, Watch, cost_of_marks, uncaptured
from kernels.bench.providers import CannotRun
from kernels.dispatch import Unavailable, counts, reset_counts


def program(x, w, b):
    """Two layers and their loss; evaluated once without gradients, as a program would."""
    with torch.no_grad():
        linear.linear(x[:2], w, b)
    hidden = linear.linear(x, w, b, relu=True).tanh()
    return linear.linear(hidden, w, b, relu=True).square().sum()


@pytest.fixture
def given():
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((5, 4), (4, 4), (4,)))
    return x, w.requires_grad_(), b.requires_grad_()


def gradients(given):
    return torch.autograd.grad(program(*given), given[1:])


def test_spans_change_no_bit_and_end_for_every_call(given):
    plain = gradients(given)
    spans = Spans()
    with Watch(spans=spans):
        watched = gradients(given)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert spans.calls == {"linear.linear": 3}
    assert [which for _, which, *_ in spans.found].count("forward") == 3
    assert [which for _, which, *_ in spans.found].count("backward") == 2
    assert all(end >= begin for *_, begin, end in spans.found)


def test_calls_are_told_apart_by_sizes_options_and_gradients(given):
    with Watch(keep=True) as watch:
        program(*given)
    kinds = sorted(watch.calls, key=lambda k: (k.mode, len(k.wanted)))
    assert [k.wanted for k in kinds] == [(), ("1", "2"), ("0", "1", "2")]
    assert kinds[0].shape == (("0", "2x4"), ("1", "4x4"), ("2", "4"), ("relu", "False"))
    assert [k.mode for k in kinds] == ["forward", "full", "full"]
    example = watch.examples[kinds[1]]
    assert all(a.ok for a in example.check("torch"))
    assert [a.of for a in example.check("torch")] == ["values", "gradients"]
    assert [len(g) for g in example.timeable("torch")()] == [4, 4]
    with pytest.raises(CannotRun, match="an interpreter has no speed"):
        watch.examples[kinds[1]].call("triton")


def test_a_call_that_does_not_count_is_not_seen_and_one_op_can_run_another_implementation(given):
    reset_counts()
    with Watch({"linear.linear": "reference"}, counts=torch.is_grad_enabled, keep=True) as watch:
        program(*given)
    assert sum(watch.calls.values()) == 2
    assert counts() == {"linear.linear": {"reference": 3}}
    reset_counts()
    program(*given)
    assert counts() == {"linear.linear": {"torch": 3}}


def test_marks_cost_something_and_no_more_than_a_clock_says(given):
    with Watch(keep=True) as watch:
        program(*given)
    spans = Spans()
    for kind, example in watch.examples.items():
        cost = cost_of_marks(example, spans, calls=3)
        assert cost["forward"] > 0
        assert (cost["backward"] > 0) == (kind.mode == "full")
    assert spans.found == []


def test_what_would_be_replayed_runs_as_it_is_and_is_captured_again_later():
    model, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with uncaptured():
        assert dnc.Captured(model, x) is model
    with pytest.raises(Unavailable, match="only a GPU has launches to replay"):
        dnc.Captured(model, x)
