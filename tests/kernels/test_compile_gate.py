import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from kernels import compile_gate

ROW = {
    "dots": 2,
    "registers": 40,
    "stack_bytes": 0,
    "shared_bytes": 1024,
    "warps": 4,
    "opcodes": {"HGMMA": 8},
}
# Triton compiles where it was not asked to interpret before it was imported.
COMPILING = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def test_a_row_that_spills_or_outgrows_shared_memory_is_wrong():
    assert compile_gate.problems(ROW, 90) == []
    assert compile_gate.problems(ROW | {"stack_bytes": 8}, 90) == ["spills 8 bytes to the stack"]
    large = ROW | {"shared_bytes": 200_000}
    assert compile_gate.problems(large, 90) == []
    assert compile_gate.problems(large, 80) == ["needs 200000 bytes of shared memory"]


def test_a_row_may_spill_a_little_where_tiles_were_not_chosen_for():
    assert compile_gate.problems(ROW | {"stack_bytes": 24}, 80) == []
    assert compile_gate.problems(ROW | {"stack_bytes": 32}, 80) == ["spills 32 bytes to the stack"]


@pytest.mark.parametrize("architecture", compile_gate.ARCHITECTURES)
def test_tables_of_all_tritons_are_of_the_same_kernels(architecture):
    """One of them is compared with what is compiled here; another that was forgotten shows here."""
    paths = sorted(compile_gate.TABLE.glob(f"sm_{architecture}-triton-*.json"))
    tables = [json.loads(path.read_text()) for path in paths]
    first, *others = [{name: row.get("inputs") for name, row in t.items()} for t in tables]
    assert others
    assert all(other == first for other in others)
    assert not [n for t in tables for n in t if compile_gate.problems(t[n], architecture)]


def test_a_row_whose_products_use_no_tensor_cores_is_wrong():
    wrong = ["computes 2 matrix products without tensor cores"]
    assert compile_gate.problems(ROW | {"opcodes": {"FFMA": 64}}, 90) == wrong
    assert compile_gate.problems(ROW | {"dots": 0, "opcodes": {"FFMA": 64}}, 90) == []


@pytest.mark.parametrize(
    ("operands", "precision", "counts"),
    [
        ("tensor<16x64xbf16> * tensor<64x16xbf16>", "", 1),
        ("tensor<16x64xf16> * tensor<64x16xf16>", "", 1),
        ("tensor<16x16xf64> * tensor<16x16xf64>", "", 1),
        ("tensor<16x16xf32> * tensor<16x16xf32>", ", inputPrecision = tf32x3", 1),
        ("tensor<16x16xf32> * tensor<16x16xf32>", "", 0),
    ],
)
def test_which_products_tensor_cores_can_do(operands, precision, counts):
    code = f"%9 = tt.dot %1, %2, %3{precision} : {operands} -> tensor<16x16xf32> loc(#4)\n"
    assert compile_gate._tensor_core_dots(code) == counts
    assert compile_gate._tensor_core_dots("%3 = arith.addf %1, %2 : tensor<16x16xbf16>") == 0


CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
        /*0010*/                   MOV R2, RZ ;                            /* 0x000000ff00027202 */
        /*0020*/                   FFMA R3, R4, R5, R3 ;                   /* 0x0000000504037223 */
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;                 /* 0x0000000102027810 */
        /*0040*/                   NOP ;                                   /* 0x0000000000007918 */
        /*0050*/              @!P0 BRA 0x30 ;                              /* 0xfffffffc00f48947 */
        /*0060*/              @P1  BRA.U 0x20 ;                            /* 0xfffffffc00f48947 */
        /*0070*/               @P2 BRA 0x90 ;                              /* 0x0000000000000947 */
        /*0080*/                   EXIT ;                                  /* 0x000000000000794d */
        /*0090*/                   BRA 0x90;                               /* 0xfffffffc00fc7947 */
        /*00a0*/                   NOP;                                    /* 0x0000000000007918 */
"""


def test_instructions_are_those_of_the_longest_loop():
    assert compile_gate._instructions(CODE) == (9, 4)
    straight = "\n".join(
        line for line in CODE.splitlines() if "P0" not in line and "P1" not in line
    )
    assert compile_gate._instructions(straight) == (7, 0)
    assert compile_gate._instructions("") == (0, 0)


def test_every_difference_is_named():
    stored = {"gone": ROW, "same": ROW, "other": ROW}
    found = {"same": ROW, "new": ROW, "other": ROW | {"registers": 41, "opcodes": {"HMMA": 8}}}
    assert list(compile_gate.differences(stored, found)) == [
        "gone: in the stored table, but no longer compiled",
        "new: not in the stored table",
        "other: opcodes {'HGMMA': 8} -> {'HMMA': 8}, registers 40 -> 41",
    ]


def test_one_launch_more_is_seen_though_no_binary_is_new():
    def rows(n):
        trace = compile_gate.Trace()
        for _ in range(n):
            trace.note(compile_gate.Launch("read", "dnc: float32", None, (), ()), "a binary")
        assert len(trace.distinct) == 1
        return trace.counts()

    assert [compile_gate.problems(row, 90) for row in rows(2).values()] == [[]]
    assert list(compile_gate.differences(rows(1), rows(2))) == [
        "launches | dnc: float32: launches {'read': 1} -> {'read': 2}"
    ]


def test_what_a_compiler_dies_of_is_a_row():
    def fails():
        raise RuntimeError("no such register\nmore")

    assert "no such register" in compile_gate._in_own_process(fails)["failed"]
    assert "died" in compile_gate._in_own_process(lambda: os.kill(os.getpid(), 9))["failed"]
    assert compile_gate._in_own_process(lambda: ROW) == ROW


def test_every_folder_with_cases_is_compiled():
    assert compile_gate.folders() == ["attention", "conv2d", "dnc", "linear", "lstm", "ntm"]


LISTING = """
import json, sys
from kernels import compile_gate

found, inputs = {}, {}
for folder in sys.argv[1:] or compile_gate.folders():
    for launch in compile_gate.traced(folder, 90).distinct.values():
        known = launch.function.create_binder()[-1](*launch.args, **dict(launch.options))
        found.setdefault(launch.kernel, []).append([dict(launch.options), str(known[1:])])
        inputs.setdefault(launch.name, []).append(launch.inputs)
print(json.dumps([found, inputs], default=str))
"""


def listing(*folders):
    """By kernel the options of each launch and what Triton knows it by; by name its digest."""
    command = [sys.executable, "-c", LISTING, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=COMPILING, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def all_listed():
    return listing()


@pytest.fixture(scope="module")
def listed(all_listed):
    return all_listed[0]


@pytest.mark.xdist_group("listed")
def test_digests_do_not_depend_on_what_was_traced_before(all_listed):
    _, alone = listing("ntm", "linear")
    assert alone
    assert alone == {name: all_listed[1][name] for name in alone}


@pytest.mark.xdist_group("listed")
def test_no_binary_is_compiled_twice(listed):
    for kernel, launches in listed.items():
        known = [by for _, by in launches]
        assert len(known) == len({*known}), kernel


@pytest.mark.xdist_group("listed")
def test_what_users_may_ask_for_is_compiled(listed):
    def options(kernel, *names):
        return {tuple(o.get(name) for name in names) for o, _ in listed[kernel]}

    ways = {(a, b) for a in (False, True) for b in (False, True)}
    for kernel in ("resident_forward", "resident_backward", "split_forward", "split_backward"):
        assert options(kernel, "LENGTHS", "REVERSE") == ways
    assert options("split_forward", "MEET") == {(False,), (True,)}
    for kernel in ("attention_forward", "attention_backward_keys", "attention_backward_queries"):
        sizes = {size for (size,) in options(kernel, "D")}
        assert {16, 20, 64, 100, 128, 203, 256} <= sizes
        # A pointer to lengths, or None.
        assert len({by.count("('constexpr', None)") for _, by in listed[kernel]}) == 2
    assert options("conv2d_forward", "FLAT", "RELU") == ways
    # Scale, shift, residual, sums and squares: each there or not.
    assert {by.count("('constexpr', None)") for _, by in listed["conv2d_forward"]} >= {2, 3, 4}
    assert options("linear_product", "RELU") == {(False,), (True,)}
    # Gate, bias and sums: none of a product, one or two of a layer and its gradients.
    assert {by.count("('constexpr', None)") for _, by in listed["linear_product"]} == {1, 2, 3}
    assert {s for (s,) in options("address_forward", "S")} == {1, 3, 5}
    for part in ("content", "usage", "allocation", "write", "link", "read"):
        for kernel in (f"{part}_forward", f"{part}_backward"):
            known = [by for _, by in listed[kernel]]
            assert {by.split("'")[1] for by in known} >= {"*fp32", "*bf16", "*fp64"}, kernel
            # A size that 16 divides, and one that it does not.
            assert {"('i32', '')" in by for by in known} == {False, True}, kernel
    for kernel in ("link_forward", "link_backward"):
        assert options(kernel, "BOOK") == {(False,), (True,)}


# One case of one op, compiled once: the whole table is compared by the gate itself.
ONE_CASE = """
import json, sys
from pathlib import Path
from kernels import compile_gate
from kernels.ntm import cases

cases.COMPILE = cases.TEST[:1]
folder = Path(sys.argv[1])
table = compile_gate.table_path(90, folder)
made = []


def compiled(launch, architecture):
    made.append(launch)
    return now(launch, architecture)


now, compile_gate.compiled = compile_gate.compiled, compiled
compile_gate._in_own_process = lambda make: make()


def gate(*more):
    made.clear()
    print("ended with", compile_gate.main(["--arch=90", "--op=ntm", f"--tables={folder}", *more]))
    print("compiled", len(made))


def edit(**changes):
    rows = json.loads(table.read_text())
    name = next(n for n in sorted(rows) if "registers" in rows[n])
    rows[name] |= changes
    table.write_text(json.dumps(rows))
    print(name)


gate()
gate("--accept")
gate()
edit(inputs="another source")
gate()
edit(registers=1)
gate()
edit(inputs="another source")
gate("--all")
"""


def test_the_command_compiles_compares_and_accepts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ONE_CASE, str(tmp_path)],
        capture_output=True,
        text=True,
        env=COMPILING,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    missing, accepted, known, other, changed, everything = re.findall(
        r"(.*?)ended with (\d)\ncompiled (\d+)\n", done.stdout, re.DOTALL
    )
    n = missing[2]
    assert int(n) > 1
    assert "no stored table" in missing[0]
    assert "binaries as stored" in accepted[0]
    assert [missing[1:], accepted[1:]] == [("1", n), ("0", n)]
    assert known == (accepted[0], "0", "0")
    # Another source may well give the same.
    assert other[1:] == ("0", "1")
    assert changed[1:] == ("1", "1")
    name, said = changed[0].split("\n", 1)
    assert f"{name}: registers 1 -> " in said
    assert everything[1:] == ("1", n)


def test_the_command_line_passes_on_what_is_not_known():
    command = [sys.executable, "-m", "suite", "bench", "compile", "--op", "fft"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'fft'" in done.stderr


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-m", "kernels.compile_gate", "--arch=90", "--op=ntm", "--jobs=1"]
    command += ["--all"]
    with subprocess.Popen(
        command,
        env=COMPILING | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            # It has begun to compile: the first launch's files are there.
            while not any(tmp_path.glob("compile-gate-*/*")):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) != 0
        finally:
            process.kill()
    assert not any(tmp_path.glob("compile-gate-*"))


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_each_signal_that_ends_a_run_removes_its_cache(tmp_path, monkeypatch, number, raised):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "as it was")
    before = signal.getsignal(signal.SIGTERM)

    def interrupted():
        with compile_gate._cache():
            assert any(tmp_path.glob("compile-gate-*"))
            signal.raise_signal(number)

    try:
        with pytest.raises(raised):
            interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not any(tmp_path.iterdir())
