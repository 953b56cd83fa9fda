"""Whether a number meets a target: the one rule for a run as it goes and for the verdict on many.

Stdlib only, because tasks are listed without numpy.
"""

import math
from typing import Final, Protocol

# Numbers that single precision cannot tell apart are no further from each other than this: 115
# wrong of 10,000 are 0.0115 in a target, and 0.01150000002 as the mean of 10,000 floats.
SINGLE: Final = 2.0**-23
# What the last bits of a sum in double precision may differ by: 0.1 + 0.2 and 0.3.
ROUNDING: Final = 1e-14


class Goal(Protocol):
    """What is read of a target; see `suite.task.Target`."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def value(self) -> float:
        """The number to reach."""

    @property
    def mode(self) -> str:
        """``max``, ``min`` or ``near``."""

    @property
    def tolerance(self) -> float:
        """How far short still counts, or the half-width of the band."""


def reaches(value: float, edge: float, mode: str, precision: float = SINGLE) -> bool:
    """Whether ``value`` is at or past ``edge``, or no further short than ``precision`` can tell.

    Args:
        value: the number.
        edge: what it is to reach.
        mode: ``max`` when larger is better, ``min`` when smaller.
        precision: difference, relative to the larger of the two, that is none.
    """
    if math.isclose(value, edge, rel_tol=precision):
        return True
    return value >= edge if mode == "max" else value <= edge


def meets(value: float, target: Goal) -> bool:
    """Whether one value meets a target.

    The ends of a band may be closer to each other than single precision is fine, so there only
    what double precision rounds off is forgiven.
    """
    if target.mode != "near":
        return reaches(value, target.value, target.mode)
    low, high = target.value - target.tolerance, target.value + target.tolerance
    return reaches(value, low, "max", ROUNDING) and reaches(value, high, "min", ROUNDING)
