import json
import os
import subprocess
import sys

import pytest

from kernels import compile_gate

ROW = {"registers": 40, "stack_bytes": 0, "shared_bytes": 1024, "warps": 4, "opcodes": {"HGMMA": 8}}


def test_a_row_that_spills_or_outgrows_shared_memory_is_wrong():
    assert compile_gate.problems(ROW, 90) == []
    assert compile_gate.problems(ROW | {"stack_bytes": 8}, 90) == ["spills 8 bytes to the stack"]
    large = ROW | {"shared_bytes": 200_000}
    assert compile_gate.problems(large, 90) == []
    assert compile_gate.problems(large, 80) == ["needs 200000 bytes of shared memory"]


def test_every_difference_is_named():
    stored = {"gone": ROW, "same": ROW, "other": ROW}
    found = {"same": ROW, "new": ROW, "other": ROW | {"registers": 41, "opcodes": {"HMMA": 8}}}
    assert list(compile_gate.differences(stored, found)) == [
        "gone: in the stored table, but no longer compiled",
        "new: not in the stored table",
        "other: opcodes {'HGMMA': 8} -> {'HMMA': 8}, registers 40 -> 41",
    ]


def test_what_a_compiler_dies_of_is_a_row():
    def fails():
        raise RuntimeError("no such register\nmore")

    assert "no such register" in compile_gate._in_own_process(fails)["failed"]
    assert "died" in compile_gate._in_own_process(lambda: os.kill(os.getpid(), 9))["failed"]
    assert compile_gate._in_own_process(lambda: ROW) == ROW


def test_every_folder_with_cases_is_compiled():
    assert {"dnc", "ntm"} <= set(compile_gate.folders())


@pytest.mark.slow
def test_the_command_compiles_compares_and_accepts(tmp_path):
    """On one op; the whole table is compared by the gate itself."""

    def gate(*more):
        command = [sys.executable, "-m", "kernels.compile_gate", "--arch=90", "--op=ntm"]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [*command, f"--tables={tmp_path}", *more],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = gate()
    assert code == 1, said
    assert "no stored table" in said
    code, said = gate("--accept")
    assert code == 0, said
    assert "launches as stored" in said
    [table] = tmp_path.iterdir()
    rows = json.loads(table.read_text())
    name = sorted(rows)[0]
    rows[name]["registers"] += 1
    table.write_text(json.dumps(rows))
    code, said = gate()
    assert code == 1, said
    assert f"{name}: registers" in said


def test_the_command_line_passes_on_what_is_not_known():
    command = [sys.executable, "-m", "suite", "bench", "compile", "--op", "fft"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'fft'" in done.stderr
