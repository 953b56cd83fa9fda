"""What kernels do to tasks, as Markdown, CSV, a picture and rows of the page and the terminal."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suite.gate.decide import IMPROVED, INFORMATIONAL, REGRESSED, UNCHANGED
from suite.record import OpCall, Record
from suite.report import curves, text
from suite.report.effects import Effect, OpEffect, effects
from suite.report.files import footnotes
from suite.report.kernels import duration
from suite.report.text import NONE, code, md
from suite.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = re.compile(r"\d+(x\d+)*|scalar")
PAGE, CSV = "tables/attribution.md", "tables/attribution.csv"
WORDS = {
    REGRESSED: "slower",
    IMPROVED: "faster",
    UNCHANGED: "the same",
    INFORMATIONAL: "too noisy",
}
INTRODUCTION = (
    "A task is run with the baseline's kernels and with others, in live processes that are timed "
    "in turn; one pair of processes is one value. **Alone** is how many times as fast an op is on "
    "the very tensors that the task gives it. **Share** is its part of the baseline's step, "
    "forwards and backwards. **Predicted** is the step that follows from both by Amdahl's law, "
    "1 - s (1 - 1 / r), and **measured** the step itself; both are fractions of the baseline's. "
    "Where they differ, the op costs something else in place than alone. **Steps** says whether "
    "as many lead to the target: equivalent is a difference shown to be below 5 %. **Time** to "
    "target is the measured step where the steps are equivalent, and else the product, with the "
    "uncertainty of both. Intervals are of 95 %, from exact signed-rank tests. Errors are those of "
    "values and of gradients against float64, beside what is allowed: with more, a call has "
    "no time."
)


@dataclass(frozen=True)
class Line:
    """An implementation, and one of its ops; the first line of an implementation speaks for all.

    Attributes:
        effect: of the implementation.
        op: one of its ops; None for all together.
    """

    effect: Effect
    op: OpEffect | None

    @property
    def whole(self) -> bool:
        """Whether it says what the implementation does to the step and the target."""
        return self.op is None or len(self.effect.ops) == 1

    @property
    def predicted(self) -> Interval | None:
        """The step by Amdahl's law."""
        return self.effect.predicted if self.whole or not self.op else self.op.predicted

    @property
    def measured(self) -> Interval | None:
        """The step as measured."""
        return self.effect.step if self.whole or not self.op else self.op.measured

    @property
    def why(self) -> str:
        """What to know besides."""
        e = self.effect
        of_all = [e.why or e.steps.why] if self.whole else []
        return "; ".join(filter(None, [*of_all, self.op.why if self.op else ""]))


def lines(found: Iterable[Effect]) -> list[Line]:
    """The rows of all tables: of an implementation of one op one, of several one more for all."""
    made: list[Line] = []
    for e in found:
        made += [Line(e, None)] if len(e.ops) > 1 else []
        made += [Line(e, op) for op in e.ops]
    return made


def render(records: Sequence[Record]) -> dict[str, str]:
    """The files: path below the store -> content; none without pairs."""
    found = lines(effects(records))
    if not found:
        return {}
    shown = measured(COLUMNS, found)
    parts = ["# What the kernels do to the tasks\n", f"{INTRODUCTION}\n"]
    groups = dict.fromkeys(_group(x) for x in found)
    for group in groups:
        here = [x for x in found if _group(x) == group]
        parts.append(f"## {md(group)}\n")
        parts.append(text.md_table([n for n, _ in shown], ([c(x) for _, c in shown] for x in here)))
        parts.append("".join(f"- {md(note)}\n" for note in notes(here)))
        parts.append("The calls that it makes, alone:\n")
        parts.append(text.md_table(CALL_HEAD, _call_rows(here)))
    page = "\n".join(part for part in parts if part)
    page += "".join(f"\n- {note}" for note in footnotes(page))
    rows = ([cell(x) for _, cell in CSV_COLUMNS] for x in found)
    return {PAGE: page.rstrip("\n") + "\n", CSV: text.csv_table([n for n, _ in CSV_COLUMNS], rows)}


CALL_HEAD = [
    "Op",
    "Arguments",
    "Type",
    "Computes",
    "Of its calls",
    "Implementation",
    "A call",
    "Times as fast",
    "Error",
]


def _call_rows(here: Sequence[Line]) -> Iterable[list[str]]:
    """A row a kind of call and implementation: the shapes that the task really issues."""
    for e in {id(x.effect): x.effect for x in here}.values():
        for c in e.calls:
            call = c.call
            yield [
                code(call.op),
                md(arguments(call)),
                code(call.dtype),
                code(call.mode),
                f"{100 * c.share:.0f} %",
                code(e.impl),
                " → ".join(map(duration, c.seconds)) if c.seconds else NONE,
                ratio(c.faster) if c.faster else md(call.missing.get(e.impl, NONE)),
                md(_errors(call, e.impl)),
            ]


def arguments(call: OpCall) -> str:
    """The sizes of the arguments in order, equal ones in a row as one: ``16x6x6, 3 of 16x6``."""
    said = [v if SIZES.fullmatch(v) else f"{k}={v}" for k, v in call.shape]
    groups = [(size, len(list(same))) for size, same in itertools.groupby(said)]
    sizes = [f"{n} of {size}" if n > 1 else size for size, n in groups]
    wanted = f"; gradients of {len(call.gradients)}" if call.gradients else ""
    return ", ".join(sizes) + wanted


def _errors(call: OpCall, impl: str) -> str:
    found = [
        f"{a.of} not finite" if a.err_rel is None else f"{a.of} {a.err_rel:.1e} of {a.limit:.1e}"
        for a in call.accuracy.get(impl, ())
    ]
    return "; ".join(found) or NONE


def _group(line: Line) -> str:
    e = line.effect
    return ", ".join(
        [e.task, e.record.task.profile, e.record.variant, f"against {e.part.baseline}"]
    )


def notes(here: Sequence[Line]) -> list[str]:
    """What a table has to say beside its cells; of several tasks with their names."""
    said = [(x.effect, note) for x in here for note in (*_of_effect(x.effect), *_of_op(x))]
    several = len({_group(x) for x in here}) > 1
    named = [(f"{e.task}, {e.record.variant}: " if several else "") + note for e, note in said]
    return list(dict.fromkeys(named))


def _of_effect(e: Effect) -> Iterator[str]:
    base = e.part.baseline
    if e.control:
        c = e.control
        yield (
            f"control, {base} against itself: {_percent(c.change)} "
            f"({_ends(c.low, c.high)}), {WORDS.get(c.verdict, 'unclear')}"
        )
    if e.base_s is not None:
        clock = " of processor time" if e.part.clock == "cpu" else ""
        yield f"{base} trains for {duration(e.base_s)}{clock} to the target"
    if e.base_j is not None:
        yield f"{base} uses {text.joules(e.base_j)} to the target"
    if e.base_usd is not None:
        price = f"{e.part.price_per_hour:g} USD an hour"
        cost = f"{base} costs {text.usd(e.base_usd)} to the target, at {price}"
        yield f"{cost}; the cost changes as the time does"
    if e.why or e.steps.why:
        yield f"{e.impl}: {e.why or e.steps.why}"


def _of_op(x: Line) -> Iterator[str]:
    if x.op and x.op.why and x.op.why != x.effect.why:
        yield f"{x.effect.impl}, {x.op.op}: {x.op.why}"
    if x.op and x.op.timed_share < 0.995:
        share = 100 * x.op.timed_share
        yield f"{x.op.op}: the kinds of calls that were timed are {share:.0f} % of all"


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %"


def _ends(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}" if math.isfinite(high) else "unbounded"


def ratio(found: Interval | None) -> str:
    """A ratio with its interval."""
    if found is None:
        return NONE
    if not math.isfinite(found.high):
        return f"{found.estimate:.3g} (too few to bound it)"
    return f"{found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _share(x: Line) -> str:
    found = x.op.share if x.op else None
    if found is None:
        return NONE
    if not math.isfinite(found.high):
        return f"{100 * found.estimate:.0f} %"
    return f"{100 * found.estimate:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _calls(x: Line) -> str:
    return NONE if x.op is None else f"{x.op.calls_per_step:.3g}"


def _judged(x: Line) -> str:
    decision = x.effect.decision if x.whole else None
    return NONE if decision is None else WORDS.get(decision.verdict, "inconclusive")


def _steps(x: Line) -> str:
    if not x.whole or x.effect.why:
        return NONE
    found = x.effect.steps
    shown = f" {ratio(found.ratio)}" if found.ratio else ""
    return f"{found.verdict}{shown}" + (f", {found.pairs} seeds" if found.pairs else "")


def _step_s(x: Line) -> str:
    if not x.whole or x.effect.step_s is None:
        return NONE
    return " → ".join(map(duration, x.effect.step_s))


def _whole(x: Line, found: Interval | None) -> str:
    return ratio(found) if x.whole else NONE


def _commit(x: Line) -> str:
    r = x.effect.record
    dirty = "" if r.code.dirty is False else "†"
    return (r.code.commit or "unknown")[:7] + dirty + "‡" * r.placement.contended


Column = tuple[str, Callable[[Line], Any]]

COLUMNS: tuple[Column, ...] = (
    ("Implementation", lambda x: code(x.effect.impl)),
    ("Op", lambda x: code(x.op.op) if x.op else "all"),
    ("Calls a step", _calls),
    ("Alone, times as fast", lambda x: ratio(x.op.faster if x.op else None)),
    ("Share of step", _share),
    ("Step predicted", lambda x: ratio(x.predicted)),
    ("Step measured", lambda x: ratio(x.measured)),
    ("Step is", _judged),
    ("Step", _step_s),
    ("Steps to target", lambda x: md(_steps(x))),
    ("Time to target", lambda x: _whole(x, x.effect.time)),
    ("Energy to target", lambda x: _whole(x, x.effect.energy)),
    ("Pairs", lambda x: str(x.effect.pairs)),
    ("Machine", lambda x: md(x.effect.machine)),
    ("Commit", lambda x: md(_commit(x))),
)


def measured(columns: Iterable[Column], found: Sequence[Line]) -> list[Column]:
    """The columns without energy where nobody could count it."""
    counted = any(x.effect.energy for x in found)
    return [c for c in columns if counted or not c[0].lower().startswith("energy")]


def _three(name: str, read: Callable[[Line], Interval | None]) -> tuple[Column, ...]:
    def part(which: str) -> Callable[[Line], Any]:
        def cell(x: Line) -> str:
            found = read(x)
            value = getattr(found, which) if found else None
            return text.computed(value if value is not None and math.isfinite(value) else None)

        return cell

    names = {"estimate": name, "low": f"{name}_low95", "high": f"{name}_high95"}
    return tuple((names[which], part(which)) for which in names)


CSV_COLUMNS: tuple[Column, ...] = (
    ("task", lambda x: x.effect.task),
    ("profile", lambda x: x.effect.record.task.profile),
    ("variant", lambda x: x.effect.record.variant),
    ("baseline", lambda x: x.effect.part.baseline),
    ("impl", lambda x: x.effect.impl),
    ("op", lambda x: x.op.op if x.op else "all"),
    ("machine", lambda x: x.effect.machine),
    ("pairs", lambda x: x.effect.pairs),
    ("calls_per_step", lambda x: text.computed(x.op.calls_per_step if x.op else None)),
    ("kinds", lambda x: x.op.kinds if x.op else None),
    ("timed_share", lambda x: text.computed(x.op.timed_share if x.op else None)),
    *_three("faster", lambda x: x.op.faster if x.op else None),
    *_three("share", lambda x: x.op.share if x.op else None),
    *_three("predicted", lambda x: x.predicted),
    *_three("step", lambda x: x.measured),
    ("step_verdict", _judged),
    ("error_of_limit", lambda x: text.computed(x.op.error if x.op else None)),
    ("base_step_s", lambda x: text.computed(x.effect.step_s[0] if x.effect.step_s else None)),
    ("step_s", lambda x: text.computed(x.effect.step_s[1] if x.effect.step_s else None)),
    ("steps_verdict", lambda x: x.effect.steps.verdict),
    *_three("steps", lambda x: x.effect.steps.ratio),
    ("seeds", lambda x: x.effect.steps.pairs),
    ("missed", lambda x: x.effect.steps.missed),
    *_three("time_to_target", lambda x: x.effect.time),
    *_three("energy_to_target", lambda x: x.effect.energy),
    ("base_to_target_s", lambda x: text.computed(x.effect.base_s)),
    ("base_to_target_j", lambda x: text.computed(x.effect.base_j)),
    ("base_to_target_usd", lambda x: text.computed(x.effect.base_usd)),
    ("energy_method", lambda x: x.effect.part.energy_method),
    ("why", lambda x: x.why),
    ("session", lambda x: x.effect.part.session[:16]),
    ("commit", lambda x: x.effect.record.code.commit),
    ("dirty", lambda x: x.effect.record.code.dirty is not False),
    ("records", lambda x: " ".join(i[:16] for i in x.effect.inputs)),
)


HEAD = ("Task", "Kernel", "Alone", "Share", "Predicted", "Measured", "Steps", "Time", "Energy")


def page_table(found: Sequence[Line]) -> dict[str, list[Any]]:
    """The table of the page: its head, and of each cell what is large and what is small in it."""
    counted = any(x.effect.energy for x in found)
    rows = [_cells(x) for x in found]
    end = len(HEAD) if counted else len(HEAD) - 1
    return {"head": list(HEAD[:end]), "rows": [row[:end] for row in rows]}


def _cells(x: Line) -> list[tuple[str, str]]:
    e = x.effect
    kernel = x.op.op if x.op else "all kernels"
    calls = f", {_calls(x)} a step" if x.op else ""
    judged = f", {_judged(x)}" if x.whole else ""
    return [
        (e.task, f"{e.record.task.profile}, {e.record.variant}; {e.machine}"),
        (kernel, f"{e.impl} against {e.part.baseline}{calls}"),
        _apart(ratio(x.op.faster if x.op else None)),
        _apart(_share(x).replace(" %", "%")),
        _apart(ratio(x.predicted)),
        _apart(ratio(x.measured), judged),
        _apart(_steps(x)),
        _apart(_whole(x, e.time)),
        _apart(_whole(x, e.energy)),
    ]


def _apart(cell: str, more: str = "") -> tuple[str, str]:
    """A cell's first word, and the rest."""
    first, _, rest = cell.partition(" ")
    return first, (rest + more).removeprefix(", ")


def figure(found: Sequence[Effect], size: tuple[float, float] = (5.2, 4.6)) -> "Figure | None":
    """The measured step against the predicted one, with intervals; None where nothing has both."""
    from matplotlib.figure import Figure

    shown = [e for e in found if e.predicted and e.step]
    if not shown:
        return None
    made = Figure(figsize=size, layout="constrained")
    axes = made.subplots()
    handles = [
        _point(axes, e, colour, marker)
        for e, (colour, marker) in zip(shown, curves.looks(), strict=False)
    ]
    _frame(axes, shown)
    names = [f"{e.task} {e.record.variant}: {e.impl}" for e in shown]
    made.legend(handles, names, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return made


def _point(axes: "Axes", e: Effect, colour: str, marker: str) -> Any:
    assert e.predicted is not None
    assert e.step is not None
    ends: dict[str, Any] = {}
    for name, i in (("xerr", e.predicted), ("yerr", e.step)):
        if math.isfinite(i.high):
            ends[name] = [[i.estimate - i.low], [i.high - i.estimate]]
    return axes.errorbar(
        e.predicted.estimate,
        e.step.estimate,
        **ends,
        color=colour,
        marker=marker,
        markersize=6,
        linestyle="",
        capsize=3,
        elinewidth=1.4,
    )


def _frame(axes: "Axes", shown: Sequence[Effect]) -> None:
    """Equal scales, the diagonal on which Amdahl's law holds, and no change."""
    values = [1.0]
    for e in shown:
        for i in (e.predicted, e.step):
            if i is not None:
                values += [i.estimate, *(v for v in (i.low, i.high) if 0 < v < math.inf)]
    low, high = 0.93 * min(values), 1.07 * max(values)
    ink: dict[str, Any] = {"color": curves.INK, "linewidth": 1.0}
    axes.plot([low, high], [low, high], linestyle=(0, (5, 3)), alpha=0.8, **ink)
    axes.axvline(1, alpha=0.25, **ink)
    axes.axhline(1, alpha=0.25, **ink)
    if high / low > 4:
        axes.set_xscale("log")
        axes.set_yscale("log")
        curves.plain_ticks(axes.xaxis)
        curves.plain_ticks(axes.yaxis)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("step by Amdahl's law, of the baseline's")
    axes.set_ylabel("step as measured, of the baseline's")


CAPTION = (
    "Time of a step with other kernels, as a fraction of the baseline's: measured against "
    "predicted by Amdahl's law, with 95 % intervals. On the dashed line the law holds; below the "
    "horizontal line a step is faster."
)


def picture(found: Sequence[Effect]) -> curves.Picture | None:
    """The figure for the page."""
    with curves.styled():
        made = figure(found)
        if made is None:
            return None
        content = curves.svg(made)
    return curves.Picture(curves.embedded(content, "attribution", CAPTION), CAPTION)
