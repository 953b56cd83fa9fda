"""What an autocast region does to the tensors that an op is given."""

from typing import Any

import torch

DEVICES = ("cpu", "cuda")


def cast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments as the autocast region of the first one's device computes with them, if in one.

    Tensors of float64 or of integers, and what is no tensor, stay as they are.
    """
    kind = tensors[0].device.type if isinstance(tensors[0], torch.Tensor) else "cpu"
    # Asking whether a device has such regions at all breaks a graph in PyTorch 2.11.
    if kind not in DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)

    def one(t: Any) -> Any:
        eligible = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.to(dtype) if eligible and t.dtype != torch.float64 else t

    return tuple(one(t) for t in tensors)
