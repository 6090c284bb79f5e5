"""Three tasks of a two-dimensional state and continuous actions on which actor-critics with linear features have been
compared (Degris, White, Sutton 2012, arXiv:1205.4839; Silver et al. 2014, "Deterministic Policy Gradient Algorithms"):
mountain car, pendulum and puddle world, each stepped as one NumPy batch over [R, N].

They differ from Gymnasium's in what tile coding needs: observations are the state itself, and bounded. Mountain car
pays -1 a step, not for little effort. An episode lasts up to 5,000 steps, and actions outside their range are capped
(Silver et al. 2014, section 5.2).

Mountain car and pendulum are those of rlpark/rlpark@06518cd (MountainCar.java, SwingPendulum.java), the library of an
author of both papers. The puddle world is that of Sutton 1996, "Generalization in Reinforcement Learning: Successful
Examples Using Sparse Coarse Coding", with the constants of rlpy/rlpy@0962f96 PuddleWorld.py and the continuous actions
of sparisi/mips PuddleworldContinuous.m: a displacement of up to 0.05 along each axis. Silver et al. do not say which
puddle world theirs is; that of Degris et al. has other puddles, smooth ones. Departures:
- Mountain car begins near the bottom, as Gymnasium's does; rlpark's begins at -0.5, or anywhere at any velocity.
- In the puddle world the noise of the two axes is independent, as Sutton has it (rlpy draws one number for both), and
  the last step costs what the others do (rlpy: nothing).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from suites import Task
from suites.classic import Array, ClassicVectorEnv

LIMIT = 5_000  # env_steps of an episode
NOISE_BLOCK = 256  # steps for which noise is drawn at a time; a matter of speed only


class MountainCar(ClassicVectorEnv):
    """Position, velocity; the action is the throttle, clipped to [-1, 1]."""

    task = Task("MountainCarRLPark-v0", "linear", max_episode_steps=LIMIT, steps=200_000)
    start_low, start_high, num_drawn = (-0.6, 0.0), (-0.4, 0.0), 1
    num_observed, action_bound = 2, 1.0
    observation_low, observation_high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        position, velocity = state
        velocity = velocity + 0.001 * np.clip(actions, -1, 1) - 0.0025 * np.cos(3 * position)
        velocity = np.clip(velocity, -0.07, 0.07)
        position = position + velocity
        velocity = np.where(position < -1.2, 0.0, velocity)
        position = np.clip(position, -1.2, 0.6)
        return np.stack((position, velocity)), -1.0, position >= 0.6


class Pendulum(ClassicVectorEnv):
    """Angle (rad, 0 is upright) in [-pi, pi], angular velocity; the action is the torque, clipped to [-2, 2].

    The reward is the cosine of the angle, and nothing ends an episode but its limit.
    """

    task = Task("PendulumRLPark-v0", "linear", max_episode_steps=LIMIT, steps=200_000)
    start_low, start_high, num_drawn = (-np.pi, 0.0), (np.pi, 0.0), 1
    num_observed, action_bound = 2, 2.0
    fastest = np.pi / 4 / 0.01  # an eighth of a turn in a step
    observation_low, observation_high = np.array([-np.pi, -fastest]), np.array([np.pi, fastest])

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        angle, velocity = state
        velocity = velocity + (-0.01 * velocity + 9.8 * np.sin(angle) + np.clip(actions, -2, 2))
        velocity = np.clip(velocity, -self.fastest, self.fastest)
        angle = angle + 0.01 * velocity
        angle = np.where(angle >= np.pi, angle - 2 * np.pi, angle)
        angle = np.where(angle < -np.pi, angle + 2 * np.pi, angle)
        return np.stack((angle, velocity)), np.cos(angle), False


class PuddleWorld(ClassicVectorEnv):
    """A place in the unit square; the action is the displacement, clipped to [-0.05, 0.05] along each axis, to which
    normal noise is added.

    Episodes begin anywhere but in the goal, the corner where x + y >= 1.9. A step costs 1, and in a puddle 400 times
    the depth: how far it is to the puddle's edge. A puddle is all that lies within 0.1 of its line.
    """

    task = Task("PuddleWorld-v0", "linear", max_episode_steps=LIMIT, steps=200_000)
    start_low, start_high = (0.0, 0.0), (1.0, 1.0)
    num_observed, action_size, action_bound = 2, 2, 0.05
    observation_low, observation_high = np.zeros(2), np.ones(2)
    noise_std, goal, radius, depth_cost = 0.01, 1.9, 0.1, 400.0
    puddles = (((0.1, 0.75), (0.45, 0.75)), ((0.45, 0.4), (0.45, 0.8)))  # the lines' ends

    def __init__(self, num_runs: int, num_envs: int) -> None:
        super().__init__(num_runs, num_envs)
        batch = num_runs * num_envs
        self._noise_generators = [np.random.Generator(np.random.PCG64(0)) for _ in range(batch)]
        self._noise_seeds: list[dict[str, Any]] = [{}] * batch  # generator states from which the noise was drawn
        self._noise = np.zeros((NOISE_BLOCK, 2, num_runs, num_envs))
        self._noise_used = 0  # steps

    def _seed(self, seeds: list[list[int]]) -> None:
        super()._seed(seeds)
        for i, seed in enumerate(seed for row in seeds for seed in row):
            (other,) = np.random.SeedSequence(seed).spawn(1)
            self._noise_generators[i] = np.random.Generator(np.random.PCG64(other))
        self._draw_noise()

    def _draw_noise(self) -> None:
        """The noise of the next NOISE_BLOCK steps of every environment."""
        flat = self._noise.reshape(NOISE_BLOCK, 2, -1)
        for i, generator in enumerate(self._noise_generators):
            self._noise_seeds[i] = dict(generator.bit_generator.state)
            flat[:, :, i] = self.noise_std * generator.standard_normal((NOISE_BLOCK, 2))
        self._noise_used = 0

    def _draw(self, i: int) -> None:
        super()._draw(i)
        while (inside := self._block[i].sum(-1) >= self.goal).any():
            self._block[i, inside] = self._generators[i].random((int(inside.sum()), 2))

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        if self._noise_used == NOISE_BLOCK:
            self._draw_noise()
        move = np.clip(np.moveaxis(actions, -1, 0), -self.action_bound, self.action_bound).astype(np.float64)
        place = np.clip(state + move + self._noise[self._noise_used], 0.0, 1.0)
        self._noise_used += 1
        return place, -1.0 - self.depth_cost * self.depth(place), place.sum(0) >= self.goal

    def depth(self, place: Array) -> Array:
        """How far inside the edge of a puddle a place [2, ...] lies, of the one where it is deeper; 0 outside."""
        deepest = np.zeros(place.shape[1:])
        for begin, end in self.puddles:
            start, line = (np.reshape(x, (2, *[1] * (place.ndim - 1))) for x in (begin, np.subtract(end, begin)))
            share = np.clip(((place - start) * line).sum(0) / np.square(line).sum(), 0.0, 1.0)  # along the line
            distance = np.sqrt(np.square(place - start - share * line).sum(0))
            deepest = np.maximum(deepest, self.radius - distance)
        return deepest

    def _save(self) -> dict[str, Any]:
        return super()._save() | {"noise": list(self._noise_seeds), "noise_used": self._noise_used}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        for generator, seed in zip(self._noise_generators, state["noise"], strict=True):
            generator.bit_generator.state = seed
        self._draw_noise()
        self._noise_used = int(state["noise_used"])


FAMILY = {env.task.id: env for env in (MountainCar, Pendulum, PuddleWorld)}
TASKS = {task_id: env.task for task_id, env in FAMILY.items()}
SUITES = {"linear": list(TASKS)}
PACKAGES = ("numpy",)  # whose versions can change the numbers


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> ClassicVectorEnv:
    """Environments [num_runs, num_envs] of one of the tasks; one batch, so `num_threads` has no use here."""
    return FAMILY[task.id](num_runs, num_envs)
