"""NTM addressing against loops that follow the paper entry by entry, in every implementation."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels import ntm
from kernels.ntm import cases

IMPLS = ("reference", "torch", "triton")
N_B = 3


def head(generator, N):
    W = 4
    return torch.randn(N_B, N, W, generator=generator), ntm.Head(
        keys_BHW=torch.randn(N_B, 2, W, generator=generator),
        strengths_BH=5 * torch.rand(N_B, 2, generator=generator),
        gates_BH1=torch.rand(N_B, 2, 1, generator=generator),
        shifts_BHS=torch.rand(N_B, 2, 3, generator=generator).softmax(-1),
        sharpness_BH1=1 + 3 * torch.rand(N_B, 2, 1, generator=generator),
    )


@given(seed=st.integers(0, 10_000), N=st.integers(3, 9), impl=st.sampled_from(IMPLS))
@settings(max_examples=20, deadline=None)
def test_addressing_follows_the_papers_equations(seed, N, impl):
    g = torch.Generator().manual_seed(seed)
    (memory, to), old = head(g, N), torch.rand(N_B, 2, N, generator=g).softmax(-1)
    got = ntm.address(memory, old, to, impl=impl)
    torch.testing.assert_close(got.sum(-1), torch.ones(N_B, 2), rtol=0, atol=1e-5)
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
        torch.testing.assert_close(got[n, h], sharp / sharp.sum(), rtol=0, atol=1e-4)


def moved(at, shift, N, impl):
    """Where a head that ignores content and stood at a slot is after a shift."""
    weights = F.one_hot(torch.tensor([[at]]), N).float()
    to = ntm.Head(
        keys_BHW=torch.ones(1, 1, 2),
        strengths_BH=torch.ones(1, 1),
        gates_BH1=torch.zeros(1, 1, 1),
        shifts_BHS=F.one_hot(torch.tensor([[shift]]), 3).float(),
        sharpness_BH1=torch.full((1, 1, 1), 3.0),
    )
    got = ntm.address(torch.zeros(1, N, 2), weights, to, impl=impl)
    assert float(got.max()) > 0.999
    return int(got.argmax())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("at", "shift", "to"), [(2, 0, 1), (2, 1, 2), (2, 2, 3), (4, 2, 0), (0, 0, 4)]
)
def test_a_shift_moves_a_head_by_one_slot_and_goes_round(at, shift, to, impl):
    assert moved(at, shift, 5, impl) == to


@pytest.mark.parametrize("given", [None, (), torch.zeros(1)], ids=type)
def test_what_is_no_head_is_refused(given):
    memory, weights, _ = cases.arguments("address", cases.GRADCHECK)
    with pytest.raises(TypeError, match=f"head is a Head, got {type(given).__name__}"):
        ntm.address(memory, weights, given)


def test_an_even_number_of_shifts_is_refused():
    memory, weights, to = cases.arguments("address", cases.GRADCHECK)
    even = to._replace(shifts_BHS=to.shifts_BHS[..., :2])
    with pytest.raises(ValueError, match="odd number of shifts, got 2"):
        ntm.address(memory, weights, even)
