"""Flat regions: how long do optimisers stay near a saddle, and how common are saddles?

Section "Flat Regions in the Error Surface". The book says that critical points of a surface of many
dimensions are hardly ever minima, and that descent lingers where the slope is small; it has no
listing and no figure.

`gd`, `noisy` (gradient plus normal noise), `momentum`, `rmsprop` and `rmsprop_corrected` descend at
one nominal learning rate, 0.01, from random starts near the saddle of x^2 - y^2, which has a slope
along y as soon as y is not 0, and near the monkey saddle x^3 - 3 x y^2, whose curvature is 0 as
well. A start has escaped once it is below -1. `saddle_steps` and `monkey_steps` are the medians
over starts of the updates needed, one that is still there counting as `steps` + 1, and
`slowest_steps` is the larger. `ridge` starts lie on y = 0 exactly, where x^2 - y^2 leads into the
saddle: only noise gets them off it. For `gd` y grows by 1 + 2 lr an update, so it needs
log(1 / y0) / log(1 + 2 lr) of them; `growth_error` is the relative error of the median to that, y0
being the median start.

The rate is nominal: for RMSProp it is a distance, for the others a distance for each unit of slope,
so one rate for all compares no two of them at their best. At 0.49 gradient descent takes 21 updates
and at 0.2 momentum 25, instead of 740 or more and 144; RMSProp at 0.001 takes 703. Nor is RMSProp's
first step its rate: PyTorch starts the running average of squared slopes at 0, so it is
lr / sqrt(0.01) = 10 lr, and only after hundreds of updates are steps about lr long. That is where
its 19 updates come from: `rmsprop_corrected` has Adam's bias correction (Adam with beta1 = 0 and
beta2 = 0.99), its first step is lr, and it takes 67.

`critical` looks for the critical points of a random surface, a Gaussian field of correlation
exp(-r^2 / 2) made of `features` cosines, in 1, 2, 4, 8 and 16 dimensions (a row each, `step` is the
dimension). The search minimises the gradient's length from random points (Levenberg and Marquardt),
so each critical point is found in proportion to its basin. `found_share` is the share of searches
that find one: at `laptop` 0.86 to 0.89 in one dimension and 0.57 to 0.63, some 600 of 1,000, in 16.
The others end where the gradient is shortest but not 0, along a direction without curvature; in 16
dimensions 3 to 13 eigenvalues are negative there, as at the points found, and ten times as many
iterations find 10 points more. What follows is of the points found only.

`index_rank` is Spearman's correlation of height with the share of negative eigenvalues of the
Hessian (Bray and Dean, 2007; Dauphin et al., 2014); `minima_share` is the share that are minima. In
one dimension half of them are, by symmetry, and in two a quarter. The book guesses "a third" for
one dimension and so 1 / 3^d for d; `guess_ratio` is the share found in four dimensions over that. A
tiny MLP in place of the random surface does not answer the question: what the search finds there
are the flat sets on which units are dead or alike.

Shapes: S kinds of start, N starts, R points, D dimensions, M cosines.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from scipy.stats import spearmanr

from suite.fields import BelowOne, Count, NonNegative, Positive
from suite.task import Claim, Target, Task

SADDLE, MONKEY, RIDGE = range(3)
LOW = -1.0
MEMORY = 0.99
DIMENSIONS = (1, 2, 4, 8, 16)
GUESSED_AT = 4
LOOKED_AT = (5, 10, 20, 50, 100, 200, 500, 1000, 1500, 2000)


@dataclass(frozen=True)
class Config:
    data: Literal["x^2 - y^2, x^3 - 3 x y^2 and random surfaces"] = (
        "x^2 - y^2, x^3 - 3 x y^2 and random surfaces"
    )
    method: Literal["rmsprop", "rmsprop_corrected", "gd", "critical"] = "rmsprop"
    lr: Positive = 0.01
    momentum: BelowOne = 0.0
    noise: NonNegative = 0.0
    starts: Count = 1001
    offset: Positive = 1e-6
    spread: NonNegative = 0.05
    steps: Count = 2000
    # Fewer cosines than dimensions have a singular Hessian; of fewer points or iterations all those
    # found may be alike, and nothing is ranked.
    features: Annotated[int, Interval(ge=16)] = 500
    points: Annotated[int, Interval(ge=30)] = 4000
    iterations: Annotated[int, Interval(ge=20)] = 60


def height(z_SN2: torch.Tensor) -> torch.Tensor:
    """The surface that each kind of start is on: f_SN."""
    x, y = z_SN2.unbind(-1)
    saddle = x**2 - y**2
    return torch.stack([saddle[SADDLE], (x**3 - 3 * x * y**2)[MONKEY], saddle[RIDGE]])


def slope(z_SN2: torch.Tensor) -> torch.Tensor:
    """The gradient of ``height``: g_SN2."""
    x, y = z_SN2.unbind(-1)
    saddle = torch.stack([2 * x, -2 * y], -1)
    monkey = torch.stack([3 * (x**2 - y**2), -6 * x * y], -1)
    return torch.stack([saddle[SADDLE], monkey[MONKEY], saddle[RIDGE]])


def placed(cfg: Config) -> torch.Tensor:
    """Random starts of every kind: z_SN2."""
    z_SN2 = torch.ones(3, cfg.starts, 2, dtype=torch.float64)
    z_SN2[SADDLE, :, 1] = cfg.offset * torch.randn(cfg.starts, dtype=torch.float64)
    z_SN2[MONKEY] = cfg.spread * torch.randn(cfg.starts, 2, dtype=torch.float64)
    z_SN2[RIDGE, :, 1] = 0.0
    return z_SN2


def optimizer_of(z_SN2: torch.Tensor, cfg: Config) -> torch.optim.Optimizer:
    if cfg.method == "rmsprop":
        return torch.optim.RMSprop([z_SN2], lr=cfg.lr, alpha=MEMORY)
    if cfg.method == "rmsprop_corrected":
        return torch.optim.Adam([z_SN2], lr=cfg.lr, betas=(0.0, MEMORY))
    return torch.optim.SGD([z_SN2], lr=cfg.lr, momentum=cfg.momentum)


def update(z_SN2: Any, optimizer: Any, escaped_SN: Any, cfg: Config) -> None:
    """One update of the starts that have not escaped; the others get no more gradient."""
    g_SN2 = slope(z_SN2.detach())
    if cfg.noise:
        g_SN2 = g_SN2 + cfg.noise * torch.randn(g_SN2.shape, dtype=g_SN2.dtype).to(g_SN2.device)
    z_SN2.grad = g_SN2.masked_fill(escaped_SN[..., None], 0.0)
    optimizer.step()


def growth(cfg: Config, y0: float) -> float:
    """Updates that plain gradient descent takes from y0 to 1, where x has gone to 0."""
    return math.log(1 / y0) / math.log(1 + 2 * cfg.lr)


def escapes(done: int, needed_SN: torch.Tensor, theory: float) -> dict[str, float]:
    """Medians of the updates needed, after ``done`` updates."""
    median_S = needed_SN.double().median(1).values.tolist()
    out_S = (needed_SN <= done).double().mean(1).tolist()
    return {
        "step": done,
        "saddle_steps": median_S[SADDLE],
        "monkey_steps": median_S[MONKEY],
        "slowest_steps": max(median_S[SADDLE], median_S[MONKEY]),
        "ridge_steps": median_S[RIDGE],
        "ridge_escaped": out_S[RIDGE],
        "escaped": (out_S[SADDLE] + out_S[MONKEY]) / 2,
        "growth_error": abs(median_S[SADDLE] / theory - 1),
    }


def field(x_RD: torch.Tensor, w_MD: torch.Tensor, phase_M: torch.Tensor) -> tuple[Any, Any, Any]:
    """sqrt(2 / M) sum of cos(w x + phase): height f_R, gradient g_RD and Hessian h_RDD."""
    scale = math.sqrt(2 / len(w_MD))
    z_RM = x_RD @ w_MD.T + phase_M
    cos_RM = scale * z_RM.cos()
    outer = (w_MD[:, :, None] * w_MD[:, None, :]).flatten(1)
    h_RDD = -(cos_RM @ outer).view(-1, *[w_MD.shape[1]] * 2)
    return cos_RM.sum(1), -scale * z_RM.sin() @ w_MD, h_RDD


def critical_points(cfg: Config, d: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Height f_R and share of negative eigenvalues index_R of the critical points found."""
    w_MD = torch.randn(cfg.features, d, dtype=torch.float64).to(device)
    phase_M = 2 * math.pi * torch.rand(cfg.features, dtype=torch.float64).to(device)
    x_RD = 100 * torch.randn(cfg.points, d, dtype=torch.float64).to(device)
    f, g, h = field(x_RD, w_MD, phase_M)
    damping = torch.full_like(f, 1e-2)
    for _ in range(cfg.iterations):
        values, vectors = torch.linalg.eigh(h)
        # (H^2 + damping)^-1 H g, which where H is indefinite still shortens g.
        share = (values / (values**2 + damping[:, None]))[..., None]
        step = vectors @ (share * (vectors.mT @ g[..., None]))
        tried = x_RD - step[..., 0]
        f_new, g_new, h_new = field(tried, w_MD, phase_M)
        better = (g_new**2).sum(1) < (g**2).sum(1)
        x_RD, g = (torch.where(better[:, None], a, b) for a, b in ((tried, x_RD), (g_new, g)))
        f, h = torch.where(better, f_new, f), torch.where(better[:, None, None], h_new, h)
        damping = torch.where(better, damping / 4, damping * 8).clamp(1e-14, 1e6)
    found = (g**2).sum(1) < 1e-18
    return f[found], (torch.linalg.eigvalsh(h[found]) < 0).double().mean(1)


def ranked(
    d: int, f_R: np.ndarray, index_R: np.ndarray, points: int, rows: list[list[float]]
) -> dict[str, float]:
    """What the points found by ``points`` searches say of one dimension; adds it to ``rows``."""
    share, rank = float((index_R == 0).mean()), float(spearmanr(index_R, f_R)[0])
    rows.append([d, share, len(f_R), rank])
    scores = {"step": d, "found": len(f_R), "found_share": len(f_R) / points}
    scores |= {"index_rank": rank, "minima_share": share}
    if d >= GUESSED_AT:
        scores["guess_ratio"] = rows[DIMENSIONS.index(GUESSED_AT)][1] * 3**GUESSED_AT
    return scores


def draw_paths(trail: np.ndarray, cfg: Config) -> Any:
    """One start's way over each surface, and its height update by update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, 101), np.linspace(-1.3, 1.3, 101))
    f_S = {SADDLE: x**2 - y**2, MONKEY: x**3 - 3 * x * y**2}
    name = "momentum" if cfg.momentum else "noisy gd" if cfg.noise else cfg.method
    name = name.replace("_", ", ")
    names = {SADDLE: "x² − y²", MONKEY: "x³ − 3xy² (monkey saddle)"}
    for ax, kind, colour in ((left, SADDLE, "#0072B2"), (middle, MONKEY, "#D55E00")):
        heights = height(torch.as_tensor(trail).transpose(0, 1))[kind].numpy()
        below = np.flatnonzero(heights <= LOW)
        last = below[0] + 1 if len(below) else len(heights)
        ax.contourf(x, y, f_S[kind], levels=21, cmap="Greys", alpha=0.6)
        ax.plot(*trail[:last, kind].T, ".-", color=colour, ms=4, lw=1)
        ax.plot(*trail[0, kind], "o", color="black", ms=6, mfc="none")
        ax.set(title=names[kind], xlabel="x", ylabel="y", aspect="equal")
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        label = f"{names[kind]}: {last - 1} updates"
        right.plot(np.arange(last), heights[:last], color=colour, label=label)
    right.axhline(LOW, color="0.5", ls="--", lw=1)
    right.set(xlabel="updates", ylabel="height", title=f"{name}: one start of each")
    right.set_ylim(-1.4, 1.1)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def draw_critical(rows: list[list[float]], f: np.ndarray, index: np.ndarray, searches: int) -> Any:
    """Height against index, and the share of minima against the dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(index, f, ".", color="#0072B2", ms=4, alpha=0.3)
    d, share, points, rank = np.array(rows).T
    left.set(xlabel="share of negative eigenvalues", ylabel="height")
    left.set_title(
        f"d = {int(d[-1])}: {int(points[-1])} critical points of {searches} searches, "
        f"rank {rank[-1]:.2f}",
        size=10,
    )
    right.semilogy(d[share > 0], share[share > 0], "o-", color="#0072B2", label="found, if any")
    right.semilogy(d, 3.0**-d, color="#D55E00", label="the book's guess, 1 / 3^d")
    right.semilogy(d, 1 / points, ":", color="0.5", label="one of those found")
    right.set(xlabel="dimensions", ylabel="share of minima", ylim=(1e-5, 1))
    right.set_title("how many critical points are minima?")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    z_SN2 = placed(cfg)
    theory = growth(cfg, float(z_SN2[SADDLE, :, 1].abs().median()))
    z_SN2 = z_SN2.to(ctx.device)
    optimizer = optimizer_of(z_SN2, cfg)
    needed_SN = torch.full(z_SN2.shape[:2], cfg.steps + 1, device=ctx.device)
    escaped_SN = torch.zeros_like(needed_SN, dtype=torch.bool)
    trail = torch.zeros(cfg.steps + 1, 3, 2, dtype=torch.float64)
    trail[0] = z_SN2[:, 0]
    rows: list[list[float]] = []
    start = ctx.keep(
        z=z_SN2, optimizer=optimizer, needed=needed_SN, out=escaped_SN, trail=trail, rows=rows
    )

    yield
    if cfg.method == "critical":
        for d in DIMENSIONS[start:]:
            found = [v.cpu().numpy() for v in critical_points(cfg, d, ctx.device)]
            row = ranked(d, *found, cfg.points, rows)
            if d == DIMENSIONS[-1]:
                ctx.figure("critical", functools.partial(draw_critical, rows, *found, cfg.points))
            yield row
        return
    looked_at = [k for k in LOOKED_AT if k < cfg.steps] + [cfg.steps]
    for done, last in list(itertools.pairwise([0, *looked_at]))[start:]:
        for k in range(done + 1, last + 1):
            update(z_SN2, optimizer, escaped_SN, cfg)
            new = (height(z_SN2) <= LOW) & ~escaped_SN
            needed_SN[new] = k
            escaped_SN |= new
            trail[k] = z_SN2[:, 0]
        yield escapes(last, needed_SN, theory)
    ctx.figure("paths", lambda: draw_paths(trail.numpy(), cfg))


SECTION = "chapter 6, Flat Regions in the Error Surface, as commonly quoted, not re-checked"
ESCAPE = Target(
    "slowest_steps",
    25,
    "min",
    "calibrated: 20 seeds from 1000, all 19, and after half of those updates none is out; at the "
    "same nominal rate gd needs 741 or more, momentum 143, and RMSProp with bias correction 67",
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Flat Regions in the Error Surface",),
    profiles={
        "smoke": {"starts": 101, "points": 300, "features": 100},
        "laptop": {"points": 1000, "features": 300},
        "paper": {},
    },
    variants={
        "rmsprop": {},
        "rmsprop_corrected": {"method": "rmsprop_corrected"},
        "gd": {"method": "gd"},
        "noisy": {"method": "gd", "noise": 0.1},
        "momentum": {"method": "gd", "momentum": 0.9},
        "critical": {"method": "critical"},
    },
    targets={profile: {"rmsprop": ESCAPE} for profile in ("smoke", "laptop", "paper")},
    claims=(
        Claim(
            "at one nominal rate RMSProp leaves a flat region in fewer updates than gradient "
            "descent",
            "slowest_steps",
            left="rmsprop",
            right="gd",
            mode="min",
            source="chapter 6, RMSProp: the step is divided by the recent size of the gradient",
            note="A rate is a distance for RMSProp, and for gradient descent a distance for each "
            "unit of slope: at 0.49 that takes 21 updates.",
        ),
        Claim(
            "at one nominal rate RMSProp leaves it in fewer updates than momentum",
            "slowest_steps",
            left="rmsprop",
            right="momentum",
            mode="min",
            source="theory: a step does not depend on how small the slope is",
            note="At a rate of 0.2 momentum takes 25 updates.",
        ),
        Claim(
            "with bias correction, whose first step is the rate, it still does",
            "slowest_steps",
            left="rmsprop_corrected",
            right="momentum",
            mode="min",
            source="theory: a step does not depend on how small the slope is",
            note="At a rate of 0.2 momentum takes 25 updates.",
        ),
        Claim(
            "RMSProp's first steps, which bias correction makes shorter, save it updates",
            "slowest_steps",
            left="rmsprop",
            right="rmsprop_corrected",
            mode="min",
            source="torch.optim.RMSprop: the running average starts at 0, so the first step is "
            "lr / sqrt(1 - 0.99), ten times the rate",
        ),
        Claim(
            "at one rate momentum leaves it in fewer updates than gradient descent",
            "slowest_steps",
            left="momentum",
            right="gd",
            mode="min",
            source="chapter 6, Momentum-Based Optimization: velocity builds up where slopes agree",
        ),
        Claim(
            "noise in the gradient leads off a ridge that leads into the saddle",
            "ridge_escaped",
            left="noisy",
            right="gd",
            mode="max",
            margin=0.9,
            source=f"{SECTION}: minibatches are noisy, which helps to get past saddles",
        ),
        Claim(
            "the scaling by RMSProp does not lead off the ridge",
            "ridge_escaped",
            left="rmsprop",
            right=0.0,
            mode="min",
            source="theory: the slope across the ridge is exactly 0, and 0 scaled is 0",
        ),
        Claim(
            "near a saddle the distance grows by 1 + 2 lr an update",
            "growth_error",
            left="gd",
            right=0.05,
            mode="min",
            source="theory: y <- (1 + 2 lr) y; within 5 % is this project's contract",
        ),
        Claim(
            "the higher a critical point found, the larger its share of negative eigenvalues",
            "index_rank",
            left="critical",
            right=0.7,
            mode="max",
            source="Bray and Dean (2007) for Gaussian fields; 0.7 is this project's contract",
        ),
        Claim(
            "of the critical points found in 16 dimensions less than one in 500 is a minimum",
            "minima_share",
            left="critical",
            right=0.002,
            mode="min",
            source=f"{SECTION}: minima become exponentially rarer with the dimension",
        ),
        Claim(
            "in d dimensions one in 3^d is a minimum, here for d = 4",
            "guess_ratio",
            left="critical",
            right=1.0,
            mode="min",
            source=f"{SECTION}, said there to be a loose guess",
            note="The book guesses that minima, maxima and inflections are alike common in one "
            "dimension; on a random surface a critical point is never an inflection, so half and "
            "not a third are minima, and in four dimensions three times as many as guessed.",
        ),
    ),
)
