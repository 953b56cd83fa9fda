import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ch04_feed_forward import sigmoid_gd as task


def drawn(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    t_N = torch.randint(2, (n,), generator=generator).double()
    return torch.randn(3, generator=generator, dtype=torch.float64), x_ND, t_N


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_books_formula_is_the_derivative_of_the_loss(seed):
    given_ = drawn(seed)
    torch.testing.assert_close(task.formula(*given_), task.autograd(*given_), rtol=1e-9, atol=1e-14)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_books_formula_against_finite_differences(seed):
    w_D, *data = drawn(seed)
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    found = [(task.loss(w_D + s, *data) - task.loss(w_D - s, *data)) / 2e-6 for s in steps]
    torch.testing.assert_close(task.formula(w_D, *data), torch.stack(found), rtol=1e-6, atol=1e-9)


def test_one_update_by_hand():
    """At w = 0 the output is 1/2 and the slope 1/4."""
    x_ND, t_N = torch.tensor([[2.0, 0.0, 1.0]]).double(), torch.tensor([1.0]).double()
    gradient = task.formula(torch.zeros(3).double(), x_ND, t_N)
    torch.testing.assert_close(gradient, torch.tensor([-0.25, 0.0, -0.125]).double())


def test_a_saturated_neuron_hardly_moves_however_wrong_it_is():
    x_ND, t_N = torch.tensor([[0.0, 0.0, 1.0]]).double(), torch.tensor([0.0]).double()
    far, near = (task.formula(torch.tensor([0.0, 0.0, b]).double(), x_ND, t_N)[2] for b in (8, 0))
    assert 0 < float(far) < float(near) / 300


@pytest.mark.parametrize("rule", ["and", "or"])
def test_labels_follow_the_rule_at_the_corners(rule):
    torch.manual_seed(0)
    x_ND, t_N = task.examples(400, task.Config(rule=rule, noise=0.0))
    corner = x_ND[:, :2].bool()
    expected = corner.all(1) if rule == "and" else corner.any(1)
    assert torch.equal(t_N.bool(), expected)
    assert (x_ND[:, 2] == 1).all()
    assert len(x_ND[:, :2].unique(dim=0)) == 4


def test_noisy_labels_have_the_probability_of_their_neuron():
    torch.manual_seed(1)
    cfg = task.Config(rule="noisy")
    x_ND, t_N = task.examples(200_000, cfg)
    p_N = task.output(torch.tensor([4.0, 4.0, 0.0]).double(), x_ND)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (p_N >= low) & (p_N < low + 0.25)
        assert float(t_N[inside].mean()) == pytest.approx(float(p_N[inside].mean()), abs=0.01)


def test_accuracy_counts_both_classes():
    x_ND = torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [3.0, 0.0, 1.0]]).double()
    w_D = torch.tensor([1.0, 0.0, 0.0]).double()
    assert task.accuracy(w_D, x_ND, torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(2 / 3)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_cross_entropys_gradient_is_its_derivative(seed):
    w_D, x_ND, t_N = drawn(seed)
    leaf_D = w_D.clone().requires_grad_()
    value = torch.nn.functional.binary_cross_entropy_with_logits(x_ND @ leaf_D, t_N)
    (expected,) = torch.autograd.grad(value, leaf_D)
    torch.testing.assert_close(task.cross_entropy(w_D, x_ND, t_N), expected)


def test_cross_entropy_moves_a_saturated_neuron_that_the_formula_does_not():
    """At one example the two differ by the factor y (1 - y)."""
    x_ND, t_N = torch.tensor([[0.0, 0.0, 1.0]]).double(), torch.tensor([0.0]).double()
    w_D = torch.tensor([0.0, 0.0, 8.0]).double()
    y = float(task.output(w_D, x_ND))
    without, with_it = (g(w_D, x_ND, t_N)[2] for g in (task.cross_entropy, task.formula))
    assert float(without) == pytest.approx(y)
    assert float(with_it) == pytest.approx(y * (1 - y) * float(without))


def test_logits_are_judged_by_how_sure_they_are_and_not_only_by_their_sign():
    _, x_ND, _ = drawn(0, n=50)
    ideal_D = torch.tensor([4.0, 4.0, 0.0]).double()
    assert task.logit_error(ideal_D, ideal_D, x_ND) == 0
    assert task.logit_error(torch.zeros(3).double(), ideal_D, x_ND) == pytest.approx(1)
    # As often right as the ideal neuron, and half as sure.
    assert task.logit_error(ideal_D / 2, ideal_D, x_ND) == pytest.approx(0.5)
    labels = (x_ND @ ideal_D > 0).double()
    assert task.accuracy(ideal_D / 2, x_ND, labels) == 1


@pytest.mark.parametrize("updates", [10, 33])
def test_updates_that_no_number_of_rows_shares_out_are_refused(updates):
    with pytest.raises(ValueError, match=f"updates={updates} are no multiple of rows=16"):
        task.TASK.configure("laptop", overrides={"updates": updates})
