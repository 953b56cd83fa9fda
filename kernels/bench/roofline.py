"""The least time that a workload can take: what it must move and multiply, at a device's peaks.

Bytes are those of every input and output once: of the values, and of both gradients where they are
computed. Operations are those of the matrix products and convolutions of the reference, as
``torch.utils.flop_counter`` counts them; what is done to single elements counts as nothing, so that
the bound stays a bound.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.bench.providers import Call, flat, providers
from kernels.bench.workload import Workload


@dataclass(frozen=True)
class Work:
    """What a call has to do.

    Attributes:
        flops: additions and multiplications of matrix products.
        bytes: moved at least, in and out.
    """

    flops: int
    bytes: int


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most, as its data sheet states it.

    Attributes:
        bytes_per_s: of its memory.
        flops: by type, of dense matrix products.
        source: the data sheet.
    """

    bytes_per_s: float
    flops: dict[torch.dtype, float]
    source: str


# A product of float32 is three of TF32 on a tensor core, which has eight times the units.
_HOPPER = {
    torch.bfloat16: 989e12,
    torch.float16: 989e12,
    torch.float32: 494e12 / 3,
    torch.float64: 67e12,
}
_AMPERE = {
    torch.bfloat16: 312e12,
    torch.float16: 312e12,
    torch.float32: 156e12 / 3,
    torch.float64: 19.5e12,
}
# The first name that a device's own begins with counts.
PEAKS = {
    "NVIDIA H200": Peaks(4.8e12, _HOPPER, "NVIDIA H200 data sheet, SXM"),
    "NVIDIA H100 80GB HBM3": Peaks(3.35e12, _HOPPER, "NVIDIA H100 data sheet, SXM"),
    "NVIDIA A100-SXM4-80GB": Peaks(2.039e12, _AMPERE, "NVIDIA A100 data sheet, SXM 80 GB"),
    "NVIDIA A100-SXM4-40GB": Peaks(1.555e12, _AMPERE, "NVIDIA A100 data sheet, SXM 40 GB"),
}


def peaks(device_name: str) -> Peaks | None:
    """What a device can do, or None where its peaks are not known here."""
    return next((p for name, p in PEAKS.items() if device_name.startswith(name)), None)


@functools.cache
def work(w: Workload) -> Work | None:
    """What a workload has to do; None where sequences differ in length, which the count ignores."""
    if w.ragged:
        return None
    steps = getattr(w.case, "T", 0)
    if steps > 2:
        # Each step after the first adds the same; a loop over all takes a minute to follow.
        one, two = (_counted(_with_steps(w, n)) for n in (1, 2))
        return Work(
            flops=one.flops + (steps - 1) * (two.flops - one.flops),
            bytes=one.bytes + (steps - 1) * (two.bytes - one.bytes),
        )
    return _counted(w)


def _with_steps(w: Workload, steps: int) -> Workload:
    return replace(w, case=replace(w.case, T=steps))


def _counted(w: Workload) -> Work:
    call = providers(w.op)["reference"].build(replace(w, device="meta"))
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = _both_ways(call) if w.is_differentiated else _values(call)
    passes = {"forward": (1, 0), "backward": (0, 1), "full": (1, 1)}[w.mode]
    sizes = sum(t.numel() * t.element_size() for t in (*call.inputs, *outputs))
    flops = int(counter.get_total_flops())
    if w.mode == "backward":
        flops -= _counted(replace(w, mode="forward")).flops
    # The backward pass reads both and the outputs' gradients, and writes those of the inputs.
    return Work(flops=flops, bytes=sizes * (passes[0] + 2 * passes[1]))


def _values(call: Call) -> list[torch.Tensor]:
    with torch.no_grad():
        return flat(call.run())


def _both_ways(call: Call) -> list[torch.Tensor]:
    outputs = flat(call.run())
    grads = [torch.ones_like(o) for o in outputs]
    torch.autograd.grad(outputs, call.inputs, grads, allow_unused=True)
    return outputs


def bound_s(done: Work, dtype: torch.dtype, limits: Peaks) -> float:
    """The least seconds that a device needs."""
    return max(done.bytes / limits.bytes_per_s, done.flops / limits.flops[dtype])
