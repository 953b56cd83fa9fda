"""What a task registers is what is saved and restored, together with every random state.

A snapshot holds tensors, numbers, strings and containers of them only, so it is read back
with ``weights_only=True`` and can carry no code.
"""

import hashlib
import io
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def state_of(thing: Any) -> Any:
    """A copy of what ``thing`` must carry over a restart.

    Raises:
        TypeError: a kind of object that cannot be kept.
    """
    if isinstance(thing, torch.Tensor):
        return thing.detach().clone()
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if hasattr(thing, "state_dict"):
        return _copy(thing.state_dict())
    if isinstance(thing, dict | list):
        return _copy(thing)
    raise TypeError(
        f"cannot keep a {type(thing).__name__}: keep tensors, generators, dicts, lists, "
        "or objects with state_dict() and load_state_dict()"
    )


def load_into(thing: Any, state: Any) -> None:
    """Put ``state`` back into ``thing``, in place."""
    if isinstance(thing, torch.Tensor):
        with torch.no_grad():
            thing.copy_(state)
    elif isinstance(thing, torch.Generator):
        thing.set_state(state)
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = state
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(state)
    elif isinstance(thing, dict):
        thing.clear()
        thing.update(state)
    else:
        thing[:] = state


def retuned(state: Any, thing: Any) -> Any:
    """The state of an optimiser or its schedule, with the options that ``thing`` was made with.

    For a run that goes on under another config: what was learnt stays, the new learning rate
    holds. What a schedule has made of the old rate, it has made of the new one.
    """
    if hasattr(thing, "param_groups"):
        pairs = zip(state["param_groups"], thing.param_groups, strict=True)
        return {**state, "param_groups": [_retuned_group(old, new) for old, new in pairs]}
    if hasattr(thing, "base_lrs") and "base_lrs" in state:
        return {**state, "base_lrs": list(thing.base_lrs)}
    return state


def _retuned_group(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    group = {**old, **{k: v for k, v in new.items() if k != "params"}}
    if old.get("initial_lr") and "initial_lr" in new:
        group["lr"] = old["lr"] * (new["initial_lr"] / old["initial_lr"])
    return group


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(v) for v in value)
    return value


def random_state() -> dict[str, Any]:
    """The state of every global random generator."""
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every global random generator back to a state from ``random_state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def pack(snapshot: dict[str, Any]) -> bytes:
    """A snapshot as bytes."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """A snapshot from bytes, on the CPU: what loads it moves it where it belongs."""
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def digest(kept: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """SHA-256 over the parameters and buffers kept, and the number of trainable parameters."""
    modules = {k: v for k, v in kept.items() if isinstance(v, nn.Module)}
    if not modules:
        return None, None
    sha = hashlib.sha256()
    for name in sorted(modules):
        for key, tensor in sorted(modules[name].state_dict().items()):
            value = tensor.detach().cpu().contiguous()
            sha.update(f"{name}.{key}{tuple(value.shape)}{value.dtype}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    count = sum(p.numel() for m in modules.values() for p in m.parameters() if p.requires_grad)
    return sha.hexdigest(), count
