"""Commands that run matrices and write what came of them: run, reproduce, report."""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite import task
from suite.cli.options import (
    DEFAULT_STORE,
    Cpus,
    Device,
    Exclusive,
    Fresh,
    Gpus,
    Jobs,
    On,
    Price,
    Profile,
    SaveEvery,
    Seeds,
    Selection,
    StoreURI,
    Timeout,
    Verbose,
    assignments,
    ended,
    known_profile,
    own_device,
    say,
)
from suite.codes import UNTRUSTED

if TYPE_CHECKING:
    from suite.local import Campaign
    from suite.plan import Spec
    from suite.report import Report

app = typer.Typer()


@app.command()
def run(
    selection: Selection,
    profile: Profile = "laptop",
    variant: Annotated[
        list[str] | None, typer.Option(help="Which variants; all when not given. Repeatable.")
    ] = None,
    impl: Annotated[
        list[str] | None, typer.Option(help="Which implementations; the default one. Repeatable.")
    ] = None,
    seeds: Seeds = "0",
    device: Device = "auto",
    jobs: Jobs = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a config field: field=value.")
    ] = None,
    store: StoreURI = DEFAULT_STORE,
    fresh: Fresh = False,
    timeout: Timeout = None,
    stop_at_target: Annotated[
        bool, typer.Option(help="End a run when its target is crossed, not at its budget.")
    ] = False,
    inline: Annotated[bool, typer.Option(help="Run in this process, for a debugger.")] = False,
    on: On = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    exclusive: Exclusive = False,
    save_every: SaveEvery = None,
    price: Price = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND@FRACTION",
            help="Strike each run at a fraction of its rows and record what it cost: "
            "worker_kill@0.4, node_kill@0.4, driver_kill@0.4. Repeatable.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> int:
    """Run a selection over variants, implementations and seeds."""
    from suite import plan

    matrix = functools.partial(
        plan.expand,
        selection,
        profile=known_profile(profile),
        variants=variant,
        impls=impl,
        seeds=plan.seeds(seeds),
        overrides=assignments(set_ or []),
        stop_at_target=stop_at_target,
    )
    where = Where(on, device, jobs, cpus, gpus, exclusive, verbose)
    if inject:
        return _inject(inject, matrix, where, store, fresh, timeout, save_every)
    return ended(_campaign(matrix, where, store, fresh, timeout, inline, save_every, price))


@app.command()
def reproduce(
    chapter: Annotated[int | None, typer.Option(help="Only this chapter.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole book, not one headline task a chapter.")
    ] = False,
    profile: Profile = "laptop",
    seeds: Seeds = "0",
    device: Device = "auto",
    jobs: Jobs = None,
    store: StoreURI = DEFAULT_STORE,
    fresh: Fresh = False,
    timeout: Timeout = None,
    on: On = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    exclusive: Exclusive = False,
    save_every: SaveEvery = None,
    price: Price = None,
    verbose: Verbose = False,
) -> int:
    """Run what the book's claims need, judge them, and write tables and the page."""
    from suite import plan

    if chapter is not None:
        selection = [f"ch{chapter}"]
    else:
        selection = task.names() if everything else task.headlines()
    matrix = functools.partial(
        plan.expand,
        selection,
        profile=known_profile(profile),
        seeds=plan.seeds(seeds),
        judged_only=True,
    )
    where = Where(on, device, jobs, cpus, gpus, exclusive, verbose)
    statuses = _campaign(matrix, where, store, fresh, timeout, False, save_every, price)
    made = write_report(store, selection)
    return ended(statuses) or int(made.contradicted)


@app.command()
def report(
    store: StoreURI = DEFAULT_STORE,
    check: Annotated[
        bool, typer.Option(help="Write nothing; fail when a table does not re-derive.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="A Markdown file to put the overview into, between its markers."),
    ] = None,
    one_file: Annotated[
        Path | None,
        typer.Option(help="Write the page here too, with its pictures inside, to send or keep."),
    ] = None,
) -> int:
    """Write tables, curves and the page of a store, or check them."""
    from suite import report as reporting
    from suite.store import Store

    if check and one_file is not None:
        raise ValueError("--check writes nothing, --one-file writes: leave one of them out")
    if into is not None:
        text, folder = into.read_text(), Path(store).resolve() / "tables"
        prefix = f"{folder.relative_to(into.resolve().parent)}/"
        fresh = reporting.embedded(text, reporting.build(Store(store)), prefix)
    if check:
        problems = reporting.check(Store(store))
        if into is not None and text != fresh:
            problems.append(f"{into}: its overview does not match; type suite report --into {into}")
        for problem in problems:
            say(problem)
        print("every table re-derives from its records" if not problems else "the check failed")
        return int(bool(problems))
    made = write_report(store, None)
    if into is not None:
        into.write_text(fresh)
    if one_file is not None:
        page = reporting.one_file(Store(store), made)
        Store(one_file.parent).write(one_file.name, page.encode())
        print(f"page with its pictures inside: {one_file.absolute().as_uri()}")
    if open_:
        import webbrowser

        webbrowser.open((Path(store).absolute() / "index.html").as_uri())
    return int(made.contradicted)


@dataclass(frozen=True)
class Where:
    """Where a matrix runs, as the command line says it."""

    on: str
    device: str
    jobs: int | None
    cpus: int | None
    gpus: float | None
    exclusive: bool
    verbose: bool

    def refuse_what_only_clusters_have(self) -> None:
        """Raise ValueError for options that mean nothing on one machine's processes."""
        given = {"--cpus": self.cpus, "--gpus": self.gpus, "--exclusive": self.exclusive or None}
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option} needs a cluster: add --on ray or --on auto")


def _campaign(
    matrix: Callable[..., "list[Spec]"],
    where: Where,
    uri: str,
    fresh: bool,
    timeout: float | None,
    inline: bool,
    save_every: float | None,
    price: float | None,
) -> Counter[str]:
    """Run a matrix and return how many runs came to which status."""
    from suite.local import Campaign, ahead
    from suite.store import Store

    campaign = Campaign(
        Store(uri),
        fresh=fresh,
        timeout_s=timeout,
        inline=inline,
        save_every_s=save_every,
        price_per_hour=price,
    )
    if where.on == "local":
        where.refuse_what_only_clusters_have()
        with ahead(campaign) as campaign:
            return watched(matrix(device=own_device(where.device)), campaign, where.jobs)
    return _on_cluster(matrix, where, campaign)


def _on_cluster(
    matrix: Callable[..., "list[Spec]"], where: Where, campaign: "Campaign"
) -> Counter[str]:
    from dataclasses import replace

    from suite import cluster, dispatch, driver

    if campaign.inline or not campaign.store.shared:
        raise ValueError("--inline and memory:// stores are of one process: use --on local")
    # A mistake in what is asked for is told before a cluster is started or joined for it.
    matrix(device="cpu" if where.device == "cpu" else "cuda")
    with cluster.connect(where.on, verbose=where.verbose) as found:
        specs = matrix(device=found.device(where.device))
        resources = driver.Resources(where.cpus, where.gpus, where.exclusive, where.jobs)
        say(f"on {found}")
        backend = driver.backend(found, resources)
        campaign = replace(campaign, backend=backend, attempts=dispatch.ATTEMPTS)
        return watched(specs, campaign, int(sum(n.cpus for n in found.nodes())))


def _inject(
    faults_: list[str],
    matrix: Callable[..., "list[Spec]"],
    where: Where,
    uri: str,
    fresh: bool,
    timeout: float | None,
    save_every: float | None,
) -> int:
    """Strike runs, say what it cost; 3 where a run that repeats did not end the same."""
    from suite import cluster, driver, faults

    injections = [faults.parse(text) for text in faults_]
    if where.on == "local":
        where.refuse_what_only_clusters_have()
        resources = None
    else:
        resources = driver.Resources(where.cpus, where.gpus, where.exclusive, slots=1)
    setting = faults.Setting(uri, where.on, resources, timeout, save_every)
    for injection in injections:
        setting.check(injection)
    device = where.device
    if where.on == "local" or cluster.is_private(where.on):
        device = own_device(device)
    else:
        with cluster.connect(where.on, verbose=where.verbose) as found:
            device = found.device(device)
    made = list(faults.inject(matrix(device=device), injections, setting, fresh=fresh, say=say))
    differs = any(r.determinism == "bitwise" and r.fault and not r.fault.same_params for r in made)
    return UNTRUSTED if differs else ended(Counter(r.status for r in made))


def watched(specs: "list[Spec]", campaign: "Campaign", jobs: int | None) -> Counter[str]:
    """Run specs before the user's eyes."""
    from dataclasses import replace

    from rich.console import Console

    from suite import provenance
    from suite.progress import Display

    if campaign.backend is None:
        # Runs on a GPU would share it, and time each other; runs on a CPU have their own cores.
        default = 1 if specs and specs[0].device.startswith("cuda") else provenance.cores()
        jobs = min(jobs or default, provenance.cores())
        campaign = replace(campaign, jobs=min(jobs, max(1, len(specs))))
    console = Console(stderr=True)
    with Display(specs, max(1, min(jobs or 1, len(specs))), console) as display:
        statuses = Counter(record.status for record in campaign.each(specs, display))
    line = f"{statuses.total()} records in {campaign.store.uri}"
    console.print(line, style="dim", highlight=False, soft_wrap=True)
    return Counter(statuses)


def write_report(uri: str, selection: list[str] | None) -> "Report":
    """Write a store's tables and page, print the verdicts, and return what was written."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from suite import report
    from suite.store import Store

    made = report.write(Store(uri))
    table = Table("task", "claim or target", "measured", "goal", "met", "verdict", box=None)
    colours = {"REPRODUCED": "green", "WITHIN_TOLERANCE": "green", "INCONCLUSIVE": "dim"}
    for line in made.summary(task.select(selection) if selection else None):
        name = f"{line.task} {line.profile}"
        verdict = Text(line.verdict, style=colours.get(line.verdict, "red"))
        table.add_row(*map(Text, (name, line.what, line.measured, line.goal, line.met)), verdict)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f"page: {Store(uri).url('index.html')}")
    return made
