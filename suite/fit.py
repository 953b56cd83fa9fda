"""The supervised loop, once. A task that needs another loop writes its own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Batch = tuple[torch.Tensor, ...]


def batches(tensors: Batch, size: int, *, shuffle: bool = True) -> Iterator[Batch]:
    """Slices of ``size`` rows of every tensor, in one random order (the global generator's)."""
    n = len(tensors[0])
    order = torch.randperm(n) if shuffle else torch.arange(n)
    for index in order.to(tensors[0].device).split(size):
        yield tuple(t[index] for t in tensors)


def fit(
    model: nn.Module,
    train: Batch,
    loss: Callable[..., torch.Tensor],
    evaluate: Callable[[nn.Module], dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    start: int = 0,
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Minimise ``loss(model, *batch)``; yield the evaluation after each epoch.

    Args:
        model: put in training mode before each epoch, in evaluation mode before ``evaluate``.
        train: tensors of equal length, on the model's device.
        loss: gives the batch's mean loss, a scalar.
        evaluate: gives the metrics of the model.
        optimizer: over the model's parameters.
        epochs: passes over ``train``.
        batch_size: rows a step; the last batch of an epoch may be smaller.
        start: epochs already done, as ``ctx.keep`` returns it.
    """
    for epoch in range(start + 1, epochs + 1):
        model.train()
        total = torch.zeros((), device=train[0].device)
        for batch in batches(train, batch_size):
            value = loss(model, *batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.detach() * len(batch[0])

        def metrics(epoch: int = epoch, total: torch.Tensor = total) -> dict[str, Any]:
            model.eval()
            n = len(train[0])
            steps = epoch * -(-n // batch_size)
            mean = float(total) / n
            return {"step": steps, "epoch": epoch, "samples": epoch * n, "train_loss": mean} | (
                evaluate(model)
            )

        yield metrics
