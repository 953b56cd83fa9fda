"""Attention as its papers write it down.

Vaswani et al., "Attention Is All You Need" (2017), section 3.2.1, for each head:

    O = softmax(scale Q K') V

Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate"
(2014), section 3.1 and appendix A.1.2, with both projections already applied:

    e_l = v . tanh(q + k_l),  w = softmax(e),  c = sum over l of w_l x_l

Keys from a length on are not seen, and under a causal mask query i sees the keys up to key i. A
query that sees no key gets weights of zero, hence an output and gradients of zero.

Shapes: B batch, H heads, M queries, N keys, D size of a head; of additive attention L keys, A size
of query and keys, D size of the values.
"""

import torch


def attention(
    q_BHMD: torch.Tensor,
    k_BHND: torch.Tensor,
    v_BHND: torch.Tensor,
    *,
    key_lengths: torch.Tensor | None = None,
    causal: bool = False,
    scale: float,
) -> torch.Tensor:
    """O_BHMD."""
    scores_BHMN = scale * torch.einsum("bhmd,bhnd->bhmn", q_BHMD, k_BHND)
    seen_BHMN = torch.ones_like(scores_BHMN, dtype=torch.bool)
    if causal:
        seen_BHMN = seen_BHMN.tril()
    if key_lengths is not None:
        seen_BHMN = seen_BHMN & before(key_lengths, scores_BHMN.shape[3])[:, None, None]
    return torch.einsum("bhmn,bhnd->bhmd", softmax(scores_BHMN, seen_BHMN), v_BHND)


def additive(
    query_BA: torch.Tensor,
    keys_BLA: torch.Tensor,
    values_BLD: torch.Tensor,
    v_A: torch.Tensor,
    *,
    key_lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_BD and w, weights_BL."""
    scores_BL = torch.einsum("a,bla->bl", v_A, torch.tanh(query_BA[:, None] + keys_BLA))
    seen_BL = torch.ones_like(scores_BL, dtype=torch.bool)
    if key_lengths is not None:
        seen_BL = before(key_lengths, scores_BL.shape[1])
    weights_BL = softmax(scores_BL, seen_BL)
    return torch.einsum("bl,bld->bd", weights_BL, values_BLD), weights_BL


def before(lengths_B: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether a key comes before the length, (B, keys)."""
    return torch.arange(keys, device=lengths_B.device) < lengths_B[:, None]


def softmax(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension of what is seen, and zero elsewhere."""
    # The lowest number instead of minus infinity: a row of nothing else has a gradient, not NaN.
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~seen, lowest), -1).masked_fill(~seen, 0)
