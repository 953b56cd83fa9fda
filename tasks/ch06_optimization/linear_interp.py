"""The loss on a straight line from a random net to a trained one: are there minima in the way?

Section "How Pesky Are Spurious Local Minima in Deep Networks?". The listing trains 784-256-256-10
by SGD, draws a second, random net, and prints the training loss of (1 - alpha) solution + alpha
random for 80 alphas from -2 up: no hill between 1 and 0 means that no local minimum holds back a
walk along that line (Goodfellow, Vinyals and Saxe, 2015, who start from the net's own first
weights). Compared are

- `book`, the listing: the logits pass through a ReLU, and the rate is 1e-4, so that 40 epochs get
  the loss from 2.30 to 2.13 only. Its "solution" is no minimum of the line: the notebook (2nd
  edition) prints 2.132 at alpha 0 and the lowest loss, 1.556, at alpha -1.2. Where the lowest
  loss lies depends on the random net: an earlier stored run of the same listing, with 2.094 at
  alpha 0, has it (1.791) at -0.73.
- `slow`: the ReLU removed, the rate kept. `fixed`: the rate is 0.1 as well.
- `own_start`: `fixed`, from the net's own first weights. `conv`: `fixed`, with two convolutions.
- `two_solutions`: `fixed`, towards a second net that was trained on the same batches. `matched`:
  the same after the second net's hidden units are put into the order in which their activations
  correlate best with the first's, which changes nothing of what it computes (Ainsworth et al.,
  2023).

The walk goes from alpha 1 to 0. `barrier` is its largest climb, from any point to any later one,
and `descent` its gain, loss at alpha 1 less loss at 0, less that climb; both as shares of the
untrained net's loss, so that a net that learned nothing has no barrier and no descent either.
`argmin` is where of all alphas the loss is lowest, `argmin_error` how far that is from -1.2, and
`beyond` how much lower it is there than at alpha 0, as such a share too. Whether the solution is
the lowest point of its line, as the Japanese edition's plot has it, is judged by `argmin`: the loss
of a good solution is so small that `beyond` is too, wherever the lowest point lies. Once a net is
right on all training examples its loss falls wherever its weights grow, so that point lies beyond
the solution, by 0.1 on the digits and by up to the whole grid on MNIST.

The loss is the mean over the first `probed` training examples; the listing takes all. Offline
profiles use scikit-learn's 8x8 digits, on which the listing learns nothing in 40 epochs.

Shapes: B batch, D pixels, H and W height and width, P parameters of a net, A alphas.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from suite.fields import Count, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task

SHOWN_EPOCHS = 6
PRINTED_ARGMIN = -1.2


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    net: Literal["mlp", "conv"] = "mlp"
    hidden: Count = 256
    relu_logits: bool = True
    lr: Positive = 1e-4
    batch_size: Count = 64
    epochs: Count = 40
    towards: Literal["random", "start", "solution", "matched"] = "random"
    points: Count = 80
    probed: Count = 2000

    def __post_init__(self) -> None:
        if self.points % 4:
            raise ValueError(
                f"points={self.points}: alpha 0 and 1 are points of the grid from -2 to 2 only if "
                "their number is a multiple of 4"
            )


def network(side: int, cfg: Config) -> nn.Sequential:
    """Images x_B1HW of ``side`` pixels a side to logits_BK."""
    if cfg.net == "conv":
        quarter = -(-side // 4)
        layers = [
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * quarter**2, 10),
        ]
    else:
        layers = [
            nn.Flatten(),
            nn.Linear(side**2, cfg.hidden),
            nn.ReLU(),
            nn.Linear(cfg.hidden, cfg.hidden),
            nn.ReLU(),
            nn.Linear(cfg.hidden, 10),
        ]
    return nn.Sequential(*layers, *[nn.ReLU()] * cfg.relu_logits)


def vector(model: nn.Module) -> torch.Tensor:
    """All parameters in one: theta_P, a copy."""
    return parameters_to_vector(model.parameters()).detach().clone()


def unpacked(theta_P: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of ``model`` by name, with the values of ``theta_P``."""
    named = dict(model.named_parameters())
    parts = theta_P.split([p.numel() for p in named.values()])
    return {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}


def alphas(points: int) -> np.ndarray:
    """The listing's range: ``points`` equal steps from -2 on, 2 itself left out."""
    return (np.arange(points) - points // 2) * 4 / points


def losses(
    model: nn.Module, ends: tuple[torch.Tensor, torch.Tensor], at_A: np.ndarray, batch: Any
) -> list[float]:
    """Loss at (1 - alpha) solution + alpha other, for every alpha; ``ends`` are the two."""
    solution_P, other_P = ends
    x, y = batch
    found = []
    for alpha in at_A.tolist():
        weights = unpacked(torch.lerp(solution_P, other_P, alpha), model)
        found.append(float(F.cross_entropy(functional_call(model, weights, (x,)), y)))
    return found


def climb(walk: np.ndarray) -> float:
    """The largest rise from any point of a walk to any later one; 0 where it never rises."""
    return float((walk - np.minimum.accumulate(walk)).max())


def shape_of(at_A: np.ndarray, curve: list[float], untrained: float) -> dict[str, float]:
    """What the curve says; ``untrained`` is the loss that counts as 1."""
    loss_A = np.array(curve)
    walk = loss_A[(at_A >= 0) & (at_A <= 1)][::-1]
    lowest = int(loss_A.argmin())
    return {
        "solution_loss": float(walk[-1]),
        "other_loss": float(walk[0]),
        "lowest_loss": float(loss_A[lowest]),
        "argmin": float(at_A[lowest]),
        "argmin_error": abs(float(at_A[lowest]) - PRINTED_ARGMIN),
        "beyond": float(walk[-1] - loss_A[lowest]) / untrained,
        "barrier": climb(walk) / untrained,
        "descent": float(walk[0] - walk[-1] - climb(walk)) / untrained,
    }


def partners(a_BH: torch.Tensor, b_BH: torch.Tensor) -> torch.Tensor:
    """For every unit of a the unit of b that correlates with it, one to one: index_H."""
    a_BH, b_BH = (
        F.normalize(h - h.mean(0), dim=0) for h in (a_BH.double().cpu(), b_BH.double().cpu())
    )
    return torch.as_tensor(linear_sum_assignment((a_BH.T @ b_BH).numpy(), maximize=True)[1])


def matched(a: nn.Sequential, b: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The parameters of the MLP ``b`` with its hidden units in the order of ``a``'s: theta_P."""
    theta_P = vector(b)
    weights = unpacked(theta_P, b)
    for i, into in ((1, 3), (3, 5)):
        order = partners(a[: i + 2](x), b[: i + 2](x)).to(x.device)
        for name in (f"{i}.weight", f"{i}.bias"):
            weights[name].copy_(weights[name][order])
        weights[f"{into}.weight"].copy_(weights[f"{into}.weight"][:, order])
    return theta_P


def draw_line(at_A: np.ndarray, history: list[list[float]], towards: str) -> Any:
    """The loss along the line at the end, and how it came about epoch by epoch."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    final = np.array(history[-1])
    left.plot(at_A, final, "o-", color="#0072B2", ms=3, lw=1)
    left.axvspan(0, 1, color="#009E73", alpha=0.12, lw=0, label="between the two nets")
    lowest = int(final.argmin())
    label = f"lowest: {final[lowest]:.3g} at {at_A[lowest]:.2f}"
    left.plot(at_A[lowest], final[lowest], "*", color="#D55E00", ms=14, label=label)
    left.set(title=f"solution at α = 0, {towards} at α = 1", ylabel="training loss (nats)")
    chosen = np.unique(np.geomspace(1, len(history), SHOWN_EPOCHS).round().astype(int))
    shades = np.linspace(0.15, 0.85, len(chosen))
    for epoch, shade in zip(chosen.tolist(), shades.tolist(), strict=True):
        right.plot(
            at_A,
            history[epoch - 1],
            color=colormaps["cividis"](shade),
            lw=1.5,
            label=f"epoch {epoch}",
        )
    right.set_title("the same after fewer epochs")
    for ax in (left, right):
        ax.set_xlabel("α")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    left.set_ylim(-0.1, min(6.0, 1.05 * max(map(max, history))))
    return figure


NAMES = {
    "random": "a random net",
    "start": "its own first weights",
    "solution": "another solution",
    "matched": "another solution, units matched",
}


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    x, x_test = x.float() / 255, x_test.float() / 255
    probe = (x[: cfg.probed], y[: cfg.probed])
    nets = nn.ModuleList(network(x.shape[-1], cfg) for _ in range(2)).to(ctx.device)
    trained = nets if cfg.towards in ("solution", "matched") else nets[:1]
    # A net that is only the line's other end is not trained, and does not count as parameters.
    nets.requires_grad_(False)
    trained.requires_grad_()
    optimizer = torch.optim.SGD(trained.parameters(), lr=cfg.lr)
    first, at_A = vector(nets[0]), alphas(cfg.points)
    history: list[list[float]] = []
    untrained = losses(nets[0], (first, first), np.zeros(1), probe)[0]
    start = ctx.keep(nets=nets, optimizer=optimizer, first=first, history=history)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return sum(F.cross_entropy(net(x), y) for net in model)

    def evaluate(model: nn.Module) -> dict[str, float]:
        if cfg.towards == "matched":
            other = matched(nets[0], nets[1], probe[0])
        else:
            other = first if cfg.towards == "start" else vector(nets[1])
        history.append(losses(nets[0], (vector(nets[0]), other), at_A, probe))
        accuracy = float((nets[0](x_test).argmax(1) == y_test).float().mean())
        return {"test_accuracy": accuracy} | shape_of(at_A, history[-1], untrained)

    yield
    yield from fit(
        trained,
        (x, y),
        loss,
        evaluate,
        optimizer,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        start=start,
    )
    ctx.figure("line", lambda: draw_line(at_A, history, NAMES[cfg.towards]))


TRAINED = {"relu_logits": False, "lr": 0.1}
NOTEBOOK = "book's notebook (2nd ed.), chapter 6, stored output"
GOODFELLOW = "Goodfellow, Vinyals and Saxe (2015), section 3: no obstacles on the line"
SECTION = "the section's conclusion from the listing: no troublesome minimum on the line"
SEEDS = "calibrated: 20 seeds from 1000"

TASK = Task(
    config=Config(),
    run=run,
    sections=("How Pesky Are Spurious Local Minima in Deep Networks?",),
    profiles={
        "smoke": {"data": "digits", "hidden": 32, "epochs": 8, "probed": 300},
        "laptop": {"data": "digits", "hidden": 64, "epochs": 40, "probed": 500},
        "paper": {},
    },
    variants={
        "fixed": TRAINED,
        "book": {},
        "slow": {"relu_logits": False},
        "own_start": {**TRAINED, "towards": "start"},
        "conv": {**TRAINED, "net": "conv"},
        "two_solutions": {**TRAINED, "towards": "solution"},
        "matched": {**TRAINED, "towards": "matched"},
    },
    targets={
        "smoke": {
            "fixed": Target(
                "descent",
                0.35,
                "max",
                "calibrated: 10 seeds from 1000, worst 0.416; half-way at most 0.247",
            )
        },
        "laptop": {
            "fixed": Target(
                "descent",
                0.94,
                "max",
                f"{SEEDS}, worst 0.950, mean 0.962; after half of the epochs at most 0.934",
            )
        },
        "paper": {
            "fixed": Target(
                "descent",
                0.97,
                "max",
                "reasoned: a training loss of at most 0.07 with no climb on the way; no figure of "
                "the book. Seed 1000: 0.998, half-way 0.997 already, and 0.902 after one epoch",
            ),
            "book": Target(
                "solution_loss",
                2.132,
                "near",
                f"{NOTEBOOK}: the loss at alpha 0; an earlier stored run has 2.094. Seeds 1000 and "
                "1001: 2.134 and 2.156",
                tolerance=0.04,
            ),
        },
    },
    claims=(
        Claim(
            "no hill on the line from a random net to a solution: 2 % of the start's loss at most",
            "barrier",
            left="fixed",
            right=0.02,
            mode="min",
            source=SECTION,
        ),
        Claim(
            "nor on the line from the net's own first weights",
            "barrier",
            left="own_start",
            right=0.02,
            mode="min",
            source=GOODFELLOW,
        ),
        Claim(
            "nor for a convolutional net",
            "barrier",
            left="conv",
            right=0.02,
            mode="min",
            source=GOODFELLOW,
        ),
        Claim(
            "the line's lowest loss lies at the solution, or beyond it by a tenth of the line at "
            "most",
            "argmin",
            left="fixed",
            right=-0.1,
            mode="max",
            source="the Japanese edition's plot of the same experiment has its lowest loss, near "
            "0.1, at alpha 0; a tenth of the line, two steps of its grid, is this project's "
            "contract",
            note="Beyond the solution the weights are larger, and the loss of a net that is right "
            "on all training examples falls as they grow. Seeds 0 to 4 have the lowest point at "
            "-0.35 to -1.95 on MNIST, where it is 0.0006 nats lower than the solution, and at -0.1 "
            "or -0.15 on the digits, where it is 0.01 to 0.016 lower. The `conv` net ends MNIST at "
            "a loss of 0.015 to 0.027 instead of 0.0006, and has it at -0.15 to 0.05.",
        ),
        Claim(
            "the listing's solution is not the lowest point of its line: that is 0.1 nats lower",
            "beyond",
            left="book",
            right=0.1 / 2.3,
            mode="max",
            profiles=("paper",),
            source=f"{NOTEBOOK}: 1.556 at alpha -1.2 against 2.132 at alpha 0; an earlier stored "
            "run: 1.791 at -0.73 against 2.094",
        ),
        Claim(
            "the lowest loss of the listing's line lies at alpha -1.2, give or take 0.2",
            "argmin_error",
            left="book",
            right=0.2,
            mode="min",
            profiles=("paper",),
            source=f"{NOTEBOOK}: 1.556 at alpha -1.2",
            note="Where the lowest point lies depends on the random net that the line leads to: an "
            "earlier stored run of the listing has it at -0.73, and seeds 1000 and 1001 at -0.75.",
        ),
        Claim(
            "the line leads down by more than half of the loss, unlike the listing's",
            "descent",
            left="fixed",
            right="book",
            mode="max",
            margin=0.5,
            source=f"{NOTEBOOK}: from 2.30 at alpha 1 to 2.13 at alpha 0",
        ),
        Claim(
            "between two solutions there is a hill, where the way to each from random is clear",
            "barrier",
            left="two_solutions",
            right="fixed",
            mode="max",
            margin=0.1,
            source="Entezari et al. (2022): solutions of a net are apart unless its units are "
            "matched; the book does not look at two",
        ),
        Claim(
            "putting the hidden units of one into the other's order takes most of that hill away",
            "barrier",
            left="matched",
            right="two_solutions",
            mode="min",
            margin=0.1,
            source="Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin: activation matching",
        ),
    ),
)
