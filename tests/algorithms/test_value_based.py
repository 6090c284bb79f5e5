"""DQN's descendants: targets and losses by hand, whole gradients against literal loops under autograd in float64, and
what each reduces to when its part is switched off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_same, make, small, train
from test_columns import literal
from torch import Tensor

import algorithms
from algorithms import c51, double_dqn, iqn, prioritized_dqn, qr_dqn
from algorithms.common.config import load_config
from algorithms.common.replay import PrioritizedReplay, Transitions

inf = math.inf
T = torch.tensor
BATCH, RUNS = 12, 3
FAMILY = ("double_dqn", "dueling_dqn", "prioritized_dqn", "nstep_dqn", "noisy_dqn", "c51", "qr_dqn", "iqn", "rainbow")
RAINBOWS = [
    {"distributional": d, "noisy": n, "dueling": u, "prioritized": p}
    for d, n, u, p in itertools.product((True, False), repeat=4)
]
CASES = [pytest.param(name, {}, id=name) for name in FAMILY if name != "rainbow"] + [
    pytest.param("rainbow", switches, id="rainbow " + " ".join(k for k, on in switches.items() if on))
    for switches in RAINBOWS
]


# ----------------------------------------------------------------------------------------------------- targets by hand
def test_double_values_by_hand() -> None:
    """I8: chosen by one network, valued by the other."""
    online, target = T([[[1.0, 9.0], [2.0, 8.0]]]), T([[[5.0, 6.0], [-7.0, 60.0]]])  # [R, A, B]
    assert double_dqn.double_values(online, target).tolist() == [[-7.0, 6.0]]


@pytest.mark.parametrize("seed", range(4))
def test_projection_against_its_definition(seed: int) -> None:
    """I8, algorithm 1 of arXiv:1707.06887, atom by atom; on the atoms, between them and beyond their ends."""
    rng = np.random.default_rng(seed)
    atoms = torch.linspace(-2, 4, 7, dtype=torch.float64)
    probabilities = torch.from_numpy(rng.dirichlet(np.ones(7), (2, 9)).transpose(0, 2, 1).copy())
    rewards = torch.from_numpy(rng.choice([-9.0, -1.0, 0.0, 0.3, 2.0, 7.0], (2, 9)))
    discounts = torch.from_numpy(rng.choice([0.0, 0.5, 0.99, 1.0], (2, 9)))
    found = c51.project(probabilities, rewards, discounts, atoms)
    expected = torch.zeros_like(probabilities)
    for run, b, j in itertools.product(range(2), range(9), range(7)):
        moved = min(max(float(rewards[run, b] + discounts[run, b] * atoms[j]), -2.0), 4.0)
        position = (moved + 2.0) / 1.0
        low, high = math.floor(position), math.ceil(position)
        mass = float(probabilities[run, j, b])
        if low == high:
            expected[run, low, b] += mass
        else:
            expected[run, low, b] += mass * (high - position)
            expected[run, high, b] += mass * (position - low)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(found.sum(1), torch.ones(2, 9, dtype=torch.float64))


def test_projection_by_hand() -> None:
    atoms = T([0.0, 1.0, 2.0])
    certain = T([[[0.0], [1.0], [0.0]]])  # a return of 1
    assert torch.allclose(c51.project(certain, T([[0.25]]), T([[1.0]]), atoms).flatten(), T([0.0, 0.75, 0.25]))
    assert torch.allclose(c51.project(certain, T([[0.5]]), T([[0.0]]), atoms).flatten(), T([0.5, 0.5, 0.0]))
    assert torch.allclose(c51.project(certain, T([[9.0]]), T([[1.0]]), atoms).flatten(), T([0.0, 0.0, 1.0]))
    assert torch.allclose(c51.project(certain, T([[-9.0]]), T([[1.0]]), atoms).flatten(), T([1.0, 0.0, 0.0]))


def test_divergence_is_torchs_and_its_slope_is_p_minus_m() -> None:
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.softmax(torch.randn(2, 5, 4, dtype=torch.float64), 1)
    targets[0, :, 0] = T([0.0, 1.0, 0.0, 0.0, 0.0])
    loss = c51.divergence(targets, logits)
    reference = torch.nn.functional.kl_div(torch.log_softmax(logits, 1), targets, reduction="none").sum(1)
    assert torch.allclose(loss, reference)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.allclose(slope, torch.softmax(logits, 1) - targets)


@pytest.mark.parametrize("kappa", [1.0, 0.3])
def test_quantile_huber_against_its_definition(kappa: float) -> None:
    """Equations 9 and 10 of arXiv:1710.10044, pair by pair, and the slope under autograd."""
    rng = torch.Generator().manual_seed(0)
    quantiles = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = 2 * torch.randn(2, 5, 3, generator=rng, dtype=torch.float64)
    levels = torch.rand(2, 4, 3, generator=rng, dtype=torch.float64)
    slopes, losses = qr_dqn.quantile_huber(quantiles.detach(), targets, levels, T([[kappa], [kappa]]).double())
    for run, b in itertools.product(range(2), range(3)):
        loss = T(0.0, dtype=torch.float64)
        for i, j in itertools.product(range(4), range(5)):
            u = targets[run, j, b] - quantiles[run, i, b]
            huber = 0.5 * u**2 if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
            loss = loss + abs(levels[run, i, b] - float(u < 0)) * huber / kappa / 5
        assert losses[run, b].item() == pytest.approx(loss.item())
        (slope,) = torch.autograd.grad(loss, quantiles)
        assert torch.allclose(slopes[run, :, b], slope[run, :, b])


def test_quantiles_of_a_coin() -> None:
    """Where the loss is least, quantiles of a return of 0 or 1 at even odds lie on both sides of 1/2 (small kappa)."""
    quantiles, levels = torch.full((1, 4, 1), 0.4), T([0.125, 0.375, 0.625, 0.875]).view(1, 4, 1)
    for _ in range(4000):
        slopes, _ = qr_dqn.quantile_huber(quantiles, T([[[0.0], [1.0]]]), levels, T([[0.01]]))
        quantiles = quantiles - 0.002 * slopes
    assert torch.allclose(quantiles.flatten(), T([0.0, 0.0, 1.0, 1.0]), atol=0.02)


# ------------------------------------------------------------------------------------------------ the whole gradient
def agent_of(name: str, **settings: Any) -> Any:
    shared = settings | {"hidden_sizes": (10, 7), "batch_size": BATCH}
    runs = [{"td_clip": 1.0}, {"td_clip": 0.25}, {"td_clip": 2.0, "double": 0.0}]
    known = {field for field in vars(load_config(name))}
    runs = [{key: value for key, value in run.items() if key in known} for run in runs]
    agent = make(name, "CartPole-v1", [small(name, **shared, **run) for run in runs], range(RUNS))
    rng = np.random.default_rng(5)
    agent.target.flat.add_(torch.from_numpy(0.3 * rng.standard_normal(agent.target.flat.shape, np.float32)))
    return agent


def random_batch(agent: Any) -> Transitions:
    rng = np.random.default_rng(1)
    observations, successors = rng.standard_normal((2, RUNS, BATCH, 4), np.float32)
    actions = rng.integers(2, size=(RUNS, BATCH, 1)).astype(np.float32)
    rewards = 3 * rng.standard_normal((RUNS, BATCH), np.float32)
    discounts = rng.choice([0.0, 0.9, 0.99], (RUNS, BATCH)).astype(np.float32)
    return Transitions(*(torch.from_numpy(x) for x in (observations, successors, actions, rewards, discounts)))


def outputs_of(agent: Any, weights: dict[str, Tensor], net: str, run: int, x: Tensor) -> Tensor:
    """[B, A, Z] in float64, with the noise (or the levels) that this net had in the last update."""
    noise = agent.noise[net]
    if agent.__class__.__module__.endswith("iqn"):
        return implicit(agent, weights, torch.from_numpy(noise["levels"][run]).double(), x)
    return literal(agent.net, weights, noise, run, x, (4,))


def implicit(agent: Any, weights: dict[str, Tensor], levels: Tensor, x: Tensor) -> Tensor:
    """Z_tau(s, a) of IQN, sample by sample and level by level: levels [N, B], x [B, O] -> [B, A, N]."""
    rows = []
    for b in range(len(x)):
        features = (x[b] @ weights["q.weight0"] + weights["q.bias0"][0]).relu()
        row = []
        for tau in levels[:, b]:
            cosines = torch.stack([torch.cos(math.pi * i * tau) for i in range(agent.cfg.num_cosines)])
            h = features * (cosines @ weights["embedding.weight0"] + weights["embedding.bias0"][0]).relu()
            h = (h @ weights["q.weight1"] + weights["q.bias1"][0]).relu()
            row.append(h @ weights["q.weight2"] + weights["q.bias2"][0])
        rows.append(torch.stack(row, 1))
    return torch.stack(rows)


def sample_loss(agent: Any, name: str, online: dict[str, Tensor], target: dict[str, Tensor], run: int) -> Callable:
    """The papers' loss of one transition."""
    cfg, batch, clip = agent.cfg, random_batch(agent), float(agent.cfg.td_clip[run])
    x, successors = batch.observations[run].double(), batch.next_observations[run].double()
    here = outputs_of(agent, online, "online", run, x)
    there = outputs_of(agent, target, "target", run, successors).detach()
    selecting = None
    if name == "iqn":
        selecting = outputs_of(agent, target, "selection", run, successors).detach().mean(2)
    elif name in ("double_dqn", "dueling_dqn", "prioritized_dqn") or (name == "rainbow" and cfg.double[run]):
        selecting = outputs_of(agent, online, "selection", run, successors).detach()
    distributional = name == "c51" or (name == "rainbow" and cfg.distributional)

    def means(outputs: Tensor) -> Tensor:
        return (outputs.softmax(-1) * agent.atoms.double()).sum(-1) if distributional else outputs.mean(-1)

    def loss(b: int) -> Tensor:
        reward, discount = batch.rewards[run, b].double(), batch.discounts[run, b].double()
        preference = there if selecting is None else selecting
        by_action = preference[b] if name == "iqn" else means(preference)[b]
        best = int(by_action.argmax())
        mine = here[b, int(batch.actions[run, b, 0])]  # [Z]
        if distributional:
            p = there[b, best].softmax(-1)[None, :, None]
            m = c51.project(p, reward.view(1, 1), discount.view(1, 1), agent.atoms.double())[0, :, 0]
            return (torch.xlogy(m, m) - m * mine.log_softmax(-1)).sum()
        if name in ("qr_dqn", "iqn"):
            levels = agent._levels(slice(run, run + 1)).double().expand(1, len(mine), BATCH)[0, :, b]
            total = T(0.0, dtype=torch.float64)
            for i, z in itertools.product(range(len(mine)), there[b, best]):
                u = reward + discount * z - mine[i]
                huber = 0.5 * u**2 if abs(u) <= clip else clip * (abs(u) - 0.5 * clip)
                total = total + abs(levels[i] - float(u < 0)) * huber / clip / there.shape[2]
            return total
        error = reward + discount * there[b, best, 0] - mine[0]
        return 0.5 * error**2 if abs(error) <= clip else clip * (abs(error) - 0.5 * clip)

    return loss


@pytest.mark.parametrize(("name", "switches"), CASES)
def test_gradient_against_autograd_of_the_literal_loss(name: str, switches: dict[str, Any]) -> None:
    agent = agent_of(name, **switches)
    weights = torch.from_numpy(np.random.default_rng(2).random((RUNS, BATCH), np.float32))
    (agent.noise,) = agent._noise(1)
    losses, _, _ = agent._gradient(random_batch(agent), weights)
    for run in range(RUNS):
        online, target = (
            {k: torch.from_numpy(v).double().requires_grad_() for k, v in parameters.of_run(run).items()}
            for parameters in (agent.parameters, agent.target)
        )
        loss = sample_loss(agent, name, online, target, run)
        expected = torch.stack([loss(b) for b in range(BATCH)])
        assert torch.allclose(losses[run].double(), expected, atol=1e-4)
        total = (weights[run].double() * expected).mean()
        gradients = torch.autograd.grad(total, list(online.values()))
        for parameter, gradient in zip(online, gradients, strict=True):
            assert torch.allclose(agent.parameters.grads[parameter][run].double(), gradient, atol=5e-5), (
                run,
                parameter,
            )


# ------------------------------------------------------------------------------------------------------- reduces to
OFF = {"double": 0.0, "prioritized": False, "dueling": False, "n_steps": 1, "distributional": False, "noisy": False}


@pytest.mark.parametrize(
    ("part", "sibling"),
    [
        ({}, "dqn"),
        ({"double": 1.0}, "double_dqn"),
        ({"double": 1.0, "dueling": True}, "dueling_dqn"),
        ({"double": 1.0, "prioritized": True}, "prioritized_dqn"),
        ({"n_steps": 3}, "nstep_dqn"),
        ({"noisy": True}, "noisy_dqn"),
        ({"distributional": True}, "c51"),
    ],
)
def test_rainbow_with_one_part_is_that_part(part: dict[str, Any], sibling: str) -> None:
    """Bit for bit, over whole trainings with equal settings."""
    shared = vars(load_config("rainbow")).keys() & vars(load_config(sibling)).keys()
    settings = small(sibling)
    own = load_config(sibling, None, settings)
    settings |= {key: getattr(own, key) for key in shared if key not in settings}
    settings = {key: value for key, value in settings.items() if key in shared}
    (one,) = train("rainbow", "CartPole-v1", [settings | OFF | part], [3])
    kept = {key: value for key, value in settings.items() if key in vars(own)}
    (other,) = train(sibling, "CartPole-v1", [kept], [3])
    assert_same(one, other, sibling)


def test_more_than_one_step_changes_the_targets() -> None:
    (one,) = train("nstep_dqn", "CartPole-v1", [small("nstep_dqn", n_steps=1)], [3])
    (plain,) = train("dqn", "CartPole-v1", [small("dqn")], [3])
    (three,) = train("nstep_dqn", "CartPole-v1", [small("nstep_dqn")], [3])
    assert_same(one, plain)
    assert not np.array_equal(three["weights/q.weight0"], plain["weights/q.weight0"])


# ------------------------------------------------------------------------------------------------------ single agents
def test_importance_exponent_rises_to_one() -> None:
    agent = make(
        "prioritized_dqn", "CartPole-v1", [small("prioritized_dqn", importance_steps=s) for s in (100, 400)], [0, 1]
    )
    assert prioritized_dqn.importance_exponent(agent.cfg, 0) == pytest.approx([0.4, 0.4])
    assert prioritized_dqn.importance_exponent(agent.cfg, 200) == pytest.approx([1.0, 0.7])


def test_priorities_follow_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("prioritized_dqn", "CartPole-v1", [small("prioritized_dqn")] * 2, [0, 1])
    seen: list[tuple[np.ndarray, Tensor]] = []
    update = PrioritizedReplay.update

    def record(self: Any, indices: np.ndarray, errors: Tensor) -> None:
        seen.append((indices, errors.clone()))
        update(self, indices, errors)

    monkeypatch.setattr(PrioritizedReplay, "update", record)
    agent.iterate()
    indices, errors = seen[-1]
    leaves = agent.replay.levels[-1]
    for run in range(2):
        last = {int(i): float(e) for i, e in zip(indices[run], errors[run], strict=True)}
        for i, error in last.items():
            assert leaves[run, i] == pytest.approx((abs(error) + agent.replay.EPSILON) ** 0.6)


def test_noisy_agents_explore_without_epsilon_and_are_evaluated_without_noise() -> None:
    agent = make("noisy_dqn", "CartPole-v1", [small("noisy_dqn")] * 2, [0, 1])
    observations = np.random.default_rng(0).standard_normal((2, 1, 4)).astype(np.float32)
    noisy = [agent.q_values(observations, noise) for noise in agent.net.noise(agent.streams, "acting noise", 50)]
    assert np.std(noisy, 0).min() > 0.01
    assert np.array_equal(agent.q_values(observations), agent.q_values(observations))
    explore, _ = agent._exploration(np.zeros((50, 2)))
    assert not explore.any()


def test_iqn_is_evaluated_at_the_midpoints() -> None:
    agent = agent_of("iqn")
    observations = np.random.default_rng(0).standard_normal((RUNS, 5, 4)).astype(np.float32)
    found, count = agent.q_values(observations), agent.cfg.num_acting_quantiles
    levels = ((torch.arange(count).double() + 0.5) / count)[:, None].expand(count, 5)
    for run in range(RUNS):
        weights = {k: torch.from_numpy(v).double() for k, v in agent.parameters.of_run(run).items()}
        expected = implicit(agent, weights, levels, torch.from_numpy(observations[run]).double()).mean(2)
        assert np.allclose(found[run], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["dqn", *FAMILY])
def test_values_are_those_of_the_greedy_action(name: str) -> None:
    agent = agent_of(name)
    observations = np.random.default_rng(0).standard_normal((RUNS, 6, 4)).astype(np.float32)
    q_values = agent.q_values(observations)
    assert q_values.shape == (RUNS, 6, 2)
    assert np.array_equal(agent.values(observations), q_values.max(-1))
    assert np.array_equal(agent.act(observations), q_values.argmax(-1))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("nstep_dqn", {"n_steps": 0}, "n_steps is 0; it must be positive"),
        ("c51", {"num_atoms": 1}, "must be at least 2"),
        ("c51", {"v_min": 10.0}, "v_min must be the smaller one"),
        ("prioritized_dqn", {"priority_exponent": -1.0}, "priority_exponent is -1.0; it must lie in"),
        ("qr_dqn", {"num_quantiles": 0}, "must be positive"),
        ("qr_dqn", {"td_clip": inf}, "td_clip is inf"),
        ("iqn", {"td_clip": inf}, "td_clip is inf"),
        ("iqn", {"num_cosines": 0}, "must be positive"),
        ("rainbow", {"n_steps": -1}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(name, None, wrong)


def test_every_sibling_has_a_test() -> None:
    parents = {
        name for name in algorithms.names() if issubclass(algorithms.load(name).Agent, algorithms.load("dqn").Agent)
    }
    assert parents == {"dqn", *FAMILY}
    assert issubclass(iqn.Agent, qr_dqn.Agent)
