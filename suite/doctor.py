"""What this machine has and lacks, and what that means for what can run."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from suite import data, energy, launch, provenance
from suite.store import Store, StoreError


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``missing`` keeps the suite from running; ``lacks`` limits it."""

    mark: Literal["ok     ", "lacks  ", "missing"]
    what: str
    found: str
    meaning: str = ""


def examine(store: str) -> Iterator[Finding]:
    """Look at Python packages, processor, GPU, data, Ray and the store."""
    yield from _packages()
    node = provenance.node()
    memory = node.mem_bytes / 2**30
    yield Finding(
        "ok     ", "processor", f"{node.cpu_cores} cores, {node.cpu_model}, {memory:.0f} GiB"
    )
    yield from _gpus(node.gpus)
    for name in (entry["name"] for entry in data.catalogue()):
        place = data.where(name)
        if place:
            yield Finding("ok     ", f"data {name}", str(place))
        else:
            yield Finding(
                "lacks  ",
                f"data {name}",
                "not on this machine",
                f"runs that need it fetch it; to have it before, type: suite data fetch {name}",
            )
    yield from (
        Finding("lacks  " if meaning else "ok     ", what, found, meaning)
        for what, found, meaning in launch.faults_here()
    )
    yield _store(store)


def _packages() -> Iterator[Finding]:
    for name in (*provenance.PACKAGES, "matplotlib", "pandas"):
        try:
            yield Finding("ok     ", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            needed = name not in ("triton", "ray")
            yield Finding(
                "missing" if needed else "lacks  ",
                name,
                "not installed",
                "install the suite again: pip install -c constraints.txt -e ."
                if needed
                else f"variants and commands that use {name} cannot run",
            )


def _gpus(gpus: list[provenance.GpuInfo]) -> Iterator[Finding]:
    for gpu in gpus:
        yield Finding("ok     ", "GPU", f"{gpu.name}, {gpu.mem_bytes / 2**30:.0f} GiB")
    if gpus:
        read, how = energy.gpu_joules("cuda:0")
        lacking = "" if read else "records of runs say so, and hold no joules"
        yield Finding("lacks  " if lacking else "ok     ", "energy", how, lacking)
    else:
        driver = shutil.which("nvidia-smi")
        meaning = "smoke and laptop run on the processor; the paper runs of large tasks take days"
        if driver:
            meaning += "; there is an NVIDIA driver, so a CUDA build of torch would find the GPU"
        yield Finding("lacks  ", "GPU", "none that torch can use", meaning)


def _store(uri: str) -> Finding:
    try:
        Store(uri).check_writable()
    except StoreError as error:
        return Finding("missing", "store", str(error), "give another with --store or SUITE_STORE")
    free = ""
    if Store(uri).local:
        free = f", {shutil.disk_usage(Path(uri).absolute()).free / 2**30:.0f} GiB free"
    return Finding("ok     ", "store", f"{uri} is writable{free}")
