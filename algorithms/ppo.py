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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.distributions import Categorical, Distribution, Gaussian
from algorithms.common.layers import MLP, Parameters, normalized_columns, orthogonal
from algorithms.common.normalization import ObservationNormalizer, RewardScaler
from algorithms.common.optimizers import Adam
from algorithms.common.returns import gae
from algorithms.common.streams import Streams

SUPPORTS = {"discrete", "continuous"}
CHUNK = 512  # samples per run in one forward pass over a rollout; keeps activations in the cache
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


def standardize(advantages: Tensor, active: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the last axis of [..., R, B], for runs whose `active` [R, 1] is not 0."""
    scaled = (advantages - advantages.mean(-1, keepdim=True)) / (advantages.std(-1, keepdim=True) + 1e-8)
    return torch.where(active > 0, scaled, advantages)


def adapt_kl_coef(kl_coef: np.ndarray, kl: np.ndarray, kl_target: np.ndarray) -> np.ndarray:
    """Section 4's rule, [R]: beta / 2 if d < d_targ / 1.5, 2 beta if d > 1.5 d_targ; unchanged where d_targ is 0."""
    halved = np.where(kl < kl_target / 1.5, kl_coef / 2, kl_coef)
    return np.where(kl_target > 0, np.where(kl > kl_target * 1.5, kl_coef * 2, halved), kl_coef)


class Agent:
    """PPO for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs, self.device = cfg, envs, device
        self.num_runs = len(seeds)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.streams = Streams(seeds)
        self.discrete = envs.num_actions is not None
        num_outputs = envs.num_actions if self.discrete else envs.action_shape[0]
        self.actor = MLP("actor", (envs.observation_shape[0], *cfg.hidden_sizes, num_outputs))
        self.critic = MLP("critic", (envs.observation_shape[0], *cfg.hidden_sizes, 1), scratch=self.actor.scratch)
        shapes = {**self.actor.shapes(), **self.critic.shapes()}
        if not self.discrete:
            shapes["log_std"] = (1, num_outputs)  # starts at 0
        self.parameters = Parameters(self.num_runs, shapes, device)
        init, gain = (orthogonal, math.sqrt(2)) if cfg.initialization == "orthogonal" else (normalized_columns, 1.0)
        self.actor.initialize(self.parameters, self.streams["actor"], init(gain), init(0.01))
        self.critic.initialize(self.parameters, self.streams["critic"], init(gain), init(1.0))
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.acting = self.actor.acting(self.parameters)
        normalizer = ObservationNormalizer(self.num_runs, envs.observation_shape)
        self.normalizer = normalizer if cfg.normalize_observations else None
        self.scaler = RewardScaler(self.num_runs, cfg.num_envs, cfg.gamma) if cfg.scale_rewards else None
        self.coef = {
            field.name: torch.as_tensor(value, dtype=torch.float32, device=device)[:, None]
            for field in dataclasses.fields(cfg)
            if isinstance(value := getattr(cfg, field.name), np.ndarray)
        }  # [R, 1]
        self.stops, self.clips_values = np.isfinite(cfg.target_kl).any(), np.isfinite(cfg.value_clip).any()
        self.kl_coef = cfg.kl_coef.copy()
        self.iteration = 0
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = self._normalize(envs.reset(seeds))  # [R, N, O]

    def iterate(self) -> dict[str, np.ndarray]:
        """Algorithm 1: a rollout, then `num_epochs` passes over it. Returns metrics, each [R]."""
        rollout = self._collect()
        start = time.perf_counter()
        batch = self._prepare(*rollout)
        learning_rate = self.cfg.learning_rate * np.maximum(
            1 - self.iteration * self.steps_per_iteration / self.cfg.anneal_steps, 0
        )
        old_log_std = None if self.discrete else self.parameters["log_std"].detach().clone()
        active = np.ones(self.num_runs, bool)
        # Drawn for all passes: where runs stop early, how many draws one makes must not depend on its company.
        orders = [self.streams.permutation("minibatches", self.steps_per_iteration) for _ in range(self.cfg.num_epochs)]
        for order in orders:
            for minibatch in self._minibatches(batch, order):
                approx_kl = self._gradient(minibatch, old_log_std)
                self.optimizer.step(learning_rate, self.cfg.max_grad_norm, active)
            if approx_kl is not None:
                active &= ~(approx_kl.cpu().numpy() > self.cfg.target_kl)
                if not active.any():
                    break
        metrics = self._measure(batch, old_log_std)
        self.kl_coef = adapt_kl_coef(self.kl_coef, metrics["kl"], self.cfg.kl_target)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return metrics

    def _collect(self) -> tuple[np.ndarray, ...]:
        """T steps in every environment."""
        cfg, envs = self.cfg, self.envs
        shape = (cfg.num_steps, self.num_runs, cfg.num_envs)
        observations = np.empty((*shape, *envs.observation_shape), np.float32)
        next_observations = np.empty_like(observations)
        actions = np.empty(shape, np.int64) if self.discrete else np.empty((*shape, *envs.action_shape), np.float32)
        rewards = np.empty(shape, np.float32)
        terminations, truncations = np.empty(shape, bool), np.empty(shape, bool)
        if self.discrete:
            noise = self.streams.gumbel("actions", (cfg.num_steps, cfg.num_envs, envs.num_actions), axis=1)
        else:
            std = np.exp(self.parameters["log_std"].detach().cpu().numpy())
            noise = std * self.streams.normal("actions", (cfg.num_steps, cfg.num_envs, *envs.action_shape), axis=1)
        in_envs = 0.0
        begin = time.perf_counter()
        for t in range(cfg.num_steps):
            outputs = self.acting(self.observations) + noise[t]
            action = outputs.argmax(-1) if self.discrete else outputs
            start = time.perf_counter()
            step = envs.step(action)
            in_envs += time.perf_counter() - start
            observations[t], actions[t] = self.observations, action
            terminations[t], truncations[t] = step.terminations, step.truncations
            rewards[t] = (
                self.scaler(step.rewards, step.terminations | step.truncations) if self.scaler else step.rewards
            )
            self.observations = self._normalize(step.observations)
            next_observations[t] = self._normalize(step.next_observations, update=False)
        self.timers["env"] += in_envs
        self.timers["act"] += time.perf_counter() - begin - in_envs
        return observations, actions, rewards, next_observations, terminations, truncations

    def _normalize(self, observations: np.ndarray, update: bool = True) -> np.ndarray:
        if self.normalizer is None:
            return observations
        if update:
            self.normalizer.update(observations)
        return self.normalizer(observations)

    def _prepare(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
    ) -> Batch:
        """Log-probabilities, values and advantages of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        flat = self._flatten(observations)
        old, values = self._evaluate(self.actor, flat), self._evaluate(self.critic, flat).squeeze(-1)
        shape = (self.num_runs, self.cfg.num_steps, self.cfg.num_envs)
        v = values.view(shape).transpose(0, 1).cpu().numpy()  # [T, R, N]
        next_values = self._evaluate(self.critic, self._flatten(next_observations))
        next_v = next_values.view(shape).transpose(0, 1).cpu().numpy()
        cut = truncations & (self.cfg.time_limit_bootstrap == 0)[:, None]
        advantages = gae(
            rewards, v, next_v, terminations | cut, terminations | truncations, self.cfg.gamma, self.cfg.gae_lambda
        )
        batch_actions = self._flatten(actions)
        policy = self._distribution(old, None if self.discrete else self.parameters["log_std"].detach())
        advantage = self._flatten(advantages)
        return Batch(flat, batch_actions, old, policy.log_prob(batch_actions), values, advantage, advantage + values)

    def _flatten(self, entries: np.ndarray) -> Tensor:
        """[T, R, N, ...] -> [R, T*N, ...] on the device."""
        by_run = np.ascontiguousarray(entries.swapaxes(0, 1))
        return torch.from_numpy(by_run.reshape(self.num_runs, -1, *entries.shape[3:])).to(self.device)

    @torch.no_grad()
    def _evaluate(self, network: MLP, observations: Tensor) -> Tensor:
        """A network's outputs [R, B, out] over a whole rollout [R, B, O]."""
        chunks = observations.split(CHUNK, 1)
        return torch.cat([network(self.parameters, chunk.contiguous()) for chunk in chunks], 1)

    def _minibatches(self, batch: Batch, order: np.ndarray) -> Iterator[Batch]:
        """One pass in each run's own order [R, T*N]; entries [R, B, ...]."""
        runs, samples, size = self.num_runs, self.steps_per_iteration, self.cfg.batch_size
        rows = order + samples * np.arange(runs)[:, None]
        index = torch.from_numpy(rows.reshape(runs, -1, size).swapaxes(0, 1).reshape(-1)).to(self.device)
        fields = [
            field.reshape(runs * samples, *field.shape[2:])
            .index_select(0, index)
            .view(-1, runs, size, *field.shape[2:])
            for field in batch
        ]
        passed = Batch(*fields)  # [M, R, B, ...]
        passed = passed._replace(advantages=standardize(passed.advantages, self.coef["normalize_advantages"]))
        for parts in zip(*passed, strict=True):
            yield Batch(*parts)

    def _distribution(self, outputs: Tensor, log_std: Tensor | None) -> Distribution:
        return Categorical(outputs) if log_std is None else Gaussian(outputs, log_std)

    def _gradient(self, batch: Batch, old_log_std: Tensor | None) -> Tensor | None:
        """The gradient of equation 9's loss with equation 8's penalty, into `parameters.grad`; for a group that stops
        early, returns the approximate KL [R] (E[r - 1 - log r]).

            loss = mean_b( -surrogate + beta KL(pi_old || pi) - c2 H(pi) + c1 value_loss )
        """
        parameters, coef, size = self.parameters, self.coef, self.cfg.batch_size
        layers = self.actor.forward(parameters, batch.observations)
        policy = self._distribution(layers[-1], None if self.discrete else parameters["log_std"].detach())
        log_ratio = policy.log_prob(batch.actions) - batch.old_log_probs
        ratio = torch.exp(log_ratio)
        slope = surrogate_slope(ratio, batch.advantages, coef["clip_coef"])
        kl_coef = torch.as_tensor(self.kl_coef, dtype=torch.float32, device=self.device)[:, None]
        old = self._distribution(batch.old, old_log_std) if (self.kl_coef > 0).any() else None
        by_outputs, by_log_std = policy.gradient(
            batch.actions,
            slope / -size,
            old,
            kl_coef / size,
            coef["ent_coef"] / -size,  # type: ignore[arg-type]
        )
        self.actor.backward(parameters, layers, by_outputs)
        if by_log_std is not None:
            parameters.grads["log_std"].copy_(by_log_std)

        layers = self.critic.forward(parameters, batch.observations)
        value_clip = coef["value_clip"] if self.clips_values else None
        by_values = value_slope(layers[-1].squeeze(-1), batch.old_values, batch.returns, value_clip)
        self.critic.backward(parameters, layers, (by_values * (coef["vf_coef"] / size)).unsqueeze(-1))
        return ((ratio - 1) - log_ratio).mean(1) if self.stops else None

    @torch.no_grad()
    def _measure(self, batch: Batch, old_log_std: Tensor | None) -> dict[str, np.ndarray]:
        """What the update did, over the whole rollout; each [R]."""
        new = self._distribution(
            self._evaluate(self.actor, batch.observations), None if self.discrete else self.parameters["log_std"]
        )
        old = self._distribution(batch.old, old_log_std)
        ratio = torch.exp(new.log_prob(batch.actions) - batch.old_log_probs)
        clipped = ((ratio - 1).abs() > self.coef["clip_coef"]).float()
        unexplained = (batch.returns - batch.old_values).var(1) / (batch.returns.var(1) + 1e-8)
        metrics = {
            "kl": old.kl(new).mean(1),  # type: ignore[arg-type]
            "clip_fraction": clipped.mean(1),
            "entropy": new.entropy().mean(1),
            "explained_variance": 1 - unexplained,  # by the values before the update
        }
        metrics |= {"kl_coef": torch.from_numpy(self.kl_coef)}
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, ...] for observations [R, N, O]: the mode, or a sample when streams are given."""
        outputs = self.acting(self.normalizer(observations) if self.normalizer else observations)
        if self.discrete:
            noise = 0 if streams is None else streams.gumbel("actions", outputs.shape[1:])
            return (outputs + noise).argmax(-1)
        if streams is None:
            return outputs
        std = np.exp(self.parameters["log_std"].detach().cpu().numpy())
        return outputs + std * streams.normal("actions", outputs.shape[1:])

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~self.parameters.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run, and the statistics its policy needs."""
        weights = self.parameters.of_run(run)
        if self.normalizer is not None:
            moments = self.normalizer.moments
            weights |= {"observations.mean": moments.mean[run], "observations.variance": moments.variance[run]}
        return weights

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        return {
            "parameters": self.parameters.state(),
            "optimizer": self.optimizer.state(),
            "streams": self.streams.state(),
            "observations": self.observations,
            "kl_coef": self.kl_coef,
            "iteration": self.iteration,
            "normalizer": self.normalizer.moments.state() if self.normalizer else None,
            "scaler": self.scaler.state() if self.scaler else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.parameters.load_state(state["parameters"])
        self.optimizer.load_state(state["optimizer"])
        self.streams.load_state(state["streams"])
        self.observations, self.kl_coef, self.iteration = state["observations"], state["kl_coef"], state["iteration"]
        if self.normalizer:
            self.normalizer.moments.load_state(state["normalizer"])
        if self.scaler:
            self.scaler.load_state(state["scaler"])


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("ppo")
