import pytest
import torch
from sklearn.metrics import roc_auc_score

from tasks.ch07_convolution import filters as task


def test_a_vertical_bar_lights_up_its_own_detector_alone():
    x = torch.zeros(1, 7, 7, dtype=torch.float64)
    x[0, :, 3] = 1
    vertical = task.feature_map(x, task.detector("vertical"))[0]
    assert float(vertical[3, 3]) == pytest.approx(0.5)
    assert float(vertical[3, 2]) == pytest.approx(-0.25)
    level = task.feature_map(x, task.detector("horizontal"))[0]
    assert float(level[1:-1].abs().max()) == pytest.approx(0)
    torch.testing.assert_close(task.detector("vertical").T, task.detector("horizontal"))


def test_detectors_take_no_notice_of_brightness():
    for name in ("vertical", "horizontal", "diagonal"):
        response = task.feature_map(torch.ones(1, 5, 5), task.detector(name))[0, 1:-1, 1:-1]
        assert float(response.abs().max()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="unknown filter 'diagnol'"):
        task.detector("diagnol")


def test_maps_are_scipys():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 9, dtype=torch.float64)
    weights = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(task.feature_map(x, weights), task.correlated(x, weights))


def test_the_area_under_the_curve_counts_pairs():
    torch.manual_seed(1)
    positive, negative = torch.randint(6, (40,)).double(), torch.randint(4, (30,)).double()
    labels = [1] * 40 + [0] * 30
    expected = roc_auc_score(labels, torch.cat([positive, negative]).tolist())
    assert task.auc(positive, negative) == pytest.approx(expected)
    assert task.auc(torch.ones(3), torch.zeros(2)) == 1


def test_masks_are_where_one_kind_of_bar_is():
    torch.manual_seed(2)
    x, upright, level = task.bars(task.Config(images=50, side=20, bars=3, noise=0.0))
    assert not (upright & level).any()
    assert (x[upright] >= 0.5).all()
    assert (x[level] >= 0.5).all()
    assert x.max() <= 1
    columns = upright.any(1).sum(1)
    assert ((columns > 0) & (columns <= 3)).all()


def test_parameters_by_hand():
    found = task.parameters(task.Config(side=4, filters=2))
    assert found["convolution_parameters"] == 2 * (27 + 1)
    assert found["dense_parameters"] == (3 * 16 + 1) * 2 * 16
    assert task.parameters(task.Config())["dense_weights"] == 200 * 200 * 3
