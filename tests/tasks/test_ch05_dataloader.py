import dataclasses

import pytest
import torch

from tasks.ch05_pytorch import dataloader as task

CPU = torch.device("cpu")


def _images(n=23):
    torch.manual_seed(1)
    x_NCHW = torch.randint(0, 256, (n, 1, 5, 7), dtype=torch.uint8)
    return x_NCHW, torch.arange(n) % 10


def _epoch(cfg, seed=2):
    images, y = _images()
    pictures = task.Pictures(task.encoded(images), y, cfg.workers)
    ram = None if cfg.loader == "workers" else task.in_memory(pictures, CPU)
    torch.manual_seed(seed)
    return pictures, list(task.epoch_of(pictures, ram, cfg, CPU)), images.float() / 255, y


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


def test_two_epochs_have_two_orders_and_one_seed_has_one():
    cfg = task.Config(loader="workers", batch_size=23)
    first, again, other = (_epoch(cfg, seed)[1][0][2].tolist() for seed in (2, 2, 3))
    assert first == again != other


def test_the_picture_shows_who_decoded():
    cfg = dataclasses.replace(task.Config(), workers=2)
    _, handed, _, _ = _epoch(task.Config(loader="in_ram", batch_size=12))
    figure = task.draw_batch(handed[0], torch.tensor([0, 12, 11]).numpy(), cfg)
    bars = figure.subfigs[1].axes[0].patches
    assert [bar.get_height() for bar in bars] == [0, 12, 11]
