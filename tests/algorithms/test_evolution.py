"""Evolution on the weights of policies: who plays when, by a task that tells; CEM, ARS and ES by hand, against literal
loops, and on functions whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from numpy.typing import NDArray
from probes import ActionToReward

import algorithms
from algorithms import ars, cem, es
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
    "ars": {"num_directions": 3, "num_top": 2, "bias": True},
    "es": {"num_directions": 3, "hidden_sizes": []},
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


@pytest.mark.parametrize("algorithm", SMALL)
def test_statistics_are_of_all_states_until_the_generation_began(algorithm: str) -> None:
    envs = Telltale(2, 2, tells=True)
    agent = build(algorithm, envs, [SMALL[algorithm] | {"num_envs": 2}] * 2)
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


# ------------------------------------------------------------------------------------------------------------------ ARS
def test_ars_direction_by_hand() -> None:
    """Of three directions the two with the best single return, 5 and 4; 5, 0, 3 and 4 have the deviation sqrt(3.5)."""
    pairs, directions = np.array([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]]), np.eye(3)
    sigma = math.sqrt(3.5)
    assert ars.direction_of(pairs, directions, 2) == pytest.approx([0.0, 5 / (2 * sigma), -1 / (2 * sigma)])
    assert ars.direction_of(pairs, directions, 1) == pytest.approx([0.0, 5 / 2.5, 0.0])
    assert ars.direction_of(np.full((3, 2), 7.0), directions, 3).tolist() == [0.0] * 3  # of nothing, nothing


def test_ars_against_a_literal_loop() -> None:
    """Algorithm 2 one direction and one weight at a time, from the noise the agent drew."""
    runs = [{}, {"learning_rate": 0.1, "direction_std": 0.2}]
    shared = {"num_directions": 7, "num_top": 3, "bias": True}
    agent = build("ars", ActionToReward(2, 1, False), [shared | run for run in runs])

    def score(weights: Any) -> float:
        return math.sin(3 * weights[0]) - (weights[1] - 1) ** 2

    centres = [[0.0, 0.0], [0.0, 0.0]]
    for _ in range(6):
        noise = agent.noise.astype(np.float64)
        play(agent, score)
        for i, run in enumerate(runs):
            alpha, nu = run.get("learning_rate", 0.02), run.get("direction_std", 0.03)
            played = []
            for k in range(7):
                plus = score([centres[i][d] + nu * noise[i, k, d] for d in range(2)])
                minus = score([centres[i][d] - nu * noise[i, k, d] for d in range(2)])
                played.append((max(plus, minus), plus, minus, k))
            best = sorted(played, reverse=True)[:3]
            returns = [r for _, plus, minus, _ in best for r in (plus, minus)]
            mean = sum(returns) / 6
            sigma = math.sqrt(sum((r - mean) ** 2 for r in returns) / 6)
            for d in range(2):
                change = sum((plus - minus) * noise[i, k, d] for _, plus, minus, k in best)
                centres[i][d] += alpha / (3 * sigma) * change
            assert vector_of(agent, i) == pytest.approx(centres[i], abs=1e-5)


def test_ars_takes_the_survival_bonus_off() -> None:
    """From what members are judged by, not from what is reported."""
    envs = Telltale(2, 1)
    agent = build("ars", envs, [SMALL["ars"], SMALL["ars"] | {"survival_bonus": 2.0}])
    end, seen = agent._end_generation, []

    def recorded(run: int) -> dict[str, float]:
        seen.append((run, agent.returns[run].copy(), members_of(agent, run)[:, -1]))
        return end(run)

    agent._end_generation = recorded
    agent.iterate()
    for run, returns, biases in seen:
        lengths = returns / (biases - 2.0 * run)
        assert np.allclose(lengths, lengths.round(), atol=1e-3) and lengths.min() > 0.5
    assert {run for run, _, _ in seen} == {0, 1}
    assert all(abs(e.episode_return) <= 0.3 * e.episode_length for e in envs.drain_episodes())


def test_ars_without_a_bias_is_a_matrix() -> None:
    agent = make("ars", "Pendulum-v1", [{"num_directions": 2, "num_top": 2, "learning_rate": 1.0}], [0])
    while agent.generation[0] < 1:
        agent.iterate()
    weights = agent.parameters_of(0)
    assert weights["actor.weight0"].all() and "actor.bias0" not in weights
    assert not agent.parameters["actor.bias0"].any()
    assert agent.noise.shape == (1, 2, 3)


# ------------------------------------------------------------------------------------------------------------------- ES
def test_centred_ranks_by_hand() -> None:
    assert es.centred_ranks(np.array([[3.0, 1.0], [2.0, 99.0]])) == pytest.approx(
        np.array([[1 / 6, -1 / 2], [-1 / 6, 1 / 2]])
    )
    assert es.centred_ranks(np.array([[5.0, 5.0], [5.0, 7.0]])) == pytest.approx(
        np.array([[-1 / 6, -1 / 6], [-1 / 6, 1 / 2]])
    )
    rng = np.random.default_rng(0)
    returns = rng.standard_normal((9, 2))
    for monotone in (np.exp, lambda r: 3 * r - 7, lambda r: r**3):  # only the order counts
        assert np.array_equal(es.centred_ranks(monotone(returns)), es.centred_ranks(returns))


PLAIN: dict[str, dict[str, Any]] = {"ars": {}, "es": {"l2_coef": 0.0}}


@pytest.mark.parametrize("algorithm", PLAIN)
def test_mirrored_sampling_cancels_a_constant(algorithm: str) -> None:
    """The members of a pair are mirror images; a reward that is the same for both moves nothing."""
    agent = build(algorithm, ActionToReward(1, 1, False), [SMALL[algorithm] | PLAIN[algorithm]])
    before = vector_of(agent, 0)
    members = members_of(agent, 0)
    assert np.allclose((members[::2] + members[1::2]) / 2, before, atol=1e-7)
    assert (members[::2] - members[1::2]) / 2 == pytest.approx(agent.cfg.direction_std[0] * agent.noise[0], abs=1e-6)
    noise = agent.noise.copy()
    agent.returns[0] = np.repeat([4.0, -1.0, 0.5], 2)
    agent._end_generation(0)
    assert np.array_equal(vector_of(agent, 0), before) and not np.array_equal(agent.noise, noise)


def test_es_against_a_literal_loop() -> None:
    """Ranks by sorting, the sum over pairs one at a time, torch's Adam."""
    runs: list[dict[str, float]] = [{}, {"learning_rate": 0.1, "direction_std": 0.3, "l2_coef": 0.1}]
    agent = build("es", ActionToReward(2, 1, False), [run | {"num_directions": 6, "hidden_sizes": [3]} for run in runs])
    size = agent.noise.shape[-1]
    weights = [torch.from_numpy(vector_of(agent, i)).double().requires_grad_() for i in range(2)]
    adams = [torch.optim.Adam([w], lr=run.get("learning_rate", 0.01)) for w, run in zip(weights, runs, strict=True)]

    def score(w: Any) -> float:
        return float(-np.square(np.asarray(w) - 0.3).sum())

    for _ in range(5):
        noise = agent.noise.astype(np.float64)
        play(agent, score)
        for i, run in enumerate(runs):
            centre, sigma = weights[i].detach().numpy(), run.get("direction_std", 0.02)
            returns = [score(centre + sign * sigma * noise[i, k]) for k in range(6) for sign in (1, -1)]
            ranks = [sorted(returns).index(r) / 11 - 0.5 for r in returns]
            g = np.zeros(size)
            for k in range(6):
                g += (ranks[2 * k] - ranks[2 * k + 1]) * noise[i, k] / 12
            weights[i].grad = torch.from_numpy(-g + run.get("l2_coef", 0.005) * centre)
            adams[i].step()
            assert vector_of(agent, i) == pytest.approx(weights[i].detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("algorithm", PLAIN)
def test_it_finds_the_optimum_of_a_quadratic(algorithm: str) -> None:
    settings: dict[str, Any] = SMALL[algorithm] | {"num_directions": 10, "direction_std": 0.05}
    agent = build(algorithm, ActionToReward(1, 1, False), [settings | PLAIN[algorithm]])
    target = np.array([0.7, -0.4])
    for _ in range(150):
        play(agent, lambda weights: -np.square(weights - target).sum())
    assert vector_of(agent, 0) == pytest.approx(target, abs=0.1)
