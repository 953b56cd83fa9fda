"""Inside the process of an arm: the task's training, lap by lap, and its ops alone.

A lap is what the task trains between two evaluations. A run that comes to its end begins anew, with
the same seed, so the laps of all arms of a pair are of the same work in the same order. What a run
would replay as CUDA graphs, a lap launches op by op.
"""

import contextlib
import io
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kernels import dispatch
from kernels.bench.accuracy import Accuracy as Error
from kernels.bench.observe import Example, Kind, Spans, Watch, cost_of_marks, uncaptured
from kernels.bench.providers import CannotRun
from kernels.bench.timing import make_current
from suite import provenance
from suite.attribute.request import Arm
from suite.gate.probe import Timed, Times, Warm, delayed_s
from suite.record import Placement
from suite.run import Attempt, Meter

# Op -> ``forward`` and ``backward`` -> seconds.
Seconds = dict[str, dict[str, float]]


class RunFailed(RuntimeError):
    """The task's run broke off, or trains nothing; the message says how."""


@dataclass(frozen=True)
class Lap:
    """The training between two evaluations, in all.

    Attributes:
        steps: of the task.
        wall_s: seconds.
        cpu_s: of all threads of the process.
        delayed_s: for which the thread was ready to run and had no processor.
        energy_j: joules; None where none are counted.
        elapsed_s: seconds with all that is no training.
    """

    steps: int
    wall_s: float
    cpu_s: float
    delayed_s: float
    energy_j: float | None
    elapsed_s: float


class Laps:
    """A task's training that goes on for as long as it is asked to.

    Args:
        arm: what is run.
        threads: of PyTorch.

    Attributes:
        dispatched: op -> implementation -> calls so far.
    """

    def __init__(self, arm: Arm, threads: int) -> None:
        self.arm, self.threads = arm, threads
        if arm.spec.device.startswith("cuda"):
            # Events are those of the current device.
            make_current(arm.spec.device)
        self.watch = Watch(dict.fromkeys(arm.kept, arm.baseline), self._training)
        self.dispatched: dict[str, Counter[str]] = {}
        self.timed: dict[tuple[Kind, str], Timed] = {}
        self.examples: dict[Kind, Example] = {}
        self.marks: dict[str, dict[str, float]] = {}
        self._begin()

    def _begin(self) -> None:
        spec = self.arm.spec
        self.attempt = Attempt(spec, placement=_alone(spec.device, self.threads))
        self.watched = self.attempt.ctx.stopwatch
        self.watched.meters["cpu"] = Meter(time.process_time)
        self.watched.meters["delayed_s"] = Meter(delayed_s)
        self.rows: Iterator[dict[str, float]] = self.attempt.rows()
        self.at = self._spent(0)

    def _training(self) -> bool:
        return self.watched.part == "train"

    def _spent(self, steps: int) -> Lap:
        """What training has taken so far."""
        meters = {name: meter.spent["train"] for name, meter in self.watched.meters.items()}
        return Lap(
            steps=steps,
            wall_s=self.watched.spent["train"],
            cpu_s=meters["cpu"],
            delayed_s=meters["delayed_s"],
            energy_j=meters.get("energy"),
            elapsed_s=0.0,
        )

    def lap(self) -> Lap:
        """Train until the next evaluation.

        Raises:
            RunFailed: the run broke off, or a whole run holds no training.
        """
        # What was timed alone in between is no part of the task.
        dispatch.reset_counts()
        begun = time.perf_counter()
        with uncaptured(), self.watch if self._is_watched() else contextlib.nullcontext():
            ends = 0
            while ends < 2:
                row = next(self.rows, None)
                if row is None:
                    self._refuse_failure()
                    self._begin()
                    ends += 1
                    continue
                before = self.at
                self.at = now = self._spent(int(row.get("step", before.steps + 1)))
                self._count()
                if now.steps > before.steps:
                    return _between(before, now, time.perf_counter() - begun)
        raise RunFailed("a whole run of the task has no step between two of its evaluations")

    def _is_watched(self) -> bool:
        return bool(self.arm.kept or self.watch.keep or self.watch.spans)

    def _refuse_failure(self) -> None:
        if self.attempt.status != "ok":
            raise RunFailed(f"{self.attempt.status}: {self.attempt.detail}")

    def _count(self) -> None:
        for op, calls in dispatch.counts().items():
            self.dispatched.setdefault(op, Counter()).update(calls)
        dispatch.reset_counts()

    def observe(self, ops: tuple[str, ...]) -> tuple[Lap, dict[Kind, int]]:
        """One lap, and the calls of some ops in it, of which one example each is kept."""
        self.watch.keep = True
        found = self.lap()
        self.watch.keep = False
        self.examples = {k: e for k, e in self.watch.examples.items() if k.op in ops}
        return found, {k: n for k, n in self.watch.calls.items() if k.op in ops}

    def in_place(self, clock: str) -> tuple[Lap, Seconds, Counter[str]]:
        """One lap, with its ops timed where they are: seconds, and number of their calls."""
        clocks = {"cpu": time.process_time, "wall": time.perf_counter}
        device = self.arm.spec.device
        for kind, example in self.examples.items():
            if kind.op not in self.marks:
                self.marks[kind.op] = cost_of_marks(example, Spans(device, clocks[clock]))
        self.watch.spans = spans = Spans(device, clocks[clock])
        found = self.lap()
        self.watch.spans = None
        return found, self._without_marks(spans), spans.calls

    def _without_marks(self, spans: Spans) -> Seconds:
        """What the ops took, without what it took to find that out."""
        return {
            op: {
                which: max(0.0, seconds - spans.calls[op] * self.marks.get(op, {}).get(which, 0.0))
                for which, seconds in parts.items()
            }
            for op, parts in spans.seconds().items()
        }

    def give(self) -> bytes:
        """The examples, for another process to ``take``."""
        content = io.BytesIO()
        torch.save(self.examples, content)
        return content.getvalue()

    def take(self, content: bytes) -> None:
        """Have the examples of another process of this session."""
        # It is this program's own, and comes through a pipe that nobody else can write to.
        self.examples = torch.load(io.BytesIO(content), weights_only=False)

    def check(self, kind: Kind, impl: str) -> list[Error] | str:
        """How far an implementation is off on an example, or why it cannot run."""
        try:
            return self.examples[kind].check(impl)
        except CannotRun as error:
            return str(error)
        except Exception as error:
            # What an implementation dies of is a result; the others go on.
            return f"{type(error).__name__}: {error}".strip().splitlines()[0]

    def warm(self, kind: Kind, impl: str) -> Warm:
        """Call an example for a while; the times of the fastest call."""
        call = self.examples[kind].timeable(impl)
        self.timed[kind, impl] = Timed(lambda: ((), {}), call)
        return self.timed[kind, impl].warm(None)

    def blocks(self, kind: Kind, impl: str, calls: int, blocks: int) -> list[Times]:
        """Times of a call, each the mean over a block of calls."""
        return [self.timed[kind, impl].block(calls, 0) for _ in range(blocks)]

    def energy(self) -> str:
        """How joules are counted, or why not."""
        return self.attempt.energy_method

    def counted(self) -> dict[str, dict[str, int]]:
        """Op -> implementation -> calls so far."""
        return {op: dict(calls) for op, calls in sorted(self.dispatched.items())}


def _between(before: Lap, now: Lap, elapsed_s: float) -> Lap:
    joules: float | None = None
    if now.energy_j is not None and before.energy_j is not None:
        joules = now.energy_j - before.energy_j
    return Lap(
        steps=now.steps - before.steps,
        wall_s=now.wall_s - before.wall_s,
        cpu_s=now.cpu_s - before.cpu_s,
        delayed_s=now.delayed_s - before.delayed_s,
        energy_j=joules,
        elapsed_s=elapsed_s,
    )


def _alone(device: str, threads: int) -> Placement:
    """A process that has the machine to itself while it is its turn."""
    return Placement(
        scheduler="process",
        workers=1,
        cpus=min(threads, provenance.cores()),
        gpus=float(device.startswith("cuda")),
        colocated_runs=0,
        contended=False,
    )
