"""What the engine adds to a task's own time. Read the figures; nothing here can fail by them."""

import subprocess
import sys

import pytest

from suite.local import Campaign
from suite.plan import expand
from suite.run import execute, warm_up
from suite.store import Store


@pytest.fixture
def specs():
    made = expand(["ch90.linear"], profile="smoke", variants=["quick"], seeds=range(40))
    warm_up()
    return made


def test_overhead_of_a_run(benchmark, specs, tmp_path):
    """Wall time of ``execute`` less the task's own clock, workers warm."""
    store, todo = Store(str(tmp_path)), iter(specs * 100)
    own = []
    benchmark.pedantic(
        lambda: own.append(execute(next(todo), store=store).clock.wall_s),
        rounds=40,
        warmup_rounds=3,
    )
    benchmark.extra_info["own_s"] = sorted(own)[len(own) // 2]
    benchmark.extra_info["overhead_s"] = benchmark.stats.stats.median - sorted(own)[len(own) // 2]


def test_overhead_of_a_run_in_a_worker(benchmark, specs, tmp_path):
    """Forty runs through one persistent worker, its start included, less their own clocks."""
    records = benchmark.pedantic(Campaign(Store(str(tmp_path))).run, (specs,), rounds=1)
    own = sum(r.clock.wall_s for r in records)
    first, *_, last = sorted(r.started_utc for r in records)
    from datetime import datetime

    spread = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    benchmark.extra_info["overhead_s"] = (spread - own) / (len(records) - 1)


@pytest.mark.parametrize("command", [["list"], ["list", "--json"]])
def test_time_to_answer(benchmark, command):
    """``suite list`` from a cold interpreter."""
    benchmark.pedantic(
        subprocess.run,
        ([sys.executable, "-m", "suite", *command],),
        {"check": True, "capture_output": True},
        rounds=10,
    )


def test_smoke_of_one_small_task(benchmark, tmp_path):
    """One run from the command line to its record, interpreter and torch start included."""
    arguments = ["run", "ch90.linear", "--profile", "smoke", "--variant", "quick"]
    benchmark.pedantic(
        subprocess.run,
        ([sys.executable, "-m", "suite", *arguments, "--fresh", "--store", str(tmp_path)],),
        {"check": True, "capture_output": True},
        rounds=5,
    )
