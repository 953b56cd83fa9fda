"""RLlib's environment runners: one in this process, or several in Ray actors of a cluster.

RLlib's ``Algorithm`` cannot do without a Ray runtime of its own. Its parts can: a task samples
with a runner, improves with RLlib's learner, and gives the runner the new weights, as RLlib does.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from suite import cluster

RESTART_S, PROBE_S = 120.0, 5.0


class Runners:
    """What plays; ``playing`` makes and ends it.

    Args:
        config: an RLlib ``AlgorithmConfig``.
        places: for each actor where it may be, as ``suite.cluster.actors`` gives it; none has
            the one runner of this process play.

    Attributes:
        here: the runner of this process; it has the spaces and the newest module, and plays
            only where it is the only one.
    """

    def __init__(self, config: Any, places: list[dict[str, Any]]) -> None:
        from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

        self._group, self._count, self._weights = None, len(places), None
        config.env_runners(num_env_runners=len(places), create_env_on_local_worker=True)
        if not places:
            self.here = SingleAgentEnvRunner(config=config)
            return
        import ray
        from ray.rllib.env.env_runner_group import EnvRunnerGroup

        # The group's own actors would be anywhere; these are where the run has reserved room.
        self._group = EnvRunnerGroup(config=config, num_env_runners=0)
        away = ray.remote(max_restarts=config.max_num_env_runner_restarts)(SingleAgentEnvRunner)
        self._group.reset(
            [
                away.options(**place).remote(config=config, worker_index=n, num_workers=len(places))
                for n, place in enumerate(places, 1)
            ]
        )
        self.here = self._group.local_env_runner

    def sample(self, num_timesteps: int) -> list[Any]:
        """Play that many steps, in equal shares; RLlib's episodes, or pieces of them.

        A runner that is lost is started again by Ray and catches up; the others go on.

        Raises:
            ConnectionError: all runners are lost and none has come back in time.
        """
        if self._group is None:
            return list(self.here.sample(num_timesteps=num_timesteps))
        until = time.monotonic() + RESTART_S
        while time.monotonic() < until:
            if self._group.num_healthy_remote_env_runners() < self._count:
                self._group.probe_unhealthy_env_runners(timeout_seconds=PROBE_S)
                self._send()
            played = self._group.foreach_env_runner(
                "sample",
                kwargs={"num_timesteps": -(-num_timesteps // self._count)},
                local_env_runner=False,
            )
            if played:
                return [episode for episodes in played for episode in episodes]
        raise ConnectionError(f"no environment runner has answered within {RESTART_S:g} s")

    def synchronise(self, learner: Any, step: int) -> None:
        """Give every runner the weights of a learner group, and the steps played by all so far."""
        state = learner.get_state("learner/rl_module", inference_only=True)["learner"]
        self._weights = state | {"num_env_steps_sampled_lifetime": step}
        self.here.set_state(self._weights)
        if self._group is not None:
            self._send()

    def _send(self) -> None:
        assert self._group is not None
        if self._weights is not None:
            self._group.foreach_env_runner(
                "set_state", kwargs={"state": self._weights}, local_env_runner=False
            )

    def stop(self) -> None:
        """End all runners."""
        if self._group is None:
            self.here.stop()
        else:
            self._group.stop()


@contextlib.contextmanager
def playing(config: Any, count: int) -> Iterator[Runners]:
    """Runners in ``count`` Ray actors, or with 0 in this process, for as long as the block.

    Raises:
        ValueError: actors where the run has no cluster, or no room reserved for so many.
        ClusterError: the cluster does not answer.
    """
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(cluster.actors(count)) if count else []
        runners = Runners(config, places)
        stack.callback(runners.stop)
        yield runners


def quiet() -> None:
    """Keep RLlib's warnings about itself out of a run's log."""
    for chatty in ("ray.rllib", "ray._common.deprecation"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
