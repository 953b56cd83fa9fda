"""Which implementation of an op runs, and why: nothing falls back in silence.

An op has up to four implementations: ``reference`` (the formula in the shortest correct PyTorch),
``torch`` (what PyTorch does best: vectorised, or a vendor's operator), ``compile``
(``torch.compile`` of the reference) and ``triton`` (this package's kernels). ``auto`` is ``triton``
on a GPU where it can run, has been proven and is no slower, as ``proven.toml`` has it of each op,
and ``torch`` elsewhere; ``explain`` says which, and why. What is asked for by name runs, or is an
error with the reasons.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

IMPLS = ("reference", "torch", "compile", "triton")
AUTO = "auto"
VARIABLE = "FDL_KERNEL_IMPL"
OLDEST_CAPABILITY = (8, 0)
# Signatures of an op that stay compiled; beyond them the one called longest ago is forgotten.
MOST_COMPILED = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
# No source file, so that what is found on a GPU leaves the code that was proven there as it is.
# Read here, because a compiled region cannot read files.
PROVEN: dict[str, Any] = tomllib.loads((Path(__file__).parent / "proven.toml").read_text())
# Triton reads the flag when a kernel is defined, so it cannot change within a process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_OPS: dict[str, "Op"] = {}
_counts: Counter[tuple[str, str]] = Counter()
_default = os.environ.get(VARIABLE, AUTO)


class Unavailable(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why."""


@dataclass(frozen=True)
class Choice:
    """What will run.

    Attributes:
        op: the op's name, such as ``dnc.allocation``.
        impl: one of ``IMPLS``.
        reason: why that one.
    """

    op: str
    impl: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.impl} ({self.reason})"


@dataclass(frozen=True)
class Op:
    """One op and its implementations; calling it runs one of them.

    All take the same arguments; tensors come first, options are keywords.

    Attributes:
        name: folder and function, such as ``dnc.allocation``.
        reference: the formula.
        torch: the fast PyTorch implementation.
        triton: loads the Triton implementation, so that importing the op needs no Triton.
        refusals: the reasons why Triton cannot take these arguments, beside the general ones.
    """

    name: str
    reference: Callable[..., Any]
    torch: Callable[..., Any]
    triton: Callable[[], Callable[..., Any]]
    refusals: Callable[..., list[str]] = field(default=lambda *args, **options: [])

    def __post_init__(self) -> None:
        _OPS[self.name] = self

    def __call__(self, *args: Any, impl: str | None = None, **options: Any) -> Any:
        """Run the implementation that ``impl`` asks for.

        Raises:
            ValueError: an unknown ``impl``.
            Unavailable: ``triton`` cannot run on these arguments.
        """
        chosen = self.choose(*args, impl=impl, **options).impl
        if not torch.compiler.is_compiling():
            _counts[self.name, chosen] += 1
        return self._callable(chosen)(*args, **options)

    def choose(self, *args: Any, impl: str | None = None, **options: Any) -> Choice:
        """Which implementation would run; raises what calling the op would."""
        asked = impl or _default
        if asked not in (*IMPLS, AUTO):
            raise ValueError(f"unknown impl {asked!r}. Allowed: {', '.join((AUTO, *IMPLS))}")
        if asked not in ("triton", AUTO):
            return Choice(self.name, asked, "asked for")
        given = tensors(args)
        reasons = [*_machine(given), *self.refusals(*args, **options)]
        if asked == "triton":
            if reasons:
                raise Unavailable(
                    f"{self.name}: impl 'triton' cannot run here: {'; '.join(reasons)}. "
                    "impl 'torch' runs anywhere"
                )
            return Choice(self.name, "triton", "asked for")
        if not reasons and INTERPRETED:
            reasons = ["Triton would be interpreted, which is for tests"]
        elif not reasons and (why := _why_not(self.name, given)):
            reasons = [f"{why}; impl 'triton' runs them"]
        if not reasons:
            return Choice(self.name, "triton", "a GPU, and nothing speaks against it")
        return Choice(self.name, "torch", "; ".join(reasons))

    def _callable(self, impl: str) -> Callable[..., Any]:
        if impl == "reference":
            return self.reference
        if impl == "torch":
            return self.torch
        if impl == "triton":
            return self.triton()
        # Inside a compiled region the reference is compiled along with what surrounds it.
        return self.reference if torch.compiler.is_compiling() else _compiled(self)


def _capability(given: list[torch.Tensor]) -> str:
    """The compute capability of the GPU that tensors are on."""
    for t in given:
        if t.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(t.device)
            return f"{major}.{minor}"
    return "no GPU"


def _why_not(name: str, given: list[torch.Tensor]) -> str:
    """Why ``auto`` does not take an op's kernels on a GPU; empty where it does.

    An interpreter sees no race and no barrier, so kernels have to have passed ``tests/gpu``.
    """
    folder, _, function = name.partition(".")
    if folder not in PROVEN:
        return "its kernels have not been proven on a GPU yet"
    proven, here = PROVEN[folder]["capability"], _capability(given)
    if here != proven:
        return (
            f"its kernels have been proven on a GPU of compute capability {proven}, and this one "
            f"is of {here}"
        )
    but = PROVEN[folder].get("except")
    if not but:
        return ""
    types = sorted({_NAMES[t.dtype] for t in given if t.dtype in _NAMES})
    keys = (function, *types, *(f"{function} {dtype}" for dtype in types))
    return next((but[key] for key in keys if key in but), "")


def explain(name: str, *args: Any, impl: str | None = None, **options: Any) -> Choice:
    """Which implementation ``name`` (such as ``dnc.allocation``) would run, and why.

    Raises:
        ValueError: an unknown op or ``impl``.
        Unavailable: ``triton`` was asked for and cannot run; the message gives the reasons.
    """
    folder = name.partition(".")[0]
    if importlib.util.find_spec(f"kernels.{folder}") is not None:
        importlib.import_module(f"kernels.{folder}")
    if name not in _OPS:
        raise ValueError(f"unknown op {name!r}. Allowed: {', '.join(sorted(_OPS)) or 'none'}")
    return _OPS[name].choose(*args, impl=impl, **options)


@contextlib.contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Have ops that are not told otherwise run ``impl`` inside the block.

    Raises:
        ValueError: an unknown ``impl``.
    """
    global _default
    if impl not in (*IMPLS, AUTO):
        raise ValueError(f"unknown impl {impl!r}. Allowed: {', '.join((AUTO, *IMPLS))}")
    before, _default = _default, impl
    try:
        yield
    finally:
        _default = before


def counts() -> dict[str, dict[str, int]]:
    """Op -> implementation -> calls so far, outside of compiled regions."""
    found: dict[str, dict[str, int]] = {}
    for (name, impl), n in sorted(_counts.items()):
        found.setdefault(name, {})[impl] = n
    return found


def reset_counts() -> None:
    """Begin counting anew."""
    _counts.clear()


@functools.cache
def _compiled(op: Op) -> Callable[..., Any]:
    """The reference, compiled for each signature by itself.

    PyTorch counts what it has compiled of one code object, and refuses the ninth: a loop over time
    is compiled anew for each length. So each signature has a code object of its own.
    """
    # Dynamo is slow to import, which only who compiles has to wait for.
    from torch._dynamo.eval_frame import remove_from_cache

    known: dict[Any, tuple[Any, Callable[..., Any]]] = {}

    def call(*args: Any, **options: Any) -> Any:
        signature = _signature((*args, *options.items()))
        found = known.pop(signature, None)
        if found is None:
            if len(known) >= MOST_COMPILED:
                forgotten, _ = known.pop(next(iter(known)))
                remove_from_cache(forgotten)
            alone = _copy(op.reference)
            found = alone, torch.compile(alone, fullgraph=True, dynamic=False)
        # Behind all others: the first is what was called longest ago.
        known[signature] = found
        return found[1](*args, **options)

    return call


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as a code object of its own."""

    def copy(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return FunctionType(copy.__code__.replace(), copy.__globals__, closure=copy.__closure__)


def _signature(given: Any) -> Any:
    """What compiled code is for."""
    if isinstance(given, torch.Tensor):
        return given.shape, given.stride(), given.dtype, given.device, given.requires_grad
    return tuple(map(_signature, given)) if isinstance(given, tuple) else given


def tensors(args: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among arguments, those in tuples too."""
    found: list[torch.Tensor] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, tuple):
            found += tensors(arg)
    return found


def _machine(given: list[torch.Tensor]) -> list[str]:
    """Why no Triton kernel can run on these tensors on this machine."""
    reasons = [] if TRITON_INSTALLED else ["Triton is not installed"]
    devices = {t.device for t in given}
    for device in sorted(devices, key=str):
        if device.type == "cuda" and INTERPRETED:
            reasons.append("TRITON_INTERPRET=1 runs kernels on the processor")
        elif device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < OLDEST_CAPABILITY:
                reasons.append(f"{device} has compute capability {capability}, at least 8.0 needed")
        elif device.type != "cpu" or not INTERPRETED:
            reasons.append(f"tensors are on {device}, not on a CUDA device")
    odd = sorted({str(t.dtype) for t in given if t.is_floating_point() and t.dtype not in _NAMES})
    return reasons + ([f"dtype {', '.join(odd)} is not supported"] if odd else [])
