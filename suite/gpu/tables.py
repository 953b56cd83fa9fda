"""Benchmarks: every case of every kernel, the vendor's layers, and what a barrier costs."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from suite.gpu import ahead, checks, tuner
from suite.gpu.stage import HANGS_S, Run

if TYPE_CHECKING:
    from suite.bench import Session
    from suite.record import Record

ROUNDS = 9
# In less, processes come to no more than importing what they need.
START_S = 20.0


def table(this: Run, deadline: float) -> int:
    """Every case with every provider but torch.compile, whose compiler takes most of the time."""
    return _sessions(this, _every_case(this, without="compile"), deadline)


def compiled(this: Run, deadline: float) -> int:
    """Every case with every provider."""
    return _sessions(this, _every_case(this), deadline)


def _every_case(this: Run, without: str = "") -> "list[Session]":
    from kernels.bench.providers import defaults
    from suite import bench

    found, turns = [], dict[str, int]()
    for w in bench.workloads(this.device, modes=bench.DEFAULT_MODES):
        turns[w.op] = turns.get(w.op, 0) + 1
        names = tuple(n for n in defaults(w.op, this.device) if n != without)
        found.append((turns[w.op], bench.Session(w, names)))
    # The first case of every op, then the second: little time still sees all ops.
    return [session for _, session in sorted(found, key=lambda pair: pair[0])]


def _sessions(this: Run, sessions: "Sequence[Session]", deadline: float) -> int:
    """Measure what the store lacks of some sessions; returns how many are left."""
    from kernels.bench.measure import Outcome, measure
    from suite import bench

    # What is measured is what the tuner has found, on whichever machine it did.
    tuner.restored(this)
    todo = bench.unsettled(sessions, this.store)
    if not todo or checks.lost(this):
        return len(todo)
    ended = warm(this, todo, deadline)
    # What a process died of is measured last: this one may too, and nothing comes after.
    last = sorted(zip(ended, todo, strict=True), key=lambda pair: pair[0].startswith(ahead.DEADLY))
    todo = [session for _, session in last]
    by_workload = {s.workload: s for s in todo}

    def watched(workload: Any, names: Sequence[str], rounds: int) -> list[Outcome]:
        this.busy = by_workload[workload]
        try:
            with this.ended_after(HANGS_S):
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
    left = len(todo) - len({r.micro.session for r in made if r.micro})
    if left:
        checks.lost(this)
    return left


def warm(this: Run, sessions: "Sequence[Session]", deadline: float) -> list[str]:
    """Have other processes compile what sessions launch, in at most a third of what is left.

    Returns:
        For each session why it came to nothing there.
    """
    seconds = this.seconds(deadline) / 3
    if seconds < START_S:
        return [""] * len(sessions)
    with ahead.processes(this, len(sessions)) as compile_all:
        return compile_all(launch, [(session,) for session in sessions], seconds)


def launch(session: "Session") -> None:
    """Check a session's providers, and time nothing."""
    from kernels.bench.measure import measure
    from kernels.bench.timing import Calls, Timed

    def untimed(calls: Calls, rounds: int, seed: int) -> dict[str, Timed]:
        return {}

    measure(session.workload, session.providers, 0, timer=untimed)


def lstm(this: Run, deadline: float) -> int:
    """Our layer and the vendor's over many sizes; the barrier's latency."""
    from suite import bench

    sessions = [bench.Session(w, ("nn.LSTM", "triton")) for w in _lstm_matrix(this.device)]
    return _barriers(this, deadline) + _sessions(this, sessions, deadline)


def _lstm_matrix(device: str) -> list[Any]:
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
        Workload("lstm.lstm", case, case.dtype, mode, device, ragged)
        for case in cases
        for ragged in (False, True)
        for mode in ("forward", "full")
    ]


BARRIER_PROGRAMS, MEETINGS = (16, 64, 132), 1000


def _barriers(this: Run, deadline: float) -> int:
    """The time in which 16, 64 and 132 programs meet, by the kernels' own barrier."""
    from suite import bench

    known = {r.run_id for r in this.store.scan(f"{bench.task_id('barrier')}/*.json")}
    left = 0
    for programs in BARRIER_PROGRAMS:
        if _barrier_id(this, programs) in known:
            continue
        if this.until(deadline)() or checks.lost(this):
            left += 1
            continue
        record = _barrier(this, programs)
        this.store.put(record)
        this.records.append(record)
        this.say(f"  barrier of {programs} programs: {record.brief}")
    return left


def _barrier_id(this: Run, programs: int) -> str:
    from suite.record import digest

    return digest({"barrier": programs, "code": checks.identity(this, "barrier")})


def _barrier(this: Run, programs: int) -> "Record":
    """Launches that meet a thousand times less launches that meet once, for each meeting."""
    import torch

    from kernels.bench.timing import on_cuda
    from kernels.bench.triton import barriers
    from suite import bench, provenance
    from suite.record import Accuracy, Micro, Timing, utc

    started, begin = utc(), time.perf_counter()
    held = torch.cuda.get_device_properties(this.device).multi_processor_count
    fits = programs <= held
    timings, wrong = [], 0
    if fits:
        seen = barriers(programs, MEETINGS, this.device)()
        wrong = int((seen < programs * MEETINGS).sum())
        calls = {str(n): barriers(programs, n, this.device) for n in (1, MEETINGS)}
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
        session=_barrier_id(this, programs)[:16],
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
        run_id=_barrier_id(this, programs),
        version=checks.identity(this, "barrier"),
        config={"programs": programs, "meetings": MEETINGS},
        status="ok" if good else "invalid" if fits else "skipped",
        status_detail="" if fits else f"{programs} programs on {held} multiprocessors would hang",
        wall_s=time.perf_counter() - begin,
        started_utc=started,
        campaign_id="gpu",
        gpu=True,
        nodes=[provenance.node()],
    )
