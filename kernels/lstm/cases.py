"""The shapes that tests, compile gate and benchmarks use.

T steps, B batch, X inputs, H units.
"""

from dataclasses import dataclass
from typing import Any

import torch

OPS = ("lstm",)


@dataclass(frozen=True)
class Case:
    """One set of sizes, what it is there for, and the type that it is compiled and timed in."""

    name: str
    T: int
    B: int
    X: int
    H: int
    dtype: torch.dtype = torch.float32


TEST = (
    Case("smallest", 1, 1, 1, 1),
    Case("no multiples", 4, 5, 3, 7),
    Case("several blocks", 2, 66, 2, 19),
    Case("empty batch", 2, 0, 3, 4),
)
GRADCHECK = Case("gradcheck", 2, 3, 1, 2)
SMALL = Case("all units in a program", 128, 64, 64, 64)
SMALL_BF16 = Case("all units in a program, bfloat16", 128, 64, 128, 128, torch.bfloat16)
SMALL_FP16 = Case("all units in a program, float16", 128, 64, 128, 128, torch.float16)
SMALL_FP64 = Case("all units in a program, float64", 16, 64, 32, 32, torch.float64)
FLASHRNN = Case("FlashRNN's figure", 1024, 16, 768, 768, torch.bfloat16)
FLASHRNN_FP16 = Case("FlashRNN's figure, as nn.LSTM", 1024, 16, 768, 768, torch.float16)
LARGE = Case("float32, units split", 128, 64, 256, 512)
LARGE_FP64 = Case("float64, units split", 4, 16, 64, 256, torch.float64)
MANY_ROWS = Case("a launch a step", 2, 512, 256, 1024, torch.bfloat16)
MANY_ROWS_FP32 = Case("a launch a step, float32", 2, 512, 256, 1024)
LATENCY = Case("batch of one", 256, 1, 256, 256, torch.bfloat16)
COMPILE = (
    SMALL,
    SMALL_BF16,
    SMALL_FP16,
    SMALL_FP64,
    FLASHRNN,
    LARGE,
    LARGE_FP64,
    MANY_ROWS,
    MANY_ROWS_FP32,
)
BENCH = (SMALL, SMALL_BF16, SMALL_FP16, FLASHRNN, FLASHRNN_FP16, LARGE, LATENCY)


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """What the public function ``lstm`` takes: x, both weights, the bias, and the state."""
    g = torch.Generator().manual_seed(seed)
    T, B, X, H = case.T, case.B, case.X, case.H

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(device, dtype or case.dtype)

    weights = random(4 * H, X, scale=X**-0.5), random(4 * H, H, scale=H**-0.5)
    return random(T, B, X), *weights, random(4 * H), (random(B, H), random(B, H))


def lengths(case: Case, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    """Lengths from 0 to T; among the first three rows are 0, 1 and T."""
    g = torch.Generator().manual_seed(seed)
    found = torch.randint(0, case.T + 1, (case.B,), generator=g)
    found[:3] = torch.tensor([1, 0, case.T])[: case.B]
    return found.to(device)
