"""Short stories with questions, as sequences of words: bAbI's, and three kinds that are generated.

A corpus has the form of ``suite.data.babi``: its stories stand one after the other, and at a word
``-`` of the text an answer is to be said. Generated are the likes of bAbI's tasks 1 (where is a
person?), 2 (where is a thing that people carry about?) and 6 (is a person there?), with 4 people, 6
places and 3 things, without words that say nothing.

Shapes: S stories, M words of all stories, B batch, T words of the longest story of a batch.
"""

import random
from typing import NamedTuple

import torch
from torch.nn import functional as F

PEOPLE = ("daniel", "john", "mary", "sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
VOCABULARY = ("-", ".", "?", *PEOPLE, *PLACES, *THINGS, "went", "got", "dropped")
VOCABULARY += ("where", "is", "yes", "no")
KINDS = (1, 2, 6)
FEWEST_FACTS = 2
NO_ANSWER = -1


class Corpus(NamedTuple):
    """Stories: where each begins and ends, its task, and the words and answers of all.

    Attributes:
        spans_S2: begin and end of each story in what follows.
        tasks_S: the number of each story's task.
        words_M: ids.
        answers_M: the id of the word to say where the word is ``-``, else -1.
    """

    spans_S2: torch.Tensor
    tasks_S: torch.Tensor
    words_M: torch.Tensor
    answers_M: torch.Tensor

    @property
    def lengths_S(self) -> torch.Tensor:
        """Words in each story."""
        return self.spans_S2[:, 1] - self.spans_S2[:, 0]

    def of(self, chosen_S: torch.Tensor) -> "Corpus":
        """Some of the stories: a mask, or indices."""
        return self._replace(spans_S2=self.spans_S2[chosen_S], tasks_S=self.tasks_S[chosen_S])

    def on(self, device: torch.device) -> "Corpus":
        """The same stories with their tensors on ``device``."""
        return Corpus(*(t.to(device) for t in self))

    def batch(self, index_B: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Words_BT and answers_BT of stories, padded to T = ``length``."""
        begin_B, end_B = self.spans_S2[index_B].unbind(1)
        at_BT = begin_B[:, None] + torch.arange(length, device=begin_B.device)
        beyond_BT = at_BT >= end_B[:, None]
        at_BT = at_BT.clamp(max=len(self.words_M) - 1)
        words_BT = self.words_M[at_BT].long().masked_fill(beyond_BT, 0)
        return words_BT, self.answers_M[at_BT].long().masked_fill(beyond_BT, NO_ANSWER)


def wrong_answers(said_BT: torch.Tensor, answers_BT: torch.Tensor) -> tuple[float, float]:
    """Questions answered wrongly, and questions. One word that is wrong makes an answer wrong."""
    asked_BT = answers_BT >= 0
    begins_BT = asked_BT & ~F.pad(asked_BT[:, :-1], (1, 0))
    question_BT = begins_BT.flatten().cumsum(0).view_as(begins_BT) - 1
    n = int(begins_BT.sum())
    wrong_Q = torch.zeros(n, device=said_BT.device)
    wrong_Q.index_add_(0, question_BT[asked_BT], (said_BT != answers_BT)[asked_BT].float())
    return float((wrong_Q > 0).sum()), float(n)


class Teller:
    """Tells what people do, and knows where everyone and everything is."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.place: dict[str, str] = {}
        # Who carries a thing, or the place where it was dropped.
        self.held: dict[str, str] = {}
        self.words: list[str] = []
        self.answers: list[str] = []

    def say(self, *sentence: str, answer: str = "") -> None:
        self.words += sentence
        self.answers += [""] * (len(sentence) - 1) + [answer]

    def move(self) -> None:
        who = self.draw.choice(PEOPLE)
        self.place[who] = self.draw.choice([p for p in PLACES if p != self.place.get(who)])
        self.say(who, "went", self.place[who], ".")

    def handle(self) -> bool:
        """Someone gets or drops a thing, if that can be."""
        carried = [(who, "dropped", thing) for thing, who in self.held.items() if who in PEOPLE]
        gettable = [
            (who, "got", thing)
            for who, place in self.place.items()
            for thing in THINGS
            if self.held.get(thing, place) == place
        ]
        if not carried + gettable:
            return False
        # A person who carries much is as likely to drop something as to get more.
        who, verb, thing = self.draw.choice(self.draw.choice([f for f in (carried, gettable) if f]))
        self.held[thing] = who if verb == "got" else self.place[who]
        self.say(who, verb, thing, ".")
        return True

    def ask(self, kind: int) -> None:
        """A question that the story so far answers."""
        who = self.draw.choice(sorted(self.place))
        if kind == 2:
            thing = self.draw.choice(sorted(self.held))
            holder = self.held[thing]
            self.say("where", thing, "?", "-", answer=self.place.get(holder, holder))
        elif kind == 6:
            there = self.place[who]
            asked = there if self.draw.random() < 0.5 else self.draw.choice(PLACES)
            self.say("is", who, asked, "?", "-", answer="yes" if asked == there else "no")
        else:
            self.say("where", who, "?", "-", answer=self.place[who])


def told(kind: int, facts: int, draw: random.Random) -> tuple[list[str], list[str]]:
    """Words and answers ("" where nothing is to be said) of one generated story."""
    teller = Teller(draw)
    for fact in range(facts):
        # In a story of things one is got early on, so that there is something to ask for.
        handles = kind == 2 and fact > 0 and (fact == 1 or draw.random() < 0.5)
        if not (handles and teller.handle()):
            teller.move()
        if fact:
            teller.ask(kind)
    return teller.words, teller.answers


def generated(n: int, facts: int, seed: int) -> Corpus:
    """Stories of all kinds in turn: ``facts`` facts, and a question after each but the first.

    Raises:
        ValueError: fewer facts than a question needs.
    """
    if facts < FEWEST_FACTS:
        raise ValueError(f"facts is at least {FEWEST_FACTS}, got {facts}")
    draw = random.Random(seed)
    ids = {word: i for i, word in enumerate(VOCABULARY)} | {"": NO_ANSWER}
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    stories = [told(kind, facts, draw) for kind in kinds]
    ends_S = torch.tensor([len(words) for words, _ in stories]).cumsum(0)
    words_M, answers_M = (
        torch.tensor([ids[word] for story in stories for word in story[part]]) for part in (0, 1)
    )
    spans_S2 = torch.stack((F.pad(ends_S[:-1], (1, 0)), ends_S), 1)
    return Corpus(spans_S2, torch.tensor(kinds), words_M, answers_M)
