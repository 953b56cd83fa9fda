"""Data sets: look-up, checksums, downloads and decoding on tiny copies; the real ones if here."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

from suite import data
from suite.data import cifar10, download, embedded, locate, mnist, torchvision_compat
from suite.data.entry import Decoded, Entry, Pin

REAL = os.environ.get("SUITE_DATA", "")
URL = "http://data.invalid/mnist/"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tree(root: Path) -> dict[str, int]:
    """Every path below a folder, with the time it was last changed."""
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in sorted(root.rglob("*"))}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folders and no network; data decoded by other tests is forgotten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SUITE_DATA", raising=False)
    monkeypatch.setenv("SUITE_OFFLINE", "1")
    data._decoded.cache_clear()
    return tmp_path / "cache" / "fundamentals-suite"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@dataclasses.dataclass
class Tiny:
    """MNIST with 5 and 2 images of 3x4 pixels, in the real layouts."""

    entry: Entry
    files: dict[str, bytes]
    raw: dict[str, bytes]
    arrays: dict[str, np.ndarray]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    rng = np.random.default_rng(0)
    shapes = [(5, 3, 4), (5,), (2, 3, 4), (2,)]
    arrays = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in shapes]
    raw = {stem: idx(a) for stem, a in zip(mnist.STEMS, arrays, strict=True)}
    files = {f"{stem}.gz": gzip.compress(content, mtime=0) for stem, content in raw.items()}
    layouts = mnist.layouts(
        "mnist",
        "MNIST",
        tuple("0123456789"),
        URL,
        compressed=tuple((len(c), sha256(c)) for c in files.values()),
        raw=tuple(map(sha256, raw.values())),
        sha256=Decoded(
            (arrays[0][:, None], arrays[1].astype(np.int64)),
            (arrays[2][:, None], arrays[3].astype(np.int64)),
        ).sha256(),
    )
    entry = dataclasses.replace(mnist.MNIST, layouts=layouts, download=no_download)
    monkeypatch.setitem(data.CATALOGUE, "mnist", entry)
    return Tiny(entry, files, raw, dict(zip(mnist.STEMS, arrays, strict=True)))


def no_download(folder: Path) -> None:
    pytest.fail("nothing asked for a download")


def with_download(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, write_below: Callable[[Path], None]
) -> None:
    """Let the tiny MNIST be 'downloaded' by a function, and allow downloads."""
    entry = dataclasses.replace(tiny.entry, download=write_below)
    monkeypatch.setitem(data.CATALOGUE, "mnist", entry)
    monkeypatch.delenv("SUITE_OFFLINE")


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "sklearn", "numpy", "pooch", "PIL", "filelock"}
    code = f"import sys, suite.data; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_name_says_the_nearest_and_what_is_allowed() -> None:
    for call in (data.load, data.where, data.fetch, data.verify):
        with pytest.raises(ValueError, match=r"'mnits'.*'mnist'.*cifar10, diabetes, digits"):
            call("mnits")


def test_catalogue_lists_every_set() -> None:
    rows = {row["name"]: row for row in data.catalogue()}
    assert rows.keys() == data.CATALOGUE.keys()
    assert rows["mnist"]["bytes"] == 11_594_722
    assert rows["cifar10"]["bytes"] == 170_498_071
    assert {n for n, row in rows.items() if row["embedded"]} == {
        "digits",
        "wine",
        "breast_cancer",
        "iris",
        "diabetes",
        "photographs",
    }
    assert all(row["licence"] and row["kind"] in ("real", "standin") for row in rows.values())


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist/MNIST/raw"])
def test_idx_layouts(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, compressed: bool
) -> None:
    write(tmp_path / folder, tiny.files if compressed else tiny.raw)
    monkeypatch.setenv("SUITE_DATA", str(tmp_path))
    loaded = data.load("mnist")
    (x, y), (x_test, y_test) = loaded.train, loaded.test
    assert (x.dtype, x.shape, x_test.shape) == (torch.uint8, (5, 1, 3, 4), (2, 1, 3, 4))
    assert (y.dtype, y.shape, y_test.shape) == (torch.int64, (5,), (2,))
    assert np.array_equal(x[:, 0].numpy(), tiny.arrays[mnist.STEMS[0]])
    assert np.array_equal(y_test.numpy(), tiny.arrays[mnist.STEMS[3]])
    assert loaded.provenance == {
        "name": "mnist",
        "kind": "real",
        "sha256": tiny.entry.layouts[0].sha256,
        "n_items": 7,
        "splits": {"train": 5, "test": 2},
        "licence": tiny.entry.licence,
        "notes": "",
    }
    assert all(ok for _, ok, _ in data.verify("mnist"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01x", "no IDX file"),
        (b"\0\0\x08", "no IDX"),
        (b"\0\0\x08\x01\0", "buffer"),
    ],
)
def test_idx_refuses_other_files(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        mnist.read_idx(tmp_path / "file")


def test_look_up_order(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("SUITE_DATA", os.pathsep.join([str(first), "", str(second)]))
    assert data.where("mnist") is None
    write(cache / "MNIST/raw", tiny.files)
    assert data.where("mnist") == cache / "MNIST/raw"
    write(second / "mnist/MNIST/raw", tiny.raw)
    assert data.where("mnist") == second / "mnist/MNIST/raw"
    write(first / "MNIST/raw", dict(list(tiny.files.items())[:3]))
    assert data.where("mnist") == second / "mnist/MNIST/raw", "an incomplete copy is passed over"
    write(first / "MNIST/raw", tiny.files)
    assert data.where("mnist") == first / "MNIST/raw"


@pytest.mark.parametrize("named", [None, "", "/elsewhere"])
def test_the_cache_is_where_platformdirs_has_it(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    if named is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert locate.cache() == Path(pooch.os_cache("fundamentals-suite"))


def test_read_only_folder_is_never_written(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    write(root / "MNIST/raw", tiny.files)
    # The superuser writes where it likes, so what is compared is what is there afterwards.
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setenv("SUITE_DATA", str(root))
    before = tree(root)
    data.load("mnist")
    data.verify("mnist")
    assert data.fetch("mnist") == root / "MNIST/raw"
    assert tree(root) == before
    assert not cache.exists()
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)


def test_corrupt_file_is_named_with_both_checksums(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "MNIST/raw", tiny.files)
    spoilt = tmp_path / "MNIST/raw" / f"{mnist.STEMS[2]}.gz"
    spoilt.write_bytes(spoilt.read_bytes() + b"\0")
    monkeypatch.setenv("SUITE_DATA", str(tmp_path))
    expected, found = sha256(tiny.files[spoilt.name]), sha256(spoilt.read_bytes())
    for call in (data.load, data.fetch):
        with pytest.raises(data.DataCorrupt) as caught:
            call("mnist")
        assert all(text in str(caught.value) for text in (str(spoilt), expected, found))
    assert [ok for _, ok, _ in data.verify("mnist")] == [True, True, False, True]


def test_missing_data_says_all_there_is_to_know(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "part/MNIST/raw", dict(list(tiny.files.items())[:2]))
    folders = [tmp_path / "nowhere", tmp_path / "part"]
    monkeypatch.setenv("SUITE_DATA", os.pathsep.join(map(str, folders)))
    with pytest.raises(data.DataMissing) as caught:
        data.load("mnist")
    said = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert "SUITE_OFFLINE" in said
    for name, content in tiny.files.items():
        assert f"{name}  sha256 {sha256(content)}" in said
        assert URL + name in said
    assert f"{folders[0]} (no such folder)" in said
    assert f"{folders[1]} (incomplete: " in said
    assert f"lacks {mnist.STEMS[2]}.gz and 1 more" in said
    assert str(cache) in said
    assert "suite data fetch mnist" in said
    assert "SUITE_DATA=<folder>" in said
    assert str(Path("<folder>/MNIST/raw")) in said


def test_verify_of_missing_data(tiny: Tiny) -> None:
    with pytest.raises(data.DataMissing, match="'mnist' is not on this machine\n"):
        data.verify("mnist")


def test_download_lands_in_the_cache_once(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def arrive(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.05)
        write(folder / "MNIST/raw", tiny.files | tiny.raw)

    with_download(tiny, monkeypatch, arrive)
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(data.fetch, ["mnist"] * 4))
    assert places == [cache / "MNIST/raw"] * 4
    assert len(calls) == 1
    assert {p.name for p in cache.rglob("*") if p.is_file()} == {*tiny.files, ".mnist.lock"}
    assert data.load("mnist").n_items == 7


def test_load_downloads_unless_told_not_to(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_download(tiny, monkeypatch, lambda folder: write(folder / "MNIST/raw", tiny.files))
    monkeypatch.setenv("SUITE_OFFLINE", "1")
    with pytest.raises(data.DataMissing, match="SUITE_OFFLINE"):
        data.load("mnist")
    assert not cache.exists()
    monkeypatch.setenv("SUITE_OFFLINE", "0")
    assert data.load("mnist").n_items == 7


def test_failed_download_is_missing_data_with_its_cause(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        write(folder / "MNIST/raw", {f"{mnist.STEMS[0]}.gz": b"half a file"})
        raise ConnectionResetError("the line went dead")

    with_download(tiny, monkeypatch, fail)
    with pytest.raises(data.DataMissing, match="the line went dead") as caught:
        data.load("mnist")
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert [p.name for p in cache.rglob("*")] == [".mnist.lock"]


def test_wrong_download_is_refused(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dict.fromkeys(tiny.files, b"<html>please log in</html>")
    with_download(tiny, monkeypatch, lambda folder: write(folder / "MNIST/raw", wrong))
    with pytest.raises(data.DataCorrupt, match=mnist.STEMS[0]):
        data.fetch("mnist")
    assert data.where("mnist") is None


def test_cache_that_cannot_be_written_is_missing_data(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_download(tiny, monkeypatch, no_download)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(data.DataMissing, match="the download failed"):
        data.load("mnist")


def test_fetch_renews_a_corrupt_copy_in_the_cache(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_download(tiny, monkeypatch, lambda folder: write(folder / "MNIST/raw", tiny.files))
    write(cache / "MNIST/raw", tiny.files | {f"{mnist.STEMS[1]}.gz": b"spoilt"})
    with pytest.raises(data.DataCorrupt, match="suite data fetch"):
        data.load("mnist")
    data.fetch("mnist")
    assert data.load("mnist").n_items == 7


def test_tensors_are_decoded_once_and_shared(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cache / "MNIST/raw", tiny.files)
    assert data.load("mnist").train[0] is data.load("mnist").train[0]


def test_in_place_change_harms_only_who_made_it(tiny: Tiny, cache: Path) -> None:
    write(cache / "MNIST/raw", tiny.files)
    with torch.inference_mode():
        mine = data.load("mnist")
    kept = mine.train[0].clone()
    mine.train[0][0].fill_(255)
    again = data.load("mnist")
    assert torch.equal(again.train[0], kept)
    assert not torch.equal(mine.train[0], kept)


def test_moving_keeps_the_provenance(tiny: Tiny, cache: Path) -> None:
    write(cache / "MNIST/raw", tiny.files)
    there = data.load("mnist", device="meta")
    assert {t.device.type for t in (*there.train, *there.test)} == {"meta"}
    assert there.provenance == data.load("mnist").provenance


def legacy_pickle(x: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and its NumPy wrote it: protocol 2, byte strings, ``align=0``."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR("
    shape = b"K\x01(" + b"".join(b"J" + n.to_bytes(4, "little") for n in x.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
    )
    pixels = b"\x89T" + x.size.to_bytes(4, "little") + x.tobytes()
    listed = b"](" + b"".join(bytes([75, label]) for label in labels) + b"e"
    return (
        b"\x80\x02}(U\x04data" + array + shape + dtype + pixels + b"tbU\x06labels" + listed + b"u."
    )


BATCHES = (*cifar10.TRAIN, cifar10.TEST)


@pytest.fixture
def images() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Two images in each of the six batches, (2, 3, 32, 32), and their labels."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8), [i, i + 1])
        for i, name in enumerate(BATCHES)
    }


@pytest.fixture
def cifar_root(
    tmp_path: Path,
    images: dict[str, tuple[np.ndarray, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with a tiny CIFAR-10 in each of its layouts, and the catalogue pinned to them."""
    root = tmp_path / "data"
    files = {n: legacy_pickle(x.reshape(2, -1), labels) for n, (x, labels) in images.items()}
    write(root / cifar10.BATCHES, files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(root / cifar10.BATCHES, cifar10.BATCHES)
    write(root, {cifar10.ARCHIVE: buffer.getvalue()})
    labels = write_strips(root / "cifar10", images)
    batches, archived, _ = cifar10.CIFAR10.layouts
    whole = batches.read(root / cifar10.BATCHES).sha256()
    layouts = (
        dataclasses.replace(batches, pins=tuple(Pin(n, sha256(c)) for n, c in files.items())),
        dataclasses.replace(archived, pins=(Pin(cifar10.ARCHIVE, sha256(buffer.getvalue())),)),
        cifar10.strips(sha256(labels), n_train=5, n_test=1, sha256=whole),
    )
    entry = dataclasses.replace(cifar10.CIFAR10, layouts=layouts, download=no_download)
    monkeypatch.setitem(data.CATALOGUE, "cifar10", entry)
    monkeypatch.setenv("SUITE_DATA", str(root))
    return root


def write_strips(folder: Path, images: dict[str, tuple[np.ndarray, list[int]]]) -> bytes:
    folder.mkdir(parents=True)
    rows = ["split,index,label,source"]
    for i, (name, (x, labels)) in enumerate(images.items()):
        split, strip = ("test", 0) if name == cifar10.TEST else ("train", i)
        stacked = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, 32, 3)
        path = folder / f"{split}_{strip:03}.webp"
        Image.fromarray(stacked).save(path, lossless=True, exact=True)
        rows += [f"{split},{2 * strip + k},{label},lossless" for k, label in enumerate(labels)]
    content = lzma.compress("\n".join([*rows, ""]).encode())
    (folder / "labels.csv.xz").write_bytes(content)
    return content


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_cifar10_layouts_agree(
    cifar_root: Path, images: dict[str, tuple[np.ndarray, list[int]]]
) -> None:
    places, loaded = [], []
    for spent in (None, cifar10.BATCHES, cifar10.ARCHIVE):
        if spent:
            remove(cifar_root / spent) if spent == cifar10.BATCHES else (
                cifar_root / spent
            ).unlink()
        places.append(data.where("cifar10"))
        loaded.append(data.load("cifar10"))
        assert all(ok for _, ok, _ in data.verify("cifar10"))
    assert places == [cifar_root / cifar10.BATCHES, cifar_root, cifar_root / "cifar10"]
    assert len({one.sha256 for one in loaded}) == 1
    for one in loaded:
        assert one.splits == {"train": 10, "test": 2}
        assert np.array_equal(one.train[0][2:4].numpy(), images["data_batch_2"][0])
        assert one.train[1].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
        assert one.class_names[6] == "frog"
    assert [("111" in one.notes and "JPEG" in one.notes) for one in loaded] == [False, False, True]


@pytest.fixture
def strip_folder(cifar_root: Path) -> Path:
    remove(cifar_root / cifar10.BATCHES)
    (cifar_root / cifar10.ARCHIVE).unlink()
    return cifar_root / "cifar10"


def test_undecodable_strip_is_named(strip_folder: Path) -> None:
    strip = strip_folder / "train_003.webp"
    strip.write_bytes(strip.read_bytes()[:40])
    with pytest.raises(data.DataCorrupt, match=r"train_003\.webp cannot be decoded"):
        data.load("cifar10")
    name, ok, detail = data.verify("cifar10")[-1]
    assert (name, ok) == ("decoded values", False)
    assert "train_003.webp" in detail


def test_changed_strip_changes_the_decoded_checksum(strip_folder: Path) -> None:
    (strip_folder / "train_000.webp").write_bytes((strip_folder / "train_001.webp").read_bytes())
    with pytest.raises(data.DataCorrupt, match=f"{re.escape(str(strip_folder))}: expected sha256"):
        data.load("cifar10")


def test_surplus_strip_is_refused(strip_folder: Path) -> None:
    (strip_folder / "train_005.webp").write_bytes((strip_folder / "train_001.webp").read_bytes())
    with pytest.raises(data.DataCorrupt, match="12 train images, but 10 labels"):
        data.load("cifar10")


SHAPES = {
    "digits": ((1437, 1, 8, 8), (360, 1, 8, 8), torch.uint8, torch.int64, 10),
    "wine": ((142, 13), (36, 13), torch.float32, torch.int64, 3),
    "breast_cancer": ((456, 30), (113, 30), torch.float32, torch.int64, 2),
    "iris": ((120, 4), (30, 4), torch.float32, torch.int64, 3),
    "diabetes": ((354, 10), (88, 10), torch.float32, torch.float32, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_embedded(name: str) -> None:
    train, test, x_dtype, y_dtype, n_classes = SHAPES[name]
    loaded = data.load(name)
    (x, y), (x_test, y_test) = loaded.train, loaded.test
    assert (x.shape, x_test.shape, x.dtype, y.dtype) == (train, test, x_dtype, y_dtype)
    assert (y.shape, y_test.shape) == (train[:1], test[:1])
    assert len(loaded.class_names) == n_classes
    assert len(loaded.feature_names) == (0 if name == "digits" else train[1])
    assert loaded.kind == ("standin" if name == "digits" else "real")
    assert ("MNIST" in loaded.notes) == (name == "digits")
    assert [row[:2] for row in data.verify(name)] == [("decoded values", True)]
    assert data.fetch(name) == data.where(name)
    assert loaded.sha256 == EMBEDDED[name]


def test_photographs() -> None:
    loaded = data.load("photographs")
    (x, y), (x_test, y_test) = loaded.train, loaded.test
    assert (x.shape, x.dtype, y.tolist()) == ((2, 3, 427, 640), torch.uint8, [0, 1])
    assert (len(x_test), len(y_test)) == (0, 0)
    assert loaded.class_names == ("china.jpg", "flower.jpg")
    # The sky of one is blue and bright, the other's ground is green.
    assert x[0, 2, :50].float().mean() > 150
    assert x[1].float().mean((1, 2)).argmax() == 1
    assert [row[:2] for row in data.verify("photographs")] == [
        ("china.jpg", True),
        ("flower.jpg", True),
    ]


EMBEDDED = {
    "digits": "78651788edba46b4055a53c2879c5383dc955d230300d222bf08e4fe0fcf20ea",
    "wine": "b60773bad6f7b8af346bc18489ed186bebf819cd5402707267062bce3a121898",
    "breast_cancer": "13a27a9217652ad41352b4188f10f64aff836cc9d83320d57d18758492156965",
    "iris": "cf64f658a1e78c7bf34f1bbbc4ae98229c9181f549cb28f950cab162a503fb7b",
    "diabetes": "06adb657501c9a3501408af3bf302d289ba101b85127d6fae0f47af239a7bc79",
}


def test_checksum_is_over_split_dtype_shape_and_bytes() -> None:
    loaded = data.load("iris")
    hashed = hashlib.sha256()
    for split in ("train", "test"):
        for tensor in getattr(loaded, split):
            dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            hashed.update(f"{split} {dtype} {shape}\n".encode() + tensor.numpy().tobytes())
    assert loaded.sha256 == hashed.hexdigest()


def test_digits_are_rescaled_without_loss() -> None:
    from sklearn.datasets import load_digits

    loaded = data.load("digits")
    levels = torch.cat([loaded.train[0], loaded.test[0]]).unique()
    assert levels.tolist() == [255 * level // 16 for level in range(17)]
    order = np.random.RandomState(0).permutation(1797)
    back = (loaded.test[0].to(torch.int64) * 16 + 254) // 255
    assert np.array_equal(back[:, 0].numpy(), load_digits().images[order[1437:]])


def test_tables_are_split_by_class_and_lose_no_row() -> None:
    from sklearn.datasets import load_wine

    loaded, whole = data.load("wine"), load_wine()
    assert loaded.test[1].bincount().tolist() == [12, 14, 10]
    rows = np.concatenate([np.c_[x.numpy(), y.numpy()] for x, y in (loaded.train, loaded.test)])
    expected = np.c_[whole.data.astype(np.float32), whole.target].astype(np.float32)
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_split_is_disjoint_and_complete() -> None:
    train, test = embedded.split(np.array([0] * 10 + [1] * 5 + [2]))
    assert sorted([*train, *test]) == list(range(16))
    assert sorted(np.array([0] * 10 + [1] * 5 + [2])[test]) == [0, 0, 1]


def test_diabetes_is_in_raw_units() -> None:
    age = data.load("diabetes").train[0][:, 0]
    assert 18 <= age.min() < age.max() < 100


def test_embedded_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(embedded.IRIS, package="no_such_package")
    monkeypatch.setitem(data.CATALOGUE, "iris", entry)
    assert data.where("iris") is None
    with pytest.raises(data.DataMissing, match="'no_such_package' is not installed"):
        data.load("iris")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine for the files of ``tmp_path / "www"``."""
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("no_proxy")
def test_download_through_torchvision(
    tiny: Tiny, server: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "www", tiny.files)
    dataset = torchvision_compat.import_torchvision().datasets.MNIST
    monkeypatch.setattr(dataset, "mirrors", [server])
    md5 = [(n, hashlib.md5(c, usedforsecurity=False).hexdigest()) for n, c in tiny.files.items()]
    monkeypatch.setattr(dataset, "resources", md5)
    through = functools.partial(download.through_torchvision, "MNIST", server)
    with_download(tiny, monkeypatch, through)
    assert data.load("mnist").n_items == 7
    assert data.where("mnist") == cache / "MNIST/raw"
    assert socket.getdefaulttimeout() is None

    remove(cache / "MNIST/raw")
    write(tmp_path / "www", {f"{mnist.STEMS[0]}.gz": b"<html>please log in</html>"})
    with pytest.raises(data.DataMissing, match="File not found or corrupted"):
        data.fetch("mnist")


@pytest.mark.usefixtures("no_proxy")
def test_silent_network_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+"):
            download.through_torchvision("MNIST", url, Path("unused"))
    with pytest.raises(OSError, match="refused"):
        download.through_torchvision("MNIST", url, Path("unused"))


def test_torchvision_imports_and_its_models_run() -> None:
    code = """
import torch
from suite.data.torchvision_compat import import_torchvision
torchvision = import_torchvision()
assert import_torchvision() is torchvision
from torchvision import datasets, models, transforms
assert issubclass(datasets.CIFAR10, torch.utils.data.Dataset)
x = transforms.Normalize(0.5, 0.5)(torch.rand(1, 3, 32, 32))
with torch.no_grad():
    print(tuple(models.resnet18().eval()(x).shape))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("(1, 1000)", 0), done.stderr


def test_schemas_cover_what_the_installed_torchvision_registers() -> None:
    torchvision = torchvision_compat.import_torchvision()
    source = Path(torchvision.__file__).with_name("_meta_registrations.py").read_text()
    named = set(re.findall(r'register_fake\("torchvision::(\w+)"\)', source))
    assert "nms" in named
    assert named <= {schema.partition("(")[0] for schema in torchvision_compat.SCHEMAS}


@pytest.mark.parametrize(
    ("has_ops", "message"),
    [(False, "another error"), (True, "operator torchvision::nms does not exist")],
)
def test_other_errors_of_torchvision_pass_unchanged(
    tmp_path: Path, has_ops: bool, message: str
) -> None:
    write(
        tmp_path / "torchvision",
        {
            "extension.py": f"def _has_ops(): return {has_ops}".encode(),
            "__init__.py": f"from . import extension\nraise RuntimeError({message!r})".encode(),
        },
    )
    code = "from suite.data.torchvision_compat import import_torchvision; import_torchvision()"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(data.__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"RuntimeError: {message}")
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_real_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_DATA", REAL)
    if data.where(name) is None:
        pytest.skip(f"{name} is in no folder of SUITE_DATA ({REAL or 'not set'})")
    loaded = data.load(name)
    channels, side = (3, 32) if name == "cifar10" else (1, 28)
    n_train = 50_000 if name == "cifar10" else 60_000
    assert loaded.train[0].shape == (n_train, channels, side, side)
    assert loaded.test[0].shape == (10_000, channels, side, side)
    assert loaded.n_items == n_train + 10_000
    counts = {split: getattr(loaded, split)[1].bincount().tolist() for split in loaded.splits}
    if name == "mnist":
        assert counts["test"] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert counts == {"train": [n_train // 10] * 10, "test": [1000] * 10}
    place = locate.find(data.CATALOGUE[name])
    assert place is not None
    assert place.layout.notes == loaded.notes
