"""The shapes that tests, compile gate and benchmarks use.

B batch, H heads, M queries, N keys, D size of a head. Additive attention has one query, N keys of
size D, and values of size H D.
"""

from dataclasses import dataclass

import torch

OPS = ("attention", "additive")


@dataclass(frozen=True)
class Case:
    """One set of sizes with a type, and what it is there for."""

    name: str
    B: int
    H: int
    M: int
    N: int
    D: int
    dtype: torch.dtype = torch.float32


TEST = (
    Case("smallest", 1, 1, 1, 1, 1),
    Case("no multiples", 2, 1, 19, 37, 20),
    Case("several blocks", 1, 2, 70, 67, 5),
    Case("one query", 2, 2, 1, 33, 64),
    Case("larger heads", 1, 1, 17, 33, 100),
    Case("empty batch", 0, 2, 3, 5, 4),
)
GRADCHECK = Case("gradcheck", 2, 1, 2, 4, 2)
SHORT = Case("short sentences", 64, 8, 64, 64, 64, torch.bfloat16)
CROSS = Case("cross attention", 32, 8, 128, 96, 64, torch.bfloat16)
LONG = Case("long texts", 4, 16, 4096, 4096, 128, torch.bfloat16)
HALF = Case("float16", 16, 8, 512, 512, 64, torch.float16)
WIDE = Case("the widest heads", 2, 4, 1024, 1024, 256, torch.bfloat16)
SINGLE = Case("float32", 32, 8, 128, 128, 64)
SINGLE_NARROW = Case("float32, small heads", 32, 8, 128, 128, 32)
SINGLE_LONG = Case("float32, larger heads", 4, 8, 1024, 1024, 128)
DOUBLE = Case("float64", 2, 2, 128, 128, 64, torch.float64)
DOUBLE_WIDE = Case("float64, the widest heads", 2, 2, 128, 128, 256, torch.float64)
DECODE = Case("one query at a time", 32, 8, 1, 1024, 64, torch.bfloat16)
COMPILE = (SHORT, LONG, HALF, WIDE, SINGLE, SINGLE_NARROW, SINGLE_LONG, DOUBLE, DOUBLE_WIDE, DECODE)
BENCH = (SHORT, CROSS, LONG, SINGLE, DECODE)


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, ...]:
    """What the public function ``op`` takes, in the case's own type unless another is given."""
    g = torch.Generator().manual_seed(seed)
    B, H, M, N, D = case.B, case.H, case.M, case.N, case.D
    shapes: tuple[tuple[int, ...], ...] = ((B, H, M, D), (B, H, N, D), (B, H, N, D))
    if op == "additive":
        shapes = ((B, D), (B, N, D), (B, N, H * D), (D,))
    made = [torch.randn(s, generator=g) for s in shapes]
    if op == "additive":
        made[3] /= max(1, D) ** 0.5
    return tuple(t.to(device, dtype or case.dtype) for t in made)


def lengths(case: Case, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    """How many keys count in each batch element, all of them in the first."""
    g = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(0, case.N + 1, (case.B,), generator=g, dtype=torch.int32)
    lengths_B[:1] = case.N
    return lengths_B.to(device)
