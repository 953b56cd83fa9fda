"""Ops inside a running program: which calls it makes, on what, and how long each takes in place.

A ``Watch`` stands between a program and ``kernels.dispatch`` while it is entered. It keeps one
example of each kind of call, so that what is benchmarked is what the program issues, and it can
have single ops run another implementation than the program asks for. With ``Spans`` it times them
where they are: in the forward pass around the call, in the backward pass between two marks that the
call leaves in the autograd graph, at its outputs and at its inputs. Autograd runs what was made
last first, so nothing else runs between them.
"""

import contextlib
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from kernels import dnc
from kernels.bench.accuracy import Accuracy, Evaluated, compared, evaluated, weights_of
from kernels.bench.providers import MOST_COMPILED_STEPS, Call, CannotRun, flat
from kernels.dispatch import _OPS, INTERPRETED, Op, Unavailable

Moment = Any  # of a clock in seconds, or a CUDA event

# Ops whose reference loops over the first dimension of their first tensor.
SEQUENTIAL = ("lstm.lstm",)


@dataclass(frozen=True)
class Kind:
    """What calls that are alike have in common.

    Attributes:
        op: its name, such as ``dnc.step``.
        shape: argument -> its sizes (``16x4``), or its value where it is no tensor.
        dtype: of the first tensor, such as ``float32``.
        wanted: the arguments that a gradient is asked for; none where no graph is built.
    """

    op: str
    shape: tuple[tuple[str, str], ...]
    dtype: str
    wanted: tuple[str, ...]

    @property
    def mode(self) -> str:
        """``full`` where gradients are computed, else ``forward``."""
        return "full" if self.wanted else "forward"


@dataclass(frozen=True, eq=False)
class Example:
    """One call as the program made it, on tensors of its own; another process can have it too."""

    kind: Kind
    args: tuple[Any, ...]
    options: dict[str, Any]

    def call(self, impl: str, dtype: torch.dtype | None = None) -> Call:
        """The call in one implementation, and the inputs that get gradients.

        Args:
            impl: what computes it.
            dtype: of all floating-point tensors; as they came when None.

        Raises:
            CannotRun: the implementation does not take this call here.
        """

        def own(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            made = t.detach().to(dtype if dtype and t.is_floating_point() else t.dtype)
            return made.clone().requires_grad_(t.requires_grad)

        if impl == "compile":
            self._refuse_long_loops()
        if impl == "triton" and INTERPRETED:
            raise CannotRun("TRITON_INTERPRET=1 is set, and an interpreter has no speed")
        args, options = tree_map(own, (self.args, self.options))
        op = _OPS[self.kind.op]
        try:
            op.choose(*args, impl=impl, **options)
        except Unavailable as error:
            raise CannotRun(str(error)) from error

        def run() -> Any:
            found = flat(op(*args, impl=impl, **options))
            return [t for t in found if t.requires_grad] if self.kind.wanted else found

        return Call(run, _leaves((args, options)))

    def _refuse_long_loops(self) -> None:
        steps = len(self.args[0]) if self.kind.op in SEQUENTIAL else 0
        if steps > MOST_COMPILED_STEPS:
            raise CannotRun(
                f"torch.compile unrolls the reference's loop over {steps} steps; "
                f"at most {MOST_COMPILED_STEPS} are compiled here"
            )

    def timeable(self, impl: str) -> Callable[[], object]:
        """The call with its backward pass, where the program asks for one, and nothing else.

        Raises:
            CannotRun: the implementation does not take this call here.
        """
        call = self.call(impl)

        def forward() -> object:
            with torch.no_grad():
                return call.run()

        if not self.kind.wanted:
            return forward
        outputs = call.outputs()
        grads = [g.to(o.dtype) for g, o in zip(weights_of(outputs), outputs, strict=True)]

        def full() -> object:
            return torch.autograd.grad(call.outputs(), call.inputs, grads, allow_unused=True)

        return full

    def check(self, impl: str) -> list[Accuracy]:
        """How far an implementation is off on this call: values, and gradients where wanted.

        Raises:
            CannotRun: the implementation does not take this call here.
        """
        dtype: torch.dtype = getattr(torch, self.kind.dtype)

        def found(impl: str, kept: torch.dtype | None = None) -> Evaluated:
            return evaluated(self.call(impl, kept), bool(self.kind.wanted), dtype)

        plain = found("reference")
        got = plain if impl == "reference" else found(impl)
        wanted = found("reference", torch.float64)
        shape: dict[str, object] = dict(self.kind.shape)
        return compared(got, plain, wanted, dtype, "reference in float64", shape)


def flat_tensors(arguments: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    return [leaf for _, leaf in tree_flatten_with_path(arguments)[0] if isinstance(leaf, Tensor)]


def kind_of(op: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Kind:
    """What a call is like, under the grad mode that is on."""
    paths = tree_flatten_with_path(args)[0] + tree_flatten_with_path(dict(options))[0]
    named = [(re.sub(r"[][.']+", ".", keystr(path)).strip("."), leaf) for path, leaf in paths]
    tensors = [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)]
    grad = torch.is_grad_enabled()
    return Kind(
        op=op,
        shape=tuple((name, _said(leaf)) for name, leaf in named),
        dtype=str(tensors[0][1].dtype).removeprefix("torch.") if tensors else "",
        wanted=tuple(name for name, t in tensors if grad and t.requires_grad),
    )


def _said(leaf: Any) -> str:
    return "x".join(map(str, leaf.shape)) or "scalar" if isinstance(leaf, Tensor) else str(leaf)


@dataclass
class Watch:
    """Sees the calls of ops that a program makes while it is entered.

    An op that calls another one is seen, and the other one not. Calls inside of a region that
    ``torch.compile`` compiles are not seen.

    Attributes:
        impls: op -> the implementation that it runs, whatever it is asked for.
        counts: says of a call whether it counts: one of the training does, of an evaluation not.
        keep: whether to keep examples.
        calls: kind -> how many there were.
        examples: kind -> the first of them.
        spans: times the calls; None when they are not to be timed.
    """

    impls: Mapping[str, str] = field(default_factory=dict)
    counts: Callable[[], bool] = lambda: True
    keep: bool = False
    calls: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, Example] = field(default_factory=dict)
    spans: "Spans | None" = None
    _inside: bool = False
    _before: Callable[..., Any] | None = None

    def __enter__(self) -> "Watch":
        assert self._before is None, "a watch is entered once at a time"
        self._before = before = Op.__call__
        watch = self

        def watched(op: Op, *args: Any, impl: str | None = None, **options: Any) -> Any:
            if torch.compiler.is_compiling() or watch._inside:
                return before(op, *args, impl=impl, **options)
            return watch._see(before, op, args, watch.impls.get(op.name, impl), options)

        setattr(Op, "__call__", watched)  # noqa: B010
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        setattr(Op, "__call__", self._before)  # noqa: B010
        self._before = None

    def _see(
        self,
        before: Callable[..., Any],
        op: Op,
        args: tuple[Any, ...],
        impl: str | None,
        options: dict[str, Any],
    ) -> Any:
        def run(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            self._inside = True
            try:
                return before(op, *args, impl=impl, **options)
            finally:
                self._inside = False

        if not self.counts():
            return run(args, options)
        if self.keep:
            kind = kind_of(op.name, args, options)
            self.calls[kind] += 1
            if kind not in self.examples:
                own, named = tree_map(_copied, (args, options))
                self.examples[kind] = Example(kind, own, named)
        return self.spans.timed(op.name, run, args, options) if self.spans else run(args, options)


@contextlib.contextmanager
def uncaptured() -> Iterator[None]:
    """Modules that a program captures meanwhile run as they are.

    A replayed CUDA graph issues no calls: there is nothing to see, and no op to time in place.
    """

    def itself(module: nn.Module, *sample: Tensor) -> nn.Module:
        return module

    captured = dnc.Captured
    setattr(dnc, "Captured", itself)  # noqa: B010
    try:
        yield
    finally:
        setattr(dnc, "Captured", captured)  # noqa: B010


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    wanted = leaf.requires_grad and torch.is_grad_enabled()
    return leaf.detach().clone().requires_grad_(wanted)


@dataclass
class Spans:
    """How long ops take in place.

    Attributes:
        device: on a GPU, moments are events on its stream.
        clock: on a processor, what tells them.
        found: op, ``forward`` or ``backward``, begin and end of each span.
        calls: op -> how many.
    """

    device: str = "cpu"
    clock: Callable[[], float] = time.perf_counter
    found: list[tuple[str, str, Moment, Moment]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def timed(
        self, op: str, run: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Run a call; note when it began and ended, and so with its backward pass when it comes."""
        begun: list[Moment] = []

        def ended() -> None:
            now = self._now()
            if begun:
                self.found.append((op, "backward", begun.pop(), now))

        args, options = marked((args, options), ended)
        self.calls[op] += 1
        begin = self._now()
        outputs = run(args, options)
        self.found.append((op, "forward", begin, self._now()))
        return marked(outputs, lambda: begun.append(self._now()))

    def _now(self) -> Moment:
        if not self.device.startswith("cuda"):
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, dict[str, float]]:
        """Op -> ``forward`` and ``backward`` -> seconds in all."""
        on_gpu = self.device.startswith("cuda")
        if on_gpu:
            torch.cuda.synchronize(self.device)
        total: dict[str, dict[str, float]] = {}
        for op, which, begin, end in self.found:
            spent = begin.elapsed_time(end) / 1e3 if on_gpu else end - begin
            parts = total.setdefault(op, {"forward": 0.0, "backward": 0.0})
            parts[which] += spent
        return total


def cost_of_marks(example: Example, spans: Spans, calls: int = 50) -> dict[str, float]:
    """What a span of a call is long if the op does nothing: ``forward`` and ``backward``, seconds.

    Args:
        example: of the call, for the number of its tensors.
        spans: with the device and the clock; what it has found is replaced.
        calls: how many are timed, of which the median counts.
    """
    args, options = tree_map(_copied, (example.args, example.options))
    cost = {"forward": 0.0, "backward": 0.0}
    found: dict[str, list[float]] = {which: [] for which in cost}
    with torch.set_grad_enabled(bool(example.kind.wanted)):
        for _ in range(calls):
            spans.found.clear()
            outputs = spans.timed(example.kind.op, lambda args, options: args, args, options)
            ends = _leaves(outputs)
            if ends:
                torch.autograd.grad([t.sum() for t in ends], _leaves((args, options)))
            for which, seconds in spans.seconds()[example.kind.op].items():
                found[which].append(seconds)
    spans.found.clear()
    return {which: statistics.median(seconds) for which, seconds in found.items()}


def _leaves(arguments: Any) -> list[Tensor]:
    return [t for t in flat_tensors(arguments) if t.requires_grad]


class _Mark(torch.autograd.Function):
    """The identity; in the backward pass it says that the gradients have come this far."""

    @staticmethod
    def forward(ctx: Any, passed: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.passed = passed
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.passed()
        return (None, *grads)


def marked(found: Any, passed: Callable[[], None]) -> Any:
    """Nested tensors as they are, with a mark on the way back through all of them."""
    if not torch.is_grad_enabled():
        return found
    given = _leaves(found)
    if not given:
        return found
    made = iter(_Mark.apply(passed, *given))
    return tree_map(lambda t: next(made) if isinstance(t, Tensor) and t.requires_grad else t, found)
