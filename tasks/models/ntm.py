"""The neural Turing machine (NTM) of Graves, Wayne and Danihelka, 2014.

The addressing is ``kernels.ntm``; here are controller, heads and memory. Where the paper is silent:
all heads address the memory as the last step left it, then the write head writes, then the read
head reads; the memory starts as a small constant, the initialisation that Collier and Beel (2018,
"Implementing Neural Turing Machines") found best, and the heads start at learned weightings.

Shapes: B batch, T time, N memory slots, W word size, H heads (reading, then writing), C hidden
units of the controller, X input, Y output; S the 3 shifts of a head: back, none, forward.
"""

import torch
from torch import nn
from torch.nn import functional as F

from kernels import ntm
from kernels.ntm import EPSILON, Head


def write(
    memory_BNW: torch.Tensor, write_BN: torch.Tensor, erase_BW: torch.Tensor, add_BW: torch.Tensor
) -> torch.Tensor:
    """M (1 - w e') + w a', the first product element by element."""
    change_BNW = torch.addcmul(add_BW[:, None], memory_BNW, erase_BW[:, None], value=-1)
    return torch.addcmul(memory_BNW, write_BN[..., None], change_BNW)


class NTM(nn.Module):
    """x_BTX to logits_BTY: an LSTM controller with a memory, one head to read and one to write.

    Args:
        n_inputs: X.
        n_outputs: Y.
        hidden: C.
        slots: N.
        word: W.
        impl: what computes the addressing; see ``kernels.dispatch``.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: int,
        slots: int,
        word: int,
        *,
        impl: str = "torch",
    ) -> None:
        super().__init__()
        self.slots, self.word, self.impl = slots, word, impl
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
            weights_BHN = ntm.address(memory_BNW, weights_BHN, head, impl=self.impl)
            read_BN, write_BN = weights_BHN.unbind(1)
            memory_BNW = write(memory_BNW, write_BN, erase_BW, add_BW)
            words_BW = torch.bmm(read_BN[:, None], memory_BNW)[:, 0]
            seen += [hidden[0], words_BW]
            trace.append(weights_BHN)
        seen_BTD = torch.cat(seen, 1).unflatten(1, (len(trace), -1))
        return self.output(seen_BTD), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
