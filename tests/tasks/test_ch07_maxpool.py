import pytest
import torch

from tasks.ch07_convolution import maxpool as task


@pytest.mark.parametrize("kind", ["max", "average", "first", "none"])
@pytest.mark.parametrize(("extent", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_poolings_are_their_definition(kind, extent, stride):
    torch.manual_seed(0)
    cfg = task.Config(pooling=kind, extent=extent, stride=stride)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(task.pooling(cfg)(x), task.by_definition(x, cfg))


def test_one_window_by_hand():
    x = torch.tensor([[1.0, 2, 5], [4, 3, 0], [7, 8, 9]]).view(1, 1, 3, 3)
    for kind, expected in (("max", 4), ("average", 2.5), ("first", 1)):
        assert float(task.pooling(task.Config(pooling=kind))(x)[0, 0, 0, 0]) == expected
    with pytest.raises(ValueError, match="unknown pooling 'maximum'"):
        task.pooling(task.Config(pooling="maximum"))


@pytest.mark.parametrize("extent", [2, 3])
def test_a_maximum_stays_when_it_moves_inside_its_window(extent):
    pool = task.pooling(task.Config(extent=extent))
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 2, 2] = 1
    assert torch.equal(pool(x)[0, 0, 1, 1], pool(x.roll((1, 1), (2, 3)))[0, 0, 1, 1])
    stride = task.pooling(task.Config(pooling="first"))
    assert not stride(x.roll((1, 1), (2, 3))).any()


def test_shifts_cut_nothing_off():
    images = torch.randint(1, 256, (3, 1, 8, 8), dtype=torch.uint8)
    x = task.framed(images, 2)
    assert x.shape == (3, 1, 12, 12)
    assert len(task.SHIFTS) == 8
    for i, j in task.SHIFTS:
        moved = x.roll((i, j), (2, 3))
        torch.testing.assert_close(moved[:, :, 2 + i : 10 + i, 2 + j : 10 + j], images / 255)


def test_scores_of_a_net_that_looks_at_one_pixel():
    """It is right on what stands still, and wrong after every shift."""

    class Corner(torch.nn.Sequential):
        def forward(self, x):
            x = x if x.shape[1:] == (1, 4, 4) else x.view(len(x), 1, 4, 4)
            return torch.stack([0.5 - x[:, 0, 1, 1], x[:, 0, 1, 1] - 0.5], 1)

    x = torch.zeros(4, 1, 4, 4)
    x[:, :, 1, 1] = 1
    y = torch.ones(4, dtype=torch.long)
    still = task.accuracy(Corner(), x, y)
    moved = [task.accuracy(Corner(), x.roll(s, (2, 3)), y) for s in task.SHIFTS]
    assert still == 1
    assert max(moved) == 0


def test_moved_is_nought_for_a_map_without_places():
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    model = torch.nn.Sequential(Mean(), torch.nn.Linear(1, 2))
    assert task.moved(model, torch.rand(5, 1, 6, 6)) == pytest.approx(0, abs=1e-5)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    assert task.moved(flat, torch.rand(5, 1, 6, 6)) > 0.3
