"""Tensors, gradients and modules: do the section's listings give what is printed beside them?

Sections "PyTorch Tensors", "Gradients in PyTorch" and "The PyTorch nn Module". The listings (2nd
edition, chapter 5) add, multiply, index and assign tensors, differentiate x^2 + y^2 + z^2 at
(2, 3, 1.5), which gives (4, 6, 3), and build a net 784-256-10. They are run

- `eager`, as printed, with `backward`;
- `compile`, as one captured graph, forwards and backwards (torch.compile without graph breaks; its
  backend is `aot_eager`, which needs no compiler, and `inductor` under `paper`);
- `vmap`, for a whole batch of copies at once, with gradients by torch.func.

`mismatches` counts outputs that differ from the notebook's stored ones, which have to come back
exactly. `gradient_error` is the relative error of the net's gradients, over all its weights and in
float64, to backpropagation written out by hand; for `vmap` the gradients are taken example by
example and averaged.

Two things in the listings are not what they are said to be. The comment beside `x3_t[0]` shows a 1
that a later listing assigns, where the stored output has a 5 (`misprints` counts one). And the
layer written out, `torch.matmul(W, vec) + b` with b of shape (10, 1), is not the linear layer it
stands beside: the bias is broadcast, and 100 numbers come out where the layer has 10
(`written_out`).

Shapes: B batch, D inputs, H hidden units, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from suite.fields import Count
from suite.task import Claim, Target, Task

COPIES = 3
X1, X2 = [[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]]
X3 = [[[3, 7, 9], [2, 4, 5]], [[8, 6, 2], [3, 9, 1]]]
POINT, PRINTED_GRADIENT = (2.0, 3.0, 1.5), (4.0, 6.0, 3.0)
STORED = {
    "add": [[1, 1]],
    "matmul": [[9, 12, 15], [19, 26, 33]],
    "element": 4,
    "matrix": [[3, 7, 9], [2, 4, 5]],
    "rows": [[2, 4, 5]],
    "assigned": [[[3, 7, 9], [2, 4, 1]], [[8, 6, 2], [3, 9, 1]]],
}
COMMENTS = {**STORED, "matrix": [[3, 7, 9], [2, 4, 1]]}


@dataclass(frozen=True)
class Config:
    data: Literal["the listings' own tensors"] = "the listings' own tensors"
    how: Literal["eager", "compile", "vmap"] = "eager"
    # Those that capture the way backwards as well.
    backend: Literal["inductor", "aot_eager"] = "inductor"
    inputs: Count = 784
    hidden: Count = 256
    # The loss of a single class is 0 whatever the weights are, and so are all gradients.
    classes: Annotated[int, Interval(ge=2)] = 10
    examples: Count = 10


def operations(x1: Any, x2: Any, x3: Any) -> dict[str, torch.Tensor]:
    """What the listings of tensor operations compute, by name."""
    assigned = x3.clone()
    assigned[0, 1, 2] = 1
    return {
        "add": torch.zeros((1, 2)) + torch.ones((1, 2)),
        "matmul": torch.matmul(x1, x2),
        "element": x3[0, 1, 1],
        "matrix": x3[0],
        "rows": x3[0, 1:3, :],
        "assigned": assigned,
    }


def sum_of_squares(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return x**2 + y**2 + z**2


def differing(found: dict[str, torch.Tensor], printed: dict[str, Any]) -> int:
    """How many outputs have another shape or value than printed."""
    pairs = ((found[name].cpu(), torch.tensor(value)) for name, value in printed.items())
    return sum(not (a.shape == b.shape and bool((a == b).all())) for a, b in pairs)


def network(cfg: Config) -> nn.Sequential:
    """Inputs x_BD to logits_BK."""
    return nn.Sequential(
        nn.Linear(cfg.inputs, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, cfg.classes)
    )


def loss(model: nn.Module, x_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x_BD), y_B)


def by_hand(model: nn.Sequential, x_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """All gradients of the loss in one, from the chain rule written out."""
    first, _, last = model
    with torch.no_grad():
        z_BH = x_BD @ first.weight.T + first.bias
        h_BH = z_BH.clamp(min=0)
        logits_BK = h_BH @ last.weight.T + last.bias
        dlogits_BK = (logits_BK.softmax(1) - F.one_hot(y_B, logits_BK.shape[1])) / len(y_B)
        dz_BH = (dlogits_BK @ last.weight) * (z_BH > 0)
        parts = (dz_BH.T @ x_BD, dz_BH.sum(0), dlogits_BK.T @ h_BH, dlogits_BK.sum(0))
    return torch.cat([p.flatten() for p in parts])


def captured(function: Callable[..., Any], cfg: Config) -> Callable[..., Any]:
    """``function``, or one graph of it; a graph break is an error."""
    if cfg.how == "compile":
        return torch.compile(function, backend=cfg.backend, fullgraph=True)
    return function


def listed(cfg: Config) -> dict[str, torch.Tensor]:
    """The listings' operations, computed the way that ``cfg.how`` says.

    As in the listings on the processor: CUDA has no product of matrices of integers.
    """
    given = [torch.tensor(x) for x in (X1, X2, X3)]
    if cfg.how != "vmap":
        return captured(operations, cfg)(*given)
    copies = [x.expand(COPIES, *x.shape) for x in given]
    found = vmap(operations)(*copies)
    assert all((value == value[:1]).all() for value in found.values())
    return {name: value[0] for name, value in found.items()}


def listed_gradient(cfg: Config, device: torch.device) -> tuple[float, ...]:
    """The gradient of x^2 + y^2 + z^2 at the listing's point."""
    if cfg.how == "vmap":
        points = [torch.full((COPIES,), v, device=device) for v in POINT]
        return tuple(float(g[-1]) for g in vmap(grad(sum_of_squares, (0, 1, 2)))(*points))
    with torch.enable_grad():
        xyz = [torch.tensor(v, device=device, requires_grad=True) for v in POINT]
        captured(sum_of_squares, cfg)(*xyz).backward()
    return tuple(float(v.grad) for v in xyz)


def net_gradient(model: nn.Module, cfg: Config, x_BD: torch.Tensor, y_B: Any) -> torch.Tensor:
    """All gradients of the loss in one, the way that ``cfg.how`` says."""
    if cfg.how == "vmap":
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def of_one(weights: Any, x_D: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(functional_call(model, weights, (x_D,)), y)

        each = vmap(grad(of_one), (None, 0, 0))(weights, x_BD, y_B)
        return torch.cat([g.mean(0).flatten() for g in each.values()])
    with torch.enable_grad():
        value = captured(loss, cfg)(model, x_BD, y_B)
        parts = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([g.flatten() for g in parts])


def written_out(cfg: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """The listing's linear layer by hand, and what its weights and bias give as a layer."""
    vec, W, b = (
        torch.randn(cfg.hidden),
        torch.rand(cfg.classes, cfg.hidden),
        torch.rand(cfg.classes, 1),
    )
    return torch.matmul(W, vec) + b, F.linear(vec, W, b[:, 0])


def draw_listings(out: torch.Tensor, layer: torch.Tensor, gradient: Any) -> Any:
    """Autograd's arrows on x^2 + y^2, and the broadcast layer beside the real one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 0.5))
    x, y = np.meshgrid(np.linspace(-4, 4, 9), np.linspace(-4, 4, 9))
    with torch.enable_grad():
        xy = [torch.tensor(v, requires_grad=True) for v in (x, y)]
        sum_of_squares(*xy, torch.tensor(POINT[2])).sum().backward()
    image = left.contourf(x, y, x**2 + y**2 + POINT[2] ** 2, levels=12, cmap="cividis")
    left.quiver(x, y, *[v.grad.numpy() for v in xy], color="white", scale=90, width=0.005)
    left.plot(*POINT[:2], "o", color="#D55E00", ms=9)
    figure.colorbar(image, ax=left, label="f at z = 1.5")
    shown = ", ".join(f"{g:g}" for g in gradient)
    left.set(title=f"x² + y² + z²: gradient ({shown}) at the dot", xlabel="x", ylabel="y")
    low, high = float(out.min()), float(out.max())
    middle.imshow(out.numpy(), cmap="cividis", vmin=low, vmax=high)
    middle.set(title="matmul(W, vec) + b, b of (10, 1)", xlabel="column", ylabel="row")
    image = right.imshow(layer[:, None].numpy(), cmap="cividis", vmin=low, vmax=high)
    right.set(title="the layer", xticks=[], ylabel="output")
    figure.colorbar(image, ax=right, label="value")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    model = network(cfg).double().to(ctx.device)
    x_BD = torch.randn(cfg.examples, cfg.inputs, dtype=torch.float64).to(ctx.device)
    y_B = torch.randint(cfg.classes, (cfg.examples,)).to(ctx.device)
    out, layer = written_out(cfg)
    start = ctx.keep(model=model)

    yield
    if start:
        return
    found, gradient = listed(cfg), listed_gradient(cfg, ctx.device)
    exact_P, got_P = by_hand(model, x_BD, y_B), net_gradient(model, cfg, x_BD, y_B)
    ctx.figure("listings", lambda: draw_listings(out, layer, gradient))
    yield {
        "step": 1,
        "mismatches": differing(found, STORED) + (gradient != PRINTED_GRADIENT),
        "misprints": differing(found, COMMENTS),
        "written_out": out.numel() / layer.numel(),
        "gradient_error": float((got_P - exact_P).norm() / exact_P.norm()),
    }


NOTEBOOK = "book's notebook (2nd ed.), chapter 5"
EXACT = Target("mismatches", 0, "min", f"{NOTEBOOK}, stored outputs: all seven come back exactly")
HOW = ("eager", "compile", "vmap")

TASK = Task(
    config=Config(),
    run=run,
    sections=("PyTorch Tensors", "Gradients in PyTorch", "The PyTorch nn Module"),
    profiles={
        "smoke": {"backend": "aot_eager", "inputs": 20, "hidden": 8},
        "laptop": {"backend": "aot_eager"},
        "paper": {},
    },
    variants={how: {"how": how} for how in HOW},
    targets=dict.fromkeys(("smoke", "laptop", "paper"), dict.fromkeys(HOW, EXACT)),
    claims=(
        *(
            Claim(
                f"the net's gradients are those of backpropagation by hand: {how}",
                "gradient_error",
                left=how,
                right=1e-12,
                mode="min",
                source="the chain rule, in float64; 1e-12 is this project's contract",
            )
            for how in HOW
        ),
        Claim(
            "the comments in the listings show what they return",
            "misprints",
            left="eager",
            right=0.0,
            mode="min",
            source=f"{NOTEBOOK}, comment beside x3_t[0]",
            note="The comment shows [2, 4, 1] in the second row, which is [2, 4, 5] until a later "
            "listing assigns the 1.",
        ),
        Claim(
            "matmul(W, vec) + b gives as many numbers as the layer that it stands beside",
            "written_out",
            left="eager",
            right=1.0,
            mode="min",
            source=f"{NOTEBOOK}, section The PyTorch nn Module",
            note="A bias of shape (10, 1) is broadcast against the 10 outputs, so 100 numbers come "
            "out; with the shape (10,) it is the layer.",
        ),
    ),
)
