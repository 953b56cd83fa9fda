"""The kernels as PyTorch ops with gradients: what is kept for the backward, and what recomputed.

Kept are the inputs and the outputs; norms, scores, gates and products are computed again. Every
mechanism is an op, and so is a whole step: its forward is seven launches and its backward seven,
with a few sums over partial results between them.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.dnc import triton as launch
from kernels.dnc.reference import Interface, Parts, State, compose
from kernels.register import define, empty_like


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _content(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    return launch.content_forward(memory, keys, strengths)


def _content_backward(
    grad: Tensor, memory: Tensor, keys: Tensor, strengths: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return launch.content_backward(grad, memory, keys, strengths, out)


content = define(
    "dnc_content",
    _content,
    _content_backward,
    fake=lambda memory, keys, strengths: keys.new_empty(
        keys.shape[0], keys.shape[1], memory.shape[1]
    ),
    fake_backward=lambda grad, memory, keys, strengths, out: empty_like(memory, keys, strengths),
    save=lambda inputs, out: (*inputs, out),
    autocast=torch.float32,
)


def _usage(usage: Tensor, write: Tensor, read: Tensor, free: Tensor) -> Tensor:
    return launch.usage_forward(usage, write, read, free)


def _usage_backward(
    grad: Tensor, usage: Tensor, write: Tensor, read: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launch.usage_backward(grad, usage, write, read, free)


usage = define(
    "dnc_usage",
    _usage,
    _usage_backward,
    fake=lambda usage, write, read, free: empty_like(usage)[0],
    fake_backward=lambda grad, *inputs: empty_like(*inputs),
    save=lambda inputs, out: inputs,
    autocast=torch.float32,
)


def _allocation(usage: Tensor) -> Tensor:
    return launch.allocation_forward(usage)


def _allocation_backward(grad: Tensor, usage: Tensor, out: Tensor) -> Tensor:
    return launch.allocation_backward(grad, usage, out)


allocation = define(
    "dnc_allocation",
    _allocation,
    _allocation_backward,
    fake=lambda usage: empty_like(usage)[0],
    fake_backward=lambda grad, usage, out: empty_like(usage)[0],
    save=lambda inputs, out: (*inputs, out),
    autocast=torch.float32,
)


def _write(
    memory: Tensor,
    allocation: Tensor,
    content: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    erase: Tensor,
    vector: Tensor,
) -> tuple[Tensor, Tensor]:
    return launch.write_forward(
        memory, allocation, content, allocation_gate, write_gate, erase, vector
    )


def _write_backward(
    grad_memory: Tensor | None,
    grad_write: Tensor | None,
    memory: Tensor,
    allocation: Tensor,
    content: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    erase: Tensor,
    vector: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return launch.write_backward(
        _or_zeros(grad_memory, memory),
        _or_zeros(grad_write, allocation),
        memory,
        allocation,
        content,
        allocation_gate,
        write_gate,
        erase,
        vector,
    )


write = define(
    "dnc_write",
    _write,
    _write_backward,
    fake=lambda memory, allocation, *rest: empty_like(memory, allocation),
    fake_backward=lambda grad_memory, grad_write, *inputs: empty_like(*inputs),
    save=lambda inputs, out: inputs,
    autocast=torch.float32,
)


def _link(
    link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, book: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launch.link_forward(link, precedence, write, read, book)


def _link_backward(
    grad: Tensor | None,
    grad_precedence: Tensor | None,
    grad_forward: Tensor | None,
    grad_backward: Tensor | None,
    link: Tensor,
    precedence: Tensor,
    write: Tensor,
    read: Tensor,
    book: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launch.link_backward(
        _or_zeros(grad, link),
        _or_zeros(grad_precedence, precedence),
        _or_zeros(grad_forward, read),
        _or_zeros(grad_backward, read),
        link,
        precedence,
        write,
        read,
        book,
    )


_link_op = define(
    "dnc_link",
    _link,
    _link_backward,
    fake=lambda link, precedence, write, read, book: empty_like(link, precedence, read, read),
    fake_backward=lambda g, gp, gf, gb, link, precedence, write, read, book: empty_like(
        link, precedence, write, read
    ),
    save=lambda inputs, out: inputs[:4],
    options=(False,),
    autocast=torch.float32,
)


def link(
    link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, *, book: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_BNN, p_BN, f_BRN and b_BRN."""
    return _link_op(link, precedence, write, read, book)  # type: ignore[no-any-return]


def _read(
    memory: Tensor, backward: Tensor, content: Tensor, forward: Tensor, modes: Tensor
) -> tuple[Tensor, Tensor]:
    return launch.read_forward(memory, backward, content, forward, modes)


def _read_backward(
    grad_words: Tensor | None,
    grad_read: Tensor | None,
    memory: Tensor,
    backward: Tensor,
    content: Tensor,
    forward: Tensor,
    modes: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if grad_words is None:
        grad_words = memory.new_zeros(memory.shape[0], content.shape[1], memory.shape[2])
    return launch.read_backward(
        grad_words, _or_zeros(grad_read, content), memory, backward, content, forward, modes
    )


read = define(
    "dnc_read",
    _read,
    _read_backward,
    fake=lambda memory, backward, content, forward, modes: (
        memory.new_empty(memory.shape[0], content.shape[1], memory.shape[2]),
        *empty_like(content),
    ),
    fake_backward=lambda grad_words, grad_read, *inputs: empty_like(*inputs),
    save=lambda inputs, out: inputs,
    autocast=torch.float32,
)

PARTS = Parts(content, usage, allocation, write, link, read)


def _step(
    memory: Tensor,
    usage: Tensor,
    precedence: Tensor,
    link: Tensor,
    write: Tensor,
    read: Tensor,
    read_keys: Tensor,
    read_strengths: Tensor,
    write_key: Tensor,
    write_strength: Tensor,
    erase: Tensor,
    write_vector: Tensor,
    free_gates: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    read_modes: Tensor,
    book: bool,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    new_usage = launch.usage_forward(usage, write, read, free_gates)
    allocated = launch.allocation_forward(new_usage)
    write_content = launch.content_forward(memory, write_key, write_strength)
    new_memory, new_write = launch.write_forward(
        memory,
        allocated,
        write_content[:, 0],
        allocation_gate,
        write_gate,
        erase,
        write_vector,
    )
    new_link, new_precedence, forward, backward = launch.link_forward(
        link, precedence, new_write, read, book
    )
    read_content = launch.content_forward(new_memory, read_keys, read_strengths)
    words, new_read = launch.read_forward(new_memory, backward, read_content, forward, read_modes)
    state = (new_memory, new_usage, new_precedence, new_link, new_write, new_read)
    return (words, *state, allocated, write_content, read_content, forward, backward)


def _step_backward(
    grad_words: Tensor | None,
    grad_memory: Tensor | None,
    grad_usage: Tensor | None,
    grad_precedence: Tensor | None,
    grad_link: Tensor | None,
    grad_write: Tensor | None,
    grad_read: Tensor | None,
    memory: Tensor,
    usage: Tensor,
    precedence: Tensor,
    link: Tensor,
    write: Tensor,
    read: Tensor,
    read_keys: Tensor,
    read_strengths: Tensor,
    write_key: Tensor,
    write_strength: Tensor,
    erase: Tensor,
    write_vector: Tensor,
    free_gates: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    read_modes: Tensor,
    new_memory: Tensor,
    new_usage: Tensor,
    new_write: Tensor,
    allocated: Tensor,
    write_content: Tensor,
    read_content: Tensor,
    forward: Tensor,
    backward: Tensor,
    book: bool,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    if grad_words is None:
        grad_words = memory.new_zeros(memory.shape[0], read.shape[1], memory.shape[2])
    d_memory, d_backward, d_content, d_forward, d_modes = launch.read_backward(
        grad_words,
        _or_zeros(grad_read, read),
        new_memory,
        backward,
        read_content,
        forward,
        read_modes,
        add=grad_memory,
    )
    d_memory, d_read_keys, d_read_strengths = launch.content_backward(
        d_content, new_memory, read_keys, read_strengths, read_content, add=d_memory
    )
    d_link, d_precedence, d_write, d_read = launch.link_backward(
        _or_zeros(grad_link, link),
        _or_zeros(grad_precedence, precedence),
        d_forward,
        d_backward,
        link,
        precedence,
        new_write,
        read,
        book,
    )
    d_memory, d_allocation, d_write_content, d_allocation_gate, d_write_gate, d_erase, d_vector = (
        launch.write_backward(
            d_memory,
            d_write if grad_write is None else d_write + grad_write,
            memory,
            allocated,
            write_content[:, 0],
            allocation_gate,
            write_gate,
            erase,
            write_vector,
        )
    )
    d_memory, d_write_key, d_write_strength = launch.content_backward(
        d_write_content[:, None], memory, write_key, write_strength, write_content, add=d_memory
    )
    d_usage = launch.allocation_backward(d_allocation, new_usage, allocated)
    d_usage, d_old_write, d_old_read, d_free = launch.usage_backward(
        d_usage if grad_usage is None else d_usage + grad_usage, usage, write, read, free_gates
    )
    state = (d_memory, d_usage, d_precedence, d_link, d_old_write, d_read + d_old_read)
    keys = (d_read_keys, d_read_strengths, d_write_key, d_write_strength)
    return (*state, *keys, d_erase, d_vector, d_free, d_allocation_gate, d_write_gate, d_modes)


def _fake_step(*inputs: Any) -> tuple[Tensor, ...]:
    memory, usage, precedence, link, write, read, _, _, write_key = inputs[:9]
    (b, n, w), state = memory.shape, empty_like(memory, usage, precedence, link, write, read)
    words = memory.new_empty(b, read.shape[1], w)
    write_content = memory.new_empty(b, write_key.shape[1], n)
    return (words, *state, *empty_like(usage), write_content, *empty_like(read, read, read))


_step_op = define(
    "dnc_step",
    _step,
    _step_backward,
    fake=_fake_step,
    fake_backward=lambda *args: empty_like(*args[7:23]),
    save=lambda inputs, out: (*inputs[:16], out[1], out[2], out[5], *out[7:]),
    options=(False,),
    outputs=7,
    autocast=torch.float32,
)


def step(
    state: State, to: Interface, *, links: bool = True, book: bool = False
) -> tuple[Tensor, State]:
    """The whole step as one op; without links, put together from the others."""
    if not links:
        return compose(PARTS, state, to, links=False)
    words_BRW, *rest = _step_op(*state, *to, book)
    return words_BRW, State(*rest[:6])
