"""Run matrices on Ray.

Ray schedules slots, each an actor that holds its share of a node's processors and GPUs and one
killable worker process. What runs where, what is tried again and what counts is decided by
``suite.dispatch``, which knows nothing of Ray.
"""

import contextlib
import itertools
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from suite.cluster import Cluster, ClusterError, Node, first_line, in_bundle
from suite.dispatch import Cause, Dispatcher, Lease, Run
from suite.local import Backend, Campaign, Listener, Stop, stoppable
from suite.plan import Spec
from suite.record import Placement, Record
from suite.slot import BEAT_S, FENCE_GRACE_S, FENCE_S, Report, Slot, problem_of
from suite.store import StoreError
from suite.task import Needs, find
from suite.worker import GRACE_S, epitaph

# Longer than what a slot that was cut off takes to end its run.
SILENCE_S = FENCE_S + FENCE_GRACE_S + 10.0
CHECK_S = 90.0
FAREWELL_S = 5.0
WARM_UP_S = 300.0
LOOK_S = 5.0
TELL_S = 15.0
MAX_FAILED_STARTS = 5
AUTOSCALED_SLOTS = 256


@dataclass(frozen=True)
class Resources:
    """What the runs of a campaign may take.

    Attributes:
        cpus: cores of a run; the task's own needs when None.
        gpus: GPUs of a run on a GPU; the task's own needs when None.
        exclusive: one run a node, with all its cores.
        slots: runs at the same time, at most.
    """

    cpus: int | None = None
    gpus: float | None = None
    exclusive: bool = False
    slots: int | None = None

    def of(self, spec: Spec) -> Needs:
        """What a run takes of a node."""
        own = find(spec.task).needs_of(spec.profile, spec.config())
        gpus = own.gpus if self.gpus is None else self.gpus
        on_gpu = spec.device.startswith("cuda")
        if own.actors and self.exclusive:
            raise ValueError(f"{spec} has Ray actors beside it, so it cannot have a node alone")
        return Needs(self.cpus or own.cpus, gpus if on_gpu else 0.0, own.actors)


def backend(cluster: Cluster, resources: Resources) -> Backend:
    """A campaign's backend that runs its matrix on a cluster."""

    def run(runs: list[Run], campaign: Campaign, listen: Listener) -> Iterator[Record]:
        for one in runs:
            one.needs = resources.of(one.spec)
            # The slot ends a run at its limit; this is for a slot that does not.
            one.limit_s = campaign.limit_s(one.spec) + GRACE_S + WARM_UP_S
        with stoppable() as stop:
            yield from _Driver(cluster, resources, runs, campaign, listen).run(stop)

    return run


def require(cluster: Cluster, needs: Needs, what: str) -> None:
    """Raise ValueError when no node has, or may come to have, what a run needs."""
    nodes = cluster.nodes()
    if _room(nodes, needs):
        return
    to_come = cluster.to_come()
    cpus = needs.cpus + needs.actors
    if to_come.get("CPU", 0) >= cpus and to_come.get("GPU", 0) >= needs.gpus:
        return
    have = "; ".join(f"{n.address} {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes)
    beside = f", and {needs.actors} more for its Ray actors" if needs.actors else ""
    raise ValueError(
        f"{what} needs {needs} on one node{beside}; the cluster has: {have or 'no node'}"
    )


def check_nodes(nodes: Iterable[Node], uri: str, probe: str, versions: dict[str, str]) -> None:
    """See that every node that can run something reads and writes the store, and has this code.

    Args:
        nodes: where runs may go.
        uri: of the store.
        probe: the name of a file that this process has written into it.
        versions: task -> the version of its code here.

    Raises:
        StoreError: a node cannot use the store, or has other code.
        ClusterError: a node does not answer.
    """
    import ray

    look: Any = ray.remote(problem_of)
    calls = {
        look.options(num_cpus=0, scheduling_strategy=_on(node.id)).remote(
            uri, probe, versions
        ): node
        for node in nodes
        if node.cpus or node.gpus
    }
    ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=CHECK_S)
    for call in ready:
        try:
            problem = ray.get(call)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"node {calls[call].address}: {first_line(error)}") from error
        if problem:
            raise StoreError(f"node {calls[call].address}: {problem}{_advice(uri)}")
    if late:
        names = ", ".join(calls[call].address for call in late)
        raise ClusterError(f"no answer within {CHECK_S:g} s from: {names}")


def _room(nodes: list[Node], needs: Needs) -> int:
    """How many runs of these needs the nodes have room for, with the actors of each."""
    room = sum(_fits(node, needs) for node in nodes)
    if not needs.actors:
        return room
    return min(room, int(sum(node.cpus for node in nodes) // (needs.cpus + needs.actors)))


def _fits(node: Node, needs: Needs) -> int:
    """How many runs of these needs a node has room for."""
    by_cpu = int(node.cpus // needs.cpus)
    return min(by_cpu, int(node.gpus / needs.gpus + 1e-9)) if needs.gpus else by_cpu


@dataclass
class _Seat:
    """A slot as the driver sees it: its actor, the call under way, and its node once it is there.

    ``group`` reserves its share of the cluster where that is on several nodes; ``began_s`` and
    ``draft`` are those of its run.
    """

    needs: Needs
    actor: Any
    call: Any
    pinned: str = ""
    group: Any = None
    node: str = ""
    lease: Lease | None = None
    began_s: float = 0.0
    draft: dict[str, Any] = field(default_factory=dict)


class _Driver:
    """Asks a cluster for slots and has them do what the dispatcher says."""

    def __init__(
        self,
        cluster: Cluster,
        resources: Resources,
        runs: list[Run],
        campaign: Campaign,
        listen: Listener,
    ) -> None:
        self.cluster, self.resources, self.campaign, self.listen = (
            cluster,
            resources,
            campaign,
            listen,
        )
        self.uri = campaign.store.root if campaign.store.local else campaign.store.uri
        self.probe = f".probe-{secrets.token_hex(8)}"
        self.versions = {run.spec.task: run.spec.version for run in runs}
        for run in runs:
            require(cluster, run.needs, str(run.spec))
        self.dispatcher = Dispatcher(runs, silence_s=SILENCE_S, attempts=campaign.attempts)
        self.seats: dict[str, _Seat] = {}
        self.nodes: dict[str, Node] = {}
        self.autoscales = False
        self.left_out: set[str] = set()
        self.suspects: set[str] = set()
        self.looked_s = self.told_s = -math.inf
        self.failed_starts = 0
        self.names = itertools.count(1)

    def run(self, stop: Stop) -> Iterator[Record]:
        """Do all runs; however it ends, no slot of it is left."""
        self.campaign.store.write(self.probe, b"the driver was here")
        stopped = True
        try:
            self._look()
            check_nodes(self.nodes.values(), self.uri, self.probe, self.versions)
            while self.dispatcher.left:
                stop.check()
                self._grow()
                yield from self._turn()
            stopped = False
        finally:
            self._end(stopped)
            self.campaign.store.delete(self.probe)

    def _look(self) -> None:
        usable = {n.id: n for n in self.cluster.nodes() if n.id not in self.left_out}
        if usable.keys() <= self.suspects:
            # When all were silent, it was this process that could not hear.
            self.suspects.clear()
        self.nodes = {i: n for i, n in usable.items() if i not in self.suspects}
        self.autoscales = bool(self.cluster.to_come())
        self.looked_s = time.monotonic()

    def _grow(self) -> None:
        """Ask for as many slots as can be used and may fit."""
        now = time.monotonic()
        if now - self.looked_s > LOOK_S:
            self._look()
        for needs in self.dispatcher.wanted:
            held = [s for s in self.seats.values() if s.needs == needs]
            idle = sum(s.lease is None for s in held)
            for node_id in self._places(needs, held)[: self.dispatcher.waiting(needs) - idle]:
                if len(self.seats) < (self.resources.slots or math.inf):
                    self._ask(needs, node_id)
        self._release()
        if not any(s.node for s in self.seats.values()) and now - self.told_s > TELL_S:
            if self.told_s > 0:
                self.listen("notice", None, f"waiting for room on {self.cluster}")
            self.told_s = now

    def _places(self, needs: Needs, held: list[_Seat]) -> list[str]:
        """Where further slots may go: node ids, or "" where Ray is to choose."""
        able = [n for n in self.nodes.values() if _fits(n, needs)]
        if self.resources.exclusive:
            taken = {s.pinned for s in held}
            return [n.id for n in able if n.id not in taken]
        room = _room(list(self.nodes.values()), needs)
        if self.autoscales:
            room = max(room, AUTOSCALED_SLOTS)
        elsewhere = self._away_from_driver(able)
        return [elsewhere] * (room - len(held))

    def _away_from_driver(self, able: list[Node]) -> str:
        """For a run whose node is to be killed: a node that is not this process's own."""
        if self.campaign.strike is None or self.campaign.strike.kind != "node_kill":
            return ""
        return next((n.id for n in able if n.id != self.cluster.driver_node), "")

    def _ask(self, needs: Needs, node_id: str) -> None:
        import ray

        cpus: float = needs.cpus
        if self.resources.exclusive:
            cpus = self.nodes[node_id].cpus
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": needs.gpus, "max_restarts": 0}
        avoided = ",".join(sorted(self.left_out | self.suspects))
        elsewhere = {"ray.io/node-id": f"!in({avoided})"} if avoided else {}
        group = None
        if needs.actors:
            there = {"ray.io/node-id": node_id} if node_id else elsewhere
            group = _reserved(needs, there, elsewhere)
            options["scheduling_strategy"] = in_bundle(group, 0)
        elif node_id:
            options["scheduling_strategy"] = _on(node_id)
        elif elsewhere:
            options["label_selector"] = elsewhere
        # The second thread is for ``stop``, which must not wait for an exchange to end.
        slot: Any = ray.remote(Slot)
        actor = slot.options(max_concurrency=2, **options).remote(
            self.uri, int(cpus), self.probe, self.versions
        )
        name = f"slot-{next(self.names)}"
        self.seats[name] = _Seat(needs, actor, actor.hello.remote(), node_id, group)

    def _release(self) -> None:
        """End idle slots that hold what runs of other needs wait for."""
        if not self.dispatcher.wanted:
            return
        for name, seat in list(self.seats.items()):
            useless = seat.lease is None and not self.dispatcher.waiting(seat.needs)
            if useless:
                self._drop(name)

    def _turn(self) -> Iterator[Record]:
        """Take in what the slots have reported, and give up on those that should have."""
        import ray

        calls = {seat.call: name for name, seat in self.seats.items()}
        if not calls:
            time.sleep(BEAT_S)
            return
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=BEAT_S)
        if ready:
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            yield from self._take(calls[call])
        now = time.monotonic()
        for name in self.dispatcher.silent(now):
            yield from self._lose(name, f"no sign of life for {SILENCE_S:g} s", suspect=True)
        for name in self.dispatcher.overdue(now):
            yield from self._lose(name, "its run should have been ended there, and was not")

    def _take(self, name: str) -> Iterator[Record]:
        import ray

        seat = self.seats[name]
        try:
            answer = ray.get(seat.call)
        except ray.exceptions.RayTaskError as error:
            raise _plain(error) from None
        except ray.exceptions.RayError as error:
            starved = "OUT_OF_MEMORY" in str(error)
            starved |= isinstance(error, ray.exceptions.OutOfMemoryError)
            yield from self._lose(name, first_line(error), "oom" if starved else "lost")
            return
        if not seat.node:
            self._seated(name, *answer)
        else:
            self.dispatcher.heard(name, time.monotonic())
            yield from self._read(name, answer)
            if answer.fenced and name in self.seats:
                yield from self._lose(name, "it had not heard from this process and gave up")
        if name in self.seats:
            self._continue(name)

    def _seated(self, name: str, node_id: str, problem: str) -> None:
        """A slot is there. A node that joined late and cannot be used is left out, and named."""
        seat = self.seats[name]
        if problem:
            self.listen("notice", None, f"node {self._address(node_id)} is left out: {problem}")
            self.left_out.add(node_id)
            self._drop(name)
            return
        seat.node = node_id
        self.failed_starts = 0
        self.dispatcher.join(name, seat.needs, time.monotonic())

    def _continue(self, name: str) -> None:
        """Call a slot again, with a run if it is idle and one waits."""
        seat, now = self.seats[name], time.monotonic()
        job, limit_s = None, math.inf
        if seat.lease is None:
            seat.lease = self.dispatcher.lease(name, now)
            if seat.lease is not None:
                seat.began_s, seat.draft = now, {}
                job = self.campaign.job(seat.lease.run, self._placement(seat))
        if seat.lease is not None:
            limit_s = self.campaign.limit_s(seat.lease.run.spec)
        seat.call = seat.actor.exchange.remote(job, limit_s, self.campaign.prompt)

    def _placement(self, seat: _Seat) -> Placement:
        node = self.nodes.get(seat.node) or Node(seat.node, "unknown", seat.needs.cpus, 0.0)
        alone = self.resources.exclusive
        share = min(_fits(node, seat.needs), self.resources.slots or 2**31)
        neighbours = 0 if alone else max(0, min(share, len(self.seats)) - 1)
        # What others run on the rest of a node of theirs is not known here.
        owned = self.cluster.private or node.cpus <= seat.needs.cpus
        return Placement(
            scheduler="ray",
            workers=len(self.seats),
            cpus=int(node.cpus) if alone else seat.needs.cpus,
            gpus=seat.needs.gpus,
            colocated_runs=neighbours,
            contended=not alone and (neighbours > 0 or not owned),
            exclusive=alone,
            node=node.address,
        )

    def _read(self, name: str, report: Report) -> Iterator[Record]:
        seat = self.seats[name]
        if seat.lease is None:
            return
        spec, record = seat.lease.run.spec, None
        for kind, content in report.messages:
            if kind == "ended":
                record = content
                continue
            if kind == "started":
                seat.draft = content
            self.listen(kind, spec, content)  # type: ignore[arg-type]
            if kind == "struck" and content == "node_kill":
                seat.actor.take_down_node.remote()
        if report.cause is not None:
            yield from self._settle(name, report.cause, record)

    def _settle(self, name: str, cause: Cause, record: Record | None) -> Iterator[Record]:
        """The run of a slot has ended, with a record or before it began."""
        seat = self.seats[name]
        lease, seat.lease = seat.lease, None
        assert lease is not None
        spec = lease.run.spec
        if record is not None and (cause != "own" or record.status == "timeout"):
            self.campaign.store.put(record)
        record_id = None if record is None else record.record_id
        verdict = self.dispatcher.settle(lease.number, cause, record_id)
        if record is None and verdict == "final":
            raise ClusterError(f"{spec} was lost {lease.run.tries} times before it could begin")
        if record is not None and verdict != "late":
            self.listen("again" if verdict == "again" else "ended", spec, record)
            if verdict == "final":
                yield record

    def _lose(
        self, name: str, why: str, cause: Cause = "lost", *, suspect: bool = False
    ) -> Iterator[Record]:
        """A slot is lost: its run goes to another one."""
        seat = self.seats[name]
        where = self._address(seat.node)
        if not seat.node:
            self._failed_start(why)
        elif suspect and seat.node != self.cluster.driver_node:
            self.suspects.add(seat.node)
        if seat.lease is not None:
            record = self._unheard(seat.lease.run)
            if record is not None:
                cause = "own"
            elif seat.draft:
                wall_s = time.monotonic() - seat.began_s
                story = f"the slot on node {where} was lost: {why}"
                status = "oom" if cause == "oom" else "infra_error"
                record = epitaph(seat.draft, status, story, wall_s)
            yield from self._settle(name, cause, record)
        self._drop(name)
        self.looked_s = -math.inf

    def _unheard(self, run: Run) -> Record | None:
        """The record of this attempt if a lost slot could still write it, though not report it.

        A slot that is cut off ends its run before it counts as lost here, so no record comes later.
        """
        spec = run.spec
        earlier = self.campaign.store.attempts(spec.task, [spec.run_id]).get(spec.run_id, [])
        return next((r for r in earlier if r.attempt == run.attempt), None)

    def _failed_start(self, why: str) -> None:
        self.failed_starts += 1
        if self.failed_starts > MAX_FAILED_STARTS:
            raise ClusterError(f"slots cannot be started: {why}")

    def _address(self, node_id: str) -> str:
        node = self.nodes.get(node_id)
        return node.address if node else node_id[:12] or "unknown"

    def _drop(self, name: str) -> None:
        import ray

        self.dispatcher.lose(name)
        seat = self.seats.pop(name)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(seat.actor)
            if seat.group is not None:
                ray.util.remove_placement_group(seat.group)

    def _end(self, stopped: bool) -> None:
        """End all slots; when stopped, runs under way get their grace to write a snapshot."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ending = [s.actor.stop.remote() for s in self.seats.values() if s.node]
            if ending:
                limit_s = GRACE_S if stopped else 0.0
                ray.wait(ending, num_returns=len(ending), timeout=limit_s + FAREWELL_S)
        for name in list(self.seats):
            self._drop(name)


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _reserved(needs: Needs, where: dict[str, str], elsewhere: dict[str, str]) -> Any:
    """Room for a slot and the actors of its run, all of it or none.

    Slots that held a core each while they waited for their actors' could wait for one another.
    """
    from ray.util import placement_group

    own = {"CPU": float(needs.cpus)} | ({"GPU": needs.gpus} if needs.gpus else {})
    selectors = [where] + [elsewhere] * needs.actors
    return placement_group(
        [own] + [{"CPU": 1.0}] * needs.actors,
        strategy="PACK",
        bundle_label_selector=selectors if where or elsewhere else None,
    )


def _advice(uri: str) -> str:
    if "://" in uri:
        return ""
    return (
        "; on several nodes --store must be shared storage: s3://..., gs://... or a shared folder"
    )


def _plain(error: Any) -> Exception:
    """What a slot raised, as if it had been raised here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StoreError | ValueError):
        return type(cause)(*cause.args)
    return ClusterError(f"a slot failed: {first_line(cause or error)}")
