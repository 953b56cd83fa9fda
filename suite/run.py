"""Run one spec: seeds, threads, clock, target, checkpoint; one row per yield; one record."""

import contextlib
import dataclasses
import io
import itertools
import math
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from suite import checkpoint, data, energy, provenance, task
from suite.plan import Spec
from suite.record import (
    Artifact,
    Clock,
    ConfigInfo,
    Cost,
    Crossing,
    DataInfo,
    Final,
    KernelsInfo,
    Placement,
    Record,
    StepTime,
    TargetInfo,
    TaskInfo,
    Train,
    digest,
    seal,
    utc,
)
from suite.store import Store, StoreError

SAVE_EVERY_S = 60.0
PARTS = ("setup", "train", "eval", "checkpoint", "recovery")


class Interrupted(Exception):
    """The run was asked to stop; what it had yielded is saved."""


class NotFinite(ArithmeticError):
    """A metric became NaN or infinite."""


@dataclasses.dataclass
class Meter:
    """A counter that is read with the clock: what each part of a run adds to it.

    Attributes:
        read: gives the counter.
        spent: part -> what the counter went up by.
        last: what it was when the current part began.
    """

    read: Callable[[], float]
    spent: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    last: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.last = self.read()

    def switch(self, part: str) -> None:
        """End a part."""
        now = self.read()
        self.spent[part] += now - self.last
        self.last = now


@dataclasses.dataclass
class Stopwatch:
    """Splits the time into parts without a gap: it is always in exactly one of them.

    Attributes:
        device: is waited for where a part ends.
        spent: part -> seconds.
        part: the current one.
        since: when it began.
        meters: other counters that are split in the same way, by name.
    """

    device: torch.device
    spent: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    part: str = "setup"
    since: float = dataclasses.field(default_factory=time.perf_counter)
    meters: dict[str, "Meter"] = dataclasses.field(default_factory=dict)

    def switch(self, part: str) -> None:
        """End the current part and begin another."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.spent[self.part] += now - self.since
        for meter in self.meters.values():
            meter.switch(self.part)
        self.part, self.since = part, now

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count the time inside the block as ``part``, then go back."""
        before = self.part
        self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def read(self) -> Clock:
        """The clock so far."""
        self.switch(self.part)
        parts = {f"{name}_s": seconds for name, seconds in self.spent.items()}
        return Clock(wall_s=sum(parts.values()), **parts)


class Context:
    """What a task may ask of its runner: device, seed, data, keep and figure.

    Attributes:
        device: where the task computes.
        seed: the repetition; the global generators are already seeded with it.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        store: Store | None = None,
        figures: bool = False,
        snapshot: dict[str, Any] | None = None,
        retuned: bool = False,
    ) -> None:
        self.device = device
        self.seed = seed
        self.kept: dict[str, Any] = {}
        self.used: dict[str, DataInfo] = {}
        self.stopwatch = Stopwatch(device)
        self.snapshot = snapshot
        self.artifacts = [Artifact(**a) for a in snapshot["artifacts"]] if snapshot else []
        self._store = store
        self._figures = figures
        self._retuned = retuned

    def data(self, name: str) -> "data.Dataset":
        """A data set as tensors on the task's device; the record says which and which copy."""
        loaded = data.load(name, device=self.device)
        self.used[name] = DataInfo(**loaded.provenance)
        return loaded

    def keep(self, **things: Any) -> int:
        """Register what must survive a restart; return how many yields were already done.

        Call it once, before the bare ``yield`` that ends the set-up. On a restart what is
        registered is restored in place, and the random states follow when the set-up ends.

        Raises:
            TypeError: a kind of object that cannot be kept.
        """
        for thing in things.values():
            checkpoint.state_of(thing)
        self.kept = things
        if self.snapshot is None:
            return 0
        for name, thing in things.items():
            state = self.snapshot["kept"][name]
            checkpoint.load_into(
                thing, checkpoint.retuned(state, thing) if self._retuned else state
            )
        return int(self.snapshot["yields"])

    def figure(self, name: str, draw: Callable[[], Any]) -> None:
        """Have ``draw()`` make a matplotlib figure, off the clock, and keep it as a picture.

        Pictures are made for the first seed of a campaign only.
        """
        if not self._figures or self._store is None:
            return
        with self.stopwatch.within("eval"), _random_state_kept():
            content = io.BytesIO()
            draw().savefig(content, format="png", dpi=110, metadata={"Software": None})
            made = self._store.put_artifact(f"{name}.png", content.getvalue())
            self.artifacts = [a for a in self.artifacts if a.name != made.name] + [made]


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    state = checkpoint.random_state()
    yield
    checkpoint.set_random_state(state)


@dataclasses.dataclass
class Trace:
    """What a run has shown so far: the rows it yielded, each with the clock beside it.

    Beside each also stands what training had used of energy by then, where that is counted.
    """

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    joules: list[float | None] = dataclasses.field(default_factory=list)
    yields: int = 0
    stop_requested: bool = False
    saved_at: float = dataclasses.field(default_factory=time.perf_counter)
    save_every_s: float = SAVE_EVERY_S

    def save_due(self) -> bool:
        """Whether the last snapshot is old enough for another."""
        return time.perf_counter() - self.saved_at >= self.save_every_s


def measure(
    t: task.Task,
    cfg: Any,
    ctx: Context,
    trace: Trace,
    *,
    timed_to: task.Target | None = None,
    stop_at_target: bool = False,
    save: Callable[[], None] | None = None,
) -> Generator[dict[str, float]]:
    """Yield one row for each thing the task yields, with ``train_s`` beside its metrics.

    The train clock runs only while the task's own code runs. A bare ``yield`` ends the set-up.
    A task that yields a function has it called off the train clock with the random state kept,
    so evaluating more often changes neither the time nor the training.

    Raises:
        NotFinite: a metric is NaN or infinite; the row is in the trace.
        Interrupted: a stop was requested and what was yielded is saved.
    """
    watch, rows, resumed = ctx.stopwatch, t.run(cfg, ctx), ctx.snapshot
    if resumed is not None:
        watch.part = "recovery"
    try:
        for given in rows:
            if given is None:
                watch.switch("train")
                if resumed is not None:
                    checkpoint.set_random_state(resumed["random"])
                continue
            watch.switch("eval")
            row = _row(given, watch)
            trace.rows.append(row)
            meter = watch.meters.get("energy")
            trace.joules.append(meter.spent["train"] if meter else None)
            trace.yields += 1
            yield row
            _refuse_not_finite(row)
            if stop_at_target and timed_to and crossing(trace.rows, timed_to):
                return
            if save and (trace.stop_requested or trace.save_due()):
                save()
            if trace.stop_requested:
                raise Interrupted
            watch.switch("train")
    finally:
        rows.close()
        watch.switch("eval")


def _row(given: task.Metrics | Callable[[], task.Metrics], watch: Stopwatch) -> dict[str, float]:
    if callable(given):
        with _random_state_kept(), torch.no_grad():
            given = given()
    return {k: float(v) for k, v in given.items()} | {"train_s": watch.spent["train"]}


def _refuse_not_finite(row: Mapping[str, float]) -> None:
    bad = [k for k, v in row.items() if not math.isfinite(v)]
    if bad:
        raise NotFinite(f"{', '.join(bad)} at step {row.get('step', math.nan):g}")


def warm_up() -> None:
    """Import what PyTorch would import in the middle of a process's first run."""
    parameter = torch.zeros(1, requires_grad=True)
    torch.optim.Adam([parameter]).zero_grad()


def crossing(rows: list[dict[str, float]], target: task.Target) -> Crossing | None:
    """The first time that two consecutive evaluations met the target, or None.

    One evaluation that meets it is not enough: among many noisy ones of a model that is short
    of the target, some will. A run that yields once is judged by that one.
    """
    seen = [r for r in rows if target.metric in r]
    met = [target.reached(r) for r in seen]
    steps = [int(r.get("step", i + 1)) for i, r in enumerate(seen)]
    if len(seen) == 1 and met[0]:
        return Crossing(rule="last", lo_step=0, hi_step=steps[0])
    for i, (this, following) in enumerate(itertools.pairwise(met)):
        if this and following:
            return Crossing(
                rule="two_consecutive", lo_step=steps[i - 1] if i else 0, hi_step=steps[i]
            )
    return None


class Attempt:
    """One attempt at a spec: it yields rows, can be saved at any of them, and ends as a record.

    Attributes:
        spec: what is run.
        draft: what is known of the run before it ends, as a record's fields.
        trace: the rows so far.
        status: how it ended; what goes wrong inside the run is a status, not an exception.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        store: Store | None = None,
        campaign_id: str = "none",
        attempt: int = 1,
        parent_record_id: str | None = None,
        code: Any = None,
        placement: Placement | None = None,
        figures: bool = False,
        snapshot: dict[str, Any] | None = None,
        retuned: bool = False,
        timeout_s: float = math.inf,
        save_every_s: float = SAVE_EVERY_S,
        price_per_hour: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        created = utc()
        self.spec, self.timeout_s, self.price_per_hour = spec, timeout_s, price_per_hour
        self.task, self.config = task.find(spec.task), spec.config()
        device = torch.device(spec.device)
        placement = placement or _whole_machine(device)
        torch.set_num_threads(placement.cpus)
        _reset_peak_memory()
        self.draft = _envelope(spec, self.task, self.config, code, placement) | {
            "campaign_id": campaign_id,
            "attempt": attempt,
            "parent_record_id": parent_record_id,
            "created_utc": created,
            "started_utc": utc(),
        }
        self.draft["extra"] |= extra or {}
        self.ctx = Context(
            device, spec.seed, store=store, figures=figures, snapshot=snapshot, retuned=retuned
        )
        self.trace = Trace(save_every_s=save_every_s)
        if snapshot:
            self.trace.rows, self.trace.yields = snapshot["rows"], snapshot["yields"]
            self.ctx.stopwatch.spent = dict(snapshot["spent"])
        self.energy_method = self._count_joules(snapshot, placement)
        self.status, self.detail = "ok", ""

    def _count_joules(self, snapshot: dict[str, Any] | None, placement: Placement) -> str:
        """Read the energy counter with the clock, where there is one; how, or why not."""
        read, method = energy.gpu_joules(self.spec.device, placement.gpus)
        spent = (snapshot or {}).get("spent_j")
        if read is None:
            return method
        if snapshot and spent is None:
            return "not measured: the run began where its energy was not counted"
        meter = Meter(read)
        if snapshot and spent is not None:
            meter.spent, self.trace.joules = dict(spent), list(snapshot["joules"])
        self.ctx.stopwatch.meters["energy"] = meter
        return method

    def rows(self, save: Callable[[], None] | None = None) -> Generator[dict[str, float]]:
        """Run to the end, a limit or a failure; yield each row as the task yields it.

        Args:
            save: called when a snapshot is due.

        Raises:
            Interrupted: a stop was requested; what was yielded is saved.
            StoreError: the store cannot be written.
        """
        _kernel_counts(reset=True)
        checkpoint.seed_everything(self.spec.seed)
        rows = measure(
            self.task,
            self.config,
            self.ctx,
            self.trace,
            timed_to=self.task.timed_to(self.spec.profile, self.spec.variant),
            stop_at_target=self.spec.stop_at_target,
            save=save,
        )
        try:
            with contextlib.closing(rows):
                for row in rows:
                    yield row
                    if self.ctx.stopwatch.read().wall_s > self.timeout_s:
                        self.status, self.detail = "timeout", f"over {self.timeout_s:g} s"
                        return
        except (Interrupted, StoreError):
            raise
        except Exception as error:
            self.status, self.detail = _failure(error)

    def snapshot(self) -> dict[str, Any]:
        """What the run needs to go on from its last row in another process."""
        self.trace.saved_at = time.perf_counter()
        return {
            "kept": {name: checkpoint.state_of(thing) for name, thing in self.ctx.kept.items()},
            "random": checkpoint.random_state(),
            "rows": self.trace.rows,
            "yields": self.trace.yields,
            "spent": dict(self.ctx.stopwatch.spent),
            **self._joules_so_far(),
            "artifacts": [a.model_dump() for a in self.ctx.artifacts],
        }

    def _joules_so_far(self) -> dict[str, Any]:
        meter = self.ctx.stopwatch.meters.get("energy")
        return {"spent_j": dict(meter.spent), "joules": self.trace.joules} if meter else {}

    def end(self) -> Record:
        """The record of what was run."""
        target = self.task.target(self.spec.profile, self.spec.variant)
        timed_to = self.task.timed_to(self.spec.profile, self.spec.variant)
        outcome = _outcome(self.ctx, self.trace, target, timed_to)
        clock = self.ctx.stopwatch.read()
        draft = self.draft | {"clock": clock, "cost": self._cost(clock, outcome)}
        return _finish(self.spec, draft, self.ctx, self.trace, outcome, self.status, self.detail)

    def _cost(self, clock: Clock, outcome: Train) -> Cost:
        """What the run used up; joules to the target are those of training, as its time is."""
        meter = self.ctx.stopwatch.meters.get("energy")
        at = _crossed(self.trace.rows, outcome.crossing)
        return Cost(
            energy_j=sum(meter.spent.values()) if meter else None,
            energy_method=self.energy_method,
            energy_to_target_j=None if at is None or meter is None else self.trace.joules[at],
            usd=energy.usd(clock.wall_s, self.price_per_hour),
            price_source=energy.price_source(self.price_per_hour),
        )


def execute(
    spec: Spec,
    *,
    store: Store | None = None,
    resume: bool = True,
    log: Path | None = None,
    report: Callable[[str, Any], None] = lambda kind, content: None,
    **options: Any,
) -> Record:
    """Run a spec to its end in this process and return its record, whatever happens.

    The record is also written to ``store``, unless that lives in one process's memory. What
    goes wrong inside the run is a status, not an exception.

    Args:
        spec: what to run.
        store: where records, pictures and snapshots go.
        resume: continue from the run's snapshot when the store holds one.
        log: a file that holds what this process printed since the run began, kept if not empty.
        report: called with ``("started", draft)`` and ``("row", row)`` as the run goes on.
        **options: of the ``Attempt``:

            campaign_id: what the run belongs to.
            attempt: 1 for the first attempt at this spec.
            parent_record_id: the record of the attempt before.
            code: ``provenance.code()`` of the campaign, so that it is the same for all its runs.
            placement: cores and neighbours; one worker with all cores when None.
            figures: whether the task's pictures are made.
            timeout_s: end the run at the first yield after that many seconds.
            save_every_s: the least time between two snapshots.
            price_per_hour: of the machine, in USD; its cost is not recorded when None.
            extra: what to add to the record's ``extra``.

    Raises:
        Interrupted: SIGTERM, or SIGINT in the main thread; what was yielded is saved.
        StoreError: the store cannot be written.
        ValueError: the spec names what the task does not have.
    """
    snapshot = _load_snapshot(store, spec) if resume else None
    made = Attempt(spec, store=store, snapshot=snapshot, **options)
    report("started", made.draft)

    def save() -> None:
        if store is not None and made.ctx.kept:
            with made.ctx.stopwatch.within("checkpoint"):
                store.write(_snapshot_name(spec), checkpoint.pack(made.snapshot()))

    with _stop_signals(made.trace), contextlib.closing(made.rows(save)) as rows:
        for row in rows:
            report("row", row)
    if store is not None and log is not None and (printed := log.read_bytes()):
        made.ctx.artifacts.append(store.put_artifact("log.txt", printed))
    record = made.end()
    if store is not None and store.shared:
        store.put(record)
        store.delete(_snapshot_name(spec))
    return record


def _whole_machine(device: torch.device) -> Placement:
    return Placement(
        scheduler="inline",
        workers=1,
        cpus=provenance.cores(),
        gpus=float(device.type == "cuda"),
        colocated_runs=0,
        contended=False,
    )


@contextlib.contextmanager
def _stop_signals(trace: Trace) -> Iterator[None]:
    """Turn SIGTERM and the first SIGINT into a stop after the next yield."""

    def ask(number: int, frame: Any) -> None:
        if trace.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trace.stop_requested = True

    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        # A worker ignores SIGINT: the terminal sends it to the whole group, and the parent
        # is the one who decides. Handlers can be set in the main thread only.
        with contextlib.suppress(ValueError):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(error: Exception) -> tuple[str, str]:
    """The status and the one-line story of what ended a run."""
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, NotFinite):
        return "nan", str(error)
    if isinstance(
        error, data.DataMissing | data.DataCorrupt | ConnectionError | ModuleNotFoundError
    ):
        return "infra_error", str(error)
    if _lacks_memory(error):
        return "oom", text
    where = traceback.extract_tb(error.__traceback__)[-1]
    return "crashed", f"{text} ({Path(where.filename).name}:{where.lineno})"


def says_memory_is_full(text: str) -> bool:
    """Whether an error's text is that of too little memory, as each library words it."""
    words = ("OutOfMemoryError", "out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
    return any(w in text for w in words)


def _lacks_memory(error: BaseException | None) -> bool:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or says_memory_is_full(text):
        return True
    # Leaving a capture that ran out of memory raises again, and says nothing of memory.
    return error is not None and "capture" in text and _lacks_memory(error.__context__)


def _snapshot_name(spec: Spec) -> str:
    return f"checkpoints/{spec.run_id[:32]}.pt"


def _load_snapshot(store: Store | None, spec: Spec) -> dict[str, Any] | None:
    content = store.read(_snapshot_name(spec)) if store else None
    return checkpoint.unpack(content) if content else None


def _envelope(
    spec: Spec, t: task.Task, cfg: Any, code: Any, placement: Placement
) -> dict[str, Any]:
    """What is known of a run before it starts, as a record's fields."""
    resolved = dataclasses.asdict(cfg)
    info = TaskInfo(
        id=spec.task,
        version=spec.version,
        spec_sha256=spec.run_id,
        profile=spec.profile,
        chapter=int(spec.task[2:4]),
        section="; ".join(t.sections),
        target=_target_info(t.target(spec.profile, spec.variant)),
        timed_to=_target_info(t.timed_to(spec.profile, spec.variant)),
    )
    on_cpu = spec.device == "cpu"
    exact = spec.variant not in t.nondeterministic and not t.needs_of(spec.profile, cfg).actors
    return {
        "kind": "train",
        "run_id": spec.run_id,
        "task": info,
        "config": ConfigInfo(resolved=resolved, sha256=digest(resolved)),
        "variant": spec.variant,
        "impl": spec.impl,
        "seed": spec.seed,
        "determinism": ("bitwise" if on_cpu else "seeded") if exact else "none",
        "code": code or provenance.code(),
        "env": provenance.env(),
        "nodes": [provenance.node()],
        "placement": placement,
        "kernels": KernelsInfo(requested=spec.impl),
        "cost": Cost(energy_method=f"not measured on {spec.device}"),
        "extra": {
            "title": task.summary(spec.task)["title"],
            "default_variant": next(iter(t.variants)),
            "headline": spec.task in task.headlines(),
            # A verdict is a function of records alone, so what is claimed travels with them.
            "claims": [dataclasses.asdict(c) for c in t.claims],
            "overrides": dict(spec.overrides),
            "stop_at_target": spec.stop_at_target,
        },
    }


def _kernel_counts(*, reset: bool = False) -> dict[str, dict[str, int]]:
    """Which implementation of which op ran how often, as the ops have counted it.

    They are found by name, and only where a task has loaded them: the engine knows no kernels.
    """
    dispatch = sys.modules.get("kernels.dispatch")
    if dispatch is None:
        return {}
    if reset:
        dispatch.reset_counts()
    return dispatch.counts()  # type: ignore[no-any-return]


def _target_info(target: task.Target | None) -> TargetInfo | None:
    if target is None:
        return None
    return TargetInfo(
        metric=target.metric,
        op=target.mode,  # type: ignore[arg-type]
        value=target.value,
        tolerance=target.tolerance,
        source=target.source,
    )


def _finish(
    spec: Spec,
    draft: dict[str, Any],
    ctx: Context,
    trace: Trace,
    outcome: Train,
    status: str,
    detail: str,
) -> Record:
    """The record of a run that ended by itself."""
    if status == "ok" and not trace.rows:
        status, detail = "crashed", "the task yielded nothing"
    if status == "ok" and outcome.reached is False:
        status = "target_missed"
    node = draft["nodes"][0].model_copy(update={"load1_end": provenance.load1()})
    synthetic = DataInfo(
        name=str(draft["config"].resolved.get("data", spec.task)),
        kind="synthetic",
        sha256=None,
        n_items=None,
        splits={},
        licence="generated by the task",
    )
    return seal(
        **draft
        | {
            "status": status,
            "status_detail": detail,
            "ended_utc": utc(),
            "nodes": [node],
            "data": list(ctx.used.values()) or [synthetic],
            "artifacts": ctx.artifacts,
            "kernels": KernelsInfo(requested=spec.impl, dispatched=_kernel_counts()),
            "train": outcome,
        }
    )


def _outcome(
    ctx: Context, trace: Trace, target: task.Target | None, timed_to: task.Target | None
) -> Train:
    rows = trace.rows
    names = list(dict.fromkeys(k for r in rows for k in r))
    columns = {n: [_finite(r.get(n)) for r in rows] for n in names}
    final = {}
    for name in names:
        values = [v for v in columns[name] if v is not None]
        if values and name != "train_s":
            final[name] = Final(value=values[-1], n=len(values))
    cross = crossing(rows, timed_to) if timed_to else None
    metric = target.metric if target else ""
    reached = metric in final and target.reached({metric: final[metric].value}) if target else None
    values = [v for v in columns.get(metric, []) if v is not None]
    at = _crossed(rows, cross)
    params_sha256, n_params = checkpoint.digest(ctx.kept)
    return Train(
        reached=reached,
        censored=timed_to is not None and cross is None,
        steps=int(final["step"].value) if "step" in final else len(rows),
        samples=int(final["samples"].value) if "samples" in final else None,
        train_to_target_s=None if at is None else rows[at]["train_s"],
        crossing=cross,
        final=final,
        best=(min if target and target.mode == "min" else max)(values) if values else None,
        curve=columns,
        step_time_s=_step_time(rows),
        params_sha256=params_sha256,
        n_params=n_params,
        peak_mem_bytes=_peak_memory(ctx.device),
    )


def _crossed(rows: list[dict[str, float]], cross: Crossing | None) -> int | None:
    """The number of the row at which the target was crossed."""
    steps = (int(r.get("step", 1)) for r in rows)
    return next((i for i, step in enumerate(steps) if cross and step == cross.hi_step), None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _step_time(rows: list[dict[str, float]]) -> StepTime | None:
    """Seconds per step between consecutive rows."""
    marks = [(0.0, 0.0), *((r["step"], r["train_s"]) for r in rows if "step" in r)]
    times = [(t2 - t1) / (s2 - s1) for (s1, t1), (s2, t2) in itertools.pairwise(marks) if s2 > s1]
    if not times:
        return None
    cuts = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    return StepTime(median=statistics.median(times), p10=cuts[0], p90=cuts[-1], n=len(times))


def _reset_peak_memory() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    # A worker runs many specs; the kernel's high-water mark would otherwise keep the largest.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> dict[str, int | None]:
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    try:
        status = Path("/proc/self/status").read_text()
        kib = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return {"cpu": None, "gpu": gpu}
    return {"cpu": kib * 1024, "gpu": gpu}
