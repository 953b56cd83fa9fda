"""The same in PyTorch's own operators; the formulas are in ``kernels.conv2d.reference``."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def conv2d(
    x_NCHW: torch.Tensor,
    weight_KCRS: torch.Tensor,
    bias_K: torch.Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """y_NKPQ; padding that differs from side to side costs a copy of x."""
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x_NCHW, top, left = F.pad(x_NCHW, (left, right, top, bottom)), 0, 0
    return F.conv2d(
        x_NCHW, weight_KCRS, bias_K, tuple(stride), (top, left), tuple(dilation), groups
    )


def conv2d_fused(
    x_NCHW: torch.Tensor,
    weight_KCRS: torch.Tensor,
    scale_K: torch.Tensor,
    shift_K: torch.Tensor,
    residual_NKPQ: torch.Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> torch.Tensor:
    """relu(scale y + shift + residual), NKPQ; it is the weights that are scaled."""
    y_NKPQ = conv2d(
        x_NCHW,
        weight_KCRS * scale_K[:, None, None, None],
        shift_K,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    if residual_NKPQ is not None:
        y_NKPQ = y_NKPQ + residual_NKPQ
    return torch.relu(y_NKPQ) if relu else y_NKPQ


def conv2d_stats(
    x_NCHW: torch.Tensor,
    weight_KCRS: torch.Tensor,
    bias_K: torch.Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y_NKPQ, and its mean_K and variance_K in float32 at least."""
    y_NKPQ = conv2d(
        x_NCHW,
        weight_KCRS,
        bias_K,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    wide_NKPQ = y_NKPQ.to(torch.promote_types(y_NKPQ.dtype, torch.float32))
    variance_K, mean_K = torch.var_mean(wide_NKPQ, (0, 2, 3), correction=0)
    return y_NKPQ, mean_K, variance_K
