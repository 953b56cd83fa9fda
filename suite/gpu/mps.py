"""A GPU that several processes use side by side, through NVIDIA's Multi-Process Service."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suite.gpu.stage import Run

TOOL = "nvidia-cuda-mps-control"
# Where the daemon of a whole machine listens.
PUBLIC = Path("/tmp/nvidia-mps/control")
ANSWER_S = 20.0


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
    tool = shutil.which(TOOL)
    if tool is None:
        this.say(f"  no {TOOL} on this machine: runs take turns on the GPU")
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as place:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": place, "CUDA_MPS_LOG_DIRECTORY": place}
        if why := _ask([tool, "-d"], variables):
            this.say(f"  MPS did not start ({why}): runs take turns on the GPU")
            yield
            return
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]
            if why := _ask([tool], variables, "quit\n"):
                this.say(f"  MPS did not stop: {why}")


def _ask(command: list[str], variables: dict[str, str], text: str = "") -> str:
    """Run a command of the daemon; why it failed, or nothing."""
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
                timeout=ANSWER_S,
                check=False,
            )
            output.seek(0)
            return "" if ended.returncode == 0 else output.read().strip() or str(ended.returncode)
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_S:g} s"
