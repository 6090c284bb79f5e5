"""Prioritized experience replay: Schaul, Quan, Antonoglou, Silver 2015, arXiv:1511.05952, on Double DQN.

Transitions are drawn in proportion to priorities, p_i = |td_error_i| + eps when last replayed, and each counts less the
likelier it was to be drawn (its algorithm 1):

    P(i) = p_i^alpha / sum_k p_k^alpha,     w_i = (N P(i))^-beta / max_j w_j,     loss = mean_i w_i h(td_error_i).

The proportional variant; beta rises linearly to 1. alpha = 0 and beta = 0 is Double DQN with stratified draws.

Departures: those of DQN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from algorithms import double_dqn, dqn
from algorithms.common.config import PerRun
from algorithms.common.replay import PrioritizedReplay, Replay, importance_exponent

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(double_dqn.Config):
    """DQN's; alpha and beta of the proportional variant (section 4, Table 3)."""

    learning_rate: PerRun = 6.25e-5  # a quarter of DQN's (section 4)
    priority_exponent: PerRun = 0.6  # alpha
    importance_exponent: PerRun = 0.4  # beta at the start
    importance_steps: PerRun = 500_000.0  # env_steps until beta is 1; paper: the whole run

    POSITIVE = (*double_dqn.Config.POSITIVE, "importance_steps")
    SHARES = (*double_dqn.Config.SHARES, "priority_exponent", "importance_exponent")


class Agent(double_dqn.Agent):
    """Double DQN with prioritized replay for R runs at once."""

    replay: Any

    def _memory(self, kind: type[Replay] = PrioritizedReplay, **settings: Any) -> Replay:
        return super()._memory(kind, alpha=self.cfg.priority_exponent, **settings)

    def _learn(self, uniform: np.ndarray) -> dqn.Learned:
        """One update on transitions drawn by priority, which get new ones."""
        batch, indices, weights = self.replay.sample(uniform, importance_exponent(self.cfg, self.envs.env_steps))
        learned = self._gradient(batch, weights)
        self.optimizer.step(self.cfg.learning_rate, self.cfg.max_grad_norm)
        self.replay.update(indices, learned[1])
        return learned


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("prioritized_dqn")
