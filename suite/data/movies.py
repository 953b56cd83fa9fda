"""Film reviews with their sentiment, and for a hundred the words in which people see it."""

import csv
import functools
import itertools
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

from suite.data.download import through_pooch
from suite.data.entry import Array, DataCorrupt, Decoded, Entry, Layout, Pin

REVIEWS_URL = (
    "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/movie_reviews.zip"
)
EVIDENCE_URL = (
    "https://raw.githubusercontent.com/successar/FRESH/f84c58ba74aed318e904388fe836c280863d073b/"
    "Datasets/movies/data/dev_rationales_movies_human.csv"
)
REVIEWS_ZIP = "movie_reviews.zip"
EVIDENCE = "dev_rationales_movies_human.csv"
CLASS_NAMES = ("neg", "pos")
PADDING, UNKNOWN = "<pad>", "<unk>"
FIRST_TEST = 800
FEWEST = 2


def read_zip(folder: Path) -> Decoded:
    """The archive that NLTK distributes."""
    with zipfile.ZipFile(folder / REVIEWS_ZIP) as archive:
        names = [n for n in archive.namelist() if n.endswith(".txt")]
        return joined({n: archive.read(n).decode("latin-1") for n in names}, folder)


def read_tar(folder: Path) -> Decoded:
    """The same files in one tar."""
    texts = {}
    with tarfile.open(folder / "movie_reviews.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name.endswith(".txt") and (file := archive.extractfile(member)):
                texts[member.name] = file.read().decode("latin-1")
    return joined(texts, folder)


def joined(texts: dict[str, str], folder: Path) -> Decoded:
    """Documents cv000 to cv799 to train on, the rest to test on.

    Each split is token ids x (N, T) int32 with 0 after the end, lengths (N,) int64, classes (N,)
    int64 and evidence (N, T) bool, whose rows are False but for the annotated documents of the
    test split. ``vocabulary[i]`` is the word of id i: those that training documents hold twice.
    """
    import numpy as np

    evidence = _segments(folder / EVIDENCE)
    # Paths end in pos/cv840_16739.txt.
    tags = {name: (name.split("/")[-2], name.split("/")[-1][2:5]) for name in texts}
    documents: dict[bool, list[tuple[list[str], int, Array]]] = {False: [], True: []}
    for name in sorted(texts, key=lambda n: tags[n][::-1]):
        kind, number = tags[name]
        tokens = texts[name].split()
        marked = _marked(tokens, evidence.get((kind, number), []), name)
        documents[int(number) >= FIRST_TEST].append((tokens, CLASS_NAMES.index(kind), marked))
    counts = Counter(itertools.chain.from_iterable(tokens for tokens, _, _ in documents[False]))
    words = sorted((w for w, n in counts.items() if n >= FEWEST), key=lambda w: (-counts[w], w))
    vocabulary = (PADDING, UNKNOWN, *words)
    ids = {word: i for i, word in enumerate(vocabulary)}
    longest = max(len(tokens) for tokens, _, _ in itertools.chain(*documents.values()))

    def split(test: bool) -> tuple[Array, ...]:
        chosen = documents[test]
        x = np.zeros((len(chosen), longest), np.int32)
        z = np.zeros((len(chosen), longest), bool)
        for i, (tokens, _, marked) in enumerate(chosen):
            x[i, : len(tokens)] = [ids.get(token, 1) for token in tokens]
            z[i, : len(tokens)] = marked
        lengths = np.array([len(tokens) for tokens, _, _ in chosen], np.int64)
        return x, lengths, np.array([y for _, y, _ in chosen], np.int64), z

    return Decoded(split(False), split(True), class_names=CLASS_NAMES, vocabulary=vocabulary)


def _segments(path: Path) -> dict[tuple[str, str], list[str]]:
    """Class and number of a document -> the passages that people marked."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Document posR_840.txt is pos/cv840.
    return {(r["annotation_id"][:3], r["annotation_id"][5:8]): r["text"].split("|") for r in rows}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _marked(tokens: list[str], segments: list[str], name: str) -> Array:
    """Which tokens a passage covers, wherever it occurs; the files agree on letters and digits.

    Raises:
        DataCorrupt: a passage does not occur in its document.
    """
    import numpy as np

    letters = [_letters(token) for token in tokens]
    owner = np.repeat(np.arange(len(tokens)), [len(word) for word in letters])
    text, marked = "".join(letters), np.zeros(len(tokens), bool)
    for wanted in filter(None, map(_letters, segments)):
        places = [match.start() for match in re.finditer(wanted, text)]
        if not places:
            raise DataCorrupt(f"{name}: the passage {wanted!r} is not in the document")
        for at in places:
            marked[owner[at] : owner[at + len(wanted) - 1] + 1] = True
    return marked


EVIDENCE_SHA256 = "3d218a29be1f274e9a8b0c8e58243111dab893959152e48b54919c30e80fd4e4"
SHA256 = "14d45297a273d5ba83ee9c84777deec935b746ce546f93d96e859eee0d4c627b"
MOVIE_RATIONALES = Entry(
    name="movie_rationales",
    kind="real",
    licence="reviews: none stated, distributed with NLTK by their authors' permission; cite "
    "Pang and Lee, A Sentimental Education, 2004. Evidence: MIT (FRESH, Jain et al., 2020)",
    layouts=(
        Layout(
            folders=("movie_rationales",),
            pins=(
                Pin(REVIEWS_ZIP, url=REVIEWS_URL),
                Pin(EVIDENCE, EVIDENCE_SHA256, EVIDENCE_URL, 31014),
            ),
            read=read_zip,
            sha256=SHA256,
        ),
        Layout(
            folders=("movie_rationales",),
            pins=(
                Pin(
                    "movie_reviews.tar.xz",
                    "76ebfe2fdf58b8c505988154991d541cbfcbadd3fb4c344abac40e0fb66702f1",
                ),
                Pin(EVIDENCE, EVIDENCE_SHA256),
            ),
            read=read_tar,
            sha256=SHA256,
        ),
    ),
    notes="people marked evidence in 100 of the 400 test reviews",
    download=functools.partial(
        through_pooch,
        {
            f"movie_rationales/{REVIEWS_ZIP}": REVIEWS_URL,
            f"movie_rationales/{EVIDENCE}": EVIDENCE_URL,
        },
    ),
)
