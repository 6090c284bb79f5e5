"""The tabular suite: Gymnasium's tasks bit for bit, the models against what the environments do, known values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import suites
from suites import tabular
from suites.vector import VectorEnv, environment_seed

TASKS = [task.id for task in suites.find_suite("tabular")]
OURS = ["GridWorld4x3-v0", "RandomWalk19-v0"]
GYMNASIUM = [task_id for task_id in TASKS if task_id not in OURS]


def gymnasium_twin(task_id: str) -> Any:
    import gymnasium

    return gymnasium.make(tabular.GYMNASIUM_IDS.get(task_id, task_id), **suites.find_task(task_id).env_kwargs)


def seen(task_id: str, index: NDArray[np.float32]) -> Any:
    """Gymnasium's observation for our index [1]."""
    if task_id != "Blackjack-v1":
        return int(index[0])
    rest, ace = divmod(int(index[0]), 3)
    return (*divmod(rest, 11), min(ace, 1))


# -- against Gymnasium


@pytest.mark.parametrize("task_id", GYMNASIUM)
def test_matches_gymnasium(task_id: str) -> None:
    """1,500 steps: more than are drawn at a time, time limits and resets included."""
    envs, seeds, steps, ended = suites.make(task_id, 3, 2), [3, 11, 2**40], 1_500, 0
    twins = {pair: gymnasium_twin(task_id) for pair in np.ndindex(3, 2)}
    observations = envs.reset(seeds)
    for (run, n), twin in twins.items():
        assert seen(task_id, observations[run, n]) == twin.reset(seed=environment_seed(seeds[run], n))[0]
    actions = envs.random_actions(np.random.default_rng(0), steps, 3, 2)
    if task_id == "CliffWalking-v1":  # random ones hardly ever reach the goal: every 20 steps, the shortest way
        way = [0] + [1] * 11 + [2]
        for t in range(7, steps - 20, 20):
            actions[t : t + 20, 0] = np.array([2, 2, 2, *[3] * 4, *way])[:, None]  # where it lies in the way's row
    for t in range(steps):
        step = envs.step(actions[t])
        for pair, twin in twins.items():
            successor, reward, terminated, truncated, _ = twin.step(int(actions[t][pair]))
            where = f"step {t}, environment {pair}"
            assert seen(task_id, step.next_observations[pair]) == successor, where
            assert step.rewards[pair] == reward, where
            assert (step.terminations[pair], step.truncations[pair]) == (terminated, truncated), where
            if terminated or truncated:
                ended += 1
                successor = twin.reset()[0]
            assert seen(task_id, step.observations[pair]) == successor, where
    assert ended >= 3
    assert len(envs.drain_episodes()) == ended


@pytest.mark.parametrize("task_id", GYMNASIUM)
def test_time_limit_and_spaces_are_gymnasiums(task_id: str) -> None:
    twin, envs = gymnasium_twin(task_id), suites.make(task_id, 1, 1)
    assert envs.max_episode_steps == (twin.spec.max_episode_steps or tabular.UNLIMITED)
    assert twin.spec.kwargs == suites.find_task(task_id).env_kwargs
    assert envs.num_actions == twin.action_space.n
    if task_id != "Blackjack-v1":
        assert envs.num_states == twin.observation_space.n


def test_a_rejected_word_is_passed_over() -> None:
    """Lemire's rule refuses 1 of 5e8 words for 13 cards, too few to meet: one is put in the way."""
    envs: Any = suites.make("Blackjack-v1", 1, 3)
    envs.reset([0])
    draws = envs._draws
    words = draws._block[:, :9].copy()
    draws._next[:] = draws._first
    draws._block[1, 0] = 0
    cards = envs._below(np.arange(3), 13)
    assert cards.tolist() == [int(words[i, i % 2]) * 13 >> 32 for i in range(3)]
    assert (draws._next - draws._first).tolist() == [1, 2, 1]


# -- the environment


@pytest.mark.parametrize("task_id", TASKS)
def test_what_a_table_needs(task_id: str) -> None:
    envs = suites.make(task_id, 2, 3)
    observations = envs.reset([0, 1])
    assert envs.observation_shape == (1,)
    assert observations.dtype == np.float32
    assert envs.num_states is not None
    for actions in envs.random_actions(np.random.default_rng(0), 300, 2, 3):
        step = envs.step(actions)
        assert ((step.next_observations >= 0) & (step.next_observations < envs.num_states)).all()
    assert suites.make("CartPole-v1", 1, 1).num_states is suites.make("CartPole-v1", 1, 1).model is None


@pytest.mark.parametrize("task_id", TASKS)
def test_state_is_what_was_drawn_and_no_more(task_id: str) -> None:
    """Numbers in one environment's block do not show: a state from a group is a state from a run alone."""
    company, alone = suites.make(task_id, 3, 1), suites.make(task_id, 1, 1)
    company.reset([4, 5, 6]), alone.reset([5])
    for actions in company.random_actions(np.random.default_rng(0), 700, 3, 1):
        company.step(actions), alone.step(actions[1:2])
    one, other = alone.state()["environments"], company.state()["environments"]
    for name, array in one.items():
        theirs = other[name][:, 1:2] if name == "dealer" else other[name][1:2]
        assert np.array_equal(array, theirs), name


# -- the models


@pytest.mark.parametrize("task_id", TASKS)
def test_models_are_distributions(task_id: str) -> None:
    model = tabular.model(task_id)
    assert model.probabilities.sum(-1) == pytest.approx(1, abs=1e-14)
    assert model.start.sum() == pytest.approx(1, abs=1e-14)
    assert (model.probabilities >= 0).all()
    assert ((model.next_states >= 0) & (model.next_states < len(model.start))).all()
    padding = model.probabilities == 0
    assert not model.rewards[padding].any() and not model.terminations[padding].any()
    assert suites.make(task_id, 1, 1).model is model
    with pytest.raises(ValueError, match="read-only"):
        model.rewards[:] = 0


def visits(envs: VectorEnv, steps: int) -> dict[tuple[int, int], dict[tuple[int, float, bool], int]]:
    """How often what followed on each (state, action) under random actions."""
    counts: dict[tuple[int, int], dict[tuple[int, float, bool], int]] = {}
    states = envs.reset(range(envs.num_runs))[..., 0].astype(int)
    for actions in envs.random_actions(np.random.default_rng(1), steps, envs.num_runs, envs.num_envs):
        step = envs.step(actions)
        after = step.next_observations[..., 0].astype(int)
        rows = (states, actions, after, step.rewards, step.terminations)
        for s, a, to, reward, end in zip(*(array.ravel().tolist() for array in rows), strict=True):
            row = counts.setdefault((s, a), {})
            row[to, reward, end] = row.get((to, reward, end), 0) + 1
        states = step.observations[..., 0].astype(int)
    return counts


@pytest.mark.parametrize("task_id", TASKS)
def test_the_environment_does_what_the_model_says(task_id: str) -> None:
    """Nothing happens that has no probability, and frequencies stay within 5 standard deviations."""
    model, envs, compared = tabular.model(task_id), suites.make(task_id, 50, 4), 0
    start = np.bincount(np.stack([envs.reset(range(50 * k, 50 * k + 50)) for k in range(20)]).ravel().astype(int))
    probabilities = model.start[: len(start)]
    assert (np.abs(start - 4000 * probabilities) <= 5 * np.sqrt(4000 * probabilities * (1 - probabilities)) + 1).all()
    assert (start[probabilities == 0] == 0).all()
    for (s, a), row in visits(envs, 700).items():
        table: dict[tuple[int, float, bool], float] = {}
        columns = (array[s, a].tolist() for array in model[:4])
        for p, to, reward, end in zip(*columns, strict=True):
            table[to, reward, end] = table.get((to, reward, end), 0.0) + p
        total = sum(row.values())
        assert all(table.get(key, 0.0) > 0 for key in row), f"{s}, {a}: {row} and not {table}"
        for key, p in table.items():
            compared += 1
            assert abs(row.get(key, 0) - total * p) <= 5 * np.sqrt(total * p * max(0.0, 1 - p)) + 1, f"{s}, {a}, {key}"
    assert compared >= 19


def test_grid_world_by_hand() -> None:
    model = tabular.model("GridWorld4x3-v0")
    up, right, down, left = range(4)

    def outcomes(s: int, a: int) -> list[tuple[float, int, float, bool]]:
        columns = (array[s, a].tolist() for array in model[:4])
        return sorted(row for row in zip(*columns, strict=True) if row[0] > 0)

    assert np.flatnonzero(model.start).tolist() == [8]  # bottom left
    assert outcomes(8, up) == [(0.1, 8, -0.03, False), (0.1, 9, -0.03, False), (0.8, 4, -0.03, False)]
    assert outcomes(2, right) == [(0.1, 2, -0.03, False), (0.1, 6, -0.03, False), (0.8, 3, 0.97, True)]
    assert outcomes(6, left) == [(0.1, 2, -0.03, False), (0.1, 10, -0.03, False), (0.8, 6, -0.03, False)]  # the wall
    assert outcomes(11, up) == [(0.1, 10, -0.03, False), (0.1, 11, -0.03, False), (0.8, 7, -1.03, True)]
    assert outcomes(9, down) == [(0.1, 8, -0.03, False), (0.1, 10, -0.03, False), (0.8, 9, -0.03, False)]


def solve(model: tabular.Model, policy: NDArray[np.int64], gamma: float = 1.0) -> NDArray[np.float64]:
    """V of a policy [S], from (I - gamma P) V = r; where it does not end, gamma must be below 1."""
    states = np.arange(len(policy))
    p, to, rewards, ends = (array[states, policy] for array in model[:4])  # [S, K]
    matrix = np.eye(len(policy))
    np.subtract.at(matrix, (states[:, None], to), gamma * p * ~ends)
    return np.linalg.solve(matrix, (p * rewards).sum(1))


def test_random_walk_values() -> None:
    values = solve(tabular.model("RandomWalk19-v0"), np.zeros(21, np.int64))
    assert values[1:20] == pytest.approx((np.arange(1, 20) - 10) / 10)


def test_blackjack_values() -> None:
    """Sutton and Barto's policy of example 5.1, stick on 20 and 21, and the best one of figure 5.2."""
    model = tabular.model("Blackjack-v1")
    hands = {
        (total, card, ace): int(tabular.blackjack_state(total, card, ace))
        for total in range(4, 22) for card in range(1, 11) for ace in (0, 1, 2)
    }  # fmt: skip
    policy = np.ones(len(model.start), np.int64)
    policy[[s for (total, _, _), s in hands.items() if total >= 20]] = 0
    values = solve(model, policy)
    assert values[hands[21, 5, 1]] == pytest.approx(0.89, abs=0.01)  # 1 - P(the dealer gets 21)
    assert values[hands[21, 5, 2]] == pytest.approx(1.0)
    assert values[hands[13, 2, 1]] == pytest.approx(-0.2774, abs=0.0015)  # example 5.4: about -0.27726
    for _ in range(60):  # improve until stable
        after = solve(model, policy)[model.next_states]
        q_values = (model.probabilities * (model.rewards + ~model.terminations * after)).sum(-1)
        policy = q_values.argmax(1)

    def sticks_from(card: int, ace: int) -> int:
        return min(total for total in range(12, 22) if policy[hands[total, card, ace]] == 0)

    assert [sticks_from(card, 0) for card in range(1, 11)] == [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]
    assert [sticks_from(card, 1) for card in range(1, 11)] == [19, 18, 18, 18, 18, 18, 18, 18, 19, 19]
