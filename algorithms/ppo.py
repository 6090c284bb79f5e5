"""Proximal policy optimization: Schulman, Wolski, Dhariwal, Radford, Klimov 2017, arXiv:1707.06347.

Every row of the paper's Table 1 is one formula with coefficients of its own per run,

    L(theta) = E[ min(r A, clip(r, 1 - eps, 1 + eps) A) - beta KL(pi_old || pi) ],   r = pi(a|s) / pi_old(a|s),

where eps = inf is "no clipping", beta = 0 is "no penalty", and an adaptive beta follows a target KL. A group may hold
all eleven rows.

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B samples of a minibatch.

Departures from the paper:
- Policy and value networks share nothing, as in its MuJoCo experiments; Atari's shared network is not built here.
- Time limits bootstrap from the true final observation (`time_limit_bootstrap`); with 0 a truncation counts as a
  termination, as in the code that most published numbers come from.
- Implementation details that the paper does not state are switches, off by default, each with its source in Config.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import OnPolicyAgent, explained_variance, standardize
from algorithms.common.optimizers import Adam
from algorithms.common.rollouts import Rollout, by_run, evaluate, shuffled

SUPPORTS = {"discrete", "continuous"}
BASELINES = "openai/baselines@ea25b9e"  # the source of the details below, as catalogued in arXiv:2005.12729


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's: Table 3, and Table 1's best row for the objective."""

    clip_coef: PerRun = 0.2  # eps; inf: no clipping
    kl_coef: PerRun = 0.0  # beta of the KL penalty, its first value where it adapts
    kl_target: PerRun = 0.0  # d_targ of the adaptive penalty (section 4); 0: beta stays
    learning_rate: PerRun = 3e-4
    anneal_steps: PerRun = math.inf  # env_steps over which the step size falls linearly to 0; inf: constant
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.95
    ent_coef: PerRun = 0.0  # c2
    vf_coef: PerRun = 0.5  # c1, times the mean of half the squared error
    num_envs: int = 1
    num_steps: int = 2048  # T
    num_epochs: int = 10  # K
    batch_size: int = 64  # M, samples per minibatch
    hidden_sizes: tuple[int, ...] = (64, 64)
    adam_epsilon: float = 1e-8
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination (BASELINES)

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"  # BASELINES ppo1 and ppo2
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them (BASELINES ClipActionsWrapper)
    normalize_advantages: PerRun = 0.0  # 1: to mean 0 and standard deviation 1 in each minibatch (BASELINES ppo2)
    normalize_observations: bool = False  # running mean and variance, clip at 10 (BASELINES VecNormalize)
    scale_rewards: bool = False  # by the running deviation of the return, clip at 10 (BASELINES VecNormalize)
    value_clip: PerRun = math.inf  # V stays within this of the old V, or pays (BASELINES ppo2)
    max_grad_norm: PerRun = math.inf  # over policy and value together (BASELINES ppo2)
    target_kl: PerRun = math.inf  # no further epoch past this KL (openai/spinningup@038665d ppo.py)

    def __post_init__(self) -> None:
        samples = self.num_envs * self.num_steps
        require(
            self.batch_size > 0 and samples % self.batch_size == 0,
            f"batch_size is {self.batch_size}; it must divide num_envs * num_steps = {samples}",
        )
        for name in ("learning_rate", "num_envs", "num_steps", "num_epochs", "clip_coef", "anneal_steps"):
            require(bool(np.all(np.asarray(getattr(self, name)) > 0)), f"{name} must be positive")
        for name in ("gamma", "gae_lambda"):
            value = np.asarray(getattr(self, name))
            require(bool(np.all((value >= 0) & (value <= 1))), f"{name} is {value}; it must lie in [0, 1]")


class Batch(NamedTuple):
    """Samples of R runs, entries [R, B, ...]; `old` holds pi_old's mean or logits [R, B, A]."""

    observations: Tensor
    actions: Tensor
    old: Tensor
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def surrogate(ratio: Tensor, advantages: Tensor, clip_coef: Tensor) -> Tensor:
    """Equation 7, per sample [R, B]: min(r A, clip(r, 1 - eps, 1 + eps) A); `clip_coef` [R, 1], inf for none."""
    clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped * advantages)


def surrogate_slope(ratio: Tensor, advantages: Tensor, clip_coef: Tensor) -> Tensor:
    """d surrogate / d log pi(a|s) [R, B]: r A, and 0 where the clipped term is the smaller one."""
    gain = ratio * advantages
    clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef) * advantages
    return torch.where(clipped < gain, 0.0, gain)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: Tensor) -> Tensor:
    """Half the squared error [R, B], or that of V clipped to old V +- `value_clip` [R, 1] where it is larger."""
    clipped = old_values + torch.clamp(values - old_values, -value_clip, value_clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def value_slope(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: Tensor | None) -> Tensor:
    """d value_loss / d V [R, B]: V - return, and 0 where V has left the clipped range and its own loss is the smaller.
    None stands for no clipping in any run."""
    error = values - returns
    if value_clip is None:
        return error
    moved = values - old_values
    clipped_error = old_values + torch.clamp(moved, -value_clip, value_clip) - returns
    outside = (moved.abs() > value_clip) & (clipped_error.abs() > error.abs())
    return torch.where(outside, 0.0, error)


def adapt_kl_coef(kl_coef: np.ndarray, kl: np.ndarray, kl_target: np.ndarray) -> np.ndarray:
    """Section 4's rule, [R]: beta / 2 if d < d_targ / 1.5, 2 beta if d > 1.5 d_targ; unchanged where d_targ is 0."""
    halved = np.where(kl < kl_target / 1.5, kl_coef / 2, kl_coef)
    return np.where(kl_target > 0, np.where(kl > kl_target * 1.5, kl_coef * 2, halved), kl_coef)


class Agent(OnPolicyAgent):
    """PPO for R runs at once."""

    memory = (*OnPolicyAgent.memory, "kl_coef")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.stops, self.clips_values = np.isfinite(cfg.target_kl).any(), np.isfinite(cfg.value_clip).any()
        self.kl_coef = cfg.kl_coef.copy()

    def iterate(self) -> dict[str, np.ndarray]:
        """Algorithm 1: a rollout, then `num_epochs` passes over it. Returns metrics, each [R]."""
        cfg = self.cfg
        rollout = self._collect()
        start = time.perf_counter()
        batch = self._prepare(rollout)
        old_log_std = None if self.policy.discrete else self.parameters["log_std"].detach().clone()
        left = self._left(self.iteration * self.steps_per_iteration)
        active = np.ones(self.num_runs, bool)
        # Drawn for all passes: where runs stop early, how many draws one makes must not depend on its company.
        orders = [self.streams.permutation("minibatches", self.steps_per_iteration) for _ in range(cfg.num_epochs)]
        for order in orders:
            for minibatch in self._minibatches(batch, order):
                approx_kl = self._gradient(minibatch, old_log_std)
                self.optimizer.step(cfg.learning_rate * left, cfg.max_grad_norm, active)
            if approx_kl is not None:
                active &= ~(approx_kl.cpu().numpy() > cfg.target_kl)
                if not active.any():
                    break
        metrics = self._measure(batch, old_log_std)
        self.kl_coef = adapt_kl_coef(self.kl_coef, metrics["kl"], cfg.kl_target)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return metrics

    def _prepare(self, rollout: Rollout) -> Batch:
        """Log-probabilities, values and advantages of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        observations, actions = by_run(rollout.observations, self.device), by_run(rollout.actions, self.device)
        old = evaluate(self.policy.network, self.parameters, observations)
        values = evaluate(self.critic, self.parameters, observations).squeeze(-1)
        (advantages,) = self._advantages(rollout, values, self.cfg.gae_lambda)
        log_probs = self.policy.distribution(old, self.policy.log_std()).log_prob(actions)
        return Batch(observations, actions, old, log_probs, values, advantages, advantages + values)

    def _minibatches(self, batch: Batch, order: np.ndarray) -> Iterator[Batch]:
        """One pass in each run's own order [R, T*N]; entries [R, B, ...]."""
        passed = Batch(*shuffled(batch, order, self.cfg.batch_size))  # [M, R, B, ...]
        passed = passed._replace(advantages=standardize(passed.advantages, self.coef["normalize_advantages"]))
        for parts in zip(*passed, strict=True):
            yield Batch(*parts)

    def _gradient(self, batch: Batch, old_log_std: Tensor | None) -> Tensor | None:
        """The gradient of equation 9's loss with equation 8's penalty, into `parameters.grad`; for a group that stops
        early, returns the approximate KL [R] (E[r - 1 - log r]).

            loss = mean_b( -surrogate + beta KL(pi_old || pi) - c2 H(pi) + c1 value_loss )
        """
        parameters, coef, size = self.parameters, self.coef, self.cfg.batch_size
        layers = self.policy.network.forward(parameters, batch.observations)
        policy = self.policy.distribution(layers[-1], self.policy.log_std())
        log_ratio = policy.log_prob(batch.actions) - batch.old_log_probs
        ratio = torch.exp(log_ratio)
        slope = surrogate_slope(ratio, batch.advantages, coef["clip_coef"])
        kl_coef = torch.as_tensor(self.kl_coef, dtype=torch.float32, device=self.device)[:, None]
        old: Any = self.policy.distribution(batch.old, old_log_std) if (self.kl_coef > 0).any() else None
        by_policy = policy.gradient(batch.actions, slope / -size, old, kl_coef / size, coef["ent_coef"] / -size)
        self.policy.write_gradient(layers, *by_policy)

        layers = self.critic.forward(parameters, batch.observations)
        value_clip = coef["value_clip"] if self.clips_values else None
        by_values = value_slope(layers[-1].squeeze(-1), batch.old_values, batch.returns, value_clip)
        self.critic.backward(parameters, layers, (by_values * (coef["vf_coef"] / size)).unsqueeze(-1))
        return ((ratio - 1) - log_ratio).mean(1) if self.stops else None

    @torch.no_grad()
    def _measure(self, batch: Batch, old_log_std: Tensor | None) -> dict[str, np.ndarray]:
        """What the update did, over the whole rollout; each [R]."""
        outputs = evaluate(self.policy.network, self.parameters, batch.observations)
        new: Any = self.policy.distribution(outputs, self.policy.log_std())
        ratio = torch.exp(new.log_prob(batch.actions) - batch.old_log_probs)
        metrics = {
            "kl": self.policy.distribution(batch.old, old_log_std).kl(new).mean(1),
            "clip_fraction": ((ratio - 1).abs() > self.coef["clip_coef"]).float().mean(1),
            "entropy": new.entropy().mean(1),
            "explained_variance": explained_variance(
                batch.old_values, batch.returns
            ),  # by the values before the update
            "kl_coef": torch.from_numpy(self.kl_coef),
        }
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("ppo")
