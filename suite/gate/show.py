"""A verdict for a terminal, and as Markdown for a pull request."""

import math

from rich.table import Table
from rich.text import Text

from suite.gate.decide import INCONCLUSIVE, INFORMATIONAL, REGRESSED, Decision
from suite.gate.verdict import LOST, Verdict, counts
from suite.record import AbRevision

COLOURS = {REGRESSED: "red", "IMPROVED": "green", "UNCHANGED": "green"}
MARKS = {
    REGRESSED: "🔴",
    "IMPROVED": "🟢",
    "UNCHANGED": "⚪",
    INCONCLUSIVE: "🟡",
    INFORMATIONAL: "🔵",
}
COLUMNS = ("benchmark", "change", "95 % interval", "pairs", "margin", "detectable", "verdict")


def table(verdict: Verdict) -> Table:
    """The benchmarks, those that need attention first."""
    made = Table(box=None)
    made.add_column(COLUMNS[0], overflow="fold", min_width=40)
    for name in COLUMNS[1:]:
        made.add_column(name, no_wrap=name != COLUMNS[-1])
    for name, d in _rows(verdict):
        made.add_row(
            *map(Text, (name, *_cells(d))), Text(_said(d), style=COLOURS.get(d.verdict, "dim"))
        )
    for name, (kind, said) in sorted(verdict.outcomes.items()):
        last = said.strip().splitlines()[-1:] or [""]
        style = "red" if kind in LOST else "dim"
        text = Text(f"{kind}: {last[0]}" if last[0] else kind, style=style)
        made.add_row(Text(name), "", "", "", "", "", text)
    return made


def markdown(verdict: Verdict) -> str:
    """The same for a pull request's comment."""
    lines = [f"### Benchmarks: {headline(verdict)}", ""]
    lines += [f"`{_named(verdict.cand)}` against `{_named(verdict.base)}`: {counts(verdict)}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for name, d in _rows(verdict):
        cells = (f"`{name}`", *_cells(d), f"{MARKS[d.verdict]} {_said(d)}")
        lines.append(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |")
    for name, (kind, said) in sorted(verdict.outcomes.items()):
        lines += ["", f"<details><summary><code>{name}</code>: {kind}</summary>", "", "```"]
        lines += [*said.replace("```", "'''").splitlines(), "```", "</details>"]
    lines += ["", controls(verdict)]
    return "\n".join(lines) + "\n"


def headline(verdict: Verdict) -> str:
    """The session in a few words."""
    lost = [n for n, (kind, _) in verdict.outcomes.items() if kind in LOST]
    slower = [n for n, d in verdict.decisions.items() if d.verdict == REGRESSED]
    if lost:
        return f"{len(lost)} lost or broken"
    if verdict.distrust:
        return f"untrusted: {verdict.distrust}"
    return f"{len(slower)} slower" if slower else "no slowdown found"


def _rows(verdict: Verdict) -> list[tuple[str, Decision]]:
    order = [REGRESSED, INCONCLUSIVE, "IMPROVED", "UNCHANGED", INFORMATIONAL]
    return sorted(verdict.decisions.items(), key=lambda r: (order.index(r[1].verdict), r[0]))


def _cells(d: Decision) -> tuple[str, str, str, str, str]:
    bounded = math.isfinite(d.high)
    interval = f"{100 * d.low:+.1f} to {100 * d.high:+.1f} %" if bounded else "unbounded"
    return (
        f"{100 * d.change:+.1f} %",
        interval,
        str(d.pairs),
        f"{100 * d.margin:.0f} %",
        f"{100 * d.detectable:.1f} %",
    )


def _said(d: Decision) -> str:
    more = f"{d.more_pairs} more pairs might settle it" if d.more_pairs else ""
    return "; ".join(filter(None, (d.verdict, d.why or more)))


def controls(verdict: Verdict) -> str:
    """What the controls say, and what a column means."""
    said = [f"{name}: {100 * d.change:+.1f} %, {d.verdict}" for name, d in verdict.controls.items()]
    return (
        "Controls (the same code against itself; the same with 20 % added on purpose): "
        + ("; ".join(said) or "none")
        + ". `detectable` is the slowdown that as many pairs find in 80 % of sessions."
    )


def _named(revision: AbRevision) -> str:
    changed = " with changes" if revision.dirty else ""
    return f"{revision.name} ({revision.commit[:10]}{changed})"
