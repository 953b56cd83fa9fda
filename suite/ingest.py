"""From a JSON file of pytest-benchmark to records.

Files of this project carry what was computed, its accuracy, and which benchmarks were collected,
so that one that is missing shows. Those of others are taken in and marked as foreign: they are in
no table, for nothing says that they computed the right thing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from suite import bench
from suite.record import Accuracy, CodeInfo, EnvInfo, Micro, NodeInfo, Record, Timing, digest, utc
from suite.store import Store

UNKNOWN = "unknown"
PROFILE_KEY = "fdl"


def ingest(path: Path, store: Store) -> list[Record]:
    """Turn every benchmark of a file into a record, or none.

    Args:
        path: what ``pytest --benchmark-json`` wrote.
        store: where the records go.

    Raises:
        ValueError: the file is no such JSON, or a benchmark in it is not complete.
        OSError: the file cannot be read, or the store cannot be written.
    """
    content = _parsed(path)
    made = records(content, path.name)
    for record in made:
        store.put(record)
    return made


def records(content: Mapping[str, Any], name: str) -> list[Record]:
    """The records of a file's content.

    Args:
        content: the parsed JSON.
        name: of the file, for messages.

    Raises:
        ValueError: a benchmark is not complete; the message says which and why.
    """
    try:
        about = _about(content)
        made = [_record(b, content, about) for b in content["benchmarks"]]
        return made + _missing(content, about, made)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}: {where}: {first['msg']}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: not a complete file of pytest-benchmark: {error!r}") from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise ValueError(f"{path}: no file of pytest-benchmark: it has no list 'benchmarks'")
    return content


def _about(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that all records of a file share: when, where and with what it was measured."""
    own = content.get(PROFILE_KEY) or {}
    commit, when = content.get("commit_info") or {}, _utc(content["datetime"])
    shared: dict[str, Any] = {
        "created_utc": when,
        "ended_utc": when,
        "code": CodeInfo(
            commit=commit.get("id") if commit.get("id") != UNKNOWN else None,
            dirty=commit.get("dirty"),
            diff_sha256=None,
            argv=["pytest", "--benchmark-json"],
        ),
        "nodes": [NodeInfo.model_validate(own.get("node") or _node(content["machine_info"]))],
        "env": EnvInfo.model_validate(own.get("env") or _env(content["machine_info"])),
    }
    return shared


def _utc(text: str) -> str:
    from datetime import UTC, datetime

    when = datetime.fromisoformat(text)
    return utc(when.replace(tzinfo=UTC) if when.tzinfo is None else when)


def _node(machine: Mapping[str, Any]) -> dict[str, Any]:
    cpu = machine.get("cpu") or {}
    return {
        "os": f"{machine.get('system', UNKNOWN)} {machine.get('machine', UNKNOWN)}",
        "cpu_model": cpu.get("brand_raw") or UNKNOWN,
        "cpu_cores": cpu.get("count") or 0,
        "mem_bytes": 0,
        "gpus": [],
        "load1_start": None,
        "load1_end": None,
    }


def _env(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a foreign file says of its software: the version of Python."""
    return {
        "python": machine.get("python_version", UNKNOWN),
        "packages": {},
        "torch": {
            "version": UNKNOWN,
            "cuda": None,
            "cudnn": None,
            "num_threads": 0,
            "tf32": False,
            "matmul_precision": UNKNOWN,
            "deterministic": False,
        },
        "triton": None,
        "ray": None,
        "env_vars": {},
    }


def _record(
    benchmark: Mapping[str, Any], content: Mapping[str, Any], about: Mapping[str, Any]
) -> Record:
    own = benchmark.get("extra_info", {}).get(PROFILE_KEY) or {}
    samples = benchmark["stats"].get("data")
    if not samples:
        name = benchmark["fullname"]
        raise KeyError(f"{name} has no samples: write the file with --benchmark-json")
    # Without a proof of accuracy a time is as foreign as that of another project.
    proven = bool(own.get("accuracy"))
    accuracy = [Accuracy.model_validate(a) for a in own.get("accuracy", ())]
    wrong = [a for a in accuracy if not a.ok]
    timing = Timing(timer="wall", cache="warm", samples_s=samples)
    micro = Micro(
        op=own["op"] if proven else benchmark["fullname"],
        provider=own["provider"] if proven else UNKNOWN,
        resolved=own["provider"] if proven else UNKNOWN,
        mode=own["mode"] if proven else "forward",
        dtype=own["dtype"] if proven else UNKNOWN,
        case=own["case"] if proven else str(benchmark.get("param") or ""),
        shape=own["shape"] if proven else {},
        origin=own["origin"] if proven else "synthetic",
        producer="pytest-benchmark" if proven else "foreign",
        session=digest({"of": benchmark["fullname"], "when": about["created_utc"]})[:16],
        timings=[] if wrong else [timing],
        work=None,
        accuracy=accuracy,
    )
    extra = {k: v for k, v in benchmark.get("extra_info", {}).items() if k != PROFILE_KEY}
    return _sealed(
        micro,
        benchmark["fullname"],
        about,
        status="invalid" if wrong else "ok",
        detail="more wrong than allowed" if wrong else "",
        wall_s=math.fsum(samples),
        extra={"benchmark": benchmark["fullname"], "extra_info": extra},
    )


def _missing(
    content: Mapping[str, Any], about: Mapping[str, Any], made: Sequence[Record]
) -> list[Record]:
    """A record of each benchmark that was collected and has no time."""
    own = content.get(PROFILE_KEY) or {}
    seen = {r.extra["benchmark"] for r in made}
    reasons = {
        **dict.fromkeys(own.get("collected", ()), ("crashed", "it was collected and never ran")),
        **dict.fromkeys(own.get("skipped", ()), ("skipped", "skipped")),
        **dict.fromkeys(own.get("errored", ()), ("crashed", "it raised an error")),
    }
    found = []
    for name in sorted(reasons.keys() - seen):
        status, detail = reasons[name]
        micro = Micro(
            op=name,
            provider=UNKNOWN,
            resolved=UNKNOWN,
            mode="forward",
            dtype=UNKNOWN,
            case="",
            shape={},
            origin="synthetic",
            producer="pytest-benchmark",
            session="",
            timings=[],
            work=None,
            accuracy=[],
        )
        extra = {"benchmark": name}
        found.append(_sealed(micro, name, about, status=status, detail=detail, extra=extra))
    return found


def _sealed(
    micro: Micro,
    name: str,
    about: Mapping[str, Any],
    *,
    status: str,
    detail: str,
    extra: dict[str, Any],
    wall_s: float = 0.0,
) -> Record:
    code = about["code"]
    return bench.sealed(
        micro,
        run_id=digest({"benchmark": name, "commit": code.commit}),
        version=digest({"commit": code.commit}),
        config={"name": name, "provider": micro.provider},
        status=status,
        status_detail=detail,
        wall_s=wall_s,
        started_utc=about["created_utc"],
        campaign_id="pytest-benchmark",
        gpu=False,
        extra=extra,
        **{k: v for k, v in about.items() if k != "created_utc"},
    )
