import itertools
import math

import pytest
import torch

from tasks.ch06_optimization import identifiability as task


def _made(change, hidden=8):
    torch.manual_seed(3)
    cfg = task.Config(change=change, hidden=hidden, points=5)
    model = task.network(6, cfg).double()
    return cfg, model, torch.rand(40, 6, dtype=torch.float64), torch.randint(10, (40,))


@pytest.mark.parametrize("change", ["permutation", "rescaling", "sign"])
def test_a_twin_is_another_setting_of_the_same_net(change):
    cfg, model, x, _ = _made(change)
    other = task.twin(model, cfg)
    assert task.difference(model, other, x) < 1e-13
    assert task.distance(model, other) > 0.5


def test_the_control_is_another_net():
    cfg, model, x, _ = _made("one_layer")
    assert task.difference(model, task.twin(model, cfg), x) > 0.1


def test_the_net_itself_is_left_alone():
    cfg, model, _, _ = _made("rescaling")
    before = [p.clone() for p in model.parameters()]
    task.twin(model, cfg)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_every_order_of_a_small_layer_is_the_same_net():
    cfg, model, x, _ = _made("permutation", hidden=3)
    settings = set()
    for order in itertools.permutations(range(3)):
        other = task.copied(model, cfg)
        task.change(other, 0, torch.tensor(order), torch.ones(3))
        assert task.difference(model, other, x) < 1e-13
        settings.add(tuple(other[0].bias.tolist()))
    assert len(settings) == math.factorial(3)


def test_a_factor_of_minus_one_is_no_symmetry_of_relu():
    cfg, model, x, _ = _made("permutation")
    other = task.copied(model, cfg)
    task.change(other, 0, torch.arange(8), -torch.ones(8, dtype=torch.float64))
    assert task.difference(model, other, x) > 0.1


def test_gradients_of_a_rescaled_net_are_over_and_times_the_factor():
    cfg, model, x, y = _made("rescaling")
    k = torch.linspace(0.2, 5, 8, dtype=torch.float64)
    other = task.copied(model, cfg)
    task.change(other, 0, torch.arange(8), k)
    g, h = (
        torch.autograd.grad(task.loss(m, x, y), [m[0].weight, m[2].weight]) for m in (model, other)
    )
    torch.testing.assert_close(h[0], g[0] / k[:, None])
    torch.testing.assert_close(h[1], g[1] * k)


@pytest.mark.parametrize(("change", "stays"), [("permutation", True), ("rescaling", False)])
def test_a_step_keeps_permuted_twins_and_parts_rescaled_ones(change, stays):
    cfg, model, x, y = _made(change)
    after = [task.stepped(m, cfg, (x, y)) for m in (model, task.twin(model, cfg))]
    assert (task.difference(*after, x) < 1e-12) == stays


def test_the_line_between_begins_and_ends_at_the_two():
    cfg, model, x, y = _made("permutation")
    other = task.twin(model, cfg)
    line = task.between(model, other, cfg, (x, y))
    assert len(line) == 5
    ends = [float(task.loss(m, x, y).detach()) for m in (model, other)]
    assert [line[0], line[-1]] == pytest.approx(ends, rel=1e-12)


def test_the_drawn_change_is_a_permutation_a_positive_factor_or_half_of_the_signs():
    torch.manual_seed(0)
    order, factor = task.drawn(task.Config(change="permutation", hidden=50))
    assert sorted(order.tolist()) == list(range(50)) != order.tolist()
    assert (factor == 1).all()
    _, factor = task.drawn(task.Config(change="rescaling", hidden=50, factor=10.0))
    assert (factor >= 0.1).all()
    assert (factor <= 10).all()
    _, factor = task.drawn(task.Config(change="sign", hidden=50))
    assert factor.sum() == 0
