"""Errors for bad arguments: which one, what was expected, what came."""

from collections.abc import Mapping

import torch


def tensors(given: Mapping[str, tuple[torch.Tensor, str]], **fixed: int) -> dict[str, int]:
    """Check that tensors agree in their sizes, dtype and device; return the sizes.

    Args:
        given: argument name -> the tensor, and its dimensions as letters such as ``"B N W"``. A
            letter stands for one size throughout.
        fixed: letters whose size is known beforehand.

    Raises:
        TypeError: not a tensor, not of floating point, or of another dtype than the first.
        ValueError: another number of dimensions, another size, or another device than the first.
    """
    sizes, first = dict(fixed), ""
    for name, (tensor, letters) in given.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a tensor, got {type(tensor).__name__}")
        wanted, known = letters.split(), dict(sizes)
        found = [sizes.setdefault(k, n) for k, n in zip(wanted, tensor.shape, strict=False)]
        if len(wanted) != tensor.dim() or found != list(tensor.shape):
            expected = ", ".join(f"{k}={known[k]}" if k in known else k for k in wanted)
            raise ValueError(f"{name} has shape ({expected}), got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is of floating point, got {tensor.dtype}")
        first = first or name
        like = given[first][0]
        if tensor.dtype != like.dtype:
            raise TypeError(f"{name} is {like.dtype} as {first} is, got {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(f"{name} is on {like.device} as {first} is, got {tensor.device}")
    return sizes


def kind(name: str, given: object, wanted: type) -> None:
    """Check that an argument is of a type; a bool is no int.

    Raises:
        TypeError: it is of another.
    """
    if not isinstance(given, wanted) or (wanted is int and isinstance(given, bool)):
        article = "an" if wanted.__name__[0] in "aeiouAEIOU" else "a"
        raise TypeError(f"{name} is {article} {wanted.__name__}, got {type(given).__name__}")
