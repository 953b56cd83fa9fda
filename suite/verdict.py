"""Verdicts: did the number, or the comparison, that the book states come back?

Five words, each of which a run of seeds can earn:

REPRODUCED       the target is met with 95 % confidence, not only on average.
WITHIN_TOLERANCE it is not, but the target less its tolerance is.
CONTRADICTED     the target less its tolerance is excluded with 95 % confidence.
NOT_REPRODUCED   the mean is short, but so little or so uncertainly that nothing is excluded.
INCONCLUSIVE     the mean is good enough but not proven to be; or there is too little to judge by.

**Runs without a value.** A run that crashed or diverged is ``None``. It enters no mean: there is no
number that stands for it. But runs fail where things go badly, so the survivors flatter the
average. Hence every failure is counted and named in ``detail``; and where more than a fifth of
the runs failed, no favourable verdict rests on the rest: it becomes INCONCLUSIVE. An
unfavourable verdict on a target stands, because the survivors are the better runs. In a paired
comparison the failures of the right side flatter the right side, so there every verdict becomes
INCONCLUSIVE.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from suite.stats import Interval, clopper_pearson, sign_flip_test, sign_test, t_interval
from suite.threshold import ROUNDING, Goal, meets, reaches

REPRODUCED: Final = "REPRODUCED"
WITHIN_TOLERANCE: Final = "WITHIN_TOLERANCE"
NOT_REPRODUCED: Final = "NOT_REPRODUCED"
CONTRADICTED: Final = "CONTRADICTED"
INCONCLUSIVE: Final = "INCONCLUSIVE"
VERDICTS: Final = (REPRODUCED, WITHIN_TOLERANCE, NOT_REPRODUCED, CONTRADICTED, INCONCLUSIVE)

CONFIDENCE: Final = 0.95
ALPHA: Final = 0.05
FEWEST_RUNS: Final = 3
FAILED_SHARE: Final = 0.2

_Pair = tuple[float | None, float | None]
_FAVOURABLE: Final = frozenset({REPRODUCED, WITHIN_TOLERANCE})
_DECIDED: Final = frozenset(VERDICTS) - {INCONCLUSIVE}


@dataclass(frozen=True)
class Verdict:
    """What a set of runs says about a target or a claim.

    Attributes:
        verdict: one of `VERDICTS`.
        estimate: mean of the metric (target) or of left - right over pairs (claim), in the
            metric's unit; for an ordered claim the share of untied pairs that the left wins.
            None where no run has a value.
        low: lower end of its two-sided 95 % interval; None where it is unbounded.
        high: upper end, likewise.
        n: runs, or pairs, with a value.
        met: how many of them meet the target, or the claim, on their own.
        failed: runs, or pairs, without a value.
        p: one-sided p-value of the test that decides a claim; None for targets.
        detail: one sentence saying why.
    """

    verdict: str
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    met: int
    failed: int
    p: float | None
    detail: str


class _Claim(Protocol):
    """What `judge_claim` reads of a claim; see `suite.task.Claim`."""

    @property
    def metric(self) -> str: ...
    @property
    def left(self) -> str: ...
    @property
    def right(self) -> str | float: ...
    @property
    def mode(self) -> str: ...
    @property
    def margin(self) -> float: ...
    @property
    def ordered(self) -> bool: ...


@dataclass(frozen=True)
class _Threshold:
    """A target that a claim against a number implies."""

    metric: str
    value: float
    mode: str
    tolerance: float = 0.0


def judge_target(values: Sequence[float | None], target: Goal, scale: str = "linear") -> Verdict:
    """Judge the final metric of several runs against a target.

    ``max`` and ``min``: by the two one-sided 95 % t bounds of the mean, as the module says.
    ``near``, where a printed number must come back: REPRODUCED if both bounds lie within
    value ± tolerance (an equivalence test), CONTRADICTED if they lie wholly outside,
    NOT_REPRODUCED if only the mean does, else INCONCLUSIVE. Fewer than 3 values prove nothing.

    Args:
        values: one per run; None for a run without a value.
        target: metric, value, mode and tolerance.
        scale: on which the mean is taken, ``linear``, ``log`` or ``logit``; see
            `suite.stats.t_interval`.

    Raises:
        ValueError: NaN or infinity, an unknown mode, a negative tolerance, or a value outside
            the domain of the scale.
    """
    _check(target.mode, ("max", "min", "near"), "tolerance", target.tolerance)
    got = _finite(values)
    failed = len(values) - len(got)
    shown = t_interval(got, CONFIDENCE, scale) if got else None
    if len(got) < FEWEST_RUNS:
        outcome, reason = INCONCLUSIVE, _too_few(len(got), "run")
    else:
        # The ends of the two-sided 90 % interval are the one-sided 95 % bounds.
        bounds = t_interval(got, 2 * CONFIDENCE - 1, scale)
        outcome, reason = (_judge_band if target.mode == "near" else _judge_side)(bounds, target)
    outcome, reason = _discount(outcome, reason, failed, len(values), "run", _FAVOURABLE)
    met = sum(meets(v, target) for v in got)
    return _verdict(outcome, shown, len(got), met, failed, None, f"{target.metric}: {reason}")


def judge_claim(
    left: Mapping[int, float | None],
    right: Mapping[int, float | None] | float,
    claim: _Claim,
) -> Verdict:
    """Judge whether the left runs beat the right ones, or a number, by more than a margin.

    Runs are paired by seed, over the seeds that both sides were run with. The decision is the
    exact sign-flip test on the paired differences less the margin, at 5 %, one-sided; the t
    interval of the difference is for display. The t bound does not decide because at five pairs
    it rests on a normality that nobody can check there, and because two identical arms would
    pass it at a margin of 0. The sign-flip test needs only symmetry, and says what five pairs
    can say: all of them agree (p = 1/32), or nothing is proven. Three or four pairs cannot reject.

    CONTRADICTED: the opposite test is significant. NOT_REPRODUCED: the mean difference falls
    short of the margin, not significantly. INCONCLUSIVE otherwise, and below 3 pairs.

    A claim that is ``ordered`` is about a time that may be censored: None then is no failure but
    later than every number, so there is no mean, and the pairs are judged by the exact sign
    test (win, loss, tie; both censored is a tie). Against a number, an unordered claim is a
    target of value ± margin, and an ordered one pairs every run with the number.

    Args:
        left: seed -> metric of the side claimed to be better. None is a run without a value;
            a seed that was never run is absent.
        right: the same for the other side, or a number.
        claim: metric, mode (``max``: the left is the greater), margin and ordered.

    Raises:
        ValueError: NaN or infinity, an unknown mode, or a negative margin.
    """
    _check(claim.mode, ("max", "min"), "margin", claim.margin)
    if not isinstance(right, Mapping):
        if not claim.ordered:
            edge = _edge(right, claim)
            return judge_target([*left.values()], _Threshold(claim.metric, edge, claim.mode))
        right = dict.fromkeys(left, right)
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    return _judge_order(pairs, claim) if claim.ordered else _judge_pairs(pairs, claim)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """1 if anything is contradicted, else 0: being unproven is no failure."""
    return int(any(v.verdict == CONTRADICTED for v in verdicts))


def _judge_side(bounds: Interval, target: Goal) -> tuple[str, str]:
    value, mode = target.value, target.mode
    least = value - target.tolerance if mode == "max" else value + target.tolerance
    ends = (bounds.low, bounds.high)
    worst, best = ends if mode == "max" else ends[::-1]
    goal = f"the target {value:.6g}"
    allowed = f"{goal} less its tolerance {target.tolerance:.6g}" if target.tolerance else goal
    if reaches(worst, value, mode):
        return REPRODUCED, f"the 95 % bound {worst:.6g} is at or past {goal}"
    if reaches(worst, least, mode):
        return WITHIN_TOLERANCE, f"the 95 % bound {worst:.6g} is past {allowed}"
    if not reaches(best, least, mode):
        return CONTRADICTED, f"even the better 95 % bound {best:.6g} is short of {allowed}"
    mean = f"the mean {bounds.estimate:.6g}"
    if not reaches(bounds.estimate, value, mode):
        return NOT_REPRODUCED, f"{mean} is short of {goal}, but the runs do not exclude {allowed}"
    return INCONCLUSIVE, f"{mean} meets {goal}, but its 95 % bound {worst:.6g} does not"


def _judge_band(bounds: Interval, target: Goal) -> tuple[str, str]:
    spread = f"the 90 % interval {bounds.low:.6g} to {bounds.high:.6g}"
    mean = f"the mean {bounds.estimate:.6g}"
    band = f"{target.value:.6g} ± {target.tolerance:.6g}"
    if meets(bounds.low, target) and meets(bounds.high, target):
        return REPRODUCED, f"{spread} lies within {band}"
    below = not reaches(bounds.high, target.value - target.tolerance, "max", ROUNDING)
    above = not reaches(bounds.low, target.value + target.tolerance, "min", ROUNDING)
    if below or above:
        return CONTRADICTED, f"{spread} lies wholly outside {band}"
    if not meets(bounds.estimate, target):
        return NOT_REPRODUCED, f"{mean} is outside {band}, but {spread} reaches into it"
    return INCONCLUSIVE, f"{mean} is within {band}, but {spread} reaches out of it"


def _judge_pairs(pairs: Sequence[_Pair], claim: _Claim) -> Verdict:
    _finite([side for pair in pairs for side in pair])
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    gaps = [_excess(a, _edge(b, claim), claim.mode) for a, b in both]
    shown = t_interval([a - b for a, b in both], CONFIDENCE) if both else None
    n, failed, p = len(both), len(pairs) - len(both), None
    if shown is None or n < FEWEST_RUNS:
        outcome, reason = INCONCLUSIVE, _too_few(n, "pair")
    else:
        p = sign_flip_test(gaps, "greater")
        p_against = sign_flip_test(gaps, "less")
        short = t_interval(gaps).estimate < 0
        evidence = f"the mean difference {shown.estimate:.6g}"
        outcome, reason = _decide(p, p_against, short, evidence, claim)
    outcome, reason = _discount(outcome, reason, failed, len(pairs), "pair", _DECIDED)
    met = sum(gap > 0 for gap in gaps)
    return _verdict(outcome, shown, n, met, failed, p, f"{claim.metric}: {reason}")


def _judge_order(pairs: Sequence[_Pair], claim: _Claim) -> Verdict:
    _finite([side for pair in pairs for side in pair])
    gaps = [_ordered_excess(a, b, claim) for a, b in pairs]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    shown = clopper_pearson(wins, wins + losses, CONFIDENCE) if wins + losses else None
    p = None
    if len(pairs) < FEWEST_RUNS:
        outcome, reason = INCONCLUSIVE, _too_few(len(pairs), "pair")
    else:
        p = sign_test(wins, losses, "greater")
        p_against = sign_test(wins, losses, "less")
        score = f"the score of {wins} won, {losses} lost, {len(pairs) - wins - losses} tied"
        outcome, reason = _decide(p, p_against, losses > wins, score, claim)
    return _verdict(outcome, shown, len(pairs), wins, 0, p, f"{claim.metric}: {reason}")


def _decide(
    p: float, p_against: float, short: bool, evidence: str, claim: _Claim
) -> tuple[str, str]:
    """Verdict of a comparison from its two one-sided tests."""
    margin = f" {claim.margin:.6g}" if claim.margin else ""
    said = f"{claim.left}{margin} {'above' if claim.mode == 'max' else 'below'} {claim.right}"
    if p <= ALPHA:
        return REPRODUCED, f"{evidence} shows {said} (p = {p:.2g})"
    if p_against <= ALPHA:
        return CONTRADICTED, f"{evidence} excludes {said} (p = {p_against:.2g})"
    if short:
        return NOT_REPRODUCED, f"{evidence} speaks against {said} but does not exclude it"
    return INCONCLUSIVE, f"{evidence} does not prove {said} (p = {p:.2g})"


def _discount(
    outcome: str, reason: str, failed: int, total: int, unit: str, untrusted: frozenset[str]
) -> tuple[str, str]:
    """Name the failures, and take back an untrusted verdict if more than a fifth failed."""
    if not failed:
        return outcome, reason
    reason = f"{reason}; {failed} of {total} {unit}s failed"
    if failed <= FAILED_SHARE * total or outcome not in untrusted:
        return outcome, reason
    return INCONCLUSIVE, f"{reason}, too many for {outcome} to rest on the others"


def _verdict(
    outcome: str,
    shown: Interval | None,
    n: int,
    met: int,
    failed: int,
    p: float | None,
    detail: str,
) -> Verdict:
    ends = (shown.estimate, shown.low, shown.high) if shown else (math.inf,) * 3
    estimate, low, high = (end if math.isfinite(end) else None for end in ends)
    return Verdict(outcome, estimate, low, high, n, met, failed, p, detail)


def _check(mode: str, modes: tuple[str, ...], name: str, width: float) -> None:
    if mode not in modes:
        raise ValueError(f"unknown mode {mode!r}; allowed: {', '.join(modes)}")
    if not 0 <= width < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {width}")


def _finite(values: Iterable[float | None]) -> list[float]:
    got = [float(v) for v in values if v is not None]
    for value in got:
        if not math.isfinite(value):
            raise ValueError(f"a run has the value {value}; a run without a value is None")
    return got


def _excess(value: float, edge: float, mode: str) -> float:
    """How far ``value`` is past ``edge``; 0 where only rounding keeps them apart.

    Without that, 0.3 would fall short of 0.1 + 0.2 on every seed, and be excluded for it.
    """
    if math.isclose(value, edge, rel_tol=ROUNDING):
        return 0.0
    return value - edge if mode == "max" else edge - value


def _ordered_excess(left: float | None, right: float | None, claim: _Claim) -> float:
    if left is None or right is None:
        later = (left is None) - (right is None)
        return float(later if claim.mode == "max" else -later)
    return _excess(left, _edge(right, claim), claim.mode)


def _edge(right: float, claim: _Claim) -> float:
    """What the left has to pass."""
    return right + claim.margin if claim.mode == "max" else right - claim.margin


def _too_few(n: int, unit: str) -> str:
    return f"{n} {unit}{'' if n == 1 else 's'} with a value, at least {FEWEST_RUNS} are needed"
