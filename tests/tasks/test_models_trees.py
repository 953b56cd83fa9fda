"""Trees beside scikit-learn's. Nodes of few rows are left whole: there, splits are often ties."""

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from tasks.models import friedman, trees
from tasks.models.trees import Growth


@pytest.fixture
def rows():
    torch.manual_seed(0)
    x_RD = torch.randn(200, 5).double()
    return x_RD, torch.randn(200, 1).double(), (x_RD[:, 0] * x_RD[:, 1] > 0).long()


@pytest.mark.parametrize(("depth", "least"), [(1, 1), (4, 10), (100, 8)])
def test_a_regression_tree_is_scikit_learns(rows, depth, least):
    x_RD, y_RK, _ = rows
    ours = trees.tree(x_RD, y_RK, Growth(depth=depth, least=least))
    theirs = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least)
    theirs.fit(x_RD.float(), y_RK[:, 0])
    assert len(ours.feature_M) == theirs.tree_.node_count
    assert ours.depth == theirs.tree_.max_depth
    np.testing.assert_allclose(ours(x_RD)[:, 0], theirs.predict(x_RD.float()), atol=1e-12)
    np.testing.assert_allclose(ours.importance(5), theirs.feature_importances_, atol=1e-9)


@pytest.mark.parametrize("entropy", [False, True])
def test_a_classification_tree_is_scikit_learns(rows, entropy):
    x_RD, _, y_R = rows
    ours = trees.tree(x_RD, trees.one_hot(y_R, 2), Growth(depth=3, entropy=entropy))
    theirs = DecisionTreeClassifier(max_depth=3, criterion="entropy" if entropy else "gini")
    theirs.fit(x_RD.float(), y_R)
    np.testing.assert_allclose(ours(x_RD), theirs.predict_proba(x_RD.float()), atol=1e-12)


def test_weights_are_repetitions_and_weight_0_leaves_a_row_out(rows):
    x_RD, y_RK, _ = rows
    weight_TR = torch.randint(0, 3, (2, 200)).double()
    ours = trees.grow(x_RD, y_RK, weight_TR, Growth(depth=4))
    for t, weight_R in enumerate(weight_TR):
        repeated = weight_R.long()
        alone = trees.tree(
            x_RD.repeat_interleave(repeated, 0),
            y_RK.repeat_interleave(repeated, 0),
            Growth(depth=4),
        )
        found = ours.value_MK[ours.leaf(x_RD)[t]]
        torch.testing.assert_close(found, alone(x_RD))


def test_trees_may_have_targets_of_their_own(rows):
    x_RD, y_RK, _ = rows
    both = trees.grow(x_RD, torch.stack([y_RK, y_RK**2]), torch.ones(2, 200), Growth(depth=3))
    second = trees.tree(x_RD, y_RK**2, Growth(depth=3))
    torch.testing.assert_close(both.value_MK[both.leaf(x_RD)[1]], second(x_RD))


def test_a_forest_grown_in_blocks_is_the_one_grown_at_once(rows, monkeypatch):
    x_RD, y_RK, _ = rows
    torch.manual_seed(5)
    whole = trees.forest(x_RD, y_RK, 5, Growth(depth=4))
    monkeypatch.setattr(trees, "AT_ONCE", 2 * x_RD.numel())
    torch.manual_seed(5)
    parts = trees.forest(x_RD, y_RK, 5, Growth(depth=4))
    assert parts.n_trees == 5
    torch.testing.assert_close(parts(x_RD), whole(x_RD))
    torch.testing.assert_close(parts.importance(5), whole.importance(5))


def test_a_split_is_looked_for_at_the_drawn_features_only(rows):
    x_RD, y_RK, _ = rows
    torch.manual_seed(6)
    grown = trees.grow(x_RD, y_RK, torch.ones(40, 200), Growth(depth=1, features=1))
    root_T = grown.feature_M[:40]
    assert set(root_T.tolist()) == {0, 1, 2, 3, 4}


def test_equal_values_are_never_parted_and_a_pure_node_is_a_leaf():
    x_RD = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    y_RK = torch.tensor([[0.0], [2.0], [5.0], [5.0]])
    grown = trees.tree(x_RD, y_RK, Growth())
    assert grown.threshold_M[0] == 0.5
    assert grown(x_RD.double())[:, 0].tolist() == [1, 1, 5, 5]
    assert len(grown.feature_M) == 3


def test_friedmans_function_and_the_share_explained():
    x_RD = torch.tensor([[0.5, 1.0, 0.5, 0.2, 0.4, 9.0], [0.0, 0.7, 1.0, 1.0, 0.0, 9.0]])
    y_R = friedman.friedman(x_RD)
    torch.testing.assert_close(y_R, torch.tensor([10 + 0 + 2 + 2.0, 0 + 5 + 10 + 0.0]))
    assert friedman.r2(y_R, y_R) == 1
    assert friedman.r2(y_R.mean().expand(2), y_R) == pytest.approx(0, abs=1e-6)
