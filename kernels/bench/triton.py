"""What it costs programs to wait for each other, by the barrier that the kernels use."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from kernels.lstm.triton import meet


@triton.jit
def _barriers(arrived_p, seen_p, MEETINGS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Meet so many times; what was counted at the end goes to ``seen``, one number a program."""
    for i in range(MEETINGS):
        meet(arrived_p, (i + 1) * PROGRAMS)
    tl.store(seen_p + tl.program_id(0), tl.atomic_add(arrived_p, 0))


def barriers(programs: int, meetings: int, device: str) -> Callable[[], torch.Tensor]:
    """A call that has programs meet, and returns what each of them counted at the end.

    Args:
        programs: that run at the same time: no more than the GPU has multiprocessors.
        meetings: in one launch.
        device: a CUDA device.
    """
    arrived = torch.zeros(1, dtype=torch.int32, device=device)
    seen = torch.zeros(programs, dtype=torch.int32, device=device)

    def call() -> torch.Tensor:
        arrived.zero_()
        _barriers[(programs,)](
            arrived,
            seen,
            MEETINGS=meetings,
            PROGRAMS=programs,
            launch_cooperative_grid=True,
            num_warps=4,
        )
        return seen

    return call
