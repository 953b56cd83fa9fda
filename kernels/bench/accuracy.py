"""The gate before any time: is what a provider computes the op, as well as plain PyTorch does it?

The error of a tensor is its distance from the same formula in float64, in the Frobenius norm and
relative to the norm of the latter; inputs are rounded to the tested type first. That of values may
be twice what plain PyTorch (the op's ``reference`` in the tested type) is off, that of gradients
four times, or a type's floor where that is larger. The rule is that of FlashAttention's tests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bench.providers import Call, Provider
from kernels.bench.workload import Workload

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
        wanted, plain = self._yardstick(w, formula)
        got = plain if provider is formula else _evaluated(w, provider, w.dtype)
        return compared(got, plain, wanted, w.dtype, f"{formula.name} in float64", w.shape)

    def _yardstick(self, w: Workload, formula: Provider) -> "tuple[Evaluated, Evaluated]":
        key = (formula.name, w)
        if key not in self.known:
            wanted = _evaluated(w.in_float64(), formula, w.dtype)
            self.known[key] = wanted, _evaluated(w, formula, w.dtype)
        return self.known[key]


@dataclass(frozen=True)
class Evaluated:
    """What a call computes: its outputs, and the gradients of its inputs, none for values alone."""

    outputs: list[Tensor]
    gradients: list[Tensor]


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
    parts = {"values": [e.outputs for e in (got, plain, wanted)]}
    if wanted.gradients:
        parts["gradients"] = [e.gradients for e in (got, plain, wanted)]
    return [_judged(of, dtype, reference, shape, *three) for of, three in parts.items()]


def _judged(
    of: str,
    dtype: torch.dtype,
    reference: str,
    shape: dict[str, object],
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    wanted: Sequence[Tensor],
) -> Accuracy:
    eager, error = _error(plain, wanted), _error(got, wanted)
    allowed = TIMES_EAGER[of] * eager if math.isfinite(eager) else 0.0
    return Accuracy(
        of=of,
        reference=reference,
        error=error if math.isfinite(error) else None,
        eager_error=eager if math.isfinite(eager) else None,
        limit=max(allowed, FLOOR[of][dtype]),
        shape=shape,
    )


def _error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error; absolute where the norm is below 1e-3, NaN for other shapes."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return math.nan
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        gap = torch.linalg.vector_norm(a.double() - b)
        error = float(gap / torch.linalg.vector_norm(b).clamp_min(1e-3))
        worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            return worst
    return worst
