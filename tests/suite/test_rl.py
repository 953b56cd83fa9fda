import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import checkpoint
from suite.rl import Replay, discounted, evaluate, gae, make_env, standing


def _slow_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """The sum over an episode's later errors, written out for every step on its own."""
    out = torch.zeros_like(reward)
    steps, envs = reward.shape
    for n in range(envs):
        for t in range(steps):
            for later in range(t, steps):
                bootstrap = 0.0 if terminated[later, n] else float(next_value[later, n])
                error = float(reward[later, n]) + gamma * bootstrap - float(value[later, n])
                out[t, n] += (gamma * lam) ** (later - t) * error
                if terminated[later, n] or truncated[later, n]:
                    break
    return out


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9), lam=st.sampled_from([0.0, 0.8, 1.0]))
@settings(max_examples=40, deadline=None)
def test_gae_is_the_sum_of_the_errors_of_its_episode(seed, steps, lam):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(steps, 3, generator=g, dtype=torch.float64) for _ in range(3)]
    ends = [torch.rand(steps, 3, generator=g) < 0.2 for _ in range(2)]
    got = gae(*parts, *ends, gamma=0.9, lam=lam)
    torch.testing.assert_close(got, _slow_gae(*parts, *ends, 0.9, lam))


def test_gae_bootstraps_where_time_ran_out_and_not_where_the_episode_ended():
    reward, value = torch.ones(1, 2), torch.zeros(1, 2)
    terminated, truncated = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    got = gae(reward, value, value + 10, terminated, truncated, gamma=0.5, lam=0.9)
    assert got.tolist() == [[1.0, 6.0]]


def test_gae_at_lambda_one_is_the_return_less_the_value():
    reward, value = torch.rand(6, 1), torch.rand(6, 1)
    terminated = torch.zeros(6, 1, dtype=torch.bool)
    terminated[-1] = True
    next_value = torch.cat([value[1:], value[:1]])
    got = gae(reward, value, next_value, terminated, ~terminated & terminated, gamma=0.9, lam=1.0)
    torch.testing.assert_close(got, discounted(reward, 0.9) - value)


def test_gae_refuses_different_shapes():
    x, over = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one shape.*\(3,\)"):
        gae(x, x, x[:, 0], over, over, gamma=0.9, lam=0.9)


@given(n=st.integers(1, 60), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
@settings(max_examples=30, deadline=None)
def test_discounted_has_its_closed_form(n, gamma):
    got = discounted(torch.ones(n, dtype=torch.float64), gamma)
    left = torch.arange(n, 0, -1, dtype=torch.float64)
    want = left if gamma == 1 else (1 - gamma**left) / (1 - gamma)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_discounted_works_along_time_and_refuses_integers():
    rewards = torch.rand(5, 3)
    columns = [discounted(rewards[:, n], 0.9) for n in range(3)]
    assert torch.equal(discounted(rewards, 0.9), torch.stack(columns, 1))
    with pytest.raises(ValueError, match="floating"):
        discounted(torch.ones(3, dtype=torch.int64), 0.9)


def _example():
    return {"obs": torch.zeros(2), "action": torch.tensor(0)}


def _rows(first, n):
    numbers = torch.arange(first, first + n)
    return {"obs": numbers[:, None].expand(n, 2).float(), "action": numbers}


@given(sizes=st.lists(st.integers(0, 5), max_size=8))
@settings(max_examples=40, deadline=None)
def test_replay_holds_the_last_ones(sizes):
    memory, first = Replay(5, _example()), 0
    for n in sizes:
        memory.add(**_rows(first, n))
        first += n
    assert len(memory) == min(first, 5)
    if first:
        got = memory.sample(200)
        assert set(got["action"].tolist()) <= set(range(max(0, first - 5), first))
        assert torch.equal(got["obs"][:, 1], got["action"].float())


def test_replay_wraps_around_and_samples_all_it_holds():
    memory = Replay(4, _example())
    memory.add(**_rows(0, 3))
    memory.add(**_rows(3, 3))
    assert set(memory.sample(200)["action"].tolist()) == {2, 3, 4, 5}
    assert memory.sample(3)["action"].dtype == torch.int64


def test_replay_comes_back_from_its_state():
    memory, other = Replay(4, _example()), Replay(4, _example())
    memory.add(**_rows(0, 3))
    memory.add(**_rows(3, 3))
    other.load_state_dict(_through_a_snapshot(memory))
    for m in (memory, other):
        m.add(**_rows(6, 1))
    draws = [m.sample(20, torch.Generator().manual_seed(1))["action"] for m in (memory, other)]
    assert torch.equal(*draws)


def test_replay_says_what_is_wrong():
    memory = Replay(2, _example())
    with pytest.raises(ValueError, match="empty"):
        memory.sample(1)
    with pytest.raises(ValueError, match="capacity of 2"):
        memory.add(**_rows(0, 3))
    with pytest.raises(ValueError, match="action"):
        memory.add(obs=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        Replay(0, _example())


def _through_a_snapshot(thing):
    return checkpoint.unpack(checkpoint.pack({"it": checkpoint.state_of(thing)}))["it"]


def _left(obs):
    return torch.zeros(len(obs), dtype=torch.int64)


def _lean(obs):
    """A policy that balances for a while: push where the pole falls."""
    return (obs[:, 2] + obs[:, 3] > 0).long()


@pytest.fixture
def cartpole():
    made = []

    def make(num_envs=3, seed=5):
        made.append(make_env("CartPole-v1", num_envs, seed))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_a_restored_environment_goes_on_as_if_never_stopped(cartpole):
    env = cartpole()
    for _ in range(25):
        env.step(_left(env.obs))
    kept = _through_a_snapshot(env)
    other = cartpole(seed=99)
    checkpoint.load_into(other, kept)
    assert torch.equal(env.obs, other.obs)
    ends = 0
    for _ in range(60):
        a, b = env.step(_left(env.obs)), other.step(_left(other.obs))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert torch.equal(env.obs, other.obs)
        ends += int(a.done.sum())
    assert ends > 10


def test_a_snapshot_is_a_copy(cartpole):
    env = cartpole()
    kept = checkpoint.state_of(env)
    before = {k: v.clone() for k, v in kept.items() if isinstance(v, torch.Tensor)}
    random = str(kept["random"])
    for _ in range(30):
        env.step(_left(env.obs))
    assert all(torch.equal(kept[k], v) for k, v in before.items())
    assert str(kept["random"]) == random


def test_every_transition_is_a_real_one(cartpole):
    """The physics is worked out again from the state before; starts are near zero."""
    env, previous_end = cartpole(num_envs=4), None
    for _ in range(40):
        obs, action = env.obs, _lean(env.obs) ^ (torch.rand(4) < 0.4)
        step = env.step(action.long())
        moved = obs[:, 0] + 0.02 * obs[:, 1]
        torch.testing.assert_close(step.next_obs[:, 0], moved, rtol=0, atol=1e-5)
        assert (step.reward == 1).all()
        out = (step.next_obs[:, 2].abs() > 12 * 2 * np.pi / 360) | (step.next_obs[:, 0].abs() > 2.4)
        assert torch.equal(out, step.terminated)
        assert (env.obs[step.done].abs() <= 0.05).all()
        assert torch.equal(env.obs[~step.done], step.next_obs[~step.done])
        if previous_end is not None:
            assert (step.episode_return[previous_end] == 1).all()
        previous_end = step.done


def test_the_time_limit_truncates(cartpole):
    def balance(obs):
        return (obs @ torch.tensor([0.1, 0.5, 10.0, 3.0]) > 0).long()

    env = cartpole(num_envs=1)
    for t in range(1, 501):
        step = env.step(balance(env.obs))
        assert bool(step.truncated) == (t == 500)
    assert not step.terminated.any()
    assert step.episode_return.tolist() == [500.0]
    assert (env.obs.abs() <= 0.05).all()
    assert not env.step(balance(env.obs)).truncated.any()


def test_other_environments_play_alike_but_cannot_be_kept():
    env = make_env("Acrobot-v1", 2, 0)
    assert (env.num_envs, env.num_actions) == (2, 3)
    ended = False
    for _ in range(500):
        step = env.step(torch.tensor([0, 2]))
        ended = ended or bool(step.truncated.all())
        changed = (env.obs != step.next_obs).any(1)
        assert torch.equal(changed, step.done)
    assert ended
    with pytest.raises(TypeError, match="Acrobot-v1"):
        checkpoint.state_of(env)
    env.close()


def test_make_env_says_what_is_wrong():
    with pytest.raises(ValueError, match="NoSuchGame"):
        make_env("NoSuchGame-v0", 1, 0)
    with pytest.raises(ValueError, match="at least 1"):
        make_env("CartPole-v1", 0, 0)


def test_evaluation_is_deterministic_and_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = evaluate(_lean, "CartPole-v1", 6, seed=1)
    assert torch.equal(first, evaluate(_lean, "CartPole-v1", 6, seed=1))
    assert not torch.equal(first, evaluate(_lean, "CartPole-v1", 6, seed=2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (6,)


def test_evaluation_counts_each_environments_first_episode():
    """Pushing left always fails after 8 to 11 steps; a later, longer episode must not count."""
    calls = []

    def policy(obs):
        calls.append(len(obs))
        return _left(obs) if len(calls) < 30 else _lean(obs)

    returns = evaluate(policy, "CartPole-v1", 5, seed=0)
    assert (returns >= 8).all()
    assert (returns <= 11).all()
    assert len(calls) == int(returns.max())


def test_standing_keeps_the_best_and_the_mean():
    evaluations = []
    standing(evaluations, 10, torch.tensor([1.0, 3.0]))
    got = standing(evaluations, 20, torch.tensor([1.0, 1.0]))
    assert got == {"step": 20, "eval_return": 1.0, "best_return": 2.0, "mean_return": 1.5}
    assert evaluations == [[10, 2.0], [20, 1.0]]


def test_a_snapshot_needs_no_code_to_be_read(cartpole):
    buffer = io.BytesIO()
    torch.save(checkpoint.state_of(cartpole()), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["steps"].tolist() == [0, 0, 0]
