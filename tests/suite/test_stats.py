"""Intervals and tests against brute force, scipy where it is exact, and their own symmetries."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import stats

prop = settings(deadline=None, max_examples=60, derandomize=True)

number = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))
small_integer = st.integers(-4, 4).map(float)
proportion = st.floats(0.01, 0.99)


def samples(low: int = 1, high: int = 8) -> st.SearchStrategy[list[float]]:
    """Samples with and without ties and zeros."""
    return st.one_of(
        st.lists(number, min_size=low, max_size=high),
        st.lists(small_integer, min_size=low, max_size=high),
    )


def mid_ranks(d: list[float]) -> list[float]:
    size = [abs(v) for v in d]
    return [sum(s < v for s in size) + (sum(s == v for s in size) + 1) / 2 for v in size]


def brute_force_p(weights: list[float], d: list[float], alternative: str) -> float:
    """P-value of sum(sign * weight) over all sign flips, in exact arithmetic on the weights."""
    seen = sum(w * np.sign(v) for w, v in zip(weights, d, strict=True))
    flips = itertools.product((-1, 1), repeat=len(d))
    sums = [sum(w * s for w, s in zip(weights, flip, strict=True)) for flip in flips]
    greater = sum(s >= seen for s in sums) / len(sums)
    less = sum(s <= seen for s in sums) / len(sums)
    if alternative == "two-sided":
        return min(1.0, 2 * float(min(greater, less)))
    return float(greater if alternative == "greater" else less)


# Student t


@prop
@given(samples(2), st.floats(0.5, 0.999))
def test_t_interval_is_scipys(x: list[float], level: float) -> None:
    got = stats.t_interval(x, level)
    assert got.estimate == pytest.approx(np.mean(x), abs=1e-6)
    assert got.n == len(x)
    if len(set(x)) > 1:
        low, high = scipy.stats.t.interval(level, len(x) - 1, np.mean(x), scipy.stats.sem(x))
        assert (got.low, got.high) == pytest.approx((low, high), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
@prop
@given(x=st.lists(proportion, min_size=1, max_size=8), data=st.data())
def test_t_interval_ignores_order_and_grows_with_level(
    scale: str, x: list[float], data: st.DataObject
) -> None:
    narrow = stats.t_interval(x, 0.8, scale)
    wide = stats.t_interval(x, 0.95, scale)
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high
    assert stats.t_interval(data.draw(st.permutations(x)), 0.8, scale) == narrow


@prop
@given(samples(1))
def test_t_interval_mirrors_under_negation(x: list[float]) -> None:
    got, mirrored = stats.t_interval(x), stats.t_interval([-v for v in x])
    assert (-mirrored.high, -mirrored.low) == pytest.approx((got.low, got.high), abs=1e-6)


@prop
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=8), st.floats(0.01, 100))
def test_log_scale_follows_a_change_of_unit(x: list[float], unit: float) -> None:
    got = stats.t_interval(x, scale="log")
    scaled = stats.t_interval([unit * v for v in x], scale="log")
    assert got.estimate == pytest.approx(scipy.stats.gmean(x))
    assert scaled.estimate == pytest.approx(unit * got.estimate)
    assert scaled.low == pytest.approx(unit * got.low)


@prop
@given(st.lists(proportion, min_size=2, max_size=8))
def test_logit_scale_stays_inside_and_mirrors(x: list[float]) -> None:
    got = stats.t_interval(x, scale="logit")
    errors = stats.t_interval([1 - v for v in x], scale="logit")
    assert 0 <= got.low <= got.estimate <= got.high <= 1
    assert (1 - errors.high, 1 - errors.low) == pytest.approx((got.low, got.high), abs=1e-9)


def test_logit_scale_falls_back_to_clipped_linear_and_says_so() -> None:
    x = [0.98, 0.99, 1.0]
    got, plain = stats.t_interval(x, scale="logit"), stats.t_interval(x)
    assert got.scale == "linear"
    assert (got.estimate, got.low) == (plain.estimate, plain.low)
    assert plain.high > 1
    assert got.high == 1.0
    assert stats.t_interval([0.97, 0.98, 0.99], scale="logit").scale == "logit"
    low = stats.t_interval([0.0, 0.01, 0.02], scale="logit")
    assert (low.scale, low.low) == ("linear", 0.0)


@pytest.mark.parametrize(
    ("scale", "ends"),
    [("linear", (-math.inf, math.inf)), ("log", (0, math.inf)), ("logit", (0, 1))],
)
def test_one_value_bounds_nothing(scale: str, ends: tuple[float, float]) -> None:
    for value in (0.5, 1.0):
        got = stats.t_interval([value], scale=scale)
        assert (got.estimate, got.low, got.high) == (value, *ends)
        assert (stats.lower_bound([value], scale=scale), got.n) == (ends[0], 1)


@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.97, 1.0])
def test_zero_variance_returns_the_value_to_the_bit(scale: str, value: float) -> None:
    got = stats.t_interval([value] * 7, scale=scale)
    assert got.estimate == got.low == got.high == value


def test_unbounded_log_interval_is_infinite_without_a_warning() -> None:
    assert stats.t_interval([1e-200, 1e200], scale="log").high == math.inf


@prop
@given(samples(2))
def test_one_sided_bounds_are_the_ends_of_the_two_sided_interval(x: list[float]) -> None:
    both = stats.t_interval(x, 0.9)
    ends = (stats.lower_bound(x, 0.95), stats.upper_bound(x, 0.95))
    assert ends == pytest.approx((both.low, both.high), rel=1e-9, abs=1e-6)


@prop
@given(samples(2), st.floats(0, 10))
def test_bounds_move_up_with_the_sample(x: list[float], shift: float) -> None:
    moved = [v + shift for v in x]
    assert stats.lower_bound(moved) == pytest.approx(stats.lower_bound(x) + shift, abs=1e-5)
    assert stats.upper_bound(moved) == pytest.approx(stats.upper_bound(x) + shift, abs=1e-5)


def two_modes(draws: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return draws.normal(size=size) + 1.5 * draws.choice([-1.0, 1.0], size=size)


@pytest.mark.parametrize(
    ("n", "scale", "draw", "centre"),
    [
        *((n, "linear", lambda g, size: g.normal(3.0, 2.0, size), 3.0) for n in (3, 5, 10, 20)),
        *((n, "log", lambda g, size: g.lognormal(1.0, 0.5, size), math.e) for n in (3, 5, 20)),
        *((n, "linear", two_modes, 0.0) for n in (5, 10, 20)),
    ],
)
def test_t_interval_covers_what_it_says(n: int, scale: str, draw, centre: float) -> None:
    found = [
        stats.t_interval(row, scale=scale) for row in draw(np.random.default_rng(0), (4000, n))
    ]
    covered = np.mean([i.low <= centre <= i.high for i in found])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        ([], "linear", "sample of 1"),
        ([[1.0, 2.0]], "linear", "flat"),
        (1.0, "linear", "flat"),
        ([1.0, math.nan], "linear", "finite"),
        ([1.0, math.inf], "linear", "finite"),
        ([1.0, None], "linear", "finite"),
        ([1.0, 0.0], "log", "above 0"),
        ([0.5, 1.01], "logit", r"\[0, 1\]"),
        ([-0.01, 0.5], "logit", r"\[0, 1\]"),
        ([1.0, 2.0], "cubic", "unknown scale"),
    ],
)
def test_t_interval_refuses(x: list[float], scale: str, message: str) -> None:
    for bound in (stats.t_interval, stats.lower_bound, stats.upper_bound):
        with pytest.raises(ValueError, match=message):
            bound(x, scale=scale)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_levels_are_probabilities(level: float) -> None:
    for interval in (stats.t_interval, stats.hodges_lehmann_interval, stats.lower_bound):
        with pytest.raises(ValueError, match="strictly between"):
            interval([1.0, 2.0], level)
    with pytest.raises(ValueError, match="strictly between"):
        stats.clopper_pearson(1, 2, level)


# Proportions


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 5), (5, 5), (3, 5), (17, 20), (1, 200)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_clopper_pearson_is_scipys(k: int, n: int, confidence: float) -> None:
    both = scipy.stats.binomtest(k, n).proportion_ci(confidence, "exact")
    got = stats.clopper_pearson(k, n, confidence)
    assert (got.low, got.high) == pytest.approx((both.low, both.high))
    assert got.estimate == k / n
    one = scipy.stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact")
    lower = stats.clopper_pearson(k, n, confidence, side="lower")
    assert (lower.low, lower.high) == pytest.approx((one.low, 1.0))


@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_all_of_n_proves_the_nth_root_of_alpha(n: int) -> None:
    assert stats.clopper_pearson(n, n, side="lower").low == pytest.approx(0.05 ** (1 / n))


@prop
@given(st.integers(1, 60), st.data())
def test_clopper_pearson_mirrors_and_grows_with_k(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n - 1))
    got, more = stats.clopper_pearson(k, n), stats.clopper_pearson(k + 1, n)
    mirrored = stats.clopper_pearson(n - k, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((got.low, got.high), abs=1e-12)
    assert more.low >= got.low
    assert more.high >= got.high


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_clopper_pearson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= n"):
        stats.clopper_pearson(k, n)


def test_clopper_pearson_refuses_an_unknown_side() -> None:
    with pytest.raises(ValueError, match="unknown side"):
        stats.clopper_pearson(1, 2, side="upper")


# Interquartile mean and bootstrap


@prop
@given(st.integers(1, 5).flatmap(lambda k: st.lists(number, min_size=4 * k, max_size=4 * k)))
def test_iqm_is_the_trimmed_mean_where_that_is_exact(x: list[float]) -> None:
    assert stats.iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25), abs=1e-6)


@prop
@given(samples(1, 12))
def test_iqm_is_a_mean_of_the_middle(x: list[float]) -> None:
    assert min(x) - 1e-6 <= stats.iqm(x) <= max(x) + 1e-6
    assert stats.iqm([-v for v in x]) == pytest.approx(-stats.iqm(x), abs=1e-6)


def test_iqm_weighs_the_quartiles_by_what_lies_inside() -> None:
    assert stats.iqm([7.0]) == 7.0
    assert stats.iqm([0.0, 1.0, 8.0]) == pytest.approx((0.25 * 0 + 1 + 0.25 * 8) / 1.5)


def test_iqm_reduces_the_last_axis() -> None:
    x = np.random.default_rng(0).normal(size=(3, 7))
    assert stats.iqm(x) == pytest.approx([stats.iqm(row) for row in x])


@pytest.mark.parametrize("x", [[], [1.0, math.nan], 3.0])
def test_iqm_refuses(x: object) -> None:
    with pytest.raises(ValueError, match="finite values along an axis"):
        stats.iqm(x)  # type: ignore[arg-type]


def row_mean(x: stats.Floats) -> stats.Floats:
    return np.asarray(np.mean(x, axis=-1))


def row_variance(x: stats.Floats) -> stats.Floats:
    return np.asarray(np.var(x, axis=-1))


def row_distinct(x: stats.Floats) -> stats.Floats:
    """How many values are distinct: less in nearly every bootstrap sample than in the sample."""
    return np.asarray(1.0 + np.count_nonzero(np.diff(np.sort(x, axis=-1), axis=-1), axis=-1))


@pytest.mark.parametrize("statistic", [row_mean, row_variance])
def test_bca_interval_is_scipys(statistic: Callable[[stats.Floats], stats.Floats]) -> None:
    x = np.random.default_rng(1).lognormal(1.0, 0.8, 15)
    ours = stats.bca_interval(x, statistic, 0.9, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (x,),
        lambda sample, axis: statistic(np.moveaxis(sample, axis, -1)),
        confidence_level=0.9,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.03)
    assert ours.estimate == pytest.approx(statistic(x))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bca_interval_of_a_statistic_that_no_resample_exceeds_is_finite(sign: float) -> None:
    got = stats.bca_interval(range(12), lambda x: sign * row_distinct(x), resamples=200)
    assert (got.estimate, got.low <= got.high) == (12 * sign, True)


def test_bca_interval_counts_half_of_the_replicates_that_tie() -> None:
    replicates = np.array([0.0] * 30 + [1.0] * 60 + [2.0] * 10)
    assert stats._median_bias(replicates, 1.0) == pytest.approx(scipy.stats.norm.ppf(0.6))


def test_bca_interval_repeats_and_ignores_order() -> None:
    x = np.random.default_rng(0).normal(size=12)
    first = stats.bca_interval(x, resamples=500)
    assert first == stats.bca_interval(x[::-1], resamples=500)
    assert first != stats.bca_interval(x, resamples=500, seed=1)
    assert first.low <= first.estimate <= first.high


def test_bca_interval_of_a_constant_is_that_constant() -> None:
    got = stats.bca_interval([2.5] * 10, row_mean, resamples=50)
    assert (got.estimate, got.low, got.high) == (2.5, 2.5, 2.5)


def test_bca_interval_refuses_small_samples_and_no_resamples() -> None:
    with pytest.raises(ValueError, match="sample of 10"):
        stats.bca_interval(range(9))
    with pytest.raises(ValueError, match="resamples"):
        stats.bca_interval(range(10), resamples=0)


# Paired tests

PairedTest = Callable[[list[float], str], float]
paired_tests = pytest.mark.parametrize("test", [stats.wilcoxon_signed_rank, stats.sign_flip_test])
alternatives = pytest.mark.parametrize("alternative", stats.ALTERNATIVES)


@alternatives
@prop
@given(d=samples(1))
def test_wilcoxon_enumerates_the_sign_flips_of_the_ranks(alternative: str, d: list[float]) -> None:
    weights = [r if v else 0.0 for r, v in zip(mid_ranks(d), d, strict=True)]
    expected = brute_force_p(weights, d, alternative)
    assert stats.wilcoxon_signed_rank(d, alternative) == pytest.approx(expected, rel=1e-12)


@alternatives
@prop
@given(d=st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=9))
def test_sign_flip_test_enumerates_the_sign_flips(alternative: str, d: list[float]) -> None:
    expected = brute_force_p([abs(v) for v in d], d, alternative)
    assert stats.sign_flip_test(d, alternative) == pytest.approx(expected, rel=1e-12)


@alternatives
@pytest.mark.parametrize("n", [1, 5, 20, 50])
def test_wilcoxon_is_scipys_without_ties(alternative: str, n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    expected = scipy.stats.wilcoxon(d, alternative=alternative, method="exact").pvalue
    assert stats.wilcoxon_signed_rank(d, alternative) == pytest.approx(expected, rel=1e-9)


@alternatives
def test_sign_flip_test_is_scipys(alternative: str) -> None:
    d = np.random.default_rng(3).normal(0.4, 1.0, 10)
    theirs = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
    )
    assert stats.sign_flip_test(d, alternative) == pytest.approx(theirs.pvalue, rel=1e-9)


@paired_tests
@prop
@given(d=samples(1, 18), data=st.data())
def test_paired_tests_ignore_order_and_mirror(
    test: PairedTest, d: list[float], data: st.DataObject
) -> None:
    greater = test(d, "greater")
    assert test([-v for v in d], "less") == greater
    assert test(data.draw(st.permutations(d)), "greater") == greater
    assert 0 < greater <= 1
    assert test(d, "two-sided") == min(1.0, 2 * min(greater, test(d, "less")))


@paired_tests
@prop
@given(d=st.lists(small_integer, min_size=1, max_size=8), shift=st.integers(0, 4))
def test_paired_tests_are_monotone_in_a_shift(test: PairedTest, d: list[float], shift: int) -> None:
    assert test([v + shift for v in d], "greater") <= test(d, "greater") + 1e-12


@paired_tests
@pytest.mark.parametrize("n", [1, 5, 7, 16])
def test_smallest_p_is_one_flip_in_all(test: PairedTest, n: int) -> None:
    assert test([0.1] * n, "greater") == 2.0**-n
    assert test([0.1] * n, "two-sided") == 2.0 ** (1 - n)
    assert test([0.1] * n, "less") == 1.0


@paired_tests
@alternatives
def test_zeros_are_no_evidence(test: PairedTest, alternative: str) -> None:
    assert test([0.0] * 6, alternative) == 1.0
    assert test([0.0], alternative) == 1.0


@paired_tests
def test_paired_tests_refuse(test: PairedTest) -> None:
    for d in ([], [math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="needs"):
            test(d, "greater")
    with pytest.raises(ValueError, match="unknown alternative"):
        test([1.0], "upward")


def test_a_worse_value_gives_wilcoxon_no_stronger_evidence() -> None:
    rest = [2.0, 3, 4, 6, 7, 8, 9, 11, 14, 15, 17, -18]
    at_zero = stats.wilcoxon_signed_rank([0.0, *rest], "greater")
    below_zero = stats.wilcoxon_signed_rank([-1.0, *rest], "greater")
    zero_dropped = stats.wilcoxon_signed_rank(rest, "greater")
    assert at_zero < below_zero < zero_dropped


def test_wilcoxon_at_sixty_pairs_approaches_the_normal() -> None:
    d = np.random.default_rng(0).normal(0.2, 1.0, 60)
    expected = scipy.stats.wilcoxon(d, method="asymptotic").pvalue
    assert stats.wilcoxon_signed_rank(d) == pytest.approx(expected, rel=0.02)


def test_rounding_does_not_break_ties_of_the_sign_flip_test() -> None:
    assert stats.sign_flip_test([0.1, 0.2, -0.3], "greater") == 5 / 8


def test_random_sign_flips_are_seeded_never_zero_and_near_exact() -> None:
    strong = [1.0 + 0.01 * i for i in range(40)]
    assert stats.sign_flip_test(strong, "greater", resamples=999) == 1 / 1000
    d = np.random.default_rng(5).normal(0.25, 1.0, 17)
    got = stats.sign_flip_test(d, "greater")
    assert got == stats.sign_flip_test(d, "greater")
    assert got != stats.sign_flip_test(d, "greater", seed=1)
    flips = stats._all_flips(np.abs(d))
    assert got == pytest.approx(np.mean(flips >= d.sum() - 1e-9), abs=0.005)


@alternatives
@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (5, 0), (0, 5), (4, 1), (30, 12), (700, 600)])
def test_sign_test_is_scipys(alternative: str, wins: int, losses: int) -> None:
    expected = scipy.stats.binomtest(wins, wins + losses, alternative=alternative).pvalue
    assert stats.sign_test(wins, losses, alternative) == pytest.approx(expected, rel=1e-9)


def test_sign_test_without_decided_pairs_and_with_impossible_ones() -> None:
    assert stats.sign_test(0, 0, "greater") == 1.0
    with pytest.raises(ValueError, match="negative"):
        stats.sign_test(-1, 3)
    with pytest.raises(ValueError, match="unknown alternative"):
        stats.sign_test(1, 3, "more")


# Hodges-Lehmann


@prop
@given(samples(1))
def test_hodges_lehmann_is_the_median_of_the_pairwise_means(d: list[float]) -> None:
    pairs = itertools.combinations_with_replacement(d, 2)
    expected = np.median([(a + b) / 2 for a, b in pairs])
    assert stats.hodges_lehmann(d) == pytest.approx(expected, abs=1e-9)
    assert stats.hodges_lehmann([-v for v in d]) == pytest.approx(-expected, abs=1e-9)


@pytest.mark.parametrize("n", [6, 9, 12])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_hodges_lehmann_interval_keeps_what_wilcoxon_keeps(n: int, level: float) -> None:
    d = np.random.default_rng(n).normal(size=n)
    got = stats.hodges_lehmann_interval(d, level)
    tail = (1 - level) / 2
    for shift, kept in ((got.low + 1e-9, True), (got.low - 1e-9, False)):
        assert (stats.wilcoxon_signed_rank(d - shift, "greater") > tail) == kept
    for shift, kept in ((got.high - 1e-9, True), (got.high + 1e-9, False)):
        assert (stats.wilcoxon_signed_rank(d - shift, "less") > tail) == kept
    assert got.low <= got.estimate <= got.high


@pytest.mark.parametrize(("n", "bounded"), [(1, False), (5, False), (6, True)])
def test_hodges_lehmann_interval_needs_six_values_for_95_percent(n: int, bounded: bool) -> None:
    got = stats.hodges_lehmann_interval(range(n))
    assert math.isfinite(got.low) == math.isfinite(got.high) == bounded
    if bounded:
        assert (got.low, got.high) == (0.0, 5.0)


@prop
@given(samples(6, 12))
def test_hodges_lehmann_interval_grows_with_level(d: list[float]) -> None:
    wide, narrow = (stats.hodges_lehmann_interval(d, level) for level in (0.95, 0.8))
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high


# The rest


@prop
@given(samples(1), samples(1))
def test_probability_of_improvement_is_mann_whitneys_u(a: list[float], b: list[float]) -> None:
    u = scipy.stats.mannwhitneyu(a, b, method="asymptotic").statistic
    got = stats.probability_of_improvement(a, b)
    assert got == pytest.approx(u / (len(a) * len(b)))
    assert got + stats.probability_of_improvement(b, a) == pytest.approx(1.0)


@prop
@given(samples(2), samples(2))
def test_hedges_g_changes_sign_with_the_sides_and_not_with_the_unit(
    a: list[float], b: list[float]
) -> None:
    got = stats.hedges_g(a, b)
    if got is None:
        assert stats.hedges_g(b, a) is None
        return
    assert stats.hedges_g(b, a) == pytest.approx(-got)
    assert stats.hedges_g([8 * v for v in a], [8 * v for v in b]) == pytest.approx(got)


def test_hedges_g_by_hand() -> None:
    # Both sides have a standard deviation of 1; 4 degrees of freedom correct by 1 - 3 / 15.
    assert stats.hedges_g([3, 4, 5], [1, 2, 3]) == pytest.approx(2 * 0.8)
    assert stats.hedges_g([1, 1, 1], [2, 2, 2]) is None
    assert stats.hedges_g([0.1 + 0.2] * 2, [0.3] * 2) is None
    assert stats.hedges_g([1.0], [1.0, 2.0]) is None


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []
    assert stats.holm([0.2, 0.9]) == pytest.approx([0.4, 0.9])


@prop
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.data())
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(
    p: list[float], data: st.DataObject
) -> None:
    adjusted = stats.holm(p)
    for raw, q in zip(p, adjusted, strict=True):
        assert raw <= q <= min(1.0, raw * len(p))
    order = data.draw(st.permutations(range(len(p))))
    assert stats.holm([p[i] for i in order]) == [adjusted[i] for i in order]


@pytest.mark.parametrize("p", [[math.nan], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_probability(p: list[float]) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        stats.holm(p)


def test_import_is_light() -> None:
    code = "import sys, suite.verdict; print({'torch', 'scipy', 'ray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
