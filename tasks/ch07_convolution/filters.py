"""Filters and feature maps: line detectors, and how few parameters a convolution needs.

Sections "The Shortcomings of Feature Selection", "Vanilla Deep Neural Networks Don't Scale" and
"Filters and Feature Maps". A filter slides over an image, and its feature map says where what it
looks for is. The images are bars, vertical and horizontal, as bright as or brighter than what is
around them, in Gaussian noise: nobody tells the filter where to look, how bright a bar is, or what
else is in the image, which is what features made by hand have to know.

- `vertical` and `horizontal` are the book's line detectors, columns (rows) of -1, 2, -1.
- `diagonal` looks for the same in another direction, `mean` averages.

`selectivity` is the area under the ROC curve of the feature map: how often it is higher on a pixel
of a vertical bar than on one of a horizontal bar, away from where bars cross; 0.5 is a coin.
`preference` is |selectivity - 1/2|. `error` is the largest difference of the feature maps, over
`images` images and scikit-learn's photograph, from those that scipy.ndimage computes, as a share
of the largest value.

Parameters are exact counts for images of side x side pixels in 3 colours. `dense_weights` is what
one fully connected neuron takes: 200 x 200 x 3 = 120,000 in the book's example.
`parameter_ratio` is a layer of filters, e x e with a bias each, against a fully connected layer
that gives as many numbers.

Shapes: B images, H and W pixels.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch.nn import functional as F

from suite.fields import Count, NonNegative
from suite.task import Claim, Target, Task, unknown

FILTERS = {
    "vertical": [[-1, 2, -1]] * 3,
    "horizontal": [[-1] * 3, [2] * 3, [-1] * 3],
    "diagonal": [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]],
    "mean": [[1] * 3] * 3,
}


@dataclass(frozen=True)
class Config:
    data: Literal["generated bars and the photograph china.jpg"] = (
        "generated bars and the photograph china.jpg"
    )
    filter: Literal["vertical", "horizontal", "diagonal", "mean"] = "vertical"
    images: Count = 200
    side: Annotated[int, Interval(ge=8)] = 200
    bars: Count = 6
    noise: NonNegative = 0.3
    filters: Count = 64


def detector(name: str) -> torch.Tensor:
    """Weights of a 3x3 filter, their absolute values summing to 1."""
    if name not in FILTERS:
        raise unknown("filter", name, FILTERS)
    weight = torch.tensor(FILTERS[name], dtype=torch.float64)
    return weight / weight.abs().sum()


def feature_map(x_BHW: torch.Tensor, filter_33: torch.Tensor) -> torch.Tensor:
    """The filter's response at every pixel, zeros around the image."""
    return F.conv2d(x_BHW[:, None], filter_33.to(x_BHW)[None, None], padding=1)[:, 0]


def bars(cfg: Config) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images x_BHW, and where only a vertical and only a horizontal bar is, as masks."""
    shape = cfg.images, cfg.bars, cfg.side

    def lines() -> torch.Tensor:
        """Bars of one pixel at random places along a side, each with a brightness of its own."""
        at = torch.rand(shape).argmax(2, keepdim=True)
        height = 0.5 + 0.5 * torch.rand(cfg.images, cfg.bars, 1)
        return torch.zeros(shape).scatter(2, at, height).amax(1).double()

    upright_BW, level_BH = lines(), lines()
    clean_BHW = torch.maximum(upright_BW[:, None], level_BH[:, :, None])
    x_BHW = clean_BHW + cfg.noise * torch.randn(clean_BHW.shape, dtype=torch.float64)
    on_upright, on_level = (upright_BW > 0)[:, None], (level_BH > 0)[:, :, None]
    return x_BHW, on_upright & ~on_level, on_level & ~on_upright


def auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """P(positive > negative) + P(equal) / 2 of two samples."""
    negative = negative.sort().values
    below = torch.searchsorted(negative, positive, right=False)
    up_to = torch.searchsorted(negative, positive, right=True)
    return float((below + up_to).double().mean()) / (2 * len(negative))


def correlated(x_BHW: torch.Tensor, filter_33: torch.Tensor) -> torch.Tensor:
    """The same feature maps by SciPy."""
    from scipy import ndimage

    weights = filter_33.numpy()[None]
    return torch.from_numpy(ndimage.correlate(x_BHW.cpu().numpy(), weights, mode="constant"))


def photograph() -> torch.Tensor:
    """scikit-learn's china.jpg as one image of grey levels from 0 to 1, x_1HW."""
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(load_sample_image("china.jpg").mean(2) / 255)[None]


def parameters(cfg: Config) -> dict[str, float]:
    """Exact counts for a first layer on images of side x side pixels in 3 colours."""
    n_in, n_out = 3 * cfg.side**2, cfg.filters * cfg.side**2
    convolution, dense = cfg.filters * (3 * 9 + 1), (n_in + 1) * n_out
    return {
        "dense_weights": n_in,
        "convolution_parameters": convolution,
        "dense_parameters": dense,
        "parameter_ratio": dense / convolution,
    }


def draw_maps(x_HW: torch.Tensor, photo_HW: torch.Tensor, name: str) -> Any:
    """An image of bars and the photograph, each with its feature map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(2, 2, width_ratios=(1, 1))
    for row, (x, title) in enumerate(((x_HW, "bars in noise"), (photo_HW, "china.jpg"))):
        response = feature_map(x[None], detector(name))[0].numpy()
        limit = np.quantile(np.abs(response), 0.995)
        grid[row, 0].imshow(x.numpy(), cmap="gray")
        grid[row, 0].set_title(title, size=10)
        image = grid[row, 1].imshow(response, cmap="PuOr", vmin=-limit, vmax=limit)
        grid[row, 1].set_title("feature map", size=10)
        figure.colorbar(image, ax=grid[row, 1], label="response")
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
    figure.suptitle(f"filter: {name}, rows {FILTERS[name]}")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    filter_33, photo_1HW = detector(cfg.filter), photograph()
    x_BHW, upright, level = (t.to(ctx.device) for t in bars(cfg))
    kept: dict[str, torch.Tensor] = {}
    start = ctx.keep(kept=kept)

    def scores() -> dict[str, float]:
        sets = (x_BHW, kept["bars"]), (photo_1HW, kept["photo"])
        gaps = [(y.cpu() - correlated(x, filter_33)).abs().max() / y.abs().max() for x, y in sets]
        selectivity = auc(kept["bars"][upright], kept["bars"][level])
        return {
            "step": len(x_BHW),
            "selectivity": selectivity,
            "preference": abs(selectivity - 0.5),
            "error": float(max(gaps)),
            **parameters(cfg),
        }

    yield
    if not start:
        kept["bars"] = feature_map(x_BHW, filter_33)
        kept["photo"] = feature_map(photo_1HW, filter_33)
        yield scores
    ctx.figure("maps", lambda: draw_maps(x_BHW[0].cpu(), photo_1HW[0], cfg.filter))


THEORY = (
    "chapter 7, Filters and Feature Maps: detectors of vertical and of horizontal lines; the level "
    "is calibrated on 20 seeds from 1000"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=(
        "The Shortcomings of Feature Selection",
        "Vanilla Deep Neural Networks Don't Scale",
        "Filters and Feature Maps",
    ),
    profiles={
        "smoke": {"images": 20, "side": 28, "bars": 3},
        "laptop": {"images": 100, "side": 28, "bars": 3},
        "paper": {},
    },
    variants={
        "vertical": {},
        "horizontal": {"filter": "horizontal"},
        "diagonal": {"filter": "diagonal"},
        "mean": {"filter": "mean"},
    },
    targets={
        profile: {
            "vertical": Target("selectivity", 0.9, "max", f"{THEORY}, worst 0.928"),
            "horizontal": Target("selectivity", 0.1, "min", f"{THEORY}, worst 0.059"),
        }
        for profile in ("smoke", "laptop", "paper")
    },
    claims=(
        Claim(
            "the maps of the section's filter are those that SciPy computes",
            "error",
            left="vertical",
            right=1e-5,
            mode="min",
            source="this project's contract: float64 sums of nine terms",
        ),
        Claim(
            "a filter prefers one direction where an average over the same pixels has none",
            "preference",
            left="vertical",
            right="mean",
            mode="max",
            margin=0.3,
            source="chapter 7, Filters and Feature Maps",
        ),
        Claim(
            "so does a filter for diagonals between bars that are not diagonal",
            "preference",
            left="vertical",
            right="diagonal",
            mode="max",
            margin=0.3,
            source="chapter 7, Filters and Feature Maps",
        ),
        Claim(
            "a convolution has at most 1/50 of the parameters of a dense layer of equal output",
            "parameter_ratio",
            left="vertical",
            right=50.0,
            mode="max",
            source="this project's contract for the section; an exact count",
        ),
        Claim(
            "one dense neuron on a colour image of 200x200 pixels has 120,000 weights",
            "dense_weights",
            left="vertical",
            right=120_000.0,
            mode="max",
            profiles=("paper",),
            source="chapter 7, Vanilla Deep Neural Networks Don't Scale, as commonly quoted: "
            "200 x 200 x 3 = 120,000 weights; not re-checked in the printed text",
        ),
    ),
)
