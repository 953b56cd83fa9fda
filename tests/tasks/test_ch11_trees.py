import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier

from tasks.ch11_interpretability import trees as task
from tasks.models.trees import Growth, grow, one_hot


def test_folds_are_even_in_each_class():
    torch.manual_seed(0)
    y_R = torch.tensor([0] * 20 + [1] * 30)[torch.randperm(50)]
    fold_R = task.stratified(y_R, 5)
    for f in range(5):
        assert y_R[fold_R == f].bincount().tolist() == [4, 6]
    assert not torch.equal(fold_R, task.stratified(y_R, 5))


def test_boosted_stumps_are_scikit_learns():
    # Of deeper trees some splits are ties.
    torch.manual_seed(1)
    x_RD = torch.randn(150, 4).double()
    y_R = (x_RD[:, 0] + x_RD[:, 1] ** 2 + 0.5 * torch.randn(150) > 0.8).long()
    train_FR = torch.ones(2, 150).double()
    train_FR[1, :50] = 0
    logit_FR = ((train_FR @ y_R.double()) / train_FR.sum(1)).logit()[:, None].repeat(1, 150)
    for _ in range(15):
        task.boost(x_RD, y_R, train_FR, logit_FR, task.Config(depth=1))
    for f, train_R in enumerate(train_FR.bool()):
        theirs = GradientBoostingClassifier(n_estimators=15, max_depth=1, random_state=0)
        theirs.fit(x_RD[train_R].float(), y_R[train_R])
        np.testing.assert_allclose(logit_FR[f], theirs.decision_function(x_RD.float()), atol=1e-8)


def test_each_tree_draws_from_its_own_fold_as_many_rows_as_there_are():
    torch.manual_seed(2)
    train_FR = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).double()
    weight_TR = task.drawn_rows(train_FR, 50)
    assert weight_TR.shape == (100, 4)
    assert (weight_TR.sum(1) == 3).all()
    folds_TFR = weight_TR.view(50, 2, 4)
    assert not folds_TFR[:, 0, 3].any()
    assert not folds_TFR[:, 1, 0].any()
    assert folds_TFR[:, 0, :3].mean() == 1


def test_accuracies_are_of_the_rows_left_out_and_of_the_others():
    output_FRK = one_hot(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2)
    test_FR = torch.tensor([[False, False, True], [True, True, False]])
    test, train = task.accuracies(output_FRK, torch.tensor([0, 0, 1]), test_FR)
    assert (test, train) == (1.0, pytest.approx(1 / 3))


def test_a_drawn_tree_has_its_leaves_side_by_side_and_says_its_rules():
    x_RD = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    grown = grow(x_RD, one_hot(torch.tensor([0, 1, 1, 1]), 2), torch.ones(1, 4), Growth())
    at = task.places(grown)
    assert sorted(x for x, depth in at.values() if depth == 2) == [0, 1]
    assert at[0] == (1.25, 0)
    assert task.leaves(grown, 1) == 3
    figure = task.draw_tree(grown, ("left", "right"), [[1, 0.5, 0.6]])
    said = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "≤ 0.5?" in said
    assert "100% benign" in said
    figure.canvas.draw()
