"""From records to judged rows: pure, and the same for records in any order."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from suite.record import Record
from suite.report.explanations import Explanations
from suite.report.rows import LEGEND, ClaimRow, Row, TaskRow, label
from suite.report.series import Group, Series, group, rank
from suite.report.text import flat, goal, interval
from suite.report.versions import Same
from suite.stats import holm
from suite.task import Claim
from suite.verdict import judge_claim, judge_target

Noted = TypeVar("Noted", Row, ClaimRow)


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


def derive(
    records: Iterable[Record], explained: Explanations | None = None, same: Same | None = None
) -> Tables:
    """Sort records into series, and judge them.

    Args:
        records: of training runs, in any order.
        explained: why verdicts are what they are.
        same: which versions of a task count as one.
    """
    groups = [g for g in group(records, same) if g.series]
    said = explained or {}
    rows = tuple(_noted(row, said) for g in groups for row in _rows(g))
    claims = tuple(_noted(row, said) for g in groups for row in _claim_rows(g))
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


def _noted(row: Noted, explained: Explanations) -> Noted:
    note = explained.get((row.group.task, row.group.profile, row.name))
    return row if note is None else replace(row, note=note)


def _rows(g: Group) -> list[Row]:
    rows = []
    for series in g.series:
        target = series.target
        judged = judge_target([*series.values(target.metric).values()], target) if target else None
        rows.append(Row(g, series, g.metric_of(series), judged))
    return rows


def _claim_rows(g: Group) -> list[ClaimRow]:
    """Each claim under each implementation that both sides were run with, or as not run."""
    plain = [s for s in g.series if not s.overrides]
    rows = []
    for claim in g.claims:
        sides: dict[str, dict[str, Series]] = {}
        for s in plain:
            if s.any.variant in (claim.left, claim.right):
                sides.setdefault(s.computed_by, {}).setdefault(s.any.variant, s)
        found = [_claim_row(g, claim, sides[key]) for key in sorted(sides)]
        judged = [row for row in found if row.verdict]
        rows += judged or found[:1] or [_claim_row(g, claim, {})]
    return _adjusted(rows)


def _adjusted(rows: list[ClaimRow]) -> list[ClaimRow]:
    """The rows with the p-values that allow for how many of them there are."""
    tested = [(i, r.verdict.p) for i, r in enumerate(rows) if r.verdict and r.verdict.p is not None]
    for (i, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        rows[i] = replace(rows[i], p_holm=p)
    return rows


def _claim_row(g: Group, claim: Claim, sides: dict[str, Series]) -> ClaimRow:
    left = sides.get(claim.left)
    right = sides.get(claim.right) if isinstance(claim.right, str) else float(claim.right)
    if left is None or right is None:
        return ClaimRow(g, claim, left, right, None, note=claim.note)
    other = right.values_for(claim) if isinstance(right, Series) else right
    judged = judge_claim(left.values_for(claim), other, claim)
    return ClaimRow(g, claim, left, right, judged, note=claim.note)


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


def _line(row: Row) -> Line:
    s = row.series
    return Line(
        task=row.group.task,
        profile=row.group.profile,
        what=flat(f"{s.label} ({s.computed_by})"),
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
