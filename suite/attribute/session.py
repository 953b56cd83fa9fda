"""Take pairs: live processes of one task, one for each implementation, timed in turn.

A pair is a set of fresh processes of the same run, that differ in the implementation of the task's
kernels alone. They are timed lap by lap, there and back through all of them (A B C C B A), so what
else the machine does falls on all alike; and in the same way each kind of call that the task makes
is timed alone, on the tensors that the baseline's run gave it. One pair is one value.
"""

import contextlib
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from suite import bench, provenance, task
from suite.attribute.laps import Lap, Seconds
from suite.attribute.request import CONTROL, Arm, Request
from suite.attribute.side import ArmFailed, Side
from suite.gate.session import clock_for, subject_of
from suite.gate.values import arm_of
from suite.record import (
    ATTRIBUTIONS,
    AbArm,
    Attribution,
    AttributionArm,
    InPlace,
    NodeInfo,
    OpCall,
    Record,
    TaskInfo,
    digest,
    utc,
)
from suite.store import Store

# Of training an arm is warmed up and timed for so long in a pair: a lap and two laps at least.
WARM_S, SECONDS = 0.3, 4.0
MOST_WARM, MOST_ROUNDS = 20, 20
# With all that is not trained, laps take so many times as long at most.
MOST_ELAPSED = 5
# Kinds of calls of an op that are timed; more come from sequences of many lengths.
MOST_KINDS = 6

Listener = Callable[[int, str], None]


class Asked(Protocol):
    """A process of an arm: ``ask`` gives what a method of ``laps.Laps`` returns."""

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer; raises ArmFailed."""

    def dismiss(self) -> None:
        """Have it end when it can."""

    def end(self) -> None:
        """End it."""


Start = Callable[[Arm, int, Path], Asked]


class BaselineFailed(RuntimeError):
    """The baseline's run does not go on, so there is nothing to compare with."""


def take(
    request: Request,
    pairs: int,
    store: Store,
    *,
    fresh: bool = False,
    price_per_hour: float | None = None,
    start: Start = Side,
    listen: Listener = lambda pair, what: None,
) -> list[Record]:
    """The records of so many pairs: those that the store holds, and the others once they are taken.

    Args:
        request: what to compare.
        pairs: how many.
        store: where each is written as soon as it is there.
        fresh: take pairs anew that the store holds.
        price_per_hour: of this machine in USD; costs are not recorded when None.
        start: makes a process.
        listen: told the pair and what is done.

    Raises:
        BaselineFailed: the run of the baseline breaks off.
        StoreError: the store cannot be written.
        KeyboardInterrupt: the pairs so far are recorded.
    """
    store.check_writable()
    known = {} if fresh else recorded(store, request)
    found = []
    for number in range(1, pairs + 1):
        if number not in known:
            begun, started = utc(), time.monotonic()
            node = provenance.node()
            pair = _Pair(request, number, start, listen).take(price_per_hour)
            spent = time.monotonic() - started
            known[number] = _record(request, pair, begun, spent, node)
            store.put(known[number])
        found.append(known[number])
    return found


def recorded(store: Store, request: Request) -> dict[int, Record]:
    """Pair -> its newest record, of those of the same session."""
    found: dict[int, Record] = {}
    records = store.scan(f"{ATTRIBUTIONS}{request.task}/*.json")
    for record in sorted(records, key=lambda r: (r.ended_utc, r.record_id)):
        part = record.attribution
        if part is not None and part.session == request.session:
            found[part.pair] = record
    return found


class _Pair:
    """Walks the processes of a pair through what is to be measured."""

    def __init__(self, request: Request, number: int, start: Start, listen: Listener) -> None:
        self.request, self.number, self.start = request, number, start
        self.listen = listen
        self.sides: dict[str, Asked] = {}
        self.outcomes: dict[str, str] = {}

    def take(self, price_per_hour: float | None) -> Attribution:
        """Measure everything once."""
        request = self.request
        arms = request.arms(seed=self.number - 1)
        order = [a.name for a in arms]
        random.Random(f"{request.session} {self.number}").shuffle(order)
        with self._started(arms):
            first, kinds = self._ask(request.baseline, "observe", request.ops)
            others = [n for n in self.sides if n != request.baseline]
            firsts = [first, *(x for n in others if (x := self._ask(n, "lap")))]
            calls = self._alone(kinds, order)
            self._laps(list(order) * warming(first))
            clock = clock_of(firsts, request.device)
            rounds = rounds_of(first, clock)
            laps = self._laps(there_and_back(order, rounds))
            in_place = self._in_place(clock, 2 * rounds)
            counted = {n: self._ask(n, "counted") for n in list(self.sides)}
            method = self._ask(request.baseline, "energy")
            live = [a for a in arms if a.name in self.sides]
            made = {a.name: _arm(a, laps[a.name], counted[a.name]) for a in live}
        return Attribution(
            session=request.session,
            pair=self.number,
            baseline=request.baseline,
            ops=list(request.ops),
            clock=clock,
            rounds=rounds,
            order=[n for n in order if n in made],
            arms=made,
            observed_steps=first.steps,
            untimed={
                op: sum(n for k, n in kinds.items() if k.op == op)
                - sum(c.calls for c in calls if c.op == op)
                for op in request.ops
            },
            calls=calls,
            in_place=in_place,
            outcomes=self.outcomes,
            energy_method=method,
            price_per_hour=price_per_hour,
        )

    @contextlib.contextmanager
    def _started(self, arms: Sequence[Arm]) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="suite-attribute-") as folder:
            try:
                for number, arm in enumerate(arms):
                    log = Path(folder) / f"{number}.log"
                    self.sides[arm.name] = self.start(arm, self.request.threads, log)
                yield
            finally:
                for side in self.sides.values():
                    side.dismiss()
                for side in self.sides.values():
                    side.end()

    def _ask(self, name: str, what: str, *arguments: Any) -> Any:
        """Ask an arm; one that fails leaves the pair, and without the baseline there is none."""
        self.listen(self.number, f"{name}: {what.replace('_', ' ')}")
        try:
            return self.sides[name].ask(what, *arguments)
        except ArmFailed as error:
            if name == self.request.baseline:
                raise BaselineFailed(f"{self.request.task}, {name}: {error}") from error
            self.outcomes[name] = str(error)
            self.sides.pop(name).end()
            return None

    def _alone(self, kinds: Mapping[Any, int], order: Sequence[str]) -> list[OpCall]:
        """Check and time the most frequent kinds of calls, outside of the task."""
        request = self.request
        if not kinds:
            raise BaselineFailed(f"{request.task}: its training calls none of {request.ops}")
        names = [n for n in order if n in (request.baseline, *request.impls)]
        examples = self._ask(request.baseline, "give")
        for name in [n for n in names if n != request.baseline and n in self.sides]:
            self._ask(name, "take", examples)
        often = sorted(kinds, key=lambda k: (-kinds[k], str(k)))
        chosen = [k for op in request.ops for k in [k for k in often if k.op == op][:MOST_KINDS]]
        return [self._call(kind, kinds[kind], names) for kind in chosen]

    def _call(self, kind: Any, calls: int, names: Sequence[str]) -> OpCall:
        accuracy, missing = {}, {}
        for name in [n for n in names if n in self.sides]:
            found = self._ask(name, "check", kind, name)
            if isinstance(found, str):
                missing[name] = found
            elif found is not None:
                accuracy[name] = [bench.accuracy_of(a) for a in found]
                if not all(a.ok for a in found):
                    missing[name] = "it is off by more than allowed"
        able = [n for n in names if n in accuracy and n not in missing]
        base = self.request.baseline
        subject = self._subject(kind, able) if base in able else None
        times = self._blocks(kind, able, subject) if subject else {}
        return OpCall(
            op=kind.op,
            shape=list(kind.shape),
            dtype=kind.dtype,
            mode=kind.mode,
            gradients=list(kind.wanted),
            calls=calls,
            rounds=subject.rounds if subject else 0,
            clock=subject.clock if subject else "wall",
            times=times,
            accuracy=accuracy,
            missing=missing | {n: self.outcomes[n] for n in names if n in self.outcomes},
        )

    def _subject(self, kind: Any, names: Sequence[str]) -> Any:
        """Warm a kind of call up in all arms; how it is timed follows from the baseline's."""
        found = {n: self._ask(n, "warm", kind, n) for n in names if n in self.sides}
        return subject_of(*found[self.request.baseline])

    def _blocks(self, kind: Any, names: Sequence[str], subject: Any) -> dict[str, AbArm]:
        spent: dict[str, list[Any]] = {n: [] for n in names}
        for name in there_and_back(names, subject.rounds):
            if name in self.sides:
                found = self._ask(name, "blocks", kind, name, subject.calls, subject.blocks)
                spent[name] += found or []
        return {n: arm_of(times) for n, times in spent.items() if n in self.sides}

    def _laps(self, turns: Sequence[str]) -> dict[str, list[Lap]]:
        laps: dict[str, list[Lap]] = {n: [] for n in turns}
        for name in turns:
            if name in self.sides:
                laps[name].append(self._ask(name, "lap"))
        return laps

    def _in_place(self, clock: Literal["wall", "cpu"], laps: int) -> InPlace | None:
        """Ops inside the baseline's laps, beside the same laps of the control, which stay as is."""
        plain: list[Lap] = []
        seen = []
        for _ in range(laps):
            seen.append(self._ask(self.request.baseline, "in_place", clock))
            if CONTROL in self.sides:
                plain.append(self._ask(CONTROL, "lap"))
        return _summed(seen, plain, clock, self.request) if CONTROL in self.sides else None


def there_and_back(names: Sequence[str], rounds: int) -> list[str]:
    """A B C C B A, so many times."""
    return [*names, *reversed(names)] * rounds


def warming(first: Lap) -> int:
    """How many more laps like this one an arm is warmed up with."""
    seconds = max(first.wall_s, first.elapsed_s / MOST_ELAPSED, 1e-9)
    return max(0, min(math.ceil(WARM_S / seconds), MOST_WARM) - 1)


def clock_of(laps: Sequence[Lap], device: str) -> Literal["wall", "cpu"]:
    """Which clock decides about laps like these."""
    if device != "cpu":
        return "wall"
    # The busiest lap: what a processor does in the others, it does not do for want of work.
    lap = max(laps, key=lambda x: x.cpu_s / max(x.wall_s - x.delayed_s, 1e-9))
    return clock_for(lap.wall_s, lap.cpu_s, lap.delayed_s)


def rounds_of(first: Lap, clock: str) -> int:
    """How often the arms take turns where a lap is like this one."""
    trained = first.cpu_s if clock == "cpu" else first.wall_s
    # What a task evaluates between two laps may take far longer than what it trains.
    seconds = max(trained, first.elapsed_s / MOST_ELAPSED, 1e-9)
    return max(1, min(round(SECONDS / (2 * seconds)), MOST_ROUNDS))


def _arm(arm: Arm, laps: Sequence[Lap], counted: dict[str, dict[str, int]]) -> AttributionArm:
    joules = [x.energy_j for x in laps if x.energy_j is not None]
    return AttributionArm(
        impl=arm.spec.impl,
        kept=list(arm.kept),
        dispatched=counted,
        steps=[x.steps for x in laps],
        times=AbArm(
            wall_s=[x.wall_s / x.steps for x in laps], cpu_s=[x.cpu_s / x.steps for x in laps]
        ),
        energy_j=joules if len(joules) == len(laps) else None,
    )


def _summed(
    seen: Sequence[tuple[Lap, Seconds, Mapping[str, int]]],
    plain: Sequence[Lap],
    clock: Literal["wall", "cpu"],
    request: Request,
) -> InPlace:
    """What was seen in all laps together."""

    def total(laps: Iterable[Lap]) -> float:
        return sum(x.cpu_s if clock == "cpu" else x.wall_s for x in laps)

    def of(op: str, which: str) -> float:
        return sum(seconds.get(op, {}).get(which, 0.0) for _, seconds, _ in seen)

    return InPlace(
        steps=sum(x.steps for x, _, _ in seen),
        clock="gpu" if request.device.startswith("cuda") else clock,
        seconds=total(plain),
        watched_s=total(x for x, _, _ in seen),
        forward_s={op: of(op, "forward") for op in request.ops},
        backward_s={op: of(op, "backward") for op in request.ops},
        calls={op: sum(n.get(op, 0) for _, _, n in seen) for op in request.ops},
    )


def _record(
    request: Request, pair: Attribution, begun: str, wall_s: float, node: NodeInfo
) -> Record:
    config: dict[str, Any] = {
        "name": request.task,
        "impls": list(request.impls),
        "ops": list(request.ops),
        "threads": request.threads,
    }
    run_id = digest({"session": request.session, "pair": pair.pair})
    env = provenance.env()
    return bench.sealed(
        pair,
        run_id=run_id,
        version=task.version(request.task),
        config=config,
        status="ok",
        wall_s=wall_s,
        started_utc=begun,
        gpu=request.device.startswith("cuda"),
        dispatched={},
        nodes=[node.model_copy(update={"load1_end": provenance.load1()})],
        campaign_id=f"attribution-{request.session[:16]}",
        task=TaskInfo(
            id=ATTRIBUTIONS + request.task,
            version=task.version(request.task),
            spec_sha256=run_id,
            profile=request.profile,
            chapter=int(request.task[2:4]),
            section="; ".join(task.find(request.task).sections),
            target=None,
        ),
        variant=request.variant,
        impl=request.baseline,
        seed=pair.pair - 1,
        env=env.model_copy(
            update={"torch": env.torch.model_copy(update={"num_threads": request.threads})}
        ),
        extra={"title": task.summary(request.task)["title"]},
    )
