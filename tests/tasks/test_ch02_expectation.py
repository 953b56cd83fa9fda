import dataclasses
import itertools
from fractions import Fraction

import pytest
import torch

from tasks.ch02_probability import expectation
from tasks.ch02_probability.expectation import Config


def test_one_die_of_the_book():
    value = torch.arange(1, 7).double()
    mean, variance = expectation.moments(torch.full((6,), 1 / 6).double(), value)
    assert mean == pytest.approx(3.5)
    assert variance == pytest.approx(35 / 12)


def test_the_table_of_two_dice():
    x, y, p = expectation.table(6)
    assert p.sum() == pytest.approx(1)
    mean, variance = expectation.moments(p, x * y)
    assert mean == pytest.approx(3.5**2)
    assert variance == pytest.approx((91 / 6) ** 2 - 3.5**4)
    rolls = list(itertools.product(range(1, 7), repeat=2))
    even = [r for r in rolls if r[0] % 2 == 0]
    share = Fraction(sum(a + b > 6 for a, b in even), len(even))
    assert expectation.conditional(expectation.table(6)[2]) == pytest.approx(float(share))


@pytest.mark.parametrize("sides", [2, 6, 20])
def test_the_identities_hold(sides):
    assert expectation.identity_error(expectation.table(sides)[2]) < 1e-10
    assert expectation.identity_error(expectation.cards(sides)) < 1e-10


def test_cards_that_are_not_put_back_depend_on_each_other():
    pairs = list(itertools.permutations(range(1, 7), 2))
    x, y, _ = expectation.table(6)
    mean, _ = expectation.moments(expectation.cards(6), x * y)
    assert mean == pytest.approx(sum(a * b for a, b in pairs) / len(pairs))
    assert expectation.exact_scores(6)["dependence"] == pytest.approx(7 / 12)
    even = [p for p in pairs if p[0] % 2 == 0]
    share = Fraction(sum(a + b > 6 for a, b in even), len(even))
    assert expectation.conditional(expectation.cards(6)) == pytest.approx(float(share))


def test_variances_of_the_estimators_against_their_closed_forms():
    second, mean = 91 / 6, 3.5
    plain = second**2 - mean**4
    opposite = (7 * mean - second) ** 2 - mean**4
    assert expectation.variance_of("mc", 6) == pytest.approx(plain)
    assert expectation.variance_of("antithetic", 6) == pytest.approx(plain + opposite)
    correlation2 = (2 * mean * 35 / 12) ** 2 / (plain * 2 * 35 / 12)
    assert expectation.variance_of("control", 6) == pytest.approx(plain * (1 - correlation2))


@pytest.mark.parametrize("method", ["mc", "antithetic", "control"])
def test_estimates_are_unbiased_with_the_variance_of_theory(method):
    torch.manual_seed(0)
    cfg = dataclasses.replace(Config(), method=method, replicates=4000)
    total_R, counts_R2 = expectation.drawn(cfg, 64, torch.device("cpu"))
    variance = expectation.variance_of(method, 6)
    mean_R = total_R / 64
    assert mean_R.mean().item() == pytest.approx(12.25, abs=5 * (variance / 64 / 4000) ** 0.5)
    assert mean_R.var().item() * 64 == pytest.approx(variance, rel=0.15)
    share = counts_R2[:, 0].sum() / counts_R2[:, 1].sum()
    assert share.item() == pytest.approx(expectation.conditional(expectation.table(6)[2]), abs=0.01)


def test_antithetic_rolls_average_to_the_same_sum():
    torch.manual_seed(1)
    # With one die fixed at its middle the pair's mean would be exact; both dice leave a rest.
    cfg = Config(method="antithetic", sides=1, replicates=5)
    total_R, _ = expectation.drawn(cfg, 10, torch.device("cpu"))
    assert total_R.tolist() == [10.0] * 5


def test_the_scores_see_an_error_that_does_not_fall():
    cfg = Config(replicates=2, doublings=4)
    history = []
    for k in range(5):
        n = cfg.first * 2**k
        biased_R = torch.full((2,), n * 13.25, dtype=torch.float64)
        row = expectation.scores(cfg, n, biased_R, torch.ones(2, 2).double(), history)
    assert row["rmse"] == pytest.approx(1)
    assert row["slope_error"] == pytest.approx(0.5)
