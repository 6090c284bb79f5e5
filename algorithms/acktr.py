"""Actor-critic using Kronecker-factored trust region: Wu, Mansimov, Liao, Grosse, Ba 2017, arXiv:1708.05144.

A2C whose policy and critic take natural gradient steps, the Fisher matrix in K-FAC's form (`common.kfac`):

    theta <- theta - eta F^-1 grad L,   eta = min(eta_max, sqrt(2 delta / D^T F D)),   D = F^-1 grad L

(section 3.2), so that the model D^T F D / 2 of the KL between the old and the new distribution is at most delta. For
the policy the distribution is pi(a|s), and L = E[ -log pi(a|s) A - beta H(pi) ]; the critic is taken for the normal
p(v|s) = N(v; V(s), 1), whose Fisher matrix is the Gauss-Newton matrix, and L = E[ (R - V)^2 / 2 ], the R being n-step
returns (section 3.1),

    R_t = r_t + gamma r_{t+1} + ... + gamma^n V(s_{t+n}).

The networks share nothing, so each has an eta_max and a delta of its own (section 3.2).

F is not the "empirical" Fisher matrix: scores are of outputs drawn from the model. The actions of the rollout are such
draws from pi, so none are drawn again. Two parts are exact without draws: d log p(v|s) / dV = v - V(s) is one number
of variance 1, so that E[g g^T] is that of the score 1 in all layers; and log_std, on which no input acts, has the
Fisher matrix 2 I.

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B = T N samples.

Departures from the paper:
- On images too the networks share nothing; there the critic is a head on the policy's layers.
- Factors are of every `fisher_subsample`th sample, as K-FAC's paper has it (section 8): with all of them this would
  double the arithmetic of these small networks, where the paper's convolutions dominate.
- The inverses are taken in the same process, every `inverse_period` updates; there by other threads meanwhile.
- Damping is factored, as the paper says; the released code adds it to the products of the factors' eigenvalues.
- The first updates are already K-FAC's, their averages weighted by 1/k; the released code has some of SGD first, for
  the critic 50, which find the returns' scale. Here its eta_max is ten times as large by default: at 45,000 env_steps
  of InvertedPendulum-v5 the critic explained 0.79 of the returns' variance, and 0.32 with theirs (two seeds each).
- Of the released code for MuJoCo, whose constants are the defaults: no weight decay, no previous observation beside the
  present one, no time and no action distribution in the critic's input, tanh in the critic and not ELU.
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
from algorithms.common.kfac import KFAC
from algorithms.common.on_policy import (
    OnPolicyAgent,
    adapt_step,
    explained_variance,
    require_positive,
    require_shares,
    standardize,
)
from algorithms.common.rollouts import by_run, evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of the code released for MuJoCo: openai/baselines acktr_cont.py@bb40378 (POLICY),
    value_functions.py@3b868f2 (CRITIC), kfac.py@041b6b7 (KFAC), run_mujoco.py@2444034 (RUN).

    Its `clip_kl` is 2 delta. Its critic has E[(R - V)^2] and scores of 2 (v - V), hence twice the gradient and four
    times the Fisher matrix: half of its step size, an eighth of its `clip_kl`, a quarter of its damping are the same.
    """

    learning_rate: PerRun = 0.03  # eta_max of the policy, its first value where it adapts (POLICY)
    kl_target: PerRun = 0.002  # KL per iteration, for an eta_max that adapts; 0: it does not (RUN desired_kl)
    policy_delta: PerRun = 0.005  # of the policy; inf: no trust region (KFAC, half of clip_kl)
    damping: PerRun = 0.01  # lambda of the policy (POLICY epsilon)
    value_learning_rate: PerRun = 0.005  # eta_max of the critic (CRITIC: half of 0.001, after a start with SGD)
    value_delta: PerRun = 0.0375  # of the critic; inf: no trust region (CRITIC, clip_kl 0.3)
    value_damping: PerRun = 0.025  # lambda of the critic (CRITIC epsilon 0.1)
    num_value_steps: int = 25  # of the critic, on the whole rollout (CRITIC fit); the paper: 1
    anneal_steps: PerRun = math.inf  # env_steps over which both eta_max fall linearly to 0; inf: constant
    momentum: float = 0.9  # (POLICY)
    stats_decay: float = 0.99  # of the factors' averages (POLICY; CRITIC: 0.95)
    inverse_period: int = 2  # updates of a network from one inversion to the next (POLICY kfac_update)
    fisher_subsample: int = 8  # factors of every eighth sample (arXiv:1503.05671, section 8); 1: of all
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.97  # of the advantages (RUN); 1: n-step returns, the paper's
    ent_coef: PerRun = 0.0  # beta
    normalize_advantages: PerRun = 1.0  # 1: to mean 0 and standard deviation 1 over the rollout (POLICY)
    num_envs: int = 1
    num_steps: int = 2500  # T (RUN)
    convolutions: Literal["none", "minatar", "nature"] = "none"  # for images, before the hidden layers; then all ReLU
    hidden_sizes: tuple[int, ...] = (64, 64)
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"  # CRITIC, POLICY (there 0.1 for the policy's head)
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10
    scale_rewards: bool = False  # by the running deviation of the return, clip at 10

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "policy_delta", "damping", "anneal_steps", "num_value_steps")
        require_positive(self, "value_learning_rate", "value_delta", "value_damping", "num_envs", "num_steps")
        require_positive(self, "inverse_period", "fisher_subsample")
        require_shares(self, "gamma", "gae_lambda", "momentum", "stats_decay")
        require(self.num_envs * self.num_steps > 1, "num_envs * num_steps must be 2 at least: one has no deviation")


class Agent(OnPolicyAgent):
    """ACKTR for R runs at once."""

    memory = (*OnPolicyAgent.memory, "value_optimizer", "step_size")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        constants = cfg.stats_decay, cfg.momentum, cfg.inverse_period
        log_std = {} if self.policy.discrete else {"log_std": 2.0}
        self.optimizer = KFAC(self.policy.network, self.of_policy, self.coef["damping"], *constants, log_std)
        self.value_optimizer = KFAC(self.critic, self.of_critic, self.coef["value_damping"], *constants)
        self.step_size = cfg.learning_rate.copy()  # eta_max of the policy, [R]

    def iterate(self) -> dict[str, np.ndarray]:
        """T steps of every environment, the critic's steps, one of the policy. Returns metrics, each [R]."""
        cfg = self.cfg
        rollout = self._collect()
        start = time.perf_counter()
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        critic_layers = self.critic.forward(self.parameters, observations)
        values = critic_layers[-1].squeeze(-1)
        advantages, n_step = self._advantages(rollout, values, cfg.gae_lambda, np.ones(self.num_runs))
        returns = n_step + values
        left = self._left(self.iteration * self.steps_per_iteration)
        for step in range(cfg.num_value_steps):
            if step > 0:
                critic_layers = self.critic.forward(self.parameters, observations)
            self._value_gradient(critic_layers, returns)
            value_kl_model = self.value_optimizer.step(cfg.value_learning_rate * left, cfg.value_delta)
        old = self._policy_gradient(observations, actions, standardize(advantages, self.coef["normalize_advantages"]))
        kl_model = self.optimizer.step(self.step_size * left, cfg.policy_delta)
        metrics = self._measure(observations, old) | {
            "kl_model": kl_model,
            "value_kl_model": value_kl_model,  # of the last step
            "explained_variance": explained_variance(values, returns),  # by the values before the update
        }
        result = {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}
        self.step_size = adapt_step(self.step_size, result["kl"], cfg.kl_target)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return result | {"step_size": self.step_size.copy()}

    def _value_gradient(self, layers: list[Tensor], returns: Tensor) -> None:
        """The gradient of mean_b( (R - V)^2 / 2 ), into `parameters.grad`, and the critic's Fisher statistics."""
        by_values = (layers[-1].squeeze(-1) - returns) / returns.shape[1]
        self.critic.backward(self.parameters, layers, by_values.unsqueeze(-1))
        some = self._subsample(layers)
        self.value_optimizer.observe(some, torch.ones_like(some[-1]))

    def _policy_gradient(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Any:
        """The gradient of mean_b( -log pi(a|s) A - beta H(pi) ), into `parameters.grad`, and the policy's Fisher
        statistics; returns pi."""
        size = advantages.shape[1]
        layers = self.policy.network.forward(self.parameters, observations)
        log_std = self.policy.log_std()
        policy = self.policy.distribution(layers[-1], None if log_std is None else log_std.clone())
        by_policy = policy.gradient(actions, advantages / -size, w_h=self.coef["ent_coef"] / -size)
        self.policy.write_gradient(layers, *by_policy)

        *some, some_actions = self._subsample([*layers, actions])
        of_some = self.policy.distribution(some[-1], log_std)
        scores, _ = of_some.gradient(some_actions, torch.ones_like(some[-1][..., 0]))
        self.optimizer.observe(some, scores)
        return policy

    def _subsample(self, entries: list[Tensor]) -> list[Tensor]:
        """Every `fisher_subsample`th sample of entries [R, B, ...]."""
        return [entry[:, :: self.cfg.fisher_subsample] for entry in entries]

    @torch.no_grad()
    def _measure(self, observations: Tensor, old: Any) -> dict[str, Tensor]:
        """What the update did to the policy, over the rollout; each [R]."""
        outputs = evaluate(self.policy.network, self.parameters, observations)
        new = self.policy.distribution(outputs, self.policy.log_std())
        return {"kl": old.kl(new).mean(1), "entropy": new.entropy().mean(1)}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("acktr")
