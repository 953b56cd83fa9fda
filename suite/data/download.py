"""Bring a data set into the user's cache: once, verified, whole or not at all."""

import contextlib
import http.client
import os
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from suite.data import locate
from suite.data.entry import Entry, Place

ANSWER_S = 10.0
STALL_S = 20.0
LOCK_S = 1800.0


def offline() -> bool:
    """Whether ``SUITE_OFFLINE`` forbids the network."""
    return os.environ.get("SUITE_OFFLINE", "0") not in ("", "0")


def fetch(entry: Entry) -> Place:
    """A verified copy of a data set: one that is here, else a download into the user's cache.

    Raises:
        DataMissing: offline, or the download failed.
        DataCorrupt: a wrong checksum, of the download or of a copy outside the cache.
    """
    place = _sound(entry)
    if place:
        return place
    if entry.download is None:
        raise locate.missing(entry, f"the package {entry.package!r} is not installed")
    if offline():
        raise locate.missing(entry, "SUITE_OFFLINE forbids the download")
    # Imported here, for a run that finds its data needs no lock.
    from filelock import FileLock

    cache = locate.cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{entry.name}.lock", timeout=LOCK_S):
            return _sound(entry) or _into(cache, entry)
    except OSError as error:
        reason = f"the download failed ({type(error).__name__}: {error})"
        raise locate.missing(entry, reason) from error


def _sound(entry: Entry) -> Place | None:
    """The place of a verified copy; None where there is none, or a spoilt one in the cache."""
    place = locate.find(entry)
    for check in locate.check_files(place) if place else ():
        if not check.ok and check.what.is_relative_to(locate.cache()):
            return None
        check.enforce()
    return place


def _into(cache: Path, entry: Entry) -> Place:
    """Download beside the final place, verify, then rename: no reader sees half a file."""
    assert entry.download is not None
    layout = entry.layouts[0]
    target = cache / layout.folders[0]
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=cache) as staging:
        entry.download(Path(staging))
        fresh = Place(layout, Path(staging, layout.folders[0]))
        for check in locate.check_files(fresh):
            check.enforce()
        target.mkdir(parents=True, exist_ok=True)
        for pin in layout.pins:
            os.replace(fresh.folder / pin.path, target / pin.path)
    return Place(layout, target)


def through_torchvision(dataset: str, url: str, folder: Path) -> None:
    """Let a data set class of torchvision download below ``folder``.

    Args:
        dataset: the class, such as ``MNIST``.
        url: one of its addresses, asked first whether there is a network at all.
        folder: what torchvision calls ``root``.

    Raises:
        OSError: the network or the publisher cannot be reached, or sent something else.
    """
    from numpy.exceptions import VisibleDeprecationWarning

    from suite.data.torchvision_compat import import_torchvision

    _require_answer(url)
    datasets = import_torchvision().datasets
    with _socket_timeout(STALL_S), warnings.catch_warnings():
        # torchvision reads what it downloaded; CIFAR-10's pickles are older than NumPy 2.4 likes.
        warnings.simplefilter("ignore", VisibleDeprecationWarning)
        try:
            getattr(datasets, dataset)(folder, train=False, download=True)
        except (RuntimeError, http.client.HTTPException) as error:
            raise OSError(str(error)) from error


def through_pooch(urls: Mapping[str, str], folder: Path) -> None:
    """Download single files.

    Args:
        urls: path below ``folder`` -> address. Whether it is the right file is seen afterwards.
        folder: where the paths begin.

    Raises:
        OSError: the network or the publisher cannot be reached.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    for path, url in urls.items():
        _require_answer(url)
        target, get = Path(folder, path), pooch.HTTPDownloader(timeout=STALL_S)
        pooch.retrieve(url, None, target.name, target.parent, downloader=get)


def _require_answer(url: str) -> None:
    """Raise OSError unless the address answers in time.

    torchvision sets no time limits. With packets dropped it would wait for minutes, on every
    address of every mirror, and a name look-up cannot be given a limit: hence the thread.
    """
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(_head(url), timeout=ANSWER_S):
                outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)  # an answer, though not to this question
        except (OSError, http.client.HTTPException) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not outcome:
        raise TimeoutError(f"{urlsplit(url).netloc} did not answer within {ANSWER_S:g} s")
    if outcome[0] is not None:
        raise OSError(f"{urlsplit(url).netloc}: {outcome[0]}") from outcome[0]


def _head(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, method="HEAD")


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give sockets that set no time limit of their own this one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
