"""Rollouts of on-policy algorithms: collecting them, and turning them into batches by run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import MLP, Parameters
from algorithms.common.normalization import ObservationNormalizer, RewardScaler

CHUNK = 512  # samples per run in one forward pass over a rollout; keeps activations in the cache


class Rollout(NamedTuple):
    """T steps of R runs in N environments each; entries [T, R, N, ...]."""

    observations: np.ndarray  # float32, as the policy saw them
    actions: np.ndarray  # int64 [T, R, N] or float32 [T, R, N, A], as the policy chose them
    rewards: np.ndarray  # float32, scaled if there is a scaler
    next_observations: np.ndarray  # the true successors, before any reset
    terminations: np.ndarray  # bool; the task ended
    truncations: np.ndarray  # bool; it was cut from outside


class Collector:
    """Steps the environments with a policy and keeps what it saw."""

    def __init__(
        self,
        envs: Any,
        seeds: Sequence[int],
        normalizer: ObservationNormalizer | None = None,
        scaler: RewardScaler | None = None,
        clip_actions: np.ndarray | None = None,  # [R], whether the environments get a run's actions clipped to the box
    ):
        self.envs, self.normalizer, self.scaler = envs, normalizer, scaler
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None
        if envs.action_shape and clip_actions is not None and clip_actions.any():
            clips = (clip_actions > 0).reshape(-1, 1, *[1] * len(envs.action_shape))  # [R, 1, ...]
            self._bounds = np.where(clips, envs.action_low, -np.inf), np.where(clips, envs.action_high, np.inf)
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = self._observe(envs.reset(seeds))  # [R, N, O], what to act on next
        self.starts = np.ones(self.observations.shape[:2], bool)  # [R, N], where they are the first of an episode

    def collect(self, num_steps: int, policy: Callable[[np.ndarray, int], np.ndarray]) -> Rollout:
        """`num_steps` steps with the actions of `policy(observations [R, N, O], t)`."""
        envs = self.envs
        shape = (num_steps, envs.num_runs, envs.num_envs)
        observations = np.empty((*shape, *envs.observation_shape), np.float32)
        next_observations = np.empty_like(observations)
        actions = np.empty((*shape, *(envs.action_shape or ())), np.float32 if envs.action_shape else np.int64)
        rewards = np.empty(shape, np.float32)
        terminations, truncations = np.empty(shape, bool), np.empty(shape, bool)
        in_envs, begin = 0.0, time.perf_counter()
        for t in range(num_steps):
            action = policy(self.observations, t)
            start = time.perf_counter()
            step = envs.step(self.clip(action))
            in_envs += time.perf_counter() - start
            observations[t], actions[t] = self.observations, action
            terminations[t], truncations[t] = step.terminations, step.truncations
            ends = step.terminations | step.truncations
            rewards[t] = self.scaler(step.rewards, ends) if self.scaler else step.rewards
            self.observations, self.starts = self._observe(step.observations), ends
            next_observations[t] = self.normalize(step.next_observations)
        self.timers["env"] += in_envs
        self.timers["act"] += time.perf_counter() - begin - in_envs
        return Rollout(observations, actions, rewards, next_observations, terminations, truncations)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Actions [R, N, ...] as the environments get them."""
        return actions if self._bounds is None else np.clip(actions, *self._bounds).astype(actions.dtype, copy=False)

    def normalize(self, observations: np.ndarray) -> np.ndarray:
        """Observations as the policy sees them; the statistics stay as they are."""
        return self.normalizer(observations) if self.normalizer else observations

    def _observe(self, observations: np.ndarray) -> np.ndarray:
        if self.normalizer:
            self.normalizer.update(observations)
        return self.normalize(observations)

    def statistics_of(self, run: int) -> dict[str, np.ndarray]:
        """What a run's policy needs beside its weights."""
        if self.normalizer is None:
            return {}
        moments = self.normalizer.moments
        return {"observations.mean": moments.mean[run], "observations.variance": moments.variance[run]}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on; the environments keep their own."""
        return {
            "observations": self.observations,
            "starts": self.starts,
            "normalizer": self.normalizer.moments.state() if self.normalizer else None,
            "scaler": self.scaler.state() if self.scaler else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.observations, self.starts = state["observations"], state["starts"]
        if self.normalizer:
            self.normalizer.moments.load_state(state["normalizer"])
        if self.scaler:
            self.scaler.load_state(state["scaler"])


def by_run(entries: np.ndarray, device: str = "cpu") -> Tensor:
    """[T, R, N, ...] -> [R, T*N, ...] on the device."""
    swapped = np.ascontiguousarray(entries.swapaxes(0, 1))
    return torch.from_numpy(swapped.reshape(len(swapped), -1, *entries.shape[3:])).to(device)


def by_time(entries: Tensor, num_steps: int) -> np.ndarray:
    """[R, T*N] -> [T, R, N] in NumPy."""
    return entries.view(len(entries), num_steps, -1).transpose(0, 1).cpu().numpy()


@torch.no_grad()
def evaluate(network: MLP, parameters: Parameters, observations: Tensor) -> Tensor:
    """A network's outputs [R, B, out] over a whole rollout [R, B, O]."""
    return torch.cat([network(parameters, chunk.contiguous()) for chunk in observations.split(CHUNK, 1)], 1)


def shuffled(fields: Sequence[Tensor], order: np.ndarray, batch_size: int) -> list[Tensor]:
    """Fields [R, B, ...] in each run's own order [R, B], cut into minibatches: [M, R, batch_size, ...]."""
    runs, samples = order.shape
    rows = order + samples * np.arange(runs)[:, None]
    index = torch.from_numpy(rows.reshape(runs, -1, batch_size).swapaxes(0, 1).reshape(-1)).to(fields[0].device)
    return [
        field.reshape(runs * samples, *field.shape[2:])
        .index_select(0, index)
        .view(-1, runs, batch_size, *field.shape[2:])
        for field in fields
    ]
