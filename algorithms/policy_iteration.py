"""Policy iteration: Howard 1960, "Dynamic Programming and Markov Processes"; Sutton & Barto 2018, section 4.3.

Planning with the task's exact model, in turns of two steps: evaluate the policy pi by sweeps of

    V(s) <- sum_{s', r} p(s', r | s, pi(s)) [ r + gamma V(s') ],                                           (eq. 4.5)

until no value changes by theta or more, and improve it, pi(s) <- argmax_a Q(s, a), until it is stable. The first policy
takes the first action everywhere; each evaluation starts from the values of the one before.

Axes: those of value iteration, and policies [R, S].

Departures from the book, beside those of value iteration (one iterate is one evaluation and improvement):
- Actions within `tolerance` of the best are equally good: the policy's own stays if it is one of them, else the first
  is taken. The book's version may switch between equally good policies for ever, as its exercise 4.4 says.
- An evaluation stops after `max_sweeps`. Where gamma = 1 a policy that never ends, such as the first one often is, may
  have no finite values, and its evaluation would not end. What is there is then improved upon all the same ("modified"
  policy iteration, Puterman & Shin 1978); a policy counts as stable only after an evaluation that came to its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms import value_iteration
from algorithms.common.config import PerRun, require
from algorithms.common.tabular import Indices, states_of

SUPPORTS = {"tabular"}


@dataclasses.dataclass(frozen=True)
class Config(value_iteration.Config):
    """Value iteration's, and what bounds the two steps."""

    tolerance: PerRun = 1e-9  # of equally good actions; more than what theta leaves uncertain in Q
    max_sweeps: int = 1_000  # of one evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        tolerance = np.asarray(self.tolerance)
        require(bool(np.all(tolerance >= 0)), f"tolerance is {tolerance}; it must not be negative")
        require(self.max_sweeps >= 1, f"max_sweeps is {self.max_sweeps}; it must be at least 1")


class Agent(value_iteration.Agent):
    """Policy iteration for R runs at once."""

    memory = (*value_iteration.Agent.memory, "policy")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.policy = np.zeros((self.num_runs, self.num_states), np.int64)  # pi

    def plan(self, runs: Indices) -> None:
        """Evaluate and improve the policies of the given runs [L]."""
        evaluated = self.evaluate(runs)
        self.q_values[runs] = q_values = self.backup(runs)  # [L, S, A]
        policy = self.policy[runs]
        best = q_values >= q_values.max(-1, keepdims=True) - self.cfg.tolerance[runs, None, None]
        keep = np.take_along_axis(best, policy[..., None], -1)[..., 0]
        self.policy[runs] = np.where(keep, policy, best.argmax(-1))
        self.converged[runs] = evaluated & keep.all(-1)

    def evaluate(self, runs: Indices) -> np.ndarray:
        """Sweeps for V of the policies of the given runs; returns which came to their end: bool [L]."""
        states, policy, gamma = np.arange(self.num_states), self.policy[runs], self.cfg.gamma[runs, None]
        mean_rewards = self.mean_rewards[states, policy]  # [L, S]
        next_states = np.moveaxis(self.next_states[states, policy], -1, 0)  # [K, L, S]
        next_states = next_states + self.num_states * np.arange(len(runs))[:, None]  # in V laid flat
        going_on = np.moveaxis(self.going_on[states, policy], -1, 0).copy()
        values, change = self.state_values[runs], self.change[runs]
        sweeping = np.ones(len(runs), bool)
        for _ in range(self.cfg.max_sweeps):
            expected = np.zeros_like(values)
            for probabilities, places in zip(going_on, next_states, strict=True):
                expected += probabilities * values.take(places)
            swept = mean_rewards + gamma * expected
            change = np.where(sweeping, np.abs(swept - values).max(-1), change)
            values = np.where(sweeping[:, None], swept, values)
            self.sweeps[runs] += sweeping
            sweeping &= change >= self.cfg.theta[runs]  # not so where they are nan
            if not sweeping.any():
                break
        self.state_values[runs], self.change[runs] = values, change
        return ~sweeping

    def act(self, observations: np.ndarray, streams: Any = None) -> Indices:
        """The policy's actions [R, N] for observations [R, N, 1]; with streams too: nothing here is drawn."""
        actions: Indices = self.policy[self.runs[:, None], states_of(observations)]
        return actions


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("policy_iteration")
