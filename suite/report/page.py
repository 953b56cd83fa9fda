"""Judged rows and curves as one HTML file, with the store's pictures beside it or inside it."""

import base64
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.record import Artifact
from suite.report import (
    attribution,
    curves,
    details,
    effects,
    faults,
    files,
    kernels,
    rivals,
    sweeps,
    text,
)
from suite.report.rows import LEGEND, ClaimRow, Row, TaskRow, label
from suite.report.series import Group
from suite.store import Store

if TYPE_CHECKING:
    from jinja2 import Environment

    from suite.report import Report

PNG = re.compile(r"artifacts/[0-9a-f]{32}\.png")
STRIP_WIDTH, STRIP_EDGE = 112.0, 6.0


@dataclass(frozen=True)
class Figure:
    """A picture that a task drew.

    Attributes:
        row: whose it is.
        seed: the run that drew it.
        artifact: its name and place in the store.
        size: width and height in pixels.
        src: where the page has it from: its path below the store, or itself as a data URI.
    """

    row: Row
    seed: int
    artifact: Artifact
    size: tuple[int, int]
    src: str

    @property
    def caption(self) -> str:
        """What the picture shows and which run drew it."""
        name = self.artifact.name.rpartition(".")[0].replace("_", " ")
        return f"{name}: {self.row.series.label}, {self.row.group.profile}, seed {self.seed}"


@dataclass(frozen=True)
class Strip:
    """A row's seeds on a line, with the interval and the target; in pixels."""

    points: list[float]
    ends: tuple[float, float] | None
    target: float | None
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Task:
    """What the page shows of a task."""

    row: TaskRow
    anchor: str
    rows: list[tuple[Row, int, Strip | None]]
    pictures: list[curves.Picture]
    figures: list[Figure]
    sources: list[str]
    older: list[str]


@dataclass(frozen=True)
class Chapter:
    """What the page shows of a chapter."""

    number: int
    title: str
    tasks: list[Task]
    claims: list[tuple[ClaimRow, int]]
    footnotes: list[str]


def render(
    report: "Report", store: Store, generator: Mapping[str, Any], *, alone: bool = False
) -> str:
    """The page as text: the same records and pictures give the same bytes.

    Args:
        report: the judged rows.
        store: where the pictures are.
        generator: the commit and versions to print.
        alone: hold the pictures and link to no other file, for a page that leaves its store.
    """
    found = report.tables
    found_effects = effects.effects(report.records)
    duels = rivals.rows(kernels.lines(report.records))
    contents = [details.of_row(r) for r in found.rows] + [details.of_claim(c) for c in found.claims]
    html = (
        environment()
        .get_template("page.html.j2")
        .render(
            book=files.BOOK,
            chapters=list(_chapters(report, store, alone)),
            alone=alone,
            tables=found,
            records=report.records,
            rejected=report.rejected,
            ids_sha256=files.ids_sha256(report.records),
            generator=generator,
            legend=LEGEND,
            how_compared=files.HOW_COMPARED,
            faults=faults.newest(report.records),
            faults_introduction=faults.INTRODUCTION,
            attributed=attribution.lines(found_effects),
            attribution_introduction=attribution.INTRODUCTION.replace("**", ""),
            attribution_notes=attribution.notes,
            attribution_picture=attribution.picture(found_effects),
            rivals=rivals.by_machine(duels),
            rivals_head=rivals.HEAD,
            rivals_introduction=rivals.INTRODUCTION.replace("*", ""),
            rivals_pictures=rivals.pictures(duels),
            smoke=files.SMOKE,
            details=contents,
            swept=[sweeps.read(sweeps.place(store, name)) for name in sweeps.names(store)],
            sweep_title=sweeps.title,
            sweep_setting=sweeps.setting,
        )
    )
    return html.rstrip("\n") + "\n"


def environment() -> "Environment":
    """The templates, with the filters that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "ends": text.ends,
        "goal": text.goal,
        "count": text.count,
        "verdict": label,
        "peak_memory": files.peak_memory,
        "data": files.data,
        "searchable": searchable,
        "plural": text.plural,
        "duration": text.duration,
        "fault": faults.kind_of,
        "same": faults.same,
        "attributed": attribution.page_table,
        "rivals": lambda found: [rivals.cells(row) for row in found],
    }
    return environment


def anchor(name: str) -> str:
    """A name as the id of an element."""
    return re.sub(r"[^\w.-]+", "-", name)


def searchable(row: Row | ClaimRow) -> str:
    """The lower-case text by which a row is found."""
    parts = [row.group.task, row.group.title, row.group.profile, label(row.word), row.why]
    if isinstance(row, Row):
        parts += [
            row.series.label,
            row.series.computed_by,
            row.metric or "",
            files.data(row.series),
        ]
    else:
        parts += [row.claim.text, row.claim.left, str(row.claim.right), row.claim.metric]
    return text.flat(" ".join(parts)).lower()


def _chapters(report: "Report", store: Store, alone: bool) -> Iterator[Chapter]:
    found = report.tables
    figures = _figures(found.rows, store, alone)
    numbered = {id(r): i for i, r in enumerate((*found.rows, *found.claims))}
    for number in found.chapters:
        tasks = [t for t in found.tasks if t.chapter == number]
        names = {t.task for t in tasks}
        rows = [r for r in found.rows if r.group.task in names]
        claims = [c for c in found.claims if c.group.task in names]
        marks = "".join(files.commit(r) + files.data(r.series) + r.marks for r in rows)
        yield Chapter(
            number=number,
            title=files.CHAPTERS.get(number, ""),
            tasks=[_task(t, rows, figures, numbered) for t in tasks],
            claims=[(c, numbered[id(c)]) for c in claims],
            footnotes=files.footnotes(marks),
        )


def _task(
    t: TaskRow, rows: Iterable[Row], figures: Iterable[Figure], numbered: Mapping[int, int]
) -> Task:
    own = [r for r in rows if r.group.task == t.task]
    by_group = [[r for r in own if r.group.profile == g.profile] for g in t.groups]
    strips = {id(r): s for group in by_group for r, s in zip(group, _strips(group), strict=True)}
    name = f"f{numbered[id(own[0])]}"
    return Task(
        row=t,
        anchor=anchor(t.task),
        rows=[(r, numbered[id(r)], strips[id(r)]) for r in own],
        pictures=[
            p for i, group in enumerate(by_group) for p in curves.pictures(group, f"{name}-{i}")
        ],
        figures=[f for f in figures if f.row.group.task == t.task],
        sources=_sources(t.groups, own),
        older=[g.left_out for g in t.groups if g.left_out],
    )


def _sources(groups: Iterable[Group], rows: Sequence[Row]) -> list[str]:
    return [
        f"{', '.join(variants)} at {profile}: {metric} {goal}. {source}"
        for g in groups
        for (profile, metric, goal, source), variants in files.targets(
            [r for r in rows if r.group.profile == g.profile]
        ).items()
    ]


def _strips(rows: Sequence[Row]) -> Iterator[Strip | None]:
    """The strips of one task and profile, on one scale for each metric."""
    for row in rows:
        shown = _reach([r for r in rows if r.metric == row.metric])
        if len(shown) < 2 or row.measured is None:
            yield None
            continue
        at = _scale(shown)
        t = row.target
        ends = (row.measured.low, row.measured.high) if row.measured.n > 1 else None
        yield Strip(
            points=[at(v) for _, v in sorted(row.values.items()) if v is not None],
            ends=ends and (at(ends[0]), at(ends[1])),
            target=at(t.value) if t else None,
            band=(at(t.value - t.tolerance), at(t.value + t.tolerance))
            if t and t.mode == "near"
            else None,
        )


def _reach(rows: Iterable[Row]) -> list[float]:
    """Every number that has to fit on a strip."""
    values = {v for r in rows for v in r.values.values() if v is not None}
    return sorted(values | {r.target.value for r in rows if r.target})


def _scale(shown: Sequence[float]) -> Callable[[float], float]:
    """From a number to its place on a strip, logarithmic where the numbers span decades."""
    low, high = shown[0], shown[-1]
    if low > 0 and high / low > 100:
        inner = _scale([math.log(v) for v in shown])
        return lambda v: inner(math.log(max(v, low / 10)))
    scale = (STRIP_WIDTH - 2 * STRIP_EDGE) / (high - low or 1.0)
    return lambda v: round(min(max(STRIP_EDGE + (v - low) * scale, 1.0), STRIP_WIDTH - 1.0), 1)


def _figures(rows: Sequence[Row], store: Store, alone: bool) -> list[Figure]:
    """The tasks' pictures, of each row the first seed's."""
    found = []
    for row in rows:
        seen: set[str] = set()
        for record in row.series.runs:
            for artifact in record.artifacts:
                if artifact.name not in seen and PNG.fullmatch(artifact.path):
                    seen.add(artifact.name)
                    found.append(_figure(row, record.seed, artifact, store, alone))
    return [figure for figure in found if figure]


def _figure(row: Row, seed: int, artifact: Artifact, store: Store, alone: bool) -> Figure | None:
    """A picture that is there and is what its record says it is, or None."""
    content = store.read(artifact.path)
    if content is None or hashlib.sha256(content).hexdigest() != artifact.sha256:
        return None
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    inside = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Figure(row, seed, artifact, (width, height), inside if alone else artifact.path)
