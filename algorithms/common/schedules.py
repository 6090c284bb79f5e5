"""What changes with the number of steps."""

from __future__ import annotations

import numpy as np


def linear(start: np.ndarray, end: np.ndarray, duration: np.ndarray, env_steps: np.ndarray) -> np.ndarray:
    """From `start` to `end` over the first `duration` env_steps, then `end`: [R] each, `env_steps` [T] -> [T, R]."""
    share = np.minimum(env_steps[:, None] / duration, 1.0)
    return start + (end - start) * share


def crossings(env_steps: np.ndarray | int, num_envs: int, period: np.ndarray | int) -> np.ndarray:
    """Multiples of `period` in (env_steps - num_envs, env_steps]: how often it fell due in the step that led there."""
    return (env_steps // np.asarray(period) - (env_steps - num_envs) // np.asarray(period)).astype(np.int64)
