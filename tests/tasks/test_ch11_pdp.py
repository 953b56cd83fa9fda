import math

import numpy as np
import pytest
import torch
from sklearn.inspection import partial_dependence
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from tasks.ch11_interpretability import pdp as task


def product(x_RD):
    return 3 * x_RD[:, 0] + 2 * x_RD[:, 0] * x_RD[:, 1]


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.rand(50, 3).double()


def test_ice_sets_the_columns_and_keeps_the_rest(rows):
    v_V = torch.linspace(0, 1, 4).double()
    f_BV = task.ice(product, rows, [0], v_V[:, None])
    expected = 3 * v_V + 2 * v_V * rows[:, 1:2]
    torch.testing.assert_close(f_BV, expected)
    pair_VS = torch.cartesian_prod(v_V, v_V)
    both_BV = task.ice(product, rows, [0, 1], pair_VS)
    torch.testing.assert_close(both_BV, product(pair_VS).expand(50, -1))


def test_it_is_scikit_learns(rows):
    # The product is a polynomial of second degree, so that a library's model is the same function.
    terms = PolynomialFeatures(2)
    inner = LinearRegression().fit(terms.fit_transform(rows), product(rows))

    class Model(LinearRegression):
        def predict(self, x):
            return inner.predict(terms.transform(x))

    theirs = partial_dependence(
        Model().fit(rows, product(rows)),
        rows.numpy(),
        [0],
        kind="both",
        grid_resolution=7,
        method="brute",
    )
    v_V = torch.as_tensor(theirs["grid_values"][0])
    ours = task.ice(product, rows, [0], v_V[:, None])
    np.testing.assert_allclose(ours, theirs["individual"][0], atol=1e-6)
    np.testing.assert_allclose(ours.mean(0), theirs["average"][0], atol=1e-6)


def test_the_truth_is_the_mean_over_the_other_feature():
    x2_R = (torch.arange(2000).double() + 0.5) / 2000
    for v in (0.1, 0.5, 0.9):
        mean = (10 * torch.sin(math.pi * v * x2_R)).mean()
        found = task.truths()[0](torch.tensor(v).double())
        torch.testing.assert_close(found, mean, rtol=1e-5, atol=0)


def test_the_function_itself_has_no_error():
    torch.manual_seed(1)
    x_BD = torch.rand(4000, 10).double()
    found = task.against_truth(task.friedman, x_BD, 20, 5.0)
    assert found["pair_correlation"] > 0.999
    assert found["linear_correlation"] == pytest.approx(1)
    assert found["curve_error"] < 0.01


def test_interaction_is_how_much_more_the_curves_of_x1_differ():
    torch.manual_seed(2)
    x_BD = torch.rand(500, 10).double()

    def model(x):
        return 6 * x[:, 0] * x[:, 1] + 2 * x[:, 3] * x[:, 4]

    assert task.against_truth(model, x_BD, 20, 1.0)["interaction"] == pytest.approx(3, rel=0.15)


def test_the_shape_of_a_curve():
    v_V, curve_V = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([1.0, 5.0, 4.0])
    assert task.shape(v_V, curve_V) == {"peak": 20.0, "rise": 4.0}
    x_R = torch.tensor([19.0, 20.0, 21.0, 29.0, 30.0])
    assert task.fall(curve_V, v_V, x_R) == 1.0


def test_a_grid_ends_where_the_rows_do():
    x_R = torch.arange(101).double()
    torch.testing.assert_close(task.between(x_R, 3), torch.tensor([2.0, 50.0, 98.0]).double())
