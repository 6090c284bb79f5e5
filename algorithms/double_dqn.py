"""Double DQN: van Hasselt, Guez, Silver 2015, "Deep Reinforcement Learning with Double Q-learning", arXiv:1509.06461.

DQN's maximum over noisy estimates is biased upwards. Here the online network chooses the action and the target network
says what it is worth (its equation for DoubleDQN targets, section "Double DQN"):

    y = r + gamma Q(s', argmax_a' Q(s', a'; theta); theta-).

Departures: those of DQN.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from algorithms import dqn
from algorithms.common.columns import Part
from algorithms.common.replay import Transitions

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's."""


def double_values(online_q_values: Tensor, target_q_values: Tensor) -> Tensor:
    """Q(s', argmax_a' Q(s', a'; theta); theta-): [R, A, B] each -> [R, B]."""
    return target_q_values.gather(1, online_q_values.max(1, keepdim=True).indices).squeeze(1)


class Agent(dqn.Agent):
    """Double DQN for R runs at once."""

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        successors = batch.next_observations.transpose(1, 2)
        online_q_values, _ = self.net.forward(part, successors, self.noise["selection"])
        target_q_values, _ = self.net.forward(target_part, successors, self.noise["target"])
        return dqn.td_targets(batch.rewards, batch.discounts, double_values(online_q_values, target_q_values))


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("double_dqn")
