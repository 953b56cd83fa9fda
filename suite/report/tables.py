"""From records to judged rows: pure, and the same for records in any order."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from suite.record import Record
from suite.report.series import STEPS_TO_TARGET, Group, Series, Values, group, rank
from suite.report.text import NONE, duration, flat, goal, interval, number, plural
from suite.stats import Interval, clopper_pearson, t_interval
from suite.task import Claim, Target
from suite.verdict import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN_TOLERANCE,
    Verdict,
    judge_claim,
    judge_target,
)

REFUSED = "REFUSED"
NO_TARGET = "NO TARGET"
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
    NOT_RUN: ("·", "Claimed, but at least one of the two sides has not been run."),
}
UNFAVOURABLE = (NOT_REPRODUCED, CONTRADICTED)


@dataclass(frozen=True)
class Row:
    """One series against its target.

    Attributes:
        group: the task and profile it belongs to.
        series: the runs.
        metric: what is shown: the target's metric, or that of the task's other variants.
        verdict: the judgement, None where there is no target.
    """

    group: Group
    series: Series
    metric: str | None
    verdict: Verdict | None

    @property
    def target(self) -> Target | None:
        """The target of the variant, or None."""
        return self.series.target

    @property
    def word(self) -> str:
        """A key of LEGEND."""
        if self.verdict is None:
            return NO_TARGET
        return REFUSED if _refused(self.group, [self.series]) else self.verdict.verdict

    @property
    def why(self) -> str:
        """What to know beside the verdict; empty where there is nothing to add."""
        if self.word == REFUSED:
            return _refusal([self.series])
        if self.verdict is None or self.word == REPRODUCED:
            return ""
        return self.verdict.detail

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
        """Steps to target: the median over the seeds that reached it, and how many did."""
        return reached(self.crossings)

    @property
    def to_target_s(self) -> float | None:
        """Training time to target, the median over the seeds that reached it."""
        found = [(r.train.train_to_target_s if r.train else None) for r in self.series.finished]
        return self.series.median(found) if self.target and self.target.mode != "near" else None

    @property
    def train_s(self) -> float | None:
        """Training time, the median over the seeds that finished."""
        return self.series.median(r.clock.train_s for r in self.series.finished)

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
        return ("‡" if self.series.contended else "") + ("§" if self.mixed_machines else "")

    @property
    def mixed_machines(self) -> bool:
        """Whether the times come from more than one kind of machine."""
        return len(self.series.machines) > 1


@dataclass(frozen=True)
class ClaimRow:
    """One claim under one profile.

    Attributes:
        group: the task and profile it belongs to.
        claim: what is claimed.
        left: the runs claimed to be better, or None.
        right: the runs compared with, a number, or None.
        verdict: the judgement, None where a side has not been run.
    """

    group: Group
    claim: Claim
    left: Series | None
    right: Series | float | None
    verdict: Verdict | None

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
        """The task's own note on the verdict, and what decided it."""
        if self.word == REFUSED:
            return _refusal(self.sides)
        if self.verdict is None:
            missing = [n for n, s in self._named if s is None]
            return f"Not run under this profile: {', '.join(missing)}."
        detail = "" if self.word == REPRODUCED else self.verdict.detail
        return ". ".join(filter(None, (self.claim.note.rstrip(". "), detail)))

    @property
    def _named(self) -> list[tuple[str, Series | float | None]]:
        return [(self.claim.left, self.left), (str(self.claim.right), self.right)]

    @property
    def impl(self) -> str:
        """The implementation and the device of the runs."""
        return computed_by(self.sides[0]) if self.sides else NONE

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

    def _measured(self, side: Series | float | None) -> str:
        if not isinstance(side, Series):
            return NONE
        values = side.values(self.claim.metric)
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


@dataclass(frozen=True)
class Tables:
    """Everything that a set of training records says."""

    rows: tuple[Row, ...]
    claims: tuple[ClaimRow, ...]
    tasks: tuple[TaskRow, ...]

    @property
    def profiles(self) -> list[str]:
        """The profiles that occur, the book's own first."""
        return sorted({r.group.profile for r in self.rows}, key=rank)

    @property
    def chapters(self) -> list[int]:
        """The chapters that occur."""
        return sorted({t.chapter for t in self.tasks})

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> number of rows and claims, in the order of LEGEND."""
        found = Counter([r.word for r in self.rows] + [c.word for c in self.claims])
        return {word: found[word] for word in LEGEND if found[word]}


@dataclass(frozen=True)
class Line:
    """One verdict as a line for the terminal."""

    task: str
    profile: str
    what: str
    measured: str
    goal: str
    met: str
    verdict: str
    why: str


def derive(records: Iterable[Record]) -> Tables:
    """Sort records into series, and judge them."""
    groups = [g for g in group(records) if g.series]
    rows = tuple(row for g in groups for row in _rows(g))
    claims = tuple(row for g in groups for row in _claim_rows(g))
    by_task: dict[str, list[Group]] = {}
    for g in groups:
        by_task.setdefault(g.task, []).append(g)
    tasks = tuple(_task_row(found, rows, claims) for found in by_task.values())
    return Tables(rows, claims, tasks)


def summary(tables: Tables, tasks: Iterable[str] | None = None) -> list[Line]:
    """The verdicts on targets and claims, one line each, for a terminal.

    Args:
        tables: what ``derive`` returns.
        tasks: only these task ids; all when None.
    """
    wanted = {t.task for t in tables.tasks} if tasks is None else set(tasks)
    lines = []
    for t in tables.tasks:
        if t.task in wanted:
            lines += [_line(r) for r in tables.rows if r.group.task == t.task and r.verdict]
            lines += [_claim_line(c) for c in tables.claims if c.group.task == t.task]
    return lines


def label(word: str) -> str:
    """A verdict as a table shows it."""
    return "REFUSED: stand-in data" if word == REFUSED else word


def computed_by(series: Series) -> str:
    """The implementation and the device."""
    return f"{series.any.impl}, {series.device}"


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


def _rows(g: Group) -> list[Row]:
    rows = []
    for series in g.series:
        target = series.target
        metric = target.metric if target else g.metric
        judged = judge_target([*series.values(target.metric).values()], target) if target else None
        rows.append(Row(g, series, metric, judged))
    return rows


def _claim_rows(g: Group) -> list[ClaimRow]:
    """Each claim under each implementation that both sides were run with, or as not run."""
    plain = [s for s in g.series if not s.overrides]
    rows = []
    for claim in g.claims:
        sides: dict[str, dict[str, Series]] = {}
        for s in plain:
            if s.any.variant in (claim.left, claim.right):
                sides.setdefault(computed_by(s), {}).setdefault(s.any.variant, s)
        found = [_claim_row(g, claim, sides[key]) for key in sorted(sides)]
        judged = [row for row in found if row.verdict]
        rows += judged or found[:1] or [_claim_row(g, claim, {})]
    return rows


def _claim_row(g: Group, claim: Claim, sides: dict[str, Series]) -> ClaimRow:
    left = sides.get(claim.left)
    right = sides.get(claim.right) if isinstance(claim.right, str) else float(claim.right)
    if left is None or right is None:
        return ClaimRow(g, claim, left, right, None)
    other = right.values(claim.metric) if isinstance(right, Series) else right
    judged = judge_claim(left.values(claim.metric), other, claim)
    return ClaimRow(g, claim, left, right, judged)


def _task_row(groups: list[Group], rows: Iterable[Row], claims: Iterable[ClaimRow]) -> TaskRow:
    task = groups[0].task
    headline: dict[str, Row] = {}
    for row in sorted((r for r in rows if r.group.task == task), key=_speaks):
        headline.setdefault(row.group.profile, row)
    found = Counter(c.word for c in claims if c.group.task == task)
    return TaskRow(tuple(groups), headline, {w: found[w] for w in LEGEND if found[w]})


def _speaks(row: Row) -> tuple[bool, bool, int]:
    """Sorts the row first that speaks for its task: unchanged, judged, the default variant.

    The sort is stable, and rows come with the default variant first.
    """
    torch_first = int(row.series.any.impl != "torch")
    return bool(row.series.overrides), row.verdict is None, torch_first


def _refused(g: Group, sides: Iterable[Series]) -> bool:
    return g.profile == "paper" and any(s.standin for s in sides)


def _refusal(sides: Iterable[Series]) -> str:
    names = sorted({name for s in sides for name, kind in s.data if kind == "standin"})
    return f"The paper profile needs the book's own data; {', '.join(names)} is a stand-in."


def _line(row: Row) -> Line:
    s = row.series
    return Line(
        task=row.group.task,
        profile=row.group.profile,
        what=flat(f"{s.label} ({computed_by(s)})"),
        measured=flat(f"{row.metric} {interval(row.measured)}"),
        goal=goal(row.target),
        met=row.met,
        verdict=label(row.word),
        why=flat(row.why),
    )


def _claim_line(row: ClaimRow) -> Line:
    return Line(
        task=row.group.task,
        profile=row.group.profile,
        what=flat(row.claim.text),
        measured=flat(f"{row.claim.metric}: {row.left_text}"),
        goal=flat(row.right_text),
        met=row.pairs,
        verdict=label(row.word),
        why=flat(row.why),
    )


def times(row: Row) -> str:
    """Training time over the seeds, with its footnotes."""
    return duration(row.train_s) + row.marks


def left_out(g: Group) -> str:
    """The sentence on records of earlier versions; empty where there are none."""
    if not g.older:
        return ""
    versions = plural(g.older_versions, "earlier version")
    return f"{g.profile}: {plural(g.older, 'record')} of {versions} of this task left out."
