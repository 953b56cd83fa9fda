import pytest
import torch

from suite.plan import expand
from suite.run import execute
from tasks.ch12_memory import dnc_copy
from tasks.models.dnc import DNC
from tasks.models.ntm import NTM


def test_a_sequence_is_seen_then_marked_then_awaited():
    x, y = dnc_copy.sequences(5, 3, 4)
    assert x.shape == (5, 7, 5)
    assert y.shape == (5, 3, 4)
    assert torch.equal(x[:, :3, :4], y)
    assert x[:, 3].tolist() == [[0, 0, 0, 0, 1]] * 5
    assert not x[:, 4:].any()
    assert not x[:, :3, 4].any()
    assert set(y.unique().tolist()) == {0, 1}


def test_held_out_sequences_are_the_same_for_every_seed_and_leave_the_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = dnc_copy.held_out(4, 6)[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(dnc_copy.held_out(4, 6)[1], first)
    assert not torch.equal(dnc_copy.held_out(5, 6)[1][:, :4], first)


def test_the_answer_is_what_follows_the_delimiter():
    x, _ = dnc_copy.sequences(2, 3, 4)
    given = torch.arange(7.0)[None, :, None].expand(2, 7, 4)
    assert dnc_copy.answer(lambda _: given, x)[0, :, 0].tolist() == [4, 5, 6]


def test_wrong_bits_are_counted_by_sequence():
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    right = 2 * y - 1
    assert dnc_copy.wrong_bits(right, y) == 0
    assert dnc_copy.wrong_bits(-right, y) == 4
    right[0, 0, 1] = 3.0
    assert dnc_copy.wrong_bits(right, y) == 0.5


def test_the_learning_rate_is_held_then_falls_to_zero():
    done = (0.0, 0.3, 0.5, 0.75, 1.0)
    got = [dnc_copy.learning_rate(0.01, d) for d in done]
    assert got == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.0])


def _model(variant):
    torch.manual_seed(1_000)
    return dnc_copy.build(dnc_copy.TASK.configure("smoke", variant))


def test_variants_build_what_they_are_named_after():
    dnc, book, bare = (_model(v) for v in ("dnc", "book_link", "no_links"))
    kept = _model("no_free_gates")
    assert all(isinstance(m, DNC) for m in (dnc, book, bare, kept))
    assert (dnc.links, dnc.book_link, dnc.free_gates) == (True, False, True)
    assert (book.links, book.book_link, book.free_gates) == (True, True, True)
    assert (bare.links, kept.free_gates) == (False, False)
    assert isinstance(_model("ntm"), NTM)
    assert isinstance(_model("lstm"), dnc_copy.LSTM)


def test_ablations_of_one_seed_start_from_the_same_parameters():
    start = _model("dnc").state_dict()
    for variant in ("book_link", "no_links", "no_free_gates"):
        assert all(torch.equal(start[k], v) for k, v in _model(variant).state_dict().items())


@pytest.mark.parametrize(
    ("variant", "op"), [("dnc", "dnc.step"), ("ntm", "ntm.address"), ("lstm", "lstm.lstm")]
)
def test_a_run_comes_to_the_same_in_every_implementation(variant, op, monkeypatch):
    """End to end, with the kernels interpreted: metrics, and a record of what computed them."""
    # The interpreter takes a millisecond and more for every sequence and kernel.
    monkeypatch.setattr(dnc_copy, "EVALUATED", 2)
    few = {"iterations": 2, "eval_every": 2, "batch_size": 2}
    finals = {}
    for impl in ("torch", "reference", "triton"):
        [spec] = expand(
            ["ch12.dnc_copy"], profile="smoke", variants=[variant], impls=[impl], overrides=few
        )
        record = execute(spec)
        assert record.status in ("ok", "target_missed"), record.status_detail
        assert record.kernels.requested == impl
        assert set(record.kernels.dispatched) == {op}
        assert set(record.kernels.dispatched[op]) == {impl}
        finals[impl] = {k: v.value for k, v in record.train.final.items()}
    assert finals["reference"] == pytest.approx(finals["torch"], rel=1e-3, abs=0.05)
    assert finals["triton"] == pytest.approx(finals["torch"], rel=1e-3, abs=0.05)


@pytest.fixture(scope="module")
def trained():
    cfg = dnc_copy.TASK.configure("smoke", "dnc")
    torch.manual_seed(1_001)
    model = dnc_copy.build(cfg)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    for _ in range(25):
        dnc_copy.train_step(model, optimizer, cfg, torch.device("cpu"))
    return model


def test_a_training_dnc_keeps_every_quantity_in_its_range(trained):
    x, _ = dnc_copy.held_out(4, 3)
    with torch.no_grad():
        _, trace = trained.unroll(x)
    for state, _ in trace:
        for w in (state.write_BN, state.read_BRN, state.precedence_BN):
            assert w.min() >= -1e-5
            assert w.sum(-1).max() <= 1 + 1e-5
        assert -1e-5 <= state.usage_BN.min() <= state.usage_BN.max() <= 1 + 1e-5
        assert state.link_BNN.min() >= -1e-5
        assert state.link_BNN.sum(1).max() <= 1 + 1e-5
        assert state.link_BNN.sum(2).max() <= 1 + 1e-5
        assert not state.link_BNN.diagonal(dim1=1, dim2=2).any()


def test_the_picture_shows_the_whole_sequence(trained):
    figure = dnc_copy.draw_memory(trained, *dnc_copy.held_out(4, 3))
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    shapes = [p.shape for p in pictures]
    assert shapes[:5] == [(4, 9), (3, 9), (3, 9), (6, 9), (6, 9)]
    assert (6, 6) in shapes
