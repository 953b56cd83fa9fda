"""Tests that can be stopped and continued: each outcome is written down when it is known.

Without these variables everything runs, as ever:

- ``FDL_GPU_LOG``: a file to which each test's begin and outcome are added, a JSON object a line.
- ``FDL_GPU_DONE``: a file with the ids of tests that need not run again, one a line.
- ``FDL_GPU_DEADLINE``: no test begins after that time, in seconds since 1970.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

# The proofs are those of the interpreter, on another device.
sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))


def _log(**line):
    if path := os.environ.get("FDL_GPU_LOG"):
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def _in_turn(items):
    """The first case of every op, then the second of every op: little time still sees all ops."""
    seen, turns = Counter(), {}
    for item in items:
        op = item.nodeid.partition("-")[0]
        turns[item.nodeid] = seen[op]
        seen[op] += 1
    return sorted(items, key=lambda item: turns[item.nodeid])


def pytest_collection_modifyitems(session, config, items):
    done = set()
    if path := os.environ.get("FDL_GPU_DONE"):
        done = set(Path(path).read_text().splitlines())
    left = _in_turn([item for item in items if item.nodeid not in done])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = left
    # Of a collection that failed nothing runs.
    if not session.testsfailed:
        _log(collected=len(left))


@pytest.fixture(autouse=True)
def freed():
    """Give a test's memory back, which the tests of other processes need."""
    yield
    # Not imported above: who hands the tests out needs no PyTorch.
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    # Not ``session.shouldstop``: a worker of pytest-xdist that stops is taken for a crashed one.
    if time.time() > float(os.environ.get("FDL_GPU_DEADLINE", "inf")):
        return True
    _log(begun=item.nodeid, at=time.time())
    return None


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _log(test=report.nodeid, outcome=report.outcome, detail=report.longreprtext[-2000:])
    # After such an error every call of this process fails; pytest-xdist starts another.
    if "CUDA error" in report.longreprtext and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
