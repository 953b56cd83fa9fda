"""Every verdict is reached, its rules are monotone, and failures never flatter it."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import task
from suite.stats import clopper_pearson, lower_bound, t_interval, upper_bound
from suite.verdict import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
    WITHIN_TOLERANCE,
    Verdict,
    exit_code,
    judge_claim,
    judge_target,
)

prop = settings(deadline=None, max_examples=100, derandomize=True)

Side = dict[int, float | None]


@dataclass(frozen=True)
class Target:
    value: float
    mode: str = "max"
    tolerance: float = 0.0
    metric: str = "accuracy"
    left: str = "left"
    right: str = "right"
    source: str = "a test"


@dataclass(frozen=True)
class Claim:
    mode: str = "max"
    margin: float = 0.0
    ordered: bool = False
    metric: str = "accuracy"
    left: str = "left"
    right: str = "right"


number = st.floats(-100, 100).map(lambda v: round(v, 3))
runs = st.lists(number, min_size=3, max_size=8)
maybe = st.one_of(number, st.none())
modes = pytest.mark.parametrize("mode", ["max", "min"])

SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""Five runs around a mean; their one-sided 95 % t bound lies 0.01508 from it."""


def around(mean: float, sign: int = 1) -> list[float | None]:
    return [sign * (mean + s) for s in SPREAD]


def seeded(*values: float | None) -> Side:
    return dict(enumerate(values))


# Targets


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.92, REPRODUCED),
        (0.91, WITHIN_TOLERANCE),
        (0.895, WITHIN_TOLERANCE),
        (0.88, NOT_REPRODUCED),
        (0.86, NOT_REPRODUCED),
        (0.85, CONTRADICTED),
    ],
)
@modes
def test_verdicts_on_a_target_with_tolerance(mode: str, mean: float, expected: str) -> None:
    sign = 1 if mode == "max" else -1
    got = judge_target(around(mean, sign), Target(sign * 0.9, mode, 0.03))
    assert got.verdict == expected
    assert got.p is None


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.92, REPRODUCED),
        (0.91, INCONCLUSIVE),
        (0.89, NOT_REPRODUCED),
        (0.88, CONTRADICTED),
    ],
)
def test_verdicts_on_a_target_without_tolerance(mean: float, expected: str) -> None:
    assert judge_target(around(mean), Target(0.9)).verdict == expected


def test_a_mean_that_meets_the_target_within_a_narrow_tolerance_is_inconclusive() -> None:
    assert judge_target(around(0.901), Target(0.9, tolerance=0.01)).verdict == INCONCLUSIVE


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("offset", "tolerance", "expected"),
    [
        (0.0, 0.02, REPRODUCED),
        (0.004, 0.02, REPRODUCED),
        (0.01, 0.02, INCONCLUSIVE),
        (0.0, 0.01, INCONCLUSIVE),
        (0.03, 0.02, NOT_REPRODUCED),
        (0.04, 0.02, CONTRADICTED),
    ],
)
def test_verdicts_on_a_printed_number(
    side: int, offset: float, tolerance: float, expected: str
) -> None:
    got = judge_target(around(0.5 + side * offset), Target(0.5, "near", tolerance))
    assert got.verdict == expected


def test_the_numbers_shown_beside_a_target_verdict() -> None:
    values: list[float | None] = [0.91, 0.95, None, 0.93, 0.97, 0.89, 0.94]
    got = judge_target(values, Target(0.9))
    shown = t_interval([v for v in values if v is not None])
    assert (got.estimate, got.low, got.high) == (shown.estimate, shown.low, shown.high)
    assert (got.n, got.met, got.failed) == (6, 5, 1)


@prop
@given(runs, number, st.floats(0, 50), st.data())
def test_target_verdicts_mirror_and_ignore_order(
    values: list[float], value: float, tolerance: float, data: st.DataObject
) -> None:
    got = judge_target(values, Target(value, "max", tolerance))
    mirrored = judge_target([-v for v in values], Target(-value, "min", tolerance))
    assert (mirrored.verdict, mirrored.met) == (got.verdict, got.met)
    shuffled = data.draw(st.permutations(values))
    assert judge_target(shuffled, Target(value, "max", tolerance)) == got
    near = judge_target(values, Target(value, "near", tolerance))
    assert judge_target([-v for v in values], Target(-value, "near", tolerance)).verdict == (
        near.verdict
    )


@prop
@given(runs, st.lists(number, min_size=2, max_size=2), st.floats(0, 20))
def test_a_harder_target_never_gets_a_better_verdict(
    values: list[float], goals: list[float], tolerance: float
) -> None:
    order = (CONTRADICTED, NOT_REPRODUCED, INCONCLUSIVE, WITHIN_TOLERANCE, REPRODUCED)
    easy, hard = (judge_target(values, Target(v, "max", tolerance)) for v in sorted(goals))
    assert order.index(hard.verdict) <= order.index(easy.verdict)
    assert hard.met <= easy.met


@prop
@given(runs, number)
def test_reproduced_and_contradicted_are_what_the_bounds_say(
    values: list[float], value: float
) -> None:
    verdict = judge_target(values, Target(value)).verdict
    low, high = lower_bound(values), upper_bound(values)
    if min(abs(low - value), abs(high - value)) > 1e-6 * max(1, abs(value)):
        assert (verdict == REPRODUCED) == (low >= value)
        assert (verdict == CONTRADICTED) == (high < value)


@pytest.mark.parametrize("mode", ["max", "min", "near"])
def test_identical_runs_meet_a_target_on_the_dot(mode: str) -> None:
    for value in (0.1, 0.3, 0.97):
        got = judge_target([value] * 5, Target(value, mode, 0.01))
        assert (got.verdict, got.low, got.high, got.met) == (REPRODUCED, value, value, 5)


def test_a_printed_number_on_the_edge_of_the_band_is_not_lost_to_rounding() -> None:
    assert 0.7 + 0.1 < 0.8
    assert judge_target([0.8] * 5, Target(0.7, "near", 0.1)).verdict == REPRODUCED


@pytest.mark.parametrize("mode", ["max", "min"])
def test_runs_are_judged_as_they_were_told_that_they_had_reached_it(mode: str) -> None:
    share = float(np.array([1] * 115 + [0] * 9885, dtype=np.float32).mean())
    sign = -1 if mode == "max" else 1
    target = task.Target("m", sign * 0.0115, mode, "a source")
    assert share > 0.0115
    assert target.reached({"m": sign * share})
    got = judge_target([sign * share] * 5, target)
    assert (got.verdict, got.met) == (REPRODUCED, 5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_one_image_of_ten_thousand_short_is_short(mode: str) -> None:
    short = 0.0114 if mode == "max" else 0.0116
    got = judge_target([short] * 5, Target(0.0115, mode))
    assert (got.verdict, got.met) == (CONTRADICTED, 0)


@pytest.mark.parametrize("values", [[], [None], [None] * 5])
def test_no_values_are_inconclusive_and_have_no_numbers(values: list[float | None]) -> None:
    got = judge_target(values, Target(0.9))
    assert got.verdict == INCONCLUSIVE
    assert (got.estimate, got.low, got.high) == (None, None, None)
    assert (got.n, got.met, got.failed) == (0, 0, len(values))


@pytest.mark.parametrize("mode", ["max", "min", "near"])
@pytest.mark.parametrize("value", [0.5, 0.9])
def test_one_or_two_runs_prove_nothing(mode: str, value: float) -> None:
    one = judge_target([value], Target(0.9, mode, 0.01))
    assert (one.verdict, one.estimate, one.low, one.high) == (INCONCLUSIVE, value, None, None)
    two = judge_target([value, value], Target(0.9, mode, 0.01))
    assert (two.verdict, two.low, two.high) == (INCONCLUSIVE, value, value)
    assert "at least 3" in two.detail


def test_the_scale_is_the_one_asked_for() -> None:
    times: list[float | None] = [10.0, 12.0, 11.0, 60.0, 9.0]
    geometric = judge_target(times, Target(40.0, "min"), scale="log")
    assert geometric.verdict == REPRODUCED
    assert judge_target(times, Target(40.0, "min")).verdict == INCONCLUSIVE
    shown = t_interval([t for t in times if t is not None], scale="log")
    assert geometric.estimate == shown.estimate


# Failed runs


def test_one_failure_in_five_is_named_and_tolerated() -> None:
    got = judge_target([0.95, 0.95, 0.96, 0.95, None], Target(0.9))
    assert got.verdict == REPRODUCED
    assert "1 of 5 runs failed" in got.detail


@pytest.mark.parametrize(("value", "undiscounted"), [(0.95, REPRODUCED), (0.89, WITHIN_TOLERANCE)])
def test_more_than_a_fifth_failed_takes_back_a_favourable_verdict(
    value: float, undiscounted: str
) -> None:
    target = Target(0.9, tolerance=0.02)
    assert judge_target([value] * 4, target).verdict == undiscounted
    got = judge_target([value] * 4 + [None] * 2, target)
    assert (got.verdict, got.n, got.failed) == (INCONCLUSIVE, 4, 2)
    assert "2 of 6 runs failed, too many" in got.detail
    assert undiscounted in got.detail


def test_failures_do_not_excuse_a_contradicted_target() -> None:
    got = judge_target([0.5, 0.51, 0.5, None, None], Target(0.9))
    assert got.verdict == CONTRADICTED
    assert "2 of 5 runs failed" in got.detail
    close = judge_target([0.8, 0.9, 0.97, None, None], Target(0.9))
    assert close.verdict == NOT_REPRODUCED


@prop
@given(st.lists(maybe, max_size=10), number, st.integers(0, 5))
def test_a_further_failure_never_helps(
    values: list[float | None], value: float, failures: int
) -> None:
    before = judge_target(values, Target(value))
    after = judge_target(values + [None] * failures, Target(value))
    assert after.verdict in (before.verdict, INCONCLUSIVE)
    assert after.estimate == before.estimate
    assert after.failed == before.failed + failures
    assert (f"{after.failed} of {len(values) + failures} runs failed" in after.detail) == (
        after.failed > 0
    )


# Comparisons of means


@pytest.mark.parametrize(
    ("differences", "margin", "expected"),
    [
        ((0.01, 0.02, 0.03, 0.02, 0.01), 0.0, REPRODUCED),
        ((0.01, 0.02, 0.03, 0.02, 0.01), 0.005, REPRODUCED),
        ((0.01, 0.02, 0.03, 0.02, -0.001), 0.0, INCONCLUSIVE),
        ((0.01, 0.02, 0.03, 0.02, 0.01), 0.015, INCONCLUSIVE),
        ((0.01, 0.02, 0.03, 0.02, 0.01), 0.02, NOT_REPRODUCED),
        ((0.01, 0.02, 0.03, 0.02, 0.01), 0.04, CONTRADICTED),
        ((-0.01, -0.02, -0.03, -0.02, -0.01), 0.0, CONTRADICTED),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0.0, INCONCLUSIVE),
    ],
)
@modes
def test_verdicts_on_paired_runs(
    mode: str, differences: tuple[float, ...], margin: float, expected: str
) -> None:
    sign = 1 if mode == "max" else -1
    base = (0.5, 0.7, 0.6, 0.9, 0.8)
    left = seeded(*(b + sign * d for b, d in zip(base, differences, strict=True)))
    got = judge_claim(left, seeded(*base), Claim(mode, margin))
    assert got.verdict == expected
    assert got.estimate == pytest.approx(sign * sum(differences) / 5)
    assert got.met == sum(d > margin for d in differences)


@pytest.mark.parametrize(("pairs", "expected"), [(3, 1 / 8), (4, 1 / 16), (5, 1 / 32)])
def test_five_pairs_are_the_fewest_that_can_decide(pairs: int, expected: float) -> None:
    low, high = seeded(*range(pairs)), seeded(*range(10, 10 + pairs))
    better, worse = judge_claim(high, low, Claim()), judge_claim(low, high, Claim())
    assert better.p == expected
    assert better.verdict == (REPRODUCED if pairs >= 5 else INCONCLUSIVE)
    assert worse.verdict == (CONTRADICTED if pairs >= 5 else NOT_REPRODUCED)


def test_runs_are_paired_by_seed_and_only_over_common_seeds() -> None:
    left: Side = {s: 10.0 * s + 1 + 0.1 * s for s in range(7)}
    right: Side = {s: 10.0 * s for s in (6, 5, 4, 3, 2, 9)}
    got = judge_claim(left, right, Claim())
    assert (got.n, got.met, got.failed, got.verdict) == (5, 5, 0, REPRODUCED)
    assert got.estimate == pytest.approx(1.4)


def test_a_difference_on_the_margin_is_a_tie_whatever_the_rounding() -> None:
    assert 0.3 - 0.2 < 0.1
    got = judge_claim(seeded(*[0.3] * 6), seeded(*[0.2] * 6), Claim(margin=0.1))
    assert (got.verdict, got.p, got.met) == (INCONCLUSIVE, 1.0, 0)


@prop
@given(st.lists(st.tuples(number, number), max_size=9), st.floats(0, 20), st.data())
def test_comparisons_mirror_and_ignore_the_order_of_seeds(
    pairs: list[tuple[float, float]], margin: float, data: st.DataObject
) -> None:
    left, right = seeded(*(a for a, _ in pairs)), seeded(*(b for _, b in pairs))
    got = judge_claim(left, right, Claim("max", margin))
    swapped = judge_claim(right, left, Claim("min", margin))
    assert (swapped.verdict, swapped.p, swapped.met) == (got.verdict, got.p, got.met)
    order = data.draw(st.permutations(range(len(pairs))))
    shuffled = judge_claim({s: left[s] for s in order}, {s: right[s] for s in order}, Claim())
    assert shuffled == judge_claim(left, right, Claim())


@prop
@given(st.lists(st.tuples(number, number), min_size=5, max_size=9))
def test_a_claim_and_its_opposite_are_never_both_reproduced(
    pairs: list[tuple[float, float]],
) -> None:
    left, right = seeded(*(a for a, _ in pairs)), seeded(*(b for _, b in pairs))
    forth, back = judge_claim(left, right, Claim()), judge_claim(right, left, Claim())
    assert (forth.verdict == REPRODUCED) == (back.verdict == CONTRADICTED)


@prop
@given(
    st.lists(st.tuples(number, number), min_size=3, max_size=9), st.floats(0, 20), st.floats(0, 20)
)
def test_a_wider_margin_never_gets_a_better_verdict(
    pairs: list[tuple[float, float]], margin: float, further: float
) -> None:
    left, right = seeded(*(a for a, _ in pairs)), seeded(*(b for _, b in pairs))
    order = (CONTRADICTED, NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED)
    narrow = judge_claim(left, right, Claim(margin=margin))
    wide = judge_claim(left, right, Claim(margin=margin + further))
    assert order.index(wide.verdict) <= order.index(narrow.verdict)


@pytest.mark.parametrize("bad_side", ["left", "right"])
def test_a_failure_on_either_side_costs_the_pair(bad_side: str) -> None:
    good, gap = seeded(*range(6)), seeded(*range(5), None)
    lifted = {s: None if v is None else v + 9.0 + 0.1 * s for s, v in gap.items()}
    left, right = (lifted, good) if bad_side == "left" else (dict.fromkeys(good, 99.0), gap)
    got = judge_claim(left, right, Claim())
    assert (got.verdict, got.n, got.failed) == (REPRODUCED, 5, 1)
    assert "1 of 6 pairs failed" in got.detail


@pytest.mark.parametrize("shift", [10.0, -10.0])
def test_too_many_failed_pairs_decide_neither_way(shift: float) -> None:
    left = seeded(*(s + shift for s in range(5)), None, None)
    got = judge_claim(left, seeded(*range(7)), Claim())
    assert (got.verdict, got.n, got.failed) == (INCONCLUSIVE, 5, 2)
    assert "too many" in got.detail


@pytest.mark.parametrize("pairs", [0, 1, 2])
@pytest.mark.parametrize("ordered", [False, True])
def test_too_few_pairs_prove_nothing(pairs: int, ordered: bool) -> None:
    left, right = seeded(*range(1, pairs + 1)), seeded(*range(pairs))
    got = judge_claim(left, right, Claim(ordered=ordered))
    assert (got.verdict, got.n, got.p) == (INCONCLUSIVE, pairs, None)
    assert (got.estimate is None) == (pairs == 0)


def test_all_runs_of_a_side_failed() -> None:
    got = judge_claim(seeded(*[None] * 5), seeded(*range(5)), Claim())
    assert (got.verdict, got.estimate, got.n, got.failed) == (INCONCLUSIVE, None, 0, 5)
    assert "too many" not in got.detail


# Comparisons with a number


@pytest.mark.parametrize(("mode", "edge"), [("max", 0.75), ("min", 0.65)])
def test_a_claim_against_a_number_is_a_target_past_the_margin(mode: str, edge: float) -> None:
    for mean in (0.55, 0.62, 0.66, 0.7, 0.74, 0.76, 0.8):
        values = around(mean)
        claimed = judge_claim(seeded(*values), 0.7, Claim(mode, 0.05))
        assert claimed.verdict == judge_target(values, Target(edge, mode)).verdict


def test_an_ordered_claim_against_a_number_is_a_sign_test() -> None:
    claim = Claim("min", 10.0, ordered=True)
    assert judge_claim(seeded(60, 70, 80, 89, 50), 100, claim).verdict == REPRODUCED
    censored = judge_claim(seeded(60, 70, 80, 91, None), 100, claim)
    assert (censored.verdict, censored.met, censored.failed) == (INCONCLUSIVE, 3, 0)
    assert judge_claim(seeded(*[None] * 5), 100, claim).verdict == CONTRADICTED


# Censored times


@pytest.mark.parametrize(
    ("left", "right", "expected", "p"),
    [
        ((1, 2, 3, 4, 5), (6, 7, 8, None, None), REPRODUCED, 1 / 32),
        ((1, 2, 3, 4, 5, None), (6, 7, 8, 9, 9, None), REPRODUCED, 1 / 32),
        ((1, 2, 3, 4, None), (6, 7, 8, 9, 9), INCONCLUSIVE, 6 / 32),
        ((1, 2, 3, None), (6, 7, 8, None), INCONCLUSIVE, 1 / 8),
        ((1, 2, None, None, None), (6, 7, 8, 9, 9), NOT_REPRODUCED, 26 / 32),
        ((None, None, None, None, 9), (1, 2, 3, 4, 5), CONTRADICTED, 1.0),
        ((None, None, None), (None, None, None), INCONCLUSIVE, 1.0),
    ],
)
def test_verdicts_on_censored_times(
    left: tuple[float | None, ...], right: tuple[float | None, ...], expected: str, p: float
) -> None:
    got = judge_claim(seeded(*left), seeded(*right), Claim("min", ordered=True))
    assert (got.verdict, got.p) == (expected, p)
    assert (got.n, got.failed) == (len(left), 0)


def test_a_censored_time_is_later_than_every_number_in_both_modes() -> None:
    never, soon = seeded(*[None] * 5), seeded(*[1e9] * 5)
    for margin in (0.0, 1e6):
        faster = Claim("min", margin, ordered=True)
        slower = Claim("max", margin, ordered=True)
        assert judge_claim(soon, never, faster).verdict == REPRODUCED
        assert judge_claim(never, soon, faster).verdict == CONTRADICTED
        assert judge_claim(never, soon, slower).verdict == REPRODUCED


def test_the_margin_counts_for_times_that_were_reached() -> None:
    left, right = seeded(90, 90, 90, 90, 90, 80), seeded(*[100] * 6)
    assert judge_claim(left, right, Claim("min", 5.0, ordered=True)).verdict == REPRODUCED
    on_it = judge_claim(left, right, Claim("min", 10.0, ordered=True))
    assert (on_it.met, on_it.estimate, on_it.verdict) == (1, 1.0, INCONCLUSIVE)
    past = judge_claim(left, right, Claim("min", 25.0, ordered=True))
    assert past.verdict == CONTRADICTED


def test_the_share_of_won_pairs_is_shown_with_its_exact_interval() -> None:
    got = judge_claim(
        seeded(1, 2, 3, 4, None, None), seeded(6, 7, 8, 9, 9, None), Claim("min", ordered=True)
    )
    shown = clopper_pearson(4, 5)
    assert (got.estimate, got.low, got.high, got.met) == (0.8, shown.low, shown.high, 4)


@prop
@given(st.lists(st.tuples(maybe, maybe), max_size=9), st.floats(0, 20))
def test_ordered_comparisons_mirror(
    pairs: list[tuple[float | None, float | None]], margin: float
) -> None:
    left, right = seeded(*(a for a, _ in pairs)), seeded(*(b for _, b in pairs))
    got = judge_claim(left, right, Claim("min", margin, ordered=True))
    swapped = judge_claim(right, left, Claim("max", margin, ordered=True))
    assert (swapped.verdict, swapped.p, swapped.estimate) == (got.verdict, got.p, got.estimate)


# What is refused, and what the verdicts add up to


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_value_that_is_no_number_is_refused(bad: float, ordered: bool) -> None:
    for n in (1, 5):
        values: list[float | None] = [bad, *[1.0] * (n - 1)]
        with pytest.raises(ValueError, match="a run without a value is None"):
            judge_target(values, Target(0.9))
        good = seeded(*[1.0] * n)
        for left, right in ((seeded(*values), good), (good, seeded(*values))):
            with pytest.raises(ValueError, match="a run without a value is None"):
                judge_claim(left, right, Claim(ordered=ordered))


def test_unknown_modes_and_negative_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mode 'most'"):
        judge_target([1.0], Target(1.0, "most"))
    with pytest.raises(ValueError, match="unknown mode 'near'"):
        judge_claim({}, {}, Claim("near"))
    for width in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            judge_target([1.0], Target(1.0, tolerance=width))
        with pytest.raises(ValueError, match="margin"):
            judge_claim({}, 1.0, Claim(margin=width))


def test_details_are_one_line_and_name_the_metric() -> None:
    judged = [
        judge_target(around(m), Target(0.9, mode, 0.02))
        for m, mode in itertools.product((0.8, 0.87, 0.89, 0.9, 0.91, 0.99), ("max", "min", "near"))
    ]
    judged += [
        judge_claim(seeded(*range(5)), seeded(*range(shift, 5 + shift)), Claim(ordered=ordered))
        for shift, ordered in itertools.product((-1, 0, 1), (False, True))
    ]
    for verdict in judged:
        assert verdict.detail.startswith("accuracy: ")
        assert "\n" not in verdict.detail
    assert {v.verdict for v in judged} == set(VERDICTS)


def test_only_a_contradiction_fails_the_command() -> None:
    each = {v: Verdict(v, None, None, None, 0, 0, 0, None, "") for v in VERDICTS}
    assert exit_code([]) == 0
    assert exit_code(v for name, v in each.items() if name != CONTRADICTED) == 0
    assert exit_code(each.values()) == 1
