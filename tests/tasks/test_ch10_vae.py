import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from tasks.ch10_generative import vae

REPAIRED = {"kl": "exact", "shared_noise": False, "grey": False}


def small(**changes):
    return vae.Config(**{"hidden": 12, "latent": 3} | changes)


@given(
    mean=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
    log_var=st.floats(-6, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_exact_kl_is_the_divergence_and_the_mixed_one_is_not(mean, log_var):
    mean_Z = torch.tensor(mean, dtype=torch.float64)
    log_var_Z = torch.full_like(mean_Z, log_var)
    q = Normal(mean_Z, (log_var_Z / 2).exp())
    p = Normal(torch.zeros_like(mean_Z), torch.ones_like(mean_Z))
    exact = vae.exact_kl(mean_Z, log_var_Z)
    torch.testing.assert_close(exact, kl_divergence(q, p).sum())

    s = log_var_Z / math.log(2)
    listing = -0.5 * (1 + s - mean_Z**2 - 2**s).sum()
    mixed = vae.mixed_kl(mean_Z, log_var_Z)
    torch.testing.assert_close(mixed, listing)
    gap = 0.5 * (1 - 1 / math.log(2)) * log_var_Z.sum()
    torch.testing.assert_close(mixed - exact, gap, atol=1e-9, rtol=1e-9)


def test_the_mixed_kl_is_no_divergence():
    at_its_least = torch.tensor([-math.log(math.log(2))])
    assert float(vae.mixed_kl(torch.zeros(1), at_its_least)) == pytest.approx(-0.04304, abs=1e-4)


def test_two_to_the_s_is_the_variance_of_the_listing():
    torch.manual_seed(0)
    x_BD = torch.rand(4, 16)
    listing, repaired = vae.VAE(16, small()), vae.VAE(16, small(**REPAIRED))
    repaired.load_state_dict(listing.state_dict())
    mean_BZ, log_var_BZ = listing.encode(x_BD)
    same_mean_BZ, s_BZ = repaired.encode(x_BD)
    assert torch.equal(mean_BZ, same_mean_BZ)
    torch.testing.assert_close(log_var_BZ.exp(), 2**s_BZ)


def test_the_books_loss_is_the_listings():
    torch.manual_seed(1)
    cfg, x_BD = small(), torch.rand(5, 16)
    model = vae.VAE(16, cfg)
    torch.manual_seed(2)
    got = vae.training_loss(model, x_BD, cfg)

    torch.manual_seed(2)
    noise_Z = torch.randn(cfg.latent)
    h = torch.sigmoid(model.encoder[0](x_BD))
    mean, s = model.encoder[2](h).split(cfg.latent, dim=1)
    z = mean + noise_Z * (2**s) ** 0.5
    output = torch.sigmoid(model.decoder[2](torch.tanh(model.decoder[0](z))))
    kl = -0.5 * torch.sum(1 + s - mean**2 - 2**s)
    expected = (kl + nn.BCELoss(reduction="sum")(output, x_BD)) / len(x_BD)
    torch.testing.assert_close(got, expected)


def test_the_book_shares_its_noise_and_the_repaired_loss_does_not():
    torch.manual_seed(3)
    model = vae.VAE(16, small())
    x_BD = torch.rand(1, 16).expand(6, 16)
    *_, shared = vae.codes(model, x_BD)
    *_, own = vae.codes(model, x_BD, len(x_BD))
    assert (shared == shared[0]).all()
    assert len(own.unique(dim=0)) == 6


def test_the_net_is_the_books():
    shapes = [tuple(p.shape) for p in vae.VAE(784, vae.Config()).parameters()]
    assert shapes == [
        *[(500, 784), (500,), (40, 500), (40,)],
        *[(500, 20), (500,), (784, 500), (784,)],
    ]


def log_evidence(model, x_BD):
    """Ln p(x) by quadrature over a one-dimensional z."""
    z = torch.linspace(-12, 12, 2_401, dtype=x_BD.dtype)[:, None]
    log_p_z = Normal(0.0, 1.0).log_prob(z[:, 0])
    logits = model.decoder(z)
    log_p = torch.stack([Bernoulli(logits=logits).log_prob(x).sum(1) for x in x_BD], 1)
    return (log_p + log_p_z[:, None]).logsumexp(0) + math.log(24 / 2_400)


def test_bounds_rise_with_their_samples_to_the_evidence():
    torch.manual_seed(4)
    model = vae.VAE(9, small(latent=1, **REPAIRED)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
        x_BD = torch.rand(3, 9, dtype=torch.float64).round()
        evidence = log_evidence(model, x_BD)
        reconstruction, kl = vae.elbo_terms(model, x_BD, 20_000)
        elbo = -(reconstruction + kl)

        def average_bound(k, runs):
            return vae.importance_bound(model, x_BD.repeat(runs, 1), k).reshape(runs, -1).mean(0)

        one, few, many = average_bound(1, 20_000), average_bound(5, 4_000), average_bound(50_000, 1)
    assert (elbo < few).all()
    assert (few < evidence + 0.02).all()
    torch.testing.assert_close(one, elbo, atol=0.1, rtol=0)
    torch.testing.assert_close(many, evidence, atol=0.03, rtol=0)


@pytest.mark.parametrize("k", [1, 7])
def test_a_bound_is_exact_where_the_posterior_is(k):
    torch.manual_seed(5)
    model = vae.VAE(9, small(**REPAIRED)).double()
    x_BD = torch.rand(6, 9, dtype=torch.float64).round()
    with torch.no_grad():
        for last in (model.encoder[-1], model.decoder[-1]):
            last.weight.zero_()
        model.encoder[-1].bias.zero_()
        evidence = Bernoulli(logits=model.decoder[-1].bias).log_prob(x_BD).sum(1)
        torch.testing.assert_close(vae.importance_bound(model, x_BD, k), evidence)
        reconstruction, kl = vae.elbo_terms(model, x_BD, k)
    torch.testing.assert_close(-reconstruction, evidence)
    assert not kl.any()


def test_beta_weighs_the_kl():
    torch.manual_seed(6)
    x_BD = torch.rand(5, 16).round()
    model = vae.VAE(16, small(**REPAIRED))
    kl = vae.exact_kl(*model.encode(x_BD)).mean()
    losses = []
    for beta in (1.0, 3.0):
        torch.manual_seed(7)
        losses.append(vae.training_loss(model, x_BD, small(beta=beta, **REPAIRED)))
    torch.testing.assert_close(losses[1] - losses[0], 2 * kl)


def test_binary_pixels():
    torch.manual_seed(8)
    grey = torch.tensor([[0.0, 0.2, 0.5, 0.6, 1.0]])
    assert vae.binary(grey, 0.5).tolist() == [[0, 0, 0, 1, 1]]
    drawn = vae.binary(grey.expand(20_000, 5), 0.0)
    assert set(drawn.unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.mean(0), grey[0], atol=0.02, rtol=0)


def test_independent_pixels_cost_their_entropy():
    train = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    test = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert vae.independent_pixels(train, test) == pytest.approx(
        -(math.log(3 / 4 * 1 / 2) + math.log(1 / 4 * 1 / 2)) / 2
    )


def test_tiles_are_in_reading_order():
    images = torch.arange(1.0, 7.0)[:, None].expand(6, 64)
    shown = vae.tiled(images, 3)
    assert shown.shape == (20, 30)
    assert shown[5::10, 5::10].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert shown[::10].sum() == 0


def test_the_plane_shows_large_second_codes_on_top():
    model = vae.VAE(64, small(latent=2, **REPAIRED))
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
        model.decoder[0].weight[0, 1] = 1.0
        model.decoder[-1].weight[:, 0] = 9.0
    x_BD, y_B = torch.rand(30, 64), torch.arange(30) % 10
    figure = vae.draw_plane(model, x_BD, y_B)
    shown = figure.axes[0].images[0].get_array()
    assert shown[5, 5] > 0.9
    assert shown[-5, 5] < 0.1
    assert shown[5, 5] == shown[5, -6]
    figure.canvas.draw()
