"""The addressing of a differentiable neural computer, as its paper writes it down.

Graves et al., "Hybrid computing using a neural network with dynamic external memory", Nature 538
(2016), "Methods". One write head, R read heads. With the symbols of the paper:

    content       c = softmax(beta cos(M, k))
    usage         u = (u + w_w - u w_w) prod_r (1 - f_r w_r)
    allocation    a[phi_j] = (1 - u[phi_j]) prod_{i<j} u[phi_i],  phi the slots by usage, ascending
    write         w_w = g_w (g_a a + (1 - g_a) c),  M = M (1 - w_w e') + w_w v'
    link          L[i,j] = (1 - w_i - w_j) L[i,j] + w_i p_j,  L[i,i] = 0,  p = (1 - sum w) p + w
                  f_r = L w_r,  b_r = L' w_r
    read          w_r = pi_1 b + pi_2 c + pi_3 f,  word_r = M' w_r

The cosine divides by sqrt((k k + eps) (m m + eps)), and allocation takes eps + (1 - eps) u, so
that nothing is undefined where a word or a usage is zero. Of slots with equal usage the first is
allocated first.

Shapes: B batch, N memory slots, W word size, R read heads, H keys; S the 3 modes of a read head,
in the order b, c, f.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

EPSILON = 1e-6


class State(NamedTuple):
    """What the memory carries from one step to the next."""

    memory_BNW: torch.Tensor
    usage_BN: torch.Tensor
    precedence_BN: torch.Tensor
    link_BNN: torch.Tensor
    write_BN: torch.Tensor
    read_BRN: torch.Tensor


class Interface(NamedTuple):
    """What the controller emits to steer one step, each part in its range."""

    read_keys_BRW: torch.Tensor
    read_strengths_BR: torch.Tensor
    write_key_B1W: torch.Tensor
    write_strength_B1: torch.Tensor
    erase_BW: torch.Tensor
    write_vector_BW: torch.Tensor
    free_gates_BR: torch.Tensor
    allocation_gate_B1: torch.Tensor
    write_gate_B1: torch.Tensor
    read_modes_BSR: torch.Tensor


def content(
    memory_BNW: torch.Tensor, keys_BHW: torch.Tensor, strengths_BH: torch.Tensor
) -> torch.Tensor:
    """c_BHN."""
    squared_BHN = (keys_BHW.square().sum(-1) + EPSILON)[..., None] * (
        memory_BNW.square().sum(-1) + EPSILON
    )[:, None]
    cosine_BHN = torch.einsum("bhw,bnw->bhn", keys_BHW, memory_BNW) / squared_BHN.sqrt()
    return torch.softmax(strengths_BH[..., None] * cosine_BHN, -1)


def usage(
    usage_BN: torch.Tensor,
    write_BN: torch.Tensor,
    read_BRN: torch.Tensor,
    free_gates_BR: torch.Tensor,
) -> torch.Tensor:
    """u_BN of this step, from the last step's."""
    psi_BN = (1 - free_gates_BR[..., None] * read_BRN).prod(1)
    return (usage_BN + write_BN - usage_BN * write_BN) * psi_BN


def allocation(usage_BN: torch.Tensor) -> torch.Tensor:
    """a_BN."""
    usage_BN = EPSILON + (1 - EPSILON) * usage_BN
    sorted_BN, phi_BN = usage_BN.sort(dim=1, stable=True)
    before_BN = torch.cat([torch.ones_like(sorted_BN[:, :1]), sorted_BN[:, :-1]], 1)
    return torch.zeros_like(usage_BN).scatter(1, phi_BN, (1 - sorted_BN) * before_BN.cumprod(1))


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
    write_BN = write_gate_B1 * (
        allocation_gate_B1 * allocation_BN + (1 - allocation_gate_B1) * content_BN
    )
    kept_BNW = memory_BNW * (1 - write_BN[..., None] * erase_BW[:, None])
    return kept_BNW + write_BN[..., None] * write_vector_BW[:, None], write_BN


def link(
    link_BNN: torch.Tensor,
    precedence_BN: torch.Tensor,
    write_BN: torch.Tensor,
    read_BRN: torch.Tensor,
    *,
    book: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """L_BNN and p_BN of this step, f_BRN and b_BRN.

    With ``book`` the decay is 1 - 2 w_i, which is what the book's listing computes: it adds the
    matrix of rows w_i to itself instead of to its transpose. Links of a narrower type than all else
    are rounded to it when all is computed.
    """
    kept, link_BNN = link_BNN.dtype, link_BNN.to(precedence_BN.dtype)
    w_i, w_j = write_BN[:, :, None], write_BN[:, None, :]
    decay = 1 - w_i - (w_i if book else w_j)
    off_diagonal_NN = 1 - torch.eye(link_BNN.shape[1], dtype=link_BNN.dtype, device=link_BNN.device)
    link_BNN = (decay * link_BNN + w_i * precedence_BN[:, None, :]) * off_diagonal_NN
    precedence_BN = (1 - write_BN.sum(1, keepdim=True)) * precedence_BN + write_BN
    forward_BRN = torch.einsum("bij,brj->bri", link_BNN, read_BRN)
    backward_BRN = torch.einsum("bij,bri->brj", link_BNN, read_BRN)
    return link_BNN.to(kept), precedence_BN, forward_BRN, backward_BRN


def read(
    memory_BNW: torch.Tensor,
    backward_BRN: torch.Tensor,
    content_BRN: torch.Tensor,
    forward_BRN: torch.Tensor,
    modes_BSR: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The words read, BRW, and w_r, read_BRN."""
    b, c, f = modes_BSR[..., None].unbind(1)
    read_BRN = b * backward_BRN + c * content_BRN + f * forward_BRN
    return torch.einsum("brn,bnw->brw", read_BRN, memory_BNW), read_BRN


class Parts(NamedTuple):
    """The mechanisms that a step is put together from, whatever computes them."""

    content: Callable[..., torch.Tensor]
    usage: Callable[..., torch.Tensor]
    allocation: Callable[..., torch.Tensor]
    write: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    link: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
    read: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def compose(
    parts: Parts, state: State, to: Interface, *, links: bool = True, book: bool = False
) -> tuple[torch.Tensor, State]:
    """Write, then read: the words read, BRW, and the new state. Without links, c alone is read."""
    usage_BN = parts.usage(state.usage_BN, state.write_BN, state.read_BRN, to.free_gates_BR)
    memory_BNW, write_BN = parts.write(
        state.memory_BNW,
        parts.allocation(usage_BN),
        parts.content(state.memory_BNW, to.write_key_B1W, to.write_strength_B1)[:, 0],
        to.allocation_gate_B1,
        to.write_gate_B1,
        to.erase_BW,
        to.write_vector_BW,
    )
    content_BRN = parts.content(memory_BNW, to.read_keys_BRW, to.read_strengths_BR)
    if not links:
        return torch.bmm(content_BRN, memory_BNW), State(
            memory_BNW, usage_BN, state.precedence_BN, state.link_BNN, write_BN, content_BRN
        )
    link_BNN, precedence_BN, forward_BRN, backward_BRN = parts.link(
        state.link_BNN, state.precedence_BN, write_BN, state.read_BRN, book=book
    )
    words_BRW, read_BRN = parts.read(
        memory_BNW, backward_BRN, content_BRN, forward_BRN, to.read_modes_BSR
    )
    return words_BRW, State(memory_BNW, usage_BN, precedence_BN, link_BNN, write_BN, read_BRN)


step = functools.partial(compose, Parts(content, usage, allocation, write, link, read))
