import hashlib

import pytest
from record_factory import make_record

from suite import report
from suite.report import series
from suite.store import Store


def sha(version):
    return hashlib.sha256(version.encode()).hexdigest()


@pytest.fixture
def store(tmp_path):
    """Three seeds of one version and, later, two of another."""
    store = Store(tmp_path)
    for seed in range(5):
        version, minute = ("v1", 1) if seed < 3 else ("v2", 5)
        store.put(make_record(seed=seed, version=version, minute=minute))
    return store


def write(store, *lines):
    store.write("versions.toml", "\n".join(lines).encode())


def test_versions_that_count_as_one_are_one_series(store):
    (alone,) = report.build(store).tables.rows
    assert (alone.attempted, alone.group.older) == (2, 3)
    for old, new in (("v1", "v2"), ("v2", "v1")):
        write(store, '["ch99.example"]', f'"{sha(old)}" = "{sha(new)}"')
        made = report.build(store)
        (both,) = made.tables.rows
        assert (both.attempted, both.group.older, made.strays) == (5, 0, ())
        assert "left out" not in made.files["tables/index.md"]


def test_versions_of_another_task_count_for_that_one(store):
    write(store, '["ch98.other"]', f'"{sha("v1")}" = "{sha("v2")}"')
    made = report.build(store)
    assert made.tables.rows[0].attempted == 2
    assert made.strays == (f"versions.toml: no record of ch98.other has version {sha('v1')}",)
    report.write(store)
    assert any("ch98.other" in problem for problem in report.check(store))


def test_what_was_left_out_is_counted_by_what_it_counts_as():
    records = [
        make_record(seed=i, version=version, minute=i + 1) for i, version in enumerate("abc")
    ]
    same = {("ch99.example", sha("a")): sha("b")}
    (group,) = series.group(records, same)
    assert (group.older, group.older_versions) == (2, 1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["nothing"], "versions.toml: "),
        (['"ch99.example" = 1'], "1 is not a table of hashes"),
        (['["ch99.example"]', '"v1" = "v2"'], "'v1' = 'v2' are not two SHA-256"),
        (['["ch99.example"]', f'"{sha("v1")}" = 1'], "= 1 are not two SHA-256"),
        (
            [
                '["ch99.example"]',
                f'"{sha("v1")}" = "{sha("v2")}"',
                f'"{sha("v2")}" = "{sha("v3")}"',
            ],
            "counts as another version itself",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(store, lines, said, command_line):
    write(store, *lines)
    code, _, shown = command_line("report", "--store", store.uri)
    assert code == 2
    assert said in shown
    assert "Traceback" not in shown
