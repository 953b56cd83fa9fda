"""Everything that has to be seen on a GPU, in stages that fit a short lease and can be continued.

The state is what the store holds: each stage leaves out what has a record of the same code, device
and versions, and stops when its share of the time is spent; what it leaves, later stages have. It
needs PyTorch, Triton, pydantic, fsspec, NumPy and pytest, and neither Ray nor a command-line
library: ``python -m suite.gpu`` runs without Typer and Rich.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.task import unknown

if TYPE_CHECKING:
    from suite.bench import Session
    from suite.record import Record
    from suite.store import Store

ROOT = Path(__file__).parent.parent
NEEDED = ("torch", "triton", "pydantic", "fsspec", "numpy", "pytest")
DEFAULT_MINUTES, MOST_MINUTES = 8.0, 10.0
# What still runs so long after the budget hangs: no call of the benchmarks takes a second.
GRACE_S = 60.0
UNTRUSTED, INFRASTRUCTURE = 3, 4
ROUNDS = 9
# Of what a record keeps of the tests that failed.
MOST_OUTPUT = 100_000
DEVICE = "cuda"


@dataclass
class Run:
    """One call of the command.

    Attributes:
        store: where records go, and where the state is.
        deadline: when to stop, on ``now``'s clock.
        now: seconds on a clock that never goes back.
        say: prints a line.
        records: what was measured.
        busy: what is under way: named, should it hang.
    """

    store: "Store"
    deadline: float
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = print
    records: "list[Record]" = field(default_factory=list)
    busy: "Session | None" = None

    def until(self, deadline: float) -> Callable[[], bool]:
        """Whether the time of a stage is over."""
        return lambda: self.now() >= min(deadline, self.deadline)


@dataclass(frozen=True)
class Stage:
    """One part of the work.

    Attributes:
        name: what ``--only`` takes.
        about: one line on what it does.
        share: of the time, beside the other stages' shares.
        run: does what is left until a deadline; returns how much is left after it.
    """

    name: str
    about: str
    share: float
    run: Callable[[Run, float], int]


def run(
    store: "Store",
    stages: Sequence[Stage],
    minutes: float = DEFAULT_MINUTES,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> tuple["list[Record]", dict[str, int]]:
    """Run stages in order, each with its share of what is left of the time.

    Args:
        store: where records go.
        stages: what to do.
        minutes: when to stop.
        now: the clock.
        say: prints a line.

    Returns:
        The new records, and for each stage how much is left.
    """
    begin = now()
    this = Run(store, begin + 60 * minutes, now, say)
    left: dict[str, int] = {}
    with _watched(this, 60 * minutes + GRACE_S):
        for i, stage in enumerate(stages):
            shares = sum(s.share for s in stages[i:])
            mine = (this.deadline - now()) * stage.share / shares
            say(f"{stage.name}: {stage.about} (at most {max(0.0, mine):.0f} s)")
            left[stage.name] = stage.run(this, now() + mine)
            say(f"{stage.name}: " + (f"{left[stage.name]} left" if left[stage.name] else "done"))
    return this.records, left


@contextlib.contextmanager
def _watched(this: Run, limit_s: float) -> Iterator[None]:
    """End the process when it hangs: a kernel whose programs wait for ever cannot be stopped."""

    def end() -> None:
        hung = str(this.busy or "what was under way")
        this.say(f"{hung} did not end; the process is stopped, and it is not tried again")
        if this.busy:
            _record_hang(this, this.busy)
        os._exit(INFRASTRUCTURE)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _record_hang(this: Run, session: "Session") -> None:
    from kernels.bench.measure import Outcome
    from suite import bench

    def hung(workload: Any, names: Sequence[str], rounds: int) -> list[Outcome]:
        return [
            Outcome(name, "timeout", "one provider of the session did not end") for name in names
        ]

    bench.run([session], this.store, measured=hung, fresh=True)


def stages() -> list[Stage]:
    """All stages, in their order."""
    return [
        Stage("tests", "the kernels as they are compiled, against float64", 0.3, _tests),
        Stage("smoke", "every variant of every task, for a moment", 0.1, _smoke),
        Stage("tuner", "launch parameters for this device", 0.15, _tuner),
        Stage("table", "every case of every kernel, and vendors' operators", 0.3, _table),
        Stage("lstm", "layers of many sizes, and what a barrier costs", 0.05, _lstm),
        Stage("racecheck", "the kernels whose programs wait for each other", 0.05, _racecheck),
        Stage("paper", "runs of tasks at the paper's size", 0.1, _paper),
        Stage("compiled", "every case again, with torch.compile too", 0.05, _compiled),
    ]


def _tests(this: Run, deadline: float) -> int:
    """Run the tests that have not passed yet; a record holds the outcome of each."""
    from suite.record import Check

    outcomes: dict[str, Any] = dict(_earlier(this, "gpu_tests"))
    if outcomes and not _left_of(this, "gpu_tests"):
        return 0
    begin = this.now()
    seconds = min(deadline, this.deadline) - begin
    if seconds <= 0:
        return _left_of(this, "gpu_tests") or 1
    tests = pytest_run(sorted(outcomes), seconds)
    outcomes |= tests.outcomes
    if crowded := [name for name, why in tests.why.items() if "OutOfMemoryError" in why]:
        # Tests of several processes share the memory; these get all of it.
        seconds = min(deadline, this.deadline) - this.now()
        tests = tests.again(pytest_run([], seconds, crowded, at_once=1))
        outcomes |= tests.outcomes
    for name in sorted(tests.why):
        this.say(f"  {name}: {tests.why[name].strip().splitlines()[-1:]}")
    output = _joined(tests.why)
    check = Check(name="tests/gpu", outcomes=outcomes, left=tests.left, output=output)
    failed = _put_check(this, "gpu_tests", check, this.now() - begin)
    this.say(f"tests: {len(tests.outcomes)} run, {failed} failed in all")
    return tests.left


@dataclass(frozen=True)
class Tests:
    """What became of tests.

    Attributes:
        outcomes: test -> passed, failed or skipped, of those that ran.
        left: how many did not.
        why: test -> the end of its traceback, of those that failed.
    """

    outcomes: dict[str, str]
    left: int
    why: dict[str, str]

    def again(self, some: "Tests") -> "Tests":
        """The same, with some of them run again."""
        why = {name: text for name, text in self.why.items() if name not in some.outcomes}
        return Tests(self.outcomes | some.outcomes, self.left, why | some.why)


def pytest_run(
    done: Sequence[str],
    seconds: float,
    which: Sequence[str] = ("tests/gpu",),
    at_once: int | None = None,
) -> Tests:
    """Run tests in processes of their own until a time is over.

    Most of their time goes into compiling kernels, so that there is a process for each core where
    pytest-xdist is installed.

    Args:
        done: tests to leave out.
        seconds: after which none begins.
        which: files, folders or tests, below the checkout.
        at_once: how many; as many as there are cores when None.

    Raises:
        OSError: pytest could not even collect them.
    """
    with tempfile.TemporaryDirectory() as place:
        log, list_ = Path(place, "log"), Path(place, "done")
        list_.write_text("\n".join(done))
        log.touch()
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
            "FDL_GPU_TESTS": "1",
            "FDL_GPU_LOG": str(log),
            "FDL_GPU_DONE": str(list_),
            "FDL_GPU_DEADLINE": str(time.time() + seconds),
        }
        # Of the project's own options some belong to plug-ins that need not be here; and of what
        # other versions of packages warn, no kernel is guilty.
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=short"]
        command += ["-W", "default", "-p", "no:cacheprovider", *_parallel(at_once), *which]
        output = _until(command, environment, seconds + GRACE_S / 2)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    collected = next((line["collected"] for line in lines if "collected" in line), None)
    if collected is None:
        raise OSError(f"pytest collected no tests: {output[-2000:]}")
    begun = [line["begun"] for line in lines if "begun" in line]
    found = {line["test"]: line["outcome"] for line in lines if "test" in line}
    why = {line["test"]: line["detail"] for line in lines if line.get("outcome") == "failed"}
    for name in begun:
        if name not in found:
            found[name], why[name] = "failed", "it hung, or took its process with it"
    return Tests(found, int(collected) - len(found), why)


def _parallel(at_once: int | None) -> list[str]:
    """Options of pytest for plug-ins that help where they are installed."""
    options = []
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(at_once or _workers())]
    if importlib.util.find_spec("pytest_timeout") is not None:
        options += [f"--timeout={GRACE_S * 2:g}", "--timeout-method=thread"]
    return options


def _workers() -> int:
    """How many processes compute at a time: two cores are left to what starts and times them."""
    from suite import provenance

    return max(1, provenance.cores() - 2)


def _until(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """What a command printed, killed after some seconds with all that it started."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read()


def _earlier(this: Run, name: str) -> dict[str, str]:
    """The outcomes of the newest record of some checks, of this code on this device."""
    record = _newest(this, name)
    return dict(record.check.outcomes) if record and record.check else {}


def _left_of(this: Run, name: str) -> int:
    record = _newest(this, name)
    return record.check.left if record and record.check else 1


def _newest(this: Run, name: str) -> "Record | None":
    from suite import bench

    run_id = _check_id(name)
    found = [
        r
        for r in this.store.scan(f"{bench.task_id(name)}/*.json")
        if r.run_id == run_id and r.check
    ]
    return max(found, key=lambda r: (r.ended_utc, r.record_id), default=None)


def _check_id(name: str) -> str:
    """Names some checks of this code on this device."""
    from suite import bench, provenance
    from suite.record import digest

    env = provenance.env()
    return digest(
        {
            "check": name,
            "versions": {op: bench.version(op, configs=False) for op in bench.ops()},
            "device": bench.device_name(DEVICE),
            "torch": env.torch.version,
            "triton": (env.triton or {}).get("version"),
        }
    )


def _put_check(
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
    record = bench.sealed(
        check,
        run_id=run_id or _check_id(name),
        version=_check_id(name),
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


def _joined(why: dict[str, str]) -> str:
    """Why each of some checks failed, as a record keeps it."""
    return "\n\n".join(f"{name}\n{why[name]}" for name in sorted(why))[:MOST_OUTPUT]


def _lstm(this: Run, deadline: float) -> int:
    """Our layer and the vendor's over many sizes; the barrier's latency."""
    from suite import bench

    sessions = [bench.Session(w, ("nn.LSTM", "triton")) for w in _lstm_matrix()]
    return _barriers(this, deadline) + _sessions(this, sessions, deadline)


def _lstm_matrix() -> list[Any]:
    """A layer of LSTM over types, units, batch sizes, with equal and with different lengths."""
    import torch

    from kernels.bench.workload import Workload
    from kernels.lstm.cases import Case

    cases = [
        Case(f"{H} units, batch of {B}", 64, B, H, H, dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for H in (128, 192, 256, 512, 1024)
        for B in (4, 16, 64)
    ]
    return [
        Workload("lstm.lstm", case, case.dtype, mode, DEVICE, ragged)
        for case in cases
        for ragged in (False, True)
        for mode in ("forward", "full")
    ]


def _table(this: Run, deadline: float) -> int:
    """Every case with every provider but torch.compile, whose compiler takes most of the time."""
    return _sessions(this, _every_case(without="compile"), deadline)


def _compiled(this: Run, deadline: float) -> int:
    """Every case with every provider."""
    return _sessions(this, _every_case(), deadline)


def _every_case(without: str = "") -> "list[Session]":
    from kernels.bench.providers import defaults
    from suite import bench

    found, turns = [], dict[str, int]()
    for w in bench.workloads(DEVICE, modes=bench.DEFAULT_MODES):
        turns[w.op] = turns.get(w.op, 0) + 1
        names = tuple(n for n in defaults(w.op, DEVICE) if n != without)
        found.append((turns[w.op], bench.Session(w, names)))
    # The first case of every op, then the second: little time still sees all ops.
    return [session for _, session in sorted(found, key=lambda pair: pair[0])]


def _sessions(this: Run, sessions: "Sequence[Session]", deadline: float) -> int:
    """Measure what the store lacks of some sessions; returns how many are left."""
    from kernels.bench.measure import Outcome, measure
    from suite import bench

    todo = bench.unsettled(sessions, this.store)
    warm(this, todo, deadline)
    by_workload = {s.workload: s for s in todo}

    def watched(workload: Any, names: Sequence[str], rounds: int) -> list[Outcome]:
        this.busy = by_workload[workload]
        try:
            return measure(workload, names, rounds)
        finally:
            this.busy = None

    def told(session: "Session", records: "list[Record]") -> None:
        this.say(f"  {session}: {', '.join(r.brief for r in records)}")

    made = bench.run(
        todo,
        this.store,
        rounds=ROUNDS,
        fresh=True,
        measured=watched,
        told=told,
        stop=this.until(deadline),
    )
    this.records += made
    return len(todo) - len({r.micro.session for r in made if r.micro})


def warm(this: Run, sessions: "Sequence[Session]", deadline: float) -> None:
    """Have other processes compile what sessions launch; Triton and PyTorch keep it on disk.

    One process would compile kernel by kernel, and the GPU would wait for most of the time. At most
    a third of what is left is spent.
    """
    import multiprocessing

    workers = _workers()
    seconds = (min(deadline, this.deadline) - this.now()) / 3
    if workers < 2 or seconds <= 0 or not sessions:
        return
    begin = this.now()
    with multiprocessing.get_context("spawn").Pool(min(workers, len(sessions))) as pool:
        results = [pool.apply_async(launch, (session,)) for session in sessions]
        for result in results:
            result.wait(max(0.0, begin + seconds - this.now()))
        done = sum(result.ready() for result in results)
        failed = [r for r in results if r.ready() and not r.successful()]
    this.say(f"  {done} of {len(sessions)} cases were compiled in {this.now() - begin:.0f} s")
    if failed:
        this.say(f"  {len(failed)} of them ended in an error")


def launch(session: "Session") -> None:
    """Check a session's providers, and time nothing."""
    from kernels.bench.measure import measure
    from kernels.bench.timing import Calls, Timed

    def untimed(calls: Calls, rounds: int, seed: int) -> dict[str, Timed]:
        return {}

    measure(session.workload, session.providers, 0, timer=untimed)


BARRIER_PROGRAMS, MEETINGS = (16, 64, 132), 1000


def _barriers(this: Run, deadline: float) -> int:
    """The time in which 16, 64 and 132 programs meet, by the kernels' own barrier."""
    from suite import bench

    known = {r.run_id for r in this.store.scan(f"{bench.task_id('barrier')}/*.json")}
    left = 0
    for programs in BARRIER_PROGRAMS:
        if _barrier_id(programs) in known:
            continue
        if this.until(deadline)():
            left += 1
            continue
        record = _barrier(programs)
        this.store.put(record)
        this.records.append(record)
        this.say(f"  barrier of {programs} programs: {record.brief}")
    return left


def _barrier_id(programs: int) -> str:
    from suite.record import digest

    return digest({"barrier": programs, "code": _check_id("barrier")})


def _barrier(programs: int) -> "Record":
    """Launches that meet a thousand times less launches that meet once, for each meeting."""
    import torch

    from kernels.bench.timing import on_cuda
    from kernels.bench.triton import barriers
    from suite import bench, provenance
    from suite.record import Accuracy, Micro, Timing, utc

    started, begin = utc(), time.perf_counter()
    held = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    fits = programs <= held
    timings, wrong = [], 0
    if fits:
        seen = barriers(programs, MEETINGS, DEVICE)()
        wrong = int((seen < programs * MEETINGS).sum())
        calls = {str(n): barriers(programs, n, DEVICE) for n in (1, MEETINGS)}
        timed = on_cuda(calls, ROUNDS, 0)
        one, many = (timed[str(n)].timings[1].samples_s for n in (1, MEETINGS))
        each = [(b - a) / (MEETINGS - 1) for a, b in zip(one, many, strict=True)]
        # A launch that meets once and takes longer than one of a thousand: nothing was measured.
        if min(each) > 0:
            timings = [Timing(timer="cuda_events", cache="warm", samples_s=each)]
    good = bool(timings) and not wrong
    error = wrong / programs
    micro = Micro(
        op="barrier",
        provider="triton",
        resolved="triton",
        mode="forward",
        dtype="int32",
        case=f"{programs} programs",
        shape={"programs": programs, "meetings": MEETINGS},
        origin="synthetic",
        producer="suite",
        session=_barrier_id(programs)[:16],
        timings=timings if good else [],
        work=None,
        accuracy=[
            Accuracy(
                of="values",
                reference="arrivals counted at the end",
                err_rel=error,
                ratio_vs_eager=None,
                limit=0.0,
                ok=not wrong,
            )
        ],
    )
    return bench.sealed(
        micro,
        run_id=_barrier_id(programs),
        version=_check_id("barrier"),
        config={"programs": programs, "meetings": MEETINGS},
        status="ok" if good else "invalid" if fits else "skipped",
        status_detail="" if fits else f"{programs} programs on {held} multiprocessors would hang",
        wall_s=time.perf_counter() - begin,
        started_utc=started,
        campaign_id="gpu",
        gpu=True,
        nodes=[provenance.node()],
    )


TUNED = (
    "dnc.step",
    "lstm.lstm",
    "attention.attention",
    "conv2d.conv2d",
    "linear.linear",
    "ntm.address",
)


def _tuner(this: Run, deadline: float) -> int:
    """Tune each case of the ops; a record holds what was found, and writes it again elsewhere."""
    from kernels.bench.tune import tunable

    done = _restored(this)
    todo = [w for w in tunable(DEVICE, TUNED) if _tuning_id(w) not in done]
    stop = this.until(deadline)
    for i, w in enumerate(todo):
        if stop():
            return len(todo) - i
        # A search that was cut short is not recorded as one that came to its end.
        if not tune_one(this, w, stop):
            return len(todo) - i
    return 0


def tune_one(this: Run, w: Any, stop: Callable[[], bool], seconds: Any = None) -> bool:
    """Tune a workload, write its parameters and record them; whether it came to its end."""
    from kernels.bench.providers import CannotRun
    from kernels.bench.tune import tune, write
    from suite import bench
    from suite.record import Check

    begin = this.now()
    try:
        found = tune(w, seconds, stop)
    except CannotRun as error:
        this.say(f"  {w.op} {w.name!r}: {error}")
        found = []
    if stop():
        return False
    write(found, bench.device_name(w.device))
    entries = [f.entry() for f in found]
    outcomes: dict[str, Any] = {f"{e['kernel']} {e['config']}": "passed" for e in entries}
    check = Check(name=f"tuned {w.op} {w.name}", outcomes=outcomes, left=0)
    extra = {"tuning": entries}
    _put_check(this, "tuner", check, this.now() - begin, extra, _tuning_id(w))
    this.say(
        f"  {w.op} {w.name!r}: {len(entries)} kernels launch otherwise than the heuristic has it"
    )
    return True


def _tuning_id(w: Any) -> str:
    from suite import bench, provenance
    from suite.record import digest

    env = provenance.env()
    return digest(
        {
            "tuner": [w.op, w.name, str(w.dtype), w.shape],
            "version": bench.version(w.op, configs=False),
            "device": bench.device_name(w.device),
            "torch": env.torch.version,
            "triton": (env.triton or {}).get("version"),
        }
    )


def _restored(this: Run) -> set[str]:
    """Write the parameters that the store has for this device; what was tuned already."""
    from kernels.bench import tune
    from suite import bench

    name, done = bench.device_name(DEVICE), set()
    entries = []
    wanted = {_tuning_id(w) for w in tune.tunable(DEVICE, TUNED)}
    for record in this.store.scan(f"{bench.task_id('tuner')}/*.json"):
        if record.run_id in wanted:
            done.add(record.run_id)
            entries += record.extra.get("tuning", [])
    tune.write_entries(entries, name)
    return done


SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
# Small, for the tool watches every access; large enough that programs wait for each other.
WAITING = """
import torch
from kernels.lstm import cases, lstm
case = cases.Case("racecheck", 3, 16, 32, 256, torch.{dtype})
x, *weights, state = cases.arguments("lstm", case, device="cuda")
leaves = [t.requires_grad_() for t in (x, *weights)]
y, last = lstm(*leaves, state, impl="triton")
torch.autograd.grad(y.sum(), leaves)
torch.cuda.synchronize()
"""


def _racecheck(this: Run, deadline: float) -> int:
    """Run the kernels whose programs wait for each other under NVIDIA's race detector."""
    from suite.record import Check

    dtypes = ("float32", "bfloat16")
    outcomes: dict[str, Any] = dict(_earlier(this, "racecheck"))
    todo = [d for d in dtypes if f"lstm.lstm split, {d}" not in outcomes]
    if not todo:
        return 0
    tool = next((found for name in SANITIZERS if (found := shutil.which(name))), None)
    begin, output = this.now(), "" if tool else f"no {SANITIZERS[0]} on this machine"
    for dtype in todo:
        seconds = min(deadline, this.deadline) - this.now()
        name = f"lstm.lstm split, {dtype}"
        if tool is None:
            outcomes[name] = "skipped"
        elif seconds > 0:
            verdict, output = _raced(tool, WAITING.format(dtype=dtype), seconds + GRACE_S / 2)
            if verdict:
                outcomes[name] = verdict
    left = len([d for d in dtypes if f"lstm.lstm split, {d}" not in outcomes])
    check = Check(name="racecheck", outcomes=outcomes, left=left, output=output)
    _put_check(this, "racecheck", check, this.now() - begin)
    return left


def _raced(tool: str, code: str, seconds: float) -> tuple[str, str]:
    """``passed``, ``failed`` or nothing where time ran out; and what the tool printed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [tool, "--tool", "racecheck", "--print-limit", "20", sys.executable, "-c", code]
    output = _until(command, environment, seconds)
    if "RACECHECK SUMMARY: 0 hazards" in output:
        return "passed", output[-4000:]
    # Without its summary the tool was killed, or could not start.
    return ("failed" if "RACECHECK SUMMARY" in output else ""), output[-4000:]


def _smoke(this: Run, deadline: float) -> int:
    """Start every variant of every task, several at a time; a record holds the outcome of each.

    The tasks are written on processors, where a tensor left on the wrong device goes unnoticed.
    """
    from suite import local, task
    from suite.record import Check
    from suite.store import Store

    specs = [spec for name in task.names() for spec in _planned(this, name, profile="smoke")]
    # By its version a task that has changed since is started again.
    names = {f"{s.task} {s.variant} {s.version[:8]}": s for s in specs}
    earlier: dict[str, Any] = dict(_earlier(this, "gpu_smoke"))
    outcomes = {name: outcome for name, outcome in earlier.items() if name in names}
    todo = {s.run_id: name for name, s in names.items() if name not in outcomes}
    begin = this.now()
    seconds = min(deadline, this.deadline) - begin
    if not todo or seconds <= 1:
        return len(todo)
    why, stop = dict[str, str](), this.until(deadline)
    with tempfile.TemporaryDirectory() as place, _stopped_after(seconds):
        campaign = local.Campaign(Store(place), jobs=_workers(), timeout_s=2 * GRACE_S)
        try:
            with contextlib.closing(campaign.each([names[n] for n in todo.values()])) as ended:
                for record in ended:
                    name = todo[record.run_id]
                    outcomes[name] = _outcome(record)
                    if outcomes[name] != "passed":
                        why[name] = f"{record.status}: {record.status_detail}"
                        this.say(f"  {name}: {why[name]}")
        except KeyboardInterrupt:
            if not stop():
                raise
    left = len(names) - len(outcomes)
    check = Check(name="smoke runs", outcomes=outcomes, left=left, output=_joined(why))
    failed = _put_check(this, "gpu_smoke", check, this.now() - begin)
    this.say(f"smoke: {len(outcomes)} run, {failed} failed in all")
    return left


def _outcome(record: "Record") -> Any:
    """How a run that is there only to be started ended: a missing package is no failure of it."""
    if record.status == "infra_error" or "ModuleNotFoundError" in record.status_detail:
        return "skipped"
    return "passed" if record.status in ("ok", "target_missed") else "failed"


def _paper(this: Run, deadline: float) -> int:
    """Run tasks at the paper's size, from their snapshots; returns how many are left."""
    from suite import task

    specs = [spec for name in task.names() for spec in _paper_specs(this, name)]
    left = 0
    for spec in sorted(specs, key=_waits, reverse=True):
        seconds = min(deadline, this.deadline) - this.now()
        if seconds <= 1 or not _one_run(this, spec, seconds):
            left += 1
    return left


def _waits(spec: Any) -> bool:
    """Whether a run had to wait for a GPU."""
    from suite import task

    return spec.variant in task.find(spec.task).gpu_first


def _paper_specs(this: Run, name: str) -> list[Any]:
    """The runs of a task that are judged and have not ended; none where something is missing."""
    from suite import data

    specs = _planned(this, name, profile="paper", seeds=range(3), judged_only=True)
    tried = this.store.attempts(name, [s.run_id for s in specs])
    specs = [s for s in specs if s.run_id not in tried]
    wanted = {str(getattr(s.config(), "data", "")) for s in specs}
    catalogue = {entry["name"] for entry in data.catalogue()}
    missing = sorted(d for d in wanted & catalogue if data.where(d) is None)
    if missing:
        this.say(f"  {name}: data not on this machine: {', '.join(missing)}")
        return []
    return specs


def _planned(this: Run, name: str, **options: Any) -> list[Any]:
    """The runs of a task, or none where this machine lacks what it takes to plan them."""
    from suite import plan

    try:
        return plan.expand([name], device=DEVICE, **options)
    except (ImportError, ValueError) as error:
        this.say(f"  {name}: {error}")
        return []


@contextlib.contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Send this process a SIGTERM, which what is run within takes as a stop, after some time."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    # The signal may come when the run has just ended, and must not end this process then.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _one_run(this: Run, spec: Any, seconds: float) -> bool:
    """Run a spec for some seconds; whether it came to its end."""
    from suite.run import Interrupted, execute

    try:
        with _stopped_after(seconds):
            drawn = importlib.util.find_spec("matplotlib") is not None
            record = execute(spec, store=this.store, campaign_id="gpu", figures=drawn)
    except Interrupted:
        this.say(f"  {spec}: goes on at the next call")
        return False
    this.records.append(record)
    this.say(f"  {spec}: {record.status}")
    return True


def tune_ops(ops: Sequence[str], uri: str) -> int:
    """Tune the kernels of some ops without a limit of time, for ``suite bench tune``.

    Raises:
        ValueError: an op that is not tuned.
        StoreError: the store cannot be written.
    """
    from kernels.bench.tune import tunable
    from suite.store import Store

    for op in ops:
        if op not in TUNED:
            raise unknown("op", op, TUNED)
    this = Run(Store(uri), math.inf)
    this.store.check_writable()
    for w in tunable(DEVICE, tuple(ops)):
        tune_one(this, w, lambda: False)
    return 0


def check_machine() -> None:
    """Raise ValueError with everything that this machine lacks."""
    lacks = [f"the package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if "the package torch" not in lacks:
        import torch

        if not torch.cuda.is_available():
            lacks.append("a CUDA device that PyTorch can use")
    if os.environ.get("TRITON_INTERPRET") == "1":
        lacks.append("kernels that are compiled: TRITON_INTERPRET=1 is set")
    if lacks:
        raise ValueError(f"suite gpu needs an NVIDIA GPU; this machine lacks {'; '.join(lacks)}")


def chosen(only: Sequence[str]) -> list[Stage]:
    """The stages of some names, in their order; all when none is given.

    Raises:
        ValueError: an unknown name.
    """
    known = stages()
    for name in only:
        if name not in {s.name for s in known}:
            raise unknown("stage", name, [s.name for s in known])
    return [s for s in known if not only or s.name in only]


def command(minutes: float, uri: str, only: Sequence[str]) -> int:
    """What ``suite gpu`` does.

    Returns:
        0, or 3 where a check failed or a kernel computes something wrong.

    Raises:
        ValueError: the machine lacks something, an unknown stage, or a budget out of range.
        StoreError: the store cannot be written.
    """
    if not (math.isfinite(minutes) and 0 < minutes <= MOST_MINUTES - GRACE_S / 60):
        most = MOST_MINUTES - GRACE_S / 60
        raise ValueError(f"--budget-minutes is above 0 and at most {most:g}, got {minutes:g}")
    todo = chosen(only)
    check_machine()
    from suite.store import Store

    store = Store(uri)
    store.check_writable()
    records, left = run(store, todo, minutes)
    names = ", ".join(f"{name} ({n})" for name, n in left.items() if n)
    print(f"{len(records)} new records in {uri}; " + (f"left: {names}" if names else "all done"))
    bad = {"invalid", "crashed", "nan", "oom", "timeout"}
    return UNTRUSTED if bad & {r.status for r in records} else 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m suite.gpu``: the same without the packages of the command line."""
    parser = argparse.ArgumentParser(prog="python -m suite.gpu", description=__doc__)
    parser.add_argument("--budget-minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--store", default="results")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE")
    given = parser.parse_args(argv)
    try:
        return command(given.budget_minutes, given.store, given.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return INFRASTRUCTURE


if __name__ == "__main__":
    sys.exit(main())
