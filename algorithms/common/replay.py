"""Replay memories of R runs: the last transitions of each, drawn uniformly."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LINE = 16  # floats in a cache line; a transition fills whole lines, so that drawing it touches no line of another


class Transitions(NamedTuple):
    """Drawn transitions, entries [R, B, ...] of float32."""

    observations: Tensor  # [R, B, O] s
    next_observations: Tensor  # [R, B, O] s', the true successor
    actions: Tensor  # [R, B, A] a; the index of a discrete action as a number, [R, B, 1]
    rewards: Tensor  # [R, B] r
    terminations: Tensor  # [R, B] 1 where the task ended at s', so that s' is worth nothing; a time limit is no end


class Replay:
    """The last `capacity` transitions of each run: a ring of rows [R, capacity, width], one row per transition.

    All runs add at the same time, so they share one place to write; which rows a run draws is its own affair.
    """

    def __init__(
        self, num_runs: int, capacity: int, num_envs: int, observation_size: int, action_size: int, device: str = "cpu"
    ):
        if capacity % num_envs:
            raise ValueError(f"the replay memory's size is {capacity}; it must be a multiple of num_envs = {num_envs}")
        self.num_runs, self.capacity, self.num_envs = num_runs, capacity, num_envs
        self.sizes = [observation_size, observation_size, action_size, 1, 1]
        self.used = sum(self.sizes)  # floats of a row that mean something
        width = self.width(observation_size, action_size)
        size = self.size_in_bytes(num_runs, capacity, observation_size, action_size)
        logging.getLogger(__name__).info(
            "replay memory: %d runs x %d transitions x %d bytes = %.1f MB", num_runs, capacity, 4 * width, size / 1e6
        )
        self.rows = torch.zeros(num_runs, capacity, width, device=device)  # pages are taken as they are filled
        self.offsets = (capacity * np.arange(num_runs))[:, None]  # of a run's rows among all
        self.added = 0  # transitions per run so far

    @staticmethod
    def width(observation_size: int, action_size: int) -> int:
        """Floats of a row, padding included."""
        return -(-(2 * observation_size + action_size + 2) // LINE) * LINE

    @classmethod
    def size_in_bytes(cls, num_runs: int, capacity: int, observation_size: int, action_size: int) -> int:
        """What a full memory takes."""
        return 4 * num_runs * capacity * cls.width(observation_size, action_size)

    def __len__(self) -> int:
        """Transitions of a run that can be drawn."""
        return min(self.added, self.capacity)

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminations: np.ndarray,
    ) -> None:
        """One step of all environments, entries [R, N, ...], in the place of the oldest transitions."""
        o, _, a, _, _ = self.sizes
        start = self.added % self.capacity
        place = self.rows[:, start : start + self.num_envs]
        rows = place.numpy() if not place.is_cuda else np.zeros(place.shape, np.float32)
        rows[..., :o], rows[..., o : 2 * o] = observations, next_observations
        rows[..., 2 * o : 2 * o + a] = actions.reshape(*rows.shape[:2], a)
        rows[..., 2 * o + a], rows[..., 2 * o + a + 1] = rewards, terminations
        if place.is_cuda:
            place.copy_(torch.from_numpy(rows))
        self.added += self.num_envs

    def sample(self, uniform: np.ndarray) -> Transitions:
        """Row floor(u * size) for numbers u in [0, 1), float64 [R, B]: with replacement, uniform over what is in.

        In float64, u < 1 keeps u * size < size after rounding for every size below 2**53.
        """
        index = (uniform * len(self)).astype(np.int64) + self.offsets
        rows = self.rows.view(-1, self.rows.shape[2])
        drawn = rows.index_select(0, torch.from_numpy(index.reshape(-1)).to(rows.device))
        fields = drawn.view(*index.shape, -1)[..., : self.used].split(self.sizes, -1)
        observations, next_observations, actions, rewards, terminations = fields
        return Transitions(observations, next_observations, actions, rewards.squeeze(-1), terminations.squeeze(-1))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: the part that is filled, without the padding."""
        return {"rows": self.rows[:, : len(self), : self.used].cpu().numpy(), "added": self.added}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.added = state["added"]
        self.rows[:, : len(self), : self.used].copy_(torch.from_numpy(state["rows"]))
