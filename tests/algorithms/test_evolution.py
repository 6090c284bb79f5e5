"""Evolution on the weights of policies: who plays when, by a task that tells; CEM by hand, against a literal loop, and
on a function whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import make
from numpy.typing import NDArray
from probes import ActionToReward

import algorithms
from algorithms import cem
from algorithms.common.config import load_config, stack
from suites.vector import Step, VectorEnv

SEEDS = [3, 4, 5]


class Telltale(VectorEnv):
    """Observes nothing; each step pays the action, so a return tells who has played how many steps. Episodes of 1 to 9
    steps; with `tells` the observation is the clock."""

    def __init__(self, num_runs: int, num_envs: int, tells: bool = False) -> None:
        bound = np.full(1, 2, np.float32)
        super().__init__(num_runs, num_envs, (1,), 1000, action_low=-bound, action_high=bound)
        self.left, self.tells = np.zeros((num_runs, num_envs), np.int64), tells
        self.seen: list[np.ndarray] = []

    def _seed(self, seeds: list[list[int]]) -> None:
        self.generators = [np.random.default_rng(seed) for row in seeds for seed in row]

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        for i in indices.tolist():
            place = divmod(i, self.num_envs)
            self.left[place] = self.generators[i].integers(1, 10)
            observations[place] = self.left[place] * self.tells

    def _advance(self, actions: NDArray[Any], out: Step) -> None:
        self.seen.append(self._observations.copy())
        out.rewards[:] = actions[..., 0]
        self.left -= 1
        out.terminations[:] = self.left == 0
        out.next_observations[:] = self.left[..., None] * self.tells


def build(algorithm: str, envs: VectorEnv, runs: list[dict[str, Any]]) -> Any:
    cfg = stack([load_config(algorithm, None, run) for run in runs])
    return algorithms.load(algorithm).Agent(cfg, envs, SEEDS[: len(runs)])


def members_of(agent: Any, run: int) -> np.ndarray:
    """The weights [P, D] of a run's generation."""
    count = agent.num_members
    centres = np.repeat(vector_of(agent, run)[None], count, 0)
    return agent._members(np.full(count, run), np.arange(count), centres)


def vector_of(agent: Any, run: int) -> np.ndarray:
    """The centre [D] of a run."""
    return np.concatenate([view[run].detach().numpy().ravel() for view in agent.learned.views.values()])


# ------------------------------------------------------------------------------------------------------- the population
SMALL: dict[str, dict[str, Any]] = {
    "cem": {"num_members": 6, "hidden_sizes": []},
}


@pytest.mark.parametrize("algorithm", SMALL)
@pytest.mark.parametrize("num_envs", [1, 2, 6, 8])
def test_every_member_plays_one_whole_episode(algorithm: str, num_envs: int) -> None:
    """Returns are of the members' own actions and of whole episodes; every step is in `env_steps`; the centre plays
    only where no member is left, which with one environment never happens."""
    envs = Telltale(2, num_envs)
    agent = build(algorithm, envs, [SMALL[algorithm] | {"num_envs": num_envs, "normalize_observations": False}] * 2)
    ended: list[tuple[int, np.ndarray, np.ndarray]] = []
    end = agent._end_generation

    def recorded(run: int) -> dict[str, float]:
        biases = members_of(agent, run)[:, -1].astype(np.float64)
        ended.append((run, agent.returns[run].copy(), biases))
        return end(run)

    agent._end_generation = recorded
    agent.iterate(), agent.iterate()
    assert envs.env_steps == 2 * agent.steps_per_iteration == 200 * num_envs
    episodes = envs.drain_episodes()
    for run in range(2):
        own = [(returns, biases) for who, returns, biases in ended if who == run]
        assert len(own) == agent.generation[run] >= 3
        told = [(e.episode_return, e.episode_length) for e in episodes if e.run == run]
        for returns, biases in own:
            lengths = returns / biases
            assert np.allclose(lengths, lengths.round(), rtol=1e-4) and lengths.min() > 0.5 and lengths.max() < 9.5
            for value, length in zip(returns, lengths.round(), strict=True):
                assert any(abs(value - r) < 1e-4 and length == n for r, n in told)
        assert len({round(float(b), 6) for _, biases in own for b in biases}) == len(own) * agent.num_members
        assert len(told) >= len(own) * agent.num_members
        if num_envs == 1:
            assert len(told) == len(own) * agent.num_members + agent.finished[run]


def test_statistics_are_of_all_states_until_the_generation_began() -> None:
    envs = Telltale(2, 2, tells=True)
    agent = build("cem", envs, [SMALL["cem"] | {"num_envs": 2}] * 2)
    end, told = agent._end_generation, {}

    def recorded(run: int) -> dict[str, float]:
        metrics = end(run)
        told[run] = np.concatenate([seen[run] for seen in envs.seen]), agent.parameters_of(run)
        return metrics

    agent._end_generation = recorded
    assert agent.parameters_of(0)["observations.mean"] == 0.0  # nothing is known before the first
    agent.iterate()
    for run, (seen, parameters) in told.items():
        assert parameters["observations.mean"] == pytest.approx(seen.mean(0), rel=1e-4)
        assert parameters["observations.variance"] == pytest.approx(seen.var(0), rel=1e-4)
        now = agent.parameters_of(run)
        assert all(np.array_equal(now[name], parameters[name]) for name in parameters)


# ------------------------------------------------------------------------------------------------------------------ CEM
def test_elite_by_hand() -> None:
    returns = np.array([3.0, 9.0, -1.0, 9.0, 5.0, 0.0, 1.0, 2.0, 2.5, 8.0])
    assert cem.elite_of(returns, 0.3).tolist() == [1, 3, 9]
    assert cem.elite_of(returns, 0.1).tolist() == [1]  # of equal ones the one that was drawn first
    assert cem.elite_of(returns, 0.01).tolist() == [1]  # never none
    assert sorted(cem.elite_of(returns, 1.0).tolist()) == list(range(10))


def test_noise_by_hand() -> None:
    """The paper's max(5 - t / 10, 0), a constant, and none."""
    for t, falling in ((0, 5.0), (10, 4.0), (49, 0.1), (50, 0.0), (80, 0.0)):
        found = cem.extra_variance(np.array([math.sqrt(5), 2.0, 0.0]), np.array([50.0, math.inf, 50.0]), np.full(3, t))
        assert found == pytest.approx([falling, 4.0, 0.0], abs=1e-12)


def play(agent: Any, score: Callable[[Any], float]) -> None:
    """A generation of every run by a function of the weights, in place of episodes."""
    for run in range(agent.num_runs):
        agent.returns[run] = [score(weights) for weights in members_of(agent, run).astype(np.float64)]
        agent._end_generation(run)


def test_cem_against_a_literal_loop() -> None:
    """Three runs with settings of their own, one weight and one number at a time."""
    runs = [
        {"elite_share": 0.5, "initial_std": 2.0},
        {"elite_share": 0.25, "extra_std": 0.5, "extra_generations": 3.0},
        {"elite_share": 0.1, "extra_std": 0.3, "extra_generations": math.inf},
    ]
    agent = build("cem", ActionToReward(3, 1, False), [run | {"num_members": 12, "hidden_sizes": [2]} for run in runs])
    size = agent.noise.shape[-1]

    def score(weights: Any) -> float:
        return -sum((w - k / 3) ** 2 for k, w in enumerate(weights))

    means = [[0.0] * size for _ in runs]
    stds = [[run.get("initial_std", 1.0)] * size for run in runs]
    for t in range(5):
        noise = agent.noise.astype(np.float64)
        play(agent, score)
        for i, run in enumerate(runs):
            extra = run.get("extra_std", 0.01)
            left = 1 - t / run.get("extra_generations", 150.0)
            extra_variance = extra * extra * left if left > 0 else 0.0
            people = [
                [means[i][d] + math.sqrt(stds[i][d] ** 2 + extra_variance) * noise[i, p, d] for d in range(size)]
                for p in range(12)
            ]
            best = sorted(people, key=score, reverse=True)[: max(1, round(12 * run["elite_share"]))]
            for d in range(size):
                means[i][d] = sum(person[d] for person in best) / len(best)
                stds[i][d] = math.sqrt(sum((person[d] - means[i][d]) ** 2 for person in best) / len(best))
            assert vector_of(agent, i) == pytest.approx(means[i], abs=1e-4)
            assert np.sqrt(agent.variance[i]) == pytest.approx(stds[i], abs=1e-4)


def test_cem_finds_the_optimum_of_a_quadratic() -> None:
    """And what noise is for: without it an elite of few shrinks before it is there."""
    settings = {"num_members": 40, "elite_share": 0.1, "hidden_sizes": [4]}
    noises = [{"extra_std": 0.0}, {"extra_std": 1.0, "extra_generations": 60.0}]
    agent = build("cem", ActionToReward(2, 1, False), [settings | noise for noise in noises])
    target = np.linspace(-4, 4, agent.noise.shape[-1])
    for _ in range(120):
        play(agent, lambda weights: -np.square(weights - target).sum())
    without, with_noise = (np.abs(vector_of(agent, run) - target).max() for run in range(2))
    assert with_noise < 0.25 and without > 1.0
    assert np.sqrt(agent.variance).max(1) == pytest.approx([0.0, 0.0], abs=0.02)


def test_cem_presets() -> None:
    """The paper's policy is linear; a generation of the default is 200 members, 40 of them elite."""
    agent = make("cem", "CartPole-v1", [load_settings("paper")], [0])
    assert set(agent.parameters.shapes) == {"actor.weight0", "actor.bias0"} and agent.num_members == 100
    assert len(cem.elite_of(np.arange(200.0), float(load_config("cem").elite_share))) == 40


def load_settings(preset: str) -> dict[str, Any]:
    return algorithms.common.config.presets("cem")[preset]
