"""DDPG, TD3, SAC, TQC: targets, losses and whole gradients against literal loops under autograd in float64, densities
by quadrature, noise by its moments, and what each reduces to when its part is switched off."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, assert_same, make, settings, small, train
from probes import ActionToReward
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import algorithms
from algorithms import ddpg, sac, td3, tqc
from algorithms.common.config import load_config, stack
from algorithms.common.distributions import SquashedGaussian
from algorithms.common.layers import Parameters
from algorithms.common.replay import Transitions

T = torch.tensor
BATCH, RUNS = 12, 3
FAMILY = ("ddpg", "td3", "sac", "tqc")
Weights = dict[str, Tensor]


# --------------------------------------------------------------------------------------------- agents and literal nets
def agent_of(name: str, **overrides: Any) -> Any:
    """Three runs on Hopper (11 numbers observed, 3 acted); target networks apart from the online ones."""
    shared = overrides | {"hidden_sizes": (10, 7), "batch_size": BATCH}
    runs = [{"tau": 0.1, "alpha": 0.5}, {"tau": 1.0, "alpha": 0.2}, {"tau": 0.01, "alpha": 3.0}]
    known = set(vars(load_config(name)))
    runs = [{key: value for key, value in run.items() if key in known} for run in runs]
    if "critic_hidden_sizes" in known:
        shared["critic_hidden_sizes"] = (9, 8, 6)
    agent = make(name, "Hopper-v5", [small(name, **shared, **run) for run in runs], range(RUNS))
    rng = np.random.default_rng(5)
    targets = [agent.critics.target] + ([agent.target_parameters] if hasattr(agent, "target_parameters") else [])
    for parameters in (agent.parameters, *targets):
        parameters.flat.add_(torch.from_numpy(0.3 * rng.standard_normal(parameters.flat.shape, np.float32)))
    return agent


def random_batch(agent: Any) -> Transitions:
    rng = np.random.default_rng(1)
    observations, successors = rng.standard_normal((2, RUNS, BATCH, 11), np.float32)
    actions = rng.uniform(-1, 1, (RUNS, BATCH, 3)).astype(np.float32)
    rewards = 3 * rng.standard_normal((RUNS, BATCH), np.float32)
    discounts = rng.choice([0.0, 0.9, 0.99], (RUNS, BATCH)).astype(np.float32)
    return Transitions(*(torch.from_numpy(x) for x in (observations, successors, actions, rewards, discounts)))


def noise_for(agent: Any, seed: int) -> Tensor:
    return torch.randn(RUNS, BATCH, 3, generator=torch.Generator().manual_seed(seed))


def weights64(parameters: Parameters, row: int) -> Weights:
    """One row's weights in float64, for autograd."""
    return {name: view[row].detach().double().requires_grad_() for name, view in parameters.views.items()}


def perceptron(weights: Weights, x: Tensor) -> Tensor:
    pairs = list(zip(*[iter(weights.values())] * 2, strict=True))
    for weight, bias in pairs[:-1]:
        x = (x @ weight + bias[0]).relu()
    return x @ pairs[-1][0] + pairs[-1][1][0]


def critics64(agent: Any, parameters: Parameters, run: int) -> list[Weights]:
    count = agent.critics.num_critics
    return [weights64(parameters, run * count + n) for n in range(count)]


def q_of(critic: Weights, observations: Tensor, actions: Tensor) -> Tensor:
    """[B, K]."""
    return perceptron(critic, torch.cat((observations, actions), -1))


def squashed(outputs: Tensor) -> TransformedDistribution:
    mean, log_std = outputs[..., :3], outputs[..., 3:].clamp(*sac.LOG_STD)
    return TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])


def assert_gradient(parameters: Parameters, row: int, loss: Tensor, weights: Weights) -> None:
    """What was written for this row is the gradient of the loss."""
    expected = torch.autograd.grad(loss, list(weights.values()))
    for name, by_weight in zip(weights, expected, strict=True):
        found = parameters.grads[name][row].double()
        assert torch.allclose(found, by_weight, rtol=2e-4, atol=2e-5 * float(by_weight.abs().max()) + 1e-8), name


# ------------------------------------------------------------------------------------------------- exploration, Polyak
@pytest.mark.parametrize(("theta", "std"), [(0.15, 0.2), (1.0, 0.1), (0.5, 1.0)])
def test_noise_has_the_moments_of_its_process(theta: float, std: float) -> None:
    """Stationary variance sigma^2 / (1 - (1 - theta)^2), autocorrelation (1 - theta)^k; five standard errors."""
    rng, count = np.random.default_rng(0), 20_000
    noise, (theta_, std_) = np.zeros((1, count, 1)), (np.full((1, 1, 1), x) for x in (theta, std))
    history = []
    for _ in range(70):
        noise = ddpg.noise_step(noise, theta_, std_, rng.standard_normal((1, count, 1)))
        history.append(noise[0, :, 0])
    variance = std**2 / (1 - (1 - theta) ** 2)
    assert history[-1].var() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    for lag in (1, 3):
        correlation = np.corrcoef(history[-1], history[-1 - lag])[0, 1]
        assert correlation == pytest.approx((1 - theta) ** lag, abs=5 / math.sqrt(count))


def test_noise_begins_anew_with_every_episode() -> None:
    agent = agent_of("ddpg", noise_std=0.0)
    agent.noise[:] = 0.25
    agent.started = np.array([[True, False]] * RUNS)
    explore = agent._explorer()
    expected = np.tanh(agent.actor_outputs(agent.observations))
    actions = explore(agent.observations, 0)
    assert np.array_equal(actions[:, 0], expected[:, 0])
    share = 1 - agent.cfg.noise_theta[:, None].astype(np.float32)
    assert np.allclose(actions[:, 1], np.clip(expected[:, 1] + share * 0.25, -1, 1), atol=1e-6)


def test_actions_fill_the_box() -> None:
    agent = make("td3", "InvertedPendulum-v5", [small("td3")] * 2, [0, 1])
    corners = np.array([-1.0, 0.0, 1.0], np.float32).reshape(1, 3, 1).repeat(2, 0)
    assert agent.to_box(corners)[0, :, 0].tolist() == [-3.0, 0.0, 3.0]
    assert agent.to_box(corners).dtype == np.float32


def test_polyak_by_hand() -> None:
    one, other = Parameters(4, {"w": (2,)}), Parameters(4, {"w": (2,)})
    one.fill("w", np.zeros((4, 2)))
    other.fill("w", np.full((4, 2), 8.0))
    one.lerp_(other, np.array([0.25, 0.0, 1.0, 0.25]))
    assert one["w"].tolist() == [[2.0, 2.0], [0.0, 0.0], [8.0, 8.0], [2.0, 2.0]]
    one.lerp_(other, np.full(4, 0.5))
    assert one["w"].tolist() == [[5.0, 5.0], [4.0, 4.0], [8.0, 8.0], [5.0, 5.0]]


@pytest.mark.parametrize("name", FAMILY)
def test_targets_follow(name: str) -> None:
    """theta' <- tau theta + (1 - tau) theta' with the run's own tau; 1 leaves no target network."""
    agent = agent_of(name, policy_period=1.0) if name == "td3" else agent_of(name)
    pairs = [(agent.critics.target, agent.critics.parameters, agent.critics.num_critics)]
    if hasattr(agent, "target_parameters"):
        pairs.append((agent.target_parameters, agent.parameters, 1))
    before = [target.flat.clone() for target, _, _ in pairs]
    agent.iterate()
    count = (50 * agent.cfg.num_envs - agent.cfg.learning_starts) // agent.cfg.train_period
    for (target, online, rows), old in zip(pairs, before, strict=True):
        run = slice(rows, 2 * rows)  # tau = 1
        for key, view in target.views.items():
            assert torch.equal(view[run], online[key][run])
        assert count > 1 and not torch.equal(target.flat, old)
    online, target = agent.parameters.flat.clone(), pairs[-1][0].flat.clone()
    if name in ("ddpg", "td3"):
        agent._update_targets(agent.cfg.tau)
        new = agent.target_parameters.split(agent.target_parameters.flat)["actor.weight1"]
        old = agent.target_parameters.split(target)["actor.weight1"]
        tau = torch.from_numpy(agent.cfg.tau).float()[:, None, None]
        assert torch.allclose(new, tau * agent.parameters.split(online)["actor.weight1"] + (1 - tau) * old, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- DDPG and TD3
@pytest.mark.parametrize(("name", "twin"), [("ddpg", False), ("td3", True), ("td3", False)])
def test_targets_against_a_loop(name: str, twin: bool) -> None:
    agent = agent_of(name) if name == "ddpg" else agent_of(name, twin=twin)
    batch, noise = random_batch(agent), noise_for(agent, 2)
    found = agent._targets(batch) if name == "ddpg" else agent._targets(batch, noise)
    for run, b in itertools.product(range(RUNS), range(BATCH)):
        successor = batch.next_observations[run, b].double()
        action = perceptron(weights64(agent.target_parameters, run), successor).tanh()
        if name == "td3":
            for i in range(3):
                eps = min(max(0.2 * float(noise[run, b, i]), -0.5), 0.5)
                action[i] = min(max(action[i].item() + eps, -1.0), 1.0)
        values = [q_of(critic, successor, action).item() for critic in critics64(agent, agent.critics.target, run)]
        assert len(values) == (2 if twin else 1)
        expected = float(batch.rewards[run, b]) + float(batch.discounts[run, b]) * min(values)
        assert found[run, b].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_gradients_of_the_deterministic_agents(name: str) -> None:
    """The critics' loss with its penalty, and I11: the policy's gradient is that of mean Q_1(s, mu(s)), under autograd
    and by differences."""
    agent = agent_of(name, weight_decay=0.05)
    batch = random_batch(agent)
    targets = torch.randn(RUNS, BATCH, generator=torch.Generator().manual_seed(3))
    critics = [critics64(agent, agent.critics.parameters, run) for run in range(RUNS)]
    learned = agent._update_critics(batch, targets)
    for run in range(RUNS):
        for n, critic in enumerate(critics[run]):
            q_values = q_of(critic, batch.observations[run].double(), batch.actions[run].double())[:, 0]
            loss = (targets[run].double() - q_values).square().mean()
            assert learned["critic_loss"][run, n].mean().item() == pytest.approx(loss.item(), rel=1e-4)
            penalty = 0.05 / 2 * sum(weight.square().sum() for weight in critic.values())
            assert_gradient(agent.critics.parameters, run * len(critics[run]) + n, loss + penalty, critic)

    actors = [weights64(agent.parameters, run) for run in range(RUNS)]
    agent._update_actor(batch)
    for run, actor in enumerate(actors):
        observations = batch.observations[run].double()
        first = critics64(agent, agent.critics.parameters, run)[0]

        def loss_of(weights: Weights, observations: Tensor = observations, first: Weights = first) -> Tensor:
            return -q_of(first, observations, perceptron(weights, observations).tanh()).mean()

        assert_gradient(agent.parameters, run, loss_of(actor), actor)
        direction = {name: torch.randn_like(weight) for name, weight in actor.items()}
        ahead, behind = (loss_of({k: w + h * direction[k] for k, w in actor.items()}) for h in (1e-5, -1e-5))
        slope = sum(float((agent.parameters.grads[k][run].double() * direction[k]).sum()) for k in actor)
        assert slope == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-3)


def test_weights_and_priorities_of_prioritized_replay() -> None:
    """The loss counts each transition by its weight; its priority becomes the mean of its |TD errors|."""
    agent = agent_of("td3", prioritized=True, weight_decay=0.0)
    batch, given = random_batch(agent), {}
    targets, weights = torch.rand(2, RUNS, BATCH, generator=torch.Generator().manual_seed(3))
    agent.replay.update = lambda indices, td_errors: given.update(indices=indices, td_errors=td_errors)
    critics = [critics64(agent, agent.critics.parameters, run) for run in range(RUNS)]
    indices = np.arange(RUNS * BATCH).reshape(RUNS, BATCH)
    agent._update_critics(batch, targets, (indices, weights))
    assert given["indices"] is indices
    for run in range(RUNS):
        sizes = []
        for n, critic in enumerate(critics[run]):
            q_values = q_of(critic, batch.observations[run].double(), batch.actions[run].double())[:, 0]
            errors = targets[run].double() - q_values
            sizes.append(errors.abs().detach())
            assert_gradient(agent.critics.parameters, 2 * run + n, (weights[run] * errors.square()).mean(), critic)
        assert torch.allclose(given["td_errors"][run].double(), torch.stack(sizes).mean(0), atol=1e-5)


@pytest.mark.parametrize("task", ["Pendulum-v1", "Hopper-v5"])
def test_td3_without_its_changes_is_ddpg(task: str) -> None:
    """Bit for bit, with the same settings and seeds."""
    own = {"twin": False, "smoothing_std": 0.0, "policy_period": 1.0}
    shared = {"noise_theta": 0.15, "noise_std": 0.2, "tau": 0.01, "weight_decay": 0.01, "last_layer": 3e-3}
    rates = [{"learning_rate": 1e-3, "actor_learning_rate": 1e-4}, {"learning_rate": 3e-4, "actor_learning_rate": 3e-4}]
    parents = train("ddpg", task, [small("ddpg", **shared, **rate) for rate in rates], [7, 8])
    children = train("td3", task, [small("td3", **own, **shared, **rate) for rate in rates], [7, 8])
    for parent, child in zip(parents, children, strict=True):
        assert_same(parent, child)
    changed = train("td3", task, [small("td3", **own | {"smoothing_std": 0.2}, **shared, **rates[0])], [7])
    assert not np.array_equal(changed[0]["weights/actor.weight0"], children[0]["weights/actor.weight0"])


def test_the_policy_is_updated_every_d_updates() -> None:
    runs = [small("td3", policy_period=float(period)) for period in (1, 2, 3)]
    agent = make("td3", "Pendulum-v1", runs, [0, 0, 0])
    agent.iterate()
    count = agent.updates
    assert count == (100 - 24) // 2
    assert agent.critic_optimizer.steps.tolist() == [count] * 6
    assert agent.actor_optimizer.steps.tolist() == [count, count // 2, count // 3]


def test_smoothing_by_hand() -> None:
    actions, noise = T([[[0.0, 0.9, -0.9]]]), T([[[0.7, 0.3, -0.2]]])
    found = td3.smoothed(actions, noise, T([[[0.5]]]))
    assert torch.allclose(found, T([[[0.5, 1.0, -1.0]]]))


# ------------------------------------------------------------------------------------------------- squashed Gaussians
def test_squashed_density_integrates_to_one() -> None:
    """I10, by quadrature over the action."""
    actions = torch.linspace(-1, 1, 400_003, dtype=torch.float64)[1:-1].view(1, -1, 1)
    for mean, log_std in itertools.product((-0.7, 0.0, 2.0), (-1.5, 0.0)):
        policy = SquashedGaussian(torch.full_like(actions, mean), torch.full_like(actions, log_std))
        noise = (torch.atanh(actions) - mean) / math.exp(log_std)
        again, log_probs = policy.sample(noise)
        assert torch.allclose(again, actions)
        assert torch.trapezoid(log_probs[0].exp(), actions[0, :, 0]).item() == pytest.approx(1, abs=1e-4)


def test_squashed_log_probs_and_gradient_are_torchs() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise, by_actions = torch.randn(4, 2, 5, 3, generator=rng, dtype=torch.float64)
    w_p = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    mean.requires_grad_(), log_std.requires_grad_()
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    expected = (mean + log_std.exp() * noise).tanh()
    expected_log_probs = reference.log_prob(expected).sum(-1)
    policy = SquashedGaussian(mean.detach(), log_std.detach())
    actions, log_probs = policy.sample(noise)
    assert torch.allclose(actions, expected) and torch.allclose(log_probs, expected_log_probs)
    u = mean + log_std.exp() * noise
    through = Normal(mean, log_std.exp()).log_prob(u).sum(-1) - (1 - u.tanh().square()).log().sum(-1)
    loss = (by_actions * expected).sum() + (w_p * through).sum()
    for found, wanted in zip(
        policy.gradient(noise, actions, by_actions, w_p), torch.autograd.grad(loss, (mean, log_std)), strict=True
    ):
        assert torch.allclose(found, wanted)
    far = SquashedGaussian(T([[[30.0, -30.0]]]), T([[[0.0, 2.0]]])).sample(T([[[1.0, -1.0]]]))
    assert torch.isfinite(far[1]).all()


def test_reparameterised_gradient_is_the_score_functions() -> None:
    """I10: E[d/dtheta (alpha log pi - Q)(a_theta(eps))] = E[(alpha log pi - Q) d log pi / dtheta], by quadrature."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(120))
    weights = (weights / weights.sum()).view(1, -1)
    noise, alpha = nodes.view(1, -1, 1), 0.3
    policy = SquashedGaussian(torch.full_like(noise, 0.4), torch.full_like(noise, -0.6))
    actions, log_probs = policy.sample(noise)
    q_values, by_actions = (torch.sin(2 * actions) + actions**3)[..., 0], 2 * torch.cos(2 * actions) + 3 * actions**2
    pathwise = policy.gradient(noise, actions, -by_actions * weights.unsqueeze(2), alpha * weights)
    gain = weights * (alpha * log_probs - q_values)
    scores = noise[..., 0] / math.exp(-0.6), noise[..., 0].square() - 1
    for found, score in zip(pathwise, scores, strict=True):
        assert found.sum().item() == pytest.approx((gain * score).sum().item(), rel=1e-6)


# --------------------------------------------------------------------------------------------------------- SAC and TQC
def test_temperature_slope_is_that_of_equation_18() -> None:
    log_probs = torch.randn(3, 8, dtype=torch.float64)
    log_alpha = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    entropy = T([[-3.0], [-1.0], [0.5]], dtype=torch.float64)
    loss = (-log_alpha.exp() * log_probs - log_alpha.exp() * entropy).mean(1).sum()
    (expected,) = torch.autograd.grad(loss, log_alpha)
    assert torch.allclose(sac.temperature_slope(log_probs, log_alpha.detach().exp(), entropy), expected)


def test_a_fixed_temperature_stays() -> None:
    agent = make("sac", "Pendulum-v1", [small("sac", automatic=x, alpha=0.3) for x in (0.0, 1.0)], [0, 1])
    agent.iterate()
    fixed, moved = agent.temperature["log_alpha"].exp().flatten().tolist()
    assert fixed == pytest.approx(0.3) and moved != pytest.approx(0.3, rel=1e-4)


SOFT = [
    pytest.param("sac", {}, id="sac"),
    pytest.param("sac", {"num_critics": 1}, id="sac of one critic"),
    pytest.param("tqc", {"num_critics": 3, "num_quantiles": 4, "num_dropped": 1}, id="tqc"),
    pytest.param("tqc", {"num_critics": 1, "num_quantiles": 5, "num_dropped": 0}, id="tqc without truncation"),
]


@pytest.mark.parametrize(("name", "structure"), SOFT)
def test_soft_targets_against_a_loop(name: str, structure: dict[str, Any]) -> None:
    agent = agent_of(name, **structure)
    batch, noise, alpha = random_batch(agent), noise_for(agent, 4), T([[0.5], [0.2], [3.0]])
    found = agent._targets(batch, alpha, noise)
    for run, b in itertools.product(range(RUNS), range(BATCH)):
        successor = batch.next_observations[run, b].double()
        policy = squashed(perceptron(weights64(agent.parameters, run), successor))
        u = policy.base_dist.loc + policy.base_dist.scale * noise[run, b].double()
        log_prob = (policy.base_dist.log_prob(u) - (1 - u.tanh().square()).log()).sum().item()
        critics = critics64(agent, agent.critics.target, run)
        values = sorted(z for critic in critics for z in q_of(critic, successor, u.tanh()).tolist())
        kept = (
            values[:1] if name == "sac" else values[: len(critics) * (agent.cfg.num_quantiles - agent.cfg.num_dropped)]
        )
        worth = [float(batch.discounts[run, b]) * (z - float(alpha[run]) * log_prob) for z in kept]
        expected = [float(batch.rewards[run, b]) + w for w in worth]
        assert found[run, b].reshape(-1).tolist() == pytest.approx(expected, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize(("name", "structure"), SOFT)
def test_gradients_of_the_soft_agents(name: str, structure: dict[str, Any]) -> None:
    """Of the critics' loss (TQC's pair by pair) and of the policy's, through the sample and the least critic."""
    agent = agent_of(name, **structure)
    batch, noise, alpha = random_batch(agent), noise_for(agent, 6), T([[0.5], [0.2], [3.0]])
    kept = (RUNS, BATCH) if name == "sac" else (RUNS, BATCH, 7)
    targets = 2 * torch.randn(kept, generator=torch.Generator().manual_seed(5))
    critics = [critics64(agent, agent.critics.parameters, run) for run in range(RUNS)]
    learned = agent._update_critics(batch, targets)
    for run in range(RUNS):
        inputs, total = (batch.observations[run].double(), batch.actions[run].double()), 0.0
        for n, critic in enumerate(critics[run]):
            outputs, loss = q_of(critic, *inputs), T(0.0, dtype=torch.float64)
            if name == "sac":
                loss = 0.5 * (outputs[:, 0] - targets[run].double()).square().mean()
            else:
                for (m, theta), target in itertools.product(
                    enumerate(outputs.unbind(1)), targets[run].double().unbind(1)
                ):
                    u = target - theta
                    pairs = torch.where(u.abs() <= 1, 0.5 * u.square(), u.abs() - 0.5)
                    level = (m + 0.5) / outputs.shape[1]
                    loss = loss + ((level - (u < 0).double()).abs() * pairs).mean()
                loss = loss / (outputs.shape[1] * targets.shape[2] * len(critics[run]))
            total += loss.item()
            assert_gradient(agent.critics.parameters, run * len(critics[run]) + n, loss, critic)
        if name == "sac":
            assert learned["critic_loss"][run].mean().item() == pytest.approx(total / len(critics[run]), rel=1e-4)

    weight = agent.parameters.views["actor.weight2"].detach()
    weight[..., 3:] *= 4  # some standard deviations are beyond their bound, where they have no gradient
    actors = [weights64(agent.parameters, run) for run in range(RUNS)]
    q_values, _ = agent._update_actor(batch, alpha, noise)
    bounded = 0
    for run, actor in enumerate(actors):
        observations = batch.observations[run].double()
        outputs = perceptron(actor, observations)
        policy = squashed(outputs)
        bounded += int((outputs[:, 3:] > sac.LOG_STD[1]).sum())
        u = policy.base_dist.loc + policy.base_dist.scale * noise[run].double()
        correction = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        log_probs = (policy.base_dist.log_prob(u) - correction).sum(-1)
        worth = torch.stack(
            [q_of(critic, observations, u.tanh()) for critic in critics64(agent, agent.critics.parameters, run)]
        )  # [C, B, M]
        value = worth[..., 0].amin(0) if name == "sac" else worth.mean((0, 2))
        assert torch.allclose(q_values[run].double(), value, rtol=1e-4, atol=1e-4)
        assert_gradient(agent.parameters, run, (float(alpha[run]) * log_probs - value).mean(), actor)
    assert 0 < bounded < RUNS * BATCH * 3


def test_the_first_versions_value_network() -> None:
    """y = r + gamma V'(s'), and V's gradient is that of half its squared distance from the soft values."""
    agent = agent_of("sac_v")
    batch, soft_values = random_batch(agent), 2 * torch.randn(RUNS, BATCH, generator=torch.Generator().manual_seed(8))
    agent.state_values.target.flat.add_(0.1)
    before = agent.state_values.target.flat.clone()
    found = agent._targets(batch, T([[0.5], [0.2], [3.0]]))
    values = [weights64(agent.state_values.parameters, run) for run in range(RUNS)]
    for run in range(RUNS):
        next_values = perceptron(weights64(agent.state_values.target, run), batch.next_observations[run].double())[:, 0]
        expected = batch.rewards[run].double() + batch.discounts[run].double() * next_values
        assert torch.allclose(found[run].double(), expected, rtol=1e-4, atol=1e-4)
    agent._update_targets(batch, soft_values)
    for run, weights in enumerate(values):
        estimates = perceptron(weights, batch.observations[run].double())[:, 0]
        assert_gradient(
            agent.state_values.parameters, run, 0.5 * (estimates - soft_values[run]).square().mean(), weights
        )
    tau = T([0.1, 1.0, 0.01]).view(-1, 1, 1)
    old, new, online = (
        agent.state_values.target.split(flat)["value.weight1"]
        for flat in (before, agent.state_values.target.flat, agent.state_values.parameters.flat)
    )
    assert torch.allclose(new, tau * online + (1 - tau) * old, atol=1e-6)


def test_truncation_by_hand() -> None:
    """Two critics of three quantiles: the two largest of all six go, wherever they come from."""
    quantiles = T([[[[5.0, 1.0, 9.0]], [[2.0, 8.0, 0.0]]]])  # [R, C, B, M]
    assert tqc.truncated(quantiles, 1).tolist() == [[[0.0, 1.0, 2.0, 5.0]]]
    assert tqc.truncated(quantiles, 0).tolist() == [[[0.0, 1.0, 2.0, 5.0, 8.0, 9.0]]]


def test_the_temperature_brings_the_entropy_to_its_target() -> None:
    """I12, on a task of one step whose reward falls with the squared distance from the best action."""
    entropies = (-1.0, -0.5, 0.0)
    runs = [load_config("sac", None, settings("sac", PROBE, target_entropy=h0)) for h0 in entropies]
    agent = algorithms.load("sac").Agent(stack(runs), ActionToReward(3, 8, False), [0, 1, 2])
    found = []
    while agent.env_steps < 6000:
        found.append(agent.iterate()["entropy"])
    assert np.abs(np.mean(found[-8:], 0) - entropies).max() < 0.2


@pytest.mark.parametrize("name", ["td3", "sac", "tqc"])
def test_values_are_the_first_critics(name: str) -> None:
    agent = agent_of(name)
    observations = torch.from_numpy(np.random.default_rng(0).standard_normal((RUNS, 5, 11), np.float32))
    actions = agent.mode(observations)
    outputs, _ = agent.critics.forward(agent.critics.parameters, observations, actions)
    assert not torch.equal(outputs[:, 0], outputs[:, 1])
    assert np.allclose(agent.values(observations.numpy()), outputs[:, 0].mean(-1).detach().numpy(), atol=1e-5)
