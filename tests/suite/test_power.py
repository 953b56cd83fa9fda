"""How many seeds a comparison needs: known cases, and what a simulated test finds with them."""

import json

import numpy as np
import pytest
from record_factory import make_record
from scipy import stats

from suite import power
from suite.cli import app
from suite.power import Effect, needs, open_claims, parse, runs_needed, seeds_needed, upper_sd
from suite.report.tables import derive
from suite.store import Store


def by_quantity(values, effect, **changes):
    records = [make_record(seed=i, value=v, **changes) for i, v in enumerate(values)]
    return {n.quantity: n for n in needs(derive(records).rows, effect, 0.8)}


@pytest.mark.parametrize(("shift", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_two_arms_need_what_cohens_tables_say(shift: float, seeds: int) -> None:
    assert seeds_needed(shift, 1.0, 0.8) == seeds


@pytest.mark.parametrize(("excess", "runs"), [(0.5, 27), (1.0, 8)])
def test_one_arm_needs_what_the_noncentral_t_says(excess: float, runs: int) -> None:
    assert runs_needed(excess, 1.0, 0.8) == runs


def test_a_simulated_comparison_finds_the_difference_as_often_as_planned() -> None:
    n = seeds_needed(0.9, 1.0, 0.9)
    assert n is not None
    draws = np.random.default_rng(0).normal(size=(2, 4000, n))
    p = stats.ttest_ind(draws[0] + 0.9, draws[1], axis=1).pvalue
    assert np.mean(p <= 0.05) == pytest.approx(0.9, abs=0.02)


def test_the_upper_end_of_a_spread_covers_the_true_one() -> None:
    sd = np.random.default_rng(0).normal(size=(20_000, 5)).std(axis=1, ddof=1)
    assert np.mean([upper_sd(s, 5) >= 1 for s in sd]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("shift", "sd", "seeds"), [(1.0, 0.0, 2), (1.0, 1e-12, 2), (0.0, 1.0, None)]
)
def test_extremes_neither_overflow_nor_divide_by_zero(shift, sd, seeds) -> None:
    assert seeds_needed(shift, sd, 0.8) == seeds
    assert runs_needed(shift, sd, 0.8) == seeds
    assert seeds_needed(1e-3, 1.0, 0.8) is None


def test_a_share_is_of_the_mean_and_a_number_is_in_the_metrics_unit() -> None:
    values = [0.94, 0.95, 0.96]
    share = by_quantity(values, Effect(0.1, True))["test_accuracy"]
    same = by_quantity(values, Effect(0.095, False))
    assert share.seeds == same["test_accuracy"].seeds == seeds_needed(0.095, 0.01, 0.8)
    assert share.careful > share.seeds
    assert list(same) == ["test_accuracy"]


def test_times_are_compared_as_ratios_and_cost_two_arms() -> None:
    records = [make_record(seed=i, train_s=s) for i, s in enumerate((10.0, 20.0, 40.0))]
    found = {n.quantity: n for n in needs(derive(records).rows, Effect(0.05, True), 0.8)}["train_s"]
    assert found.mean == pytest.approx(20.0)
    assert found.spread == pytest.approx(np.log(2))
    wall = np.median([r.clock.wall_s for r in records])
    assert found.hours == pytest.approx(2 * found.careful * wall / 3600)


def test_failed_runs_and_lone_ones_teach_no_spread() -> None:
    assert "test_accuracy" not in by_quantity([0.95], Effect(0.05, True))
    crashed = by_quantity([0.95, None], Effect(0.05, True), status="crashed")
    assert crashed == {}


def claim_of(left, other, **claim):
    stated = {"text": "one beats the other", "metric": "test_accuracy", "left": "fixed"}
    stated |= {"right": "book", "mode": "max", "margin": 0.0, "source": "the book", "note": ""}
    rows = [("fixed", left), ("book", other)]
    return derive(
        make_record(variant=name, seed=i, value=v, claims=[stated | claim])
        for name, values in rows
        for i, v in enumerate(values)
    ).claims


def test_an_open_claim_says_how_many_pairs_would_decide_it() -> None:
    left, right = [0.90, 0.92, 0.95, 0.91], [0.88, 0.93, 0.91, 0.90]
    (found,) = open_claims(claim_of(left, right), 0.8)
    gaps = np.subtract(left, right)
    assert found.verdict == "INCONCLUSIVE"
    assert found.runs == 4
    assert found.needed == runs_needed(gaps.mean(), gaps.std(ddof=1), 0.8)


def test_a_claim_against_a_number_counts_runs() -> None:
    (found,) = open_claims(claim_of([0.90, 0.92, 0.95], [0.5], right=0.91), 0.8)
    seen = np.array([0.90, 0.92, 0.95]) - 0.91
    assert found.needed == runs_needed(seen.mean(), seen.std(ddof=1), 0.8)


def test_five_pairs_are_the_fewest_that_can_decide() -> None:
    (found,) = open_claims(claim_of([0.90, 0.91, 0.92], [0.1, 0.11, 0.12]), 0.8)
    assert found.needed == power.FEWEST_PAIRS


@pytest.mark.parametrize("text", ["", "%", "0%", "-1", "5 percent", "nan", "inf", "1e"])
def test_a_difference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a share above 0 such as 5%"):
        parse(text)


def test_the_command_answers_from_a_store(tmp_path, capsys) -> None:
    for seed, value in enumerate((0.97, 0.96, 0.975)):
        Store(tmp_path).put(make_record("ch05.mnist_mlp", seed=seed, value=value))
    arguments = ["plan", "ch05.mnist_mlp", "--store", str(tmp_path), "--detect", "1%"]
    app([*arguments, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["needs"][0]["quantity"] == "test_accuracy"
    app(arguments, standalone_mode=False)
    assert str(told["needs"][0]["careful"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ch05.mnist_mpl"], "did you mean 'ch05.mnist_mlp'"),
        (["ch05.mnist_mlp", "--variant", "fixd"], "did you mean 'fixed'"),
        (["ch05.mnist_mlp", "--profile", "laptp"], "did you mean 'laptop'"),
        (["ch05.mnist_mlp"], "has no two finished runs of ch05.mnist_mlp"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, arguments, said) -> None:
    with pytest.raises(ValueError, match=said):
        app(["plan", *arguments, "--store", str(tmp_path)], standalone_mode=False)
