"""One trial of a sweep: a configuration, run over its seeds one row at a time.

A trial is stepped, saved, restored and left by whoever searches. What it runs are ordinary runs:
each is an ``Attempt`` at a ``Spec`` and ends as a record in the sweep's store.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from suite import checkpoint
from suite.plan import Spec
from suite.record import FINISHED, Placement, Record
from suite.run import SAVE_EVERY_S, Attempt
from suite.store import Store
from suite.sweep import UNKNOWN_S, Sweep
from suite.worker import epitaph

SNAPSHOT = "trial.pt"
PENDING = "pending"
GOOD = ("ok", "target_missed")


@dataclasses.dataclass(frozen=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        sweep: what is searched, and how.
        uri: the sweep's own store.
        code: ``provenance.code()`` of the command.
        placement: the cores and GPUs of one trial.
        timeout_s: seconds that one run may take.
        save_every_s: the least time between two checkpoints.
    """

    sweep: Sweep
    uri: str
    code: Any
    placement: Placement
    timeout_s: float = math.inf
    save_every_s: float = SAVE_EVERY_S


class Trial:
    """One configuration under way.

    Args:
        job: what it shares with the other trials.
        name: its id, kept over restarts.
        config: field -> value, of the swept fields.
    """

    def __init__(self, job: Job, name: str, config: Mapping[str, Any]) -> None:
        self.job, self.name, self.config = job, name, dict(config)
        self.sweep, self.store = job.sweep, Store(job.uri)
        self.ended: list[Record] = []
        self.lineage: list[dict[str, Any]] = []
        self.restored: dict[str, Any] | None = None
        self.attempt: Attempt | None = None
        self.rows: Generator[dict[str, float]] | None = None
        self.earlier_rows = 0

    def step(self) -> dict[str, Any]:
        """Run to the next row that carries the objective, or to the end.

        Returns:
            ``row`` (rows so far), ``status``, ``done``, and ``objective`` unless the
            configuration failed. Over several seeds the objective is the first seed's until it
            ends, and from then on the mean of the seeds that have ended.

        Raises:
            StoreError: the store cannot be written.
        """
        while not self._over():
            if self.rows is None:
                self._begin()
            for row in self.rows or ():
                value = self.sweep.objective.of(row)
                if value is not None:
                    return self._result(self._mean([value] * (not self.ended)), "running")
            self._end()
        worst = max((r.status for r in self.ended), key=_badness)
        return self._result(self._mean([]) if worst in GOOD else None, worst, done=True)

    def save_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return self.attempt is not None and self.attempt.trace.save_due()

    def save(self, folder: str) -> None:
        """Write what the trial needs to go on, here or in another process."""
        saved: dict[str, Any] = {"config": self.config, "lineage": self.lineage, "snapshot": None}
        if self.attempt is not None and self.attempt.ctx.kept:
            with self.attempt.ctx.stopwatch.within("checkpoint"):
                saved |= {
                    "seed": self.attempt.spec.seed,
                    "snapshot": self.attempt.snapshot(),
                }
        Path(folder, SNAPSHOT).write_bytes(checkpoint.pack(saved))

    def restore(self, folder: str) -> None:
        """Go on from what ``save`` wrote; from another configuration's too, which is noted."""
        self.restored = checkpoint.unpack(Path(folder, SNAPSHOT).read_bytes())
        self.lineage = list(self.restored["lineage"])
        if self.restored["config"] != self.config and self.restored["snapshot"]:
            until = self.restored["snapshot"]["yields"]
            self.lineage.append({"until_row": until, "config": self.restored["config"]})

    def leave(self) -> None:
        """Give up the run under way; its record waits until the sweep is over.

        A scheduler that leaves a trial may come back to it: then there is another record.
        """
        if self.attempt is None or self.rows is None:
            return
        made, self.attempt = self.attempt, None
        self.rows.close()
        made.status = "stopped"
        made.detail = f"after {made.trace.yields} rows, by the sweep's scheduler or budget"
        self.store.write(self._pending, made.end().to_json().encode())

    def _over(self) -> bool:
        failed = bool(self.ended) and self.ended[-1].status not in GOOD
        return failed or (self.attempt is None and len(self.ended) == len(self._seeds))

    @property
    def _seeds(self) -> tuple[int, ...]:
        return self.sweep.seeds_of(self.name)

    @property
    def _pending(self) -> str:
        return f"{PENDING}/{self.name}.json"

    def _result(self, objective: float | None, status: str, done: bool = False) -> dict[str, Any]:
        now = self.attempt.trace.yields if self.attempt else 0
        found = {"row": self.earlier_rows + now, "status": status, "done": done}
        return found if objective is None else found | {"objective": objective}

    def _mean(self, more: list[float]) -> float | None:
        """The mean over the seeds that have ended and ``more``; None where a seed has no value."""
        metric = self.sweep.objective.metric
        finals = [r.train.final.get(metric) if r.train else None for r in self.ended]
        values = [self.sweep.objective.toward(f.value) for f in finals if f] + more
        return statistics.fmean(values) if values and all(finals) else None

    def _begin(self) -> None:
        """Take up the next seed: what its record says if it has one, else a run."""
        spec = self.sweep.spec(self.config, self._seeds[len(self.ended)])
        found = None if self.sweep.scheduler == "pbt" else self._finished(spec)
        if found is not None:
            self._count(found)
            return
        number, parent = self._bury(spec)
        saved, self.restored = self._saved_for(spec), None
        self.attempt = Attempt(
            spec,
            store=self.store,
            campaign_id=self.sweep.id,
            attempt=number,
            parent_record_id=parent,
            code=self.job.code,
            placement=self.job.placement,
            snapshot=saved["snapshot"] if saved else None,
            retuned=saved is not None and saved["config"] != self.config,
            timeout_s=self.job.timeout_s,
            save_every_s=self.job.save_every_s,
            extra={"sweep": {"trial": self.name, "config": self.config, "lineage": self.lineage}},
        )
        draft = json.dumps(to_jsonable_python(self.attempt.draft))
        self.store.write(self._pending, draft.encode())
        self.rows = self.attempt.rows()

    def _end(self) -> None:
        """Write the record of the run under way, if one is."""
        if self.attempt is None:
            return
        made, self.attempt, self.rows = self.attempt, None, None
        record = made.end()
        self.store.put(record)
        self.store.delete(self._pending)
        self._count(record)

    def _count(self, record: Record) -> None:
        self.ended.append(record)
        self.earlier_rows += len(record.train.curve.get("train_s", ())) if record.train else 0

    def _finished(self, spec: Spec) -> Record | None:
        earlier = self.store.attempts(spec.task, [spec.run_id]).get(spec.run_id, [])
        return next((r for r in reversed(earlier) if r.status in FINISHED), None)

    def _saved_for(self, spec: Spec) -> dict[str, Any] | None:
        """What was restored, if it belongs to this run; a population's members may inherit."""
        saved = self.restored
        if not saved or not saved["snapshot"]:
            return None
        return saved if self.sweep.scheduler == "pbt" or saved["seed"] == spec.seed else None

    def _bury(self, spec: Spec) -> tuple[int, str | None]:
        """The number of this attempt and its parent; an attempt that died gets its record."""
        content = self.store.read(self._pending)
        left = json.loads(content) if content else {}
        if left and "record_id" not in left:
            record = epitaph(left, "killed", "its process died", UNKNOWN_S)
            self.store.put(record)
            if record.run_id == spec.run_id:
                return record.attempt + 1, record.record_id
        if left.get("run_id") == spec.run_id:
            return left["attempt"], left["parent_record_id"]
        return 1, None


def _badness(status: str) -> int:
    return GOOD.index(status) if status in GOOD else len(GOOD)
