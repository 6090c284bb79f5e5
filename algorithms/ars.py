"""Augmented random search: Mania, Guy, Recht 2018, "Simple random search provides a competitive approach to
reinforcement learning", arXiv:1803.07055.

A generation plays the linear policy M in both senses of N random directions, one episode each, and moves it along the
b directions in which one of the two did best, r+ and r- being the returns of the two:

    M <- M + alpha / (b sigma_R) sum_{k <= b} (r(M + nu delta_(k)) - r(M - nu delta_(k))) delta_(k),

sigma_R the standard deviation of those 2 b returns. V1 sees observations as they are, V2 (the default) by the mean and
the deviation of all states met so far; with b < N the paper calls them V1-t and V2-t.

Axes: generations [N, 2] of returns and [N, D] of directions of one run; R runs, D weights.

Departures from the paper:
- `num_envs` members play at the same time, one by default; the paper's workers play different numbers of episodes.
- `bias` adds what the paper's policies do not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import require_positive
from algorithms.common.population import MirroredAgent, weighted_sum

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are for HalfCheetah: DLR-RM/rl-baselines3-zoo@0103d98 ars.yml, "closest to original paper"."""

    learning_rate: PerRun = 0.02  # alpha
    num_directions: int = 32  # N
    num_top: int = 4  # b
    direction_std: PerRun = 0.03  # nu
    survival_bonus: PerRun = 0.0  # taken off every reward: else the returns of all who do not fall look alike
    normalize_observations: bool = True  # False: V1
    bias: bool = False
    num_envs: int = 1  # members of a run that play at the same time
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them

    hidden_sizes = ()  # linear

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "num_directions", "num_top", "direction_std", "num_envs")
        require(
            self.num_top <= self.num_directions,
            f"num_top is {self.num_top}; it must not be more than num_directions, {self.num_directions}",
        )


def direction_of(pairs: np.ndarray, directions: np.ndarray, num_top: int) -> np.ndarray:
    """1 / (b sigma_R) sum_k (r+ - r-) delta_k [D] of one run, by returns [N, 2] and directions [N, D].

    The b best by the better of their two returns, of equal ones those that were drawn first. Zero where sigma_R is.
    """
    top = np.argsort(-pairs.max(1), kind="stable")[:num_top]
    deviation = pairs[top].std()
    if deviation == 0:
        return np.zeros(directions.shape[1])
    return weighted_sum((pairs[top, 0] - pairs[top, 1]) / (num_top * deviation), directions[top])


class Agent(MirroredAgent):
    """ARS for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        learned = None if cfg.bias else ("actor.weight0",)
        super().__init__(cfg, envs, seeds, cfg.num_directions, device, learned=learned)
        self.bonus = cfg.survival_bonus[:, None]

    def _update(self, run: int, centre: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """A step of alpha along the direction."""
        step = self.cfg.learning_rate[run] * direction_of(self.pairs(run), self.noise[run], self.cfg.num_top)
        return (centre + step).astype(np.float32), {}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("ars")
