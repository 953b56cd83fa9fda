"""Extractive rationalisation: which words of a review carry its sentiment?

Section "Extractive Rationalization". A generator reads x and gates its words, z in {0, 1}; an
encoder sees the gated words only and predicts y. After Lei, Barzilay and Jaakkola (2016) they
minimise together

    E_z [ -log p(y | z x) + lambda1 mean(z) + lambda2 mean(|z_t - z_t-1|) ]:

few words (`sparsity`), in contiguous passages (`coherence`), and nobody says which. The book has no
listing and no figure. Lei et al. have precisions of 80 to 96 % (as commonly quoted, not re-checked)
on beer reviews that are no longer given out; here the evidence was planted, or marked by people.

- `reinforce` draws z and moves the generator by the likelihood ratio (REINFORCE); the baseline of a
  draw is the mean cost of the other draws for the same review.
- `hardkuma` stretches and clips Kumaraswamy variables (Bastings, Aziz and Titov, 2019), which are
  exactly 0 or 1 with positive probability and differentiable between; the penalties are exact
  expectations. A word is chosen if its gate is more often open than 0.
- `scattered` is `hardkuma` without the coherence term.
- `attention` classifies the attention-weighted mean of all words, as the naive reading of attention
  has it: its rationale are the `share` of words with the largest weights, as many as there are in
  the evidence.
- `full` predicts from all words; it bounds the accuracy that a rationale may keep.

`precision`, `recall` and `f1` compare chosen words with evidence, over all test reviews that have
any, and `lift` is the precision over that of words drawn at random; `selected` is the share of
words chosen, `fragments` the number of passages in a review, and `test_accuracy` that of the
prediction from the gated words alone (of `attention` from all words).

The planted reviews, 40 words long, speak of look, smell and taste in random order: the aspect's
name and five words of praise or blame, 85 % of which agree with the writer's opinion of it, in
between words that mean nothing. The label is the opinion of the look, so the evidence is the five
words after "look", alike in kind to the ten that are no evidence. With `movie_rationales` (Pang and
Lee, 2004) people marked 7 % of the words of 100 test reviews. Departures from the paper: both nets
are a convolution instead of a recurrent net, and the penalties grow from 0 to their full size over
the whole training, without which the gates may close for good before the encoder has learnt.

Shapes: B batch, T words, D embedding, H hidden, K classes, S draws.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from suite.fields import BelowOne, Count, NonNegative, Positive, Share
from suite.fit import fit
from suite.task import Claim, Target, Task

# The support (LEFT, RIGHT) that Kumaraswamy variables are stretched to before clipping.
LEFT, RIGHT = -0.1, 1.1
ASPECTS = ("look", "smell", "taste")
SPAN = 5
PRAISE = (
    "fine great lovely rich bright superb pleasant perfect elegant splendid clear inviting warm "
    "crisp gorgeous charming"
)
BLAME = "dull poor awful thin murky flat dreadful stale sour muddy bland harsh cheap weak grim ugly"
FILLER = (
    "the a and of this one bottle glass poured we had it with from was that on evening friend "
    "table brewery beer label visit some then again which they our by street before market at "
    "there while about another dinner city said you will"
)
VOCABULARY = ("<pad>", *ASPECTS, *f"{PRAISE} {BLAME} {FILLER}".split())


@dataclass(frozen=True)
class Config:
    data: str = "movie_rationales"
    method: Literal["reinforce", "hardkuma", "attention", "full"] = "reinforce"
    sparsity: Share = 0.3
    coherence: NonNegative = 0.5
    share: Annotated[float, Interval(gt=0, le=1)] = 0.07
    draws: Annotated[int, Interval(ge=2)] = 2
    embedding: Count = 32
    hidden: Count = 32
    width: Count = 3
    dropout: BelowOne = 0.3
    lr: Positive = 5e-3
    batch_size: Count = 16
    epochs: Count = 8
    reviews: Count = 1600


def planted(n: int, length: int = 40, agree: float = 0.85) -> tuple[torch.Tensor, ...]:
    """Reviews, their lengths, their opinion of the look and the evidence: x_NT, n_N, y_N, z_NT."""
    first = len(ASPECTS) + 1
    sizes = [len(words.split()) for words in (PRAISE, BLAME, FILLER)]
    praise, blame, filler = (torch.arange(sum(sizes)) + first).split(sizes)
    opinion_NA = torch.randint(2, (n, len(ASPECTS)))
    x_NT = filler[torch.randint(len(filler), (n, length))]
    z_NT = torch.zeros(n, length, dtype=torch.bool)
    free = length - len(ASPECTS) * (SPAN + 1)
    gap_NA = torch.randint(free + 1, (n, len(ASPECTS))).sort(1).values
    order_NA = torch.rand(n, len(ASPECTS)).argsort(1)
    for place, aspect_N in enumerate(order_NA.T):
        start_N1 = gap_NA[:, place, None] + place * (SPAN + 1)
        x_NT.scatter_(1, start_N1, 1 + aspect_N[:, None])
        said_NL = opinion_NA.gather(1, aspect_N[:, None]) == (torch.rand(n, SPAN) < agree)
        index = torch.randint(len(praise), (n, SPAN))
        words_NL = torch.where(said_NL, praise[index], blame[index])
        at_NL = start_N1 + 1 + torch.arange(SPAN)
        x_NT.scatter_(1, at_NL, words_NL)
        z_NT.scatter_(1, at_NL, (aspect_N == 0)[:, None].expand(-1, SPAN))
    return x_NT, torch.full((n,), length), opinion_NA[:, 0], z_NT


class Reader(nn.Module):
    """Words x_BT, perhaps gated, to n_out numbers a word, or to hidden_BTH before that."""

    def __init__(self, n_words: int, n_out: int, cfg: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, cfg.embedding, padding_idx=0)
        self.dropout = nn.Dropout(cfg.dropout)
        self.convolution = nn.Conv1d(cfg.embedding, cfg.hidden, cfg.width, padding=cfg.width // 2)
        self.out = nn.Linear(cfg.hidden, n_out)

    def hidden(self, x_BT: torch.Tensor, z_BT: torch.Tensor) -> torch.Tensor:
        words_BTD = self.dropout(self.embedding(x_BT)) * z_BT[..., None]
        return self.convolution(words_BTD.mT).relu().mT

    def forward(self, x_BT: torch.Tensor, z_BT: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x_BT, z_BT))


class Kumaraswamy:
    """Stretched and clipped: P(z = 0), P(z = 1) > 0, and a density between (Bastings et al.)."""

    def __init__(self, raw_BT2: torch.Tensor) -> None:
        self.a_BT, self.b_BT = (F.softplus(raw_BT2) + 1e-2).unbind(-1)

    def below(self, k: float) -> torch.Tensor:
        """P(k_BT <= k) = 1 - (1 - k^a)^b of the variable before stretching."""
        return 1 - (1 - k**self.a_BT) ** self.b_BT

    def closed(self) -> torch.Tensor:
        """P(z_BT = 0)."""
        return self.below(-LEFT / (RIGHT - LEFT))

    def sample(self) -> torch.Tensor:
        u_BT = torch.rand_like(self.a_BT).clamp(1e-6, 1 - 1e-6)
        k_BT = (1 - (1 - u_BT) ** (1 / self.b_BT)) ** (1 / self.a_BT)
        return (LEFT + (RIGHT - LEFT) * k_BT).clamp(0, 1)


def penalty(open_BT: torch.Tensor, real_BT: torch.Tensor, cfg: Config) -> torch.Tensor:
    """What the gates of a review cost, cost_B, for P(z = 1), which may be 0 or 1.

    Neighbours differ with probability p (1 - q) + (1 - p) q.
    """
    open_BT, n_B = open_BT * real_BT, real_BT.sum(1)
    p_BT, q_BT = open_BT[:, :-1], open_BT[:, 1:]
    differ_BT = (p_BT + q_BT - 2 * p_BT * q_BT) * real_BT[:, 1:]
    return (cfg.sparsity * open_BT.sum(1) + cfg.coherence * differ_BT.sum(1)) / n_B


class Rationaliser(nn.Module):
    """A generator of gates and an encoder of what they let through."""

    def __init__(self, n_words: int, n_classes: int, n_updates: int, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.generator = Reader(n_words, 2 if cfg.method == "hardkuma" else 1, cfg)
        self.encoder = Reader(n_words, n_classes, cfg)
        self.n_all = n_updates
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    def encode(self, x_BT: torch.Tensor, z_BT: torch.Tensor) -> torch.Tensor:
        """Gated words to logits_BK: the mean of what is read at the open gates."""
        read_BTH = self.encoder.hidden(x_BT, z_BT)
        mean_BH = (read_BTH * z_BT[..., None]).sum(1) / (z_BT.sum(1, keepdim=True) + 1e-3)
        return self.encoder.out(mean_BH)

    def attend(self, x_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of all words' attention-weighted mean, and the weights."""
        read_BTH = self.generator.hidden(x_BT, (x_BT > 0).float())
        scores_BT = self.generator.out(read_BTH)[..., 0].masked_fill(x_BT == 0, -torch.inf)
        weight_BT = scores_BT.softmax(1)
        return self.encoder.out((weight_BT[..., None] * read_BTH).sum(1)), weight_BT

    def loss(self, x_BT: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """A scalar whose gradient is the cost's, or an unbiased estimate of it."""
        self.n_updates += 1
        warmth = self.n_updates / self.n_all
        real_BT = (x_BT > 0).float()
        if self.cfg.method == "attention":
            return F.cross_entropy(self.attend(x_BT)[0], y_B)
        if self.cfg.method == "full":
            return F.cross_entropy(self.encode(x_BT, real_BT), y_B)
        raw_BTC = self.generator(x_BT, real_BT)
        if self.cfg.method == "hardkuma":
            gates = Kumaraswamy(raw_BTC)
            cost = F.cross_entropy(self.encode(x_BT, gates.sample() * real_BT), y_B)
            return cost + warmth * penalty(1 - gates.closed(), real_BT, self.cfg).mean()
        return self.likelihood_ratio(raw_BTC[..., 0], x_BT, y_B, warmth)

    def likelihood_ratio(
        self, raw_BT: torch.Tensor, x_BT: torch.Tensor, y_B: torch.Tensor, warmth: torch.Tensor
    ) -> torch.Tensor:
        """REINFORCE for the generator and the plain gradient for the encoder, over S draws."""
        S, real_BT = self.cfg.draws, (x_BT > 0).float()
        z_SBT = torch.bernoulli(raw_BT.detach().sigmoid().expand(S, -1, -1)) * real_BT
        logits_SBK = self.encode(x_BT.repeat(S, 1), z_SBT.flatten(0, 1))
        error_SB = F.cross_entropy(logits_SBK, y_B.repeat(S), reduction="none").view(S, -1)
        gates_SB = torch.stack([penalty(z_BT, real_BT, self.cfg) for z_BT in z_SBT])
        cost_SB = error_SB.detach() + warmth * gates_SB
        advantage_SB = (cost_SB - cost_SB.mean(0)) * S / (S - 1)
        surprise_SBT = F.binary_cross_entropy_with_logits(
            raw_BT.expand(S, -1, -1), z_SBT, reduction="none"
        )
        return error_SB.mean() - (advantage_SB * (surprise_SBT * real_BT).sum(2)).mean()

    def forward(self, x_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions logits_BK and the rationale z_BT, without chance."""
        real_BT = x_BT > 0
        if self.cfg.method == "attention":
            logits_BK, weight_BT = self.attend(x_BT)
            rank_BT = weight_BT.argsort(1, descending=True).argsort(1)
            return logits_BK, rank_BT < (self.cfg.share * real_BT.sum(1, keepdim=True)).round()
        if self.cfg.method == "full":
            return self.encode(x_BT, real_BT.float()), real_BT
        raw_BTC = self.generator(x_BT, real_BT.float())
        if self.cfg.method == "hardkuma":
            chosen_BT = Kumaraswamy(raw_BTC).closed() < 0.5
        else:
            chosen_BT = raw_BTC[..., 0] > 0
        z_BT = chosen_BT & real_BT
        return self.encode(x_BT, z_BT.float()), z_BT


def scores(chosen_BT: torch.Tensor, evidence_BT: torch.Tensor, n_words: int) -> dict[str, float]:
    """Precision, recall, F1 and lift over all words together; 0 where nothing is chosen."""
    hits, n_chosen = int((chosen_BT & evidence_BT).sum()), int(chosen_BT.sum())
    n_evidence = int(evidence_BT.sum())
    return {
        "precision": hits / max(1, n_chosen),
        "recall": hits / max(1, n_evidence),
        "f1": 2 * hits / max(1, n_chosen + n_evidence),
        "lift": hits / max(1, n_chosen) / (n_evidence / n_words),
    }


def fragments(z_BT: torch.Tensor) -> torch.Tensor:
    """The number of passages, n_B."""
    return F.pad(z_BT.long(), (1, 0)).diff(dim=1).clamp(min=0).sum(1)


def clipped(x_BT: torch.Tensor, y_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch without the columns that are padding in all of its rows."""
    return x_BT[:, : int((x_BT > 0).sum(1).max())].long(), y_B


def set_lines(words: list[str], columns: int) -> tuple[list[tuple[int, int]], int]:
    """The column and the line at which each word begins, and the number of lines."""
    places, column, line = [], 0, 0
    for word in words:
        if column and column + len(word) > columns:
            column, line = 0, line + 1
        places.append((column, line))
        column += len(word) + 1
    return places, line + 1


def draw_rationales(reviews: list[Any], title: str) -> Any:
    """Each review's words, the chosen ones on a ground of colour, the evidence underlined."""
    from matplotlib.figure import Figure

    columns, size, gap = 100, 8, 1.5
    settled = [set_lines(words, columns) for _, words, _, _ in reviews]
    lines = sum(n + 2 for _, n in settled)
    # DejaVu Sans Mono advances by 0.602 of its size; half an inch is for the title.
    width, height = columns * 0.602 * size / 72 + 0.4, lines * gap * size / 72 + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.2 / width, 0, 1 - 0.4 / width, 1 - 0.5 / height))
    axes.set(xlim=(0, columns), ylim=(lines - 0.5, -0.5))
    axes.axis("off")
    style, top = {"family": "monospace", "size": size, "va": "center"}, 0
    for (heading, words, z_T, evidence_T), (places, n) in zip(reviews, settled, strict=True):
        axes.text(0, top, heading, weight="bold", **style)
        for i, (column, line) in enumerate(places):
            at, length = top + 1 + line, len(words[i])
            if z_T[i]:
                axes.barh(at, length, 0.8, left=column, color="#56B4E9", alpha=0.7)
            if evidence_T[i]:
                axes.plot((column, column + length), (at + 0.38,) * 2, color="#D55E00", lw=1.3)
            axes.text(column, at, words[i], **style)
        top += n + 2
    figure.text(0.5, 1 - 0.25 / height, title, size=10, ha="center", va="center")
    return figure


def window(z_T: torch.Tensor, evidence_T: torch.Tensor, most: int) -> slice:
    """The ``most`` consecutive words with the most chosen or marked ones among them."""
    weight_T = F.pad((z_T | evidence_T).float().cumsum(0), (1, 0))
    gain = weight_T[most:] - weight_T[:-most] if len(z_T) > most else weight_T[:1]
    start = int(gain.argmax())
    return slice(start, start + most)


def run(cfg: Config, ctx: Any) -> Any:
    if cfg.data == "planted":
        parts = planted(cfg.reviews + 1000)
        train, test = ([t[rows] for t in parts] for rows in (slice(1000, None), slice(1000)))
        vocabulary, names = VOCABULARY, ("blames the look", "praises the look")
    else:
        source = ctx.data(cfg.data)
        train, test = (list(split) for split in (source.train, source.test))
        vocabulary, names = source.vocabulary, source.class_names
    x, _, y, _ = (t.to(ctx.device) for t in train)
    x_test, _, y_test, evidence = (t.to(ctx.device) for t in test)
    annotated = evidence.any(1)
    n_updates = cfg.epochs * -(-len(x) // cfg.batch_size)
    model = Rationaliser(len(vocabulary), len(names), n_updates, cfg).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    start = ctx.keep(model=model, optimizer=optimizer)

    def loss(model: Any, x_BT: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return model.loss(*clipped(x_BT, y_B))

    @torch.no_grad()
    def read(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, right = torch.zeros_like(evidence), []
        for rows in torch.arange(len(x_test), device=ctx.device).split(100):
            x_BT, y_B = clipped(x_test[rows], y_test[rows])
            logits_BK, z_BT = model(x_BT)
            chosen[rows, : x_BT.shape[1]] = z_BT
            right.append(logits_BK.argmax(1) == y_B)
        return chosen, torch.cat(right)

    def evaluate(model: Any) -> dict[str, float]:
        chosen, right = read(model)
        return {
            **scores(chosen[annotated], evidence[annotated], int((x_test[annotated] > 0).sum())),
            "test_accuracy": float(right.float().mean()),
            "selected": float(chosen.sum() / (x_test > 0).sum()),
            "fragments": float(fragments(chosen).float().mean()),
        }

    yield
    yield from fit(
        model,
        (x, y),
        loss,
        evaluate,
        optimizer,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        start=start,
    )
    chosen, right = read(model.eval())

    def draw() -> Any:
        reviews = []
        for i in annotated.nonzero()[:4, 0].tolist():
            n_words = int((x_test[i] > 0).sum())
            seen = window(chosen[i, :n_words], evidence[i, :n_words], 60)
            words = [vocabulary[t] for t in x_test[i, :n_words][seen].tolist()]
            heading = f"{names[y_test[i]]}, predicted {'right' if right[i] else 'wrong'}"
            reviews.append((heading, words, chosen[i, seen].tolist(), evidence[i, seen].tolist()))
        return draw_rationales(reviews, f"{cfg.method}: chosen words in blue, evidence underlined")

    ctx.figure("rationales", draw)


CONTRACT = "this project's contract for the section"
PLANTED = {
    "data": "planted",
    "sparsity": 1.0,
    "share": 0.125,
    "hidden": 64,
    "width": 11,
    "dropout": 0.0,
    "lr": 3e-3,
    "batch_size": 64,
}

TASK = Task(
    config=Config(),
    run=run,
    sections=("Extractive Rationalization",),
    profiles={
        "smoke": {**PLANTED, "epochs": 3, "reviews": 400},
        "laptop": {**PLANTED, "epochs": 10, "reviews": 2000},
        "paper": {},
    },
    variants={
        "reinforce": {},
        "hardkuma": {"method": "hardkuma"},
        "scattered": {"method": "hardkuma", "coherence": 0.0},
        "attention": {"method": "attention"},
        "full": {"method": "full"},
    },
    targets={
        "smoke": {
            "reinforce": Target(
                "selected", 0.5, "min", f"{CONTRACT}: gates that are drawn open half of the words"
            )
        },
        "laptop": {
            "reinforce": Target(
                "f1",
                0.9,
                "max",
                "calibrated: 5 seeds from 1000, worst 0.938; after half of the epochs at "
                "most 0.844",
            )
        },
        "paper": {
            "reinforce": Target(
                "lift",
                1.2,
                "max",
                f"{CONTRACT}: the words that people marked, more often than by chance. One seed, "
                "1000, has 1.23, and 1.13 after half of the epochs: provisional",
            )
        },
    },
    claims=(
        Claim(
            "the rationale that REINFORCE learns has more of the evidence than attention's",
            "f1",
            left="reinforce",
            right="attention",
            mode="max",
            margin=0.1,
            source=CONTRACT,
            profiles=("laptop",),
        ),
        Claim(
            "the rationale of relaxed gates has more of the evidence than attention's",
            "f1",
            left="hardkuma",
            right="attention",
            mode="max",
            margin=0.1,
            source=CONTRACT,
            profiles=("laptop",),
        ),
        Claim(
            "of real reviews too, relaxed gates choose what people marked more than attention does",
            "lift",
            left="hardkuma",
            right="attention",
            mode="max",
            profiles=("paper",),
            source=CONTRACT,
            note="That is claimed of learnt rationales; with one seed, 1000, attention had 2.0 and "
            "the gates 1.7: their encoder learns 25,000 words from 1,600 reviews through them.",
        ),
        Claim(
            "relaxed gates get there in fewer updates than REINFORCE",
            "steps_to_target",
            left="hardkuma",
            right="reinforce",
            mode="min",
            profiles=("laptop",),
            source="Bastings, Aziz and Titov (2019): a gradient that passes through the gates",
        ),
        Claim(
            "an eighth of the words predicts within two points of all of them, which have 96 %",
            "test_accuracy",
            left="reinforce",
            right=0.94,
            mode="max",
            profiles=("laptop",),
            source=f"{CONTRACT}; the level is calibrated: `full` has 0.960 with 5 seeds from 1000",
        ),
        Claim(
            "the coherence term joins the chosen words to fewer passages",
            "fragments",
            left="hardkuma",
            right="scattered",
            mode="min",
            source="Lei, Barzilay and Jaakkola (2016), equation 2",
            note="Planted evidence is mostly chosen as one passage without the term too, its words "
            "being contiguous: with 4 of 5 seeds from 1000 there were fewer passages with it.",
        ),
    ),
)
