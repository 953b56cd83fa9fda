import dataclasses

import pytest
import torch
from torch.nn import functional as F

from suite.plan import expand
from suite.run import execute
from tasks.ch03_neural_network import perceptron
from tasks.ch03_neural_network.perceptron import BOOK, CENTRE, SCALE, Config

HOURS = torch.cartesian_prod(*[torch.arange(0, 11, dtype=torch.float64)] * 2)


def test_the_books_perceptron_is_the_books_neuron():
    theta = torch.tensor([BOOK], dtype=torch.float64)
    outputs = perceptron.perceptron(theta, F.pad(HOURS, (1, 0), value=1.0)[None])
    assert torch.equal(outputs, perceptron.neuron(theta[:, 1:], theta[:, 0], HOURS[None]))
    # On the line, as for 8 hours of sleep and none of study, the output is 1.
    at = {tuple(h.tolist()): y for h, y in zip(HOURS, outputs[0].tolist(), strict=True)}
    assert (at[8, 0], at[0, 6], at[7, 0], at[0, 5], at[10, 10]) == (1, 1, -1, -1, 1)


def test_scaling_the_hours_keeps_the_line():
    theta = torch.tensor([BOOK], dtype=torch.float64)
    plain = perceptron.perceptron(theta, F.pad(HOURS, (1, 0), value=1.0)[None])
    scaled = F.pad((HOURS - CENTRE) / SCALE, (1, 0), value=1.0)[None]
    on_line = (HOURS @ theta[0, 1:] + theta[0, 0]).abs() < 1e-9
    again = perceptron.perceptron(perceptron.scaled_line()[None], scaled)
    assert torch.equal(plain[0, ~on_line], again[0, ~on_line])


def test_students_keep_their_distance_to_the_line():
    torch.manual_seed(0)
    cfg = Config(sets=20, students=50)
    x_SBP, y_SB = perceptron.students(cfg)
    hours = CENTRE + SCALE * x_SBP[:, :, 1:]
    assert hours.min() >= 0
    assert hours.max() <= 10
    away = (3 * hours[..., 0] + 4 * hours[..., 1] - 24) / 5
    assert away.abs().min() >= cfg.margin - 1e-9
    assert torch.equal(away.sign(), y_SB)


def test_one_mistake_by_hand():
    theta = torch.zeros(2, 3, dtype=torch.float64)
    x = torch.tensor([[1.0, 2, 3], [1, 2, 3]], dtype=torch.float64)
    wrong = perceptron.rule_update(theta, x, torch.tensor([-1.0, 1.0]).double())
    assert wrong.tolist() == [True, False]
    assert theta.tolist() == [[-1, -2, -3], [0, 0, 0]]


def test_autograd_gives_rosenblatts_rule():
    torch.manual_seed(1)
    theta = torch.randn(50, 3).double()
    w, b = theta[:, 1:].clone(), theta[:, 0].clone()
    for _ in range(20):
        x = F.pad(torch.randn(50, 2).double(), (1, 0), value=1.0)
        y = perceptron.step(torch.randn(50).double())
        wrong = perceptron.rule_update(theta, x, y)
        assert torch.equal(perceptron.neuron_update(w, b, x, y), wrong)
    assert torch.equal(torch.cat([b[:, None], w], 1), theta)
    assert perceptron.disagreement(theta, w, b) == 0
    assert perceptron.disagreement(theta, w, b + 0.1) >= 0.1 - 1e-12


def test_the_bound_of_a_set_that_can_be_worked_out():
    theta = perceptron.scaled_line()
    unit = theta / theta.norm()
    x = torch.stack([2 * unit, -0.5 * unit])[None]
    torch.testing.assert_close(perceptron.bound(x), torch.tensor([16.0]).double())


@pytest.mark.parametrize("margin", [0.05, 1.0])
def test_a_run_ends_without_mistakes_and_within_the_bound(margin):
    spec = expand(["ch03.perceptron"], profile="smoke", overrides={"margin": margin})[0]
    train = execute(spec, resume=False).train
    assert train.final["train_accuracy"].value == 1
    assert train.final["bound_held"].value == 1
    assert train.curve["train_accuracy"][0] < 1
    assert train.final["epoch"].value < dataclasses.replace(Config()).passes


@pytest.mark.parametrize("margin", [4.8, 10.0])
def test_a_margin_that_leaves_no_students_on_one_side_is_refused(margin):
    """Beyond 9.2 hours there is nobody at all, and the draw would not end."""
    with pytest.raises(ValueError, match=r"'margin' takes a finite number ≥ 0 and < 4\.8"):
        perceptron.TASK.configure(overrides={"margin": margin})


def test_the_widest_margin_leaves_a_fifth_of_the_square():
    torch.manual_seed(2)
    hours = 10 * torch.rand(100_000, 2, dtype=torch.float64)
    away = (3 * hours[:, 0] + 4 * hours[:, 1] - 24) / 5
    assert float((away.abs() >= 4.8).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(away.min()) > -4.8
