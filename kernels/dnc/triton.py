"""Triton kernels of the addressing, and the functions that launch them; no autograd here.

Sums over memory slots that a program shares with others go to one row of partial sums for each
program, which are added afterwards: no atomics, so results repeat bit for bit. Allocation needs no
sort: a slot's place in the free list is decided by comparing its usage with every other,

    a_i = (1 - u_i) exp(sum over j before i of log u_j),
    j before i where u_j < u_i, or u_j = u_i and j < i,

which costs N^2 comparisons in registers instead of a sort, a gather and a scatter in memory.

Everything is computed in float32 (float64 for float64) and stored in the type it came in. The
launchers take tensors of the shapes given in ``kernels.dnc.reference`` and return new ones.
"""

import functools
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dnc.reference import EPSILON
from kernels.language import ACCUMULATE, block_of, cdiv, next_power_of_2, scratch, store
from kernels.tuning import tuned

# Elements of a tile: what a program holds in registers at a time.
TILE = 4096
SLOTS = 32
# Neighbours in a row of the link matrix that a thread loads at once: 16 bytes of float32.
OWN = tl.constexpr(4)


@triton.jit
def allocated(u, EPS: tl.constexpr):
    """The usage that allocation sees: never zero, so that its logarithm is finite."""
    return EPS + (1 - EPS) * u


@triton.jit
def _allocation_forward(
    usage_p, out_p, N, EPS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, ACC: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    u_i = allocated(tl.load(usage_p + b * N + i, mask=i < N, other=1.0).to(ACC), EPS)
    total = tl.zeros((BI,), ACC)
    for start in range(0, N, BJ):
        j = start + tl.arange(0, BJ)
        u_j = allocated(tl.load(usage_p + b * N + j, mask=j < N, other=1.0).to(ACC), EPS)
        less = u_j[None, :] < u_i[:, None]
        tied = (u_j[None, :] == u_i[:, None]) & (j[None, :] < i[:, None])
        before = (less | tied) & (j < N)[None, :]
        total += tl.sum(tl.where(before, tl.log(u_j)[None, :], 0.0), 1)
    store(out_p + b * N + i, (1 - u_i) * tl.exp(total), i < N)


@triton.jit
def _allocation_backward(
    usage_p,
    out_p,
    grad_p,
    grad_usage_p,
    N,
    EPS: tl.constexpr,
    BK: tl.constexpr,
    BI: tl.constexpr,
    ACC: tl.constexpr,
):
    """du_k = (1 - eps) (-g_k P_k + sum over i after k of g_i a_i / u_k), P_k the product before."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    u_k = allocated(tl.load(usage_p + b * N + k, mask=k < N, other=1.0).to(ACC), EPS)
    g_k = tl.load(grad_p + b * N + k, mask=k < N, other=0.0).to(ACC)
    after, before = tl.zeros((BK,), ACC), tl.zeros((BK,), ACC)
    for start in range(0, N, BI):
        i = start + tl.arange(0, BI)
        inside = (i < N)[None, :]
        u_i = allocated(tl.load(usage_p + b * N + i, mask=i < N, other=1.0).to(ACC), EPS)
        g_i = tl.load(grad_p + b * N + i, mask=i < N, other=0.0).to(ACC)
        a_i = tl.load(out_p + b * N + i, mask=i < N, other=0.0).to(ACC)
        less = u_i[None, :] < u_k[:, None]
        same = u_i[None, :] == u_k[:, None]
        i_first = less | (same & (i[None, :] < k[:, None]))
        k_first = (u_i[None, :] > u_k[:, None]) | (same & (i[None, :] > k[:, None]))
        before += tl.sum(tl.where(i_first & inside, tl.log(u_i)[None, :], 0.0), 1)
        after += tl.sum(tl.where(k_first & inside, (g_i * a_i)[None, :], 0.0), 1)
    grad = (1 - EPS) * (after / u_k - g_k * tl.exp(before))
    store(grad_usage_p + b * N + k, grad, k < N)


@triton.jit
def _usage_forward(
    usage_p,
    write_p,
    read_p,
    free_p,
    out_p,
    N,
    R: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    u = tl.load(usage_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    w = tl.load(write_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    psi = tl.full((BN,), 1.0, ACC)
    for r in tl.static_range(R):
        free = tl.load(free_p + b * R + r).to(ACC)
        psi *= 1 - free * tl.load(read_p + (b * R + r) * N + n, mask=n < N, other=0.0).to(ACC)
    store(out_p + b * N + n, (u + w - u * w) * psi, n < N)


@triton.jit
def _usage_backward(
    usage_p,
    write_p,
    read_p,
    free_p,
    grad_p,
    grad_usage_p,
    grad_write_p,
    grad_read_p,
    grad_free_p,
    N,
    R: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
):
    """The product without one head is multiplied out: a retention of zero divides nothing."""
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    n = block * BN + tl.arange(0, BN)
    u = tl.load(usage_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    w = tl.load(write_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    g = tl.load(grad_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    psi = tl.full((BN,), 1.0, ACC)
    for r in tl.static_range(R):
        others = tl.full((BN,), 1.0, ACC)
        for s in tl.static_range(R):
            if s != r:
                free_s = tl.load(free_p + b * R + s).to(ACC)
                w_s = tl.load(read_p + (b * R + s) * N + n, mask=n < N, other=0.0).to(ACC)
                others *= 1 - free_s * w_s
        free = tl.load(free_p + b * R + r).to(ACC)
        w_r = tl.load(read_p + (b * R + r) * N + n, mask=n < N, other=0.0).to(ACC)
        d_retained = g * (u + w - u * w) * others
        store(grad_read_p + (b * R + r) * N + n, -free * d_retained, n < N)
        partial = grad_free_p + (b * tl.num_programs(1) + block) * R + r
        tl.store(partial, -tl.sum(d_retained * w_r, 0))
        psi *= 1 - free * w_r
    store(grad_usage_p + b * N + n, g * psi * (1 - w), n < N)
    store(grad_write_p + b * N + n, g * psi * (1 - u), n < N)


@triton.jit
def tile_of(pointer, b, n, w, N, W, ACC: tl.constexpr):
    """Rows n and columns w of the memory of batch b."""
    inside = (n < N)[:, None] & (w < W)[None, :]
    return tl.load(pointer + (b * N + n[:, None]) * W + w[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit
def content_scores(
    memory_p,
    keys_p,
    strengths_p,
    scores_p,
    b,
    head,
    N,
    W,
    EPS: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """Store strength times cosine of every slot; return the largest, and the sum of exponentials.

    The sum is that of exp(score - largest), kept up to date as the largest grows.
    """
    w = tl.arange(0, BW)
    key = tl.load(keys_p + head * W + w, mask=w < W, other=0.0).to(ACC)
    beta = tl.load(strengths_p + head).to(ACC)
    key_square = tl.sum(key * key, 0) + EPS
    largest, total = tl.full((), -float("inf"), ACC), tl.zeros((), ACC)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        words = tile_of(memory_p, b, n, w, N, W, ACC)
        squares = (tl.sum(words * words, 1) + EPS) * key_square
        score = beta * tl.sum(words * key[None, :], 1) / tl.sqrt(squares)
        score = tl.where(n < N, score, -float("inf"))
        tl.store(scores_p + head * N + n, score, mask=n < N)
        now = tl.maximum(largest, tl.max(score, 0))
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(score - now), 0)
        largest = now
    return largest, total


@triton.jit
def _content_forward(
    memory_p,
    keys_p,
    strengths_p,
    scores_p,
    out_p,
    H,
    N,
    W,
    EPS: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """The softmax of a head in two passes over the memory; the first leaves its scores behind."""
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = b * H + h
    row = head * N
    largest, total = content_scores(
        memory_p, keys_p, strengths_p, scores_p, b, head, N, W, EPS, BN, BW, ACC
    )
    tl.debug_barrier()
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        score = tl.load(scores_p + row + n, mask=n < N, other=-float("inf"))
        store(out_p + row + n, tl.exp(score - largest) / total, n < N)


@triton.jit
def _content_backward(
    memory_p,
    keys_p,
    strengths_p,
    out_p,
    grad_p,
    add_p,
    grad_memory_p,
    grad_keys_p,
    grad_strengths_p,
    H,
    N,
    W,
    EPS: tl.constexpr,
    ADD: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    """With x the cosine: dm = beta ds (k / (|m| |k|) - x m / |m|^2), and dk likewise."""
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, w = block * BN + tl.arange(0, BN), tl.arange(0, BW)
    inside = (n < N)[:, None] & (w < W)[None, :]
    words = tile_of(memory_p, b, n, w, N, W, ACC)
    word_square = tl.sum(words * words, 1) + EPS
    grad_words = tl.zeros((BN, BW), ACC)
    if ADD:
        grad_words += tile_of(add_p, b, n, w, N, W, ACC)
    for h in range(0, H):
        row = (b * H + h) * N
        mean = tl.zeros((), ACC)
        for start in range(0, N, BN):
            j = start + tl.arange(0, BN)
            c_j = tl.load(out_p + row + j, mask=j < N, other=0.0).to(ACC)
            mean += tl.sum(c_j * tl.load(grad_p + row + j, mask=j < N, other=0.0).to(ACC), 0)
        c = tl.load(out_p + row + n, mask=n < N, other=0.0).to(ACC)
        d_score = c * (tl.load(grad_p + row + n, mask=n < N, other=0.0).to(ACC) - mean)
        key = tl.load(keys_p + (b * H + h) * W + w, mask=w < W, other=0.0).to(ACC)
        beta = tl.load(strengths_p + b * H + h).to(ACC)
        key_square = tl.sum(key * key, 0) + EPS
        scale = 1 / tl.sqrt(word_square * key_square)
        cosine = tl.sum(words * key[None, :], 1) * scale
        d_cosine = beta * d_score
        along, back = d_cosine * scale, d_cosine * cosine
        grad_words += along[:, None] * key[None, :] - (back / word_square)[:, None] * words
        d_key = tl.sum(along[:, None] * words, 0) - key * (tl.sum(back, 0) / key_square)
        partial = (b * tl.num_programs(1) + block) * H + h
        tl.store(grad_keys_p + partial * W + w, d_key, mask=w < W)
        tl.store(grad_strengths_p + partial, tl.sum(d_score * cosine, 0))
    store(grad_memory_p + (b * N + n[:, None]) * W + w[None, :], grad_words, inside)


@triton.jit
def _write_forward(
    memory_p,
    allocation_p,
    content_p,
    allocation_gate_p,
    write_gate_p,
    erase_p,
    vector_p,
    out_p,
    write_p,
    N,
    W,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    n, w = tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BW)
    inside = (n < N)[:, None] & (w < W)[None, :]
    a = tl.load(allocation_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    c = tl.load(content_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    gate = tl.load(allocation_gate_p + b).to(ACC)
    weight = tl.load(write_gate_p + b).to(ACC) * (gate * a + (1 - gate) * c)
    erase = tl.load(erase_p + b * W + w, mask=w < W, other=0.0).to(ACC)
    vector = tl.load(vector_p + b * W + w, mask=w < W, other=0.0).to(ACC)
    words = tile_of(memory_p, b, n, w, N, W, ACC)
    words += weight[:, None] * (vector[None, :] - words * erase[None, :])
    store(out_p + (b * N + n[:, None]) * W + w[None, :], words, inside)
    store(write_p + b * N + n, weight, n < N)


@triton.jit
def _write_backward(
    memory_p,
    allocation_p,
    content_p,
    allocation_gate_p,
    write_gate_p,
    erase_p,
    vector_p,
    grad_memory_p,
    grad_write_p,
    out_memory_p,
    out_allocation_p,
    out_content_p,
    out_gates_p,
    out_vectors_p,
    N,
    W,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, w = block * BN + tl.arange(0, BN), tl.arange(0, BW)
    inside = (n < N)[:, None] & (w < W)[None, :]
    a = tl.load(allocation_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    c = tl.load(content_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    gate, write_gate = (
        tl.load(allocation_gate_p + b).to(ACC),
        tl.load(write_gate_p + b).to(ACC),
    )
    mixed = gate * a + (1 - gate) * c
    weight = write_gate * mixed
    erase = tl.load(erase_p + b * W + w, mask=w < W, other=0.0).to(ACC)
    vector = tl.load(vector_p + b * W + w, mask=w < W, other=0.0).to(ACC)
    words = tile_of(memory_p, b, n, w, N, W, ACC)
    grad = tile_of(grad_memory_p, b, n, w, N, W, ACC)
    d_weight = tl.load(grad_write_p + b * N + n, mask=n < N, other=0.0).to(ACC)
    d_weight += tl.sum(grad * (vector[None, :] - words * erase[None, :]), 1)
    kept = grad * (1 - weight[:, None] * erase[None, :])
    store(out_memory_p + (b * N + n[:, None]) * W + w[None, :], kept, inside)
    d_mixed = write_gate * d_weight
    store(out_allocation_p + b * N + n, gate * d_mixed, n < N)
    store(out_content_p + b * N + n, (1 - gate) * d_mixed, n < N)
    partial = b * tl.num_programs(1) + block
    tl.store(out_gates_p + partial * 2, tl.sum(d_mixed * (a - c), 0))
    tl.store(out_gates_p + partial * 2 + 1, tl.sum(d_weight * mixed, 0))
    d_erase = -tl.sum(grad * words * weight[:, None], 0)
    tl.store(out_vectors_p + partial * 2 * W + w, d_erase, mask=w < W)
    d_vector = tl.sum(grad * weight[:, None], 0)
    tl.store(out_vectors_p + (partial * 2 + 1) * W + w, d_vector, mask=w < W)


@triton.jit
def own_sums(x, BI: tl.constexpr, BJ: tl.constexpr):
    """Sums of the neighbours in a row that one thread has loaded, which takes no other thread."""
    return tl.sum(tl.reshape(x, (BI, BJ // OWN, OWN)), 2)


@triton.jit
def _link_forward(
    link_p,
    precedence_p,
    write_p,
    read_p,
    out_p,
    out_precedence_p,
    forward_p,
    backward_p,
    N,
    R: tl.constexpr,
    BOOK: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    ACC: tl.constexpr,
):
    """Rows i of L: read once, written once, and both directional reads taken on the way.

    Outside of the matrix all that is loaded is zero, and so are the links.
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = block * BI + tl.arange(0, BI)
    w_i = tl.load(write_p + b * N + i, mask=i < N, other=0.0).to(ACC)
    total, ahead = tl.zeros((BJ,), ACC), (tl.zeros((BI, BJ // OWN), ACC),) * R
    heads = b * R * N
    partial = backward_p + (b * tl.num_programs(1) + block) * R * N
    for start in range(0, N, BJ):
        j = start + tl.arange(0, BJ)
        inside = (i < N)[:, None] & (j < N)[None, :]
        w_j = tl.load(write_p + b * N + j, mask=j < N, other=0.0).to(ACC)
        p_j = tl.load(precedence_p + b * N + j, mask=j < N, other=0.0).to(ACC)
        total += w_j
        at = (b * N + i[:, None]) * N + j[None, :]
        links = tl.load(link_p + at, mask=inside, other=0.0).to(ACC)
        other = w_i[:, None] if BOOK else w_j[None, :]
        links = (1 - w_i[:, None] - other) * links + w_i[:, None] * p_j[None, :]
        links = tl.where(i[:, None] != j[None, :], links, 0.0)
        store(out_p + at, links, inside)
        for r in tl.static_range(R):
            r_j = tl.load(read_p + heads + r * N + j, mask=j < N, other=0.0).to(ACC)
            r_i = tl.load(read_p + heads + r * N + i, mask=i < N, other=0.0).to(ACC)
            # The sums go round: a loop cannot change one in the middle of a tuple.
            ahead = ahead[1:] + (ahead[0] + own_sums(links * r_j[None, :], BI, BJ),)
            tl.store(partial + r * N + j, tl.sum(links * r_i[:, None], 0), mask=j < N)
    for r in tl.static_range(R):
        store(forward_p + heads + r * N + i, tl.sum(ahead[r], 1), i < N)
    p_i = tl.load(precedence_p + b * N + i, mask=i < N, other=0.0).to(ACC)
    store(out_precedence_p + b * N + i, (1 - tl.sum(total, 0)) * p_i + w_i, i < N)


@triton.jit
def _link_backward(
    link_p,
    precedence_p,
    write_p,
    read_p,
    grad_p,
    grad_precedence_p,
    grad_forward_p,
    grad_backward_p,
    out_p,
    own_p,
    columns_p,
    N,
    R: tl.constexpr,
    BOOK: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    ACC: tl.constexpr,
):
    """Rows i again. ``own`` and ``columns`` hold, for each n: dw, dp and dw_r of the R heads.

    What falls on the rows themselves goes to ``own``; what falls on the columns is shared with the
    other programs and goes to this program's row of ``columns``.
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = block * BI + tl.arange(0, BI)
    w_i = tl.load(write_p + b * N + i, mask=i < N, other=0.0).to(ACC)
    total, through = tl.zeros((BJ,), ACC), tl.zeros((BJ,), ACC)
    d_write = tl.zeros((BI, BJ // OWN), ACC)
    d_read = (tl.zeros((BI, BJ // OWN), ACC),) * R
    heads, own = b * R * N, own_p + b * (R + 2) * N
    columns = columns_p + (b * tl.num_programs(1) + block) * (R + 2) * N
    for start in range(0, N, BJ):
        j = start + tl.arange(0, BJ)
        inside = (i < N)[:, None] & (j < N)[None, :]
        off_diagonal = i[:, None] != j[None, :]
        w_j = tl.load(write_p + b * N + j, mask=j < N, other=0.0).to(ACC)
        p_j = tl.load(precedence_p + b * N + j, mask=j < N, other=0.0).to(ACC)
        total += w_j
        through += p_j * tl.load(grad_precedence_p + b * N + j, mask=j < N, other=0.0).to(ACC)
        at = (b * N + i[:, None]) * N + j[None, :]
        old = tl.load(link_p + at, mask=inside, other=0.0).to(ACC)
        other = w_i[:, None] if BOOK else w_j[None, :]
        decay = 1 - w_i[:, None] - other
        new = tl.where(off_diagonal, decay * old + w_i[:, None] * p_j[None, :], 0.0)
        grad = tl.load(grad_p + at, mask=inside, other=0.0).to(ACC)
        for r in tl.static_range(R):
            row = heads + r * N
            r_j = tl.load(read_p + row + j, mask=j < N, other=0.0).to(ACC)
            r_i = tl.load(read_p + row + i, mask=i < N, other=0.0).to(ACC)
            f_i = tl.load(grad_forward_p + row + i, mask=i < N, other=0.0).to(ACC)
            b_j = tl.load(grad_backward_p + row + j, mask=j < N, other=0.0).to(ACC)
            # One by one: a sum of both products would be laid out over the threads by itself, and
            # go through shared memory to where the gradient is.
            grad = grad + f_i[:, None] * r_j[None, :]
            grad = grad + r_i[:, None] * b_j[None, :]
            d_read = d_read[1:] + (d_read[0] + own_sums(new * b_j[None, :], BI, BJ),)
            tl.store(columns + (2 + r) * N + j, tl.sum(new * f_i[:, None], 0), mask=j < N)
        grad = tl.where(off_diagonal, grad, 0.0)
        store(out_p + at, decay * grad, inside)
        faded = grad * old
        d_write += own_sums(grad * p_j[None, :] - (2 * faded if BOOK else faded), BI, BJ)
        d_other = tl.zeros((BJ,), ACC) if BOOK else -tl.sum(faded, 0)
        tl.store(columns + j, d_other, mask=j < N)
        tl.store(columns + N + j, tl.sum(grad * w_i[:, None], 0), mask=j < N)
    g_i = tl.load(grad_precedence_p + b * N + i, mask=i < N, other=0.0).to(ACC)
    tl.store(own + i, tl.sum(d_write, 1) + g_i - tl.sum(through, 0), mask=i < N)
    tl.store(own + N + i, (1 - tl.sum(total, 0)) * g_i, mask=i < N)
    for r in tl.static_range(R):
        tl.store(own + (2 + r) * N + i, tl.sum(d_read[r], 1), mask=i < N)


@triton.jit
def _read_forward(
    memory_p,
    backward_p,
    content_p,
    forward_p,
    modes_p,
    words_p,
    out_p,
    N,
    W,
    R: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    b, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    w = tl.arange(0, BW)
    pi_b = tl.load(modes_p + (b * 3 + 0) * R + r).to(ACC)
    pi_c = tl.load(modes_p + (b * 3 + 1) * R + r).to(ACC)
    pi_f = tl.load(modes_p + (b * 3 + 2) * R + r).to(ACC)
    total = tl.zeros((BW,), ACC)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        at = (b * R + r) * N + n
        weight = pi_b * tl.load(backward_p + at, mask=n < N, other=0.0).to(ACC)
        weight += pi_c * tl.load(content_p + at, mask=n < N, other=0.0).to(ACC)
        weight += pi_f * tl.load(forward_p + at, mask=n < N, other=0.0).to(ACC)
        store(out_p + at, weight, n < N)
        total += tl.sum(weight[:, None] * tile_of(memory_p, b, n, w, N, W, ACC), 0)
    store(words_p + (b * R + r) * W + w, total, w < W)


@triton.jit
def _read_backward(
    memory_p,
    backward_p,
    content_p,
    forward_p,
    modes_p,
    grad_words_p,
    grad_read_p,
    add_p,
    out_memory_p,
    out_backward_p,
    out_content_p,
    out_forward_p,
    out_modes_p,
    N,
    W,
    R: tl.constexpr,
    ADD: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ACC: tl.constexpr,
):
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, w = block * BN + tl.arange(0, BN), tl.arange(0, BW)
    inside = (n < N)[:, None] & (w < W)[None, :]
    words = tile_of(memory_p, b, n, w, N, W, ACC)
    grad_memory = tl.zeros((BN, BW), ACC)
    if ADD:
        grad_memory += tile_of(add_p, b, n, w, N, W, ACC)
    for r in tl.static_range(R):
        at = (b * R + r) * N + n
        back = tl.load(backward_p + at, mask=n < N, other=0.0).to(ACC)
        content = tl.load(content_p + at, mask=n < N, other=0.0).to(ACC)
        ahead = tl.load(forward_p + at, mask=n < N, other=0.0).to(ACC)
        pi_b = tl.load(modes_p + (b * 3 + 0) * R + r).to(ACC)
        pi_c = tl.load(modes_p + (b * 3 + 1) * R + r).to(ACC)
        pi_f = tl.load(modes_p + (b * 3 + 2) * R + r).to(ACC)
        d_word = tl.load(grad_words_p + (b * R + r) * W + w, mask=w < W, other=0.0).to(ACC)
        weight = pi_b * back + pi_c * content + pi_f * ahead
        grad_memory += weight[:, None] * d_word[None, :]
        d_weight = tl.load(grad_read_p + at, mask=n < N, other=0.0).to(ACC)
        d_weight += tl.sum(words * d_word[None, :], 1)
        store(out_backward_p + at, pi_b * d_weight, n < N)
        store(out_content_p + at, pi_c * d_weight, n < N)
        store(out_forward_p + at, pi_f * d_weight, n < N)
        partial = (b * tl.num_programs(1) + block) * 3 * R + r
        tl.store(out_modes_p + partial, tl.sum(d_weight * back, 0))
        tl.store(out_modes_p + partial + R, tl.sum(d_weight * content, 0))
        tl.store(out_modes_p + partial + 2 * R, tl.sum(d_weight * ahead, 0))
    store(out_memory_p + (b * N + n[:, None]) * W + w[None, :], grad_memory, inside)


def _total(partials: Tensor, like: Tensor) -> Tensor:
    """The sum over the programs, in the type of ``like``."""
    whole = partials[:, 0] if partials.shape[1] == 1 else partials.sum(1)
    return whole.to(like.dtype)


@functools.lru_cache(maxsize=4096)
def rows_of_tile(n: int, w: int, elements: int = TILE) -> Mapping[str, int]:
    """Tiles of the memory: all of a word, as many words as a tile holds."""
    width = block_of(w)
    rows = min(max(1, elements // width), next_power_of_2(n))
    return {"BN": max(16, rows), "BW": width}


def slots_of_tile(n: int) -> int:
    """Slots of one side of a square tile: of a link matrix, or of a comparison of usages."""
    return min(SLOTS, block_of(n))


def tile_of_links(n: int, r: int, like: Tensor, *, heads: int) -> Mapping[str, int]:
    """Tiles of the link matrix, and the warps that hold one and the sums of ``r`` heads.

    As few as can be, for what several warps add up goes through shared memory, with a barrier for
    each sum: one for ``heads`` heads, which is what its registers hold. Float64 takes more of them,
    and so do rows that begin anywhere: each element has an address of its own.
    """
    slots, wide = slots_of_tile(n), like.dtype == torch.float64 or n % 16
    warps = 4 if wide else min(4, next_power_of_2(cdiv(r, heads)))
    return {"BI": slots, "BJ": slots, "num_warps": warps}


def warps_of_tile(tile: Mapping[str, int]) -> int:
    """Warps that hold a tile with at most 16 elements a thread."""
    return _warps(tile["BN"] * tile["BW"])


def _warps(elements: int) -> int:
    return min(8, max(1, elements // 512))


def content_forward(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """c_BHN."""
    (b, n, w), h = memory.shape, keys.shape[1]
    out, tile = memory.new_empty(b, h, n), rows_of_tile(n, w)
    if out.numel():
        _content_forward[(b, h)](
            memory.contiguous(),
            keys.contiguous(),
            strengths.contiguous(),
            scratch(memory, b, h, n),
            out,
            h,
            n,
            w,
            EPS=EPSILON,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.content_forward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    return out


def content_backward(
    grad: Tensor,
    memory: Tensor,
    keys: Tensor,
    strengths: Tensor,
    out: Tensor,
    add: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of memory (more than ``add``), keys and strengths."""
    (b, n, w), h = memory.shape, keys.shape[1]
    # Two tiles are held at a time.
    tile = rows_of_tile(n, w, TILE // 2)
    blocks = cdiv(n, tile["BN"])
    grad_memory = torch.empty_like(memory, memory_format=torch.contiguous_format)
    grad_keys = scratch(memory, b, blocks, h, w)
    grad_strengths = scratch(memory, b, blocks, h)
    if not h:
        # No head compares: nothing comes beside what is added.
        grad_memory.zero_()
        if add is not None:
            grad_memory.copy_(add)
    elif b * n:
        _content_backward[(b, blocks)](
            memory.contiguous(),
            keys.contiguous(),
            strengths.contiguous(),
            out.contiguous(),
            grad.contiguous(),
            memory if add is None else add.contiguous(),
            grad_memory,
            grad_keys,
            grad_strengths,
            h,
            n,
            w,
            EPS=EPSILON,
            ADD=add is not None,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.content_backward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    return grad_memory, _total(grad_keys, keys), _total(grad_strengths, strengths)


def usage_forward(usage: Tensor, write: Tensor, read: Tensor, free: Tensor) -> Tensor:
    """u_BN."""
    (b, n), r = usage.shape, read.shape[1]
    out, block = usage.new_empty(b, n), min(256, block_of(n))
    if out.numel():
        _usage_forward[(b, cdiv(n, block))](
            usage.contiguous(),
            write.contiguous(),
            read.contiguous(),
            free.contiguous(),
            out,
            n,
            R=r,
            BN=block,
            ACC=ACCUMULATE[usage.dtype],
            **tuned("dnc.usage_forward", usage, {"num_warps": _warps(block)}, B=b, N=n),
        )
    return out


def usage_backward(
    grad: Tensor, usage: Tensor, write: Tensor, read: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of usage, write and read weightings, and free gates."""
    (b, n), r = usage.shape, read.shape[1]
    block = min(256, block_of(n))
    blocks = cdiv(n, block)
    grad_usage, grad_write = usage.new_empty(b, n), usage.new_empty(b, n)
    grad_read, grad_free = usage.new_empty(b, r, n), scratch(usage, b, blocks, r)
    if b * n:
        _usage_backward[(b, blocks)](
            usage.contiguous(),
            write.contiguous(),
            read.contiguous(),
            free.contiguous(),
            grad.contiguous(),
            grad_usage,
            grad_write,
            grad_read,
            grad_free,
            n,
            R=r,
            BN=block,
            ACC=ACCUMULATE[usage.dtype],
            **tuned("dnc.usage_backward", usage, {"num_warps": _warps(block)}, B=b, N=n),
        )
    return grad_usage, grad_write, grad_read, _total(grad_free, free)


def allocation_forward(usage: Tensor) -> Tensor:
    """a_BN."""
    (b, n), slots = usage.shape, slots_of_tile(usage.shape[1])
    out = usage.new_empty(b, n)
    if out.numel():
        _allocation_forward[(b, cdiv(n, slots))](
            usage.contiguous(),
            out,
            n,
            EPS=EPSILON,
            BI=slots,
            BJ=slots,
            ACC=ACCUMULATE[usage.dtype],
            **tuned("dnc.allocation_forward", usage, {"num_warps": 4}, B=b, N=n),
        )
    return out


def allocation_backward(grad: Tensor, usage: Tensor, out: Tensor) -> Tensor:
    """Gradient of usage."""
    (b, n), slots = usage.shape, slots_of_tile(usage.shape[1])
    grad_usage = usage.new_empty(b, n)
    if grad_usage.numel():
        _allocation_backward[(b, cdiv(n, slots))](
            usage.contiguous(),
            out.contiguous(),
            grad.contiguous(),
            grad_usage,
            n,
            EPS=EPSILON,
            BK=slots,
            BI=slots,
            ACC=ACCUMULATE[usage.dtype],
            **tuned("dnc.allocation_backward", usage, {"num_warps": 4}, B=b, N=n),
        )
    return grad_usage


def write_forward(
    memory: Tensor,
    allocation: Tensor,
    content: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    erase: Tensor,
    vector: Tensor,
) -> tuple[Tensor, Tensor]:
    """M_BNW and w_w."""
    b, n, w = memory.shape
    out, write = memory.new_empty(b, n, w), memory.new_empty(b, n)
    tile = rows_of_tile(n, w)
    if write.numel():
        _write_forward[(b, cdiv(n, tile["BN"]))](
            memory.contiguous(),
            allocation.contiguous(),
            content.contiguous(),
            allocation_gate.contiguous(),
            write_gate.contiguous(),
            erase.contiguous(),
            vector.contiguous(),
            out,
            write,
            n,
            w,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.write_forward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    return out, write


def write_backward(
    grad_memory: Tensor,
    grad_write: Tensor,
    memory: Tensor,
    allocation: Tensor,
    content: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    erase: Tensor,
    vector: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the order in which ``write_forward`` takes its arguments."""
    b, n, w = memory.shape
    tile = rows_of_tile(n, w)
    blocks = cdiv(n, tile["BN"])
    out_memory, out_allocation = memory.new_empty(b, n, w), memory.new_empty(b, n)
    out_content = memory.new_empty(b, n)
    gates, vectors = scratch(memory, b, blocks, 2), scratch(memory, b, blocks, 2, w)
    if b * n:
        _write_backward[(b, blocks)](
            memory.contiguous(),
            allocation.contiguous(),
            content.contiguous(),
            allocation_gate.contiguous(),
            write_gate.contiguous(),
            erase.contiguous(),
            vector.contiguous(),
            grad_memory.contiguous(),
            grad_write.contiguous(),
            out_memory,
            out_allocation,
            out_content,
            gates,
            vectors,
            n,
            w,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.write_backward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    # Summed one by one: what an op returns must not be views of one tensor.
    allocation_gate, write_gate = (g.sum(1, keepdim=True).to(memory.dtype) for g in gates.unbind(2))
    erase, vector = (v.sum(1).to(memory.dtype) for v in vectors.unbind(2))
    return out_memory, out_allocation, out_content, allocation_gate, write_gate, erase, vector


def link_forward(
    link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, book: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_BNN in the type of ``link``, which may be narrower than the others'; p_BN, f_BRN, b_BRN."""
    (b, n), r = precedence.shape, read.shape[1]
    tile = tuned("dnc.link_forward", link, tile_of_links(n, r, precedence, heads=8), B=b, N=n)
    blocks = cdiv(n, tile["BI"])
    out, out_precedence = link.new_empty(b, n, n), precedence.new_empty(b, n)
    forward, backward = read.new_empty(b, r, n), scratch(read, b, blocks, r, n)
    if b * n:
        _link_forward[(b, blocks)](
            link.contiguous(),
            precedence.contiguous(),
            write.contiguous(),
            read.contiguous(),
            out,
            out_precedence,
            forward,
            backward,
            n,
            R=r,
            BOOK=book,
            ACC=ACCUMULATE[precedence.dtype],
            **tile,
        )
    return out, out_precedence, forward, _total(backward, read)


def link_backward(
    grad: Tensor,
    grad_precedence: Tensor,
    grad_forward: Tensor,
    grad_backward: Tensor,
    link: Tensor,
    precedence: Tensor,
    write: Tensor,
    read: Tensor,
    book: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of link, precedence, write and read weightings."""
    (b, n), r = precedence.shape, read.shape[1]
    tile = tuned("dnc.link_backward", link, tile_of_links(n, r, precedence, heads=2), B=b, N=n)
    blocks = cdiv(n, tile["BI"])
    out, own = link.new_empty(b, n, n), scratch(read, b, r + 2, n)
    columns = scratch(read, b, blocks, r + 2, n)
    if b * n:
        _link_backward[(b, blocks)](
            link.contiguous(),
            precedence.contiguous(),
            write.contiguous(),
            read.contiguous(),
            grad.contiguous(),
            grad_precedence.contiguous(),
            grad_forward.contiguous(),
            grad_backward.contiguous(),
            out,
            own,
            columns,
            n,
            R=r,
            BOOK=book,
            ACC=ACCUMULATE[precedence.dtype],
            **tile,
        )
    whole = (own + columns.sum(1)).to(read.dtype)
    return out, whole[:, 1].clone(), whole[:, 0].clone(), whole[:, 2:].clone()


def read_forward(
    memory: Tensor, backward: Tensor, content: Tensor, forward: Tensor, modes: Tensor
) -> tuple[Tensor, Tensor]:
    """The words read, BRW, and w_r."""
    (b, n, w), r = memory.shape, content.shape[1]
    words, out, tile = memory.new_zeros(b, r, w), memory.new_empty(b, r, n), rows_of_tile(n, w)
    if out.numel():
        _read_forward[(b, r)](
            memory.contiguous(),
            backward.contiguous(),
            content.contiguous(),
            forward.contiguous(),
            modes.contiguous(),
            words,
            out,
            n,
            w,
            R=r,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.read_forward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    return words, out


def read_backward(
    grad_words: Tensor,
    grad_read: Tensor,
    memory: Tensor,
    backward: Tensor,
    content: Tensor,
    forward: Tensor,
    modes: Tensor,
    add: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of memory (more than ``add``), backward, content, forward and modes."""
    (b, n, w), r = memory.shape, content.shape[1]
    # Two tiles are held at a time, and what every head adds to one of them.
    tile = rows_of_tile(n, w, TILE // 2)
    blocks = cdiv(n, tile["BN"])
    out_memory, out_modes = memory.new_empty(b, n, w), scratch(memory, b, blocks, 3, r)
    outs = [memory.new_empty(b, r, n) for _ in range(3)]
    if b * n:
        _read_backward[(b, blocks)](
            memory.contiguous(),
            backward.contiguous(),
            content.contiguous(),
            forward.contiguous(),
            modes.contiguous(),
            grad_words.contiguous(),
            grad_read.contiguous(),
            memory if add is None else add.contiguous(),
            out_memory,
            *outs,
            out_modes,
            n,
            w,
            R=r,
            ADD=add is not None,
            ACC=ACCUMULATE[memory.dtype],
            **tuned("dnc.read_backward", memory, {"num_warps": warps_of_tile(tile)}, B=b, N=n),
            **tile,
        )
    return out_memory, outs[0], outs[1], outs[2], _total(out_modes, modes)
