from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from suite import data
from suite.data import DataMissing
from tasks.ch07_convolution import style_transfer


def test_the_gram_matrix_is_symmetric_positive_and_blind_to_positions():
    torch.manual_seed(1)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    G = style_transfer.gram(x)
    torch.testing.assert_close(G, G.mT)
    assert float(torch.linalg.eigvalsh(G).min()) >= -1e-12
    expected = sum(torch.outer(x[0, :, i, j], x[0, :, i, j]) for i in range(4) for j in range(6))
    torch.testing.assert_close(G[0], expected / 24)
    shuffled = x.flatten(2)[:, :, torch.randperm(24)].view_as(x)
    torch.testing.assert_close(style_transfer.gram(shuffled), G)


def test_losses_of_known_pictures():
    wanted = torch.tensor([3.0, 4.0])
    assert float(style_transfer.relative(wanted, wanted)) == 0
    assert float(style_transfer.relative(torch.zeros(2), wanted)) == 1
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    # Down by 2, across by 1.
    assert float(style_transfer.total_variation(x)) == 5
    G = {"a": torch.eye(2), "b": torch.eye(2)}
    found = {"a": torch.eye(2)[None, :, None], "b": torch.zeros(1, 2, 1, 2)}
    half = style_transfer.gram(found["a"])[0] - torch.eye(2)
    expected = (float(half.square().sum()) / 2 + 1) / 2
    assert float(style_transfer.style_loss(found, G)) == pytest.approx(expected)


def test_the_gradient_of_the_style_loss_is_that_of_finite_differences():
    torch.manual_seed(2)
    net = style_transfer.RandomFeatures().double()
    style = torch.rand(1, 3, 12, 12, dtype=torch.float64)
    grams = {k: style_transfer.gram(v) for k, v in net(style).items()}
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def loss(x):
        return style_transfer.style_loss(net(x), grams)

    assert torch.autograd.gradcheck(loss, x, atol=1e-6)
    assert float(loss(style)) == 0


def test_random_filters_have_norm_one_and_halve_the_picture_at_each_scale():
    net = style_transfer.RandomFeatures()
    norms = torch.linalg.vector_norm(net.filters, dim=(2, 3, 4))
    torch.testing.assert_close(norms, torch.ones_like(norms))
    shapes = [tuple(f.shape[2:]) for f in net(torch.rand(1, 3, 16, 24)).values()]
    assert shapes == [(16, 24), (8, 12), (4, 6)]
    assert net.content_layer in net(torch.rand(1, 3, 16, 24))


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_both_optimisers_find_the_minimum_of_a_parabola_and_count_evaluations(name):
    x, calls = nn.Parameter(torch.tensor([0.5, -0.3])), []
    cfg = style_transfer.Config(optimizer=name, lr=0.05)
    optimizer = style_transfer.optimizer_of(cfg, x)

    def objective():
        calls.append(1)
        return ((x - torch.tensor([0.2, 0.1])) ** 2).sum()

    done = style_transfer.steps(optimizer, objective, 150)
    assert done == len(calls) >= 150
    torch.testing.assert_close(x.detach(), torch.tensor([0.2, 0.1]), atol=0.02, rtol=0)


def test_pictures_come_from_the_data_set_or_from_a_file(tmp_path):
    source = data.load("photographs")
    x = style_transfer.picture("flower.jpg", source, 40)
    assert x.shape == (1, 3, 40, 60)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), (255, 0, 0)).save(path)
    red = style_transfer.picture(str(path), source, 10)
    assert red.shape == (1, 3, 10, 15)
    assert torch.equal(red[0].mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"'flowers.jpg'; did you mean 'flower.jpg'"):
        style_transfer.picture("flowers.jpg", source, 40)


def test_without_vggs_weights_the_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataMissing, match=r"vgg19-dcbb9e9d.pth into .*or give --set features"):
        style_transfer.VGG19()


def test_vgg_features_are_those_of_its_layers(tmp_path, monkeypatch):
    """Of a small net in VGG-19's place: convolutions and ReLUs in place, in its order."""
    torch.manual_seed(3)
    kinds = []
    for i in range(30):
        if i in (4, 9, 18, 27):
            kinds.append(nn.MaxPool2d(2))
        elif i + 1 in style_transfer.VGG_LAYERS or i % 2 == 0:
            kinds.append(nn.Conv2d(3, 3, 3, padding=1))
        else:
            kinds.append(nn.ReLU(inplace=True))
    net = style_transfer.VGG19.__new__(style_transfer.VGG19)
    nn.Module.__init__(net)
    net.layers, net.mean, net.std = nn.Sequential(*kinds), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    found = net(torch.rand(1, 3, 32, 32))
    assert set(found) == set(style_transfer.VGG_LAYERS.values())
    last = torch.rand(1, 3, 32, 32)
    assert all(f.shape[1] == 3 for f in found.values())
    assert net(last)[net.content_layer].shape[2] == 4


def test_a_net_of_its_own_learns_and_is_fixed_then():
    """Ten colours, which the last block's mean shows."""
    torch.manual_seed(3)
    colours = torch.randint(0, 256, (10, 3, 1, 1))

    def images(n):
        y = torch.arange(n) % 10
        noise = torch.randint(-9, 10, (n, 3, 8, 8))
        return (colours[y] + noise).clamp(0, 255).to(torch.uint8), y

    source = SimpleNamespace(train=images(1000), test=images(200))
    net, accuracy = style_transfer.trained(source, epochs=6)
    assert accuracy > 0.9
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = net(torch.rand(1, 3, 20, 24))
    assert tuple(found) == net.style_layers
    assert [tuple(f.shape[1:]) for f in found.values()][::2] == [
        (24, 20, 24), (48, 10, 12), (96, 5, 6)
    ]  # fmt: skip
    assert all((f >= 0).all() for f in found.values())
    assert net.content_layer in found
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
