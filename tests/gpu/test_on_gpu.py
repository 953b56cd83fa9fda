"""What the interpreter cannot see: the kernels as they are compiled, on a real GPU.

Run with ``make gpu``, which keeps kernels from being interpreted.
"""

import importlib

import proof
import pytest
import torch

from kernels import compile_gate, dispatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _cases():
    for folder in compile_gate.folders():
        cases = importlib.import_module(f"kernels.{folder}.cases")
        for op in cases.OPS:
            for case in (*cases.TEST, *cases.COMPILE):
                if (op, case.name) == ("conv2d_stats", "empty batch"):
                    continue  # There is no mean of nothing, and the op says so.
                if case in cases.TEST or op in getattr(case, "ops", cases.OPS):
                    yield pytest.param(folder, op, case, id=f"{folder}.{op}-{case.name}")


def _function(folder, op, case, rounded):
    """The public function with what the case asks for beside tensors.

    What of it has a type is rounded to one, as the tensors are, and follows theirs.
    """
    cases = importlib.import_module(f"kernels.{folder}.cases")
    function = getattr(importlib.import_module(f"kernels.{folder}"), op)

    def call(*args, impl=None):
        dtype = proof.leaves(args)[0].dtype
        more = {}
        if hasattr(cases, "keywords"):
            more = cases.keywords(op, case, rounded, device="cuda")
            more = {k: v.to(dtype) if _is_real(v) else v for k, v in more.items()}
        return function(*args, **more, impl=impl)

    return call


def _is_real(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _taken(function, args):
    """Skip what the kernels refuse by design; whatever else they refuse fails."""
    try:
        function(*args, impl="triton")
    except dispatch.Unavailable as error:
        if "exceed 128 in torch.float32" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("folder", "op", "case"), [*_cases()])
def test_values_and_gradients(folder, op, case, dtype):
    if op == "step" and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("a step sorts by usages that it has rounded")
    if getattr(case, "link_dtype", None) and dtype != torch.float32:
        pytest.skip("links are narrower than all else, or all is as without")
    function = _function(folder, op, case, dtype)
    cases = importlib.import_module(f"kernels.{folder}.cases")
    args = cases.arguments(op, case, torch.float32, device="cuda")
    if folder == "attention" and dtype == torch.float32:
        _taken(function, args)
    reference = proof.with_impl(function, "reference")
    proof.agrees(proof.with_impl(function, "triton"), reference, args, dtype)


@pytest.mark.parametrize(("folder", "op", "case"), [*_cases()])
def test_results_repeat_bit_for_bit(folder, op, case):
    function = _function(folder, op, case, torch.float32)
    cases = importlib.import_module(f"kernels.{folder}.cases")
    args = cases.arguments(op, case, torch.float32, device="cuda")
    if folder == "attention":
        _taken(function, args)
    assert proof.repeats(proof.with_impl(function, "triton"), args)


# At the end, so that what cannot be collected is found everywhere; for the whole file, because
# without a GPU there would be a thousand skipped tests to hand out.
if not torch.cuda.is_available() or dispatch.INTERPRETED:
    pytest.skip("needs a CUDA GPU and FDL_GPU_TESTS=1", allow_module_level=True)
