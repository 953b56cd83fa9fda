"""Faults on purpose: struck runs end as runs left alone do, and the record says what it cost."""

import pytest
from fault_checks import survived
from record_factory import make_record

from suite import faults, report
from suite.faults import Injection, Setting
from suite.record import Fault, FaultInfo
from suite.store import Store


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker_kil@0.4", "'worker_kill'"),
        ("worker_kill", "between 0 and 1"),
        ("worker_kill@1.4", "between 0 and 1"),
        ("worker_kill@0.0", "between 0 and 1"),
        ("worker_kill@half", "between 0 and 1"),
    ],
)
def test_what_is_no_fault_is_a_mistake(text, expected):
    with pytest.raises(ValueError, match=expected):
        faults.parse(text)


@pytest.mark.parametrize(
    ("at", "n_rows", "row"),
    [(0.4, 10, 4), (0.41, 10, 5), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1)],
)
def test_a_fault_strikes_in_the_middle(at, n_rows, row):
    assert Injection("worker_kill", at).row(n_rows) == row


def test_a_run_of_one_row_has_no_middle():
    with pytest.raises(ValueError, match="1 row"):
        Injection("worker_kill", 0.5).row(1)


@pytest.mark.parametrize("on", ["local", "ray"])
def test_a_node_is_not_killed_where_it_is_the_only_one(on, toy, tmp_path):
    setting = Setting(str(tmp_path / "store"), on)
    with pytest.raises(ValueError, match="--on ray:2"):
        list(faults.inject(toy(), [Injection("node_kill", 0.4)], setting))
    assert not (tmp_path / "store").exists()


def test_worker_and_driver_lost_on_one_machine(toy, tmp_path):
    uri = str(tmp_path / "store")
    store, said = Store(uri), []
    setting = Setting(uri, save_every_s=0.0)
    both = [Injection("worker_kill", 0.5), Injection("driver_kill", 0.5)]
    specs = toy("quick", profile="laptop")
    records = list(faults.inject(specs, both, setting, say=said.append))
    assert [r.faults[0].kind for r in records] == ["worker_kill", "driver_kill"]
    # The row is reported before its snapshot is written, so the fault costs one step at least.
    survived(records, uri, lost_steps=1)
    again = list(faults.inject(specs, both, setting, say=said.append))
    assert [r.record_id for r in again] == [r.record_id for r in records]
    assert said[-1].endswith("already done")
    # A fault is no result of the run: the run itself is still to be done.
    assert store.attempts(specs[0].task, [specs[0].run_id]) == {}


def test_what_a_worker_had_not_saved_is_lost_with_it(toy, tmp_path):
    uri = str(tmp_path / "store")
    worker_kill = [Injection("worker_kill", 0.5)]
    setting = Setting(uri, save_every_s=1e9)
    records = list(faults.inject(toy("quick", profile="laptop"), worker_kill, setting))
    assert records[0].faults[0].kind == "worker_kill"
    survived(records, uri, lost_steps=4)


def _struck(**changes):
    info = {
        "on": "ray:2",
        "at": 0.4,
        "step": 400,
        "of_steps": 1000,
        "resumed_step": 350,
        "lost_steps": 50,
        "detected_s": 2.0,
        "recovery_s": 12.5,
        "clean_wall_s": 100.0,
        "wall_s": 125.0,
        "goodput": 0.8,
        "clean_to_target_s": 60.0,
        "to_target_s": 84.0,
        "same_params": True,
    }
    fault = Fault(
        t_s=40.0,
        kind="node_kill",
        injected=True,
        detected_s=2.0,
        recovered_s=12.5,
        lost_steps=50,
    )
    return make_record(
        kind="fault", faults=[fault], fault=FaultInfo(**(info | changes)), run_id="f" * 64
    )


def test_the_report_tabulates_faults_and_judges_without_them(tmp_path):
    store = Store(str(tmp_path))
    for record in (_struck(), make_record(seed=0), make_record(seed=1), make_record(seed=2)):
        store.put(record)
    made = report.write(store)
    table = (tmp_path / "tables" / "faults.md").read_text()
    for cell in ("`node_kill@0.4`", "400 of 1,000", "12.5 s", "0.8", "24.0 s", "yes, bit for bit"):
        assert cell in table
    assert "node_kill@0.4" in (tmp_path / "index.html").read_text()
    assert "faults.md" in (tmp_path / "tables" / "index.md").read_text()
    assert sum(row.attempted for row in made.tables.rows) == 3
    assert report.check(store) == []
    for path in (tmp_path / "records").rglob("*.json"):
        if '"kind": "fault"' in path.read_text():
            path.unlink()
    report.write(store)
    assert not (tmp_path / "tables" / "faults.md").exists()


def test_of_the_same_fault_the_newest_counts():
    old, new = _struck(), _struck(recovery_s=3.0)
    assert len(report.faults.newest([old, new])) == 1
