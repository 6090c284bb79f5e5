"""What policy-gradient algorithms share: a policy, a critic beside it, their rollouts and what has to be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import per_run_tensors, require
from algorithms.common.images import ImageNetwork
from algorithms.common.layers import MLP, Initializer, Parameters, fan_in_uniform, normalized_columns, orthogonal
from algorithms.common.memory import Remembering
from algorithms.common.normalization import ObservationNormalizer, ReturnUnit, RewardScaler
from algorithms.common.policies import Policy
from algorithms.common.returns import gae
from algorithms.common.rollouts import Collector, Rollout, by_run, by_time, evaluate
from algorithms.common.streams import Streams

STEP_SIZES = 1e-8, 1.0  # bounds of one that adapts; openai/baselines@bb40378 acktr_cont.py, which has the same rule
# Hidden layers, the policy's head, the critic's head, and biases where they are not 0.
INITIALIZATIONS: dict[str, tuple[Initializer, Initializer, Initializer, Initializer | None]] = {
    "normc": (normalized_columns(1.0), normalized_columns(0.01), normalized_columns(1.0), None),
    "orthogonal": (orthogonal(math.sqrt(2)), orthogonal(0.01), orthogonal(1.0), None),
    "fan_in": (fan_in_uniform, fan_in_uniform, fan_in_uniform, fan_in_uniform),
}


def require_positive(cfg: Any, *names: str) -> None:
    """Refuse settings that are not above 0."""
    for name in names:
        value = getattr(cfg, name)
        require(bool(np.all(np.asarray(value) > 0)), f"{name} is {value}; it must be positive")


def require_shares(cfg: Any, *names: str) -> None:
    """Refuse settings outside [0, 1]."""
    for name in names:
        value = np.asarray(getattr(cfg, name))
        require(bool(np.all((value >= 0) & (value <= 1))), f"{name} is {value}; it must lie in [0, 1]")


def standardize(advantages: Tensor, active: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the last axis of [..., R, B], for runs whose `active` [R, 1] is not 0."""
    scaled = (advantages - advantages.mean(-1, keepdim=True)) / (advantages.std(-1, keepdim=True) + 1e-8)
    return torch.where(active > 0, scaled, advantages)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(return - V) / Var(return): [R, B] each -> [R]."""
    return 1 - (returns - values).var(1) / (returns.var(1) + 1e-8)


class Batch(NamedTuple):
    """A rollout of R runs, entries [R, B, ...]."""

    observations: Tensor
    actions: Tensor
    values: Tensor  # before the update
    advantages: Tensor
    returns: Tensor  # the critic's targets


def adapt_step(step_size: np.ndarray, kl: np.ndarray, kl_target: np.ndarray) -> np.ndarray:
    """[R]: divided by 1.5 where kl > 2 kl_target, times 1.5 where kl < kl_target / 2, else unchanged, as it is where
    kl_target is 0 (berkeleydeeprlcourse/homework hw4 main.py, of 2017)."""
    adapted = np.where(kl > 2 * kl_target, step_size / 1.5, np.where(kl < kl_target / 2, step_size * 1.5, step_size))
    return np.where(kl_target > 0, np.clip(adapted, *STEP_SIZES), step_size)


class OnPolicyAgent(Remembering):
    """Networks, streams and the collector of R runs; an algorithm adds its optimizers and `iterate`.

    `cfg` has hidden_sizes, initialization, normalize_observations and clip_actions, and scale_rewards, scale_returns,
    convolutions and log_std (where the deviation of continuous actions starts) where the algorithm knows them.
    `memory` names what has to be saved: parts that have a `state()`, arrays and numbers. The policy's weights and the
    critic's, if there is one, lie in `parameters`; `of_policy` and `of_critic` are these parts of it.
    """

    memory: ClassVar[tuple[str, ...]] = ("parameters", "optimizer", "streams", "collector", "return_unit", "iteration")

    def __init__(
        self,
        cfg: Any,
        envs: Any,
        seeds: Sequence[int],
        device: str = "cpu",
        with_critic: bool = True,
    ):
        self.cfg, self.envs, self.device = cfg, envs, device
        self.num_runs = len(seeds)
        self.streams = Streams(seeds)
        self._make_networks(with_critic)
        if not self.policy.discrete:
            self.parameters.fill("log_std", np.full(self.parameters["log_std"].shape, getattr(cfg, "log_std", 0.0)))
        normalizes, scales = cfg.normalize_observations, getattr(cfg, "scale_rewards", False)
        normalizer = ObservationNormalizer(self.num_runs, envs.observation_shape) if normalizes else None
        scaler = RewardScaler(self.num_runs, envs.num_envs, cfg.gamma) if scales else None
        self.collector = Collector(envs, seeds, normalizer, scaler, cfg.clip_actions)
        self.return_unit = ReturnUnit(self.num_runs, getattr(cfg, "scale_returns", False))
        self.coef = per_run_tensors(cfg, device)  # [R, 1]
        self.iteration = 0
        self.timers = self.collector.timers  # seconds

    def _make_networks(self, with_critic: bool) -> None:
        """The policy and the critic, and their first weights."""
        cfg, envs = self.cfg, self.envs
        convolutions, sizes = getattr(cfg, "convolutions", "none"), (*cfg.hidden_sizes, 1)
        self.policy = Policy(envs, cfg.hidden_sizes, convolutions=convolutions)
        critic = (
            MLP("critic", (envs.observation_shape[0], *sizes), scratch=self.policy.network.scratch)
            if convolutions == "none"
            else ImageNetwork("critic", envs.observation_shape, convolutions, sizes)
        )
        shapes = self.policy.shapes() | (critic.shapes() if with_critic else {})
        self.parameters = Parameters(self.num_runs, shapes, self.device)
        self.of_policy = self.parameters.part(self.policy.shapes())
        hidden, policy_head, critic_head, bias = INITIALIZATIONS[cfg.initialization]
        self.policy.initialize(self.parameters, self.streams["actor"], hidden, policy_head, bias)
        if with_critic:
            self.critic, self.of_critic = critic, self.parameters.part(critic.shapes())
            critic.initialize(self.parameters, self.streams["critic"], hidden, critic_head, bias)

    def _collect(self) -> Rollout:
        """T steps in every environment with the present policy."""
        steps, envs = self.cfg.num_steps, self.cfg.num_envs
        return self.collector.collect(steps, self.policy.sampler(self.streams, steps, envs))

    def _unit(self) -> Tensor:
        """What the critic's outputs are multiplied with to be V, [R, 1]."""
        return torch.from_numpy(self.return_unit()).to(self.device)

    def _advantages(self, rollout: Rollout, values: Tensor, *gae_lambdas: np.ndarray) -> list[Tensor]:
        """GAE's estimates [R, T*N] for each lambda [R], given V [R, T*N] of the rollout's observations.

        A truncation counts as a termination for runs whose `time_limit_bootstrap` is 0.
        """
        return self._estimates(rollout, values, self._next_values(rollout), *gae_lambdas)

    def _next_values(self, rollout: Rollout) -> Tensor:
        """V [R, T*N] of the true successors."""
        successors = by_run(rollout.next_observations, self.device)
        return evaluate(self.critic, self.parameters, successors).squeeze(-1)

    def _estimates(
        self, rollout: Rollout, values: Tensor, next_values: Tensor, *gae_lambdas: np.ndarray
    ) -> list[Tensor]:
        """The same, given V [R, T*N] of the true successors as well."""
        cfg = self.cfg
        cut = rollout.truncations & (cfg.time_limit_bootstrap == 0)[:, None]
        entries = (
            rollout.rewards,
            by_time(values, cfg.num_steps),
            by_time(next_values, cfg.num_steps),
            rollout.terminations | cut,
            rollout.terminations | rollout.truncations,
            cfg.gamma,
        )
        return [by_run(gae(*entries, gae_lambda), self.device) for gae_lambda in gae_lambdas]

    def _left(self, env_steps: int) -> np.ndarray:
        """The share [R] of the step size that is left after so many env_steps: linear, 0 from `anneal_steps` on."""
        left: np.ndarray = np.maximum(1 - env_steps / self.cfg.anneal_steps, 0)
        return left

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, ...] for observations [R, N, O]: the mode, or a sample when streams are given."""
        return self.collector.clip(self.policy.act(self.collector.normalize(observations), streams))

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~self.parameters.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run, and the statistics its policy needs."""
        return self.parameters.of_run(run) | self.collector.statistics_of(run)
