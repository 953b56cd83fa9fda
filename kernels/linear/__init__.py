"""A linear layer with its bias and its ReLU in one op, and the plain matrix product.

The formulas are in ``kernels.linear.reference``; for ``impl`` see ``kernels.dispatch``. The tensors
have one floating-point dtype and one device, and every one of them gets a gradient, which is
differentiable again in every ``impl`` but ``compile``. In an autocast region they are cast to its
type first, those of float64 excepted. ``triton`` takes tensors in any layout without a copy.

    y = linear.linear(x, layer.weight, layer.bias, relu=True)   # layer: a torch.nn.Linear
"""

from typing import Any

from torch import Tensor

from kernels import checks
from kernels.autocast import cast
from kernels.dispatch import Op
from kernels.linear import reference, vectorized

__all__ = ["linear", "matmul"]


def _op(name: str) -> Op:
    """The op of that name in all its implementations."""

    def triton() -> Any:
        from kernels.linear import op

        return getattr(op, name)

    return Op(f"linear.{name}", getattr(reference, name), getattr(vectorized, name), triton)


_linear, _matmul = _op("linear"), _op("matmul")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    impl: str | None = None,
) -> Tensor:
    """The layer x weight' + bias, as ``F.linear`` has it, cut off below zero where asked for.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,); none when None.
        relu: cut off below zero.
        impl: what computes it.

    Returns:
        (..., O).

    Raises:
        ValueError: other shapes or devices, no inputs or outputs, an unknown ``impl``.
        TypeError: other dtypes, a ``relu`` that is no bool.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    x, weight, bias = cast(x, weight, bias)
    rows = _rows("x", x)
    given = {"x": (rows, "B I"), "weight": (weight, "O I")}
    if bias is not None:
        given["bias"] = (bias, "O")
    _nonempty(checks.tensors(given))
    checks.kind("relu", relu, bool)
    y: Tensor = _linear(rows, weight, bias, relu=relu, impl=impl)
    return y.view(*x.shape[:-1], y.shape[1])


def matmul(a: Tensor, b: Tensor, *, impl: str | None = None) -> Tensor:
    """The matrix product a b.

    Args:
        a: (..., I).
        b: (I, O).
        impl: what computes it.

    Returns:
        (..., O).

    Raises:
        ValueError, TypeError, Unavailable: as ``linear``.
    """
    a, b = cast(a, b)
    rows = _rows("a", a)
    _nonempty(checks.tensors({"a": (rows, "B I"), "b": (b, "I O")}))
    y: Tensor = _matmul(rows, b, impl=impl)
    return y.view(*a.shape[:-1], y.shape[1])


def _rows(name: str, x: Any) -> Any:
    """(..., I) as (B, I); what is no tensor as it is, for the checks to name it."""
    if not isinstance(x, Tensor):
        return x
    if x.dim() < 1:
        raise ValueError(f"{name} has shape (..., I), got ()")
    return x[None] if x.dim() == 1 else x.flatten(0, -2)


def _nonempty(sizes: dict[str, int]) -> None:
    """Check that there are inputs and outputs; there may be no rows."""
    for letter in "IO":
        if sizes[letter] < 1:
            raise ValueError(f"{letter} is at least 1, got {sizes[letter]}")
