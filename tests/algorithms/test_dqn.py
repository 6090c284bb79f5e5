"""DQN: losses by hand, the update against slow literal loops, the periods, and what a group's runs may differ in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import advance, assert_same, make, outcome, small, train
from probes import ValueFromObservation

from algorithms import dqn
from algorithms.common.config import load_config, stack
from algorithms.common.replay import Transitions
from algorithms.common.runtime import flushed_denormals
from algorithms.common.streams import Streams

inf = float("inf")
T = torch.tensor


def test_td_targets_by_hand() -> None:
    rewards, values = T([[1.0, 1.0, -2.0], [0.0, 0.0, 0.0]]), T([[10.0, 10.0, 4.0], [8.0, 8.0, 8.0]])
    found = dqn.td_targets(rewards, T([[0.9, 0.0, 0.9], [0.5, 0.0, 0.5]]), values)
    assert torch.allclose(found, T([[10.0, 1.0, 1.6], [4.0, 0.0, 4.0]]))


def test_greedy_values_by_hand() -> None:
    q_values = T([[[1.0, -4.0], [3.0, -5.0], [2.0, -6.0]]])  # [R, A, B]: three actions, two samples
    assert dqn.greedy_values(q_values).tolist() == [[3.0, -4.0]]


def test_huber_by_hand() -> None:
    errors = T([[0.0, 0.5, -1.0, 3.0, -3.0]] * 3)
    clip = T([[1.0], [2.0], [inf]])
    expected = T([[0, 0.125, 0.5, 2.5, 2.5], [0, 0.125, 0.5, 4.0, 4.0], [0, 0.125, 0.5, 4.5, 4.5]])
    assert torch.allclose(dqn.huber(errors, clip), expected)
    slopes = T([[0, 0.5, -1, 1, -1], [0, 0.5, -1, 2, -2], [0, 0.5, -1, 3, -3]])
    assert torch.equal(dqn.huber_slope(errors, clip), slopes)
    assert torch.allclose(
        dqn.huber(errors[:1], clip[:1]), torch.nn.functional.huber_loss(errors[:1], 0 * errors[:1], "none")
    )


def test_huber_slope_is_hubers_derivative() -> None:
    errors = (4 * torch.randn(3, 200, dtype=torch.float64)).requires_grad_()
    clip = T([[1.0], [2.5], [inf]], dtype=torch.float64)
    slope = torch.autograd.grad(dqn.huber(errors, clip).sum(), errors)[0]
    assert torch.allclose(slope, dqn.huber_slope(errors.detach(), clip), atol=1e-12)


# --------------------------------------------------------------------------------------------------------- the update
def agent_of(*runs: dict[str, Any], task: str = "CartPole-v1") -> Any:
    return make("dqn", task, [small("dqn", **run) for run in runs], range(1000, 1000 + len(runs)))


def random_batch(agent: Any, size: int, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    shape = (agent.num_runs, size)
    observations, successors = rng.standard_normal((2, *shape, *agent.envs.observation_shape), np.float32)
    actions = rng.integers(agent.num_actions, size=(*shape, 1)).astype(np.float32)
    rewards, terminations = rng.standard_normal(shape, np.float32), rng.random(shape) < 0.3
    discounts = np.where(terminations, 0, agent.cfg.gamma[:, None]).astype(np.float32)
    return Transitions(*(torch.from_numpy(x) for x in (observations, successors, actions, 3 * rewards, discounts)))


def slow_loss(agent: Any, batch: Transitions, run: int, weights: dict[str, Any], gamma: float, clip: float) -> Any:
    """Algorithm 1 for one run, transition by transition, in float64."""
    target = {name: torch.from_numpy(x).double() for name, x in agent.target.of_run(run).items()}

    def q(weights: dict[str, Any], x: Any) -> Any:
        for layer in range(3):
            x = x @ weights[f"q.weight{layer}"] + weights[f"q.bias{layer}"][0]
            x = x.relu() if layer < 2 else x
        return x

    total = T(0.0, dtype=torch.float64)
    size = batch.rewards.shape[1]
    for b in range(size):
        y = batch.rewards[run, b].double()
        if batch.discounts[run, b]:
            y = y + gamma * max(q(target, batch.next_observations[run, b].double()))
        error = y - q(weights, batch.observations[run, b].double())[int(batch.actions[run, b, 0])]
        total = total + (0.5 * error**2 if abs(error) <= clip else clip * (abs(error) - 0.5 * clip))
    return total / size


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
@pytest.mark.parametrize("hidden", [(120, 84), (16, 24)])
def test_gradient_against_autograd_of_the_literal_loss(task: str, hidden: tuple[int, int]) -> None:
    settings = [(0.99, 1.0), (0.5, 0.25), (0.9, inf)]
    agent = agent_of(*({"gamma": g, "td_clip": c, "hidden_sizes": hidden} for g, c in settings), task=task)
    agent.cfg = agent.cfg.__class__(**(vars(agent.cfg) | {"batch_size": 20}))
    agent.target.flat.mul_(1.3)  # another network than the online one
    batch = random_batch(agent, 20)
    losses, _, _ = agent._gradient(batch)
    for run, (gamma, clip) in enumerate(settings):
        own = agent.parameters.of_run(run)
        weights = {name: torch.from_numpy(x).double().requires_grad_() for name, x in own.items()}
        loss = slow_loss(agent, batch, run, weights, gamma, clip)
        assert losses[run].mean().item() == pytest.approx(loss.item(), rel=1e-5)
        for (name, _), grad in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
            assert torch.allclose(agent.parameters.grads[name][run].double(), grad, atol=2e-6), (run, name)


# -------------------------------------------------------------------------------------------------- the agent's periods
def snapshots(agent: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Records (env_steps, what happened) of one iteration after another."""
    events: list[tuple[int, str]] = []
    gradient, copy = agent._gradient, agent._update_target

    def count(batch: Transitions) -> Any:
        events.append((agent.envs.env_steps, "update"))
        return gradient(batch)

    def update_target(due: np.ndarray) -> None:
        events.extend((agent.envs.env_steps, f"target {run}") for run in due.nonzero()[0])
        copy(due)
        for run in due.nonzero()[0]:
            same = [torch.equal(agent.target[name][run], agent.parameters[name][run]) for name in agent.target.views]
            assert all(same)

    monkeypatch.setattr(agent, "_gradient", count)
    monkeypatch.setattr(agent, "_update_target", update_target)
    return events


@pytest.mark.parametrize(("envs", "train_period", "starts"), [(1, 1, 10), (1, 4, 30), (3, 2, 12), (2, 5, 0), (8, 3, 9)])
def test_updates_and_targets_come_at_crossings(
    monkeypatch: pytest.MonkeyPatch, envs: int, train_period: int, starts: int
) -> None:
    shared = {"num_envs": envs, "train_period": train_period, "learning_starts": starts, "buffer_size": 240}
    agent = agent_of(shared | {"target_period": 7.0}, shared | {"target_period": 40.0})
    events = snapshots(agent, monkeypatch)
    agent.iterate(), agent.iterate()
    total = 2 * agent.steps_per_iteration
    assert agent.env_steps == agent.envs.env_steps == total
    steps = range(envs, total + 1, envs)

    def multiples(end: int, period: int) -> int:
        return sum(x % period == 0 for x in range(end - envs + 1, end + 1))

    assert [e for e, what in events if what == "update"] == [
        e for e in steps if e > starts for _ in range(multiples(e, train_period))
    ]
    for run, period in enumerate((7, 40)):
        assert [e for e, what in events if what == f"target {run}"] == [e for e in steps if multiples(e, period)]


def test_the_target_network_of_a_run_that_is_not_due_stays() -> None:
    agent = agent_of({}, {}, {})
    agent.parameters.flat.add_(1.0)
    before = agent.target.of_run(1)
    agent._update_target(np.array([True, False, True]))
    for run in (0, 2):
        online = agent.parameters.of_run(run)
        assert all(np.array_equal(x, online[name]) for name, x in agent.target.of_run(run).items())
    assert all(np.array_equal(x, before[name]) for name, x in agent.target.of_run(1).items())


def test_exploration_follows_epsilon() -> None:
    """The share of actions that are not greedy, over actions drawn by the agent's own streams."""
    agent = agent_of({}, {})
    epsilon = np.repeat([[0.0, 0.25], [1.0, 0.5]], 20_000, 0)
    explore, actions = agent._exploration(epsilon)
    assert explore.shape == actions.shape == (40_000, 2, 2)  # [T, R, N]
    shares = explore.reshape(2, 20_000, 2, 2).mean((1, 3))
    assert shares == pytest.approx(np.array([[0.0, 0.25], [1.0, 0.5]]), abs=0.01)
    assert np.bincount(actions[explore]) / explore.sum() == pytest.approx([0.5, 0.5], abs=0.01)
    assert np.abs(np.corrcoef(explore[20_000:, 1, 0], actions[20_000:, 1, 0])[0, 1]) < 0.03  # independent draws


def test_epsilon_metric_is_the_schedule_at_the_last_step() -> None:
    agent = agent_of({"epsilon_steps": 400.0}, {"epsilon_start": 0.8, "epsilon_end": 0.2, "epsilon_steps": 100.0})
    last = agent.steps_per_iteration - agent.cfg.num_envs
    assert agent.iterate()["epsilon"] == pytest.approx([1 - 0.9 * last / 400, 0.2])


@pytest.mark.parametrize("envs", [1, 2])
def test_how_many_steps_an_iteration_has_changes_nothing(monkeypatch: pytest.MonkeyPatch, envs: int) -> None:
    results = []
    for steps in (100, 25):
        monkeypatch.setattr(dqn, "STEPS", steps)
        agent = agent_of({"num_envs": envs}, {"num_envs": envs})
        advance(agent, 400)
        results.append(outcome(agent, [{}]))
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def test_what_is_stored_is_the_true_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transitions of a row follow each other but at ends of episodes; a time limit is stored as no end."""
    agent = agent_of({"num_envs": 1, "buffer_size": 600})
    agent.envs.max_episode_steps = 9
    for _ in range(6):
        agent.iterate()
    rows = agent.replay.state()["rows"].rows[0].numpy()
    observations, successors, terminal = rows[:, :4], rows[:, 4:8], rows[:, 10] == 0  # no discount
    follows = (successors[:-1] == observations[1:]).all(1)
    starts = (np.abs(observations[1:]) <= 0.05).all(1)
    assert np.array_equal(~follows, starts & ~follows) and 60 < (~follows).sum() < 100
    assert terminal[:-1][~follows].mean() < 0.5  # most ends are the time limit's
    assert not terminal[:-1][follows].any()
    fallen = (np.abs(successors[:, 0]) > 2.4) | (np.abs(successors[:, 2]) > 12 * 2 * np.pi / 360)
    assert np.array_equal(terminal, fallen)


# ------------------------------------------------------------------------------------------------------- configuration
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 1.5}, "gamma is 1.5; it must lie in"),
        ({"epsilon_end": -0.1}, "epsilon_end"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"learning_starts": -1}, "learning_starts"),
        ({"num_envs": 3, "buffer_size": 10}, "multiple of num_envs = 3"),
        ({"buffer_sise": 10}, "did you mean buffer_size"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("dqn", None, wrong)


def test_cleanrl_preset() -> None:
    cfg = load_config("dqn", "cleanrl")
    assert (cfg.batch_size, cfg.train_period, cfg.buffer_size, cfg.hidden_sizes) == (128, 10, 10_000, (120, 84))
    assert cfg.td_clip == inf and cfg.learning_rate == 2.5e-4


def test_evaluation_explores_only_with_streams() -> None:
    agent = agent_of({"evaluation_epsilon": 1.0}, {"evaluation_epsilon": 0.0})
    observations = np.zeros((2, 400, 4), np.float32)
    greedy, explored = agent.act(observations), agent.act(observations, Streams([5, 6]))
    assert (greedy == greedy[:, :1]).all() and np.array_equal(explored[1], greedy[1])
    assert explored[0].mean() == pytest.approx(0.5, abs=0.1)


def test_a_run_trains_the_same_whatever_the_part_it_is_in() -> None:
    """Groups larger than `QNetwork.parts` takes at a time."""
    runs = [small("dqn") for _ in range(9)]
    company = train("dqn", "Acrobot-v1", runs, range(9))
    for run in (0, 7, 8):
        assert_same(company[run], train("dqn", "Acrobot-v1", [runs[run]], [run])[0], f"run {run}")


def test_values_of_known_observations_with_squared_loss() -> None:
    cfg = stack([load_config("dqn", None, small("dqn", td_clip=inf, learning_rate=3e-3, buffer_size=2000))] * 2)
    envs = ValueFromObservation(2, cfg.num_envs, True)
    agent = dqn.Agent(cfg, envs, [1, 2])
    for _ in range(8):
        agent.iterate()
    assert np.abs(agent.values(np.repeat(envs.questions()[None], 2, 0)) - [-1.0, 1.0]).max() < 0.1


def test_denormals_are_flushed_inside_only() -> None:
    small, smaller = T([1e-30] * 32), T([1e-10] * 32)
    with flushed_denormals():
        inside = small * smaller
    assert (inside == 0).all() and (small * smaller > 0).all()
