import pytest
import torch

from suite.plan import expand
from suite.run import Context, execute
from tasks.ch12_memory import dnc_copy
from tasks.models import sequences
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


def test_wrong_bits_are_counted_by_sequence():
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    right = 2 * y - 1
    assert sequences.wrong_bits(right, y) == 0
    assert sequences.wrong_bits(-right, y) == 4
    right[0, 0, 1] = 3.0
    assert sequences.wrong_bits(right, y) == 0.5


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
    assert isinstance(_model("lstm"), sequences.LSTM)


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
    monkeypatch.setattr(dnc_copy, "EVALUATED", 1)
    few = {"iterations": 1, "eval_every": 1, "batch_size": 1, "max_length": 1}
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


def _rows(cfg):
    """The evaluations of a run, not yet called, and what the run has trained so far."""
    torch.manual_seed(1_001)
    ctx = Context(torch.device("cpu"), 0)
    rows = dnc_copy.run(cfg, ctx)
    assert next(rows) is None
    return rows, ctx.kept["model"]


class _Parrot(torch.nn.Module):
    """Says after the delimiter what it saw before, and nothing until then."""

    def __init__(self):
        super().__init__()
        self.loudness = torch.nn.Parameter(torch.tensor(9.0))

    def forward(self, x):
        length = x.shape[1] // 2
        said = self.loudness * (2 * x[:, :length, :-1] - 1)
        return torch.cat((torch.zeros(len(x), length + 1, x.shape[2] - 1), said), 1)


def test_the_answer_is_what_follows_the_delimiter(monkeypatch):
    monkeypatch.setattr(dnc_copy, "build", lambda cfg: _Parrot())
    rows, model = _rows(dnc_copy.TASK.configure("smoke", overrides={"iterations": 40}))
    with torch.no_grad():
        row = next(rows)()
    assert (row["bits_trained"], row["bits_twice"]) == (0, 0)
    assert len(list(rows)) == 1
    assert model.loudness > 9


@pytest.fixture(scope="module")
def trained():
    rows, model = _rows(dnc_copy.TASK.configure("smoke", "dnc", overrides={"iterations": 40}))
    assert len(list(rows)) == 2
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
    figure = dnc_copy.draw(trained, *dnc_copy.held_out(4, 3))
    shapes = [ax.images[0].get_array().shape for ax in figure.axes if ax.images]
    assert shapes == [(4, 9), (3, 9), (3, 9), (6, 9), (6, 9), *[(1, 9)] * 6, (6, 6)]
