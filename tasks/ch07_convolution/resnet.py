"""Residual nets: plain against residual at 8, 20 and 56 layers, and the shape of a ResNet-34.

Sections "Residual Learning and Skip Connections for Very Deep Networks" and "Building a Residual
Network with Superhuman Vision". The nets are those of He et al. (2016) for CIFAR-10: a 3x3
convolution, three stages of n blocks of two 3x3 convolutions with batch normalisation, 16, 32 and
64 channels, mean over the positions, one linear layer: 6 n + 2 layers. `residual8`, `residual20`
and `residual56` add what a block gets to what it computes; where the channels double, the shortcut
takes every other pixel and fills up with zeros. `plain8`, `plain20` and `plain56` do not add, and
are the same nets otherwise, parameter by parameter.

The paper: SGD at 0.1 with momentum 0.9 and weight decay 1e-4, batches of 128, 64,000 updates (164
epochs), rates divided by 10 after a half and three quarters of them; crops of the image padded by 4
zeros, mirrored. Test error of ResNet-20, -32, -44, -56, -110: 8.75, 7.51, 7.17, 6.97, 6.43 %; plain
nets get worse with depth, in training as well. Departures: all 50,000 images instead of 45,000 and
a validation set. The paper starts ResNet-110 at 0.01, and has no warm-up for these.

`resnet34` is not trained. It is built with ImageNet's 1,000 classes, and a 224x224 image's way
through it is measured: 56x56 after the stem, and 56, 28, 14 and 7 after the stages. `resnet34_book`
is the listing of the 2nd edition, whose stages all keep stride 1: it has the same 21.8 million
parameters, but nothing gets smaller after the stem, so it multiplies 18 times as much.

Offline profiles use scikit-learn's 8x8 digits, as they are. On a CPU the paper profile takes hours;
`--profile paper --set epochs=10 --set compile=false --set precision=float32` is a shorter schedule
on CIFAR-10, which its record names.

Shapes: B batch, C channels, K classes, H and W height and width.
"""

import copy
import statistics
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from suite.fields import BelowOne, Count, NonNegative, Positive
from suite.fit import fit
from suite.space import Choice, Range
from suite.task import Claim, Target, Task
from tasks.models.augmentation import mirrored, shifted
from tasks.models.convolution import depth_blocks, residual_net
from tasks.models.training import Scheduled, compiled, in_precision

SIZES, MILLIONS = (56, 28, 14, 7), 21.8


@dataclass(frozen=True)
class Config:
    data: str = "cifar10"
    depth: Count = 20
    shortcut: Literal["pad", "project", "none"] = "pad"
    downsample: bool = True
    width: Count = 16
    augment: bool = True
    lr: Positive = 0.1
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 1e-4
    batch_size: Count = 128
    epochs: Count = 164
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = True
    impl: str = "torch"

    def __post_init__(self) -> None:
        if self.depth != 34 and (self.depth < 8 or self.depth % 6 != 2):
            raise ValueError(f"depth={self.depth}: 34, or 6 n + 2 layers such as 20")


def factor(step: int, total: int) -> float:
    """What the rate is multiplied by: 1, then 0.1 after a half, 0.01 after three quarters."""
    return 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))


def stage_sizes(model: nn.Sequential, x_BCHW: torch.Tensor) -> list[int]:
    """Height after the stem and after each stage."""
    sizes = []
    for name, part in model.named_children():
        x_BCHW = part(x_BCHW)
        if name != "head":
            sizes.append(x_BCHW.shape[2])
    return sizes


def shape_of_resnet34(downsample: bool, impl: str) -> dict[str, float]:
    """Parameters, multiplications and sizes of a net that exists in outline only."""
    strides = None if downsample else (1, 1, 1, 1)
    options: dict[str, Any] = {"shortcut": "project", "large_images": True, "impl": impl}
    with torch.device("meta"):
        model = residual_net((3, 4, 6, 3), 64, n_classes=1000, strides=strides, **options)
        counter = FlopCounterMode(display=False)
        with counter:
            sizes = stage_sizes(model, torch.empty(1, 3, 224, 224))
    n_params = sum(p.numel() for p in model.parameters())
    wrong = sum(a != b for a, b in zip(sizes[1:], SIZES, strict=True))
    return {
        "million_params": n_params / 1e6,
        "giga_multiplications": counter.get_total_flops() / 2e9,
        "wrong_sizes": wrong,
        "stem_size": sizes[0],
        **{f"size_{i}": size for i, size in enumerate(sizes[1:], 1)},
    }


def gradient_norms(model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor) -> list[float]:
    """Of the filters of each convolution, from the first to the last, by the batch's statistics."""
    twin = copy.deepcopy(model).train()
    F.cross_entropy(twin(x_BCHW), y_B).backward()
    filters = [m.weight for m in twin.modules() if isinstance(m, nn.Conv2d)]
    return [float(torch.linalg.vector_norm(w.grad)) for w in filters]


def draw_training(history: list[list[float]], norms: Any, title: str) -> Any:
    """Training loss and test error epoch by epoch; gradients layer by layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    train, test = zip(*history, strict=True)
    epochs = range(1, len(history) + 1)
    left.semilogy(epochs, train, "o-", ms=3, color="#0072B2", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss in nats")
    twin = left.twinx()
    twin.plot(epochs, test, "s--", ms=3, color="#D55E00", label="test error")
    twin.set(ylabel="test error", ylim=(0, None))
    lines = [*left.get_lines(), *twin.get_lines()]
    left.legend(lines, [line.get_label() for line in lines], fontsize=8, loc="upper right")
    left.grid(alpha=0.3)
    for (name, values), colour in zip(norms.items(), ("#009E73", "#CC79A7"), strict=True):
        right.semilogy(range(1, len(values) + 1), values, ".-", color=colour, label=name)
    right.set(xlabel="convolution, from input to output", ylabel="norm of the filters' gradient")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def draw_outline(sizes: list[float], title: str) -> Any:
    """How large the feature maps are after each part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    at = range(len(sizes))
    axes.bar(at, sizes, color="#56B4E9", label="this net")
    axes.plot(at, (56, *SIZES), "o", color="#D55E00", label="He et al. (2016), table 1")
    axes.set_xticks(at, ["stem", *(f"stage {i}" for i in range(1, len(sizes)))])
    axes.set(ylabel="height and width of the maps", title=title)
    axes.title.set_size(10)
    axes.set_ylim(0, 75)
    axes.legend(fontsize=8, loc="upper right", ncols=2)
    return figure


def outline(cfg: Config, ctx: Any) -> Any:
    ctx.keep()
    yield
    found = shape_of_resnet34(cfg.downsample, cfg.impl)
    yield {"step": 1} | found
    sizes = [found["stem_size"], *(found[f"size_{i}"] for i in range(1, 5))]
    strides = "stages of stride 1, 2, 2, 2" if cfg.downsample else "all stages of stride 1"
    cost = f"{found['million_params']:.1f} M parameters"
    cost += f", {found['giga_multiplications']:.1f} G multiplications"
    ctx.figure("outline", lambda: draw_outline(sizes, f"ResNet-34, {strides}: {cost}"))


def run(cfg: Config, ctx: Any) -> Any:
    if cfg.depth == 34:
        yield from outline(cfg, ctx)
        return
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    std, mean = torch.std_mean(x[:10_000].float(), (0, 2, 3), keepdim=True)
    options = {"n_in": x.shape[1], "shortcut": cfg.shortcut, "impl": cfg.impl}
    model = residual_net(depth_blocks(cfg.depth), cfg.width, **options)
    model.to(ctx.device, memory_format=torch.channels_last)
    total = cfg.epochs * -(-len(x) // cfg.batch_size)
    rates = {"lr": cfg.lr, "momentum": cfg.momentum, "weight_decay": cfg.weight_decay}
    sgd = torch.optim.SGD(model.parameters(), **rates)
    optimizer = Scheduled([sgd], [lambda step: factor(step, total)])
    history: list[list[float]] = []
    norms: dict[str, list[float]] = {}
    start = ctx.keep(model=model, optimizer=optimizer, history=history, norms=norms)
    call = fast = in_precision(model, cfg.precision)

    def standardised(x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = (x_BCHW.float() - mean) / std
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    if cfg.compile:
        sizes = dict.fromkeys((cfg.batch_size, len(x) % cfg.batch_size or cfg.batch_size))
        fast = compiled(call, model, *(standardised(x[:n]) for n in sizes))

    def loss(model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        x_BCHW = standardised(x_BCHW)
        if cfg.augment:
            x_BCHW = shifted(x_BCHW, 4)
            x_BCHW = mirrored(x_BCHW, torch.rand(len(x_BCHW), device=x_BCHW.device) < 0.5)
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(fast(x_BCHW), y_B)

    def evaluate(model: nn.Module) -> dict[str, float]:
        def of(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
            logits_BK = torch.cat([call(standardised(b)) for b in images.split(1000)])
            wrong = float((logits_BK.argmax(1) != labels).float().mean())
            return wrong, float(F.cross_entropy(logits_BK, labels))

        (train_error, train_loss), (test_error, test_loss) = of(x, y), of(x_test, y_test)
        history.append([train_loss, test_error])
        return {
            "test_error": test_error,
            "median_error": statistics.median([error for _, error in history[-3:]]),
            "test_loss": test_loss,
            "train_error": train_error,
            "fitted_loss": train_loss,
            "million_params": sum(p.numel() for p in model.parameters()) / 1e6,
        }

    if not start:
        norms["before training"] = gradient_norms(model, standardised(x[:256]), y[:256])
    yield
    yield from fit(
        model,
        (x, y),
        loss,
        evaluate,
        optimizer,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        start=start,
    )
    norms["after training"] = gradient_norms(model, standardised(x[:256]), y[:256])
    kind = "plain" if cfg.shortcut == "none" else "residual"
    title = f"{kind} net of {cfg.depth} layers on {cfg.data}"
    ctx.figure("training", lambda: draw_training(history, norms, title))


OFFLINE = {
    "data": "digits",
    "augment": False,
    "batch_size": 64,
    "precision": "float32",
    "compile": False,
}
HE = "He et al. (2016), table 6: test errors of 8.75 % with 20 layers and 6.97 % with 56"
OUTLINES = dict.fromkeys(
    ("resnet34", "resnet34_book"),
    Target(
        "million_params",
        MILLIONS,
        "near",
        "the section's net: 21.8 million parameters, the listing's as torchvision's",
        tolerance=0.05,
    ),
)

TASK = Task(
    config=Config(),
    run=run,
    sections=(
        "Residual Learning and Skip Connections for Very Deep Networks",
        "Building a Residual Network with Superhuman Vision",
    ),
    profiles={
        "smoke": {**OFFLINE, "width": 4, "epochs": 2},
        "laptop": {**OFFLINE, "width": 8, "epochs": 8},
        "paper": {},
    },
    variants={
        "residual20": {},
        "plain20": {"shortcut": "none"},
        "residual8": {"depth": 8},
        "plain8": {"depth": 8, "shortcut": "none"},
        "residual56": {"depth": 56},
        "plain56": {"depth": 56, "shortcut": "none"},
        "resnet34": {"depth": 34},
        "resnet34_book": {"depth": 34, "downsample": False},
    },
    targets={
        "smoke": {
            "residual20": Target(
                "median_error",
                0.6,
                "min",
                "two thirds of what guessing gets; 4 seeds from 1000, at most 0.432; after one "
                "epoch up to 0.703",
            ),
            **OUTLINES,
        },
        "laptop": {
            "residual20": Target(
                "median_error",
                0.03,
                "min",
                "calibrated: 5 seeds from 1000, worst 0.025; after half of the epochs at least "
                "0.047",
            ),
            **OUTLINES,
        },
        "paper": {
            "residual20": Target("test_error", 0.0875, "min", HE),
            "residual56": Target("test_error", 0.0697, "min", HE),
            **OUTLINES,
        },
    },
    claims=(
        Claim(
            "a residual net of 20 layers has a lower error than a plain one",
            "median_error",
            left="residual20",
            right="plain20",
            mode="min",
            source=HE,
        ),
        Claim(
            "a residual net of 56 layers has a lower error than a plain one, by 5 points",
            "median_error",
            left="residual56",
            right="plain56",
            mode="min",
            margin=0.05,
            source=f"{HE}; figure 6 has the plain net of 56 layers above 13 %",
        ),
        Claim(
            "plain nets get worse with depth: 56 layers have a higher error than 20",
            "median_error",
            left="plain20",
            right="plain56",
            mode="min",
            source=f"{HE}; figure 6, left",
        ),
        Claim(
            "plain nets get worse with depth on what they were trained on, so it is no overfitting",
            "fitted_loss",
            left="plain20",
            right="plain56",
            mode="min",
            source="He et al. (2016), figure 6, left: training error, dashed",
        ),
        Claim(
            "a residual net of 56 layers has a lower error than one of 20",
            "median_error",
            left="residual56",
            right="residual20",
            mode="min",
            source=HE,
            note="Not on the digits: 0.028 to 0.158 against 0.011 to 0.025 (5 seeds from 1000). 8 "
            "epochs are 184 updates, too few for the deeper net, and 20 layers are enough.",
        ),
        Claim(
            "the stages of a ResNet-34 have 56, 28, 14 and 7 rows",
            "wrong_sizes",
            left="resnet34",
            right=0,
            mode="min",
            source="He et al. (2016), table 1; the book's figure of the 34-layer net",
        ),
        Claim(
            "the listing multiplies ten times as often, for its stages do not get smaller",
            "giga_multiplications",
            left="resnet34_book",
            right=36.6,
            mode="max",
            source="the 2nd edition's notebook, chapter 7: the stages' first blocks have stride 1; "
            "36.6 G is ten times what the paper's net multiplies",
        ),
    ),
    impls=("torch", "reference", "compile", "triton"),
    sweep={"lr": Range(1e-3, 1.0, log=True), "depth": Choice((8, 14, 20, 32, 44, 56))},
    gpu_first=("residual20",),
)
