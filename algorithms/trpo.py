"""Trust region policy optimization: Schulman, Levine, Moritz, Jordan, Abbeel 2015, arXiv:1502.05477, single path.

The natural gradient's step is only the longest that is tried. It comes from a linear model of the surrogate and a
quadratic one of the KL; here both are measured, and the step shrinks until (equation 14, appendix C)

    E[r A] > E[A]   and   E[KL(pi_old || pi)] <= delta,   r = pi(a|s) / pi_old(a|s).

A run for which no step will do keeps its policy.

The critic is fitted by regression, or with `critic = "constrained"` within a trust region of its own (arXiv:1506.02438,
section 5), R being the returns to fit and sigma^2 = E[(V_old - R)^2]:

    minimise  E[(V - R)^2]   subject to   E[(V - V_old)^2] / (2 sigma^2) <= epsilon,

the KL between normals of variance sigma^2 around V_old and V. V is taken to be linear in the weights, J its derivative;
conjugate gradient then solves H x = E[J^T (R - V_old)], H = E[J^T J], and the step is x, or as much as is allowed.

Departures from the papers:
- The single path procedure; vine is `trpo_vine`.
- Advantages in place of Monte-Carlo estimates of Q: GAE with a critic (arXiv:1506.02438), as in the authors' later
  code. By default Adam fits the critic, as in openai/baselines trpo_mpi; joschu/modular_rl@034d639 uses L-BFGS.
- The constrained fit is to the returns of GAE, where that paper has the discounted sums of rewards (equation 28), so
  that both critics have one target. The paper scales x to the constraint's boundary always; here only where x would
  cross it, as the inequality has it. As for the policy, the step then shrinks until the constraint holds and the error
  has fallen; `cg_iterations`, `cg_damping`, `fvp_subsample`, `shrink` and `line_search_steps` serve for both.
- The matrices are damped (`cg_damping`), and time limits bootstrap, as in NPG.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from algorithms import npg
from algorithms.common.config import PerRun, require
from algorithms.common.natural import assign, backtrack, bounded_step, gauss_newton_product, to_vectors
from algorithms.common.on_policy import require_positive
from algorithms.common.rollouts import evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(npg.Config):
    """NPG's, and the line search; learning_rate, num_epochs and batch_size are of the critic's regression alone."""

    kl_slack: PerRun = 1.0  # a step is refused where its KL exceeds this times delta (npg.TRPO_MPI: 1.5)
    shrink: PerRun = 0.5  # from one step that is tried to the next (npg.TRPO_MPI)
    line_search_steps: int = 10  # tried before the policy stays as it is (npg.TRPO_MPI)
    critic: Literal["regression", "constrained"] = "regression"  # how it is fitted
    value_delta: PerRun = 0.01  # epsilon of the constrained critic, for which no number is given: as delta; inf: none

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "kl_slack", "value_delta", "line_search_steps")
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

    def _fit_critic(self, batch: npg.Batch) -> dict[str, Tensor]:
        """By NPG's regression, or one step within the critic's trust region; metrics of its own, each [R]."""
        if self.cfg.critic == "regression":
            return super()._fit_critic(batch)
        errors = batch.returns - batch.old_values  # [R, B]
        variance, epsilon = errors.square().mean(1, keepdim=True), self.coef["value_delta"]  # [R, 1]
        layers = self.critic.forward(self.parameters, batch.observations)
        self.critic.backward(self.parameters, layers, errors.unsqueeze(-1) / errors.shape[1])
        ascent = to_vectors(self.of_critic.grads)
        states = batch.observations[:, :: self.cfg.fvp_subsample].contiguous()
        product = gauss_newton_product(self.critic, self.of_critic, states, self.coef["cg_damping"])
        step = bounded_step(product, ascent, 2 * epsilon * variance, self.cfg.cg_iterations)

        def compare() -> tuple[Tensor, Tensor]:
            """E[(V - V_old)^2] / (2 sigma^2) and whether the error has fallen, [R] each."""
            values = evaluate(self.critic, self.parameters, batch.observations).squeeze(-1)
            moved = (values - batch.old_values).square().mean(1) / (2 * variance.squeeze(1))
            return moved, (values - batch.returns).square().mean(1) < variance.squeeze(1)

        def accept() -> Tensor:
            moved, better = compare()
            return better & (moved <= epsilon.squeeze(1))

        set_critic, start = partial(assign, self.of_critic), to_vectors(self.of_critic.views)
        accepted, _ = backtrack(set_critic, accept, start, step, self.coef["shrink"], self.cfg.line_search_steps)
        return {"value_step_accepted": accepted, "value_kl": compare()[0]}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("trpo")
