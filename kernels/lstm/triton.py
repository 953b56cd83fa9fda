"""Triton kernels of the recurrence, and the functions that launch them; no autograd here.

The projection of all inputs is one matrix product, and so is every gradient of a weight: the
kernels do what is left, the steps one after another, and backward they emit the gradients of the
gates only. Two ways, by the size of the recurrent weights:

    resident    a program owns some rows of the batch and all units. It keeps the weights and the
                state and runs through all steps.
    split       a program owns some rows and some units. Each step needs the units of all programs
                from the step before. Where all programs of a launch run at the same time they wait
                for each other at the end of a step, and one launch does all steps; else each step
                is a launch.

The cell state and all sums are float32 (float64 for float64), and so are the cell states that are
kept for the backward; all else is stored in the type it came in. The gates take the place of the
projected inputs. Backward, tanh(c) is computed again.

With lengths, a row is on while t < length, in both directions: in reverse its state waits for the
last of its steps. No sum is shared between programs, so results repeat bit for bit.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import INTERPRETED
from kernels.language import (
    ACCUMULATE,
    block_of,
    cdiv,
    dot,
    next_power_of_2,
    rounded,
    scratch,
    sigmoid,
    store,
    tanh,
)
from kernels.tuning import tuned

# Shared memory that the weights and the gates of one step may take of a program, in bytes.
RESIDENT = 147_456
ROWS, UNITS = 16, 16


@triton.jit
def lengths_of(lengths_p, b, T, B, LENGTHS: tl.constexpr):
    """The number of steps of rows b."""
    length = tl.zeros_like(b) + T
    if LENGTHS:
        length = tl.load(lengths_p + b, mask=b < B, other=0)
    return length


@triton.jit
def moment(step, length, T, REVERSE: tl.constexpr):
    """Of a step: the time t, the time before in the direction of the layer, and of which rows t is.

    Rows are on at t, have a step before it (else their initial state is before it), and have their
    last step at t.
    """
    if REVERSE:
        t = T - 1 - step
        before = t + 1
        begun = before < length
        ends = (length > 0) & (t == 0)
    else:
        t = step
        before = t - 1
        begun = (t > 0) & (length > 0)
        ends = t == length - 1
    return t, before, t < length, begun, ends


@triton.jit
def columns_of(weight_p, k, u, H: tl.constexpr):
    """Entry k, u: what unit k of the step before adds to a gate of unit u."""
    inside = (k < H)[:, None] & (u < H)[None, :]
    return tl.load(weight_p + u[None, :] * H + k[:, None], mask=inside, other=0.0)


@triton.jit
def cell(i, f, g, o, c):
    """The gates, the cell state and the output, from what goes into the gates."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_backward(i, f, g, o, before, c, dh, dc):
    """Gradients of what goes into the gates, and of the cell state ``before``."""
    squashed = tanh(c)
    dc += dh * o * (1 - squashed * squashed)
    di = dc * g * i * (1 - i)
    df = dc * before * f * (1 - f)
    dg = dc * i * (1 - g * g)
    do = dh * squashed * o * (1 - o)
    return di, df, dg, do, dc * f


@triton.jit
def load_gates(pointer, inside, H: tl.constexpr):
    """The four gates of the tile whose first gate ``pointer`` points to."""
    i = tl.load(pointer, mask=inside, other=0.0)
    f = tl.load(pointer + H, mask=inside, other=0.0)
    g = tl.load(pointer + 2 * H, mask=inside, other=0.0)
    o = tl.load(pointer + 3 * H, mask=inside, other=0.0)
    return i, f, g, o


@triton.jit
def entering(gates_p, step, row, u, inside, length, T, B, H: tl.constexpr, REVERSE: tl.constexpr):
    """What inputs add to the gates of a step; zero after the last."""
    t, _, on, _, _ = moment(step, length, T, REVERSE)
    here = gates_p + (tl.cast(t, tl.int64) * B + row) * 4 * H + u[None, :]
    return load_gates(here, inside & on[:, None] & (step < T), H)


@triton.jit
def store_gates(pointer, i, f, g, o, inside, H: tl.constexpr):
    """Store them as ``load_gates`` finds them."""
    store(pointer, i, inside)
    store(pointer + H, f, inside)
    store(pointer + 2 * H, g, inside)
    store(pointer + 3 * H, o, inside)


@triton.jit
def meet(arrived_p, target):
    """Wait until ``target`` arrivals; what was stored before any of them is seen after it."""
    tl.debug_barrier()
    tl.atomic_add(arrived_p, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrived_p, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _resident_forward(
    gates_p,
    weight_p,
    h_p,
    c_p,
    lengths_p,
    y_p,
    cells_p,
    last_h_p,
    last_c_p,
    T,
    B,
    H: tl.constexpr,
    LENGTHS: tl.constexpr,
    REVERSE: tl.constexpr,
    BB: tl.constexpr,
    BU: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    b, u = tl.program_id(0) * BB + tl.arange(0, BB), tl.arange(0, BU)
    inside = (b < B)[:, None] & (u < H)[None, :]
    row = b[:, None].to(tl.int64)
    tile = row * H + u[None, :]
    length = lengths_of(lengths_p, b, T, B, LENGTHS)
    w_i = columns_of(weight_p, u, u, H)
    w_f = columns_of(weight_p + H * H, u, u, H)
    w_g = columns_of(weight_p + 2 * H * H, u, u, H)
    w_o = columns_of(weight_p + 3 * H * H, u, u, H)
    h = tl.load(h_p + tile, mask=inside, other=0.0)
    c = tl.load(c_p + tile, mask=inside, other=0.0).to(ACC)
    to_i, to_f, to_g, to_o = entering(gates_p, 0, row, u, inside, length, T, B, H, REVERSE)
    for step in range(0, T):
        t, _, on, _, ends = moment(step, length, T, REVERSE)
        start = t.to(tl.int64) * B
        here = gates_p + (start + row) * 4 * H + u[None, :]
        on = on[:, None]
        # The next step's, so that they are there when it begins.
        next_i, next_f, next_g, next_o = entering(
            gates_p, step + 1, row, u, inside, length, T, B, H, REVERSE
        )
        i, f = dot(h, w_i, to_i.to(ACC), PRECISION), dot(h, w_f, to_f.to(ACC), PRECISION)
        g, o = dot(h, w_g, to_g.to(ACC), PRECISION), dot(h, w_o, to_o.to(ACC), PRECISION)
        i, f, g, o, new_c, new_h = cell(i, f, g, o, c)
        c = tl.where(on, new_c, c)
        h = tl.where(on, rounded(new_h, h.dtype), h)
        # No thread overwrites a gate that another has yet to read.
        tl.debug_barrier()
        store_gates(here, i, f, g, o, inside & on, H)
        tl.store(cells_p + start * H + tile, c, mask=inside)
        store(y_p + start * H + tile, tl.where(on, new_h, 0.0), inside)
        store(last_h_p + tile, new_h, inside & ends[:, None])
        store(last_c_p + tile, c, inside & ends[:, None])
        to_i, to_f, to_g, to_o = next_i, next_f, next_g, next_o


@triton.jit
def _resident_backward(
    grad_y_p,
    grad_h_p,
    grad_c_p,
    weight_p,
    c_p,
    lengths_p,
    gates_p,
    cells_p,
    d_gates_p,
    d_c_p,
    T,
    B,
    H: tl.constexpr,
    LENGTHS: tl.constexpr,
    REVERSE: tl.constexpr,
    BB: tl.constexpr,
    BU: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    b, u = tl.program_id(0) * BB + tl.arange(0, BB), tl.arange(0, BU)
    inside = (b < B)[:, None] & (u < H)[None, :]
    row = b[:, None].to(tl.int64)
    tile = row * H + u[None, :]
    length = lengths_of(lengths_p, b, T, B, LENGTHS)
    square = u[:, None] * H + u[None, :]
    within = (u < H)[:, None] & (u < H)[None, :]
    w_i = tl.load(weight_p + square, mask=within, other=0.0)
    w_f = tl.load(weight_p + H * H + square, mask=within, other=0.0)
    w_g = tl.load(weight_p + 2 * H * H + square, mask=within, other=0.0)
    w_o = tl.load(weight_p + 3 * H * H + square, mask=within, other=0.0)
    kind: tl.constexpr = weight_p.dtype.element_ty
    initial = tl.load(c_p + tile, mask=inside, other=0.0).to(ACC)
    dh = tl.load(grad_h_p + tile, mask=inside, other=0.0).to(ACC)
    dc = tl.load(grad_c_p + tile, mask=inside, other=0.0).to(ACC)
    for step in range(0, T):
        t, before, on, begun, _ = moment(T - 1 - step, length, T, REVERSE)
        start = t.to(tl.int64) * B
        on = on[:, None]
        some = inside & on
        i, f, g, o = load_gates(gates_p + (start + row) * 4 * H + u[None, :], some, H)
        i, f, g, o = i.to(ACC), f.to(ACC), g.to(ACC), o.to(ACC)
        c = tl.load(cells_p + start * H + tile, mask=some, other=0.0)
        there = cells_p + before.to(tl.int64) * B * H + tile
        before_c = tl.load(there, mask=some & begun[:, None], other=0.0)
        before_c = tl.where(begun[:, None], before_c, initial)
        all_dh = dh + tl.load(grad_y_p + start * H + tile, mask=some, other=0.0).to(ACC)
        di, df, dg, do, new_dc = cell_backward(i, f, g, o, before_c, c, all_dh, dc)
        di, df = tl.where(on, di, 0.0), tl.where(on, df, 0.0)
        dg, do = tl.where(on, dg, 0.0), tl.where(on, do, 0.0)
        store_gates(d_gates_p + (start + row) * 4 * H + u[None, :], di, df, dg, do, inside, H)
        new_dh = dot(rounded(di, kind), w_i, tl.zeros((BB, BU), ACC), PRECISION)
        new_dh = dot(rounded(df, kind), w_f, new_dh, PRECISION)
        new_dh = dot(rounded(dg, kind), w_g, new_dh, PRECISION)
        new_dh = dot(rounded(do, kind), w_o, new_dh, PRECISION)
        dh, dc = tl.where(on, new_dh, dh), tl.where(on, new_dc, dc)
    tl.store(d_c_p + tile, dc, mask=inside)


@triton.jit(do_not_specialize=["first"])
def _split_forward(
    gates_p,
    weight_p,
    h_p,
    c_p,
    lengths_p,
    y_p,
    cells_p,
    last_h_p,
    last_c_p,
    arrived_p,
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    LENGTHS: tl.constexpr,
    REVERSE: tl.constexpr,
    MEET: tl.constexpr,
    BB: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Steps ``first`` to ``first + steps`` of some units; what came before is in ``y``."""
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    u = tl.program_id(0) * BU + tl.arange(0, BU)
    inside = (b < B)[:, None] & (u < H)[None, :]
    row = b[:, None].to(tl.int64)
    tile = row * H + u[None, :]
    length = lengths_of(lengths_p, b, T, B, LENGTHS)
    _, before, _, begun, _ = moment(first, length, T, REVERSE)
    begun = begun[:, None]
    c = tl.load(c_p + tile, mask=inside, other=0.0).to(ACC)
    earlier = tl.load(cells_p + before.to(tl.int64) * B * H + tile, mask=inside & begun, other=0.0)
    c = tl.where(begun, earlier, c)
    for step in range(first, first + steps):
        t, before, on, begun, ends = moment(step, length, T, REVERSE)
        start = t.to(tl.int64) * B
        here = gates_p + (start + row) * 4 * H + u[None, :]
        on, begun = on[:, None], begun[:, None]
        i, f, g, o = load_gates(here, inside & on, H)
        i, f, g, o = i.to(ACC), f.to(ACC), g.to(ACC), o.to(ACC)
        for k0 in range(0, H, BK):
            k = k0 + tl.arange(0, BK)
            some = (b < B)[:, None] & (k < H)[None, :] & on
            at = row * H + k[None, :]
            # Other programs wrote it: from the second-level cache, which they all see.
            h = tl.load(
                y_p + before.to(tl.int64) * B * H + at,
                mask=some & begun,
                other=0.0,
                cache_modifier=".cg",
            )
            h = tl.where(begun, h, tl.load(h_p + at, mask=some & ~begun, other=0.0))
            i = dot(h, columns_of(weight_p, k, u, H), i, PRECISION)
            f = dot(h, columns_of(weight_p + H * H, k, u, H), f, PRECISION)
            g = dot(h, columns_of(weight_p + 2 * H * H, k, u, H), g, PRECISION)
            o = dot(h, columns_of(weight_p + 3 * H * H, k, u, H), o, PRECISION)
        i, f, g, o, new_c, new_h = cell(i, f, g, o, c)
        c = tl.where(on, new_c, c)
        # No thread overwrites a gate that another has yet to read.
        tl.debug_barrier()
        store_gates(here, i, f, g, o, inside & on, H)
        tl.store(cells_p + start * H + tile, c, mask=inside)
        store(y_p + start * H + tile, tl.where(on, new_h, 0.0), inside)
        store(last_h_p + tile, new_h, inside & ends[:, None])
        store(last_c_p + tile, c, inside & ends[:, None])
        if MEET:
            meet(arrived_p + tl.program_id(1), (step - first + 1) * tl.num_programs(0))


@triton.jit(do_not_specialize=["first"])
def _split_backward(
    grad_y_p,
    grad_h_p,
    weight_p,
    c_p,
    lengths_p,
    gates_p,
    cells_p,
    d_gates_p,
    d_c_p,
    arrived_p,
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    LENGTHS: tl.constexpr,
    REVERSE: tl.constexpr,
    MEET: tl.constexpr,
    BB: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """As ``_split_forward``, from the last step on; ``d_c`` holds the cell state's gradient."""
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    u = tl.program_id(0) * BU + tl.arange(0, BU)
    inside = (b < B)[:, None] & (u < H)[None, :]
    row = b[:, None].to(tl.int64)
    tile = row * H + u[None, :]
    length = lengths_of(lengths_p, b, T, B, LENGTHS)
    initial = tl.load(c_p + tile, mask=inside, other=0.0).to(ACC)
    dc = tl.load(d_c_p + tile, mask=inside, other=0.0)
    for step in range(first, first + steps):
        t, before, on, begun, ends = moment(T - 1 - step, length, T, REVERSE)
        after = 2 * t - before
        start = t.to(tl.int64) * B
        on, begun = on[:, None], begun[:, None]
        some = inside & on
        # What no other program writes is loaded first, so that it is there when the products are.
        i, f, g, o = load_gates(gates_p + (start + row) * 4 * H + u[None, :], some, H)
        i, f, g, o = i.to(ACC), f.to(ACC), g.to(ACC), o.to(ACC)
        c = tl.load(cells_p + start * H + tile, mask=some, other=0.0)
        there = cells_p + before.to(tl.int64) * B * H + tile
        before_c = tl.load(there, mask=some & begun, other=0.0)
        before_c = tl.where(begun, before_c, initial)
        dh = tl.load(grad_y_p + start * H + tile, mask=some, other=0.0).to(ACC)
        dh += tl.load(grad_h_p + tile, mask=inside & ends[:, None], other=0.0).to(ACC)
        for k0 in range(0, 4 * H, BK):
            k = k0 + tl.arange(0, BK)
            d = tl.load(
                d_gates_p + (after.to(tl.int64) * B + row) * 4 * H + k[None, :],
                mask=(b < B)[:, None] & (k < 4 * H)[None, :] & on & (step > 0),
                other=0.0,
                cache_modifier=".cg",
            )
            w = tl.load(
                weight_p + k[:, None] * H + u[None, :],
                mask=(k < 4 * H)[:, None] & (u < H)[None, :],
                other=0.0,
            )
            dh = dot(d, w, dh, PRECISION)
        di, df, dg, do, new_dc = cell_backward(i, f, g, o, before_c, c, dh, dc)
        di, df = tl.where(on, di, 0.0), tl.where(on, df, 0.0)
        dg, do = tl.where(on, dg, 0.0), tl.where(on, do, 0.0)
        store_gates(d_gates_p + (start + row) * 4 * H + u[None, :], di, df, dg, do, inside, H)
        dc = tl.where(on, new_dc, dc)
        if MEET:
            meet(arrived_p + tl.program_id(1), (step - first + 1) * tl.num_programs(0))
    tl.store(d_c_p + tile, dc, mask=inside)


def is_resident(units: int, dtype: torch.dtype) -> bool:
    """Whether one program can keep all recurrent weights."""
    return _resident_bytes(units, dtype) <= RESIDENT


def programs_at_once(device: torch.device) -> int:
    """How many programs certainly run at the same time."""
    if INTERPRETED:
        return 1
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    # No device: the kernels are compiled only, as for the oldest data centre GPU they run on.
    return 108


def steps_per_launch(programs: int, steps: int, device: torch.device) -> int:
    """All, where the programs can wait for each other, else one."""
    return steps if programs <= programs_at_once(device) else 1


def gates_again(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> Tensor:
    """The gates that ``forward`` computed, TBG: all steps in one product, for y is known by now.

    Beyond a sequence's length stands anything, as after ``forward``.
    """
    t, b, units = y.shape
    if not y.numel():
        return x.new_empty(t, b, 4 * units)
    before = torch.cat([y[1:], h[None]] if reverse else [h[None], y[:-1]])
    if reverse and lengths is not None:
        last = (torch.arange(t, device=y.device)[:, None] == lengths - 1)[..., None]
        before = torch.where(last, h, before)
    gates = F.linear(x, weight_ih, bias).reshape(t * b, 4 * units)
    gates.addmm_(before.view(t * b, units), weight_hh.t())
    gates[:, : 2 * units].sigmoid_()
    gates[:, 2 * units : 3 * units].tanh_()
    gates[:, 3 * units :].sigmoid_()
    return gates.view(t, b, 4 * units)


def _options(like: Tensor, lengths: Tensor | None, reverse: bool, units: int) -> dict[str, object]:
    return {
        "H": units,
        "LENGTHS": lengths is not None,
        "REVERSE": reverse,
        # Tensor cores multiply float32 in three parts.
        "PRECISION": "tf32x3" if like.dtype == torch.float32 else "ieee",
        "ACC": ACCUMULATE[like.dtype],
    }


def _resident_bytes(units: int, dtype: torch.dtype) -> int:
    block, parts = block_of(units), 2 if dtype == torch.float32 else 1
    return 4 * (parts * block + ROWS) * block * dtype.itemsize


def _resident_tile(units: int, dtype: torch.dtype, backward: bool = False) -> Mapping[str, int]:
    large = _resident_bytes(units, dtype) > RESIDENT // 3
    # In float32 each part of the weights is held twice; backward, eight warps spill.
    warps = 8 if large and not (backward and dtype == torch.float32) else 4
    # One stage: loads that run ahead would take the shared memory that the weights need.
    return {"BB": ROWS, "BU": block_of(units), "num_warps": warps, "num_stages": 1}


def _split_tile(
    batch: int, dtype: torch.dtype, units: int, backward: bool = False
) -> Mapping[str, int]:
    rows = min(64, max(ROWS, next_power_of_2(batch)))
    # The parts of float32, and what tensor cores do not multiply, are held in registers: less at a
    # time, by more threads. Rows that begin anywhere are loaded element by element, each with an
    # address of its own.
    inner, warps = (64, 4) if dtype.itemsize == 2 else (16, 8)
    if units % 8:
        inner, warps = min(inner, 32), 8
    elif backward and dtype.itemsize == 2 and rows == ROWS:
        # One product of 16 by 16, which is two instructions wide: more warps would repeat it.
        warps = 2
    return {"BB": rows, "BU": UNITS, "BK": inner, "num_warps": warps}


def _launch_split(
    kernel: object,
    args: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    options: dict[str, object],
    at_most: int,
    backward: bool = False,
) -> None:
    """Launch all steps at once, or ``at_most`` so many (0: all), or one after another."""
    (t, b, h), like = sizes, args[0]
    tile = _split_tile(b, like.dtype, h, backward)
    grid = (cdiv(h, tile["BU"]), cdiv(b, tile["BB"]))
    steps = steps_per_launch(grid[0] * grid[1], t, like.device)
    steps = min(steps, at_most or steps)
    meeting = {"MEET": True, "launch_cooperative_grid": True} if steps > 1 else {"MEET": False}
    arrived = torch.zeros(cdiv(t, steps), grid[1], dtype=torch.int32, device=like.device)
    name = "lstm.split_forward" if kernel is _split_forward else "lstm.split_backward"
    tile = tuned(name, like, tile, ("BK", "num_warps"), B=b, H=h)
    for launch, first in enumerate(range(0, t, steps)):
        kernel[grid](  # type: ignore[index]
            *args,
            arrived[launch] if meeting["MEET"] else arrived,
            first,
            min(steps, t - first),
            t,
            b,
            **options,
            **tile,
            **meeting,
        )


def forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    at_most: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y_TBH, the last h_BH and c_BH, and for the backward gates_TBG and the cell states, TBH."""
    (t, b, _), units = x.shape, weight_hh.shape[1]
    gates = F.linear(x, weight_ih, bias).contiguous()
    y = x.new_empty(t, b, units)
    cells = scratch(x, t, b, units)
    # The kernels leave out the rows that have no step.
    last_h, last_c = (p.clone(memory_format=torch.contiguous_format) for p in (h, c))
    if y.numel():
        args = (
            gates,
            weight_hh.contiguous(),
            h.contiguous(),
            c.contiguous(),
            h if lengths is None else lengths,
            y,
            cells,
            last_h,
            last_c,
        )
        options = _options(x, lengths, reverse, units)
        if is_resident(units, x.dtype):
            grid = (cdiv(b, ROWS),)
            tile = _resident_tile(units, x.dtype)
            tile = tuned("lstm.resident_forward", x, tile, ("num_warps",), B=b, H=units)
            _resident_forward[grid](*args, t, b, **options, **tile)
        else:
            _launch_split(_split_forward, args, (t, b, units), options, at_most)
    return y, last_h, last_c, gates, cells


def backward(
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h: Tensor,
    c: Tensor,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    at_most: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the order in which ``forward`` takes its tensors."""
    (t, b, inputs), units = x.shape, weight_hh.shape[1]
    d_gates = torch.empty_like(gates)
    d_c = grad_c.to(cells.dtype, copy=True, memory_format=torch.contiguous_format)
    if y.numel():
        options = _options(x, lengths, reverse, units)
        rest = (
            weight_hh.contiguous(),
            c.contiguous(),
            h if lengths is None else lengths,
            gates,
            cells,
            d_gates,
            d_c,
        )
        args = (grad_y.contiguous(), grad_h.contiguous())
        if is_resident(units, x.dtype):
            grid = (cdiv(b, ROWS),)
            tile = _resident_tile(units, x.dtype, backward=True)
            tile = tuned("lstm.resident_backward", x, tile, ("num_warps",), B=b, H=units)
            _resident_backward[grid](*args, grad_c.contiguous(), *rest, t, b, **options, **tile)
        else:
            sizes = (t, b, units)
            _launch_split(_split_backward, (*args, *rest), sizes, options, at_most, backward=True)
    flat_d, flat_x = d_gates.view(t * b, 4 * units), _known(x, lengths).reshape(t * b, inputs)
    first_d, d_h = _first(d_gates, grad_h, lengths, reverse)
    d_h = torch.addmm(d_h, first_d, weight_hh)
    # What the recurrent weights were multiplied with: y of the step before, or the initial h.
    later_d, earlier_y = (d_gates[:-1], y[1:]) if reverse else (d_gates[1:], y[:-1])
    d_weight_hh = torch.addmm(
        first_d.t() @ h,
        later_d.reshape(-1, 4 * units).t(),
        earlier_y.reshape(-1, units),
    )
    return (
        (flat_d @ weight_ih).view(x.shape),
        flat_d.t() @ flat_x,
        d_weight_hh,
        flat_d.sum(0),
        d_h,
        d_c.to(c.dtype, copy=True),
    )


def _known(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The inputs with zeros beyond the lengths, where anything may stand: NaN times 0 is NaN."""
    if lengths is None:
        return x
    t_T1 = torch.arange(x.shape[0], device=x.device)[:, None]
    return torch.where((t_T1 < lengths)[..., None], x, 0)


def _first(
    d_gates: Tensor, grad_h: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates of each row's first step, zero without one, and of an h unchanged."""
    t, b = d_gates.shape[:2]
    if t == 0:
        return d_gates.new_zeros(d_gates.shape[1:]), grad_h
    if lengths is None:
        return d_gates[-1 if reverse else 0], torch.zeros_like(grad_h)
    begin = (lengths.clamp(1, t) - 1).long() if reverse else torch.zeros_like(lengths).long()
    kept = torch.where((lengths <= 0)[:, None], grad_h, 0)
    return d_gates[begin, torch.arange(b, device=begin.device)], kept
