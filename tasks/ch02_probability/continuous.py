"""Continuous distributions: drawn by inverse CDF, by rejection and by PyTorch, and fitted.

Section "Continuous Probability Distributions". The book defines densities and gives the Gaussian;
it has no listing and no figure. Here are N(mu = 1, sigma = 2), the uniform distribution on [-1, 3]
and the exponential one with rate 0.5.

- `inverse` puts uniform numbers through the inverse of the distribution function.
- `rejection` draws from another density and keeps a draw with probability p / (M q): the Gaussian
  from Laplace's (1 / M = sqrt(pi / 2e)), the uniform from a wider one (2/3), the exponential from
  1 / (1 + x)^2 (e / 4). `acceptance_error` is the largest gap between the share kept and 1 / M.
- `torch` uses torch.distributions.
- `mle` climbs the likelihood of `replicates` samples of N by gradient ascent from N(0, 1) and rate
  1; the uniform's likelihood has no gradient at its maximum, its ends are the least and the
  greatest draw.

`ks` is the greatest sqrt(N) D of the three samples of size N, D the Kolmogorov-Smirnov distance to
the true distribution function; true samplers have one above 1.95 with a chance of 0.003, each with
one of 0.001. `coverage` is the share of replicates with no error beyond 3 standard errors of its
estimator, which for the mean and the rate are 1 / sqrt(N) of sigma and of the rate, and for sigma
1 / sqrt(2N); an end of the uniform distribution may be 6 / N of the interval's length off, as that
is as rare: 0.987 of the replicates stay within all five. `optimum_gap` is the largest distance to
the closed form of the maximum, the sample's mean, standard deviation and one over its mean.
`end_error` is N times the mean error of the uniform's ends as a share of its length; theory says
N / (N + 1), as the error falls with 1 / N.

Shapes: N draws, R replicates.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import distributions

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task

MU, SIGMA, LOW, HIGH, RATE = 1.0, 2.0, -1.0, 3.0, 0.5
NAMES = ("gaussian", "uniform", "exponential")
FROZEN = {
    "gaussian": stats.norm(MU, SIGMA),
    "uniform": stats.uniform(LOW, HIGH - LOW),
    "exponential": stats.expon(scale=1 / RATE),
}
KEPT = {
    "gaussian": math.sqrt(math.pi / (2 * math.e)),
    "uniform": 2 / 3,
    "exponential": math.e / 4,
}


@dataclass(frozen=True)
class Config:
    data: Literal["draws from three distributions"] = "draws from three distributions"
    method: Literal["inverse", "rejection", "torch", "mle"] = "inverse"
    draws: Count = 1_000_000
    replicates: Count = 100
    steps: Count = 300
    lr: Positive = 0.1
    rows: Count = 10

    def __post_init__(self) -> None:
        if self.steps < self.rows:
            raise ValueError(f"steps={self.steps} are fewer than rows={self.rows}")


def uniforms(n: int, device: torch.device) -> torch.Tensor:
    """Numbers in (0, 1): neither end has a finite image under every inverse."""
    u_N = torch.rand(n, dtype=torch.float64, device=device)
    return u_N.clamp(2.0**-53, 1 - 2.0**-53)


def standard(name: str, draw: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The standard form of a distribution, moved and stretched."""
    z = draw(name)
    if name == "gaussian":
        return MU + SIGMA * z
    return LOW + (HIGH - LOW) * z if name == "uniform" else z / RATE


def inverse(n: int, name: str, device: torch.device) -> torch.Tensor:
    """N draws of a standard distribution from as many uniform numbers."""
    u_N = uniforms(n, device)
    if name == "gaussian":
        return math.sqrt(2) * torch.special.erfinv(2 * u_N - 1)
    return u_N if name == "uniform" else -torch.log1p(-u_N)


def proposed(n: int, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """N proposals and the probabilities p / (M q) of keeping them."""
    u_N = uniforms(n, device)
    if name == "gaussian":
        x_N = -torch.sign(u_N - 0.5) * torch.log1p(-2 * (u_N - 0.5).abs())
        return x_N, torch.exp(-((x_N.abs() - 1) ** 2) / 2)
    if name == "uniform":
        x_N = 1.5 * u_N - 0.25
        return x_N, ((x_N >= 0) & (x_N < 1)).double()
    x_N = u_N / (1 - u_N)
    return x_N, torch.exp(-x_N) * (1 + x_N) ** 2 * math.e / 4


def rejection(n: int, name: str, device: torch.device) -> tuple[torch.Tensor, float]:
    """N draws of a standard distribution, and the share of the proposals that was kept."""
    blocks: list[torch.Tensor] = []
    n_kept, n_proposed = 0, 0
    while n_kept < n:
        x_N, keep_N = proposed(math.ceil(1.02 * (n - n_kept) / KEPT[name]) + 10, name, device)
        blocks.append(x_N[torch.rand_like(x_N) < keep_N])
        n_kept, n_proposed = n_kept + len(blocks[-1]), n_proposed + len(x_N)
    return torch.cat(blocks)[:n], n_kept / n_proposed


def pytorch(name: str, device: torch.device) -> distributions.Distribution:
    made = functools.partial(torch.tensor, dtype=torch.float64, device=device)
    if name == "gaussian":
        return distributions.Normal(*made([MU, SIGMA]))
    if name == "uniform":
        return distributions.Uniform(*made([LOW, HIGH]))
    return distributions.Exponential(made(RATE))


def samples(
    method: str, n: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A sample of each distribution; for ``rejection`` also the shares that were kept."""
    kept: dict[str, float] = {}

    def draw(name: str) -> torch.Tensor:
        if method == "inverse":
            return inverse(n, name, device)
        x_N, kept[name] = rejection(n, name, device)
        return x_N

    if method == "torch":
        return {name: pytorch(name, device).sample((n,)) for name in NAMES}, kept
    return {name: standard(name, draw) for name in NAMES}, kept


def distance(name: str, x_N: torch.Tensor) -> float:
    """sqrt(N) D of a sample."""
    u_N = torch.from_numpy(FROZEN[name].cdf(x_N.sort().values.cpu().numpy()))
    n = len(u_N)
    grid_N = torch.arange(1, n + 1, dtype=torch.float64) / n
    D = torch.maximum((grid_N - u_N).max(), (u_N - grid_N + 1 / n).max())
    return math.sqrt(n) * float(D)


def statistics_of(n: int, device: torch.device) -> torch.Tensor:
    """What the likelihoods need of a sample of each: mean, variance, least, greatest, mean."""
    gaussian, uniform, exponential = (pytorch(name, device).sample((n,)) for name in NAMES)
    variance = gaussian.var(correction=0)
    return torch.stack(
        [gaussian.mean(), variance, uniform.min(), uniform.max(), exponential.mean()]
    )


def log_likelihood(fit_R3: torch.Tensor, seen_R5: torch.Tensor) -> torch.Tensor:
    """Mean log-likelihood of N(mu, sigma) and of the rate, fit = (mu, log sigma, log rate).

    Only the parts that depend on the parameters, as functions of the sufficient statistics.
    """
    mu_R, log_sigma_R, log_rate_R = fit_R3.T
    square_R = seen_R5[:, 1] + (seen_R5[:, 0] - mu_R) ** 2
    gaussian_R = -log_sigma_R - square_R / (2 * torch.exp(2 * log_sigma_R))
    return gaussian_R + log_rate_R - log_rate_R.exp() * seen_R5[:, 4]


def errors(fit_R3: torch.Tensor, seen_R5: torch.Tensor) -> torch.Tensor:
    """Errors of mu, sigma, the rate and the uniform's ends, in natural units, R5."""
    columns = (
        (fit_R3[:, 0] - MU) / SIGMA,
        fit_R3[:, 1].exp() / SIGMA - 1,
        fit_R3[:, 2].exp() / RATE - 1,
        (seen_R5[:, 2] - LOW) / (HIGH - LOW),
        (HIGH - seen_R5[:, 3]) / (HIGH - LOW),
    )
    return torch.stack(columns, 1).abs()


def allowed_errors(n: int) -> torch.Tensor:
    """How far off each of the five of `errors` may be: three standard errors, or as rare."""
    root = 3 / math.sqrt(n)
    return torch.tensor([root, root / math.sqrt(2), root, 6 / n, 6 / n], dtype=torch.float64)


def fit_scores(
    cfg: Config, fit_R3: torch.Tensor, seen_R5: torch.Tensor, step: int, history: list[Any]
) -> dict[str, float]:
    fit_R3 = fit_R3.detach()
    error_R5 = errors(fit_R3, seen_R5)
    optimum_R3 = torch.stack([seen_R5[:, 0], seen_R5[:, 1].log() / 2, -seen_R5[:, 4].log()], 1)
    history.append([step, *error_R5.mean(0)[:3].tolist()])
    return {
        "step": step,
        "coverage": float((error_R5.cpu() <= allowed_errors(cfg.draws)).all(1).double().mean()),
        "optimum_gap": float((fit_R3 - optimum_R3).abs().max()),
        "end_error": cfg.draws * float(error_R5[:, 3:].mean()),
    }


def draw_samples(sample: dict[str, torch.Tensor], method: str) -> Any:
    """Histograms of the three samples with their densities."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = zip(figure.subplots(1, 3), sample.items(), strict=True)
    for axes, (name, x_N) in panels:
        low, high = FROZEN[name].ppf([1e-4, 1 - 1e-4])
        pad = 0.1 * (high - low)
        x = np.linspace(low - pad, high + pad, 600)
        density, _ = np.histogram(x_N, bins=80, range=(low, high))
        edges = np.linspace(low, high, 81)
        axes.stairs(density / len(x_N) / np.diff(edges), edges, fill=True, color="#56B4E9")
        axes.plot(x, FROZEN[name].pdf(x), color="#D55E00", label="density")
        axes.set(xlabel="x", title=f"{name}: √N D = {distance(name, x_N):.2f}")
        axes.title.set_size(10)
    figure.axes[0].set_ylabel("density")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(f"{len(x_N):,} draws each by {method}; above √N D = 1.95, p < 0.001", size=10)
    return figure


def draw_fits(cfg: Config, history: list[Any], fit_R3: Any) -> Any:
    """The errors on the way up, and those of all replicates at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, *curves = np.array(history).T
    colours = ("#0072B2", "#D55E00", "#009E73")
    for curve, colour, name in zip(curves, colours, ("μ", "σ", "rate"), strict=True):
        left.semilogy(steps, curve, "o-", color=colour, ms=4, label=name)
    left.axhline(1 / math.sqrt(cfg.draws), color="0.4", ls="--", label="1 / √N")
    left.set(xlabel="steps of gradient ascent", ylabel="mean relative error")
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    mu, sigma, _ = fit_R3.detach().cpu().T
    scale = math.sqrt(cfg.draws)
    right.plot(scale * (mu - MU) / SIGMA, scale * (sigma.exp() / SIGMA - 1), ".", color="#0072B2")
    wide, high = 3, 3 / math.sqrt(2)
    around = ([-wide, wide, wide, -wide, -wide], [-high, -high, high, high, -high])
    right.plot(*around, color="0.4", ls="--", label="± 3 standard errors")
    right.set(xlabel="√N (error of μ) / σ", ylabel="√N (error of σ) / σ", aspect="equal")
    right.set_title(f"{len(mu)} Gaussian fits to N = {cfg.draws:,} draws", size=10)
    right.legend(fontsize=8, loc="upper right")
    return figure


def ascent(
    cfg: Config, fit_R3: torch.Tensor, seen_R5: torch.Tensor, history: Any, start: int
) -> Any:
    every = cfg.steps // cfg.rows
    optimizer = torch.optim.SGD([fit_R3], lr=cfg.lr, maximize=True)
    for row in range(start, cfg.rows):
        for _ in range(every):
            optimizer.zero_grad()
            log_likelihood(fit_R3, seen_R5).sum().backward()
            optimizer.step()
        yield functools.partial(fit_scores, cfg, fit_R3, seen_R5, (row + 1) * every, history)


def run(cfg: Config, ctx: Any) -> Any:
    fitting = cfg.method == "mle"
    made = {"dtype": torch.float64, "device": ctx.device}
    fit_R3 = torch.zeros(cfg.replicates, 3, **made, requires_grad=True)
    seen_R5 = torch.zeros(cfg.replicates, 5, **made)
    if fitting:
        for seen_5 in seen_R5:
            seen_5.copy_(statistics_of(cfg.draws, ctx.device))
    history: list[Any] = []
    start = ctx.keep(fit=fit_R3, history=history)

    yield
    if fitting:
        yield from ascent(cfg, fit_R3, seen_R5, history, start)
        ctx.figure("fits", lambda: draw_fits(cfg, history, fit_R3))
        return
    sample, kept = samples(cfg.method, cfg.draws, ctx.device)

    def scores() -> dict[str, float]:
        gaps = {"acceptance_error": max(abs(kept[k] - KEPT[k]) for k in kept)} if kept else {}
        each = {f"{name}_ks": distance(name, x_N) for name, x_N in sample.items()}
        return {"step": cfg.draws, "ks": max(each.values())} | each | gaps

    if not start:
        yield scores
    ctx.figure("samples", lambda: draw_samples({k: x.cpu() for k, x in sample.items()}, cfg.method))


KS = Target(
    "ks",
    1.95,
    "min",
    "Kolmogorov-Smirnov: p > 0.001, this project's contract; 20 seeds from 1000 have at most 1.61",
)
SAMPLERS = dict.fromkeys(("inverse", "rejection", "torch"), KS)
COVERAGE = Target(
    "coverage",
    0.95,
    "max",
    "this project's contract, 95 of 100 replicates; theory has 0.987, 20 seeds from 1000 have "
    "at least 0.96, and half of the way at most 0.41",
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Continuous Probability Distributions",),
    profiles={
        "smoke": {"draws": 10_000},
        "laptop": {"draws": 100_000},
        "paper": {},
    },
    variants={
        "inverse": {},
        "rejection": {"method": "rejection"},
        "torch": {"method": "torch"},
        "mle": {"method": "mle"},
    },
    targets={
        "smoke": SAMPLERS,
        "laptop": SAMPLERS | {"mle": COVERAGE},
        "paper": SAMPLERS | {"mle": COVERAGE},
    },
    claims=(
        Claim(
            "rejection keeps a share 1 / M of its proposals, to a point",
            metric="acceptance_error",
            left="rejection",
            right=0.01,
            mode="min",
            source="theory of rejection sampling: p and q have the same mass",
        ),
        Claim(
            "gradient ascent ends at the closed form of the maximum",
            metric="optimum_gap",
            left="mle",
            right=1e-3,
            mode="min",
            source="theory: the sample's mean and standard deviation, and one over its mean",
        ),
        Claim(
            "the ends of a uniform distribution are found to about 1 / N, not 1 / sqrt(N)",
            metric="end_error",
            left="mle",
            right=2.0,
            mode="min",
            source="theory: the expected gap beyond the greatest of N draws is 1 / (N + 1)",
        ),
    ),
)
