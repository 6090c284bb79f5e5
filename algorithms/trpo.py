"""Trust region policy optimization: Schulman, Levine, Moritz, Jordan, Abbeel 2015, arXiv:1502.05477, single path.

The natural gradient's step is only the longest that is tried. It comes from a linear model of the surrogate and a
quadratic one of the KL; here both are measured, and the step shrinks until (equation 14, appendix C)

    E[r A] > E[A]   and   E[KL(pi_old || pi)] <= delta,   r = pi(a|s) / pi_old(a|s).

A run for which no step will do keeps its policy.

Departures from the paper:
- The single path procedure; vine, which starts rollouts from states it has kept, is not built here.
- Advantages in place of Monte-Carlo estimates of Q: GAE with a critic (arXiv:1506.02438), as in the authors' later
  code. Adam fits the critic, as in openai/baselines trpo_mpi; that paper bounds its step by a KL as well, and
  joschu/modular_rl@034d639 uses L-BFGS.
- The Fisher matrix is damped (`cg_damping`), and time limits bootstrap, as in NPG.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from algorithms import npg
from algorithms.common.config import PerRun, require
from algorithms.common.natural import backtrack, to_vectors
from algorithms.common.on_policy import require_positive

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(npg.Config):
    """NPG's, and the line search."""

    kl_slack: PerRun = 1.0  # a step is refused where its KL exceeds this times delta (npg.TRPO_MPI: 1.5)
    shrink: PerRun = 0.5  # from one step that is tried to the next (npg.TRPO_MPI)
    line_search_steps: int = 10  # tried before the policy stays as it is (npg.TRPO_MPI)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "kl_slack", "line_search_steps")
        shrink = np.asarray(self.shrink)
        require(bool(np.all((shrink > 0) & (shrink < 1))), f"shrink is {shrink}; it must lie between 0 and 1")


class Agent(npg.Agent):
    """TRPO for R runs at once."""

    cfg: Config

    def _take(self, batch: npg.Batch, step: Tensor) -> dict[str, Tensor]:
        """Backtrack along the step [R, D], each run to the first that is good enough."""
        bound = (self.coef["kl_slack"] * self.coef["delta"]).squeeze(1)

        def accept() -> Tensor:
            gain, kl, _ = self._compare(batch)
            return (gain > 0) & (kl <= bound)

        start = to_vectors(self.of_policy.views)
        accepted, refused = backtrack(
            self._assign, accept, start, step, self.coef["shrink"], self.cfg.line_search_steps
        )
        return {"step_accepted": accepted, "backtracks": refused}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("trpo")
