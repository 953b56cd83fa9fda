"""Second-order methods: gradient descent, conjugate gradients, BFGS, L-BFGS and Newton.

Section "A Brief View of Second-Order Methods". All five search a line by the same algorithm (strong
Wolfe conditions, Nocedal and Wright, section 3.5) and differ in its direction p; g is the gradient:

    gradient_descent  p = -g, of which the book says that it zigzags,
    cg                p = -g + beta p_old: conjugate directions, beta of Polak and Ribiere, >= 0,
    bfgs              p = -H g, H the inverse Hessian estimated from the changes of g,
    lbfgs             the same from the last `memory` changes only, without storing a matrix,
    newton            p = -(Hessian + shift)^-1 g, with a shift where it is not positive definite.

Each has the search that suits it, which counts in its evaluations: the first two need a line's
minimum more closely (c2 = 0.1 instead of 0.9) and start from a guess by the step before; the others
try the whole step first.

The book gives no number. What is minimised is softmax regression with an L2 penalty, which has one
minimum; SciPy's L-BFGS-B finds it beforehand to within |g|^2 / (2 l2), the bound of a strongly
convex function, which `reference_gap` shows. `suboptimality` is the loss above it. Cost is counted
and not timed: a step is one `evaluation` of loss and gradient. A Hessian is none, though it costs
more than many: `hessians` counts them. `evaluations_to_optimum` and `iterations_to_optimum` are
those after which the suboptimality was first at `tolerance`, and missing where it never was.

The same method also goes down Rosenbrock's valley, (1 - a)^2 + 100 (b - a^2)^2, from near (-1.2, 1)
until that is at `tolerance`; `rosenbrock_evaluations` is missing where it runs out of evaluations.

Offline: breast cancer, 456 tumours and 30 standardised measurements, under a penalty so weak that
gradient descent feels the condition number; `paper` has MNIST's 7,850 weights, where Newton's
Hessian would take 0.5 GB, so that nothing is asked of it there.

Shapes: N examples, D features, K classes, P = D K weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task

Oracle = Callable[[torch.Tensor], tuple[float, torch.Tensor]]
Hessian = Callable[[torch.Tensor], torch.Tensor]

ARMIJO = 1e-4
TRIES = 40
COLOURS = {
    "gradient_descent": "#D55E00",
    "cg": "#E69F00",
    "bfgs": "#009E73",
    "lbfgs": "#0072B2",
    "newton": "#CC79A7",
}


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    method: Literal["lbfgs", "newton", "bfgs", "cg", "gradient_descent"] = "lbfgs"
    # Without a penalty there may be no minimum, and `reference_gap` would bound nothing.
    l2: Positive = 1e-3
    memory: Count = 10
    tolerance: Positive = 1e-8
    start_scale: Positive = 0.1
    most: Count = 20_000


def features(images: torch.Tensor) -> torch.Tensor:
    """Images as grey values 0..1, tables with every column standardised; a 1 last: x_ND."""
    x_ND = images.flatten(1).double()
    x_ND = x_ND / 255 if images.dim() > 2 else (x_ND - x_ND.mean(0)) / x_ND.std(0)
    return torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], 1)


def softmax_regression(x_ND: torch.Tensor, y_N: torch.Tensor, l2: float) -> tuple[Oracle, Hessian]:
    """Mean cross-entropy + l2/2 |w|^2 with its gradient, and its Hessian, at weights w_P."""
    n, shape = len(x_ND), (x_ND.shape[1], int(y_N.max()) + 1)
    truth_NK = F.one_hot(y_N).to(x_ND)

    def oracle(w_P: torch.Tensor) -> tuple[float, torch.Tensor]:
        logits_NK = x_ND @ w_P.view(shape)
        log_p_NK = logits_NK.log_softmax(1)
        value = -(log_p_NK * truth_NK).sum() / n + l2 / 2 * (w_P @ w_P)
        # Not x' times this, which takes ten times as long on a CPU for a tall x.
        slope_KD = (log_p_NK.exp() - truth_NK).T @ x_ND / n
        return float(value), slope_KD.T.flatten() + l2 * w_P

    def hessian(w_P: torch.Tensor) -> torch.Tensor:
        p_NK = (x_ND @ w_P.view(shape)).softmax(1)
        H_DKDK = x_ND.new_empty(*shape, *shape)
        for j in range(shape[1]):
            for k in range(j + 1):
                weight_N1 = p_NK[:, j, None] * (float(j == k) - p_NK[:, k, None]) / n
                H_DKDK[:, j, :, k] = H_DKDK[:, k, :, j] = (x_ND * weight_N1).T @ x_ND
        return H_DKDK.view(len(w_P), len(w_P)) + l2 * torch.eye(len(w_P)).to(w_P)

    return oracle, hessian


def rosenbrock(w: torch.Tensor) -> tuple[float, torch.Tensor]:
    a, b = w.tolist()
    value, c = (1 - a) ** 2 + 100 * (b - a * a) ** 2, b - a * a
    return value, torch.tensor([-2 * (1 - a) - 400 * a * c, 200 * c]).to(w)


def rosenbrock_hessian(w: torch.Tensor) -> torch.Tensor:
    a, b = w.tolist()
    return torch.tensor([[2 - 400 * (b - 3 * a * a), -400 * a], [-400 * a, 200]]).to(w)


def line_search(
    phi: Callable[[float], tuple[float, torch.Tensor, float]],
    value: float,
    slope: float,
    step: float,
    curvature: float,
) -> tuple[float, float, torch.Tensor | None, int]:
    """A step with the strong Wolfe conditions: step, value and gradient there, evaluations.

    ``phi`` gives value, gradient and slope along the line. Between a point that is too near and one
    that is too far the next is where the slopes, drawn straight, meet zero. The gradient is None
    where ``TRIES`` evaluations found no better point: only rounding is left.
    """
    # What rounding does to two values that are the same must not count as a rise.
    slack = 4 * math.ulp(1.0) * abs(value)
    low, low_slope, found = 0.0, slope, None
    high, high_slope = math.inf, math.nan
    for tries in range(1, TRIES + 1):
        at, g, at_slope = phi(step)
        if not at <= value + ARMIJO * step * slope + slack:
            high, high_slope = step, math.nan
        elif abs(at_slope) <= -curvature * slope:
            return step, at, g, tries
        elif at_slope > 0:
            high, high_slope = step, at_slope
        else:
            low, low_slope, found = step, at_slope, (at, g)
        if high == math.inf:
            step = 2 * low
            continue
        share = 0.5 if math.isnan(high_slope) else low_slope / (low_slope - high_slope)
        step = low + (high - low) * min(max(share, 0.1), 0.9)
    return (low, *found, TRIES) if found else (0.0, value, None, TRIES)


def conjugate(g: torch.Tensor, g_old: torch.Tensor, p_old: torch.Tensor) -> torch.Tensor:
    """Polak and Ribiere's direction, started anew where beta would be negative."""
    beta = max(0.0, float(g @ (g - g_old) / (g_old @ g_old)))
    return beta * p_old - g


def bfgs_update(H: torch.Tensor, s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The inverse Hessian's estimate after the step s changed the gradient by y."""
    rho, Hy = 1 / (s @ y), H @ y
    return (
        H
        + rho * ((1 + rho * (y @ Hy)) * torch.outer(s, s) - torch.outer(Hy, s))
        - rho * (torch.outer(s, Hy))
    )


def two_loop(g: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """-H g from the last (s, y), oldest first (Nocedal and Wright, algorithm 7.4)."""
    q, weights = g.clone(), []
    for s, y in reversed(pairs):
        weights.append((s @ q) / (s @ y))
        q -= weights[-1] * y
    s, y = pairs[-1]
    q *= (s @ y) / (y @ y)
    for s, y in pairs:
        q += (weights.pop() - (y @ q) / (s @ y)) * s
    return -q


def newton(g: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """-(H + shift)^-1 g with the first shift of 0, 1e-3, 1e-2, ... that makes H positive definite.

    The shifts are shares of H's largest entry.
    """
    shift, eye = 0.0, torch.eye(len(g)).to(g)
    while True:
        L, failed = torch.linalg.cholesky_ex(H + shift * eye)
        if not failed:
            return -torch.cholesky_solve(g[:, None], L)[:, 0]
        shift = max(10 * shift, 1e-3 * float(H.abs().max()))


def direction(method: str, state: dict[str, Any], hessian: Hessian) -> torch.Tensor:
    """Where to search from the state's point; steepest descent where that would not go down."""
    g = state["g"]
    if method == "newton":
        state["hessians"] += 1
        return newton(g, hessian(state["x"]))
    p = -g
    if method == "cg" and "p" in state:
        p = conjugate(g, state["g_old"], state["p"])
    elif method == "bfgs" and "H" in state:
        p = -state["H"] @ g
    elif method == "lbfgs" and state["pairs"]:
        p = two_loop(g, state["pairs"])
    return p if p @ g < 0 else -g


def first_step(method: str, state: dict[str, Any], slope: float) -> float:
    """The line search's first guess: 1 where the direction has a scale, else the last gain's."""
    if method == "newton" or (state["pairs"] and method in ("bfgs", "lbfgs")):
        return 1.0
    if "slope" in state:
        return float(state["step"] * state["slope"] / slope)
    return min(1.0, 1 / float(state["g"].norm()))


def learn(
    method: str, state: dict[str, Any], s: torch.Tensor, y: torch.Tensor, memory: int
) -> None:
    """What a step s and the gradient's change y say of the curvature."""
    if method not in ("bfgs", "lbfgs") or not s @ y > 0:
        return
    state["pairs"] = [*state["pairs"], (s, y)][-memory:]
    if method == "bfgs":
        scaled = torch.eye(len(s)).to(s) * (s @ y) / (y @ y)
        state["H"] = bfgs_update(state.get("H", scaled), s, y)


def started(oracle: Oracle, x: torch.Tensor) -> dict[str, Any]:
    """The state before the first iteration, which has cost one evaluation."""
    value, g = oracle(x)
    counts = {"evaluations": 1, "iterations": 0, "hessians": 0}
    return {"x": x, "value": value, "g": g, "pairs": [], **counts}


def iterate(
    method: str, state: dict[str, Any], problem: tuple[Oracle, Hessian], memory: int
) -> bool:
    """One iteration in place; False where rounding lets nothing improve any more."""
    oracle, hessian = problem
    x, g = state["x"], state["g"]
    if not g.any():
        return False
    p = direction(method, state, hessian)
    slope = float(p @ g)

    def phi(step: float) -> tuple[float, torch.Tensor, float]:
        value, there = oracle(x + step * p)
        return value, there, float(there @ p)

    curvature = 0.1 if method in ("gradient_descent", "cg") else 0.9
    guess = first_step(method, state, slope)
    step, value, there, tries = line_search(phi, state["value"], slope, guess, curvature)
    state["evaluations"] += tries
    if there is None:
        return False
    learn(method, state, step * p, there - g, memory)
    state |= {"x": x + step * p, "value": value, "g": there, "g_old": g, "p": p}
    state |= {"step": step, "slope": slope, "iterations": state["iterations"] + 1}
    return True


def valley(method: str, start: torch.Tensor, cfg: Config) -> tuple[list[list[float]], int | None]:
    """The path down Rosenbrock's valley, and its evaluations; None where they ran out."""
    state = started(rosenbrock, start)
    path, problem = [start.tolist()], (rosenbrock, rosenbrock_hessian)
    while state["value"] > cfg.tolerance and state["evaluations"] < cfg.most:
        if not iterate(method, state, problem, cfg.memory):
            break
        path.append(state["x"].tolist())
    return path, state["evaluations"] if state["value"] <= cfg.tolerance else None


def optimum(oracle: Oracle, start: torch.Tensor, l2: float) -> tuple[float, float]:
    """SciPy's minimum, and how far it can be above the true one."""

    def fun(w: Any) -> tuple[float, Any]:
        value, g = oracle(torch.from_numpy(w).to(start))
        return value, g.cpu().numpy()

    options = {"maxcor": 50, "ftol": 0.0, "gtol": 1e-9, "maxiter": 20_000, "maxfun": 20_000}
    found = minimize(fun, start.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    return float(found.fun), float((found.jac**2).sum() / (2 * l2))


def finished(history: list[Any], tolerance: float) -> bool:
    """Whether the last two rows are at the optimum; the start, the first row, is none."""
    return len(history) > 2 and max(gap for _, gap in history[-2:]) <= tolerance


def draw_descent(history: list[Any], paths: dict[str, Any], cfg: Config) -> Any:
    """The five methods' paths in the valley, and how this one's loss falls on the data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    a, b = np.meshgrid(np.linspace(-1.8, 1.6, 200), np.linspace(-0.8, 2.2, 200))
    height = np.log10((1 - a) ** 2 + 100 * (b - a**2) ** 2 + 1e-3)
    left.contour(a, b, height, 20, colors="0.8", linewidths=0.6)
    for method, (path, evaluations) in paths.items():
        thick = 2.2 if method == cfg.method else 0.9
        cost = f"{evaluations:,} evaluations" if evaluations else "not there"
        label = f"{method.replace('_', ' ')}: {cost}"
        xs, ys = np.array(path).T
        left.plot(xs, ys, ".-", ms=3 * thick, lw=thick, color=COLOURS[method])
        heights = [max(rosenbrock(torch.tensor(w, dtype=torch.float64))[0], 1e-16) for w in path]
        iterations = range(1, len(path) + 1)
        middle.loglog(iterations, heights, lw=thick, color=COLOURS[method], label=label)
    left.plot(1, 1, "k*", ms=10)
    left.set(xlim=(-1.8, 1.6), ylim=(-0.8, 2.2), xlabel="a", ylabel="b")
    left.set_title("the five methods in Rosenbrock's valley", size=10)
    middle.axhline(cfg.tolerance, color="0.3", ls="--", lw=1)
    middle.set(xlabel="points of the path", ylabel="height", ylim=(1e-14, 1e2))
    middle.set_title(f"the same, to {cfg.tolerance:g}", size=10)
    middle.grid(alpha=0.3)
    middle.legend(fontsize=7, loc="lower left")
    evaluations, gaps = np.array(history).T
    right.loglog(evaluations, gaps.clip(1e-16), "o-", ms=3, color=COLOURS[cfg.method])
    right.axhline(cfg.tolerance, color="0.3", ls="--", lw=1, label=f"{cfg.tolerance:g}")
    right.set(xlabel="evaluations of loss and gradient", ylabel="loss above the minimum, in nats")
    right.set_title(f"{cfg.method.replace('_', ' ')}: softmax regression, {cfg.data}", size=10)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    x, y = ctx.data(cfg.data).train
    problem = softmax_regression(features(x), y, cfg.l2)
    n_weights = (x[0].numel() + 1) * (int(y.max()) + 1)
    begin = cfg.start_scale * torch.randn(n_weights, dtype=torch.float64).to(ctx.device)
    edge = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    edge += 0.1 * torch.randn(2, dtype=torch.float64)
    _, rosenbrock_evaluations = valley(cfg.method, edge, cfg)
    best, reference_gap = optimum(problem[0], begin, cfg.l2)
    state = started(problem[0], begin)
    history = [[1, state["value"] - best]]
    first: dict[str, float] = {}
    ctx.keep(state=state, history=history, first=first)
    state |= {k: v.to(ctx.device) for k, v in state.items() if isinstance(v, torch.Tensor)}
    state["pairs"] = [(s.to(ctx.device), d.to(ctx.device)) for s, d in state["pairs"]]

    def metrics() -> dict[str, float]:
        counted = {k: state[k] for k in ("evaluations", "iterations", "hessians")}
        found = {"step": state["evaluations"], "suboptimality": history[-1][1], **counted, **first}
        if rosenbrock_evaluations:
            found["rosenbrock_evaluations"] = rosenbrock_evaluations
        return found | {"reference_gap": reference_gap}

    yield
    while not finished(history, cfg.tolerance) and state["evaluations"] < cfg.most:
        # A row for every iteration, and from a hundred on for every fiftieth more.
        due, moved = int(1.02 * state["iterations"]) + 1, True
        while moved and state["iterations"] < due:
            moved = iterate(cfg.method, state, problem, cfg.memory)
            if state["value"] - best <= cfg.tolerance and not first:
                first |= {f"{k}_to_optimum": state[k] for k in ("evaluations", "iterations")}
                first["log10_evaluations"] = math.log10(state["evaluations"])
                break
        history.append([state["evaluations"], state["value"] - best])
        yield metrics
        if not moved:
            break
    paths = {m: valley(m, edge, cfg) for m in COLOURS}
    ctx.figure("descent", lambda: draw_descent(history, paths, cfg))


SECTION = (
    "chapter 6, A Brief View of Second-Order Methods, read in a translation of the 2nd edition"
)
CONTRACT = "this project's contract for the section"
SEEDS = (
    f"{CONTRACT}: the loss is above SciPy's minimum by no more; 5 seeds from 1000 get there, and "
    "half of their iterations leave 8e-6 or more"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("A Brief View of Second-Order Methods",),
    profiles={
        "smoke": {"data": "breast_cancer", "l2": 1e-2, "most": 500},
        "laptop": {"data": "breast_cancer", "l2": 3e-5},
        "paper": {},
    },
    variants={m: {"method": m} for m in ("lbfgs", "newton", "bfgs", "cg", "gradient_descent")},
    targets={
        "smoke": {"lbfgs": Target("suboptimality", 1e-8, "min", CONTRACT)},
        "laptop": dict.fromkeys(COLOURS, Target("suboptimality", 1e-8, "min", SEEDS)),
        "paper": {"lbfgs": Target("suboptimality", 1e-8, "min", CONTRACT)},
    },
    claims=(
        Claim(
            "Newton's method needs at most 20 iterations",
            "iterations_to_optimum",
            left="newton",
            right=20,
            mode="min",
            profiles=("laptop",),
            source=f"{CONTRACT}; it converges quadratically",
        ),
        Claim(
            "L-BFGS needs a twentieth of gradient descent's evaluations",
            "log10_evaluations",
            left="lbfgs",
            right="gradient_descent",
            mode="min",
            margin=math.log10(20),
            profiles=("laptop",),
            source=f"{SECTION}: it uses the Hessian to optimise more effectively; a twentieth is "
            "this project's contract",
        ),
        Claim(
            "conjugate gradients remedy the zigzag: a fifth of gradient descent's evaluations",
            "log10_evaluations",
            left="cg",
            right="gradient_descent",
            mode="min",
            margin=math.log10(5),
            profiles=("laptop",),
            source=f"{SECTION}, figure 6-10; a fifth is this project's contract",
        ),
        Claim(
            "they do so in Rosenbrock's valley too",
            "rosenbrock_evaluations",
            left="cg",
            right="gradient_descent",
            mode="min",
            profiles=("laptop",),
            source=f"{SECTION}: the method generalises to surfaces that are not convex",
        ),
        Claim(
            "L-BFGS saves BFGS's memory without more evaluations",
            "evaluations_to_optimum",
            left="lbfgs",
            right="bfgs",
            mode="min",
            profiles=("laptop",),
            source=f"{SECTION}: L-BFGS is the version that needs less memory",
        ),
    ),
)
