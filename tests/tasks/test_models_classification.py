import math

import pytest
import torch
from torch import nn

from tasks.models.classification import loss, pixels


def test_pixels_are_rows_from_0_to_1_in_reading_order():
    x = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(pixels(x), torch.tensor([[0.0, 0.2, 0.4, 1.0]]))


def test_the_loss_is_the_mean_of_the_right_digits_log_probabilities():
    x_BD = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    got = loss(nn.Identity(), x_BD, torch.tensor([0, 1]))
    assert float(got) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
