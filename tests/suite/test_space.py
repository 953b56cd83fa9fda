import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import space, task
from suite.space import Choice, Range

TOY = "ch90.linear"


def _checked(given):
    return space.checked(given, task.find(TOY), "laptop", "quick", "torch")


@pytest.mark.parametrize(
    ("text", "field", "domain"),
    [
        ("lr=log:1e-4:1e-1", "lr", Range(1e-4, 1e-1, log=True)),
        ("lr=uniform:0:0.5", "lr", Range(0, 0.5)),
        ("steps=int:4:9", "steps", Range(4, 9, whole=True)),
        ("data=choice:mnist, digits", "data", Choice(("mnist", "digits"))),
    ],
)
def test_a_domain_is_read_as_it_is_written(text, field, domain):
    assert space.parse(text) == (field, domain)


def test_values_take_the_type_of_their_field():
    found = _checked({"steps": Range(4, 9, log=True), "lr": Range(0, 1), "data": Choice(("babi",))})
    assert found["steps"] == Range(4, 9, log=True, whole=True)
    assert found["lr"] == Range(0.0, 1.0)
    assert isinstance(found["lr"].low, float)
    assert _checked({"lr": space.grid("lr=1,0.1")[1]})["lr"] == Choice((1.0, 0.1))
    assert found["data"] == Choice(("babi",))
    with pytest.raises(ValueError, match="unknown data 'babbi'; did you mean 'babi'"):
        _checked({"data": Choice(("babi", "babbi"))})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "write field="),
        ("lr=1e-4:1e-1", "unknown kind of range '1e-4'"),
        ("lr=lug:1:2", "did you mean 'log'"),
        ("lr=log:1e-4", "lr=log:LOW:HIGH"),
        ("lr=log:a:b", "lr=log:LOW:HIGH"),
        ("lr=log:1e-1:1e-4", "below the second"),
        ("lr=log:0:1", "begin above 0"),
        ("lr=uniform:0:inf", "below the second"),
        ("steps=int:1.5:3", "steps=int:LOW:HIGH"),
        ("data=choice:a,", "a value is empty"),
        ("data=choice:a,a", "names a value twice"),
    ],
)
def test_what_is_no_domain_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        space.parse(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lrr": Range(0, 1)}, "unknown field 'lrr'.*'lr'"),
        ({"data": Range(0, 1)}, "field 'data' takes a str"),
        ({"steps": Range(0.5, 2)}, "field 'steps' takes a int"),
        ({"lr": Range(1, 2, whole=True)}, "field 'lr' takes a float"),
        ({"steps": Choice(("many",))}, "field 'steps' takes a int"),
    ],
)
def test_a_space_outside_the_config_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        _checked(given)


@given(
    low=st.floats(1e-6, 1, allow_subnormal=False),
    factor=st.floats(1.5, 1e4),
    log=st.booleans(),
)
def test_a_range_says_itself_as_it_is_typed(low, factor, log):
    domain = Range(low, low * factor, log=log)
    assert space.parse(f"lr={domain}") == ("lr", domain)
    assert space.contains(domain, low)
    assert not space.contains(domain, low * factor * 2)


def test_combinations_are_complete():
    made = list(space.combinations({"a": Choice((1, 2)), "b": Choice(("x", "y", "z"))}))
    assert len(made) == 6
    assert {"a": 2, "b": "z"} in made
