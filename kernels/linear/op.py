"""The kernel as PyTorch ops with gradients that are ops with gradients again.

A linear layer, the gradient of its x and that of its weight and bias are linear in each of their
arguments where the ReLU does not change its mind, and the gradients of each are the other two, so
three ops are differentiable as often as one likes. Kept for the backward are x and the weight, and
with a ReLU the output, which says where it let through; no product is computed again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from kernels.linear import triton as launch
from kernels.register import Kernel, Registered


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return launch.forward(x, weight, bias, relu)


def _backward_x(grad: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    return launch.backward_x(grad, weight, out)


def _backward_weight(grad: Tensor, x: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    return launch.backward_weight(grad, x, out)


_linear_op = Registered(
    "linear_linear", _linear, lambda x, weight, bias, relu: x.new_empty(x.shape[0], weight.shape[0])
)
_backward_x_op = Registered(
    "linear_backward_x",
    _backward_x,
    lambda grad, weight, out: grad.new_empty(grad.shape[0], weight.shape[1]),
)
_backward_weight_op = Registered(
    "linear_backward_weight",
    _backward_weight,
    lambda grad, x, out: (x.new_empty(grad.shape[1], x.shape[1]), x.new_empty(grad.shape[1])),
)


def _gradients(
    to_x: Callable[..., Tensor],
    to_weight: Callable[..., tuple[Tensor, Tensor]],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    *options: Any,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are needed."""
    d_x = to_x(grad, weight, out) if needs[0] else None
    d_weight, d_bias = to_weight(grad, x, out) if needs[1] or needs[2] else (None, None)
    return d_x, d_weight if needs[1] else None, d_bias if needs[2] else None


def _passed(grad: Tensor, out: Tensor | None) -> Tensor:
    """What the ReLU lets through of a gradient."""
    return grad if out is None else grad.masked_fill(out <= 0, 0)


def _of_linear(ctx: Any, grad: Tensor) -> Any:
    found = _gradients(
        _backward_x_op,
        _backward_weight_op,
        grad,
        *ctx.saved_tensors,
        needs=ctx.needs_input_grad[:3],
    )
    return (*found, None)


def _of_backward_x(ctx: Any, grad: Tensor) -> Any:
    above, weight, out = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_above = _passed(_linear_op(grad, weight, None, False), out) if needs[0] else None
    d_weight = _backward_weight_op(above, grad, out)[0] if needs[1] else None
    return d_above, d_weight, None


def _of_backward_weight(ctx: Any, grad: Tensor, grad_bias: Tensor) -> Any:
    above, x, out = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_above = _passed(_linear_op(x, grad, grad_bias, False), out) if needs[0] else None
    return d_above, _backward_x_op(above, grad, out) if needs[1] else None, None


def _saved(inputs: tuple[Any, ...], output: Tensor) -> tuple[Any, ...]:
    """x, the weight, and the output where it was cut off below zero."""
    return *inputs[:2], output if inputs[3] else None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*_saved(inputs, output))


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


_linear_op.differentiate(_of_linear, _keep)
_backward_x_op.differentiate(_of_backward_x, _keep_all)
_backward_weight_op.differentiate(_of_backward_weight, _keep_all)

_linear_kernel = Kernel(
    "linear_linear",
    _linear_op,
    _linear,
    functools.partial(_gradients, launch.backward_x, launch.backward_weight),
    _saved,
    (False,),
    None,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """y_BO."""
    return _linear_kernel(x, weight, bias, relu)  # type: ignore[no-any-return]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """c_BO."""
    return _linear_kernel(a, b.t(), None, False)  # type: ignore[no-any-return]
