"""draft."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.fit import fit
from suite.task import Task


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    hidden: int = 500
    depth: int = 1
    latent: int = 20
    kl: str = "mixed"
    shared_noise: bool = True
    grey: bool = True
    threshold: float = 0.0
    beta: float = 1.0
    k: int = 1
    lr: float = 1e-3
    batch_size: int = 100
    epochs: int = 10


def mlp(n_in: int, n_out: int, cfg: Config, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(cfg.depth):
        layers += [nn.Linear(cfg.hidden if i else n_in, cfg.hidden), activation()]
    return nn.Sequential(*layers, nn.Linear(cfg.hidden, n_out))


class VAE(nn.Module):
    """Encoder q(z|x) = N(mean, variance) and decoder p(x|z) = Bernoulli(sigmoid(logits))."""

    def __init__(self, n_pixels: int, cfg: Config) -> None:
        super().__init__()
        self.encoder = mlp(n_pixels, 2 * cfg.latent, cfg, nn.Sigmoid if cfg.depth == 1 else nn.Tanh)
        self.decoder = mlp(cfg.latent, n_pixels, cfg, nn.Tanh)
        self.scale = math.log(2) if cfg.kl == "mixed" else 1.0

    def encode(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and natural logarithm of the variance of q(z|x)."""
        mean_BZ, s_BZ = self.encoder(x_BD).chunk(2, dim=-1)
        return mean_BZ, self.scale * s_BZ


def reparametrised(mean, log_var, noise):
    return mean + (0.5 * log_var).exp() * noise


def exact_kl(mean, log_var):
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)


def mixed_kl(mean, log_var):
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var / math.log(2)).sum(-1)


def log_bernoulli(x, logits):
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(
        -1
    )


def log_weights(model, x_BD, k):
    mean, log_var = model.encode(x_BD)
    noise = torch.randn(k, *mean.shape, device=mean.device)
    z = reparametrised(mean, log_var, noise)
    log_ratio = -0.5 * (z**2 - noise**2 - log_var).sum(-1)
    return log_bernoulli(x_BD, model.decoder(z)) + log_ratio


def importance_bound(model, x_BD, k):
    return log_weights(model, x_BD, k).logsumexp(0) - math.log(k)


def elbo_parts(model, x_BD, n):
    mean, log_var = model.encode(x_BD)
    noise = torch.randn(n, *mean.shape, device=mean.device)
    logits = model.decoder(reparametrised(mean, log_var, noise))
    return -log_bernoulli(x_BD, logits).mean(0), exact_kl(mean, log_var)


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    x, x_test = (s[0].flatten(1).float() / 255 for s in (source.train, source.test))

    def binary(x):
        return torch.bernoulli(x) if cfg.threshold == 0 else (x > cfg.threshold).float()

    x_test = binary(x_test)
    rate = (binary(x).sum(0) + 1) / (len(x) + 2)
    baseline = F.binary_cross_entropy(rate.expand_as(x_test), x_test) * x.shape[1]
    model = VAE(x.shape[1], cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    start = ctx.keep(model=model, optimizer=optimizer)

    def loss(model, x_BD):
        if not cfg.grey:
            x_BD = binary(x_BD)
        if cfg.k > 1:
            return -importance_bound(model, x_BD, cfg.k).mean()
        mean, log_var = model.encode(x_BD)
        noise = torch.randn(mean.shape[-1] if cfg.shared_noise else mean.shape, device=mean.device)
        logits = model.decoder(reparametrised(mean, log_var, noise))
        kl = (mixed_kl if cfg.kl == "mixed" else exact_kl)(mean, log_var)
        return (cfg.beta * kl - log_bernoulli(x_BD, logits)).mean()

    def evaluate(model):
        r, kl = (
            torch.cat(p).mean().item()
            for p in zip(*(elbo_parts(model, b, 10) for b in x_test.split(500)), strict=True)
        )
        return {"neg_elbo": r + kl, "kl": kl, "reconstruction": r, "baseline": baseline}

    def bound():
        model.eval()
        return {
            "neg_iwae": -torch.cat(
                [importance_bound(model, b, 100) for b in x_test.split(50)]
            ).mean()
        }

    yield
    for epoch, row in enumerate(
        fit(
            model,
            (x,),
            loss,
            evaluate,
            optimizer,
            epochs=cfg.epochs,
            batch_size=cfg.batch_size,
            start=start,
        ),
        start + 1,
    ):
        yield row if epoch < cfg.epochs else lambda row=row: row() | bound()


FIX = {"kl": "exact", "shared_noise": False, "grey": False}
TASK = Task(
    config=Config(),
    run=run,
    sections=("Variational Autoencoders", "Implementing a VAE"),
    profiles={
        "smoke": {"data": "digits", "hidden": 256, "depth": 1, "threshold": 0.5, "epochs": 10},
        "laptop": {"data": "digits", "hidden": 256, "depth": 1, "threshold": 0.5, "epochs": 100},
        "paper": {},
    },
    variants={
        "fixed": FIX,
        "book": {},
        "mixed_kl": FIX | {"kl": "mixed"},
        "shared_noise": FIX | {"shared_noise": True},
        "latent2": FIX | {"latent": 2},
        "latent8": FIX | {"latent": 8},
        "beta4": FIX | {"beta": 4.0},
        "iwae5": FIX | {"k": 5},
        "iwae50": FIX | {"k": 50},
    },
    targets={"smoke": {}, "laptop": {}, "paper": {}},
)
