import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from tasks.ch10_generative import vae


def _model(seed=0, n_pixels=12, **changes):
    torch.manual_seed(seed)
    cfg = dataclasses.replace(vae.Config(data="digits", hidden=8, latent=3), **changes)
    return vae.VAE(n_pixels, cfg).double(), cfg


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-4, 4))
def test_kl_is_that_of_two_normals(mu, log_v):
    mu, log_v = torch.tensor([[mu]]), torch.tensor([[log_v]])
    exact = kl_divergence(Normal(mu, (log_v / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(vae.kl(mu, log_v, log_v.exp()), exact, rtol=1e-4, atol=1e-5)


def test_the_listing_has_another_kl():
    s = torch.tensor([[1.0, -2.0]])
    listed = vae.kl(torch.zeros(1, 2), s, 2**s)
    correct = vae.kl(torch.zeros(1, 2), s * math.log(2), 2**s)
    assert (listed - correct).abs() > 0.1
    small = torch.full((1, 2), 0.5287)
    assert vae.kl(torch.zeros(1, 2), small, 2**small) < 0


def test_the_listing_shares_one_noise_vector():
    model, _ = _model(base=2.0)
    x = torch.bernoulli(torch.full((4, 12), 0.5)).double()[:1].expand(4, 12)
    shared = vae.listed_loss(model, x, shared_noise=True)
    assert shared.std() < 1e-9
    assert vae.listed_loss(model, x, shared_noise=False).std() > 1e-3


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_more_importance_samples_tighten_the_bound(seed):
    model, _ = _model(seed)
    x = torch.bernoulli(torch.full((64, 12), 0.5)).double()
    with torch.no_grad():
        bounds = [float(vae.importance_bound(model, x, k).mean()) for k in (1, 50, 2000)]
    assert bounds[0] - 0.1 <= bounds[1] <= bounds[2] + 0.1


def test_one_importance_sample_is_the_elbo_on_average():
    model, _ = _model()
    x = torch.bernoulli(torch.full((1, 12), 0.5)).double().expand(20_000, 12)
    with torch.no_grad():
        sampled = vae.importance_bound(model, x, 1).mean()
        reconstruction, divergence = vae.elbo_parts(model, x)
    assert float(-sampled) == pytest.approx(float((reconstruction + divergence).mean()), abs=0.05)


def test_the_bound_is_a_likelihood_when_the_posterior_is_exact():
    """A decoder that ignores z, and q equal to the prior: every sample weighs the same."""
    model, _ = _model()
    with torch.no_grad():
        for layer in (model.encoder[2], model.decoder[2]):
            layer.weight.zero_()
        model.encoder[2].bias.zero_()
        x = torch.bernoulli(torch.full((5, 12), 0.5)).double()
        exact = -vae.cross_entropy(model.decoder(torch.zeros(5, 3).double()), x)
        torch.testing.assert_close(vae.importance_bound(model, x, 7), exact)


def test_independent_pixels_is_the_entropy_of_coins():
    coins = torch.bernoulli(torch.full((4000, 3), 0.5))
    assert vae.independent_pixels(coins, coins) == pytest.approx(3 * math.log(2), abs=1e-3)


def test_tiles_keep_every_image_whole():
    images = torch.arange(6).float().view(2, 3, 1).expand(2, 3, 4)
    picture = vae.tile(images, 2)
    assert picture.shape == (8, 12)
    assert picture[1:3, 5:7].unique().tolist() == [1.0]
    assert picture[5:7, 1:3].unique().tolist() == [3.0]
