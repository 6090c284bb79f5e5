"""D4PG: its targets against a literal projection, its transitions against a loop over the steps taken, its gradients
against autograd in float64, and what it is with its parts switched off."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, advance, assert_same, make, settings, small, train
from probes import Discounting, Probe, TimeLimit
from test_off_policy import assert_gradient, critics64, perceptron, q_of, random_batch, weights64

from algorithms import d4pg
from algorithms.common.config import load_config, stack

BATCH, RUNS, ATOMS = 12, 3, 7
SCALAR = {"distributional": False, "n_steps": 1, "prioritized": False}


def agent_of(**overrides: Any) -> Any:
    """Three runs on Hopper; target networks apart from the online ones."""
    shared = {"hidden_sizes": (10, 7), "batch_size": BATCH, "num_atoms": ATOMS, "v_min": -4.0, "v_max": 5.0}
    agent = make("d4pg", "Hopper-v5", [small("d4pg", **shared | overrides)] * RUNS, range(RUNS))
    rng = np.random.default_rng(5)
    for parameters in (agent.parameters, agent.critics.parameters, agent.critics.target, agent.target_parameters):
        parameters.flat.add_(torch.from_numpy(0.3 * rng.standard_normal(parameters.flat.shape, np.float32)))
    return agent


def test_targets_against_a_literal_projection() -> None:
    """Atom by atom: r + d z_j, clipped, is shared between its neighbours by nearness."""
    agent = agent_of()
    batch, atoms = random_batch(agent), np.linspace(-4, 5, ATOMS)
    found, clipped = agent._targets(batch), 0
    assert found.shape == (RUNS, BATCH, ATOMS)
    for run, b in itertools.product(range(RUNS), range(BATCH)):
        successor = batch.next_observations[run, b].double()
        action = perceptron(weights64(agent.target_parameters, run), successor).tanh()
        logits = q_of(critics64(agent, agent.critics.target, run)[0], successor, action)
        expected = np.zeros(ATOMS)
        for z, probability in zip(atoms, torch.softmax(logits, 0).tolist(), strict=True):
            moved = float(batch.rewards[run, b]) + float(batch.discounts[run, b]) * z
            clipped += not -4 < moved < 5
            moved = min(max(moved, -4.0), 5.0)
            for i in range(ATOMS):
                expected[i] += probability * max(0.0, 1 - abs(moved - atoms[i]) / 1.5)
        assert found[run, b].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0 < clipped < RUNS * BATCH * ATOMS


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(weighted: bool) -> None:
    """Of the weighted divergence, which is the priority too, and of -mean E Z(s, mu(s))."""
    agent, atoms = agent_of(weight_decay=0.0), torch.linspace(-4, 5, ATOMS).double()
    batch, given = random_batch(agent), {}
    generator = torch.Generator().manual_seed(3)
    targets = torch.softmax(torch.randn(RUNS, BATCH, ATOMS, generator=generator), 2)
    targets[0, 0] = torch.eye(ATOMS)[2]  # all on one atom
    weights = torch.rand(RUNS, BATCH, generator=generator) if weighted else torch.ones(RUNS, BATCH)
    agent.replay.update = lambda indices, errors: given.update(indices=indices, errors=errors)
    critics = [critics64(agent, agent.critics.parameters, run)[0] for run in range(RUNS)]
    indices = np.arange(RUNS * BATCH).reshape(RUNS, BATCH)
    learned = agent._update_critics(batch, targets, (indices, weights) if weighted else None)
    for run, critic in enumerate(critics):
        logits = q_of(critic, batch.observations[run].double(), batch.actions[run].double())
        m = targets[run].double()
        losses = (torch.xlogy(m, m) - m * torch.log_softmax(logits, 1)).sum(1)
        assert_gradient(agent.critics.parameters, run, (weights[run] * losses).mean(), critic)
        assert torch.allclose(learned["critic_loss"][run, 0].double(), losses, rtol=1e-4, atol=1e-5)
        assert torch.allclose(learned["q_values"][run].double(), torch.softmax(logits, 1) @ atoms, atol=1e-4)
        if weighted:
            assert given["indices"] is indices
            assert torch.allclose(given["errors"][run].double(), losses, rtol=1e-4, atol=1e-5)

    actors = [weights64(agent.parameters, run) for run in range(RUNS)]
    agent._update_actor(batch)
    for run, actor in enumerate(actors):
        observations = batch.observations[run].double()
        (critic,) = critics64(agent, agent.critics.parameters, run)
        logits = q_of(critic, observations, perceptron(actor, observations).tanh())
        assert_gradient(agent.parameters, run, -(torch.softmax(logits, 1) @ atoms).mean(), actor)


@pytest.mark.parametrize("probe", [Discounting, TimeLimit])
def test_transitions_against_a_loop(probe: type[Probe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to five steps of one environment, to a termination (after two) or a time limit (after three)."""
    sizes = {"buffer_size": 400, "n_steps": 5, "num_envs": 2, "learning_starts": 1000}
    runs = [load_config("d4pg", None, settings("d4pg", PROBE | sizes, gamma=gamma)) for gamma in (0.5, 0.9)]
    envs, taken = probe(2, 2, False), []
    agent, step = d4pg.Agent(stack(runs), envs, [3, 4]), envs.step

    def recorded(actions: np.ndarray) -> Any:
        before, result = agent.observations.copy(), step(actions)
        taken.append((before, actions / 2, *result[1:]))  # the box is [-2, 2]
        return result

    monkeypatch.setattr(envs, "step", recorded)
    agent.iterate()
    found = agent.replay._read(np.arange(len(agent.replay))[None].repeat(2, 0))
    assert len(agent.replay) == 2 * (len(taken) - 4)
    for run, gamma in enumerate((0.5, 0.9)):
        for start, n in itertools.product(range(len(taken) - 4), range(2)):
            total, discount = 0.0, 1.0
            for _, _, rewards, successors, terminations, truncations in taken[start : start + 5]:
                total += discount * rewards[run, n]
                discount *= gamma
                last = successors[run, n]
                if terminations[run, n]:
                    discount = 0.0
                if terminations[run, n] or truncations[run, n]:
                    break
            place = 2 * start + n
            assert found.rewards[run, place].item() == pytest.approx(total)
            assert found.discounts[run, place].item() == pytest.approx(discount)
            assert found.next_observations[run, place].tolist() == last.tolist()
            assert found.observations[run, place].tolist() == taken[start][0][run, n].tolist()
            assert found.actions[run, place].tolist() == pytest.approx(taken[start][1][run, n].tolist())


@pytest.mark.parametrize("task", ["Pendulum-v1", "Hopper-v5"])
def test_without_its_changes_it_is_ddpg(task: str) -> None:
    """Bit for bit, with the same settings and seeds; every one of its changes changes something."""
    shared = {"noise_theta": 0.15, "noise_std": 0.2, "tau": 0.01, "weight_decay": 0.01, "importance_exponent": 0.4}
    rates = [{"learning_rate": 1e-3, "actor_learning_rate": 1e-4}, {"learning_rate": 3e-4, "actor_learning_rate": 3e-4}]
    parents = train("ddpg", task, [small("ddpg", **shared, **rate) for rate in rates], [7, 8], 200)
    own = small("d4pg", **SCALAR | shared | {"target_period": 1.0})
    children = train("d4pg", task, [own | rate for rate in rates], [7, 8], 200)
    for parent, child in zip(parents, children, strict=True):
        assert_same(parent, child)
    changes = {"distributional": True, "n_steps": 2, "prioritized": True, "target_period": 16.0}
    for name, value in changes.items() if task == "Pendulum-v1" else ():
        (changed,) = train("d4pg", task, [own | rates[0] | {name: value}], [7], 200)
        assert not np.array_equal(changed["weights/actor.weight0"], children[0]["weights/actor.weight0"]), name


def test_target_networks_are_overwritten_when_their_period_is_over() -> None:
    runs = [small("d4pg", train_period=4, tau=1.0, target_period=x) for x in (6.0, 12.0, 16.0)]
    agent = make("d4pg", "Pendulum-v1", runs, [0, 1, 2])
    advance(agent, 48)
    agent.updates, seen = 0, []
    pairs = [(agent.critics.target, agent.critics.parameters), (agent.target_parameters, agent.parameters)]
    for _ in range(4):
        before = [[one.detach().clone() for one in target.views.values()] for target, _ in pairs]
        agent._learn(np.random.default_rng(0).random((3, 16)))
        moved = []
        for run in range(3):
            changes = []
            for (target, online), old in zip(pairs, before, strict=True):
                views = list(zip(target.views.values(), online.views.values(), old, strict=True))
                changed = any(not torch.equal(new[run], kept[run]) for new, _, kept in views)
                assert not changed or all(torch.equal(new[run], wanted[run]) for new, wanted, _ in views)
                changes.append(int(changed))
            assert changes[0] == changes[1]
            moved.append(changes[0])
        seen.append(moved)
    assert seen == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"v_min": 3.0, "v_max": 3.0}, "v_min must be the smaller"),
        ({"num_atoms": 1}, "at least 2"),
        ({"learning_starts": 19, "num_envs": 4, "n_steps": 5}, "at least n_steps"),
        ({"target_period": 0.0}, "target_period"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("d4pg", None, wrong)
