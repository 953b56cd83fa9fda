"""The session's end of one process that holds benchmarks open."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from suite.gate.trees import Tree

PROBE = "suite_gate_probe"
# Of the project's own options only those in its ini file's other keys count: plugins that trace,
# shuffle or distribute tests would be measured too. Hypothesis' is only about what it prints, and
# takes a second of each of the many processes.
PYTEST = (
    "-m", "pytest", "-q", "-o", "addopts=", "--benchmark-disable",
    "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-p", "no:randomly",
    "-p", "no:hypothesispytest",
    # It says that the fixture was not used, because here it does not time.
    "-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning",
    "-p", PROBE,
)  # fmt: skip
POLL_S = 0.2
LAST_LINES = 15
# Memory that is freed glibc keeps or gives back, depending on where in the heap it lies; a process
# that gives it back pays for the pages at every call, and may be half as fast. Here all keep it.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


class SideDied(Exception):
    """A process ended, or gave no answer in time; the message ends as its output does."""


class Side:
    """A live process of one work tree.

    Args:
        tree: what it runs.
        other: the other side's folder; no module may come from there.
        select: paths and options for pytest.
        folder: for its log; its own.
        timeout_s: how long it may take over one request.

    Attributes:
        most: how often the benchmark that it holds may be called; None for any number.
    """

    def __init__(
        self, tree: Tree, other: Path | None, select: list[str], folder: Path, timeout_s: float
    ) -> None:
        folder.mkdir()
        shutil.copy(Path(__file__).with_name("probe.py"), folder / f"{PROBE}.py")
        self.log, self.timeout_s = folder / "log", timeout_s
        self.most: int | None = None
        self._link, theirs = Pipe()
        with self.log.open("wb") as log, theirs:
            self.process = subprocess.Popen(
                [str(tree.python), *PYTEST, *select],
                cwd=tree.path,
                env=_environment(tree, other, folder, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask(self, *request: Any) -> tuple[Any, ...]:
        """Send a request and return the answer."""
        self.tell(*request)
        return self.hear()

    def tell(self, *request: Any) -> None:
        """Send a request."""
        try:
            self._link.send(request)
        except OSError as error:
            raise SideDied(self._last_words()) from error

    def hear(self) -> tuple[Any, ...]:
        """The next message. Raises SideDied where none comes."""
        until = time.monotonic() + self.timeout_s
        try:
            while not self._link.poll(POLL_S):
                self._check(until)
            return tuple(self._link.recv())
        except (EOFError, OSError) as error:
            raise SideDied(self._last_words()) from error

    def _check(self, until: float) -> None:
        if self.process.poll() is not None:
            raise SideDied(self._last_words())
        if time.monotonic() > until:
            raise SideDied(f"no answer within {self.timeout_s:g} s\n{self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        lines = self.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        code = self.process.returncode
        how = "goes on" if code is None else f"ended with {code}"
        return "\n".join([f"the process {how}", *lines])

    def end(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._link.close()


def _environment(tree: Tree, other: Path | None, folder: Path, link: int) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    paths = [str(folder), *tree.roots, *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **KEPT_MEMORY,
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SUITE_GATE_LINK": str(link),
        "SUITE_GATE_OTHER": str(other or ""),
    }
