import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_factory import claim, data_info, make_record, node

from suite import report, stats
from suite.report import curves, files, page, series, tables, text
from suite.store import Store

ROOT = Path(__file__).parents[2]
GENERATOR = {"commit": "c" * 40, "dirty": False, "versions": {"numpy": "2"}}
HOSTILE = (
    "<script>alert(1)</script> \"q\" 'a' | b\nc `d` [e](f) =1+1 & $x$ \x00\u202e _g_ {{ 7*7 }}"
)


def runs(*values, **kw):
    return [make_record(seed=seed, value=value, **kw) for seed, value in enumerate(values)]


GOOD = (0.97, 0.975, 0.968, 0.972, 0.971)


@pytest.fixture(scope="session")
def many():
    """Records of several tasks, profiles, variants, versions and fates."""
    claims = [claim(), claim(text="fewer steps", metric="steps_to_target", right=500.0, mode="min")]
    better = [v + 0.01 for v in GOOD]
    other = {"task_id": "ch03.other", "variant": "a|b", "extra": {"default_variant": "a|b"}}
    point = {"step": [1.0], "error": [2e-6]}
    once = {"task_id": "ch03.once", "metric": "error", "target": {"op": "min", "value": 1e-5}}
    return [
        *runs(0.5, 0.5, version="v0"),
        *runs(*GOOD, claims=claims, minute=1, crossing_step=400),
        *runs(*better, variant="dropout", claims=claims, minute=1, crossing_step=300),
        *runs(0.4, None, 0.41, variant="odd", target=None, minute=2, claims=claims),
        *runs(*GOOD, profile="paper", data=[data_info("digits", "standin")], dirty=True),
        *runs(*GOOD, title=HOSTILE, **other),
        *runs(1e-6, 2e-6, 3e-6, curve=point, **once),
        make_record("ch03.once", kind="compile", seed=9),
    ]


@pytest.fixture(scope="session")
def original(tmp_path_factory, many):
    """A store with its report, written once; tests work on copies."""
    made = Store(tmp_path_factory.mktemp("original"))
    picture = made.put_artifact("mistakes.png", png())
    for record in [*many, *runs(0.97, task_id="ch05.drawn", artifacts=[picture.model_dump()])]:
        made.put(record)
    report.write(made)
    return made


@pytest.fixture
def written(tmp_path, original):
    shutil.copytree(original.uri, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def store(written):
    shutil.rmtree(Path(written.uri) / "tables")
    (Path(written.uri) / "index.html").unlink()
    return written


@pytest.fixture(scope="session")
def html(original):
    return rendered(original)


def png(width=8):
    from matplotlib.figure import Figure

    content = io.BytesIO()
    Figure(figsize=(width / 10, 0.4)).savefig(content, format="png", dpi=10)
    return content.getvalue()


def only(records):
    rows = tables.derive(records).rows
    assert len(rows) == 1
    return rows[0]


# Series


def test_the_newest_version_is_shown_and_older_ones_are_counted():
    old = runs(0.5, 0.5, version="v0", minute=1)
    new = runs(*GOOD, version="v1", minute=5)
    made = tables.derive(new + old)
    assert [r.values for r in made.rows] == [dict(enumerate(GOOD))]
    assert (made.rows[0].group.older, made.rows[0].group.older_versions) == (2, 1)
    assert "2 records of 1 earlier version" in files.render(made)["tables/ch99.md"]


def test_newest_is_by_when_it_ended_not_by_its_name():
    assert only(runs(0.5, version="v9", minute=1) + runs(0.6, version="v1", minute=2)).values == {
        0: 0.6
    }


def test_versions_are_chosen_for_each_profile_by_itself():
    paper = runs(0.9, profile="paper", version="v0", minute=1)
    laptop = runs(0.8, version="v1", minute=2)
    assert {r.group.profile: r.group.older for r in tables.derive(paper + laptop).rows} == {
        "paper": 0,
        "laptop": 0,
    }


def test_a_finished_attempt_counts_whatever_failed_before_or_after():
    records = [
        make_record(value=None, status="oom", attempt=1, minute=1),
        make_record(value=0.96, attempt=2, minute=2),
        make_record(value=None, status="killed", attempt=3, minute=3),
    ]
    row = only(records)
    assert row.values == {0: 0.96}
    assert row.failed == 0


def test_of_two_finished_attempts_the_newest_counts():
    records = [make_record(value=0.9, minute=2), make_record(value=0.8, minute=1)]
    assert only(records).values == {0: 0.9}


@pytest.mark.parametrize("status", ["crashed", "oom", "timeout", "killed", "infra_error", "nan"])
def test_a_failed_seed_has_no_value_and_is_counted(status):
    row = only([*runs(*GOOD), make_record(seed=9, value=0.99, status=status)])
    assert row.values[9] is None
    assert row.seeds == f"5 + 1 failed (1 {status})"
    assert row.verdict.failed == 1
    assert row.measured.n == 5


def test_a_skipped_run_is_no_run():
    assert only([*runs(*GOOD), make_record(seed=9, value=None, status="skipped")]).attempted == 5


def test_implementations_devices_and_overrides_are_series_of_their_own():
    records = [
        make_record(),
        make_record(impl="triton"),
        make_record(impl="triton", gpus=1),
        make_record(extra={"overrides": {"lr": 0.1}}),
        make_record(extra={"stop_at_target": True}),
    ]
    assert [(r.series.label, r.series.computed_by) for r in tables.derive(records).rows] == [
        ("fixed", "torch, cpu"),
        ("fixed", "triton, cpu"),
        ("fixed", "triton, gpu"),
        ("fixed, lr=0.1", "torch, cpu"),
        ("fixed, stopped at target", "torch, cpu"),
    ]


def test_kernels_under_the_interpreter_are_called_so():
    env = make_record().env.model_copy(update={"triton": {"version": "3.7.1", "interpret": True}})
    records = [make_record(impl=impl, env=env) for impl in ("torch", "triton")]
    found = [r.series.computed_by for r in tables.derive(records).rows]
    assert found == ["torch, cpu", "triton interpreted, cpu"]


def test_the_default_variant_comes_first():
    records = [make_record(variant=v, extra={"default_variant": "m"}) for v in "zam"]
    assert [r.series.label for r in tables.derive(records).rows] == ["m", "a", "z"]


def test_steps_to_target_are_censored_not_averaged():
    records = [make_record(seed=s, crossing_step=c) for s, c in enumerate([100, None, 300])]
    row = only([*records, make_record(seed=3, value=None, status="crashed")])
    assert row.crossings == {0: 100.0, 1: None, 2: 300.0}
    assert row.steps == "200 (2 of 3 reached)"


def test_a_target_that_only_the_last_evaluation_meets_is_no_target_missed():
    assert only(runs(*GOOD, 0.5)).steps == "(at the last evaluation, 5 of 6)"
    assert only(runs(0.5, 0.6, 0.7)).steps == "(0 of 3 reached)"


def test_a_band_to_hit_has_no_steps_to_target():
    assert only(runs(0.95, target={"op": "near", "tolerance": 0.01})).steps == text.NONE


# Verdicts


def test_one_seed_is_inconclusive_and_says_that_it_met_the_target():
    row = only(runs(0.97))
    assert row.word == "INCONCLUSIVE"
    assert row.met == "1 of 1 (≥ 5 %)"


def test_seeds_decide():
    assert only(runs(*GOOD)).word == "REPRODUCED"
    assert only(runs(0.5, 0.51, 0.52)).word == "CONTRADICTED"


def test_paper_rows_refuse_stand_ins():
    standin = {"profile": "paper", "data": [data_info("digits", "standin")]}
    row = only(runs(*GOOD, **standin))
    assert row.word == "REFUSED"
    assert "digits is a stand-in" in row.why
    assert (
        "REFUSED: stand-in data"
        in files.render(tables.derive(runs(*GOOD, **standin)))["tables/ch99.md"]
    )
    assert only(runs(*GOOD, data=[data_info("digits", "standin")])).word == "REPRODUCED"
    assert (
        only(runs(*GOOD, profile="paper", data=[data_info("x", "synthetic")])).word == "REPRODUCED"
    )


def test_a_claim_at_paper_refuses_stand_ins_on_either_side():
    both = {"profile": "paper", "claims": [claim()]}
    left = runs(*GOOD, variant="dropout", data=[data_info("digits", "standin")], **both)
    (row,) = tables.derive(left + runs(*GOOD, **both)).claims
    assert row.word == "REFUSED"


def test_a_variant_without_a_target_shows_the_others_metric():
    made = tables.derive([*runs(*GOOD), *runs(0.4, 0.5, 0.6, variant="plain", target=None)])
    row = made.rows[1]
    assert (row.word, row.metric, row.met) == ("NO TARGET", "test_accuracy", text.NONE)
    assert row.measured.estimate == pytest.approx(0.5)


def test_a_variant_without_the_others_metric_shows_what_is_claimed_about_it():
    claims = [claim(), claim(text="flat", left="plain", right=0.1, metric="gap", mode="min")]
    plain = runs(0.2, 0.3, 0.4, variant="plain", target=None, metric="gap", claims=claims)
    row = tables.derive([*runs(*GOOD, claims=claims), *plain]).rows[1]
    assert (row.word, row.metric) == ("NO TARGET", "gap")
    assert row.measured.estimate == pytest.approx(0.3)


@pytest.mark.parametrize(("dirty", "marked"), [(False, False), (True, True), (None, True)])
def test_uncommitted_trees_are_marked(dirty, marked):
    table = files.render(tables.derive(runs(*GOOD, dirty=dirty)))["tables/ch99.md"]
    assert ("1a2b3c4†" in table) == ("not publishable" in table) == marked


def test_contended_times_mixed_machines_and_mixed_data_are_marked():
    placement = make_record().placement.model_copy(update={"contended": True})
    records = [
        make_record(seed=0, placement=placement, nodes=[node(cpu_model="Other")]),
        make_record(seed=1, data=[data_info(sha256="b" * 64)]),
    ]
    table = files.render(tables.derive(records))["tables/ch99.md"]
    assert "‡ timed on" in table
    assert "§ timed on" in table
    assert "¶ the seeds" in table


@pytest.mark.parametrize(
    ("load", "marked"), [(None, False), (1.2, False), (6.0, False), (6.1, True)]
)
def test_times_of_a_machine_that_was_busy_with_something_else_are_marked(load, marked):
    records = runs(*GOOD, nodes=[node() | {"cpu_cores": 4, "load1_start": load}])
    assert ("‡ timed on" in files.render(tables.derive(records))["tables/ch99.md"]) == marked


# Claims


def judged(*records):
    return tables.derive([r for group in records for r in group]).claims


def test_claims_are_paired_by_seed():
    left = runs(*(v + 0.01 for v in GOOD), variant="dropout", claims=[claim()])
    (row,) = judged(left, runs(*GOOD, claims=[claim()]))
    assert row.word == "REPRODUCED"
    assert row.pairs == "5 of 5"
    assert row.gap[0] == pytest.approx(0.01)


def test_a_claim_against_a_number_shows_the_difference_from_it():
    (row,) = judged(runs(*GOOD, claims=[claim(left="fixed", right=0.9)]))
    assert row.gap[0] == pytest.approx(0.0712)
    assert row.right_text == "0.9000"


def test_a_claim_about_steps_counts_wins():
    c = [claim(metric="steps_to_target", mode="min")]
    left = runs(*GOOD, variant="dropout", crossing_step=100, claims=c)
    (row,) = judged(left, runs(*GOOD, crossing_step=None, claims=c))
    assert row.word == "REPRODUCED"
    assert row.difference.startswith("won 1")
    assert row.right_text == "fixed: (0 of 5 reached)"


def test_a_metric_that_is_censored_is_missing_where_nothing_happened():
    c = [claim(metric="updates", mode="min", censored=True)]
    happened = runs(*GOOD, variant="dropout", final={"updates": 100.0}, claims=c)
    (row,) = judged(happened, runs(*GOOD, claims=c))
    assert (row.word, row.pairs) == ("REPRODUCED", "5 of 5")
    assert (row.difference[:5], row.right_text) == ("won 1", "fixed: (0 of 5 reached)")
    assert (row.g, row.p_better) == (None, 1.0)
    # A run that broke off says nothing about when.
    broken = [make_record(seed=seed, value=None, status="crashed", claims=c) for seed in (0, 1)]
    (row,) = judged(happened, broken, runs(*GOOD, claims=c)[2:])
    assert (row.word, row.pairs) == ("INCONCLUSIVE", "3 of 3")


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_effects_speak_for_the_claim_where_they_are_above(mode, sign):
    c = {"claims": [claim(mode=mode)]}
    (row,) = judged(runs(0.92, 0.94, 0.96, variant="dropout", **c), runs(0.91, 0.93, 0.97, **c))
    left, right = (0.92, 0.94, 0.96), (0.91, 0.93, 0.97)
    assert row.g == pytest.approx(sign * stats.hedges_g(left, right))
    better = stats.probability_of_improvement(left, right)
    assert row.p_better == pytest.approx(better if mode == "max" else 1 - better)
    assert row.effect.startswith("g ")


def test_a_time_that_was_not_reached_is_the_latest_of_all():
    c = [claim(metric="steps_to_target", mode="min")]
    left = runs(*GOOD[:2], variant="dropout", crossing_step=100, claims=c)
    right = [
        *runs(GOOD[0], crossing_step=50, claims=c),
        *runs(None, GOOD[1], crossing_step=None, claims=c)[1:],
    ]
    (row,) = judged(left, right)
    assert (row.g, row.p_better) == (None, 0.5)


def test_what_is_evaluated_once_has_no_time_to_target():
    row = only(runs(*GOOD, curve={"step": [10.0], "test_accuracy": [0.97]}, crossing_step=None))
    assert row.crossings == {}
    assert row.steps == text.NONE


def test_a_claim_against_a_number_has_no_other_side_to_beat():
    (row,) = judged(runs(*GOOD, claims=[claim(left="fixed", right=0.9)]))
    assert (row.g, row.p_better, row.p_holm, row.effect) == (None, None, None, "")


def test_p_values_allow_for_all_claims_of_the_task():
    c = {"claims": [claim(), claim(text="the reverse", left="fixed", right="dropout")]}
    rows = judged(runs(*(v + 0.01 for v in GOOD), variant="dropout", **c), runs(*GOOD, **c))
    assert [r.p_holm for r in rows] == stats.holm([r.verdict.p for r in rows])
    assert rows[0].p_holm == pytest.approx(2 / 32)


def test_a_claim_of_which_a_side_is_missing_is_not_run():
    (row,) = judged(runs(*GOOD, claims=[claim()]))
    assert row.word == "NOT RUN"
    assert row.why == "Not run under this profile, as torch, cpu: dropout."
    (row,) = judged(runs(*GOOD, variant="else", claims=[claim()]))
    assert row.word == "NOT RUN"
    assert row.why == "Not run under this profile: dropout, fixed."


def test_a_half_run_implementation_does_not_hide_nor_repeat_a_claim():
    c = {"claims": [claim()]}
    rows = judged(
        runs(*GOOD, variant="dropout", **c), runs(*GOOD, **c), runs(*GOOD, impl="triton", **c)
    )
    assert [r.impl for r in rows] == ["torch, cpu"]


def test_changed_configs_enter_no_claim():
    c = {"claims": [claim()], "variant": "dropout"}
    changed = runs(*GOOD, extra={"overrides": {"lr": 1}}, **c)
    assert [r.word for r in judged(changed, runs(*GOOD, claims=[claim()]))] == ["NOT RUN"]


@pytest.mark.parametrize("extra", [{"overrides": {"tasks": "1"}}, {"stop_at_target": True}])
def test_changed_configs_are_shown_beside_the_target_and_not_judged(extra):
    (row,) = tables.derive(runs(*GOOD, extra=extra)).rows
    assert (row.word, row.why) == ("CHANGED", "")
    assert row.met.startswith("5 of 5")
    assert row.measured.estimate == pytest.approx(sum(GOOD) / 5)


def test_claims_hold_for_their_profiles_only():
    assert not judged(runs(*GOOD, profile="smoke", claims=[claim()]))


def test_the_note_explains_the_verdict():
    note = [claim(note="The gap closes at this width.")]
    (row,) = judged(
        runs(0.5, 0.5, 0.51, variant="dropout", claims=note), runs(*GOOD[:3], claims=note)
    )
    assert row.why.startswith("The gap closes at this width. test_accuracy: ")


# Overview


def test_the_default_variant_speaks_for_its_task():
    records = [
        *runs(*GOOD),
        *runs(0.1, 0.2, 0.3, variant="another"),
        *runs(0.1, 0.2, 0.3, extra={"overrides": {"lr": 1}}),
        *runs(0.1, 0.2, 0.3, impl="fast"),
    ]
    (task,) = tables.derive(records).tasks
    assert task.headline["laptop"].word == "REPRODUCED"


def test_summary_lists_targets_and_claims(many):
    derived = tables.derive(many)
    lines = tables.summary(derived, ["ch99.example"])
    assert {line.task for line in lines} == {"ch99.example"}
    assert [line.what for line in lines if line.profile == "laptop"] == [
        "fixed (torch, cpu)",
        "dropout (torch, cpu)",
        "dropout generalises better than no dropout",
        "fewer steps",
    ]
    assert len(tables.summary(derived)) > len(lines)


def test_records_without_extra_are_shown():
    bare = make_record().model_copy(update={"extra": {}})
    (task,) = tables.derive([bare]).tasks
    assert (task.title, task.is_headline) == ("ch99.example", False)


# Tables


def render(records):
    return files.render(tables.derive(records))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_tables_do_not_depend_on_the_order_of_records(many, data):
    assert render(data.draw(st.permutations(many))) == render(many)


def test_csv_holds_every_value_exactly():
    values = [0.1 + 0.2, 1 / 3, 0.97]
    (row,) = csv.DictReader(io.StringIO(render(runs(*values))["tables/ch99.csv"]))
    assert [float(p.split(":")[1]) for p in row["values"].split(";")] == values
    assert row["n"] == "3"
    assert row["dirty"] == "no"


def test_hostile_text_breaks_no_table():
    bad = [claim(text=HOSTILE, note=HOSTILE, source=HOSTILE, left=HOSTILE)]
    kw = {"title": HOSTILE, "variant": HOSTILE, "impl": HOSTILE, "claims": bad}
    made = render(
        runs(*GOOD, metric=HOSTILE, target={"source": HOSTILE}, **kw) + runs(*GOOD, claims=bad)
    )
    for name, content in made.items():
        assert name.endswith(".csv") or "<script" not in re.sub(r"`[^`]*`", "", content)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", content)
        if name.endswith(".csv"):
            rows = list(csv.reader(io.StringIO(content)))
            assert len({len(row) for row in rows}) == 1
            assert len(rows) == content.count("\n")
        else:
            for table in re.findall(r"(?:^\|.*\n)+", content, re.M):
                assert (
                    len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
                )


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-2+3", "@SUM(A1)"])
def test_no_csv_cell_is_a_formula(cell):
    assert text.csv_table(["x"], [[cell]]) == f"x\n'{cell}\n"


def test_numbers_are_no_formulas():
    assert text.csv_table(["x"], [[-2.5], ["-2.5"], ["-1e-05"]]) == "x\n-2.5\n-2.5\n-1e-05\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "—"),
        (0.0, "0"),
        (-0.0, "0"),
        (3.0, "3"),
        (0.97123456, "0.9712"),
        (0.5, "0.5000"),
        (97.126, "97.13"),
        (999.96, "1000"),
        (12345.67, "12,350"),
        (123456.0, "123,456"),
        (0.0000123456, "1.235e-05"),
        (-1.5, "-1.500"),
        (1.5e12, "1.500e+12"),
    ],
)
def test_numbers_have_four_digits(value, expected):
    assert text.number(value) == expected


def test_quantities_have_units():
    assert text.duration(0.0) == "0 ms"
    assert text.duration(0.0421) == "42.1 ms"
    assert text.duration(12.345) == "12.3 s"
    assert text.duration(90) == "90.0 s"
    assert text.duration(600) == "10.0 min"
    assert text.duration(9000) == "2.50 h"
    assert text.memory(512 * 2**20) == "512 MiB"
    assert text.memory(141 * 2**30) == "141 GiB"
    assert text.count(203_530) == "203,530"


# Writing and checking


def test_what_is_written_checks_out(written):
    assert report.check(written) == []


def test_writing_again_gives_the_same_bytes(written):
    names = ["index.html", "tables/PROVENANCE.json", *report.build(written).files]
    first = {name: written.read(name) for name in names}
    report.write(written)
    assert {name: written.read(name) for name in names} == first


def test_a_later_commit_checks_with_the_stamp_that_was_written(written, monkeypatch):
    monkeypatch.setattr(report, "_generator", lambda: GENERATOR)
    assert report.check(written) == []


def test_tables_can_be_written_elsewhere(store, tmp_path):
    report.write(store, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").is_file()
    assert not (tmp_path / "store" / "tables").exists()
    assert report.check(store, tmp_path / "out") == []


def test_a_memory_store_can_be_reported():
    memory = Store("memory://reported")
    memory.put(make_record())
    report.write(memory)
    assert report.check(memory) == []


def test_an_edited_record_is_named(written, many):
    name = many[3].name
    written.write(name, written.read(name).replace(b"0.975", b"0.995"))
    problems = report.check(written)
    assert any(p.startswith(f"{name}: content does not match its record_id") for p in problems)
    assert any(p.startswith("tables/ch99.csv: line ") for p in problems)


def test_a_truncated_record_is_named(written, many):
    written.write(many[3].name, written.read(many[3].name)[:100])
    assert any(p.startswith(f"{many[3].name}: not JSON") for p in report.check(written))


def test_a_record_that_went_or_came_is_named(written, many):
    new = make_record(seed=77, value=0.9)
    written.put(new)
    written.delete(many[3].name)
    problems = report.check(written)
    assert f"{many[3].name}: the tables rest on it, but it is gone" in problems
    assert any(p.startswith(f"{new.name}: newer than the tables") for p in problems)


def test_an_edited_table_is_named_with_its_line(written):
    name = "tables/ch99.md"
    written.write(name, written.read(name).replace(b"REPRODUCED", b"PERFECT", 1))
    (problem,) = report.check(written)
    assert re.match(r"tables/ch99.md: line \d+ differs: stored .*PERFECT", problem)


@pytest.mark.parametrize(
    "edit", [lambda b: b + b"\n", lambda b: b[:-1], lambda b: b.replace(b"\n", b"\r\n")]
)
def test_any_other_byte_is_noticed(written, edit):
    written.write("tables/claims.csv", edit(written.read("tables/claims.csv")))
    assert [p.split(":")[0] for p in report.check(written)] == ["tables/claims.csv"]


def test_a_missing_table_and_a_stray_one_are_named(written):
    written.delete("tables/claims.md")
    written.write("tables/ch77.md", b"invented")
    assert report.check(written) == [
        "tables/claims.md: missing; type suite report",
        "tables/ch77.md: no records lead to it",
    ]
    report.write(written)
    assert written.read("tables/ch77.md") is None


def test_an_edited_page_is_named(written):
    written.write("index.html", written.read("index.html").replace(b"CONTRADICTED", b"REPRODUCED"))
    assert report.check(written) == ["index.html: changed after it was written"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"records": 1, "page_sha256": ""}'])
def test_broken_provenance_is_named(written, content):
    written.write("tables/PROVENANCE.json", content)
    assert any(
        p.startswith("tables/PROVENANCE.json: cannot be read") for p in report.check(written)
    )


def test_provenance_says_what_the_tables_rest_on(written, many):
    found = json.loads(written.read("tables/PROVENANCE.json"))
    assert found["n_records"] == len(many) + 1
    assert many[0].name in found["records"]
    assert found["tables_sha256"].keys() == report.build(written).files.keys()


def test_an_unwritten_report_fails_the_check(store):
    assert report.check(store) == ["tables/PROVENANCE.json: missing; type suite report"]


def test_a_record_with_an_impossible_target_or_claim_is_rejected(tmp_path):
    bad = Store(tmp_path)
    bad.put(make_record(target={"source": " "}))
    bad.put(make_record(seed=1, claims=[{"nonsense": 1}]))
    bad.put(make_record(seed=2, claims=7))
    made = report.build(bad)
    assert len(made.rejected) == 3
    assert "Rejected: records/ch99.example/" in made.files["tables/index.md"]


def test_an_empty_store_says_what_to_type(tmp_path):
    empty = Store(tmp_path)
    made = report.write(empty)
    assert not made.contradicted
    assert "suite reproduce" in (tmp_path / "index.html").read_text()
    assert "suite reproduce" in (tmp_path / "tables" / "index.md").read_text()
    assert report.check(empty) == []


def test_contradictions_are_said(tmp_path):
    store = Store(tmp_path)
    for record in runs(0.1, 0.11, 0.12):
        store.put(record)
    assert report.build(store).contradicted


def test_a_report_needs_neither_tasks_nor_torch(store):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'tasks', 'ray', 'pandas']))\n"
        "from suite import report; from suite.store import Store\n"
        "assert not {'matplotlib', 'jinja2'} & sys.modules.keys()\n"
        f"report.write(Store({store.uri!r})); assert not report.check(Store({store.uri!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)


# Page


def rendered(store):
    return page.render(report.build(store), store, GENERATOR)


def test_the_page_asks_nobody_for_anything(html):
    assert "default-src 'none'; img-src data: file: 'self';" in html
    beside = r"data:|\#|tables/|artifacts/"
    assert not re.findall(rf"""(?:src|href|action|data)=["'](?!{beside})[^"']*""", html)
    assert not re.search(
        r"@import|url\((?!#)|srcset|<(?:link (?!rel=.icon)|iframe|object|embed)", html
    )


def test_the_page_does_not_depend_on_the_order_of_records(store):
    made = report.build(store)
    shuffled = report.Report(
        made.records[::-1], made.rejected, tables.derive(made.records[::-1]), made.files
    )
    assert page.render(shuffled, store, GENERATOR) == page.render(made, store, GENERATOR)


def test_hostile_text_stays_text_on_the_page(tmp_path):
    store = Store(tmp_path)
    bad = [claim(text=HOSTILE, note=HOSTILE, source=HOSTILE, left=HOSTILE)]
    kw = {"title": HOSTILE, "variant": HOSTILE, "impl": HOSTILE, "claims": bad, "metric": HOSTILE}
    for record in runs(*GOOD, target={"source": HOSTILE}, data=[data_info(HOSTILE)], **kw):
        store.put(record)
    html = rendered(store)
    assert "<script>alert" not in html
    assert "{{ 7*7 }}" in html
    assert html.count("<script") == 2
    assert html.count("</script") == 2


def test_ids_on_the_page_are_unique(html):
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_references_on_the_page_lead_somewhere(html):
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) <= {
        pair for i in ids for pair in ((i, ""), ("", i))
    }


def test_pictures_are_shown_only_if_they_are_what_the_record_says(tmp_path):
    store = Store(tmp_path)
    good, changed = store.put_artifact("a.png", png()), store.put_artifact("b.png", png(16))
    store.write(changed.path, png(24))
    (tmp_path / "secret.png").write_bytes(png(32))
    outside = good.model_copy(update={"name": "c.png", "path": "artifacts/../secret.png"})
    script = store.put_artifact("d.png", b"<svg onload=alert(1)>")
    gone = good.model_copy(update={"name": "e.png", "path": f"artifacts/{'0' * 32}.png"})
    parts = [a.model_dump() for a in (good, changed, outside, script, gone)]
    store.put(make_record(artifacts=parts))
    html = rendered(store)
    assert re.findall(r'<img src="([^"]*)"', html) == [good.path]
    assert 'alt="a: fixed, laptop, seed 0"' in html
    inside = base64.b64encode(png()).decode()
    alone = report.one_file(store, report.build(store))
    assert re.findall(r'<img src="([^"]*)"', alone) == [f"data:image/png;base64,{inside}"]


def test_a_page_alone_links_to_no_other_file(store):
    built = report.build(store)
    places = re.findall(r'href="([^"#][^"]*)"', report.one_file(store, built))
    assert places == ["data:,"]
    assert 'href="tables/index.md"' in rendered(store)


def test_rejected_files_and_other_kinds_are_mentioned(store):
    store.write("records/ch99.example/broken.json", b"{")
    html = rendered(store)
    assert "broken.json" in html
    assert "1 compile record not shown" in html


# Curves


def test_the_median_is_over_steps_that_all_runs_have():
    made = curves.median_curve([{1: 1.0, 2: 2.0}, {1: 3.0, 2: 6.0}, {1: 2.0, 2: 1.0, 3: 9.0}, {}])
    assert made == {1: 2.0, 2: 2.0}
    assert curves.median_curve([]) == {}


@given(st.dictionaries(st.integers(0, 10**6).map(float), st.floats(-1, 1), max_size=900))
def test_thinning_keeps_the_ends(run):
    kept = curves._thinned(run)
    assert len(kept) <= curves.MOST_POINTS + 1
    assert kept.items() <= run.items()
    assert set(run) & {min(run, default=0), max(run, default=0)} <= set(kept)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", curves.PALETTE)
def test_colours_stand_out_from_both_backgrounds(colour):
    for background in re.findall(
        r"--bg: light-dark\((#\w+), (#\w+)\)", (ROOT / "suite/report/page.css.j2").read_text()
    )[0]:
        dark, light = sorted((luminance(colour), luminance(background)))
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_no_two_of_sixty_four_lines_look_alike():
    looks = [look for look, _ in zip(curves.looks(), range(64), strict=False)]
    assert len(set(looks)) == 64


def test_figures_take_the_colour_of_their_page(many):
    made = tables.derive(many)
    rows = [r for r in made.rows if r.group.task == "ch99.example" and r.group.profile == "laptop"]
    (picture,) = curves.pictures(rows, "f1")
    assert "currentColor" in picture.svg
    assert curves.INK not in picture.svg
    assert "<style" not in picture.svg
    assert "target ≥ 0.95" in picture.caption
    assert next(curves.pictures(rows, "f1")) == picture


def test_decades_are_shown_as_decades():
    column = {"step": [1.0, 2.0, 3.0], "error": [1.0, 1e-4, 1e-8]}
    target = {"op": "min", "value": 1e-6}
    made = tables.derive(runs(1e-8, metric="error", curve=column, target=target)).rows
    (picture,) = curves.pictures(made, "f")
    assert ">1e-08<" in picture.svg
    assert "mathdefault" not in picture.svg


def test_what_never_finished_or_has_no_metric_is_not_drawn():
    failed = tables.derive(runs(None, None, status="crashed")).rows
    assert not list(curves.pictures(failed, "f"))
    assert not list(curves.pictures(tables.derive(runs(0.5, target=None)).rows, "f"))


def test_a_variant_without_the_metric_of_its_task_is_left_out_of_the_picture():
    judged = make_record(curve={"step": [1.0], "test_accuracy": [0.97]})
    other = make_record(
        variant="other", metric="gap", curve={"step": [1.0], "gap": [0.5]},
        target={"metric": "test_accuracy"},
    )  # fmt: skip
    rows = tables.derive([judged, other]).rows
    assert [row.metric for row in rows] == ["test_accuracy", "test_accuracy"]
    [picture] = curves.pictures(rows, "f")
    assert "test accuracy" in picture.svg
    assert ">other" not in picture.svg


def test_gaps_in_a_curve_are_left_out():
    record = make_record(curve={"step": [1.0, None, 3.0], "test_accuracy": [0.1, 0.2, None]})
    assert curves.points(record, "test_accuracy") == {1.0: 0.1}


def test_series_reads_the_metric_of_a_run():
    record = make_record(final={"other": 3.0})
    assert series.value_of(record, "other") == 3.0
    assert series.value_of(record, "absent") is None
