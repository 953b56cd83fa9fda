import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.gate import decide as gate
from suite.gate.decide import (
    IMPROVED,
    INCONCLUSIVE,
    INFORMATIONAL,
    LOOKS,
    REGRESSED,
    UNCHANGED,
    decide,
    floor,
)

PAIRS = 12
# Pairs of a runner whose other core is busy: most lie close, a few far out on either side.
SPREADS = {
    "normal": lambda r, n: r.normal(0, 0.015, n),
    "heavy": lambda r, n: 0.008 * r.standard_t(2, n),
    "mixed": lambda r, n: r.normal(0, np.where(r.random(n) < 0.1, 0.15, 0.01)),
}


def verdict(y, **kw):
    return decide({"a": list(y)}, **kw)["a"]


def sessions(spread, change, count, benchmarks=1, seed=0):
    """Verdicts of simulated sessions."""
    r = np.random.default_rng(seed)
    for _ in range(count):
        drawn = {str(b): math.log1p(change) + SPREADS[spread](r, PAIRS) for b in range(benchmarks)}
        yield from (d.verdict for d in decide(drawn).values())


@pytest.mark.parametrize("spread", SPREADS)
def test_the_same_code_raises_an_alarm_in_at_most_one_session_of_a_hundred(spread):
    found = list(sessions(spread, 0.0, 600))
    assert found.count(REGRESSED) + found.count(IMPROVED) <= 6


@pytest.mark.parametrize("spread", SPREADS)
def test_a_change_of_the_margin_is_none(spread):
    found = list(sessions(spread, gate.LEAST_MARGIN, 300))
    assert found.count(REGRESSED) <= 6


@pytest.mark.parametrize("change", [0.1, 0.2])
# Where every tenth pair is worthless, +10 % takes more pairs than these.
@pytest.mark.parametrize("spread", ["normal", "heavy"])
def test_a_slowdown_is_found(spread, change):
    found = list(sessions(spread, change, 300))
    assert found.count(REGRESSED) >= {0.1: 285, 0.2: 297}[change]


def test_ten_benchmarks_are_one_family():
    found = list(sessions("normal", gate.LEAST_MARGIN, 200, benchmarks=10))
    alarms = sum(REGRESSED in found[10 * i : 10 * i + 10] for i in range(200))
    assert alarms <= 6


def test_a_speed_up_is_the_mirror_of_a_slowdown():
    y = np.random.default_rng(0).normal(0.1, 0.01, PAIRS)
    slower, faster = verdict(y), verdict(-y)
    assert (slower.verdict, faster.verdict) == (REGRESSED, IMPROVED)
    assert slower.p_slower == faster.p_faster
    assert math.log1p(slower.change) == pytest.approx(-math.log1p(faster.change))


def test_quiet_pairs_of_the_same_code_are_unchanged():
    assert verdict(np.random.default_rng(0).normal(0, 0.004, PAIRS)).verdict == UNCHANGED


def test_too_few_pairs_say_that_they_cannot_tell():
    found = verdict([0.5] * 6)
    assert found.verdict == INCONCLUSIVE
    assert "it takes 7" in found.why
    assert found.more_pairs == 1
    assert verdict([0.5] * 7).verdict == REGRESSED


def test_one_stray_pair_decides_nothing():
    assert verdict([0.0] * 11 + [9.0]).verdict == UNCHANGED


def test_the_margin_respects_the_noise_of_the_benchmark():
    y = np.random.default_rng(0).normal(0.04, 0.005, PAIRS)
    assert verdict(y).verdict == REGRESSED
    assert verdict(y, floors={"a": 0.06}).verdict == UNCHANGED
    loud = verdict(y, floors={"a": 0.2})
    assert loud.verdict == INFORMATIONAL
    assert not loud.gated


def test_the_floor_is_the_far_end_of_the_interval():
    assert floor([0.01] * 5) is None
    assert floor([0.03] * 12) == pytest.approx(math.expm1(0.03))
    assert floor([-0.03] * 12) == pytest.approx(math.expm1(0.03))


def test_looks_spend_no_more_than_their_level():
    """Without a margin, so that the levels themselves are tested."""
    from suite.stats import wilcoxon_signed_rank

    r, alarms, count = np.random.default_rng(0), 0, 1_000
    for _ in range(count):
        y = r.normal(0, 1, max(LOOKS))
        alarms += any(wilcoxon_signed_rank(y[:n], "greater") <= a for n, a in LOOKS.items())
    # 0.05 and three standard errors of so many sessions.
    assert alarms / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=20))
def test_whatever_the_pairs_the_numbers_hang_together(y):
    found = verdict(y)
    assert found.low <= found.change <= found.high
    assert found.detectable >= found.margin > 0
    assert (found.verdict == REGRESSED) == (found.p_slower <= gate.ALPHA)
    assert not (found.p_slower <= gate.ALPHA and found.p_faster <= gate.ALPHA)
    assert found.more_pairs is None or (found.verdict == INCONCLUSIVE and found.more_pairs >= 1)
