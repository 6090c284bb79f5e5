"""An evaluation by hand: what it returns, and what it tells of an agent that estimates values."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from algorithms.common.replay import Replay
from bench import drive
from suites.vector import Step, VectorEnv


class Countdown(VectorEnv):
    """Rewards 1, 2, 3, ...; an episode lasts as long as its run's number + 2 says."""

    def __init__(self, num_runs: int, num_envs: int):
        super().__init__(num_runs, num_envs, (1,), 100, num_actions=2)
        self.clock = np.zeros((num_runs, num_envs))

    def _seed(self, seeds: list[list[int]]) -> None:
        self.clock[:] = 0

    def _restart(self, indices: Any, observations: Any) -> None:
        self.clock.reshape(-1)[indices] = 0
        observations.reshape(-1)[indices] = 0

    def _advance(self, actions: Any, out: Step) -> None:
        self.clock += 1
        out.next_observations[:] = self.clock[..., None]
        out.rewards[:] = self.clock
        out.terminations[:] = self.clock >= 2 + np.arange(self.num_runs)[:, None]


def agent(gamma: Any, **more: Any) -> Any:
    return SimpleNamespace(
        cfg=SimpleNamespace(gamma=gamma), act=lambda observations, noise: np.zeros((2, 3), np.int64), **more
    )


@pytest.mark.parametrize("gamma", [np.array([0.5, 0.5]), 0.5])
def test_evaluation_by_hand(gamma: Any) -> None:
    def values(observations: np.ndarray) -> np.ndarray:
        assert (observations == 0).all()  # the first ones
        return np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], np.float32)

    found = drive.evaluate(agent(gamma, values=values), Countdown(2, 3), [0, 1], 1)
    assert found.returns.tolist() == [[3.0] * 3, [6.0] * 3]
    assert found.lengths.tolist() == [[2] * 3, [3] * 3]
    assert found.metrics["estimated_value"].tolist() == [3.0, 5.0]
    assert found.metrics["discounted_return"].tolist() == [1 + 0.5 * 2, 1 + 0.5 * 2 + 0.25 * 3]


def test_gamma_is_each_runs_own() -> None:
    found = drive.evaluate(agent(np.array([0.0, 1.0]), values=lambda o: o[..., 0]), Countdown(2, 3), [0, 1], 1)
    assert found.metrics["discounted_return"].tolist() == [1.0, 6.0]


def test_an_agent_without_values_tells_nothing() -> None:
    assert drive.evaluate(agent(0.5), Countdown(2, 3), [0, 1], 1).metrics == {}


def test_an_agent_with_a_memory_carries_it_from_step_to_step() -> None:
    """From an empty one at every evaluation; an agent without one is asked as ever."""
    seen: list[int] = []

    def act_on(observations: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert carry.shape == (2, 3) and (carry == observations[..., 0])[1].all()  # its episodes are the longest
        seen.append(int(carry[0, 0]))
        return np.zeros((2, 3), np.int64), carry + 1

    remembers = SimpleNamespace(initial_carry=lambda num_envs: np.zeros((2, num_envs)), act_on=act_on)
    for count in (1, 2):
        assert drive.evaluate(remembers, Countdown(2, 3), [0, 1], count).lengths.tolist() == [[2] * 3, [3] * 3]
    assert seen == [0, 1, 2] * 2


def test_what_an_algorithm_tells_is_in_the_workers_log(capsys: pytest.CaptureFixture[str]) -> None:
    told = logging.getLogger("algorithms")
    before = told.handlers[:], told.level
    try:
        drive.listen()
        Replay(2, 1000, 1, 4, 1, np.ones(2))
    finally:
        told.handlers, told.level = before
    assert "2 runs x 1,000 transitions x 64 bytes = 0.1 MB" in capsys.readouterr().err
