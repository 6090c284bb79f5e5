"""Running statistics of observations and of discounted returns, each run its own."""

from __future__ import annotations

from typing import Any

import numpy as np


class RunningMoments:
    """Mean and variance over everything seen (Chan et al.'s parallel update), float64 [R, *shape]."""

    def __init__(self, num_runs: int, shape: tuple[int, ...]):
        self.mean = np.zeros((num_runs, *shape))
        self.variance = np.ones((num_runs, *shape))
        self.count = 1e-4  # weight of the prior guess N(0, 1); openai/baselines@ea25b9e common/running_mean_std.py

    def update(self, batch: np.ndarray) -> None:
        """Add a batch [R, N, *shape]."""
        size = batch.shape[1]
        mean = batch.mean(1)
        variance = ((batch - mean[:, None]) ** 2).mean(1)
        delta, total = mean - self.mean, self.count + size
        self.mean = self.mean + delta * (size / total)
        self.variance = (self.variance * self.count + variance * size + delta**2 * (self.count * size / total)) / total
        self.count = total

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.mean, self.variance, self.count = state["mean"], state["variance"], state["count"]


class ObservationNormalizer:
    """(x - mean) / std, clipped to +-10 (openai/baselines@ea25b9e, VecNormalize)."""

    def __init__(self, num_runs: int, shape: tuple[int, ...], clip: float = 10.0):
        self.moments, self.clip = RunningMoments(num_runs, shape), clip

    def update(self, observations: np.ndarray) -> None:
        """Add observations [R, N, *shape] to the statistics."""
        self.moments.update(observations.astype(np.float64))

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Normalized observations, float32; entries [R, ..., *shape]."""
        moments = self.moments
        between = (1,) * (observations.ndim - moments.mean.ndim)
        shape = (len(moments.mean), *between, *moments.mean.shape[1:])
        scaled = (observations - moments.mean.reshape(shape)) / np.sqrt(moments.variance.reshape(shape) + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


class RewardScaler:
    """r / std of the running discounted return, clipped to +-10 (openai/baselines@ea25b9e, VecNormalize)."""

    def __init__(self, num_runs: int, num_envs: int, gamma: np.ndarray, clip: float = 10.0):
        self.moments, self.gamma, self.clip = RunningMoments(num_runs, ()), gamma[:, None], clip
        self.returns = np.zeros((num_runs, num_envs))

    def __call__(self, rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Update the statistics with rewards [R, N] and return them scaled; `ends` is True where an episode ended."""
        self.returns = self.returns * self.gamma + rewards
        self.moments.update(self.returns)
        self.returns[ends] = 0.0
        return np.clip(rewards / np.sqrt(self.moments.variance[:, None] + 1e-8), -self.clip, self.clip)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"moments": self.moments.state(), "returns": self.returns}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.moments.load_state(state["moments"])
        self.returns = state["returns"].copy()


class ReturnUnit:
    """What a critic's outputs are multiplied with to be returns: the returns' running deviation or, unless `scaled`, 1.

    Only the critic's targets are divided by it; advantages stay in the task's units (thu-ml/tianshou@03132cc a2c.py,
    `return_scaling`).
    """

    def __init__(self, num_runs: int, scaled: bool):
        self.moments, self.scaled = RunningMoments(num_runs, ()), scaled

    def __call__(self) -> np.ndarray:
        """The present unit, float32 [R, 1]."""
        deviation = np.sqrt(self.moments.variance + 1e-8) if self.scaled else np.ones_like(self.moments.variance)
        return deviation[:, None].astype(np.float32)

    def update(self, returns: np.ndarray) -> None:
        """Add returns [R, B], in the task's units."""
        if self.scaled:
            self.moments.update(returns.astype(np.float64))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return self.moments.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.moments.load_state(state)
