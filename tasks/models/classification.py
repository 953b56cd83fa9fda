"""What classifiers of images have in common: their input and their loss."""

import torch
from torch import nn
from torch.nn import functional as F


def pixels(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Bytes of images as rows of numbers from 0 to 1."""
    return images_BCHW.flatten(1).float() / 255


def loss(model: nn.Module, x_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of a model's logits."""
    return F.cross_entropy(model(x_BD), y_B)
