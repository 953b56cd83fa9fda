"""What the record of any fault that a run survived must say."""

import os

from suite.store import Store


def survived(records, uri, lost_steps):
    """Each of these runs of the toy was struck in its middle and ended as one left alone does."""
    assert records
    for r in records:
        assert r.kind == "fault"
        assert r.status in ("ok", "target_missed")
        assert r.fault.same_params is True
        assert r.fault.step == 4
        assert r.fault.of_steps == 8
        assert r.fault.lost_steps == lost_steps
        assert r.fault.recovery_s > 0
        assert 0 < r.fault.goodput < 1
        assert r.fault.detected_s is not None
        assert r.train.steps == 8
    assert {r.record_id for r in Store(uri).scan()} == {r.record_id for r in records}
    assert not [name for name in os.listdir(uri) if name.startswith(".faults")]
