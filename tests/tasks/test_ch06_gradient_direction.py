import itertools
import math

import numpy as np
import pytest
import torch

from tasks.ch06_optimization import gradient_direction as task


@pytest.mark.parametrize("kappa", [1.0, 50.0])
def test_the_surface_has_the_curvatures_it_should(kappa):
    torch.manual_seed(0)
    A_NN = task.surface(kappa, 6)
    np.testing.assert_allclose(A_NN, A_NN.T, atol=1e-14)
    np.testing.assert_allclose(np.linalg.eigvalsh(A_NN), np.geomspace(1 / kappa, 1, 6))


def shrink_per_update(method, A_NN, w_N, kappa, first, last):
    path = itertools.islice(task.descend(method, A_NN, w_N, kappa), last)
    lengths = [np.linalg.norm(w) for w in path]
    return (lengths[-1] / lengths[first - 1]) ** (1 / (last - first))


def test_the_best_rates_shrink_the_error_as_theory_says():
    kappa = 100.0
    A_NN, w_N = np.diag([1.0, 1 / kappa]), np.array([1.0, 1.0])
    plain = shrink_per_update("gradient_descent", A_NN, w_N, kappa, 1, 200)
    assert plain == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-9)
    # The double root gives k m^(k/2), so the rate comes out a little late.
    fast = shrink_per_update("momentum", A_NN, w_N, kappa, 100, 120)
    root = math.sqrt(kappa)
    assert fast == pytest.approx((root - 1) / (root + 1), abs=0.02)


def test_steepest_descent_is_kantorovichs_worst_case_from_its_start():
    kappa = 20.0
    A_NN, w_N = np.diag([1 / kappa, 1.0]), np.array([kappa, 1.0])
    rate = shrink_per_update("steepest", A_NN, w_N, kappa, 2, 42)
    assert rate == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-9)


def test_steepest_steps_turn_by_a_right_angle():
    torch.manual_seed(1)
    A_NN, w_N = task.surface(30.0, 5), task.normal(5)
    points = [w_N, *itertools.islice(task.descend("steepest", A_NN, w_N, 30.0), 6)]
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose((steps[:-1] * steps[1:]).sum(1), 0, atol=1e-12)


def test_updates_are_counted_from_one_and_limited():
    path = [np.array([0.5]), np.array([0.1]), np.array([0.01])]
    assert task.updates_needed(path, 0.1, 10) == 2
    assert task.updates_needed(path, 0.5, 10) == 1
    assert task.updates_needed(path, 0.1, 1) is None


def test_on_circles_the_gradient_points_at_the_minimum_and_on_ellipses_up_to_a_right_angle_off():
    torch.manual_seed(2)
    assert task.angles(task.surface(1.0, 3), 50).max() < 1e-4
    kappa = 100.0
    turned = task.angles(task.surface(kappa, 2), 2000)
    # Kantorovich: the cosine is at least 2 sqrt(kappa) / (kappa + 1).
    worst = math.degrees(math.acos(2 * math.sqrt(kappa) / (kappa + 1)))
    assert turned.max() <= worst + 1e-9
    assert turned.max() == pytest.approx(worst, abs=0.1)


def test_the_slope_is_fitted_over_the_surfaces_after_the_round_one():
    rows = [[1.0, 1, 0.0], *([k, 7 * math.sqrt(k), 50.0] for k in (10.0, 100.0, 1000.0))]
    got = task.scores(rows, "momentum")
    assert got["slope"] == pytest.approx(0.5)
    assert got["slope_error"] == pytest.approx(0, abs=1e-12)
    assert got["angle_round"] == 0
    assert task.scores(rows[:3], "momentum")["slope_error"] == 0.5


@pytest.mark.parametrize("field", ["tolerance=2", "tolerance=0.91", "worst=5", "worst=10"])
def test_what_leaves_nothing_to_measure_is_refused(field):
    name, value = field.split("=")
    with pytest.raises(ValueError, match=f"field '{name}' takes"):
        task.TASK.configure("smoke", "momentum", overrides={name: value})


@pytest.mark.parametrize("method", task.EXPONENTS)
def test_the_largest_tolerance_leaves_updates_enough(method):
    torch.manual_seed(3)
    for kappa in (1.0, 10.0, 100.0):
        A_NN, w_N = task.surface(kappa, 4), task.normal(4)
        enough = math.ceil(10 * task.theory("gradient_descent", kappa, 0.9))
        path = task.descend(method, A_NN, w_N, kappa)
        assert task.updates_needed(path, 0.9 * np.linalg.norm(w_N), enough)
