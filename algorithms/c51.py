"""C51: Bellemare, Dabney, Munos 2017, "A Distributional Perspective on Reinforcement Learning", arXiv:1707.06887.

The network gives a distribution of the return for each action, probabilities p_i(s, a) (a softmax) on fixed atoms z_i.
Its target is the next state's distribution, scaled by the discount, moved by the reward, and projected back onto the
atoms (algorithm 1); the loss is the Kullback-Leibler divergence from target m to prediction,

    m_i = sum_j [1 - |clip(r + gamma z_j, V_min, V_max) - z_i| / dz]_0^1 p_j(s', a*),    a* = argmax_a E Z(s', a),
    loss = sum_i m_i (log m_i - log p_i(s, a)).

Departures: those of DQN; the paper's cross entropy is this loss up to the entropy of m, which has no gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import dqn
from algorithms.common.atoms import divergence, project
from algorithms.common.columns import Part, QNetwork
from algorithms.common.config import require
from algorithms.common.replay import Transitions

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's, and the atoms (section 5)."""

    num_atoms: int = 51
    v_min: float = -10.0
    v_max: float = 10.0
    adam_epsilon: float = 0.01 / 32  # section 5
    # td_clip has no effect

    def __post_init__(self) -> None:
        super().__post_init__()
        require_atoms(self)


def require_atoms(cfg: Any) -> None:
    """Refuse fewer than two atoms, and an empty interval."""
    require(cfg.num_atoms > 1, f"num_atoms is {cfg.num_atoms}; it must be at least 2")
    require(cfg.v_min < cfg.v_max, f"v_min is {cfg.v_min} and v_max {cfg.v_max}; v_min must be the smaller one")


def expected_values(probabilities: Tensor, atoms: Tensor) -> Tensor:
    """E Z = sum_i z_i p_i: p [r, A, Z, B], atoms [Z] -> [r, A, B]."""
    return (probabilities * atoms[:, None]).sum(2)


def chosen(by_action: Tensor, preferences: Tensor) -> Tensor:
    """[r, A, Z, B] at the actions that preferences [r, A, B] are largest for -> [r, Z, B]."""
    actions = preferences.max(1, keepdim=True).indices  # the first of equals, as argmax, at a tenth of its time
    return by_action.gather(1, actions.unsqueeze(2).expand(-1, 1, by_action.shape[2], -1)).squeeze(1)


class Agent(dqn.Agent):
    """C51 for R runs at once."""

    def __init__(self, cfg: Any, envs: Any, seeds: Any, device: str = "cpu"):
        self.atoms = torch.linspace(cfg.v_min, cfg.v_max, cfg.num_atoms, device=device)
        super().__init__(cfg, envs, seeds, device)

    def _network(self, **structure: Any) -> QNetwork:
        return super()._network(num_atoms=self.cfg.num_atoms, **structure)

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        """The projected distribution [r, Z, B]."""
        outputs, _ = self.net.forward(target_part, batch.next_observations.transpose(1, 2), self.noise["target"])
        by_action = torch.softmax(self._by_action(outputs), 2)
        best = chosen(by_action, expected_values(by_action, self.atoms))
        return project(best, batch.rewards, batch.discounts, self.atoms)

    def _loss(self, outputs: Tensor, targets: Tensor, runs: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """d loss / d logits = p - m; the divergence, which is also the priority; E Z(s, a)."""
        probabilities = torch.softmax(outputs, 1)
        losses = divergence(targets, outputs)
        return probabilities - targets, losses, losses, (probabilities * self.atoms[:, None]).sum(1)

    def q_values(self, observations: np.ndarray, noise: Any = None) -> np.ndarray:
        """E Z(s, .) [R, N, A] of observations [R, N, ...]."""
        logits = self.acting(observations, noise)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        q_values: np.ndarray = (powers * self.atoms.cpu().numpy()).sum(-1) / powers.sum(-1)
        return q_values


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("c51")
