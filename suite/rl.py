"""Pieces that the reinforcement-learning tasks share: returns, replay, environments; no loop.

Shapes: T steps of a rollout, N environments side by side, B batch, ... an observation's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Returns to go of one episode, G_t = r_t + gamma G_{t+1}.

    Args:
        rewards: (T, ...), floating point.
        gamma: the discount.

    Returns:
        (T, ...), of the rewards' type.

    Raises:
        ValueError: rewards of an integer type.
    """
    if not rewards.is_floating_point():
        raise ValueError(f"rewards are floating point, got {rewards.dtype}")
    returns, running = torch.empty_like(rewards), rewards.new_zeros(rewards.shape[1:])
    for t in reversed(range(len(rewards))):
        running = returns[t] = rewards[t] + gamma * running
    return returns


def gae(
    reward_TN: Tensor,
    value_TN: Tensor,
    next_value_TN: Tensor,
    terminated_TN: Tensor,
    truncated_TN: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equations 11 and 16).

    An episode that terminated is worth nothing from there on; one that was cut short by a
    time limit is worth what the critic says of the state it had reached. Neither lets the
    advantages of the episode that follows it flow back.

    Args:
        reward_TN: (T, N) r_t.
        value_TN: (T, N) V(s_t).
        next_value_TN: (T, N) V of the state that the step led to, before any reset.
        terminated_TN: (T, N) bool, the step ended its episode.
        truncated_TN: (T, N) bool, the step was the last that a time limit allowed.
        gamma: the discount.
        lam: lambda; 0 gives the one-step error, 1 the discounted return less the value.

    Returns:
        (T, N) advantages.

    Raises:
        ValueError: arguments of different shapes.
    """
    given = [reward_TN, value_TN, next_value_TN, terminated_TN, truncated_TN]
    if len({x.shape for x in given}) != 1:
        shapes = [tuple(x.shape) for x in given]
        raise ValueError(f"gae takes five tensors of one shape, got {shapes}")
    delta_TN = reward_TN + gamma * next_value_TN * ~terminated_TN - value_TN
    carry_TN = gamma * lam * (~(terminated_TN | truncated_TN)).to(delta_TN)
    advantage_TN, running_N = torch.empty_like(delta_TN), torch.zeros_like(delta_TN[0])
    for t in reversed(range(len(delta_TN))):
        running_N = advantage_TN[t] = delta_TN[t] + carry_TN[t] * running_N
    return advantage_TN


class Replay:
    """The last ``capacity`` transitions, in tensors; ``ctx.keep`` can keep it.

    Args:
        capacity: how many are remembered; the oldest is overwritten.
        example: field -> a tensor of the shape, type and device of one transition's.

    Raises:
        ValueError: a capacity below one.
    """

    def __init__(self, capacity: int, example: Mapping[str, Tensor]) -> None:
        if capacity < 1:
            raise ValueError(f"a replay memory needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self._fields = {k: v.new_zeros((capacity, *v.shape)) for k, v in example.items()}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, **batch: Tensor) -> None:
        """Remember B transitions.

        Args:
            batch: every field, each (B, ...).

        Raises:
            ValueError: other fields than the memory's, or more transitions than it holds.
        """
        if batch.keys() != self._fields.keys():
            raise ValueError(f"this replay memory holds {[*self._fields]}, got {[*batch]}")
        n = len(next(iter(batch.values())))
        if n > self.capacity:
            raise ValueError(f"{n} transitions do not fit into a capacity of {self.capacity}")
        at = torch.arange(self._added, self._added + n) % self.capacity
        for name, value in batch.items():
            self._fields[name][at] = value
        self._added += n

    def sample(self, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Transitions drawn uniformly with replacement: field -> (size, ...).

        Raises:
            ValueError: the memory is empty.
        """
        if not self._added:
            raise ValueError("nothing to sample: the replay memory is empty")
        index = torch.randint(len(self), (size,), generator=generator)
        return {name: value[index] for name, value in self._fields.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, and where the next transition goes."""
        filled = {name: value[: len(self)] for name, value in self._fields.items()}
        return {"added": self._added, "fields": filled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self._added = int(state["added"])
        for name, value in state["fields"].items():
            self._fields[name][: len(value)] = value


class Step(NamedTuple):
    """What a step of N environments gave.

    Attributes:
        reward: (N,) float32.
        next_obs: (N, ...) the states the step led to, before any reset.
        terminated: (N,) bool, the episode ended.
        truncated: (N,) bool, the episode was cut short by its time limit.
        episode_return: (N,) the undiscounted return of the episode so far.
    """

    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor
    episode_return: Tensor

    @property
    def done(self) -> Tensor:
        """(N,) bool: what follows belongs to another episode."""
        return self.terminated | self.truncated


class Environments:
    """N copies of a Gymnasium environment, side by side; ``make_env`` makes them.

    An episode that is over is followed by a new one within the same step, so every transition
    is a real one: ``Step.next_obs`` is where the action led, ``obs`` is where to act next.

    Attributes:
        obs: (N, ...) what the next actions answer to.
        num_envs: N.
        num_actions: the number of discrete actions; None where they are not discrete.
    """

    def __init__(self, vector: Any, seed: int, device: torch.device | str = "cpu") -> None:
        self.num_envs = int(vector.num_envs)
        actions = getattr(vector.single_action_space, "n", None)
        self.num_actions = None if actions is None else int(actions)
        self._vector, self._device = vector, torch.device(device)
        self._keepable = type(vector.unwrapped).__name__ == "CartPoleVectorEnv"
        self.obs = self._tensor(vector.reset(seed=seed)[0])
        self._return_N = torch.zeros(self.num_envs, device=self._device)

    def step(self, actions: Tensor) -> Step:
        """Act once in every environment.

        Args:
            actions: (N,) or (N, ...), one for each environment.
        """
        obs, reward, terminated, truncated, info = self._vector.step(actions.cpu().numpy())
        done = terminated | truncated
        self.obs = next_obs = self._tensor(obs)
        if done.any():
            if self._keepable:
                self.obs = self._tensor(_restart(self._vector.unwrapped, done))
            else:
                final = obs.copy()
                final[done] = np.stack(list(info["final_obs"][done]))
                next_obs = self._tensor(final)
        reward_N = self._tensor(np.asarray(reward, dtype=np.float32))
        episode_return_N = self._return_N + reward_N
        done_N = self._tensor(done)
        self._return_N = episode_return_N * ~done_N
        return Step(
            reward_N, next_obs, self._tensor(terminated), self._tensor(truncated), episode_return_N
        )

    def state_dict(self) -> dict[str, Any]:
        """What the environments carry over a restart, their random generator included.

        Raises:
            TypeError: the environment does not lay its state open.
        """
        if not self._keepable:
            raise TypeError(
                f"cannot keep {self._vector.unwrapped}: of Gymnasium's environments only "
                "CartPole's state can be saved and restored"
            )
        inner = self._vector.unwrapped
        return {
            "state": torch.tensor(inner.state),
            "steps": torch.tensor(inner.steps),
            "random": inner.np_random.bit_generator.state,
            "obs": self.obs,
            "return": self._return_N,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        inner = self._vector.unwrapped
        inner.state, inner.steps = state["state"].numpy().copy(), state["steps"].numpy().copy()
        inner.prev_done = np.zeros(self.num_envs, dtype=np.bool_)
        inner.np_random.bit_generator.state = state["random"]
        self.obs = state["obs"].to(self._device)
        self._return_N = state["return"].to(self._device)

    def close(self) -> None:
        """Let go of the environments."""
        self._vector.close()

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _restart(inner: Any, done: np.ndarray) -> np.ndarray:
    """Begin new CartPole episodes now: Gymnasium's would spend a step on it that leads nowhere."""
    fresh = inner.np_random.uniform(inner.low, inner.high, (len(inner.state), int(done.sum())))
    inner.state[:, done] = fresh
    inner.steps[done] = 0
    inner.prev_done[:] = False
    return np.ascontiguousarray(inner.state.T, dtype=np.float32)


def make_env(
    name: str, num_envs: int, seed: int, device: torch.device | str = "cpu"
) -> Environments:
    """Copies of a Gymnasium environment, at the start of their first episodes.

    Args:
        name: what Gymnasium knows it by, such as ``CartPole-v1``, with that one's time limit.
        num_envs: how many, side by side.
        seed: decides every episode's start, for all of them.
        device: where observations and rewards go; the environments themselves are on the CPU.

    Raises:
        ValueError: fewer than one environment, or a name Gymnasium does not know.
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode

    if num_envs < 1:
        raise ValueError(f"num_envs is at least 1, got {num_envs}")
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"no environment {name!r}: {error}") from error
    if "CartPoleVectorEnv" in str(spec.vector_entry_point):
        vector = gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point")
    else:
        same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        vector = gymnasium.make_vec(name, num_envs, "sync", vector_kwargs=same_step)
    return Environments(vector, seed, device)


@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor],
    name: str,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Play whole episodes, all side by side in environments of their own.

    Each environment plays one, so long episodes count no less than short ones.

    Args:
        policy: (N, ...) observations to (N,) actions; greedy, or as it is to be judged.
        name: what ``make_env`` takes.
        episodes: how many, N.
        seed: decides where the episodes start.
        device: where the policy computes.

    Returns:
        (N,) undiscounted returns.
    """
    env = make_env(name, episodes, seed, device)
    returns = torch.zeros(episodes, device=env.obs.device)
    playing = torch.ones_like(returns, dtype=torch.bool)
    while playing.any():
        step = env.step(policy(env.obs))
        returns = torch.where(playing, step.episode_return, returns)
        playing &= ~step.done
    env.close()
    return returns


def standing(evaluations: list[list[float]], step: int, returns: Tensor) -> dict[str, float]:
    """Add an evaluation to those before it, and say how it stands among them.

    The best one is what a published score asks for, since an agent can forget what it has
    learned; the mean over all of them is what stability and speed show in.

    Args:
        evaluations: [step, mean return] of each so far, kept by the task; it grows by one.
        step: environment steps taken so far.
        returns: (N,) as ``evaluate`` gives them.

    Returns:
        step, eval_return (the mean of ``returns``), best_return, mean_return.
    """
    evaluations.append([step, float(returns.mean())])
    means = [mean for _, mean in evaluations]
    return {
        "step": step,
        "eval_return": means[-1],
        "best_return": max(means),
        "mean_return": sum(means) / len(means),
    }
