"""Joules and money: counted where they can be, explained where not, and never guessed."""

import itertools
import sys
import types
from pathlib import Path

import pytest
from record_factory import make_record

from suite import energy, run
from suite.record import parse
from suite.report import files
from suite.report.tables import derive

RECORDS = Path(__file__).parents[2] / "results" / "records"


@pytest.fixture
def nvml(monkeypatch):
    """NVML with one GPU, whose counter goes up by a quarter of a joule at each look."""
    fake = types.ModuleType("pynvml")
    fake.NVMLError = type("NVMLError", (Exception,), {})
    looks = itertools.count(1000, 250)
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: {b"GPU-1234": "board"}[uuid]
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda board: next(looks)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(energy, "_uuid", lambda device: b"GPU-1234")
    return fake


def test_the_counter_of_the_board_is_read_in_joules(nvml):
    read, method = energy.gpu_joules("cuda:0")
    assert method == energy.COUNTER
    assert [read(), read()] == [1.25, 1.5]


def test_why_nothing_is_measured(nvml, monkeypatch):
    assert energy.gpu_joules("cpu") == (
        None,
        "not measured on cpu: no counter that every processor has",
    )
    assert "0.5 of a GPU" in energy.gpu_joules("cuda", share=0.5)[1]

    def unsupported(board):
        raise nvml.NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert energy.gpu_joules("cuda") == (None, "not measured: NVML says Not Supported")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in energy.gpu_joules("cuda")[1]


@pytest.fixture
def metered(monkeypatch):
    """A counter that goes up by a joule whenever a part of a run ends."""
    looks = itertools.count()
    monkeypatch.setattr(run.energy, "gpu_joules", lambda *_: (lambda: float(next(looks)), "fake"))


def test_a_record_says_what_the_run_and_its_way_to_the_target_used(metered, toy):
    [spec] = toy(profile="laptop")
    record = run.execute(spec, price_per_hour=7200.0)
    rows = record.train.curve["step"]
    at = rows.index(record.train.crossing.hi_step)
    # Training is one of the parts that end at each row.
    assert record.cost.energy_to_target_j == at + 1
    assert record.cost.energy_j > 2 * len(rows)
    assert record.cost.energy_method == "fake"
    assert record.cost.usd == pytest.approx(2 * record.clock.wall_s)
    assert record.cost.price_source == "7200 USD an hour, given with the run"


def _half(spec):
    attempt = run.Attempt(spec)
    rows = attempt.rows()
    next(rows), next(rows)
    return attempt.snapshot()


def test_joules_go_on_after_a_restart(metered, toy):
    [spec] = toy(profile="laptop")
    snapshot = _half(spec)
    attempt = run.Attempt(spec, snapshot=snapshot)
    before = sum(snapshot["spent_j"].values())
    list(attempt.rows())
    whole = attempt.end()
    assert whole.cost.energy_j > before > 0
    assert attempt.trace.joules == sorted(attempt.trace.joules)
    assert len(attempt.trace.joules) == len(attempt.trace.rows) == 8


def test_joules_of_a_run_that_began_uncounted_are_not_those_of_the_rest(toy, monkeypatch):
    [spec] = toy(profile="laptop")
    snapshot = _half(spec)
    monkeypatch.setattr(run.energy, "gpu_joules", lambda *_: (lambda: 1.0, "fake"))
    attempt = run.Attempt(spec, snapshot=snapshot)
    list(attempt.rows())
    cost = attempt.end().cost
    assert (cost.energy_j, cost.energy_to_target_j) == (None, None)
    assert "began where" in cost.energy_method


def test_records_from_before_are_read():
    path = next(iter(sorted(RECORDS.glob("*/*.json"))))
    assert parse(path.read_text()).cost.energy_to_target_j is None


def test_tables_have_columns_for_what_was_measured_only():
    plain = make_record(crossing_step=20)
    assert "to target usd" not in _tables(plain)
    assert "Energy to target" not in _tables(plain)
    cost = {
        "energy_j": 3000.0,
        "energy_to_target_j": 1500.0,
        "energy_method": "fake",
        "usd": 0.29,
        "price_source": "72 USD an hour, given with the run",
    }
    text = _tables(make_record(crossing_step=20, cost=cost))
    # 14.5 s cost 29 cents; half of the 12.5 s of training are a way to the target of 12.5 cents.
    assert "| Energy to target | Cost to target |" in text
    assert "| 1.50 kJ | $0.125 |" in text
    assert "train_to_target_j,train_to_target_usd" in text


def _tables(record):
    return "".join(files.render(derive([record])).values())
