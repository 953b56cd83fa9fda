"""The shapes that tests, compile gate and benchmarks use.

B batch, H heads, M queries, N keys, D size of a head. Additive attention has one query, N keys of
size D, and values of size H D.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

OPS = ("attention", "additive")


@dataclass(frozen=True)
class Case:
    """One set of sizes with a type and what hides keys, and what it is there for.

    ``lengths`` and ``causal`` are what ``keywords`` gives; causal is for dot products only. ``ops``
    are those that the compile gate compiles: additive attention has tiles of one size.
    """

    name: str
    B: int
    H: int
    M: int
    N: int
    D: int
    dtype: torch.dtype = torch.float32
    lengths: bool = False
    causal: bool = False
    ops: tuple[str, ...] = ("attention",)


TEST = (
    Case("smallest", 1, 1, 1, 1, 1),
    Case("no multiples", 2, 1, 19, 37, 20),
    Case("several blocks", 1, 2, 70, 67, 5),
    Case("one query", 2, 2, 1, 33, 64),
    Case("larger heads", 1, 1, 17, 33, 100),
    Case("empty batch", 0, 2, 3, 5, 4),
)
GRADCHECK = Case("gradcheck", 2, 1, 2, 4, 2)
BF16, FP16, FP64 = torch.bfloat16, torch.float16, torch.float64
SHORT = Case("short sentences", 64, 8, 64, 64, 64, BF16)
CROSS = Case("cross attention", 32, 8, 128, 96, 64, BF16)
LONG = Case("long texts", 4, 16, 4096, 4096, 128, BF16)
SINGLE = Case("float32", 32, 8, 128, 128, 64, ops=OPS)
DECODE = Case("one query at a time", 32, 8, 1, 1024, 64, BF16)
COMPILE = (
    replace(SHORT, name="short sentences, lengths", lengths=True, ops=OPS),
    replace(LONG, causal=True),
    replace(DECODE, lengths=True),
    Case("no lengths", 16, 8, 512, 512, 64, BF16, causal=True),
    Case("the widest heads", 2, 4, 1024, 1024, 256, BF16, lengths=True, causal=True),
    Case("heads of 20", 4, 4, 256, 256, 20, BF16, lengths=True, causal=True),
    Case("heads of 100", 4, 4, 256, 256, 100, BF16, lengths=True, causal=True),
    Case("odd numbers of everything", 3, 3, 177, 155, 203, BF16, lengths=True, ops=OPS),
    Case("float16", 16, 8, 512, 512, 64, FP16, lengths=True),
    SINGLE,
    Case("float32, lengths", 32, 8, 128, 128, 64, lengths=True, causal=True),
    Case("float32, small heads", 32, 8, 128, 128, 16, lengths=True),
    Case("float32, odd numbers of everything", 3, 3, 77, 55, 100, lengths=True, causal=True),
    Case("float32, larger heads", 4, 8, 1024, 1024, 128, lengths=True),
    Case("float64, the widest heads", 2, 2, 128, 128, 256, FP64, lengths=True, ops=OPS),
)
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


def keywords(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """What the public function ``op`` takes beside its tensors."""
    hides: dict[str, Any] = {}
    if case.lengths:
        hides["key_lengths"] = lengths(case, seed, device)
    if case.causal and op == "attention":
        hides["causal"] = True
    return hides
