"""DNC and NTM addressing against loops that follow the papers entry by entry."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tasks.models import dnc, ntm

EACH = settings(max_examples=25, deadline=None)
N_B, N_R = 3, 2
seeds = st.integers(0, 10_000)
sizes = st.integers(1, 9)


def weighting(generator, *shape):
    """Random weights with a sum of at most 1, some of them exactly 0."""
    w = torch.rand(*shape, generator=generator) * (torch.rand(*shape, generator=generator) > 0.2)
    return w / w.sum(-1, keepdim=True).clamp_min(1)


def links(generator, N, steps=6):
    """A link matrix and a precedence that some writes have left, and one write more."""
    link, precedence = torch.zeros(N_B, N, N), torch.zeros(N_B, N)
    for _ in range(steps):
        write = weighting(generator, N_B, N)
        link = dnc.link(link, precedence, write, 1 - torch.eye(N))
        precedence = dnc.precedence(precedence, write)
    return link, precedence, weighting(generator, N_B, N)


def link_by_loops(link, precedence, write, decay):
    new = torch.zeros_like(link)
    B, N = write.shape
    for n, i, j in itertools.product(range(B), range(N), range(N)):
        if i != j:
            w_i, w_j = write[n, i], write[n, j]
            new[n, i, j] = decay(w_i, w_j) * link[n, i, j] + w_i * precedence[n, j]
    return new


@given(seed=seeds, N=sizes)
@EACH
def test_links_follow_the_papers_equation(seed, N):
    link, precedence, write = links(torch.Generator().manual_seed(seed), N)
    expected = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - w_i - w_j)
    got = dnc.link(link, precedence, write, 1 - torch.eye(N))
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)


@given(seed=seeds)
@EACH
def test_the_books_links_are_those_of_its_listing_and_not_of_the_paper(seed):
    link, precedence, write = links(torch.Generator().manual_seed(seed), 8)
    listing = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - 2 * w_i)
    paper = link_by_loops(link, precedence, write, lambda w_i, w_j: 1 - w_i - w_j)
    got = dnc.link(link, precedence, write, 1 - torch.eye(8), book=True)
    assert torch.allclose(got, listing, rtol=0, atol=1e-6)
    assert (got - paper).abs().max() > 1e-3


def test_the_books_links_are_right_while_every_write_goes_to_a_fresh_slot():
    off_diagonal, p = 1 - torch.eye(5), torch.zeros(1, 5)
    ours = theirs = torch.zeros(1, 5, 5)
    for slot in (3, 0, 4, 1):
        write = F.one_hot(torch.tensor([slot]), 5).float()
        ours = dnc.link(ours, p, write, off_diagonal)
        theirs = dnc.link(theirs, p, write, off_diagonal, book=True)
        p = dnc.precedence(p, write)
        assert torch.equal(ours, theirs)
    again = F.one_hot(torch.tensor([0]), 5).float()
    ours = dnc.link(ours, p, again, off_diagonal)
    theirs = dnc.link(theirs, p, again, off_diagonal, book=True)
    # Slot 4 was written after slot 0; once slot 0 is overwritten, that says nothing any more.
    assert ours[0, 4, 0] == 0
    assert theirs[0, 4, 0] == 1
    assert ours[0, 0].tolist() == [0, 1, 0, 0, 0]


def allocation_by_loops(usage):
    usage = dnc.EPSILON + (1 - dnc.EPSILON) * usage
    a = torch.zeros_like(usage)
    for n in range(len(usage)):
        product = 1.0
        for slot in sorted(range(usage.shape[1]), key=lambda i: (float(usage[n, i]), i)):
            a[n, slot] = (1 - usage[n, slot]) * product
            product = product * usage[n, slot]
    return a


@given(seed=seeds, N=sizes, kind=st.sampled_from(["spread", "ties", "full or empty"]))
@EACH
def test_allocation_follows_the_free_list(seed, N, kind):
    usage = torch.rand(N_B, N, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        usage = (3 * usage).round() / 3
    elif kind == "full or empty":
        usage = usage.round()
    got = dnc.allocation(usage)
    assert torch.allclose(got, allocation_by_loops(usage), rtol=0, atol=1e-6)
    assert got.min() >= 0
    assert got.sum(1).max() <= 1 + 1e-6


def test_allocation_takes_the_first_of_equal_slots_and_nothing_of_a_full_memory():
    assert dnc.allocation(torch.zeros(1, 4))[0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert dnc.allocation(torch.ones(1, 4))[0].tolist() == pytest.approx([0] * 4, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_allocation_has_finite_gradients_at_the_ends(value):
    usage = torch.full((1, 64), value, requires_grad=True)
    (dnc.allocation(usage) * torch.arange(64)).sum().backward()
    assert torch.isfinite(usage.grad).all()
    assert usage.grad.abs().max() < 1e3


@given(seed=seeds, N=sizes)
@EACH
def test_usage_write_and_read_follow_the_papers_equations(seed, N):
    g = torch.Generator().manual_seed(seed)
    W = 4
    old, write, read = (
        torch.rand(N_B, N, generator=g),
        weighting(g, N_B, N),
        weighting(g, N_B, 2, N),
    )
    free, erase = torch.rand(N_B, 2, generator=g), torch.rand(N_B, W, generator=g)
    memory, vector = torch.randn(N_B, N, W, generator=g), torch.randn(N_B, W, generator=g)
    used, written = (
        dnc.usage(old, write, read, free),
        dnc.write_memory(memory, write, erase, vector),
    )
    for n, i in itertools.product(range(N_B), range(N)):
        kept = (1 - free[n, 0] * read[n, 0, i]) * (1 - free[n, 1] * read[n, 1, i])
        u = (old[n, i] + write[n, i] - old[n, i] * write[n, i]) * kept
        assert used[n, i] == pytest.approx(float(u), abs=1e-6)
        row = memory[n, i] * (1 - write[n, i] * erase[n]) + write[n, i] * vector[n]
        assert torch.allclose(written[n, i], row, atol=1e-6)
    modes, ways = torch.rand(N_B, 3, 2, generator=g).softmax(1), weighting(g, 3, N_B, 2, N)
    mixed = torch.einsum("bsr,sbrn->brn", modes, ways)
    assert torch.allclose(dnc.read_weighting(*ways, modes), mixed, atol=1e-6)
    gate, share = torch.rand(N_B, 1, generator=g), torch.rand(N_B, 1, generator=g)
    put = dnc.write_weighting(old, write, share, gate)
    assert torch.allclose(put, gate * (share * old + (1 - share) * write), atol=1e-6)


@given(seed=seeds, N=sizes, strength=st.floats(1, 200))
@EACH
def test_content_weighting_is_a_softmax_of_cosines(seed, N, strength):
    g = torch.Generator().manual_seed(seed)
    memory, keys = torch.randn(N_B, N, 6, generator=g), torch.randn(N_B, 2, 6, generator=g)
    got = dnc.content_weighting(memory, keys, torch.full((N_B, 2), strength))
    cosine = F.cosine_similarity(keys[:, :, None], memory[:, None], dim=-1)
    assert torch.allclose(got, torch.softmax(strength * cosine, -1), atol=1e-3)
    assert torch.allclose(got.sum(-1), torch.ones(N_B, 2), atol=1e-5)


def test_an_empty_memory_and_an_empty_key_give_even_weights_and_finite_gradients():
    memory = torch.zeros(1, 4, 3, requires_grad=True)
    keys = torch.zeros(1, 1, 3, requires_grad=True)
    weights = dnc.content_weighting(memory, keys, torch.ones(1, 1))
    assert weights.flatten().tolist() == [0.25] * 4
    weights[0, 0, 0].backward()
    assert torch.isfinite(memory.grad).all()
    assert torch.isfinite(keys.grad).all()


def wild(model):
    """Parameters that drive gates and strengths to their ends now and then."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_random_dnc_keeps_every_quantity_in_its_range(seed):
    torch.manual_seed(100 + seed)
    model = wild(dnc.DNC(5, 4, 12, 7, 6, N_R))
    with torch.no_grad():
        logits, trace = model.unroll(2 * torch.randn(N_B, 30, 5))
    assert logits.shape == (N_B, 30, 4)
    assert logits.isfinite().all()
    for state, to in trace:
        in_range(state)
        assert torch.allclose(to.read_modes_BSR.sum(1), torch.ones(N_B, N_R), atol=1e-5)


def in_range(state):
    slack = 1e-5
    for w in (state.write_BN, state.read_BRN, state.precedence_BN):
        assert w.min() >= -slack
        assert w.sum(-1).max() <= 1 + slack
    assert state.usage_BN.min() >= -slack
    assert state.usage_BN.max() <= 1 + slack
    link = state.link_BNN
    assert link.min() >= -slack
    assert max(link.sum(1).max(), link.sum(2).max()) <= 1 + slack
    assert torch.equal(link.diagonal(dim1=1, dim2=2), torch.zeros(link.shape[:2]))


def leaf(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("book", [False, True])
def test_gradients_of_a_step(book):
    g = torch.Generator().manual_seed(11)
    B, N, W, R = 1, 3, 2, 2
    state = [(B, N, W), (B, N), (B, N), (B, N, N), (B, N), (B, R, N)]
    order = [
        (B, R, W),
        (B, R),
        (B, 1, W),
        (B, 1),
        (B, W),
        (B, W),
        (B, R),
        (B, 1),
        (B, 1),
        (B, 3, R),
    ]
    leaves = [leaf(g, *shape) for shape in state + order]
    off_diagonal = 1 - torch.eye(N, dtype=torch.float64)

    def step(*given):
        words, new = dnc.step(dnc.State(*given[:6]), dnc.Interface(*given[6:]), off_diagonal, book)
        return (words, *new)

    assert torch.autograd.gradcheck(step, leaves, eps=1e-6, atol=1e-6)


def test_the_sequences_of_a_batch_do_not_mix():
    torch.manual_seed(21)
    model, x = wild(dnc.DNC(3, 2, 8, 5, 4, N_R)), torch.randn(N_B, 9, 3)
    with torch.no_grad():
        together, apart = model(x), torch.cat([model(row[None]) for row in x])
    assert torch.allclose(together, apart, atol=1e-4)


def test_a_dnc_without_links_reads_by_content_and_one_without_free_gates_frees_nothing():
    torch.manual_seed(31)
    x = torch.randn(2, 20, 3)
    for state, to in dnc.DNC(3, 2, 8, 5, 4, links=False).unroll(x)[1]:
        content = dnc.content_weighting(state.memory_BNW, to.read_keys_BRW, to.read_strengths_BR)
        assert torch.equal(state.read_BRN, content)
        assert not state.link_BNN.any()
    used = [s.usage_BN for s, _ in dnc.DNC(3, 2, 8, 5, 4, free_gates=False).unroll(x)[1]]
    assert all((later >= now - 1e-6).all() for now, later in itertools.pairwise(used))
    freed = [s.usage_BN for s, _ in wild(dnc.DNC(3, 2, 8, 5, 4)).unroll(x)[1]]
    assert any((later < now - 1e-3).any() for now, later in itertools.pairwise(freed))


def test_forward_and_backward_reads_walk_along_the_writes():
    N = 4
    link, p = torch.zeros(1, N, N), torch.zeros(1, N)
    for slot in (2, 0, 3):
        write = F.one_hot(torch.tensor([slot]), N).float()
        link, p = dnc.link(link, p, write, 1 - torch.eye(N)), dnc.precedence(p, write)
    assert p[0].tolist() == [0, 0, 0, 1]
    at = F.one_hot(torch.tensor(0), N).float()
    assert (link[0] @ at).tolist() == [0, 0, 0, 1]
    assert (link[0].T @ at).tolist() == [0, 0, 1, 0]


def head(generator, N):
    W = 4
    return torch.randn(N_B, N, W, generator=generator), ntm.Head(
        keys_BHW=torch.randn(N_B, 2, W, generator=generator),
        strengths_BH=5 * torch.rand(N_B, 2, generator=generator),
        gates_BH1=torch.rand(N_B, 2, 1, generator=generator),
        shifts_BHS=torch.rand(N_B, 2, 3, generator=generator).softmax(-1),
        sharpness_BH1=1 + 3 * torch.rand(N_B, 2, 1, generator=generator),
    )


@given(seed=seeds, N=st.integers(3, 9))
@EACH
def test_ntm_addressing_follows_the_papers_equations(seed, N):
    g = torch.Generator().manual_seed(seed)
    (memory, to), old = head(g, N), torch.rand(N_B, 2, N, generator=g).softmax(-1)
    got = ntm.address(memory, old, to)
    assert torch.allclose(got.sum(-1), torch.ones(N_B, 2), atol=1e-5)
    for n, h in itertools.product(range(N_B), range(2)):
        cosine = F.cosine_similarity(to.keys_BHW[n, h][None], memory[n], dim=-1)
        content = torch.softmax(to.strengths_BH[n, h] * cosine, 0)
        gate = to.gates_BH1[n, h]
        gated = gate * content + (1 - gate) * old[n, h]
        shifted = torch.zeros(N)
        for i, j in itertools.product(range(N), range(N)):
            s = {N - 1: 0, 0: 1, 1: 2}.get((i - j) % N)
            if s is not None:
                shifted[i] += gated[j] * to.shifts_BHS[n, h, s]
        sharp = shifted ** to.sharpness_BH1[n, h]
        assert torch.allclose(got[n, h], sharp / sharp.sum(), atol=1e-4)


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (1, 2), (2, 3)])
def test_an_ntm_shift_moves_a_head_by_one_slot(share, expected):
    at = F.one_hot(torch.tensor([[2]]), 5).float()
    by = F.one_hot(torch.tensor([[share]]), 3).float()
    assert int(ntm.shift(at, by).argmax()) == expected
    assert torch.equal(ntm.sharpen(at, torch.full((1, 1, 1), 3.0)).round(), at)


def test_an_ntm_shift_goes_round():
    last = F.one_hot(torch.tensor([[4]]), 5).float()
    assert int(ntm.shift(last, torch.tensor([[[0.0, 0.0, 1.0]]])).argmax()) == 0


def test_gradients_of_ntm_addressing():
    g = torch.Generator().manual_seed(41)
    shapes = [(1, 4, 3), (1, 2, 4), (1, 2, 3), (1, 2), (1, 2, 1), (1, 2, 3), (1, 2, 1)]
    leaves = [leaf(g, *shape) for shape in shapes]
    assert torch.autograd.gradcheck(
        lambda memory, old, *to: ntm.address(memory, old, ntm.Head(*to)), leaves, atol=1e-6
    )


def test_a_random_ntm_keeps_its_weightings_normalised():
    torch.manual_seed(51)
    model = wild(ntm.NTM(5, 4, 12, 7, 6))
    with torch.no_grad():
        logits, trace = model.unroll(2 * torch.randn(N_B, 30, 5))
    assert logits.shape == (N_B, 30, 4)
    assert logits.isfinite().all()
    assert all(torch.allclose(w.sum(-1), torch.ones(N_B, 2), atol=1e-4) for w in trace)
