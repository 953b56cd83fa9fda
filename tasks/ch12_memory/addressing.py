"""Memory addressing: the book's equations entry by entry, beside one vectorised step.

Sections "NTM Memory Addressing Mechanisms" to "Understanding the DNC Read Head". The book gives
equations and no number. Here they are loops over slots and heads, in Python's own numbers; what is
judged against them is the step of `kernels.dnc` or `kernels.ntm` in the implementation that `impl`
names. Both run freely from an empty memory through `steps` random interfaces, whose gates are often
close to 0 or 1, in float64: with less, two usages that differ by rounding only would be sorted the
other way around, and then another slot is allocated. `error` is the largest difference of any entry
of the memory, the weightings, the usage, the links and the words read. `gradient_error` compares
the op's gradients with central differences of the loops, as a share of the largest.
`violation` is the worst of: a weighting leaves the simplex, usage leaves [0, 1], a row or column of
the link matrix sums to more than 1, or its diagonal is not 0.

Then a scripted controller uses the memory as a queue: it writes a few words (a random number of
them), reads the first by its content and the others along the links, frees what it reads, and so
on, until the memory has been filled several times. `read_back` is the share of words that come back
with all their signs. `dnc` is the paper's; `book_link` decays links by 1 - 2 w_i instead of
1 - w_i - w_j, as the 2nd edition's listing does (it adds V to V where V' is meant), which matters
as soon as a slot is written again; `no_allocation` writes by content alone, as a memory without
allocation must, and so writes interfere. `ntm` has the addressing of the NTM, and no queue.

`step_s` and `loop_s` are seconds a step of the op and of the loops; they are no targets.

Shapes: B = 1 batch, N slots, W word size, R read heads, H heads; K words of a round.
"""

import dataclasses
import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from kernels import dnc, ntm
from kernels.dnc import EPSILON, Interface, State
from suite.fields import Count
from suite.task import Claim, Target, Task
from tasks.models.equations import Matrix, dnc_by_loops, ntm_by_loops, stages, violations
from tasks.models.ntm import write as ntm_write

NUDGE = 1e-5
CERTAIN = 60.0


@dataclass(frozen=True)
class Config:
    machine: Literal["dnc", "ntm"] = "dnc"
    links: Literal["paper", "book"] = "paper"
    allocation: bool = True
    slots: Annotated[int, Interval(ge=2)] = 256
    word: Count = 64
    read_heads: Count = 4
    steps: Count = 40
    rounds: Count = 2
    impl: str = "torch"


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(1, *shape, dtype=torch.float64)


def random_dnc(cfg: Config) -> Interface:
    """Any interface; gates are within 1 % of an end one time in eight."""
    R, W = cfg.read_heads, cfg.word
    return Interface(
        read_keys_BRW=normal(R, W),
        read_strengths_BR=1 + normal(R, scale=3).abs(),
        write_key_B1W=normal(1, W),
        write_strength_B1=1 + normal(1, scale=3).abs(),
        erase_BW=normal(W, scale=3).sigmoid(),
        write_vector_BW=normal(W),
        free_gates_BR=normal(R, scale=3).sigmoid(),
        allocation_gate_B1=normal(1, scale=3).sigmoid(),
        write_gate_B1=normal(1, scale=3).sigmoid(),
        read_modes_BSR=normal(3, R, scale=3).softmax(1),
    )


def random_ntm(cfg: Config) -> tuple[ntm.Head, torch.Tensor, torch.Tensor]:
    """How to address, the erase vector and the vector that is added."""
    H, W = cfg.read_heads + 1, cfg.word
    head = ntm.Head(
        keys_BHW=normal(H, W),
        strengths_BH=normal(H, scale=3).abs(),
        gates_BH1=normal(H, 1, scale=3).sigmoid(),
        shifts_BHS=normal(H, 3, scale=3).softmax(2),
        sharpness_BH1=1 + normal(H, 1, scale=3).abs(),
    )
    return head, normal(W).sigmoid(), normal(W)


def dnc_by_op(state: State, to: Interface, cfg: Config) -> tuple[torch.Tensor, State]:
    return dnc.step(state, to, book=cfg.links == "book", impl=cfg.impl)


def ntm_by_op(state: Any, to: Any, cfg: Config) -> tuple[torch.Tensor, Any]:
    memory_BNW, weights_BHN = state
    head, erase_BW, vector_BW = to
    weights_BHN = ntm.address(memory_BNW, weights_BHN, head, impl=cfg.impl)
    memory_BNW = ntm_write(memory_BNW, weights_BHN[:, -1], erase_BW, vector_BW)
    return torch.bmm(weights_BHN[:, :-1], memory_BNW), (memory_BNW, weights_BHN)


def empty(cfg: Config, device: Any) -> Any:
    """The state of a memory that nothing was written to."""
    like = torch.zeros(1, dtype=torch.float64, device=device)
    if cfg.machine == "dnc":
        return dnc.blank(like, 1, cfg.slots, cfg.word, cfg.read_heads)
    weights_BHN = like.new_full((1, cfg.read_heads + 1, cfg.slots), 1 / cfg.slots)
    return like.new_full((1, cfg.slots, cfg.word), EPSILON), weights_BHN


def mapped(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Tuples of what becomes of the tensors in tuples."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    parts = [mapped(change, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def listed(tree: Any) -> Any:
    """The first of a batch as Python's numbers."""
    return mapped(lambda t: t[0].tolist(), tree)


def leaves(tree: Any) -> list[torch.Tensor]:
    """The tensors in tuples, in order."""
    found: list[torch.Tensor] = []
    mapped(found.append, tree)
    return found


def gap(found: Any, loops: Any) -> float:
    """Largest difference of an entry."""
    if isinstance(found, torch.Tensor):
        return float((found[0].cpu() - torch.tensor(loops, dtype=torch.float64)).abs().max())
    return max(gap(f, by_loop) for f, by_loop in zip(found, loops, strict=True))


def compared(cfg: Config, device: torch.device) -> dict[str, float]:
    """The op and the loops over random interfaces, each from what it made itself."""
    drawn, by_op, by_loops = MACHINES[cfg.machine]
    state = empty(cfg, device)
    lists, spent = listed(state), [0.0, 0.0]
    worst = dict.fromkeys(("error", *violations(state)), 0.0)
    for _ in range(cfg.steps):
        to = drawn(cfg)
        begin = time.perf_counter()
        words_BRW, state = by_op(state, mapped(lambda t: t.to(device), to), cfg)
        between = time.perf_counter()
        words, lists = by_loops(lists, listed(to))
        spent = [spent[0] + between - begin, spent[1] + time.perf_counter() - between]
        now = {"error": max(gap(words_BRW, words), gap(state, lists)), **violations(state)}
        worst = {name: max(value, worst[name]) for name, value in now.items()}
    worst["violation"] = max(value for name, value in worst.items() if name != "error")
    return worst | {"step_s": spent[0] / cfg.steps, "loop_s": spent[1] / cfg.steps}


def gradient_error(cfg: Config, device: torch.device, steps: int = 3) -> float:
    """Gradients of a random sum of the words read, against central differences of the loops."""
    drawn, by_op, by_loops = MACHINES[cfg.machine]
    inputs = [drawn(cfg) for _ in range(steps)]
    cotangents = [normal(cfg.read_heads, cfg.word) for _ in range(steps)]

    def total(step: Callable[..., Any], state: Any, given: Any, weights: Any, dot: Any) -> Any:
        result = 0.0
        for to, weight in zip(given, weights, strict=True):
            words, state = step(state, to)
            result = result + dot(words, weight)
        return result

    def moved(leaf: torch.Tensor, i: int, by: float) -> float:
        leaf.view(-1)[i] += by
        value = total(by_loops, listed(start), listed(inputs), listed(cotangents), sums_up)
        leaf.view(-1)[i] -= by
        return value

    start = empty(cfg, "cpu")
    with torch.enable_grad():
        tensors = [t.requires_grad_() for t in leaves(inputs)]
        there = mapped(lambda t: t.to(device), (start, tuple(inputs), tuple(cotangents)))
        loss = total(functools.partial(by_op, cfg=cfg), *there, lambda a, b: (a * b).sum())
        found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    slopes, grads = [], torch.cat([g.flatten() for g in found])
    for leaf in (t.detach() for t in tensors):
        for i in range(leaf.numel()):
            slopes.append((moved(leaf, i, NUDGE) - moved(leaf, i, -NUDGE)) / (2 * NUDGE))
    truth = torch.tensor(slopes, dtype=torch.float64)
    return float((grads - truth).abs().max() / truth.abs().max())


def sums_up(words: Matrix, weights: Matrix) -> float:
    pairs = zip(words, weights, strict=True)
    return sum(a * b for row, other in pairs for a, b in zip(row, other, strict=True))


MACHINES: dict[str, Any] = {
    "dnc": (random_dnc, dnc_by_op, dnc_by_loops),
    "ntm": (random_ntm, ntm_by_op, ntm_by_loops),
}


def command(
    cfg: Config, *, write: Any = None, key: Any = None, free: float = 0.0, allocate: bool = True
) -> Interface:
    """What a controller says that writes a word, or reads: by content, else along the links."""
    R, W = cfg.read_heads, cfg.word
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    word_1W = torch.zeros(1, W).double() if write is None else write[None]
    key_1W = torch.zeros(1, W).double() if key is None else key[None]
    modes_1S1 = (zero if key is None else one) * torch.tensor([[[0.0], [1.0], [0.0]]]).double()
    modes_1S1[:, 2] += float(write is None and key is None)
    return Interface(
        read_keys_BRW=key_1W[:, None].expand(1, R, W),
        read_strengths_BR=CERTAIN * one.expand(1, R),
        write_key_B1W=word_1W[:, None],
        write_strength_B1=CERTAIN * one,
        erase_BW=one.expand(1, W),
        write_vector_BW=word_1W,
        free_gates_BR=torch.cat((free * one, zero.expand(1, R - 1)), 1),
        allocation_gate_B1=one if allocate else zero,
        write_gate_B1=zero if write is None else one,
        read_modes_BSR=modes_1S1.expand(1, 3, R),
    )


def script(cfg: Config, rounds: int) -> list[tuple[Interface, torch.Tensor | None]]:
    """Commands of a queue, and the word that each should read.

    What a step reads is freed by the next one, by 0.99999 to 1: freed slots differ a little, so
    they are allocated in another order the next time.
    """
    said: list[tuple[Interface, torch.Tensor | None]] = []
    free = 0.0
    for _ in range(rounds):
        n = random.randint(cfg.slots // 2, cfg.slots - 1)
        words_KW = 2.0 * torch.randint(2, (n, cfg.word)).double() - 1
        for word_W in words_KW:
            said.append((command(cfg, write=word_W, free=free, allocate=cfg.allocation), None))
            free = 0.0
        for i, word_W in enumerate(words_KW):
            said.append((command(cfg, key=None if i else word_W, free=free), word_W))
            free = random.uniform(0.99999, 1.0)
    return said


def queue(cfg: Config, device: torch.device) -> tuple[dict[str, float], list[tuple[State, Any]]]:
    """How many words come back, and what the memory was told and held at each step."""
    state, right, trace = empty(cfg, device), [], []
    for to, wanted_W in script(cfg, cfg.rounds):
        words_BRW, state = dnc_by_op(state, mapped(lambda t: t.to(device), to), cfg)
        trace.append((state, to))
        if wanted_W is not None:
            right.append(bool((words_BRW[0, 0].cpu() * wanted_W > 0).all()))
    return {
        "read_back": sum(right) / len(right),
        "words_per_slot": len(right) / cfg.slots,
    }, trace


def draw_queue(trace: list[tuple[State, Any]]) -> Any:
    """Where the queue writes and reads, what is in use, and the links after two rounds' writes."""
    from matplotlib.figure import Figure

    writes = [float(to.write_gate_B1) == 1 for _, to in trace]
    written = [t for t in range(len(writes) - 1) if writes[t] and not writes[t + 1]]
    shown = written[:4][-1]
    trace = trace[: shown + 1]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    rows = left.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 2))
    pictures = {
        "written\nslot": torch.stack([s.write_BN[0] for s, _ in trace], 1),
        "slot\nin use": torch.stack([s.usage_BN[0] for s, _ in trace], 1),
        "read\nslot": torch.stack([s.read_BRN[0, 0] for s, _ in trace], 1),
    }
    shade = {"cmap": "cividis", "vmin": 0, "vmax": 1, "origin": "lower"}
    for ax, (name, image_NT) in zip(rows, pictures.items(), strict=False):
        image = ax.imshow(image_NT.cpu().numpy(), aspect="auto", **shade)
        ax.set_ylabel(name)
        ax.yaxis.get_major_locator().set_params(integer=True)
    left.colorbar(image, ax=rows[:3], label="weight, or usage", aspect=40)
    gates = (("write", "write_gate_B1", "#009E73", "-"), ("free", "free_gates_BR", "#D55E00", "--"))
    for name, part, colour, line in gates:
        values = [float(getattr(to, part)[0, 0]) for _, to in trace]
        rows[3].step(range(len(trace)), values, line, where="mid", color=colour, label=name)
    rows[3].set(xlabel="time step", ylabel="gate", ylim=(-0.1, 1.1), xlim=(-0.5, shown + 0.5))
    rows[3].legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    squares = right.subplots(2, 1, sharex=True)
    for ax, t in zip(squares, written, strict=False):
        links_NN = trace[t][0].link_BNN[0].cpu().numpy()
        image = ax.imshow(links_NN, cmap="PuOr", vmin=-1, vmax=1, origin="lower")
        ax.set(ylabel="slot i, written after")
        ax.set_title(f"temporal links after step {t}", size=10)
    squares[-1].set(xlabel="slot j, written before")
    right.colorbar(image, ax=squares, label="L[i, j]", aspect=40)
    return figure


def draw_stages(cfg: Config) -> Any:
    """One weighting of the NTM on its way: by content, interpolated, shifted, sharpened."""
    from matplotlib.figure import Figure

    words_NW = normal(cfg.slots, cfg.word)[0]
    key_W = words_NW[cfg.slots // 4] + 0.3 * normal(cfg.word)[0]
    last_N = torch.zeros(cfg.slots).index_fill_(0, torch.tensor(3 * cfg.slots // 4), 1.0).tolist()
    arguments = (words_NW.tolist(), last_N, key_W.tolist(), 8.0, 0.6, [0.1, 0.1, 0.8], 3.0)
    names = (
        "by content: which words are like the key?",
        "interpolated with the last weighting (gate 0.6)",
        "shifted by one slot, a little blurred",
        "sharpened (exponent 3)",
    )
    figure = Figure(figsize=(7, 6), layout="constrained")
    rows = figure.subplots(4, 1, sharex=True, sharey=True)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for ax, name, colour, weights_N in zip(rows, names, colours, stages(*arguments), strict=True):
        ax.bar(range(cfg.slots), weights_N, color=colour)
        ax.set_title(name, size=9, loc="left")
        ax.set(ylabel="weight", ylim=(0, 1))
    rows[-1].set(xlabel="slot")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    small = dataclasses.replace(cfg, slots=4, word=3, read_heads=min(2, cfg.read_heads))
    if ctx.keep():
        return
    yield
    found, trace = compared(cfg, ctx.device), []
    found |= {"step": cfg.steps, "gradient_error": gradient_error(small, ctx.device)}
    if cfg.machine == "dnc":
        queued, trace = queue(dataclasses.replace(cfg, read_heads=1), ctx.device)
        found |= queued
    yield found
    if trace:
        ctx.figure("queue", lambda: draw_queue(trace))
    else:
        ctx.figure("stages", lambda: draw_stages(cfg))


EQUATIONS = "Graves et al., Nature 2016, Methods, and 2014, section 3.3: the equations themselves; "
CONTRACT = f"{EQUATIONS}1e-5 is this project's contract"
LISTING = "section 'Implementing the DNC in PyTorch': the listing adds V to V, not to V transposed"
ERROR = Target(
    "error",
    1e-5,
    "min",
    f"{CONTRACT}; 20 seeds from 1000 have at most 2e-14 in 1,000 steps, and a step whose links "
    "decay as listed at least 1",
)

TASK = Task(
    config=Config(),
    run=run,
    sections=(
        "NTM Memory Addressing Mechanisms",
        "Interference-Free Writing in DNCs",
        "DNC Memory Reuse",
        "Temporal Linking of DNC Writes",
        "Understanding the DNC Read Head",
    ),
    profiles={
        "smoke": {"slots": 5, "word": 16, "read_heads": 2, "steps": 50, "rounds": 4},
        "laptop": {"slots": 8, "word": 16, "read_heads": 2, "steps": 1_000, "rounds": 8},
        "paper": {},
    },
    variants={
        "dnc": {},
        "book_link": {"links": "book"},
        "no_allocation": {"allocation": False},
        "ntm": {"machine": "ntm"},
    },
    impls=("torch", "reference", "compile", "triton"),
    targets={p: {"dnc": ERROR, "ntm": ERROR} for p in ("smoke", "laptop", "paper")},
    claims=(
        Claim(
            "the DNC's weightings, usage and links stay in their ranges",
            "violation",
            left="dnc",
            right=1e-9,
            mode="min",
            source="Graves et al., Nature 2016, Methods: the sets that they are defined on",
        ),
        Claim(
            "the NTM's weightings stay in the simplex",
            "violation",
            left="ntm",
            right=1e-9,
            mode="min",
            source="Graves et al. (2014), equation 1: weights between 0 and 1 that sum to 1",
        ),
        Claim(
            "the DNC step's gradients are those of the equations",
            "gradient_error",
            left="dnc",
            right=1e-5,
            mode="min",
            source=CONTRACT,
        ),
        Claim(
            "the NTM's gradients are those of the equations",
            "gradient_error",
            left="ntm",
            right=1e-5,
            mode="min",
            source=CONTRACT,
        ),
        Claim(
            "the listing computes the link matrix of the equations",
            "error",
            left="book_link",
            right=1e-5,
            mode="min",
            source=LISTING,
            note="The book states the paper's equation, but its listing decays links by 1 - 2 w_i, "
            "so a link from a slot that is written again stays, with its sign turned.",
        ),
        Claim(
            "words come back in the order of writing, though slots have been used again",
            "read_back",
            left="dnc",
            right=0.99,
            mode="max",
            source="sections 'DNC Memory Reuse' and 'Temporal Linking of DNC Writes': said in "
            "words, without a number",
        ),
        Claim(
            "so they do with the listing's link matrix",
            "read_back",
            left="book_link",
            right=0.99,
            mode="max",
            source=LISTING,
            note="The book's links are to lead from each write to the next; as listed, old links "
            "survive where a slot is written again, and reading along them goes astray.",
        ),
        Claim(
            "writing by allocation does not interfere with what is stored, writing by content does",
            "read_back",
            left="dnc",
            right="no_allocation",
            mode="max",
            margin=0.5,
            source="section 'Interference-Free Writing in DNCs': said in words, without a number",
        ),
    ),
)
