"""Attention in every implementation: the formula, what a query may see, and what it must not."""

import functools

import proof
import pytest
import torch
from torch.nn import functional as F

from kernels import attention as ops
from kernels import dispatch
from kernels.attention import cases, op
from kernels.attention import triton as launch

IMPLS = ("reference", "torch", "triton")
FAST = ("torch", "triton")
LOW = (torch.bfloat16, torch.float16)
SMALLEST, UNEVEN, BLOCKS, SINGLE = cases.TEST[:4]
WIDE = cases.Case("wide heads", 1, 1, 17, 33, 130)


def masks(case, name):
    """The ways to hide keys, as keyword arguments."""
    some = cases.lengths(case)
    some[-1:] = case.N // 2
    return [
        {},
        {"key_lengths": some},
        *([{"causal": True}, {"causal": True, "key_lengths": some}] if name == "attention" else []),
    ]


def named():
    for name in cases.OPS:
        for case in cases.TEST:
            for mask in masks(case, name):
                text = "+".join(mask) or "all keys"
                yield pytest.param(name, case, mask, id=f"{name}-{case.name}-{text}")


def both(name, impl, mask):
    """An implementation of an op under a mask, and the reference."""
    function = functools.partial(getattr(ops, name), **mask)
    return proof.with_impl(function, impl), proof.with_impl(function, "reference")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(("name", "case", "mask"), [*named()])
def test_values_and_gradients(name, case, mask, impl):
    function, reference = both(name, impl, mask)
    args = cases.arguments(name, case)
    if case in (SMALLEST, SINGLE) and name == "attention" and (mask or case is SMALLEST):
        # Of one key, the weight is 1 and the gradients of q and k are rounding errors around 0.
        got, want = (proof.run(f, args, torch.float32) for f in (function, reference))
        for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    else:
        proof.agrees(function, reference, args, torch.float32)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", [UNEVEN, BLOCKS, WIDE], ids=lambda case: case.name)
def test_dot_products_in_half_the_bits(case, dtype):
    for mask in masks(case, "attention")[1:3]:
        proof.agrees(*both("attention", "triton", mask), cases.arguments("attention", case), dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_additive_in_half_the_bits(dtype):
    for mask in masks(UNEVEN, "additive"):
        proof.agrees(*both("additive", "triton", mask), cases.arguments("additive", UNEVEN), dtype)


@pytest.mark.parametrize("case", [UNEVEN, WIDE], ids=lambda case: case.name)
@pytest.mark.parametrize("name", cases.OPS)
def test_float64_is_computed_in_float64(name, case):
    mask = masks(case, name)[-1] | {"key_lengths": cases.lengths(case).clone()}
    mask["key_lengths"][-1:] = 0
    proof.agrees(*both(name, "triton", mask), cases.arguments(name, case), torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [False, True])
def test_dot_products_are_those_of_pytorch(impl, causal):
    q, k, v = (t.double() for t in cases.arguments("attention", UNEVEN))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
    got = ops.attention(q, k, v, causal=causal, scale=0.3, impl=impl)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    default = ops.attention(q, k, v, causal=causal, impl=impl)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(default, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_additive_follows_its_formula_entry_by_entry(impl):
    query, keys, values, v = cases.arguments("additive", cases.GRADCHECK)
    lengths = torch.tensor([4, 2])
    context, weights = ops.additive(query, keys, values, v, key_lengths=lengths, impl=impl)
    for b, length in enumerate(lengths.tolist()):
        e = torch.stack([(v * torch.tanh(query[b] + keys[b, n])).sum() for n in range(length)])
        want = e.exp() / e.exp().sum()
        torch.testing.assert_close(weights[b, :length], want)
        assert (weights[b, length:] == 0).all()
        mean = sum(want[n] * values[b, n] for n in range(length))
        torch.testing.assert_close(context[b], mean)


# The kernels have the reference's gradients in float64, see above.
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("name", cases.OPS)
def test_gradients_are_those_of_the_values(name, impl):
    args = cases.arguments(name, cases.GRADCHECK, torch.float64)
    mask = {"key_lengths": torch.tensor([4, 0])} | ({"causal": True} if name == "attention" else {})
    assert proof.gradcheck(both(name, impl, mask)[0], args)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_later_key_changes_nothing_before_it(impl):
    q, k, v = cases.arguments("attention", BLOCKS)
    at = 35
    later_k, later_v = k.clone(), v.clone()
    later_k[:, :, at:] += 3
    later_v[:, :, at:] -= 5
    before = ops.attention(q, k, v, causal=True, impl=impl)
    after = ops.attention(q, later_k, later_v, causal=True, impl=impl)
    torch.testing.assert_close(after[:, :, :at], before[:, :, :at], rtol=0, atol=1e-6)
    assert ((after - before)[:, :, at:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_later_queries_give_a_key_its_gradient(impl):
    q, k, v = (t.requires_grad_() for t in cases.arguments("attention", BLOCKS))
    out = ops.attention(q, k, v, causal=True, impl=impl)
    d_k, d_v = torch.autograd.grad(out[:, :, :35].sum(), (k, v))
    assert (d_v[:, :, :35].abs().amax(-1) > 0).all()
    assert (d_v[:, :, 35:] == 0).all()
    assert (d_k[:, :, 35:] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", cases.OPS)
def test_lengths_may_change_after_the_forward(name, impl):
    found = []
    for change in (0, 1):
        lengths = torch.tensor([37, 18])
        args = [t.requires_grad_() for t in cases.arguments(name, UNEVEN)]
        out = proof.flat(getattr(ops, name)(*args, key_lengths=lengths, impl=impl))
        lengths.mul_(1 - change)
        found.append(torch.autograd.grad(sum(o.square().sum() for o in out), args))
    for unchanged, changed in zip(*found, strict=True):
        assert unchanged.any()
        assert torch.equal(unchanged, changed)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", cases.OPS)
def test_keys_beyond_the_length_are_ignored(name, impl):
    args = cases.arguments(name, UNEVEN)
    lengths = torch.tensor([37, 18])
    longer = [t.clone() for t in args]
    for t in longer[1:3]:
        t[1, ..., 18:, :] = 1e4
    function = functools.partial(getattr(ops, name), key_lengths=lengths, impl=impl)
    got, got_grads, _ = proof.run(function, longer, torch.float32)
    want, want_grads, _ = proof.run(function, args, torch.float32)
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for grad in got_grads[1:3]:
        assert (grad[1, ..., 18:, :] == 0).all()


def test_blocks_beyond_the_length_are_not_loaded():
    # Infinite keys and values would leave a trace in whatever multiplies them, by zero even.
    for name in cases.OPS:
        args = [t.clone() for t in cases.arguments(name, UNEVEN)]
        for t in args[1:3]:
            t[1, ..., 18:, :] = torch.inf
        mask = {"key_lengths": torch.tensor([37, 18])}
        got, grads, _ = proof.run(both(name, "triton", mask)[0], args, torch.float32)
        assert all(t.isfinite().all() for t in (*got, *grads))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_query_without_keys_gives_zeros_and_gets_none(impl, dtype):
    lengths = torch.tensor([5, 0], dtype=dtype)
    for name, causal in (("attention", {}), ("attention", {"causal": True}), ("additive", {})):
        mask = {"key_lengths": lengths, **causal}
        function, args = both(name, impl, mask)[0], cases.arguments(name, UNEVEN)
        got, grads, _ = proof.run(function, args, torch.float32)
        assert all((t[1] == 0).all() for t in got)
        of_batch = [g for g in grads if g.dim() > 1]
        assert all(g.isfinite().all() for g in grads)
        assert all((g[1] == 0).all() for g in of_batch)
        assert any((g[0] != 0).any() for g in of_batch)


@pytest.mark.parametrize("impl", IMPLS)
def test_weights_are_a_distribution_over_the_keys(impl):
    eye = torch.eye(37).expand(2, 1, 37, 37)
    q, k, _ = cases.arguments("attention", UNEVEN)
    q, k = F.pad(q, (0, 17)), F.pad(k, (0, 17))
    lengths = torch.tensor([37, 18])
    weights = ops.attention(q, k, eye, key_lengths=lengths, impl=impl)
    assert (weights >= 0).all()
    assert (weights[1, ..., 18:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 19))
    _, weights = ops.additive(*cases.arguments("additive", UNEVEN), key_lengths=lengths, impl=impl)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("by", [300.0, -300.0])
def test_large_scores_do_not_overflow(impl, by):
    q, k, v = cases.arguments("attention", UNEVEN)
    got, grads, _ = proof.run(proof.with_impl(ops.attention, impl), (q * by, k, v), torch.float32)
    assert all(t.isfinite().all() for t in (*got, *grads))
    best = ((q * by) @ k.transpose(2, 3)).argmax(-1)
    # Almost all weight is on the best key of each query, for most queries.
    picked = v.gather(2, best[..., None].expand_as(q))
    assert ((got[0] - picked).abs().amax(-1) < 1e-3).float().mean() > 0.8
    query, keys, values, weigh = cases.arguments("additive", UNEVEN)
    got, grads, _ = proof.run(
        proof.with_impl(ops.additive, impl),
        (query * by, keys * by, values, weigh * by),
        torch.float32,
    )
    assert all(t.isfinite().all() for t in (*got, *grads))


@pytest.mark.parametrize("name", cases.OPS)
def test_results_repeat_bit_for_bit(name):
    for mask in masks(BLOCKS, name):
        assert proof.repeats(both(name, "triton", mask)[0], cases.arguments(name, BLOCKS))


def test_heads_may_lie_behind_positions_or_apart():
    args = cases.arguments("attention", BLOCKS)
    function = proof.with_impl(ops.attention, "triton")
    want = proof.run(function, args, torch.float32)
    layouts = {
        "heads last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        "columns apart": lambda t: torch.stack([t, t], -1)[..., 0],
        "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "part of more": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    }
    for layout in layouts.values():
        moved = [layout(t) for t in args]
        assert all(not t.is_contiguous() for t in moved)
        leaves = [t.detach().requires_grad_() for t in moved]
        out = function(*leaves)
        # The gradient of a transposed output arrives transposed too.
        grads = torch.autograd.grad(out, leaves, layout(want[2][0]))
        for a, b in zip((out, *grads), (*want[0], *want[1]), strict=True):
            assert torch.equal(a, b)


def test_additive_takes_strided_tensors():
    args = cases.arguments("additive", UNEVEN)
    spread = [torch.stack([t, t], -1)[..., 0] for t in args]
    got, want = (ops.additive(*given, impl="triton") for given in (spread, args))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("used", [0, 1])
def test_either_output_of_additive_can_be_unused(impl, used):
    def grads(impl):
        args = [t.requires_grad_() for t in cases.arguments("additive", cases.GRADCHECK)]
        loss = ops.additive(*args, impl=impl)[used].square().sum()
        found = torch.autograd.grad(loss, args, allow_unused=True)
        return [torch.zeros_like(a) if g is None else g for a, g in zip(args, found, strict=True)]

    for got, want in zip(grads(impl), grads("reference"), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("M", "N"), [(0, 3), (3, 0)])
def test_there_may_be_no_queries_or_no_keys(impl, M, N):
    case = cases.Case("nothing", 2, 2, M, N, 4)
    function = proof.with_impl(ops.attention, impl)
    got, grads, _ = proof.run(function, cases.arguments("attention", case), torch.float32)
    assert got[0].shape == (2, 2, M, 4)
    assert all((t == 0).all() for t in (*got, *grads))
    if N == 0:
        function = proof.with_impl(ops.additive, impl)
        got, grads, _ = proof.run(function, cases.arguments("additive", case), torch.float32)
        assert all((t == 0).all() for t in (*got, *grads))


@pytest.mark.parametrize("name", cases.OPS)
def test_a_compiled_region_does_not_break(name):
    args = cases.arguments(name, cases.GRADCHECK)
    mask = masks(cases.GRADCHECK, name)[-1]
    for impl in FAST:
        torch.compiler.reset()
        function = both(name, impl, mask)[0]
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        want, want_grads, grads = proof.run(function, args, torch.float32)
        got, got_grads, _ = proof.run(compiled, args, torch.float32, grads)
        for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kernel"), [("attention", op._attention_op), ("additive", op._additive_op)]
)
@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 2])])
def test_registration(name, kernel, lengths):
    given = [t.requires_grad_() for t in cases.arguments(name, cases.GRADCHECK)]
    torch.library.opcheck(kernel.op, (*given, lengths, *kernel.options[1:]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", cases.OPS)
def test_an_autocast_region_sets_the_type(name, dtype, impl):
    first, *rest = (t.requires_grad_() for t in cases.arguments(name, cases.GRADCHECK))
    function = getattr(ops, name)
    with torch.autocast("cpu", dtype):
        got = proof.flat(function(first.to(LOW[0]), *rest, impl=impl))
        double = proof.flat(function(*(t.double() for t in (first, *rest)), impl=impl))
    assert {t.dtype for t in got} == {dtype}
    assert {t.dtype for t in double} == {torch.float64}
    got[0].float().sum().backward()
    assert {t.grad.dtype for t in rest} == {torch.float32}
    want = function(*(t.to(dtype) for t in (first.to(LOW[0]), *rest)), impl=impl)
    assert torch.equal(got[0], proof.flat(want)[0])


def test_what_ran_is_counted_under_its_name():
    for name in cases.OPS:
        args = cases.arguments(name, cases.GRADCHECK)
        dispatch.reset_counts()
        for impl in (*IMPLS, "auto"):
            getattr(ops, name)(*args, impl=impl)
        want = {"reference": 1, "torch": 2, "triton": 1}
        assert dispatch.counts() == {f"attention.{name}": want}


@pytest.mark.parametrize("name", cases.OPS)
def test_each_impl_is_what_runs(name, monkeypatch):
    ran = []

    def noting(label, function):
        return lambda *args, **options: ran.append(label) or function(*args, **options)

    chosen = getattr(ops, f"_{name}")
    noted = {i: noting(i, getattr(chosen, i)) for i in ("reference", "torch")}
    compute = noting("triton", chosen.triton())
    # A new op takes the name over; this puts the original back afterwards.
    monkeypatch.setitem(dispatch._OPS, chosen.name, chosen)
    other = dispatch.Op(chosen.name, **noted, triton=lambda: compute)
    monkeypatch.setattr(ops, f"_{name}", other)
    monkeypatch.setattr(dispatch, "_compiled", lambda op: noting("compile", op.reference))
    args = cases.arguments(name, cases.GRADCHECK)
    for impl in (*dispatch.IMPLS, "auto"):
        getattr(ops, name)(*args, impl=impl)
    assert ran == ["reference", "torch", "compile", "reference", "triton", "torch"]


def test_a_mask_is_made_only_where_there_are_lengths(monkeypatch):
    seen = []

    def noting(*args, **options):
        seen.append(options)
        return original(*args, **options)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    q, k, v = cases.arguments("attention", cases.GRADCHECK)
    for causal in (False, True):
        ops.attention(q, k, v, causal=causal, impl="torch")
        assert seen.pop() == {"is_causal": causal, "scale": 2**-0.5}
        ops.attention(q, k, v, causal=causal, key_lengths=torch.tensor([4, 2]), impl="torch")
        assert seen.pop()["attn_mask"].shape == (2, 1, 2, 4)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 256), (torch.float32, 128), (torch.float64, 256)]
)
def test_heads_that_no_kernel_holds_are_refused(dtype, most):
    def heads(size):
        return [torch.zeros(1, 1, 1, size, dtype=dtype) for _ in range(3)]

    assert dispatch.explain("attention.attention", *heads(most), impl="triton").impl == "triton"
    with pytest.raises(dispatch.Unavailable, match=f"heads of {most + 1} exceed {most} in torch"):
        ops.attention(*heads(most + 1), impl="triton")
    assert "exceed" in dispatch.explain("attention.attention", *heads(most + 1)).reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_blocks_fit_what_there_is(dtype):
    tables = (launch.FORWARD, launch.BACKWARD_KEYS, launch.BACKWARD_QUERIES)
    for table in tables:
        for size in (1, 64, 65, 100, 128):
            small = launch.tile_of(table, dtype, size, 1, 17)
            assert small["BM"] == 16
            assert small["BN"] <= 32
            large = launch.tile_of(table, dtype, size, 4096, 4096)
            assert large["BM"] >= small["BM"]
            assert large["BN"] >= 16


BAD = [
    ({"q": torch.ones(2, 3)}, ValueError, r"q has shape \(B, H, M, D\), got \(2, 3\)"),
    ({"k": torch.ones(2, 1, 37, 7)}, ValueError, r"k has shape .*D=20\), got \(2, 1, 37, 7\)"),
    ({"v": torch.ones(2, 1, 36, 20)}, ValueError, r"v has shape .*N=37, D=20\), got"),
    ({"v": torch.ones(2, 1, 37, 20).double()}, TypeError, r"v is torch\.float32 as q is"),
    ({"q": torch.ones(2, 1, 19, 20).long()}, TypeError, "q is of floating point"),
    ({"q": 3}, TypeError, "q is a tensor, got int"),
    ({"k": torch.ones(2, 1, 37, 20, device="meta")}, ValueError, "k is on cpu as q is, got meta"),
    ({"causal": 1}, TypeError, "causal is a bool, got int"),
    ({"scale": "1"}, TypeError, "scale is a number or None, got str"),
    ({"scale": True}, TypeError, "scale is a number or None, got bool"),
    ({"scale": float("nan")}, ValueError, "scale is finite, got nan"),
    ({"impl": "flash"}, ValueError, "unknown impl 'flash'"),
]
BAD_LENGTHS = [
    ([37, 5], TypeError, "key_lengths is a tensor or None, got list"),
    (torch.tensor([37.0, 5.0]), TypeError, r"key_lengths is of integers, got torch\.float32"),
    (torch.tensor([True, False]), TypeError, r"key_lengths is of integers, got torch\.bool"),
    (torch.tensor([37]), ValueError, r"key_lengths has shape \(B=2,\), got \(1,\)"),
    (torch.tensor([[37, 5]]), ValueError, r"key_lengths has shape \(B=2,\), got \(1, 2\)"),
    (torch.tensor([37, -1]), ValueError, r"key_lengths are in \[0, 37\], got -1"),
    (torch.tensor([38, 5]), ValueError, r"key_lengths are in \[0, 37\], got 38"),
    (torch.ones(2, device="meta").long(), ValueError, "key_lengths is on cpu as q(uery)? is"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(arguments, kind, message):
    q, k, v = cases.arguments("attention", UNEVEN)
    with pytest.raises(kind, match=message):
        ops.attention(**({"q": q, "k": k, "v": v} | arguments))


@pytest.mark.parametrize(("key_lengths", "kind", "message"), BAD_LENGTHS)
def test_bad_lengths_are_named(key_lengths, kind, message):
    for name in cases.OPS:
        with pytest.raises(kind, match=message):
            getattr(ops, name)(*cases.arguments(name, UNEVEN), key_lengths=key_lengths)


def test_bad_arguments_of_additive_are_named():
    query, keys, values, v = cases.arguments("additive", UNEVEN)
    with pytest.raises(ValueError, match=r"keys has shape \(B=2, L, A=20\), got \(2, 37, 19\)"):
        ops.additive(query, keys[..., :19], values, v)
    with pytest.raises(ValueError, match=r"v has shape \(A=20\), got \(3,\)"):
        ops.additive(query, keys, values, v[:3])


def test_a_head_has_columns():
    with pytest.raises(ValueError, match="size D at least 1, got 0"):
        ops.attention(*(torch.ones(1, 1, 2, 0) for _ in range(3)))
