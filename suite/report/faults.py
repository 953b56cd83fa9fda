"""What faults on purpose cost, one row a struck run, as Markdown, CSV and rows of the page."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from suite.record import FaultInfo, Record
from suite.report import text
from suite.report.text import NONE, code, md

INTRODUCTION = (
    "Each run was made twice with the same seed: left alone, and struck by a fault on purpose. "
    "Recovery is the time from the strike to the run's next row; lost steps were done twice; "
    "goodput is the wall time of the run alone over that of the struck run; overhead is how much "
    "later the target was crossed. A short run that loses a node has a low goodput by its nature: "
    "what recovery costs does not depend on how long the run is."
)

Cell = Callable[[Record, FaultInfo], Any]

COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("Task", lambda r, f: code(r.task.id)),
    ("Profile", lambda r, f: code(r.task.profile)),
    ("Variant", lambda r, f: code(r.variant)),
    ("Seed", lambda r, f: str(r.seed)),
    ("Fault", lambda r, f: code(kind_of(r))),
    ("On", lambda r, f: code(f.on)),
    ("Status", lambda r, f: md(r.status)),
    ("Struck at step", lambda r, f: f"{f.step:,} of {f.of_steps:,}"),
    ("Noticed after", lambda r, f: text.duration(f.detected_s)),
    ("Recovery", lambda r, f: text.duration(f.recovery_s)),
    ("Lost steps", lambda r, f: f"{f.lost_steps:,}"),
    ("Goodput", lambda r, f: text.number(f.goodput)),
    ("Overhead to target", lambda r, f: text.duration(f.overhead_to_target_s)),
    ("Same parameters", lambda r, f: same(f)),
    (
        "Commit",
        lambda r, f: md((r.code.commit or "unknown")[:7] + "†" * (r.code.dirty is not False)),
    ),
)

CSV_COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("task", lambda r, f: r.task.id),
    ("profile", lambda r, f: r.task.profile),
    ("variant", lambda r, f: r.variant),
    ("impl", lambda r, f: r.impl),
    ("seed", lambda r, f: r.seed),
    ("fault", lambda r, f: kind_of(r)),
    ("at", lambda r, f: f.at),
    ("on", lambda r, f: f.on),
    ("status", lambda r, f: r.status),
    ("step", lambda r, f: f.step),
    ("of_steps", lambda r, f: f.of_steps),
    ("resumed_step", lambda r, f: f.resumed_step),
    ("lost_steps", lambda r, f: f.lost_steps),
    ("detected_s", lambda r, f: text.computed(f.detected_s)),
    ("recovery_s", lambda r, f: text.computed(f.recovery_s)),
    ("clean_wall_s", lambda r, f: text.computed(f.clean_wall_s)),
    ("wall_s", lambda r, f: text.computed(f.wall_s)),
    ("goodput", lambda r, f: text.computed(f.goodput)),
    ("clean_to_target_s", lambda r, f: text.computed(f.clean_to_target_s)),
    ("to_target_s", lambda r, f: text.computed(f.to_target_s)),
    ("overhead_to_target_s", lambda r, f: text.computed(f.overhead_to_target_s)),
    ("same_params", lambda r, f: f.same_params),
    ("dirty", lambda r, f: r.code.dirty is not False),
    ("record", lambda r, f: r.record_id[:16]),
)


def kind_of(record: Record) -> str:
    """The kind of the fault and when it struck, such as ``node_kill@0.4``."""
    assert record.fault is not None
    return f"{record.faults[0].kind}@{record.fault.at:g}"


def same(fault: FaultInfo) -> str:
    """Whether the struck run ended with the parameters of the run alone."""
    return {True: "yes, bit for bit", False: "no", None: NONE}[fault.same_params]


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each fault, in the order of tasks, variants, seeds and kinds."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (r.ended_utc, r.record_id)):
        if record.kind == "fault" and record.fault is not None and record.faults:
            found[record.run_id] = record
    return sorted(
        found.values(),
        key=lambda r: (r.task.id, r.task.profile, r.variant, r.impl, r.seed, kind_of(r), r.run_id),
    )


def table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of ``newest`` records, as Markdown."""
    rows = [[cell(r, r.fault) for _, cell in COLUMNS] for r in records if r.fault]
    return [name for name, _ in COLUMNS], rows


def render(records: Sequence[Record]) -> dict[str, str]:
    """The files of ``newest`` records: path below the store -> content; none without records."""
    if not records:
        return {}
    head, rows = table(records)
    rows_csv = [[cell(r, r.fault) for _, cell in CSV_COLUMNS] for r in records if r.fault]
    return {
        "tables/faults.md": f"# Faults\n\n{INTRODUCTION}\n\n{text.md_table(head, rows)}",
        "tables/faults.csv": text.csv_table([name for name, _ in CSV_COLUMNS], rows_csv),
    }
