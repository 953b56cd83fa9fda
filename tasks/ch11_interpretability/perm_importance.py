"""Permutation importance: how much worse does a model get when one feature is shuffled?

Section "Permutation Feature Importance". A forest learns Friedman's function of x1 to x5 from noisy
rows that also have five features without any effect: four coin flips, and an `id` that is different
in each row. The importance of a feature is by how much the mean squared error rises when its column
is permuted, as a share of the target's variance, averaged over `repeats` permutations (Breiman,
2001; Fisher, Rudin and Dominici, 2019). The book has no listing and no figure; the truth is known
by construction.

- `permutation` is that, on rows held out from training.
- `impurity` adds up by how much the splits at a feature lower the impurity, without other rows.
- `training` permutes the rows that the forest has learnt from.
- `correlated` has one more feature, x4 with a little noise, and permutes each of the two alone.
- `grouped` has it as well and permutes x4 and its copy together.

`precision_at_5` is the share of x1 to x5 among the five most important features (of all but the
copy). `noise_share` is what the features without effect have of all importance, and `id_share` the
id alone, negative importances counting as none; `x4` is the importance of x4, `r2` how good the
forest is on the held-out rows. A step is a column permuted. What `impurity` gives are shares of
their sum, not of the variance.

Shapes: R rows, D features, P repeats, G groups of features.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval

from suite.fields import Count, Natural, NonNegative
from suite.task import Claim, Target, Task
from tasks.models.friedman import friedman, r2
from tasks.models.trees import Growth, forest

TRUE, COINS = 5, 4
COPY = "copy of x4"


@dataclass(frozen=True)
class Config:
    data: Literal["Friedman's function, with columns that have no effect"] = (
        "Friedman's function, with columns that have no effect"
    )
    method: Literal["permutation", "impurity", "grouped"] = "permutation"
    on: Literal["test", "training"] = "test"
    copies: Natural = 0
    rows: Annotated[int, Interval(ge=10)] = 2000
    noise: NonNegative = 3.0
    copy_noise: NonNegative = 0.02
    trees: Count = 200
    features: Count = 4
    repeats: Count = 50

    def __post_init__(self) -> None:
        if self.method == "grouped" and not self.copies:
            raise ValueError("copies=0: `grouped` permutes a feature together with its copy")


def table(n: int, cfg: Config) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Rows x_RD, their noisy targets y_R, and the names of the columns."""
    x_RD = torch.rand(n, TRUE, dtype=torch.float64)
    y_R = friedman(x_RD) + cfg.noise * torch.randn(n, dtype=torch.float64)
    coins_RD = torch.randint(2, (n, COINS)).double()
    columns = [x_RD, coins_RD, torch.randperm(n)[:, None].double() / n]
    names = [f"x{i + 1}" for i in range(TRUE)] + [f"coin {i + 1}" for i in range(COINS)] + ["id"]
    for _ in range(cfg.copies):
        columns.append(x_RD[:, 3:4] + cfg.copy_noise * torch.randn(n, 1, dtype=torch.float64))
        names.append(COPY)
    return torch.cat(columns, 1), y_R, names


def permuted(x_RD: torch.Tensor, group: list[int], repeats: int) -> torch.Tensor:
    """Copies of the rows with the group's columns permuted together, x_PRD."""
    x_PRD = x_RD.expand(repeats, -1, -1).clone()
    order_PR = torch.rand(repeats, len(x_RD)).argsort(1).to(x_RD.device)
    for d in group:
        x_PRD[:, :, d] = x_RD[:, d][order_PR]
    return x_PRD


def importances(
    model: Any, x_RD: torch.Tensor, y_R: torch.Tensor, groups: list[list[int]], repeats: int
) -> torch.Tensor:
    """By how much the squared error rises with each permutation, over the variance: GP."""
    base = ((model(x_RD)[:, 0] - y_R) ** 2).mean()
    found_GP = []
    for group in groups:
        x_PRD = permuted(x_RD, group, repeats)
        error_PR = (model(x_PRD.flatten(0, 1))[:, 0].view(repeats, -1) - y_R) ** 2
        found_GP.append(error_PR.mean(1) - base)
    return torch.stack(found_GP) / y_R.var(correction=0)


def summary(importance_G: torch.Tensor, names: list[str]) -> dict[str, float]:
    """What the importances say; a copy of its own has no rank, for it is neither true nor noise."""
    ranked = [(float(v), n) for v, n in zip(importance_G, names, strict=True) if n != COPY]
    best = [name for _, name in sorted(ranked, reverse=True)[:TRUE]]
    positive_G = importance_G.clamp_min(0)
    share_G = (positive_G / positive_G.sum()).tolist()
    noise = {n: s for n, s in zip(names, share_G, strict=True) if n == "id" or "coin" in n}
    return {
        "precision_at_5": sum(n.startswith("x") for n in best) / TRUE,
        "noise_share": sum(noise.values()),
        "id_share": noise["id"],
        "x4": max(v for v, n in ranked if n.startswith("x4")),
    }


def draw_importances(importance_GP: torch.Tensor, names: list[str], title: str) -> Any:
    """Bars with the middle 95 % of the permutations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    value_G = importance_GP.mean(1).cpu().numpy()
    low_G, high_G = np.quantile(importance_GP.cpu().numpy(), (0.025, 0.975), axis=1)
    order = value_G.argsort()
    colours = ["#0072B2" if "x" in names[g] else "#D55E00" for g in order]
    ends = np.stack([value_G - low_G, high_G - value_G])[:, order].clip(0)
    axes.barh(range(len(order)), value_G[order], color=colours, xerr=ends, ecolor="0.2", capsize=2)
    axes.set_yticks(range(len(order)), [names[g] for g in order])
    unit = "share of all" if title == "impurity" else "rise of the error / variance"
    axes.set(xlabel=f"importance: {unit}", title=f"{title}: blue has an effect, red has none")
    axes.axvline(0, color="0.5", lw=0.8)
    axes.grid(alpha=0.3, axis="x")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    x_RD, y_R, names = table(2 * cfg.rows, cfg)
    x_RD, y_R = x_RD.to(ctx.device), y_R.to(ctx.device)
    (x_train, x_test), (y_train, y_test) = x_RD.chunk(2), y_R.chunk(2)
    groups = [[d] for d in range(len(names))]
    if cfg.method == "grouped":
        groups[3], names[3] = [3, len(names) - 1], "x4 and its copy"
        groups, names = groups[:-1], names[:-1]
    found_GP = torch.zeros(len(groups), cfg.repeats, dtype=torch.float64, device=ctx.device)
    start = ctx.keep(found=found_GP)

    def scores() -> dict[str, float]:
        explained = r2(model(x_test)[:, 0], y_test)
        return {"step": found_GP.numel(), "r2": explained, **summary(found_GP.mean(1), names)}

    yield
    if start:
        return
    model = forest(x_train, y_train[:, None], cfg.trees, Growth(features=cfg.features))
    if cfg.method == "impurity":
        found_GP[:] = model.importance(len(names))[:, None]
    else:
        rows = (x_train, y_train) if cfg.on == "training" else (x_test, y_test)
        found_GP[:] = importances(model, *rows, groups, cfg.repeats)
    yield scores
    title = f"{cfg.method}, on {cfg.on} rows" if cfg.method != "impurity" else cfg.method
    ctx.figure("importances", lambda: draw_importances(found_GP, names, title))


CONTRACT = "this project's contract for the section"
SECTION = "chapter 11, Permutation Feature Importance, as commonly quoted, not re-checked"
ALL_FIVE = Target(
    "precision_at_5",
    1.0,
    "max",
    f"{CONTRACT}: those with an effect come first; so with 8 of 8 seeds, by chance half of them",
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Methods for Evaluating Feature Importance: Permutation Feature Importance",),
    profiles={
        "smoke": {"rows": 200, "trees": 20, "repeats": 3},
        "laptop": {"rows": 500, "trees": 60, "repeats": 20},
        "paper": {},
    },
    variants={
        "permutation": {},
        "impurity": {"method": "impurity"},
        "training": {"on": "training"},
        "correlated": {"copies": 1},
        "grouped": {"copies": 1, "method": "grouped"},
    },
    targets={
        "smoke": {"permutation": Target("precision_at_5", 0.6, "max", f"{CONTRACT}; 200 rows")},
        "laptop": {"permutation": ALL_FIVE},
        "paper": {"permutation": ALL_FIVE},
    },
    claims=(
        Claim(
            "permutation credits an id that is different in each row less than impurity does",
            "id_share",
            left="permutation",
            right="impurity",
            mode="min",
            source="Strobl et al., Bias in random forest variable importance measures, 2007",
        ),
        Claim(
            "features without effect seem less important on held-out rows than on training rows",
            "noise_share",
            left="permutation",
            right="training",
            mode="min",
            source="theory: what a forest has learnt by heart it loses when its rows are permuted",
        ),
        Claim(
            "beside a copy of it x4 seems less important",
            "x4",
            left="correlated",
            right="permutation",
            mode="min",
            margin=0.1,
            source=f"{SECTION}: correlated features share their importance",
        ),
        Claim(
            "permuted together, x4 and its copy are more important than x4 beside its copy",
            "x4",
            left="grouped",
            right="correlated",
            mode="max",
            source="theory: no column is left that says the same",
        ),
    ),
)
