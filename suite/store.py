"""Where records live: any fsspec URI, written atomically, safe for several writers.

Layout below the URI: ``records/<task>/<run>.<record>.json``, ``artifacts/<sha256>.<suffix>``
and ``checkpoints/<run>.pt``. Records and artifacts are named by their content, so two
campaigns that write the same thing write the same file.
"""

import contextlib
import hashlib
import os
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs

from suite.record import Artifact, Record, parse

if TYPE_CHECKING:
    import pandas as pd


# Where a name is all there is of a folder. Asked to make one, a bucket's file system makes the
# bucket: a typing error in its name would be a new one.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "r2"}


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
        self.folders = OBJECT_STORES.isdisjoint(_protocols(self.fs))

    @property
    def name(self) -> str:
        """The last part of where the store is."""
        return str(self.root).rpartition("/")[2]

    def path(self, name: str) -> str:
        """The full path of a file inside the store."""
        return f"{self.root}/{name}"

    def url(self, name: str) -> str:
        """Where a file inside the store is, as a browser or another tool takes it."""
        path = self.path(name)
        return Path(path).as_uri() if self.local else str(self.fs.unstrip_protocol(path))

    def names(self, pattern: str) -> list[str]:
        """The files that match, as they are now, sorted; named as ``read`` takes them."""
        with self._reaching("list", pattern):
            self.fs.invalidate_cache()
            found = self.fs.glob(self.path(pattern))
        return sorted(str(path).removeprefix(f"{self.root}/") for path in found)

    @contextlib.contextmanager
    def _reaching(self, doing: str, name: str) -> Iterator[None]:
        """Raise StoreError for whatever a backend raises."""
        try:
            yield
        except Exception as error:  # Each backend has its own, and not all are OSErrors.
            why = getattr(error, "strerror", None) or error
            where = self.path(name) if self.local else self.url(name)
            raise StoreError(f"cannot {doing} {where}: {why}") from error

    def check_writable(self) -> None:
        """Raise StoreError unless a file can be written and removed."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        self.delete(probe)

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
            with self._reaching("write", name):
                if self.folders:
                    self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                with self.fs.open(draft, "wb") as file:
                    file.write(content)
                    if self.local:
                        file.flush()
                        os.fsync(file.fileno())
                if self.local:
                    os.replace(draft, target)
        except StoreError:
            if self.local and os.path.exists(draft):
                os.unlink(draft)
            raise

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        with self._reaching("read", name):
            try:
                return bytes(self.fs.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def read_toml(self, name: str) -> dict[str, object]:
        """The content of a TOML file; nothing where there is none.

        Raises:
            ValueError: it is no TOML; the message says which file and where.
        """
        try:
            return tomllib.loads((self.read(name) or b"").decode())
        except ValueError as error:
            raise ValueError(f"{self.path(name)}: {error}") from error

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._reaching("remove", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self._reaching("look for", name):
            return bool(self.fs.exists(self.path(name)))

    def put(self, record: Record) -> None:
        """Write a record; writing the same one twice changes nothing."""
        if not self.exists(record.name):
            self.write(record.name, record.to_json().encode())

    def put_artifact(self, name: str, content: bytes) -> Artifact:
        """Write a file named by its content and return its description."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = f"artifacts/{sha256[:32]}.{name.rpartition('.')[2]}"
        if not self.exists(path):
            self.write(path, content)
        return Artifact(name=name, path=path, sha256=sha256, bytes=len(content))

    def scan(
        self, pattern: str = "*/*.json", rejected: Callable[[Rejected], Any] | None = None
    ) -> Iterator[Record]:
        """Every valid record whose path below ``records/`` matches, in a fixed order.

        A truncated, edited or foreign file is given to ``rejected`` and skipped.
        """
        for name in self.names(f"records/{pattern}"):
            record = self._valid(name, rejected)
            if record:
                yield record

    def attempts(self, task: str, run_ids: Iterable[str]) -> dict[str, list[Record]]:
        """The attempts so far at each of a task's runs, oldest first; one listing for all."""
        wanted = {run_id[:16]: run_id for run_id in run_ids}
        found: dict[str, list[Record]] = {}
        for name in self.names(f"records/{task}/*.json"):
            run_id = wanted.get(name.rpartition("/")[2].partition(".")[0])
            record = self._valid(name, None) if run_id else None
            if record:
                found.setdefault(record.run_id, []).append(record)
        return {k: sorted(v, key=lambda r: (r.attempt, r.ended_utc)) for k, v in found.items()}

    def _valid(self, name: str, rejected: Callable[[Rejected], Any] | None) -> Record | None:
        content = self.read(name)
        try:
            if content is None:
                raise ValueError("it was removed meanwhile")
            record = parse(content.decode())
            if name != record.name:
                raise ValueError("its name does not match its content")
        except ValueError as error:
            if rejected:
                rejected(Rejected(name, str(error)))
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
