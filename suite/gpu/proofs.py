"""Kernels as a GPU runs them: the tests of tests/gpu, and the vendor's race detector."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.gpu import checks
from suite.gpu.stage import GRACE_S, Run, workers

ROOT = Path(__file__).parent.parent.parent

# In less, pytest does not come to more than collecting.
RETRY_S = 40.0
# A test that takes longer does not end.
HANGS_S = 2 * GRACE_S


def tests(this: Run, deadline: float) -> int:
    """Run the tests that have not passed yet; a record holds the outcome of each."""
    outcomes, left = checks.earlier(this, "gpu_tests")
    if outcomes and not left:
        return 0
    seconds = this.seconds(deadline)
    if seconds <= 0:
        return left or 1
    begin = this.now()
    ran = pytest_run(sorted(outcomes), seconds)
    crowded = [name for name, why in ran.why.items() if checks.crowded(why)]
    ran = ran.without(crowded)
    _put(this, outcomes, ran, begin)
    if crowded and (seconds := this.seconds(deadline)) >= RETRY_S:
        # Tests of several processes share the memory; these get all of it.
        begin = this.now()
        ran = ran.again(pytest_run([], seconds, crowded, at_once=1))
        _put(this, outcomes, ran, begin)
    return ran.left


def _put(this: Run, earlier: dict[str, Any], ran: "Tests", begin: float) -> None:
    """Record what became of tests, those of earlier calls among them."""
    from suite.record import Check

    for name in sorted(ran.why):
        this.say(f"  {name}: {ran.why[name].strip().splitlines()[-1:]}")
    output = checks.joined(ran.why)
    check = Check(name="tests/gpu", outcomes=earlier | ran.outcomes, left=ran.left, output=output)
    failed = checks.put(this, "gpu_tests", check, this.now() - begin)
    this.say(f"tests: {len(ran.outcomes)} run, {failed} failed in all, {ran.left} left")


@dataclass(frozen=True)
class Tests:
    """What became of tests.

    Attributes:
        outcomes: test -> passed, failed or skipped, of those that ran.
        left: how many did not.
        why: test -> the end of its traceback, of those that failed.
    """

    outcomes: dict[str, str]
    left: int
    why: dict[str, str]

    def without(self, some: Collection[str]) -> "Tests":
        """The same, with some of them left."""
        outcomes = {name: outcome for name, outcome in self.outcomes.items() if name not in some}
        why = {name: text for name, text in self.why.items() if name not in some}
        return Tests(outcomes, self.left + len(some), why)

    def again(self, some: "Tests") -> "Tests":
        """The same, with some of those that were left run."""
        left = self.left - len(some.outcomes)
        return Tests(self.outcomes | some.outcomes, left, self.why | some.why)


def pytest_run(
    done: Sequence[str],
    seconds: float,
    which: Sequence[str] = ("tests/gpu",),
    at_once: int | None = None,
) -> Tests:
    """Run tests in processes of their own until a time is over.

    Most of their time goes into compiling kernels, so that there is a process for each core where
    pytest-xdist is installed.

    Args:
        done: tests to leave out.
        seconds: after which none begins.
        which: files, folders or tests, below the checkout.
        at_once: how many; as many as there are cores when None.

    Raises:
        OSError: pytest could not even collect them.
    """
    with tempfile.TemporaryDirectory() as place:
        log, list_ = Path(place, "log"), Path(place, "done")
        list_.write_text("\n".join(done))
        log.touch()
        variables = {
            "FDL_GPU_TESTS": "1",
            "FDL_GPU_LOG": str(log),
            "FDL_GPU_DONE": str(list_),
            "FDL_GPU_DEADLINE": str(time.time() + seconds),
        }
        # Of the project's own options some belong to plug-ins that need not be here; and of what
        # other versions of packages warn, no kernel is guilty.
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=short"]
        command += ["-W", "default", "-p", "no:cacheprovider", *_parallel(at_once), *which]
        output, code = _until(command, variables, seconds + GRACE_S / 2)
        ended = time.time()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    collected = next((line["collected"] for line in lines if "collected" in line), None)
    if collected is None:
        raise OSError(f"pytest collected no tests: {output[-2000:]}")
    begun = {line["begun"]: line["at"] for line in lines if "begun" in line}
    found = {line["test"]: line["outcome"] for line in lines if "test" in line}
    why = {line["test"]: line["detail"] for line in lines if line.get("outcome") == "failed"}
    for name, at in begun.items():
        # What the end of the time has cut short is left.
        if name not in found and (code is not None or ended - at > HANGS_S):
            found[name], why[name] = "failed", "it hung, or took its process with it"
    return Tests(found, int(collected) - len(found), why)


def _parallel(at_once: int | None) -> list[str]:
    """Options of pytest for plug-ins that help where they are installed."""
    options = []
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(at_once or workers())]
    if importlib.util.find_spec("pytest_timeout") is not None:
        options += [f"--timeout={HANGS_S:g}", "--timeout-method=thread"]
    return options


SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")

# Small, for the tool watches every access; large enough that programs wait for each other.
WAITING = """
import torch
from kernels.lstm import cases, lstm
case = cases.Case("racecheck", 3, 16, 32, 256, torch.{dtype})
x, *weights, state = cases.arguments("lstm", case, device="cuda")
leaves = [t.requires_grad_() for t in (x, *weights)]
y, last = lstm(*leaves, state, impl="triton")
torch.autograd.grad(y.sum(), leaves)
torch.cuda.synchronize()
"""


def racecheck(this: Run, deadline: float) -> int:
    """Run the kernels whose programs wait for each other under NVIDIA's race detector."""
    from suite.record import Check

    dtypes = ("float32", "bfloat16")
    outcomes, _ = checks.earlier(this, "racecheck")
    todo = [d for d in dtypes if f"lstm.lstm split, {d}" not in outcomes]
    if not todo:
        return 0
    tool = next((found for name in SANITIZERS if (found := shutil.which(name))), None)
    begin, output = this.now(), "" if tool else f"no {SANITIZERS[0]} on this machine"
    for dtype in todo:
        seconds = this.seconds(deadline)
        name = f"lstm.lstm split, {dtype}"
        if tool is None:
            outcomes[name] = "skipped"
        elif seconds > 0:
            verdict, output = _raced(tool, WAITING.format(dtype=dtype), seconds + GRACE_S / 2)
            if verdict:
                outcomes[name] = verdict
    left = len([d for d in dtypes if f"lstm.lstm split, {d}" not in outcomes])
    check = Check(name="racecheck", outcomes=outcomes, left=left, output=output)
    checks.put(this, "racecheck", check, this.now() - begin)
    return left


def _raced(tool: str, code: str, seconds: float) -> tuple[str, str]:
    """``passed``, ``failed`` or nothing where time ran out; and what the tool printed."""
    command = [tool, "--tool", "racecheck", "--print-limit", "20", sys.executable, "-c", code]
    output, _ = _until(command, {"PYTHONPATH": str(ROOT)}, seconds)
    if "RACECHECK SUMMARY: 0 hazards" in output:
        return "passed", output[-4000:]
    # Without its summary the tool was killed, or could not start.
    return ("failed" if "RACECHECK SUMMARY" in output else ""), output[-4000:]


def _until(command: list[str], variables: dict[str, str], seconds: float) -> tuple[str, int | None]:
    """What a command printed, and its exit code; None where it was killed after some seconds.

    With it goes all that it started.

    Its kernels are compiled, whatever this process does with its own.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read(), code
