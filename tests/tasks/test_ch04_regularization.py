import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.ch04_feed_forward import regularization as task


def small(**changes):
    torch.manual_seed(0)
    return task.network(6, task.Config(hidden=8, layers=2, **changes))


@given(seed=st.integers(0, 1000), c=st.floats(0.01, 10))
@settings(max_examples=30, deadline=None)
def test_the_max_norm_constraint_shortens_what_is_too_long_and_nothing_else(seed, c):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    before = [w.detach().clone() for w in task.weights(model)]
    biases = [model[0].bias.detach().clone(), model[2].bias.detach().clone()]
    task.constrain(model, c)
    for old, new in zip(before, task.weights(model), strict=True):
        length = old.norm(dim=1)
        torch.testing.assert_close(new.norm(dim=1), length.clamp(max=c))
        cosine = nn.functional.cosine_similarity(old, new.detach(), dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        assert torch.equal(old[length < c], new.detach()[length < c])
    assert torch.equal(model[0].bias, biases[0])
    assert torch.equal(model[2].bias, biases[1])


def test_the_gradient_of_the_penalties_is_w_and_its_sign():
    model = small()
    task.penalty(model, l2=0.3, l1=0.0).backward()
    for w in task.weights(model):
        torch.testing.assert_close(w.grad, 0.3 * w.detach())
    model.zero_grad()
    task.penalty(model, l2=0.0, l1=0.2).backward()
    for w in task.weights(model):
        torch.testing.assert_close(w.grad, 0.2 * w.detach().sign())
    assert all(m.bias.grad is None for m in model if isinstance(m, nn.Linear))


def test_no_penalty_is_nothing():
    assert task.penalty(small(), l2=0.0, l1=0.0) == 0


def test_l2_is_the_weight_decay_of_sgd():
    x, y = torch.rand(4, 6), torch.arange(4)
    ends = []
    for l2 in (0.1, 0.0):
        model = small()
        decayed = {"params": task.weights(model), "weight_decay": 0.1 - l2}
        biases = [m.bias for m in model if isinstance(m, nn.Linear)]
        optimizer = torch.optim.SGD([decayed, {"params": biases}], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model.eval()(x), y) + task.penalty(model, l2, 0.0)
            value.backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends)


def test_dropout_keeps_the_expectation_and_rests_while_testing():
    model = small(dropout=0.5, input_dropout=0.2)
    x = torch.ones(1, 6)
    kept = model[0].train()(x.expand(20_000, -1))
    assert float(kept.mean()) == pytest.approx(1, abs=0.01)
    assert float((kept == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(model.eval()(x), small().eval()(x))


def test_scores_are_medians_of_the_last_five_and_count_small_weights():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[5e-4, -5e-4], [3.0, 4.0]]))
    history = [[0.9, 0.9], [0.0, 0.1], [0.1, 0.2], [0.2, 0.5], [0.1, 0.2], [0.1, 0.3]]
    got = task.scores(history, model)
    assert got["test_error"] == 0.2
    assert got["train_error"] == 0.1
    assert got["generalization_gap"] == pytest.approx(0.1)
    assert got["small_weights"] == 0.5
    assert got["weight_norm"] == pytest.approx(5, rel=1e-6)


def test_error_counts_over_all_pieces():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    x = torch.eye(2).repeat(6_000, 1)
    y = torch.tensor([0, 1]).repeat(6_000)
    y[:1200] = 1 - y[:1200]
    assert task.error(model, x, y) == pytest.approx(0.1)
