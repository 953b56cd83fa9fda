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
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kernels import lstm
from suite.task import Claim, Target, Task
from tasks.models.dnc import DNC
from tasks.models.ntm import NTM

CLIP = 10.0
EVALUATED = 256


@dataclass(frozen=True)
class Config:
    model: str = "dnc"
    links: str = "paper"
    free_gates: bool = True
    bits: int = 8
    max_length: int = 20
    slots: int = 128
    word: int = 20
    hidden: int = 100
    lstm_hidden: int = 256
    lstm_layers: int = 3
    batch_size: int = 16
    iterations: int = 50_000
    eval_every: int = 1_000
    lr: float = 1e-2
    impl: str = "torch"


class LSTM(nn.Module):
    """x_BTX to logits_BTY."""

    def __init__(self, n_inputs: int, n_outputs: int, hidden: int, layers: int, impl: str) -> None:
        super().__init__()
        self.lstm = lstm.LSTM(n_inputs, hidden, layers, batch_first=True, impl=impl)
        self.output = nn.Linear(hidden, n_outputs)

    def forward(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return self.output(self.lstm(x_BTX)[0])


def build(cfg: Config) -> nn.Module:
    X, Y = cfg.bits + 1, cfg.bits
    if cfg.model == "lstm":
        return LSTM(X, Y, cfg.lstm_hidden, cfg.lstm_layers, cfg.impl)
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
    x_BTX = torch.zeros(n, 2 * length + 1, bits + 1)
    x_BTX[:, :length, :bits] = y_BLY
    x_BTX[:, length, bits] = 1
    return x_BTX, y_BLY


def held_out(length: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences of one length that every net of every seed is evaluated on."""
    return sequences(EVALUATED, length, bits, torch.Generator().manual_seed(20_161_012 + length))


def answer(model: nn.Module, x_BTX: torch.Tensor) -> torch.Tensor:
    """Logits_BLY of the steps after the delimiter."""
    return model(x_BTX)[:, -(x_BTX.shape[1] // 2) :]


def wrong_bits(logits_BLY: torch.Tensor, y_BLY: torch.Tensor) -> float:
    """Wrong bits a sequence, on average."""
    return float(((logits_BLY > 0) != (y_BLY > 0.5)).float().sum((1, 2)).mean())


def learning_rate(lr: float, done: float) -> float:
    """Constant for the first half of the training, then down to zero in a straight line."""
    return lr * min(1.0, 2 * (1 - done))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, cfg: Config, device: torch.device
) -> None:
    """One batch of sequences of one random length."""
    length = int(torch.randint(1, cfg.max_length + 1, ()))
    x_BTX, y_BLY = (t.to(device) for t in sequences(cfg.batch_size, length, cfg.bits))
    loss = F.binary_cross_entropy_with_logits(answer(model, x_BTX), y_BLY)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


def curves(ax: Any, values_ST: torch.Tensor, names: str, colours: tuple[str, ...]) -> None:
    """Lines over time steps, values from 0 to 1."""
    style = {"markersize": 3.5, "linewidth": 1.2}
    for value_T, name, colour, mark in zip(values_ST, names.split(), colours, "osv", strict=True):
        ax.plot(value_T.numpy(), color=colour, marker=mark, label=name, **style)
    ax.set_ylim(-0.05, 1.05)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, frameon=False)


def draw_memory(model: DNC, x_BTX: torch.Tensor, y_BLY: torch.Tensor) -> Any:
    """One sequence through the DNC: what it sees and says, where it writes and reads, and why."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTY, trace = model.unroll(x_BTX[:1])
    T, L = x_BTX.shape[1], y_BLY.shape[1]
    said_TY = logits_BTY[0].sigmoid()
    said_TY[: L + 1] = torch.nan
    wanted_TY = torch.full_like(said_TY, torch.nan)
    wanted_TY[-L:] = y_BLY[0]
    gates = ("free_gates_BR", "allocation_gate_B1", "write_gate_B1")
    gates_ST = torch.stack([torch.stack([getattr(o, g)[0, 0] for _, o in trace]) for g in gates])
    pictures = {
        "input\nbit": x_BTX[0].T,
        "target\nbit": wanted_TY.T,
        "output\nbit": said_TY.T,
        "written\nslot": torch.stack([s.write_BN[0] for s, _ in trace], 1),
        "read\nslot": torch.stack([s.read_BRN[0, 0] for s, _ in trace], 1),
    }
    shade = {"cmap": "cividis", "vmin": 0, "vmax": 1, "origin": "lower"}
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    rows = left.subplots(6, 1, sharex=True, height_ratios=(2, 2, 2, 3, 3, 2.2))
    for ax, (name, image) in zip(rows, pictures.items(), strict=False):
        shown = ax.imshow(image.cpu().numpy(), aspect="auto", **shade)
        ax.set_ylabel(name)
    left.colorbar(shown, ax=rows[:5], label="bit, its probability, or weight", aspect=40)
    curves(rows[5], gates_ST.cpu(), "free allocation write", ("#0072B2", "#E69F00", "#009E73"))
    rows[5].set(xlabel="time step (dotted: the delimiter)", ylabel="gate", xlim=(-0.5, T - 0.5))
    top, bottom = right.subplots(2, 1, height_ratios=(1.7, 1))
    shown = top.imshow(trace[L - 1][0].link_BNN[0].cpu().numpy(), **shade)
    top.set(xlabel="slot j, written before", ylabel="slot i, written after")
    top.set_title("temporal links when all is written", size=10)
    right.colorbar(shown, ax=top, label="L[i, j]", shrink=0.7)
    modes_ST = torch.stack([o.read_modes_BSR[0, :, 0] for _, o in trace], 1).cpu()
    curves(bottom, modes_ST, "backward content forward", ("#D55E00", "#56B4E9", "#CC79A7"))
    bottom.set(xlabel="time step (dotted: the delimiter)", ylabel="read mode")
    for ax in (*rows, bottom):
        ax.axvline(L, color="0.55", linewidth=0.9, linestyle=":")
    for ax in (*rows[3:], top, bottom):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.yaxis.get_major_locator().set_params(integer=ax not in (rows[5], bottom))
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    model = build(cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    trained, twice = (
        [t.to(ctx.device) for t in held_out(length, cfg.bits)]
        for length in (cfg.max_length, 2 * cfg.max_length)
    )
    start = ctx.keep(model=model, optimizer=optimizer)

    def scores(step: int) -> dict[str, float]:
        logits_BLY = answer(model, trained[0])
        return {
            "step": step,
            "samples": step * cfg.batch_size,
            "bits_trained": wrong_bits(logits_BLY, trained[1]),
            "bits_twice": wrong_bits(answer(model, twice[0]), twice[1]),
            "test_loss": float(F.binary_cross_entropy_with_logits(logits_BLY, trained[1])),
        }

    yield
    for row in range(start, cfg.iterations // cfg.eval_every + 1):
        step = row * cfg.eval_every
        for done in range(step - cfg.eval_every, step) if row else ():
            optimizer.param_groups[0]["lr"] = learning_rate(cfg.lr, done / cfg.iterations)
            train_step(model, optimizer, cfg, ctx.device)
        yield lambda step=step: scores(step)
    if isinstance(model, DNC):
        ctx.figure("memory", lambda: draw_memory(model, *twice))


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
