"""The shipped on-premise configuration on three hosts: up, wait, submit, status, down."""

import pytest
import three_hosts
from three_hosts import ADDRESSES, MARK, ROOT, Hosts, marked

from suite.store import Store

pytestmark = [
    pytest.mark.skipif(three_hosts.missing() is not None, reason=str(three_hosts.missing())),
    pytest.mark.xdist_group("hosts"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def hosts():
    with Hosts() as hosts:
        yield hosts
    assert not marked(MARK, str(hosts.folder))
    assert not hosts.folder.exists()


@pytest.fixture(scope="module")
def up(hosts):
    """The configuration of a cluster that is up, with all of its nodes."""
    hosts.run("python", "-m", "suite", "cluster", "token", "--write", hosts.folder / "token")
    config = hosts.config(ROOT / "deploy" / "onpremise.yaml", hosts.folder / "store")
    hosts.run("python", "-m", "suite", "cluster", "check", config)
    hosts.run("ray", "up", "-y", config)
    waited = hosts.run("ray", "exec", config, "suite cluster wait --nodes 3 --timeout 600")
    assert all(address in waited.stdout for address in ADDRESSES)
    return config


def test_status_names_the_nodes(hosts, up):
    shown = hosts.run("ray", "exec", up, "suite cluster status").stdout
    assert all(address in shown for address in ADDRESSES)
    assert "runs: nothing" in shown


def test_nodes_that_do_not_join_are_an_error_with_reasons(hosts, up):
    command = "suite cluster wait --nodes 4 --timeout 1; echo code $?"
    said = hosts.run("ray", "exec", up, command).stdout
    assert "3 of 4 nodes after 1 s" in said
    assert "names 3 hosts, fewer than the 4 asked for" in said
    assert "the end of the autoscaler's log" in said
    assert "code 4" in said


def test_a_campaign_runs_on_all_hosts(hosts, up):
    command = "run ch01.eigen --profile smoke --seeds 0-5"
    done = hosts.run("ray", "submit", up, "suite/submit.py", "--", command)
    assert "exit code 0 (done)" in done.stdout
    records = list(Store(hosts.folder / "store").scan())
    assert len({r.run_id for r in records}) == len(records) > 0
    assert {r.seed for r in records} == set(range(6))
    assert {r.status for r in records} == {"ok"}
    again = hosts.run("ray", "submit", up, "suite/submit.py", "--", command)
    assert "exit code 0 (done)" in again.stdout
    assert len(list(Store(hosts.folder / "store").scan())) == len(records)


def test_a_failure_keeps_its_code_in_the_last_line(hosts, up):
    said = hosts.run("ray", "submit", up, "suite/submit.py", "--", "run", "nosuch", check=False)
    assert said.returncode == 1
    assert "unknown task 'nosuch'" in said.stdout
    assert "suite run nosuch: exit code 2 (wrong usage)" in said.stdout


def test_down_ends_the_head(hosts, up):
    hosts.run("ray", "down", "-y", up)
    said = hosts.run("ray", "exec", up, "suite cluster status", check=False)
    assert said.returncode != 0
