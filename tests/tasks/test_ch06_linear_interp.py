import math

import numpy as np
import pytest
import torch

from suite.plan import expand
from suite.run import execute
from tasks.ch06_optimization import linear_interp as task


def _net(seed=1, **changes):
    torch.manual_seed(seed)
    return task.network(4, task.Config(hidden=6, **changes)).double()


def _batch():
    torch.manual_seed(9)
    return torch.rand(30, 1, 4, 4, dtype=torch.float64), torch.randint(10, (30,))


def test_the_line_has_the_listings_80_alphas_and_both_ends_among_them():
    at_A = task.alphas(80)
    assert len(at_A) == 80
    assert (at_A[0], at_A[40], at_A[60]) == (-2.0, 0.0, 1.0)
    assert at_A[-1] == pytest.approx(1.95)


@pytest.mark.parametrize("points", [4, 8, 100])
def test_a_grid_that_is_accepted_has_both_ends_of_the_line(points):
    cfg = task.TASK.configure("smoke", overrides={"points": points})
    assert {0.0, 1.0} <= set(task.alphas(cfg.points).tolist())


@pytest.mark.parametrize("points", [1, 2, 7, 81, 82])
def test_a_grid_without_both_ends_of_the_line_is_refused(points):
    with pytest.raises(ValueError, match=f"points={points}: .* multiple of 4"):
        task.TASK.configure("smoke", overrides={"points": points})


@pytest.mark.parametrize(
    ("variant", "nets"), [("book", 1), ("fixed", 1), ("own_start", 1), ("two_solutions", 2)]
)
def test_only_nets_that_are_trained_count_as_parameters(variant, nets):
    [spec] = expand(
        ["ch06.linear_interp"],
        profile="smoke",
        variants=[variant],
        seeds=[0],
        overrides={"epochs": 1},
    )
    one = sum(p.numel() for p in task.network(8, task.Config(hidden=32)).parameters())
    assert execute(spec).train.n_params == nets * one


def test_the_ends_of_the_line_are_the_two_nets():
    a, b, (x, y) = _net(1), _net(2), _batch()
    got = task.losses(a, (task.vector(a), task.vector(b)), np.array([0.0, 1.0]), (x, y))
    for value, net in zip(got, (a, b), strict=True):
        expected = torch.nn.functional.cross_entropy(net(x), y)
        assert value == pytest.approx(float(expected.detach()), rel=1e-12)


def test_between_the_ends_every_weight_is_the_mixture():
    a, b, (x, y) = _net(1), _net(2), _batch()
    (got,) = task.losses(a, (task.vector(a), task.vector(b)), np.array([0.2]), (x, y))
    middle = _net(3)
    for m, p, q in zip(middle.parameters(), a.parameters(), b.parameters(), strict=True):
        m.data = 0.8 * p.data + 0.2 * q.data
    expected = torch.nn.functional.cross_entropy(middle(x), y)
    assert got == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize(
    ("walk", "largest"),
    [([5, 4, 2, 1], 0), ([5, 2, 4, 1, 2], 2), ([1, 5, 0], 4), ([3], 0), ([2, 1, 1.5, 1, 3], 2)],
)
def test_a_climb_is_from_any_point_to_any_later_one(walk, largest):
    assert task.climb(np.array(walk, dtype=float)) == largest


def test_the_shape_of_a_curve_by_hand():
    at_A = np.array([-0.5, 0.0, 0.5, 1.0, 1.5])
    got = task.shape_of(at_A, [0.1, 0.4, 0.3, 2.0, 0.05], untrained=2.0)
    assert got["argmin"] == 1.5
    assert got["argmin_error"] == pytest.approx(2.7)
    assert got["barrier"] == pytest.approx(0.05)
    assert got["descent"] == pytest.approx((2.0 - 0.4 - 0.1) / 2)
    assert got["beyond"] == pytest.approx((0.4 - 0.05) / 2)


def test_a_net_that_learned_nothing_neither_climbs_nor_descends():
    got = task.shape_of(task.alphas(8), [2.3] * 8, untrained=2.3)
    assert got["barrier"] == got["descent"] == got["beyond"] == 0


def test_matching_undoes_a_permutation_of_the_hidden_units():
    a, (x, _) = _net(4, relu_logits=False), _batch()
    # Units that never fire are alike, and which of them is which is not to be seen.
    for i in (1, 3):
        a[i].bias.data += 1
    shuffled = _net(5, relu_logits=False)
    shuffled.load_state_dict(a.state_dict())
    for i in (1, 3):
        order = torch.randperm(6)
        shuffled[i].weight.data = shuffled[i].weight.data[order]
        shuffled[i].bias.data = shuffled[i].bias.data[order]
        shuffled[i + 2].weight.data = shuffled[i + 2].weight.data[:, order]
    assert not torch.equal(task.vector(shuffled), task.vector(a))
    with torch.no_grad():
        found = task.matched(a, shuffled, x)
    torch.testing.assert_close(found, task.vector(a))


def test_matching_changes_nothing_of_what_a_net_computes():
    a, b, (x, _) = _net(6), _net(7), _batch()
    before = b(x)
    with torch.no_grad():
        theta_P = task.matched(a, b, x)
    after = torch.func.functional_call(b, task.unpacked(theta_P, b), (x,))
    torch.testing.assert_close(after, before)


def test_the_listings_net_ends_in_a_relu_and_the_fixed_one_does_not():
    x = torch.rand(5, 1, 28, 28)
    torch.manual_seed(2)
    book = task.network(28, task.Config())
    assert [tuple(p.shape) for p in book.parameters()][::2] == [(256, 784), (256, 256), (10, 256)]
    assert (book(x) >= 0).all()
    assert (task.network(28, task.Config(relu_logits=False))(x) < 0).any()
    assert task.network(28, task.Config(net="conv", relu_logits=False))(x).shape == (5, 10)


def test_the_picture_names_the_lowest_point():
    at_A = task.alphas(80)
    figure = task.draw_line(at_A, [list((at_A + 0.5) ** 2 + 1)] * 3, "a random net")
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert "lowest: 1 at -0.50" in labels
    assert math.isfinite(figure.axes[0].get_ylim()[1])
