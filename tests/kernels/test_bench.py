import dataclasses
import importlib
import math

import pytest
import torch

from kernels import tuning
from kernels.bench import measure as measuring
from kernels.bench.accuracy import FLOOR, MORE_DRAWS, Gate
from kernels.bench.measure import measure
from kernels.bench.providers import Call, CannotRun, Provider, differentiable, flat, providers
from kernels.bench.roofline import PEAKS, Work, bound_s, peaks, work
from kernels.bench.timing import Timed, Timing, on_cpu
from kernels.bench.workload import Workload, ops, workloads
from kernels.conv2d.cases import Case as Images
from kernels.dnc.cases import COPY
from kernels.linear.cases import Case as Linear
from kernels.lstm.cases import Case as Layer

SMALL = {
    "dnc.step": dataclasses.replace(COPY, B=3, N=7),
    "lstm.lstm": Layer("small", 5, 4, 3, 8),
    "conv2d.conv2d": Images("small", 2, 3, 6, 5, 4, 3, 3, padding=1),
    "conv2d.conv2d_fused": Images("small", 2, 3, 6, 5, 4, 3, 3, padding=1),
    "conv2d.conv2d_stats": Images("small", 2, 3, 6, 5, 4, 3, 3, padding=1),
    "linear.linear": Linear("small", 4, 5, 3),
    "linear.matmul": Linear("small", 4, 5, 3),
}


def cases_of(folder):
    return importlib.import_module(f"kernels.{folder}.cases")


def small(op, mode="full", ragged=False, dtype=torch.float32):
    if op in SMALL:
        return Workload(op, SMALL[op], dtype, mode, "cpu", ragged)
    found = next(w for w in workloads("cpu") if w.op == op)
    letters = {"B": 2, "N": 5, **({"M": 4, "H": 2, "D": 8} if op.startswith("att") else {})}
    return Workload(op, dataclasses.replace(found.case, **letters), dtype, mode, "cpu", ragged)


def once(calls, rounds, seed):
    """A timer that runs each call once and says that it took a second."""
    for call in calls.values():
        call()
    return {name: Timed([Timing("wall", "warm", [1.0] * rounds)]) for name in calls}


def test_every_op_has_workloads_and_the_three_implementations():
    found = {w.op for w in workloads("cpu")}
    assert found == set(ops())
    assert all({"reference", "torch", "compile", "triton"} <= providers(op).keys() for op in found)


def test_every_op_is_timed_in_every_case_but_the_parts_of_a_step_with_links_they_have_not():
    half = cases_of("dnc").HALF_LINKS
    for op in ops():
        folder, _, function = op.partition(".")
        wanted = {c.name for c in cases_of(folder).BENCH}
        if folder == "dnc" and function not in ("link", "step"):
            wanted.remove(half.name)
        assert {w.case.name for w in workloads("cpu") if w.op == op} == wanted


def test_a_size_of_zero_is_one_and_what_is_off_is_none():
    case = Images("", 1, 2, 5, 5, 3, 3, 3, padding=0, residual=False)
    shape = Workload("conv2d.conv2d", case, torch.float32, "forward", "cpu").shape
    assert shape["padding"] == 0
    assert "residual" not in shape
    nothing = dataclasses.replace(COPY, B=0)
    assert Workload("dnc.link", nothing, torch.float32, "forward", "cpu").shape["B"] == 0


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("op", ops())
def test_all_that_run_here_compute_the_op(op, ragged):
    if ragged and not (op.startswith("attention") or op == "lstm.lstm"):
        pytest.skip("no lengths")
    names = [name for name in providers(op) if name not in ("compile", "triton")]
    outcomes = {o.provider: o for o in measure(small(op, ragged=ragged), names, 2, timer=once)}
    assert outcomes["reference"].status == outcomes["torch"].status == "ok"
    for outcome in outcomes.values():
        assert outcome.status in ("ok", "skipped"), (outcome.provider, outcome.detail)
        assert (outcome.status == "ok") == bool(outcome.timed.timings)
    assert outcomes["torch"].dispatched.keys() == {op}
    assert outcomes["torch"].dispatched[op].keys() == {"torch"}


def test_vendors_layers_take_part():
    names = ["nn.LSTM", "nn.LSTMCell loop"]
    assert [o.status for o in measure(small("lstm.lstm"), names, 1, timer=once)] == ["ok", "ok"]
    packed, loop = measure(small("lstm.lstm", ragged=True), names, 1, timer=once)
    assert packed.status == "ok"
    assert loop.status == "skipped"


def test_the_vendors_epilogue_has_no_gradient():
    names = ["F.linear", "addmm with ReLU"]
    found = [measure(small("linear.linear", m), names, 1, timer=once) for m in ("forward", "full")]
    assert [[o.status for o in outcomes] for outcomes in found] == [["ok", "ok"], ["ok", "skipped"]]


def scaled(factor, gradient_factor=1.0):
    """A provider of ``dnc.usage`` whose values, or whose gradients alone, are off by a factor."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * factor

        @staticmethod
        def backward(ctx, grad):
            return grad * gradient_factor

    def build(w):
        from kernels.dnc import reference

        args = differentiable(w.arguments())
        return Call(lambda: Off.apply(reference.usage(*args)), flat(args))

    return Provider("wrong", build)


@pytest.mark.parametrize(
    ("factor", "gradient", "wrong"),
    [(1.0, 1.0, []), (1.001, 1.0, ["values"]), (1.0, 1.001, ["gradients"])],
)
def test_what_is_wrong_is_found(factor, gradient, wrong):
    gate = Gate(providers("dnc.usage")["reference"])
    found = gate.check(small("dnc.usage"), scaled(factor, gradient))
    assert [a.of for a in found if not a.ok] == wrong
    assert all(a.limit >= FLOOR[a.of][torch.float32] for a in found)


def test_who_is_off_in_one_draw_is_judged_by_more_of_them():
    gate, drawn = Gate(providers("dnc.usage")["reference"]), []

    def build(unlucky):
        def built(w):
            drawn.append(w.seed)
            return scaled(1.0, 1.00002 if unlucky(w.seed) else 1.0).build(w)

        return Provider("off", built)

    assert all(a.ok for a in gate.check(small("dnc.usage"), build(lambda seed: seed == 0)))
    assert drawn == [*range(1 + MORE_DRAWS)]
    wrong = gate.check(small("dnc.usage"), build(lambda seed: True))
    assert [a.of for a in wrong if not a.ok] == ["gradients"]
    drawn.clear()
    gate.check(small("dnc.usage"), build(lambda seed: False))
    assert drawn == [0]


def test_nan_and_other_shapes_are_wrong():
    gate = Gate(providers("dnc.usage")["reference"])
    values, _ = gate.check(small("dnc.usage"), scaled(math.nan))
    assert values.error is None
    assert not values.ok

    def build(w):
        args = differentiable(w.arguments())
        return Call(lambda: args[0][:1], flat(args))

    values = gate.check(small("dnc.usage", "forward"), Provider("short", build))[0]
    assert values.error is None


def test_no_time_without_accuracy(monkeypatch):
    known = dict(providers("dnc.usage"))
    monkeypatch.setattr(measuring, "providers", lambda op: known | {"wrong": scaled(2.0)})
    good, wrong = measure(small("dnc.usage"), ["torch", "wrong"], 3, timer=once)
    assert good.status == "ok"
    assert wrong.status == "invalid"
    assert wrong.timed.timings == []
    assert "error of values" in wrong.detail


def test_what_breaks_is_an_outcome_and_the_others_go_on(monkeypatch):
    def crash(w):
        raise RuntimeError("no such thing")

    def refuse(w):
        raise CannotRun("not here")

    def full(w):
        raise torch.OutOfMemoryError("too much")

    known = dict(providers("dnc.usage"))
    broken = {n: Provider(n, f) for n, f in (("c", crash), ("r", refuse), ("m", full))}
    monkeypatch.setattr(measuring, "providers", lambda op: known | broken)
    found = measure(small("dnc.usage"), ["c", "r", "m", "torch"], 1, timer=once)
    assert [o.status for o in found] == ["crashed", "skipped", "oom", "ok"]
    assert found[0].detail == "RuntimeError: no such thing"


def test_what_launchers_ask_for_is_kept(monkeypatch):
    def build(w):
        args = differentiable(w.arguments())
        tuning.tuned("dnc.usage_forward", args[0], {"num_warps": 4}, B=2, N=5)
        return providers("dnc.usage")["torch"].build(w)

    known = dict(providers("dnc.usage")) | {"asks": Provider("asks", build)}
    monkeypatch.setattr(measuring, "providers", lambda op: known)
    plain, asks = measure(small("dnc.usage"), ["torch", "asks"], 1, timer=once)
    assert plain.asked == []
    assert asks.asked == [
        tuning.Asked("dnc.usage_forward", "float32", {"B": 2, "N": 5}, {"num_warps": 4})
    ]


def no_gpu(device):
    return False


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("it broke"), "crashed"), (torch.OutOfMemoryError("too much"), "oom")],
)
def test_what_breaks_while_it_is_timed_is_an_outcome(error, status):
    def breaks(calls, rounds, seed):
        raise error

    found = measure(small("dnc.usage"), ["reference", "torch", "triton"], 1, timer=breaks)
    assert [o.status for o in found] == [status, status, "skipped"]
    assert str(error) in found[0].detail
    assert not any(o.lost or o.timed.timings for o in found)


def test_who_takes_the_gpu_from_the_process_is_told_from_who_comes_after(monkeypatch):
    def crash(w):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    known = dict(providers("dnc.usage")) | {"c": Provider("c", crash)}
    monkeypatch.setattr(measuring, "providers", lambda op: known)
    monkeypatch.setattr(measuring, "usable", no_gpu)
    found = measure(small("dnc.usage"), ["torch", "c", "reference"], 1, timer=once)
    assert [o.status for o in found] == ["skipped", "crashed", "skipped"]
    assert "illegal memory access" in found[1].detail
    assert all(o.lost and not o.timed.timings for o in found)


def test_a_processor_is_never_lost():
    assert measuring.usable("cpu")


def test_a_gpu_is_lost_when_waiting_for_it_is_an_error(monkeypatch):
    def waits(device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", waits)
    assert measuring.usable("cuda:0")
    assert not measuring.usable("cuda:1")


def test_without_room_for_float64_less_of_the_batch_is_compared():
    tried = []
    reference = providers("dnc.usage")["reference"]

    def build(w):
        tried.append(w.case.B)
        if w.case.B > 2:
            raise torch.OutOfMemoryError("too much")
        return reference.build(w)

    w = small("dnc.usage", "forward")
    w = dataclasses.replace(w, case=dataclasses.replace(w.case, B=8))
    (found,) = Gate(dataclasses.replace(reference, build=build)).check(w, reference)
    assert found.ok
    assert found.shape["B"] == 2
    assert tried[:3] == [8, 4, 2]


@pytest.mark.parametrize("mode", ["forward", "backward", "full"])
def test_a_mode_computes_what_it_says(mode):
    w = small("dnc.usage", mode)
    call = measuring.timeable(w, providers(w.op)["torch"].build(w))
    out = flat(call())
    shapes = [t.shape for t in flat(w.arguments())]
    assert [t.shape for t in out] == (shapes[:1] if mode == "forward" else shapes)
    assert not any(t.requires_grad for t in out)
    assert all(torch.equal(a, b) for a, b in zip(out, flat(call()), strict=True))


def test_triton_is_not_timed_by_its_interpreter():
    (found,) = measure(small("dnc.usage"), ["triton"], 1, timer=once)
    assert found.status == "skipped"
    assert found.timed.timings == []


def test_rounds_time_every_call_once_in_random_order():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timed = on_cpu(calls, 6, seed=3)
    assert {len(t.samples_s) for found in timed.values() for t in found.timings} == {6}
    assert [(t.timer, t.cache) for t in timed["a"].timings] == [
        ("wall", "warm"),
        ("cpu_time", "warm"),
    ]
    assert all(s > 0 for found in timed.values() for s in found.timings[0].samples_s)


def test_work_counts_products_and_compulsory_traffic():
    w = small("conv2d.conv2d", "forward")
    done = work(w)
    n, taps = 2 * 4 * 6 * 5, 3 * 3 * 3
    assert done == Work(2 * n * taps, 4 * (2 * 3 * 30 + 4 * 27 + 4 + n))
    full, back = work(small("conv2d.conv2d")), work(small("conv2d.conv2d", "backward"))
    assert full.flops == done.flops + back.flops == 3 * done.flops
    assert full.bytes == 3 * done.bytes
    assert work(small("lstm.lstm", ragged=True)) is None


def test_work_of_a_loop_is_that_of_its_steps():
    w = small("lstm.lstm")
    T, B, X, H = 5, 4, 3, 8
    assert work(w).flops == 3 * 2 * T * B * 4 * H * (X + H)


def test_the_bound_is_the_slower_of_memory_and_products():
    limits = peaks("NVIDIA H200")
    assert limits is PEAKS["NVIDIA H200"]
    assert peaks("AMD EPYC") is None
    assert bound_s(Work(0, 4_800_000_000_000), torch.float32, limits) == pytest.approx(1.0)
    assert bound_s(Work(int(989e12), 1), torch.bfloat16, limits) == pytest.approx(1.0)


def test_providers_compute_in_full_float32():
    seen = []

    def timer(calls, rounds, seed):
        seen.append(torch.backends.cudnn.allow_tf32)
        return {}

    before = torch.backends.cudnn.allow_tf32
    w = Workload("dnc.usage", COPY, torch.float32, "forward", "cpu")
    measure(w, ["reference"], 1, timer=timer)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before
