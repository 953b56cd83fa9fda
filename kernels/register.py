"""Registration of a kernel with PyTorch: custom op, shapes, gradient and autocast in one place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NAMESPACE = "fdl"


@dataclass(frozen=True)
class Kernel:
    """An op that is made of kernels; calling it runs ``torch.ops.fdl.<name>``.

    Attributes:
        name: folder and function, such as ``dnc_content``.
        op: the registered op.
        forward: launches the kernels.
        backward: launches those of the gradient.
        save: what the backward needs, of the inputs and the outputs.
        options: the plain values that follow the tensors, by default.
        outputs: how many outputs have a gradient; all when None.
    """

    name: str
    op: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    save: Callable[[tuple[Any, ...], Any], Sequence[torch.Tensor]]
    options: tuple[Any, ...]
    outputs: int | None

    def __call__(self, *args: Any) -> Any:
        """Run the op: its tensors, then its options."""
        return self.op(*args)


def empty_like(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """New tensors of the same shapes and types, each contiguous."""
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)


def define(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    save: Callable[[tuple[Any, ...], Any], Sequence[torch.Tensor]],
    options: tuple[Any, ...] = (),
    outputs: int | None = None,
    autocast: torch.dtype | None = None,
) -> Kernel:
    """Register ``torch.ops.fdl.<name>`` from a forward and a backward launcher.

    The gradient is an op of its own, so that ``torch.compile`` sees neither kernel. It is not
    differentiable again.

    Args:
        name: of the op.
        forward: launches the kernels; annotated, for the schema follows from the annotations. Takes
            tensors, then the options.
        backward: takes the gradients of the outputs (None for one that was not used), what ``save``
            chose, and the options; gives the gradients of all tensors that ``forward`` takes.
        fake: the outputs' shapes: as ``forward``, but computes nothing.
        fake_backward: the gradients' shapes: as ``backward``.
        save: what the backward needs, of the inputs and the outputs.
        options: the plain values that follow the tensors, by default.
        outputs: how many outputs have a gradient; those after them are kept for the backward only.
            All when None.
        autocast: the dtype in which an autocast region computes the op; as it comes when None.
    """
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", forward, mutates_args=())
    op.register_fake(fake)
    gradient = torch.library.custom_op(f"{NAMESPACE}::{name}_backward", backward, mutates_args=())
    gradient.register_fake(fake_backward)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*save(inputs, output))
        ctx.options = inputs[len(inputs) - len(options) :]
        ctx.n_inputs = len(inputs)

    def grad(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if all(g is None for g in grads[:outputs]):
            return (None,) * ctx.n_inputs
        found = gradient(*grads[:outputs], *ctx.saved_tensors, *ctx.options)
        found = found if isinstance(found, tuple | list) else (found,)
        return (*found, *[None] * len(options))

    op.register_autograd(grad, setup_context=setup)
    if autocast is not None:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"{NAMESPACE}::{name}", device, autocast)
    return Kernel(name, op, forward, backward, save, options, outputs)
