"""From what was asked for to the matrix of runs: selection x variant x impl x seed."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

from suite import task
from suite.record import digest

MAX_SEEDS = 10_000


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run: everything that decides its numbers, apart from the machine.

    ``version`` is the hash of the task's code, so a changed task is another run, never the
    same one measured again. ``overrides`` are the ``--set`` pairs, sorted.
    """

    task: str
    version: str
    profile: str
    variant: str
    impl: str
    seed: int
    device: str = "cpu"
    overrides: tuple[tuple[str, Any], ...] = ()
    stop_at_target: bool = False

    @functools.cached_property
    def run_id(self) -> str:
        """The run's name: the same spec has the same name in every campaign."""
        return digest(dataclasses.asdict(self))

    def config(self) -> Any:
        """The resolved config. Imports the task."""
        return task.find(self.task).configure(
            self.profile, self.variant, self.impl, dict(self.overrides)
        )

    def __str__(self) -> str:
        return f"{self.task} {self.profile} {self.variant} {self.impl} seed {self.seed}"


def seeds(text: str) -> list[int]:
    """``"0-4"``, ``"7"`` or ``"0,2,10-12"`` as a list of seeds.

    Raises:
        ValueError: anything else, an empty range, or more than 10,000 seeds.
    """
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.strip().isdecimal()):
            raise ValueError(f"seeds {text!r}: write 0-4, 7 or 0,2,10-12")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low >= MAX_SEEDS:
            raise ValueError(f"seeds {text!r}: {part.strip()!r} is empty or over {MAX_SEEDS} seeds")
        chosen += range(low, high + 1)
    return list(dict.fromkeys(chosen))


def expand(
    selection: Iterable[str],
    *,
    profile: str,
    variants: Iterable[str] | None = None,
    impls: Iterable[str] | None = None,
    seeds: Iterable[int] = (0,),
    device: str = "cpu",
    overrides: Mapping[str, Any] | None = None,
    stop_at_target: bool = False,
    judged_only: bool = False,
) -> list[Spec]:
    """The run matrix of a selection of task ids, chapters and globs.

    Args:
        selection: what ``suite.task.select`` takes.
        profile: smoke, laptop or paper.
        variants: which variants; all of a task's when None. With several tasks, a task is asked
            for those of the given variants that it has, and each must exist somewhere.
        impls: which implementations, in the same way; each task's default when None.
        seeds: the repetitions.
        device: a torch device.
        overrides: config fields to change, checked against every selected task.
        stop_at_target: end a run once the target is crossed, instead of at its budget.
        judged_only: without ``variants``, only those that a target or claim needs.

    Raises:
        ValueError: a name that no selected task knows, a field or value a config refuses, or an
            implementation that this machine cannot run.
    """
    names = task.select(selection)
    found = {name: task.find(name) for name in names}
    variants, impls, seeds = _listed(variants), _listed(impls), list(seeds)
    _known("variant", variants, (t.variants for t in found.values()))
    _known("impl", impls, (t.impls for t in found.values()))
    if "triton" in (impls or ()) and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "impl 'triton' needs a CUDA device; on the cpu, set TRITON_INTERPRET=1 to have its "
            "kernels interpreted, which is slow and for checking only"
        )
    specs = []
    for name, t in found.items():
        default = t.judged(profile) if judged_only else list(t.variants)
        chosen = default if variants is None else [v for v in variants if v in t.variants]
        computed = t.impls[:1] if impls is None else [i for i in impls if i in t.impls]
        for variant, impl in itertools.product(chosen, computed):
            cfg = t.configure(profile, variant, impl, overrides)
            changed = {field: getattr(cfg, field) for field in overrides or {}}
            specs += [
                Spec(
                    task=name,
                    version=task.version(name),
                    profile=profile,
                    variant=variant,
                    impl=impl,
                    seed=seed,
                    device=device,
                    overrides=tuple(sorted(changed.items())),
                    stop_at_target=stop_at_target,
                )
                for seed in seeds
            ]
    # Seeds vary slowest: an interrupted campaign then holds whole comparisons, not one variant.
    return sorted(specs, key=lambda s: s.seed)


def _listed(names: Iterable[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _known(kind: str, given: list[str] | None, allowed: Iterable[Iterable[str]]) -> None:
    union = set().union(*allowed)
    for name in given or ():
        if name not in union:
            raise task.unknown(kind, name, union)
