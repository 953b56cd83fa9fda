import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ch06_optimization import momentum_walk as task


def test_the_listing_never_draws_its_upper_end():
    torch.manual_seed(0)
    assert {*task.choices(2000, 10, False)} == set(range(-10, 10))
    assert {*task.choices(2000, 10, True)} == set(range(-10, 11))


@pytest.mark.parametrize("include_last", [False, True])
def test_the_variance_of_a_choice_is_that_of_its_values(include_last):
    values = np.arange(-10, 10 + include_last)
    assert task.choice_variance(10, include_last) == pytest.approx(values.var())


@given(st.floats(0, 0.99), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_smoothing_is_the_listings_loop(m, seed):
    torch.manual_seed(seed)
    c, step = task.choices(30, 10, True), 3.0
    got = task.smoothed(c, m, before=3.0)
    for choice, found in zip(c, got, strict=True):
        step = m * step + (1 - m) * choice
        assert found == pytest.approx(step, abs=1e-10)


def test_a_walk_in_pieces_is_the_walk_in_one():
    torch.manual_seed(1)
    c = task.choices(400, 10, True)
    whole, pieces = dict.fromkeys(task.SUMS, 0.0), dict.fromkeys(task.SUMS, 0.0)
    task.add(whole, task.smoothed(c, 0.9, 2.0), math.nan, 50)
    last, before = 2.0, math.nan
    for piece in np.split(c, 4):
        v = task.smoothed(piece, 0.9, last)
        task.add(pieces, v, before, 50)
        last = before = float(v[-1])
    assert pieces == pytest.approx(whole)


def test_the_scores_of_a_long_walk_are_those_of_the_process():
    torch.manual_seed(2)
    cfg = task.Config(momentum=0.5, include_last=True, window=200)
    sums = dict.fromkeys(task.SUMS, 0.0)
    task.add(sums, task.smoothed(task.choices(200_000, 10, True), 0.5, 0.0), math.nan, 200)
    got = task.scores(sums, cfg)
    assert got["variance_ratio"] == pytest.approx(1 / 3, rel=0.03)
    assert got["lag1"] == pytest.approx(0.5, abs=0.01)
    assert got["diffusion"] == pytest.approx(1, abs=0.2)
    assert got["step"] == 200_000


def test_the_scores_are_numpys_over_the_same_steps():
    torch.manual_seed(3)
    v = task.smoothed(task.choices(500, 10, False), 0.3, 1.0)
    sums = dict.fromkeys(task.SUMS, 0.0)
    task.add(sums, v, math.nan, 100)
    got = task.scores(sums, task.Config(momentum=0.3, window=100))
    assert got["mean_step"] == pytest.approx(v.mean())
    assert got["variance_ratio"] == pytest.approx(v.var() / 33.25)
    assert got["diffusion"] == pytest.approx(v.reshape(5, 100).sum(1).var() / (100 * 33.25))


def test_rows_shorter_than_a_window_are_refused():
    with pytest.raises(ValueError, match="a row takes at least window=100"):
        task.TASK.configure("smoke", "m90", overrides={"rows": "41"})
    with pytest.raises(ValueError, match="field 'window' takes a whole number ≥ 2"):
        task.TASK.configure("smoke", "m90", overrides={"window": "1"})
    with pytest.raises(ValueError, match="field 'rows' takes a whole number ≥ 1"):
        task.TASK.configure("smoke", "m90", overrides={"rows": "0"})
    task.TASK.configure("smoke", "m90", overrides={"rows": "40"})
