"""The command that says what kernels do to a task."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite import task
from suite.cli.campaigns import watched
from suite.cli.options import (
    DEFAULT_STORE,
    Device,
    Fresh,
    Jobs,
    Price,
    Profile,
    Seeds,
    StoreURI,
    ended,
    known_profile,
    own_device,
    say,
)
from suite.codes import UNTRUSTED

if TYPE_CHECKING:
    from suite.attribute.request import Request
    from suite.report.effects import Effect
    from suite.store import Store

app = typer.Typer()

PICTURES = (".png", ".svg", ".pdf")


@app.command()
def attribute(
    name: Annotated[str, typer.Argument(metavar="TASK", help="A task that calls kernels.")],
    profile: Profile = "laptop",
    variant: Annotated[
        str | None, typer.Option(help="What is computed; the first variant with a kernel.")
    ] = None,
    impl: Annotated[
        list[str] | None,
        typer.Option(help="Implementations to compare: a,b; all that can run. Repeatable."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What they are compared with; torch.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="OP", help="Change only these ops, such as dnc.step. Repeatable."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of processes.")] = 8,
    seeds: Seeds = "0-4",
    runs: Annotated[
        bool, typer.Option(help="Also run these seeds to the target, where the store lacks them.")
    ] = True,
    stop_at_target: Annotated[
        bool, typer.Option(help="End such a run when its target is crossed, not at its budget.")
    ] = False,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of each timed process.")] = 1,
    jobs: Jobs = None,
    store: StoreURI = DEFAULT_STORE,
    fresh: Fresh = False,
    price: Price = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture: .png, .svg or .pdf.")
    ] = None,
) -> int:
    """Say what a task's kernels do to its step, and to the time that it takes to its target."""
    from suite import plan
    from suite.attribute.request import resolve
    from suite.store import Store

    if plot is not None and plot.suffix not in PICTURES:
        raise task.unknown("kind of picture", plot.suffix, PICTURES)
    asked = resolve(
        name,
        profile=known_profile(profile),
        variant=variant,
        baseline=baseline,
        impls=_split(impl),
        only=_split(only),
        device=own_device(device),
        threads=threads,
    )
    chosen = plan.seeds(seeds)
    target = Store(store)
    if not _take(asked, pairs, target, fresh, price):
        return UNTRUSTED
    statuses = Counter[str]()
    if runs:
        statuses = _run(asked, chosen, target, jobs, fresh, price, stop_at_target)
    found = _effects(asked, target)
    _show(found, plot)
    return ended(statuses) or (0 if _trusted(found) else UNTRUSTED)


def _split(names: list[str] | None) -> list[str]:
    return [name.strip() for given in names or () for name in given.split(",") if name.strip()]


def _take(asked: "Request", pairs: int, store: "Store", fresh: bool, price: float | None) -> bool:
    """Take the pairs that the store lacks; whether the baseline could be run."""
    from rich.console import Console

    from suite.attribute.session import BaselineFailed, take
    from suite.local import stoppable
    from suite.progress import PairsDisplay

    compared = ", ".join(asked.impls)
    say(f"{asked.task}, {asked.variant}: {compared} against {asked.baseline}")
    try:
        with stoppable(), PairsDisplay(pairs, Console(stderr=True)) as display:
            take(
                asked,
                pairs,
                store,
                fresh=fresh,
                price_per_hour=price,
                listen=lambda pair, what: display("pair", pair, what),
            )
    except BaselineFailed as error:
        say(f"error: {error}")
        return False
    return True


def _run(
    asked: "Request",
    seeds: Sequence[int],
    store: "Store",
    jobs: int | None,
    fresh: bool,
    price: float | None,
    stop_at_target: bool,
) -> Counter[str]:
    """Run the seeds to the target under every implementation, unless the store holds them."""
    from suite.local import Campaign

    if task.find(asked.task).timed_to(asked.profile, asked.variant) is None:
        say(f"{asked.variant} is timed to no target under {asked.profile}: no run is needed")
        return Counter()
    specs = asked.specs([asked.baseline, *asked.impls], seeds)
    campaign = Campaign(store, fresh=fresh, price_per_hour=price)
    if stop_at_target:
        finished = store.attempts(asked.task, [s.run_id for s in specs])
        specs = [
            s if s.run_id in finished and not fresh else replace(s, stop_at_target=True)
            for s in specs
        ]
    return watched(specs, campaign, jobs)


def _effects(asked: "Request", store: "Store") -> "list[Effect]":
    from suite.record import ATTRIBUTIONS
    from suite.report.effects import effects

    records = [
        r
        for folder in (ATTRIBUTIONS + asked.task, asked.task)
        for r in store.scan(f"{folder}/*.json")
    ]
    return [e for e in effects(records) if e.part.session == asked.session]


def _trusted(found: "Sequence[Effect]") -> bool:
    """Whether the baseline is itself, and every implementation could run; say what is not so."""
    from suite.gate.decide import IMPROVED, REGRESSED

    control = next((e.control for e in found if e.control), None)
    differs = control is not None and control.verdict in (REGRESSED, IMPROVED)
    if differs:
        say("untrusted: the baseline differs from itself; a quieter machine or more pairs may help")
    failed = [e.impl for e in found if e.why]
    if failed:
        say(f"could not run: {', '.join(failed)}")
    return not differs and not failed


def _show(found: "Sequence[Effect]", plot: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from suite.report import attribution

    lines = attribution.lines(found)
    content = attribution.page_table(lines)
    table = Table(*content["head"], box=None)
    for cells in content["rows"]:
        table.add_row(*(Text.assemble(main, "\n", (small, "dim")) for main, small in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for note in attribution.notes(lines):
        print(note)
    if plot is not None:
        _draw(attribution.figure(found, size=(7.0, 6.0)), plot)


def _draw(figure: Any, plot: Path) -> None:
    if figure is None:
        say("there is nothing to draw: no implementation has both a prediction and a measurement")
        return
    figure.savefig(plot, dpi=150)
    say(f"picture: {plot}")
