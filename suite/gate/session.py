"""Take paired timings of two revisions, and say what they mean.

Each pair is a fresh process of either revision, because what a process is given once (addresses,
hash seeds, the layout of its memory) shifts all its timings together. Within a pair the two are
timed in turn, A B B A or B A A B, a few hundredths of a second each and many times over, until
either was at its own speed for a while. Where that takes too long the benchmark was disturbed, and
is timed again after the last pair (see `suite.gate.values`).

What one thread computes is timed on one and the same core, drawn for each pair: of two cores one
may be the slower for seconds.

A third process of the base, the twin, is timed against the base on one of the benchmarks: as it is,
which must not raise an alarm, and with every fifth call made once more, which must.
"""

import contextlib
import dataclasses
import functools
import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from suite.gate.decide import ALPHA
from suite.gate.side import Side, SideDied
from suite.gate.trees import Tree
from suite.gate.values import AT_SPEED, Speeds, Times, arm_of, times_of, to_take_again
from suite.record import AbBlock, AbComparison, AbRevision, utc

PAIRS = 12
# A block of calls is one measurement; a visit is what a process measures before it is the other's
# turn; a round is two visits of each.
BLOCK_S, BLOCKS, ROUNDS = 0.005, 4, 8
SIDE_S = 0.8  # Of slow benchmarks a process measures about so much.
PATIENCE = 2.5  # Up to so many times the rounds, until either side was at its own speed.
AGAIN = 2  # At most so often a session times again what was disturbed.
SLOWED = 5  # Of so many calls one is made twice: +20 %.
# None where the system lets nobody choose.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# Up to one processor's time and not much less than the wall's: one thread that computes.
ONE_THREAD = (0.75, 1.1)
TIMEOUT_S = 900.0
ATTEMPTS = 3

Control = Literal["none", "aa", "slowed"]
Listener = Callable[[str, int, str], None]


class NothingToCompare(ValueError):
    """No benchmark that both revisions have could be timed."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a session goes.

    Attributes:
        looks: number of pairs -> the level at which the session is judged when it has them.
        select: paths and options that choose benchmarks, as pytest takes them.
        seed: of the order within the pairs.
        timeout_s: how long a process may take over one request.
        again: at most so many pairs more, of what was disturbed.
    """

    looks: Mapping[int, float] = dataclasses.field(default_factory=lambda: {PAIRS: ALPHA})
    select: tuple[str, ...] = ()
    seed: int = 0
    timeout_s: float = TIMEOUT_S
    again: int = AGAIN


@dataclasses.dataclass
class Subject:
    """A benchmark as the scouts found it.

    Attributes:
        calls: of one block.
        blocks: of one visit.
        rounds: of one pair; 0 where it may be called but once: then each side has one visit.
        most_rounds: of a pair whose sides were not long at their speed.
        clock: what decides: ``cpu`` for one thread that computes, ``gpu`` where a GPU works,
            else ``wall``.
        warms: whether it may be called before it is timed.
        cost_s: of one call.
    """

    calls: int
    blocks: int
    rounds: int
    most_rounds: int
    clock: Literal["wall", "cpu", "gpu"]
    warms: bool
    cost_s: float


@dataclasses.dataclass
class Found:
    """What a session knows so far.

    Attributes:
        subjects: benchmark -> how it is timed.
        outcomes: benchmark -> why it is not: ``missing``, ``new``, ``broken``, ``repaired``,
            ``broken before``, ``skipped``; and what was said.
        twin: the benchmark of the controls.
    """

    subjects: dict[str, Subject]
    outcomes: dict[str, tuple[str, str]]
    twin: str = ""


def session(
    base: Tree,
    cand: Tree,
    plan: Plan,
    judge: Callable[[Sequence[AbBlock]], bool],
    listen: Listener = lambda event, pair, name: None,
) -> Iterator[AbBlock]:
    """Take pairs, one block each, until a look settles it or there are no more looks.

    Args:
        base: what is compared with.
        cand: what is judged.
        plan: how many, of what.
        judge: told all blocks so far at each look; says whether the session is settled.
        listen: called with ``scout``, ``pair`` or ``again``, the pair's number, and a benchmark.

    Raises:
        NothingToCompare: no benchmark could be timed on both sides.
        SideDied: the processes do not come up, or end again and again.
    """
    name = re.sub("[-:.]", "", utc())
    order = random.Random(plan.seed)
    with tempfile.TemporaryDirectory(prefix="suite-gate-") as folder:
        bench = _Bench(base, cand, plan, Path(folder), listen)
        found = bench.scout()
        blocks: list[AbBlock] = []
        left = plan.again
        for number in range(1, max(plan.looks) + 1):
            blocks.append(bench.pair(name, len(blocks) + 1, found, order))
            yield blocks[-1]
            if not found.subjects:
                raise NothingToCompare(_why_nothing(found))
            if number not in plan.looks:
                continue
            while left and (again := [n for n in to_take_again(blocks) if n in found.subjects]):
                left -= 1
                blocks.append(bench.pair(name, len(blocks) + 1, found, order, again))
                yield blocks[-1]
            if judge(blocks):
                return


def _why_nothing(found: Found) -> str:
    if not found.outcomes:
        return "no test here uses pytest-benchmark's fixture; name the files that do"
    listed = "\n".join(
        "  " + ": ".join(filter(None, (name, kind, *said.splitlines()[-1:])))
        for name, (kind, said) in sorted(found.outcomes.items())
    )
    return f"no benchmark could be timed on both sides:\n{listed}"


class _Bench:
    """Starts the processes of a pair and walks them through the benchmarks together."""

    def __init__(self, base: Tree, cand: Tree, plan: Plan, folder: Path, listen: Listener) -> None:
        self.trees = {"base": base, "cand": cand, "twin": base}
        self.plan, self.folder, self.listen = plan, folder, listen
        self.started = 0
        self.speeds: dict[tuple[str, Control], Speeds] = {}

    def scout(self) -> Found:
        """See which benchmarks both revisions have, and how long a call of each takes."""
        found = Found({}, {})

        def once() -> None:
            with self._sides("base", "cand") as (sides, had):
                base, cand = had["base"], had["cand"]
                found.outcomes |= {n: ("missing", "") for n in base if n not in cand}
                found.outcomes |= {n: ("new", "") for n in cand if n not in base}
                names = [n for n in base if n in cand and n not in found.outcomes]
                self._walk(sides, names, found, functools.partial(self._size, found))

        self._again_without_what_kills(once)
        if not found.subjects:
            raise NothingToCompare(_why_nothing(found))
        able = {n: s for n, s in found.subjects.items() if s.warms} or found.subjects
        found.twin = min(able, key=lambda n: (able[n].cost_s, n))
        return found

    def pair(
        self,
        session: str,
        number: int,
        found: Found,
        order: random.Random,
        again: Sequence[str] = (),
    ) -> AbBlock:
        """Time every benchmark, or those to take again, in fresh processes of both revisions."""
        names = list(again or found.subjects)
        starters = {n: order.random() < 0.5 for n in names}
        cores = {n: order.choice(CORES) for n in names if CORES}
        made: list[AbComparison] = []

        def compare(sides: Mapping[str, Side], name: str) -> None:
            self.listen("again" if again else "pair", number, name)
            one = cores.get(name) if found.subjects[name].clock == "cpu" else None
            made.extend(self._compared(found, starters[name], one, sides, name))

        def once() -> None:
            made.clear()
            here = [n for n in names if n in found.subjects]
            both = ("base", "cand", "twin") if found.twin in here else ("base", "cand")
            with self._sides(*both) as (sides, _):
                self._walk(sides, here, found, compare, twin=found.twin)

        self._again_without_what_kills(once)
        return AbBlock(
            session=session,
            pair=number,
            again=bool(again),
            base=_revision(self.trees["base"]),
            cand=_revision(self.trees["cand"]),
            comparisons=[c for c in made if c.benchmark in found.subjects],
            outcomes=dict(sorted(found.outcomes.items())),
        )

    def _again_without_what_kills(self, once: Callable[[], None]) -> None:
        """Begin again where a benchmark killed its process: it has left the session by then."""
        for attempt in range(ATTEMPTS):
            try:
                return once()
            except _Killed as error:
                if attempt == ATTEMPTS - 1:
                    raise SideDied(f"{ATTEMPTS} times in a row: {error}") from error

    @contextlib.contextmanager
    def _sides(self, *names: str) -> Iterator[tuple[dict[str, Side], dict[str, list[str]]]]:
        """Processes that came up side by side, and the benchmarks that each has."""
        sides: dict[str, Side] = {}
        try:
            for name in names:
                other = self.trees["base" if name == "cand" else "cand"].path
                apart = None if other == self.trees[name].path else other
                self.started += 1
                place = self.folder / str(self.started)
                selected = list(self.plan.select)
                sides[name] = Side(self.trees[name], apart, selected, place, self.plan.timeout_s)
            yield sides, {name: list(side.hear()[1]) for name, side in sides.items()}
        finally:
            for side in sides.values():
                side.end()

    def _walk(
        self,
        sides: Mapping[str, Side],
        names: Sequence[str],
        found: Found,
        measure: Callable[..., None],
        twin: str = "",
    ) -> None:
        """Go through benchmarks in step; what cannot be timed on a side leaves the session."""
        for name, side in sides.items():
            side.tell("wanted", [twin] if name == "twin" else list(names))
        for name in names:
            here = {n: s for n, s in sides.items() if n != "twin" or name == twin}
            try:
                outcome = _held_open(here, name, measure)
            except SideDied as error:
                dead = [n for n, s in here.items() if s.process.poll() is not None]
                found.outcomes[name] = "broken" if dead == ["cand"] else "broken before", str(error)
                found.subjects.pop(name, None)
                raise _Killed(f"{name}: {error}") from error
            if outcome:
                found.outcomes[name] = outcome
                found.subjects.pop(name, None)

    def _size(self, found: Found, sides: Mapping[str, Side], name: str) -> None:
        """Decide from the base's first calls how a benchmark is timed."""
        self.listen("scout", 0, name)
        _, times = sides["base"].ask("warm")
        found.subjects[name] = subject_of(*times, most=sides["base"].most)

    def _compared(
        self,
        found: Found,
        base_first: bool,
        core: int | None,
        sides: Mapping[str, Side],
        name: str,
    ) -> list[AbComparison]:
        """Time a benchmark, and where there is a twin, the controls."""
        subject = found.subjects[name]
        if subject.warms:
            for side in sides.values():
                side.ask("warm")
        pair = sides["base"], sides["cand"]
        made = [self._timed(name, "none", *pair, subject, base_first, core)]
        if twin := sides.get("twin"):
            fifths = dataclasses.replace(subject, calls=SLOWED * math.ceil(subject.calls / SLOWED))
            pair = sides["base"], twin
            for control in ("aa", "slowed"):
                made.append(self._timed(name, control, *pair, fifths, base_first, core))
        return made

    def _timed(
        self,
        name: str,
        control: Control,
        base: Side,
        cand: Side,
        subject: Subject,
        base_first: bool,
        core: int | None,
    ) -> AbComparison:
        """Time two processes in turn, both on one core if one is given."""
        arms: list[list[Times]] = [[], []]
        quickest: list[list[float]] = [[], []]  # Of each visit's blocks.
        order = [0, 1] if base_first else [1, 0]
        turns = [*order, *reversed(order)] if subject.rounds else order
        extra = [0, subject.calls // SLOWED if control == "slowed" else 0]
        speeds = self.speeds.setdefault((name, control), Speeds())
        # A slow benchmark has few visits.
        needed = min(AT_SPEED, 2 * subject.rounds)
        rounds = 0
        while rounds < max(1, subject.rounds) or (
            rounds < subject.most_rounds and not speeds.reached(quickest, needed)
        ):
            for i in turns:
                request = subject.calls, subject.blocks, extra[i], core
                _, times = (base, cand)[i].ask("time", *request)
                arms[i] += times
                quickest[i].append(min(times_of(arm_of(times), subject.clock)))
            rounds += 1
        speeds.learn(quickest)
        return AbComparison(
            benchmark=name,
            control=control,
            clock=subject.clock,
            calls=subject.calls,
            rounds=rounds,
            base_first=base_first,
            base=arm_of(arms[0]),
            cand=arm_of(arms[1]),
        )


class _Killed(Exception):
    """A process ended in the middle of a benchmark."""


def _held_open(
    sides: Mapping[str, Side], name: str, measure: Callable[..., None]
) -> tuple[str, str] | None:
    """Measure a benchmark that all processes hold open; return why it is to leave the session."""
    first = {n: s.hear() for n, s in sides.items()}
    ready = [n for n, message in first.items() if message[0] == "ready"]
    if len(ready) == len(sides):
        for n in ready:
            sides[n].most = first[n][1]
        measure(sides, name)
    last = {n: sides[n].ask("leave") if n in ready else first[n] for n in sides}
    return _outcome(last, ready)


def clock_for(wall_s: float, cpu_s: float, delayed_s: float) -> Literal["wall", "cpu"]:
    """Which clock decides: the processor's where one thread computes, and waits for nothing.

    Args:
        wall_s: of a call.
        cpu_s: of all threads.
        delayed_s: for which the calling thread was ready and had no processor: it is the machine
            that is busy then, and the thread does not wait.
    """
    busy = cpu_s / max(wall_s - delayed_s, 1e-9)
    return "cpu" if ONE_THREAD[0] <= busy <= ONE_THREAD[1] else "wall"


def subject_of(
    wall_s: float, cpu_s: float, gpu_s: float | None, delayed_s: float, *, most: int | None = None
) -> Subject:
    """How a benchmark is timed whose call takes so long, and may be made so often."""
    clock = clock_for(wall_s, cpu_s, delayed_s)
    cost_s = max(cpu_s if clock == "cpu" and gpu_s is None else wall_s, 1e-9)
    calls = max(1, math.ceil(BLOCK_S / cost_s))
    # Slow calls get fewer of everything, so that no benchmark takes much longer than another.
    blocks = max(1, min(BLOCKS, round(BLOCKS * BLOCK_S / (calls * cost_s))))
    rounds = max(1, min(ROUNDS, round(SIDE_S / (2 * calls * blocks * cost_s))))
    most_rounds = rounds if gpu_s is not None else round(PATIENCE * rounds)
    warms = True
    if most is not None:
        # As often as the test itself would call it: what it counts on may be used up by then.
        rounds = most_rounds = max(1, min(rounds, most // 2))
        visits = 2 * rounds if most >= 2 else 1
        calls = max(1, min(calls, most // visits))
        blocks = max(1, min(blocks, most // (visits * calls)))
        warms = most > 2 * visits * calls * blocks
    return Subject(
        calls,
        blocks,
        0 if most == 1 else rounds,
        most_rounds,
        "gpu" if gpu_s is not None else clock,
        warms,
        cost_s,
    )


def _outcome(last: Mapping[str, tuple[Any, ...]], ready: Sequence[str]) -> tuple[str, str] | None:
    """Why a benchmark leaves the session, from what the processes said at its end."""
    failed = {n: m[1] for n, m in last.items() if m[1]}
    skipped = {n: m[2] for n, m in last.items() if m[2]}
    strange = {n: m[3] for n, m in last.items() if m[3]}
    if strange:
        n, modules = next(iter(strange.items()))
        return "mixed up", f"{n} runs {modules[0]} of the other revision"
    if failed:
        said = "\n".join(next(iter(failed.values())).splitlines())
        if "base" in failed or "twin" in failed:
            return ("broken before" if "cand" in failed else "repaired"), said
        return "broken", said
    if skipped:
        return "skipped", next(iter(skipped.values()))
    if len(ready) < len(last):
        return "skipped", "it does not call its benchmark fixture"
    return None


def _revision(tree: Tree) -> AbRevision:
    return AbRevision(
        name=tree.name, commit=tree.commit, dirty=tree.dirty, diff_sha256=tree.diff_sha256
    )
