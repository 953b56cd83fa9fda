"""An epoch from each loader of ch05.dataloader, in turn. Read the ratios; nothing fails by them."""

import statistics
import time

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
def test_rows_in_memory_against_a_dataloader(benchmark, pictures, workers):
    """Seconds an epoch of a DataLoader over those of rows of one tensor, in adjacent pairs."""
    loader = dataloader.Config(workers=workers)
    rows = dataloader.Config(loader="in_ram")
    ram = dataloader.in_memory(dataloader.Pictures(*pictures, 0), torch.device("cpu"))
    assert _epoch(loader, pictures, None) == _epoch(rows, pictures, ram) == len(pictures[1])
    seconds = []
    for i in range(ROUNDS):
        pair = {}
        for cfg in (loader, rows) if i % 2 else (rows, loader):
            began = time.perf_counter()
            _epoch(cfg, pictures, ram)
            pair[cfg.loader] = time.perf_counter() - began
        seconds.append(pair)
    ratios = [pair["workers"] / pair["in_ram"] for pair in seconds]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    benchmark.extra_info["ratio_quartiles"] = statistics.quantiles(ratios)[::2]
    benchmark.extra_info["images_per_s"] = {
        name: len(pictures[1]) / statistics.median(pair[name] for pair in seconds)
        for name in ("workers", "in_ram")
    }
    benchmark.pedantic(_epoch, (loader, pictures, None), rounds=1)


def test_workers_against_the_training_process(benchmark, pictures):
    """Seconds an epoch without workers over those with two, in adjacent pairs."""
    configs = [dataloader.Config(workers=w) for w in (0, 2)]
    ratios = []
    for i in range(ROUNDS):
        pair = {}
        for cfg in configs[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            _epoch(cfg, pictures, None)
            pair[cfg.workers] = time.perf_counter() - began
        ratios.append(pair[0] / pair[2])
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    benchmark.extra_info["ratio_quartiles"] = statistics.quantiles(ratios)[::2]
    benchmark.pedantic(_epoch, (configs[1], pictures, None), rounds=1)
