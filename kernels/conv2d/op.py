"""The kernels as PyTorch ops with gradients that are ops with gradients again.

A convolution, the gradient of its x and that of its weight are bilinear, and the gradients of each
are the other two, so three ops are differentiable as often as one likes. Kept for the backward are
the inputs, and of the fused op the output, which says where the relu let through; the convolution
is not computed again. With G the gradient of the weight of an unscaled convolution, that of the
scaled one is scale G, and that of the scale is the sum of G times the weight. Of statistics, every
output passes on 1 / M of the mean's gradient, and 2 / M of the variance's times its own distance
from the mean, with M images times pixels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.conv2d import triton as launch
from kernels.conv2d.reference import output_size
from kernels.language import accumulator
from kernels.register import Kernel, Registered

# Stride, padding, dilation and groups.
Options = tuple[Sequence[int], Sequence[int], Sequence[int], int]
PLAIN: Options = ([1, 1], [0, 0, 0, 0], [1, 1], 1)


def _fake_output(x: Tensor, weight: Tensor, options: Sequence[Any]) -> Tensor:
    return launch.images(
        x, x.shape[0], weight.shape[0], *output_size(x.shape[2:], weight.shape[2:], *options[:3])
    )


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return launch.forward(
        x, weight, None, bias, None, stride, padding, dilation, groups, relu=False
    )


def _fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    return launch.forward(
        x, weight, scale, shift, residual, stride, padding, dilation, groups, relu
    )


def _stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return launch.forward_stats(x, weight, bias, stride, padding, dilation, groups)


def _fake_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    by_K = weight.new_empty(weight.shape[0], dtype=accumulator(x.dtype))
    return _fake_output(x, weight, options), by_K, torch.empty_like(by_K)


def _backward_x(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return launch.backward_x(grad, weight, size, stride, padding, dilation, groups)


def _backward_weight(
    grad: Tensor,
    x: Tensor,
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return launch.backward_weight(grad, x, taps, stride, padding, dilation, groups)


_conv2d_op = Registered(
    "conv2d_conv2d",
    _conv2d,
    lambda x, weight, bias, *options: _fake_output(x, weight, options),
)
_fused_op = Registered(
    "conv2d_conv2d_fused",
    _fused,
    lambda x, weight, scale, shift, residual, *options: _fake_output(x, weight, options),
)
_stats_op = Registered("conv2d_conv2d_stats", _stats, _fake_stats)
_backward_x_op = Registered(
    "conv2d_backward_x",
    _backward_x,
    lambda grad, weight, size, *options: launch.images(
        grad, grad.shape[0], weight.shape[1] * options[-1], *size
    ),
)
_backward_weight_op = Registered(
    "conv2d_backward_weight",
    _backward_weight,
    lambda grad, x, taps, *options: x.new_empty(grad.shape[1], x.shape[1] // options[-1], *taps),
)


def _gradients(
    to_x: Callable[..., Tensor],
    to_weight: Callable[..., Tensor],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *options: Any,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are needed."""
    return (
        to_x(grad, weight, x.shape[2:], *options) if needs[0] else None,
        to_weight(grad, x, weight.shape[2:], *options) if needs[1] else None,
        grad.sum((0, 2, 3)) if needs[2] else None,
    )


def _fused_gradients(
    to_x: Callable[..., Tensor],
    to_weight: Callable[..., Tensor],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    out: Tensor,
    residual: Tensor | None,
    *options: Any,
    needs: Sequence[bool] = (True, True, True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, scale, shift and residual, those that are needed."""
    plain, relu = options[:-1], options[-1]
    if relu:
        grad = grad.masked_fill(out <= 0, 0)
    by_K = scale[:, None, None, None]
    d_x = to_x(grad, weight * by_K, x.shape[2:], *plain) if needs[0] else None
    d_weight = d_scale = None
    if needs[1] or needs[2]:
        unscaled = to_weight(grad, x, weight.shape[2:], *plain)
        d_weight = unscaled * by_K
        d_scale = (unscaled * weight).sum((1, 2, 3))
    d_shift = grad.sum((0, 2, 3)) if needs[3] else None
    return d_x, d_weight, d_scale, d_shift, grad if needs[4] else None


def _through_stats(
    grad: Tensor | None,
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    out: Tensor,
    mean: Tensor,
) -> Tensor:
    """Gradient of the convolution's output, its own and through its statistics."""
    # A tensor: a number made of dynamic sizes breaks the tracing of this gradient.
    m = torch.ones_like(out[:, 0], dtype=mean.dtype).sum()
    summands = [] if grad is None else [grad]
    if grad_mean is not None:
        summands.append((grad_mean / m)[:, None, None].expand_as(out))
    if grad_variance is not None:
        by_K = (2 / m * grad_variance)[:, None, None]
        summands.append(by_K * (out - mean[:, None, None]))
    return functools.reduce(torch.add, summands).to(out.dtype)


def _stats_gradients(
    grad: Tensor,
    grad_mean: Tensor,
    grad_variance: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    mean: Tensor,
    *options: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias."""
    total = _through_stats(grad, grad_mean, grad_variance, out, mean)
    return _gradients(launch.backward_x, launch.backward_weight, total, x, weight, *options)


def _of_stats(
    ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_variance: Tensor | None
) -> Any:
    x, weight, out, mean = ctx.saved_tensors
    if grad is grad_mean is grad_variance is None:
        return (None,) * 7
    found = _gradients(
        _backward_x_op,
        _backward_weight_op,
        _through_stats(grad, grad_mean, grad_variance, out, mean),
        x,
        weight,
        *ctx.options,
        needs=ctx.needs_input_grad[:3],
    )
    return (*found, None, None, None, None)


def _of_conv2d(ctx: Any, grad: Tensor) -> Any:
    found = _gradients(
        _backward_x_op,
        _backward_weight_op,
        grad,
        *ctx.saved_tensors,
        *ctx.options,
        needs=ctx.needs_input_grad[:3],
    )
    return (*found, None, None, None, None)


def _of_backward_x(ctx: Any, grad: Tensor) -> Any:
    above, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_above = _conv2d_op(grad, weight, None, *ctx.options) if needs[0] else None
    taps = weight.shape[2:]
    d_weight = _backward_weight_op(above, grad, taps, *ctx.options) if needs[1] else None
    return (d_above, d_weight, None, None, None, None, None)


def _of_backward_weight(ctx: Any, grad: Tensor) -> Any:
    above, x = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_above = _conv2d_op(x, grad, None, *ctx.options) if needs[0] else None
    d_x = _backward_x_op(above, grad, x.shape[2:], *ctx.options) if needs[1] else None
    return (d_above, d_x, None, None, None, None, None)


def _of_fused(ctx: Any, grad: Tensor) -> Any:
    found = _fused_gradients(
        _backward_x_op,
        _backward_weight_op,
        grad,
        *ctx.saved_tensors,
        None,
        *ctx.options,
        needs=ctx.needs_input_grad[:5],
    )
    return (*found, None, None, None, None, None)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the first two tensors and the geometry."""
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[3:]


def _keep_fused(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], output)
    ctx.options = inputs[5:]


def _keep_stats(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2], *output[:2])
    ctx.options = inputs[3:]


_conv2d_op.differentiate(_of_conv2d, _keep)
_backward_x_op.differentiate(_of_backward_x, _keep)
_backward_weight_op.differentiate(_of_backward_weight, _keep)
_fused_op.differentiate(_of_fused, _keep_fused)
_stats_op.differentiate(_of_stats, _keep_stats)

_conv2d_kernel = Kernel(
    "conv2d_conv2d",
    _conv2d_op,
    _conv2d,
    functools.partial(_gradients, launch.backward_x, launch.backward_weight),
    lambda inputs, out: inputs[:2],
    PLAIN,
    None,
)
_fused_kernel = Kernel(
    "conv2d_conv2d_fused",
    _fused_op,
    _fused,
    functools.partial(_fused_gradients, launch.backward_x, launch.backward_weight),
    lambda inputs, out: (*inputs[:3], out),
    (None, *PLAIN, True),
    None,
)

_stats_kernel = Kernel(
    "conv2d_conv2d_stats",
    _stats_op,
    _stats,
    _stats_gradients,
    lambda inputs, out: (*inputs[:2], *out[:2]),
    PLAIN,
    None,
)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y_NKPQ."""
    return _conv2d_kernel(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """relu(scale y + shift + residual), NKPQ."""
    return _fused_kernel(  # type: ignore[no-any-return]
        x, weight, scale, shift, residual, stride, padding, dilation, groups, relu
    )


def conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y_NKPQ, and its mean_K and variance_K."""
    return _stats_kernel(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
