"""Triton kernels of attention, and the functions that launch them; no autograd here.

Scaled dot products: one program holds a block of queries and passes over the keys, with the largest
score so far and the sum of exponentials kept up to date (Dao, "FlashAttention-2", 2023). What is
kept for the backward is the logarithm of that sum, one number a query. The backward is one kernel
that passes over the queries for each block of keys, and one that passes over the keys for each
block of queries: both compute the scores again, and no program adds to what another one writes, so
results repeat bit for bit. Which keys a query sees is one number, a limit, whether it comes from a
length, a causal mask or the end of the keys; blocks of which every query sees every key are passed
over without comparing.

Additive attention: scores first, one program for each block of keys, then the softmax and the mean,
one program for each block of columns. The tanh of every key and column is never stored.

Exponentials of dot products are powers of 2. Everything is computed in float32 (float64 for
float64) and stored in the type it came in; operands of matrix products have the type that came,
and float32 ones are split in three, so that tensor cores do not round them. Launchers take tensors
of the shapes given in ``kernels.attention.reference`` and return new ones.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.language import ACCUMULATE, block_of, cdiv, dot, rounded, scratch, store, tanh
from kernels.tuning import tuned

LOG2_E = tl.constexpr(1.4426950408889634)

# Bytes of an element and columns of a head's tile -> queries and keys of a block, warps, and stages
# of the pipeline: the largest that spill no registers in the cases of the compile gate. Narrower
# tiles count as the narrowest one here. Of float32 with heads beyond 128 every block spills.
FORWARD = {
    (2, 64): (128, 64, 4, 3),
    (2, 128): (128, 64, 8, 3),
    (2, 256): (64, 64, 8, 2),
    (4, 64): (64, 32, 8, 2),
    (4, 128): (32, 32, 8, 2),
    (8, 64): (32, 16, 4, 1),
    (8, 128): (16, 16, 4, 1),
    (8, 256): (16, 16, 8, 1),
}
BACKWARD_KEYS = {
    (2, 64): (64, 64, 4, 2),
    (2, 128): (64, 64, 8, 2),
    (2, 256): (64, 32, 8, 1),
    (4, 32): (32, 16, 4, 1),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (32, 16, 8, 1),
    (8, 64): (16, 16, 8, 1),
    (8, 128): (16, 16, 8, 1),
    (8, 256): (16, 16, 8, 1),
}
BACKWARD_QUERIES = {
    (2, 64): (64, 64, 4, 2),
    (2, 128): (64, 64, 8, 2),
    (2, 256): (32, 64, 8, 1),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (16, 16, 8, 1),
    (8, 64): (16, 16, 8, 1),
    (8, 128): (16, 16, 8, 1),
    (8, 256): (16, 16, 8, 1),
}


@triton.jit
def length_of(lengths_p, b, most):
    """How many keys count; all where there are no lengths."""
    if lengths_p is None:
        return most
    else:
        return tl.minimum(tl.maximum(tl.load(lengths_p + b).to(tl.int32), 0), most)


@triton.jit
def tile(pointer, at, stride, inside, D: tl.constexpr, BD: tl.constexpr):
    """Rows ``at`` of a matrix of D columns; zero beyond the columns and where not ``inside``."""
    d = tl.arange(0, BD)
    to = pointer + at[:, None].to(tl.int64) * stride + d[None, :]
    return tl.load(to, mask=inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, at, inside, x, D: tl.constexpr, BD: tl.constexpr):
    """Store rows ``at`` of a matrix whose rows follow each other."""
    d = tl.arange(0, BD)
    to = pointer + at[:, None].to(tl.int64) * D + d[None, :]
    store(to, x, inside[:, None] & (d < D)[None, :])


@triton.jit
def scaled(scale, rest, ACC: tl.constexpr):
    """The scale: a kernel's argument has 32 bits, float64 needs the rest too."""
    return tl.full((), scale, ACC) + tl.full((), rest, ACC)


@triton.jit
def pass_over_keys(
    q,
    out,
    largest,
    total,
    k_p,
    k_n,
    v_p,
    v_n,
    first,
    last,
    length,
    limit,
    scale,
    D: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Take keys from ``first`` to ``last`` into the sums of a block of queries.

    Where there is a block at all, every query sees key 0: ``largest`` is finite after the first.
    """
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        k = tile(k_p, n, k_n, n < length, D, BD)
        x = dot(q, tl.trans(k), tl.zeros((q.shape[0], BN), ACC), PRECISION) * scale
        if MASKED:
            x = tl.where(n[None, :] < limit[:, None], x, -float("inf"))
        now = tl.maximum(largest, tl.max(x, 1))
        p = tl.exp2(x - now[:, None])
        kept = tl.exp2(largest - now)
        total = total * kept + tl.sum(p, 1)
        v = tile(v_p, n, v_n, n < length, D, BD)
        out = dot(rounded(p, v.dtype), v, out * kept[:, None], PRECISION)
        largest = now
    return out, largest, total


@triton.jit(do_not_specialize=["reach"])
def _attention_forward(
    q_p,
    q_b,
    q_h,
    q_m,
    k_p,
    k_b,
    k_h,
    k_n,
    v_p,
    v_b,
    v_h,
    v_n,
    lengths_p,
    out_p,
    sums_p,
    scale,
    scale_rest,
    reach,
    H,
    M,
    N,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Query m sees the keys before m + ``reach`` that its length admits."""
    blocks = tl.cdiv(M, BM)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    first = (tl.program_id(0) % blocks) * BM
    m = first + tl.arange(0, BM)
    length = length_of(lengths_p, b, N)
    limit = tl.minimum(length, m + reach)
    clear = tl.minimum(length, first + reach) // BN * BN
    last = tl.minimum(length, tl.minimum(first + BM, M) - 1 + reach)
    k_p += b * k_b + h * k_h
    v_p += b * v_b + h * v_h
    by = scaled(scale, scale_rest, ACC) * LOG2_E
    q = tile(q_p + b * q_b + h * q_h, m, q_m, m < M, D, BD)
    out, total = tl.zeros((BM, BD), ACC), tl.zeros((BM,), ACC)
    largest = tl.full((BM,), -float("inf"), ACC)
    out, largest, total = pass_over_keys(
        q, out, largest, total, k_p, k_n, v_p, v_n,
        0, clear, length, limit, by, D, BN, BD, False, PRECISION, ACC,
    )  # fmt: skip
    out, largest, total = pass_over_keys(
        q, out, largest, total, k_p, k_n, v_p, v_n,
        clear, last, length, limit, by, D, BN, BD, True, PRECISION, ACC,
    )  # fmt: skip
    # A query that sees nothing has sums of zero; a sum of infinity weighs every key with zero.
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    store_tile(out_p + head * M * D, m, m < M, out / total[:, None], D, BD)
    sums = tl.where(nothing, float("inf"), largest + tl.log2(total))
    tl.store(sums_p + head * M + m, sums, mask=m < M)


@triton.jit
def _attention_products(
    out_p,
    grad_p,
    grad_b,
    grad_h,
    grad_m,
    products_p,
    H,
    M,
    D: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of every query, the product of its output and its gradient."""
    blocks = tl.cdiv(M, BM)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    m = (tl.program_id(0) % blocks) * BM + tl.arange(0, BM)
    out = tile(out_p + head * M * D, m, D, m < M, D, BD).to(ACC)
    grad = tile(grad_p + b * grad_b + h * grad_h, m, grad_m, m < M, D, BD).to(ACC)
    tl.store(products_p + head * M + m, tl.sum(out * grad, 1), mask=m < M)


@triton.jit
def pass_over_queries(
    k,
    v,
    d_k,
    d_v,
    q_p,
    q_m,
    grad_p,
    grad_m,
    sums_p,
    products_p,
    first,
    last,
    n,
    length,
    reach,
    scale,
    M,
    D: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Take queries from ``first`` to ``last`` into the gradients of a block of keys."""
    zeros = tl.zeros((k.shape[0], BM), ACC)
    for start in range(first, last, BM):
        m = start + tl.arange(0, BM)
        q = tile(q_p, m, q_m, m < M, D, BD)
        # Beyond the last query the weights are zero, since the sum is taken to be infinity.
        sums = tl.load(sums_p + m, mask=m < M, other=float("inf"))
        x = dot(k, tl.trans(q), zeros, PRECISION) * scale - sums[None, :]
        if MASKED:
            limit = tl.minimum(length, m + reach)
            x = tl.where(n[:, None] < limit[None, :], x, -float("inf"))
        p = tl.exp2(x)
        grad = tile(grad_p, m, grad_m, m < M, D, BD)
        d_v = dot(rounded(p, grad.dtype), grad, d_v, PRECISION)
        products = tl.load(products_p + m, mask=m < M, other=0.0)
        d_x = p * (dot(v, tl.trans(grad), zeros, PRECISION) - products[None, :])
        d_k = dot(rounded(d_x, q.dtype), q, d_k, PRECISION)
    return d_k, d_v


@triton.jit(do_not_specialize=["reach"])
def _attention_backward_keys(
    q_p,
    q_b,
    q_h,
    q_m,
    k_p,
    k_b,
    k_h,
    k_n,
    v_p,
    v_b,
    v_h,
    v_n,
    lengths_p,
    grad_p,
    grad_b,
    grad_h,
    grad_m,
    sums_p,
    products_p,
    grad_k_p,
    grad_v_p,
    scale,
    scale_rest,
    reach,
    H,
    M,
    N,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(N, BN)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    start = (tl.program_id(0) % blocks) * BN
    n = start + tl.arange(0, BN)
    length = length_of(lengths_p, b, N)
    # Queries from ``first`` on see some of the keys, those from ``clear`` on all of them.
    last = tl.where(start < length, M, 0)
    first = tl.maximum(start + 1 - reach, 0) // BM * BM
    clear = tl.cdiv(tl.maximum(start + BN - reach, 0), BM) * BM
    clear = tl.where(start + BN <= length, tl.minimum(clear, last), last)
    q_p += b * q_b + h * q_h
    grad_p += b * grad_b + h * grad_h
    sums_p += head * M
    products_p += head * M
    by = scaled(scale, scale_rest, ACC)
    k = tile(k_p + b * k_b + h * k_h, n, k_n, n < length, D, BD)
    v = tile(v_p + b * v_b + h * v_h, n, v_n, n < length, D, BD)
    d_k, d_v = tl.zeros((BN, BD), ACC), tl.zeros((BN, BD), ACC)
    d_k, d_v = pass_over_queries(
        k, v, d_k, d_v, q_p, q_m, grad_p, grad_m, sums_p, products_p, first, clear,
        n, length, reach, by * LOG2_E, M, D, BM, BD, True, PRECISION, ACC,
    )  # fmt: skip
    d_k, d_v = pass_over_queries(
        k, v, d_k, d_v, q_p, q_m, grad_p, grad_m, sums_p, products_p,
        tl.maximum(first, clear), last,
        n, length, reach, by * LOG2_E, M, D, BM, BD, False, PRECISION, ACC,
    )  # fmt: skip
    store_tile(grad_k_p + head * N * D, n, n < N, d_k * by, D, BD)
    store_tile(grad_v_p + head * N * D, n, n < N, d_v, D, BD)


@triton.jit
def pass_over_keys_again(
    q,
    grad,
    d_q,
    sums,
    products,
    k_p,
    k_n,
    v_p,
    v_n,
    first,
    last,
    length,
    limit,
    scale,
    D: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Take keys from ``first`` to ``last`` into the gradient of a block of queries."""
    zeros = tl.zeros((q.shape[0], BN), ACC)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        k = tile(k_p, n, k_n, n < length, D, BD)
        x = dot(q, tl.trans(k), zeros, PRECISION) * scale - sums[:, None]
        if MASKED:
            x = tl.where(n[None, :] < limit[:, None], x, -float("inf"))
        v = tile(v_p, n, v_n, n < length, D, BD)
        d_x = dot(grad, tl.trans(v), zeros, PRECISION) - products[:, None]
        d_q = dot(rounded(tl.exp2(x) * d_x, k.dtype), k, d_q, PRECISION)
    return d_q


@triton.jit(do_not_specialize=["reach"])
def _attention_backward_queries(
    q_p,
    q_b,
    q_h,
    q_m,
    k_p,
    k_b,
    k_h,
    k_n,
    v_p,
    v_b,
    v_h,
    v_n,
    lengths_p,
    grad_p,
    grad_b,
    grad_h,
    grad_m,
    sums_p,
    products_p,
    grad_q_p,
    scale,
    scale_rest,
    reach,
    H,
    M,
    N,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    blocks = tl.cdiv(M, BM)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = head // H, head % H
    first = (tl.program_id(0) % blocks) * BM
    m = first + tl.arange(0, BM)
    length = length_of(lengths_p, b, N)
    limit = tl.minimum(length, m + reach)
    clear = tl.minimum(length, first + reach) // BN * BN
    last = tl.minimum(length, tl.minimum(first + BM, M) - 1 + reach)
    k_p += b * k_b + h * k_h
    v_p += b * v_b + h * v_h
    by = scaled(scale, scale_rest, ACC)
    q = tile(q_p + b * q_b + h * q_h, m, q_m, m < M, D, BD)
    grad = tile(grad_p + b * grad_b + h * grad_h, m, grad_m, m < M, D, BD)
    sums = tl.load(sums_p + head * M + m, mask=m < M, other=float("inf"))
    products = tl.load(products_p + head * M + m, mask=m < M, other=0.0)
    d_q = tl.zeros((BM, BD), ACC)
    d_q = pass_over_keys_again(
        q, grad, d_q, sums, products, k_p, k_n, v_p, v_n,
        0, clear, length, limit, by * LOG2_E, D, BN, BD, False, PRECISION, ACC,
    )  # fmt: skip
    d_q = pass_over_keys_again(
        q, grad, d_q, sums, products, k_p, k_n, v_p, v_n,
        clear, last, length, limit, by * LOG2_E, D, BN, BD, True, PRECISION, ACC,
    )  # fmt: skip
    store_tile(grad_q_p + head * M * D, m, m < M, d_q * by, D, BD)


@triton.jit
def _additive_scores(
    query_p,
    keys_p,
    v_p,
    lengths_p,
    scores_p,
    L,
    A,
    BL: tl.constexpr,
    BA: tl.constexpr,
    ACC: tl.constexpr,
):
    b, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BL
    row = start + tl.arange(0, BL)
    length = length_of(lengths_p, b, L)
    score = tl.zeros((BL,), ACC)
    for first in range(0, tl.where(start < length, A, 0), BA):
        a = first + tl.arange(0, BA)
        inside = (row < length)[:, None] & (a < A)[None, :]
        query = tl.load(query_p + b * A + a, mask=a < A, other=0.0).to(ACC)
        v = tl.load(v_p + a, mask=a < A, other=0.0).to(ACC)
        at = (b * L + row[:, None]) * A + a[None, :]
        key = tl.load(keys_p + at, mask=inside, other=0.0).to(ACC)
        score += tl.sum(v[None, :] * tanh(query[None, :] + key), 1)
    tl.store(scores_p + b * L + row, score, mask=row < length)


@triton.jit
def _additive_forward(
    values_p,
    lengths_p,
    scores_p,
    context_p,
    weights_p,
    L,
    D,
    BL: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    """The softmax again for each block of columns; the first stores the weights."""
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = block * BD + tl.arange(0, BD)
    length = length_of(lengths_p, b, L)
    largest, total = tl.full((), -float("inf"), ACC), tl.zeros((), ACC)
    for start in range(0, length, BL):
        row = start + tl.arange(0, BL)
        score = tl.load(scores_p + b * L + row, mask=row < length, other=-float("inf"))
        now = tl.maximum(largest, tl.max(score, 0))
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(score - now), 0)
        largest = now
    context = tl.zeros((BD,), ACC)
    for start in range(0, length, BL):
        row = start + tl.arange(0, BL)
        score = tl.load(scores_p + b * L + row, mask=row < length, other=-float("inf"))
        weight = tl.exp(score - largest) / total
        store(weights_p + b * L + row, weight, (row < length) & (block == 0))
        inside = (row < length)[:, None] & (d < D)[None, :]
        at = (b * L + row[:, None]) * D + d[None, :]
        value = tl.load(values_p + at, mask=inside, other=0.0).to(ACC)
        context += tl.sum(weight[:, None] * value, 0)
    store(context_p + b * D + d, context, d < D)
    for start in range(length, tl.where(block == 0, L, length), BL):
        row = start + tl.arange(0, BL)
        store(weights_p + b * L + row, tl.zeros((BL,), ACC), row < L)


@triton.jit
def _additive_backward_values(
    values_p,
    lengths_p,
    weights_p,
    grad_context_p,
    grad_weights_p,
    grad_values_p,
    d_weights_p,
    L,
    D,
    BL: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of the values, and that of the weights through the context and their own."""
    b = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BL + tl.arange(0, BL)
    length = length_of(lengths_p, b, L)
    weight = tl.load(weights_p + b * L + row, mask=row < length, other=0.0).to(ACC)
    d_weight = tl.load(grad_weights_p + b * L + row, mask=row < length, other=0.0).to(ACC)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        at = (b * L + row[:, None]) * D + d[None, :]
        grad = tl.load(grad_context_p + b * D + d, mask=d < D, other=0.0).to(ACC)
        inside = (row < length)[:, None] & (d < D)[None, :]
        value = tl.load(values_p + at, mask=inside, other=0.0).to(ACC)
        d_weight += tl.sum(value * grad[None, :], 1)
        inside = (row < L)[:, None] & (d < D)[None, :]
        store(grad_values_p + at, weight[:, None] * grad[None, :], inside)
    tl.store(d_weights_p + b * L + row, d_weight, mask=row < length)


@triton.jit
def _additive_backward_keys(
    query_p,
    keys_p,
    v_p,
    lengths_p,
    weights_p,
    d_weights_p,
    grad_query_p,
    grad_keys_p,
    grad_v_p,
    L,
    A,
    BL: tl.constexpr,
    BA: tl.constexpr,
    ACC: tl.constexpr,
):
    """Some columns of every key; the gradient of v has a row for each batch element."""
    b = tl.program_id(0).to(tl.int64)
    a = tl.program_id(1) * BA + tl.arange(0, BA)
    length = length_of(lengths_p, b, L)
    query = tl.load(query_p + b * A + a, mask=a < A, other=0.0).to(ACC)
    v = tl.load(v_p + a, mask=a < A, other=0.0).to(ACC)
    mean = tl.zeros((), ACC)
    for start in range(0, length, BL):
        row = start + tl.arange(0, BL)
        weight = tl.load(weights_p + b * L + row, mask=row < length, other=0.0).to(ACC)
        mean += tl.sum(weight * tl.load(d_weights_p + b * L + row, mask=row < length, other=0.0), 0)
    d_query, d_v = tl.zeros((BA,), ACC), tl.zeros((BA,), ACC)
    for start in range(0, length, BL):
        row = start + tl.arange(0, BL)
        at = (b * L + row[:, None]) * A + a[None, :]
        inside = (row < length)[:, None] & (a < A)[None, :]
        weight = tl.load(weights_p + b * L + row, mask=row < length, other=0.0).to(ACC)
        d_weight = tl.load(d_weights_p + b * L + row, mask=row < length, other=0.0)
        d_score = weight * (d_weight - mean)
        t = tanh(query[None, :] + tl.load(keys_p + at, mask=inside, other=0.0).to(ACC))
        d_v += tl.sum(d_score[:, None] * t, 0)
        d_key = d_score[:, None] * v[None, :] * (1 - t * t)
        d_query += tl.sum(d_key, 0)
        store(grad_keys_p + at, d_key, inside)
    store(grad_query_p + b * A + a, d_query, a < A)
    tl.store(grad_v_p + b * A + a, d_v, mask=a < A)
    for start in range(length, L, BL):
        row = start + tl.arange(0, BL)
        at = (b * L + row[:, None]) * A + a[None, :]
        inside = (row < L)[:, None] & (a < A)[None, :]
        store(grad_keys_p + at, tl.zeros((BL, BA), ACC), inside)


def tile_of(
    table: dict[tuple[int, int], tuple[int, int, int, int]],
    dtype: torch.dtype,
    size: int,
    queries: int,
    keys: int,
) -> Mapping[str, int]:
    """Blocks of queries and keys for heads of some size, no larger than there are of either."""
    narrowest = min(width for item, width in table if item == dtype.itemsize)
    width = max(narrowest, block_of(size))
    rows, columns, warps, stages = table[dtype.itemsize, width]
    if size > 64 and size % 16:
        # Rows that begin anywhere are loaded element by element, each with an address of its own.
        rows, columns = max(16, rows // 2), max(16, columns // 2)
    return {
        "BM": min(rows, block_of(queries)),
        "BN": min(columns, block_of(keys)),
        "num_warps": warps,
        "num_stages": stages,
    }


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "ieee"


def _strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """A tensor whose last dimension lies together, and its other strides."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, x.stride(0), x.stride(1), x.stride(2)


def _in_two(scale: float) -> tuple[float, float]:
    """A number as the nearest of 32 bits and the rest."""
    nearest = ctypes.c_float(scale).value
    return nearest, scale - nearest


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """O_BHMD, and of each query the logarithm to base 2 of its sum of exponentials, BHM."""
    (b, h, m, d), n = q.shape, k.shape[2]
    out, sums = q.new_empty(b, h, m, d), scratch(q, b, h, m)
    tile = tuned("attention.forward", q, tile_of(FORWARD, q.dtype, d, m, n), M=m, N=n, D=d)
    if out.numel():
        _attention_forward[(b * h * cdiv(m, tile["BM"]),)](
            *_strided(q),
            *_strided(k),
            *_strided(v),
            key_lengths,
            out,
            sums,
            *_in_two(scale),
            1 if causal else n,
            h,
            m,
            n,
            D=d,
            BD=block_of(d),
            PRECISION=_precision(q.dtype),
            ACC=ACCUMULATE[q.dtype],
            **tile,
        )
    return out, sums


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    key_lengths: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    (b, h, m, d), n = q.shape, k.shape[2]
    grad_q = q.new_empty(b, h, m, d)
    grad_k, grad_v = k.new_empty(b, h, n, d), v.new_empty(b, h, n, d)
    products = scratch(q, b, h, m)
    by_keys = tile_of(BACKWARD_KEYS, q.dtype, d, m, n)
    by_keys = tuned("attention.backward_keys", q, by_keys, M=m, N=n, D=d)
    by_queries = tile_of(BACKWARD_QUERIES, q.dtype, d, m, n)
    by_queries = tuned("attention.backward_queries", q, by_queries, M=m, N=n, D=d)
    blocks = (b * h * cdiv(m, by_queries["BM"]),)
    size: dict[str, Any] = {"D": d, "BD": block_of(d), "ACC": ACCUMULATE[q.dtype]}
    if out.numel():
        _attention_products[blocks](
            out, *_strided(grad), products, h, m, BM=by_queries["BM"], **size
        )
    given = (*_strided(q), *_strided(k), *_strided(v), key_lengths, *_strided(grad), sums, products)
    options = (*_in_two(scale), 1 if causal else n, h, m, n)
    size["PRECISION"] = _precision(q.dtype)
    if grad_k.numel():
        _attention_backward_keys[(b * h * cdiv(n, by_keys["BN"]),)](
            *given, grad_k, grad_v, *options, **size, **by_keys
        )
    if grad_q.numel():
        _attention_backward_queries[blocks](*given, grad_q, *options, **size, **by_queries)
    return grad_q, grad_k, grad_v


def additive_tile(keys: int, columns: int) -> tuple[int, int]:
    """Keys and columns that a program of additive attention holds at a time."""
    wide = min(64, block_of(columns))
    return min(2048 // wide, block_of(keys)), wide


def additive_forward(
    query: Tensor, keys: Tensor, values: Tensor, v: Tensor, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """c_BD and w, weights_BL."""
    (b, n, a), d = keys.shape, values.shape[2]
    context, weights = query.new_empty(b, d), query.new_empty(b, n)
    scores, acc = scratch(query, b, n), ACCUMULATE[query.dtype]
    if scores.numel():
        rows, wide = additive_tile(n, a)
        _additive_scores[(b, cdiv(n, rows))](
            query.contiguous(),
            keys.contiguous(),
            v.contiguous(),
            key_lengths,
            scores,
            n,
            a,
            BL=rows,
            BA=wide,
            ACC=acc,
        )
    if b:
        rows, wide = additive_tile(n, d)
        _additive_forward[(b, max(1, cdiv(d, wide)))](
            values.contiguous(),
            key_lengths,
            scores,
            context,
            weights,
            n,
            d,
            BL=rows,
            BD=wide,
            ACC=acc,
        )
    return context, weights


def additive_backward(
    grad_context: Tensor,
    grad_weights: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    weights: Tensor,
    key_lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, keys, values and v."""
    (b, n, a), d = keys.shape, values.shape[2]
    grad_query, grad_keys = query.new_empty(b, a), keys.new_empty(b, n, a)
    grad_values, grad_v = values.new_empty(b, n, d), scratch(v, b, a)
    d_weights, acc = scratch(query, b, n), ACCUMULATE[query.dtype]
    if d_weights.numel():
        rows, wide = additive_tile(n, d)
        _additive_backward_values[(b, cdiv(n, rows))](
            values.contiguous(),
            key_lengths,
            weights,
            grad_context.contiguous(),
            grad_weights.contiguous(),
            grad_values,
            d_weights,
            n,
            d,
            BL=rows,
            BD=wide,
            ACC=acc,
        )
    if grad_query.numel():
        rows, wide = additive_tile(n, a)
        _additive_backward_keys[(b, cdiv(a, wide))](
            query.contiguous(),
            keys.contiguous(),
            v.contiguous(),
            key_lengths,
            weights,
            d_weights,
            grad_query,
            grad_keys,
            grad_v,
            n,
            a,
            BL=rows,
            BA=wide,
            ACC=acc,
        )
    return grad_query, grad_keys, grad_values, grad_v.sum(0).to(v.dtype)
