"""Times of kernels as tables: one row a provider and clock, whether it wins or loses."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from suite.record import Micro, Record, Timing
from suite.report import text
from suite.report.files import footnotes
from suite.report.series import device_of, machine_of
from suite.report.text import NONE, code, md
from suite.stats import Interval, hodges_lehmann_interval

BASELINE = "reference"
PAGE, CSV = "tables/kernels.md", "tables/kernels.csv"
# The order of our own providers; others follow by name.
FIRST = (BASELINE, "torch", "compile", "triton")
CLOCKS = {
    ("wall", "warm"): "wall",
    ("cpu_time", "warm"): "processor time",
    ("cuda_events", "cold"): "cold",
    ("cuda_events", "warm"): "warm",
    ("graph_replay", "warm"): "graph replay",
}
LEGEND = """\
A row is one call by one clock. All providers of a case are timed in turn, in rounds of random \
order; the **ratio** is how many times as long the reference takes in the same round: the \
Hodges-Lehmann estimate over the rounds, with the 95 % interval that the exact signed-rank test \
leaves. Below one it is slower than the reference. The **error** is that of values, then of \
gradients, against float64, relative in the Frobenius norm; in brackets as a multiple of plain \
PyTorch's in the same type. What is wrong by more than allowed has no time. A public package that \
defines the op otherwise is compared with itself. *Cold* is after the L2 cache was flushed, *graph \
replay* is within a CUDA graph, without launch overhead. The share of the **roofline** is that of \
the least time in which the device could move every input and output once and do the matrix \
products; it is given where the device's peaks are known.
"""


@dataclass(frozen=True)
class Line:
    """One provider by one clock.

    Attributes:
        record: where it stands.
        micro: its part of the record.
        timing: the samples; None where there are none.
        why: the reason for that.
        against: the reference's samples of the same rounds, or None.
    """

    record: Record
    micro: Micro
    timing: Timing | None
    why: str
    against: Timing | None

    @property
    def clock(self) -> str:
        """What timed it."""
        return CLOCKS[self.timing.timer, self.timing.cache] if self.timing else NONE

    @property
    def median_s(self) -> float | None:
        """The median of the samples."""
        return statistics.median(self.timing.samples_s) if self.timing else None

    @property
    def spread_s(self) -> tuple[float, float] | None:
        """The 20th and the 80th percentile."""
        if self.timing is None or len(self.timing.samples_s) < 2:
            return None
        cuts = statistics.quantiles(self.timing.samples_s, n=5, method="inclusive")
        return cuts[0], cuts[-1]

    @property
    def ratio(self) -> Interval | None:
        """How many times as long the reference takes in the same round."""
        if self.timing is None or self.against is None or self.micro.provider == BASELINE:
            return None
        pairs = zip(self.against.samples_s, self.timing.samples_s, strict=True)
        found = hodges_lehmann_interval([math.log(a / b) for a, b in pairs])
        estimate, low, high = (math.exp(v) for v in (found.estimate, found.low, found.high))
        return Interval(estimate, low, high, found.level, found.n, "log")

    @property
    def roofline(self) -> float | None:
        """The share of the device's peak, which compares with a cold cache only."""
        if self.timing is None or self.timing.cache != "cold" or self.micro.work is None:
            return None
        return self.micro.work.roofline


def lines(records: Iterable[Record]) -> list[Line]:
    """The rows of all tables: of each call the newest record on each kind of machine."""
    timed = [r for r in records if r.micro and r.micro.producer != "foreign"]
    sessions = {(_cell(r), r.micro.session, r.micro.provider): r for r in timed if r.micro}
    newest: dict[tuple[Any, ...], Record] = {}
    for record in sorted(timed, key=lambda r: (r.ended_utc, r.record_id)):
        newest[(*_cell(record), record.impl)] = record
    found: list[Line] = []
    for record in newest.values():
        micro = record.micro
        if micro is None:
            continue
        other = sessions.get((_cell(record), micro.session, BASELINE))
        found += _lines(record, micro, other.micro if other else None)
    return sorted(found, key=_order)


def _lines(record: Record, micro: Micro, other: Micro | None) -> list[Line]:
    clocks = {(t.timer, t.cache): t for t in other.timings} if other else {}
    found = [
        Line(record, micro, t, "", _paired(t, clocks.get((t.timer, t.cache))))
        for t in micro.timings
    ]
    if not found:
        return [Line(record, micro, None, f"{record.status}: {record.status_detail}", None)]
    missing = [
        Line(record, micro, None, f"no {timer.replace('_', ' ')}: {why}", None)
        for timer, why in sorted(micro.missing.items())
    ]
    return found + missing


def _paired(timing: Timing, other: Timing | None) -> Timing | None:
    """The other samples, where there is one for each."""
    return other if other and len(other.samples_s) == len(timing.samples_s) else None


def _cell(record: Record) -> tuple[Any, ...]:
    micro = record.micro
    assert micro is not None
    # The same name may stand for several sizes; numbers sort as numbers.
    sizes = tuple((k, isinstance(v, str), str(v).rjust(12)) for k, v in sorted(micro.shape.items()))
    return micro.op, machine_of(record), micro.case, sizes, micro.dtype, micro.mode


def _order(line: Line) -> tuple[Any, ...]:
    provider = line.micro.provider
    rank = FIRST.index(provider) if provider in FIRST else len(FIRST)
    clock = [*CLOCKS.values(), NONE].index(line.clock)
    return (*_cell(line.record), rank, provider, clock)


def render(records: Sequence[Record]) -> dict[str, str]:
    """The tables as text, path below the store -> content; none where nothing was timed."""
    found = lines(records)
    checks = _newest_checks(records)
    if not found and not checks:
        return {}
    from suite.report import rivals

    parts = ["# Kernels: what each implementation costs\n", rivals.render(found)]
    parts.append(f"## Every case\n\n{LEGEND}" if found else "")
    for op in dict.fromkeys(line.micro.op for line in found):
        parts.append(f"## {code(op)}\n")
        of_op = [line for line in found if line.micro.op == op]
        for machine in dict.fromkeys(machine_of(line.record) for line in of_op):
            here = [line for line in of_op if machine_of(line.record) == machine]
            untimed = _untimed(here)
            shown = [line for line in here if _cell(line.record) not in untimed]
            parts.append(f"{md(machine)}, {md(_versions(here))}\n")
            parts.append(
                text.md_table([n for n, _ in COLUMNS], ([c(x) for _, c in COLUMNS] for x in shown))
                if shown
                else ""
            )
            parts.append(_left_out(untimed.values()))
    if checks:
        parts.append("## Checks on the device\n")
        parts.append(text.md_table(CHECK_HEAD, map(_check, checks)))
    page = "\n".join(part for part in parts if part)
    page += "".join(f"\n- {note}" for note in footnotes(page))
    rows = ([cell(line) for _, cell in CSV_COLUMNS] for line in found)
    return {PAGE: page.rstrip("\n") + "\n", CSV: text.csv_table([n for n, _ in CSV_COLUMNS], rows)}


def _untimed(here: Iterable[Line]) -> dict[tuple[Any, ...], Line]:
    """One line of each call that was skipped for one reason, whoever computes it."""
    cells: dict[tuple[Any, ...], list[Line]] = {}
    for line in here:
        cells.setdefault(_cell(line.record), []).append(line)
    return {
        cell: found[0]
        for cell, found in cells.items()
        if all(line.record.status == "skipped" for line in found)
        and len({line.why for line in found}) == 1
    }


def _left_out(skipped: Iterable[Line]) -> str:
    """What a table would say again for every provider, once for each reason."""
    reasons: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for line in skipped:
        call = line.micro.case, _size(line), line.micro.dtype
        reasons.setdefault(line.why, {}).setdefault(call, []).append(line.micro.mode)
    return "".join(
        f"No provider has a time here; {md(why)}\n\n"
        + "".join(
            f"- {md(case)} ({md(size)}), {code(dtype)}, {' and '.join(map(code, modes))}\n"
            for (case, size, dtype), modes in calls.items()
        )
        for why, calls in reasons.items()
    )


def _versions(here: Sequence[Line]) -> str:
    found = {
        f"PyTorch {r.env.torch.version}"
        + (f", Triton {r.env.triton['version']}" if r.env.triton else "")
        + (f", {r.env.torch.num_threads} threads" if device_of(r) == "cpu" else "")
        for r in (line.record for line in here)
    }
    return "; ".join(sorted(found))


CHECK_HEAD = [
    "Checks",
    "Machine",
    "Passed",
    "Failed",
    "Skipped",
    "Not run yet",
    "Failures",
    "Commit",
]


def _newest_checks(records: Iterable[Record]) -> list[Record]:
    found: dict[tuple[str, str], Record] = {}
    for record in sorted((r for r in records if r.check), key=lambda r: (r.ended_utc, r.record_id)):
        found[record.task.id, machine_of(record)] = record
    return [found[key] for key in sorted(found)]


def _check(record: Record) -> list[str]:
    check = record.check
    assert check is not None
    kinds = list(check.outcomes.values())
    failed = [name for name, outcome in sorted(check.outcomes.items()) if outcome == "failed"]
    counts = [str(kinds.count(kind)) for kind in ("passed", "failed", "skipped")]
    shown = ", ".join(map(code, failed[:10])) + (" and more" if len(failed) > 10 else "")
    return [
        md(check.name),
        md(machine_of(record)),
        *counts,
        str(check.left),
        shown or NONE,
        _commit(record),
    ]


def _commit(record: Record) -> str:
    dirty = "" if record.code.dirty is False else "†"
    contended = "‡" if record.placement.contended else ""
    return (record.code.commit or "unknown")[:7] + dirty + contended


def _time(line: Line) -> str:
    if line.median_s is None:
        return md(line.why)
    steps = line.micro.shape.get("T")
    per_step = f" ({duration(line.median_s / steps)} a step)" if steps else ""
    return duration(line.median_s) + per_step


def duration(seconds: float) -> str:
    """Three digits in nano-, micro- or milliseconds, or seconds."""
    for unit, name in ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms")):
        if seconds < 999.5 * unit:
            return f"{seconds / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{seconds:#.3g} s"


def _spread(line: Line) -> str:
    return " to ".join(map(duration, line.spread_s)) if line.spread_s else NONE


def _ratio(line: Line) -> str:
    found = line.ratio
    if found is None:
        return NONE
    bounded = math.isfinite(found.high)
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if bounded else " (too few rounds to bound it)"
    return f"{found.estimate:.3g}{ends}"


def _error(line: Line) -> str:
    shown = []
    for a in line.micro.accuracy:
        size = "not finite" if a.err_rel is None else f"{a.err_rel:.1e}"
        times = f" ({a.ratio_vs_eager:.2g}×)" if a.ratio_vs_eager is not None else ""
        wrong = "" if a.ok else f", over {a.limit:.1e}"
        shown.append(size + times + wrong)
    return "; ".join(shown) or NONE


def _share(line: Line) -> str:
    return NONE if line.roofline is None else f"{100 * line.roofline:.0f} %"


def _size(line: Line) -> str:
    sizes = line.micro.shape.items()
    return " ".join(f"{k}{v}" if len(k) == 1 else f"{k} {v}" for k, v in sizes)


COLUMNS: tuple[tuple[str, Callable[[Line], str]], ...] = (
    ("Case", lambda x: md(x.micro.case)),
    ("Sizes", lambda x: md(_size(x))),
    ("Type", lambda x: code(x.micro.dtype)),
    ("Computes", lambda x: code(x.micro.mode)),
    ("Provider", lambda x: code(x.micro.provider)),
    ("Clock", lambda x: x.clock),
    ("Median", _time),
    ("20 to 80 %", _spread),
    ("Ratio", _ratio),
    ("Roofline", _share),
    ("Error", lambda x: md(_error(x))),
    ("Peak memory", lambda x: text.memory(x.micro.peak_mem_bytes)),
    ("Commit", lambda x: _commit(x.record)),
)

CSV_COLUMNS: tuple[tuple[str, Callable[[Line], Any]], ...] = (
    ("op", lambda x: x.micro.op),
    ("case", lambda x: x.micro.case),
    ("shape", _size),
    ("dtype", lambda x: x.micro.dtype),
    ("mode", lambda x: x.micro.mode),
    ("provider", lambda x: x.micro.provider),
    ("resolved", lambda x: x.micro.resolved),
    ("origin", lambda x: x.micro.origin),
    ("producer", lambda x: x.micro.producer),
    ("device", lambda x: device_of(x.record)),
    ("machine", lambda x: machine_of(x.record)),
    ("status", lambda x: x.record.status),
    ("why", lambda x: x.why),
    ("timer", lambda x: x.timing.timer if x.timing else ""),
    ("cache", lambda x: x.timing.cache if x.timing else ""),
    ("n", lambda x: len(x.timing.samples_s) if x.timing else 0),
    ("median_s", lambda x: text.computed(x.median_s)),
    ("p20_s", lambda x: text.computed(x.spread_s[0] if x.spread_s else None)),
    ("p80_s", lambda x: text.computed(x.spread_s[1] if x.spread_s else None)),
    ("ratio", lambda x: text.computed(x.ratio.estimate if x.ratio else None)),
    ("ratio_low95", lambda x: text.computed(x.ratio.low if x.ratio else None)),
    ("ratio_high95", lambda x: text.computed(x.ratio.high if x.ratio else None)),
    ("flops", lambda x: x.micro.work and x.micro.work.flops),
    ("bytes", lambda x: x.micro.work and x.micro.work.bytes),
    ("roofline", lambda x: text.computed(x.roofline)),
    ("error", _error),
    ("peak_mem_bytes", lambda x: x.micro.peak_mem_bytes),
    ("session", lambda x: x.micro.session),
    ("commit", lambda x: x.record.code.commit),
    ("dirty", lambda x: x.record.code.dirty is not False),
    ("record", lambda x: x.record.record_id[:16]),
)
