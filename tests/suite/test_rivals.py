"""Our kernels against the fastest other: of the same session, and not against the reference."""

from types import SimpleNamespace

import pytest

from suite.record import Timing
from suite.report import rivals
from suite.report.kernels import Line


def line(provider, samples, session="one", op="conv2d.conv2d", why=""):
    timing = Timing(timer="graph_replay", cache="warm", samples_s=samples) if samples else None
    micro = SimpleNamespace(op=op, mode="forward", session=session, provider=provider)
    return Line(SimpleNamespace(), micro, timing, why, None)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(rivals, "machine_of", lambda record: "a machine")


def test_the_fastest_other_is_what_ours_is_measured_against():
    found = [
        line("reference", [9.0, 9.0, 9.0]),
        line("torch", [6.0, 8.0, 8.0]),
        line("cuDNN", [4.0, 4.0, 5.0]),
        line("triton", [2.0, 1.0, 5.0]),
        line("wrong", None, why="invalid"),
    ]
    (row,) = rivals.rows(found)
    (duel,) = row.duels["graph replay"]
    assert duel.other.micro.provider == "cuDNN"
    # The median of 4 / 2, 4 / 1 and 5 / 5.
    assert duel.ratio == 2.0
    assert rivals.cells(row) == ["conv2d.conv2d", "forward", "1", "2", "—", "cuDNN"]


def test_sessions_are_not_mixed_and_cases_are_summed():
    found = [line("triton", [1.0]), line("torch", [2.0])]
    found += [line("triton", [1.0], "two"), line("torch", [8.0], "two")]
    found += [line("triton", [1.0], "alone")]
    (row,) = rivals.rows(found)
    assert rivals.summed(row.duels["graph replay"]) == "4 [2, 8]"
    assert "| `conv2d.conv2d` | `forward` | 2 | 4 [2, 8] | — | `torch` |" in rivals.render(found)


def test_the_reference_is_no_worse_a_rival():
    found = [line("triton", [1.0]), line("torch", [8.0]), line("reference", [2.0])]
    (row,) = rivals.rows(found)
    assert rivals.cells(row)[3:] == ["2", "—", "reference"]


def test_without_our_kernels_there_is_no_table():
    assert rivals.render([line("torch", [1.0]), line("reference", [1.0])]) == ""
    assert rivals.pictures(rivals.rows([])) == []
