"""An epoch from each loader of ch05.dataloader, in turn. Read the ratios; nothing fails by them."""

import functools
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


def _epoch(cfg, pictures, ram):
    made = dataloader.Pictures(*pictures, cfg.workers)
    return sum(len(b[1]) for b in dataloader.epoch_of(made, ram, cfg, torch.device("cpu")))


@pytest.mark.parametrize("workers", WORKERS)
def test_rows_in_memory_against_a_dataloader(benchmark, in_turn, pictures, workers):
    """Seconds an epoch of a DataLoader over those of rows of one tensor, in adjacent pairs."""
    loader = dataloader.Config(workers=workers)
    rows = dataloader.Config(loader="in_ram")
    ram = dataloader.in_memory(dataloader.Pictures(*pictures, 0), torch.device("cpu"))
    assert _epoch(loader, pictures, None) == _epoch(rows, pictures, ram) == len(pictures[1])
    sides = {c.loader: functools.partial(_epoch, c, pictures, ram) for c in (loader, rows)}
    seconds = in_turn(sides, ROUNDS)
    benchmark.extra_info["images_per_s"] = {
        name: len(pictures[1]) / statistics.median(pair[name] for pair in seconds) for name in sides
    }
    benchmark.pedantic(_epoch, (loader, pictures, None), rounds=1)


def test_workers_against_the_training_process(benchmark, in_turn, pictures):
    """Seconds an epoch without workers over those with two, in adjacent pairs."""
    configs = [dataloader.Config(workers=w) for w in (0, 2)]
    in_turn({c.workers: functools.partial(_epoch, c, pictures, None) for c in configs}, ROUNDS)
    benchmark.pedantic(_epoch, (configs[1], pictures, None), rounds=1)
