"""What an autocast region does to the tensors that an op is given."""

from typing import Any

import torch


def cast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments as the autocast region of the first one's device computes with them, if in one.

    Tensors of float64 or of integers, and what is no tensor, stay as they are.
    """
    kind = tensors[0].device.type if isinstance(tensors[0], torch.Tensor) else "cpu"
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)

    def one(t: Any) -> Any:
        eligible = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.to(dtype) if eligible and t.dtype != torch.float64 else t

    return tuple(one(t) for t in tensors)
