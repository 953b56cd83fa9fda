"""The shapes that tests, compile gate and benchmarks use.

B batch, N slots, W word size, H heads, S shifts.
"""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.ntm.reference import Head

OPS = ("address",)


@dataclass(frozen=True)
class Case:
    """One set of sizes, what it is there for, and the type that it is compiled in."""

    name: str
    B: int
    N: int
    W: int
    H: int
    S: int = 3
    dtype: torch.dtype = torch.float32


TEST = (
    Case("smallest", 1, 1, 1, 1, 1),
    Case("no multiples", 2, 37, 20, 3),
    Case("several tiles, five shifts", 1, 70, 130, 2, 5),
    Case("empty batch", 0, 5, 4, 2),
)
GRADCHECK = Case("gradcheck", 2, 5, 3, 2)
COPY = Case("copy task", 16, 16, 16, 2)
PAPER = Case("the paper's copy task, batched", 16, 128, 20, 2)
COMPILE = (
    COPY,
    PAPER,
    Case("five shifts", 16, 128, 20, 4, 5),
    Case("one shift, many slots, bfloat16", 4, 1000, 64, 2, 1, torch.bfloat16),
    Case("the most slots and the longest words", 1, 8192, 1024, 1, 3),
)
BENCH = (COPY, PAPER)


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """What the public function ``address`` takes, in the case's own type by default."""
    dtype = dtype or case.dtype
    g = torch.Generator().manual_seed(seed)
    B, N, W, H, S = case.B, case.N, case.W, case.H, case.S
    head = Head(
        keys_BHW=torch.randn(B, H, W, generator=g),
        strengths_BH=5 * torch.rand(B, H, generator=g),
        gates_BH1=torch.rand(B, H, 1, generator=g),
        shifts_BHS=torch.randn(B, H, S, generator=g).softmax(-1),
        sharpness_BH1=1 + 3 * torch.rand(B, H, 1, generator=g),
    )
    memory = torch.randn(B, N, W, generator=g)
    weights = torch.randn(B, H, N, generator=g).softmax(-1)
    return (
        memory.to(device, dtype),
        weights.to(device, dtype),
        Head(*(p.to(device, dtype) for p in head)),
    )
