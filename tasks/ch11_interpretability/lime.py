"""LIME: does a linear model around one prediction find the features that the model uses?

Section "LIME". Around an instance x LIME draws perturbed inputs, asks the model for its
predictions, weighs each input by exp(-distance^2 / width^2), and fits a sparse linear model: the
`budget` largest of its weights are the explanation (Ribeiro, Singh and Guestrin, 2016). The book
has no listing and no figure. The paper asks models that are known to use few features: a logistic
regression that uses ten, whose gold set are those ten, and a decision tree, whose gold set are the
features on the instance's path; `recall` is the share of the gold set in an explanation, averaged
over test instances. For reviews of books the paper reports 92.1 and 97.0 % for LIME with a budget
of 10, as commonly quoted, not re-checked.

Here the instances are tumours of the breast cancer data, 30 columns, standardised; the perturbed
inputs are normal around the instance with the columns' standard deviations, the width is 0.75 times
the square root of 30, as in the authors' package, and the largest of ridge regression's weights are
kept. That is a departure from the paper's data, reviews as sets of words.

- `lime` explains the logistic regression, `lime_tree` the tree.
- `few` draws one in fifty of the inputs.
- `narrow` has a width of 0.1: hardly any of the inputs has a weight then.
- `parzen` takes the largest components of the gradient of a Parzen window classifier in place of
  the model (Baehrens et al., 2010).
- `greedy` sets, one after another, the feature to its mean that lowers the predicted class's
  probability most (Martens and Provost, 2014).
- `random` draws the features.

`fidelity` is the weighted R^2 of LIME's linear model on perturbed inputs of its own, averaged over
instances, and `effective` how many of the inputs it rests on, (sum w)^2 / sum w^2. A step is an
evaluation of the model for one instance.

Shapes: N explained instances, R rows, D features, S perturbed inputs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from suite.fields import Count, NonNegative, Positive
from suite.task import Claim, Target, Task
from tasks.models.trees import Growth, Trees, one_hot, tree

Model = Callable[[torch.Tensor], torch.Tensor]
LABELS = {
    "lime": "weight, per standard deviation of the feature",
    "parzen": "gradient, per standard deviation of the feature",
    "greedy": "place, the largest being taken out first",
    "random": "random number",
}


@dataclass(frozen=True)
class Config:
    data: str = "breast_cancer"
    model: Literal["logistic", "tree"] = "logistic"
    method: Literal["lime", "parzen", "greedy", "random"] = "lime"
    used: Count = 10
    budget: Count = 10
    width: Positive = 0.75
    share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    samples: Count = 15000
    ridge: NonNegative = 1.0
    instances: Count = 113
    depth: Count = 8
    iterations: Count = 4000
    parzen: Positive = 2.0


def sparse_logistic(x_RD: torch.Tensor, y_R: torch.Tensor, used: int, most: int) -> torch.Tensor:
    """Weights of a logistic regression that uses ``used`` features, w_D, and its offset last.

    Iterative hard thresholding (Blumensath and Davies, 2009): a gradient step, then all but the
    largest weights are set to 0.
    """
    x_RE = torch.cat([x_RD, torch.ones_like(x_RD[:, :1])], 1)
    w_E = torch.zeros_like(x_RE[0])
    # The loss's curvature is at most a quarter of the largest eigenvalue.
    rate = 4 * len(x_RE) / torch.linalg.matrix_norm(x_RE, 2) ** 2
    for _ in range(most):
        slope_E = x_RE.T @ ((x_RE @ w_E).sigmoid() - y_R) / len(x_RE) + 1e-3 * w_E
        w_E = w_E - rate * slope_E
        kept = w_E[:-1].abs().topk(used).indices
        mask_E = torch.zeros_like(w_E)
        mask_E[kept] = mask_E[-1] = 1
        w_E = w_E * mask_E
    return w_E


def on_path(trees: Trees, x_ND: torch.Tensor) -> torch.Tensor:
    """The features that a tree asks for on each instance's way, gold_ND."""
    node_N = torch.zeros(len(x_ND), dtype=torch.long, device=x_ND.device)
    gold_ND = torch.zeros_like(x_ND, dtype=torch.bool)
    for _ in range(trees.depth):
        feature_N = trees.feature_M[node_N]
        inner_N = trees.child_M2[node_N, 0] != node_N
        gold_ND[inner_N.nonzero()[:, 0], feature_N[inner_N]] = True
        x_N = x_ND.gather(1, feature_N[:, None])[:, 0]
        node_N = trees.child_M2[node_N, (x_N > trees.threshold_M[node_N]).long()]
    return gold_ND


def proximity(offset_NSD: torch.Tensor, width: float) -> torch.Tensor:
    """exp(-d^2 / width^2), the width given as a share of the square root of the features."""
    squared_NS = (offset_NSD**2).sum(2)
    return torch.exp(-squared_NS / (width**2 * offset_NSD.shape[2]))


def local_fit(
    offset_NSD: torch.Tensor, f_NS: torch.Tensor, weight_NS: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted ridge regression around each instance: weights w_ND and weighted R^2_N.

    The offset is free: inputs and predictions are centred by their weighted means.
    """
    share_NS1 = (weight_NS / weight_NS.sum(1, keepdim=True))[..., None]
    centred_NSD = offset_NSD - (share_NS1 * offset_NSD).sum(1, keepdim=True)
    target_NS1 = (f_NS - (share_NS1[..., 0] * f_NS).sum(1, keepdim=True))[..., None]
    weighted_NDS = (weight_NS[..., None] * centred_NSD).mT
    eye_DD = torch.eye(offset_NSD.shape[2], dtype=f_NS.dtype, device=f_NS.device)
    w_ND1 = torch.linalg.solve(
        weighted_NDS @ centred_NSD + ridge * eye_DD, weighted_NDS @ target_NS1
    )
    error_N = (share_NS1 * (target_NS1 - centred_NSD @ w_ND1) ** 2).sum((1, 2))
    total_N = (share_NS1 * target_NS1**2).sum((1, 2))
    return w_ND1[..., 0], 1 - error_N / total_N.clamp_min(1e-12)


def lime(model: Model, x_ND: torch.Tensor, cfg: Config) -> tuple[torch.Tensor, dict[str, float]]:
    """LIME's weights for each instance, w_ND, and how well they rest."""
    n, found = round(cfg.share * cfg.samples), []
    for x_1D in x_ND.split(1):
        offset_1SD = torch.randn(1, n, x_ND.shape[1], dtype=x_ND.dtype).to(x_ND)
        weight_1S = proximity(offset_1SD, cfg.width)
        f_1S = model((x_1D + offset_1SD)[0])[None]
        w_1D, fidelity_1 = local_fit(offset_1SD, f_1S, weight_1S, cfg.ridge)
        effective_1 = weight_1S.sum(1) ** 2 / (weight_1S**2).sum(1)
        found.append((w_1D, fidelity_1, effective_1))
    w_ND, fidelity_N, effective_N = (torch.cat(part) for part in zip(*found, strict=True))
    return w_ND, {"fidelity": float(fidelity_N.mean()), "effective": float(effective_N.median())}


def parzen(x_ND: torch.Tensor, x_RD: torch.Tensor, class_R: torch.Tensor, width: float) -> Any:
    """Gradients of a Parzen window estimate of P(class 1), w_ND."""
    with torch.enable_grad():
        x_ND = x_ND.clone().requires_grad_()
        kernel_NR = torch.softmax(-(torch.cdist(x_ND, x_RD) ** 2) / (2 * width**2), 1)
        (w_ND,) = torch.autograd.grad((kernel_NR @ class_R).sum(), x_ND)
    return w_ND


def greedy(model: Model, x_ND: torch.Tensor, budget: int) -> torch.Tensor:
    """The order in which features are set to their mean, as scores: the first has the largest."""
    x_ND, score_ND = x_ND.clone(), torch.zeros_like(x_ND)
    side_N = torch.where(model(x_ND) > 0.5, 1.0, -1.0)
    N, d = x_ND.shape
    for place in range(budget):
        tried_NDD = x_ND[:, None] * (1 - torch.eye(d, dtype=x_ND.dtype, device=x_ND.device))
        f_ND = side_N[:, None] * model(tried_NDD.flatten(0, 1)).view(N, d)
        chosen_N1 = f_ND.masked_fill(score_ND > 0, torch.inf).argmin(1, keepdim=True)
        score_ND.scatter_(1, chosen_N1, float(budget - place))
        x_ND.scatter_(1, chosen_N1, 0.0)
    return score_ND


def recall(score_ND: torch.Tensor, gold_ND: torch.Tensor, budget: int) -> torch.Tensor:
    """The share of each gold set among the features with the largest scores, in size."""
    best_NK = score_ND.abs().topk(budget, 1).indices
    return gold_ND.gather(1, best_NK).sum(1) / gold_ND.sum(1).clamp_min(1)


def draw_explanations(
    score_ND: Any, gold_ND: Any, f_N: Any, names: tuple[str, ...], title: str, label: str
) -> Any:
    """The largest scores of two instances, those of the gold set in blue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    sure, unsure = int(f_N.argmax()), int((f_N - 0.5).abs().argmin())
    for ax, n in zip(figure.subplots(1, 2), (sure, unsure), strict=True):
        best = score_ND[n].abs().argsort(descending=True)[:10].flip(0).tolist()
        colours = ["#0072B2" if gold_ND[n, d] else "#D55E00" for d in best]
        ax.barh(range(len(best)), score_ND[n, best].cpu().numpy(), color=colours)
        ax.set_yticks(range(len(best)), [names[d] for d in best])
        ax.axvline(0, color="0.5", lw=0.8)
        ax.grid(alpha=0.3, axis="x")
        ax.set(xlabel=label)
        ax.set_title(f"P(benign) = {float(f_N[n]):.2f}", size=10)
    figure.suptitle(f"{title}: blue is used by the model, red is not", size=11)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    x_RD, x_ND = (t[0].double() for t in (source.train, source.test))
    std_D, mean_D = torch.std_mean(x_RD, 0)
    x_RD, x_ND = (x_RD - mean_D) / std_D, ((x_ND - mean_D) / std_D)[: cfg.instances]
    y_R = source.train[1].double()
    if cfg.model == "logistic":
        w_E = sparse_logistic(x_RD, y_R, cfg.used, cfg.iterations)
        gold_ND = (w_E[:-1] != 0).expand_as(x_ND)

        def model(x: torch.Tensor) -> torch.Tensor:
            return (x @ w_E[:-1] + w_E[-1]).sigmoid()
    else:
        trees = tree(x_RD, one_hot(source.train[1], 2), Growth(depth=cfg.depth))
        gold_ND = on_path(trees, x_ND)

        def model(x: torch.Tensor) -> torch.Tensor:
            return trees(x)[:, 1]

    found_ND = torch.zeros_like(x_ND)
    start = ctx.keep(found=found_ND)

    def scores(step: int, extra: dict[str, float]) -> dict[str, float]:
        recall_N = recall(found_ND, gold_ND, cfg.budget)
        right = (model(x_ND) > 0.5) == (source.test[1][: cfg.instances] == 1)
        return {
            "step": step,
            "recall": float(recall_N.mean()),
            "gold": float(gold_ND.sum(1).double().mean()),
            "model_accuracy": float(right.double().mean()),
            **extra,
        }

    yield
    if start:
        return
    extra: dict[str, float] = {}
    if cfg.method == "lime":
        found_ND[:], extra = lime(model, x_ND, cfg)
        evaluations = round(cfg.share * cfg.samples)
    elif cfg.method == "greedy":
        found_ND[:], evaluations = greedy(model, x_ND, cfg.budget), cfg.budget * x_ND.shape[1]
    elif cfg.method == "parzen":
        found_ND[:], evaluations = parzen(x_ND, x_RD, (model(x_RD) > 0.5).double(), cfg.parzen), 0
    else:
        found_ND[:], evaluations = torch.rand(x_ND.shape).to(x_ND), 0
    yield lambda: scores(evaluations, extra)
    draw = functools.partial(
        draw_explanations,
        found_ND,
        gold_ND,
        model(x_ND),
        source.feature_names,
        f"{cfg.method} of a {cfg.model} model",
        LABELS[cfg.method],
    )
    ctx.figure("explanations", draw)


CONTRACT = "this project's contract for the section"

PAPER = "Ribeiro, Singh and Guestrin (2016), section 5.2, as commonly quoted, not re-checked"
FOUND = Target(
    "recall",
    0.9,
    "max",
    f"{CONTRACT}; 5 seeds from 1000 have 0.975 or more with 5,000 inputs, 0.70 or less with 100",
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("LIME",),
    profiles={
        "smoke": {"samples": 1000, "instances": 8, "iterations": 500},
        "laptop": {"samples": 5000},
        "paper": {},
    },
    variants={
        "lime": {},
        "lime_tree": {"model": "tree"},
        "few": {"share": 0.02},
        "narrow": {"width": 0.1},
        "parzen": {"method": "parzen"},
        "greedy": {"method": "greedy"},
        "random": {"method": "random"},
    },
    targets={
        "smoke": {"lime": Target("recall", 0.6, "max", f"{CONTRACT}; chance has a third")},
        "laptop": {"lime": FOUND},
        "paper": {"lime": FOUND},
    },
    claims=(
        Claim(
            "LIME finds more of what the model uses than features drawn at random",
            "recall",
            left="lime",
            right="random",
            mode="max",
            margin=0.3,
            source=PAPER,
        ),
        Claim(
            "ten of thirty features drawn at random have no more than 35 % of what is used",
            "recall",
            left="random",
            right=0.35,
            mode="min",
            source="theory: a third on average",
        ),
        Claim(
            "LIME finds more of it than the gradient of a Parzen window classifier",
            "recall",
            left="lime",
            right="parzen",
            mode="max",
            source=PAPER,
        ),
        Claim(
            "LIME finds more of it than taking features out greedily",
            "recall",
            left="lime",
            right="greedy",
            mode="max",
            source=PAPER,
        ),
        Claim(
            "LIME finds nine in ten of the features on a tree's path",
            "recall",
            left="lime_tree",
            right=0.9,
            mode="max",
            source=f"{PAPER}: 97 %",
            note="The paper has 97 % of the words on a path; here a threshold may be far from the "
            "instance, so that hardly a perturbed input crosses it and the feature that is asked "
            "for there has no effect around the instance.",
        ),
        Claim(
            "with one in fifty of the inputs it finds less",
            "recall",
            left="lime",
            right="few",
            mode="max",
            source="theory: the noise of a weight falls with the square root of the inputs",
        ),
        Claim(
            "with a narrow kernel it finds less, for hardly any input counts",
            "recall",
            left="lime",
            right="narrow",
            mode="max",
            source="theory: in 30 dimensions few inputs are near",
        ),
    ),
)
