import pytest
import torch

from tasks.ch12_memory import dnc_memory_reuse


def test_every_round_is_seen_marked_and_asked_for():
    x, y, asked = dnc_memory_reuse.sequences(3, 2, 4, 5)
    assert x.shape == (3, 20, 6)
    assert y.shape == (3, 20, 5)
    assert asked.tolist() == 4 * [False, False, False, True, True]
    for begin in range(0, 20, 5):
        assert torch.equal(x[:, begin : begin + 2, :5], y[:, begin + 3 : begin + 5])
        assert x[:, begin + 2].tolist() == [[0, 0, 0, 0, 0, 1]] * 3
        assert not x[:, begin + 3 : begin + 5].any()
        assert not y[:, begin : begin + 3].any()


def test_a_round_fits_into_the_memory_and_all_of_them_do_not():
    for profile in dnc_memory_reuse.TASK.profiles:
        cfg = dnc_memory_reuse.TASK.configure(profile)
        assert cfg.max_length < cfg.slots < cfg.max_length * cfg.rounds


def model(**changes):
    torch.manual_seed(0)
    return dnc_memory_reuse.build(dnc_memory_reuse.TASK.configure("smoke", **changes))


def test_what_is_counted():
    x, y, asked = dnc_memory_reuse.held_out(2, 3, 2)
    net = model()
    with torch.no_grad():
        logits, trace = net.unroll(x)
        found = dnc_memory_reuse.measured(net, x, y, asked)
    wrong = ((logits > 0) != (y > 0.5))[:, asked]
    assert found["share_wrong"] == pytest.approx(float(wrong.float().mean()))
    # 3 rounds of 2 vectors of 2 bits.
    assert found["bits_wrong"] == pytest.approx(12 * found["share_wrong"])
    right = sum(not row.any() for row in wrong)
    assert found["success"] == pytest.approx(right / len(x))
    free = torch.stack([to.free_gates_BR.mean() for _, to in trace])
    # Steps 3 and 4 of 5 read; what they read is freed a step later.
    after = [4, 5, 9, 10, 14]
    assert found["freed_reading"] == pytest.approx(float(free[after].mean()))
    others = [t for t in range(15) if t not in after]
    assert found["freed_writing"] == pytest.approx(float(free[others].mean()))
    assert found["violation"] <= 1e-5


def test_links_as_listed_are_seen_to_leave_their_range():
    net, (x, y, asked) = model(variant="book_link"), dnc_memory_reuse.held_out(2, 4, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(32)
        assert dnc_memory_reuse.measured(net, x, y, asked)["violation"] > 1e-3
        net.options["book"] = False
        assert dnc_memory_reuse.measured(net, x, y, asked)["violation"] <= 1e-5


def test_the_picture_shows_all_rounds():
    figure = dnc_memory_reuse.draw(model(), *dnc_memory_reuse.held_out(2, 2, 2))
    shapes = [ax.images[0].get_array().shape for ax in figure.axes if ax.images]
    assert shapes[:6] == [(3, 10), (2, 10), (2, 10), (3, 10), (3, 10), (3, 10)]
    assert shapes[6:9] == [(1, 10)] * 3
    assert shapes[9:] == [(3, 6), (3, 3), (3, 3)]
