"""A2C with ACER's trust region: gradients by autograd, the projection by its optimality conditions, the whole gradient
through the network, and A2C itself where the region has no bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from test_policy_gradient import build, leaves, policy_of
from test_ppo import CONTINUOUS, DISCRETE, Spaces
from test_trpo import normal
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from algorithms import a2c_trust_region
from algorithms.common.config import load_config, presets
from algorithms.common.distributions import Categorical, Distribution, Gaussian

inf = math.inf
ENT_COEF = torch.tensor([[0.0], [0.3]], dtype=torch.float64)
SIZES: dict[str, Any] = {"hidden_sizes": [16, 16], "num_steps": 6, "num_envs": 2}


def pairs(discrete: bool) -> tuple[Distribution, Distribution, Tensor]:
    """pi, pi_a and actions of two runs, nine samples."""
    if discrete:
        actions = torch.randint(4, (2, 9), generator=torch.Generator().manual_seed(0))
        return Categorical(normal(2, 9, 4)), Categorical(normal(2, 9, 4, seed=2)), actions
    log_stds = 0.3 * normal(2, 1, 3, seed=4), 0.3 * normal(2, 1, 3, seed=5)
    means = normal(2, 9, 3), normal(2, 9, 3, seed=2)
    return Gaussian(means[0], log_stds[0]), Gaussian(means[1], log_stds[1]), normal(2, 9, 3, seed=3)


def literal(policy: Distribution, average: Distribution, actions: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """g and k by autograd with respect to the statistics; probabilities are free of each other."""
    if isinstance(policy, Categorical) and isinstance(average, Categorical):
        phi = policy.log_probs.exp().requires_grad_()
        log_prob = phi.log().gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        entropy = -(phi * phi.log()).sum(-1)
        kl = (average.log_probs.exp() * (average.log_probs - phi.log())).sum(-1)
    else:
        assert isinstance(policy, Gaussian) and isinstance(average, Gaussian)
        phi = torch.cat((policy.mean, policy.log_std.expand_as(policy.mean)), -1).requires_grad_()
        mean, log_std = phi.chunk(2, -1)
        new = Independent(Normal(mean, log_std.exp()), 1)
        log_prob, entropy = new.log_prob(actions), new.entropy()
        kl = kl_divergence(Independent(Normal(average.mean, average.log_std.exp()), 1), new)
    gain = (log_prob * advantages + ENT_COEF * entropy).sum()
    return torch.autograd.grad(gain, phi, retain_graph=True)[0], torch.autograd.grad(kl.sum(), phi)[0]


@pytest.mark.parametrize("discrete", [True, False])
def test_gradients_by_the_statistics(discrete: bool) -> None:
    policy, average, actions = pairs(discrete)
    advantages = normal(2, 9, seed=6)
    ours = a2c_trust_region.statistics_gradients(policy, average, actions, advantages, ENT_COEF)
    for mine, expected in zip(ours, literal(policy, average, actions, advantages), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-12)


def test_multiplier_by_hand() -> None:
    """g = (2, 1): k = (1, 0) allows 0.5, so z = (0.5, 1); k = (-1, 0) leads back, k = (0, 0) is nowhere to leave."""
    g, k = torch.tensor([[[2.0, 1.0]] * 3]), torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    assert a2c_trust_region.multiplier(g, k, torch.tensor([[0.5]])).tolist() == [[1.5, 0.0, 0.0]]
    assert a2c_trust_region.multiplier(g, k, torch.tensor([[inf]])).tolist() == [[0.0, 0.0, 0.0]]


def test_projection_is_the_closest_allowed_gradient() -> None:
    """z is allowed, and no allowed point of a cloud around it is closer to g (equation 11)."""
    g, k, delta = normal(2, 9, 4), normal(2, 9, 4, seed=2), torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    z = g - a2c_trust_region.multiplier(g, k, delta).unsqueeze(-1) * k
    assert ((k * z).sum(-1) <= delta + 1e-12).all()
    moved = ((z - g).abs().sum(-1) > 0).sum()
    assert 0 < moved < 18
    others = z + 0.1 * normal(500, 2, 9, 4, seed=3)
    allowed = (k * others).sum(-1) <= delta
    closer = (others - g).norm(dim=-1) < (z - g).norm(dim=-1) - 1e-12
    assert allowed.any(0).all() and not (allowed & closer).any()


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_gradient_is_the_projected_one_through_the_network(spaces: Spaces) -> None:
    """mean_b( -z^T phi ) with z held fixed, by autograd in float64; runs with their own delta."""
    settings = [{"delta": 0.05}, {"delta": 0.5, "ent_coef": 0.3}, {"delta": inf}]
    agent = build("a2c_trust_region", spaces, [SIZES | setting for setting in settings], [0, 1, 2])
    rng = torch.Generator().manual_seed(0)
    agent.average.flat.copy_(torch.randn(len(agent.average.flat), generator=rng) / 3)
    observations, advantages = torch.randn(3, 40, 5, generator=rng), torch.randn(3, 40, generator=rng)
    actions = torch.randint(3, (3, 40), generator=rng) if spaces.num_actions else torch.randn(3, 40, 2, generator=rng)
    agent._policy_gradient(observations, actions, advantages)
    for run, setting in enumerate(settings):
        weights = leaves(agent.parameters_of(run), torch.float64)
        old = {name: view[run].detach().double() for name, view in agent.average.views.items()}
        policy, average = (policy_of(w, observations[run].double()) for w in (weights, old))
        if spaces.num_actions:
            phi, q = policy.probs, average.probs
            log_prob = phi.log().gather(-1, actions[run][:, None])[:, 0]
            entropy, kl = -(phi * phi.log()).sum(-1), (q * (q / phi).log()).sum(-1)
        else:
            phi = torch.cat((policy.base_dist.mean, policy.base_dist.stddev.log()), -1)
            mean, log_std = phi.chunk(2, -1)
            new = Independent(Normal(mean, log_std.exp()), 1)
            log_prob, entropy, kl = new.log_prob(actions[run]), new.entropy(), kl_divergence(average, new)
        gain = log_prob * advantages[run] + setting.get("ent_coef", 0.01) * entropy
        g, k = (torch.autograd.grad(x.sum(), phi, retain_graph=True)[0] for x in (gain, kl))
        too_fast = (k * g).sum(-1, keepdim=True) - setting["delta"]
        z = g - (too_fast / k.square().sum(-1, keepdim=True)).clamp(min=0) * k
        assert agent.constrained[run].item() == pytest.approx((too_fast > 0).double().mean().item())
        names = [name for name in weights if not name.startswith("critic")]
        loss = -(z.detach() * phi).sum(-1).mean()
        for name, expected in zip(names, torch.autograd.grad(loss, [weights[name] for name in names]), strict=True):
            ours = agent.parameters.grads[name][run].double()
            assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item()), (run, name)
    assert 0 < agent.constrained[0] < 1 and agent.constrained[2] == 0


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_without_a_bound_it_is_a2c(task: str) -> None:
    """Bit for bit; with a tight one it is not."""
    fast = SIZES | {"learning_rate": 0.03}
    parent = make("a2c", task, [fast] * 2, [1, 2])
    agent = make("a2c_trust_region", task, [fast | {"delta": inf}, fast | {"delta": 1e-3}], [1, 2])
    for _ in range(12):
        expected, metrics = parent.iterate(), agent.iterate()
    assert set(metrics) == set(expected) | {"constrained"}
    same = [
        all(np.array_equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
        for one, other in ((parent.parameters_of(run), agent.parameters_of(run)) for run in range(2))
    ]
    assert same == [True, False]


def test_average_follows_the_policy() -> None:
    agent = make("a2c_trust_region", "Pendulum-v1", [SIZES | {"average_decay": 0.8}] * 2, [1, 2])
    expected = {name: view.detach().clone() for name, view in agent.of_policy.views.items()}
    for _ in range(3):
        agent.iterate()
        for name, view in agent.of_policy.views.items():
            expected[name] = 0.8 * expected[name] + 0.2 * view.detach()
            assert torch.allclose(agent.average[name], expected[name], atol=1e-7)


def test_settings() -> None:
    for name in ("delta", "average_decay"):
        with pytest.raises(ValueError, match=name):
            load_config("a2c_trust_region", None, {name: -1.0})
    assert set(presets("a2c_trust_region")) == set(presets("a2c"))
    assert load_config("a2c_trust_region", "paper").average_decay == 0.995
