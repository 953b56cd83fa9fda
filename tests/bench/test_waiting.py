"""A small net on all cores, whose threads soon sleep while they wait for each other, or spin.

Alone, and beside processes that keep a core busy each. Read the ratios, seconds of threads that
wait as the suite has them wait over those by default; nothing can fail by them. Threads read how to
wait when PyTorch is imported, so each side is a process of its own, which is told when to train.
"""

import contextlib
import os
import subprocess
import sys

import pytest

from suite.worker import SPINS

PAIRS = 5
SERVE = """
import sys
import torch
from torch.nn import functional as F

torch.manual_seed(0)
layers = [torch.nn.Linear(n, m) for n, m in ((64, 256), (256, 256), (256, 256), (256, 10))]
model = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())][:-1])
adam = torch.optim.Adam(model.parameters())
x, y = torch.rand(64, 64), torch.randint(10, (64,))
print(torch.get_num_threads(), flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    print("done", flush=True)
"""
BUSY = """
import torch
torch.set_num_threads(1)
a = torch.rand(1000, 1000)
print("busy", flush=True)
while True:
    a @ a
"""


class Trainer:
    """A process that trains for some updates when it is called."""

    def __init__(self, variables, updates, stack):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        self.process = _process(SERVE, stack, kept | variables)
        self.threads = int(self.process.stdout.readline())
        self.updates = updates
        self()

    def __call__(self):
        self.process.stdin.write(f"{self.updates}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


def _process(code, stack, environ=None):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        # As other users' work and that of services is: Linux shares cores among sessions.
        start_new_session=True,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def _busy(stack):
    """Have a core be busy from now on."""
    assert _process(BUSY, stack).stdout.readline() == "busy\n"


@pytest.mark.parametrize("busy", [0, 1, 2])
def test_threads_that_soon_sleep_against_threads_that_spin(benchmark, in_turn, busy):
    """Seconds of some updates, in adjacent pairs; ``busy`` other processes compute meanwhile."""
    with contextlib.ExitStack() as stack:
        waits = {"suite": {"GOMP_SPINCOUNT": str(SPINS)}, "default": {}}
        updates = 20 if busy else 400
        sides = {name: Trainer(v, updates, stack) for name, v in waits.items()}
        for _ in range(busy):
            _busy(stack)
        in_turn(sides, PAIRS)
        benchmark.extra_info["threads"] = {name: side.threads for name, side in sides.items()}
        benchmark.pedantic(sides["suite"], rounds=1)
