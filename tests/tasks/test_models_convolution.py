"""The layer, the residual nets, random changes of images, and schedules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.models import augmentation, training
from tasks.models.convolution import (
    Block,
    Convolution,
    Padded,
    depth_blocks,
    normalisation,
    residual_net,
)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_the_layer_is_a_convolution_with_zeros_around(impl):
    torch.manual_seed(1)
    layer = Convolution(3, 5, 3, stride=2, bias=True, impl=impl)
    x = torch.randn(2, 3, 9, 8)
    expected = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("kind", "groups"), [("group", 4), ("layer", 1), ("instance", 8)])
def test_kinds_of_normalisation_differ_in_who_shares_mean_and_variance(kind, groups):
    torch.manual_seed(2)
    layer, x = normalisation(kind, 8, groups=4), 3 * torch.randn(5, 8, 4, 3) + 1
    parts = x.reshape(5, groups, -1)
    mean, var = parts.mean(2, keepdim=True), parts.var(2, correction=0, keepdim=True)
    expected = ((parts - mean) / (var + layer.eps).sqrt()).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x), F.group_norm(x, groups, eps=layer.eps))
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_an_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match=r"'grup'; did you mean 'group'"):
        normalisation("grup", 8)
    with pytest.raises(ValueError, match="unknown shortcut 'projekt'"):
        Block(4, 4, 1, "projekt", norm="batch", groups=1, impl="torch")


def test_the_shortcut_without_parameters_takes_every_other_pixel_and_adds_zeros():
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    y = Padded(3, 5, 2)(x)
    assert y.shape == (2, 5, 2, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


def test_a_block_whose_filters_are_zero_passes_its_input_on_or_nothing():
    x = torch.randn(2, 4, 5, 5).abs()
    for shortcut, expected in (("pad", x), ("none", torch.zeros_like(x))):
        block = Block(4, 4, 1, shortcut, norm="none", groups=1, impl="torch")
        for p in block.parameters():
            nn.init.zeros_(p)
        assert torch.equal(block(x), expected)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "published"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6)]
)
def test_parameters_are_those_of_he_et_al_table_6(depth, published):
    with torch.device("meta"):
        residual, plain = (
            residual_net(depth_blocks(depth), 16, shortcut=kind) for kind in ("pad", "none")
        )
    assert count(residual) == pytest.approx(published, abs=0.005e6)
    assert count(plain) == count(residual)
    layers = [m for m in residual.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_the_18_layer_net_for_cifar_has_11_million_parameters():
    with torch.device("meta"):
        model = residual_net((2, 2, 2, 2), 64, shortcut="project")
    assert count(model) == 11_173_962


def test_a_depth_that_is_no_residual_net_is_refused():
    assert depth_blocks(56) == (9, 9, 9)
    for depth in (2, 19, 21):
        with pytest.raises(ValueError, match=f"6 n [+] 2 layers, such as 20; got {depth}"):
            depth_blocks(depth)


def test_gradients_reach_the_first_layer_of_every_kind():
    torch.manual_seed(3)
    for options in ({"shortcut": "pad"}, {"shortcut": "project", "norm": "group"}):
        model = residual_net((1, 1), 8, n_in=1, **options)
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert model.stem[0].weight.grad.any()


def test_windows_are_where_they_were_asked_for():
    x = torch.arange(3 * 2 * 6 * 5, dtype=torch.uint8).reshape(3, 2, 6, 5)
    top, left = torch.tensor([0, 2, 1]), torch.tensor([3, 0, 1])
    got = augmentation.window(x, top, left, (4, 2))
    for i in range(3):
        assert torch.equal(got[i], x[i, :, top[i] : top[i] + 4, left[i] : left[i] + 2])


def test_shifts_go_both_ways_and_bring_in_what_the_mode_says():
    torch.manual_seed(4)
    x = torch.zeros(300, 1, 5, 5)
    x[:, :, 2, 2] = 1
    at = augmentation.shifted(x, 2).flatten(1).argmax(1)
    assert {(int(i) // 5, int(i) % 5) for i in at} == {(i, j) for i in range(5) for j in range(5)}
    assert augmentation.shifted(torch.ones(50, 1, 5, 5), 2).min() == 0
    assert augmentation.shifted(torch.ones(50, 1, 5, 5), 2, "reflect").min() == 1


def test_mirrored_twice_is_the_image_and_the_others_stay():
    x, which = torch.randn(4, 2, 3, 5), torch.tensor([True, False, True, False])
    once = augmentation.mirrored(x, which)
    assert torch.equal(once[1], x[1])
    assert torch.equal(once[0], x[0].flip(2))
    assert torch.equal(augmentation.mirrored(once, which), x)


def test_light_changes_contrast_about_the_mean_and_brightness_evenly():
    torch.manual_seed(5)
    x = 100 * torch.rand(200, 3, 6, 6)
    contrast = augmentation.lit(x, 0.0, (0.2, 1.8))
    torch.testing.assert_close(contrast.mean((2, 3)), x.mean((2, 3)))
    factor = contrast.std((2, 3)) / x.std((2, 3))
    torch.testing.assert_close(factor[:, 0], factor[:, 1])
    assert 0.2 <= factor.min() < 0.4
    assert 1.6 < factor.max() <= 1.8
    change = augmentation.lit(x, 63.0, (1.0, 1.0)) - x
    assert change.std((1, 2, 3)).max() < 1e-4
    assert 50 < change.abs().max() <= 63.01


def test_whitening_undoes_brightness_and_contrast_but_keeps_an_even_image_finite():
    torch.manual_seed(6)
    x = 50 + 100 * torch.rand(4, 3, 8, 8)
    y = augmentation.whitened(x)
    torch.testing.assert_close(y.mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean((1, 2, 3)), torch.ones(4))
    torch.testing.assert_close(augmentation.whitened(0.5 * x + 7), y, atol=1e-4, rtol=1e-4)
    assert not augmentation.whitened(torch.full((1, 3, 8, 8), 9.0)).any()


def test_bfloat16_gives_logits_in_float32_and_near_those_of_float32():
    torch.manual_seed(7)
    model, x = residual_net((1, 1), 8), torch.randn(16, 3, 8, 8)
    full, half = (training.in_precision(model, p)(x) for p in training.PRECISIONS)
    assert half.dtype == full.dtype == torch.float32
    assert 0 < float((full - half).detach().abs().max()) < 0.1
    with pytest.raises(ValueError, match="unknown precision 'float16'; did you mean 'bfloat16'"):
        training.in_precision(model, "float16")


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(x))


def test_compiling_in_the_set_up_changes_nothing_of_the_model(monkeypatch):
    torch.manual_seed(8)
    model, seen = Linear().eval(), []
    before = copy.deepcopy(model.state_dict())

    def compile_(call, **options):
        return lambda x: seen.append(tuple(x.shape)) or call(x)

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    call = training.in_precision(model, "float32")
    training.compiled(call, model, torch.randn(4, 3), torch.randn(2, 3))
    assert seen == [(4, 3)] * 3 + [(2, 3)] * 3
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def scheduled(model):
    sgd = torch.optim.SGD([model.layer.weight], lr=0.1, momentum=0.9)
    adam = torch.optim.Adam([model.layer.bias], lr=0.01)
    return training.Scheduled([sgd, adam], [lambda n: 1 - n / 10, lambda n: 0.5**n])


def train(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(4, 3) + torch.arange(4.0)[:, None]).square().sum().backward()
        optimizer.step()


def test_rates_follow_the_updates_and_survive_a_restart():
    torch.manual_seed(9)
    model = Linear()
    twin = copy.deepcopy(model)
    optimizer = scheduled(model)
    assert [o.param_groups[0]["lr"] for o in optimizer.optimizers] == [0.1, 0.01]
    train(model, optimizer, 3)
    assert optimizer.updates == 3
    rates = [o.param_groups[0]["lr"] for o in optimizer.optimizers]
    assert rates == pytest.approx([0.07, 0.01 / 8])
    twin.load_state_dict(model.state_dict())
    again = scheduled(twin)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, again, 2)
    assert again.updates == 5
    assert torch.equal(twin.layer.weight, model.layer.weight)
    assert torch.equal(twin.layer.bias, model.layer.bias)
