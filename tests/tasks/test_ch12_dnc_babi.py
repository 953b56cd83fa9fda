import pytest
import torch

from suite.run import Context
from tasks.ch12_memory import dnc_babi
from tasks.models import dnc_masked
from tasks.models.dnc import DNC
from tasks.models.stories import Corpus


def test_tasks_are_named_by_their_numbers():
    assert dnc_babi.chosen_tasks("all") == [*range(1, 21)]
    assert dnc_babi.chosen_tasks("1,2,6") == [1, 2, 6]
    for wrong in ("", "0", "21", "one"):
        with pytest.raises(ValueError, match="numbers from 1 to 20"):
            dnc_babi.chosen_tasks(wrong)


def corpus(lengths, tasks):
    ends = torch.tensor(lengths).cumsum(0)
    spans = torch.stack((ends - torch.tensor(lengths), ends), 1)
    words = torch.zeros(int(ends[-1]), dtype=torch.long)
    return Corpus(spans, torch.tensor(tasks), words, words)


def test_buckets_hold_every_story_once_and_every_task_as_often():
    stories = corpus([3, 32, 33, 900, 64, 5], [1, 1, 1, 2, 6, 6])
    groups = dnc_babi.buckets(stories)
    assert [length for length, _, _ in groups] == [24, 32, 64, 900]
    assert [members.tolist() for _, members, _ in groups] == [[0, 5], [1], [2, 4], [3]]
    drawn = torch.zeros(7)
    for _, members, weights in groups:
        drawn.index_add_(0, stories.tasks_S[members], weights)
    assert drawn[[1, 2, 6]].tolist() == pytest.approx([1, 1, 1])


def test_offline_stories_are_generated_and_chosen_by_task():
    ctx = Context(torch.device("cpu"), 3)
    train, test, vocabulary = dnc_babi.stories(dnc_babi.TASK.configure("smoke"), ctx)
    assert set(train.tasks_S.tolist()) == set(test.tasks_S.tolist()) == {1, 2, 6}
    assert vocabulary[0] == "-"
    only = dnc_babi.TASK.configure("smoke", overrides={"tasks": "6", "max_words": 25})
    train, test, _ = dnc_babi.stories(only, ctx)
    assert train.tasks_S.unique().tolist() == [6]
    assert train.lengths_S.max() <= 25
    assert ctx.used == {}


def test_errors_are_those_of_a_net_that_always_says_the_same():
    stories = Corpus(
        torch.tensor([[0, 2], [2, 4], [4, 6]]),
        torch.tensor([1, 1, 6]),
        torch.tensor([5, 0, 6, 0, 7, 0]),
        torch.tensor([-1, 1, -1, 2, -1, 1]),
    )

    def says_one(words):
        return 50.0 * torch.nn.functional.one_hot(torch.ones_like(words), 9).float()

    found = dnc_babi.evaluated(says_one, stories)
    assert (found["error_1"], found["error_6"], found["mean_error"]) == (0.5, 0.0, 0.25)
    assert found["failed_tasks"] == 1
    assert found["test_loss"] == pytest.approx(50 / 3, abs=1e-3)


def test_with_masks_open_and_nothing_freed_it_is_the_dnc():
    torch.manual_seed(4)
    masked, x = dnc_masked.MaskedDNC(4, 3, 8, 5, 6, 2), torch.randn(2, 7, 4)
    for parameter in masked.parameters():
        parameter.data.mul_(4)
    plain = DNC(4, 3, 8, 5, 6, 2, free_gates=False)
    plain.load_state_dict(masked.dnc.state_dict())
    masked.dnc.free_gates = False
    with torch.no_grad():
        assert not torch.allclose(masked(x), plain(x), atol=1e-3)
        masked.masks.weight.zero_()
        masked.masks.bias.fill_(30.0)
        torch.testing.assert_close(masked(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_masked_key_ignores_what_the_mask_hides():
    memory = torch.tensor([[[1.0, 9.0], [-1.0, 2.0]]])
    keys, strengths = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[20.0]])
    mask = torch.tensor([[[1.0, 0.0]]])
    found = dnc_masked.masked_content(memory, keys, strengths, mask, "torch")
    assert found[0, 0].tolist() == pytest.approx([1, 0], abs=1e-6)
    by_hand = torch.softmax(20 * torch.tensor([1.0, -1.0]), 0)
    torch.testing.assert_close(found[0, 0], by_hand, rtol=1e-3, atol=1e-5)


def test_a_freed_slot_is_cleared():
    torch.manual_seed(5)
    model = dnc_masked.MaskedDNC(3, 2, 6, 4, 5)
    like = torch.zeros(1)
    state = dnc_masked.dnc.blank(like, 1, 4, 5, 1)
    read = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    state = state._replace(memory_BNW=torch.ones(1, 4, 5), read_BRN=read)
    to = model.dnc.steer(torch.randn(1, 6))
    to = to._replace(free_gates_BR=torch.ones(1, 1), write_gate_B1=torch.zeros(1, 1))
    _, after = model.step(state, to, torch.ones(1, 2, 5))
    assert after.memory_BNW[0, 0].tolist() == [0] * 5
    assert after.memory_BNW[0, 1:].unique().tolist() == [1]


def test_the_picture_names_every_word():
    torch.manual_seed(6)
    cfg = dnc_babi.TASK.configure("smoke", "dnc")
    _, test, vocabulary = dnc_babi.stories(cfg, Context(torch.device("cpu"), 0))
    words, answers = test.batch(torch.arange(1), int(test.lengths_S[0]))
    model = dnc_babi.build(cfg, len(vocabulary))
    x = torch.nn.functional.one_hot(words, len(vocabulary)).float()
    figure = dnc_babi.draw(model, x, answers, vocabulary)
    names = [label.get_text() for label in figure.axes[-2].get_xticklabels()]
    assert len(names) == words.shape[1]
    assert names[0] == vocabulary[int(words[0, 0])]
