"""Soft actor-critic with a value network: Haarnoja, Zhou, Abbeel, Levine 2018, "Soft Actor-Critic: Off-Policy Maximum
Entropy Deep Reinforcement Learning with a Stochastic Actor", arXiv:1801.01290.

SAC's first version. A network V learns what a state is worth, entropy included, and the targets come from V' alone,
whose weights follow V's (its algorithm 1):

    descend  mean_b (V(s) - min_i Q_i(s, a) + alpha log pi(a|s))^2 / 2,  a ~ pi(.|s)             (equation 5)
    descend  mean_b (Q_i(s, a) - y)^2 / 2,  y = r + gamma V'(s')                                 (equations 7 and 8)

The paper has rewards times a scale in place of alpha, which is its inverse.

Axes: those of SAC.

Departures: those of SAC but for its first; the temperature is fixed (`automatic` 0), as in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import sac
from algorithms.common.config import PerRun
from algorithms.common.off_policy import Critics
from algorithms.common.on_policy import require_positive
from algorithms.common.optimizers import Adam
from algorithms.common.replay import Transitions

SUPPORTS = {"continuous"}


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """The defaults are the paper's (appendix D, Table 1)."""

    value_learning_rate: PerRun = 3e-4  # of V
    automatic: PerRun = 0.0
    alpha: PerRun = 0.2  # a reward scale of 5 (Table 2; 20 on Humanoid)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "value_learning_rate")


class Agent(sac.Agent):
    """SAC with a value network for R runs at once."""

    memory = (*sac.Agent.memory, "state_values", "value_optimizer")
    update_noise = ("policy",)

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        sizes = (self.observation_size, *cfg.hidden_sizes, 1)
        self.state_values = Critics(self.num_runs, 1, sizes, 0, device, name="value")  # V and V'
        self.state_values.initialize(self.streams, last_layer=0.0)
        self.value_optimizer = Adam(self.state_values.parameters, cfg.adam_epsilon)

    @torch.no_grad()
    def _targets(self, batch: Transitions, alpha: Tensor, *noise: Tensor) -> Tensor:
        """y: [R, B]."""
        nothing = batch.actions[..., :0]
        next_values, _ = self.state_values.forward(self.state_values.target, batch.next_observations, nothing)
        return batch.rewards + batch.discounts * self._estimate(next_values)

    @torch.no_grad()
    def _update_targets(self, batch: Transitions, soft_values: Tensor) -> None:
        """One step of V down equation 5, and V' follows."""
        nothing = batch.actions[..., :0]
        outputs, layers = self.state_values.forward(self.state_values.parameters, batch.observations, nothing)
        errors = outputs - soft_values[:, None, :, None]  # [R, 1, B, 1]
        self.state_values.backward(layers, errors / self.cfg.batch_size)
        self.value_optimizer.step(self.cfg.value_learning_rate)
        self.state_values.follow(self.cfg.tau)

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return super().diverged() | ~self.state_values.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run."""
        return super().parameters_of(run) | self.state_values.of_run(run)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("sac_v")
