"""The kernel as a PyTorch op with a gradient. Kept are inputs, weightings and those by content."""

import torch
from torch import Tensor

from kernels.ntm import triton as launch
from kernels.ntm.reference import Head
from kernels.register import define, empty_like


def _address(
    memory: Tensor,
    weights: Tensor,
    keys: Tensor,
    strengths: Tensor,
    gates: Tensor,
    shifts: Tensor,
    sharpness: Tensor,
) -> tuple[Tensor, Tensor]:
    return launch.address_forward(memory, weights, keys, strengths, gates, shifts, sharpness)


def _address_backward(
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
    head = (keys, strengths, gates, shifts, sharpness)
    return launch.address_backward(grad, memory, weights, *head, out, content)


_address_op = define(
    "ntm_address",
    _address,
    _address_backward,
    fake=lambda memory, weights, *rest: empty_like(weights, weights),
    fake_backward=lambda grad, *saved: empty_like(*saved[:7]),
    save=lambda inputs, out: (*inputs, *out),
    outputs=1,
    autocast=torch.float32,
)


def address(memory: Tensor, weights: Tensor, head: Head) -> Tensor:
    """w_BHN of this step, from the last step's."""
    return _address_op(memory, weights, *head)[0]  # type: ignore[no-any-return]
