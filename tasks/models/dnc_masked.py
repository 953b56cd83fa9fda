"""A DNC whose keys are masked and whose freed slots are cleared.

Csordas and Schmidhuber, "Improving Differentiable Neural Computers Through Memory Masking,
De-allocation, and Link Distribution Sharpness Control" (ICLR 2019), sections 3.1 and 3.2: a key is
compared with a word in the positions that the controller's mask leaves, and what a slot holds is
multiplied by how much of it is retained, so that freed slots are not found by content. The
sharpness of links (section 3.3) is not here.

Shapes: B batch, T time, N memory slots, W word size, R read heads, H = 1 + R keys (the write
head's first), C hidden units of the controller, X input, Y output.
"""

import functools

import torch
from torch import nn

from kernels import dnc
from kernels.dnc import Interface, State
from tasks.models.dnc import DNC


def masked_content(
    memory_BNW: torch.Tensor,
    keys_BHW: torch.Tensor,
    strengths_BH: torch.Tensor,
    masks_BHW: torch.Tensor,
    impl: str,
) -> torch.Tensor:
    """c_BHN by the cosine of masked keys and masked words: each head has a memory of its own."""
    B, H, W = keys_BHW.shape
    masked_BHNW = memory_BNW[:, None] * masks_BHW[:, :, None]
    keys = (keys_BHW * masks_BHW).reshape(B * H, 1, W)
    found = dnc.content(masked_BHNW.flatten(0, 1), keys, strengths_BH.reshape(B * H, 1), impl=impl)
    return found.view(B, H, -1)


class MaskedDNC(nn.Module):
    """x_BTX to logits_BTY; the arguments are those of ``tasks.models.dnc.DNC``."""

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: int,
        slots: int,
        word: int,
        read_heads: int = 1,
        *,
        impl: str = "torch",
    ) -> None:
        super().__init__()
        self.dnc = DNC(n_inputs, n_outputs, hidden, slots, word, read_heads, impl=impl)
        self.masks = nn.Linear(hidden, (1 + read_heads) * word)
        self.impl = impl

    def step(
        self, state: State, to: Interface, masks_BHW: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """The words read and the next state."""
        impl = self.impl
        write_key, write_mask = to.write_key_B1W, masks_BHW[:, :1]
        looked_up_B1N = masked_content(
            state.memory_BNW, write_key, to.write_strength_B1, write_mask, impl
        )
        usage_BN = dnc.usage(
            state.usage_BN, state.write_BN, state.read_BRN, to.free_gates_BR, impl=impl
        )
        kept_BRN = 1 - to.free_gates_BR[..., None] * state.read_BRN
        # The gradient of prod waits for a count of zeros, which a CUDA graph cannot.
        retained_BN = functools.reduce(torch.mul, kept_BRN.unbind(1))
        memory_BNW, write_BN = dnc.write(
            state.memory_BNW * retained_BN[..., None],
            dnc.allocation(usage_BN, impl=impl),
            looked_up_B1N[:, 0],
            to.allocation_gate_B1,
            to.write_gate_B1,
            to.erase_BW,
            to.write_vector_BW,
            impl=impl,
        )
        link_BNN, precedence_BN, forward_BRN, backward_BRN = dnc.link(
            state.link_BNN, state.precedence_BN, write_BN, state.read_BRN, impl=impl
        )
        content_BRN = masked_content(
            memory_BNW, to.read_keys_BRW, to.read_strengths_BR, masks_BHW[:, 1:], impl
        )
        words_BRW, read_BRN = dnc.read(
            memory_BNW, backward_BRN, content_BRN, forward_BRN, to.read_modes_BSR, impl=impl
        )
        return words_BRW, State(memory_BNW, usage_BN, precedence_BN, link_BNN, write_BN, read_BRN)

    def unroll(self, x_BTX: torch.Tensor) -> tuple[torch.Tensor, list[tuple[State, Interface]]]:
        """Logits_BTY, and what the memory held and was told after each time step."""
        x_TBX, (state, words_BRW, hidden) = self.dnc.begin(x_BTX)
        passed, read, trace = [], [], []
        for x_BX in x_TBX.unbind(0):
            to, hidden_BC, hidden = self.dnc.control(x_BX, words_BRW, hidden)
            masks_BHW = self.masks(hidden_BC).sigmoid().unflatten(1, (-1, self.dnc.word))
            words_BRW, state = self.step(state, to, masks_BHW)
            passed.append(hidden_BC)
            read.append(words_BRW)
            trace.append((state, to))
        return self.dnc.answer(torch.stack(passed), torch.stack(read)), trace

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.unroll(x_BTX)[0]
