"""The convolutional layer, computed in four ways over many geometries.

Section "Full Description of the Convolutional Layer". K filters of e x e pixels and C channels
slide over an image, padded by p zeros on every side, s pixels at a time:

    y[k, i, j] = b[k] + sum over c, u, v of w[k, c, u, v] x[c, s i + u - p, s j + v - p],

on floor((n - e + 2 p) / s) + 1 positions of a side of n pixels. The book gives no number to come
back to; its listing is 64 filters of 5x5 on 3 channels with a stride of 2 and a padding of 1.

- `naive` is the formula: at one position after the other, the filters times what is under them.
- `im2col` copies what is under every position into the columns of one matrix and multiplies once.
- `torch` is PyTorch's own operator, `kernel` this project's in the implementation that `impl`
  names (the other methods do not depend on it).

Each computes the output and the gradients by images, filters and biases of random geometries, and
then of the listing's. A geometry `agrees` if its output has the size of the formula and all four
are within `tolerance` of those in float64, as norm(result - exact) / norm(exact). The exact ones
come from the naive method, for `naive` itself from PyTorch's operator. A half-finished run agrees
on half of them. `error` is the largest over all.

`copies` is the size of im2col's matrix for the listing's layer as a multiple of its image's.
Seconds depend on the machine, and are measured in benchmarks of the op. On a GPU cuDNN's own choice
for float32, TF32, is short of the tolerance.

Shapes: N images, C channels, H and W pixels; K filters; P and Q positions; D = C e e.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from kernels import conv2d
from suite.fields import Count, Positive
from suite.task import Claim, Target, Task, unknown


@dataclass(frozen=True)
class Config:
    data: Literal["random images and filters"] = "random images and filters"
    method: Literal["naive", "im2col", "torch", "kernel"] = "naive"
    shapes: Count = 200
    rows: Count = 10
    images: Count = 8
    channels: Count = 64
    filters: Count = 64
    side: Count = 16
    tolerance: Positive = 1e-4
    impl: str = "torch"


@dataclass(frozen=True)
class Geometry:
    """N images of C x H x W, K filters of e x e, stride s, padding p."""

    N: int
    C: int
    H: int
    W: int
    K: int
    e: int
    s: int
    p: int


def listing(images: int = 1, side: int = 32) -> Geometry:
    return Geometry(N=images, C=3, H=side, W=side, K=64, e=5, s=2, p=1)


def drawn(cfg: Config) -> Geometry:
    """A geometry at random; no filter is larger than its padded image."""

    def up_to(most: int, least: int = 1) -> int:
        return int(torch.randint(least, most + 1, ()))

    e, p = up_to(min(5, cfg.side)), up_to(2, 0)
    H, W = (up_to(cfg.side, least=max(1, e - 2 * p)) for _ in range(2))
    N, C, K = up_to(cfg.images), up_to(cfg.channels), up_to(cfg.filters)
    return Geometry(N=N, C=C, H=H, W=W, K=K, e=e, s=up_to(3), p=p)


def output_size(n: int, g: Geometry) -> int:
    """Positions along a side of n pixels."""
    return (n - g.e + 2 * g.p) // g.s + 1


def naive(x_NCHW: torch.Tensor, w_KCee: torch.Tensor, b_K: torch.Tensor, g: Geometry) -> Any:
    """The filters times what is under them, position by position: y_NKPQ."""
    P, Q = output_size(g.H, g), output_size(g.W, g)
    padded_NCHW, w_DK, rows = F.pad(x_NCHW, (g.p,) * 4), w_KCee.flatten(1).T, []
    for top in range(0, P * g.s, g.s):
        for left in range(0, Q * g.s, g.s):
            under_NCee = padded_NCHW[:, :, top : top + g.e, left : left + g.e]
            rows.append(torch.addmm(b_K, under_NCee.flatten(1), w_DK))
    return torch.stack(rows, 2).view(g.N, g.K, P, Q)


def columns(x_NCHW: torch.Tensor, g: Geometry) -> torch.Tensor:
    """What is under each position, as columns_NDM of M = P Q positions."""
    padded_NCHW = F.pad(x_NCHW, (g.p,) * 4)
    windows_NCPQee = padded_NCHW.unfold(2, g.e, g.s).unfold(3, g.e, g.s)
    return windows_NCPQee.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def im2col(x_NCHW: torch.Tensor, w_KCee: torch.Tensor, b_K: torch.Tensor, g: Geometry) -> Any:
    y_NKM = w_KCee.flatten(1) @ columns(x_NCHW, g) + b_K[:, None]
    return y_NKM.view(g.N, g.K, output_size(g.H, g), output_size(g.W, g))


def vendor(x_NCHW: torch.Tensor, w_KCee: torch.Tensor, b_K: torch.Tensor, g: Geometry) -> Any:
    return F.conv2d(x_NCHW, w_KCee, b_K, g.s, g.p)


METHODS: dict[str, Callable[..., Any]] = {"naive": naive, "im2col": im2col, "torch": vendor}


def method(cfg: Config) -> Callable[..., Any]:
    if cfg.method == "kernel":
        return lambda x, w, b, g: conv2d.conv2d(x, w, b, g.s, g.p, impl=cfg.impl)
    if cfg.method not in METHODS:
        raise unknown("method", cfg.method, [*METHODS, "kernel"])
    return METHODS[cfg.method]


def computed(compute: Any, given: list[torch.Tensor], upstream_NKPQ: Any, g: Geometry) -> Any:
    """The output, and its gradients by images, filters and biases."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in given]
        y_NKPQ = compute(*leaves, g)
        return [y_NKPQ.detach(), *torch.autograd.grad(y_NKPQ, leaves, upstream_NKPQ)]


def errors(compute: Any, exactly: Any, g: Geometry, device: torch.device) -> list[float] | None:
    """Of the output and the three gradients, on standard normal numbers; None for a wrong size.

    Each is relative to what is summed without its signs: a sum that cancels is as exact as another.
    """
    sizes = (g.N, g.C, g.H, g.W), (g.K, g.C, g.e, g.e), (g.K,)
    given = [torch.randn(size).to(device) for size in sizes]
    wanted = (g.N, g.K, output_size(g.H, g), output_size(g.W, g))
    upstream = torch.randn(wanted).to(device)
    if compute(*given, g).shape != wanted:
        return None
    found = computed(compute, given, upstream, g)
    exact = computed(exactly, [t.double() for t in given], upstream.double(), g)
    summed = computed(exactly, [t.double().abs() for t in given], upstream.double().abs(), g)
    norm = torch.linalg.vector_norm
    parts = zip(found, exact, summed, strict=True)
    return [float(norm(f - e) / norm(s)) for f, e, s in parts]


def copies(g: Geometry) -> float:
    """Numbers in the columns as a multiple of those in the images."""
    x_NCHW = torch.zeros(g.N, g.C, g.H, g.W)
    return columns(x_NCHW, g).numel() / x_NCHW.numel()


def draw_errors(found: list[list[float]], tolerance: float, method: str) -> Any:
    """Relative errors of every geometry against the terms in each sum of its output."""
    from matplotlib.figure import Figure

    terms, *parts = np.array(found).T
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    names = ("output", "gradient by images", "by filters", "by biases")
    for values, name, colour, marker in zip(
        parts, names, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^v", strict=True
    ):
        axes.loglog(
            terms, np.maximum(values, 1e-9), marker, ms=4, c=colour, alpha=0.7, mew=0, label=name
        )
    axes.axhline(tolerance, color="0.2", ls=":", lw=1, label="tolerance")
    axes.axhline(2**-24, color="0.2", ls="--", lw=1, label="unit roundoff, 2⁻²⁴")
    axes.set(
        xlabel="terms in each sum of the output, C e e", ylabel="relative error, 1e-9 for less"
    )
    axes.set_title(f"{method}: {len(found)} geometries in float32, against float64")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    compute, exactly = method(cfg), vendor if cfg.method == "naive" else naive
    geometries = [*(drawn(cfg) for _ in range(cfg.shapes)), listing(cfg.images)]
    agreeing: list[int] = []
    found: list[list[float]] = []
    start = ctx.keep(agreeing=agreeing, found=found)

    def scores() -> dict[str, float]:
        shown = {"copies": copies(listing())} if cfg.method == "im2col" else {}
        worst = max(max(row[1:]) for row in found)
        return {"step": len(agreeing), "agreeing": sum(agreeing), "error": worst, **shown}

    yield
    per_row = -(-len(geometries) // cfg.rows)
    for at in range(start * per_row, len(geometries), per_row):
        for g in geometries[at : at + per_row]:
            off = errors(compute, exactly, g, ctx.device)
            agreeing.append(int(off is not None and max(off) <= cfg.tolerance))
            if off is not None:
                found.append([g.C * g.e**2, *off])
        yield scores
    ctx.figure("errors", lambda: draw_errors(found, cfg.tolerance, cfg.method))


AGREEMENT = (
    "this project's contract: all random geometries, and the listing's, within 1e-4 of float64 in "
    "the output and the three gradients; 5 seeds from 1000: in all, within 1.2e-7"
)
FULL = ("naive", "im2col", "torch", "kernel")
FEW, ALL = (Target("agreeing", n + 1, "max", AGREEMENT) for n in (9, 200))

TASK = Task(
    config=Config(),
    run=run,
    sections=("Full Description of the Convolutional Layer",),
    profiles={
        "smoke": {"shapes": 9, "rows": 2, "images": 2, "channels": 4, "filters": 4, "side": 8},
        "laptop": {"images": 3, "channels": 8, "filters": 8, "side": 10},
        "paper": {},
    },
    variants={
        "naive": {},
        "im2col": {"method": "im2col"},
        "torch": {"method": "torch"},
        "kernel": {"method": "kernel"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={
        "smoke": dict.fromkeys(FULL, FEW),
        "laptop": dict.fromkeys(FULL, ALL),
        "paper": dict.fromkeys(FULL, ALL),
    },
    claims=(
        Claim(
            "as columns of a matrix, each number of the listing's image is stored 5 times",
            "copies",
            left="im2col",
            right=5.0,
            mode="max",
            source="the layer of the section's listing, 5x5 with a stride of 2: e e / s s = 6.25 "
            "without a border, 5.49 on an image of 32x32",
        ),
        Claim(
            "this project's op is within 1e-5 of float64 on every geometry",
            "error",
            left="kernel",
            right=1e-5,
            mode="min",
            source="this project's contract: float32 sums of at most 1,600 terms, in every "
            "implementation of the op",
        ),
    ),
)
