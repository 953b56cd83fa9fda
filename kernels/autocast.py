"""What an autocast region does to the tensors that an op is given."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

DEVICES = ("cpu", "cuda")
Function = TypeVar("Function", bound=Callable[..., Any])


def cast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments as the autocast region of the first one's device computes with them, if in one.

    Tensors of float64 or of integers, and what is no tensor, stay as they are.
    """
    kind = _region(tensors[0])
    return tensors if kind is None else _to(torch.get_autocast_dtype(kind), tensors)


def in_float32(function: Function) -> Function:
    """Have a function of tensors, or tuples of them, compute in float32 in an autocast region.

    Its tensors are cast and what it calls is outside of the region, the one of the first tensor's
    device. Tensors of float64 or of integers, and what is no tensor, stay as they are.
    """

    @functools.wraps(function)
    def outside(*args: Any, **options: Any) -> Any:
        if any(map(torch.is_autocast_enabled, DEVICES)):
            leaves = tree_leaves((args, options))
            kind = _region(next((t for t in leaves if isinstance(t, torch.Tensor)), None))
            if kind is not None:
                args, options = _to(torch.float32, (args, options))
                with torch.autocast(kind, enabled=False):
                    return function(*args, **options)
        return function(*args, **options)

    return outside  # type: ignore[return-value]


def _region(tensor: Any) -> str | None:
    """The kind of device in whose autocast region a tensor is; a processor's for no tensor."""
    kind = tensor.device.type if isinstance(tensor, torch.Tensor) else "cpu"
    # Asking whether a device has such regions at all breaks a graph in PyTorch 2.11.
    return kind if kind in DEVICES and torch.is_autocast_enabled(kind) else None


def _to(dtype: torch.dtype, given: Any) -> Any:
    def one(t: Any) -> Any:
        eligible = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.to(dtype) if eligible and t.dtype != torch.float64 else t

    return tree_map(one, given)
