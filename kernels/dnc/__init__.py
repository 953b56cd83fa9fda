"""The memory of a differentiable neural computer: every addressing mechanism, and a whole step.

The equations and their symbols are in ``kernels.dnc.reference``. ``impl`` is ``reference``,
``torch``, ``compile``, ``triton`` or ``auto`` (see ``kernels.dispatch``). All tensors have one
floating-point dtype and one device; every tensor gets a gradient. The gradients of ``triton`` are
not differentiable again. An autocast region computes in float32: tensors are cast to it first,
those of float64 excepted.

The link matrix is by far the largest part of a state, and one is kept for every step of a sequence
whose gradients are due. It alone may be of bfloat16 or float16 while all else is wider, see
``blank``: it is computed with in the others' type and rounded when it is stored, and so is its
gradient. An autocast region leaves it as it is.

``sequence`` runs a controller and its memory over a whole sequence; ``Captured`` has a GPU replay
any module as a CUDA graph.

Shapes: B batch, T time, N memory slots, W word size, R read heads, H keys, X input, C what the
controller passes on; S the 3 modes of a read head, in the order backward, content, forward. One
write head.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kernels import checks
from kernels.autocast import in_float32
from kernels.dispatch import Op
from kernels.dnc import reference, rollout, vectorized
from kernels.dnc.reference import EPSILON, Interface, State
from kernels.dnc.rollout import Captured, Carry, Control, Step

__all__ = [
    "EPSILON",
    "Captured",
    "Carry",
    "Control",
    "Interface",
    "State",
    "Step",
    "allocation",
    "blank",
    "content",
    "link",
    "read",
    "sequence",
    "start",
    "step",
    "steps",
    "usage",
    "write",
]

# A kernel holds whole words, 16 at a time, in registers.
MOST_WORD = 1024
# What links may be rounded to where all else is wider.
NARROW = (torch.bfloat16, torch.float16)


def _op(name: str) -> Op:
    """The op of that name in all its implementations."""

    def triton() -> Any:
        from kernels.dnc import op

        return getattr(op, name)

    return Op(f"dnc.{name}", getattr(reference, name), getattr(vectorized, name), triton, _refusals)


def _refusals(first: Any, *rest: Any, **options: Any) -> list[str]:
    memory = first.memory_BNW if isinstance(first, State) else first
    width = memory.shape[-1] if memory.dim() == 3 else 0
    return [f"rows of {width} exceed {MOST_WORD}"] if width > MOST_WORD else []


_content, _usage, _allocation = _op("content"), _op("usage"), _op("allocation")
_write, _link, _read, _step = _op("write"), _op("link"), _op("read"), _op("step")


@in_float32
def content(memory: Tensor, keys: Tensor, strengths: Tensor, *, impl: str | None = None) -> Tensor:
    """Weightings by content: softmax over the slots of strength times cosine of key and word.

    Args:
        memory: (B, N, W).
        keys: (B, H, W).
        strengths: (B, H), at least 1 in the paper.
        impl: what computes it.

    Returns:
        (B, H, N), each row summing to 1.

    Raises:
        ValueError: other shapes or devices, an unknown ``impl``.
        TypeError: other dtypes.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    checks.tensors(
        {"memory": (memory, "B N W"), "keys": (keys, "B H W"), "strengths": (strengths, "B H")}
    )
    return _content(memory, keys, strengths, impl=impl)  # type: ignore[no-any-return]


@in_float32
def usage(
    usage: Tensor, write: Tensor, read: Tensor, free_gates: Tensor, *, impl: str | None = None
) -> Tensor:
    """How far each slot is in use: what was written is, what was read and freed is not.

    Args:
        usage: (B, N) of the last step, in [0, 1].
        write: (B, N), the last step's write weighting.
        read: (B, R, N), the last step's read weightings.
        free_gates: (B, R), in [0, 1].
        impl: what computes it.

    Returns:
        (B, N), in [0, 1].

    Raises:
        ValueError, TypeError, Unavailable: as ``content``.
    """
    checks.tensors(
        {
            "usage": (usage, "B N"),
            "write": (write, "B N"),
            "read": (read, "B R N"),
            "free_gates": (free_gates, "B R"),
        }
    )
    return _usage(usage, write, read, free_gates, impl=impl)  # type: ignore[no-any-return]


@in_float32
def allocation(usage: Tensor, *, impl: str | None = None) -> Tensor:
    """Weighting of the slots by free space, the emptiest first; of equal slots the first.

    Args:
        usage: (B, N), in [0, 1].
        impl: what computes it.

    Returns:
        (B, N), each row summing to at most 1.

    Raises:
        ValueError, TypeError, Unavailable: as ``content``.
    """
    checks.tensors({"usage": (usage, "B N")})
    return _allocation(usage, impl=impl)  # type: ignore[no-any-return]


@in_float32
def write(
    memory: Tensor,
    allocation: Tensor,
    content: Tensor,
    allocation_gate: Tensor,
    write_gate: Tensor,
    erase: Tensor,
    vector: Tensor,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Erase and write.

    Args:
        memory: (B, N, W).
        allocation: (B, N).
        content: (B, N), the weighting of the write key.
        allocation_gate: (B, 1), the share of allocation against content.
        write_gate: (B, 1), 0 writes nothing.
        erase: (B, W), in [0, 1].
        vector: (B, W), what is written.
        impl: what computes it.

    Returns:
        The memory, (B, N, W), and the write weighting, (B, N).

    Raises:
        ValueError, TypeError, Unavailable: as ``content``.
    """
    checks.tensors(
        {
            "memory": (memory, "B N W"),
            "allocation": (allocation, "B N"),
            "content": (content, "B N"),
            "allocation_gate": (allocation_gate, "B G"),
            "write_gate": (write_gate, "B G"),
            "erase": (erase, "B W"),
            "vector": (vector, "B W"),
        },
        G=1,
    )
    parts = (memory, allocation, content, allocation_gate, write_gate, erase, vector)
    return _write(*parts, impl=impl)  # type: ignore[no-any-return]


def link(
    link: Tensor,
    precedence: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    book: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Remember the order of writes, and follow it from where the heads read last.

    Args:
        link: (B, N, N), entry i, j: how far slot i was written right after slot j; of the others'
            type, or of bfloat16 or float16.
        precedence: (B, N), how far each slot was the last one written.
        write: (B, N), this step's write weighting.
        read: (B, R, N), the last step's read weightings.
        book: link slots as the book's listing does; see ``reference.link``.
        impl: what computes it.

    Returns:
        link (B, N, N) with a zero diagonal, of the type that it came in; precedence (B, N), and the
        weightings one step forward and backward in time, (B, R, N) each.

    Raises:
        ValueError, TypeError, Unavailable: as ``content``; TypeError: a ``book`` that is no bool.
    """
    checks.kind("book", book, bool)

    def run(link: Tensor, precedence: Tensor, write: Tensor, read: Tensor) -> Any:
        checks.tensors(
            {
                "precedence": (precedence, "B N"),
                "link": (_as_checked(link, precedence), "B N N"),
                "write": (write, "B N"),
                "read": (read, "B R N"),
            }
        )
        return _link(link, precedence, write, read, book=book, impl=impl)

    return _keeping_links(run, link, precedence, precedence, write, read)  # type: ignore[no-any-return]


@in_float32
def read(
    memory: Tensor,
    backward: Tensor,
    content: Tensor,
    forward: Tensor,
    modes: Tensor,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix the three ways to read, and read.

    Args:
        memory: (B, N, W).
        backward: (B, R, N).
        content: (B, R, N).
        forward: (B, R, N).
        modes: (B, 3, R), the shares of backward, content and forward.
        impl: what computes it.

    Returns:
        The words, (B, R, W), and the read weightings, (B, R, N).

    Raises:
        ValueError, TypeError, Unavailable: as ``content``.
    """
    checks.tensors(
        {
            "memory": (memory, "B N W"),
            "backward": (backward, "B R N"),
            "content": (content, "B R N"),
            "forward": (forward, "B R N"),
            "modes": (modes, "B S R"),
        },
        S=3,
    )
    return _read(memory, backward, content, forward, modes, impl=impl)  # type: ignore[no-any-return]


def step(
    state: State,
    to: Interface,
    *,
    links: bool = True,
    book: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, State]:
    """One step of the memory: free, allocate, write, link, read.

    Args:
        state: what the last step left; ``blank`` to begin with.
        to: what the controller asks for.
        links: without, a head reads by content only and the link matrix stays as it is.
        book: link slots as the book's listing does; see ``reference.link``.
        impl: what computes it.

    Returns:
        The words read, (B, R, W), and the new state.

    Raises:
        ValueError, TypeError, Unavailable: as ``content``; TypeError: a ``state`` or a ``to`` that
            is none, ``links`` or a ``book`` that is no bool.
    """
    checks.kind("state", state, State)
    checks.kind("to", to, Interface)
    checks.kind("links", links, bool)
    checks.kind("book", book, bool)

    def run(link: Tensor, state: State, to: Interface) -> Any:
        checks.tensors(
            {
                "state.memory": (state.memory_BNW, "B N W"),
                "state.usage": (state.usage_BN, "B N"),
                "state.precedence": (state.precedence_BN, "B N"),
                "state.link": (_as_checked(link, state.precedence_BN), "B N N"),
                "state.write": (state.write_BN, "B N"),
                "state.read": (state.read_BRN, "B R N"),
                "to.read_keys": (to.read_keys_BRW, "B R W"),
                "to.read_strengths": (to.read_strengths_BR, "B R"),
                "to.write_key": (to.write_key_B1W, "B H W"),
                "to.write_strength": (to.write_strength_B1, "B H"),
                "to.erase": (to.erase_BW, "B W"),
                "to.write_vector": (to.write_vector_BW, "B W"),
                "to.free_gates": (to.free_gates_BR, "B R"),
                "to.allocation_gate": (to.allocation_gate_B1, "B H"),
                "to.write_gate": (to.write_gate_B1, "B H"),
                "to.read_modes": (to.read_modes_BSR, "B S R"),
            },
            H=1,
            S=3,
        )
        whole = state._replace(link_BNN=link)
        return _step(whole, to, links=links, book=book, impl=impl)

    link, rest = state.link_BNN, state._replace(link_BNN=None)  # type: ignore[arg-type]
    return _keeping_links(run, link, state.precedence_BN, rest, to)  # type: ignore[no-any-return]


def _is_narrow(link: Any, like: Any) -> bool:
    """Whether links are of a narrower type than all else."""
    if not (isinstance(link, Tensor) and isinstance(like, Tensor)):
        return False
    return link.dtype in NARROW and like.dtype not in NARROW


def _as_checked(link: Tensor, like: Tensor) -> Tensor:
    """Links as they have to agree with the others: in all but a type that is narrower."""
    if not _is_narrow(link, like):
        return link
    return torch.zeros((), dtype=like.dtype, device=link.device).expand(link.shape)


@in_float32
def _in_float32(run: Callable[..., Any], *given: Any) -> Any:
    return run(*given)


def _keeping_links(run: Callable[..., Any], link: Any, like: Any, *rest: Any) -> Any:
    """``run`` on links and the rest, which an autocast region casts: all but narrow links."""
    if _is_narrow(link, like):
        return _in_float32(functools.partial(run, link), *rest)
    return _in_float32(run, link, *rest)


def steps(
    control: Control,
    x: Tensor,
    carry: Carry,
    *,
    links: bool = True,
    book: bool = False,
    impl: str | None = None,
) -> Iterator[Step]:
    """The steps of a sequence one by one, each with all that it did.

    Takes what ``sequence`` takes, and raises what it raises.
    """
    _check_sequence(x, carry, None)
    memory = functools.partial(step, links=links, book=book, impl=impl)
    return rollout.steps(memory, control, x, carry)


def sequence(
    control: Control,
    x: Tensor,
    carry: Carry,
    *,
    links: bool = True,
    book: bool = False,
    checkpoint_every: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Carry]:
    """A controller and its memory over a whole sequence.

    Args:
        control: a module or function; takes the input of a step (B, X), the words read in the last
            step (B, R, W) and its own hidden state, gives the interface, what it passes on (B, C)
            and its hidden state. Random numbers that it draws repeat when a segment is recomputed.
        x: (T, B, X), at least one step.
        carry: the memory's state, the words read last and the controller's hidden state at the
            beginning; ``start`` for an empty memory.
        links: as for ``step``.
        book: as for ``step``.
        checkpoint_every: keep for the backward what is carried across every so many steps, and
            compute the steps between again when their gradients are due: T / k + k steps are held
            in memory instead of T, for the time of one more forward. Same values and gradients.
        impl: what computes the memory.

    Returns:
        What the controller passed on (T, B, C), the words read (T, B, R, W), and what is carried
        on: the next part of a longer sequence begins with it.

    Raises:
        ValueError: no step, another batch than the memory's, ``checkpoint_every`` below 1; what
            ``step`` raises.
        TypeError: an ``x`` that is no tensor, a ``carry`` that is none, ``checkpoint_every`` that
            is no int; what ``step`` raises.
        Unavailable: as ``step``.
    """
    _check_sequence(x, carry, checkpoint_every)
    memory = functools.partial(step, links=links, book=book, impl=impl)
    return rollout.run(memory, control, x, carry, checkpoint_every)


def _check_sequence(x: Tensor, carry: Carry, every: int | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a tensor, got {type(x).__name__}")
    checks.kind("carry", carry, Carry)
    checks.kind("carry.state", carry.state, State)
    batch = len(carry.state.memory_BNW)
    if x.dim() != 3 or len(x) < 1 or x.shape[1] != batch:
        raise ValueError(f"x has shape (T, B={batch}, X) with T at least 1, got {tuple(x.shape)}")
    if every is not None:
        checks.kind("checkpoint_every", every, int)
        if every < 1:
            raise ValueError(f"checkpoint_every is at least 1, got {every}")


def start(
    like: Tensor,
    batch: int,
    slots: int,
    word: int,
    read_heads: int,
    hidden: Any = None,
    *,
    link_dtype: torch.dtype | None = None,
) -> Carry:
    """What a sequence with an empty memory begins with; arguments as ``blank``.

    Raises:
        ValueError, TypeError: as ``blank``.
    """
    state = blank(like, batch, slots, word, read_heads, link_dtype=link_dtype)
    return Carry(state, like.new_zeros(batch, read_heads, word), hidden)


def blank(
    like: Tensor,
    batch: int,
    slots: int,
    word: int,
    read_heads: int,
    *,
    link_dtype: torch.dtype | None = None,
) -> State:
    """The state of memories that nothing was written to, of ``like``'s dtype and device.

    Args:
        like: a tensor.
        batch: B.
        slots: N.
        word: W.
        read_heads: R.
        link_dtype: what the link matrix is kept in: ``torch.bfloat16`` or ``torch.float16``, half
            of the memory and of its traffic; ``like``'s when None. Links are shares, in [0, 1], of
            which float16 keeps 11 bits and bfloat16 8; gradients below 6e-8 vanish in float16.

    Raises:
        ValueError: a size below 1, or a negative batch; another ``link_dtype``.
        TypeError: a ``link_dtype`` that is none.
    """
    kept = like.dtype if link_dtype is None else link_dtype
    checks.kind("link_dtype", kept, torch.dtype)
    if kept != like.dtype and (kept not in NARROW or like.dtype in NARROW):
        allowed = (like.dtype,) if like.dtype in NARROW else (*NARROW, like.dtype)
        raise ValueError(f"link_dtype is one of {', '.join(map(str, allowed))}, got {kept}")
    for name, size in {"slots": slots, "word": word, "read_heads": read_heads}.items():
        if size < 1:
            raise ValueError(f"{name} is at least 1, got {size}")
    if batch < 0:
        raise ValueError(f"batch is at least 0, got {batch}")
    zeros = like.new_zeros
    return State(
        memory_BNW=zeros(batch, slots, word),
        usage_BN=zeros(batch, slots),
        precedence_BN=zeros(batch, slots),
        link_BNN=zeros(batch, slots, slots, dtype=kept),
        write_BN=zeros(batch, slots),
        read_BRN=zeros(batch, read_heads, slots),
    )
