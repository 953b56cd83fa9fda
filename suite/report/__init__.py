"""Records to tables, curves and one page; and the proof that they match.

Below a store, ``write`` puts ``tables/`` (Markdown and CSV), ``tables/PROVENANCE.json`` and
``index.html``. The tables are a pure function of the records: ``check`` derives them again and
compares them byte for byte, and names each file, line and record that does not match.
"""

import hashlib
import importlib.metadata
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import provenance
from suite.gate import verdict
from suite.record import Record
from suite.report import (
    attribution,
    explanations,
    faults,
    files,
    kernels,
    noise,
    series,
    sweeps,
    tables,
    versions,
)
from suite.report.tables import Line, Tables
from suite.report.text import plural
from suite.store import Rejected, Store

__all__ = ["Line", "Report", "Tables", "build", "check", "embedded", "one_file", "write"]

PROVENANCE = "tables/PROVENANCE.json"
PAGE = "index.html"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PACKAGES = ("jinja2", "matplotlib", "numpy", "scipy")
TABLE_NAME = re.compile(r"tables/(attribution|ch\d\d|claims|faults|index|kernels|noise)\.(md|csv)")


@dataclass(frozen=True)
class Report:
    """What a store says.

    Attributes:
        records: the valid records, sorted by their id.
        rejected: the files that are no valid records.
        tables: the judged rows.
        files: path below the store -> text of each table.
        strays: a sentence for each explanation, and each version, of what is not here.
    """

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
    tables: Tables
    files: Mapping[str, str]
    strays: tuple[str, ...] = ()

    @property
    def contradicted(self) -> bool:
        """Whether a target or a claim is contradicted."""
        return "CONTRADICTED" in self.tables.counts

    def summary(self, tasks: Iterable[str] | None = None) -> list[Line]:
        """The verdicts, one line each, for a terminal; of the given task ids only."""
        return tables.summary(self.tables, tasks)


def build(store: Store) -> Report:
    """Read a store and derive its tables; nothing is written."""
    rejected: list[Rejected] = []
    records = []
    for record in store.scan(rejected=rejected.append):
        try:
            series.target_of(record), series.claims_of(record)
        except (ValueError, TypeError, AttributeError) as error:
            rejected.append(Rejected(record.name, f"target or claims: {error}"))
        else:
            records.append(record)
    records.sort(key=lambda r: r.record_id)
    explained = explanations.read(store)
    same = versions.read(store)
    derived = tables.derive(records, explained, same)
    strays = explanations.strays(explained, [*derived.rows, *derived.claims])
    strays += versions.strays(same, records)
    notes = [*_notes(records, rejected, same), *strays]
    texts = files.render(derived, notes) | kernels.render(records)
    texts |= faults.render(faults.newest(records)) | attribution.render(records)
    texts |= noise.render(noise.ledger(records))
    return Report(tuple(records), tuple(rejected), derived, texts, tuple(strays))


def one_file(store: Store, report: Report) -> str:
    """The page with its pictures inside: all of a report in one file, to send or to keep.

    Args:
        store: where the records and pictures are.
        report: what ``build`` or ``write`` made of them.
    """
    from suite.report import page

    return page.render(report, store, _generator(), alone=True)


def write(store: Store, out: str | Path | None = None) -> Report:
    """Write the tables, their provenance and the page.

    Args:
        store: where the records and pictures are.
        out: another folder or URI to write below; the store itself when None.

    Raises:
        StoreError: the place cannot be written.
    """
    from suite.report import page

    report, target = build(store), store if out is None else Store(out)
    generator = _generator()
    html = page.render(report, store, generator)
    stale = _tables_at(target) - report.files.keys()
    for name, text in report.files.items():
        target.write(name, text.encode())
    target.write(PAGE, html.encode())
    stamp = {"generator": generator, "page_sha256": _sha256(html)}
    target.write(PROVENANCE, _provenance(report, stamp).encode())
    for name in stale:
        target.delete(name)
    return report


def check(store: Store, out: str | Path | None = None) -> list[str]:
    """Derive the tables again and compare them with the files, byte for byte.

    Args:
        store: where the records are.
        out: where the tables are; in the store itself when None.

    Returns:
        One sentence for each record, table or page that does not match; empty if all do.
    """
    report, target = build(store), store if out is None else Store(out)
    problems = [f"{r.path}: {r.reason}" for r in report.rejected]
    problems += [*report.strays, *verdict.check(store)]
    stored = _stored(target, PROVENANCE)
    if stored is None:
        return [*problems, f"{PROVENANCE}: missing; type suite report"]
    try:
        stamp = json.loads(stored)
        listed, page_sha256 = set(stamp["records"]), stamp["page_sha256"]
        expected = _provenance(report, stamp)
    except (ValueError, KeyError, TypeError) as error:
        return [*problems, f"{PROVENANCE}: cannot be read: {error!r}"]
    problems += _moved(listed, {r.name for r in report.records}, report.rejected)
    for name, text in sorted({**report.files, PROVENANCE: expected}.items()):
        problems += _differences(name, text, _stored(target, name))
    problems += [
        f"{n}: no records lead to it" for n in sorted(_tables_at(target) - report.files.keys())
    ]
    for name in sweeps.names(store):
        problems += sweeps.check(sweeps.place(store, name))
    page = _stored(target, PAGE)
    if page is None or _sha256(page) != page_sha256:
        how = "missing" if page is None else "changed after it was written"
        problems.append(f"{PAGE}: {how}")
    return problems


def embedded(text: str, report: Report, prefix: str) -> str:
    """A document with the overview between its two marker lines brought up to date.

    Args:
        text: a Markdown document with the lines ``<!-- results:begin -->`` and ``results:end``.
        report: whose overview to put there.
        prefix: from the document to the store's tables, such as ``results/tables/``.

    Raises:
        ValueError: the document has no such markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} to put the overview between")
    lines = report.files["tables/index.md"].split("\n")
    table = itertools.takewhile(bool, itertools.dropwhile(lambda x: not x.startswith("|"), lines))
    linked = re.sub(r"\]\((ch\d\d\.md)", rf"]({prefix}\1", "\n".join(table))
    return f"{before}{BEGIN}\n{linked}\n{END}{after}"


def _notes(
    records: Sequence[Record], rejected: Iterable[Rejected], alike: versions.Same
) -> list[str]:
    """What the overview has to say beside its rows."""
    tabulated, struck = ("train", "micro", "check", "attribution"), faults.newest(records)
    same = [r for r in records if r.ab_block and verdict.same_code(r.ab_block)]
    shown = {r.record_id for r in (*struck, *same)}
    kinds = Counter(r.kind for r in records if r.kind not in tabulated and r.record_id not in shown)
    foreign = sum(r.micro is not None and r.micro.producer == "foreign" for r in records)
    timed = any(r.kind in ("micro", "check") for r in records)
    attributed = any(r.kind == "attribution" for r in records)
    groups = series.group(records, alike)
    return [
        *(["What the kernels cost: tables/kernels.md."] if timed else []),
        *(["What they do to the tasks: tables/attribution.md."] if attributed else []),
        *([f"{plural(len(struck), 'fault')} on purpose: see faults.md."] if struck else []),
        *(["How benchmarks vary by themselves: tables/noise.md."] if same else []),
        *([f"{plural(foreign, 'foreign benchmark')} left out."] if foreign else []),
        *(
            f"{plural(n, f'{kind} record')}, not tabulated here."
            for kind, n in sorted(kinds.items())
        ),
        *(f"{g.task}, {g.left_out}" for g in groups if g.left_out),
        *(f"Rejected: {r.path}: {r.reason}" for r in rejected),
    ]


def _provenance(report: Report, stamp: Mapping[str, Any]) -> str:
    """What the tables were made from, as JSON.

    Args:
        report: the records and tables.
        stamp: ``generator`` and ``page_sha256``, which do not follow from the records.
    """
    content = {
        "schema": "fdl.report/1",
        "generator": stamp["generator"],
        "n_records": len(report.records),
        "records_sha256": files.ids_sha256(report.records),
        "records": sorted(r.name for r in report.records),
        "rejected": [{"path": r.path, "reason": r.reason} for r in report.rejected],
        "tables_sha256": {name: _sha256(text) for name, text in report.files.items()},
        "page_sha256": stamp["page_sha256"],
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _generator() -> dict[str, Any]:
    """The code that makes the tables: its commit and the versions of what it uses."""
    code = provenance.code()
    return {
        "commit": code.commit,
        "dirty": code.dirty,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _tables_at(target: Store) -> set[str]:
    """The tables below a store that this module may have written."""
    return {n for n in target.names("tables/*") if TABLE_NAME.fullmatch(n)}


def _stored(target: Store, name: str) -> str | None:
    content = target.read(name)
    return None if content is None else content.decode(errors="replace")


def _moved(listed: set[str], found: set[str], rejected: Iterable[Rejected]) -> list[str]:
    """The records that came or went since the tables were written."""
    named = {r.path for r in rejected}
    gone = [
        f"{name}: the tables rest on it, but it is gone" for name in sorted(listed - found - named)
    ]
    return gone + [
        f"{name}: newer than the tables; type suite report" for name in sorted(found - listed)
    ]


def _differences(name: str, expected: str, stored: str | None) -> list[str]:
    """Where a file first differs from what the records lead to."""
    if stored == expected:
        return []
    if stored is None:
        return [f"{name}: missing; type suite report"]
    lines = itertools.zip_longest(stored.split("\n"), expected.split("\n"), fillvalue="<no line>")
    for number, (have, want) in enumerate(lines, 1):
        if have != want:
            return [f"{name}: line {number} differs: {_around(have, want)}"]
    return [f"{name}: differs"]


def _around(have: str, want: str) -> str:
    """The first place where two lines differ, with a little of what surrounds it."""
    at = next(
        (i for i, (a, b) in enumerate(zip(have, want, strict=False)) if a != b),
        min(len(have), len(want)),
    )
    cut = slice(max(0, at - 20), at + 40)
    return f"stored {have[cut]!r}, derived {want[cut]!r}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
