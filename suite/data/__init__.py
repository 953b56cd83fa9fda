"""Data sets as tensors, each with where it came from.

``load`` looks into the folders of ``SUITE_DATA`` (a list, as ``PATH`` is one), then into the
user's cache, then downloads into that cache unless ``SUITE_OFFLINE=1``. Whatever is read is
compared with pinned checksums first. Importing this package loads neither torch nor NumPy.
"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.data import babi, cifar10, download, embedded, locate, mnist, movies, tables
from suite.data.entry import Array, DataCorrupt, DataMissing, Decoded, Entry, Kind, Place
from suite.task import unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "CATALOGUE",
    "DataCorrupt",
    "DataMissing",
    "Dataset",
    "catalogue",
    "fetch",
    "load",
    "verify",
    "where",
]

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        mnist.MNIST,
        mnist.FASHION_MNIST,
        cifar10.CIFAR10,
        tables.BIKE_SHARING,
        tables.CALIFORNIA_HOUSING,
        movies.MOVIE_RATIONALES,
        babi.BABI,
        embedded.DIGITS,
        embedded.WINE,
        embedded.BREAST_CANCER,
        embedded.IRIS,
        embedded.DIABETES,
        embedded.PHOTOGRAPHS,
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as tensors. Do not modify them in place: on a CPU they are shared.

    Attributes:
        name: as it was asked for.
        kind: ``real``, ``standin`` (takes the place of a real set) or ``synthetic``.
        train: inputs, then what to predict. Images are uint8 (N, C, H, W) in 0..255, tables
            float32 (N, d) in raw units, texts int32 token ids (N, T) with 0 after the end, then
            lengths int64 (N,); classes are int64 (N,), other targets float32 (N,). Stories with
            questions are as ``suite.data.babi.read`` says.
        test: the same for the test split.
        sha256: over the split, dtype, shape and bytes of every tensor, in order, and the words.
        n_items: in all splits together.
        splits: items in each split.
        licence: as the authors state it.
        notes: what a reader of a result should know of this copy.
        feature_names: of the columns of a table.
        class_names: of the classes 0, 1, ...
        vocabulary: words of the token ids 0, 1, ...
    """

    name: str
    kind: Kind
    train: "tuple[Tensor, ...]"
    test: "tuple[Tensor, ...]"
    sha256: str
    n_items: int
    splits: dict[str, int]
    licence: str
    notes: str = ""
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()

    def to(self, device: "str | torch.device") -> "Dataset":
        """The same data set with its tensors on ``device``; those already there are shared."""
        return dataclasses.replace(
            self,
            train=tuple(t.to(device) for t in self.train),
            test=tuple(t.to(device) for t in self.test),
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What a record keeps of it."""
        kept = ("name", "kind", "sha256", "n_items", "splits", "licence", "notes")
        return {key: getattr(self, key) for key in kept}


def load(name: str, device: "str | torch.device" = "cpu") -> Dataset:
    """A data set as tensors on ``device``.

    A process decodes each set once and shares the tensors between callers, which must not modify
    them in place. Should one do so all the same, it harms only itself: the next call notices and
    decodes afresh. (Writes through ``Tensor.numpy()`` or ``Tensor.data`` cannot be noticed.)

    Raises:
        ValueError: an unknown name.
        DataMissing: the set is not on this machine and cannot be downloaded.
        DataCorrupt: a file or its values differ from what was published.
    """
    entry = _entry(name)
    place = locate.find(entry) or download.fetch(entry)
    dataset = _decoded(entry, place)
    if any(tensor._version for tensor in (*dataset.train, *dataset.test)):
        _decoded.cache_clear()
        dataset = _decoded(entry, place)
    return dataset.to(device)


def catalogue() -> list[dict[str, Any]]:
    """Every data set: name, kind, licence, bytes of its download, and whether it is embedded."""
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "licence": entry.licence,
            "bytes": sum(pin.bytes for layout in entry.layouts for pin in layout.pins),
            "embedded": bool(entry.package),
        }
        for entry in CATALOGUE.values()
    ]


def where(name: str) -> Path | None:
    """The folder that ``load`` would read, None if it would have to download.

    For an embedded set this is the folder of the package that contains it.
    """
    place = locate.find(_entry(name))
    return place.folder if place else None


def fetch(name: str) -> Path:
    """Make sure of a verified copy, downloading into the user's cache if there is none.

    A corrupt copy in the cache is replaced. Returns the folder.

    Raises:
        ValueError: an unknown name.
        DataMissing: offline, or the download failed.
        DataCorrupt: a copy outside the cache, or the download, has a wrong checksum.
    """
    return download.fetch(_entry(name)).folder


def verify(name: str) -> list[tuple[str, bool, str]]:
    """Compare the copy that ``load`` would read with every pinned checksum.

    Returns:
        A row for each file, and one for the decoded values if theirs is pinned: what, whether it
        is right, and the details. Nothing is decoded from corrupt files.

    Raises:
        ValueError: an unknown name.
        DataMissing: there is no copy.
    """
    entry = _entry(name)
    place = locate.find(entry)
    if place is None:
        raise locate.missing(entry)
    checks = list(locate.check_files(place))
    rows = [_row(check, check.what.name) for check in checks]
    if place.layout.sha256 and all(check.ok for check in checks):
        rows.append(_decoded_row(place))
    return rows


def _row(check: locate.Check, what: str) -> tuple[str, bool, str]:
    if check.ok:
        return what, True, f"sha256 {check.found}"
    return what, False, f"expected sha256 {check.expected}, found {check.found} ({check.what})"


def _decoded_row(place: Place) -> tuple[str, bool, str]:
    try:
        found = place.layout.read(place.folder).sha256()
    except DataCorrupt as error:
        return "decoded values", False, str(error)
    return _row(locate.Check(place.folder, place.layout.sha256, found), "decoded values")


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise unknown("data set", name, CATALOGUE)
    return CATALOGUE[name]


@functools.cache
def _decoded(entry: Entry, place: Place) -> Dataset:
    """Verify, decode and hash: 0.5 s for MNIST, so once in a process."""
    for check in locate.check_files(place):
        check.enforce()
    decoded = place.layout.read(place.folder)
    sha256 = decoded.sha256()
    if place.layout.sha256:
        locate.Check(place.folder, place.layout.sha256, sha256).enforce()
    return _dataset(entry, place, decoded, sha256)


def _dataset(entry: Entry, place: Place, decoded: Decoded, sha256: str) -> Dataset:
    splits = {"train": len(decoded.train[0]), "test": len(decoded.test[0])}
    return Dataset(
        name=entry.name,
        kind=entry.kind,
        train=_tensors(decoded.train),
        test=_tensors(decoded.test),
        sha256=sha256,
        n_items=sum(splits.values()),
        splits=splits,
        licence=entry.licence,
        notes="; ".join(filter(None, (entry.notes, place.layout.notes))),
        feature_names=decoded.feature_names,
        class_names=decoded.class_names,
        vocabulary=decoded.vocabulary,
    )


def _tensors(arrays: tuple[Array, ...]) -> "tuple[Tensor, ...]":
    import torch

    # The first caller may be in inference mode; the tensors outlive it and must know autograd.
    with torch.inference_mode(False):
        return tuple(torch.from_numpy(array) for array in arrays)
