"""The differentiable neural computer (DNC) of Graves et al., Nature 538 (2016).

The addressing is ``kernels.dnc``, whose reference carries the paper's symbols; here are controller
and interface.

Shapes: B batch, T time, N memory slots, W word size, R read heads, C hidden units of the
controller, X input, Y output; S the 3 modes of a read head, in the order backward, content,
forward. One write head.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kernels import dnc
from kernels.dnc import Carry, Interface, State

Hidden = tuple[torch.Tensor, torch.Tensor] | None


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
        checkpoint_every: recompute segments of so many steps to save memory; see
            ``kernels.dnc.sequence``.
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
        checkpoint_every: int | None = None,
    ) -> None:
        super().__init__()
        self.slots, self.word, self.read_heads = slots, word, read_heads
        self.links, self.free_gates, self.book_link = links, free_gates, book_link
        self.impl = impl
        self.options: dict[str, Any] = {"links": links, "book": book_link, "impl": impl}
        self.checkpoint_every = checkpoint_every
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

    def control(
        self, x_BX: torch.Tensor, words_BRW: torch.Tensor, hidden: Hidden
    ) -> tuple[Interface, torch.Tensor, Hidden]:
        """One step of the controller: what it tells the memory, h_BC, and h and c."""
        hidden = self.controller(torch.cat((x_BX, words_BRW.flatten(1)), 1), hidden)
        return self.steer(hidden[0]), hidden[0], hidden

    def begin(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, Carry]:
        """x_TBX, and what its first step begins with."""
        carry = dnc.start(x_BTX, len(x_BTX), self.slots, self.word, self.read_heads)
        return x_BTX.transpose(0, 1), carry

    def answer(self, hidden_TBC: torch.Tensor, words_TBRW: torch.Tensor) -> torch.Tensor:
        """Logits_BTY."""
        seen_TBD = torch.cat((hidden_TBC, words_TBRW.flatten(2)), 2)
        return self.output(seen_TBD).transpose(0, 1)

    def unroll(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, list[tuple[State, Interface]]]:
        """Logits_BTY, and what the memory held and was told after each time step."""
        seen = [*dnc.steps(self.control, *self.begin(x_BTX), **self.options)]
        hidden_TBC = torch.stack([step.features_BC for step in seen])
        words_TBRW = torch.stack([step.carry.words_BRW for step in seen])
        return self.answer(hidden_TBC, words_TBRW), [(s.carry.state, s.to) for s in seen]

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        every = self.checkpoint_every
        hidden_TBC, words_TBRW, _ = dnc.sequence(
            self.control, *self.begin(x_BTX), checkpoint_every=every, **self.options
        )
        return self.answer(hidden_TBC, words_TBRW)
