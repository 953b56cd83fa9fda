"""Who may import whom, and what may be loaded when."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = {"suite"}
ABOVE = {"cluster", "report", "ab", "cli", "progress", "doctor"}
MEASURES_KERNELS = ("bench.py", "gpu/", "ingest.py", "attribute/laps.py")
FILES = [p for package in ("suite", "kernels", "tasks") for p in (ROOT / package).rglob("*.py")]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _allowed(path):
    package, *rest = path.relative_to(ROOT).parts
    if package == "kernels":
        return {"kernels"}
    if package == "suite":
        # What measures kernels names them; the rest of the suite knows none.
        measures = "/".join(rest).startswith(MEASURES_KERNELS)
        return {"suite", "kernels"} if measures else {"suite"}
    return {"suite", "kernels", "tasks.models"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    ours = [m for m in _imports(path) if m.split(".")[0] in ("suite", "kernels", "tasks", "tests")]
    allowed = _allowed(path)
    bad = [m for m in ours if not any(m == a or m.startswith(f"{a}.") for a in allowed)]
    assert not bad


@pytest.mark.parametrize(
    "path", [p for p in FILES if "suite" in p.relative_to(ROOT).parts[0]], ids=lambda p: p.name
)
def test_the_heavy_libraries_have_one_place_each(path):
    relative = path.relative_to(ROOT / "suite").parts
    roots = {m.split(".")[0] for m in _imports(path)}
    if relative[0] not in ("cluster.py", "driver.py", "launch.py", "slot.py", "sweep.py"):
        assert "ray" not in roots
    if relative[0] not in ("report", "store.py"):
        assert "pandas" not in roots
    if relative[0] != "report":
        assert "matplotlib" not in roots


@pytest.mark.parametrize(
    "path", [p for p in FILES if "suite" in p.relative_to(ROOT).parts[0]], ids=lambda p: p.name
)
def test_the_suite_names_no_task(path):
    from suite import task

    text = path.read_text()
    ids = [n for n in task.names() if not n.startswith("ch90")]
    assert not [n for n in ids if n in text and n != "ch12.dnc_copy"]
    assert not re.search(r"\bch\d\d_\w", text.replace("ch[0-9]", ""))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_machine_and_no_unfinished_work_is_named(path):
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError", text)
    assert not re.search(r"(^|[^\w.])/(work|root|home)/", text)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import suite", ("torch", "ray", "pydantic")),
        ("import suite.task, suite.cli", ("torch", "ray", "pydantic", "pandas", "matplotlib")),
        ("from suite import task; [task.summary(n) for n in task.names()]", ("torch", "ray")),
        ("import suite.store, suite.record", ("torch", "ray", "pandas")),
        ("import suite.run, suite.local", ("ray", "pandas", "matplotlib")),
        ("import suite.driver, suite.faults, suite.slot", ("torch", "ray", "pandas", "matplotlib")),
        ("import kernels", ("torch", "triton")),
    ],
)
def test_importing_stays_light(code, absent):
    check = f"{code}; import sys; print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "[]"
