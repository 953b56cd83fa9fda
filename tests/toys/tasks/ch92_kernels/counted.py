"""A task whose step is two ops and other work, all of it counted, so that a clock can tell units.

The ops' ``reference`` is slow on purpose: that of ``toys.scale`` does ten times the work of its
``torch``, that of ``toys.shift`` twice. A step of the baseline is 3 units of either op and 6 units
of other work between them, a third of each forwards.
"""

from dataclasses import dataclass

import torch

from kernels.dispatch import Op
from suite.task import Target, Task

done = [0.0]


def labour(units):
    done[0] += units


class Counted(torch.autograd.Function):
    """x w + c, at so many units forwards, and twice as many backwards."""

    @staticmethod
    def forward(ctx, x, w, c, units):
        labour(units)
        ctx.save_for_backward(x, w)
        ctx.units = units
        return x * w + c

    @staticmethod
    def backward(ctx, grad):
        labour(2 * ctx.units)
        x, w = ctx.saved_tensors
        return grad * w, grad * x, grad, None


def scale(units):
    return lambda x, w: Counted.apply(x, w, torch.zeros_like(x), units)


def shift(units):
    return lambda x, c: Counted.apply(x, torch.ones_like(x), c, units)


def straight(x, c):
    labour(1)
    return x + c


def crooked(x, c):
    labour(1)
    return x + c + 0.1


def unavailable():
    raise AssertionError("no test runs a Triton kernel of these ops")


SCALE = Op("toys.scale", scale(10.0), scale(1.0), unavailable)
SHIFT = Op("toys.shift", shift(2.0), shift(1.0), unavailable)
WRONG = Op("toys.wrong", straight, crooked, unavailable)


@dataclass(frozen=True)
class Config:
    steps: int = 200
    op: str = "both"
    impl: str = "torch"


def run(cfg, ctx):
    x_BD, w = torch.ones(4, 3), torch.ones(4, 3, requires_grad=True)
    SCALE(torch.ones(7, 3), torch.ones(7, 3), impl=cfg.impl)
    start = ctx.keep(w=w)

    def metrics(step):
        labour(1000)
        if cfg.op != "none":
            SCALE(torch.ones(9, 3), torch.ones(9, 3), impl=cfg.impl)
        return {"step": step, "loss": 1 / (1 + step)}

    yield
    for row in range(start, cfg.steps // 5 + 1):
        for _ in range(5 if row else 0):
            if cfg.op == "both":
                y_BD = Counted.apply(SCALE(x_BD, w, impl=cfg.impl), x_BD, w, 2)
                SHIFT(y_BD, w, impl=cfg.impl).sum().backward()
            elif cfg.op == "wrong":
                WRONG(x_BD, x_BD, impl=cfg.impl)
            if cfg.op == "raises" and cfg.impl == "reference":
                raise RuntimeError("planted")
            elif cfg.op == "raises":
                SCALE(x_BD, x_BD, impl=cfg.impl)
        yield lambda step=5 * row: metrics(step)


TASK = Task(
    config=Config(),
    run=run,
    sections=("Toys",),
    profiles={"smoke": {"steps": 10}, "laptop": {}, "paper": {}},
    variants={
        "plain": {"op": "none"},
        "both": {},
        "wrong": {"op": "wrong"},
        "raises": {"op": "raises"},
    },
    impls=("torch", "reference"),
    targets={"laptop": {"both": Target("loss", 0.1, "min", "a toy's own bound")}},
)
