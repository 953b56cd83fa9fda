"""A layer of long short-term memory, as it is written down, step by step.

Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997), with the forget
gate of Gers, Schmidhuber and Cummins (2000), no peepholes. With the gates in PyTorch's order:

    i, f, o = sigmoid(W x + U h + b),  g = tanh(W x + U h + b)
    c = f c + i g
    h = o tanh(c)

Beyond a sequence's length its state stays as it is and its output is zero; what stands there in x
is never looked at. A layer that runs in reverse begins at the last step of each sequence.

Shapes: T steps, B batch, X inputs, H units; G the 4 H gates in the order i, f, g, o.
"""

import torch
from torch.nn import functional as F

State = tuple[torch.Tensor, torch.Tensor]


def lstm(
    x_TBX: torch.Tensor,
    weight_ih_GX: torch.Tensor,
    weight_hh_GH: torch.Tensor,
    bias_G: torch.Tensor | None,
    state: State,
    *,
    lengths: torch.Tensor | None = None,
    reverse: bool = False,
) -> tuple[torch.Tensor, State]:
    """y_TBH, and h_BH and c_BH after the last step."""
    (h_BH, c_BH), T, y = state, x_TBX.shape[0], []
    for t in reversed(range(T)) if reverse else range(T):
        x_BX = x_TBX[t]
        if lengths is not None:
            on_B1 = (t < lengths)[:, None].to(x_BX.device)
            x_BX = torch.where(on_B1, x_BX, 0)
        gates_BG = F.linear(x_BX, weight_ih_GX, bias_G) + F.linear(h_BH, weight_hh_GH)
        i, f, g, o = gates_BG.chunk(4, 1)
        new_c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
        new_h_BH = o.sigmoid() * new_c_BH.tanh()
        if lengths is None:
            h_BH, c_BH = new_h_BH, new_c_BH
            y.append(h_BH)
        else:
            h_BH = torch.where(on_B1, new_h_BH, h_BH)
            c_BH = torch.where(on_B1, new_c_BH, c_BH)
            y.append(torch.where(on_B1, new_h_BH, 0))
    if not y:
        return x_TBX.new_zeros(0, *h_BH.shape), state
    return torch.stack(y[::-1] if reverse else y), (h_BH, c_BH)
