import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian

from tasks.ch06_optimization import second_order as task

CFG = task.Config(tolerance=1e-10)


def small(seed=0, l2=0.01):
    torch.manual_seed(seed)
    x_ND, y_N = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    return task.softmax_regression(x_ND, y_N, l2), torch.randn(12, dtype=torch.float64)


def test_gradient_and_hessian_of_the_regression_are_autograds():
    torch.manual_seed(0)
    x_ND, y_N = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    oracle, hessian = task.softmax_regression(x_ND, y_N, 0.01)
    w_P = torch.randn(12, dtype=torch.float64)

    def loss(w):
        entropy = torch.nn.functional.cross_entropy(x_ND @ w.view(4, 3), y_N)
        return entropy + 0.005 * (w**2).sum()

    value, g = oracle(w_P)
    assert value == pytest.approx(float(loss(w_P)), rel=1e-12)
    torch.testing.assert_close(g, jacobian(loss, w_P))
    torch.testing.assert_close(hessian(w_P), autograd_hessian(loss, w_P))


def test_gradient_and_hessian_of_rosenbrocks_valley_are_autograds():
    def height(w):
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    w = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    value, g = task.rosenbrock(w)
    assert value == pytest.approx(24.2)
    torch.testing.assert_close(g, jacobian(height, w))
    torch.testing.assert_close(task.rosenbrock_hessian(w), autograd_hessian(height, w))


@given(st.floats(-3, 3), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_the_line_search_keeps_the_strong_wolfe_conditions(centre, guess):
    def phi(t):
        value = math.cosh(t - 2 - abs(centre)) + 0.3 * math.sin(3 * t)
        slope = math.sinh(t - 2 - abs(centre)) + 0.9 * math.cos(3 * t)
        return value, torch.tensor([slope]), slope

    guess = min(guess, 50.0)
    value, _, slope = phi(0.0)
    assert slope < 0
    step, at, g, _ = task.line_search(phi, value, slope, guess, 0.1)
    assert g is not None
    assert at <= value + task.ARMIJO * step * slope + 1e-12 * abs(value)
    assert abs(float(g)) <= 0.1 * abs(slope) + 1e-6


def test_a_search_that_finds_nothing_lower_says_so():
    step, value, g, tries = task.line_search(
        lambda t: (1.0 + t, torch.ones(1), 1.0), 1.0, -1.0, 1.0, 0.9
    )
    assert (step, value, g, tries) == (0.0, 1.0, None, task.TRIES)


def test_the_bfgs_update_keeps_the_secant_condition_and_symmetry():
    torch.manual_seed(2)
    s, y = torch.randn(2, 5, dtype=torch.float64)
    y = y + s * (1 + abs(float(s @ y)) / float(s @ s))
    H = task.bfgs_update(torch.eye(5, dtype=torch.float64), s, y)
    torch.testing.assert_close(H @ y, s)
    torch.testing.assert_close(H, H.T)
    assert torch.linalg.eigvalsh(H)[0] > 0


def test_the_two_loops_are_bfgs_where_memory_suffices():
    torch.manual_seed(3)
    A = torch.randn(6, 6, dtype=torch.float64)
    A = A @ A.T + torch.eye(6)
    pairs = [(s, A @ s) for s in torch.randn(4, 6, dtype=torch.float64)]
    s, y = pairs[-1]
    H = torch.eye(6, dtype=torch.float64) * (s @ y) / (y @ y)
    for s, y in pairs:
        H = task.bfgs_update(H, s, y)
    g = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(task.two_loop(g, pairs), -H @ g)


def test_newtons_direction_solves_and_goes_down_where_the_hessian_is_indefinite():
    g = torch.tensor([1.0, -2.0], dtype=torch.float64)
    H = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(H @ task.newton(g, H), -g)
    assert task.newton(g, torch.diag(torch.tensor([1.0, -4.0]).double())) @ g < 0


def test_conjugate_directions_solve_a_quadratic_in_as_many_steps_as_dimensions():
    torch.manual_seed(4)
    A = torch.randn(5, 5, dtype=torch.float64)
    A, w = A @ A.T + torch.eye(5), torch.randn(5, dtype=torch.float64)
    g, p = A @ w, -(A @ w)
    for _ in range(5):
        w = w + (-(g @ p) / (p @ A @ p)) * p
        g, g_old = A @ w, g
        p = task.conjugate(g, g_old, p)
    assert float(g.norm()) < 1e-9


@pytest.mark.parametrize("method", [*task.COLOURS])
def test_every_method_finds_scipys_minimum(method):
    (oracle, hessian), start = small()
    best, gap = task.optimum(oracle, start, 0.01)
    assert gap < 1e-13
    state = task.started(oracle, start)
    while state["value"] - best > 1e-10 and state["evaluations"] < 3000:
        assert task.iterate(method, state, (oracle, hessian), 10)
    assert abs(state["value"] - best) <= 1e-10


def test_newton_gets_down_the_valley_in_a_few_evaluations():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    path, evaluations = task.valley("newton", start, CFG)
    assert path[-1] == pytest.approx([1, 1], abs=1e-4)
    assert len(path) <= evaluations < 60


def test_a_valley_without_evaluations_to_spend_has_no_count():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    assert task.valley("gradient_descent", start, task.Config(most=20))[1] is None


def test_a_loss_without_a_penalty_is_refused():
    with pytest.raises(ValueError, match="field 'l2' takes a finite number > 0"):
        task.TASK.configure("smoke", "lbfgs", overrides={"l2": "0"})
