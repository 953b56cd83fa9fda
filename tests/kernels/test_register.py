"""An op by the dispatcher and by the short way past it: the same, and each where it belongs."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from kernels.register import define


def _forward(x: Tensor, weight: Tensor, power: int) -> tuple[Tensor, Tensor]:
    return x**power * weight, x * 2


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, kept: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    slope = power * (kept / 2) ** (power - 1)
    return grad * slope * weight, grad * x**power


toy = define(
    "tested_power",
    _forward,
    _backward,
    fake=lambda x, weight, power: (torch.empty_like(x), torch.empty_like(x)),
    fake_backward=lambda grad, x, weight, kept, power: (torch.empty_like(x), torch.empty_like(x)),
    save=lambda inputs, out: (*inputs[:2], out[1]),
    options=(2,),
    outputs=1,
    autocast=torch.float32,
)


@pytest.fixture
def by_the_dispatcher(monkeypatch):
    """How often the op was called through the dispatcher."""
    calls, op = [], toy.op
    monkeypatch.setattr(toy.registered, "op", lambda *args: calls.append(1) or op(*args))
    return calls


def _arguments(**more):
    g = torch.Generator().manual_seed(0)
    return [torch.rand(3, generator=g).add(0.5).to(**more).requires_grad_() for _ in range(2)]


def _gradients(call, x, weight):
    return torch.autograd.grad(call(x, weight, 3)[0].sum(), (x, weight))


def test_values_and_gradients_are_those_of_the_op(by_the_dispatcher):
    x, weight = _arguments()
    short, long = _gradients(toy, x, weight), _gradients(toy.op, x, weight)
    with torch.no_grad():
        assert torch.equal(toy(x, weight, 3)[0], x**3 * weight)
    with torch.inference_mode():
        assert toy(x, weight, 3)[0].is_inference()
    torch.testing.assert_close(short, (3 * x**2 * weight, x**3))
    assert all(map(torch.equal, short, long))
    assert len(by_the_dispatcher) == 1


def test_a_gradient_is_taken_of_what_needs_one_only(by_the_dispatcher):
    x, weight = _arguments()
    out, kept = toy(x.detach(), weight, 3)
    out.sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.detach() ** 3)
    assert torch.autograd.grad(kept.sum(), weight, allow_unused=True) == (None,)
    assert not toy(x.detach(), weight.detach(), 3)[0].requires_grad
    assert not by_the_dispatcher


@pytest.mark.parametrize("call", [toy, toy.op], ids=["short", "dispatcher"])
def test_gradients_are_not_differentiable_again(call):
    x, weight = _arguments()
    (first,) = torch.autograd.grad(call(x, weight, 3)[0].sum(), x, create_graph=True)
    message = "tested_power: not differentiable twice; use impl='reference'"
    with pytest.raises(RuntimeError, match=message):
        first.sum().backward()


# PyTorch scripts some of its own operators when it first differentiates forwards.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_tangent_is_not_dropped(needs_gradient):
    x, weight = (t.detach().requires_grad_(needs_gradient) for t in _arguments())
    refused = pytest.raises(RuntimeError, match="tested_power: no gradients in forward mode; use")
    with forward_ad.dual_level():
        toy(x, weight, 3)
        with refused:
            toy(x, forward_ad.make_dual(weight, x.detach()), 3)
    with refused:
        torch.func.jvp(lambda x: toy(x, weight, 3)[0], (x.detach(),), (x.detach(),))


def test_autocast_takes_the_dispatcher(by_the_dispatcher):
    x, weight = _arguments(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert toy(x, weight, 3)[0].dtype == torch.float32
    assert toy(x, weight, 3)[0].dtype == torch.bfloat16
    assert len(by_the_dispatcher) == 1


def test_what_intercepts_calls_takes_the_dispatcher(by_the_dispatcher):
    x, weight = (t.detach() for t in _arguments())
    with FakeTensorMode() as mode:
        assert toy(mode.from_tensor(x), mode.from_tensor(weight), 3)[0].shape == x.shape
    faked = mode.from_tensor(x)
    assert type(toy(faked, faked, 3)[0]) is type(faked)
    with FlopCounterMode(display=False):
        toy(x, weight, 3)
    assert len(by_the_dispatcher) == 3


def test_function_transforms_take_the_dispatcher(by_the_dispatcher):
    x, weight = (t.detach() for t in _arguments())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: toy(x, weight, 3)[0].sum())(x)
    each = torch.func.vmap(lambda x, weight: toy(x, weight, 3)[0])(x, weight)
    torch.testing.assert_close(each, x**3 * weight)
    assert len(by_the_dispatcher) == 2


def test_a_compiled_region_has_the_op_in_its_graph():
    x, weight = _arguments()
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.code))
        return graph

    compiled = torch.compile(lambda x, w: toy(x, w, 3)[0], fullgraph=True, backend=backend)
    torch.testing.assert_close(_gradients(lambda *a: (compiled(*a[:2]),), x, weight)[1], x**3)
    assert "fdl.tested_power" in graphs[0]


class FakeGPUs:
    """Stands in for ``torch.cuda`` and for where tensors are: the current GPU is the first."""

    def __init__(self, monkeypatch, tensors_on):
        self.current = 0
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(Tensor, "is_cuda", True)
        monkeypatch.setattr(Tensor, "get_device", lambda tensor: tensors_on)

    @contextlib.contextmanager
    def device(self, index):
        before, self.current = self.current, index
        yield
        self.current = before


@pytest.mark.parametrize("call", ["short", "dispatcher"])
@pytest.mark.parametrize("tensors_on", [0, 1])
def test_kernels_run_on_the_gpu_that_tensors_are_on(tensors_on, call, monkeypatch):
    ran = []

    def forward(x: Tensor) -> Tensor:
        ran.append(gpus.current)
        return x * 2

    def backward(grad: Tensor) -> Tensor:
        ran.append(gpus.current)
        return grad * 2

    fake = {"fake": torch.empty_like, "fake_backward": torch.empty_like}
    name = f"tested_devices_{call}_{tensors_on}"
    kernel = define(name, forward, backward, **fake, save=lambda inputs, out: ())
    x = _arguments()[0]
    gpus = FakeGPUs(monkeypatch, tensors_on)
    (kernel if call == "short" else kernel.op)(x).sum().backward()
    assert ran == [tensors_on, tensors_on]
    assert gpus.current == 0
