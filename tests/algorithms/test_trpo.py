"""NPG and TRPO against explicit Fisher matrices, autograd, hand-made line searches, and a second, slow implementation
of a whole iteration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from test_ppo import CONTINUOUS, DISCRETE, Literal, Spaces, distribution, forward
from torch import Tensor
from torch.distributions import kl_divergence
from torch.func import functional_call, jvp

import algorithms
from algorithms import npg, trpo
from algorithms.common import natural
from algorithms.common.config import load_config, presets
from algorithms.common.layers import MLP, Parameters
from algorithms.common.optimizers import Adam
from algorithms.common.policies import Policy
from algorithms.common.rollouts import Rollout

RUNS, STATES = 3, 7


@pytest.fixture
def double() -> Iterator[None]:
    """Weights in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_policy(spaces: Spaces, hidden_sizes: tuple[int, ...] = (4, 3), activation: str = "tanh") -> Policy:
    """A policy of `RUNS` runs that is neither uniform nor of unit variance."""
    policy = Policy(spaces, hidden_sizes, activation)
    policy.parameters = Parameters(RUNS, policy.shapes())
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for view in policy.parameters.views.values():
            view.copy_(torch.from_numpy(rng.standard_normal(view.shape) * 0.7))
    return policy


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def literal_policy(policy: Policy, run: int) -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor], Tensor], Any]]:
    """One run's weights, and its distribution at observations [B, O] as a function of them; plain torch."""
    weights = {name: view[run].detach().clone() for name, view in policy.parameters.views.items()}
    depth = len(policy.network.sizes) - 1

    def at(w: dict[str, Tensor], x: Tensor) -> Any:
        for k in range(depth):
            x = x @ w[f"actor.weight{k}"] + w[f"actor.bias{k}"]
            if k < depth - 1:
                x = torch.tanh(x) if policy.network.activation == "tanh" else torch.relu(x)
        return distribution(x, w.get("log_std"))

    return weights, at


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def scores(weights: dict[str, Tensor], log_prob: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """grad log pi of every entry of `log_prob`, [B, D]."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    values = log_prob(leaves)
    return torch.stack([flat(torch.autograd.grad(v, list(leaves.values()), retain_graph=True)) for v in values])


def explicit_fisher(policy: Policy, run: int, observations: Tensor) -> Tensor:
    """E_s E_a[grad log pi grad log pi^T], [D, D]: the sum over all actions, or a quadrature that is exact up to degree
    9, where the integrand has degree 4 in the action."""
    weights, at = literal_policy(policy, run)
    total = torch.zeros(())
    if policy.discrete:
        probs = at(weights, observations).probs
        for a in range(policy.num_outputs):
            grads = scores(weights, lambda w, a=a: at(w, observations).log_prob(torch.full((STATES,), a)))
            total = total + torch.einsum("bi,bj,b->ij", grads, grads, probs[:, a])
        return total / STATES
    base = at(weights, observations).base_dist
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
    for picks in itertools.product(range(5), repeat=policy.num_outputs):
        mass = math.prod(node_weights[k] / math.sqrt(2 * math.pi) for k in picks)
        actions = base.mean + base.stddev * torch.tensor([nodes[k] for k in picks])
        grads = scores(weights, lambda w, actions=actions: at(w, observations).log_prob(actions))
        total = total + mass * grads.T @ grads
    return total / STATES


# ------------------------------------------------------------------------------------------- passes through the network
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 1), (5, 6, 1, 4), (5, 6, 4, 2)])
def test_tangent_is_the_derivative_along_a_direction(sizes: tuple[int, ...], activation: str, double: None) -> None:
    network = MLP("net", sizes, activation)
    parameters = Parameters(RUNS, network.shapes())
    parameters.flat.copy_(normal(len(parameters.flat)))
    inputs = normal(RUNS, 11, sizes[0], seed=2)
    direction = {name: normal(*view.shape, seed=3) for name, view in parameters.views.items()}
    layers = network.forward(parameters, inputs)
    ours = network.tangent(parameters, layers, direction)

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        x = inputs
        for k in range(len(sizes) - 1):
            x = x @ weights[f"net.weight{k}"] + weights[f"net.bias{k}"]
            if k < len(sizes) - 2:
                x = torch.tanh(x) if activation == "tanh" else torch.relu(x)
        return x

    weights = {name: view.detach() for name, view in parameters.views.items()}
    value, change = jvp(outputs, (weights,), (direction,))
    assert torch.allclose(layers[-1], value, rtol=1e-12, atol=1e-12)
    assert torch.allclose(ours, change, rtol=1e-12, atol=1e-12)


def test_a_part_of_the_parameters_shares_their_memory() -> None:
    """An optimizer of the part leaves the rest alone; per-run views stay what they are."""
    network, other = MLP("one", (3, 4, 2)), MLP("two", (3, 5, 1))
    parameters = Parameters(RUNS, network.shapes() | other.shapes())
    parameters.flat.copy_(normal(len(parameters.flat)))
    part = parameters.part(other.shapes())
    before = {name: view.detach().clone() for name, view in parameters.views.items()}
    parameters.grad.fill_(1.0)
    Adam(part).step(np.full(RUNS, 1e-2))
    for name, view in parameters.views.items():
        assert torch.equal(view, before[name]) is (name in network.shapes())
        if name in part.views:
            assert torch.equal(view, part[name]) and part[name].data_ptr() == view.data_ptr()
            assert part.grads[name].data_ptr() == parameters.grads[name].data_ptr()


def test_vectors_and_weights_by_name() -> None:
    policy = random_policy(CONTINUOUS)
    vectors = natural.to_vectors(policy.parameters.views)
    weights, _ = literal_policy(policy, 1)
    assert torch.equal(vectors[1], flat(weights.values()))
    for name, view in natural.from_vectors(vectors, policy.shapes()).items():
        assert torch.equal(view, policy.parameters[name])


# ------------------------------------------------------------------------------------------------ the Fisher matrix, I4
@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_fisher_products_are_those_of_the_explicit_matrix(spaces: Spaces, activation: str, double: None) -> None:
    """Against the expectation of outer products of scores over all actions, and the Hessian of the mean KL."""
    policy = random_policy(spaces, activation=activation)
    observations, damping = normal(RUNS, STATES, 5), torch.tensor([[0.0], [0.1], [2.0]])
    product = natural.fisher_product(policy, observations, damping)
    size = natural.to_vectors(policy.parameters.views).shape[1]
    for seed in range(2):
        vectors = normal(RUNS, size, seed=seed)
        ours = product(vectors)
        for run in range(RUNS):
            fisher = explicit_fisher(policy, run, observations[run])
            expected = fisher @ vectors[run] + damping[run] * vectors[run]
            assert torch.allclose(ours[run], expected, rtol=1e-10, atol=1e-12)

            weights, at = literal_policy(policy, run)
            leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
            old = at({name: weight.detach() for name, weight in weights.items()}, observations[run])
            kl = kl_divergence(old, at(leaves, observations[run])).mean()
            slope = flat(torch.autograd.grad(kl, list(leaves.values()), create_graph=True))
            assert slope.abs().max() < 1e-12
            curved = flat(torch.autograd.grad(slope @ vectors[run], list(leaves.values())))
            assert torch.allclose(ours[run] - damping[run] * vectors[run], curved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_conjugate_gradient_solves_for_the_natural_gradient(spaces: Spaces, double: None) -> None:
    """I4: F x = g without forming F; and the step for which the quadratic model of the KL is delta."""
    policy = random_policy(spaces)
    observations, damping = normal(RUNS, STATES, 5), torch.full((RUNS, 1), 1e-3)
    product = natural.fisher_product(policy, observations, damping)
    size = natural.to_vectors(policy.parameters.views).shape[1]
    gradient, delta = normal(RUNS, size, seed=5), torch.tensor([[0.01], [0.5], [1e-4]])
    x = natural.conjugate_gradient(product, gradient, 3 * size, tolerance=1e-24)
    step = natural.natural_step(product, gradient, delta, 4)
    for run in range(RUNS):
        matrix = explicit_fisher(policy, run, observations[run]) + damping[run] * torch.eye(size)
        assert torch.allclose(x[run], torch.linalg.solve(matrix, gradient[run]), rtol=1e-7, atol=1e-7)
        truncated = literal_conjugate_gradient(lambda p, matrix=matrix: matrix @ p, gradient[run], 4)
        expected = truncated * torch.sqrt(2 * delta[run] / (gradient[run] @ truncated))  # x^T F x = g^T x
        assert torch.allclose(step[run], expected, rtol=1e-8, atol=1e-10)
        assert (0.5 * step[run] @ matrix @ step[run]).item() == pytest.approx(delta[run].item(), rel=1e-10)


def literal_conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """One run, as in Nocedal and Wright, Numerical Optimization, algorithm 5.2."""
    x = torch.zeros_like(b)
    r = product(x) - b
    p = -r
    for _ in range(iterations):
        if r @ r <= 1e-10 * (b @ b):
            break
        image = product(p)
        alpha = (r @ r) / (p @ image)
        x = x + alpha * p
        following = r + alpha * image
        beta = (following @ following) / (r @ r)
        p = -following + beta * p
        r = following
    return x


def test_conjugate_gradient_masks_runs_that_are_done() -> None:
    """A gradient of zero, one that is not finite, one solved at once, a matrix that is not positive, and healthy ones:
    each run is what it is alone, bit for bit."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 8, 8))
    matrices = torch.from_numpy((root @ root.transpose(0, 2, 1) / 8 + 0.1 * np.eye(8)).astype(np.float32))
    matrices[3] = torch.diag(torch.tensor([2.0] * 8))
    matrices[4] = -torch.eye(8)
    b = torch.from_numpy(rng.standard_normal((6, 8)).astype(np.float32))
    b[1], b[2, 3] = 0.0, math.nan
    calls = []

    def products(rows: slice) -> natural.Product:
        return lambda p: calls.append(p) or (matrices[rows] * p[:, None, :]).sum(2)

    together = natural.conjugate_gradient(products(slice(None)), b, 6)
    assert len(calls) == 6
    for run in range(6):
        alone = natural.conjugate_gradient(products(slice(run, run + 1)), b[run : run + 1], 6)
        assert torch.equal(alone[0], together[run])
    assert not together[1].any() and not together[2].any() and not together[4].any()
    assert torch.equal(together[3], b[3] / 2)
    for run in (0, 5):
        expected = literal_conjugate_gradient(lambda p, run=run: matrices[run].double() @ p, b[run].double(), 6)
        assert torch.allclose(together[run].double(), expected, rtol=1e-3, atol=1e-4)
    step = natural.natural_step(products(slice(None)), b, torch.full((6, 1), 0.01), 6)
    assert step[[0, 3, 5]].abs().amax(1).min() > 0 and not step[[1, 2, 4]].any()


# --------------------------------------------------------------------------------------------------- the line search
def test_line_search_by_hand() -> None:
    """Steps of 1, 1/2, 1/4, 1/8 against a bound on the weight; the last run halves three times faster."""
    start, step = torch.tensor([[0.3, 7.0]] * 6), torch.tensor([[1.0, -1.0]] * 6)
    bounds = torch.tensor([1.3, 1.0, 0.6, 0.31, math.nan, 0.43])
    shrink = torch.tensor([[0.5]] * 5 + [[0.125]])
    assigned: list[Tensor] = []
    present = torch.zeros(6, 2)

    def assign(vectors: Tensor) -> None:
        assigned.append(vectors.clone())
        present.copy_(vectors)

    accepted, refused = natural.backtrack(assign, lambda: present[:, 0] <= bounds, start, step, shrink, 4)
    assert accepted.tolist() == [True, True, True, False, False, True]
    assert refused.tolist() == [0, 1, 2, 4, 4, 1]
    assert torch.allclose(present[:, 0], torch.tensor([1.3, 0.8, 0.55, 0.3, 0.3, 0.425]))
    assert torch.equal(present[[3, 4]], start[[3, 4]])  # no step would do: the old weights, to the bit
    assert len(assigned) == 5
    for run, tries in ((0, 0), (1, 1), (2, 2), (5, 1)):  # once accepted, untouched while the others search
        assert all(torch.equal(later[run], assigned[tries][run]) for later in assigned[tries:])


def test_line_search_ends_when_all_have_accepted() -> None:
    count = []
    accept = lambda: count.append(0) or torch.tensor([True, len(count) > 1])  # noqa: E731
    shrink = torch.full((2, 1), 0.5)
    accepted, refused = natural.backtrack(lambda _: None, accept, torch.zeros(2, 3), torch.ones(2, 3), shrink, 10)
    assert accepted.all() and refused.tolist() == [0, 1] and len(count) == 2


def test_surrogate_gain_by_hand() -> None:
    ratio = torch.tensor([[1.0, 1.0], [2.0, 0.5], [1.5, 1.0]])
    advantages = torch.tensor([[3.0, -4.0], [1.0, -1.0], [-2.0, 9.0]])
    assert npg.surrogate_gain(ratio.log(), advantages).tolist() == pytest.approx([0.0, 0.75, -0.5], abs=1e-6)


SIZES: dict[str, Any] = {
    "num_steps": 96, "num_envs": 2, "batch_size": 32, "num_epochs": 2, "hidden_sizes": [8, 8], "fvp_subsample": 3,
}  # fmt: skip


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_kl_stays_within_delta(task: str) -> None:
    """S9: after every accepted step E[KL(pi_old || pi)] <= delta by torch's own formula and the surrogate has grown; a
    run whose steps were all refused has its old policy to the bit. The critic learns either way."""
    deltas = (1e-3, 0.01, 0.1, 1.0, 5.0)
    runs = [SIZES | {"delta": delta, "line_search_steps": 2, "cg_damping": 1e-3} for delta in deltas]
    agent = make("trpo", task, runs, [0, 1, 2, 3, 4])
    seen: list[npg.Batch] = []
    prepare = agent._prepare
    agent._prepare = lambda rollout: seen.append(prepare(rollout)) or seen[-1]
    outcomes, moved = [], set()
    for _ in range(6):
        before = [agent.parameters_of(run) for run in range(5)]
        metrics = agent.iterate()
        for run, delta in enumerate(deltas):
            after = agent.parameters_of(run)
            policy_stays = all(np.array_equal(after[name], before[run][name]) for name in agent.policy.shapes())
            accepted = bool(metrics["step_accepted"][run])
            outcomes.append(accepted)
            assert policy_stays is not accepted
            assert not np.array_equal(after["critic.weight0"], before[run]["critic.weight0"])
            observations, actions, advantages = seen[-1].observations[run], seen[-1].actions[run], seen[-1].advantages
            with torch.no_grad():
                old, new = (Literal(w).policy(observations) for w in (before[run], after))
                kl = kl_divergence(old, new).mean().item()
                gain = ((new.log_prob(actions) - old.log_prob(actions)).exp() - 1) @ advantages[run] / 192
            assert metrics["kl"][run] == pytest.approx(kl, rel=1e-3, abs=1e-6)
            assert metrics["surrogate_gain"][run] == pytest.approx(gain.item(), rel=1e-3, abs=1e-5)
            assert metrics["kl"][run] <= delta * (1 + 1e-6)
            assert metrics["backtracks"][run] in ((0, 1) if accepted else (2,))
            if accepted:
                assert metrics["surrogate_gain"][run] > 0
                moved.add(run)
    assert outcomes.count(False) >= 2 and moved >= {0, 1}


def test_slack_lets_a_step_pass() -> None:
    """openai/baselines accepts up to 1.5 delta; without a bound the first step is that of NPG, to the bit."""
    sizes = SIZES | {"delta": 0.05}
    runs = [sizes | {"kl_slack": slack} for slack in (1.0, 1e-3, math.inf)]
    agent, free = make("trpo", "Pendulum-v1", runs, [5, 5, 5]), make("npg", "Pendulum-v1", [sizes] * 3, [5, 5, 5])
    metrics, plain = agent.iterate(), free.iterate()
    assert set(metrics) == set(plain) | {"step_accepted", "backtracks"}
    assert metrics["step_accepted"].all()
    assert metrics["kl"][0] <= 0.05 and metrics["kl"][1] <= 5e-5
    assert metrics["backtracks"][2] == 0 and metrics["backtracks"][1] >= 3
    for name, value in agent.parameters_of(2).items():
        assert np.array_equal(value, free.parameters_of(2)[name])
    assert metrics["kl"][2] == plain["kl"][2]


# --------------------------------------------------------------------------------- one whole iteration, a second time
SETTINGS: dict[str, dict[str, float]] = {
    "plain": {},
    "long": {"delta": 0.1, "cg_damping": 0.05},
    "discounts": {"gamma": 0.9, "gae_lambda": 0.5, "learning_rate": 3e-3},
    "old-time-limits": {"time_limit_bootstrap": 0.0},
    "raw-advantages": {"normalize_advantages": 0.0},
}
SEARCHES = [{}, {"shrink": 0.3, "kl_slack": 0.2}, {"kl_slack": 0.5}, {"shrink": 0.9, "kl_slack": 0.8}, {}]


def literal_iteration(
    model: Literal, optimizer: torch.optim.Adam, cfg: Any, rollout: list[np.ndarray], orders: list[np.ndarray]
) -> dict[str, float]:
    """One run in float64: Fisher-vector products by differentiating the KL twice, loops with `break`."""
    observations, rewards, successors = (torch.from_numpy(rollout[k]).double() for k in (0, 2, 3))
    actions = torch.from_numpy(rollout[1])
    actions = actions.double() if actions.is_floating_point() else actions
    terminations, truncations = rollout[4:]
    steps, envs = rewards.shape
    if cfg.time_limit_bootstrap == 0:
        terminations = terminations | truncations
    with torch.no_grad():
        values, next_values = model.critic(observations).squeeze(-1), model.critic(successors).squeeze(-1)
        advantages = torch.zeros(steps, envs, dtype=torch.float64)
        for t, n in np.ndindex(steps, envs):  # summed forwards from every step to the end of its episode
            for k in range(t, steps):
                worth = 0.0 if terminations[k, n] else next_values[k, n]
                error = rewards[k, n] + cfg.gamma * worth - values[k, n]
                advantages[t, n] += (cfg.gamma * cfg.gae_lambda) ** (k - t) * error
                if terminations[k, n] or truncations[k, n]:
                    break
    returns = (advantages + values).flatten()
    advantages = advantages.flatten()
    if cfg.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    observations, actions = observations.flatten(0, 1), actions.flatten(0, 1)

    weights = {name: w for name, w in model.named_parameters() if not name.startswith("critic")}

    def at(w: dict[str, Tensor], x: Tensor) -> Any:
        actor = {name.removeprefix("actor."): value for name, value in w.items() if name.startswith("actor.")}
        return distribution(functional_call(model.actor, actor, x), w.get("log_std"))

    def moved(step: Tensor) -> dict[str, Tensor]:
        parts = step.split([w.numel() for w in weights.values()])
        return {n: (w + p.view_as(w)).detach() for (n, w), p in zip(weights.items(), parts, strict=True)}

    def product(vector: Tensor) -> Tensor:
        states = observations[:: cfg.fvp_subsample]
        old = at({name: w.detach() for name, w in weights.items()}, states)
        slope = torch.autograd.grad(
            kl_divergence(old, at(weights, states)).mean(), list(weights.values()), create_graph=True
        )
        return flat(torch.autograd.grad(flat(slope) @ vector, list(weights.values()))) + cfg.cg_damping * vector

    old = at({name: w.detach() for name, w in weights.items()}, observations)
    old_log_probs = old.log_prob(actions)
    surrogate = ((at(weights, observations).log_prob(actions) - old_log_probs).exp() * advantages).mean()
    gradient = flat(torch.autograd.grad(surrogate, list(weights.values())))
    x = literal_conjugate_gradient(product, gradient, cfg.cg_iterations)
    step = math.sqrt(2 * cfg.delta / (x @ product(x))) * x
    result = {"backtracks": 0.0, "kl": 0.0}
    for k in range(getattr(cfg, "line_search_steps", 1)):
        candidate = moved(getattr(cfg, "shrink", 1.0) ** k * step)
        new = at(candidate, observations)
        kl = kl_divergence(old, new).mean()
        better = ((new.log_prob(actions) - old_log_probs).exp() * advantages).mean() > surrogate
        if isinstance(cfg, trpo.Config) and not (better and kl <= cfg.kl_slack * cfg.delta):
            result["backtracks"] += 1
            continue
        result["kl"] = kl.item()
        for name, w in weights.items():
            w.data.copy_(candidate[name])
        break
    for order in orders:
        for rows in order.reshape(-1, cfg.batch_size):
            loss = 0.5 * (model.critic(observations[rows]).squeeze(-1) - returns[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return result


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algorithm", ["npg", "trpo"])
def test_whole_iterations_against_a_second_implementation(algorithm: str, task: str) -> None:
    """From the same weights, rollouts and minibatches, two iterations end with the same weights and metrics."""
    searches = SEARCHES if algorithm == "trpo" else [{}] * len(SETTINGS)
    sizes = SIZES | {"num_steps": 32, "batch_size": 16}
    settings = [
        setting | search | sizes | {"cg_iterations": 4}
        for setting, search in zip(SETTINGS.values(), searches, strict=True)
    ]
    agent = make(algorithm, task, settings, [3 + run for run in range(len(settings))])
    configs = [load_config(algorithm, None, setting) for setting in settings]
    models = [Literal(agent.parameters_of(run)).double() for run in range(len(settings))]
    optimizers = [
        torch.optim.Adam(model.critic.parameters(), lr=cfg.learning_rate, eps=1e-8)
        for model, cfg in zip(models, configs, strict=True)
    ]
    collect, permutation = agent._collect, agent.streams.permutation
    rollout: list[np.ndarray] = []
    orders: list[np.ndarray] = []

    def recorded() -> Rollout:
        entries = list(collect())  # with more ends of episodes than so short a rollout has
        rng = np.random.default_rng(0)
        entries[4] = entries[4] | (rng.random(entries[4].shape) < 0.05)  # terminations
        entries[5] = entries[5] | (rng.random(entries[5].shape) < 0.05)  # truncations
        rollout[:] = entries
        return Rollout(*entries)

    def drawn(purpose: str, size: int) -> np.ndarray:
        orders.append(permutation(purpose, size))
        return orders[-1]

    agent._collect, agent.streams.permutation = recorded, drawn
    searched = 0.0
    for _ in range(2):
        orders.clear()
        before = [agent.parameters_of(run) for run in range(len(settings))]
        metrics = agent.iterate()
        assert len(orders) == 2
        for run, model in enumerate(models):
            entries = [entry[:, run] for entry in rollout]
            result = literal_iteration(model, optimizers[run], configs[run], entries, [order[run] for order in orders])
            assert metrics["kl"][run] == pytest.approx(result["kl"], rel=1e-2, abs=1e-6), run
            if algorithm == "trpo":
                assert metrics["backtracks"][run] == result["backtracks"], run
                searched += result["backtracks"]
            after, expected = agent.parameters_of(run), model.weights()
            moved = max(np.abs(after[name] - before[run][name]).max() for name in after)
            for name, ours in after.items():  # ours is float32, whose rounding conjugate gradient multiplies
                error = np.abs(ours - expected[name].detach().numpy()).max()
                assert error < 1e-6 + (1e-4 * moved if name in agent.policy.shapes() else 0), (run, settings[run], name)
    assert searched > 3 or algorithm == "npg"


# ------------------------------------------------------------------------------------------------------------ the rest
def test_gradient_is_that_of_the_surrogate() -> None:
    """Equation 14's gradient at pi_old through autograd in float64."""
    for task in ("CartPole-v1", "Pendulum-v1"):
        agent = make("npg", task, [SIZES, SIZES | {"normalize_advantages": 0.0}], [1, 2])
        agent.iterate()
        batch = agent._prepare(agent._collect())
        ours = agent._gradient(batch)
        for run in range(2):
            model = Literal(agent.parameters_of(run)).double()
            actions = batch.actions[run] if agent.policy.discrete else batch.actions[run].double()
            log_probs = model.policy(batch.observations[run].double()).log_prob(actions)
            ratio = (log_probs - log_probs.detach()).exp()
            (ratio * batch.advantages[run]).mean().backward()
            by_name = natural.from_vectors(ours, agent.policy.shapes())
            for layer in range(3):
                linear = model.actor[2 * layer]
                assert torch.allclose(by_name[f"actor.weight{layer}"][run].double(), linear.weight.grad.T, atol=1e-6)
                assert torch.allclose(by_name[f"actor.bias{layer}"][run, 0].double(), linear.bias.grad, atol=1e-6)
            assert ours[run].abs().max() > 1e-3
            if not agent.policy.discrete:
                assert torch.allclose(by_name["log_std"][run, 0].double(), model.log_std.grad, atol=1e-6)


def test_a_critic_that_diverges_leaves_the_policy_finite() -> None:
    """Advantages that are no numbers give no step."""
    runs = [SIZES, SIZES | {"learning_rate": 1e38}]
    for algorithm in ("npg", "trpo"):
        agent = make(algorithm, "Pendulum-v1", runs, [1, 2])
        with np.errstate(all="ignore"):
            for _ in range(3):
                metrics = agent.iterate()
        assert agent.diverged().tolist() == [False, True]
        assert all(np.isfinite(agent.parameters_of(1)[name]).all() for name in agent.policy.shapes())
        assert metrics["kl"][0] > 1e-4
        if algorithm == "trpo":
            assert metrics["step_accepted"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"batch_size": 60}, "batch_size"),
        ({"delta": 0.0}, "delta"),
        ({"cg_iterations": 0}, "cg_iterations"),
        ({"cg_damping": -0.1}, "cg_damping"),
        ({"fvp_subsample": 0}, "fvp_subsample"),
        ({"gamma": 1.5}, "gamma"),
        ({"shrink": 1.0}, "shrink"),
        ({"kl_slack": 0.0}, "kl_slack"),
        ({"line_search_steps": 0}, "line_search_steps"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config("trpo", None, values)


def test_presets_of_both_differ_by_the_line_search_and_the_critic() -> None:
    search = {"kl_slack", "shrink", "line_search_steps", "critic", "value_delta"}
    for preset in ("paper", "baselines"):
        one, two = load_config("npg", preset), load_config("trpo", preset)
        assert {name: value for name, value in vars(two).items() if name not in search} == vars(one)
    assert set(presets("npg")) == {"paper", "mjrl", "baselines"}
    assert algorithms.load("trpo").SUPPORTS == algorithms.load("npg").SUPPORTS


# ---------------------------------------------------------------------------------------------- the constrained critic
def explicit_gauss_newton(weights: dict[str, Tensor], observations: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
    """One run's H = E[J^T J] over the observations [B, O] and E[J^T (R - V)], sample by sample from autograd."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    values = forward(leaves, "critic", observations).squeeze(-1)
    rows = [flat(torch.autograd.grad(value, list(leaves.values()), retain_graph=True)) for value in values]
    jacobian = torch.stack(rows)
    return jacobian.T @ jacobian / len(jacobian), jacobian.T @ (returns - values.detach()) / len(jacobian)


def test_critic_s_step_solves_the_constrained_problem(double: None) -> None:
    """H v against the explicit Gauss-Newton matrix; the step is its solution where the bound allows, and else the
    solution of the problem with the constraint active: the best of all steps of that length along H^-1 g."""
    network = MLP("critic", (5, 4, 3, 1))
    parameters = Parameters(RUNS, network.shapes())
    parameters.flat.copy_(normal(len(parameters.flat)) * 0.7)
    observations, returns, damping = normal(RUNS, 9, 5), normal(RUNS, 9, seed=2), torch.tensor([[1e-3], [0.1], [1.0]])
    product = natural.gauss_newton_product(network, parameters, observations, damping)
    size = natural.to_vectors(parameters.views).shape[1]
    vectors = normal(RUNS, size, seed=3)
    ours, gradients, matrices = product(vectors), [], []
    for run in range(RUNS):
        weights = {name: view[run].detach() for name, view in parameters.views.items()}
        matrix, gradient = explicit_gauss_newton(weights, observations[run], returns[run])
        matrices.append(matrix + damping[run] * torch.eye(size))
        gradients.append(gradient)
        assert torch.allclose(ours[run], matrices[run] @ vectors[run], rtol=1e-10, atol=1e-12)
    bound = torch.tensor([[1e-4], [math.inf], [1e-6]])
    steps = natural.bounded_step(product, torch.stack(gradients), bound, 3 * size)
    for run in range(RUNS):
        full = torch.linalg.solve(matrices[run], gradients[run])
        length = (full @ matrices[run] @ full).item()
        assert length > 2e-4
        share = min(1.0, math.sqrt(bound[run].item() / length))
        assert torch.allclose(steps[run], share * full, rtol=1e-4, atol=1e-4 * share)
        # The multiplier of s^T A s / 2 <= bound / 2 that makes the gradient of the Lagrangian vanish.
        multiplier = 1 / share - 1
        assert torch.allclose((1 + multiplier) * matrices[run] @ steps[run], gradients[run], rtol=1e-4, atol=1e-5)


def test_the_critic_s_constraint_holds_in_every_run() -> None:
    """E[(V - V_old)^2] / (2 sigma^2) <= epsilon by plain torch, the error has fallen, the policy is that of TRPO with
    the other critic; a run whose advantages are no numbers keeps its critic and harms no other."""
    epsilons = (1e-4, 0.01, 0.1, math.inf)
    sizes = SIZES | {"critic": "constrained", "cg_damping": 1e-3, "line_search_steps": 20}
    runs = [sizes | {"value_delta": epsilon} for epsilon in epsilons]
    agent = make("trpo", "Pendulum-v1", runs, [0, 1, 2, 3])
    other = make("trpo", "Pendulum-v1", [run | {"critic": "regression"} for run in runs], [0, 1, 2, 3])
    moved = []
    for iteration in range(2):
        before = [agent.parameters_of(run) for run in range(4)]
        seen: list[npg.Batch] = []
        prepare = type(agent)._prepare
        agent._prepare = lambda rollout, seen=seen, prepare=prepare: seen.append(prepare(agent, rollout)) or seen[-1]
        metrics = agent.iterate()
        if iteration == 0:
            other.iterate()
            for run in range(4):
                one, two = agent.parameters_of(run), other.parameters_of(run)
                assert all(np.array_equal(one[name], two[name]) for name in agent.policy.shapes())
                assert not np.array_equal(one["critic.weight0"], two["critic.weight0"])
        for run, epsilon in enumerate(epsilons):
            observations, returns = seen[0].observations[run], seen[0].returns[run]
            with torch.no_grad():
                old, new = (
                    Literal(w).critic(observations).squeeze(-1) for w in (before[run], agent.parameters_of(run))
                )
            variance = (old - returns).square().mean()
            kl = ((new - old).square().mean() / (2 * variance)).item()
            assert kl == pytest.approx(metrics["value_kl"][run], rel=1e-3)
            assert metrics["value_step_accepted"][run] and 0 < kl <= epsilon * (1 + 1e-4)
            assert (new - returns).square().mean() < variance
            moved.append(kl / epsilon)
    assert max(moved) > 0.5  # nearly as far as it may

    before = [agent.parameters_of(run) for run in range(4)]
    batch = seen[0]
    broken = batch._replace(returns=batch.returns.clone())
    broken.returns[1, 3] = math.nan
    state = agent.parameters.state()
    agent._fit_critic(batch)
    healthy = [agent.parameters_of(run) for run in range(4)]
    agent.parameters.load_state(state)
    accepted = agent._fit_critic(broken)["value_step_accepted"]
    for run in range(4):
        expected = before if run == 1 else healthy
        assert np.array_equal(agent.parameters_of(run)["critic.weight1"], expected[run]["critic.weight1"])
    assert not accepted[1] and accepted.any()
