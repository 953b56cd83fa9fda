"""The run matrix on this machine: in this process, or on persistent worker processes."""

import contextlib
import dataclasses
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from suite.dispatch import Dispatcher, Lease, Run
from suite.plan import Spec
from suite.record import FINISHED, Placement, Record
from suite.store import Store
from suite.task import find
from suite.worker import GRACE_S, Ended, Job, Strike, Worker, end_all

TIMEOUT_S = {"smoke": 180.0, "laptop": 900.0, "paper": math.inf}

Event = Literal["skipped", "started", "row", "struck", "again", "ended", "notice"]
Listener = Callable[[Event, Spec | None, Any], None]
Backend = Callable[[list[Run], "Campaign", Listener], Iterator[Record]]


def _silent(event: Event, spec: Spec | None, content: Any) -> None:
    return


@dataclasses.dataclass(frozen=True)
class Campaign:
    """What all runs of one command share.

    Attributes:
        store: where results go.
        jobs: runs at the same time; at most the cores this process may use.
        fresh: run finished specs again, and ignore snapshots.
        timeout_s: seconds a run may take; None for the profile's own limit.
        inline: run in this process, one after another.
        backend: what else runs the matrix, such as a cluster.
        attempts: how often a run is begun when the machine, not the run, ends it.
        save_every_s: the least time between two snapshots of a run.
        strike: a fault to inject into each run's first attempt.
        prompt: report each row at once, also from afar, for who measures when it came.
        price_per_hour: of a machine, in USD, for the cost of each run.
        figures: whether pictures are made, of each task's first seed.
        worker: a worker process that has been started ahead, for the first of the runs.
        campaign_id: the name the records carry.
    """

    store: Store
    jobs: int = 1
    fresh: bool = False
    timeout_s: float | None = None
    inline: bool = False
    backend: Backend | None = None
    attempts: int = 1
    save_every_s: float | None = None
    strike: Strike | None = None
    prompt: bool = False
    price_per_hour: float | None = None
    figures: bool = True
    worker: Worker | None = None
    campaign_id: str = dataclasses.field(
        default_factory=lambda: datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + os.urandom(3).hex()
    )

    def run(self, specs: list[Spec], listen: Listener = _silent) -> list[Record]:
        """Run every spec that is not finished yet; return the records, old and new.

        Raises:
            KeyboardInterrupt: after all runs were stopped and their snapshots written.
            OSError: the store cannot be written or the cluster is gone; nothing was started, or
                all was stopped.
            ValueError: a run that starts Ray actors, without a cluster.
        """
        return list(self.each(specs, listen))

    def each(self, specs: list[Spec], listen: Listener = _silent) -> Generator[Record]:
        """Like ``run``, one record after another as they come, so that none has to be held."""
        if self.backend is None:
            _refuse_actors(specs)
        self.store.check_writable()
        todo: list[Run] = []
        first: dict[str, int] = {}
        for spec in specs:
            first[spec.task] = min(spec.seed, first.get(spec.task, spec.seed))
        for spec, finished, run in self._split(specs):
            if finished is not None:
                listen("skipped", spec, finished)
                yield finished
            else:
                run.figures = self.figures and spec.seed == first[spec.task]
                todo.append(run)
        if todo:
            backend = self.backend or (_pooled if self.pooled else _inline)
            yield from backend(todo, self, listen)

    @property
    def pooled(self) -> bool:
        """Whether the runs go to worker processes of this machine."""
        return self.backend is None and not self.inline and self.store.shared

    def limit_s(self, spec: Spec) -> float:
        """The seconds a run may take."""
        return TIMEOUT_S[spec.profile] if self.timeout_s is None else self.timeout_s

    def job(self, run: Run, placement: Placement) -> Job:
        """What a worker needs for the next attempt at a run."""
        from suite import provenance

        options: dict[str, Any] = {
            "campaign_id": self.campaign_id,
            "attempt": run.attempt,
            "parent_record_id": run.parent_record_id,
            "code": provenance.code(),
            "placement": placement,
            # Of a run that the machine ended, this campaign's own snapshot is the one to continue.
            "resume": not self.fresh or run.tries > 1,
            "timeout_s": self.limit_s(run.spec),
            "figures": run.figures,
        }
        if self.save_every_s is not None:
            options["save_every_s"] = self.save_every_s
        if self.price_per_hour is not None:
            options["price_per_hour"] = self.price_per_hour
        return Job(run.spec, options, self.strike if run.tries <= 1 else None)

    def _split(self, specs: list[Spec]) -> Iterator[tuple[Spec, Record | None, Run]]:
        """Each spec with its finished record, or with the attempt that it needs."""
        by_task: dict[str, list[str]] = {}
        for spec in specs:
            by_task.setdefault(spec.task, []).append(spec.run_id)
        attempts: dict[str, list[Record]] = {}
        for name, run_ids in by_task.items():
            attempts |= self.store.attempts(name, run_ids)
        for spec in specs:
            earlier = attempts.get(spec.run_id, [])
            finished = [r for r in earlier if r.status in FINISHED]
            last = earlier[-1] if earlier else None
            run = Run(spec, last.attempt + 1, last.record_id) if last else Run(spec)
            yield spec, finished[-1] if finished and not self.fresh else None, run


def _refuse_actors(specs: list[Spec]) -> None:
    """Raise ValueError for a run that starts Ray actors: without a cluster there are none."""
    for spec in specs:
        field = find(spec.task).actors
        if field and (count := getattr(spec.config(), field)):
            raise ValueError(
                f"{spec}: {field}={count} needs a cluster: add --on ray:2 or --on auto, or set "
                f"{field}=0 to do all in one process"
            )


def _placement(campaign: Campaign, runs: list[Run], *, inline: bool) -> Placement:
    from suite import provenance

    workers = 1 if inline else max(1, min(campaign.jobs, len(runs), provenance.cores()))
    on_gpu = runs[0].spec.device.startswith("cuda")
    return Placement(
        scheduler="inline" if inline else "process",
        workers=workers,
        cpus=max(1, provenance.cores() // workers),
        gpus=1.0 / workers * on_gpu,
        colocated_runs=workers - 1,
        contended=workers > 1,
    )


def _inline(runs: list[Run], campaign: Campaign, listen: Listener) -> Iterator[Record]:
    from suite.run import Interrupted, execute, warm_up

    warm_up()
    placement = _placement(campaign, runs, inline=True)
    for job in (campaign.job(run, placement) for run in runs):
        listen("started", job.spec, None)

        def report(kind: str, content: Any, spec: Spec = job.spec) -> None:
            if kind == "row":
                listen("row", spec, content)

        try:
            record = execute(job.spec, store=campaign.store, report=report, **job.options)
        except Interrupted:
            raise KeyboardInterrupt from None
        campaign.store.put(record)
        listen("ended", job.spec, record)
        yield record


@contextlib.contextmanager
def ahead(campaign: Campaign) -> Iterator[Campaign]:
    """The campaign with its first worker on its way, while the caller still plans the runs.

    Both import PyTorch, which is most of the time of a small command: so they do it at once.
    """
    if not campaign.pooled:
        yield campaign
        return
    with tempfile.TemporaryDirectory(prefix="suite-") as folder, stoppable():
        worker = Worker(campaign.store.uri, Path(folder) / "worker.log")
        try:
            yield dataclasses.replace(campaign, worker=worker)
        finally:
            worker.end()


def _pooled(runs: list[Run], campaign: Campaign, listen: Listener) -> Iterator[Record]:
    placement = _placement(campaign, runs, inline=False)
    with tempfile.TemporaryDirectory(prefix="suite-") as folder, stoppable() as stop:
        pool = _Pool(runs, campaign, placement, Path(folder), listen)
        grace_s = GRACE_S
        try:
            while pool.dispatcher.left:
                stop.check()
                yield from pool.turn()
            grace_s = 0.0
        finally:
            end_all(list(pool.workers.values()), grace_s)


class _Pool:
    """Workers of this machine, and the runs they have."""

    def __init__(
        self,
        runs: list[Run],
        campaign: Campaign,
        placement: Placement,
        folder: Path,
        listen: Listener,
    ) -> None:
        self.campaign, self.placement, self.folder, self.listen = (
            campaign,
            placement,
            folder,
            listen,
        )
        self.dispatcher = Dispatcher(runs, silence_s=math.inf, attempts=campaign.attempts)
        self.needs = runs[0].needs
        self.workers: dict[str, Worker] = {}
        self.leases: dict[str, Lease] = {}
        self._join("0", campaign.worker or self._worker("0"))
        self.opened_s = self.workers["0"].created_s
        self.ready_s: float | None = None

    def _worker(self, name: str) -> Worker:
        return Worker(self.campaign.store.uri, self.folder / f"worker-{name}.log")

    def _join(self, name: str, worker: Worker) -> None:
        self.workers[name] = worker
        self.dispatcher.join(name, self.needs, 0.0)

    def _rest_join(self) -> None:
        """Start the other workers once the first has run for as long as it took to start.

        That is where what they can save begins to outweigh what they cost: they import PyTorch
        for seconds, beside the first, which has by then often done all runs of a small task.
        """
        now = time.perf_counter()
        if self.ready_s is None and self.workers["0"].draft:
            self.ready_s = now
        if self.ready_s is not None and now - self.ready_s >= self.ready_s - self.opened_s:
            for n in range(len(self.workers), min(self.placement.workers, self.dispatcher.left)):
                self._join(str(n), self._worker(str(n)))

    def turn(self) -> Iterator[Record]:
        """Give idle workers runs, wait a little, and take in what the others have sent."""
        self._rest_join()
        for name in self.workers:
            self._give(name)
        wait([w.link for w in self.workers.values() if w.job], timeout=0.5)
        for name, worker in self.workers.items():
            if worker.job is None:
                continue
            spec = worker.job.spec
            for kind, content in worker.messages(self.campaign.limit_s(spec)):
                if kind == "ended":
                    yield from self._settle(name, spec, content)
                else:
                    self.listen(kind, spec, content)  # type: ignore[arg-type]

    def _give(self, name: str) -> None:
        lease = self.dispatcher.lease(name, 0.0)
        if lease is None:
            return
        if not self.workers[name].process.is_alive():
            self.workers[name].end()
            self.workers[name] = self._worker(name)
        self.leases[name] = lease
        self.workers[name].give(self.campaign.job(lease.run, self.placement))

    def _settle(self, name: str, spec: Spec, ended: Ended) -> Iterator[Record]:
        self.campaign.store.put(ended.record)
        lease = self.leases.pop(name)
        verdict = self.dispatcher.settle(lease.number, ended.cause, ended.record.record_id)
        self.listen("again" if verdict == "again" else "ended", spec, ended.record)
        if verdict == "final":
            yield ended.record


class Stop:
    """Whether this process was asked to stop.

    Ctrl-C raises KeyboardInterrupt wherever the program happens to be. Where that is a finalizer,
    Python prints the exception and goes on, so a loop must ask as well.
    """

    asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if the process was asked to stop."""
        if self.asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Have SIGTERM stop the campaign as Ctrl-C does, and remember that either came."""
    stop = Stop()

    def on_signal(number: int, frame: Any) -> None:
        stop.asked = True
        raise KeyboardInterrupt

    # Only the main thread can set handlers; elsewhere the caller handles signals itself.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A process that was started to ignore Ctrl-C goes on ignoring it.
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
