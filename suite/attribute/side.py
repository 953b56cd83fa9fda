"""The session's end of the process of an arm."""

import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from suite.attribute.request import Arm
from suite.worker import settle, spawned

TIMEOUT_S = 1800.0
POLL_S = 0.2
GRACE_S = 2.0
LAST_LINES = 8


class ArmFailed(Exception):
    """An arm cannot go on; the message says why."""


class Side:
    """A live process with the task's run.

    Args:
        arm: what it runs.
        threads: of PyTorch in it.
        log: where it prints to.
        timeout_s: how long it may take over one request.
    """

    def __init__(self, arm: Arm, threads: int, log: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.log, self.timeout_s = log, timeout_s
        self.process, self._link = spawned(_serve, arm, threads, log)

    def ask(self, what: str, *arguments: Any) -> Any:
        """What a method of ``laps.Laps`` returns.

        Raises:
            ArmFailed: it raised, or the process ended or gave no answer in time.
        """
        until = time.monotonic() + self.timeout_s
        try:
            self._link.send((what, arguments))
            while not self._link.poll(POLL_S):
                if time.monotonic() > until:
                    raise ArmFailed(f"no answer within {self.timeout_s:g} s")
            found, content = self._link.recv()
        except (EOFError, OSError) as error:
            raise ArmFailed(self._last_words()) from error
        if not found:
            raise ArmFailed(content)
        return content

    def _last_words(self) -> str:
        self.process.join(5)
        said = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        lines = [f"the process ended with {self.process.exitcode}", *said.splitlines()]
        return "\n".join(lines[:1] + lines[1:][-LAST_LINES:])

    def dismiss(self) -> None:
        """Have the process end when it is done with what it was asked last."""
        self._link.close()

    def end(self) -> None:
        """End the process: by itself if it can, for then it leaves nothing behind."""
        self.dismiss()
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(link: Connection, arm: Arm, threads: int, log: Path, parent: int) -> None:
    """The process's life: begin the run, then do what it is asked to."""
    settle(log, parent)
    # A pool of compilers would compute beside the other arms.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from suite.attribute.laps import Laps
    from suite.run import warm_up

    warm_up()
    laps: Laps | None = None
    while True:
        try:
            what, arguments = link.recv()
        except EOFError:
            return
        try:
            laps = laps or Laps(arm, threads)
            link.send((True, getattr(laps, what)(*arguments)))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            link.send((False, f"{type(error).__name__}: {error}".strip().splitlines()[0]))
