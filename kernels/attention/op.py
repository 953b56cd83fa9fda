"""The kernels as PyTorch ops with gradients: what is kept for the backward, and what recomputed.

Kept are the inputs and the outputs, and of dot products one number for each query; scores, weights
and every tanh are computed again. Lengths follow the tensors as the plain values do: they have no
gradient.
"""

import torch
from torch import Tensor

from kernels.attention import triton as launch
from kernels.language import accumulator
from kernels.register import define, empty_like


def _kept(key_lengths: Tensor | None) -> Tensor | None:
    """A copy: what the backward reads has to be what the forward read."""
    return None if key_lengths is None else key_lengths.clone()


def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    return launch.attention_forward(q, k, v, key_lengths, causal, scale)


def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    key_lengths: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return launch.attention_backward(grad, q, k, v, out, sums, key_lengths, causal, scale)


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(q.dtype)
    return empty_like(q)[0], q.new_empty(q.shape[:3], dtype=dtype)


_attention_op = define(
    "attention_attention",
    _attention,
    _attention_backward,
    fake=_fake_attention,
    fake_backward=lambda grad, q, k, v, *rest: empty_like(q, k, v),
    save=lambda inputs, out: (*inputs[:3], *out),
    options=(None, False, 1.0),
    outputs=1,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    scale: float,
) -> Tensor:
    """O_BHMD."""
    return _attention_op(q, k, v, _kept(key_lengths), causal, scale)[0]  # type: ignore[no-any-return]


def _additive(
    query: Tensor, keys: Tensor, values: Tensor, v: Tensor, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    return launch.additive_forward(query, keys, values, v, key_lengths)


def _additive_backward(
    grad_context: Tensor | None,
    grad_weights: Tensor | None,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    weights: Tensor,
    key_lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if grad_context is None:
        grad_context = values.new_zeros(values.shape[0], values.shape[2])
    if grad_weights is None:
        grad_weights = torch.zeros_like(weights)
    return launch.additive_backward(
        grad_context, grad_weights, query, keys, values, v, weights, key_lengths
    )


_additive_op = define(
    "attention_additive",
    _additive,
    _additive_backward,
    fake=lambda query, keys, values, v, key_lengths: (
        values.new_empty(values.shape[0], values.shape[2]),
        keys.new_empty(keys.shape[:2]),
    ),
    fake_backward=lambda grad_context, grad_weights, *inputs: empty_like(*inputs[:4]),
    save=lambda inputs, out: (*inputs[:4], out[1]),
    options=(None,),
)


def additive(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    *,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """c_BD and w, weights_BL."""
    return _additive_op(query, keys, values, v, _kept(key_lengths))  # type: ignore[no-any-return]
