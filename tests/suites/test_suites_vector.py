"""The bookkeeping of `VectorEnv`, on a counting environment whose every number is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from suites.vector import Step, VectorEnv, environment_seed

END, RAISE, JAM = 3, 4, 5  # actions: terminate, raise in this step, raise in the next reset


class Counter(VectorEnv):
    """Observes 100 * (resets so far) + (steps of the episode); the reward is the action."""

    def __init__(self, num_runs: int, num_envs: int, max_episode_steps: int = 4) -> None:
        super().__init__(num_runs, num_envs, (1,), max_episode_steps, num_actions=6)
        self.count = np.zeros((num_runs, num_envs), np.int64)
        self.jammed = np.zeros((num_runs, num_envs), bool)
        self.seeds: list[list[int]] = []

    def _seed(self, seeds: list[list[int]]) -> None:
        self.seeds = seeds
        self.count[:], self.jammed[:] = 0, False

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        for i in indices.tolist():
            run, n = divmod(i, self.num_envs)
            if self.jammed[run, n]:
                self.park(run, f"reset of environment {n} of run {run} jammed")
            else:
                self.count[run, n] = self.count[run, n] // 100 * 100 + 100
                observations[run, n] = self.count[run, n]

    def _advance(self, actions: NDArray[Any], out: Step) -> None:
        for run, n in np.ndindex(actions.shape):
            if self.parked[run]:
                continue
            if actions[run, n] == RAISE:
                self.park(run, f"step of environment {n} of run {run} raised")
                continue
            self.jammed[run, n] |= actions[run, n] == JAM
            self.count[run, n] += 1
            out.next_observations[run, n], out.rewards[run, n] = self.count[run, n], actions[run, n]
            out.terminations[run, n] = actions[run, n] == END

    def _save(self) -> dict[str, Any]:
        return {"count": self.count.copy(), "jammed": self.jammed.copy()}

    def _load(self, state: dict[str, Any]) -> None:
        self.count[:], self.jammed[:] = state["count"], state["jammed"]


class Box(Counter):
    """The same with continuous actions in [-1, 2]; remembers what it was given."""

    def __init__(self, num_runs: int, num_envs: int) -> None:
        VectorEnv.__init__(
            self,
            num_runs,
            num_envs,
            (1,),
            4,
            action_low=np.array([-1, -1], np.float32),
            action_high=np.array([2, 2], np.float32),
        )
        self.count = np.zeros((num_runs, num_envs), np.int64)
        self.jammed = np.zeros((num_runs, num_envs), bool)
        self.given: NDArray[Any] = np.zeros(0)

    def _advance(self, actions: NDArray[Any], out: Step) -> None:
        self.given = actions
        super()._advance(np.zeros(actions.shape[:2]), out)


def started(num_runs: int = 2, num_envs: int = 2, **kwargs: Any) -> Counter:
    envs = Counter(num_runs, num_envs, **kwargs)
    envs.reset(range(num_runs))
    return envs


def test_reset_gives_first_observations() -> None:
    observations = Counter(2, 3).reset([7, 8])
    assert observations.dtype == np.float32
    assert observations.tolist() == [[[100]] * 3] * 2


def test_seeds_belong_to_run_and_index() -> None:
    envs = Counter(2, 2)
    envs.reset([7, 8])
    assert envs.seeds == [[environment_seed(seed, n) for n in range(2)] for seed in (7, 8)]
    assert len({seed for row in envs.seeds for seed in row}) == 4


def test_time_limit_truncates_and_resets_in_the_same_step() -> None:
    envs = started(1, 1)
    for count in (1, 2, 3):
        step = envs.step(np.array([[1]]))
        assert not step.truncations.any()
        assert step.observations.item() == step.next_observations.item() == 100 + count
    step = envs.step(np.array([[2]]))
    assert step.truncations.all()
    assert not step.terminations.any()
    assert step.next_observations.item() == 104
    assert step.observations.item() == 200
    assert envs.drain_episodes() == [(0, 4, 5.0, 4)]
    assert envs.step(np.array([[1]])).observations.item() == 201


def test_termination_is_kept_apart_from_truncation() -> None:
    envs = started(1, 2)
    step = envs.step(np.array([[END, 0]]))
    assert step.terminations.tolist() == [[True, False]]
    assert not step.truncations.any()
    assert step.next_observations[0, :, 0].tolist() == [101, 101]
    assert step.observations[0, :, 0].tolist() == [200, 101]


def test_both_in_the_last_step_as_in_gymnasium() -> None:
    envs = started(1, 1, max_episode_steps=1)
    step = envs.step(np.array([[END]]))
    assert step.terminations.all()
    assert step.truncations.all()


def test_episode_statistics_in_order() -> None:
    envs = started()
    envs.step(np.array([[1, 2], [0, END]]))
    envs.step(np.array([[END, 1], [END, 1]]))
    assert envs.env_steps == 4
    assert envs.drain_episodes() == [(1, 2, 3.0, 1), (0, 4, 4.0, 2), (1, 4, 3.0, 2)]
    assert envs.drain_episodes() == []


def test_arrays_are_fresh() -> None:
    envs = started()
    first = envs.reset([0, 1])
    step = envs.step(np.zeros((2, 2), np.int64))
    kept = [array.copy() for array in step]
    step.observations[:], first[:] = -1, -1
    second = envs.step(np.zeros((2, 2), np.int64))
    assert second.next_observations[0, 0, 0] == 102
    assert all((a == b).all() for a, b in zip(kept[1:], step[1:], strict=True))
    second.observations[:] = -1
    envs.park(0)
    assert envs.step(np.zeros((2, 2), np.int64)).observations[0, 0, 0] == 102


def test_parked_run_stands_still() -> None:
    envs = started()
    envs.step(np.ones((2, 2), np.int64))
    envs.park(0)
    assert envs.parked.tolist() == [True, False]
    for _ in range(9):
        step = envs.step(np.ones((2, 2), np.int64))
        assert step.observations[0, :, 0].tolist() == step.next_observations[0, :, 0].tolist() == [101, 101]
        assert not step.rewards[0].any()
        assert not (step.terminations[0] | step.truncations[0]).any()
    assert envs.errors == {}
    assert {episode.run for episode in envs.drain_episodes()} == {1}


def test_error_in_step_undoes_the_run_and_spares_the_others() -> None:
    envs, twin = started(), started()
    actions = np.array([[1, RAISE], [2, END]])
    step, other = envs.step(actions), twin.step(np.array([[1, 1], [2, END]]))
    assert envs.errors == {0: "step of environment 1 of run 0 raised"}
    assert envs.parked.tolist() == [True, False]
    assert step.observations[0, :, 0].tolist() == [100, 100]
    assert step.rewards[0].tolist() == [0, 0]
    assert all((a[1] == b[1]).all() for a, b in zip(step, other, strict=True))
    assert envs.drain_episodes() == [(1, 2, 3.0, 1)]


def test_error_in_reset_parks_after_the_episode_counted() -> None:
    envs = started(2, 1)
    envs.step(np.array([[JAM], [0]]))
    step = envs.step(np.array([[END], [0]]))
    assert step.terminations.tolist() == [[True], [False]]
    assert envs.parked.tolist() == [True, False]
    assert "jammed" in envs.errors[0]
    assert envs.drain_episodes() == [(0, 2, 8.0, 2)]


@pytest.mark.parametrize("action", [-1, 6, 2**62])
def test_action_outside_the_set_parks_its_run(action: int) -> None:
    envs = started()
    step = envs.step(np.array([[1, 1], [action, 1]]))
    assert envs.parked.tolist() == [False, True]
    assert "must lie in 0..5" in envs.errors[1]
    assert step.rewards.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_action_parks_its_run(value: float) -> None:
    envs = Box(3, 2)
    envs.reset(range(3))
    actions = np.zeros((3, 2, 2), np.float32)
    actions[1, 1, 0] = value
    for _ in range(2):  # once parked, its actions do not matter
        step = envs.step(actions)
        assert envs.parked.tolist() == [False, True, False]
        assert "they must be finite; the run is parked" in envs.errors[1]
        assert np.isfinite(envs.given).all()
    assert step.observations[:, 0, 0].tolist() == [102, 100, 102]


def test_continuous_actions_reach_the_task_as_they_are() -> None:
    envs = Box(1, 1)
    envs.reset([0])
    envs.step(np.array([[[-5.0, 7.0]]]))
    assert envs.given.tolist() == [[[-5, 7]]]
    assert envs.given.dtype == np.float32


def test_reset_unparks() -> None:
    envs = started()
    envs.step(np.array([[RAISE, 0], [0, 0]]))
    envs.reset([0, 1])
    assert not envs.parked.any()
    assert envs.errors == {}
    assert envs.env_steps == 0
    assert envs.step(np.ones((2, 2), np.int64)).rewards.all()


@pytest.mark.parametrize(
    "actions",
    [np.zeros(4, int), np.zeros((2, 2)), np.zeros((2, 2, 1), int), np.zeros((2, 1), int), np.zeros((2, 2), bool)],
)
def test_misshapen_actions_are_refused(actions: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"this task takes integers \[2, 2\]"):
        started().step(actions)


def test_misuse_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"call reset\(seeds\)"):
        Counter(1, 1).step(np.zeros((1, 1), np.int64))
    for seeds in ([1], [1, -1], []):
        with pytest.raises(ValueError, match="one non-negative int for each of 2 runs"):
            Counter(2, 1).reset(seeds)
    with pytest.raises(ValueError, match="make the environments with the sizes they had"):
        Counter(2, 1).load_state(started(1, 2).state())


def plain(value: Any) -> Any:
    """The same nested state through npy bytes and JSON: no pickle, no object arrays, nothing else."""
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf"
        return value.copy()
    return json.loads(json.dumps(value))


def test_state_restores_everything() -> None:
    envs, script = started(3, 2), np.random.default_rng(0)
    envs.step(np.array([[RAISE, 0], [END, 0], [0, 0]]))
    for _ in range(3):
        envs.step(script.integers(0, 4, (3, 2)))
    twin = Counter(3, 2)
    twin.load_state(plain(envs.state()))
    assert twin.errors == envs.errors
    assert twin.parked.tolist() == [True, False, False]
    for _ in range(20):
        actions = script.integers(0, 4, (3, 2))
        assert all((a == b).all() for a, b in zip(envs.step(actions), twin.step(actions), strict=True))
    assert twin.env_steps == envs.env_steps
    assert twin.drain_episodes() == envs.drain_episodes() != []


def test_state_is_a_snapshot() -> None:
    envs = started()
    state = envs.state()
    envs.step(np.ones((2, 2), np.int64))
    assert state["observations"].max() == 100
    assert not state["elapsed"].any()
