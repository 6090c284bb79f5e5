"""Tasks and suites: what there is, what is said about what there is not, and how light it is to ask."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import suites

MUJOCO = (
    "HalfCheetah Hopper Walker2d Ant Humanoid HumanoidStandup Swimmer Reacher Pusher InvertedPendulum "
    "InvertedDoublePendulum"
)


def test_names_and_members() -> None:
    assert {"classic", "linear", "mujoco", "mujoco-ppo7", "tabular"} <= set(suites.names())
    assert {task.id for task in suites.find_suite("mujoco")} == {f"{name}-v5" for name in MUJOCO.split()}
    assert len(suites.find_suite("mujoco-ppo7")) == 7
    assert [task.id for task in suites.find_suite("classic")] == [
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "Pendulum-v1",
    ]


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_loads(name: str) -> None:
    for task in suites.find_suite(name):
        assert suites.find_task(task.id) is task
        assert task.steps > 0


@pytest.mark.parametrize("task_id", [task.id for name in ("classic", "mujoco") for task in suites.find_suite(name)])
def test_time_limit_and_spaces_are_gymnasiums(task_id: str) -> None:
    import gymnasium

    env, ours, task = gymnasium.make(task_id), suites.make(task_id, 1, 1), suites.find_task(task_id)
    assert env.spec is not None
    assert task.max_episode_steps == ours.max_episode_steps == env.spec.max_episode_steps
    assert ours.observation_shape == env.observation_space.shape
    if task.kind == "classic":
        for bound, theirs in zip(("low", "high"), (env.observation_space.low, env.observation_space.high), strict=True):
            assert getattr(ours, f"observation_{bound}").astype(np.float32).tolist() == theirs.tolist()
    if ours.num_actions is not None:
        assert isinstance(env.action_space, gymnasium.spaces.Discrete)
        assert ours.num_actions == env.action_space.n
        assert ours.action_shape is None
    else:
        assert isinstance(env.action_space, gymnasium.spaces.Box)
        assert ours.action_shape == env.action_space.shape
        assert np.array_equal(ours.action_low, env.action_space.low)
        assert np.array_equal(ours.action_high, env.action_space.high)


def test_unknown_task_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"task 'halfcheetah-v4' is not known: did you mean HalfCheetah-v5"):
        suites.find_task("halfcheetah-v4")
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        suites.make("CartPole-v7", 1, 1)
    with pytest.raises(ValueError, match="choose one of Acrobot-v1, "):
        suites.find_task("xyzzy")


def test_unknown_suite_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="suite 'mujocoo' is not known: did you mean mujoco"):
        suites.find_suite("mujocoo")


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-3, 1, 1)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"num_\w+ is -?\d: it must be at least 1"):
        suites.make("CartPole-v1", *sizes)


def test_listing_imports_nothing_heavy() -> None:
    program = (
        "import sys, suites; suites.names(); suites.find_suite('mujoco'); suites.find_task('Taxi-v4');"
        "print([name for name in ('gymnasium', 'mujoco', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
