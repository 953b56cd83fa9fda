"""Convolutional nets: the layer on ``kernels.conv2d``, and residual nets of any depth.

The residual nets are those of He et al. (2016, "Deep Residual Learning for Image Recognition"):
of section 4.2 for CIFAR-10, with three stages and 6 n + 2 layers, and of table 1 for ImageNet, with
four. A stage has twice the channels of the one before and half its height and width.

Shapes: B batch, C channels, H and W height and width, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kernels.conv2d import conv2d
from suite.task import unknown

NORMS = ("batch", "group", "layer", "instance", "none")
SHORTCUTS = ("pad", "project", "none")


class Convolution(nn.Conv2d):
    """Images x_BCHW to images, with zeros around them that keep their size at a stride of 1.

    Args:
        n_in: channels.
        n_out: filters.
        size: rows and columns of a filter.
        stride: pixels from one output to the next.
        padding: zeros on every side, half a filter when None.
        bias: whether a number is added to each filter's output.
        impl: what computes it; see ``kernels.dispatch``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = False,
        impl: str = "torch",
    ) -> None:
        padding = size // 2 if padding is None else padding
        super().__init__(n_in, n_out, size, stride=stride, padding=padding, bias=bias)
        self.impl = impl

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        return conv2d(x_BCHW, self.weight, self.bias, stride, padding, impl=self.impl)


def normalisation(kind: str, n_channels: int, groups: int = 8) -> nn.Module:
    """What normalises images; group, layer and instance normalisation differ in their groups only.

    Args:
        kind: one of ``NORMS``.
        n_channels: of the images.
        groups: of channels that share mean and variance, where the kind is ``group``.
    """
    if kind == "batch":
        return nn.BatchNorm2d(n_channels)
    if kind == "none":
        return nn.Identity()
    counts = {"group": groups, "layer": 1, "instance": n_channels}
    if kind not in counts:
        raise unknown("norm", kind, NORMS)
    return nn.GroupNorm(counts[kind], n_channels)


class Padded(nn.Module):
    """The shortcut without parameters: every ``stride``-th pixel, and zeros as further channels."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = n_out - n_in, stride

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class Block(nn.Module):
    """Two convolutions with normalisation, and what comes in added before the last ReLU.

    Args:
        n_in: channels that come in.
        n_out: channels that go out.
        stride: of the first convolution.
        shortcut: one of ``SHORTCUTS``; with ``none`` nothing is added: a plain net.
        options: ``norm`` and ``groups`` as ``normalisation`` takes them, and ``impl``.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: str, **options: Any) -> None:
        super().__init__()
        norm, groups, impl = (options[k] for k in ("norm", "groups", "impl"))
        self.conv1 = Convolution(n_in, n_out, 3, stride=stride, impl=impl)
        self.norm1 = normalisation(norm, n_out, groups)
        self.conv2 = Convolution(n_out, n_out, 3, impl=impl)
        self.norm2 = normalisation(norm, n_out, groups)
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        self.shortcut: nn.Module | None = None
        if shortcut != "none":
            same = stride == 1 and n_in == n_out
            self.shortcut = nn.Identity() if same else Padded(n_in, n_out, stride)
        if shortcut == "project" and (stride > 1 or n_in != n_out):
            self.shortcut = nn.Sequential(
                Convolution(n_in, n_out, 1, stride=stride, impl=impl),
                normalisation(norm, n_out, groups),
            )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x_BCHW)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x_BCHW)
        return F.relu(y)


def residual_net(
    blocks: Sequence[int],
    width: int,
    *,
    n_in: int = 3,
    n_classes: int = 10,
    large_images: bool = False,
    strides: Sequence[int] | None = None,
    shortcut: str = "pad",
    norm: str = "batch",
    groups: int = 8,
    impl: str = "torch",
) -> nn.Sequential:
    """Images x_BCHW to logits_BK.

    Args:
        blocks: of two convolutions in each stage.
        width: channels of the first stage.
        n_in: channels of the images.
        n_classes: K.
        large_images: begin with ImageNet's 7x7 convolution and max pooling, which leave a quarter
            of height and width, instead of a 3x3 convolution.
        strides: of the stages; 1, then 2 each, when None.
        shortcut: one of ``SHORTCUTS``.
        norm: one of ``NORMS``.
        groups: of group normalisation.
        impl: what computes the convolutions; see ``kernels.dispatch``.

    Returns:
        ``stem``, ``stage1``, ``stage2``, ... and ``head``. Filters start as He et al. (2015) say.
    """
    options: dict[str, Any] = {"norm": norm, "groups": groups, "impl": impl}
    size, stride = (7, 2) if large_images else (3, 1)
    model = nn.Sequential()
    model.add_module("stem", _stem(n_in, width, size, stride, **options))
    n = width
    for i, (count, step) in enumerate(
        zip(blocks, strides or (1,) + (2,) * (len(blocks) - 1), strict=True)
    ):
        n_out = width * 2**i
        stage = [Block(n, n_out, step, shortcut, **options)]
        stage += [Block(n_out, n_out, 1, shortcut, **options) for _ in range(count - 1)]
        model.add_module(f"stage{i + 1}", nn.Sequential(*stage))
        n = n_out
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_classes))
    model.add_module("head", head)
    for module in model.modules():
        if isinstance(module, Convolution):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def _stem(n_in: int, width: int, size: int, stride: int, **options: Any) -> nn.Sequential:
    layers: list[nn.Module] = [
        Convolution(n_in, width, size, stride=stride, impl=options["impl"]),
        normalisation(options["norm"], width, options["groups"]),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if stride > 1 else []))


def depth_blocks(depth: int) -> tuple[int, int, int]:
    """Blocks of the three stages of a net for CIFAR-10; ValueError where depth is not 6 n + 2."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"a residual net for CIFAR-10 has 6 n + 2 layers, such as 20; got {depth}")
    return n, n, n
