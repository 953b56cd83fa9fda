import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import run, task
from suite.fit import batches
from suite.rl import make_env
from tasks.ch13_reinforcement import ppo


@pytest.fixture(scope="module")
def played():
    """A model that is no longer uniform, and what it played."""
    torch.manual_seed(0)
    cfg = ppo.Config(horizon=64, num_envs=4, minibatch=64)
    env = make_env(cfg.env, cfg.num_envs, 3)
    model = ppo.ActorCritic(env.obs.shape[-1], env.num_actions, 16)
    torch.nn.init.normal_(model.actor[-1].weight)
    data, finished = ppo.rollout(env, model, cfg)
    env.close()
    return cfg, model, data, finished


def test_a_fresh_policy_is_uniform_and_its_greedy_play_constant():
    model = ppo.ActorCritic(4, 2, 64)
    log_probs, value = model(torch.randn(7, 4))
    assert torch.equal(log_probs.exp(), torch.full((7, 2), 0.5))
    assert value.shape == (7,)


def test_a_rollout_is_what_an_update_needs(played):
    _, model, data, finished = played
    obs, action, old, advantage, target = data
    assert obs.shape == (256, 4)
    assert all(part.shape == (256,) for part in data[1:])
    log_probs, value = model(obs)
    torch.testing.assert_close(old, ppo.chosen(log_probs, action))
    torch.testing.assert_close(target - advantage, value)
    assert finished
    assert all(1 < length < 200 for length in finished)


def test_the_ratio_is_one_on_the_first_minibatch(played):
    cfg, model, data, _ = played
    for obs, action, old, _, _ in batches(tuple(data), cfg.minibatch):
        ratio = (ppo.chosen(model(obs)[0], action) - old).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)
        break


def test_at_ratio_one_both_objectives_have_the_policy_gradient():
    advantage = torch.randn(9)
    for clip_range in (None, 0.2):
        ratio = torch.ones(9, requires_grad=True)
        ppo.surrogate(ratio, advantage, clip_range).backward()
        torch.testing.assert_close(ratio.grad, advantage / 9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "flat"),
    [
        (1.3, 1.0, True),
        (1.3, -1.0, False),
        (0.7, 1.0, False),
        (0.7, -1.0, True),
        (1.1, 1.0, False),
        (0.9, -1.0, False),
    ],
)
def test_the_clipped_objective_is_flat_where_it_would_go_further(ratio, advantage, flat):
    r = torch.tensor([ratio], requires_grad=True)
    ppo.surrogate(r, torch.tensor([advantage]), 0.2).backward()
    assert float(r.grad) == (0.0 if flat else advantage)


@given(
    ratio=st.lists(st.floats(0.01, 9), min_size=1, max_size=8),
    advantage=st.floats(-5, 5),
    clip_range=st.floats(0.01, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_the_clipped_objective_is_a_lower_bound(ratio, advantage, clip_range):
    r = torch.tensor(ratio, dtype=torch.float64)
    a = torch.full_like(r, advantage)
    clipped, plain = ppo.surrogate(r, a, clip_range), ppo.surrogate(r, a, None)
    assert clipped <= plain + 1e-12
    near = r.clamp(1 - clip_range, 1 + clip_range)
    torch.testing.assert_close(ppo.surrogate(near, a, clip_range), (near * a).mean())


def test_what_moved_measures_a_known_change(played):
    _, model, data, _ = played
    still = ppo.moved(model, data, 0.2)
    assert still["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert still["clip_fraction"] == 0
    assert still["explained_variance"] < 1
    obs, action, old, advantage, target = data
    changed = ppo.moved(model, [obs, action, old - 0.5, advantage, target], 0.2)
    assert changed["approx_kl"] == pytest.approx(torch.tensor(0.5).exp().item() - 1.5, rel=1e-4)
    assert changed["clip_fraction"] == 1
    uniform = ppo.ActorCritic(4, 2, 8)
    assert ppo.moved(uniform, data, 0.2)["entropy"] == pytest.approx(torch.tensor(2.0).log().item())


def test_an_update_without_a_clip_goes_further(played):
    _, model, data, _ = played
    kl = {}
    for clip in (True, False):
        torch.manual_seed(1)
        fresh = ppo.ActorCritic(4, 2, 16)
        fresh.load_state_dict(model.state_dict())
        optimizer = torch.optim.Adam(fresh.parameters(), 1e-2)
        change = ppo.improve(fresh, optimizer, data, ppo.Config(clip=clip, minibatch=256), 0.1)
        assert change["ratio_first"] == pytest.approx(1, abs=1e-6)
        kl[clip] = change["approx_kl"]
    assert 0 < kl[True] < kl[False] / 2


def test_actors_are_rllibs_and_share_the_environments_evenly():
    configure = task.find("ch13.ppo").configure
    for variant, count, why in (("rllib", 3, "divide the 8"), ("clip", 1, "--variant rllib")):
        with pytest.raises(ValueError, match=why):
            configure("smoke", variant, overrides={"env_runners": count})
    cfg = configure("smoke", "rllib", overrides={"env_runners": 2})
    assert task.find("ch13.ppo").needs_of("smoke", cfg).actors == 2


@pytest.mark.slow
def test_rllib_is_silent_starts_no_cluster_and_is_shut_down_when_closed(capfd):
    import ray

    cfg = task.find("ch13.ppo").configure("smoke", "rllib", overrides={"env_steps": 512})
    ctx = run.Context(torch.device("cpu"), 0)
    rows = ppo.run(cfg, ctx)
    assert next(rows) is None
    row = next(rows)()
    assert row["step"] <= 512
    rows.close()
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")
