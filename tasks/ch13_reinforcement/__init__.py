"""Chapter 13: deep reinforcement learning.

| section | task |
|---|---|
| Deep Reinforcement Learning Masters Atari Games; What Is Reinforcement Learning? | prose |
| Markov Decision Processes: policy, future return, discounted future return | not covered yet |
| Explore Versus Exploit: ε-greedy, annealed ε-greedy | not covered yet |
| Policy Versus Value Learning | prose |
| Pole-Cart with Policy Gradients | not covered yet |
| Trust-Region Policy Optimization | not covered yet |
| Proximal Policy Optimization | `ppo` |
| Q-Learning and Deep Q-Networks | `dqn` |
| Playing Breakout with DQN | not covered yet |
| Improving and Moving Beyond DQN: DRQN, A3C, UNREAL | not covered yet |
"""

HEADLINE = "ppo"
