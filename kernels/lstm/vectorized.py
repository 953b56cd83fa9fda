"""The same layer by the vendor's operator, on packed sequences where lengths are given.

The equations are in ``kernels.lstm.reference``; shapes as there. Packing needs the lengths on the
processor, so lengths on a GPU are waited for. On a GPU cuDNN copies the weights into one block at
every call, and PyTorch warns of that once.
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from kernels.lstm import reference
from kernels.lstm.reference import State


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
    weights = [weight_ih_GX, weight_hh_GH]
    if bias_G is not None:
        weights += [bias_G, torch.zeros_like(bias_G)]
    T, B, _ = x_TBX.shape
    if T * B == 0 or (lengths is not None and int(lengths.max()) == 0):
        # The operator takes neither a batch nor a sequence without elements.
        return reference.lstm(
            x_TBX,
            weight_ih_GX,
            weight_hh_GH,
            bias_G,
            state,
            lengths=lengths,
            reverse=reverse,
        )
    # cuDNN computes gradients of what ran for training only.
    mode = (bias_G is not None, 1, 0.0, torch.is_grad_enabled(), False)
    if lengths is None:
        turned_TBX = x_TBX.flip(0) if reverse else x_TBX
        initial = [part[None].contiguous() for part in state]
        y_TBH, h_1BH, c_1BH = torch.lstm(turned_TBX, initial, weights, *mode, False)
        return y_TBH.flip(0) if reverse else y_TBH, (h_1BH[0], c_1BH[0])
    if reverse:
        x_TBX = _turned(x_TBX, lengths)
    lengths_N, rows_N = lengths.cpu().sort(descending=True)
    some = lengths_N > 0
    lengths_N, rows_N = lengths_N[some], rows_N[some].to(x_TBX.device)
    packed = pack_padded_sequence(x_TBX[:, rows_N], lengths_N)
    initial = [part[None, rows_N] for part in state]
    data, h_1NH, c_1NH = torch.lstm(packed.data, packed.batch_sizes, initial, weights, *mode)
    y_TNH, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes), total_length=T)
    y_TBH = y_TNH.new_zeros(T, B, y_TNH.shape[2]).index_copy(1, rows_N, y_TNH)
    if reverse:
        y_TBH = _turned(y_TBH, lengths)
    h_BH, c_BH = state
    return y_TBH, (h_BH.index_copy(0, rows_N, h_1NH[0]), c_BH.index_copy(0, rows_N, c_1NH[0]))


def _turned(x_TBX: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Each sequence from its end to its beginning; what is beyond its length stays."""
    lengths = lengths.to(x_TBX.device)
    t_T1 = torch.arange(x_TBX.shape[0], device=x_TBX.device)[:, None]
    from_TB = torch.where(t_T1 < lengths, lengths - 1 - t_T1, t_T1)
    return x_TBX.gather(0, from_TB[..., None].expand_as(x_TBX))
