"""The data sets that scikit-learn brings along: no download, the same split everywhere."""

import functools
from collections.abc import Callable
from pathlib import Path

from suite.data.entry import Array, Decoded, Entry, Kind, Layout, Pin

PHOTOGRAPH_NAMES = ("china.jpg", "flower.jpg")


def read_digits(_: Path) -> Decoded:
    """The 8x8 digits: x (N, 1, 8, 8) uint8 in 0..255, y (N,) int64; 1,437 train and 360 test.

    scikit-learn's grey levels 0..16 become ``255 * level // 16``: 0 stays 0, 16 becomes 255, and
    no two levels fall together.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images.astype(np.int64) * 255 // 16).astype(np.uint8)[:, None]
    y = bunch.target.astype(np.int64)
    order = _permutation(len(x))
    train, test = order[:1437], order[1437:]
    return Decoded((x[train], y[train]), (x[test], y[test]), class_names=tuple("0123456789"))


def read_table(name: str, _: Path) -> Decoded:
    """A table: x (N, d) float32 in raw units; y (N,) int64 classes, or float32 for a regression."""
    import numpy as np
    from sklearn import datasets

    raw_units = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**raw_units)
    class_names = tuple(str(c) for c in bunch.get("target_names", ()))
    x = bunch.data.astype(np.float32)
    y = bunch.target.astype(np.int64 if class_names else np.float32)
    train, test = split(y if class_names else np.zeros(len(y)))
    return Decoded(
        train=(x[train], y[train]),
        test=(x[test], y[test]),
        feature_names=tuple(str(f) for f in bunch.feature_names),
        class_names=class_names,
    )


def read_photographs(folder: Path) -> Decoded:
    """Two photographs, (2, 3, 427, 640) uint8, named by their classes; nothing to test on."""
    import numpy as np
    from PIL import Image

    images = []
    for name in PHOTOGRAPH_NAMES:
        with Image.open(folder / name) as image:
            images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    x, y = np.ascontiguousarray(np.stack(images)), np.arange(len(images))
    return Decoded((x, y), (x[:0].copy(), y[:0].copy()), class_names=PHOTOGRAPH_NAMES)


def split(strata: Array) -> tuple[Array, Array]:
    """Rows for training and for testing, 80 to 20 within each stratum, always the same."""
    import numpy as np

    order = _permutation(len(strata))
    held_out = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        rows = order[strata[order] == stratum]
        held_out[rows[: round(len(rows) / 5)]] = True
    return order[~held_out[order]], order[held_out[order]]


def _permutation(n: int) -> Array:
    import numpy as np

    # RandomState's streams are frozen for good; those of default_rng may change with NumPy.
    return np.random.RandomState(0).permutation(n)


def entry(
    name: str,
    kind: Kind,
    licence: str,
    read: Callable[[Path], Decoded],
    sha256: str,
    notes: str = "",
) -> Entry:
    """An embedded set: its place is scikit-learn itself, and only what it decodes to is pinned."""
    return Entry(name, kind, licence, (Layout(("",), (), read, sha256),), notes, package="sklearn")


UCI = "CC BY 4.0 (UCI Machine Learning Repository, as shipped with scikit-learn)"
DIGITS = entry(
    "digits",
    "standin",
    UCI,
    read_digits,
    "78651788edba46b4055a53c2879c5383dc955d230300d222bf08e4fe0fcf20ea",
    notes="stands in for MNIST: scikit-learn's 1,797 digits of 8x8 pixels",
)
WINE = entry(
    "wine",
    "real",
    UCI,
    functools.partial(read_table, "wine"),
    "b60773bad6f7b8af346bc18489ed186bebf819cd5402707267062bce3a121898",
)
BREAST_CANCER = entry(
    "breast_cancer",
    "real",
    UCI,
    functools.partial(read_table, "breast_cancer"),
    "13a27a9217652ad41352b4188f10f64aff836cc9d83320d57d18758492156965",
)
IRIS = entry(
    "iris",
    "real",
    UCI,
    functools.partial(read_table, "iris"),
    "cf64f658a1e78c7bf34f1bbbc4ae98229c9181f549cb28f950cab162a503fb7b",
)
DIABETES = entry(
    "diabetes",
    "real",
    "none stated; cite Efron et al., Least Angle Regression, 2004 (as shipped with scikit-learn)",
    functools.partial(read_table, "diabetes"),
    "06adb657501c9a3501408af3bf302d289ba101b85127d6fae0f47af239a7bc79",
)
# What a JPEG decodes to depends on the decoder's version, so the files are pinned.
PHOTOGRAPHS = Entry(
    name="photographs",
    kind="real",
    licence="CC BY 2.0 (china.jpg: danielbuechele; flower.jpg: vultilion; with scikit-learn)",
    layouts=(
        Layout(
            folders=("datasets/images",),
            pins=(
                Pin(
                    PHOTOGRAPH_NAMES[0],
                    "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
                ),
                Pin(
                    PHOTOGRAPH_NAMES[1],
                    "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
                ),
            ),
            read=read_photographs,
        ),
    ),
    package="sklearn",
)
