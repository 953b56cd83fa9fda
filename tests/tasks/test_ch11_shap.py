import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor

from suite.plan import expand
from suite.run import execute
from tasks.ch11_interpretability import shap as task

GAMES = st.tuples(st.integers(1, 6), st.integers(0, 2**32 - 1))


def game(d, seed, n=2):
    """Random worths of all coalitions, v_NC, with their masks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2**d, generator=generator, dtype=torch.float64), task.coalitions(d)


def index(mask):
    return (mask.long() * 2 ** torch.arange(mask.shape[-1])).sum(-1)


@pytest.fixture
def net():
    """A small net over five features with strong interactions, rows to explain, a background."""
    torch.manual_seed(3)
    x = torch.randn(40, 5, dtype=torch.float64)
    return task.Net(x, 16).double().requires_grad_(False), 2 * x[:4], x[4:34]


@settings(max_examples=40, deadline=None)
@given(GAMES)
def test_exact_is_the_mean_over_all_orders(size_seed):
    d, seed = size_seed[0] % 4 + 1, size_seed[1]
    v_NC, mask_CD = game(d, seed)
    total = torch.zeros(2, d, dtype=torch.float64)
    for order in itertools.permutations(range(d)):
        at = 0
        for feature in order:
            total[:, feature] += v_NC[:, at + 2**feature] - v_NC[:, at]
            at += 2**feature
    torch.testing.assert_close(task.exact(v_NC, mask_CD), total / math.factorial(d))


@settings(max_examples=40, deadline=None)
@given(GAMES)
def test_exact_is_efficient_and_linear(size_seed):
    v_NC, mask_CD = game(*size_seed)
    u_NC, _ = game(size_seed[0], size_seed[1] ^ 1)
    phi_ND = task.exact(v_NC, mask_CD)
    torch.testing.assert_close(phi_ND.sum(1), v_NC[:, -1] - v_NC[:, 0])
    both = task.exact(2 * v_NC - 3 * u_NC, mask_CD)
    torch.testing.assert_close(both, 2 * phi_ND - 3 * task.exact(u_NC, mask_CD))


@settings(max_examples=40, deadline=None)
@given(GAMES, st.data())
def test_exact_is_symmetric(size_seed, data):
    v_NC, mask_CD = game(*size_seed)
    swap = torch.tensor(data.draw(st.permutations(range(size_seed[0]))))
    phi_ND = task.exact(v_NC, mask_CD)
    renamed_ND = task.exact(v_NC[:, index(mask_CD[:, swap])], mask_CD)
    torch.testing.assert_close(renamed_ND[:, swap], phi_ND)


@settings(max_examples=40, deadline=None)
@given(GAMES, st.integers(0, 5))
def test_a_dummy_gets_what_it_adds_and_nothing_else_changes(size_seed, which):
    v_NC, mask_CD = game(*size_seed)
    which %= size_seed[0]
    without = mask_CD.clone()
    without[:, which] = False
    u_NC = v_NC[:, index(without)] + 7 * mask_CD[:, which]
    expected = torch.full((2,), 7.0, dtype=torch.float64)
    torch.testing.assert_close(task.exact(u_NC, mask_CD)[:, which], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_kernel_shap_with_all_coalitions_is_exact(d, seed):
    v_NC, mask_CD = game(d, seed)
    torch.manual_seed(seed)
    mask_NCD = task.drawn(2, d)
    sampled = v_NC.gather(1, index(mask_NCD))
    found = task.regress(mask_NCD, sampled, v_NC[:, [0, -1]])
    torch.testing.assert_close(found, task.exact(v_NC, mask_CD), atol=1e-9, rtol=1e-9)


def test_a_draw_has_every_coalition_once_beside_its_complement():
    mask_NCD = task.drawn(3, 6)
    for mask_CD in mask_NCD:
        assert sorted(index(mask_CD).tolist()) == list(range(1, 2**6 - 1))
        assert torch.equal(mask_CD[::2], ~mask_CD[1::2])
    assert not torch.equal(mask_NCD[0], mask_NCD[1])


def test_the_first_coalition_is_drawn_by_kernel_weight():
    torch.manual_seed(0)
    d, n = 4, 20_000
    sizes = task.drawn(n, d)[:, 0].sum(1)
    smaller = torch.minimum(sizes, d - sizes).bincount()[1:] / n
    mass = torch.tensor([2 / (1 * 3), 1 / (2 * 2)])
    torch.testing.assert_close(smaller, mass / mass.sum(), atol=0.015, rtol=0)


def test_kernel_shap_is_efficient_and_finds_an_additive_game_from_few_coalitions():
    torch.manual_seed(1)
    d, effect_ND = 8, torch.randn(3, 8, dtype=torch.float64)
    mask_NCD = task.drawn(3, d)[:, :40]
    v_NC = (mask_NCD * effect_ND[:, None]).sum(2)
    ends_N2 = torch.stack([torch.zeros(3).double(), effect_ND.sum(1)], 1)
    torch.testing.assert_close(task.regress(mask_NCD, v_NC, ends_N2), effect_ND)
    noisy = task.regress(mask_NCD, torch.randn_like(v_NC), ends_N2)
    torch.testing.assert_close(noisy.sum(1), effect_ND.sum(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_all_permutations_together_are_exact(d, seed):
    v_NC, mask_CD = game(d, seed)
    rank_PD = torch.tensor(list(itertools.permutations(range(d))))

    def v(mask_NCD):
        return v_NC.gather(1, index(mask_NCD))

    found = task.permuted(v, rank_PD.expand(2, -1, -1), v_NC[:, [0, -1]])
    torch.testing.assert_close(found, task.exact(v_NC, mask_CD))


def test_a_permutation_and_its_reverse_are_exact_without_interactions_above_two():
    torch.manual_seed(2)
    d, pair_DD = 5, torch.randn(5, 5, dtype=torch.float64)
    mask_CD = task.coalitions(d)
    worth_C = ((mask_CD.double() @ pair_DD) * mask_CD).sum(1)
    rank_D = torch.randperm(d)
    found = task.permuted(
        lambda mask: worth_C[index(mask)],
        torch.stack([rank_D, d - 1 - rank_D])[None],
        worth_C[None, [0, -1]],
    )
    torch.testing.assert_close(found, task.exact(worth_C[None], mask_CD))


def test_worth_is_the_mean_over_the_background(net, monkeypatch):
    model, x_ND, background_BD = net
    mask_CD = task.coalitions(5)
    v_NC = task.worth(model, x_ND, background_BD, mask_CD)
    rows = background_BD.clone()
    rows[:, mask_CD[11]] = x_ND[2, mask_CD[11]]
    torch.testing.assert_close(v_NC[2, 11], model(rows).mean())
    torch.testing.assert_close(v_NC[:, -1], model(x_ND))
    monkeypatch.setitem(task.ROWS_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(task.worth(model, x_ND, background_BD, mask_CD), v_NC)
    each = task.worth(model, x_ND, background_BD, mask_CD.expand(4, -1, -1).roll(1, 1))
    torch.testing.assert_close(each, v_NC.roll(1, 1))


def forest_of(estimators):
    return task.Forest([e.tree_ for e in estimators])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_tree_shap_is_exact_on_random_trees(d, depth, seed):
    random = np.random.default_rng(seed)
    # Few distinct values: thresholds repeat, and a path tests a feature more than once.
    x = random.integers(0, 5, (60, d)).astype(float)
    tree = DecisionTreeRegressor(max_depth=depth, random_state=seed % 2**31)
    forest = forest_of([tree.fit(x, random.standard_normal(60))])
    x_ND, background_BD = torch.as_tensor(x[:6]), torch.as_tensor(x[20:33])
    truth = exactly(forest, x_ND, background_BD)
    found = task.tree_shap(forest.leaves(d), x_ND, background_BD)
    torch.testing.assert_close(found, truth, atol=1e-12, rtol=1e-12)


def test_a_forest_as_tables_gives_scikit_learns_probabilities(monkeypatch):
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 6)).astype(np.float32)
    model = RandomForestClassifier(15, random_state=0).fit(x, x[:, 0] * x[:, 1] > 0)
    forest, rows = forest_of(model.estimators_), torch.as_tensor(x).double()
    assert forest.depth > 5
    np.testing.assert_allclose(forest(rows), model.predict_proba(x)[:, 0], atol=1e-14)
    low_LD, high_LD, value_L = forest.leaves(6)
    inside_RL = ((rows[:, None] > low_LD) & (rows[:, None] <= high_LD)).all(2)
    assert (inside_RL.sum(1) == 15).all()
    torch.testing.assert_close(inside_RL.double() @ value_L, forest(rows))
    whole = task.tree_shap((low_LD, high_LD, value_L), rows[:5], rows[50:80])
    monkeypatch.setitem(task.GAMES_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(
        task.tree_shap((low_LD, high_LD, value_L), rows[:5], rows[50:80]), whole
    )


def exactly(model, x_ND, background_BD):
    mask_CD = task.coalitions(x_ND.shape[1])
    return task.exact(task.worth(model, x_ND, background_BD, mask_CD), mask_CD)


def as_numpy(model, rows):
    return model(torch.as_tensor(rows)).numpy()


@pytest.fixture(scope="module")
def oracle():
    """The package of the method's authors; its imports warn of their own accord."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("shap")


@pytest.mark.slow  # its explainer is compiled by numba first
@pytest.mark.filterwarnings("ignore")
def test_agreement_with_the_exact_explainer_of_shap(oracle, net):
    model, x_ND, background_BD = net
    masker = oracle.maskers.Independent(background_BD.numpy(), max_samples=100)
    theirs = oracle.explainers.ExactExplainer(lambda rows: as_numpy(model, rows), masker)
    np.testing.assert_allclose(exactly(*net), theirs(x_ND.numpy()).values, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_agreement_with_the_kernel_explainer_of_shap(oracle, net):
    model, x_ND, background_BD = net
    theirs = oracle.KernelExplainer(lambda rows: as_numpy(model, rows), background_BD.numpy())
    values = theirs.shap_values(x_ND.numpy(), nsamples=2**5, l1_reg=False, silent=True)
    np.testing.assert_allclose(exactly(*net), values, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_agreement_with_the_tree_explainer_of_shap(oracle):
    random = np.random.default_rng(1)
    x = random.standard_normal((200, 7)).astype(np.float32)
    model = RandomForestClassifier(10, max_depth=5, random_state=0).fit(x, x[:, 0] + x[:, 1] > 0.3)
    rows = torch.as_tensor(x).double()
    found = task.tree_shap(forest_of(model.estimators_).leaves(7), rows[:10], rows[100:150])
    explainer = oracle.TreeExplainer(
        model, x[100:150].astype(float), feature_perturbation="interventional"
    )
    theirs = explainer.shap_values(x[:10].astype(float), check_additivity=False)
    np.testing.assert_allclose(found, theirs[..., 0], atol=1e-6)


@pytest.mark.parametrize("variant", ["kernel", "exact", "tree"])
def test_the_exact_methods_are_exact_under_smoke(variant):
    spec = expand(["ch11.shap"], profile="smoke", variants=[variant])[0]
    final = execute(spec, resume=False).train.final
    assert final["error"].value < 1e-12
    assert final["efficiency_gap"].value < 1e-12
    assert final["model_accuracy"].value > 0.85
