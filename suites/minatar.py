"""MinAtar's five games (Young and Tian 2019, arXiv:1903.03176) as its package registers them with Gymnasium, version 1:
the minimal action set, sticky actions (the last action again with probability 0.1), difficulty that ramps up. Ids have
a dash where Gymnasium's have a slash: they name folders.

An observation is 10 x 10 cells x channels of 0 and 1. The environments are the package's own, bit for bit; each draws
all its numbers, the sticky actions' too, from one `RandomState`, which takes the low 32 bits of `environment_seed`.
As in the package, the action that may stick is remembered across episodes.

Freeway ends after 2,500 steps; the package sets no other limit, nor do its examples or arXiv:2011.14826 (100,000,000).
But whoever waits for the end of an episode must not wait for ever on a policy that does not lose, so there is a limit
here, far above what is played: the 27,000 decisions that Atari games have in arXiv:1812.06110.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from suites import Task
from suites.vector import Step, VectorEnv

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
TASKS = {
    task_id: Task(
        task_id, "minatar", 27_000, 5_000_000, {"env_name": game, "sticky_action_prob": 0.1, "difficulty_ramping": True}
    )
    for task_id, game in ((f"MinAtar-{name}-v1", game) for name, game in GAMES.items())
}  # 5,000,000 frames: kenjyoung/MinAtar@3f078e5 examples/dqn.py
SUITES = {"minatar": list(TASKS)}
PACKAGES = ("MinAtar", "numpy")  # whose versions can change the numbers

FIXED = {"channels", "action_map", "ramping", "random"}  # attributes of a game that are no part of its course
GENERATOR = ("keys", "position", "has_gauss", "gauss")  # what a RandomState is made of


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> MinAtarVectorEnv:
    """Environments [num_runs, num_envs] of one game; all of it is Python, so `num_threads` has no use here."""
    return MinAtarVectorEnv(task, num_runs, num_envs)


class MinAtarVectorEnv(VectorEnv):
    """The package's environments [R, N], stepped one after another."""

    observation_dtype = np.uint8

    def __init__(self, task: Task, num_runs: int, num_envs: int) -> None:
        from minatar import Environment

        self._envs: list[Any] = [Environment(**task.env_kwargs) for _ in range(num_runs * num_envs)]
        self._actions: list[int] = self._envs[0].minimal_action_set()
        shape = tuple(self._envs[0].state_shape())
        super().__init__(num_runs, num_envs, shape, task.max_episode_steps, num_actions=len(self._actions))

    def _seed(self, seeds: list[list[int]]) -> None:
        for env, seed in zip(self._envs, (seed for row in seeds for seed in row), strict=True):
            env.seed(seed % 2**32)
            env.last_action = 0  # as in a new one

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        rows = observations.reshape(len(self._envs), *self.observation_shape)
        for i in indices.tolist():
            try:
                self._envs[i].reset()
                rows[i] = self._envs[i].state()
            except Exception as error:  # whatever it raises is this run's fate, not the others'
                self._fail("reset", i, error)

    def _advance(self, actions: NDArray[Any], out: Step) -> None:
        observations = out.next_observations.reshape(len(self._envs), *self.observation_shape)
        rewards, terminations = out.rewards.reshape(-1), out.terminations.reshape(-1)
        for i, (env, action) in enumerate(zip(self._envs, actions.ravel().tolist(), strict=True)):
            if self._some_parked and self.parked[i // self.num_envs]:
                continue
            try:
                rewards[i], terminations[i] = env.act(self._actions[action])
                observations[i] = env.state()
            except Exception as error:  # as in _restart
                self._fail("step", i, error)

    def _fail(self, what: str, i: int, error: Exception) -> None:
        run, n = divmod(i, self.num_envs)
        self.park(run, f"{what} of environment {n} of run {run} raised {type(error).__name__}: {error}")

    def _save(self) -> dict[str, Any]:
        """Every attribute of the games, whose own `random` is the environment's."""
        games = [vars(env.env) for env in self._envs]
        generators = zip(*(env.random.get_state()[1:] for env in self._envs), strict=True)
        return {
            "games": {name: _together([game[name] for game in games]) for name in sorted(games[0].keys() - FIXED)},
            "last_actions": [env.last_action for env in self._envs],
            "generators": {name: np.array(part) for name, part in zip(GENERATOR, generators, strict=True)},
        }

    def _load(self, state: dict[str, Any]) -> None:
        generators = [state["generators"][name] for name in GENERATOR]
        for i, env in enumerate(self._envs):
            env.seed(0)  # also lets the game draw from the environment's generator
            keys, position, has_gauss, gauss = (part[i] for part in generators)
            env.random.set_state(("MT19937", keys, int(position), int(has_gauss), float(gauss)))
            env.last_action = state["last_actions"][i]
            for name, values in state["games"].items():
                setattr(env.env, name, values[i].copy() if isinstance(values, np.ndarray) else _plain(values[i]))


def _together(values: list[Any]) -> Any:
    """An attribute of all games: maps as one array, anything else as a list."""
    return np.stack(values) if isinstance(values[0], np.ndarray) else _plain(values)


def _plain(value: Any) -> Any:
    """A copy, lists in lists too, with Python's numbers in place of NumPy's."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
