"""No kernel reads or writes beyond a tensor: every tensor lies between sentinels.

A compiled kernel that steps over an edge reads whatever lies there, and mostly goes unnoticed. Here
it reads NaN, which spreads, or writes over one, which is seen.
"""

import dataclasses
import functools
import importlib

import proof
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from kernels import compile_gate

BESIDE = 64
# Sizes that no block divides, in the words of each folder's cases.
ODD = {
    "attention": ("no multiples", "several blocks"),
    "conv2d": (
        "channels in blocks",
        "stride 2, channels in blocks",
        "unequal both ways",
        "groups, channels in blocks",
        "padding beyond the kernel",
        "depthwise",
    ),
    "dnc": ("no multiples",),
    "linear": ("no multiples", "several blocks", "examples in parts"),
    "lstm": ("no multiples", "several blocks"),
    "ntm": ("no multiples", "several tiles, five shifts"),
}


@pytest.fixture(autouse=True)
def _offsets_fit(monkeypatch):
    """An integer sum that 32 bits do not hold is an error here."""
    options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True, debug=True)
    monkeypatch.setattr(interpreter_builder, "options", options)


class Fence:
    """Tensors between sentinels."""

    def __init__(self):
        self.buffers = []

    def around(self, like):
        """A tensor of the same shape, strides and values as ``like``, with sentinels beside it."""
        extent = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
        extent = extent if like.numel() else 0
        sentinel = torch.nan if like.is_floating_point() else torch.iinfo(like.dtype).max
        buffer = torch.full((extent + 2 * BESIDE,), sentinel, dtype=like.dtype)
        self.buffers.append((buffer, extent))
        inside = torch.tensor([], dtype=like.dtype)
        inside.set_(buffer.untyped_storage(), BESIDE, like.shape, like.stride())
        return inside.copy_(like)

    def is_whole(self):
        """Whether every sentinel is still there."""
        return all(
            torch.equal(beside.isfinite(), torch.zeros_like(beside, dtype=torch.bool))
            if buffer.is_floating_point()
            else bool((beside == torch.iinfo(buffer.dtype).max).all())
            for buffer, extent in self.buffers
            for beside in (buffer[:BESIDE], buffer[BESIDE + extent :])
        )


@pytest.fixture
def fence(monkeypatch):
    """What ``empty`` returns lies between sentinels too, from here on."""
    fence = Fence()

    def fenced(make):
        def made(*args, **kw):
            tensor = make(*args, **kw)
            plain = type(tensor) is torch.Tensor and tensor.device.type == "cpu"
            return fence.around(tensor) if plain else tensor

        return made

    monkeypatch.setattr(torch, "empty", fenced(torch.empty))
    monkeypatch.setattr(torch, "empty_like", fenced(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", fenced(torch.Tensor.new_empty))
    return fence


def _options(folder, op, cases, case):
    """The keywords that leave out the most: lengths, a causal mask, from the end."""
    if folder == "conv2d":
        return cases.geometry(case)
    if folder == "linear":
        return cases.keywords(op, case)
    if folder == "lstm":
        return {"lengths": cases.lengths(case), "reverse": True}
    if folder == "attention":
        return {"key_lengths": cases.lengths(case)} | (
            {"causal": True} if op == "attention" else {}
        )
    return {}


def _cases():
    for folder in compile_gate.folders():
        cases = importlib.import_module(f"kernels.{folder}.cases")
        named = {case.name: case for case in cases.TEST}
        for op in cases.OPS:
            for name in ODD[folder]:
                options = _options(folder, op, cases, named[name])
                yield pytest.param(folder, op, named[name], options, id=f"{folder}.{op}-{name}")


@pytest.mark.parametrize(("folder", "op", "case", "options"), [*_cases()])
def test_no_kernel_leaves_its_tensors(fence, folder, op, case, options):
    cases = importlib.import_module(f"kernels.{folder}.cases")
    function = getattr(importlib.import_module(f"kernels.{folder}"), op)
    args = cases.arguments(op, case)
    called = functools.partial(function, **options, impl="triton")
    want, want_grads, grads = proof.run(called, args, torch.float32)
    inputs = [fence.around(t) for t in proof.leaves(args)]
    options = {k: fence.around(v) if torch.is_tensor(v) else v for k, v in options.items()}
    called = functools.partial(function, **options, impl="triton")
    got, got_grads, _ = proof.run(
        called, proof.rebuilt(args, list(inputs)), torch.float32, [fence.around(g) for g in grads]
    )
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        assert torch.equal(a, b)
    for after, before in zip(inputs, proof.leaves(args), strict=True):
        assert torch.equal(after, before)
    assert fence.is_whole()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("resident", [False, True])
def test_lengths_that_nobody_checked_lead_out_of_no_tensor(fence, monkeypatch, resident, reverse):
    """In a compiled region: more than all steps count as all, and less than none as none."""
    cases, op = (importlib.import_module(f"kernels.lstm.{name}") for name in ("cases", "op"))
    torch.compiler.reset()
    if not resident:
        monkeypatch.setattr(op.launch, "RESIDENT", 0)
    case = {case.name: case for case in cases.TEST}["no multiples"]
    args, found = cases.arguments("lstm", case), []
    for lengths in ([case.T + 1, -1, 2, 2**40, -(2**40)], [case.T, 0, 2, case.T, 0]):
        options = {"lengths": torch.tensor(lengths), "reverse": reverse, "impl": "triton"}
        layer = functools.partial(importlib.import_module("kernels.lstm").lstm, **options)
        called = torch.compile(layer, fullgraph=True, backend="eager")
        inputs = [fence.around(t) for t in proof.leaves(args)]
        outputs, grads, _ = proof.run(called, proof.rebuilt(args, inputs), torch.float32)
        found.append((*outputs, *grads))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert fence.is_whole()


@triton.jit
def _copied(x_p, out_p, WRITTEN, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(out_p + n, tl.load(x_p + n, mask=n < WRITTEN, other=0.0), mask=n < WRITTEN)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_kernel_that_leaves_its_tensor_is_seen(fence, beyond):
    x, out = fence.around(torch.ones(5)), torch.empty(5)
    fence.buffers[0][0].nan_to_num_(2.0)
    _copied[(1,)](x, out, 5 + beyond, BLOCK=8)
    fence.buffers.pop(0)
    assert fence.is_whole() == (beyond == 0)


def test_a_kernel_that_reads_beyond_its_tensor_is_seen(fence):
    x, out = fence.around(torch.ones(5)), torch.empty(8)
    _copied[(1,)](x, out, 6, BLOCK=8)
    assert out[:5].isfinite().all()
    assert out[5].isnan()


@triton.jit
def _counted(out_p, FIRST):
    n = FIRST + tl.arange(0, 2)
    tl.store(out_p + tl.arange(0, 2), n)


def test_an_offset_that_does_not_fit_is_seen():
    out = torch.zeros(2, dtype=torch.int32)
    _counted[(1,)](out, 2**31 - 2)
    assert out.tolist() == [2**31 - 2, 2**31 - 1]
    with pytest.raises(triton.runtime.errors.InterpreterError, match="int32 overflow"):
        _counted[(1,)](out, 2**31 - 1)
