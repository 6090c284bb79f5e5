"""Relative entropy policy search: Peters, Muelling, Altun 2010, "Relative Entropy Policy Search" (AAAI 24).

Of all distributions p over the samples that are within epsilon of the one they were drawn from, KL(p || q) <= epsilon,
take that with the highest expected advantage. It is

    p_i = exp(A_i / eta) / sum_j exp(A_j / eta),

where eta minimizes the dual of the problem over the B samples of a rollout, a convex function,

    g(eta) = eta epsilon + eta log(1/B sum_i exp(A_i / eta)),   g'(eta) = epsilon - KL(p || uniform),

so that the bound holds with equality. A policy that fits: the most likely one under these weights,

    max_theta sum_i p_i log pi_theta(a_i|s_i).

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B = T N samples.

Departures from the paper:
- A is GAE's estimate with a critic beside the policy. In the paper it is the Bellman error r + V(s') - V(s), and V,
  linear in features of the state, minimizes the dual together with eta: so p respects the stationary distribution of
  the states, and what is maximized is the average reward. In episodes that start anew an end costs nothing then, and
  where every step pays the same (CartPole, nearly Hopper) there would be nothing to learn. So here V is fitted to
  discounted returns, and the dual is left with eta.
- The paper's policy is the closed form pi(a|s) exp(A(s, a) / eta) over few actions; here a network is fitted by Adam,
  with PPO's passes over the rollout (arXiv:1707.06347, Table 3), in which the critic is fitted as well.
- Time limits bootstrap from the true final observation (`time_limit_bootstrap`); with 0 a truncation counts as a
  termination.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import Batch, OnPolicyAgent, explained_variance, require_positive, require_shares
from algorithms.common.optimizers import Adam
from algorithms.common.rollouts import Rollout, by_run, evaluate, shuffled

SUPPORTS = {"discrete", "continuous"}
TOLERANCE = 1e-8  # of g'(eta), in units of epsilon
DUAL_STEPS = 100  # at most; Newton's steps take some 6, and bisection alone would take 50
COLDEST = 1e-3  # least eta in units of the advantages' range: there p is on the best samples alone


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper leaves the settings to the task; epsilon is the default of rll/rllab@76b09e6 reps.py, and what concerns
    the networks is PPO's (arXiv:1707.06347, Table 3)."""

    epsilon: PerRun = 0.5  # bound of KL(p || q)
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.95
    learning_rate: PerRun = 3e-4  # of policy and critic
    num_epochs: int = 10  # passes of the fit over the rollout
    batch_size: int = 64  # samples of its minibatches
    adam_epsilon: float = 1e-8
    max_grad_norm: PerRun = math.inf
    num_envs: int = 1
    num_steps: int = 2048  # T
    hidden_sizes: tuple[int, ...] = (64, 64)
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the sources do not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10
    scale_rewards: bool = False  # by the running deviation of the return, clip at 10

    def __post_init__(self) -> None:
        samples = self.num_envs * self.num_steps
        require(
            self.batch_size > 0 and samples % self.batch_size == 0,
            f"batch_size is {self.batch_size}; it must divide num_envs * num_steps = {samples}",
        )
        require_positive(self, "epsilon", "learning_rate", "num_epochs", "num_envs", "num_steps")
        require_shares(self, "gamma", "gae_lambda")


def dual(eta: Tensor, advantages: Tensor, epsilon: Tensor) -> Tensor:
    """g(eta) of the samples' advantages [R, B]; eta and epsilon [R, 1] -> [R, 1]. At its minimum it is E_p[A]."""
    log_mean = torch.logsumexp(advantages / eta, 1, keepdim=True) - math.log(advantages.shape[1])
    return eta * (epsilon + log_mean)


def tilted(eta: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p [R, B], KL(p || uniform) [R, 1], and how fast that falls with log eta, Var_p[A] / eta^2 [R, 1].

    The KL is sum_i p_i log(B p_i), and d KL / d eta = -Var_p[A] / eta^3.
    """
    log_p = torch.log_softmax(advantages / eta, 1)
    p = log_p.exp()
    kl = (p * log_p).sum(1, keepdim=True) + math.log(advantages.shape[1])
    scaled = advantages / eta
    mean = (p * scaled).sum(1, keepdim=True)
    return p, kl, (p * (scaled - mean).square()).sum(1, keepdim=True)


def solve_dual(advantages: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """The eta [R, 1] that minimizes the dual, and which runs are at g'(eta) = 0 to `TOLERANCE`, bool [R, 1].

    Newton's method for the root of g' in log eta, each run's between bounds that close in; a step that would leave them
    is replaced by the middle. As KL(p || uniform) <= range^2 / (8 eta^2) (Hoeffding's lemma), the upper bound is safe;
    where so many samples share the highest advantage that no eta reaches epsilon, eta ends at the lower one, `COLDEST`.
    A run that is done stays as it is while others go on; advantages that are all equal, or not finite, are left alone.
    """
    spread = advantages.amax(1, keepdim=True) - advantages.amin(1, keepdim=True)
    active = (spread > 0) & spread.isfinite()
    spread = torch.where(active, spread, torch.ones_like(spread))
    low, high = (COLDEST * spread).log(), (spread / torch.sqrt(8 * epsilon)).log()
    low = torch.minimum(low, high)
    log_eta = high
    solved = ~active
    for _ in range(DUAL_STEPS):
        _, kl, slope = tilted(log_eta.exp(), advantages)
        excess = kl - epsilon  # -g'
        solved = solved | (excess.abs() <= TOLERANCE * epsilon)
        active = active & ~solved & (high - low > 1e-12)
        if not active.any():
            break
        low = torch.where(excess > 0, log_eta, low)
        high = torch.where(excess > 0, high, log_eta)
        newton = log_eta + excess / slope
        inside = (newton > low) & (newton < high)
        log_eta = torch.where(active, torch.where(inside, newton, (low + high) / 2), log_eta)
    return log_eta.exp(), solved


class Agent(OnPolicyAgent):
    """REPS for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)

    def iterate(self) -> dict[str, np.ndarray]:
        """A rollout, the weights of its samples, and the fit of policy and critic. Returns metrics, each [R]."""
        rollout = self._collect()
        start = time.perf_counter()
        batch = self._prepare(rollout)
        advantages, epsilon = batch.advantages.double(), self.coef["epsilon"].double()
        eta, _ = solve_dual(advantages, epsilon)
        weights, kl, _ = tilted(eta, advantages)
        old = self._distribution(batch.observations)
        self._fit(batch, weights.float() * self.steps_per_iteration)  # a mean of 1: the loss is a mean over samples
        new = self._distribution(batch.observations)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        metrics = {
            "eta": eta.squeeze(1),
            "dual": dual(eta, advantages, epsilon).squeeze(1),
            "weights_kl": kl.squeeze(1),
            "kl": old.kl(new).mean(1),
            "entropy": new.entropy().mean(1),
            "explained_variance": explained_variance(batch.values, batch.returns),  # by the values before the update
        }
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def _prepare(self, rollout: Rollout) -> Batch:
        """Values and advantages of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        values = evaluate(self.critic, self.parameters, observations).squeeze(-1)
        (advantages,) = self._advantages(rollout, values, self.cfg.gae_lambda)
        return Batch(observations, actions, values, advantages, advantages + values)

    def _distribution(self, observations: Tensor) -> Any:
        """The present policy at observations [R, B, O]."""
        log_std = self.policy.log_std()
        outputs = evaluate(self.policy.network, self.parameters, observations)
        return self.policy.distribution(outputs, None if log_std is None else log_std.clone())

    def _fit(self, batch: Batch, weights: Tensor) -> None:
        """`num_epochs` passes of Adam over -w log pi(a|s) + (return - V)^2 / 2, each in a run's own order."""
        cfg = self.cfg
        fields = (batch.observations, batch.actions, weights, batch.returns)
        for _ in range(cfg.num_epochs):
            order = self.streams.permutation("minibatches", self.steps_per_iteration)
            for minibatch in zip(*shuffled(fields, order, cfg.batch_size), strict=True):
                self._gradient(*minibatch)
                self.optimizer.step(cfg.learning_rate, cfg.max_grad_norm)

    def _gradient(self, observations: Tensor, actions: Tensor, weights: Tensor, returns: Tensor) -> None:
        """The gradient of the mean loss over samples [R, B, ...], into `parameters.grad`."""
        size = weights.shape[1]
        layers = self.policy.network.forward(self.parameters, observations)
        policy = self.policy.distribution(layers[-1], self.policy.log_std())
        self.policy.write_gradient(layers, *policy.gradient(actions, -weights / size))
        layers = self.critic.forward(self.parameters, observations)
        self.critic.backward(self.parameters, layers, (layers[-1] - returns.unsqueeze(-1)) / size)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("reps")
