"""The same mechanisms in the fewest and cheapest operators PyTorch has, gradients in closed form.

Autograd keeps every intermediate, and for every factor of a product it passes over the link matrix
again. Here a mechanism, and a whole step, is one node of its graph: the backward is written out
beside the forward, adds up in place, and keeps no second link matrix. Nothing loops over heads or
slots. The equations are in ``kernels.dnc.reference``, and shapes as there; ``x_dBN`` is the
gradient of ``x_BN``.

A forward returns its outputs and, in groups, what its backward needs beside them and the inputs.
Second derivatives are those of the reference, and so is what ``torch.compile`` compiles, which
fuses better than any hand-written sequence of operators.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.autocast import in_float32
from kernels.dnc import reference
from kernels.dnc.reference import EPSILON, Interface, Parts, State, compose

# Elements of link matrices that are worked on at a time, a megabyte of float32: what one operator
# leaves in the cache, the next one finds there.
SLAB = 2**18

Tensors = tuple[Tensor, ...]
Grads = tuple[Tensor | None, ...]
Forward = tuple[Tensors, tuple[Tensors, ...]]


def _node(
    forward: Callable[..., Forward], backward: Callable[..., Tensors], formula: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that is one node of the autograd graph; ``formula`` computes the same values.

    Who calls it has left an autocast region; who takes its gradient may be in one.
    """
    gradient, differentiable = in_float32(backward), in_float32(_differentiable)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, options: dict[str, bool], *inputs: Tensor) -> Any:
            outputs, groups = forward(*inputs, **options)
            ctx.set_materialize_grads(False)
            ctx.options = options
            ctx.sizes = [len(group) for group in (inputs, outputs, *groups)]
            ctx.save_for_backward(*inputs, *outputs, *(t for group in groups for t in group))
            return outputs if len(outputs) > 1 else outputs[0]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            saved = iter(ctx.saved_tensors)
            inputs, *groups = [tuple(next(saved) for _ in range(n)) for n in ctx.sizes]
            if all(grad is None for grad in grads):
                return None, *[None] * len(inputs)
            if torch.is_grad_enabled():
                return None, *differentiable(formula, inputs, ctx.options, grads)
            return None, *gradient(grads, inputs, *groups, **ctx.options)

    def call(*inputs: Tensor, **options: bool) -> Any:
        if torch.compiler.is_compiling():
            return formula(*inputs, **options)
        return Node.apply(options, *inputs)

    return call


def _differentiable(
    formula: Callable[..., Any], inputs: Tensors, options: dict[str, bool], grads: Grads
) -> Grads:
    """The gradients by autograd, themselves differentiable by ``inputs`` and ``grads``."""
    outputs = formula(*inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    known = [i for i, grad in enumerate(grads) if grad is not None]
    wanted = [t for t in inputs if t.requires_grad]
    found = torch.autograd.grad(
        [outputs[i] for i in known],
        wanted,
        [grads[i] for i in known],
        create_graph=True,
        allow_unused=True,
    )
    each = iter(found)
    return tuple(next(each) if t.requires_grad else None for t in inputs)


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _add_outer_(total_BNW: Tensor, left_BRN: Tensor, right_BRW: Tensor) -> Tensor:
    """Add the outer products of R pairs of rows, in place."""
    if left_BRN.shape[1] == 1:
        # A batched matrix product of one term takes four times as long.
        return total_BNW.addcmul_(left_BRN.mT, right_BRW)
    return total_BNW.baddbmm_(left_BRN.mT, right_BRW)


def _constant(cached: Any, *key: Any) -> Tensor:
    """What ``cached`` made once, made anew where a mode intercepts operators.

    ``FakeTensorMode`` makes tensors that are of no use outside of it, and takes no others.
    """
    make = cached.__wrapped__ if torch._C._len_torch_dispatch_stack() else cached
    return make(*key)  # type: ignore[no-any-return]


def _number(value: float, like: Tensor) -> Tensor:
    """A constant that is made once: a Python number would become a tensor in every call."""
    return _constant(_cached_number, value, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _cached_number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A cached tensor may meet autograd first inside inference mode, and outlive it.
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def _lower_triangle(n: int, like: Tensor) -> Tensor:
    """Ones below the diagonal."""
    return _constant(_cached_triangle, n, like.dtype, like.device)


@functools.lru_cache(maxsize=16)
def _cached_triangle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(n, n, dtype=dtype, device=device).tril(-1)


def _inverse_lengths(rows: Tensor) -> Tensor:
    """1 / sqrt(x x + eps) of the rows of ``rows``, whose last dimension goes."""
    squares: Tensor = torch.linalg.vecdot(rows, rows)
    return squares.add_(_number(EPSILON, rows)).rsqrt_()


def _scale(keys_BHW: Tensor, strengths_BH: Tensor) -> tuple[Tensor, Tensors]:
    """Keys as long as they are strong, of which the softmax takes the products with words."""
    inverse_BH = _inverse_lengths(keys_BHW)
    factors_BH = strengths_BH * inverse_BH
    return keys_BHW * factors_BH.unsqueeze(-1), (inverse_BH, factors_BH)


def _scale_backward(
    scaled_dBHW: Tensor, keys_BHW: Tensor, inverse_BH: Tensor, factors_BH: Tensor
) -> tuple[Tensor, Tensor]:
    strengths_dBH = torch.linalg.vecdot(scaled_dBHW, keys_BHW).mul_(inverse_BH)
    shorter_BH = (strengths_dBH * factors_BH).mul_(inverse_BH)
    keys_dBHW = scaled_dBHW * factors_BH.unsqueeze(-1)
    return keys_dBHW.addcmul_(keys_BHW, shorter_BH.unsqueeze(-1), value=-1), strengths_dBH


def _match(memory_BNW: Tensor, scaled_BHW: Tensor) -> tuple[Tensor, Tensors]:
    """c_BHN of keys that were scaled."""
    inverse_BN = _inverse_lengths(memory_BNW)
    scores_BHN = torch.bmm(scaled_BHW, memory_BNW.mT).mul_(inverse_BN.unsqueeze(1))
    return torch.softmax(scores_BHN, -1), (inverse_BN, scores_BHN)


def _match_backward(
    content_dBHN: Tensor,
    memory_BNW: Tensor,
    scaled_BHW: Tensor,
    content_BHN: Tensor,
    kept: Tensors,
    total_dBNW: Tensor,
) -> Tensor:
    """The gradient of the scaled keys; that of the memory is added to ``total_dBNW``."""
    inverse_BN, scores_BHN = kept
    dtype = content_BHN.dtype
    products_dBHN = torch._softmax_backward_data(content_dBHN, content_BHN, -1, dtype)
    products_dBHN.mul_(inverse_BN.unsqueeze(1))
    shorter_BN = (products_dBHN * scores_BHN).sum(1).mul_(inverse_BN)
    _add_outer_(total_dBNW, products_dBHN, scaled_BHW)
    total_dBNW.addcmul_(memory_BNW, shorter_BN.unsqueeze(-1), value=-1)
    return torch.bmm(products_dBHN, memory_BNW)


def _content(memory_BNW: Tensor, keys_BHW: Tensor, strengths_BH: Tensor) -> Forward:
    scaled_BHW, of_keys = _scale(keys_BHW, strengths_BH)
    content_BHN, of_memory = _match(memory_BNW, scaled_BHW)
    return (content_BHN,), ((scaled_BHW,), of_keys, of_memory)


def _content_backward(
    grads: Any, inputs: Tensors, outputs: Tensors, scaled: Tensors, of_keys: Tensors, kept: Tensors
) -> Tensors:
    memory_BNW, keys_BHW, _ = inputs
    memory_dBNW = torch.zeros_like(memory_BNW)
    scaled_dBHW = _match_backward(grads[0], memory_BNW, scaled[0], outputs[0], kept, memory_dBNW)
    return memory_dBNW, *_scale_backward(scaled_dBHW, keys_BHW, *of_keys)


def _usage(usage_BN: Tensor, write_BN: Tensor, read_BRN: Tensor, free_gates_BR: Tensor) -> Forward:
    one = _number(1.0, usage_BN)
    retained_BRN = torch.addcmul(one, free_gates_BR.unsqueeze(-1), read_BRN, value=-1)
    psi_BN = retained_BRN.prod(1)
    filled_BN = torch.lerp(usage_BN, one, write_BN)
    return (filled_BN * psi_BN,), ((retained_BRN, psi_BN, filled_BN),)


def _usage_backward(grads: Any, inputs: Tensors, _: Tensors, kept: Tensors) -> Tensors:
    usage_BN, write_BN, read_BRN, free_gates_BR = inputs
    retained_BRN, psi_BN, filled_BN = kept
    filled_dBN = grads[0] * psi_BN
    freed_BRN = (grads[0] * filled_BN).neg_().unsqueeze(1)
    if retained_BRN.shape[1] > 1:
        freed_BRN = freed_BRN * _product_of_others(retained_BRN)
    return (
        torch.addcmul(filled_dBN, filled_dBN, write_BN, value=-1),
        torch.addcmul(filled_dBN, filled_dBN, usage_BN, value=-1),
        freed_BRN * free_gates_BR.unsqueeze(-1),
        torch.linalg.vecdot(freed_BRN, read_BRN),
    )


def _product_of_others(factors_BRN: Tensor) -> Tensor:
    """For each head the product of the other heads' factors, any of which may be zero."""
    own_RR1 = torch.eye(factors_BRN.shape[1], dtype=torch.bool, device=factors_BRN.device)
    return factors_BRN.unsqueeze(1).masked_fill(own_RR1.unsqueeze(-1), 1).prod(2)


def _allocation(usage_BN: Tensor) -> Forward:
    """As usages are at least eps, the product before a slot is that up to it over its usage."""
    positive_BN = torch.add(_number(EPSILON, usage_BN), usage_BN, alpha=1 - EPSILON)
    sorted_BN, phi_BN = positive_BN.sort(dim=1, stable=True)
    up_to_BN = sorted_BN.cumprod(1)
    before_BN = up_to_BN / sorted_BN
    ordered_BN = before_BN - up_to_BN
    allocation_BN = torch.empty_like(ordered_BN).scatter_(1, phi_BN, ordered_BN)
    return (allocation_BN,), ((sorted_BN, phi_BN, before_BN, ordered_BN),)


def _allocation_backward(grads: Any, inputs: Tensors, _: Tensors, kept: Tensors) -> Tensors:
    """With the slots in order: du_k = -g_k before_k + sum over i after k of g_i a_i / u_k.

    The sum is made of what comes after and not of the total less what came before: the first slots
    may hold a million times as much, and the difference would be their rounding.
    """
    sorted_BN, phi_BN, before_BN, ordered_BN = kept
    after_NN = _lower_triangle(sorted_BN.shape[1], sorted_BN)
    ordered_dBN = grads[0].gather(1, phi_BN)
    sorted_dBN = torch.mm(ordered_dBN * ordered_BN, after_NN).div_(sorted_BN)
    sorted_dBN.addcmul_(ordered_dBN, before_BN, value=-1)
    sorted_dBN.mul_(_number(1 - EPSILON, sorted_dBN))
    return (ordered_dBN.scatter_(1, phi_BN, sorted_dBN),)


def _write(
    memory_BNW: Tensor,
    allocation_BN: Tensor,
    content_BN: Tensor,
    allocation_gate_B1: Tensor,
    write_gate_B1: Tensor,
    erase_BW: Tensor,
    vector_BW: Tensor,
) -> Forward:
    mixed_BN = torch.lerp(content_BN, allocation_BN, allocation_gate_B1)
    write_BN = mixed_BN * write_gate_B1
    change_BNW = _change(memory_BNW, erase_BW, vector_BW)
    return (torch.addcmul(memory_BNW, change_BNW, write_BN.unsqueeze(-1)), write_BN), ((mixed_BN,),)


def _change(memory_BNW: Tensor, erase_BW: Tensor, vector_BW: Tensor) -> Tensor:
    """What a weight of one does to a word."""
    return torch.addcmul(vector_BW.unsqueeze(1), memory_BNW, erase_BW.unsqueeze(1), value=-1)


def _write_backward(grads: Any, inputs: Tensors, outputs: Tensors, kept: Tensors) -> Tensors:
    memory_BNW, allocation_BN, content_BN, allocation_gate_B1, write_gate_B1, *vectors = inputs
    new_dBNW, write_dBN = (_or_zeros(g, o) for g, o in zip(grads, outputs, strict=True))
    change_BNW = _change(memory_BNW, *vectors)
    write_dBN = torch.linalg.vecdot(new_dBNW, change_BNW).add_(write_dBN)
    change_dBNW = new_dBNW * outputs[1].unsqueeze(-1)
    vector_dBW = change_dBNW.sum(1)
    memory_dBNW = torch.addcmul(new_dBNW, change_dBNW, vectors[0].unsqueeze(1), value=-1)
    erase_dBW = change_dBNW.mul_(memory_BNW).sum(1).neg_()
    mixed_dBN = write_dBN * write_gate_B1
    allocation_dBN = mixed_dBN * allocation_gate_B1
    gate_dB = torch.linalg.vecdot(mixed_dBN, allocation_BN - content_BN)
    return (
        memory_dBNW,
        allocation_dBN,
        mixed_dBN - allocation_dBN,
        gate_dB.unsqueeze(1),
        torch.linalg.vecdot(write_dBN, kept[0]).unsqueeze(1),
        erase_dBW,
        vector_dBW,
    )


def _in_slabs(function: Callable[..., Tensors], *tensors: Tensor | None) -> Tensors:
    """Call ``function`` on a few memories of the batch at a time, and join what it returns.

    A GPU gets them all at once: launches cost it more than its cache saves.
    """
    like: Tensor = tensors[-1]  # type: ignore[assignment]
    B, N = like.shape[0], like.shape[-1]
    n = max(1, SLAB // max(1, N * N))
    if n >= B or like.device.type != "cpu":
        return function(*tensors)
    parts = [
        function(*(None if t is None else t[b : b + n] for t in tensors)) for b in range(0, B, n)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _link(
    link_BNN: Tensor, precedence_BN: Tensor, write_BN: Tensor, read_BRN: Tensor, *, book: bool
) -> Forward:
    new_BNN = torch.empty_like(link_BNN, memory_format=torch.contiguous_format)

    def part(kept_BNN: Tensor, link_BNN: Tensor, *vectors: Tensor) -> Tensors:
        precedence_BN, write_BN, read_BRN = vectors
        new_BNN = _as_wide(kept_BNN, write_BN)
        _relink(new_BNN, link_BNN.to(write_BN.dtype), precedence_BN, write_BN, book)
        if new_BNN is not kept_BNN:
            kept_BNN.copy_(new_BNN)
        return torch.bmm(read_BRN, new_BNN.mT), torch.bmm(read_BRN, new_BNN)

    forward_BRN, backward_BRN = _in_slabs(
        part, new_BNN, link_BNN, precedence_BN, write_BN, read_BRN
    )
    total_B1 = write_BN.sum(1, keepdim=True)
    new_BN = (precedence_BN + write_BN).addcmul_(total_B1, precedence_BN, value=-1)
    return (new_BNN, new_BN, forward_BRN, backward_BRN), ((total_B1,),)


def _as_wide(memory: Tensor, like: Tensor) -> Tensor:
    """Where to compute what ``memory`` is to hold: there, or beside it if its type is narrower."""
    return memory if memory.dtype == like.dtype else torch.empty_like(memory, dtype=like.dtype)


def _relink(
    new_BNN: Tensor, link_BNN: Tensor, precedence_BN: Tensor, write_BN: Tensor, book: bool
) -> None:
    """Fills ``new_BNN``."""
    w_i = write_BN.unsqueeze(-1)
    torch.lerp(link_BNN, precedence_BN.unsqueeze(1), w_i, out=new_BNN)
    new_BNN.addcmul_(w_i if book else w_i.mT, link_BNN, value=-1)
    new_BNN.diagonal(dim1=1, dim2=2).zero_()


def _link_backward(
    grads: Any, inputs: Tensors, outputs: Tensors, kept: Tensors, *, book: bool
) -> Tensors:
    link_BNN, precedence_BN, write_BN, read_BRN = inputs
    link_dBNN, *small = grads
    new_dBN, forward_dBRN, backward_dBRN = (
        _or_zeros(g, o) for g, o in zip(small, outputs[1:], strict=True)
    )
    # The gradient of L is df r' + r db': pairs of rows, as they lie side by side.
    rows_BQN = torch.cat((forward_dBRN, read_BRN, backward_dBRN), 1)
    old_dBNN = torch.empty_like(link_BNN, memory_format=torch.contiguous_format)

    def part(*tensors: Any) -> Tensors:
        return _link_part_backward(*tensors, book=book)

    precedence_dBN, write_dBN, read_dBRN = _in_slabs(
        part, old_dBNN, link_dBNN, link_BNN, outputs[0], rows_BQN, precedence_BN, write_BN
    )
    precedence_dBN.add_(new_dBN).addcmul_(new_dBN, kept[0], value=-1)
    write_dBN.add_(new_dBN).sub_(torch.linalg.vecdot(new_dBN, precedence_BN).unsqueeze(1))
    return old_dBNN, precedence_dBN, write_dBN, read_dBRN


def _link_part_backward(
    kept_dBNN: Tensor,
    new_dBNN: Tensor | None,
    link_BNN: Tensor,
    new_BNN: Tensor,
    rows_BQN: Tensor,
    precedence_BN: Tensor,
    write_BN: Tensor,
    *,
    book: bool,
) -> Tensors:
    """Fills ``kept_dBNN``; the gradients of precedence, write and read weightings."""
    R = rows_BQN.shape[1] // 3
    old_dBNN = _as_wide(kept_dBNN, write_BN)
    if old_dBNN is not kept_dBNN:
        # What was read were links that had not been rounded yet.
        link_BNN, new_BNN = link_BNN.to(write_BN.dtype), torch.empty_like(old_dBNN)
        _relink(new_BNN, link_BNN, precedence_BN, write_BN, book)
    forward_dBRN, backward_dBRN = rows_BQN[:, :R], rows_BQN[:, 2 * R :]
    outer = rows_BQN[:, : 2 * R].mT, rows_BQN[:, R:]
    if new_dBNN is None:
        torch.bmm(*outer, out=old_dBNN)
    else:
        old_dBNN.copy_(new_dBNN).baddbmm_(*outer)
    old_dBNN.diagonal(dim1=1, dim2=2).zero_()
    read_dBRN = torch.bmm(forward_dBRN, new_BNN).baddbmm_(backward_dBRN, new_BNN.mT)
    w_i = write_BN.unsqueeze(-1)
    precedence_dB1N = torch.bmm(w_i.mT, old_dBNN)
    write_dB1N = torch.bmm(precedence_BN.unsqueeze(1), old_dBNN.mT)
    product_BNN = old_dBNN * link_BNN
    of_row_BN = product_BNN.sum(2)
    write_dBN = write_dB1N.squeeze(1).sub_(of_row_BN)
    write_dBN.sub_(of_row_BN if book else product_BNN.sum(1))
    lost = 2 * w_i if book else torch.add(w_i, w_i.mT, out=product_BNN)
    old_dBNN.addcmul_(old_dBNN, lost, value=-1)
    if old_dBNN is not kept_dBNN:
        kept_dBNN.copy_(old_dBNN)
    return precedence_dB1N.squeeze(1), write_dBN, read_dBRN


def _read(
    memory_BNW: Tensor,
    backward_BRN: Tensor,
    content_BRN: Tensor,
    forward_BRN: Tensor,
    modes_BSR: Tensor,
) -> Forward:
    ways_BSRN = torch.stack((backward_BRN, content_BRN, forward_BRN), 1)
    read_BRN = (ways_BSRN * modes_BSR.unsqueeze(-1)).sum(1)
    return (torch.bmm(read_BRN, memory_BNW), read_BRN), ((ways_BSRN,),)


def _read_backward(
    grads: Any,
    inputs: Tensors,
    outputs: Tensors,
    kept: Tensors,
    memory_dBNW: Tensor | None = None,
) -> Tensors:
    """The gradients; that of the memory is more than ``memory_dBNW``, which stays as it is."""
    memory_BNW, *_, modes_BSR = inputs
    words_dBRW, read_dBRN = (_or_zeros(g, o) for g, o in zip(grads, outputs, strict=True))
    read_dBRN = torch.bmm(words_dBRW, memory_BNW.mT).add_(read_dBRN)
    total_dBNW = torch.zeros_like(memory_BNW) if memory_dBNW is None else memory_dBNW.clone()
    _add_outer_(total_dBNW, outputs[1], words_dBRW)
    read_dB1RN = read_dBRN.unsqueeze(1)
    ways_dBSRN = modes_BSR.unsqueeze(-1) * read_dB1RN
    return total_dBNW, *ways_dBSRN.unbind(1), torch.linalg.vecdot(kept[0], read_dB1RN)


def _gates(to: Interface) -> Tensors:
    return to.allocation_gate_B1, to.write_gate_B1, to.erase_BW, to.write_vector_BW


def _change_memory(state: State, to: Interface, scaled_B1W: Tensor) -> Forward:
    """The first half of a step: free, allocate and write; M, u and w_w."""
    usages = (state.usage_BN, state.write_BN, state.read_BRN, to.free_gates_BR)
    (usage_BN,), (of_usage,) = _usage(*usages)
    (allocation_BN,), (of_allocation,) = _allocation(usage_BN)
    match_B1N, of_match = _match(state.memory_BNW, scaled_B1W)
    (memory_BNW, write_BN), (of_write,) = _write(
        state.memory_BNW, allocation_BN, match_B1N.squeeze(1), *_gates(to)
    )
    groups = ((allocation_BN, match_B1N), of_usage, of_allocation, of_match, of_write)
    return (memory_BNW, usage_BN, write_BN), groups


def _change_memory_backward(
    grads: Any, state: State, to: Interface, scaled_B1W: Tensor, outputs: Tensors, groups: Any
) -> tuple[Tensors, Tensors, Tensor]:
    """The gradients of M, u, w_w and w_r; of gates, vectors and free gates; of the scaled key."""
    new_dBNW, usage_dBN, write_dBN = grads
    (allocation_BN, match_B1N), of_usage, of_allocation, of_match, of_write = groups
    inputs = (state.memory_BNW, allocation_BN, match_B1N.squeeze(1), *_gates(to))
    memory_dBNW, allocation_dBN, match_dBN, *gates = _write_backward(
        (new_dBNW, write_dBN), inputs, (outputs[0], outputs[2]), of_write
    )
    scaled_dB1W = _match_backward(
        match_dBN.unsqueeze(1), state.memory_BNW, scaled_B1W, match_B1N, of_match, memory_dBNW
    )
    (freed_dBN,) = _allocation_backward((allocation_dBN,), (), (), of_allocation)
    if usage_dBN is not None:
        freed_dBN.add_(usage_dBN)
    usages = (state.usage_BN, state.write_BN, state.read_BRN, to.free_gates_BR)
    *of_state, free_gates_dBR = _usage_backward((freed_dBN,), usages, (), of_usage)
    return (memory_dBNW, *of_state), (*gates, free_gates_dBR), scaled_dB1W


def _follow_and_read(
    state: State,
    to: Interface,
    scaled_BRW: Tensor,
    memory_BNW: Tensor,
    write_BN: Tensor,
    book: bool,
) -> Forward:
    """The second half of a step: match, link and read; the words, L, p and w_r."""
    content_BRN, of_content = _match(memory_BNW, scaled_BRW)
    (link_BNN, precedence_BN, forward_BRN, backward_BRN), of_link = _link(
        state.link_BNN, state.precedence_BN, write_BN, state.read_BRN, book=book
    )
    (words_BRW, read_BRN), of_read = _read(
        memory_BNW, backward_BRN, content_BRN, forward_BRN, to.read_modes_BSR
    )
    outputs = (words_BRW, link_BNN, precedence_BN, read_BRN)
    return outputs, ((content_BRN,), of_content, *of_link, *of_read)


def _follow_and_read_backward(
    grads: Any,
    state: State,
    to: Interface,
    scaled_BRW: Tensor,
    outputs: Any,
    groups: Any,
    book: bool,
) -> tuple[Tensor, Tensors, Tensor, Tensor]:
    """The gradients of M; of L, p, w_w and w_r; of the read modes; of the scaled keys."""
    (words_dBRW, new_d), (words_BRW, new) = grads, outputs
    (content_BRN,), of_content, of_link, of_read = groups
    memory_dBNW, backward_dBRN, content_dBRN, forward_dBRN, modes_dBSR = _read_backward(
        (words_dBRW, new_d.read_BRN),
        (new.memory_BNW, to.read_modes_BSR),
        (words_BRW, new.read_BRN),
        of_read,
        new_d.memory_BNW,
    )
    scaled_dBRW = _match_backward(
        content_dBRN, new.memory_BNW, scaled_BRW, content_BRN, of_content, memory_dBNW
    )
    links = _link_backward(
        (new_d.link_BNN, new_d.precedence_BN, forward_dBRN, backward_dBRN),
        (state.link_BNN, state.precedence_BN, new.write_BN, state.read_BRN),
        (new.link_BNN, new.precedence_BN, state.read_BRN, state.read_BRN),
        of_link,
        book=book,
    )
    return memory_dBNW, links, modes_dBSR, scaled_dBRW


def _step(*inputs: Tensor, book: bool) -> Forward:
    state, to = State(*inputs[:6]), Interface(*inputs[6:])
    keys_BHW = torch.cat((to.write_key_B1W, to.read_keys_BRW), 1)
    strengths_BH = torch.cat((to.write_strength_B1, to.read_strengths_BR), 1)
    scaled_BHW, of_keys = _scale(keys_BHW, strengths_BH)
    (memory_BNW, usage_BN, write_BN), changing = _change_memory(state, to, scaled_BHW[:, :1])
    (words_BRW, link_BNN, precedence_BN, read_BRN), reading = _follow_and_read(
        state, to, scaled_BHW[:, 1:], memory_BNW, write_BN, book
    )
    outputs = (words_BRW, memory_BNW, usage_BN, precedence_BN, link_BNN, write_BN, read_BRN)
    return outputs, ((keys_BHW, scaled_BHW), of_keys, *reading, *changing)


def _step_backward(
    grads: Any, inputs: Tensors, outputs: Tensors, *groups: Tensors, book: bool
) -> Tensors:
    """Back through both halves, the second first."""
    state, to, new = State(*inputs[:6]), Interface(*inputs[6:]), State(*outputs[1:])
    new_d = State(*grads[1:])
    (keys_BHW, scaled_BHW), of_keys, *halves = groups
    memory_dBNW, links, modes_dBSR, read_keys_dBRW = _follow_and_read_backward(
        (grads[0], new_d), state, to, scaled_BHW[:, 1:], (outputs[0], new), halves[:4], book
    )
    link_dBNN, precedence_dBN, write_dBN, read_dBRN = links
    if new_d.write_BN is not None:
        write_dBN.add_(new_d.write_BN)
    written = (new.memory_BNW, new.usage_BN, new.write_BN)
    into = (memory_dBNW, new_d.usage_BN, write_dBN)
    of_state, gates, write_key_dB1W = _change_memory_backward(
        into, state, to, scaled_BHW[:, :1], written, halves[4:]
    )
    memory_dBNW, usage_dBN, old_write_dBN, freed_dBRN = of_state
    scaled_dBHW = torch.cat((write_key_dB1W, read_keys_dBRW), 1)
    keys_dBHW, strengths_dBH = _scale_backward(scaled_dBHW, keys_BHW, *of_keys)
    old_read_dBRN = read_dBRN.add_(freed_dBRN)
    state_d = (memory_dBNW, usage_dBN, precedence_dBN, link_dBNN, old_write_dBN, old_read_dBRN)
    return *state_d, *_of_interface(keys_dBHW, strengths_dBH, gates, modes_dBSR)


def _of_interface(
    keys_dBHW: Tensor, strengths_dBH: Tensor, gates: Tensors, modes_dBSR: Tensor
) -> Interface:
    """The gradients in their places; of the keys, the first is the write head's."""
    allocation_gate_dB1, write_gate_dB1, erase_dBW, vector_dBW, free_gates_dBR = gates
    return Interface(
        read_keys_BRW=keys_dBHW[:, 1:],
        read_strengths_BR=strengths_dBH[:, 1:],
        write_key_B1W=keys_dBHW[:, :1],
        write_strength_B1=strengths_dBH[:, :1],
        erase_BW=erase_dBW,
        write_vector_BW=vector_dBW,
        free_gates_BR=free_gates_dBR,
        allocation_gate_B1=allocation_gate_dB1,
        write_gate_B1=write_gate_dB1,
        read_modes_BSR=modes_dBSR,
    )


def _whole(*inputs: Tensor, book: bool) -> Tensors:
    words_BRW, state = reference.step(State(*inputs[:6]), Interface(*inputs[6:]), book=book)
    return words_BRW, *state


content = _node(_content, _content_backward, reference.content)
usage = _node(_usage, _usage_backward, reference.usage)
allocation = _node(_allocation, _allocation_backward, reference.allocation)
write = _node(_write, _write_backward, reference.write)
_linked = _node(_link, _link_backward, reference.link)
read = _node(_read, _read_backward, reference.read)
_stepped = _node(_step, _step_backward, _whole)


def link(
    link_BNN: Tensor,
    precedence_BN: Tensor,
    write_BN: Tensor,
    read_BRN: Tensor,
    *,
    book: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_BNN and p_BN of this step, f_BRN and b_BRN."""
    return _linked(link_BNN, precedence_BN, write_BN, read_BRN, book=book)  # type: ignore[no-any-return]


def step(
    state: State, to: Interface, *, links: bool = True, book: bool = False
) -> tuple[Tensor, State]:
    """The whole step as one node; without links, put together from the others."""
    if not links:
        return compose(PARTS, state, to, links=False)
    words_BRW, *rest = _stepped(*state, *to, book=book)
    return words_BRW, State(*rest)


PARTS = Parts(content, usage, allocation, write, link, read)
