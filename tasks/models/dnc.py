"""The differentiable neural computer (DNC) of Graves et al., Nature 538 (2016).

The addressing is ``kernels.dnc``, whose reference carries the paper's symbols; here are controller
and interface.

Shapes: B batch, T time, N memory slots, W word size, R read heads, C hidden units of the
controller, X input, Y output; S the 3 modes of a read head, in the order backward, content,
forward. One write head.
"""

import torch
from torch import nn
from torch.nn import functional as F

from kernels import dnc
from kernels.dnc import Interface, State


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
        impl: what computes the addressing; see ``kernels.dispatch``.
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
        impl: str = "torch",
    ) -> None:
        super().__init__()
        self.slots, self.word, self.read_heads = slots, word, read_heads
        self.links, self.free_gates, self.book_link = links, free_gates, book_link
        self.impl = impl
        R, W = read_heads, word
        # What the logistic function squashes stands side by side: erase vector and the gates.
        self.parts = [R * W, W, W, W + R + 2, R + 1, 3 * R]
        self.controller = nn.LSTMCell(n_inputs + R * W, hidden)
        self.interface = nn.Linear(hidden, sum(self.parts))
        self.output = nn.Linear(hidden + R * W, n_outputs)

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
        state = dnc.blank(x_BTX, B, self.slots, self.word, self.read_heads)
        words_BD, hidden = x_BTX.new_zeros(B, self.read_heads * self.word), None
        seen: list[torch.Tensor] = []
        trace: list[tuple[State, Interface]] = []
        for x_BX in x_BTX.unbind(1):
            hidden = self.controller(torch.cat((x_BX, words_BD), 1), hidden)
            to = self.steer(hidden[0])
            words_BRW, state = dnc.step(
                state, to, links=self.links, book=self.book_link, impl=self.impl
            )
            words_BD = words_BRW.flatten(1)
            seen += [hidden[0], words_BD]
            trace.append((state, to))
        seen_BTD = torch.cat(seen, 1).unflatten(1, (len(trace), -1))
        return self.output(seen_BTD), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
