"""``suite gpu`` without a GPU: order, budget, what is continued, and what is recorded."""

import dataclasses
import functools
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import tuning
from kernels.bench import measure, tune
from kernels.bench.accuracy import Accuracy
from kernels.bench.measure import Outcome
from kernels.bench.providers import CannotRun
from kernels.bench.timing import Timed, Timing
from kernels.bench.workload import workloads
from suite import bench, provenance
from suite.codes import UNTRUSTED
from suite.gpu import ahead, command, mps, proofs, runs, stage, tables, tuner
from suite.store import Store, StoreError

ROOT = Path(__file__).parent.parent.parent
GPU = "NVIDIA H200"


class Clock:
    """Time goes on by a step at each look, or as a test says."""

    def __init__(self, step=0.0):
        self.at, self.step = 0.0, step

    def __call__(self):
        self.at += self.step
        return self.at


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def all_good(function, jobs, seconds, each=0.0):
    """What other processes say of jobs that end well."""
    return [""] * len(jobs)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The stages on a device that is called a GPU and computes on the processor."""
    few = [w for w in workloads("cpu", modes=("full",)) if w.op in ("ntm.address", "dnc.usage")]
    monkeypatch.setattr(bench, "device_name", lambda device: GPU)
    monkeypatch.setattr(bench, "workloads", lambda *a, **k: iter(few))
    monkeypatch.setattr(tables, "_lstm_matrix", lambda device: [])
    monkeypatch.setattr(ahead, "processes", lambda this, most: nullcontext(all_good))
    monkeypatch.setattr(tables, "_barriers", lambda this, deadline: 0)
    monkeypatch.setattr(tune, "tunable", lambda device, ops: few)
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "configs")
    tuning.forget()
    yield few
    tuning.forget()


def timed(workload, names, rounds):
    """What a GPU would have said."""
    error = Accuracy("values", "reference in float64", 1e-7, 1e-7, 5e-6, {})
    timings = [Timing("cuda_events", "cold", [2.0] * rounds), Timing("graph_replay", "warm", [1.0])]
    return [Outcome(n, accuracy=[error], timed=Timed(list(timings))) for n in names]


def this_run(store, seconds=1e6, clock=None, tasks=("ch90.linear",)):
    lines = []
    made = stage.Run(store, seconds, clock or Clock(), lines.append, device="cpu", tasks=tasks)
    return made, lines


def part(name, share, log, takes=0.0, clock=None, left=0):
    def work(this, deadline):
        log.append((name, deadline))
        if clock:
            clock.at += takes
        return left

    return stage.Stage(name, name, share, work)


def test_stages_run_in_order_and_leave_their_time_to_later_ones(store):
    log, clock = [], Clock()
    stages = [
        part("a", 1, log, takes=10, clock=clock),
        part("b", 1, log, takes=50, clock=clock, left=3),
        part("c", 2, log),
    ]
    _, left, failed = stage.run(store, stages, minutes=2, now=clock, say=lambda line: None)
    # A quarter of 120 s; a third of the 110 s that are left; all the rest.
    assert log == [("a", pytest.approx(30)), ("b", pytest.approx(10 + 110 / 3)), ("c", 120)]
    assert left == {"a": 0, "b": 3, "c": 0}
    assert failed == []


def test_a_stage_that_fails_ends_alone(store, monkeypatch, capsys):
    def fail(this, deadline):
        this.records.append(SimpleNamespace(status="ok"))
        raise RuntimeError("planted")

    log, lines = [], []
    stages = [stage.Stage("a", "a", 1, fail), part("b", 1, log)]
    records, left, failed = stage.run(store, stages, 1, now=Clock(), say=lines.append)
    assert [name for name, _ in log] == ["b"]
    assert (left, failed, len(records)) == ({"a": 1, "b": 0}, ["a"], 1)
    assert "a: failed, RuntimeError: planted" in lines
    assert f"a: 1 left, 1 new records in {store.uri}" in lines
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(command, "check_machine", lambda: None)
    monkeypatch.setattr(command, "stages", lambda: stages)
    assert command.command(1, store.uri, ()) == 4


def test_without_a_store_no_stage_follows(store):
    def fail(this, deadline):
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="disk is full"):
        stage.run(store, [stage.Stage("a", "a", 1, fail), part("b", 1, None)], 1)


def test_what_a_stage_held_of_the_gpu_is_free_for_the_next(store, monkeypatch):
    class Tensor:
        def __init__(self):
            self.itself = self
            held.add(self)

    def hold(this, deadline):
        Tensor()
        return 0

    held, freed = weakref.WeakSet(), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(len(held)))
    stage.run(store, [stage.Stage("a", "a", 1, hold)], 1, say=lambda line: None)
    assert freed == [0]


def test_all_stages_are_there_in_their_order():
    names = [s.name for s in command.stages()]
    assert names == ["tests", "smoke", "tuner", "table", "lstm", "racecheck", "paper", "compiled"]
    assert [s.name for s in command.chosen(["table", "tests"])] == ["tests", "table"]
    with pytest.raises(ValueError, match="unknown stage 'tabel'; did you mean 'table'"):
        command.chosen(["tabel"])


def test_the_table_stops_in_time_and_goes_on_where_it_was(machine, store, monkeypatch):
    monkeypatch.setattr(measure, "measure", timed)
    first, _ = this_run(store, clock=Clock(step=1.0))
    left = tables.table(first, 2.5)
    assert 0 < left < len(machine)
    second, _ = this_run(store)
    assert tables.table(second, 1e6) == 0
    assert len({r.run_id for r in first.records} & {r.run_id for r in second.records}) == 0
    third, _ = this_run(store)
    assert tables.table(third, 1e6) == 0
    assert third.records == []


def test_the_matrix_of_lstms_crosses_types_units_batches_lengths_and_modes():
    found = tables._lstm_matrix("cpu")
    assert len(set(found)) == len(found) == 3 * 5 * 3 * 2 * 2
    assert {(w.dtype, w.case.H, w.case.B) for w in found} >= {
        (torch.float16, 1024, 4),
        (torch.float32, 192, 64),
    }


def test_what_the_table_measured_is_measured_again_only_with_a_compiler(
    machine, store, monkeypatch
):
    monkeypatch.setattr(measure, "measure", timed)
    known = ["torch", "compile", "triton"]
    monkeypatch.setattr("kernels.bench.providers.defaults", lambda op, device: known)
    first, _ = this_run(store)
    tables.table(first, 1e6)
    assert {r.impl for r in first.records} == {"torch", "triton"}
    second, _ = this_run(store)
    tables.compiled(second, 1e6)
    assert {r.impl for r in second.records} == set(known)
    third, _ = this_run(store)
    assert tables.compiled(third, 1e6) == tables.table(third, 1e6) == 0
    assert third.records == []


def test_records_of_a_gpu_say_so(machine, store, monkeypatch):
    monkeypatch.setattr(measure, "measure", timed)
    this, lines = this_run(store)
    tables.table(this, 1e6)
    record = this.records[0]
    assert [(t.timer, t.cache) for t in record.micro.timings] == [
        ("cuda_events", "cold"),
        ("graph_replay", "warm"),
    ]
    work = record.micro.work
    assert work.roofline == pytest.approx(work.bound_s / 2.0)
    assert "H200" in work.peaks_source
    assert any("ntm.address" in line for line in lines)


def test_what_killed_another_process_is_measured_last(machine, store, monkeypatch):
    died = [f"{ahead.LOST} RuntimeError: no", "", ahead.DIED] + [""] * (len(machine) - 3)
    monkeypatch.setattr(tables, "warm", lambda this, sessions, deadline: died[: len(sessions)])
    seen = []

    def measured(workload, names, rounds):
        seen.append(workload)
        return timed(workload, names, rounds)

    monkeypatch.setattr(measure, "measure", measured)
    tables.table(this_run(store)[0], 1e6)
    order = [s.workload for s in tables._every_case(this_run(store)[0], without="compile")]
    assert seen == [order[1], *order[3:], order[0], order[2]]


def test_processes_are_not_started_for_less_time_than_they_start_in(store, monkeypatch):
    monkeypatch.setattr(ahead, "processes", lambda *a: pytest.fail("they were started"))
    this, _ = this_run(store)
    assert tables.warm(this, ["a", "b"], 3 * tables.START_S - 1) == ["", ""]


def test_a_session_that_hangs_ends_the_process(machine, store, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(tables, "HANGS_S", 0.0)

    def hangs(workload, names, rounds):
        assert ended.wait(60)
        return timed(workload, names, rounds)

    monkeypatch.setattr(measure, "measure", hangs)
    this, _ = this_run(store)
    this.end = ended.set
    tables.table(this, 1e6)
    assert ended.is_set()


@pytest.mark.parametrize(("running", "contended"), [(1, False), (10**6, True), (None, False)])
def test_times_on_a_gpu_are_contended_by_what_runs_now(
    machine, store, monkeypatch, running, contended
):
    monkeypatch.setattr(measure, "measure", timed)
    monkeypatch.setattr(provenance, "load1", lambda: 1e6)
    monkeypatch.setattr(provenance, "running", lambda: running)
    on_gpu = [dataclasses.replace(w, device="cuda") for w in machine[:1]]
    monkeypatch.setattr(bench, "workloads", lambda *a, **k: iter(on_gpu))
    this, _ = this_run(store)
    tables.table(this, 1e6)
    assert {r.placement.contended for r in this.records} == {contended}
    assert {r.nodes[0].load1_start for r in this.records} == {1e6}


def found(kernel="op.forward"):
    asked = tuning.Asked(kernel, "float32", {"N": 16}, {"num_warps": 4})
    return [tune.Found(asked, {"num_warps": 8}, 1.2)]


def test_the_tuner_writes_records_and_restores_its_files(machine, store, monkeypatch):
    monkeypatch.setattr(tune, "tune", lambda w, seconds, stop: found())
    this, _ = this_run(store)
    assert tuner.tuner(this, 1e6) == 0
    assert len(this.records) == len(machine)
    (path,) = tuning.FOLDER.rglob("*.json")
    text = path.read_text()
    shutil.rmtree(tuning.FOLDER)
    again, _ = this_run(store)
    assert tuner.tuner(again, 1e6) == 0
    assert again.records == []
    assert path.read_text() == text


def test_tables_are_measured_with_what_was_tuned_elsewhere(machine, store, monkeypatch):
    monkeypatch.setattr(tune, "tune", lambda w, seconds, stop: found())
    this, _ = this_run(store)
    tuner.tuner(this, 1e6)
    shutil.rmtree(tuning.FOLDER)
    tuning.forget()
    seen = []

    def looks(workload, names, rounds):
        seen.append(len(tuning.entries("op.forward", tuning.device_file(GPU))))
        return timed(workload, names, rounds)

    monkeypatch.setattr(measure, "measure", looks)
    assert tables.table(this, 1e6) == 0
    assert seen == [1] * len(machine)


def compiles(monkeypatch, answer):
    """Have other processes answer jobs so; gives what they were asked."""
    asked = []

    def compile_all(function, jobs, seconds, each):
        assert function is tune.launch
        asked.append((jobs, seconds, each))
        return [answer(*job) for job in jobs]

    monkeypatch.setattr(ahead, "processes", lambda this, most: nullcontext(compile_all))
    return asked


def test_every_candidate_is_compiled_by_other_processes_before_it_is_timed(
    machine, store, monkeypatch
):
    asked_for(monkeypatch)
    asked = compiles(monkeypatch, lambda *job: "")
    timing(monkeypatch, lambda w, kernel, new, best: (1.0, 2.0))
    this, _ = this_run(store)
    assert tuner._tuned(this, machine[:1], 20.0) == 0
    w = machine[0]
    first, *others = [[(job[0], job[2]["num_warps"]) for job in jobs] for jobs, *_ in asked]
    assert first == [(w, 8), (w, 2)], "what a search begins with, at once"
    assert others == [[(w, 16)]], "and what it comes to"
    assert {(seconds, each) for _, seconds, each in asked} == {(20.0, tuner.AHEAD_S)}


def test_what_is_not_compiled_in_time_is_passed_over(machine, store, monkeypatch):
    asked_for(monkeypatch)
    timing(monkeypatch, lambda *a: pytest.fail("it would be compiled here"))
    compiles(monkeypatch, lambda *job: ahead.LATE)
    this, _ = this_run(store)
    assert tuner._tuned(this, machine[:1], 1e6) == 0
    (record,) = this.records
    assert record.status == "ok"
    assert record.check.outcomes == {f"op.forward {{'num_warps': {n}}}": "skipped" for n in (8, 2)}
    assert ahead.LATE in record.check.output


def test_what_lacked_memory_beside_others_is_compiled_again_alone(machine, store, monkeypatch):
    asked_for(monkeypatch)
    timing(monkeypatch, lambda *a: (1.0, 1.0))
    asked = []
    asked = compiles(monkeypatch, lambda *job: "out of memory" if len(asked) == 1 else "")
    this, _ = this_run(store)
    assert tuner._tuned(this, machine[:1], 1e6) == 0
    assert [len(jobs) for jobs, *_ in asked] == [2, 1, 1]
    assert this.records[0].check.outcomes == {}


def test_processes_compile_ahead_and_say_what_failed(store, monkeypatch):
    monkeypatch.setattr(ahead, "workers", lambda: 2)
    this, lines = this_run(store)
    with ahead.processes(this, 3) as compile_all:
        ended = compile_all(operator.truediv, [(1, 1), (1, 0), (1, 2)], 60.0)
        assert compile_all(operator.truediv, [(1, 0)], 0.0) == [ahead.LATE]
    assert ended == ["", "ZeroDivisionError: division by zero", ""]
    assert [line.split(" in ")[0] for line in lines] == [
        "  3 of 3 were compiled ahead",
        "  1 of them ended",
    ]
    with ahead.processes(this, 1) as compile_all:
        assert compile_all(operator.truediv, [(1, 0)], 60.0) == [""]


def test_a_process_that_dies_is_replaced(store):
    this, _ = this_run(store)
    with ahead.processes(this, 2) as compile_all:
        assert compile_all(os._exit, [(3,)], 60.0) == ["its process died"]
        assert compile_all(operator.truediv, [(1, 1)], 60.0) == [""]


def take_the_gpu():
    """Stands in for a kernel after which nothing runs any more."""
    ahead._lost = lambda: True
    raise RuntimeError("illegal memory access")


def test_a_job_that_takes_the_gpu_from_its_process_says_so(store):
    this, _ = this_run(store)
    with ahead.processes(this, 2) as compile_all:
        (why,) = compile_all(take_the_gpu, [()], 60.0)
        assert compile_all(operator.truediv, [(1, 1)], 60.0) == [""]
    assert why == f"{ahead.LOST} RuntimeError: illegal memory access"


def wait_in(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def test_no_process_outlives_the_one_that_it_compiles_for(store, tmp_path):
    path = tmp_path / "pid"
    code = (
        "import os, threading\n"
        "from types import SimpleNamespace\n"
        "from pathlib import Path\n"
        "from suite.gpu import ahead\n"
        "from tests.suite.test_gpu import wait_in\n"
        "def die():\n"
        f"    while not Path({str(path)!r}).exists(): pass\n"
        "    os._exit(0)\n"
        "this = SimpleNamespace(now=lambda: 0.0, say=print)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
        "    with ahead.processes(this, 2) as compile_all:\n"
        f"        compile_all(wait_in, [({str(path)!r},)], 600.0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    stat = Path("/proc", path.read_text(), "stat")
    with suppress(OSError):
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)


def test_processes_compile_on_one_core_each(store, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    this, _ = this_run(store)
    with ahead.processes(this, 2) as compile_all:
        compile_all(os.system, [(f"echo $TORCHINDUCTOR_COMPILE_THREADS > {tmp_path}/it",)], 60.0)
    assert (tmp_path / "it").read_text() == "1\n"


@pytest.mark.parametrize("limits", [(0.1,), (float("inf"), 0.1)], ids=["all", "each"])
def test_what_is_late_is_stopped_with_all_that_it_started(store, tmp_path, limits):
    """By a clock that stands still until the compiler runs."""
    path, later = tmp_path / "compiler", Clock(step=1.0)
    this, _ = this_run(store, clock=lambda: later() if path.exists() else 0.0)
    with ahead.processes(this, 2) as compile_all:
        command = f"sleep 600 & echo $! > {path}.new; mv {path}.new {path}; wait"
        assert compile_all(os.system, [(command,)], *limits) == [ahead.LATE]
        stat = Path("/proc", path.read_text().strip(), "stat")
        with suppress(OSError):
            while stat.read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)


def test_a_search_that_was_cut_short_is_no_record(machine, store, monkeypatch):
    clock = Clock()

    def slow(w, seconds, stop):
        clock.at += 1
        return found()

    monkeypatch.setattr(tune, "tune", slow)
    this, _ = this_run(store, clock=clock)
    assert tuner.tuner(this, 2.0) == len(machine) - 1
    assert len(this.records) == 1


def test_what_triton_does_not_take_is_tuned_to_nothing(machine, store, monkeypatch):
    def refuse(w, seconds, stop):
        raise CannotRun("not this")

    monkeypatch.setattr(tune, "tune", refuse)
    this, lines = this_run(store)
    assert tuner.tuner(this, 1e6) == 0
    assert all(r.check.outcomes == {} for r in this.records)
    assert any("not this" in line for line in lines)


def asked_for(monkeypatch):
    """Have each workload launch one kernel with one parameter."""
    asked = tuning.Asked("op.forward", "float32", {"N": 16}, {"num_warps": 4})
    monkeypatch.setattr(tune, "launched", lambda w: [asked])


def timing(monkeypatch, seconds):
    monkeypatch.setattr(tune, "Trials", lambda: SimpleNamespace(seconds=seconds))


def test_a_candidate_that_fails_is_refused_and_the_search_goes_on(machine, store, monkeypatch):
    asked_for(monkeypatch)
    timing(monkeypatch, lambda w, kernel, new, best: "no" if new["num_warps"] == 8 else (1.0, 2.0))
    this, _ = this_run(store)
    assert tuner.tuner(this, 1e6) == 0
    for record in this.records:
        assert record.check.outcomes == {
            "op.forward {'num_warps': 8}": "skipped",
            "op.forward {'num_warps': 1}": "passed",
        }
        assert record.check.output == "op.forward {'num_warps': 8}\nno"


def test_where_every_candidate_fails_the_check_has_failed(machine, store, monkeypatch):
    asked_for(monkeypatch)
    timing(monkeypatch, lambda *a: "no")
    this, lines = this_run(store)
    assert tuner.tuner(this, 1e6) == 0
    assert {r.status for r in this.records} == {"invalid"}
    assert {r.check.outcomes["all candidates"] for r in this.records} == {"failed"}
    assert any("none of them could be timed" in line for line in lines)


def test_a_workload_that_cannot_be_launched_fails_and_the_next_is_tuned(
    machine, store, monkeypatch
):
    def launched(w):
        if w is machine[0]:
            raise RuntimeError("out of resource: shared memory")
        return []

    monkeypatch.setattr(tune, "launched", launched)
    this, _ = this_run(store)
    assert tuner.tuner(this, 1e6) == 0
    assert [r.status for r in this.records] == ["invalid"] + ["ok"] * (len(machine) - 1)
    assert this.records[0].check.outcomes == {"a launch": "failed"}
    assert "shared memory" in this.records[0].check.output


def loses_the_gpu(monkeypatch):
    """Have the GPU be lost from the moment at which the result is called."""
    gone = []
    monkeypatch.setattr(measure, "usable", lambda device: not gone)

    def lose():
        gone.append(True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return gone, lose


def test_the_tuner_stops_when_the_gpu_is_lost_and_goes_on_after_it(machine, store, monkeypatch):
    gone, lose = loses_the_gpu(monkeypatch)
    monkeypatch.setattr(tune, "launched", lambda w: lose() if w is machine[0] else [])
    this, lines = this_run(store)
    assert tuner.tuner(this, 1e6) == len(machine) - 1
    assert [r.check.outcomes for r in this.records] == [{"a launch": "failed"}]
    assert any(machine[0].op in line and "illegal memory access" in line for line in lines)
    assert any("took the GPU from this process" in line for line in lines)
    gone.clear()
    again, _ = this_run(store)
    assert tuner.tuner(again, 1e6) == 0
    assert len(again.records) == len(machine) - 1


def test_tuning_some_ops_ends_with_what_became_of_them(machine, store, monkeypatch):
    monkeypatch.setattr(tuner, "Run", functools.partial(stage.Run, device="cpu"))
    monkeypatch.setattr(tune, "launched", lambda w: [])
    assert tuner.tune_ops(["dnc.step"], store.uri) == 0
    _, lose = loses_the_gpu(monkeypatch)
    monkeypatch.setattr(tune, "launched", lambda w: lose())
    assert tuner.tune_ops(["dnc.step"], store.uri) == UNTRUSTED
    assert len([r for r in store.scan() if r.status == "invalid"]) == 1


def test_a_candidate_that_loses_the_gpu_is_no_refusal(monkeypatch):
    asked_for(monkeypatch)
    _, lose = loses_the_gpu(monkeypatch)
    monkeypatch.setattr(tune, "usable", measure.usable)
    monkeypatch.setattr(tune.Gate, "check", lambda self, w, provider: lose())
    w = next(workloads("cpu"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune.Trials().seconds(w, "op.forward", {}, {})


def test_the_table_stops_when_the_gpu_is_lost_and_goes_on_after_it(machine, store, monkeypatch):
    gone, _ = loses_the_gpu(monkeypatch)

    def loses(workload, names, rounds):
        gone.append(True)
        return [Outcome(n, "crashed", "an illegal access", lost=True) for n in names]

    monkeypatch.setattr(measure, "measure", loses)
    this, lines = this_run(store)
    assert tables.table(this, 1e6) == len(machine) - 1
    assert any("took the GPU from this process" in line for line in lines)
    assert tables.lstm(this, 1e6) == 0, "there are none here"
    assert tables.table(this, 1e6) == len(machine) - 1, "nothing is tried in the same process"
    gone.clear()
    monkeypatch.setattr(measure, "measure", timed)
    again, _ = this_run(store)
    assert tables.table(again, 1e6) == 0
    assert not {r.run_id for r in again.records} & {r.run_id for r in this.records}


def test_tests_go_on_where_they_were_and_failures_are_kept(machine, store, monkeypatch):
    todo = {"t::a": "passed", "t::b": "failed", "t::c": "skipped", "t::d": "passed"}
    asked = []

    def some(done, seconds):
        asked.append(list(done))
        left = [t for t in todo if t not in done]
        ran = {t: todo[t] for t in left[:2]}
        why = {t: "it is wrong" for t in ran if ran[t] == "failed"}
        return proofs.Tests(ran, len(left) - len(ran), why)

    monkeypatch.setattr(proofs, "pytest_run", some)
    this, _ = this_run(store)
    assert [proofs.tests(this, 1e6) for _ in range(3)] == [2, 0, 0]
    assert asked == [[], ["t::a", "t::b"]]
    assert [r.status for r in this.records] == ["invalid", "invalid"]
    assert this.records[-1].check.outcomes == todo
    assert this.records[0].check.output == "t::b\nit is wrong"
    from suite import report

    table = report.build(store).files["tables/kernels.md"]
    assert "| tests/gpu | " in table
    assert "| 2 | 1 | 1 | 0 | `t::b` |" in table


FULL = (
    "torch.OutOfMemoryError: no",
    "RuntimeError: Triton Error [CUDA]: out of memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
)


def crowded(monkeypatch, again, full=FULL[0]):
    """Have one test lack memory beside others, and tests that run alone end as ``again`` says."""
    asked = []

    def some(done, seconds, which=("tests/gpu",), at_once=None):
        asked.append((list(which), at_once))
        if at_once == 1:
            return again()
        why = {"t::b": full, "t::c": "wrong"}
        return proofs.Tests({"t::a": "passed", "t::b": "failed", "t::c": "failed"}, 0, why)

    monkeypatch.setattr(proofs, "pytest_run", some)
    return asked


@pytest.mark.parametrize("full", FULL)
def test_what_lacked_memory_beside_others_is_run_again_alone(machine, store, monkeypatch, full):
    asked = crowded(monkeypatch, lambda: proofs.Tests({"t::b": "passed"}, 0, {}), full)
    this, _ = this_run(store)
    assert proofs.tests(this, 1e6) == 0
    assert asked == [(["tests/gpu"], None), (["t::b"], 1)]
    check = this.records[-1].check
    assert check.outcomes == {"t::a": "passed", "t::b": "passed", "t::c": "failed"}
    assert check.output == "t::c\nwrong"


def test_without_time_for_it_what_lacked_memory_is_left(machine, store, monkeypatch):
    asked = crowded(monkeypatch, lambda: pytest.fail("it was begun"))
    this, _ = this_run(store)
    assert proofs.tests(this, proofs.RETRY_S - 1) == 1
    assert len(asked) == 1
    (record,) = this.records
    assert record.check.outcomes == {"t::a": "passed", "t::c": "failed"}
    assert record.check.left == 1


@pytest.mark.parametrize("ends", ["an error", "too late"])
def test_outcomes_are_there_before_any_test_is_run_again(machine, store, monkeypatch, ends):
    def again():
        if ends == "an error":
            raise OSError("pytest collected no tests")
        return proofs.Tests({}, 1, {})

    crowded(monkeypatch, again)
    this, _ = this_run(store)
    with pytest.raises(OSError, match="no tests") if ends == "an error" else nullcontext():
        assert proofs.tests(this, 1e6) == 1
    assert {json.dumps(r.check.outcomes) for r in this.records} == {
        json.dumps({"t::a": "passed", "t::c": "failed"})
    }
    assert {r.check.left for r in this.records} == {1}


def test_without_time_no_test_is_begun(machine, store, monkeypatch):
    monkeypatch.setattr(proofs, "pytest_run", lambda *a: pytest.fail("it was begun"))
    this, _ = this_run(store, seconds=0.0)
    assert proofs.tests(this, 0.0) > 0
    assert this.records == []


@pytest.fixture
def checks(tmp_path):
    """A folder of tests with the hooks of tests/gpu."""
    folder = tmp_path / "checks"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "gpu" / "conftest.py", folder)
    (folder / "test_it.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
        "def test_dies(): os._exit(9) if os.environ.get('DIES') else None\n"
    )
    return folder


def by_name(outcomes):
    return {name.rpartition("::")[2]: outcome for name, outcome in outcomes.items()}


def test_outcomes_of_a_real_process(checks):
    found = proofs.pytest_run([], 600, [str(checks)])
    assert found.left == 0
    assert by_name(found.outcomes) == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_dies": "passed",
    }
    assert ["assert False" in why for why in found.why.values()] == [True]
    rest = proofs.pytest_run([n for n in found.outcomes if "good" in n], 600, [str(checks)])
    assert (len(rest.outcomes), rest.left) == (3, 0)


def test_a_test_that_takes_its_process_with_it_failed(checks, monkeypatch):
    monkeypatch.setenv("DIES", "1")
    found = by_name(proofs.pytest_run([], 600, [str(checks)]).outcomes)
    assert found["test_dies"] == "failed"
    assert found["test_good"] == "passed"


def test_what_a_test_failed_of_is_what_was_told_first(monkeypatch):
    """Then it takes its process with it, and that is told too."""

    def until(command, variables, seconds):
        lines = [{"collected": 1}]
        for detail in ("CUDA error: out of memory", "worker 'gw0' crashed"):
            lines.append({"test": "a", "outcome": "failed", "detail": detail})
        Path(variables["FDL_GPU_LOG"]).write_text("\n".join(map(json.dumps, lines)))
        return "", 1

    monkeypatch.setattr(proofs, "_until", until)
    assert proofs.pytest_run([], 10.0).why == {"a": "CUDA error: out of memory"}


def test_after_the_deadline_no_test_begins(checks):
    assert proofs.pytest_run([], -1, [str(checks)]) == proofs.Tests({}, 4, {})


@pytest.mark.parametrize(
    ("code", "ran_s", "left", "outcome"),
    [
        (None, 1.0, 1, None),
        (None, 1e4, 0, "failed"),
        (1, 1.0, 0, "failed"),
    ],
    ids=["cut short", "hung", "took its process with it"],
)
def test_what_had_begun_and_did_not_end(monkeypatch, code, ran_s, left, outcome):
    def until(command, variables, seconds):
        at = time.time() - ran_s
        lines = [{"collected": 2}, {"begun": "a", "at": at}, {"test": "a", "outcome": "passed"}]
        lines.append({"begun": "b", "at": at})
        Path(variables["FDL_GPU_LOG"]).write_text("\n".join(map(json.dumps, lines)))
        return "", code

    monkeypatch.setattr(proofs, "_until", until)
    found = proofs.pytest_run([], 10.0)
    assert found.left == left
    assert found.outcomes.get("b") == outcome
    assert found.outcomes["a"] == "passed"


def test_a_command_is_stopped_when_its_time_is_over():
    assert proofs._until(["sh", "-c", "echo said; exit 3"], {}, 600) == ("said\n", 3)
    # It answers no other signal, nor does what it started.
    waits = "trap '' TERM; echo said; sleep 600 & sleep 600"
    assert proofs._until(["sh", "-c", waits], {}, 0.5)[1] is None


def test_what_cannot_be_collected_is_an_error(checks):
    (checks / "test_broken.py").write_text("import no_such_module\n")
    with pytest.raises(OSError, match="collected no tests"):
        proofs.pytest_run([], 600, [str(checks)])


def test_sanitizers_that_are_not_there_say_so(machine, store, monkeypatch):
    monkeypatch.setattr(proofs, "SANITIZERS", ("no-such-tool",))
    this, _ = this_run(store)
    assert proofs.racecheck(this, 1e6) == 0
    assert [r.check.name for r in this.records] == ["racecheck", "memcheck"]
    for record in this.records:
        assert set(record.check.outcomes.values()) == {"skipped"}
        assert "no no-such-tool on this machine" in record.check.output
    assert set(this.records[1].check.outcomes) == {*bench.ops()}
    assert proofs.racecheck(this, 1e6) == 0
    assert len(this.records) == 2


# Says what a sanitizer would, without running what it is given.
SANITIZER = """#!/bin/sh
echo "$@" > {asked}
printf '%s\\n' '{printed}'
exit {code}
"""
GOOD = f"{proofs.END}\n======= CLEAN SUMMARY: 0 errors"


@pytest.mark.parametrize(
    ("printed", "code", "verdict"),
    [
        (GOOD, 0, "passed"),
        (GOOD, 1, "failed"),
        ("======= CLEAN SUMMARY: 0 errors", 0, "failed"),
        (f"{proofs.END}\n======= CLEAN SUMMARY: 2 errors", 0, "failed"),
        (proofs.END, 0, ""),
        ("killed", 137, ""),
        ("Error: Device not supported.\n======= CLEAN SUMMARY: 2 errors", 1, ""),
        ("CUDA error: out of memory\n======= CLEAN SUMMARY: 0 errors", 1, ""),
    ],
    ids=[
        *("good", "exit code", "died early", "errors", "no summary", "killed"),
        *("cannot watch", "no memory"),
    ],
)
def test_a_sanitized_program_has_to_come_to_its_end(tmp_path, printed, code, verdict):
    tool, asked = tmp_path / "sanitizer", tmp_path / "asked"
    tool.write_text(SANITIZER.format(asked=asked, printed=printed, code=code))
    tool.chmod(0o755)
    sanitizer = proofs.Sanitizer("clean", "CLEAN SUMMARY: 0 errors", 60.0, ("--more",))
    assert proofs._checked(str(tool), sanitizer, "code", 600.0)[0] == verdict
    words = asked.read_text().split()
    assert words[:5] == ["--tool", "clean", "--print-limit", "20", "--more"]
    assert words[-2:] == ["-c", "code"]


def test_what_a_sanitizer_found_is_recorded_and_what_it_did_not_see_is_left(
    machine, store, monkeypatch
):
    verdicts = {"a": ("passed", ""), "b": ("failed", "an error"), "c": ("", "killed")}
    seen = []

    def checked(tool, sanitizer, code, seconds):
        seen.append((code, seconds))
        return verdicts[code]

    monkeypatch.setattr(proofs, "SANITIZERS", (sys.executable,))
    monkeypatch.setattr(proofs, "_checked", checked)
    this, _ = this_run(store)
    programs = {name: name for name in verdicts}
    assert proofs._sanitized(this, 1e6, proofs.ACCESSES, programs, 2) == 1
    (record,) = this.records
    assert record.check.outcomes == {"a": "passed", "b": "failed"}
    assert record.check.output == "b\nan error\n\nc\nkilled"
    assert {seconds for _, seconds in seen} == {60.0}
    seen.clear()
    assert proofs._sanitized(this, 1e6, proofs.ACCESSES, programs, 2) == 1
    assert [code for code, _ in seen] == ["c"]
    assert proofs._sanitized(this, 0.0, proofs.ACCESSES, programs, 2) == 1
    assert len(seen) == 1


@pytest.mark.parametrize("name", [*bench.ops(), "lstm.lstm split, float32"])
def test_programs_for_sanitizers_come_to_their_end(machine, store, monkeypatch, capsys, name):
    """On a processor, with PyTorch's operators in the place of the kernels."""
    programs = {}

    def kept(this, deadline, sanitizer, some, at_once):
        programs.update(some)
        return 0

    monkeypatch.setattr(proofs, "_sanitized", kept)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    proofs.racecheck(this_run(store)[0], 1e6)
    code = programs[name].replace('"cuda"', '"cpu"').replace('"triton"', '"torch"')
    exec(code, {})
    assert capsys.readouterr().out == f"{proofs.END}\n"


def test_a_hang_is_recorded_and_not_tried_again(machine, store):
    this, _ = this_run(store)
    session = bench.Session(machine[0], ("torch", "reference"))
    stage._record_hang(this, session)
    assert [r.status for r in store.scan()] == ["timeout", "timeout"]
    assert bench.unsettled([session], store) == []


def fresh(specs):
    """Runs that have not been tried yet."""
    return [(spec, False) for spec in specs]


def time_is_over_at(word, this, lines, clock):
    """Have the time of a stage end when it says a line with a word."""

    def say(line):
        lines.append(line)
        if word in line:
            clock.at = 1e4
            os.kill(os.getpid(), signal.SIGTERM)

    this.say = say


def test_paper_runs_end_or_go_on_at_the_next_call(store, toy, monkeypatch):
    clock, specs = Clock(), toy("quick", "hang", "slow")
    monkeypatch.setattr(runs, "_waits", lambda spec: spec.variant == "slow")
    monkeypatch.setattr(runs, "_paper_specs", lambda this, name: fresh(specs))
    monkeypatch.setattr("suite.local.GRACE_S", 0.2)
    this, lines = this_run(store, seconds=1e4, clock=clock)

    time_is_over_at("quick", this, lines, clock)
    assert runs.paper(this, 1e4) == 1
    assert [r.variant for r in this.records] == ["slow", "quick"], "what waits for a GPU is first"
    assert {r.campaign_id for r in this.records} == {"gpu"}


def test_paper_runs_are_side_by_side_and_what_is_open_is_named(store, toy, monkeypatch):
    monkeypatch.setattr(runs, "_paper_specs", lambda this, name: fresh(toy("hang", "slow")))
    monkeypatch.setattr(runs, "workers", lambda: 2)
    monkeypatch.setattr("suite.local.GRACE_S", 0.2)
    clock = Clock()
    this, lines = this_run(store, seconds=1e4, clock=clock)

    time_is_over_at("slow", this, lines, clock)
    assert runs.paper(this, 1e4) == 1
    (record,) = this.records
    assert record.placement.contended, "its time is not that of a run alone"
    assert any("hang" in line and "goes on at the next call" in line for line in lines)


def test_little_time_is_no_time_for_runs_at_full_size_unless_they_are_asked_for(
    toy, store, monkeypatch
):
    monkeypatch.setattr(runs, "_paper_specs", lambda this, name: fresh(toy("quick")))
    this, lines = this_run(store)
    assert runs.paper(this, 170.0) == 1
    assert this.records == []
    assert "unless by --only paper" in lines[-1]
    this.named = True
    assert runs.paper(this, 170.0) == 0


def test_stages_know_whether_they_were_named(store, monkeypatch):
    seen = []

    def look(this, deadline):
        seen.append(this.named)
        return 0

    monkeypatch.setattr(command, "check_machine", lambda: None)
    monkeypatch.setattr(command, "stages", lambda: [stage.Stage("paper", "", 1.0, look)])
    for only in ([], ["paper"]):
        command.command(1, store.uri, only)
    assert seen == [False, True]


def test_what_failed_beside_others_is_not_settled(toy, store, monkeypatch):
    def attempt(status, contended):
        return SimpleNamespace(status=status, placement=SimpleNamespace(contended=contended))

    monkeypatch.setattr(runs, "_planned", lambda this, name, **options: toy("quick"))
    this, _ = this_run(store)
    for attempts, left in (
        ([], [False]),
        ([attempt("oom", True)], [True]),
        ([attempt("crashed", True)], [True]),
        ([attempt("killed", True)], [True]),
        ([attempt("nan", True)], []),
        ([attempt("oom", False)], []),
        ([attempt("crashed", True), attempt("crashed", False)], []),
        ([attempt("oom", True), attempt("ok", True)], []),
        ([attempt("killed", False)], [False]),
        ([attempt("infra_error", False)], [False]),
    ):
        found = {spec.run_id: attempts for spec in toy("quick")}
        monkeypatch.setattr(store, "attempts", lambda name, ids, found=found: found)
        assert [failed for _, failed in runs._paper_specs(this, "ch90.linear")] == left, attempts


def test_what_failed_beside_others_runs_last_and_alone(toy, store, monkeypatch):
    (earlier,), others = toy("memory"), toy("raise", "slow")
    found = [(earlier, True), *fresh(others)]
    monkeypatch.setattr(runs, "_paper_specs", lambda this, name: found)
    monkeypatch.setattr(runs, "workers", lambda: 2)
    this, _ = this_run(store)
    assert runs.paper(this, 1e6) == 0
    seen = [(r.variant, r.attempt, r.placement.contended) for r in this.records]
    assert sorted(seen[:2]) == [("raise", 1, True), ("slow", 1, True)]
    assert seen[2:] == [("memory", 1, False), ("raise", 2, False)]


def test_runs_end_where_cuda_fails_from_the_first(toy, store, monkeypatch):
    def broken(self, specs, listen):
        for spec in specs:
            detail = f"AcceleratorError: CUDA error: unknown error ({spec.variant}.py:1)"
            yield SimpleNamespace(
                run_id=spec.run_id,
                status="crashed" if spec.variant != "quick" else "ok",
                status_detail=detail,
                placement=SimpleNamespace(contended=True),
            )

    monkeypatch.setattr("suite.local.Campaign.each", broken)
    this, _ = this_run(store)
    monkeypatch.setattr(
        runs, "_paper_specs", lambda this, name: fresh(toy("raise", "kill", "exit", "slow"))
    )
    with pytest.raises(RuntimeError, match="first 3 runs failed alike: AcceleratorError"):
        runs.paper(this, 1e6)
    assert len(this.records) == 3
    monkeypatch.setattr(
        runs, "_paper_specs", lambda this, name: fresh(toy("raise", "quick", "kill", "exit"))
    )
    again, _ = this_run(store)
    assert runs.paper(again, 1e6) == 3, "one that ended says that CUDA works"


class Slow:
    """A campaign that takes a minute to look around before its first run."""

    def each(self, specs, listen):
        for _ in range(600):
            time.sleep(0.1)
        yield pytest.fail("it went on")


@pytest.mark.parametrize("seconds", [0.2, 0.0, -5.0])
def test_time_is_over_also_before_the_first_run(store, seconds):
    deadline, before = time.monotonic() + seconds, signal.getsignal(signal.SIGTERM)
    this, _ = this_run(store, seconds=deadline, clock=time.monotonic)
    runs._run_until(this, deadline, Slow(), ["a run"], pytest.fail)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_is_stopped_by_another_is_not_out_of_time(store, monkeypatch):
    def asked(seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    this, _ = this_run(store)
    monkeypatch.setattr(time, "sleep", asked)
    with pytest.raises(KeyboardInterrupt):
        runs._run_until(this, 1e4, Slow(), ["a run"], pytest.fail)


def test_no_run_begins_when_the_time_went_into_mps(toy, store, monkeypatch):
    clock = Clock()

    @contextmanager
    def slow(this):
        clock.at = 1e4
        yield

    monkeypatch.setattr(mps, "shared", slow)
    monkeypatch.setattr(runs, "_paper_specs", lambda this, name: fresh(toy("quick")))
    this, _ = this_run(store, seconds=1e4, clock=clock)
    assert runs.paper(this, 1e4) == 1
    assert this.records == []


# Says what it was asked, and is no daemon.
MPS = """#!/bin/sh
echo "$@ $CUDA_MPS_PIPE_DIRECTORY $(cat)" >> "{log}"
{then}
"""


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """Put a tool on the path that stands in for NVIDIA's; gives what it was asked."""
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "PUBLIC", tmp_path / "no socket")
    monkeypatch.setattr(mps, "PROBE", "pass")
    log, folder = tmp_path / "asked", tmp_path / "bin"
    log.touch()

    def put(then="exit 0"):
        folder.mkdir(exist_ok=True)
        (folder / mps.TOOL).write_text(MPS.format(log=log, then=then))
        (folder / mps.TOOL).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return log

    return put


def test_a_daemon_of_the_stages_own_shares_the_gpu(daemon, store):
    log = daemon()
    this, lines = this_run(store)
    with mps.shared(this):
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipe).is_dir()
        assert log.read_text().split() == ["-d", pipe]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert log.read_text().split() == ["-d", pipe, pipe, "quit"]
    assert not Path(pipe).exists()
    assert lines == []


def test_without_a_daemon_runs_take_turns_and_it_is_said(daemon, store, monkeypatch):
    this, lines = this_run(store)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "which", lambda name, path: None)
        with mps.shared(this):
            assert "no nvidia-cuda-mps-control on this machine" in lines[-1]
    daemon("echo no permission; exit 1")
    with mps.shared(this):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
        assert "MPS did not start (no permission)" in lines[-1]
    monkeypatch.setattr(mps, "ANSWER_S", 0.1)
    daemon("exec sleep 60")
    with mps.shared(this):
        assert "no answer within 0.1 s" in lines[-1]


def test_a_daemon_beside_the_path_is_found(daemon, store, tmp_path, monkeypatch):
    log, path = daemon(), os.environ["PATH"]
    monkeypatch.setenv("PATH", path.removeprefix(f"{tmp_path / 'bin'}:"))
    monkeypatch.setattr(mps, "PLACES", (str(tmp_path / "bin"),))
    this, lines = this_run(store)
    with mps.shared(this):
        assert log.read_text().startswith("-d")
    assert lines == []


def test_a_daemon_through_which_nothing_runs_is_done_without(daemon, store, monkeypatch):
    daemon('echo "the server is broken" > "$CUDA_MPS_LOG_DIRECTORY/server.log"')
    probe = "import os; raise SystemExit('error 805 ' + os.environ['CUDA_MPS_PIPE_DIRECTORY'])"
    monkeypatch.setattr(mps, "PROBE", probe)
    this, lines = this_run(store)
    with mps.shared(this):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    (line,) = lines
    assert "error 805 /" in line, "it was tried with the daemon's variables"
    assert "the server is broken" in line
    assert "runs take turns" in line


# A daemon and its server, which end by SIGKILL only; and a tool that gets no answer from them.
DEAF = """
if [ "$1" = "-d" ]; then
    (
        trap '' TERM
        (while :; do sleep 0.1; done) &
        echo $! >> "$CUDA_MPS_PIPE_DIRECTORY/servers"
        while :; do sleep 0.1; done
    ) > /dev/null 2>&1 &
    echo $! > "$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
    until [ -s "$CUDA_MPS_PIPE_DIRECTORY/servers" ]; do sleep 0.1; done
    exit 0
fi
exec sleep 60
"""


def alive(pids):
    return sorted(pids & mps._daemons().keys())


@pytest.fixture
def deaf(daemon, monkeypatch):
    """A daemon that does not answer; gives the ids of it and its server."""
    monkeypatch.setattr(mps, "END_S", 0.2)
    daemon(DEAF)

    def pids():
        place = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        return {int((place / name).read_text()) for name in ("servers", f"{mps.TOOL}.pid")}

    return pids


def test_a_daemon_that_does_not_answer_is_killed_with_its_server(deaf, store, monkeypatch):
    this, lines = this_run(store)
    with mps.shared(this):
        pids = deaf()
        assert alive(pids) == sorted(pids)
        monkeypatch.setattr(mps, "ANSWER_S", 0.1)
    assert alive(pids) == []
    assert "MPS did not stop (no answer within 0.1 s)" in lines[-1]
    assert this.at_exit == []


def test_a_process_that_hangs_leaves_no_daemon(deaf, store, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(stage.os, "_exit", lambda code: ended.set())
    this, _ = this_run(store)
    with mps.shared(this):
        pids = deaf()
        with stage._watched(this, 0.0):
            assert ended.wait(60)
            assert alive(pids) == []
        monkeypatch.setattr(mps, "ANSWER_S", 0.1)


def test_a_process_that_hangs_is_stopped_whatever_fails(store, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(stage.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    this, _ = this_run(store)
    this.say = lambda line: operator.truediv(1, 0)
    with stage._watched(this, 0.0):
        assert ended.wait(60)


def test_a_daemon_that_is_there_is_left_alone(daemon, store, monkeypatch):
    log = daemon()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "elsewhere")
    this, lines = this_run(store)
    with mps.shared(this):
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "elsewhere"
    assert log.read_text() == ""
    assert "the machine's own MPS" in lines[-1]


def test_tasks_are_chosen_by_the_command(store, monkeypatch):
    seen = []

    def look(this, deadline):
        seen.append(list(this.tasks))
        return 0

    monkeypatch.setattr(command, "check_machine", lambda: None)
    monkeypatch.setattr(command, "stages", lambda: [stage.Stage("paper", "", 1.0, look)])
    assert command.command(1, store.uri, (), ("ch04.regularization", "ch03*")) == 0
    assert seen[0][0] == "ch04.regularization"
    assert {name.split(".")[0] for name in seen[0][1:]} == {"ch03"}
    with pytest.raises(ValueError, match=r"ch04\.regularisation"):
        command.command(1, store.uri, (), ("ch04.regularisation",))


def test_every_variant_is_started_and_what_failed_is_named(machine, store, toy, monkeypatch):
    specs = toy("quick", "raise", "nan", "kill", "slow")
    monkeypatch.setattr(runs, "_planned", lambda this, name, profile: specs)
    this, lines = this_run(store)
    assert runs.smoke(this, 1e6) == 0
    (record,) = this.records
    came = {name.split()[1]: outcome for name, outcome in record.check.outcomes.items()}
    bad = dict.fromkeys(("raise", "nan", "kill"), "failed")
    assert came == {"quick": "passed", "slow": "passed", **bad}
    assert record.status == "invalid"
    assert "RuntimeError: planted" in record.check.output
    assert any("raise" in line and "planted" in line for line in lines)
    again, _ = this_run(store)
    assert runs.smoke(again, 1e6) == 0
    assert again.records == []


def test_variants_that_found_no_time_are_left(machine, store, toy, monkeypatch):
    clock, outcome = Clock(), runs._outcome

    def and_time_is_over(record):
        clock.at = 100.0
        os.kill(os.getpid(), signal.SIGTERM)
        return outcome(record)

    monkeypatch.setattr(runs, "_planned", lambda this, name, profile: toy("quick", "hang"))
    monkeypatch.setattr(runs, "_outcome", and_time_is_over)
    monkeypatch.setattr("suite.local.GRACE_S", 0.2)
    this, _ = this_run(store, seconds=100, clock=clock)
    assert runs.smoke(this, 100) == 2
    assert this.records[0].check.left == 2
    monkeypatch.setattr(runs, "_planned", lambda this, name, profile: toy("quick"))
    monkeypatch.setattr(runs, "_outcome", outcome)
    again, _ = this_run(store)
    assert runs.smoke(again, 1e6) == 0
    assert [*again.records[0].check.outcomes.values()] == ["passed"]


def test_what_has_run_is_known_though_the_rest_failed(machine, store, toy, monkeypatch):
    outcome, seen = runs._outcome, []

    def and_fail(record):
        seen.append(record)
        return outcome(record) if len(seen) < 2 else operator.truediv(1, 0)

    monkeypatch.setattr(runs, "_planned", lambda this, name, profile: toy("quick", "slow", "nan"))
    monkeypatch.setattr(runs, "_outcome", and_fail)
    monkeypatch.setattr("suite.local.GRACE_S", 0.2)
    this, _ = this_run(store)
    with pytest.raises(ZeroDivisionError):
        runs.smoke(this, 1e6)
    (record,) = this.records
    assert (len(record.check.outcomes), record.check.left) == (1, 2)


def test_without_matplotlib_variants_are_started_without_their_figures(
    machine, store, toy, monkeypatch
):
    seen = []

    def each(self, specs, listen):
        seen.append(self.figures)
        yield from ()

    monkeypatch.setattr("suite.local.Campaign.each", each)
    monkeypatch.setattr(runs, "_planned", lambda this, name, profile: toy("quick"))
    for _ in range(2):
        runs.smoke(this_run(store)[0], 1e6)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert seen == [True, False]


def test_a_package_that_is_missing_is_no_failure_of_a_run():
    def ended(status, detail=""):
        return runs._outcome(SimpleNamespace(status=status, status_detail=detail))

    assert ended("crashed", "ModuleNotFoundError: No module named 'ray'") == "skipped"
    assert ended("infra_error", "the data set is not here") == "skipped"
    assert ended("crashed", "RuntimeError: two devices") == "failed"
    assert ended("target_missed") == "passed"


def test_a_machine_without_a_gpu_is_told_what_it_lacks():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for words in (["suite", "gpu"], ["suite.gpu"], ["suite", "bench", "tune"]):
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "lacks a CUDA device that PyTorch can use" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("minutes", [0, -1, 8.6, float("nan")])
def test_a_budget_out_of_range_is_an_error(minutes):
    with pytest.raises(ValueError, match="--budget-minutes"):
        command.command(minutes, "anywhere", ())


ABSENT = (
    *("typer", "rich", "ray", "gymnasium", "pandas", "matplotlib", "scipy", "sklearn"),
    *("torchvision", "optuna", "pooch", "platformdirs", "PIL"),
)


def test_the_command_needs_few_packages():
    """What a bare machine lacks must not be imported on the way to the first stage."""
    code = (
        "import sys\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"
        "import suite.gpu.command, suite.bench, suite.local, suite.store\n"
        "import kernels.bench.tune, kernels.bench.timing\n"
        "from kernels.bench.workload import workloads\n"
        "w = next(w for w in workloads('cpu') if w.op == 'dnc.usage')\n"
        "print(len(suite.bench.run([suite.bench.Session(w, ('torch',))],"
        " suite.store.Store('memory://x'), rounds=1)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.strip() == "1", done.stderr


def test_data_that_were_carried_there_need_few_packages(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "values.npy").touch()
    code = (
        "import sys\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"
        "import numpy, torch\n"
        "from suite import data, run\n"
        "from suite.data.entry import Decoded, Entry, Layout, Pin\n"
        "values = (numpy.zeros((1, 2), 'float32'), numpy.zeros(1, 'float32'))\n"
        "def read(folder): return Decoded(values, values)\n"
        "for name in ('there', 'nowhere'):\n"
        "    layout = Layout((name,), (Pin('values.npy'),), read)\n"
        "    data.CATALOGUE[name] = Entry(name, 'synthetic', 'none', (layout,), download=print)\n"
        "print(data.where('nowhere'), data.where('there'))\n"
        "print(run.Context(torch.device('cpu'), 0).data('there').n_items)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"SUITE_DATA": str(tmp_path)},
    )
    assert done.stdout.split() == ["None", str(tmp_path / "there"), "2"], done.stderr


def test_the_barrier_compiles_for_a_gpu_that_is_not_there(tmp_path):
    """In a process of its own: Triton decides at a kernel's definition whether to interpret it."""
    code = (
        "import json, torch\n"
        "from kernels import compile_gate as gate\n"
        "from kernels.bench.triton import _barriers\n"
        "pointer = gate.Pointer(torch.int32)\n"
        "options = {'MEETINGS': 1000, 'PROGRAMS': 132, 'launch_cooperative_grid': True}\n"
        "launch = gate.Launch('barriers', 'x', _barriers, (pointer, pointer),"
        " tuple(options.items()))\n"
        "print(json.dumps(gate.compiled(launch, 90)))\n"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "TRITON_CACHE_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    row = json.loads(done.stdout or "{}")
    assert row.get("opcodes", {}).get("BAR"), done.stderr
    assert row["stack_bytes"] == 0
