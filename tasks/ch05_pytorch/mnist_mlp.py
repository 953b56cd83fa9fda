"""MNIST classifier: the book's MLP as printed, with Adam, with dropout, and as trained today.

Section "Building the MNIST Classifier in PyTorch". The net is 784-256-10 with one ReLU, trained
for 40 epochs in batches of 64. Compared are `book` (plain SGD at learning rate 1e-3, the listing),
`fixed` (Adam at the same rate), `dropout` (`fixed` with half of the hidden units dropped) and
`modern`, the same net for as many epochs with AdamW (Loshchilov and Hutter, 2019), three tenths of
the hidden units dropped, and one cycle of the rate (Smith, 2018): in a line up to 5e-3 in the first
fifth of the updates, and in a line down to zero.

What the book's notebook (2nd edition, chapter 5) shows: training loss 0.3359 in epoch 40 and "test
accuracy: 90.66". That figure divides the number of correct digits by the loader's 157 batches
times 64, which is 10,048, but the test set has 10,000 digits and its last batch holds 16: the net
had 9,110 right, 91.10 %. `test_accuracy` is the true share and `printed_accuracy` the listing's.
Its "test loss: 0.00498" divides the batches' mean losses by the number of images, so that it is 64
times too small: `test_loss` is the true mean and `printed_loss` the listing's. `train_loss` is the
mean over an epoch's batches, as the listing has it.

Departures from the book: images live on the device as one float tensor instead of going through
a DataLoader, which gives batches alike at a fraction of the time; the test set is evaluated
after every epoch instead of once. Offline profiles use scikit-learn's 8x8 digits.

Shapes: B batch, D pixels, K classes, H and W height and width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import BelowOne, Count, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task
from tasks.models.classification import loss, pixels
from tasks.models.training import Scheduled

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "one_cycle": torch.optim.AdamW}
RISE = 0.2


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    hidden: Count = 256
    optimizer: Literal["sgd", "adam", "one_cycle"] = "sgd"
    lr: Positive = 1e-3
    dropout: BelowOne = 0.0
    batch_size: Count = 64
    epochs: Count = 40


def classifier(n_pixels: int, cfg: Config) -> nn.Module:
    """Pixels x_BD to logits_BK."""
    return nn.Sequential(
        nn.Linear(n_pixels, cfg.hidden),
        nn.ReLU(),
        nn.Dropout(cfg.dropout),
        nn.Linear(cfg.hidden, 10),
    )


def printed(n_correct: int, n_test: int, batch_size: int) -> float:
    """Accuracy as the listing computes it: as if the last batch were full."""
    n_batches = -(-n_test // batch_size)
    return n_correct / (n_batches * batch_size)


def printed_loss(logits_BK: torch.Tensor, y_B: torch.Tensor, batch_size: int) -> float:
    """Test loss as the listing computes it: the batches' means, divided by the number of images."""
    batches = zip(logits_BK.split(batch_size), y_B.split(batch_size), strict=True)
    means = [float(F.cross_entropy(logits, y)) for logits, y in batches]
    return sum(means) / (len(means) * batch_size)


def scores(logits_BK: torch.Tensor, y_B: torch.Tensor, batch_size: int) -> dict[str, float]:
    n_correct, n_test = int((logits_BK.argmax(1) == y_B).sum()), len(y_B)
    accuracy, shown = n_correct / n_test, printed(n_correct, n_test, batch_size)
    return {
        "test_accuracy": accuracy,
        "printed_accuracy": shown,
        "printed_shortfall": accuracy - shown,
        "test_loss": float(F.cross_entropy(logits_BK, y_B)),
        "printed_loss": printed_loss(logits_BK, y_B, batch_size),
    }


def one_cycle(share: float) -> float:
    """The rate, as a share of its peak, when ``share`` of the updates are done."""
    return min(share / RISE, (1 - share) / (1 - RISE))


def draw_mistakes(x_BCHW: torch.Tensor, logits_BK: torch.Tensor, y_B: torch.Tensor) -> Any:
    """Which digit is taken for which, and the mistakes the model is surest of."""
    from matplotlib.figure import Figure

    confidence_B, guess_B = logits_BK.softmax(1).cpu().max(1)
    y_B, x_BHW = y_B.cpu(), x_BCHW[:, 0].cpu().numpy()
    confusion = torch.zeros(10, 10, dtype=torch.long)
    confusion.index_put_((y_B, guess_B), torch.ones_like(y_B), accumulate=True)
    wrong = (guess_B != y_B).nonzero()[:, 0]
    wrong = wrong[confidence_B[wrong].argsort(descending=True)][:20]

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    axes = left.subplots()
    mistakes = confusion.float().fill_diagonal_(0)
    most = max(1, int(mistakes.max()))
    shades = mistakes.fill_diagonal_(torch.nan).numpy()
    axes.imshow(shades, cmap="cividis", vmin=0, vmax=most)
    for i in range(10):
        for j in range(10):
            colour = "0.35" if i == j else "white" if mistakes[i, j] < 0.6 * most else "black"
            axes.text(j, i, int(confusion[i, j]), ha="center", va="center", size=7, color=colour)
    axes.set(xticks=range(10), yticks=range(10), xlabel="predicted digit", ylabel="true digit")
    axes.set_title(f"{int((guess_B != y_B).sum())} of {len(y_B):,} test digits are wrong", size=10)
    grid = right.subplots(4, 5)
    for ax in grid.flat:
        ax.axis("off")
    for ax, i in zip(grid.flat, wrong.tolist(), strict=False):
        ax.imshow(x_BHW[i], cmap="gray_r")
        ax.set_title(f"{y_B[i]} as {guess_B[i]}, {confidence_B[i]:.0%}", size=8)
    right.suptitle("mistakes the model is surest of: true as predicted, confidence", size=10)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (images, y), (test_images, y_test) = source.train, source.test
    x, x_test = pixels(images), pixels(test_images)
    model = classifier(x.shape[1], cfg).to(ctx.device)
    optimizer: Any = OPTIMIZERS[cfg.optimizer](model.parameters(), lr=cfg.lr)
    if cfg.optimizer == "one_cycle":
        updates = cfg.epochs * -(-len(x) // cfg.batch_size)
        # The first update is not at a rate of zero, nor the last.
        optimizer = Scheduled([optimizer], [lambda done: one_cycle((done + 0.5) / updates)])
    start = ctx.keep(model=model, optimizer=optimizer)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return scores(model(x_test), y_test, cfg.batch_size)

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
    with torch.no_grad():
        logits_BK = model.eval()(x_test)
    ctx.figure("mistakes", lambda: draw_mistakes(test_images, logits_BK, y_test))


NOTEBOOK = "book's notebook (2nd ed.), chapter 5, stored output"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Building the MNIST Classifier in PyTorch", "The PyTorch nn Module"),
    profiles={
        "smoke": {"data": "digits", "epochs": 3},
        "laptop": {"data": "digits", "epochs": 20},
        "paper": {},
    },
    variants={
        "fixed": {"optimizer": "adam"},
        "book": {},
        "dropout": {"optimizer": "adam", "dropout": 0.5},
        "modern": {"optimizer": "one_cycle", "lr": 5e-3, "dropout": 0.3},
    },
    targets={
        "smoke": {
            "fixed": Target(
                "test_loss",
                1.38,
                "min",
                "40 % below ln 10 = 2.303, the loss of an even guess; 20 seeds from 1000: at "
                "most 0.83, and at least 1.80 after one epoch",
            )
        },
        "laptop": {
            "fixed": Target(
                "test_accuracy",
                0.965,
                "max",
                "calibrated: 20 seeds from 1000, worst 0.969, mean 0.975; after half of the "
                "epochs at most 0.958",
            ),
        },
        "paper": {
            "fixed": Target(
                "test_accuracy",
                0.98,
                "max",
                "what the section's net should reach once its optimiser does; seeds 1000 and "
                "1001: 0.983 and 0.983. The book's Japanese edition reports 0.979 for a net with "
                "one layer more",
            ),
            "book": Target(
                "test_accuracy",
                0.911,
                "near",
                f"{NOTEBOOK} 90.66 %: its 9,110 correct digits divided by 10,000. Seeds 1000 and "
                "1001: 0.909 and 0.911, with its training loss of 0.336",
                tolerance=0.005,
            ),
            "modern": Target(
                "test_accuracy",
                0.984,
                "max",
                "calibrated: 4 seeds from 1000, worst 0.9843, mean 0.9854; after half of the "
                "epochs at most 0.9803",
            ),
        },
    },
    claims=(
        Claim(
            "Adam at the listing's learning rate beats its SGD by 5 points",
            "test_accuracy",
            left="fixed",
            right="book",
            mode="max",
            margin=0.05,
            source=f"{NOTEBOOK} 90.66 % against the 98 % that the net can reach",
        ),
        Claim(
            "the listing prints 0.4 points less than the net's accuracy on the 10,000 digits",
            "printed_shortfall",
            left="book",
            right=0.004,
            mode="max",
            profiles=("paper",),
            source=f"{NOTEBOOK} 90.66 % where 9,110 of 10,000 are right",
            note="Arithmetic: it divides by 10,048, which takes 0.48 % off every accuracy; more "
            "than 0.4 points of one above 84 %.",
        ),
        Claim(
            "the same net, trained as today in as many epochs, beats Adam at a constant rate",
            "test_accuracy",
            left="modern",
            right="fixed",
            mode="max",
            source="Smith (2018), on one cycle of the rate; the book has no such listing",
        ),
        Claim(
            "dropping half of the hidden units raises the test accuracy",
            "test_accuracy",
            left="dropout",
            right="fixed",
            mode="max",
            source="chapter 4, Preventing Overfitting in Deep Neural Networks",
            note="False on the 8x8 digits, where 20 epochs are too few for the thinned net; on "
            "MNIST no clear gain: -0.06 and +0.10 points (seeds 1000 and 1001).",
        ),
    ),
)
