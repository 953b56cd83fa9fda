"""Faults on purpose: the same run left alone and struck, and what the fault cost.

``worker_kill`` kills the worker process of the run, ``node_kill`` the node it is on, and
``driver_kill`` the process that drives the campaign, each with SIGKILL; the campaign goes on by
itself, or in the last case by being started again. Each run is struck after the row at which it
had yielded a given fraction of the rows of the run that was left alone.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from suite import task
from suite.local import Campaign
from suite.plan import Spec
from suite.record import Fault, FaultInfo, Record, digest, seal
from suite.store import Store, StoreError
from suite.worker import GRACE_S, Strike, die_with

KINDS = ("worker_kill", "node_kill", "driver_kill")

# The campaign that a killed driver leaves behind is started again once.
STARTS = 2
ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Injection:
    """A kind of fault, and the fraction of the run's rows after which it strikes."""

    kind: str
    at: float

    def row(self, n_rows: int) -> int:
        """The row after which it strikes, counted from one; the run goes on for one at least.

        Raises:
            ValueError: a run of fewer than two rows has no middle.
        """
        if n_rows < 2:
            raise ValueError(f"--inject {self}: the run yields {n_rows} row, so nothing is left")
        return min(max(1, math.ceil(self.at * n_rows)), n_rows - 1)

    def __str__(self) -> str:
        return f"{self.kind}@{self.at:g}"


def parse(text: str) -> Injection:
    """``"worker_kill@0.4"`` as an injection.

    Raises:
        ValueError: an unknown kind, or a fraction that is not between 0 and 1.
    """
    kind, _, fraction = text.partition("@")
    if kind not in KINDS:
        raise task.unknown("fault", kind, KINDS)
    if not re.fullmatch(r"0?\.\d+", fraction) or float(fraction) == 0:
        raise ValueError(f"--inject {text!r}: write {kind}@0.4, with a fraction between 0 and 1")
    return Injection(kind, float(fraction))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how the runs are made.

    Attributes:
        store: the URI that fault records go to; the runs themselves use a folder in it for as
            long as they last.
        on: ``local``, or what ``suite.cluster.connect`` takes.
        resources: ``suite.driver.Resources``, or None.
        timeout_s: seconds a run may take.
        save_every_s: the least time between two snapshots.
    """

    store: str
    on: str = "local"
    resources: Any = None
    timeout_s: float | None = None
    save_every_s: float | None = None

    def check(self, injection: Injection) -> None:
        """Raise ValueError for a fault that cannot strike there and be survived."""
        if injection.kind == "node_kill" and self.on in ("local", "ray", "ray:1"):
            raise ValueError(
                f"--inject {injection}: --on {self.on} has one node, and the campaign is on it; "
                "write --on ray:2 or more, or join a cluster"
            )


@dataclasses.dataclass
class Timeline:
    """What a campaign of one run said, and when; seconds of one clock."""

    started_s: float | None = None
    rows: list[tuple[float, dict[str, float]]] = dataclasses.field(default_factory=list)
    struck_s: float | None = None
    noticed_s: float | None = None
    ended_s: float = 0.0
    record: Record | None = None

    def take(self, event: str, content: Any) -> None:
        """Add one event, now."""
        now = time.monotonic()
        if event == "started" and self.started_s is None:
            self.started_s = now
        elif event == "row":
            self.rows.append((now, content))
        elif event == "struck":
            self.struck_s = now
        elif event == "again":
            self.noticed_s = now
        elif event == "ended":
            self.ended_s, self.record = now, content

    @property
    def wall_s(self) -> float:
        """From the first start of the run to its record."""
        assert self.started_s is not None
        return self.ended_s - self.started_s

    def to_step_s(self, step: float | None) -> float | None:
        """Seconds from the first start to the first row at or past a step."""
        assert self.started_s is not None
        found = (t for t, row in self.rows if step is not None and row.get("step", 0) >= step)
        return next((t - self.started_s for t in found), None)


def inject(
    specs: list[Spec],
    injections: list[Injection],
    setting: Setting,
    *,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Record]:
    """Run each spec once alone and once for each fault; write and yield a record a fault.

    A fault that the store holds a record of is not injected again unless ``fresh``.

    Raises:
        ValueError: a fault that cannot strike there.
        OSError: the store or the cluster failed, or a run alone did not finish.
    """
    for injection in injections:
        setting.check(injection)
    store = Store(setting.store)
    store.check_writable()
    for spec in specs:
        known = {r.run_id: r for r in store.scan(f"{spec.task}/*.json") if r.kind == "fault"}
        missing = [i for i in injections if fresh or _run_id(spec, i, setting.on) not in known]
        for injection in injections:
            if injection not in missing:
                say(f"{spec}, {injection}: already done")
                yield known[_run_id(spec, injection, setting.on)]
        if not missing:
            continue
        clean = _alone(spec, setting)
        say(f"{spec}: alone {clean.wall_s:.1f} s")
        for injection in missing:
            record = _struck(spec, injection, clean, setting)
            store.put(record)
            say(f"{spec}, {injection}: {story(record)}")
            yield record


def story(record: Record) -> str:
    """One line on what a fault cost."""
    fault = record.fault
    assert fault is not None
    same = {True: "the same parameters", False: "OTHER PARAMETERS", None: "no parameters"}
    return (
        f"{record.status}, struck at step {fault.step}, recovery {fault.recovery_s:.1f} s, "
        f"{fault.lost_steps} steps lost, goodput {fault.goodput:.2f}, {same[fault.same_params]}"
    )


def _alone(spec: Spec, setting: Setting) -> Timeline:
    with _scratch(setting.store) as folder:
        clean = _campaign(spec, folder, setting, None)
    if clean.record is None or clean.record.train is None or not clean.rows:
        status = clean.record.status if clean.record else "no record"
        raise StoreError(f"{spec} does not finish when left alone: {status}")
    return clean


def _struck(spec: Spec, injection: Injection, clean: Timeline, setting: Setting) -> Record:
    strike = Strike(injection.kind, injection.row(len(clean.rows)))
    with _scratch(setting.store) as folder:
        faulted = _campaign(spec, folder, setting, strike)
    if faulted.record is None or faulted.struck_s is None:
        raise StoreError(f"{spec}, {injection}: the campaign did not survive the fault")
    return _record(spec, injection, clean, faulted, setting)


@contextlib.contextmanager
def _scratch(uri: str) -> Iterator[str]:
    """A store inside the store, for runs that are no results."""
    folder = f"{uri.rstrip('/')}/.faults-{secrets.token_hex(6)}"
    try:
        yield folder
    finally:
        store = Store(folder)
        with contextlib.suppress(FileNotFoundError):
            store.fs.rm(store.root, recursive=True)


def _campaign(spec: Spec, folder: str, setting: Setting, strike: Strike | None) -> Timeline:
    """A campaign of one run in a process of its own, started again when it was killed."""
    timeline = Timeline()
    for start in range(STARTS):
        here, there = multiprocessing.get_context("spawn").Pipe()
        arguments = (there, os.getpid(), spec, folder, setting, None if start else strike)
        process = multiprocessing.get_context("spawn").Process(target=_drive, args=arguments)
        process.start()
        there.close()
        try:
            _listen(here, timeline)
        finally:
            process.join(2 * GRACE_S)
            process.kill()
            process.join()
            here.close()
        if timeline.record is not None or process.exitcode != -signal.SIGKILL:
            break
        timeline.noticed_s = time.monotonic()
    return timeline


def _listen(link: Connection, timeline: Timeline) -> None:
    """Take in what a campaign says until its process ends."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            event, content = link.recv()
            if event == "error":
                raise content
            timeline.take(event, content)


def _drive(
    link: Connection,
    parent: int,
    spec: Spec,
    folder: str,
    setting: Setting,
    strike: Strike | None,
) -> None:
    """The life of a campaign's own process."""
    die_with(parent)

    def listen(event: str, of: Spec | None, content: Any) -> None:
        if of is not None:
            link.send((event, None if event == "started" else content))
        if event == "struck" and content == "driver_kill":
            os.kill(os.getpid(), signal.SIGKILL)

    campaign = Campaign(
        Store(folder),
        timeout_s=setting.timeout_s,
        attempts=ATTEMPTS,
        save_every_s=setting.save_every_s,
        strike=strike,
        prompt=True,
    )
    try:
        if setting.on == "local":
            campaign.run([spec], listen)
            return
        from suite import cluster, driver

        with cluster.connect(setting.on) as found:
            backend = driver.backend(found, setting.resources or driver.Resources())
            dataclasses.replace(campaign, backend=backend).run([spec], listen)
    except (OSError, ValueError) as error:
        link.send(("error", error))
    except KeyboardInterrupt:
        return


def _run_id(spec: Spec, injection: Injection, on: str) -> str:
    return digest({"spec": spec.run_id, "inject": str(injection), "on": on})


def _record(
    spec: Spec, injection: Injection, clean: Timeline, faulted: Timeline, setting: Setting
) -> Record:
    """The fault's record: that of the struck run, with what the fault cost."""
    struck = faulted.record
    assert struck is not None
    assert faulted.struck_s is not None
    info = _cost(injection, clean, faulted, setting.on)
    assert faulted.started_s is not None
    fault = Fault(
        t_s=faulted.struck_s - faulted.started_s,
        kind=injection.kind,
        injected=True,
        detected_s=info.detected_s,
        recovered_s=info.recovery_s,
        lost_steps=info.lost_steps,
    )
    content = struck.model_dump(by_alias=True, exclude={"record_id", "fault"})
    # Its pictures and log were in a folder that lasted as long as the run.
    changed = {
        "kind": "fault",
        "run_id": _run_id(spec, injection, setting.on),
        "parent_record_id": None,
        "artifacts": [],
        "faults": [fault],
        "fault": info,
    }
    return seal(**content | changed)


def _cost(injection: Injection, clean: Timeline, faulted: Timeline, on: str) -> FaultInfo:
    """What the fault cost, from the two timelines."""
    alone, struck = clean.record, faulted.record
    assert alone is not None
    assert alone.train is not None
    assert struck is not None
    assert faulted.struck_s is not None
    before = [row for t, row in faulted.rows if t <= faulted.struck_s]
    after = [(t, row) for t, row in faulted.rows if t > faulted.struck_s]
    # The struck attempt ended at row len(before); the next goes on after the snapshot's last row.
    resumed = len(clean.rows) - len(after)
    steps = [0, *(int(row.get("step", i)) for i, (_, row) in enumerate(clean.rows, 1))]
    crossing = alone.train.crossing.hi_step if alone.train.crossing else None
    to_target = [line.to_step_s(crossing) for line in (clean, faulted)]
    digests = [r.train.params_sha256 for r in (alone, struck) if r.train]
    same = None if None in digests else digests[0] == digests[1]
    noticed = faulted.noticed_s
    return FaultInfo(
        on=on,
        at=injection.at,
        step=steps[len(before)],
        of_steps=steps[-1],
        resumed_step=steps[resumed],
        lost_steps=steps[len(before)] - steps[resumed],
        detected_s=None if noticed is None else noticed - faulted.struck_s,
        recovery_s=after[0][0] - faulted.struck_s,
        clean_wall_s=clean.wall_s,
        wall_s=faulted.wall_s,
        goodput=clean.wall_s / faulted.wall_s,
        clean_to_target_s=to_target[0],
        to_target_s=to_target[1],
        same_params=same,
    )
