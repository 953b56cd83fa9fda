"""The commands that compare revisions."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.cli.options import DEFAULT_STORE, StoreURI, say

if TYPE_CHECKING:
    from suite.gate.session import Plan

app = typer.Typer()

Select = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH...", help="Where the benchmarks are; where pytest looks."),
]
Expression = Annotated[
    str | None, typer.Option("-k", metavar="EXPR", help="Only these benchmarks, as pytest has it.")
]
Pairs = Annotated[int, typer.Option(min=2, help="Pairs of processes.")]
Repo = Annotated[Path, typer.Option(help="A git repository with pytest-benchmark tests.")]
Markdown = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a summary for a pull request.")
]
Seed = Annotated[int, typer.Option(help="Of the order inside the pairs.")]


@app.command()
def ab(
    select: Select = None,
    base: Annotated[str, typer.Option(help="The revision to compare with.")] = "HEAD",
    cand: Annotated[
        str | None, typer.Option(help="The revision to judge; the working directory.")
    ] = None,
    expression: Expression = None,
    pairs: Pairs = 12,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Look at 10, 20 and 30 pairs; stop when settled.")
    ] = False,
    repo: Repo = Path(),
    store: StoreURI = DEFAULT_STORE,
    markdown: Markdown = None,
    seed: Seed = 0,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Exit with 0 whatever is found.")
    ] = False,
) -> int:
    """Compare two revisions' benchmarks in pairs of processes; exit with 1 where one is slower."""
    from suite.gate.decide import ALPHA, LOOKS

    plan = _plan(LOOKS if sequential else {pairs: ALPHA}, select, expression, seed)
    code = _compared(repo, base, cand, plan, store, markdown)
    return 0 if report_only else code


@app.command()
def aa(
    select: Select = None,
    rev: Annotated[str, typer.Option(help="The revision to compare with itself.")] = "HEAD",
    expression: Expression = None,
    pairs: Pairs = 12,
    repo: Repo = Path(),
    store: StoreURI = DEFAULT_STORE,
    seed: Seed = 0,
) -> int:
    """Compare a revision with itself, so that later sessions know each benchmark's own noise."""
    from suite.gate.decide import ALPHA

    plan = _plan({pairs: ALPHA}, select, expression, seed)
    return _compared(repo, rev, rev, plan, store, None)


def _plan(
    looks: Mapping[int, float], select: list[str] | None, expression: str | None, seed: int
) -> "Plan":
    from suite.gate.session import Plan

    chosen = [*(select or []), *(["-k", expression] if expression else [])]
    return Plan(looks, tuple(chosen), seed)


def _compared(
    repo: Path, base: str, cand: str | None, plan: "Plan", uri: str, markdown: Path | None
) -> int:
    """Compare, show what came of it, and return the exit code."""
    from rich.console import Console

    from suite.gate import show, verdict
    from suite.gate.compare import compare
    from suite.gate.side import SideDied
    from suite.local import stoppable
    from suite.progress import PairsDisplay
    from suite.store import Store

    try:
        with stoppable(), PairsDisplay(max(plan.looks), Console(stderr=True)) as display:
            found = compare(repo, base, cand, plan, Store(uri), display)
    except SideDied as error:
        raise OSError(str(error)) from error
    except KeyboardInterrupt:
        say(f"stopped, without a verdict; pairs that were taken are in {uri}")
        raise
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(show.table(found))
    console.print(show.controls(found), style="dim", highlight=False)
    print(f"{show.headline(found)}: {verdict.counts(found)}")
    if markdown is not None:
        markdown.write_text(show.markdown(found))
    if found.cand.dirty:
        say("the working directory differs from its commit: this session cannot be published")
    return found.exit_code


@app.command()
def exact(
    selection: Annotated[
        list[str] | None, typer.Argument(metavar="SELECTION...", help="Tasks; all of them.")
    ] = None,
    accept: Annotated[bool, typer.Option(help="Store what was found as the new table.")] = False,
) -> int:
    """Compare parameter counts and dispatched kernels of every task with the stored table."""
    from suite import exact as table
    from suite import task

    everything = task.names()
    found: dict[str, dict[str, table.Quantities]] = {}
    problems = table.gone(everything)
    names = task.select(selection) if selection else everything
    for name, variant, quantities in table.measure(names, say):
        found.setdefault(name, {})[variant] = quantities
        problems += table.differences(name, variant, quantities)
    for problem in problems:
        print(problem)
    if accept:
        table.accept(found)
    n = sum(map(len, found.values()))
    print(f"{n} variants of {len(found)} tasks: {'accepted' if accept else 'compared'}")
    return 0 if accept else int(bool(problems))
