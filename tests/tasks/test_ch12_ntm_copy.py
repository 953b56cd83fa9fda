import re

import pytest
import torch

from tasks.ch12_memory import ntm_copy
from tasks.models import sequences
from tasks.models.dnc import DNC
from tasks.models.dnc_masked import MaskedDNC
from tasks.models.ntm import NTM
from tasks.models.ntm_variants import FeedForward, VariedNTM


def test_a_sequence_is_seen_then_marked_then_awaited():
    x, y = ntm_copy.sequences(5, 3, 4)
    assert x.shape == (5, 7, 5)
    assert y.shape == (5, 3, 4)
    assert torch.equal(x[:, :3, :4], y)
    assert x[:, 3].tolist() == [[0, 0, 0, 0, 1]] * 5
    assert not x[:, 4:].any()
    assert not x[:, :3, 4].any()


def test_variants_build_what_they_are_named_after():
    made = {v: ntm_copy.build(ntm_copy.TASK.configure("smoke", v)) for v in ntm_copy.TASK.variants}
    assert isinstance(made["ntm_ff"].ntm.controller, FeedForward)
    assert isinstance(made["ntm_lstm"].ntm.controller, torch.nn.LSTMCell)
    assert isinstance(made["learned_memory"].memory_NW, torch.nn.Parameter)
    assert made["ntm_lstm"].memory_NW.unique().numel() == 1
    assert isinstance(made["lstm"], sequences.LSTM)


def test_with_the_same_parts_the_variant_is_the_ntm():
    torch.manual_seed(1)
    varied, x = VariedNTM(4, 3, 8, 5, 6), torch.randn(2, 6, 4)
    plain = NTM(4, 3, 8, 5, 6)
    plain.load_state_dict(varied.ntm.state_dict())
    with torch.no_grad():
        logits, trace = varied.unroll(x)
        expected, weights = plain.unroll(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(trace[-1].weights_BHN, weights[-1])


def test_heads_begin_on_the_first_slot_and_a_learned_memory_gets_gradients():
    torch.manual_seed(2)
    model = VariedNTM(4, 3, 8, 5, 6, controller="feed_forward", memory="learned")
    assert model.ntm.start_HN.softmax(1)[:, 0].min() > 0.9
    model(torch.randn(2, 4, 4)).square().sum().backward()
    assert model.memory_NW.grad.abs().max() > 0
    assert model.ntm.start_HN.grad.abs().max() > 0


def test_an_unknown_part_is_refused_by_name():
    with pytest.raises(ValueError, match=r"controller 'ltsm'; did you mean 'lstm'"):
        VariedNTM(4, 3, 8, 5, 6, controller="ltsm")


def test_training_yields_at_every_evaluation_and_goes_on_where_it_was():
    def steps(start):
        weight = torch.nn.Parameter(torch.ones(()))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        rates = []

        def loss():
            rates.append(optimizer.param_groups[0]["lr"])
            return 10 * weight

        options = {"lr": 0.1, "clip": 1.0, "iterations": 8, "eval_every": 2, "start": start}
        seen = list(sequences.trained([weight], optimizer, loss, **options))
        return seen, rates, weight.item()

    seen, rates, weight = steps(0)
    assert seen == [0, 2, 4, 6, 8]
    # Held for half of the updates, then falling; each gradient was clipped from 10 to 1.
    assert rates == pytest.approx([0.1] * 5 + [0.075, 0.05, 0.025])
    assert weight == pytest.approx(1 - sum(rates))
    resumed, later, _ = steps(3)
    assert resumed == [6, 8]
    assert later == pytest.approx(rates[4:])


def test_on_a_processor_nothing_is_captured():
    model = torch.nn.Linear(2, 2)
    assert sequences.replayed(model, torch.device("cpu")) is model


def test_what_a_graph_cannot_hold_is_not_captured():
    gpu = torch.device("cuda")
    for kind in (DNC, MaskedDNC):
        model = kind(4, 3, 8, 5, 6, impl="reference")
        assert sequences.replayed(model, gpu) is model
        assert sequences.replayed(kind(4, 3, 8, 5, 6), gpu) is not model
    lstm = sequences.LSTM(4, 3, 8)
    assert sequences.replayed(lstm, gpu) is lstm


@pytest.mark.parametrize("kind", [DNC, MaskedDNC, VariedNTM])
def test_no_gradient_of_what_is_captured_waits_for_the_gpu(kind):
    todo, names = [kind(4, 3, 8, 5, 6)(torch.randn(2, 3, 4)).grad_fn], set()
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [n for n, _ in node.next_functions if n is not None]
    assert not [name for name in names if re.match("(Cum)?[Pp]rod", name)]


def test_the_picture_shows_the_whole_sequence():
    torch.manual_seed(3)
    model = VariedNTM(4, 3, 8, 5, 6)
    figure = ntm_copy.draw(model, *ntm_copy.sequences(2, 4, 3))
    shapes = [ax.images[0].get_array().shape for ax in figure.axes if ax.images]
    assert shapes == [(4, 9), (3, 9), (3, 9), (5, 9), (5, 9), (5, 6)]
