import dataclasses
import math
import multiprocessing
import os
import signal

import pytest
import torch

from suite import checkpoint, run, task
from suite.plan import Spec
from suite.store import Store
from suite.task import Target


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 4


def _task(body, config=None, **kw):
    return task.Task(
        config or Config(), body, (), {"paper": {}}, {"v": {}}, kw.pop("targets", {}), **kw
    )


def _measure(body, *, target=None, stop=False, ctx=None, save=None):
    t, trace = _task(body), run.Trace()
    ctx = ctx or run.Context(torch.device("cpu"), 0)
    list(run.measure(t, t.config, ctx, trace, timed_to=target, stop_at_target=stop, save=save))
    return ctx, trace


def test_the_clock_has_no_gap_and_knows_its_parts(monkeypatch):
    now = iter(range(0, 1000, 1))
    monkeypatch.setattr(run.time, "perf_counter", lambda: float(next(now)))

    def body(cfg, ctx):
        next(now), next(now)
        yield
        next(now)
        yield lambda: {"step": next(now) * 0 + 1}

    ctx = run.Context(torch.device("cpu"), 0)
    ctx.stopwatch.since = 0.0
    _measure(body, ctx=ctx)
    clock = ctx.stopwatch.read()
    assert clock.setup_s > 0
    assert clock.train_s > 0
    assert clock.eval_s > 0
    assert clock.wall_s == clock.parts_s


def test_evaluating_more_often_changes_no_training():
    def body(every):
        def steps(cfg, ctx):
            yield
            for step in range(1, 9):
                draws.append(float(torch.rand(())))
                if step % every == 0:
                    yield lambda step=step: {
                        "step": step,
                        "noise": torch.rand(()) + torch.rand(3).sum(),
                    }

        return steps

    seen = []
    for every in (1, 4, 8):
        draws = []
        checkpoint.seed_everything(0)
        _measure(body(every))
        seen.append(draws)
    assert seen[0] == seen[1] == seen[2]


def test_metrics_become_floats():
    def body(cfg, ctx):
        yield
        yield {"step": 1, "a": torch.tensor(0.5), "b": True}

    _, trace = _measure(body)
    assert trace.rows[0] | {"train_s": 0} == {"step": 1.0, "a": 0.5, "b": 1.0, "train_s": 0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_ends_the_run(value):
    def body(cfg, ctx):
        yield
        yield {"step": 1, "loss": 1.0}
        yield {"step": 2, "loss": value}
        raise AssertionError("went on")

    with pytest.raises(run.NotFinite, match="loss at step 2"):
        _measure(body)


def _rows(*values):
    return [{"step": 10 * (i + 1), "a": v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "lo", "hi"),
    [
        ((0.1, 0.9, 0.95), 10, 20),
        ((0.9, 0.1, 0.9, 0.9), 20, 30),
        ((0.9, 0.9), 0, 10),
        ((0.9,), 0, 10),
    ],
)
def test_crossing_is_the_interval_before_two_hits(values, lo, hi):
    crossed = run.crossing(_rows(*values), Target("a", 0.9, "max", "s"))
    assert (crossed.lo_step, crossed.hi_step) == (lo, hi)


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.9, 0.1, 0.9), (0.1,), ()])
def test_one_hit_among_several_is_no_crossing(values):
    assert run.crossing(_rows(*values), Target("a", 0.9, "max", "s")) is None


def test_stopping_at_the_target():
    def body(cfg, ctx):
        yield
        for step in range(1, 100):
            yield {"step": step, "a": step}

    _, trace = _measure(body, target=Target("a", 5, "max", "s"), stop=True)
    assert [r["a"] for r in trace.rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_saved_and_resumed_run_ends_in_the_same_bytes(toy, tmp_path, after):
    spec = toy()[0]
    whole = run.execute(spec)

    store = Store(str(tmp_path))
    seen = []

    def stop(kind, content):
        seen.append(kind)
        if seen.count("row") == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(run.Interrupted):
        run.execute(spec, store=store, report=stop)
    assert list(store.scan()) == []
    resumed = run.execute(spec, store=store)
    assert resumed.train.params_sha256 == whole.train.params_sha256
    kept = {k: v for k, v in whole.train.curve.items() if k != "train_s"}
    assert {k: v for k, v in resumed.train.curve.items() if k != "train_s"} == kept
    assert resumed.clock.recovery_s > 0
    assert store.fs.glob(store.path("checkpoints/*")) == []


def _run_to_death(spec, uri):
    run.execute(spec, store=Store(uri), save_every_s=0.0)


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_killed_at_once_and_run_again_ends_in_the_same_bytes(toy, tmp_path, at):
    whole = run.execute(toy()[0])
    sign = {"fault_at": at, "sign": str(tmp_path / "sign")}
    spec, uri = toy("kill_once", overrides=sign)[0], str(tmp_path / "store")
    child = multiprocessing.get_context("spawn").Process(target=_run_to_death, args=(spec, uri))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    again = run.execute(spec, store=Store(uri))
    assert again.train.params_sha256 == whole.train.params_sha256
    assert again.train.final["mean"] == whole.train.final["mean"]
    assert (again.clock.recovery_s > 0) == (at > 1)


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(toy):
    one, same, other = (run.execute(s) for s in (*toy(), *toy(), *toy(seeds=[1])))
    assert one.train.params_sha256 == same.train.params_sha256 != other.train.params_sha256


@pytest.mark.parametrize(
    ("variant", "status", "detail"),
    [
        ("raise", "crashed", r"RuntimeError: planted \(linear.py:\d+\)"),
        ("memory", "oom", "MemoryError: planted"),
        ("nan", "nan", "loss at step 3"),
    ],
)
def test_what_goes_wrong_is_a_status(toy, variant, status, detail):
    import re

    record = run.execute(toy(variant)[0])
    assert record.status == status
    assert re.search(detail, record.status_detail)
    assert len(record.train.curve["step"]) == (3 if variant == "nan" else 2)


def ended_with(error, hidden=None):
    """The status of a run that ended in an error, which hides another."""
    error.__context__ = hidden
    try:
        raise error
    except Exception as raised:
        return run._failure(raised)[0]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_whoever_says_it_a_lack_of_memory_is_one(text):
    assert ended_with(RuntimeError(text)) == "oom"


def test_a_lack_of_memory_is_seen_through_the_capture_that_it_ended():
    capture = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert ended_with(capture, torch.OutOfMemoryError("no")) == "oom"
    assert ended_with(capture, RuntimeError("no")) == "crashed"
    assert ended_with(capture) == "crashed"
    assert ended_with(RuntimeError("another"), torch.OutOfMemoryError("no")) == "crashed"


def test_a_package_that_is_not_there_is_the_machines_fault():
    assert ended_with(ModuleNotFoundError("No module named 'gymnasium'")) == "infra_error"
    assert ended_with(ImportError("cannot import name 'x' from 'y'")) == "crashed"


def test_a_nan_is_null_in_the_record(toy):
    record = run.execute(toy("nan")[0])
    assert record.train.curve["loss"][-1] is None
    assert "NaN" not in record.to_json()


def test_a_deadline_ends_the_run_at_a_yield(toy):
    record = run.execute(toy()[0], timeout_s=1e-9)
    assert record.status == "timeout"
    assert len(record.train.curve["step"]) == 1


def test_figures_are_drawn_off_the_clock_and_only_when_wanted(tmp_path):
    from matplotlib.figure import Figure

    def body(cfg, ctx):
        yield
        first = torch.rand(())
        ctx.figure("picture", lambda: (torch.rand(5), Figure())[1])
        yield {"step": 1, "first": first, "second": torch.rand(())}

    made = []
    for figures in (True, False):
        checkpoint.seed_everything(0)
        ctx = run.Context(torch.device("cpu"), 0, store=Store(str(tmp_path)), figures=figures)
        _, trace = _measure(body, ctx=ctx)
        made.append((trace.rows[0]["second"], [a.name for a in ctx.artifacts]))
    assert made[0][0] == made[1][0]
    assert [names for _, names in made] == [["picture.png"], []]


def test_keeping_what_cannot_be_kept_is_an_error():
    ctx = run.Context(torch.device("cpu"), 0)
    with pytest.raises(TypeError, match="cannot keep a set"):
        ctx.keep(things={1, 2})


def test_snapshots_carry_no_code(toy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    content = checkpoint.pack({"kept": {"x": Evil()}})
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.unpack(content)


@pytest.mark.parametrize("tool", ["torch", "numpy", "python"])
def test_random_states_come_back(tool):
    import random

    import numpy as np

    draw = {"torch": lambda: torch.rand(2).tolist(), "python": random.random}
    draw["numpy"] = lambda: np.random.rand(2).tolist()  # noqa: NPY002
    checkpoint.seed_everything(3)
    random.gauss(0, 1)
    packed = checkpoint.pack({"random": checkpoint.random_state()})
    expected = [draw[tool]() for _ in range(4)]
    checkpoint.set_random_state(checkpoint.unpack(packed)["random"])
    assert [draw[tool]() for _ in range(4)] == expected


def test_a_spec_of_another_device_is_not_bitwise(toy):
    spec = dataclasses.replace(toy()[0], device="meta")
    assert isinstance(spec, Spec)
    draft = run._envelope(spec, task.find(spec.task), spec.config(), None, None)
    assert draft["determinism"] == "seeded"
