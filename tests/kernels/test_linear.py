"""A linear layer in every implementation: PyTorch's values, and gradients of gradients."""

import functools
import itertools

import proof
import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels import dispatch, linear
from kernels.linear import cases, op
from kernels.linear import triton as launch

IMPLS = ("reference", "torch", "triton")
CASES = {case.name: case for case in cases.TEST}
BOTH_WAYS = [pytest.param(False, id="plain"), pytest.param(True, id="relu")]


def layer(impl, relu=True):
    return functools.partial(linear.linear, relu=relu, impl=impl)


def by_pytorch(relu=True):
    def call(x, weight, bias=None):
        y = F.linear(x, weight, bias)
        return F.relu(y) if relu else y

    return call


def tiny(dtype=torch.float64):
    """x, weight and bias."""
    args = cases.arguments("linear", cases.GRADCHECK, dtype)
    return tuple(t.requires_grad_() for t in args)


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture
def launched(monkeypatch):
    """The grid, the arguments and the options of each launch from here on."""
    kernel, found = launch._linear_product, []

    class Noted:
        def __getitem__(self, grid):
            def run(*args, **options):
                found.append((grid, args, options))
                return kernel[grid](*args, **options)

            return run

    monkeypatch.setattr(launch, "_linear_product", Noted())
    return found


@pytest.mark.parametrize("case", cases.TEST, ids=lambda c: c.name)
def test_values_and_gradients_are_those_of_pytorch(case):
    args = cases.arguments("linear", case)
    for impl in IMPLS:
        proof.agrees(layer(impl, case.relu), by_pytorch(case.relu), args, torch.float32)


@pytest.mark.parametrize("name", ["no multiples", "examples in parts"])
def test_a_product_of_matrices_is_pytorchs(name):
    args = cases.arguments("matmul", CASES[name])
    for impl in IMPLS:
        function = proof.with_impl(linear.matmul, impl)
        proof.agrees(function, torch.matmul, args, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    for name in ("no multiples", "without a ReLU"):
        case = CASES[name]
        args = cases.arguments("linear", case)
        proof.agrees(layer("triton", case.relu), by_pytorch(case.relu), args, dtype)


SIZES = st.integers(1, 40)


@given(st.integers(0, 40), SIZES, SIZES, st.booleans(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_odd_sizes(B, I, O, bias, relu):  # noqa: E741
    case = cases.Case("any", B, I, O, bias, relu)
    args = cases.arguments("linear", case)
    proof.agrees(layer("triton", relu), by_pytorch(relu), args, torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relu", BOTH_WAYS)
def test_gradients_are_those_of_the_values_and_differentiable_again(impl, relu):
    assert proof.gradcheck(layer(impl, relu), tiny())
    assert torch.autograd.gradgradcheck(
        layer(impl, relu), tiny(), fast_mode=True, check_undefined_grad=False
    )


def test_a_gradient_penalty_has_the_gradients_of_pytorch():
    """Differentiated three times over, through every op's own gradient."""

    def penalty(function):
        x, weight, bias = tiny()
        y = function(x, weight, bias).tanh().sum()
        by_all = torch.autograd.grad(y, (x, weight, bias), create_graph=True)
        size = sum(g.square().sum() for g in by_all)
        again = torch.autograd.grad(size, (x, weight, bias), create_graph=True)
        last = torch.autograd.grad(sum(g.square().sum() for g in again), (x, weight, bias))
        return size, *again, *last

    got, want = penalty(layer("triton")), penalty(by_pytorch())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_leading_dimensions_stay(impl, shape):
    x, (_, weight, bias) = torch.randn(shape, dtype=torch.float64), tiny()
    for function, pytorch in ((layer(impl), by_pytorch()), (proof.with_impl(_by, impl), _by_mm)):
        runs = (proof.run(f, (x, weight, bias), torch.float64) for f in (function, pytorch))
        (got, got_grads, _), (want, want_grads, _) = runs
        torch.testing.assert_close((*got, *got_grads), (*want, *want_grads))


def _by(x, weight, bias, impl):
    return linear.matmul(x, weight.mT, impl=impl)


def _by_mm(x, weight, bias):
    return x @ weight.mT


def layouts(t):
    return t.contiguous(), torch.stack([t, t], -1)[..., 0], t.t().contiguous().t()


def test_layouts_do_not_matter():
    x, weight, bias = cases.arguments("linear", CASES["no multiples"])
    want, want_grads, grads = proof.run(layer("triton"), (x, weight, bias), torch.float32)
    for turned in zip(layouts(x), layouts(weight), strict=True):
        got, got_grads, _ = proof.run(layer("triton"), (*turned, bias), torch.float32, grads)
        assert same((*got, *got_grads), (*want, *want_grads))


def test_a_gradient_may_come_in_any_layout():
    args = [t.requires_grad_() for t in cases.arguments("linear", CASES["no multiples"])]
    out = linear.linear(*args, relu=True, impl="triton")
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(out, args, grad, retain_graph=True)
    for moved in layouts(grad):
        assert same(torch.autograd.grad(out, args, moved, retain_graph=True), want)
    ones = torch.autograd.grad(out, args, torch.ones_like(out), retain_graph=True)
    assert same(torch.autograd.grad(out.sum(), args), ones)


def test_results_repeat_bit_for_bit():
    assert proof.repeats(layer("triton"), cases.arguments("linear", CASES["examples in parts"]))


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch_gives_gradients_of_zero(impl):
    args = cases.arguments("linear", CASES["empty batch"])
    [out], grads, _ = proof.run(layer(impl), args, torch.float32)
    assert out.shape == (0, 3)
    assert grads[0].shape == args[0].shape
    assert all((g == 0).all() for g in grads[1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_where_the_relu_bends_no_gradient_passes(impl):
    x, weight = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    x.requires_grad_()
    y = linear.linear(x, weight, relu=True, impl=impl)
    assert y.tolist() == [[0.0, 1.0, 0.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_a_number_stays_one(impl):
    x, weight, bias = cases.arguments("linear", CASES["no multiples"])
    x[0, 0] = torch.nan
    out = linear.linear(x, weight, bias, relu=True, impl=impl)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def both_ways(case):
    """Forward, the gradient of x, that of the weight and the bias."""
    proof.run(layer("triton", case.relu), cases.arguments("linear", case), torch.float32)


def test_many_examples_are_split_into_parts(launched):
    both_ways(CASES["examples in parts"])
    assert [grid for grid, *_ in launched] == [(34, 1), (17, 1), (2, 2)]
    launched.clear()
    both_ways(CASES["no multiples"])
    assert [grid[1] for grid, *_ in launched] == [1, 1, 1]


def gate_and_sums(case, launched):
    both_ways(case)
    found = [(args[1] is not None, args[5] is not None) for _, args, _ in launched]
    launched.clear()
    return found


def test_the_epilogue_and_the_gate_are_there_where_they_are_needed(launched):
    forward, to_x, to_weight = gate_and_sums(CASES["no multiples"], launched)
    assert (forward, to_x, to_weight) == ((False, False), (True, False), (True, True))
    forward, to_x, to_weight = gate_and_sums(CASES["without a ReLU"], launched)
    assert (forward, to_x, to_weight) == ((False, False), (False, False), (False, True))
    x, weight, b = cases.arguments("linear", CASES["no multiples"])
    for relu, bias in itertools.product((False, True), repeat=2):
        linear.linear(x, weight, b if bias else None, relu=relu, impl="triton")
        _, args, options = launched.pop()
        assert (args[3] is not None, options["RELU"]) == (bias, relu)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_gradients_that_nobody_asked_for_are_not_computed(launched, needed):
    args = cases.arguments("linear", CASES["no multiples"])
    args[needed].requires_grad_()
    linear.linear(*args, relu=True, impl="triton").sum().backward()
    # That of the weight sums up that of the bias.
    assert [args[5] is not None for _, args, _ in launched[1:]] == [needed > 0]


def test_types_choose_how_products_are_rounded(launched):
    for dtype in dispatch.DTYPES:
        layer("triton")(*cases.arguments("linear", CASES["smallest"], dtype))
    options = [o for *_, o in launched]
    assert [o["PRECISION"] for o in options] == ["tf32x3", "ieee", "ieee", "ieee"]
    assert [o["ACC"] for o in options] == [tl.float32, tl.float32, tl.float32, tl.float64]


def on_meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", dispatch.DTYPES)
def test_blocks_are_no_larger_than_what_they_cover(dtype):
    large = launch.tile_of(on_meta(8192, 8192, dtype=dtype), on_meta(8192, 8192))
    assert tuple(large.values()) == launch.LARGEST[dtype.itemsize]
    small = launch.tile_of(on_meta(1, 8, dtype=dtype), on_meta(8, 17), programs=1)
    assert [small[k] for k in ("BM", "BN", "BK")] == [16, 32, 16]
    assert small["num_warps"] in (4, launch.LARGEST[dtype.itemsize][3])


def test_blocks_are_smaller_where_few_programs_would_run():
    a, b = on_meta(512, 512), on_meta(512, 512)
    assert launch.tile_of(a, b, programs=1)["BM"] == 128
    tile = launch.tile_of(a, b)
    assert (512 // tile["BM"]) * (512 // tile["BN"]) >= launch.PROGRAMS
    tile = launch.tile_of(a[:64], b[:, :64])
    assert (tile["BM"], tile["BN"], tile["num_warps"]) == (32, 32, 4)


def test_what_is_not_loaded_in_vectors_is_loaded_in_smaller_blocks():
    a, b = on_meta(512, 512), on_meta(512, 512)
    assert launch.tile_of(a, b)["BK"] == 64
    odd = on_meta(512, 515)
    assert launch.tile_of(odd[:, :512], b)["BK"] == 32
    assert launch.tile_of(a, odd[:, :512])["BK"] == 32
    assert launch.tile_of(a, b, odd[:, :512])["BK"] == 32


def test_offsets_are_wide_where_a_tensor_is_large(launched, monkeypatch):
    small, large = (torch.empty(n, device="meta", dtype=torch.int8) for n in (2**31, 2**31 + 1))
    assert launch.index_type(small, None) is tl.int32
    assert launch.index_type(small, large) is tl.int64
    assert launch.index_type(large[:: 2**30]) is tl.int64
    monkeypatch.setattr(launch, "index_type", lambda *tensors: tl.int64)
    case = CASES["several blocks"]
    proof.agrees(layer("triton"), by_pytorch(), cases.arguments("linear", case), torch.float32)
    assert {o["INDEX"] for *_, o in launched} == {tl.int64}


def test_auto_is_torch_here_and_says_why():
    choice = dispatch.explain("linear.linear", *tiny(torch.float32), relu=True)
    assert (choice.impl, "interpreted" in choice.reason) == ("torch", True)


def test_what_ran_is_counted_under_its_name():
    args = tiny(torch.float32)
    dispatch.reset_counts()
    for impl in (*IMPLS, "auto"):
        linear.linear(*args, impl=impl)
        linear.matmul(args[0], args[1].mT, impl=impl)
    once = {"reference": 1, "torch": 2, "triton": 1}
    assert dispatch.counts() == {"linear.linear": once, "linear.matmul": once}


@pytest.mark.parametrize("relu", BOTH_WAYS)
def test_registration(relu):
    x, weight, bias = tiny(torch.float32)
    torch.library.opcheck(op._linear_op.op, (x, weight, bias, relu))
    grad = torch.randn(3, 2).requires_grad_()
    out = torch.randn(3, 2) if relu else None
    torch.library.opcheck(op._backward_x_op.op, (grad, weight, out))
    torch.library.opcheck(op._backward_weight_op.op, (grad, x, out))


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_compiled_region_does_not_break(impl):
    torch.compiler.reset()
    function, args = layer(impl), cases.arguments("linear", CASES["without a ReLU"])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, want_grads, grads = proof.run(function, args, torch.float32)
    got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
    torch.testing.assert_close((*got, *got_grads), (*want, *want_grads), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_autocast_region_sets_the_type(impl):
    x, *rest = tiny(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear.linear(x.bfloat16(), *rest, relu=True, impl=impl)
        assert linear.matmul(x, rest[0].mT, impl=impl).dtype == torch.bfloat16
        assert linear.linear(*tiny(), impl=impl).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {t.grad.dtype for t in rest} == {torch.float32}


X, WEIGHT = torch.zeros(2, 5), torch.zeros(3, 5)
BAD = [
    ({"x": [[0.0]]}, TypeError, "x is a tensor, got list"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\.\.\., I\), got \(\)"),
    ({"x": X.int()}, TypeError, "x is of floating point"),
    ({"x": X[:, :0], "weight": WEIGHT[:, :0]}, ValueError, "I is at least 1, got 0"),
    ({"weight": WEIGHT[:0]}, ValueError, "O is at least 1, got 0"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight has shape \(O, I=5\), got \(5,\)"),
    ({"weight": WEIGHT[:, :4]}, ValueError, r"weight has shape \(O, I=5\), got \(3, 4\)"),
    ({"weight": WEIGHT.double()}, TypeError, "weight is torch.float32 as x is, got"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on cpu as x is, got meta"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(O=3\), got \(5,\)"),
    ({"bias": 1.0}, TypeError, "bias is a tensor, got float"),
    ({"relu": 1}, TypeError, "relu is a bool, got int"),
    ({"impl": "cublas"}, ValueError, "unknown impl 'cublas'"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        linear.linear(**{"x": X, "weight": WEIGHT} | arguments)


def test_bad_arguments_of_a_product_are_named():
    with pytest.raises(ValueError, match=r"b has shape \(I=5, O\), got \(3, 5\)"):
        linear.matmul(X, WEIGHT)
    with pytest.raises(TypeError, match="a is a tensor, got list"):
        linear.matmul([[0.0]], WEIGHT)
