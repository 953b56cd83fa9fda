"""Every op in every implementation: values and gradients against the reference in float64."""

import functools
import importlib

import proof
import pytest
import torch

from kernels import dispatch, register

FOLDERS = ("dnc", "ntm")
FAST = ("torch", "triton")
PARTIAL = (torch.float32, torch.bfloat16, torch.float16)


def _folder(name):
    return importlib.import_module(f"kernels.{name}"), importlib.import_module(
        f"kernels.{name}.cases"
    )


def _ops():
    for folder in FOLDERS:
        for op in _folder(folder)[1].OPS:
            yield pytest.param(folder, op, id=f"{folder}.{op}")


def _cases():
    for folder in FOLDERS:
        module, cases = _folder(folder)
        for op in cases.OPS:
            # A step rounds usages before it sorts by them: in less than float32 another order of
            # almost equal slots is as right as the reference's.
            dtypes = (torch.float32,) if op == "step" else PARTIAL
            for case in cases.TEST:
                for dtype in dtypes:
                    name = f"{folder}.{op}-{case.name}-{str(dtype).removeprefix('torch.')}"
                    yield pytest.param(module, op, cases, case, dtype, id=name)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(("module", "op", "cases", "case", "dtype"), [*_cases()])
def test_values_and_gradients(module, op, cases, case, dtype, impl):
    if impl == "torch" and dtype != torch.float32:
        pytest.skip("PyTorch computes in the type it is given; the kernels compute in float32")
    function = getattr(module, op)
    args = cases.arguments(op, case, torch.float32)
    reference = proof.with_impl(function, "reference")
    proof.agrees(proof.with_impl(function, impl), reference, args, dtype)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_gradients_are_those_of_the_values(folder, op, impl):
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.GRADCHECK, torch.float64)
    assert proof.gradcheck(proof.with_impl(getattr(module, op), impl), args)


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_the_kernels_gradients_are_the_references_in_float64(folder, op):
    """Each entry, to the last digits: with the test above, those of the values."""
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.GRADCHECK, torch.float64)
    reference, kernels = (proof.with_impl(getattr(module, op), i) for i in ("reference", "triton"))
    proof.agrees(kernels, reference, args, torch.float64)


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_results_repeat_bit_for_bit(folder, op):
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.TEST[1])
    assert proof.repeats(proof.with_impl(getattr(module, op), "triton"), args)


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_strides_do_not_matter(folder, op):
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.TEST[1])
    spread = [torch.stack([t, t], -1)[..., 0] for t in proof.leaves(args)]
    assert any(not t.is_contiguous() for t in spread)
    function = proof.with_impl(getattr(module, op), "triton")
    got = proof.flat(function(*proof.rebuilt(args, spread)))
    want = proof.flat(function(*args))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_a_compiled_region_does_not_break(folder, op):
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.TEST[1])
    for impl in FAST:
        torch.compiler.reset()
        function = proof.with_impl(getattr(module, op), impl)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        want, want_grads, grads = proof.run(function, args, torch.float32)
        got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
        for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_what_ran_is_counted_under_its_name(folder, op):
    module, cases = _folder(folder)
    args = cases.arguments(op, cases.GRADCHECK)
    dispatch.reset_counts()
    for impl in ("reference", *FAST, "auto"):
        getattr(module, op)(*args, impl=impl)
    assert dispatch.counts()[f"{folder}.{op}"] == {"reference": 1, "torch": 2, "triton": 1}


def _registered():
    for folder in FOLDERS:
        for value in vars(importlib.import_module(f"kernels.{folder}.op")).values():
            if isinstance(value, register.Kernel):
                yield pytest.param(folder, value, id=value.name)


@pytest.mark.parametrize(("folder", "kernel"), [*_registered()])
def test_registration(folder, kernel):
    _, cases = _folder(folder)
    public = kernel.name.removeprefix(f"{folder}_")
    given = proof.leaves(cases.arguments(public, cases.GRADCHECK))
    torch.library.opcheck(kernel.op, (*(t.requires_grad_() for t in given), *kernel.options))


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("memory", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_an_autocast_region_computes_addressing_in_float32(folder, op, memory, impl):
    """From tensors of several types too, such as what a memory holds and what a layer gives."""
    module, cases = _folder(folder)
    first, *rest = proof.leaves(cases.arguments(op, cases.GRADCHECK, torch.bfloat16))
    inputs = [t.requires_grad_() for t in (first.to(memory), *rest)]
    rebuilt = functools.partial(proof.rebuilt, cases.arguments(op, cases.GRADCHECK))
    function = proof.with_impl(getattr(module, op), impl)
    with torch.autocast("cpu", torch.bfloat16):
        got = proof.flat(function(*rebuilt([*inputs])))
    want = proof.flat(function(*rebuilt([t.float() for t in inputs])))
    assert {o.dtype for o in got} == {torch.float32}
    assert all(map(torch.equal, got, want))
    grads = [torch.linspace(-1, 1, o.numel()).view(o.shape) for o in got]
    wanted = torch.autograd.grad(want, inputs, grads)
    # Within the region PyTorch's own formulas, which are the reference's, compute in its type.
    with torch.autocast("cpu", torch.bfloat16, enabled=impl != "reference"):
        found = torch.autograd.grad(got, inputs, grads)
    assert [g.dtype for g in found] == [t.dtype for t in inputs]
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(("folder", "op"), [*_ops()])
def test_an_autocast_region_leaves_float64_and_other_devices_alone(folder, op, monkeypatch):
    module, cases = _folder(folder)
    function = proof.with_impl(getattr(module, op), "torch")
    with torch.autocast("cpu", torch.bfloat16):
        out = proof.flat(function(*cases.arguments(op, cases.GRADCHECK, torch.float64)))
    assert {o.dtype for o in out} == {torch.float64}
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    out = proof.flat(function(*cases.arguments(op, cases.GRADCHECK, torch.bfloat16)))
    assert {o.dtype for o in out} == {torch.bfloat16}
