"""Asynchronous one-step SARSA: Mnih et al. 2016, arXiv:1602.01783, section 4.

Algorithm 1 with another target. It is that of the policy which explores, not of the greedy one:

    y = r + gamma Q(s', a'; theta-),   a' the action that is taken in s'.

So the action that follows a turn's last step is chosen before the turn's update, and taken in the next turn.

Departures: those of asynchronous one-step Q, and
- Where a time limit cuts at s', no action is taken there: a' is what the policy would take, by the same random numbers
  with which it begins the next episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from algorithms import async_one_step_q
from algorithms.common.rollouts import Rollout, by_run

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(async_one_step_q.Config):
    """One-step Q's."""


class Workers(async_one_step_q.Workers):
    """Actor-learners of one-step SARSA."""

    memory = (*async_one_step_q.Workers.memory, "next_actions")

    def _make_networks(self) -> None:
        super()._make_networks()
        self.next_actions = self._choose(self._present(), self._epsilon(), self._uniform(1)[0])  # [K, 1]

    def _present(self) -> np.ndarray:
        """What to act on next, [K, 1, ...]."""
        return self.by_entry(self.collector.observations)

    def _uniform(self, count: int) -> np.ndarray:
        return self.streams.draw("actions", lambda rng: rng.random((count, 1, 2)), axis=1)  # [count, K, 1, 2]

    def _policy(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """As one-step Q's; the random numbers are those of the actions that follow each step."""
        self.uniform, self.epsilon = self._uniform(self.cfg.num_steps), self._epsilon()
        first = self.next_actions
        return lambda observations, t: self._choose(observations, self.epsilon, self.uniform[t - 1]) if t else first

    def _targets(self, rollout: Rollout) -> Tensor:
        """y = r + gamma Q(s', a'; theta-), r where the task ended: [K, T]."""
        self.next_actions = self._choose(self._present(), self.epsilon, self.uniform[-1])
        followed = np.concatenate([rollout.actions[1:], self.next_actions[None]])  # [T, K, 1]
        successors = rollout.next_observations[:, :, 0].swapaxes(0, 1)  # [K, T, ...]
        at_cut = self._choose(successors, self.epsilon, self.uniform[:, :, 0].swapaxes(0, 1)).T[..., None]
        actions = by_run(np.where(rollout.truncations, at_cut, followed))  # [K, T]
        return self._one_step(rollout, torch.gather(self._target_values(rollout), 2, actions[..., None]).squeeze(-1))


class Agent(async_one_step_q.Agent):
    """Asynchronous one-step SARSA for R runs at once."""

    learners_class = Workers


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("async_one_step_sarsa")
