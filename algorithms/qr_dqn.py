"""QR-DQN: Dabney, Rowland, Bellemare, Munos 2017, "Distributional RL with Quantile Regression", arXiv:1710.10044.

The network gives N quantiles theta_i of the return for each action, at the levels tau_i = (i - 1/2) / N. Each is moved
towards the targets r + gamma theta_j(s', a*) by the quantile Huber loss (equations 9 and 10),

    loss = sum_i mean_j |tau_i - 1{u_ij < 0}| L(u_ij) / kappa,      u_ij = r + gamma theta_j(s', a*) - theta_i(s, a),

with L half the square within kappa and linear beyond, and a* = argmax_a mean_j theta_j(s', a).

Departures: those of DQN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import dqn
from algorithms.c51 import chosen
from algorithms.common.columns import Part, QNetwork
from algorithms.common.config import PerRun, require
from algorithms.common.replay import Transitions

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's with `td_clip` as kappa, and N (section 5)."""

    learning_rate: PerRun = 5e-5
    num_quantiles: int = 200  # N
    adam_epsilon: float = 0.01 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_quantiles > 0, f"num_quantiles is {self.num_quantiles}; it must be positive")
        require_finite_kappa(self)


def require_finite_kappa(cfg: Any) -> None:
    """Refuse kappa = inf: the loss is divided by it (equation 10), so nothing would be learned."""
    finite = bool(np.all(np.isfinite(cfg.td_clip)))
    require(finite, f"td_clip is {cfg.td_clip}; it is the loss's kappa here, which must be finite (the paper has 1)")


def quantile_huber(quantiles: Tensor, targets: Tensor, levels: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 10 and its derivative: d loss / d quantiles [r, N, B], and the loss [r, B].

    quantiles [r, N, B], targets [r, N', B], levels tau [r or 1, N, B or 1], kappa [r, 1]. Target after target: all
    pairs at once would not stay in the cache.
    """
    slopes, losses = torch.zeros_like(quantiles), torch.zeros_like(quantiles)
    bound = kappa.unsqueeze(1)
    for target in targets.unbind(1):
        errors = target.unsqueeze(1) - quantiles
        weights = torch.where(errors < 0, 1 - levels, levels)
        clipped = torch.clamp(errors, -bound, bound)
        slopes.addcmul_(weights, clipped, value=-1)
        losses.addcmul_(weights, clipped * (errors - 0.5 * clipped))
    count = targets.shape[1]
    return slopes / (count * bound), losses.sum(1) / (count * kappa)


class Agent(dqn.Agent):
    """QR-DQN for R runs at once."""

    def _network(self, **structure: Any) -> QNetwork:
        return super()._network(num_atoms=self.cfg.num_quantiles, **structure)

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        """r + gamma theta_j(s', a*): [r, N', B]."""
        outputs, _ = self.net.forward(target_part, batch.next_observations.transpose(1, 2), self.noise["target"])
        quantiles = self._by_action(outputs)
        best = chosen(quantiles, quantiles.mean(2))
        return dqn.td_targets(batch.rewards.unsqueeze(1), batch.discounts.unsqueeze(1), best)

    def _loss(self, outputs: Tensor, targets: Tensor, runs: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The quantile Huber loss; the error is that of the means."""
        slopes, losses = quantile_huber(outputs, targets, self._levels(runs), self.coef["td_clip"][runs])
        q_values = outputs.mean(1)
        return slopes, losses, targets.mean(1) - q_values, q_values

    def _levels(self, runs: slice) -> Tensor:
        """The midpoints tau_i, [1, N, 1]."""
        count = self.cfg.num_quantiles
        return ((torch.arange(count, device=self.device) + 0.5) / count)[None, :, None]

    def q_values(self, observations: np.ndarray, noise: Any = None) -> np.ndarray:
        """mean_i theta_i(s, .) [R, N, A] of observations [R, N, ...]."""
        q_values: np.ndarray = self.acting(observations, noise).mean(-1)
        return q_values


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("qr_dqn")
