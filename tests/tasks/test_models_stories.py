import random

import pytest
import torch

from tasks.models import stories


def answer_by_hand(words):
    """Reads a story up to a question, fact by fact, and answers it."""
    *facts, question = " ".join(words).split(" . ")
    place, held = {}, {}
    for fact in facts:
        who, verb, what = fact.split()
        if verb == "went":
            place[who] = what
        else:
            held[what] = who if verb == "got" else place[who]
    kind, *about = question.split()[:3]
    if kind == "is":
        return "yes" if place[about[0]] == about[1] else "no"
    where = held.get(about[0], about[0])
    return place.get(where, where)


def told(corpus, i):
    begin, end = corpus.spans_S2[i].tolist()
    return (
        [stories.VOCABULARY[w] for w in corpus.words_M[begin:end].tolist()],
        corpus.answers_M[begin:end].tolist(),
    )


def test_every_answer_follows_from_the_facts():
    corpus = stories.generated(60, 8, 1)
    seen = set()
    for i, kind in enumerate(corpus.tasks_S.tolist()):
        words, answers = told(corpus, i)
        for t, answer in enumerate(answers):
            assert (words[t] == "-") == (answer >= 0)
            if answer >= 0:
                # Questions asked before are no facts.
                so_far = words[:t]
                while "-" in so_far:
                    cut = so_far.index("-")
                    begin = max(j for j in range(cut) if so_far[j] == ".") + 1
                    so_far = so_far[:begin] + so_far[cut + 1 :]
                assert stories.VOCABULARY[answer] == answer_by_hand(so_far)
                seen.add((kind, stories.VOCABULARY[answer]))
    assert {a for k, a in seen if k == 6} == {"yes", "no"}
    assert {a for k, a in seen if k == 1} == {a for k, a in seen if k == 2} == set(stories.PLACES)


def test_a_thing_is_taken_only_where_it_lies():
    for seed in range(40):
        words, _ = stories.told(2, 12, random.Random(seed))
        place, held = {}, {}
        facts = [f.split()[-3:] for f in " ".join(words).split(" .") if f.strip()]
        for who, verb, what in (f for f in facts if f[1] in ("went", "got", "dropped")):
            if verb == "went":
                place[who] = what
            elif verb == "got":
                assert held.get(what, place[who]) == place[who]
                held[what] = who
            else:
                assert held[what] == who
                held[what] = place[who]


def test_stories_of_a_seed_repeat_and_leave_the_global_generators_alone():
    random.seed(3)
    before = random.getstate()
    one, two, other = (stories.generated(9, 5, seed) for seed in (1, 1, 2))
    assert random.getstate() == before
    assert torch.equal(one.words_M, two.words_M)
    assert not torch.equal(one.words_M[:100], other.words_M[:100])
    with pytest.raises(ValueError, match="facts is at least 2, got 1"):
        stories.generated(9, 1, 1)


def corpus():
    spans = torch.tensor([[0, 3], [3, 5]])
    words, answers = torch.tensor([5, 6, 0, 7, 0]), torch.tensor([-1, -1, 8, -1, 9])
    return stories.Corpus(spans, torch.tensor([1, 2]), words, answers)


def test_a_batch_is_padded_with_nothing_to_say():
    words, answers = corpus().batch(torch.tensor([1, 0]), 4)
    assert words.tolist() == [[7, 0, 0, 0], [5, 6, 0, 0]]
    assert answers.tolist() == [[-1, 9, -1, -1], [-1, -1, 8, -1]]
    some = corpus().of(torch.tensor([False, True]))
    assert some.lengths_S.tolist() == [2]
    assert some.batch(torch.tensor([0]), 2)[0].tolist() == [[7, 0]]


def test_an_answer_of_two_words_is_wrong_if_one_is():
    answers = torch.tensor([[-1, 4, 5, -1, 6, -1], [-1, -1, 7, -1, -1, 8]])
    said = answers.clamp(min=0)
    assert stories.wrong_answers(said, answers) == (0, 4)
    said[0, 1] = said[0, 2] = 9
    assert stories.wrong_answers(said, answers) == (1, 4)
    said[1, 5] = 9
    # What is said where nothing is asked does not count.
    said[0, 0] = 9
    assert stories.wrong_answers(said, answers) == (2, 4)
    # A story that ends with an answer, before one that begins with one.
    side_by_side = torch.tensor([[-1, 1], [2, -1]])
    assert stories.wrong_answers(torch.zeros(2, 2).long(), side_by_side) == (2, 2)
