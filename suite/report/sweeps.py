"""Sweeps as tables, pictures and a page: which setting was best, and which field mattered.

Below a sweep's own store (``sweeps/<id>/``), ``write`` puts ``index.html``, ``README.md``,
``trials.csv`` and the pictures as PNG files. The table and the text are a pure function of
``sweep.json`` and the records; neither Ray nor the task is needed to write them.
"""

import dataclasses
import json
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suite.record import FINISHED, Record
from suite.report import text
from suite.space import Choice, Domain, Range
from suite.store import Store
from suite.sweep import DEFINITION, SCHEMA, Objective

if TYPE_CHECKING:
    import optuna

FOLDER = "sweeps"
GOOD = ("ok", "target_missed")
LEAST_FOR_IMPORTANCE = 8
RESAMPLINGS = 20
MOST_TRIALS_IN_TEXT = 50


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration and what its runs came to.

    Attributes:
        number: its place in the order in which the trials began, from 1.
        config: field -> value, of the swept fields.
        runs: seed -> the record that counts.
        status: ``ok``, ``target_missed``, ``stopped`` (by the scheduler or the budget),
            ``unfinished``, or what went wrong in a run.
        detail: the story of what went wrong, or why it was stopped.
        objective: the mean over the seeds; None unless all of them ended well.
        lineage: with pbt, the configurations before this one, each with its last row.
    """

    number: int
    config: Mapping[str, Any]
    runs: Mapping[int, Record]
    status: str
    detail: str
    objective: float | None
    lineage: Sequence[Mapping[str, Any]]

    def seen(self, objective: Objective) -> list[float]:
        """The objective at each evaluation of the first seed that carried it."""
        first = next(iter(self.runs.values()))
        column = first.train.curve.get(objective.metric, ()) if first.train else ()
        return [objective.toward(v) for v in column if v is not None]

    @property
    def rows(self) -> int:
        """How often it was evaluated, over all seeds."""
        curves = [r.train.curve for r in self.runs.values() if r.train]
        return sum(len(next(iter(curve.values()), ())) for curve in curves)

    @property
    def train_s(self) -> float:
        """Seconds of training, over all seeds."""
        return sum(r.clock.train_s for r in self.runs.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """A sweep as its store holds it.

    Attributes:
        name: the sweep's folder: its id, and which turn of it this is.
        definition: the content of ``sweep.json``.
        space: field -> range or values.
        objective: what is compared.
        trials: in the order in which they began.
    """

    name: str
    definition: Mapping[str, Any]
    space: Mapping[str, Domain]
    objective: Objective
    trials: tuple[Trial, ...]

    @property
    def ranked(self) -> list[Trial]:
        """The trials that ended well, the best first, then the others as they began."""
        sign = -1 if self.objective.direction == "max" else 1
        return sorted(
            self.trials,
            key=lambda t: (t.objective is None, sign * (t.objective or 0.0), t.number),
        )

    @property
    def best(self) -> Trial | None:
        """The trial with the best objective; the earliest of equals."""
        return next((t for t in self.ranked if t.objective is not None), None)

    @property
    def own(self) -> Trial | None:
        """The trial at the task's own setting, if it is among them."""
        default = self.definition["default"]
        return next((t for t in self.trials if default and dict(t.config) == default), None)

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of trials."""
        found = [t.status for t in self.trials]
        return {s: found.count(s) for s in dict.fromkeys(sorted(found))}

    def command(self, trial: Trial) -> str:
        """The command that runs a trial's setting, on seeds that the sweep has not seen."""
        base, seeds = self.definition["base"], self.definition["seeds"]
        words = ["suite", "run", base["task"], "--profile", base["profile"]]
        words += ["--variant", base["variant"]]
        if any("impl" in r.config.resolved for r in trial.runs.values()):
            words += ["--impl", base["impl"]]
        for field, value in sorted({**base["overrides"], **trial.config}.items()):
            words += ["--set", f"{field}={value}"]
        fresh = max(seeds) + 1
        return shlex.join([*words, "--seeds", f"{fresh}-{fresh + 4}"])


def read(store: Store) -> Result:
    """A sweep from its own store.

    Raises:
        ValueError: there is no sweep, or not one of this schema.
    """
    content = json.loads(store.read(DEFINITION) or b"{}")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{store.uri} holds no {SCHEMA}")
    objective = Objective(**content["objective"])
    space = {
        f: Choice(tuple(d["values"])) if "values" in d else Range(**d)
        for f, d in content["space"].items()
    }
    groups: dict[str, list[Record]] = {}
    for record in store.scan():
        groups.setdefault(_key(record, content), []).append(record)
    began = sorted(groups.values(), key=lambda g: min((r.created_utc, r.record_id) for r in g))
    trials = [_trial(i, g, objective, content) for i, g in enumerate(began, 1)]
    return Result(store.name, content, space, objective, tuple(trials))


def names(store: Store) -> list[str]:
    """The ids of the sweeps below a store."""
    return [n.split("/")[-2] for n in store.names(f"{FOLDER}/*/{DEFINITION}")]


def place(parent: Store, name: str) -> Store:
    """The store of one of the sweeps below a store."""
    return Store(f"{parent.uri.rstrip('/')}/{FOLDER}/{name}")


def write(store: Store) -> Result:
    """Write a sweep's page, text, table and pictures into its own store.

    Raises:
        StoreError: the store cannot be written.
    """
    from suite.report import sweep_page

    found = read(store)
    shares = importance(found)
    drawn = list(sweep_page.pictures(found, shares))
    for picture in drawn:
        store.write(f"{picture.name}.png", picture.png)
    for name, content in files(found, [name for name, _, _ in sweep_page.planned(found)]).items():
        store.write(name, content.encode())
    store.write("index.html", sweep_page.render(found, drawn, shares).encode())
    return found


def check(store: Store) -> list[str]:
    """One sentence for each file of a sweep that does not re-derive from its records.

    A sweep under way has records that its files do not know yet, so it is not judged.
    """
    from suite.report import sweep_page

    found = read(store)
    if not found.definition.get("finished_utc"):
        return []
    expected = files(found, [name for name, _, _ in sweep_page.planned(found)])
    return [
        f"{FOLDER}/{found.name}/{name}: does not match its records"
        for name, content in expected.items()
        if store.read(name) != content.encode()
    ]


def files(found: Result, pictures: Iterable[str]) -> dict[str, str]:
    """The table and the text of a sweep."""
    return {"trials.csv": _csv(found), "README.md": _markdown(found, pictures)}


@dataclasses.dataclass(frozen=True)
class Importance:
    """How much of the objective's variance each field explains.

    Attributes:
        shares: field -> share, and the 10th and 90th percentile of it over resampled trials.
        basis: what was compared, as a caption says it.
    """

    shares: Mapping[str, tuple[float, float, float]]
    basis: str


def importance(found: Result) -> Importance | str:
    """What fANOVA (Hutter, Hoos, Leyton-Brown 2014), as Optuna computes it, says; or why nothing.

    It rests on the trials that ended. Where a scheduler left too few of them, it rests on the
    last evaluation that all trials reached, which says what matters early.
    """
    if found.definition["scheduler"] == "pbt":
        return "No importances: the settings of a population change on the way."
    if len(found.space) < 2:
        return "No importances: there is one field."
    scored, basis = _scored(found)
    values = {value for _, value in scored}
    if len(scored) < LEAST_FOR_IMPORTANCE or len(values) < 2:
        return (
            f"No importances: they need {LEAST_FOR_IMPORTANCE} trials that differ, and "
            f"{len(values)} of {len(scored)} do."
        )
    import numpy as np

    shares = _fanova(found, scored)
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLINGS):
        again = [scored[i] for i in random.integers(len(scored), size=len(scored))]
        if len({value for _, value in again}) > 1:
            resampled.append(_fanova(found, again))
    reach = np.quantile([[r[f] for f in shares] for r in resampled], (0.1, 0.9), axis=0)
    ends = dict(zip(shares, reach.T.tolist(), strict=True))
    return Importance({f: (share, *ends[f]) for f, share in shares.items()}, basis)


def _scored(found: Result) -> tuple[list[tuple[Trial, float]], str]:
    """The trials to compare, each with a number, and what that number is."""
    ended = [(t, t.objective) for t in found.trials if t.objective is not None]
    if len(ended) >= LEAST_FOR_IMPORTANCE:
        return ended, f"{len(ended)} trials that ended"
    seen = [(t, t.seen(found.objective)) for t in found.trials]
    seen = [(t, values) for t, values in seen if values]
    row = min((len(values) for _, values in seen), default=0)
    early = [(t, values[row - 1]) for t, values in seen]
    return early, f"{len(early)} trials at evaluation {row}, the last that all of them reached"


def _fanova(found: Result, scored: Sequence[tuple[Trial, float]]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if found.objective.direction == "max" else "minimize"
    )
    spaces = {f: _distribution(d) for f, d in found.space.items()}
    for t, value in scored:
        study.add_trial(
            optuna.trial.create_trial(params=dict(t.config), distributions=spaces, value=value)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {field: shares.get(field, 0.0) for field in found.space}


def _distribution(domain: Domain) -> "optuna.distributions.BaseDistribution":
    import optuna

    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(list(domain.values))
    if domain.whole:
        return optuna.distributions.IntDistribution(
            int(domain.low), int(domain.high), log=domain.log
        )
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _key(record: Record, content: Mapping[str, Any]) -> str:
    """What the runs of one trial have in common."""
    own = record.extra["sweep"]
    if content["scheduler"] == "pbt":
        return str(own["trial"])
    return json.dumps(own["config"], sort_keys=True)


def _trial(
    number: int, records: Sequence[Record], objective: Objective, content: Mapping[str, Any]
) -> Trial:
    by_seed: dict[int, list[Record]] = {}
    for record in records:
        by_seed.setdefault(record.seed, []).append(record)
    runs = {seed: _counting(found) for seed, found in sorted(by_seed.items())}
    wanted = 1 if content["scheduler"] == "pbt" else len(content["seeds"])
    status, detail = _status(list(runs.values()), wanted)
    last = max(runs.values(), key=lambda r: r.ended_utc)
    value = None
    if status in GOOD:
        finals = [_final(r, objective) for r in runs.values()]
        values = [objective.toward(v) for v in finals if v is not None]
        value = statistics.fmean(values) if len(values) == len(finals) else None
    own = last.extra["sweep"]
    return Trial(number, own["config"], runs, status, detail, value, own["lineage"])


def _counting(attempts: Sequence[Record]) -> Record:
    """The attempt at a run that counts: the last that the run itself ended, else the last."""
    ordered = sorted(attempts, key=lambda r: (r.status in FINISHED, r.attempt, r.ended_utc))
    return ordered[-1]


def _status(runs: Sequence[Record], wanted: int) -> tuple[str, str]:
    for record in runs:
        if record.status not in (*GOOD, "stopped"):
            return record.status, record.status_detail
    for record in runs:
        if record.status == "stopped":
            return "stopped", record.status_detail
    if len(runs) < wanted:
        return "unfinished", f"{len(runs)} of {wanted} seeds"
    return ("ok" if all(r.status == "ok" for r in runs) else "target_missed"), ""


def _csv(found: Result) -> str:
    fields, seeds = list(found.space), _seeds(found)
    head = ["trial", *fields, "status", "objective", *(f"seed_{s}" for s in seeds)]
    head += ["rows", "train_s", "detail", "lineage", "records"]

    def rows() -> Iterator[list[Any]]:
        for t in found.ranked:
            finals = [_final(t.runs.get(s), found.objective) for s in seeds]
            lineage = json.dumps(t.lineage, sort_keys=True) if t.lineage else ""
            ids = " ".join(r.record_id[:16] for r in t.runs.values())
            settings = [t.config[f] for f in fields]
            cost = [t.rows, text.computed(t.train_s)]
            remarks = [t.detail, lineage, ids]
            yield [t.number, *settings, t.status, t.objective, *finals, *cost, *remarks]

    return text.csv_table(head, rows())


def _seeds(found: Result) -> list[int]:
    """The seeds that have a column: none where each trial has its own."""
    return [] if found.definition["scheduler"] == "pbt" else list(found.definition["seeds"])


def _final(record: Record | None, objective: Objective) -> float | None:
    """The metric of a run's last row."""
    final = record.train.final.get(objective.metric) if record and record.train else None
    return final.value if final else None


def title(found: Result) -> str:
    """What a sweep is called."""
    base = found.definition["base"]
    return f"Sweep of {base['task']}, {base['variant']}, {base['profile']} profile"


def summary(found: Result) -> list[str]:
    """What came of a sweep, in sentences."""
    d, best, own = found.definition, found.best, found.own
    ended = ", ".join(f"{n} {status}" for status, n in found.counts.items())
    how = f"{d['search']} search, scheduler {d['scheduler']}, {text.plural(d['samples'], 'sample')}"
    limit = f", at most {text.duration(d['budget_s'])}" if d["budget_s"] else ""
    version = f"version {d['base']['version'][:12]} of the task"
    sentences = [f"{how}{limit}, of {version}; trials: {ended or 'none'}."]
    if best is None or best.objective is None:
        return [*sentences, "No trial ended, so there is no best one."]
    name, sign = found.objective.name, {"max": "≥", "min": "≤", "near": "="}[found.objective.mode]
    target = f"target {sign} {found.objective.target:g}"
    seeds = text.plural(len(best.runs), "seed")
    sentences.append(
        f"Best: trial {best.number}, {name} {text.number(best.objective)} over {seeds} ({target})."
    )
    if own is not None and own.objective is not None:
        sentences.append(f"The task's own setting: {text.number(own.objective)}.")
    elif own is not None:
        sentences.append(f"The task's own setting: {own.status} after {own.rows} evaluations.")
    if best.lineage:
        past = "; ".join(
            f"until row {p['until_row']}: {setting(p['config'])}" for p in best.lineage
        )
        return [
            *sentences,
            f"Its setting changed on the way ({past}); the command runs the last one from the "
            "beginning, which is another experiment.",
        ]
    return [
        *sentences,
        "The best of many trials is in part the luckiest, and was chosen on the very examples that "
        f"{name} is measured on: the command repeats it on new seeds, which have the same ones.",
    ]


def setting(config: Mapping[str, Any]) -> str:
    """A configuration on one line."""
    return ", ".join(f"{f} = {shown(v)}" for f, v in config.items())


def shown(value: Any) -> str:
    """A field's value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return text.flat(value) if value != "" else "''"


def _markdown(found: Result, pictures: Iterable[str]) -> str:
    lines = [f"# {text.md(title(found))}", "", *map(text.md, summary(found)), ""]
    if found.best:
        lines += [text.md(setting(found.best.config)), "", f"    {found.command(found.best)}", ""]
    lines += ["Space: " + ", ".join(text.code(f"{f}={d}") for f, d in found.space.items()), ""]
    lines += [f"![{name}]({name}.png)" for name in pictures]
    head = ["trial", *found.space, found.objective.name, "status", "rows", "training"]
    ranked = found.ranked
    rows = [
        [
            str(t.number),
            *(text.md(shown(t.config[f])) for f in found.space),
            text.number(t.objective),
            text.md(t.status),
            str(t.rows),
            text.duration(t.train_s),
        ]
        for t in ranked[:MOST_TRIALS_IN_TEXT]
    ]
    table = text.md_table([text.md(h) for h in head], rows)
    more = len(ranked) - len(rows)
    rest = f"\n{text.plural(more, 'more trial')} in [trials.csv](trials.csv).\n" if more > 0 else ""
    return "\n".join(lines) + f"\n\n{table}{rest}"
