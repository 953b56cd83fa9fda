"""What a convolutional net has learnt: filters, feature maps, t-SNE and PCA of its last layer.

Section "Visualizing Learning in Convolutional Networks". The book shows the first layer's filters
and the last hidden layer's activations on the test images, brought to the plane by t-SNE, in which
the classes stand apart; it gives no number. Here `purity` is that number: the share of a point's
`neighbours` nearest neighbours in the plane that are of its class, mean over the points.

- `tsne` and `pca` bring the 64 units of the last hidden layer to the plane,
- `tsne_pixels` and `pca_pixels` the images themselves.

t-SNE and PCA are scikit-learn's. t-SNE matches the neighbourhoods of points by gradient descent on
a Kullback-Leibler divergence, exactly and not by the Barnes-Hut approximation, from a start at the
principal components; PCA is a linear map, the two directions of the largest variance. The net is
the chapter's CIFAR-10 net with fewer units: two 5x5 convolutions with batch normalisation, ReLU and
pooling, then a hidden layer; the images that are embedded are test images, and the net has not
seen them. Rows are taken at a third, two thirds and the end of training. Offline profiles use
scikit-learn's 8x8 digits, on which pixels are a good space already; the section's case is CIFAR-10.

Shapes: B batch, C channels, D features, K classes, H and W height and width.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task, unknown

THIRDS = 3
SHOWN = 3
COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
    "#882255",
)


@dataclass(frozen=True)
class Config:
    data: str = "cifar10"
    method: Literal["tsne", "pca"] = "tsne"
    of: Literal["hidden", "pixels"] = "hidden"
    filters: Count = 64
    hidden: Annotated[int, Interval(ge=2)] = 64
    lr: Positive = 1e-3
    batch_size: Count = 128
    epochs: Annotated[int, Interval(ge=3)] = 15
    points: Count = 2000
    neighbours: Count = 10
    perplexity: Positive = 30.0
    iterations: Annotated[int, Interval(ge=250)] = 1000

    def __post_init__(self) -> None:
        if self.points <= max(self.perplexity, self.neighbours):
            raise ValueError(
                f"points={self.points}: there have to be more than perplexity={self.perplexity:g} "
                f"and neighbours={self.neighbours}"
            )


def network(n_channels: int, size: int, cfg: Config) -> nn.Sequential:
    """Images x_BCHW to logits_BK; all but the last layer give the hidden units."""
    return nn.Sequential(
        nn.Conv2d(n_channels, cfg.filters, 5, padding=2),
        nn.BatchNorm2d(cfg.filters),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(cfg.filters, cfg.filters, 5, padding=2),
        nn.BatchNorm2d(cfg.filters),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(cfg.filters * (size // 4) ** 2, cfg.hidden),
        nn.ReLU(),
        nn.Linear(cfg.hidden, 10),
    )


def loss(model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x_BCHW.float() / 255), y_B)


def embedded(features_BD: torch.Tensor, cfg: Config, seed: int) -> torch.Tensor:
    """Points in the plane, places_B2."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    methods: dict[str, Any] = {
        "pca": PCA(2, svd_solver="full"),
        "tsne": TSNE(
            perplexity=cfg.perplexity,
            max_iter=cfg.iterations,
            init="pca",
            method="exact",
            random_state=seed,
        ),
    }
    if cfg.method not in methods:
        raise unknown("method", cfg.method, methods)
    found = methods[cfg.method].fit_transform(features_BD.double().cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(found))


def purity(places_B2: torch.Tensor, y_B: torch.Tensor, neighbours: int) -> float:
    """Share of each point's nearest neighbours that are of its class, mean over the points."""
    apart_BB = torch.cdist(places_B2, places_B2).fill_diagonal_(torch.inf)
    nearest = apart_BB.topk(neighbours, dim=1, largest=False).indices
    return float((y_B[nearest] == y_B[:, None]).double().mean())


def draw_plane(places_B2: Any, y_B: Any, class_names: tuple[str, ...], title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.subplots()
    for k, (name, colour) in enumerate(zip(class_names, COLOURS, strict=True)):
        mine = places_B2[y_B == k]
        axes.scatter(*mine.T, s=9, color=colour, label=name, marker="os^vD"[k % 5], lw=0)
    axes.set(xlabel="first coordinate", ylabel="second coordinate", title=title)
    figure.legend(fontsize=8, loc="outside right center", markerscale=2)
    return figure


def draw_layers(weight_FCHW: torch.Tensor, maps_BFHW: torch.Tensor, x_BCHW: torch.Tensor) -> Any:
    """Filters of the first layer, and what they find in some images."""
    from matplotlib.figure import Figure

    strength_F = torch.linalg.vector_norm(weight_FCHW.flatten(1), dim=1)
    chosen = strength_F.argsort(descending=True)[:8]
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    grid = figure.subplots(len(x_BCHW) + 1, len(chosen) + 1)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
    grid[0, 0].axis("off")
    for column, f in enumerate(chosen.tolist(), start=1):
        shades_HWC = weight_FCHW[f].movedim(0, 2) / (2 * float(weight_FCHW[f].abs().max())) + 0.5
        grid[0, column].imshow(shades_HWC.numpy(), cmap="gray", vmin=0, vmax=1)
        for row, maps_FHW in enumerate(maps_BFHW, start=1):
            grid[row, column].imshow(maps_FHW[f].numpy(), cmap="viridis")
    for row, image_CHW in enumerate(x_BCHW, start=1):
        grid[row, 0].imshow(image_CHW.movedim(0, 2).numpy(), cmap="gray_r")
        grid[row, 0].set_ylabel(f"image {row}", size=9)
    grid[0, 1].set_ylabel("filters", size=9)
    figure.suptitle("the largest filters of the first layer, and their feature maps after the ReLU")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    x_test, y_test = x_test[: cfg.points], y_test[: cfg.points]
    model = network(x.shape[1], x.shape[2], cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    places_B2 = torch.zeros(len(x_test), 2, dtype=torch.float64)
    start = ctx.keep(model=model, optimizer=optimizer, places=places_B2)

    def found(features_BD: torch.Tensor) -> float:
        places_B2.copy_(embedded(features_BD, cfg, ctx.seed))
        return purity(places_B2, y_test.cpu(), cfg.neighbours)

    def evaluate(model: Any) -> dict[str, float]:
        hidden_BD = torch.cat([model[:-1](b.float() / 255) for b in x_test.split(500)])
        right_B = model[-1](hidden_BD).argmax(1) == y_test
        return {"test_accuracy": float(right_B.double().mean()), "purity": found(hidden_BD)}

    yield
    if cfg.of == "pixels" and not start:
        yield lambda: {"step": 0, "purity": found(x_test.flatten(1).float() / 255)}
    for third in range(start, THIRDS) if cfg.of == "hidden" else ():
        # An embedding takes longer than an epoch: the rows of the epochs before are not evaluated.
        first, until = (cfg.epochs * t // THIRDS for t in (third, third + 1))
        size: Any = {"batch_size": cfg.batch_size, "epochs": until, "start": first}
        *_, row = fit(model, (x, y), loss, evaluate, optimizer, **size)
        yield row

    reached = purity(places_B2, y_test.cpu(), cfg.neighbours)
    of = {"hidden": "last hidden layer"}.get(cfg.of, cfg.of)
    title = f"{cfg.method} of the {of}, purity {reached:.3f}"
    names = source.class_names
    ctx.figure("plane", lambda: draw_plane(places_B2.numpy(), y_test.cpu().numpy(), names, title))
    if cfg.of == "hidden":
        with torch.no_grad():
            maps = model[:3].eval()(x_test[:SHOWN].float() / 255).cpu()
        weight = model[0].weight.detach().cpu()
        ctx.figure("layers", lambda: draw_layers(weight, maps, x_test[:SHOWN].cpu()))


BOOK = "chapter 7, Visualizing Learning in Convolutional Networks"
SEEDS = "calibrated: 5 seeds from 1000"
TASK = Task(
    config=Config(),
    run=run,
    sections=("Visualizing Learning in Convolutional Networks",),
    profiles={
        "smoke": {
            "data": "digits",
            "filters": 8,
            "lr": 3e-3,
            "epochs": 3,
            "points": 120,
            "iterations": 300,
        },
        "laptop": {
            "data": "digits",
            "filters": 16,
            "epochs": 6,
            "points": 360,
            "iterations": 500,
        },
        "paper": {},
    },
    variants={
        "tsne": {},
        "pca": {"method": "pca"},
        "tsne_pixels": {"of": "pixels"},
        "pca_pixels": {"method": "pca", "of": "pixels"},
    },
    targets={
        "smoke": {
            "tsne": Target(
                "purity", 0.725, "max", f"{SEEDS}, worst 0.733; after two thirds at most 0.722"
            )
        },
        "laptop": {
            "tsne": Target(
                "purity",
                0.93,
                "max",
                f"{SEEDS}, worst 0.939, mean 0.955; after two thirds of the epochs at most 0.929",
            )
        },
        "paper": {
            "tsne": Target(
                "purity",
                0.5,
                "max",
                "reasoned: pixels of CIFAR-10 are hardly better than a guess, 0.1, and the net is "
                "right on most test images",
            )
        },
    },
    claims=(
        Claim(
            "t-SNE keeps the classes apart in the plane better than PCA does",
            "purity",
            left="tsne",
            right="pca",
            mode="max",
            source=f"{BOOK}: why t-SNE and not PCA is used",
        ),
        Claim(
            "the last layer's classes are purer than the pixels', by 10 points",
            "purity",
            left="tsne",
            right="tsne_pixels",
            mode="max",
            margin=0.1,
            profiles=("paper",),
            source=f"{BOOK}: classes that overlap as pixels stand apart as activations; 10 points "
            "are this project's contract",
        ),
        Claim(
            "on the digits too the last layer's classes are purer than the pixels'",
            "purity",
            left="tsne",
            right="tsne_pixels",
            mode="max",
            profiles=("laptop",),
            source=f"{BOOK}, on a stand-in",
        ),
    ),
)
