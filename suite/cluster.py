"""Ray clusters: a private one on this machine, or one that is running."""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import provenance
from suite.task import unknown

ANSWER_S = 4.0
DEFAULT_PORT = {"": 6379, "ray://": 10001}
SHIPPED = ("suite", "kernels", "tasks")
FORWARDED = ("SUITE_DATA", "SUITE_OFFLINE", "TRITON_INTERPRET", "PYTHONPATH")
OBJECT_STORE_BYTES = 100_000_000
# Where a run finds what its slot reserved for actors of its own.
SHARE = "SUITE_CLUSTER_SHARE"

# Ray's own words reach a user through its log files; these keep them from the terminal, and an
# out-of-memory task from being tried for ever.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_task_oom_retries": "1",
}

# By its default Ray's workers step back behind every other process of the machine, which a run
# that is timed on this machine's own processes does not.
PRIVATE = {"RAY_worker_niceness": "0"}


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
    wanted = (PRIVATE if private else {}) | ({} if verbose else QUIET)
    found = {k: v for k, v in wanted.items() if k not in os.environ}
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
    folder = own_folder("ray")
    try:
        with _environment({"RAY_TMPDIR": str(folder)}), _started(n_nodes, verbose):
            yield Cluster(f"private Ray of {n_nodes}", True, own_node())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(n_nodes: int, verbose: bool) -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes()
    try:
        try:
            _add_nodes(nodes, n_nodes)
            ray.init(address=nodes.address, **_reporting(verbose))
        except Exception as error:  # On a machine without room Ray raises that and no more.
            raise ClusterError(f"Ray did not start on this machine: {first_line(error)}") from error
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def _add_nodes(nodes: Any, n_nodes: int) -> None:
    """Start nodes that share the machine's processors and GPUs."""
    for number in range(n_nodes):
        first: dict[str, Any] = {"include_dashboard": False} if number == 0 else {}
        nodes.add_node(
            num_cpus=max(1, provenance.cores() // n_nodes),
            num_gpus=_own_gpus(number, n_nodes),
            object_store_memory=OBJECT_STORE_BYTES,
            **_loopback(number),
            **first,
        )


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


def own_folder(purpose: str) -> Path:
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
        yield Cluster(address, False, own_node() if "://" not in address else "")
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
        yield [{**own, "scheduling_strategy": in_bundle(group, n + 1)} for n in range(count)]
    finally:
        with _signals_kept():
            ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep Ray from taking over SIGTERM, on which a run writes its snapshot."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def in_bundle(group: Any, bundle: int) -> Any:
    """The scheduling strategy of what is to take one reserved share of a cluster."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def own_node() -> str:
    """Ray's id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def first_line(error: BaseException) -> str:
    """The first line that an error says; its type's name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
