"""Dueling DQN: Wang et al. 2015, "Dueling Network Architectures for Deep Reinforcement Learning", arXiv:1511.06581.

The network has two streams after the shared layers, one for the state's value and one for the actions' advantages, and

    Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')                                      (equation 9),

so that every transition teaches V, whatever its action. Targets are Double DQN's, as in the paper.

Departures, beside DQN's: the gradient entering the shared layers is not scaled by 1/sqrt(2) (section 4.2), since Adam
divides a constant factor out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from algorithms import double_dqn
from algorithms.common.columns import QNetwork
from algorithms.common.config import PerRun

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(double_dqn.Config):
    """DQN's, and the bound of the gradient's norm (section 4.2)."""

    max_grad_norm: PerRun = 10.0


class Agent(double_dqn.Agent):
    """Dueling Double DQN for R runs at once. The streams are in `QNetwork`."""

    def _network(self, **structure: Any) -> QNetwork:
        return super()._network(dueling=True, **structure)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("dueling_dqn")
