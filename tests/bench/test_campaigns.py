"""What a campaign on Ray adds to plain Ray tasks. Read the figures; nothing can fail by them."""

import statistics
import time

import pytest

from suite import cluster, driver
from suite.driver import Resources
from suite.local import Campaign
from suite.plan import expand
from suite.run import execute, warm_up
from suite.store import Store

N_RUNS = 250
N_ROUNDS = 4


@pytest.fixture(scope="module")
def one_node():
    with cluster.connect("ray") as found:
        yield found


def _specs(variant, n):
    return expand(["ch90.linear"], profile="smoke", variants=[variant], seeds=range(n))


def _per_run_s(ends):
    """Seconds a run from the first end to the last: start-up is in neither side."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _plain(specs, uri):
    import ray

    @ray.remote(num_cpus=1)
    def task(spec):
        warm_up()
        return execute(spec, store=Store(uri))

    left, ends = [task.remote(spec) for spec in specs], []
    while left:
        done, left = ray.wait(left, num_returns=1)
        ray.get(done)
        ends.append(time.perf_counter())
    return _per_run_s(ends)


def _campaign(found, specs, uri):
    ends = []
    backend = driver.backend(found, Resources())
    for _ in Campaign(Store(uri), backend=backend).each(specs):
        ends.append(time.perf_counter())
    return _per_run_s(ends)


def test_overhead_of_a_run_over_a_plain_ray_task(benchmark, one_node, tmp_path):
    """Rounds of both in turn, 1,000 runs a side; the sides differ by what the campaign adds."""
    specs, pairs = _specs("quick", N_RUNS), []

    def both():
        first = len(pairs) % 2
        uris = [str(tmp_path / f"{len(pairs)}-{side}") for side in range(2)]
        sides = [lambda: _plain(specs, uris[0]), lambda: _campaign(one_node, specs, uris[1])]
        found = {side: sides[side]() for side in (first, 1 - first)}
        pairs.append((found[0], found[1]))

    benchmark.pedantic(both, rounds=N_ROUNDS)
    benchmark.extra_info["plain_s"] = statistics.median(p for p, _ in pairs)
    benchmark.extra_info["campaign_s"] = statistics.median(c for _, c in pairs)
    benchmark.extra_info["added_s"] = statistics.median(c - p for p, c in pairs)


def test_share_of_the_cores_that_is_busy(benchmark, one_node, tmp_path):
    """Runs of a second each: their own time over that of all slots, start-up left out."""
    cores = int(sum(n.cpus for n in one_node.nodes()))
    specs, marks = _specs("second", 20 * cores), []
    backend = driver.backend(one_node, Resources())

    def listen(event, spec, content):
        if event in ("started", "ended"):
            marks.append(time.perf_counter())

    campaign = Campaign(Store(str(tmp_path)), backend=backend, prompt=True)
    records = benchmark.pedantic(campaign.run, (specs, listen), rounds=1)
    busy = sum(r.clock.wall_s for r in records)
    benchmark.extra_info["busy"] = busy / (cores * (marks[-1] - marks[0]))
