"""The rule of decision on timings that were taken: the published pairs of the same code.

A slowdown is planted by scaling the candidate's times of one benchmark, drawn for each session.

A session is simulated by drawing pairs with replacement, the same ones for all of its benchmarks,
so that what fell on all of them at once falls on them together here too. Only of timings that one
thread's processor time decides: a clock on the wall promises nothing on a busy machine.
"""

from pathlib import Path

import numpy as np
import pytest

from suite.gate import verdict
from suite.gate.decide import IMPROVED, REGRESSED, decide
from suite.gate.session import AGAIN, PAIRS
from suite.gate.values import choose, disturbed, log_ratio
from suite.store import Store

RESULTS = Path(__file__).parents[2] / "results"
SESSIONS = 300


@pytest.fixture(scope="module")
def ledger():
    """Benchmark -> ln(candidate / base) of each pair of the longest A/A session, and which were
    disturbed."""
    kept = verdict.sessions(Store(str(RESULTS))).values()
    blocks = max(([r.ab_block for r in records] for records in kept), key=len)
    assert all(verdict.same_code(b) for b in blocks)
    taken = {}
    for block in sorted(blocks, key=lambda b: b.pair):
        for c in block.comparisons:
            if c.control == "none" and c.clock == "cpu" and not block.again:
                taken.setdefault(c.benchmark, []).append(c)
    assert len(taken) >= 5
    assert all(len(pairs) >= 3 * PAIRS for pairs in taken.values())
    assert len({len(pairs) for pairs in taken.values()}) == 1
    return {
        name: (np.array([log_ratio(c) for c in pairs]), np.array(disturbed(pairs)))
        for name, pairs in taken.items()
    }


def drawn(ledger):
    """The pairs of each session that count: some of those drawn were to be taken again."""
    r = np.random.default_rng(0)
    n = len(next(iter(ledger.values()))[0])
    for _ in range(SESSIONS):
        at = r.integers(0, n, PAIRS + AGAIN)
        yield {name: y[at][choose(was[at], PAIRS)] for name, (y, was) in ledger.items()}


def test_the_same_code_raises_an_alarm_in_at_most_one_session_of_a_hundred(ledger):
    alarms = sum(
        any(d.verdict in (REGRESSED, IMPROVED) for d in decide(pairs).values())
        for pairs in drawn(ledger)
    )
    assert alarms <= 0.01 * SESSIONS


@pytest.mark.parametrize(("slower", "found"), [(1.1, 0.95), (1.2, 0.99)])
def test_a_slowdown_of_one_benchmark_among_all_is_found(ledger, slower, found):
    r = np.random.default_rng(1)
    hits = 0
    for pairs in drawn(ledger):
        name = r.choice(list(pairs))
        slowed = pairs | {name: pairs[name] + np.log(slower)}
        hits += decide(slowed)[name].verdict == REGRESSED
    assert hits >= found * SESSIONS
