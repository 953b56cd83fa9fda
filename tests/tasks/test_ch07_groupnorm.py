import pytest
import torch

from tasks.ch07_convolution import groupnorm
from tasks.models.convolution import residual_net


def test_batch_sizes_are_read_and_wrong_ones_are_named():
    assert groupnorm.sizes_of("32 16 2") == [32, 16, 2]
    for text in ("", "32 1", "2 32", "32 32", "32, 2", "32 two"):
        with pytest.raises(ValueError, match="batch_sizes fall to 2 at the least"):
            groupnorm.sizes_of(text)


def test_the_rate_is_in_proportion_to_the_batch_and_falls_to_nothing():
    cfg = groupnorm.Config(lr=0.032, epochs=2)
    model = residual_net((1,), 8)
    rates = {
        n: groupnorm.updates(model, cfg, n, 10).optimizers[0].param_groups[0]["lr"] for n in (32, 2)
    }
    assert rates == pytest.approx({32: 0.032, 2: 0.002})
    assert [groupnorm.factor(n, 20) for n in (0, 10, 20)] == pytest.approx([1, 0.5, 0])


def test_errors_are_medians_and_the_drop_waits_for_the_last_size():
    history = [[32, 0.9], [32, 0.2], [32, 0.1], [32, 0.3]]
    assert groupnorm.summary(history, [32, 8, 2]) == {"error_at_32": 0.2, "worst_error": 0.2}
    history += [[8, 0.25], [2, 0.6], [2, 0.5]]
    found = groupnorm.summary(history, [32, 8, 2])
    assert found == pytest.approx(
        {
            "error_at_32": 0.2,
            "error_at_8": 0.25,
            "error_at_2": 0.55,
            "worst_error": 0.55,
            "smallest_error": 0.55,
            "drop": 0.35,
        }
    )


@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("group", False), ("layer", False)])
def test_only_batch_normalisation_sees_the_rest_of_the_batch(norm, depends):
    torch.manual_seed(1)
    model = residual_net((1, 1), 8, norm=norm, groups=4).train()
    x = torch.randn(6, 3, 8, 8)
    alone, together = model(x[:2]), model(x)[:2]
    assert torch.allclose(alone, together, atol=1e-4) != depends


def test_the_picture_has_a_point_for_each_size_and_the_papers_curves():
    figure = groupnorm.draw_errors({32: 0.02, 8: 0.03, 2: 0.1}, "batch")
    left, right = figure.axes
    assert left.get_lines()[0].get_xydata().tolist() == [[32, 2.0], [8, 3.0], [2, 10.0]]
    assert [line.get_label() for line in right.get_lines()] == ["batch norm", "group norm"]
