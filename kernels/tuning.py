"""Launch parameters that were measured on a device, for the launchers.

``configs/<op>/<device>.json`` holds, for a kernel and a type, the parameters that were fastest for
some sizes. A launcher asks with its own sizes and its heuristic's parameters: it gets those of the
nearest sizes, in the logarithm, and its own where none are near or none were measured on this
device. Nothing is timed while a program runs. ``suite bench tune`` writes the files.
"""

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "configs"
# Sizes are near when they differ by no more than this, in octaves, over all of them.
NEAR = 2.0

_trial: dict[str, dict[str, int]] = {}
_asked: "dict[str, Asked] | None" = None


@dataclass(frozen=True)
class Asked:
    """What a launcher asked for.

    Attributes:
        kernel: op and launcher, such as ``attention.forward``.
        dtype: of its tensors.
        sizes: by name.
        default: the heuristic's parameters, as far as others may be chosen.
    """

    kernel: str
    dtype: str
    sizes: dict[str, int]
    default: dict[str, int]


def tuned(
    kernel: str,
    like: torch.Tensor,
    default: Mapping[str, int],
    only: tuple[str, ...] = (),
    **sizes: int,
) -> Mapping[str, int]:
    """The parameters to launch a kernel with.

    Args:
        kernel: op and launcher, such as ``attention.forward``.
        like: a tensor of the device and type.
        default: what the launcher would choose; the result has the same names.
        only: the names that may be chosen otherwise; all when empty.
        sizes: what the choice depends on.

    Raises:
        ValueError: a file of parameters that is broken, or names one that the launcher has not.
    """
    if _asked is not None:
        own = {k: default[k] for k in only or default}
        _asked[kernel] = Asked(kernel, _name(like.dtype), dict(sizes), own)
    if kernel in _trial:
        return {**default, **_trial[kernel]}
    file = _file_of(like.device)
    if file is None:
        return default
    names = only or tuple(default)
    found = _nearest(kernel, file, like.dtype, tuple(sizes.items()), names)
    return {**default, **found} if found else default


@functools.cache
def _file_of(device: torch.device) -> str | None:
    """The name of a device's file; None for what is no GPU."""
    if device.type != "cuda":
        return None
    return device_file(torch.cuda.get_device_name(device))


def device_file(device_name: str) -> str:
    """The name of a device's file."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", device_name).strip("-") + ".json"


@functools.lru_cache(maxsize=4096)
def _nearest(
    kernel: str,
    file: str,
    dtype: torch.dtype,
    sizes: tuple[tuple[str, int], ...],
    names: tuple[str, ...],
) -> dict[str, int]:
    """The parameters of the nearest sizes; nothing where none are near."""
    given, best, least = dict(sizes), {}, NEAR
    for entry in entries(kernel, file):
        if entry["dtype"] != _name(dtype) or entry["sizes"].keys() != given.keys():
            continue
        unknown = sorted(entry["config"].keys() - set(names))
        if unknown:
            raise ValueError(f"{path(kernel, file)}: {kernel} takes no {', '.join(unknown)}")
        away = distance(entry["sizes"], given)
        if away <= least:
            best, least = entry["config"], away
    return dict(best)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """How far sizes are apart, in octaves."""
    return math.hypot(*(math.log2(max(1, a[k])) - math.log2(max(1, b[k])) for k in a))


def path(kernel: str, file: str) -> Path:
    """Where the parameters of a kernel on a device stand."""
    return FOLDER / kernel.partition(".")[0] / file


def entries(kernel: str, file: str) -> list[dict[str, Any]]:
    """What was measured for a kernel on a device.

    Raises:
        ValueError: the file is no such table.
    """
    found = _table(path(kernel, file))
    return [e for e in found if e["kernel"] == kernel]


@functools.cache
def _table(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        table = json.loads(file.read_text())
        for entry in table["entries"]:
            numbers = [*entry["sizes"].values(), *entry["config"].values()]
            if not all(isinstance(n, int) and n > 0 for n in numbers):
                raise ValueError("a size or parameter is no positive integer")
            if not (isinstance(entry["kernel"], str) and isinstance(entry["dtype"], str)):
                raise ValueError("an entry has no kernel or no dtype")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no table of launch parameters: {error!r}") from error
    return list(table["entries"])


def forget() -> None:
    """Read the files anew when they are needed again."""
    _file_of.cache_clear()
    _table.cache_clear()
    _nearest.cache_clear()


@contextlib.contextmanager
def trial(kernel: str, config: Mapping[str, int]) -> Iterator[None]:
    """Launch a kernel with these parameters inside the block."""
    before = dict(_trial)
    _trial[kernel] = dict(config)
    try:
        yield
    finally:
        _trial.clear()
        _trial.update(before)


@contextlib.contextmanager
def observed() -> "Iterator[dict[str, Asked]]":
    """What launchers ask for inside the block, the last of each kernel."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before
