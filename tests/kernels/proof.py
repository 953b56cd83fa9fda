"""What every kernel has to show: the reference's values and gradients, in every type."""

import functools

import pytest
import torch

from kernels.bench.accuracy import FLOOR, TIMES_EAGER

# Relative Frobenius error against the reference in float64, inputs rounded to the type first: what
# may be off, and how many times plain PyTorch's, is what benchmarks allow too.
FORWARD, BACKWARD = FLOOR["values"], FLOOR["gradients"]
HALF = (torch.bfloat16, torch.float16)


def leaves(args):
    """The tensors among arguments, in order."""
    found = []
    for arg in args:
        found += leaves(arg) if isinstance(arg, tuple) else [arg]
    return found


def rebuilt(args, tensors):
    """The arguments with other tensors in their places; takes them off the list."""
    made = []
    for arg in args:
        if isinstance(arg, tuple):
            inner = rebuilt(arg, tensors)
            made.append(type(arg)(*inner) if hasattr(arg, "_fields") else tuple(inner))
        else:
            made.append(tensors.pop(0))
    return made


def flat(out):
    """The tensors that a function returned, in order."""
    return leaves(out) if isinstance(out, tuple) else [out]


def types(args, dtype):
    """The types of the arguments' tensors in ``dtype``: some keep a narrower one of their own.

    In float64 none does.
    """
    own = [t.dtype for t in leaves(args)]
    if dtype == torch.float64 or len(set(own)) == 1:
        return [dtype] * len(own)
    return [kept if kept in HALF else dtype for kept in own]


def run(function, args, dtype, grads=None):
    """Outputs, and gradients of the inputs for random gradients of the outputs."""
    kinds = types(args, dtype)
    inputs = [
        t.detach().to(kind).requires_grad_() for t, kind in zip(leaves(args), kinds, strict=True)
    ]
    outputs = flat(function(*rebuilt(args, list(inputs))))
    if grads is None:
        g = torch.Generator().manual_seed(7)
        grads = [torch.randn(o.shape, generator=g) for o in outputs]
    given = [w.to(o) for w, o in zip(grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, inputs, given, allow_unused=True)
    found = [torch.zeros_like(i) if f is None else f for f, i in zip(found, inputs, strict=True)]
    return [o.detach() for o in outputs], found, grads


def error(got, want):
    """Relative Frobenius error; absolute where the expected norm is below 1e-2.

    A gradient whose terms of order one cancel keeps their rounding: 1e-7 in float32.
    """
    assert got.shape == want.shape
    assert got.isfinite().all(), "not finite"
    gap = torch.linalg.vector_norm(got.double() - want)
    return float(gap / torch.linalg.vector_norm(want).clamp_min(1e-2))


def agrees(function, reference, args, dtype):
    """Check values and gradients of ``function`` in ``dtype`` against float64.

    Arguments of several types keep their narrower ones, and what is of these may be off as these.
    """
    kinds = types(args, dtype)
    rounded = rebuilt(args, [t.to(kind) for t, kind in zip(leaves(args), kinds, strict=True)])
    _, _, grads = run(reference, rounded, torch.float64)
    kept = functools.cache(lambda: [o.dtype for o in flat(reference(*rounded))])
    own = [dtype] * len(grads)
    if len(set(kinds)) > 1:
        own = [kind if kind in HALF else dtype for kind in kept()]
    # What comes in as a gradient is rounded too, the same for both sides.
    grads = [g.to(kind) for g, kind in zip(grads, own, strict=True)]
    want, want_grads, _ = run(reference, rounded, torch.float64, grads)
    got, got_grads, _ = run(function, rounded, dtype, grads)
    assert [g.dtype for g in got_grads] == kinds
    if any(o.dtype != dtype for o in got):
        assert [o.dtype for o in got] == kept()
    plain = functools.cache(lambda: run(reference, rounded, dtype, grads))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        allowed = FORWARD[own[i]], TIMES_EAGER["values"]
        _within(*allowed, f"output {i}", a, b, lambda i=i: plain()[0][i])
    for i, (a, b) in enumerate(zip(got_grads, want_grads, strict=True)):
        allowed = BACKWARD[kinds[i]], TIMES_EAGER["gradients"]
        _within(*allowed, f"gradient {i}", a, b, lambda i=i: plain()[1][i])


def _within(limit, times, what, got, want, plain):
    """Not further off than the limit, or than so many times what plain PyTorch is off."""
    found = error(got, want)
    if found > limit:
        if not plain().isfinite().all():
            # Such as the weightings of thousands of slots in float16.
            pytest.skip(f"{what}: error {found:.1e}, and plain PyTorch overflows in this type")
        eager = error(plain(), want)
        told = f"{what}: error {found:.1e}; allowed {limit:.0e}, or {times} times {eager:.1e}"
        assert found <= times * eager, told


def gradcheck(function, args):
    """Numerical gradients in float64 of every input."""
    inputs = [t.double().requires_grad_() for t in leaves(args)]

    def call(*given):
        return tuple(flat(function(*rebuilt(args, list(given)))))

    return torch.autograd.gradcheck(call, inputs, eps=1e-6, atol=1e-6)


def repeats(function, args):
    """Whether two calls give the same bits, values and gradients."""
    first, second = (run(function, args, torch.float32) for _ in range(2))
    pairs = [*zip(first[0], second[0], strict=True), *zip(first[1], second[1], strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def with_impl(function, impl):
    return functools.partial(function, impl=impl)
