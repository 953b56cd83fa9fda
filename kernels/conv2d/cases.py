"""The shapes that tests, compile gate and benchmarks use.

N images of C channels and H by W pixels, K output channels, R by S taps; the geometry is that of
``kernels.conv2d.conv2d``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.conv2d.reference import output_size

OPS = ("conv2d", "conv2d_fused", "conv2d_stats")


@dataclass(frozen=True)
class Case:
    """One set of sizes with a type, and what it is there for.

    ``arguments`` gives tensors; ``geometry`` gives stride, padding, dilation and groups, and
    ``keywords`` those and the residual of the fused op. No kernel is specialised on the geometry,
    but on the groups' channels. ``ops`` are those that the compile gate compiles: they
    differ in what follows the sums only.
    """

    name: str
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    dtype: torch.dtype = torch.float32
    residual: bool = False
    ops: tuple[str, ...] = ("conv2d",)


TEST = (
    Case("smallest", 1, 1, 1, 1, 1, 1, 1),
    Case("3 by 3", 2, 3, 6, 5, 4, 3, 3, padding=1),
    Case("channels in blocks", 1, 17, 4, 3, 18, 3, 2),
    Case("1 by 1", 2, 20, 3, 4, 5, 1, 1),
    Case("stride 2", 2, 2, 7, 6, 3, 3, 3, 2, 1),
    Case("stride 2, channels in blocks", 1, 16, 5, 6, 2, 3, 3, 2, 1),
    Case("stride beyond the kernel", 1, 2, 8, 9, 2, 2, 2, 3),
    Case("stride beyond the image", 1, 1, 2, 3, 2, 2, 2, (3, 4), 1),
    Case("dilation 2", 1, 2, 7, 8, 2, 3, 3, 1, 2, 2),
    Case("stride and dilation 2", 1, 2, 8, 7, 2, 3, 2, 2, 2, 2),
    Case("stride 2, dilation 3", 1, 1, 9, 8, 2, 3, 2, 2, 1, 3),
    Case("unequal both ways", 1, 2, 6, 9, 3, 2, 4, (1, 3), (2, 0), (2, 1)),
    Case("even kernel, same", 1, 2, 5, 4, 3, 2, 4, 1, "same"),
    Case("same, dilation 2", 1, 1, 5, 6, 2, 3, 2, 1, "same", 2),
    Case("groups", 2, 4, 5, 4, 6, 3, 3, 1, 1, 1, 2),
    Case("groups, channels in blocks", 1, 32, 3, 3, 4, 2, 2, 1, 0, 1, 2),
    Case("depthwise", 1, 3, 5, 4, 3, 3, 3, 2, 1, 1, 3),
    Case("depthwise, twice the channels", 1, 2, 4, 4, 4, 2, 2, 1, 1, 1, 2),
    Case("padding beyond the kernel", 1, 2, 2, 3, 2, 2, 2, 2, 3),
    Case("one channel in and out", 2, 1, 6, 7, 1, 3, 3, 1, 1),
    Case("empty batch", 0, 2, 4, 4, 3, 3, 3, padding=1),
)
GRADCHECK = Case("gradcheck", 1, 2, 3, 3, 2, 2, 2)
DIGITS = Case("first layer on MNIST", 256, 1, 28, 28, 32, 5, 5, padding=2)
FRAMES = Case("first layer on Atari", 32, 4, 84, 84, 32, 8, 8, 4, dtype=torch.bfloat16)
STEM = Case(
    "first layer of a ResNet", 64, 3, 224, 224, 64, 7, 7, 2, 3, dtype=torch.bfloat16, ops=OPS
)
EARLY = Case(
    "3 by 3, 64 channels", 128, 64, 32, 32, 64, 3, 3, padding=1, dtype=torch.bfloat16, ops=OPS
)
MIDDLE = Case(
    "3 by 3, 128 channels", 256, 128, 32, 32, 128, 3, 3, padding=1, dtype=torch.bfloat16, ops=OPS
)
LATE = Case("3 by 3, 512 channels", 64, 512, 7, 7, 512, 3, 3, padding=1, dtype=torch.bfloat16)
POINT = Case("1 by 1", 64, 256, 28, 28, 512, 1, 1, dtype=torch.bfloat16)
DOWN = Case("3 by 3, stride 2", 64, 128, 56, 56, 128, 3, 3, 2, 1, dtype=torch.bfloat16)
HALF = Case("float16", 128, 64, 32, 32, 64, 3, 3, padding=1, dtype=torch.float16)
SINGLE = Case("float32", 256, 128, 32, 32, 128, 3, 3, padding=1, ops=OPS)
SINGLE_STEM = Case("float32, first layer", 64, 3, 224, 224, 64, 7, 7, 2, 3)
DOUBLE = Case("float64", 16, 64, 16, 16, 64, 3, 3, padding=1, dtype=torch.float64, ops=OPS)
RESIDUAL = replace(EARLY, name="3 by 3, residual", residual=True)
GROUPS = Case("groups of 4", 64, 128, 28, 28, 128, 3, 3, padding=1, groups=32, dtype=torch.bfloat16)
WIDE_GROUPS = Case(
    "groups of 32", 64, 64, 28, 28, 128, 3, 3, 2, 2, 2, groups=2, dtype=torch.bfloat16
)
DEPTHWISE = Case("depthwise", 64, 96, 28, 28, 96, 3, 3, padding=1, groups=96)
ODD = Case(
    "odd numbers of everything", 3, 35, 13, 11, 37, 3, 2, 2, 1, dtype=torch.bfloat16, ops=OPS
)
COMPILE = (
    DIGITS,
    STEM,
    EARLY,
    MIDDLE,
    DOWN,
    POINT,
    RESIDUAL,
    GROUPS,
    WIDE_GROUPS,
    ODD,
    HALF,
    SINGLE,
    SINGLE_STEM,
    DEPTHWISE,
    DOUBLE,
)
BENCH = (DIGITS, FRAMES, STEM, EARLY, MIDDLE, LATE, POINT, DOWN, SINGLE)


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, ...]:
    """The tensors that the public function ``op`` takes, in the case's own type by default."""
    g = torch.Generator().manual_seed(seed)
    inputs = case.C // case.groups
    shapes: list[tuple[int, ...]] = [(case.N, case.C, case.H, case.W)]
    shapes += [(case.K, inputs, case.R, case.S), (case.K,)]
    if op == "conv2d_fused":
        shapes += [(case.K,)]
    made = [torch.randn(s, generator=g) for s in shapes]
    made[1] /= (inputs * case.R * case.S) ** 0.5
    return tuple(t.to(device, dtype or case.dtype) for t in made)


def geometry(case: Case) -> dict[str, int | tuple[int, int] | str]:
    """Stride, padding, dilation and groups, as keywords."""
    return {name: getattr(case, name) for name in ("stride", "padding", "dilation", "groups")}


def keywords(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """What the public function ``op`` takes beside its tensors; a residual has their type."""
    more: dict[str, Any] = dict(geometry(case))
    if op == "conv2d_fused" and case.residual:
        g = torch.Generator().manual_seed(seed + 1)
        residual = torch.randn(case.N, case.K, *_output(case), generator=g)
        more["residual"] = residual.to(device, dtype or case.dtype)
    return more


def _output(case: Case) -> tuple[int, int]:
    """(P, Q) of a case whose padding is in numbers."""
    stride, padding, dilation = (
        (n, n) if isinstance(n, int) else (int(n[0]), int(n[1]))
        for n in (case.stride, case.padding, case.dilation)
    )
    sides = (padding[0], padding[0], padding[1], padding[1])
    return output_size((case.H, case.W), (case.R, case.S), stride, sides, dilation)
