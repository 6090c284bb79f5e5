"""Every task against Gymnasium itself, bit for bit; run-axis independence; exact resume in another process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import suites
from suites.vector import VectorEnv, environment_seed

ROOT = Path(__file__).parents[2]
TASKS = suites.task_ids()
CLASSIC = [task.id for task in suites.find_suite("classic")]
BATCHED = [*CLASSIC, *(task.id for name in ("linear", "tabular") for task in suites.find_suite(name))]  # quick steps
GYMNASIUM = [*CLASSIC, *(task.id for task in suites.find_suite("mujoco"))]  # tables: test_suites_tabular.py
STEPS = 1_010  # so that tasks without termination meet their limit of 1,000


def script(envs: VectorEnv, num_steps: int, seed: int = 0) -> NDArray[Any]:
    """Actions [T, R, N, ...]: random, for a while feeble, which keeps walkers and pendulums up longer, and for a while
    outside the box."""
    actions = envs.random_actions(np.random.default_rng(seed), num_steps, envs.num_runs, envs.num_envs)
    if envs.num_actions is None:
        actions[num_steps // 2 : num_steps // 2 + 200] *= np.float32(0.05)
        actions[num_steps // 4 : num_steps // 4 + 100] *= np.float32(3)
        actions[-100:] *= np.float32(1.5)
    return actions


def assert_equals_gymnasium(task_id: str, envs: VectorEnv, seeds: list[int], choose: Any) -> int:
    """Steps both by `choose(step, observations)`; returns how many episodes ended."""
    import gymnasium

    pairs = list(np.ndindex(envs.num_runs, envs.num_envs))
    twins = {pair: gymnasium.make(task_id) for pair in pairs}
    observations = envs.reset(seeds)
    for (run, n), twin in twins.items():
        first = twin.reset(seed=environment_seed(seeds[run], n))[0]
        assert (observations[run, n] == first.astype(np.float32)).all()
    ended = 0
    for t in range(STEPS):
        actions = choose(t, observations)
        step = envs.step(actions)
        observations = step.observations
        for pair, twin in twins.items():
            action = actions[pair] if envs.action_shape else int(actions[pair])
            successor, reward, terminated, truncated, _ = twin.step(action)
            where = f"step {t}, environment {pair}"
            assert (step.next_observations[pair] == successor.astype(np.float32)).all(), where
            assert step.rewards[pair] == reward, where
            assert step.terminations[pair] == terminated, where
            assert step.truncations[pair] == truncated, where
            if terminated or truncated:
                ended += 1
                successor = twin.reset()[0]
            assert (observations[pair] == successor.astype(np.float32)).all(), where
    return ended


@pytest.mark.parametrize("task_id", GYMNASIUM)
def test_matches_gymnasium(task_id: str) -> None:
    envs = suites.make(task_id, 3, 1 + (task_id in CLASSIC))
    actions = script(envs, STEPS)
    ended = assert_equals_gymnasium(task_id, envs, [3, 11, 2**40], lambda t, _: actions[t])
    assert ended >= 3
    assert len(envs.drain_episodes()) == ended


@pytest.mark.parametrize("task_id", ["MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"])
def test_matches_gymnasium_at_the_goal(task_id: str) -> None:
    """Random actions hardly ever reach it: push along the velocity."""
    envs = suites.make(task_id, 2, 2)

    def push(t: int, observations: NDArray[np.float32]) -> NDArray[Any]:
        sign = np.where(observations[..., -1] < 0, -1, 1)
        return sign[..., None].astype(np.float32) if envs.action_shape else sign + 1

    assert_equals_gymnasium(task_id, envs, [0, 1], push)
    assert any(episode.episode_length < envs.max_episode_steps for episode in envs.drain_episodes())


def trace(envs: VectorEnv, actions: NDArray[Any], runs: list[int]) -> list[NDArray[Any]]:
    return [np.array([array[runs] for array in arrays]) for arrays in zip(*map(envs.step, actions), strict=True)]


@pytest.mark.parametrize("task_id", TASKS)
def test_alone_equals_in_company(task_id: str) -> None:
    """A run's numbers do not depend on R, on its position or on the others, bitwise."""
    num_steps = 200 if task_id in BATCHED else 60
    alone = suites.make(task_id, 1, 2)
    first = alone.reset([5])
    actions = script(alone, num_steps)
    reference = trace(alone, actions, [0])
    for num_runs, position in ((2, 0), (3, 2), (7, 3), (17, 16)) if task_id in BATCHED else ((4, 2),):
        envs = suites.make(task_id, num_runs, 2)
        seeds = list(range(100, 100 + num_runs))
        seeds[position] = 5
        assert (envs.reset(seeds)[position] == first[0]).all()
        company = script(envs, num_steps, seed=1)
        company[:, position] = actions[:, 0]
        envs.park((position + 1) % num_runs)
        for ours, theirs in zip(trace(envs, company, [position]), reference, strict=True):
            assert (ours == theirs).all()


@pytest.mark.parametrize("task_id", ["HalfCheetah-v5", "Ant-v5"])
def test_threads_change_nothing(task_id: str) -> None:
    single, several = suites.make(task_id, 3, 1), suites.make(task_id, 3, 1, num_threads=2)
    assert (single.reset([0, 1, 2]) == several.reset([0, 1, 2])).all()
    actions = script(single, 50)
    for ours, theirs in zip(trace(single, actions, [0, 1, 2]), trace(several, actions, [0, 1, 2]), strict=True):
        assert (ours == theirs).all()
    several.close()


@pytest.mark.parametrize("task_id", ["HalfCheetah-v5", "Ant-v5"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_environment_that_raises_parks_its_run(task_id: str, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = suites.make(task_id, 3, 1, num_threads)
    twin = suites.make(task_id, 3, 1)
    envs.reset([0, 1, 2])
    twin.reset([0, 1, 2])
    broken, mujoco = envs._envs[1], envs._mujoco

    def mj_step(model: Any, data: Any, num_steps: int) -> None:
        if data is broken.data:
            raise RuntimeError("out of joint")
        mujoco.mj_step(model, data, num_steps)

    def step(action: Any) -> None:
        raise RuntimeError("out of joint")

    monkeypatch.setattr(envs, "_mujoco", SimpleNamespace(mj_step=mj_step))
    monkeypatch.setattr(broken, "step", step)
    actions = script(twin, 20)
    for ours, theirs in zip(trace(envs, actions, [0, 2]), trace(twin, actions, [0, 2]), strict=True):
        assert (ours == theirs).all()
    assert envs.parked.tolist() == [False, True, False]
    assert envs.errors == {1: "step of environment 0 of run 1 raised RuntimeError: out of joint"}


def test_reset_that_raises_parks_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = suites.make("Reacher-v5", 2, 1)
    envs.reset([0, 1])

    def reset() -> None:
        raise ArithmeticError("no ground")

    monkeypatch.setattr(envs._envs[0], "reset", reset)
    trace(envs, script(envs, 120), [1])
    assert envs.errors == {0: "reset of environment 0 of run 0 raised ArithmeticError: no ground"}
    assert [episode.run for episode in envs.drain_episodes()] == [0, 1, 1]


def test_diverging_physics_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo resets a simulation whose numbers explode and goes on, as in Gymnasium; its log stays unwritten."""
    monkeypatch.chdir(tmp_path)
    envs: Any = suites.make("HalfCheetah-v5", 1, 1)
    envs.reset([0])
    envs._envs[0].data.qvel[:] = 1e12
    assert np.isfinite(envs.step(np.zeros((1, 1, 6), np.float32)).next_observations).all()
    assert not list(tmp_path.iterdir())


# -- exact resume in another process


def digest_onward(envs: VectorEnv, task_id: str) -> str:
    """Hash of all that 600 steps more return."""
    digest = hashlib.sha256()
    for actions in script(envs, 600, seed=2):
        for array in envs.step(actions):
            digest.update(array.tobytes())
    digest.update(repr(envs.drain_episodes()).encode())
    digest.update(repr((envs.env_steps, envs.parked.tolist(), envs.errors)).encode())
    return digest.hexdigest()


def save(path: Path, state: dict[str, Any]) -> None:
    """Arrays as npz, the rest as JSON."""
    arrays: dict[str, NDArray[Any]] = {}

    def split(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: split(part) for key, part in value.items()}
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = value
            return {"array": str(len(arrays) - 1)}
        return value

    path.with_suffix(".json").write_text(json.dumps(split(state)))
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)


def load(path: Path) -> Any:
    with np.load(path.with_suffix(".npz")) as arrays:
        return json.loads(
            path.with_suffix(".json").read_text(),
            object_hook=lambda value: arrays[value["array"]] if value.keys() == {"array"} else value,
        )


@pytest.mark.parametrize("task_id", TASKS)
def test_resumes_exactly_in_another_process(task_id: str, tmp_path: Path) -> None:
    envs = suites.make(task_id, 3, 1 + (task_id in BATCHED))
    envs.reset([1, 2, 3])
    for t, actions in enumerate(script(envs, 137)):
        if t == 100:
            envs.park(1, "parked by the test")
        envs.step(actions)
    save(tmp_path / "state", envs.state())
    program = f"import {__name__} as here; print(here.resumed({task_id!r}, {str(tmp_path / 'state')!r}))"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == digest_onward(envs, task_id)


def resumed(task_id: str, path: str) -> str:
    envs = suites.make(task_id, 3, 1 + (task_id in BATCHED))
    envs.reset([7, 8, 9])  # what was there before does not shine through
    envs.step(script(envs, 1)[0])
    envs.load_state(load(Path(path)))
    return digest_onward(envs, task_id)
