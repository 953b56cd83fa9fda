"""What every task file keeps. A new file in tasks/ is tested here without an edit."""

import ast
import contextlib
import dataclasses
import functools
import itertools
import os
import pickle
import random
import re
import signal
import zlib
from pathlib import Path
from unittest import mock

import pytest

from suite import checkpoint, exact, fields, run, space, task
from suite.plan import expand
from suite.record import Placement
from suite.store import Store

ROOT = Path(__file__).parent.parent.parent
NAMES = [n for n in task.names() if task.source_path(n).is_relative_to(ROOT / "tasks")]
ALONE = Placement(
    scheduler="inline", workers=1, cpus=1, gpus=0.0, colocated_runs=0, contended=False
)


def _together(name):
    """The tests of a task stay in one process, so that they share its smoke runs.

    So do all tasks with a variant of RLlib, which takes a process many seconds to import.
    """
    return pytest.mark.xdist_group("rllib" if "rllib" in task.find(name).variants else name)


EACH = [pytest.param(n, marks=_together(n)) for n in NAMES]
EACH_VARIANT = [
    pytest.param(n, v, id=f"{n}-{v}", marks=_together(n))
    for n in NAMES
    for v in task.find(n).variants
]
DEFAULTS = [next(p for p in EACH_VARIANT if p.values[0] == n) for n in NAMES]
OTHERS = [p for p in EACH_VARIANT if p not in DEFAULTS]


def test_the_tasks_are_those_of_this_checkout():
    """Were another checkout found first, all tests here would be left out."""
    assert NAMES


def _spec(name, variant):
    return expand([name], profile="smoke", variants=[variant], seeds=[0])[0]


def _smoke(name, variant):
    """A smoke run's record, with its pictures; several tests look at the same one."""
    return _run(name, variant)[0]


@functools.cache
def _run(name, variant):
    """A smoke run's record, and a snapshot of it at a row that is drawn from all but the last.

    The snapshot is None where there is no such row.
    """
    store, spec = Store(f"memory://contract-{os.getpid()}"), _spec(name, variant)
    draw, kept, rows = random.Random(f"{name} {variant}"), [], 0
    with _each_picture_rendered_once(name):
        attempt = run.Attempt(spec, store=store, figures=True, placement=ALONE)
        for rows, _ in enumerate(attempt.rows(), 1):
            # How many there will be is not known: each takes the place of those before it with
            # the probability that makes all of them equally likely.
            if attempt.ctx.kept and draw.random() < 1 / rows:
                kept.append((rows, checkpoint.pack(attempt.snapshot())))
    return attempt.end(), next((s for n, s in reversed(kept) if n < rows), None)


_rendered = set()


def _each_picture_rendered_once(task_name):
    """Have every variant draw, and no more than the first to draw a picture wait for its pixels."""
    in_full = run.Context.figure

    def figure(ctx, name, draw):
        again = (task_name, name) in _rendered
        _rendered.add((task_name, name))
        with _no_pixels() if again else contextlib.nullcontext():
            in_full(ctx, name, draw)

    return mock.patch.object(run.Context, "figure", figure)


def _no_pixels():
    from matplotlib.figure import Figure

    return mock.patch.object(Figure, "savefig", lambda figure, content, **_: content.write(b""))


@pytest.mark.parametrize("name", EACH)
def test_declaration(name):
    t = task.find(name)
    assert dataclasses.is_dataclass(t.config)
    assert t.config.__dataclass_params__.frozen
    assert set(t.profiles) == set(task.PROFILES)
    assert t.sections
    assert all(t.sections)
    assert len(t.impls) == 1 or "impl" in {f.name for f in dataclasses.fields(t.config)}
    assert set(t.nondeterministic) <= set(t.variants)
    pickle.dumps(t.config)


@pytest.mark.parametrize("name", EACH)
def test_a_space_to_sweep_is_one_that_the_config_takes(name):
    t = task.find(name)
    for profile, variant in itertools.product(t.profiles, t.variants):
        space.checked(t.sweep, t, profile, variant, t.impls[0])


@pytest.mark.parametrize("name", EACH)
def test_the_file_is_in_order(name):
    tree = ast.parse(task.source_path(name).read_bytes())
    assert len((ast.get_docstring(tree) or "").splitlines()) >= 3
    named = [
        t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if hasattr(t, "id")
    ]
    assert named[-1] == "TASK"
    order = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    assert order[0] == "Config"
    assert order[-1] == "run"


@pytest.mark.parametrize("name", EACH)
def test_targets_and_claims_have_sources_and_name_what_exists(name):
    t = task.find(name)
    for profile in task.PROFILES:
        assert next(iter(t.variants)) in t.targets[profile]
    for profile, targets in t.targets.items():
        assert profile in t.profiles
        assert set(targets) <= set(t.variants)
        assert all(len(target.source) > 10 for target in targets.values())
    for claim in t.claims:
        assert len(claim.source) > 10
        assert claim.left in t.variants
        assert isinstance(claim.right, int | float) or claim.right in t.variants
        assert set(claim.profiles) <= set(t.profiles)
        assert claim.ordered or _carries(name, claim.left, claim.metric)
        for profile in claim.profiles if claim.metric == "steps_to_target" else ():
            assert t.timed_to(profile, claim.left), "nothing to time it to"


def _carries(name, variant, metric):
    return metric in _smoke(name, variant).train.final


@pytest.mark.parametrize("name", EACH)
def test_profiles_and_variants_touch_different_fields(name):
    t = task.find(name)
    for profile, variant in itertools.product(t.profiles.values(), t.variants.values()):
        assert not set(profile) & set(variant)
    for profile, variant in itertools.product(t.profiles, t.variants):
        t.configure(profile, variant)


@pytest.mark.parametrize("name", EACH)
def test_a_word_that_variants_change_is_declared_with_all_that_it_may_be(name):
    t = task.find(name)
    changed = {
        f for changes in t.variants.values() for f, v in changes.items() if isinstance(v, str)
    }
    # What data sets there are is known to suite.data.
    assert changed - {"data"} <= set(task.choices(type(t.config)))


@pytest.mark.parametrize("name", EACH)
def test_a_number_is_declared_with_all_that_it_may_be(name):
    config = task.find(name).config
    numbers = {
        field.name
        for field in dataclasses.fields(config)
        if type(getattr(config, field.name)) in (int, float)
    }
    assert numbers == set(fields.intervals(type(config)))


@pytest.mark.parametrize(("name", "variant"), EACH_VARIANT)
def test_every_variant_runs_under_smoke(name, variant):
    record = _smoke(name, variant)
    assert record.status in ("ok", "target_missed"), record.status_detail
    steps = record.train.curve["step"]
    assert steps == sorted(steps)
    assert all(s is not None and s == int(s) for s in steps)
    for targets in task.find(name).targets.values():
        if variant in targets:
            assert targets[variant].metric in record.train.final


@pytest.mark.parametrize(("name", "variant"), EACH_VARIANT)
def test_what_needs_no_statistics_is_as_it_was_accepted(name, variant):
    """A change that is meant: suite exact --accept."""
    assert exact.differences(name, variant, exact.of(_smoke(name, variant))) == []


def test_the_table_has_nothing_that_is_gone():
    assert exact.gone(NAMES) == []


@pytest.mark.parametrize("name", EACH)
def test_the_default_variant_meets_its_smoke_target(name):
    variant = next(iter(task.find(name).variants))
    record = _smoke(name, variant)
    assert record.train.reached, record.train.final


@pytest.mark.parametrize("name", EACH)
def test_a_task_draws(name):
    drawn = [_smoke(name, v).artifacts for v in task.find(name).variants]
    assert any(drawn)


@pytest.mark.parametrize(("name", "variant"), DEFAULTS)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bytes(name, variant, tmp_path):
    """The same seed gives the same numbers, and where in the run it is stopped does not matter."""
    _skip_nondeterministic(name, variant)
    whole = _smoke(name, variant).train
    store, rows = Store(str(tmp_path)), len(whole.curve["step"])
    if rows > 1:
        stop_after = 1 + zlib.crc32(f"{name} {variant}".encode()) % (rows - 1)
        _stopped(_spec(name, variant), store, stop_after)
    again = run.execute(_spec(name, variant), store=store, placement=ALONE)
    _are_the_same(again.train, whole)


@pytest.mark.parametrize(("name", "variant"), OTHERS)
def test_a_run_that_goes_on_from_a_snapshot_ends_in_the_same_bytes(name, variant):
    """Another set-up and what was kept are all that decides how it goes on."""
    _skip_nondeterministic(name, variant)
    whole, snapshot = _run(name, variant)
    assert snapshot or len(whole.train.curve["step"]) == 1
    snapshot = checkpoint.unpack(snapshot) if snapshot else None
    again = run.Attempt(_spec(name, variant), snapshot=snapshot, placement=ALONE)
    for _ in again.rows():
        pass
    _are_the_same(again.end().train, whole.train)


def _skip_nondeterministic(name, variant):
    if reason := task.find(name).nondeterministic.get(variant):
        pytest.skip(f"declared nondeterministic: {reason}")


def _are_the_same(one, other):
    assert one.params_sha256 == other.params_sha256
    timed = ("train_s", *(k for k in other.curve if k.endswith("_s")))
    assert {k: v for k, v in one.curve.items() if k not in timed} == {
        k: v for k, v in other.curve.items() if k not in timed
    }


def _stopped(spec, store, after):
    """Ask a run to stop when it has shown so many rows."""
    seen = []

    def stop(kind, content):
        seen.append(kind)
        if seen.count("row") == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(run.Interrupted):
        run.execute(spec, store=store, report=stop, placement=ALONE)
    assert store.fs.glob(store.path("checkpoints/*.pt"))


@pytest.mark.parametrize("name", EACH)
def test_a_run_cut_after_its_first_row_is_short_of_the_laptop_target(name):
    t = task.find(name)
    variant = next(iter(t.variants))
    curve = _smoke(name, variant).train.curve
    if len(curve["step"]) == 1:
        pytest.skip("yields once: there is no half-trained state")
    target = t.targets["laptop"][variant]
    first = next(v for v in curve[target.metric] if v is not None)
    assert not target.reached({target.metric: first})


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").rglob("*.py")), ids=lambda p: p.stem)
def test_style(path):
    text = path.read_text()
    assert "print(" not in text
    assert "set_default_d" not in text
    assert not re.search(r"pyplot|set_num_threads|manual_seed\(\s*0?\s*\)", text)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tasks").glob("ch*/__init__.py")), ids=lambda p: p.parent.name
)
def test_a_chapter_maps_its_sections(path):
    text = path.read_text()
    assert len((ast.get_docstring(ast.parse(text)) or "").splitlines()) >= 5
    headline = re.search(r'^HEADLINE = "(\w+)"$', text, re.MULTILINE)
    assert headline
    assert (path.parent / f"{headline[1]}.py").is_file()
