"""Live sessions on a small repository: what is kept, for what is found depends on the machine."""

import contextlib
import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from rich.console import Console

from suite import report
from suite.cli import app
from suite.gate import session as sessions
from suite.gate import show, verdict
from suite.gate.compare import compare
from suite.gate.decide import LOOKS
from suite.gate.session import ROUNDS, NothingToCompare, Plan, subject_of
from suite.gate.side import SideDied
from suite.gate.trees import requirements, trees
from suite.gate.values import Speeds, disturbed, log_ratios, to_take_again
from suite.progress import PairsDisplay
from suite.record import AbArm, AbBlock, AbComparison, AbRevision
from suite.store import Store

pytestmark = pytest.mark.xdist_group("gate")

WORK = """
def add(n):
    return sum(i * i for i in range(n))
"""
TESTS = """
import os, signal, time
import pytest
import work

def test_add(benchmark):
    assert benchmark(work.add, 500) > 0

def test_waits(benchmark):
    benchmark(time.sleep, 0.001)

def test_sorts_once(benchmark):
    benchmark.pedantic(sorted, setup=lambda: (([3, 1, 2],), {}), rounds=1)

def test_skips(benchmark):
    pytest.skip("not today")

def test_is_no_benchmark():
    raise AssertionError("nobody asked")
"""
# A project that lets no warning pass, such as pytest-benchmark's of a fixture that was not used.
STRICT = """
[pytest]
filterwarnings = error
"""
OLD = (
    TESTS
    + """
def test_gone(benchmark):
    benchmark(work.add, 5)

def test_breaks(benchmark):
    benchmark(work.add, 5)

def test_dies(benchmark):
    benchmark(work.add, 5)
"""
)
NEW = (
    TESTS
    + """
def test_arrives(benchmark):
    benchmark(work.add, 5)

def test_breaks(benchmark):
    benchmark(work.subtract, 5)

def test_dies(benchmark):
    benchmark(os.kill, os.getpid(), signal.SIGKILL)
"""
)


def few_rounds():
    """Sessions that time little: what they find depends on the machine, and nobody asks for it."""
    return mock.patch.multiple(sessions, ROUNDS=2, PATIENCE=1.0)


@pytest.fixture(autouse=True)
def _live_sessions_time_little(request):
    with few_rounds() if "repo" in request.fixturenames else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    root = tmp_path_factory.mktemp("repo")
    git(root, "init", "-q")
    commit(root, {"work.py": WORK, "test_speed.py": OLD, "pytest.ini": STRICT})
    git(root, "tag", "old")
    commit(root, {"test_speed.py": NEW})
    return root


def git(root, *arguments):
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def commit(root, files):
    for name, text in files.items():
        (root / name).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "files")


def worktrees(root):
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=root, check=True, capture_output=True, text=True
    )
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def session(repo, tmp_path_factory):
    """Two pairs of the two revisions: the verdict, and the store."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    with few_rounds():
        return compare(repo, "old", "HEAD", Plan({2: 0.01}, again=0), store), store


def test_every_benchmark_is_timed_or_said_why_not(session):
    found, _ = session
    assert {n.rpartition(":")[2] for n in found.decisions} == {
        "test_add", "test_waits", "test_sorts_once"
    }  # fmt: skip
    outcomes = {n.rpartition(":")[2]: kind for n, (kind, _) in found.outcomes.items()}
    assert outcomes == {
        "test_skips": "skipped",
        "test_gone": "missing",
        "test_arrives": "new",
        "test_breaks": "broken",
        "test_dies": "broken",
    }
    said = {n.rpartition(":")[2]: said for n, (_, said) in found.outcomes.items()}
    assert "subtract" in said["test_breaks"]
    assert "not today" in said["test_skips"]
    assert "ended with -9" in said["test_dies"]
    assert found.exit_code == 1


def test_each_pair_is_a_record_of_both_revisions(session):
    found, store = session
    records = verdict.sessions(store)[found.session]
    assert [r.ab_block.pair for r in sorted(records, key=lambda r: r.ab_block.pair)] == [1, 2]
    for record in records:
        block = record.ab_block
        assert (block.base.name, block.cand.name) == ("old", "HEAD")
        assert block.base.commit != block.cand.commit
        assert not block.cand.dirty
        for c in block.comparisons:
            assert len(c.base.wall_s) == len(c.cand.wall_s) == len(c.base.cpu_s)
            assert len(c.base.wall_s) % c.rounds == 0
            assert min(c.base.wall_s + c.cand.wall_s) > 0
        kinds = [c.control for c in block.comparisons]
        assert kinds.count("aa") == kinds.count("slowed") == 1
        clocks = {c.benchmark.rpartition(":")[2]: c.clock for c in block.comparisons}
        assert clocks["test_waits"] == "wall"


def test_a_benchmark_is_called_no_more_often_than_it_says(session):
    found, store = session
    once = [
        c
        for record in verdict.sessions(store)[found.session]
        for c in record.ab_block.comparisons
        if c.benchmark.endswith("once")
    ]
    assert all(c.calls == len(c.base.wall_s) == len(c.cand.wall_s) == 1 for c in once)


def test_a_verdict_re_derives_and_one_that_was_edited_does_not(session):
    found, store = session
    assert verdict.check(store) == []
    name = f"gate/{found.session}.json"
    text = store.read(name)
    content = json.loads(text)
    assert content["exit_code"] == 1
    content["exit_code"] = 0
    store.write(name, json.dumps(content).encode())
    assert "does not re-derive" in verdict.check(store)[0]
    store.write(name, text)


def test_two_pairs_are_not_trusted(session):
    found, _ = session
    assert "cannot tell" in found.distrust
    whole = dataclasses.replace(found, outcomes={})
    assert whole.exit_code == 3


def test_the_summary_shows_all(session):
    found, _ = session
    text = show.markdown(found)
    for name in [*found.decisions, *found.outcomes]:
        assert name in text
    assert "3 lost or broken" in text
    assert "subtract" in text


def test_nothing_is_left_behind(session, repo):
    assert len(worktrees(repo)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_session_that_is_stopped_leaves_nothing_behind(repo, tmp_path, number):
    command = ["ab", "--base", "HEAD", "--cand", "HEAD", "-k", "test_waits", "--pairs", "500"]
    command += ["--repo", str(repo), "--store", str(tmp_path / "store")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "suite", *command],
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            while not any((tmp_path / "store").glob("records/*/*.json")):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            assert len(worktrees(repo)) == 3
            process.send_signal(number)
            out, _ = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 130, out
    assert "stopped, without a verdict" in out
    assert len(worktrees(repo)) == 1
    assert not any(scratch.glob("suite-gate-*"))


@pytest.mark.parametrize(
    ("base", "select", "error", "said"),
    [
        ("olt", (), ValueError, "unknown revision 'olt'"),
        ("old", ("nowhere.py",), SideDied, "nowhere.py"),
        ("old", ("-k", "nothing_like_it"), NothingToCompare, "no test here uses"),
    ],
)
def test_what_cannot_be_compared_is_said(repo, tmp_path, base, select, error, said):
    with pytest.raises(error, match=said):
        compare(repo, base, "HEAD", Plan({2: 0.01}, select), Store(str(tmp_path)))
    assert len(worktrees(repo)) == 1


def test_outside_of_a_repository(tmp_path):
    with pytest.raises(ValueError, match="no git repository"):
        compare(tmp_path, "HEAD", None, Plan({2: 0.01}), Store(str(tmp_path / "store")))


def test_the_command_line(repo, tmp_path, capsys):
    summary = tmp_path / "summary.md"
    asked = ["ab", "--base", "HEAD", "--cand", "HEAD", "-k", "test_add", "--pairs", "2"]
    asked += ["--repo", str(repo), "--store", str(tmp_path / "store"), "--markdown", str(summary)]
    assert app(asked, standalone_mode=False) == 3
    shown = capsys.readouterr()
    assert "untrusted" in shown.out
    assert "test_add" in shown.out
    assert "pair 2 of 2" in shown.err
    assert "test_add" in summary.read_text()
    assert app([*asked, "--report-only"], standalone_mode=False) == 0


def test_the_working_directory_is_a_revision_too_and_says_that_it_was_changed(repo, tmp_path):
    (repo / "work.py").write_text(WORK + "\n# A change that nobody committed.\n")
    try:
        store = Store(str(tmp_path))
        plan = Plan({1: 0.01}, ("-k", "test_add"), again=0)
        found = compare(repo, "HEAD", None, plan, store)
    finally:
        (repo / "work.py").write_text(WORK)
    block = verdict.sessions(store)[found.session][0].ab_block
    assert block.cand.dirty
    assert block.cand.diff_sha256
    assert not verdict.floors(store, verdict.sessions(store)[found.session][0].nodes[0].cpu_model)


def test_a_revision_against_itself_gives_a_floor(tmp_path):
    """Of synthetic blocks: what is measured here would depend on the machine."""
    from suite import provenance
    from suite.gate.compare import _record

    store, node = Store(str(tmp_path)), provenance.node()
    revision = AbRevision(name="HEAD", commit="0" * 40, dirty=False, diff_sha256=None)
    for pair in range(1, 8):
        arms = AbArm(wall_s=[1.0], cpu_s=[1.0]), AbArm(wall_s=[1.03], cpu_s=[1.0])
        compared = AbComparison(
            benchmark="a", control="none", clock="wall", calls=1, rounds=1, base_first=True,
            base=arms[0], cand=arms[1],
        )  # fmt: skip
        block = AbBlock(
            session="s", pair=pair, base=revision, cand=revision, comparisons=[compared],
            outcomes={},
        )  # fmt: skip
        store.put(_record(block, Plan(), "2026-01-01T00:00:00.000Z", 1.0, node))
    assert verdict.floors(store, node.cpu_model) == {"a": pytest.approx(0.03)}
    assert verdict.floors(store, "another processor") == {}
    found = report.write(store)
    assert "tables/noise.md" in found.files["tables/index.md"]
    [row] = [r for r in found.files["tables/noise.md"].splitlines() if "`a`" in r]
    assert "| wall | 1.00 s | 7 | 3.0 % | 3.0 % | yes |" in row
    assert not report.check(store)


def test_a_session_ends_at_the_look_that_settles_it(repo, tmp_path, monkeypatch):
    taken = []

    def judge(blocks):
        taken.append(len(blocks))
        return len(taken) == 2

    plan = Plan({1: 0.01, 2: 0.01, 4: 0.01}, ("-k", "test_add"), again=0)
    with trees(repo, "HEAD", "HEAD") as (base, cand):
        blocks = list(sessions.session(base, cand, plan, judge))
    assert taken == [1, 2]
    assert [b.pair for b in blocks] == [1, 2]


def test_nothing_in_common(repo, tmp_path):
    with pytest.raises(NothingToCompare, match="missing"):
        compare(repo, "old", "HEAD", Plan({2: 0.01}, ("-k", "gone")), Store(str(tmp_path)))


def test_what_a_tree_depends_on(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "a"\ndependencies = ["attrs>=2"]\n'
        '[project.optional-dependencies]\ntest = ["hypothesis"]\ndocs = ["sphinx"]\n'
        '[dependency-groups]\nbench = ["pyperf", {include-group = "test"}]\n'
    )
    (tmp_path / "requirements.txt").write_text("# all\n-r other.txt\nnumpy # fast\n")
    (tmp_path / "constraints.txt").write_text("attrs==25\n")
    wanted = ("attrs>=2", "hypothesis", "numpy", "pyperf")
    assert requirements(tmp_path) == (wanted, "attrs==25\n")


def test_looks_come_in_order():
    assert list(LOOKS) == sorted(LOOKS)
    assert list(LOOKS.values()) == sorted(LOOKS.values())


def test_the_working_directory_is_timed_as_a_copy_beside_the_base(repo):
    kept = (repo / "work.py").read_text()
    (repo / "new.py").write_text("a = 1\n")
    (repo / "work.py").write_text(kept + "b = 2\n")
    try:
        with trees(repo, "HEAD", None) as (base, cand):
            assert base.path.parent == cand.path.parent
            assert (cand.path / "new.py").read_text() == "a = 1\n"
            assert (cand.path / "work.py").read_text().endswith("b = 2\n")
            assert not (base.path / "new.py").exists()
            assert cand.dirty
            assert cand.roots != base.roots
        assert not cand.path.exists()
    finally:
        (repo / "new.py").unlink()
        (repo / "work.py").write_text(kept)


def test_a_neighbour_that_slows_most_of_one_side_is_not_its_code():
    revision = AbRevision(name="HEAD", commit="0" * 40, dirty=False, diff_sha256=None)
    quiet, disturbed = [1.0] * 40, [2.0] * 30 + [1.0] * 10
    compared = AbComparison(
        benchmark="a", control="none", clock="cpu", calls=1, rounds=10, base_first=True,
        base=AbArm(wall_s=quiet, cpu_s=quiet),
        cand=AbArm(wall_s=disturbed, cpu_s=[1.1 * t for t in disturbed]),
    )  # fmt: skip
    block = AbBlock(
        session="s", pair=1, base=revision, cand=revision, comparisons=[compared], outcomes={}
    )
    assert log_ratios([block]) == {"a": [pytest.approx(math.log(1.1))]}


def block_of(pair, quick, *, again=False, cand=1.0, rounds=8):
    """A pair whose sides were at their speed in so many of their visits of one block each."""

    def arm(n, scale):
        times = [scale] * n + [1.7 * scale] * (2 * rounds - n)
        return AbArm(wall_s=times, cpu_s=times)

    revision = AbRevision(name="HEAD", commit="0" * 40, dirty=False, diff_sha256=None)
    made = [
        AbComparison(
            benchmark=name, control="none", clock="cpu", calls=1, rounds=rounds, base_first=True,
            base=arm(base, 1.0), cand=arm(other, cand),
        )
        for name, (base, other) in quick.items()
    ]  # fmt: skip
    return AbBlock(
        session="s", pair=pair, again=again, base=revision, cand=revision, comparisons=made,
        outcomes={},
    )  # fmt: skip


@pytest.mark.parametrize("cand", [0.5, 1.0, 2.0])
def test_disturbed_pairs_count_only_where_there_is_no_better(cand):
    """Whichever side is the slower."""
    quiet = [block_of(i, {"a": (16, 16), "b": (16, 16)}, cand=cand) for i in range(1, 5)]
    first = [
        *quiet,
        block_of(5, {"a": (2, 16), "b": (16, 16)}, cand=cand),
        block_of(6, {"a": (16, 16), "b": (16, 0)}, cand=cand),
    ]
    assert to_take_again(quiet) == []
    assert to_take_again(first) == ["a", "b"]
    assert len(log_ratios(first)["a"]) == 6
    blocks = [*first, block_of(7, {"a": (16, 16), "b": (3, 3)}, again=True, cand=cand)]
    assert to_take_again(blocks) == ["b"]
    true = pytest.approx(math.log(cand))
    assert log_ratios(blocks)["a"] == [true] * 6
    assert log_ratios(blocks)["b"] == [*[true] * 5, log_ratios(first)["b"][5]]
    blocks.append(block_of(8, {"b": (4, 4)}, again=True, cand=cand))
    assert to_take_again(blocks) == []
    assert log_ratios(reversed(blocks)) == {"a": [true] * 6, "b": [true] * 6}


def test_a_lucky_process_or_two_do_not_make_the_others_disturbed():
    def faster(block):
        return block.model_copy(
            update={
                "comparisons": [
                    c.model_copy(update={"base": AbArm(wall_s=c.base.wall_s, cpu_s=[0.8] * 16)})
                    for c in block.comparisons
                ]
            }
        )

    blocks = [block_of(i, {"a": (16, 16)}) for i in range(1, 7)]
    assert to_take_again([*map(faster, blocks[:2]), *blocks[2:]]) == []
    assert to_take_again([*map(faster, blocks[:3]), *blocks[3:]]) == ["a"]


def test_of_one_call_nobody_can_say_that_it_was_disturbed():
    block = block_of(1, {"a": (1, 1)}, rounds=1)
    once = [
        c.model_copy(update={s: AbArm(wall_s=[t], cpu_s=[t]) for s in ("base", "cand")})
        for t in (1.0, 3.0)
        for c in block.comparisons
    ]
    assert disturbed(once) == [False, False]


def test_what_was_disturbed_is_timed_again(repo, monkeypatch):
    """In a machine's stead a rule says what was."""
    heard = []
    monkeypatch.setattr(
        sessions,
        "to_take_again",
        lambda blocks: ["test_speed.py::test_add"] if len(blocks) < 4 else [],
    )
    plan = Plan({2: 0.01}, ("-k", "test_add or waits"))
    with trees(repo, "HEAD", "HEAD") as (base, cand):
        taken = list(
            sessions.session(base, cand, plan, lambda blocks: True, lambda *x: heard.append(x))
        )
    assert [(b.pair, b.again) for b in taken] == [(1, False), (2, False), (3, True), (4, True)]
    names = [{c.benchmark.rpartition(":")[2] for c in b.comparisons} for b in taken]
    assert names == [{"test_add", "test_waits"}] * 2 + [{"test_add"}] * 2
    assert ("again", 4, "test_speed.py::test_add") in heard
    display = PairsDisplay(2, Console(file=(out := io.StringIO())))
    for event in heard:
        display(*event)
    assert "again what was disturbed: pair 4" in out.getvalue()


def test_a_machine_that_is_never_quiet_ends_a_session_too(repo, monkeypatch):
    monkeypatch.setattr(sessions, "to_take_again", lambda blocks: ["test_speed.py::test_add"])
    with trees(repo, "HEAD", "HEAD") as (base, cand):
        plan = Plan({1: 0.01}, ("-k", "test_add"))
        taken = list(sessions.session(base, cand, plan, lambda blocks: True))
    assert len(taken) == 1 + sessions.AGAIN


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
def test_a_pair_goes_on_until_both_sides_were_at_their_own_speed(slower):
    speeds = Speeds()
    quick, disturbed = [1.0, 1.04, 1.0, 1.02], [1.9, 1.5, 1.7, 1.5, 1.6]
    for _ in range(3):
        speeds.learn([quick, [slower * t for t in quick]])
    for base, cand, reached in (
        (quick, quick, True),
        (disturbed, quick, False),
        (quick, disturbed, False),
        (disturbed + quick[:3], quick, False),
        (disturbed + quick, quick, True),
    ):
        cand = [slower * t for t in cand]
        assert speeds.reached([base, cand]) == reached


def test_a_slow_benchmark_has_few_visits_and_few_are_needed():
    speeds = Speeds()
    speeds.learn([[1.0, 1.0], [3.0, 3.0]])
    assert speeds.reached([[1.02, 1.0], [3.1, 3.0]], needed=2)
    assert not speeds.reached([[1.02, 1.1], [3.1, 3.0]], needed=2)


def test_one_quick_block_is_not_a_speed():
    speeds = Speeds()
    speeds.learn([[0.5, 0.6, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert speeds.best == [1.0, 1.0]


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "delayed_s", "clock"),
    [
        (1e-3, 1e-3, 0, "cpu"),
        # Taken off the processor, and waiting for something.
        (1e-1, 1e-3, 0.099, "cpu"),
        (1e-1, 1e-3, 0.01, "wall"),
        (1e-3, 2e-3, 0, "wall"),
        (2e-3, 2e-3, 1e-3, "wall"),
    ],
)
def test_a_busy_machine_does_not_change_the_clock(wall_s, cpu_s, delayed_s, clock):
    subject = subject_of(wall_s, cpu_s, None, delayed_s)
    assert subject.clock == clock
    if clock == "cpu":
        assert subject == subject_of(cpu_s, cpu_s, None, 0)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.03, 0.3, 3.0])
def test_slow_calls_get_fewer_of_everything(seconds):
    subject = subject_of(seconds, seconds, None, 0)
    visits = 2 * subject.rounds
    assert subject.calls * subject.blocks * visits * seconds < 2.5 or visits == 2
    assert subject.calls * subject.blocks * visits >= 2
    assert subject.rounds <= subject.most_rounds <= 3 * subject.rounds
    assert seconds > 0.05 or visits == 2 * ROUNDS


def test_a_benchmark_that_may_be_called_so_often_is_called_no_more():
    once = subject_of(1e-6, 1e-6, None, 0, most=1)
    assert (once.rounds, once.most_rounds, once.calls, once.blocks) == (0, 1, 1, 1)
    for most in (2, 7, 50):
        subject = subject_of(1e-6, 1e-6, None, 0, most=most)
        assert 2 * subject.most_rounds * subject.calls * subject.blocks <= most


def test_a_slow_first_call_is_not_what_a_call_costs(monkeypatch):
    from suite.gate import probe

    monkeypatch.setattr(probe, "PATIENCE_S", 0.0)
    monkeypatch.setattr(probe, "WARM_S", 0.0)
    pauses = iter([0.3, 0.0])
    wall_s, _, _, _ = probe.Timed(lambda: ((next(pauses),), {}), time.sleep).warm(None)
    assert wall_s < 0.3
    pauses = iter([0.3])
    wall_s, cpu_s, _, delayed_s = probe.Timed(lambda: ((next(pauses),), {}), time.sleep).warm(1)
    assert wall_s >= 0.3
    assert subject_of(wall_s, cpu_s, None, delayed_s).clock == "wall"
