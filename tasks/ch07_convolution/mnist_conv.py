"""MNIST with convolutional networks: the listing as printed, repaired, and brought to 99.3 %.

Sections "Closing the Loop on MNIST with Convolutional Networks" and "Full Architectural Description
of Convolution Networks". The listing's net is 5x5 convolutions with 32 and 64 filters, each with a
ReLU and 2x2 max pooling, then 1,024 hidden units of which half are dropped, and ten logits.

- `book` is the listing: no nonlinearity after the hidden units, SGD at a rate of 1e-4, 40 epochs in
  batches of 64. What it prints as "Accuracy" is the number of correct digits divided by the number
  of batches, while it trains, with dropout: 55.62 in the last epoch, `printed_accuracy` here. The
  last batch has 32 digits, so these are 52,172 of 60,000, 86.95 %. It never looks at a test set.
- `fixed` has the ReLU that is missing and Adam at the same rate, as in the 1st edition.
- `recipe` is PyTorch's own example (pytorch/examples, mnist): two 3x3 convolutions, one pooling,
  128 hidden units, Adadelta at a rate that falls by 0.7 an epoch, 14 epochs. The notebook of the
  section before has its net too.
- `modern` is three blocks of two 3x3 convolutions with batch normalisation, which pool right after
  the first one, on images rotated, scaled, shifted and bent at random, with smoothed labels and a
  learning rate that rises and falls once (Nesterov's momentum).
- `fast` is `modern` with one convolution a block, 5 epochs and gentler changes to the images: a
  test accuracy of 99.3 % for the least work.

Work is `log10_operations`: multiply-adds of convolutions and linear layers, three times those of a
forward pass, until the first of two evaluations in a row at `level`; all of them so far where that
has not been, so that a run on the right of the claim is never made to look worse than it is. Time
depends on the machine and is the record's. A rate that falls to zero is at its best at its end, so
schedules of that kind are evaluated four times an epoch, the others once.

Departures from the listing: images live on the device as one tensor instead of going through a
DataLoader, which takes nothing from the recipe but time; the test set is looked at. Offline
profiles use scikit-learn's 8x8 digits.

Shapes: B batch, C channels, K classes, H and W height and width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from suite.fields import BelowOne, Count, NonNegative, Positive, Share
from suite.space import Range
from suite.task import Claim, Target, Task, unknown
from tasks.models.convolution import Convolution

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
LOOKS = {"constant": 1, "steps": 1, "cycle": 4}


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    net: Literal["listing", "recipe", "blocks"] = "listing"
    hidden_relu: bool = False
    convolutions: Count = 1
    width: Count = 32
    optimizer: Literal["sgd", "adam", "adadelta", "nesterov"] = "sgd"
    lr: Positive = 1e-4
    schedule: Literal["constant", "steps", "cycle"] = "constant"
    smoothing: BelowOne = 0.0
    distortion: NonNegative = 0.0
    batch_size: Annotated[int, Interval(ge=2)] = 64
    epochs: Count = 40
    share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    level: Share = 0.993
    impl: str = "torch"


def listing(n_channels: int, size: int, cfg: Config) -> list[nn.Module]:
    return [
        Convolution(n_channels, cfg.width, 5, bias=True, impl=cfg.impl),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Convolution(cfg.width, 2 * cfg.width, 5, bias=True, impl=cfg.impl),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * cfg.width * (size // 4) ** 2, 1024),
        nn.ReLU() if cfg.hidden_relu else nn.Identity(),
        nn.Dropout(0.5),
        nn.Linear(1024, 10),
    ]


def recipe(n_channels: int, size: int, cfg: Config) -> list[nn.Module]:
    return [
        Convolution(n_channels, cfg.width, 3, padding=0, bias=True, impl=cfg.impl),
        nn.ReLU(),
        Convolution(cfg.width, 2 * cfg.width, 3, padding=0, bias=True, impl=cfg.impl),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(2 * cfg.width * ((size - 4) // 2) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    ]


def blocks(n_channels: int, size: int, cfg: Config) -> list[nn.Module]:
    """Pooling comes before the normalisation, which then has a quarter of the positions."""
    layers: list[nn.Module] = []
    n_in = n_channels
    for n_out in (cfg.width, 2 * cfg.width, 4 * cfg.width):
        for i in range(cfg.convolutions):
            layers.append(Convolution(n_out if i else n_in, n_out, 3, impl=cfg.impl))
            layers += [nn.Identity() if i else nn.MaxPool2d(2), nn.BatchNorm2d(n_out), nn.ReLU()]
        n_in = n_out
    return [*layers, nn.Flatten(), nn.Linear(n_in * (size // 8) ** 2, 10)]


NETS = {"listing": listing, "recipe": recipe, "blocks": blocks}

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "nesterov": lambda parameters, lr: torch.optim.SGD(
        parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adam": torch.optim.Adam,
    "adadelta": torch.optim.Adadelta,
}


def network(n_channels: int, size: int, cfg: Config) -> nn.Sequential:
    """Images x_BCHW of size x size to logits_BK."""
    if cfg.net not in NETS:
        raise unknown("net", cfg.net, NETS)
    model = nn.Sequential(*NETS[cfg.net](n_channels, size, cfg))
    # A third less time on a CPU where most layers are convolutions and poolings.
    return model.to(memory_format=torch.channels_last) if cfg.net == "blocks" else model


def rate(schedule: str, epoch: float, epochs: int) -> float:
    """The learning rate after ``epoch`` of ``epochs``, as a share of the highest."""
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return 0.7 ** int(epoch)
    rise = 0.25 * epochs
    return epoch / rise if epoch < rise else (epochs - epoch) / (epochs - rise)


def distorted(x_BCHW: torch.Tensor, strength: float) -> torch.Tensor:
    """Images turned by up to 15 degrees, sheared and scaled by 15 %, moved by 10 % and bent."""
    if not strength:
        return x_BCHW
    B, _, H, W = x_BCHW.shape
    amount_B7 = strength * (2 * torch.rand(B, 7, device=x_BCHW.device) - 1)
    angle_B, shear_B = 0.26 * amount_B7[:, 0], 0.15 * amount_B7[:, 1]
    tall_B, wide_B = (1 + 0.15 * amount_B7[:, i] for i in (2, 3))
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    rows_B = torch.stack([wide_B * cos_B, shear_B - sin_B, 0.2 * amount_B7[:, 4]], 1)
    columns_B = torch.stack([sin_B, tall_B * cos_B, 0.2 * amount_B7[:, 5]], 1)
    theta_B23 = torch.stack([rows_B, columns_B], 1)
    grid_BHW2 = F.affine_grid(theta_B23, [B, 1, H, W], align_corners=False)
    bend_B2HW = F.interpolate(
        0.06 * strength * torch.randn(B, 2, 5, 5, device=x_BCHW.device),
        size=(H, W),
        mode="bilinear",
        align_corners=True,
    )
    return F.grid_sample(x_BCHW, grid_BHW2 + bend_B2HW.movedim(1, 3), align_corners=False)


def prepared(images_BCHW: torch.Tensor, net: str) -> torch.Tensor:
    """Bytes as numbers from 0 to 1 for the listing, standardised for the other nets."""
    x_BCHW = images_BCHW.float() / 255
    return x_BCHW if net == "listing" else (x_BCHW - MNIST_MEAN) / MNIST_STD


def multiply_adds(model: nn.Sequential, x_1CHW: torch.Tensor) -> int:
    """Of the convolutions and linear layers, for one image, forwards."""
    counts = []

    def count(layer: Any, _: Any, y: torch.Tensor) -> None:
        counts.append(y.numel() * layer.weight[0].numel())

    weighted = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in weighted]
    with torch.no_grad():
        model.eval()(x_1CHW)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def first_at(accuracies: list[float], level: float) -> int | None:
    """The first of two evaluations in a row at ``level`` or above."""
    met = [a >= level for a in accuracies]
    return next((i for i in range(len(met) - 1) if met[i] and met[i + 1]), None)


def answers(model: nn.Module, images_BCHW: torch.Tensor, net: str) -> torch.Tensor:
    return torch.cat([model(prepared(x, net)) for x in images_BCHW.split(1000)])


def draw_progress(history: list[Any], level: float, title: str) -> Any:
    """Test error and training loss against the updates."""
    from matplotlib.figure import Figure

    steps, _, accuracies, losses = zip(*history, strict=True)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(steps, [max(100 * (1 - a), 1e-2) for a in accuracies], "o-", ms=3, c="#0072B2")
    left.axhline(100 * (1 - level), color="#D55E00", ls="--", lw=1, label=f"accuracy {level:.1%}")
    left.set(xlabel="updates", ylabel="test error in %", title="test digits")
    left.legend(fontsize=8)
    right.semilogy(steps, losses, "o-", ms=3, color="#009E73")
    right.set(xlabel="updates", ylabel="mean cross-entropy in nats", title="training digits")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(title)
    return figure


def draw_mistakes(images_BCHW: torch.Tensor, logits_BK: torch.Tensor, y_B: torch.Tensor) -> Any:
    """The mistakes that the net is surest of."""
    from matplotlib.figure import Figure

    confidence_B, guess_B = logits_BK.softmax(1).max(1)
    wrong = (guess_B != y_B).nonzero()[:, 0]
    shown = wrong[confidence_B[wrong].argsort(descending=True)][:24]
    rows = max(1, -(-len(shown) // 8))
    figure = Figure(figsize=(9, 0.5 + 1.3 * rows), layout="constrained")
    grid = figure.subplots(rows, 8)
    for ax in grid.flat:
        ax.axis("off")
    for ax, i in zip(grid.flat, shown.tolist(), strict=False):
        ax.imshow(images_BCHW[i, 0].numpy(), cmap="gray_r")
        ax.set_title(f"{y_B[i]} as {guess_B[i]}, {confidence_B[i]:.0%}", size=8)
    wrongly = f"{len(wrong)} of {len(y_B):,} test digits are wrong"
    figure.suptitle(f"{wrongly}; the surest of them: true as predicted, confidence", size=10)
    return figure


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, rates: Any, cfg: Config
) -> tuple[float, int]:
    """Updates with these batches: the sum of the losses, and how many answers were right."""
    model.train()
    total, n_right = 0.0, 0
    for (images_BCHW, y_B), share in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * share
        # What comes in from outside an image is 0: its background, before it is standardised.
        x_BCHW = prepared(distorted(images_BCHW.float(), cfg.distortion), cfg.net)
        logits_BK = model(x_BCHW)
        loss = F.cross_entropy(logits_BK, y_B, label_smoothing=cfg.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(y_B)
        n_right += (logits_BK.argmax(1) == y_B).sum()
    return float(total), int(n_right)


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (images, y), (test_images, y_test) = source.train, source.test
    n, size, epochs = len(images), images.shape[2], max(1, round(cfg.share * cfg.epochs))
    model = network(images.shape[1], size, cfg).to(ctx.device)
    work = 3 * multiply_adds(model, prepared(images[:1], cfg.net))
    optimizer = OPTIMIZERS[cfg.optimizer](model.parameters(), cfg.lr)
    order, history = torch.zeros(n, dtype=torch.long), []
    start = ctx.keep(model=model, optimizer=optimizer, order=order, history=history)
    per_epoch, looks = -(-n // cfg.batch_size), LOOKS[cfg.schedule]
    per_look = -(-per_epoch // looks)

    def evaluate(epoch: int, batch: int, trained: int, loss: float, right: int) -> dict[str, float]:
        logits_BK = answers(model.eval(), test_images, cfg.net)
        accuracy = float((logits_BK.argmax(1) == y_test).double().mean())
        step, seen = epoch * per_epoch + batch, epoch * n + min(batch * cfg.batch_size, n)
        history.append([step, seen, accuracy, loss / trained])
        at = first_at([row[2] for row in history], cfg.level)
        return {
            "step": step,
            "test_accuracy": accuracy,
            "test_loss": float(F.cross_entropy(logits_BK, y_test)),
            "train_loss": loss / trained,
            "train_accuracy": right / trained,
            "printed_accuracy": right / -(-trained // cfg.batch_size),
            "log10_operations": math.log10(work * history[-1 if at is None else at][1]),
        }

    yield
    for row in range(start, epochs * looks):
        epoch, first = row // looks, row % looks * per_look
        if not first:
            order.copy_(torch.randperm(n))
        mine = order.to(images.device).split(cfg.batch_size)[first : first + per_look]
        last = first + len(mine)
        rates = [rate(cfg.schedule, epoch + b / per_epoch, epochs) for b in range(first, last)]
        trained = train(model, optimizer, ((images[i], y[i]) for i in mine), rates, cfg)
        given = (epoch, last, sum(map(len, mine)), *trained)
        yield lambda given=given: evaluate(*given)
    with torch.no_grad():
        logits_BK = answers(model.eval(), test_images, cfg.net).cpu()
    title = f"{cfg.net}, {cfg.optimizer} at {cfg.lr:g}, {epochs} epochs"
    ctx.figure("progress", lambda: draw_progress(history, cfg.level, title))
    ctx.figure("mistakes", lambda: draw_mistakes(test_images.cpu(), logits_BK, y_test.cpu()))


NOTEBOOK = "the book's notebook (2nd edition), chapter 7, stored output"
EXAMPLE = "pytorch/examples, mnist/main.py: net, optimiser, schedule and batch size"
LADDER = (
    "this project's contract for nets of this kind; hwalsuklee/numpy-neuralnet-exercise goes from "
    "98.78 % to 99.60 % with dropout and augmented images"
)
BEST = "this project's contract for a single net; j05t/mnist reports 99.74 % for its best one"
BLOCKS = {"net": "blocks", "optimizer": "nesterov", "schedule": "cycle", "smoothing": 0.05}

TASK = Task(
    config=Config(),
    run=run,
    sections=(
        "Full Architectural Description of Convolution Networks",
        "Closing the Loop on MNIST with Convolutional Networks",
    ),
    profiles={
        "smoke": {"data": "digits", "epochs": 6, "level": 0.5},
        "laptop": {"data": "digits", "epochs": 30, "level": 0.965},
        "paper": {},
    },
    variants={
        "fixed": {"hidden_relu": True, "optimizer": "adam"},
        "book": {},
        "recipe": {
            "net": "recipe",
            "optimizer": "adadelta",
            "lr": 1.0,
            "schedule": "steps",
            "share": 0.35,
        },
        "modern": {
            **BLOCKS,
            "convolutions": 2,
            "width": 48,
            "lr": 0.1,
            "distortion": 1.0,
            "batch_size": 128,
            "share": 0.5,
        },
        "fast": {**BLOCKS, "lr": 0.1, "distortion": 0.3, "batch_size": 128, "share": 0.125},
    },
    targets={
        "smoke": {
            "fixed": Target(
                "test_loss",
                1.8,
                "min",
                "calibrated: 6 seeds from 1000, at most 1.64; half-way at least 2.13",
            )
        },
        "laptop": {
            "fixed": Target(
                "test_accuracy",
                0.96,
                "max",
                "calibrated: 5 seeds from 1000, worst 0.964, mean 0.973; after half of the epochs "
                "at most 0.933",
            ),
            "fast": Target(
                "test_accuracy",
                0.974,
                "max",
                "calibrated: 20 seeds from 1000, worst 0.975, mean 0.988; after half of the "
                "epochs at most 0.972",
            ),
        },
        "paper": {
            "fixed": Target("test_accuracy", 0.993, "max", LADDER),
            "book": Target(
                "printed_accuracy",
                55.62,
                "near",
                f"{NOTEBOOK}: 55.62 in epoch 40, 52,172 right answers in 938 batches",
                tolerance=0.5,
            ),
            "modern": Target("test_accuracy", 0.997, "max", BEST),
            "fast": Target(
                "test_accuracy",
                0.993,
                "max",
                f"{LADDER}; seed 1000: 0.995, there from half-way on",
            ),
        },
    },
    claims=(
        Claim(
            "Adam at the listing's learning rate, and its missing ReLU, are worth 5 points",
            "train_accuracy",
            left="fixed",
            right="book",
            mode="max",
            margin=0.05,
            source=f"{NOTEBOOK}: 86.95 % of the training digits in epoch 40; the 1st edition "
            "trains the same net with Adam",
        ),
        Claim(
            "99.3 % take a third of the operations that they take with PyTorch's example",
            "log10_operations",
            left="fast",
            right="recipe",
            mode="min",
            margin=math.log10(3),
            profiles=("paper",),
            source=f"this project's contract; {EXAMPLE}",
        ),
        Claim(
            "augmented images, batch normalisation and a cycle of the rate beat the repaired net",
            "test_accuracy",
            left="modern",
            right="fixed",
            mode="max",
            source=LADDER,
        ),
    ),
    impls=("torch", "reference", "compile", "triton"),
    sweep={"lr": Range(1e-5, 1e-2, log=True)},
)
