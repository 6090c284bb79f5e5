"""REINFORCE: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning", Machine Learning 8, for episodes; Sutton & Barto 2018, sections 13.3 and 13.4.

Play K whole episodes with the present policy, then go one step up along

    g = 1/K sum_episodes sum_t grad log pi(a_t|s_t) (G_t - b),   G_t = r_t + gamma r_{t+1} + ...,

an unbiased estimate of the gradient of the expected return (at gamma = 1). The baseline b is

    none    0
    mean    the mean of all G in the other K - 1 episodes; not in its own, whose actions would then shape it
    value   V(s_t), a network that is fitted to the returns after each step of the policy

Axes: batches of one run [1, B, ...], B steps of its K episodes; memory [R, L, ...], R runs, L steps.

Departures from the sources:
- One environment per run, so that its episodes follow one another and every step of them counts: of several
  environments, the episodes under way at an update would be of two policies and would have to be thrown away. Runs
  complete their batches at different times, and each makes its update alone, at once; the others act on.
- The sources' gamma^t before G_t is left out, as is usual; at gamma = 1 it makes no difference.
- The step is Adam's.
- With the baseline `value` a time limit is no end of the task: V of the true final observation follows
  (`time_limit_bootstrap`). Without a critic, or with 0, nothing does.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.layers import Parameters
from algorithms.common.on_policy import OnPolicyAgent, require_positive, require_shares
from algorithms.common.optimizers import Adam
from algorithms.common.rollouts import Rollout

SUPPORTS = {"discrete", "continuous"}
STEPS = 100  # of every run in one iterate(); a matter of speed only, results do not depend on it


@dataclasses.dataclass(frozen=True)
class Config:
    """The sources leave the settings to the task; these are plain ones."""

    baseline: Literal["none", "value", "mean"] = "none"
    num_episodes: int = 10  # K
    learning_rate: PerRun = 1e-3  # of the policy
    value_learning_rate: PerRun = 1e-3
    num_value_steps: int = 10  # of the critic after each update, on the same episodes
    anneal_steps: PerRun = math.inf  # env_steps over which both step sizes fall linearly to 0; inf: constant
    gamma: PerRun = 0.99
    hidden_sizes: tuple[int, ...] = (64, 64)
    initialization: Literal["normc", "orthogonal", "fan_in"] = "normc"
    adam_epsilon: float = 1e-8
    max_grad_norm: PerRun = math.inf  # of the policy's gradient
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10

    def __post_init__(self) -> None:
        require_positive(self, "num_episodes", "learning_rate", "value_learning_rate", "num_value_steps")
        require_positive(self, "anneal_steps")
        require_shares(self, "gamma")
        alone = self.baseline == "mean" and self.num_episodes == 1
        require(not alone, "num_episodes is 1; with baseline 'mean' it must be 2 at least: the mean is of the others")


def returns_to_go(
    rewards: Sequence[float], ends: Sequence[bool], following: Sequence[float], gamma: float
) -> np.ndarray:
    """G_t for the steps [B] of one run's episodes: r_t + gamma G_{t+1}, where one ends r_t + gamma `following`_t."""
    returns, later = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        later = rewards[t] + gamma * (following[t] if ends[t] else later)
        returns[t] = later
    return returns


def mean_of_others(returns: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each step of one run the mean of the returns [B] in all the episodes but its own; `ends` marks last steps."""
    episode = np.cumsum(ends) - ends  # its number, for each step
    sums, counts = np.bincount(episode, returns), np.bincount(episode)
    means: np.ndarray = ((sums.sum() - sums) / (counts.sum() - counts))[episode]
    return means


class OneRun(Parameters):
    """One run's weights and gradients, [1, ...], on the memory of its group's."""

    def __init__(self, parameters: Parameters, run: int):
        self.num_runs, self.shapes = 1, parameters.shapes
        self.views = {name: view.detach()[run : run + 1] for name, view in parameters.views.items()}
        self.grads = {name: grad[run : run + 1] for name, grad in parameters.grads.items()}


class Batch(NamedTuple):
    """Whole episodes of one run, entries [1, B, ...]: the first `size` of them, zeros after that."""

    observations: Tensor
    actions: Tensor
    returns: Tensor
    weights: Tensor  # (G_t - b) / K
    real: Tensor  # 1 for the first `size`
    size: int


class Agent(OnPolicyAgent):
    """REINFORCE for R runs at once."""

    memory = (*OnPolicyAgent.memory, "lengths", "played", "squared_grad_norm", "entropy")
    steps_per_iteration = STEPS  # env_steps per run

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.with_critic = cfg.baseline == "value"
        super().__init__(cfg, envs, seeds, device, self.with_critic)
        self.optimizer = Adam(self.of_policy, cfg.adam_epsilon)
        if self.with_critic:
            self.value_optimizer = Adam(self.of_critic, cfg.adam_epsilon)
        self.alone = [OneRun(self.parameters, run) for run in range(self.num_runs)]
        size, kind = (self.num_runs, STEPS), np.float32 if envs.action_shape else np.int64
        self.episodes: dict[str, np.ndarray] = {  # what each run has played since its last update, [R, L, ...]
            "observations": np.zeros((*size, *envs.observation_shape), np.float32),  # as the policy saw them
            "actions": np.zeros((*size, *(envs.action_shape or ())), kind),
            "rewards": np.zeros(size),
            "ends": np.zeros(size, bool),
            "following": np.zeros(size),  # what the critic says comes after an episode that was cut
        }
        self.lengths = np.zeros(self.num_runs, np.int64)  # steps of it
        self.played = np.zeros(self.num_runs, np.int64)  # episodes of it that have ended
        self.squared_grad_norm, self.entropy = np.full((2, self.num_runs), np.nan)  # of each run's last update

    def iterate(self) -> dict[str, np.ndarray]:
        """STEPS steps of every run; a run that has played K episodes makes its update. Returns metrics, each [R]: how
        many updates it made, and of its last one |g|^2 and the policy's mean entropy, nan before the first."""
        updates = np.zeros(self.num_runs)
        for t in range(STEPS):
            rollout = self.collector.collect(1, lambda observations, _: self.policy.act(observations, self.streams))
            start = time.perf_counter()
            self._remember(rollout)
            due = self.played == self.cfg.num_episodes
            if due.any():
                self._update(due, self._left(self.iteration * STEPS + t))
                updates += due
            self.timers["learn"] += time.perf_counter() - start
        self.iteration += 1
        last = {"squared_grad_norm": self.squared_grad_norm, "entropy": self.entropy}
        return {"updates": updates} | {name: values.copy() for name, values in last.items()}

    def _remember(self, rollout: Rollout) -> None:
        """Adds a step [1, R, 1, ...] to every run's episodes; a parked run's stand still."""
        if self.lengths.max() == len(self.episodes["rewards"][0]):
            for name, array in self.episodes.items():
                self.episodes[name] = np.concatenate((array, np.zeros_like(array)), 1)
        ends = rollout.terminations | rollout.truncations
        step = np.arange(self.num_runs), self.lengths
        self.episodes["observations"][step] = rollout.observations[0, :, 0]
        self.episodes["actions"][step] = rollout.actions[0, :, 0]
        self.episodes["rewards"][step] = rollout.rewards[0, :, 0]
        self.episodes["ends"][step] = ends[0, :, 0]
        self.episodes["following"][step] = 0.0
        cut = (ends & ~rollout.terminations)[0, :, 0] & (self.cfg.time_limit_bootstrap > 0)
        for run in cut.nonzero()[0].tolist() if self.with_critic else ():
            last = torch.from_numpy(rollout.next_observations[0, run : run + 1]).to(self.device)
            with torch.no_grad():
                self.episodes["following"][run, self.lengths[run]] = self.critic(self.alone[run], last).item()
        self.lengths += ~self.envs.parked
        self.played += ends[0, :, 0]

    def _update(self, due: np.ndarray, left: np.ndarray) -> None:
        """One step of the policy for the runs that are `due`, bool [R], then the critic's."""
        cfg = self.cfg
        batches = {run: self._batch(run) for run in due.nonzero()[0].tolist()}
        for run, batch in batches.items():
            self.entropy[run] = self._policy_gradient(run, batch)
            self.squared_grad_norm[run] = sum(
                self.alone[run].grads[name].double().square().sum().item() for name in self.of_policy.shapes
            )
        self.optimizer.step(cfg.learning_rate * left, cfg.max_grad_norm, due)
        for _ in range(cfg.num_value_steps if self.with_critic else 0):
            for run, batch in batches.items():
                self._value_gradient(run, batch)
            self.value_optimizer.step(cfg.value_learning_rate * left, active=due)
        self.lengths[due], self.played[due] = 0, 0

    def _batch(self, run: int) -> Batch:
        """A run's episodes since its last update. Their number of steps is filled up with zeros to a power of two, so
        that the networks need few sizes of scratch memory; it depends on the run alone."""
        size = int(self.lengths[run])
        padded = 1 << (size - 1).bit_length()
        rewards, ends, following = (self.episodes[name][run, :size] for name in ("rewards", "ends", "following"))
        gamma = float(self.cfg.gamma[run])
        returns = returns_to_go(rewards.tolist(), ends.tolist(), following.tolist(), gamma)

        def filled(values: np.ndarray) -> Tensor:
            out = np.zeros((1, padded, *values.shape[1:]), np.int64 if values.dtype == np.int64 else np.float32)
            out[0, :size] = values
            return torch.from_numpy(out).to(self.device)

        observations = filled(self.episodes["observations"][run, :size])
        baseline: np.ndarray | float = 0.0
        if self.with_critic:
            values = self.critic.forward(self.alone[run], observations)[-1]
            baseline = values[0, :size, 0].double().cpu().numpy()
        elif self.cfg.baseline == "mean":
            baseline = mean_of_others(returns, ends)
        weights = filled((returns - baseline) / self.cfg.num_episodes)
        actions = filled(self.episodes["actions"][run, :size])
        return Batch(observations, actions, filled(returns), weights, filled(np.ones(size)), size)

    def _policy_gradient(self, run: int, batch: Batch) -> float:
        """Minus g into the run's gradients; returns the policy's mean entropy."""
        own, network = self.alone[run], self.policy.network
        layers = network.forward(own, batch.observations)
        policy = self.policy.distribution(layers[-1], own.views.get("log_std"))
        by_outputs, by_log_std = policy.gradient(batch.actions, -batch.weights)
        network.backward(own, layers, by_outputs)
        if by_log_std is not None:
            own.grads["log_std"].copy_(by_log_std)
        return float((policy.entropy() * batch.real).sum().item() / batch.size)

    def _value_gradient(self, run: int, batch: Batch) -> None:
        """The gradient of the mean of (G - V)^2 / 2, into the run's gradients."""
        layers = self.critic.forward(self.alone[run], batch.observations)
        errors = (layers[-1].squeeze(-1) - batch.returns) * batch.real
        self.critic.backward(self.alone[run], layers, (errors / batch.size).unsqueeze(-1))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; of the episodes only what has happened since the last update."""
        longest = max(1, int(self.lengths.max()))
        happened = np.arange(longest) < self.lengths[:, None]
        kept = {}
        for name, array in self.episodes.items():
            there = happened.reshape(*happened.shape, *(1,) * (array.ndim - 2))
            kept[name] = np.where(there, array[:, :longest], np.zeros((), array.dtype))
        optimizers = {"value_optimizer": self.value_optimizer.state()} if self.with_critic else {}
        return super().state() | optimizers | {"episodes": kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        super().load_state(state)
        if self.with_critic:
            self.value_optimizer.load_state(state["value_optimizer"])
        self.episodes = {name: np.array(array) for name, array in state["episodes"].items()}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("reinforce")
