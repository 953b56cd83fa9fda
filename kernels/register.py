"""Registration of a kernel with PyTorch: custom op, shapes, gradient and autocast in one place."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernels.autocast import DEVICES

NAMESPACE = "fdl"
# Has every kind of gradient; PyTorch's own attention has no second one, nor has cuDNN's LSTM.
INSTEAD = "impl='reference'"
# What the short way takes: not a subclass of a tensor, which may have ideas of its own.
PLAIN = {Tensor, nn.Parameter, NoneType, bool, int, float, list, tuple, torch.Size}


class Registered:
    """``torch.ops.fdl.<name>``; calling it runs the op, by a short way where there is one.

    PyTorch's dispatcher comes back to Python two or three times before an op that is written in
    Python runs, which takes longer than a launch does. It is there for what may come between:
    compilation and tracing, autocast, ``torch.func``, tensors that are not plain ones. Where there
    is none of these, the function is called at once, or recorded as ``torch.autograd.Function``.

    Attributes:
        op: the op as ``torch.library`` knows it.
    """

    def __init__(self, name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """Register an op.

        Args:
            name: of the op.
            function: what it runs; annotated, for the schema follows from the annotations. Takes
                tensors, then options, and returns no view of a tensor that it was given.
            fake: the outputs' shapes: as ``function``, but computes nothing.
        """
        self._name, self._function = name, _where_its_tensors_are(function)
        self.op = torch.library.custom_op(f"{NAMESPACE}::{name}", self._function, mutates_args=())
        self.op.register_fake(fake)
        self._recorded: Callable[..., Any] = self.op
        self._is_cast = False

    def differentiate(self, gradient: Callable[..., Any], keep: Callable[..., None]) -> None:
        """Give the op a gradient; without, a backward through it is an error.

        Args:
            gradient: takes the context and the outputs' gradients, gives one for every input.
            keep: takes the context, the inputs and the output; keeps what the gradient needs.
        """
        self.op.register_autograd(gradient, setup_context=keep)
        function = self._function

        def forward(ctx: Any, *args: Any) -> Any:
            output = function(*args)
            keep(ctx, args, output)
            return output

        # Its own ``setup_context`` would have every call look up the signature of ``forward``.
        methods = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
        recorded: Any = type(f"{NAMESPACE}::{self._name}", (torch.autograd.Function,), methods)
        self._recorded = recorded.apply

    def autocast(self, dtype: torch.dtype) -> None:
        """Have autocast regions compute the op in a type."""
        for device in DEVICES:
            torch.library.register_autocast(f"{NAMESPACE}::{self._name}", device, dtype)
        self._is_cast = True

    def __call__(self, *args: Any) -> Any:
        """Run the op: its tensors, then its options.

        Raises:
            RuntimeError: a tensor has a tangent, which PyTorch would drop.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling and forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
            raise RuntimeError(f"{self._name}: no gradients in forward mode; use {INSTEAD}")
        # Asked for as ``torch.autograd.Function.apply`` and PyTorch's custom ops ask themselves.
        if (
            compiling
            or torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()
            or (self._is_cast and any(map(torch.is_autocast_enabled, DEVICES)))
            or not PLAIN.issuperset(map(type, args))
        ):
            return self.op(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return self._recorded(*args)
        return self._function(*args)


def _has_tangent(arg: Any) -> bool:
    return isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None


def _where_its_tensors_are(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the first tensor's GPU for the current one: Triton launches on that."""

    @functools.wraps(function)
    def there(*args: Any) -> Any:
        for arg in args:
            if isinstance(arg, Tensor):
                if arg.is_cuda and arg.get_device() != torch.cuda.current_device():
                    with torch.cuda.device(arg.get_device()):
                        return function(*args)
                break
        return function(*args)

    return there


@dataclass(frozen=True)
class Kernel:
    """An op that is made of kernels; calling it runs ``torch.ops.fdl.<name>``.

    Attributes:
        name: folder and function, such as ``dnc_content``.
        registered: the op.
        forward: launches the kernels.
        backward: launches those of the gradient.
        save: what the backward needs, of the inputs and the outputs.
        options: the plain values that follow the tensors, by default.
        outputs: how many outputs have a gradient; all when None.
    """

    name: str
    registered: Registered
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    save: Callable[[tuple[Any, ...], Any], Sequence[torch.Tensor]]
    options: tuple[Any, ...]
    outputs: int | None

    @property
    def op(self) -> Any:
        """The op as ``torch.library`` knows it."""
        return self.registered.op

    def __call__(self, *args: Any) -> Any:
        """Run the op: its tensors, then its options."""
        return self.registered(*args)


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

    The gradient is an op of its own, so that ``torch.compile`` sees neither kernel. Differentiating
    it again is an error.

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
    op = Registered(name, forward, fake)
    gradient = Registered(f"{name}_backward", backward, fake_backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*save(inputs, output))
        ctx.options = inputs[len(inputs) - len(options) :]

    def grad(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if all(g is None for g in grads[:outputs]):
            return (None,) * len(ctx.needs_input_grad)
        found = gradient(*grads[:outputs], *ctx.saved_tensors, *ctx.options)
        found = found if isinstance(found, tuple | list) else (found,)
        return (*found, *[None] * len(options))

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{name}: not differentiable twice; use {INSTEAD}")

    op.differentiate(grad, keep)
    gradient.differentiate(refuse, lambda ctx, inputs, output: None)
    if autocast is not None:
        op.autocast(autocast)
    return Kernel(name, op, forward, backward, save, options, outputs)
