"""How nets with a memory are trained on sequences of bits or words: the loop, and what it needs.

Shapes: B batch, T time, X input, Y output, L steps that are answered.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from kernels import dnc, lstm
from tasks.models.dnc import DNC
from tasks.models.dnc_masked import MaskedDNC

Call = Callable[[torch.Tensor], torch.Tensor]


class LSTM(nn.Module):
    """x_BTX to logits_BTY, with nothing to remember by but its own units."""

    def __init__(
        self, n_inputs: int, n_outputs: int, hidden: int, layers: int = 1, impl: str = "torch"
    ) -> None:
        super().__init__()
        self.lstm = lstm.LSTM(n_inputs, hidden, layers, batch_first=True, impl=impl)
        self.output = nn.Linear(hidden, n_outputs)

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.output(self.lstm(x_BTX)[0])


def replayed(model: nn.Module, device: torch.device) -> Call:
    """The model; on a GPU as CUDA graphs, one captured for each shape of input that comes.

    But for an LSTM, whose steps are one operator of the vendor's already, and for the reference of
    a DNC, whose gradients of products along an axis wait for a count of zeros; a graph cannot.
    """
    uncaptured = isinstance(model, DNC | MaskedDNC) and model.impl == "reference"
    if device.type != "cuda" or isinstance(model, LSTM) or uncaptured:
        return model
    graphs: dict[torch.Size, dnc.Captured] = {}

    def call(x: torch.Tensor) -> torch.Tensor:
        if x.shape not in graphs:
            graphs[x.shape] = dnc.Captured(model, x)
        return graphs[x.shape](x)

    return call


def learning_rate(lr: float, done: float) -> float:
    """Constant for the first half of the training, then down to zero in a straight line."""
    return lr * min(1.0, 2 * (1 - done))


def trained(
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    *,
    lr: float,
    clip: float,
    iterations: int,
    eval_every: int,
    start: int,
) -> Iterator[int]:
    """Update after update; yield how many there were, at the beginning and at every evaluation.

    Args:
        parameters: whose gradients are clipped, all together.
        optimizer: over them.
        loss: draws a batch and gives its mean loss.
        lr: of the first half; see ``learning_rate``.
        clip: the largest norm of a gradient.
        iterations: updates in all.
        eval_every: updates between two evaluations.
        start: evaluations already done, as ``ctx.keep`` returns it.
    """
    for row in range(start, iterations // eval_every + 1):
        step = row * eval_every
        for done in range(step - eval_every, step) if row else ():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, done / iterations)
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
        yield step


def wrong_bits(logits_BLY: torch.Tensor, y_BLY: torch.Tensor) -> float:
    """Wrong bits a sequence, on average."""
    return float(((logits_BLY > 0) != (y_BLY > 0.5)).float().sum((1, 2)).mean())


def strips(figure: Any, pictures: dict[str, torch.Tensor], marks: dict[float, str]) -> Any:
    """One picture under the other over the time steps, values from 0 to 1; returns their axes.

    Args:
        figure: matplotlib's figure or part of one.
        pictures: label -> values (rows, T); NaN stays white.
        marks: time -> colour of a dotted line.
    """
    rows = figure.subplots(len(pictures), 1, sharex=True, height_ratios=_heights(pictures))
    for ax, (name, image) in zip(rows, pictures.items(), strict=True):
        shade = {"cmap": "cividis", "vmin": 0, "vmax": 1, "origin": "lower"}
        shown = ax.imshow(image.cpu().numpy(), aspect="auto", **shade)
        if len(image) == 1:
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
            ax.set_yticks([])
        else:
            ax.set_ylabel(name)
            ax.yaxis.get_major_locator().set_params(integer=True)
        for at, colour in marks.items():
            ax.axvline(at, color=colour, linewidth=0.9, linestyle=":")
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(shown, ax=list(rows), label="bit, its probability, or weight", aspect=40)
    return rows


def _heights(pictures: dict[str, torch.Tensor]) -> list[float]:
    """Of single rows not much less than of bits, and of those not much less than of slots."""
    return [4 + len(image) for image in pictures.values()]
