"""The eleven MuJoCo tasks of Gymnasium, version 5: real Gymnasium environments, no wrappers.

Observations are float32 (Gymnasium's float64 rounded once), rewards float64, actions float32; time limit and automatic
reset are `VectorEnv`'s. "-v5" does not fix the numbers: they change with the version of mujoco,
which is part of the fingerprint.

A Gymnasium step spends 5 to 25 us in Python beside the physics. For the tasks in `OUTCOMES` the physics of each
environment is stepped as its `do_simulation` does, and observations, rewards and terminations of all environments are
then computed in one batch, from the same formulas with the same roundings: bit for bit what its `step` returns, which
is tested. The other tasks call `step`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suites import Task
from suites.vector import Step, VectorEnv

LIMITS = {"Reacher-v5": 50, "Pusher-v5": 100}  # max_episode_steps where it is not 1,000, as in Gymnasium's registry
IDS = [
    *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5"),
    *("Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
]
PPO7 = [  # arXiv:1707.06347, section 6.1
    *("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5"),
    "Walker2d-v5",
]
TASKS = {task_id: Task(task_id, "mujoco", LIMITS.get(task_id, 1_000), steps=1_000_000) for task_id in IDS}
SUITES = {"mujoco": IDS, "mujoco-ppo7": PPO7}
PACKAGES = ("gymnasium", "mujoco", "numpy")  # whose versions can change the numbers

Array = NDArray[Any]
Gather = Callable[[str], Array]  # name of an array of MjData -> that array of all environments [M, ...], copied
Outcome = tuple[Array, Array, Array | bool]  # observations [M, O], rewards [M], terminations [M]


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> MujocoVectorEnv:
    """Environments [num_runs, num_envs] of one MuJoCo task."""
    return MujocoVectorEnv(task, num_runs, num_envs, num_threads)


class MujocoVectorEnv(VectorEnv):
    """Gymnasium environments [R, N]. With `num_threads` > 1 they are stepped in parallel: MuJoCo releases the GIL."""

    def __init__(self, task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> None:
        import gymnasium
        import mujoco

        # MuJoCo's own handler appends every warning to a file in the working directory
        mujoco.set_mju_user_warning(logging.getLogger(__name__).info)
        self._mujoco = mujoco
        self._envs: list[Any] = [
            gymnasium.make(task.id, disable_env_checker=True, **task.env_kwargs).unwrapped
            for _ in range(num_runs * num_envs)
        ]
        space = self._envs[0].action_space
        super().__init__(
            num_runs,
            num_envs,
            self._envs[0].observation_space.shape,
            task.max_episode_steps,
            action_low=space.low,
            action_high=space.high,
        )
        self._outcome = OUTCOMES.get(task.id)
        self._views: dict[str, list[Array]] = {}  # views into MuJoCo's memory, which stays where it is
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._chunks = [chunk.tolist() for chunk in np.array_split(np.arange(len(self._envs)), num_threads)]

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _seed(self, seeds: list[list[int]]) -> None:
        for env, seed in zip(self._envs, (seed for row in seeds for seed in row), strict=True):
            env.np_random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        for i in indices.tolist():
            run, n = divmod(i, self.num_envs)
            try:
                observations[run, n] = self._envs[i].reset()[0]
            except Exception as error:  # whatever it raises is this run's fate, not the others'
                self.park(run, f"reset of environment {n} of run {run} raised {type(error).__name__}: {error}")

    def _advance(self, actions: Array, out: Step) -> None:
        actions = actions.reshape(len(self._envs), -1)
        observations = out.next_observations.reshape(len(self._envs), -1)
        rewards, terminations = out.rewards.reshape(-1), out.terminations.reshape(-1)
        if self._outcome is None:

            def step(i: int) -> None:
                observations[i], rewards[i], terminations[i], _, _ = self._envs[i].step(actions[i])

            self._each(step)
            return

        before, controls, mj_step = self._gather("qpos"), actions.astype(np.float64), self._mujoco.mj_step
        targets, envs, frame_skip = self._view("ctrl"), self._envs, self._envs[0].frame_skip

        def simulate(i: int) -> None:
            targets[i][:] = controls[i]
            mj_step(envs[i].model, envs[i].data, frame_skip)

        self._each(simulate)
        observations[:], rewards[:], terminations[:] = self._outcome(envs[0], self._gather, before, actions)

    def _each(self, advance: Callable[[int], None]) -> None:
        """Calls `advance(i)` for the environments of all runs not parked; a run in which it raises is parked."""

        def work(chunk: list[int]) -> None:
            for i in chunk:
                if self._some_parked and self.parked[i // self.num_envs]:
                    continue
                try:
                    advance(i)
                except Exception as error:  # as in _restart
                    run, n = divmod(i, self.num_envs)
                    self.park(run, f"step of environment {n} of run {run} raised {type(error).__name__}: {error}")

        if self._pool is None:
            work(self._chunks[0])
        else:
            list(self._pool.map(work, self._chunks))

    def _view(self, name: str) -> list[Array]:
        if name not in self._views:
            self._views[name] = [getattr(env.data, name) for env in self._envs]
        return self._views[name]

    def _gather(self, name: str) -> Array:
        views = self._view(name)
        return np.concatenate(views).reshape(len(views), *views[0].shape)

    def _save(self) -> dict[str, Any]:
        """INTEGRATION is the state MuJoCo's next step reads. Ant and Humanoid also read where bodies were before it
        (xpos, xipos), which MuJoCo derives only inside a step."""
        mujoco, spec = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty((len(self._envs), mujoco.mj_stateSize(self._envs[0].model, spec)))
        for env, row in zip(self._envs, physics, strict=True):
            mujoco.mj_getState(env.model, env.data, row, spec)
        return {
            "physics": physics,
            "xpos": self._gather("xpos"),
            "xipos": self._gather("xipos"),
            "generators": [env.np_random.bit_generator.state for env in self._envs],
        }

    def _load(self, state: dict[str, Any]) -> None:
        mujoco, spec = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        for i, env in enumerate(self._envs):
            mujoco.mj_setState(env.model, env.data, np.ascontiguousarray(state["physics"][i], np.float64), spec)
            env.data.xpos[:], env.data.xipos[:] = state["xpos"][i], state["xipos"][i]
            env.np_random = np.random.Generator(np.random.PCG64(0))
            env.np_random.bit_generator.state = state["generators"][i]


# Observations, rewards and terminations as in gymnasium/envs/mujoco/*_v5.py. `env` holds the constants, `before` is the
# qpos before the step. Costs of control stay float32, the dtype of the actions. `x ** 2` of a NumPy scalar is libm's
# pow, here np.float_power; a norm of three numbers is the root of their BLAS dot: both may differ from the obvious in
# the last bit.


def _control_cost(env: Any, actions: Array) -> Array:
    cost: Array = env._ctrl_cost_weight * np.sum(np.square(actions), axis=1)
    return cost


def _forward_reward(env: Any, before: Array, qpos: Array) -> Array:
    reward: Array = env._forward_reward_weight * ((qpos[:, 0] - before[:, 0]) / env.dt)
    return reward


def _half_cheetah(env: Any, gather: Gather, before: Array, actions: Array) -> Outcome:
    qpos, skipped = gather("qpos"), env.observation_structure["skipped_qpos"]
    rewards = _forward_reward(env, before, qpos) - _control_cost(env, actions)
    return np.concatenate((qpos[:, skipped:], gather("qvel")), 1), rewards, False


def _walker2d(env: Any, gather: Gather, before: Array, actions: Array) -> Outcome:
    qpos, qvel = gather("qpos"), gather("qvel")
    (min_z, max_z), (min_angle, max_angle) = env._healthy_z_range, env._healthy_angle_range
    z, angle = qpos[:, 1], qpos[:, 2]
    healthy = (min_z < z) & (z < max_z) & (min_angle < angle) & (angle < max_angle)
    if hasattr(env, "_healthy_state_range"):  # Hopper
        low, high = env._healthy_state_range
        healthy &= ((low < qpos[:, 2:]) & (qpos[:, 2:] < high)).all(1) & ((low < qvel) & (qvel < high)).all(1)
    rewards = _forward_reward(env, before, qpos) + healthy * env._healthy_reward - _control_cost(env, actions)
    return np.concatenate((qpos[:, 1:], np.clip(qvel, -10, 10)), 1), rewards, ~healthy


def _reacher(env: Any, gather: Gather, before: Array, actions: Array) -> Outcome:
    qpos, xpos = gather("qpos"), gather("xpos")
    reach = xpos[:, env.model.body("fingertip").id] - xpos[:, env.model.body("target").id]
    distances = np.sqrt([row.dot(row) for row in reach])
    rewards = -distances * env._reward_dist_weight + -np.square(actions).sum(1) * env._reward_control_weight
    angles = qpos[:, :2]
    parts = (np.cos(angles), np.sin(angles), qpos[:, 2:], gather("qvel")[:, :2], reach[:, :2])
    return np.concatenate(parts, 1), rewards, False


def _inverted_pendulum(env: Any, gather: Gather, before: Array, actions: Array) -> Outcome:
    observations = np.concatenate((gather("qpos"), gather("qvel")), 1)
    upright = np.isfinite(observations).all(1) & ~(np.abs(observations[:, 1]) > 0.2)
    return observations, upright, ~upright


def _inverted_double_pendulum(env: Any, gather: Gather, before: Array, actions: Array) -> Outcome:
    qpos, qvel, tip = gather("qpos"), gather("qvel"), gather("site_xpos")[:, 0]
    terminations = tip[:, 2] <= 1
    distance_penalty = 0.01 * np.float_power(tip[:, 0], 2) + np.float_power(tip[:, 2] - 2, 2)
    velocity_penalty = 1e-3 * np.float_power(qvel[:, 1], 2) + 5e-3 * np.float_power(qvel[:, 2], 2)
    rewards = env._healthy_reward * ~terminations - distance_penalty - velocity_penalty
    forces = np.clip(gather("qfrc_constraint")[:, :1], -10, 10)
    parts = (qpos[:, :1], np.sin(qpos[:, 1:]), np.cos(qpos[:, 1:]), np.clip(qvel, -10, 10), forces)
    return np.concatenate(parts, 1), rewards, terminations


OUTCOMES: dict[str, Callable[[Any, Gather, Array, Array], Outcome]] = {
    "HalfCheetah-v5": _half_cheetah,
    "Swimmer-v5": _half_cheetah,
    "Hopper-v5": _walker2d,
    "Walker2d-v5": _walker2d,
    "Reacher-v5": _reacher,
    "InvertedPendulum-v5": _inverted_pendulum,
    "InvertedDoublePendulum-v5": _inverted_double_pendulum,
}
