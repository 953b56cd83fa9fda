"""What is computed: an op on one case's sizes, in one type, forward or both ways."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kernels.compile_gate import folders

MODES = ("forward", "backward", "full")
# Ops of sequences, whose benchmark is repeated with sequences of different lengths.
RAGGED = ("lstm.lstm", "attention.attention", "attention.additive")


@dataclass(frozen=True)
class Workload:
    """An op on one set of sizes.

    Attributes:
        op: folder and function, such as ``dnc.step``.
        case: one of the op's ``cases``.
        dtype: of the tensors.
        mode: ``forward`` (values, nothing kept), ``backward`` (gradients of values that are there)
            or ``full`` (both).
        device: a torch device.
        ragged: whether sequences have lengths from 1 to the longest.
        seed: of the tensors.
        rounded: the type that inputs are rounded to before they get theirs; none when None.
    """

    op: str
    case: Any
    dtype: torch.dtype
    mode: str
    device: str
    ragged: bool = False
    seed: int = 0
    rounded: torch.dtype | None = None

    @property
    def folder(self) -> str:
        """The op's folder."""
        return self.op.partition(".")[0]

    @property
    def name(self) -> str:
        """The case's name, and whether lengths differ."""
        return f"{self.case.name}, ragged" if self.ragged else str(self.case.name)

    @property
    def shape(self) -> dict[str, Any]:
        """The sizes of the case by their letters."""
        sizes = dataclasses.asdict(self.case)
        said = ("name", "dtype", "ops", "timed")
        # What is off or absent is no size; 0 is one.
        found = {k: v for k, v in sizes.items() if k not in said and not (v is False or v is None)}
        return {k: str(v) if isinstance(v, torch.dtype) else v for k, v in found.items()}

    @property
    def is_differentiated(self) -> bool:
        """Whether gradients are computed."""
        return self.mode != "forward"

    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments of the public function."""
        cases = importlib.import_module(f"kernels.{self.folder}.cases")
        function = self.op.partition(".")[2]
        dtype = self.rounded or self.dtype
        made = cases.arguments(function, self.case, dtype, self.seed, self.device)
        # Some cases have tensors of a type of their own, which float64 takes the place of too.
        return tuple(made) if self.rounded is None else mapped(lambda t: t.to(self.dtype), made)

    def in_float64(self) -> "Workload":
        """The same in float64, on inputs that are rounded to its own type first."""
        return dataclasses.replace(self, dtype=torch.float64, rounded=self.dtype)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the public function."""
        cases = importlib.import_module(f"kernels.{self.folder}.cases")
        found: dict[str, Any] = {}
        if hasattr(cases, "keywords"):
            function, dtype = self.op.partition(".")[2], self.rounded or self.dtype
            found |= cases.keywords(function, self.case, dtype, self.seed, self.device)
            found = {k: v.to(self.dtype) if _is_floating(v) else v for k, v in found.items()}
        elif hasattr(cases, "geometry"):
            found |= cases.geometry(self.case)
        if self.ragged:
            # Without sequences of length zero, which vendors' operators do not take.
            lengths = cases.lengths(self.case, self.seed, self.device).clamp(min=1)
            found["lengths" if self.folder == "lstm" else "key_lengths"] = lengths
        return found

    def smaller(self) -> "Workload | None":
        """The same on half the batch, or None where there is one element left."""
        letter = "N" if self.folder == "conv2d" else "B"
        batch = getattr(self.case, letter)
        if batch < 2:
            return None
        return dataclasses.replace(
            self, case=dataclasses.replace(self.case, **{letter: batch // 2})
        )


def mapped(
    change: Callable[[torch.Tensor], torch.Tensor], args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Arguments with every tensor changed, also those in tuples."""
    made: list[Any] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            made.append(change(arg))
        else:
            inner = mapped(change, arg)
            made.append(type(arg)(*inner) if hasattr(arg, "_fields") else inner)
    return tuple(made)


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def ops() -> list[str]:
    """Every op that has cases."""
    return [
        f"{folder}.{op}"
        for folder in folders()
        for op in importlib.import_module(f"kernels.{folder}.cases").OPS
    ]


def _dtype_of(case: Any) -> torch.dtype:
    """The type that a case names; float32 where it names none."""
    named: torch.dtype = getattr(case, "dtype", torch.float32)
    return named


def workloads(
    device: str, dtype: torch.dtype | None = None, modes: tuple[str, ...] = ("forward", "full")
) -> Iterator[Workload]:
    """Every case that benchmarks have, of every op.

    Args:
        device: a torch device.
        dtype: of all tensors; each case's own when None, float32 for cases that name none.
        modes: some of ``MODES``.
    """
    for op in ops():
        cases = importlib.import_module(f"kernels.{op.partition('.')[0]}.cases")
        for case in cases.BENCH:
            if op.partition(".")[2] not in getattr(case, "timed", cases.OPS):
                continue
            own = dtype or _dtype_of(case)
            for ragged in (False, True) if op in RAGGED else (False,):
                for mode in modes:
                    yield Workload(op, case, own, mode, device, ragged)
