"""A series against its target, two series against a claim: what each row of a table says."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from suite.record import Record
from suite.report.series import STEPS_TO_TARGET, Group, Series, Values
from suite.report.text import NONE, duration, interval, number
from suite.stats import (
    Interval,
    clopper_pearson,
    hedges_g,
    probability_of_improvement,
    t_interval,
)
from suite.task import Claim, Target
from suite.verdict import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN_TOLERANCE,
    Verdict,
)

REFUSED = "REFUSED"
NO_TARGET = "NO TARGET"
CHANGED = "CHANGED"
NOT_RUN = "NOT RUN"

# Verdict -> its sign, and what it means, in the order in which they are listed.
LEGEND = {
    REPRODUCED: (
        "✓",
        "The number came back. Even the cautious end of the 95 % confidence bound over the seeds "
        "is at or past the target, so it is not luck.",
    ),
    WITHIN_TOLERANCE: (
        "≈",
        "Not proven to reach the target, but proven to reach the target less the tolerance that "
        "was stated with it before the runs.",
    ),
    NOT_REPRODUCED: (
        "△",
        "The average falls short. The runs vary so much, or are so few, that the target is not "
        "ruled out either.",
    ),
    CONTRADICTED: (
        "✗",
        "The runs say otherwise. Even the generous end of the confidence bound is short of the "
        "target and its tolerance.",
    ),
    INCONCLUSIVE: (
        "?",
        "Too little evidence for any of these: fewer than 3 seeds, too many failed runs, or an "
        "average that is good enough but not proven to be.",
    ),
    REFUSED: (
        "⊘",
        "Not judged. The run read a stand-in for the book's data set, which can never stand for "
        "the book's own result.",
    ),
    NO_TARGET: (
        "–",
        "Not judged. Nobody states a number for this variant; it is there to be compared with.",
    ),
    CHANGED: (
        "≠",
        "Not judged. The runs had other settings than the task's, which stand beside its name, or "
        "ended at the target: they may solve another problem than the one the target is for.",
    ),
    NOT_RUN: ("·", "Claimed, but at least one of the two sides has not been run."),
}


@dataclass(frozen=True)
class Row:
    """One series against its target.

    Attributes:
        group: the task and profile it belongs to.
        series: the runs.
        metric: what is shown: the target's metric, or that of the task's other variants.
        verdict: the judgement, None where there is no target.
        note: why it is what it is, as somebody explained it.
    """

    group: Group
    series: Series
    metric: str | None
    verdict: Verdict | None
    note: str = ""

    @property
    def name(self) -> str:
        """What an explanation calls it."""
        return self.series.label

    @property
    def target(self) -> Target | None:
        """The target of the variant, or None."""
        return self.series.target

    @property
    def word(self) -> str:
        """A key of LEGEND."""
        if self.verdict is None:
            return NO_TARGET
        if self.series.overrides:
            return CHANGED
        return REFUSED if _refused(self.group, [self.series]) else self.verdict.verdict

    @property
    def why(self) -> str:
        """What to know beside the verdict; empty where there is nothing to add."""
        if self.word == REFUSED:
            return _refusal([self.series])
        if self.verdict is None or self.word == REPRODUCED:
            return ""
        if self.word == CHANGED:
            return self.note
        return _sentences(self.note, self.verdict.detail)

    @cached_property
    def values(self) -> Values:
        """Seed -> metric, None for a run without a value."""
        return self.series.values(self.metric) if self.metric else {}

    @cached_property
    def measured(self) -> Interval | None:
        """The mean over the seeds with its 95 % interval."""
        return mean(self.values)

    @cached_property
    def crossings(self) -> Values:
        """Seed -> steps to target; None where it was not reached."""
        return self.series.values(STEPS_TO_TARGET)

    @property
    def attempted(self) -> int:
        """How many seeds were run."""
        return len(self.series.runs)

    @property
    def failed(self) -> int:
        """How many of them came to no value."""
        return sum(self.series.failures.values())

    @property
    def seeds(self) -> str:
        """The number of seeds, and how the others ended."""
        ended = ", ".join(f"{n} {status}" for status, n in self.series.failures.items())
        n = str(self.attempted - self.failed)
        return f"{n} + {self.failed} failed ({ended})" if self.failed else n

    @property
    def met(self) -> str:
        """How many seeds met the target by themselves, with the exact 95 % lower bound."""
        if self.verdict is None:
            return NONE
        k, n = self.verdict.met, self.attempted
        bound = clopper_pearson(k, n, 0.95, side="lower").low
        return f"{k} of {n}" + (f" (≥ {math.floor(100 * bound)} %)" if k else "")

    @property
    def steps(self) -> str:
        """Steps to target: the median over the seeds that reached it, and how many did.

        Two evaluations in a row have to meet it; where none did so before the last one, it says so.
        """
        late = self.verdict.met if self.verdict else 0
        if late and self.crossings and not self.series.median(self.crossings.values()):
            return f"(at the last evaluation, {late} of {len(self.crossings)})"
        return reached(self.crossings)

    @property
    def to_target_s(self) -> float | None:
        """Training time to target, the median over the seeds that reached it."""
        found = [(r.train.train_to_target_s if r.train else None) for r in self.series.finished]
        return self.series.median(found)

    @property
    def train_s(self) -> float | None:
        """Training time, the median over the seeds that finished."""
        return self.series.median(r.clock.train_s for r in self.series.finished)

    @property
    def joules_to_target(self) -> float | None:
        """Energy of the training to target, the median over the seeds that reached it."""
        return self.series.median(r.cost.energy_to_target_j for r in self.series.finished)

    @property
    def usd_to_target(self) -> float | None:
        """Cost of the training to target, the median over the seeds that reached it."""
        return self.series.median(map(_usd_to_target, self.series.finished))

    @property
    def n_params(self) -> int | None:
        """Number of trainable parameters."""
        return max((r.train.n_params or 0 for r in self.series.runs if r.train), default=0) or None

    def peak_bytes(self, place: str) -> int | None:
        """The largest peak of memory on ``cpu`` or ``gpu`` over the seeds."""
        peaks = [r.train.peak_mem_bytes.get(place) or 0 for r in self.series.runs if r.train]
        return max(peaks, default=0) or None

    @property
    def marks(self) -> str:
        """Signs of footnotes that go with the times."""
        mixed = len(self.series.machines) > 1
        return ("‡" if self.series.contended else "") + ("§" if mixed else "")

    @property
    def training(self) -> str:
        """Training time with its footnotes."""
        return duration(self.train_s) + self.marks

    @property
    def to_target(self) -> str:
        """Training time to target with its footnotes."""
        return NONE if self.to_target_s is None else duration(self.to_target_s) + self.marks


@dataclass(frozen=True)
class ClaimRow:
    """One claim under one profile.

    Attributes:
        group: the task and profile it belongs to.
        claim: what is claimed.
        left: the runs claimed to be better, or None.
        right: the runs compared with, a number, or None.
        verdict: the judgement, None where a side has not been run.
        p_holm: its p-value, adjusted for all claims of the task under this profile (Holm); None
            where there is no p-value.
        note: why the verdict is what it is, as somebody explained it; else the task's own note.
    """

    group: Group
    claim: Claim
    left: Series | None
    right: Series | float | None
    verdict: Verdict | None
    p_holm: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """What an explanation calls it."""
        return self.claim.text

    @property
    def sides(self) -> list[Series]:
        """The series that take part."""
        return [s for s in (self.left, self.right) if isinstance(s, Series)]

    @property
    def word(self) -> str:
        """A key of LEGEND."""
        if self.verdict is None:
            return NOT_RUN
        return REFUSED if _refused(self.group, self.sides) else self.verdict.verdict

    @property
    def why(self) -> str:
        """The note on the verdict, and what decided it."""
        if self.word == REFUSED:
            return _refusal(self.sides)
        if self.verdict is None:
            missing = [n for n, s in self._named if s is None]
            # What has run otherwise, on another device say, is not what the other side ran as.
            ran_as = f", as {self.impl}" if self.sides else ""
            return f"Not run under this profile{ran_as}: {', '.join(missing)}."
        detail = "" if self.word == REPRODUCED else self.verdict.detail
        return _sentences(self.note, detail)

    @property
    def _named(self) -> list[tuple[str, Series | float | None]]:
        return [(self.claim.left, self.left), (str(self.claim.right), self.right)]

    @property
    def impl(self) -> str:
        """The implementation and the device of the runs."""
        return self.sides[0].computed_by if self.sides else NONE

    @property
    def left_text(self) -> str:
        """What the left side measured."""
        return f"{self.claim.left}: {self._measured(self.left)}"

    @property
    def right_text(self) -> str:
        """What the right side measured, or the number."""
        if isinstance(self.claim.right, str):
            return f"{self.claim.right}: {self._measured(self.right)}"
        return number(float(self.claim.right))

    @property
    def gap(self) -> tuple[float | None, float | None, float | None]:
        """Left less right over the pairs, with its interval; of ordered claims the share won."""
        if self.verdict is None:
            return None, None, None
        # Against a number the verdict is that on a target, whose estimate is the left's mean.
        other = 0.0 if self.claim.ordered or not isinstance(self.right, float) else self.right
        found = (self.verdict.estimate, self.verdict.low, self.verdict.high)
        estimate, low, high = (None if v is None else v - other for v in found)
        return estimate, low, high

    @property
    def difference(self) -> str:
        """Left less right as text."""
        estimate, low, high = self.gap
        if estimate is None:
            return NONE
        ends = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
        return f"{'won ' if self.claim.ordered else ''}{number(estimate)}{ends}"

    @cached_property
    def g(self) -> float | None:
        """Hedges' g, above 0 where it speaks for the claim; None where it has no meaning."""
        if self.claim.ordered or not all(self._found):
            return None
        size = hedges_g(*([v for v in side if v is not None] for side in self._found))
        return size if size is None or self.claim.mode == "max" else -size

    @cached_property
    def p_better(self) -> float | None:
        """Probability that a run of the left is better than one of the right, whatever its seed.

        It compares every run with every other. A time that was not reached comes last; other
        runs without a value are left out. None where the claim is against a number.
        """
        if not all(self._found):
            return None
        sides = [[*side] for side in self._found]
        if self.claim.ordered:
            late = 1 + max((v for side in sides for v in side if v is not None), default=0.0)
            sides = [[late if v is None else v for v in side] for side in sides]
        left, right = ([v for v in side if v is not None] for side in sides)
        chance = probability_of_improvement(left, right)
        return chance if self.claim.mode == "max" else 1 - chance

    @property
    def effect(self) -> str:
        """Both effect sizes as text."""
        found = {"g": self.g, "P(better)": self.p_better}
        return ", ".join(f"{k} {number(round(v, 3))}" for k, v in found.items() if v is not None)

    @property
    def pairs(self) -> str:
        """In how many pairs of seeds the claim held."""
        if self.verdict is None:
            return NONE
        return f"{self.verdict.met} of {self.verdict.n + self.verdict.failed}"

    @property
    def dirty(self) -> bool:
        """Whether a run was made from a tree with uncommitted changes."""
        return any(s.dirty for s in self.sides)

    @cached_property
    def _found(self) -> tuple[list[float | None], list[float | None]]:
        """The values of both sides; empty for a number, or where no run came to a value."""
        both = [
            [*side.values_for(self.claim).values()] if isinstance(side, Series) else []
            for side in (self.left, self.right)
        ]
        left, right = (
            side if self.claim.ordered or any(v is not None for v in side) else [] for side in both
        )
        return left, right

    def _measured(self, side: Series | float | None) -> str:
        if not isinstance(side, Series):
            return NONE
        values = side.values_for(self.claim)
        return reached(values) if self.claim.ordered else interval(mean(values))


@dataclass(frozen=True)
class TaskRow:
    """One task over all profiles.

    Attributes:
        groups: its profiles, the book's own first.
        headline: profile -> the row that speaks for the task there.
        claims: verdict -> number of claims.
    """

    groups: tuple[Group, ...]
    headline: dict[str, Row]
    claims: dict[str, int]

    @property
    def task(self) -> str:
        """The task's id."""
        return self.groups[0].task

    @property
    def title(self) -> str:
        """What the task's file calls itself; of the newest record of all."""
        return max(self.groups, key=lambda g: (g.newest.ended_utc, g.profile)).title

    @property
    def chapter(self) -> int:
        """The chapter."""
        return self.groups[0].newest.task.chapter

    @property
    def section(self) -> str:
        """The sections that the task covers."""
        return self.groups[0].newest.task.section

    @property
    def is_headline(self) -> bool:
        """Whether it is its chapter's headline task."""
        return any(g.newest.extra.get("headline") is True for g in self.groups)


def label(word: str) -> str:
    """A verdict as a table shows it."""
    return "REFUSED: stand-in data" if word == REFUSED else word


def mean(values: Values) -> Interval | None:
    """Mean over the seeds that have a value, with its 95 % t interval."""
    found = [v for v in values.values() if v is not None]
    return t_interval(found) if found else None


def reached(values: Values) -> str:
    """Steps to target: the median over the seeds that reached it, and how many did."""
    if not values:
        return NONE
    found = sorted(v for v in values.values() if v is not None)
    share = f"({len(found)} of {len(values)} reached)"
    if not found:
        return share
    half = len(found) // 2
    return f"{number((found[half] + found[~half]) / 2)} {share}"


def _usd_to_target(record: Record) -> float | None:
    spent_s = record.train.train_to_target_s if record.train else None
    if record.cost.usd is None or spent_s is None:
        return None
    return record.cost.usd * spent_s / record.clock.wall_s


def _refused(g: Group, sides: Iterable[Series]) -> bool:
    return g.profile == "paper" and any(s.standin for s in sides)


def _refusal(sides: Iterable[Series]) -> str:
    names = sorted({name for s in sides for name, kind in s.data if kind == "standin"})
    return f"The paper profile needs the book's own data; {', '.join(names)} is a stand-in."


def _sentences(*said: str) -> str:
    return ". ".join(filter(None, [*(s.rstrip(". ") for s in said[:-1]), said[-1]]))
