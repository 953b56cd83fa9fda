"""Matrix and vector operations: loops, PyTorch, einsum and a kernel, in float32 and bfloat16.

Sections "Matrix Operations", "Vector Operations" and "Matrix-Vector Multiplication". The book
defines the operations on paper, with no listing and no figure; the yardstick is the same operation
on the same numbers in float64. Four are computed: N inner products a_i . b_i, the outer product
x y', the matrix-vector product A x and the matrix product A B, entries from a standard normal.

- `loops`: three nested Python loops. A Python number is a float64, so only the result is rounded.
- `torch` and `einsum`: one call each, of PyTorch's operator or of its index notation.
- `kernel`: the product of `kernels.linear` for the last three, in the implementation that `impl`
  names (the other methods do not depend on it); inner products are PyTorch's.
- `outer`: the book's other reading, A x as the sum of A's columns weighted by x and A B as the sum
  of the outer products of A's columns with B's rows, every partial sum in the operands' format.

`error` is the largest over the four of norm(result - exact) / norm(exact), Frobenius norms. The
unit roundoff u of a format, 2^-24 for float32 and 2^-8 for bfloat16, is what rounding the exact
result would cost at most; `error_in_u` is the error in that unit, `matmul_in_u` that of the matrix
product alone, which is what the kernel computes. Adding up N products in the format itself costs a
random walk of rounding errors; PyTorch's products of matrices add up bfloat16 products in float32.
Its inner product on a processor rounds every product to bfloat16 first: 0.6 u instead of 0.4.

The record's training time is that of the four operations; how much faster than loops a vectorised
one is depends on the machine, and tests/bench/test_matops.py measures it. `work_per_call` counts
the multiply-adds for each operation that the interpreter has to issue, for `kernel` as for `torch`.
`loops` and `outer` take the first `rows` rows of A only, so their times are of less work.
`commutator` is norm(A B - B A) / norm(A B).

Shapes: N rows and columns, R rows of A that are used.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import linear
from suite.fields import Count
from suite.task import Claim, Target, Task

Operands = dict[str, torch.Tensor]
OPERATIONS = ("inner", "outer", "matvec", "matmul")


@dataclass(frozen=True)
class Config:
    data: Literal["random matrices"] = "random matrices"
    method: Literal["torch", "loops", "einsum", "outer", "kernel"] = "torch"
    dtype: Literal["float32", "bfloat16"] = "float32"
    size: Count = 4096
    rows: Count = 2
    impl: str = "torch"


class Calls(TorchDispatchMode):
    """Counts the operators that PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def loop_product(left: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    """The matrix product by its definition, c_ij = sum over k of a_ik b_kj."""
    columns = list(zip(*right, strict=True))
    product = []
    for row in left:
        sums = []
        for column in columns:
            total = 0.0
            for a, b in zip(row, column, strict=True):
                total += a * b
            sums.append(total)
        product.append(sums)
    return product


def looped(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.tensor(loop_product(left.tolist(), right.tolist())).to(left)


def summed(terms: Any, like: torch.Tensor) -> torch.Tensor:
    """A sum whose partial sums are in the format of ``like``."""
    total = torch.zeros_like(like)
    for term in terms:
        total += term
    return total


def by_loops(name: str, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """An operation on two matrices or vectors, as one or many products of matrices."""
    if name == "inner":
        return torch.cat([looped(a[None], b[:, None])[0] for a, b in zip(A, B, strict=True)])
    if name == "outer":
        return looped(A[:, None], B[None])
    return looped(A, B.reshape(len(B), -1)).reshape(len(A), *B.shape[1:])


def by_terms(name: str, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The same with A and B taken apart into columns and rows."""
    if name == "inner":
        return summed((A[:, k] * B[:, k] for k in range(A.shape[1])), A[:, 0])
    if name == "outer":
        return torch.stack([a * B for a in A])
    if name == "matvec":
        return summed((A[:, k] * B[k] for k in range(len(B))), A[:, 0])
    total = A.new_zeros(len(A), B.shape[1])
    for k in range(len(B)):
        total.addr_(A[:, k], B[k])
    return total


def by_kernel(name: str, A: torch.Tensor, B: torch.Tensor, impl: str) -> torch.Tensor:
    """The same as a product of this project's kernel, but for the inner products."""
    if name == "inner":
        return torch.linalg.vecdot(A, B)
    if name == "outer":
        return linear.matmul(A[:, None], B[None], impl=impl)
    product = linear.matmul(A, B.reshape(len(B), -1), impl=impl)
    return product.reshape(len(A), *B.shape[1:])


VENDOR: dict[str, dict[str, Callable[..., torch.Tensor]]] = {
    "torch": {
        "inner": torch.linalg.vecdot,
        "outer": torch.outer,
        "matvec": torch.mv,
        "matmul": torch.mm,
    },
    "einsum": {
        "inner": functools.partial(torch.einsum, "ij,ij->i"),
        "outer": functools.partial(torch.einsum, "i,j->ij"),
        "matvec": functools.partial(torch.einsum, "ij,j->i"),
        "matmul": functools.partial(torch.einsum, "ij,jk->ik"),
    },
}


def compute(
    method: str, name: str, A: torch.Tensor, B: torch.Tensor, impl: str = "torch"
) -> torch.Tensor:
    """One of the four operations by one of the methods, in the format of its operands."""
    if method == "loops":
        return by_loops(name, A, B)
    if method == "outer":
        return by_terms(name, A, B)
    if method == "kernel":
        return by_kernel(name, A, B, impl)
    return VENDOR[method][name](A, B)


def operands(A_RN: torch.Tensor, B_NN: torch.Tensor, x_N: torch.Tensor) -> dict[str, Any]:
    """What each operation is applied to."""
    rows = len(A_RN)
    return {
        "inner": (A_RN, B_NN[:rows]),
        "outer": (x_N[:rows], B_NN[0]),
        "matvec": (A_RN, x_N),
        "matmul": (A_RN, B_NN),
    }


def issued(method: str, given: dict[str, Any], work: int) -> int:
    """Calls that the interpreter makes: of a multiply-add in loops, else of PyTorch's operators."""
    if method == "loops":
        return work
    # Under a counter PyTorch compiles nothing, so those of the kernel are counted in its stead.
    plain = "torch" if method == "kernel" else method
    with Calls() as calls:
        for name in OPERATIONS:
            compute(plain, name, *given[name])
    return calls.n


def multiply_adds(name: str, rows: int, n: int) -> int:
    return rows * n * (n if name == "matmul" else 1)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    gap = torch.linalg.vector_norm(found.double() - exact)
    return float(gap / torch.linalg.vector_norm(exact))


def roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to the nearest number of a format."""
    return torch.finfo(dtype).eps / 2


def error_by_length(cfg: Config, A_RN: torch.Tensor, B_NN: torch.Tensor) -> Any:
    """Error of the matrix product against the number of terms in each of its sums."""
    lengths = [2**k for k in range(1, int(math.log2(len(B_NN))) + 1)]
    errors = []
    for n in lengths:
        left, right = A_RN[:, :n], B_NN[:n]
        found = compute(cfg.method, "matmul", left, right[:, : 4 * cfg.rows], cfg.impl)
        errors.append(relative_error(found, left.double() @ right[:, : found.shape[1]].double()))
    return lengths, errors


def draw_errors(cfg: Config, errors: dict[str, float], A_RN: Any, B_NN: Any) -> Any:
    """Error of the four operations, and how it grows with the length of the sums."""
    from matplotlib.figure import Figure

    u = roundoff(A_RN.dtype)
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(list(errors), [e / u for e in errors.values()], color="#0072B2")
    left.axhline(1, color="0.2", lw=1, ls=":", label=f"one unit roundoff, u = {u:.2g}")
    left.set(ylabel="relative error / u", title=f"the four operations, N = {len(B_NN)}")
    lengths, measured = error_by_length(cfg, A_RN, B_NN)
    right.loglog(lengths, measured, "o-", color="#D55E00", ms=4, label=cfg.method)
    # A rounding costs about 0.42 u of the norm, and the partial sums grow as √k up to √N.
    walk = 0.42 * u * np.sqrt(np.array(lengths) / 2)
    right.loglog(lengths, walk, "--", color="0.5", label="0.3 u √N: partial sums rounded")
    right.set(xlabel="terms in each sum, N", ylabel="relative error", title="matrix product")
    right.axhline(u, color="0.2", lw=1, ls=":", label="u")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    left.margins(y=0.25)
    how = f"{cfg.method} ({cfg.impl})" if cfg.method == "kernel" else cfg.method
    figure.suptitle(f"{how}, {cfg.dtype}, against float64")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    dtype, n = getattr(torch, cfg.dtype), cfg.size
    A_NN, B_NN = torch.randn(2, n, n).to(ctx.device, dtype)
    x_N = torch.randn(n).to(ctx.device, dtype)
    A_RN = A_NN[: cfg.rows] if cfg.method in ("loops", "outer") else A_NN
    given = operands(A_RN, B_NN, x_N)
    results: dict[str, torch.Tensor] = {}
    start = ctx.keep(results=results)
    work = sum(multiply_adds(name, len(A_RN), n) for name in OPERATIONS)

    def errors() -> dict[str, float]:
        exact = {
            name: compute("torch", name, *(t.double() for t in given[name])) for name in OPERATIONS
        }
        return {name: relative_error(results[name], exact[name]) for name in OPERATIONS}

    def scores() -> dict[str, float]:
        found = errors()
        AB_NN, BA_NN = A_NN.double() @ B_NN.double(), B_NN.double() @ A_NN.double()
        return {
            "step": work,
            "error": max(found.values()),
            "error_in_u": max(found.values()) / roundoff(dtype),
            "matmul_in_u": found["matmul"] / roundoff(dtype),
            **{f"{name}_error": value for name, value in found.items()},
            "work_per_call": work / issued(cfg.method, given, work),
            "commutator": relative_error(BA_NN, AB_NN),
        }

    yield
    if start:
        return
    for name in OPERATIONS:
        results[name] = compute(cfg.method, name, *given[name], cfg.impl)
    yield scores
    ctx.figure("errors", lambda: draw_errors(cfg, errors(), A_RN, B_NN))


FULL = ("torch", "loops", "einsum", "outer", "kernel")
HALF = ("torch_bf16", "loops_bf16", "einsum_bf16", "kernel_bf16")
SINGLE = (
    "this project's contract for the section; at N = 512 20 seeds from 1000 have at most 5.1e-7, "
    "and bfloat16 has 1.6e-3; the TF32 mode of a GPU would miss it too"
)
ONE_ROUNDING = (
    "this project's contract: no more than one rounding of the exact result may cost; 20 seeds "
    "from 1000 have at most 0.64, and sums kept in bfloat16 at least 6.7"
)
TARGETS = {
    **dict.fromkeys(FULL, Target("error", 1e-5, "min", SINGLE)),
    **dict.fromkeys(HALF, Target("error_in_u", 1.0, "min", ONE_ROUNDING)),
}
ALGEBRA = "linear algebra, sections Matrix Operations and Vector Operations"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Matrix Operations", "Vector Operations", "Matrix-Vector Multiplication"),
    profiles={
        "smoke": {"size": 64, "rows": 64},
        "laptop": {"size": 512, "rows": 64},
        "paper": {},
    },
    variants={
        "torch": {},
        "loops": {"method": "loops"},
        "einsum": {"method": "einsum"},
        "outer": {"method": "outer"},
        "kernel": {"method": "kernel"},
        "torch_bf16": {"dtype": "bfloat16"},
        "loops_bf16": {"method": "loops", "dtype": "bfloat16"},
        "einsum_bf16": {"method": "einsum", "dtype": "bfloat16"},
        "outer_bf16": {"method": "outer", "dtype": "bfloat16"},
        "kernel_bf16": {"method": "kernel", "dtype": "bfloat16"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets=dict.fromkeys(("smoke", "laptop", "paper"), TARGETS),
    claims=(
        Claim(
            "bfloat16 products added up in float32 are more accurate than added up in bfloat16",
            metric="matmul_in_u",
            left="torch_bf16",
            right="outer_bf16",
            mode="min",
            margin=1.0,
            source="rounding error analysis: N partial sums, each rounded, cost about 0.3 u √N",
        ),
        Claim(
            "so are those of this project's kernel",
            metric="matmul_in_u",
            left="kernel_bf16",
            right="outer_bf16",
            mode="min",
            margin=1.0,
            source="the same; the kernel adds up in float32 in every implementation",
        ),
        Claim(
            "the matrix product does not commute",
            metric="commutator",
            left="torch",
            right=0.1,
            mode="max",
            source=ALGEBRA,
        ),
    ),
)
