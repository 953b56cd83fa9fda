"""What pairs and runs come to: a pure function of records, so that anybody can repeat it.

The time to a target is the number of steps times the time of a step. A kernel acts on the second;
the first has to be shown to be the same. For the second there is a prediction, Amdahl's law: where
an op has a share s of the baseline's step and is r times as fast alone, a step should take
1 - s (1 - 1 / r) of its time. That it does not is a finding.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suite.attribute.request import CONTROL, without
from suite.gate.decide import Decision, decide
from suite.gate.values import times_of
from suite.record import FINISHED, AbArm, Attribution, OpCall, Record
from suite.report.series import device_of, machine_of, overrides_of, was_timed
from suite.stats import Interval, hodges_lehmann_interval, wilcoxon_signed_rank

# Steps to the target are the same if they differ by less, as tested at ALPHA.
SAME_STEPS = 0.05
ALPHA = 0.05
LEVEL = 0.95

EQUIVALENT, DIFFERENT, INCONCLUSIVE = "EQUIVALENT", "DIFFERENT", "INCONCLUSIVE"
UNTIMED = "UNTIMED"

Steps = Mapping[int, float | None]


@dataclass(frozen=True)
class Equivalence:
    """Whether two implementations take as many steps to the target, over seeds.

    Attributes:
        verdict: EQUIVALENT (two one-sided tests), DIFFERENT (by more than the bound), INCONCLUSIVE,
            or UNTIMED where there is nothing to compare.
        ratio: of the steps, to those of the baseline; None without a pair that reached it.
        pairs: seeds that both were run with.
        missed: of those, how many did not reach the target on both sides.
        why: what a reader should know besides.
    """

    verdict: str
    ratio: Interval | None
    pairs: int
    missed: int
    why: str = ""


@dataclass(frozen=True)
class CallEffect:
    """Calls that are alike, in one implementation.

    Attributes:
        call: as the newest pair has them.
        share: of the calls of its op.
        seconds: of a call: of the baseline, and of the implementation; None without.
        faster: how many times as long the baseline takes.
    """

    call: OpCall
    share: float
    seconds: tuple[float, float] | None
    faster: Interval | None


@dataclass(frozen=True)
class OpEffect:
    """What one op has to do with the step.

    Attributes:
        op: its name.
        kinds: kinds of calls that were timed alone.
        timed_share: the share of its calls that those are.
        calls_per_step: of the baseline.
        faster: how many times as long the baseline takes for the task's calls, alone.
        share: of the baseline's step, forwards and backwards.
        predicted: the step's time by Amdahl's law if only this op changes, to the baseline's.
        measured: likewise, as measured: one plus what it adds to the step where all others change.
        error: the largest error of a call, as a multiple of what is allowed.
        why: why something is missing.
    """

    op: str
    kinds: int
    timed_share: float
    calls_per_step: float
    faster: Interval | None
    share: Interval | None
    predicted: Interval | None
    measured: Interval | None
    error: float | None
    why: str


@dataclass(frozen=True)
class Effect:
    """What an implementation does to a task, against the baseline. Ratios are to the baseline's.

    Attributes:
        record: the newest of its pairs, for all that they share.
        part: what that says.
        impl: the implementation.
        pairs: how many there are with this implementation.
        ops: op by op.
        calls: call by call, for what it does to them alone.
        predicted: the step's time by Amdahl's law.
        step: the step's time as measured; None where the implementation could not run.
        decision: what the gate says of it.
        control: the baseline's step, to itself.
        step_s: seconds of a step: of the baseline, and of the implementation.
        steps: to the target.
        base_steps: of the baseline, the median over seeds; None where none reached it.
        time: to the target.
        energy: to the target.
        why: why it could not run.
        inputs: ids of the records that this rests on.
    """

    record: Record
    part: Attribution
    impl: str
    pairs: int
    ops: tuple[OpEffect, ...]
    calls: tuple[CallEffect, ...]
    predicted: Interval | None
    step: Interval | None
    decision: Decision | None
    control: Decision | None
    step_s: tuple[float, float] | None
    steps: Equivalence
    base_steps: float | None
    time: Interval | None
    energy: Interval | None
    joules_per_step: float | None
    why: str
    inputs: tuple[str, ...]

    @property
    def task(self) -> str:
        """The task's id."""
        return str(self.record.config.resolved["name"])

    @property
    def machine(self) -> str:
        """What it was measured on, with how many threads."""
        threads = self.record.env.torch.num_threads
        on_cpu = f", {threads} thread{'s' * (threads > 1)} each" * (device_of(self.record) == "cpu")
        return machine_of(self.record) + on_cpu

    @property
    def base_s(self) -> float | None:
        """Seconds of training to the target in the baseline: median steps by its step."""
        if self.base_steps is None or self.step_s is None:
            return None
        return self.base_steps * self.step_s[0]

    @property
    def base_j(self) -> float | None:
        """Joules of training to the target in the baseline."""
        if self.base_steps is None or self.joules_per_step is None:
            return None
        return self.base_steps * self.joules_per_step

    @property
    def base_usd(self) -> float | None:
        """What the machine costs for as long; None where no price was given."""
        price = self.part.price_per_hour
        return None if price is None or self.base_s is None else self.base_s * price / 3600


def effects(records: Iterable[Record]) -> list[Effect]:
    """What the pairs and runs among some records say.

    Of sessions that compare the same things on the same kind of machine the newest counts.
    """
    records = list(records)
    sessions: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: (r.ended_utc, r.record_id)):
        if record.attribution:
            pairs = sessions.setdefault(record.attribution.session, {})
            pairs[record.attribution.pair] = record
    newest: dict[tuple[str, ...], Effect] = {}
    for found in sorted(sessions.values(), key=lambda p: max(r.ended_utc for r in p.values())):
        for effect in _of_session([found[n] for n in sorted(found)], records):
            newest[_compared(effect)] = effect
    return [newest[key] for key in sorted(newest)]


def _compared(e: Effect) -> tuple[str, ...]:
    """What an effect is of."""
    task = e.record.task
    return (e.task, task.profile, e.record.variant, e.machine, e.part.baseline, e.impl)


def _of_session(records: Sequence[Record], all_records: Sequence[Record]) -> list[Effect]:
    """The effects of one session, judged together."""
    parts = [r.attribution for r in records if r.attribution]
    impls = list(dict.fromkeys(i for r in records for i in r.config.resolved["impls"]))
    step = {i: y for i in (*impls, CONTROL) if (y := _log_ratios(parts, i))}
    decisions = decide({n: y for n, y in step.items() if n != CONTROL}) if step else {}
    control = decide({CONTROL: step[CONTROL]})[CONTROL] if CONTROL in step else None
    return [
        _effect(records, parts, impl, decisions.get(impl), control, all_records) for impl in impls
    ]


def _effect(
    records: Sequence[Record],
    parts: Sequence[Attribution],
    impl: str,
    decision: Decision | None,
    control: Decision | None,
    all_records: Sequence[Record],
) -> Effect:
    with_it = [p for p in parts if impl in p.arms]
    last = records[-1]
    runs = {i: _runs(all_records, last, i) for i in (parts[-1].baseline, impl)}
    base, other = (_steps(found) for found in runs.values())
    steps = equivalence(base, other)
    step = _interval(_log_ratios(parts, impl))
    joules = _log_joules(with_it, impl)
    reached = [n for n in base.values() if n is not None]
    used = [r for found in runs.values() for r in found]
    return Effect(
        record=last,
        part=parts[-1],
        impl=impl,
        pairs=len(with_it),
        ops=tuple(_op(with_it or parts, impl, op) for op in parts[-1].ops),
        calls=tuple(_calls(with_it or parts, impl)),
        predicted=_interval(_predicted(with_it, impl, parts[-1].ops)),
        step=step,
        decision=decision,
        control=control,
        step_s=_step_s(with_it, impl),
        steps=steps,
        base_steps=float(np.median(reached)) if reached else None,
        time=_to_target(_log_ratios(parts, impl), steps, base, other),
        energy=_to_target(joules, steps, base, other),
        joules_per_step=_joules_per_step(with_it),
        why=next((p.outcomes[impl] for p in parts if impl in p.outcomes), ""),
        inputs=tuple(sorted({r.record_id for r in (*records, *used)})),
    )


def _log_ratios(parts: Iterable[Attribution], arm: str) -> list[float]:
    """Of each pair that has an arm ln(arm / baseline): the median over its rounds."""
    return [_log_ratio(p, arm) for p in parts if arm in p.arms]


def _log_ratio(p: Attribution, arm: str) -> float:
    times = [_typical(p.arms[n].times, p.clock, p.rounds) for n in (arm, p.baseline)]
    return float(np.median(np.log(times[0] / times[1])))


def _typical(arm: AbArm, clock: str, rounds: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """A side's time in each round, for the steps of two rounds differ.

    Of processor and GPU times the median. Of wall times the 20th percentile: what else the machine
    does only ever adds to them.
    """
    by_round = np.asarray(times_of(arm, clock)).reshape(rounds, -1)
    return np.asarray(np.quantile(by_round, 0.2 if clock == "wall" else 0.5, axis=1))


def _log_added(parts: Iterable[Attribution], impl: str, op: str) -> list[float]:
    """Of each pair ln of one plus what an op adds to the step, as a fraction of the baseline's."""
    found = []
    for p in parts:
        if impl in p.arms and without(impl, op) in p.arms:
            on, off = (math.exp(_log_ratio(p, n)) for n in (impl, without(impl, op)))
            found.append(math.log(max(1.0 + on - off, 1e-9)))
    return found


def _log_joules(parts: Iterable[Attribution], arm: str) -> list[float]:
    found = []
    for p in parts:
        used = [p.arms[n].energy_j for n in (arm, p.baseline) if n in p.arms]
        sums = [sum(j) for j in used if j]
        if len(sums) == 2 and min(sums) > 0:
            found.append(math.log(sums[0] / sums[1]))
    return found


def _joules_per_step(parts: Iterable[Attribution]) -> float | None:
    base = [p.arms[p.baseline] for p in parts]
    found = [sum(a.energy_j) / sum(a.steps) for a in base if a.energy_j]
    return float(np.median(found)) if found else None


def _step_s(parts: Sequence[Attribution], impl: str) -> tuple[float, float] | None:
    """Seconds of a step of the baseline, and of an implementation, by the clock that decides."""
    if not parts:
        return None
    found = [
        [np.median(_typical(p.arms[n].times, p.clock, p.rounds)) for n in (p.baseline, impl)]
        for p in parts
    ]
    base, other = np.median(found, axis=0)
    return float(base), float(other)


def _interval(y: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The Hodges-Lehmann estimate of log-ratios with its exact interval, as a ratio."""
    if not y:
        return None
    found = hodges_lehmann_interval(y, level)
    return dataclasses.replace(
        found,
        estimate=math.exp(found.estimate),
        low=math.exp(found.low) if math.isfinite(found.low) else 0.0,
        high=math.exp(found.high) if math.isfinite(found.high) else math.inf,
        scale="log",
    )


def _op(parts: Sequence[Attribution], impl: str, op: str) -> OpEffect:
    calls = [[c for c in p.calls if c.op == op] for p in parts]
    faster = [_log_faster(found, p.baseline, impl) for found, p in zip(calls, parts, strict=True)]
    shares = [share_of(p, op) for p in parts]
    last, seen = calls[-1], parts[-1]
    known = [s for s in shares if s is not None]
    timed, in_place = sum(c.calls for c in last), seen.in_place
    every = timed + seen.untimed.get(op, 0)
    errors = [a.err_rel / a.limit for c in last for a in c.accuracy.get(impl, ()) if a.err_rel]
    return OpEffect(
        op=op,
        kinds=len(last),
        timed_share=timed / every if every else 0.0,
        calls_per_step=in_place.calls.get(op, 0) / in_place.steps if in_place else 0.0,
        faster=_interval([y for y in faster if y is not None]),
        share=hodges_lehmann_interval(known) if known else None,
        predicted=_interval(_predicted(parts, impl, [op])),
        measured=_interval(_log_added(parts, impl, op)),
        error=max(errors, default=None),
        why="; ".join(dict.fromkeys(c.missing[impl] for c in last if impl in c.missing)),
    )


def _calls(parts: Sequence[Attribution], impl: str) -> Iterator[CallEffect]:
    """The kinds of calls of the newest pair, over all pairs that have them."""
    every = [(p.baseline, c) for p in parts for c in p.calls]
    for call in parts[-1].calls:
        alike = [(base, c) for base, c in every if _kind(c) == _kind(call)]
        known = [y for base, c in alike if (y := _log_faster([c], base, impl)) is not None]
        others = [c.calls for c in parts[-1].calls if c.op == call.op]
        yield CallEffect(
            call=call,
            share=call.calls / max(1, sum(others) + parts[-1].untimed.get(call.op, 0)),
            seconds=_seconds(alike, impl),
            faster=_interval(known),
        )


def _kind(call: OpCall) -> tuple[Any, ...]:
    return call.op, tuple(call.shape), call.dtype, tuple(call.gradients)


def _seconds(alike: Iterable[tuple[str, OpCall]], impl: str) -> tuple[float, float] | None:
    """Seconds of a call by its own clock, the median over pairs."""
    found = [
        [float(np.median(_typical(c.times[i], c.clock, c.rounds))) for i in (base, impl)]
        for base, c in alike
        if base in c.times and impl in c.times
    ]
    if not found:
        return None
    base_s, other_s = np.median(found, axis=0)
    return float(base_s), float(other_s)


def _log_faster(calls: Sequence[OpCall], baseline: str, impl: str) -> float | None:
    """How many times as long the baseline takes for these calls, each as often as in the task.

    None where one of them could not be timed: the others say nothing of it.
    """
    before = after = 0.0
    for call in calls:
        if baseline not in call.times or impl not in call.times:
            return None
        base = _typical(call.times[baseline], call.clock, call.rounds)
        other = _typical(call.times[impl], call.clock, call.rounds)
        seconds = call.calls * float(np.median(base))
        before += seconds
        after += seconds * math.exp(float(np.median(np.log(other / base))))
    return math.log(before / after) if calls else None


def share_of(part: Attribution, op: str) -> float | None:
    """The share of the baseline's step that an op has, forwards and backwards."""
    seen = part.in_place
    if seen is None or seen.seconds <= 0:
        return None
    return (seen.forward_s.get(op, 0.0) + seen.backward_s.get(op, 0.0)) / seen.seconds


def amdahl(changes: Iterable[tuple[float, float]]) -> float:
    """The time of a step, to what it was: 1 - sum of s (1 - 1 / r).

    Args:
        changes: of each op its share s of the step, and how many times as fast it is, r.
    """
    return 1.0 - sum(s * (1.0 - 1.0 / r) for s, r in changes)


def _predicted(parts: Iterable[Attribution], impl: str, ops: Sequence[str]) -> list[float]:
    """Of each pair ln of what Amdahl's law says, where all that it needs is known."""
    found = []
    for p in parts:
        changes = []
        for op in ops:
            y = _log_faster([c for c in p.calls if c.op == op], p.baseline, impl)
            share = share_of(p, op)
            if y is not None and share is not None:
                changes.append((share, math.exp(y)))
        left = amdahl(changes)
        if len(changes) == len(ops) and left > 0:
            found.append(math.log(left))
    return found


def _runs(records: Iterable[Record], like: Record, impl: str) -> list[Record]:
    """The runs of the attributed task under an implementation, one a seed.

    A run that was ended at its target counts where there is none to its budget: it crosses the
    target at the same step.
    """
    found: dict[int, Record] = {}
    for r in sorted(records, key=lambda r: (r.ended_utc, r.attempt, r.record_id)):
        if r.train is not None and r.status in FINISHED and r.impl == impl and _same(r, like):
            kept = found.get(r.seed)
            if kept is None or not overrides_of(r) or overrides_of(kept):
                found[r.seed] = r
    return [found[seed] for seed in sorted(found)]


def _same(run: Record, like: Record) -> bool:
    return (
        run.task.id == like.config.resolved["name"]
        and run.task.version == like.task.version
        and run.task.profile == like.task.profile
        and run.variant == like.variant
        and device_of(run) == device_of(like)
        and not run.extra.get("overrides")
        and was_timed(run)
    )


def _steps(runs: Iterable[Record]) -> dict[int, float | None]:
    """Seed -> steps to the target; None where it was not reached."""
    return {
        r.seed: float(r.train.crossing.hi_step)
        if r.train and r.train.crossing and r.status != "nan"
        else None
        for r in runs
    }


def equivalence(base: Steps, other: Steps) -> Equivalence:
    """Whether two implementations take as many steps to the target.

    Two one-sided exact signed-rank tests on the log-ratios of seeds that both were run with. A
    seed with which one side missed the target has no ratio, and no good verdict stands beside it.

    Args:
        base: seed -> steps of the baseline; None where the target was missed.
        other: the same of the other.
    """
    seeds = sorted(set(base) & set(other))
    if not seeds:
        return Equivalence(UNTIMED, None, 0, 0, "no runs to a target with both, on equal seeds")
    both = [(base[s], other[s]) for s in seeds]
    y = np.array([math.log(b / a) for a, b in both if a and b])
    missed = len(seeds) - len(y)
    if not len(y):
        return Equivalence(INCONCLUSIVE, None, len(seeds), missed, "no seed reached it with both")
    edge, ratio = math.log1p(SAME_STEPS), _interval([float(v) for v in y])
    inside = max(wilcoxon_signed_rank(y - edge, "less"), wilcoxon_signed_rank(y + edge, "greater"))
    beyond = min(wilcoxon_signed_rank(y - edge, "greater"), wilcoxon_signed_rank(y + edge, "less"))
    verdict, why = INCONCLUSIVE, ""
    if 2.0 ** -len(y) > ALPHA:
        why = f"{len(y)} seeds cannot tell: it takes {math.ceil(-math.log2(ALPHA))}"
    elif 2 * beyond <= ALPHA:
        verdict = DIFFERENT
    elif inside <= ALPHA and not missed:
        verdict = EQUIVALENT
    if missed:
        why = f"{missed} of {len(seeds)} seeds missed the target with one or both"
    return Equivalence(verdict, ratio, len(seeds), missed, why)


def _to_target(
    y: Sequence[float], steps: Equivalence, base: Steps, other: Steps
) -> Interval | None:
    """What a step costs times the steps, to the baseline's.

    Where the steps are equivalent it is the first alone; else both are uncertain, each is bounded
    at half the error, and the bounds are multiplied.
    """
    if not y or steps.ratio is None:
        return None
    if steps.verdict == EQUIVALENT:
        return _interval(y)
    half = 1 - (1 - LEVEL) / 2
    seeds = sorted(set(base) & set(other))
    logs = [math.log(b / a) for s in seeds if (a := base[s]) and (b := other[s])]
    cost, number = _interval(y, half), _interval(logs, half)
    assert cost is not None
    assert number is not None
    bounded = math.isfinite(cost.high) and math.isfinite(number.high)
    return Interval(
        estimate=cost.estimate * number.estimate,
        low=cost.low * number.low,
        high=cost.high * number.high if bounded else math.inf,
        level=LEVEL,
        n=min(cost.n, number.n),
        scale="log",
    )
