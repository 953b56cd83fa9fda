"""Launch parameters for this device, kept in records and written to kernels/configs."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from suite.codes import UNTRUSTED
from suite.gpu import ahead, checks
from suite.gpu.stage import Run
from suite.task import unknown

TUNED = (
    "dnc.step",
    "lstm.lstm",
    "attention.attention",
    "conv2d.conv2d",
    "linear.linear",
    "ntm.address",
)
# Candidates of a workload: some kernels of some parameters, up and down. Of large tiles some take
# minutes to compile; nobody waits for them.
AHEAD, AHEAD_S = 32, 30.0

# Why a kernel's candidate is no good, once other processes have compiled it; empty where it is.
Ready = Callable[[str, dict[str, int]], str]


def tuner(this: Run, deadline: float) -> int:
    """Tune each case of the ops; a record holds what was found, and writes it again elsewhere."""
    from kernels.bench.tune import tunable

    done = restored(this)
    todo = [w for w in tunable(this.device, TUNED) if _tuning_id(w) not in done]
    return _tuned(this, todo, deadline)


def _tuned(this: Run, todo: Sequence[Any], deadline: float) -> int:
    """Tune workloads until a deadline; how many are left."""
    stop = this.until(deadline)
    if not todo or stop():
        return len(todo)
    with ahead.processes(this, AHEAD) as compile_all:
        for i, w in enumerate(todo):
            if stop() or checks.lost(this):
                return len(todo) - i
            ready = warm(this, w, compile_all, deadline)
            # A search that was cut short is not recorded as one that came to its end.
            if not tune_one(this, w, stop, ready):
                return len(todo) - i
    return 0


def warm(this: Run, w: Any, compile_all: ahead.Compile, deadline: float) -> Ready:
    """Have other processes compile what a search begins with, and then what it asks for."""
    from kernels.bench import tune
    from suite.run import says_memory_is_full

    known = dict[tuple[str, frozenset[tuple[str, int]]], str]()

    def compiled(jobs: list[tuple[Any, str, dict[str, int]]]) -> None:
        ended = compile_all(tune.launch, jobs, this.seconds(deadline), AHEAD_S)
        for (_, kernel, config), why in zip(jobs, ended, strict=True):
            known[kernel, frozenset(config.items())] = why

    def ready(kernel: str, config: dict[str, int]) -> str:
        key = kernel, frozenset(config.items())
        # What lacked memory beside others gets all of it.
        if key not in known or says_memory_is_full(known[key]):
            compiled([(w, kernel, config)])
        return known[key]

    # What cannot be launched has no candidates, and the search says so.
    with contextlib.suppress(Exception):
        compiled(tune.tried_first(w))
    return ready


def tune_one(this: Run, w: Any, stop: Callable[[], bool], ready: Ready) -> bool:
    """Tune a workload, write its parameters and record them; whether it came to its end.

    A candidate that fails, or is not ready, is recorded as skipped. Where all fail, or the
    heuristic's launch does, the check has failed.
    """
    from kernels.bench.measure import told
    from kernels.bench.providers import CannotRun
    from kernels.bench.tune import Pair, Trials, tune, write
    from suite import bench
    from suite.record import Check

    begin, timed = this.now(), Trials().seconds
    refused, failed, tried = dict[str, str](), dict[str, str](), 0

    def seconds(w: Any, kernel: str, candidate: dict[str, int], best: dict[str, int]) -> Pair:
        nonlocal tried
        tried += 1
        pair: Pair = ready(kernel, candidate) or timed(w, kernel, candidate, best)
        if isinstance(pair, str):
            refused[f"{kernel} {candidate}"] = pair
        return pair

    found = []
    try:
        found = tune(w, seconds, stop)
    except CannotRun as error:
        this.say(f"  {w.op} {w.name!r}: {error}")
    except Exception as error:
        failed["a launch"] = told(error)
    if stop() and not failed:
        return False
    if len(refused) == tried and {*refused.values()} - {ahead.LATE}:
        failed["all candidates"] = "none of them could be timed"
    for what, why in failed.items():
        this.say(f"  {w.op} {w.name!r}: {what}: {why}")
    write(found, bench.device_name(w.device))
    entries = [f.entry() for f in found]
    outcomes: dict[str, Any] = {f"{e['kernel']} {e['config']}": "passed" for e in entries}
    outcomes |= dict.fromkeys(refused, "skipped") | dict.fromkeys(failed, "failed")
    output = checks.joined(refused | failed)
    check = Check(name=f"tuned {w.op} {w.name}", outcomes=outcomes, left=0, output=output)
    extra = {"tuning": entries}
    checks.put(this, "tuner", check, this.now() - begin, extra, _tuning_id(w))
    this.say(
        f"  {w.op} {w.name!r}: {len(entries)} kernels launch otherwise than the heuristic has it, "
        f"{len(refused)} candidates were refused"
    )
    return True


def _tuning_id(w: Any) -> str:
    from suite import bench
    from suite.record import digest

    workload = [w.op, w.name, str(w.dtype), w.shape]
    version = bench.version(w.op)
    return digest({"tuner": workload, "version": version, **checks.machine(w.device)})


def restored(this: Run) -> set[str]:
    """Write the parameters that the store has for this device; what was tuned already."""
    from kernels.bench import tune
    from suite import bench

    name, done = bench.device_name(this.device), set()
    entries = []
    wanted = {_tuning_id(w) for w in tune.tunable(this.device, TUNED)}
    # Of what several workloads have found for the same sizes, the last was written.
    records = [*this.store.scan(f"{bench.task_id('tuner')}/*.json")]
    for record in sorted(records, key=lambda r: (r.ended_utc, r.record_id)):
        if record.run_id in wanted:
            done.add(record.run_id)
            entries += record.extra.get("tuning", [])
    tune.write_entries(entries, name)
    return done


def tune_ops(ops: Sequence[str], uri: str) -> int:
    """Tune the kernels of some ops, however long it takes, for ``suite bench tune``.

    Returns:
        0, or 3 where a check failed.

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
    _tuned(this, [*tunable(this.device, tuple(ops))], math.inf)
    return UNTRUSTED if any(r.status != "ok" for r in this.records) else 0
