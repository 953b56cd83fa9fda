"""A campaign on hosts that fail: a power cut, a partition, the driver's connection lost.

Run with ``make test-cluster``, as root.
"""

import network_hosts
import pytest
from network_hosts import ADDRESSES, ROOT, Network, end_session, until

from suite.record import FINISHED
from suite.store import Store

pytestmark = [
    pytest.mark.skipif(network_hosts.missing() is not None, reason=str(network_hosts.missing())),
    pytest.mark.xdist_group("hosts"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def network():
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def up(network):
    network.run("python", "-m", "suite", "cluster", "token", "--write", network.folder / "token")
    config = network.config(ROOT / "deploy" / "onpremise.yaml")
    network.run("python", "-m", "suite", "cluster", "check", config)
    network.run("ray", "up", "-y", config)
    joined = network.run("ray", "exec", config, "suite cluster wait --nodes 3 --timeout 1200")
    assert all(address in joined for address in ADDRESSES)
    return config


def campaign(seeds):
    return f"run ch90 --profile laptop --variant pace --seeds {seeds}"


def finished(network, seeds):
    """How many finished records each seed has."""
    found = [r for r in Store(network.store).scan() if r.status in FINISHED]
    return {seed: sum(r.seed == seed for r in found) for seed in seeds}


def done(network, seeds):
    return sum(finished(network, seeds).values())


def once(seeds):
    return dict.fromkeys(seeds, 1)


def test_a_power_cut_and_a_partition_lose_nothing(network, up):
    """The partition lasts until the campaign is over, so its runs must have been done elsewhere."""
    seeds = range(24)
    command = ("ray", "submit", up, "suite/submit.py", "--", campaign("0-23"))
    with (network.folder / "submit.log").open("w+") as log:
        driver = network.popen(*command, output=log)
        until(lambda: done(network, seeds) >= 3 or driver.poll() is not None, "the first records")
        network.cut_power("h1")
        until(lambda: done(network, seeds) >= 6 or driver.poll() is not None, "more records")
        network.link("h2", "down")
        driver.wait(timeout=network_hosts.LIMIT_S)
        log.seek(0)
        said = log.read()
    assert driver.returncode == 0, said
    assert "exit code 0 (done)" in said
    assert finished(network, seeds) == once(seeds)
    network.link("h2", "up")
    waited = network.run("ray", "exec", up, "suite cluster wait --nodes 2 --timeout 1200")
    assert ADDRESSES[0] in waited
    assert finished(network, seeds) == once(seeds)


def test_the_same_command_continues_after_the_connection_was_lost(network, up):
    seeds = range(24, 36)
    command = ("ray", "submit", up, "suite/submit.py", "--", campaign("24-35"))
    driver = network.popen(*command)
    until(lambda: done(network, seeds) >= 2 or driver.poll() is not None, "the first records")
    assert driver.poll() is None
    end_session(driver)
    before = done(network, seeds)
    assert before < len(seeds)
    said = network.run(*command)
    assert "exit code 0 (done)" in said
    assert finished(network, seeds) == once(seeds)


def test_a_job_goes_on_when_the_connection_is_lost(network, up):
    """The README's second way, from the client through the tunnel of ``ray dashboard``."""
    seeds = range(36, 42)
    at = ("--address", "http://127.0.0.1:8265")
    tunnel = network.popen("ray", "dashboard", up)
    until(lambda: network.popen("ray", "job", "list", *at).wait() == 0, "the tunnel")
    command = f"python fundamentals/suite/submit.py {campaign('36-41')}"
    with (network.folder / "job.log").open("w+") as log:
        client = network.popen("ray", "job", "submit", *at, "--", *command.split(), output=log)
        until(lambda: done(network, seeds) >= 1 or client.poll() is not None, "the first record")
        log.seek(0)
        assert client.poll() is None, log.read()
    end_session(tunnel)
    end_session(client)
    until(lambda: done(network, seeds) >= len(seeds), "the other records")
    assert finished(network, seeds) == once(seeds)


def test_down(network, up):
    network.run("ray", "down", "-y", up)
