"""Repeat copy, associative recall and sorting: a neural Turing machine beside an LSTM.

Section "Neural Turing Machines". The book names what NTMs were trained to do and prints no number;
the tasks are those of Graves et al. (2014), sections 4.2, 4.3 and 4.5:

    repeat_copy  vectors, then how often to write them down, one after the other, and an end marker
    recall       items of a few vectors each, then one of them again: which item came after it?
    sort         vectors, each with a priority from -1 to 1: those of the highest, highest first

Each is learned by an NTM with an LSTM for a controller and, as `..._lstm`, by an LSTM alone.
`bits_wrong` is the number of wrong bits of an answer at the largest size of training, and
`bits_beyond` at a size that no net has met: twice as many repetitions or items; sorting has none.
`share_wrong` is `bits_wrong` as a part of all bits of an answer; guessing gets a half.

The paper has: repeat copy of 1 to 10 vectors of 8 bits 1 to 10 times; recall among 2 to 6 items of
three vectors of 6 bits; the first 16 of 20 vectors of 8 bits. So has `paper` here. Departures:
batches and Adam, gradients clipped to a norm of 1, one read head, and heads that begin focused on
the first slot. `small` and `tiny` are sizes for a CPU.

Shapes: B batch, T time, X input, Y output, L steps that are answered, N slots, W word size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task
from tasks.models.ntm_variants import VariedNTM
from tasks.models.sequences import LSTM, replayed, strips, trained, wrong_bits

CLIP = 1.0
EVALUATED = 128
TEST_SEED = 20_141_021


@dataclass(frozen=True)
class Config:
    task: Literal["repeat_copy", "recall", "sort"] = "repeat_copy"
    model: Literal["ntm", "lstm"] = "ntm"
    scale: Literal["graves", "tiny", "small"] = "graves"
    slots: Count = 128
    word: Count = 20
    hidden: Count = 100
    lstm_hidden: Count = 256
    lstm_layers: Count = 3
    batch_size: Count = 16
    iterations: Count = 50_000
    eval_every: Count = 1_000
    lr: Positive = 3e-3
    impl: str = "torch"


class Size(NamedTuple):
    """How large a task is: ``least`` and ``most`` are repetitions, items, or vectors to sort."""

    bits: int
    least: int
    most: int
    vectors: int


# Vectors: the most to repeat, those of an item, those of a sorted answer.
SIZES = {
    "repeat_copy": {
        "tiny": Size(2, 1, 2, 1),
        "small": Size(4, 1, 2, 3),
        "graves": Size(8, 1, 10, 10),
    },
    "recall": {"tiny": Size(2, 2, 2, 1), "small": Size(4, 2, 3, 2), "graves": Size(6, 2, 6, 3)},
    "sort": {"tiny": Size(2, 2, 2, 1), "small": Size(4, 2, 4, 2), "graves": Size(8, 20, 20, 16)},
}

Drawn = tuple[torch.Tensor, torch.Tensor]


def repeat_copy(n: int, size: Size, times: int, vectors: int, g: Any = None) -> Drawn:
    """x_BTX: vectors, a mark with the repetitions wanted, silence; y_BLY with an end mark."""
    bits_BLY = torch.randint(0, 2, (n, vectors, size.bits), generator=g).float()
    answered = vectors * times + 1
    x_BTX = F.pad(bits_BLY, (0, 2, 0, 1 + answered))
    x_BTX[:, vectors, size.bits] = 1
    x_BTX[:, vectors, size.bits + 1] = times / size.most
    y_BLY = F.pad(bits_BLY.repeat(1, times, 1), (0, 1, 0, 1))
    y_BLY[:, -1, -1] = 1
    return x_BTX, y_BLY


def recall(n: int, size: Size, items: int, g: Any = None) -> Drawn:
    """x_BTX: items after marks, one again after another mark; y_BLY what had followed it."""
    bits_BIVY = torch.randint(0, 2, (n, items, size.vectors, size.bits), generator=g).float()
    asked_B = torch.randint(0, items - 1, (n,), generator=g)
    each_B = torch.arange(n)
    shown_BIVY = torch.cat((bits_BIVY, bits_BIVY[each_B, asked_B][:, None]), 1)
    # One step for the mark before the vectors of an item.
    x_BIVX = F.pad(shown_BIVY, (0, 2, 1, 0))
    x_BIVX[:, :items, 0, size.bits] = 1
    x_BIVX[:, items, 0, size.bits + 1] = 1
    x_BTX = F.pad(x_BIVX.flatten(1, 2), (0, 0, 0, 1 + size.vectors))
    x_BTX[:, -1 - size.vectors, size.bits + 1] = 1
    return x_BTX, bits_BIVY[each_B, asked_B + 1]


def sort(n: int, size: Size, vectors: int, g: Any = None) -> Drawn:
    """x_BTX: vectors with priorities, a mark, silence; y_BLY those of the highest, in order."""
    bits_BVY = torch.randint(0, 2, (n, vectors, size.bits), generator=g).float()
    priority_BV = 2 * torch.rand(n, vectors, generator=g) - 1
    x_BTX = F.pad(torch.cat((bits_BVY, priority_BV[..., None]), 2), (0, 1, 0, 1 + size.vectors))
    x_BTX[:, vectors, size.bits + 1] = 1
    order_BL = priority_BV.argsort(1, descending=True)[:, : size.vectors]
    return x_BTX, bits_BVY.take_along_dim(order_BL[..., None], 1)


def drawn(cfg: Config, n: int, how_many: int | None = None, g: Any = None) -> Drawn:
    """Sequences of one random size of training, or of a given one with the most vectors."""
    size = SIZES[cfg.task][cfg.scale]
    count = how_many or int(torch.randint(size.least, size.most + 1, ()))
    if cfg.task == "repeat_copy":
        vectors = size.vectors if how_many else int(torch.randint(1, size.vectors + 1, ()))
        return repeat_copy(n, size, count, vectors, g)
    make: Callable[..., Drawn] = recall if cfg.task == "recall" else sort
    return make(n, size, count, g)


def held_out(cfg: Config, how_many: int) -> Drawn:
    """The sequences of one size that every net of every seed is evaluated on."""
    return drawn(cfg, EVALUATED, how_many, torch.Generator().manual_seed(TEST_SEED + how_many))


def build(cfg: Config) -> nn.Module:
    bits = SIZES[cfg.task][cfg.scale].bits
    X, Y = bits + 2, bits + (cfg.task == "repeat_copy")
    if cfg.model == "lstm":
        return LSTM(X, Y, cfg.lstm_hidden, cfg.lstm_layers, impl=cfg.impl)
    return VariedNTM(X, Y, cfg.hidden, cfg.slots, cfg.word, impl=cfg.impl)


def draw(model: VariedNTM, x_BTX: torch.Tensor, y_BLY: torch.Tensor) -> Any:
    """One sequence through the NTM: what it sees and says, where it writes and reads."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTY, trace = model.unroll(x_BTX[:1])
    L = y_BLY.shape[1]
    said_TY = logits_BTY[0].sigmoid()
    said_TY[:-L] = torch.nan
    wanted_TY = torch.full_like(said_TY, torch.nan)
    wanted_TY[-L:] = y_BLY[0]
    weights_THN = torch.stack([step.weights_BHN[0] for step in trace])
    pictures = {
        "input\nbit": (x_BTX[0].T + 1) / 2 if x_BTX.min() < 0 else x_BTX[0].T,
        "target\nbit": wanted_TY.T,
        "output\nbit": said_TY.T,
        "written\nslot": weights_THN[:, 1].T,
        "read\nslot": weights_THN[:, 0].T,
    }
    figure = Figure(figsize=(8, 6), layout="constrained")
    rows = strips(figure, pictures, {len(trace) - L - 0.5: "0.55"})
    rows[-1].set(xlabel="time step (dotted: from here on it answers)")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    model = build(cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    most = SIZES[cfg.task][cfg.scale].most
    known = [t.to(ctx.device) for t in held_out(cfg, most)]
    beyond = [t.to(ctx.device) for t in held_out(cfg, 2 * most)] if cfg.task != "sort" else []
    start = ctx.keep(model=model, optimizer=optimizer)
    call = replayed(model, ctx.device)

    def loss() -> torch.Tensor:
        x_BTX, y_BLY = (t.to(ctx.device) for t in drawn(cfg, cfg.batch_size))
        return F.binary_cross_entropy_with_logits(call(x_BTX)[:, -y_BLY.shape[1] :], y_BLY)

    def wrong(x_BTX: torch.Tensor, y_BLY: torch.Tensor) -> float:
        return wrong_bits(model(x_BTX)[:, -y_BLY.shape[1] :], y_BLY)

    def scores(step: int) -> dict[str, float]:
        bits = wrong(*known)
        found = {"bits_beyond": wrong(*beyond)} if beyond else {}
        return {
            "step": step,
            "samples": step * cfg.batch_size,
            "bits_wrong": bits,
            "share_wrong": bits / known[1][0].numel(),
            **found,
        }

    yield
    for step in trained(
        [*model.parameters()],
        optimizer,
        loss,
        lr=cfg.lr,
        clip=CLIP,
        iterations=cfg.iterations,
        eval_every=cfg.eval_every,
        start=start,
    ):
        yield lambda step=step: scores(step)
    if isinstance(model, VariedNTM):
        ctx.figure("weightings", lambda: draw(model, *known))


GRAVES = "Graves et al. (2014), "
TASKS = tuple(SIZES)
SMALL = {"lstm_layers": 1, "lr": 1e-2}
SMOKE = (
    "calibrated on two seeds from 1000: 0.14 and 0.20 where guessing gets 0.5, and 0.45 or more "
    "before training"
)
LAPTOP = (
    "calibrated: 3 seeds from 1000 end at 0.58 to 1.09 of 35 bits, half of which guessing gets "
    "wrong; after half of the updates at least 2.9"
)
PAPER = (
    "not run yet; Graves et al. (2014), figures 7, 10 and 17: near 0 bits an answer; 0.1 is this "
    "project's contract"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Neural Turing Machines",),
    profiles={
        "smoke": {
            **SMALL,
            "scale": "tiny",
            "slots": 6,
            "word": 6,
            "hidden": 32,
            "lstm_hidden": 64,
            "iterations": 80,
            "eval_every": 20,
        },
        "laptop": {
            **SMALL,
            "scale": "small",
            "slots": 16,
            "word": 12,
            "hidden": 64,
            "lstm_hidden": 128,
            "iterations": 1_500,
            "eval_every": 100,
        },
        "paper": {},
    },
    variants={
        "repeat_copy": {},
        "repeat_copy_lstm": {"model": "lstm"},
        "recall": {"task": "recall"},
        "recall_lstm": {"task": "recall", "model": "lstm"},
        "sort": {"task": "sort"},
        "sort_lstm": {"task": "sort", "model": "lstm"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={
        "smoke": {"repeat_copy": Target("share_wrong", 0.25, "min", SMOKE)},
        "laptop": {
            "repeat_copy": Target("bits_wrong", 1.5, "min", LAPTOP),
        },
        "paper": {v: Target("bits_wrong", 0.1, "min", PAPER) for v in TASKS},
    },
    claims=(
        Claim(
            "the NTM repeats twice as often as it was trained to better than the LSTM",
            "bits_beyond",
            left="repeat_copy",
            right="repeat_copy_lstm",
            mode="min",
            source=f"{GRAVES}section 4.2 and figure 8",
            note="Where the counts are new, both fail, as the paper's NTM does when it has to say "
            "that it is done; the LSTM, which by then makes no fault at the trained counts, is a "
            "little less far off.",
        ),
        Claim(
            "the NTM recalls better than the LSTM",
            "bits_wrong",
            left="recall",
            right="recall_lstm",
            mode="min",
            source=f"{GRAVES}section 4.3 and figure 10",
            note="1,500 updates among three items tell little: 0.94 and 0.93 wrong bits of 8 on "
            "seed 1000. The paper's nets have seen a hundred thousand sequences and more.",
        ),
        Claim(
            "the NTM recalls among twice the items better than the LSTM",
            "bits_beyond",
            left="recall",
            right="recall_lstm",
            mode="min",
            source=f"{GRAVES}section 4.3 and figure 11",
        ),
        Claim(
            "the NTM sorts better than the LSTM",
            "bits_wrong",
            left="sort",
            right="sort_lstm",
            mode="min",
            source=f"{GRAVES}section 4.5 and figure 17",
            note="Not with four vectors, which an LSTM keeps in its own units: 0.75 and 0.76 wrong "
            "bits against 0.66 and 0.65 (seeds 1000 and 1001).",
        ),
    ),
    gpu_first=TASKS,
)
