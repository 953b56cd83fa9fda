"""What `torch` does differently from the reference: closed-form gradients, slabs, no autocast."""

import proof
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kernels import dnc
from kernels.dnc import cases, vectorized

SMALL = cases.Case("small", 3, 5, 4, 2)


def stepped(**options):
    return lambda *args: dnc.step(*args, impl="torch", **options)


@pytest.mark.parametrize("op", cases.OPS)
def test_second_derivatives_are_there_and_right(op):
    tiny = cases.Case("tiny", 1, 3, 2, 2)
    args = cases.arguments(op, tiny, torch.float64)
    inputs = [t.requires_grad_() for t in proof.leaves(args)]
    function = proof.with_impl(getattr(dnc, op), "torch")

    def call(*given):
        return tuple(proof.flat(function(*proof.rebuilt(args, list(given)))))

    assert torch.autograd.gradgradcheck(call, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"book": True}, {"links": False}], ids=str)
def test_gradients_of_every_kind_of_step_are_those_of_the_reference(options):
    args = cases.arguments("step", SMALL, torch.float64)
    reference = proof.with_impl(lambda *a, impl: dnc.step(*a, impl=impl, **options), "reference")
    proof.agrees(stepped(**options), reference, args, torch.float64)


@pytest.mark.parametrize("used", range(7))
def test_any_output_may_be_the_only_one_that_matters(used):
    args = cases.arguments("step", SMALL, torch.float64)
    found = []
    for impl in ("torch", "reference"):
        inputs = [t.clone().requires_grad_() for t in proof.leaves(args)]
        out = proof.flat(dnc.step(*proof.rebuilt(args, list(inputs)), impl=impl))[used]
        found.append(torch.autograd.grad(out.square().sum(), inputs, allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("book", [False, True])
@pytest.mark.parametrize("slab", [1, 2 * SMALL.N**2])
def test_work_in_slabs_comes_to_the_same_bits(slab, book, monkeypatch):
    args = cases.arguments("step", SMALL)
    want = proof.run(stepped(book=book), args, torch.float32)
    monkeypatch.setattr(vectorized, "SLAB", slab)
    calls = []
    monkeypatch.setattr(
        torch, "lerp", lambda *a, f=torch.lerp, **kw: calls.append(1) or f(*a, **kw)
    )
    got = proof.run(stepped(book=book), args, torch.float32, want[2])
    # Two other mechanisms take one lerp each.
    assert len(calls) == 2 + (3 if slab == 1 else 2)
    for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_gpu_works_on_all_memories_at_once(monkeypatch):
    monkeypatch.setattr(vectorized, "SLAB", 1)
    calls = []
    for device in ("cpu", "meta"):
        links = torch.zeros(3, 2, 2, device=device)
        vectorized._in_slabs(lambda t: calls.append(len(t)) or (t,), links)
    assert calls == [1, 1, 1, 3]


def test_incoming_gradients_stay_as_they_are():
    args = cases.arguments("step", SMALL)
    inputs = [t.requires_grad_() for t in proof.leaves(args)]
    outputs = proof.flat(stepped()(*args))
    grads = [torch.randn_like(o) for o in outputs]
    before = [g.clone() for g in grads]
    torch.autograd.grad(outputs, inputs, grads)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    assert all(t._version == 0 for t in inputs)


def test_a_gradient_without_strides_is_taken():
    args = cases.arguments("step", SMALL)
    inputs = [t.requires_grad_() for t in proof.leaves(args)]
    words, state = stepped()(*args)
    total = words.sum() + sum(part.sum() for part in state)
    expanded = torch.autograd.grad(total, inputs, retain_graph=True)
    outputs = [words, *state]
    dense = torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_a_step_keeps_one_link_matrix_beside_the_one_it_was_given():
    args = cases.arguments("step", SMALL)
    for t in proof.leaves(args):
        t.requires_grad_()
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.shape
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        stepped()(*args)
    links = [s for s in kept.values() if s == args[0].link_BNN.shape]
    assert len(links) == 2


def test_autocast_leaves_addressing_in_float32():
    args = cases.arguments("step", SMALL, torch.bfloat16)
    leaves = [t.requires_grad_() for t in proof.leaves(args)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = proof.flat(stepped()(*args))
    assert {o.dtype for o in outputs} == {torch.float32}
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
    assert {g.dtype for g in grads} == {torch.bfloat16}


def test_constants_made_in_inference_mode_can_be_differentiated_later():
    vectorized._cached_number.cache_clear()
    vectorized._cached_triangle.cache_clear()
    usage = torch.rand(2, 6)
    with torch.inference_mode():
        dnc.allocation(usage, impl="torch")
    dnc.allocation(usage.requires_grad_(), impl="torch").sum().backward()
    assert usage.grad.isfinite().all()


@pytest.mark.parametrize("fake_first", [False, True])
def test_constants_are_not_shared_with_tensors_that_have_no_values(fake_first):
    vectorized._cached_number.cache_clear()
    vectorized._cached_triangle.cache_clear()
    args = cases.arguments("step", SMALL)

    def types(made):
        """Of a step's outputs and gradients."""
        leaves = [made(t).requires_grad_() for t in proof.leaves(args)]
        outputs = proof.flat(stepped()(*proof.rebuilt(args, list(leaves))))
        grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
        return {type(t) for t in (*outputs, *grads)}

    for fake in (fake_first, not fake_first):
        if fake:
            with FakeTensorMode() as mode:
                assert types(mode.from_tensor) == {FakeTensor}
        else:
            assert types(torch.clone) == {torch.Tensor}
