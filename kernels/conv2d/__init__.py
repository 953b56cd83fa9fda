"""Convolution of images, alone, with what usually follows it, or with batch normalisation.

The formulas are in ``kernels.conv2d.reference``; for ``impl`` see ``kernels.dispatch``. The tensors
have one floating-point dtype and one device, and every one of them gets a gradient, which is
differentiable again in every ``impl`` but ``compile``. In an autocast region they are cast to its
type first, those of float64 excepted. ``triton`` takes tensors in any layout, those with channels
last without a copy, and gives images with channels last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels import checks
from kernels.autocast import cast
from kernels.conv2d import reference, vectorized
from kernels.dispatch import Op

__all__ = ["ConvBN", "conv2d", "conv2d_fused", "conv2d_stats"]

# Strides, paddings, dilations and sides of padded images are below: a kernel counts pixels in 32
# bits, up to twice as many, and takes one that is four times as far for outside of every image.
BEYOND = 2**28


def _op(name: str) -> Op:
    """The op of that name in all its implementations."""

    def triton() -> Any:
        from kernels.conv2d import op

        return getattr(op, name)

    return Op(f"conv2d.{name}", getattr(reference, name), getattr(vectorized, name), triton)


_conv2d, _conv2d_fused = _op("conv2d"), _op("conv2d_fused")
_conv2d_stats = _op("conv2d_stats")


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    impl: str | None = None,
) -> Tensor:
    """The convolution (cross-correlation) of images with a kernel, as ``F.conv2d`` has it.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, R, S).
        bias: (K,); none when None.
        stride: pixels from one output to the next, one number or (of rows, of columns).
        padding: zeros on every side, one number or (above and below, left and right); or
            ``"valid"`` for none, or ``"same"`` for an output as large as x, which needs a stride
            of 1; where that takes an odd number of them, there is one more below or on the right.
        dilation: pixels from one tap to the next, one number or (of rows, of columns).
        groups: that divide the channels; output channels see the inputs of their own group only.
        impl: what computes it.

    Returns:
        (N, K, P, Q), with P = (H + 2 padding - dilation (R - 1) - 1) // stride + 1, Q likewise.

    Raises:
        ValueError: other shapes or devices, numbers out of range, 2**28 pixels or more from one
            side of a padded image to the other, groups that do not divide the channels, a kernel
            larger than the padded image, an unknown ``impl``.
        TypeError: other dtypes, options of other types.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    x, weight, bias = cast(x, weight, bias)
    options = _geometry(x, weight, stride, padding, dilation, groups)
    if bias is not None:
        _agree(x, weight, {"bias": (bias, "K")})
    return _conv2d(x, weight, bias, **options, impl=impl)  # type: ignore[no-any-return]


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    relu: bool = True,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """relu(scale * convolution + shift + residual), in one pass over the output.

    A bias is a ``shift`` with a ``scale`` of ones. Batch normalisation at evaluation has a scale of
    gamma / sqrt(variance + eps), and a shift of beta - scale * mean.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, R, S).
        scale: (K,).
        shift: (K,).
        stride: as ``conv2d``.
        padding: as ``conv2d``.
        dilation: as ``conv2d``.
        groups: as ``conv2d``.
        relu: cut off below zero.
        residual: (N, K, P, Q), added before that; none when None.
        impl: what computes it.

    Returns:
        (N, K, P, Q).

    Raises:
        ValueError, TypeError, Unavailable: as ``conv2d``.
    """
    x, weight, scale, shift, residual = cast(x, weight, scale, shift, residual)
    options = _geometry(x, weight, stride, padding, dilation, groups)
    given = {"scale": (scale, "K"), "shift": (shift, "K")}
    sizes: dict[str, int] = {}
    if residual is not None:
        taps = options["stride"], options["padding"], options["dilation"]
        sizes["P"], sizes["Q"] = reference.output_size(x.shape[2:], weight.shape[2:], *taps)
        given["residual"] = (residual, "N K P Q")
    _agree(x, weight, given, **sizes)
    checks.kind("relu", relu, bool)
    parts = (x, weight, scale, shift, residual)
    return _conv2d_fused(*parts, **options, relu=relu, impl=impl)  # type: ignore[no-any-return]


def conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution and the statistics of its output, which ``triton`` takes in the same pass.

    They are what batch normalisation in training divides and subtracts. Gradients flow through
    them; ``ConvBN`` uses them.

    Args:
        x: (N, C, H, W), at least one image.
        weight: (K, C / groups, R, S).
        bias: (K,); none when None.
        stride: as ``conv2d``.
        padding: as ``conv2d``.
        dilation: as ``conv2d``.
        groups: as ``conv2d``.
        impl: what computes it.

    Returns:
        y, (N, K, P, Q), and over N, P and Q its mean and its variance (the mean of the squared
        distance from the mean), (K,) each, in float32, or float64 for float64.

    Raises:
        ValueError, TypeError, Unavailable: as ``conv2d``.
    """
    x, weight, bias = cast(x, weight, bias)
    options = _geometry(x, weight, stride, padding, dilation, groups)
    if bias is not None:
        _agree(x, weight, {"bias": (bias, "K")})
    if x.shape[0] < 1:
        raise ValueError("x has N at least 1 where there are statistics, got 0")
    return _conv2d_stats(x, weight, bias, **options, impl=impl)  # type: ignore[no-any-return]


def _agree(x: Tensor, weight: Tensor, given: dict[str, tuple[Tensor, str]], **sizes: int) -> None:
    """Check tensors against x and weight."""
    checks.tensors({"x": (x, "N C H W"), "weight": (weight, "K D R S"), **given}, **sizes)


def _geometry(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any
) -> dict[str, Any]:
    """Check the geometry; stride and dilation as pairs, padding as (top, bottom, left, right)."""
    _agree(x, weight, {})
    (_, channels, height, width), (outputs, inputs, *taps) = x.shape, weight.shape
    for name, size in {"C": channels, "H": height, "W": width}.items():
        if size < 1:
            raise ValueError(f"x has {name} at least 1, got {size}")
    if min(weight.shape) < 1:
        raise ValueError(f"weight has sizes of at least 1, got {tuple(weight.shape)}")
    checks.kind("groups", groups, int)
    if groups < 1:
        raise ValueError(f"groups is at least 1, got {groups}")
    for name, count in {"C": channels, "K": outputs}.items():
        if count % groups:
            raise ValueError(f"groups divides {name}={count}, got {groups}")
    if inputs * groups != channels:
        expected = f"C / groups = {channels // groups}"
        raise ValueError(f"weight has {expected} channels in its second place, got {inputs}")
    steps, apart = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    sides = _sides(padding, taps, steps, apart)
    for i, (name, size) in enumerate({"H": height, "W": width}.items()):
        room, needed = size + sides[2 * i] + sides[2 * i + 1], apart[i] * (taps[i] - 1) + 1
        if room >= BEYOND:
            raise ValueError(f"padding leaves {name}={size} below {BEYOND} pixels, got {room}")
        if needed > room:
            raise ValueError(
                f"weight covers at most the {room} pixels of the padded {name}={size}, "
                f"got {taps[i]} taps that cover {needed}"
            )
    return {"stride": steps, "padding": sides, "dilation": apart, "groups": groups}


def _sides(
    padding: Any, taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right)."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding is 'same', 'valid', a number or a pair, got {padding!r}")
        if padding == "valid":
            return 0, 0, 0, 0
        if tuple(stride) != (1, 1):
            raise ValueError(f"padding 'same' needs a stride of 1, got {tuple(stride)}")
        rows, columns = (d * (t - 1) for t, d in zip(taps, dilation, strict=True))
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    rows, columns = _pair("padding", padding, 0)
    return rows, rows, columns, columns


def _pair(name: str, given: Any, least: int) -> tuple[int, int]:
    """One number twice, or two as they are."""
    values = (given, given) if _is_int(given) else given
    if not isinstance(values, Sequence) or not all(_is_int(v) for v in values):
        raise TypeError(f"{name} is an int or a pair of them, got {given!r}")
    if len(values) != 2:
        raise ValueError(f"{name} is an int or a pair of them, got {len(values)} numbers")
    if min(values) < least:
        raise ValueError(f"{name} is at least {least}, got {given}")
    if max(values) >= BEYOND:
        raise ValueError(f"{name} is below {BEYOND}, got {given}")
    return values[0], values[1]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ConvBN(nn.Module):
    """A convolution, its batch normalisation and a ReLU, of modules that a model already has.

    ``ConvBN(model.conv1, model.bn1)`` shares their parameters and statistics, and its
    ``state_dict`` is that of ``torch.nn.Sequential(model.conv1, model.bn1)``. In training the
    statistics come with the convolution, which saves a pass over its output; in evaluation
    everything is one pass. A residual may be added before the ReLU.

    Attributes:
        relu: whether to cut off below zero.
        impl: what computes it, see ``kernels.dispatch``; may be set at any time.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, relu: bool = True, *, impl: str | None = None
    ) -> None:
        super().__init__()
        for name, given, kind in (("conv", conv, nn.Conv2d), ("norm", norm, nn.BatchNorm2d)):
            if not isinstance(given, kind):
                raise TypeError(f"{name} is a torch.nn.{kind.__name__}, got {type(given).__name__}")
        if conv.padding_mode != "zeros":
            raise ValueError(f"conv has padding_mode 'zeros', got {conv.padding_mode!r}")
        if norm.num_features != conv.out_channels:
            raise ValueError(f"norm has {conv.out_channels} features, got {norm.num_features}")
        self.add_module("0", conv)
        self.add_module("1", norm)
        self.relu, self.impl = relu, impl

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve, normalise, add and cut off.

        Args:
            x: (N, C, H, W).
            residual: (N, K, P, Q), added before the ReLU; none when None.

        Returns:
            (N, K, P, Q).

        Raises:
            ValueError: one value for each channel only, of which there is no variance; else as
                ``conv2d_stats`` and ``conv2d_fused``.
            TypeError, Unavailable: as these.
        """
        # What a module holds is a tensor or a module to a type checker, and may be None.
        conv: Any = self._modules["0"]
        norm: Any = self._modules["1"]
        geometry = {k: getattr(conv, k) for k in ("stride", "padding", "dilation", "groups")}
        if not norm.training and norm.running_mean is not None:
            scale, shift = _affine(norm, norm.running_mean, norm.running_var)
            if conv.bias is not None:
                shift = shift + scale * conv.bias
            scale, shift = scale.to(conv.weight.dtype), shift.to(conv.weight.dtype)
            more: dict[str, Any] = {"relu": self.relu, "residual": residual, "impl": self.impl}
            return conv2d_fused(x, conv.weight, scale, shift, **geometry, **more)
        y, mean, variance = conv2d_stats(x, conv.weight, conv.bias, **geometry, impl=self.impl)
        if norm.training:
            _follow(norm, mean.detach(), variance.detach(), y.numel() // y.shape[1])
        scale, shift = _affine(norm, mean, variance)
        out = torch.addcmul(shift[:, None, None], y, scale[:, None, None]).to(y.dtype)
        out = out if residual is None else out + residual
        return torch.relu(out) if self.relu else out

    def extra_repr(self) -> str:
        """Whether there is a ReLU."""
        return f"relu={self.relu}"


def _affine(norm: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Batch normalisation by some statistics, as a scale and a shift."""
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _follow(norm: Any, mean: Tensor, variance: Tensor, values: int) -> None:
    """Have running statistics follow those of a batch of ``values`` for each channel."""
    if values < 2:
        raise ValueError(f"x gives more than one value for each channel in training, got {values}")
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        share = 1 / float(norm.num_batches_tracked)
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean), share)
        unbiased = variance * (values / (values - 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var), share)
