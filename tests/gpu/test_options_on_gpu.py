"""What an LSTM may be told of its launches and its memory: the same numbers, on a real GPU."""

import functools
from dataclasses import replace

import proof
import pytest
import torch

from kernels import dispatch, lstm
from kernels.lstm import cases
from kernels.lstm import triton as launch

# Programs that hold all units, and programs that hold some and wait for each other.
CASES = (replace(cases.SMALL_BF16, T=9), replace(cases.FLASHRNN, T=9), replace(cases.LARGE, T=9))
each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def layer(case, **options):
    lengths = cases.lengths(case, device="cuda")
    return functools.partial(lstm.lstm, lengths=lengths, reverse=True, **options)


@each
@pytest.mark.parametrize("at_most", [1, 4])
def test_fewer_steps_a_launch_are_the_same_bits(case, at_most):
    args = cases.arguments("lstm", case, device="cuda")
    want, want_grads, grads = proof.run(layer(case, impl="triton"), args, case.dtype)
    fewer = layer(case, impl="triton", steps_per_launch=at_most)
    got, got_grads, _ = proof.run(fewer, args, case.dtype, grads)
    assert all(map(torch.equal, (*got, *got_grads), (*want, *want_grads)))


@each
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_gates_that_are_computed_again_give_the_references_gradients(case, impl):
    args = cases.arguments("lstm", case, torch.float32, device="cuda")
    again = layer(case, impl=impl, recompute_gates=True)
    proof.agrees(again, layer(case, impl="reference"), args, case.dtype)


@each
def test_gates_that_are_computed_again_are_not_held(case):
    case = replace(case, T=64)
    held = {}
    for recompute in (False, True):
        args = cases.arguments("lstm", case, device="cuda")
        inputs = [t.requires_grad_() for t in proof.leaves(args)]
        function = layer(case, impl="triton", recompute_gates=recompute)
        function(*proof.rebuilt(args, list(inputs)))
        before = torch.cuda.memory_allocated()
        kept = function(*proof.rebuilt(args, list(inputs)))
        held[recompute] = torch.cuda.memory_allocated() - before
        del kept
    gates = 4 * case.T * case.B * case.H * case.dtype.itemsize
    # What is allocated comes in pieces of 2 MiB where it is large, and of 512 bytes where not.
    assert abs(held[False] - held[True] - gates) <= 2 * 2**20


def test_weights_that_no_program_holds_are_split():
    """Else nothing above would have waited for another program."""
    assert [launch.is_resident(c.H, c.dtype) for c in CASES] == [True, False, False]


if not torch.cuda.is_available() or dispatch.INTERPRETED:
    pytest.skip("needs a CUDA GPU and FDL_GPU_TESTS=1", allow_module_level=True)
