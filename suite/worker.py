"""A process that imports torch once and then runs one spec after another, and can be killed.

A run that crashes, hangs or is killed takes its worker with it, never the campaign, and becomes
a record with its state: the parent writes it when the worker no longer can.
"""

import contextlib
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from suite.dispatch import Cause
from suite.plan import Spec
from suite.record import Clock, Record, seal, utc
from suite.store import Store, StoreError

GRACE_S = 15.0
# How often a thread of a run looks whether the others are done before it sleeps, with GNU's OpenMP,
# which PyTorch has on Linux. Beside one busy process of another session, among which Linux shares
# the cores, a run of two threads can take 270 times as long by the default of 300,000, and with
# this ten times; alone it takes as long. See tests/bench/test_waiting.py.
SPINS = 5_000
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


class WorkerDied(StoreError):
    """A worker process was gone before its run began."""


@dataclasses.dataclass(frozen=True)
class Strike:
    """A fault to inject: of which kind, and after which row of the run, counted from one."""

    kind: str
    row: int


@dataclasses.dataclass(frozen=True)
class Job:
    """One spec, with what a worker needs to run it."""

    spec: Spec
    options: dict[str, Any]
    strike: Strike | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a run: its record, and who ended it."""

    record: Record
    cause: Cause


class Worker:
    """A worker process, seen from its parent.

    Args:
        uri: the store that runs write to.
        log: where the process prints to.
    """

    def __init__(self, uri: str, log: Path) -> None:
        self.log = log
        self.created_s = time.perf_counter()
        self.process, self.link = spawned(_serve, uri, log)
        self.job: Job | None = None
        self.draft: dict[str, Any] = {}
        self.began = 0.0
        self.oom_kills: int | None = None

    def give(self, job: Job) -> None:
        """Have an idle worker begin a run."""
        self.job, self.draft, self.began = job, {}, time.perf_counter()
        self.oom_kills = _oom_kills()
        # A worker that has died since is noticed when its messages are read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.link.send(job)

    def messages(self, limit_s: float) -> Iterator[tuple[str, Any]]:
        """What has happened since the last call, without waiting.

        Args:
            limit_s: seconds after which a run that does not end by itself is killed.

        Yields:
            ``("started", draft)``, ``("row", row)``, ``("struck", kind)``, and when the run
            ended, one way or another, ``("ended", Ended)``.

        Raises:
            WorkerDied: the process died before its run began.
            StoreError: the run cannot write its store.
            ValueError: the spec names what its task does not have.
        """
        if self.job is None:
            return
        try:
            while self.job is not None and self.link.poll():
                yield self._taken(*self.link.recv())
        except (EOFError, ConnectionResetError):
            yield "ended", self._ended(self._dead())
        if self.job is not None and self.draft and self._overdue(limit_s):
            self.end()
            record = self.epitaph("timeout", f"no yield within {limit_s:g} s; killed")
            yield "ended", self._ended(Ended(record, "own"))

    def _taken(self, kind: str, content: Any) -> tuple[str, Any]:
        if kind == "error":
            raise content
        if kind == "record":
            return "ended", self._ended(Ended(content, "own"))
        if kind == "started":
            # A new process imports torch first; that is no part of the run.
            self.draft, self.began = content, time.perf_counter()
        return kind, content

    def _ended(self, ended: Ended) -> Ended:
        self.job = None
        return ended

    def _overdue(self, limit_s: float) -> bool:
        return time.perf_counter() - self.began > limit_s + GRACE_S

    def _dead(self) -> Ended:
        # The pipe closes a moment before the process is gone with its own exit code.
        self.process.join(GRACE_S)
        code = self.end()
        if not self.draft:
            raise WorkerDied(f"a worker process died before it could start: exit {code}") from None
        status, detail, cause = _story(code, starved=_oom_kills() != self.oom_kills)
        return Ended(self.epitaph(status, detail), cause)

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
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        detail = f"{detail}; last output: {last[:300]}" if last else detail
        return epitaph(self.draft, status, detail, time.perf_counter() - self.began)


def epitaph(draft: dict[str, Any], status: str, detail: str, wall_s: float) -> Record:
    """The record of a run that could not write its own, from what it sent when it began."""
    clock = Clock(wall_s=wall_s, setup_s=0, train_s=wall_s, eval_s=0, checkpoint_s=0, recovery_s=0)
    ending = {"status": status, "status_detail": detail, "ended_utc": utc()}
    return seal(**draft | ending | {"data": [], "clock": clock})


def end_all(workers: list[Worker], grace_s: float) -> None:
    """Stop all workers at once, so that the grace is given once and not to each in turn."""
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.perf_counter() + grace_s
    for worker in workers:
        worker.process.join(max(0.0, until - time.perf_counter()))
        worker.end()


def _story(code: int | None, *, starved: bool) -> tuple[str, str, Cause]:
    """The status, its detail and the cause of a worker's death with this exit code."""
    if code is None or code >= 0:
        return "crashed", f"the worker process exited with code {code}", "own"
    detail = f"the worker process died of {signal.Signals(-code).name}"
    if -code in CRASHES:
        return "crashed", detail, "own"
    if -code == signal.SIGKILL and starved:
        return "oom", f"{detail} while the system was out of memory", "oom"
    return "killed", detail, "killed"


def _oom_kills() -> int | None:
    """How many processes this system has killed for memory, where it tells."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(s.split()[1]) for s in lines if s.startswith("oom_kill ")), None)


def spawned(serve: Callable[..., None], *arguments: Any) -> tuple[SpawnProcess, Connection]:
    """A new process that calls ``serve(link, *arguments, parent)``, and our end of the link.

    The first thing to do there is to ``settle``.
    """
    # Read when PyTorch is imported, so it has to be there before the process is.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    context = multiprocessing.get_context("spawn")
    link, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments, os.getpid()), daemon=False)
    with _spawning():
        process.start()
    theirs.close()
    return process, link


@contextlib.contextmanager
def _spawning() -> Iterator[None]:
    """Have a process that is started meanwhile import no script and leave Ctrl-C to its parent.

    It needs nothing of the parent's script. And a terminal sends Ctrl-C to it too, perhaps before
    it can say that it ignores it: so it starts with the signal blocked.
    """
    # Python's tracker of resources starts with the first process, and unblocks the signal.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = sys.modules["__main__"]
    saved = {k: main.__dict__.pop(k) for k in ("__file__",) if k in main.__dict__}
    spec, main.__spec__ = main.__spec__, None
    try:
        yield
    finally:
        main.__dict__.update(saved)
        main.__spec__ = spec
        # Last: a Ctrl-C that came meanwhile is raised here.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(link: Connection, uri: str, log: Path, parent: int) -> None:
    """The worker's life: import once, then run what comes through the link."""
    out = settle(log, parent)
    # What the imports bring stays: to look for garbage among it would take a tenth of this start,
    # and .3 s each time in the middle of a run.
    gc.disable()
    from suite.run import Interrupted, execute, warm_up

    warm_up()
    gc.freeze()
    gc.enable()
    store = Store(uri)
    with contextlib.suppress(EOFError):
        while True:
            job = link.recv()
            os.ftruncate(out, 0)
            try:
                record = execute(
                    job.spec, store=store, log=log, report=_reporter(link, job), **job.options
                )
            except Interrupted:
                return
            except (StoreError, ValueError) as error:
                link.send(("error", error))
            else:
                link.send(("record", record))


def _reporter(link: Connection, job: Job) -> Callable[[str, Any], None]:
    """What a run calls as it goes on; it also carries out a fault that is to strike the run."""
    rows = 0

    def report(kind: str, content: Any) -> None:
        nonlocal rows
        link.send((kind, content))
        rows += kind == "row"
        if kind == "row" and job.strike is not None and rows == job.strike.row:
            link.send(("struck", job.strike.kind))
            if job.strike.kind == "worker_kill":
                os.kill(os.getpid(), signal.SIGKILL)
            # The parent takes down itself or its node, and this process dies with it.
            while True:
                time.sleep(60)

    return report


def settle(log: Path, parent: int) -> int:
    """Leave Ctrl-C to the parent, die with it, and print to ``log``; return its descriptor."""
    # A terminal sends Ctrl-C to the whole group, and the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with(parent)
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    return out


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, so that none is ever orphaned."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
