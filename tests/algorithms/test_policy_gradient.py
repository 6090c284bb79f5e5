"""REINFORCE, VPG and A2C against their formulas: by hand, by enumeration, by autograd in float64, and by second, slow
implementations of whole iterations; RMSProp against torch's and against the paper's loop."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_same, make, small, train
from test_common import NORMS, RATES, SHAPES, gradients
from test_ppo import CONTINUOUS, DISCRETE, Spaces, distribution, forward
from torch import Tensor, nn

import algorithms
from algorithms import reinforce, vpg
from algorithms.common.config import load_config, stack
from algorithms.common.layers import Parameters
from algorithms.common.optimizers import RMSProp
from algorithms.common.rollouts import Rollout

inf = math.inf
SIZES = {"hidden_sizes": [16, 16]}


def build(algorithm: str, spaces: Spaces, runs: list[dict[str, Any]], seeds: list[int]) -> Any:
    """An agent of environments that only say what they look like, with heads that are not almost zero."""
    cfg = stack([load_config(algorithm, None, run) for run in runs])
    agent = algorithms.load(algorithm).Agent(cfg, spaces, seeds)
    rng = np.random.default_rng(3)
    for name, shape in agent.parameters.shapes.items():
        agent.parameters.fill(name, np.repeat(rng.standard_normal((1, *shape)) / 3, len(runs), 0))
    return agent


def leaves(weights: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A run's weights for autograd."""
    return {name: torch.from_numpy(value).to(dtype).requires_grad_() for name, value in weights.items()}


def policy_of(weights: dict[str, Tensor], observations: Tensor) -> Any:
    return distribution(forward(weights, "actor", observations), weights.get("log_std"))


def values_of(weights: dict[str, Tensor], observations: Tensor) -> Tensor:
    return forward(weights, "critic", observations).squeeze(-1)


def part(weights: dict[str, Tensor], critic: bool) -> list[Tensor]:
    return [weight for name, weight in weights.items() if name.startswith("critic") == critic]


def follow(weights: list[Tensor], loss: Tensor, optimizer: torch.optim.Optimizer, max_norm: float, rate: float) -> None:
    """A step of torch's optimizer down a loss."""
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    if math.isfinite(max_norm):
        nn.utils.clip_grad_norm_(weights, max_norm)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()


def assert_near(agent: Any, run: int, weights: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    for name, ours in agent.parameters_of(run).items():
        assert np.abs(ours - weights[name].detach().numpy()).max() < tolerance, (run, name)


def recorded(agent: Any, rollouts: list[Rollout], ends: float) -> None:
    """Keep what the agent collects, with more ends of episodes than so short a rollout has."""
    collect, rng = agent._collect, np.random.default_rng(0)

    def collected() -> Rollout:
        entries = list(collect())
        entries[4] = entries[4] | (rng.random(entries[4].shape) < ends)  # terminations
        entries[5] = entries[5] | (rng.random(entries[5].shape) < ends)  # truncations
        rollouts.append(Rollout(*entries))
        return rollouts[-1]

    agent._collect = collected


def estimates(
    weights: dict[str, Tensor], rollout: list[np.ndarray], setting: dict[str, float], decay: float, unit: float = 1.0
) -> tuple[Tensor, Tensor]:
    """GAE's sum, written forwards from every step to the end of its episode, and V; one run's entries [T, N, ...]."""
    observations, _, rewards, successors, terminations, truncations = rollout
    with torch.no_grad():
        v, w = (values_of(weights, torch.from_numpy(x)) * unit for x in (observations, successors))
    if setting.get("time_limit_bootstrap", 1.0) == 0.0:
        terminations = terminations | truncations
    gamma, sums = setting.get("gamma", 0.99), torch.zeros(rewards.shape)
    for t, n in np.ndindex(*rewards.shape):
        for k in range(t, len(rewards)):
            worth = 0.0 if terminations[k, n] else gamma * w[k, n]
            sums[t, n] += (gamma * decay) ** (k - t) * (rewards[k, n] + worth - v[k, n])
            if terminations[k, n] or truncations[k, n]:
                break
    return sums, v


def unit_after(returns: list[Tensor]) -> float:
    """The deviation of all returns so far, with a guess N(0, 1) that weighs 1e-4."""
    seen = torch.cat([torch.zeros(0), *returns]).double()
    mean, square = (x / (len(seen) + 1e-4) for x in (seen.sum(), seen.square().sum() + 1e-4))
    return math.sqrt(square - mean**2 + 1e-8)


# ------------------------------------------------------------------------------------------------------------ RMSProp
def test_rmsprop_agrees_with_torch_run_by_run() -> None:
    """Epsilon outside the root; step sizes that differ and change, clipped norms, masked runs that stand still."""
    parameters = Parameters(4, SHAPES)
    optimizer = RMSProp(parameters, 1e-5, 0.97, inside_root=False)
    models = [[nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()] for _ in range(4)]
    optimizers = [torch.optim.RMSprop(model, lr=1.0, alpha=0.97, eps=1e-5) for model in models]
    for step in range(30):
        gradients(parameters, step)
        rates, active = RATES * (1 - step / 40), np.random.default_rng(100 + step).random(4) < 0.8
        for run in active.nonzero()[0]:
            for parameter, gradient in zip(models[run], parameters.grads.values(), strict=True):
                parameter.grad = gradient[run].clone()
            if math.isfinite(NORMS[run]):
                nn.utils.clip_grad_norm_(models[run], NORMS[run])
            optimizers[run].param_groups[0]["lr"] = rates[run]
            optimizers[run].step()
        before = [parameters.split(flat.clone()) for flat in (parameters.flat, optimizer.mean_square)]
        optimizer.step(rates, NORMS, active)
        present = [parameters.views, parameters.split(optimizer.mean_square)]
        for run in range(4):
            for ours, theirs in zip(parameters.views.values(), models[run], strict=True):
                assert torch.allclose(ours[run], theirs, rtol=1e-4, atol=1e-6)
            if not active[run]:
                for now, was in zip(present, before, strict=True):
                    assert all(torch.equal(now[name][run], was[name][run]) for name in now)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_rmsprop_agrees_with_the_paper_s_loop(start: float) -> None:
    """arXiv:1602.01783: s <- a s + (1 - a) g^2, theta <- theta - rate g / sqrt(s + eps), number by number."""
    parameters = Parameters(2, {"a": (1, 3)})
    optimizer = RMSProp(parameters, 0.1, 0.9, start=start)
    rng, rates = np.random.default_rng(0), np.array([0.1, 0.02])
    theta, s = np.zeros((2, 3)), np.full((2, 3), start)
    for _ in range(10):
        gradient = rng.standard_normal((2, 3))
        parameters.grads["a"].copy_(torch.from_numpy(gradient[:, None]))
        optimizer.step(rates)
        for run, i in np.ndindex(2, 3):
            s[run, i] = 0.9 * s[run, i] + 0.1 * gradient[run, i] ** 2
            theta[run, i] -= rates[run] * gradient[run, i] / math.sqrt(s[run, i] + 0.1)
    assert np.allclose(parameters["a"].detach().numpy()[:, 0], theta, rtol=1e-5)


def test_rmsprop_gives_the_same_bits_shared_or_per_run() -> None:
    """A run's bits do not depend on whether the others share its step size, its bound or its fate, nor on its place."""
    results = []
    for runs, place in ((1, 0), (5, 4), (5, 0), (8, 3)):
        parameters = Parameters(runs, SHAPES)
        optimizer = RMSProp(parameters, 1e-5)
        for step in range(20):
            rng = np.random.default_rng(step)
            for name, shape in SHAPES.items():
                values = torch.from_numpy(rng.standard_normal((1, *shape)).astype(np.float32))
                parameters.grads[name].copy_(values * torch.arange(1, runs + 1).roll(place).view(-1, 1, 1))
            rates, norms, active = np.full(runs, 3e-3), np.full(runs, inf), np.ones(runs, bool)
            for other in set(range(runs)) - {place}:
                rates[other], norms[other] = [0.1, 0.0, 1e30, 1e-3][other % 4], [1.0, inf, 1e-3, inf][other % 4]
                active[other] = (step + other) % 3 > 0
            optimizer.step(rates, norms, active)
        results.append([view[place].detach().clone() for view in parameters.views.values()])
    for result in results[1:]:
        assert all(torch.equal(*both) for both in zip(results[0], result, strict=True))


def test_rmsprop_state() -> None:
    one, two = Parameters(4, SHAPES), Parameters(4, SHAPES)
    first, second = RMSProp(one, 1e-5), RMSProp(two, 1e-5)
    for step in range(3):
        gradients(one, step)
        first.step(RATES, NORMS, np.arange(4) != step)
    two.load_state(one.state())
    second.load_state(first.state())
    for parameters, optimizer in ((one, first), (two, second)):
        gradients(parameters, 9)
        optimizer.step(RATES, NORMS)
    assert torch.equal(one.flat, two.flat) and torch.equal(first.mean_square, second.mean_square)


# ---------------------------------------------------------------------------------------------------------------- A2C
@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a2c_gradient_is_that_of_the_literal_loss(spaces: Spaces) -> None:
    """E[-log pi A - beta H + c (R - V)^2 / 2] through float64 autograd, coefficients of its own in every run."""
    settings = [{}, {"ent_coef": 0.0}, {"ent_coef": 0.3, "vf_coef": 2.0}]
    agent = build("a2c", spaces, [setting | SIZES for setting in settings], [0, 1, 2])
    rng = torch.Generator().manual_seed(0)
    observations, advantages, returns = (torch.randn(3, 40, *shape, generator=rng) for shape in ((5,), (), ()))
    actions = torch.randint(3, (3, 40), generator=rng) if spaces.num_actions else torch.randn(3, 40, 2, generator=rng)
    agent._value_gradient(agent.critic.forward(agent.parameters, observations), returns)
    agent._policy_gradient(observations, actions, advantages)
    for run, setting in enumerate(settings):
        weights = leaves(agent.parameters_of(run), torch.float64)
        policy = policy_of(weights, observations[run].double())
        loss = -policy.log_prob(actions[run]) * advantages[run] - setting.get("ent_coef", 0.01) * policy.entropy()
        loss = (
            loss
            + setting.get("vf_coef", 1.0) * (values_of(weights, observations[run].double()) - returns[run]) ** 2 / 2
        )
        for name, gradient in zip(weights, torch.autograd.grad(loss.mean(), list(weights.values())), strict=True):
            ours = agent.parameters.grads[name][run].double()
            assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), (run, name)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("optimizer", "scaled"), [("torch's RMSprop", False), ("Adam", False), ("Adam", True)])
def test_a2c_iterations_against_a_second_implementation(task: str, optimizer: str, scaled: bool) -> None:
    """From the same weights and rollouts, three iterations end with the same weights."""
    settings: list[dict[str, Any]] = [
        {},
        {"gae_lambda": 0.5, "gamma": 0.9, "max_grad_norm": inf},
        {"time_limit_bootstrap": 0.0, "ent_coef": 0.1, "vf_coef": 0.3, "anneal_steps": 30.0},
    ]
    sizes: dict[str, Any] = SIZES | {
        "num_steps": 6,
        "num_envs": 2,
        "optimizer": "adam" if optimizer == "Adam" else "rmsprop",
        "scale_returns": scaled,
    }
    agent = make("a2c", task, [s | sizes | {"epsilon_inside_root": False} for s in settings], [1, 2, 3])
    kind = torch.optim.Adam if optimizer == "Adam" else torch.optim.RMSprop
    models = [leaves(agent.parameters_of(run)) for run in range(3)]
    optimizers = [kind(list(model.values()), eps=1e-5) for model in models]
    rollouts: list[Rollout] = []
    recorded(agent, rollouts, 0.1)
    earlier: list[list[Tensor]] = [[], [], []]
    for iteration in range(3):
        agent.iterate()
        for run, (model, setting) in enumerate(zip(models, settings, strict=True)):
            entries = [entry[:, run] for entry in rollouts[-1]]
            unit, decay = unit_after(earlier[run]) if scaled else 1.0, setting.get("gae_lambda", 1.0)
            advantages, old_values = estimates(model, entries, setting, decay, unit)
            returns = advantages + old_values
            earlier[run].append(returns.flatten())
            observations, actions = torch.from_numpy(entries[0]), torch.from_numpy(entries[1])
            policy, values = policy_of(model, observations), values_of(model, observations)
            loss = -policy.log_prob(actions) * advantages - setting.get("ent_coef", 0.01) * policy.entropy()
            loss = loss + setting.get("vf_coef", 1.0) * (returns / unit - values) ** 2 / 2
            left = max(0.0, 1 - iteration * 12 / setting.get("anneal_steps", inf))
            norm = setting.get("max_grad_norm", 0.5)
            follow(list(model.values()), loss.mean(), optimizers[run], norm, 7e-4 * left)
            assert_near(agent, run, model)


@pytest.mark.parametrize("algorithm", ["a2c", "a2c_lstm", "a2c_trust_region", "vpg"])
def test_the_deviation_starts_where_it_is_set(algorithm: str) -> None:
    sizes = SIZES | ({"lstm_size": 8} if algorithm == "a2c_lstm" else {})
    for task, there in {"Pendulum-v1": True, "CartPole-v1": False}.items():
        weights = make(algorithm, task, [sizes | {"log_std": -0.75}], [0]).parameters_of(0)
        assert not there or (weights["log_std"] == -0.75).all()
        assert ("log_std" in weights) == there


@pytest.mark.parametrize("task", ["CartPole-v1", "Hopper-v5"])
def test_a2c_is_ppo_with_one_epoch_of_one_minibatch(task: str) -> None:
    """I1 (arXiv:2205.09123), bit for bit after ten updates, whatever PPO's clipping: at pi_old nothing is clipped.

    PPO shuffles its minibatch, and a sum of floats depends on its order; so PPO's permutation is the identity here.
    With its own permutation the weights agree to rounding.
    """
    runs = [
        {"learning_rate": 1e-3, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5},
        {"gae_lambda": 1.0, "gamma": 0.9, "ent_coef": 0.0, "vf_coef": 1.0, "anneal_steps": 600.0, "max_grad_norm": inf},
        {"gae_lambda": 0.9, "ent_coef": 0.05, "time_limit_bootstrap": 0.0, "clip_actions": 1.0, "max_grad_norm": 0.1},
    ]
    common = SIZES | {"num_envs": 5, "num_steps": 16, "normalize_observations": True, "scale_rewards": True}
    clips = [{"clip_coef": 0.2}, {"clip_coef": inf}, {"clip_coef": 0.01}]
    one = [{"gae_lambda": 0.95, "vf_coef": 0.5, "learning_rate": 3e-4} | run | common for run in runs]
    a2c = make("a2c", task, [run | {"optimizer": "adam", "optimizer_epsilon": 1e-8} for run in one], [4, 5, 6])
    same = {"num_epochs": 1, "batch_size": 80, "adam_epsilon": 1e-8}
    ordered, shuffled = (
        make("ppo", task, [run | clip | same for run, clip in zip(one, clips, strict=True)], [4, 5, 6])
        for _ in range(2)
    )
    ordered.streams.permutation = lambda _, size: np.tile(np.arange(size), (3, 1))
    start = a2c.parameters_of(0)
    for _ in range(10):
        a2c.iterate(), ordered.iterate()
    shuffled.iterate()
    first = make("a2c", task, [run | {"optimizer": "adam", "optimizer_epsilon": 1e-8} for run in one], [4, 5, 6])
    first.iterate()
    for run in range(3):
        assert_same(a2c.parameters_of(run), ordered.parameters_of(run), f"run {run}")
        for name, ours in first.parameters_of(run).items():
            assert np.allclose(ours, shuffled.parameters_of(run)[name], atol=1e-5), (run, name)
    assert all(not np.array_equal(start[name], weights) for name, weights in a2c.parameters_of(0).items())


# ---------------------------------------------------------------------------------------------------------------- VPG
def test_adaptive_step_by_hand() -> None:
    """Footnote 3's rule: by 1.5 down above twice the target, up below half of it, within its bounds; kept where there
    is no target, and where the KL is not a number."""
    kl = np.array([0.0, 0.49, 0.51, 1.9, 2.1, 50.0, np.nan]) * 2e-3
    found = vpg.adapt_step(np.full(7, 3e-3), kl, np.full(7, 2e-3))
    assert found == pytest.approx([4.5e-3, 4.5e-3, 3e-3, 3e-3, 2e-3, 2e-3, 3e-3])
    assert vpg.adapt_step(np.full(7, 3e-3), kl, np.zeros(7)).tolist() == [3e-3] * 7
    bounded = vpg.adapt_step(np.array([0.9, 1.2e-8, 5.0]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.1, 0.0]))
    assert bounded.tolist() == [1.0, 1e-8, 5.0]


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_vpg_iterations_against_a_second_implementation(task: str) -> None:
    """From the same weights and rollouts, three iterations end with the same weights and the same step size."""
    settings: list[dict[str, Any]] = [
        {},
        {"gae_lambda": 0.5, "gamma": 0.9, "normalize_advantages": 0.0, "max_grad_norm": 0.1},
        {"kl_target": 1e-9, "learning_rate": 1e-3, "anneal_steps": 60.0},
        {"kl_target": 10.0, "time_limit_bootstrap": 0.0, "value_learning_rate": 1e-2},
    ]
    sizes: dict[str, Any] = SIZES | {"num_steps": 10, "num_envs": 2, "num_value_steps": 4}
    agent = make("vpg", task, [setting | sizes for setting in settings], [1, 2, 3, 4])
    models = [leaves(agent.parameters_of(run)) for run in range(4)]
    optimizers = [[torch.optim.Adam(part(model, critic), eps=1e-8) for critic in (False, True)] for model in models]
    steps = [setting.get("learning_rate", 3e-4) for setting in settings]
    rollouts: list[Rollout] = []
    recorded(agent, rollouts, 0.1)
    for iteration in range(3):
        found = agent.iterate()
        for run, (model, setting) in enumerate(zip(models, settings, strict=True)):
            entries = [entry[:, run] for entry in rollouts[-1]]
            observations, actions = torch.from_numpy(entries[0]), torch.from_numpy(entries[1])
            advantages, _ = estimates(model, entries, setting, setting.get("gae_lambda", 0.97))
            monte_carlo, values = estimates(model, entries, setting, 1.0)
            if setting.get("normalize_advantages", 1.0):
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            left = max(0.0, 1 - iteration * 20 / setting.get("anneal_steps", inf))
            with torch.no_grad():
                old = policy_of({name: weight.clone() for name, weight in model.items()}, observations)
            loss = -(policy_of(model, observations).log_prob(actions) * advantages).mean()
            follow(part(model, False), loss, optimizers[run][0], setting.get("max_grad_norm", inf), steps[run] * left)
            for _ in range(4):
                errors = (values_of(model, observations) - (monte_carlo + values)) ** 2 / 2
                follow(
                    part(model, True),
                    errors.mean(),
                    optimizers[run][1],
                    inf,
                    setting.get("value_learning_rate", 1e-3) * left,
                )
            assert_near(agent, run, model)
            kl = torch.distributions.kl_divergence(old, policy_of(model, observations)).mean().item()
            assert found["kl"][run] == pytest.approx(kl, rel=1e-2, abs=1e-6)
            if setting.get("kl_target"):
                steps[run] *= 1.5 if kl < setting["kl_target"] / 2 else 1 / 1.5
            assert agent.step_size[run] == pytest.approx(steps[run])
    assert len({round(step, 9) for step in agent.step_size}) == 3


# ---------------------------------------------------------------------------------------------------------- REINFORCE
def test_returns_to_go_and_the_mean_of_others_by_definition() -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 1, 5, 2]
    rewards, ends = rng.standard_normal(11), np.zeros(11, bool)
    ends[np.cumsum(lengths) - 1] = True
    following = np.where(rng.random(11) < 0.5, 7.0, 0.0)
    starts = [0, 3, 4, 9]
    returns = np.zeros(11)
    for start, length in zip(starts, lengths, strict=True):
        for t in range(start, start + length):
            left = start + length - t
            returns[t] = sum(0.9**k * rewards[t + k] for k in range(left)) + 0.9**left * following[start + length - 1]
    found = reinforce.returns_to_go(rewards.tolist(), ends.tolist(), following.tolist(), 0.9)
    assert found == pytest.approx(returns)
    for start, length in zip(starts, lengths, strict=True):
        own = slice(start, start + length)
        assert reinforce.mean_of_others(returns, ends)[own] == pytest.approx(np.delete(returns, own).mean())


def test_reinforce_is_unbiased_in_a_two_step_task() -> None:
    """The expectation of the estimate over all pairs of trajectories is the exact gradient of the expected return, with
    every baseline; and the baselines make its variance smaller where rewards lie far from 0.

    First state 0, then state 1 + a; three actions; a reward for every state and action, and action 2 in state 0 ends.
    """
    rng = np.random.default_rng(1)
    features, rewards = rng.standard_normal((3, 5)).astype(np.float32), 5 + rng.standard_normal((3, 3))
    trajectories = [[(0, a), (1 + a, b)] for a in range(2) for b in range(3)] + [[(0, 2)]]
    pairs = list(itertools.product(trajectories, repeat=2))
    spread = {}
    for baseline in ("none", "mean", "value"):
        setting = {"baseline": baseline, "num_episodes": 2, "gamma": 1.0} | SIZES
        agent = build("reinforce", DISCRETE, [setting] * len(pairs), [0] * len(pairs))
        if baseline == "value":  # not the value function, but a function of the state that is in its region
            agent.parameters.fill("critic.bias2", np.full((len(pairs), 1, 1), 7.0))
        for run, pair in enumerate(pairs):
            steps = [step for trajectory in pair for step in trajectory]
            for k, (state, action) in enumerate(steps):
                agent.episodes["observations"][run, k] = features[state]
                agent.episodes["actions"][run, k] = action
                agent.episodes["rewards"][run, k] = rewards[state, action]
            agent.episodes["ends"][run, [len(pair[0]) - 1, len(steps) - 1]] = True
            agent.lengths[run] = len(steps)
            agent._policy_gradient(run, agent._batch(run))
        weights = {k: w for k, w in leaves(agent.parameters_of(0), torch.float64).items() if k.startswith("actor")}
        probs = torch.softmax(forward(weights, "actor", torch.from_numpy(features).double()), -1)
        chance = [
            math.prod((probs[s, a] for s, a in trajectory), start=torch.tensor(1.0)) for trajectory in trajectories
        ]
        worth = [sum(rewards[s, a] for s, a in trajectory) for trajectory in trajectories]
        expected = sum(p * r for p, r in zip(chance, worth, strict=True))
        exact = torch.autograd.grad(expected, list(weights.values()))
        odds = torch.tensor([(p * q).item() for p, q in itertools.product(chance, repeat=2)], dtype=torch.float64)
        assert odds.sum().item() == pytest.approx(1)
        spread[baseline] = 0.0
        for name, gradient in zip(weights, exact, strict=True):
            estimate = -agent.parameters.grads[name].double()  # of the loss, hence the sign
            mean = torch.tensordot(odds, estimate, 1)
            assert torch.allclose(mean, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), (baseline, name)
            spread[baseline] += torch.tensordot(odds, (estimate - gradient) ** 2, 1).sum().item()
    assert max(spread["mean"], spread["value"]) < spread["none"] / 2


@pytest.mark.parametrize(
    ("task", "baseline", "episodes"),
    [("CartPole-v1", "none", 1), ("CartPole-v1", "mean", 3), ("CartPole-v1", "value", 2), ("Pendulum-v1", "value", 1)],
)
def test_reinforce_updates_against_a_second_implementation(task: str, baseline: str, episodes: int) -> None:
    """Whole episodes as they were collected, cut out of the stream of steps, give the same weights run by run;
    Pendulum's end by the time limit, after which the critic's value follows, or nothing."""
    settings: list[dict[str, Any]] = [{}, {"gamma": 0.9, "max_grad_norm": 0.1}, {"time_limit_bootstrap": 0.0}]
    sizes = SIZES | {"baseline": baseline, "num_episodes": episodes, "num_value_steps": 3}
    sizes |= {"adam_epsilon": 1.0}  # else the first steps ask for the sign of gradients that are almost 0
    agent = make("reinforce", task, [setting | sizes for setting in settings], [1, 2, 3])
    models = [leaves(agent.parameters_of(run)) for run in range(3)]
    optimizers = [
        [torch.optim.Adam(part(model, critic), eps=1.0) if part(model, critic) else None for critic in (False, True)]
        for model in models
    ]
    stream: list[Rollout] = []
    collect = agent.collector.collect
    agent.collector.collect = lambda *args: stream.append(collect(*args)) or stream[-1]
    updates = sum(agent.iterate()["updates"] for _ in range(2))
    assert agent.envs.env_steps == len(stream) == 200 and updates.min() >= 1
    for run, (model, setting) in enumerate(zip(models, settings, strict=True)):
        gamma, steps, batch, made = setting.get("gamma", 0.99), [], [], 0
        for rollout in stream:
            steps.append([torch.from_numpy(np.asarray(entry[0, run, 0])) for entry in rollout])
            if not (steps[-1][4] or steps[-1][5]):
                continue
            batch.append(steps)
            steps = []
            if len(batch) < episodes:
                continue
            returns = []
            for episode in batch:
                later = torch.tensor(0.0)
                if baseline == "value" and not episode[-1][4] and setting.get("time_limit_bootstrap", 1.0):
                    later = values_of(model, episode[-1][3]).detach().squeeze(0)
                total = [later]
                for step in reversed(episode):
                    total.insert(0, step[2] + gamma * total[0])
                returns.append(torch.stack(total[:-1]))
            loss = torch.tensor(0.0)
            for i, episode in enumerate(batch):
                observations, actions = (torch.stack([step[k] for step in episode]) for k in (0, 1))
                against: Any = 0.0
                if baseline == "value":
                    against = values_of(model, observations).detach()
                elif baseline == "mean":
                    against = torch.cat([other for j, other in enumerate(returns) if j != i]).mean()
                loss = (
                    loss - (policy_of(model, observations).log_prob(actions) * (returns[i] - against)).sum() / episodes
                )
            follow(part(model, False), loss, optimizers[run][0], setting.get("max_grad_norm", inf), 1e-3)
            seen = torch.stack([step[0] for episode in batch for step in episode])
            for _ in range(3 if baseline == "value" else 0):
                errors = (values_of(model, seen) - torch.cat(returns)) ** 2 / 2
                follow(part(model, True), errors.mean(), optimizers[run][1], inf, 1e-3)
            batch, made = [], made + 1
        assert made == updates[run]
        assert_near(agent, run, model)


def test_reinforce_does_not_depend_on_how_iterations_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do its metrics: they are those of the last update, however long ago."""
    runs = [small("reinforce", baseline=baseline, num_episodes=2) for baseline in ("value", "value")]
    ends, last = [], []
    for steps in (100, 5):
        monkeypatch.setattr(reinforce, "STEPS", steps)
        agent = make("reinforce", "CartPole-v1", runs, [7, 8])
        metrics = [agent.iterate() for _ in range(200 // steps)]
        ends.append(agent.parameters_of(1))
        last.append({name: metrics[-1][name] for name in ("squared_grad_norm", "entropy")})
    assert_same(*ends)
    assert_same(*last)
    assert metrics[-1]["updates"].max() == 0 and np.isfinite(last[0]["squared_grad_norm"]).all()


def test_reinforce_with_the_mean_alone_equals_in_company() -> None:
    """The third baseline, which the generic properties do not reach."""
    runs = [small("reinforce", baseline="mean", num_episodes=2, gamma=gamma) for gamma in (0.99, 0.9, 1.0)]
    company = train("reinforce", "CartPole-v1", runs, [1, 2, 3], 200)
    (alone,) = train("reinforce", "CartPole-v1", runs[1:2], [2], 200)
    assert_same(company[1], alone)


@pytest.mark.parametrize(
    ("algorithm", "values", "named"),
    [
        ("a2c", {"gae_lambda": 1.1}, "gae_lambda"),
        ("a2c", {"optimizer_epsilon": 0.0}, "optimizer_epsilon"),
        ("a2c", {"rmsprop_decay": 2.0}, "rmsprop_decay"),
        ("vpg", {"num_value_steps": 0}, "num_value_steps"),
        ("vpg", {"num_steps": 1}, "num_steps"),
        ("vpg", {"gamma": -0.1}, "gamma"),
        ("reinforce", {"num_episodes": 0}, "num_episodes"),
        ("reinforce", {"baseline": "mean", "num_episodes": 1}, "num_episodes"),
        ("reinforce", {"baseline": "median"}, "baseline"),
    ],
)
def test_impossible_settings_are_refused(algorithm: str, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config(algorithm, None, values)
