import math

import pytest
import torch
from scipy import stats

from suite.plan import expand
from suite.run import execute
from tasks.ch02_probability import continuous
from tasks.ch02_probability.continuous import FROZEN, KEPT, NAMES

CPU = torch.device("cpu")


def test_the_inverse_undoes_the_distribution_function():
    torch.manual_seed(0)
    u_N = continuous.uniforms(50, CPU)
    for name in NAMES:
        torch.manual_seed(0)
        x_N = continuous.standard(name, lambda n: continuous.inverse(50, n, CPU))
        torch.testing.assert_close(torch.from_numpy(FROZEN[name].cdf(x_N.numpy())), u_N)


@pytest.mark.parametrize("name", NAMES)
def test_proposals_kept_with_their_probability_have_the_right_density(name):
    torch.manual_seed(1)
    x_N, keep_N = continuous.proposed(200_000, name, CPU)
    assert (keep_N <= 1 + 1e-12).all()
    assert (keep_N >= 0).all()
    assert keep_N.mean().item() == pytest.approx(KEPT[name], abs=0.005)
    # Weighted by the probability of being kept, proposals have the target's mean.
    mean = (x_N * keep_N).sum() / keep_N.sum()
    expected = {"gaussian": 0.0, "uniform": 0.5, "exponential": 1.0}[name]
    assert mean.item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_rejection_gives_as_many_draws_as_asked_for(name):
    torch.manual_seed(2)
    x_N, kept = continuous.rejection(1000, name, CPU)
    assert len(x_N) == 1000
    assert kept == pytest.approx(KEPT[name], abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_proposals_that_are_all_kept_are_found_out(name):
    torch.manual_seed(3)
    x_N, _ = continuous.proposed(20_000, name, CPU)
    assert continuous.distance(name, continuous.standard(name, lambda _: x_N)) > 3


@pytest.mark.parametrize("name", NAMES)
def test_the_distance_agrees_with_scipy(name):
    torch.manual_seed(4)
    x_N = continuous.pytorch(name, CPU).sample((500,))
    expected = math.sqrt(500) * stats.kstest(x_N.numpy(), FROZEN[name].cdf).statistic
    assert continuous.distance(name, x_N) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_densities_are_pytorchs(name):
    x = torch.linspace(-0.9, 2.9, 50, dtype=torch.float64)
    x = x[x >= 0] if name == "exponential" else x
    ours = torch.from_numpy(FROZEN[name].logpdf(x.numpy()))
    torch.testing.assert_close(continuous.pytorch(name, CPU).log_prob(x), ours)


def test_the_likelihood_from_statistics_is_that_of_the_sample():
    torch.manual_seed(5)
    x, t = torch.randn(40).double(), torch.rand(40).double()
    seen = torch.stack([x.mean(), x.var(correction=0), x.min(), x.max(), t.mean()])[None]
    fits = torch.tensor([[0.3, 0.2, -0.4], [-1.0, 0.9, 0.6]], dtype=torch.float64)
    values = continuous.log_likelihood(fits, seen.expand(2, 5))
    for fit, value in zip(fits, values, strict=True):
        gaussian = torch.distributions.Normal(fit[0], fit[1].exp()).log_prob(x).mean()
        exponential = torch.distributions.Exponential(fit[2].exp()).log_prob(t).mean()
        constant = math.log(2 * math.pi) / 2
        assert (gaussian + exponential + constant).item() == pytest.approx(value.item())


def test_errors_vanish_at_the_truth_and_have_natural_units():
    fit = torch.tensor([[1.0, math.log(2.0), math.log(0.5)]], dtype=torch.float64)
    seen = torch.tensor([[0.0, 0.0, -1.0, 3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(continuous.errors(fit, seen), torch.zeros(1, 5).double())
    off = continuous.errors(fit + torch.tensor([0.2, 0.0, 0.0]), seen + 0.4)
    torch.testing.assert_close(off[0, [0, 3]], torch.tensor([0.1, 0.1]).double())


def test_three_standard_errors_leave_out_as_few_as_theory_says():
    torch.manual_seed(6)
    n, replicates = 400, 4000
    gaussian = torch.randn(replicates, n).double() * 2 + 1
    uniform = torch.rand(replicates, n).double() * 4 - 1
    exponential = torch.empty(replicates, n).double().exponential_(0.5)
    fit = torch.stack(
        [gaussian.mean(1), gaussian.std(1, correction=0).log(), -exponential.mean(1).log()], 1
    )
    ends = torch.stack([uniform.amin(1), uniform.amax(1)], 1)
    seen = torch.cat([torch.zeros(replicates, 2), ends, torch.zeros(replicates, 1)], 1)
    outside = (continuous.errors(fit, seen) > continuous.allowed_errors(n)).double().mean(0)
    assert outside.max() < 0.006, "each has 0.0025 to 0.0027 in theory"
    assert outside.min() > 0.0005


def test_gradient_ascent_starts_short_of_the_target_and_is_short_half_way():
    spec = expand(
        ["ch02.continuous"], profile="laptop", variants=["mle"], overrides={"replicates": 20}
    )[0]
    curve = execute(spec, resume=False).train.curve
    assert curve["coverage"][0] == 0
    assert curve["coverage"][4] < 0.95 <= curve["coverage"][-1]
