"""What stands behind a row: who ran what, where, on which data, and each seed's numbers.

Each function returns plain data for the page: a title, a sentence, named facts and a table.
"""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from suite.record import Record
from suite.report.rows import ClaimRow, Row, label
from suite.report.series import Series, value_of
from suite.report.text import (
    NONE,
    duration,
    flat,
    goal,
    interval,
    joules,
    memory,
    number,
    plural,
    usd,
)

Details = dict[str, Any]


def of_row(row: Row) -> Details:
    """Behind a series and its target."""
    series, t = row.series, row.target
    facts = [
        ("Target", [f"{t.metric} {goal(t)}", t.source] if t else ["none"]),
        (
            "Measured",
            [f"{row.metric} {interval(row.measured)}, {row.seeds} seeds, met by {row.met}"],
        ),
        ("Note", [row.note] if row.note else []),
        *_facts(series),
    ]
    head = ["Seed", "Status", row.metric or "", "Steps to target", "Training", "Wall", "Record"]
    return {
        "title": f"{row.group.task}: {series.label}, {row.group.profile}, {series.computed_by}",
        "verdict": label(row.word),
        "sentence": row.verdict.detail if row.verdict else row.why,
        "facts": [[name, [flat(v) for v in values]] for name, values in facts if values],
        "head": head,
        "rows": [_seed(r, row) for r in series.runs],
    }


def of_claim(row: ClaimRow) -> Details:
    """Behind a claim."""
    claim, v = row.claim, row.verdict
    facts: list[tuple[str, list[str]]] = [
        ("Claimed in", [claim.source]),
        ("Rule", [_rule(row)]),
        ("Left less right", [row.difference]),
        ("Effect", [row.effect] if row.effect else []),
        ("One-sided p", _p_values(row)),
        ("Note", [row.note] if row.note else []),
    ]
    for series in row.sides:
        name = series.label
        facts += [(f"{name}: {fact}", values) for fact, values in _facts(series)[:5]]
    left, right = row.left, row.right
    head = ["Seed", claim.left, str(claim.right), "Left record", "Right record"]
    return {
        "title": f"{row.group.task}, {row.group.profile}: {claim.text}",
        "verdict": label(row.word),
        "sentence": v.detail if v else row.why,
        "facts": [[name, [flat(x) for x in values]] for name, values in facts if values],
        "head": head,
        "rows": _pairs(row, left, right),
    }


def _p_values(row: ClaimRow) -> list[str]:
    if row.verdict is None or row.verdict.p is None:
        return []
    return [f"{number(row.verdict.p)}; over all claims of the task (Holm) {number(row.p_holm)}"]


def _facts(series: Series) -> list[tuple[str, list[str]]]:
    runs = series.runs
    return [
        ("Commit", _distinct(runs, _commit)),
        ("Command", _distinct(runs, lambda r: " ".join(r.code.argv))),
        ("Data", _distinct(runs, lambda r: [_data(d) for d in r.data])),
        ("Machine", list(series.machines)),
        ("Versions", _distinct(runs, _versions)),
        ("Placement", _distinct(runs, _placement)),
        ("Config", _distinct(runs, lambda r: _named(r.config.resolved))),
        ("Kernels", _distinct(runs, _kernels)),
        ("Determinism", _distinct(runs, lambda r: r.determinism)),
        ("Clock, median", [_clock(series)]),
        ("Time per step, median", _step_time(series)),
        ("Peak memory", [_peak(series)]),
        ("Energy", _distinct(runs, _energy)),
        ("Cost", _distinct(runs, _price)),
        ("Records", [f"records/{series.any.task.id}/<run>.<record>.json"]),
        ("Task version", _distinct(runs, lambda r: r.task.version)),
        ("Campaign", _distinct(runs, lambda r: r.campaign_id)),
    ]


def _distinct(runs: Iterable[Record], read: Callable[[Record], str | list[str]]) -> list[str]:
    """What the runs say, each thing once."""
    said: set[str] = set()
    for record in runs:
        found = read(record)
        said |= {found} if isinstance(found, str) else set(found)
    return sorted(said - {""})


def _commit(r: Record) -> str:
    if r.code.commit is None:
        return "unknown: not run from a checkout"
    state = {True: ", with uncommitted changes", None: ", state of the tree unknown", False: ""}
    diff = f" (diff {r.code.diff_sha256[:16]})" if r.code.diff_sha256 else ""
    return f"{r.code.commit}{state[r.code.dirty]}{diff}"


def _data(d: Any) -> str:
    checksum = f"sha256 {d.sha256[:16]}" if d.sha256 else "no checksum"
    splits = _named(d.splits)
    return ", ".join(filter(None, (f"{d.name} ({d.kind})", splits, checksum, d.licence, d.notes)))


def _versions(r: Record) -> str:
    packages = {**r.env.packages, "torch": r.env.torch.version}
    cuda = f", CUDA {r.env.torch.cuda}" if r.env.torch.cuda else ""
    return (
        f"Python {r.env.python}{cuda}, {', '.join(f'{k} {v}' for k, v in sorted(packages.items()))}"
    )


def _placement(r: Record) -> str:
    p = r.placement
    neighbours = (
        f"{plural(p.colocated_runs, 'other run')} beside it" if p.colocated_runs else "alone"
    )
    flag = ", contended" if p.contended else ""
    gpus = f", {p.gpus:g} GPU" if p.gpus else ""
    return f"{p.scheduler}, {plural(p.cpus, 'core')}{gpus}, {neighbours}{flag}"


def _kernels(r: Record) -> str:
    ran = [f"{op}: {_named(calls)}" for op, calls in sorted(r.kernels.dispatched.items())]
    return "; ".join([f"asked for {r.kernels.requested}", *ran])


def _clock(series: Series) -> str:
    parts = ("wall", "setup", "train", "eval", "checkpoint", "recovery")
    medians = {p: statistics.median(getattr(r.clock, f"{p}_s") for r in series.runs) for p in parts}
    return ", ".join(f"{p} {duration(s)}" for p, s in medians.items() if s or p == "wall")


def _step_time(series: Series) -> list[str]:
    found = [r.train.step_time_s.median for r in series.runs if r.train and r.train.step_time_s]
    return [f"{1e3 * statistics.median(found):.4g} ms"] if found else []


def _peak(series: Series) -> str:
    peaks: dict[str, int] = {}
    for record in series.runs:
        for place, n_bytes in (record.train.peak_mem_bytes if record.train else {}).items():
            peaks[place] = max(peaks.get(place, 0), n_bytes or 0)
    return ", ".join(f"{place} {memory(n)}" for place, n in sorted(peaks.items()) if n)


def _energy(r: Record) -> str:
    if r.cost.energy_j is None:
        return r.cost.energy_method
    return f"{joules(r.cost.energy_j)}: {r.cost.energy_method}"


def _price(r: Record) -> str:
    return "" if r.cost.usd is None else f"{usd(r.cost.usd)}: {r.cost.price_source}"


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{k}={values[k]}" for k in sorted(values))


def _seed(r: Record, row: Row) -> list[str]:
    steps = row.crossings.get(r.seed)
    value = value_of(r, row.metric) if row.metric else None
    status = f"{r.status}: {r.status_detail}" if r.status_detail else r.status
    return [
        str(r.seed),
        flat(status),
        NONE if value is None else f"{value:.6g}",
        number(steps),
        duration(r.clock.train_s),
        duration(r.clock.wall_s),
        r.record_id[:16],
    ]


def _rule(row: ClaimRow) -> str:
    claim = row.claim
    sign = "above" if claim.mode == "max" else "below"
    margin = f" by more than {claim.margin:g}" if claim.margin else ""
    return f"{claim.metric} of {claim.left} {sign} {claim.right}{margin}, paired by seed"


def _pairs(row: ClaimRow, left: Series | None, right: Series | float | None) -> list[list[str]]:
    sides = [s if isinstance(s, Series) else None for s in (left, right)]
    values = [s.values(row.claim.metric) if s else {} for s in sides]
    names = [{r.seed: r.record_id[:16] for r in s.runs} if s else {} for s in sides]
    fixed = None if isinstance(right, Series) else right
    table = []
    for seed in sorted({*names[0], *names[1]}):
        shown = [values[0].get(seed), fixed if fixed is not None else values[1].get(seed)]
        cells = [NONE if v is None else f"{v:.6g}" for v in shown]
        table.append([str(seed), *cells, names[0].get(seed, NONE), names[1].get(seed, NONE)])
    return table
