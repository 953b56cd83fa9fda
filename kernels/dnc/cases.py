"""The shapes that tests, compile gate and benchmarks use, and states like those of a real run.

B batch, N slots, W word size, R read heads.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.dnc.reference import Interface, State

OPS = ("content", "usage", "allocation", "write", "link", "read", "step")


@dataclass(frozen=True)
class Case:
    """One set of sizes, what it is there for, and the type that it is compiled in.

    ``book`` is what ``keywords`` gives, and ``link_dtype`` the type that links have where it is not
    that of all else. ``ops`` are those that the compile gate compiles: a step launches what the
    others do. ``timed`` are those that benchmarks time.
    """

    name: str
    B: int
    N: int
    W: int
    R: int
    dtype: torch.dtype = torch.float32
    book: bool = False
    link_dtype: torch.dtype | None = None
    ops: tuple[str, ...] = OPS
    timed: tuple[str, ...] = OPS


TEST = (
    Case("smallest", 1, 1, 1, 1),
    Case("no multiples", 2, 37, 20, 3),
    Case("one block and a slot", 2, 33, 16, 1),
    Case("several tiles", 1, 70, 130, 2),
    Case("empty batch", 0, 5, 4, 2),
    Case("no read heads", 2, 37, 20, 0),
)
GRADCHECK = Case("gradcheck", 2, 4, 3, 2)
COPY = Case("copy task", 16, 16, 16, 1)
BABI = Case("book's bAbI net, batched", 32, 256, 64, 4)
LARGE = Case("link matrix beyond the cache", 64, 512, 64, 4)
LATENCY = Case("batch of one", 1, 256, 64, 4)
HALF_LINKS = replace(
    LARGE,
    name="link matrix beyond the cache, in bfloat16",
    link_dtype=torch.bfloat16,
    ops=("link",),
    timed=("link", "step"),
)
ODD = Case("odd numbers of everything", 3, 203, 45, 3, book=True, ops=("step",))
COMPILE = (
    COPY,
    BABI,
    LARGE,
    replace(BABI, name="the book's links", book=True, ops=("link",)),
    HALF_LINKS,
    replace(BABI, name="float64", R=2, dtype=torch.float64, ops=("step",)),
    ODD,
    replace(ODD, name="odd numbers of everything, bfloat16", dtype=torch.bfloat16, book=False),
)
BENCH = (COPY, BABI, LARGE, LATENCY, HALF_LINKS)


def state(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> State:
    """A state that writes could have left: weightings and links sum to at most 1."""
    g = torch.Generator().manual_seed(seed)
    B, N, W, R = case.B, case.N, case.W, case.R

    def weighting(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 1, generator=g)[..., :1] * torch.softmax(
            3 * torch.randn(*shape, N, generator=g), -1
        )

    link_BNN = torch.rand(B, N, N, generator=g)
    link_BNN = link_BNN * (1 - torch.eye(N)) / max(1, N)
    parts = State(
        memory_BNW=torch.randn(B, N, W, generator=g),
        usage_BN=torch.rand(B, N, generator=g),
        precedence_BN=weighting(B),
        link_BNN=link_BNN,
        write_BN=weighting(B),
        read_BRN=weighting(B, R),
    )
    state = State(*(p.to(device, dtype) for p in parts))
    return state._replace(link_BNN=state.link_BNN.to(case.link_dtype or dtype))


def interface(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 1, device: str = "cpu"
) -> Interface:
    """What a controller could ask for."""
    g = torch.Generator().manual_seed(seed)
    B, W, R = case.B, case.W, case.R
    parts = Interface(
        read_keys_BRW=torch.randn(B, R, W, generator=g),
        read_strengths_BR=1 + 4 * torch.rand(B, R, generator=g),
        write_key_B1W=torch.randn(B, 1, W, generator=g),
        write_strength_B1=1 + 4 * torch.rand(B, 1, generator=g),
        erase_BW=torch.rand(B, W, generator=g),
        write_vector_BW=torch.randn(B, W, generator=g),
        free_gates_BR=torch.rand(B, R, generator=g),
        allocation_gate_B1=torch.rand(B, 1, generator=g),
        write_gate_B1=torch.rand(B, 1, generator=g),
        read_modes_BSR=torch.randn(B, 3, R, generator=g).softmax(1),
    )
    return Interface(*(p.to(device, dtype) for p in parts))


def arguments(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """The tensors that the public function ``op`` takes, in the case's own type by default."""
    dtype = dtype or case.dtype
    s, to = state(case, dtype, seed, device), interface(case, dtype, seed + 1, device)
    if op == "step":
        return s, to
    if op == "content":
        return s.memory_BNW, to.read_keys_BRW, to.read_strengths_BR
    if op == "usage":
        return s.usage_BN, s.write_BN, s.read_BRN, to.free_gates_BR
    if op == "allocation":
        return (s.usage_BN,)
    if op == "write":
        gates = (to.allocation_gate_B1, to.write_gate_B1)
        return s.memory_BNW, s.write_BN, s.precedence_BN, *gates, to.erase_BW, to.write_vector_BW
    if op == "link":
        return s.link_BNN, s.precedence_BN, s.write_BN, s.read_BRN
    again = state(case, dtype, seed + 2, device).read_BRN
    return s.memory_BNW, s.read_BRN, again, s.read_BRN.flip(2), to.read_modes_BSR


def keywords(
    op: str,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """What the public function ``op`` takes beside its tensors."""
    return {"book": True} if case.book and op in ("link", "step") else {}
