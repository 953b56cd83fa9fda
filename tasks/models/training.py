"""How nets for images are trained fast: precision, compilation, and schedules of rates."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from suite.task import unknown

PRECISIONS = ("float32", "bfloat16")
Call = Callable[[torch.Tensor], torch.Tensor]


def in_precision(model: nn.Module, precision: str) -> Call:
    """The model's logits in float32; with ``bfloat16`` its products run under autocast.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model(x).float()

    return call


def compiled(call: Call, model: nn.Module, *batches: torch.Tensor) -> Call:
    """The call as one graph, forwards and backwards, compiled for these shapes.

    Compilation, and on a GPU the capture of CUDA graphs, happens here, so that no update waits for
    it. The model's parameters and buffers are as before when it returns.

    Args:
        call: a function of the model.
        model: in training mode afterwards.
        batches: an input of each shape that will come.
    """
    # What earlier runs of this process have compiled counts against the limit of recompilations.
    torch.compiler.reset()
    graph = torch.compile(call, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def step(x: torch.Tensor) -> torch.Tensor:
        # The last update's gradients may be overwritten now.
        torch.compiler.cudagraph_mark_step_begin()
        return graph(x)

    before = copy.deepcopy(model.state_dict())
    model.train()
    for x in batches:
        # The first call compiles, the second is recorded, the third is replayed.
        for _ in range(3):
            step(x).sum().backward()
            model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return step


class Scheduled:
    """Optimisers and the schedules of their rates, to be stepped as ``fit`` steps an optimiser.

    Args:
        optimizers: over different parameters.
        factors: for each the function, or a list of one for each of its groups, from the updates
            done to what the group's rate is multiplied by.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        factors: Sequence[Any],
    ) -> None:
        self.optimizers = optimizers
        self.schedules = [LambdaLR(o, f) for o, f in zip(optimizers, factors, strict=True)]

    @property
    def updates(self) -> int:
        """How many were done."""
        return int(self.schedules[0].last_epoch)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedules": [s.state_dict() for s in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        for schedule, own in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(own)
