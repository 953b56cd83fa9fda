import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.naive_bayes import GaussianNB

from tasks.ch02_probability import bayes
from tasks.ch02_probability.bayes import Config

PROBABILITY = st.floats(0.01, 0.99).map(lambda p: round(p, 3))


def test_one_positive_test_by_hand():
    cfg = Config(prior=0.01, sensitivity=0.9, specificity=0.95)
    assert bayes.exact_posterior(cfg, 1, 1) == Fraction(90, 90 + 495)
    assert bayes.exact_posterior(cfg, 0, 0) == Fraction(1, 100)


@settings(max_examples=30, deadline=None)
@given(PROBABILITY, PROBABILITY, PROBABILITY, st.integers(1, 6))
@example(0.99, 0.99, 0.99, 6)
def test_closed_and_sequential_agree_with_exact_fractions(prior, hit, clear, tests):
    cfg = Config(prior=prior, sensitivity=hit, specificity=clear, tests=tests)
    assert bayes.largest_error(bayes.closed(cfg), cfg) < 1e-12
    posterior_O = torch.full((tests + 1,), prior, dtype=torch.float64)
    for t in range(tests):
        bayes.sequential(cfg, posterior_O, t)
    # A posterior close to 1 has lost digits of the doubt that is left, and another test shows it.
    assert bayes.largest_error(posterior_O, cfg) < 1e-9


def test_a_useless_test_leaves_the_prior():
    cfg = Config(sensitivity=0.3, specificity=0.7, tests=3)
    torch.testing.assert_close(bayes.closed(cfg), torch.full((4,), cfg.prior).double())


def test_one_test_too_few_is_an_error():
    cfg = Config()
    posterior_O = torch.full((cfg.tests + 1,), cfg.prior, dtype=torch.float64)
    for t in range(cfg.tests - 1):
        bayes.sequential(cfg, posterior_O, t)
    assert bayes.largest_error(posterior_O, cfg) > 1e-6


def test_counting_estimates_the_posterior():
    torch.manual_seed(0)
    cfg = Config(prior=0.2, replicates=50)
    counts_R2 = bayes.counted(cfg, 4000, torch.device("cpu"))
    share = (counts_R2[:, 0].sum() / counts_R2[:, 1].sum()).item()
    exact = float(bayes.exact_posterior(cfg, 1, 1))
    n = counts_R2[:, 1].sum().item()
    assert share == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / n))
    assert n / (50 * 4000) == pytest.approx(0.2 * 0.9 + 0.8 * 0.05, abs=0.01)


def test_naive_bayes_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 4)) * [1, 10, 0.1, 1]
    y = random.permutation(np.arange(60) % 3)
    x[y == 1] += 0.5
    parameters = bayes.fitted(torch.from_numpy(x), torch.from_numpy(y), 3)
    theirs = GaussianNB().fit(x, y)
    np.testing.assert_allclose(parameters[1], theirs.theta_)
    np.testing.assert_allclose(parameters[2], theirs.var_, rtol=1e-9)
    ours = bayes.log_joint(torch.from_numpy(x), parameters).log_softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_log_proba(x), atol=1e-8)


def test_a_class_that_was_not_seen_is_never_named():
    x, y = torch.tensor([[0.0], [1.0], [2.0]]).double(), torch.tensor([0, 0, 0])
    joint = bayes.log_joint(x, bayes.fitted(x, y, 2))
    assert joint.argmax(1).tolist() == [0, 0, 0]
    assert torch.isneginf(joint[:, 1]).all()


def test_train_and_test_rows_are_apart():
    x = torch.arange(20).double()[:, None]
    y = (torch.arange(20) >= 10).long()
    order = torch.arange(20)
    # Half the data has one class only, so the other half is always taken for it.
    parameters = bayes.fitted(x[order[:10]], y[order[:10]], 2)
    row = bayes.classified(x, y, order[10:], parameters)
    assert row == {"test_accuracy": 0.0, "prior_accuracy": 0.0}
