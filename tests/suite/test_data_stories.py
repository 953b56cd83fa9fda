"""bAbI from small archives in the real layouts; the real one where it is here."""

import dataclasses
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
import torch

from suite import data
from suite.data import babi
from suite.data.entry import DataCorrupt, Pin

REAL = os.environ.get("SUITE_DATA", "")
STORY = """1 Mary went to the garden.
2 Where is Mary? \tgarden\t1
1 The hall is north of the den.
2 How do you go from the hall to the den?\ts,w\t1
"""


def archive(path: Path, members: dict[str, str]) -> str:
    """Writes a tar of text files; its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"tasks_1-20_v1-2/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def members(missing: str = "") -> dict[str, str]:
    files = {}
    for n in babi.TASKS:
        for split in ("train", "test"):
            files[f"en-10k/qa{n}_some-name_{split}.txt"] = STORY
            files[f"hn-10k/qa{n}_some-name_{split}.txt"] = "1 not English\n"
    return {name: text for name, text in files.items() if not missing or missing not in name}


def words(dataset: data.Dataset, story: int) -> list[str]:
    begin, end = dataset.train[0][story].tolist()
    return [dataset.vocabulary[i] for i in dataset.train[2][begin:end].tolist()]


def test_stories_stand_one_after_the_other_with_their_answers(tmp_path, monkeypatch):
    sha256 = archive(tmp_path / babi.ARCHIVE, members())
    layout = dataclasses.replace(babi.BABI.layouts[0], pins=(Pin(babi.ARCHIVE, sha256),))
    entry = dataclasses.replace(babi.BABI, layouts=(layout,))
    monkeypatch.setitem(data.CATALOGUE, "babi", entry)
    monkeypatch.setenv("SUITE_DATA", str(tmp_path))
    got = data.load("babi")
    assert got.splits == {"train": 40, "test": 40}
    spans, tasks, ids, answers = got.train
    assert tasks.tolist() == [n for n in babi.TASKS for _ in range(2)]
    assert spans[0].tolist() == [0, 11]
    assert (spans[1:, 0] == spans[:-1, 1]).all()
    assert " ".join(words(got, 0)) == "mary went to the garden . where is mary ? -"
    assert words(got, 1)[-3:] == ["?", "-", "-"]
    said = answers[answers >= 0][:3].tolist()
    assert [got.vocabulary[i] for i in said] == ["garden", "s", "w"]
    assert torch.equal(answers >= 0, ids == 0)
    assert got.vocabulary[0] == "-"


def test_a_task_that_the_large_set_lacks_comes_from_the_small_one(tmp_path):
    archive(tmp_path / "large", members(missing="qa3_some-name_train"))
    small = {"en/qa3_some-name_train.txt": "1 John sat.\n2 Who sat?\tJohn\t1\n"}
    archive(tmp_path / "small", small)
    decoded = babi.read(("large", "small"), tmp_path)
    assert (decoded.train[1] == 3).sum() == 1
    with pytest.raises(DataCorrupt, match="the train file of task 3"):
        babi.read(("large",), tmp_path)


@pytest.mark.skipif(not REAL, reason="SUITE_DATA names no folder")
def test_the_real_one_is_as_published(monkeypatch):
    if data.where("babi") is None:
        pytest.skip("SUITE_DATA has no bAbI")
    assert all(ok for _, ok, _ in data.verify("babi"))
