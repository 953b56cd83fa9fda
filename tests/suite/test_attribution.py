"""Attribution, with a clock that counts work: what is planted must be found to the last digit."""

import dataclasses
import itertools
import time

import pytest
import torch
from record_factory import make_record

from kernels import dnc
from suite import report
from suite.attribute import request as requests
from suite.attribute import session
from suite.attribute.laps import Laps
from suite.attribute.request import Arm, resolve
from suite.attribute.side import ArmFailed, Side
from suite.cli import app
from suite.record import seal
from suite.report import attribution, effects
from suite.store import Store

TASK = "ch92.counted"
NAMES = itertools.count()


class Inline:
    """An arm in this process."""

    def __init__(self, arm, threads, log):
        self.arm, self.threads, self.laps = arm, threads, None

    def ask(self, what, *arguments):
        try:
            self.laps = self.laps or Laps(self.arm, self.threads)
            return getattr(self.laps, what)(*arguments)
        except Exception as error:
            raise ArmFailed(f"{type(error).__name__}: {error}") from error

    def dismiss(self):
        return

    def end(self):
        return


@pytest.fixture(scope="module")
def counting():
    """A millisecond is a unit of work, by every clock; the ops of each variant are as they are."""
    requests.task.find(TASK)
    from tasks.ch92_kernels.counted import done

    known = {
        "plain": {"dispatched": {}},
        "both": {"dispatched": {"toys.scale": {}, "toys.shift": {}}},
        "wrong": {"dispatched": {"toys.wrong": {}}},
        "raises": {"dispatched": {"toys.scale": {}}},
    }
    with pytest.MonkeyPatch.context() as patch:
        for clock in ("perf_counter", "process_time"):
            patch.setattr(time, clock, lambda: 1e-3 * done[0])
        # By the machine's own clock a thread that waits for a processor would wait for longer
        # than it ran.
        for module in ("suite.gate.probe", "suite.attribute.laps"):
            patch.setattr(f"{module}.delayed_s", lambda: 0.0)
        patch.setattr(requests.exact, "stored", lambda: {TASK: known})
        # This clock has no noise, so once is enough of everything.
        for name, value in (("session.SECONDS", 0.2), ("session.WARM_S", 0.0)):
            patch.setattr(f"suite.attribute.{name}", value)
        for name, value in (("probe.WARM_S", 0.0), ("session.ROUNDS", 2), ("session.BLOCKS", 1)):
            patch.setattr(f"suite.gate.{name}", value)
        yield


@pytest.fixture
def counted(counting):
    """A store of its own."""
    return Store(f"memory://attribution-{next(NAMES)}")


@pytest.fixture(scope="module")
def told(counting):
    """A store with pairs, and runs of both implementations that take the same number of steps."""
    store = Store("memory://attribution-told")
    [first] = session.take(_asked(), 1, store, start=Inline, price_per_hour=3600.0)
    for pair in range(2, 8):
        # By this clock every pair is like the first.
        changed = first.attribution.model_copy(update={"pair": pair})
        store.put(_again(first, attribution=changed.model_dump(mode="json")))
    for seed, impl in itertools.product(range(5), ("torch", "reference")):
        store.put(_reached(impl, seed, 20 + 10 * seed))
    return store


def _asked(**options):
    return resolve(TASK, profile="laptop", **options)


def _found(asked, store, pairs):
    records = session.take(asked, pairs, store, start=Inline)
    return records, effects.effects(store.scan())


def test_what_is_not_said_is_the_first_variant_with_a_kernel_and_all_that_can_run(counting):
    asked = _asked()
    assert (asked.variant, asked.impls) == ("both", ("reference",))
    assert asked.ops == ("toys.scale", "toys.shift")


def test_a_planted_slowdown_is_found_alone_in_its_share_and_in_the_step(told):
    [effect] = effects.effects(told.scan())
    by_op = {op.op: op for op in effect.ops}
    assert by_op["toys.scale"].faster.estimate == pytest.approx(1 / 10)
    assert by_op["toys.shift"].faster.estimate == pytest.approx(1 / 2)
    assert [op.share.estimate for op in effect.ops] == pytest.approx([3 / 12, 3 / 12])
    assert [op.calls_per_step for op in effect.ops] == [1, 1]
    # 6 + 30 + 6 units instead of 6 + 3 + 3.
    assert effect.step.estimate == pytest.approx(42 / 12)
    assert effect.predicted.estimate == pytest.approx(42 / 12)
    assert by_op["toys.scale"].measured.estimate == pytest.approx(1 + 27 / 12)
    assert by_op["toys.scale"].predicted.estimate == pytest.approx(1 + 27 / 12)
    assert (effect.decision.verdict, effect.control.verdict) == ("REGRESSED", "UNCHANGED")


def test_what_is_captured_is_what_training_issues(counted):
    records, _ = _found(_asked(only=["toys.scale"]), counted, pairs=1)
    [call] = records[0].attribution.calls
    assert call.shape == [("0", "4x3"), ("1", "4x3")]
    assert (call.op, call.mode, call.calls) == ("toys.scale", "full", 5)
    assert records[0].attribution.observed_steps == 5
    arms = records[0].attribution.arms
    assert arms["reference"].kept == ["toys.shift"]
    assert set(arms["reference"].dispatched["toys.shift"]) == {"torch"}
    assert set(arms["reference"].dispatched["toys.scale"]) == {"reference"}
    assert set(arms["torch"].dispatched["toys.scale"]) == {"torch"}


def test_what_a_run_replays_on_a_gpu_is_seen_call_by_call(counted, monkeypatch):
    from tasks.ch92_kernels import counted as toy

    def captured(x, w, *, impl):
        # On a processor this raises where nothing stands in for it.
        assert dnc.Captured(torch.nn.Identity(), x)(x) is x
        return scale(x, w, impl=impl)

    scale = toy.SCALE
    monkeypatch.setattr(toy, "SCALE", captured)
    arm = _asked(only=["toys.scale"]).arms(seed=0)[0]
    first, kinds = Laps(arm, 1).observe(("toys.scale",))
    assert (first.steps, sum(kinds.values())) == (5, 5)


def test_the_same_command_goes_on_where_it_was_stopped(counted):
    asked, seen = _asked(variant="wrong", baseline="reference"), []

    def stopping(pair, what):
        if pair == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.take(asked, 3, counted, start=Inline, listen=stopping)
    first = {r.record_id for r in counted.scan()}
    assert len(first) == 1
    session.take(asked, 3, counted, start=Inline, listen=lambda pair, what: seen.append(pair))
    assert set(seen) == {2, 3}
    assert first < {r.record_id for r in counted.scan()}


def test_an_op_that_computes_something_else_has_no_speed(counted):
    records, [effect] = _found(_asked(variant="wrong", baseline="reference"), counted, pairs=1)
    [call] = records[0].attribution.calls
    assert set(call.times) == {"reference"}
    assert call.missing == {"torch": "it is off by more than allowed"}
    assert effect.predicted is None
    assert effect.step is not None
    assert "off by more" in attribution.lines([effect])[0].why


def test_an_implementation_that_breaks_off_leaves_the_pair(counted):
    records, [effect] = _found(_asked(variant="raises"), counted, pairs=1)
    part = records[0].attribution
    assert set(part.arms) == {"torch", "control"}
    assert "planted" in part.outcomes["reference"]
    assert "planted" in effect.why
    assert effect.step is None
    broken = _asked(variant="raises", baseline="reference")
    with pytest.raises(session.BaselineFailed, match="planted"):
        session.take(broken, 1, counted, start=Inline)


def test_arms_take_turns_there_and_back():
    assert session.there_and_back("ABC", 2) == list("ABCCBAABCCBA")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "plain"}, "calls no kernel. Variants that do: both, wrong, raises"),
        ({"variant": "bth"}, "did you mean 'both'"),
        ({"impls": ["refrence"]}, "did you mean 'reference'"),
        ({"impls": ["torch"]}, "is the baseline"),
        ({"only": ["toys.scales"]}, "did you mean 'toys.scale'"),
    ],
)
def test_bad_input_says_what_is_allowed(counted, options, said):
    with pytest.raises(ValueError, match=said):
        _asked(**options)


def test_a_task_without_a_kernel_is_told_which_tasks_have_one(counting):
    with pytest.raises(ValueError, match=f"calls no kernel in more.*Tasks that do: {TASK}"):
        resolve("ch90.linear", profile="smoke")


def test_amdahl():
    assert effects.amdahl([(0.5, 2.0)]) == 0.75
    assert effects.amdahl([(0.5, 2.0), (0.25, 0.5)]) == 1.0
    assert effects.amdahl([(0.9, float("inf"))]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([100, 200, 300, 400, 500], effects.EQUIVALENT),
        ([101, 198, 303, 404, 495], effects.EQUIVALENT),
        ([150, 300, 450, 600, 750], effects.INCONCLUSIVE),
        ([100, 300, 200, 400, 600], effects.INCONCLUSIVE),
        ([100, 200, 300, 400, None], effects.INCONCLUSIVE),
        ([], effects.UNTIMED),
    ],
)
def test_steps_to_target_are_the_same_only_when_shown_to_be(other, verdict):
    base = dict(enumerate([100.0, 200.0, 300.0, 400.0, 500.0]))
    assert effects.equivalence(base, dict(enumerate(other))).verdict == verdict


def test_steps_that_differ_by_more_are_different():
    base = {s: 100.0 + s for s in range(8)}
    found = effects.equivalence(base, {s: 1.5 * n for s, n in base.items()})
    assert (found.verdict, found.ratio.estimate) == (effects.DIFFERENT, pytest.approx(1.5))


def test_time_to_target_is_the_step_where_steps_are_equivalent_and_else_bounded_by_both():
    y = [0.1, 0.11, 0.12, 0.1, 0.11, 0.12, 0.1, 0.11]
    base = {s: 100.0 + s for s in range(8)}
    same = effects.equivalence(base, base)
    assert effects._to_target(y, same, base, base).high == effects._interval(y).high
    longer = {s: n * (1.5 + 0.01 * s) for s, n in base.items()}
    unsure = effects.equivalence(base, longer)
    both = effects._to_target(y, unsure, base, longer)
    assert both.estimate == pytest.approx(effects._interval(y).estimate * unsure.ratio.estimate)
    assert both.low < effects._interval(y).low * unsure.ratio.low
    assert both.high > effects._interval(y).high * unsure.ratio.high


def test_a_live_process_answers_and_says_why_it_cannot(tmp_path):
    [spec] = resolve_specs("both")
    side = Side(Arm("torch", spec), 1, tmp_path / "log")
    try:
        lap, kinds = side.ask("observe", ("toys.scale",))
        assert (lap.steps, sum(kinds.values())) == (5, 5)
        with pytest.raises(ArmFailed, match="AttributeError"):
            side.ask("dance")
        side.process.kill()
        with pytest.raises(ArmFailed, match="ended with -9"):
            side.ask("lap")
    finally:
        side.end()


def resolve_specs(variant):
    from suite.plan import expand

    return expand([TASK], profile="smoke", variants=[variant], seeds=[0])


def test_replacing_a_spec_keeps_the_arm(counted):
    asked = _asked()
    names = [a.name for a in asked.arms(3)]
    assert names == [
        "torch",
        "control",
        "reference",
        "reference without toys.scale",
        "reference without toys.shift",
    ]
    assert {a.spec.seed for a in asked.arms(3)} == {3}
    assert dataclasses.replace(asked, ops=("toys.scale",)).arms(0)[-1].name == "reference"


def _reached(impl, seed, step):
    """A run to the target, as the campaign would have made it."""
    made = make_record(TASK, impl=impl, seed=seed, variant="both", crossing_step=step)
    return _again(made, task={**made.task.model_dump(), "version": requests.task.version(TASK)})


def _again(record, **changes):
    content = record.model_dump(mode="json", by_alias=True, exclude={"record_id"})
    return seal(**content | changes)


def test_a_report_says_what_the_kernels_do_and_derives_again(told):
    report.write(told)
    assert report.check(told) == []
    text = told.read("tables/attribution.md").decode()
    # A step takes 12 units before and 42 after, the median run 40 steps: at a dollar a second.
    assert "| `reference` | all | — | — | — | 3.5 [3.5, 3.5] | 3.5 [3.5, 3.5] | slower |" in text
    assert "EQUIVALENT 1 (too few to bound it), 5 seeds | 3.5 [3.5, 3.5]" in text
    assert "torch trains for 480 ms of processor time to the target" in text
    assert "torch costs $0.480 to the target, at 3600 USD an hour" in text
    assert "Energy to target" not in text
    assert "`toys.scale` | 2 of 4x3; gradients of 1" in text
    page = told.read("index.html").decode()
    assert "What the kernels do to the tasks" in page
    assert "attribution records not shown" not in page
    told.write("tables/attribution.csv", b"another")
    assert any("attribution.csv" in problem for problem in report.check(told))


def test_the_command_shows_it_and_draws_it(told, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(session.take.__kwdefaults__, "start", Inline)
    plot = tmp_path / "steps.png"
    command = ["attribute", TASK, "--pairs", "7", "--no-runs", "--plot", str(plot), "--store"]
    assert app([*command, told.uri], standalone_mode=False) == 0
    shown = capsys.readouterr().out
    assert "toys.scale" in shown
    assert "control, torch against itself" in shown
    assert plot.read_bytes()[:4] == b"\x89PNG"
    wrong = [*command[:-3], "--plot", "steps.gif", "--store", told.uri]
    with pytest.raises(ValueError, match=r"unknown kind of picture '.gif'"):
        app(wrong, standalone_mode=False)
