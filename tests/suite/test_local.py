import contextlib
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from suite.local import Campaign, ahead, stoppable
from suite.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def _campaign(store, specs, **kw):
    events = []
    records = Campaign(store, **kw).run(specs, lambda e, s, c: events.append((e, s)))
    return records, events


@pytest.mark.parametrize("inline", [True, False])
def test_a_matrix_runs_and_is_not_run_again(toy, store, inline):
    specs = toy("quick", "slow", seeds=range(2))
    records, events = _campaign(store, specs, jobs=2, inline=inline)
    assert sorted(r.run_id for r in records) == sorted(s.run_id for s in specs)
    assert {r.placement.scheduler for r in records} == {"inline" if inline else "process"}
    assert [e for e, _ in events].count("ended") == 4
    again, events = _campaign(store, specs, jobs=2, inline=inline)
    assert [e for e, _ in events] == ["skipped"] * 4
    assert sorted(r.record_id for r in again) == sorted(r.record_id for r in records)
    # Where a run sits does not change what it gives.
    fresh, _ = _campaign(store, specs, jobs=2, inline=True, fresh=True)
    assert [r.attempt for r in fresh] == [2] * 4
    assert {r.parent_record_id for r in fresh} == {r.record_id for r in records}
    params = {r.run_id: r.train.params_sha256 for r in records}
    assert {r.run_id: r.train.params_sha256 for r in fresh} == params


def test_runs_that_take_a_while_run_at_the_same_time(toy, store, tmp_path):
    # Each waits for the other: one after the other they would come to the profile's limit.
    there = tmp_path / "there"
    there.mkdir()
    specs = toy("meet", seeds=range(2), overrides={"sign": str(there)})
    records, _ = _campaign(store, specs, jobs=2)
    assert len(list(there.iterdir())) == 2
    assert [r.status for r in records] == ["ok"] * 2


def test_memory_stores_run_inline(toy):
    records, _ = _campaign(Store(f"memory://local-{os.getpid()}"), toy(), jobs=2)
    assert records[0].placement.scheduler == "inline"


def test_one_bad_run_does_not_take_the_campaign_down(toy, store):
    bad = {
        "raise": ("crashed", "planted"),
        "memory": ("oom", "planted"),
        "kill": ("killed", "SIGKILL"),
        "segfault": ("crashed", "SIGSEGV; last output: about to fall over"),
        "exit": ("crashed", "code 7"),
        "nan": ("nan", "loss at step 3"),
    }
    specs = toy(*bad, "quick", "slow")
    records, _ = _campaign(store, specs, jobs=2)
    by_variant = {r.variant: r for r in records}
    assert len(by_variant) == len(specs)
    assert by_variant["quick"].status in ("ok", "target_missed")
    for variant, (status, detail) in bad.items():
        assert by_variant[variant].status == status
        assert detail in by_variant[variant].status_detail
    assert len(list(store.scan())) == len(specs)
    # What the machine broke is tried again, and what the run decided is not.
    records, events = _campaign(store, toy("kill", "nan"))
    assert {(e, s.variant) for e, s in events if e in ("skipped", "ended")} == {
        ("skipped", "nan"),
        ("ended", "kill"),
    }
    assert {r.variant: r.attempt for r in records} == {"kill": 2, "nan": 1}


def test_a_run_that_hangs_is_ended(toy, store, monkeypatch):
    # Only the run that never ends has a limit: a slow machine must not end the other.
    monkeypatch.setattr("suite.worker.GRACE_S", 0.5)
    monkeypatch.setattr(
        Campaign, "limit_s", lambda self, spec: 6.0 if spec.variant == "hang" else math.inf
    )
    records, _ = _campaign(store, toy("hang", "quick"))
    by_variant = {r.variant: r for r in records}
    assert by_variant["hang"].status == "timeout"
    assert "killed" in by_variant["hang"].status_detail
    assert by_variant["quick"].status in ("ok", "target_missed")


def test_the_worker_that_was_started_ahead_has_the_first_run(toy, store):
    with ahead(Campaign(store)) as campaign:
        worker = campaign.worker
        (record,) = campaign.run(toy())
    assert worker.draft["run_id"] == record.run_id


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ({}, {"GOMP_SPINCOUNT": "5000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_of_a_run_soon_sleep_unless_the_user_says_how_to_wait(
    toy, store, monkeypatch, said, used
):
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in waiting:
        # What it was before comes back after the test, whatever is set meanwhile.
        monkeypatch.setenv(name, said.get(name, ""))
        if name not in said:
            monkeypatch.delenv(name)
    [record], _ = _campaign(store, toy("quick"))
    assert {k: v for k, v in record.env.env_vars.items() if k in waiting} == used


def test_ctrl_c_does_not_reach_a_worker_that_is_starting(toy, store):
    with ahead(Campaign(store)) as campaign:
        os.kill(campaign.worker.process.pid, signal.SIGINT)
        (record,) = campaign.run(toy())
    assert campaign.worker.draft["run_id"] == record.run_id


def test_no_worker_outlives_a_mistake_in_the_plan(store):
    workers = []

    def plan():
        with ahead(Campaign(store)) as campaign:
            workers.append(campaign.worker)
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        plan()
    (worker,) = workers
    assert worker.process.exitcode == -signal.SIGKILL
    assert not worker.log.parent.exists()


@pytest.mark.parametrize("uri", [None, "memory://ahead"])
def test_no_worker_is_started_ahead_where_the_runs_are_in_this_process(store, uri):
    asked = Campaign(Store(uri) if uri else store, inline=not uri)
    with ahead(asked) as campaign:
        assert campaign is asked


@contextlib.contextmanager
def _suite(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "suite", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_stopped_campaign_goes_on_where_it_was(tmp_path):
    """Stopped in its first run, in another way in its second, and killed in its third."""
    store, sign = Store(str(tmp_path / "store")), tmp_path / "sign"
    command = ["run", "ch90.linear", "--variant", "wait", "--profile", "laptop", "--jobs", "1"]
    command += ["--seeds", "0-2", "--set", f"sign={sign}", "--store", str(tmp_path / "store")]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    for n_ended, number in enumerate(numbers):
        # A run waits at a step where there is no sign of one that did.
        sign.unlink(missing_ok=True)
        with _suite(*command) as process:
            while not sign.exists():
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
            # A terminal sends Ctrl-C to the whole group; the others go to one process.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            out, _ = process.communicate(timeout=600)
        assert len(list(store.scan())) == n_ended
        if number != signal.SIGKILL:
            assert process.returncode == 130, out
            assert "the same command continues" in out
            assert "Traceback" not in out
            assert store.fs.glob(store.path("checkpoints/*.pt"))
    with _suite(*command) as last:
        out, _ = last.communicate(timeout=600)
    assert last.returncode == 0, out
    records = sorted(store.scan(), key=lambda r: r.seed)
    assert [r.train.steps for r in records] == [8, 8, 8]
    assert [r.clock.recovery_s > 0 for r in records] == [n != signal.SIGKILL for n in numbers]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_finalizer_swallows_is_remembered(number):
    class Swallows:
        def __del__(self):
            signal.raise_signal(number)

    with stoppable() as stop:
        stop.check()
        Swallows()
        with pytest.raises(KeyboardInterrupt):
            stop.check()
