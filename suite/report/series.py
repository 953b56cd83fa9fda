"""Records sorted into series: the runs that differ by their seed alone."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from suite.record import FINISHED, Record
from suite.report.text import plural
from suite.report.versions import Same
from suite.task import Claim, Target

STEPS_TO_TARGET = "steps_to_target"

# The order in which a reader wants them: a smoke run proves only that the code runs.
PROFILES = ("paper", "laptop", "smoke")

Values = dict[int, float | None]


@dataclass(frozen=True)
class Series:
    """Runs of one version of a task that differ by their seed alone.

    Attributes:
        runs: one record a seed, sorted by seed.
    """

    runs: tuple[Record, ...]

    @property
    def any(self) -> Record:
        """A record to read from what all of them share."""
        return self.runs[0]

    @property
    def device(self) -> str:
        """What computed: ``cpu`` or ``gpu``."""
        return device_of(self.any)

    @property
    def computed_by(self) -> str:
        """The implementation and the device; Triton's interpreter is not what its kernels are."""
        by_hand = self.any.env.triton and self.any.env.triton["interpret"]
        how = " interpreted" if self.any.impl == "triton" and by_hand else ""
        return f"{self.any.impl}{how}, {self.device}"

    @property
    def overrides(self) -> str:
        """What was changed by hand; empty for the task as its file states it."""
        return overrides_of(self.any)

    @property
    def label(self) -> str:
        """The variant, and what was changed by hand."""
        return ", ".join(filter(None, (self.any.variant, self.overrides)))

    @cached_property
    def failures(self) -> dict[str, int]:
        """Status -> number of seeds, for runs that came to no value."""
        return dict(sorted(Counter(r.status for r in self.runs if not _has_value(r)).items()))

    @cached_property
    def finished(self) -> tuple[Record, ...]:
        """The runs that came to a value."""
        return tuple(r for r in self.runs if _has_value(r))

    @cached_property
    def target(self) -> Target | None:
        """The target the runs were made with."""
        return target_of(self.any)

    @cached_property
    def standin(self) -> bool:
        """Whether a run read a stand-in for the book's data."""
        return any(d.kind == "standin" for r in self.runs for d in r.data)

    @cached_property
    def dirty(self) -> bool:
        """Whether a run was made from a tree with uncommitted changes, or an unknown one."""
        return any(r.code.dirty is not False for r in self.runs)

    @cached_property
    def contended(self) -> bool:
        """Whether a run shared its machine with others, of this suite or not."""
        return any(r.placement.contended or _began_busy(r) for r in self.runs)

    @cached_property
    def machines(self) -> tuple[str, ...]:
        """The kinds of machine that the runs were made on."""
        return tuple(sorted({machine_of(r) for r in self.runs}))

    @cached_property
    def commits(self) -> tuple[str, ...]:
        """The commits that the runs were made from, shortened."""
        return tuple(sorted({(r.code.commit or "unknown")[:7] for r in self.runs}))

    @cached_property
    def data(self) -> tuple[tuple[str, str], ...]:
        """Name and kind of each data set that was read."""
        return tuple(sorted({(d.name, d.kind) for r in self.runs for d in r.data}))

    @cached_property
    def mixed_data(self) -> bool:
        """Whether the runs read different copies of a data set."""
        copies = {(d.name, d.sha256) for r in self.finished for d in r.data}
        return len(copies) > len({name for name, _ in copies})

    def values(self, metric: str, *, censored: bool = False) -> Values:
        """Seed -> the metric at the end of the run, None where the run came to no value.

        ``steps_to_target`` is None where the target was not reached within the run's budget; a
        run that broke off, or was evaluated but once, says nothing about it and is left out. So is
        a run that came to no value where the metric is ``censored``: there None says that what it
        times did not happen.
        """
        if metric == STEPS_TO_TARGET:
            return {r.seed: _steps(r) for r in self.runs if was_timed(r)}
        return {r.seed: value_of(r, metric) for r in (self.finished if censored else self.runs)}

    def values_for(self, claim: Claim) -> Values:
        """What a claim compares: seed -> value."""
        return self.values(claim.metric, censored=claim.ordered)

    def has(self, metric: str) -> bool:
        """Whether a run came to a value of the metric."""
        return any(v is not None for v in self.values(metric).values())

    def median(self, numbers: Iterable[float | None]) -> float | None:
        """The median of the numbers that are there."""
        found = [n for n in numbers if n is not None]
        return statistics.median(found) if found else None


@dataclass(frozen=True)
class Group:
    """The series of one task under one profile, all of the task's newest version.

    Attributes:
        series: the default variant first, then by name.
        newest: the record that ended last, which says what the task claims.
        older: records of earlier versions of the task, which are left out.
        older_versions: how many versions those are.
    """

    series: tuple[Series, ...]
    newest: Record
    older: int
    older_versions: int

    @property
    def task(self) -> str:
        """The task's id."""
        return self.newest.task.id

    @property
    def profile(self) -> str:
        """The profile."""
        return self.newest.task.profile

    @property
    def title(self) -> str:
        """What the task's file calls itself, or its id."""
        return str(self.newest.extra.get("title") or self.task)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The comparisons that the task's file states for this profile."""
        return tuple(c for c in claims_of(self.newest) if self.profile in c.profiles)

    @property
    def left_out(self) -> str:
        """The sentence on records of earlier versions; empty where there are none."""
        if not self.older:
            return ""
        versions = plural(self.older_versions, "earlier version")
        return (
            f"{self.profile}: {plural(self.older, 'record')} of {versions} of this task left out."
        )

    def metric_of(self, series: Series) -> str | None:
        """What to show of a series: what it is judged by.

        Without a target of its own it shows what the others are judged by, so that they can be
        compared; or where it has no such number what claims compare, those about it first.
        """
        if series.target:
            return series.target.metric
        judged = [s.target.metric for s in self.series if s.target]
        about = sorted(self.claims, key=lambda c: series.any.variant not in (c.left, c.right))
        metrics = judged + [c.metric for c in about if not c.ordered]
        return next(filter(series.has, metrics), next(iter(metrics), None))


def group(records: Iterable[Record], same: Same | None = None) -> list[Group]:
    """Sort training records into groups and series, whatever order they come in.

    Args:
        records: of any kind.
        same: which versions of a task count as one.
    """
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "train":
            found[record.task.id, record.task.profile].append(record)
    groups = [_group(found[key], same or {}) for key in found]
    return sorted(groups, key=lambda g: (g.newest.task.chapter, g.task, rank(g.profile)))


def rank(profile: str) -> tuple[int, str]:
    """Sorts profiles: the book's own first."""
    return (PROFILES.index(profile) if profile in PROFILES else len(PROFILES), profile)


def value_of(record: Record, metric: str) -> float | None:
    """A metric at the end of a run; None where the run diverged or broke off."""
    if not _has_value(record) or record.train is None or metric not in record.train.final:
        return None
    return record.train.final[metric].value


def device_of(record: Record) -> str:
    """What computed: ``cpu`` or ``gpu``."""
    return "gpu" if record.placement.gpus > 0 else "cpu"


def overrides_of(record: Record) -> str:
    """What was changed by hand, such as ``lr=0.1``; empty for the task as its file states it."""
    fields = record.extra.get("overrides") or {}
    changes = [f"{name}={fields[name]}" for name in sorted(fields)]
    # A run that ends at its first good evaluation ends on a flattering one.
    stopped = ["stopped at target"] if record.extra.get("stop_at_target") else []
    return ", ".join(changes + stopped)


def target_of(record: Record) -> Target | None:
    """The target a run was made with.

    Raises:
        ValueError: one that no task could state.
    """
    info = record.task.target
    if info is None:
        return None
    return Target(info.metric, info.value, info.op, info.source, info.tolerance)


def claims_of(record: Record) -> tuple[Claim, ...]:
    """The claims that a record carries.

    Raises:
        ValueError, TypeError: claims that no task could state.
    """
    return tuple(_claim(content) for content in record.extra.get("claims") or ())


def _claim(content: Mapping[str, Any]) -> Claim:
    return Claim(**{**content, "profiles": tuple(content.get("profiles", Claim.profiles))})


def _group(records: list[Record], same: Same) -> Group:
    def version(record: Record) -> str:
        return same.get((record.task.id, record.task.version), record.task.version)

    newest = max(records, key=_age)
    current = [r for r in records if version(r) == version(newest)]
    older = [r for r in records if version(r) != version(newest)]
    found: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in current:
        if record.status != "skipped":
            found[_key(record)].append(record)
    default = newest.extra.get("default_variant")
    order = sorted(found, key=lambda key: (key[0] != default, key))
    return Group(
        series=tuple(Series(tuple(_one_per_seed(found[key]))) for key in order),
        newest=newest,
        older=len(older),
        older_versions=len({version(r) for r in older}),
    )


def _key(record: Record) -> tuple[str, ...]:
    """What the runs of a series have in common."""
    return (
        record.variant,
        overrides_of(record),
        record.impl,
        device_of(record),
        record.config.sha256,
    )


def _one_per_seed(records: Iterable[Record]) -> list[Record]:
    """Of each seed the newest attempt that finished, or the newest if none did."""
    chosen: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: (r.status in FINISHED, _age(r))):
        chosen[record.seed] = record
    return [chosen[seed] for seed in sorted(chosen)]


def _age(record: Record) -> tuple[str, int, str]:
    return record.ended_utc, record.attempt, record.record_id


def _began_busy(record: Record) -> bool:
    """Whether more than one and a half threads a core wanted to compute when a run began."""
    return any((node.load1_start or 0) > 1.5 * node.cpu_cores for node in record.nodes)


def _has_value(record: Record) -> bool:
    # The last row of a run that diverged is that of a model which no longer exists.
    return record.status in FINISHED - {"nan"}


def was_timed(record: Record) -> bool:
    """Whether a run to its budget could have crossed the target: it takes two evaluations."""
    if record.task.timed_to is None or record.status not in FINISHED or record.train is None:
        return False
    return len(record.train.curve["step"]) > 1


def _steps(record: Record) -> float | None:
    train = record.train
    if train is None or train.crossing is None or record.status == "nan":
        return None
    return float(train.crossing.hi_step)


def machine_of(record: Record) -> str:
    """The machine's processor, and its GPUs where one computed."""
    names = []
    for node in record.nodes:
        gpus = Counter(g.name for g in node.gpus) if record.placement.gpus else {}
        cards = [f"{n} x {name}" if n > 1 else name for name, n in sorted(gpus.items())]
        names.append(" + ".join([f"{node.cpu_model}, {node.cpu_cores} cores", *cards]))
    return "; ".join(names) or "unknown"
