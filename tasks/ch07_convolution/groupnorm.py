"""Group normalisation: what a small batch costs a net with it, and one with batch normalisation.

Section "Group Normalization for Memory Constrained Learning Tasks". Batch normalisation takes mean
and variance of a channel over the batch, so a batch that is small, because memory is, makes them
noisy, and in training other than at test time. `groupnorm` (Wu and He, 2018) takes them over some
channels of one image, `layernorm` over all of them; neither looks at the batch. Every variant
trains the same net from the same start with batches of 32, 16, 8, 4 and 2, for as many epochs each,
the rate in proportion to the batch.

`error_at_B` is the test error with batches of B, the median of the last three epochs;
`worst_error` is the largest of them, `smallest_error` that with the smallest batch, and `drop` what
is lost from the largest to it.
The paper's ResNet-50 on ImageNet has errors of 23.6, 23.7, 24.8, 27.3 and 34.7 % with batch
normalisation and of 24.1, 24.2, 24.0, 24.2 and 24.1 % with group normalisation; the book repeats
the argument and has no number. For CIFAR-10 the reproduction at ppwwyyxx/GroupNorm-reproduce has
7.3 % with group normalisation, 1.3 points more than with batch normalisation.

The net is the residual one of `resnet` with 20 layers and 8 groups, trained for 60 epochs a batch
size, with a rate that falls in a cosine. Offline profiles have 8 layers, scikit-learn's 8x8 digits,
and three batch sizes.

Shapes: B batch, C channels, H and W height and width.
"""

import copy
import functools
import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import BelowOne, Count, NonNegative, Positive
from suite.fit import fit
from suite.space import Choice, Range
from suite.task import Claim, Target, Task
from tasks.models.augmentation import mirrored, shifted
from tasks.models.convolution import depth_blocks, residual_net
from tasks.models.training import Scheduled, compiled, in_precision

# Wu and He (2018), table 2: error in per cent with batches of 32, 16, 8, 4 and 2.
PAPER = {"batch": (23.6, 23.7, 24.8, 27.3, 34.7), "group": (24.1, 24.2, 24.0, 24.2, 24.1)}


@dataclass(frozen=True)
class Config:
    data: str = "cifar10"
    images: Count = 50_000
    norm: Literal["batch", "group", "layer", "instance", "none"] = "batch"
    groups: Count = 8
    depth: Count = 20
    width: Count = 16
    augment: bool = True
    batch_sizes: str = "32 16 8 4 2"
    lr: Positive = 0.025
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 1e-4
    epochs: Count = 60
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = True

    def __post_init__(self) -> None:
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"depth={self.depth}: a residual net has 6 n + 2 layers, such as 20")


def factor(step: int, total: int) -> float:
    """What the rate is multiplied by: a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * step / total)) / 2


def sizes_of(text: str) -> list[int]:
    """Batch sizes, the largest first; ValueError where that is not what is given."""
    sizes = [int(part) for part in text.split() if part.isdigit()]
    falling = sizes == sorted(set(sizes), reverse=True)
    if not sizes or len(sizes) != len(text.split()) or min(sizes) < 2 or not falling:
        raise ValueError(f"batch_sizes fall to 2 at the least, as '32 8 2' does; got {text!r}")
    return sizes


def updates(model: nn.Module, cfg: Config, size: int, per_epoch: int) -> Scheduled:
    """SGD whose rate is in proportion to the batch, and falls in a cosine."""
    total = cfg.epochs * per_epoch
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=cfg.lr * size / 32,
        momentum=cfg.momentum,
        weight_decay=cfg.weight_decay,
    )
    return Scheduled([sgd], [lambda step: factor(step, total)])


def summary(history: list[list[float]], sizes: list[int]) -> dict[str, float]:
    """The median of the last three errors at each size seen; and the drop, once the last is."""
    errors = {
        size: statistics.median([error for seen, error in history if seen == size][-3:])
        for size in sizes
        if any(seen == size for seen, _ in history)
    }
    found = {f"error_at_{size}": error for size, error in errors.items()}
    found["worst_error"] = max(errors.values())
    if sizes[-1] in errors:
        found["smallest_error"] = errors[sizes[-1]]
        found["drop"] = errors[sizes[-1]] - errors[sizes[0]]
    return found


def draw_errors(errors: dict[int, float], norm: str) -> Any:
    """Test error against the batch size, and what the paper has for ImageNet."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(errors.keys(), [100 * e for e in errors.values()], "o-", color="#0072B2")
    left.set(title=f"this net, {norm} normalisation", ylim=(0, None))
    styles = {"batch": ("s--", "#D55E00"), "group": ("o-", "#0072B2")}
    for kind, (style, colour) in styles.items():
        right.plot((32, 16, 8, 4, 2), PAPER[kind], style, color=colour, label=f"{kind} norm")
    right.set(title="ResNet-50 on ImageNet, Wu and He (2018)")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks((32, 16, 8, 4, 2), labels=("32", "16", "8", "4", "2"))
        axes.invert_xaxis()
        axes.set(xlabel="images in a batch", ylabel="test error in per cent")
        axes.title.set_size(10)
        axes.grid(alpha=0.3)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    x, y = x[: cfg.images], y[: cfg.images]
    std, mean = torch.std_mean(x[:10_000].float(), (0, 2, 3), keepdim=True)
    options = {"n_in": x.shape[1], "norm": cfg.norm, "groups": cfg.groups}
    model = residual_net(depth_blocks(cfg.depth), cfg.width, **options)
    model.to(ctx.device, memory_format=torch.channels_last)
    first = copy.deepcopy(model.state_dict())
    sizes = sizes_of(cfg.batch_sizes)
    per_epoch = {size: -(-len(x) // size) for size in sizes}
    optimizers = {f"sgd_{size}": updates(model, cfg, size, per_epoch[size]) for size in sizes}
    # Batch size and test error of every epoch.
    history: list[list[float]] = []
    start = ctx.keep(model=model, history=history, **optimizers)
    call = fast = in_precision(model, cfg.precision)

    def standardised(x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = (x_BCHW.float() - mean) / std
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    if cfg.compile:
        shapes = dict.fromkeys(n for size in sizes for n in (size, len(x) % size or size))
        fast = compiled(call, model, *(standardised(x[:n]) for n in shapes))

    def loss(model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        if cfg.augment:
            x_BCHW = shifted(x_BCHW, 4)
            x_BCHW = mirrored(x_BCHW, torch.rand(len(x_BCHW), device=x_BCHW.device) < 0.5)
        return F.cross_entropy(fast(standardised(x_BCHW)), y_B)

    def evaluate(model: nn.Module, size: int) -> dict[str, float]:
        logits_BK = torch.cat([call(standardised(b)) for b in x_test.split(1000)])
        history.append([size, float((logits_BK.argmax(1) != y_test).float().mean())])
        step = sum(per_epoch[int(seen)] for seen, _ in history)
        return {"step": step, "test_error": history[-1][1]} | summary(history, sizes)

    yield
    for i, size in enumerate(sizes):
        done = start - i * cfg.epochs
        if done >= cfg.epochs:
            continue
        if done <= 0:
            model.load_state_dict(first)
        yield from fit(
            model,
            (x, y),
            loss,
            functools.partial(evaluate, size=size),
            optimizers[f"sgd_{size}"],
            epochs=cfg.epochs,
            batch_size=size,
            start=max(0, done),
        )
    errors = {size: summary(history, sizes)[f"error_at_{size}"] for size in sizes}
    ctx.figure("errors", lambda: draw_errors(errors, cfg.norm))


SMALL = {
    "data": "digits",
    "augment": False,
    "depth": 8,
    "precision": "float32",
    "compile": False,
}
TABLE = "Wu and He (2018), table 2: ResNet-50 on ImageNet with 32 and with 2 images a batch"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Group Normalization for Memory Constrained Learning Tasks",),
    profiles={
        "smoke": {**SMALL, "images": 320, "width": 8, "batch_sizes": "32 4", "epochs": 3},
        "laptop": {**SMALL, "images": 720, "batch_sizes": "32 8 2", "epochs": 6},
        "paper": {},
    },
    variants={
        "groupnorm": {"norm": "group"},
        "batchnorm": {},
        "layernorm": {"norm": "layer"},
    },
    targets={
        "smoke": {
            "groupnorm": Target(
                "smallest_error",
                0.5,
                "min",
                "calibrated: 3 seeds from 1000, at most 0.356; after one epoch up to 0.592",
            )
        },
        "laptop": {
            "groupnorm": Target(
                "worst_error",
                0.042,
                "min",
                "calibrated: 5 seeds from 1000, at most 0.034; after half of the epochs at least "
                "0.052",
            )
        },
        "paper": {
            "groupnorm": Target(
                "smallest_error",
                0.075,
                "min",
                "ppwwyyxx/GroupNorm-reproduce, README: 7.3 % on CIFAR-10 with a larger batch; at 2 "
                "images this project's contract",
            )
        },
    },
    claims=(
        Claim(
            "with group normalisation the smallest batch costs at most one point",
            "drop",
            left="groupnorm",
            right=0.01,
            mode="min",
            source=f"{TABLE}: 24.1 and 24.1 %",
        ),
        Claim(
            "the smallest batch costs less with group than with batch normalisation",
            "drop",
            left="groupnorm",
            right="batchnorm",
            mode="min",
            source=f"{TABLE}: 0.0 against 11.1 points",
            note="On the digits, where the smallest batch also makes the most updates an epoch, "
            "group normalisation gains 0 to 1.4 points and batch normalisation loses 0.3 to 1.1.",
        ),
        Claim(
            "with the smallest batch group normalisation has the lower error",
            "smallest_error",
            left="groupnorm",
            right="batchnorm",
            mode="min",
            source=f"{TABLE}: 24.1 against 34.7 %",
        ),
        Claim(
            "with 32 images batch normalisation has the lower error, by a little",
            "error_at_32",
            left="batchnorm",
            right="groupnorm",
            mode="min",
            source=f"{TABLE}: 23.6 against 24.1 %",
            note="On the digits too little to show: ahead with 3 of 5 seeds from 1000, behind with "
            "one.",
        ),
    ),
    sweep={"lr": Range(1e-3, 0.3, log=True), "groups": Choice((1, 2, 4, 8, 16))},
    gpu_first=("groupnorm", "batchnorm"),
)
