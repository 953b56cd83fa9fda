import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.plan import expand
from suite.run import execute
from tasks.ch04_feed_forward import fast_food as task


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_delta_rule_of_hintons_lecture():
    """One meal of 2, 5 and 3 servings for 850, a guess of 50 each, and a rate of 1/35."""
    after = task.delta_rule(vector(50, 50, 50), vector(2, 5, 3)[None], vector(850), 1 / 35)
    torch.testing.assert_close(after, vector(70, 100, 80))


def test_the_delta_rule_is_gradient_descent_on_the_loss():
    torch.manual_seed(0)
    x_ND, t_N = task.meals(20, vector(150, 50, 100), 5)
    w_D = torch.randn(3, dtype=torch.float64).requires_grad_()
    ((t_N - x_ND @ w_D) ** 2 / 2).mean().backward()
    after = task.delta_rule(w_D.detach(), x_ND, t_N, 0.01)
    torch.testing.assert_close(after, w_D.detach() - 0.01 * w_D.grad)


@given(seed=st.integers(0, 1000), most=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_meals_cost_what_their_servings_do(seed, most):
    torch.manual_seed(seed)
    x_ND, t_N = task.meals(50, vector(150, 50, 100), most)
    assert x_ND.min() >= 1
    assert x_ND.max() <= most
    assert torch.equal(x_ND, x_ND.round())
    torch.testing.assert_close(t_N, 150 * x_ND[:, 0] + 50 * x_ND[:, 1] + 100 * x_ND[:, 2])


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 1.5))
@settings(max_examples=30, deadline=None)
def test_the_error_shrinks_along_each_eigenvector_as_theory_says(seed, share):
    torch.manual_seed(seed)
    prices = vector(150, 50, 100)
    x_ND, t_N = task.meals(30, prices, 5)
    values, vectors = torch.linalg.eigh(x_ND.T @ x_ND / 30)
    lr = share * task.critical(x_ND)
    assert task.critical(x_ND) == pytest.approx(2 / float(values[-1]))
    w_D = prices + torch.randn(3, dtype=torch.float64)
    after = task.delta_rule(w_D, x_ND, t_N, lr)
    expected = (1 - lr * values) * ((w_D - prices) @ vectors)
    torch.testing.assert_close((after - prices) @ vectors, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("share", "grows"), [(0.5, False), (0.99, False), (1.01, True), (2, True)])
def test_divergence_is_on_the_far_side_of_the_edge(share, grows):
    torch.manual_seed(3)
    data = task.meals(200, vector(150, 50, 100), 5)
    lr = share * task.critical(data[0])
    assert task.diverges(vector(50, 50, 50), data, lr, 400) == grows
    seen = task.losses(vector(50, 50, 50), data, lr, 400)
    assert len(seen) == 401
    assert (seen[-1] > seen[0]) == grows


def test_the_edge_is_found_and_an_update_a_row_counts_its_meals():
    rows = {}
    for variant in ("sweep", "batch", "online"):
        spec = expand(["ch04.fast_food"], profile="smoke", variants=[variant])[0]
        rows[variant] = execute(spec, resume=False).train
    assert rows["sweep"].final["divergence_error"].value < 0.05
    assert rows["batch"].curve["step"][1] == 50 * 5
    assert rows["online"].curve["step"][1] == task.ONLINE_MEALS * 5


@pytest.mark.parametrize("variant", ["batch", "online"])
@pytest.mark.parametrize("updates", [10, 110])
def test_updates_that_no_number_of_rows_shares_out_are_refused(variant, updates):
    with pytest.raises(ValueError, match=f"updates={updates} are no multiple of rows=20"):
        task.TASK.configure("laptop", variant, overrides={"updates": updates})


def test_a_sweep_makes_all_updates_at_every_rate():
    assert task.TASK.configure("laptop", "sweep", overrides={"updates": 110}).updates == 110


@pytest.mark.parametrize("prices", [(150.0,), (1.0, 2.0, 3.0, 4.0)])
def test_a_meal_is_of_three_items(prices):
    with pytest.raises(ValueError, match="a meal is of three items"):
        task.TASK.configure(overrides={"prices": prices})
