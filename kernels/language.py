"""What Triton kernels share, and what has to differ under the interpreter.

Triton's interpreter (``TRITON_INTERPRET=1``) computes with NumPy, which knows no bfloat16: its sums
and products of bfloat16 are those of the bit patterns, and a conversion to it cuts instead of
rounding. So kernels convert what they load to the type they compute in before they do anything
else, and store through ``store``.
"""

import torch
import triton
import triton.language as tl

from kernels.dispatch import INTERPRETED

INTERPRET = tl.constexpr(INTERPRETED)
ACCUMULATE = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of a type are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scratch(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """New memory for sums of what ``like`` holds, on its device."""
    return like.new_empty(shape, dtype=accumulator(like.dtype))


# Triton's own ``cdiv`` and ``next_power_of_2`` are made for kernels to call as well, and take ten
# times as long: a launcher that calls them a dozen times spends more on them than on its launch.
def cdiv(size: int, block: int) -> int:
    """How many blocks hold ``size``."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """The smallest power of 2 that is no less than ``size``; 1 for none."""
    return 1 << max(0, size - 1).bit_length()


def block_of(size: int) -> int:
    """The smallest block that holds ``size``: a power of 2, and no less than ``tl.dot`` takes."""
    return max(16, next_power_of_2(size))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """``x`` as ``dtype``, to nearest even, under the interpreter too."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def store(pointer, x, mask):
    """Store ``x`` rounded to the type that ``pointer`` points to."""
    tl.store(pointer, rounded(x, pointer.dtype.element_ty), mask=mask)


@triton.jit
def sigmoid(x):
    """The logistic function, without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1 / (1 + e), e / (1 + e))


@triton.jit
def tanh(x):
    """The hyperbolic tangent, without overflow and without libdevice, which is not interpreted."""
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """``total`` and the matrix product of ``a`` and ``b``, added up in the type of ``total``."""
    if INTERPRET and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
