"""Proximal policy optimisation: the clipped objective, beside what it is without its parts.

Section "Proximal Policy Optimization". PPO plays N environments for T steps, estimates the
advantages A, and climbs min(r A, clip(r, 1 - eps, 1 + eps) A) for several epochs on that batch,
where r is an action's probability over what it was when it was taken (Schulman et al. 2017,
equation 7). Beside it: no clip (`no_clip`, equation 6), one epoch (`one_epoch`), the one-step
error in place of generalised advantage estimates (`no_gae`), and Ray RLlib's PPO under the same
settings (`rllib`).

The book gives neither a listing nor a figure for PPO. The settings are those that
rl-baselines3-zoo tuned for CartPole-v1 (hyperparams/ppo.yml), except that the policy's last layer
starts at zero: of 40 greedy policies that start near it, one reached 490 untrained. Learning rate
and clip range fall linearly to zero over the budget. RLlib keeps its own initialisation and a
fixed clip range; its runner and learner work in this process as its `Algorithm` has them work,
without a cluster. The zoo's gae_lambda = 0.8 is not the best here: with 1, seeds 1000 to 1004 have
a `mean_return` of 445, against 398.

With `env_runners` = N, RLlib plays in N Ray actors, on other machines if need be, and learns in
the run's own process: `--variant rllib --on ray:2 --set env_runners=1`. A run with several runners
need not repeat itself, and the record says so.

`best_return` is the best greedy evaluation so far, `mean_return` the mean of all: PPO can forget.
`kl_max` is the furthest an update moved the policy; `ratio_first` the largest r before it, 1.

Shapes: T steps of a rollout, N environments, B a minibatch, D an observation, A the actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from suite.checkpoint import seed_everything
from suite.fields import Count, Natural, Positive, Share
from suite.fit import batches
from suite.rl import Environments, evaluate, gae, make_env, standing
from suite.task import Claim, Target, Task
from tasks.models.rllib import playing, quiet

WIDTH, VALUE_COEF, MAX_GRAD_NORM, EVAL_SEED = 64, 0.5, 0.5, 1_000_000


@dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    engine: Literal["own", "rllib"] = "own"
    clip: bool = True
    epochs: Count = 20
    gae_lambda: Share = 0.8
    gamma: Share = 0.98
    lr: Positive = 1e-3
    clip_range: Positive = 0.2
    num_envs: Count = 8
    horizon: Count = 32
    minibatch: Count = 256
    env_steps: Count = 100_000
    eval_every: Count = 4_096
    eval_episodes: Count = 100
    env_runners: Natural = 0

    def __post_init__(self) -> None:
        n = self.env_runners
        if n < 0 or (n and self.num_envs % n):
            raise ValueError(
                f"env_runners={n}: 0 plays in the run's own process, and as many Ray actors as "
                f"divide the {self.num_envs} environments share them"
            )
        if n and self.engine != "rllib":
            raise ValueError(f"env_runners={n} is RLlib's: --variant rllib")


class ActorCritic(nn.Module):
    """A policy and a value function that share nothing; gives log-probabilities and values."""

    def __init__(self, obs_size: int, num_actions: int, width: int) -> None:
        super().__init__()
        self.actor = mlp(obs_size, width, num_actions, gain=0.0)
        self.critic = mlp(obs_size, width, 1, gain=1.0)

    def forward(self, obs_D: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(obs_D).log_softmax(-1), self.critic(obs_D).squeeze(-1)


def mlp(size: int, width: int, out: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, out)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


@torch.no_grad()
def rollout(env: Environments, model: ActorCritic, cfg: Config) -> tuple[list[Tensor], list[float]]:
    """Play T steps; what an update needs of them, and the returns of the episodes they ended.

    An update needs observations, actions, log-probabilities, advantages, value targets: (TN, ...).
    """
    rows = []
    for _ in range(cfg.horizon):
        obs_ND = env.obs
        action_N = model.actor(obs_ND).softmax(-1).multinomial(1).squeeze(1)
        rows.append((obs_ND, action_N, *env.step(action_N)))
    obs_TND, action_TN, *outcome = (torch.stack(column) for column in zip(*rows, strict=True))
    reward_TN, next_obs_TND, terminated_TN, truncated_TN, return_TN = outcome
    log_probs_TNA, value_TN = model(obs_TND)
    values_TN = (value_TN, model(next_obs_TND)[1])
    ends_TN = (terminated_TN, truncated_TN)
    advantage_TN = gae(reward_TN, *values_TN, *ends_TN, gamma=cfg.gamma, lam=cfg.gae_lambda)
    old_TN = chosen(log_probs_TNA, action_TN)
    parts = (obs_TND, action_TN, old_TN, advantage_TN, advantage_TN + value_TN)
    return [part.flatten(0, 1) for part in parts], return_TN[terminated_TN | truncated_TN].tolist()


def chosen(log_probs_A: Tensor, action: Tensor) -> Tensor:
    return log_probs_A.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def surrogate(ratio_B: Tensor, advantage_B: Tensor, clip_range: float | None) -> Tensor:
    """L^CLIP (equation 7), or L^CPI (equation 6) without a clip range; to be maximised."""
    near_B = ratio_B if clip_range is None else ratio_B.clamp(1 - clip_range, 1 + clip_range)
    return torch.minimum(ratio_B * advantage_B, near_B * advantage_B).mean()


def improve(
    model: ActorCritic, optimizer: Any, data: list[Tensor], cfg: Config, clip_range: float
) -> dict[str, float]:
    """The epochs of one update; how far they moved the policy."""
    firsts = []
    for _ in range(cfg.epochs):
        for obs_BD, action_B, old_B, advantage_B, target_B in batches(tuple(data), cfg.minibatch):
            log_probs_BA, value_B = model(obs_BD)
            ratio_B = (chosen(log_probs_BA, action_B) - old_B).exp()
            firsts = firsts or [float(ratio_B.detach().max())]
            advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std() + 1e-8)
            policy = surrogate(ratio_B, advantage_B, clip_range if cfg.clip else None)
            value = nn.functional.mse_loss(value_B, target_B)
            optimizer.zero_grad()
            (VALUE_COEF * value - policy).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
    return {"ratio_first": firsts[0]} | moved(model, data, clip_range)


@torch.no_grad()
def moved(model: ActorCritic, data: list[Tensor], clip_range: float) -> dict[str, float]:
    obs_BD, action_B, old_B, advantage_B, target_B = data
    log_probs_BA, _ = model(obs_BD)
    log_ratio_B = chosen(log_probs_BA, action_B) - old_B
    ratio_B = log_ratio_B.exp()
    return {
        "approx_kl": float((ratio_B - 1 - log_ratio_B).mean()),
        "clip_fraction": float(((ratio_B - 1).abs() > clip_range).float().mean()),
        "entropy": float(-(log_probs_BA.exp() * log_probs_BA).sum(-1).mean()),
        "explained_variance": float(1 - advantage_B.var() / target_B.var().clamp_min(1e-8)),
    }


def greedy(cfg: Config, ctx: Any, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """The returns of the most probable actions, in environments of their own."""
    seed = EVAL_SEED + ctx.seed
    return evaluate(lambda o: logits(o).argmax(-1), cfg.env, cfg.eval_episodes, seed, ctx.device)


def own(cfg: Config, ctx: Any) -> Any:
    env = make_env(cfg.env, cfg.num_envs, ctx.seed, ctx.device)
    model = ActorCritic(env.obs.shape[-1], env.num_actions, WIDTH).to(ctx.device)
    optimizer = torch.optim.Adam(model.parameters(), cfg.lr, eps=1e-5, fused=True)
    kept = {k: [] for k in ("evaluations", "finished", "approx_kl", "clip_fraction")}
    ctx.keep(env=env, model=model, optimizer=optimizer, progress=kept)
    yield
    batch = cfg.num_envs * cfg.horizon
    total = cfg.env_steps // batch
    for update in range(len(kept["approx_kl"]), total):
        remaining = 1 - update / total
        optimizer.param_groups[0]["lr"] = cfg.lr * remaining
        data, finished = rollout(env, model, cfg)
        change = improve(model, optimizer, data, cfg, cfg.clip_range * remaining)
        kept["finished"] = [*kept["finished"], *finished][-20:]
        for name in ("approx_kl", "clip_fraction"):
            kept[name].append(change[name])

        def metrics(step: int = (update + 1) * batch, change: Any = change) -> dict[str, float]:
            recent = kept["finished"] or [0.0]
            train = {"train_return": sum(recent) / len(recent), "kl_max": max(kept["approx_kl"])}
            returns_N = greedy(cfg, ctx, model.actor)
            return standing(kept["evaluations"], step, returns_N) | train | change

        if (update + 1) * batch % cfg.eval_every < batch or update + 1 == total:
            yield metrics
    ctx.figure("ppo", lambda: draw(kept, batch, model.actor, ctx.device))


def rllib(cfg: Config, ctx: Any) -> Any:
    """RLlib's state cannot be kept, but it repeats itself: a restart goes through it again.

    Where actors play, what comes before the last row may then differ from what was reported.
    """
    quiet()
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    batch = cfg.num_envs * cfg.horizon
    net = {"fcnet_hiddens": [WIDTH] * 2, "fcnet_activation": "tanh", "vf_share_layers": False}
    ppo = PPOConfig().environment(cfg.env).debugging(seed=ctx.seed, log_level="ERROR")
    ppo.env_runners(num_envs_per_env_runner=cfg.num_envs // max(1, cfg.env_runners))
    ppo.learners(num_learners=0).rl_module(model_config=DefaultModelConfig(**net))
    ppo.training(gamma=cfg.gamma, lambda_=cfg.gae_lambda, lr=[[0, cfg.lr], [cfg.env_steps, 0.0]])
    ppo.training(clip_param=cfg.clip_range, vf_loss_coeff=VALUE_COEF, vf_clip_param=1e9)
    ppo.training(grad_clip=MAX_GRAD_NORM, grad_clip_by="global_norm", use_kl_loss=False)
    ppo.training(train_batch_size_per_learner=batch)
    evaluations: list[list[float]] = []
    with playing(ppo, cfg.env_runners) as runners:
        here = runners.here
        learner = ppo.build_learner_group(env=here.env, spaces=here.get_spaces())

        def logits(obs_ND: Tensor) -> Tensor:
            return here.module.forward_inference({"obs": obs_ND.cpu()})["action_dist_inputs"]

        try:
            ctx.keep(model=here.module, evaluations=evaluations)
            yield
            seed_everything(ctx.seed)
            runners.synchronise(learner, 0)
            step, seen = 0, evaluations[-1][0] if evaluations else 0
            while step + batch <= cfg.env_steps:
                episodes = runners.sample(batch)
                taken = sum(len(episode) for episode in episodes)
                step += taken
                learner.update(
                    episodes=episodes,
                    timesteps={"num_env_steps_sampled_lifetime": step},
                    num_epochs=cfg.epochs,
                    minibatch_size=cfg.minibatch,
                    shuffle_batch_per_epoch=True,
                )
                runners.synchronise(learner, step)
                due = step % cfg.eval_every < taken or step + batch > cfg.env_steps
                if due and step > seen:
                    yield lambda step=step: standing(evaluations, step, greedy(cfg, ctx, logits))
        finally:
            learner.shutdown()


@torch.no_grad()
def draw(kept: dict[str, list[Any]], batch: int, actor: nn.Module, device: torch.device) -> Any:
    """Left, the run: return, and how far each update moved the policy. Right, where that led."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplot_mosaic("RRP;RRP;KKP;CCP", height_ratios=(2, 2, 1.2, 1.2))
    steps = range(batch, batch * len(kept["approx_kl"]) + 1, batch)
    axes["R"].plot(*zip(*kept["evaluations"], strict=True), "o-", ms=3, color="#0072B2")
    axes["R"].axhline(475, color="#555555", lw=0.8, ls="--")
    axes["R"].set(ylim=(0, 520), yticks=(0, 100, 200, 300, 400, 475))
    axes["K"].semilogy(steps, kept["approx_kl"], lw=1, color="#D55E00")
    axes["C"].plot(steps, kept["clip_fraction"], lw=1, color="#009E73")
    axes["C"].set(xlabel="environment steps", ylabel="share outside\nclip range", ylim=(0, None))
    for name, label in {"R": "return of greedy play", "K": "KL (nats)"}.items():
        axes[name].sharex(axes["C"])
        axes[name].set_ylabel(label)
        axes[name].tick_params(labelbottom=False)
    figure.align_ylabels()
    angle, speed, still = torch.linspace(-0.2, 0.2, 99), torch.linspace(-1, 1, 99), torch.zeros(1)
    obs_BD = torch.cartesian_prod(still, still, speed, angle)[:, [0, 1, 3, 2]].to(device)
    right = actor(obs_BD).softmax(-1)[:, 1].reshape(99, 99)
    grid = [part.cpu().numpy() for part in (angle.rad2deg(), speed, right)]
    image = axes["P"].pcolormesh(*grid, cmap="PuOr", vmin=0, vmax=1, shading="gouraud")
    axes["P"].set(xlabel="pole angle (degrees)", ylabel="angular velocity (rad/s)")
    figure.colorbar(image, ax=axes["P"], label="probability of pushing right, cart at rest at 0")
    return figure


def run(cfg: Config, ctx: Any) -> Any:
    yield from {"own": own, "rllib": rllib}[cfg.engine](cfg, ctx)


BOOK = "section 'Proximal Policy Optimization'; Schulman et al. 2017, sections 1, 3 and 6.1"
SMOKE = "calibrated: 20 seeds from 1000, worst 73; untrained at most 9.6, half the steps 14 to 222"
LAPTOP = "Gymnasium's threshold; from seed 1000 clip 20/20, rllib 5/5 end at 500; at 8k 18/20 fail"
GAE = "Schulman et al. 2016, the paper on generalised advantage estimation, section 3"
LUCK = "an unclipped run often collapses, but not always: 2 of 5 calibration runs did as well"
ZOO = "rl-baselines3-zoo, benchmark.md: ppo, CartPole-v1, 500.000 ± 0.000 at 100k steps, one run"

TASK = Task(
    config=Config(),
    run=run,
    sections=("Proximal Policy Optimization",),
    profiles={
        "smoke": {"env_steps": 4_096, "eval_every": 1_024, "eval_episodes": 10},
        "laptop": {"env_steps": 50_000, "eval_every": 2_048, "eval_episodes": 20},
        "paper": {},
    },
    variants={
        "clip": {},
        "no_clip": {"clip": False},
        "one_epoch": {"epochs": 1},
        "no_gae": {"gae_lambda": 0.0},
        "rllib": {"engine": "rllib"},
    },
    targets={
        "smoke": {"clip": Target("best_return", 60.0, "max", SMOKE)},
        "laptop": {v: Target("best_return", 475.0, "max", LAPTOP) for v in ("clip", "rllib")},
        "paper": {v: Target("best_return", 500.0, "max", ZOO) for v in ("clip", "rllib")},
    },
    claims=(
        Claim("clipping keeps an update near its start", "kl_max", "clip", "no_clip", "min", BOOK),
        Claim("the clip gives stability", "mean_return", "clip", "no_clip", "max", BOOK, note=LUCK),
        Claim("many epochs beat one", "mean_return", "clip", "one_epoch", "max", BOOK),
        Claim("GAE beats one-step errors", "mean_return", "clip", "no_gae", "max", GAE),
    ),
    actors="env_runners",
)
