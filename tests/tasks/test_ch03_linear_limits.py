import dataclasses
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tasks.ch03_neural_network import linear_limits
from tasks.ch03_neural_network.linear_limits import ACTIVATIONS, Config


def of(activation, **changes):
    torch.manual_seed(0)
    return linear_limits.network(dataclasses.replace(Config(), activation=activation, **changes))


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_a_stack_of_linear_neurons_is_one_linear_map(layers):
    model = of("linear", layers=layers)
    for layer in model[::2]:
        torch.nn.init.normal_(layer.bias)
    x_BD = torch.randn(50, 2)
    torch.testing.assert_close(model(x_BD), linear_limits.collapsed(model, x_BD))
    # An affine map keeps midpoints.
    middle = (model(x_BD) + model(x_BD.flip(0))) / 2
    torch.testing.assert_close(model((x_BD + x_BD.flip(0)) / 2), middle)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_other_neurons_are_not(activation):
    model, x_BD = of(activation), torch.randn(50, 2)
    gap = (model(x_BD) - linear_limits.collapsed(model, x_BD)).abs().max()
    assert gap > 0.01 * model(x_BD).abs().max()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_net_has_its_layers_and_activations(activation):
    model = of(activation, hidden=5, layers=2)
    assert [tuple(p.shape) for p in model.parameters()] == [
        (5, 2),
        (5,),
        (5, 5),
        (5,),
        (1, 5),
        (1,),
    ]
    assert isinstance(model[1], ACTIVATIONS[activation])
    assert isinstance(model[-1], torch.nn.Linear)


def test_without_noise_the_moons_are_half_circles_and_the_corners_corners():
    torch.manual_seed(1)
    x_BD, y_B = linear_limits.moons(400, 0.0)
    upper, lower = x_BD[y_B == 0], x_BD[y_B == 1]
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(200))
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(200))
    assert upper[:, 1].min() >= 0
    assert lower[:, 1].max() <= 0.5
    x_BD, y_B = linear_limits.xor(8, 0.0)
    assert torch.equal(y_B, (x_BD.prod(1) < 0).float())
    assert len(x_BD.unique(dim=0)) == 4


def test_no_line_gets_more_than_three_corners_of_xor():
    x_BD, y_B = linear_limits.xor(4, 0.0)
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(3000, 3, generator=generator)
    logits = lines[:, :1] + lines[:, 1:] @ x_BD.T
    best = max(linear_limits.accuracy(line, y_B) for line in logits)
    assert best == 0.75


def test_logistic_regression_agrees_with_scikit_learn():
    torch.manual_seed(2)
    x_BD, y_B = linear_limits.moons(300, 0.3)
    w_D = linear_limits.logistic_regression(x_BD, y_B)
    theirs = LogisticRegression(C=1e3, tol=1e-10).fit(x_BD.numpy(), y_B.numpy())
    expected = torch.tensor([*theirs.intercept_, *theirs.coef_[0]]).double()
    torch.testing.assert_close(w_D, expected, atol=1e-3, rtol=1e-3)


def test_the_loss_of_an_even_guess():
    model = of("relu")
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    y_B = torch.tensor([0.0, 1.0, 1.0])
    value = linear_limits.loss(model, torch.randn(3, 2), y_B)
    assert value.item() == pytest.approx(math.log(2))


def test_every_neuron_is_asked_for_xor_as_for_the_moons():
    for activation in ACTIVATIONS:
        moons, xor = (
            linear_limits.TASK.configure("laptop", v) for v in (activation, f"{activation}_xor")
        )
        assert moons.activation == activation
        assert xor == dataclasses.replace(moons, data="xor")
