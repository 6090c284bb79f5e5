"""SARSA: Rummery & Niranjan 1994, "On-line Q-learning using connectionist systems"; Sutton & Barto 2018, section 6.4.

On-policy control by one-step temporal differences: learn about the epsilon-greedy policy that acts, from the action A'
that it takes next,

    Q(S, A) <- Q(S, A) + alpha [ R + gamma Q(S', A') - Q(S, A) ].                                         (eq. 6.7)

With `expected`, the mean over A' replaces the one that was drawn (van Seijen et al. 2009, "A theoretical and empirical
analysis of Expected Sarsa"; section 6.6),

    Q(S, A) <- Q(S, A) + alpha [ R + gamma sum_a pi(a|S') Q(S', a) - Q(S, A) ].                           (eq. 6.9)

Axes: observations [R, N, 1], tables [R, S, A]; R runs, N environments, S states, A actions. N environments choose from
the same table; their updates follow in order of n.

Departures from the sources:
- Ties between greedy actions are broken at random; the sources leave it open.
- A time limit is no end of the task: only terminations stop bootstrapping. Where it cuts, an A' is drawn for the update
  and not taken; the first action after the reset shares its noise.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun
from algorithms.common.tabular import (
    STEPS,
    ControlConfig,
    Floats,
    Indices,
    TableAgent,
    choose,
    exploration,
    require_shares,
    soft_values,
    states_of,
)

SUPPORTS = {"tabular"}


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
    """Those of all learners here, and what the next action stands for."""

    expected: PerRun = 0.0  # 1: Expected SARSA

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self, "expected")


class Agent(TableAgent):
    """SARSA for R runs at once."""

    memory = ("observations", "actions")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        explore, noise = exploration(self.streams, self.epsilon_after(np.zeros(1)), cfg.num_envs, self.num_actions)
        self.actions = choose(self.estimates(states_of(self.observations)), explore[0], noise[0])  # [R, N] to be taken

    def iterate(self) -> dict[str, np.ndarray]:
        """The loop of section 6.4 for STEPS steps of every environment. Returns metrics, each [R]."""
        cfg, clock = self.cfg, time.perf_counter
        env_steps = self.env_steps + cfg.num_envs * np.arange(1, STEPS + 1)  # after each step
        epsilon = self.epsilon_after(env_steps)  # [T, R] of the actions chosen then
        explore, noise = exploration(self.streams, epsilon, cfg.num_envs, self.num_actions)
        errors = np.zeros(self.num_runs)
        states = states_of(self.observations)
        for t in range(STEPS):
            begin = clock()
            step = self.envs.step(self.actions)
            stepped = clock()
            next_states = states_of(step.next_observations)
            next_actions = choose(self.estimates(next_states), explore[t], noise[t])
            acted = clock()
            for n in range(cfg.num_envs):
                value = self._value(next_states[:, n], next_actions[:, n], epsilon[t])
                targets = step.rewards[:, n] + cfg.gamma * np.where(step.terminations[:, n], 0.0, value)
                errors += np.abs(self.update((self.runs, states[:, n], self.actions[:, n]), targets))
            learned = clock()
            self.observations, self.actions, states = step.observations, next_actions, next_states
            if (ended := step.terminations | step.truncations).any():
                states = states_of(self.observations)
                first_actions = choose(self.estimates(states), explore[t], noise[t])
                self.actions = np.where(ended, first_actions, next_actions)
            self.timers["act"] += acted - stepped + clock() - learned
            self.timers["env"] += stepped - begin
            self.timers["learn"] += learned - acted
        self.env_steps = int(env_steps[-1])
        return {"td_errors": errors / self.steps_per_iteration, "epsilon": epsilon[-1]}

    def _value(self, states: Indices, actions: Indices, epsilon: Floats) -> Floats:
        """What the next states are taken to be worth: Q(s', a'), or its mean over a'. All [R]."""
        q_values = self.q_values[self.runs, states]  # [R, A]
        return np.where(self.cfg.expected > 0, soft_values(q_values, epsilon), q_values[self.runs, actions])


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("sarsa")
