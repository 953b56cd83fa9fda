import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import plan, task


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", [0]), ("0-4", [0, 1, 2, 3, 4]), ("0,2,10-12", [0, 2, 10, 11, 12]), ("3,3", [3])],
)
def test_seeds(text, expected):
    assert plan.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "-1", "4-0", "1-", "0-99999999", "1.5", "0--3", "²"])
def test_seeds_refuse(text):
    with pytest.raises(ValueError, match="seeds"):
        plan.seeds(text)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_seeds_read_back_what_is_written(numbers):
    assert plan.seeds(",".join(map(str, numbers))) == numbers


def test_the_matrix_is_the_product(toy):
    specs = toy("quick", "slow", seeds=range(3))
    assert len(specs) == 6
    assert len({s.run_id for s in specs}) == 6
    assert [s.seed for s in specs] == [0, 0, 1, 1, 2, 2]


def test_a_spec_names_the_same_run_everywhere(toy):
    one, other = toy(), toy()
    assert one == other
    assert one[0].run_id == other[0].run_id == pickle.loads(pickle.dumps(one[0])).run_id


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (1,)},
        {"profile": "laptop"},
        {"overrides": {"steps": "3"}},
        {"stop_at_target": True},
        {"device": "cuda"},
    ],
)
def test_what_changes_the_numbers_changes_the_run(toy, change):
    assert toy()[0].run_id != toy(**change)[0].run_id


def test_the_order_of_settings_is_no_other_run(toy):
    one = toy(overrides={"steps": "3", "lr": "0.1"})[0]
    other = toy(overrides={"lr": "0.1", "steps": "3"})[0]
    assert one.run_id == other.run_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": ["quik"]}, "unknown variant 'quik'; did you mean 'quick'"),
        ({"impls": ["trton"]}, "unknown impl 'trton'"),
        ({"overrides": {"step": "1"}}, "unknown field 'step'; did you mean 'steps'"),
    ],
)
def test_expand_refuses_what_no_task_knows(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan.expand(["ch90"], profile="smoke", **arguments)


def test_judged_only_takes_what_verdicts_need():
    specs = plan.expand(["ch90.linear"], profile="laptop", judged_only=True)
    assert [s.variant for s in specs] == ["quick", "slow"]


def test_triton_without_a_gpu_is_refused_before_anything_runs(toy, monkeypatch):
    name = next(n for n in task.names() if "triton" in task.find(n).impls)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="impl 'triton' needs a CUDA device"):
        plan.expand([name], profile="smoke", impls=["triton"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert plan.expand([name], profile="smoke", impls=["triton"])[0].impl == "triton"
