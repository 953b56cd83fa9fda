"""Copying with a memory: DNC, NTM and LSTM, and the DNC without its parts.

Sections "Differentiable Neural Computers" to "Implementing the DNC in PyTorch". A net sees random
bit vectors, then a delimiter, and must then write down what it saw. It is trained on all lengths
up to a longest one. `bits_trained` is the number of wrong bits a sequence at that length and
`bits_twice` at twice that length, which no net has met; guessing gets half of the bits wrong.

Compared are `dnc`; `book_link`, whose link matrix decays by 1 - 2 w_i instead of 1 - w_i - w_j, as
the book's listing has it; `no_links`, which reads by content only; `no_free_gates`, which never
frees a slot; `ntm`; and `lstm`, the only one without a memory. DNC and NTM have equal controllers.

Neither the book nor the DNC paper prints a number for this task. `paper` is the copy task of the
NTM paper (Graves et al., 2014, section 4.1): vectors of 8 bits, lengths 1 to 20, a memory of 128
words of 20. It trains in batches with Adam instead of one sequence at a time with RMSProp.

Shapes: B batch, T time, L vectors in a sequence, X input, Y bits of a vector, N slots, R heads.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task
from tasks.models.dnc import DNC
from tasks.models.ntm import NTM
from tasks.models.sequences import LSTM, replayed, strips, trained, wrong_bits

CLIP = 10.0
EVALUATED = 256


@dataclass(frozen=True)
class Config:
    model: Literal["dnc", "ntm", "lstm"] = "dnc"
    links: Literal["paper", "book", "none"] = "paper"
    free_gates: bool = True
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
    lr: Positive = 1e-2
    impl: str = "torch"


def build(cfg: Config) -> nn.Module:
    X, Y = cfg.bits + 1, cfg.bits
    if cfg.model == "lstm":
        return LSTM(X, Y, cfg.lstm_hidden, cfg.lstm_layers, impl=cfg.impl)
    if cfg.model == "ntm":
        return NTM(X, Y, cfg.hidden, cfg.slots, cfg.word, impl=cfg.impl)
    return DNC(
        X,
        Y,
        cfg.hidden,
        cfg.slots,
        cfg.word,
        links=cfg.links != "none",
        book_link=cfg.links == "book",
        free_gates=cfg.free_gates,
        impl=cfg.impl,
    )


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
    return sequences(EVALUATED, length, bits, torch.Generator().manual_seed(20_161_012 + length))


def draw(model: DNC, x_BTX: torch.Tensor, y_BLY: torch.Tensor) -> Any:
    """One sequence through the DNC: what it sees and says, where it writes and reads, and why."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTY, trace = model.unroll(x_BTX[:1])
    L = y_BLY.shape[1]
    said_TY = logits_BTY[0].sigmoid()
    said_TY[: L + 1] = torch.nan
    wanted_TY = torch.full_like(said_TY, torch.nan)
    wanted_TY[-L:] = y_BLY[0]
    pictures = {
        "input\nbit": x_BTX[0].T,
        "target\nbit": wanted_TY.T,
        "output\nbit": said_TY.T,
        "written\nslot": torch.stack([s.write_BN[0] for s, _ in trace], 1),
        "read\nslot": torch.stack([s.read_BRN[0, 0] for s, _ in trace], 1),
    }
    gates = {"free": "free_gates_BR", "allocation": "allocation_gate_B1", "write": "write_gate_B1"}
    for name, part in gates.items():
        pictures[f"{name}\ngate"] = torch.stack([getattr(to, part)[0, :1] for _, to in trace], 1)
    modes_ST = torch.stack([to.read_modes_BSR[0, :, 0] for _, to in trace], 1)
    for name, mode_T in zip(("backward", "content", "forward"), modes_ST, strict=True):
        pictures[f"{name}\nmode"] = mode_T[None]
    figure = Figure(figsize=(11, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    rows = strips(left, pictures, {L: "0.55"})
    rows[-1].set(xlabel="time step (dotted: the delimiter)")
    ax, link_NN = right.subplots(), trace[L - 1][0].link_BNN[0].cpu()
    shown = ax.imshow(link_NN.numpy(), cmap="cividis", vmin=0, vmax=1, origin="lower")
    ax.set(xlabel="slot j, written before", ylabel="slot i, written after")
    ax.set_title("temporal links when all is written", size=10)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True)
    right.colorbar(shown, ax=ax, label="L[i, j]", shrink=0.7)
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
    if isinstance(model, DNC):
        ctx.figure("memory", lambda: draw(model, *twice))


SECTION = "book, chapter 12, and Graves et al., Nature 2016: said in words, without a number"
SAMIR = "README of Mostafa-Samir/DNC-tensorflow, by the book's contributor: the DNC generalises"
LONGER = "NTM paper, section 4.1, as restated in the README of ajithcodesit/lstm_copy_task"
LISTING = "section 'Implementing the DNC in PyTorch': the listing adds V to V, not to V transposed"
SMOKE = (
    "calibrated: 20 seeds from 1000, worst 0.88 of the 3 bits that guessing gets wrong; at least "
    "0.88 after half of the steps"
)
LAPTOP = (
    "this project's contract for 2,000 iterations; 20 of 20 seeds from 1000 end at 0.004 or less "
    "and pass it after 300 to 700. Half of the budget suffices: the claims judge the speed"
)
PAPER = (
    "not run yet; loudinthecloud/pytorch-ntm's README: lengths 1 to 20 converge in under 30,000 "
    "iterations with an NTM, which the DNC should not fall short of"
)
STEPS = "steps_to_target"

TASK = Task(
    config=Config(),
    run=run,
    sections=(
        "Differentiable Neural Computers",
        "Temporal Linking of DNC Writes",
        "Understanding the DNC Read Head",
        "The DNC Controller Network",
        "Visualizing the DNC in Action",
        "Implementing the DNC in PyTorch",
    ),
    profiles={
        "smoke": {
            "bits": 3,
            "max_length": 2,
            "slots": 6,
            "word": 6,
            "hidden": 32,
            "lstm_hidden": 64,
            "lstm_layers": 1,
            "iterations": 200,
            "eval_every": 40,
        },
        "laptop": {
            "bits": 6,
            "max_length": 5,
            "slots": 16,
            "word": 16,
            "hidden": 64,
            "lstm_hidden": 128,
            "lstm_layers": 1,
            "iterations": 2_000,
            "eval_every": 100,
        },
        "paper": {},
    },
    impls=("torch", "reference", "compile", "triton"),
    variants={
        "dnc": {},
        "book_link": {"links": "book"},
        "no_links": {"links": "none"},
        "no_free_gates": {"free_gates": False},
        "ntm": {"model": "ntm"},
        "lstm": {"model": "lstm"},
    },
    targets={
        "smoke": {"dnc": Target("bits_trained", 1.0, "min", SMOKE)},
        "laptop": {"dnc": Target("bits_trained", 0.1, "min", LAPTOP)},
        "paper": {"dnc": Target("bits_trained", 0.1, "min", PAPER)},
    },
    claims=(
        Claim(
            "the DNC copies sequences twice as long as any it was trained on, 1 bit in 20 wrong",
            "bits_twice",
            left="dnc",
            right=3.0,
            mode="min",
            source=SAMIR,
            profiles=("laptop",),
            note="Guessing gets 30 of the 60 bits wrong; 20 seeds from 1000 have at most 1.1.",
        ),
        Claim(
            "the LSTM does not",
            "bits_twice",
            left="dnc",
            right="lstm",
            mode="min",
            margin=1.0,
            source=LONGER,
        ),
        Claim(
            "the NTM does it less well",
            "bits_twice",
            left="dnc",
            right="ntm",
            mode="min",
            source=SECTION,
            note="An NTM either finds the algorithm, and then copies twice the length with less "
            "than a bit wrong, or it does not: 3 and 2 of 5 seeds from 1000.",
        ),
        Claim(
            "without temporal links the order is lost beyond the trained lengths",
            "bits_twice",
            left="dnc",
            right="no_links",
            mode="min",
            margin=1.0,
            source=SECTION,
        ),
        Claim(
            "the DNC as listed, with its link matrix, does so too",
            "bits_twice",
            left="book_link",
            right=3.0,
            mode="min",
            profiles=("laptop",),
            source=LISTING,
            note="The listing's mistake does not show here: a copy writes each slot once and "
            "wholly, and then 1 - 2 w_i and 1 - w_i - w_j leave the same links.",
        ),
        Claim(
            "the DNC learns sooner than the LSTM",
            STEPS,
            left="dnc",
            right="lstm",
            mode="min",
            source=SECTION,
        ),
        Claim(
            "the DNC learns sooner than the NTM",
            STEPS,
            left="dnc",
            right="ntm",
            mode="min",
            source=SECTION,
        ),
    ),
)
