"""The noisy cross-entropy method on the weights of a policy: Szita & Lorincz 2006, "Learning Tetris Using the Noisy
Cross-Entropy Method", Neural Computation 18(12); PPO's Figure 3 (arXiv:1707.06347) compares with it.

A generation t is P policies whose weights are drawn from N(mu, diag(sigma^2)), each played for one episode. The best
rho P of them, the elite, say where the next one is drawn from:

    mu <- mean of the elite's weights,   sigma^2 <- their variance + Z_t.

The noise Z_t keeps sigma from shrinking to 0 before the mean is any good: constant, or falling linearly to 0.

Axes: generations [P, D] of one run; R runs, P members, D weights.

Departures from the paper:
- The policy is a small perceptron, as in joschu/modular_rl@48456f9 (by PPO's first author), whose settings are the
  defaults here; the paper's are linear in 22 features of Tetris (preset `paper`).
- Z_t is added to the first generation as well, as there.
- Normalization of observations: statistics stand still during a generation, so that its members see the same; there
  they move with each step. There the policy's returns are of rewards divided by their running deviation; here raw.
- What is evaluated is mu, which has played no episode. rllab's is the best member (rll/rllab@08ead5b cem.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import require_positive
from algorithms.common.population import PopulationAgent

SUPPORTS = {"discrete", "continuous"}
CLIP = 5.0  # of normalized observations; joschu/modular_rl@48456f9 run_cem.py


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of joschu/modular_rl@48456f9: battery-cem.yaml, and cem.py where it is silent."""

    num_members: int = 200  # P
    elite_share: PerRun = 0.2  # rho
    initial_std: PerRun = 1.0  # sigma_0; of every weight
    extra_std: PerRun = 0.01  # sqrt(Z_0)
    extra_generations: PerRun = 150.0  # over which Z_t falls linearly to 0 (n_iter / 2); inf: constant
    hidden_sizes: tuple[int, ...] = (10, 5)
    num_envs: int = 1  # members of a run that play at the same time
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "num_members", "initial_std", "extra_generations", "num_envs")
        share = np.asarray(self.elite_share)
        require(bool(np.all((share > 0) & (share <= 1))), f"elite_share is {share}; it must lie in (0, 1]")
        require(bool(np.all(np.asarray(self.extra_std) >= 0)), "extra_std must not be negative")


def extra_variance(extra_std: np.ndarray, extra_generations: np.ndarray, generation: np.ndarray) -> np.ndarray:
    """Z_t, each [R]."""
    variance: np.ndarray = extra_std**2 * np.maximum(1 - generation / extra_generations, 0)
    return variance


def elite_of(returns: np.ndarray, share: float) -> np.ndarray:
    """The members of one run with the highest returns [P], best first; of equal ones those that were drawn first."""
    count = max(1, round(share * len(returns)))
    return np.argsort(-returns, kind="stable")[:count]


class Agent(PopulationAgent):
    """CEM for R runs at once."""

    memory = (*PopulationAgent.memory, "variance")
    metrics = (*PopulationAgent.metrics, "elite_return", "std")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, cfg.num_members, cfg.num_members, device, clip=CLIP)
        self.variance = np.repeat(cfg.initial_std[:, None] ** 2, self.noise.shape[-1], 1)  # sigma^2 [R, D], without Z_t

    def _members(self, runs: np.ndarray, members: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """mu + sigma times noise."""
        extra = extra_variance(self.cfg.extra_std, self.cfg.extra_generations, self.generation)
        std = np.sqrt(self.variance[runs] + extra[runs, None]).astype(np.float32)
        weights: np.ndarray = centres + std * self.noise[runs, members]
        return weights

    def _update(self, run: int, centre: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """mu and sigma^2 of the elite."""
        elite = elite_of(self.returns[run], float(self.cfg.elite_share[run]))
        runs = np.full(len(elite), run)
        weights = self._members(runs, elite, np.repeat(centre[None], len(elite), 0)).astype(np.float64)
        self.variance[run] = weights.var(0)
        metrics = {"elite_return": self.returns[run, elite].mean(), "std": np.sqrt(self.variance[run]).mean()}
        return weights.mean(0).astype(np.float32), metrics


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("cem")
