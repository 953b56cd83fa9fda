"""Where data sets are: the folders of ``SUITE_DATA``, then the user's cache.

Nothing here writes: a folder in ``SUITE_DATA`` may be read-only.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suite.data.entry import DataCorrupt, DataMissing, Entry, Layout, Pin, Place


def cache() -> Path:
    """The folder that downloads go to: ``fundamentals-suite`` in the user's cache folder.

    It is found as platformdirs finds it, which is not there on a machine that downloads nothing.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(named if os.path.isabs(named) else usual).expanduser() / "fundamentals-suite"


def roots(entry: Entry) -> list[Path]:
    """The folders that are searched for a data set, in order."""
    if entry.package:
        spec = importlib.util.find_spec(entry.package)
        return [Path(spec.origin).parent] if spec and spec.origin else []
    named = os.environ.get("SUITE_DATA", "").split(os.pathsep)
    return [*(Path(name).expanduser() for name in named if name), cache()]


def find(entry: Entry) -> Place | None:
    """The first folder that has every file of a layout, or None. Looks at no file's content."""
    for root in roots(entry):
        for layout, folder in _candidates(entry, root):
            if os.path.isdir(folder) and not _absent(layout, folder):
                return Place(layout, folder)
    return None


def _candidates(entry: Entry, root: Path) -> Iterator[tuple[Layout, Path]]:
    for layout in entry.layouts:
        for folder in layout.folders:
            yield layout, root / folder


def _absent(layout: Layout, folder: Path) -> list[str]:
    # os.path.isfile, for Path.is_file raises where a folder may not be searched.
    return [pin.path for pin in layout.pins if not os.path.isfile(folder / pin.path)]


@dataclass(frozen=True)
class Check:
    """A checksum compared: of a file, or of the values decoded from a folder."""

    what: Path
    expected: str
    found: str

    @property
    def ok(self) -> bool:
        """Whether the checksum is the one that was pinned."""
        return self.found == self.expected

    def enforce(self) -> None:
        """Raise DataCorrupt unless the checksum is right."""
        if not self.ok:
            raise DataCorrupt(
                f"{self.what}: expected sha256 {self.expected}, found {self.found}. This is not "
                "what was published: replace it (`suite data fetch` renews a copy in the cache)"
            )


def check_files(place: Place) -> Iterator[Check]:
    """Compare the files of a place with their pinned checksums, one after the other."""
    for pin in place.layout.pins:
        if pin.sha256:
            path = place.folder / pin.path
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            yield Check(path, pin.sha256, found)


def missing(entry: Entry, reason: str = "") -> DataMissing:
    """The error for a data set that is nowhere: what it needs, where it was sought, what to do."""
    lines = [f"data set {entry.name!r} is not on this machine{reason and f': {reason}'}"]
    wanted = [(layout, pin) for layout in entry.layouts for pin in layout.pins if pin.url]
    if wanted:
        lines += ["It needs"]
        lines += [
            f"  {pin.path}  {_checksum(layout, pin)}\n    {pin.url}" for layout, pin in wanted
        ]
    lines += ["Looked in", *(f"  {root}{_fault(entry, root)}" for root in roots(entry))]
    if wanted:
        target = Path("<folder>", wanted[0][0].folders[0])
        lines += [
            f"With a network, type: suite data fetch {entry.name}",
            f"Without one, put the files into {target} and set SUITE_DATA=<folder>",
        ]
    return DataMissing("\n".join(lines))


def _checksum(layout: Layout, pin: Pin) -> str:
    if pin.sha256:
        return f"sha256 {pin.sha256}"
    return f"sha256 of the values in it {layout.sha256}"


def _fault(entry: Entry, root: Path) -> str:
    """What is wrong with a root, where it is more than that the data set is not there."""
    if not os.path.isdir(root):
        return " (no such folder)"
    for layout, folder in _candidates(entry, root):
        absent = _absent(layout, folder)
        if 0 < len(absent) < len(layout.pins):
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            return f" (incomplete: {folder} lacks {absent[0]}{more})"
    return ""
