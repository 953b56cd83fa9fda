"""Records of checks: what passed on this device, and where the next call goes on."""

from typing import Any

from suite.gpu.stage import Run

# Of what a record keeps of the tests that failed.
MOST_OUTPUT = 100_000


def put(
    this: Run,
    name: str,
    check: Any,
    wall_s: float,
    extra: dict[str, Any] | None = None,
    run_id: str | None = None,
) -> int:
    """Record some checks; returns how many of them failed."""
    from suite import bench, provenance
    from suite.record import utc

    failed = [*check.outcomes.values()].count("failed")
    version = identity(this, name)
    record = bench.sealed(
        check,
        run_id=run_id or version,
        version=version,
        config={"name": name},
        status="invalid" if failed else "ok",
        status_detail=f"{failed} failed" if failed else "",
        wall_s=wall_s,
        started_utc=utc(),
        campaign_id="gpu",
        gpu=True,
        nodes=[provenance.node()],
        extra=extra or {},
    )
    this.store.put(record)
    this.records.append(record)
    return failed


def earlier(this: Run, name: str) -> tuple[dict[str, Any], int]:
    """What became of some checks, of this code on this device, and how many are left.

    It is what their newest record says; where none has begun, 1 is left.
    """
    from suite import bench

    run_id = identity(this, name)
    records = this.store.scan(f"{bench.task_id(name)}/*.json")
    found = [(r.ended_utc, r.record_id, r.check) for r in records if r.run_id == run_id and r.check]
    if not found:
        return {}, 1
    *_, check = max(found, key=lambda f: f[:2])
    return dict(check.outcomes), check.left


def identity(this: Run, name: str) -> str:
    """Names some checks of this code on this device."""
    from suite import bench
    from suite.record import digest

    versions = {op: bench.version(op) for op in bench.ops()}
    return digest({"check": name, "versions": versions, **machine(this.device)})


def machine(device: str) -> dict[str, str | bool | None]:
    """What else decides what a compiled kernel does, beside its code."""
    from suite import bench, provenance

    env = provenance.env()
    return {
        "device": bench.device_name(device),
        "torch": env.torch.version,
        "triton": (env.triton or {}).get("version"),
    }


def lost(this: Run) -> bool:
    """Whether this process can compute nothing more on the GPU, which is said."""
    from kernels.bench.measure import usable

    if usable(this.device):
        return False
    this.say("  an error took the GPU from this process; the next call goes on after it")
    return True


def joined(why: dict[str, str]) -> str:
    """Why each of some checks failed, as a record keeps it."""
    return "\n\n".join(f"{name}\n{why[name]}" for name in sorted(why))[:MOST_OUTPUT]
