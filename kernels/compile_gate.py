"""Compile every kernel for a GPU that is not there, and say what it uses of it.

Triton needs no GPU to compile: the public functions are called on tensors without memory, each
launch is written down instead of made, and each that Triton would compile to a binary of its own is
compiled for the architecture asked for. What the compiler reports (registers, stack, shared memory)
and the machine code make a row, named after the first case that needs the binary: its opcodes, its
instructions, and those of its longest loop, which tell what a step costs where it waits for neither
memory nor tensor cores. A further row for each case counts the launches that it makes, forward and
backward. Rows repeat exactly for one version of Triton, so they are compared exactly with a stored
table: a kernel that begins to spill, outgrows shared memory, loses its tensor-core instructions or
takes more of others, and an operation that takes one launch more, is seen without a GPU.

A row is stored with a digest of all that its binary is made from: the kernel's source and that of
the functions it calls, the types and values that it is specialised to, its options. Where that is
as it was, so is what one version of Triton makes of it, and nothing is compiled. What this module
reads from a binary is no part of that: a change to it takes ``--all``.

A compiler that fails can take its process with it, so each launch is compiled in a process of its
own. ``python -m kernels.compile_gate --help`` says how to run it.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ARCHITECTURES = (90, 80)
# What one program may have of shared memory, in bytes.
SHARED_LIMIT = {90: 232_448, 80: 166_912}
# What a thread may have on its stack, in bytes. Tiles are chosen for sm_90; on sm_80 the same ones
# take a few registers more than there are.
STACK_LIMIT = {90: 0, 80: 24}
OPCODES = ("HGMMA", "HMMA", "DMMA", "FFMA", "DFMA", "LDL", "STL", "LDGSTS", "ATOM", "BAR", "MUFU")
TENSOR_CORE = ("HGMMA", "HMMA", "DMMA")
TABLE = Path(__file__).parent / "compiled"


@dataclass(frozen=True)
class Launch:
    """One distinct launch: a kernel, its arguments by type, and its options.

    ``inputs`` is a digest of what Triton makes its binary from.
    """

    kernel: str
    case: str
    function: Any = field(compare=False)
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    inputs: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.kernel} | {self.case}"


@dataclass(frozen=True)
class Trace:
    """What the cases of an op launch.

    Attributes:
        distinct: what Triton knows a binary by -> the first launch that needs it.
        made: case -> kernel -> how many launches, each the same binary or not.
    """

    distinct: dict[str, Launch] = field(default_factory=dict)
    made: dict[str, Counter[str]] = field(default_factory=dict)

    def note(self, launch: Launch, known_by: Any) -> None:
        """Add a launch."""
        self.distinct.setdefault(f"{launch.kernel} {known_by}", launch)
        self.made.setdefault(launch.case, Counter())[launch.kernel] += 1

    def counts(self) -> dict[str, dict[str, Any]]:
        """The rows that count launches."""
        return {f"launches | {case}": {"launches": dict(made)} for case, made in self.made.items()}


@dataclass(frozen=True)
class Pointer:
    """Stands for a tensor: Triton looks at its type and at its alignment only."""

    dtype: Any

    def data_ptr(self) -> int:
        """An aligned address."""
        return 0

    def ptr_range(self) -> int:
        """Nothing is known of the extent."""
        return 0


class NoDriver:
    """A driver for an architecture that no device of this machine has."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """A device's number."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """A stream's handle."""
        return 0


def folders() -> list[str]:
    """The ops: the folders of this package that have ``cases``."""
    package = importlib.import_module("kernels")
    return [
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if m.ispkg and (Path(package.__path__[0]) / m.name / "cases.py").exists()
    ]


def traced(folder: str, architecture: int) -> Trace:
    """Every launch that the cases of an op make, forward and backward."""
    import torch

    from kernels.dispatch import Op
    from kernels.register import Kernel

    module = importlib.import_module(f"kernels.{folder}")
    cases = importlib.import_module(f"kernels.{folder}.cases")
    _hash_in_order(importlib.import_module(f"kernels.{folder}.triton"))
    found = Trace()
    # Called as users call them, but no GPU is asked for and, as in a compiled region, no value.
    with (
        patch.object(Op, "__call__", _as_triton),
        patch.object(Kernel, "__call__", _both_ways),
        patch.object(torch.compiler, "is_compiling", return_value=True),
    ):
        for case in cases.COMPILE:
            for op in getattr(case, "ops", cases.OPS):
                args, more = _without_memory(cases, op, case)
                with _written_down(f"{folder}: {case.name}", architecture, found):
                    getattr(module, op)(*args, **more)
    return found


def _hash_in_order(module: ModuleType) -> None:
    """Have Triton hash each function of a module after those that it calls.

    A caller that Triton hashes first has another hash: so what was traced before would tell in it.
    """
    from triton.runtime.jit import JITFunction

    for function in list(vars(module).values()):
        if isinstance(function, JITFunction):
            if function.__module__ != module.__name__:
                _hash_in_order(sys.modules[function.__module__])
            _ = function.cache_key


def _as_triton(op: Any, *args: Any, impl: str | None = None, **options: Any) -> Any:
    """Stands for ``Op.__call__``: the Triton implementation, on whatever device."""
    return op.triton()(*args, **options)


def _both_ways(kernel: Any, *inputs: Any) -> Any:
    """Stands for ``Kernel.__call__``: run its launchers, forward and backward."""
    import torch

    out = kernel.forward(*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    grads = [torch.ones_like(o) for o in outputs[: kernel.outputs]]
    options = inputs[len(inputs) - len(kernel.options) :]
    kernel.backward(*grads, *kernel.save(inputs, out), *options)
    return out


def _without_memory(cases: Any, op: str, case: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a case, tensors without values: shapes, strides and types are enough."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_map_only

    def bare(t: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")

    with FakeTensorMode():
        args = cases.arguments(op, case)
        keywords = cases.keywords(op, case) if hasattr(cases, "keywords") else {}
    made: tuple[Sequence[Any], dict[str, Any]] = tree_map_only(torch.Tensor, bare, (args, keywords))
    return made


@contextlib.contextmanager
def _written_down(case: str, architecture: int, found: Trace) -> Iterator[None]:
    """Write launches down instead of making them."""
    import torch
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(NoDriver(architecture))

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        typed = tuple(Pointer(a.dtype) if isinstance(a, torch.Tensor) else a for a in args)
        name = self.fn.__name__.strip("_")
        known_by = self.create_binder()[-1](*typed, **options, debug=False)[1:]
        inputs = hashlib.sha256(f"{self.cache_key} {known_by}".encode()).hexdigest()[:16]
        launch = Launch(name, case, self, typed, tuple(sorted(options.items())), inputs)
        found.note(launch, known_by)

    with patch.object(JITFunction, "run", note):
        yield


def compiled(launch: Launch, architecture: int) -> dict[str, Any]:
    """Compile a launch in this process: what it uses, as a row."""
    from triton.runtime.driver import driver

    driver.set_active(NoDriver(architecture))
    kernel = launch.function.warmup(*launch.args, grid=(1,), **dict(launch.options))
    usage, code = _inspected(kernel.asm["cubin"])
    counts = {op: n for op in OPCODES if (n := len(re.findall(rf"\b{op}\b", code)))}
    instructions, loop = _instructions(code)
    return {
        "inputs": launch.inputs,
        "dots": _tensor_core_dots(kernel.asm["ttir"]),
        "registers": int(usage["REG"]),
        "stack_bytes": int(usage["STACK"]),
        "shared_bytes": int(kernel.metadata.shared),
        "warps": int(kernel.metadata.num_warps),
        "opcodes": counts,
        "instructions": instructions,
        "loop": loop,
    }


def _inspected(cubin: bytes) -> tuple[dict[str, str], str]:
    """Resource usage and machine code, as NVIDIA's tool that comes with Triton prints them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        texts = [
            subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "--dump-sass")
        ]
    return dict(re.findall(r"(\w+):(\d+)", texts[0])), texts[1]


def _instructions(code: str) -> tuple[int, int]:
    """How many instructions machine code has, and how many its longest loop: 0 without one.

    A loop is what lies between a branch back and where it leads to. What a binary ends with, a
    branch to itself, is none, and neither is what fills it up behind that.
    """
    found = [
        (int(at, 16), text)
        for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)
        if text.strip() != "NOP"
    ]
    loops = [
        sum(to <= place <= at for place, _ in found)
        for at, text in found
        if (branch := re.search(r"\bBRA\b.*0x([0-9a-f]+)", text))
        and (to := int(branch[1], 16)) < at
    ]
    return len(found), max(loops, default=0)


def _tensor_core_dots(code: str) -> int:
    """Matrix products that tensor cores can do: all but those of float32 to its full precision."""
    dots = re.findall(r"= tt\.dot .*", code)
    return sum("tf32" in dot or not re.search(r"xf32[^*]*>\s*\*", dot) for dot in dots)


def problems(row: dict[str, Any], architecture: int) -> list[str]:
    """What is wrong with a row by itself: what it spills, outgrows, or leaves unused."""
    found: list[str] = []
    if "launches" in row:
        return found
    if row["stack_bytes"] > STACK_LIMIT[architecture]:
        found.append(f"spills {row['stack_bytes']} bytes to the stack")
    if row["shared_bytes"] > SHARED_LIMIT[architecture]:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory")
    if row["dots"] and not any(opcode in row["opcodes"] for opcode in TENSOR_CORE):
        found.append(f"computes {row['dots']} matrix products without tensor cores")
    return found


def differences(
    stored: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """How two tables differ, a sentence for each row; other inputs may well give the same."""
    for name in sorted(stored.keys() - found.keys()):
        yield f"{name}: in the stored table, but no longer compiled"
    for name in sorted(found.keys() - stored.keys()):
        yield f"{name}: not in the stored table"
    for name in sorted(found.keys() & stored.keys()):
        keys = sorted((found[name].keys() | stored[name].keys()) - {"inputs"})
        changed = [
            f"{k} {stored[name].get(k)} -> {found[name].get(k)}"
            for k in keys
            if stored[name].get(k) != found[name].get(k)
        ]
        if changed:
            yield f"{name}: {', '.join(changed)}"


def table_path(architecture: int, folder: Path) -> Path:
    """Where the table of an architecture stands, for the Triton that is installed."""
    import triton

    return folder / f"sm_{architecture}-triton-{triton.__version__}.json"


def tabulate(
    architecture: int, ops: Sequence[str], jobs: int, known: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Trace some ops and compile each binary that is not known.

    Args:
        architecture: to compile for.
        ops: folders of this package.
        jobs: how many compilers work at once.
        known: rows that need no compiler where their inputs are the same.

    Returns:
        Name -> row, or what the compiler died of.
    """
    from triton.runtime.cache import triton_key

    # Triton's fingerprint of itself: computed here, it is known in every process forked from here.
    triton_key()
    traces = [traced(folder, architecture) for folder in ops]
    todo = [launch for trace in traces for launch in trace.distinct.values()]
    counts = {name: row for trace in traces for name, row in trace.counts().items()}
    seen: Counter[str] = Counter()
    names = []
    for launch in todo:
        seen[launch.name] += 1
        names.append(
            f"{launch.name} #{seen[launch.name]}" if seen[launch.name] > 1 else launch.name
        )

    same = {row["inputs"]: row for row in known.values() if "inputs" in row}

    def one(launch: Launch) -> dict[str, Any]:
        return same.get(launch.inputs) or _in_own_process(lambda: compiled(launch, architecture))

    with ThreadPoolExecutor(jobs) as pool:
        return counts | dict(zip(names, pool.map(one, todo), strict=True))


def _in_own_process(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call ``make`` in a forked process; what it dies of is a row too."""
    out, back = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        try:
            row = make()
        except BaseException as error:
            row = {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        with os.fdopen(back, "w") as file:
            json.dump(row, file)
        os._exit(0)
    os.close(back)
    with os.fdopen(out) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else {"failed": f"the compiler died, status {status}"}


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, compare with the stored table, and say what differs.

    Returns:
        0 where all is as stored, 1 where a row differs, spills or does not compile.
    """
    parser = argparse.ArgumentParser(prog="suite bench compile", description=__doc__)
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, action="append")
    parser.add_argument("--op", action="append", choices=folders(), help="only these ops")
    parser.add_argument("--all", action="store_true", help="compile also what is as it was")
    parser.add_argument("--accept", action="store_true", help="store what was found")
    parser.add_argument("--tables", type=Path, default=TABLE, help="where the tables stand")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(argv)
    with _cache():
        return int(_gate(given))


@contextlib.contextmanager
def _cache() -> Iterator[None]:
    """A cache for this run only, removed at its end, also when it is interrupted or terminated."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="compile-gate-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        yield


def _gate(given: argparse.Namespace) -> bool:
    """Compile and compare for each architecture; whether something is wrong."""
    failed = False
    for architecture in given.arch or ARCHITECTURES:
        path = table_path(architecture, given.tables)
        stored = _stored(path)
        known = {} if given.all else stored
        found = tabulate(architecture, given.op or folders(), given.jobs, known)
        if given.accept:
            path.parent.mkdir(exist_ok=True)
            kept = {k: v for k, v in stored.items() if given.op and _op_of(k) not in given.op}
            path.write_text(json.dumps(kept | found, indent=1, sort_keys=True) + "\n")
        failed |= _reported(architecture, found, path, given.op)
    return failed


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _op_of(name: str) -> str:
    """The op's folder in a row's name."""
    return name.split(" | ")[1].split(":")[0]


def _reported(
    architecture: int, found: dict[str, dict[str, Any]], path: Path, ops: list[str] | None
) -> bool:
    """Print the table's verdict; whether something is wrong."""
    wrong = [
        f"{name}: {what}"
        for name, row in found.items()
        for what in ([row["failed"]] if "failed" in row else problems(row, architecture))
    ]
    if path.exists():
        stored = _stored(path)
        if ops:
            stored = {k: v for k, v in stored.items() if _op_of(k) in ops}
        wrong += differences(stored, found)
    else:
        wrong.append(f"no stored table {path.name}: run with --accept to make one")
    for line in wrong:
        print(f"sm_{architecture} {line}")
    if not wrong:
        used = [row["registers"] for row in found.values() if "registers" in row]
        cases = len(found) - len(used)
        print(
            f"sm_{architecture}: {len(used)} binaries as stored, at most {max(used)} registers; "
            f"the launches of {cases} cases as stored"
        )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
