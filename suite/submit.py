"""Run the suite on a cluster's head: ``ray submit cluster.yaml suite/submit.py -- reproduce``.

``ray submit`` copies this one file to the head's home and runs it there, so it uses nothing but the
standard library and looks for the checkout that the cluster's ``file_mounts`` put beside it. A
command that can run on a cluster does (``--on auto``), unless its arguments say where.

The shell of the head reads the arguments a second time. What it must not touch goes into one
string: ``-- "run 'ch1*' --seeds 0-4"``.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = "fundamentals"
DISTRIBUTED = ("run", "reproduce", "sweep")
USAGE = 2
MEANING = {
    0: "done",
    1: "a claim is contradicted",
    2: "wrong usage",
    3: "a run failed",
    4: "the machine or the cluster failed; the same command continues",
    130: "stopped; the same command continues",
}


def main(arguments: list[str]) -> int:
    """Run one command of the suite in the checkout; return its exit code, and print it last.

    ``ray submit`` turns every failure into exit code 1, so the last line is what tells them apart.
    """
    checkout = _checkout()
    if checkout is None:
        return _end(USAGE, f"~/{CHECKOUT} is no checkout of the suite; see the file_mounts")
    if _distributed(arguments) and not _has_store(arguments):
        return _end(USAGE, "no store: set SUITE_STORE in the setup_commands, or give --store")
    process = subprocess.Popen(
        [sys.executable, "-m", "suite", *arguments, *_where(arguments)],
        cwd=checkout,
        start_new_session=True,
    )
    _pass_on(process)
    code = process.wait()
    return _end(code, MEANING.get(code, "it was killed" if code < 0 else "an unexpected failure"))


def _checkout() -> Path | None:
    """The mounted checkout, or the one this file stands in."""
    here = Path(__file__).resolve().parent.parent
    places = (Path.home() / CHECKOUT, here)
    return next((p for p in places if (p / "suite" / "__main__.py").is_file()), None)


def _distributed(arguments: list[str]) -> bool:
    return bool(arguments) and arguments[0] in DISTRIBUTED and not {"-h", "--help"} & {*arguments}


def _has_store(arguments: list[str]) -> bool:
    return "SUITE_STORE" in os.environ or _gives("--store", arguments)


def _where(arguments: list[str]) -> list[str]:
    said = "SUITE_ON" in os.environ or _gives("--on", arguments)
    return ["--on", "auto"] if _distributed(arguments) and not said else []


def _gives(option: str, arguments: list[str]) -> bool:
    return any(a == option or a.startswith(f"{option}=") for a in arguments)


def _pass_on(process: "subprocess.Popen[bytes]") -> None:
    """Have whatever ends this script stop the suite in order, with its snapshots written."""

    def stop(number: int, frame: Any) -> None:
        process.terminate()

    # SIGHUP is what a lost connection sends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def _end(code: int, meaning: str) -> int:
    command = shlex.join(["suite", *sys.argv[1:]])
    print(f"{command}: exit code {code} ({meaning})", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
