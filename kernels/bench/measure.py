"""One workload with every provider: the gate, then the times of those that pass it."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from kernels import dispatch, tuning
from kernels.bench.accuracy import Accuracy, Gate, weights_of
from kernels.bench.providers import Call, CannotRun, Provider, providers
from kernels.bench.timing import Calls, Timed, make_current, on_cpu, on_cuda
from kernels.bench.workload import Workload

Timer = Callable[[Calls, int, int], dict[str, Timed]]


@dataclass
class Outcome:
    """What became of a workload with one provider.

    Attributes:
        provider: its name.
        status: ``ok``; ``invalid`` where it computes something else than the op, ``skipped`` where
            it cannot run, ``oom`` or ``crashed``.
        detail: why, unless it is ``ok``.
        accuracy: of the values, and of the gradients where there are any.
        timed: none unless it is ``ok``.
        dispatched: which implementation of which op ran how often.
        asked: which parameters launchers asked for, the last of each kernel.
        peak_bytes: of GPU memory during a call; None on a processor.
        lost: whether this process can compute nothing more on the device; of a whole session.
    """

    provider: str
    status: str = "ok"
    detail: str = ""
    accuracy: list[Accuracy] = field(default_factory=list)
    timed: Timed = field(default_factory=lambda: Timed([]))
    dispatched: dict[str, dict[str, int]] = field(default_factory=dict)
    asked: list[tuning.Asked] = field(default_factory=list)
    peak_bytes: int | None = None
    lost: bool = False


def measure(
    w: Workload, names: Sequence[str], rounds: int, seed: int = 0, timer: Timer | None = None
) -> list[Outcome]:
    """Check and time a workload with several providers in turn.

    Args:
        w: the workload.
        names: of providers of its op.
        rounds: samples of each.
        seed: of the order.
        timer: what times; the one of the workload's device when None.
    """
    if w.device.startswith("cuda"):
        # Events, graphs and the flushed cache are those of the current device.
        make_current(w.device)
    # A compiler keeps what it made for other sizes, and would generalise it to these.
    torch.compiler.reset()
    known, outcomes, calls = providers(w.op), [], {}
    gate = Gate(known["reference"])
    with full_float32():
        for name in names:
            outcome = Outcome(name)
            outcomes.append(outcome)
            with tuning.observed() as asked:
                call = _checked(w, known[name], gate, outcome)
            outcome.asked = list(asked.values())
            if call:
                calls[name] = call
            elif outcome.status == "crashed" and not usable(w.device):
                return _lost(outcomes, names)
        try:
            timed = (timer or timer_of(w.device))(calls, rounds, seed) if calls else {}
        except Exception as error:
            # Which of them it was, is not known.
            for outcome in outcomes:
                if outcome.provider in calls:
                    _end(outcome, error)
            return outcomes if usable(w.device) else _lost(outcomes, names)
    for outcome in outcomes:
        outcome.timed = timed.get(outcome.provider, outcome.timed)
    return outcomes


def usable(device: str) -> bool:
    """Whether this process can still compute on a device.

    After a kernel's illegal access, and errors of that kind, each later call on a GPU fails.
    """
    if device.startswith("cuda"):
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return False
    return True


def _lost(outcomes: list[Outcome], names: Sequence[str]) -> list[Outcome]:
    """The outcomes of a session that took the device from this process."""
    found = outcomes + [Outcome(name) for name in names[len(outcomes) :]]
    for outcome in found:
        outcome.lost = True
        if outcome.status == "ok":
            outcome.status = "skipped"
            outcome.detail = "not timed: after another provider the GPU was lost to the process"
    return found


def full_float32() -> contextlib.AbstractContextManager[None]:
    """Have cuDNN's convolutions and LSTMs not round float32 to TensorFloat-32, as is its wont."""
    now = torch.backends.cudnn
    kept = {k: getattr(now, k) for k in ("enabled", "benchmark", "deterministic")}
    return now.flags(**kept, allow_tf32=False)


def timer_of(device: str) -> Timer:
    """What times calls on a device."""
    return on_cuda if device.startswith("cuda") else on_cpu


def _checked(
    w: Workload, provider: Provider, gate: Gate, outcome: Outcome
) -> Callable[[], object] | None:
    """What to time, or None with the reason in the outcome."""
    dispatch.reset_counts()
    try:
        outcome.accuracy = gate.check(w, provider)
        wrong = [a for a in outcome.accuracy if not a.ok]
        if wrong:
            outcome.status, outcome.detail = "invalid", "; ".join(map(story, wrong))
            return None
        dispatch.reset_counts()
        call = timeable(w, provider.build(w))
        outcome.peak_bytes = _peak_bytes(w, call)
    except Exception as error:
        # What a provider dies of is a result; the others go on.
        _end(outcome, error)
        return None
    outcome.dispatched = dispatch.counts()
    return call


def _end(outcome: Outcome, error: Exception) -> None:
    """Note what a provider died of."""
    if isinstance(error, CannotRun):
        outcome.status, outcome.detail = "skipped", str(error)
    elif isinstance(error, torch.OutOfMemoryError):
        outcome.status, outcome.detail = "oom", str(error).splitlines()[0]
    else:
        outcome.status, outcome.detail = "crashed", told(error)


def told(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}".strip()


def story(a: Accuracy) -> str:
    """How far something is off, and how far it may be."""
    error = "not finite, or of another shape" if a.error is None else f"{a.error:.2e}"
    return f"error of {a.of} {error}, allowed {a.limit:.2e}"


def timeable(w: Workload, call: Call) -> Callable[[], object]:
    """A call that computes what the workload's mode asks for, and nothing else."""

    def forward() -> object:
        with torch.no_grad():
            return call.run()

    if not w.is_differentiated:
        return forward
    outputs = call.outputs()
    grads = [g.to(o.dtype) for g, o in zip(weights_of(outputs), outputs, strict=True)]

    def backward() -> object:
        return torch.autograd.grad(
            outputs, call.inputs, grads, retain_graph=True, allow_unused=True
        )

    def full() -> object:
        return torch.autograd.grad(call.outputs(), call.inputs, grads, allow_unused=True)

    if w.mode == "backward":
        return backward
    outputs = []
    return full


def _peak_bytes(w: Workload, call: Callable[[], object]) -> int | None:
    if not w.device.startswith("cuda"):
        call()
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())
