import pytest

from suite import provenance


@pytest.mark.parametrize(
    ("status", "dirty"),
    [
        ("", False),
        (" M README.md\n", True),
        ("?? suite/extra.py\n", True),
        ("?? tests/bench/\n", True),
        # Results that were put into a folder of the checkout.
        ("?? mine/\n?? notes.txt\n", False),
        ("?? mine/\n M tasks/models/dnc.py\n", True),
        (None, None),
    ],
)
def test_what_can_change_a_number_makes_a_tree_dirty(monkeypatch, status, dirty):
    answers = {"rev-parse": "a" * 40 + "\n", "status": status, "diff": ""}
    monkeypatch.setattr(provenance, "_git", lambda command, *rest: answers[command])
    found = provenance.code.__wrapped__()
    assert found.commit == "a" * 40
    assert found.dirty is dirty
    assert (found.diff_sha256 is None) == (not dirty)
