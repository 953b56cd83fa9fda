import itertools

import pytest
import torch

from tasks.ch04_feed_forward import overfitting as task


def test_nets_side_by_side_are_ordinary_nets():
    torch.manual_seed(0)
    nets = task.Nets(3, (2, 4, 4, 2))
    for b in nets.biases:
        torch.nn.init.normal_(b)
    x = torch.randn(3, 5, 2)
    out = nets(x)
    for r in range(3):
        h = x[r]
        for i, (W, b) in enumerate(zip(nets.weights, nets.biases, strict=True)):
            h = h @ W[r] + b[r]
            h = h if i == 2 else h.tanh()
        torch.testing.assert_close(out[r], h)


def test_a_net_gets_the_gradient_of_its_own_loss_only():
    torch.manual_seed(1)
    nets, alone = task.Nets(3, (2, 4, 2)), task.Nets(1, (2, 4, 2))
    for p, q in zip(nets.parameters(), alone.parameters(), strict=True):
        q.data.copy_(p.data[1:2])
    x, y = torch.randn(3, 6, 2), torch.randint(2, (3, 6))
    task.loss(nets, (x, y)).backward()
    task.loss(alone, (x[1:2], y[1:2])).backward()
    for p, q in zip(nets.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad[1:2], q.grad)
    expected = torch.nn.functional.cross_entropy(alone(x[1:2])[0], y[1])
    torch.testing.assert_close(task.loss(alone, (x[1:2], y[1:2])), expected)


def test_spirals_without_noise_lie_on_two_arms_that_are_each_others_mirror():
    torch.manual_seed(2)
    (x, y) = task.spirals(2, 4000, wrong=0.0, noise=0.0)
    assert x.shape == (2, 4000, 2)
    radius = x.norm(dim=2) / 2
    angle = 1.5 * torch.pi * radius + torch.pi * y
    torch.testing.assert_close(x[..., 0], 2 * radius * angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[..., 1], 2 * radius * angle.sin(), atol=1e-5, rtol=0)
    assert float(radius.max()) <= 1


def test_the_asked_share_of_labels_is_wrong():
    torch.manual_seed(3)
    _, right = task.spirals(1, 20_000, wrong=0.0, noise=0.0)
    torch.manual_seed(3)
    _, some = task.spirals(1, 20_000, wrong=0.1, noise=0.0)
    assert float((right != some).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_stopping_takes_the_first_best_validation_of_each_net():
    validation = torch.tensor([[0.1, 0.5], [0.9, 0.6], [0.9, 0.7]])
    test = torch.tensor([[0.2, 0.3], [0.8, 0.4], [0.7, 0.5]])
    torch.testing.assert_close(task.stopped(validation, test), torch.tensor([0.8, 0.5]))


def test_images_for_training_and_validation_are_different_ones():
    class Source:
        train = (torch.arange(50, dtype=torch.uint8)[:, None, None, None], torch.arange(50))
        test = (torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))

    torch.manual_seed(4)
    (x, y), (v, _), (x_test, _) = task.drawn(Source, 3, 20)
    assert x.shape == (3, 20, 1)
    assert x_test.shape == (3, 4, 1)
    torch.testing.assert_close(x[..., 0] * 255, y.float())
    for r in range(3):
        assert not set(x[r].flatten().tolist()) & set(v[r].flatten().tolist())
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("dataset", ["spirals", "digits"])
def test_the_pictures_draw(dataset):
    torch.manual_seed(5)
    train = task.spirals(2, 10, 0.1, 0.1)
    shapes = itertools.product((3, 6), (1, 2))
    nets = {f"{h}x{d}": task.Nets(2, (2, *[h] * d, 2)) for h, d in shapes}
    history = {key: torch.rand(4, 3, 2).tolist() for key in nets}
    if dataset == "spirals":
        figure = task.draw_grid(nets, train, history, range(4))
        assert len(figure.subfigs[0].axes) == 4
    else:
        figure = task.draw_stopping(history["3x1"], range(4))
    figure.canvas.draw()


@pytest.mark.parametrize("updates", [10, 990])
def test_updates_that_no_number_of_rows_shares_out_are_refused(updates):
    with pytest.raises(ValueError, match=f"updates={updates} are no multiple of rows=20"):
        task.TASK.configure("laptop", overrides={"updates": updates})


def test_digits_have_to_suffice_for_validation_too():
    for examples in (719, 1437):
        with pytest.raises(ValueError, match=f"examples={examples} of 1,437 digits"):
            task.TASK.configure("laptop", "digits", overrides={"examples": examples})
    assert task.TASK.configure("laptop", "digits", overrides={"examples": 718}).examples == 718
    # Spirals are drawn, as many as it takes.
    assert task.TASK.configure("laptop", overrides={"examples": 1437}).examples == 1437
