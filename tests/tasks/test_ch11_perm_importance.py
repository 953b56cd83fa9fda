import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from tasks.ch11_interpretability import perm_importance as task


@pytest.fixture
def linear():
    """Rows, targets and a linear model of them, y = 3 x1 + x2, without noise."""
    torch.manual_seed(0)
    x_RD = torch.randn(400, 3).double()
    weight_D = torch.tensor([3.0, 1.0, 0.0]).double()
    return x_RD, x_RD @ weight_D, lambda x: (x @ weight_D)[:, None]


def test_the_importance_of_a_linear_models_feature_is_twice_its_share_of_the_variance(linear):
    x_RD, y_R, model = linear
    found_GP = task.importances(model, x_RD, y_R, [[0], [1], [2]], repeats=50)
    expected = 2 * torch.tensor([9.0, 1.0, 0.0]).double() * x_RD.var(0) / y_R.var()
    torch.testing.assert_close(found_GP.mean(1), expected, rtol=0.05, atol=0)


def test_it_agrees_with_scikit_learns(linear):
    x_RD, y_R, model = linear
    theirs = permutation_importance(
        LinearRegression().fit(x_RD, y_R), x_RD.numpy(), y_R.numpy(), n_repeats=50, random_state=0
    )
    ours = task.importances(model, x_RD, y_R, [[0], [1], [2]], repeats=50).mean(1)
    np.testing.assert_allclose(ours, theirs.importances_mean, rtol=0.05, atol=1e-9)


def test_a_group_is_permuted_together_and_nothing_else_moves(linear):
    x_RD = linear[0]
    x_PRD = task.permuted(x_RD, [0, 2], repeats=2)
    assert torch.equal(x_PRD[:, :, 1], x_RD[:, 1].expand(2, -1))
    for moved_RD in x_PRD:
        pairs = {tuple(row) for row in moved_RD[:, [0, 2]].tolist()}
        assert pairs == {tuple(row) for row in x_RD[:, [0, 2]].tolist()}
        assert not torch.equal(moved_RD[:, 0], x_RD[:, 0])
    assert not torch.equal(x_PRD[0], x_PRD[1])


def test_the_summary_ranks_all_but_the_copy():
    names = ["x1", "x2", "x3", "x4", "x5", "coin 1", "id", task.COPY]
    found = task.summary(torch.tensor([5.0, 4, 3, 2, 0, 1, -1, 5]), names)
    assert found == pytest.approx(
        {"precision_at_5": 0.8, "noise_share": 1 / 20, "id_share": 0, "x4": 2}
    )


def test_the_columns_are_what_their_names_say():
    torch.manual_seed(1)
    x_RD, y_R, names = task.table(50, task.Config(copies=1, noise=0))
    column = dict(zip(names, x_RD.T, strict=True))
    assert len(column["id"].unique()) == 50
    assert set(column["coin 3"].tolist()) == {0, 1}
    assert (column[task.COPY] - column["x4"]).abs().max() < 0.1
    torch.testing.assert_close(y_R, task.friedman(x_RD))
