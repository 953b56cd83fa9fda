import errno
import json
import os
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from suite import record as rec
from suite.run import execute
from suite.store import Store, StoreError, load


@pytest.fixture(scope="module")
def made():
    from suite.plan import expand

    spec = expand(["ch90.linear"], profile="smoke", variants=["quick"])[0]
    return execute(spec, campaign_id="test")


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path):
    uri = {
        "path": str(tmp_path / "store"),
        "file": f"file://{tmp_path}/store",
        "memory": f"memory://{tmp_path.name}-{os.getpid()}",
    }[request.param]
    return Store(uri)


def test_a_record_comes_back_as_it_went_in(store, made):
    store.put(made)
    store.put(made)
    assert list(store.scan()) == [made]
    assert store.attempts(made.task.id, [made.run_id]) == {made.run_id: [made]}


def test_an_empty_store_is_empty(store):
    assert list(store.scan()) == []
    assert store.attempts("ch90.linear", ["0" * 64]) == {}
    assert store.read("checkpoints/none.pt") is None
    store.delete("checkpoints/none.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "not a fdl.result/1 record"),
        (b'{"schema": "other/2"}', "not a fdl.result/1 record"),
        (b"\xff\xfe", "codec"),
    ],
)
def test_a_foreign_file_is_reported_and_skipped(store, made, content, reason):
    store.put(made)
    store.write("records/ch90.linear/foreign.json", content)
    rejected = []
    assert list(store.scan(rejected=rejected.append)) == [made]
    assert [reason in r.reason for r in rejected] == [True]
    assert rejected[0].path == "records/ch90.linear/foreign.json"


def test_a_truncated_record_is_reported_and_skipped(store, made):
    store.write(made.name, made.to_json().encode()[:-200])
    rejected = []
    assert list(store.scan(rejected=rejected.append)) == []
    assert len(rejected) == 1


def test_an_edited_record_is_reported(store, made):
    text = made.to_json()
    content = json.loads(text)
    content["train"]["final"]["accuracy"]["value"] = 0.999
    store.write(made.name, json.dumps(content).encode())
    rejected = []
    assert list(store.scan(rejected=rejected.append)) == []
    assert "edited after it was written" in rejected[0].reason


def test_a_renamed_record_is_reported(store, made):
    store.write("records/ch90.linear/other.json", made.to_json().encode())
    rejected = []
    assert list(store.scan(rejected=rejected.append)) == []
    assert "name does not match" in rejected[0].reason


def test_a_copy_of_a_store_is_a_store(tmp_path, made):
    Store(str(tmp_path / "a")).put(made)
    os.rename(tmp_path / "a", tmp_path / "b")
    assert list(Store(str(tmp_path / "b")).scan()) == [made]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path))

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write("records/x.json", b"half")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("checkpoints/x.pt", b"old")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(StoreError):
        store.write("checkpoints/x.pt", b"new")
    assert store.read("checkpoints/x.pt") == b"old"


class Bucket(MemoryFileSystem):
    """An object store: it has no folders, makes a bucket when asked for one, and may be away."""

    protocol = ("pretended", "s3")
    store, pseudo_dirs = {}, [""]
    away = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("pretended://").strip("/")

    def unstrip_protocol(self, name):
        return "pretended:/" + self._strip_protocol(name)

    def makedirs(self, path, exist_ok=False):
        raise AssertionError(f"{path}: that would make a bucket")

    def _open(self, path, mode="rb", **kw):
        if not path.startswith("/bucket/"):
            raise FileNotFoundError("The specified bucket does not exist")
        return super()._open(path, mode, **kw)

    def __getattribute__(self, name):
        if name in ("_open", "cat_file", "exists", "glob", "rm_file") and type(self).away:
            raise LookupError("Could not connect to the endpoint")
        return super().__getattribute__(name)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "away", False)
    fsspec.register_implementation("pretended", Bucket, clobber=True)
    return Store("pretended://bucket/runs")


def test_a_bucket_has_no_folders_to_make(bucket, made):
    bucket.check_writable()
    bucket.put(made)
    assert list(bucket.scan()) == [made]
    assert bucket.url("index.html").startswith("pretended://")


def test_a_bucket_that_is_not_there_is_not_made(bucket):
    with pytest.raises(StoreError, match=r"cannot write pretended://.*bucket does not exist"):
        Store("pretended://bukcet/runs").check_writable()


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.check_writable(),
        lambda s: s.read("a"),
        lambda s: s.delete("a"),
        lambda s: s.exists("a"),
        lambda s: list(s.scan()),
        lambda s: s.attempts("ch90.linear", ["0" * 64]),
    ],
)
def test_a_store_that_cannot_be_reached_is_said(bucket, monkeypatch, use):
    monkeypatch.setattr(Bucket, "away", True)
    with pytest.raises(StoreError, match=r"cannot \w.* pretended://.*Could not connect"):
        use(bucket)


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path):
    Path(tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        Store(str(tmp_path / "file" / "store")).check_writable()


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(ValueError, match="nothing://"):
        Store("nothing://x")


def test_two_writers_at_once(tmp_path, made):
    def write():
        for _ in range(30):
            Store(str(tmp_path)).put(made)
            Store(str(tmp_path)).write("checkpoints/c.pt", os.urandom(5000))

    threads = [threading.Thread(target=write) for _ in range(4)]
    [t.start() for t in threads]
    seen = []
    while any(t.is_alive() for t in threads):
        seen += [len(Store(str(tmp_path)).read("checkpoints/c.pt") or b"")]
    [t.join() for t in threads]
    assert set(seen) <= {0, 5000}
    assert list(Store(str(tmp_path)).scan()) == [made]
    assert not list(tmp_path.rglob("*.tmp"))


def test_artifacts_are_named_by_content(store):
    first = store.put_artifact("curve.png", b"1")
    assert store.put_artifact("other.png", b"1").path == first.path
    assert store.read(first.path) == b"1"


def test_load_gives_a_table(store, made):
    store.put(made)
    frame = load(store.uri)
    assert len(frame) == 1
    assert frame["final.accuracy"][0] == made.train.final["accuracy"].value
    assert frame["task.id"][0] == "ch90.linear"
    assert frame["clock.wall_s"][0] == made.clock.wall_s


def test_a_record_reads_back(made):
    assert rec.parse(made.to_json()) == made


def _changed(made, path, value):
    content = json.loads(made.to_json())
    *parents, last = path.split(".")
    part = content
    for key in parents:
        part = part[key]
    part[last] = value
    content["record_id"] = rec.digest({k: v for k, v in content.items() if k != "record_id"})
    return json.dumps(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surprise", 1, "surprise"),
        ("clock.surprise_s", 1, "surprise_s"),
        ("status", "great", "status"),
        ("seed", "zero", "seed"),
        ("attempt", 0, "attempt"),
        ("clock.wall_s", 1e6, "clock parts sum"),
    ],
)
def test_the_schema_refuses(made, path, value, message):
    with pytest.raises(ValueError, match=message):
        rec.parse(_changed(made, path, value))


def test_not_a_number_is_not_a_value(made):
    best = json.dumps(made.train.best)
    text = made.to_json().replace(f'"best": {best}', '"best": NaN')
    with pytest.raises(ValueError, match="best"):
        rec.parse(text)


def test_extra_is_free(made):
    assert rec.parse(_changed(made, "extra.mine", [1, 2])).extra["mine"] == [1, 2]


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=6))
def test_digest_ignores_order(content):
    assert rec.digest(content) == rec.digest(dict(reversed(content.items())))
