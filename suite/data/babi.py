"""bAbI: twenty kinds of small stories with questions, 10,000 training questions of each kind."""

import functools
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from suite.data.download import through_pooch
from suite.data.entry import Array, DataCorrupt, Decoded, Entry, Layout, Pin

URL = "http://www.thespermwhale.com/jaseweston/babi/tasks_1-20_v1-2.tar.gz"
ARCHIVE = "tasks_1-20_v1-2.tar.gz"
TASKS = tuple(range(1, 21))
LARGE, SMALL = "en-10k", "en"
ANSWER_HERE = "-"
NO_ANSWER = -1

Texts = Mapping[tuple[str, int, str], str]
Story = tuple[list[str], list[str]]


def read(archives: Sequence[str], folder: Path) -> Decoded:
    """The stories of all tasks, out of archives without unpacking them to disk.

    Stories differ in length by a hundred times, so they stand one after the other. Each split is
    spans (S, 2) int64, begin and end of each story in what follows; tasks (S,) uint8, from 1;
    words (M,) int16 ids; and answers (M,) int16: at a word ``-`` of the text the id of the word
    to say there, -1 elsewhere. An answer of several words takes as many in a row.

    Raises:
        DataCorrupt: a file of a task is in none of the archives.
    """
    texts = {key: text for name in archives for key, text in _members(folder / name).items()}
    splits = {split: [_stories(_text(texts, n, split)) for n in TASKS] for split in _SPLITS}
    everything = [story for tasks in splits.values() for stories in tasks for story in stories]
    # A word for an answer may occur in no text, and "-" has no answer.
    known = {word for words, answers in everything for word in (*words, *answers)} - {"", "-"}
    vocabulary = (ANSWER_HERE, *sorted(known))
    ids = {word: i for i, word in enumerate(vocabulary)} | {"": NO_ANSWER}
    train, test = (_arrays(splits[split], ids) for split in _SPLITS)
    return Decoded(train, test, vocabulary=vocabulary)


_SPLITS = ("train", "test")


def _members(path: Path) -> dict[tuple[str, int, str], str]:
    """Subset, task and split of each English file of an archive -> its text."""
    found = {}
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            match = re.search(r"/(en|en-10k)/qa(\d+)_.*_(train|test)\.txt$", member.name)
            if match and (file := archive.extractfile(member)):
                found[match[1], int(match[2]), match[3]] = file.read().decode("ascii")
    return found


def _text(texts: Texts, task: int, split: str) -> str:
    for subset in (LARGE, SMALL):
        if (subset, task, split) in texts:
            return texts[subset, task, split]
    raise DataCorrupt(f"bAbI: the archives lack the {split} file of task {task}")


def _stories(text: str) -> list[Story]:
    """Words and answers of each story; a line is ``4 Where is Mary?<tab>garden<tab>2``."""
    stories: list[Story] = []
    for line in text.lower().splitlines():
        number, _, rest = line.partition(" ")
        sentence, *answer = rest.split("\t")
        if number == "1":
            stories.append(([], []))
        words, answers = stories[-1]
        said = re.findall(r"[a-z]+|[.?]", sentence)
        wanted = answer[0].split(",") if answer else []
        words += said + [ANSWER_HERE] * len(wanted)
        answers += [""] * len(said) + wanted
    return stories


def _arrays(tasks: Sequence[Sequence[Story]], ids: Mapping[str, int]) -> tuple[Array, ...]:
    import numpy as np

    stories = [story for task in tasks for story in task]
    ends = np.cumsum([len(words) for words, _ in stories])
    spans = np.stack([np.concatenate(([0], ends[:-1])), ends], 1).astype(np.int64)
    kinds = np.repeat(np.array(TASKS, np.uint8), [len(task) for task in tasks])
    words, answers = (
        np.array([ids[word] for story in stories for word in story[part]], np.int16)
        for part in (0, 1)
    )
    return spans, kinds, words, answers


BABI = Entry(
    name="babi",
    kind="real",
    licence="CC BY 3.0 (Facebook, 2015)",
    layouts=(
        Layout(
            folders=("", "babi"),
            pins=(
                Pin(
                    ARCHIVE,
                    "0364ebde659f14d11bc21744516c5ec49d3d06cb692733f66680771244998898",
                    URL,
                    15719851,
                ),
            ),
            read=functools.partial(read, (ARCHIVE,)),
        ),
        Layout(
            folders=("babi",),
            pins=(
                Pin(
                    "babi_v1-2_en-10k.tar.xz",
                    "25bc9410d9d4bb32c5f51991a61d55ba61939fc0f18ba7ec98cce5a8519c1918",
                ),
                Pin(
                    "babi_v1-2_en.tar.xz",
                    "13fa54715197b3bc7b46607a8665e8afe82a753c88442931bc6ed7a634c18930",
                ),
            ),
            read=functools.partial(read, ("babi_v1-2_en-10k.tar.xz", "babi_v1-2_en.tar.xz")),
            notes="a rebuilt copy: task 3 has 1,000 training questions instead of 10,000",
        ),
    ),
    download=functools.partial(through_pooch, {ARCHIVE: URL}),
)
