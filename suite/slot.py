"""A share of a Ray node with a worker process: an actor that runs what the driver gives it."""

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from suite.cluster import SHARE, own_folder, own_node
from suite.dispatch import Cause
from suite.store import Store
from suite.worker import GRACE_S, Job, Worker, WorkerDied, end_all

# A slot that hears nothing for FENCE_S gives its run FENCE_GRACE_S to write a snapshot and kills
# it. The driver gives the run to another only after a silence that is longer than both.
BEAT_S = 1.0
IDLE_S = 0.2
FENCE_S = 20.0
FENCE_GRACE_S = 10.0


@dataclass(frozen=True)
class Report:
    """What a slot has to say of its run since it was last asked.

    Attributes:
        messages: of the worker, as ``Worker.messages`` yields them.
        cause: who ended the run; None while it goes on.
        fenced: the slot had not heard from the driver for so long that it ended its run.
    """

    messages: list[tuple[str, Any]]
    cause: Cause | None = None
    fenced: bool = False


class Slot:
    """A share of a node with a worker process; an actor.

    The driver asks it again and again. When it has not been asked for ``FENCE_S``, the driver is
    gone or cannot reach it and has given the run to another slot, so it ends the run here.
    """

    def __init__(self, uri: str, cpus: int, probe: str, versions: dict[str, str]) -> None:
        # Ray and its launcher export a number of their own, which other libraries would obey.
        os.environ["OMP_NUM_THREADS"] = str(cpus)
        self.problem = problem_of(uri, probe, versions)
        self.uri, self.folder = uri, own_folder("slot")
        os.environ.update(_share_here())
        self.worker = self._start()
        self.heard_s, self.fenced = time.monotonic(), False
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self) -> Worker:
        return Worker(self.uri, self.folder / "worker.log")

    def hello(self) -> tuple[str, str]:
        """The id of the node, and what is wrong with it; empty when nothing is."""
        self.heard_s = time.monotonic()
        return own_node(), self.problem

    def exchange(self, job: Job | None, limit_s: float, prompt: bool = False) -> Report:
        """Begin a run if one is given, and report after a beat, or at once when it ends.

        With ``prompt``, report as soon as there is something to report.
        """
        self.heard_s = time.monotonic()
        if self.fenced:
            return Report([], fenced=True)
        if job is not None:
            if not self.worker.process.is_alive():
                self.worker.end()
                self.worker = self._start()
            self.worker.give(job)
        messages: list[tuple[str, Any]] = []
        until = time.monotonic() + BEAT_S
        while (left_s := until - time.monotonic()) > 0:
            if self.worker.job is None:
                time.sleep(min(left_s, IDLE_S))
                break
            wait([self.worker.link], timeout=left_s)
            try:
                for kind, content in self.worker.messages(limit_s):
                    if kind == "ended":
                        messages.append((kind, content.record))
                        return Report(messages, content.cause)
                    messages.append((kind, content))
                    if prompt or kind == "struck":
                        until = 0.0
            except WorkerDied:
                self.worker = self._start()
                return Report(messages, "killed")
        return Report(messages, fenced=self.fenced)

    def stop(self) -> None:
        """End the run, its snapshot written when it yields within the grace."""
        self.heard_s = time.monotonic()
        end_all([self.worker], GRACE_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def take_down_node(self) -> None:
        """Kill the node as a power failure would: its Ray daemon and this process."""
        os.kill(int(os.environ["RAY_RAYLET_PID"]), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def _watch(self) -> None:
        while time.monotonic() - self.heard_s < FENCE_S:
            time.sleep(1.0)
        self.fenced = True
        end_all([self.worker], FENCE_GRACE_S)


def problem_of(uri: str, probe: str, versions: dict[str, str]) -> str:
    """Why runs cannot be done on this node; empty when they can."""
    from suite import task

    try:
        store = Store(uri)
        if store.read(probe) is None:
            return f"store {uri} is another one there: it lacks what this process wrote into it"
        store.check_writable()
    except (OSError, ValueError) as error:
        return f"store {uri}: {error}"
    for name, version in versions.items():
        try:
            found = task.version(name)
        except (OSError, ValueError) as error:
            return f"task {name}: {error}"
        if found != version:
            return f"task {name} has other code there; bring all nodes to this checkout"
    return ""


def _share_here() -> dict[str, str]:
    """What a worker process of this slot must know to start actors: empty where it may not."""
    import ray

    group = ray.util.get_current_placement_group()
    if group is None:
        return {}
    address, here = ray.get_runtime_context().gcs_address, ray.util.get_node_ip_address()
    return {SHARE: f"{address} {here} {group.id.hex()} {group.bundle_count - 1}"}
