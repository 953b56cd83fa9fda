import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from suite.plan import expand
from suite.run import execute
from tasks.ch06_optimization import optimizers as task


def one_step(name, start, gradient, steps=2, **changes):
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = task.optimizer_of(replace(task.Config(), optimizer=name, **changes), [w])
    for _ in range(steps):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return w.detach().tolist()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        # How far two steps on the same gradient g = 2 go, in units of the rate.
        ("sgd", 2 + 2),
        ("momentum", 2 + (0.9 * 2 + 2)),
        ("nesterov", (2 + 0.9 * 2) + (2 + 0.9 * (0.9 * 2 + 2))),
        ("adagrad", 1 + 2 / math.sqrt(4 + 4)),
        ("rmsprop", 2 / math.sqrt(0.01 * 4) + 2 / math.sqrt(0.99 * 0.01 * 4 + 0.01 * 4)),
        ("adam", 1 + 1),
    ],
)
def test_two_updates_are_those_of_the_chapters_formulas(name, way):
    (w,) = one_step(name, [1.0], [2.0])
    assert w == pytest.approx(1 - 0.01 * way, abs=1e-7)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'adamw'; did you mean 'adam'\? Allowed: adagrad"):
        one_step("adamw", [1.0], [2.0])


def test_the_net_is_the_books_and_the_last_relu_is_optional():
    torch.manual_seed(0)
    model = task.network(784, 256, relu_logits=False)
    sizes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert sizes == [(256, 784), (256, 256), (10, 256)]
    x_BD = torch.randn(50, 784)
    clipped = task.network(784, 256, relu_logits=True)
    clipped.load_state_dict(model.state_dict())
    torch.testing.assert_close(clipped(x_BD), model(x_BD).clamp(min=0))


def test_pytorchs_start_is_what_it_was_without_a_choice():
    torch.manual_seed(4)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    after = torch.get_rng_state()
    torch.manual_seed(4)
    model = task.network(6, 8, relu_logits=False)
    assert torch.equal(torch.get_rng_state(), after)
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_the_books_start_has_six_times_the_variance_and_no_biases():
    torch.manual_seed(5)
    nets = [task.network(784, 256, relu_logits=False, init=i) for i in ("he", "torch")]
    for i, n_in in ((0, 784), (2, 256), (4, 256)):
        ours, usual = (net[i].weight.detach() for net in nets)
        assert float(ours.var()) == pytest.approx(2 / n_in, rel=0.1)
        assert float(ours.var() / usual.var()) == pytest.approx(6, rel=0.1)
        assert not nets[0][i].bias.any()
        # Normal and not uniform, whose fourth moment is 1.8.
        assert float(((ours / ours.std()) ** 4).mean()) == pytest.approx(3, rel=0.2)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum=0"):
        task.TASK.configure("smoke", "nesterov", overrides={"momentum": "0"})
    assert task.TASK.configure("smoke", "momentum", overrides={"momentum": "0"}).momentum == 0


def test_a_cost_that_an_untrained_net_has_is_reached_after_no_update():
    [spec] = expand(
        ["ch06.optimizers"],
        profile="smoke",
        variants=["sgd"],
        seeds=[0],
        overrides={"cost": "3.0", "epochs": "1"},
    )
    final = execute(spec).train.final
    assert final["steps_to_cost"].value == 0
    assert "log10_steps_to_cost" not in final


@pytest.mark.parametrize(
    ("changes", "dead", "rest"),
    [
        ({}, [], ""),
        ({"init": "he"}, [], ", the book's start"),
        ({"relu_logits": True}, [], ", ReLU on the logits: none of 10 classes dead in this run"),
        ({"relu_logits": True}, [3, 5], ", ReLU on the logits: 2 of 10 classes dead in this run"),
    ],
)
def test_the_picture_says_how_many_classes_are_dead(changes, dead, rest):
    assert task.named(replace(task.Config(), **changes), dead) == f"sgd, rate 0.01{rest}"


def test_a_dead_class_has_no_gradient():
    torch.manual_seed(1)
    model = task.network(6, 8, relu_logits=True)
    x_BD, y_B = torch.rand(40, 6), torch.arange(10).repeat(4)
    with torch.no_grad():
        model[4].bias[3] = -100
        model[4].bias[5] = 100
    task.loss(model, x_BD, y_B).backward()
    dead = task.dead_classes(model(x_BD), y_B)
    assert 3 in dead
    assert 5 not in dead
    assert not model[4].weight.grad[3].any()
    assert model[4].weight.grad[5].any()


def test_an_output_for_images_of_other_classes_does_not_bring_a_class_back():
    y_B = torch.arange(10).repeat(200)
    logits_BK = torch.nn.functional.one_hot(y_B, 10).float()
    assert task.dead_classes(logits_BK, y_B) == []
    logits_BK[y_B == 3, 3] = 0
    logits_BK[0, 3] = 2.0
    assert task.dead_classes(logits_BK, y_B) == [3]
    logits_BK[3::100, 3] = 1.0
    assert task.dead_classes(logits_BK, y_B) == []


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([2.0, 1.0, 0.5], 20.0),
        ([2.0, 1.5, 0.5], 25.0),
        ([0.9, 0.1, 0.0], 0.0),
        ([2, 1.5, 1.1], None),
    ],
)
def test_the_crossing_is_interpolated(costs, expected):
    assert task.first_below([0, 20, 30], costs, 1.0) == (
        expected if expected != 20.0 else pytest.approx(20.0)
    )


@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=20), st.floats(0.01, 3))
@settings(max_examples=100, deadline=None)
def test_the_crossing_lies_between_the_last_above_and_the_first_below(costs, level):
    at = task.first_below(list(range(len(costs))), costs, level)
    if min(costs) > level:
        assert at is None
    else:
        first = next(i for i, c in enumerate(costs) if c <= level)
        assert max(0, first - 1) <= at <= first


def test_recall_is_the_share_of_each_class():
    logits_BK = nn.functional.one_hot(torch.tensor([0, 0, 1, 2]), 3).float()
    assert task.recall(logits_BK, torch.tensor([0, 1, 1, 2])) == [1.0, 0.5, 1.0]
