"""The four operations of ch01.matops by loops and by one call of PyTorch, in turn.

Read the ratios, loops over PyTorch; nothing fails by a time.
"""

import pytest
import torch

from tasks.ch01_linear_algebra import matops

N, ROUNDS = 128, 7


@pytest.mark.parametrize("name", matops.OPERATIONS)
def test_against_loops(benchmark, in_turn, name):
    """Values alone, in float32, by the number of threads that PyTorch would take."""
    torch.manual_seed(0)
    A_NN, B_NN = torch.randn(2, N, N)
    pair = matops.operands(A_NN, B_NN, torch.randn(N))[name]
    sides = {
        "loops": lambda: matops.compute("loops", name, *pair),
        "torch": lambda: matops.compute("torch", name, *pair),
    }
    found = {side: call() for side, call in sides.items()}
    torch.testing.assert_close(found["torch"], found["loops"])
    in_turn(sides, ROUNDS)
    benchmark.pedantic(sides["torch"], rounds=1)
