"""The gate before any time: is what a provider computes the op, as well as plain PyTorch does it?

The error of a tensor is its distance from the same formula in float64, in the Frobenius norm and
relative to the norm of the latter; inputs are rounded to the tested type first. That of values may
be twice what plain PyTorch (the op's ``reference`` in the tested type) is off, that of gradients
four times, or a type's floor where that is larger. The rule is that of FlashAttention's tests.

The error of a single number, such as the gradient of one strength, is one rounding error, and of
two such one is four times the other in one draw of six. Who fails is therefore judged on more draws
of the inputs, taken together as one larger batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.bench.providers import Call, Provider
from kernels.bench.workload import Workload

MORE_DRAWS = 8
TIMES_EAGER = {"values": 2.0, "gradients": 4.0}
FLOOR = {
    "values": {
        torch.float64: 1e-12,
        torch.float32: 5e-6,
        torch.float16: 2e-3,
        torch.bfloat16: 1e-2,
    },
    "gradients": {
        torch.float64: 1e-11,
        torch.float32: 1e-5,
        torch.float16: 4e-3,
        torch.bfloat16: 2e-2,
    },
}


@dataclass(frozen=True)
class Accuracy:
    """How far values or gradients are off.

    Attributes:
        of: ``values`` or ``gradients``.
        reference: what they are compared with.
        error: the largest relative error of a tensor; None where it is not a number.
        eager_error: that of plain PyTorch in the same type.
        limit: what the error may be.
        shape: the sizes that were compared: the batch is halved where float64 does not fit.
    """

    of: str
    reference: str
    error: float | None
    eager_error: float | None
    limit: float
    shape: dict[str, object]

    @property
    def ok(self) -> bool:
        """Whether a time may be measured."""
        return self.error is not None and self.error <= self.limit

    @property
    def ratio(self) -> float | None:
        """The error as a multiple of plain PyTorch's."""
        if self.error is None or not self.eager_error:
            return None
        return self.error / self.eager_error


class Gate:
    """Compares providers with float64; what they are compared with is computed once.

    Args:
        eager: plain PyTorch: the formula in float64 and in the tested type.
    """

    def __init__(self, eager: Provider) -> None:
        self.eager = eager
        self.known: dict[tuple[str, Workload], tuple[Evaluated, Evaluated]] = {}

    def check(self, w: Workload, provider: Provider) -> list[Accuracy]:
        """How far a provider is off, on less of the batch where float64 does not fit.

        Raises:
            CannotRun: the provider does not take the workload.
            torch.OutOfMemoryError: not even one element of the batch fits.
        """
        while True:
            try:
                return self._compared(w, provider)
            except torch.OutOfMemoryError:
                less = w.smaller()
                if less is None:
                    raise
                torch.cuda.empty_cache()
                w = less

    def _compared(self, w: Workload, provider: Provider) -> list[Accuracy]:
        formula = provider if provider.own_formula else self.eager

        def apart(w: Workload, wanted: Evaluated, plain: Evaluated) -> Apart:
            return _apart(
                plain if provider is formula else _evaluated(w, provider, w.dtype), plain, wanted
            )

        def judged() -> list[Accuracy]:
            return _judged(draws, w.dtype, f"{formula.name} in float64", w.shape)

        draws = [apart(w, *self._yardstick(w, formula))]
        if any(a.error is not None and not a.ok for a in judged()):
            more = [replace(w, seed=w.seed + i) for i in range(1, 1 + MORE_DRAWS)]
            draws += [apart(other, *_yardstick(other, formula)) for other in more]
        return judged()

    def _yardstick(self, w: Workload, formula: Provider) -> "tuple[Evaluated, Evaluated]":
        key = (formula.name, w)
        if key not in self.known:
            self.known[key] = _yardstick(w, formula)
        return self.known[key]


@dataclass(frozen=True)
class Evaluated:
    """What a call computes: its outputs, and the gradients of its inputs, none for values alone."""

    outputs: list[Tensor]
    gradients: list[Tensor]


# Each tensor's distance from what it should be, and the norm of that.
Errors = list[tuple[float, float]]
# Of values and of gradients, the provider's errors and plain PyTorch's.
Apart = dict[str, tuple[Errors, Errors]]


def _yardstick(w: Workload, formula: Provider) -> tuple[Evaluated, Evaluated]:
    """What a formula computes in float64 and in the tested type."""
    return _evaluated(w.in_float64(), formula, w.dtype), _evaluated(w, formula, w.dtype)


def _evaluated(w: Workload, provider: Provider, dtype: torch.dtype) -> Evaluated:
    return evaluated(provider.build(w), w.is_differentiated, dtype)


def evaluated(call: Call, differentiated: bool, dtype: torch.dtype) -> Evaluated:
    """Values, and gradients for gradients of the outputs that are rounded to ``dtype`` first."""
    if not differentiated:
        with torch.no_grad():
            return Evaluated(call.outputs(), [])
    outputs = call.outputs()
    grads = [g.to(dtype).to(o.dtype) for g, o in zip(weights_of(outputs), outputs, strict=True)]
    found = torch.autograd.grad(outputs, call.inputs, grads, allow_unused=True)
    whole = [
        torch.zeros_like(i) if g is None else g for g, i in zip(found, call.inputs, strict=True)
    ]
    return Evaluated([o.detach() for o in outputs], whole)


def weights_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients to begin a backward pass with: random, and the same for the same shapes."""
    g = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=g).to(o.device) for o in outputs]


def compared(
    got: Evaluated,
    plain: Evaluated,
    wanted: Evaluated,
    dtype: torch.dtype,
    reference: str,
    shape: dict[str, object],
) -> list[Accuracy]:
    """How far a call is off: its values, and its gradients where there are any.

    Args:
        got: what it computes.
        plain: what plain PyTorch computes in ``dtype``.
        wanted: the same formula in float64.
        dtype: the tested type.
        reference: what the last is called.
        shape: the sizes of the inputs.
    """
    return _judged([_apart(got, plain, wanted)], dtype, reference, shape)


def _apart(got: Evaluated, plain: Evaluated, wanted: Evaluated) -> Apart:
    found = {"values": _both(got.outputs, plain.outputs, wanted.outputs)}
    if wanted.gradients:
        found["gradients"] = _both(got.gradients, plain.gradients, wanted.gradients)
    return found


def _both(
    got: Sequence[Tensor], plain: Sequence[Tensor], wanted: Sequence[Tensor]
) -> tuple[Errors, Errors]:
    return _errors(got, wanted), _errors(plain, wanted)


def _judged(
    draws: Sequence[Apart], dtype: torch.dtype, reference: str, shape: dict[str, object]
) -> list[Accuracy]:
    found = []
    for of in draws[0]:
        error, eager = (_worst([draw[of][who] for draw in draws]) for who in (0, 1))
        allowed = TIMES_EAGER[of] * eager if math.isfinite(eager) else 0.0
        judged = Accuracy(
            of=of,
            reference=reference,
            error=error if math.isfinite(error) else None,
            eager_error=eager if math.isfinite(eager) else None,
            limit=max(allowed, FLOOR[of][dtype]),
            shape=shape,
        )
        found.append(judged)
    return found


def _worst(draws: Sequence[Errors]) -> float:
    """The largest relative error of a tensor, over all draws together; NaN if one is."""
    found = [
        math.hypot(*(gap for gap, _ in each)) / math.hypot(*(norm for _, norm in each))
        for each in zip(*draws, strict=True)
    ]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def _errors(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Errors:
    """Of each tensor; a norm below 1e-3 counts as that, and other shapes are NaN away."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return [(math.nan, 1.0)]
    norm = torch.linalg.vector_norm
    return [
        (float(norm(a.double() - b)), float(norm(b).clamp_min(1e-3)))
        for a, b in zip(got, wanted, strict=True)
    ]
