"""Variational autoencoder: the book's listing, what its three faults cost, and tighter bounds.

Sections "Variational Autoencoders" and "Implementing a VAE". The net is the listing's 784-500-20
one with a sigmoid encoder and a tanh decoder, trained with Adam at 1e-3 for 10 epochs on

    -ELBO = -E_q[log p(x|z)] + KL(q(z|x) || p(z)),  q = N(mean, var),  p(z) = N(0, 1).

The book's notebook (2nd edition, chapter 10) prints losses of 559.5 nats per image at first and
121.7 at last, 124.7 on average over the last epoch. That loss is no ELBO: the encoder's output s
stands for var = 2^s, but the KL takes s where ln var = s ln 2 should stand (`kl = "mixed"`); all
images of a batch share one noise vector; and the pixels are greys, which no Bernoulli gives.

`book` keeps all three. `fixed` repairs them; `mixed_kl` and `shared_noise` leave in one. `latent2`
has a plane of codes, `beta2` weighs the KL twice, and `iwae5` and `iwae50` are trained on the
importance-weighted bound -ln 1/K sum_k p(x,z_k) / q(z_k|x) of K = 5 and 50 samples (Burda et al.,
2016), of which K = 1 is the ELBO. All are judged alike, on binary test images with the exact KL:
`neg_elbo` is kl + reconstruction, `neg_iwae` the bound of 100 samples, and `baseline` what pixels
of their own, each with its rate in the training set, would cost. All are nats per image.

Binary MNIST is sampled anew with every batch, its greys being the probabilities. Offline profiles
use scikit-learn's 8x8 digits, cut at one half, and two hidden layers of 256 tanh units.

Shapes: B batch, K samples, D pixels, Z latent dimensions.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, NonNegative, Positive
from suite.fit import fit
from suite.task import Claim, Target, Task

LN2 = math.log(2)
EVALUATION_SAMPLES, BOUND_SAMPLES = 10, 100


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    hidden: Count = 500
    depth: Count = 1
    latent: Count = 20
    kl: Literal["mixed", "exact"] = "mixed"
    shared_noise: bool = True
    grey: bool = True
    cut: NonNegative = 0.0
    beta: NonNegative = 1.0
    k: Count = 1
    lr: Positive = 1e-3
    batch_size: Count = 100
    epochs: Count = 10


def mlp(n_in: int, n_out: int, cfg: Config, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(cfg.depth):
        layers += [nn.Linear(cfg.hidden if i else n_in, cfg.hidden), activation()]
    return nn.Sequential(*layers, nn.Linear(cfg.hidden, n_out))


class VAE(nn.Module):
    """q(z|x) = N(mean, var) and p(x|z) = Bernoulli(sigmoid(logits))."""

    def __init__(self, n_pixels: int, cfg: Config) -> None:
        super().__init__()
        first = nn.Sigmoid if cfg.depth == 1 else nn.Tanh
        self.encoder = mlp(n_pixels, 2 * cfg.latent, cfg, first)
        self.decoder = mlp(cfg.latent, n_pixels, cfg, nn.Tanh)
        self.scale = LN2 if cfg.kl == "mixed" else 1.0

    def encode(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and ln var of q(z|x)."""
        mean_BZ, s_BZ = self.encoder(x_BD).chunk(2, dim=-1)
        return mean_BZ, self.scale * s_BZ


def exact_kl(mean_BZ: torch.Tensor, log_var_BZ: torch.Tensor) -> torch.Tensor:
    return 0.5 * (mean_BZ**2 + log_var_BZ.exp() - 1 - log_var_BZ).sum(-1)


def mixed_kl(mean_BZ: torch.Tensor, log_var_BZ: torch.Tensor) -> torch.Tensor:
    """The listing's: log2 var where ln var should stand."""
    return 0.5 * (mean_BZ**2 + log_var_BZ.exp() - 1 - log_var_BZ / LN2).sum(-1)


def log_bernoulli(x_BD: torch.Tensor, logits_KBD: torch.Tensor) -> torch.Tensor:
    """The listing's loss, with its sign turned: ln p(x|z), and not only for binary pixels."""
    target = x_BD.expand_as(logits_KBD)
    return -F.binary_cross_entropy_with_logits(logits_KBD, target, reduction="none").sum(-1)


def codes(model: VAE, x_BD: torch.Tensor, *size: int) -> tuple[torch.Tensor, ...]:
    """Mean and ln var of q(z|x), noise of `size` times Z, and the z that it gives."""
    mean_BZ, log_var_BZ = model.encode(x_BD)
    noise = torch.randn(*size, mean_BZ.shape[-1], device=x_BD.device)
    return mean_BZ, log_var_BZ, noise, mean_BZ + (log_var_BZ / 2).exp() * noise


def elbo_terms(model: VAE, x_BD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and exact KL of each image, the first averaged over k samples of z."""
    mean_BZ, log_var_BZ, _, z_KBZ = codes(model, x_BD, k, len(x_BD))
    return -log_bernoulli(x_BD, model.decoder(z_KBZ)).mean(0), exact_kl(mean_BZ, log_var_BZ)


def importance_bound(model: VAE, x_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Of each image: ln 1/K sum_k p(x,z_k) / q(z_k|x), on average at most ln p(x)."""
    _, log_var_BZ, noise_KBZ, z_KBZ = codes(model, x_BD, k, len(x_BD))
    log_p_over_q = 0.5 * (noise_KBZ**2 + log_var_BZ - z_KBZ**2).sum(-1)
    log_w_KB = log_bernoulli(x_BD, model.decoder(z_KBZ)) + log_p_over_q
    return log_w_KB.logsumexp(0) - math.log(k)


def training_loss(model: VAE, x_BD: torch.Tensor, cfg: Config) -> torch.Tensor:
    if cfg.k > 1:
        return -importance_bound(model, x_BD, cfg.k).mean()
    size = () if cfg.shared_noise else (len(x_BD),)
    mean_BZ, log_var_BZ, _, z_BZ = codes(model, x_BD, *size)
    kl_B = (mixed_kl if cfg.kl == "mixed" else exact_kl)(mean_BZ, log_var_BZ)
    return (cfg.beta * kl_B - log_bernoulli(x_BD, model.decoder(z_BZ))).mean()


def binary(x_BD: torch.Tensor, cut: float) -> torch.Tensor:
    """Pixels that are on: above the cut, or with their grey as the probability where it is 0."""
    return (x_BD > cut).float() if cut else torch.bernoulli(x_BD)


def independent_pixels(train_BD: torch.Tensor, test_BD: torch.Tensor) -> float:
    """Nats per test image if each pixel is on at its own rate (with one more of each seen)."""
    rate_D = (train_BD.sum(0) + 1) / (len(train_BD) + 2)
    return float(-torch.distributions.Bernoulli(rate_D).log_prob(test_BD).sum(1).mean())


def tiled(x_BD: torch.Tensor, columns: int) -> Any:
    """Square images side by side, as one, with a margin round each."""
    side = math.isqrt(x_BD.shape[1])
    x_BHW = F.pad(x_BD.reshape(-1, side, side), [side // 8] * 4)
    side += side // 8 * 2
    tiles = x_BHW.reshape(-1, columns, side, side).permute(0, 2, 1, 3)
    return tiles.reshape(-1, columns * side).cpu().numpy()


@torch.no_grad()
def draw_samples(model: VAE, x_BD: torch.Tensor, cfg: Config) -> Any:
    """Test images, what the decoder makes of their codes, and what it makes of the prior."""
    from matplotlib.figure import Figure

    some = x_BD[:50]
    rebuilt = model.decoder(model.encode(some)[0]).sigmoid()
    new = model.decoder(torch.randn(100, cfg.latent, device=x_BD.device)).sigmoid()
    pairs = torch.stack([some.reshape(5, 10, -1), rebuilt.reshape(5, 10, -1)], 1).flatten(0, 2)
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    titles = ("test images above their reconstructions", "decoded samples of the prior")
    for ax, images, title in zip(figure.subplots(1, 2), (pairs, new), titles, strict=True):
        ax.imshow(tiled(images, 10), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)
    return figure


@torch.no_grad()
def draw_plane(model: VAE, x_BD: torch.Tensor, y_B: torch.Tensor) -> Any:
    """A plane of codes: what it decodes to at the prior's quantiles, and where the digits lie."""
    from matplotlib.figure import Figure

    n = 16
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(n) + 0.5) / n)
    z = torch.cartesian_prod(-quantiles, quantiles).flip(1).to(x_BD.device)
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(tiled(model.decoder(z).sigmoid(), n), cmap="gray_r", vmin=0, vmax=1)
    left.set(xticks=[], yticks=[], title="decoded codes, at quantiles of the prior")
    means, y_B = model.encode(x_BD[:3000])[0].cpu(), y_B[:3000].cpu()
    for digit in range(10):
        at = means[y_B == digit].numpy()
        right.scatter(*at.T, marker=f"${digit}$", color=f"C{digit}", s=28, linewidth=0.4)
    right.set(title="mean codes of test digits", xlabel="$z_1$", ylabel="$z_2$")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    source = ctx.data(cfg.data)
    x, x_test = (split[0].flatten(1).float() / 255 for split in (source.train, source.test))
    x_test = binary(x_test, cfg.cut)
    baseline = independent_pixels(binary(x, cfg.cut), x_test)
    model = VAE(x.shape[1], cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    start = ctx.keep(model=model, optimizer=optimizer)

    def loss(model: Any, x_BD: torch.Tensor) -> torch.Tensor:
        return training_loss(model, x_BD if cfg.grey else binary(x_BD, cfg.cut), cfg)

    def evaluate(model: Any) -> dict[str, float]:
        parts = [elbo_terms(model, b, EVALUATION_SAMPLES) for b in x_test.split(500)]
        reconstruction, kl = (float(torch.cat(p).mean()) for p in zip(*parts, strict=True))
        return {
            "neg_elbo": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "baseline": baseline,
        }

    def last(row: Any) -> dict[str, float]:
        bounds = [importance_bound(model, b, BOUND_SAMPLES) for b in x_test.split(50)]
        return row() | {"neg_iwae": -float(torch.cat(bounds).mean())}

    yield
    epochs = fit(
        model,
        (x,),
        loss,
        evaluate,
        optimizer,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        start=start,
    )
    for epoch, row in enumerate(epochs, start + 1):
        yield row if epoch < cfg.epochs else lambda row=row: last(row)
    ctx.figure("samples", lambda: draw_samples(model, x_test, cfg))
    if cfg.latent == 2:
        ctx.figure("plane", lambda: draw_plane(model, x_test, source.test[1]))


REPAIRED = {"kl": "exact", "shared_noise": False, "grey": False}
SMALL = {"data": "digits", "hidden": 256, "depth": 2, "cut": 0.5}
SMOKE = (
    "pixels of their own cost 24.44; 20 seeds from 1000: at most 23.4, after half of the epochs at "
    "least 24.9"
)
LAPTOP = (
    "calibrated: 20 seeds from 1000 end at 17.8 to 18.0 and are at 18.5 or more after half of the "
    "epochs"
)
PAPER = (
    "this project's contract for 10 epochs; seeds 1000 and 1001: 102.8 and 102.7, after half of "
    "the epochs 107.7"
)
CODES = "calibrated: 20 seeds from 1000 have 5.7 nats or more with the 8x8 digits"
BOUND = "calibrated: 20 seeds from 1000 have at most 17.1"
PRINTED = (
    "book's notebook (2nd ed.), chapter 10, stored output: the mean of the six losses printed in "
    "epoch 10, the last of them 121.7, over the batch of 100. They spread by 5.8; the tolerance is "
    "twice the standard error of their mean. Seeds 1000 and 1001: 124.5 and 125.0"
)
EQUATIONS = "the listing against the section's own equations"
BURDA = "Burda et al. 2016, Importance Weighted Autoencoders, theorem 1 and table 1"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Variational Autoencoders", "Implementing a VAE"),
    profiles={
        "smoke": {**SMALL, "epochs": 6},
        "laptop": {**SMALL, "epochs": 100},
        "paper": {},
    },
    variants={
        "fixed": REPAIRED,
        "book": {},
        "mixed_kl": {**REPAIRED, "kl": "mixed"},
        "shared_noise": {**REPAIRED, "shared_noise": True},
        "latent2": {**REPAIRED, "latent": 2},
        "beta2": {**REPAIRED, "beta": 2.0},
        "iwae5": {**REPAIRED, "k": 5},
        "iwae50": {**REPAIRED, "k": 50},
    },
    targets={
        "smoke": {"fixed": Target("neg_elbo", 24.4, "min", SMOKE)},
        "laptop": {"fixed": Target("neg_elbo", 18.3, "min", LAPTOP)},
        "paper": {
            "fixed": Target("neg_elbo", 106.0, "min", PAPER),
            "book": Target("train_loss", 124.7, "near", PRINTED, tolerance=5.0),
        },
    },
    claims=(
        Claim(
            "with the listing's three faults repaired the bound is better",
            "neg_elbo",
            left="fixed",
            right="book",
            mode="min",
            source=EQUATIONS,
        ),
        Claim(
            "one noise vector for a whole batch costs nats",
            "neg_elbo",
            left="fixed",
            right="shared_noise",
            mode="min",
            source=EQUATIONS,
        ),
        Claim(
            "s where ln var should stand costs nats",
            "neg_elbo",
            left="fixed",
            right="mixed_kl",
            mode="min",
            source=EQUATIONS,
        ),
        Claim(
            "the code carries information: a KL of 4 nats or more",
            "kl",
            left="fixed",
            right=4.0,
            mode="max",
            source=CODES,
        ),
        Claim(
            "two latent dimensions are too few",
            "neg_elbo",
            left="fixed",
            right="latent2",
            mode="min",
            source="section 'Variational Autoencoders': the code is the bottleneck",
        ),
        Claim(
            "a KL that weighs twice leaves less information in the code",
            "kl",
            left="beta2",
            right="fixed",
            mode="min",
            source="Higgins et al. 2017, the paper on the beta-VAE, section 2",
        ),
        Claim(
            "a bound of 100 importance samples is within 17.3 nats",
            "neg_iwae",
            left="fixed",
            right=17.3,
            mode="min",
            source=BOUND,
            profiles=("laptop",),
        ),
        Claim(
            "training on the bound of 50 samples gives the better likelihood",
            "neg_iwae",
            left="iwae50",
            right="fixed",
            mode="min",
            source=BURDA,
        ),
        Claim(
            "training on the bound of 50 samples beats that of 5",
            "neg_iwae",
            left="iwae50",
            right="iwae5",
            mode="min",
            source=BURDA,
        ),
    ),
)
