import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.run import Context
from tasks.ch05_pytorch import mnist_mlp


def test_the_listing_divides_the_books_9110_right_digits_by_10048():
    shown = mnist_mlp.printed(9_110, 10_000, 64)
    assert shown == 9_110 / 10_048
    # As the notebook's output has it, in float32.
    assert 100 * shown == pytest.approx(90.66481018066406, abs=1e-5)


@given(n_test=st.integers(1, 2_000), batch_size=st.integers(1, 300), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_printed_accuracy_is_never_above_the_true_one(n_test, batch_size, share):
    n_correct = round(share * n_test)
    shown, true = mnist_mlp.printed(n_correct, n_test, batch_size), n_correct / n_test
    assert shown <= true
    assert n_correct == 0 or (shown == true) == (n_test % batch_size == 0)


def test_the_printed_loss_is_the_mean_of_batches_over_their_size():
    generator = torch.Generator().manual_seed(0)
    logits, y_B = torch.randn(128, 10, generator=generator), torch.arange(128) % 10
    loss = torch.nn.functional.cross_entropy
    assert mnist_mlp.printed_loss(logits, y_B, 64) == pytest.approx(float(loss(logits, y_B)) / 64)
    # A last batch of one counts as much as a full one.
    short = mnist_mlp.printed_loss(logits[:65], y_B[:65], 64)
    both = float(loss(logits[:64], y_B[:64])) + float(loss(logits[64:65], y_B[64:65]))
    assert short == pytest.approx(both / 128)


def test_scores_of_known_logits():
    y_B = torch.arange(10).repeat(7)
    right = torch.nn.functional.one_hot(y_B, 10) * 50.0
    wrong = right.roll(1, dims=1)
    half = torch.cat([right[:35], wrong[35:]])
    assert mnist_mlp.scores(right, y_B, 64)["test_accuracy"] == 1
    assert mnist_mlp.scores(right, y_B, 64)["test_loss"] == pytest.approx(0, abs=1e-6)
    assert mnist_mlp.scores(wrong, y_B, 64)["test_accuracy"] == 0
    got = mnist_mlp.scores(half, y_B, 64)
    assert got["test_accuracy"] == 0.5
    assert got["printed_accuracy"] == 35 / 128
    assert got["printed_shortfall"] == 0.5 - 35 / 128


def test_one_cycle_rises_to_the_peak_in_a_fifth_and_falls_to_zero():
    got = [mnist_mlp.one_cycle(share) for share in (0, 0.1, 0.2, 0.6, 1)]
    assert got == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_modern_steps_at_the_rates_of_its_cycle(monkeypatch):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setitem(mnist_mlp.OPTIMIZERS, "one_cycle", Watched)
    task = mnist_mlp.TASK
    cfg = task.configure("smoke", "modern")
    for _ in task.run(cfg, Context(torch.device("cpu"), 0)):
        pass
    peak, updates = cfg.lr, len(rates)
    assert updates == cfg.epochs * -(-1437 // cfg.batch_size)
    assert rates == pytest.approx(
        [peak * mnist_mlp.one_cycle((i + 0.5) / updates) for i in range(updates)]
    )
    assert 0 < rates[0] < max(rates) <= peak
    assert 0 < rates[-1] < 0.02 * peak


def test_the_net_is_the_books():
    model = mnist_mlp.classifier(784, mnist_mlp.Config())
    assert [tuple(p.shape) for p in model.parameters()] == [(256, 784), (256,), (10, 256), (10,)]
    x_BD = torch.rand(5, 784)
    first, last = model[0], model[-1]
    expected = (x_BD @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(model.train()(x_BD), expected)


def test_dropout_acts_in_training_only():
    torch.manual_seed(3)
    model = mnist_mlp.classifier(20, mnist_mlp.Config(dropout=0.5))
    x_BD = torch.rand(5, 20)
    assert not torch.equal(model.train()(x_BD), model(x_BD))
    assert torch.equal(model.eval()(x_BD), model(x_BD))


@pytest.mark.parametrize("right", [0, 3, 30])
def test_the_picture_shows_whatever_is_wrong(right):
    y_B = torch.arange(30) % 10
    guess_B = torch.where(torch.arange(30) < right, y_B, (y_B + 1) % 10)
    logits_BK = torch.nn.functional.one_hot(guess_B, 10) * 5.0
    x_BCHW = torch.zeros(30, 1, 8, 8, dtype=torch.uint8)
    figure = mnist_mlp.draw_mistakes(x_BCHW, logits_BK, y_B)
    title = figure.subfigs[0].axes[0].get_title()
    assert title == f"{30 - right} of 30 test digits are wrong"
    shown = [ax.get_title() for ax in figure.subfigs[1].axes]
    assert sum(bool(t) for t in shown) == min(30 - right, 20)
    figure.canvas.draw()
