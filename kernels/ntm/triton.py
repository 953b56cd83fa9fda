"""Triton kernels of the addressing, and the functions that launch them; no autograd here.

One program addresses one head. What a thread needs of its neighbours, the shift takes from global
memory behind a barrier of the program's own threads.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.dnc.reference import EPSILON
from kernels.dnc.triton import content_backward, content_scores, rows_of_tile, warps_of_tile
from kernels.language import ACCUMULATE, block_of, next_power_of_2, rounded, scratch, store


@triton.jit
def shifted(pointer, row, n, shifts_p, N, S: tl.constexpr, SIGN: tl.constexpr, ACC: tl.constexpr):
    """Sum over k of s(k) x(n - SIGN k), indices modulo N."""
    total = tl.zeros(n.shape, ACC)
    for tap in tl.static_range(S):
        at = (n - SIGN * (tap - S // 2) + S * N) % N
        x = tl.load(pointer + row + at, mask=n < N, other=0.0).to(ACC)
        total += tl.load(shifts_p + tap).to(ACC) * x
    return total


@triton.jit
def _address_forward(
    memory_p,
    weights_p,
    keys_p,
    strengths_p,
    gates_p,
    shifts_p,
    sharpness_p,
    scratch_p,
    content_p,
    out_p,
    H,
    N,
    W,
    S: tl.constexpr,
    EPS: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    ALL: tl.constexpr,
    ACC: tl.constexpr,
):
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = b * H + h
    row, n = head * N, tl.arange(0, ALL)
    largest, total = content_scores(
        memory_p, keys_p, strengths_p, scratch_p, b, head, N, W, EPS, BN, BW, ACC
    )
    tl.debug_barrier()
    score = tl.load(scratch_p + row + n, mask=n < N, other=-float("inf"))
    content = tl.exp(score - largest) / total
    store(content_p + row + n, content, n < N)
    gate = tl.load(gates_p + head).to(ACC)
    last = tl.load(weights_p + row + n, mask=n < N, other=0.0).to(ACC)
    tl.debug_barrier()
    tl.store(scratch_p + row + n, gate * content + (1 - gate) * last, mask=n < N)
    tl.debug_barrier()
    moved = shifted(scratch_p, row, n, shifts_p + head * S, N, S, 1, ACC)
    gamma = tl.load(sharpness_p + head).to(ACC)
    power = tl.where(n < N, gamma * tl.log(moved + EPS), -float("inf"))
    raised = tl.exp(power - tl.max(power, 0))
    store(out_p + row + n, raised / tl.sum(raised, 0), n < N)


@triton.jit
def _address_backward(
    weights_p,
    gates_p,
    shifts_p,
    sharpness_p,
    content_p,
    out_p,
    grad_p,
    gated_p,
    scratch_p,
    grad_weights_p,
    grad_content_p,
    grad_gates_p,
    grad_shifts_p,
    grad_sharpness_p,
    N,
    S: tl.constexpr,
    EPS: tl.constexpr,
    ALL: tl.constexpr,
    ACC: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    row, n = head * N, tl.arange(0, ALL)
    gate, gamma = tl.load(gates_p + head).to(ACC), tl.load(sharpness_p + head).to(ACC)
    content = tl.load(content_p + row + n, mask=n < N, other=0.0).to(ACC)
    last = tl.load(weights_p + row + n, mask=n < N, other=0.0).to(ACC)
    tl.store(gated_p + row + n, gate * content + (1 - gate) * last, mask=n < N)
    tl.debug_barrier()
    moved = shifted(gated_p, row, n, shifts_p + head * S, N, S, 1, ACC)
    out = tl.load(out_p + row + n, mask=n < N, other=0.0).to(ACC)
    grad = tl.load(grad_p + row + n, mask=n < N, other=0.0).to(ACC)
    d_power = out * (grad - tl.sum(out * grad, 0))
    d_gamma = tl.sum(tl.where(n < N, d_power * tl.log(moved + EPS), 0.0), 0)
    tl.store(grad_sharpness_p + head, rounded(d_gamma, grad_sharpness_p.dtype.element_ty))
    d_moved = tl.where(n < N, gamma * d_power / (moved + EPS), 0.0)
    tl.store(scratch_p + row + n, d_moved, mask=n < N)
    for tap in range(S):
        at = (n - (tap - S // 2) + S * N) % N
        x = tl.load(gated_p + row + at, mask=n < N, other=0.0)
        d_shift = rounded(tl.sum(d_moved * x, 0), grad_shifts_p.dtype.element_ty)
        tl.store(grad_shifts_p + head * S + tap, d_shift)
    tl.debug_barrier()
    d_gated = shifted(scratch_p, row, n, shifts_p + head * S, N, S, -1, ACC)
    # Loaded again: of many slots, registers do not hold them all along.
    content = tl.load(content_p + row + n, mask=n < N, other=0.0).to(ACC)
    last = tl.load(weights_p + row + n, mask=n < N, other=0.0).to(ACC)
    d_gate = tl.sum(tl.where(n < N, d_gated * (content - last), 0.0), 0)
    tl.store(grad_gates_p + head, rounded(d_gate, grad_gates_p.dtype.element_ty))
    store(grad_weights_p + row + n, (1 - gate) * d_gated, n < N)
    store(grad_content_p + row + n, gate * d_gated, n < N)


def _warps(slots: int) -> int:
    return min(32, max(1, next_power_of_2(slots) // 128))


def address_forward(
    memory: Tensor,
    weights: Tensor,
    keys: Tensor,
    strengths: Tensor,
    gates: Tensor,
    shifts: Tensor,
    sharpness: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weightings w_BHN, and those by content alone."""
    (b, n, w), (h, s) = memory.shape, shifts.shape[1:]
    out, content = memory.new_empty(b, h, n), memory.new_empty(b, h, n)
    tile = rows_of_tile(n, w)
    if out.numel():
        _address_forward[(b, h)](
            memory.contiguous(),
            weights.contiguous(),
            keys.contiguous(),
            strengths.contiguous(),
            gates.contiguous(),
            shifts.contiguous(),
            sharpness.contiguous(),
            scratch(memory, b, h, n),
            content,
            out,
            h,
            n,
            w,
            S=s,
            EPS=EPSILON,
            ALL=block_of(n),
            ACC=ACCUMULATE[memory.dtype],
            num_warps=max(_warps(n), warps_of_tile(tile)),
            **tile,
        )
    return out, content


def address_backward(
    grad: Tensor,
    memory: Tensor,
    weights: Tensor,
    keys: Tensor,
    strengths: Tensor,
    gates: Tensor,
    shifts: Tensor,
    sharpness: Tensor,
    out: Tensor,
    content: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the order in which ``address_forward`` takes its arguments."""
    (b, n, _), (h, s) = memory.shape, shifts.shape[1:]
    grad_weights, grad_content = memory.new_empty(b, h, n), memory.new_empty(b, h, n)
    grad_gates, grad_sharpness = memory.new_empty(b, h, 1), memory.new_empty(b, h, 1)
    grad_shifts = memory.new_empty(b, h, s)
    if out.numel():
        _address_backward[(b * h,)](
            weights.contiguous(),
            gates.contiguous(),
            shifts.contiguous(),
            sharpness.contiguous(),
            content.contiguous(),
            out.contiguous(),
            grad.contiguous(),
            scratch(memory, b, h, n),
            scratch(memory, b, h, n),
            grad_weights,
            grad_content,
            grad_gates,
            grad_shifts,
            grad_sharpness,
            n,
            S=s,
            EPS=EPSILON,
            ALL=block_of(n),
            ACC=ACCUMULATE[memory.dtype],
            num_warps=_warps(n),
        )
    grad_memory, grad_keys, grad_strengths = content_backward(
        grad_content, memory, keys, strengths, content
    )
    by_head = (grad_gates, grad_shifts, grad_sharpness)
    return grad_memory, grad_weights, grad_keys, grad_strengths, *by_head
