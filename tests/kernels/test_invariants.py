"""What changes no result, or changes it in a known way, over random sizes: LSTM, attention, conv2d.

The proofs compare with the reference; these would also find what the reference gets wrong.
"""

import functools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels import attention, conv2d, lstm
from kernels.attention import cases as attention_cases
from kernels.lstm import cases as lstm_cases

FEW = settings(max_examples=20, deadline=None)
impls = st.sampled_from(("torch", "triton"))
seeds = st.integers(0, 10_000)
small = st.integers(1, 5)
close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def layers(draw):
    """A layer with its options, and the tensors that it takes."""
    case = lstm_cases.Case("any", draw(small), draw(small), draw(small), draw(small))
    args = lstm_cases.arguments("lstm", case, seed=draw(seeds))
    options = {"lengths": lstm_cases.lengths(case, draw(seeds)), "reverse": draw(st.booleans())}
    return functools.partial(lstm.lstm, **options, impl=draw(impls)), args


@given(layers())
@FEW
def test_what_stands_beyond_a_sequences_end_does_not_matter(layer):
    function, (x, *rest) = layer
    beyond = torch.arange(len(x))[:, None] >= function.keywords["lengths"]
    y, state = function(x, *rest)
    other, other_state = function(x.masked_fill(beyond[..., None], torch.nan), *rest)
    assert not y[beyond].any()
    close((other, other_state), (y, state))


@given(layers(), seeds)
@FEW
def test_sequences_may_stand_in_any_order(layer, seed):
    function, (x, *weights, (h, c)) = layer
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    y, (last_h, last_c) = function(x, *weights, (h, c))
    lengths = function.keywords["lengths"][order]
    got = function(x[:, order], *weights, (h[order], c[order]), lengths=lengths)
    close(got, (y[:, order], (last_h[order], last_c[order])))


@given(layers(), st.integers(0, 5))
@FEW
def test_a_sequence_in_two_parts_is_the_whole_one(layer, at):
    function, (x, *weights, state) = layer
    at, lengths = min(at, len(x)), function.keywords["lengths"]
    y, last = function(x, *weights, state)
    parts = [(x[:at], lengths.clamp(max=at)), (x[at:], (lengths - at).clamp(min=0))]
    found = {}
    for i in (1, 0) if function.keywords["reverse"] else (0, 1):
        part, its_lengths = parts[i]
        found[i], state = function(part, *weights, state, lengths=its_lengths)
    close(torch.cat((found[0], found[1])), y)
    close(state, last)


@st.composite
def attended(draw):
    """An op, its query, its keys, its values, and what else it takes; the keys' axis."""
    name = draw(st.sampled_from(attention_cases.OPS))
    case = attention_cases.Case("any", *(draw(small) for _ in range(5)))
    query, keys, values, *v = attention_cases.arguments(name, case, seed=draw(seeds))
    lengths = attention_cases.lengths(case, draw(seeds))

    def call(keys, values, **options):
        out = getattr(attention, name)(query, keys, values, *v, **options, impl=impl)
        return out if name == "attention" else out[0]

    impl = draw(impls)
    return call, keys, values, lengths, {"attention": 2, "additive": 1}[name]


@given(attended(), seeds)
@FEW
def test_keys_may_stand_in_any_order(case, seed):
    call, keys, values, _, axis = case
    order = torch.randperm(keys.shape[axis], generator=torch.Generator().manual_seed(seed))
    moved = [t.index_select(axis, order) for t in (keys, values)]
    close(call(*moved), call(keys, values))


@given(attended(), small)
@FEW
def test_keys_beyond_the_lengths_do_not_matter(case, more):
    call, keys, values, lengths, axis = case
    padded = []
    for t in (keys, values):
        shape = list(t.shape)
        shape[axis] = more
        padded.append(torch.cat((t, torch.full(shape, 1e3)), axis))
    close(call(*padded, key_lengths=lengths), call(keys, values, key_lengths=lengths))


@given(attended())
@FEW
def test_the_weights_of_a_query_sum_to_one(case):
    call, keys, values, lengths, _ = case
    got = call(keys, torch.full_like(values, 3.0), key_lengths=lengths)
    seen = (lengths > 0).view(-1, *[1] * (got.dim() - 1))
    close(got, (3.0 * seen).expand_as(got))


@st.composite
def convolutions(draw):
    """A convolution of images with its geometry, and a kernel for it."""
    groups, taps = draw(st.integers(1, 2)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 2))}
    weight = randn(draw(seeds), groups * draw(st.integers(1, 3)), draw(st.integers(1, 3)), *taps)
    images = randn(draw(seeds), 2, groups * weight.shape[1], draw(st.integers(3, 6)), 4)
    function = functools.partial(conv2d.conv2d, **options, impl=draw(impls))
    return function, images, weight, groups


@given(convolutions())
@FEW
def test_a_convolution_is_linear(case):
    function, images, weight, groups = case
    call = functools.partial(function, groups=groups)
    for a, b in ((images, images.flip(0)), (weight, weight.flip(0))):
        mixed = (2 * a - 3 * b, weight) if a is images else (images, 2 * a - 3 * b)
        alone = [(t, weight) if a is images else (images, t) for t in (a, b)]
        close(call(*mixed), 2 * call(*alone[0]) - 3 * call(*alone[1]))


@given(convolutions(), st.integers(0, 2))
@FEW
def test_what_an_image_shows_may_move(case, by):
    function, images, weight, groups = case
    call = functools.partial(function, groups=groups)
    room = by * function.keywords["stride"]
    before, after = (call(F.pad(images, sides), weight) for sides in ((0, room) * 2, (room, 0) * 2))
    rows, columns = (size - by for size in before.shape[2:])
    close(after[..., by:, by:], before[..., :rows, :columns])


@given(convolutions())
@FEW
def test_groups_are_convolutions_of_their_own(case):
    function, images, weight, groups = case
    parts = zip(images.chunk(groups, 1), weight.chunk(groups), strict=True)
    close(function(images, weight, groups=groups), torch.cat([function(*p) for p in parts], 1))
