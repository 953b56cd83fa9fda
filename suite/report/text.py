"""Numbers and cells as text: the same input gives the same bytes."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from suite.stats import Interval
from suite.task import Target

NONE = "—"
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def number(x: float | None) -> str:
    """Four significant digits; whole numbers below a million as they are."""
    if x is None:
        return NONE
    size = abs(x)
    if x == int(x) and size < 1e6:
        return f"{int(x):,}"
    if not 1e-4 <= size < 1e9:
        return f"{x:.3e}"
    if size >= 1000:
        return f"{float(f'{x:.4g}'):,.0f}"
    return f"{x:#.4g}".rstrip(".")


def exact(x: float | None) -> str:
    """A number as a file keeps it: as many digits as tell it from any other."""
    return "" if x is None else repr(x)


def computed(x: float | None) -> str:
    """A number that was computed, cut where rounding could differ between machines."""
    return "" if x is None else f"{x:.6g}"


def count(n: int | None) -> str:
    """A count of things, such as parameters."""
    if n is None:
        return NONE
    return f"{n:,}" if n < 10_000_000 else f"{n / 1e6:#.4g} M"


def duration(seconds: float | None) -> str:
    """Milliseconds, seconds, minutes or hours."""
    if seconds is None:
        return NONE
    for limit, unit, name in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{_short(seconds / unit)} {name}"
    return f"{_short(seconds / 3600)} h"


def joules(energy: float | None) -> str:
    """Joules, kilojoules or megajoules."""
    if energy is None:
        return NONE
    for limit, unit, name in ((1e3, 1.0, "J"), (1e6, 1e3, "kJ")):
        if energy < limit:
            return f"{_short(energy / unit)} {name}"
    return f"{_short(energy / 1e6)} MJ"


def usd(cost: float | None) -> str:
    """US dollars, to three digits."""
    return NONE if cost is None else f"${cost:#.3g}".rstrip(".")


def memory(n_bytes: int | None) -> str:
    """Bytes in binary units."""
    if n_bytes is None:
        return NONE
    for limit, unit, name in ((2**20, 2**10, "KiB"), (2**30, 2**20, "MiB")):
        if n_bytes < limit:
            return f"{_short(n_bytes / unit)} {name}"
    return f"{_short(n_bytes / 2**30)} GiB"


def _short(x: float) -> str:
    return f"{x:#.3g}".rstrip(".") if 0.01 <= x < 1000 else f"{x:,.0f}"


def interval(measured: Interval | None) -> str:
    """A mean with the interval that covers it."""
    if measured is None:
        return NONE
    return " ".join(filter(None, (number(measured.estimate), ends(measured))))


def ends(measured: Interval) -> str:
    """``[low, high]``, or nothing where one value bounds nothing."""
    if measured.n < 2:
        return ""
    return f"[{number(measured.low)}, {number(measured.high)}]"


def goal(target: Target | None) -> str:
    """A target without its metric's name."""
    if target is None:
        return NONE
    if target.mode == "near":
        return f"{target.value:g} ± {target.tolerance:g}"
    sign = "≥" if target.mode == "max" else "≤"
    allowed = f", tolerance {target.tolerance:g}" if target.tolerance else ""
    return f"{sign} {target.value:g}{allowed}"


def plural(n: int, thing: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def flat(text: object) -> str:
    """Text on one line, without characters that control a terminal, a page or the direction."""
    return " ".join(CONTROLS.sub(" ", str(text)).split())


def md(text: object) -> str:
    """Text as Markdown shows it literally, also inside a table."""
    escaped = re.sub(r"&(?=#?\w+;)", "&amp;", flat(text)).replace("<", "&lt;")
    # Brackets are literal unless an address follows, an underscore is inside a word.
    escaped = re.sub(r"[\\`*|~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)
    return re.sub(r"^(#+|[-+>]|\d+[.)])(?=\s|$)", r"\\\1", escaped)


def code(text: object) -> str:
    """A name in code type; what would end the code or the cell is replaced."""
    literal = flat(text).replace("`", "'").replace("|", "\\|")
    return f"`{literal}`" if literal else ""


def md_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are already escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def csv_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV after RFC 4180, but with one line a row and plain line feeds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def _cell(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | float):
        return exact(cell)
    text = "" if cell is None else flat(cell)
    # A spreadsheet would run a cell that begins like this as a formula.
    unsafe = text[:1] in ("=", "+", "-", "@") and not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
    return f"'{text}" if unsafe else text
