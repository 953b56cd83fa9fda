"""Images changed at random, a batch at a time and where it lies; each image by its own draw.

Shapes: B batch, C channels, H and W height and width.
"""

import torch
from torch.nn import functional as F


def window(
    x_BCHW: torch.Tensor, top_B: torch.Tensor, left_B: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Of each image the ``size`` rows and columns from (top, left) on."""
    n, c = x_BCHW.shape[:2]
    at = x_BCHW.device
    rows_BH = top_B[:, None] + torch.arange(size[0], device=at)
    columns_BW = left_B[:, None] + torch.arange(size[1], device=at)
    image_B, channel_C = torch.arange(n, device=at), torch.arange(c, device=at)
    return x_BCHW[
        image_B[:, None, None, None],
        channel_C[None, :, None, None],
        rows_BH[:, None, :, None],
        columns_BW[:, None, None, :],
    ]


def random_window(x_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A window anywhere in each image."""
    n, at = len(x_BCHW), x_BCHW.device
    top_B, left_B = (
        torch.randint(whole - part + 1, (n,), device=at)
        for whole, part in zip(x_BCHW.shape[2:], size, strict=True)
    )
    return window(x_BCHW, top_B, left_B, size)


def shifted(x_BCHW: torch.Tensor, reach: int, mode: str = "constant") -> torch.Tensor:
    """Each image moved by up to ``reach`` pixels, rows and columns apart.

    ``mode`` says what comes in at the border, as ``F.pad`` has it: zeros, or ``reflect``.
    """
    padded = F.pad(x_BCHW, (reach,) * 4, mode)
    return random_window(padded, (x_BCHW.shape[2], x_BCHW.shape[3]))


def mirrored(x_BCHW: torch.Tensor, which_B: torch.Tensor) -> torch.Tensor:
    """The images that ``which_B`` names, left to right; the others as they are."""
    return torch.where(which_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)


def lit(x_BCHW: torch.Tensor, brightness: float, contrast: tuple[float, float]) -> torch.Tensor:
    """Each image brighter or darker, and with more or less contrast about each channel's mean.

    Args:
        x_BCHW: float, in any unit.
        brightness: the largest change, up or down, in that unit.
        contrast: the smallest and the largest factor.
    """
    shape = (len(x_BCHW), 1, 1, 1)
    low, high = contrast
    change = brightness * (2 * torch.rand(shape, device=x_BCHW.device) - 1)
    factor = low + (high - low) * torch.rand(shape, device=x_BCHW.device)
    mean = x_BCHW.mean((2, 3), keepdim=True)
    return (x_BCHW - mean) * factor + mean + change


def whitened(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Each image less its mean, over its standard deviation but at least 1 / sqrt(values).

    The floor is for images of one colour; TensorFlow's ``per_image_standardization``.
    """
    floor = x_BCHW[0].numel() ** -0.5
    std, mean = torch.std_mean(x_BCHW, (1, 2, 3), correction=0, keepdim=True)
    return (x_BCHW - mean) / std.clamp_min(floor)
