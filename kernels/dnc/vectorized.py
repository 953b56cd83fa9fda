"""The same step in the fewest and cheapest operators PyTorch has: no loop over heads or slots.

Products of many factors become sums of logarithms or running products, elementwise chains become
``addcmul`` and ``lerp``, reads become batched matrix products. The equations are in
``kernels.dnc.reference``; shapes as there.
"""

import functools

import torch

from kernels.dnc.reference import EPSILON, Parts, compose


def content(
    memory_BNW: torch.Tensor, keys_BHW: torch.Tensor, strengths_BH: torch.Tensor
) -> torch.Tensor:
    """c_BHN."""
    products_BHN = torch.bmm(keys_BHW, memory_BNW.transpose(1, 2))
    words_B1N = (memory_BNW * memory_BNW).sum(-1)[:, None] + EPSILON
    keys_BH1 = (keys_BHW * keys_BHW).sum(-1, keepdim=True) + EPSILON
    cosine_BHN = products_BHN / (keys_BH1 * words_B1N).sqrt()
    return torch.softmax(strengths_BH[..., None] * cosine_BHN, -1)


def usage(
    usage_BN: torch.Tensor,
    write_BN: torch.Tensor,
    read_BRN: torch.Tensor,
    free_gates_BR: torch.Tensor,
) -> torch.Tensor:
    """u_BN of this step, from the last step's."""
    retained_BRN = 1 - free_gates_BR[..., None] * read_BRN
    psi_BN = functools.reduce(torch.mul, retained_BRN.unbind(1))
    return torch.addcmul(usage_BN + write_BN, usage_BN, write_BN, value=-1) * psi_BN


def allocation(usage_BN: torch.Tensor) -> torch.Tensor:
    """a_BN.

    The product of the usages before a slot is the exponential of a sum of logarithms, whose
    gradient needs no division by a usage of zero.
    """
    usage_BN = EPSILON + (1 - EPSILON) * usage_BN
    sorted_BN, phi_BN = usage_BN.sort(dim=1, stable=True)
    log_BN = sorted_BN.log()
    sorted_allocation_BN = (1 - sorted_BN) * (log_BN.cumsum(1) - log_BN).exp()
    return torch.zeros_like(usage_BN).scatter(1, phi_BN, sorted_allocation_BN)


def write(
    memory_BNW: torch.Tensor,
    allocation_BN: torch.Tensor,
    content_BN: torch.Tensor,
    allocation_gate_B1: torch.Tensor,
    write_gate_B1: torch.Tensor,
    erase_BW: torch.Tensor,
    write_vector_BW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """M_BNW of this step and w_w, write_BN."""
    write_BN = write_gate_B1 * torch.lerp(content_BN, allocation_BN, allocation_gate_B1)
    change_BNW = torch.addcmul(write_vector_BW[:, None], memory_BNW, erase_BW[:, None], value=-1)
    return torch.addcmul(memory_BNW, write_BN[..., None], change_BNW), write_BN


def link(
    link_BNN: torch.Tensor,
    precedence_BN: torch.Tensor,
    write_BN: torch.Tensor,
    read_BRN: torch.Tensor,
    *,
    book: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """L_BNN and p_BN of this step, f_BRN and b_BRN."""
    w_i, w_j = write_BN[:, :, None], write_BN[:, None, :]
    moved_BNN = torch.lerp(link_BNN, precedence_BN[:, None, :], w_i)
    decayed_BNN = torch.addcmul(moved_BNN, w_i if book else w_j, link_BNN, value=-1)
    link_BNN = decayed_BNN * _off_diagonal(link_BNN)
    total_B1 = write_BN.sum(1, keepdim=True)
    precedence_BN = torch.addcmul(precedence_BN + write_BN, total_B1, precedence_BN, value=-1)
    forward_BRN = torch.bmm(read_BRN, link_BNN.transpose(1, 2))
    return link_BNN, precedence_BN, forward_BRN, torch.bmm(read_BRN, link_BNN)


def read(
    memory_BNW: torch.Tensor,
    backward_BRN: torch.Tensor,
    content_BRN: torch.Tensor,
    forward_BRN: torch.Tensor,
    modes_BSR: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The words read, BRW, and w_r, read_BRN."""
    b, c, f = modes_BSR[..., None].unbind(1)
    read_BRN = torch.addcmul(torch.addcmul(b * backward_BRN, c, content_BRN), f, forward_BRN)
    return torch.bmm(read_BRN, memory_BNW), read_BRN


def _off_diagonal(link_BNN: torch.Tensor) -> torch.Tensor:
    """1 - I for a link matrix."""
    n, dtype, device = link_BNN.shape[1], link_BNN.dtype, link_BNN.device
    made = _made_off_diagonal if torch.compiler.is_compiling() else _cached_off_diagonal
    return made(n, dtype, device)


def _made_off_diagonal(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # A cached tensor may meet autograd first inside inference mode, and outlive it.
    with torch.inference_mode(False):
        return 1 - torch.eye(n, dtype=dtype, device=device)


_cached_off_diagonal = functools.lru_cache(maxsize=64)(_made_off_diagonal)

step = functools.partial(compose, Parts(content, usage, allocation, write, link, read))
