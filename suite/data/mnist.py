"""MNIST and Fashion-MNIST: the IDX files as published, compressed or not."""

import functools
import gzip
from pathlib import Path

from suite.data.download import through_torchvision
from suite.data.entry import Array, Decoded, Entry, Layout, Pin

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(path: Path) -> Array:
    """An IDX file of unsigned bytes as an array; ``.gz`` is decompressed.

    Raises:
        ValueError: the file is no IDX file, holds another type or ends too early.
    """
    import numpy as np

    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    # Two zeros, the type (8 is unsigned byte), the number of dimensions.
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    n_dims = content[3]
    shape = np.frombuffer(content, ">u4", count=n_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape).copy()


def read(class_names: tuple[str, ...], suffix: str, folder: Path) -> Decoded:
    """The four IDX files of a folder: x (N, 1, H, W) uint8, y (N,) int64."""
    import numpy as np

    x_train, y_train, x_test, y_test = (read_idx(folder / f"{stem}{suffix}") for stem in STEMS)
    return Decoded(
        train=(x_train[:, None], y_train.astype(np.int64)),
        test=(x_test[:, None], y_test.astype(np.int64)),
        class_names=class_names,
    )


def layouts(
    name: str,
    dataset: str,
    class_names: tuple[str, ...],
    url: str,
    compressed: tuple[tuple[int, str], ...],
    raw: tuple[str, ...],
    sha256: str,
) -> tuple[Layout, Layout]:
    """The files as published, and decompressed as torchvision leaves them.

    Args:
        name: of the data set here.
        dataset: of the data set in torchvision.
        class_names: of the labels 0 to 9.
        url: the address of the folder with the published files.
        compressed: size and sha256 of each published file, in the order of ``STEMS``.
        raw: sha256 of each decompressed file.
        sha256: of the decoded values.
    """
    folders = (f"{dataset}/raw", f"{name}/{dataset}/raw")
    published = tuple(
        Pin(f"{stem}.gz", digest, f"{url}{stem}.gz", size)
        for stem, (size, digest) in zip(STEMS, compressed, strict=True)
    )
    unpacked = tuple(Pin(stem, digest) for stem, digest in zip(STEMS, raw, strict=True))
    return (
        Layout(folders, published, functools.partial(read, class_names, ".gz"), sha256),
        Layout(folders, unpacked, functools.partial(read, class_names, ""), sha256),
    )


MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = Entry(
    name="mnist",
    kind="real",
    licence="none stated by its authors (LeCun, Cortes, Burges); commonly given as CC BY-SA 3.0",
    layouts=layouts(
        "mnist",
        "MNIST",
        tuple("0123456789"),
        MNIST_URL,
        compressed=(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        raw=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        sha256="9ad9a44a423b08b3719ebcfdbd45141229815f70744e8a0202771557c57ba95c",
    ),
    download=functools.partial(through_torchvision, "MNIST", f"{MNIST_URL}{STEMS[0]}.gz"),
)

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST = Entry(
    name="fashion_mnist",
    kind="real",
    licence="MIT",
    layouts=layouts(
        "fashion_mnist",
        "FashionMNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        FASHION_URL,
        compressed=(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        raw=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        sha256="ec1b4de40bbf053844274dd30887453c6a8cce8964cb7ef77f6a18c0ca1f7dc3",
    ),
    download=functools.partial(through_torchvision, "FashionMNIST", f"{FASHION_URL}{STEMS[0]}.gz"),
)
