"""A GPU that several processes use side by side, through NVIDIA's Multi-Process Service."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from suite.gpu.stage import Run

TOOL = "nvidia-cuda-mps-control"
# Where it is sought after the folders of PATH: a container gets the driver's tools there.
PLACES = ("/usr/bin", "/usr/local/nvidia/bin")
# Where the daemon of a whole machine listens.
PUBLIC = Path("/tmp/nvidia-mps/control")
# A daemon that has started may still have a server that fails whoever comes.
PROBE = "import torch; torch.zeros(1, device='cuda').add_(1).item()"
ANSWER_S, PROBE_S, END_S = 20.0, 25.0, 2.0


@contextlib.contextmanager
def shared(this: Run) -> Iterator[None]:
    """Have the processes that start inside use the GPU side by side; without, they take turns.

    A daemon of this call's own does it, unless the machine has one; what it has found to work with,
    or not, is said.
    """
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ or PUBLIC.exists():
        this.say("  the machine's own MPS shares the GPU")
        yield
        return
    tool = shutil.which(TOOL, path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))
    if tool is None:
        this.say(f"  no {TOOL} on this machine: runs take turns on the GPU")
        yield
        return
    # A server that is being killed may still write there.
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as place:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": place, "CUDA_MPS_LOG_DIRECTORY": place}
        kill = functools.partial(_kill, Path(place))
        this.at_exit.append(kill)
        try:
            if why := _start(tool, variables):
                # Its server would only be in the way.
                kill()
                this.say(f"  MPS did not start ({why}): runs take turns on the GPU")
                yield
                return
            os.environ.update(variables)
            try:
                yield
            finally:
                for name in variables:
                    del os.environ[name]
                if why := _ask([tool], variables, ANSWER_S, "quit\n"):
                    this.say(f"  MPS did not stop ({why}): it is killed")
        finally:
            kill()
            this.at_exit.remove(kill)


def _start(tool: str, variables: dict[str, str]) -> str:
    """Start a daemon and use the GPU through it; why that failed, or nothing."""
    if why := _ask([tool, "-d"], variables, ANSWER_S):
        return why
    if why := _ask([sys.executable, "-c", PROBE], variables, PROBE_S):
        logs = sorted(Path(variables["CUDA_MPS_LOG_DIRECTORY"]).glob("*.log"))
        said = "\n".join(log.read_text(errors="replace")[-500:] for log in logs)
        return f"nothing runs through it: {why[-500:]}\n{said}".strip()
    return ""


def _ask(command: list[str], variables: dict[str, str], seconds: float, text: str = "") -> str:
    """Run a command with some variables; why it failed, or nothing."""
    try:
        # A file, since the daemon keeps what it inherits open, and a pipe would wait for it.
        with tempfile.TemporaryFile("w+") as output:
            ended = subprocess.run(
                command,
                input=text,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                text=True,
                timeout=seconds,
                check=False,
            )
            output.seek(0)
            return "" if ended.returncode == 0 else output.read().strip() or str(ended.returncode)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"


def _kill(place: Path) -> None:
    """End the daemon of a folder and its servers, should they still be there."""
    try:
        daemon = int((place / f"{TOOL}.pid").read_text())
    except (OSError, ValueError):
        return
    found = {pid for pid, parent in _daemons().items() if daemon in (pid, parent)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in found & _daemons().keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + END_S
        while found & _daemons().keys() and time.monotonic() < until:
            time.sleep(0.02)


def _daemons() -> dict[int, int]:
    """The processes of MPS on this machine that have not ended, each with its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # It may be gone by now.
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text(errors="replace").partition(" (")
            name, _, rest = rest.rpartition(") ")
            state, parent, *_ = rest.split()
            # Linux keeps the first 15 letters of a name, which the daemon and its servers share.
            if name == TOOL[:15] and state != "Z":
                found[int(pid)] = int(parent)
    return found
