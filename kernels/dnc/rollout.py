"""A whole sequence: the controller and the memory in turn, in segments, or as a CUDA graph.

The loop and ``captured`` are told what a step and a module are; which implementation of the memory
runs is decided in ``kernels.dnc``.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from kernels.dispatch import Unavailable
from kernels.dnc.reference import Interface, State

Control = Callable[[Tensor, Tensor, Any], tuple[Interface, Tensor, Any]]
Memory = Callable[[State, Interface], tuple[Tensor, State]]


class Carry(NamedTuple):
    """What a sequence carries from one step to the next.

    Attributes:
        state: of the memory.
        words_BRW: what the heads read.
        hidden: of the controller: None, a tensor, or tensors in tuples, lists or dicts.
    """

    state: State
    words_BRW: Tensor
    hidden: Any


class Step(NamedTuple):
    """One step of a sequence: what the controller made of it, told the memory, and left."""

    features_BC: Tensor
    to: Interface
    carry: Carry


def steps(memory: Memory, control: Control, x_TBX: Tensor, carry: Carry) -> Iterator[Step]:
    """The steps, one after the other."""
    for x_BX in x_TBX.unbind(0):
        to, features_BC, hidden = control(x_BX, carry.words_BRW, carry.hidden)
        words_BRW, state = memory(carry.state, to)
        carry = Carry(state, words_BRW, hidden)
        yield Step(features_BC, to, carry)


def run(
    memory: Memory, control: Control, x_TBX: Tensor, carry: Carry, every: int | None
) -> tuple[Tensor, Tensor, Carry]:
    """Features_TBC, words_TBRW and what is carried on; see ``kernels.dnc.sequence``."""

    def segment(x_TBX: Tensor, carry: Carry) -> tuple[list[Tensor], list[Tensor], Carry]:
        seen = [*steps(memory, control, x_TBX, carry)]
        return [s.features_BC for s in seen], [s.carry.words_BRW for s in seen], seen[-1].carry

    if every is None or not torch.is_grad_enabled():
        features, words, carry = segment(x_TBX, carry)
        return torch.stack(features), torch.stack(words), carry
    _refuse_capture()
    features, words = [], []
    for part_TBX in x_TBX.split(every):
        passed, read, carry = checkpoint(segment, part_TBX, carry, use_reentrant=False)
        features += passed
        words += read
    # Stacked once, for all segments together: gradients add up in the order of one long sequence.
    return torch.stack(features), torch.stack(words), carry


def _refuse_capture() -> None:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "checkpoint_every cannot be captured: recomputing a segment restores the random state, "
            "and a CUDA graph cannot"
        )


class Captured:
    """A module that a GPU runs by replaying a CUDA graph: its forward, and its backward.

    ``torch.cuda.make_graphed_callables`` captures both after warming up on a stream of its own, and
    copies inputs to where the graph reads them. What it returns is memory that the next replay
    overwrites; here outputs and gradients are copied out, and a backward that comes after another
    forward is an error. Gradients are not differentiable again. The module itself runs as before,
    which evaluation and other shapes are for.

    Replays launch no kernel by its name, so ``kernels.dispatch.counts`` counts the capture only.

    Args:
        module: its parameters stay the same tensors, and get gradients.
        sample: inputs such as it will be called with; a graph is for their shapes only.

    Raises:
        Unavailable: a tensor is not on a GPU.
        ValueError: ``module`` recomputes segments (``checkpoint_every``), which restores the random
            state, and a graph cannot.
    """

    def __init__(self, module: nn.Module, *sample: Tensor) -> None:
        tensors = {f"input {i}": t for i, t in enumerate(sample)}
        _on_a_gpu(tensors | dict(module.named_parameters()))
        self._module, self._training = module, module.training
        self._like = [_description(t) for t in sample]
        self._replays = 0
        static = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in sample)
        torch.cuda.make_graphed_callables(module, static)
        self._graphed = module.forward
        del module.forward

    def __call__(self, *inputs: Tensor) -> Any:
        """What the module returns, tensors or tuples of them, in memory of its own.

        Raises:
            ValueError: inputs of another number, shape, dtype, device or ``requires_grad``.
            RuntimeError: the module has been switched between training and evaluation. In a
                backward: the graph has been replayed since its forward.
        """
        got = [_description(t) for t in inputs]
        if got != self._like:
            raise ValueError(
                f"a graph captured for {', '.join(self._like)} got {', '.join(got)}: capture again"
            )
        if self._module.training != self._training:
            mode = "training" if self._training else "evaluation"
            raise RuntimeError(f"captured for {mode}: call the module itself in another mode")
        self._replays += 1
        outputs = self._graphed(*inputs)
        nodes = {t.grad_fn for t in tree_leaves(outputs) if t.grad_fn is not None}
        for node in nodes:
            node.register_prehook(functools.partial(self._still_there, self._replays))
            node.register_hook(_copied)
        return tree_map(torch.clone, outputs)

    def _still_there(self, replay: int, _: Any) -> None:
        """What the forward left for its backward has not been overwritten."""
        if replay != self._replays:
            raise RuntimeError(
                "the graph has been replayed since this forward, over what its backward needs: "
                "call backward before the next forward"
            )


def _copied(grad_inputs: Any, _: Any) -> Any:
    return tuple(None if g is None else g.clone() for g in grad_inputs)


def _description(tensor: Tensor) -> str:
    wants = " with a gradient" if tensor.requires_grad else ""
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{wants}"


def _on_a_gpu(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda":
            raise Unavailable(
                f"{name} is on {tensor.device}: a CUDA graph replays what a GPU was told to "
                "launch, and only a GPU has launches to replay. Call the module itself"
            )
