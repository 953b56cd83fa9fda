"""One workload with every provider: the gate, then the times of those that pass it."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from kernels import dispatch
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
        peak_bytes: of GPU memory during a call; None on a processor.
    """

    provider: str
    status: str = "ok"
    detail: str = ""
    accuracy: list[Accuracy] = field(default_factory=list)
    timed: Timed = field(default_factory=lambda: Timed([]))
    dispatched: dict[str, dict[str, int]] = field(default_factory=dict)
    peak_bytes: int | None = None


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
            call = _checked(w, known[name], gate, outcome)
            if call:
                calls[name] = call
        timed = (timer or timer_of(w.device))(calls, rounds, seed) if calls else {}
    for outcome in outcomes:
        outcome.timed = timed.get(outcome.provider, outcome.timed)
    return outcomes


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
            outcome.status, outcome.detail = "invalid", "; ".join(map(_story, wrong))
            return None
        dispatch.reset_counts()
        call = timeable(w, provider.build(w))
        outcome.peak_bytes = _peak_bytes(w, call)
    except CannotRun as error:
        outcome.status, outcome.detail = "skipped", str(error)
    except torch.OutOfMemoryError as error:
        outcome.status, outcome.detail = "oom", str(error).splitlines()[0]
    except Exception as error:
        # What a provider dies of is a result; the others go on.
        outcome.status, outcome.detail = "crashed", f"{type(error).__name__}: {error}".strip()
    else:
        outcome.dispatched = dispatch.counts()
        return call
    return None


def _story(a: Accuracy) -> str:
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
