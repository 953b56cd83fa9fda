"""Shapley values by ch11.shap and by the package of the method's authors, in turn.

Read the ratios, theirs over ours, and the errors beside them; nothing fails by a time.
"""

import statistics
import warnings

import pytest
import torch

from suite import data
from tasks.ch11_interpretability import shap as task

FEATURES, INSTANCES, BACKGROUND, ROUNDS = 10, 10, 50, 7


@pytest.fixture(scope="module")
def oracle():
    """The package; its imports warn of their own accord."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("shap")


@pytest.fixture(scope="module")
def problem():
    """A net on the breast cancer table, rows to explain, and a background."""
    torch.manual_seed(0)
    source = data.load("breast_cancer")
    x_RD, test_RD = (x[:, :FEATURES].double() for x, _ in (source.train, source.test))
    net = task.fitted(task.Config(features=FEATURES), 0, x_RD, source.train[1])
    return net.requires_grad_(False), test_RD[:INSTANCES], x_RD[:BACKGROUND]


def _ours(problem, samples):
    """Values from all coalitions, or by the regression from so many."""
    net, x_ND, background_BD = problem
    every_CD = task.coalitions(FEATURES)
    if samples is None:
        return task.exact(task.worth(net, x_ND, background_BD, every_CD), every_CD)
    mask_NCD = task.drawn(len(x_ND), FEATURES)[:, :samples]
    ends_N2 = task.worth(net, x_ND, background_BD, every_CD[[0, -1]])
    return task.regress(mask_NCD, task.worth(net, x_ND, background_BD, mask_NCD), ends_N2)


def _theirs(oracle, problem, samples):
    """The same by the package: its explainer is built here, for ours has nothing to build."""
    net, x_ND, background_BD = problem

    def called(rows):
        return net(torch.as_tensor(rows)).numpy()

    if samples is None:
        masker = oracle.maskers.Independent(background_BD.numpy(), max_samples=BACKGROUND)
        return oracle.explainers.ExactExplainer(called, masker)(x_ND.numpy()).values
    explainer = oracle.KernelExplainer(called, background_BD.numpy())
    return explainer.shap_values(x_ND.numpy(), nsamples=samples, l1_reg=False, silent=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("samples", [None, 360, 720], ids=["exact", "kernel360", "kernel720"])
def test_against_the_package(benchmark, in_turn, oracle, problem, samples):
    """All 1,024 coalitions of ten features, and the regression from a part of them."""
    sides = {
        "shap": lambda: _theirs(oracle, problem, samples),
        "ours": lambda: _ours(problem, samples),
    }
    truth_ND, errors = _ours(problem, None), {name: [] for name in sides}

    def seen(name, values_ND):
        errors[name].append(float((torch.as_tensor(values_ND) - truth_ND).abs().max()))

    for call in sides.values():
        call()
    in_turn(sides, ROUNDS, seen)
    if samples is None:
        assert max(errors["shap"]) < 1e-6, "the two compute different things"
    benchmark.extra_info["error"] = {name: statistics.median(e) for name, e in errors.items()}
    benchmark.pedantic(sides["ours"], rounds=1)
