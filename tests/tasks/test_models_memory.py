"""The memory models as a whole; their addressing has its proofs in tests/kernels."""

import itertools

import pytest
import torch

from kernels.dnc import content
from tasks.models import dnc, ntm

N_B, N_R = 3, 2


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
        read = content(state.memory_BNW, to.read_keys_BRW, to.read_strengths_BR, impl="torch")
        assert torch.equal(state.read_BRN, read)
        assert not state.link_BNN.any()
    used = [s.usage_BN for s, _ in dnc.DNC(3, 2, 8, 5, 4, free_gates=False).unroll(x)[1]]
    assert all((later >= now - 1e-6).all() for now, later in itertools.pairwise(used))
    freed = [s.usage_BN for s, _ in wild(dnc.DNC(3, 2, 8, 5, 4)).unroll(x)[1]]
    assert any((later < now - 1e-3).any() for now, later in itertools.pairwise(freed))


def test_a_random_ntm_keeps_its_weightings_normalised():
    torch.manual_seed(51)
    model = wild(ntm.NTM(5, 4, 12, 7, 6))
    with torch.no_grad():
        logits, trace = model.unroll(2 * torch.randn(N_B, 30, 5))
    assert logits.shape == (N_B, 30, 4)
    assert logits.isfinite().all()
    assert all(torch.allclose(w.sum(-1), torch.ones(N_B, 2), atol=1e-4) for w in trace)


def test_an_ntm_writes_what_it_erases_and_adds():
    g = torch.Generator().manual_seed(61)
    memory, weights = torch.randn(2, 4, 3, generator=g), torch.rand(2, 4, generator=g)
    erase, add = torch.rand(2, 3, generator=g), torch.randn(2, 3, generator=g)
    kept = memory * (1 - weights[..., None] * erase[:, None])
    expected = kept + weights[..., None] * add[:, None]
    torch.testing.assert_close(ntm.write(memory, weights, erase, add), expected)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("kind", ["dnc", "dnc without links", "ntm"])
def test_a_model_is_the_same_in_every_implementation(kind, impl):
    def made(impl):
        torch.manual_seed(71)
        if kind == "ntm":
            return ntm.NTM(3, 2, 8, 5, 4, impl=impl)
        return dnc.DNC(3, 2, 8, 5, 4, N_R, links=kind == "dnc", impl=impl)

    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(72))
    values, grads = [], []
    for model in (made("torch"), made(impl)):
        values.append(model(x))
        grads.append(torch.autograd.grad(values[-1].square().sum(), [*model.parameters()]))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
