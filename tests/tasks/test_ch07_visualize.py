import numpy as np
import pytest
import torch

from tasks.ch07_convolution import visualize as task


def test_purity_of_places_by_hand():
    places = torch.tensor([[0.0, 0], [1, 0], [10, 0], [11, 0]], dtype=torch.float64)
    assert task.purity(places, torch.tensor([0, 0, 1, 1]), 1) == 1
    assert task.purity(places, torch.tensor([0, 1, 0, 1]), 1) == 0
    # Two neighbours: one of the own class and one of the other, for every point.
    assert task.purity(places, torch.tensor([0, 0, 1, 1]), 2) == 0.5


def test_purity_of_a_guess_is_the_share_of_the_class():
    torch.manual_seed(0)
    places = torch.randn(1000, 2, dtype=torch.float64)
    y = torch.arange(1000) % 10
    assert task.purity(places, y, 10) == pytest.approx(0.1, abs=0.02)


def test_pca_is_the_plane_of_largest_variance():
    torch.manual_seed(1)
    x = torch.randn(50, 5, dtype=torch.float64) * torch.tensor([5.0, 3, 1, 0.5, 0.1])
    found = task.embedded(x, task.Config(method="pca"), seed=0)
    _, values, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (x - x.mean(0)) @ directions[:2].T
    torch.testing.assert_close(found.abs(), expected.abs())
    torch.testing.assert_close(found.square().sum(0), values[:2].square())


def test_tsne_keeps_groups_apart_and_repeats_itself():
    torch.manual_seed(2)
    centres = 20 * torch.randn(3, 8)
    y = torch.arange(45) % 3
    x = centres[y] + torch.randn(45, 8)
    cfg = task.Config(perplexity=8.0, iterations=300)
    found = task.embedded(x, cfg, seed=3)
    assert task.purity(found, y, 5) == 1
    np.testing.assert_array_equal(found, task.embedded(x, cfg, seed=3))


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"unknown method 'tsn'.*tsne"):
        task.embedded(torch.randn(5, 3), task.Config(method="tsn"), seed=0)


def test_all_but_the_last_layer_give_the_hidden_units():
    model = task.network(3, 32, task.Config(filters=4)).eval()
    x = torch.rand(2, 3, 32, 32)
    assert model[:-1](x).shape == (2, 64)
    assert (model[:-1](x) >= 0).all()
    torch.testing.assert_close(model[-1](model[:-1](x)), model(x))
