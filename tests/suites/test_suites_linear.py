"""The tasks of actor-critics with linear features against a slow literal form of each, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import suites
from suites.linear import PuddleWorld
from suites.vector import environment_seed

SEEDS = [3, 11]


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def mountain_car(state: list[float], action: list[float], noise: list[float]) -> tuple[list[float], float, bool]:
    position, velocity = state
    velocity = clip(velocity + 0.001 * clip(action[0], -1, 1) - 0.0025 * math.cos(3 * position), -0.07, 0.07)
    position += velocity
    if position < -1.2:
        velocity = 0.0
    position = clip(position, -1.2, 0.6)
    return [position, velocity], -1.0, position >= 0.6


def pendulum(state: list[float], action: list[float], noise: list[float]) -> tuple[list[float], float, bool]:
    angle, velocity = state
    acceleration = -0.01 * velocity + 9.8 * math.sin(angle) + clip(action[0], -2, 2)
    velocity = clip(velocity + acceleration, -25 * math.pi, 25 * math.pi)
    angle += 0.01 * velocity
    if angle >= math.pi:
        angle -= 2 * math.pi
    if angle < -math.pi:
        angle += 2 * math.pi
    return [angle, velocity], math.cos(angle), False


def puddle_world(state: list[float], action: list[float], noise: list[float]) -> tuple[list[float], float, bool]:
    limit = float(np.float32(0.05))  # actions are float32
    x, y = (clip(s + clip(a, -limit, limit) + 0.01 * z, 0, 1) for s, a, z in zip(state, action, noise, strict=True))
    # The first puddle lies along y = 0.75, the second along x = 0.45; beyond their ends they are round.
    first = math.hypot(x - clip(x, 0.1, 0.45), y - 0.75)
    second = math.hypot(x - 0.45, y - clip(y, 0.4, 0.8))
    return [x, y], -1.0 - 400.0 * max(0.1 - first, 0.1 - second, 0.0), x + y >= 1.9


LITERAL: dict[str, Callable[..., tuple[list[float], float, bool]]] = {
    "MountainCarRLPark-v0": mountain_car, "PendulumRLPark-v0": pendulum, "PuddleWorld-v0": puddle_world,
}  # fmt: skip


def seek(task_id: str, observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions that reach the goals, with noise that leaves the box."""
    if task_id == "PuddleWorld-v0":
        wanted: Any = 0.03 * np.ones_like(observations)
    else:
        wanted = np.sign(observations[..., 1:])
    return (wanted + 0.5 * np.abs(wanted).max() * rng.standard_normal(wanted.shape)).astype(np.float32)


@pytest.mark.parametrize("task_id", LITERAL)
def test_steps_are_those_of_the_literal_form(task_id: str) -> None:
    envs: Any = suites.make(task_id, 2, 2)
    observations = envs.reset(SEEDS)
    assert (observations >= envs.observation_low.astype(np.float32)).all()
    rng, pairs = np.random.default_rng(0), list(np.ndindex(2, 2))
    states = {pair: envs._state[:, *pair].tolist() for pair in pairs}
    noises = {}
    for run, n in pairs:
        (other,) = np.random.SeedSequence(environment_seed(SEEDS[run], n)).spawn(1)
        noises[run, n] = np.random.default_rng(other)
    ended = 0
    for _ in range(400):
        actions = seek(task_id, observations, rng)
        step = envs.step(actions)
        for pair in pairs:
            noise = noises[pair].standard_normal(2).tolist()
            states[pair], reward, terminated = LITERAL[task_id](states[pair], actions[pair].tolist(), noise)
            assert step.next_observations[pair] == pytest.approx(states[pair], abs=1e-5)
            assert step.rewards[pair] == pytest.approx(reward, abs=1e-7)
            assert step.terminations[pair] == terminated and not step.truncations[pair]
            if terminated:
                ended += 1
                states[pair] = envs._state[:, *pair].tolist()
        observations = step.observations
    assert (ended > 4) == (task_id != "PendulumRLPark-v0")


def test_puddles_by_hand() -> None:
    envs = suites.make("PuddleWorld-v0", 1, 1)
    assert isinstance(envs, PuddleWorld)
    places = [(0.1, 0.75), (0.3, 0.7), (0.05, 0.75), (0.45, 0.35), (0.0, 0.75), (0.45, 0.78), (0.9, 0.9), (0.51, 0.88)]
    depth = [0.1, 0.05, 0.05, 0.05, 0.0, 0.1, 0.0, 0.0]  # the last is just outside the round end: hypot(.06, .08) = .1
    assert envs.depth(np.array(places).T) == pytest.approx(depth, abs=1e-12)


def test_puddle_world_begins_anywhere_but_in_the_goal() -> None:
    envs = suites.make("PuddleWorld-v0", 100, 10)
    envs.max_episode_steps = 1  # every step begins another episode
    starts = np.concatenate([envs.reset(range(100))] + [envs.step(np.zeros((100, 10, 2), np.float32)).observations
                                                         for _ in range(70)]).reshape(-1, 2)  # fmt: skip
    assert starts.sum(1).max() < 1.9
    assert starts.mean(0) == pytest.approx([0.5, 0.5], abs=0.005)
    assert np.histogram2d(*starts.T, bins=4, range=[[0, 1]] * 2)[0].ravel()[:-1] / len(starts) == pytest.approx(
        1 / 16, rel=0.05
    )


def test_the_noise_of_both_axes_is_independent() -> None:
    envs = suites.make("PuddleWorld-v0", 50, 4)
    before, moves = envs.reset(range(50)), []
    for _ in range(100):
        step = envs.step(np.zeros((50, 4, 2), np.float32))
        inside = ((before > 0.05) & (before < 0.95)).all(-1)
        moves.append((step.next_observations - before)[inside])
        before = step.observations
    covariance = np.cov(np.concatenate(moves).T)
    assert np.diag(covariance) == pytest.approx(1e-4, rel=0.05) and abs(covariance[0, 1]) < 3e-6
