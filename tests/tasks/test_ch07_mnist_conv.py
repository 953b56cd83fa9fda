import math

import pytest
import torch
from torch import nn

from suite import task as tasks
from suite.plan import expand
from suite.run import execute
from tasks.ch07_convolution import mnist_conv as task

TASK = tasks.find("ch07.mnist_conv")


def net(variant, size=28, **overrides):
    cfg = TASK.configure("paper", variant, overrides=overrides)
    return task.network(1, size, cfg)


def n_params(model):
    return sum(p.numel() for p in model.parameters())


def test_the_listing_has_its_parameters_and_no_nonlinearity_after_the_hidden_units():
    torch.manual_seed(0)
    convolutions = 32 * 25 + 32 + 64 * 32 * 25 + 64
    hidden = 7 * 7 * 64 * 1024 + 1024 + 1024 * 10 + 10
    book, fixed = net("book"), net("fixed")
    assert n_params(book) == n_params(fixed) == convolutions + hidden
    features = book.eval()[:7](torch.rand(3, 1, 28, 28))
    weight, bias = (
        book[10].weight @ book[7].weight,
        book[10].weight @ book[7].bias + book[10].bias,
    )
    torch.testing.assert_close(book[7:](features), features @ weight.T + bias)
    assert isinstance(fixed[8], nn.ReLU)


def test_the_recipe_is_the_net_of_the_example():
    expected = 320 + 18496 + 9216 * 128 + 128 + 1290
    assert n_params(net("recipe")) == expected
    assert TASK.configure("paper", "recipe").share * 40 == 14


@pytest.mark.parametrize("variant", TASK.variants)
def test_every_net_takes_both_sizes_of_image(variant):
    for size in (8, 28):
        assert net(variant, size).eval()(torch.rand(2, 1, size, size)).shape == (2, 10)


def test_multiply_adds_of_a_layer_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    assert task.multiply_adds(model, torch.rand(1, 2, 8, 8)) == 36 * 3 * 2 * 9 + 108 * 5
    assert not model[0]._forward_hooks


def test_rates_fall_by_steps_and_rise_and_fall_once():
    assert [task.rate("steps", e, 14) for e in (0, 0.9, 1, 2.5)] == [1, 1, 0.7, 0.7**2]
    cycle = [task.rate("cycle", e / 10, 8) for e in range(81)]
    assert cycle[0] == cycle[-1] == 0
    assert cycle[20] == max(cycle) == 1
    assert cycle[10] == pytest.approx(0.5)
    assert cycle[50] == pytest.approx(0.5)
    assert task.rate("constant", 3, 8) == 1


def test_without_strength_nothing_is_distorted_and_with_little_not_much():
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 28, 28)
    x[:, :, 10:18, 12:16] = 255
    assert task.distorted(x, 0.0) is x
    slightly = task.distorted(x, 1e-6)
    torch.testing.assert_close(slightly, x, rtol=0, atol=0.1)
    much = task.distorted(x, 1.0)
    assert not torch.allclose(much[0], much[1], atol=50)
    assert much.min() == 0
    mass = much.sum((1, 2, 3)) / x.sum((1, 2, 3))
    assert (mass > 0.4).all()
    assert (mass < 2.0).all()


def test_a_distortion_moves_the_centre_by_as_much_as_it_says():
    torch.manual_seed(1)
    x = torch.zeros(500, 1, 28, 28)
    x[:, :, 11:17, 11:17] = 255
    y = task.distorted(x, 1.0)
    place = torch.arange(28.0)
    centre = (y.sum((1, 2)) * place).sum(1) / y.sum((1, 2, 3))
    assert (centre - 13.5).abs().max() < 8
    assert (centre - 13.5).abs().mean() > 0.8


def test_the_first_of_two_evaluations_in_a_row():
    assert task.first_at([0.1, 0.9, 0.5, 0.9, 0.9], 0.9) == 3
    assert task.first_at([0.1, 0.9], 0.9) is None
    assert task.first_at([], 0.9) is None


def test_work_is_counted_until_the_level_or_to_the_end():
    few = {"epochs": 1, "width": 4, "share": 1.0}
    finals = {}
    for level in (0.0, 1.0):
        (spec,) = expand(
            ["ch07.mnist_conv"],
            profile="smoke",
            variants=["fast"],
            overrides=few | {"level": level},
        )
        finals[level] = execute(spec, resume=False).train.final["log10_operations"].value
    # Four evaluations: at the first of them 3 of the 12 batches of 128 are done.
    assert 10 ** (finals[1.0] - finals[0.0]) == pytest.approx(1437 / (3 * 128))
    model = net("fast", size=8, width=4)
    forward = task.multiply_adds(model, torch.rand(1, 1, 8, 8))
    assert finals[1.0] == pytest.approx(math.log10(3 * forward * 1437))


def test_a_net_and_its_gradients_are_the_same_in_every_implementation():
    """With the kernel interpreted."""
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([3, 7])
    found = {}
    for impl in ("torch", "reference", "triton"):
        torch.manual_seed(0)
        model = net("fixed", size=8, width=2, impl=impl).eval()
        loss = nn.functional.cross_entropy(model(x), y)
        found[impl] = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    torch.testing.assert_close(found["reference"], found["torch"])
    torch.testing.assert_close(found["triton"], found["torch"])
