"""What learning on tables shares: the state's index, epsilon-greedy choices, and the agent around the tables.

An observation of a tabular task is the index of its state, [R, N, 1]. Tables are float64, [R, S, A] or [R, S]; R runs,
N environments, S states, A actions. The books' pseudocode has one environment; N of them choose from the same table,
and their updates follow one another in order of n, so that each sees what the ones before it have learned.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from algorithms.common.config import PerRun, require
from algorithms.common.schedules import linear
from algorithms.common.streams import Streams

STEPS = 100  # of every environment in one iterate(); a matter of speed only, results do not depend on it
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def require_shares(cfg: Any, *names: str) -> None:
    """Refuse settings outside [0, 1], and an alpha of 0, with which nothing is ever learned."""
    for name in names:
        value = np.asarray(getattr(cfg, name))
        require(bool(np.all((value >= 0) & (value <= 1))), f"{name} is {value}; it must lie in [0, 1]")
    require(bool(np.all(np.asarray(cfg.alpha) > 0)), f"alpha is {cfg.alpha}; it must be positive")
    require(cfg.num_envs >= 1, f"num_envs is {cfg.num_envs}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """What epsilon-greedy learners on tables have in common. The defaults are those of Sutton & Barto's example 6.6;
    alpha, which it leaves out, is that of ShangtongZhang/reinforcement-learning-an-introduction@8d5965a
    chapter06/cliff_walking.py."""

    alpha: PerRun = 0.5
    sample_average: PerRun = 0.0  # 1: the step size is 1 / visits of (s, a) in place of alpha
    gamma: PerRun = 1.0
    epsilon: PerRun = 0.1
    epsilon_end: PerRun = 0.0  # where epsilon is after falling linearly
    epsilon_steps: PerRun = math.inf  # env_steps that this takes; inf: epsilon stays
    num_envs: int = 1

    def __post_init__(self) -> None:
        require_shares(self, "alpha", "gamma", "epsilon", "epsilon_end", "sample_average")
        steps = np.asarray(self.epsilon_steps)
        require(bool(np.all(steps > 0)), f"epsilon_steps is {steps}; it must be positive, inf for a constant epsilon")


def states_of(observations: np.ndarray) -> Indices:
    """Indices [...] of the states in observations [..., 1]; float32 holds them exactly below 2**24."""
    return observations[..., 0].astype(np.int64)


def exploration(streams: Streams, epsilon: Floats, num_envs: int, num_actions: int) -> tuple[NDArray[np.bool_], Floats]:
    """Whether to explore, with probability `epsilon` [T, R], and noise in (0, 1] to choose by: bool [T, R, N, 1] and
    [T, R, N, A], from the runs' stream "actions"."""
    shape = len(epsilon), num_envs, 1 + num_actions
    noise = 1.0 - streams.draw("actions", lambda rng: rng.random(shape), axis=1)
    return noise[..., :1] <= epsilon[..., None, None], noise[..., 1:]


def choose(q_values: Floats, explore: NDArray[np.bool_] | bool, noise: Floats) -> Indices:
    """Epsilon-greedy actions [...] by Q(s, .) [..., A]: of the actions allowed, which are all when exploring and the
    greedy ones else, the one with the greatest noise; so ties are broken at random."""
    allowed = (q_values == q_values.max(-1, keepdims=True)) | explore
    chosen: Indices = (allowed * noise).argmax(-1)
    return chosen


def soft_values(q_values: Floats, epsilon: Floats) -> Floats:
    """V(s) = (1 - epsilon) max_a Q(s, a) + epsilon mean_a Q(s, a), what Q says of its own epsilon-greedy policy:
    [..., A] -> [...]."""
    mean = q_values.sum(-1) / q_values.shape[-1]
    values: Floats = (1.0 - epsilon) * q_values.max(-1) + epsilon * mean
    return values


class TableAgent:
    """Tables, streams and counters of R runs; an algorithm adds `iterate`.

    `tables` names the attributes [R, ...] that hold what was learned, `memory` the others that have to be saved.
    """

    tables: ClassVar[tuple[str, ...]] = ("q_values", "visits")
    memory: ClassVar[tuple[str, ...]] = ("observations",)

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        if envs.num_states is None:
            raise ValueError("the task's states are not numbered: algorithms on tables need one of suite tabular")
        self.cfg, self.envs = cfg, envs  # NumPy on every device: there is nothing here for another one to do
        self.num_runs, self.num_envs = len(seeds), cfg.num_envs
        self.num_states, self.num_actions = envs.num_states, envs.num_actions
        self.steps_per_iteration = STEPS * cfg.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        self.runs = np.arange(self.num_runs)  # index of the run axis
        self.q_values = np.zeros((self.num_runs, self.num_states, self.num_actions))
        self.visits = np.zeros_like(self.q_values)  # updates of each pair
        self.env_steps = 0
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = envs.reset(seeds)  # [R, N, 1]

    def estimates(self, states: Indices) -> Floats:
        """Q(s, .) [R, N, A] for states [R, N]."""
        estimates: Floats = self.q_values[self.runs[:, None], states]
        return estimates

    def epsilon_after(self, env_steps: np.ndarray) -> Floats:
        """Epsilon [T, R] after so many env_steps [T]."""
        return linear(self.cfg.epsilon, self.cfg.epsilon_end, self.cfg.epsilon_steps, env_steps)

    def update(self, place: tuple[Indices, ...], targets: Floats) -> Floats:
        """Moves Q(s, a) at `place`, one pair per run, towards targets [R]; returns the TD errors [R]."""
        self.visits[place] += 1
        td_errors: Floats = targets - self.q_values[place]
        step_sizes = np.where(self.cfg.sample_average > 0, 1.0 / self.visits[place], self.cfg.alpha)
        self.q_values[place] += step_sizes * td_errors
        return td_errors

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> Indices:
        """Actions [R, N] for observations [R, N, 1]: greedy, of equal ones the first; as while learning, that is with
        the present epsilon and random ties, when streams are given."""
        q_values = self.estimates(states_of(observations))
        if streams is None:
            return q_values.argmax(-1)
        epsilon = self.epsilon_after(np.array([self.env_steps]))
        explore, noise = exploration(streams, epsilon, *q_values.shape[1:])
        return choose(q_values, explore[0], noise[0])

    def values(self, observations: np.ndarray) -> Floats:
        """What acting greedily is estimated to be worth, max_a Q(s, a): [R, N, 1] -> [R, N]."""
        return self.estimates(states_of(observations)).max(-1)

    def diverged(self) -> NDArray[np.bool_]:
        """Runs whose tables are not finite: bool [R]."""
        finite = [np.isfinite(getattr(self, name)).reshape(self.num_runs, -1).all(1) for name in self.tables]
        return ~np.logical_and.reduce(finite)

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The tables of one run."""
        return {name: getattr(self, name)[run].copy() for name in self.tables}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        arrays = {name: getattr(self, name).copy() for name in (*self.tables, *self.memory)}
        return arrays | {"streams": self.streams.state(), "env_steps": self.env_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        for name in (*self.tables, *self.memory):
            setattr(self, name, np.array(state[name]))
        self.streams.load_state(state["streams"])
        self.env_steps = state["env_steps"]
