import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.plan import expand
from suite.run import execute
from tasks.ch01_linear_algebra import matops

METHODS = ("loops", "torch", "einsum", "outer", "kernel")


def test_the_loops_compute_a_product_that_can_be_checked_by_hand():
    assert matops.loop_product([[1, 2, 3], [4, 5, 6]], [[1, 0], [0, 1], [2, 2]]) == [
        [7, 8],
        [16, 17],
    ]
    with pytest.raises(ValueError, match="shorter"):
        matops.loop_product([[1, 2]], [[1]])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(METHODS), st.integers(0, 99))
def test_every_method_computes_all_four_operations(rows, n, method, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = min(rows, n)
    A = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    B = torch.randn(n, n, generator=generator, dtype=torch.float64)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    expected = {
        "inner": (A * B[:rows]).sum(1),
        "outer": x[:rows, None] * B[0],
        "matvec": A @ x,
        "matmul": A @ B,
    }
    given_ = matops.operands(A, B, x)
    for name in matops.OPERATIONS:
        found = matops.compute(method, name, *given_[name])
        torch.testing.assert_close(found, expected[name])


@pytest.mark.parametrize("method", METHODS)
def test_results_keep_the_format_of_the_operands(method):
    A, B, x = (torch.randn(*s).bfloat16() for s in ((3, 4), (4, 4), (4,)))
    for name, pair in matops.operands(A, B, x).items():
        assert matops.compute(method, name, *pair).dtype == torch.bfloat16


def test_partial_sums_in_bfloat16_stop_growing_at_256():
    ones = torch.ones(1, 400).bfloat16()
    assert matops.compute("outer", "matmul", ones, ones.T).item() == 256
    assert matops.compute("loops", "matmul", ones, ones.T).item() == 400


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_costs_at_most_the_unit_roundoff_and_nearly_reaches_it(dtype):
    u = matops.roundoff(dtype)
    x = 1 + u * torch.linspace(0, 2, 1001, dtype=torch.float64)
    worst = ((x.to(dtype).double() - x) / x).abs().max().item()
    assert 0.98 * u < worst <= u


@pytest.mark.parametrize("variant", ["kernel", "kernel_bf16"])
def test_each_implementation_of_the_kernel_meets_the_target_and_is_on_record(variant):
    found = {}
    for impl in ("torch", "reference", "triton"):
        given_ = {"profile": "smoke", "variants": [variant], "impls": [impl]}
        (spec,) = expand(["ch01.matops"], **given_, overrides={"size": 20})
        record = execute(spec, resume=False)
        assert record.train.reached
        assert record.kernels.dispatched["linear.matmul"].keys() == {impl}
        found[impl] = record.train.final["matmul_in_u"].value
    # Sums in float32 leave bfloat16 one rounding each, whoever adds up; in float32 a few.
    bound = 0.5 if variant == "kernel_bf16" else 4.0
    assert max(found.values()) < bound


def test_calls_are_counted():
    a = torch.ones(3, 3)
    with matops.Calls() as calls:
        (a @ a).add_(1)
    assert calls.n == 2


def test_a_smoke_run_counts_the_work():
    spec = expand(["ch01.matops"], profile="smoke", variants=["loops"], overrides={"size": 5})[0]
    final = execute(spec, resume=False).train.final
    assert final["step"].value == 3 * 25 + 125
    assert final["work_per_call"].value == 1
    assert final["commutator"].value > 0.5
