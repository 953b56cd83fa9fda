"""Our kernels against the fastest other implementation of each case: a table and a picture."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suite.report import curves, text
from suite.report.kernels import Line
from suite.report.series import machine_of
from suite.report.text import NONE, code, md

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "triton"
# Without the overhead of launches, and with it.
CLOCKS = {"graph replay": "in a graph", "cold": "launched alone"}
INTRODUCTION = (
    "How many times as long the fastest other implementation takes as our kernels, of those that "
    "compute the same within the allowed error: the reference, PyTorch's operators, vendors' "
    "layers, public packages. *In a graph* is within a replayed CUDA graph, where only the "
    "device's time counts; *launched alone* is a call from Python after the L2 cache was flushed, "
    "which for small sizes is the time of the launches. The mean is geometric, in brackets are the "
    "worst and the best case; above one our kernels are faster."
)


@dataclass(frozen=True)
class Duel:
    """One case by one clock.

    Attributes:
        ours: our line.
        other: the fastest other one.
    """

    ours: Line
    other: Line

    @property
    def ratio(self) -> float:
        """How many times as long the other takes: the median over the rounds, in pairs."""
        assert self.ours.timing is not None
        assert self.other.timing is not None
        pairs = zip(self.other.timing.samples_s, self.ours.timing.samples_s, strict=False)
        return statistics.median(b / a for b, a in pairs)


@dataclass(frozen=True)
class Row:
    """The cases of an op on a machine.

    Attributes:
        op: its name.
        mode: what is computed.
        machine: where.
        duels: by clock.
    """

    op: str
    mode: str
    machine: str
    duels: dict[str, list[Duel]]

    @property
    def cases(self) -> int:
        """How many there are by the clock that has most."""
        return max(map(len, self.duels.values()))


def rows(found: Iterable[Line]) -> list[Row]:
    """What can be compared: a row an op, mode and machine."""
    made: dict[tuple[str, str, str], Row] = {}
    for duel in _duels(found):
        micro, machine = duel.ours.micro, machine_of(duel.ours.record)
        key = micro.op, micro.mode, machine
        row = made.setdefault(key, Row(*key, {clock: [] for clock in CLOCKS}))
        row.duels[duel.ours.clock].append(duel)
    return [made[key] for key in sorted(made, key=lambda k: (k[2], k[0], k[1]))]


def _duels(found: Iterable[Line]) -> Iterable[Duel]:
    cells: dict[tuple[Any, ...], list[Line]] = {}
    for line in found:
        if line.clock in CLOCKS:
            # Of one session: pairs of samples are those of one round.
            cells.setdefault((line.micro.session, line.clock), []).append(line)
    for lines in cells.values():
        ours = [x for x in lines if x.micro.provider == OURS]
        others = [x for x in lines if x.micro.provider != OURS]
        if ours and others:
            yield Duel(ours[0], min(others, key=lambda x: x.median_s or math.inf))


def summed(duels: Sequence[Duel]) -> str:
    """The geometric mean of some ratios, with the worst and the best."""
    if not duels:
        return NONE
    ratios = [duel.ratio for duel in duels]
    mean = statistics.geometric_mean(ratios)
    ends = f" [{min(ratios):.3g}, {max(ratios):.3g}]" if len(ratios) > 1 else ""
    return f"{mean:.3g}{ends}"


def rival(duels: Sequence[Duel]) -> str:
    """Who is the fastest other one most often."""
    names = [duel.other.micro.provider for duel in duels]
    return statistics.mode(names) if names else NONE


HEAD = [
    "Op",
    "Computes",
    "Cases",
    *(name.capitalize() for name in CLOCKS.values()),
    "Fastest other",
]


def cells(row: Row) -> list[str]:
    """A row as text."""
    by_graph = row.duels["graph replay"] or row.duels["cold"]
    ratios = [summed(row.duels[clock]) for clock in CLOCKS]
    return [row.op, row.mode, str(row.cases), *ratios, rival(by_graph)]


def render(found: Sequence[Line]) -> str:
    """The table as Markdown, one for each machine; empty where there is nothing to compare."""
    parts = []
    for machine, here in by_machine(rows(found)).items():
        told = map(cells, here)
        table = ([code(op), code(mode), *rest, code(by)] for op, mode, *rest, by in told)
        parts.append(f"{md(machine)}\n\n{text.md_table(HEAD, table)}")
    return "\n".join([f"## Against the fastest other\n\n{INTRODUCTION}\n", *parts]) if parts else ""


def by_machine(found: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each machine."""
    made: dict[str, list[Row]] = {}
    for row in found:
        made.setdefault(row.machine, []).append(row)
    return made


def figure(found: Sequence[Row]) -> "Figure":
    """A dot a case: how many times as fast our kernels are, in a graph and launched alone."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(row.op for row in found))[::-1]
    made = Figure(figsize=(6.4, 1.4 + 0.3 * len(ops)), layout="constrained")
    axes = made.subplots()
    looks = {"graph replay": ("#0072B2", "o", 0.16), "cold": ("#D55E00", "D", -0.16)}
    handles = []
    for clock, (colour, marker, up) in looks.items():
        duels = [d for row in found for d in row.duels[clock]]
        ratios = [d.ratio for d in duels]
        heights = [ops.index(d.ours.micro.op) + up for d in duels]
        handles += axes.plot(
            ratios, heights, marker, color=colour, markersize=5, alpha=0.7, markeredgewidth=0
        )
    axes.axvline(1, color=curves.INK, linewidth=1.0, alpha=0.6)
    axes.set_xscale("log")
    curves.plain_ticks(axes.xaxis)
    axes.set_yticks(range(len(ops)), ops)
    axes.set_ylim(-0.6, len(ops) - 0.4)
    axes.grid(axis="x", alpha=0.2)
    axes.set_xlabel("time of the fastest other / time of ours (right of 1: ours is faster)")
    made.legend(handles, CLOCKS.values(), loc="outside upper center", ncols=2, frameon=False)
    return made


def pictures(found: Sequence[Row]) -> list[curves.Picture]:
    """One for each machine, for the page."""
    made = []
    for number, (machine, here) in enumerate(by_machine(found).items()):
        caption = f"A dot a case and mode, against the fastest other implementation; {machine}"
        with curves.styled():
            content = curves.svg(figure(here))
        made.append(curves.Picture(curves.embedded(content, f"rivals{number}", caption), caption))
    return made
