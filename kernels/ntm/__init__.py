"""Addressing of a neural Turing machine in one op: content, interpolation, shift, sharpening.

The equations are in ``kernels.ntm.reference``; for ``impl`` see ``kernels.dispatch``. All tensors
have one floating-point dtype and one device; every tensor gets a gradient. The gradients of
``triton`` are not differentiable again. An autocast region computes in float32: tensors are cast
to it first, those of float64 excepted.

Shapes: B batch, N memory slots, W word size, H heads; S shifts, an odd number.
"""

from typing import Any

from torch import Tensor

from kernels import checks
from kernels.autocast import in_float32
from kernels.dispatch import Op
from kernels.ntm import reference, vectorized
from kernels.ntm.reference import EPSILON, Head

__all__ = ["EPSILON", "Head", "address"]

MOST_SLOTS, MOST_WORD = 8192, 1024


def _triton() -> Any:
    from kernels.ntm import op

    return op.address


def _refusals(memory: Tensor, weights: Tensor, head: Head) -> list[str]:
    n, w = memory.shape[1:]
    reasons = [f"{n} slots exceed {MOST_SLOTS}"] if n > MOST_SLOTS else []
    return reasons + ([f"words of {w} exceed {MOST_WORD}"] if w > MOST_WORD else [])


_address = Op("ntm.address", reference.address, vectorized.address, _triton, _refusals)


@in_float32
def address(memory: Tensor, weights: Tensor, head: Head, *, impl: str | None = None) -> Tensor:
    """The heads' weightings of this step, from the last step's.

    Args:
        memory: (B, N, W).
        weights: (B, H, N) of the last step.
        head: keys (B, H, W), strengths (B, H), gates (B, H, 1) in [0, 1], shifts (B, H, S) that sum
            to 1, sharpness (B, H, 1) of at least 1.
        impl: what computes it.

    Returns:
        (B, H, N), each row summing to 1.

    Raises:
        ValueError: other shapes or devices, an even number of shifts; an unknown ``impl``.
        TypeError: other dtypes, a ``head`` that is none.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    checks.kind("head", head, Head)
    sizes = checks.tensors(
        {
            "memory": (memory, "B N W"),
            "weights": (weights, "B H N"),
            "head.keys": (head.keys_BHW, "B H W"),
            "head.strengths": (head.strengths_BH, "B H"),
            "head.gates": (head.gates_BH1, "B H G"),
            "head.shifts": (head.shifts_BHS, "B H S"),
            "head.sharpness": (head.sharpness_BH1, "B H G"),
        },
        G=1,
    )
    if sizes["S"] % 2 == 0:
        raise ValueError(f"head.shifts holds an odd number of shifts, got {sizes['S']}")
    return _address(memory, weights, head, impl=impl)  # type: ignore[no-any-return]
