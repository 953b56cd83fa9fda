"""Teaching a DNC to read: questions about short stories, all kinds of stories jointly.

Section "Teaching a DNC to Read and Comprehend". A net reads stories word by word; at each `-` after
a question it says a word. `mean_error` is the share of questions answered wrongly, averaged over
the tasks, `failed_tasks` how many tasks have more than 5 %, and `error_1` and so on those of single
tasks. `test_loss` is the cross entropy of an answer in nats.

`dnc` is the paper's; `dnc_md` masks what keys are compared with and clears slots that are freed,
which Csordas and Schmidhuber (2019) report to reduce the mean error by 43 % (with a third change,
links that are sharpened, which is not here); `book_link` decays links by 1 - 2 w_i instead of
1 - w_i - w_j, as the book's listing does; `lstm` has no memory.

The book's 2nd edition says that its code "has not yet been converted"; the 1st edition's has 256
slots of 64, 4 read heads, an LSTM of 256 units and RMSProp at 1e-4 with gradients clipped to 10.
The DNC paper has a mean error of 16.7 +- 7.6 % and 11.2 +- 5.4 failed tasks, a rerun by the book's
contributor 15.78 % and 8. Departures: batches of stories of similar length, each task drawn as
often as any other, forget gates that begin open; tested on the first 200 stories of each task. As
in the paper, stories of more than `max_words` words are left out of training. `paper` is for a GPU,
where whole sequences are replayed as CUDA graphs, and goes on where it was stopped. On a CPU

    suite run ch12.dnc_babi --profile paper --set tasks=1,2,6 --set max_words=200 --set slots=32 \
        --set word=32 --set read_heads=2 --set hidden=64 --set iterations=2000 --set lr=1e-3

is a shorter schedule on three of the tasks, which its record names.

Offline profiles generate the likes of tasks 1, 2 and 6, see `tasks.models.stories`: three facts,
and a question after each but the first. Saying always the last place that was read is wrong in
0.39, 0.16 and all of the answers. `laptop` learns the first kind alone: of all three together a
DNC has learned no more than the last place after 1,000 updates (seed 1000: 0.40, 0.07 and 0.41).

Shapes: B batch, T words of a story, V words of the vocabulary, S stories.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from suite.fields import Count, Positive
from suite.space import Choice, Range
from suite.task import Claim, Target, Task
from tasks.models.dnc import DNC
from tasks.models.dnc_masked import MaskedDNC
from tasks.models.sequences import LSTM, replayed, strips, trained
from tasks.models.stories import NO_ANSWER, VOCABULARY, Corpus, generated, wrong_answers

FAILED = 0.05
EVALUATED = 200
# Lengths that stories are padded to: every one is a graph of its own on a GPU.
GRID = (24, 32, 64, 96, 128, 160, 256, 384, 512, 800)
STORIES, TESTED, FACTS, TEST_SEED = 6_000, 300, 3, 20_161_014


@dataclass(frozen=True)
class Config:
    data: str = "babi"
    model: Literal["dnc", "dnc_md", "book_link", "lstm"] = "dnc"
    tasks: str = "all"
    max_words: Count = 800
    slots: Count = 256
    word: Count = 64
    read_heads: Count = 4
    hidden: Count = 256
    batch_size: Count = 16
    iterations: Count = 100_000
    eval_every: Count = 1_000
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: Positive = 1e-4
    clip: Positive = 10.0
    impl: str = "torch"


def chosen_tasks(tasks: str) -> list[int]:
    """``all`` or numbers such as ``1,2,6``.

    Raises:
        ValueError: anything else.
    """
    numbers = (
        [*range(1, 21)] if tasks == "all" else [int(n) for n in tasks.split(",") if n.isdigit()]
    )
    if not numbers or not set(numbers) <= {*range(1, 21)}:
        raise ValueError(f"tasks {tasks!r}: write all, or numbers from 1 to 20 such as 1,2,6")
    return numbers


def stories(cfg: Config, ctx: Any) -> tuple[Corpus, Corpus, tuple[str, ...]]:
    """Training stories, test stories, and the vocabulary."""
    if cfg.data == "generated":
        corpora = (generated(STORIES, FACTS, 1 + ctx.seed), generated(TESTED, FACTS, TEST_SEED))
        vocabulary = VOCABULARY
    else:
        source = ctx.data(cfg.data)
        corpora = (Corpus(*source.train), Corpus(*source.test))
        vocabulary = source.vocabulary
    wanted = torch.tensor(chosen_tasks(cfg.tasks), device=ctx.device)
    train, test = (c.on(ctx.device) for c in corpora)
    train, test = (c.of(torch.isin(c.tasks_S, wanted)) for c in (train, test))
    return train.of(train.lengths_S <= cfg.max_words), test, vocabulary


def buckets(corpus: Corpus) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Stories of similar length: padded length, which they are, and how often each is drawn.

    All weights of a task sum to one, over all buckets together.
    """
    lengths_S, tasks_S = corpus.lengths_S.cpu(), corpus.tasks_S.cpu().long()
    grid = torch.tensor([*GRID, max(GRID[-1] + 1, int(lengths_S.max()))])
    bucket_S = torch.bucketize(lengths_S, grid)
    weights_S = 1 / tasks_S.bincount()[tasks_S].float()
    each = ((int(grid[b]), bucket_S == b) for b in bucket_S.unique())
    return [(T, members.nonzero()[:, 0], weights_S[members]) for T, members in each]


def opened(cell: nn.Module) -> None:
    """Have the forget gates of an LSTM begin open, so that a word outlasts its sentence."""
    for name, bias in cell.named_parameters():
        if name.startswith("bias_ih"):
            units = len(bias) // 4
            # PyTorch's order of gates: input, forget, cell, output.
            bias.data[units : 2 * units] = 1.0


def build(cfg: Config, n_words: int) -> nn.Module:
    sizes = (n_words, n_words, cfg.hidden)
    memory = (cfg.slots, cfg.word, cfg.read_heads)
    if cfg.model == "lstm":
        model = LSTM(*sizes, impl=cfg.impl)
        opened(model.lstm)
    elif cfg.model == "dnc_md":
        model = MaskedDNC(*sizes, *memory, impl=cfg.impl)
        opened(model.dnc.controller)
    else:
        model = DNC(*sizes, *memory, book_link=cfg.model == "book_link", impl=cfg.impl)
        opened(model.controller)
    return model


def optimizer_of(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    if cfg.optimizer == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), lr=cfg.lr, momentum=0.9, alpha=0.9)
    return torch.optim.Adam(model.parameters(), lr=cfg.lr)


def evaluated(logits: Callable[[torch.Tensor], torch.Tensor], test: Corpus) -> dict[str, float]:
    """Errors of each task and of all, and the mean loss of an answer."""
    errors, loss, n_words = {}, 0.0, 0
    for task in test.tasks_S.unique().tolist():
        some = test.of((test.tasks_S == task).nonzero()[:EVALUATED, 0])
        n = len(some.tasks_S)
        words_BT, answers_BT = some.batch(torch.arange(n), int(some.lengths_S.max()))
        logits_BTV = logits(words_BT)
        wrong, asked = wrong_answers(logits_BTV.argmax(2), answers_BT)
        errors[f"error_{task}"] = wrong / asked
        n_words += int((answers_BT >= 0).sum())
        loss += float(answer_loss(logits_BTV, answers_BT, "sum"))
    return {
        "mean_error": sum(errors.values()) / len(errors),
        "failed_tasks": sum(error > FAILED for error in errors.values()),
        "test_loss": loss / n_words,
        **errors,
    }


def answer_loss(
    logits_BTV: torch.Tensor, answers_BT: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Cross entropy at the steps where a word is to be said."""
    logits, answers = logits_BTV.flatten(0, 1), answers_BT.flatten()
    return F.cross_entropy(logits, answers, ignore_index=NO_ANSWER, reduction=reduction)


def draw(model: Any, x_BTV: torch.Tensor, answers_BT: torch.Tensor, vocabulary: Any) -> Any:
    """One story through the DNC: what it writes down, and what it reads to answer."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        logits_BTV, trace = model.unroll(x_BTV[:1])
    words = [vocabulary[i] for i in x_BTV[0].argmax(1).tolist()]
    for t in (answers_BT[0] >= 0).nonzero()[:, 0].tolist():
        said, wanted = int(logits_BTV[0, t].argmax()), int(answers_BT[0, t])
        words[t] += f" {vocabulary[said]}" + (
            "" if said == wanted else f" (not {vocabulary[wanted]})"
        )
    heads = range(trace[0][0].read_BRN.shape[1])
    pictures = {"written\nslot": torch.stack([s.write_BN[0] for s, _ in trace], 1)}
    for r in heads:
        pictures[f"slot read\nby head {r + 1}"] = torch.stack(
            [s.read_BRN[0, r] for s, _ in trace], 1
        )
    gates = {"write\ngate": "write_gate_B1", "allocation\ngate": "allocation_gate_B1"}
    for name, part in gates.items():
        pictures[name] = torch.stack([getattr(to, part)[0] for _, to in trace], 1)
    for r in heads:
        pictures[f"free gate\n{r + 1}"] = torch.stack(
            [to.free_gates_BR[0, r : r + 1] for _, to in trace], 1
        )
    figure = Figure(figsize=(11, 2.5 + 1.2 * len(pictures)), layout="constrained")
    ends = [t + 0.5 for t, word in enumerate(words) if word == "." or word.startswith("-")]
    rows = strips(figure, pictures, dict.fromkeys(ends, "0.75"))
    rows[-1].set_xticks(range(len(words)), words, rotation=90, fontsize=8)
    rows[-1].set_xlabel("word by word; after - what the net says")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    train, test, vocabulary = stories(cfg, ctx)
    model = build(cfg, len(vocabulary)).to(ctx.device)
    optimizer = optimizer_of(cfg, model)
    start = ctx.keep(model=model, optimizer=optimizer)
    call, groups = replayed(model, ctx.device), buckets(train)
    shares = torch.stack([weights.sum() for _, _, weights in groups])

    def one_hot(words_BT: torch.Tensor) -> torch.Tensor:
        return F.one_hot(words_BT, len(vocabulary)).float()

    def loss() -> torch.Tensor:
        length, members, weights = groups[int(shares.multinomial(1))]
        chosen_B = members[weights.multinomial(cfg.batch_size, replacement=True)]
        words_BT, answers_BT = train.batch(chosen_B.to(ctx.device), length)
        return answer_loss(call(one_hot(words_BT)), answers_BT)

    def scores(step: int) -> dict[str, float]:
        found = evaluated(lambda words_BT: model(one_hot(words_BT)), test)
        return {"step": step, "samples": step * cfg.batch_size, **found}

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
    if cfg.model != "lstm":
        # The second: among generated stories the first of a thing that is carried about.
        words_BT, answers_BT = test.batch(torch.tensor([1]), int(test.lengths_S[1]))
        ctx.figure("reading", lambda: draw(model, one_hot(words_BT), answers_BT, vocabulary))


OFFLINE = {
    "data": "generated",
    "slots": 16,
    "word": 16,
    "read_heads": 1,
    "optimizer": "adam",
    "lr": 5e-3,
    "clip": 1.0,
}
DNC_PAPER = (
    "Graves et al., Nature 2016, table 1: mean error 16.7 +- 7.6 %, 11.2 +- 5.4 failed tasks"
)
SMOKE = "calibrated: seed 0 ends at 2.17; knowing nothing of the 23 words costs ln 23 = 3.14"
LAPTOP = (
    "this project's contract, 4 answers in 5; seed 1000 ends at 0.12 and seed 1001 at 0.44, where "
    "saying the last place that was read is at 0.39: not every run finds its memory in this budget"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("Teaching a DNC to Read and Comprehend",),
    profiles={
        "smoke": {**OFFLINE, "hidden": 32, "iterations": 20, "eval_every": 5},
        "laptop": {
            **OFFLINE,
            "tasks": "1",
            "hidden": 64,
            "batch_size": 32,
            "iterations": 2_500,
            "eval_every": 250,
        },
        "paper": {},
    },
    variants={
        "dnc": {},
        "dnc_md": {"model": "dnc_md"},
        "book_link": {"model": "book_link"},
        "lstm": {"model": "lstm"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={
        "smoke": {"dnc": Target("test_loss", 2.5, "min", SMOKE)},
        "laptop": {"dnc": Target("error_1", 0.2, "min", LAPTOP)},
        "paper": {v: Target("mean_error", 0.167, "min", DNC_PAPER) for v in ("dnc", "dnc_md")},
    },
    claims=(
        Claim(
            "the DNC answers more questions than the LSTM",
            "mean_error",
            left="dnc",
            right="lstm",
            mode="min",
            source=f"{DNC_PAPER}; an LSTM 27.3 +- 0.8 %, as commonly quoted, not re-checked",
        ),
        Claim(
            "masked keys and cleared slots lower the mean error",
            "mean_error",
            left="dnc_md",
            right="dnc",
            mode="min",
            source="Csordas and Schmidhuber (2019), abstract: by 43 %, together with sharper links",
            profiles=("paper",),
        ),
        Claim(
            "the DNC fails at no more than 11 tasks of 20",
            "failed_tasks",
            left="dnc",
            right=11,
            mode="min",
            source=DNC_PAPER,
            profiles=("paper",),
        ),
    ),
    sweep={"lr": Range(1e-5, 1e-2, log=True), "hidden": Choice((64, 128, 256, 512))},
    gpu_first=("dnc", "dnc_md"),
)
