"""Kernels compiled ahead of being timed, by many processes; Triton and PyTorch keep them on disk.

One process would compile kernel by kernel, and the GPU would wait for most of the time.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from suite.gpu.stage import Run, workers

LATE = "it was not compiled in time"
# What a job is said to have done that takes its process, or the GPU from it.
LOST, DIED = DEADLY = ("it took the GPU from its process", "its process died")


class Compile(Protocol):
    """Calls a function for each of some jobs in other processes."""

    def __call__(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
        seconds: float,
        each: float = math.inf,
    ) -> list[str]:
        """Do some jobs; what is not done in time is stopped.

        Args:
            function: what to call; a module's own, for other processes have to find it.
            jobs: its arguments.
            seconds: for all jobs together.
            each: for each of them, from its beginning.

        Returns:
            For each job why it came to nothing; empty where it ended well.
        """


@contextlib.contextmanager
def processes(this: Run, most: int) -> Iterator[Compile]:
    """Processes that compile: one for each core that is left, and no more than there are jobs.

    Args:
        this: says how it went.
        most: how many jobs will come at a time; with one there is nothing to gain.
    """
    if most < 2:
        yield lambda function, jobs, seconds, each=math.inf: [""] * len(jobs)
        return
    with contextlib.closing(_Processes(this, min(workers(), most))) as found:
        yield found.compile_all


class _Processes:
    """Processes that are started when there is a job for them."""

    def __init__(self, this: Run, count: int) -> None:
        self.this, self.count = this, count
        self.idle: list[_Process] = []
        self.busy: list[_Process] = []

    def compile_all(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
        seconds: float,
        each: float = math.inf,
    ) -> list[str]:
        begin, ended = self.this.now(), [LATE] * len(jobs)
        todo = [*enumerate(jobs)][::-1] if seconds > 0 else []
        while todo or self.busy:
            while todo and len(self.busy) < self.count:
                process = self.idle.pop() if self.idle else _Process()
                self.busy.append(process)
                process.begin(function, *todo.pop())
            limit = min([begin + seconds, *(p.began + each for p in self.busy)])
            timeout = max(0.0, limit - self.this.now()) if limit < math.inf else None
            heard = wait([p.pipe for p in self.busy], timeout)
            now = self.this.now()
            for process in [*self.busy]:
                if process.pipe in heard:
                    self._listen(process, now, ended)
                elif now >= min(begin + seconds, process.began + each):
                    # It must not take the time of what is measured next.
                    self.busy.remove(process)
                    process.kill()
            if now >= begin + seconds:
                todo.clear()
        if len(jobs) > 1:
            self._say(ended, self.this.now() - begin)
        return ended

    def _listen(self, process: "_Process", now: float, ended: list[str]) -> None:
        try:
            said = process.pipe.recv()
        except (EOFError, OSError):
            said = DIED, True
        if said is None:
            process.began = now
            return
        ended[process.job], lost = said
        self.busy.remove(process)
        if lost:
            process.kill()
        else:
            self.idle.append(process)

    def _say(self, ended: Sequence[str], took: float) -> None:
        done = [why for why in ended if why != LATE]
        self.this.say(f"  {len(done)} of {len(ended)} were compiled ahead in {took:.0f} s")
        if failed := [why for why in done if why]:
            self.this.say(f"  {len(failed)} of them ended in an error")

    def close(self) -> None:
        for process in (*self.idle, *self.busy):
            process.kill()


class _Process:
    """A process that does one job after another.

    Attributes:
        pipe: says None when a job has begun; then why it came to nothing, and whether the process
            can do no other.
        job: which one it has.
        began: when that was; infinity before it was.
    """

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.job, self.began = -1, math.inf

    def begin(self, function: Callable[..., Any], index: int, job: tuple[Any, ...]) -> None:
        self.job, self.began = index, math.inf
        # A process that has died is heard of when it is listened to.
        with contextlib.suppress(OSError):
            self.pipe.send((function, job))

    def kill(self) -> None:
        """End it, and the compilers that it has started."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, parent: int) -> None:
    """Do jobs until nobody asks for more."""
    from suite.worker import die_with

    die_with(parent)
    os.setsid()
    # There is a process for each core already.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with contextlib.suppress(EOFError, OSError):
        lost = False
        while not lost:
            function, job = pipe.recv()
            pipe.send(None)
            why = ""
            try:
                function(*job)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            lost = _lost()
            pipe.send((f"{LOST} {why}".strip() if lost else why, lost))


def _lost() -> bool:
    """Whether this process can compute nothing more on the GPU; else its memory is given back."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    from kernels.bench.measure import usable

    if not usable("cuda"):
        return True
    torch.cuda.empty_cache()
    return False
