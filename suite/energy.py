"""What a run uses up: joules where a GPU counts them, money where the user names a price."""

import functools
from collections.abc import Callable
from typing import Any

COUNTER = "NVML total-energy counter of the GPU's board; the processor is not in it"


def gpu_joules(device: str, share: float = 1.0) -> tuple[Callable[[], float] | None, str]:
    """What reads the joules that a device has used since some moment in the past.

    Args:
        device: a torch device.
        share: how much of the GPU the run has; of a GPU that runs share nobody can tell them apart.

    Returns:
        The reader and how it measures, or None and why there is none.
    """
    if not device.startswith("cuda"):
        return None, f"not measured on {device}: no counter that every processor has"
    if share < 1:
        return None, f"not measured: the run had {share:g} of a GPU, whose counter is for all of it"
    try:
        import pynvml
    except ImportError:
        return None, "not measured: the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByUUID(_uuid(device))
        read = functools.partial(_joules, pynvml, board)
        read()
    except pynvml.NVMLError as error:
        return None, f"not measured: NVML says {error}"
    return read, COUNTER


def _uuid(device: str) -> bytes:
    """As NVML names a GPU, whatever CUDA_VISIBLE_DEVICES makes of its number."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()


def _joules(nvml: Any, board: Any) -> float:
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(board)) / 1e3


def usd(seconds: float, price_per_hour: float | None) -> float | None:
    """What a machine of this price costs for so long; None without a price."""
    return None if price_per_hour is None else seconds * price_per_hour / 3600


def price_source(price_per_hour: float | None) -> str | None:
    """Where a cost comes from, as the record says it."""
    return None if price_per_hour is None else f"{price_per_hour:g} USD an hour, given with the run"
