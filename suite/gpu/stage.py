"""Stages: each does what the store lacks until its share of the time is spent."""

import contextlib
import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suite.codes import INFRASTRUCTURE

if TYPE_CHECKING:
    from suite.bench import Session
    from suite.record import Record
    from suite.store import Store

# What still runs so long after the budget hangs: no call of the benchmarks takes a second.
GRACE_S = 60.0
# A test, a session of benchmarks or a smoke run that takes longer does not end: the longest session
# took eleven seconds on a GPU, and 49 with what it compiles.
HANGS_S = 2 * GRACE_S


def _say(line: str) -> None:
    # At once: a process that is ended by force takes with it what it has not written.
    print(line, flush=True)


@dataclass
class Run:
    """One call of the command.

    Attributes:
        store: where records go, and where the state is.
        deadline: when to stop, on ``now``'s clock.
        now: seconds on a clock that never goes back.
        say: prints a line.
        device: where kernels and tasks run.
        tasks: the ids of those that are run.
        records: what was measured.
        named: whether the stages were asked for by name.
        busy: what is under way: named, should it hang.
        at_exit: what else ends what this process has started, should it be stopped.
        end: ends this process, which hangs.
    """

    store: "Store"
    deadline: float
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = _say
    device: str = "cuda"
    tasks: Sequence[str] = ()
    records: "list[Record]" = field(default_factory=list)
    named: bool = False
    busy: "Session | None" = None
    at_exit: list[Callable[[], None]] = field(default_factory=list)
    end: Callable[[], None] = lambda: None

    def until(self, deadline: float) -> Callable[[], bool]:
        """Whether the time of a stage is over."""
        return lambda: self.seconds(deadline) <= 0

    def seconds(self, deadline: float) -> float:
        """What is left of the time of a stage; below 0 when it is over."""
        return min(deadline, self.deadline) - self.now()

    @contextlib.contextmanager
    def ended_after(self, seconds: float) -> Iterator[None]:
        """End the process if what is within takes longer: a kernel that hangs cannot be stopped."""
        timer = threading.Timer(seconds, self.end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass(frozen=True)
class Stage:
    """One part of the work.

    Attributes:
        name: what ``--only`` takes.
        about: one line on what it does.
        share: of the time, beside the other stages' shares.
        run: does what is left until a deadline; returns how much is left after it.
    """

    name: str
    about: str
    share: float
    run: Callable[[Run, float], int]


def run(
    store: "Store",
    stages: Sequence[Stage],
    minutes: float,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = _say,
    tasks: Sequence[str] = (),
    named: bool = False,
) -> tuple["list[Record]", dict[str, int], list[str]]:
    """Run stages in order, each with its share of what is left of the time.

    A stage that fails ends alone, for the next call may be far away.

    Args:
        store: where records go.
        stages: what to do.
        minutes: when to stop.
        now: the clock.
        say: prints a line.
        tasks: the ids of those that are run.
        named: whether these stages were asked for by name.

    Returns:
        The new records, for each stage how much is left, at least 1 where it failed, and which did.

    Raises:
        StoreError: the store cannot be written, so that all later work would be lost.
    """
    from suite.store import StoreError

    begin = now()
    this = Run(store, begin + 60 * minutes, now, say, tasks=tasks, named=named)
    left, failed = dict[str, int](), list[str]()
    with _watched(this, 60 * minutes + GRACE_S):
        for i, stage in enumerate(stages):
            shares = sum(s.share for s in stages[i:])
            mine = (this.deadline - now()) * stage.share / shares
            say(f"{stage.name}: {stage.about} (at most {max(0.0, mine):.0f} s)")
            known = len(this.records)
            try:
                left[stage.name] = stage.run(this, now() + mine)
            except StoreError:
                raise
            except Exception as error:
                traceback.print_exc()
                left[stage.name] = 1
                failed.append(stage.name)
                say(f"{stage.name}: failed, {type(error).__name__}: {error}")
            _free_memory()
            rest = f"{left[stage.name]} left" if left[stage.name] else "done"
            say(f"{stage.name}: {rest}, {len(this.records) - known} new records in {store.uri}")
    return this.records, left, failed


def _free_memory() -> None:
    """Give the GPU's memory that a stage no longer needs to the processes of the next."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        # Not possible after an error that took the GPU from this process.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _watched(this: Run, limit_s: float) -> Iterator[None]:
    """End the process when it hangs, or when something within is said to."""

    def end() -> None:
        try:
            hung = str(this.busy or "what was under way")
            this.say(f"{hung} did not end; the process is stopped, and it is not tried again")
            for finish in this.at_exit:
                finish()
            if this.busy:
                _record_hang(this, this.busy)
        finally:
            os._exit(INFRASTRUCTURE)

    this.end = end
    with this.ended_after(limit_s):
        yield


def _record_hang(this: Run, session: "Session") -> None:
    from kernels.bench.measure import Outcome
    from suite import bench

    def hung(workload: Any, names: Sequence[str], rounds: int) -> list[Outcome]:
        return [
            Outcome(name, "timeout", "one provider of the session did not end") for name in names
        ]

    bench.run([session], this.store, measured=hung, fresh=True)


def workers() -> int:
    """How many processes compute at a time: two cores are left to what starts and times them."""
    from suite import provenance

    return max(1, provenance.cores() - 2)
