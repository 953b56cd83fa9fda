"""A run that starts Ray actors of its own, and counts those that answer."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from suite import cluster
from suite.task import Task


@dataclass(frozen=True)
class Config:
    members: int = 1
    steps: int = 3
    fault: str = ""
    sign: str = ""


def run(cfg, ctx):
    with cluster.actors(cfg.members) as places:
        import ray

        class Member:
            def node(self):
                return ray.get_runtime_context().get_node_id()

        crew = [ray.remote(Member).options(**place).remote() for place in places]
        ctx.keep(history=[])
        yield
        for step in range(1, cfg.steps + 1):
            answers = ray.get([member.node.remote() for member in crew])
            yield {"step": step, "answers": len(answers)}
            if cfg.fault == "kill_once" and not Path(cfg.sign).exists():
                Path(cfg.sign).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if cfg.fault == "hang":
                time.sleep(600)


TASK = Task(
    config=Config(),
    run=run,
    sections=("Toys",),
    profiles={"smoke": {}, "laptop": {}, "paper": {}},
    variants={"steady": {}, "kill_once": {"fault": "kill_once"}, "hang": {"fault": "hang"}},
    targets={"smoke": {}, "laptop": {}, "paper": {}},
    actors="members",
)
