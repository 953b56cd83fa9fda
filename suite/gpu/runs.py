"""Runs of tasks on a GPU: each variant for a moment, and those that are judged at full size."""

import contextlib
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from suite.gpu import checks, mps
from suite.gpu.stage import HANGS_S, Run, workers

if TYPE_CHECKING:
    from suite import local
    from suite.record import Record

# Runs at a time on one GPU: their memory adds up.
AT_ONCE = 8
# In less, most runs would come to nothing but their start and the end of their processes.
LEAST_S = 180.0
# A run is stopped at a yield only, and killed where that takes longer than its grace.
SAVE_EVERY_S = 20.0
# So many runs that fail by CUDA before any other ends: it is not they that are broken.
FIRST = 3


def smoke(this: Run, deadline: float) -> int:
    """Start every variant of every task, several at a time; a record holds the outcome of each.

    The tasks are written on processors, where a tensor left on the wrong device goes unnoticed.
    """
    from suite import local
    from suite.record import Check
    from suite.store import Store

    specs = [spec for name in this.tasks for spec in _planned(this, name, profile="smoke")]
    # By its version a task that has changed since is started again.
    names = {f"{s.task} {s.variant} {s.version[:8]}": s for s in specs}
    earlier, _ = checks.earlier(this, "gpu_smoke")
    outcomes = {name: outcome for name, outcome in earlier.items() if name in names}
    todo = {s.run_id: name for name, s in names.items() if name not in outcomes}
    begin = this.now()
    if not todo or this.until(deadline)():
        return len(todo)
    why = dict[str, str]()

    def ended(record: "Record") -> None:
        name = todo[record.run_id]
        outcomes[name] = _outcome(record)
        if outcomes[name] != "passed":
            why[name] = f"{record.status}: {record.status_detail}"
            this.say(f"  {name}: {why[name]}")

    with tempfile.TemporaryDirectory() as place:
        campaign = local.Campaign(
            Store(place), jobs=workers(), timeout_s=HANGS_S, figures=_can_draw()
        )
        try:
            _run_until(this, deadline, campaign, [names[n] for n in todo.values()], ended)
        finally:
            left = len(names) - len(outcomes)
            output = checks.joined(why)
            check = Check(name="smoke runs", outcomes=outcomes, left=left, output=output)
            failed = checks.put(this, "gpu_smoke", check, this.now() - begin)
            this.say(f"smoke: {len(outcomes)} run, {failed} failed in all")
    return left


def _outcome(record: "Record") -> Any:
    """How a run that is there only to be started ended: a missing package is no failure of it."""
    if record.status == "infra_error" or "ModuleNotFoundError" in record.status_detail:
        return "skipped"
    return "passed" if record.status in ("ok", "target_missed") else "failed"


def paper(this: Run, deadline: float) -> int:
    """Run tasks at the paper's size, several at a time, from their snapshots.

    The processor cannot keep a GPU busy with one net of this book: what a run takes grows little
    when others run beside it. Their records say that they had neighbours. What fails beside others
    is run again after all of them, alone: it may have lacked nothing but room.

    Returns:
        How many runs have not come to their end.

    Raises:
        RuntimeError: the first runs all failed by CUDA, as all others would.
    """
    from suite import local

    specs, alone = list[Any](), list[Any]()
    for name in this.tasks:
        for spec, failed in _paper_specs(this, name):
            (alone if failed else specs).append(spec)
    specs.sort(key=_waits, reverse=True)
    known = {spec.run_id: spec for spec in specs + alone}
    if known and this.seconds(deadline) < LEAST_S and not this.named:
        this.say(f"  in less than {LEAST_S:g} s none is begun, unless by --only paper")
        return len(known)
    left, open_, by_cuda = len(known), dict[str, Any](), list[bool]()

    def ended(record: "Record") -> None:
        nonlocal left
        spec = known[record.run_id]
        open_.pop(record.run_id, None)
        this.records.append(record)
        by_cuda.append(_failed_by_cuda(record))
        if _settles(record):
            left -= 1
        elif record.placement.contended:
            alone.append(spec)
        this.say(f"  {spec}: {record.status}")
        if by_cuda == [True] * FIRST:
            raise RuntimeError(f"the first {FIRST} runs failed alike: {record.status_detail}")

    def listen(event: str, spec: Any, content: Any) -> None:
        if event == "started":
            open_[spec.run_id] = spec

    campaign = local.Campaign(
        this.store,
        jobs=min(AT_ONCE, workers()),
        figures=_can_draw(),
        save_every_s=SAVE_EVERY_S,
        campaign_id="gpu",
    )
    if specs and not this.until(deadline)():
        with mps.shared(this):
            _run_until(this, deadline, campaign, specs, ended, listen)
    _run_until(this, deadline, replace(campaign, jobs=1), alone.copy(), ended, listen)
    for spec in open_.values():
        this.say(f"  {spec}: goes on at the next call")
    return left


def _run_until(
    this: Run,
    deadline: float,
    campaign: "local.Campaign",
    specs: list[Any],
    ended: Callable[["Record"], None],
    listen: "local.Listener" = lambda event, spec, content: None,
) -> None:
    """Call ``ended`` with the record of each spec, until a deadline."""
    stop = this.until(deadline)
    if stop():
        return
    try:
        with _stopped_after(this.seconds(deadline)):
            with contextlib.closing(campaign.each(specs, listen)) as records:
                for record in records:
                    ended(record)
    except KeyboardInterrupt:
        if not stop():
            raise


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _waits(spec: Any) -> bool:
    """Whether a run had to wait for a GPU."""
    from suite import task

    return spec.variant in task.find(spec.task).gpu_first


def _failed_by_cuda(record: "Record") -> bool:
    return record.status == "crashed" and any(
        library in record.status_detail for library in ("CUDA", "CUBLAS", "CUDNN")
    )


def _paper_specs(this: Run, name: str) -> list[tuple[Any, bool]]:
    """The runs of a task that are judged and have not ended; none where something is missing.

    With each: whether it has failed beside others.
    """
    from suite import data

    specs = _planned(this, name, profile="paper", seeds=range(3), judged_only=True)
    tried = this.store.attempts(name, [s.run_id for s in specs])
    specs = [s for s in specs if not any(map(_settles, tried.get(s.run_id, [])))]
    wanted = {str(getattr(s.config(), "data", "")) for s in specs}
    catalogue = {entry["name"] for entry in data.catalogue()}
    missing = sorted(d for d in wanted & catalogue if data.where(d) is None)
    if missing:
        this.say(f"  {name}: data not on this machine: {', '.join(missing)}")
        return []
    return [(s, any(r.placement.contended for r in tried.get(s.run_id, []))) for s in specs]


def _settles(record: "Record") -> bool:
    """Whether an attempt is the last at its run: its end, or a failure of its own while alone."""
    from suite.record import FINISHED

    own = record.status in ("crashed", "oom", "timeout") and not record.placement.contended
    return own or record.status in FINISHED


def _planned(this: Run, name: str, **options: Any) -> list[Any]:
    """The runs of a task, or none where this machine lacks what it takes to plan them."""
    from suite import plan

    try:
        return plan.expand([name], device=this.device, **options)
    except (ImportError, ValueError) as error:
        this.say(f"  {name}: {error}")
        return []


@contextlib.contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Send this process a SIGTERM after some time, which raises KeyboardInterrupt inside."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    # A campaign takes the signal itself once its runs have begun, but not before.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        timer.start()
        yield
    finally:
        # The signal may come when all has just ended, and must not end this process then.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGTERM, before)
