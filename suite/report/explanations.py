"""What people wrote about verdicts: a sentence on why one is what it is.

They stand in the store, in ``explanations.toml``: a table for each task and profile, in it a
sentence for each variant, or for each claim by its text::

    ["<task>".paper]
    fixed = "..."

What runs show is known when they have ended, and a sentence in the task's own file would count as
a change of the task.
"""

from collections.abc import Iterable, Mapping

from suite.report.rows import ClaimRow, Row
from suite.store import Store
from suite.task import unknown

FILE = "explanations.toml"

# Task, profile, and variant or text of a claim -> sentence.
Explanations = Mapping[tuple[str, str, str], str]


def read(store: Store) -> Explanations:
    """The explanations of a store; none where it has no such file.

    Raises:
        ValueError: the file is not what it should be; the message says where.
    """
    found = {}
    for task, profiles in store.read_toml(FILE).items():
        for profile, named in _table(store, profiles, task).items():
            for name, sentence in _table(store, named, task, profile).items():
                if not isinstance(sentence, str) or not sentence.strip():
                    where = _where(store, task, profile, name)
                    raise ValueError(f"{where}: {sentence!r} is no sentence")
                found[task, profile, name] = sentence.strip()
    return found


def strays(explanations: Explanations, rows: Iterable[Row | ClaimRow]) -> list[str]:
    """One sentence for each explanation of what is not among the rows."""
    known: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        profiles = known.setdefault(row.group.task, {})
        profiles.setdefault(row.group.profile, set()).add(row.name)
    said = []
    for task, profile, name in explanations:
        if task not in known:
            error = unknown("task", task, known)
        elif profile not in known[task]:
            error = unknown(f"profile of {task}", profile, known[task])
        elif name not in known[task][profile]:
            error = unknown(f"variant or claim of {task}, {profile}", name, known[task][profile])
        else:
            continue
        said.append(f"{FILE}: {error}")
    return said


def _table(store: Store, given: object, *names: str) -> dict[str, object]:
    if not isinstance(given, dict):
        expected = ["a table of profiles", "a table of variants and claims"][len(names) - 1]
        raise ValueError(f"{_where(store, *names)}: {given!r} is not {expected}")
    return given


def _where(store: Store, *names: str) -> str:
    return f"{store.path(FILE)}, {', '.join(names)}"
