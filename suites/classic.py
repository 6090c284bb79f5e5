"""Gymnasium's classic control, each task stepped as one NumPy batch over [R, N].

The numbers are Gymnasium's own, bit for bit: same formulas in the same order of operations, float64 where it has
float64 and float32 where it has float32, same draws from the same generators. Two things to know when reading the
dynamics: NumPy's sin and cos of float64 equal libm's, whatever the length of the array; `x ** 2` of a NumPy scalar is
libm's `pow`, which may differ from `x * x` in the last bit, so `np.float_power` stands for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from suites import Task
from suites.vector import Step, VectorEnv

Array = NDArray[Any]
BLOCK = 64  # initial states drawn at a time per environment; a matter of speed only


class ClassicVectorEnv(VectorEnv):
    """A batch of one classic-control task. The physical state is [D, R, N]: one contiguous array per quantity."""

    task: ClassVar[Task]
    start_low: ClassVar[tuple[float, ...]]  # [D] initial states are uniform between these,
    start_high: ClassVar[tuple[float, ...]]
    num_drawn: ClassVar[int | None] = None  # but only the first so many are drawn, the others 0
    num_observed: ClassVar[int]
    discrete: ClassVar[int | None] = None
    action_bound: ClassVar[float | None] = None
    action_size: ClassVar[int] = 1  # numbers of a continuous action

    def __init__(self, num_runs: int, num_envs: int) -> None:
        bound = None if self.action_bound is None else np.full(self.action_size, self.action_bound, np.float32)
        super().__init__(
            num_runs,
            num_envs,
            (self.num_observed,),
            self.task.max_episode_steps,
            num_actions=self.discrete,
            action_low=None if bound is None else -bound,
            action_high=bound,
        )
        batch = num_runs * num_envs
        self._state = np.zeros((len(self.start_low), num_runs, num_envs))
        self._generators = [np.random.Generator(np.random.PCG64(0)) for _ in range(batch)]
        self._block_seeds: list[dict[str, Any]] = [{}] * batch  # generator states from which the blocks were drawn
        self._block = np.zeros((batch, BLOCK, len(self.start_low)))
        self._used = np.zeros(batch, np.int64)  # initial states taken from the block

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        """state [D, R, N], actions [R, N] ([R, N, A] of A numbers) -> next state, rewards, terminations."""
        raise NotImplementedError

    def _observe(self, state: Array) -> Array:
        """state [D, ...] -> observations [O, ...]."""
        return state

    def _seed(self, seeds: list[list[int]]) -> None:
        for i, seed in enumerate(seed for row in seeds for seed in row):
            self._generators[i] = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
            self._draw(i)

    def _draw(self, i: int) -> None:
        """Draws the next block of initial states of environment i: the numbers of BLOCK resets of Gymnasium."""
        low, high = np.array(self.start_low), np.array(self.start_high)
        drawn = self.num_drawn or len(low)
        self._block_seeds[i] = dict(self._generators[i].bit_generator.state)
        uniform = self._generators[i].random((BLOCK, drawn))
        self._block[i, :, :drawn] = low[:drawn] + (high - low)[:drawn] * uniform
        self._used[i] = 0

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        used = self._used[indices]
        start = self._start(self._block[indices, used].T)  # [D, ended]
        self._state.reshape(len(start), -1)[:, indices] = start
        observations.reshape(len(self._used), -1)[indices] = self._observe(start).T
        self._used[indices] = used + 1
        for i in indices[used == BLOCK - 1].tolist():
            self._draw(i)

    def _start(self, drawn: Array) -> Array:
        return drawn

    def _advance(self, actions: Array, out: Step) -> None:
        actions = actions if self.action_size > 1 else actions.reshape(self._returns.shape)
        state, out.rewards[:], out.terminations[:] = self._dynamics(self._state, actions)
        if self._some_parked:
            state[:, self.parked] = self._state[:, self.parked]
        self._state = state
        out.next_observations[:] = self._observe(state).transpose(1, 2, 0)

    def _save(self) -> dict[str, Any]:
        return {"state": self._state.copy(), "generators": list(self._block_seeds), "used": self._used.copy()}

    def _load(self, state: dict[str, Any]) -> None:
        self._state = np.array(state["state"])
        for i, seed in enumerate(state["generators"]):
            self._generators[i].bit_generator.state = seed
            self._draw(i)
        self._used[:] = state["used"]


class CartPole(ClassicVectorEnv):
    """Cart position (m), velocity, pole angle (rad), angular velocity."""

    task = Task("CartPole-v1", "classic", max_episode_steps=500, steps=500_000)
    start_low, start_high = (-0.05,) * 4, (0.05,) * 4
    num_observed, discrete = 4, 2
    observation_high = np.array([2 * 2.4, np.inf, 2 * 12 * 2 * np.pi / 360, np.inf])
    observation_low = -observation_high

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        _, x_dot, theta, theta_dot = state
        force = np.array([-10.0, 10.0])[actions]
        cos, sin = np.cos(theta), np.sin(theta)
        pole_mass_length, total_mass = 0.1 * 0.5, 0.1 + 1.0
        temp = (force + pole_mass_length * np.square(theta_dot) * sin) / total_mass
        theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * np.square(cos) / total_mass))
        x_acc = temp - pole_mass_length * theta_acc * cos / total_mass
        state = state + 0.02 * np.array((x_dot, x_acc, theta_dot, theta_acc))
        limit = 12 * 2 * np.pi / 360
        return state, 1.0, (np.abs(state[0]) > 2.4) | (np.abs(state[2]) > limit)


class Acrobot(ClassicVectorEnv):
    """Angles of the two links (rad), angular velocities; all lengths, masses and moments of inertia are 1."""

    task = Task("Acrobot-v1", "classic", max_episode_steps=500, steps=500_000)
    start_low, start_high = (-0.1,) * 4, (0.1,) * 4
    num_observed, discrete = 6, 3
    observation_high = np.array([1.0, 1.0, 1.0, 1.0, 4 * np.pi, 9 * np.pi])
    observation_low = -observation_high

    def _start(self, drawn: Array) -> Array:
        return drawn.astype(np.float32)  # the first observation takes its cosines in float32

    def _observe(self, state: Array) -> Array:
        angles = state[:2]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.stack((cos[0], sin[0], cos[1], sin[1], state[2], state[3]))

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        torque, dt = actions - 1.0, 0.2
        k1 = self._derivatives(state, torque)
        k2 = self._derivatives(state + dt / 2 * k1, torque)
        k3 = self._derivatives(state + dt / 2 * k2, torque)
        k4 = self._derivatives(state + dt * k3, torque)
        state = state + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles = state[:2]
        while (over := angles > np.pi).any():
            angles[over] -= 2 * np.pi
        while (under := angles < -np.pi).any():
            angles[under] += 2 * np.pi
        max_velocities = np.array([4 * np.pi, 9 * np.pi]).reshape(2, 1, 1)
        state[2:] = np.minimum(np.maximum(state[2:], -max_velocities), max_velocities)
        terminations = -np.cos(state[0]) - np.cos(state[1] + state[0]) > 1.0
        return state, np.where(terminations, 0.0, -1.0), terminations

    @staticmethod
    def _derivatives(state: Array, torque: Array) -> Array:
        """Time derivatives of the state; "book" form, Gymnasium's default."""
        theta1, theta2, dtheta1, dtheta2 = state
        cos2, sin2 = np.cos(theta2), np.sin(theta2)
        d1 = 0.25 + (1.25 + cos2) + 1.0 + 1.0
        d2 = 0.25 + 0.5 * cos2 + 1.0
        phi2 = 0.5 * 9.8 * np.cos(theta1 + theta2 - np.pi / 2.0)
        phi1 = (
            -0.5 * np.float_power(dtheta2, 2) * sin2
            - dtheta2 * dtheta1 * sin2
            + 1.5 * 9.8 * np.cos(theta1 - np.pi / 2)
            + phi2
        )
        ddtheta2 = (torque + d2 / d1 * phi1 - 0.5 * np.float_power(dtheta1, 2) * sin2 - phi2) / (
            1.25 - np.float_power(d2, 2) / d1
        )
        ddtheta1 = -(d2 * ddtheta2 + phi1) / d1
        return np.stack((dtheta1, dtheta2, ddtheta1, ddtheta2))


class MountainCar(ClassicVectorEnv):
    """Position, velocity."""

    task = Task("MountainCar-v0", "classic", max_episode_steps=200, steps=500_000)
    start_low, start_high, num_drawn = (-0.6, 0.0), (-0.4, 0.0), 1
    num_observed, discrete = 2, 3
    observation_low, observation_high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        position, velocity = state
        velocity = velocity + ((actions - 1) * 0.001 + np.cos(3 * position) * -0.0025)
        velocity = np.clip(velocity, -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity[(position == -1.2) & (velocity < 0)] = 0
        return np.stack((position, velocity)), -1.0, (position >= 0.5) & (velocity >= 0)


class MountainCarContinuous(ClassicVectorEnv):
    """Position, velocity: float32 in Gymnasium, but for the very first position of an episode, which is float64."""

    task = Task("MountainCarContinuous-v0", "classic", max_episode_steps=999, steps=500_000)
    start_low, start_high, num_drawn = (-0.6, 0.0), (-0.4, 0.0), 1
    num_observed, action_bound = 2, 1.0
    observation_low, observation_high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        start, first, f32 = state[0], self._elapsed == 0, np.float32
        slope = 0.0025 * np.cos(np.where(first, 3 * start, (3 * start).astype(f32)))
        inside = actions * f32(0.0015) - slope.astype(f32)
        outside = np.where(actions > 0, 0.0015, -0.0015) - slope  # float64: there the force is a Python float
        push = np.where(np.abs(actions) > 1, outside, inside)
        velocity = np.where(first, push, state[1].astype(f32) + push.astype(f32))
        velocity = np.clip(velocity, f32(-0.07), f32(0.07))
        position = np.clip((start + velocity).astype(f32), f32(-1.2), f32(0.6))
        velocity = velocity.astype(f32)
        velocity[(position == f32(-1.2)) & (velocity < 0)] = 0
        terminations = (position >= f32(0.45)) & (velocity >= 0)
        rewards = np.where(terminations, 100.0, 0.0) - np.square(actions.astype(np.float64)) * 0.1
        return np.stack((position, velocity)).astype(np.float64), rewards, terminations


class Pendulum(ClassicVectorEnv):
    """Angle (rad, 0 is upright), angular velocity."""

    task = Task("Pendulum-v1", "classic", max_episode_steps=200, steps=500_000)
    start_low, start_high = (-np.pi, -1.0), (np.pi, 1.0)
    num_observed, action_bound = 3, 2.0
    observation_low, observation_high = np.array([-1.0, -1.0, -8.0]), np.array([1.0, 1.0, 8.0])

    def _observe(self, state: Array) -> Array:
        return np.stack((np.cos(state[0]), np.sin(state[0]), state[1]))

    def _dynamics(self, state: Array, actions: Array) -> tuple[Array, Array | float, Array | bool]:
        theta, theta_dot = state
        actions = np.clip(actions, self.action_low, self.action_high)
        angle = (theta + np.pi) % (2 * np.pi) - np.pi
        effort = np.array([torque**2 for torque in actions.ravel()]).reshape(actions.shape)  # powf, as in Gymnasium
        costs = np.float_power(angle, 2) + 0.1 * np.float_power(theta_dot, 2) + np.float32(0.001) * effort
        theta_dot = theta_dot + (15.0 * np.sin(theta) + 3.0 * actions) * 0.05
        theta_dot = np.clip(theta_dot, -8, 8)
        return np.stack((theta + theta_dot * 0.05, theta_dot)), -costs, False


FAMILY = {env.task.id: env for env in (CartPole, Acrobot, MountainCar, MountainCarContinuous, Pendulum)}
TASKS = {task_id: env.task for task_id, env in FAMILY.items()}
SUITES = {"classic": list(TASKS)}
PACKAGES = ("gymnasium", "numpy")  # whose versions can change the numbers


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> ClassicVectorEnv:
    """Environments [num_runs, num_envs] of one classic-control task; one batch, so `num_threads` has no use here."""
    return FAMILY[task.id](num_runs, num_envs)
