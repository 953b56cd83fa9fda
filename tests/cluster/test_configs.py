"""The shipped cluster configurations, checked without a cluster."""

import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from suite import cli, launch

ROOT = Path(__file__).parent.parent.parent
RAY = [ROOT / "cluster.yaml", ROOT / "deploy" / "onpremise.yaml"]
SHIPPED = [*RAY, ROOT / "deploy" / "kuberay.yaml"]
IDS = {"ids": lambda path: path.name}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder from which the configurations' relative paths lead somewhere."""
    monkeypatch.chdir(tmp_path)
    launch.token(tmp_path / ".cluster")
    return tmp_path


def edited(source, folder, change=lambda config: None):
    """A copy of a configuration, with its two places edited and one more change."""
    text = source.read_text().replace("ami-REPLACE", "ami-0123456789abcdef0")
    config = yaml.safe_load(text.replace("REPLACE-", "my-"))
    change(config)
    path = folder / source.name
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("source", RAY, **IDS)
def test_ray_itself_accepts(source, checkout):
    config = launch.check(edited(source, checkout))
    assert config["head_node_type"] in config["available_node_types"]


def test_workers_and_head_are_of_the_kinds_meant(checkout):
    kinds = launch.check(edited(ROOT / "cluster.yaml", checkout))["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert kinds["gpu"]["min_workers"] == 0
    assert kinds["gpu"]["max_workers"] == 8
    images = {kind["node_config"]["ImageId"] for kind in kinds.values()}
    assert images == {"ami-0123456789abcdef0"}


def test_what_is_to_be_edited_is_said(checkout):
    with pytest.raises(ValueError, match="REPLACE") as error:
        launch.check(ROOT / "cluster.yaml")
    lines = (ROOT / "cluster.yaml").read_text().splitlines()
    for place in ("ami-REPLACE", "REPLACE-bucket", "REPLACE-instance-profile"):
        number = 1 + next(i for i, line in enumerate(lines) if place in line)
        assert str(error.value).count(f"cluster.yaml:{number}: {place} is") == 1


def _without_token_mode(config):
    config["setup_commands"] = [
        c.replace("RAY_AUTH_MODE", "AUTH_MODE") for c in config["setup_commands"]
    ]


def _second_autoscaler(config):
    config["head_start_ray_commands"] = ["ray start --head"]


@pytest.mark.parametrize(
    ("source", "change", "said"),
    [
        (
            0,
            lambda c: c.update(max_worker=3),
            "unknown key 'max_worker'; did you mean 'max_workers'",
        ),
        (0, lambda c: c["auth"].update(ssh_port=22), "unknown key 'auth.ssh_port'"),
        (0, lambda c: c.update(max_workers="8"), "max_workers: '8' is not of type 'integer'"),
        (0, lambda c: c.update(head_node_type="haed"), "`head_node_type` must be one of"),
        (0, lambda c: c.pop("provider"), "'provider' is a required property"),
        (
            0,
            lambda c: c["available_node_types"]["gpu"].update(min_workers=9),
            "smaller than the sum of `min_workers`",
        ),
        (0, lambda c: c["file_mounts"].update({"~/x": "nowhere"}), "nowhere does not exist"),
        (0, _without_token_mode, "RAY_AUTH_MODE is not set"),
        (1, _second_autoscaler, "write export RAY_enable_autoscaler_v2=0"),
        (1, lambda c: c["provider"].pop("head_ip"), "head_ip"),
    ],
)
def test_a_fault_is_said_clearly(source, change, said, checkout):
    path = edited(RAY[source], checkout, change)
    with pytest.raises(ValueError, match="yaml: ") as error:
        launch.check(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("cluster_name: [", 2, "not YAML"),
        ("just words", 2, "no keys"),
        (None, 4, "No such file"),
        ("cluster_name: a\nprovidr: {type: aws}\n", 2, "did you mean 'provider'"),
    ],
)
def test_the_command_exits_with_the_right_code(command_line, text, code, said, tmp_path):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    ended, _, line = command_line("cluster", "check", path)
    assert ended == code
    assert said in line


def test_a_token_is_private_and_made_once(tmp_path):
    path, made = launch.token(tmp_path / "new")
    secret = path.read_text()
    assert made
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert launch.token(tmp_path / "new") == (path, False)
    assert path.read_text() == secret


@pytest.mark.parametrize(
    ("mode", "has_token", "meaning"),
    [
        (None, False, ""),
        (None, True, "set RAY_AUTH_MODE=token"),
        ("token", True, ""),
        ("token", False, "Ray cannot start"),
        ("disabled", True, ""),
    ],
)
def test_mixed_token_modes_are_found(mode, has_token, meaning, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if has_token:
        launch.token(tmp_path)
    [(what, _, found)] = launch.faults_here()
    assert what == "Ray's token"
    assert meaning in found
    assert bool(meaning) == bool(found)


def test_a_cluster_that_is_gone_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    # Port 9 is the discard service, which nothing offers any more.
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    *_, (_, found, meaning) = launch.faults_here()
    assert "127.0.0.1:9, where none answers" in found
    assert "remove" in meaning


@pytest.mark.parametrize("command", [["status"], ["wait", "--nodes", "2"]], ids=" ".join)
@pytest.mark.parametrize("on", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_said(command_line, command, on):
    code, _, said = command_line("cluster", *command, "--on", on)
    assert code == 4
    assert f"no Ray cluster answers at {on}" in said
    assert "Traceback" not in said


def commands(path):
    """Every command of the suite that a file names, in a comment or a value."""
    text = path.read_text().replace("\\\n", " ")
    found = re.findall(
        r"(?:submit\.py -- |\bsuite )((?:cluster|reproduce|report|run)\b[^#'\n]*)", text
    )
    return [shlex.split(f.split(" > ")[0]) for f in found]


@pytest.mark.parametrize("path", SHIPPED, **IDS)
def test_the_commands_named_exist(path):
    found = commands(path)
    assert found
    for arguments in found:
        command = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(command.name, arguments)


@pytest.mark.parametrize("path", [*SHIPPED, ROOT / "deploy" / "Dockerfile"], **IDS)
def test_the_files_named_exist(path):
    named = set(
        re.findall(
            r"(?<![\w~/.-])(?:deploy|suite)/\w+(?:\.\w+)?|constraints\.txt", path.read_text()
        )
    )
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_every_host_runs_the_pinned_ray():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    job = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    assert f"rayproject/ray:{pinned}-" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_ray_job_has_known_fields_only():
    job = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text())
    schema = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())
    jsonschema.Draft7Validator(schema).validate(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft7Validator(schema).validate(job)


@pytest.fixture
def home(tmp_path):
    """A head's home: the checkout mounted, and submit.py copied beside it."""
    (tmp_path / "fundamentals").symlink_to(ROOT)
    shutil.copy(ROOT / "suite" / "submit.py", tmp_path)
    return tmp_path


def submit(home, *arguments, **env):
    return subprocess.run(
        [sys.executable, "submit.py", *arguments],
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "env", "code", "said"),
    [
        (["list"], {}, 0, "suite list: exit code 0 (done)"),
        (["rnu"], {}, 2, "suite rnu: exit code 2 (wrong usage)"),
        (["reproduce"], {}, 2, "no store: set SUITE_STORE"),
        (
            ["reproduce"],
            {"SUITE_STORE": "runs", "RAY_TMPDIR": "/nonexistent"},
            4,
            "suite reproduce: exit code 4",
        ),
        (["run", "nosuch", "--on", "local"], {"SUITE_STORE": "runs"}, 2, "exit code 2"),
    ],
)
def test_submit_says_the_exit_code_last(arguments, env, code, said, home):
    done = submit(home, *arguments, **env)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[-1]


def test_submit_without_a_checkout_says_so(home):
    (home / "fundamentals").unlink()
    done = submit(home, "list")
    assert done.returncode == 2
    assert "~/fundamentals is no checkout" in done.stdout
