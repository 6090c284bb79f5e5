"""Vanilla policy gradient with a learned baseline and GAE: Sutton, McAllester, Singh, Mansour 1999 (NIPS 12) for the
gradient, Schulman, Moritz, Levine, Jordan, Abbeel 2015, arXiv:1506.02438, for the advantages; the form that OpenAI's
Spinning Up made known (openai/spinningup@038665d vpg.py).

Each rollout gives one step of Adam along

    g = E[ grad log pi(a|s) A ],   A = GAE(gamma, lambda), scaled to mean 0 and standard deviation 1,

and many steps of the critic towards the discounted rewards-to-go. What follows a cut is the critic's value there.

With `kl_target` the policy's step size adapts: PPO's Figure 3 compares with this "vanilla PG with adaptive stepsize",
whose Adam step "is adjusted based on the KL divergence of the original and updated policy" after each batch
(arXiv:1707.06347, footnote 3; its rule is that of the course's homework 4 it points to, here `adapt_step`).

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B = T N samples.

Departures from the sources:
- The critic minimizes half the squared error and the standard deviation has 1e-8 added, which Adam hardly sees.
- Time limits bootstrap from the true final observation (`time_limit_bootstrap`), as in Spinning Up; with 0 a truncation
  counts as a termination.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import (
    Batch,
    OnPolicyAgent,
    adapt_step,
    explained_variance,
    require_positive,
    require_shares,
    standardize,
)
from algorithms.common.optimizers import Adam
from algorithms.common.rollouts import Rollout, by_run, evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are Spinning Up's."""

    learning_rate: PerRun = 3e-4  # of the policy; its first value where it adapts
    kl_target: PerRun = 0.0  # per iteration, for a step size that adapts; 0: it does not
    value_learning_rate: PerRun = 1e-3
    anneal_steps: PerRun = math.inf  # env_steps over which both step sizes fall linearly to 0; inf: constant
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.97
    normalize_advantages: PerRun = 1.0  # 1: to mean 0 and standard deviation 1 over the rollout
    num_envs: int = 1
    num_steps: int = 4000  # T
    num_value_steps: int = 80  # of the critic, on the whole rollout
    hidden_sizes: tuple[int, ...] = (64, 64)
    initialization: Literal["fan_in", "normc", "orthogonal"] = "fan_in"
    log_std: float = -0.5  # where it starts
    adam_epsilon: float = 1e-8
    max_grad_norm: PerRun = math.inf  # of the policy's gradient
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the sources do not have; off by default.
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10
    scale_rewards: bool = False  # by the running deviation of the return, clip at 10

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "value_learning_rate", "anneal_steps", "num_envs", "num_value_steps")
        require_shares(self, "gamma", "gae_lambda")
        require(self.num_envs * self.num_steps > 1, "num_envs * num_steps must be 2 at least: one has no deviation")


class Agent(OnPolicyAgent):
    """The vanilla policy gradient for R runs at once."""

    memory = (*OnPolicyAgent.memory, "value_optimizer", "step_size")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = Adam(self.of_policy, cfg.adam_epsilon)
        self.value_optimizer = Adam(self.of_critic, cfg.adam_epsilon)
        self.step_size = cfg.learning_rate.copy()  # [R]

    def iterate(self) -> dict[str, np.ndarray]:
        """A rollout, one step of the policy, the critic's steps. Returns metrics, each [R]."""
        cfg = self.cfg
        rollout = self._collect()
        start = time.perf_counter()
        batch = self._prepare(rollout)
        left = self._left(self.iteration * self.steps_per_iteration)
        old = self._policy_gradient(batch)
        self.optimizer.step(self.step_size * left, cfg.max_grad_norm)
        for _ in range(cfg.num_value_steps):
            self._value_gradient(batch)
            self.value_optimizer.step(cfg.value_learning_rate * left)
        metrics = self._measure(batch, old)
        self.step_size = adapt_step(self.step_size, metrics["kl"], cfg.kl_target)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return metrics | {"step_size": self.step_size.copy()}

    def _prepare(self, rollout: Rollout) -> Batch:
        """Values, advantages and rewards-to-go of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        values = evaluate(self.critic, self.parameters, observations).squeeze(-1)
        ones = np.ones(self.num_runs)
        advantages, monte_carlo = self._advantages(rollout, values, self.cfg.gae_lambda, ones)
        scaled = standardize(advantages, self.coef["normalize_advantages"])
        return Batch(observations, actions, values, scaled, monte_carlo + values)

    def _policy_gradient(self, batch: Batch) -> Any:
        """The gradient of mean_b( -log pi(a|s) A ), into `parameters.grad`; returns pi."""
        layers = self.policy.network.forward(self.parameters, batch.observations)
        log_std = self.policy.log_std()
        policy = self.policy.distribution(layers[-1], None if log_std is None else log_std.clone())
        by_policy = policy.gradient(batch.actions, batch.advantages / -batch.advantages.shape[1])
        self.policy.write_gradient(layers, *by_policy)
        return policy

    def _value_gradient(self, batch: Batch) -> None:
        """The gradient of mean_b( (return - V)^2 / 2 ), into `parameters.grad`."""
        layers = self.critic.forward(self.parameters, batch.observations)
        by_values = (layers[-1].squeeze(-1) - batch.returns) / batch.returns.shape[1]
        self.critic.backward(self.parameters, layers, by_values.unsqueeze(-1))

    @torch.no_grad()
    def _measure(self, batch: Batch, old: Any) -> dict[str, np.ndarray]:
        """What the update did, over the whole rollout; each [R]."""
        outputs = evaluate(self.policy.network, self.parameters, batch.observations)
        new = self.policy.distribution(outputs, self.policy.log_std())
        metrics = {
            "kl": old.kl(new).mean(1),
            "entropy": new.entropy().mean(1),
            "explained_variance": explained_variance(batch.values, batch.returns),  # by the values before the update
        }
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("vpg")
