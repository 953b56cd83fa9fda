"""Runs of tasks on a GPU: each variant for a moment, and those that are judged at full size."""

import contextlib
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from suite.gpu import checks
from suite.gpu.stage import GRACE_S, Run, workers

if TYPE_CHECKING:
    from suite.record import Record


def smoke(this: Run, deadline: float) -> int:
    """Start every variant of every task, several at a time; a record holds the outcome of each.

    The tasks are written on processors, where a tensor left on the wrong device goes unnoticed.
    """
    from suite import local, task
    from suite.record import Check
    from suite.store import Store

    specs = [spec for name in task.names() for spec in _planned(this, name, profile="smoke")]
    # By its version a task that has changed since is started again.
    names = {f"{s.task} {s.variant} {s.version[:8]}": s for s in specs}
    earlier, _ = checks.earlier(this, "gpu_smoke")
    outcomes = {name: outcome for name, outcome in earlier.items() if name in names}
    todo = {s.run_id: name for name, s in names.items() if name not in outcomes}
    begin, seconds = this.now(), this.seconds(deadline)
    if not todo or seconds <= 1:
        return len(todo)
    why, stop = dict[str, str](), this.until(deadline)
    with tempfile.TemporaryDirectory() as place, _stopped_after(seconds):
        campaign = local.Campaign(Store(place), jobs=workers(), timeout_s=2 * GRACE_S)
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
    check = Check(name="smoke runs", outcomes=outcomes, left=left, output=checks.joined(why))
    failed = checks.put(this, "gpu_smoke", check, this.now() - begin)
    this.say(f"smoke: {len(outcomes)} run, {failed} failed in all")
    return left


def _outcome(record: "Record") -> Any:
    """How a run that is there only to be started ended: a missing package is no failure of it."""
    if record.status == "infra_error" or "ModuleNotFoundError" in record.status_detail:
        return "skipped"
    return "passed" if record.status in ("ok", "target_missed") else "failed"


def paper(this: Run, deadline: float) -> int:
    """Run tasks at the paper's size, from their snapshots; returns how many are left."""
    from suite import task

    specs = [spec for name in task.names() for spec in _paper_specs(this, name)]
    left = 0
    for spec in sorted(specs, key=_waits, reverse=True):
        seconds = this.seconds(deadline)
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
