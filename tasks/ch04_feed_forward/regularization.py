"""Preventing overfitting: L2, L1, max-norm constraints and dropout, on the same net.

Section "Preventing Overfitting in Deep Neural Networks". A net of 3 hidden layers of 1,024 ReLUs is
trained without any of the section's remedies (`none`), with one of them, with dropout and max-norm
together, the pair it calls powerful, and with `all`:

    L2         l2 / 2 sum w^2 joins the loss,
    L1         l1 sum abs(w) joins the loss, which drives weights to zero,
    max-norm   every neuron's incoming weights are scaled back to norm c after an update,
    dropout    every hidden neuron is silenced with probability 1/2 and every input with 0.2
               while training; nothing is while testing, where outputs keep their expectation.

What has to come back are the MNIST test errors of Srivastava et al. (2014), tables 2 and 9: 1.60 %
for a plain net, 1.25 % with dropout in this one, 1.06 % with max-norm beside it; as commonly
quoted, not re-checked. The book quotes no error of its own.

`test_error` is the share of test images taken for another digit, `generalization_gap` that less the
same share of the training images; both are medians over the last five evaluations, since single
ones dip. `small_weights` is the share of weights below 0.001. All remedies leave biases alone.

Departures: SGD with momentum 0.9, whose rate falls to zero in a line. At a constant rate dropout
with max-norm comes to 1.34 % where this comes to 1.14 % (seed 1000, 180 of 200 epochs), and with
its authors' published settings, a rate of 1 / (1 + t) and a momentum that rises to 0.99, to 1.36 %.
Offline profiles use 300 of scikit-learn's 8x8 digits, 2 layers of 256 and a constant rate: all the
other 1,497 are the test set, and each seed draws another 300.

Shapes: B batch, D pixels, K classes.
"""

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import BelowOne, Count, NonNegative, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task
from tasks.models.classification import pixels
from tasks.models.training import Scheduled

SMALL = 1e-3
LAST = 5


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    l2: NonNegative = 0.0
    l1: NonNegative = 0.0
    max_norm: NonNegative = 0.0
    dropout: BelowOne = 0.0
    input_dropout: BelowOne = 0.0
    hidden: Count = 1024
    layers: Count = 3
    n_train: Count = 60_000
    lr: Positive = 0.05
    decay: bool = True
    momentum: BelowOne = 0.9
    batch_size: Count = 100
    epochs: Count = 200


def network(n_pixels: int, cfg: Config) -> nn.Sequential:
    """Pixels x_BD to logits_BK."""
    layers: list[nn.Module] = [nn.Dropout(cfg.input_dropout)]
    for n_in, n_out in itertools.pairwise((n_pixels, *[cfg.hidden] * cfg.layers)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(cfg.dropout)]
    model = nn.Sequential(*layers, nn.Linear(cfg.hidden, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]


def penalty(model: nn.Module, l2: float, l1: float) -> torch.Tensor | float:
    """What L2 and L1 add to the loss."""
    total: torch.Tensor | float = 0.0
    for w in weights(model):
        if l2:
            total = total + l2 / 2 * (w**2).sum()
        if l1:
            total = total + l1 * w.abs().sum()
    return total


@torch.no_grad()
def constrain(model: nn.Module, c: float) -> None:
    """Scale the incoming weights of each neuron back to norm ``c`` where they are longer."""
    for w in weights(model):
        w *= (c / torch.linalg.vector_norm(w, dim=1, keepdim=True)).clamp(max=1)


def error(model: nn.Module, x_BD: torch.Tensor, y_B: torch.Tensor) -> float:
    wrong = [
        model(x).argmax(1) != y for x, y in zip(x_BD.split(5000), y_B.split(5000), strict=True)
    ]
    return float(torch.cat(wrong).float().mean())


def scores(history: list[list[float]], model: nn.Module) -> dict[str, float]:
    train, test = (statistics.median(column) for column in zip(*history[-LAST:], strict=True))
    flat = torch.cat([w.detach().flatten() for w in weights(model)])
    return {
        "test_error": test,
        "train_error": train,
        "generalization_gap": test - train,
        "small_weights": float((flat.abs() < SMALL).double().mean()),
        "weight_norm": float(torch.linalg.vector_norm(flat)),
    }


def draw_weights(history: list[list[float]], layers: list[Any], name: str) -> Any:
    """The two errors while training, and where each layer's weights end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    train, test = 100 * np.array(history).T
    epochs = range(1, len(history) + 1)
    left.plot(epochs, test, color="#D55E00", label="test")
    left.plot(epochs, train, color="#0072B2", label="training")
    left.set_yscale("symlog", linthresh=0.5)
    left.set(xlabel="epochs", ylabel="error in %, linear below 0.5", ylim=(0, 100))
    left.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100])
    left.yaxis.set_major_formatter("{x:g}")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    bins = np.linspace(-0.25, 0.25, 101)
    colours = ("#0072B2", "#56B4E9", "#009E73", "#E69F00")
    for i, (w, colour) in enumerate(zip(layers, colours, strict=False)):
        right.hist(
            w.clip(-0.25, 0.25),
            bins,
            density=True,
            histtype="step",
            color=colour,
            lw=1.2,
            label=f"layer {i + 1}: {(np.abs(w) < SMALL).mean():.1%} below {SMALL:g}",
        )
    right.set(xlabel="weight, beyond ±0.25 at the edge", ylabel="density", yscale="log")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(name)
    return figure


def named(cfg: Config) -> str:
    """What the net is trained with."""
    parts = {
        "L2": cfg.l2,
        "L1": cfg.l1,
        "max-norm": cfg.max_norm,
        "dropout": cfg.dropout,
    }
    return ", ".join(f"{k} {v:g}" for k, v in parts.items() if v) or "no regularization"


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    x, x_test = (pixels(images) for images in (x, x_test))
    order = torch.randperm(len(x)).to(x.device)
    kept, rest = order[: cfg.n_train], order[cfg.n_train :]
    x_test, y_test = torch.cat([x_test, x[rest]]), torch.cat([y_test, y[rest]])
    x, y = x[kept], y[kept]
    model = network(x.shape[1], cfg).to(ctx.device)
    sgd = torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=cfg.momentum)
    if cfg.max_norm:
        sgd.register_step_post_hook(lambda *_: constrain(model, cfg.max_norm))
    updates = cfg.epochs * -(-len(x) // cfg.batch_size)
    optimizer = Scheduled([sgd], [lambda done: 1 - cfg.decay * done / updates])
    history: list[list[float]] = []
    start = ctx.keep(model=model, optimizer=optimizer, history=history)

    def loss(model: nn.Module, x_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x_BD), y_B) + penalty(model, cfg.l2, cfg.l1)

    def evaluate(model: nn.Module) -> dict[str, float]:
        history.append([error(model, x, y), error(model, x_test, y_test)])
        return scores(history, model)

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
    layers = [w.detach().flatten().cpu().numpy() for w in weights(model)]
    ctx.figure("weights", lambda: draw_weights(history, layers, named(cfg)))


LITTLE = {
    "data": "digits",
    "hidden": 256,
    "layers": 2,
    "n_train": 300,
    "batch_size": 20,
    "lr": 0.01,
    "decay": False,
}
DROPOUT = {"dropout": 0.5, "input_dropout": 0.2}

SECTION = (
    "chapter 4, Preventing Overfitting in Deep Neural Networks, as commonly quoted, not re-checked"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Preventing Overfitting in Deep Neural Networks",),
    profiles={
        "smoke": {**LITTLE, "epochs": 20},
        "laptop": {**LITTLE, "epochs": 150},
        "paper": {},
    },
    variants={
        "dropout_maxnorm": {**DROPOUT, "max_norm": 2.0},
        "none": {},
        "l2": {"l2": 1e-3},
        "l1": {"l1": 5e-4},
        "maxnorm": {"max_norm": 2.0},
        "dropout": DROPOUT,
        "all": {**DROPOUT, "max_norm": 2.0, "l2": 1e-4, "l1": 5e-5},
    },
    targets={
        "smoke": {
            "dropout_maxnorm": Target("test_error", 0.3, "min", "a third of what chance has: 0.9")
        },
        "laptop": {
            "dropout_maxnorm": Target(
                "test_error",
                0.05,
                "min",
                "calibrated: 6 seeds from 1000 have at most 0.049, 0.044 on average, where none "
                "has 0.050. Half of the epochs reach it too, with 0.046 on average, and with some "
                "draws so does the plain net: which 300 digits a seed draws matters more than the "
                "remedy, and it is the claims that compare on the same ones",
            )
        },
        "paper": {
            "dropout_maxnorm": Target(
                "test_error",
                0.0115,
                "min",
                "1.06 % for this net in Srivastava et al. (2014), table 2, as commonly quoted, not "
                "re-checked, less the spread of a start",
            )
        },
    },
    claims=(
        Claim(
            "dropout with max-norm lowers the test error by half a point",
            "test_error",
            left="dropout_maxnorm",
            right="none",
            mode="min",
            margin=0.005,
            profiles=("laptop",),
            source=f"{SECTION}: what the remedies are for; half a point is this project's contract",
            note="5 of 5 seeds from 1000 gain, 0.6 points on average, but 0.1 to 1.3: five "
            "draws of 300 digits are too few to prove half a point.",
        ),
        Claim(
            "dropout with max-norm lowers the test error",
            "test_error",
            left="dropout_maxnorm",
            right="none",
            mode="min",
            source=f"{SECTION}; on MNIST 1.06 % against 1.60 % in Srivastava et al. (2014)",
        ),
        Claim(
            "dropout alone lowers the test error",
            "test_error",
            left="dropout",
            right="none",
            mode="min",
            source=f"{SECTION}; on MNIST 1.25 % against 1.60 % in Srivastava et al. (2014)",
        ),
        Claim(
            "max-norm beside dropout lowers the test error further",
            "test_error",
            left="dropout_maxnorm",
            right="dropout",
            mode="min",
            source=f"{SECTION}; on MNIST 1.06 % against 1.25 % in Srivastava et al. (2014)",
            note="Not seen on 300 digits: dropout is enough there, and the constraint leaves the "
            "error where it is or raises it by 0.2 points on average (5 seeds from 1000).",
        ),
        Claim(
            "L2 lowers the test error",
            "test_error",
            left="l2",
            right="none",
            mode="min",
            source=SECTION,
            note="On 300 digits by 0.1 points at most, and not with every seed: the net is already "
            "kept small by its start and its low rate.",
        ),
        Claim(
            "L1 lowers the test error",
            "test_error",
            left="l1",
            right="none",
            mode="min",
            source=SECTION,
            note="At 5e-4, where weights become sparse, the net underfits: sparse and accurate are "
            "not had at one strength.",
        ),
        Claim(
            "a max-norm constraint alone lowers the test error",
            "test_error",
            left="maxnorm",
            right="none",
            mode="min",
            profiles=("laptop",),
            source=SECTION,
        ),
        Claim(
            "all remedies together lower the test error",
            "test_error",
            left="all",
            right="none",
            mode="min",
            profiles=("laptop",),
            source=f"{SECTION}: they may be combined",
        ),
        Claim(
            "L1 drives at least half of the weights below 0.001",
            "small_weights",
            left="l1",
            right=0.5,
            mode="max",
            source=f"{SECTION}: under L1 most weights come very close to zero; one half is this "
            "project's contract",
        ),
        Claim(
            "L1 leaves more weights near zero than L2",
            "small_weights",
            left="l1",
            right="l2",
            mode="max",
            source=f"{SECTION}: L2 makes weights small and diffuse, L1 sparse",
        ),
    ),
)
