"""The eleven MuJoCo tasks of Gymnasium, version 5: real Gymnasium environments, stepped one by one.

Observations are float32 (Gymnasium's float64 rounded once), rewards float64, actions float32 clipped to the box. There are
no wrappers: time limit and automatic reset are `VectorEnv`'s. "-v5" does not fix the numbers: they change with the version
of mujoco, which is part of the fingerprint.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suites import Task
from suites.vector import VectorEnv

LIMITS = {  # max_episode_steps where it is not 1,000, as in Gymnasium's registry
    "Reacher-v5": 50,
    "Pusher-v5": 100,
}
TASKS = {
    task_id: Task(task_id, "mujoco", LIMITS.get(task_id, 1_000), steps=1_000_000)
    for task_id in (
        "HalfCheetah-v5",
        "Hopper-v5",
        "Walker2d-v5",
        "Ant-v5",
        "Humanoid-v5",
        "HumanoidStandup-v5",
        "Swimmer-v5",
        "Reacher-v5",
        "Pusher-v5",
        "InvertedPendulum-v5",
        "InvertedDoublePendulum-v5",
    )
}
SUITES = {
    "mujoco": list(TASKS),
    "mujoco-ppo7": [  # arXiv:1707.06347, section 6.1
        "HalfCheetah-v5",
        "Hopper-v5",
        "InvertedDoublePendulum-v5",
        "InvertedPendulum-v5",
        "Reacher-v5",
        "Swimmer-v5",
        "Walker2d-v5",
    ],
}


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> MujocoVectorEnv:
    """Environments [num_runs, num_envs] of one MuJoCo task."""
    return MujocoVectorEnv(task, num_runs, num_envs, num_threads)


class MujocoVectorEnv(VectorEnv):
    """Gymnasium environments [R, N]. With `num_threads` > 1 they are stepped in parallel: MuJoCo releases the GIL."""

    def __init__(self, task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> None:
        import gymnasium
        import mujoco

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
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._chunks = [list(map(int, c)) for c in np.array_split(np.arange(len(self._envs)), num_threads) if c.size]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _seed(self, seeds: list[list[int]]) -> None:
        for env, seed in zip(self._envs, np.ravel(np.array(seeds, object)), strict=True):
            env.reset(seed=seed)  # the only door to a seeded generator; the episode is thrown away below
            env.np_random.bit_generator.state = np.random.PCG64(np.random.SeedSequence(seed)).state

    def _restart(self, which: NDArray[np.bool_], observations: NDArray[np.float32]) -> None:
        for run, n in np.argwhere(which).tolist():
            try:
                observations[run, n] = self._envs[run * self.num_envs + n].reset()[0]
            except Exception as error:  # whatever an environment raises is its run's fate, not the others'
                self.park(run, f"reset of environment {n} of run {run} raised {type(error).__name__}: {error}")

    def _advance(
        self,
        actions: NDArray[Any],
        successors: NDArray[np.float32],
        rewards: NDArray[np.float64],
        terminations: NDArray[np.bool_],
    ) -> None:
        rows = actions.reshape(len(self._envs), -1)
        outs = successors.reshape(len(self._envs), -1), rewards.ravel(), terminations.ravel()

        def advance(chunk: list[int]) -> None:
            for i in chunk:
                run, n = divmod(i, self.num_envs)
                if self.parked[run]:
                    continue
                try:
                    outs[0][i], outs[1][i], outs[2][i], _, _ = self._envs[i].step(rows[i])
                except Exception as error:  # as in _restart
                    self.park(run, f"step of environment {n} of run {run} raised {type(error).__name__}: {error}")

        if self._pool is None:
            advance(self._chunks[0])
        else:
            list(self._pool.map(advance, self._chunks))

    def _save(self) -> dict[str, Any]:
        """INTEGRATION is the state MuJoCo's next step reads. Ant and Humanoid also read where bodies were before it
        (xpos, xipos), which MuJoCo derives only inside a step."""
        mujoco, spec = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty((len(self._envs), mujoco.mj_stateSize(self._envs[0].model, spec)))
        for env, row in zip(self._envs, physics, strict=True):
            mujoco.mj_getState(env.model, env.data, row, spec)
        return {
            "physics": physics,
            "xpos": np.array([env.data.xpos for env in self._envs]),
            "xipos": np.array([env.data.xipos for env in self._envs]),
            "generators": [env.np_random.bit_generator.state for env in self._envs],
        }

    def _load(self, state: dict[str, Any]) -> None:
        mujoco, spec = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        for i, env in enumerate(self._envs):
            mujoco.mj_setState(env.model, env.data, np.ascontiguousarray(state["physics"][i], np.float64), spec)
            env.data.xpos[:], env.data.xipos[:] = state["xpos"][i], state["xipos"][i]
            env.np_random.bit_generator.state = state["generators"][i]
