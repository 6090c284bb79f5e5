"""Rainbow: Hessel et al. 2017, "Combining Improvements in Deep Reinforcement Learning", arXiv:1710.02298.

Six extensions of DQN in one agent, each a switch here, so that any of them can be left out or added by itself:
double Q-learning, prioritized replay, dueling networks, n-step targets, distributions of returns, noisy networks.
With distributions the priority is the divergence, and the action at s_n is chosen by the online network's means
(section 3).

Departures: those of DQN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import c51, dqn, nstep_dqn, prioritized_dqn
from algorithms.common.columns import Part, QNetwork
from algorithms.common.config import PerRun
from algorithms.common.replay import Replay, Transitions

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(prioritized_dqn.Config, c51.Config):
    """All parts on, with Rainbow's own settings (Table 1)."""

    double: PerRun = 1.0  # 0: the target network also chooses the action
    prioritized: bool = True
    dueling: bool = True
    n_steps: int = 3  # 1: one-step targets
    distributional: bool = True
    noisy: bool = True  # then epsilon should be 0

    learning_rate: PerRun = 6.25e-5
    adam_epsilon: float = 1.5e-4
    priority_exponent: PerRun = 0.5
    epsilon_start: PerRun = 0.0
    epsilon_end: PerRun = 0.0
    evaluation_epsilon: PerRun = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        nstep_dqn.require_steps(self)


class Agent(c51.Agent, prioritized_dqn.Agent):
    """Rainbow for R runs at once."""

    def _network(self, **structure: Any) -> QNetwork:
        cfg = self.cfg
        atoms = cfg.num_atoms if cfg.distributional else 1
        return dqn.Agent._network(self, num_atoms=atoms, dueling=cfg.dueling, noisy=cfg.noisy, **structure)

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        settings["n_steps"] = self.cfg.n_steps
        return super()._memory(**settings) if self.cfg.prioritized else dqn.Agent._memory(self, **settings)

    def _learn(self, uniform: np.ndarray) -> dqn.Learned:
        return super()._learn(uniform) if self.cfg.prioritized else dqn.Agent._learn(self, uniform)

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        """A projected distribution [r, Z, B], or targets of Q [r, B]; where `double`, the online network chooses."""
        successors = batch.next_observations.transpose(1, 2)
        by_target = self._by_action(self.net.forward(target_part, successors, self.noise["target"])[0])
        by_online = self._by_action(self.net.forward(part, successors, self.noise["selection"])[0])
        double, preferences = self.coef["double"][part.runs] > 0, self._means(by_online)
        if not double.all():
            preferences = torch.where(double.unsqueeze(2), preferences, self._means(by_target))
        best = c51.chosen(by_target, preferences)
        if self.cfg.distributional:
            return c51.project(torch.softmax(best, 1), batch.rewards, batch.discounts, self.atoms)
        return dqn.td_targets(batch.rewards, batch.discounts, best.squeeze(1))

    def _means(self, by_action: Tensor) -> Tensor:
        """Q-values [r, A, B] of the network's outputs [r, A, Z, B]: logits, or Q-values themselves."""
        if self.cfg.distributional:
            return c51.expected_values(torch.softmax(by_action, 2), self.atoms)
        return by_action.squeeze(2)

    def _loss(self, outputs: Tensor, targets: Tensor, runs: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.cfg.distributional:
            return super()._loss(outputs, targets, runs)
        return dqn.Agent._loss(self, outputs, targets, runs)

    def q_values(self, observations: np.ndarray, noise: Any = None) -> np.ndarray:
        """Q(s, .) [R, N, A] of observations [R, N, ...], with the mean weights where no noise is given."""
        if self.cfg.distributional:
            return super().q_values(observations, noise)
        return dqn.Agent.q_values(self, observations, noise)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("rainbow")
