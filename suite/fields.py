"""What numbers a field of a task's config may be, declared beside its type.

    epochs: Count = 10
    ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.9

A declaration computes nothing, so it is no part of a task's version: `suite.task.version` reads
``Count`` as the ``int`` that it is.
"""

import math
import operator
import typing
from typing import Annotated, Any

from annotated_types import Interval

Count = Annotated[int, Interval(ge=1)]
Natural = Annotated[int, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Real = Annotated[float, Interval()]

BOUNDS = {
    "gt": (">", operator.gt),
    "ge": ("≥", operator.ge),
    "lt": ("<", operator.lt),
    "le": ("≤", operator.le),
}


def intervals(config: type) -> dict[str, Interval]:
    """The fields of a task's config that declare which numbers they may be."""
    declared = typing.get_type_hints(config, include_extras=True)
    return {
        field: bound
        for field, kind in declared.items()
        for bound in getattr(kind, "__metadata__", ())
        if isinstance(bound, Interval)
    }


def contains(interval: Interval, value: float) -> bool:
    """Whether the interval has this number; infinities and NaN are in none."""
    return math.isfinite(value) and all(
        inside(value, bound)
        for name, (_, inside) in BOUNDS.items()
        if (bound := getattr(interval, name)) is not None
    )


def described(interval: Interval, kind: type[Any]) -> str:
    """The interval in words: ``a whole number ≥ 1``."""
    bounds = [
        f"{sign} {bound:g}"
        for name, (sign, _) in BOUNDS.items()
        if (bound := getattr(interval, name)) is not None
    ]
    number = "a whole number" if kind is int else "a finite number"
    return " ".join((number, " and ".join(bounds))).strip()
