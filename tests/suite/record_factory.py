"""Records as a run would have made them, without running anything."""

import hashlib
from typing import Any

from suite.record import Record, digest, seal

CPU = "Intel(R) Xeon(R) CPU @ 2.60GHz"


def make_record(
    task_id: str = "ch99.example",
    *,
    variant: str = "fixed",
    seed: int = 0,
    value: float | None = 0.97,
    status: str = "ok",
    metric: str = "test_accuracy",
    target: dict[str, Any] | str | None = "default",
    profile: str = "laptop",
    impl: str = "torch",
    version: str = "v1",
    minute: int = 0,
    attempt: int = 1,
    crossing_step: int | None = None,
    curve: dict[str, list[float | None]] | None = None,
    final: dict[str, float] | None = None,
    train_s: float = 12.5,
    data: list[dict[str, Any]] | None = None,
    dirty: bool | None = False,
    gpus: int = 0,
    claims: list[dict[str, Any]] | None = None,
    title: str = "An example",
    extra: dict[str, Any] | None = None,
    **overrides: Any,
) -> Record:
    """A sealed training record.

    Args:
        target: a dict that changes the default target (accuracy of at least 0.95), or None.
        minute: when it ended; later records are newer.
        final: further metrics of the last row.
        claims: as ``claim`` makes them.
        overrides: any field of the record, as it should be in the end.
    """
    number = int(task_id[2:4])
    goal = {"metric": metric, "op": "max", "value": 0.95, "tolerance": 0.0, "source": "the book"}
    if target != "default":
        goal = goal | target if isinstance(target, dict) else None
    resolved = {"data": "digits", "variant": variant, "profile": profile}
    spec = digest(
        {"t": task_id, "v": version, "p": profile, "a": variant, "i": impl, "s": seed, "g": gpus}
    )
    rows = curve or {"step": [10.0, 20.0], metric: [None if value is None else value / 2, value]}
    shown = {
        **({} if value is None else {metric: value, "step": rows["step"][-1]}),
        **(final or {}),
    }
    ended = f"2026-11-23T{10 + minute // 60:02d}:{minute % 60:02d}:30.000Z"
    content: dict[str, Any] = {
        "kind": "train",
        "status": status,
        "campaign_id": "c1",
        "run_id": spec,
        "attempt": attempt,
        "created_utc": "2026-11-23T10:00:00.000Z",
        "started_utc": "2026-11-23T10:00:01.000Z",
        "ended_utc": ended,
        "task": {
            "id": task_id,
            "version": hashlib.sha256(version.encode()).hexdigest(),
            "spec_sha256": spec,
            "profile": profile,
            "chapter": number,
            "section": f"Section of {task_id}",
            "target": goal,
            "timed_to": goal if goal and goal["op"] != "near" else None,
        },
        "config": {"resolved": resolved, "sha256": digest(resolved)},
        "variant": variant,
        "impl": impl,
        "seed": seed,
        "determinism": "bitwise",
        "data": data or [data_info()],
        "code": {
            "commit": "1a2b3c4d5e6f708192a3b4c5d6e7f80918273645",
            "dirty": dirty,
            "diff_sha256": "d" * 64 if dirty else None,
            "argv": ["suite", "run", task_id, "--profile", profile],
        },
        "env": {
            "python": "3.11.9",
            "packages": {"numpy": "2.3.1", "torch": "2.13.0"},
            "torch": {
                "version": "2.13.0+cpu",
                "cuda": None,
                "cudnn": None,
                "num_threads": 1,
                "tf32": False,
                "matmul_precision": "highest",
                "deterministic": False,
            },
            "triton": None,
            "ray": None,
            "env_vars": {},
        },
        "nodes": [node(gpus)],
        "placement": {
            "scheduler": "process",
            "workers": 2,
            "cpus": 1,
            "gpus": float(gpus),
            "colocated_runs": 0,
            "contended": False,
        },
        "kernels": {"requested": impl},
        "clock": {
            "wall_s": train_s + 2.0,
            "setup_s": 1.5,
            "train_s": train_s,
            "eval_s": 0.5,
            "checkpoint_s": 0.0,
            "recovery_s": 0.0,
        },
        "cost": {"energy_method": "not measured on cpu"},
        "train": {
            "reached": None if value is None else value >= 0.95,
            "censored": crossing_step is None,
            "steps": int(rows["step"][-1] or 0),
            "samples": None,
            "train_to_target_s": train_s / 2 if crossing_step else None,
            "crossing": crossing_step
            and {
                "rule": "two_consecutive",
                "lo_step": crossing_step - 10,
                "hi_step": crossing_step,
            },
            "final": {name: {"value": v, "n": 2} for name, v in shown.items()},
            "best": value,
            "curve": rows,
            "step_time_s": None,
            "params_sha256": "0" * 64,
            "n_params": 203_530,
            "peak_mem_bytes": {"cpu": 512 * 2**20, "gpu": 2**30 if gpus else None},
        },
        "extra": {
            "title": title,
            "default_variant": "fixed",
            "headline": True,
            "claims": claims or [],
            "overrides": {},
            **(extra or {}),
        },
    }
    return seal(**{**content, **overrides})


def data_info(name: str = "digits", kind: str = "real", sha256: str = "a" * 64) -> dict[str, Any]:
    """One data set that a run read."""
    return {
        "name": name,
        "kind": kind,
        "sha256": sha256,
        "n_items": 1797,
        "splits": {"train": 1437, "test": 360},
        "licence": "CC BY 4.0",
    }


def node(gpus: int = 0, cpu_model: str = CPU) -> dict[str, Any]:
    """One machine."""
    card = {
        "name": "NVIDIA H200",
        "mem_bytes": 141 * 2**30,
        "driver": "580.1",
        "power_limit_w": 700.0,
    }
    return {
        "os": "Linux x86_64",
        "cpu_model": cpu_model,
        "cpu_cores": 2,
        "mem_bytes": 24 * 2**30,
        "gpus": [card] * gpus,
        "load1_start": 0.1,
        "load1_end": 0.9,
    }


def claim(**changes: Any) -> dict[str, Any]:
    """A claim as a record carries it."""
    return {
        "text": "dropout generalises better than no dropout",
        "metric": "test_accuracy",
        "left": "dropout",
        "right": "fixed",
        "mode": "max",
        "source": "the book, section 5.3",
        "margin": 0.0,
        "profiles": ["laptop", "paper"],
        "note": "",
        **changes,
    }
