import csv
import dataclasses
import functools
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from record_factory import make_record

from suite import report
from suite.report import sweep_page, sweeps
from suite.space import Choice, Range
from suite.store import Store

# One process draws the page that several tests look at.
pytestmark = pytest.mark.xdist_group("sweep report")
METRIC = "test_accuracy"
SPACE = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "whole": False},
    "optimizer": {"values": ["sgd", "adam"]},
}


def definition(**changes):
    base = {
        "task": "ch99.example",
        "version": "v1",
        "profile": "laptop",
        "variant": "fixed",
        "impl": "torch",
        "seed": 0,
        "device": "cpu",
        "overrides": {"epochs": 3},
        "stop_at_target": False,
    }
    return {
        "schema": "fdl.sweep/1",
        "base": base,
        "space": SPACE,
        "objective": {"metric": METRIC, "mode": "max", "target": 0.95},
        "search": "random",
        "scheduler": "none",
        "samples": 12,
        "budget_s": None,
        "seeds": [0],
        "default": {"lr": 0.001, "optimizer": "adam"},
        "created_utc": "2026-11-23T10:00:00.000Z",
        "finished_utc": "2026-11-23T11:00:00.000Z",
        **changes,
    }


def trial(number, config, value, *, name=None, lineage=(), **kw):
    own = {"trial": name or f"t_{number:05d}", "config": config, "lineage": list(lineage)}
    at = f"2026-11-23T10:00:{number:02d}.000Z"
    return make_record(
        value=value, version=json.dumps(config), extra={"sweep": own}, created_utc=at, **kw
    )


def twelve():
    """Accuracy follows the optimiser, and nothing else."""
    for i in range(12):
        config = {"lr": 10 ** -(1 + i / 4), "optimizer": ("sgd", "adam")[i % 2]}
        yield trial(i, config, 0.6 + 0.3 * (i % 2) + i * 1e-4)


def fill(folder, records, **changes):
    """The store of a sweep, below the store ``folder``."""
    store = Store(f"{folder}/sweeps/ch99.example-0")
    store.write("sweep.json", json.dumps(definition(**changes)).encode())
    for record in records:
        store.put(record)
    return store


@pytest.fixture
def swept(tmp_path):
    return functools.partial(fill, tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with the twelve trials and their page, which takes seconds to draw."""
    folder = tmp_path_factory.mktemp("drawn")
    sweeps.write(fill(folder, twelve()))
    return folder


@pytest.fixture
def written(drawn, tmp_path):
    """The twelve trials with their page, to be edited."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return Store(f"{tmp_path}/sweeps/ch99.example-0")


def test_trials_are_ranked_and_the_best_is_a_command(swept):
    found = sweeps.read(swept(twelve()))
    assert [t.number for t in found.ranked[:2]] == [12, 10]
    assert found.best is found.ranked[0]
    assert found.command(found.best) == (
        "suite run ch99.example --profile laptop --variant fixed --set epochs=3 "
        f"--set lr={10**-3.75} --set optimizer=adam --seeds 1-5"
    )
    assert found.own is None
    assert any("Best: trial 12" in s for s in sweeps.summary(found))


def test_the_smaller_is_the_better_where_the_target_says_so(swept):
    near = {"metric": METRIC, "mode": "near", "target": 0.7}
    least = {"metric": METRIC, "mode": "min", "target": 0.7}
    assert sweeps.read(swept(twelve(), objective=least)).best.number == 1
    found = sweeps.read(swept(twelve(), objective=near))
    assert found.best.number == 11
    assert found.best.objective == pytest.approx(0.7 - 0.601)


def test_the_objective_is_the_mean_of_seeds_that_all_ended(swept):
    config = [{"lr": 0.1 / 2**i, "optimizer": "sgd"} for i in range(4)]
    records = [trial(i, c, 0.5 + s / 10, seed=s) for i, c in enumerate(config) for s in (0, 1)]
    records[3] = trial(1, config[1], None, seed=1, status="nan", status_detail="loss at step 3")
    records[5] = trial(2, config[2], 0.4, seed=1, status="stopped")
    del records[7]
    found = sweeps.read(swept(records, seeds=[0, 1]))
    assert [t.objective for t in found.trials] == [pytest.approx(0.55), None, None, None]
    assert [t.status for t in found.trials] == ["ok", "nan", "stopped", "unfinished"]
    assert found.trials[1].detail == "loss at step 3"


def test_of_several_attempts_the_one_that_ended_counts(swept):
    config = {"lr": 0.01, "optimizer": "sgd"}
    died = trial(0, config, None, status="killed", attempt=1)
    [found] = sweeps.read(swept([died, trial(0, config, 0.9, attempt=2)])).trials
    assert found.objective == 0.9


def test_members_of_a_population_are_told_apart_by_name(swept):
    config = {"lr": 0.01, "optimizer": "sgd"}
    past = [{"until_row": 4, "config": {"lr": 0.02, "optimizer": "sgd"}}]
    records = [trial(i, config, 0.9, seed=i, lineage=past * i) for i in range(2)]
    store = swept(records, scheduler="pbt", seeds=[0, 1])
    found = sweeps.read(store)
    assert [t.status for t in found.trials] == ["ok", "ok"]
    assert "population" in sweeps.importance(found)
    sweeps.write(store)
    assert "until row 4: lr = 0.02, optimizer = sgd" in store.read("index.html").decode()
    best = dataclasses.replace(found, trials=found.trials[1:])
    assert any("changed on the way (until row 4: lr = 0.02" in s for s in sweeps.summary(best))


def test_importance_finds_the_field_that_matters(swept):
    found = sweeps.importance(sweeps.read(swept(twelve())))
    assert found.basis == "12 trials that ended"
    (share, low, high), (other, *_) = found.shares["optimizer"], found.shares["lr"]
    assert share > 0.9 > other
    assert low <= share
    assert high <= 1
    assert share + other == pytest.approx(1)


def test_importance_rests_on_an_evaluation_that_all_reached_where_few_ended(swept):
    records = [r.model_copy(update={"status": "stopped"}) for r in twelve()]
    records = [
        trial(
            i,
            r.extra["sweep"]["config"],
            r.train.final[METRIC].value,
            status="stopped" if i > 2 else "ok",
        )
        for i, r in enumerate(records)
    ]
    found = sweeps.importance(sweeps.read(swept(records)))
    assert found.basis == "12 trials at evaluation 2, the last that all of them reached"
    assert found.shares["optimizer"][0] > 0.9


def test_where_nothing_differs_there_is_no_importance(swept):
    records = [trial(i, {"lr": 0.1 / (i + 1), "optimizer": "sgd"}, 0.9) for i in range(9)]
    assert "1 of 9" in sweeps.importance(sweeps.read(swept(records)))


def test_pictures_and_page_of_twelve_trials(written):
    assert_drawn(written, {"parallel", "slices", "curves", "importance"})


@pytest.mark.parametrize(
    ("records", "changes", "names"),
    [
        (list(twelve())[:3], {"space": {"lr": SPACE["lr"]}}, {"slices", "curves"}),
        ([], {}, set()),
        (
            [trial(0, {"lr": 0.1, "optimizer": "sgd"}, None, status="crashed", train=None)],
            {},
            {"parallel", "slices", "curves"},
        ),
    ],
)
def test_pictures_and_page_are_written_for_what_there_is(swept, records, changes, names):
    store = swept(records, **changes)
    sweeps.write(store)
    assert_drawn(store, names)


def assert_drawn(store, names):
    drawn = {str(p).rpartition("/")[2][:-4] for p in store.fs.glob(store.path("*.png"))}
    assert drawn == names
    for name in names:
        assert store.read(f"{name}.png").startswith(b"\x89PNG")
    page = store.read("index.html").decode()
    assert page.count("<svg") == len(names)
    assert not re.search(r'(src|href)="(?!#|data:|trials\.csv)', page)
    assert sweeps.check(store) == []


@pytest.mark.parametrize("n_fields", [2, 3])
def test_a_grid_is_drawn_with_a_cell_for_each_combination(swept, n_fields):
    values = {"lr": [0.1, 0.01, 0.001], "optimizer": ["sgd", "adam"], "nesterov": [False, True]}
    space = {f: {"values": v} for f, v in list(values.items())[:n_fields]}
    domains = {f: Choice(tuple(v["values"])) for f, v in space.items()}
    from suite.space import combinations

    records = [trial(i, c, 0.5 + i / 100) for i, c in enumerate(combinations(domains))]
    store = swept(records, space=space, search="grid", samples=len(records))
    sweeps.write(store)
    page = store.read("index.html").decode()
    assert "every combination" in page
    for record in records:
        assert f"{record.train.final[METRIC].value:#.4g}" in page


def test_the_table_has_a_line_for_each_trial_with_its_records(written):
    rows = list(csv.DictReader(io.StringIO(written.read("trials.csv").decode())))
    assert len(rows) == 12
    assert rows[0]["optimizer"] == "adam"
    assert float(rows[0]["objective"]) == float(rows[0]["seed_0"]) == pytest.approx(0.9011)
    ids = {r.record_id[:16] for r in written.scan()}
    assert {r["records"] for r in rows} == ids


def test_what_was_edited_does_not_rederive(written):
    written.write("trials.csv", written.read("trials.csv").replace(b",0.90", b",0.99"))
    [problem] = sweeps.check(written)
    assert "trials.csv" in problem


def test_hostile_text_stays_text(swept):
    config = {"lr": 0.01, "optimizer": "<script>alert(1)</script>"}
    space = SPACE | {"optimizer": {"values": [config["optimizer"]]}}
    store = swept([trial(0, config, 0.9)], space=space)
    sweeps.write(store)
    assert "<script>alert" not in store.read("index.html").decode()
    assert (
        "<script>" not in store.read("README.md").decode().replace("\\", "").split("    suite")[0]
    )


@pytest.mark.parametrize(
    ("labels", "angle"),
    [(["sgd", "adam"], 0), (["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"], 30)],
)
def test_labels_below_a_panel_lean_where_they_would_run_into_each_other(labels, angle):
    figure = Figure(figsize=(3, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_xticks(range(len(labels)), labels)
    sweep_page._lean(figure)
    figure.draw_without_rendering()
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {angle}
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    # The end of a label that leans stands at its tick.
    assert {label.get_ha() for label in axes.get_xticklabels()} == {"right" if angle else "center"}


def test_a_domain_knows_its_place_on_an_axis():
    scale = sweep_page._scale(Range(1e-4, 1e-1, log=True))
    assert scale(1e-4) == pytest.approx(0)
    assert scale(1e-1) == pytest.approx(1)
    assert sweep_page._scale(Choice(("a", "b", "c")))("b") == 0.5
    assert sweep_page._marks(Range(1e-4, 1e-1, log=True)) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1])


def test_the_stores_page_leads_to_its_sweeps_and_the_check_reads_them(written, tmp_path):
    parent = Store(str(tmp_path))
    parent.put(make_record())
    report.write(parent)
    assert "sweeps/ch99.example-0/index.html" in parent.read("index.html").decode()
    assert report.check(parent) == []
    written.write("trials.csv", b"edited")
    assert any("sweeps/ch99.example-0/trials.csv" in p for p in report.check(parent))


def test_a_report_needs_neither_ray_nor_torch(swept, tmp_path):
    swept(twelve())
    code = (
        f"import sys; from suite.report import sweeps; from suite.store import Store; "
        f"sweeps.write(Store('{tmp_path}/sweeps/ch99.example-0')); "
        "print([m for m in ('ray', 'torch') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"
