"""Which run is where, which is tried again, and when it counts: a state machine without I/O.

It knows neither Ray nor processes nor the time of day: whoever drives it says what happened and
when. Every run it is given ends in exactly one final record, whatever is lost, late or repeated.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from suite.plan import Spec
from suite.task import Needs

# Who ended a run: it itself (also by its time limit), a signal from outside, the system's lack of
# memory, or the loss of the slot or node it was on.
Cause = Literal["own", "killed", "oom", "lost"]
Verdict = Literal["final", "again", "late"]

ATTEMPTS = 3
OOM_ATTEMPTS = 2
ONE_CORE = Needs(gpus=0.0)


@dataclass(slots=True)
class Run:
    """A run that is not finished.

    Attributes:
        spec: what to run.
        attempt: the number of the next attempt, over all campaigns.
        parent_record_id: the record of the attempt before.
        figures: whether its pictures are made.
        needs: what it takes of a node.
        tries: attempts that this campaign has begun.
    """

    spec: Spec
    attempt: int = 1
    parent_record_id: str | None = None
    figures: bool = False
    needs: Needs = ONE_CORE
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A run that a slot has been given, until when it must have ended."""

    number: int
    slot: str
    run: Run
    deadline_s: float


@dataclass(slots=True)
class _Slot:
    needs: Needs
    heard_s: float
    lease: Lease | None = None


class Dispatcher:
    """Gives runs to slots and decides what their ends mean.

    Args:
        runs: what is to be done, in this order.
        silence_s: how long a slot may be silent before it counts as lost.
        attempts: how often a run may be begun when the machine, not the run, ends it.
    """

    def __init__(
        self, runs: Iterable[Run], *, silence_s: float = 40.0, attempts: int = ATTEMPTS
    ) -> None:
        self.silence_s = silence_s
        self.attempts = attempts
        self.left = 0
        self._waiting: dict[Needs, deque[Run]] = {}
        self._slots: dict[str, _Slot] = {}
        self._leases: dict[int, Lease] = {}
        self._numbers = itertools.count(1)
        for run in runs:
            self._waiting.setdefault(run.needs, deque()).append(run)
            self.left += 1

    def waiting(self, needs: Needs) -> int:
        """How many runs of these needs no slot has yet."""
        return len(self._waiting.get(needs, ()))

    @property
    def wanted(self) -> list[Needs]:
        """The needs of the runs that wait."""
        return [needs for needs, runs in self._waiting.items() if runs]

    def join(self, slot: str, needs: Needs, now_s: float) -> None:
        """A slot is there and idle."""
        assert slot not in self._slots, "a slot that was lost comes back under another name"
        self._slots[slot] = _Slot(needs, now_s)

    def heard(self, slot: str, now_s: float) -> None:
        """A slot has given a sign of life; one that counts as lost stays lost."""
        if slot in self._slots:
            self._slots[slot].heard_s = now_s

    def lease(self, slot: str, now_s: float, limit_s: float) -> Lease | None:
        """The next run for a slot, or None when it is lost, busy or nothing waits for it."""
        found = self._slots.get(slot)
        if found is None or found.lease is not None or not self._waiting.get(found.needs):
            return None
        run = self._waiting[found.needs].popleft()
        run.tries += 1
        found.lease = Lease(next(self._numbers), slot, run, now_s + limit_s)
        self._leases[found.lease.number] = found.lease
        return found.lease

    def settle(self, number: int, cause: Cause, record_id: str | None = None) -> Verdict:
        """A lease has come to an end.

        Args:
            number: the lease.
            cause: who ended it.
            record_id: the record of the attempt; None where it did not begin.

        Returns:
            ``final``: this is the run's record. ``again``: the run waits for its next attempt.
            ``late``: the lease had ended before, so this end does not count.
        """
        lease = self._leases.pop(number, None)
        if lease is None:
            return "late"
        slot = self._slots.get(lease.slot)
        if slot is not None and slot.lease is lease:
            slot.lease = None
        run = lease.run
        if not self._again(run, cause):
            self.left -= 1
            return "final"
        if record_id is not None:
            run.attempt, run.parent_record_id = run.attempt + 1, record_id
        # In front: what was begun has a snapshot, and others may wait for its comparison.
        self._waiting.setdefault(run.needs, deque()).appendleft(run)
        return "again"

    def _again(self, run: Run, cause: Cause) -> bool:
        if cause == "own":
            return False
        return run.tries < (min(OOM_ATTEMPTS, self.attempts) if cause == "oom" else self.attempts)

    def lose(self, slot: str) -> Lease | None:
        """A slot is gone; return the lease it held, which is to be settled as ``lost``."""
        found = self._slots.pop(slot, None)
        return found.lease if found else None

    def silent(self, now_s: float) -> list[str]:
        """The slots that have been silent for too long."""
        return [n for n, s in self._slots.items() if now_s - s.heard_s > self.silence_s]

    def overdue(self, now_s: float) -> list[str]:
        """The slots whose run should have ended, and was not ended there."""
        return [x.slot for x in self._leases.values() if now_s > x.deadline_s]

    def idle(self, slot: str) -> bool:
        """Whether a slot is there and holds no run."""
        return slot in self._slots and self._slots[slot].lease is None
