"""Datasets and loaders: does every image arrive once, with its own label, and who does the work?

Section "PyTorch Datasets and Dataloaders". The listing's dataset opens one picture an example and
returns it as floats 0..1 beside its label; a DataLoader shuffles and batches them. Here the
pictures are the data set's images as PNG files whose bytes are held in memory, so that no disk
comes into it. Compared are

- `workers0`, the listing: the training process decodes every picture itself.
- `workers2`, `workers8`: two or eight worker processes, which live as long as the run, decode and
  send batches.
- `in_ram`: all pictures are decoded once, and batches are rows of one tensor on the device (as in
  airbench's loader). `mnist_mlp` and all other tasks do this.
- `unpaired`, the control: `in_ram` with images and labels each shuffled on their own.

`wrong` counts, over all epochs, examples that came with pixels or a label that are not their own,
and examples that an epoch did not give just once, as all of an epoch that is still to come. The
loaders have to give the same tensors bit for bit. `decodes` is the number of pictures decoded for
one example handed out, `own_decodes` those of them in the training process, and `busiest` the share
that the busiest process had.

How fast a loader is depends on the machine, so it is no metric: it is the record's `step`, the
examples handed out, over its training time, in which workers start and `in_ram` decodes too;
whether a batch is right is looked up off the clock, after each epoch. Images a second of each
loader, and the ratios of pairs that hand out an epoch in turn, are measured by
tests/bench/test_loaders.py. The book gives no figure.

On two cores two or eight workers are slower than none: an epoch of MNIST takes 2.7 to 3.2 s instead
of 2.2 to 2.3. A picture of 784 pixels is decoded in some 35 us, and for a batch to get to another
process, through memory that both share, costs about as much again for each of its pictures: twice
the work for two cores, which is no gain at best. Starting the workers adds 2 s to the first epoch
where there are two, and 7 s where there are eight. They would pay where a picture takes longer to
decode, or cores are many. Rows of a tensor take 0.05 s an epoch, after 3 s in which all of them are
decoded once.

Shapes: B batch, N examples, C channels, H and W height and width, P processes.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from suite.fields import Count, Natural
from suite.fit import batches
from suite.task import Claim, Target, Task

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    loader: Literal["workers", "in_ram", "unpaired"] = "workers"
    workers: Natural = 0
    batch_size: Count = 64
    epochs: Count = 3
    examples: Count = 60000


def encoded(x_NCHW: torch.Tensor) -> list[bytes]:
    """Grey images, uint8, as the contents of PNG files."""
    files = []
    for x_HW in x_NCHW[:, 0].cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(x_HW).save(file, format="PNG")
        files.append(file.getvalue())
    return files


def decoded(file: bytes) -> torch.Tensor:
    """A PNG file as floats 0..1: x_CHW."""
    with Image.open(io.BytesIO(file)) as picture:
        return torch.from_numpy(np.array(picture, dtype=np.float32)[None] / 255)


class Pictures(Dataset[Batch]):
    """Picture files and labels; counts in shared memory who decodes how many."""

    def __init__(self, files: list[bytes], y_N: torch.Tensor, workers: int) -> None:
        self.files, self.y_N = files, y_N
        self.decodes_P = torch.zeros(1 + workers, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Batch:
        worker = get_worker_info()
        self.decodes_P[0 if worker is None else 1 + worker.id] += 1
        return decoded(self.files[i]), self.y_N[i], torch.tensor(i)


def loader_of(
    pictures: Pictures, ram: Any, cfg: Config, device: torch.device
) -> Callable[[], Iterator[Batch]]:
    """Each call is a pass over all examples in random order: images, labels, example numbers."""
    if cfg.loader == "in_ram":
        return lambda: batches(ram, cfg.batch_size)
    if cfg.loader == "unpaired":
        return lambda: _unpaired(ram, cfg.batch_size)
    loader = DataLoader(
        pictures,
        cfg.batch_size,
        shuffle=True,
        num_workers=cfg.workers,
        # Else they would start anew for each epoch.
        persistent_workers=cfg.workers > 0,
    )
    return lambda: (tuple(t.to(device) for t in batch) for batch in loader)


def _unpaired(ram: Batch, size: int) -> Iterator[Batch]:
    x, y, number = ram
    labels = batches((y,), size)
    for (x_B, number_B), (y_B,) in zip(batches((x, number), size), labels, strict=True):
        yield x_B, y_B, number_B


def in_memory(pictures: Pictures, device: torch.device) -> Batch:
    """All of them decoded: x_NCHW, y_N and the examples' numbers."""
    x, y, number = zip(*(pictures[i] for i in range(len(pictures))), strict=True)
    return tuple(torch.stack(column).to(device) for column in (x, y, number))


def faults(handed: list[Batch], x_NCHW: torch.Tensor, y_N: torch.Tensor) -> dict[str, int]:
    """What is wrong with an epoch's batches: pixels, labels, and examples not given just once."""
    x, y, number = (torch.cat(column) for column in zip(*handed, strict=True))
    given_N = torch.bincount(number, minlength=len(y_N))
    return {
        "wrong_pixels": int((x != x_NCHW[number]).flatten(1).any(1).sum()),
        "wrong_labels": int((y != y_N[number]).sum()),
        "not_once": int((given_N != 1).sum()),
    }


def draw_batch(shown: Sequence[torch.Tensor], decodes_P: np.ndarray, cfg: Config) -> Any:
    """The first images of the last epoch with their labels, and who decoded how many."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    for ax, image, label, i in zip(left.subplots(2, 5).flat, *shown, strict=False):
        ax.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        ax.set_title(f"label {int(label)}\nexample {int(i)}", size=8)
        ax.axis("off")
    left.suptitle("a batch as it arrives", size=10)
    axes = right.subplots()
    names = ["training"] + [f"worker {i}" for i in range(len(decodes_P) - 1)]
    axes.barh(names, decodes_P, color="#0072B2", height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="pictures decoded", title=f"{cfg.epochs} epochs")
    axes.grid(alpha=0.3, axis="x")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    images, y = ctx.data(cfg.data).train
    images, y = images[: cfg.examples], y[: cfg.examples]
    # On a GPU a division by a number is a product with its inverse, and rounds otherwise.
    x = (images.cpu().float() / 255).to(ctx.device)
    pictures = Pictures(encoded(images), y.cpu(), cfg.workers)
    decodes_P = pictures.decodes_P
    n = cfg.epochs * len(y)
    found = {"wrong_pixels": 0, "wrong_labels": 0, "not_once": n}
    shown: list[torch.Tensor] = []
    start = ctx.keep(decodes_P=decodes_P, found=found, shown=shown)
    before_P = decodes_P.clone()

    def check(epoch: int, handed: list[Batch]) -> dict[str, Any]:
        found["not_once"] -= len(y)
        for name, count in faults(handed, x, y).items():
            found[name] += count
        given = epoch * len(y)
        return {
            "step": given,
            "epoch": epoch,
            "wrong": sum(found.values()),
            **found,
            "wrong_share": sum(found.values()) / n,
            "decodes": int(decodes_P.sum()) / given,
            "own_decodes": int(decodes_P[0]) / given,
            "busiest": int(decodes_P.max()) / int(decodes_P.sum()),
        }

    yield
    ram = None if cfg.loader == "workers" else in_memory(pictures, ctx.device)
    if start:
        # What a restart decodes again was counted before.
        decodes_P.copy_(before_P)
    one_pass = loader_of(pictures, ram, cfg, ctx.device)
    for epoch in range(start + 1, cfg.epochs + 1):
        handed = list(one_pass())
        shown[:] = [t[:10].cpu() for t in handed[0]]
        yield partial(check, epoch, handed)
    ctx.figure("batch", lambda: draw_batch(shown, decodes_P.numpy(), cfg))


EXACT = Target(
    "wrong",
    0,
    "min",
    "the definition of a pass over the data: every example once, with its own pixels and label",
)
CORRECT = dict.fromkeys(("workers0", "workers2", "workers8", "in_ram"), EXACT)

TASK = Task(
    config=Config(),
    run=run,
    sections=("PyTorch Datasets and Dataloaders",),
    profiles={
        "smoke": {"data": "digits", "examples": 200, "epochs": 2},
        "laptop": {"data": "digits", "examples": 1437},
        "paper": {},
    },
    variants={
        "workers0": {},
        "workers2": {"workers": 2},
        "workers8": {"workers": 8},
        "in_ram": {"loader": "in_ram"},
        "unpaired": {"loader": "unpaired"},
    },
    targets=dict.fromkeys(("smoke", "laptop", "paper"), CORRECT),
    claims=(
        Claim(
            "images and labels that are shuffled apart no longer belong together",
            "wrong_share",
            left="unpaired",
            right=0.8,
            mode="max",
            source="theory: with ten classes alike in size nine labels of ten are wrong; this is "
            "the control of `wrong`",
        ),
        Claim(
            "with workers the training process decodes nothing itself",
            "own_decodes",
            left="workers2",
            right="workers0",
            mode="min",
            margin=0.99,
            source="torch.utils.data, num_workers: subprocesses load the data",
        ),
        Claim(
            "two workers share the pictures evenly",
            "busiest",
            left="workers2",
            right=0.6,
            mode="min",
            source="torch.utils.data: batches go to the workers in turn; 0.6 allows for a last "
            "batch or two more",
        ),
        Claim(
            "eight workers do too",
            "busiest",
            left="workers8",
            right=0.15,
            mode="min",
            source="torch.utils.data: batches go to the workers in turn; 0.15 allows for a last "
            "batch more, where an eighth is 0.125",
        ),
        Claim(
            "tensors in memory need one decode an example for all epochs",
            "decodes",
            left="in_ram",
            right="workers0",
            mode="min",
            margin=0.3,
            source="theory: one decode for each of the epochs against one for all of them",
        ),
    ),
)
