"""Times of kernels as records: what to measure, what is there already, one record a call.

What is measured, checked and timed is in ``kernels.bench``. The providers of one workload are timed
in turn, in one session, so that their ratios are those of pairs; a session that lacks one of the
providers asked for is measured again as a whole.
"""

import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from kernels import tuning
from kernels.bench.accuracy import Accuracy as Error
from kernels.bench.measure import Outcome, measure
from kernels.bench.providers import defaults, names, providers
from kernels.bench.roofline import bound_s, peaks, work
from kernels.bench.workload import MODES, Workload, ops, workloads
from suite import provenance
from suite.record import (
    ATTRIBUTIONS,
    SESSIONS,
    AbBlock,
    Accuracy,
    Attribution,
    Check,
    Clock,
    CodeInfo,
    ConfigInfo,
    Cost,
    KernelsInfo,
    Micro,
    Placement,
    Record,
    TaskInfo,
    Timing,
    digest,
    seal,
    utc,
)
from suite.record import Work as WorkInfo
from suite.store import Store
from suite.task import unknown

KERNELS = Path(__file__).parent.parent / "kernels"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SHARED = (
    "autocast.py",
    "checks.py",
    "dispatch.py",
    "language.py",
    "register.py",
    "tuning.py",
    "bench/providers.py",
    "bench/timing.py",
)
# What would be measured again with the same end.
SETTLED = frozenset({"ok", "invalid", "skipped", "oom", "timeout"})
DEFAULT_MODES = ("forward", "full")
ROUNDS = 20
# Of matrix products in a call. A processor does some 50 GFLOP a second; a float64 reference, a
# gradient and 20 rounds of several providers have to come out within minutes.
MOST_GFLOP_ON_CPU = 5.0

Measure = Callable[[Workload, Sequence[str], int], list[Outcome]]


@dataclass(frozen=True)
class Session:
    """One workload and the providers that are timed in turn."""

    workload: Workload
    providers: tuple[str, ...]

    def __str__(self) -> str:
        w = self.workload
        return f"{w.op} {w.name!r} {str(w.dtype).removeprefix('torch.')} {w.mode}"


@dataclass(frozen=True)
class Request:
    """What to measure; everything when nothing is named.

    Attributes:
        ops: names of ops (``dnc.step``), folders (``dnc``) or globs.
        cases: names of cases, or globs.
        providers: names of providers; those of the device when empty.
        device: a torch device.
        dtype: of all tensors; each case's own when empty.
        modes: some of forward, backward and full.
    """

    ops: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = ""
    modes: tuple[str, ...] = DEFAULT_MODES

    def sessions(self) -> list[Session]:
        """The workloads with their providers.

        Raises:
            ValueError: a name of nothing, or names that no case has together.
        """
        self._check()
        found = []
        for w in workloads(self.device, DTYPES.get(self.dtype), self.modes):
            if _selects(self.ops, w.op, w.folder) and _selects(self.cases, w.case.name, w.name):
                chosen = self._providers_of(w)
                found += [Session(w, chosen)] if chosen else []
        if not found:
            raise ValueError("no case of these ops has such a name and such a provider")
        return found

    def _providers_of(self, w: Workload) -> tuple[str, ...]:
        known = providers(w.op)
        if not self.providers:
            return tuple(defaults(w.op, self.device))
        return tuple(name for name in known if name in self.providers)

    def _check(self) -> None:
        known = ops()
        for name in self.ops:
            if not any(_selects((name,), op, op.partition(".")[0]) for op in known):
                raise unknown("op", name, known)
        cases = {c for w in workloads(self.device) for c in (w.case.name, w.name)}
        for name in self.cases:
            if not any(fnmatch.fnmatchcase(case, name) for case in cases):
                raise unknown("case", name, cases)
        for kind, given, allowed in (
            ("provider", self.providers, names()),
            ("mode", self.modes, MODES),
            ("dtype", [self.dtype] if self.dtype else [], DTYPES),
        ):
            for name in given:
                if name not in allowed:
                    raise unknown(kind, name, allowed)


def _selects(patterns: Iterable[str], *values: str) -> bool:
    patterns = tuple(patterns)
    return not patterns or any(fnmatch.fnmatchcase(v, p) for v in values for p in patterns)


def run(
    sessions: Sequence[Session],
    store: Store,
    *,
    rounds: int = ROUNDS,
    fresh: bool = False,
    most_gflop: float | None = None,
    measured: Measure = measure,
    told: Callable[[Session, list[Record]], None] = lambda session, records: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Measure sessions and store a record of each provider, session by session.

    It ends with a session after which this process can compute nothing more on the GPU; that one
    is not measured again.

    Args:
        sessions: what to measure.
        store: where records go.
        rounds: samples of each call.
        fresh: measure also what the store holds.
        most_gflop: record calls with more GFLOP of matrix products as skipped; no limit when None.
        measured: checks and times the providers of a workload.
        told: called after each session with its records: none where the store holds them.
        stop: whether to stop before the next session.

    Returns:
        The new records.

    Raises:
        StoreError: the store cannot be written.
        KeyboardInterrupt: what was measured is stored.
    """
    made: list[Record] = []
    campaign, code = f"bench-{uuid.uuid4().hex[:12]}", provenance.code()
    settled = {} if fresh else _settled(store, sessions)
    for session in sessions:
        if stop():
            break
        if _is_settled(session, settled, most_gflop):
            told(session, [])
            continue
        records = list(_measured(session, rounds, most_gflop, measured, campaign, code))
        for record in records:
            store.put(record)
        made += records
        told(session, records)
        if any(record.extra.get("reason") == LOST for record in records):
            break
    return made


def unsettled(
    sessions: Iterable[Session], store: Store, most_gflop: float | None = None
) -> list[Session]:
    """Those sessions that a store lacks."""
    sessions = list(sessions)
    settled = _settled(store, sessions)
    return [s for s in sessions if not _is_settled(s, settled, most_gflop)]


def _is_settled(
    session: Session, settled: dict[str, dict[str, str]], most_gflop: float | None
) -> bool:
    """Whether one session of the store has all providers."""
    ids = [cell_id(session.workload, name) for name in session.providers]
    together = set.intersection(*(set(settled.get(i, {})) for i in ids)) if ids else set()
    # What was too large for an earlier limit may not be for this one.
    too_large = _too_large(session.workload, most_gflop)
    return any(too_large or all(settled[i][s] != TOO_LARGE for i in ids) for s in together)


# Reasons that records have in ``extra``.
TOO_LARGE, LOST = "too large", "the GPU was lost"


def _settled(store: Store, sessions: Iterable[Session]) -> dict[str, dict[str, str]]:
    """Cell -> session -> its status, of what the store holds."""
    found: dict[str, dict[str, str]] = {}
    for op, device in sorted({(s.workload.op, s.workload.device) for s in sessions}):
        for record in store.scan(f"{task_id(op)}/*.json"):
            if record.config.resolved.get("device") != device or not _as_tuned(record):
                continue
            reason = record.extra.get("reason")
            if record.micro and (record.status in SETTLED or reason == LOST):
                large = record.status == "skipped" and reason == TOO_LARGE
                status = TOO_LARGE if large else record.status
                found.setdefault(record.run_id, {})[record.micro.session] = status
    return found


def _too_large(w: Workload, most_gflop: float | None) -> bool:
    if most_gflop is None:
        return False
    whole = work(replace(w, ragged=False))
    return whole is not None and whole.flops > most_gflop * 1e9


def _measured(
    session: Session,
    rounds: int,
    most_gflop: float | None,
    measured: Measure,
    campaign: str,
    code: CodeInfo,
) -> Iterator[Record]:
    started, begin = utc(), perf_counter()
    node, extra = provenance.node(), {}
    if _too_large(session.workload, most_gflop):
        detail = f"more than {most_gflop:g} GFLOP a call; --most-gflop sets the limit"
        outcomes = [Outcome(p, "skipped", detail) for p in session.providers]
        extra = {"reason": TOO_LARGE}
    else:
        outcomes = measured(session.workload, session.providers, rounds)
        extra = {"reason": LOST} if any(outcome.lost for outcome in outcomes) else {}
    wall = perf_counter() - begin
    node = node.model_copy(update={"load1_end": provenance.load1()})
    session_id = uuid.uuid4().hex[:16]
    for outcome in outcomes:
        yield _record(
            session.workload,
            outcome,
            session_id=session_id,
            wall_s=wall,
            campaign_id=campaign,
            started_utc=started,
            nodes=[node],
            code=code,
            extra=extra,
        )


def task_id(op: str) -> str:
    """The id under which a store keeps the records of an op."""
    # A foreign benchmark's name may hold anything; a record stands in one folder.
    return "kernels." + re.sub(r"[^\w.-]+", "-", op)


def version(op: str, device: str | None = None) -> str:
    """SHA-256 of the code behind a number: the op's, what kernels share, and what times them.

    Args:
        op: its name.
        device: one whose launch parameters count too; they do not change what is computed.
    """
    folders = _folders(op.partition(".")[0])
    files = [KERNELS / name for name in SHARED]
    files += [p for f in folders for p in (KERNELS / f).glob("*.py") if p.name != "cases.py"]
    if device is not None:
        name = tuning.device_file(device_name(device))
        files += [KERNELS / "configs" / folder / name for folder in folders]
    content = hashlib.sha256()
    for path in sorted(p for p in files if p.exists()):
        content.update(f"{path.relative_to(KERNELS)}\n".encode() + path.read_bytes())
    return content.hexdigest()


def launches(asked: Iterable[tuning.Asked], device: str) -> dict[str, Any]:
    """What launchers ask for, and the parameters that they get on a device as it is tuned now."""
    found = {}
    for a in asked:
        # Of a tensor only type and place are looked at.
        like: Any = SimpleNamespace(dtype=DTYPES[a.dtype], device=torch.device(device))
        gets = dict(tuning.tuned(a.kernel, like, a.default, (), **a.sizes))
        found[a.kernel] = dataclasses.asdict(a) | {"gets": gets}
    return found


def _as_tuned(record: Record) -> bool:
    """Whether launchers would get the parameters now with which a record was measured."""
    kept = record.kernels.config
    asked = [tuning.Asked(**{k: v for k, v in a.items() if k != "gets"}) for a in kept.values()]
    return launches(asked, record.config.resolved["device"]) == kept


def _folders(folder: str) -> list[str]:
    """An op's folder, and those of ops that it takes kernels from."""
    source = "".join(p.read_text() for p in (KERNELS / folder).glob("*.py"))
    named = {folder, *re.findall(r"^from kernels\.(\w+)", source, re.MULTILINE)}
    return sorted(
        name for name in named if (KERNELS / name / "cases.py").exists() or name == folder
    )


def device_name(device: str) -> str:
    """The name of what computes: a GPU's, or the processor's with its cores and threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    node = provenance.node()
    return f"{node.cpu_model}, {node.cpu_cores} cores, {torch.get_num_threads()} threads"


def cell_id(w: Workload, provider: str) -> str:
    """Names what is measured: the same call, of the same code, on the same kind of machine."""
    env = provenance.env()
    return digest(
        {
            **_config(w, provider),
            "version": version(w.op),
            "device_name": device_name(w.device),
            "torch": env.torch.version,
            "triton": (env.triton or {}).get("version"),
        }
    )


def _config(w: Workload, provider: str) -> dict[str, Any]:
    return {
        "op": w.op,
        "case": w.name,
        "shape": w.shape,
        "dtype": str(w.dtype).removeprefix("torch."),
        "mode": w.mode,
        "provider": provider,
        "device": w.device,
        "seed": w.seed,
    }


def _record(
    w: Workload,
    outcome: Outcome,
    *,
    session_id: str,
    wall_s: float,
    campaign_id: str,
    started_utc: str,
    **envelope: Any,
) -> Record:
    """The record of one provider."""
    micro = Micro(
        op=w.op,
        provider=outcome.provider,
        resolved=_resolved(w, outcome),
        mode=w.mode,  # type: ignore[arg-type]
        dtype=str(w.dtype).removeprefix("torch."),
        case=w.name,
        shape=w.shape,
        origin="synthetic",
        producer="suite",
        session=session_id,
        timings=[Timing(**vars(t)) for t in outcome.timed.timings],
        missing=outcome.timed.missing,
        work=_work(w, outcome),
        accuracy=[accuracy_of(a) for a in outcome.accuracy],
        peak_mem_bytes=outcome.peak_bytes,
    )
    return sealed(
        micro,
        run_id=cell_id(w, outcome.provider),
        version=version(w.op),
        config=_config(w, outcome.provider),
        status=outcome.status,
        status_detail=outcome.detail,
        wall_s=wall_s,
        campaign_id=campaign_id,
        started_utc=started_utc,
        gpu=w.device.startswith("cuda"),
        dispatched=outcome.dispatched,
        launched=launches(outcome.asked, w.device),
        **envelope,
    )


def _resolved(w: Workload, outcome: Outcome) -> str:
    """The implementation that ran; of a public package its version, of others their name."""
    package = providers(w.op)[outcome.provider].package
    if package:
        return f"{package} {importlib.metadata.version(package)}"
    return next(iter(outcome.dispatched.get(w.op, {})), outcome.provider)


def accuracy_of(found: Error) -> Accuracy:
    """An error as records have it."""
    return Accuracy(
        of=found.of,  # type: ignore[arg-type]
        reference=found.reference,
        err_rel=found.error,
        ratio_vs_eager=found.ratio,
        limit=found.limit,
        ok=found.ok,
        shape=found.shape,
    )


def _work(w: Workload, outcome: Outcome) -> WorkInfo | None:
    """What has to be done, and the share of the peak that a call from a cold cache reaches."""
    done = work(w) if outcome.status == "ok" else None
    if done is None:
        return None
    limits = peaks(device_name(w.device))
    if limits is None:
        return WorkInfo(flops=done.flops, bytes=done.bytes)
    least = bound_s(done, w.dtype, limits)
    # The bound has everything come from memory, so only times from a cold cache compare with it.
    cold = [median(t.samples_s) for t in outcome.timed.timings if t.cache == "cold"]
    return WorkInfo(
        flops=done.flops,
        bytes=done.bytes,
        bound_s=least,
        roofline=least / cold[0] if cold else None,
        peaks_source=limits.source,
    )


def sealed(
    part: Micro | Check | AbBlock | Attribution,
    *,
    run_id: str,
    version: str,
    config: dict[str, Any],
    status: str,
    wall_s: float,
    started_utc: str,
    gpu: bool,
    dispatched: dict[str, dict[str, int]] | None = None,
    launched: dict[str, Any] | None = None,
    **envelope: Any,
) -> Record:
    """A record of something that is no task: what a task would say of itself is left empty.

    Args:
        part: what was timed, checked or compared.
        run_id: the same for the same thing measured again.
        version: of the code.
        config: what was asked for.
        status: as every record has it.
        wall_s: of the whole session.
        started_utc: when the session began.
        gpu: whether a GPU computed.
        dispatched: which implementations ran.
        launched: with which parameters their kernels were launched, as ``launches`` has it.
        envelope: the fields that go into the record as they are.

    Raises:
        pydantic.ValidationError: content that the schema does not allow.
    """
    micro = part if isinstance(part, Micro) else None
    kinds = {Micro: "micro", Check: "check", AbBlock: "ab_block", Attribution: "attribution"}
    kind = kinds[type(part)]
    name = task_id(micro.op if micro else str(config["name"]))
    if kind == "ab_block":
        name = SESSIONS
    elif kind == "attribution":
        name = ATTRIBUTIONS + str(config["name"])
    ended = utc()
    cores = envelope["nodes"][0].cpu_cores
    # For minutes the load average remembers our own processes, which compile for a GPU before it
    # is timed, and have ended then.
    load = provenance.running() if gpu else envelope["nodes"][0].load1_start
    content: dict[str, Any] = {
        "kind": kind,
        "status": status,
        "run_id": run_id,
        "attempt": 1,
        "created_utc": started_utc,
        "started_utc": started_utc,
        "ended_utc": ended,
        "task": TaskInfo(
            id=name,
            version=version,
            spec_sha256=run_id,
            profile="bench",
            chapter=0,
            section="",
            target=None,
        ),
        "config": ConfigInfo(resolved=config, sha256=digest(config)),
        "variant": "",
        "impl": micro.provider if micro else "",
        "seed": 0,
        "determinism": "seeded",
        "data": [],
        "code": provenance.code(),
        "env": provenance.env(),
        "placement": Placement(
            scheduler="inline",
            workers=1,
            cpus=cores,
            gpus=float(gpu),
            colocated_runs=0,
            # The calls themselves keep all cores busy: a load beyond that is somebody else's.
            contended=(load or 0) > 1.5 * cores,
        ),
        "kernels": KernelsInfo(
            requested=micro.provider if micro else "",
            dispatched=dispatched or {},
            config=launched or {},
        ),
        "clock": Clock(
            wall_s=wall_s,
            setup_s=0.0,
            train_s=wall_s,
            eval_s=0.0,
            checkpoint_s=0.0,
            recovery_s=0.0,
        ),
        "cost": Cost(energy_method="not measured"),
        kind: part,
    }
    return seal(**content | envelope)
