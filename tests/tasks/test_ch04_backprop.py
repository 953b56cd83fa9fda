import pytest
import torch

from suite.plan import expand
from suite.run import execute
from tasks.ch04_feed_forward import backprop as task


def problem(starts, widths, n=5, seed=0):
    torch.manual_seed(seed)
    params = [p + 0.1 * torch.randn_like(p) for p in task.parameters(starts, widths)]
    x = torch.randn(starts, n, widths[0], dtype=torch.float64)
    return params, x, torch.rand(starts, n, widths[-1], dtype=torch.float64)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 1), (2, 5, 4, 3, 2)])
@pytest.mark.parametrize("method", ["manual", "differences"])
def test_gradients_agree_with_autograd(activation, widths, method):
    given = problem(3, widths)
    found, truth = task.GRADIENTS[method](*given, activation), task.autograd(*given, activation)
    torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("impl", ["torch", "reference", "triton"])
def test_one_op_for_the_hidden_layers_of_all_starts_has_their_gradients(impl):
    params, x, t = problem(3, (2, 5, 1))
    given = (params, x[:1].expand(3, -1, -1), t, "relu")
    torch.testing.assert_close(task.fused(*given, impl=impl), task.manual(*given))


def test_one_op_is_for_one_hidden_layer_of_relus():
    with pytest.raises(ValueError, match="one hidden layer of 'relu', got 'tanh'"):
        task.fused(*problem(1, (2, 3, 1)), "tanh")


def test_a_run_comes_to_the_same_in_every_implementation():
    """End to end, with the kernel interpreted: metrics, and a record of what computed them."""
    finals = {}
    for impl in ("torch", "reference", "triton"):
        given = {"profile": "smoke", "variants": ["fused"], "impls": [impl]}
        few = {"starts": 3, "updates": 4, "rows": 2}
        (spec,) = expand(["ch04.backprop"], **given, overrides=few)
        record = execute(spec, resume=False)
        assert record.kernels.dispatched.keys() == {"linear.linear"}
        assert record.kernels.dispatched["linear.linear"].keys() == {impl}
        finals[impl] = {k: v.value for k, v in record.train.final.items()}
        assert finals[impl]["gradient_error"] < 1e-12
    assert finals["reference"] == pytest.approx(finals["torch"], abs=1e-12)
    assert finals["triton"] == pytest.approx(finals["torch"], abs=1e-12)


def test_one_neuron_by_hand():
    """E = (t - y)^2 / 2 at z = 0: y = 1/2, dE/dz = (y - t) y (1 - y) = 1/8 for t = 0."""
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    x, t = torch.full_like(zero, 3.0), zero
    dw, db = task.manual([zero, zero], x, t, "tanh")
    assert float(dw) == pytest.approx(3 / 8)
    assert float(db) == pytest.approx(1 / 8)


def test_starts_side_by_side_do_not_mix():
    params, x, t = problem(4, (3, 5, 2))
    together = task.manual(params, x, t, "tanh")
    alone = task.manual([p[2:3] for p in params], x[2:3], t[2:3], "tanh")
    torch.testing.assert_close([g[2:3] for g in together], alone)


def test_differences_leave_the_parameters_alone():
    given = problem(2, (3, 4, 1))
    before = [p.clone() for p in given[0]]
    task.differences(*given, "tanh")
    torch.testing.assert_close(given[0], before, rtol=0, atol=0)


def test_operations_of_known_products():
    a, b = torch.rand(2, 3), torch.rand(3, 5)
    assert task.operations(lambda: a @ b) == 2 * 2 * 3 * 5
    params, x, t = problem(1, (6, 4, 2), n=7)
    forward = task.operations(lambda: task.forward(params, x, "tanh"))
    assert forward == 2 * 7 * (6 * 4 + 4 * 2)
    # Backwards: both weights' gradients, and the error of the hidden layer, but not the input's.
    backward = 2 * 7 * (6 * 4 + 2 * 4 * 2)
    assert task.operations(lambda: task.manual(params, x, t, "tanh")) == forward + backward
    n_params = sum(p.numel() for p in params)
    assert task.operations(lambda: task.differences(params, x, t, "tanh")) == 2 * n_params * forward


def test_the_error_is_half_the_squares_of_each_start():
    params, x, t = problem(2, (3, 2), n=4)
    y = (x @ params[0] + params[1]).sigmoid()
    torch.testing.assert_close(task.error(params, x, t, "tanh"), ((y - t) ** 2).sum((1, 2)) / 8)


def test_the_digits_check_of_each_method():
    torch.manual_seed(0)
    images, y = torch.randint(256, (16, 1, 4, 4)), torch.arange(16) % 10
    for method in task.GRADIENTS:
        activation = "relu" if method == "fused" else "tanh"
        cfg = task.Config(gradient=method, activation=activation, digits_hidden=3, batch_size=16)
        got = task.checked(cfg, images, y)
        assert got["gradient_error"] < 1e-6
        assert (got["cost_ratio"] > 100) == (method == "differences")


@pytest.mark.parametrize("updates", [10, 30, 199])
def test_updates_that_no_number_of_rows_shares_out_are_refused(updates):
    with pytest.raises(ValueError, match=f"updates={updates} are no multiple of rows=20"):
        task.TASK.configure("laptop", "manual", overrides={"updates": updates})


def test_a_row_of_no_updates_is_refused_by_what_the_field_says():
    with pytest.raises(ValueError, match="'rows' takes a whole number ≥ 1"):
        task.TASK.configure(overrides={"rows": 0})
    assert task.TASK.configure(overrides={"updates": 10, "rows": 5}).updates == 10
