"""NoisyNet-DQN: Fortunato et al. 2017, "Noisy Networks for Exploration", arXiv:1706.10295.

No epsilon: the agent acts greedily with weights that carry noise, whose size is learned like everything else,

    w = mu + sigma * e,   e fresh for every action, every update and every network                (equation 9).

Factorised Gaussian noise (section 3), in the last hidden and the output layer, as in the paper's network.

Departures: those of DQN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from algorithms import dqn
from algorithms.common.columns import QNetwork
from algorithms.common.config import PerRun

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's, without epsilon (section 3.1)."""

    epsilon_start: PerRun = 0.0
    epsilon_end: PerRun = 0.0
    evaluation_epsilon: PerRun = 0.0


class Agent(dqn.Agent):
    """NoisyNet-DQN for R runs at once. The noise is in `columns.NoisyLinear`; evaluation uses the means."""

    def _network(self, **structure: Any) -> QNetwork:
        return super()._network(noisy=True, **structure)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("noisy_dqn")
