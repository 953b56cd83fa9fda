"""What of a run does not depend on the machine, compared exactly with a stored table.

A change of the number of parameters, or of which kernels ran how often, is either meant or a
mistake; no statistics can tell, and none are needed. What the kernels use of a GPU has a table of
its own, which ``suite bench compile`` compares.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite import task
from suite.plan import expand
from suite.record import Record

TABLE = Path(__file__).parent.parent / "results" / "exact.json"

Quantities = dict[str, Any]


def of(record: Record) -> Quantities:
    """The quantities of a smoke run.

    Raises:
        ValueError: the run did not end.
    """
    if record.train is None:
        raise ValueError(f"{record.task.id}, {record.variant}: {record.status}")
    return {"n_params": record.train.n_params, "dispatched": record.kernels.dispatched}


def measure(
    names: Sequence[str], say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, str, Quantities]]:
    """Task, variant and quantities of all variants of some tasks, at the smoke profile."""
    from suite.run import execute, warm_up
    from suite.store import Store

    warm_up()
    # With its pictures, for which a task may ask its model again, as the contract tests run it.
    store = Store("memory://exact")
    for name in names:
        say(name)
        for variant in task.find(name).variants:
            [spec] = expand([name], profile="smoke", variants=[variant], seeds=[0])
            yield name, variant, of(execute(spec, store=store, figures=True))


@functools.cache
def stored() -> dict[str, dict[str, Quantities]]:
    """Task -> variant -> quantities, as they were accepted; empty before anything was."""
    return dict(json.loads(TABLE.read_text())) if TABLE.is_file() else {}


def differences(name: str, variant: str, found: Quantities) -> list[str]:
    """One line for each quantity that is not as it was accepted."""
    known = stored().get(name, {}).get(variant)
    if known is None:
        return [f"{name}, {variant}: not in the table"]
    return [
        f"{name}, {variant}: {key} was {known.get(key)}, is {found[key]}"
        for key in found
        if known.get(key) != found[key]
    ]


def gone(names: Sequence[str]) -> list[str]:
    """What the table has of these tasks' variants, or of tasks, and the suite has not."""
    return [
        f"{name}, {variant}: in the table, and gone"
        for name, variants in stored().items()
        for variant in variants
        if name not in names or variant not in task.find(name).variants
    ]


def accept(found: Mapping[str, Mapping[str, Quantities]]) -> None:
    """Make these the table's; those of tasks that are gone are dropped."""
    kept = {n: v for n, v in stored().items() if n in task.names()}
    content = kept | {n: dict(v) for n, v in found.items()}
    TABLE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
