import subprocess
from pathlib import Path

import pytest

from suite import provenance


@pytest.mark.parametrize(
    ("status", "dirty"),
    [
        ("", False),
        (" M README.md\n", True),
        ("?? suite/extra.py\n", True),
        ("?? tests/bench/\n", True),
        # Results that were put into a folder of the checkout.
        ("?? mine/\n?? notes.txt\n", False),
        ("?? mine/\n M tasks/models/dnc.py\n", True),
        (None, None),
    ],
)
def test_what_can_change_a_number_makes_a_tree_dirty(monkeypatch, status, dirty):
    answers = {"rev-parse": "a" * 40 + "\n", "status": status, "diff": ""}
    monkeypatch.setattr(provenance, "_git", lambda command, *rest: answers[command])
    found = provenance.code.__wrapped__()
    assert found.commit == "a" * 40
    assert found.dirty is dirty
    assert (found.diff_sha256 is None) == (not dirty)


def test_what_was_measured_is_no_code(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    def is_dirty_after(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed")
        return provenance.code.__wrapped__().dirty

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "suite" / "provenance.py"))
    git("init", "-q")
    configs = tmp_path / "kernels" / "configs" / "dnc"
    (tmp_path / "suite").mkdir()
    configs.mkdir(parents=True)
    (configs / "old.json").write_text("{}")
    git("add", "-A")
    git("commit", "-qm", "first")
    assert not is_dirty_after(configs / "new.json")
    assert not is_dirty_after(configs / "old.json")
    assert is_dirty_after(tmp_path / "kernels" / "dnc.py")


@pytest.mark.parametrize(
    ("text", "threads"), [("7.59 7.23 5.53 9/118 17119\n", 9), ("", None), ("0 0 0 -", None)]
)
def test_threads_that_compute_are_counted(monkeypatch, text, threads):
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert provenance.running() == threads


def test_where_nobody_counts_threads_there_is_no_number(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert provenance.running() is None
