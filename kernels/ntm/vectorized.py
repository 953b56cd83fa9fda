"""The same addressing in fewer operators; the equations are in ``kernels.ntm.reference``."""

import torch

from kernels.dnc.vectorized import content
from kernels.ntm.reference import EPSILON, Head


def address(memory_BNW: torch.Tensor, weights_BHN: torch.Tensor, head: Head) -> torch.Tensor:
    """w_BHN of this step, from the last step's."""
    content_BHN = content(memory_BNW, head.keys_BHW, head.strengths_BH)
    gated_BHN = torch.lerp(weights_BHN, content_BHN, head.gates_BH1)
    shifts = head.shifts_BHS[..., None].unbind(2)
    middle = len(shifts) // 2
    shifted_BHN = shifts[middle] * gated_BHN
    for tap, share in enumerate(shifts):
        if tap != middle:
            shifted_BHN = torch.addcmul(shifted_BHN, share, gated_BHN.roll(tap - middle, 2))
    return torch.softmax(head.sharpness_BH1 * (shifted_BHN + EPSILON).log(), -1)
