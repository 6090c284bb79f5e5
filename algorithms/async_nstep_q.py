"""Asynchronous n-step Q-learning: Mnih et al. 2016, arXiv:1602.01783, algorithm S2.

Algorithm 1 with longer returns, in the forward view: after t_max steps, backwards through them,

    R = 0 where the task has ended, max_a Q(s_t, a; theta-) where it goes on;   R <- r_i + gamma R,

and R takes the place of the one-step target y: the last step has a one-step return, the one before it two steps', and
so on, up to t_max steps for the first.

Departures: those of asynchronous one-step Q; its first one is none here.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from algorithms import async_one_step_q
from algorithms.common.returns import discounted_sums
from algorithms.common.rollouts import Rollout, by_run, by_time

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(async_one_step_q.Config):
    """One-step Q's."""


class Workers(async_one_step_q.Workers):
    """Actor-learners of n-step Q."""

    def _targets(self, rollout: Rollout) -> Tensor:
        """R [K, T]."""
        next_values = by_time(self._target_values(rollout).amax(-1), self.cfg.num_steps)  # [T, K, 1]
        ends = rollout.terminations | rollout.truncations
        sums = discounted_sums(rollout.rewards, next_values, rollout.terminations, ends, self.each.gamma)
        return by_run(sums)


class Agent(async_one_step_q.Agent):
    """Asynchronous n-step Q-learning for R runs at once."""

    learners_class = Workers


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("async_nstep_q")
