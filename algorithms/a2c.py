"""Advantage actor-critic, synchronous: Mnih et al. 2016, arXiv:1602.01783, algorithm S3 without its asynchrony, as
OpenAI named and released it (openai/baselines a2c, 2017).

N environments take T steps with the present policy; every step has the rest of them as its n-step return,

    R_t = r_t + gamma r_{t+1} + ... + gamma^(n-1) r_{t+n-1} + gamma^n V(s_{t+n}),   A_t = R_t - V(s_t),

and one step of RMSProp follows the gradient of

    L(theta) = E[ -log pi(a|s) A - beta H(pi) + c (R - V)^2 / 2 ],   A and R held fixed.

With `gae_lambda` below 1 GAE takes the place of the n-step return (arXiv:1506.02438); 1 is the n-step return.

A2C is PPO with one epoch of one minibatch, at which pi_old is pi and nothing is clipped (arXiv:2205.09123).

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B = T N samples.

Departures from the paper:
- Synchronous: no Hogwild updates by workers with old weights (that is A3C).
- Gradients are means over the N T samples, as in the released code, and not sums over the steps of a worker.
- Policy and value networks share nothing, as in the released code on MuJoCo, and are small perceptrons.
- The norm of the gradient is clipped, as in the released code.
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

from algorithms.common.config import PerRun
from algorithms.common.on_policy import OnPolicyAgent, explained_variance, require_positive, require_shares
from algorithms.common.optimizers import rmsprop_or_adam
from algorithms.common.rollouts import by_run, evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's; where it leaves something open, or tuned it per task, those of openai/baselines@ea25b9e a2c.py."""

    learning_rate: PerRun = 7e-4  # within the range that the paper searched, 1e-4 to 1e-2
    anneal_steps: PerRun = math.inf  # env_steps over which the step size falls linearly to 0; inf: constant
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 1.0  # 1: n-step returns
    ent_coef: PerRun = 0.01  # beta
    vf_coef: PerRun = 1.0  # c, times the mean of half the squared error; baselines: 0.5 times that of the whole
    num_envs: int = 16  # the paper's workers
    num_steps: int = 5  # T, the paper's t_max
    hidden_sizes: tuple[int, ...] = (64, 64)
    max_grad_norm: PerRun = 0.5  # over policy and value together
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    optimizer_epsilon: float = 1e-5  # of either
    rmsprop_decay: float = 0.99  # the paper's alpha
    rmsprop_start: float = 0.0  # first value of the mean square; TensorFlow's, and so baselines', is 1
    epsilon_inside_root: bool = True  # the paper, TensorFlow; False: torch
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal", "fan_in"] = "normc"
    log_std: float = 0.0  # where it starts
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10
    scale_rewards: bool = False  # by the running deviation of the return, clip at 10
    scale_returns: bool = False  # the critic's targets alone, by their running deviation

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "anneal_steps", "num_envs", "num_steps", "optimizer_epsilon")
        require_shares(self, "gamma", "gae_lambda", "rmsprop_decay")


class Agent(OnPolicyAgent):
    """A2C for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = rmsprop_or_adam(self.parameters, cfg)

    def iterate(self) -> dict[str, np.ndarray]:
        """T steps of every environment and one step of the optimizer. Returns metrics, each [R]."""
        rollout = self._collect()
        start = time.perf_counter()
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        critic_layers, unit = self.critic.forward(self.parameters, observations), self._unit()
        values, next_values = critic_layers[-1].squeeze(-1) * unit, self._next_values(rollout) * unit
        (advantages,) = self._estimates(rollout, values, next_values, self.cfg.gae_lambda)
        returns = advantages + values
        self._value_gradient(critic_layers, returns / unit)
        self.return_unit.update(returns.cpu().numpy())
        old = self._policy_gradient(observations, actions, advantages)
        left = self._left(self.iteration * self.steps_per_iteration)
        self.optimizer.step(self.cfg.learning_rate * left, self.cfg.max_grad_norm)
        metrics = self._measure(observations, old) | {"explained_variance": explained_variance(values, returns)}
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def _policy_gradient(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Any:
        """The gradient of mean_b( -log pi(a|s) A - beta H(pi) ), into `parameters.grad`; returns pi."""
        size = advantages.shape[1]
        layers = self.policy.network.forward(self.parameters, observations)
        log_std = self.policy.log_std()
        policy = self.policy.distribution(layers[-1], None if log_std is None else log_std.clone())
        by_policy = policy.gradient(actions, advantages / -size, w_h=self.coef["ent_coef"] / -size)
        self.policy.write_gradient(layers, *by_policy)
        return policy

    def _value_gradient(self, layers: list[Tensor], returns: Tensor) -> None:
        """The gradient of mean_b( c (R - V)^2 / 2 ), into `parameters.grad`; `layers` are those of V, in whose unit
        returns are."""
        by_values = (layers[-1].squeeze(-1) - returns) * (self.coef["vf_coef"] / returns.shape[1])
        self.critic.backward(self.parameters, layers, by_values.unsqueeze(-1))

    @torch.no_grad()
    def _measure(self, observations: Tensor, old: Any) -> dict[str, Tensor]:
        """What the update did to the policy, over the rollout; each [R]."""
        new = self.policy.distribution(
            evaluate(self.policy.network, self.parameters, observations), self.policy.log_std()
        )
        return {"kl": old.kl(new).mean(1), "entropy": new.entropy().mean(1)}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("a2c")
