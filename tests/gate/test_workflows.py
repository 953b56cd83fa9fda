"""The workflows call what exists."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from suite.cli import app

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".github" / "workflows"


def workflow(name):
    # YAML 1.1 reads the key "on" as true.
    content = yaml.safe_load((FOLDER / name).read_text())
    return content, content.get("on", content.get(True))


def test_the_gate_is_called_with_inputs_that_it_has():
    ci, _ = workflow("ci.yml")
    _, on = workflow("benchmarks.yml")
    inputs = on["workflow_call"]["inputs"]
    given = ci["jobs"]["benchmarks"]["with"]
    assert set(given) <= set(inputs)
    assert {n for n, i in inputs.items() if i.get("required")} <= set(given)
    assert (ROOT / given["select"]).is_file()


def test_the_gate_types_options_that_the_command_has():
    text = (FOLDER / "benchmarks.yml").read_text()
    command = next(line for line in text.splitlines() if "$SUITE ab" in line)
    known = {o for p in typer.main.get_command(app).commands["ab"].params for o in p.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
    assert set(re.findall(r"--[a-z-]+", text)) & {"--sequential", "--report-only"} <= known


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda p: p.name)
def test_no_expression_is_pasted_into_a_script(path):
    """Of what others can choose, such as names of branches: only by the environment."""
    content, _ = workflow(path.name)
    for job in content["jobs"].values():
        for step in job.get("steps", []):
            script = step.get("run", "")
            # The install command is a script that the caller of the workflow writes.
            assert "${{" not in script.replace("${{ inputs.install }}", "")
