"""The run matrix on this machine: in this process, or on persistent worker processes.

A worker imports torch once and then runs one spec after another. It can be killed at any
moment: a run that crashes, hangs or is killed takes its worker with it, never the campaign, and
becomes a record with its state.
"""

import contextlib
import ctypes
import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from suite.plan import Spec
from suite.record import FINISHED, Clock, Placement, Record, seal
from suite.store import Store, StoreError

GRACE_S = 15.0
TIMEOUT_S = {"smoke": 180.0, "laptop": 900.0, "paper": math.inf}

Event = Literal["skipped", "started", "row", "ended"]
Listener = Callable[[Event, Spec, Any], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """One spec, with what a worker needs to run it."""

    spec: Spec
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Campaign:
    """What all runs of one command share.

    Attributes:
        store: where results go.
        jobs: runs at the same time; at most the cores this process may use.
        fresh: run finished specs again, and ignore snapshots.
        timeout_s: seconds a run may take; None for the profile's own limit.
        inline: run in this process, one after another.
        campaign_id: the name the records carry.
    """

    store: Store
    jobs: int = 1
    fresh: bool = False
    timeout_s: float | None = None
    inline: bool = False
    campaign_id: str = dataclasses.field(
        default_factory=lambda: datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + os.urandom(3).hex()
    )

    def run(
        self, specs: list[Spec], listen: Listener = lambda event, spec, content: None
    ) -> list[Record]:
        """Run every spec that is not finished yet; return the records, old and new.

        Raises:
            KeyboardInterrupt: after all runs were stopped and their snapshots written.
            StoreError: the store cannot be written; nothing was started, or all was stopped.
        """
        self.store.check_writable()
        done, todo = self._split(specs)
        for record, spec in done:
            listen("skipped", spec, record)
        inline = self.inline or not self.store.shared
        placement = self._placement(len(todo), inline)
        jobs = [Job(s, self._options(s, n, parent, placement)) for s, n, parent in todo]
        first = {s.task: min(x.seed for x in specs if x.task == s.task) for s in specs}
        for job in jobs:
            job.options["figures"] = job.spec.seed == first[job.spec.task]
        backend = _inline if inline else _pooled
        made = list(backend(jobs, self, placement, listen)) if jobs else []
        return [record for record, _ in done] + made

    def limit_s(self, spec: Spec) -> float:
        """The seconds a run may take."""
        return TIMEOUT_S[spec.profile] if self.timeout_s is None else self.timeout_s

    def _split(
        self, specs: list[Spec]
    ) -> tuple[list[tuple[Record, Spec]], list[tuple[Spec, int, str | None]]]:
        """Specs that are finished, and the others with attempt number and parent record."""
        by_task: dict[str, list[str]] = {}
        for spec in specs:
            by_task.setdefault(spec.task, []).append(spec.run_id)
        attempts: dict[str, list[Record]] = {}
        for name, run_ids in by_task.items():
            attempts |= self.store.attempts(name, run_ids)
        done, todo = [], []
        for spec in specs:
            earlier = attempts.get(spec.run_id, [])
            finished = [r for r in earlier if r.status in FINISHED]
            if finished and not self.fresh:
                done.append((finished[-1], spec))
            else:
                last = earlier[-1] if earlier else None
                parent = last.record_id if last else None
                todo.append((spec, last.attempt + 1 if last else 1, parent))
        return done, todo

    def _placement(self, runs: int, inline: bool) -> Placement:
        from suite import provenance

        workers = 1 if inline else max(1, min(self.jobs, runs, provenance.cores()))
        return Placement(
            scheduler="inline" if inline else "process",
            workers=workers,
            cpus=max(1, provenance.cores() // workers),
            gpus=0.0,
            colocated_runs=workers - 1,
            contended=workers > 1,
        )

    def _options(
        self, spec: Spec, attempt: int, parent: str | None, placement: Placement
    ) -> dict[str, Any]:
        from suite import provenance

        on_gpu = spec.device.startswith("cuda")
        return {
            "campaign_id": self.campaign_id,
            "attempt": attempt,
            "parent_record_id": parent,
            "code": provenance.code(),
            "placement": placement.model_copy(update={"gpus": 1.0 / placement.workers * on_gpu}),
            "resume": not self.fresh,
            "timeout_s": self.limit_s(spec),
        }


def _inline(
    jobs: list[Job], campaign: Campaign, placement: Placement, listen: Listener
) -> Iterator[Record]:
    from suite.run import Interrupted, execute, warm_up

    warm_up()
    for job in jobs:
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


class _Worker:
    """A process that runs specs, seen from the parent."""

    def __init__(self, store: Store, folder: Path, number: int) -> None:
        self.log = folder / f"worker-{number}.log"
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, store.uri, self.log, os.getpid()), daemon=False
        )
        with _no_main_module():
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.draft: dict[str, Any] = {}
        self.began = 0.0

    def give(self, job: Job) -> None:
        self.job, self.draft, self.began = job, {}, time.perf_counter()
        self.link.send(job)

    def overdue(self, limit_s: float) -> bool:
        return self.job is not None and time.perf_counter() - self.began > limit_s + GRACE_S

    def end(self, grace_s: float = 0.0) -> int | None:
        """End the process, with SIGTERM first when there is grace; return its exit code."""
        if grace_s and self.process.is_alive():
            self.process.terminate()
            self.process.join(grace_s)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.link.close()
        return self.process.exitcode

    def epitaph(self, status: str, detail: str) -> Record:
        """The record of a run whose process is gone."""
        assert self.job is not None
        wall = time.perf_counter() - self.began
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        clock = Clock(wall_s=wall, setup_s=0, train_s=wall, eval_s=0, checkpoint_s=0, recovery_s=0)
        detail = f"{detail}; last output: {last[:300]}" if last else detail
        return seal(
            **self.draft
            | {
                "status": status,
                "status_detail": detail,
                "ended_utc": now,
                "data": [],
                "clock": clock,
            }
        )


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep a spawned worker from importing the parent's script again: it needs none of it."""
    main = sys.modules["__main__"]
    saved = {k: main.__dict__.pop(k) for k in ("__file__",) if k in main.__dict__}
    spec, main.__spec__ = main.__spec__, None
    try:
        yield
    finally:
        main.__dict__.update(saved)
        main.__spec__ = spec


def _pooled(
    jobs: list[Job], campaign: Campaign, placement: Placement, listen: Listener
) -> Iterator[Record]:
    waiting = list(reversed(jobs))
    with tempfile.TemporaryDirectory(prefix="suite-") as folder, _terminates():
        workers = {n: _Worker(campaign.store, Path(folder), n) for n in range(placement.workers)}
        grace_s = GRACE_S
        try:
            for worker in workers.values():
                worker.give(waiting.pop())
            while any(w.job for w in workers.values()):
                wait([w.link for w in workers.values() if w.job], timeout=0.5)
                for number, worker in list(workers.items()):
                    record = _attend(worker, campaign, listen)
                    if record is not None:
                        campaign.store.put(record)
                        listen("ended", _spec(worker), record)
                        worker.job = None
                        yield record
                    if not worker.process.is_alive() and waiting:
                        worker.end()
                        workers[number] = worker = _Worker(campaign.store, Path(folder), number)
                    if worker.job is None and waiting:
                        worker.give(waiting.pop())
            grace_s = 0.0
        finally:
            _end_all(list(workers.values()), grace_s)


def _end_all(workers: list[_Worker], grace_s: float) -> None:
    """Stop all workers at once, so that the grace is given once and not to each in turn."""
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.perf_counter() + grace_s
    for worker in workers:
        worker.process.join(max(0.0, until - time.perf_counter()))
        worker.end()


def _spec(worker: _Worker) -> Spec:
    assert worker.job is not None
    return worker.job.spec


def _attend(worker: _Worker, campaign: Campaign, listen: Listener) -> Record | None:
    """Handle what a worker has sent; return the record if its run ended, one way or another."""
    if worker.job is None:
        return None
    spec = worker.job.spec
    try:
        while worker.link.poll():
            kind, content = worker.link.recv()
            if kind == "record":
                return content  # type: ignore[no-any-return]
            if kind == "error":
                raise content
            if kind == "started":
                worker.draft = content
                listen("started", spec, None)
            elif kind == "row":
                listen("row", spec, content)
    except (EOFError, ConnectionResetError):
        # The pipe closes a moment before the process is gone with its own exit code.
        worker.process.join(GRACE_S)
        code = worker.end()
        if not worker.draft:
            raise StoreError(f"a worker process died before it could start: exit {code}") from None
        return worker.epitaph(*_cause(code))
    if worker.overdue(campaign.limit_s(spec)) and worker.draft:
        worker.end()
        return worker.epitaph("timeout", f"no yield within {campaign.limit_s(spec):g} s; killed")
    return None


def _cause(code: int | None) -> tuple[str, str]:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        crashed = -code in (
            signal.SIGSEGV,
            signal.SIGABRT,
            signal.SIGBUS,
            signal.SIGFPE,
            signal.SIGILL,
        )
        return ("crashed" if crashed else "killed"), f"the worker process died of {name}"
    return "crashed", f"the worker process exited with code {code}"


@contextlib.contextmanager
def _terminates() -> Iterator[None]:
    """Have SIGTERM stop the campaign as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # Only the main thread can set handlers; elsewhere the caller handles signals itself.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(link: Connection, uri: str, log: Path, parent: int) -> None:
    """The worker's life: import once, then run what comes through the link."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    out = os.open(log, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    from suite.run import Interrupted, execute, warm_up

    warm_up()
    store = Store(uri)
    with contextlib.suppress(EOFError):
        while True:
            job = link.recv()
            os.ftruncate(out, 0)
            try:
                record = execute(
                    job.spec,
                    store=store,
                    log=log,
                    report=lambda kind, content: link.send((kind, content)),
                    **job.options,
                )
            except Interrupted:
                return
            except (StoreError, ValueError) as error:
                link.send(("error", error))
            else:
                link.send(("record", record))


def _die_with(parent: int) -> None:
    """Have the kernel kill this worker when its parent dies, so that none is ever orphaned."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
