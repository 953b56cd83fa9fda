"""Inside a process of one work tree: hold each pytest-benchmark test open and time it on demand.

A pytest plugin. It is loaded into the environment of the project that is measured, which need not
have this suite, so it imports nothing but the standard library and pytest.

``benchmark(f)`` does not return until the session that started this process has all the timings
that it wants; another process, of another revision, is timed in between.
"""

import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

WARM_S = 0.1
# The first call may take a hundred times as long as the next, and the machine may be busy: a few
# more are made, where they take no longer than this.
FEW, PATIENCE_S = 4, 2.0
# Seconds of wall, of this process's threads, and of the GPU where it was used.
Times = tuple[float, float, float | None]
# The same, and seconds for which it was ready to run and had no processor.
Warm = tuple[float, float, float | None, float]
# The end of an error that is passed on; the whole is in the process's log.
MOST_LINES = 12


def pytest_configure(config: Any) -> None:
    """Report to the session that started this process."""
    link = Connection(int(os.environ["SUITE_GATE_LINK"]))
    config.pluginmanager.register(Probe(link), "suite-gate-probe")


class Probe:
    """Answers for this process."""

    def __init__(self, link: Connection) -> None:
        from pytest_benchmark.fixture import BenchmarkFixture

        self.link = link
        self.cores = _cores()
        self.failed = self.skipped = ""
        probe = self

        def call(fixture: Any, function_to_benchmark: Any, *args: Any, **kwargs: Any) -> Any:
            return probe.hold(Timed(lambda: (args, kwargs), function_to_benchmark), None)

        def pedantic(
            fixture: Any,
            target: Any,
            args: Any = (),
            kwargs: Any = None,
            setup: Any = None,
            teardown: Any = None,
            rounds: int = 1,
            warmup_rounds: int = 0,
            iterations: int = 1,
        ) -> Any:
            def arguments() -> Any:
                made = setup() if setup else None
                return (args, kwargs or {}) if made is None else made

            separate = bool(setup or teardown)
            return probe.hold(Timed(arguments, target, teardown, separate), rounds * iterations)

        for name, made in (("__call__", call), ("pedantic", pedantic)):
            setattr(BenchmarkFixture, name, made)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Say which benchmarks there are; keep those that are wanted, in the order wanted."""
        found = {i.nodeid: i for i in items if "benchmark" in getattr(i, "fixturenames", ())}
        self.link.send(("collected", list(found)))
        _, wanted = self.link.recv()
        items[:] = [found[name] for name in wanted]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        """Say how each benchmark ended."""
        self.failed = self.skipped = ""
        yield
        self.link.send(("left", self.failed, self.skipped, _strangers()))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the first error of a benchmark, or why it was skipped."""
        if report.failed and not self.failed:
            self.failed = "\n".join(report.longreprtext.splitlines()[-MOST_LINES:]) or "failed"
        elif report.skipped:
            self.skipped = str(report.longrepr[-1] if report.longrepr else "skipped")

    def hold(self, timed: "Timed", most: int | None) -> Any:
        """Serve requests until the session has enough; then give the test its result."""
        self.link.send(("ready", most))
        while True:
            request = self.link.recv()
            if request[0] == "leave":
                _keep_to(self.cores)
                # A test that was never timed here still needs what its function returns.
                if not timed.called:
                    timed.block(1, 0)
                return timed.result
            if request[0] == "warm":
                self.link.send(("warm", timed.warm(most)))
            else:
                _, calls, blocks, extra, core = request
                _keep_to(self.cores if core is None else {core})
                self.link.send(("times", [timed.block(calls, extra) for _ in range(blocks)]))


class Timed:
    """A callable and how it is called.

    Args:
        arguments: gives positional and keyword arguments.
        function: what is timed.
        teardown: called after each call, untimed; or None.
        separate: whether each call has its own arguments, which are not timed.
    """

    def __init__(
        self,
        arguments: Callable[[], Any],
        function: Callable[..., Any],
        teardown: Callable[..., Any] | None = None,
        separate: bool = False,
    ) -> None:
        self.arguments, self.function, self.teardown = arguments, function, teardown
        self.separate = separate
        self.called = False
        self.result: Any = None

    def warm(self, most: int | None) -> Warm:
        """Call it for a while, as often as it may be called; the times of the fastest call."""
        least, began = self._watched(), time.perf_counter()
        for made in range(1, min(most or 1_000, 1_000)):
            if made > 1 and time.perf_counter() - began > (PATIENCE_S if made < FEW else WARM_S):
                break
            least = min(least, self._watched())
        return least

    def _watched(self) -> Warm:
        before = delayed_s()
        times = self.block(1, 0)
        return *times, delayed_s() - before

    def block(self, calls: int, extra: int) -> Times:
        """Seconds of wall, processor and GPU for ``calls`` calls, one call's share of each.

        ``extra`` calls more are made and not counted: a slowdown made on purpose.
        """
        events = _events()
        parts = [1] * (calls + extra) if self.separate else [calls + extra]
        wall_s = cpu_s = gpu_s = 0.0
        for part in parts:
            args, kwargs = self.arguments()
            wall, cpu, gpu = self._timed(part, args, kwargs, events)
            wall_s, cpu_s, gpu_s = wall_s + wall, cpu_s + cpu, gpu_s + gpu
            if self.teardown:
                self.teardown(*args, **kwargs)
        return wall_s / calls, cpu_s / calls, gpu_s / calls if events else None

    def _timed(
        self, calls: int, args: Any, kwargs: Any, events: list[Any] | None
    ) -> tuple[float, float, float]:
        function, result, gpu_s = self.function, None, 0.0
        if events:
            events[0].record()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(calls):
            result = function(*args, **kwargs)
        if events:
            events[1].record()
            events[1].synchronize()
            gpu_s = events[0].elapsed_time(events[1]) / 1e3
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        self.called, self.result = True, result
        return wall_s, cpu_s, gpu_s


def _cores() -> set[int]:
    """The cores that this thread may use; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _keep_to(cores: set[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def delayed_s() -> float:
    """Seconds so far for which this thread was ready to run and had no processor.

    Linux tells; elsewhere 0, and a thread that others kept from computing looks as if it waited.
    """
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _events() -> list[Any] | None:
    """A pair of CUDA events where this process has used a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return [torch.cuda.Event(enable_timing=True) for _ in range(2)]


def _strangers() -> list[str]:
    """Modules of the other revision, which must not be here."""
    other = os.environ["SUITE_GATE_OTHER"]
    if not other:
        return []
    files = ((n, getattr(m, "__file__", None)) for n, m in list(sys.modules.items()))
    return sorted(n for n, f in files if isinstance(f, str) and f.startswith(other + os.sep))
