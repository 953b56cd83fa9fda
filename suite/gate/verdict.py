"""What a session's blocks come to: a pure function of records, so that anybody can repeat it."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from suite.codes import UNTRUSTED
from suite.gate.decide import (
    ALPHA,
    IMPROVED,
    INCONCLUSIVE,
    INFORMATIONAL,
    REGRESSED,
    Decision,
    decide,
    floor,
)
from suite.gate.values import log_ratios
from suite.record import SESSIONS, AbBlock, AbRevision, Record
from suite.store import Store

SCHEMA = "fdl.gate/1"
FOLDER = "gate"
OK, FAILED = 0, 1
# What stops a merge besides a slowdown: the candidate has lost or broken a benchmark.
LOST = ("missing", "broken")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A session, judged.

    Attributes:
        session: its name.
        base, cand: what was compared.
        inputs: the records it rests on, sorted.
        alpha: the level at which it was judged.
        floors: benchmark -> the noise floor that its margin respects.
        decisions: benchmark -> what its pairs say.
        controls: ``aa`` and ``slowed`` -> what theirs say.
        outcomes: benchmark -> why it was not timed, and what was said.
    """

    session: str
    base: AbRevision
    cand: AbRevision
    inputs: tuple[str, ...]
    alpha: float
    floors: Mapping[str, float]
    decisions: Mapping[str, Decision]
    controls: Mapping[str, Decision]
    outcomes: Mapping[str, tuple[str, str]]

    @property
    def distrust(self) -> str:
        """Why the session says nothing; empty where it can be believed."""
        for name, (kind, said) in self.outcomes.items():
            if kind == "mixed up":
                return f"{name}: {said}"
        aa, slowed = self.controls.get("aa"), self.controls.get("slowed")
        if aa is None or slowed is None:
            return "there is no control: no benchmark could be called again and again"
        if aa.verdict in (REGRESSED, IMPROVED):
            return f"the same code against itself was found {aa.verdict} ({100 * aa.change:+.1f} %)"
        if slowed.verdict != REGRESSED:
            return (
                f"a slowdown of 20 % made on purpose was not found: {slowed.why or slowed.verdict}"
            )
        return ""

    @property
    def settled(self) -> bool:
        """Whether more pairs would change nothing."""
        return not self.distrust and all(d.verdict != INCONCLUSIVE for d in self.decisions.values())

    @property
    def exit_code(self) -> int:
        """1 where a benchmark got slower, was lost or broke; 3 where timings say nothing."""
        if any(kind in LOST for kind, _ in self.outcomes.values()):
            return FAILED
        if self.distrust:
            return UNTRUSTED
        return FAILED if any(d.verdict == REGRESSED for d in self.decisions.values()) else OK

    def to_json(self) -> str:
        """The verdict as its file has it."""
        content = dataclasses.asdict(self) | {
            "schema": SCHEMA,
            "base": self.base.model_dump(),
            "cand": self.cand.model_dump(),
            "distrust": self.distrust,
            "exit_code": self.exit_code,
        }
        return json.dumps(_finite(content), indent=1, sort_keys=True) + "\n"


def derive(records: Sequence[Record], floors: Mapping[str, float], alpha: float = ALPHA) -> Verdict:
    """Judge the pairs of one session.

    Raises:
        ValueError: no records, or records of several sessions.
    """
    blocks = [r.ab_block for r in records if r.ab_block]
    sessions = {b.session for b in blocks}
    if len(sessions) != 1:
        raise ValueError(f"expected the records of one session, got {len(sessions)}")
    blocks.sort(key=lambda b: b.pair)
    outcomes = blocks[-1].outcomes
    pairs = {n: y for n, y in log_ratios(blocks).items() if n not in outcomes}
    controls: dict[str, Decision] = {}
    for kind in ("aa", "slowed"):
        for y in log_ratios(blocks, kind).values():
            controls |= decide({kind: y}, alpha=alpha)
    return Verdict(
        session=sessions.pop(),
        base=blocks[-1].base,
        cand=blocks[-1].cand,
        inputs=tuple(sorted(r.record_id for r in records)),
        alpha=alpha,
        floors={n: f for n, f in floors.items() if n in pairs},
        decisions=decide(pairs, floors, alpha),
        controls=controls,
        outcomes=outcomes,
    )


def sessions(store: Store) -> dict[str, list[Record]]:
    """Session -> its records, of all that a store holds."""
    found: dict[str, list[Record]] = {}
    for record in store.scan(f"{SESSIONS}/*.json"):
        if record.ab_block:
            found.setdefault(record.ab_block.session, []).append(record)
    return dict(sorted(found.items()))


def floors(store: Store, cpu: str) -> dict[str, float]:
    """Benchmark -> its noise floor, from all A/A sessions on machines with this processor."""
    pairs: dict[str, list[float]] = {}
    for records in sessions(store).values():
        blocks = [r.ab_block for r in records if r.ab_block and r.nodes[0].cpu_model == cpu]
        for name, y in log_ratios([b for b in blocks if same_code(b)]).items():
            pairs.setdefault(name, []).extend(y)
    return {n: f for n, y in sorted(pairs.items()) if (f := floor(y)) is not None}


def same_code(block: AbBlock) -> bool:
    """Whether a pair compares a revision with itself."""
    base, cand = block.base, block.cand
    return base.commit == cand.commit and base.diff_sha256 == cand.diff_sha256


def check(store: Store) -> list[str]:
    """What does not re-derive of the verdicts in a store; empty when all do."""
    names = store.names(f"{FOLDER}/*.json")
    if not names:
        return []
    known, problems = sessions(store), []
    for name in names:
        if not _derives(store.read(name) or b"", known):
            problems.append(f"{name}: does not re-derive from its records")
    return problems


def _derives(text: bytes, known: Mapping[str, Sequence[Record]]) -> bool:
    """Whether a verdict is what the records of its session say."""
    try:
        content = json.loads(text)
        records = known[content["session"]]
        return derive(records, content["floors"], content["alpha"]).to_json().encode() == text
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _finite(content: Any) -> Any:
    """JSON has no infinity: a bound that does not exist is null."""
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def counts(verdict: Verdict) -> str:
    """One line: how many of which verdict."""
    order = (REGRESSED, IMPROVED, "UNCHANGED", INCONCLUSIVE, INFORMATIONAL)
    found = [d.verdict for d in verdict.decisions.values()]
    parts = [f"{found.count(v)} {v}" for v in order if v in found]
    kinds = [kind for kind, _ in verdict.outcomes.values()]
    parts += [f"{kinds.count(k)} {k}" for k in sorted(set(kinds))]
    return ", ".join(parts)
