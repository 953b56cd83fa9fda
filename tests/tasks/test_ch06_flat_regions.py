import math

import numpy as np
import pytest
import torch

from tasks.ch06_optimization import flat_regions as task


def test_the_slope_is_the_heights_gradient():
    torch.manual_seed(1)
    z_SN2 = torch.randn(3, 7, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(task.height(z_SN2).sum(), z_SN2)
    torch.testing.assert_close(task.slope(z_SN2.detach()), expected)


def test_both_saddles_are_critical_and_the_monkey_is_flat_to_second_order():
    zero = torch.zeros(3, 1, 2, dtype=torch.float64)
    assert not task.slope(zero).any()
    hessian = torch.autograd.functional.hessian(lambda z: task.height(z)[task.MONKEY, 0], zero)
    assert not hessian.any()


def _after(updates, **changes):
    torch.manual_seed(2)
    cfg = task.Config(starts=9, **changes)
    z_SN2 = task.placed(cfg)
    first, optimizer = z_SN2.clone(), task.optimizer_of(z_SN2, cfg)
    out_SN = torch.zeros(z_SN2.shape[:2], dtype=torch.bool)
    for _ in range(updates):
        task.update(z_SN2, optimizer, out_SN, cfg)
    return first, z_SN2


def test_gradient_descent_grows_and_shrinks_geometrically_near_the_saddle():
    first, last = _after(50, method="gd")
    x, y = last[task.SADDLE].T
    torch.testing.assert_close(x, 0.98**50 * first[task.SADDLE, :, 0])
    torch.testing.assert_close(y, 1.02**50 * first[task.SADDLE, :, 1])


def test_momentum_grows_by_the_larger_root_of_its_recursion():
    _, before = _after(120, method="gd", momentum=0.9)
    _, after = _after(121, method="gd", momentum=0.9)
    root = (1.92 + math.sqrt(1.92**2 - 4 * 0.9)) / 2
    ratio = after[task.SADDLE, :, 1] / before[task.SADDLE, :, 1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, root), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("changes", "leaves"),
    [
        ({"method": "gd"}, False),
        ({"method": "gd", "momentum": 0.9}, False),
        ({"method": "rmsprop"}, False),
        ({"method": "rmsprop_corrected"}, False),
        ({"method": "gd", "noise": 0.1}, True),
    ],
)
def test_only_noise_leaves_the_ridge(changes, leaves):
    _, last = _after(5, **changes)
    assert bool((last[task.RIDGE, :, 1] != 0).all()) == leaves
    assert bool((last[task.RIDGE, :, 1] == 0).all()) != leaves


def test_rmsprops_first_step_does_not_depend_on_the_slope():
    first, last = _after(1, method="rmsprop")
    moved = (last - first)[task.SADDLE].abs()
    # lr / sqrt(1 - 0.99), but for the epsilon beside a slope of 1e-6.
    assert moved[:, 0] == pytest.approx(np.full(9, 0.1), rel=1e-5)
    assert (moved[:, 1] > 0.05).all()


def test_with_bias_correction_the_first_step_is_the_rate():
    first, last = _after(1, method="rmsprop_corrected")
    assert (last - first)[task.SADDLE].abs()[:, 0] == pytest.approx(np.full(9, 0.01), rel=1e-5)


def test_both_are_kingma_and_bas_recursion_but_for_the_correction():
    steps = {"rmsprop": 1.0, "rmsprop_corrected": 1.0}
    for method in steps:
        x, average = 1.0, 0.0
        for k in range(1, 8):
            average = 0.99 * average + 0.01 * (2 * x) ** 2
            share = 1 - 0.99**k if method == "rmsprop_corrected" else 1.0
            x -= 0.01 * 2 * x / math.sqrt(average / share)
        _, last = _after(7, method=method)
        assert last[task.RIDGE, :, 0] == pytest.approx(np.full(9, x), rel=1e-6)
        steps[method] = x
    # The first seven steps of 10 lr, 7.1 lr, ... against seven of about lr.
    assert steps["rmsprop"] < 0.75 < 0.92 < steps["rmsprop_corrected"]


@pytest.mark.parametrize("method", ["gd", "rmsprop_corrected"])
def test_what_has_escaped_is_left_alone(method):
    cfg = task.Config(method=method, starts=4)
    z_SN2 = task.placed(cfg)
    optimizer = task.optimizer_of(z_SN2, cfg)
    out_SN = torch.zeros(3, 4, dtype=torch.bool)
    task.update(z_SN2, optimizer, out_SN, cfg)
    before = z_SN2.clone()
    out_SN[0, 2] = True
    task.update(z_SN2, optimizer, out_SN, cfg)
    assert torch.equal(z_SN2[0, 2], before[0, 2])
    assert (z_SN2[0, :2, 0] != before[0, :2, 0]).all()


def test_starts_that_are_still_there_count_as_all_steps_and_one():
    needed_SN = torch.tensor([[3, 5, 2001], [2001, 2001, 9], [2001] * 3])
    got = task.escapes(2000, needed_SN, theory=5.0)
    assert (got["saddle_steps"], got["monkey_steps"], got["slowest_steps"]) == (5, 2001, 2001)
    assert got["ridge_escaped"] == 0
    assert got["escaped"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert got["growth_error"] == 0


def test_theory_counts_the_doublings():
    assert task.growth(task.Config(lr=0.5), 1 / 1024) == pytest.approx(10)


def test_the_fields_gradient_and_hessian_are_autograds():
    torch.manual_seed(4)
    x, w, phase = torch.randn(3, 2).double(), torch.randn(20, 2).double(), torch.rand(20).double()
    _, g, h = task.field(x, w, phase)
    for i in range(3):

        def of(v):
            return task.field(v[None], w, phase)[0][0]

        torch.testing.assert_close(g[i], torch.autograd.functional.jacobian(of, x[i]))
        torch.testing.assert_close(h[i], torch.autograd.functional.hessian(of, x[i]))


def test_critical_points_are_found_and_a_quarter_are_minima_in_the_plane():
    torch.manual_seed(5)
    cfg = task.Config(points=600, features=100)
    f_R, index_R = task.critical_points(cfg, 2, torch.device("cpu"))
    assert len(f_R) > 300
    assert set(index_R.tolist()) == {0.0, 0.5, 1.0}
    assert float((index_R == 0).double().mean()) == pytest.approx(0.25, abs=0.08)
    # The field's standard deviation is 1: minima lie about that far down, maxima up.
    assert f_R[index_R == 0].mean() < -0.5
    assert f_R[index_R == 1].mean() > 0.5


def test_the_guess_is_of_four_dimensions_and_stays_in_later_rows():
    rows = [[1, 0.5, 9, 1.0], [2, 0.25, 9, 1.0]]
    f, index = np.arange(4.0), np.array([0.0, 0.25, 0.5, 0.75])
    assert "guess_ratio" not in task.ranked(2, f, index, 10, [])
    assert task.ranked(4, f, index, 10, rows)["guess_ratio"] == 0.25 * 81
    later = task.ranked(8, f, index + 0.1, 10, rows)
    assert (later["found"], later["found_share"]) == (4, 0.4)
    assert later["guess_ratio"] == 0.25 * 81
    assert later["minima_share"] == 0
    assert later["index_rank"] == pytest.approx(1)


@pytest.mark.parametrize(
    "field", ["offset=0", "points=29", "points=1", "iterations=19", "features=15"]
)
def test_what_would_divide_by_zero_or_rank_nothing_is_refused(field):
    name, value = field.split("=")
    with pytest.raises(ValueError, match=f"field '{name}' takes"):
        task.TASK.configure("smoke", "critical", overrides={name: value})


def test_the_fewest_points_are_ranked_in_every_dimension():
    torch.manual_seed(6)
    least = {"points": "30", "iterations": "20", "features": "16"}
    cfg = task.TASK.configure("smoke", "critical", overrides=least)
    rows = []
    for d in task.DIMENSIONS:
        found = [v.numpy() for v in task.critical_points(cfg, d, torch.device("cpu"))]
        assert math.isfinite(task.ranked(d, *found, cfg.points, rows)["index_rank"])
