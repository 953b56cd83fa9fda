"""DNC addressing against loops that follow the paper entry by entry, in every implementation."""

import functools
import itertools

import proof
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels import dispatch, dnc, tuning
from kernels.dnc import cases

EACH = settings(max_examples=15, deadline=None)
IMPLS = ("reference", "torch", "triton")
N_B, N_R = 3, 2
seeds = st.integers(0, 10_000)
sizes = st.integers(1, 9)
impls = st.sampled_from(IMPLS)


def weighting(generator, *shape):
    """Random weights with a sum of at most 1, some of them exactly 0."""
    w = torch.rand(*shape, generator=generator) * (torch.rand(*shape, generator=generator) > 0.2)
    return w / w.sum(-1, keepdim=True).clamp_min(1)


def linked(link, precedence, write, **kw):
    read = torch.zeros(len(write), 1, write.shape[1])
    return dnc.link(link, precedence, write, read, **kw)[:2]


def links(generator, N, steps=6):
    """A link matrix and a precedence that some writes have left, and one write more."""
    link, precedence = torch.zeros(N_B, N, N), torch.zeros(N_B, N)
    for _ in range(steps):
        link, precedence = linked(link, precedence, weighting(generator, N_B, N))
    return link, precedence, weighting(generator, N_B, N)


def link_by_loops(link, precedence, write, decay):
    new = torch.zeros_like(link)
    B, N = write.shape
    for n, i, j in itertools.product(range(B), range(N), range(N)):
        if i != j:
            w_i, w_j = write[n, i], write[n, j]
            new[n, i, j] = decay(w_i, w_j) * link[n, i, j] + w_i * precedence[n, j]
    return new


@given(seed=seeds, N=sizes, impl=impls)
@EACH
def test_links_follow_the_papers_equation(seed, N, impl):
    g = torch.Generator().manual_seed(seed)
    link, precedence, write = links(g, N)
    read = weighting(g, N_B, N_R, N)
    new, p, forward, backward = dnc.link(link, precedence, write, read, impl=impl)
    expected = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - w_i - w_j)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(new, expected, **close)
    total = write.sum(1, keepdim=True)
    torch.testing.assert_close(p, (1 - total) * precedence + write, **close)
    torch.testing.assert_close(forward, read @ expected.transpose(1, 2), **close)
    torch.testing.assert_close(backward, read @ expected, **close)


@given(seed=seeds, impl=impls)
@EACH
def test_the_books_links_are_those_of_its_listing_and_not_of_the_paper(seed, impl):
    link, precedence, write = links(torch.Generator().manual_seed(seed), 8)
    listing = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - 2 * w_i)
    paper = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - w_i - w_j)
    got = linked(link, precedence, write, book=True, impl=impl)[0]
    torch.testing.assert_close(got, listing, rtol=0, atol=1e-6)
    assert (got - paper).abs().max() > 1e-3


def proven_links(case, dtype, **options):
    """Check the kernels of the links; what their launchers asked for."""
    function, reference = (
        functools.partial(dnc.link, impl=impl, **options) for impl in ("triton", "reference")
    )
    with tuning.observed() as asked:
        proof.agrees(function, reference, cases.arguments("link", case, dtype), dtype)
    return asked


@pytest.mark.parametrize("book", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 64), (64, 16), (64, 128)])
def test_links_are_the_same_in_tiles_of_any_size(rows, columns, book):
    """Such as the tuner may choose: with more rows than columns, and larger than the matrix."""
    tile = {"BI": rows, "BJ": columns}
    with tuning.trial("dnc.link_forward", tile), tuning.trial("dnc.link_backward", tile):
        asked = proven_links(cases.Case("no multiples", 2, 70, 4, 3), torch.float32, book=book)
    assert all(tile.keys() <= found.default.keys() for found in asked.values())
    assert asked.keys() == {"dnc.link_forward", "dnc.link_backward"}


@pytest.mark.parametrize(
    ("slots", "heads", "dtype", "warps"),
    [
        (32, 1, "float32", (1, 1)),
        (32, 4, "float32", (1, 2)),
        (32, 9, "float32", (2, 4)),
        (32, 1, "float64", (4, 4)),
        (20, 1, "float32", (4, 4)),
    ],
)
def test_a_tile_of_links_has_the_warps_that_hold_its_sums(slots, heads, dtype, warps):
    asked = proven_links(cases.Case("many heads", 1, slots, 4, heads), getattr(torch, dtype))
    kernels = ("dnc.link_forward", "dnc.link_backward")
    assert tuple(asked[name].default["num_warps"] for name in kernels) == warps


@pytest.mark.parametrize("impl", IMPLS)
def test_the_books_links_are_right_while_every_write_goes_to_a_fresh_slot(impl):
    p = torch.zeros(1, 5)
    ours = theirs = torch.zeros(1, 5, 5)
    for slot in (3, 0, 4, 1):
        write = F.one_hot(torch.tensor([slot]), 5).float()
        theirs, _ = linked(theirs, p, write, book=True, impl=impl)
        ours, p = linked(ours, p, write, impl=impl)
        assert torch.equal(ours, theirs)
    again = F.one_hot(torch.tensor([0]), 5).float()
    theirs, _ = linked(theirs, p, again, book=True, impl=impl)
    ours, _ = linked(ours, p, again, impl=impl)
    # Slot 4 was written after slot 0; once slot 0 is overwritten, that says nothing any more.
    assert ours[0, 4, 0] == 0
    assert theirs[0, 4, 0] == 1
    assert ours[0, 0].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("impl", IMPLS)
def test_forward_and_backward_reads_walk_along_the_writes(impl):
    N = 4
    link, p = torch.zeros(1, N, N), torch.zeros(1, N)
    at = F.one_hot(torch.tensor([[0]]), N).float()
    for slot in (2, 0, 3):
        write = F.one_hot(torch.tensor([slot]), N).float()
        link, p, forward, backward = dnc.link(link, p, write, at, impl=impl)
    assert p[0].tolist() == [0, 0, 0, 1]
    assert forward[0, 0].tolist() == [0, 0, 0, 1]
    assert backward[0, 0].tolist() == [0, 0, 1, 0]


def allocation_by_loops(usage):
    usage = dnc.EPSILON + (1 - dnc.EPSILON) * usage
    a = torch.zeros_like(usage)
    for n in range(len(usage)):
        product = 1.0
        for slot in sorted(range(usage.shape[1]), key=lambda i: (float(usage[n, i]), i)):
            a[n, slot] = (1 - usage[n, slot]) * product
            product = product * usage[n, slot]
    return a


@given(seed=seeds, N=sizes, kind=st.sampled_from(["spread", "ties", "full or empty"]), impl=impls)
@settings(max_examples=30, deadline=None)
def test_allocation_follows_the_free_list(seed, N, kind, impl):
    usage = torch.rand(N_B, N, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        usage = (3 * usage).round() / 3
    elif kind == "full or empty":
        usage = usage.round()
    got = dnc.allocation(usage, impl=impl)
    torch.testing.assert_close(got, allocation_by_loops(usage), rtol=0, atol=1e-6)
    assert got.min() >= 0
    assert got.sum(1).max() <= 1 + 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_allocation_takes_the_first_of_equal_slots_and_nothing_of_a_full_memory(impl):
    first = dnc.allocation(torch.zeros(1, 4), impl=impl)[0].tolist()
    assert first == pytest.approx([1, 0, 0, 0], abs=1e-5)
    none = dnc.allocation(torch.ones(1, 4), impl=impl)[0].tolist()
    assert none == pytest.approx([0] * 4, abs=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_allocation_has_finite_gradients_at_the_ends(value, impl):
    usage = torch.full((1, 64), value, requires_grad=True)
    (dnc.allocation(usage, impl=impl) * torch.arange(64)).sum().backward()
    assert torch.isfinite(usage.grad).all()
    assert usage.grad.abs().max() < 1e3


@given(seed=seeds, N=sizes, impl=impls)
@EACH
def test_usage_write_and_read_follow_the_papers_equations(seed, N, impl):
    g = torch.Generator().manual_seed(seed)
    W = 4
    old = torch.rand(N_B, N, generator=g)
    write, read = weighting(g, N_B, N), weighting(g, N_B, N_R, N)
    free, erase = torch.rand(N_B, N_R, generator=g), torch.rand(N_B, W, generator=g)
    memory, vector = torch.randn(N_B, N, W, generator=g), torch.randn(N_B, W, generator=g)
    share, gate = torch.rand(N_B, 1, generator=g), torch.rand(N_B, 1, generator=g)
    used = dnc.usage(old, write, read, free, impl=impl)
    written, put = dnc.write(memory, old, write, share, gate, erase, vector, impl=impl)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(put, gate * (share * old + (1 - share) * write), **close)
    for n, i in itertools.product(range(N_B), range(N)):
        kept = (1 - free[n, 0] * read[n, 0, i]) * (1 - free[n, 1] * read[n, 1, i])
        u = (old[n, i] + write[n, i] - old[n, i] * write[n, i]) * kept
        assert used[n, i] == pytest.approx(float(u), abs=1e-6)
        row = memory[n, i] * (1 - put[n, i] * erase[n]) + put[n, i] * vector[n]
        torch.testing.assert_close(written[n, i], row, **close)
    modes, ways = torch.rand(N_B, 3, N_R, generator=g).softmax(1), weighting(g, 3, N_B, N_R, N)
    mixed = torch.einsum("bsr,sbrn->brn", modes, ways)
    words, weights = dnc.read(memory, *ways, modes, impl=impl)
    torch.testing.assert_close(weights, mixed, **close)
    torch.testing.assert_close(words, mixed @ memory, rtol=1e-5, atol=1e-5)


@given(seed=seeds, N=sizes, strength=st.floats(1, 200), impl=impls)
@EACH
def test_content_weighting_is_a_softmax_of_cosines(seed, N, strength, impl):
    g = torch.Generator().manual_seed(seed)
    memory, keys = torch.randn(N_B, N, 6, generator=g), torch.randn(N_B, 2, 6, generator=g)
    got = dnc.content(memory, keys, torch.full((N_B, 2), strength), impl=impl)
    cosine = F.cosine_similarity(keys[:, :, None], memory[:, None], dim=-1)
    torch.testing.assert_close(got, torch.softmax(strength * cosine, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(got.sum(-1), torch.ones(N_B, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_memory_and_an_empty_key_give_even_weights_and_finite_gradients(impl):
    memory = torch.zeros(1, 4, 3, requires_grad=True)
    keys = torch.zeros(1, 1, 3, requires_grad=True)
    weights = dnc.content(memory, keys, torch.ones(1, 1), impl=impl)
    assert weights.flatten().tolist() == [0.25] * 4
    weights[0, 0, 0].backward()
    assert torch.isfinite(memory.grad).all()
    assert torch.isfinite(keys.grad).all()


def in_range(state, slack=1e-5):
    for w in (state.write_BN, state.read_BRN, state.precedence_BN):
        assert w.min() >= -slack
        assert w.sum(-1).max() <= 1 + slack
    assert state.usage_BN.min() >= -slack
    assert state.usage_BN.max() <= 1 + slack
    link = state.link_BNN
    assert link.min() >= -slack
    assert max(link.sum(1).max(), link.sum(2).max()) <= 1 + slack
    assert torch.equal(link.diagonal(dim1=1, dim2=2), torch.zeros(link.shape[:2]))


def order(generator, W, saturated):
    """What a controller asks for; saturated ones drive gates and strengths to their ends."""

    def gate(*shape):
        x = torch.rand(*shape, generator=generator)
        return x.round() if saturated else x

    strength = 1000.0 if saturated else 5.0
    return dnc.Interface(
        read_keys_BRW=torch.randn(N_B, N_R, W, generator=generator),
        read_strengths_BR=1 + strength * torch.rand(N_B, N_R, generator=generator),
        write_key_B1W=torch.randn(N_B, 1, W, generator=generator),
        write_strength_B1=1 + strength * torch.rand(N_B, 1, generator=generator),
        erase_BW=gate(N_B, W),
        write_vector_BW=torch.randn(N_B, W, generator=generator),
        free_gates_BR=gate(N_B, N_R),
        allocation_gate_B1=gate(N_B, 1),
        write_gate_B1=gate(N_B, 1),
        read_modes_BSR=torch.randn(N_B, 3, N_R, generator=generator).softmax(1),
    )


@given(seed=seeds, N=sizes, saturated=st.booleans(), links=st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_chain_of_steps_stays_in_range_and_is_the_same_in_every_implementation(
    seed, N, saturated, links
):
    g = torch.Generator().manual_seed(seed)
    # In float64: a strength of a thousand makes a difference of float32's rounding of the cosine.
    state = dnc.blank(torch.zeros(1, dtype=torch.float64), N_B, N, 4, N_R)
    for _ in range(5):
        to = dnc.Interface(*(part.double() for part in order(g, 4, saturated)))
        want_words, want = dnc.step(state, to, links=links, impl="reference")
        for impl in IMPLS[1:]:
            words, got = dnc.step(state, to, links=links, impl=impl)
            torch.testing.assert_close(got.usage_BN, want.usage_BN)
            # Of two slots as empty but for the last bit, either may be the first to be allocated.
            assume(torch.equal(*(s.usage_BN.argsort(stable=True) for s in (got, want))))
            torch.testing.assert_close(words, want_words, rtol=1e-4, atol=1e-4)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            in_range(got)
        state = want


@pytest.mark.parametrize("impl", IMPLS)
def test_the_memories_of_a_batch_do_not_mix(impl):
    g = torch.Generator().manual_seed(3)
    state, to = dnc.blank(torch.zeros(1), N_B, 6, 4, N_R), order(g, 4, False)
    _, state = dnc.step(state, to, impl=impl)
    words, _ = dnc.step(state, order(g, 4, False), impl=impl)
    g.manual_seed(3)
    order(g, 4, False)
    second = order(g, 4, False)
    for n in range(N_B):
        one = dnc.State(*(s[n : n + 1] for s in state))
        alone, _ = dnc.step(one, dnc.Interface(*(t[n : n + 1] for t in second)), impl=impl)
        torch.testing.assert_close(alone[0], words[n], rtol=1e-5, atol=1e-6)


def test_without_links_a_head_reads_by_content_and_the_links_stay():
    g = torch.Generator().manual_seed(5)
    state, to = dnc.blank(torch.zeros(1), N_B, 6, 4, N_R), order(g, 4, False)
    for impl in IMPLS:
        _, new = dnc.step(state, to, links=False, impl=impl)
        content = dnc.content(new.memory_BNW, to.read_keys_BRW, to.read_strengths_BR, impl=impl)
        assert torch.equal(new.read_BRN, content)
        assert not new.link_BNN.any()


# Dynamo looks at the gradient of whatever it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("impl", [*IMPLS, "compile"])
@pytest.mark.parametrize("links", [True, False])
def test_a_step_in_an_autocast_region_is_one_in_float32(links, impl, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    # What is compiled here is of no use to others, nor theirs here.
    monkeypatch.setattr(dispatch, "_compiled", functools.cache(dispatch._compiled.__wrapped__))
    torch.compiler.reset()
    state, to = cases.arguments("step", cases.GRADCHECK)
    low = dnc.Interface(*(part.bfloat16().requires_grad_() for part in to))
    step = functools.partial(dnc.step, links=links, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        got, found = step(state, low)
    want, wanted = step(state, dnc.Interface(*(part.float() for part in low)))
    assert {t.dtype for t in (got, *found)} == {torch.float32}
    assert all(map(torch.equal, (got, *found), (want, *wanted)))
    used = [low.write_vector_BW, low.read_keys_BRW]
    grads, wanted_grads = (torch.autograd.grad(words.sum(), used) for words in (got, want))
    assert all(map(torch.equal, grads, wanted_grads))


@pytest.mark.parametrize("links", [True, False])
def test_a_compiled_region_with_autocast_does_not_break(links):
    torch.compiler.reset()

    def words(state, to):
        with torch.autocast("cpu", torch.bfloat16):
            return dnc.step(state, to, links=links)[0]

    state, to = cases.arguments("step", cases.GRADCHECK)
    to = dnc.Interface(*(part.bfloat16() for part in to))
    compiled = torch.compile(words, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(state, to), words(state, to))


STATE, TO = cases.arguments("step", cases.GRADCHECK)
BAD = [
    ({"state": tuple(STATE)}, "state is a State, got tuple"),
    ({"state": STATE.memory_BNW}, "state is a State, got Tensor"),
    ({"to": None}, "to is an Interface, got NoneType"),
    ({"to": STATE}, "to is an Interface, got State"),
    ({"to": TO._replace(erase_BW=0.5)}, "to.erase is a tensor, got float"),
    ({"links": "no"}, "links is a bool, got str"),
    ({"book": 1}, "book is a bool, got int"),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_of_a_step_are_named(change, message, impl):
    with pytest.raises(TypeError, match=message):
        dnc.step(**({"state": STATE, "to": TO} | change), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_no_bool_does_not_choose_the_links(impl):
    with pytest.raises(TypeError, match="book is a bool, got str"):
        dnc.link(*cases.arguments("link", cases.GRADCHECK), book="no", impl=impl)
