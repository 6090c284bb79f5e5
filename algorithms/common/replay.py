"""Replay memories of R runs: the last transitions of each, drawn uniformly or by priority; they may span n steps.

Where observations are small, both of a transition lie beside its other numbers. Large ones are kept once
(`common.observations`).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.memory import Ring
from algorithms.common.observations import Observations, whole_lines, zeros

WORD = 4  # bytes of a float32
PLACE = np.dtype(np.int32)  # of an observation that is kept elsewhere


class Transitions(NamedTuple):
    """Drawn transitions of k steps, entries [R, B, ...] of float32."""

    observations: Tensor  # [R, B, O] s
    next_observations: Tensor  # [R, B, O] s', the true successor, k steps later
    actions: Tensor  # [R, B, A] a; the index of a discrete action as a number, [R, B, 1]
    rewards: Tensor  # [R, B] r_1 + gamma r_2 + ... + gamma^(k-1) r_k
    discounts: Tensor  # [R, B] of s': gamma^k, or 0 where the task ended at s'; a time limit is no end


class Window:
    """The last n steps of all environments, from which transitions of up to n steps are made.

    A transition sums n rewards or those to the end of its episode, be it a termination or a time limit, if that comes
    first: k of them.
    """

    FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations", "ends")

    def __init__(
        self, num_steps: int, gamma: np.ndarray, batch: tuple[int, int], o: int, a: int, dtype: type[np.generic]
    ):
        shape = (num_steps, *batch)
        self.num_steps, self.gamma = num_steps, gamma  # gamma is [R, 1]
        self.observations, self.next_observations = np.zeros((*shape, o), dtype), np.zeros((*shape, o), dtype)
        self.actions, self.rewards = np.zeros((*shape, a), np.float32), np.zeros(shape)
        self.terminations, self.ends = np.zeros(shape, bool), np.zeros(shape, bool)
        self.added = 0  # steps so far

    def push(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Takes a step in; the transition that began n - 1 steps before it, its discounts last, once there is one."""
        n, last = self.num_steps, self.added % self.num_steps
        self.added += 1
        self.observations[last], self.actions[last], self.rewards[last] = observations, actions, rewards
        self.next_observations[last], self.terminations[last] = next_observations, terminations
        self.ends[last] = terminations | truncations
        if self.added < n:
            return None
        first = self.added % n
        total, stop = self.rewards[first].copy(), np.full(self.rewards.shape[1:], first)  # [R, N] each
        discounts, going = np.broadcast_to(self.gamma, total.shape).copy(), ~self.ends[first]
        for k in range(1, n):  # one after another: the order of a sum would depend on R
            place = (first + k) % n
            total += np.where(going, discounts * self.rewards[place], 0.0)
            discounts *= np.where(going, self.gamma, 1.0)
            stop[going] = place
            going = going & ~self.ends[place]
        where = stop, np.arange(len(stop))[:, None], np.arange(stop.shape[1])
        successors = self.next_observations[where]
        discounts[self.terminations[where]] = 0.0
        return self.observations[first], self.actions[first], total, successors, discounts

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {name: getattr(self, name).copy() for name in self.FIELDS} | {"added": self.added}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        for name in self.FIELDS:
            getattr(self, name)[:] = state[name]
        self.added = state["added"]


class Layout(NamedTuple):
    """Where the parts of a row are, in elements of `dtype`. Rows fill whole cache lines: drawing one touches no other.

    A row is: observation, next observation, (filled up to a float,) actions, reward, discount, padding. Where that
    saves a third of the memory or more, the observations are kept elsewhere, each once, and the row has their places:
    of images half is saved, while two lines of small ones are drawn faster together than each for itself.
    """

    dtype: np.dtype[Any]
    size: int  # of one observation, or of its place
    split: int  # where the floats begin
    used: int  # where they end
    width: int  # of the row
    once: bool  # whether observations are kept elsewhere

    @classmethod
    def of(cls, observation_size: int, action_size: int, dtype: np.dtype[Any]) -> Layout:
        """The one for such transitions. It depends on sizes alone, and nothing that is drawn depends on it."""
        both, places = cls._row(observation_size, action_size, dtype), cls._row(1, action_size, PLACE, once=True)
        alone = Observations.width(observation_size, dtype) * dtype.itemsize
        return places if 3 * (places.bytes + alone) <= 2 * both.bytes else both

    @classmethod
    def _row(cls, size: int, action_size: int, dtype: np.dtype[Any], once: bool = False) -> Layout:
        item, split = dtype.itemsize, -(-2 * size * dtype.itemsize // WORD) * WORD
        used = split + (action_size + 2) * WORD
        return cls(dtype, size, split // item, used // item, whole_lines(used) // item, once)

    @property
    def bytes(self) -> int:
        """Of a row."""
        return self.width * self.dtype.itemsize


class Replay:
    """The last `capacity` transitions of each run: a ring of rows [R, capacity, width], one row per transition.

    All runs add at the same time, so they share one place to write; which rows a run draws is its own affair.
    Of every environment one row per step comes in, `n_steps` - 1 steps after it began.

    `observation_dtype` np.uint8 keeps observations that are whole numbers in 0..255 in a quarter of the space; they are
    drawn as float32 all the same.
    """

    def __init__(
        self,
        num_runs: int,
        capacity: int,
        num_envs: int,
        observation_size: int,
        action_size: int,
        gamma: np.ndarray,
        n_steps: int = 1,
        observation_dtype: type[np.generic] = np.float32,
        device: str = "cpu",
    ):
        if capacity % num_envs:
            raise ValueError(f"the replay memory's size is {capacity}; it must be a multiple of num_envs = {num_envs}")
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}; a transition spans at least one step")
        self.num_runs, self.capacity, self.num_envs = num_runs, capacity, num_envs
        self.gamma = np.array(gamma, np.float64).reshape(num_runs, 1)
        self.action_size, dtype = action_size, np.dtype(observation_dtype)
        self.layout = layout = Layout.of(observation_size, action_size, dtype)
        size, more = self.size_in_bytes(
            num_runs, capacity, num_envs, observation_size, action_size, n_steps, observation_dtype
        )
        logging.getLogger(__name__).info(
            f"replay memory: {num_runs} runs x {capacity:,} transitions x {size / num_runs / capacity:.0f} bytes"
            f" = {size / 1e6:,.1f} MB when full"
            + (f", and at most {more / 1e6:,.1f} MB for the last observations of episodes" if more else "")
        )
        self.rows = zeros((num_runs, capacity, layout.width), layout.dtype, device)
        self.offsets = (capacity * np.arange(num_runs))[:, None]  # of a run's rows among all
        self.added = 0  # transitions per run so far
        self.observations: Observations | None = None
        self.window: Window | None = None
        if layout.once:
            steps = self._steps(capacity, num_envs, n_steps)
            self.observations = Observations(num_runs, steps, num_envs, observation_size, dtype, device)
        if n_steps > 1:
            batch = num_runs, num_envs
            self.window = Window(n_steps, self.gamma, batch, layout.size, action_size, layout.dtype.type)

    @staticmethod
    def _steps(capacity: int, num_envs: int, n_steps: int) -> int:
        """Through how many steps of the environments a full memory's transitions go."""
        return capacity // num_envs + n_steps - 1

    @classmethod
    def size_in_bytes(
        cls,
        num_runs: int,
        capacity: int,
        num_envs: int,
        observation_size: int,
        action_size: int,
        n_steps: int = 1,
        observation_dtype: type[np.generic] = np.float32,
    ) -> tuple[int, int]:
        """What a full memory takes; what the last observations of episodes take beside it, were all of them short."""
        dtype = np.dtype(observation_dtype)
        layout, steps = Layout.of(observation_size, action_size, dtype), cls._steps(capacity, num_envs, n_steps)
        rows = num_runs * capacity * layout.bytes
        if not layout.once:
            return rows, 0
        seen, finals = Observations.size_in_bytes(num_runs, steps, num_envs, observation_size, dtype)
        return rows + seen, finals

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
        truncations: np.ndarray,
    ) -> None:
        """One step of all environments, entries [R, N, ...]; its transitions take the place of the oldest."""
        batch = (self.num_runs, self.num_envs)
        observations, next_observations = (x.reshape(*batch, -1) for x in (observations, next_observations))
        actions = actions.reshape(*batch, -1)
        if self.observations is not None:  # their places are what is remembered with a step
            ends = terminations | truncations
            observations, next_observations = self.observations.add(observations, next_observations, ends)
        if self.window is None:
            self._write(observations, actions, rewards, next_observations, np.where(terminations, 0.0, self.gamma))
            return
        transition = self.window.push(observations, actions, rewards, next_observations, terminations, truncations)
        if transition is not None:
            self._write(*transition)

    def _write(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        discounts: np.ndarray,
    ) -> None:
        """One transition of every environment, [R, N, ...], into the ring."""
        layout, o, a = self.layout, self.layout.size, self.action_size
        start = self.added % self.capacity
        place = self.rows[:, start : start + self.num_envs]
        rows = place.numpy() if not place.is_cuda else np.zeros(place.shape, layout.dtype)
        rows[..., :o], rows[..., o : 2 * o] = observations, next_observations
        numbers = rows[..., layout.split : layout.used].view(np.float32)
        numbers[..., :a], numbers[..., a], numbers[..., a + 1] = actions, rewards, discounts
        if place.is_cuda:
            place.copy_(torch.from_numpy(rows))
        self.added += self.num_envs

    def sample(self, uniform: np.ndarray) -> Transitions:
        """Row floor(u * size) for numbers u in [0, 1), float64 [R, B]: with replacement, uniform over what is in.

        In float64, u < 1 keeps u * size < size after rounding for every size below 2**53.
        """
        return self._read((uniform * len(self)).astype(np.int64))

    def _read(self, indices: np.ndarray) -> Transitions:
        """Rows `indices` [R, B] of every run."""
        if not self.added:
            raise RuntimeError("nothing is in the replay memory yet: draw after the first n_steps steps")
        layout, o, a = self.layout, self.layout.size, self.action_size
        index = torch.from_numpy((indices + self.offsets).reshape(-1)).to(self.rows.device)
        drawn = self.rows.view(-1, self.rows.shape[2]).index_select(0, index).view(*indices.shape, -1)
        if self.observations is None:
            observations, next_observations = drawn[..., :o].float(), drawn[..., o : 2 * o].float()
        else:
            observations, next_observations = self.observations.read(drawn[..., :2].cpu().numpy())
        numbers = drawn[..., layout.split : layout.used].view(torch.float32)
        return Transitions(observations, next_observations, numbers[..., :a], numbers[..., a], numbers[..., a + 1])

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: the part that is filled, without the padding; no copy, but the memory itself."""
        filled = self.rows[:, : len(self), : self.layout.used]
        state: dict[str, Any] = {"rows": Ring(filled, self.added - len(self), self.added)}
        return state | {name: part.state() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        ring: Ring = state["rows"]
        self.added = ring.added
        self.rows[:, : len(self), : self.layout.used].copy_(ring.rows)
        for name, part in self._parts().items():
            part.load_state(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"observations": self.observations, "window": self.window}
        return {name: part for name, part in parts.items() if part is not None}


class PrioritizedReplay(Replay):
    """Proportional prioritization: Schaul et al. 2016, arXiv:1511.05952, section 3.3 and its algorithm 1.

    Run r draws transition i with P(i) = p_i^alpha / sum_k p_k^alpha, p_i = |delta_i| + epsilon (equation 1). A new
    transition gets the largest p^alpha that its run has seen, 1 at first. alpha = 0 and beta = 0, each one number per
    run, make all of that uniform, drawn from B equal segments.

    The leaves of a binary tree of sums are p^alpha; its levels are [R, 2^d] at depth d. A sum is made anew from its two
    children when one changes, so it depends on the leaves alone, not on their history. Wider trees were slower.
    """

    EPSILON = 1e-6  # keeps every transition drawable; openai/baselines@ea25b9e deepq.py, the paper gives none

    def __init__(self, *sizes: Any, alpha: np.ndarray, **options: Any):
        super().__init__(*sizes, **options)
        self.alpha = np.array(alpha, np.float64).reshape(self.num_runs, 1)
        self.levels = [np.zeros((self.num_runs, 2**d)) for d in range(self._depth(self.capacity) + 1)]  # root first
        self.largest = np.ones((self.num_runs, 1))  # p^alpha so far
        self.firsts = np.arange(self.num_runs)[:, None] * self.levels[-1].shape[1]  # of a run's leaves among all

    @staticmethod
    def _depth(capacity: int) -> int:
        """Of a binary tree with at least `capacity` leaves."""
        return (capacity - 1).bit_length()

    @classmethod
    def size_in_bytes(cls, num_runs: int, capacity: int, *sizes: Any, **options: Any) -> tuple[int, int]:
        """As of any memory, the tree included."""
        rows, more = super().size_in_bytes(num_runs, capacity, *sizes, **options)
        return rows + num_runs * (2 ** (cls._depth(capacity) + 1) - 1) * 8, more

    def _write(self, *transition: np.ndarray) -> None:
        places = self.added % self.capacity + np.arange(self.num_envs)
        super()._write(*transition)
        self._assign(places + self.firsts, np.broadcast_to(self.largest, (self.num_runs, self.num_envs)))

    def sample(self, uniform: np.ndarray, beta: np.ndarray) -> tuple[Transitions, np.ndarray, Tensor]:  # type: ignore[override]
        """Draws one transition from each of B equal segments of the sum of priorities, for u in [0, 1), [R, B].

        Returns them, their places in the memory, int64 [R, B], which hold until the next `add`, and the weights
        (N P(i))^-beta (section 3.4), float32 [R, B], over the largest of the batch, as in google/dopamine and
        deepmind/dqn_zoo (openai/baselines: over the largest that the memory holds). `beta` is [R].
        """
        with np.errstate(invalid="ignore", divide="ignore"):  # a run that diverged stays among its own rows
            total = self.levels[0]
            sought = (np.arange(uniform.shape[1]) + uniform) / uniform.shape[1] * total
            nodes = np.arange(self.num_runs)[:, None].repeat(uniform.shape[1], 1)  # the roots
            for level in self.levels[1:]:
                nodes *= 2  # node i of a level of all runs has the children 2i and 2i + 1 in the next
                left = level.reshape(-1).take(nodes)
                right = sought >= left
                sought -= left * right
                nodes += right
            # rounding may lead past the last
            indices = np.minimum(nodes - self.firsts, len(self) - 1)
            probabilities = self.levels[-1].reshape(-1).take(indices + self.firsts) / total
            weights = power(len(self) * probabilities, -beta[:, None])
            weights /= weights.max(1, keepdims=True)
        return self._read(indices), indices, torch.from_numpy(weights.astype(np.float32)).to(self.rows.device)

    def update(self, indices: np.ndarray, td_errors: Tensor) -> None:
        """Priorities after an update with the transitions at `indices`: [R, B] each; of several for one, the last."""
        priorities = power(td_errors.detach().double().abs().cpu().numpy() + self.EPSILON, self.alpha)
        self.largest = np.maximum(self.largest, priorities.max(1, keepdims=True))
        self._assign(indices + self.firsts, priorities)

    def _assign(self, nodes: np.ndarray, priorities: np.ndarray) -> None:
        """Sets leaves [R, K] and makes the sums above them anew."""
        self.levels[-1].reshape(-1)[nodes] = priorities  # NumPy leaves the last of several values behind
        for level, below in zip(self.levels[-2::-1], self.levels[:0:-1], strict=True):
            if level.shape[1] <= nodes.shape[1]:  # all of a small level
                np.add(below[:, ::2], below[:, 1::2], out=level)
            else:
                nodes = nodes // 2
                children = below.reshape(-1)
                level.reshape(-1)[nodes] = children.take(2 * nodes) + children.take(2 * nodes + 1)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return super().state() | {"priorities": self.levels[-1][:, : len(self)].copy(), "largest": self.largest.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        super().load_state(state)
        self.levels[-1][:] = 0.0
        self.levels[-1][:, : len(self)] = state["priorities"]
        self.largest = np.array(state["largest"])
        for level, below in zip(self.levels[-2::-1], self.levels[:0:-1], strict=True):
            np.add(below[:, ::2], below[:, 1::2], out=level)


def importance_exponent(cfg: Any, env_steps: int) -> np.ndarray:
    """beta [R] after so many env_steps: from its first value linearly to 1."""
    share = np.minimum(env_steps / cfg.importance_steps, 1.0)
    return cfg.importance_exponent + (1 - cfg.importance_exponent) * share


def power(base: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """base^exponent for bases above 0. NumPy's own has short cuts for one exponent, so its bits could depend on R."""
    result: np.ndarray = np.exp(exponent * np.log(base))
    return result
