"""Long short-term memory: a layer in one direction, a cell, and a module like ``torch.nn.LSTM``.

The equations are in ``kernels.lstm.reference``; for ``impl`` see ``kernels.dispatch``. All tensors
but ``lengths`` have one floating-point dtype and one device, and every one of them gets a gradient.
The gradients of ``triton`` are not differentiable again. An autocast region computes in its dtype.

Shapes: T steps, B batch, X inputs, H units, L layers, D directions (1 or 2).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import checks
from kernels.autocast import cast
from kernels.dispatch import Op
from kernels.lstm import reference, vectorized
from kernels.lstm.reference import State

__all__ = ["LSTM", "State", "cell", "lstm"]


def _triton() -> Any:
    from kernels.lstm import op

    return op.lstm


def _with_all_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's own operators with the options that the kernels have.

    They keep nothing but their arguments where gates are not to be kept, and know no launches.
    """

    @functools.wraps(function)
    def run(
        *args: Any, recompute_gates: bool = False, steps_per_launch: int | None = None, **more: Any
    ) -> Any:
        if not recompute_gates:
            return function(*args, **more)
        # A copy: what is computed again has to be what was computed.
        more["lengths"] = None if more.get("lengths") is None else more["lengths"].clone()
        again = functools.partial(function, **more)
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False)

    return run


_lstm = Op(
    "lstm.lstm", _with_all_options(reference.lstm), _with_all_options(vectorized.lstm), _triton
)


def lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: State | None = None,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    recompute_gates: bool = False,
    steps_per_launch: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, State]:
    """One layer in one direction.

    With ``lengths``, y is zero beyond a sequence's length, and the state is that after its last
    step: what packing, ``torch.nn.LSTM`` and padding give. Their values are checked wherever they
    can be seen: lengths on a GPU are waited for, and within a compiled region they are not
    checked: more than T count as T there, and less than 0 as 0. There ``impl="torch"`` with lengths
    breaks the graph, because packing looks at them.

    Args:
        x: (T, B, X).
        weight_ih: (4H, X), the gates in the order i, f, g, o.
        weight_hh: (4H, H).
        bias: (4H,); the sum of the two that ``torch.nn.LSTM`` has.
        state: h and c before the first step, (B, H) each; zero when None.
        lengths: (B,) of int32 or int64, from 0 to T, on any device; all T when None.
        reverse: from the last step of each sequence to its first.
        recompute_gates: keep no gates for the backward, which are 4 H of the 6 H numbers that a
            step leaves, and compute them again from y, all steps in one product. In less than
            float32 they are rounded otherwise then. What is not ``triton`` keeps its arguments
            only, and computes the layer again.
        steps_per_launch: at most so many steps in one launch of kernels that wait for each other at
            the end of a step; as many as can be when None. With 1 none waits: for a GPU that is
            shared with other processes, which may keep some of them from running.
        impl: what computes it.

    Returns:
        y, (T, B, H), and h and c after the last step, (B, H) each.

    Raises:
        ValueError: other shapes or devices, lengths below 0 or beyond T, ``steps_per_launch`` below
            1, an unknown ``impl``.
        TypeError: other dtypes, a ``reverse`` or ``recompute_gates`` that is no bool, a
            ``steps_per_launch`` that is no int.
        Unavailable: ``impl="triton"`` cannot run here.
    """
    given_state: Any = state if isinstance(state, tuple | list) else ()
    x, weight_ih, weight_hh, bias, *parts = cast(x, weight_ih, weight_hh, bias, *given_state)
    if parts:
        state = _pair(tuple(parts))
    given = {
        "x": (x, "T B X"),
        "weight_ih": (weight_ih, "G X"),
        "weight_hh": (weight_hh, "G H"),
    }
    if bias is not None:
        given["bias"] = (bias, "G")
    sizes = checks.tensors(given)
    B, H = sizes["B"], sizes["H"]
    if sizes["G"] != 4 * H:
        raise ValueError(f"weight_hh has shape (4H, H), got {tuple(weight_hh.shape)}")
    if state is None:
        state = x.new_zeros(B, H), x.new_zeros(B, H)
    else:
        h, c = state = _pair(state)
        checks.tensors({"x": (x, "T B X"), "state[0]": (h, "B H"), "state[1]": (c, "B H")}, **sizes)
    if lengths is not None:
        lengths = _checked(lengths, sizes["T"], B)
    checks.kind("reverse", reverse, bool)
    _check_options(recompute_gates, steps_per_launch)
    return _lstm(  # type: ignore[no-any-return]
        x,
        weight_ih,
        weight_hh,
        bias,
        state,
        lengths=lengths,
        reverse=reverse,
        recompute_gates=recompute_gates,
        steps_per_launch=steps_per_launch,
        impl=impl,
    )


def cell(
    x: Tensor,
    state: State,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str | None = None,
) -> State:
    """One step.

    Args:
        x: (B, X).
        state: h and c, (B, H) each.
        weight_ih: (4H, X), the gates in the order i, f, g, o.
        weight_hh: (4H, H).
        bias: (4H,).
        impl: what computes it.

    Returns:
        h and c after the step.

    Raises:
        ValueError, TypeError, Unavailable: as ``lstm``.
    """
    if isinstance(x, Tensor) and x.dim() != 2:
        raise ValueError(f"x has shape (B, X), got {tuple(x.shape)}")
    steps = x[None] if isinstance(x, Tensor) else x
    return lstm(steps, weight_ih, weight_hh, bias, state, impl=impl)[1]


def _pair(state: Any) -> State:
    if not isinstance(state, tuple | list):
        raise TypeError(f"state is a pair of tensors, got {type(state).__name__}")
    if len(state) != 2:
        raise ValueError(f"state is a pair of tensors, got {len(state)}")
    return state[0], state[1]


def _check_options(recompute_gates: Any, steps_per_launch: Any) -> None:
    checks.kind("recompute_gates", recompute_gates, bool)
    if steps_per_launch is not None:
        checks.kind("steps_per_launch", steps_per_launch, int)
        if steps_per_launch < 1:
            raise ValueError(f"steps_per_launch is at least 1, got {steps_per_launch}")


def _checked(lengths: Any, T: int, B: int) -> Tensor:
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is a tensor, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths is of int32 or int64, got {lengths.dtype}")
    if lengths.dim() != 1 or lengths.shape[0] != B:
        raise ValueError(f"lengths has shape (B={B}), got {tuple(lengths.shape)}")
    if torch.compiler.is_compiling():
        # Nobody can look at them, and by others kernels would step beyond their tensors.
        return lengths.clamp(0, T)
    if not B:
        return lengths
    shortest, longest = (int(extreme) for extreme in torch.stack(lengths.aminmax()).tolist())
    if shortest < 0 or longest > T:
        wrong = shortest if shortest < 0 else longest
        raise ValueError(f"lengths are from 0 to T={T}, got {wrong}")
    return lengths


class LSTM(nn.Module):
    """Layers of LSTM; its ``state_dict`` is that of ``torch.nn.LSTM``, either loads the other's.

    Given the same seed, the weights begin the same too. Dropout and projections are not offered.

    Attributes:
        recompute_gates, steps_per_launch: as ``lstm`` takes them; may be set at any time.
        impl: what computes it, see ``kernels.dispatch``; may be set at any time.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        bidirectional: bool = False,
        recompute_gates: bool = False,
        steps_per_launch: int | None = None,
        impl: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is at least 1, got {size}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        _check_options(recompute_gates, steps_per_launch)
        self.recompute_gates, self.steps_per_launch = recompute_gates, steps_per_launch
        self.impl = impl
        gates, wide = 4 * hidden_size, hidden_size * (2 if bidirectional else 1)
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (gates, wide if layer else input_size),
                    "weight_hh": (gates, hidden_size),
                }
                if bias:
                    shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
                for name, shape in shapes.items():
                    made = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_{suffix}", made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights uniformly from within 1 / sqrt(H) of zero."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _suffixes(self, layer: int) -> list[str]:
        """What ends the names of a layer's parameters, a direction each."""
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run all layers.

        Args:
            x: (T, B, X), or (B, T, X) with ``batch_first``.
            state: h and c before the first step, (L D, B, H) each, a layer's directions beside
                each other; zero when None.
            lengths: (B,), as ``kernels.lstm.lstm`` takes them.

        Returns:
            y, shaped as x but with D H in place of X, the forward direction first; and h and c
            after the last step, shaped as ``state``.

        Raises:
            ValueError, TypeError, Unavailable: as ``kernels.lstm.lstm``.
        """
        letters = "B T X" if self.batch_first else "T B X"
        sizes = checks.tensors({"x": (x, letters)}, X=self.input_size)
        if state is not None:
            h, c = _pair(state)
            fixed = {"B": sizes["B"], "H": self.hidden_size}
            fixed["N"] = self.num_layers * (2 if self.bidirectional else 1)
            checks.tensors({"state[0]": (h, "N B H"), "state[1]": (c, "N B H")}, **fixed)
        y = x.transpose(0, 1) if self.batch_first else x
        last: list[State] = []
        for layer in range(self.num_layers):
            directions = []
            for suffix in self._suffixes(layer):
                initial = None if state is None else (h[len(last)], c[len(last)])
                out, final = lstm(
                    y,
                    getattr(self, f"weight_ih_{suffix}"),
                    getattr(self, f"weight_hh_{suffix}"),
                    self._bias(suffix),
                    initial,
                    lengths=lengths,
                    reverse=suffix.endswith("reverse"),
                    recompute_gates=self.recompute_gates,
                    steps_per_launch=self.steps_per_launch,
                    impl=self.impl,
                )
                directions.append(out)
                last.append(final)
            y = torch.cat(directions, -1) if self.bidirectional else directions[0]
        h_last, c_last = (torch.stack(parts) for parts in zip(*last, strict=True))
        return y.transpose(0, 1) if self.batch_first else y, (h_last, c_last)

    def _bias(self, suffix: str) -> Tensor | None:
        """The one bias that two make."""
        if not self.bias:
            return None
        return getattr(self, f"bias_ih_{suffix}") + getattr(self, f"bias_hh_{suffix}")  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The sizes, and what differs from the defaults."""
        said = [str(self.input_size), str(self.hidden_size)]
        defaults: dict[str, object] = {"num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"bidirectional": False, "recompute_gates": False, "steps_per_launch": None}
        said += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join(said)
