"""Sweeps: search the hyper-parameters of a task on Ray Tune.

A sweep is a store of its own, ``sweeps/<id>/`` below the store that it is given: its records are
ordinary ones, and no table of results reads them. The id follows from what is searched and how,
so the same command finds the same sweep and continues it.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite import space as spaces
from suite import task
from suite.cluster import Cluster, ClusterError
from suite.local import Stop, stoppable
from suite.plan import Spec, expand
from suite.record import digest, utc
from suite.space import Choice, Domain, Space
from suite.store import Store, StoreError
from suite.task import Needs

SEARCHES = ("random", "optuna", "grid")
SCHEDULERS = ("none", "asha", "pbt")
DEFINITION = "sweep.json"
SCHEMA = "fdl.sweep/1"
SAMPLES = 16
MOST_COMBINATIONS = 10_000

# In evaluations of the task. The first one says little of a run, so no trial is judged by it.
ASHA_GRACE_ROWS, ASHA_REDUCTION = 2, 3
PBT_EVERY_ROWS = 4
RESTARTS = 2
# The time that a trial took whose process is gone: nobody knows.
UNKNOWN_S = 0.0

Listener = Callable[[str, str, Mapping[str, Any], Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The number that a sweep makes as good as it can: the task's target metric.

    Attributes:
        metric: a metric that the task yields.
        mode: ``max``, ``min``, or ``near``: the distance from ``target`` is made small.
        target: the task's target.
    """

    metric: str
    mode: str
    target: float

    def toward(self, value: float) -> float:
        """What is compared between trials."""
        return abs(value - self.target) if self.mode == "near" else value

    def of(self, row: Mapping[str, float]) -> float | None:
        """The objective of a row; None where it carries none that is finite."""
        value = row.get(self.metric, math.nan)
        return self.toward(value) if math.isfinite(value) else None

    @property
    def direction(self) -> str:
        """``max`` or ``min``."""
        return "max" if self.mode == "max" else "min"

    @property
    def name(self) -> str:
        """What the number is called."""
        near = self.mode == "near"
        return f"distance of {self.metric} from {self.target:g}" if near else self.metric


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is searched, and how: everything that decides which trials there are.

    Attributes:
        base: the run that a trial changes; its seed is the first one.
        space: field -> what it may be, sorted.
        objective: what is compared.
        search: where configurations come from: random, optuna or grid.
        scheduler: what ends or changes trials under way: none, asha or pbt.
        samples: how many configurations.
        budget_s: seconds after which no trial goes on; None for no limit.
        seeds: the repetitions of a configuration; with pbt, one for each member.
    """

    base: Spec
    space: tuple[tuple[str, Domain], ...]
    objective: Objective
    search: str
    scheduler: str
    samples: int
    budget_s: float | None
    seeds: tuple[int, ...]

    @property
    def id(self) -> str:
        """The name of the sweep: the same command gives the same."""
        return f"{self.base.task}-{digest(self._content())[:8]}"

    def spec(self, config: Mapping[str, Any], seed: int) -> Spec:
        """The run of a configuration and seed."""
        overrides = {**dict(self.base.overrides), **config}
        return dataclasses.replace(self.base, seed=seed, overrides=tuple(sorted(overrides.items())))

    def seeds_of(self, trial: str) -> tuple[int, ...]:
        """The seeds that a trial runs. Members of a population have one each."""
        if self.scheduler != "pbt":
            return self.seeds
        return (self.seeds[int(trial.rpartition("_")[2])],)

    def default(self) -> dict[str, Any] | None:
        """The swept fields as the task itself has them; None where the space leaves them out."""
        cfg = self.base.config()
        own = {field: getattr(cfg, field) for field, _ in self.space}
        inside = all(spaces.contains(domain, own[field]) for field, domain in self.space)
        return own if inside else None

    def to_json(self) -> dict[str, Any]:
        """The sweep as its file says it."""
        return {"schema": SCHEMA, "default": self.default(), **self._content()}

    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        content["base"]["overrides"] = dict(self.base.overrides)
        space = {field: dataclasses.asdict(domain) for field, domain in self.space}
        return content | {"space": space, "seeds": list(self.seeds)}


def plan(
    name: str,
    *,
    profile: str = "laptop",
    variant: str | None = None,
    impl: str | None = None,
    device: str = "cpu",
    space: Space | None = None,
    overrides: Mapping[str, Any] | None = None,
    search: str = "random",
    scheduler: str = "none",
    samples: int | None = None,
    budget_s: float | None = None,
    seeds: Sequence[int] = (0,),
) -> Sweep:
    """A sweep over a task.

    Args:
        name: a task id.
        profile: smoke, laptop or paper.
        variant: what the swept fields are changes of; the default one when None.
        impl: the implementation; the default one when None.
        device: a torch device.
        space: field -> range or values; the task's own ``sweep`` when None.
        overrides: fields that have one value throughout.
        search: random, optuna or grid.
        scheduler: none, asha or pbt.
        samples: how many configurations; 16 when None. A grid has as many as it has.
        budget_s: seconds the whole sweep may take.
        seeds: the repetitions of each configuration; the objective is their mean.

    Raises:
        ValueError: a name, field or value that does not exist or does not fit the others.
    """
    _known("search", search, SEARCHES)
    _known("scheduler", scheduler, SCHEDULERS)
    t = task.find(name)
    variant, impl = variant or next(iter(t.variants)), impl or t.impls[0]
    base = expand(
        [name],
        profile=profile,
        variants=[variant],
        impls=[impl],
        seeds=[seeds[0]],
        device=device,
        overrides=overrides,
    )[0]
    wanted = t.sweep if space is None else space
    wanted = {f: d for f, d in wanted.items() if space is not None or f not in (overrides or {})}
    found = spaces.checked(wanted, t, profile, variant, impl)
    _fit_together(found, overrides or {}, name, search, scheduler, samples, seeds)
    if t.actors and (t.actors in found or getattr(base.config(), t.actors)):
        raise ValueError(f"a trial of a sweep has no Ray actors of its own: leave {t.actors} at 0")
    n = _combinations(found) if search == "grid" else samples or SAMPLES
    return Sweep(
        base=base,
        space=tuple(found.items()),
        objective=_objective(t, name, profile, variant),
        search=search,
        scheduler=scheduler,
        samples=n,
        budget_s=budget_s,
        seeds=tuple(range(seeds[0], seeds[0] + n)) if scheduler == "pbt" else tuple(seeds),
    )


def budget(text: str) -> float:
    """``90s``, ``10m``, ``1.5h`` or ``1h30m`` in seconds.

    Raises:
        ValueError: anything else, or no time at all.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(n) * units[unit] for n, unit in parts)
    if "".join(n + unit for n, unit in parts) != text or seconds <= 0:
        raise ValueError(f"budget {text!r}: write 90s, 10m, 1.5h or 1h30m")
    return seconds


def _known(kind: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise task.unknown(kind, given, allowed)


def _combinations(space: Mapping[str, Domain]) -> int:
    """How many configurations a grid has."""
    for field, domain in space.items():
        if not isinstance(domain, Choice):
            raise ValueError(f"a grid takes lists: write --grid {field}=a,b,c, not {domain}")
    n = math.prod(len(d.values) for d in space.values() if isinstance(d, Choice))
    if n > MOST_COMBINATIONS:
        raise ValueError(f"the grid has {n:,} combinations; at most {MOST_COMBINATIONS:,}")
    return n


def _fit_together(
    space: Mapping[str, Domain],
    fixed: Mapping[str, Any],
    name: str,
    search: str,
    scheduler: str,
    samples: int | None,
    seeds: Sequence[int],
) -> None:
    """Refuse what cannot be combined."""
    if not space:
        raise ValueError(f"{name} declares no space to sweep: write --space or --grid")
    if both := sorted(set(space) & set(fixed)):
        raise ValueError(f"field {both[0]!r} is both set and swept")
    if search == "grid" and samples is not None:
        raise ValueError("a grid runs every combination: leave --samples out")
    if samples is not None and samples < 1:
        raise ValueError(f"samples {samples}: at least 1")
    if scheduler == "pbt" and search != "random":
        raise ValueError(
            f"scheduler 'pbt' changes configurations while they run, so search {search!r} cannot "
            "propose them; allowed with it: random"
        )
    if scheduler == "pbt" and (samples or SAMPLES) < 2:
        raise ValueError("scheduler 'pbt' needs a population: --samples 2 or more")
    if scheduler == "pbt" and len(seeds) > 1:
        raise ValueError("scheduler 'pbt' gives each member its own seed: name the first one only")


def _objective(t: task.Task, name: str, profile: str, variant: str) -> Objective:
    target = t.target(profile, variant)
    if target is None:
        having = ", ".join(t.targets.get(profile, {})) or "none"
        raise ValueError(
            f"{name} has no target for variant {variant!r} at profile {profile!r}, so nothing "
            f"says which trial is better; variants with one: {having}"
        )
    return Objective(target.metric, target.mode, target.value)


def place(uri: str, sweep: Sweep, fresh: bool = False) -> Store:
    """The store of a sweep below the store ``uri``: the latest of its id, or the next when fresh.

    Raises:
        StoreError: other processes cannot see such a store.
    """
    parent = Store(uri)
    if not parent.shared:
        raise StoreError(f"store {uri!r} lives in one process; trials need one that all can reach")
    found = parent.names(f"sweeps/{sweep.id}*/{DEFINITION}")
    turns = [int(n.split("/")[-2][len(sweep.id) + 1 :] or 1) for n in found]
    turn = max(turns, default=0 if fresh else 1) + fresh
    root = str(Path(uri).absolute()) if parent.local and "://" not in uri else uri.rstrip("/")
    return Store(f"{root}/sweeps/{sweep.id}{f'.{turn}' if turn > 1 else ''}")


def finished(store: Store) -> bool:
    """Whether the sweep in this store has come to its end."""
    return bool(json.loads(store.read(DEFINITION) or b"{}").get("finished_utc"))


def run(
    sweep: Sweep,
    store: Store,
    cluster: Cluster,
    needs: Needs,
    *,
    jobs: int | None = None,
    timeout_s: float = math.inf,
    save_every_s: float = 60.0,
    listen: Listener = lambda event, trial, config, result: None,
) -> None:
    """Run a sweep to its end, or go on with it, on a Ray cluster.

    What fails inside a trial is a record with a status. A trial whose process dies is taken up
    again from its last checkpoint, twice at most.

    Args:
        sweep: what to search.
        store: its own store, as ``place`` gives it.
        cluster: what this process is connected to.
        needs: what one trial takes of a node.
        jobs: trials at the same time; as many as the cluster has room for when None.
        timeout_s: seconds that one run may take.
        save_every_s: the least time between two checkpoints of a trial.
        listen: called with ``started``, ``row``, ``ended`` or ``failed``, the trial's id, its
            configuration and its last result.

    Raises:
        StoreError: a node cannot read or write the store.
        ClusterError: the cluster has no place for a trial.
        KeyboardInterrupt: stopped; what was saved is there for the next time.
    """
    from suite import provenance
    from suite.record import Placement
    from suite.trial import Job

    store.check_writable()
    jobs = min(_room(cluster, needs), jobs or sweep.samples, sweep.samples)
    _check_nodes(sweep, store, cluster)
    placement = Placement(
        scheduler="ray",
        workers=jobs,
        cpus=needs.cpus,
        gpus=needs.gpus,
        colocated_runs=jobs - 1,
        contended=jobs > 1,
    )
    job = Job(sweep, store.uri, provenance.code(), placement, timeout_s, save_every_s)
    if store.read(DEFINITION) is None:
        _declare(store, sweep, created_utc=utc())
    failures: dict[str, str] = {}
    with _quiet(), stoppable() as stop, _heard(listen, failures, stop):
        _tuner(job, store, jobs).fit()
        stop.check()
    _settle(store, failures)
    _declare(store, sweep, finished_utc=utc())
    store.fs.rm(store.path("tune"), recursive=True)


def _tuner(job: Any, store: Store, jobs: int) -> Any:
    """The experiment: a new one, or the one that was interrupted."""
    from ray import tune

    resources = {"cpu": float(job.placement.cpus), "gpu": job.placement.gpus}
    trainable = tune.with_resources(_trainable(job), resources)
    path, files = store.path("tune"), _filesystem(store)
    if tune.Tuner.can_restore(path, storage_filesystem=files):
        return tune.Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=files)
    sweep: Sweep = job.sweep
    kept = None if sweep.scheduler == "pbt" else 2  # PBT goes back to any of them.
    return tune.Tuner(
        trainable,
        param_space=_domains(sweep),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=sweep.objective.direction,
            search_alg=_search(sweep),
            scheduler=_scheduler(sweep),
            num_samples=1 if sweep.search == "grid" else sweep.samples,
            max_concurrent_trials=jobs,
            time_budget_s=sweep.budget_s,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=store.root,
            storage_filesystem=files,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=kept),
            callbacks=[_callback()],
            verbose=0,
        ),
    )


def _trainable(job: Any) -> Any:
    """``Trial`` as Tune calls it. The class is made here so that Ray is not needed to plan."""
    from ray import tune

    from suite.trial import Trial

    class Run(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.trial = Trial(job, self.trial_id, config)

        def step(self) -> dict[str, Any]:
            result = self.trial.step()
            return result | {"should_checkpoint": self.trial.save_due()}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            self.trial.save(checkpoint_dir)

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.trial.restore(checkpoint)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.trial.leave()
            self.trial = Trial(job, self.trial_id, new_config)
            return True

        def cleanup(self) -> None:
            self.trial.leave()

    return Run


def _domains(sweep: Sweep) -> dict[str, Any]:
    """The space as Tune writes it."""
    from ray import tune

    def of(domain: Domain) -> Any:
        if isinstance(domain, Choice):
            values = list(domain.values)
            return tune.grid_search(values) if sweep.search == "grid" else tune.choice(values)
        if domain.whole:
            draw = tune.lograndint if domain.log else tune.randint
            return draw(int(domain.low), int(domain.high) + 1)
        return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)

    return {field: of(domain) for field, domain in sweep.space}


def _search(sweep: Sweep) -> Any:
    """Where configurations come from; the task's own setting is the first where it can be."""
    from ray.tune.search import BasicVariantGenerator

    first = sweep.default()
    points = [first] if first and sweep.search != "grid" else None
    if sweep.search != "optuna":
        return BasicVariantGenerator(points_to_evaluate=points, random_state=sweep.base.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna's default of 10 random draws would leave nothing of a short sweep to the model.
    blind = min(10, max(3, sweep.samples // 3))
    sampler = optuna.samplers.TPESampler(seed=sweep.base.seed, n_startup_trials=blind)
    return OptunaSearch(points_to_evaluate=points, sampler=sampler)


def _scheduler(sweep: Sweep) -> Any:
    """What ends or changes trials under way."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    if sweep.scheduler == "asha":
        return ASHAScheduler(
            time_attr="row",
            grace_period=ASHA_GRACE_ROWS,
            reduction_factor=ASHA_REDUCTION,
            max_t=10**9,
        )
    if sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="row",
            perturbation_interval=PBT_EVERY_ROWS,
            hyperparam_mutations=_domains(sweep),
            custom_explore_fn=lambda config: _inside(sweep, config),
        )
    return FIFOScheduler()


def _inside(sweep: Sweep, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that was perturbed beyond a range, put back to its end."""
    found = dict(config)
    for field, domain in sweep.space:
        if not isinstance(domain, Choice):
            value = min(max(found[field], domain.low), domain.high)
            found[field] = int(value) if domain.whole else float(value)
    return found


def _callback() -> Any:
    """Pass on what happens. It is saved with the experiment, so it holds nothing itself."""
    from ray import tune

    class Tell(tune.Callback):
        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            heed()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tell("started", trial)

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
        ) -> None:
            tell("row", trial)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tell("ended", trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tell("failed", trial)

    return Tell()


# Tune saves its callbacks with the experiment; what they call belongs to this process.
_listening: list[tuple[Listener, dict[str, str], Stop]] = []


@contextlib.contextmanager
def _heard(listen: Listener, failures: dict[str, str], stop: Stop) -> Iterator[None]:
    _listening.append((listen, failures, stop))
    try:
        yield
    finally:
        _listening.pop()


def tell(event: str, trial: Any) -> None:
    """Give one event of Tune's to whoever listens in this process."""
    for listen, failures, _ in _listening:
        if event == "failed":
            lines = str(trial.get_pickled_error() or "").strip().splitlines() or ["unknown"]
            failures[trial.trial_id] = lines[0]
        listen(event, trial.trial_id, dict(trial.config), dict(trial.last_result or {}))


def heed() -> None:
    """Raise KeyboardInterrupt where a sweep of this process was asked to stop."""
    for _, _, stop in _listening:
        stop.check()


def _settle(store: Store, failures: Mapping[str, str]) -> None:
    """Give each run that was stopped, or whose process died for good, its record."""
    from suite.record import parse
    from suite.trial import PENDING
    from suite.worker import epitaph

    for name in store.names(f"{PENDING}/*.json"):
        text = (store.read(name) or b"{}").decode()
        left = json.loads(text)
        trial = left["extra"]["sweep"]["trial"]
        why = f"given up after {RESTARTS + 1} attempts: {failures.get(trial, 'no reason known')}"
        store.put(parse(text) if "record_id" in left else epitaph(left, "killed", why, UNKNOWN_S))
        store.delete(name)
    if store.fs.isdir(store.path(PENDING)):
        store.fs.rm(store.path(PENDING), recursive=True)


def _declare(store: Store, sweep: Sweep, **times: str) -> None:
    earlier = json.loads(store.read(DEFINITION) or b"{}")
    content = {**earlier, **sweep.to_json(), **times}
    store.write(DEFINITION, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _filesystem(store: Store) -> Any:
    """What Tune writes a store with that is not on disk; None for one that is."""
    if store.local:
        return None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(store.fs))


def _room(cluster: Cluster, needs: Needs) -> int:
    """How many trials fit at a time, counting what an autoscaler may add; at least one.

    Raises:
        ClusterError: a trial would wait for ever, of which Ray itself says nothing.
    """

    def fit(cpus: float, gpus: float) -> int:
        return int(min(cpus // needs.cpus, gpus // needs.gpus if needs.gpus else math.inf))

    more = cluster.to_come()
    room = max(
        sum(fit(n.cpus, n.gpus) for n in cluster.nodes()),
        fit(more.get("CPU", 0.0), more.get("GPU", 0.0)),
    )
    if room < 1:
        raise ClusterError(f"a trial needs {needs} on one node; there is {cluster}")
    return room


def _check_nodes(sweep: Sweep, store: Store, cluster: Cluster) -> None:
    from suite.driver import check_nodes

    probe = f".probe-{secrets.token_hex(8)}"
    store.write(probe, b"the sweep was here")
    try:
        check_nodes(cluster.nodes(), store.uri, probe, {sweep.base.task: sweep.base.version})
    finally:
        store.delete(probe)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have Tune print and log nothing of its own, and leave Ctrl-C to the command line."""
    import logging

    switches = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
