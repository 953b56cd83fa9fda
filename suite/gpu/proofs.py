"""Kernels as a GPU runs them: the tests of tests/gpu, and the vendor's sanitizers."""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.gpu import checks
from suite.gpu.stage import GRACE_S, HANGS_S, Run, workers

ROOT = Path(__file__).parent.parent.parent

# In less, pytest does not come to more than collecting.
RETRY_S = 40.0


def tests(this: Run, deadline: float) -> int:
    """Run the tests that have not passed yet; a record holds the outcome of each."""
    from suite.run import says_memory_is_full

    outcomes, left = checks.earlier(this, "gpu_tests")
    if outcomes and not left:
        return 0
    seconds = this.seconds(deadline)
    if seconds <= 0:
        return left or 1
    begin = this.now()
    ran = pytest_run(sorted(outcomes), seconds)
    crowded = [name for name, why in ran.why.items() if says_memory_is_full(why)]
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
    why = dict[str, str]()
    for line in lines:
        if line.get("outcome") == "failed":
            # A test that takes its process with it is reported by others later, who know no more.
            why.setdefault(line["test"], line["detail"])
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
# A program that ends before this has not been checked.
END = "all of it ran"
# What the tools say on a machine where they cannot watch; its programs then fail by themselves.
UNABLE = ("Device not supported", "Failed to initialize")

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
print("{end}")
"""

# The odd sizes that every op is tested with, where a mask that is wrong shows.
ODD = """
import importlib, torch
from kernels.bench.accuracy import evaluated
from kernels.bench.providers import providers
from kernels.bench.workload import RAGGED, Workload
case = importlib.import_module("kernels.{folder}.cases").TEST[1]
w = Workload("{op}", case, torch.float32, "full", "cuda", "{op}" in RAGGED)
evaluated(providers("{op}")["triton"].build(w), True, torch.float32)
torch.cuda.synchronize()
print("{end}")
"""


@dataclass(frozen=True)
class Sanitizer:
    """One of NVIDIA's tools that watch what kernels do.

    Attributes:
        name: what it is called.
        clean: what it says at the end where it has found nothing.
        seconds: for each program; after that it is stopped.
        options: how it is called.
        variables: of its programs' environment.
    """

    name: str
    clean: str
    seconds: float
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


RACES = Sanitizer("racecheck", "RACECHECK SUMMARY: 0 hazards", math.inf)
# Of a tensor within a larger block nobody sees where it ends. That PyTorch asks the driver for what
# it has not is no error of a kernel.
ACCESSES = Sanitizer(
    "memcheck",
    "ERROR SUMMARY: 0 errors",
    60.0,
    ("--report-api-errors", "no"),
    {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
)


def racecheck(this: Run, deadline: float) -> int:
    """Run kernels under NVIDIA's sanitizers; a record of each holds the outcomes.

    Under the race detector those whose programs wait for each other; under the checker of memory
    every op on one case of odd sizes, values and gradients.
    """
    from suite import bench

    races = {
        f"lstm.lstm split, {dtype}": WAITING.format(dtype=dtype, end=END)
        for dtype in ("float32", "bfloat16")
    }
    accesses = {op: ODD.format(op=op, folder=op.partition(".")[0], end=END) for op in bench.ops()}
    # Under the race detector a program has the GPU for itself.
    left = _sanitized(this, deadline, RACES, races, 1)
    return left + _sanitized(this, deadline, ACCESSES, accesses, workers())


def _sanitized(
    this: Run, deadline: float, sanitizer: Sanitizer, programs: Mapping[str, str], at_once: int
) -> int:
    """Run programs under a sanitizer, some at once; how many are left."""
    from suite.record import Check

    outcomes, _ = checks.earlier(this, sanitizer.name)
    todo = [name for name in programs if name not in outcomes]
    if not todo:
        return 0
    tool = next((found for name in SANITIZERS if (found := shutil.which(name))), None)
    if tool and this.seconds(deadline) <= 0:
        return len(todo)
    begin, why = this.now(), dict[str, str]()

    def watch(name: str) -> None:
        seconds = this.seconds(deadline)
        if tool is None:
            outcomes[name], why[name] = "skipped", f"no {SANITIZERS[0]} on this machine"
        elif seconds > 0:
            limit = min(seconds + GRACE_S / 2, sanitizer.seconds)
            verdict, output = _checked(tool, sanitizer, programs[name], limit)
            if verdict:
                outcomes[name] = verdict
            if verdict != "passed":
                why[name] = output

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(watch, todo))
    left = len([name for name in programs if name not in outcomes])
    output = checks.joined(why)
    check = Check(name=sanitizer.name, outcomes=outcomes, left=left, output=output)
    failed = checks.put(this, sanitizer.name, check, this.now() - begin)
    this.say(f"{sanitizer.name}: {len(todo)} programs, {failed} failed in all, {left} left")
    return left


def _checked(tool: str, sanitizer: Sanitizer, code: str, seconds: float) -> tuple[str, str]:
    """``passed``, ``failed`` or nothing where there is no verdict; and what was printed."""
    from suite.run import says_memory_is_full

    command = [tool, "--tool", sanitizer.name, "--print-limit", "20", *sanitizer.options]
    variables = {"PYTHONPATH": str(ROOT), **sanitizer.variables}
    output, exit_code = _until([*command, sys.executable, "-c", code], variables, seconds)
    if exit_code == 0 and END in output and sanitizer.clean in output:
        return "passed", output[-4000:]
    # Without its summary the tool was stopped, or did not start. With one it may have seen nothing.
    summary = sanitizer.clean.partition(":")[0]
    seen = summary in output and not any(words in output for words in UNABLE)
    return ("failed" if seen and not says_memory_is_full(output) else ""), output[-4000:]


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
