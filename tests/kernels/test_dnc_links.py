"""Links in a narrower type than all else: they are rounded, and nothing else is."""

import functools
from dataclasses import replace

import proof
import pytest
import torch

from kernels import dispatch, dnc
from kernels.bench.workload import Workload
from kernels.dnc import cases, op

IMPLS = ("reference", "torch", "triton")
OPS = ("link", "step")
narrow = pytest.mark.parametrize("dtype", dnc.NARROW, ids=lambda d: str(d).removeprefix("torch."))


def arguments(name, case, dtype):
    return cases.arguments(name, replace(case, link_dtype=dtype), torch.float32)


def with_gradients(args):
    return proof.rebuilt(args, [t.requires_grad_() for t in proof.leaves(args)])


@narrow
@pytest.mark.parametrize("book", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", cases.TEST, ids=lambda c: c.name)
@pytest.mark.parametrize("name", OPS)
def test_nothing_but_links_is_off_further_than_in_float32(name, case, impl, book, dtype):
    function = functools.partial(getattr(dnc, name), book=book)
    args = arguments(name, case, dtype)
    reference = proof.with_impl(function, "reference")
    proof.agrees(proof.with_impl(function, impl), reference, args, torch.float32)


@narrow
@pytest.mark.parametrize("impl", IMPLS)
def test_links_without_rounding_are_as_with_all_in_one_type(impl, dtype):
    """Where rounding changes nothing, such as in a memory that was written to once."""
    state, to = arguments("step", cases.TEST[1], dtype)
    fresh = state._replace(link_BNN=torch.zeros_like(state.link_BNN))
    words, new = dnc.step(fresh, to, impl=impl)
    wide = fresh._replace(link_BNN=fresh.link_BNN.float())
    wanted, wanted_new = dnc.step(wide, to, impl=impl)
    assert new.link_BNN.dtype == dtype
    torch.testing.assert_close(new.link_BNN, wanted_new.link_BNN.to(dtype), rtol=0, atol=0)
    for a, b in zip((words, *new), (wanted, *wanted_new), strict=True):
        if a is not new.link_BNN:
            assert torch.equal(a, b)


@narrow
@pytest.mark.parametrize("name", OPS)
def test_results_repeat_bit_for_bit_and_strides_do_not_matter(name, dtype):
    args = arguments(name, cases.TEST[1], dtype)
    function = proof.with_impl(getattr(dnc, name), "triton")
    assert proof.repeats(function, args)
    spread = [torch.stack([t, t], -1)[..., 0] for t in proof.leaves(args)]
    got = proof.flat(function(*proof.rebuilt(args, spread)))
    assert all(map(torch.equal, got, proof.flat(function(*args))))


@narrow
@pytest.mark.parametrize("impl", [*IMPLS, "compile"])
@pytest.mark.parametrize("name", OPS)
def test_an_autocast_region_leaves_them_as_they_are(name, impl, dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(dispatch, "_compiled", functools.cache(dispatch._compiled.__wrapped__))
    torch.compiler.reset()
    args = with_gradients(arguments(name, cases.GRADCHECK, dtype))
    function = proof.with_impl(getattr(dnc, name), impl)
    with torch.autocast("cpu", torch.bfloat16):
        got = proof.flat(function(*args))
    want = proof.flat(function(*args))
    assert [o.dtype for o in got] == [o.dtype for o in want]
    assert dtype in {o.dtype for o in got}
    assert all(map(torch.equal, got, want))
    grads = [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o) for o in got]
    found, wanted = (torch.autograd.grad(o, proof.leaves(args), grads) for o in (got, want))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", OPS)
def test_a_compiled_region_does_not_break(name, impl):
    torch.compiler.reset()
    args = arguments(name, cases.TEST[1], torch.bfloat16)
    function = proof.with_impl(getattr(dnc, name), impl)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, want_grads, grads = proof.run(function, args, torch.float32)
    got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5 if a.dtype == torch.float32 else 2e-2, atol=1e-6)


@pytest.mark.parametrize(("name", "kernel"), [("link", op._link_op), ("step", op._step_op)])
def test_registration(name, kernel):
    given = proof.leaves(arguments(name, cases.GRADCHECK, torch.bfloat16))
    torch.library.opcheck(kernel.op, (*(t.requires_grad_() for t in given), *kernel.options))


@narrow
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_what_is_kept_for_the_backward_is_half_as_large(impl, dtype):
    kept = {}

    def pack(t):
        if t.shape[1:] == (37, 37):
            kept[t.data_ptr()] = t.dtype
        return t

    args = with_gradients(arguments("step", cases.TEST[1], dtype))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        dnc.step(*args, impl=impl)
    assert set(kept.values()) == {dtype}


def control(x_BX, words_BRW, hidden):
    """Write what is fed in where it fits what was read, and read mostly along the links."""
    B, (R, W) = len(x_BX), words_BRW.shape[1:]
    told = cases.interface(cases.Case("", B, 1, W, R))
    modes = torch.tensor([0.4, 0.2, 0.4])[:, None].expand(B, 3, R)
    key = told.write_key_B1W + words_BRW.sum(1, keepdim=True)
    vector = told.write_vector_BW * (1 + x_BX)
    told = told._replace(write_key_B1W=key, write_vector_BW=vector, read_modes_BSR=modes)
    return told, x_BX, hidden


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("every", [None, 2])
def test_a_sequence_keeps_them_in_the_type_that_it_began_with(every, impl):
    x = torch.linspace(-1, 1, 10).view(5, 2, 1).requires_grad_()
    found = {}
    for dtype in (None, torch.bfloat16):
        begin = dnc.start(x, 2, slots=9, word=4, read_heads=2, link_dtype=dtype)
        assert begin.state.link_BNN.dtype == (dtype or torch.float32)
        _, words, carry = dnc.sequence(control, x, begin, checkpoint_every=every, impl=impl)
        assert carry.state.link_BNN.dtype == (dtype or torch.float32)
        assert {t.dtype for t in carry.state if t is not carry.state.link_BNN} == {torch.float32}
        found[dtype] = words.detach(), torch.autograd.grad(words.square().sum(), x)[0]
    for a, b in zip(found[None], found[torch.bfloat16], strict=True):
        # Rounded links lead the heads a little elsewhere.
        assert not torch.equal(a, b)
        assert proof.error(b, a.double()) < proof.FORWARD[torch.bfloat16]


LINK, *REST = cases.arguments("link", cases.GRADCHECK)
BAD = [
    ((LINK.double(), *REST), TypeError, r"link is torch\.float32 as precedence is, got .*float64"),
    (
        (LINK.bfloat16(), *(t.half() for t in REST)),
        TypeError,
        r"link is torch\.float16 as precedence is, got torch\.bfloat16",
    ),
    (
        (LINK.bfloat16()[:1], *REST),
        ValueError,
        r"link has shape \(B=2, N=4, N=4\), got \(1, 4, 4\)",
    ),
    ((LINK.bfloat16(), REST[0], REST[1].half(), REST[2]), TypeError, "write is torch.float32 as"),
    ((LINK.bfloat16().to("meta"), *REST), ValueError, "link is on cpu as precedence is, got meta"),
    (([1.0], *REST), TypeError, "link is a tensor, got list"),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("args", "kind", "message"), BAD)
def test_other_links_are_refused(args, kind, message, impl):
    with pytest.raises(kind, match=message):
        dnc.link(*args, impl=impl)


@pytest.mark.parametrize(
    ("like", "given", "kind", "message"),
    [
        (
            torch.float32,
            torch.float64,
            ValueError,
            r"one of torch\.bfloat16, torch\.float16, torch",
        ),
        (torch.float32, torch.int8, ValueError, r"link_dtype is one of .*, got torch\.int8"),
        (torch.float16, torch.bfloat16, ValueError, r"link_dtype is one of torch\.float16, got"),
        (torch.float32, "bfloat16", TypeError, "link_dtype is a dtype, got str"),
    ],
)
def test_another_type_to_begin_with_is_refused(like, given, kind, message):
    with pytest.raises(kind, match=message):
        dnc.blank(torch.zeros(1, dtype=like), 1, 2, 3, 1, link_dtype=given)


def test_the_benchmark_times_them_and_compares_them_with_float64():
    w = Workload("dnc.link", replace(cases.HALF_LINKS, B=1, N=4), torch.float32, "forward", "cpu")
    link, *rest = w.arguments()
    assert link.dtype == torch.bfloat16
    assert {t.dtype for t in rest} == {torch.float32}
    wide = w.in_float64().arguments()
    assert {t.dtype for t in wide} == {torch.float64}
    assert torch.equal(wide[0], link.double())
    assert w.shape == {"B": 1, "N": 4, "W": 64, "R": 4, "link_dtype": "torch.bfloat16"}
