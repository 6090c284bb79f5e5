"""Value and policy iteration against printed tables, each other, a linear solve, and loops straight from the book."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
import resume
from cases import make
from numpy.typing import NDArray
from probes import ConstantValue

import algorithms
import suites
from algorithms.common.config import load_config, stack
from suites.tabular import Model, model, tabulate

PLANNERS = ["value_iteration", "policy_iteration"]
TASKS = [task.id for task in suites.find_suite("tabular")]
GAMMAS = (1.0, 0.99, 0.5)
Array = NDArray[Any]


def solved(planner: str, task: str, gammas: tuple[float, ...] = GAMMAS, most: int = 3_000, **settings: Any) -> Any:
    """An agent with one run per gamma that has converged in all of them."""
    runs = [{"gamma": gamma, "theta": 1e-12, **settings} for gamma in gammas]
    agent = make(planner, task, runs, range(len(gammas)))
    for _ in range(most):
        if agent.converged.all():
            return agent
        agent.iterate()
    raise AssertionError(f"{planner} on {task}: {agent.sweeps} sweeps, {agent.change}")


def greedy(agent: Any) -> Array:
    """Its policy [R, S]."""
    every = np.arange(agent.num_states, dtype=np.float32)[None, :, None]
    return agent.act(np.repeat(every, agent.num_runs, 0))


def published(algorithm: str, environment: str) -> float:
    """A number of the published table, here derived by exact dynamic programming."""
    with (resume.ROOT / "results" / "published" / "classic_published.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["algorithm"], row["env"]) == (algorithm, environment)]
    assert len(rows) == 1
    return float(rows[0]["score"])


def value_of_policy(model: Model, policy: Array, gamma: float) -> Array:
    """V [S] of a policy [S] from (I - gamma P) V = r."""
    states = np.arange(len(policy))
    p, to, rewards, ends = (array[states, policy] for array in model[:4])
    matrix = np.eye(len(policy))
    np.subtract.at(matrix, (states[:, None], to), gamma * p * ~ends)
    return np.linalg.solve(matrix, (p * rewards).sum(1))


def within_limit(model: Model, limit: int, policy: Array | None = None) -> float:
    """Expected return from the start within `limit` steps, of a policy [S], or the best that sees the time."""
    values = np.zeros(len(model.start))
    for _ in range(limit):
        after = np.where(model.terminations, 0.0, values[model.next_states])
        q_values = (model.probabilities * (model.rewards + after)).sum(-1)
        values = q_values.max(1) if policy is None else q_values[np.arange(len(policy)), policy]
    return float(model.start @ values)


# ---- known numbers


@pytest.mark.parametrize("planner", PLANNERS)
def test_grid_world_of_the_textbook(planner: str) -> None:
    """The value table of Russell and Norvig's grid at step reward -0.03 and gamma 1, to rounding."""
    (values,) = solved(planner, "GridWorld4x3-v0", (1.0,)).state_values
    table = np.round(values.reshape(3, 4), 2)
    assert table[0, :3].tolist() == [0.85, 0.89, 0.93]
    assert [table[1, 0], table[1, 2]] == [0.81, 0.68]
    assert table[2].tolist() == [0.77, 0.73, 0.70, 0.47]
    assert table[0, 3] == table[1, 1] == table[1, 3] == 0  # the ends are worth nothing more, the wall is nowhere


@pytest.mark.parametrize("planner", PLANNERS)
def test_cliff(planner: str) -> None:
    agent = solved(planner, "CliffWalking-v1", (1.0,))
    assert agent.state_values[0, 36] == published("optimal policy", "CliffWalking") == -13
    agent.envs.drain_episodes()
    for _ in range(60):
        agent.iterate()
    assert {episode.episode_return for episode in agent.envs.drain_episodes()[1:]} == {-13.0}


@pytest.mark.parametrize("planner", PLANNERS)
def test_taxi(planner: str) -> None:
    agent = solved(planner, "Taxi-v4", (1.0,))
    assert agent.envs.model.start @ agent.state_values[0] == pytest.approx(published("optimal policy", "Taxi"))


@pytest.mark.parametrize("planner", PLANNERS)
def test_frozen_lakes(planner: str) -> None:
    """Success probabilities without a limit, and within the tasks' limits for the greedy policies."""
    for task, name, limit, gammas in (
        ("FrozenLake4x4-v1", "FrozenLake", 100, (1.0, 0.99)),
        ("FrozenLake8x8-v1", "FrozenLake8x8", 200, (0.999, 0.99)),
    ):
        agent = solved(planner, task, gammas)
        assert agent.envs.max_episode_steps == limit
        values, policies = agent.state_values[:, 0], greedy(agent)
        if name == "FrozenLake":
            assert values[0] == pytest.approx(published("optimal policy, no step limit", name), abs=1e-6)
            assert values[0] == pytest.approx(14 / 17)
        assert values[1] == pytest.approx({100: 0.542026, 200: 0.414640}[limit], abs=1e-6)
        best = published(f"optimal time-dependent policy, {limit}-step limit", name)
        assert within_limit(agent.envs.model, limit) == pytest.approx(best, abs=1e-5)
        for gamma, policy in zip(gammas, policies, strict=True):
            if gamma < 1:
                row = f"greedy policy of V* (gamma={gamma}), {limit}-step limit"
                found = within_limit(agent.envs.model, limit, policy)
                assert found == pytest.approx(published(row, name), abs=1e-5)
                assert found < best


# ---- against other ways


@pytest.mark.parametrize("task", TASKS)
def test_both_agree(task: str) -> None:
    one, other = (solved(planner, task) for planner in PLANNERS)
    assert one.state_values == pytest.approx(other.state_values, abs=1e-8)
    assert one.q_values == pytest.approx(other.q_values, abs=1e-8)
    assert one.values(one.observations) == pytest.approx(other.values(one.observations), abs=1e-8)
    shortfall = one.q_values.max(-1) - np.take_along_axis(one.q_values, greedy(other)[..., None], -1)[..., 0]
    assert shortfall.max() < 1e-8  # where they differ in the action, it is a tie


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("task", TASKS)
def test_values_are_those_of_the_policy(planner: str, task: str) -> None:
    agent = solved(planner, task, (0.99, 0.9))
    for gamma, values, policy in zip((0.99, 0.9), agent.state_values, greedy(agent), strict=True):
        assert values == pytest.approx(value_of_policy(agent.envs.model, policy, gamma), abs=1e-8)


def expected(model: Model, s: int, a: int, values: Array, gamma: float) -> float:
    """sum_{s', r} p(s', r | s, a) [ r + gamma V(s') ]."""
    total = 0.0
    for p, to, reward, end in zip(*(array[s, a] for array in model[:4]), strict=True):
        total += p * (reward + gamma * (0.0 if end else values[to]))
    return total


@pytest.mark.parametrize("task", ["GridWorld4x3-v0", "FrozenLake4x4-v1"])
def test_value_iteration_as_in_the_book(task: str) -> None:
    """Sweep by sweep, with an array for the old values."""
    agent, table = make("value_iteration", task, [{"gamma": gamma} for gamma in GAMMAS], [0, 1, 2]), model(task)
    values = np.zeros((3, agent.num_states))
    for sweep in range(12):
        metrics = agent.iterate()
        for run, gamma in enumerate(GAMMAS):
            old, delta = values[run].copy(), 0.0
            for s in range(agent.num_states):
                values[run, s] = max(expected(table, s, a, old, gamma) for a in range(agent.num_actions))
                delta = max(delta, abs(values[run, s] - old[s]))
            assert agent.state_values[run] == pytest.approx(values[run], abs=1e-14)
            assert metrics["change"][run] == pytest.approx(delta, abs=1e-14)
        assert metrics["sweeps"].tolist() == [sweep + 1.0] * 3


@pytest.mark.parametrize("task", ["GridWorld4x3-v0", "FrozenLake4x4-v1"])
def test_policy_iteration_as_in_the_book(task: str) -> None:
    """Policy by policy, evaluated by loops until the changes are small."""
    agent, table, gamma = make("policy_iteration", task, [{"gamma": 0.9}], [0]), model(task), 0.9
    values, policy = np.zeros(agent.num_states), [0] * agent.num_states
    for _ in range(10):
        agent.iterate()
        delta = 1.0
        while delta >= 1e-10:
            swept = [expected(table, s, policy[s], values, gamma) for s in range(agent.num_states)]
            delta, values = float(np.abs(swept - values).max()), np.array(swept)
        assert agent.state_values[0] == pytest.approx(values, abs=1e-9)
        stable = True
        for s in range(agent.num_states):
            q_values = [expected(table, s, a, values, gamma) for a in range(agent.num_actions)]
            best = [a for a in range(agent.num_actions) if q_values[a] >= max(q_values) - 1e-9]
            if policy[s] not in best:
                policy[s], stable = best[0], False
        assert agent.policy[0].tolist() == policy
        assert agent.converged[0] == stable
        if stable:
            return
    raise AssertionError("not stable")


# ---- where it ends


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_converged_run_stands_still_and_the_others_go_on(planner: str) -> None:
    agent = make(planner, "FrozenLake4x4-v1", [{"gamma": 0.0}, {"gamma": 1.0, "theta": 1e-12}], [0, 1])
    for _ in range(2 if planner == "value_iteration" else 3):
        agent.iterate()
    assert agent.converged.tolist() == [True, False]
    frozen, sweeps = {name: table.copy() for name, table in agent.parameters_of(0).items()}, agent.sweeps.copy()
    steps = agent.envs.env_steps
    metrics = agent.iterate()
    assert all(np.array_equal(table, agent.parameters_of(0)[name]) for name, table in frozen.items())
    assert metrics["sweeps"][0] == sweeps[0]
    assert metrics["sweeps"][1] > sweeps[1]
    assert metrics["converged"].tolist() == [1.0, 0.0]
    assert agent.envs.env_steps == steps + 1  # and both take their steps


def test_an_endless_policy_is_evaluated_so_far_and_improved() -> None:
    """Up everywhere never ends on the cliff: its values fall by 1 a sweep, and what is found there is enough."""
    agent = make("policy_iteration", "CliffWalking-v1", [{"max_sweeps": 50}], [0])
    metrics = agent.iterate()
    assert metrics["sweeps"].tolist() == [50.0]
    assert metrics["converged"].tolist() == [0.0]
    assert agent.state_values[0, 36] == -50
    agent = solved("policy_iteration", "CliffWalking-v1", (1.0,), max_sweeps=50)
    assert agent.state_values[0, 36] == -13


def test_equal_actions_do_not_alternate() -> None:
    """Two ways of equal worth, told apart by rounding alone: the present one stays, and the policy is stable."""
    third = 1 / 3
    outcomes = {
        (0, 0): [(third, 1, 0.1, False), (third, 1, 0.2, False), (third, 1, 0.3, False)],
        (0, 1): [(third, 1, 0.3, False), (third, 1, 0.2, False), (third, 1, 0.1, False)],
        (1, 0): [(1.0, 0, 0.7, False)],
        (1, 1): [(1.0, 0, 0.7, False)],
    }
    table = tabulate(2, 2, outcomes, np.array([1.0, 0.0]))
    envs = ConstantValue(1, 1, True, True)
    envs.num_states, envs.model = 2, table
    agent = algorithms.load("policy_iteration").Agent(
        stack([load_config("policy_iteration", None, {"gamma": 0.9})]), envs, [0]
    )
    agent.iterate()
    assert agent.converged.all()
    assert agent.policy.tolist() == [[0, 0]]


def test_what_they_refuse() -> None:
    with pytest.raises(ValueError, match="states are not numbered"):
        make("value_iteration", "CartPole-v1", [{}], [0])
    envs = suites.make("Taxi-v4", 1, 1)
    envs.model = None
    with pytest.raises(ValueError, match="no model to plan with"):
        algorithms.load("value_iteration").Agent(stack([load_config("value_iteration")]), envs, [0])
    for settings, message in (
        ({"gamma": 1.5}, r"gamma is 1.5; it must lie in \[0, 1\]"),
        ({"theta": 0.0}, "theta is 0.0; it must be positive"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0; it must not be negative"),
        ({"max_sweeps": 0}, "max_sweeps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config("policy_iteration", None, settings)
