"""The space that a sweep searches: for each config field a range or a list of values.

A task declares its own as ``Task.sweep``; on the command line a field is written as
``lr=log:1e-4:1e-1``, ``dropout=uniform:0:0.5``, ``hidden=int:32:512`` or
``optimizer=choice:sgd,adam``.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from suite.task import Task, unknown

KINDS = ("log", "uniform", "int", "choice")
MOST_COMBINATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included.

    Attributes:
        low: the least value.
        high: the greatest value.
        log: draw the logarithm uniformly, not the number.
        whole: whole numbers only; always so where the field is an int.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range {self}: the first number has to be below the second")
        if self.log and self.low <= 0:
            raise ValueError(f"the range {self}: a logarithmic one has to begin above 0")

    def __str__(self) -> str:
        kind = "log" if self.log else "int" if self.whole else "uniform"
        return f"{kind}:{self.low!r}:{self.high!r}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(map(repr, self.values))) < max(1, len(self.values)):
            raise ValueError(f"{self} is empty or names a value twice")

    def __str__(self) -> str:
        return f"choice:{','.join(map(str, self.values))}"


Domain = Range | Choice
Space = Mapping[str, Domain]


def parse(text: str) -> tuple[str, Domain]:
    """A field and its domain from ``field=kind:...``; values of a choice are still text.

    Raises:
        ValueError: anything that is not written like that.
    """
    field, equals, domain = text.partition("=")
    kind, colon, rest = domain.partition(":")
    if not field or not equals or not colon:
        raise ValueError(f"--space {text!r}: write field=log:1e-4:1e-1 or field=choice:a,b")
    if kind not in KINDS:
        raise unknown("kind of range", kind, KINDS)
    if kind == "choice":
        return field, _choice(f"--space {text!r}", rest)
    low, colon, high = rest.partition(":")
    try:
        read = int if kind == "int" else _number
        first, last = read(low), read(high)
    except ValueError:
        raise ValueError(f"--space {text!r}: write {field}={kind}:LOW:HIGH") from None
    return field, Range(first, last, log=kind == "log", whole=kind == "int")


def grid(text: str) -> tuple[str, Choice]:
    """A field and the values to try from ``field=a,b,c``.

    Raises:
        ValueError: anything that is not written like that.
    """
    field, equals, rest = text.partition("=")
    if not field or not equals:
        raise ValueError(f"--grid {text!r}: write field=a,b,c")
    return field, _choice(f"--grid {text!r}", rest)


def _choice(where: str, text: str) -> Choice:
    values = tuple(v.strip() for v in text.split(","))
    if not all(values):
        raise ValueError(f"{where}: a value is empty")
    return Choice(values)


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def checked(space: Space, t: Task, profile: str, variant: str, impl: str) -> dict[str, Domain]:
    """The space with every value as the type of its field, sorted by field.

    Raises:
        ValueError: an unknown field, a range over a field that is no number, or a value that
            the config refuses.
    """

    def accepted(field: str, value: Any) -> Any:
        return getattr(t.configure(profile, variant, impl, {field: value}), field)

    default = t.configure(profile, variant, impl)
    found: dict[str, Domain] = {}
    for field, domain in sorted(space.items()):
        if isinstance(domain, Choice):
            found[field] = Choice(tuple(accepted(field, v) for v in domain.values))
            continue
        low, high = accepted(field, domain.low), accepted(field, domain.high)
        kind = type(getattr(default, field)).__name__
        if kind not in (("int",) if domain.whole else ("int", "float")):
            raise ValueError(f"field {field!r} takes a {kind}: {domain} is no range for it")
        found[field] = Range(low, high, domain.log, whole=kind == "int")
    return found


def combinations(space: Mapping[str, Choice]) -> Iterator[dict[str, Any]]:
    """Every combination of the values."""
    for values in itertools.product(*(d.values for d in space.values())):
        yield dict(zip(space, values, strict=True))


def contains(domain: Domain, value: Any) -> bool:
    """Whether a sweep over ``domain`` could give ``value``."""
    if isinstance(domain, Choice):
        return value in domain.values
    return bool(domain.low <= value <= domain.high)
