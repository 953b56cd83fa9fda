"""Judged rows as Markdown and CSV files."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from suite.record import Record
from suite.report import text
from suite.report.rows import LEGEND, ClaimRow, Row, TaskRow, label, mean
from suite.report.series import Series
from suite.report.tables import Tables
from suite.report.text import NONE, code, md
from suite.stats import clopper_pearson

BOOK = "Fundamentals of Deep Learning, 2nd edition"

CHAPTERS = {
    1: "Fundamentals of Linear Algebra for Deep Learning",
    2: "Fundamentals of Probability",
    3: "The Neural Network",
    4: "Training Feed-Forward Neural Networks",
    5: "Implementing Neural Networks in PyTorch",
    6: "Beyond Gradient Descent",
    7: "Convolutional Neural Networks",
    8: "Embedding and Representation Learning",
    9: "Models for Sequence Analysis",
    10: "Generative Models",
    11: "Methods in Interpretability",
    12: "Memory Augmented Neural Networks",
    13: "Deep Reinforcement Learning",
}

FOOTNOTES = {
    "†": "measured from an uncommitted tree, or one whose state is unknown; not publishable",
    "‡": "timed on a machine that other work shared",
    "§": "timed on more than one kind of machine",
    "¶": "the seeds read different copies of a data set",
}

NO_RECORDS = "There are no records yet. Type `suite reproduce` to make some."
SMOKE = "A smoke run is a few seconds long: it shows that the code runs, and is no result."

HOW_COMPARED = (
    "Runs are paired by seed. g is the difference in standard deviations (Hedges), P(better) the "
    "chance that a run of the left is better than one of the right, whatever their seeds; above 0 "
    "and above 0.5 they speak for the claim. Each verdict stands for itself: claims.csv also has "
    "p_holm, adjusted for all claims of the task."
)

Column = tuple[str, Callable[[Row], Any]]
ClaimColumn = tuple[str, Callable[[ClaimRow], Any]]


def commit(row: Row) -> str:
    """The commits of the runs, with their footnotes."""
    return ", ".join(row.series.commits) + ("†" if row.series.dirty else "")


def data(series: Series) -> str:
    """The data sets that were read, with their kind unless they are the real ones."""
    kinds = {"real": "", "standin": " (stand-in)"}
    names = [f"{name}{kinds.get(kind, f' ({kind})')}" for name, kind in series.data]
    return ", ".join(names) + ("¶" if series.mixed_data else "")


def peak_memory(row: Row) -> str:
    """The largest peak of memory: of the GPU where one computed."""
    place = "gpu" if row.series.device == "gpu" and row.peak_bytes("gpu") else "cpu"
    return text.memory(row.peak_bytes(place))


ROW_COLUMNS: tuple[Column, ...] = (
    ("Profile", lambda r: code(r.group.profile)),
    ("Variant", lambda r: code(r.series.label)),
    ("Implementation", lambda r: code(r.series.computed_by)),
    ("Seeds", lambda r: md(r.seeds)),
    ("Metric", lambda r: code(r.metric or "")),
    ("Mean [95 % interval]", lambda r: md(text.interval(r.measured))),
    ("Target", lambda r: md(text.goal(r.target))),
    ("Met by", lambda r: md(r.met)),
    ("Verdict", lambda r: md(label(r.word))),
    ("Steps to target", lambda r: md(r.steps)),
    ("Time to target", lambda r: r.to_target),
    ("Training", lambda r: r.training),
    ("Energy to target", lambda r: text.joules(r.joules_to_target)),
    ("Cost to target", lambda r: text.usd(r.usd_to_target)),
    ("Parameters", lambda r: text.count(r.n_params)),
    ("Peak memory", peak_memory),
    ("Data", lambda r: md(data(r.series))),
    ("Machine", lambda r: md("; ".join(r.series.machines))),
    ("Commit", lambda r: md(commit(r))),
)

CSV_COLUMNS: tuple[Column, ...] = (
    ("chapter", lambda r: r.group.newest.task.chapter),
    ("task", lambda r: r.group.task),
    ("title", lambda r: r.group.title),
    ("section", lambda r: r.group.newest.task.section),
    ("profile", lambda r: r.group.profile),
    ("variant", lambda r: r.series.any.variant),
    ("overrides", lambda r: r.series.overrides),
    ("impl", lambda r: r.series.any.impl),
    ("device", lambda r: r.series.device),
    ("n", lambda r: r.attempted - r.failed),
    ("failed", lambda r: r.failed),
    ("failures", lambda r: _pairs(r.series.failures)),
    ("metric", lambda r: r.metric),
    ("mean", lambda r: text.computed(r.measured.estimate if r.measured else None)),
    ("low95", lambda r: text.computed(r.measured.low if r.measured and r.measured.n > 1 else None)),
    (
        "high95",
        lambda r: text.computed(r.measured.high if r.measured and r.measured.n > 1 else None),
    ),
    ("values", lambda r: _points(r.values)),
    ("target_op", lambda r: r.target and r.target.mode),
    ("target", lambda r: r.target and r.target.value),
    ("tolerance", lambda r: r.target and r.target.tolerance),
    ("target_source", lambda r: r.target and r.target.source),
    ("met", lambda r: r.verdict and r.verdict.met),
    ("met_low95", lambda r: _met_bound(r)),
    ("verdict", lambda r: label(r.word)),
    ("why", lambda r: r.why),
    ("steps_to_target", lambda r: text.computed(r.series.median(r.crossings.values()))),
    ("reached", lambda r: sum(v is not None for v in r.crossings.values())),
    ("censored", lambda r: sum(v is None for v in r.crossings.values())),
    ("crossings", lambda r: _points(r.crossings)),
    ("train_to_target_s", lambda r: text.computed(r.to_target_s)),
    ("train_s", lambda r: text.computed(r.train_s)),
    ("train_to_target_j", lambda r: text.computed(r.joules_to_target)),
    ("train_to_target_usd", lambda r: text.computed(r.usd_to_target)),
    ("contended", lambda r: r.series.contended),
    ("n_params", lambda r: r.n_params),
    ("peak_cpu_bytes", lambda r: r.peak_bytes("cpu")),
    ("peak_gpu_bytes", lambda r: r.peak_bytes("gpu")),
    ("data", lambda r: ";".join(name for name, _ in r.series.data)),
    ("data_kind", lambda r: ";".join(kind for _, kind in r.series.data)),
    ("mixed_data", lambda r: r.series.mixed_data),
    ("machine", lambda r: "; ".join(r.series.machines)),
    ("commit", lambda r: ";".join(r.series.commits)),
    ("dirty", lambda r: r.series.dirty),
    ("task_version", lambda r: r.group.newest.task.version[:16]),
    ("records", lambda r: " ".join(f"{x.seed}:{x.record_id[:16]}" for x in r.series.runs)),
)

# What few machines can measure has a column only where one has.
WHERE_MEASURED: dict[str, Callable[[Row], float | None]] = {
    "Energy to target": lambda r: r.joules_to_target,
    "Cost to target": lambda r: r.usd_to_target,
    "train_to_target_j": lambda r: r.joules_to_target,
    "train_to_target_usd": lambda r: r.usd_to_target,
}

CLAIM_COLUMNS: tuple[ClaimColumn, ...] = (
    ("Claim", lambda c: md(c.claim.text)),
    ("Task", lambda c: code(c.group.task)),
    ("Profile", lambda c: code(c.group.profile)),
    ("Implementation", lambda c: code(c.impl) if c.sides else NONE),
    ("Metric", lambda c: code(c.claim.metric)),
    ("Left", lambda c: md(c.left_text)),
    ("Right", lambda c: md(c.right_text)),
    ("Left less right", lambda c: md(c.difference)),
    ("Effect", lambda c: md(c.effect or NONE)),
    ("Held in", lambda c: md(c.pairs)),
    ("Verdict", lambda c: md(label(c.word)) + ("†" if c.dirty else "")),
    ("Why", lambda c: md(c.why)),
    ("Source", lambda c: md(c.claim.source)),
)

CLAIM_CSV_COLUMNS: tuple[ClaimColumn, ...] = (
    ("chapter", lambda c: c.group.newest.task.chapter),
    ("task", lambda c: c.group.task),
    ("claim", lambda c: c.claim.text),
    ("profile", lambda c: c.group.profile),
    ("impl", lambda c: c.sides[0].any.impl if c.sides else ""),
    ("device", lambda c: c.sides[0].device if c.sides else ""),
    ("metric", lambda c: c.claim.metric),
    ("mode", lambda c: c.claim.mode),
    ("margin", lambda c: c.claim.margin),
    ("left", lambda c: c.claim.left),
    ("left_mean", lambda c: _side_mean(c, c.left)),
    ("left_values", lambda c: _side_points(c, c.left)),
    ("right", lambda c: c.claim.right),
    ("right_mean", lambda c: _side_mean(c, c.right)),
    ("right_values", lambda c: _side_points(c, c.right)),
    ("estimate", lambda c: text.computed(c.gap[0])),
    ("low95", lambda c: text.computed(c.gap[1])),
    ("high95", lambda c: text.computed(c.gap[2])),
    ("p", lambda c: text.computed(c.verdict.p if c.verdict else None)),
    ("p_holm", lambda c: text.computed(c.p_holm)),
    ("hedges_g", lambda c: text.computed(c.g)),
    ("p_better", lambda c: text.computed(c.p_better)),
    ("pairs", lambda c: c.verdict and c.verdict.n),
    ("held", lambda c: c.verdict and c.verdict.met),
    ("failed", lambda c: c.verdict and c.verdict.failed),
    ("verdict", lambda c: label(c.word)),
    ("why", lambda c: c.why),
    ("source", lambda c: c.claim.source),
    ("dirty", lambda c: c.dirty),
    ("records", lambda c: " ".join(r.record_id[:16] for s in c.sides for r in s.runs)),
)


def render(tables: Tables, notes: Sequence[str] = ()) -> dict[str, str]:
    """Every table as text: path below the store -> content.

    Args:
        tables: the judged rows.
        notes: sentences for the overview, such as the files that were rejected.
    """
    files = {
        "tables/index.md": _index(tables, notes),
        "tables/claims.md": _claims(tables.claims),
        "tables/claims.csv": _csv(CLAIM_CSV_COLUMNS, tables.claims),
    }
    for number in tables.chapters:
        rows = [r for r in tables.rows if r.group.newest.task.chapter == number]
        tasks = [t for t in tables.tasks if t.chapter == number]
        files[f"tables/ch{number:02d}.md"] = _chapter(number, tasks, rows)
        files[f"tables/ch{number:02d}.csv"] = _csv(_measured(CSV_COLUMNS, rows), rows)
    return files


def chapter_title(number: int) -> str:
    """The chapter's number and title."""
    return f"Chapter {number}" + (f". {CHAPTERS[number]}" if number in CHAPTERS else "")


def ids_sha256(records: Iterable[Record]) -> str:
    """SHA-256 over the sorted record ids, one a line."""
    ids = sorted({r.record_id for r in records})
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def footnotes(shown: str) -> list[str]:
    """The footnotes whose signs occur in a text."""
    return [f"{sign} {meaning}" for sign, meaning in FOOTNOTES.items() if sign in shown]


def _index(tables: Tables, notes: Sequence[str]) -> str:
    profiles = tables.profiles
    lines = [f"# {BOOK}: what reproduced\n"]
    if not tables.tasks:
        lines.append(NO_RECORDS)
    else:
        head = ["Chapter", "Task", "", *profiles, "Claims"]
        lines.append(text.md_table(head, (_index_row(t, profiles) for t in tables.tasks)))
        counts = ", ".join(f"{n} {label(word)}" for word, n in tables.counts.items())
        lines.append(f"{counts}. Claims: [claims.md](claims.md).")
        if "smoke" in profiles:
            lines.append(SMOKE)
    lines.append("## How to read a verdict\n")
    lines.append(text.md_table(["Verdict", "Meaning"], _legend()))
    lines.append("".join(f"- {md(note)}\n" for note in notes))
    return "\n\n".join(line.strip("\n") for line in lines if line) + "\n"


def _legend() -> Iterable[list[str]]:
    return ([label(word), meaning] for word, (_, meaning) in LEGEND.items())


def _index_row(t: TaskRow, profiles: Sequence[str]) -> list[str]:
    name = f"[{code(t.task)}](ch{t.chapter:02d}.md)" + (" ★" if t.is_headline else "")
    cells = [_headline(t.headline.get(p)) for p in profiles]
    claims = ", ".join(f"{n} {label(word)}" for word, n in t.claims.items())
    return [str(t.chapter), name, md(t.title), *cells, claims or NONE]


def _headline(row: Row | None) -> str:
    if row is None:
        return NONE
    if row.verdict is None:
        return md(f"{label(row.word)} ({row.seeds} seeds)")
    n = row.attempted - row.failed
    measured = text.number(row.measured.estimate) if row.measured else NONE
    mark = "†" if row.series.dirty else ""
    return md(
        f"{label(row.word)}{mark}: {row.metric} {measured}, target {text.goal(row.target)}, "
        f"{text.plural(n, 'seed')}"
    )


def _chapter(number: int, tasks: Iterable[TaskRow], rows: Sequence[Row]) -> str:
    parts = [f"# {chapter_title(number)}\n"]
    for t in tasks:
        parts.append(_task(t, [r for r in rows if r.group.task == t.task]))
    body = "\n".join(parts)
    notes = "".join(f"- {note}\n" for note in footnotes(body))
    records = [r for row in rows for r in row.series.runs]
    stamp = f"From {text.plural(len(records), 'record')}; SHA-256 of the sorted ids: "
    return f"{body}\n{notes}\n{stamp}`{ids_sha256(records)}`.\n".replace("\n\n\n", "\n\n")


def _task(t: TaskRow, rows: Sequence[Row]) -> str:
    columns = _measured(ROW_COLUMNS, rows)
    head = [name for name, _ in columns]
    table = text.md_table(head, ([cell(r) for _, cell in columns] for r in rows))
    sources = _sources(rows)
    reasons = [_reason(r) for r in rows if r.why]
    older = [md(sentence) for g in t.groups if (sentence := g.left_out)]
    points = "".join(f"- {line}\n" for line in dict.fromkeys([*sources, *reasons, *older]))
    return f"## {code(t.task)} {md(t.title)}\n\n{md(t.section)}\n\n{table}\n{points}"


def _measured(columns: Iterable[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns without those of what was not measured in any of the rows."""
    return [
        (name, cell)
        for name, cell in columns
        if name not in WHERE_MEASURED or any(WHERE_MEASURED[name](r) is not None for r in rows)
    ]


def targets(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[str]]:
    """Profile, metric, goal and source of each target -> the variants that it is for."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row.target:
            key = (row.group.profile, row.target.metric, text.goal(row.target), row.target.source)
            variants = found.setdefault(key, [])
            if row.series.any.variant not in variants:
                variants.append(row.series.any.variant)
    return found


def _sources(rows: Iterable[Row]) -> list[str]:
    return [
        f"Target of {', '.join(map(code, variants))} at {code(profile)}: "
        f"{code(metric)} {md(goal)}. {md(source)}"
        for (profile, metric, goal, source), variants in targets(rows).items()
    ]


def _reason(row: Row) -> str:
    where = f"{code(row.series.label)} at {code(row.group.profile)}"
    return f"{label(row.word)}, {where}, {code(row.series.computed_by)}: {md(row.why)}"


def _claims(claims: Sequence[ClaimRow]) -> str:
    if not claims:
        return "# Claims\n\nNo record carries a claim.\n"
    head = [name for name, _ in CLAIM_COLUMNS]
    table = text.md_table(head, ([cell(c) for _, cell in CLAIM_COLUMNS] for c in claims))
    notes = "".join(f"- {note}\n" for note in footnotes(table))
    records = [r for c in claims for s in c.sides for r in s.runs]
    ids = f"SHA-256 of the sorted record ids: `{ids_sha256(records)}`."
    return f"# Claims\n\n{HOW_COMPARED}\n\n{table}\n{notes}\n{ids}\n".replace("\n\n\n", "\n\n")


def _csv(columns: Sequence[tuple[str, Callable[[Any], Any]]], rows: Sequence[Any]) -> str:
    head = [name for name, _ in columns]
    return text.csv_table(head, ([cell(r) for _, cell in columns] for r in rows))


def _pairs(counts: dict[str, int]) -> str:
    return ";".join(f"{name}:{n}" for name, n in counts.items())


def _points(values: dict[int, float | None]) -> str:
    """``seed:value`` for each run; nothing after the colon for a run without a value."""
    return ";".join(f"{seed}:{text.exact(v)}" for seed, v in sorted(values.items()))


def _met_bound(row: Row) -> str:
    if row.verdict is None:
        return ""
    return text.computed(clopper_pearson(row.verdict.met, row.attempted, 0.95, side="lower").low)


def _side_mean(c: ClaimRow, side: Series | float | None) -> str:
    if not isinstance(side, Series) or c.claim.ordered:
        return ""
    measured = mean(side.values(c.claim.metric))
    return text.computed(measured.estimate if measured else None)


def _side_points(c: ClaimRow, side: Series | float | None) -> str:
    return _points(side.values(c.claim.metric)) if isinstance(side, Series) else ""
