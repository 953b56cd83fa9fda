"""Whole sequences: the loop, segments that are computed again, and capture with a graph faked."""

import gc
import weakref

import pytest
import torch
from torch import nn

from kernels import dnc
from kernels.dispatch import Unavailable

B, N, W, R, X, C = 2, 5, 4, 2, 3, 6


class Control(nn.Module):
    """A recurrent controller, with dropout so that a recomputed segment must draw it again."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.cell = nn.GRUCell(X + R * W, C)
        self.dropout = nn.Dropout(dropout)
        self.sizes = [R * W, R, W, 1, W, W, R, 1, 1, 3 * R]
        self.emit = nn.Linear(C, sum(self.sizes))

    def forward(self, x, words, hidden):
        hidden = self.cell(torch.cat((x, words.flatten(1)), 1), hidden)
        parts = self.emit(self.dropout(hidden)).split(self.sizes, 1)
        keys, strengths, key, strength, erase, vector, free, share, gate, modes = parts
        interface = dnc.Interface(
            read_keys_BRW=keys.view(-1, R, W),
            read_strengths_BR=1 + strengths.exp(),
            write_key_B1W=key[:, None],
            write_strength_B1=1 + strength.exp(),
            erase_BW=erase.sigmoid(),
            write_vector_BW=vector,
            free_gates_BR=free.sigmoid(),
            allocation_gate_B1=share.sigmoid(),
            write_gate_B1=gate.sigmoid(),
            read_modes_BSR=modes.view(-1, 3, R).softmax(1),
        )
        return interface, hidden, hidden


class Net(nn.Module):
    """x_TBX to one tensor and a pair."""

    def __init__(self, **options):
        super().__init__()
        self.control, self.options = Control(), options

    def forward(self, x):
        features, words, carry = dnc.sequence(self.control, x, begin(x), **self.options)
        return features, (words, carry.state.memory_BNW)


def begin(x):
    return dnc.start(x, B, N, W, R)


def made(seed=1, T=7, dropout=0.0):
    torch.manual_seed(seed)
    return Control(dropout), torch.randn(T, B, X)


def both_ways(control, x, **options):
    """Values, and the gradients of the parameters and of the input."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    features, words, carry = dnc.sequence(control, x, begin(x), impl="torch", **options)
    loss = features.square().sum() + words.square().sum() + carry.state.link_BNN.sum()
    grads = torch.autograd.grad(loss, [x, *control.parameters()])
    return [features, words, *carry.state, carry.hidden, *grads]


def test_a_sequence_is_its_steps():
    control, x = made()
    features, words, carry = dnc.sequence(control, x, begin(x), impl="torch")
    state, read, hidden = begin(x)
    for t in range(len(x)):
        to, passed, hidden = control(x[t], read, hidden)
        read, state = dnc.step(state, to, impl="torch")
        assert torch.equal(features[t], passed)
        assert torch.equal(words[t], read)
    assert all(torch.equal(a, b) for a, b in zip(carry.state, state, strict=True))
    assert torch.equal(carry.words_BRW, read)
    assert torch.equal(carry.hidden, hidden)


def test_a_sequence_may_be_continued():
    control, x = made()
    features, words, whole = dnc.sequence(control, x, begin(x))
    first, read, carry = dnc.sequence(control, x[:3], begin(x))
    second, more, end = dnc.sequence(control, x[3:], carry)
    assert torch.equal(features, torch.cat((first, second)))
    assert torch.equal(words, torch.cat((read, more)))
    assert torch.equal(end.state.link_BNN, whole.state.link_BNN)


def test_the_steps_of_a_sequence_tell_what_it_did():
    control, x = made()
    features, words, carry = dnc.sequence(control, x, begin(x), links=False, impl="torch")
    seen = [*dnc.steps(control, x, begin(x), links=False, impl="torch")]
    assert torch.equal(torch.stack([s.features_BC for s in seen]), features)
    assert torch.equal(torch.stack([s.carry.words_BRW for s in seen]), words)
    assert torch.equal(seen[-1].carry.state.memory_BNW, carry.state.memory_BNW)
    assert not carry.state.link_BNN.any()
    assert seen[0].to.erase_BW.shape == (B, W)


@pytest.mark.parametrize("every", [None, 3])
def test_the_memory_of_a_sequence_in_an_autocast_region_is_in_float32(every):
    control, x = made()
    with torch.autocast("cpu", torch.bfloat16):
        found = dnc.sequence(control, x, begin(x), checkpoint_every=every)
        seen = [*dnc.steps(control, x, begin(x))]
    _, words, carry = found
    assert seen[0].to.write_vector_BW.dtype == torch.bfloat16
    assert {t.dtype for t in (words, *carry.state)} == {torch.float32}
    assert torch.equal(seen[-1].carry.words_BRW, words[-1])
    words.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in control.parameters())
    assert any(p.grad.any() for p in control.parameters())


@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_segments_computed_again_change_no_bit(every, dropout):
    control, x = made(dropout=dropout)
    want = both_ways(control, x)
    got = both_ways(control, x, checkpoint_every=every)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradients_go_through_what_is_carried_in():
    control, x = made()
    found = []
    for every in (None, 2):
        carry = dnc.Carry(
            dnc.State(*(t.clone().requires_grad_() for t in begin(x).state)),
            begin(x).words_BRW.requires_grad_(),
            torch.zeros(B, C, requires_grad=True),
        )
        _, words, _ = dnc.sequence(control, x, carry, checkpoint_every=every)
        into = [*carry.state, carry.words_BRW, carry.hidden]
        found.append(torch.autograd.grad(words.square().sum(), into))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(g.abs().sum() > 0 for g in found[0][:2])


@pytest.mark.parametrize(("every", "most"), [(None, 12), (4, 3), (3, 4)])
def test_what_is_held_for_the_backward_is_bounded(every, most, monkeypatch):
    """Of the links after each of 12 steps, how many live between forward and backward."""
    control, x = made(T=12)
    links, step = [], dnc.step

    def watched(*args, **options):
        words, state = step(*args, **options)
        links.append(weakref.ref(state.link_BNN))
        return words, state

    monkeypatch.setattr(dnc, "step", watched)
    _, words, _ = dnc.sequence(control, x, begin(x), checkpoint_every=every, impl="torch")
    gc.collect()
    assert len(links) == 12
    alive = {link().data_ptr() for link in links if link() is not None}
    assert len(alive) <= most
    words.sum().backward()
    # Recomputing stops at the last step of a segment, when all that was kept is there again.
    again = 0 if every is None else 12 - 12 // every
    assert 12 + again <= len(links) <= 24 - (every is None) * 12


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(0, B, X), {}, r"at least 1, got \(0, 2, 3\)"),
        (torch.zeros(4, B + 1, X), {}, r"B=2, X\)"),
        (torch.zeros(B, X), {}, "has shape"),
        (torch.zeros(4, B, X), {"checkpoint_every": 0}, "at least 1, got 0"),
    ],
)
def test_bad_sequences_are_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        dnc.sequence(Control(), x, begin(x), **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            dnc.steps(Control(), x, begin(x))


BEGIN = dnc.start(torch.zeros(1), B, N, W, R)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x is a tensor, got list"),
        ({"carry": BEGIN.state}, "carry is a Carry, got State"),
        ({"carry": None}, "carry is a Carry, got NoneType"),
        ({"carry": BEGIN._replace(state=BEGIN)}, r"carry\.state is a State, got Carry"),
        ({"checkpoint_every": 2.5}, "checkpoint_every is an int, got float"),
        ({"checkpoint_every": "2"}, "checkpoint_every is an int, got str"),
        ({"checkpoint_every": True}, "checkpoint_every is an int, got bool"),
        ({"links": "no"}, "links is a bool, got str"),
    ],
)
def test_what_is_of_another_type_is_named(change, message):
    given = {"control": Control(), "x": torch.zeros(4, B, X), "carry": BEGIN} | change
    with pytest.raises(TypeError, match=message):
        dnc.sequence(**given)
    if "checkpoint_every" not in change:
        with pytest.raises(TypeError, match=message):
            next(dnc.steps(**given))


def test_segments_are_not_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    control, x = made()
    with pytest.raises(ValueError, match="random state"):
        dnc.sequence(control, x, begin(x), checkpoint_every=2)
    dnc.sequence(control, x, begin(x))


def test_a_cpu_captures_nothing_and_says_why():
    with pytest.raises(Unavailable, match="input 0 is on cpu: a CUDA graph"):
        dnc.Captured(Net(), torch.zeros(3, B, X))


def fake_graphs(module, static):
    """`torch.cuda.make_graphed_callables` for a CPU: all results are in memory that is reused.

    A graph is replayed by running again what it would have captured, into the same tensors.
    """
    params = [*module.parameters()]
    surface = [*static, *params]
    original, training = module.forward, module.training
    leaves, spec = torch.utils._pytree.tree_flatten(original(*static))
    outputs = [t.detach().clone() for t in leaves]
    wanted = [t for t in surface if t.requires_grad]
    grads_in = [torch.empty_like(t) for t in wanted]

    def run():
        with torch.enable_grad():
            return torch.utils._pytree.tree_leaves(original(*static))

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch.no_grad():
                for mine, given in zip(static, inputs, strict=False):
                    mine.copy_(given)
                for mine, new in zip(outputs, run(), strict=True):
                    mine.copy_(new)
            return tuple(t.detach() for t in outputs)

        @staticmethod
        def backward(ctx, *grads):
            for mine, new in zip(grads_in, torch.autograd.grad(run(), wanted, grads), strict=True):
                mine.copy_(new)
            found = iter(grads_in)
            return tuple(next(found).detach() if t.requires_grad else None for t in surface)

    def forward(*inputs):
        if module.training != training:
            return original(*inputs)
        flat = Graphed.apply(*inputs, *params)
        return torch.utils._pytree.tree_unflatten(flat, spec)

    module.forward = forward
    return module


@pytest.fixture
def captured(monkeypatch):
    """A module and the same one captured, with everything on a CPU that passes for a GPU."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fake_graphs)
    monkeypatch.setattr("kernels.dnc.rollout._on_a_gpu", lambda tensors: None)
    torch.manual_seed(9)
    net = Net(impl="torch")
    return net, dnc.Captured(net, torch.zeros(4, B, X))


def inputs(seed):
    return torch.randn(4, B, X, generator=torch.Generator().manual_seed(seed))


def test_a_replay_gives_what_the_module_gives(captured):
    net, graph = captured
    for seed in (1, 2):
        features, (words, memory) = graph(inputs(seed))
        wanted = net(inputs(seed))
        torch.testing.assert_close((features, (words, memory)), wanted)
        got = torch.autograd.grad(words.square().sum() + memory.sum(), [*net.parameters()])
        loss = wanted[1][0].square().sum() + wanted[1][1].sum()
        torch.testing.assert_close(got, torch.autograd.grad(loss, [*net.parameters()]))


def test_the_module_itself_runs_uncaptured(captured):
    net, _ = captured
    assert "forward" not in vars(net)
    assert net(torch.zeros(6, B, X))[0].shape == (6, B, C)


def test_results_outlive_the_next_replay(captured):
    _, graph = captured
    first = graph(inputs(1))[0]
    kept = first.detach().clone()
    assert not torch.equal(graph(inputs(2))[0], kept)
    assert torch.equal(first, kept)


def test_gradients_of_two_replays_add_up(captured):
    net, graph = captured
    for seed in (1, 2):
        graph(inputs(seed))[1][0].square().sum().backward()
    summed = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for seed in (1, 2):
        net(inputs(seed))[1][0].square().sum().backward()
    torch.testing.assert_close(summed, [p.grad for p in net.parameters()])


def test_a_backward_after_another_forward_is_refused(captured):
    _, graph = captured
    first = graph(inputs(1))[1][0]
    graph(inputs(2))
    with pytest.raises(RuntimeError, match="replayed since this forward"):
        first.sum().backward()


@pytest.mark.parametrize(
    "given",
    [torch.zeros(5, B, X), torch.zeros(4, B, X).double(), torch.zeros(4, B, X, requires_grad=True)],
    ids=["shape", "dtype", "gradient"],
)
def test_a_graph_is_for_one_shape(captured, given):
    _, graph = captured
    with pytest.raises(ValueError, match=r"captured for \(4, 2, 3\) torch.float32 on cpu got"):
        graph(given)
    with pytest.raises(ValueError, match="capture again"):
        graph(inputs(1), inputs(1))


def test_a_graph_is_for_one_mode(captured):
    net, graph = captured
    net.eval()
    with pytest.raises(RuntimeError, match="captured for training"):
        graph(inputs(1))
