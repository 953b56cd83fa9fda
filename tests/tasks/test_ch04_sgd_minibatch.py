import pytest
import torch

from tasks.ch04_feed_forward import sgd_minibatch as task


def test_each_examples_gradient_is_autograds():
    torch.manual_seed(0)
    model, x, y = task.network(6, 5).double(), torch.rand(4, 6).double(), torch.randint(10, (4,))
    g_NP = task.gradients(model, x, y)
    for n in range(4):
        value = task.loss(model, x[n : n + 1], y[n : n + 1])
        (expected,) = torch.autograd.grad(value, model[-1].weight)
        torch.testing.assert_close(g_NP[n], expected.flatten())


def test_the_variance_of_a_minibatch_is_the_examples_over_its_size():
    torch.manual_seed(1)
    g_NP = torch.randn(60, 8)
    single = float(((g_NP - g_NP.mean(0)) ** 2).sum(1).mean())
    for size, found in zip((1, 5, 40), task.variances(g_NP, (1, 5, 40), 4000), strict=True):
        assert found == pytest.approx(single / size, rel=0.1)


def test_equal_gradients_have_no_variance():
    assert task.variances(torch.ones(9, 3), (1, 4), 20) == pytest.approx([0, 0], abs=1e-10)


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([0.5, 0.9, 0.5, 0.9, 0.95], 4),
        ([0.9, 0.9], 1),
        ([0.5, 0.9, 0.8], None),
        ([0.9], None),
        ([], None),
    ],
)
def test_the_level_is_reached_by_two_in_a_row(accuracies, first):
    assert task.first_reached(accuracies, 0.9) == first


def test_the_scaled_rate_grows_as_the_batch_does():
    small, large = (task.TASK.configure(variant=v) for v in ("batch32", "batch256_scaled"))
    assert large.lr / small.lr == large.batch_size / small.batch_size == 8


def test_a_level_that_was_not_reached_is_later_than_every_other():
    """A run without the metric is no failed one."""
    claims = [c for c in task.TASK.claims if c.metric in ("updates_to_level", "passes_to_level")]
    assert len(claims) == 3
    assert all(c.censored for c in claims)


def test_the_picture_counts_whole_passes():
    measured = {"variances": [1 / s for s in task.SIZES], "variance_slope": -1.0}
    figure = task.draw_noise(measured, [0.6, 0.9, 0.95], 0.95, "32 examples each")
    figure.canvas.draw()
    assert all(tick == int(tick) for tick in figure.axes[1].get_xticks())
