"""What a call of an op takes of the host: all that happens in Python, and launches that do nothing.

Called one by one, small kernels wait for the host, so this is what they take. What is missing is
what Triton and the driver take of a launch, of which ``launches`` says how many there are. PyTorch
is beside it: what it takes to call the smallest op there is, one that is written in Python as
``torch.autograd.Function``, and one that is registered from Python. Read the figures; nothing can
fail by them.
"""

import importlib

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from kernels.bench.measure import timeable
from kernels.bench.providers import Call, differentiable, flat
from kernels.bench.workload import Workload, ops

MODES = {"values": "forward", "gradients": "full"}


class Twice(torch.autograd.Function):
    """An op of PyTorch's that is written in Python."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.empty_like(x)


@torch.library.custom_op("fdl_bench::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """The same, registered."""
    return torch.empty_like(x)


twice.register_autograd(
    lambda ctx, grad: twice(*ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

PYTORCH = {"torch.neg": torch.neg, "autograd.Function": Twice.apply, "custom_op": twice}


def launch(monkeypatch, instead):
    """Have a launch do something else."""
    for kind in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(kind, "run", instead)


def _smallest(op, mode):
    cases = importlib.import_module(f"kernels.{op.partition('.')[0]}.cases")
    return Workload(op, cases.GRADCHECK, torch.float32, mode, "cpu")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ops())
def test_op(benchmark, monkeypatch, op, mode):
    """An op's smallest case."""
    torch.set_num_threads(1)
    w = _smallest(op, MODES[mode])
    function = getattr(importlib.import_module(f"kernels.{w.folder}"), op.partition(".")[2])
    args, options = differentiable(w.arguments()), w.options()
    asked = []
    launch(monkeypatch, lambda *args, **options: asked.append(1))
    call = timeable(w, Call(lambda: function(*args, **options, impl="triton"), flat(args)))
    asked.clear()
    call()
    benchmark.extra_info["launches"] = len(asked)
    launch(monkeypatch, lambda *args, **options: None)
    benchmark(call)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch(benchmark, name, mode):
    """A call of PyTorch that computes next to nothing."""
    torch.set_num_threads(1)
    x = torch.zeros(4, requires_grad=True)
    call = Call(lambda: PYTORCH[name](x), [x])
    benchmark(timeable(_smallest("dnc.usage", MODES[mode]), call))
