"""The same in PyTorch's own operators; the formulas are in ``kernels.attention.reference``."""

import torch
from torch.nn import functional as F

from kernels.attention.reference import before, softmax


def attention(
    q_BHMD: torch.Tensor,
    k_BHND: torch.Tensor,
    v_BHND: torch.Tensor,
    *,
    key_lengths: torch.Tensor | None = None,
    causal: bool = False,
    scale: float,
) -> torch.Tensor:
    """O_BHMD, with a mask only where there are lengths: without, faster kernels apply."""
    attend = F.scaled_dot_product_attention
    if key_lengths is None:
        return attend(q_BHMD, k_BHND, v_BHND, is_causal=causal, scale=scale)
    M, N = q_BHMD.shape[2], k_BHND.shape[2]
    # Only a length of zero leaves a query without keys. What it is given instead is cut off after.
    empty_B = key_lengths <= 0
    seen_B1MN = (before(key_lengths, N) | empty_B[:, None])[:, None, None].expand(-1, 1, M, N)
    if causal:
        seen_B1MN = seen_B1MN.tril()
    out_BHMD = attend(q_BHMD, k_BHND, v_BHND, attn_mask=seen_B1MN, scale=scale)
    return out_BHMD.masked_fill(empty_B[:, None, None, None], 0)


def additive(
    query_BA: torch.Tensor,
    keys_BLA: torch.Tensor,
    values_BLD: torch.Tensor,
    v_A: torch.Tensor,
    *,
    key_lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_BD and w, weights_BL."""
    scores_BL = torch.tanh(query_BA[:, None] + keys_BLA) @ v_A
    if key_lengths is None:
        weights_BL = torch.softmax(scores_BL, -1)
    else:
        weights_BL = softmax(scores_BL, before(key_lengths, scores_BL.shape[1]))
    return torch.bmm(weights_BL[:, None], values_BLD)[:, 0], weights_BL
