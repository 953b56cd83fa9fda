import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def suite(*arguments, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "suite", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **env},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "ch90.liner"], ["unknown task 'ch90.liner'", "did you mean 'ch90.linear'"]),
        (["run", "ch78"], ["unknown task 'ch78'", "Allowed:"]),
        (["run", "ch90", "--variant", "quik"], ["unknown variant 'quik'", "'quick'"]),
        (["run", "ch90", "--profile", "laptob"], ["unknown profile 'laptob'", "'laptop'"]),
        (["run", "ch90", "--impl", "triton"], ["unknown impl 'triton'", "torch"]),
        (["run", "ch90", "--set", "stps=3"], ["unknown field 'stps'", "'steps'"]),
        (["run", "ch90", "--set", "steps"], ["--set 'steps'", "field=value"]),
        (["run", "ch90", "--set", "steps=many"], ["field 'steps' takes a int", "'many'"]),
        (["run", "ch90", "--device", "cuba"], ["unknown device 'cuba'", "cpu"]),
        (["run", "ch90", "--seeds", "4-0"], ["seeds '4-0'"]),
        (["run", "ch90", "--store", "nothing://x"], ["nothing://x"]),
        (["run", "ch90", "--jobs", "0"], ["--jobs", "greater than or equal to 1"]),
        (["run", "ch90", "--profil", "smoke"], ["No such option", "--profile"]),
        (["run", "ch90", "--on", "rya"], ["--on 'rya'", "host:port"]),
        (["run", "ch90", "--gpus", "2"], ["--gpus needs a cluster", "--on ray"]),
        (["run", "ch90", "--on", "ray", "--store", "memory://x"], ["--on local"]),
        (["run", "ch90", "--inject", "worker_kil@0.4"], ["'worker_kil'", "'worker_kill'"]),
        (["run", "ch90", "--inject", "node_kill@0.4"], ["--on ray:2"]),
        (["attribute", "ch90.linear"], ["calls no kernel", "Tasks that do: ch01.matops"]),
        (["run"], ["SELECTION"]),
        (["show", "ch90.liner"], ["unknown task", "'ch90.linear'"]),
        (["list", "--chapter", "77"], ["unknown task 'ch77'"]),
        (["reproduce", "--profile", "big"], ["unknown profile 'big'"]),
        (["data", "fetch", "mnits"], ["unknown data set 'mnits'", "'mnist'"]),
        (["rnu"], ["rnu"]),
    ],
)
def test_bad_input_is_one_clear_error(arguments, expected, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = command_line(*arguments)
    assert code == 2, said
    assert all(e in said for e in expected), said
    assert list(tmp_path.iterdir()) == []


def test_the_shell_sees_the_code_and_one_line(tmp_path):
    done = suite("run", "ch90.liner", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: unknown task 'ch90.liner'")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_no_cluster_there_is_one_clear_error(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, _, said = command_line("run", "ch90", "--profile", "smoke", "--on", address)
    assert code == 4
    assert f"no Ray cluster answers at {address}" in said
    assert list(tmp_path.iterdir()) == []


def test_list_and_its_json(command_line):
    (_, plain, _), (_, machine, _) = command_line("list"), command_line("list", "--json")
    ids = [entry["id"] for entry in json.loads(machine)]
    assert [line.split()[0] for line in plain.splitlines()] == ids
    assert "ch90.linear" in ids


def test_show_says_where_targets_come_from(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = command_line("show", "ch90.linear")
    assert "Variant slow: lr=0.0001" in out
    assert "accuracy ≥ 0.8 (a toy's own bound)" in out
    assert "no run measured" in out


def test_run_then_report_then_check(command_line, tmp_path):
    run = ["run", "ch90.linear", "--profile", "laptop", "--variant", "quick", "--variant", "slow"]
    run += ["--seeds", "0-2", "--store", tmp_path]
    code, _, said = command_line(*run)
    assert code == 0, said
    assert said.count("ok, accuracy") >= 3
    code, shown, said = command_line("report", "--store", tmp_path)
    assert code == 0, said
    assert "REPRODUCED" in shown
    assert "index.html" in shown
    assert command_line("report", "--check", "--store", tmp_path)[0] == 0
    alone = tmp_path / "elsewhere" / "alone.html"
    code, _, said = command_line("report", "--check", "--one-file", alone, "--store", tmp_path)
    assert (code, alone.exists()) == (2, False)
    assert "leave one of them out" in said
    code, shown, _ = command_line("report", "--one-file", alone, "--store", tmp_path)
    assert code == 0
    assert alone.as_uri() in shown
    assert "<title>" in alone.read_text()

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:begin -->\nstale\n<!-- results:end -->\nafter\n")
    into = ["report", "--store", tmp_path, "--into", readme]
    assert command_line(*into, "--check")[0] == 1
    assert command_line(*into)[0] == 0
    assert command_line(*into, "--check")[0] == 0
    assert "(tables/ch90.md)" in readme.read_text()
    assert "stale" not in readme.read_text()

    record = next(tmp_path.glob("records/*/*.json"))
    record.write_text(record.read_text().replace('"attempt": 1', '"attempt": 2'))
    code, _, said = command_line("report", "--check", "--store", tmp_path)
    assert code == 1
    assert record.name in said


def test_a_failed_run_is_an_exit_code(command_line, tmp_path):
    run = ["run", "ch90", "--profile", "smoke", "--variant", "raise", "--store", tmp_path]
    code, _, said = command_line(*run)
    assert code == 3
    assert "RuntimeError: planted" in said
    assert "Traceback" not in said


def test_an_unwritable_store_is_said_once(command_line, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, said = command_line("run", "ch90", "--store", tmp_path / "file" / "store")
    assert code == 4
    assert said.count("cannot write") == 1
    assert "Traceback" not in said


def test_doctor_speaks(command_line, tmp_path):
    code, shown, said = command_line("doctor", "--store", tmp_path)
    assert code == 0, shown + said
    for part in ("torch", "processor", "GPU", "data mnist", "store"):
        assert part in shown


@pytest.fixture
def checkout(tmp_path):
    for package in ("suite", "kernels", "tasks"):
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def test_a_task_is_one_new_file_and_nothing_else(checkout):
    toy = ROOT / "tests" / "toys" / "tasks" / "ch90_toys" / "linear.py"
    chapter = next((checkout / "tasks").glob("ch01_*"))
    shutil.copy(toy, chapter / "dropped.py")
    env = {"PYTHONPATH": str(checkout), "SUITE_STORE": "here"}
    assert "ch01.dropped" in suite("list", cwd=checkout, **env).stdout
    run = ["run", "ch01.dropped", "--profile", "laptop", "--variant", "quick"]
    done = suite(*run, cwd=checkout, **env)
    assert done.returncode == 0, done.stderr
    assert suite("report", cwd=checkout, **env).returncode == 0
    assert "ch01.dropped" in (checkout / "here" / "tables" / "ch01.md").read_text()
    assert "ch01.dropped" in (checkout / "here" / "index.html").read_text()
