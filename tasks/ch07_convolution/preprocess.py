"""Preprocessing: whitening, crops, mirroring and light, judged on test images that were spoilt.

Section "Image Preprocessing Pipelines Enable More Robust Models". The book's pipeline takes a
random crop of each training image, mirrors half of them, changes brightness and contrast, and
whitens each image: less its mean, over its standard deviation. One net is trained in five ways:
`none`, with the channels standardised by the training set only; `whiten`, each image by itself, at
test time too; `crop_flip`; `jitter` of brightness by up to 63 of 255 and of contrast by 0.2 to 1.8,
the figures of the 1st edition's listing; and `all`. The book claims robustness and gives no number.

Test images are shown as they are (`clean_accuracy`), with brightness and contrast changed as above
and cut off at 0 and 255 (`lit_accuracy`), moved by up to `reach` pixels (`moved_accuracy`), and
both (`spoilt_accuracy`). What is spoilt is drawn once, before training.

The net is a residual one of 8 layers, of `resnet`, trained with Adam. A crop here is an image moved
by up to `reach` pixels with zeros behind it, which keeps its size. Offline profiles use
scikit-learn's 8x8 digits, moved by one pixel and never mirrored: a mirrored digit is none.

Shapes: B batch, C channels, H and W height and width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task
from tasks.models.augmentation import lit, mirrored, shifted, whitened
from tasks.models.convolution import depth_blocks, residual_net

BRIGHTNESS, CONTRAST = 63.0, (0.2, 1.8)
KINDS = ("clean", "lit", "moved", "spoilt")


@dataclass(frozen=True)
class Config:
    data: str = "cifar10"
    whiten: bool = False
    crop: bool = False
    jitter: bool = False
    flip: bool = True
    reach: Count = 4
    depth: Count = 8
    width: Count = 16
    lr: Positive = 1e-3
    batch_size: Count = 128
    epochs: Count = 20

    def __post_init__(self) -> None:
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"depth={self.depth}: a residual net has 6 n + 2 layers, such as 20")


def spoilt(x_BCHW: torch.Tensor, reach: int) -> dict[str, torch.Tensor]:
    """Bytes to floats from 0 to 255: as they are, and spoilt in three ways."""
    clean = x_BCHW.float()
    changed = lit(clean, BRIGHTNESS, CONTRAST).clamp(0, 255)
    return {
        "clean": clean,
        "lit": changed,
        "moved": shifted(clean, reach),
        "spoilt": shifted(changed, reach),
    }


def distorted(x_BCHW: torch.Tensor, cfg: Config) -> torch.Tensor:
    """Bytes to floats from 0 to 255, or beyond: a batch as the pipeline distorts it in training."""
    x_BCHW = x_BCHW.float()
    if cfg.crop:
        x_BCHW = shifted(x_BCHW, cfg.reach)
        if cfg.flip:
            which_B = torch.rand(len(x_BCHW), device=x_BCHW.device) < 0.5
            x_BCHW = mirrored(x_BCHW, which_B)
    return lit(x_BCHW, BRIGHTNESS, CONTRAST) if cfg.jitter else x_BCHW


def draw_spoilt(shown: dict[str, torch.Tensor], accuracies: dict[str, float], title: str) -> Any:
    """Some test images in each state, and how many of all are recognised in it."""
    from matplotlib.figure import Figure

    columns = 8
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    grid = left.subplots(len(KINDS), columns)
    for row, kind in zip(grid, KINDS, strict=True):
        for ax, image in zip(row, shown[kind], strict=False):
            ax.imshow(image.permute(1, 2, 0).squeeze().numpy() / 255, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind, size=9)
    left.suptitle("test images", size=10)
    axes = right.subplots()
    bars = axes.bar(KINDS, [accuracies[k] for k in KINDS], color="#56B4E9")
    axes.bar_label(bars, fmt="%.3f", fontsize=8)
    axes.set(ylabel="test accuracy", ylim=(0, 1.08))
    figure.suptitle(title)
    return figure


def pipeline(cfg: Config) -> str:
    parts = [name for name in ("whiten", "crop", "jitter") if getattr(cfg, name)]
    return "trained with " + (", ".join(parts) or "no preprocessing")


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    (x, y), (x_test, y_test) = source.train, source.test
    std, mean = torch.std_mean(x[:10_000].float(), (0, 2, 3), keepdim=True)
    tests = spoilt(x_test, cfg.reach)
    model = residual_net(depth_blocks(cfg.depth), cfg.width, n_in=x.shape[1]).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    start = ctx.keep(model=model, optimizer=optimizer)

    def scaled(x_BCHW: torch.Tensor) -> torch.Tensor:
        return whitened(x_BCHW) if cfg.whiten else (x_BCHW - mean) / std

    def loss(model: nn.Module, x_BCHW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(scaled(distorted(x_BCHW, cfg))), y_B)

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = {}
        for kind, images in tests.items():
            guess_B = torch.cat([model(scaled(b)).argmax(1) for b in images.split(1000)])
            found[f"{kind}_accuracy"] = float((guess_B == y_test).float().mean())
        return found

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
        found = evaluate(model.eval())
    accuracies = {kind: found[f"{kind}_accuracy"] for kind in KINDS}
    shown = {kind: images[:8].cpu() for kind, images in tests.items()}
    ctx.figure("spoilt", lambda: draw_spoilt(shown, accuracies, pipeline(cfg)))


OFFLINE = {"data": "digits", "flip": False, "reach": 1, "batch_size": 32}
BOOK = "the section: preprocessing pipelines make models more robust, without a number"
POINTS = f"{BOOK}; the points are this project's contract"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Image Preprocessing Pipelines Enable More Robust Models",),
    profiles={
        "smoke": {**OFFLINE, "epochs": 2},
        "laptop": {**OFFLINE, "epochs": 4},
        "paper": {},
    },
    variants={
        "all": {"whiten": True, "crop": True, "jitter": True},
        "none": {},
        "whiten": {"whiten": True},
        "crop_flip": {"crop": True},
        "jitter": {"jitter": True},
    },
    targets={
        "smoke": {
            "all": Target(
                "spoilt_accuracy",
                0.7,
                "max",
                "calibrated: 5 seeds from 1000, worst 0.764; after one epoch at most 0.636",
            )
        },
        "laptop": {
            "all": Target(
                "spoilt_accuracy",
                0.85,
                "max",
                "calibrated: 5 seeds from 1000, worst 0.875; half-way at most 0.831",
            )
        },
        "paper": {
            "all": Target(
                "spoilt_accuracy",
                0.65,
                "max",
                "this project's contract, reasoned from what nets of 8 layers reach on CIFAR-10",
            )
        },
    },
    claims=(
        *(
            Claim(
                f"on spoilt images the whole pipeline is {100 * points:g} points ahead of none",
                "spoilt_accuracy",
                left="all",
                right="none",
                mode="max",
                margin=points,
                profiles=(profile,),
                source=POINTS,
            )
            for profile, points in (("laptop", 0.05), ("paper", 0.03))
        ),
        Claim(
            "whitening each image makes up for changes of brightness and contrast",
            "lit_accuracy",
            left="whiten",
            right="none",
            mode="max",
            margin=0.03,
            source=POINTS,
        ),
        Claim(
            "training with changes of brightness and contrast makes up for them",
            "lit_accuracy",
            left="jitter",
            right="none",
            mode="max",
            margin=0.03,
            source=POINTS,
        ),
        Claim(
            "training with crops makes up for shifts",
            "moved_accuracy",
            left="crop_flip",
            right="none",
            mode="max",
            margin=0.03,
            source=POINTS,
        ),
        Claim(
            "the whole pipeline is ahead of none on images that are not spoilt, too",
            "clean_accuracy",
            left="all",
            right="none",
            mode="max",
            source=BOOK,
            note="Not on the digits, which are centred already: after 4 epochs the pipeline has "
            "0.94 to 0.96 and none has 0.99; what it varies is not in the test images, and a net "
            "of this size takes longer to learn it.",
        ),
    ),
)
