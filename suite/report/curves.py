"""Curves of the target metric as SVG text, to stand inside a page of either theme."""

import contextlib
import io
import itertools
import re
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from suite.record import Record
from suite.report.rows import Row
from suite.report.text import flat, goal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's hues, moved to the middle tones that stand out from white and from black alike.
PALETTE = (
    "#2f7fc8",
    "#d0701c",
    "#1f9678",
    "#b0609f",
    "#8a8420",
    "#d1506a",
    "#5b78d6",
    "#7d8590",
)
MARKERS = "os^Dv*PX"
INK = "#010203"
MOST_POINTS = 200
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"

Points = dict[float, float]


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        svg: an ``<svg>`` element without an outside reference.
        caption: what it shows, in one sentence.
    """

    svg: str
    caption: str


def pictures(rows: Sequence[Row], name: str) -> Iterator[Picture]:
    """One figure for each metric that the rows of a task and profile are judged by.

    Args:
        rows: the rows of one group.
        name: what makes the ids inside the figures unique on the page.
    """
    metrics = dict.fromkeys(r.metric for r in rows if r.metric)
    for number, metric in enumerate(metrics):
        # A variant may never yield what its task is judged by: it has nothing to show there.
        shown = [r for r in rows if r.metric == metric and r.series.has(metric)]
        if shown:
            yield _picture(shown, metric, f"{name}-{number}")


def points(record: Record, metric: str) -> Points:
    """Step -> metric of one run; steps are counted where the run did not yield them."""
    curve = record.train.curve if record.train else {}
    column = curve.get(metric, [])
    steps = curve.get("step") or [float(i + 1) for i in range(len(column))]
    pairs = zip(steps, column, strict=False)
    return {x: y for x, y in pairs if x is not None and y is not None}


def median_curve(runs: Iterable[Points]) -> Points:
    """The median over the runs, at the steps that all of them have."""
    found = [run for run in runs if run]
    shared = set.intersection(*map(set, found)) if found else set()
    return {x: statistics.median(run[x] for run in found) for x in sorted(shared)}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The look of every picture of a report: its ink stands for the page's own colour."""
    import matplotlib.style

    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = {
        **dict.fromkeys(colours, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "suite",
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        # Names of variants and metrics are shown as they are, dollar signs included.
        "text.parse_math": False,
    }
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # A glyph that matplotlib's font lacks is drawn by the browser's.
        warnings.simplefilter("ignore")
        yield


def svg(figure: "Figure") -> bytes:
    """A figure as a file of its own; the same figure gives the same bytes."""
    content = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, metadata=metadata)
    return content.getvalue()


def _picture(rows: Sequence[Row], metric: str, name: str) -> Picture:
    from matplotlib.figure import Figure

    single = all(len(points(r, metric)) < 2 for row in rows for r in row.series.runs)
    with styled():
        height = 1.3 + 0.3 * len(rows) if single else 2.9 + 0.23 * -(-len(rows) // _columns(rows))
        figure = Figure(figsize=(5.2, height), layout="constrained")
        (_draw_points if single else _draw_curves)(figure, rows, metric)
        content = svg(figure)
    caption = _caption(rows, metric, single)
    return Picture(embedded(content, name, caption), caption)


def _caption(rows: Sequence[Row], metric: str, single: bool) -> str:
    goals = " or ".join(dict.fromkeys(goal(r.target) for r in rows if r.target))
    name = _spaced(metric)
    seeds = "points: seeds; bar: their mean" if single else "thin: seeds; bold: their median"
    aim = f"; dashed: target {goals}" if goals else ""
    return (
        f"{name[:1].upper()}{name[1:]}, {rows[0].group.profile} profile. {seeds.capitalize()}{aim}."
    )


def _draw_curves(figure: "Figure", rows: Sequence[Row], metric: str) -> None:
    axes = figure.subplots()
    handles = []
    for row, (colour, marker) in zip(rows, looks(), strict=False):
        runs = {r.record_id: points(r, metric) for r in row.series.runs}
        for run in runs.values():
            _line(axes, run, color=colour, linewidth=0.8, alpha=0.45)
        middle = median_curve(runs[r.record_id] for r in row.series.finished)
        every = max(1, len(_thinned(middle)) // 7)
        look = {"color": colour, "marker": marker, "markersize": 4.5, "markevery": every}
        handles += _line(axes, middle, linewidth=2.0, **look)
    _draw_targets(axes, rows, "h")
    if _spans_decades(rows, metric):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_xlabel("step")
    axes.set_ylabel(_spaced(metric))
    axes.margins(x=0.02)
    labels = [_name(row, rows) for row in rows]
    figure.legend(handles, labels, loc="outside lower center", ncols=_columns(rows), frameon=False)


def _draw_points(figure: "Figure", rows: Sequence[Row], metric: str) -> None:
    axes = figure.subplots()
    for y, (row, (colour, marker)) in enumerate(zip(rows, looks(), strict=False)):
        values = [v for v in row.series.values(metric).values() if v is not None]
        spread = [y + 0.12 * (i % 3 - 1) for i in range(len(values))]
        axes.plot(
            values, spread, linestyle="", marker=marker, color=colour, alpha=0.7, markersize=6
        )
        middle = statistics.fmean(values)
        axes.plot([middle, middle], [y - 0.32, y + 0.32], color=colour, linewidth=2.5)
    _draw_targets(axes, rows, "v")
    if _spans_decades(rows, metric):
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    axes.set_yticks(range(len(rows)), [_name(row, rows) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_xlabel(_spaced(metric))
    axes.margins(x=0.08)


def _draw_targets(axes: "Axes", rows: Sequence[Row], direction: str) -> None:
    """A dashed line at each target, a band where the target is one."""
    line, band = (axes.axhline, axes.axhspan) if direction == "h" else (axes.axvline, axes.axvspan)
    for value, width, mode in sorted(
        {(r.target.value, r.target.tolerance, r.target.mode) for r in rows if r.target}
    ):
        line(value, color=INK, linestyle=(0, (5, 3)), linewidth=1.0, alpha=0.8)
        if mode == "near":
            band(value - width, value + width, color=INK, alpha=0.08, linewidth=0)


def plain_ticks(axis: "Axis") -> None:
    """Powers of ten without formulas, which the browser cannot set."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _line(axes: "Axes", run: Points, **look: Any) -> list[Any]:
    kept = _thinned(run)
    return list(axes.plot([*kept], [*kept.values()], **look))


def _thinned(run: Points) -> Points:
    """At most so many points as can be seen, the last one among them."""
    step = -(-len(run) // MOST_POINTS) or 1
    ordered = sorted(run)
    return {x: run[x] for x in sorted({*ordered[::step], *ordered[-1:]})}


def looks() -> Iterator[tuple[str, str]]:
    """Colour and marker; the pairs do not repeat before 64."""
    for turn in itertools.count():
        for i, colour in enumerate(PALETTE):
            yield colour, MARKERS[(i + turn) % len(MARKERS)]


def _spans_decades(rows: Sequence[Row], metric: str) -> bool:
    shown = [y for row in rows for r in row.series.runs for y in points(r, metric).values()]
    shown += [row.target.value for row in rows if row.target]
    return min(shown) > 0 and max(shown) / min(shown) > 100


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The variant, and what tells it from the others of its name."""
    twins = [r.series for r in rows if r.series.label == row.series.label]
    parts = [row.series.label]
    if len({s.any.impl for s in twins}) > 1:
        parts.append(row.series.any.impl)
    if len({s.device for s in twins}) > 1:
        parts.append(row.series.device)
    name = flat(", ".join(parts))
    short = name if len(name) <= 32 else f"{name[:31]}…"
    # Matplotlib leaves what begins with an underscore out of a legend.
    return f" {short}" if short.startswith("_") else short


def _columns(rows: Sequence[Row]) -> int:
    """As many columns as a legend has room for."""
    widest = max(len(_name(row, rows)) for row in rows)
    return max(1, min(3, len(rows), 60 // (7 + widest)))


def _spaced(metric: str) -> str:
    return flat(metric).replace("_", " ")


def embedded(content: bytes, name: str, caption: str) -> str:
    """The figure as an element of a page: its colour from the page, its ids its own."""
    ElementTree.register_namespace("", SVG.strip("{}"))
    root = ElementTree.fromstring(content)
    for parent in root.iter():
        for child in [c for c in parent if c.tag in (f"{SVG}metadata", f"{SVG}style")]:
            parent.remove(child)
    used = {e.attrib[f"{XLINK}href"][1:] for e in root.iter(f"{SVG}use")}
    used |= {
        i for e in root.iter() for v in e.attrib.values() for i in re.findall(r"url\(#(.+?)\)", v)
    }
    for element in root.iter():
        element.attrib = dict(_attributes(element.attrib, name, used))
        element.tail = None
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": caption, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(given: dict[str, str], name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if key == "id":
            if value in used:
                yield "id", f"{name}-{value}"
        elif key == f"{XLINK}href":
            yield "href", f"#{name}-{value[1:]}"
        elif key == "style":
            value = re.sub(r"font-family: [^;]*|(?<=px) '[^;]*(?=;|$)", "", value)
            value = re.sub(r"url\(#", f"url(#{name}-", value.replace(INK, "currentColor"))
            yield "style", _rounded(value)
        elif key in ("clip-path", "mask"):
            yield key, value.replace("url(#", f"url(#{name}-")
        else:
            yield key, _rounded(" ".join(value.split()))


def _rounded(text: str) -> str:
    """Decimals that nobody can see, and that another processor may round elsewhere, cut off."""
    return re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", text)
