"""What ran where: the commit, the versions and the machine, for the record."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from suite.record import CodeInfo, EnvInfo, GpuInfo, NodeInfo, TorchInfo

PACKAGES = ("numpy", "scipy", "torch", "torchvision", "triton", "ray", "gymnasium", "scikit-learn")
ENV_VARS = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
)

# Where a file that git does not know changes what runs.
CODE = ("suite/", "kernels/", "tasks/", "tests/")
CHANGES = (".", ":(exclude)results", ":(exclude)kernels/configs")


@functools.cache
def code() -> CodeInfo:
    """The commit this process imported its code from, and whether it was changed since.

    What was measured is not code: records written into ``results/``, or into a new folder of the
    checkout, leave the tree clean, and so do launch parameters, which the times of kernels name.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *CHANGES)
    if changes is not None:
        lines = changes.splitlines(keepends=True)
        changes = "".join(x for x in lines if not x.startswith("?? ") or x[3:].startswith(CODE))
    diff = (_git("diff", "HEAD", "--", *CHANGES) or "") + (changes or "")
    return CodeInfo(
        commit=commit.strip() if commit else None,
        dirty=None if changes is None else bool(changes),
        diff_sha256=hashlib.sha256(diff.encode()).hexdigest() if changes else None,
        argv=[Path(sys.argv[0]).name, *sys.argv[1:]],
    )


def _git(*arguments: str) -> str | None:
    """The output of a git command in the checkout, or None outside one."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def env() -> EnvInfo:
    """Versions and switches as they are now. Imports torch."""
    import torch

    versions = _versions()
    triton = versions.get("triton")
    interpret = os.environ.get("TRITON_INTERPRET") == "1"
    return EnvInfo(
        python=platform.python_version(),
        packages=versions,
        torch=TorchInfo(
            version=torch.__version__,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None,
            num_threads=torch.get_num_threads(),
            tf32=torch.backends.cuda.matmul.allow_tf32,
            matmul_precision=torch.get_float32_matmul_precision(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        ),
        triton={"version": triton, "interpret": interpret} if triton else None,
        ray=versions.get("ray"),
        env_vars={k: os.environ[k] for k in ENV_VARS if k in os.environ},
    )


def load1() -> float | None:
    """The one-minute load average, where the system has one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def running() -> int | None:
    """How many threads compute at this moment, this one among them, where the system tells."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return None


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def node() -> NodeInfo:
    """This machine, with its load now."""
    return _node().model_copy(update={"load1_start": load1()})


@functools.cache
def _node() -> NodeInfo:
    return NodeInfo(
        os=f"{platform.system()} {platform.machine()}",
        cpu_model=_cpu_model(),
        cpu_cores=cores(),
        mem_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        load1_start=None,
        load1_end=None,
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _gpus() -> list[GpuInfo]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        driver, limit = _driver(index)
        found.append(
            GpuInfo(
                name=properties.name,
                mem_bytes=properties.total_memory,
                driver=driver,
                power_limit_w=limit,
            )
        )
    return found


def _driver(index: int) -> tuple[str | None, float | None]:
    """Driver version and power limit as nvidia-smi tells them, or None."""
    query = "--query-gpu=driver_version,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={index}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        driver, limit = (part.strip() for part in done.stdout.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
    try:
        return driver, float(limit)
    except ValueError:
        return driver, None
