"""Records of times of kernels, and the tables that they lead to."""

import dataclasses
import json

import pytest
import torch
from record_factory import make_record
from typer.testing import CliRunner

from kernels import tuning
from kernels.bench.accuracy import Accuracy
from kernels.bench.measure import Outcome
from kernels.bench.timing import Timed, Timing
from suite import bench, report
from suite.cli import app
from suite.record import parse
from suite.store import Store

SMALL = bench.Request(ops=("dnc.usage",), cases=("copy task",), providers=("reference", "torch"))
SAMPLES = {"reference": [2.0, 2.2, 2.1, 2.0, 2.3, 2.1, 2.4, 2.0], "torch": [1.0] * 8}


def accuracy(of="values", ok=True):
    error = 1e-7 if ok else 1.0
    return Accuracy(of, "reference in float64", error, 1e-7, 5e-6, {"B": 1})


def good(name, samples=None):
    timings = [Timing("wall", "warm", list(samples or SAMPLES[name]))]
    return Outcome(name, accuracy=[accuracy()], timed=Timed(timings))


class Fake:
    """Stands for what checks and times; notes what it was asked for."""

    def __init__(self, **made):
        self.asked, self.made = [], made

    def __call__(self, workload, names, rounds):
        self.asked.append((workload.op, workload.name, workload.mode, tuple(names)))
        return [self.made.get(name) or good(name) for name in names]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def stored(store):
    return list(store.scan())


def test_a_record_of_each_provider(store):
    made = bench.run(SMALL.sessions(), store, measured=Fake())
    assert sorted(r.record_id for r in stored(store)) == sorted(r.record_id for r in made)
    assert [(r.impl, r.micro.mode) for r in made] == [
        ("reference", "forward"),
        ("torch", "forward"),
        ("reference", "full"),
        ("torch", "full"),
    ]
    first = made[0]
    assert first.name.startswith("records/kernels.dnc.usage/")
    assert first.micro.timings[0].samples_s == SAMPLES["reference"]
    assert first.micro.shape == {"B": 16, "N": 16, "W": 16, "R": 1}
    assert first.micro.dtype == "float32"
    assert first.micro.work.bytes > 0
    assert first.micro.session == made[1].micro.session != made[2].micro.session
    assert parse(first.to_json()) == first


def test_what_the_store_holds_is_not_measured_again(store):
    bench.run(SMALL.sessions(), store, measured=Fake())
    again = Fake()
    assert bench.run(SMALL.sessions(), store, measured=again) == []
    assert again.asked == []
    assert len(bench.run(SMALL.sessions(), store, measured=again, fresh=True)) == 4


def test_a_missing_provider_makes_the_whole_session_again(store):
    bench.run(SMALL.sessions(), store, measured=Fake())
    more = dataclasses.replace(SMALL, providers=("reference", "torch", "compile"))
    again = Fake(compile=good("compile", [1.5] * 8))
    assert len(bench.run(more.sessions(), store, measured=again)) == 6
    assert all(names == ("reference", "torch", "compile") for *_, names in again.asked)
    # A part of what was measured together is there, too.
    assert bench.run(SMALL.sessions(), store, measured=again) == []


@pytest.mark.parametrize("status", ["invalid", "skipped", "oom", "crashed"])
def test_without_a_time_there_is_a_status(store, status):
    failed = Outcome("torch", status, "why", accuracy=[accuracy(ok=False)])
    made = bench.run(SMALL.sessions(), store, measured=Fake(torch=failed))
    wrong = [r for r in made if r.impl == "torch"]
    assert [(r.status, r.status_detail, r.micro.timings) for r in wrong] == 2 * [
        (status, "why", [])
    ]
    again = Fake()
    bench.run(SMALL.sessions(), store, measured=again)
    # A crash may have been the machine's.
    assert bool(again.asked) == (status == "crashed")


def test_a_session_that_loses_the_gpu_is_the_last_and_is_not_measured_again(store):
    lost = Outcome("torch", "crashed", "an illegal access", lost=True)
    made = bench.run(SMALL.sessions(), store, measured=Fake(torch=lost))
    assert [(r.impl, r.micro.mode) for r in made] == [
        ("reference", "forward"),
        ("torch", "forward"),
    ]
    again = Fake()
    bench.run(SMALL.sessions(), store, measured=again)
    assert [mode for _, _, mode, _ in again.asked] == ["full"]


def test_a_time_without_accuracy_is_no_record(store):
    unproven = dataclasses.replace(good("torch"), accuracy=[accuracy(ok=False)])
    with pytest.raises(ValueError, match="a time without a proof"):
        bench.run(SMALL.sessions(), store, measured=Fake(torch=unproven))
    assert stored(store) == []


def test_ctrl_c_keeps_what_was_measured(store):
    def interrupted(workload, names, rounds):
        if workload.mode == "full":
            raise KeyboardInterrupt
        return [good(name) for name in names]

    with pytest.raises(KeyboardInterrupt):
        bench.run(SMALL.sessions(), store, measured=interrupted)
    assert [r.micro.mode for r in stored(store)] == ["forward", "forward"]
    rest = Fake()
    bench.run(SMALL.sessions(), store, measured=rest)
    assert [mode for _, _, mode, _ in rest.asked] == ["full"]


def test_what_is_too_large_is_recorded_as_skipped_until_the_limit_allows_it(store):
    request = dataclasses.replace(SMALL, ops=("dnc.link",), modes=("full",))
    fake = Fake()
    made = bench.run(request.sessions(), store, measured=fake, most_gflop=1e-9)
    assert {r.status for r in made} == {"skipped"}
    assert fake.asked == []
    assert bench.run(request.sessions(), store, measured=fake, most_gflop=1e-9) == []
    assert len(bench.run(request.sessions(), store, measured=fake)) == 2


def test_changed_code_is_measured_again(store, monkeypatch):
    bench.run(SMALL.sessions(), store, measured=Fake())
    monkeypatch.setattr(bench, "version", lambda op: "0" * 64)
    again = Fake()
    bench.run(SMALL.sessions(), store, measured=again)
    assert len(again.asked) == 2


def test_the_version_is_that_of_all_code_behind_a_number(tmp_path, monkeypatch):
    for name in ("ntm/triton.py", "dnc/triton.py", "dnc/cases.py", "lstm/triton.py", "register.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("from kernels.dnc.triton import content_scores\n")
    (tmp_path / "lstm" / "triton.py").write_text("import torch\n")
    monkeypatch.setattr(bench, "KERNELS", tmp_path)
    changes = {}
    for name in ("dnc/triton.py", "lstm/triton.py", "register.py", "dnc/cases.py"):
        before = {op: bench.version(op) for op in ("ntm.address", "dnc.step", "lstm.lstm")}
        with (tmp_path / name).open("a") as file:
            file.write("x = 1\n")
        changes[name] = {op for op, v in before.items() if bench.version(op) != v}
    assert changes == {
        "dnc/triton.py": {"ntm.address", "dnc.step"},
        "lstm/triton.py": {"lstm.lstm"},
        "register.py": {"ntm.address", "dnc.step", "lstm.lstm"},
        "dnc/cases.py": set(),
    }


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """Writes launch parameters for a kernel of some sizes, on this device or another."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "configs")
    monkeypatch.setattr(tuning, "_file_of", lambda device: "here.json")

    def write(sizes, config, file="here.json"):
        path = tuning.path("dnc.", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"kernel": "dnc.usage_forward", "dtype": "float32"}
        entry |= {"sizes": sizes, "config": config}
        path.write_text(json.dumps({"entries": [entry]}))
        tuning._table.cache_clear()
        tuning._nearest.cache_clear()

    yield write
    tuning._table.cache_clear()
    tuning._nearest.cache_clear()


def test_a_row_is_measured_again_when_its_launch_parameters_change(store, configs):
    request = dataclasses.replace(SMALL, modes=("forward",))
    asked = tuning.Asked("dnc.usage_forward", "float32", {"B": 16, "N": 16}, {"num_warps": 4})
    ours = dataclasses.replace(good("torch"), asked=[asked])

    def made():
        return len(bench.run(request.sessions(), store, measured=Fake(torch=ours)))

    assert made() == 2
    configs({"B": 16, "N": 16}, {"num_warps": 8}, "elsewhere.json")
    assert made() == 0, "another device's"
    configs({"B": 16, "N": 4096}, {"num_warps": 8})
    assert made() == 0, "another size's"
    configs({"B": 16, "N": 16}, {"num_warps": 8})
    assert made() == 2
    assert made() == 0
    kept = [r.kernels.config["dnc.usage_forward"] for r in stored(store) if r.impl == "torch"]
    assert sorted(k["gets"]["num_warps"] for k in kept) == [4, 8]


def test_the_version_counts_launch_parameters_of_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "KERNELS", tmp_path)
    monkeypatch.setattr(bench, "device_name", lambda device: f"GPU of {device}")
    (tmp_path / "configs" / "dnc").mkdir(parents=True)
    (tmp_path / "dnc").mkdir()

    def versions():
        return [bench.version("dnc.usage", device) for device in (None, "here", "there")]

    before = versions()
    (tmp_path / "configs" / "dnc" / "GPU-of-here.json").write_text("{}")
    assert [a == b for a, b in zip(before, versions(), strict=True)] == [True, False, True]


def tables(store):
    return {k: v for k, v in report.build(store).files.items() if "kernels" in k}


def rows(text):
    cells = (line.strip("|\n ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    return [row for row in cells if row[0] not in ("Case", "---")]


def test_tables_show_winners_losers_and_failures(store):
    slow = good("compile", [4.0 * s for s in SAMPLES["reference"]])
    wrong = Outcome("torch", "invalid", "error of values 1.0", accuracy=[accuracy(ok=False)])
    request = dataclasses.replace(
        SMALL, providers=("reference", "torch", "compile"), modes=("forward",)
    )
    bench.run(request.sessions(), store, measured=Fake(compile=slow, torch=wrong))
    found = {row[4]: row for row in rows(tables(store)["tables/kernels.md"])}
    assert found["`reference`"][6] == "2.10 s"
    assert found["`compile`"][8] == "0.25 [0.25, 0.25]"
    assert found["`torch`"][6] == "invalid: error of values 1.0"
    assert "over 5.0e-06" in found["`torch`"][10]


def test_the_ratio_is_that_of_the_rounds(store):
    request = dataclasses.replace(SMALL, modes=("forward",))
    bench.run(request.sessions(), store, measured=Fake())
    ratio = next(r for r in rows(tables(store)["tables/kernels.md"]) if r[4] == "`torch`")[8]
    estimate, low, high = (float(x.strip("[],")) for x in ratio.split())
    assert 2.0 <= low <= estimate <= high <= 2.4


def test_tables_re_derive_and_an_edit_shows(store):
    bench.run(SMALL.sessions(), store, measured=Fake())
    store.put(make_record())
    report.write(store)
    assert report.check(store) == []
    path = store.path("tables/kernels.csv")
    with open(path, "a") as file:
        file.write("more\n")
    assert any("kernels.csv" in problem for problem in report.check(store))


def test_a_store_of_runs_alone_has_no_table_of_kernels(store):
    store.put(make_record())
    assert tables(store) == {}


def test_what_no_provider_was_timed_at_is_named_once(store):
    request = dataclasses.replace(SMALL, ops=("dnc.link",))
    bench.run(request.sessions(), store, most_gflop=1e-9)
    bench.run(SMALL.sessions(), store, measured=Fake())
    made = tables(store)
    link = made["tables/kernels.md"].partition("## `dnc.link`")[2].partition("## `dnc.usage`")[0]
    assert rows(link) == []
    assert link.count("copy task") == link.count("skipped: more than") == 1
    assert "`forward` and `full`" in link
    # The CSV file has every row all the same.
    assert made["tables/kernels.csv"].count("skipped: more than") == 4
    # One provider that was skipped stays beside those that were not.
    some = Outcome("torch", "skipped", "planted")
    bench.run(SMALL.sessions(), store, measured=Fake(torch=some), fresh=True)
    assert tables(store)["tables/kernels.md"].count("skipped: planted") == 2


def test_the_newest_session_speaks(store):
    request = dataclasses.replace(SMALL, modes=("forward",))
    bench.run(request.sessions(), store, measured=Fake())
    newer = Fake(torch=good("torch", [3.0] * 8))
    bench.run(request.sessions(), store, measured=newer, fresh=True)
    found = [r for r in rows(tables(store)["tables/kernels.md"]) if r[4] == "`torch`"]
    assert [row[6] for row in found] == ["3.00 s"]


def test_sizes_of_one_name_are_rows_of_their_own(store):
    (session,) = dataclasses.replace(SMALL, modes=("forward",)).sessions()
    w = session.workload
    wide = dataclasses.replace(w, case=dataclasses.replace(w.case, N=128))
    bench.run([session, dataclasses.replace(session, workload=wide)], store, measured=Fake())
    found = [r for r in rows(tables(store)["tables/kernels.md"]) if r[4] == "`torch`"]
    assert [row[1] for row in found] == ["B16 N16 R1 W16", "B16 N128 R1 W16"]
    assert all(row[8] != "—" for row in found)


def test_a_record_of_a_run_keeps_its_bytes():
    content = json.loads(make_record().to_json())
    assert "micro" not in content
    assert "check" not in content


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"ops": ("dnc.setp",)}, "unknown op 'dnc.setp'; did you mean 'dnc.step'"),
        ({"cases": ("copy tusk",)}, "unknown case 'copy tusk'; did you mean 'copy task'"),
        ({"providers": ("tritn",)}, "unknown provider 'tritn'; did you mean 'triton'"),
        ({"dtype": "float23"}, "unknown dtype 'float23'; did you mean 'float32'"),
        ({"modes": ("ful",)}, "unknown mode 'ful'; did you mean 'full'"),
        ({"ops": ("ntm",), "cases": ("batch of one",)}, "no case of these ops"),
    ],
)
def test_a_wrong_name_is_an_error(request_, expected):
    with pytest.raises(ValueError, match=expected):
        bench.Request(**request_).sessions()


def test_the_command_measures_for_real(tmp_path):
    store = Store(str(tmp_path))
    command = ["bench", "kernels", "--op", "dnc.usage", "--case", "copy task", "--mode", "full"]
    command += ["--provider", "reference", "--provider", "torch", "--device", "cpu"]
    command += ["--rounds", "2", "--store", str(tmp_path)]
    done = CliRunner().invoke(app, command, standalone_mode=False)
    assert done.exception is None, done.output
    assert done.return_value == 0
    found = stored(store)
    assert [r.status for r in found] == ["ok", "ok"]
    for record in found:
        assert {t.timer: len(t.samples_s) for t in record.micro.timings} == {
            "wall": 2,
            "cpu_time": 2,
        }
        assert {a.of for a in record.micro.accuracy} == {"values", "gradients"}
        assert record.kernels.dispatched["dnc.usage"].keys() == {record.impl}
        assert record.micro.resolved == record.impl
        assert record.env.torch.num_threads == torch.get_num_threads()
