"""Variational autoencoders: the listing as printed against a correct ELBO, and tighter bounds.

Sections "Variational Autoencoders" and "Implementing a VAE". A Gaussian q(z|x) is encoded, z is
drawn from it, and Bernoulli pixels p(x|z) are decoded; training minimises

    -ELBO = E_q[-log p(x|z)] + KL(q(z|x) || N(0, I)),   KL = -1/2 sum(1 + log v - mu^2 - v).

The listing (`book`) makes three choices that keep its loss from being this bound: it draws the
variance as v = 2^s but puts s, not log v, into the KL; one noise vector serves the whole batch; and
the pixels are grey values, for which the cross-entropy is no log-likelihood. Its notebook's stored
loss falls from 559.5 to 121.7 nats an image in 10 epochs on MNIST. `printed_loss` is that quantity;
`neg_elbo` is the correct bound on binarised test images, whichever way the model was trained.

`fixed` has v = e^s, noise for every image and binary pixels; `latent2` has a latent of 2 numbers,
`beta4` weighs the KL four times, and `iwae5` and `iwae50` maximise the importance-weighted bound
log mean_k p(x,z_k)/q(z_k|x) (Burda et al. 2015). `iwae100` is that bound on the test set, k = 100.

Departures from the book: MNIST's pixels are binarised by a coin of their grey value, a new toss for
every batch, the test set's fixed; scikit-learn's digits by a threshold at half. The width of the
listing's hidden layer, 500, and its latent, 20, are kept; Adam at 1e-3 and batches of 128 are ours.

Shapes: B batch, K samples, D pixels, H hidden, Z latent.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from suite.fit import fit
from suite.task import Claim, Target, Task


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    hidden: int = 500
    latent: int = 20
    bottleneck: int = 0  # a variant's own latent; 0 leaves ``latent``
    base: float = math.e  # of the exponential that gives the variance
    shared_noise: bool = False
    grey: bool = False
    beta: float = 1.0
    k: int = 0  # importance samples of the training bound; 0 is the ELBO with its exact KL
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 10


class VAE(nn.Module):
    """Encoder to (mu, s) and decoder to pixel logits, one hidden layer each."""

    def __init__(self, n_pixels: int, cfg: Config) -> None:
        super().__init__()
        self.latent = cfg.bottleneck or cfg.latent
        self.log_base = math.log(cfg.base)
        self.encoder = nn.Sequential(
            nn.Linear(n_pixels, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, 2 * self.latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(self.latent, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, n_pixels)
        )

    def encode(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and s, the variance's logarithm to the base ``cfg.base``: mu_BZ, s_BZ."""
        mu_BZ, s_BZ = self.encoder(x_BD).chunk(2, dim=-1)
        return mu_BZ, s_BZ


def cross_entropy(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """-log p(x|z) in nats, summed over the pixels."""
    return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def kl(mu: torch.Tensor, log_v: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, v) || N(0, I)) in nats, summed over the latent."""
    return -0.5 * (1 + log_v - mu.square() - v).sum(-1)


def importance_bound(model: VAE, x_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Estimate log 1/K sum_k p(x,z_k)/q(z_k|x) for every image, (B,)."""
    mu_BZ, s_BZ = model.encode(x_BD)
    log_v_BZ = s_BZ * model.log_base
    noise_KBZ = torch.randn(k, *mu_BZ.shape, device=x_BD.device)
    z_KBZ = mu_BZ + (log_v_BZ / 2).exp() * noise_KBZ
    # Both Gaussians have the constant Z/2 log 2 pi, so it cancels.
    log_prior_KB = -0.5 * z_KBZ.square().sum(-1)
    log_q_KB = -0.5 * (noise_KBZ.square() + log_v_BZ).sum(-1)
    log_p_KB = -cross_entropy(model.decoder(z_KBZ), x_BD)
    return (log_p_KB + log_prior_KB - log_q_KB).logsumexp(0) - math.log(k)


def listed_loss(model: VAE, x_BD: torch.Tensor, shared_noise: bool) -> torch.Tensor:
    """Reconstruction and the KL with s where log v belongs, as the listing adds them, (B,)."""
    mu_BZ, s_BZ = model.encode(x_BD)
    v_BZ = (s_BZ * model.log_base).exp()
    noise = torch.randn(model.latent if shared_noise else mu_BZ.shape, device=x_BD.device)
    return cross_entropy(model.decoder(mu_BZ + v_BZ.sqrt() * noise), x_BD) + kl(mu_BZ, s_BZ, v_BZ)


def elbo_parts(model: VAE, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and correct KL, (B,) each, one draw an image."""
    mu_BZ, s_BZ = model.encode(x_BD)
    log_v_BZ = s_BZ * model.log_base
    z_BZ = mu_BZ + (log_v_BZ / 2).exp() * torch.randn_like(mu_BZ)
    return cross_entropy(model.decoder(z_BZ), x_BD), kl(mu_BZ, log_v_BZ, log_v_BZ.exp())


def training_loss(model: VAE, x_BD: torch.Tensor, cfg: Config) -> torch.Tensor:
    """The mean loss that a variant trains on."""
    x_BD = x_BD if cfg.grey else binarised(x_BD, cfg.data)
    if cfg.shared_noise:
        return listed_loss(model, x_BD, cfg.shared_noise).mean()
    if cfg.k:
        return -importance_bound(model, x_BD, cfg.k).mean()
    reconstruction, divergence = elbo_parts(model, x_BD)
    return (reconstruction + cfg.beta * divergence).mean()


def binarised(grey_BD: torch.Tensor, name: str) -> torch.Tensor:
    """Black and white: MNIST by a coin of its grey value, others by a threshold."""
    return torch.bernoulli(grey_BD) if name == "mnist" else (grey_BD > 0.5).to(grey_BD.dtype)


def independent_pixels(train_BD: torch.Tensor, test_BD: torch.Tensor) -> float:
    """Nats an image when every pixel is its own coin: what a model must beat to have learnt."""
    n = len(train_BD)
    p_D = (train_BD.sum(0) + 0.5) / (n + 1)
    return float(F.binary_cross_entropy(p_D.expand_as(test_BD), test_BD) * test_BD.shape[1])


def evaluate(
    model: VAE, x_BD: torch.Tensor, grey_BD: torch.Tensor, *, last: bool
) -> dict[str, Any]:
    reconstruction, divergence = elbo_parts(model, x_BD)
    scores = {
        "neg_elbo": float((reconstruction + divergence).mean()),
        "reconstruction": float(reconstruction.mean()),
        "kl": float(divergence.mean()),
        "printed_loss": float(listed_loss(model, grey_BD, shared_noise=True).mean()),
    }
    if last:
        bounds = [importance_bound(model, part, 100) for part in x_BD.split(250)]
        scores["iwae100"] = -float(torch.cat(bounds).mean())
    return scores


def tile(images: torch.Tensor, side: int) -> torch.Tensor:
    """(rows, columns, D) as one picture, with a light line around every image."""
    rows, columns, _ = images.shape
    framed = F.pad(images.view(rows, columns, side, side), (1, 1, 1, 1), value=0.15)
    return framed.transpose(1, 2).reshape(rows * (side + 2), -1)


def draw(model: VAE, x_BD: torch.Tensor) -> Any:
    """Test images above their reconstructions, samples of the prior, and the manifold if Z is 2."""
    from matplotlib.figure import Figure

    side = math.isqrt(x_BD.shape[1])
    with torch.no_grad():
        again = model.decoder(model.encode(x_BD[:60])[0]).sigmoid()
        sampled = model.decoder(torch.randn(144, model.latent, device=x_BD.device)).sigmoid()
    pairs = torch.stack([x_BD[:60].view(6, 10, -1), again.view(6, 10, -1)], 1).reshape(12, 10, -1)
    panels = {"test image, reconstruction below": pairs}
    panels["decoded draws from the prior"] = sampled.view(12, 12, -1)
    if model.latent == 2:
        # Equal steps of probability along either axis, as the prior lays them out.
        at = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.03, 0.97, 12))
        z_BZ = torch.cartesian_prod(at, at).to(x_BD.device)
        with torch.no_grad():
            panels["the plane of z"] = model.decoder(z_BZ).sigmoid().view(12, 12, -1)
    figure = Figure(figsize=(4.2 * len(panels), 4.6), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(tile(images.cpu(), side), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(title, size=10)
        axes.set_axis_off()
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    train_BD, grey_BD = (x.flatten(1).float() / 255 for x in (source.train[0], source.test[0]))
    coins = torch.Generator().manual_seed(20_151)
    black = torch.bernoulli(grey_BD.cpu(), generator=coins).to(ctx.device)
    x_BD = black if cfg.data == "mnist" else binarised(grey_BD, cfg.data)
    baseline = independent_pixels(binarised(train_BD, cfg.data), x_BD)
    model = VAE(train_BD.shape[1], cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    start = ctx.keep(model=model, optimizer=optimizer)

    def loss(model: nn.Module, x_BD: torch.Tensor) -> torch.Tensor:
        return training_loss(model, x_BD, cfg)  # type: ignore[arg-type]

    yield
    rows = fit(
        model,
        (train_BD,),
        loss,
        lambda model: {"baseline": baseline},
        optimizer,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        start=start,
    )
    for epoch, row in enumerate(rows, start + 1):
        last = epoch == cfg.epochs
        yield lambda row=row, last=last: row() | evaluate(model, x_BD, grey_BD, last=last)
    ctx.figure("samples", lambda: draw(model, x_BD))


LISTING = "book's notebook (2nd ed.), chapter 10"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Variational Autoencoders", "Implementing a VAE"),
    profiles={
        "smoke": {"data": "digits", "hidden": 256, "latent": 8, "batch_size": 64, "epochs": 8},
        "laptop": {"data": "digits", "hidden": 256, "latent": 8, "batch_size": 64, "epochs": 100},
        "paper": {},
    },
    variants={
        "fixed": {},
        "book": {"base": 2.0, "shared_noise": True, "grey": True},
        "latent2": {"bottleneck": 2},
        "beta4": {"beta": 4.0},
        "iwae5": {"k": 5},
        "iwae50": {"k": 50},
    },
    targets={
        "smoke": {
            "fixed": Target("neg_elbo", 24.4, "min", "pixels as independent coins: 24.43 nats")
        },
        "laptop": {
            "fixed": Target(
                "neg_elbo",
                18.8,
                "min",
                "calibrated: 11 seeds from 1000 end between 17.9 and 18.4; 10 epochs give 20.8",
            ),
        },
        "paper": {
            "fixed": Target("neg_elbo", 106.0, "min", "this project's contract for 10 epochs"),
            "book": Target(
                "printed_loss",
                121.7,
                "near",
                f"{LISTING}, stored loss after 10 epochs; 559.5 at the start",
                tolerance=3.0,
            ),
        },
    },
    claims=(
        Claim(
            "with the bugs repaired the bound is better",
            metric="neg_elbo",
            left="fixed",
            right="book",
            mode="min",
            source="the listing's shared noise and mixed KL against the section's own equations",
        ),
        Claim(
            "the latent carries information: KL of 4 nats or more",
            metric="kl",
            left="fixed",
            right=4.0,
            mode="max",
            source="calibrated: 11 seeds from 1000 have 6.1 nats or more",
            profiles=("laptop",),
        ),
        Claim(
            "100 importance samples come within 17.6 nats",
            metric="iwae100",
            left="fixed",
            right=17.6,
            mode="min",
            source="calibrated: 11 seeds from 1000 have 17.3 nats or less",
            profiles=("laptop",),
        ),
        Claim(
            "two latent numbers are too few",
            metric="neg_elbo",
            left="fixed",
            right="latent2",
            mode="min",
            source="section 'Variational Autoencoders': the latent is the bottleneck",
        ),
        Claim(
            "a heavier KL leaves less information in the latent",
            metric="kl",
            left="beta4",
            right="fixed",
            mode="min",
            source="Higgins et al. 2017, beta-VAE",
        ),
        Claim(
            "training on 50 importance samples gives the better likelihood",
            metric="iwae100",
            left="iwae50",
            right="fixed",
            mode="min",
            source="Burda et al. 2015, Importance Weighted Autoencoders, theorem 1 and table 1",
        ),
        Claim(
            "50 importance samples beat 5",
            metric="iwae100",
            left="iwae50",
            right="iwae5",
            mode="min",
            source="Burda et al. 2015, Importance Weighted Autoencoders, theorem 1 and table 1",
        ),
    ),
)
