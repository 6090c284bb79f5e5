"""Value iteration: Bellman 1957, "Dynamic Programming"; Sutton & Barto 2018, section 4.4.

Planning with the task's exact model: every sweep makes an assignment of the Bellman optimality equation,

    V(s) <- max_a sum_{s', r} p(s', r | s, a) [ r + gamma V(s') ],                                        (eq. 4.10)

until no value changes by theta or more. From V = 0 this ends with the optimal values where gamma < 1, and where gamma
= 1 if every way never to end costs without bound, as in Russell & Norvig's grid world.

Axes: observations [R, N, 1], tables [R, S, A] and [R, S], the model [S, A, K]; R runs, N environments, S states, A
actions, K outcomes.

Departures from the book:
- Sweeps are synchronous: all states are backed up from the values before the sweep. The book's are in place, each
  state from the newest values there are; both have the same limit.
- `iterate` is a sweep and then one step of every environment with the greedy policy so far, since budgets are counted
  in env_steps. Planning takes none, and learns nothing from them. Once a run has converged it only takes steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from algorithms.common.config import PerRun, require
from algorithms.common.tabular import Floats, Indices, TableAgent

SUPPORTS = {"tabular"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The book leaves theta open; this one leaves values of up to a thousand some digits to converge in."""

    gamma: PerRun = 1.0
    theta: PerRun = 1e-10  # converged when the largest change of a sweep is smaller
    num_envs: int = 1

    def __post_init__(self) -> None:
        gamma, theta = np.asarray(self.gamma), np.asarray(self.theta)
        require(bool(np.all((gamma >= 0) & (gamma <= 1))), f"gamma is {gamma}; it must lie in [0, 1]")
        require(bool(np.all(theta > 0)), f"theta is {theta}; it must be positive")
        require(self.num_envs >= 1, f"num_envs is {self.num_envs}; it must be at least 1")


class Agent(TableAgent):
    """Value iteration for R runs at once."""

    tables = ("q_values", "state_values")
    memory: ClassVar[tuple[str, ...]] = ("observations", "change", "sweeps", "converged")

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        if envs.model is None:
            raise ValueError("the task has no model to plan with; planners need a task of suite tabular")
        self.steps_per_iteration = cfg.num_envs  # env_steps per run
        probabilities, self.next_states, rewards, terminations, _ = envs.model  # [S, A, K]
        self.mean_rewards = (probabilities * rewards).sum(-1)  # [S, A]
        self.going_on = np.where(terminations, 0.0, probabilities)  # of outcomes after which s' has a value
        self.state_values = np.zeros((self.num_runs, self.num_states))  # V
        self.change = np.full(self.num_runs, np.inf)  # largest change of the last sweep
        self.sweeps = np.zeros(self.num_runs, np.int64)
        self.converged = np.zeros(self.num_runs, bool)

    def iterate(self) -> dict[str, np.ndarray]:
        """Plan on, then take a step in every environment. Returns metrics, each [R]."""
        clock = time.perf_counter
        begin = clock()
        runs = np.flatnonzero(~self.converged)
        if runs.size:
            self.plan(runs)
        planned = clock()
        actions = self.act(self.observations)
        acted = clock()
        self.observations = self.envs.step(actions).observations
        self.env_steps += self.num_envs
        self.timers["learn"] += planned - begin
        self.timers["act"] += acted - planned
        self.timers["env"] += clock() - acted
        return {"change": self.change.copy(), "sweeps": self.sweeps.astype(float), "converged": self.converged * 1.0}

    def plan(self, runs: Indices) -> None:
        """One sweep of the given runs [L]: Q from V, then V(s) = max_a Q(s, a)."""
        self.q_values[runs] = q_values = self.backup(runs)
        values = q_values.max(-1)
        self.change[runs] = np.abs(values - self.state_values[runs]).max(-1)
        self.state_values[runs] = values
        self.sweeps[runs] += 1
        self.converged[runs] = self.change[runs] < self.cfg.theta[runs]

    def backup(self, runs: Indices) -> Floats:
        """Q(s, a) = sum_{s', r} p(s', r | s, a) [ r + gamma V(s') ] of the given runs: [L, S, A]."""
        values, expected = self.state_values[runs], np.zeros((len(runs), *self.mean_rewards.shape))
        for k in range(self.next_states.shape[-1]):
            expected += self.going_on[..., k] * values[:, self.next_states[..., k]]
        q_values: Floats = self.mean_rewards + self.cfg.gamma[runs, None, None] * expected
        return q_values

    def act(self, observations: np.ndarray, streams: Any = None) -> Indices:
        """Greedy actions [R, N] for observations [R, N, 1], of equal ones the first; with streams too: nothing here
        is drawn."""
        return super().act(observations)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("value_iteration")
