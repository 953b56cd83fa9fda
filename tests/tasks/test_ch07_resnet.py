import numpy as np
import pytest
import torch

from tasks.ch07_convolution import resnet
from tasks.models.convolution import residual_net


def test_rates_fall_after_a_half_and_three_quarters():
    # Of the paper's 64,000 updates: after 32,000 and 48,000.
    seen = [resnet.factor(step, 64_000) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_resnet34_is_the_papers_and_the_listing_never_gets_smaller():
    paper, listing = (resnet.shape_of_resnet34(d, "torch") for d in (True, False))
    assert paper["stem_size"] == 56
    assert [paper[f"size_{i}"] for i in range(1, 5)] == [56, 28, 14, 7]
    assert paper["wrong_sizes"] == 0
    # torchvision's resnet34 has 21,797,672 parameters, and 3.66 billion multiplications.
    assert paper["million_params"] == listing["million_params"] == 21.797672
    assert paper["giga_multiplications"] == pytest.approx(3.66, abs=0.01)
    assert [listing[f"size_{i}"] for i in range(1, 5)] == [56] * 4
    assert listing["wrong_sizes"] == 3


def test_a_shape_that_is_measured_takes_no_memory_and_no_random_number():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    resnet.shape_of_resnet34(True, "torch")
    assert torch.equal(torch.rand(1), expected)


def test_gradient_norms_are_those_of_training_and_leave_the_net_alone():
    torch.manual_seed(2)
    model = residual_net((1, 1), 4, n_in=1).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    norms = resnet.gradient_norms(model, x, y)
    assert len(norms) == 5
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.nn.functional.cross_entropy(model.train()(x), y).backward()
    assert norms[0] == pytest.approx(float(model.stem[0].weight.grad.norm()))
    assert norms[-1] == pytest.approx(float(model.stage2[0].conv2.weight.grad.norm()))


def test_the_pictures_show_every_epoch_and_every_stage():
    history = [[2.0, 0.8], [1.0, 0.4], [0.5, 0.2]]
    norms = {"before training": [0.1, 0.2], "after training": [0.01, 0.02]}
    left, right, twin = resnet.draw_training(history, norms, "a title").axes
    assert np.allclose(left.get_lines()[0].get_ydata(), [2.0, 1.0, 0.5])
    assert np.allclose(twin.get_lines()[0].get_ydata(), [0.8, 0.4, 0.2])
    assert len(right.get_lines()) == 2
    [axes] = resnet.draw_outline([56, 56, 28, 14, 7], "a title").axes
    assert [bar.get_height() for bar in axes.patches] == [56, 56, 28, 14, 7]
