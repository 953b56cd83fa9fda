"""The command that searches hyper-parameters."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from suite import task
from suite.cli.campaigns import Where
from suite.cli.options import (
    DEFAULT_STORE,
    Cpus,
    Device,
    Fresh,
    Gpus,
    Jobs,
    On,
    Profile,
    SaveEvery,
    Seeds,
    StoreURI,
    Timeout,
    Verbose,
    assignments,
    known_profile,
    own_device,
    say,
)
from suite.codes import UNTRUSTED

if TYPE_CHECKING:
    from suite.space import Domain
    from suite.store import Store
    from suite.sweep import Sweep

app = typer.Typer()


@app.command()
def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="TASK", help="A task id; none with --report.")
    ] = None,
    profile: Profile = "laptop",
    variant: Annotated[
        str | None, typer.Option(help="What the swept fields change; the default one.")
    ] = None,
    impl: Annotated[str | None, typer.Option(help="The implementation; the default one.")] = None,
    search: Annotated[
        str | None, typer.Option(help="random, optuna or grid; grid where --grid is given.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="none, asha or pbt.")] = "none",
    samples: Annotated[
        int | None, typer.Option(help="Configurations to try; 16, and a grid has its own number.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time after which no trial goes on: 90s, 10m, 1h30m.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="Sweep a field, instead of the task's own space: lr=log:1e-4:1e-1, "
            "dropout=uniform:0:0.5, hidden=int:32:512, optimizer=choice:sgd,adam. Repeatable."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Try every value: field=a,b,c. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a config field: field=value.")
    ] = None,
    seeds: Seeds = "0",
    device: Device = "auto",
    jobs: Jobs = None,
    on: On = "ray",
    cpus: Cpus = None,
    gpus: Gpus = None,
    store: StoreURI = DEFAULT_STORE,
    fresh: Fresh = False,
    timeout: Timeout = None,
    save_every: SaveEvery = None,
    report: Annotated[
        str | None, typer.Option(metavar="ID", help="Only write the page of a sweep again.")
    ] = None,
    verbose: Verbose = False,
) -> int:
    """Search a task's hyper-parameters on Ray Tune; say which setting is best and what matters."""
    from suite import plan, sweep

    if report is not None:
        return _show_sweep(store, report)
    if name is None:
        raise ValueError("name a task, or a sweep with --report ID")
    asked = functools.partial(
        sweep.plan,
        name,
        profile=known_profile(profile),
        variant=variant,
        impl=impl,
        space=_swept(space or [], grid or []),
        overrides=assignments(set_ or []),
        search=search or ("grid" if grid else "random"),
        scheduler=scheduler,
        samples=samples,
        budget_s=sweep.budget(budget) if budget is not None else None,
        seeds=plan.seeds(seeds),
    )
    # Tune is part of Ray, so there is no sweep without one.
    on = "ray" if on == "local" else on
    where = Where(on, device, jobs, cpus, gpus, exclusive=False, verbose=verbose)
    return _show_sweep(store, _search(asked, where, store, fresh, timeout, save_every))


def _swept(ranges: list[str], lists: list[str]) -> "dict[str, Domain] | None":
    """The space that a command line names; None where it names none."""
    from suite import space

    found: dict[str, Domain] = {}
    for field, domain in [*map(space.parse, ranges), *map(space.grid, lists)]:
        if field in found:
            raise ValueError(f"field {field!r} is swept twice")
        found[field] = domain
    return found or None


def _search(
    asked: Callable[..., "Sweep"],
    where: Where,
    uri: str,
    fresh: bool,
    timeout: float | None,
    save_every: float | None,
) -> str:
    """Run a sweep unless it is finished; return the name of its folder."""
    from rich.console import Console

    from suite import cluster, driver, sweep
    from suite.local import TIMEOUT_S
    from suite.progress import SweepDisplay
    from suite.run import SAVE_EVERY_S

    # A mistake in what is asked for, or a sweep that is over, is told before Ray is started.
    private = cluster.is_private(where.on)
    known = own_device(where.device) if private else "cpu" if where.device == "cpu" else "cuda"
    place = sweep.place(uri, asked(device=known), fresh)
    if private and sweep.finished(place):
        return _already(place)
    with cluster.connect(where.on, verbose=where.verbose) as found:
        planned = asked(device=found.device(where.device))
        place = sweep.place(uri, planned, fresh)
        if sweep.finished(place):
            return _already(place)
        with SweepDisplay(planned, Console(stderr=True)) as display:
            sweep.run(
                planned,
                place,
                found,
                driver.Resources(where.cpus, where.gpus).of(planned.base),
                jobs=where.jobs,
                timeout_s=TIMEOUT_S[planned.base.profile] if timeout is None else timeout,
                save_every_s=SAVE_EVERY_S if save_every is None else save_every,
                listen=display,
            )
    return place.name


def _already(place: "Store") -> str:
    say(f"{place.name} is finished; --fresh runs it again")
    return place.name


def _show_sweep(uri: str, name: str) -> int:
    """Write a sweep's page and say what came of it; 3 where no trial ended well."""
    from suite.report import sweeps
    from suite.store import Store

    known = sweeps.names(Store(uri))
    if name not in known:
        raise task.unknown("sweep", name, known)
    place = sweeps.place(Store(uri), name)
    found = sweeps.write(place)
    print("\n".join(sweeps.summary(found)))
    if found.best:
        print(f"{sweeps.setting(found.best.config)}\n{found.command(found.best)}")
    print(f"page: {place.url('index.html')}")
    return 0 if found.best else UNTRUSTED
