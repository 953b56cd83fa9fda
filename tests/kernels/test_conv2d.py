"""Convolution in every implementation: PyTorch's values, and gradients of gradients."""

import copy
import functools

import proof
import pytest
import torch
import triton.language as tl
from torch.nn import functional as F

from kernels import conv2d as ops
from kernels import dispatch
from kernels.conv2d import cases, op
from kernels.conv2d import triton as launch

IMPLS = ("reference", "torch", "triton")
HALVES = (torch.bfloat16, torch.float16)
CASES = {case.name: case for case in cases.TEST}
# A few that differ in what matters to the epilogue, the layout or the type.
SOME = ("3 by 3", "channels in blocks", "unequal both ways", "even kernel, same", "depthwise")
# Taps of which some input pixels meet only a few or none, and taps in groups.
TWICE = (
    {"padding": "same"},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "dilation": (2, 1), "padding": (1, 0), "groups": 2},
)
KERNELS = ("_conv2d_forward", "_conv2d_backward_x", "_conv2d_backward_weight")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def case_of(name):
    return pytest.param(CASES[name], id=name)


def function_of(name, case, impl, **more):
    return functools.partial(getattr(ops, name), **cases.geometry(case), **more, impl=impl)


def fused(case, impl, relu):
    """The fused op, with a residual where a fifth tensor is given."""

    def call(x, weight, scale, shift, residual=None):
        function = function_of("conv2d_fused", case, impl, relu=relu, residual=residual)
        return function(x, weight, scale, shift)

    return call


def fused_by_pytorch(case, relu):
    def call(x, weight, scale, shift, residual=None):
        y = F.conv2d(x, weight, **cases.geometry(case)) * scale[:, None, None]
        y = y + shift[:, None, None]
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y

    return call


def stats_by_pytorch(case):
    def call(x, weight, bias=None):
        y = F.conv2d(x, weight, bias, **cases.geometry(case))
        return y, *reversed(torch.var_mean(y, (0, 2, 3), correction=0))

    return call


def with_residual(case):
    """The tensors of the fused op, and what it could have to add."""
    args = cases.arguments("conv2d_fused", case)
    shape = function_of("conv2d_fused", case, "torch")(*args).shape
    return *args, torch.randn(shape, generator=torch.Generator().manual_seed(5))


# N, C, H, W, K, R, S.
TINY = (2, 2, 4, 4, 2, 2, 3)


def tiny(groups=1):
    """x, weight and bias of a case of these sizes, in float64."""
    g = torch.Generator().manual_seed(3)
    shapes = (2, 2, 4, 4), (2, 2 // groups, 2, 3), (2,)
    return tuple(torch.randn(s, generator=g).double().requires_grad_() for s in shapes)


def assert_the_same_twice(function, pytorch, args):
    """Check gradients, and those of gradients by all that these depend on, against PyTorch's."""
    g = torch.Generator().manual_seed(9)

    def directions(tensors):
        return [torch.randn(t.shape, generator=g).double() for t in tensors]

    given = [t.requires_grad_() for t in directions(proof.flat(pytorch(*args)))]
    along = directions(args)
    found = []
    for f in (function, pytorch):
        once = torch.autograd.grad(proof.flat(f(*args)), args, given, create_graph=True)
        total = sum((grad * along_it).sum() for grad, along_it in zip(once, along, strict=True))
        found.append([*once, *torch.autograd.grad(total, [*args, *given], materialize_grads=True)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.fixture
def launched(monkeypatch):
    """Kernel -> the grid and options of each of its launches, from here on."""
    found = {name: [] for name in KERNELS}

    class Noted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(launch, name)

        def __getitem__(self, grid):
            def run(*args, **options):
                found[self.name].append((grid, options))
                return self.kernel[grid](*args, **options)

            return run

    for name in KERNELS:
        monkeypatch.setattr(launch, name, Noted(name))
    return found


@pytest.mark.parametrize("case", [case_of(name) for name in CASES])
def test_values_and_gradients_are_those_of_pytorch(case):
    args = cases.arguments("conv2d", case)
    pytorch = functools.partial(F.conv2d, **cases.geometry(case))
    for impl in IMPLS:
        proof.agrees(function_of("conv2d", case, impl), pytorch, args, torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("case", [case_of(name) for name in SOME])
def test_the_fused_epilogue_is_what_it_stands_for(case, relu, impl):
    args = with_residual(case)
    for given in (args, args[:4]) if case.name == SOME[0] else (args,):
        proof.agrees(fused(case, impl, relu), fused_by_pytorch(case, relu), given, torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", [case_of(name) for name in SOME])
def test_half_the_bits(case, dtype):
    args = with_residual(case)
    proof.agrees(fused(case, "triton", True), fused_by_pytorch(case, True), args, dtype)
    if case.name == SOME[0]:
        pytorch = functools.partial(F.conv2d, **cases.geometry(case))
        proof.agrees(function_of("conv2d", case, "triton"), pytorch, args[:3], dtype)


@pytest.mark.parametrize("case", [case_of(name) for name in SOME])
def test_float64_is_computed_in_float64(case):
    args = with_residual(case)
    proof.agrees(fused(case, "triton", True), fused_by_pytorch(case, True), args, torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", [*map(case_of, (*SOME, "groups, channels in blocks"))])
def test_statistics_are_those_of_the_output(case, impl):
    args, function = cases.arguments("conv2d_stats", case), function_of("conv2d_stats", case, impl)
    proof.agrees(function, stats_by_pytorch(case), args, torch.float32)
    if case.name == SOME[0]:
        proof.agrees(function, stats_by_pytorch(case), args[:2], torch.float32)


@pytest.mark.parametrize("impl", IMPLS)
def test_statistics_of_several_blocks_of_pixels(impl):
    case = cases.Case("two blocks and a part", 2, 2, 13, 11, 3, 1, 1)
    args, function = cases.arguments("conv2d_stats", case), function_of("conv2d_stats", case, impl)
    proof.agrees(function, stats_by_pytorch(case), args, torch.float32)
    proof.agrees(function, stats_by_pytorch(case), args, torch.float64)
    # Means that are large for their variance: squares alone would cancel.
    far = (*args[:2], args[2] + 1e4)
    _, mean, variance = function(*far)
    y = F.conv2d(*(t.double() for t in far))
    torch.testing.assert_close(mean, y.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, y.var((0, 2, 3), correction=0).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_are_kept_in_float32(dtype, impl):
    case = CASES["3 by 3"]
    args = cases.arguments("conv2d_stats", case, dtype)
    y, mean, variance = function_of("conv2d_stats", case, impl)(*args)
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, torch.float32, torch.float32)
    want = stats_by_pytorch(case)(*(t.double() for t in args))
    for got, exact in zip((y, mean, variance), want, strict=True):
        assert proof.error(got, exact) <= proof.FORWARD[dtype]


@pytest.mark.parametrize("impl", IMPLS)
def test_only_some_statistics_need_a_gradient(impl):
    case = CASES["3 by 3"]
    args = [t.double().requires_grad_() for t in cases.arguments("conv2d_stats", case)]
    function = function_of("conv2d_stats", case, impl)
    for chosen in range(3):
        found = [
            torch.autograd.grad(f(*args)[chosen].square().sum(), args)
            for f in (function, stats_by_pytorch(case))
        ]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", IMPLS)
def test_statistics_are_differentiable_twice(impl):
    case = cases.Case("stride 2", *TINY, stride=2, padding=1)
    assert_the_same_twice(function_of("conv2d_stats", case, impl), stats_by_pytorch(case), tiny())


def network(bias=True, affine=True, momentum=0.1, tracked=True):
    """A convolution and its batch normalisation, with statistics that are not the initial ones."""
    torch.manual_seed(4)
    conv = torch.nn.Conv2d(2, 3, 3, 2, 1, bias=bias)
    norm = torch.nn.BatchNorm2d(3, affine=affine, momentum=momentum, track_running_stats=tracked)
    state = [*norm.parameters(), *filter(torch.is_floating_point, norm.buffers())]
    for t in state:
        t.data.uniform_(0.5, 1.5)
    return torch.nn.Sequential(conv, norm)


NETWORKS = [
    {},
    {"bias": False},
    {"affine": False},
    {"momentum": None},
    {"tracked": False},
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_normalised_convolution_is_pytorchs(options, impl):
    theirs = network(**options)
    ours = ops.ConvBN(*copy.deepcopy(theirs), impl=impl)
    g = torch.Generator().manual_seed(6)
    for training in (True, True, False):
        theirs.train(training), ours.train(training)
        x = torch.randn(2, 2, 5, 4, generator=g)
        residual = torch.randn(2, 3, 3, 2, generator=g)
        for more in ((), (residual,)):
            inputs = [t.clone().requires_grad_() for t in (x, *more)]
            got = ours(*inputs)
            want = F.relu(sum(inputs[1:], theirs(inputs[0])))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            grads = (
                torch.autograd.grad(o.square().sum(), [*inputs, *m.parameters()])
                for o, m in ((got, ours), (want, theirs))
            )
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            for name, value in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_normalised_convolution_shares_what_it_is_made_of():
    theirs = network()
    ours = ops.ConvBN(*theirs)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.load_state_dict(network(bias=True).state_dict())
    assert "relu=True" in repr(ours)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    assert (ops.ConvBN(*theirs, relu=False)(x) < 0).any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("training", [True, False])
def test_a_normalised_convolution_in_an_autocast_region(training, impl):
    module = ops.ConvBN(*network(), impl=impl).train(training)
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x)
    assert got.dtype == torch.bfloat16
    want = ops.ConvBN(*network(), impl="reference").train(training)(x)
    assert proof.error(got.detach(), want.detach().double()) <= 2 * proof.FORWARD[torch.bfloat16]


def test_a_normalised_convolution_names_what_it_cannot_be_made_of():
    conv, norm = network()
    with pytest.raises(TypeError, match=r"conv is a torch\.nn\.Conv2d, got BatchNorm2d"):
        ops.ConvBN(norm, conv)
    with pytest.raises(TypeError, match=r"norm is a torch\.nn\.BatchNorm2d, got ReLU"):
        ops.ConvBN(conv, torch.nn.ReLU())
    with pytest.raises(ValueError, match="norm has 3 features, got 4"):
        ops.ConvBN(conv, torch.nn.BatchNorm2d(4))
    around = torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="conv has padding_mode 'zeros', got 'circular'"):
        ops.ConvBN(around, norm)
    with pytest.raises(ValueError, match="more than one value for each channel in training, got 1"):
        ops.ConvBN(conv, norm)(torch.ones(1, 2, 1, 1))
    with pytest.raises(ValueError, match="N at least 1 where there are statistics, got 0"):
        ops.conv2d_stats(X[:0], WEIGHT)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", [case_of(name) for name in SOME[:2]])
def test_without_a_bias(case, impl):
    args = cases.arguments("conv2d", case)[:2]
    pytorch = functools.partial(F.conv2d, **cases.geometry(case))
    proof.agrees(function_of("conv2d", case, impl), pytorch, args, torch.float32)


def test_a_bias_is_a_shift_and_batch_normalisation_a_scale_and_a_shift():
    case = SOME[0]
    x, weight, bias = cases.arguments("conv2d", CASES[case])
    for impl in IMPLS:
        got = ops.conv2d_fused(x, weight, torch.ones_like(bias), bias, relu=False, impl=impl)
        torch.testing.assert_close(got, F.conv2d(x, weight, bias))
    norm = torch.nn.BatchNorm2d(4).eval()
    g = torch.Generator().manual_seed(2)
    for t in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        t.copy_(torch.rand(t.shape, generator=g) + 0.5)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - scale * norm.running_mean
    for impl in IMPLS:
        got = ops.conv2d_fused(x, weight, scale, shift, impl=impl)
        torch.testing.assert_close(got, F.relu(norm(F.conv2d(x, weight))))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", TWICE)
def test_gradients_have_gradients(impl, options):
    case = cases.Case("tiny", *TINY, **options)
    pytorch = functools.partial(F.conv2d, **options)
    assert_the_same_twice(function_of("conv2d", case, impl), pytorch, tiny(case.groups))


@pytest.mark.parametrize("name", cases.OPS)
def test_every_gradient_of_triton_entry_by_entry(name):
    case = cases.GRADCHECK
    args = cases.arguments(name, case, torch.float64)
    pytorch = {
        "conv2d": functools.partial(F.conv2d, **cases.geometry(case)),
        "conv2d_fused": fused_by_pytorch(case, relu=True),
        "conv2d_stats": stats_by_pytorch(case),
    }
    proof.agrees(function_of(name, case, "triton"), pytorch[name], args, torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_fused_op_is_differentiable_twice(impl):
    x, weight, scale = tiny()
    shift = torch.linspace(-1, 1, 2, dtype=torch.float64).requires_grad_()
    case = cases.Case("dilation 2", *TINY, padding=1, dilation=2)
    residual = torch.randn(2, 2, 4, 2, generator=torch.Generator().manual_seed(4)).double()
    args = (x, weight, scale, shift, residual.requires_grad_())
    assert_the_same_twice(fused(case, impl, True), fused_by_pytorch(case, True), args)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_gradient_penalty_has_the_gradients_of_pytorch(impl):
    """Differentiated three times over: a penalty on a gradient, and a Hessian of it."""
    x, weight, bias = tiny()

    def penalty(conv):
        y = conv(x, weight, bias, 2, 1).tanh().sum()
        (by_x,) = torch.autograd.grad(y, x, create_graph=True)
        size = by_x.square().sum()
        grads = torch.autograd.grad(size, (x, weight, bias), create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight, bias))
        return size, *grads, *again

    got, want = penalty(functools.partial(ops.conv2d, impl=impl)), penalty(F.conv2d)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def layouts(t):
    return (
        t.contiguous(memory_format=torch.channels_last),
        torch.stack([t, t], -1)[..., 0],
        t.transpose(2, 3).contiguous().transpose(2, 3),
    )


@pytest.mark.parametrize("case", [case_of(name) for name in SOME[:3]])
def test_layouts_do_not_matter(case):
    function = function_of("conv2d", case, "triton")
    args = cases.arguments("conv2d", case)
    want, want_grads, grads = proof.run(function, args, torch.float32)
    channels_last, apart, turned = zip(*map(layouts, args[:2]), strict=True)
    for x, weight in (channels_last, apart, turned):
        got, got_grads, _ = proof.run(function, (x, weight, args[2]), torch.float32, grads)
        for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
            assert torch.equal(a, b)
        assert got[0].is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_may_come_in_any_layout():
    case = CASES["3 by 3"]
    args = [t.requires_grad_() for t in cases.arguments("conv2d", case)]
    out = function_of("conv2d", case, "triton")(*args)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(out, args, grad, retain_graph=True)
    for moved in layouts(grad):
        got = torch.autograd.grad(out, args, moved, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))
    expanded = torch.autograd.grad(out.sum(), args)
    want = torch.autograd.grad(F.conv2d(*args, padding=1).sum(), args)
    for a, b in zip(expanded, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_output_may_be_overwritten():
    args = [t.requires_grad_() for t in cases.arguments("conv2d", CASES["3 by 3"])]
    out = ops.conv2d(*args, impl="triton").relu_()
    want = F.conv2d(*args).relu()
    torch.testing.assert_close(out, want)
    for a, b in zip(*(torch.autograd.grad(o.sum(), args) for o in (out, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


MANY = cases.Case("many pixels", 1, 2, 24, 24, 3, 1, 1)


@pytest.mark.parametrize("case", [*map(case_of, SOME), pytest.param(MANY, id=MANY.name)])
def test_results_repeat_bit_for_bit(case):
    assert proof.repeats(fused(case, "triton", True), with_residual(case))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", cases.OPS[:2])
def test_an_empty_batch_gives_gradients_of_zero(name, impl):
    case = CASES["empty batch"]
    args = cases.arguments(name, case)
    [out], grads, _ = proof.run(function_of(name, case, impl), args, torch.float32)
    assert out.shape == (0, 3, 4, 4)
    assert grads[0].shape == args[0].shape
    assert all((g == 0).all() for g in grads[1:])


def test_what_is_not_a_number_stays_one():
    x, weight, bias = cases.arguments("conv2d", CASES["3 by 3"])
    x[0, 0, 0, 0] = torch.nan
    for impl in IMPLS:
        out = ops.conv2d_fused(x, weight, torch.ones_like(bias), bias, impl=impl)
        assert out[0, :, 0, 0].isnan().all()
        assert out[1].isfinite().all()


@pytest.mark.parametrize(
    ("name", "together"),
    [("3 by 3", True), ("channels in blocks", False), ("1 by 1", False), ("depthwise", True)],
)
def test_taps_and_channels_are_counted_in_one_where_channels_are_few(launched, name, together):
    case = CASES[name]
    proof.run(function_of("conv2d", case, "triton"), cases.arguments("conv2d", case), torch.float32)
    for kernel in ("_conv2d_forward", "_conv2d_backward_weight"):
        [(_, options)] = launched[kernel]
        assert options["FLAT"] is together


@pytest.mark.parametrize(("channels", "several"), [(16, True), (17, False), (64, False)])
def test_a_weights_gradient_takes_several_taps_where_one_does_not_fill_a_block(
    launched, channels, several
):
    """As long as the channels of one begin where vectors may; a block of float32 has 64 columns."""
    case = cases.Case("a few pixels", 1, channels, 3, 4, 3, 2, 2)
    function = function_of("conv2d", case, "triton")
    proof.agrees(function, F.conv2d, cases.arguments("conv2d", case), torch.float32)
    [(_, options)] = launched["_conv2d_backward_weight"][:1]
    assert options["FLAT"] is several
    [(_, options)] = launched["_conv2d_forward"][:1]
    assert not options["FLAT"]


@pytest.mark.parametrize(
    ("name", "classes"),
    [("3 by 3", 1), ("stride 2", 4), ("stride beyond the kernel", 9), ("unequal both ways", 3)],
)
def test_a_stride_divides_the_input_pixels_into_classes(launched, name, classes):
    case = CASES[name]
    proof.run(function_of("conv2d", case, "triton"), cases.arguments("conv2d", case), torch.float32)
    [(grid, _)] = launched["_conv2d_backward_x"]
    assert grid == (classes,)


def test_many_pixels_are_split_into_parts(launched):
    args = cases.arguments("conv2d", MANY)
    function = function_of("conv2d", MANY, "triton")
    proof.agrees(function, F.conv2d, args, torch.float32)
    [((blocks, parts), _)] = launched["_conv2d_backward_weight"]
    assert (blocks, parts) == (1, 2)
    proof.run(function, cases.arguments("conv2d", CASES["smallest"]), torch.float32)
    assert launched["_conv2d_backward_weight"][1][0] == (1, 1)


@pytest.mark.parametrize("pixels", [0, 1, 31, 513, 100_000])
@pytest.mark.parametrize("programs", [1, 9, 10_000])
def test_parts_cover_all_pixels_once(pixels, programs):
    parts, chunk = launch.parts_of(pixels, 32, programs)
    assert chunk % 32 == 0
    assert (parts - 1) * chunk < max(1, pixels) <= parts * chunk
    assert parts * programs <= max(launch.PROGRAMS, programs)


def test_offsets_are_wide_where_a_tensor_is_large(launched, monkeypatch):
    small, large = (torch.empty(n, device="meta", dtype=torch.int8) for n in (2**31 - 1, 2**31))
    assert launch.index_type(small, small) is tl.int32
    assert launch.index_type(small, large) is tl.int64
    monkeypatch.setattr(launch, "index_type", lambda *tensors: tl.int64)
    for name in ("stride 2", "groups, channels in blocks"):
        case = CASES[name]
        pytorch = functools.partial(F.conv2d, **cases.geometry(case))
        args = cases.arguments("conv2d", case)
        proof.agrees(function_of("conv2d", case, "triton"), pytorch, args, torch.float32)
    assert {o["INDEX"] for runs in launched.values() for _, o in runs} == {tl.int64}


@pytest.mark.parametrize("dtype", dispatch.DTYPES)
def test_blocks_are_no_larger_than_what_they_cover(dtype):
    for together in (False, True):
        rows, columns, summands, share, _ = launch.LARGEST[dtype.itemsize, together]
        tile = launch.tile_of(dtype, together, 10**6, 10**6, 10**6)
        assert [tile[k] for k in ("BM", "BN", "BK")] == [rows, columns, summands]
        assert tile["num_warps"] == 8
        assert rows * columns // 8 >= share
        tile = launch.tile_of(dtype, together, 1, 17, 0)
        assert [tile[k] for k in ("BM", "BN", "BK")] == [16, 32, 16]


def test_a_warp_has_much_of_a_product_but_not_where_each_element_has_its_address():
    def warps(summands):
        return launch.tile_of(torch.bfloat16, False, 10**6, 64, summands)["num_warps"]

    assert warps(64) == 4
    assert warps(35) == 8


@pytest.mark.parametrize("needed", [0, 1])
def test_gradients_that_nobody_asked_for_are_not_computed(launched, needed):
    args = cases.arguments("conv2d", CASES["3 by 3"])
    args[needed].requires_grad_()
    ops.conv2d(*args, impl="triton").sum().backward()
    counts = [len(launched[name]) for name in KERNELS]
    assert counts == ([1, 1, 0] if needed == 0 else [1, 0, 1])


def test_types_choose_how_products_are_rounded(launched):
    case = CASES["1 by 1"]
    for dtype in dispatch.DTYPES:
        function_of("conv2d", case, "triton")(*cases.arguments("conv2d", case, dtype))
    options = [o for _, o in launched["_conv2d_forward"]]
    assert [o["PRECISION"] for o in options] == ["tf32x3", "ieee", "ieee", "ieee"]
    assert [o["ACC"] for o in options] == [tl.float32, tl.float32, tl.float32, tl.float64]


def test_auto_is_torch_here_and_says_why():
    x, weight, bias = cases.arguments("conv2d", CASES["3 by 3"])
    pairs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    choice = dispatch.explain("conv2d.conv2d", x, weight, bias, **pairs)
    assert (choice.impl, "interpreted" in choice.reason) == ("torch", True)


@pytest.mark.parametrize("name", cases.OPS)
def test_what_ran_is_counted_under_its_name(name):
    args = cases.arguments(name, cases.GRADCHECK)
    dispatch.reset_counts()
    for impl in (*IMPLS, "auto"):
        getattr(ops, name)(*args, impl=impl)
    assert dispatch.counts() == {f"conv2d.{name}": {"reference": 1, "torch": 2, "triton": 1}}


@pytest.mark.parametrize(
    "kernel", [op._conv2d_kernel, op._fused_kernel, op._stats_kernel], ids=lambda k: k.name
)
def test_registration(kernel):
    name = kernel.name.removeprefix("conv2d_")
    given = [t.requires_grad_() for t in cases.arguments(name, cases.GRADCHECK)]
    torch.library.opcheck(kernel.op, (*given, *kernel.options))


def test_registration_of_the_gradients():
    x, weight, _ = (t.requires_grad_() for t in cases.arguments("conv2d", cases.GRADCHECK))
    grad = torch.randn(1, 2, 2, 2).requires_grad_()
    torch.library.opcheck(op._backward_x_op.op, (grad, weight, [3, 3], *op.PLAIN))
    torch.library.opcheck(op._backward_weight_op.op, (grad, x, [2, 2], *op.PLAIN))


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("name", cases.OPS)
def test_a_compiled_region_does_not_break(name, impl):
    torch.compiler.reset()
    case = CASES["stride 2"]
    function, args = function_of(name, case, impl), cases.arguments(name, case)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, want_grads, grads = proof.run(function, args, torch.float32)
    got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", cases.OPS)
def test_an_autocast_region_sets_the_type(name, impl):
    x, *rest = (t.requires_grad_() for t in cases.arguments(name, cases.GRADCHECK))
    with torch.autocast("cpu", torch.bfloat16):
        out = proof.flat(getattr(ops, name)(x.bfloat16(), *rest, impl=impl))[0]
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {t.grad.dtype for t in rest} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        double = getattr(ops, name)(*(t.double() for t in (x, *rest)), impl="triton")
    assert proof.flat(double)[0].dtype == torch.float64


X, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)
BAD = [
    ({"x": [[0.0]]}, TypeError, "x is a tensor, got list"),
    ({"x": X[0]}, ValueError, r"x has shape \(N, C, H, W\), got \(4, 5, 6\)"),
    ({"x": X.int()}, TypeError, "x is of floating point"),
    ({"x": X[:, :0]}, ValueError, "x has C at least 1, got 0"),
    ({"x": X[:, :, :0]}, ValueError, "x has H at least 1, got 0"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight has shape \(K, D, R, S\), got"),
    ({"weight": WEIGHT[:0]}, ValueError, "weight has sizes of at least 1"),
    ({"weight": WEIGHT[:, :2]}, ValueError, "weight has C / groups = 4 channels .*, got 2"),
    ({"weight": WEIGHT.double()}, TypeError, "weight is torch.float32 as x is, got"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on cpu as x is, got meta"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(K=6\), got \(5,\)"),
    ({"bias": torch.zeros(6).half()}, TypeError, "bias is torch.float32 as x is, got"),
    ({"bias": 1.0}, TypeError, "bias is a tensor, got float"),
    ({"stride": 0}, ValueError, "stride is at least 1, got 0"),
    ({"stride": (1, -1)}, ValueError, r"stride is at least 1, got \(1, -1\)"),
    ({"stride": (1, 1, 1)}, ValueError, "stride is an int or a pair of them, got 3 numbers"),
    ({"stride": 1.5}, TypeError, "stride is an int or a pair of them, got 1.5"),
    ({"stride": True}, TypeError, "stride is an int or a pair of them, got True"),
    ({"stride": "2"}, TypeError, "stride is an int or a pair of them, got '2'"),
    ({"padding": -1}, ValueError, "padding is at least 0, got -1"),
    ({"padding": "full"}, ValueError, "padding is 'same', 'valid', a number or a pair, got 'full'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding 'same' needs a stride of 1"),
    ({"dilation": 0}, ValueError, "dilation is at least 1, got 0"),
    ({"groups": 0}, ValueError, "groups is at least 1, got 0"),
    ({"groups": 3}, ValueError, "groups divides C=4, got 3"),
    ({"groups": 4}, ValueError, "groups divides K=6, got 4"),
    ({"groups": 2.0}, TypeError, "groups is an int, got float"),
    ({"x": X[:, :, :2]}, ValueError, "weight covers at most the 2 pixels of the padded H=2, got 3"),
    ({"dilation": (1, 3)}, ValueError, "the 6 pixels of the padded W=6, got 3 taps that cover 7"),
    ({"stride": (1, 2**28)}, ValueError, r"stride is below 268435456, got \(1, 268435456\)"),
    ({"padding": 2**33, "stride": 2**33}, ValueError, "stride is below 268435456, got 8589934592"),
    ({"padding": 2**28}, ValueError, "padding is below 268435456, got 268435456"),
    (
        {"weight": WEIGHT[..., :1], "dilation": (1, 2**28)},
        ValueError,
        "dilation is below 268435456",
    ),
    (
        {"padding": (0, 2**27), "stride": (1, 2**27)},
        ValueError,
        "padding leaves W=6 below 268435456 pixels, got 268435462",
    ),
    ({"impl": "cudnn"}, ValueError, "unknown impl 'cudnn'"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ops.conv2d(**{"x": X, "weight": WEIGHT} | arguments)


@pytest.mark.parametrize(("taps", "stride", "dilation"), [(2, 2**27 - 2, 1), (3, 1, 2**27 - 2)])
def test_the_widest_padding_is_right(taps, stride, dilation):
    """One pixel in the middle of almost 2**28: what sees it, and what sees none."""
    g = torch.Generator().manual_seed(0)
    args = torch.randn(1, 1, 1, 1, generator=g), torch.randn(1, 1, 1, taps, generator=g)
    geometry = {"stride": (1, stride), "padding": (0, 2**27 - 2), "dilation": (1, dilation)}
    function = functools.partial(ops.conv2d, **geometry)
    got, want = (
        proof.run(proof.with_impl(function, impl), args, torch.float32)
        for impl in ("triton", "torch")
    )
    assert got[0][0].count_nonzero() == 1
    for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        torch.testing.assert_close(a, b)


BAD_FUSED = [
    ({"scale": torch.ones(5)}, ValueError, r"scale has shape \(K=6\), got \(5,\)"),
    ({"scale": None}, TypeError, "scale is a tensor, got NoneType"),
    ({"shift": torch.ones(6, 1)}, ValueError, r"shift has shape \(K=6\), got \(6, 1\)"),
    ({"relu": 1}, TypeError, "relu is a bool, got int"),
    (
        {"residual": torch.zeros(2, 6, 5, 6)},
        ValueError,
        r"residual has shape \(N=2, K=6, P=3, Q=4\), got \(2, 6, 5, 6\)",
    ),
    ({"stride": 0}, ValueError, "stride is at least 1, got 0"),
    ({"groups": 3}, ValueError, "groups divides C=4, got 3"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_FUSED)
def test_bad_arguments_of_the_fused_op_are_named(arguments, kind, message):
    given = {"x": X, "weight": WEIGHT, "scale": torch.ones(6), "shift": torch.zeros(6)}
    with pytest.raises(kind, match=message):
        ops.conv2d_fused(**given | arguments)
