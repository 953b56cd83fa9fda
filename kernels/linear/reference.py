"""A linear layer, and the matrix product that it is made of.

    y[b, o] = f(bias[o] + sum_i weight[o, i] x[b, i])

where f is the identity or relu(z) = max(z, 0). Backwards, with dy the gradient of y and dz that of
what f is applied to, which is dy where y is above zero and zero elsewhere:

    dx[b, i] = sum_o dz[b, o] weight[o, i]
    dweight[o, i] = sum_b dz[b, o] x[b, i]
    dbias[o] = sum_b dz[b, o]

The book derives them in chapter 4, "The Backpropagation Algorithm".

Shapes: B rows (examples), I inputs, O outputs.
"""

import torch


def linear(
    x_BI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    *,
    relu: bool = False,
) -> torch.Tensor:
    """y_BO."""
    z_BO = x_BI @ weight_OI.mT
    if bias_O is not None:
        z_BO = z_BO + bias_O
    return torch.relu(z_BO) if relu else z_BO


def matmul(a_BI: torch.Tensor, b_IO: torch.Tensor) -> torch.Tensor:
    """c_BO, the layer whose weight is b transposed, without more."""
    return a_BI @ b_IO
