"""Evolution strategies: Salimans, Ho, Chen, Sidor, Sutskever 2017, "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", arXiv:1703.03864, algorithm 1 with section 2's mirrored sampling and fitness shaping.

The centre theta of a population of normals goes up the gradient of its expected return,

    grad E_eps[F(theta + sigma eps)] = 1/sigma E[F(theta + sigma eps) eps],

estimated from n directions played in both senses. In place of the returns F stand their centred ranks u, from -1/2 for
the worst of the 2 n to 1/2 for the best, so that neither their scale nor an outlier counts:

    g = 1 / (2 n) sum_i (u_i+ - u_i-) eps_i.

Adam takes the step, along g - l2_coef theta.

Axes: generations [n, 2] of returns and [n, D] of directions of one run; R runs, D weights.

Departures from the paper, which openai/evolution-strategies-starter@7585f01 agrees with but where it is named:
- 50 directions a generation by default, for budgets of a million steps; there a generation is 5,000 directions and at
  least 100,000 steps, on hundreds of cores. Workers send seeds of their noise there; here it lies in memory.
- Statistics of observations are of all states; there of those of one episode in a hundred.
- Equal returns share their rank; there their places decide.
- No noise on the actions (there 0.01), none of them is binned, and episodes are not cut early.
- The 1/sigma before g is left out, as there: Adam divides by g's scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from algorithms.common.config import PerRun, require
from algorithms.common.layers import normalized_columns
from algorithms.common.natural import from_vectors, to_vectors
from algorithms.common.on_policy import require_positive
from algorithms.common.optimizers import Adam
from algorithms.common.population import MirroredAgent, weighted_sum

SUPPORTS = {"discrete", "continuous"}
CLIP = 5.0  # of normalized observations; openai/evolution-strategies-starter@7585f01 policies.py


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings are those of openai/evolution-strategies-starter@7585f01 humanoid.json but for the sizes."""

    learning_rate: PerRun = 0.01  # alpha
    num_directions: int = 50  # n
    direction_std: PerRun = 0.02  # sigma
    l2_coef: PerRun = 0.005
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper's for MuJoCo, section 4.1
    normalize_observations: bool = True
    adam_epsilon: float = 1e-8
    num_envs: int = 1  # members of a run that play at the same time
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "num_directions", "direction_std", "num_envs")
        require(bool(np.all(np.asarray(self.l2_coef) >= 0)), "l2_coef must not be negative")


def centred_ranks(returns: np.ndarray) -> np.ndarray:
    """Ranks of returns [n, 2], the lowest as -1/2, the highest as 1/2; equal ones share their mean rank, so that a pair
    which the task cannot tell apart moves nothing."""
    flat = returns.ravel()
    order = np.sort(flat)
    low, high = np.searchsorted(order, flat, "left"), np.searchsorted(order, flat, "right") - 1
    ranks: np.ndarray = ((low + high) / 2 / (flat.size - 1) - 0.5).reshape(returns.shape)
    return ranks


def gradient_of(pairs: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """g [D] of one run, by returns [n, 2] and directions [n, D]."""
    ranks = centred_ranks(pairs)
    return weighted_sum((ranks[:, 0] - ranks[:, 1]) / pairs.size, directions)


class Agent(MirroredAgent):
    """ES for R runs at once."""

    memory = (*MirroredAgent.memory, "optimizer")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, cfg.num_directions, device, clip=CLIP)
        hidden, last = normalized_columns(1.0), normalized_columns(0.01)  # policies.py of the starter code
        self.network.initialize(self.parameters, self.streams["actor"], hidden, last)
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)

    def _update(self, run: int, centre: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """A step of Adam."""
        ascent = gradient_of(self.pairs(run), self.noise[run]) - self.cfg.l2_coef[run] * centre
        descent = torch.from_numpy(-ascent[None].astype(np.float32)).to(self.device)
        for name, values in from_vectors(descent, self.parameters.shapes).items():
            self.parameters.grads[name][run].copy_(values[0])
        self.optimizer.step(self.cfg.learning_rate, active=np.arange(self.num_runs) == run)
        return to_vectors(self.parameters.views)[run].cpu().numpy(), {}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("es")
