"""Natural policy gradient: Kakade 2001, "A Natural Policy Gradient" (NIPS 14), with the truncated conjugate gradient of
Duan, Chen, Houthooft, Schulman, Abbeel 2016, arXiv:1604.06778 (TNPG), and the normalized step of Rajeswaran, Lowrey,
Todorov, Kakade 2017, arXiv:1703.02660:

    theta <- theta + sqrt(2 delta / g^T F^-1 g) F^-1 g,   g = E[grad log pi(a|s) A],   F = E[grad log pi grad log pi^T].

The step length makes the quadratic model of KL(pi_old || pi) equal delta. Nothing checks the KL itself: that is TRPO.

Axes: rollouts [T, R, N, ...], batches [R, B, ...], vectors of weights [R, D]; R runs, N environments, T steps.

Departures from the papers:
- Kakade's step size is a constant; here it is the normalized one of the two later papers.
- F is averaged over the actions in closed form and over every `fvp_subsample`th state, and damped (`cg_damping`).
- The critic is a network of its own, fitted by Adam to the GAE returns after the policy's step; Duan et al. fit linear
  features, Rajeswaran et al. a quadratic function or a network.
- Time limits bootstrap from the true final observation (`time_limit_bootstrap`); with 0 a truncation counts as a
  termination.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.natural import assign, fisher_product, natural_step, to_vectors
from algorithms.common.on_policy import OnPolicyAgent, explained_variance, require_positive, require_shares, standardize
from algorithms.common.optimizers import Adam
from algorithms.common.rollouts import Rollout, by_run, evaluate, shuffled

SUPPORTS = {"discrete", "continuous"}
TRPO_MPI = "openai/baselines@4b8bdcc trpo_mpi"  # the source of the choices below that the papers leave open


@dataclasses.dataclass(frozen=True)
class Config:
    """delta, gamma and k are those of arXiv:1502.05477 (Table 2, appendix C.1)."""

    delta: PerRun = 0.01  # KL that the step is long enough for
    cg_damping: PerRun = 0.1  # multiple of the identity added to F (TRPO_MPI)
    cg_iterations: int = 10  # k
    fvp_subsample: int = 5  # F is averaged over every fifth sample of [T*N] (TRPO_MPI); 1: over all
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.95
    normalize_advantages: PerRun = 1.0  # 1: to mean 0 and standard deviation 1 over the rollout (TRPO_MPI)
    learning_rate: PerRun = 1e-3  # of the critic's Adam (TRPO_MPI)
    num_epochs: int = 5  # the critic's passes over the rollout (TRPO_MPI)
    batch_size: int = 64  # samples of the critic's minibatches (TRPO_MPI)
    adam_epsilon: float = 1e-8
    num_envs: int = 1
    num_steps: int = 2048  # T
    hidden_sizes: tuple[int, ...] = (64, 64)
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination (TRPO_MPI)

    # Details that the papers do not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"  # TRPO_MPI; orthogonal: openai/baselines@ea25b9e ppo2
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10 (TRPO_MPI: clip at 5)

    def __post_init__(self) -> None:
        samples = self.num_envs * self.num_steps
        require(
            self.batch_size > 0 and samples % self.batch_size == 0,
            f"batch_size is {self.batch_size}; it must divide num_envs * num_steps = {samples}",
        )
        require_positive(self, "delta", "cg_iterations", "fvp_subsample")
        require_positive(self, "learning_rate", "num_envs", "num_steps", "num_epochs")
        require(bool(np.all(np.asarray(self.cg_damping) >= 0)), "cg_damping must not be negative")
        require_shares(self, "gamma", "gae_lambda")


class Batch(NamedTuple):
    """A rollout of R runs, entries [R, B, ...]; `old` is the distribution of pi_old."""

    observations: Tensor
    actions: Tensor
    old: Any
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def surrogate_gain(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """E[(r - 1) A], [R], of log r and A [R, B]: how much the surrogate E[r A] (arXiv:1502.05477, eq. 14) exceeds its
    value at pi_old, where r = pi(a|s) / pi_old(a|s) is 1."""
    return (torch.expm1(log_ratio) * advantages).mean(1)


class Agent(OnPolicyAgent):
    """The natural policy gradient for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = Adam(self.of_critic, cfg.adam_epsilon)

    def iterate(self) -> dict[str, np.ndarray]:
        """A rollout, a step of the policy, and the critic's regression. Returns metrics, each [R]."""
        rollout = self._collect()
        start = time.perf_counter()
        batch = self._prepare(rollout)
        taken = self._take(batch, self._step(batch))
        metrics = taken | self._measure(batch)
        metrics |= self._fit_critic(batch)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def _prepare(self, rollout: Rollout) -> Batch:
        """Log-probabilities, values and advantages of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        outputs = evaluate(self.policy.network, self.parameters, observations)
        log_std = self.policy.log_std()
        old: Any = self.policy.distribution(outputs, None if log_std is None else log_std.clone())
        values = evaluate(self.critic, self.parameters, observations).squeeze(-1)
        (advantages,) = self._advantages(rollout, values, self.cfg.gae_lambda)
        scaled = standardize(advantages, self.coef["normalize_advantages"])
        return Batch(observations, actions, old, old.log_prob(actions), values, scaled, advantages + values)

    def _gradient(self, batch: Batch) -> Tensor:
        """g = E[grad log pi(a|s) A], [R, D]: the surrogate's gradient at pi_old."""
        layers = self.policy.network.forward(self.parameters, batch.observations)
        policy = self.policy.distribution(layers[-1], self.policy.log_std())
        self.policy.write_gradient(
            layers, *policy.gradient(batch.actions, batch.advantages / batch.advantages.shape[1])
        )
        return to_vectors(self.of_policy.grads)

    def _step(self, batch: Batch) -> Tensor:
        """sqrt(2 delta / g^T F^-1 g) F^-1 g, [R, D]."""
        gradient = self._gradient(batch)
        states = batch.observations[:, :: self.cfg.fvp_subsample].contiguous()
        product = fisher_product(self.policy, states, self.coef["cg_damping"])
        return natural_step(product, gradient, self.coef["delta"], self.cfg.cg_iterations)

    def _take(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        """Move the policy's weights by the step [R, D]; metrics of its own, each [R]."""
        self._assign(to_vectors(self.of_policy.views) + step)
        return {}

    def _assign(self, vectors: Tensor) -> None:
        """Set the policy's weights from [R, D]."""
        assign(self.of_policy, vectors)

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The present policy's surrogate gain, E[KL(pi_old || pi)] and entropy over the rollout, each [R]."""
        outputs = evaluate(self.policy.network, self.parameters, batch.observations)
        new = self.policy.distribution(outputs, self.policy.log_std())
        gain = surrogate_gain(new.log_prob(batch.actions) - batch.old_log_probs, batch.advantages)
        return gain, batch.old.kl(new).mean(1), new.entropy().mean(1)

    def _measure(self, batch: Batch) -> dict[str, Tensor]:
        """What the step did, over the whole rollout; each [R]."""
        gain, kl, entropy = self._compare(batch)
        return {
            "kl": kl,
            "surrogate_gain": gain,
            "entropy": entropy,
            "explained_variance": explained_variance(batch.old_values, batch.returns),  # before the update
        }

    def _fit_critic(self, batch: Batch) -> dict[str, Tensor]:
        """`num_epochs` passes of Adam over half the mean squared error to the returns, each in a run's own order.
        Metrics of its own, each [R]."""
        cfg = self.cfg
        for _ in range(cfg.num_epochs):
            order = self.streams.permutation("minibatches", self.steps_per_iteration)
            fields = shuffled((batch.observations, batch.returns), order, cfg.batch_size)
            for observations, returns in zip(*fields, strict=True):
                layers = self.critic.forward(self.parameters, observations)
                self.critic.backward(self.parameters, layers, (layers[-1] - returns.unsqueeze(-1)) / cfg.batch_size)
                self.optimizer.step(cfg.learning_rate)
        return {}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("npg")
