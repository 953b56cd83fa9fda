"""Versions of a task that count as one, though their hashes differ.

They stand in the store, in ``versions.toml``: a table for each task, in it the hash of a version
and that of the one it counts as::

    ["<task>"]
    "e640a1f0..." = "256d3e03..."

For runs whose hash was made in another way, or a change that moved code and computes the same.
"""

import re
from collections.abc import Iterable, Mapping

from suite.record import Record
from suite.store import Store

FILE = "versions.toml"

# Task and hash of a version -> the hash that it counts as.
Same = Mapping[tuple[str, str], str]


def read(store: Store) -> Same:
    """What a store says; nothing where it has no such file.

    Raises:
        ValueError: the file is not what it should be; the message says where.
    """
    where, found = store.path(FILE), {}
    for task, pairs in store.read_toml(FILE).items():
        if not isinstance(pairs, dict):
            raise ValueError(f"{where}, {task}: {pairs!r} is not a table of hashes")
        for version, other in pairs.items():
            if not all(
                isinstance(h, str) and re.fullmatch("[0-9a-f]{64}", h) for h in (version, other)
            ):
                raise ValueError(f"{where}, {task}: {version!r} = {other!r} are not two SHA-256")
            if other in pairs:
                raise ValueError(f"{where}, {task}: {other} counts as another version itself")
            found[task, version] = other
    return found


def strays(same: Same, records: Iterable[Record]) -> list[str]:
    """One sentence for each version that no record has."""
    known = {(r.task.id, r.task.version) for r in records if r.task}
    return [
        f"{FILE}: no record of {task} has version {v}" for task, v in same if (task, v) not in known
    ]
