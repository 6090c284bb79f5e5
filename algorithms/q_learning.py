"""Q-learning: Watkins 1989, "Learning from Delayed Rewards"; Sutton & Barto 2018, section 6.5.

Off-policy control by one-step temporal differences: act epsilon-greedily, and learn about the greedy policy,

    Q(S, A) <- Q(S, A) + alpha [ R + gamma max_a Q(S', a) - Q(S, A) ].                                    (eq. 6.8)

With `double`, two tables share the work (van Hasselt 2010, "Double Q-learning"; section 6.7): one, drawn for each
step, is updated, and says which action is best in S'; the other says what that is worth. The maximum of noisy estimates
is too high on average, the second opinion is not. Actions are then greedy in the sum of both.

Axes: observations [R, N, 1], tables [R, K, S, A]; R runs, N environments, K tables (2 with `double`), S states, A
actions. N environments choose from the same tables; their updates follow in order of n.

Departures from the sources:
- Ties between greedy actions are broken at random; the sources leave it open.
- A time limit is no end of the task: only terminations stop bootstrapping.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.tabular import (
    STEPS,
    ControlConfig,
    Floats,
    Indices,
    TableAgent,
    choose,
    exploration,
    states_of,
)

SUPPORTS = {"tabular"}


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
    """Those of all learners here, and a second table."""

    double: bool = False  # Double Q-learning


class Agent(TableAgent):
    """Q-learning for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.q_values = np.zeros((self.num_runs, 1 + cfg.double, self.num_states, self.num_actions))
        self.visits = np.zeros_like(self.q_values)

    def iterate(self) -> dict[str, np.ndarray]:
        """The loop of section 6.5 for STEPS steps of every environment. Returns metrics, each [R]."""
        cfg, clock = self.cfg, time.perf_counter
        env_steps = self.env_steps + cfg.num_envs * np.arange(1, STEPS + 1)  # after each step
        epsilon = self.epsilon_after(env_steps - cfg.num_envs)  # [T, R]
        explore, noise = exploration(self.streams, epsilon, cfg.num_envs, self.num_actions)
        table, ties = self._drawn_tables()
        errors = np.zeros(self.num_runs)
        states = states_of(self.observations)
        for t in range(STEPS):
            begin = clock()
            actions = choose(self.estimates(states), explore[t], noise[t])
            acted = clock()
            step = self.envs.step(actions)
            stepped = clock()
            next_states = states_of(step.next_observations)
            for n in range(cfg.num_envs):
                value = self._value(table[t, :, n], next_states[:, n], ties[t, :, n])
                targets = step.rewards[:, n] + cfg.gamma * np.where(step.terminations[:, n], 0.0, value)
                errors += np.abs(self.update((self.runs, table[t, :, n], states[:, n], actions[:, n]), targets))
            self.observations = step.observations
            states = states_of(self.observations)
            self.timers["act"] += acted - begin
            self.timers["env"] += stepped - acted
            self.timers["learn"] += clock() - stepped
        self.env_steps = int(env_steps[-1])
        return {"td_errors": errors / self.steps_per_iteration, "epsilon": epsilon[-1]}

    def _drawn_tables(self) -> tuple[Indices, Floats]:
        """Which table to update, int64 [T, R, N], and noise [T, R, N, A] for ties in it."""
        shape = STEPS, self.num_envs, 1 + self.num_actions
        if self.cfg.double:
            noise = 1.0 - self.streams.draw("tables", lambda rng: rng.random(shape), axis=1)
        else:  # there is one table, and a maximum needs no choice
            noise = np.ones((STEPS, self.num_runs, *shape[1:]))
        return (noise[..., 0] <= 0.5).astype(np.int64), noise[..., 1:]

    def _value(self, table: Indices, states: Indices, ties: Floats) -> Floats:
        """What the next states are taken to be worth: max_a Q(s', a), or Q_2(s', argmax_a Q_1(s', a)). All [R]."""
        q_values = self.q_values[self.runs, table, states]  # [R, A]
        if not self.cfg.double:
            return q_values.max(-1)
        return self.q_values[self.runs, 1 - table, states, choose(q_values, False, ties)]

    def estimates(self, states: Indices) -> Floats:
        """Q(s, .) [R, N, A] for states [R, N]; the mean of both tables with `double`."""
        q_values = self.q_values[self.runs[:, None], 0, states]
        return (q_values + self.q_values[self.runs[:, None], 1, states]) / 2 if self.cfg.double else q_values


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("q_learning")
