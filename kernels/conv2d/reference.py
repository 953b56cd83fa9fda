"""Convolution of images, as a sum over the taps of its kernel.

    y[n, k, p, q] = b[k] + sum_{c, r, s} w[k, c, r, s] x[n, c, i, j]
    i = p stride_h + r dilation_h - top,  j = q stride_w + s dilation_w - left

where x is zero outside of the image. With groups, output channel k sees the input channels of its
own group only. Fused: relu(scale[k] y[n, k, p, q] + shift[k] + residual[n, k, p, q]). Statistics:
the mean of y over n, p and q, and the mean of its squared distance from that.

Shapes: N images, C input channels, H by W pixels; K output channels, P by Q pixels; R by S taps;
G groups. ``stride`` and ``dilation`` are (of rows, of columns); ``padding`` is (top, bottom, left,
right).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def output_size(
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """(P, Q) for images of ``size`` (H, W) and a kernel of ``taps`` (R, S)."""
    height, width = (
        (size[i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (taps[i] - 1) - 1)
        // stride[i]
        + 1
        for i in range(2)
    )
    return height, width


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
    """y_NKPQ."""
    R, S = weight_KCRS.shape[2:]
    P, Q = output_size(x_NCHW.shape[2:], (R, S), stride, padding, dilation)
    top, bottom, left, right = padding
    x_NGCHW = F.pad(x_NCHW, (left, right, top, bottom)).unflatten(1, (groups, -1))
    weight_GKCRS = weight_KCRS.unflatten(0, (groups, -1))
    y_NGKPQ = x_NCHW.new_zeros(x_NCHW.shape[0], *weight_GKCRS.shape[:2], P, Q)
    for r in range(R):
        rows_NGCPW = x_NGCHW[:, :, :, r * dilation[0] :: stride[0]][:, :, :, :P]
        for s in range(S):
            x_NGCPQ = rows_NGCPW[..., s * dilation[1] :: stride[1]][..., :Q]
            tap_GKC = weight_GKCRS[..., r, s]
            y_NGKPQ = y_NGKPQ + torch.einsum("ngcpq,gkc->ngkpq", x_NGCPQ, tap_GKC)
    y_NKPQ = y_NGKPQ.flatten(1, 2)
    return y_NKPQ if bias_K is None else y_NKPQ + bias_K[:, None, None]


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
    """relu(scale y + shift + residual), NKPQ."""
    y_NKPQ = conv2d(
        x_NCHW, weight_KCRS, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    y_NKPQ = scale_K[:, None, None] * y_NKPQ + shift_K[:, None, None]
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
    mean_1K11 = wide_NKPQ.mean((0, 2, 3), keepdim=True)
    return y_NKPQ, mean_1K11.flatten(), (wide_NKPQ - mean_1K11).square().mean((0, 2, 3))
