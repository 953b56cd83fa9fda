"""What can compute a workload: our implementations, the vendors' operators, public packages."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import dispatch
from kernels.bench.workload import Workload, mapped, ops

# Dynamo unrolls the reference's loop over time; beyond this it compiles for many minutes.
MOST_COMPILED_STEPS = 32
BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cuDNN": "CUDNN_ATTENTION",
    "math": "MATH",
}
# How PyTorch says that a backend of its attention does not take an input.
NO_KERNEL = ("No available kernel", "No viable backend")


class CannotRun(RuntimeError):
    """A provider does not take this workload on this machine; the message says why."""


@dataclass(frozen=True)
class Call:
    """A workload as one provider computes it.

    Attributes:
        run: computes the outputs: a tensor, or a tuple of them that may be nested.
        inputs: what has a gradient, in the order of the op's arguments.
    """

    run: Callable[[], Any]
    inputs: Sequence[Tensor]

    def outputs(self) -> list[Tensor]:
        """The outputs in order."""
        return flat(self.run())


@dataclass(frozen=True)
class Provider:
    """Something that computes an op.

    Attributes:
        name: what tables call it.
        build: makes the call of a workload; raises CannotRun.
        gpu_only: whether it is left out on a processor, unless asked for by name.
        own_formula: whether it defines the op otherwise, so that it is compared with itself in
            float64 and not with our reference.
        package: the distribution that it comes from, unless that is ours or PyTorch.
    """

    name: str
    build: Callable[[Workload], Call]
    gpu_only: bool = False
    own_formula: bool = False
    package: str = ""


def flat(found: Any) -> list[Tensor]:
    """The tensors in nested tuples, in order."""
    if isinstance(found, Tensor):
        return [found]
    return [t for part in found for t in flat(part)]


def providers(op: str) -> dict[str, Provider]:
    """Name -> provider of an op, our own first."""
    vendors = {
        "lstm.lstm": _lstms,
        "attention.attention": _sdpas,
        "conv2d.conv2d": _convolutions,
        "conv2d.conv2d_fused": _separate_convolutions,
        "linear.linear": _layers,
        "linear.matmul": _products,
        "dnc.step": _dnc_peers,
    }
    found = [*_ours(), *vendors.get(op, lambda: iter(()))()]
    return {p.name: p for p in found}


def defaults(op: str, device: str) -> list[str]:
    """The providers that are measured unless others are asked for."""
    gpu = device.startswith("cuda")
    return [p.name for p in providers(op).values() if gpu or not p.gpu_only]


def names() -> list[str]:
    """The names of all providers of all ops."""
    return list(dict.fromkeys(name for op in ops() for name in providers(op)))


def _ours() -> Iterator[Provider]:
    for impl in dispatch.IMPLS:
        yield Provider(impl, _of_impl(impl), gpu_only=impl == "triton")


def _of_impl(impl: str) -> Callable[[Workload], Call]:
    def build(w: Workload) -> Call:
        if impl == "compile" and getattr(w.case, "T", 0) > MOST_COMPILED_STEPS:
            raise CannotRun(
                f"torch.compile unrolls the reference's loop over {w.case.T} steps; "
                f"at most {MOST_COMPILED_STEPS} are compiled here"
            )
        if impl == "triton" and dispatch.INTERPRETED:
            raise CannotRun("TRITON_INTERPRET=1 is set, and an interpreter has no speed")
        module = importlib.import_module(f"kernels.{w.folder}")
        function = getattr(module, w.op.partition(".")[2])
        args, options = differentiable(w.arguments()), w.options()
        try:
            dispatch.explain(w.op, *args, impl=impl)
        except dispatch.Unavailable as error:
            raise CannotRun(str(error)) from error
        return Call(lambda: function(*args, **options, impl=impl), flat(args))

    return build


def differentiable(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as leaves that get gradients."""
    return mapped(lambda t: t.detach().requires_grad_(), args)


def _lstms() -> Iterator[Provider]:
    yield Provider("nn.LSTM", _nn_lstm, gpu_only=True)
    yield Provider("nn.LSTMCell loop", _cell_loop, gpu_only=True)


def _layer(w: Workload, layer: nn.LSTM | nn.LSTMCell, suffix: str) -> list[Tensor]:
    """Give a module the case's weights; the inputs in the order of ``lstm``'s arguments."""
    x, weight_ih, weight_hh, bias, (h, c) = w.arguments()
    with torch.no_grad():
        given = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias}
        for name, value in given.items():
            getattr(layer, name + suffix).copy_(value)
        getattr(layer, "bias_hh" + suffix).zero_()
    x, h, c = (t.requires_grad_() for t in (x, h, c))
    return [x, *(getattr(layer, name + suffix) for name in given), h, c]


def _nn_lstm(w: Workload) -> Call:
    """The vendor's layer; sequences of different lengths are packed and padded again."""
    layer = nn.LSTM(w.case.X, w.case.H, device=w.device, dtype=w.dtype)
    inputs = _layer(w, layer, "_l0")
    x, h, c = inputs[0], inputs[4], inputs[5]
    lengths = w.options().get("lengths")

    def dense() -> Any:
        y, (last_h, last_c) = layer(x, (h[None], c[None]))
        return y, last_h[0], last_c[0]

    def packed() -> Any:
        pack = nn.utils.rnn.pack_padded_sequence(x, on_cpu, enforce_sorted=False)
        y, (last_h, last_c) = layer(pack, (h[None], c[None]))
        padded, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=w.case.T)
        return padded, last_h[0], last_c[0]

    if lengths is None:
        return Call(dense, inputs)
    on_cpu = lengths.cpu()
    return Call(packed, inputs)


def _cell_loop(w: Workload) -> Call:
    """The loop over ``nn.LSTMCell`` that a reader writes first."""
    if w.ragged:
        raise CannotRun("the loop knows no lengths")
    layer = nn.LSTMCell(w.case.X, w.case.H, device=w.device, dtype=w.dtype)
    inputs = _layer(w, layer, "")
    x, first = inputs[0], (inputs[4], inputs[5])

    def run() -> Any:
        state, y = first, []
        for x_BX in x.unbind(0):
            state = layer(x_BX, state)
            y.append(state[0])
        return torch.stack(y), *state

    return Call(run, inputs)


def _sdpas() -> Iterator[Provider]:
    for name in BACKENDS:
        yield Provider(f"SDPA {name}", _sdpa(name), gpu_only=True)


def _sdpa(name: str) -> Callable[[Workload], Call]:
    def build(w: Workload) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = getattr(SDPBackend, BACKENDS[name])
        q, k, v = differentiable(w.arguments())
        lengths, mask = w.options().get("key_lengths"), None
        if lengths is not None:
            keys = torch.arange(w.case.N, device=w.device)
            mask = (keys < lengths[:, None])[:, None, None].expand(-1, 1, w.case.M, -1)

        def run() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        try:
            run()
        except RuntimeError as error:
            if not any(text in str(error) for text in NO_KERNEL):
                raise
            raise CannotRun(f"this backend has no kernel for {w.name!r} in {w.dtype}") from error
        return Call(run, (q, k, v))

    return build


def _convolutions() -> Iterator[Provider]:
    for layout in ("NCHW", "NHWC"):
        yield Provider(f"F.conv2d {layout}", _convolution(layout), gpu_only=True)


def _separate_convolutions() -> Iterator[Provider]:
    for layout in ("NCHW", "NHWC"):
        yield Provider(f"separate {layout}", _separate(layout), gpu_only=True)


def _laid_out(w: Workload, layout: str) -> list[Tensor]:
    """The arguments with images and weights in one memory layout."""
    kept = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    made = [
        t.detach().to(memory_format=kept) if t.dim() == 4 else t.detach() for t in w.arguments()
    ]
    return [t.requires_grad_() for t in made]


def _convolution(layout: str) -> Callable[[Workload], Call]:
    def build(w: Workload) -> Call:
        args, options = _laid_out(w, layout), w.options()
        x, weight, bias = args
        return Call(lambda: F.conv2d(x, weight, bias, **options), args)

    return build


def _separate(layout: str) -> Callable[[Workload], Call]:
    """Convolution, scale, shift and ReLU as operators of their own."""

    def build(w: Workload) -> Call:
        args, options = _laid_out(w, layout), w.options()
        x, weight, scale, shift = args

        def run() -> Tensor:
            y = F.conv2d(x, weight, **options)
            return torch.relu(y * scale[:, None, None] + shift[:, None, None])

        return Call(run, args)

    return build


def _layers() -> Iterator[Provider]:
    yield Provider("F.linear", _layer_and_relu, gpu_only=True)
    yield Provider("addmm with ReLU", _vendors_epilogue, gpu_only=True)


def _products() -> Iterator[Provider]:
    yield Provider("torch.mm", _vendors_product, gpu_only=True)


def _layer_and_relu(w: Workload) -> Call:
    """The vendor's product with its bias, and a ReLU as an operator of its own."""
    args, options = differentiable(w.arguments()), w.options()

    def run() -> Tensor:
        y = F.linear(*args)
        return torch.relu(y) if options["relu"] else y

    return Call(run, args)


def _vendors_epilogue(w: Workload) -> Call:
    """The vendor's product with bias and ReLU in one, which PyTorch has no gradient for."""
    if w.is_differentiated or not (w.case.bias and w.case.relu):
        raise CannotRun("the vendor's epilogue has a bias, a ReLU and no gradient")
    x, weight, bias = w.arguments()
    return Call(lambda: torch._addmm_activation(bias, x, weight.t()), (x, weight, bias))


def _vendors_product(w: Workload) -> Call:
    args = differentiable(w.arguments())
    return Call(lambda: torch.mm(*args), args)


def _dnc_peers() -> Iterator[Provider]:
    if importlib.util.find_spec("dnc") is not None:
        yield Provider("PyPI dnc", _pypi_dnc, own_formula=True, package="dnc")


def _pypi_dnc(w: Workload) -> Call:
    """The memory of the PyPI package ``dnc``, steered by the same interface.

    It smooths the norms of the content weighting otherwise, so its numbers are not ours.
    """
    if w.case.B < 2:
        raise CannotRun("the package squeezes a batch of one away")
    if w.case.link_dtype is not None:
        raise CannotRun("the package has its links in the type of all else")
    module = importlib.import_module("dnc.memory")
    memory = module.Memory(1, w.case.N, w.case.W, w.case.R)
    state, to = differentiable(w.arguments())
    # What masks the diagonal of its link matrix is in float32 and on the processor.
    for name, value in list(vars(memory).items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(memory, name, value.to(w.device, w.dtype))

    def run() -> Any:
        hidden = {
            "memory": state.memory_BNW,
            "link_matrix": state.link_BNN[:, None],
            "precedence": state.precedence_BN[:, None],
            "read_weights": state.read_BRN,
            "write_weights": state.write_BN[:, None],
            "usage_vector": state.usage_BN,
        }
        hidden = memory.write(
            to.write_key_B1W,
            to.write_vector_BW[:, None],
            to.erase_BW[:, None],
            to.free_gates_BR,
            to.read_strengths_BR,
            to.write_strength_B1,
            to.write_gate_B1,
            to.allocation_gate_B1,
            hidden,
        )
        modes_BRS = to.read_modes_BSR.transpose(1, 2)
        words, hidden = memory.read(to.read_keys_BRW, to.read_strengths_BR, modes_BRS, hidden)
        kept = ("memory", "usage_vector", "precedence", "link_matrix", "read_weights")
        return (words, *(hidden[name] for name in kept))

    return Call(run, flat((state, to)))
