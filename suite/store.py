"""Where records live: any fsspec URI, written atomically, safe for several writers.

Layout below the URI: ``records/<task>/<run>.<record>.json``, ``artifacts/<sha256>.<suffix>``
and ``checkpoints/<run>.pt``. Records and artifacts are named by their content, so two
campaigns that write the same thing write the same file.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs

from suite.record import Artifact, Record, parse

if TYPE_CHECKING:
    import pandas as pd


class StoreError(OSError):
    """The store cannot be read or written; the message says which and why."""


@dataclass(frozen=True)
class Rejected:
    """A file in the store that is no valid record, and why."""

    path: str
    reason: str


class Store:
    """Records, artifacts and checkpoints below one URI.

    Args:
        uri: a local path, ``memory://...``, ``s3://bucket/prefix``, ``gs://...``, ...
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        try:
            self.fs, root = url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise ValueError(f"store {self.uri!r}: {error}") from error
        self.root = root.rstrip("/")
        self.local = "file" in _protocols(self.fs)
        self.shared = "memory" not in _protocols(self.fs)

    @property
    def name(self) -> str:
        """The last part of where the store is."""
        return str(self.root).rpartition("/")[2]

    def path(self, name: str) -> str:
        """The full path of a file inside the store."""
        return f"{self.root}/{name}"

    def check_writable(self) -> None:
        """Raise StoreError unless a file can be written and removed."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        self.fs.rm_file(self.path(probe))

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file or nothing.

        Raises:
            StoreError: the disk is full, or the place cannot be written.
        """
        target = self.path(name)
        # Object stores publish an object only when its upload is complete, so they need no
        # rename; a file system shows half a file unless it is renamed into place.
        draft = f"{target}.{uuid.uuid4().hex}.tmp" if self.local else target
        try:
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            with self.fs.open(draft, "wb") as file:
                file.write(content)
                if self.local:
                    file.flush()
                    os.fsync(file.fileno())
            if self.local:
                os.replace(draft, target)
        except OSError as error:
            if self.local and os.path.exists(draft):
                os.unlink(draft)
            raise StoreError(f"cannot write {target}: {error.strerror or error}") from error

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def put(self, record: Record) -> None:
        """Write a record; writing the same one twice changes nothing."""
        if not self.fs.exists(self.path(record.name)):
            self.write(record.name, record.to_json().encode())

    def put_artifact(self, name: str, content: bytes) -> Artifact:
        """Write a file named by its content and return its description."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = f"artifacts/{sha256[:32]}.{name.rpartition('.')[2]}"
        if not self.fs.exists(self.path(path)):
            self.write(path, content)
        return Artifact(name=name, path=path, sha256=sha256, bytes=len(content))

    def scan(
        self, pattern: str = "*/*.json", rejected: Callable[[Rejected], Any] | None = None
    ) -> Iterator[Record]:
        """Every valid record whose path below ``records/`` matches, in a fixed order.

        A truncated, edited or foreign file is given to ``rejected`` and skipped.
        """
        self.fs.invalidate_cache()
        for path in sorted(self.fs.glob(self.path(f"records/{pattern}"))):
            record = self._valid(str(path), rejected)
            if record:
                yield record

    def attempts(self, task: str, run_ids: Iterable[str]) -> dict[str, list[Record]]:
        """The attempts so far at each of a task's runs, oldest first; one listing for all."""
        self.fs.invalidate_cache()
        wanted = {run_id[:16]: run_id for run_id in run_ids}
        found: dict[str, list[Record]] = {}
        for path in sorted(self.fs.glob(self.path(f"records/{task}/*.json"))):
            run_id = wanted.get(str(path).rpartition("/")[2].partition(".")[0])
            record = self._valid(str(path), None) if run_id else None
            if record:
                found.setdefault(record.run_id, []).append(record)
        return {k: sorted(v, key=lambda r: (r.attempt, r.ended_utc)) for k, v in found.items()}

    def _valid(self, path: str, rejected: Callable[[Rejected], Any] | None) -> Record | None:
        try:
            record = parse(self.fs.cat_file(path).decode())
            if not path.endswith(record.name):
                raise ValueError("its name does not match its content")
        except (ValueError, OSError) as error:
            if rejected:
                rejected(Rejected(path.removeprefix(f"{self.root}/"), str(error)))
            return None
        return record


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def load(uri: str) -> "pd.DataFrame":
    """All valid records of a store as a table, one row an attempt, nested keys joined by dots.

    Final metrics are columns ``final.<metric>``; the curve stays a column of dictionaries.
    """
    import pandas as pd

    return pd.DataFrame([_flat(r) for r in Store(uri).scan()])


def _flat(record: Record) -> dict[str, Any]:
    content = record.model_dump(mode="json", by_alias=True)
    train = content.pop("train") or {}
    final = {f"final.{k}": v["value"] for k, v in train.pop("final", {}).items()}
    row: dict[str, Any] = {}
    for key, value in {**content, **train}.items():
        nested = isinstance(value, dict) and key not in ("curve", "extra")
        row |= {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
    return row | final
