import math

import pytest
import torch
from torch import nn

from tasks.ch03_neural_network import activations as task


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("depth", [2, 6])
def test_the_probe_is_the_recursion_by_hand(activation, depth):
    torch.manual_seed(1)
    cfg = task.Config(activation=activation, depth=depth, hidden=7)
    model, x, y = task.network(5, cfg).double(), torch.rand(9, 5).double(), torch.randint(10, (9,))
    value, norms = task.probe(model, x, y)
    layers = task.linears(model)
    assert len(norms) == len(layers) == depth + 1

    with torch.no_grad():
        given = [x, *task.outputs(model, x)]
    logits = layers[-1](given[-1]).detach()
    dz = (logits.softmax(1) - nn.functional.one_hot(y, 10)) / len(y)
    assert value == pytest.approx(float(-logits.log_softmax(1)[torch.arange(9), y].mean()))
    slope = {
        "sigmoid": lambda h: h * (1 - h),
        "tanh": lambda h: 1 - h**2,
        "relu": lambda h: (h > 0).double(),
    }[activation]
    for i in reversed(range(depth + 1)):
        assert norms[i] == pytest.approx(float((dz.T @ given[i]).norm()), rel=1e-9)
        dz = (dz @ layers[i].weight.detach()) * slope(given[i].detach())


def test_the_probe_works_while_gradients_are_off_and_leaves_none_behind():
    torch.manual_seed(2)
    model = task.network(4, task.Config(depth=2, hidden=6))
    with torch.no_grad():
        task.probe(model, torch.rand(3, 4), torch.tensor([0, 1, 2]))
    assert all(p.grad is None for p in model.parameters())


def test_weights_start_with_the_scale_of_their_neuron():
    torch.manual_seed(3)
    variances = {
        "relu": 2 / 128,
        "tanh": 2 / 256,
        "sigmoid": 2 / 256,
        "scaled_sigmoid": 16 * 2 / 256,
    }
    for activation, variance in variances.items():
        model = task.network(64, task.Config(activation=activation, depth=6, hidden=128))
        middle = task.linears(model)[3]
        assert float(middle.weight.detach().var()) == pytest.approx(variance, rel=0.05)
        assert not middle.bias.any()


def test_scaled_sigmoids_start_with_the_same_weights_four_times_as_large():
    nets = []
    for activation in ("sigmoid", "scaled_sigmoid"):
        torch.manual_seed(4)
        nets.append(task.network(6, task.Config(activation=activation, depth=3, hidden=8)))
    for plain, scaled in zip(*map(task.linears, nets), strict=True):
        torch.testing.assert_close(scaled.weight, 4 * plain.weight)


def test_at_zero_a_scaled_sigmoid_net_passes_gradients_on_as_tanh_does():
    """Both neurons' slope times the scale of their start; f is of the one neuron alone."""
    slopes = {}
    for name in ("tanh", "scaled_sigmoid"):
        z = torch.zeros(1, requires_grad=True)
        (slope,) = torch.autograd.grad(task.ACTIVATIONS[name]()(z), z)
        slopes[name] = float(slope)
    assert slopes["tanh"] == task.SCALE * slopes["scaled_sigmoid"]


def test_hidden_outputs_are_the_neurons_and_end_before_the_logits():
    torch.manual_seed(4)
    model = task.network(4, task.Config(activation="sigmoid", depth=3, hidden=5))
    x = torch.rand(2, 4)
    outputs = task.outputs(model, x)
    assert [h.shape for h in outputs] == [(2, 5)] * 3
    assert all(((h > 0) & (h < 1)).all() for h in outputs)
    torch.testing.assert_close(model[-1](outputs[-1]), model(x))


def test_scores_compare_the_first_layer_with_the_last():
    history = [[2.0, [0.01, 5.0, 1.0]], [0.5, [3.0, 7.0, 0.3]]]
    got = task.scores(history)
    assert got["loss_ratio"] == 0.25
    assert got["log10_start_ratio"] == pytest.approx(-2)
    assert got["log10_end_ratio"] == pytest.approx(1)


def test_a_sigmoid_layer_weakens_the_gradient_at_least_fourfold_for_its_weights_norm():
    """dE/dz of a layer is at most norm(W') / 4 times that of the next, W' being its matrix."""
    torch.manual_seed(5)
    model = task.network(6, task.Config(activation="sigmoid", depth=4, hidden=8)).double()
    x, y = torch.rand(1, 6).double(), torch.tensor([3])
    _, norms = task.probe(model, x, y)
    with torch.no_grad():
        given = [x, *task.outputs(model, x)]
    # With one example norm(dE/dW) = norm(dE/dz) norm(input).
    dz = [n / float(h.norm()) for n, h in zip(norms, given, strict=True)]
    for i, layer in enumerate(task.linears(model)[1:]):
        bound = float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) / 4
        assert dz[i] <= bound * dz[i + 1] * (1 + 1e-9)
        assert math.isfinite(dz[i])
