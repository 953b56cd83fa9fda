"""How far benchmarks differ from themselves: the ledger of A/A pairs, as Markdown and CSV."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suite.gate.decide import INFORMATIONAL, Decision, decide, detectable, floor, margin
from suite.gate.session import PAIRS
from suite.gate.values import log_ratios, typical
from suite.gate.verdict import same_code
from suite.record import AbBlock, Record
from suite.report import text
from suite.report.text import code, md

INTRODUCTION = (
    "The same code was compared with itself (`suite aa`). Half of the pairs differ by less than "
    "the spread. The floor is how far the pairs as a whole may lie from no change, and the margin "
    f"of later comparisons on such a machine is no less. {PAIRS} pairs find a slowdown of the last "
    "column in 80 % of sessions, if nothing else is compared."
)


@dataclass(frozen=True)
class Noise:
    """A benchmark against itself on one kind of machine.

    Attributes:
        machine: its processor.
        benchmark: as pytest names it.
        clock: that decides.
        seconds: of a call, the median over pairs.
        spread: the median distance of a pair from no change, as a fraction.
        floor: None where there are too few pairs to say.
        decision: what the gate says of all pairs.
        finds: the slowdown that a session finds; None for a benchmark that is not gated.
    """

    machine: str
    benchmark: str
    clock: str
    seconds: float
    spread: float
    floor: float | None
    decision: Decision
    finds: float | None


def ledger(records: Iterable[Record]) -> list[Noise]:
    """All A/A pairs of a store, by machine and benchmark."""
    blocks: dict[str, list[AbBlock]] = {}
    for record in records:
        if record.ab_block and same_code(record.ab_block):
            machine = record.nodes[0].cpu_model or "unknown"
            blocks.setdefault(machine, []).append(record.ab_block)
    return [
        _noise(machine, name, y, found)
        for machine, found in sorted(blocks.items())
        for name, y in sorted(log_ratios(found).items())
    ]


def _noise(machine: str, name: str, y: Sequence[float], blocks: Sequence[AbBlock]) -> Noise:
    timed = [
        c for b in blocks for c in b.comparisons if c.benchmark == name and c.control == "none"
    ]
    found = floor(y)
    decision = decide({name: y}, {} if found is None else {name: found})[name]
    return Noise(
        machine=machine,
        benchmark=name,
        clock=timed[-1].clock,
        seconds=float(np.median([typical(c.base, c.clock) for c in timed])),
        spread=float(np.expm1(np.median(np.abs(y)))),
        floor=found,
        decision=decision,
        finds=None if decision.verdict == INFORMATIONAL else detectable(y, PAIRS, margin(found)),
    )


def _percent(x: float | None) -> str:
    return text.NONE if x is None else f"{100 * x:.1f} %"


CLOCKS = {"cpu": "processor", "gpu": "GPU", "wall": "wall"}

COLUMNS: tuple[tuple[str, Callable[[Noise], Any]], ...] = (
    ("Machine", lambda x: md(x.machine)),
    ("Benchmark", lambda x: code(x.benchmark)),
    ("Clock", lambda x: CLOCKS[x.clock]),
    ("A call", lambda x: text.duration(x.seconds)),
    ("Pairs", lambda x: str(x.decision.pairs)),
    ("Spread", lambda x: _percent(x.spread)),
    ("Floor", lambda x: _percent(x.floor)),
    ("Gated", lambda x: "yes" if x.decision.gated else "no"),
    (f"{PAIRS} pairs find", lambda x: _percent(x.finds)),
)

CSV_COLUMNS: tuple[tuple[str, Callable[[Noise], Any]], ...] = (
    ("machine", lambda x: x.machine),
    ("benchmark", lambda x: x.benchmark),
    ("clock", lambda x: x.clock),
    ("seconds", lambda x: text.computed(x.seconds)),
    ("pairs", lambda x: x.decision.pairs),
    ("change", lambda x: text.computed(x.decision.change)),
    ("low", lambda x: text.computed(x.decision.low)),
    ("high", lambda x: text.computed(x.decision.high)),
    ("spread", lambda x: text.computed(x.spread)),
    ("floor", lambda x: text.computed(x.floor)),
    ("verdict", lambda x: x.decision.verdict),
    ("finds", lambda x: text.computed(x.finds)),
)


def render(found: Sequence[Noise]) -> dict[str, str]:
    """The files of a ledger: path below the store -> content; none without pairs."""
    if not found:
        return {}
    head, rows = [name for name, _ in COLUMNS], [[cell(x) for _, cell in COLUMNS] for x in found]
    rows_csv = [[cell(x) for _, cell in CSV_COLUMNS] for x in found]
    return {
        "tables/noise.md": (
            f"# Benchmarks against themselves\n\n{INTRODUCTION}\n\n{text.md_table(head, rows)}"
        ),
        "tables/noise.csv": text.csv_table([name for name, _ in CSV_COLUMNS], rows_csv),
    }
