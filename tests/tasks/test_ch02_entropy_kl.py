import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from suite.plan import expand
from suite.run import execute
from tasks.ch02_probability import entropy_kl

P = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
EVEN = torch.full((4,), 0.25, dtype=torch.float64)


def test_values_that_can_be_found_by_hand():
    assert entropy_kl.entropy(P).item() == pytest.approx(1.75)
    assert entropy_kl.entropy(EVEN).item() == pytest.approx(2)
    assert entropy_kl.entropy(torch.tensor([1.0, 0.0])).item() == 0
    assert entropy_kl.cross_entropy(P, EVEN).item() == pytest.approx(2)
    assert entropy_kl.divergence(P, EVEN).item() == pytest.approx(0.25)
    assert entropy_kl.divergence(EVEN, P).item() == pytest.approx(0.25)
    assert entropy_kl.divergence(P, P).item() == 0
    assert math.isinf(entropy_kl.divergence(EVEN, torch.tensor([0.5, 0.5, 0, 0])).item())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_agreement_with_scipy(outcomes, seed):
    torch.manual_seed(seed)
    p, q = entropy_kl.distributions(5, outcomes), entropy_kl.distributions(5, outcomes)
    torch.testing.assert_close(p.sum(1), torch.ones(5).double())
    H = torch.from_numpy(stats.entropy(p.numpy(), base=2, axis=1))
    kl = torch.from_numpy(stats.entropy(p.numpy(), q.numpy(), base=2, axis=1))
    torch.testing.assert_close(entropy_kl.entropy(p), H)
    torch.testing.assert_close(entropy_kl.divergence(p, q), kl)
    torch.testing.assert_close(entropy_kl.cross_entropy(p, q), H + kl)


def test_a_huffman_code_meets_the_entropy_of_powers_of_two():
    assert entropy_kl.huffman(P.tolist()) == [1, 2, 3, 3]
    assert entropy_kl.huffman(EVEN.tolist()) == [2, 2, 2, 2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_a_huffman_code_is_the_best_of_all_prefix_codes(weights):
    lengths = entropy_kl.huffman(weights)
    assert sum(2.0**-n for n in lengths) == 1
    cost = sum(w * n for w, n in zip(weights, lengths, strict=True))
    # Kraft: these are the lengths that a prefix code can have.
    others = itertools.product(range(1, len(weights)), repeat=len(weights))
    best = min(
        sum(w * n for w, n in zip(weights, other, strict=True))
        for other in others
        if sum(2.0**-n for n in other) <= 1
    )
    assert cost == pytest.approx(best)


def test_densities_integrate_to_one_and_divergences_to_their_closed_form():
    fit = torch.tensor([1.0, 1.5], dtype=torch.float64)
    for log_density in (
        entropy_kl.log_bumps(entropy_kl.GRID),
        entropy_kl.log_gaussian(entropy_kl.GRID, fit),
    ):
        area = torch.trapezoid(log_density.exp(), entropy_kl.GRID)
        assert area.item() == pytest.approx(1, abs=1e-6)
    # KL(p || q) = E_p[-log q] - h(p): its part that depends on q has a closed form.
    a, b = (
        entropy_kl.fit_divergence("forward", torch.tensor(f)).item()
        for f in ([1.0, 1.5], [0.0, 2.0])
    )

    def cross(mean, log2_sd):
        return log2_sd * math.log(2) + (10 + mean**2) / (2 * 4**log2_sd)

    assert a - b == pytest.approx(cross(1.0, 1.5) - cross(0.0, 2.0), abs=1e-6)


@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_the_minima_are_minima(method):
    for minimum in entropy_kl.minima(method):
        fit = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
        value = entropy_kl.fit_divergence(method, fit)
        (gradient,) = torch.autograd.grad(value, fit)
        assert gradient.abs().max() < 1e-6
        for step in ([0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]):
            moved = fit.detach() + torch.tensor(step)
            assert entropy_kl.fit_divergence(method, moved) > value


def test_the_reverse_fit_sits_on_a_bump_and_the_forward_fit_spans_both():
    (mean, log2_sd), *rest = entropy_kl.minima("forward")
    assert (mean, 4**log2_sd, rest) == (0.0, pytest.approx(10), [])
    assert sorted(round(m) for m, _ in entropy_kl.minima("reverse")) == [-3, 3]
    assert all(abs(width) < 0.1 for _, width in entropy_kl.minima("reverse"))


def test_sampling_gets_better_as_the_square_root_of_the_draws():
    spec = expand(["ch02.entropy_kl"], profile="smoke", variants=["sampled"])[0]
    train = execute(spec, resume=False).train
    expected = [math.sqrt(0.6875 / n) for n in train.curve["step"]]
    assert train.curve["kl_error"] == pytest.approx(expected, rel=0.2)


def test_a_divergence_a_little_too_low_is_found_negative(monkeypatch):
    torch.manual_seed(0)
    p_PO, q_PO = (entropy_kl.distributions(200, 32) for _ in range(2))
    assert entropy_kl.analytic_scores(p_PO, q_PO)["negative"] == 0
    true = entropy_kl.divergence
    monkeypatch.setattr(entropy_kl, "divergence", lambda p, q: true(p, q) - 1e-4)
    assert entropy_kl.analytic_scores(p_PO, q_PO)["negative"] > 0.4


def test_a_code_for_one_distribution_costs_the_divergence_from_the_other():
    torch.manual_seed(0)
    p_PO, q_PO = (entropy_kl.distributions(200, 32) for _ in range(2))
    lengths_PO = torch.tensor([entropy_kl.huffman(p) for p in p_PO.tolist()]).to(p_PO)
    found = entropy_kl.huffman_scores(p_PO, q_PO, lengths_PO)
    assert found["mismatch_broken"] == 0
    assert found["other_broken"] > 0.3
