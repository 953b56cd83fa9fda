import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge

from tasks.ch11_interpretability import linear_regression as task


@pytest.fixture
def data():
    torch.manual_seed(0)
    x_SRD = 5 + 2 * torch.randn(2, 60, 4).double()
    return x_SRD, x_SRD @ torch.tensor([1.0, -2, 0, 3]).double() + torch.randn(2, 60).double()


@pytest.mark.parametrize("solve", [task.by_qr, task.by_normal_equations])
def test_least_squares_are_scikit_learns(data, solve):
    x_SRD, y_SR = data
    w_SE = solve(task.with_ones(x_SRD), y_SR)
    for s in range(2):
        theirs = LinearRegression().fit(x_SRD[s], y_SR[s])
        np.testing.assert_allclose(w_SE[s, :-1], theirs.coef_, atol=1e-9)
        assert float(w_SE[s, -1]) == pytest.approx(theirs.intercept_)
        score = theirs.score(x_SRD[s], y_SR[s])
        assert float(task.r2(x_SRD, y_SR, w_SE)[s]) == pytest.approx(score)


def test_ridge_is_scikit_learns_on_standardised_columns(data):
    x_SRD, y_SR = data
    w_SE = task.by_ridge(x_SRD, y_SR, penalty=7.0)
    z_SRD, _, std_S1D = task.standardised(x_SRD)
    for s in range(2):
        theirs = Ridge(7.0).fit(z_SRD[s], y_SR[s])
        np.testing.assert_allclose(w_SE[s, :-1] * std_S1D[s, 0], theirs.coef_, atol=1e-9)
        found = task.with_ones(x_SRD[s]) @ w_SE[s]
        np.testing.assert_allclose(found, theirs.predict(z_SRD[s]), atol=1e-9)


def test_standard_errors_of_a_line_are_scipys(data):
    x_RD, y_R = data[0][0, :, :1], data[1][0]
    x_RE = task.with_ones(x_RD)
    error_E = task.standard_errors(x_RE, y_R, task.by_qr(x_RE[None], y_R[None])[0])
    theirs = stats.linregress(x_RD[:, 0], y_R)
    assert float(error_E[0]) == pytest.approx(theirs.stderr)
    assert float(error_E[1]) == pytest.approx(theirs.intercept_stderr)


def test_a_split_loses_no_row():
    torch.manual_seed(1)
    x_RD = torch.arange(20.0)[:, None]
    x_SRD, y_SR, x_test, y_test = task.parted(x_RD, x_RD[:, 0], 3)
    assert (x_SRD.shape, x_test.shape) == ((3, 16, 1), (3, 4, 1))
    for s in range(3):
        assert sorted([*y_SR[s].tolist(), *y_test[s].tolist()]) == list(range(20))
    assert not torch.equal(y_test[0], y_test[1])
