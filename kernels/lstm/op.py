"""The kernels as a PyTorch op with a gradient.

Kept are the inputs, the outputs, the gates and the cell states; or all but the gates, which are
then computed again.
"""

import torch
from torch import Tensor

from kernels.language import accumulator
from kernels.lstm import triton as launch
from kernels.lstm.reference import State
from kernels.register import define, empty_like


def _lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    recompute_gates: bool,
    at_most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y, last_h, last_c, gates, cells = launch.forward(
        x, weight_ih, weight_hh, bias, h, c, lengths, reverse, at_most
    )
    return y, last_h, last_c, x.new_empty(0) if recompute_gates else gates, cells


def _lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    recompute_gates: bool,
    at_most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if recompute_gates:
        gates = launch.gates_again(x, weight_ih, weight_hh, bias, h, y, lengths, reverse)
    return launch.backward(
        torch.zeros_like(y) if grad_y is None else grad_y,
        torch.zeros_like(h) if grad_h is None else grad_h,
        torch.zeros_like(c) if grad_c is None else grad_c,
        x,
        weight_ih,
        weight_hh,
        h,
        c,
        y,
        gates,
        cells,
        lengths,
        reverse,
        at_most,
    )


def _fake_lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    recompute_gates: bool,
    at_most: int,
) -> tuple[Tensor, ...]:
    (t, b, _), (gates, units) = x.shape, weight_hh.shape
    kept = accumulator(x.dtype)
    return (
        x.new_empty(t, b, units),
        x.new_empty(b, units),
        x.new_empty(b, units),
        x.new_empty(0) if recompute_gates else x.new_empty(t, b, gates),
        x.new_empty(t, b, units, dtype=kept),
    )


def _fake_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    *rest: object,
) -> tuple[Tensor, ...]:
    return empty_like(x, weight_ih, weight_hh, bias, h, c)


# The lengths stand with the plain values, for an integer has no gradient.
_lstm_op = define(
    "lstm_lstm",
    _lstm,
    _lstm_backward,
    fake=_fake_lstm,
    fake_backward=_fake_backward,
    save=lambda inputs, out: (*inputs[:6], out[0], *out[3:]),
    options=(None, False, False, 0),
    outputs=3,
)


def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    state: State,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    recompute_gates: bool = False,
    steps_per_launch: int | None = None,
) -> tuple[Tensor, State]:
    """y_TBH, and h_BH and c_BH after the last step."""
    if bias is None:
        bias = weight_ih.new_zeros(weight_ih.shape[0])
    if lengths is not None:
        # A copy: what the backward reads has to be what the forward read.
        lengths = lengths.to(x.device, torch.int32, copy=True)
    options = (lengths, reverse, recompute_gates, steps_per_launch or 0)
    y, h, c = _lstm_op(x, weight_ih, weight_hh, bias, *state, *options)[:3]
    return y, (h, c)
