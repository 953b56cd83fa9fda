"""What the times of pairs of processes come to: one value a pair, and which pairs count.

A core whose neighbour computes is up to twice as slow by its own clock too, for tenths of a second
at a time, and a median depends on which side that fell on. What the code itself costs is in every
block, so a pair's value is how far apart the quick ends of the two sides' times lie. A pair of
which a side was hardly ever at its own speed has no quick end: it is taken again, in fresh
processes, and counts only where there is no better. Neither rule knows which side is the slower.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from suite.record import AbArm, AbBlock, AbComparison

# A side is at its speed within so much of its best, and was so if it was in so many visits.
NEAR, AT_SPEED = 1.05, 4
# A pair's speed is that of its third quickest visit, and a side's best that of its third quickest
# pair: the first may be flukes, and a process may be lucky in its memory's layout.
FLUKES = 2
QUICK = np.linspace(0.05, 0.30, 11)  # Of processor and wall times, these quantiles.

# Seconds of wall, processor and GPU of a block's call.
Times = tuple[float, float, float | None]


def arm_of(times: Sequence[Times]) -> AbArm:
    """The blocks of a process as a record has them; of a GPU only where all of them have one."""
    gpu = [t[2] for t in times if t[2] is not None]
    return AbArm(
        wall_s=[t[0] for t in times],
        cpu_s=[t[1] for t in times],
        gpu_s=gpu if len(gpu) == len(times) else None,
    )


def times_of(arm: AbArm, clock: str) -> list[float]:
    """A side's times by the clock that decides."""
    return {"wall": arm.wall_s, "cpu": arm.cpu_s, "gpu": arm.gpu_s or arm.wall_s}[clock]


def log_ratios(blocks: Iterable[AbBlock], control: str = "none") -> dict[str, list[float]]:
    """Benchmark -> ln(candidate / base) of each pair that counts, of all sessions."""
    sessions: dict[str, list[AbBlock]] = {}
    for block in blocks:
        sessions.setdefault(block.session, []).append(block)
    found: dict[str, list[float]] = {}
    for session in sessions.values():
        for (name, kind), taken in counted(session).items():
            if kind == control:
                found.setdefault(name, []).extend(map(log_ratio, taken))
    return found


def log_ratio(c: AbComparison) -> float:
    """ln(candidate / base) of a pair: the median over what their quick times differ by.

    One quantile may lie where a side's times jump, between those of a free and a disturbed core.
    """
    return float(np.median(np.log(_quick(c.cand, c.clock) / _quick(c.base, c.clock))))


def typical(arm: AbArm, clock: str) -> float:
    """A call's time on a side where nothing disturbs it."""
    return float(np.median(_quick(arm, clock)))


def _quick(arm: AbArm, clock: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Quick times of a side; of a GPU, which nothing else uses, the median."""
    return np.quantile(times_of(arm, clock), [0.5] if clock == "gpu" else QUICK)


def counted(blocks: Iterable[AbBlock]) -> dict[tuple[str, str], list[AbComparison]]:
    """Benchmark and control -> the pairs of a session that count, as many as were planned.

    The undisturbed first, whenever they were taken.
    """
    blocks = list(blocks)
    wanted = planned(blocks)
    return {
        key: [pairs[i] for i in choose(was, wanted)] for key, (pairs, was) in _taken(blocks).items()
    }


def choose(was_disturbed: Sequence[bool], wanted: int) -> list[int]:
    """Which of the pairs taken count: as many as wanted, in the order of their taking."""
    order = sorted(range(len(was_disturbed)), key=lambda i: was_disturbed[i])
    return sorted(order[:wanted])


def to_take_again(blocks: Sequence[AbBlock]) -> list[str]:
    """The benchmarks of a session among whose pairs that count are disturbed ones."""
    wanted = planned(blocks)
    return sorted(
        {
            name
            for (name, _), (_, was) in _taken(blocks).items()
            if any(was[i] for i in choose(was, wanted))
        }
    )


def planned(blocks: Iterable[AbBlock]) -> int:
    """How many pairs count: all but those that were taken for disturbed ones."""
    return sum(not b.again for b in blocks)


def _taken(
    blocks: Iterable[AbBlock],
) -> dict[tuple[str, str], tuple[list[AbComparison], list[bool]]]:
    """Benchmark and control -> its pairs, and of each whether it was disturbed."""
    taken: dict[tuple[str, str], list[AbComparison]] = {}
    for block in sorted(blocks, key=lambda b: b.pair):
        for c in block.comparisons:
            taken.setdefault((c.benchmark, c.control), []).append(c)
    return {key: (pairs, disturbed(pairs)) for key, pairs in taken.items()}


def disturbed(pairs: Sequence[AbComparison]) -> list[bool]:
    """Of each pair of a benchmark, whether a side was hardly ever at the best speed it has in them.

    Of a few visits most are needed, and nothing is said of a benchmark that has but one. A GPU is
    nobody else's.
    """
    speeds = Speeds()
    visits = [[_quickest(c.base, c), _quickest(c.cand, c)] for c in pairs]
    for quickest in visits:
        speeds.learn(quickest)
    return [
        c.clock != "gpu" and not speeds.reached(quickest, min(AT_SPEED, len(quickest[0]) // 2))
        for c, quickest in zip(pairs, visits, strict=True)
    ]


def _quickest(arm: AbArm, c: AbComparison) -> list[float]:
    """The quickest block of each visit; a round is two visits, unless there was but one call."""
    times = times_of(arm, c.clock)
    size = max(1, len(times) // (2 * c.rounds))
    return [min(times[i : i + size]) for i in range(0, len(times), size)]


class Speeds:
    """How quick the two sides of a benchmark are when nothing disturbs them, as far as is known."""

    def __init__(self) -> None:
        self.known: tuple[list[float], list[float]] = ([], [])

    @property
    def best(self) -> list[float]:
        """Of the base and of the candidate, as far as pairs have shown."""
        return [_third(known) if known else math.inf for known in self.known]

    def reached(self, quickest: Sequence[Sequence[float]], needed: int = AT_SPEED) -> bool:
        """Whether both were at their speed in so many visits; the two are never compared.

        Args:
            quickest: of the base and of the candidate, the quickest time of each visit.
            needed: how many visits.
        """
        return all(
            sum(t <= NEAR * min(best, _third(times)) for t in times) >= needed
            for best, times in zip(self.best, quickest, strict=True)
        )

    def learn(self, quickest: Sequence[Sequence[float]]) -> None:
        """Keep what a pair showed."""
        for known, times in zip(self.known, quickest, strict=True):
            known.append(_third(times))


def _third(times: Sequence[float]) -> float:
    return sorted(times)[min(FLUKES, len(times) - 1)]
