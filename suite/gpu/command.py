"""``suite gpu``: which stages there are, what they need, and what a call ends with."""

import importlib.util
import math
import os
from collections.abc import Sequence

from suite.codes import INFRASTRUCTURE, UNTRUSTED
from suite.gpu import proofs, runs, tables, tuner
from suite.gpu.stage import Stage, run
from suite.task import names, select, unknown

NEEDED = ("torch", "triton", "pydantic", "fsspec", "numpy", "pytest")
# Machines are lent for ten minutes at a time: in them PyTorch is imported too, and what does not
# end by itself has its GRACE_S.
DEFAULT_MINUTES, MOST_MINUTES = 8.0, 8.5


def stages() -> list[Stage]:
    """All stages, in their order."""
    return [
        Stage("tests", "the kernels as they are compiled, against float64", 0.3, proofs.tests),
        Stage("smoke", "every variant of every task, for a moment", 0.1, runs.smoke),
        Stage("tuner", "launch parameters for this device", 0.15, tuner.tuner),
        Stage("table", "every case of every kernel, and vendors' operators", 0.3, tables.table),
        Stage("lstm", "layers of many sizes, and what a barrier costs", 0.05, tables.lstm),
        Stage("racecheck", "races and accesses, under the vendor's tools", 0.05, proofs.racecheck),
        Stage("paper", "runs of tasks at the paper's size, side by side", 0.1, runs.paper),
        Stage("compiled", "every case again, with torch.compile too", 0.05, tables.compiled),
    ]


def chosen(only: Sequence[str]) -> list[Stage]:
    """The stages of some names, in their order; all when none is given.

    Raises:
        ValueError: an unknown name.
    """
    known = stages()
    for name in only:
        if name not in {s.name for s in known}:
            raise unknown("stage", name, [s.name for s in known])
    return [s for s in known if not only or s.name in only]


def check_machine() -> None:
    """Raise ValueError with everything that this machine lacks."""
    lacks = [f"the package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if "the package torch" not in lacks:
        import torch

        if not torch.cuda.is_available():
            lacks.append("a CUDA device that PyTorch can use")
    if os.environ.get("TRITON_INTERPRET") == "1":
        lacks.append("kernels that are compiled: TRITON_INTERPRET=1 is set")
    if lacks:
        raise ValueError(f"suite gpu needs an NVIDIA GPU; this machine lacks {'; '.join(lacks)}")


def command(minutes: float, uri: str, only: Sequence[str], tasks: Sequence[str] = ("ch*",)) -> int:
    """What ``suite gpu`` does.

    Args:
        minutes: stop after that.
        uri: the store.
        only: the stages to go through; all when empty.
        tasks: which tasks to run, as ``task.select`` takes them; all when empty.

    Returns:
        0; 3 where a check failed or a kernel computes something wrong; else 4 where a stage failed.

    Raises:
        ValueError: the machine lacks something, an unknown stage or task, or a budget out of range.
        StoreError: the store cannot be written.
    """
    if not (math.isfinite(minutes) and 0 < minutes <= MOST_MINUTES):
        raise ValueError(
            f"--budget-minutes is above 0 and at most {MOST_MINUTES:g}, got {minutes:g}"
        )
    todo, ids = chosen(only), select(tasks) if tasks else names()
    check_machine()
    from suite.store import Store

    store = Store(uri)
    store.check_writable()
    records, left, failed = run(store, todo, minutes, tasks=ids, named=bool(only))
    rest = ", ".join(f"{name} ({n})" for name, n in left.items() if n)
    print(f"{len(records)} new records in {uri}; " + (f"left: {rest}" if rest else "all done"))
    if failed:
        print(f"failed, as told above: {', '.join(failed)}")
    bad = {"invalid", "crashed", "nan", "oom", "timeout"}
    if bad & {r.status for r in records}:
        return UNTRUSTED
    return INFRASTRUCTURE if failed else 0
