"""Truncated quantile critics: Kuznetsov, Shvechikov, Grishin, Vetrov 2020, "Controlling Overestimation Bias with
Truncated Mixture of Continuous Distributional Quantile Critics", arXiv:2005.04269.

SAC whose C critics give M quantiles of the return each, at the levels tau_m = (m - 1/2) / M. The target's C M quantiles
are pooled and sorted, z_(1) <= z_(2) <= ..., and the d C largest are dropped:

    y_k = r + gamma ( z_(k)(s', a') - alpha log pi(a'|s') ),    k = 1 ... C (M - d)
    loss = mean_{c,m,k} |tau_m - 1{u < 0}| L(u),   u = y_k - theta_{c,m}(s, a),  L Huber's loss with kappa = 1

and the policy ascends the mean of all quantiles, none dropped.

Axes: those of SAC, critics' outputs [R, C, B, M].

Departures: those of SAC but for its first steps; here the policy acts from the start, as in the paper's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms import sac
from algorithms.common.config import require
from algorithms.common.off_policy import Learned
from algorithms.common.on_policy import require_positive
from algorithms.common.replay import Transitions

SUPPORTS = {"continuous"}
PIECE = 1 << 16  # pairs of a quantile and a target that are looked at together


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """The defaults are the paper's and those of its code, SamsungLabs/tqc_pytorch@b4a0987."""

    num_critics: int = 5  # C
    num_quantiles: int = 25  # M
    num_dropped: int = 2  # d for each critic; 0 on HalfCheetah, 5 on Hopper (its README at 148e49b)
    random_steps: int = 0  # SamsungLabs/tqc_pytorch@a3514b2 main.py, as is the next line
    learning_starts: int = 256
    critic_hidden_sizes: tuple[int, ...] = (512, 512, 512)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_quantiles", "critic_hidden_sizes")
        require(
            0 <= self.num_dropped < self.num_quantiles,
            f"num_dropped is {self.num_dropped}; it must be at least 0 and below num_quantiles = {self.num_quantiles}",
        )


def truncated(quantiles: Tensor, num_dropped: int) -> Tensor:
    """The pooled quantiles of C critics, sorted, without the C d largest: [R, C, B, M] -> [R, B, C (M - d)]."""
    _, num_critics, _, num_quantiles = quantiles.shape
    pooled = quantiles.transpose(1, 2).flatten(2).sort(2).values
    return pooled[..., : num_critics * (num_quantiles - num_dropped)]


def quantile_slopes(quantiles: Tensor, targets: Tensor) -> Tensor:
    """The derivative of mean_{c,m,k} |tau_m - 1{u < 0}| L(u) with respect to the quantiles [R, C, B, M].

    With kappa = 1 it is -(tau_m sum_k clip(u, 0, 1) + (1 - tau_m) sum_k clip(u, -1, 0)) / (C M K). Targets are
    [R, B, K]; so many samples at a time as let the pairs stay in the cache.
    """
    num_runs, num_critics, size, num_quantiles = quantiles.shape
    levels = (torch.arange(num_quantiles, device=quantiles.device) + 0.5) / num_quantiles  # tau_m
    slopes, pairs = torch.empty_like(quantiles), num_quantiles * targets.shape[2]
    rows = max(PIECE // (num_runs * num_critics * pairs), 1)
    for start in range(0, size, rows):
        piece = slice(start, start + rows)
        errors = targets[:, None, piece, None, :] - quantiles[:, :, piece, :, None]  # [R, C, b, M, K]
        above = errors.clamp(0, 1).sum(4)
        below = errors.clamp_(-1, 0).sum(4)
        slopes[:, :, piece] = levels * above + (1 - levels) * below
    return slopes / (-num_critics * pairs)


class Agent(sac.Agent):
    """TQC for R runs at once."""

    metrics = ("td_errors", "q_values", "entropy", "alpha")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        sizes: dict[str, Any] = {
            "outputs_per_critic": cfg.num_quantiles, "critic_hidden_sizes": cfg.critic_hidden_sizes
        }  # fmt: skip
        super().__init__(cfg, envs, seeds, device, **sizes)

    @torch.no_grad()
    def _targets(self, batch: Transitions, alpha: Tensor, *noise: Tensor) -> Tensor:
        """y_k: [R, B, C (M - d)]."""
        policy, _ = self._policy(batch.next_observations)
        next_actions, next_log_probs = policy.sample(*noise)
        quantiles, _ = self.critics.forward(self.critics.target, batch.next_observations, next_actions)
        entries = batch.rewards, batch.discounts, next_log_probs, alpha
        rewards, discounts, log_probs, alpha = (x.unsqueeze(2) for x in entries)
        return sac.soft_targets(rewards, discounts, truncated(quantiles, self.cfg.num_dropped), log_probs, alpha)

    def _critic_slopes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Learned]:
        """d loss / d outputs [R, C, B, M], and the error of the means, for targets [R, B, K]."""
        errors = targets.mean(2) - self._estimate(outputs)
        return quantile_slopes(outputs, targets) / self.cfg.batch_size, {"td_errors": errors}

    def _estimate(self, outputs: Tensor) -> Tensor:
        """Q(s, a) [R, B]: the mean of all quantiles [R, C, B, M]."""
        return outputs.mean(3).mean(1)

    def _estimate_slopes(self, outputs: Tensor) -> Tensor:
        """d Q(s, a) / d outputs."""
        return torch.full_like(outputs, 1 / (outputs.shape[1] * outputs.shape[3]))


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("tqc")
