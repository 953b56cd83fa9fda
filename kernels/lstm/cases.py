"""The shapes that tests, compile gate and benchmarks use.

T steps, B batch, X inputs, H units.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

OPS = ("lstm",)


@dataclass(frozen=True)
class Case:
    """One set of sizes, what it is there for, and the type that it is compiled and timed in.

    ``lengths``, ``reverse`` and ``recompute_gates`` are what ``keywords`` gives. Whether there is a
    bias or a state changes no launch: they are zeros where there is none.
    """

    name: str
    T: int
    B: int
    X: int
    H: int
    dtype: torch.dtype = torch.float32
    lengths: bool = False
    reverse: bool = False
    recompute_gates: bool = False


TEST = (
    Case("smallest", 1, 1, 1, 1),
    Case("no multiples", 4, 5, 3, 7),
    Case("several blocks", 2, 66, 2, 19),
    Case("empty batch", 2, 0, 3, 4),
)
GRADCHECK = Case("gradcheck", 2, 3, 1, 2)
BF16, FP16, FP64 = torch.bfloat16, torch.float16, torch.float64
SMALL = Case("all units in a program", 128, 64, 64, 64)
SMALL_BF16 = Case("all units in a program, bfloat16", 128, 64, 128, 128, BF16)
SMALL_FP16 = Case("all units in a program, float16", 128, 64, 128, 128, FP16)
SMALL_FP64 = Case("all units in a program, float64", 16, 64, 32, 32, FP64)
FLASHRNN = Case("FlashRNN's figure", 1024, 16, 768, 768, BF16)
FLASHRNN_FP16 = Case("FlashRNN's figure, as nn.LSTM", 1024, 16, 768, 768, FP16)
RECOMPUTED = replace(FLASHRNN, name="FlashRNN's figure, no gates kept", recompute_gates=True)
LARGE = Case("float32, units split", 128, 64, 256, 512)
LARGE_FP64 = Case("float64, units split", 4, 16, 64, 256, FP64)
MANY_ROWS = Case("a launch a step", 2, 512, 256, 1024, BF16)
MANY_ROWS_FP32 = Case("a launch a step, float32", 2, 512, 256, 1024)
LATENCY = Case("batch of one", 256, 1, 256, 256, BF16)


def _ways(case: Case) -> tuple[Case, ...]:
    """A case with lengths, in reverse, and both."""
    ways = ((True, False), (False, True), (True, True))
    said = {(True, False): "lengths", (False, True): "reverse", (True, True): "lengths in reverse"}
    return tuple(
        replace(case, name=f"{case.name}, {said[way]}", lengths=way[0], reverse=way[1])
        for way in ways
    )


COMPILE = (
    SMALL,
    SMALL_BF16,
    *_ways(SMALL_BF16),
    FLASHRNN,
    *_ways(FLASHRNN),
    LARGE,
    LATENCY,
    *(_ways(case)[2] for case in (SMALL, SMALL_FP16, SMALL_FP64, LARGE, LARGE_FP64)),
    *(_ways(case)[2] for case in (MANY_ROWS, MANY_ROWS_FP32)),
    Case("odd numbers of everything", 17, 5, 3, 21, BF16, lengths=True),
    Case("odd numbers of everything, split", 17, 35, 3, 203, BF16, lengths=True, reverse=True),
    Case("odd numbers of everything, float32", 17, 5, 3, 101, lengths=True),
)
BENCH = (SMALL, SMALL_BF16, SMALL_FP16, FLASHRNN, FLASHRNN_FP16, RECOMPUTED, LARGE, LATENCY)


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


def keywords(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """What the public function ``lstm`` takes beside its tensors."""
    said = ("reverse", "recompute_gates")
    more: dict[str, Any] = {name: True for name in said if getattr(case, name)}
    return more | ({"lengths": lengths(case, seed, device)} if case.lengths else {})
