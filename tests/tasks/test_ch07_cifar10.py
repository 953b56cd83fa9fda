import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.ch07_convolution import cifar10
from tasks.models import training


def test_digits_get_two_colours_that_differ_and_keep_their_shape():
    torch.manual_seed(1)
    x = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 2:6, 2:6] = 255
    y = cifar10.coloured(x)
    assert (y.dtype, y.shape) == (torch.uint8, (40, 3, 32, 32))
    ground, ink = y[:, :, 0, 0].int(), y[:, :, 16, 16].int()
    assert (ground - ink).abs().min() >= 63
    assert len({tuple(c) for c in ground.tolist()}) == 40
    assert torch.equal(y[:, :, 31, 31].int(), ground)


def test_the_whitening_layer_whitens():
    torch.manual_seed(2)
    x = torch.randn(64, 3, 9, 9)
    x = x + 0.5 * x.roll(1, 3) + 0.3 * x.roll(1, 1)
    filters = cifar10.whitening(x, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[12:], -filters[:12])
    out = F.conv2d(x, filters[:12]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalised_keeps_the_singular_vectors_and_evens_the_values(shape):
    torch.manual_seed(3)
    G = torch.randn(shape, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    S = U.T @ cifar10.orthogonalised(G, steps=5) @ Vh.T
    off = S - torch.diag(S.diagonal())
    assert off.abs().max() < 1e-6
    assert 0.3 < float(S.diagonal().min()) <= float(S.diagonal().max()) < 1.3
    scaled = cifar10.orthogonalised(1000 * G, steps=5)
    torch.testing.assert_close(scaled, cifar10.orthogonalised(G, steps=5))


def test_muon_moves_along_the_orthogonal_factor_at_a_fixed_norm():
    torch.manual_seed(4)
    p = nn.Parameter(torch.randn(4, 3, 2, 2))
    before, grad = p.detach().clone(), torch.randn(4, 3, 2, 2)
    optimizer = cifar10.Muon([p], lr=0.1, momentum=0.6)
    p.grad = grad.clone()
    optimizer.step()
    # The first velocity is the gradient, and looking ahead adds 0.6 of it: the same direction.
    direction = cifar10.orthogonalised(grad.flatten(1)).view_as(p)
    expected = before * 2 / before.norm() - 0.1 * direction
    torch.testing.assert_close(p.detach(), expected)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["velocity"], 0.6 * grad)


def test_the_speedruns_net_begins_as_identities_and_has_few_trained_parts():
    torch.manual_seed(5)
    net = cifar10.Fast(1.0, "torch")
    assert sum(p.numel() for p in net.parameters()) == 1_972_792
    convolutions = [m for m in net.layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 64, 256, 256, 256, 256]
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(convolutions[1](x), x)
    torch.testing.assert_close(convolutions[2](x)[:, :64], x)
    assert not net.whiten.weight.requires_grad
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_books_net_has_the_listings_layers():
    net = cifar10.book_net(1.0, "torch")
    shapes = [tuple(m.weight.shape) for m in net if isinstance(m, nn.Conv2d | nn.Linear)]
    wide = (384, 64 * 36)
    assert shapes == [(64, 3, 5, 5), (64, 64, 5, 5), wide, (192, 384), (10, 192)]
    assert net(torch.randn(2, 3, 24, 24)).shape == (2, 10)
    with pytest.raises(ValueError, match="unknown recipe 'resnet'; did you mean 'resnet18'"):
        cifar10.network(cifar10.Config(recipe="resnet"))


def config(recipe, **changes):
    changes |= {"width": 0.125, "lr": 0.1, "weight_decay": 0.004, "recipe": recipe}
    return cifar10.Config(**changes)


def test_every_trained_parameter_of_the_speedrun_has_one_optimiser_and_falling_rates():
    cfg = config("speedrun")
    net = cifar10.network(cfg)
    optimizer = cifar10.updates(net, cfg, total=80)
    owned = [p for o in optimizer.optimizers for g in o.param_groups for p in g["params"]]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert len(owned) == len(trained)
    assert {id(p) for p in owned} == {id(p) for p in trained}
    sgd, muon = optimizer.optimizers
    for schedule in optimizer.schedules:
        schedule.last_epoch = 39
        with pytest.warns(UserWarning, match="before"):
            schedule.step()
    assert sgd.param_groups[0]["lr"] == 0, "the whitening layer's bias is done after 3 of 8"
    assert sgd.param_groups[1]["lr"] == pytest.approx(cifar10.BIAS_RATE / 2)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.05)
    # An update takes 0.004 of a weight, at whatever rate.
    assert [g["initial_lr"] * g["weight_decay"] for g in sgd.param_groups] == pytest.approx(
        [0.004] * 3
    )


def views(recipe, flip=True):
    return cifar10.Views(recipe, flip, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))


def test_images_of_the_speedrun_are_mirrored_in_every_other_epoch():
    x = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    x[:, :, :, :16] = 100
    turned = torch.arange(64) % 2 == 0
    shown = views("speedrun")
    for epoch in (0, 1, 2):
        y = shown.train(x, turned, epoch)
        bright_right = y[:, 0, 16, -4] > 50
        assert torch.equal(bright_right, turned if epoch % 2 == 0 else ~turned)
    assert not (views("speedrun", flip=False).train(x, turned, 0)[:, 0, 16, -4] > 50).any()


@pytest.mark.parametrize(("recipe", "flip", "n"), [("speedrun", True, 6), ("speedrun", False, 3)])
def test_weights_of_the_views_sum_to_one(recipe, flip, n):
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    shown = list(views(recipe, flip).test(x))
    assert len(shown) == n
    assert math.fsum(w for w, _ in shown) == 1
    assert all(v.shape == x.shape for _, v in shown)
    assert torch.equal(shown[0][1], x.float())


def test_the_book_tests_on_the_centre():
    x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    x[:, :, 4:28, 4:28] = torch.randint(1, 256, (24, 24), dtype=torch.uint8)
    [(weight, view)] = views("book").test(x)
    assert weight == 1
    assert view.shape == (1, 3, 24, 24)
    centre = x[:, :, 4:28, 4:28].float()
    torch.testing.assert_close(view, (centre - centre.mean()) / centre.std(correction=0))


def test_the_speedruns_net_is_one_graph_under_autocast():
    torch.manual_seed(6)
    net = cifar10.Fast(0.125, "torch").to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    call = training.in_precision(net, "bfloat16")
    graph = torch.compile(call, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(graph(x), call(x), atol=0.02, rtol=0.02)
    graph(x).sum().backward()
    assert net.whiten.bias.grad is not None
