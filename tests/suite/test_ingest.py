import json
import subprocess
import sys
from pathlib import Path

import pytest

from suite import report
from suite.ingest import ingest
from suite.store import Store

ROOT = Path(__file__).parent.parent.parent
ACCURACY = {
    "of": "values",
    "reference": "reference in float64",
    "err_rel": 1e-7,
    "ratio_vs_eager": 1.0,
    "limit": 5e-6,
    "ok": True,
    "shape": {"B": 2},
}
OURS = {
    "op": "dnc.link",
    "provider": "torch",
    "mode": "full",
    "dtype": "float32",
    "case": "copy task",
    "shape": {"B": 2},
    "origin": "synthetic",
    "accuracy": [ACCURACY],
}


def benchmark(name="test_a", own=None, data=(0.1, 0.2)):
    info = {"ratio": {"estimate": 2.0}, **({"fdl": own} if own else {})}
    stats = {"data": list(data)} if data else {}
    return {"fullname": f"tests/bench/b.py::{name}", "param": None, "extra_info": info} | {
        "stats": stats
    }


def file(tmp_path, *benchmarks, **more):
    content = {
        "datetime": "2026-11-25T10:00:00.5+01:00",
        "machine_info": {"python_version": "3.12.1", "cpu": {"brand_raw": "A CPU", "count": 4}},
        "commit_info": {"id": "a" * 40, "dirty": False},
        "version": "5.3.1",
        "benchmarks": list(benchmarks),
        **more,
    }
    path = tmp_path / "b.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def test_ours_become_records_with_what_they_measured(tmp_path, store):
    (found,) = ingest(file(tmp_path, benchmark(own=OURS)), store)
    assert found.micro.op == "dnc.link"
    assert found.micro.producer == "pytest-benchmark"
    assert found.micro.timings[0].samples_s == [0.1, 0.2]
    assert found.ended_utc == "2026-11-25T09:00:00.500Z"
    assert found.nodes[0].cpu_model == "A CPU"
    assert found.env.python == "3.12.1"
    assert found.code.commit == "a" * 40
    assert found.extra["extra_info"] == {"ratio": {"estimate": 2.0}}
    assert [r.record_id for r in store.scan()] == [found.record_id]


def test_the_same_file_twice_is_the_same_records(tmp_path, store):
    path = file(tmp_path, benchmark(own=OURS), benchmark("test_b"))
    assert [r.record_id for r in ingest(path, store)] == [r.record_id for r in ingest(path, store)]
    assert len(list(store.scan())) == 2


def test_foreign_benchmarks_are_marked_and_in_no_table(tmp_path, store):
    unproven = {k: v for k, v in OURS.items() if k != "accuracy"}
    made = ingest(file(tmp_path, benchmark(), benchmark("test_b", own=unproven)), store)
    assert [r.micro.producer for r in made] == ["foreign", "foreign"]
    built = report.build(store)
    assert "tables/kernels.md" not in built.files
    assert "2 foreign benchmarks left out" in built.files["tables/index.md"]


def test_what_is_wrong_has_no_time(tmp_path, store):
    wrong = OURS | {"accuracy": [ACCURACY | {"ok": False, "err_rel": 1.0}]}
    (found,) = ingest(file(tmp_path, benchmark(own=wrong)), store)
    assert found.status == "invalid"
    assert found.micro.timings == []


def test_benchmarks_without_a_time_show(tmp_path, store):
    ids = [f"tests/bench/b.py::test_{x}" for x in "abcd"]
    lists = {"collected": ids, "errored": [ids[1]], "skipped": [ids[2]]}
    made = ingest(file(tmp_path, benchmark(own=OURS), fdl=lists), store)
    assert {r.extra["benchmark"]: r.status for r in made} == dict(
        zip(ids, ("ok", "crashed", "skipped", "crashed"), strict=True)
    )
    assert len(list(store.scan())) == 4
    assert "it was collected and never ran" in report.build(store).files["tables/kernels.md"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "no list 'benchmarks'"),
        ('{"benchmarks": 3}', "no list 'benchmarks'"),
        ('{"benchmarks": []}', "datetime"),
        ('{"benchmarks": [1], "datetime": "2026-11-25T10:00:00", "machine_info": {}}', "complete"),
    ],
)
def test_a_bad_file_is_one_clear_error_and_nothing_is_written(tmp_path, store, text, expected):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected) as caught:
        ingest(path, store)
    assert "bad.json" in str(caught.value)
    assert list(store.scan()) == []


@pytest.mark.parametrize(
    "bad", [{"data": None}, {"data": (0.1, -1.0)}, {"own": OURS | {"mode": "x"}}]
)
def test_one_bad_benchmark_keeps_all_out(tmp_path, store, bad):
    with pytest.raises(ValueError, match=r"b\.json"):
        ingest(file(tmp_path, benchmark(own=OURS), benchmark("test_b", **bad)), store)
    assert list(store.scan()) == []


def test_no_file_is_the_machines_error(tmp_path, store):
    with pytest.raises(OSError, match="no such"):
        ingest(tmp_path / "no such", store)


def test_a_benchmark_of_this_project_goes_the_whole_way(tmp_path, store):
    path = tmp_path / "real.json"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--benchmark-only"]
    command += ["-k", "against_the_reference and ntm.address-copy"]
    command += [f"--benchmark-json={path}", "tests/bench/test_kernels.py"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = ingest(path, store)
    assert (found.micro.op, found.micro.provider, found.status) == ("ntm.address", "torch", "ok")
    assert {a.of for a in found.micro.accuracy} == {"values", "gradients"}
    assert found.env.torch.version != "unknown"
