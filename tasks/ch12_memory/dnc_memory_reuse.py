"""Memory reuse: a DNC copies one sequence after another, more vectors than its memory has slots.

Sections "DNC Memory Reuse" and "Visualizing the DNC in Action". A net sees a few random bit
vectors, then a delimiter, writes them down, sees the next ones, and so on for `rounds` rounds, in
one go and without being reset. Each round fits into the memory, all of them together do not, so
slots must be freed once they have been read.

`success` is the share of sequences without a wrong bit at twice the rounds of training and at the
greatest length; `bits_wrong` the wrong bits of such a sequence, and `share_wrong` what part of all
its bits they are. `freed_reading` and `freed_writing` are the mean free gates of the steps after a
read and of all other steps. `violation` says by how much, at worst over all evaluations of the run,
a weighting left the simplex, usage or links their range or the links' diagonal 0.

`dnc` is the paper's; `no_free_gates` never frees a slot; `book_link` decays links by 1 - 2 w_i
instead of 1 - w_i - w_j, as the book's listing does. All have the same parameters and see the same
sequences.

The book prints no number; its figure, and Mostafa-Samir/DNC-tensorflow's, by the book's
contributor, shows free gates that open once a slot has been read, and slots that are used again.
There, as at `paper`, 4 rounds of 6 vectors are copied in 10 slots.

Shapes: B batch, T time, X input, Y bits of a vector, L vectors of a round, N slots, R = 1 head.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.task import Claim, Target, Task
from tasks.models.dnc import DNC
from tasks.models.equations import violations
from tasks.models.sequences import replayed, strips, trained

EVALUATED = 128


@dataclass(frozen=True)
class Config:
    links: Literal["paper", "book"] = "paper"
    free_gates: bool = True
    bits: Count = 6
    max_length: Count = 6
    rounds: Annotated[int, Interval(ge=2)] = 4
    slots: Count = 10
    word: Count = 12
    hidden: Count = 64
    batch_size: Count = 16
    iterations: Count = 20_000
    eval_every: Count = 500
    lr: Positive = 3e-3
    clip: Positive = 1.0
    impl: str = "torch"


def sequences(
    n: int, length: int, rounds: int, bits: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs x_BTX, what to say y_BTY, and asked_T, the steps at which it is asked for.

    A round has 2 L + 1 steps: the vectors, a delimiter, silence.
    """
    y_BRLY = torch.randint(0, 2, (n, rounds, length, bits), generator=generator).float()
    x_BRTX = F.pad(y_BRLY, (0, 1, 0, length + 1))
    x_BRTX[:, :, length, bits] = 1
    wanted_BRTY = F.pad(y_BRLY, (0, 0, length + 1, 0))
    asked_T = (torch.arange(2 * length + 1) > length).repeat(rounds)
    return x_BRTX.flatten(1, 2), wanted_BRTY.flatten(1, 2), asked_T


def held_out(length: int, rounds: int, bits: int) -> tuple[torch.Tensor, ...]:
    """The sequences that every net of every seed is evaluated on."""
    return sequences(EVALUATED, length, rounds, bits, torch.Generator().manual_seed(20_161_013))


def build(cfg: Config) -> DNC:
    return DNC(
        cfg.bits + 1,
        cfg.bits,
        cfg.hidden,
        cfg.slots,
        cfg.word,
        book_link=cfg.links == "book",
        free_gates=cfg.free_gates,
        impl=cfg.impl,
    )


def measured(
    model: DNC, x_BTX: torch.Tensor, y_BTY: torch.Tensor, asked_T: torch.Tensor
) -> dict[str, float]:
    """What is wrong, when slots are freed, and the worst violation."""
    logits_BTY, trace = model.unroll(x_BTX)
    wrong_BTY = ((logits_BTY > 0) != (y_BTY > 0.5))[:, asked_T]
    free_T = torch.stack([to.free_gates_BR.mean() for _, to in trace])
    # A free gate acts on what was read a step before.
    after_read_T = F.pad(asked_T[:-1], (1, 0))
    return {
        "success": float((~wrong_BTY.flatten(1).any(1)).float().mean()),
        "bits_wrong": float(wrong_BTY.float().sum((1, 2)).mean()),
        "share_wrong": float(wrong_BTY.float().mean()),
        "freed_reading": float(free_T[after_read_T].mean()),
        "freed_writing": float(free_T[~after_read_T].mean()),
        "violation": max(max(violations(state).values()) for state, _ in trace),
    }


def draw(model: DNC, x_BTX: torch.Tensor, y_BTY: torch.Tensor, asked_T: torch.Tensor) -> Any:
    """One sequence through the DNC: slots are written, read, freed and written again."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTY, trace = model.unroll(x_BTX[:1])
    unasked_T1 = ~asked_T[:, None]
    pictures = {
        "input\nbit": x_BTX[0].T,
        "target\nbit": y_BTY[0].masked_fill(unasked_T1, torch.nan).T,
        "output\nbit": logits_BTY[0].sigmoid().masked_fill(unasked_T1, torch.nan).T,
        "written\nslot": torch.stack([s.write_BN[0] for s, _ in trace], 1),
        "read\nslot": torch.stack([s.read_BRN[0, 0] for s, _ in trace], 1),
        "slot\nin use": torch.stack([s.usage_BN[0] for s, _ in trace], 1),
    }
    gates = {"free": "free_gates_BR", "allocation": "allocation_gate_B1", "write": "write_gate_B1"}
    for name, part in gates.items():
        pictures[f"{name}\ngate"] = torch.stack([getattr(to, part)[0, :1] for _, to in trace], 1)
    delimiters = [t for t in range(len(trace)) if x_BTX[0, t, -1] > 0]
    figure = Figure(figsize=(11, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.4, 1))
    rows = strips(left, pictures, dict.fromkeys(delimiters, "0.55"))
    rows[-1].set(xlabel="time step (dotted: delimiters)")
    panels = right.subplots(3, 1)
    words_NW = trace[delimiters[1]][0].memory_BNW[0].cpu().numpy()
    size = abs(words_NW).max()
    shade: dict[str, Any] = {"cmap": "PuOr", "origin": "lower"}
    shown = panels[0].imshow(words_NW, vmin=-size, vmax=size, aspect="auto", **shade)
    panels[0].set(ylabel="slot", xlabel="position in the word")
    panels[0].set_title(f"memory after step {delimiters[1]}", size=9)
    right.colorbar(shown, ax=panels[0], label="value")
    for ax, t in zip(panels[1:], delimiters, strict=False):
        shown = ax.imshow(trace[t][0].link_BNN[0].cpu().numpy(), vmin=-1, vmax=1, **shade)
        ax.set_title(f"links after step {t}", size=9)
        ax.set(ylabel="slot i, written after")
    panels[-1].set(xlabel="slot j, written before")
    right.colorbar(shown, ax=list(panels[1:]), label="temporal link L[i, j]")
    for ax in panels:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    model = build(cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    test = [t.to(ctx.device) for t in held_out(cfg.max_length, 2 * cfg.rounds, cfg.bits)]
    worst = {"violation": 0.0}
    start = ctx.keep(model=model, optimizer=optimizer, worst=worst)
    call = replayed(model, ctx.device)

    def loss() -> torch.Tensor:
        length = int(torch.randint(1, cfg.max_length + 1, ()))
        drawn = sequences(cfg.batch_size, length, cfg.rounds, cfg.bits)
        x_BTX, y_BTY, asked_T = (t.to(ctx.device) for t in drawn)
        logits_BLY = call(x_BTX)[:, asked_T]
        return F.binary_cross_entropy_with_logits(logits_BLY, y_BTY[:, asked_T])

    def scores(step: int) -> dict[str, float]:
        found = measured(model, *test)
        worst["violation"] = max(worst["violation"], found["violation"])
        return {"step": step, "samples": step * cfg.batch_size, **found, **worst}

    yield
    for step in trained(
        [*model.parameters()],
        optimizer,
        loss,
        lr=cfg.lr,
        clip=cfg.clip,
        iterations=cfg.iterations,
        eval_every=cfg.eval_every,
        start=start,
    ):
        yield lambda step=step: scores(step)
    shown = [t.to(ctx.device) for t in held_out(cfg.max_length, cfg.rounds, cfg.bits)]
    ctx.figure("reuse", lambda: draw(model, *shown))


SECTION = (
    "sections 'DNC Memory Reuse' and 'Visualizing the DNC in Action': said in words, no number"
)
SAMIR = "README of Mostafa-Samir/DNC-tensorflow, by the book's contributor: its figure"
LISTING = "section 'Implementing the DNC in PyTorch': the listing adds V to V, not to V transposed"
SMOKE = (
    "calibrated: 4 seeds from 1000, worst 0.27 where guessing gets 0.5; after a third of the steps "
    "at least 0.28"
)
LAPTOP = (
    "calibrated: 5 seeds from 1000 copy 0.70 to 0.98 of the sequences without a mistake; after "
    "half of the updates at most 0.23"
)
PAPER = (
    "not run yet; Mostafa-Samir/DNC-tensorflow's figure shows 4 rounds of 6 vectors copied in 10 "
    "slots; the share is this project's contract"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("DNC Memory Reuse", "Visualizing the DNC in Action"),
    profiles={
        "smoke": {
            "bits": 2,
            "max_length": 2,
            "rounds": 2,
            "slots": 3,
            "word": 6,
            "hidden": 24,
            "iterations": 60,
            "eval_every": 20,
            "lr": 1e-2,
        },
        "laptop": {
            "max_length": 3,
            "rounds": 3,
            "slots": 4,
            "word": 8,
            "hidden": 32,
            "iterations": 800,
            "eval_every": 100,
            "lr": 1e-2,
        },
        "paper": {},
    },
    variants={
        "dnc": {},
        "no_free_gates": {"free_gates": False},
        "book_link": {"links": "book"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={
        "smoke": {"dnc": Target("share_wrong", 0.28, "min", SMOKE)},
        "laptop": {"dnc": Target("success", 0.6, "max", LAPTOP)},
        "paper": {"dnc": Target("success", 0.75, "max", PAPER)},
    },
    claims=(
        Claim(
            "with free gates at least 3 in 10 sequences more are copied without a mistake",
            "success",
            left="dnc",
            right="no_free_gates",
            mode="max",
            margin=0.3,
            source=f"{SECTION}; 0.3 is this project's contract",
            note="On seeds 1000 and 1001: 0.97 and 0.94 with free gates, 0.25 and 0 without.",
        ),
        Claim(
            "what has been read is freed",
            "freed_reading",
            left="dnc",
            right=0.9,
            mode="max",
            source=SAMIR,
        ),
        Claim(
            "while a DNC trains, weightings, usage and links stay in their ranges",
            "violation",
            left="dnc",
            right=1e-5,
            mode="min",
            source="Graves et al., Nature 2016, Methods: the sets that they are defined on; 1e-5 "
            "in float32",
        ),
        Claim(
            "so they do with the link matrix as listed",
            "violation",
            left="book_link",
            right=1e-5,
            mode="min",
            source=LISTING,
            note="The book's links are weights; as listed they become negative where a slot is "
            "written again. The net learns to live with them: its success is that of the DNC.",
        ),
    ),
    gpu_first=("dnc", "no_free_gates"),
)
