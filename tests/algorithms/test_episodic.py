"""REPS and NAC: the dual and its weights against autograd and closed forms, gradients and whole iterations against
second, slow implementations, compatible features against explicit Fisher matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from test_ppo import CONTINUOUS, DISCRETE, Literal, Spaces
from test_trpo import double, explicit_fisher, literal_policy, random_policy, scores  # noqa: F401
from torch import Tensor

from algorithms import nac, reps
from algorithms.common import natural

SIZES: dict[str, Any] = {"num_steps": 96, "num_envs": 2, "batch_size": 32, "num_epochs": 2, "hidden_sizes": [8, 8]}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def recorded(seen: list[Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, which keeps what it returns."""

    def wrapped(*args: Any) -> Any:
        seen.append(call(*args))
        return seen[-1]

    return wrapped


# ----------------------------------------------------------------------------------------------------------------- REPS
def test_dual_by_hand() -> None:
    """Advantages 0 and log 3 at eta = 1: the weights are 1/4 and 3/4, g = epsilon + log 2."""
    advantages, eta = torch.tensor([[0.0, math.log(3)]]).double(), torch.ones(1, 1).double()
    p, kl, slope = reps.tilted(eta, advantages)
    assert p[0].tolist() == pytest.approx([0.25, 0.75])
    assert kl.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert slope.item() == pytest.approx(0.25 * 0.75 * math.log(3) ** 2)
    assert reps.dual(eta, advantages, torch.tensor([[0.1]])).item() == pytest.approx(0.1 + math.log(2))


def test_derivatives_of_the_dual() -> None:
    """g' = epsilon - KL(p || uniform), and the KL's slope, against autograd and finite differences; g is convex."""
    advantages, epsilon = 3 * normal(5, 40), torch.tensor([[0.01], [0.1], [0.5], [1.0], [2.0]]).double()
    for scale in (0.3, 1.0, 5.0):
        eta = torch.full((5, 1), scale, dtype=torch.float64, requires_grad=True)
        g = reps.dual(eta, advantages, epsilon)
        (by_eta,) = torch.autograd.grad(g.sum(), eta, create_graph=True)
        p, kl, slope = reps.tilted(eta, advantages)
        assert torch.allclose(by_eta, epsilon - kl, rtol=1e-10, atol=1e-12)
        (curvature,) = torch.autograd.grad(by_eta.sum(), eta)
        assert torch.allclose(curvature, slope / eta, rtol=1e-8) and (curvature > 0).all()
        h = 1e-5
        difference = (reps.dual(eta + h, advantages, epsilon) - reps.dual(eta - h, advantages, epsilon)) / (2 * h)
        assert torch.allclose(by_eta, difference, rtol=1e-6, atol=1e-8)
        assert torch.allclose(p.sum(1), torch.ones(5).double(), rtol=1e-14)


def test_at_the_optimum_the_bound_is_met() -> None:
    """Weights sum to 1, their KL is epsilon, the dual is lower there than beside it and equals the expected advantage
    (no gap to the primal); whatever the scale of the advantages, and each run alone to the bit."""
    rng = np.random.default_rng(0)
    epsilon = torch.from_numpy(np.geomspace(1e-6, 3.0, 12)[:, None])
    for scale, shift in ((1.0, 0.0), (1e-6, 3.0), (1e6, -1e7)):
        draws = np.concatenate([rng.standard_normal((6, 64)), rng.exponential(size=(6, 64)) ** 3])
        advantages = torch.from_numpy(scale * draws + shift)
        eta, solved = reps.solve_dual(advantages, epsilon)
        p, kl, _ = reps.tilted(eta, advantages)
        assert solved.all() and torch.allclose(kl, epsilon, rtol=1e-7, atol=0)
        assert torch.allclose(p.sum(1), torch.ones(12).double(), rtol=1e-12) and (p >= 0).all()
        best = reps.dual(eta, advantages, epsilon)
        for factor in (0.9, 0.99, 1.01, 1.1):
            assert (reps.dual(eta * factor, advantages, epsilon) > best).all()
        if shift == 0:
            assert torch.allclose((p * advantages).sum(1, keepdim=True), best, rtol=1e-6)
        for run in range(12):
            alone, _ = reps.solve_dual(advantages[run : run + 1], epsilon[run : run + 1])
            assert torch.equal(alone[0], eta[run])


def test_a_dual_without_an_optimum_inside() -> None:
    """Equal advantages, a bound that no weights exceed, one wild sample, numbers that are not finite: the healthy run
    is what it is alone, and every other one has weights that make sense."""
    advantages = normal(5, 8)
    advantages[1], advantages[2] = 2.5, torch.tensor([1.0] * 4 + [0.0] * 4)
    advantages[3, 0], advantages[4, 3] = 1e9, math.nan
    epsilon = torch.full((5, 1), 1.0).double()  # the third run's KL is log 2 at most
    eta, solved = reps.solve_dual(advantages, epsilon)
    p, kl, _ = reps.tilted(eta, advantages)
    alone, _ = reps.solve_dual(advantages[:1], epsilon[:1])
    assert torch.equal(alone[0], eta[0]) and kl[0].item() == pytest.approx(1.0)
    assert p[1].tolist() == pytest.approx([1 / 8] * 8)
    assert p[2].tolist() == pytest.approx([1 / 4] * 4 + [0.0] * 4) and not solved[2]
    assert kl[3].item() == pytest.approx(1.0) and p[3, 0] > 0.5


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_reps_against_a_slow_iteration(task: str) -> None:
    """Two iterations of three runs: the weights by a search for eta, the fit by torch's autograd and Adam."""
    runs = [SIZES | more for more in ({}, {"epsilon": 0.1, "learning_rate": 1e-3}, {"epsilon": 2.0, "gamma": 0.9})]
    agent = make("reps", task, runs, [0, 1, 2])
    fit = agent._fit
    seen: list[Any] = []
    agent._prepare = recorded(seen, agent._prepare)

    def recorded_fit(batch: Any, weights: Tensor) -> None:
        seen.append(weights.clone())
        fit(batch, weights)

    agent._fit = recorded_fit
    literals = [Literal(agent.parameters_of(run)) for run in range(3)]
    rates = agent.cfg.learning_rate.tolist()
    optimizers = [torch.optim.Adam(one.parameters(), lr=rate) for one, rate in zip(literals, rates, strict=True)]
    for _ in range(2):
        generators = [np.random.default_rng() for _ in range(3)]
        agent.streams["minibatches"]
        for mine, own in zip(generators, agent.streams["minibatches"], strict=True):
            mine.bit_generator.state = own.bit_generator.state
        metrics = agent.iterate()
        batch, ours = seen[-2:]
        for run, literal in enumerate(literals):
            advantages, epsilon = batch.advantages[run].double(), float(agent.cfg.epsilon[run])
            low, high = 1e-6, 1e6
            for _ in range(200):
                eta = math.sqrt(low * high)
                p = torch.softmax(advantages / eta, 0)
                kl = sum(x * math.log(192 * x) for x in p.tolist() if x > 0)
                low, high = (eta, high) if kl > epsilon else (low, eta)
            assert metrics["eta"][run] == pytest.approx(eta, rel=1e-6)
            assert metrics["weights_kl"][run] == pytest.approx(epsilon, rel=1e-6)
            assert ours[run].tolist() == pytest.approx((192 * p).tolist(), rel=1e-4, abs=1e-6)
            for _ in range(2):
                order = generators[run].permutation(192)
                for rows in order.reshape(-1, 32):
                    policy = literal.policy(batch.observations[run, rows])
                    fits = -(192 * p[rows].float() * policy.log_prob(batch.actions[run, rows])).mean()
                    errors = literal.critic(batch.observations[run, rows]).squeeze(-1) - batch.returns[run, rows]
                    optimizers[run].zero_grad()
                    (fits + errors.square().mean() / 2).backward()
                    optimizers[run].step()
            expected = literal.weights()
            for name, weights in agent.parameters_of(run).items():
                assert np.abs(weights - expected[name].detach().numpy()).max() < 2e-5, (run, name)


# ------------------------------------------------------------------------------------------------------------------ NAC
SPACES = pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def some_actions(spaces: Spaces, runs: int, count: int) -> Tensor:
    rng = np.random.default_rng(7)
    if spaces.num_actions:
        return torch.from_numpy(rng.integers(0, spaces.num_actions, (runs, count)))
    return torch.from_numpy(rng.standard_normal((runs, count, *spaces.action_shape)))


@SPACES
def test_features_are_the_scores(spaces: Spaces, double: None) -> None:  # noqa: F811
    """x_b^T v and the regression's matrix against autograd's grad log pi(a_b|s_b), sample by sample."""
    policy = random_policy(spaces)
    observations, actions, damping = normal(3, 11, 5), some_actions(spaces, 3, 11), torch.tensor([[0.0], [0.1], [2.0]])
    product = nac.regression_product(policy, observations, actions, damping)
    size = natural.to_vectors(policy.parameters.views).shape[1]
    vectors = normal(3, size, seed=4)
    ours = product(vectors)
    for run in range(3):
        weights, at = literal_policy(policy, run)
        x = scores(weights, lambda w, at=at, run=run: at(w, observations[run]).log_prob(actions[run]))  # [B, D]
        expected = x.T @ (x @ vectors[run]) / 11 + damping[run] * vectors[run]
        assert torch.allclose(ours[run], expected, rtol=1e-10, atol=1e-12)


@SPACES
def test_w_is_the_least_squares_fit(spaces: Spaces, double: None) -> None:  # noqa: F811
    """Of the advantages on the features, by LAPACK, with ridge and without."""
    policy = random_policy(spaces, hidden_sizes=())
    observations, actions, advantages = normal(3, 90, 5), some_actions(spaces, 3, 90), normal(3, 90, seed=6)
    damping = torch.tensor([[0.0], [1e-3], [0.5]])
    size = natural.to_vectors(policy.parameters.views).shape[1]
    product = nac.regression_product(policy, observations, actions, damping)
    for run in range(3):
        weights, at = literal_policy(policy, run)
        x = scores(weights, lambda w, at=at, run=run: at(w, observations[run]).log_prob(actions[run]))
        gradient = torch.zeros(3, size)
        gradient[run] = x.T @ advantages[run] / 90
        w = natural.conjugate_gradient(product, gradient, 10 * size, tolerance=1e-28)[run]
        design = torch.cat([x, torch.sqrt(90 * damping[run]) * torch.eye(size)])
        targets = torch.cat([advantages[run], torch.zeros(size)])
        expected = torch.linalg.lstsq(design, targets, driver="gelsd").solution
        assert torch.allclose(x @ w, x @ expected, atol=1e-7)
        if damping[run] > 0 or not policy.discrete:  # softmax has a direction that changes nothing
            assert torch.allclose(w, expected, atol=1e-7)


def test_with_all_actions_w_is_the_natural_gradient(double: None) -> None:  # noqa: F811
    """Actions in the very proportions of the policy, 1:2:3: the regression's matrix is the Fisher matrix, summed over
    the actions, and its w is F^-1 g of the exact policy gradient."""
    policy = random_policy(DISCRETE)
    with torch.no_grad():
        policy.parameters["actor.weight2"].zero_()
        policy.parameters["actor.bias2"].copy_(torch.tensor([1.0, 2.0, 3.0]).log().expand(3, 1, 3))
    states = normal(3, 7, 5)
    observations = states.repeat_interleave(6, 1)
    actions = torch.tensor([0, 1, 1, 2, 2, 2]).repeat(7).expand(3, -1).contiguous()
    q_values = normal(3, 7, 3, seed=8)
    advantages = q_values - (q_values * torch.tensor([1, 2, 3]) / 6).sum(-1, keepdim=True)
    size, damping = natural.to_vectors(policy.parameters.views).shape[1], torch.full((3, 1), 1e-2)
    taken = advantages.flatten(1).gather(1, torch.arange(7).repeat_interleave(6) * 3 + actions)
    layers = policy.network.forward(policy.parameters, observations)
    policy.write_gradient(layers, *policy.distribution(layers[-1], None).gradient(actions, taken / 42))
    gradient = natural.to_vectors({name: policy.parameters.grads[name] for name in policy.shapes()})
    product = nac.regression_product(policy, observations, actions, damping)
    w = natural.conjugate_gradient(product, gradient, 5 * size, tolerance=1e-26)
    for run in range(3):
        weights, at = literal_policy(policy, run)
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        value = (at(leaves, states[run]).probs * q_values[run]).sum(-1).mean()  # its gradient is E[grad log pi A]
        g = torch.cat([x.reshape(-1) for x in torch.autograd.grad(value, list(leaves.values()))])
        assert torch.allclose(gradient[run], g, atol=1e-12)
        fisher = explicit_fisher(policy, run, states[run]) + damping[run] * torch.eye(size)
        assert torch.allclose(w[run], torch.linalg.solve(fisher, g), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_nac_takes_its_critics_weights(task: str) -> None:
    """theta moves by alpha w, w the ridge regression of the advantages on the scores, each run with its own alpha and
    damping; the KL's quadratic model stays below alpha^2 / 2."""
    runs = [SIZES | {"step_size": 0.1, "cg_damping": 0.1}, SIZES | {"step_size": 0.5, "cg_damping": 1.0}]
    agent = make("nac", task, [run | {"cg_iterations": 60} for run in runs], [0, 1])
    seen: list[Any] = []
    agent._prepare = recorded(seen, agent._prepare)
    before = [agent.parameters_of(run) for run in range(2)]
    metrics = agent.iterate()
    (batch,) = seen
    for run, (alpha, damping) in enumerate([(0.1, 0.1), (0.5, 1.0)]):
        names = list(agent.policy.shapes())
        weights = {name: torch.from_numpy(before[run][name]) for name in names}
        _, at = literal_policy(agent.policy, run)
        observations, actions = batch.observations[run], batch.actions[run]
        x = scores(weights, lambda w, at=at, o=observations, a=actions: at(w, o).log_prob(a)).double()
        matrix = x.T @ x / 192 + damping * torch.eye(x.shape[1])
        w = torch.linalg.solve(matrix, x.T @ batch.advantages[run].double() / 192)
        after = agent.parameters_of(run)
        moved = np.concatenate([(after[name] - before[run][name]).ravel() for name in names])
        assert moved == pytest.approx((alpha * w).numpy(), abs=2e-4 * alpha)
        quadratic = (alpha**2 / 2 * (x @ w).square().mean()).item()
        assert 0 < quadratic <= alpha**2 / 2 and metrics["kl"][run] == pytest.approx(quadratic, rel=0.5)
