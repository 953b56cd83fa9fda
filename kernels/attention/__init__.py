"""Attention: scaled dot products of many heads, and the additive attention of single queries.

The formulas are in ``kernels.attention.reference``; for ``impl`` see ``kernels.dispatch``. The
tensors have one floating-point dtype and one device, and every one of them gets a gradient. In an
autocast region they are cast to its type first, those of float64 excepted. The gradients of
``triton`` are not differentiable again; it adds up in float32 (float64 for float64).

``key_lengths`` are integers of any width on the same device: of batch element b, only the first
``key_lengths[b]`` keys count, and ``triton`` does not even load whole blocks of the others. Where
that needs no waiting for a GPU, a length that is negative or beyond the keys is an error; elsewhere
it counts as none, or as all of them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels import checks
from kernels.attention import reference, vectorized
from kernels.autocast import cast
from kernels.dispatch import Op

__all__ = ["additive", "attention"]

# Bytes of an element -> the largest heads that a kernel can hold without spilling registers.
MOST_HEAD = {2: 256, 4: 128, 8: 256}
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _triton_attention() -> Any:
    from kernels.attention import op

    return op.attention


def _triton_additive() -> Any:
    from kernels.attention import op

    return op.additive


def _refusals(q: Tensor, *rest: Any, **options: Any) -> list[str]:
    size, most = q.shape[-1], MOST_HEAD.get(q.dtype.itemsize, 0)
    return [f"heads of {size} exceed {most} in {q.dtype}"] if size > most else []


_attention = Op(
    "attention.attention",
    reference.attention,
    vectorized.attention,
    _triton_attention,
    _refusals,
)
_additive = Op("attention.additive", reference.additive, vectorized.additive, _triton_additive)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Each query's mean of the values, weighted by softmax over the keys of scale times product.

    Args:
        q: (B, H, M, D).
        k: (B, H, N, D).
        v: (B, H, N, D).
        key_lengths: (B,), integers in [0, N]; all keys count when None. A query that sees no key
            gives zeros, and gets and gives gradients of zero.
        causal: query i sees the keys up to key i only, whatever M and N.
        scale: of the products; 1 / sqrt(D) when None.
        impl: what computes it.

    Returns:
        (B, H, M, D).

    Raises:
        ValueError: other shapes or devices, lengths out of range, a scale that is not finite, an
            unknown ``impl``.
        TypeError: other dtypes, a ``causal`` or ``scale`` of another type.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    q, k, v = cast(q, k, v)
    sizes = checks.tensors({"q": (q, "B H M D"), "k": (k, "B H N D"), "v": (v, "B H N D")})
    if sizes["D"] < 1:
        raise ValueError("q has heads of size D at least 1, got 0")
    checks.kind("causal", causal, bool)
    if scale is None:
        scale = sizes["D"] ** -0.5
    elif isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale is a number or None, got {type(scale).__name__}")
    elif not math.isfinite(scale):
        raise ValueError(f"scale is finite, got {scale}")
    _check_lengths(key_lengths, q, "q", sizes["N"])
    options = {"key_lengths": key_lengths, "causal": causal, "scale": float(scale)}
    return _attention(q, k, v, **options, impl=impl)  # type: ignore[no-any-return]


def additive(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    *,
    key_lengths: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Additive attention of one query: softmax over the keys of v . tanh(query + key).

    Args:
        query: (B, A), projected.
        keys: (B, L, A), projected.
        values: (B, L, D).
        v: (A,).
        key_lengths: (B,), integers in [0, L]; all keys count when None. A length of 0 gives zeros
            and gradients of zero.
        impl: what computes it.

    Returns:
        The context, (B, D), and the weights, (B, L), each row summing to 1.

    Raises:
        ValueError: other shapes or devices, lengths out of range, an unknown ``impl``.
        TypeError: other dtypes.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    query, keys, values, v = cast(query, keys, values, v)
    sizes = checks.tensors(
        {
            "query": (query, "B A"),
            "keys": (keys, "B L A"),
            "values": (values, "B L D"),
            "v": (v, "A"),
        }
    )
    _check_lengths(key_lengths, query, "query", sizes["L"])
    parts = (query, keys, values, v)
    return _additive(*parts, key_lengths=key_lengths, impl=impl)  # type: ignore[no-any-return]


def _check_lengths(key_lengths: Tensor | None, like: Tensor, name: str, most: int) -> None:
    """Check lengths against the batch and device of ``like``, and against the number of keys."""
    if key_lengths is None:
        return
    if not isinstance(key_lengths, Tensor):
        raise TypeError(f"key_lengths is a tensor or None, got {type(key_lengths).__name__}")
    if key_lengths.dtype not in INTEGERS:
        raise TypeError(f"key_lengths is of integers, got {key_lengths.dtype}")
    if key_lengths.shape != like.shape[:1]:
        expected, got = f"(B={like.shape[0]},)", tuple(key_lengths.shape)
        raise ValueError(f"key_lengths has shape {expected}, got {got}")
    if key_lengths.device != like.device:
        raise ValueError(f"key_lengths is on {like.device} as {name} is, got {key_lengths.device}")
    if key_lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = key_lengths[(key_lengths < 0) | (key_lengths > most)]
    if wrong.numel():
        raise ValueError(f"key_lengths are in [0, {most}], got {int(wrong[0])}")
