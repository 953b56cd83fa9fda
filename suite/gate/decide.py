"""From paired timings to a verdict: slower, faster, the same, or not to be told from these.

One value a pair of processes, y = ln(candidate / base); what is repeated inside a process is noise
of that process and never counts as n. All tests are exact and of ranks, so that one slow pair
cannot decide, and the margin keeps a real but trifling change from failing anybody's build.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtri

from suite.stats import hodges_lehmann_interval, holm, wilcoxon_signed_rank

# The least change that is worth an alarm, and the noise from which on a benchmark raises none.
LEAST_MARGIN, MOST_MARGIN = 0.02, 0.10
ALPHA = 0.01
ALPHA_SAME = 0.05
POWER = 0.80
# One-sided O'Brien-Fleming at .05, three equally spaced looks (Jennison & Turnbull 2000, ch. 2).
LOOKS = {10: 0.0015, 20: 0.0181, 30: 0.0436}
# Of the signed-rank test beside the t test, for normal differences (Hodges & Lehmann 1956).
EFFICIENCY = 3 / math.pi
FEWEST_FOR_FLOOR = 6
# What would take more is not worth anybody's time.
MOST_PAIRS = 200

REGRESSED, IMPROVED, UNCHANGED = "REGRESSED", "IMPROVED", "UNCHANGED"
INCONCLUSIVE, INFORMATIONAL = "INCONCLUSIVE", "INFORMATIONAL"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What pairs of timings say of one benchmark. All changes are fractions: 0.1 is 10 % slower.

    Attributes:
        verdict: REGRESSED, IMPROVED, UNCHANGED, INCONCLUSIVE, or INFORMATIONAL for a benchmark
            whose own noise is beyond any margin worth having.
        change: the Hodges-Lehmann estimate.
        low, high: its 95 % interval, by inversion of the exact signed-rank test.
        pairs: how many pairs there are.
        margin: the change below which nothing is called one.
        p_slower, p_faster: of the exact one-sided tests against the margin, after Holm.
        detectable: the least slowdown that as many pairs of this spread find in 80 % of sessions of
            as many benchmarks.
        more_pairs: how many more would probably settle it; None where it is settled or where
            none would, because the change lies on the margin.
        why: what a reader should know besides.
    """

    verdict: str
    change: float
    low: float
    high: float
    pairs: int
    margin: float
    p_slower: float
    p_faster: float
    detectable: float
    more_pairs: int | None
    why: str = ""

    @property
    def gated(self) -> bool:
        """Whether this benchmark can fail a session."""
        return self.verdict != INFORMATIONAL


def decide(
    pairs: Mapping[str, Sequence[float]],
    floors: Mapping[str, float] | None = None,
    alpha: float = ALPHA,
) -> dict[str, Decision]:
    """Judge the benchmarks of a session together: the alarms of all are one family (Holm).

    Args:
        pairs: benchmark -> ln(candidate / base) of each pair.
        floors: benchmark -> how far its A/A pairs lie from no change, as a fraction.
        alpha: the chance of any false REGRESSED in the session, and of any false IMPROVED.

    Raises:
        ValueError: a benchmark without pairs, or a value that is not finite.
    """
    margins = {name: margin((floors or {}).get(name)) for name in pairs}
    judged = [name for name in pairs if margins[name] is not None]
    slower = _adjusted(pairs, judged, margins, "greater")
    faster = _adjusted(pairs, judged, margins, "less")
    share = alpha / max(1, len(judged))
    return {
        name: _decided(pairs[name], margins[name], slower.get(name), faster.get(name), alpha, share)
        for name in pairs
    }


def margin(floor: float | None) -> float | None:
    """The margin of a benchmark with this floor; None where it is too noisy to be gated."""
    if floor is None:
        return LEAST_MARGIN
    return None if floor > MOST_MARGIN else max(LEAST_MARGIN, floor)


def floor(pairs: Sequence[float]) -> float | None:
    """How far from no change pairs of the same code lie, as a fraction; None for too few.

    The farther end of the 95 % interval of the shift: a bias that pairing did not remove.
    """
    if len(pairs) < FEWEST_FOR_FLOOR:
        return None
    found = hodges_lehmann_interval(pairs)
    return math.expm1(max(abs(found.low), abs(found.high)))


def detectable(
    y: Sequence[float], pairs: int, m: float | None = None, share: float = ALPHA
) -> float:
    """The least slowdown that so many pairs which vary like these find in 80 % of sessions.

    Args:
        y: ln(candidate / base) of pairs.
        pairs: of a session.
        m: its margin; the least one when None.
        share: the level that the session leaves for this benchmark.
    """
    needed = -(ndtri(share) + ndtri(1 - POWER))
    edge = math.log1p(LEAST_MARGIN if m is None else m)
    return math.expm1(edge + needed * _spread(y) / math.sqrt(EFFICIENCY * pairs))


def fewest_pairs(alpha: float) -> int:
    """With fewer, no timings whatever can reject: p is at least 2^-n."""
    return math.ceil(-math.log2(alpha))


def _adjusted(
    pairs: Mapping[str, Sequence[float]],
    judged: Sequence[str],
    margins: Mapping[str, float | None],
    alternative: str,
) -> dict[str, float]:
    sign = 1.0 if alternative == "greater" else -1.0
    p = [
        wilcoxon_signed_rank(
            np.asarray(pairs[n]) - sign * math.log1p(margins[n] or 0.0), alternative
        )
        for n in judged
    ]
    return dict(zip(judged, holm(p) if p else [], strict=True))


def _decided(
    y: Sequence[float],
    m: float | None,
    p_slower: float | None,
    p_faster: float | None,
    alpha: float,
    share: float,
) -> Decision:
    found = hodges_lehmann_interval(y)
    edge = math.log1p(LEAST_MARGIN if m is None else m)
    verdict, more, why = INFORMATIONAL, None, "noisier than any margin worth having"
    if m is not None and p_slower is not None and p_faster is not None:
        verdict = _verdict(y, edge, p_slower, p_faster, alpha)
        more = (
            _more(found.estimate, edge, _spread(y), len(y), share)
            if verdict == INCONCLUSIVE
            else None
        )
        why = ""
        if verdict == INCONCLUSIVE and 2.0 ** -len(y) > share:
            why = f"{len(y)} pairs cannot tell: it takes {fewest_pairs(share)}"
    return Decision(
        verdict=verdict,
        change=math.expm1(found.estimate),
        low=math.expm1(found.low) if math.isfinite(found.low) else -1.0,
        high=math.expm1(found.high) if math.isfinite(found.high) else math.inf,
        pairs=len(y),
        margin=LEAST_MARGIN if m is None else m,
        p_slower=1.0 if p_slower is None else p_slower,
        p_faster=1.0 if p_faster is None else p_faster,
        detectable=detectable(y, len(y), m, share),
        more_pairs=more,
        why=why,
    )


def _verdict(
    y: Sequence[float], edge: float, p_slower: float, p_faster: float, alpha: float
) -> str:
    if p_slower <= alpha:
        return REGRESSED
    if p_faster <= alpha:
        return IMPROVED
    values = np.asarray(y)
    inside = max(
        wilcoxon_signed_rank(values - edge, "less"), wilcoxon_signed_rank(values + edge, "greater")
    )
    return UNCHANGED if inside <= ALPHA_SAME else INCONCLUSIVE


def _spread(y: Sequence[float]) -> float:
    """A standard deviation that a few stray pairs do not govern."""
    quartiles = np.quantile(y, [0.25, 0.75])
    return float((quartiles[1] - quartiles[0]) / (2 * -ndtri(0.25)))


def _more(estimate: float, edge: float, spread: float, n: int, alpha: float) -> int | None:
    """How many pairs more would settle a change of this size in 80 % of sessions, or None."""
    gap = abs(abs(estimate) - edge)
    level = alpha if abs(estimate) > edge else ALPHA_SAME
    if gap < 0.1 * edge:
        return None
    wanted = ((ndtri(level) + ndtri(1 - POWER)) * spread / gap) ** 2 / EFFICIENCY
    more = max(1, math.ceil(wanted) - n, fewest_pairs(level) - n)
    return more if more <= MOST_PAIRS else None
