"""Run matrices on Ray: a private cluster on this machine, or one that is running.

Ray schedules slots, each an actor that holds its share of a node's processors and GPUs and one
killable worker process. What runs where, what is tried again and what counts is decided by
``suite.dispatch``, which knows nothing of Ray.
"""

import contextlib
import errno
import itertools
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from suite import provenance
from suite.dispatch import Cause, Dispatcher, Lease, Run
from suite.local import Backend, Campaign, Listener, Stop, stoppable
from suite.plan import Spec
from suite.record import Placement, Record
from suite.store import Store, StoreError
from suite.task import Needs, find, unknown
from suite.worker import GRACE_S, Job, Worker, WorkerDied, end_all, epitaph

# A slot that hears nothing for FENCE_S gives its run FENCE_GRACE_S to write a snapshot and kills
# it; only after SILENCE_S, which is longer than both, does the driver give the run to another.
BEAT_S = 1.0
IDLE_S = 0.2
FENCE_S = 20.0
FENCE_GRACE_S = 10.0
SILENCE_S = 40.0

ANSWER_S = 4.0
CHECK_S = 90.0
FAREWELL_S = 5.0
WARM_UP_S = 300.0
LOOK_S = 5.0
TELL_S = 15.0
MAX_FAILED_STARTS = 5
AUTOSCALED_SLOTS = 256
DEFAULT_PORT = {"": 6379, "ray://": 10001}
SHIPPED = ("suite", "kernels", "tasks")
FORWARDED = ("SUITE_DATA", "SUITE_OFFLINE", "TRITON_INTERPRET", "PYTHONPATH")
OBJECT_STORE_BYTES = 100_000_000
SHARE = "SUITE_CLUSTER_SHARE"

# Ray's own words reach a user through its log files; these keep them from the terminal, and an
# out-of-memory task from being tried for ever.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_task_oom_retries": "1",
}


class ClusterError(OSError):
    """The cluster cannot be reached or used; the message says which and why."""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, with what Ray may use of it."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        address: what it is called in messages.
        private: started by this process, and ended with it.
        driver_node: the id of the node that this process is on; empty when it is on none.
    """

    address: str
    private: bool
    driver_node: str = ""

    def nodes(self) -> list[Node]:
        """The nodes that are alive, in the order of their addresses."""
        import ray

        found = [
            Node(
                n["NodeID"],
                n["NodeManagerAddress"],
                n["Resources"].get("CPU", 0.0),
                n["Resources"].get("GPU", 0.0),
            )
            for n in ray.nodes()
            if n["Alive"]
        ]
        return sorted(found, key=lambda n: (n.address, n.id))

    def to_come(self) -> dict[str, float]:
        """The most of each resource that an autoscaler may add up to; empty without one."""
        import ray

        if self.address.startswith("ray://"):
            # A remote client has no access to this itself; a worker has.
            look: Any = ray.remote(_most)
            return dict(ray.get(look.options(num_cpus=0).remote()))
        return _most()

    def device(self, name: str) -> str:
        """The torch device that ``auto``, ``cpu`` or ``cuda`` stands for on this cluster.

        Raises:
            ValueError: a device that Ray cannot place a run on.
        """
        if name not in ("auto", "cpu", "cuda"):
            raise ValueError(f"{unknown('device', name, ('auto', 'cpu', 'cuda'))} on a cluster")
        if name != "auto":
            return name
        has_gpus = any(n.gpus for n in self.nodes()) or self.to_come().get("GPU", 0)
        return "cuda" if has_gpus else "cpu"

    def __str__(self) -> str:
        nodes = self.nodes()
        cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
        count = f"{len(nodes)} nodes" if len(nodes) != 1 else "1 node"
        return f"{self.address}: {count}, {cpus:g} CPUs, {gpus:g} GPUs"


def is_private(on: str) -> bool:
    """Whether ``connect`` would start a cluster for ``on``, not join one."""
    return re.fullmatch(r"ray(:\d+)?", on) is not None


@contextlib.contextmanager
def connect(on: str, *, verbose: bool = False) -> Iterator[Cluster]:
    """Be connected to a cluster inside the block; one that was started here ends with it.

    Args:
        on: ``ray`` for a private cluster on this machine, ``ray:N`` for one of N nodes, ``auto``
            for the cluster that RAY_ADDRESS or this machine's Ray names, ``host:port`` or
            ``ray://host:port`` for one that is running.
        verbose: show what Ray and the workers print.

    Raises:
        ValueError: ``on`` is none of these.
        ClusterError: no cluster answers, or Ray cannot be started.
    """
    match = re.fullmatch(r"ray(?::(\d+))?", on)
    with _environment(_settings(private=match is not None, verbose=verbose)):
        with _private(int(match[1] or 1), verbose) if match else _joined(on, verbose) as cluster:
            yield cluster


def _most() -> dict[str, float]:
    import ray

    return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change environment variables for a while: Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _settings(*, private: bool, verbose: bool) -> dict[str, str]:
    """What the environment must say before Ray is imported."""
    found = {} if verbose else {k: v for k, v in QUIET.items() if k not in os.environ}
    if private:
        # A key of its own: another user of this machine could otherwise run code as this one.
        return found | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    if "RAY_AUTH_MODE" not in os.environ:
        # Parts of Ray read an unset mode differently, so a client may miss a token it has.
        found["RAY_AUTH_MODE"] = "token" if _has_token() else "disabled"
    return found


_TOKEN: list[str] = []


def _token() -> str:
    """The key of this process's private clusters: Ray reads it once in a process's life."""
    if not _TOKEN:
        _TOKEN.append(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
    return _TOKEN[0]


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return Path(path).is_file()


def _reporting(verbose: bool) -> dict[str, Any]:
    """Arguments of ``ray.init`` that decide what is shown."""
    import ray

    # Errors of nodes are shown even with log_to_driver off; a campaign tells of those itself.
    # This is the switch by which Ray's own debugger keeps its terminal clean.
    ray._private.worker._worker_logs_enabled = verbose
    level = logging.INFO if verbose else logging.ERROR
    return {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}


@contextlib.contextmanager
def _private(n_nodes: int, verbose: bool) -> Iterator[Cluster]:
    """A cluster of this process alone: on loopback, with its own key and temporary folder."""
    if not 1 <= n_nodes <= 16:
        raise ValueError(f"--on ray:{n_nodes}: from 1 to 16 nodes fit on one machine")
    folder = _own_folder("ray")
    try:
        with _environment({"RAY_TMPDIR": str(folder)}), _started(n_nodes, verbose):
            yield Cluster(f"private Ray of {n_nodes}", True, _own_node())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(n_nodes: int, verbose: bool) -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster as Nodes

    cpus = [max(1, provenance.cores() // n_nodes)] * n_nodes
    nodes = Nodes()
    try:
        for number, n_cpus in enumerate(cpus):
            first: dict[str, Any] = {"include_dashboard": False} if number == 0 else {}
            settings: dict[str, Any] = {
                "num_cpus": n_cpus,
                "num_gpus": _own_gpus(number, n_nodes),
                "object_store_memory": OBJECT_STORE_BYTES,
            }
            nodes.add_node(**settings, **_loopback(number), **first)
        ray.init(address=nodes.address, **_reporting(verbose))
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def _loopback(number: int) -> dict[str, Any]:
    """An address that other machines cannot reach, where the system has one for each node.

    Not 127.0.0.1: Ray replaces that by the machine's own address.
    """
    return {"node_ip_address": f"127.0.0.{number + 2}"} if sys.platform == "linux" else {}


def _own_gpus(number: int, n_nodes: int) -> int:
    """GPUs of a private node: its share of the machine's, the first nodes' being larger."""
    import torch

    share, rest = divmod(torch.cuda.device_count(), n_nodes)
    return share + (number < rest)


def _short_folder() -> str:
    """Where a private cluster may put its files: the path of a socket has at most 107 bytes."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 else "/tmp"


def _own_folder(purpose: str) -> Path:
    """A new temporary folder; those whose process was killed before it could remove them go."""
    root = Path(_short_folder())
    for folder in root.glob(f"suite-{purpose}-*"):
        owner = re.match(rf"suite-{purpose}-(\d+)-", folder.name)
        if owner and not _alive(int(owner[1])):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"suite-{purpose}-{os.getpid()}-", dir=root))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _joined(on: str, verbose: bool) -> Iterator[Cluster]:
    address = _running(on)
    _answers(address)
    import ray

    try:
        ray.init(address=address, runtime_env=_runtime_env(), **_reporting(verbose))
    except (RuntimeError, ConnectionError, ValueError, TimeoutError) as error:
        raise ClusterError(f"no Ray cluster could be joined at {address}: {error}") from error
    try:
        yield Cluster(address, False, _own_node() if "://" not in address else "")
    finally:
        ray.shutdown()


def _running(on: str) -> str:
    """The address of a running cluster as Ray takes it.

    Raises:
        ValueError: not an address.
        ClusterError: ``auto``, and nothing says where a cluster is.
    """
    given = on
    if on == "auto":
        given = os.environ.get("RAY_ADDRESS", "")
        if given in ("", "auto"):
            from ray._private.utils import read_ray_address

            given = read_ray_address() or ""
        if given in ("", "local"):
            raise ClusterError(
                "--on auto: no Ray cluster runs on this machine and RAY_ADDRESS names none; "
                "start one with ray start --head, or give its address: --on host:port"
            )
    match = re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\])(?::(\d+))?", given)
    if not match or (on == given and not match[1] and not match[3]):
        raise ValueError(
            f"--on {on!r}: write local, ray, ray:N, auto, host:port or ray://host:port"
        )
    scheme, host, port = match[1] or "", match[2], match[3] or DEFAULT_PORT[match[1] or ""]
    return f"{scheme}{host}:{port}"


def _answers(address: str) -> None:
    """Raise ClusterError within seconds when nothing answers: Ray itself waits for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        why = error.strerror or (errno.errorcode.get(error.errno, "") if error.errno else "")
        raise ClusterError(
            f"no Ray cluster answers at {address}: {why or error or 'no answer'}"
        ) from error


def _runtime_env() -> dict[str, Any]:
    """This checkout for the workers, so that they run the code that queued the runs."""
    root = Path(__file__).parent.parent
    shipped = [str(root / name) for name in SHIPPED if (root / name).is_dir()]
    env_vars = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    return {"py_modules": shipped, "env_vars": env_vars}


def _own_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


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
        self.problem = _problem(uri, probe, versions)
        self.uri, self.folder = uri, _own_folder("slot")
        os.environ.update(_share_here())
        self.worker = self._start()
        self.heard_s, self.fenced = time.monotonic(), False
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self) -> Worker:
        return Worker(self.uri, self.folder / "worker.log")

    def hello(self) -> tuple[str, str]:
        """The id of the node, and what is wrong with it; empty when nothing is."""
        self.heard_s = time.monotonic()
        return _own_node(), self.problem

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


def _problem(uri: str, probe: str, versions: dict[str, str]) -> str:
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


@dataclass(frozen=True)
class Resources:
    """What the runs of a campaign may take.

    Attributes:
        cpus: cores of a run; the task's own needs when None.
        gpus: GPUs of a run on a GPU; the task's own needs when None.
        exclusive: one run a node, with all its cores.
        slots: runs at the same time, at most.
    """

    cpus: int | None = None
    gpus: float | None = None
    exclusive: bool = False
    slots: int | None = None

    def of(self, spec: Spec) -> Needs:
        """What a run takes of a node."""
        own = find(spec.task).needs_of(spec.profile, spec.config())
        gpus = own.gpus if self.gpus is None else self.gpus
        on_gpu = spec.device.startswith("cuda")
        if own.actors and self.exclusive:
            raise ValueError(f"{spec} has Ray actors beside it, so it cannot have a node alone")
        return Needs(self.cpus or own.cpus, gpus if on_gpu else 0.0, own.actors)


def backend(cluster: Cluster, resources: Resources) -> Backend:
    """A campaign's backend that runs its matrix on a cluster."""

    def run(runs: list[Run], campaign: Campaign, listen: Listener) -> Iterator[Record]:
        for one in runs:
            one.needs = resources.of(one.spec)
            # The slot ends a run at its limit; this is for a slot that does not.
            one.limit_s = campaign.limit_s(one.spec) + GRACE_S + WARM_UP_S
        with stoppable() as stop:
            yield from _Driver(cluster, resources, runs, campaign, listen).run(stop)

    return run


def require(cluster: Cluster, needs: Needs, what: str) -> None:
    """Raise ValueError when no node has, or may come to have, what a run needs."""
    nodes = cluster.nodes()
    if _room(nodes, needs):
        return
    to_come = cluster.to_come()
    cpus = needs.cpus + needs.actors
    if to_come.get("CPU", 0) >= cpus and to_come.get("GPU", 0) >= needs.gpus:
        return
    have = "; ".join(f"{n.address} {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes)
    beside = f", and {needs.actors} more for its Ray actors" if needs.actors else ""
    raise ValueError(
        f"{what} needs {needs} on one node{beside}; the cluster has: {have or 'no node'}"
    )


def _room(nodes: list[Node], needs: Needs) -> int:
    """How many runs of these needs the nodes have room for, with the actors of each."""
    room = sum(_fits(node, needs) for node in nodes)
    if not needs.actors:
        return room
    return min(room, int(sum(node.cpus for node in nodes) // (needs.cpus + needs.actors)))


def _fits(node: Node, needs: Needs) -> int:
    """How many runs of these needs a node has room for."""
    by_cpu = int(node.cpus // needs.cpus)
    return min(by_cpu, int(node.gpus / needs.gpus + 1e-9)) if needs.gpus else by_cpu


@dataclass
class _Seat:
    """A slot as the driver sees it: its actor, the call under way, and its node once it is there.

    ``group`` reserves its share of the cluster where that is on several nodes; ``began_s`` and
    ``draft`` are those of its run.
    """

    needs: Needs
    actor: Any
    call: Any
    pinned: str = ""
    group: Any = None
    node: str = ""
    lease: Lease | None = None
    began_s: float = 0.0
    draft: dict[str, Any] = field(default_factory=dict)


class _Driver:
    """Asks a cluster for slots and has them do what the dispatcher says."""

    def __init__(
        self,
        cluster: Cluster,
        resources: Resources,
        runs: list[Run],
        campaign: Campaign,
        listen: Listener,
    ) -> None:
        self.cluster, self.resources, self.campaign, self.listen = (
            cluster,
            resources,
            campaign,
            listen,
        )
        self.uri = campaign.store.root if campaign.store.local else campaign.store.uri
        self.probe = f".probe-{secrets.token_hex(8)}"
        self.versions = {run.spec.task: run.spec.version for run in runs}
        for run in runs:
            require(cluster, run.needs, str(run.spec))
        self.dispatcher = Dispatcher(runs, silence_s=SILENCE_S, attempts=campaign.attempts)
        self.seats: dict[str, _Seat] = {}
        self.nodes: dict[str, Node] = {}
        self.autoscales = False
        self.left_out: set[str] = set()
        self.suspects: set[str] = set()
        self.looked_s = self.told_s = -math.inf
        self.failed_starts = 0
        self.names = itertools.count(1)

    def run(self, stop: Stop) -> Iterator[Record]:
        """Do all runs; however it ends, no slot of it is left."""
        self.campaign.store.write(self.probe, b"the driver was here")
        stopped = True
        try:
            self._check_nodes()
            while self.dispatcher.left:
                stop.check()
                self._grow()
                yield from self._turn()
            stopped = False
        finally:
            self._end(stopped)
            self.campaign.store.delete(self.probe)

    def _check_nodes(self) -> None:
        """Raise StoreError unless every node can write the store and has the same code."""
        import ray

        look: Any = ray.remote(_problem)
        self._look()
        calls = {
            look.options(num_cpus=0, scheduling_strategy=_on(node.id)).remote(
                self.uri, self.probe, self.versions
            ): node
            for node in self.nodes.values()
            if node.cpus or node.gpus
        }
        ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=CHECK_S)
        for call in ready:
            try:
                problem = ray.get(call)
            except ray.exceptions.RayError as error:
                raise ClusterError(f"node {calls[call].address}: {_first_line(error)}") from error
            if problem:
                raise StoreError(f"node {calls[call].address}: {problem}{_advice(self.uri)}")
        if late:
            names = ", ".join(calls[call].address for call in late)
            raise ClusterError(f"no answer within {CHECK_S:g} s from: {names}")

    def _look(self) -> None:
        usable = {n.id: n for n in self.cluster.nodes() if n.id not in self.left_out}
        if usable.keys() <= self.suspects:
            # When all were silent, it was this process that could not hear.
            self.suspects.clear()
        self.nodes = {i: n for i, n in usable.items() if i not in self.suspects}
        self.autoscales = bool(self.cluster.to_come())
        self.looked_s = time.monotonic()

    def _grow(self) -> None:
        """Ask for as many slots as can be used and may fit."""
        now = time.monotonic()
        if now - self.looked_s > LOOK_S:
            self._look()
        for needs in self.dispatcher.wanted:
            held = [s for s in self.seats.values() if s.needs == needs]
            idle = sum(s.lease is None for s in held)
            for node_id in self._places(needs, held)[: self.dispatcher.waiting(needs) - idle]:
                if len(self.seats) < (self.resources.slots or math.inf):
                    self._ask(needs, node_id)
        self._release()
        if not any(s.node for s in self.seats.values()) and now - self.told_s > TELL_S:
            if self.told_s > 0:
                self.listen("notice", None, f"waiting for room on {self.cluster}")
            self.told_s = now

    def _places(self, needs: Needs, held: list[_Seat]) -> list[str]:
        """Where further slots may go: node ids, or "" where Ray is to choose."""
        able = [n for n in self.nodes.values() if _fits(n, needs)]
        if self.resources.exclusive:
            taken = {s.pinned for s in held}
            return [n.id for n in able if n.id not in taken]
        room = _room(list(self.nodes.values()), needs)
        if self.autoscales:
            room = max(room, AUTOSCALED_SLOTS)
        elsewhere = self._away_from_driver(able)
        return [elsewhere] * (room - len(held))

    def _away_from_driver(self, able: list[Node]) -> str:
        """For a run whose node is to be killed: a node that is not this process's own."""
        if self.campaign.strike is None or self.campaign.strike.kind != "node_kill":
            return ""
        return next((n.id for n in able if n.id != self.cluster.driver_node), "")

    def _ask(self, needs: Needs, node_id: str) -> None:
        import ray

        cpus: float = needs.cpus
        if self.resources.exclusive:
            cpus = self.nodes[node_id].cpus
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": needs.gpus, "max_restarts": 0}
        avoided = ",".join(sorted(self.left_out | self.suspects))
        elsewhere = {"ray.io/node-id": f"!in({avoided})"} if avoided else {}
        group = None
        if needs.actors:
            there = {"ray.io/node-id": node_id} if node_id else elsewhere
            group = _reserved(needs, there, elsewhere)
            options["scheduling_strategy"] = _in(group, 0)
        elif node_id:
            options["scheduling_strategy"] = _on(node_id)
        elif elsewhere:
            options["label_selector"] = elsewhere
        # The second thread is for ``stop``, which must not wait for an exchange to end.
        slot: Any = ray.remote(Slot)
        actor = slot.options(max_concurrency=2, **options).remote(
            self.uri, int(cpus), self.probe, self.versions
        )
        name = f"slot-{next(self.names)}"
        self.seats[name] = _Seat(needs, actor, actor.hello.remote(), node_id, group)

    def _release(self) -> None:
        """End idle slots that hold what runs of other needs wait for."""
        if not self.dispatcher.wanted:
            return
        for name, seat in list(self.seats.items()):
            useless = seat.lease is None and not self.dispatcher.waiting(seat.needs)
            if useless:
                self._drop(name)

    def _turn(self) -> Iterator[Record]:
        """Take in what the slots have reported, and give up on those that should have."""
        import ray

        calls = {seat.call: name for name, seat in self.seats.items()}
        if not calls:
            time.sleep(BEAT_S)
            return
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=BEAT_S)
        if ready:
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            yield from self._take(calls[call])
        now = time.monotonic()
        for name in self.dispatcher.silent(now):
            yield from self._lose(name, f"no sign of life for {SILENCE_S:g} s", suspect=True)
        for name in self.dispatcher.overdue(now):
            yield from self._lose(name, "its run should have been ended there, and was not")

    def _take(self, name: str) -> Iterator[Record]:
        import ray

        seat = self.seats[name]
        try:
            answer = ray.get(seat.call)
        except ray.exceptions.RayTaskError as error:
            raise _plain(error) from None
        except ray.exceptions.RayError as error:
            starved = "OUT_OF_MEMORY" in str(error)
            starved |= isinstance(error, ray.exceptions.OutOfMemoryError)
            yield from self._lose(name, _first_line(error), "oom" if starved else "lost")
            return
        if not seat.node:
            self._seated(name, *answer)
        else:
            self.dispatcher.heard(name, time.monotonic())
            yield from self._read(name, answer)
            if answer.fenced and name in self.seats:
                yield from self._lose(name, "it had not heard from this process and gave up")
        if name in self.seats:
            self._continue(name)

    def _seated(self, name: str, node_id: str, problem: str) -> None:
        """A slot is there. A node that joined late and cannot be used is left out, and named."""
        seat = self.seats[name]
        if problem:
            self.listen("notice", None, f"node {self._address(node_id)} is left out: {problem}")
            self.left_out.add(node_id)
            self._drop(name)
            return
        seat.node = node_id
        self.failed_starts = 0
        self.dispatcher.join(name, seat.needs, time.monotonic())

    def _continue(self, name: str) -> None:
        """Call a slot again, with a run if it is idle and one waits."""
        seat, now = self.seats[name], time.monotonic()
        job, limit_s = None, math.inf
        if seat.lease is None:
            seat.lease = self.dispatcher.lease(name, now)
            if seat.lease is not None:
                seat.began_s, seat.draft = now, {}
                job = self.campaign.job(seat.lease.run, self._placement(seat))
        if seat.lease is not None:
            limit_s = self.campaign.limit_s(seat.lease.run.spec)
        seat.call = seat.actor.exchange.remote(job, limit_s, self.campaign.prompt)

    def _placement(self, seat: _Seat) -> Placement:
        node = self.nodes.get(seat.node) or Node(seat.node, "unknown", seat.needs.cpus, 0.0)
        alone = self.resources.exclusive
        share = min(_fits(node, seat.needs), self.resources.slots or 2**31)
        neighbours = 0 if alone else max(0, min(share, len(self.seats)) - 1)
        # What others run on the rest of a node of theirs is not known here.
        owned = self.cluster.private or node.cpus <= seat.needs.cpus
        return Placement(
            scheduler="ray",
            workers=len(self.seats),
            cpus=int(node.cpus) if alone else seat.needs.cpus,
            gpus=seat.needs.gpus,
            colocated_runs=neighbours,
            contended=not alone and (neighbours > 0 or not owned),
            exclusive=alone,
            node=node.address,
        )

    def _read(self, name: str, report: Report) -> Iterator[Record]:
        seat = self.seats[name]
        if seat.lease is None:
            return
        spec, record = seat.lease.run.spec, None
        for kind, content in report.messages:
            if kind == "ended":
                record = content
                continue
            if kind == "started":
                seat.draft = content
            self.listen(kind, spec, content)  # type: ignore[arg-type]
            if kind == "struck" and content == "node_kill":
                seat.actor.take_down_node.remote()
        if report.cause is not None:
            yield from self._settle(name, report.cause, record)

    def _settle(self, name: str, cause: Cause, record: Record | None) -> Iterator[Record]:
        """The run of a slot has ended, with a record or before it began."""
        seat = self.seats[name]
        lease, seat.lease = seat.lease, None
        assert lease is not None
        spec = lease.run.spec
        if record is not None and (cause != "own" or record.status == "timeout"):
            self.campaign.store.put(record)
        record_id = None if record is None else record.record_id
        verdict = self.dispatcher.settle(lease.number, cause, record_id)
        if record is None and verdict == "final":
            raise ClusterError(f"{spec} was lost {lease.run.tries} times before it could begin")
        if record is not None and verdict != "late":
            self.listen("again" if verdict == "again" else "ended", spec, record)
            if verdict == "final":
                yield record

    def _lose(
        self, name: str, why: str, cause: Cause = "lost", *, suspect: bool = False
    ) -> Iterator[Record]:
        """A slot is lost: its run goes to another one."""
        seat = self.seats[name]
        where = self._address(seat.node)
        if not seat.node:
            self._failed_start(why)
        elif suspect and seat.node != self.cluster.driver_node:
            self.suspects.add(seat.node)
        if seat.lease is not None:
            record = self._unheard(seat.lease.run)
            if record is not None:
                cause = "own"
            elif seat.draft:
                wall_s = time.monotonic() - seat.began_s
                story = f"the slot on node {where} was lost: {why}"
                status = "oom" if cause == "oom" else "infra_error"
                record = epitaph(seat.draft, status, story, wall_s)
            yield from self._settle(name, cause, record)
        self._drop(name)
        self.looked_s = -math.inf

    def _unheard(self, run: Run) -> Record | None:
        """The record of this attempt if a lost slot could still write it, though not report it.

        A slot that is cut off ends its run before it counts as lost here, so no record comes later.
        """
        spec = run.spec
        earlier = self.campaign.store.attempts(spec.task, [spec.run_id]).get(spec.run_id, [])
        return next((r for r in earlier if r.attempt == run.attempt), None)

    def _failed_start(self, why: str) -> None:
        self.failed_starts += 1
        if self.failed_starts > MAX_FAILED_STARTS:
            raise ClusterError(f"slots cannot be started: {why}")

    def _address(self, node_id: str) -> str:
        node = self.nodes.get(node_id)
        return node.address if node else node_id[:12] or "unknown"

    def _drop(self, name: str) -> None:
        import ray

        self.dispatcher.lose(name)
        seat = self.seats.pop(name)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(seat.actor)
            if seat.group is not None:
                ray.util.remove_placement_group(seat.group)

    def _end(self, stopped: bool) -> None:
        """End all slots; when stopped, runs under way get their grace to write a snapshot."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ending = [s.actor.stop.remote() for s in self.seats.values() if s.node]
            if ending:
                limit_s = GRACE_S if stopped else 0.0
                ray.wait(ending, num_returns=len(ending), timeout=limit_s + FAREWELL_S)
        for name in list(self.seats):
            self._drop(name)


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _reserved(needs: Needs, where: dict[str, str], elsewhere: dict[str, str]) -> Any:
    """Room for a slot and the actors of its run, all of it or none.

    Slots that held a core each while they waited for their actors' could wait for one another.
    """
    from ray.util import placement_group

    own = {"CPU": float(needs.cpus)} | ({"GPU": needs.gpus} if needs.gpus else {})
    selectors = [where] + [elsewhere] * needs.actors
    return placement_group(
        [own] + [{"CPU": 1.0}] * needs.actors,
        strategy="PACK",
        bundle_label_selector=selectors if where or elsewhere else None,
    )


def _in(group: Any, bundle: int) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def _share_here() -> dict[str, str]:
    """What a worker process of this slot must know to start actors: empty where it may not."""
    import ray

    group = ray.util.get_current_placement_group()
    if group is None:
        return {}
    address, here = ray.get_runtime_context().gcs_address, ray.util.get_node_ip_address()
    return {SHARE: f"{address} {here} {group.id.hex()} {group.bundle_count - 1}"}


@contextlib.contextmanager
def actors(count: int) -> Iterator[list[dict[str, Any]]]:
    """Be connected to the cluster that a run was placed on, to start actors of its own.

    They end with the block, and with the process however that ends.

    Args:
        count: how many actors.

    Yields:
        For each actor the options that give it its own reserved core, for
        ``ray.remote(...).options``.

    Raises:
        ValueError: the run was given no room for so many, or is on no cluster.
        ClusterError: the cluster does not answer.
    """
    address, node_ip, group_id, room = os.environ.get(SHARE, "   0").split(" ")
    if count > int(room):
        raise ValueError(f"{count} Ray actors, and room for {room}: a run starts them on a cluster")
    with _environment(_settings(private=False, verbose=False)), _signals_kept():
        import ray
        from ray.util.placement_group import PlacementGroup

        settings = {"_node_ip_address": node_ip, **_reporting(False)}
        try:
            ray.init(address=address, **settings)
        except (RuntimeError, ConnectionError, ValueError, TimeoutError) as error:
            raise ClusterError(f"no Ray cluster could be joined at {address}: {error}") from error
    try:
        group = PlacementGroup(ray.PlacementGroupID.from_hex(group_id))
        own: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0}
        yield [{**own, "scheduling_strategy": _in(group, n + 1)} for n in range(count)]
    finally:
        with _signals_kept():
            ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep Ray from taking over SIGTERM, on which a run writes its snapshot."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _advice(uri: str) -> str:
    if "://" in uri:
        return ""
    return (
        "; on several nodes --store must be shared storage: s3://..., gs://... or a shared folder"
    )


def _plain(error: Any) -> Exception:
    """What a slot raised, as if it had been raised here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StoreError | ValueError):
        return type(cause)(*cause.args)
    return ClusterError(f"a slot failed: {_first_line(cause or error)}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
