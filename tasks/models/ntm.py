"""The neural Turing machine (NTM) of Graves, Wayne and Danihelka, 2014, in plain PyTorch.

Where the paper is silent: all heads address the memory as the last step left it, then the write
head writes, then the read head reads; the memory starts as a small constant, the initialisation
that Collier and Beel (2018, "Implementing Neural Turing Machines") found best, and the heads
start at learned weightings.

Shapes: B batch, T time, N memory slots, W word size, H heads (reading, then writing), C hidden
units of the controller, X input, Y output; S the 3 shifts of a head: back, none, forward.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tasks.models.dnc import content_weighting, write_memory

EPSILON = 1e-6


class Head(NamedTuple):
    """What the controller emits to steer the heads, each part in its range."""

    keys_BHW: torch.Tensor
    strengths_BH: torch.Tensor
    gates_BH1: torch.Tensor
    shifts_BHS: torch.Tensor
    sharpness_BH1: torch.Tensor


def shift(weights_BHN: torch.Tensor, shifts_BHS: torch.Tensor) -> torch.Tensor:
    """Circular convolution: w~(i) = sum_j w(j) s(i - j)."""
    back, stay, forward = shifts_BHS[..., None].unbind(2)
    moved_BHN = torch.addcmul(stay * weights_BHN, back, weights_BHN.roll(-1, 2))
    return torch.addcmul(moved_BHN, forward, weights_BHN.roll(1, 2))


def sharpen(weights_BHN: torch.Tensor, sharpness_BH1: torch.Tensor) -> torch.Tensor:
    """w(i)^gamma over its sum."""
    return torch.softmax(sharpness_BH1 * (weights_BHN + EPSILON).log(), -1)


def address(memory_BNW: torch.Tensor, weights_BHN: torch.Tensor, head: Head) -> torch.Tensor:
    """w_t from w_{t-1}: by content, interpolated, shifted and sharpened."""
    content_BHN = content_weighting(memory_BNW, head.keys_BHW, head.strengths_BH)  # w^c
    gated_BHN = torch.lerp(weights_BHN, content_BHN, head.gates_BH1)  # w^g
    return sharpen(shift(gated_BHN, head.shifts_BHS), head.sharpness_BH1)


class NTM(nn.Module):
    """x_BTX to logits_BTY: an LSTM controller with a memory, one head to read and one to write.

    Args:
        n_inputs: X.
        n_outputs: Y.
        hidden: C.
        slots: N.
        word: W.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: int, slots: int, word: int) -> None:
        super().__init__()
        self.slots, self.word = slots, word
        # 2 keys, erase and add vector; a strength, a gate, 3 shifts and a sharpness for each head.
        self.parts = [2 * word, word, word, 2, 2, 6, 2]
        self.controller = nn.LSTMCell(n_inputs + word, hidden)
        self.heads = nn.Linear(hidden, sum(self.parts))
        self.output = nn.Linear(hidden + word, n_outputs)
        self.start_HN = nn.Parameter(torch.randn(2, slots))

    def steer(self, hidden_BC: torch.Tensor) -> tuple[Head, torch.Tensor, torch.Tensor]:
        """How to address the memory, and the erase vector and add vector of the write head."""
        parts = self.heads(hidden_BC).split(self.parts, 1)
        keys, erase, add, strengths, gates, shifts, sharpness = parts
        head = Head(
            keys_BHW=keys.view(-1, 2, self.word),
            strengths_BH=F.softplus(strengths),
            gates_BH1=gates.sigmoid()[..., None],
            shifts_BHS=shifts.view(-1, 2, 3).softmax(2),
            sharpness_BH1=(1 + F.softplus(sharpness))[..., None],
        )
        return head, erase.sigmoid(), add

    def unroll(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits_BTY, and the weightings w_BHN after each time step."""
        B = len(x_BTX)
        memory_BNW = x_BTX.new_full((B, self.slots, self.word), EPSILON)
        weights_BHN = self.start_HN.softmax(1).expand(B, -1, -1)
        words_BW, hidden, seen, trace = x_BTX.new_zeros(B, self.word), None, [], []
        for x_BX in x_BTX.unbind(1):
            hidden = self.controller(torch.cat((x_BX, words_BW), 1), hidden)
            head, erase_BW, add_BW = self.steer(hidden[0])
            weights_BHN = address(memory_BNW, weights_BHN, head)
            read_BN, write_BN = weights_BHN.unbind(1)
            memory_BNW = write_memory(memory_BNW, write_BN, erase_BW, add_BW)
            words_BW = torch.bmm(read_BN[:, None], memory_BNW)[:, 0]
            seen += [hidden[0], words_BW]
            trace.append(weights_BHN)
        seen_BTD = torch.cat(seen, 1).unflatten(1, (len(trace), -1))
        return self.output(seen_BTD), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
