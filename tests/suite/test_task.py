import ast
import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Interval

from suite import task
from suite.fields import Count, Real, Share
from suite.task import Claim, Target, Task


def test_names_are_ids_in_order():
    names = task.names()
    assert names == sorted(names)
    assert "ch90.linear" in names


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown task 'ch90.liner'; did you mean 'ch90.linear'"):
        task.find("ch90.liner")


@pytest.mark.parametrize("pattern", ["ch90.linear", "ch90", "ch90.*", "*.lin*"])
def test_select(pattern):
    assert "ch90.linear" in task.select([pattern])


def test_select_gives_each_task_once():
    assert task.select(["ch90", "ch90.linear"]) == task.select(["ch90"])


@pytest.mark.parametrize("pattern", ["ch77", "nothing", "ch90.*zzz", ""])
def test_a_selection_of_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match="unknown task"):
        task.select([pattern])


def test_configure_layers_profile_variant_and_overrides():
    t = task.find("ch90.linear")
    cfg = t.configure("smoke", "slow", overrides={"fault_at": "2"})
    assert (cfg.steps, cfg.lr, cfg.fault_at) == (4, 1e-4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "laptob"}, "unknown profile 'laptob'; did you mean 'laptop'"),
        ({"variant": "quik"}, "unknown variant 'quik'; did you mean 'quick'"),
        ({"impl": "tritn"}, "unknown impl 'tritn'"),
        ({"overrides": {"stps": "3"}}, "unknown field 'stps'; did you mean 'steps'"),
        ({"overrides": {"steps": "many"}}, "field 'steps' takes a int such as"),
        ({"overrides": {"steps": "2.5"}}, "field 'steps' takes a int such as"),
        ({"overrides": {"lr": "fast"}}, "field 'lr' takes a float such as"),
    ],
)
def test_configure_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        task.find("ch90.linear").configure(**arguments)


@dataclasses.dataclass(frozen=True)
class Worded:
    optimizer: Literal["sgd", "adam"] = "sgd"
    note: str = "any text"


def _worded(**changes):
    return Task(
        config=Worded(),
        run=lambda cfg, ctx: iter(()),
        sections=("A",),
        profiles={"smoke": {}, "laptop": {}, "paper": {}},
        variants={"plain": {}, "other": changes},
        targets={},
    )


def test_a_field_of_words_takes_those_only():
    t = _worded(optimizer="adam")
    assert task.choices(Worded) == {"optimizer": ("sgd", "adam")}
    assert t.configure("smoke", "other").optimizer == "adam"
    assert t.configure("smoke", overrides={"note": "adamm"}).note == "adamm"
    message = "unknown optimizer 'adamm'; did you mean 'adam'\\? Allowed: adam, sgd"
    with pytest.raises(ValueError, match=message):
        t.configure("smoke", overrides={"optimizer": "adamm"})
    with pytest.raises(ValueError, match=message):
        _worded(optimizer="adamm").configure("smoke", "other")


def test_data_are_those_that_there_are_or_that_the_task_makes():
    @dataclasses.dataclass(frozen=True)
    class Config:
        data: str = "mnist"

    t = dataclasses.replace(
        _worded(),
        config=Config(),
        profiles={"smoke": {"data": "spirals"}, "laptop": {"data": "digits"}, "paper": {}},
    )
    for data in ("mnist", "spirals", "digits", "fashion_mnist"):
        assert t.configure("paper", overrides={"data": data}).data == data
    with pytest.raises(ValueError, match="unknown data 'mnits'; did you mean 'mnist'\\? Allowed"):
        t.configure("smoke", overrides={"data": "mnits"})


@dataclasses.dataclass(frozen=True)
class Bounded:
    count: Count = 3
    ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    shift: Real = 0.0
    share: Share = 1.0

    def __post_init__(self):
        if self.count > 100 * self.ratio:
            raise ValueError("too many")


def test_a_field_of_numbers_takes_those_of_its_interval():
    t = dataclasses.replace(_worded(), config=Bounded())

    def configured(**changes):
        return t.configure("smoke", overrides=changes)

    assert configured(count="1", ratio="0.01", shift="-1e300", share="0").count == 1
    for changes, message in (
        ({"count": "0"}, "field 'count' takes a whole number ≥ 1, got 0"),
        ({"ratio": "1"}, "field 'ratio' takes a finite number > 0 and < 1, got 1.0"),
        ({"ratio": math.nan}, "field 'ratio' takes a finite number > 0 and < 1, got nan"),
        ({"shift": "1e999"}, "field 'shift' takes a finite number, got inf"),
        ({"share": "-0.1"}, "field 'share' takes a finite number ≥ 0 and ≤ 1, got -0.1"),
        ({"count": "51"}, "too many"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            configured(**changes)
    with pytest.raises(ValueError, match="field 'count' takes a whole number ≥ 1, got -1"):
        dataclasses.replace(t, variants={"plain": {"count": -1}}).configure("smoke")


def test_what_fields_may_be_is_said_in_words():
    assert task.described(Bounded()) == {
        "count": (3, "a whole number ≥ 1"),
        "ratio": (0.5, "a finite number > 0 and < 1"),
        "shift": (0.0, "a finite number"),
        "share": (1.0, "a finite number ≥ 0 and ≤ 1"),
    }
    assert task.described(Worded()) == {
        "optimizer": ("sgd", "sgd, adam"),
        "note": ("any text", "str"),
    }


@pytest.mark.parametrize("start", ["from typing import Any", "from typing import NoReturn as Any"])
def test_what_a_config_refuses_does_not_count_into_the_version(tmp_path, monkeypatch, start):
    folder = tmp_path / "ch97_hashed"
    folder.mkdir()
    monkeypatch.setattr(task, "source_path", lambda name: folder / f"{name}.py")
    plain = f"{start}\nclass Config:\n    how: str = 'a'\n    n: Any = 1\n    m: int = 1\n"
    worded = plain.replace("how: str", "how: Literal['a', 'b']").replace(
        "import", "import Literal,"
    )
    alone = plain.replace("how: str", "how: Literal['a']").replace(
        start, f"from typing import Literal\n{start}"
    )
    named = f"from suite.fields import Count\n{plain.replace('m: int', 'm: Count')}"
    bounded = plain.replace("m: int", "m: Annotated[int, Interval(ge=2)]").replace(
        start, f"from typing import Annotated\nfrom annotated_types import Interval\n{start}"
    )
    refusing = plain + (
        "    def __post_init__(self):\n        if self.m > self.n:\n            raise ValueError\n"
    )
    setting = plain + (
        "    def __post_init__(self):\n        if self.m > self.n:\n            self.m = 1\n"
    )
    other = plain.replace("n: Any", "n: int")
    same = {"p": plain, "w": worded, "a": alone, "n": named, "b": bounded, "r": refusing}
    for name, text in {**same, "s": setting, "o": other}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(task, "_within_checkout", lambda path: path.parts)
    # A version is remembered by a task's name, and here one name is several files.
    version = task.version.__wrapped__
    assert len({version(name) for name in same}) == 1
    assert len({version(name) for name in "pso"}) == 3


def test_a_whole_number_is_a_float_where_one_is_wanted():
    assert task.find("ch90.linear").configure(overrides={"lr": "1"}).lr == 1.0


@dataclasses.dataclass(frozen=True)
class _Flag:
    on: bool = False
    name: str = "x"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("True", True)])
def test_flags_are_typed_as_people_type_them(text, value):
    t = Task(_Flag(), None, (), {"paper": {}}, {"v": {}}, {})
    assert t.configure("paper", overrides={"on": text}).on is value


def test_a_flag_takes_no_number():
    t = Task(_Flag(), None, (), {"paper": {}}, {"v": {}}, {})
    with pytest.raises(ValueError, match="takes a bool"):
        t.configure("paper", overrides={"on": "1"})


@pytest.mark.parametrize(
    ("mode", "value", "reached"),
    [("max", 0.9, True), ("max", 0.89, False), ("min", 0.9, True), ("min", 0.91, False)],
)
def test_target(mode, value, reached):
    assert Target("a", 0.9, mode, "s").reached({"a": value}) is reached


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_single_precision_cannot_tell_from_the_target_reaches_it(mode):
    target = Target("a", 0.0115, mode, "s")
    mean = float(np.array([1] * 115 + [0] * 9885, dtype=np.float32).mean())
    assert mean != 0.0115
    assert target.reached({"a": mean})
    assert [target.reached({"a": n / 10_000}) for n in (114, 116)] == [mode == "min", mode == "max"]


def test_near_is_a_band():
    target = Target("a", 0.911, "near", "printed", tolerance=0.005)
    assert [target.reached({"a": a}) for a in (0.9, 0.907, 0.915, 0.92)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "arguments",
    [("a", 1, "most", "s"), ("a", 1, "max", " "), ("a", 1, "near", "s"), ("a", 1, "max", "s", -1)],
)
def test_a_target_without_sense_is_refused(arguments):
    with pytest.raises(ValueError):  # noqa: PT011
        Target(*arguments)


def test_a_claim_needs_a_source():
    with pytest.raises(ValueError, match="names no source"):
        Claim("c", "m", "l", "r", "max", "")


def test_judged_variants_are_those_of_targets_and_claims():
    assert task.find("ch90.linear").judged("laptop") == ["quick", "slow"]


def test_a_variant_without_a_target_is_timed_to_that_of_the_variant_it_is_compared_with():
    goal = Target("a", 0.9, "max", "s")
    printed = Target("a", 0.9, "near", "s", tolerance=0.1)
    toy = task.find("ch90.linear")
    sooner = Claim("c", "steps_to_target", "quick", "slow", "min", "s", profiles=("laptop",))
    later = Claim("c", "accuracy", "quick", "nan", "max", "s")
    t = dataclasses.replace(
        toy,
        targets={"laptop": {"quick": goal, "crash": printed}, "paper": {"quick": goal}},
        claims=(later, sooner),
    )
    assert t.timed_to("laptop", "quick") == t.timed_to("laptop", "slow") == goal
    assert t.timed_to("paper", "slow") is None
    assert t.timed_to("laptop", "nan") is None
    assert t.timed_to("laptop", "crash") is None


def test_of_two_files_of_one_name_all_look_at_the_one_that_is_imported(tmp_path, monkeypatch):
    name = task.names()[0]
    ours = task.source_path(name)
    for file in (f"{ours.parent.name}/{ours.name}", "ch99_mine/new.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    roots = [*task._roots(), tmp_path]
    monkeypatch.setattr(task, "_roots", lambda: roots)
    monkeypatch.setattr(task, "_files", task._files.__wrapped__)
    assert task.source_path(name) == ours
    assert task.names().count(name) == 1
    assert task.names()[-1] == "ch99.new"


def test_version_ignores_words_and_layout():
    tree = ast.parse('"""Doc."""\n\n\ndef f():\n    """Doc."""\n    # why\n    return  1\n')
    other = ast.parse("def f(): return 1")
    assert ast.unparse(task._without_docstrings(tree)) == ast.unparse(other)


def test_listing_reads_text_and_imports_no_task(tmp_path):
    summary = task.summary("ch90.linear")
    assert summary["title"].startswith("A linear classifier")
    assert summary["chapter"] == "90"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('"""Copying: a net.\n\nMore.\n"""\n', "Copying: a net"),
        ("# A comment.\n\nr'''One line.'''\n", "One line"),
        ('"""Copying."""\ndef broken(:\n', "Copying"),
        ("import ast\n", ""),
        ("", ""),
    ],
)
def test_a_task_is_listed_by_its_docstring_whatever_follows(tmp_path, monkeypatch, text, title):
    file = tmp_path / "ch90_toys" / "listed.py"
    file.parent.mkdir()
    file.write_text(text)
    monkeypatch.setattr(task, "source_path", lambda name: file)
    assert task.summary("ch90.listed")["title"] == title


def test_version_follows_the_models_and_the_formulas_of_kernels_but_not_their_launchers():
    assert task._shared_source("kernels.dnc").name == "__init__.py"
    assert task._shared_source("kernels.dnc.reference").name == "reference.py"
    assert task._shared_source("tasks.models.dnc").name == "dnc.py"
    assert task._shared_source("kernels.dnc.op") is None
    assert task._shared_source("kernels.dnc.triton") is None
    assert task._shared_source("kernels.dispatch") is None
    assert task._shared_source("suite.store") is None


@pytest.mark.parametrize(
    ("written", "hashed"),
    [
        ("f'{x}'", "f'{x}'"),
        ("f\"{', '.join(x)} of {y['n']:,}\"", "f\"{', '.join(x)} of {y['n']:,}\""),
        ("f'{x!r:>{width}.{digits}f}{{}}'", "f'{x!r:>{width}.{digits}f}{{}}'"),
        ("f'''{x[\"a\"]} \"of\" {y}'''", 'f"""{x[\'a\']} "of" {y}"""'),
        ("f\"{f'{x}' if x else 'none'}\"", "f\"{(f'{x}' if x else 'none')}\""),
        ("g(f\"it's {x}\", 'it')", "g(f\"it's {x}\", 'it')"),
    ],
)
def test_every_python_hashes_f_strings_alike(written, hashed):
    quoted = ast.unparse(task._Quoted().visit(ast.parse(written)))
    assert quoted == hashed
    # Python 3.12 writes some of them in another way.
    if sys.version_info[:2] != (3, 12):
        assert quoted == ast.unparse(ast.parse(written))


def test_version_does_not_depend_on_where_the_checkout_stands(tmp_path):
    root = Path(task.__file__).parent.parent
    code = "from suite import task; print(*(task.version(n) for n in task.names()))"
    said = []
    for name in ("aaa", "zzz"):
        for package in ("suite", "kernels", "tasks"):
            shutil.copytree(root / package, tmp_path / name / package)
        command = [sys.executable, "-P", "-c", code]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / name)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].strip()
