"""The session's end of one process that holds benchmarks open."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from suite.gate.trees import Tree

PROBE = "suite_gate_probe"
# Of the project's own options only those in its ini file's other keys count: plugins that trace,
# shuffle or distribute tests would be measured too.
PYTEST = (
    "-m", "pytest", "-q", "-o", "addopts=", "--benchmark-disable",
    "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-p", "no:randomly",
    "-p", PROBE,
)  # fmt: skip
POLL_S = 0.2
LAST_LINES = 15


class SideDied(Exception):
    """A process ended, or gave no answer in time; the message ends as its output does."""


class Side:
    """A live process of one work tree.

    Args:
        tree: what it runs.
        other: the other side's folder; no module may come from there.
        select: paths and options for pytest.
        folder: for its socket and log; its own.
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
        self._key = secrets.token_bytes(32)
        # The path of a socket has at most 107 bytes; the name is short, and so must the folder be.
        self._listener = Listener(str(folder / "s"), authkey=self._key)
        environment = self._environment(tree, other, folder)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(tree.python), *PYTEST, *select],
                cwd=tree.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._link: Connection | None = None

    def _environment(self, tree: Tree, other: Path | None, folder: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        paths = [str(folder), *tree.roots, *filter(None, [kept.get("PYTHONPATH")])]
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SUITE_GATE_ADDRESS": str(folder / "s"),
            "SUITE_GATE_KEY": self._key.hex(),
            "SUITE_GATE_OTHER": str(other or ""),
        }

    def connect(self) -> None:
        """Wait until the process has come up. Raises SideDied where it does not."""
        # What cannot be waited for with a limit is waited for by whoever ends the process: the
        # listener's own socket has a timeout.
        socket = self._listener._listener._socket  # type: ignore[attr-defined]
        socket.settimeout(POLL_S)
        until = time.monotonic() + self.timeout_s
        while self._link is None:
            with contextlib.suppress(TimeoutError):
                self._link = self._listener.accept()
            if self._link is None:
                self._check(until)

    def ask(self, *request: Any) -> tuple[Any, ...]:
        """Send a request and return the answer."""
        self.tell(*request)
        return self.hear()

    def tell(self, *request: Any) -> None:
        """Send a request."""
        assert self._link is not None
        try:
            self._link.send(request)
        except OSError as error:
            raise SideDied(self._last_words()) from error

    def hear(self) -> tuple[Any, ...]:
        """The next message. Raises SideDied where none comes."""
        assert self._link is not None
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
        if self._link is not None:
            self._link.close()
        self._listener.close()
