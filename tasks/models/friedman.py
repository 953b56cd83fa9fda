"""Friedman's first test function, of which the effect of every feature is known."""

import math

import torch


def friedman(x_RD: torch.Tensor) -> torch.Tensor:
    """y_R = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5, for x uniform on 0..1.

    Friedman, Multivariate Adaptive Regression Splines, 1991. Further columns have no effect.
    """
    x1, x2, x3, x4, x5 = x_RD[:, :5].unbind(1)
    return 10 * torch.sin(math.pi * x1 * x2) + 20 * (x3 - 0.5) ** 2 + 10 * x4 + 5 * x5


def r2(found_R: torch.Tensor, y_R: torch.Tensor) -> float:
    """The share of the variance that is explained: 1 - MSE / variance."""
    return float(1 - ((found_R - y_R) ** 2).mean() / y_R.var(correction=0))
