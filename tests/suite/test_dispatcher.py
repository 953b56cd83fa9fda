"""The dispatcher against everything that can go wrong, without Ray and without waiting."""

import heapq
import itertools
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.dispatch import ATTEMPTS, ONE_CORE, OOM_ATTEMPTS, Dispatcher, Run
from suite.plan import Spec
from suite.task import Needs

LARGE = Needs(cpus=4, gpus=1)


def spec(seed):
    return Spec("ch90.linear", "v" * 64, "smoke", "quick", "torch", seed)


def runs(n, needs=ONE_CORE):
    return [Run(spec(seed), needs=needs) for seed in range(n)]


def finish_all(dispatcher, slot):
    order = []
    while lease := dispatcher.lease(slot, 0.0):
        order.append(lease.run.spec.seed)
        assert dispatcher.settle(lease.number, "own", "r") == "final"
    return order


def test_runs_are_given_in_order_to_slots_of_their_size():
    d = Dispatcher(runs(3) + runs(2, LARGE))
    d.join("small", ONE_CORE, 0.0)
    d.join("large", LARGE, 0.0)
    assert d.wanted == [ONE_CORE, LARGE]
    assert finish_all(d, "small") == [0, 1, 2]
    assert d.wanted == [LARGE]
    assert finish_all(d, "large") == [0, 1]
    assert d.left == 0


def test_a_busy_or_lost_slot_is_given_nothing():
    d = Dispatcher(runs(2))
    d.join("a", ONE_CORE, 0.0)
    assert d.lease("a", 0.0)
    assert d.lease("a", 0.0) is None
    d.lose("a")
    assert d.lease("a", 0.0) is None
    assert d.lease("never there", 0.0) is None


def test_a_lost_run_is_the_next_and_names_its_first_attempt():
    d = Dispatcher(runs(2))
    d.join("a", ONE_CORE, 0.0)
    lease = d.lease("a", 0.0)
    assert d.lose("a") is lease
    assert d.settle(lease.number, "lost", "first") == "again"
    d.join("b", ONE_CORE, 1.0)
    again = d.lease("b", 1.0)
    assert (again.run.spec.seed, again.run.attempt) == (0, 2)
    assert again.run.parent_record_id == "first"


def test_an_attempt_that_left_no_record_has_no_number():
    d = Dispatcher(runs(1))
    d.join("a", ONE_CORE, 0.0)
    d.settle(d.lease("a", 0.0).number, "killed")
    again = d.lease("a", 0.0).run
    assert (again.attempt, again.parent_record_id, again.tries) == (1, None, 2)


@pytest.mark.parametrize(
    ("cause", "tries"),
    [("own", 1), ("killed", ATTEMPTS), ("lost", ATTEMPTS), ("oom", OOM_ATTEMPTS)],
)
def test_only_what_the_machine_did_is_tried_again_and_not_for_ever(cause, tries):
    d = Dispatcher(runs(1))
    d.join("a", ONE_CORE, 0.0)
    verdicts = []
    while lease := d.lease("a", 0.0):
        verdicts.append(d.settle(lease.number, cause, "r"))
    assert verdicts == ["again"] * (tries - 1) + ["final"]
    assert d.left == 0


def test_a_late_end_does_not_count():
    d = Dispatcher(runs(1))
    d.join("a", ONE_CORE, 0.0)
    old = d.lease("a", 0.0)
    d.lose("a")
    d.settle(old.number, "lost", "r")
    d.join("b", ONE_CORE, 50.0)
    new = d.lease("b", 50.0)
    assert d.settle(old.number, "own", "late") == "late"
    assert d.left == 1
    assert not d.idle("b")
    assert d.settle(new.number, "own", "in time") == "final"
    assert d.settle(new.number, "own", "in time") == "late"
    assert d.left == 0


def test_silence_and_deadlines():
    d = Dispatcher([Run(spec(0), limit_s=100.0), Run(spec(1))], silence_s=40.0)
    d.join("a", ONE_CORE, 0.0)
    d.join("b", ONE_CORE, 0.0)
    d.lease("a", 0.0)
    d.heard("b", 30.0)
    assert d.silent(40.0) == []
    assert d.silent(41.0) == ["a"]
    assert d.overdue(100.0) == []
    assert d.overdue(101.0) == ["a"]
    d.lose("a")
    d.heard("a", 60.0)
    assert d.silent(60.0) == []


@dataclass
class World:
    """Slots that run, die, fall silent, finish late and report twice; and what came of it."""

    seed: int
    n: int
    faults: float
    silence_s: float = 40.0
    fence_s: float = 30.0
    now: float = 0.0
    finals: Counter = field(default_factory=Counter)
    late: int = 0
    running: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.dispatcher = Dispatcher(runs(self.n), silence_s=self.silence_s)
        self.events, self.order = [], itertools.count()
        self.names = (f"slot-{i}" for i in itertools.count())
        self.mute = set()
        for _ in range(8):
            self.open_slot()

    def at(self, delay, action, *arguments):
        heapq.heappush(self.events, (self.now + delay, next(self.order), action, arguments))

    def open_slot(self):
        name = next(self.names)
        self.dispatcher.join(name, ONE_CORE, self.now)
        self.at(0.0, self.beat, name)

    def beat(self, slot):
        if slot in self.mute:
            return
        self.dispatcher.heard(slot, self.now)
        lease = self.dispatcher.lease(slot, self.now)
        if lease:
            self.begin(slot, lease)
        if self.dispatcher.idle(slot) or lease or slot in self.dispatcher._slots:
            self.at(5.0, self.beat, slot)

    def begin(self, slot, lease):
        seed = lease.run.spec.seed
        self.running[seed] += 1
        assert self.running[seed] == 1, "two slots run the same spec at the same time"
        takes, fate = self.random.expovariate(0.1), self.random.random()
        if fate > self.faults:
            self.at(takes, self.report, slot, lease, "own", True)
            if self.random.random() < 0.1:
                self.at(
                    takes + self.random.expovariate(0.1), self.report, slot, lease, "own", False
                )
        elif fate > 0.7 * self.faults:
            self.at(takes, self.report, slot, lease, "killed", True)
        elif fate > 0.6 * self.faults:
            self.at(takes, self.report, slot, lease, "oom", True)
        elif fate > 0.3 * self.faults:
            self.at(takes, self.die, slot, lease)
        else:
            self.mute.add(slot)
            self.at(self.fence_s, self.fence, slot, lease)

    def report(self, slot, lease, cause, first):
        if slot in self.mute and first:
            return
        if first:
            self.running[lease.run.spec.seed] -= 1
        self.settle(lease, cause)

    def die(self, slot, lease):
        if slot in self.mute:
            return
        self.running[lease.run.spec.seed] -= 1
        self.mute.add(slot)
        assert self.dispatcher.lose(slot) in (lease, None)
        self.settle(lease, "lost")
        self.open_slot()

    def fence(self, slot, lease):
        """A slot nobody reaches ends its run; its report may arrive long after."""
        self.running[lease.run.spec.seed] -= 1
        if self.random.random() < 0.5:
            self.at(self.random.uniform(0, 100), self.settle, lease, "own")

    def settle(self, lease, cause):
        verdict = self.dispatcher.settle(lease.number, cause, f"record-{lease.number}")
        self.finals[lease.run.spec.seed] += verdict == "final"
        self.late += verdict == "late"

    def run(self):
        while self.dispatcher.left:
            self.now, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)
            for slot in self.dispatcher.silent(self.now):
                lease = self.dispatcher.lose(slot)
                if lease:
                    self.settle(lease, "lost")
                self.open_slot()
        while self.events:
            self.now, _, action, arguments = heapq.heappop(self.events)
            if action.__name__ in ("report", "settle"):
                action(*arguments)
        return self


def test_ten_thousand_runs_end_in_one_final_record_each():
    world = World(seed=0, n=10_000, faults=0.2).run()
    assert world.finals == Counter(dict.fromkeys(range(10_000), 1))
    assert world.late > 100


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0.0, 0.9))
def test_whatever_happens_each_run_ends_once(seed, n, faults):
    world = World(seed, n, faults).run()
    assert world.finals == Counter(dict.fromkeys(range(n), 1))


def test_a_queued_run_costs_next_to_nothing():
    """Growth of the driver's own memory from 100 to 10,000 queued runs, specs included."""

    def held(n):
        tracemalloc.start()
        kept = Dispatcher(runs(n))
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept.left == n
        return size

    assert (held(10_000) - held(100)) / 9_900 < 1_024


DRIVER = """
import sys
from pathlib import Path
import torch, ray
from suite import driver, plan
from suite.dispatch import Dispatcher
from suite.local import Campaign
from suite.store import Store

specs = plan.expand(["ch90"], profile="smoke", variants=["quick"], seeds=range(int(sys.argv[1])))
campaign = Campaign(Store(sys.argv[2]))
dispatcher = Dispatcher([run for _, _, run in campaign._split(specs)])
assert dispatcher.left == len(specs) == int(sys.argv[1])
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmRSS")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_the_drivers_memory_is_flat_in_the_length_of_the_queue(tmp_path):
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", DRIVER, str(n), str(tmp_path)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (100, 10_000)
    )
    assert many < 1.1 * few, f"{few} kB with 100 queued runs, {many} kB with 10,000"
