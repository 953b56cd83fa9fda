"""Compare two revisions of a repository: take pairs, keep them as records, judge them."""

import time
from collections.abc import Sequence
from pathlib import Path

from suite import provenance
from suite.gate import verdict as verdicts
from suite.gate.session import Listener, Plan, session
from suite.gate.trees import trees
from suite.gate.values import planned
from suite.gate.verdict import FOLDER, Verdict
from suite.record import AbBlock, NodeInfo, Record, digest, utc
from suite.store import Store


def compare(
    repo: Path,
    base: str,
    cand: str | None,
    plan: Plan,
    store: Store,
    listen: Listener = lambda event, pair, name: None,
) -> Verdict:
    """Take pairs until a look settles it, and write the verdict beside their records.

    Args:
        repo: a folder inside a git repository.
        base: the revision to compare with.
        cand: the revision to judge; the working directory as it is when None.
        plan: how the session goes.
        store: where the records and the verdict go.
        listen: told what is timed.

    Raises:
        ValueError: no such repository or revision, or no benchmark that both have.
        OSError: an environment cannot be made, or the store cannot be written.
        SideDied: the processes do not come up, or die again and again.
    """
    store.check_writable()
    node = provenance.node()
    floors = verdicts.floors(store, node.cpu_model)
    records: list[Record] = []
    levels = dict(plan.looks)

    def judged(alpha: float) -> Verdict:
        return verdicts.derive(records, floors, alpha)

    def settled(blocks: Sequence[AbBlock]) -> bool:
        return judged(levels[planned(blocks)]).settled

    with trees(repo, base, cand) as (left, right):
        begun, started = utc(), time.monotonic()
        for block in session(left, right, plan, settled, listen):
            records.append(_record(block, plan, begun, time.monotonic() - started, node))
            store.put(records[-1])
            begun, started = utc(), time.monotonic()
    found = judged(levels[planned(r.ab_block for r in records if r.ab_block)])
    store.write(f"{FOLDER}/{found.session}.json", found.to_json().encode())
    return found


def _record(block: AbBlock, plan: Plan, begun: str, wall_s: float, node: NodeInfo) -> Record:
    from suite import bench  # It brings PyTorch, which nobody needs to be told of a mistake.

    config = {
        "name": "session",
        "looks": {str(n): alpha for n, alpha in plan.looks.items()},
        "select": list(plan.select),
        "seed": plan.seed,
    }
    gpu = any(c.clock == "gpu" for c in block.comparisons)
    return bench.sealed(
        block,
        run_id=digest({"session": block.session, "pair": block.pair}),
        version=digest({"base": block.base.commit, "cand": block.cand.commit}),
        config=config,
        status="ok",
        wall_s=wall_s,
        started_utc=begun,
        gpu=gpu,
        nodes=[node.model_copy(update={"load1_end": provenance.load1()})],
        campaign_id=block.session,
    )
