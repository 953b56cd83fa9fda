"""The command line. Everything heavy is imported by the command that needs it."""

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite import task

if TYPE_CHECKING:
    from suite.local import Campaign
    from suite.plan import Spec
    from suite.space import Domain
    from suite.store import Store
    from suite.sweep import Sweep

USAGE, UNTRUSTED, INFRASTRUCTURE, INTERRUPTED = 2, 3, 4, 130

app = typer.Typer(
    name="suite",
    help="Reproduce and benchmark Fundamentals of Deep Learning, 2nd edition.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="The data sets: list, fetch, verify, where.", no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(
    help="The kernels: their speed, what they use of a GPU, their tuning.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")
cluster_app = typer.Typer(help="A Ray cluster: check, wait, status, token.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")

Selection = Annotated[
    list[str],
    typer.Argument(
        metavar="SELECTION...",
        help="Task ids (ch12.dnc_copy), chapters (ch12), globs ('ch*.lstm*').",
    ),
]
StoreURI = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="SUITE_STORE",
        help="Where records go: a path, s3://..., gs://..., memory://...",
    ),
]
Profile = Annotated[str, typer.Option(help="How big: smoke, laptop or paper.")]
Seeds = Annotated[str, typer.Option(help="The repetitions: 0-4, 7 or 0,2,10-12.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time; all cores when not given.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Fresh = Annotated[
    bool, typer.Option("--fresh/--resume", help="Run again what is finished, or continue.")
]
Timeout = Annotated[float | None, typer.Option(help="Seconds a run may take.", min=0.001)]
On = Annotated[
    str,
    typer.Option(
        envvar="SUITE_ON",
        metavar="WHERE",
        help="local; ray or ray:N, a private cluster of N nodes on this machine; or a running "
        "one: auto, host:port, ray://host:port.",
    ),
]
Cpus = Annotated[
    int | None, typer.Option(min=1, help="Cores of a run on a cluster; the task's own needs.")
]
Gpus = Annotated[
    float | None,
    typer.Option(min=0.01, help="GPUs of a run on a cluster, such as 0.25; the task's own needs."),
]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="One run a node, with all its cores: for timing.")
]
SaveEvery = Annotated[
    float | None, typer.Option(min=0.0, help="Seconds between two snapshots of a run; 60.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what Ray has to say.")]
DEFAULT_STORE = "runs"
PUBLISHED = Path(__file__).parent.parent / "results"


def main() -> None:
    """Run the command line; a user's mistake is one clear line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        _say(f"error: {error}")
        sys.exit(INFRASTRUCTURE)
    except ValueError as error:
        _say(f"error: {error}")
        sys.exit(USAGE)
    except Exception as error:
        # Typer's own usage errors show themselves, with the usage line of the command.
        if not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(getattr(error, "exit_code", USAGE))
    # Typer turns Ctrl-C inside a command into this code.
    if code == INTERRUPTED:
        _say("stopped; the same command continues where it was")
    sys.exit(code if isinstance(code, int) else 0)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@app.command("list")
def list_(
    chapter: Annotated[int | None, typer.Option(help="Only this chapter.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the tasks."""
    names = task.names() if chapter is None else task.select([f"ch{chapter}"])
    found = [task.summary(name) for name in names]
    if as_json:
        keys = ("id", "chapter", "title", "file")
        print(json.dumps([{k: s[k] for k in keys} for s in found], indent=1))
        return
    width = max(map(len, names), default=0)
    for entry in found:
        print(f"{entry['id']:<{width}}  {entry['title']}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="TASK", help="A task id.")],
    store: StoreURI = DEFAULT_STORE,
) -> None:
    """Show a task: sections, variants, targets with their sources, data, expected time."""
    t = task.find(name)
    print(f"{name}: {task.summary(name)['doc']}\n")
    print("Sections: " + "; ".join(t.sections))
    print("Implementations: " + ", ".join(t.impls))
    for variant, changes in t.variants.items():
        settings = ", ".join(f"{k}={v!r}" for k, v in changes.items()) or "the defaults"
        print(f"Variant {variant}: {settings}")
    if t.sweep:
        print("Sweep: " + ", ".join(f"{field}={domain}" for field, domain in t.sweep.items()))
    walls = _walls(store, name)
    for profile in t.profiles:
        cfg = t.configure(profile)
        print(f"\nProfile {profile}: data {getattr(cfg, 'data', 'generated by the task')}")
        for variant, target in t.targets.get(profile, {}).items():
            print(f"  target of {variant}: {target} ({target.source})")
        for claim in t.claims:
            if profile in claim.profiles:
                print(f"  claim: {claim.text} ({claim.source})")
        print(f"  time: {walls.get(profile, 'no run measured yet')}")


def _walls(uri: str, name: str) -> dict[str, str]:
    """Profile -> the median wall time of the runs in a store and of the published ones."""
    import statistics

    from suite.progress import duration
    from suite.store import Store

    walls: dict[str, dict[str, list[float]]] = {}
    for store in (uri, str(PUBLISHED)):
        for record in Store(store).scan(f"{name}/*.json"):
            by_variant = walls.setdefault(record.task.profile, {})
            by_variant.setdefault(record.variant, []).append(record.clock.wall_s)
    return {
        profile: "median of measured runs: "
        + ", ".join(f"{v} {duration(statistics.median(w))}" for v, w in sorted(found.items()))
        for profile, found in walls.items()
    }


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
        profile=_known_profile(profile),
        variants=variant,
        impls=impl,
        seeds=plan.seeds(seeds),
        overrides=_assignments(set_ or []),
        stop_at_target=stop_at_target,
    )
    where = _Where(on, device, jobs, cpus, gpus, exclusive, verbose)
    if inject:
        return _inject(inject, matrix, where, store, fresh, timeout, save_every)
    return _ended(_campaign(matrix, where, store, fresh, timeout, inline, save_every))


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
        profile=_known_profile(profile),
        seeds=plan.seeds(seeds),
        judged_only=True,
    )
    where = _Where(on, device, jobs, cpus, gpus, exclusive, verbose)
    statuses = _campaign(matrix, where, store, fresh, timeout, False, save_every)
    contradicted = _write_report(store, selection)
    return _ended(statuses) or int(contradicted)


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
        profile=_known_profile(profile),
        variant=variant,
        impl=impl,
        space=_swept(space or [], grid or []),
        overrides=_assignments(set_ or []),
        search=search or ("grid" if grid else "random"),
        scheduler=scheduler,
        samples=samples,
        budget_s=sweep.budget(budget) if budget is not None else None,
        seeds=plan.seeds(seeds),
    )
    # Tune is part of Ray, so there is no sweep without one.
    on = "ray" if on == "local" else on
    where = _Where(on, device, jobs, cpus, gpus, exclusive=False, verbose=verbose)
    return _show_sweep(store, _search(asked, where, store, fresh, timeout, save_every))


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
) -> int:
    """Write tables, curves and the page of a store, or check them."""
    from suite import report as reporting
    from suite.store import Store

    if into is not None:
        text, folder = into.read_text(), Path(store).resolve() / "tables"
        prefix = f"{folder.relative_to(into.resolve().parent)}/"
        fresh = reporting.embedded(text, reporting.build(Store(store)), prefix)
    if check:
        problems = reporting.check(Store(store))
        if into is not None and text != fresh:
            problems.append(f"{into}: its overview does not match; type suite report --into {into}")
        for problem in problems:
            _say(problem)
        print("every table re-derives from its records" if not problems else "the check failed")
        return int(bool(problems))
    contradicted = _write_report(store, None)
    if into is not None:
        into.write_text(fresh)
    if open_:
        import webbrowser

        webbrowser.open((Path(store).absolute() / "index.html").as_uri())
    return int(contradicted)


@data_app.command("list")
def data_list() -> None:
    """List the data sets, and where each stands."""
    from suite import data

    for entry in data.catalogue():
        place = data.where(entry["name"]) or "not here yet"
        print(f"{entry['name']:<16} {entry['kind']:<8} {place}  ({entry['licence']})")


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Data sets.")]) -> None:
    """Download data sets into the user's cache."""
    from suite import data

    for name in names:
        print(f"{name}: {data.fetch(name)}")


@data_app.command("verify")
def data_verify(names: Annotated[list[str], typer.Argument(help="Data sets.")]) -> int:
    """Compare the files of data sets with their pinned checksums."""
    from suite import data

    failed = 0
    for name in names:
        for file, ok, detail in data.verify(name):
            failed += not ok
            print(f"{'ok ' if ok else 'BAD'} {name} {file} {detail}")
    return INFRASTRUCTURE if failed else 0


@data_app.command("where")
def data_where(name: Annotated[str, typer.Argument(help="A data set.")]) -> int:
    """Print where a data set stands."""
    from suite import data

    place = data.where(name)
    print(place or f"{name} is not on this machine; type: suite data fetch {name}")
    return 0 if place else INFRASTRUCTURE


@bench_app.command("compile")
def bench_compile(
    arch: Annotated[
        list[int] | None, typer.Option(help="90 or 80: compute capability; both when not given.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only these ops. Repeatable.")] = None,
    accept: Annotated[bool, typer.Option(help="Store what was found as the new table.")] = False,
    jobs: Jobs = None,
) -> int:
    """Compile every kernel for a GPU without one; compare what it uses with the stored table."""
    import os
    import subprocess

    # Triton decides at the definition of a kernel whether to interpret it, so in a new process.
    command = [sys.executable, "-m", "kernels.compile_gate", *(["--accept"] if accept else [])]
    command += [f"--arch={a}" for a in arch or ()] + [f"--op={o}" for o in op or ()]
    command += [f"--jobs={jobs}"] if jobs else []
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(command, env=environment, check=False).returncode


@bench_app.command("kernels")
def bench_kernels(
    op: Annotated[
        list[str] | None, typer.Option(help="dnc.step, dnc or a glob; all. Repeatable.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="A case's name or a glob; all. Repeatable.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="reference, torch, compile, triton, nn.LSTM, ... Repeatable."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of all tensors; each case's own.")] = "",
    mode: Annotated[
        list[str] | None, typer.Option(help="forward, backward or full. Repeatable.")
    ] = None,
    store: StoreURI = DEFAULT_STORE,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each call.")] = 20,
    most_gflop: Annotated[
        float | None,
        typer.Option(min=0.0, help="Leave larger calls out; 5 on a processor, no limit on a GPU."),
    ] = None,
    fresh: Fresh = False,
) -> int:
    """Check and time every case of every kernel with every provider in turn."""
    from rich.console import Console

    from suite import bench
    from suite.progress import Benchmarks
    from suite.store import Store

    chosen = _device(device)
    if most_gflop is None and chosen == "cpu":
        most_gflop = bench.MOST_GFLOP_ON_CPU
    sessions = bench.Request(
        ops=tuple(op or ()),
        cases=tuple(case or ()),
        providers=tuple(provider or ()),
        device=chosen,
        dtype=dtype,
        modes=tuple(mode or bench.DEFAULT_MODES),
    ).sessions()
    target = Store(store)
    target.check_writable()
    console = Console(stderr=True)
    with Benchmarks(len(sessions), console) as display:
        records = bench.run(
            sessions, target, rounds=rounds, fresh=fresh, most_gflop=most_gflop, told=display
        )
    console.print(f"{len(records)} new records in {store}", style="dim", highlight=False)
    return _ended(Counter(r.status for r in records))


@bench_app.command("ingest")
def bench_ingest(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="What pytest --benchmark-json wrote."),
    ],
    store: StoreURI = DEFAULT_STORE,
) -> int:
    """Make records of a file of pytest-benchmark."""
    from suite.ingest import ingest
    from suite.store import Store

    records = ingest(file, Store(store))
    kinds = Counter(r.micro.producer if r.status == "ok" and r.micro else r.status for r in records)
    print(f"{len(records)} records: {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}")
    return _ended(Counter(r.status for r in records))


@bench_app.command("tune")
def bench_tune(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops. Repeatable.")] = None,
    store: StoreURI = DEFAULT_STORE,
) -> int:
    """Find launch parameters for this machine's GPU, and write them to kernels/configs."""
    from suite import gpu

    gpu.check_machine()
    return gpu.tune_ops(op or list(gpu.TUNED), store)


@app.command("gpu")
def gpu_(
    budget_minutes: Annotated[float, typer.Option(help="Stop cleanly after that; at most 9.")] = 8,
    store: StoreURI = "results",
    only: Annotated[
        list[str] | None,
        typer.Option(help="tests, baselines, tuner, table, racecheck or paper. Repeatable."),
    ] = None,
) -> int:
    """Do all that needs an NVIDIA GPU, within minutes; the next call goes on where it was."""
    from suite import gpu

    return gpu.command(budget_minutes, store, only or ())


Joined = Annotated[
    str, typer.Option("--on", help="The cluster: auto, host:port or ray://host:port.")
]


@cluster_app.command("check")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A configuration for ray up.")],
) -> None:
    """Check a configuration for ray up."""
    from suite import launch

    config = launch.check(file)
    kinds = ", ".join(
        f"{name} (up to {kind['max_workers']})" if kind["max_workers"] else name
        for name, kind in config["available_node_types"].items()
    )
    print(f"{file}: ok; provider {config['provider']['type']}, nodes: {kinds}")


@cluster_app.command("wait")
def cluster_wait(
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes, the head among them.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 300.0,
    on: Joined = "auto",
) -> None:
    """Wait for nodes; if they do not join, say why."""
    from suite import launch

    for host in launch.wait(on, nodes, timeout, _say):
        print(host)


@cluster_app.command("status")
def cluster_status(on: Joined = "auto") -> None:
    """Show the nodes, their use, and what runs."""
    from suite import launch

    hosts, commands = launch.status(on)
    for host in hosts:
        print(host)
    print("\n".join(["runs:", *commands]) if commands else "runs: nothing")


@cluster_app.command("token")
def cluster_token(
    write: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that file_mounts distributes.")
    ] = None,
) -> None:
    """Show or make the token that all hosts share."""
    from suite import launch

    path, made = launch.token(write)
    print(path)
    if made:
        _say("a new token; keep it to yourself, and put its folder under file_mounts as ~/.ray")


@app.command()
def doctor(store: StoreURI = DEFAULT_STORE) -> int:
    """Say what this machine has and lacks, and what that means for what can run."""
    from suite.doctor import examine

    failed = False
    for finding in examine(store):
        print(f"{finding.mark}  {finding.what}: {finding.found}")
        if finding.meaning:
            print(f"      {finding.meaning}")
        failed |= finding.mark == "missing"
    return INFRASTRUCTURE if failed else 0


def _known_profile(profile: str) -> str:
    if profile not in task.PROFILES:
        raise task.unknown("profile", profile, task.PROFILES)
    return profile


def _assignments(pairs: list[str]) -> dict[str, Any]:
    parsed = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals or not field:
            raise ValueError(f"--set {pair!r}: write field=value")
        parsed[field] = value
    return parsed


def _device(name: str) -> str:
    """The torch device to use. Raises ValueError for one that this machine lacks."""
    import torch

    gpus = torch.cuda.device_count()
    allowed = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in allowed:
        raise ValueError(f"{task.unknown('device', name, allowed)} on this machine")
    return ("cuda" if gpus else "cpu") if name == "auto" else name


@dataclass(frozen=True)
class _Where:
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
    where: _Where,
    uri: str,
    fresh: bool,
    timeout: float | None,
    inline: bool,
    save_every: float | None,
) -> Counter[str]:
    """Run a matrix and return how many runs came to which status."""
    from suite.local import Campaign
    from suite.store import Store

    campaign = Campaign(
        Store(uri), fresh=fresh, timeout_s=timeout, inline=inline, save_every_s=save_every
    )
    if where.on == "local":
        where.refuse_what_only_clusters_have()
        return _watched(matrix(device=_device(where.device)), campaign, where.jobs)
    return _on_cluster(matrix, where, campaign)


def _on_cluster(
    matrix: Callable[..., "list[Spec]"], where: _Where, campaign: "Campaign"
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
        _say(f"on {found}")
        backend = driver.backend(found, resources)
        campaign = replace(campaign, backend=backend, attempts=dispatch.ATTEMPTS)
        return _watched(specs, campaign, int(sum(n.cpus for n in found.nodes())))


def _inject(
    faults_: list[str],
    matrix: Callable[..., "list[Spec]"],
    where: _Where,
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
        device = _device(device)
    else:
        with cluster.connect(where.on, verbose=where.verbose) as found:
            device = found.device(device)
    made = list(faults.inject(matrix(device=device), injections, setting, fresh=fresh, say=_say))
    differs = any(r.determinism == "bitwise" and r.fault and not r.fault.same_params for r in made)
    return UNTRUSTED if differs else _ended(Counter(r.status for r in made))


def _watched(specs: "list[Spec]", campaign: "Campaign", jobs: int | None) -> Counter[str]:
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
    where: _Where,
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
    known = _device(where.device) if private else "cpu" if where.device == "cpu" else "cuda"
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
    _say(f"{place.name} is finished; --fresh runs it again")
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
    page = place.path("index.html")
    print(f"page: {Path(page).as_uri() if place.local else page}")
    return 0 if found.best else UNTRUSTED


def _ended(statuses: Counter[str]) -> int:
    """The exit code of a campaign: 0, 3 where a run failed, 4 where the machine did."""
    if statuses.keys() & {"infra_error", "killed"}:
        return INFRASTRUCTURE
    return UNTRUSTED if statuses.keys() & {"crashed", "oom", "nan", "timeout", "invalid"} else 0


def _write_report(uri: str, selection: list[str] | None) -> bool:
    """Write a store's tables and page, print the verdicts; say if one is CONTRADICTED."""
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
    page = Store(uri).path("index.html")
    print(f"page: {Path(page).as_uri() if Store(uri).local else page}")
    return made.contradicted
