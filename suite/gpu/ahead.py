"""Kernels compiled ahead of being timed, by many processes; Triton and PyTorch keep them on disk.

One process would compile kernel by kernel, and the GPU would wait for most of the time.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from suite.gpu.stage import Run, workers

# Calls a function for each of some jobs in other processes, until some seconds have passed.
Compile = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], float], None]


@contextlib.contextmanager
def processes(this: Run, most: int) -> Iterator[Compile]:
    """Processes that compile: one for each core that is left, and no more than there are jobs.

    Args:
        this: says how it went.
        most: how many jobs will come at a time; with one there is nothing to gain.
    """
    count = min(workers(), most)
    if count < 2:
        yield lambda function, jobs, seconds: None
        return
    with multiprocessing.get_context("spawn").Pool(count) as pool:

        def compile_all(
            function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], seconds: float
        ) -> None:
            if seconds <= 0 or not jobs:
                return
            begin = this.now()
            results = [pool.apply_async(function, job) for job in jobs]
            for result in results:
                result.wait(max(0.0, begin + seconds - this.now()))
            done = sum(result.ready() for result in results)
            failed = [r for r in results if r.ready() and not r.successful()]
            took = this.now() - begin
            this.say(f"  {done} of {len(jobs)} were compiled ahead in {took:.0f} s")
            if failed:
                this.say(f"  {len(failed)} of them ended in an error")

        yield compile_all
