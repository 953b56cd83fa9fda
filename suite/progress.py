"""What a person sees while a run matrix is under way."""

import math
import statistics
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from suite.local import Event
from suite.plan import Spec
from suite.record import Record

if TYPE_CHECKING:
    from suite.sweep import Sweep

STYLES = {"ok": "green", "target_missed": "yellow", "skipped": "dim"}


class Display:
    """Shows a run matrix: a live table on a terminal, one plain line a run elsewhere.

    Args:
        specs: the matrix.
        jobs: runs at the same time, for the time left.
        console: where to write.
    """

    def __init__(self, specs: list[Spec], jobs: int, console: Console) -> None:
        self.console = console
        self.jobs = jobs
        self.left = {spec.run_id: spec for spec in specs}
        self.total = len(specs)
        self.running: dict[str, tuple[Spec, float, dict[str, float]]] = {}
        self.walls: dict[tuple[str, str], list[float]] = {}
        self.counts: dict[str, int] = {}
        self.progress = Progress(
            TextColumn("[bold]runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.bar = self.progress.add_task("runs", total=self.total, note="")
        self.live = Live(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=4
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __call__(self, event: Event, spec: Spec | None, content: Any) -> None:
        """Take in one event of the campaign."""
        if spec is None:
            self._say(str(content), "dim")
        elif event == "started":
            self.running[spec.run_id] = (spec, time.monotonic(), {})
        elif event == "row" and spec.run_id in self.running:
            self.running[spec.run_id][2].update(content)
        elif event == "again":
            self.running.pop(spec.run_id, None)
            self._say(f"{spec}: {outcome(content)}; trying again", "yellow")
        elif event in ("ended", "skipped"):
            self._end(spec, content, again=event == "ended")

    def _end(self, spec: Spec, record: Record, *, again: bool) -> None:
        self.running.pop(spec.run_id, None)
        self.left.pop(spec.run_id, None)
        self.walls.setdefault((spec.task, spec.variant), []).append(record.clock.wall_s)
        key = record.status if again else "already done"
        self.counts[key] = self.counts.get(key, 0) + 1
        done = self.total - len(self.left)
        self.progress.update(self.bar, completed=done, note=self._note())
        if again:
            style = STYLES.get(record.status, "red")
            self._say(f"[{done}/{self.total}] {spec}: {outcome(record)}", style)

    def _say(self, line: str, style: str) -> None:
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def _note(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items()))
        left = self._seconds_left()
        return f"{counts}; about {duration(left)} left" if left and self.left else counts

    def _seconds_left(self) -> float:
        """From the runs of the same task and variant so far, else from all so far."""
        known = [w for walls in self.walls.values() for w in walls]
        if not known:
            return 0.0
        typical = statistics.median(known)
        needed = 0.0
        for spec in self.left.values():
            same = self.walls.get((spec.task, spec.variant))
            needed += statistics.median(same) if same else typical
        now = time.monotonic()
        begun = sum(now - began for _, began, _ in self.running.values())
        return max(0.0, needed - begun) / self.jobs

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("running", "variant", "seed", "step", "for", "last row"):
            table.add_column(name, no_wrap=True)
        for spec, began, row in self.running.values():
            shown = [f"{k}={v:.4g}" for k, v in row.items() if k not in ("step", "train_s")]
            table.add_row(
                spec.task,
                spec.variant,
                str(spec.seed),
                f"{row.get('step', 0):g}",
                duration(time.monotonic() - began),
                " ".join(shown[:4]),
            )
        return Group(table, self.progress)


class Benchmarks:
    """Shows benchmarks under way: a bar on a terminal, and one plain line a session.

    Args:
        total: how many sessions.
        console: where to write.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]benchmarks"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("benchmarks", total=total)
        self.total, self.done = total, 0

    def __enter__(self) -> "Benchmarks":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, session: object, records: list[Record]) -> None:
        """Take in the records of a session; none where the store had them."""
        self.done += 1
        self.progress.update(self.bar, completed=self.done)
        if records:
            line = f"[{self.done}/{self.total}] {session}: {', '.join(r.brief for r in records)}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _counting(what: str, console: Console) -> Progress:
    """A live line on how many are done, and a note; nothing where there is no terminal."""
    return Progress(
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class SweepDisplay:
    """Shows a sweep: a live line on a terminal, and one plain line for each trial that ends.

    Args:
        sweep: what is searched.
        console: where to write.
    """

    def __init__(self, sweep: "Sweep", console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.running: set[str] = set()
        self.ended: set[str] = set()
        self.best: float | None = None
        self.progress = _counting("trials", console)
        self.bar = self.progress.add_task("trials", total=sweep.samples, note="")

    def __enter__(self) -> "SweepDisplay":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(
        self, event: str, trial: str, config: Mapping[str, Any], result: Mapping[str, Any]
    ) -> None:
        """Take in one event of the sweep."""
        if event == "started":
            self.running.add(trial)
        elif event in ("ended", "failed") and trial not in self.ended:
            self.running.discard(trial)
            self.ended.add(trial)
            self._end(event, config, result)
        note = f"{len(self.running)} running" + (
            f"; best {self.best:.4g}" if self.best is not None else ""
        )
        self.progress.update(self.bar, completed=len(self.ended), note=note)

    def _end(self, event: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        status = "killed" if event == "failed" else str(result.get("status", "stopped"))
        # Tune ends a trial by its last row: that of one it stopped says that it was running.
        status = "stopped" if status == "running" else status
        value = result.get("objective")
        if value is not None and status in STYLES:
            sign = 1 if self.sweep.objective.direction == "max" else -1
            if self.best is None or sign * value > sign * self.best:
                self.best = value
        shown = f", {self.sweep.objective.name} {value:.4g}" if value is not None else ""
        setting = " ".join(f"{k}={_short(v)}" for k, v in config.items())
        line = f"[{len(self.ended)}/{self.sweep.samples}] {setting}: {status}{shown}"
        line += f" after {result['row']} rows" if status == "stopped" and "row" in result else ""
        style = "dim" if status == "stopped" else STYLES.get(status, "red")
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class PairsDisplay:
    """Shows a comparison of revisions: a live line on a terminal, a plain one each pair elsewhere.

    Args:
        pairs: how many there are at most.
        console: where to write.
    """

    def __init__(self, pairs: int, console: Console) -> None:
        self.console, self.pairs, self.shown = console, pairs, -1
        self.progress = _counting("pairs", console)
        self.bar = self.progress.add_task("pairs", total=pairs, note="")

    def __enter__(self) -> "PairsDisplay":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(self, event: str, pair: int, benchmark: str) -> None:
        """Take in what is timed next: in ``scout`` and ``pair`` all, in ``again`` some."""
        done = max(0, pair - 1)
        if event == "again":
            self.pairs = max(self.pairs, pair)
            self.progress.update(self.bar, total=self.pairs)
        self.progress.update(self.bar, completed=done, note=benchmark)
        if not self.console.is_terminal and pair > self.shown:
            self.shown = pair
            line = {
                "scout": "looking at every benchmark once",
                "pair": f"pair {pair} of {self.pairs}",
                "again": f"again what was disturbed: pair {pair}",
            }[event]
            self.console.print(line, style="dim", highlight=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    parts: list[str] = [record.status]
    if record.train and record.task.target:
        final = record.train.final.get(record.task.target.metric)
        parts.append(f"{record.task.target.metric} {final.value:.4g}" if final else "no value")
    parts.append(duration(record.clock.wall_s))
    if record.status_detail:
        parts.append(record.status_detail)
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``0.4 s``, ``2 min 05 s``, ``3 h 10 min``."""
    if not math.isfinite(seconds):
        return "no limit"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
