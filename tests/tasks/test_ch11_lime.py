import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tasks.ch11_interpretability import lime as task
from tasks.models.trees import Growth, tree


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(300, 6).double()


def test_the_sparse_regression_finds_the_features_that_matter(rows):
    y_R = (3 * rows[:, 1] - 4 * rows[:, 4] + 1 > 0).double()
    w_E = task.sparse_logistic(rows, y_R, used=2, most=300)
    assert w_E[:-1].nonzero()[:, 0].tolist() == [1, 4]
    assert w_E[1] > 0 > w_E[4]


def test_local_fit_is_scikit_learns_weighted_ridge(rows):
    offset_NSD = rows.view(2, 150, 6)
    f_NS, weight_NS = torch.randn(2, 150).double(), torch.rand(2, 150).double()
    w_ND, fidelity_N = task.local_fit(offset_NSD, f_NS, weight_NS, ridge=0.7)
    for n in range(2):
        theirs = Ridge(0.7).fit(offset_NSD[n], f_NS[n], sample_weight=weight_NS[n])
        np.testing.assert_allclose(w_ND[n], theirs.coef_, atol=1e-10)
        score = theirs.score(offset_NSD[n], f_NS[n], sample_weight=weight_NS[n])
        assert float(fidelity_N[n]) == pytest.approx(score)


def test_lime_of_a_linear_model_is_the_model(rows):
    w_D = torch.tensor([1.0, -2, 0, 0, 3, 0]).double()
    cfg = task.Config(samples=400, ridge=1e-9)
    w_ND, found = task.lime(lambda x: x @ w_D, rows[:3], cfg)
    torch.testing.assert_close(w_ND, w_D.expand(3, -1))
    assert found["fidelity"] == pytest.approx(1)
    assert 1 < found["effective"] < 400


def test_an_input_weighs_less_the_further_it_is():
    offset_NSD = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]])
    expected = torch.tensor([[1.0, np.exp(-1), np.exp(-2)]], dtype=torch.float32)
    torch.testing.assert_close(task.proximity(offset_NSD, 1.0), expected)


def test_a_trees_gold_set_are_the_features_on_the_way():
    x_RD = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1]])
    grown = tree(x_RD, torch.tensor([[0.0], [1.0], [5.0], [9.0]]), Growth())
    gold_ND = task.on_path(grown, x_RD.double())
    assert gold_ND.tolist() == [[True, True, False]] * 2 + [[True, False, True]] * 2


def test_parzens_gradient_is_a_finite_difference(rows):
    class_R = (rows[:, 0] > 0).double()
    x_ND, step = rows[:2] / 2, 1e-5

    def density(x):
        kernel = torch.exp(-(torch.cdist(x, rows) ** 2) / (2 * 1.5**2))
        return kernel @ class_R / kernel.sum(1)

    w_ND = task.parzen(x_ND, rows, class_R, 1.5)
    for d in range(6):
        move = step * torch.eye(6).double()[d]
        slope_N = (density(x_ND + move) - density(x_ND - move)) / (2 * step)
        torch.testing.assert_close(w_ND[:, d], slope_N, rtol=1e-5, atol=1e-8)


def test_greedy_takes_out_what_lowers_the_prediction_most():
    def model(x):
        return (x @ torch.tensor([1.0, 3.0, -2.0])).sigmoid()

    x_ND = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    score_ND = task.greedy(model, x_ND, budget=2)
    assert score_ND.tolist() == [[1, 2, 0], [1, 2, 0]]


def test_recall_is_the_share_of_the_gold_set():
    score_ND = torch.tensor([[0.1, -5.0, 2.0, 0.0]])
    gold_ND = torch.tensor([[True, True, False, True]])
    assert float(task.recall(score_ND, gold_ND, 2)) == pytest.approx(1 / 3)
