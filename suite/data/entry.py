"""What is known of a data set before it is loaded, and what can be wrong with a copy of it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
Kind = Literal["real", "standin", "synthetic"]


class DataMissing(FileNotFoundError):
    """A data set is not on this machine, and could not be brought here."""


class DataCorrupt(ValueError):
    """A file of a data set, or what was decoded from it, is not what was published."""


@dataclass(frozen=True)
class Pin:
    """One file that a layout needs.

    Attributes:
        path: below the layout's folder.
        sha256: of the file; empty where ``Layout.sha256`` covers what is decoded from it.
        url: where it can be downloaded; empty where it is only found inside another file.
        bytes: what the download takes.
    """

    path: str
    sha256: str = ""
    url: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Decoded:
    """The values of a data set: arrays per split, inputs first and then what to predict."""

    train: tuple[Array, ...]
    test: tuple[Array, ...]
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Checksum over the split, dtype, shape and bytes of every array, and over the words."""
        hashed = hashlib.sha256()
        for split, arrays in (("train", self.train), ("test", self.test)):
            for array in arrays:
                hashed.update(f"{split} {array.dtype} {array.shape}\n".encode())
                hashed.update(array.data)
        for word in self.vocabulary:
            hashed.update(f"{word}\n".encode())
        return hashed.hexdigest()


@dataclass(frozen=True)
class Layout:
    """One form in which the files of a data set may lie in a folder.

    Attributes:
        folders: where below a root, in order of preference.
        pins: the files it consists of; it is there when all of them are.
        read: decodes the files of a folder into C-contiguous, writable arrays.
        sha256: of the decoded values; empty where the files' own checksums have to do.
        notes: what a record should say of values that came from this layout.
    """

    folders: tuple[str, ...]
    pins: tuple[Pin, ...]
    read: Callable[[Path], Decoded]
    sha256: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue.

    Attributes:
        name: as it is asked for.
        kind: ``real``, ``standin`` (takes the place of a real set) or ``synthetic``.
        licence: as its authors state it.
        layouts: the forms it is accepted in, preferred first.
        notes: what a record should say of it.
        download: writes the first layout below a folder, raising OSError when it cannot.
        package: the installed package that the data is part of, for an embedded set.
    """

    name: str
    kind: Kind
    licence: str
    layouts: tuple[Layout, ...]
    notes: str = ""
    download: Callable[[Path], None] | None = None
    package: str = ""


@dataclass(frozen=True)
class Place:
    """A layout, and the folder in which all its files were found."""

    layout: Layout
    folder: Path
