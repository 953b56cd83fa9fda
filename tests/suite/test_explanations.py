import re
from pathlib import Path

import pytest
from record_factory import claim, make_record

from suite import report
from suite.report.explanations import FILE, read
from suite.store import Store

RESULTS = Path(__file__).parents[2] / "results"
RED = ("CONTRADICTED", "NOT_REPRODUCED")
SENTENCE = "The digits are too small. A larger set may show it."


@pytest.fixture
def store(tmp_path):
    """Five runs that miss their target and contradict a claim."""
    made = Store(tmp_path)
    wanted = [claim(text="at 99 %", left="fixed", right=0.99, note="Nobody knows")]
    for seed in range(5):
        made.put(make_record(seed=seed, value=0.5 + seed / 1000, variant="fixed", claims=wanted))
    return made


def explain(store, *lines):
    store.write(FILE, "\n".join(lines).encode())


def names(store):
    [row] = report.build(store).tables.rows
    return row.group.task, row.group.profile


def test_an_explanation_stands_beside_what_decided(store):
    task, profile = names(store)
    explain(store, f'["{task}".{profile}]', f'fixed = "{SENTENCE}"', f'"at 99 %" = "{SENTENCE}"')
    made = report.write(store)
    [row], [found] = made.tables.rows, made.tables.claims
    for explained in (row, found):
        assert explained.word in RED
        assert explained.why.startswith(SENTENCE)
        assert len(explained.why) > len(SENTENCE)
    assert "Nobody knows" not in found.why
    assert SENTENCE in made.files[f"tables/{task[:4]}.md"]
    assert SENTENCE in made.files["tables/claims.md"]
    assert SENTENCE in store.read(report.PAGE).decode()
    assert report.check(store) == []


def test_the_tables_depend_on_the_explanations(store):
    task, profile = names(store)
    report.write(store)
    explain(store, f'["{task}".{profile}]', f'fixed = "{SENTENCE}"')
    assert any(f"tables/{task[:4]}.md" in problem for problem in report.check(store))


def test_a_green_verdict_needs_none(tmp_path):
    store = Store(tmp_path)
    for seed in range(5):
        store.put(make_record(seed=seed, value=0.999, variant="fixed"))
    task, profile = names(store)
    explain(store, f'["{task}".{profile}]', f'fixed = "{SENTENCE}"')
    assert SENTENCE not in str(report.write(store).files)
    assert report.check(store) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['["ch99.toys".laptop]', 'fixed = "x"'], "unknown task 'ch99.toys'; did you mean 'TASK'"),
        (['["TASK".lap]', 'fixed = "x"'], "unknown profile of TASK 'lap'; did you mean 'PROFILE'"),
        (['["TASK".PROFILE]', 'fixd = "x"'], "'fixd'; did you mean 'fixed'? Allowed: at 99 %"),
    ],
)
def test_what_is_not_there_is_named(store, lines, said):
    task, profile = names(store)

    def real(text):
        return text.replace("TASK", task).replace("PROFILE", profile)

    explain(store, *map(real, lines))
    made = report.write(store)
    assert real(said) in made.files["tables/index.md"].replace("\\", "")
    assert any(real(said) in problem for problem in report.check(store))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["[broken"], "Expected ']' at the end of a table"),
        (['"ch99.toy" = "x"'], "ch99.toy: 'x' is not a table of profiles"),
        (['["ch99.toy"]', 'laptop = "x"'], "ch99.toy, laptop: 'x' is not a table of variants"),
        (['["ch99.toy".laptop]', "fixed = 1"], "ch99.toy, laptop, fixed: 1 is no sentence"),
        (['["ch99.toy".laptop]', 'fixed = " "'], "fixed: ' ' is no sentence"),
    ],
)
def test_a_file_that_is_none_is_refused(store, lines, said, command_line):
    explain(store, *lines)
    with pytest.raises(ValueError, match=re.escape(said)):
        read(store)
    code, _, err = command_line("report", "--store", store.uri)
    assert code == 2
    assert said in " ".join(err.split())
    assert store.read(report.PAGE) is None


def test_every_red_verdict_that_is_published_is_explained():
    made = report.build(Store(str(RESULTS))).tables
    rows = [r for r in (*made.rows, *made.claims) if r.word in RED]
    assert rows
    assert [(r.group.task, r.group.profile, r.name) for r in rows if not r.note] == []
