import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tasks.ch03_neural_network import softmax as task


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 80))
@settings(max_examples=50, deadline=None)
def test_softmax_outputs_are_a_distribution_that_a_shift_leaves_alone(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    z_BK = scale * torch.randn(6, 10, generator=generator)
    p_BK = task.outputs(z_BK, "softmax")
    assert (p_BK >= 0).all()
    assert float((p_BK.sum(1) - 1).abs().max()) <= 1e-6
    torch.testing.assert_close(task.outputs(z_BK + 7, "softmax"), p_BK, atol=1e-4, rtol=1e-3)


def test_known_outputs_of_each_layer():
    z_BK = torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(task.outputs(z_BK, "softmax"), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(task.outputs(z_BK, "squared"), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(task.outputs(z_BK, "sigmoids"), torch.tensor([[0.5, 0.75]]))


def test_known_losses_of_each_layer():
    z_BK, y_B = torch.tensor([[0.0, math.log(3)]]), torch.tensor([0])
    assert float(task.loss_of(z_BK, y_B, "softmax")) == pytest.approx(math.log(4))
    # 1/2 for the first, which should say yes, and 1/4 for the second, which should say no.
    assert float(task.loss_of(z_BK, y_B, "sigmoids")) == pytest.approx(-math.log(0.5 * 0.25))
    assert float(task.loss_of(z_BK, y_B, "squared")) == pytest.approx(2 * 0.75**2)


@pytest.mark.parametrize("kind", ["softmax", "sigmoids"])
def test_both_cross_entropies_have_the_gradient_output_less_label(kind):
    torch.manual_seed(0)
    z_BK = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    y_B = torch.randint(10, (4,))
    (gradient,) = torch.autograd.grad(task.loss_of(z_BK, y_B, kind), z_BK)
    label_BK = F.one_hot(y_B, 10).double()
    expected = (task.outputs(z_BK, kind) - label_BK).detach() / 4
    torch.testing.assert_close(gradient, expected)


def test_the_squared_error_learns_nothing_where_the_softmax_is_surely_wrong():
    z_BK = torch.tensor([[30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y_B = torch.tensor([1])
    (squared,) = torch.autograd.grad(task.loss_of(z_BK, y_B, "squared"), z_BK)
    (entropy,) = torch.autograd.grad(task.loss_of(z_BK, y_B, "softmax"), z_BK)
    assert float(squared.abs().max()) < 1e-11
    assert float(entropy.abs().max()) == pytest.approx(1)


def test_calibration_by_hand():
    p_BK = torch.tensor([[0.95, 0.05], [0.93, 0.07], [0.6, 0.4], [0.35, 0.65]])
    share, confidence, accuracy = task.calibration(p_BK, torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(share[[6, 9]], torch.tensor([0.5, 0.5]).double())
    torch.testing.assert_close(
        confidence[[6, 9]], torch.tensor([0.625, 0.94]).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(accuracy[[6, 9]], torch.tensor([1.0, 0.5]).double())
    assert float(share.sum()) == 1
    assert not share[[0, 1, 2, 3, 4, 5, 7, 8]].any()


def test_a_forecast_as_often_right_as_it_says_is_calibrated():
    torch.manual_seed(1)
    p_B = 0.5 + 0.5 * torch.rand(200_000).double()
    y_B = (torch.rand(200_000).double() > p_B).long()
    share, confidence, accuracy = task.calibration(torch.stack([p_B, 1 - p_B], 1), y_B)
    assert float(share @ (confidence - accuracy).abs()) < 0.01


def test_scores_of_known_logits():
    z_BK = torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]])
    got = task.scores(z_BK, torch.tensor([0, 0]), "softmax")
    assert got["test_accuracy"] == 0.5
    assert got["sum_error"] <= 1e-6
    assert got["calibration_error"] == pytest.approx(0.5)
    apart = task.scores(z_BK, torch.tensor([0, 0]), "sigmoids")
    # One sigmoid says 1, the other two 1/2.
    assert apart["sum_gap"] == pytest.approx(1)
