"""The NTM of ``tasks.models.ntm`` with another controller, or another memory to begin with.

Both heads begin focused on the first slot: where they begin is learned, but from a blurred start it
is learned late. Of the memories to begin with that Collier and Beel (2018) compare, ``constant`` is
1e-6 everywhere and ``learned`` a parameter.

Shapes: B batch, T time, N memory slots, W word size, H heads (reading, then writing), C hidden
units of the controller, X input, Y output.
"""

from typing import NamedTuple

import torch
from torch import nn

from kernels import ntm
from kernels.ntm import EPSILON
from suite.task import unknown
from tasks.models.ntm import NTM, write

CONTROLLERS = ("lstm", "feed_forward")
MEMORIES = ("constant", "learned")
# A softmax of 6 and zeros: 0.96 of 16 slots' weight is on the first.
FOCUS = 6.0
LEARNED_FROM = 0.1


class FeedForward(nn.Module):
    """A controller that keeps nothing of its own; called as an LSTM cell is."""

    def __init__(self, n_inputs: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, hidden)

    def forward(
        self, x_BX: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_BC = self.linear(x_BX).relu()
        return hidden_BC, hidden_BC


class Step(NamedTuple):
    """What a time step left: the memory, and the weightings of the heads."""

    memory_BNW: torch.Tensor
    weights_BHN: torch.Tensor


class VariedNTM(nn.Module):
    """x_BTX to logits_BTY.

    Args:
        n_inputs: X.
        n_outputs: Y.
        hidden: C.
        slots: N.
        word: W.
        controller: one of ``CONTROLLERS``.
        memory: one of ``MEMORIES``.
        impl: what computes the addressing; see ``kernels.dispatch``.

    Raises:
        ValueError: an unknown controller or memory.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: int,
        slots: int,
        word: int,
        *,
        controller: str = "lstm",
        memory: str = "constant",
        impl: str = "torch",
    ) -> None:
        super().__init__()
        for kind, given, allowed in (
            ("controller", controller, CONTROLLERS),
            ("memory", memory, MEMORIES),
        ):
            if given not in allowed:
                raise unknown(kind, given, allowed)
        self.ntm = NTM(n_inputs, n_outputs, hidden, slots, word, impl=impl)
        if controller == "feed_forward":
            self.ntm.controller = FeedForward(n_inputs + word, hidden)
        first_N = torch.arange(slots) == 0
        self.ntm.start_HN.data = (FOCUS * first_N).expand(2, -1).clone()
        start_NW = torch.full((slots, word), EPSILON)
        if memory == "learned":
            self.memory_NW = nn.Parameter(LEARNED_FROM * torch.randn(slots, word))
        else:
            self.register_buffer("memory_NW", start_NW, persistent=False)

    def unroll(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, list[Step]]:
        """Logits_BTY, and what each time step left."""
        B, core = len(x_BTX), self.ntm
        memory_BNW = self.memory_NW.expand(B, -1, -1)
        weights_BHN = core.start_HN.softmax(1).expand(B, -1, -1)
        words_BW, hidden, seen, trace = x_BTX.new_zeros(B, core.word), None, [], []
        for x_BX in x_BTX.unbind(1):
            hidden = core.controller(torch.cat((x_BX, words_BW), 1), hidden)
            head, erase_BW, add_BW = core.steer(hidden[0])
            weights_BHN = ntm.address(memory_BNW, weights_BHN, head, impl=core.impl)
            read_BN, write_BN = weights_BHN.unbind(1)
            memory_BNW = write(memory_BNW, write_BN, erase_BW, add_BW)
            words_BW = torch.bmm(read_BN[:, None], memory_BNW)[:, 0]
            seen.append(torch.cat((hidden[0], words_BW), 1))
            trace.append(Step(memory_BNW, weights_BHN))
        return core.output(torch.stack(seen, 1)), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
