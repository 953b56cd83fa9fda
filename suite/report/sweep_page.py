"""The pictures of a sweep, and its page."""

import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suite.report import curves, sweeps, text
from suite.report.curves import INK, PALETTE
from suite.report.sweeps import Importance, Result, Trial
from suite.space import Choice, Domain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORSE, BETTER, BEST, FAILED = "#9aa3ad", PALETTE[0], PALETTE[1], PALETTE[5]
MOST_SLICES = 6
# Between labels below a panel, in pixels of the screen; closer ones read as one.
GAP = 6


@dataclass(frozen=True)
class Picture:
    """A picture as a file and as an element of the page."""

    name: str
    png: bytes
    svg: str
    caption: str
    wide: bool


Plan = tuple[str, Callable[["Figure", Result], None], str]


def planned(found: Result) -> list[Plan]:
    """Name, how to draw and caption of the pictures that a sweep has, but for the importances."""
    if not found.trials:
        return []
    name = found.objective.name
    plans: list[Plan] = []
    if found.definition["search"] == "grid" and len(found.space) in (2, 3) and found.best:
        plans.append(
            (
                "grid",
                _draw_grid,
                f"{name} of every combination; the bluer, the better; framed: the best",
            )
        )
    if len(found.space) > 1:
        caption = "one line a trial through its values; the bluer, the better; bold: the best"
        plans.append(("parallel", _draw_parallel, caption))
    caption = f"{name} against each field; a cross is a trial that was stopped, at its last row"
    plans.append(("slices", _draw_slices, caption))
    caption = (
        f"{name} at each evaluation of the first seed; bold: the best trial; a cross ends one that "
        "was stopped or failed; dashed: the target"
    )
    return [*plans, ("curves", _draw_curves, caption)]


def pictures(found: Result, importance: Importance | str) -> Iterator[Picture]:
    """Draw the pictures of a sweep."""
    plans = planned(found)
    if isinstance(importance, Importance):
        caption = (
            f"share of the variance of {found.objective.name} that each field explains (fANOVA on "
            f"{importance.basis}); thin: 10th to 90th percentile over resampled trials"
        )
        plans.append(("importance", lambda f, _: _draw_importance(f, importance), caption))
    for name, draw, caption in plans:
        yield _picture(found, name, draw, f"{caption[:1].upper()}{caption[1:]}.")


def render(found: Result, drawn: Sequence[Picture], importance: Importance | str) -> str:
    """The page as text."""
    from suite.report.page import environment

    html = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            sweep=found,
            title=sweeps.title(found),
            summary=sweeps.summary(found),
            pictures=drawn,
            missing=importance if isinstance(importance, str) else "",
            shown=sweeps.shown,
            setting=sweeps.setting,
            duration=text.duration,
            records=sum(len(t.runs) for t in found.trials),
        )
    )
    return html.rstrip("\n") + "\n"


def _picture(
    found: Result, name: str, draw: Callable[["Figure", Result], None], caption: str
) -> Picture:
    from matplotlib.figure import Figure

    halved = name == "curves" and None in {t.objective for t in found.trials}
    wide = halved or (name in ("parallel", "slices") and len(found.space) > 1)
    wide |= name == "grid" and len(found.space) > 2
    with curves.styled():
        figure = Figure(figsize=(10.6 if wide else 5.2, 3.6), layout="constrained")
        draw(figure, found)
        _lean(figure)
        svg = curves.svg(figure)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return Picture(name, png.getvalue(), curves.embedded(svg, name, caption), caption, wide)


def _lean(figure: "Figure") -> None:
    """Have the labels below a panel lean where they would run into each other."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        if any(left.x1 + GAP > right.x0 for left, right in itertools.pairwise(boxes)):
            axes.tick_params(axis="x", rotation=30)
            for label in labels:
                label.set(ha="right", rotation_mode="anchor")


def _colours(found: Result) -> dict[int, Any]:
    """Trial number -> colour, by the rank of its objective."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("rank", [WORSE, BETTER])
    done = [t for t in found.ranked if t.objective is not None]
    return {t.number: shades(1 - i / max(1, len(done) - 1)) for i, t in enumerate(done)}


def _draw_parallel(figure: "Figure", found: Result) -> None:
    axes = figure.subplots()
    colours, best = _colours(found), found.best
    scales = [_scale(d) for d in found.space.values()]
    values = [t.objective for t in found.trials if t.objective is not None]
    objective = _linear(min(values, default=0.0), max(values, default=1.0))
    for t in reversed(found.ranked):
        heights = [
            scale(t.config[f]) + (_jitter(t) if isinstance(d, Choice) else 0.0)
            for (f, d), scale in zip(found.space.items(), scales, strict=True)
        ]
        look: dict[str, Any] = {"color": WORSE, "linewidth": 0.8, "alpha": 0.5}
        if t.status not in (*sweeps.GOOD, "stopped", "unfinished"):
            look = {"color": FAILED, "linewidth": 1.0, "linestyle": (0, (2, 2))}
        if t.objective is not None:
            heights.append(objective(t.objective))
            look = {"color": colours[t.number], "linewidth": 1.4, "alpha": 0.9}
        if best is not None and t.number == best.number:
            look = {"color": BEST, "linewidth": 2.8, "zorder": 3}
        axes.plot(range(len(heights)), heights, **look)
    for x, (domain, scale) in enumerate(zip(found.space.values(), scales, strict=True)):
        _draw_scale(axes, x, [(scale(v), sweeps.shown(v)) for v in _marks(domain)])
    if values:
        marks = sorted({min(values), statistics.median(values), max(values)})
        _draw_scale(axes, len(scales), [(objective(v), f"{v:.4g}") for v in marks])
    labels = [*found.space, found.objective.name]
    axes.set_xticks(range(len(labels)), [text.flat(x) for x in labels])
    axes.set(xlim=(-0.2, len(labels) - 0.6), ylim=(-0.06, 1.06), yticks=[])
    axes.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_scale(axes: "Axes", x: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.plot([x, x], [-0.04, 1.04], color=INK, linewidth=1.0, alpha=0.6)
    for y, label in marks:
        axes.plot([x, x + 0.015], [y, y], color=INK, linewidth=1.0, alpha=0.6)
        axes.annotate(label, (x, y), (5, 6), textcoords="offset points", va="center", fontsize=8.5)


def _draw_slices(figure: "Figure", found: Result) -> None:
    fields = list(found.space)[:MOST_SLICES]
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(panels, fields, strict=True):
        for t in found.trials:
            _draw_point(axes, t, field, found)
        domain = found.space[field]
        if isinstance(domain, Choice):
            axes.set_xticks(range(len(domain.values)), list(map(sweeps.shown, domain.values)))
            axes.set_xlim(-0.6, len(domain.values) - 0.4)
        elif domain.log:
            axes.set_xscale("log")
            curves.plain_ticks(axes.xaxis)
        axes.set_xlabel(text.flat(field))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    panels[0].set_ylabel(text.flat(found.objective.name))


def _draw_point(axes: "Axes", t: Trial, field: str, found: Result) -> None:
    domain, value = found.space[field], t.objective
    x = t.config[field]
    if isinstance(domain, Choice):
        x = domain.values.index(x) + 6 * _jitter(t)
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    if value is None:
        value, look = _last(t, found), look | {"marker": "x", "color": WORSE}
    else:
        look["color"] = _colours(found)[t.number]
    if found.best is not None and t.number == found.best.number:
        look |= {"color": BEST, "markersize": 8}
    if value is not None:
        axes.plot(x, value, **look)


def _draw_curves(figure: "Figure", found: Result) -> None:
    """All trials, and beside them those that ended on a scale of their own."""
    ended = [t for t in found.ranked if t.objective is not None]
    apart = 0 < len(ended) < len(found.trials)
    panels = figure.subplots(1, 1 + apart, squeeze=False)[0]
    for axes, trials in zip(panels, (found.ranked, ended), strict=False):
        for t in reversed(trials):
            _draw_curve(axes, t, found)
        if found.objective.mode != "near":
            goal = {"color": INK, "linestyle": (0, (5, 3)), "linewidth": 1.0, "alpha": 0.8}
            axes.axhline(found.objective.target, **goal)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("evaluation")
        axes.locator_params(axis="x", integer=True)
        axes.margins(x=0.02)
    panels[0].set_ylabel(text.flat(found.objective.name.replace("_", " ")))
    if apart:
        panels[0].set_title("all trials", fontsize=10.5)
        panels[1].set_title("those that ended", fontsize=10.5)


def _draw_curve(axes: "Axes", t: Trial, found: Result) -> None:
    look: dict[str, Any] = {"color": WORSE, "linewidth": 0.9, "alpha": 0.6}
    if t.objective is not None:
        look = {"color": _colours(found)[t.number], "linewidth": 1.2, "alpha": 0.9}
    elif t.status != "stopped":
        look = {"color": FAILED, "linewidth": 1.0, "linestyle": (0, (2, 2))}
    if found.best is not None and t.number == found.best.number:
        look = {"color": BEST, "linewidth": 2.6, "zorder": 3}
    cross: dict[str, Any] = {"marker": "x", "markevery": [-1]} if t.objective is None else {}
    seen = t.seen(found.objective)
    if seen:
        axes.plot(range(1, len(seen) + 1), seen, **look, **cross)


def _draw_importance(figure: "Figure", importance: Importance) -> None:
    axes = figure.subplots()
    ordered = sorted(importance.shares.items(), key=lambda item: item[1][0])
    for y, (_, (share, low, high)) in enumerate(ordered):
        axes.barh(y, share, color=BETTER, height=0.6)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.4, alpha=0.8)
    axes.set_yticks(range(len(ordered)), [text.flat(f) for f, _ in ordered])
    axes.set(xlim=(0, 1), xlabel="share of the variance")
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.tick_params(axis="y", length=0)


def _draw_grid(figure: "Figure", found: Result) -> None:
    """Fields with the most values across and down; a third one in panels beside each other."""
    space = {f: d.values for f, d in found.space.items() if isinstance(d, Choice)}
    across, down, *rest = sorted(space, key=lambda f: -len(space[f]))
    panels = space[rest[0]] if rest else (None,)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        trials = [t for t in found.trials if not rest or t.config[rest[0]] == panel]
        _draw_cells(axes, found, trials, across, down)
        if rest:
            axes.set_title(f"{text.flat(rest[0])} = {sweeps.shown(panel)}", fontsize=10.5)


def _draw_cells(
    axes: "Axes", found: Result, trials: Sequence[Trial], across: str, down: str
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("rank", [BETTER, WORSE])
    ended = [t.number for t in found.ranked if t.objective is not None]
    columns, rows = (_marks(found.space[field]) for field in (across, down))
    cells = [[math.nan] * len(columns) for _ in rows]
    for t in trials:
        x, y = columns.index(t.config[across]), rows.index(t.config[down])
        if t.number in ended:
            cells[y][x] = ended.index(t.number)
        label = t.status if t.objective is None else text.number(t.objective)
        axes.text(x, y, label, ha="center", va="center", fontsize=8.5)
        if t.number == ended[0]:
            axes.add_patch(_frame(x, y))
    # Not an image: the page holds vectors only.
    edges = [[i - 0.5 for i in range(len(names) + 1)] for names in (columns, rows)]
    reach: dict[str, Any] = {"vmin": 0, "vmax": max(1, len(ended) - 1)}
    axes.pcolormesh(*edges, cells, cmap=shades, alpha=0.55, linewidth=0, **reach)
    axes.invert_yaxis()
    axes.set_xticks(range(len(columns)), list(map(sweeps.shown, columns)))
    axes.set_yticks(range(len(rows)), list(map(sweeps.shown, rows)))
    axes.set(xlabel=text.flat(across), ylabel=text.flat(down))


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"fill": False, "edgecolor": BEST, "linewidth": 2.5, "zorder": 3}
    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **look)


def _last(t: Trial, found: Result) -> float | None:
    """The objective of a stopped trial's last row."""
    seen = t.seen(found.objective)
    return seen[-1] if seen and t.status == "stopped" else None


def _jitter(t: Trial) -> float:
    """A small shift that tells trials of one value apart, the same at every drawing."""
    return ((t.number * 0.618) % 1 - 0.5) * 0.05


def _linear(low: float, high: float) -> Callable[[float], float]:
    return lambda v: (v - low) / ((high - low) or 1.0)


def _scale(domain: Domain) -> Callable[[Any], float]:
    """From a value to its height on an axis from 0 to 1."""
    if isinstance(domain, Choice):
        places = _linear(0, max(1, len(domain.values) - 1))
        return lambda v: places(domain.values.index(v))
    if domain.log:
        inner = _linear(math.log(domain.low), math.log(domain.high))
        return lambda v: inner(math.log(v))
    return _linear(domain.low, domain.high)


def _marks(domain: Domain) -> list[Any]:
    """The values that an axis names."""
    if isinstance(domain, Choice):
        return list(domain.values)
    if not domain.log:
        return [domain.low, (domain.low + domain.high) / 2, domain.high]
    inside = range(math.ceil(math.log10(domain.low)), math.floor(math.log10(domain.high)) + 1)
    powers = [10.0**n for n in inside]
    return sorted({domain.low, domain.high, *powers})
