"""What ``auto`` takes on a GPU, by itself and where ``torch.compile`` traces the choice."""

import importlib

import proof
import pytest
import torch

from kernels import dispatch

DEVICE = "cuda"


@pytest.mark.parametrize(
    ("folder", "op"), [("dnc", "allocation"), ("dnc", "link"), ("dnc", "step"), ("ntm", "address")]
)
def test_auto_is_triton_where_that_is_proven_in_a_compiled_region_too(folder, op):
    cases = importlib.import_module(f"kernels.{folder}.cases")
    function = getattr(importlib.import_module(f"kernels.{folder}"), op)
    args = cases.arguments(op, cases.TEST[0], torch.float32, device=DEVICE)
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    proven = dispatch.PROVEN[folder]
    taken = proven["capability"] == here and op not in proven.get("except", {})
    expected = "triton" if taken else "torch"
    assert dispatch.explain(f"{folder}.{op}", *args).impl == expected
    want = proof.flat(function(*args, impl=expected))
    torch.compiler.reset()
    got = proof.flat(torch.compile(function, fullgraph=True)(*args))
    # The compiler fuses PyTorch's operators, and leaves kernels as they are.
    exact = {"rtol": 0, "atol": 0} if expected == "triton" else {}
    torch.testing.assert_close(got, want, **exact)


# At the end, so that what cannot be collected is found everywhere; for the whole file, because
# without a GPU there would be a thousand skipped tests to hand out.
if not torch.cuda.is_available() or dispatch.INTERPRETED:
    pytest.skip("needs a CUDA GPU and FDL_GPU_TESTS=1", allow_module_level=True)
