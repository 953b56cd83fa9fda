"""How many seeds a comparison needs, from how much stored runs vary.

Two arms of n runs each are to be told apart: the runs of today and those of a change that makes
a difference of a given size. The number of seeds is that of the two-sample t test at 5 %,
two-sided, that finds the difference with the power asked for; the power is exact, by the
noncentral t distribution. Steps and times are compared on the log scale, as ratios.

The spread of a handful of runs is itself uncertain, and a plan that takes it at its word fails
half the time. Hence two answers: for the spread as it was seen, and for the upper end of its
one-sided 80 % confidence interval (Browne 1995, "On the use of a pilot sample for sample size
determination"), which is the one to plan with.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from suite.report.rows import ClaimRow, Row
from suite.report.series import STEPS_TO_TARGET, Series
from suite.verdict import ALPHA, FEWEST_RUNS, INCONCLUSIVE, NOT_REPRODUCED

# A question that needs more runs than this will not be asked.
MOST = 100_000
# Five pairs that agree are the fewest that the exact sign-flip test can believe (1/32).
FEWEST_PAIRS = 5
CAUTION = 0.8
MOST_OFFSET = 37.0


@dataclass(frozen=True)
class Effect:
    """The difference to be found.

    Attributes:
        size: a share of the mean where ``relative``, else a number in the metric's own unit.
        relative: which of the two.
    """

    size: float
    relative: bool

    def __str__(self) -> str:
        return f"{100 * self.size:g} %" if self.relative else f"{self.size:g}"


@dataclass(frozen=True)
class Need:
    """What it takes to find the difference in one quantity of one series.

    Attributes:
        variant: the variant, with what was changed by hand.
        impl: the implementation and the device.
        profile: the profile.
        quantity: the metric, ``steps_to_target``, ``train_to_target_s`` or ``train_s``.
        n: how many seeds the spread rests on.
        mean: their mean; the geometric mean of steps and times.
        spread: their standard deviation as a share of the mean; None where the mean is 0.
        seeds: seeds an arm, the spread as it was seen; None beyond `MOST`.
        careful: seeds an arm for the upper end of the spread.
        hours: machine time of both arms of ``careful`` runs, one after the other.
    """

    variant: str
    impl: str
    profile: str
    quantity: str
    n: int
    mean: float
    spread: float | None
    seeds: int | None
    careful: int | None
    hours: float | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Settle:
    """What it takes to decide a claim that is open, if the difference is what it seems.

    Attributes:
        claim: what is claimed.
        profile: the profile.
        verdict: INCONCLUSIVE or NOT_REPRODUCED.
        runs: how many pairs of seeds there are, or runs where it is against a number.
        needed: how many would decide it; None where the difference seen speaks for neither side,
            or beyond `MOST`.
    """

    claim: str
    profile: str
    verdict: str
    runs: int
    needed: int | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def parse(text: str) -> Effect:
    """``5%`` as a share of the mean, ``0.01`` as a number in the metric's unit.

    Raises:
        ValueError: another shape, or a size that is not above 0.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(%?)\s*", text)
    try:
        size = float(found[1]) if found else math.nan
    except ValueError:
        size = math.nan
    if found is None or not 0 < size < math.inf:
        raise ValueError(f"--detect {text!r}: write a share above 0 such as 5%, or a number")
    return Effect(size / 100, True) if found[2] else Effect(size, False)


def needs(rows: Iterable[Row], effect: Effect, power: float) -> list[Need]:
    """What it takes for the metric of each series, its steps and its times.

    A difference in the metric's own unit is asked of the metric alone. A quantity that fewer than
    two runs have is left out, because nothing is known of its spread.

    Raises:
        ValueError: a power outside (0.5, 1).
    """
    if not 0.5 < power < 1:
        raise ValueError(f"--power must lie between 0.5 and 1, got {power:g}")
    found = []
    for row in rows:
        for quantity, values, log in _quantities(row, effect.relative):
            if len(values) >= 2:
                found.append(
                    _need(row.series, row.group.profile, quantity, values, log, effect, power)
                )
    return found


def open_claims(claims: Iterable[ClaimRow], power: float) -> list[Settle]:
    """The claims that the runs leave open, and the pairs that would decide them."""
    return [
        Settle(c.claim.text, c.group.profile, c.verdict.verdict, c.verdict.n, _runs(c, power))
        for c in claims
        if c.verdict and c.verdict.verdict in (INCONCLUSIVE, NOT_REPRODUCED)
    ]


def seeds_needed(shift: float, sd: float, power: float) -> int | None:
    """Values an arm with which a two-sided t test at 5 % finds a shift between two arms.

    Args:
        shift: the difference of the means.
        sd: the standard deviation of both arms; 0 is allowed, and needs 2 values.
        power: the probability of finding it.

    Returns:
        At least 2, or None where more than `MOST` are needed.
    """
    return _fewest(lambda n: _two_arms(n, shift, sd), power) if shift > 0 else None


def runs_needed(excess: float, sd: float, power: float) -> int | None:
    """Values with which a one-sided t test at 5 % finds that their mean lies above 0.

    Args:
        excess: the mean.
        sd: the standard deviation; 0 is allowed, and needs 2 values.
        power: the probability of finding it.

    Returns:
        At least 2, or None where more than `MOST` are needed.
    """
    return _fewest(lambda n: _one_arm(n, excess, sd), power) if excess > 0 else None


def upper_sd(sd: float, n: int, confidence: float = CAUTION) -> float:
    """The one-sided upper confidence bound of a normal standard deviation seen in n values."""
    from scipy.special import gammaincinv

    return sd * math.sqrt((n - 1) / (2 * float(gammaincinv((n - 1) / 2, 1 - confidence))))


def _quantities(row: Row, relative: bool) -> Iterable[tuple[str, list[float], bool]]:
    """Name, values, and whether they are compared as ratios."""
    values = [v for v in row.values.values() if v is not None]
    if row.metric:
        yield row.metric, values, False
    if not relative:
        return
    steps = [v for v in row.crossings.values() if v]
    yield STEPS_TO_TARGET, steps, True
    trained = [r.train.train_to_target_s for r in row.series.finished if r.train]
    yield "train_to_target_s", [s for s in trained if s], True
    yield "train_s", [r.clock.train_s for r in row.series.finished if r.clock.train_s > 0], True


def _need(
    series: Series,
    profile: str,
    quantity: str,
    values: list[float],
    log: bool,
    effect: Effect,
    power: float,
) -> Need:
    seen: npt.NDArray[np.float64] = np.log(values) if log else np.asarray(values)
    mean, sd = float(seen.mean()), float(seen.std(ddof=1))
    unit = 1.0 if log or not effect.relative else abs(mean)
    shift = math.log1p(effect.size) if log else effect.size * unit
    spread = sd if log else sd / abs(mean) if mean else None
    plain = seeds_needed(shift, sd, power)
    careful = seeds_needed(shift, upper_sd(sd, len(values)), power)
    each = series.median(r.clock.wall_s for r in series.finished)
    hours = None if careful is None or each is None else 2 * careful * each / 3600
    return Need(
        variant=series.label,
        impl=series.computed_by,
        profile=profile,
        quantity=quantity,
        n=len(values),
        mean=math.exp(mean) if log else mean,
        spread=spread,
        seeds=plain,
        careful=careful,
        hours=hours,
    )


def _runs(row: ClaimRow, power: float) -> int | None:
    """Runs, or pairs of them, that decide a claim, from the differences seen."""
    claim, left, right = row.claim, row.left, row.right
    if claim.ordered or left is None or right is None:
        return None
    values = left.values(claim.metric)
    others = (
        right.values(claim.metric) if isinstance(right, Series) else dict.fromkeys(values, right)
    )
    both = [(values[seed], others[seed]) for seed in sorted(values.keys() & others.keys())]
    sign = 1 if claim.mode == "max" else -1
    gaps = [sign * (a - b) - claim.margin for a, b in both if a is not None and b is not None]
    if len(gaps) < 2:
        return None
    # Either way: a claim whose difference falls short is decided by excluding it.
    found = runs_needed(abs(float(np.mean(gaps))), float(np.std(gaps, ddof=1)), power)
    fewest = FEWEST_PAIRS if isinstance(right, Series) else FEWEST_RUNS
    return None if found is None else max(fewest, found)


def _fewest(power_of: Callable[[int], float], power: float) -> int | None:
    """The least n of at least 2 with enough power, which grows with n."""
    high = 2
    while power_of(high) < power:
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _two_arms(n: int, shift: float, sd: float) -> float:
    """The power of the two-sided two-sample t test of n values a side."""
    from scipy.special import nctdtr, stdtrit

    df, offset = 2 * n - 2, _offset(shift, sd, n / 2)
    edge = float(stdtrit(df, 1 - ALPHA / 2))
    return float(1 - nctdtr(df, offset, edge) + nctdtr(df, offset, -edge))


def _one_arm(n: int, excess: float, sd: float) -> float:
    """The power of the one-sided t test of n differences."""
    from scipy.special import nctdtr, stdtrit

    return float(1 - nctdtr(n - 1, _offset(excess, sd, n), float(stdtrit(n - 1, 1 - ALPHA))))


def _offset(shift: float, sd: float, n: float) -> float:
    """The noncentrality; beyond the limit every test is certain, and the distribution overflows."""
    return MOST_OFFSET if shift * math.sqrt(n) >= MOST_OFFSET * sd else shift / sd * math.sqrt(n)
