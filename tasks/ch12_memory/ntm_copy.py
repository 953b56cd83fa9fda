"""Neural Turing machines copy: two controllers, two memories to begin with, and an LSTM without.

Sections "Neural Turing Machines" and "Attention-Based Memory Access". A net sees random bit
vectors, then a delimiter, and must then write down what it saw. It is trained on all lengths up to
a longest one. `bits_trained` is the number of wrong bits a sequence at that length, `bits_twice` at
twice that length, which no net has met; guessing gets half of the bits wrong.

`ntm_lstm` has an LSTM for a controller and `ntm_ff` a layer of ReLUs, which keeps nothing of its
own; both begin with a memory of a small constant. `learned_memory` begins with a learned one, and
`lstm` has no memory.

The book prints no number. Graves et al. (2014), section 4.1, train on 8 bits, lengths 1 to 20 and
128 words of 20, one sequence at a time by RMSProp: the NTM's cost comes near 0 bits a sequence and
the LSTM's does not. `paper` has their sizes. Departures: batches and Adam, gradients clipped to a
norm of 1, and heads that begin focused on the first slot, for otherwise some runs find no copying
within the budget.

Shapes: B batch, T time, L vectors in a sequence, X input, Y bits of a vector, N slots, W word size.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task
from tasks.models.ntm_variants import VariedNTM
from tasks.models.sequences import LSTM, replayed, strips, trained, wrong_bits

CLIP = 1.0
EVALUATED = 256


@dataclass(frozen=True)
class Config:
    controller: Literal["lstm", "feed_forward"] = "lstm"
    memory: Literal["constant", "learned", "none"] = "constant"
    bits: Count = 8
    max_length: Count = 20
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


def build(cfg: Config) -> nn.Module:
    X, Y = cfg.bits + 1, cfg.bits
    if cfg.memory == "none":
        return LSTM(X, Y, cfg.lstm_hidden, cfg.lstm_layers, impl=cfg.impl)
    parts = {"controller": cfg.controller, "memory": cfg.memory, "impl": cfg.impl}
    return VariedNTM(X, Y, cfg.hidden, cfg.slots, cfg.word, **parts)


def sequences(
    n: int, length: int, bits: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs x_BTX, T = 2 L + 1: the vectors, a delimiter, silence; and the vectors y_BLY."""
    y_BLY = torch.randint(0, 2, (n, length, bits), generator=generator).float()
    x_BTX = F.pad(y_BLY, (0, 1, 0, length + 1))
    x_BTX[:, length, bits] = 1
    return x_BTX, y_BLY


def held_out(length: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences of one length that every net of every seed is evaluated on."""
    return sequences(EVALUATED, length, bits, torch.Generator().manual_seed(20_141_020 + length))


def draw(model: VariedNTM, x_BTX: torch.Tensor, y_BLY: torch.Tensor) -> Any:
    """One sequence through the NTM: where it writes and reads, and the memory when all is written.

    The paper's figure 6: writing moves on by one slot a step, and reading follows the same way.
    """
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTY, trace = model.unroll(x_BTX[:1])
    L = y_BLY.shape[1]
    said_TY = logits_BTY[0].sigmoid()
    said_TY[: L + 1] = torch.nan
    wanted_TY = torch.full_like(said_TY, torch.nan)
    wanted_TY[-L:] = y_BLY[0]
    weights_THN = torch.stack([step.weights_BHN[0] for step in trace])
    pictures = {
        "input\nbit": x_BTX[0].T,
        "target\nbit": wanted_TY.T,
        "output\nbit": said_TY.T,
        "written\nslot": weights_THN[:, 1].T,
        "read\nslot": weights_THN[:, 0].T,
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    rows = strips(left, pictures, {L: "0.55"})
    rows[-1].set(xlabel="time step (dotted: the delimiter)")
    ax, memory_NW = right.subplots(), trace[L].memory_BNW[0].cpu()
    size = float(memory_NW.abs().max())
    shown = ax.imshow(memory_NW.numpy(), cmap="PuOr", vmin=-size, vmax=size, origin="lower")
    ax.set(xlabel="position in the word", ylabel="slot")
    ax.set_title("memory when all is written", size=10)
    right.colorbar(shown, ax=ax, label="value", shrink=0.7)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    model = build(cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    known, twice = (
        [t.to(ctx.device) for t in held_out(length, cfg.bits)]
        for length in (cfg.max_length, 2 * cfg.max_length)
    )
    start = ctx.keep(model=model, optimizer=optimizer)
    call = replayed(model, ctx.device)

    def loss() -> torch.Tensor:
        length = int(torch.randint(1, cfg.max_length + 1, ()))
        x_BTX, y_BLY = (t.to(ctx.device) for t in sequences(cfg.batch_size, length, cfg.bits))
        return F.binary_cross_entropy_with_logits(call(x_BTX)[:, -length:], y_BLY)

    def scores(step: int) -> dict[str, float]:
        logits_BLY = model(known[0])[:, -cfg.max_length :]
        return {
            "step": step,
            "samples": step * cfg.batch_size,
            "bits_trained": wrong_bits(logits_BLY, known[1]),
            "bits_twice": wrong_bits(model(twice[0])[:, -2 * cfg.max_length :], twice[1]),
            "test_loss": float(F.binary_cross_entropy_with_logits(logits_BLY, known[1])),
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
        ctx.figure("weightings", lambda: draw(model, *twice))


GRAVES = "Graves et al. (2014), section 4.1: "
COLLIER = "Collier and Beel (2018): a memory of constants converges sooner than a learned one"
STEPS = "steps_to_target"
SMOKE = (
    "calibrated: 6 seeds from 1000, worst 0.91 of the 3 bits that guessing gets wrong; at least "
    "1.1 after half of the steps"
)
LAPTOP = (
    "this project's contract; 5 seeds from 1000 end at 0 and pass it after 300 to 700. Half of the "
    "budget suffices for four of them: the claims judge the speed"
)
PAPER = (
    "not run yet; loudinthecloud/pytorch-ntm's README: lengths 1 to 20 converge in under 30,000 "
    "iterations; 0.01 is this project's reading of the paper's figure 3, which ends near 0"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Neural Turing Machines", "Attention-Based Memory Access"),
    profiles={
        "smoke": {
            "bits": 3,
            "max_length": 2,
            "slots": 6,
            "word": 6,
            "hidden": 32,
            "lstm_hidden": 64,
            "lstm_layers": 1,
            "iterations": 160,
            "eval_every": 40,
            "lr": 1e-2,
        },
        "laptop": {
            "bits": 6,
            "max_length": 5,
            "slots": 16,
            "word": 16,
            "hidden": 64,
            "lstm_hidden": 128,
            "lstm_layers": 1,
            "iterations": 1_200,
            "eval_every": 100,
            "lr": 1e-2,
        },
        "paper": {},
    },
    variants={
        "ntm_lstm": {},
        "ntm_ff": {"controller": "feed_forward"},
        "learned_memory": {"memory": "learned"},
        "lstm": {"memory": "none"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={
        "smoke": {"ntm_lstm": Target("bits_trained", 1.0, "min", SMOKE)},
        "laptop": {"ntm_lstm": Target("bits_trained", 0.5, "min", LAPTOP)},
        "paper": {v: Target("bits_trained", 0.01, "min", PAPER) for v in ("ntm_lstm", "ntm_ff")},
    },
    claims=(
        Claim(
            "an NTM with an LSTM for a controller copies twice the lengths better than the LSTM",
            "bits_twice",
            left="ntm_lstm",
            right="lstm",
            mode="min",
            source=f"{GRAVES}figures 4 and 5",
            note="Not in every run: 4 of 5 seeds from 1000 copy twice the lengths with 0.1 bits "
            "wrong; one found a way that works up to the trained length only.",
        ),
        Claim(
            "an NTM with a feed-forward controller copies twice the lengths better than the LSTM",
            "bits_twice",
            left="ntm_ff",
            right="lstm",
            mode="min",
            margin=1.0,
            source=f"{GRAVES}figures 4 and 5",
        ),
        Claim(
            "an NTM with a feed-forward controller copies twice the lengths, 1 bit in 20 wrong",
            "bits_twice",
            left="ntm_ff",
            right=3.0,
            mode="min",
            source=f"{GRAVES}figure 4: almost perfect up to twice the trained length",
            profiles=("laptop",),
            note="4 of 5 seeds from 1000 have at most 0.01 bits wrong; one had learned to copy "
            "after 100 updates, lost it again, and ended where the LSTM is.",
        ),
        Claim(
            "the NTM learns sooner than the LSTM",
            STEPS,
            left="ntm_lstm",
            right="lstm",
            mode="min",
            source=f"{GRAVES}figure 3",
        ),
        Claim(
            "the NTM with a feed-forward controller learns sooner than the LSTM",
            STEPS,
            left="ntm_ff",
            right="lstm",
            mode="min",
            source=f"{GRAVES}figure 3",
            profiles=("paper",),
        ),
        Claim(
            "a memory that begins with constants is learned sooner than one with a learned start",
            STEPS,
            left="ntm_lstm",
            right="learned_memory",
            mode="min",
            source=COLLIER,
            note="Not here: 300 to 700 updates with constants, 300 to 600 with a learned start (5 "
            "seeds from 1000). With heads that begin focused, what is in the memory matters less.",
        ),
    ),
    gpu_first=("ntm_lstm", "ntm_ff"),
)
