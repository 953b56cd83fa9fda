import pytest
import torch

from tasks.ch12_memory import ntm_tasks
from tasks.ch12_memory.ntm_tasks import Size


def test_repeat_copy_says_all_vectors_so_many_times_and_then_the_end():
    x, y = ntm_tasks.repeat_copy(2, Size(3, 1, 4, 5), times=2, vectors=3)
    assert x.shape == (2, 3 + 1 + 7, 5)
    assert torch.equal(y[:, :3, :3], x[:, :3, :3])
    assert torch.equal(y[:, 3:6, :3], x[:, :3, :3])
    assert y[:, -1].tolist() == [[0, 0, 0, 1]] * 2
    assert not y[:, :-1, 3].any()
    assert x[:, 3].tolist() == [[0, 0, 0, 1, 0.5]] * 2
    assert not x[:, 4:].any()


def test_recall_says_the_item_that_came_after_the_one_asked_for():
    torch.manual_seed(1)
    x, y = ntm_tasks.recall(20, Size(4, 2, 6, 2), items=5)
    assert x.shape == (20, 6 * 3 + 1 + 2, 6)
    items = x[:, :15].unflatten(1, (5, 3))
    assert items[:, :, 0].tolist() == [[[0, 0, 0, 0, 1, 0]] * 5] * 20
    assert x[:, 15].tolist() == [[0, 0, 0, 0, 0, 1]] * 20
    assert x[:, 18].tolist() == [[0, 0, 0, 0, 0, 1]] * 20
    assert not x[:, 19:].any()
    for b in range(20):
        found = [i for i in range(4) if torch.equal(items[b, i, 1:], x[b, 16:18])]
        assert any(torch.equal(items[b, i + 1, 1:, :4], y[b]) for i in found)


def test_sort_says_the_vectors_of_the_highest_priorities():
    torch.manual_seed(2)
    x, y = ntm_tasks.sort(6, Size(5, 4, 4, 3), vectors=4)
    assert x.shape == (6, 4 + 1 + 3, 7)
    for b in range(6):
        by_hand = sorted(range(4), key=lambda v: -float(x[b, v, 5]))[:3]
        assert torch.equal(y[b], x[b, by_hand, :5])
    assert x[:, 4, 6].tolist() == [1] * 6
    assert not x[:, 5:].any()


@pytest.mark.parametrize("task", ntm_tasks.SIZES)
def test_held_out_sequences_are_of_one_size_and_the_same_for_every_seed(task):
    cfg = ntm_tasks.TASK.configure("laptop", task)
    torch.manual_seed(3)
    x, y = ntm_tasks.held_out(cfg, 3)
    torch.manual_seed(4)
    again = ntm_tasks.held_out(cfg, 3)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    shapes = {ntm_tasks.drawn(cfg, 2)[0].shape for _ in range(20)}
    assert len(shapes) > 1
    net = ntm_tasks.build(cfg)
    assert net(x[:2])[:, -y.shape[1] :].shape == y[:2].shape


def test_the_picture_shows_the_answer_beside_what_was_wanted():
    cfg = ntm_tasks.TASK.configure("smoke", "recall")
    figure = ntm_tasks.draw(ntm_tasks.build(cfg), *ntm_tasks.held_out(cfg, 2))
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(pictures) == 5
    assert len({picture.shape[1] for picture in pictures}) == 1
