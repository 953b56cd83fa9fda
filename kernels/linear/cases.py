"""The shapes that tests, compile gate and benchmarks use.

B rows (examples), I inputs, O outputs; for ``matmul`` a product of (B, I) and (I, O).
"""

from dataclasses import dataclass
from typing import Any

import torch

OPS = ("linear", "matmul")


@dataclass(frozen=True)
class Case:
    """One set of sizes with a type, and what it is there for.

    ``bias`` and ``relu`` are of the op ``linear``; the compile gate compiles ``ops``.
    """

    name: str
    B: int
    I: int  # noqa: E741
    O: int  # noqa: E741
    bias: bool = True
    relu: bool = True
    dtype: torch.dtype = torch.float32
    ops: tuple[str, ...] = ("linear",)


TEST = (
    Case("smallest", 1, 1, 1),
    Case("no multiples", 37, 20, 35),
    Case("without a ReLU", 5, 18, 33, relu=False),
    Case("without a bias", 5, 18, 3, bias=False),
    Case("neither", 4, 3, 2, bias=False, relu=False),
    Case("several blocks", 67, 40, 70),
    Case("examples in parts", 530, 3, 40),
    Case("empty batch", 0, 4, 3),
)
GRADCHECK = Case("gradcheck", 3, 4, 2)
FIRST = Case("first layer on MNIST", 64, 784, 256)
SECOND = Case("second layer on MNIST", 64, 256, 256)
LAST = Case("last layer on MNIST", 64, 256, 10, relu=False)
MATRIX = Case("matrices of 512", 512, 512, 512, bias=False, relu=False)
LARGE = Case("matrices of 4096", 4096, 4096, 4096, dtype=torch.bfloat16, ops=OPS)
ODD = Case("odd numbers of everything", 4099, 333, 517, dtype=torch.float16)
LAYERS = (FIRST, SECOND, LAST)
COMPILE = (FIRST, LARGE, ODD)
BENCH = (*LAYERS, MATRIX, LARGE)


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, ...]:
    """The tensors that the public function ``op`` takes, in the case's own type by default."""
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(case.B, case.I, generator=g), torch.randn(case.O, case.I, generator=g)
    weight /= case.I**0.5
    made = [x, weight if op == "linear" else weight.t().contiguous()]
    if op == "linear" and case.bias:
        made.append(torch.randn(case.O, generator=g))
    return tuple(t.to(device, dtype or case.dtype) for t in made)


def keywords(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """What the public function ``op`` takes beside its tensors."""
    return {"relu": case.relu} if op == "linear" else {}
