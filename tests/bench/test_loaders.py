"""An epoch from each loader of ch05.dataloader, in turn. Read the ratios; nothing fails by them.

What to look for: images a second of the stock loader, the one without workers, of which a laptop
should do 5,000; and how many times as fast rows in memory are, which should be 10 at the least.
"""

import statistics

import pytest
import torch

from tasks.ch05_pytorch import dataloader

WORKERS = (0, 2, 8)
ROUNDS = 9


@pytest.fixture(scope="module")
def pictures():
    """5,000 MNIST-sized images of noise, which PNG cannot make small."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (5_000, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (len(images),))
    return dataloader.encoded(images), labels


def _passes(cfg, pictures, ram=None):
    """Hands out all examples once a call, by processes that are at work already."""
    made = dataloader.Pictures(*pictures, cfg.workers)
    one_pass = dataloader.loader_of(made, ram, cfg, torch.device("cpu"))

    def epoch():
        return sum(len(labels) for _, labels, _ in one_pass())

    assert epoch() == len(pictures[1])
    return epoch


@pytest.mark.parametrize("workers", WORKERS)
def test_rows_in_memory_against_a_dataloader(benchmark, in_turn, pictures, workers):
    """Seconds an epoch of a DataLoader over those of rows of one tensor, in adjacent pairs."""
    ram = dataloader.in_memory(dataloader.Pictures(*pictures, 0), torch.device("cpu"))
    sides = {
        "workers": _passes(dataloader.Config(workers=workers), pictures),
        "in_ram": _passes(dataloader.Config(loader="in_ram"), pictures, ram),
    }
    seconds = in_turn(sides, ROUNDS)
    benchmark.extra_info["images_per_s"] = {
        name: len(pictures[1]) / statistics.median(pair[name] for pair in seconds) for name in sides
    }
    benchmark.pedantic(sides["workers"], rounds=1)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_workers_against_the_training_process(benchmark, in_turn, pictures, workers):
    """Seconds an epoch without workers over those with some, in adjacent pairs."""
    sides = {w: _passes(dataloader.Config(workers=w), pictures) for w in (0, workers)}
    in_turn(sides, ROUNDS)
    benchmark.pedantic(sides[workers], rounds=1)
