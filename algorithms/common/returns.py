"""Returns and advantages over a rollout, entries [T, R, N]; r_t follows a_t, v_t belongs to s_t."""

from __future__ import annotations

import numpy as np


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminations: np.ndarray,
    ends: np.ndarray,
    gamma: np.ndarray,
    gae_lambda: np.ndarray,
) -> np.ndarray:
    """Generalized advantage estimates (arXiv:1506.02438, eq. 16), float32 [T, R, N].

    delta_t = r_t + gamma (1 - terminated_t) v(s'_t) - v(s_t);  A_t = delta_t + gamma lambda (1 - end_t) A_{t+1}.

    `next_values` [T, R, N] are of the true successor s'_t, `ends` is True where an episode was terminated or cut
    (the next entry belongs to another episode), `gamma` and `gae_lambda` are [R]. lambda = 1 gives the Monte-Carlo
    return minus the baseline, lambda = 0 the one-step TD error.
    """
    gamma = np.asarray(gamma, np.float32)[:, None]  # [R, 1]
    decay = gamma * np.asarray(gae_lambda, np.float32)[:, None]
    deltas = rewards.astype(np.float32) + gamma * np.where(terminations, np.float32(0), next_values) - values
    carry = np.where(ends, np.float32(0), decay)
    advantages = np.empty_like(deltas)
    advantage = np.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + carry[t] * advantage
        advantages[t] = advantage
    return advantages


def discounted_sums(
    rewards: np.ndarray, next_values: np.ndarray, terminations: np.ndarray, ends: np.ndarray, gamma: np.ndarray
) -> np.ndarray:
    """R_t = r_t + gamma R_{t+1}, float32 [T, R, N], from the last step back; where an episode ends or the rollout does,
    v(s'_t) takes the place of R_{t+1}, and 0 where the task terminated. The arguments are those of `gae`."""
    gamma = np.asarray(gamma, np.float32)[:, None]  # [R, 1]
    sums = np.empty_like(rewards, np.float32)
    after = next_values[-1]
    for t in range(len(rewards) - 1, -1, -1):
        after = np.where(terminations[t], np.float32(0), np.where(ends[t], next_values[t], after))
        sums[t] = after = rewards[t] + gamma * after
    return sums
