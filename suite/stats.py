"""Intervals and tests for a handful of runs.

Everything here is a pure function of its arguments: the same numbers in any order give the same
answer, and what is random is seeded. The tests are exact for small samples, because five seeds
are what a reader can afford and no asymptotic formula holds for five. A sample that holds NaN or
infinity is an error: a run without a value has to be counted, not averaged.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# scipy.special is imported where it is used: the command line must answer without its import.

DOMAIN = {"linear": (-math.inf, math.inf), "log": (0.0, math.inf), "logit": (0.0, 1.0)}
ALTERNATIVES = ("two-sided", "greater", "less")
EXACT_FLIPS = 16
FEWEST_FOR_BOOTSTRAP = 10


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the point estimate, in the unit of the sample.
        low: lower end; the end of the domain where the sample cannot bound it.
        high: upper end, likewise.
        level: the confidence level of the two-sided interval, or of the one bound.
        n: how many values it rests on.
        scale: the scale that was used in the end: ``linear``, ``log`` or ``logit``.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    scale: str = "linear"


def t_interval(x: npt.ArrayLike, level: float = 0.95, scale: str = "linear") -> Interval:
    """Two-sided Student t interval of a mean.

    On the ``log`` scale the estimate is the geometric mean; it suits times and ratios. ``logit``
    suits proportions near 0 or 1. A value of exactly 0 or 1 has no logit, and any substitute for
    it would decide the result, so such a sample is treated on the linear scale with the ends
    clipped to [0, 1], and the interval's ``scale`` says ``linear``.

    In simulation it covers 95 % within a point where the values are normal on its scale, from 3
    values up, and within two points where they have two even modes, from 5 up. Where one run in
    five fails apart from the rest, no interval of 5 values can know of it: this one covers 79 %,
    of 20 values 93 %.

    Args:
        x: the values, at least one. One value alone bounds nothing: the ends are those of the
            domain.
        level: the probability that the interval covers the mean.
        scale: ``linear``, ``log`` (values above 0) or ``logit`` (values in [0, 1]).

    Raises:
        ValueError: no values, NaN or infinity, a value outside the scale's domain, an unknown
            scale, or a level outside (0, 1).
    """
    _check_open("level", level, 0.0)
    return _t_interval(x, (1 + level) / 2, scale, level)


def lower_bound(x: npt.ArrayLike, confidence: float = 0.95, scale: str = "linear") -> float:
    """One-sided t bound that the mean exceeds with this confidence; see `t_interval`.

    Raises:
        ValueError: as `t_interval`, or a confidence outside (0.5, 1).
    """
    _check_open("confidence", confidence, 0.5)
    return _t_interval(x, confidence, scale, confidence).low


def upper_bound(x: npt.ArrayLike, confidence: float = 0.95, scale: str = "linear") -> float:
    """One-sided t bound that the mean stays below with this confidence; see `t_interval`.

    Raises:
        ValueError: as `t_interval`, or a confidence outside (0.5, 1).
    """
    _check_open("confidence", confidence, 0.5)
    return _t_interval(x, confidence, scale, confidence).high


def clopper_pearson(k: int, n: int, confidence: float = 0.95, side: str = "both") -> Interval:
    """Exact interval of a proportion of which k of n were seen.

    Args:
        k: successes.
        n: trials, at least one.
        confidence: of the two-sided interval, or of the one bound.
        side: ``both``, or ``lower`` for the one-sided lower bound (``high`` is then 1).

    Raises:
        ValueError: counts that are not 0 <= k <= n and n >= 1, an unknown side, or a
            confidence outside (0, 1).
    """
    from scipy.special import betaincinv

    _check_open("confidence", confidence, 0.0)
    if not (n >= 1 and 0 <= k <= n):
        raise ValueError(f"needs 0 <= k <= n and n >= 1, got k={k}, n={n}")
    if side not in ("both", "lower"):
        raise ValueError(f"unknown side {side!r}; allowed: both, lower")
    tail = (1 - confidence) / (2 if side == "both" else 1)
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    bounded = side == "both" and k < n
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if bounded else 1.0
    return Interval(k / n, low, high, confidence, n)


def iqm(x: npt.ArrayLike) -> np.float64 | Floats:
    """Interquartile mean along the last axis: the mean of the middle half.

    The values at the quartiles count by the fraction that lies inside, so that the IQM of 3
    values is not their mean, and n need not be a multiple of 4.

    Raises:
        ValueError: no values, NaN or infinity.
    """
    values = np.asarray(x, dtype=np.float64)
    if values.ndim == 0 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"needs finite values along an axis, got {x!r}")
    n = values.shape[-1]
    rank = np.arange(n)
    weight = np.clip(np.minimum(rank + 1, 0.75 * n) - np.maximum(rank, 0.25 * n), 0, None)
    middle: np.float64 | Floats = np.sort(values, axis=-1) @ (weight / weight.sum())
    return middle


def bca_interval(
    x: npt.ArrayLike,
    statistic: Callable[[Floats], npt.ArrayLike] = iqm,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any statistic, bias-corrected and accelerated (Efron 1987).

    Args:
        x: at least 10 values; with fewer, the bootstrap covers far less than it says.
        statistic: maps an array to the statistic along its last axis.
        level: the nominal coverage.
        resamples: bootstrap samples, drawn at once.
        seed: the same seed gives the same interval, in whatever order the values come.

    Raises:
        ValueError: fewer than 10 values, NaN or infinity, a level outside (0, 1), or
            fewer than one resample.
    """
    from scipy.special import ndtr, ndtri

    _check_open("level", level, 0.0)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    values = _sample(x, FEWEST_FOR_BOOTSTRAP)
    n = values.size
    estimate = float(np.asarray(statistic(values)))
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    replicates = np.asarray(statistic(values[draws]), dtype=np.float64)
    bias = _median_bias(replicates, estimate)
    z = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    # Beyond the pole of the acceleration the quantile is the extreme one, not the opposite one.
    stretch = np.maximum(1 - _acceleration(values, statistic) * z, 1e-9)
    low, high = np.quantile(replicates, ndtr(bias + z / stretch))
    return Interval(estimate, float(low), float(high), level, n)


def wilcoxon_signed_rank(d: npt.ArrayLike, alternative: str = "two-sided") -> float:
    """Exact p-value of the Wilcoxon signed-rank test that d is symmetric around 0.

    The null distribution is that of all 2^n sign flips of the ranks at hand, so it is exact with
    ties, which share their mean rank. Zeros are ranked and then left out (Pratt 1959): if they
    were dropped first, moving the whole sample down could make it look larger.

    Args:
        d: the paired differences, at least one. The work grows with n^3; 60 take milliseconds.
        alternative: ``two-sided``, ``greater`` (d lies above 0) or ``less``.

    Raises:
        ValueError: no values, NaN or infinity, or an unknown alternative.
    """
    values = _sample(d)
    decided = values != 0
    ranks = _doubled_ranks(np.abs(values))[decided]
    null = _flip_distribution(ranks)
    seen = int(ranks[values[decided] > 0].sum())
    return _p_value(null[seen:].sum(), null[: seen + 1].sum(), alternative)


def sign_flip_test(
    d: npt.ArrayLike, alternative: str = "two-sided", resamples: int = 99_999, seed: int = 0
) -> float:
    """P-value of the sign-flip test on the mean: d is symmetric around 0 under the null.

    All 2^n flips are enumerated up to n = 16. Above, random ones are drawn, and the observed one
    is counted among them, so that the p-value stays valid and never is 0 (Phipson & Smyth 2010).

    Args:
        d: the paired differences, at least one.
        alternative: ``two-sided``, ``greater`` (the mean lies above 0) or ``less``.
        resamples: random flips for n above 16.
        seed: of the random flips.

    Raises:
        ValueError: no values, NaN or infinity, or an unknown alternative.
    """
    values = _sample(d)
    magnitudes = np.sort(np.abs(values))
    exact = values.size <= EXACT_FLIPS
    sums = _all_flips(magnitudes) if exact else _random_flips(magnitudes, resamples, seed)
    # Sums that are equal on paper differ by rounding here; they have to count as equal.
    slack = values.size * float(np.finfo(np.float64).eps) * float(magnitudes.sum())
    extra = 0 if exact else 1

    def at_least(threshold: float) -> float:
        return (np.count_nonzero(sums >= threshold - slack) + extra) / (sums.size + extra)

    # The null distribution is symmetric, so P(sum <= s) is P(sum >= -s).
    seen = math.fsum(values)
    return _p_value(at_least(seen), at_least(-seen), alternative)


def sign_test(wins: int, losses: int, alternative: str = "two-sided") -> float:
    """Exact p-value of the sign test; ties are left out by the caller.

    Args:
        wins: pairs that favour the left side.
        losses: pairs that favour the right side. With neither, the p-value is 1.
        alternative: ``two-sided``, ``greater`` (more wins than chance) or ``less``.

    Raises:
        ValueError: negative counts or an unknown alternative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must not be negative, got wins={wins}, losses={losses}")
    n = wins + losses
    ways = [math.comb(n, k) for k in range(n + 1)]
    return _p_value(sum(ways[wins:]) / 2**n, sum(ways[: wins + 1]) / 2**n, alternative)


def hodges_lehmann(d: npt.ArrayLike) -> float:
    """Median of all pairwise means (Walsh averages): the shift the signed-rank test estimates.

    Raises:
        ValueError: no values, NaN or infinity.
    """
    return float(np.median(_walsh_averages(_sample(d))))


def hodges_lehmann_interval(d: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Interval of the Hodges-Lehmann shift: every shift the exact signed-rank test keeps.

    It rests on the distribution without ties; with ties it covers more than it says, never less.
    With too few values for the level (n < 6 at 95 %) nothing is excluded: the ends are infinite.

    Raises:
        ValueError: no values, NaN or infinity, or a level outside (0, 1).
    """
    _check_open("level", level, 0.0)
    values = _sample(d)
    walsh = _walsh_averages(values)
    null = _flip_distribution(2 * np.arange(1, values.size + 1))
    excluded = int(np.count_nonzero(np.cumsum(null[::2]) <= (1 - level) / 2))
    low = float(walsh[excluded - 1]) if excluded else -math.inf
    high = float(walsh[-excluded]) if excluded else math.inf
    return Interval(float(np.median(walsh)), low, high, level, values.size)


def probability_of_improvement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Probability that a value of a exceeds one of b, U / (n_a n_b); ties count half.

    Raises:
        ValueError: no values on a side, NaN or infinity.
    """
    left, right = _sample(a)[:, None], _sample(b)[None, :]
    return float(np.mean((left > right) + 0.5 * (left == right)))


def hedges_g(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """How far a lies above b in standard deviations, corrected for small samples (Hedges' g).

    The unit is the root mean square of the two sides' own standard deviations, so that it does
    not matter how strongly the sides are paired (Lakens 2013, g_av). None where there is no
    spread to measure by: a side of one value, or two constant sides.

    Raises:
        ValueError: no values on a side, NaN or infinity.
    """
    left, right = _sample(a), _sample(b)
    if min(left.size, right.size) < 2:
        return None
    spread = math.sqrt((np.var(left, ddof=1) + np.var(right, ddof=1)) / 2)
    if spread <= 1e-14 * max(np.abs(left).max(), np.abs(right).max()):
        return None
    correction = 1 - 3 / (4 * (left.size + right.size - 2) - 1)
    return float(correction * (left.mean() - right.mean()) / spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Rejecting those at or below alpha keeps the chance of any false rejection below alpha,
    however the tests depend on each other.

    Raises:
        ValueError: a p-value outside [0, 1], or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return [float(q) for q in adjusted]


def _check_open(name: str, value: float, floor: float) -> None:
    if not floor < value < 1:
        raise ValueError(f"{name} must lie strictly between {floor:g} and 1, got {value}")


def _sample(x: npt.ArrayLike, at_least: int = 1) -> Floats:
    """The values sorted, so that rounding cannot depend on the order they came in."""
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or values.size < at_least:
        raise ValueError(f"needs a flat sample of {at_least} or more, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"needs finite values, got {values.tolist()}")
    return np.sort(values)


def _t_interval(x: npt.ArrayLike, confidence: float, scale: str, level: float) -> Interval:
    """Each end bounds the mean with this one-sided confidence; ``level`` is only noted."""
    from scipy.special import stdtrit

    values = _sample(x)
    n = values.size
    used = _usable_scale(values, scale)
    floor, ceiling = DOMAIN[scale]
    if n == 1:
        return Interval(float(values[0]), floor, ceiling, level, n, used)
    if values[0] == values[-1]:
        # A constant has to come back to the bit: it is often compared with itself as a target.
        constant = float(values[0])
        return Interval(constant, constant, constant, level, n, used)
    z = _forward(values, used)
    center = np.mean(z)
    half = stdtrit(n - 1, confidence) * np.std(z, ddof=1) / math.sqrt(n)
    low, estimate, high = np.clip(
        _back(np.array([center - half, center, center + half]), used), floor, ceiling
    )
    return Interval(float(estimate), float(low), float(high), level, n, used)


def _usable_scale(values: Floats, scale: str) -> str:
    """``scale`` if the sorted values allow it, ``linear`` for proportions of exactly 0 or 1."""
    if scale not in DOMAIN:
        raise ValueError(f"unknown scale {scale!r}; allowed: {', '.join(DOMAIN)}")
    if scale == "log" and values[0] <= 0:
        raise ValueError(f"the log scale needs values above 0, got {values[0]:g}")
    if scale == "logit":
        if values[0] < 0 or values[-1] > 1:
            raise ValueError(
                f"the logit scale needs values in [0, 1], got {values[0]:g} to {values[-1]:g}"
            )
        if values[0] == 0 or values[-1] == 1:
            return "linear"
    return scale


def _forward(values: Floats, scale: str) -> Floats:
    if scale == "linear":
        return values
    return np.log(values) - (np.log1p(-values) if scale == "logit" else 0.0)


def _back(z: Floats, scale: str) -> Floats:
    if scale == "linear":
        return z
    # An end beyond the largest float is no bound at all, which infinity says.
    with np.errstate(over="ignore"):
        return np.exp(z) if scale == "log" else 1 / (1 + np.exp(-z))


def _median_bias(replicates: Floats, estimate: float) -> float:
    from scipy.special import ndtri

    below = np.mean((replicates < estimate) + 0.5 * (replicates == estimate))
    edge = 1 / (replicates.size + 1)
    return float(ndtri(np.clip(below, edge, 1 - edge)))


def _acceleration(values: Floats, statistic: Callable[[Floats], npt.ArrayLike]) -> float:
    n = values.size
    others = np.tile(values, (n, 1))[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    jackknife = np.asarray(statistic(others), dtype=np.float64)
    influence = jackknife.mean() - jackknife
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _p_value(at_least: float, at_most: float, alternative: str) -> float:
    if alternative not in ALTERNATIVES:
        raise ValueError(f"unknown alternative {alternative!r}; allowed: {', '.join(ALTERNATIVES)}")
    if alternative == "two-sided":
        return min(1.0, 2 * float(min(at_least, at_most)))
    return min(1.0, float(at_least if alternative == "greater" else at_most))


def _doubled_ranks(magnitudes: Floats) -> npt.NDArray[np.int64]:
    """Mean ranks times two, which are whole numbers with ties too."""
    _, group, count = np.unique(magnitudes, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((2 * last - count + 1)[group], dtype=np.int64)


def _flip_distribution(ranks: npt.NDArray[np.int64]) -> Floats:
    """P(the positive ranks sum to s) for s = 0, 1, ..., when each sign is a fair coin."""
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0] = 1.0
    for rank in ranks:
        chance[rank:] += chance[:-rank].copy()
        chance *= 0.5
    return chance


def _all_flips(magnitudes: Floats) -> Floats:
    sums = np.zeros(1)
    for magnitude in magnitudes:
        sums = np.concatenate([sums - magnitude, sums + magnitude])
    return sums


def _random_flips(magnitudes: Floats, resamples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    sums = np.zeros(resamples)
    for magnitude in magnitudes:
        sums += magnitude * (2.0 * generator.integers(0, 2, resamples) - 1.0)
    return sums


def _walsh_averages(values: Floats) -> Floats:
    first, second = np.triu_indices(values.size)
    return np.sort((values[first] + values[second]) / 2)
