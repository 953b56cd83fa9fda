import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tasks.ch07_convolution import batchnorm

IMAGES, FEATURES = (6, 5, 4, 3), (8, 5)


def reference(x, gamma, beta, eps=batchnorm.EPS):
    """The section's formula over the batch, and over the positions of images: y, mean, var."""
    over = (0, 2, 3) if x.ndim == 4 else (0,)
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    mean = x.sum(over, keepdim=True) / (x.numel() / x.shape[1])
    var = ((x - mean) ** 2).sum(over, keepdim=True) / (x.numel() / x.shape[1])
    y = gamma.reshape(shape) * (x - mean) / (var + eps).sqrt() + beta.reshape(shape)
    return y, mean.flatten(), var.flatten()


def layer_with_random_parameters(kind, x):
    layer = batchnorm.normalisation(kind, x.shape[1], images=x.ndim == 4)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("shape", [IMAGES, FEATURES])
def test_batch_normalisation_is_the_formula(shape):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape) + 2).requires_grad_()
    layer = layer_with_random_parameters("batch", x)
    expected, _, _ = reference(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)

    upstream = torch.randn(shape)
    wanted = (x, layer.weight, layer.bias)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), wanted, upstream),
        torch.autograd.grad(expected, wanted, upstream),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", [IMAGES, FEATURES])
def test_running_averages_forget_a_tenth_with_every_batch(shape):
    torch.manual_seed(1)
    layer = batchnorm.normalisation("batch", shape[1], images=len(shape) == 4)
    average_mean, average_var = torch.zeros(shape[1]), torch.ones(shape[1])
    for _ in range(3):
        x = 2 * torch.randn(shape) - 1
        layer(x)
        _, mean, var = reference(x, layer.weight, layer.bias)
        n = x.numel() / shape[1]
        average_mean = 0.9 * average_mean + 0.1 * mean
        average_var = 0.9 * average_var + 0.1 * var * n / (n - 1)
    torch.testing.assert_close(layer.running_mean, average_mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.running_var, average_var, rtol=0, atol=1e-5)

    one = torch.randn((1, *shape[1:]))
    per_channel = (1, -1, 1, 1) if len(shape) == 4 else (1, -1)
    expected = (one - average_mean.reshape(per_channel)) / (
        average_var.reshape(per_channel) + batchnorm.EPS
    ).sqrt()
    torch.testing.assert_close(layer.eval()(one), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [IMAGES, FEATURES])
def test_layer_normalisation_takes_one_example_at_a_time(shape):
    torch.manual_seed(2)
    x = torch.randn(shape)
    layer = layer_with_random_parameters("layer", x)
    per_channel = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    normed = F.layer_norm(x, shape[1:], eps=batchnorm.EPS)
    expected = layer.weight.reshape(per_channel) * normed + layer.bias.reshape(per_channel)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


@given(scale=st.floats(0.1, 50), shift=st.floats(-5, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_batch_normalisation_undoes_scale_and_shift(scale, shift, seed):
    torch.manual_seed(seed)
    x = 4 * torch.randn(32, 3, dtype=torch.float64)
    layer = batchnorm.normalisation("batch", 3, images=False).double()
    layer.eps = 1e-12
    torch.testing.assert_close(layer(scale * x + shift), layer(x))


def test_without_normalisation_nothing_is_added():
    assert isinstance(batchnorm.normalisation("none", 4, images=True), nn.Identity)
    plain = batchnorm.network(3, 24, batchnorm.Config(norm="none"))
    convolutions = 3 * 25 * 64 + 64 + 64 * 25 * 64 + 64
    hidden = 36 * 64 * 384 + 384 + 384 * 192 + 192 + 192 * 10 + 10
    count = sum(p.numel() for p in plain.parameters())
    assert count == convolutions + hidden
    normed = batchnorm.network(3, 24, batchnorm.Config())
    extra = 2 * (64 + 64 + 384 + 192)
    assert sum(p.numel() for p in normed.parameters()) == count + extra


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_net_gives_logits_and_starts_as_he_says(norm):
    torch.manual_seed(4)
    model = batchnorm.network(3, 24, batchnorm.Config(norm=norm))
    assert model(torch.randn(2, 3, 24, 24)).shape == (2, 10)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
            assert not layer.bias.any()


def test_relu_inputs_are_the_normalised_sums():
    torch.manual_seed(5)
    cfg = batchnorm.Config(filters=4, hidden_1=6, hidden_2=5)
    model = batchnorm.network(1, 8, cfg).eval()
    x = torch.randn(7, 1, 8, 8)
    pairs = batchnorm.relu_inputs(model, x)
    assert [after.shape[1:] for _, after in pairs] == [(4, 8, 8), (4, 4, 4), (6,), (5,)]
    norms = [m for m in model if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for (before, after), norm in zip(pairs, norms, strict=True):
        torch.testing.assert_close(norm(before), after)
    torch.testing.assert_close(model[-1](pairs[-1][1].relu()), model(x))


def test_percentiles_of_a_uniform_grid():
    assert batchnorm.percentiles(torch.arange(101.0)) == pytest.approx([15, 50, 85])


def test_a_random_crop_is_a_window_of_its_image_or_the_mirror_of_one():
    torch.manual_seed(6)
    x = torch.arange(20 * 2 * 7 * 6, dtype=torch.float32).reshape(20, 2, 7, 6)
    crops, mirrored = batchnorm.random_crop(x, 4), 0
    corners = set()
    for image, crop in zip(x, crops, strict=True):
        windows = {
            (top, left): image[:, top : top + 4, left : left + 4]
            for top in range(4)
            for left in range(3)
        }
        straight = [at for at, w in windows.items() if torch.equal(w, crop)]
        flipped = [at for at, w in windows.items() if torch.equal(w.flip(2), crop)]
        assert len(straight) + len(flipped) == 1
        mirrored += len(flipped)
        corners.update(straight, flipped)
    assert 0 < mirrored < 20
    assert len(corners) > 6


def test_the_central_crop_is_in_the_middle():
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 4:28, 4:28] = 1
    assert batchnorm.central_crop(x, 24).shape == (1, 1, 24, 24)
    assert batchnorm.central_crop(x, 24).all()
