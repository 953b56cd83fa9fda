"""The Triton kernel of a linear layer, and the functions that launch it; no autograd here.

All three products of a layer are one kernel. Of each the rows, the columns and what is summed over:

    forward             examples, outputs, inputs
    gradient of x       examples, inputs, outputs
    gradient of weight  outputs, inputs, examples

Every operand is read where it lies, by its strides, so a transposed one costs no copy. What follows
the forward's sums (bias, ReLU) is done before they are stored; what precedes those of the gradients
(the ReLU lets no gradient through where its output is not above zero) is done as they are loaded,
and the gradient of the bias is summed up on the way. The gradient of weight splits the examples
among programs, each with its own partial sums, which are added afterwards: no atomics, so results
repeat bit for bit.

Sums are in float32 (float64 for float64); float32 operands are split in three, so that tensor cores
do not round them. Programs that run at the same time share rows and columns of blocks, which the
second-level cache then holds (Tillet, Kung and Cox, "Triton", 2019, and its tutorial on matrix
multiplication).
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.conv2d.triton import FEWEST_BLOCKS, parts_of
from kernels.language import ACCUMULATE, block_of, cdiv, dot, scratch, store
from kernels.tuning import tuned

# Bytes of an element -> the largest blocks of rows, columns and summands that spill no registers,
# warps of such a block or of half of it, and stages of the pipeline. Of 16-bit numbers sm_90 holds
# twice as many columns, which spill on sm_80: that is for tuning to find.
LARGEST = {2: (128, 128, 64, 8, 3), 4: (128, 64, 32, 8, 2), 8: (32, 32, 16, 8, 1)}
# A product of fewer programs than a large GPU has multiprocessors is divided into smaller blocks,
# as long as these are no smaller than this.
PROGRAMS, SMALLEST = 132, 32
# Rows of blocks whose columns are gone through together.
TOGETHER = tl.constexpr(8)


@triton.jit
def place(pid, blocks_m, blocks_n):
    """Row and column of a block, ``TOGETHER`` rows at a time."""
    first = pid // (TOGETHER * blocks_n) * TOGETHER
    rows = tl.minimum(blocks_m - first, TOGETHER)
    inside = pid % (TOGETHER * blocks_n)
    return first + inside % rows, inside // rows


@triton.jit(do_not_specialize=["steps"])
def _linear_product(
    a_p,
    gate_p,
    b_p,
    bias_p,
    out_p,
    sums_p,
    M,
    N,
    K,
    a_m,
    a_k,
    gate_m,
    gate_k,
    b_k,
    b_n,
    steps,
    RELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Out (M, N), or what ``steps`` blocks of K make of it; sums (M,) are those of a over K."""
    row, column = place(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN))
    part = tl.program_id(1).to(INDEX)
    m = row.to(INDEX) * BM + tl.arange(0, BM)
    n = column.to(INDEX) * BN + tl.arange(0, BN)
    inside_m, inside_n = (m < M)[:, None], (n < N)[None, :]
    a_p += m[:, None] * a_m
    b_p += n[None, :] * b_n
    total, sums = tl.zeros((BM, BN), ACC), tl.zeros((BM,), ACC)
    # A multiple of BK, as the compiler sees, so that what begins there is loaded in vectors.
    first = part * steps * BK
    for start in range(first, tl.minimum(first + steps * BK, K), BK):
        k = start + tl.arange(0, BK)
        inside = inside_m & (k < K)[None, :]
        a = tl.load(a_p + k[None, :] * a_k, mask=inside, other=0.0)
        if gate_p is not None:
            at = m[:, None] * gate_m + k[None, :] * gate_k
            gate = tl.load(gate_p + at, mask=inside, other=0.0).to(ACC)
            a = tl.where(gate <= 0, 0.0, a).to(a.dtype)
        b = tl.load(b_p + k[:, None] * b_k, mask=(k < K)[:, None] & inside_n, other=0.0)
        total = dot(a, b, total, PRECISION)
        if sums_p is not None:
            sums += tl.sum(a.to(ACC), 1)
    if bias_p is not None:
        total += tl.load(bias_p + n, mask=n < N, other=0.0).to(ACC)[None, :]
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    store(out_p + (part * M + m)[:, None] * N + n[None, :], total, inside_m & inside_n)
    if sums_p is not None:
        store(sums_p + part * M + m, sums, (m < M) & (column == 0))


def tile_of(
    a: Tensor, b: Tensor, gate: Tensor | None = None, programs: int = PROGRAMS
) -> Mapping[str, int]:
    """Blocks of a product, no larger than it is, and smaller where few programs would compute it.

    Args:
        a: (M, K).
        b: (K, N).
        gate: (M, K), or none.
        programs: how many there should be, as far as blocks can be made smaller for it.
    """
    (rows, summands), columns = a.shape, b.shape[1]
    vectors = in_vectors(a) and in_vectors(b) and (gate is None or in_vectors(gate))
    return _tile(a.dtype.itemsize, rows, columns, summands, vectors, programs)


@functools.lru_cache(maxsize=4096)
def _tile(
    itemsize: int, rows: int, columns: int, summands: int, vectors: bool, programs: int
) -> Mapping[str, int]:
    most = LARGEST[itemsize]
    bm, bn, bk = (
        min(m, block_of(n)) for m, n in zip(most, (rows, columns, summands), strict=False)
    )
    if not vectors:
        bk = min(bk, 32)
    while cdiv(rows, bm) * cdiv(columns, bn) < programs and max(bm, bn) > SMALLEST:
        bm, bn = (bm // 2, bn) if bm >= bn else (bm, bn // 2)
    warps = most[3] if 2 * bm * bn >= most[0] * most[1] else 4
    return {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": most[4]}


def in_vectors(t: Tensor) -> bool:
    """Whether rows begin where a vector may: else each element has an address of its own."""
    row, column = t.stride()
    return (row == 1 or row % 8 == 0) and (column == 1 or column % 8 == 0)


def index_type(*tensors: Tensor | None) -> Any:
    """Integers wide enough for every element's place."""
    for t in tensors:
        if t is not None:
            strides = t.stride()
            if sum(map(operator.mul, t.shape, strides)) - sum(strides) >= 2**31:
                return tl.int64
    return tl.int32


def _product(
    a: Tensor,
    gate: Tensor | None,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor | None,
    tile: Mapping[str, int],
    relu: bool = False,
    steps: int | None = None,
) -> None:
    """Launch the kernel: a (M, K), its gate likewise, b (K, N), out (parts, M, N) or (M, N)."""
    (m, k), n, strides = a.shape, b.shape[1], a.stride()
    blocks = cdiv(m, tile["BM"]) * cdiv(n, tile["BN"])
    if not blocks:
        return
    _linear_product[(blocks, out.numel() // (m * n))](
        a,
        gate,
        b,
        None if bias is None else bias.contiguous(),
        out,
        sums,
        m,
        n,
        k,
        *strides,
        *(strides if gate is None else gate.stride()),
        *b.stride(),
        steps or cdiv(k, tile["BK"]),
        RELU=relu,
        PRECISION="tf32x3" if a.dtype == torch.float32 else "ieee",
        ACC=ACCUMULATE[a.dtype],
        INDEX=index_type(a, gate, b, out),
        **tile,
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """y_BO."""
    (b, i), o, columns = x.shape, weight.shape[0], weight.t()
    tile = tuned("linear.forward", x, tile_of(x, columns), B=b, I=i, O=o)
    out = x.new_empty(b, o)
    _product(x, None, columns, bias, out, None, tile, relu)
    return out


def backward_x(grad: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Gradient of x, BI, from that of y, BO; ``out`` is y where it was cut off below zero."""
    (b, o), i = grad.shape, weight.shape[1]
    tile = tuned("linear.backward_x", grad, tile_of(grad, weight, out), B=b, I=i, O=o)
    found = grad.new_empty(b, i)
    _product(grad, out, weight, None, found, None, tile)
    return found


def backward_weight(grad: Tensor, x: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of weight, OI, and of bias, O; ``out`` as for ``backward_x``."""
    (b, o), i = grad.shape, x.shape[1]
    rows, gate = grad.t(), None if out is None else out.t()
    # Each block takes a program for every part of the examples: of many parts, fewer blocks do.
    parts = max(1, b // (FEWEST_BLOCKS * LARGEST[x.dtype.itemsize][2]))
    tile = tile_of(rows, x, gate, programs=cdiv(PROGRAMS, parts))
    tile = tuned("linear.backward_weight", x, tile, B=b, I=i, O=o)
    blocks = cdiv(o, tile["BM"]) * cdiv(i, tile["BN"])
    parts, chunk = parts_of(b, tile["BK"], blocks)
    split = parts > 1
    found = scratch(x, parts, o, i) if split else x.new_empty(o, i)
    sums = scratch(x, parts, o) if split else x.new_empty(o)
    _product(rows, gate, x, None, found, sums, tile, steps=chunk // tile["BK"])
    return (found.sum(0).to(x.dtype), sums.sum(0).to(x.dtype)) if split else (found, sums)
