import pytest
import torch

from suite import run, task
from suite.rl import Replay, make_env
from tasks.ch13_reinforcement import dqn


class Table(torch.nn.Module):
    """Q of the state whose number the observation is."""

    def __init__(self, q_SA):
        super().__init__()
        self.q_SA = torch.nn.Parameter(torch.tensor(q_SA))

    def forward(self, obs_B1):
        return self.q_SA[obs_B1.squeeze(-1).long()]


def test_the_target_of_a_toy_is_what_it_is_by_hand():
    """State 0 leads to itself or on to 1, and 1 ends; Q and Q' disagree on the best action in 0."""
    q, frozen = Table([[3.0, 1.0], [5.0, 0.0]]), Table([[2.0, 7.0], [9.0, 9.0]])
    batch = {
        "reward": torch.tensor([1.0, 0.5, 2.0]),
        "next_obs": torch.tensor([[0.0], [1.0], [1.0]]),
        "terminated": torch.tensor([False, False, True]),
    }
    plain = dqn.td_target(q, frozen, batch, dqn.Config(gamma=0.5))
    double = dqn.td_target(q, frozen, batch, dqn.Config(gamma=0.5, double=True))
    assert plain.tolist() == [1 + 0.5 * 7, 0.5 + 0.5 * 9, 2]
    assert double.tolist() == [1 + 0.5 * 2, 0.5 + 0.5 * 9, 2]
    assert not plain.requires_grad


def test_epsilon_falls_linearly_and_then_stays():
    cfg = dqn.Config(env_steps=1_000, explore=0.5)
    assert dqn.epsilon_at(0, cfg) == 1
    assert dqn.epsilon_at(250, cfg) == pytest.approx(0.52)
    assert dqn.epsilon_at(500, cfg) == dqn.epsilon_at(900, cfg) == pytest.approx(0.04)


@pytest.mark.parametrize("kind", ["mlp", "linear", "dueling"])
def test_an_untrained_q_prefers_nothing(kind):
    q_BA = dqn.QNetwork(4, 2, kind)(torch.randn(5, 4))
    assert q_BA.shape == (5, 2)
    assert torch.equal(q_BA[:, 0], q_BA[:, 1])


def test_a_dueling_q_has_its_value_as_its_mean():
    net = dqn.QNetwork(4, 3, "dueling")
    torch.nn.init.normal_(net.advantage.weight)
    obs_BD = torch.randn(6, 4)
    torch.testing.assert_close(
        net(obs_BD).mean(-1, keepdim=True), net.value(net.body(obs_BD)), atol=1e-6, rtol=1e-5
    )


def filled(capacity, steps, epsilon=1.0):
    env = make_env("CartPole-v1", 8, 3)
    scalar = torch.zeros(())
    example = {"obs": env.obs[0], "action": scalar.long(), "reward": scalar}
    example |= {"next_obs": env.obs[0], "terminated": scalar.bool()}
    replay, model = Replay(capacity, example), dqn.QNetwork(4, 2, "mlp")
    ended = [dqn.explore(env, model, replay, epsilon) for _ in range(steps)]
    env.close()
    return replay, model, ended


def test_what_is_remembered_is_the_newest_and_real():
    torch.manual_seed(0)
    replay, _, ended = filled(160, 30)
    assert len(replay) == 160
    done_TN = torch.stack([done for done, _ in ended])
    fields = replay.state_dict()["fields"]
    # 240 steps were played: those of the last 20 rounds are there, in a ring.
    assert int(fields["terminated"].sum()) == int(done_TN[-20:].sum()) > 0
    # Position moves by the speed at which the step began: no transition leads into a new episode.
    moved = fields["obs"][:, 0] + 0.02 * fields["obs"][:, 1]
    torch.testing.assert_close(fields["next_obs"][:, 0], moved, atol=1e-6, rtol=1e-5)


def test_exploring_is_random_at_one_and_greedy_at_zero():
    torch.manual_seed(0)
    greedy, _, _ = filled(80, 10, epsilon=0.0)
    random, _, _ = filled(80, 10, epsilon=1.0)
    assert greedy.state_dict()["fields"]["action"].unique().tolist() == [0]
    assert 20 < int(random.state_dict()["fields"]["action"].sum()) < 60


def test_a_round_comes_nearer_to_a_target_that_stands_still_and_then_copies():
    torch.manual_seed(0)
    replay, model, _ = filled(400, 50)
    frozen = dqn.QNetwork(4, 2, "mlp")
    frozen.load_state_dict(model.state_dict())
    seen = []
    frozen.register_forward_hook(lambda m, given, q: seen.append(q))
    before = frozen(replay.state_dict()["fields"]["obs"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cfg = dqn.Config(updates=60, minibatch=32)
    first = dqn.improve(model, frozen, optimizer, replay, cfg)
    assert len(seen) == 61
    for mine, copy in zip(model.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(mine, copy)
    # Towards rewards of one and no value after them, until the copy says otherwise.
    assert not before.any()
    assert first < 0.5
    assert 0.3 < frozen(replay.state_dict()["fields"]["obs"]).mean().item() < 1.2


def test_what_is_promised_is_compared_with_what_comes():
    """A policy that always pushes left, with a Q that promises ten."""
    cfg = dqn.Config(eval_episodes=4, gamma=0.5)
    ctx = run.Context(torch.device("cpu"), 0)
    return_N, bias = dqn.judge(cfg, ctx, lambda o: torch.tensor([10.0, 0.0]).expand(len(o), 2))
    assert return_N.shape == (4,)
    assert 7 < float(return_N.min()) <= float(return_N.max()) < 12
    discounted_N = (1 - 0.5**return_N) / (1 - 0.5)
    assert bias == pytest.approx(10 - float(discounted_N.mean()), abs=1e-5)


def test_actors_are_rllibs_and_share_the_environments_evenly():
    configure = task.find("ch13.dqn").configure
    for overrides, why in (
        ({"env_runners": 3}, "1, 2, 4 or 8"),
        ({"env_runners": -1}, "env_runners=-1"),
    ):
        with pytest.raises(ValueError, match=why):
            configure("smoke", "rllib", overrides=overrides)
    with pytest.raises(ValueError, match="--variant rllib"):
        configure("smoke", "dqn", overrides={"env_runners": 1})
    needs = task.find("ch13.dqn").needs_of
    assert needs("smoke", configure("smoke", "rllib", overrides={"env_runners": 2})).actors == 2
    assert needs("smoke", configure("smoke", "rllib")) == task.Needs()


def test_actors_without_a_cluster_are_a_mistake_and_no_fallback():
    cfg = task.find("ch13.dqn").configure("smoke", "rllib", overrides={"env_runners": 1})
    rows = dqn.run(cfg, run.Context(torch.device("cpu"), 0))
    with pytest.raises(ValueError, match="1 Ray actors"):
        next(rows)
