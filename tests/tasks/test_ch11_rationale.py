import itertools

import pytest
import torch
from scipy import integrate

from tasks.ch11_interpretability import rationale as task


def config(method, **changes):
    small = {"embedding": 4, "hidden": 5, "width": 3, "dropout": 0.0}
    return task.Config(method=method, **{**small, **changes})


def test_the_evidence_are_the_words_after_look():
    torch.manual_seed(0)
    x_NT, n_N, y_N, z_NT = task.planted(300)
    assert (n_N == x_NT.shape[1]).all()
    assert (z_NT.sum(1) == task.SPAN).all()
    start_N = z_NT.int().argmax(1)
    before = x_NT.gather(1, start_N[:, None] - 1)[:, 0]
    assert {task.VOCABULARY[i] for i in before.tolist()} == {"look"}
    praise = {task.VOCABULARY.index(w) for w in task.PRAISE.split()}
    said = torch.tensor([[i in praise for i in row] for row in x_NT[z_NT].view(300, -1).tolist()])
    agree = (said == y_N[:, None].bool()).double().mean()
    assert float(agree) == pytest.approx(0.85, abs=0.04)


def test_kumaraswamys_gates_are_what_is_drawn():
    torch.manual_seed(1)
    gates = task.Kumaraswamy(torch.tensor([[0.3, -0.5]])[:, None].expand(1, 20_000, 2))
    z_BT = gates.sample()
    assert float((z_BT == 0).double().mean()) == pytest.approx(
        float(gates.closed()[0, 0]), abs=0.01
    )
    opened = 1 - gates.below((1 - task.LEFT) / (task.RIGHT - task.LEFT))
    assert float((z_BT == 1).double().mean()) == pytest.approx(float(opened[0, 0]), abs=0.01)
    a, b = float(gates.a_BT[0, 0]), float(gates.b_BT[0, 0])
    k = -task.LEFT / (task.RIGHT - task.LEFT)
    density = integrate.quad(lambda v: a * b * v ** (a - 1) * (1 - v**a) ** (b - 1), 0, k)[0]
    assert float(gates.closed()[0, 0]) == pytest.approx(density, rel=1e-4)


def test_the_penalty_of_chosen_words_and_of_their_probabilities():
    cfg = config("hardkuma", sparsity=1.0, coherence=0.5)
    real_BT = torch.tensor([[1.0, 1, 1, 1, 0]])
    z_BT = torch.tensor([[1.0, 1, 0, 1, 1]])
    # Three words of four, and two changes between them; the padding does not count.
    assert float(task.penalty(z_BT, real_BT, cfg)) == pytest.approx((3 + 0.5 * 2) / 4)
    p_BT, expected = torch.tensor([[0.2, 0.7, 0.9, 0.4]]), 0.0
    for bits in itertools.product((0.0, 1.0), repeat=4):
        z = torch.tensor([bits])
        share = torch.where(z > 0, p_BT, 1 - p_BT).prod()
        expected += float(share * task.penalty(z, torch.ones(1, 4), cfg))
    assert float(task.penalty(p_BT, torch.ones(1, 4), cfg)) == pytest.approx(expected)


def test_the_likelihood_ratios_mean_is_the_gradient_of_the_expected_cost():
    torch.manual_seed(2)
    cfg = config("reinforce", draws=2, sparsity=0.7, coherence=0.3)
    model = task.Rationaliser(9, 2, 1, cfg).requires_grad_(False)
    x_BT, y_B = torch.tensor([[3, 5, 7]]), torch.tensor([1])
    raw_BT = torch.tensor([[0.4, -0.8, 0.2]], requires_grad=True)
    expected = torch.zeros(())
    for bits in itertools.product((0.0, 1.0), repeat=3):
        z_BT = torch.tensor([bits])
        share = torch.where(z_BT > 0, raw_BT.sigmoid(), 1 - raw_BT.sigmoid()).prod()
        error = torch.nn.functional.cross_entropy(model.encode(x_BT, z_BT), y_B)
        expected = expected + share * (error + task.penalty(z_BT, torch.ones(1, 3), cfg)[0])
    (exact,) = torch.autograd.grad(expected, raw_BT)
    many = 20_000
    wide = raw_BT.detach().repeat(many, 1).requires_grad_()
    loss = model.likelihood_ratio(wide, x_BT.repeat(many, 1), y_B.repeat(many), torch.ones(()))
    (found,) = torch.autograd.grad(loss * many, wide)
    torch.testing.assert_close(found.mean(0), exact[0], atol=0.01, rtol=0)


@pytest.mark.parametrize("method", ["reinforce", "hardkuma"])
def test_the_prediction_depends_on_the_chosen_words_alone(method):
    torch.manual_seed(3)
    model = task.Rationaliser(30, 2, 1, config(method)).eval()
    with torch.no_grad():
        x_BT = torch.randint(1, 30, (4, 12))
        z_BT = torch.rand(4, 12) < 0.4
        other = torch.where(z_BT, x_BT, torch.randint(1, 30, x_BT.shape))
        torch.testing.assert_close(
            model.encode(x_BT, z_BT.float()), model.encode(other, z_BT.float())
        )
        assert not torch.allclose(model.encode(x_BT, z_BT.float())[0], model.encode(x_BT, ~z_BT)[0])


def test_padding_is_never_chosen_and_changes_nothing():
    torch.manual_seed(4)
    for method in ("reinforce", "hardkuma", "attention", "full"):
        model = task.Rationaliser(30, 2, 1, config(method, share=0.3)).eval()
        x_BT = torch.randint(1, 30, (3, 10))
        padded = torch.nn.functional.pad(x_BT, (0, 6))
        with torch.no_grad():
            (logits, z_BT), (same, z_padded) = model(x_BT), model(padded)
        torch.testing.assert_close(same, logits)
        assert torch.equal(z_padded[:, :10], z_BT)
        assert not z_padded[:, 10:].any()
        if method == "attention":
            assert z_BT.sum(1).tolist() == [3, 3, 3]


def test_scores_and_fragments():
    z_BT = torch.tensor([[1, 1, 0, 0, 1, 0]], dtype=torch.bool)
    evidence_BT = torch.tensor([[0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    found = task.scores(z_BT, evidence_BT, n_words=6)
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4, "lift": 1.0})
    assert task.fragments(z_BT).tolist() == [2]
    nothing = task.scores(torch.zeros_like(z_BT), evidence_BT, n_words=6)
    assert set(nothing.values()) == {0}


def test_lines_are_broken_between_words_and_windows_show_what_is_marked():
    places, n_lines = task.set_lines(["aaa", "bbb", "cc", "ddddd"], columns=7)
    assert (places, n_lines) == ([(0, 0), (4, 0), (0, 1), (0, 2)], 3)
    marked_T = torch.zeros(50, dtype=torch.bool)
    marked_T[[30, 35]] = True
    seen = task.window(marked_T, torch.zeros_like(marked_T), 8)
    assert marked_T[seen].sum() == 2
    review = ("head", ["good", "film"], [True, False], [False, True])
    figure = task.draw_rationales([review], "title")
    figure.canvas.draw()
    assert {t.get_text() for t in figure.axes[0].texts} == {"head", "good", "film"}
