"""The command that plans how many seeds a comparison needs."""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from suite import task
from suite.cli.options import DEFAULT_STORE, StoreURI

if TYPE_CHECKING:
    from rich.table import Table

    from suite.power import Need, Settle

app = typer.Typer()


@app.command()
def plan(
    name: Annotated[str, typer.Argument(metavar="TASK", help="A task id, such as ch12.dnc_copy.")],
    detect: Annotated[
        str, typer.Option(help="The difference to find: 5% of the mean, or a number as 0.01.")
    ] = "5%",
    power: Annotated[float, typer.Option(help="The probability of finding it.")] = 0.8,
    profile: Annotated[
        str | None, typer.Option(help="Only this profile: smoke, laptop or paper.")
    ] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only these. Repeatable.")] = None,
    store: StoreURI = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """Say how many seeds, and hours, a difference needs to be found; from stored runs' spread."""
    from suite import power as planning
    from suite.report.tables import derive
    from suite.store import Store

    effect = planning.parse(detect)
    wanted = _variants(name, variant)
    profiles = task.PROFILES if profile is None else (profile,)
    if profile is not None and profile not in task.PROFILES:
        raise task.unknown("profile", profile, task.PROFILES)
    found = derive(Store(store).scan(f"{name}/*.json"))
    rows = [r for r in found.rows if r.group.profile in profiles and r.series.any.variant in wanted]
    needs = planning.needs(rows, effect, power)
    if not needs:
        raise ValueError(
            f"{store} has no two finished runs of {name} to learn the spread from; "
            f"type: suite run {name} --seeds 0-4 --store {store}"
        )
    claims = [
        c
        for c in found.claims
        if c.group.profile in profiles
        and (variant is None or {c.claim.left, c.claim.right} & wanted)
    ]
    unsettled = planning.open_claims(claims, power)
    if as_json:
        asked = {"task": name, "detect": effect.size, "relative": effect.relative, "power": power}
        print(json.dumps({**asked, "needs": _dicts(needs), "claims": _dicts(unsettled)}, indent=1))
    else:
        _show(name, str(effect), power, needs, unsettled)
    return 0


def _variants(name: str, asked: list[str] | None) -> set[str]:
    known = task.find(name).variants
    for variant in asked or ():
        if variant not in known:
            raise task.unknown("variant", variant, known)
    return set(asked or known)


def _dicts(found: "Iterable[Need | Settle]") -> list[dict[str, object]]:
    return [one.as_dict() for one in found]


def _show(
    name: str, effect: str, power: float, needs: "list[Need]", claims: "list[Settle]"
) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    asked = f"a difference of {effect} at 5 %, with {100 * power:g} % power"
    console.print(f"{name}: seeds an arm to find {asked}", highlight=False)
    console.print(_needs(needs))
    if claims:
        console.print("Claims that the runs leave open, if the difference seen is the true one:")
        console.print(_claims(claims))


def _needs(needs: "list[Need]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from suite.power import MOST
    from suite.report import text

    table = Table("profile", "variant", "implementation", "quantity", box=None)
    for head in ("runs", "mean", "spread", "seeds", "to be safe", "machine time"):
        table.add_column(head, justify="right")
    for n in needs:
        spread = text.NONE if n.spread is None else f"{100 * n.spread:.2g} %"
        counts = (f"> {MOST:,}" if k is None else f"{k:,}" for k in (n.seeds, n.careful))
        hours = text.duration(None if n.hours is None else 3600 * n.hours)
        cells = (n.profile, n.variant, n.impl, n.quantity, str(n.n), text.number(n.mean), spread)
        table.add_row(*map(Text, (*cells, *counts, hours)))
    return table


def _claims(claims: "list[Settle]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("profile", "claim", "verdict", box=None)
    table.add_column("runs", justify="right")
    table.add_column("needed", justify="right")
    for c in claims:
        needed = "unknown" if c.needed is None else f"{c.needed:,}"
        table.add_row(*map(Text, (c.profile, c.claim, c.verdict, str(c.runs), needed)))
    return table
