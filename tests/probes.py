"""Probe tasks: the smallest environments in which one part of an algorithm alone decides whether it learns.

Five of them, as in rejax, isolate the value of a constant, the value of an observation, discounting, the reward of an
action, and an action chosen by the observation; a sixth tells a time limit from an end. Every one has a known answer.
On tables they show the number of the observation in place of it, and have a model. `Recall` is for algorithms with a
memory, and no other can learn it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from suites.tabular import Model, tabulate
from suites.vector import Step, VectorEnv

Array = NDArray[Any]


class Probe(VectorEnv):
    """Observes `_see`; two actions, or one number in [-2, 2]. `_pay` is the reward of the present step."""

    asked: ClassVar[tuple[float, ...]] = (0.0,)  # the observations for which the answer is known
    length: ClassVar[int] = 1  # env_steps until the task ends
    limit: ClassVar[int] = 1000  # env_steps until it is cut

    def __init__(self, num_runs: int, num_envs: int, discrete: bool, tabular: bool = False) -> None:
        bound = None if discrete else np.full(1, 2, np.float32)
        low = None if bound is None else -bound
        num_actions = 2 if discrete else None
        super().__init__(
            num_runs, num_envs, (1,), self.limit, num_actions=num_actions, action_low=low, action_high=bound
        )
        self.clock = np.zeros((num_runs, num_envs), np.int64)
        self.sign = np.ones((num_runs, num_envs))
        if tabular:
            self.num_states = len(self.asked) + 1  # the last one is the end
            self.model = self._model()

    def questions(self) -> Array:
        """The observations [B, 1] for which the answer is known."""
        return self._show(np.array(self.asked))[:, None].astype(np.float32)

    def values(self, gamma: float) -> list[float] | None:
        """What they are worth under the best policy; None where the probe does not ask."""
        return None

    def actions(self) -> list[float] | None:
        """The best action there: 0 or 1 where there are two, else a number."""
        return None

    def _see(self, clock: Array, sign: Array) -> Array:
        return np.zeros(sign.shape)

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array | float:
        raise NotImplementedError

    def _place(self, observation: float) -> tuple[int, float]:
        """Clock and sign where this is observed."""
        return 0, observation

    def _show(self, seen: Array) -> Array:
        """What is observed, or its number on tables."""
        return seen if self.num_states is None else np.searchsorted(self.asked, seen)

    def _model(self) -> Model:
        outcomes: dict[tuple[int, int], list[tuple[float, int, float, bool]]] = {}
        start = np.zeros(len(self.asked) + 1)
        for s, observation in enumerate(self.asked):
            clock, sign = (np.array([x]) for x in self._place(observation))
            start[s] = clock[0] == 0
            for a in range(2):
                reward = float(np.broadcast_to(self._pay(clock, sign, np.array([a])), 1)[0])
                to = int(self._show(self._see(clock + 1, sign))[0])
                outcomes[s, a] = [(1.0, to, reward, bool(clock[0] + 1 >= self.length))]
        return tabulate(len(start), 2, outcomes, start / start.sum())

    def _fit(self, actions: Array, target: Array | float) -> Array:
        """1 for the right action and -1 for the wrong one; minus the squared distance where it is a number."""
        if self.num_actions:
            return np.where(2 * actions - 1 == np.sign(target), 1.0, -1.0)
        return -((actions[..., 0] - target) ** 2)

    def _seed(self, seeds: list[list[int]]) -> None:
        self.generators = [np.random.default_rng(seed) for row in seeds for seed in row]

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        for i in indices.tolist():
            run, n = divmod(i, self.num_envs)
            self.clock[run, n] = 0
            self.sign[run, n] = 1.0 if self.generators[i].random() < 0.5 else -1.0
            observations[run, n] = self._show(self._see(self.clock[run, n], self.sign[run, n]))

    def _advance(self, actions: Array, out: Step) -> None:
        out.rewards[:] = self._pay(self.clock, self.sign, actions)
        self.clock += 1
        out.terminations[:] = self.clock >= self.length
        out.next_observations[:] = self._show(self._see(self.clock, self.sign))[..., None]

    def _save(self) -> dict[str, Any]:
        generators = [rng.bit_generator.state for rng in self.generators]
        return {"clock": self.clock.copy(), "sign": self.sign.copy(), "generators": generators}

    def _load(self, state: dict[str, Any]) -> None:
        self.clock[:], self.sign[:] = state["clock"], state["sign"]
        for rng, one in zip(self.generators, state["generators"], strict=True):
            rng.bit_generator.state = one


class ConstantValue(Probe):
    """Reward 1, one step: V = 1."""

    def values(self, gamma: float) -> list[float]:
        return [1.0]

    def _pay(self, clock: Array, sign: Array, actions: Array) -> float:
        return 1.0


class ValueFromObservation(Probe):
    """The reward is the observation, 1 or -1: V(o) = o."""

    asked = (-1.0, 1.0)

    def values(self, gamma: float) -> list[float]:
        return [-1.0, 1.0]

    def _see(self, clock: Array, sign: Array) -> Array:
        return sign

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array:
        return sign


class Discounting(Probe):
    """Two steps, observed as 0 and 1, the second pays 1: V(0) = gamma, V(1) = 1."""

    asked, length = (0.0, 1.0), 2

    def values(self, gamma: float) -> list[float]:
        return [gamma, 1.0]

    def _see(self, clock: Array, sign: Array) -> Array:
        return np.asarray(clock, np.float64)

    def _place(self, observation: float) -> tuple[int, float]:
        return int(observation), 1.0

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array:
        return (clock == 1).astype(np.float64)


class TimeLimit(Probe):
    """Reward 1 for ever, cut after three steps: V = 1 / (1 - gamma), as if it were not cut."""

    length, limit = 1000, 3

    def values(self, gamma: float) -> list[float]:
        return [1 / (1 - gamma)]

    def _pay(self, clock: Array, sign: Array, actions: Array) -> float:
        return 1.0


class ActionToReward(Probe):
    """One step; the second action pays 1 and the first -1; as a number, the best is 0.5."""

    def values(self, gamma: float) -> list[float] | None:
        return [1.0] if self.num_actions else None

    def actions(self) -> list[float]:
        return [1.0] if self.num_actions else [0.5]

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array:
        return self._fit(actions, 0.5)


class ActionFromObservation(Probe):
    """One step; the observation, 1 or -1, says which action pays; as a number, the best is half the observation."""

    asked = (-1.0, 1.0)

    def values(self, gamma: float) -> list[float] | None:
        return [1.0, 1.0] if self.num_actions else None

    def actions(self) -> list[float]:
        return [0.0, 1.0] if self.num_actions else [-0.5, 0.5]

    def _see(self, clock: Array, sign: Array) -> Array:
        return sign

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array:
        return self._fit(actions, 0.5 * sign)


class Recall(Probe):
    """Three steps; the first observation, 1 or -1, says which action pays in the last one; the others are 0. Without a
    memory nothing is better than a guess: 0 on average, or -0.25 for a number."""

    length = 3

    def _see(self, clock: Array, sign: Array) -> Array:
        return np.where(clock == 0, sign, 0.0)

    def _pay(self, clock: Array, sign: Array, actions: Array) -> Array:
        return np.where(clock == self.length - 1, self._fit(actions, 0.5 * sign), 0.0)


PROBES = [ConstantValue, ValueFromObservation, Discounting, TimeLimit, ActionToReward, ActionFromObservation]
