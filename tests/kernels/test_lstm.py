"""LSTM in every implementation: against the reference in float64, and against torch.nn.LSTM."""

import functools
import itertools
from collections import Counter

import proof
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kernels import dispatch, lstm
from kernels.lstm import cases, op
from kernels.lstm import triton as launch

IMPLS = ("reference", "torch", "triton")
FAST = ("torch", "triton")
PARTIAL = (torch.float32, torch.bfloat16, torch.float16)
# What a launch does: everything, all steps of some units, or some steps of some units.
PATHS = ("resident", "meeting", "a launch a step")
SMALLEST, ODD, BLOCKS, EMPTY = cases.TEST
WAYS = [*itertools.product((False, True), repeat=2)]


def way(case, with_lengths, reverse, impl=None):
    """The layer with its options bound."""
    lengths = cases.lengths(case) if with_lengths else None
    return functools.partial(lstm.lstm, lengths=lengths, reverse=reverse, impl=impl)


@pytest.fixture
def take(monkeypatch):
    """Have the launcher take a path that it would not take by itself."""

    def taken(path):
        if path != "resident":
            monkeypatch.setattr(launch, "RESIDENT", 0)
            steps = {"meeting": 10**6, "two steps a launch": 2, "a launch a step": 1}[path]
            monkeypatch.setattr(launch, "steps_per_launch", lambda p, t, d: min(t, steps))

    return taken


@pytest.fixture
def launched(monkeypatch):
    """The kernels that are launched: name, grid and options of each launch."""
    found = []

    class Noted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            def run(*args, **options):
                found.append((self.name, grid, options))
                return self.kernel[grid](*args, **options)

            return run

    for way, direction in itertools.product(("resident", "split"), ("forward", "backward")):
        name = f"_{way}_{direction}"
        monkeypatch.setattr(launch, name, Noted(name.strip("_"), getattr(launch, name)))
    return found


@pytest.mark.parametrize(("with_lengths", "reverse"), WAYS)
@pytest.mark.parametrize("case", cases.TEST, ids=lambda c: c.name)
def test_the_vendors_operator_has_the_references_values_and_gradients(case, with_lengths, reverse):
    args = cases.arguments("lstm", case)
    options = (case, with_lengths, reverse)
    proof.agrees(way(*options, "torch"), way(*options, "reference"), args, torch.float32)


def _kernel_proofs():
    for path, (with_lengths, reverse) in itertools.product(PATHS, WAYS):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            yield ODD, path, with_lengths, reverse, dtype
        if with_lengths != reverse:
            yield ODD, path, with_lengths, reverse, torch.float16
        for case in (SMALLEST, EMPTY):
            yield case, path, with_lengths, reverse, torch.float32
        # Programs that wait for each other never meet where they run one after another.
        if path != "meeting" and with_lengths == reverse:
            yield BLOCKS, path, with_lengths, reverse, torch.float32
    for with_lengths, reverse in WAYS:
        yield ODD, "two steps a launch", with_lengths, reverse, torch.float32


@pytest.mark.parametrize(("case", "path", "with_lengths", "reverse", "dtype"), [*_kernel_proofs()])
def test_the_kernels_have_the_references_values_and_gradients(
    take, case, path, with_lengths, reverse, dtype
):
    take(path)
    args = cases.arguments("lstm", case)
    options = (case, with_lengths, reverse)
    proof.agrees(way(*options, "triton"), way(*options, "reference"), args, dtype)


# The kernels have the reference's gradients in float64, see above.
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_the_values(impl, reverse):
    args = cases.arguments("lstm", cases.GRADCHECK, torch.float64)
    assert proof.gradcheck(way(cases.GRADCHECK, True, reverse, impl), args)


@pytest.mark.parametrize("path", PATHS)
def test_results_repeat_bit_for_bit(take, path):
    take(path)
    assert proof.repeats(way(ODD, True, True, "triton"), cases.arguments("lstm", ODD))


@pytest.mark.parametrize("path", PATHS)
def test_strides_do_not_matter(take, path):
    take(path)
    args = cases.arguments("lstm", ODD)
    spread = [torch.stack([t, t], -1)[..., 0] for t in proof.leaves(args)]
    assert any(not t.is_contiguous() for t in spread)
    function = way(ODD, True, False, "triton")
    want, want_grads, grads = proof.run(function, args, torch.float32)

    def spread_out(*given):
        tensors = [torch.stack([t, t], -1)[..., 0] for t in proof.leaves(given)]
        return function(*proof.rebuilt(given, tensors))

    got, got_grads, _ = proof.run(spread_out, args, torch.float32, grads)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("impl", "with_lengths"), [("torch", False), ("triton", True)])
def test_a_compiled_region_does_not_break(impl, with_lengths):
    torch.compiler.reset()
    args, function = cases.arguments("lstm", ODD), way(ODD, with_lengths, True, impl)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, want_grads, grads = proof.run(function, args, torch.float32)
    got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_lengths", [False, True])
def test_registration(with_lengths):
    given = proof.leaves(cases.arguments("lstm", cases.GRADCHECK))
    lengths = cases.lengths(cases.GRADCHECK).int() if with_lengths else None
    inputs = [t.requires_grad_() for t in given]
    for recompute_gates in (False, True):
        torch.library.opcheck(op._lstm_op.op, (*inputs, lengths, True, recompute_gates, 0))


@pytest.mark.parametrize("impl", IMPLS)
def test_an_autocast_region_computes_in_its_type(impl):
    x, *weights, state = cases.arguments("lstm", ODD)
    with torch.autocast("cpu", torch.bfloat16):
        y, (h, c) = lstm.lstm(x.bfloat16(), *weights, state, impl=impl)
    assert {y.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    want, _ = lstm.lstm(x, *weights, state, impl="reference")
    assert proof.error(y, want.double()) <= 2 * proof.FORWARD[torch.bfloat16]


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_shapes_are_known_without_values(impl):
    y, (h, c) = lstm.lstm(*cases.arguments("lstm", ODD, device="meta"), impl=impl)
    assert y.shape == (ODD.T, ODD.B, ODD.H)
    assert h.shape == c.shape == (ODD.B, ODD.H)


def test_what_ran_is_counted_under_its_name():
    args = cases.arguments("lstm", cases.GRADCHECK)
    dispatch.reset_counts()
    for impl in (*IMPLS, "auto"):
        lstm.lstm(*args, impl=impl)
    assert dispatch.counts() == {"lstm.lstm": {"reference": 1, "torch": 2, "triton": 1}}
    assert "interpreted" in dispatch.explain("lstm.lstm", *args).reason


def test_small_weights_stay_in_one_program(launched):
    proof.run(way(BLOCKS, False, False, "triton"), cases.arguments("lstm", BLOCKS), torch.float32)
    assert [(name, grid) for name, grid, _ in launched] == [
        ("resident_forward", (5,)),
        ("resident_backward", (5,)),
    ]


@pytest.mark.parametrize(
    ("units", "dtype", "resident"),
    [
        (64, torch.float32, True),
        (65, torch.float32, False),
        (128, torch.bfloat16, True),
        (129, torch.float16, False),
        (32, torch.float64, True),
        (64, torch.float64, False),
    ],
)
def test_which_weights_stay_in_one_program(units, dtype, resident):
    assert launch.is_resident(units, dtype) == resident


def test_units_are_split_over_programs_and_a_launch_does_a_step(launched, monkeypatch):
    monkeypatch.setattr(launch, "RESIDENT", 0)
    proof.run(way(BLOCKS, False, False, "triton"), cases.arguments("lstm", BLOCKS), torch.float32)
    assert [(name, grid, options["MEET"]) for name, grid, options in launched] == [
        *[("split_forward", (2, 2), False)] * BLOCKS.T,
        *[("split_backward", (2, 2), False)] * BLOCKS.T,
    ]


def test_programs_that_run_at_once_meet_after_each_step_of_one_launch(launched, monkeypatch):
    monkeypatch.setattr(launch, "RESIDENT", 0)
    proof.run(way(ODD, False, False, "triton"), cases.arguments("lstm", ODD), torch.float32)
    assert [(name, options["MEET"]) for name, _, options in launched] == [
        ("split_forward", True),
        ("split_backward", True),
    ]
    # What has to wait for each other has to be started together.
    assert all(options["launch_cooperative_grid"] for *_, options in launched)


@pytest.mark.parametrize(("at_most", "launches"), [(1, ODD.T), (3, 2), (ODD.T, 1), (100, 1)])
def test_a_launch_does_no_more_steps_than_it_may(launched, monkeypatch, at_most, launches):
    monkeypatch.setattr(launch, "RESIDENT", 0)
    args = cases.arguments("lstm", ODD)
    function = functools.partial(way(ODD, True, True, "triton"), steps_per_launch=at_most)
    got, got_grads, grads = proof.run(function, args, torch.float32)
    assert Counter(name for name, *_ in launched) == dict.fromkeys(
        ("split_forward", "split_backward"), launches
    )
    assert {options["MEET"] for *_, options in launched} == {at_most > 1}
    want, want_grads, _ = proof.run(way(ODD, True, True, "triton"), args, torch.float32, grads)
    assert all(map(torch.equal, (*got, *got_grads), (*want, *want_grads)))


@pytest.mark.parametrize(("with_lengths", "reverse"), WAYS)
@pytest.mark.parametrize("case", cases.TEST, ids=lambda c: c.name)
@pytest.mark.parametrize("impl", IMPLS)
def test_gates_that_are_computed_again_give_the_same(impl, case, with_lengths, reverse):
    function = way(case, with_lengths, reverse, impl)
    again = functools.partial(function, recompute_gates=True)
    args = cases.arguments("lstm", case)
    for dtype in PARTIAL if impl == "triton" else (torch.float32,):
        proof.agrees(again, way(case, with_lengths, reverse, "reference"), args, dtype)
    want, want_grads, grads = proof.run(function, args, torch.float32)
    got, got_grads, _ = proof.run(again, args, torch.float32, grads)
    assert all(map(torch.equal, got, want))
    assert_same(got_grads, want_grads)


def test_gates_that_are_computed_again_need_no_finite_padding():
    x, *rest = cases.arguments("lstm", ODD)
    x[torch.arange(ODD.T)[:, None] >= cases.lengths(ODD)] = torch.nan
    again = functools.partial(way(ODD, True, True, "triton"), recompute_gates=True)
    _, found, _ = proof.run(again, (x, *rest), torch.float32)
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("impl", IMPLS)
def test_gates_that_are_computed_again_are_not_kept(impl):
    args = [t.requires_grad_() for t in proof.leaves(cases.arguments("lstm", BLOCKS))]
    given, steps = {t.data_ptr() for t in args}, BLOCKS.T * BLOCKS.B * BLOCKS.H
    kept = {}
    for recompute in (False, True):
        numbers = {}

        def pack(t, numbers=numbers):
            if t.data_ptr() not in given:
                numbers[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            lstm.lstm(*args[:4], tuple(args[4:]), recompute_gates=recompute, impl=impl)
        kept[recompute] = sum(numbers.values())
    assert kept[False] >= 6 * steps
    # The outputs and the cell states; what is not ours computes them again too.
    assert kept[True] == (2 * steps if impl == "triton" else 0)


def test_a_compiled_region_does_not_break_where_gates_are_computed_again():
    torch.compiler.reset()
    args = cases.arguments("lstm", ODD)
    for impl in IMPLS:
        function = functools.partial(way(ODD, False, True, impl), recompute_gates=True)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        want, want_grads, grads = proof.run(function, args, torch.float32)
        got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
        assert_same((*got, *got_grads), (*want, *want_grads))


def test_a_module_passes_its_options_on(launched, monkeypatch):
    monkeypatch.setattr(launch, "RESIDENT", 0)
    options = {"recompute_gates": True, "steps_per_launch": 1}
    module = lstm.LSTM(N_X, N_H, impl="triton", **options)
    assert repr(module) == f"LSTM({N_X}, {N_H}, recompute_gates=True, steps_per_launch=1)"
    found, gates_again = [], launch.gates_again
    monkeypatch.setattr(launch, "gates_again", lambda *a: found.append(1) or gates_again(*a))
    module(random_run({})[0])[0].sum().backward()
    assert len(launched) == 2 * N_T
    assert found == [1]


def test_a_launch_does_all_steps_only_where_its_programs_run_at_once(monkeypatch):
    device = torch.device("cpu")
    assert launch.programs_at_once(device) == 1
    monkeypatch.setattr(launch, "INTERPRETED", False)
    at_once = launch.programs_at_once(device)
    assert launch.steps_per_launch(at_once, 50, device) == 50
    assert launch.steps_per_launch(at_once + 1, 50, device) == 1


LAYERS = [
    {},
    {"bias": False},
    {"bidirectional": True},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]
N_T, N_B, N_X, N_H = 3, 4, 2, 3


def both(**options):
    """Our module and PyTorch's, with the same weights."""
    theirs = nn.LSTM(N_X, N_H, **options)
    ours = lstm.LSTM(N_X, N_H, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def random_run(options, seed=0):
    """Inputs and state."""
    g = torch.Generator().manual_seed(seed)
    n = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = torch.randn(N_T, N_B, N_X, generator=g)
    x = x.transpose(0, 1).contiguous() if options.get("batch_first") else x
    h, c = torch.randn(2, n, N_B, N_H, generator=g)
    return x, h, c


def gradients(module, inputs, outputs):
    """Gradients of inputs and parameters for gradients of the outputs that differ everywhere."""
    total = sum((o * torch.linspace(-1, 1, o.numel()).view(o.shape)).sum() for o in outputs)
    return torch.autograd.grad(total, [*inputs, *module.parameters()])


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_module_is_pytorchs(options, impl):
    ours, theirs = both(**options)
    ours.impl = impl
    inputs = [t.requires_grad_() for t in random_run(options)]
    x, h, c = inputs
    (y, last), (their_y, their_last) = ours(x, (h, c)), theirs(x, (h, c))
    assert_same((y, *last), (their_y, *their_last))
    assert_same(
        gradients(ours, inputs, (y, *last)), gradients(theirs, inputs, (their_y, *their_last))
    )
    assert_same(proof.flat((ours(x)[0],)), proof.flat((theirs(x)[0],)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_lengths_are_those_of_packing(options, impl):
    ours, theirs = both(**options)
    ours.impl = impl
    lengths, some = torch.tensor([2, 0, 1, 3]), [0, 2, 3]
    inputs = [t.requires_grad_() for t in random_run(options)]
    x, h, c = inputs
    y, last = ours(x, (h, c), lengths)
    axis = 0 if ours.batch_first else 1
    # Packing takes no sequence without a step.
    packed = pack_padded_sequence(
        x.index_select(axis, torch.tensor(some)),
        lengths[some],
        batch_first=ours.batch_first,
        enforce_sorted=False,
    )
    their_packed, part_last = theirs(packed, (h[:, some], c[:, some]))
    part, _ = pad_packed_sequence(their_packed, batch_first=ours.batch_first, total_length=N_T)
    their_y = torch.zeros_like(y).index_copy(axis, torch.tensor(some), part)
    their_last = [
        initial.index_copy(1, torch.tensor(some), final)
        for initial, final in zip((h, c), part_last, strict=True)
    ]
    assert_same((y, *last), (their_y, *their_last))
    assert_same(
        gradients(ours, inputs, (y, *last)), gradients(theirs, inputs, (their_y, *their_last))
    )


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_state_dict_goes_both_ways(options):
    ours, theirs = lstm.LSTM(N_X, N_H, **options), nn.LSTM(N_X, N_H, **options)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    theirs.load_state_dict(ours.state_dict())
    x = random_run(options)[0]
    torch.testing.assert_close(theirs(x)[0], ours(x)[0])


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_weights_begin_as_pytorchs_do(options):
    torch.manual_seed(3)
    theirs = nn.LSTM(N_X, N_H, **options).state_dict()
    torch.manual_seed(3)
    ours = lstm.LSTM(N_X, N_H, **options).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_module_says_what_it_is():
    module = lstm.LSTM(2, 3, num_layers=2, bidirectional=True)
    assert repr(module) == "LSTM(2, 3, num_layers=2, bidirectional=True)"


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cell_is_pytorchs(impl):
    theirs, g = nn.LSTMCell(2, 3), torch.Generator().manual_seed(0)
    x, h, c = (torch.randn(4, n, generator=g) for n in (2, 3, 3))
    bias = theirs.bias_ih + theirs.bias_hh
    got = lstm.cell(x, (h, c), theirs.weight_ih, theirs.weight_hh, bias, impl=impl)
    assert_same(got, theirs(x, (h, c)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("impl", IMPLS)
def test_saturated_gates_open_and_close(take, impl, path):
    take(path)
    x, w_ih, w_hh, _, (h, c) = cases.arguments("lstm", ODD)
    # Forget nothing, take everything in, put everything out: c counts the steps.
    opened = torch.full((4 * ODD.H,), 100.0)
    nothing = (torch.zeros_like(w_ih), torch.zeros_like(w_hh))
    args = (x, *nothing, opened, (h, c))
    (y, _, last), grads, _ = proof.run(way(ODD, False, False, impl), args, torch.float32)
    torch.testing.assert_close(last, c + ODD.T)
    torch.testing.assert_close(y[-1], (c + ODD.T).tanh())
    assert all(g.isfinite().all() for g in grads)
    closed = (x, *nothing, -opened, (h, c))
    (y, last_h, last), grads, _ = proof.run(way(ODD, False, False, impl), closed, torch.float32)
    # The exponential of -100 is not zero yet.
    assert max(t.abs().max() for t in (y, last_h, last)) < 1e-40
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_without_steps_the_state_stays(impl, reverse):
    x, *rest = cases.arguments("lstm", ODD)
    for lengths in (None, torch.zeros(ODD.B, dtype=torch.int64)):
        args, options = (x[:0], *rest), {"lengths": lengths, "reverse": reverse, "impl": impl}
        y, (h, c) = lstm.lstm(*args, **options)
        assert y.shape == (0, ODD.B, ODD.H)
        assert_same((h, c), rest[-1])
    weight = rest[0].clone().requires_grad_()
    state = tuple(part.clone().requires_grad_() for part in rest[-1])
    y, last = lstm.lstm(x, weight, *rest[1:-1], state, **options)
    assert not y.any()
    ones = [torch.ones_like(part) for part in last]
    found = torch.autograd.grad(last, state, ones, retain_graph=True)
    assert_same(found, ones)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_stands_beyond_a_length_is_not_looked_at(impl, reverse):
    x, *rest = cases.arguments("lstm", ODD)
    beyond = torch.arange(ODD.T)[:, None] >= cases.lengths(ODD)
    garbage = (x.masked_fill(beyond[..., None], torch.nan), *rest)
    function = way(ODD, True, reverse, impl)
    want, want_grads, grads = proof.run(function, (x, *rest), torch.float32)
    got, got_grads, _ = proof.run(function, garbage, torch.float32, grads)
    assert_same((*got, *got_grads), (*want, *want_grads))
    assert not got[0][beyond].any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_in_a_compiled_region_are_within_the_steps(reverse, impl):
    """Nobody can look at them there."""
    torch.compiler.reset()
    args = cases.arguments("lstm", ODD)
    beyond = torch.tensor([ODD.T + 1, -1, 2, 2**40, -(2**40)])
    compiled = torch.compile(
        lambda lengths: lstm.lstm(*args, lengths=lengths, reverse=reverse, impl=impl),
        backend="eager",
    )
    got, want = compiled(beyond), compiled(beyond.clamp(0, ODD.T))
    for a, b in zip(proof.flat(got), proof.flat(want), strict=True):
        assert torch.equal(a, b)
    plain = lstm.lstm(*args, lengths=beyond.clamp(0, ODD.T), reverse=reverse, impl=impl)
    assert_same(proof.flat(got), proof.flat(plain))


@pytest.mark.parametrize("with_lengths", [False, True])
def test_the_vendors_operator_is_given_a_state_without_gaps(monkeypatch, with_lengths):
    """Another is an error of cuDNN's, which no processor shows."""
    given, operator = [], torch.lstm

    def noted(*args):
        given.extend(next(arg for arg in args if isinstance(arg, list)))
        return operator(*args)

    monkeypatch.setattr(torch, "lstm", noted)
    *args, (h, c) = cases.arguments("lstm", ODD)
    state = (h.t().contiguous().t(), c[:1].expand(ODD.B, -1))
    assert not any(part.is_contiguous() for part in state)
    got, want = (
        proof.flat(way(ODD, with_lengths, False, impl)(*args, state))
        for impl in ("torch", "reference")
    )
    assert [part.is_contiguous() for part in given] == [True, True]
    assert_same(got, want)


@pytest.mark.parametrize("impl", FAST)
def test_only_some_outputs_need_a_gradient(impl):
    args = cases.arguments("lstm", ODD)
    for chosen in range(3):
        found = []
        for name in (impl, "reference"):

            def one(*given, name=name, chosen=chosen):
                return proof.flat(lstm.lstm(*given, impl=name))[chosen]

            found.append(proof.run(one, args, torch.float32)[1])
        assert_same(*found)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("recompute_gates", [False, True])
def test_lengths_may_change_after_the_forward(recompute_gates, impl):
    args = cases.arguments("lstm", ODD)
    found = []
    for change in (0, 1):
        lengths = cases.lengths(ODD).int()
        weight = args[2].clone().requires_grad_()
        options = {"lengths": lengths, "recompute_gates": recompute_gates, "impl": impl}
        y, _ = lstm.lstm(*args[:2], weight, *args[3:], **options)
        lengths.mul_(1 - change)
        found += torch.autograd.grad(y.sum(), weight)
    assert torch.equal(*found)


X, W_IH, W_HH, BIAS, STATE = cases.arguments("lstm", ODD)
LENGTHS = cases.lengths(ODD)
BAD = [
    ({"x": X[0]}, ValueError, r"x has shape \(T, B, X\), got \(5, 3\)"),
    ({"x": X.long()}, TypeError, r"x is of floating point, got torch\.int64"),
    ({"x": [1.0]}, TypeError, "x is a tensor, got list"),
    ({"weight_ih": W_IH[:, :2]}, ValueError, r"weight_ih has shape \(G, X=3\), got \(28, 2\)"),
    ({"weight_ih": W_IH.double()}, TypeError, r"weight_ih is torch\.float32 as x is, got"),
    ({"weight_hh": W_HH.t()}, ValueError, r"weight_hh has shape \(G=28, H\), got \(7, 28\)"),
    ({"weight_hh": W_HH[:, :6]}, ValueError, r"weight_hh has shape \(4H, H\), got \(28, 6\)"),
    ({"bias": BIAS[:7]}, ValueError, r"bias has shape \(G=28\), got \(7,\)"),
    ({"bias": 0.5}, TypeError, "bias is a tensor, got float"),
    ({"state": STATE[0]}, TypeError, "state is a pair of tensors, got Tensor"),
    ({"state": STATE[:1]}, ValueError, "state is a pair of tensors, got 1"),
    ({"state": (STATE[0], None)}, TypeError, r"state\[1\] is a tensor, got NoneType"),
    ({"state": (STATE[0][:2], STATE[1])}, ValueError, r"state\[0\] has shape \(B=5, H=7\), got"),
    ({"lengths": [1, 2, 3, 4, 4]}, TypeError, "lengths is a tensor, got list"),
    ({"lengths": LENGTHS.float()}, TypeError, r"lengths is of int32 or int64, got torch\.float32"),
    ({"lengths": LENGTHS[:4]}, ValueError, r"lengths has shape \(B=5\), got \(4,\)"),
    ({"lengths": LENGTHS - 1}, ValueError, "lengths are from 0 to T=4, got -1"),
    ({"lengths": LENGTHS + 1}, ValueError, "lengths are from 0 to T=4, got 5"),
    ({"reverse": "no"}, TypeError, "reverse is a bool, got str"),
    ({"reverse": 1}, TypeError, "reverse is a bool, got int"),
    ({"recompute_gates": 1}, TypeError, "recompute_gates is a bool, got int"),
    ({"steps_per_launch": 0}, ValueError, "steps_per_launch is at least 1, got 0"),
    ({"steps_per_launch": 2.0}, TypeError, "steps_per_launch is an int, got float"),
    ({"steps_per_launch": True}, TypeError, "steps_per_launch is an int, got bool"),
    ({"impl": "cudnn"}, ValueError, "unknown impl 'cudnn'"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments_are_named(change, kind, message):
    good = {"x": X, "weight_ih": W_IH, "weight_hh": W_HH, "bias": BIAS, "state": STATE}
    with pytest.raises(kind, match=message):
        lstm.lstm(**(good | change))


def test_a_cell_names_bad_arguments():
    with pytest.raises(ValueError, match=r"x has shape \(B, X\), got \(4, 5, 3\)"):
        lstm.cell(X, STATE, W_IH, W_HH)
    with pytest.raises(TypeError, match="x is a tensor, got list"):
        lstm.cell([1.0], STATE, W_IH, W_HH)


@pytest.mark.parametrize("size", ["input_size", "hidden_size", "num_layers"])
def test_a_module_has_inputs_units_and_layers(size):
    sizes = {"input_size": 1, "hidden_size": 2, "num_layers": 1} | {size: 0}
    with pytest.raises(ValueError, match=f"{size} is at least 1, got 0"):
        lstm.LSTM(**sizes)
    with pytest.raises(ValueError, match="steps_per_launch is at least 1, got -1"):
        lstm.LSTM(1, 2, steps_per_launch=-1)


def test_a_module_names_bad_arguments():
    module = lstm.LSTM(3, 7, batch_first=True)
    with pytest.raises(ValueError, match=r"x has shape \(B, T, X=3\), got \(4, 5, 2\)"):
        module(X[..., :2])
    with pytest.raises(ValueError, match=r"state\[0\] has shape \(N=1, B=4, H=7\), got \(5, 7\)"):
        module(X, STATE)
