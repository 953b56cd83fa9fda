"""Campaigns on Ray: one private cluster of two nodes for all of them."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_checks import survived

from suite import cluster, driver, faults, slot
from suite.cluster import Cluster, ClusterError, Node
from suite.dispatch import ATTEMPTS, Run
from suite.driver import Resources
from suite.local import Campaign, stoppable
from suite.plan import expand
from suite.record import Placement
from suite.store import Store, StoreError
from suite.task import Needs

# Ray costs a fixed half gigabyte and seconds of start-up: one process holds it for all.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def ray2():
    with cluster.connect("ray:2") as found:
        yield found


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def run(found, store, specs, resources=Resources(), **kw):  # noqa: B008
    events = []
    campaign = Campaign(store, backend=driver.backend(found, resources), **kw)
    records = campaign.run(specs, lambda e, s, c: events.append((e, s, c)))
    return records, events


def test_a_matrix_runs_and_is_not_run_again(ray2, toy, store, tmp_path):
    specs = toy("quick", "raise", seeds=range(2), profile="laptop")
    records, events = run(ray2, store, specs)
    assert sorted(r.run_id for r in records) == sorted(s.run_id for s in specs)
    assert {r.variant: r.status for r in records}["raise"] == "crashed"
    assert [e for e, _, _ in events].count("row") > 16
    for r in records:
        assert r.placement.scheduler == "ray"
        assert r.placement.cpus == r.env.torch.num_threads == 1
        assert r.env.env_vars["OMP_NUM_THREADS"] == "1"
        assert r.placement.node in {n.address for n in ray2.nodes()}
    assert len(list(store.scan())) == 4
    assert store.fs.glob(store.path(".probe*")) == []
    again, events = run(ray2, store, specs)
    ended = [s.variant for e, s, _ in events if e == "ended"]
    assert ended == ["raise", "raise"]
    here = Campaign(Store(str(tmp_path / "local"))).run(toy("quick", profile="laptop"))
    params = [r.train.params_sha256 for r in again if r.variant == "quick" and r.seed == 0]
    assert params == [here[0].train.params_sha256]


def test_what_the_machine_did_is_tried_again_and_the_record_says_so(ray2, toy, store, tmp_path):
    once = toy("kill_once", overrides={"sign": str(tmp_path / "sign")})
    [record], events = run(ray2, store, once, attempts=ATTEMPTS)
    assert record.attempt == 2
    [first] = [r for r in store.scan() if r.status == "killed"]
    assert record.parent_record_id == first.record_id
    assert [e for e, _, _ in events if e in ("again", "ended")] == ["again", "ended"]


def test_a_hang_is_ended_and_not_tried_again(ray2, toy, store):
    [record], events = run(ray2, store, toy("hang"), timeout_s=1.0, attempts=ATTEMPTS)
    assert record.status == "timeout"
    assert [e for e, _, _ in events].count("again") == 0
    assert [r.record_id for r in store.scan()] == [record.record_id]


def test_a_silent_slot_is_given_up_and_its_run_ends_elsewhere(
    ray2, toy, store, tmp_path, monkeypatch
):
    """What a partition looks like from the driver: no answer and no error."""
    monkeypatch.setattr("suite.driver.SILENCE_S", 8.0)
    wait = toy("wait", overrides={"sign": str(tmp_path / "sign")}, profile="laptop")
    frozen, events, priorities = [], [], set()

    def listen(event, spec, content):
        events.append(event)
        if event == "row" and not frozen:
            for pid in family_of_slots():
                priorities.add(os.getpriority(os.PRIO_PROCESS, pid))
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)

    campaign = Campaign(store, backend=driver.backend(ray2, Resources(slots=1)), attempts=ATTEMPTS)
    try:
        [record] = campaign.run(wait, listen)
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert frozen
    # It stood behind no other process for the processors.
    assert priorities == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert events.count("again") == 1
    assert record.status in ("ok", "target_missed")
    assert record.attempt == 2
    [lost] = [r for r in store.scan() if r.status == "infra_error"]
    assert "no sign of life" in lost.status_detail


def family_of_slots():
    """The slots of this process's cluster and their workers."""
    slots = [p for p in descendants(os.getpid()) if "ray::Slot" in command(p)]
    return [*slots, *(p for s in slots for p in descendants(s) if "spawn_main" in command(p))]


def crew(variant, seeds=(0,), **overrides):
    """Specs of the toy whose runs start Ray actors of their own."""
    return expand(
        ["ch91.crew"], profile="smoke", variants=[variant], seeds=seeds, overrides=overrides
    )


def the_cluster_is_free(found):
    """Wait until no actor is left, and every core can be had again."""
    import ray

    cpus = sum(n.cpus for n in found.nodes())
    until = time.monotonic() + 120
    while ray.available_resources().get("CPU", 0) < cpus or actors():
        assert time.monotonic() < until, (ray.available_resources(), actors())
        time.sleep(0.1)


def actors():
    named = ("ray::Slot", "ray::Member", "ray::SingleAgent")
    return [c for p in descendants(os.getpid()) if any(n in (c := command(p)) for n in named)]


def test_a_run_has_room_for_its_own_actors_and_leaves_none(ray2, store, tmp_path):
    """Each takes both cores, so runs that began without room for their actors would hang."""
    specs = crew("kill_once", seeds=range(2), sign=str(tmp_path / "sign"))
    records, events = run(ray2, store, specs, attempts=ATTEMPTS)
    assert [e for e, _, _ in events].count("again") == 1
    for r in records:
        assert r.status == "ok", r.status_detail
        assert r.train.curve["answers"] == [1, 1, 1]
        assert r.determinism == "none"
        assert r.artifacts == []
    the_cluster_is_free(ray2)


def test_actors_end_with_a_run_that_is_killed_at_its_limit(ray2, store):
    [record], _ = run(ray2, store, crew("hang"), timeout_s=1.0)
    assert record.status == "timeout"
    the_cluster_is_free(ray2)


def test_a_run_with_actors_that_cannot_be_placed_is_refused(ray2, store):
    with pytest.raises(ValueError, match=r"1 CPU on one node, and 2 more .* 127.0.0.2 1 CPUs"):
        run(ray2, store, crew("steady", members=2))
    with pytest.raises(ValueError, match="cannot have a node alone"):
        run(ray2, store, crew("steady"), Resources(exclusive=True))
    with pytest.raises(ValueError, match="members=1 needs a cluster"):
        Campaign(store).run(crew("steady"))
    with pytest.raises(ValueError, match="none or more"):
        run(ray2, store, crew("steady", members=-1))
    with pytest.raises(ValueError, match="1 Ray actors, and room for 0"):
        cluster.actors(1).__enter__()
    assert list(store.scan()) == []


@pytest.mark.skipif(
    not os.environ.get("FDL_CLUSTER_TESTS"),
    reason="RLlib takes minutes to replace a runner on few busy cores: make test-cluster",
)
def test_rllib_plays_on_the_cluster_and_goes_on_when_its_runner_is_killed(ray2, store):
    [spec] = expand(
        ["ch13.dqn"],
        profile="smoke",
        variants=["rllib"],
        overrides={"env_runners": 1, "env_steps": 1_280, "eval_every": 128},
    )
    killed, rows = [], []

    def listen(event, of, content):
        if event == "row":
            rows.append(content)
        if event == "row" and not killed:
            for pid in descendants(os.getpid()):
                if "ray::SingleAgent" in command(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    campaign = Campaign(store, backend=driver.backend(ray2, Resources()), timeout_s=3_600)
    [record] = campaign.run([spec], listen)
    assert killed
    assert record.status == "ok", record.status_detail
    assert record.determinism == "none"
    # The new runner begins new episodes, so the steps fall a little differently.
    assert 1_280 - 64 < record.train.curve["step"][-1] <= 1_280
    assert all(0 < r <= 500 for r in record.train.curve["eval_return"])
    the_cluster_is_free(ray2)


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(pid):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            found += [int(entry.name), *descendants(int(entry.name))]
    return found


def test_a_slot_that_hears_nothing_ends_its_run_itself(toy, store, tmp_path, monkeypatch):
    """The other side of a partition: the driver is gone, or has given the run to another held."""
    monkeypatch.setattr("suite.slot.FENCE_S", 10.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store.write("probe", b"here")
    [spec] = toy("hang", profile="laptop")
    place = Placement(scheduler="ray", workers=1, cpus=1, gpus=0, colocated_runs=0, contended=False)
    held = slot.Slot(store.root, 1, "probe", {spec.task: spec.version})
    assert held.problem == ""
    report = held.exchange(Campaign(store).job(Run(spec), place), 1e9)
    while not report.fenced and not any(kind == "row" for kind, _ in report.messages):
        report = held.exchange(None, 1e9)
    # Nobody calls it any more.
    while held.worker.process.exitcode is None:  # Another thread ends it, so this one cannot join.
        time.sleep(0.05)
    assert held.fenced
    assert held.exchange(None, 1e9).fenced
    assert list(store.scan()) == []
    held.stop()
    assert not held.folder.exists()


def test_a_node_says_what_is_wrong_with_it(toy, store, tmp_path):
    [spec] = toy()
    store.write("probe", b"here")
    assert slot.problem_of(store.root, "probe", {spec.task: spec.version}) == ""
    assert "other code" in slot.problem_of(store.root, "probe", {spec.task: "0" * 64})
    assert "unknown task" in slot.problem_of(store.root, "probe", {"ch90.liner": "0" * 64})
    assert "another one" in slot.problem_of(str(tmp_path / "own disk"), "probe", {})
    (tmp_path / "file").write_text("in the way")
    assert slot.problem_of(str(tmp_path / "file" / "store"), "probe", {})


def test_exclusive_runs_have_a_node_each(ray2, toy, store):
    records, _ = run(ray2, store, toy(seeds=range(3)), Resources(exclusive=True))
    assert len(records) == 3
    for r in records:
        assert r.placement.exclusive
        assert not r.placement.contended
        assert r.placement.colocated_runs == 0


def test_a_store_that_a_node_cannot_use_is_told_before_anything_runs(ray2, toy, tmp_path):
    # What a folder of the driver's own machine is to the others: there, but another one.
    with pytest.raises(StoreError, match=r"node 127.*another one there.*shared folder"):
        driver.check_nodes(ray2.nodes(), str(tmp_path), "what only this process has", {})


def test_a_campaign_checks_its_nodes_first(ray2, toy, tmp_path):
    spec = dataclasses.replace(toy()[0], version="0" * 64)
    started = []
    one = driver._Driver(
        ray2,
        Resources(),
        [Run(spec)],
        Campaign(Store(str(tmp_path / "store"))),
        lambda *event: started.append(event),
    )
    with pytest.raises(StoreError, match="other code there"), stoppable() as stop:
        list(one.run(stop))
    assert started == []


def test_more_than_the_cluster_has_is_refused_with_what_it_has(ray2, toy, store):
    for resources, what in ((Resources(cpus=64), "64 CPUs"), (Resources(gpus=2), "2 GPUs")):
        device = "cuda" if resources.gpus else "cpu"
        with pytest.raises(ValueError, match=f"needs .*{what}.*the cluster has: 127.0.0.2 1 CPUs"):
            run(ray2, store, toy(device=device), resources)
    assert list(store.scan()) == []


def test_auto_is_what_the_cluster_has(ray2):
    assert ray2.device("auto") == "cpu"
    with pytest.raises(ValueError, match="cuda:1"):
        ray2.device("cuda:1")


def test_a_node_has_room_for_whole_runs():
    node = Node("id", "10.0.0.1", cpus=8, gpus=2)
    assert driver._fits(node, Needs(3, 0.0)) == 2
    assert driver._fits(node, Needs(1, 0.25)) == 8
    assert driver._fits(node, Needs(1, 1.0)) == 2
    assert driver._fits(node, Needs(16, 0.0)) == 0


def test_nodes_that_may_join_are_waited_for(monkeypatch):
    monkeypatch.setattr(Cluster, "nodes", lambda self: [])
    monkeypatch.setattr(Cluster, "to_come", lambda self: {"CPU": 8, "GPU": 1})
    driver.require(Cluster("here", False), Needs(1, 1.0), "a run")
    with pytest.raises(ValueError, match="no node"):
        driver.require(Cluster("here", False), Needs(1, 2.0), "a run")


@pytest.mark.parametrize(
    "on", ["rya", "ray:0x", "host", "ray://", "http://host:1", "ray:17", "ray:0"]
)
def test_what_is_no_cluster_is_a_mistake(on):
    with pytest.raises(ValueError, match="--on"), cluster.connect(on):
        pass


def test_a_cluster_that_does_not_answer_is_told_and_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=f"127.0.0.1:{port}"):
        cluster.connect(f"127.0.0.1:{port}").__enter__()


def test_no_cluster_to_find(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match="ray start --head"):
        cluster.connect("auto").__enter__()


def test_authentication_is_never_left_unsaid(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cluster._settings(private=False, verbose=True) == {"RAY_AUTH_MODE": "disabled"}
    token = tmp_path / "key"
    token.write_text("k")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert cluster._settings(private=False, verbose=True) == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster._settings(private=False, verbose=True) == {}
    assert cluster._settings(private=True, verbose=True)["RAY_AUTH_MODE"] == "token"


def test_a_run_survives_the_loss_of_its_node(ray2, toy, tmp_path):
    """The last test of this cluster: it takes one of the two nodes."""
    import ray

    uri, address = str(tmp_path / "store"), ray.get_runtime_context().gcs_address
    setting = faults.Setting(uri, address, save_every_s=0.0)
    node_kill = [faults.Injection("node_kill", 0.5)]
    records = list(faults.inject(toy("quick", profile="laptop"), node_kill, setting))
    survived(records, uri, lost_steps=1)
    assert [n.address for n in ray2.nodes()] == [records[0].placement.node] == ["127.0.0.2"]


def suite(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "suite", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_leaves_a_snapshot_and_no_process(tmp_path):
    sign = tmp_path / "sign"
    command_ = ["run", "ch90.linear", "--variant", "wait", "--profile", "laptop", "--on", "ray"]
    command_ += ["--set", f"sign={sign}", "--store", tmp_path / "store"]
    before = {p.name for p in Path(cluster._short_folder()).glob("suite-*")}
    first = suite(*command_)
    while not sign.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    family = descendants(first.pid)
    os.killpg(first.pid, signal.SIGINT)
    out, _ = first.communicate(timeout=600)
    assert first.returncode == 130, out
    assert "the same command continues" in out
    assert "Traceback" not in out
    assert list((tmp_path / "store").glob("checkpoints/*.pt"))
    until = time.monotonic() + 60
    while any("suite" in command(p) or "ray" in command(p) for p in family):
        assert time.monotonic() < until, [command(p) for p in family if command(p)]
        time.sleep(0.2)
    left = {p.name for p in Path(cluster._short_folder()).glob(f"suite-ray-{first.pid}-*")}
    assert left - before == set()


def test_a_private_cluster_that_does_not_start_says_so(monkeypatch):
    def refuses(nodes, n_nodes):
        raise Exception("Current node timed out during startup.\nand a page of its log")

    monkeypatch.setattr(cluster, "_add_nodes", refuses)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # Other tests of this process are connected.
    with pytest.raises(ClusterError, match=r"did not start on this machine: Current node[^\n]*$"):
        cluster.connect("ray").__enter__()
