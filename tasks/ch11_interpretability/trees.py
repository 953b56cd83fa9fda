"""Decision trees: one that can be read, and forests and boosted trees that are more often right.

Section "Decision Trees and Tree-Based Algorithms". The book grows a tree by the split that lowers
the impurity of the nodes most, and remedies its overfitting by many trees; it has no listing and
no figure. The question is whether a tumour of the breast cancer data is malignant, and the
yardstick is stratified cross-validation over `folds` parts, so that every row is tested once.
scikit-learn's own over 5 random splits: tree 0.932 (worst 0.902), forest 0.958 (0.944), boosting
0.964 (0.958).

- `cart` is one tree with Gini's impurity; a row is its accuracy at a limit of the depth.
- `entropy` is the same with the information gain.
- `bagging` averages trees grown on rows drawn with replacement (Breiman, 1996).
- `forest` also draws the square root of the features at each split (Breiman, 2001).
- `boosting` fits trees of depth 3 to the gradient of the log loss, with Newton's step in each leaf
  and a learning rate of 0.1 (Friedman, 2001).

All are ours (`tasks.models.trees`), grown for all folds at once. `test_accuracy` and
`train_accuracy` are means over folds, a step is a tree of each fold (for `cart` a level; the last
limit is more than it needs), `leaves` is how many rules one fold's model consists of, and
`library_gap` how far scikit-learn's tree is from ours on the same folds. Small ensembles and
shallow trees do nearly as well as whole ones, so half of the trees meet the target too; a forest's
first tree and a tree of one level do not.

Shapes: F folds, R rows, D features, K classes, T trees, M nodes.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task
from tasks.models.trees import Growth, Trees, grow, one_hot, tree


@dataclass(frozen=True)
class Config:
    data: str = "breast_cancer"
    method: Literal["forest", "cart", "bagging", "boosting"] = "forest"
    criterion: Literal["gini", "entropy"] = "gini"
    trees: Count = 200
    depth: Count = 3
    lr: Positive = 0.1
    folds: Annotated[int, Interval(ge=2)] = 10


def stratified(y_R: torch.Tensor, n_folds: int) -> torch.Tensor:
    """A random fold for each row, fold_R, with each class spread evenly over them."""
    order_R = torch.randperm(len(y_R))
    order_R = order_R[y_R[order_R].argsort(stable=True)]
    fold_R = torch.empty_like(order_R)
    fold_R[order_R] = torch.arange(len(y_R)) % n_folds
    return fold_R


def accuracies(output_FRK: torch.Tensor, y_R: torch.Tensor, test_FR: torch.Tensor) -> Any:
    """Accuracy over all rows when they are tested, and over folds on what they learnt from."""
    right_FR = output_FRK.argmax(2) == y_R
    return float(right_FR[test_FR].double().mean()), float(right_FR[~test_FR].double().mean())


def drawn_rows(train_FR: torch.Tensor, n_trees: int) -> torch.Tensor:
    """How often each row of a fold is drawn for each of its trees, weight_TR, folds innermost."""
    index_TR = torch.multinomial(
        train_FR.cpu().repeat(n_trees, 1), int(train_FR[0].sum()), replacement=True
    )
    ones_TR = torch.ones(index_TR.shape, dtype=torch.float64)
    weight_TR = torch.zeros(len(index_TR), train_FR.shape[1], dtype=torch.float64)
    return weight_TR.scatter_add_(1, index_TR, ones_TR).to(train_FR.device)


def boost(
    x_RD: torch.Tensor, y_R: torch.Tensor, train_FR: torch.Tensor, logit_FR: torch.Tensor, cfg: Any
) -> Trees:
    """Add one tree a fold to the logits of class 1, in place: leaf values sum r / sum p (1 - p)."""
    p_FR = logit_FR.sigmoid()
    residual_FR = y_R - p_FR
    trees = grow(x_RD, residual_FR[..., None], train_FR, Growth(depth=cfg.depth))
    leaf_FR = trees.leaf(x_RD)
    total_M2 = torch.zeros(len(trees.feature_M), 2, dtype=torch.float64, device=x_RD.device)
    parts_FR2 = torch.stack([residual_FR, p_FR * (1 - p_FR)], 2) * train_FR[..., None]
    total_M2.index_add_(0, leaf_FR.flatten(), parts_FR2.flatten(0, 1))
    logit_FR += cfg.lr * (total_M2[:, 0] / total_M2[:, 1].clamp_min(1e-12))[leaf_FR]
    return trees


def leaves(trees: Trees, n_folds: int) -> float:
    """Leaves of one fold's trees, on average."""
    own_M = torch.arange(len(trees.feature_M), device=trees.feature_M.device)
    return int((trees.child_M2[:, 0] == own_M).sum()) / n_folds


def library_accuracy(x_RD: Any, y_R: Any, fold_R: Any, criterion: str, seed: int) -> float:
    """scikit-learn's tree on the same folds."""
    from sklearn.tree import DecisionTreeClassifier

    x, y, fold, right = x_RD.cpu().numpy(), y_R.cpu().numpy(), fold_R.cpu().numpy(), 0
    for f in range(fold.max() + 1):
        model = DecisionTreeClassifier(criterion=criterion, random_state=seed)
        found = model.fit(x[fold != f], y[fold != f]).predict(x[fold == f])
        right += int((found == y[fold == f]).sum())
    return right / len(y)


def places(trees: Trees) -> dict[int, tuple[float, int]]:
    """Where the nodes of one tree are drawn: leaves side by side, parents between children."""
    child_M2, found, n_leaves = trees.child_M2.tolist(), {}, 0

    def place(node: int, depth: int) -> float:
        nonlocal n_leaves
        a, b = child_M2[node]
        if a == node:
            at, n_leaves = float(n_leaves), n_leaves + 1
        else:
            at = (place(a, depth + 1) + place(b, depth + 1)) / 2
        found[node] = (at, depth)
        return at

    place(0, 0)
    return found


def draw_tree(trees: Trees, names: tuple[str, ...], history: list[Any]) -> Any:
    """A tree of few levels, and accuracy against the limit of the depth."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    at = places(trees)
    shade = LinearSegmentedColormap.from_list("", ["#D55E00", "#FFFFFF", "#56B4E9"])
    for node, (x, depth) in at.items():
        benign, n = float(trees.value_MK[node, 1]), int(trees.weight_M[node])
        label = f"{n} rows\n{benign:.0%} benign"
        for child, answer in zip(trees.child_M2[node].tolist(), ("yes", "no"), strict=True):
            if child != node:
                cx, cy = at[child][0], -at[child][1]
                left.plot((x, cx), (-depth, cy), color="0.6", lw=1, zorder=0)
                left.text((x + cx) / 2, (cy - depth) / 2, answer, size=7, color="0.3")
                name = names[int(trees.feature_M[node])]
                label = f"{name}\n≤ {float(trees.threshold_M[node]):.4g}?\n{n} rows"
        box = {"boxstyle": "round", "fc": shade(benign), "ec": "0.4", "lw": 0.7}
        left.text(x, -depth, label, size=7.5, ha="center", va="center", bbox=box)
    left.set(xlim=(-0.6, max(x for x, _ in at.values()) + 0.6), ylim=(-trees.depth - 0.4, 0.4))
    left.axis("off")
    left.set_title(f"all rows, {trees.depth} levels: blue is benign, red malignant")
    steps, test, train = np.array(history).T
    right.plot(steps, train, "s--", color="#D55E00", ms=4, label="rows it was grown on")
    right.plot(steps, test, "o-", color="#0072B2", ms=4, label="rows left out")
    right.set(xlabel="levels allowed", ylabel="accuracy", title="cross-validation")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def draw_accuracy(history: list[Any], method: str) -> Any:
    """Accuracy against the number of trees."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    steps, test, train = np.array(history).T
    axes.semilogx(steps, train, "s--", color="#D55E00", ms=4, label="rows they were grown on")
    axes.semilogx(steps, test, "o-", color="#0072B2", ms=4, label="rows left out")
    axes.set(xlabel="trees", ylabel="accuracy", title=f"{method}, cross-validation")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def rows_of(cfg: Config) -> list[int]:
    """After how many trees, or levels, a row is yielded."""
    if cfg.method == "cart":
        return [1, 2, 3, 4, 5, 6, 8, 12]
    return sorted({min(cfg.trees, round(1.7**k)) for k in range(20)})


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    x_RD, y_R = (torch.cat(pair) for pair in zip(source.train, source.test, strict=True))
    x_RD, n_classes = x_RD.double(), len(source.class_names)
    fold_R = stratified(y_R.cpu(), cfg.folds).to(ctx.device)
    test_FR = fold_R == torch.arange(cfg.folds, device=ctx.device)[:, None]
    y_RK, train_FR = one_hot(y_R, n_classes).to(ctx.device), (~test_FR).double()
    output_FRK = torch.zeros(cfg.folds, *y_RK.shape, dtype=torch.float64, device=ctx.device)
    if cfg.method == "boosting":
        output_FRK[..., 1] = ((train_FR @ y_R.double()) / train_FR.sum(1)).logit()[:, None]
    entropy = cfg.criterion == "entropy"
    drawn = math.isqrt(x_RD.shape[1]) if cfg.method == "forest" else 0
    rows, history, size = rows_of(cfg), [], [0.0]
    start = ctx.keep(output=output_FRK, history=history, size=size)

    def scores(step: int) -> dict[str, float]:
        test, train = accuracies(output_FRK, y_R, test_FR)
        history.append([step, test, train])
        found = {"test_accuracy": test, "train_accuracy": train, "leaves": size[0]}
        if cfg.method == "cart" and step == rows[-1]:
            theirs = library_accuracy(x_RD, y_R, fold_R, cfg.criterion, ctx.seed)
            found |= {"library_accuracy": theirs, "library_gap": abs(theirs - test)}
        return {"step": step, **found}

    def step(done: int, total: int) -> None:
        if cfg.method == "cart":
            trees = grow(x_RD, y_RK, train_FR, Growth(depth=total, entropy=entropy))
            output_FRK[:] = trees.value_MK[trees.leaf(x_RD)]
            size[0] = leaves(trees, cfg.folds)
            return
        for _ in range(total - done if cfg.method == "boosting" else 0):
            trees = boost(x_RD, y_R, train_FR, output_FRK[..., 1], cfg)
            size[0] += leaves(trees, cfg.folds)
        if cfg.method != "boosting":
            trees = grow(x_RD, y_RK, drawn_rows(train_FR, total - done), Growth(features=drawn))
            found_TRK = trees.value_MK[trees.leaf(x_RD)]
            output_FRK.add_(found_TRK.view(-1, *output_FRK.shape).sum(0))
            size[0] += leaves(trees, cfg.folds)

    yield
    for done, total in list(zip([0, *rows[:-1]], rows, strict=True))[start:]:
        step(done, total)
        yield functools.partial(scores, total)
    if cfg.method == "cart":
        whole = tree(x_RD, y_RK, Growth(depth=3, entropy=entropy))
        ctx.figure("tree", lambda: draw_tree(whole, source.feature_names, history))
    else:
        ctx.figure("trees", lambda: draw_accuracy(history, cfg.method))


CONTRACT = (
    "this project's contract for the section, from scikit-learn's figures above; 5 seeds from 1000 "
    "have at least 0.917 (cart), 0.926 (entropy), 0.940 (bagging), 0.956 (forest, boosting)"
)
SECTION = "chapter 11, Decision Trees and Tree-Based Algorithms, as commonly quoted, not re-checked"
METHODS = {"cart": 0.90, "entropy": 0.90, "bagging": 0.94, "forest": 0.94, "boosting": 0.945}
TARGETS = {m: Target("test_accuracy", level, "max", CONTRACT) for m, level in METHODS.items()}

TASK = Task(
    config=Config(),
    run=run,
    sections=("Decision Trees and Tree-Based Algorithms",),
    profiles={
        "smoke": {"trees": 12, "folds": 3},
        "laptop": {"trees": 100, "folds": 5},
        "paper": {},
    },
    variants={
        "forest": {},
        "cart": {"method": "cart"},
        "entropy": {"method": "cart", "criterion": "entropy"},
        "bagging": {"method": "bagging"},
        "boosting": {"method": "boosting"},
    },
    targets={
        "smoke": {"forest": Target("test_accuracy", 0.93, "max", CONTRACT)},
        "laptop": TARGETS,
        "paper": TARGETS,
    },
    claims=(
        Claim(
            "a forest is right more often than one tree",
            "test_accuracy",
            left="forest",
            right="cart",
            mode="max",
            source=SECTION,
        ),
        Claim(
            "boosted trees are right more often than one tree",
            "test_accuracy",
            left="boosting",
            right="cart",
            mode="max",
            source=SECTION,
        ),
        Claim(
            "drawing features at each split makes averaged trees better",
            "test_accuracy",
            left="forest",
            right="bagging",
            mode="max",
            source="Breiman, Random Forests, 2001: trees that are less alike average better",
        ),
        Claim(
            "a tree without a limit fits the rows that it was grown on without an error",
            "train_accuracy",
            left="cart",
            right=1.0,
            mode="max",
            source=f"{SECTION}: a tree may be grown until it has learnt its data by heart",
        ),
        Claim(
            "our tree is within 1.5 points of scikit-learn's on the same folds",
            "library_gap",
            left="cart",
            right=0.015,
            mode="min",
            source=CONTRACT,
        ),
    ),
)
