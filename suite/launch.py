"""What Ray's cluster launcher lacks: a check of its configuration, waiting, a status, a token.

``ray up`` returns success when the head runs, also when no worker ever joins it; and some parts of
Ray read an unset RAY_AUTH_MODE differently from others. The commands here say so.
"""

import contextlib
import importlib.util
import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.cluster import ClusterError, connect
from suite.task import unknown

POLL_S = 2.0
TAIL = 15
TOKEN_FILE = "auth_token"
SIGNS = {
    r"InvalidAuthToken|invalid auth|AuthenticationError": "a worker and the head disagree on the "
    "token: the same RAY_AUTH_MODE and the same ~/.ray/auth_token belong on every host",
    r"Permission denied \(publickey": "ssh does not let the head in to a worker: see auth: "
    "ssh_user, ssh_private_key",
    r"SSH still not available": "ssh from the head does not get through to a worker",
    r"timed out during startup": "Ray on a worker did not start within the 30 s that it "
    "gives itself; the host is busy or out of memory",
    r"No route to host|Connection (timed out|refused)": "a worker does not answer the head",
    r"command not found": "a setup or start command names a program that a worker lacks",
    r"Address already in use": "another Ray or program holds a port on a worker",
    r"version mismatch|Version mismatch": "the hosts have different versions of Ray or Python",
}


@dataclass(frozen=True)
class Host:
    """A node of a running cluster, with what is in use of what it has."""

    address: str
    cpus: tuple[float, float]
    gpus: tuple[float, float]

    def __str__(self) -> str:
        cpus, gpus = (f"{used:g} of {total:g}" for used, total in (self.cpus, self.gpus))
        return f"{self.address:<16} CPUs in use: {cpus:<12} GPUs in use: {gpus}"


def check(path: Path) -> dict[str, Any]:
    """Check a cluster configuration as ``ray up`` would, and for what it does not look at.

    Returns:
        The configuration, with Ray's defaults filled in.

    Raises:
        ValueError: not a configuration; the message has one line for each fault.
        OSError: the file cannot be read.
    """
    import yaml

    text = path.read_text()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: no cluster configuration: it has no keys")
    faults = [*_schema_faults(config)] or [*_our_faults(config)]
    left = [*_places_to_edit(text)]
    if faults or left:
        listed = [f"{path}: {fault}" for fault in faults]
        raise ValueError("\n".join(listed + [f"{path}:{line}" for line in left]))
    return _prepared(path, config)


def _schema_faults(config: dict[str, Any]) -> Iterator[str]:
    """What Ray's own schema forbids: unknown keys, with the nearest known one, and wrong types."""
    import jsonschema

    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        raise ClusterError("ray is not installed: pip install -c constraints.txt -e .")
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        place = ".".join(map(str, error.absolute_path))
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        if error.validator == "additionalProperties" and known:
            for name in sorted(set(map(str, error.instance)) - set(known)):
                yield str(unknown("key", f"{place}.{name}".lstrip("."), _below(place, known)))
        else:
            yield f"{place or 'top level'}: {error.message}"


def _below(place: str, names: Any) -> list[str]:
    return [f"{place}.{name}".lstrip(".") for name in names]


def _our_faults(config: dict[str, Any]) -> Iterator[str]:
    """What Ray accepts, and what then fails on a host or in silence."""
    for remote, local in config.get("file_mounts", {}).items():
        if not Path(local).expanduser().exists():
            more = "; type: suite cluster token --write " + local if remote == "~/.ray" else ""
            yield f"file_mounts.{remote}: {local} does not exist{more}"
        elif remote == "~/.ray" and not (Path(local).expanduser() / TOKEN_FILE).is_file():
            make = f"suite cluster token --write {local}"
            yield f"file_mounts.{remote}: no {TOKEN_FILE} in it; type: {make}"
    text = json.dumps(config)
    if "RAY_AUTH_MODE=" not in text:
        yield (
            "setup_commands: RAY_AUTH_MODE is not set; parts of Ray take an unset mode for token "
            "and others for disabled, so that no worker joins; write RAY_AUTH_MODE=token"
        )
    head = " ".join(config.get("head_start_ray_commands", []))
    local = config.get("provider", {}).get("type") == "local"
    if local and "RAY_enable_autoscaler_v2=0" not in head:
        yield (
            "head_start_ray_commands: with provider.type local, write export "
            "RAY_enable_autoscaler_v2=0; before ray start: without it the last worker never starts"
        )


def _places_to_edit(text: str) -> Iterator[str]:
    """Line numbers, and what stands there for the user to replace."""
    for number, line in enumerate(text.splitlines(), 1):
        for place in re.findall(r"[\w-]*REPLACE[\w-]*", line.partition("#")[0]):
            yield f"{number}: {place} is still to be replaced"


def _prepared(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults, past Ray's own checks of it as a whole."""
    import click
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        prepared: dict[str, Any] = prepare_config(config)
        validate_config(prepared)
    except click.ClickException as error:
        raise ValueError(f"{path}: {error.format_message()}") from error
    except (KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{path}: {error}") from error
    return prepared


def wait(on: str, nodes: int, timeout_s: float, say: Callable[[str], None]) -> list[Host]:
    """Wait until a cluster has as many nodes.

    Args:
        on: the cluster, as for ``connect``.
        nodes: how many, the head among them.
        timeout_s: seconds to wait at most.
        say: takes a line whenever the number of nodes changes.

    Raises:
        ClusterError: no cluster answers, or too few nodes joined; the message says what is known
            of the reason.
    """
    until = time.monotonic() + timeout_s
    with connect(on) as cluster:
        seen = -1
        while (found := len(cluster.nodes())) < nodes:
            if found != seen:
                say(f"{found} of {nodes} nodes")
                seen = found
            if time.monotonic() >= until:
                raise ClusterError("\n".join(_diagnosis(cluster.nodes(), nodes, timeout_s)))
            time.sleep(min(POLL_S, timeout_s))
        return _hosts()


def status(on: str) -> tuple[list[Host], list[str]]:
    """The nodes of a cluster, and the commands that run on it.

    Raises:
        ClusterError: no cluster answers.
    """
    import ray

    with connect(on):
        own = ray.get_runtime_context().get_job_id()
        jobs = [j for j in ray._private.state.jobs() if not j["IsDead"] and j["JobID"] != own]
        return _hosts(), [
            f"{job['DriverIPAddress']} pid {job['DriverPid']}: {job['Entrypoint']}" for job in jobs
        ]


def _hosts() -> list[Host]:
    """The nodes alive in the cluster that this process is connected to."""
    import ray

    free = ray._private.state.available_resources_per_node()
    hosts = []
    for node in filter(lambda n: n["Alive"], ray.nodes()):
        left, total = free.get(node["NodeID"], {}), node["Resources"]
        used = {k: total.get(k, 0.0) - left.get(k, 0.0) for k in ("CPU", "GPU")}
        pairs = [(used[k], total.get(k, 0.0)) for k in ("CPU", "GPU")]
        hosts.append(Host(node["NodeManagerAddress"], *pairs))
    return sorted(hosts, key=lambda host: host.address)


def _diagnosis(alive: list[Any], nodes: int, timeout_s: float) -> Iterator[str]:
    """Why too few nodes joined, from what the launcher left on the head."""
    here = {node.address for node in alive}
    yield f"{len(alive)} of {nodes} nodes after {timeout_s:g} s: {', '.join(sorted(here))}"
    config = _launched()
    hosts = {config.get("head_ip"), *config.get("worker_ips", [])} - {None}
    if hosts:
        yield f"not joined, of the configured hosts: {', '.join(sorted(hosts - here)) or 'none'}"
        if len(hosts) < nodes:
            yield f"the configuration names {len(hosts)} hosts, fewer than the {nodes} asked for"
    lines = _monitor_lines()
    if not lines:
        yield (
            "no log of the autoscaler here: run this on the head, as in "
            "ray exec cluster.yaml 'suite cluster wait --nodes N'"
        )
        return
    yield from (meaning for sign, meaning in SIGNS.items() if re.search(sign, "\n".join(lines)))
    if config.get("type") == "local" and _second_autoscaler(lines):
        yield (
            "the autoscaler is the second, which never starts the last worker of provider.type "
            "local: export RAY_enable_autoscaler_v2=0 before ray start"
        )
    yield "the end of the autoscaler's log:"
    yield from (f"  {line}" for line in lines[-TAIL:])


def _launched() -> dict[str, Any]:
    """The provider part of the configuration that ``ray up`` left on this head, or nothing."""
    import yaml

    path = Path.home() / "ray_bootstrap_config.yaml"
    if not path.is_file():
        return {}
    provider: dict[str, Any] = yaml.safe_load(path.read_text()).get("provider", {})
    return provider


def _monitor_lines() -> list[str]:
    """What the autoscaler on this host wrote, without colours and blank lines."""
    lines: list[str] = []
    for name in ("monitor.out", "monitor.err", "monitor.log"):
        path = _ray_folder() / "session_latest" / "logs" / name
        if path.is_file():
            lines += re.sub(r"\x1b\[[\d;]*m", "", path.read_text(errors="replace")).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def _second_autoscaler(lines: list[str]) -> bool:
    return any("v2/" in line or "instance_manager" in line for line in lines)


def _ray_folder() -> Path:
    """Where Ray keeps its sessions on this machine, by its own order of precedence."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    given = (os.environ[name] for name in names if name in os.environ)
    return Path(next(given, "/tmp")) / "ray"


def token(folder: Path | None) -> tuple[Path, bool]:
    """The file with the token that every host of a cluster needs; made where there is none.

    Args:
        folder: where the file stands or is put; None for where Ray itself looks.

    Returns:
        Its path, and whether it was made now.

    Raises:
        ValueError: no folder was given, and Ray has no token here.
    """
    path = _own_token_file() if folder is None else folder / TOKEN_FILE
    if path.is_file():
        return path, False
    if folder is None:
        raise ValueError(f"no token at {path}; make one with suite cluster token --write DIR")
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(secrets.token_hex(32))
    return path, True


def _own_token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / TOKEN_FILE)


def faults_here() -> Iterator[tuple[str, str, str]]:
    """What on this machine keeps Ray from working: what was looked at, what was found, meaning.

    The meaning is empty where all is well. Loads no Ray.
    """
    yield _auth_finding()
    path = _ray_folder() / "ray_current_cluster"
    if path.is_file():
        address = path.read_text().strip()
        if _listens(address):
            yield "Ray cluster", f"one runs at {address}", ""
        else:
            yield (
                "Ray cluster",
                f"{path} names {address}, where none answers",
                f"--on auto and ray.init() look there in vain: remove {path}",
            )


def _auth_finding() -> tuple[str, str, str]:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = _own_token_file()
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    found = f"RAY_AUTH_MODE is {mode or 'not set'}, {'a' if has_token else 'no'} token at {path}"
    if not mode and has_token:
        return (
            "Ray's token",
            found,
            "ray start --head takes the token, workers and ray status do not, and none joins: "
            "set RAY_AUTH_MODE=token, or disabled, on every host",
        )
    if mode == "token" and not has_token:
        return "Ray's token", found, "Ray cannot start: suite cluster token --write ~/.ray"
    return "Ray's token", found, ""


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError):
        socket.create_connection((host, int(port)), timeout=2).close()
        return True
    return False
