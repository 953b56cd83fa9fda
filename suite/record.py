"""The record of one attempt at a run: schema ``fdl.result/1``.

A record is one immutable JSON object named by the hash of its content. The unit is in every
number's name, times are UTC in RFC 3339, unknown keys are rejected outside ``extra``, and NaN
or infinity never stand for "no value": that is ``null`` plus a status.
"""

import hashlib
import json
import statistics
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

SCHEMA = "fdl.result/1"

Kind = Literal["train", "micro", "check", "compile", "fault", "ab_block", "attribution"]
Status = Literal[
    "ok",
    "target_missed",
    "timeout",
    "oom",
    "nan",
    "crashed",
    "killed",
    "stopped",
    "infra_error",
    "skipped",
    "invalid",
]

# What the run itself decided: running the same spec again would end the same way.
FINISHED = frozenset({"ok", "target_missed", "nan"})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TargetInfo(_Part):
    """The target as it stood when the run was made."""

    metric: str
    op: Literal["max", "min", "near"]
    value: float
    tolerance: float
    source: str


class TaskInfo(_Part):
    """Which experiment, in which version.

    ``timed_to`` is the target whose crossing is timed: that of the variant, or where it has none
    that of the variant it is compared with.
    """

    id: str
    version: str
    spec_sha256: str
    profile: str
    chapter: int
    section: str
    target: TargetInfo | None
    timed_to: TargetInfo | None = None
    budget: dict[str, float] = Field(default_factory=dict)
    eval_grid: str = "fixed in steps by the task"


class ConfigInfo(_Part):
    """Every field of the config after profile, variant, impl and overrides."""

    resolved: dict[str, Any]
    sha256: str


class DataInfo(_Part):
    """One data set that the run read. ``sha256`` is over the decoded values."""

    name: str
    kind: Literal["real", "standin", "synthetic"]
    sha256: str | None
    n_items: int | None
    splits: dict[str, int]
    licence: str
    notes: str = ""


class CodeInfo(_Part):
    """The commit that ran. ``diff_sha256`` is over uncommitted changes, if any."""

    commit: str | None
    dirty: bool | None
    diff_sha256: str | None
    argv: list[str]


class TorchInfo(_Part):
    """PyTorch's version and the switches that change its numbers or speed."""

    version: str
    cuda: str | None
    cudnn: int | None
    num_threads: int
    tf32: bool
    matmul_precision: str
    deterministic: bool


class EnvInfo(_Part):
    """Versions and environment variables that matter to the numbers."""

    python: str
    packages: dict[str, str]
    torch: TorchInfo
    triton: dict[str, str | bool] | None
    ray: str | None
    env_vars: dict[str, str]


class GpuInfo(_Part):
    """One GPU."""

    name: str
    mem_bytes: int
    driver: str | None
    power_limit_w: float | None


class NodeInfo(_Part):
    """One machine."""

    os: str
    cpu_model: str
    cpu_cores: int
    mem_bytes: int
    gpus: list[GpuInfo]
    load1_start: float | None
    load1_end: float | None


class Placement(_Part):
    """Where the run sat, and with how many neighbours it shared the machine.

    ``contended`` says that others took of its time: runs beside it, or where a kernel is timed more
    than one and a half threads a core: on a processor by the load average at the session's begin,
    on a GPU by the threads that compute at its end.
    ``exclusive`` is a promise of the scheduler: the run had all cores of ``node`` to itself.
    """

    scheduler: Literal["inline", "process", "ray"]
    workers: int
    cpus: int
    gpus: float
    colocated_runs: int
    contended: bool
    exclusive: bool = False
    node: str | None = None


class KernelsInfo(_Part):
    """Which implementation was asked for, and which calls actually ran.

    ``config`` is, for each kernel that was timed, what its launcher asked for and which parameters
    it got.
    """

    requested: str
    dispatched: dict[str, dict[str, int]] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Clock(_Part):
    """Where the time went. The parts sum to ``wall_s`` within 1 %, or the record is invalid."""

    wall_s: float
    setup_s: float
    train_s: float
    eval_s: float
    checkpoint_s: float
    recovery_s: float
    compile_s: float | None = None

    @property
    def parts_s(self) -> float:
        """The sum of the parts."""
        return self.setup_s + self.train_s + self.eval_s + self.checkpoint_s + self.recovery_s


class Cost(_Part):
    """What the run used up; null where this machine cannot measure it, and why.

    ``energy_j`` and ``usd`` are of the whole run, ``energy_to_target_j`` of its training until the
    target was crossed.
    """

    energy_j: float | None = None
    energy_method: str
    energy_to_target_j: float | None = None
    usd: float | None = None
    price_source: str | None = None


class Fault(_Part):
    """One fault that hit the run."""

    t_s: float
    kind: str
    injected: bool
    detected_s: float | None
    recovered_s: float | None
    lost_steps: int | None


class FaultInfo(_Part):
    """What a fault on purpose cost, against the same run left alone.

    ``recovery_s`` is the time from the strike to the next row of the run, ``lost_steps`` what the
    run had to do again, ``goodput`` the wall time of the run alone over that of the struck run.
    ``same_params`` says whether both ended with the same parameters, bit for bit.
    """

    on: str
    at: float
    step: int
    of_steps: int
    resumed_step: int
    lost_steps: int
    detected_s: float | None
    recovery_s: float
    clean_wall_s: float
    wall_s: float
    goodput: float
    clean_to_target_s: float | None
    to_target_s: float | None
    same_params: bool | None

    @property
    def overhead_to_target_s(self) -> float | None:
        """How much later the target was crossed; None where it was not crossed."""
        if self.to_target_s is None or self.clean_to_target_s is None:
            return None
        return self.to_target_s - self.clean_to_target_s


class Artifact(_Part):
    """A file beside the record, named by its content."""

    name: str
    path: str
    sha256: str
    bytes: int


class Crossing(_Part):
    """When the target was crossed: between the last miss and the first hit."""

    rule: Literal["two_consecutive", "last"]
    lo_step: int
    hi_step: int


class StepTime(_Part):
    """Time per step over the intervals between two yields."""

    median: float
    p10: float
    p90: float
    n: int


class Final(_Part):
    """A metric of the last row; ``n`` is the number of rows that carried it."""

    value: float
    n: int


class Train(_Part):
    """What a training run came to. ``curve`` holds one column per metric, null where absent."""

    reached: bool | None
    censored: bool
    steps: int
    samples: int | None
    train_to_target_s: float | None
    crossing: Crossing | None
    final: dict[str, Final]
    best: float | None
    curve: dict[str, list[float | None]]
    step_time_s: StepTime | None
    params_sha256: str | None
    n_params: int | None
    peak_mem_bytes: dict[str, int | None]


class Timing(_Part):
    """Times of one call, in the order in which they were measured.

    ``wall`` and ``cpu_time`` are means over as many calls as make a sample long enough to time;
    ``cuda_events`` is a call between two events, ``graph_replay`` a call within a CUDA graph.
    """

    timer: Literal["wall", "cpu_time", "cuda_events", "graph_replay"]
    cache: Literal["warm", "cold"]
    samples_s: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)


class Work(_Part):
    """What a call has to do at least, and the share of the device's peak that it reached."""

    flops: int
    bytes: int
    bound_s: float | None = None
    roofline: float | None = None
    peaks_source: str = ""


class Accuracy(_Part):
    """How far values or gradients are off, in the relative Frobenius norm.

    ``err_rel`` is null where something is not finite. ``shape`` is what was compared.
    """

    of: Literal["values", "gradients"]
    reference: str
    err_rel: float | None
    ratio_vs_eager: float | None
    limit: float
    ok: bool
    shape: dict[str, Any] = Field(default_factory=dict)


class Micro(_Part):
    """The speed of one call of an op.

    Attributes:
        op: folder and function of the op, or the full name of a foreign benchmark.
        provider: what computed it: ``reference``, ``torch``, ``compile``, ``triton``, or the name
            of a vendor's operator or a public package.
        resolved: the implementation that ran, as the dispatch counted it; the provider's own name
            where that is none of ours.
        session: calls with the same one were timed in turn: their i-th samples make pairs.
        missing: timer -> why it could not be used.
    """

    op: str
    provider: str
    resolved: str
    mode: Literal["forward", "backward", "full"]
    dtype: str
    case: str
    shape: dict[str, Any]
    origin: Literal["captured", "synthetic"]
    producer: Literal["suite", "pytest-benchmark", "foreign"]
    session: str
    timings: list[Timing]
    missing: dict[str, str] = Field(default_factory=dict)
    work: Work | None
    accuracy: list[Accuracy]
    peak_mem_bytes: int | None = None


class Check(_Part):
    """The outcome of a list of checks, such as the tests on a GPU.

    Attributes:
        name: which list.
        outcomes: check -> ``passed``, ``failed`` or ``skipped``.
        left: how many had no time.
        output: the end of what was printed, where something failed.
    """

    name: str
    outcomes: dict[str, Literal["passed", "failed", "skipped"]]
    left: int
    output: str = ""


# The kinds of records that are of something that is no training run.
PARTS = ("micro", "check", "fault", "ab_block", "attribution")
# Where a store keeps comparisons of revisions, and those of implementations inside a task.
SESSIONS = "gate.session"
ATTRIBUTIONS = "attribution."


class AbRevision(_Part):
    """One side of a comparison. A dirty one is measured, and cannot be published."""

    name: str
    commit: str
    dirty: bool
    diff_sha256: str | None


class AbArm(_Part):
    """The blocks of one process, in the order in which they were timed: seconds a call.

    Attributes:
        wall_s: of the clock on the wall.
        cpu_s: of all threads of the process.
        gpu_s: between CUDA events; None where no GPU was used.
    """

    wall_s: list[float]
    cpu_s: list[float]
    gpu_s: list[float] | None = None


class AbComparison(_Part):
    """A benchmark in a pair of processes.

    Attributes:
        benchmark: its pytest id.
        control: ``none``; ``aa``, where both sides are the base; ``slowed``, where the candidate
            is the base with every fifth call made twice.
        clock: which times are compared.
        calls: of a block.
        rounds: how often both were timed in turn; each has as many blocks of the arms.
        base_first: who began.
    """

    benchmark: str
    control: Literal["none", "aa", "slowed"]
    clock: Literal["wall", "cpu", "gpu"]
    calls: int
    rounds: int
    base_first: bool
    base: AbArm
    cand: AbArm


class AbBlock(_Part):
    """What one pair of processes gave.

    Attributes:
        session: pairs with the same one are judged together.
        pair: its number, from 1.
        again: whether it was taken for the benchmarks that were disturbed in earlier ones.
        outcomes: benchmark -> why it is in no comparison from here on, and what was said.
    """

    session: str
    pair: int
    again: bool = False
    base: AbRevision
    cand: AbRevision
    comparisons: list[AbComparison]
    outcomes: dict[str, tuple[str, str]]


class OpCall(_Part):
    """Calls of an op that are alike, as a task makes them, timed alone.

    Attributes:
        op: folder and function of the op.
        shape: each argument and its sizes, or its value where it is no tensor, in order.
        dtype: of the first tensor.
        mode: ``full`` where the task asks for gradients, else ``forward``.
        gradients: the arguments that it asks them for.
        calls: how many the task made in ``Attribution.observed_steps``.
        rounds: how often all were timed in turn; each has as many blocks of the arms.
        clock: which times are compared.
        times: implementation -> seconds a call; none of one that is off by more than allowed.
        accuracy: implementation -> how far it is off.
        missing: implementation -> why it has no times.
    """

    op: str
    shape: list[tuple[str, str]]
    dtype: str
    mode: Literal["forward", "full"]
    gradients: list[str]
    calls: int
    rounds: int
    clock: Literal["wall", "cpu", "gpu"]
    times: dict[str, AbArm]
    accuracy: dict[str, list[Accuracy]]
    missing: dict[str, str] = Field(default_factory=dict)


class InPlace(_Part):
    """How long ops take inside the steps of the baseline.

    Attributes:
        steps: that were watched.
        clock: by which everything here is timed; ``gpu`` is by events on its stream.
        seconds: of the same steps in a process that is not watched.
        watched_s: of those that are.
        forward_s, backward_s: op -> seconds of it.
        calls: op -> how many.
    """

    steps: int
    clock: Literal["wall", "cpu", "gpu"]
    seconds: float
    watched_s: float
    forward_s: dict[str, float]
    backward_s: dict[str, float]
    calls: dict[str, int]


class AttributionArm(_Part):
    """One process of a pair: the task's training, timed between two evaluations.

    Attributes:
        impl: the implementation that the task was run with.
        kept: ops that ran as in the baseline nevertheless.
        dispatched: which implementation of which op ran how often, evaluations included.
        steps: of each timed interval.
        times: seconds a step in each.
        energy_j: joules of each; None where none are counted.
    """

    impl: str
    kept: list[str]
    dispatched: dict[str, dict[str, int]]
    steps: list[int]
    times: AbArm
    energy_j: list[float] | None = None


class Attribution(_Part):
    """What one pair of processes says of the kernels of a task; an arm is one of them.

    Attributes:
        session: pairs with the same one are judged together.
        pair: its number, from 1.
        baseline: the implementation that others are compared with, and the name of its arm.
        ops: the ops that are looked at.
        clock: which times of the arms are compared.
        rounds: how often the arms were timed in turn.
        order: in which a round goes through the arms, and then back.
        arms: name -> what it took; ``control`` is the baseline once more.
        observed_steps: in which the calls were counted.
        untimed: op -> its calls of kinds that were too many to be timed alone.
        calls: the kinds of calls.
        in_place: the ops inside the baseline's steps; None where they could not be timed there.
        outcomes: arm -> why it is not there.
        energy_method: how joules were counted, or why not.
        price_per_hour: of the machine, in USD, as the user gave it.
    """

    session: str
    pair: int
    baseline: str
    ops: list[str]
    clock: Literal["wall", "cpu"]
    rounds: int
    order: list[str]
    arms: dict[str, AttributionArm]
    observed_steps: int
    untimed: dict[str, int]
    calls: list[OpCall]
    in_place: InPlace | None
    outcomes: dict[str, str]
    energy_method: str
    price_per_hour: float | None = None


class Record(_Part):
    """One attempt at one run. Build it with ``seal``, which names it."""

    schema_: Literal["fdl.result/1"] = Field(default="fdl.result/1", alias="schema")
    record_id: str
    kind: Kind
    status: Status
    status_detail: str = ""
    campaign_id: str
    run_id: str
    parent_record_id: str | None = None
    attempt: int = Field(ge=1)
    created_utc: str
    started_utc: str
    ended_utc: str
    task: TaskInfo
    config: ConfigInfo
    variant: str
    impl: str
    seed: int
    determinism: Literal["bitwise", "seeded", "none"]
    data: list[DataInfo]
    code: CodeInfo
    env: EnvInfo
    nodes: list[NodeInfo]
    placement: Placement
    kernels: KernelsInfo
    clock: Clock
    cost: Cost
    faults: list[Fault] = Field(default_factory=list)
    artifacts: list[Artifact] = Field(default_factory=list)
    train: Train | None = None
    micro: Micro | None = None
    check: Check | None = None
    fault: FaultInfo | None = None
    ab_block: AbBlock | None = None
    attribution: Attribution | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _clock_adds_up(self) -> "Record":
        gap = abs(self.clock.parts_s - self.clock.wall_s)
        if self.status != "invalid" and gap > 0.01 * self.clock.wall_s + 1e-3:
            raise ValueError(
                f"clock parts sum to {self.clock.parts_s:.4f} s of {self.clock.wall_s:.4f} s wall"
            )
        return self

    @model_validator(mode="after")
    def _has_its_part(self) -> "Record":
        for kind in PARTS:
            part = getattr(self, kind)
            if (self.kind == kind) != (part is not None):
                raise ValueError(f"a record of kind {kind!r}, and no other, has a part {kind!r}")
        return self

    @model_validator(mode="after")
    def _no_speed_without_accuracy(self) -> "Record":
        micro = self.micro
        if micro is None:
            return self
        if (self.status == "ok") != bool(micro.timings):
            raise ValueError(f"status {self.status!r} with {len(micro.timings)} timings")
        proven = bool(micro.accuracy) and all(a.ok for a in micro.accuracy)
        if micro.timings and not proven and micro.producer != "foreign":
            raise ValueError("a time without a proof that the right thing was computed")
        return self

    @model_serializer(mode="wrap")
    def _without_parts_of_other_kinds(self, dump: SerializerFunctionWrapHandler) -> Any:
        content = dump(self)
        for part in PARTS:
            # A record that was written before these parts existed keeps its bytes and its name.
            if content.get(part) is None:
                content.pop(part, None)
        return content

    @property
    def name(self) -> str:
        """The record's path inside a store."""
        return f"records/{self.task.id}/{self.run_id[:16]}.{self.record_id[:16]}.json"

    @property
    def brief(self) -> str:
        """Of a provider the medians by all clocks, or why there are none."""
        if self.micro is None or not self.micro.timings:
            return f"{self.impl} {self.status} ({self.status_detail})"
        medians = (statistics.median(t.samples_s) for t in self.micro.timings)
        return f"{self.impl} {' / '.join(f'{1e3 * m:.4g}' for m in medians)} ms"

    def to_json(self) -> str:
        """The canonical text of the record."""
        return _canonical(self.model_dump(mode="json", by_alias=True), indent=1)


def _canonical(content: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(
        content, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent
    ) + ("\n" if indent else "")


def utc(when: datetime | None = None) -> str:
    """A moment as records write it, in UTC and to the millisecond; now when None."""
    moment = (when or datetime.now(UTC)).astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of key order and layout."""
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def seal(**content: Any) -> Record:
    """Validate a record's content and name it by its hash.

    Raises:
        pydantic.ValidationError: content that the schema does not allow.
    """
    draft = Record(record_id="0" * 64, **content)
    body = draft.model_dump(mode="json", by_alias=True, exclude={"record_id"})
    return Record.model_validate(body | {"record_id": digest(body)})


def parse(text: str) -> Record:
    """Read a record and check that it is what its name says.

    Raises:
        ValueError: not a record of this schema, or its content was changed after it was sealed.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"not a {SCHEMA} record")
    try:
        record = Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        raise ValueError(f"{where}: {first['msg']}") from error
    if digest({k: v for k, v in content.items() if k != "record_id"}) != record.record_id:
        raise ValueError("content does not match its record_id: it was edited after it was written")
    return record
