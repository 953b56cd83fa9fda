import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from suite import checkpoint, provenance, report, sweep
from suite.cluster import ClusterError, connect
from suite.record import FINISHED, Placement
from suite.space import Choice, Range
from suite.store import Store, StoreError
from suite.task import Needs

TOY = "ch90.linear"
LR = {"lr": Range(1e-4, 1e-1, log=True)}
ALONE = Placement(scheduler="ray", workers=1, cpus=1, gpus=0, colocated_runs=0, contended=False)
pytestmark = pytest.mark.xdist_group("sweeps")


@pytest.fixture(scope="module")
def cluster():
    with connect("ray") as connected:
        yield connected


@pytest.fixture
def run(cluster, tmp_path):
    """Run a sweep over the toy to its end; return its store."""

    def to_the_end(jobs=2, save_every_s=60.0, **kw):
        planned = sweep.plan(TOY, **kw)
        store = sweep.place(str(tmp_path), planned)
        sweep.run(planned, store, cluster, Needs(1, 0), jobs=jobs, save_every_s=save_every_s)
        assert sweep.finished(store)
        assert not store.fs.exists(store.path("tune"))
        assert not store.fs.glob(store.path("pending/*"))
        return store

    return to_the_end


@pytest.fixture
def trial(tmp_path):
    """A trial of the toy outside of Ray, as Tune would make it."""
    from suite.trial import Job, Trial

    def made(config, name="t_00000", **kw):
        planned = sweep.plan(TOY, space=kw.pop("space", LR), **kw)
        job = Job(planned, str(tmp_path / "store"), provenance.code(), ALONE)
        return Trial(job, name, config)

    return made


def _to_the_end(made):
    results = [made.step()]
    while not results[-1]["done"]:
        results.append(made.step())
    return results


# What is asked for


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"search": "opt"}, "unknown search 'opt'.*'optuna'"),
        ({"scheduler": "ashes"}, "unknown scheduler 'ashes'.*'asha'"),
        ({"space": {"lrr": Range(0, 1)}}, "unknown field 'lrr'"),
        ({"space": {}}, "declares no space"),
        ({"space": LR, "overrides": {"lr": 0.1}}, "both set and swept"),
        ({"search": "grid"}, "a grid takes lists: write --grid lr="),
        ({"search": "grid", "space": {"steps": Choice((1, 2))}, "samples": 3}, "--samples out"),
        ({"samples": 0}, "samples 0: at least 1"),
        ({"samples": -2}, "samples -2: at least 1"),
        ({"scheduler": "pbt", "search": "optuna"}, "'pbt'.*'optuna' cannot.*random"),
        ({"scheduler": "pbt", "samples": 1}, "needs a population"),
        ({"scheduler": "pbt", "seeds": [0, 1]}, "its own seed"),
        ({"variant": "slow"}, "no target for variant 'slow'.*quick"),
        ({"variant": "quik"}, "unknown variant 'quik'"),
    ],
)
def test_what_cannot_be_searched_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        sweep.plan(TOY, **asked)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400)])
def test_a_budget_is_a_time(text, seconds):
    assert sweep.budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "-5m", "10 m", "1d"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="write 90s, 10m"):
        sweep.budget(text)


def test_the_same_question_has_the_same_id_and_another_has_not():
    first = sweep.plan(TOY, space=LR, samples=4)
    assert sweep.plan(TOY, space=LR, samples=4).id == first.id
    others = [
        sweep.plan(TOY, space=LR, samples=5),
        sweep.plan(TOY, space=LR, samples=4, overrides={"steps": 5}),
        sweep.plan(TOY, space=LR, samples=4, seeds=[1]),
        sweep.plan(TOY, space={"lr": Range(1e-4, 1e-1)}, samples=4),
    ]
    assert first.id not in {s.id for s in others}


def test_a_task_brings_its_own_space_and_a_set_field_leaves_it():
    assert [f for f, _ in sweep.plan(TOY).space] == ["lr", "steps"]
    assert [f for f, _ in sweep.plan(TOY, overrides={"lr": 0.1}).space] == ["steps"]


def test_fresh_is_the_next_turn_of_a_sweep(tmp_path):
    planned = sweep.plan(TOY, space=LR)
    first = sweep.place(str(tmp_path), planned)
    assert sweep.place(str(tmp_path), planned, fresh=True).root == first.root
    first.write(sweep.DEFINITION, b"{}")
    second = sweep.place(str(tmp_path), planned, fresh=True)
    assert second.root == f"{first.root}.2"
    second.write(sweep.DEFINITION, b"{}")
    assert sweep.place(str(tmp_path), planned).root == second.root


def test_a_store_in_one_process_is_refused():
    with pytest.raises(StoreError, match="lives in one process"):
        sweep.place("memory://here", sweep.plan(TOY, space=LR))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--search", "opt"], "unknown search 'opt'"),
        (["--space", "lr=lug:1:2"], "did you mean 'log'"),
        (["--space", "lr=log:1:2", "--grid", "lr=1,2"], "swept twice"),
        (["--samples", "0"], "samples 0"),
        (["--budget", "soon"], "budget 'soon'"),
        (["--report", "none"], "unknown sweep 'none'"),
        (["--on", "nowhere"], "--on 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(command_line, tmp_path, more, said):
    code, _, line = command_line("sweep", TOY, *more, "--store", tmp_path)
    assert code == 2, line
    assert said in line
    assert list(tmp_path.iterdir()) == []


# One trial, without Ray


def test_a_trial_shows_each_evaluation_and_ends_as_a_record(trial):
    made = trial({"lr": 0.05})
    *rows, last = _to_the_end(made)
    assert [r["row"] for r in rows] == list(range(1, 9))
    [record] = made.store.scan()
    assert last == {
        "row": 8,
        "done": True,
        "status": record.status,
        "objective": record.train.final["accuracy"].value,
    }
    assert record.campaign_id == made.sweep.id
    assert record.config.resolved["lr"] == 0.05
    assert not made.store.fs.glob(made.store.path("pending/*"))


def test_the_objective_is_the_mean_over_the_seeds(trial):
    made = trial({"lr": 0.05}, seeds=[0, 1, 2])
    last = _to_the_end(made)[-1]
    finals = [r.train.final["accuracy"].value for r in made.store.scan()]
    assert len(finals) == 3
    assert last["objective"] == pytest.approx(sum(finals) / 3)
    assert last["row"] == 24


def test_a_failed_seed_fails_the_configuration_and_ends_it(trial):
    made = trial({"fault": "nan"}, space={"fault": Choice(("", "nan"))}, seeds=[0, 1])
    *rows, last = _to_the_end(made)
    assert [r["row"] for r in rows] == [1, 2, 3]
    assert last["status"] == "nan"
    assert "objective" not in last
    assert len(list(made.store.scan())) == 1


def test_a_saved_trial_goes_on_to_the_same_parameters(trial, tmp_path):
    whole = trial({"lr": 0.05})
    _to_the_end(whole)
    [expected] = whole.store.scan()
    for path in whole.store.fs.glob(whole.store.path("records/*/*")):
        whole.store.fs.rm(path)

    first = trial({"lr": 0.05})
    for _ in range(3):
        first.step()
    first.save(str(tmp_path))
    second = trial({"lr": 0.05})
    second.restore(str(tmp_path))
    rows = [r["row"] for r in _to_the_end(second)]
    assert rows == [4, 5, 6, 7, 8, 8]
    resumed = max(second.store.scan(), key=lambda r: r.attempt)
    assert resumed.train.params_sha256 == expected.train.params_sha256
    assert resumed.train.curve["loss"] == expected.train.curve["loss"]
    assert resumed.clock.recovery_s > 0


def test_what_has_a_record_is_not_run_again(trial):
    done = _to_the_end(trial({"lr": 0.05}))[-1]
    again = trial({"lr": 0.05}, name="t_00001")
    assert again.step() == done
    assert len(list(again.store.scan())) == 1


def test_a_trial_that_is_left_waits_with_its_rows(trial):
    made = trial({"lr": 0.05})
    made.step()
    made.step()
    made.leave()
    assert list(made.store.scan()) == []
    sweep._settle(made.store, {})
    [record] = made.store.scan()
    assert record.status == "stopped"
    assert len(record.train.curve["accuracy"]) == 2


def test_an_attempt_that_died_has_a_record_and_the_next_names_it(trial):
    first = trial({"lr": 0.05})
    first.step()
    second = trial({"lr": 0.05})
    _to_the_end(second)
    died, lived = sorted(second.store.scan(), key=lambda r: r.attempt)
    assert (died.status, died.attempt) == ("killed", 1)
    assert (lived.attempt, lived.parent_record_id) == (2, died.record_id)


def test_an_exploited_trial_keeps_the_weights_and_takes_its_own_rate(trial, tmp_path):
    import torch

    donor = trial({"lr": 0.05}, scheduler="pbt", samples=2)
    for _ in range(4):
        donor.step()
    donor.save(str(tmp_path))
    heir = trial({"lr": 0.1}, name="t_00001", scheduler="pbt", samples=2)
    heir.restore(str(tmp_path))
    heir.step()
    group = heir.attempt.ctx.kept["optimizer"].param_groups[0]
    # The schedule has multiplied the rate by 0.7 once by then, and so it has the new one.
    assert group["lr"] == pytest.approx(0.1 * 0.7)
    kept = checkpoint.unpack((tmp_path / "trial.pt").read_bytes())["snapshot"]["kept"]
    moments = kept["optimizer"]["state"][0]["step"]
    assert torch.equal(
        moments + 1, heir.attempt.ctx.kept["optimizer"].state_dict()["state"][0]["step"]
    )
    _to_the_end(heir)
    [record] = heir.store.scan()
    assert record.extra["sweep"]["lineage"] == [{"until_row": 4, "config": {"lr": 0.05}}]
    assert record.seed == 1
    assert len(record.train.curve["loss"]) == 8


# On Ray


def test_a_grid_is_complete_and_what_fails_is_a_state(run, tmp_path):
    store = run(
        space={"fault": Choice(("", "nan", "raise")), "lr": Choice((0.01, 0.05))}, search="grid"
    )
    by_fault = Counter((r.config.resolved["fault"], r.status) for r in store.scan())
    assert sum(by_fault.values()) == 6
    assert by_fault["nan", "nan"] == 2
    assert by_fault["raise", "crashed"] == 2
    assert sum(n for (fault, _), n in by_fault.items() if not fault) == 2
    assert all(r.placement.scheduler == "ray" for r in store.scan())
    # No table of results rests on a trial.
    assert report.build(Store(str(tmp_path))).records == ()


def test_a_trial_that_died_goes_on_elsewhere_and_one_that_always_dies_is_given_up(run, tmp_path):
    faults = ("segfault", "", "kill_once")
    store = run(
        save_every_s=0.0,
        space={"fault": Choice(faults)},
        search="grid",
        overrides={"sign": str(tmp_path / "sign")},
    )
    found = {fault: [] for fault in faults}
    for r in sorted(store.scan(), key=lambda r: r.attempt):
        found[r.config.resolved["fault"]].append(r)
    assert [r.status for r in found["segfault"]] == ["killed"] * (1 + sweep.RESTARTS)
    [well], (died, lived) = found[""], found["kill_once"]
    assert died.status == "killed"
    assert {well.status, lived.status} <= {"ok", "target_missed"}
    assert lived.parent_record_id == died.record_id
    assert lived.clock.recovery_s > 0
    assert lived.train.curve["step"] == [float(i) for i in range(1, 9)]


def test_asha_stops_what_falls_behind(run):
    store = run(jobs=1, space=LR, samples=8, search="optuna", scheduler="asha")
    records = list(store.scan())
    rows = {r.status: [] for r in records}
    for r in records:
        rows[r.status].append(len(r.train.curve["accuracy"]))
    assert len(records) == 8
    assert rows["stopped"]
    assert all(2 <= n < 8 for n in rows["stopped"])
    ended = [n for status, found in rows.items() if status != "stopped" for n in found]
    assert ended
    assert set(ended) == {8}
    # The task's own setting is the first trial.
    first = min(records, key=lambda r: r.created_utc)
    assert first.config.resolved["lr"] == 0.05


def test_a_population_is_changed_on_the_way(run):
    store = run(space=LR, samples=4, scheduler="pbt", overrides={"steps": 12})
    records = list(store.scan())
    assert {r.status for r in records} <= set(FINISHED)
    assert len({r.seed for r in records}) == len({r.extra["sweep"]["trial"] for r in records}) == 4
    assert any(r.extra["sweep"]["lineage"] for r in records)
    assert all(1e-4 <= r.config.resolved["lr"] <= 1e-1 for r in records)


def test_a_budget_ends_what_has_no_end(run):
    store = run(space=LR, samples=2, overrides={"steps": 10**7}, budget_s=3.0)
    assert {r.status for r in store.scan()} <= {"stopped"}


def test_a_store_that_nodes_do_not_share_is_refused(cluster):
    store = Store(f"memory://sweep-{os.getpid()}")
    with pytest.raises(StoreError, match=r"node \S+: .* is another one there"):
        sweep._check_nodes(sweep.plan(TOY, space=LR), store, cluster)


def test_a_cluster_without_room_is_refused(cluster):
    with pytest.raises(ClusterError, match="a trial needs 1 CPU and 64 GPUs on one node"):
        sweep._room(cluster, Needs(1, 64))
    assert sweep._room(cluster, Needs(1, 0)) == provenance.cores()


@contextlib.contextmanager
def _suite(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "suite", *map(str, arguments)],
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
        process.stdout.close()
        process.wait()


def test_a_stopped_sweep_goes_on_and_repeats_nothing(cluster, tmp_path):
    """Stopped by Ctrl-C after its first trial, killed in its second, it ends at the third call."""
    import ray

    store, sign = tmp_path / "store", tmp_path / "sign"
    command = ["sweep", TOY, "--grid", "lr=0.01,0.05,0.1", "--jobs", "1", "--set", f"sign={sign}"]
    command += ["--set", "fault=wait", "--set", "fault_at=8", "--store", store]
    # A cluster that outlives who drives the sweep, as one of several machines does.
    command += ["--on", ray.get_runtime_context().gcs_address]

    def found():
        return list(store.glob("sweeps/*/records/*/*.json"))

    def wait(process, happened):
        while not happened():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)

    with _suite(*command) as first:
        # The sign is there once a trial has reached its last row; it then takes its time there.
        wait(first, lambda: sign.exists() and found())
        kept = found()
        os.killpg(first.pid, signal.SIGINT)
        out, _ = first.communicate(timeout=600)
    assert first.returncode == 130, out
    assert "the same command continues" in out
    assert "Traceback" not in out
    sign.unlink()
    with _suite(*command) as second:
        wait(second, sign.exists)
        second.kill()
        second.communicate(timeout=600)
    with _suite(*command) as third:
        out, _ = third.communicate(timeout=600)
    assert third.returncode == 0, out
    assert {*kept} <= {*found()}
    [name] = [p.name for p in (store / "sweeps").iterdir()]
    records = list(Store(str(store / "sweeps" / name)).scan())
    ended = [r for r in records if r.status != "killed"]
    assert sorted(r.config.resolved["lr"] for r in ended) == [0.01, 0.05, 0.1]
    assert all(len(set(r.train.curve["step"])) == len(r.train.curve["step"]) == 8 for r in ended)
    assert "suite run ch90.linear" in out
    with _suite(*command) as again:
        out, _ = again.communicate(timeout=600)
    assert "is finished" in out
    definition = json.loads((store / "sweeps" / name / sweep.DEFINITION).read_text())
    assert definition["finished_utc"]
    assert dataclasses.asdict(sweep.plan(TOY).objective) == definition["objective"]
