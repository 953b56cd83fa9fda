"""Addressing of a neural Turing machine, as its paper writes it down.

Graves, Wayne and Danihelka, "Neural Turing Machines" (2014), section 3.3, equations 5 to 9:

    w^c = softmax(beta cos(M, k))          by content
    w^g = g w^c + (1 - g) w_{t-1}          interpolated with the last weighting
    w~(i) = sum over k of s(k) w^g(i - k)  shifted, indices modulo N
    w(i) = w~(i)^gamma / sum of w~^gamma   sharpened

The cosine is that of ``kernels.dnc``, and sharpening takes w~ + eps, so that the gradient of gamma
is finite where a weight is zero.

Shapes: B batch, N memory slots, W word size, H heads; S shifts, from -(S // 2) to S // 2.
"""

from typing import NamedTuple

import torch

from kernels.dnc.reference import EPSILON, content


class Head(NamedTuple):
    """What the controller emits to steer the heads, each part in its range."""

    keys_BHW: torch.Tensor
    strengths_BH: torch.Tensor
    gates_BH1: torch.Tensor
    shifts_BHS: torch.Tensor
    sharpness_BH1: torch.Tensor


def address(memory_BNW: torch.Tensor, weights_BHN: torch.Tensor, head: Head) -> torch.Tensor:
    """w_BHN of this step, from the last step's."""
    content_BHN = content(memory_BNW, head.keys_BHW, head.strengths_BH)
    gated_BHN = head.gates_BH1 * content_BHN + (1 - head.gates_BH1) * weights_BHN
    shifted_BHN = torch.zeros_like(gated_BHN)
    for tap in range(head.shifts_BHS.shape[2]):
        by = tap - head.shifts_BHS.shape[2] // 2
        shifted_BHN = shifted_BHN + head.shifts_BHS[..., tap, None] * gated_BHN.roll(by, 2)
    raised_BHN = (shifted_BHN + EPSILON) ** head.sharpness_BH1
    return raised_BHN / raised_BHN.sum(-1, keepdim=True)
