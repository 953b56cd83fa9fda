import dataclasses

import pytest
import torch

from suite import checkpoint
from suite.run import Context
from tasks.ch05_pytorch import dataloader as task

CPU = torch.device("cpu")


def _images(n=23):
    torch.manual_seed(1)
    x_NCHW = torch.randint(0, 256, (n, 1, 5, 7), dtype=torch.uint8)
    return x_NCHW, torch.arange(n) % 10


def _epochs(cfg, n, seed=2):
    images, y = _images()
    pictures = task.Pictures(task.encoded(images), y, cfg.workers)
    ram = None if cfg.loader == "workers" else task.in_memory(pictures, CPU)
    one_pass = task.loader_of(pictures, ram, cfg, CPU)
    torch.manual_seed(seed)
    return pictures, [list(one_pass()) for _ in range(n)], images.float() / 255, y


def _epoch(cfg, seed=2):
    pictures, (handed,), x, y = _epochs(cfg, 1, seed)
    return pictures, handed, x, y


def test_a_picture_survives_its_file_bit_for_bit():
    images, _ = _images()
    got = torch.stack([task.decoded(f) for f in task.encoded(images)])
    assert torch.equal(got, images.float() / 255)


@pytest.mark.parametrize(("loader", "workers"), [("workers", 0), ("workers", 2), ("in_ram", 0)])
def test_every_loader_gives_every_example_once_with_its_own(loader, workers):
    cfg = task.Config(loader=loader, workers=workers, batch_size=5)
    pictures, handed, x, y = _epoch(cfg)
    assert [len(b[1]) for b in handed] == [5, 5, 5, 5, 3]
    assert sum(task.faults(handed, x, y).values()) == 0
    numbers = torch.cat([b[2] for b in handed])
    assert numbers.tolist() != list(range(23)), "not shuffled"
    assert int(pictures.decodes_P.sum()) == 23
    assert bool(pictures.decodes_P[0]) == (workers == 0)


def test_shuffling_images_and_labels_apart_is_noticed():
    cfg = task.Config(loader="unpaired", batch_size=5)
    _, handed, x, y = _epoch(cfg)
    found = task.faults(handed, x, y)
    assert found["wrong_labels"] > 10
    assert found["wrong_pixels"] == found["not_once"] == 0


def test_every_kind_of_fault_is_counted():
    _, handed, x, y = _epoch(task.Config(loader="in_ram", batch_size=23))
    images, labels, number = handed[0]
    pixel = images.clone()
    pixel[4, 0, 2, 2] += 0.01
    assert task.faults([(pixel, labels, number)], x, y)["wrong_pixels"] == 1
    label = labels.clone()
    label[[1, 3]] += 1
    assert task.faults([(images, label, number)], x, y)["wrong_labels"] == 2
    # One example twice, and another not at all.
    twice = [t[torch.tensor([0, 0, *range(2, 23)])] for t in handed[0]]
    assert task.faults([tuple(twice)], x, y)["not_once"] == 2


def test_two_seeds_have_two_orders_and_one_seed_has_one():
    cfg = task.Config(loader="workers", batch_size=23)
    first, again, other = (_epoch(cfg, seed)[1][0][2].tolist() for seed in (2, 2, 3))
    assert first == again != other


@pytest.mark.parametrize(("loader", "workers"), [("workers", 0), ("workers", 2), ("in_ram", 0)])
def test_every_epoch_has_all_examples_in_an_order_of_its_own(loader, workers):
    cfg = task.Config(loader=loader, workers=workers, batch_size=5)
    pictures, epochs, x, y = _epochs(cfg, 2)
    assert [sum(task.faults(handed, x, y).values()) for handed in epochs] == [0, 0]
    one, two = (torch.cat([b[2] for b in handed]).tolist() for handed in epochs)
    assert one != two
    assert int(pictures.decodes_P.sum()) == 23 * (1 if loader == "in_ram" else 2)


def _rows(cfg, snapshot=None):
    ctx = Context(CPU, 0, snapshot=snapshot)
    for row in task.run(cfg, ctx):
        if row is not None:
            yield ctx, row()


@pytest.mark.parametrize("loader", ["workers", "in_ram"])
def test_what_a_restart_decodes_again_counts_once(loader):
    cfg = task.Config(data="digits", loader=loader, examples=40, epochs=3)
    whole = [row for _, row in _rows(cfg)]
    begun = _rows(cfg)
    ctx, first = next(begun)
    kept = {name: checkpoint.state_of(thing) for name, thing in ctx.kept.items()}
    rest = [row for _, row in _rows(cfg, {"kept": kept, "yields": 1, "artifacts": []})]
    assert [first, *rest] == whole
    assert [row["decodes"] for row in whole] == (
        [1, 1, 1] if loader == "workers" else [1, 1 / 2, 1 / 3]
    )


def test_faults_add_up_and_an_epoch_to_come_has_not_given_its_examples():
    cfg = task.Config(data="digits", loader="unpaired", examples=100, epochs=3)
    rows = [row for _, row in _rows(cfg)]
    labels = [row["wrong_labels"] for row in rows]
    assert 50 < labels[0] < labels[1] - 50 < labels[2] - 100
    assert [row["not_once"] for row in rows] == [200, 100, 0]
    assert [row["wrong"] for row in rows] == [
        n + m for n, m in zip(labels, (200, 100, 0), strict=True)
    ]
    assert rows[-1]["wrong_share"] == labels[-1] / 300


def test_the_picture_shows_who_decoded():
    cfg = dataclasses.replace(task.Config(), workers=2)
    _, handed, _, _ = _epoch(task.Config(loader="in_ram", batch_size=12))
    figure = task.draw_batch(handed[0], torch.tensor([0, 12, 11]).numpy(), cfg)
    bars = figure.subfigs[1].axes[0].patches
    assert [bar.get_width() for bar in bars] == [0, 12, 11]
