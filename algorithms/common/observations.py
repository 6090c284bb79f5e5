"""Observations of R runs, each kept once: the successor of one step is what the next step begins with."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.memory import Ring

LINE = 64  # bytes of a cache line
KINDS = {np.float32: torch.float32, np.uint8: torch.uint8, np.int32: torch.int32}
NUMBERS = 2**31  # of final observations, after which they are counted from 0 again: places are int32


def whole_lines(size: int) -> int:
    """Bytes of the cache lines that `size` bytes fill."""
    return -(-size // LINE) * LINE


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> Tensor:
    """Zeros that begin with a cache line; on a CPU a mapping of their own, whose pages are taken as they fill.

    `torch.zeros` takes them all at once, and NumPy's do where they reuse memory that was freed.
    """
    kind = KINDS[dtype.type]
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=kind, device=device)
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=kind).view(shape)


class Observations:
    """What the environments showed in the last `num_steps` steps, and where each of those led: [R, N, O] a step.

    A place, int32, says where an observation lies. Those at 0 and above are in a ring of steps, one for each run. At
    its end is where the last step led: the next one begins there. But where an episode ended at a step, the next one
    begins with another: the final observations, of all runs alike, are kept aside, the i-th at the place -1 - i. A ring
    as well, which grows as long as it holds one that is needed.
    """

    def __init__(
        self,
        num_runs: int,
        num_steps: int,
        num_envs: int,
        observation_size: int,
        dtype: np.dtype[Any],
        device: str,
    ):
        self.num_runs, self.num_steps, self.num_envs, self.size = num_runs, num_steps, num_envs, observation_size
        self.dtype, self.device = dtype, device
        self.capacity, width = (num_steps + 1) * num_envs, self.width(observation_size, dtype)
        self.seen = zeros((num_runs, self.capacity, width), dtype, device)
        self.offsets = self.capacity * np.arange(num_runs)[:, None, None]  # of a run's among all
        self.added = 0  # of those seen in each run, without where the last step led
        self.last = np.zeros((num_runs, num_envs, observation_size), dtype)  # where that is
        self.ended = np.ones((num_runs, num_envs), bool)  # whether the next step begins elsewhere

        places = self._power_of_two(num_runs * num_envs)
        self.finals = zeros((places, width), dtype, device)
        self.made = np.zeros(places, np.int64)  # the step at which each was made
        self.oldest = self.kept = 0  # number of the oldest one that is needed; how many there have been

    @staticmethod
    def width(observation_size: int, dtype: np.dtype[Any]) -> int:
        """Elements of an observation, padding included."""
        return whole_lines(observation_size * dtype.itemsize) // dtype.itemsize

    @staticmethod
    def _power_of_two(size: int) -> int:
        """The smallest that is not below `size`."""
        return 1 << (size - 1).bit_length()

    @classmethod
    def size_in_bytes(
        cls, num_runs: int, num_steps: int, num_envs: int, observation_size: int, dtype: np.dtype[Any]
    ) -> tuple[int, int]:
        """What is seen takes when full; what final observations take at most, should every step end an episode."""
        one = cls.width(observation_size, dtype) * dtype.itemsize
        finals = cls._power_of_two(num_runs * num_steps * num_envs)
        return num_runs * (num_steps + 1) * num_envs * one, finals * one

    def add(
        self, observations: np.ndarray, next_observations: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Takes in a step of all environments, [R, N, O]; returns the places of both observations, int32 [R, N, 1]."""
        observations, next_observations = (x.astype(self.dtype, order="C") for x in (observations, next_observations))
        if observations.tobytes() != self.last.tobytes():
            differ = (observations.view(np.uint8) != self.last.view(np.uint8)).any(2)
            if (torn := differ & ~self.ended).any():
                run, environment = np.argwhere(torn)[0]
                raise ValueError(
                    f"run {run}, environment {environment}: a step begins elsewhere than the one before it led, but no"
                    " episode ended there; the environment must tell of every reset"
                )
            self._write(observations)
        here = self._places()
        self.added += self.num_envs
        self._write(next_observations)
        self.last, self.ended, there = next_observations, ends, self._places()
        if ends.any():
            there = there.copy()
            there[ends] = self._keep(next_observations[ends])
        return here[..., None], there[..., None]

    def _places(self) -> np.ndarray:
        """Of what the next step begins with where no episode has ended, [R, N]."""
        places = self.added % self.capacity + np.arange(self.num_envs, dtype=np.int32)
        return np.broadcast_to(places, self.ended.shape)

    def _write(self, observations: np.ndarray) -> None:
        """[R, N, O] as what the next step begins with."""
        place = self.added % self.capacity
        self.seen[:, place : place + self.num_envs, : self.size] = torch.from_numpy(observations).to(self.device)

    def _keep(self, finals: np.ndarray) -> np.ndarray:
        """Keeps final observations [K, O] aside; returns their places."""
        step = self.added // self.num_envs  # this one's number, counted from 1
        while self.oldest < self.kept and self.made[self.oldest % len(self.made)] <= step - self.num_steps:
            self.oldest += 1
        numbers = self.kept + np.arange(len(finals))
        self.kept += len(finals)
        if self.kept - self.oldest > len(self.made):
            self._grow(np.arange(self.oldest, numbers[0]))
        places = numbers % len(self.made)
        self.made[places] = step
        self.finals[torch.from_numpy(places).to(self.device), : self.size] = torch.from_numpy(finals).to(self.device)
        return -1 - numbers % NUMBERS

    def _grow(self, numbers: np.ndarray) -> None:
        """Makes room for all that are needed; those so far are `numbers`."""
        finals, made = self.finals, self.made
        places = self._power_of_two(self.kept - self.oldest)
        self.finals, self.made = zeros((places, finals.shape[1]), self.dtype, self.device), np.zeros(places, np.int64)
        self.made[numbers % places] = made[numbers % len(made)]
        after, before = (torch.from_numpy(numbers % size).to(self.device) for size in (places, len(made)))
        self.finals[after] = finals[before]

    def read(self, places: np.ndarray) -> tuple[Tensor, Tensor]:
        """For pairs of places [R, B, 2] the observations at the first, and those at the second: float32 [R, B, O]."""
        index = (np.maximum(places, 0) + self.offsets).reshape(-1)
        drawn = self.seen.view(-1, self.seen.shape[2]).index_select(0, torch.from_numpy(index).to(self.device))
        final = np.flatnonzero(places < 0)
        if len(final):
            numbers = -1 - places.reshape(-1)[final].astype(np.int64)
            here, there = (torch.from_numpy(x).to(self.device) for x in (final, numbers % len(self.made)))
            drawn.index_copy_(0, here, self.finals.index_select(0, there))
        first, second = drawn.view(*places.shape, -1)[..., : self.size].unbind(2)
        return first.float(), second.float()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on; no copy of what is seen, but the memory itself."""
        seen, finals = self.seen[:, : self.added, : self.size], self.finals[None, : self.kept, : self.size]
        return {
            "seen": Ring(seen, max(0, self.added + self.num_envs - self.capacity), self.added),
            "finals": Ring(finals, self.oldest, self.kept),
            "made": self.made.copy(),
            "last": self.last.copy(),
            "ended": self.ended.copy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        seen, finals, self.made = state["seen"], state["finals"], state["made"].copy()
        self.last, self.ended = state["last"].copy(), state["ended"].copy()
        self.added, self.oldest, self.kept = seen.added, finals.first, finals.added
        self.seen[:, : self.added, : self.size].copy_(seen.rows)
        self._write(self.last)
        self.finals = zeros((len(self.made), self.finals.shape[1]), self.dtype, self.device)
        self.finals[: self.kept, : self.size].copy_(finals.rows[0])
