"""Triton kernels of convolution, and the functions that launch them; no autograd here.

Images lie channels last, and every kernel is a matrix product whose operands are gathered from them
(implicit GEMM). Of each the rows, the columns and what is summed over:

    forward             output pixels, output channels, taps and input channels
    gradient of x       input pixels, input channels, taps and output channels
    gradient of weight  output channels, taps and input channels, output pixels

Pixels beyond the edge are masked. Where there are few channels, taps and channels are counted in
one (``FLAT``), so that a block of them is not mostly empty. A stride of s divides the input pixels
into s classes each way; those of one class meet the same taps and the gradient of x passes over no
others. The gradient of weight splits the output pixels among programs, each with its own partial
sums, which are added afterwards: no atomics, so results repeat bit for bit.

What is not a number of channels is not specialised on: one binary serves every size of image,
stride, padding and dilation. Statistics of a batch are those of each block of pixels, put together
afterwards: a sum, and squares about the block's own mean, so that nothing cancels where the mean is
large (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983). Sums are in
float32 (float64 for float64); float32 operands are split
in three, so that tensor cores do not round them. Launchers take tensors of the shapes given in
``kernels.conv2d.reference`` in any layout and return new ones, images with their channels last.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.conv2d.reference import output_size
from kernels.language import ACCUMULATE, block_of, cdiv, dot, scratch, store
from kernels.tuning import tuned

# Below this many channels of a group, blocks go over taps and channels in one.
FEW_CHANNELS = 16
# Bytes of an element, and whether blocks go over taps and channels in one -> the largest blocks of
# rows, columns and summands that spill no registers, how much of rows times columns makes a warp,
# of which there are four to eight, and stages of the pipeline. A warp has much where it can: what
# it takes to find out where operands lie, it takes once.
LARGEST = {
    (2, False): (128, 128, 64, 2048, 3),
    (2, True): (128, 64, 32, 512, 2),
    (4, False): (128, 64, 32, 512, 2),
    (4, True): (64, 64, 32, 128, 2),
    (8, False): (32, 32, 16, 64, 1),
    (8, True): (32, 32, 16, 64, 1),
}
# A pixel that no tap of any kernel moves into an image.
OUTSIDE = tl.constexpr(-(2**30))
# Programs that fill a large GPU twice over, and the fewest blocks of summands for one of them.
PROGRAMS, FEWEST_BLOCKS = 264, 8

GEOMETRY = [
    "M", "H", "W", "P", "Q",
    "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w",
]  # fmt: skip


@triton.jit
def within(at, size):
    """Whether ``at`` is no less than zero and below ``size``: as unsigned, one comparison."""
    return at.to(tl.uint32) < tl.cast(size, tl.uint32)


@triton.jit
def patch(
    x_p, base, h, w, r, s, channel, inside, H, W, C, dilation_h, dilation_w, INDEX: tl.constexpr
):
    """What tap (r, s) sees of ``channel`` where its kernel begins at pixel (h, w); zero outside.

    That pixel lies at ``base``, and what the tap sees lies away from it by as much for every pixel.
    """
    down, right = r * dilation_h, s * dilation_w
    inside &= within(h + down, H) & within(w + right, W)
    at = base + (tl.cast(down, INDEX) * W + right) * C + channel
    return tl.load(x_p + at, mask=inside, other=0.0)


@triton.jit
def moved(at, step, size):
    """``at + step``, less ``size`` where it is no longer below that; and where that is.

    ``at`` is below ``size``, and ``step`` no more than it.
    """
    at += step
    over = at >= size
    return at - tl.where(over, size, 0), over


@triton.jit
def following(channel, r, s, BLOCK: tl.constexpr, CHANNELS, S):
    """The next block of channels: of the same tap, else of the next. Divides nothing."""
    channel += BLOCK
    s = tl.where(channel >= CHANNELS, s + 1, s)
    channel = tl.where(channel >= CHANNELS, 0, channel)
    r = tl.where(s >= S, r + 1, r)
    s = tl.where(s >= S, 0, s)
    return channel, r, s


@triton.jit(do_not_specialize=GEOMETRY)
def _conv2d_forward(
    x_p,
    weight_p,
    scale_p,
    shift_p,
    residual_p,
    out_p,
    sums_p,
    squares_p,
    M,
    H,
    W,
    P,
    Q,
    C,
    K,
    CG,
    KG,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
    R: tl.constexpr,
    S: tl.constexpr,
    RELU: tl.constexpr,
    FLAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Groups of CG input and KG output channels; M output pixels in all."""
    blocks_n, blocks_m = tl.cdiv(KG, BN), tl.cdiv(M, BM)
    pid = tl.program_id(0)
    group = (pid // blocks_n // blocks_m).to(INDEX)
    block = (pid // blocks_n % blocks_m).to(INDEX)
    m = block * BM + tl.arange(0, BM)
    n = pid % blocks_n * BN + tl.arange(0, BN)
    row, inside_m, inside_n = m[:, None], (m < M)[:, None], (n < KG)[None, :]
    image, h, w = row // Q // P, row // Q % P * stride_h - top, row % Q * stride_w - left
    x_p += group * CG
    weight_p += (group * KG + n)[None, :] * (R * S * CG)
    total = tl.zeros((BM, BN), ACC)
    base = ((image * H + h) * W + w) * C
    h, w = tl.where(inside_m, h, OUTSIDE).to(tl.int32), w.to(tl.int32)
    if FLAT:
        j = tl.arange(0, BK)[None, :]
        r, s, c = j // CG // S, j // CG % S, j % CG
        for start in range(0, R * S * CG, BK):
            x = patch(x_p, base, h, w, r, s, c, r < R, H, W, C, dilation_h, dilation_w, INDEX)
            at = (start + tl.arange(0, BK))[:, None]
            weight = tl.load(weight_p + at, mask=(at < R * S * CG) & inside_n, other=0.0)
            total = dot(x, weight, total, PRECISION)
            c, over = moved(c, BK % CG, CG)
            s, over = moved(s, BK // CG % S + over.to(tl.int32), S)
            r += BK // CG // S + over.to(tl.int32)
    else:
        first, r, s = 0, 0, 0
        for _ in range(0, R * S * tl.cdiv(CG, BK)):
            c = first + tl.arange(0, BK)
            x = patch(
                x_p, base, h, w, r, s, c[None, :], (c < CG)[None, :],
                H, W, C, dilation_h, dilation_w, INDEX,
            )  # fmt: skip
            at = ((r * S + s) * CG + c)[:, None]
            weight = tl.load(weight_p + at, mask=(c < CG)[:, None] & inside_n, other=0.0)
            total = dot(x, weight, total, PRECISION)
            first, r, s = following(first, r, s, BK, CG, S)
    k = group * KG + n
    if scale_p is not None:
        total *= tl.load(scale_p + k, mask=n < KG, other=0.0).to(ACC)[None, :]
    if shift_p is not None:
        total += tl.load(shift_p + k, mask=n < KG, other=0.0).to(ACC)[None, :]
    if sums_p is not None:
        inside = inside_m & inside_n
        sums = tl.sum(tl.where(inside, total, 0.0), 0)
        mean = sums / tl.minimum(M - block * BM, BM).to(ACC)
        gap = tl.where(inside, total - mean[None, :], 0.0)
        tl.store(sums_p + block * K + k, sums, mask=n < KG)
        tl.store(squares_p + block * K + k, tl.sum(gap * gap, 0), mask=n < KG)
    at = row * K + k[None, :]
    if residual_p is not None:
        total += tl.load(residual_p + at, mask=inside_m & inside_n, other=0.0).to(ACC)
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    store(out_p + at, total, inside_m & inside_n)


@triton.jit
def first_tap(at, TAPS: tl.constexpr, dilation, stride):
    """The first tap whose kernel, moved by its stride, lies over a pixel at ``at``; or ``TAPS``."""
    first = TAPS
    for i in range(0, TAPS):
        tap = TAPS - 1 - i
        first = tl.where((at - tap * dilation) % stride == 0, tap, first)
    return first


@triton.jit(do_not_specialize=[*GEOMETRY, "classes_h", "classes_w", "step_r", "step_s"])
def _conv2d_backward_x(
    grad_p,
    weight_p,
    out_p,
    M,
    H,
    W,
    P,
    Q,
    C,
    K,
    CG,
    KG,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
    classes_h,
    classes_w,
    step_r,
    step_s,
    R: tl.constexpr,
    S: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """M input pixels of the largest class; a class meets every ``step_r``-th row of taps."""
    blocks_n, blocks_m = tl.cdiv(CG, BN), tl.cdiv(M, BM)
    n = tl.program_id(0) % blocks_n * BN + tl.arange(0, BN)
    # Classes of the same pixels follow each other: they load the same gradients.
    pid = tl.program_id(0) // blocks_n
    class_h, class_w = pid // classes_w % classes_h, pid % classes_w
    pid = pid // classes_w // classes_h
    group = (pid // blocks_m).to(INDEX)
    m = (pid % blocks_m).to(INDEX) * BM + tl.arange(0, BM)
    rows, columns = tl.cdiv(H, stride_h), tl.cdiv(W, stride_w)
    image, i, j = m // columns // rows, m // columns % rows, m % columns
    h, w = i * stride_h + class_h, j * stride_w + class_w
    inside_m, inside_n = (m < M) & (h < H) & (w < W), (n < CG)[None, :]
    first_r = first_tap(class_h + top, R, dilation_h, stride_h)
    first_s = first_tap(class_w + left, S, dilation_w, stride_w)
    taps_r, taps_s = tl.cdiv(R - first_r, step_r), tl.cdiv(S - first_s, step_s)
    grad_p += group * KG
    weight_p += group * KG * (R * S * CG) + n[None, :]
    total = tl.zeros((BM, BN), ACC)
    # Multiples of the stride, by the choice of taps: where the first tap sees the gradient, and how
    # much before that each of the next.
    p = i + (class_h + top - first_r * dilation_h) // stride_h
    q = j + (class_w + left - first_s * dilation_w) // stride_w
    up, back = step_r * dilation_h // stride_h, step_s * dilation_w // stride_w
    base = ((image * P + p) * Q + q)[:, None] * K
    p, q = tl.where(inside_m, p, OUTSIDE).to(tl.int32), q.to(tl.int32)
    first, r, s = 0, 0, 0
    for _ in range(0, taps_r * taps_s * tl.cdiv(KG, BK)):
        k = first + tl.arange(0, BK)
        inside = (within(p - r * up, P) & within(q - s * back, Q))[:, None]
        at = base - (tl.cast(r * up, INDEX) * Q + s * back) * K + k[None, :]
        grad = tl.load(grad_p + at, mask=inside & (k < KG)[None, :], other=0.0)
        tap = (first_r + r * step_r) * S + first_s + s * step_s
        at = (k[:, None].to(INDEX) * (R * S) + tap) * CG
        weight = tl.load(weight_p + at, mask=(k < KG)[:, None] & inside_n, other=0.0)
        total = dot(grad, weight, total, PRECISION)
        first, r, s = following(first, r, s, BK, KG, taps_s)
    at = ((image * H + h) * W + w)[:, None] * C + (group * CG + n)[None, :]
    store(out_p + at, total, inside_m[:, None] & inside_n)


@triton.jit(do_not_specialize=[*GEOMETRY, "chunk"])
def _conv2d_backward_weight(
    grad_p,
    x_p,
    out_p,
    M,
    H,
    W,
    P,
    Q,
    C,
    K,
    CG,
    KG,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
    chunk,
    R: tl.constexpr,
    S: tl.constexpr,
    FLAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Partial sums over ``chunk`` of the M output pixels, a (K, R, S, CG) for each chunk."""
    blocks_n = tl.cdiv(R * S * CG, BN) if FLAT else R * S * tl.cdiv(CG, BN)
    blocks_m = tl.cdiv(KG, BM)
    pid, part = tl.program_id(0), tl.program_id(1).to(INDEX)
    group = (pid // blocks_n // blocks_m).to(INDEX)
    k = pid // blocks_n % blocks_m * BM + tl.arange(0, BM)
    n = pid % blocks_n
    if FLAT:
        j = n * BN + tl.arange(0, BN)
        inside_n = (j < R * S * CG)[None, :]
        tap, c = (j // CG)[None, :], (j % CG)[None, :]
    else:
        tap = n // tl.cdiv(CG, BN) if R * S > 1 else 0
        c = (n % tl.cdiv(CG, BN) * BN + tl.arange(0, BN))[None, :]
        inside_n = c < CG
        j = tap * CG + n % tl.cdiv(CG, BN) * BN + tl.arange(0, BN)
    x_p += group * CG
    grad_p += group * KG + k[:, None]
    total = tl.zeros((BM, BN), ACC)
    # Where the first tap sees a pixel takes divisions. From there to where it sees the pixel of the
    # next block does not, whether or not a row or an image of them ends in between.
    row = (part * chunk + tl.arange(0, BK))[:, None]
    image, h, w = row // Q // P, row // Q % P * stride_h, row % Q * stride_w
    base, height = ((image * H + h) * W + w) * C, tl.cast(H, INDEX)
    end_h, end_w = P * stride_h, Q * stride_w
    step_h, step_w = BK // Q % P * stride_h, BK % Q * stride_w
    step = ((BK // Q // P * height + step_h) * W + step_w) * C
    to_row, to_image = (stride_h * W - end_w) * C, (height - end_h) * W * C
    down, right = tap // S * dilation_h - top, tap % S * dilation_w - left
    away = (tl.cast(down, INDEX) * W + right) * C + c
    for start in range(part * chunk, tl.minimum(part * chunk + chunk, M), BK):
        m = start + tl.arange(0, BK)
        at = m[None, :] * K
        grad = tl.load(grad_p + at, mask=(m < M)[None, :] & (k < KG)[:, None], other=0.0)
        inside = (m < M)[:, None] & inside_n & within(h + down, H) & within(w + right, W)
        x = tl.load(x_p + base + away, mask=inside, other=0.0)
        total = dot(grad, x, total, PRECISION)
        w, over = moved(w, step_w, end_w)
        base += step + tl.where(over, to_row, 0)
        h, over = moved(h, step_h + tl.where(over, stride_h, 0), end_h)
        base += tl.where(over, to_image, 0)
    at = (part * K + group * KG + k)[:, None] * (R * S * CG) + j[None, :]
    tl.store(out_p + at, total, mask=(k < KG)[:, None] & inside_n)


def flat(channels: int, taps: int) -> bool:
    """Whether blocks go over taps and channels in one: there are few channels in a group."""
    return channels < FEW_CHANNELS and taps > 1


@functools.lru_cache(maxsize=4096)
def tile_of(
    dtype: torch.dtype, together: bool, rows: int, columns: int, summands: int
) -> Mapping[str, int]:
    """Blocks of a matrix product, no larger than the product is.

    Args:
        dtype: of the operands.
        together: whether blocks go over taps and channels in one.
        rows: of the product.
        columns: of the product.
        summands: of a sum over channels, or over taps and channels, or over pixels.
    """
    most = LARGEST[dtype.itemsize, together]
    bm, bn, bk = (
        min(m, block_of(n)) for m, n in zip(most, (rows, columns, summands), strict=False)
    )
    share = most[3]
    if summands % 8 and not together:
        # Rows that begin anywhere are loaded element by element, each with an address of its own.
        bk, share = min(bk, 32), min(share, 512)
    warps = min(8, max(4, bm * bn // share))
    return {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": most[4]}


def forward_tile(x: Tensor, weight: Tensor, pixels: int, groups: int) -> Mapping[str, int]:
    """Blocks of output pixels, of a group's output channels, and of what is summed over."""
    outputs, inputs, r, s = weight.shape
    together, kept = flat(inputs, r * s), outputs // groups
    tile = tile_of(x.dtype, together, pixels, kept, r * s * inputs if together else inputs)
    return tuned("conv2d.forward", x, tile, M=pixels, K=kept, C=inputs, R=r, S=s)


@functools.lru_cache(maxsize=4096)
def parts_of(pixels: int, block: int, programs: int) -> tuple[int, int]:
    """Into how many parts a sum over pixels is split, and how many pixels make one.

    Args:
        pixels: summands in all.
        block: summands that a program takes at a time.
        programs: how many programs there are for each part.
    """
    blocks = max(1, cdiv(pixels, block))
    parts = max(1, min(PROGRAMS // max(1, programs), blocks // FEWEST_BLOCKS))
    chunk = cdiv(blocks, parts) * block
    return max(1, cdiv(pixels, chunk)), chunk


def index_type(*tensors: Tensor) -> Any:
    """Integers wide enough for every element's place."""
    return tl.int64 if any(t.numel() >= 2**31 for t in tensors) else tl.int32


def _channels_last(x: Tensor) -> Tensor:
    """The same elements, which lie in the order N, H, W, C."""
    return x.contiguous(memory_format=torch.channels_last)


def images(like: Tensor, *shape: int) -> Tensor:
    """New images of a shape in the order N, C, H, W, that lie channels last."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _options(x: Tensor, tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {
        "PRECISION": "tf32x3" if x.dtype == torch.float32 else "ieee",
        "ACC": ACCUMULATE[x.dtype],
        "INDEX": index_type(*tensors),
    }


def forward(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    partials: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The convolution, scaled, shifted, with a residual and cut off below zero, NKPQ.

    Sums of each block of pixels, and squares about its mean, go to ``partials``, (blocks, K) each.
    """
    (n, c, h, w), (k, cg, r, s) = x.shape, weight.shape
    p, q = output_size((h, w), (r, s), stride, padding, dilation)
    out, m, kg, together = images(x, n, k, p, q), n * p * q, k // groups, flat(cg, r * s)
    tile = forward_tile(x, weight, m, groups)
    if out.numel():
        blocks = cdiv(m, tile["BM"]) * cdiv(kg, tile["BN"]) * groups
        _conv2d_forward[(blocks,)](
            _channels_last(x),
            _channels_last(weight),
            None if scale is None else scale.contiguous(),
            None if shift is None else shift.contiguous(),
            None if residual is None else _channels_last(residual),
            out,
            *(partials or (None, None)),
            m,
            h,
            w,
            p,
            q,
            c,
            k,
            cg,
            kg,
            *stride,
            padding[0],
            padding[2],
            *dilation,
            R=r,
            S=s,
            RELU=relu,
            FLAT=together,
            **_options(x, (x, weight, out)),
            **tile,
        )
    return out


def forward_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution, NKPQ, and over images and pixels its mean and its variance, K each."""
    p, q = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    m, options = x.shape[0] * p * q, (stride, padding, dilation, groups)
    rows = forward_tile(x, weight, m, groups)["BM"]
    blocks = cdiv(m, rows)
    sums, squares = scratch(x, blocks, weight.shape[0]), scratch(x, blocks, weight.shape[0])
    out = forward(x, weight, None, bias, None, *options, relu=False, partials=(sums, squares))
    counts: Tensor | int = min(m, rows)
    if counts * blocks > m:
        counts = torch.full((blocks, 1), rows, device=x.device)
        counts[-1] = m - (blocks - 1) * rows
    mean = sums.sum(0) / m
    between = counts * (sums / counts - mean).square()
    return out, mean, (squares + between).sum(0) / m


def backward_x(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of x for images of ``size`` (H, W), NCHW."""
    (n, k, p, q), (_, cg, r, s), (h, w) = grad.shape, weight.shape, size
    out, kg = images(grad, n, cg * groups, h, w), k // groups
    classes = min(stride[0], h), min(stride[1], w)
    m = n * cdiv(h, stride[0]) * cdiv(w, stride[1])
    tile = tile_of(grad.dtype, False, m, cg, kg)
    tile = tuned("conv2d.backward_x", grad, tile, M=m, K=kg, C=cg, R=r, S=s)
    if out.numel():
        blocks = cdiv(m, tile["BM"]) * cdiv(cg, tile["BN"]) * groups
        _conv2d_backward_x[(blocks * classes[0] * classes[1],)](
            _channels_last(grad),
            _channels_last(weight),
            out,
            m,
            h,
            w,
            p,
            q,
            cg * groups,
            k,
            cg,
            kg,
            *stride,
            padding[0],
            padding[2],
            *dilation,
            *classes,
            *(a // math.gcd(a, b) for a, b in zip(stride, dilation, strict=True)),
            R=r,
            S=s,
            **_options(grad, (grad, weight, out)),
            **tile,
        )
    return out


def backward_weight(
    grad: Tensor,
    x: Tensor,
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of a weight of ``taps`` (R, S), KCRS."""
    (n, k, p, q), (_, c, h, w), (r, s) = grad.shape, x.shape, taps
    m, kg, cg = n * p * q, k // groups, c // groups
    few = flat(cg, r * s)
    # A program has channels of one tap, or of several where those of one do not fill a block, as
    # long as they can still be loaded in vectors.
    together = few or (r * s > 1 and cg % 16 == 0 and cg < LARGEST[x.dtype.itemsize, False][1])
    sets, columns = (1, r * s * cg) if together else (r * s, cg)
    tile = tile_of(x.dtype, few, kg, columns, m)
    tile = tuned("conv2d.backward_weight", x, tile, M=m, K=kg, C=cg, R=r, S=s)
    blocks = cdiv(kg, tile["BM"]) * sets * cdiv(columns, tile["BN"]) * groups
    parts, chunk = parts_of(m, tile["BK"], blocks)
    out = scratch(x, parts, k, r, s, cg)
    _conv2d_backward_weight[(blocks, parts)](
        _channels_last(grad),
        _channels_last(x),
        out,
        m,
        h,
        w,
        p,
        q,
        c,
        k,
        cg,
        kg,
        *stride,
        padding[0],
        padding[2],
        *dilation,
        chunk,
        R=r,
        S=s,
        FLAT=together,
        **_options(x, (grad, x, out)),
        **tile,
    )
    # A copy always: what an op returns must not be a view of something else.
    summed_KCRS = out.sum(0).permute(0, 3, 1, 2)
    return summed_KCRS.to(x.dtype, copy=True, memory_format=torch.contiguous_format)
