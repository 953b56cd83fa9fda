"""CIFAR-10: the published Python batches, their archive, or lossless strips of images."""

import csv
import functools
import lzma
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import IO, Any

from suite.data.download import through_torchvision
from suite.data.entry import Array, DataCorrupt, Decoded, Entry, Layout, Pin

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def read_batches(folder: Path) -> Decoded:
    """The six batch files of a folder. Their checksums have been compared: they are pickles."""
    batches = {}
    for name in (*TRAIN, TEST):
        with (folder / name).open("rb") as file:
            batches[name] = _unpickle(file)
    return _joined(batches)


def read_archive(folder: Path) -> Decoded:
    """The same from the archive, without unpacking it to disk."""
    batches = {}
    with tarfile.open(folder / ARCHIVE, "r|gz") as archive:
        for member in archive:
            name = Path(member.name).name
            if name in (*TRAIN, TEST) and (file := archive.extractfile(member)):
                batches[name] = _unpickle(file)
    return _joined(batches)


def _unpickle(file: IO[bytes]) -> dict[str, Any]:
    import numpy as np

    with warnings.catch_warnings():
        # Python 2 wrote dtype(..., align=0) into these files; NumPy 2.4 wants a boolean.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        return pickle.load(file, encoding="latin1")  # type: ignore[no-any-return]


def _joined(batches: dict[str, dict[str, Any]]) -> Decoded:
    """Batches hold ``data`` (N, 3 * 32 * 32), channels first, and ``labels``."""
    import numpy as np

    def split(*names: str) -> tuple[Array, Array]:
        x = np.concatenate([batches[n]["data"] for n in names]).reshape(-1, 3, 32, 32)
        y = np.concatenate([np.asarray(batches[n]["labels"], np.int64) for n in names])
        return x, y

    return Decoded(split(*TRAIN), split(TEST), class_names=CLASS_NAMES)


def read_strips(folder: Path) -> Decoded:
    """Strips of images stacked vertically, ``train_000.webp`` ..., and ``labels.csv.xz``.

    Raises:
        DataCorrupt: a strip cannot be decoded, or there are not as many images as labels.
    """
    import numpy as np

    labels: dict[str, list[int]] = {"train": [], "test": []}
    with lzma.open(folder / "labels.csv.xz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["index"]) == len(labels[row["split"]]), "labels are in order"
            labels[row["split"]].append(int(row["label"]))

    def split(name: str) -> tuple[Array, Array]:
        strips = [_strip(path) for path in sorted(folder.glob(f"{name}_*.webp"))]
        x, y = np.concatenate(strips), np.asarray(labels[name], np.int64)
        if len(x) != len(y):
            raise DataCorrupt(f"{folder}: {len(x)} {name} images, but {len(y)} labels")
        return x, y

    return Decoded(split("train"), split("test"), class_names=CLASS_NAMES)


def _strip(path: Path) -> Array:
    """One strip as (N, 3, 32, 32)."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            stacked = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataCorrupt(f"{path} cannot be decoded: {error}") from error
    return np.ascontiguousarray(stacked.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


def strips(labels_sha256: str, n_train: int, n_test: int, sha256: str) -> Layout:
    """The layout of strips: how many there are, and the checksum of what they decode to."""
    names = [f"train_{i:03}.webp" for i in range(n_train)]
    names += [f"test_{i:03}.webp" for i in range(n_test)]
    return Layout(
        folders=("cifar10",),
        pins=(Pin("labels.csv.xz", labels_sha256), *map(Pin, names)),
        read=read_strips,
        sha256=sha256,
        notes="a rebuilt copy: 111 of the 60,000 images (86 train, 25 test) come from a JPEG copy",
    )


CIFAR10 = Entry(
    name="cifar10",
    kind="real",
    licence="none stated by its author; cite Krizhevsky, Learning Multiple Layers of Features "
    "from Tiny Images, 2009",
    layouts=(
        Layout(
            folders=(BATCHES, f"cifar10/{BATCHES}"),
            pins=(
                Pin(TRAIN[0], "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
                Pin(TRAIN[1], "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
                Pin(TRAIN[2], "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
                Pin(TRAIN[3], "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
                Pin(TRAIN[4], "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
                Pin(TEST, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
            ),
            read=read_batches,
        ),
        Layout(
            folders=("", "cifar10"),
            pins=(
                Pin(
                    ARCHIVE,
                    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                    URL,
                    170498071,
                ),
            ),
            read=read_archive,
        ),
        strips(
            "a58f28f47e1b03f26116a7dc6bd26ee88688f5102edab4ebe9ced1f5cf8cf71c",
            n_train=100,
            n_test=20,
            sha256="0e38fb8aa9ef277893bd990e5151462c3ae3aeb2faee33549ffed7a0a04858d7",
        ),
    ),
    download=functools.partial(through_torchvision, "CIFAR10", URL),
)
