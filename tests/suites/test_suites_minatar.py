"""The MinAtar suite against its package, through Gymnasium; exact state. What all suites share is tested for it with
them: run-axis independence and resume in another process in test_suites_gymnasium.py."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import suites
from suites.vector import environment_seed

TASKS = [task.id for task in suites.find_suite("minatar")]
STEPS = {"MinAtar-Freeway-v1": 2_600}  # so that every game meets the end of an episode; the others: 1,000


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    from minatar.gym import register_envs

    register_envs()


def package_environment(task_id: str) -> Any:
    import gymnasium

    return gymnasium.make(task_id.replace("MinAtar-", "MinAtar/"), disable_env_checker=True)


def assert_equals_package(task_id: str, envs: Any, seeds: list[int], num_steps: int) -> int:
    """Steps both by random actions from a reset on; returns how many episodes ended."""
    twins = {pair: package_environment(task_id) for pair in np.ndindex(envs.num_runs, envs.num_envs)}
    observations = envs.reset(seeds)
    for (run, n), twin in twins.items():
        assert (observations[run, n] == twin.reset(seed=environment_seed(seeds[run], n) % 2**32)[0]).all()
    script, ended = np.random.default_rng(0), 0
    for t in range(num_steps):
        actions = envs.random_actions(script, envs.num_runs, envs.num_envs)
        step = envs.step(actions)
        assert step.observations.dtype == step.next_observations.dtype == np.float32
        for pair, twin in twins.items():
            successor, reward, terminated, truncated, _ = twin.step(int(actions[pair]))
            where = f"step {t}, environment {pair}"
            assert (step.next_observations[pair] == successor).all(), where
            assert step.rewards[pair] == reward, where
            assert step.terminations[pair] == terminated, where
            assert not step.truncations[pair] and not truncated, where
            if terminated:
                ended += 1
                successor = twin.reset()[0]
            assert (step.observations[pair] == successor).all(), where
    return ended


@pytest.mark.parametrize("task_id", TASKS)
def test_matches_the_package(task_id: str) -> None:
    envs = suites.make(task_id, 2, 2)
    for seeds in ([3, 2**40], [0, 1]):  # the second time nothing of the first is left
        ended = assert_equals_package(task_id, envs, seeds, STEPS.get(task_id, 1_000))
        assert ended >= 4 and len(envs.drain_episodes()) == ended


@pytest.mark.parametrize("task_id", TASKS)
def test_spaces_are_the_packages_and_the_limit_is_ours(task_id: str) -> None:
    import gymnasium

    env, ours, task = package_environment(task_id), suites.make(task_id, 1, 1), suites.find_task(task_id)
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    assert ours.num_actions == env.action_space.n
    assert ours.observation_shape == tuple(env.observation_space.shape)
    assert env.spec is not None and env.spec.max_episode_steps is None
    assert task.max_episode_steps == ours.max_episode_steps == 27_000
    game = env.unwrapped.game
    assert game.env_name == task.env_kwargs["env_name"]
    assert game.sticky_action_prob == task.env_kwargs["sticky_action_prob"] == 0.1
    assert getattr(game.env, "ramping", True) is task.env_kwargs["difficulty_ramping"] is True


def test_the_minimal_action_sets() -> None:
    sets = [suites.make(task_id, 1, 1).num_actions for task_id in TASKS]
    assert dict(zip(TASKS, sets, strict=True)) == {
        "MinAtar-Asterix-v1": 5,
        "MinAtar-Breakout-v1": 3,
        "MinAtar-Freeway-v1": 3,
        "MinAtar-Seaquest-v1": 6,
        "MinAtar-SpaceInvaders-v1": 4,
    }


@pytest.mark.parametrize("task_id", TASKS)
def test_observations_fit_into_their_dtype(task_id: str) -> None:
    envs, script = suites.make(task_id, 2, 1), np.random.default_rng(0)
    envs.reset([0, 1])
    for _ in range(300):
        observations = envs.step(envs.random_actions(script, 2, 1)).observations
        assert np.isin(observations, (0, 1)).all() and observations.any((2, 3, 4)).all()
    assert envs.observation_dtype == np.uint8


def test_the_time_limit_truncates() -> None:
    envs: Any = suites.make("MinAtar-Breakout-v1", 1, 1)
    envs.max_episode_steps = 7
    envs.reset([0])
    steps = [envs.step(np.zeros((1, 1), np.int64)) for _ in range(7)]
    assert [bool(step.truncations.item() or step.terminations.item()) for step in steps] == [False] * 6 + [True]


def parts(envs: Any) -> list[Any]:
    """Every attribute of every game, NumPy's numbers as Python's."""

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    found = []
    for env in envs._envs:
        assert env.env.random is env.random  # one generator for the sticky actions and the game
        _, keys, *rest = env.random.get_state()
        attributes = {name: value for name, value in vars(env.env).items() if name != "random"}
        found.append([json.loads(json.dumps(attributes, default=plain)), env.last_action, keys.tolist(), rest])
    return found


def copied(value: Any) -> Any:
    """The state through JSON, its arrays apart."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else json.loads(json.dumps(value))


@pytest.mark.parametrize("task_id", TASKS)
def test_state_holds_every_attribute_and_shares_nothing(task_id: str) -> None:
    envs, script = suites.make(task_id, 2, 2), np.random.default_rng(5)
    envs.reset([0, 1])
    for _ in range(8):
        for _ in range(60):
            envs.step(envs.random_actions(script, 2, 2))
        state = envs.state()
        kept = json.dumps(copied(state), default=np.ndarray.tolist, sort_keys=True)
        twin = suites.make(task_id, 2, 2)
        twin.load_state(state)
        assert parts(twin) == parts(envs)
        envs.step(actions := envs.random_actions(script, 2, 2))  # neither moves the state, nor each other
        assert json.dumps(state, default=np.ndarray.tolist, sort_keys=True) == kept
        twin.step(actions)
        assert parts(twin) == parts(envs)
        assert json.dumps(state, default=np.ndarray.tolist, sort_keys=True) == kept


def test_environment_that_raises_parks_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = suites.make("MinAtar-Asterix-v1", 3, 1)
    twin = suites.make("MinAtar-Asterix-v1", 3, 1)
    envs.reset([0, 1, 2]), twin.reset([0, 1, 2])

    def broken(*args: int) -> None:
        raise IndexError("off the board")

    monkeypatch.setattr(envs._envs[1], "act", broken)
    script = np.random.default_rng(0)
    for _ in range(100):
        actions = envs.random_actions(script, 3, 1)
        ours, theirs = envs.step(actions), twin.step(actions)
        assert all((one[[0, 2]] == other[[0, 2]]).all() for one, other in zip(ours, theirs, strict=True))
    assert envs.errors == {1: "step of environment 0 of run 1 raised IndexError: off the board"}
    monkeypatch.setattr(envs._envs[0], "reset", broken)
    while not envs.parked[0]:
        envs.step(envs.random_actions(script, 3, 1))
    assert envs.errors[0] == "reset of environment 0 of run 0 raised IndexError: off the board"


def test_listing_does_not_import_the_package() -> None:
    program = (
        "import sys, suites; suites.names(); suites.find_task('MinAtar-Breakout-v1');"
        "print([name for name in ('minatar', 'matplotlib', 'gymnasium') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
