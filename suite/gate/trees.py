"""Work trees of revisions, and an interpreter for each."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from suite.task import unknown

# What a project's tests need beside its own dependencies, by the names that projects give it.
EXTRAS = ("dev", "test", "tests", "testing", "bench", "benchmark")
NEEDED = ("pytest", "pytest-benchmark>=4")
HERE = "the working directory"


class EnvironmentFailed(OSError):
    """An environment for a revision could not be made; the message ends as pip's does."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A revision on disk.

    Attributes:
        name: as the user gave it.
        commit: what it stands for.
        dirty: whether files differ from that commit.
        diff_sha256: of the difference; None where there is none.
        path: the folder.
        python: the interpreter that runs it.
    """

    name: str
    commit: str
    dirty: bool
    diff_sha256: str | None
    path: Path
    python: Path

    @property
    def roots(self) -> list[str]:
        """Where its modules are found, before all that is installed."""
        return [str(p) for p in (self.path, self.path / "src") if p.is_dir()]


@contextlib.contextmanager
def trees(repo: Path, base: str, cand: str | None) -> Iterator[tuple[Tree, Tree]]:
    """Both revisions on disk, and gone again at the end.

    Args:
        repo: a folder inside a git repository.
        base: any revision that git understands.
        cand: likewise; a copy of the working directory as it is when None.

    Raises:
        ValueError: no repository, or no such revision.
        EnvironmentFailed: the revisions depend on different packages, and pip failed.
    """
    top = Path(_git(repo, "rev-parse", "--show-toplevel", wrong=f"{repo} is in no git repository"))
    commits = resolve(top, base), resolve(top, cand or "HEAD")
    with tempfile.TemporaryDirectory(prefix="suite-gate-", ignore_cleanup_errors=True) as folder:
        # Resolved, because a module's file is compared with it.
        places = Path(folder).resolve() / "base", Path(folder).resolve() / "cand"
        made = [places[0]] if cand is None else list(places)
        try:
            for place, commit in zip(made, commits, strict=False):
                _git(top, "worktree", "add", "--detach", "--quiet", str(place), commit)
            dirt = _dirt(top) if cand is None else None
            if cand is None:
                _copy(top, places[1])
            pythons = _interpreters(*places)
            yield (
                Tree(base, commits[0], False, None, places[0], pythons[0]),
                Tree(cand or HERE, commits[1], dirt is not None, dirt, places[1], pythons[1]),
            )
        finally:
            for place in made:
                if place.exists():
                    _git(top, "worktree", "remove", "--force", str(place))


def _copy(repo: Path, place: Path) -> None:
    """The working directory's files, those that git ignores left out, as a tree of its own.

    Timed where it is, it would be found by a shorter way than a work tree beside it: where the
    project is installed from that folder there is one folder less to search for modules, and what
    searches for them in every call seems faster by a third.
    """
    listed = _git(repo, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        source, target = repo / name, place / name
        # A file that is deleted but for git, or a repository in this one.
        if not source.is_symlink() and not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def resolve(repo: Path, revision: str) -> str:
    """The commit of a revision. Raises ValueError, with the nearest name, where there is none."""
    done = _run(repo, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode == 0:
        return done.stdout.strip()
    names = _run(repo, "for-each-ref", "--format=%(refname:short)").stdout.split()
    raise unknown("revision", revision, ["HEAD", *names])


def _dirt(repo: Path) -> str | None:
    """The digest of what differs from the commit; None where nothing does."""
    changed = _git(repo, "status", "--porcelain")
    if not changed:
        return None
    return hashlib.sha256((_git(repo, "diff", "HEAD") + changed).encode()).hexdigest()


def _git(repo: Path, *arguments: str, wrong: str = "") -> str:
    done = _run(repo, *arguments)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(wrong or f"git {arguments[0]}: {said}")
    return done.stdout.strip()


def _run(repo: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["git", *arguments], cwd=repo, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: comparing revisions needs git") from error


def _interpreters(base: Path, cand: Path) -> tuple[Path, Path]:
    """This interpreter for both, or one each where what they depend on differs."""
    wanted = requirements(base), requirements(cand)
    if wanted[0] == wanted[1]:
        return Path(sys.executable), Path(sys.executable)
    return _environment(wanted[0]), _environment(wanted[1])


def requirements(tree: Path) -> tuple[tuple[str, ...], str]:
    """What a tree's tests need, as pip takes it, and the constraints that it states."""
    file = tree / "pyproject.toml"
    content = tomllib.loads(file.read_text()) if file.is_file() else {}
    project, groups = content.get("project", {}), content.get("dependency-groups", {})
    found = set(project.get("dependencies", []))
    for extra in EXTRAS:
        found |= set(project.get("optional-dependencies", {}).get(extra, []))
        # A group may include another one, by a table; that one is taken if its name is known too.
        found |= {line for line in groups.get(extra, []) if isinstance(line, str)}
    for listed in sorted(tree.glob("requirements*.txt")):
        lines = (line.split(" #")[0].strip() for line in listed.read_text().splitlines())
        found |= {line for line in lines if line and not line.startswith(("#", "-"))}
    limits = tree / "constraints.txt"
    return tuple(sorted(found)), limits.read_text() if limits.is_file() else ""


def _environment(wanted: tuple[tuple[str, ...], str]) -> Path:
    """The interpreter of an environment with these packages; made once, and kept."""
    packages, constraints = wanted
    name = hashlib.sha256(json.dumps([wanted, sys.version]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "suite" / "gate"
    folder, ready = cache / name, cache / name / "ready"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if ready.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    limits = folder / "constraints.txt"
    limits.write_text(constraints)
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(limits)]
    done = subprocess.run(
        [*command, *packages, *NEEDED], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EnvironmentFailed(
            f"the revisions depend on different packages, and pip failed:\n{said}"
        )
    ready.touch()
    return python
