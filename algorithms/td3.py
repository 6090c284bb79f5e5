"""Twin delayed deep deterministic policy gradient: Fujimoto, van Hoof, Meger 2018, "Addressing Function Approximation
Error in Actor-Critic Methods", arXiv:1802.09477.

DDPG with three changes (its algorithm 1), each of which can be switched off:

    y = r + gamma min_{i=1,2} Q'_i(s', a~)        clipped double Q-learning (section 4.2; `twin`)
    a~ = clip(mu'(s') + clip(eps, -c, c), -1, 1),  eps ~ N(0, sigma~):  target policy smoothing (section 5.3;
                                                  `smoothing_std` 0 is off)
    mu, mu' and Q'_i are updated every d updates of Q_i alone (section 5.2; `policy_period` 1 is off).

The policy ascends Q_1. With all three off the file is DDPG, bit for bit.

Axes: those of DDPG; N critics, two or one.

Departures from the paper:
- Actions are numbers in [-1, 1] for the critics too; the paper's code gives them the task's own units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import ddpg
from algorithms.common.batch_norm import evaluation
from algorithms.common.config import PerRun, require
from algorithms.common.layers import tanh_
from algorithms.common.off_policy import Learned
from algorithms.common.replay import Transitions

SUPPORTS = {"continuous"}


@dataclasses.dataclass(frozen=True)
class Config(ddpg.Config):
    """The defaults are the paper's (section 6.1), whose code is sfujim/TD3@00ae5cd."""

    actor_learning_rate: PerRun = 1e-3
    tau: PerRun = 0.005
    weight_decay: PerRun = 0.0
    noise_theta: PerRun = 1.0  # Gaussian
    noise_std: PerRun = 0.1
    twin: bool = True  # two critics, and the lesser of their values in the targets
    smoothing_std: PerRun = 0.2  # sigma~, in the units of noise_std
    smoothing_clip: PerRun = 0.5  # c
    policy_period: PerRun = 2.0  # d, updates of the critics for one of the policy and the targets
    random_steps: int = 1_000  # the paper: 10,000 on HalfCheetah and Ant
    learning_starts: int = 1_000
    batch_size: int = 100
    last_layer: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        period = np.asarray(self.policy_period)
        require(bool(np.all((period >= 1) & (period % 1 == 0))), f"policy_period is {period}; it must be 1, 2, ...")
        for name in ("smoothing_std", "smoothing_clip"):
            value = np.asarray(getattr(self, name))
            require(bool(np.all(value >= 0)), f"{name} is {value}; it must not be negative")


def smoothed(actions: Tensor, noise: Tensor, clip: Tensor) -> Tensor:
    """clip(a + clip(eps, -c, c), -1, 1): [R, B, A], c [R, 1, 1]."""
    return (actions + torch.clamp(noise, -clip, clip)).clamp(-1, 1)


class Agent(ddpg.Agent):
    """TD3 for R runs at once."""

    memory = (*ddpg.Agent.memory, "updates")
    update_noise = ("smoothing",)

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device, num_critics=2 if cfg.twin else 1)
        self.updates = 0  # of the critics

    def _learn(self, uniform: np.ndarray, *noise: Tensor) -> Learned:
        """One update of Q_1 and Q_2, and every d-th time of mu and all targets."""
        batch, correction = self._sample(uniform)
        with evaluation(self.normalized):
            targets = self._targets(batch, *noise)
        learned = self._update_critics(batch, targets, correction)
        self.updates += 1
        due = self.updates % self.cfg.policy_period == 0
        if due.any():
            self._update_actor(batch, due)
            self._update_targets(np.where(due, self.cfg.tau, 0.0))
        return learned

    @torch.no_grad()
    def _targets(self, batch: Transitions, *noise: Tensor) -> Tensor:
        """Algorithm 1's y, with `noise` for eps [R, B, A]: [R, B]."""
        std, clip = (self.coef[name].unsqueeze(2) for name in ("smoothing_std", "smoothing_clip"))
        next_actions = tanh_(self.actor.forward(self.target_parameters, batch.next_observations)[-1])
        next_actions = smoothed(next_actions, std * noise[0], clip)
        next_values, _ = self.critics.forward(self.critics.target, batch.next_observations, next_actions)
        return ddpg.td_targets(batch.rewards, batch.discounts, self._estimate(next_values))


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("td3")
