"""K-FAC and ACKTR against explicit Fisher matrices, explicit Kronecker products, autograd in float64, and a second,
slow implementation of the optimizer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from test_policy_gradient import build, leaves, part, policy_of, values_of
from test_ppo import CONTINUOUS, DISCRETE, Spaces
from test_trpo import RUNS, double, explicit_fisher, normal, random_policy  # noqa: F401  (a fixture)
from torch import Tensor

from algorithms.common import kfac
from algorithms.common.config import load_config, presets
from algorithms.common.layers import MLP, Parameters

inf = math.inf


# --------------------------------------------------------------------------------------------------------- the factors
def second_moment(x: Tensor) -> Tensor:
    """E_b[x x^T] as the optimizer's first update takes it."""
    return kfac.average_in(x.new_full((len(x), x.shape[2], x.shape[2]), 7.0), x, 0.0)


def factors(inputs: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    return second_moment(kfac.with_one(inputs)), second_moment(slopes)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 1), (5, 6, 1, 4), (1, 6, 4, 2)])
def test_factors_are_means_of_outer_products(sizes: tuple[int, ...], activation: str, double: None) -> None:  # noqa: F811
    """A and S of every layer, sample by sample from autograd: the score of its weights is a g^T, that of its bias g."""
    network = MLP("net", sizes, activation)
    parameters = Parameters(RUNS, network.shapes())
    parameters.flat.copy_(normal(len(parameters.flat)))
    inputs, by_outputs = normal(RUNS, 7, sizes[0], seed=2), normal(RUNS, 7, sizes[-1], seed=3)
    layers = network.forward(parameters, inputs)
    slopes = network.deltas(parameters, layers, by_outputs)
    for layer, (x, g) in enumerate(zip(layers, slopes, strict=False)):
        of_inputs, of_sums = factors(x, g)
        for run in range(RUNS):
            expected_a, expected_s = torch.zeros_like(of_inputs[run]), torch.zeros_like(of_sums[run])
            for b in range(7):
                loss = (network(parameters, inputs[:, b : b + 1])[run, 0] * by_outputs[run, b]).sum()
                bias, weight = parameters[f"net.bias{layer}"], parameters[f"net.weight{layer}"]
                by_bias, by_weight = (grad[run] for grad in torch.autograd.grad(loss, (bias, weight)))
                a = torch.cat((x[run, b], torch.ones(1)))
                assert torch.allclose(by_weight, torch.outer(a[:-1], by_bias[0]), atol=1e-12)
                expected_a += torch.outer(a, a) / 7
                expected_s += torch.outer(by_bias[0], by_bias[0]) / 7
            assert torch.allclose(of_inputs[run], expected_a, atol=1e-12)
            assert torch.allclose(of_sums[run], expected_s, atol=1e-12)


def scores_of(inputs: Tensor, slopes: Tensor) -> Tensor:
    """Scores of a layer's weights and biases, [B, (in + 1) * out]."""
    a = torch.cat((inputs, torch.ones(len(inputs), 1)), 1)
    return torch.einsum("bi,bo->bio", a, slopes).flatten(1)


def test_block_is_the_exact_fisher_where_the_factors_are_independent(double: None) -> None:  # noqa: F811
    """I5: with every input beside every score, A (x) S is E[vec(a g^T) vec(a g^T)^T]; with the same ones in pairs it is
    not."""
    x, g = normal(6, 4), normal(5, 3, seed=2)
    every_x, every_g = x.repeat_interleave(5, 0), g.repeat(6, 1)
    blocks = []
    for inputs, slopes in ((every_x, every_g), (x[:5], g)):
        of_inputs, of_sums = factors(inputs[None], slopes[None])
        blocks.append(torch.kron(of_inputs[0], of_sums[0]))
        scores = scores_of(inputs, slopes)
        exact = scores.T @ scores / len(scores)
        assert torch.allclose(blocks[-1], exact, atol=1e-12) is (len(inputs) == 30)


def test_block_is_the_exact_fisher_of_a_linear_policy(double: None) -> None:  # noqa: F811
    """I5 for a model: the scores (a - mean) / std^2 of a normal with linear mean have a distribution that no state
    changes. A (x) S is the exact Fisher matrix of weights and biases, 2 I that of log_std, and between them it is 0."""
    policy = random_policy(CONTINUOUS, hidden_sizes=())
    observations = normal(RUNS, 7, 5)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)))  # second moments of a standard normal
    log_std = policy.log_std()
    assert log_std is not None
    states = observations.repeat_interleave(4, 1)
    layers = policy.network.forward(policy.parameters, states)
    actions = layers[-1] + torch.exp(log_std) * signs.repeat(7, 1)
    by_outputs, _ = policy.distribution(layers[-1], log_std).gradient(actions, torch.ones(RUNS, 28))
    of_inputs, of_sums = factors(states, by_outputs)
    for run in range(RUNS):
        exact = explicit_fisher(policy, run, observations[run])
        expected = torch.block_diag(torch.kron(of_inputs[run], of_sums[run]), 2 * torch.eye(2))
        assert torch.allclose(expected, exact, atol=1e-10)


def test_score_of_one_is_the_critic_s_fisher(double: None) -> None:  # noqa: F811
    """Layer by layer E_v[g g^T] for v ~ N(V, 1), by quadrature, is that of the score 1."""
    network = MLP("critic", (5, 4, 3, 1))
    parameters = Parameters(RUNS, network.shapes())
    parameters.flat.copy_(normal(len(parameters.flat)))
    layers = network.forward(parameters, normal(RUNS, 7, 5, seed=2))
    ones = network.deltas(parameters, layers, torch.ones(RUNS, 7, 1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    for layer in range(3):
        expected = torch.zeros(())
        for node, weight in zip(nodes, weights / math.sqrt(2 * math.pi), strict=True):
            slopes = network.deltas(parameters, layers, torch.full((RUNS, 7, 1), node))[layer]
            expected = expected + weight * second_moment(slopes)
        assert torch.allclose(second_moment(ones[layer]), expected, atol=1e-12)


# ----------------------------------------------------------------------------------------------- damping and inversion
def test_damping_by_hand() -> None:
    """tr A / n = 8 and tr S / n = 2, so pi = 2; lambda = 0.25 and 1."""
    of_inputs, of_sums = torch.diag(torch.tensor([4.0, 12.0])), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    pair = of_inputs.repeat(2, 1, 1), of_sums.repeat(2, 1, 1)
    one, other = kfac.damped(pair, torch.tensor([[0.25], [1.0]]))
    assert one.tolist() == [[[5.0, 0.0], [0.0, 13.0]], [[6.0, 0.0], [0.0, 14.0]]]
    assert other.tolist() == [[[2.25, 1.0], [1.0, 2.25]], [[2.5, 1.0], [1.0, 2.5]]]
    one, other = kfac.damped((pair[0], torch.zeros(2, 3, 3)), torch.tensor([[0.25], [1.0]]))  # no score at all
    assert one.isfinite().all() and torch.allclose(one[0, 0, 0] * other[0, 0, 0], torch.tensor(0.25))


def test_a_run_whose_matrix_has_no_inverse_keeps_the_last() -> None:
    root = normal(6, 9, 9).float()
    matrices = torch.bmm(root, root.transpose(1, 2)) + 0.1 * torch.eye(9)
    matrices[1], matrices[2], matrices[4] = math.nan, 0.0, -matrices[4]
    last = normal(6, 9, 9, seed=2).float()
    ours = kfac.inverse(matrices, last)
    for run in range(6):
        alone = kfac.inverse(matrices[run : run + 1], last[run : run + 1])
        assert torch.equal(alone[0], ours[run])
        if run in (1, 2, 4):
            assert torch.equal(ours[run], last[run])
        else:
            assert torch.allclose(ours[run] @ matrices[run], torch.eye(9), atol=1e-3)


# ------------------------------------------------------------------------------------------------------- the optimizer
RATES, DELTAS = np.array([0.5, 0.02, 0.3, 0.4]), np.array([1e-3, inf, 1e-6, 0.1])
DAMPING = torch.tensor([[0.01], [0.1], [1.0], [0.01]])


class Explicit:
    """One run of the optimizer with every layer's matrix written out."""

    def __init__(self, shapes: list[tuple[int, int]], damping: float, decay: float, momentum: float, period: int):
        self.shapes, self.damping, self.decay, self.momentum, self.period = shapes, damping, decay, momentum, period
        self.averages: list[list[Tensor]] = []
        self.velocity, self.count = torch.zeros(sum((n + 1) * m for n, m in shapes) + 2), 0

    def step(
        self, inputs: list[Tensor], slopes: list[Tensor], gradient: Tensor, rate: float, delta: float
    ) -> tuple[Tensor, float]:
        self.count += 1
        present = []
        for x, g in zip(inputs, slopes, strict=True):
            a = torch.cat((x, torch.ones(len(x), 1)), 1)
            present.append([a.T @ a / len(a), g.T @ g / len(g)])
        if self.count == 1:
            self.averages = present
        keep = min(1 - 1 / self.count, self.decay)
        self.averages = [
            [keep * old + (1 - keep) * new for old, new in zip(*both, strict=True)]
            for both in zip(self.averages, present, strict=True)
        ]
        if (self.count - 1) % self.period == 0:
            blocks = []
            for of_inputs, of_sums in self.averages:
                pi = math.sqrt((of_inputs.trace() / len(of_inputs)) / (of_sums.trace() / len(of_sums)))
                root = math.sqrt(self.damping)
                one = of_inputs + pi * root * torch.eye(len(of_inputs))
                blocks.append(torch.kron(one, of_sums + root / pi * torch.eye(len(of_sums))))
            self.fisher = torch.block_diag(*blocks, (2 + self.damping) * torch.eye(2))
        direction = torch.linalg.solve(self.fisher, gradient)
        eta = min(rate, math.sqrt(2 * delta / (direction @ self.fisher @ direction)))
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * eta * direction
        return self.velocity, 0.5 * eta**2 * (direction @ self.fisher @ direction).item()


@pytest.mark.parametrize(("momentum", "period"), [(0.0, 1), (0.9, 2)])
def test_steps_are_those_of_the_explicit_matrices(momentum: float, period: int, double: None) -> None:  # noqa: F811
    """Five updates in float64: averages, damping, stale inverses, momentum; and the model of the KL, with F written
    out, is at most delta: equal to it where the trust region is what bounds the step."""
    network = MLP("actor", (4, 3, 5, 2))
    parameters = Parameters(4, network.shapes() | {"log_std": (1, 2)})
    parameters.flat.copy_(normal(len(parameters.flat)))
    optimizer = kfac.KFAC(network, parameters, DAMPING.double(), 0.6, momentum, period, {"log_std": 2.0})
    shapes = [(4, 3), (3, 5), (5, 2)]
    references = [Explicit(shapes, DAMPING[run].item(), 0.6, momentum, period) for run in range(4)]
    bounded = []
    for update in range(5):
        layers = network.forward(parameters, normal(4, 9, 4, seed=update))
        by_outputs = normal(4, 9, 2, seed=20 + update)
        slopes = network.deltas(parameters, layers, by_outputs)
        observed = [(x.clone(), g.clone()) for x, g in zip(layers, slopes, strict=False)]
        optimizer.observe(layers, by_outputs)
        parameters.grad.copy_(normal(len(parameters.grad), seed=40 + update))
        gradients = {name: grad.clone() for name, grad in parameters.grads.items()}
        before = {name: view.detach().clone() for name, view in parameters.views.items()}
        models = optimizer.step(RATES, DELTAS)
        for run, reference in enumerate(references):
            gradient = torch.cat([grad[run].flatten() for grad in gradients.values()])
            inputs, scores = [x[run] for x, _ in observed], [g[run] for _, g in observed]
            step, model = reference.step(inputs, scores, gradient, RATES[run], DELTAS[run])
            moved = torch.cat([(before[name] - view)[run].flatten() for name, view in parameters.views.items()])
            assert torch.allclose(moved, step, rtol=1e-8, atol=1e-10)
            assert models[run].item() == pytest.approx(model, rel=1e-8)
            assert model <= DELTAS[run] * (1 + 1e-12)
            if momentum == 0:
                taken = 0.5 * moved @ reference.fisher @ moved
                assert taken.item() == pytest.approx(model, rel=1e-6)
            bounded.append(model > 0.999 * DELTAS[run])
    assert any(bounded) and not all(bounded)


def test_state_goes_on_where_it_was_taken_and_no_gradient_is_no_step() -> None:
    network = MLP("net", (3, 4, 2))
    ours = []
    for _ in range(2):
        parameters = Parameters(2, network.shapes())
        parameters.flat.copy_(normal(len(parameters.flat)).float())
        ours.append((parameters, kfac.KFAC(network, parameters, torch.full((2, 1), 0.1), 0.9, 0.9, 3)))

    def update(parameters: Parameters, optimizer: kfac.KFAC, seed: int) -> None:
        layers = network.forward(parameters, normal(2, 8, 3, seed=seed).float())
        optimizer.observe(layers, normal(2, 8, 2, seed=seed + 50).float())
        parameters.grad.copy_(normal(len(parameters.grad), seed=seed + 90).float())
        optimizer.step(np.array([0.1, 0.2]), np.array([inf, 1e-3]))

    for seed in range(4):
        update(*ours[0], seed)
    ours[1][0].load_state(ours[0][0].state())
    ours[1][1].load_state(ours[0][1].state())
    for pair in ours:
        update(*pair, 4)
    assert torch.equal(ours[0][0].flat, ours[1][0].flat)

    parameters, optimizer = ours[0]
    optimizer.momentum = 0.0
    before = parameters.flat.clone()
    parameters.grad.zero_()
    assert optimizer.step(np.array([0.1, 0.2]), np.array([inf, 1e-3])).tolist() == [0.0, 0.0]
    assert torch.equal(parameters.flat, before)


# ------------------------------------------------------------------------------------------------------------- ACKTR
SIZES: dict[str, Any] = {"hidden_sizes": [16, 16], "num_steps": 40, "num_envs": 1, "fisher_subsample": 3}


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_gradients_and_statistics_are_those_of_autograd(spaces: Spaces) -> None:
    """The losses' gradients, and the factors of both heads from the scores of every third sample."""
    settings = [{}, {"ent_coef": 0.3}]
    agent = build("acktr", spaces, [setting | SIZES for setting in settings], [0, 1])
    rng = torch.Generator().manual_seed(0)
    observations, advantages, returns = (torch.randn(2, 40, *shape, generator=rng) for shape in ((5,), (), ()))
    actions = torch.randint(3, (2, 40), generator=rng) if spaces.num_actions else torch.randn(2, 40, 2, generator=rng)
    agent._value_gradient(agent.critic.forward(agent.parameters, observations), returns)
    agent._policy_gradient(observations, actions, advantages)
    for run, setting in enumerate(settings):
        weights = leaves(agent.parameters_of(run), torch.float64)
        policy, values = policy_of(weights, observations[run].double()), values_of(weights, observations[run].double())
        loss = -policy.log_prob(actions[run]) * advantages[run] - setting.get("ent_coef", 0.0) * policy.entropy()
        loss = (loss + (values - returns[run]) ** 2 / 2).mean()
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            ours = agent.parameters.grads[name][run].double()
            assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), (run, name)
        policy, values = policy_of(weights, observations[run].double()), values_of(weights, observations[run].double())
        for name, optimizer, log_probs in (
            ("actor", agent.optimizer, policy.log_prob(actions[run])),
            ("critic", agent.value_optimizer, values),
        ):
            for layer in range(3):
                bias = weights[f"{name}.bias{layer}"]
                scores = [torch.autograd.grad(log_probs[b], bias, retain_graph=True)[0] for b in range(0, 40, 3)]
                expected = sum(score.T @ score for score in scores) / 14
                ours = optimizer.factors[layer][1][run].double()
                assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_with_overwhelming_damping_it_is_gradient_descent(task: str) -> None:
    """As lambda grows F becomes lambda I: with a step size of lambda times the usual one, every update is that of SGD
    on A2C's losses."""
    damping, rates = 1e12, (1e-2, 3e-3)
    huge = {"damping": damping, "value_damping": damping, "policy_delta": inf, "value_delta": inf, "kl_target": 0.0}
    huge |= {"learning_rate": damping * rates[0], "value_learning_rate": damping * rates[1], "momentum": 0.0}
    agent = make("acktr", task, [SIZES | huge | {"num_value_steps": 1, "ent_coef": 0.1}] * 2, [1, 2])
    seen: dict[str, Any] = {}
    for name in ("_policy_gradient", "_value_gradient"):
        method = getattr(agent, name)
        setattr(agent, name, lambda *args, name=name, method=method: (seen.update({name: args}), method(*args))[1])
    for _ in range(2):
        before = [agent.parameters_of(run) for run in range(2)]
        agent.iterate()
        observations, actions, advantages = seen["_policy_gradient"]
        for run in range(2):
            weights = leaves(before[run])
            policy = policy_of(weights, observations[run])
            policy_loss = (-policy.log_prob(actions[run]) * advantages[run] - 0.1 * policy.entropy()).mean()
            value_loss = ((values_of(weights, observations[run]) - seen["_value_gradient"][1][run]) ** 2 / 2).mean()
            after = agent.parameters_of(run)
            for loss, critic, rate in ((policy_loss, False, rates[0]), (value_loss, True, rates[1])):
                names = [name for name in weights if name.startswith("critic") == critic]
                for name, gradient in zip(names, torch.autograd.grad(loss, part(weights, critic)), strict=True):
                    expected = weights[name] - rate * gradient
                    assert np.abs(after[name] - expected.detach().numpy()).max() < 2e-6, name


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_the_trust_region_holds_and_models_the_kl(task: str) -> None:
    """The model of the KL is at most delta, and delta where eta_max is out of reach. The KL itself may be some three
    times as large: three layers move, and K-FAC's matrix knows nothing of what they do together."""
    deltas = (1e-4, 1e-3, 5e-3, inf)
    free = {"learning_rate": 1e6, "kl_target": 0.0, "momentum": 0.0, "num_steps": 256, "fisher_subsample": 1}
    runs = [SIZES | free | {"policy_delta": delta, "value_delta": 0.1} for delta in deltas]
    runs[3] |= {"learning_rate": 1e-2}
    agent = make("acktr", task, runs, [1, 2, 3, 4])
    for _ in range(3):
        metrics = agent.iterate()
        assert metrics["kl_model"][:3] == pytest.approx(deltas[:3], rel=1e-4)
        assert 0 < metrics["kl_model"][3] < 5e-3
        assert (metrics["value_kl_model"] <= 0.1 * (1 + 1e-5)).all()
        assert (metrics["kl"][:3] < 5 * np.array(deltas[:3])).all() and (metrics["kl"] > 0).all()


def test_step_size_adapts_to_the_kl() -> None:
    """Each run with its own target: too much KL shrinks the step by 1.5, too little lets it grow; 0 leaves it."""
    runs = [SIZES | {"kl_target": target} for target in (1e-9, 10.0, 0.0)]
    agent = make("acktr", "Pendulum-v1", runs, [1, 2, 3])
    sizes = [agent.iterate()["step_size"] for _ in range(2)]
    assert sizes[0] == pytest.approx([0.03 / 1.5, 0.03 * 1.5, 0.03])
    assert sizes[1] == pytest.approx([0.03 / 1.5**2, 0.03 * 1.5**2, 0.03])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"policy_delta": 0.0}, "policy_delta"),
        ({"damping": 0.0}, "damping"),
        ({"momentum": 1.5}, "momentum"),
        ({"inverse_period": 0}, "inverse_period"),
        ({"fisher_subsample": 0}, "fisher_subsample"),
        ({"num_steps": 1}, "num_steps"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config("acktr", None, values)


def test_presets() -> None:
    assert set(presets("acktr")) == {"baselines", "baselines-batch", "minatar", "mujoco"}
    assert load_config("acktr", "baselines").num_value_steps == load_config("acktr", "mujoco").num_value_steps == 25
