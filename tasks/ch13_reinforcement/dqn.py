"""Deep Q-networks: Q-learning with replay and a target network, beside its variations.

Section "Q-Learning and Deep Q-Networks". A network learns Q(s, a), the discounted return after
action a in state s, from the Bellman equation: towards r + gamma max Q'(s', .) for a transition
(s, a, r, s'), where Q' is a copy that stands still for a while. The transitions are drawn from a
replay memory, and the actions are epsilon-greedy with an epsilon that is annealed (Mnih et al.
2015, algorithm 1). Beside it: a Q that is linear in the observation (`linear`), the next action
chosen by Q and valued by Q' (`double`, van Hasselt et al. 2016), Q as a value plus advantages
(`dueling`, Wang et al. 2016), and Ray RLlib's DQN under the same settings (`rllib`).

The book plays Breakout and gives figures for that alone. Its discount and the size of its replay
memory are kept; the rest is rl-baselines3-zoo's for CartPole-v1 (hyperparams/dqn.yml), with less
than a quarter of the learning rate and half of the updates: with the zoo's, seed 1004 fell from
250 to 18 within 20,000 steps. A round is 256 steps, of eight environments side by side, and then
64 updates towards a target network that is copied after them; the last layer starts at zero, so
an untrained policy is constant. RLlib keeps its own initialisation. DQN is at its best early: of
20 runs 17 pass 195, the threshold of CartPole-v0, within 12,288 steps, and most then lose it. In
50,000 steps seed 1001 reaches 500, and seed 1000 no more than 344.

With `env_runners` = N, RLlib plays in N Ray actors, on other machines if need be, and learns in
the run's own process: `--variant rllib --on ray:2 --set env_runners=1`. The shares of a round are
then 256 / N steps. A run with several runners need not repeat itself, and the record says so.

`best_return` is the best greedy evaluation so far, `mean_return` the mean of all: DQN forgets.
`q_bias` is what Q promises at the start of those episodes, less the discounted return they bring.

Shapes: T steps of an episode, N environments, B a minibatch, D an observation, A the actions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from suite.checkpoint import seed_everything
from suite.fields import Count, Natural, Positive, Share
from suite.rl import Environments, Replay, discounted, make_env, standing
from suite.task import Claim, Target, Task
from tasks.models.rllib import playing, quiet

NUM_ENVS, WIDTH, WARM_UP, MAX_GRAD_NORM, EVAL_SEED = 8, 256, 1_000, 10.0, 1_000_000
FIRST_EPSILON, LAST_EPSILON = 1.0, 0.04


@dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    engine: Literal["own", "rllib"] = "own"
    network: Literal["mlp", "linear", "dueling"] = "mlp"
    double: bool = False
    gamma: Share = 0.98
    lr: Positive = 5e-4
    buffer: Annotated[int, Interval(ge=NUM_ENVS)] = 50_000
    minibatch: Count = 64
    train_every: Count = 256
    updates: Count = 64
    explore: Share = 0.16
    env_steps: Count = 50_000
    eval_every: Count = 2_048
    eval_episodes: Count = 100
    env_runners: Natural = 0

    def __post_init__(self) -> None:
        if self.env_runners not in (0, 1, 2, 4, 8):
            raise ValueError(
                f"env_runners={self.env_runners}: 0 plays in the run's own process, and 1, 2, 4 "
                f"or 8 Ray actors share the {NUM_ENVS} environments"
            )
        if self.env_runners and self.engine != "rllib":
            raise ValueError(f"env_runners={self.env_runners} is RLlib's: --variant rllib")


class QNetwork(nn.Module):
    """Q(s, .): linear, of two hidden layers, or from a value and advantages over them."""

    def __init__(self, obs_size: int, num_actions: int, kind: str) -> None:
        super().__init__()
        size = obs_size if kind == "linear" else WIDTH
        layers = [nn.Linear(obs_size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        self.body = nn.Sequential(*(() if kind == "linear" else layers))
        self.advantage = nn.Linear(size, num_actions)
        self.value = nn.Linear(size, 1) if kind == "dueling" else None
        # Of greedy policies that start anywhere near zero, some balance the pole untrained.
        nn.init.zeros_(self.advantage.weight)
        nn.init.zeros_(self.advantage.bias)

    def forward(self, obs_D: Tensor) -> Tensor:
        hidden = self.body(obs_D)
        advantage_A = self.advantage(hidden)
        if self.value is None:
            return advantage_A
        return self.value(hidden) + advantage_A - advantage_A.mean(-1, keepdim=True)


def epsilon_at(step: int, cfg: Config) -> float:
    """Annealed linearly over a share of the budget, then constant."""
    done = min(1.0, step / (cfg.explore * cfg.env_steps))
    return FIRST_EPSILON + done * (LAST_EPSILON - FIRST_EPSILON)


def chosen(q_A: Tensor, action: Tensor) -> Tensor:
    return q_A.gather(-1, action.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def td_target(model: nn.Module, frozen: nn.Module, batch: dict[str, Tensor], cfg: Config) -> Tensor:
    """The target r + gamma Q'(s', a'): Q' chooses a' or, in double Q-learning, Q does.

    A state that ends its episode is worth nothing; one at which a time limit cuts it, its value.
    """
    next_q_BA = frozen(batch["next_obs"])
    best_B = (model(batch["next_obs"]) if cfg.double else next_q_BA).argmax(-1)
    return batch["reward"] + cfg.gamma * chosen(next_q_BA, best_B) * ~batch["terminated"]


@torch.no_grad()
def explore(
    env: Environments, model: nn.Module, replay: Replay, epsilon: float
) -> tuple[Tensor, Tensor]:
    """One epsilon-greedy step of N environments into the replay memory; what it ended."""
    obs_ND = env.obs
    random_N = torch.randint(env.num_actions or 0, (env.num_envs,), device=obs_ND.device)
    greedy_N = model(obs_ND).argmax(-1)
    dice_N = torch.rand(env.num_envs, device=obs_ND.device)
    action_N = torch.where(dice_N < epsilon, random_N, greedy_N)
    step = env.step(action_N)
    replay.add(
        obs=obs_ND,
        action=action_N,
        reward=step.reward,
        next_obs=step.next_obs,
        terminated=step.terminated,
    )
    return step.done, step.episode_return


def improve(
    model: nn.Module, frozen: nn.Module, optimizer: Any, replay: Replay, cfg: Config
) -> float:
    """The updates of a round, towards a target network that stands still until they are done.

    Returns their mean loss.
    """
    losses = []
    for _ in range(cfg.updates):
        batch = replay.sample(cfg.minibatch)
        target_B = td_target(model, frozen, batch, cfg)
        q_B = chosen(model(batch["obs"]), batch["action"])
        loss = nn.functional.smooth_l1_loss(q_B, target_B)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        losses.append(loss.detach())
    frozen.load_state_dict(model.state_dict())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def judge(cfg: Config, ctx: Any, q: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """The returns of greedy episodes, each to its end, and what Q promised them less G_0."""
    env = make_env(cfg.env, cfg.eval_episodes, EVAL_SEED + ctx.seed, ctx.device)
    promised_N = q(env.obs).max(-1).values
    return_N, discounted_N = torch.zeros_like(promised_N), torch.zeros_like(promised_N)
    playing_N, discount = torch.ones_like(promised_N), 1.0
    while playing_N.any():
        step = env.step(q(env.obs).argmax(-1))
        return_N += step.reward * playing_N
        discounted_N += discount * step.reward * playing_N
        playing_N *= ~step.done
        discount *= cfg.gamma
    env.close()
    return return_N, float((promised_N - discounted_N).mean())


def own(cfg: Config, ctx: Any) -> Any:
    env = make_env(cfg.env, NUM_ENVS, ctx.seed, ctx.device)
    model, frozen = (
        QNetwork(env.obs.shape[-1], env.num_actions or 0, cfg.network).to(ctx.device)
        for _ in range(2)
    )
    frozen.load_state_dict(model.state_dict())
    frozen.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), cfg.lr, fused=True)
    flag, number, obs_D = torch.zeros((), dtype=torch.bool), torch.zeros(()), env.obs[0].cpu()
    example = {"obs": obs_D, "action": number.long(), "reward": number}
    example |= {"next_obs": obs_D, "terminated": flag}
    replay = Replay(cfg.buffer, {k: v.to(ctx.device) for k, v in example.items()})
    kept: dict[str, list[Any]] = {k: [] for k in ("evaluations", "finished", "losses")}
    ctx.keep(env=env, model=model, frozen=frozen, optimizer=optimizer, replay=replay, progress=kept)
    yield
    total = cfg.env_steps // cfg.train_every
    for begun in range(len(kept["losses"]), total):
        for start in range(0, cfg.train_every, NUM_ENVS):
            epsilon = epsilon_at(begun * cfg.train_every + start, cfg)
            ended_N, return_N = explore(env, model, replay, epsilon)
            kept["finished"] = [*kept["finished"], *return_N[ended_N].tolist()][-20:]
        step, loss = (begun + 1) * cfg.train_every, math.nan
        if step >= WARM_UP:
            loss = improve(model, frozen, optimizer, replay, cfg)
        kept["losses"].append([step, loss])

        def metrics(step: int = step, epsilon: float = epsilon) -> dict[str, float]:
            recent = kept["finished"] or [0.0]
            train = {"train_return": sum(recent) / len(recent), "epsilon": epsilon}
            return_N, bias = judge(cfg, ctx, model)
            return standing(kept["evaluations"], step, return_N) | train | {"q_bias": bias}

        if step % cfg.eval_every < cfg.train_every or begun + 1 == total:
            yield metrics
    ctx.figure("dqn", lambda: draw(kept, *follow(cfg, ctx, model)))


def rllib(cfg: Config, ctx: Any) -> Any:
    """RLlib's state cannot be kept, but it repeats itself: a restart goes through it again.

    Where actors play, what comes before the last row may then differ from what was reported.
    """
    quiet()
    import numpy as np
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    net = {"fcnet_hiddens": [WIDTH] * 2, "fcnet_activation": "relu", "head_fcnet_hiddens": []}
    annealed = [[0, FIRST_EPSILON], [round(cfg.explore * cfg.env_steps), LAST_EPSILON]]
    size = cfg.minibatch * cfg.updates
    dqn = DQNConfig().environment(cfg.env).debugging(seed=ctx.seed, log_level="ERROR")
    dqn.env_runners(num_envs_per_env_runner=NUM_ENVS // max(1, cfg.env_runners))
    dqn.learners(num_learners=0).rl_module(model_config=DefaultModelConfig(**net))
    dqn.training(gamma=cfg.gamma, lr=cfg.lr, epsilon=annealed, n_step=1, num_atoms=1)
    dqn.training(double_q=cfg.double, dueling=cfg.network == "dueling", td_error_loss_fn="huber")
    dqn.training(grad_clip=MAX_GRAD_NORM, grad_clip_by="global_norm")
    dqn.training(train_batch_size_per_learner=size, target_network_update_freq=cfg.train_every)
    replay = EpisodeReplayBuffer(cfg.buffer)
    evaluations: list[list[float]] = []
    with playing(dqn, cfg.env_runners) as runners:
        here = runners.here
        learner = dqn.build_learner_group(env=here.env, spaces=here.get_spaces())
        try:
            ctx.keep(model=here.module, evaluations=evaluations)
            yield
            seed_everything(ctx.seed)
            replay.rng = np.random.default_rng(ctx.seed)
            runners.synchronise(learner, 0)
            step, seen = 0, evaluations[-1][0] if evaluations else 0
            while step + cfg.train_every <= cfg.env_steps:
                episodes = runners.sample(cfg.train_every)
                taken = sum(len(episode) for episode in episodes)
                step += taken
                replay.add(episodes)
                if step >= WARM_UP:
                    # One large draw is the same as a draw for each update, and the faster.
                    learner.update(
                        episodes=replay.sample(num_items=size, n_step=1, sample_episodes=True),
                        timesteps={"num_env_steps_sampled_lifetime": step},
                        num_epochs=1,
                        minibatch_size=cfg.minibatch,
                    )
                runners.synchronise(learner, step)
                due = step % cfg.eval_every < taken or step + cfg.train_every > cfg.env_steps
                if due and step > seen:
                    yield lambda step=step: standing_of(here.module, evaluations, step, cfg, ctx)
        finally:
            learner.shutdown()


def standing_of(
    module: Any, evaluations: list[list[float]], step: int, cfg: Config, ctx: Any
) -> dict[str, float]:
    """How RLlib's network stands; it computes on the CPU, wherever the task does."""

    def q(obs_ND: Tensor) -> Tensor:
        return module.compute_q_values({"obs": obs_ND.cpu()})["qf_preds"].to(ctx.device)

    return_N, bias = judge(cfg, ctx, q)
    return standing(evaluations, step, return_N) | {"q_bias": bias}


@torch.no_grad()
def follow(cfg: Config, ctx: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """One greedy episode: Q_TA along it, and the discounted returns to go G_T."""
    env = make_env(cfg.env, 1, EVAL_SEED + ctx.seed, ctx.device)
    values, rewards, done = [], [], False
    while not done:
        values.append(model(env.obs)[0])
        step = env.step(values[-1].argmax(-1, keepdim=True))
        rewards.append(step.reward[0])
        done = bool(step.done)
    env.close()
    return torch.stack(values).cpu(), discounted(torch.stack(rewards), cfg.gamma).cpu()


def draw(kept: dict[str, list[Any]], q_TA: Tensor, return_T: Tensor) -> Any:
    """Left, the run: return, and what was lost on the way. Right, one episode of where it led."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplot_mosaic("RQ;RQ;LD", height_ratios=(2, 1.2, 1.2))
    axes["R"].plot(*zip(*kept["evaluations"], strict=True), "o-", ms=3, color="#0072B2")
    axes["R"].set(ylabel="return of greedy play", ylim=(0, 520))
    axes["L"].semilogy(*zip(*kept["losses"], strict=True), lw=1, color="#D55E00")
    axes["L"].set(xlabel="environment steps", ylabel="Huber loss")
    axes["Q"].plot(q_TA.max(-1).values, lw=1.2, color="#0072B2", label="max Q")
    axes["Q"].plot(return_T, lw=1.2, ls="--", color="#555555", label="discounted return to go")
    axes["Q"].set(ylabel="value", ylim=(0, None))
    axes["Q"].legend(frameon=False)
    axes["D"].plot(q_TA[:, 1] - q_TA[:, 0], lw=1, color="#009E73")
    axes["D"].axhline(0, color="#555555", lw=0.8)
    axes["D"].set(xlabel="step of a greedy episode", ylabel="Q(right) - Q(left)")
    for left, right in (("R", "L"), ("Q", "D")):
        axes[left].sharex(axes[right])
        axes[left].tick_params(labelbottom=False)
    figure.align_ylabels()
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    yield from {"own": own, "rllib": rllib}[cfg.engine](cfg, ctx)


BOOK = "section 'Q-Learning and Deep Q-Networks'"
SMOKE = "calibrated: 20 seeds from 1000, worst 26; untrained and after half the steps at most 10"
LAPTOP = "calibrated: 20 seeds of dqn, worst 172, 5 of rllib, worst 243; dqn at 2,048 at most 91"
ZOO = "rl-baselines3-zoo, benchmark.md: dqn, CartPole-v1, 500.000 ± 0.000 at 50k steps, one run"
DOUBLE = "van Hasselt et al. 2016, 'Deep Reinforcement Learning with Double Q-learning', section 3"
DUELING = "Wang et al. 2016, 'Dueling Network Architectures', section 4"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Q-Learning and Deep Q-Networks",),
    profiles={
        "smoke": {
            "env_steps": 1_792,
            "explore": 0.7,
            "train_every": 64,
            "minibatch": 16,
            "eval_every": 256,
            "eval_episodes": 10,
        },
        "laptop": {"env_steps": 12_288, "eval_every": 1_024, "eval_episodes": 20},
        "paper": {},
    },
    variants={
        "dqn": {},
        "linear": {"network": "linear"},
        "double": {"double": True},
        "dueling": {"network": "dueling"},
        "rllib": {"engine": "rllib"},
    },
    targets={
        "smoke": {"dqn": Target("best_return", 20.0, "max", SMOKE)},
        "laptop": {v: Target("best_return", 150.0, "max", LAPTOP) for v in ("dqn", "rllib")},
        "paper": {v: Target("best_return", 475.0, "max", ZOO) for v in ("dqn", "rllib")},
    },
    claims=(
        Claim("a network beats a linear Q", "mean_return", "dqn", "linear", "max", BOOK),
        Claim(
            "double Q-learning promises less",
            "q_bias",
            "double",
            "dqn",
            "min",
            DOUBLE,
            note="It corrects promises that are too high; after 12,288 steps both still promise "
            "less than the episodes bring, so there is nothing to correct.",
        ),
        Claim("dueling beats a plain Q", "mean_return", "dueling", "dqn", "max", DUELING),
    ),
    actors="env_runners",
)
