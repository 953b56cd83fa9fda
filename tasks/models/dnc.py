"""The differentiable neural computer (DNC) of Graves et al., Nature 538 (2016), in plain PyTorch.

Each addressing mechanism is one pure function that carries the paper's symbol at the line that
computes it; `step` puts them in the paper's order, and `DNC` adds controller and interface.

Symbols: M memory, u usage, a allocation, c content, w_w and w_r write and read weightings, p
precedence, L temporal links, f and b forward and backward, phi free list, psi retention.
Shapes: B batch, T time, N memory slots, W word size, R read heads, H keys, C hidden units of the
controller, X input, Y output; S the 3 modes of a read head, in the order b, c, f. One write head.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

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


def content_weighting(
    memory_BNW: torch.Tensor, keys_BHW: torch.Tensor, strengths_BH: torch.Tensor
) -> torch.Tensor:
    """C(M, k, beta): softmax over the slots of beta times the cosine of key and word."""
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
    """u_t from u_{t-1} and the last weightings: slots written are used, slots freed are not."""
    retained_BRN = 1 - free_gates_BR[..., None] * read_BRN
    retention_BN = reduce(torch.mul, retained_BRN.unbind(1))  # psi
    used_BN = torch.addcmul(usage_BN + write_BN, usage_BN, write_BN, value=-1)
    return used_BN * retention_BN


def allocation(usage_BN: torch.Tensor) -> torch.Tensor:
    """a_t: slots by free space, the emptiest first; of equal slots the first.

    The paper's product of the usages before a slot in the free list is the exponential of a sum of
    logarithms, whose gradient needs no division by a usage of zero.
    """
    usage_BN = EPSILON + (1 - EPSILON) * usage_BN
    sorted_BN, free_list_BN = usage_BN.sort(dim=1, stable=True)  # phi
    log_BN = sorted_BN.log()
    sorted_allocation_BN = (1 - sorted_BN) * (log_BN.cumsum(1) - log_BN).exp()
    return torch.zeros_like(usage_BN).scatter(1, free_list_BN, sorted_allocation_BN)


def write_weighting(
    allocation_BN: torch.Tensor,
    content_BN: torch.Tensor,
    allocation_gate_B1: torch.Tensor,
    write_gate_B1: torch.Tensor,
) -> torch.Tensor:
    """w_w = g_w (g_a a + (1 - g_a) c)."""
    return write_gate_B1 * torch.lerp(content_BN, allocation_BN, allocation_gate_B1)


def write_memory(
    memory_BNW: torch.Tensor,
    write_BN: torch.Tensor,
    erase_BW: torch.Tensor,
    write_vector_BW: torch.Tensor,
) -> torch.Tensor:
    """M_t = M (1 - w_w e^T) + w_w v^T, the first product element by element."""
    change_BNW = torch.addcmul(write_vector_BW[:, None], memory_BNW, erase_BW[:, None], value=-1)
    return torch.addcmul(memory_BNW, write_BN[..., None], change_BNW)


def link(
    link_BNN: torch.Tensor,
    precedence_BN: torch.Tensor,
    write_BN: torch.Tensor,
    off_diagonal_NN: torch.Tensor,
    book: bool = False,
) -> torch.Tensor:
    """L_t[i, j] = (1 - w_i - w_j) L[i, j] + w_i p_j, no slot linked to itself.

    With `book`, the decay is 1 - 2 w_i, which is what the book's listing computes: it adds the
    matrix of rows w_i to itself instead of to its transpose.
    """
    w_i, w_j = write_BN[:, :, None], write_BN[:, None, :]
    moved_BNN = torch.lerp(link_BNN, precedence_BN[:, None, :], w_i)
    decayed_BNN = torch.addcmul(moved_BNN, w_i if book else w_j, link_BNN, value=-1)
    return decayed_BNN * off_diagonal_NN


def precedence(precedence_BN: torch.Tensor, write_BN: torch.Tensor) -> torch.Tensor:
    """p_t = (1 - sum w_w) p + w_w: how far each slot was the last one written."""
    total_B1 = write_BN.sum(1, keepdim=True)
    return torch.addcmul(precedence_BN + write_BN, total_B1, precedence_BN, value=-1)


def read_weighting(
    backward_BRN: torch.Tensor,
    content_BRN: torch.Tensor,
    forward_BRN: torch.Tensor,
    modes_BSR: torch.Tensor,
) -> torch.Tensor:
    """w_r = pi_1 b + pi_2 c + pi_3 f."""
    b, c, f = modes_BSR[..., None].unbind(1)
    return torch.addcmul(torch.addcmul(b * backward_BRN, c, content_BRN), f, forward_BRN)


def step(
    state: State,
    to: Interface,
    off_diagonal_NN: torch.Tensor,
    book_link: bool = False,
    links: bool = True,
) -> tuple[torch.Tensor, State]:
    """Write, then read: the words read, r_BRW, and the new state."""
    usage_BN = usage(state.usage_BN, state.write_BN, state.read_BRN, to.free_gates_BR)
    written_B1N = content_weighting(state.memory_BNW, to.write_key_B1W, to.write_strength_B1)
    write_BN = write_weighting(
        allocation(usage_BN), written_B1N[:, 0], to.allocation_gate_B1, to.write_gate_B1
    )
    memory_BNW = write_memory(state.memory_BNW, write_BN, to.erase_BW, to.write_vector_BW)
    read_BRN = content_weighting(memory_BNW, to.read_keys_BRW, to.read_strengths_BR)
    link_BNN, precedence_BN = state.link_BNN, state.precedence_BN
    if links:
        link_BNN = link(link_BNN, precedence_BN, write_BN, off_diagonal_NN, book_link)
        precedence_BN = precedence(precedence_BN, write_BN)
        backward_BRN = torch.bmm(state.read_BRN, link_BNN)  # b = L^T w_r
        forward_BRN = torch.bmm(state.read_BRN, link_BNN.transpose(1, 2))  # f = L w_r
        read_BRN = read_weighting(backward_BRN, read_BRN, forward_BRN, to.read_modes_BSR)
    state = State(memory_BNW, usage_BN, precedence_BN, link_BNN, write_BN, read_BRN)
    return torch.bmm(read_BRN, memory_BNW), state


class DNC(nn.Module):
    """x_BTX to logits_BTY: an LSTM controller with a memory.

    Args:
        n_inputs: X.
        n_outputs: Y.
        hidden: C.
        slots: N.
        word: W.
        read_heads: R.
        links: without, a head reads by content only.
        free_gates: without, no slot is ever freed.
        book_link: link slots as the book's listing does.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: int,
        slots: int,
        word: int,
        read_heads: int = 1,
        *,
        links: bool = True,
        free_gates: bool = True,
        book_link: bool = False,
    ) -> None:
        super().__init__()
        self.slots, self.word, self.read_heads = slots, word, read_heads
        self.links, self.free_gates, self.book_link = links, free_gates, book_link
        R, W = read_heads, word
        # What the logistic function squashes stands side by side: erase vector and the gates.
        self.parts = [R * W, W, W, W + R + 2, R + 1, 3 * R]
        self.controller = nn.LSTMCell(n_inputs + R * W, hidden)
        self.interface = nn.Linear(hidden, sum(self.parts))
        self.output = nn.Linear(hidden + R * W, n_outputs)
        self.register_buffer("off_diagonal_NN", 1 - torch.eye(slots), persistent=False)

    def blank(self, n: int) -> State:
        """The state of `n` memories that nothing was written to."""
        zeros, N = self.off_diagonal_NN.new_zeros, self.slots
        empty_BN = zeros(n, N)
        read_BRN = zeros(n, self.read_heads, N)
        return State(zeros(n, N, self.word), empty_BN, empty_BN, zeros(n, N, N), empty_BN, read_BRN)

    def steer(self, hidden_BC: torch.Tensor) -> Interface:
        """The interface vector xi_t, cut up and squashed."""
        R, W = self.read_heads, self.word
        parts = self.interface(hidden_BC).split(self.parts, 1)
        read_keys, write_key, write_vector, squashed, strengths, modes = parts
        erase, free_gates, *gates = squashed.sigmoid().split([W, R, 1, 1], 1)
        read_strengths, write_strength = (1 + F.softplus(strengths)).split([R, 1], 1)
        return Interface(
            read_keys_BRW=read_keys.view(-1, R, W),
            read_strengths_BR=read_strengths,
            write_key_B1W=write_key[:, None],
            write_strength_B1=write_strength,
            erase_BW=erase,
            write_vector_BW=write_vector,
            free_gates_BR=free_gates if self.free_gates else torch.zeros_like(free_gates),
            allocation_gate_B1=gates[0],
            write_gate_B1=gates[1],
            read_modes_BSR=modes.view(-1, 3, R).softmax(1),
        )

    def unroll(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, list[tuple[State, Interface]]]:
        """Logits_BTY, and what the memory held and was told after each time step."""
        B = len(x_BTX)
        state, words_BD, seen, trace = (
            self.blank(B),
            x_BTX.new_zeros(B, self.read_heads * self.word),
            [],
            [],
        )
        hidden = None
        for x_BX in x_BTX.unbind(1):
            hidden = self.controller(torch.cat((x_BX, words_BD), 1), hidden)
            to = self.steer(hidden[0])
            words_BRW, state = step(state, to, self.off_diagonal_NN, self.book_link, self.links)
            words_BD = words_BRW.flatten(1)
            seen += [hidden[0], words_BD]
            trace.append((state, to))
        seen_BTD = torch.cat(seen, 1).unflatten(1, (len(trace), -1))
        return self.output(seen_BTD), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
