"""The limits that keep the suite from growing into a framework."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from suite import fit, run, task

ROOT = Path(__file__).parent.parent
OURS = [n for n in task.names() if task.source_path(n).is_relative_to(ROOT / "tasks")]


@pytest.mark.parametrize("name", OURS)
def test_a_task_is_one_readable_file(name):
    """Of code: what the docstring explains and TASK declares may be as long as it must."""
    text = task.source_path(name).read_text()
    code = text.split('"""', 2)[2].partition("\nTASK = ")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 300


@pytest.mark.parametrize("name", OURS)
def test_a_config_is_small(name):
    assert len(dataclasses.fields(task.find(name).config)) <= 15


def test_fit_stays_small():
    body = inspect.getsource(fit.fit).split('"""')[2]
    assert len(body.splitlines()) <= 40
    assert len(inspect.signature(fit.fit).parameters) <= 8


def test_a_task_may_ask_for_five_things_only():
    public = {n for n in vars(run.Context) if not n.startswith("_")}
    assert public == {"data", "keep", "figure"}


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
