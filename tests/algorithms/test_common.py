"""The shared parts against slow forms of their definitions, torch's own modules and hand-computed numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from cases import EVOLUTION
from torch import Tensor, nn

import algorithms
from algorithms.common import config, runtime
from algorithms.common.distributions import Categorical, Gaussian
from algorithms.common.layers import MLP, PAD, Parameters, fan_in_uniform, normalized_columns, orthogonal
from algorithms.common.normalization import ObservationNormalizer, RewardScaler, RunningMoments
from algorithms.common.optimizers import Adam
from algorithms.common.returns import gae
from algorithms.common.streams import Streams, generator

inf = math.inf
ROOT = Path(__file__).parent.parent.parent


# ------------------------------------------------------------------------------------------------------------ returns
def rollout(seed: int = 0, steps: int = 30, runs: int = 3, envs: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (steps, runs, envs)
    entries = {name: rng.standard_normal(shape).astype(np.float32) for name in ("rewards", "values", "next_values")}
    terminations = rng.random(shape) < 0.1
    ends = terminations | (rng.random(shape) < 0.1)
    assert (ends & ~terminations).any() and terminations.any()
    return entries | {"terminations": terminations, "ends": ends}


def literal_gae(r: dict[str, np.ndarray], gamma: np.ndarray, gae_lambda: np.ndarray) -> np.ndarray:
    """sum_l (gamma lambda)^l delta_{t+l} to the end of the episode or of the rollout, in float64, O(T^2)."""
    advantages = np.zeros(r["rewards"].shape)
    for t, run, n in np.ndindex(advantages.shape):
        for k in range(t, len(advantages)):
            worth = 0.0 if r["terminations"][k, run, n] else float(r["next_values"][k, run, n])
            delta = float(r["rewards"][k, run, n]) + gamma[run] * worth - float(r["values"][k, run, n])
            advantages[t, run, n] += (gamma[run] * gae_lambda[run]) ** (k - t) * delta
            if r["ends"][k, run, n]:
                break
    return advantages


def test_gae_is_the_sum_it_stands_for() -> None:
    gamma, gae_lambda = np.array([0.99, 0.9, 1.0]), np.array([0.95, 0.5, 1.0])
    for seed in range(5):
        r = rollout(seed)
        assert np.allclose(gae(**r, gamma=gamma, gae_lambda=gae_lambda), literal_gae(r, gamma, gae_lambda), atol=1e-5)


def test_lambda_1_is_the_monte_carlo_return_minus_the_baseline() -> None:
    """I3: the return runs to the episode's end; where it was cut, or the rollout ends, a value stands for the rest."""
    r, gamma = rollout(1), np.array([0.99, 0.9, 0.5])
    advantages = gae(**r, gamma=gamma, gae_lambda=np.ones(3))
    for t, run, n in np.ndindex(advantages.shape):
        # a value that is not its state's next_value one step before: only the two ends of the sum may remain
        total, discount, k = 0.0, 1.0, t
        while True:
            total += discount * float(r["rewards"][k, run, n])
            discount *= gamma[run]
            if r["ends"][k, run, n] or k == len(advantages) - 1:
                break
            total += discount * (float(r["next_values"][k, run, n]) - float(r["values"][k + 1, run, n]))
            k += 1
        if not r["terminations"][k, run, n]:
            total += discount * float(r["next_values"][k, run, n])
        assert advantages[t, run, n] == pytest.approx(total - float(r["values"][t, run, n]), abs=1e-5)


def test_lambda_1_needs_no_values_but_the_last() -> None:
    """Where next_values are the next steps' values, as in a rollout, A + V is the discounted sum of rewards itself."""
    rewards = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)[:, None, None]
    values = np.array([0.3, -0.7, 0.9, 0.1, 0.4], np.float32)[:, None, None]
    next_values = np.array([-0.7, 100.0, 0.1, 8.0, 6.0], np.float32)[:, None, None]
    terminations = np.array([0, 1, 0, 0, 0], bool)[:, None, None]  # step 1 terminates, step 3 is cut
    ends = np.array([0, 1, 0, 1, 0], bool)[:, None, None]
    advantages = gae(rewards, values, next_values, terminations, ends, np.array([0.5]), np.ones(1))
    returns = [1 + 0.5 * 2, 2, 3 + 0.5 * 4 + 0.25 * 8, 4 + 0.5 * 8, 5 + 0.5 * 6]
    assert (advantages + values).ravel().tolist() == pytest.approx(returns)


def test_lambda_0_is_the_td_error() -> None:
    r, gamma = rollout(2), np.array([0.99, 0.9, 0.5])
    worth = np.where(r["terminations"], 0, r["next_values"])
    td_errors = r["rewards"] + gamma.astype(np.float32)[:, None] * worth - r["values"]
    assert np.array_equal(gae(**r, gamma=gamma, gae_lambda=np.zeros(3)), td_errors)


# ------------------------------------------------------------------------------------------------------ distributions
def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torch_gaussian(mean: Tensor, log_std: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp().expand_as(mean)), 1)


def torch_categorical(logits: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Categorical(logits=logits)


def pairs(seed: int = 0) -> list[tuple[Any, Any, list[Tensor], list[Tensor], Tensor]]:
    """(our kind, torch's, two sets of parameters, actions) for both kinds, [R=3, B=7, A=4], in float64."""
    means = [normal(3, 7, 4, seed=seed + k) for k in (1, 2)]
    log_stds = [0.5 * normal(3, 1, 4, seed=seed + k) for k in (11, 12)]
    logits = [2 * normal(3, 7, 4, seed=seed + k) for k in (3, 4)]
    indices = torch.randint(4, (3, 7), generator=torch.Generator().manual_seed(seed))
    one, two = (list(both) for both in zip(means, log_stds, strict=True))
    return [
        (Gaussian, torch_gaussian, one, two, normal(3, 7, 4, seed=seed + 5)),
        (Categorical, torch_categorical, [logits[0]], [logits[1]], indices),
    ]


def test_distributions_agree_with_torch() -> None:
    for kind, theirs, first, second, actions in pairs():
        one, two, torch_one, torch_two = kind(*first), kind(*second), theirs(*first), theirs(*second)
        assert torch.allclose(one.log_prob(actions), torch_one.log_prob(actions), rtol=1e-12, atol=1e-12)
        assert torch.allclose(one.entropy(), torch_one.entropy(), rtol=1e-12, atol=1e-12)
        assert one.entropy().shape == (3, 7)
        kl = torch.distributions.kl_divergence(torch_one, torch_two)
        assert torch.allclose(one.kl(two), kl, rtol=1e-12, atol=1e-12)
        assert torch.allclose(one.kl(one), torch.zeros(3, 7, dtype=torch.float64), atol=1e-12)


def test_kl_between_gaussians_shrinks_as_their_variance_grows() -> None:
    """I6: with equal deviations KL = (m1 - m2)^2 / (2 s^2), so a fixed budget d lets the mean move by s sqrt(2 d)."""
    budget, before = 0.01, inf
    for std in (0.1, 0.3, 1.0, 3.0, 10.0):
        log_std = torch.full((1, 1, 1), math.log(std), dtype=torch.float64)
        zero, one = torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
        here, there = Gaussian(zero, log_std), Gaussian(one, log_std)
        kl = here.kl(there).item()
        assert kl == pytest.approx(1 / (2 * std**2), rel=1e-12)
        by_torch = torch.distributions.kl_divergence(torch_gaussian(zero, log_std), torch_gaussian(one, log_std))
        assert kl == pytest.approx(by_torch.item())
        assert kl < before
        before = kl
        moved = Gaussian(torch.full((1, 1, 1), std * math.sqrt(2 * budget)).double(), log_std)
        assert here.kl(moved).item() == pytest.approx(budget, rel=1e-6)


@pytest.mark.parametrize("with_old", [True, False])
@pytest.mark.parametrize("columns", [True, False], ids=["a weight per run", "a weight per sample"])
def test_gradients_against_autograd(with_old: bool, columns: bool) -> None:
    """d sum_b (w_p log pi(a) + w_k KL(old || pi) + w_h H(pi)), float64."""
    for kind, _, first, second, actions in pairs(7):
        w_p = normal(3, 7, seed=20)
        w_k, w_h = normal(3, 1 if columns else 7, seed=21), normal(3, 1 if columns else 7, seed=22)
        w_k = w_k if with_old else torch.zeros_like(w_k)
        leaves = [leaf.clone().requires_grad_() for leaf in first]
        policy, old = kind(*leaves), kind(*second)
        loss = w_p * policy.log_prob(actions) + w_k * old.kl(policy) + w_h * policy.entropy()
        expected = torch.autograd.grad(loss.sum(), leaves)
        ours = kind(*first).gradient(actions, w_p, old if with_old else None, w_k, w_h)
        assert (ours[1] is None) == (kind is Categorical)
        for one, other in zip(ours, expected, strict=False):
            assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- layers
def network(sizes: tuple[int, ...], activation: str, runs: int = 3, seed: int = 0) -> tuple[MLP, Parameters]:
    mlp = MLP("net", sizes, activation)
    parameters = Parameters(runs, mlp.shapes())
    rng = np.random.default_rng(seed)
    for name, shape in mlp.shapes().items():
        parameters.fill(name, rng.standard_normal((runs, *shape)) / 2)
    return mlp, parameters


def twin(parameters: Parameters, run: int, activation: str) -> nn.Sequential:
    """One run's network out of torch's modules, in float64."""
    weights = parameters.of_run(run)
    layers: list[nn.Module] = []
    for k in range(len(weights) // 2):
        weight, bias = (torch.from_numpy(weights[f"net.{kind}{k}"]).double() for kind in ("weight", "bias"))
        linear = nn.Linear(*weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight.T.contiguous(), bias[0]
        layers += [linear, nn.Tanh() if activation == "tanh" else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(17, 64, 64, 6), (5, 32, 1), (3, 2), (4, 1), (9, 16, 1, 16, 3)])
def test_mlp_agrees_with_torch(sizes: tuple[int, ...], activation: str) -> None:
    """Outputs, gradients of the weights (both ways to them) and of the inputs; also heads of one output."""
    mlp, parameters = network(sizes, activation)
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 11, sizes[0], generator=rng, requires_grad=True)
    delta = torch.randn(3, 11, sizes[-1], generator=rng)
    outputs = mlp(parameters, inputs)
    (by_inputs,) = torch.autograd.grad((outputs * delta).sum(), inputs, retain_graph=True)
    parameters.backward((outputs * delta).sum())
    by_autograd = parameters.grad.clone()
    parameters.grad.zero_()
    layers = mlp.forward(parameters, inputs.detach())
    assert torch.equal(layers[0], inputs.detach()) and len(layers) == len(sizes)
    assert torch.equal(layers[-1], outputs.detach())
    mlp.backward(parameters, layers, delta)
    assert torch.equal(parameters.grad, by_autograd)
    for run in range(3):
        model, x = twin(parameters, run, activation), inputs[run].detach().double().requires_grad_()
        y = model(x)
        assert torch.allclose(outputs[run].double(), y, rtol=1e-4, atol=1e-5)
        (y * delta[run].double()).sum().backward()
        assert torch.allclose(by_inputs[run].double(), x.grad, rtol=1e-4, atol=1e-4)
        for k, linear in enumerate(module for module in model if isinstance(module, nn.Linear)):
            gradients = parameters.grads[f"net.weight{k}"][run].double(), parameters.grads[f"net.bias{k}"][run].double()
            assert torch.allclose(gradients[0], linear.weight.grad.T, rtol=1e-4, atol=1e-4)
            assert torch.allclose(gradients[1][0], linear.bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(17, 64, 64, 6), (5, 32, 1), (3, 2)])
def test_acting_is_the_same_function(sizes: tuple[int, ...], activation: str) -> None:
    """In NumPy, on the weights as they are at the time; its argument stays as it was."""
    mlp, parameters = network(sizes, activation)
    act = mlp.acting(parameters)
    for batch in (1, 4, 33):
        x = np.random.default_rng(1).standard_normal((3, batch, sizes[0])).astype(np.float32)
        kept = x.copy()
        outputs = act(x)
        assert outputs.dtype == np.float32 and np.array_equal(x, kept)
        assert np.allclose(outputs, mlp(parameters, torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-5)
    before = act(x)
    parameters.flat.mul_(0.5)
    assert not np.allclose(before, act(x))
    assert np.allclose(act(x), mlp(parameters, torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_forward_pass_for_two_weights_keeps_the_first_one_s_outputs() -> None:
    """Target networks run through the same network: what they put out must survive the next pass."""
    mlp, parameters = network((5, 16, 16, 3), "relu")
    target = Parameters(3, mlp.shapes())
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    first = mlp.forward(parameters, x)[-1]
    kept = first.clone()
    mlp.forward(target, x)
    assert torch.equal(first, kept)


def test_parameters_layout_and_state() -> None:
    shapes = {"a": (3, 5), "b": (1, 1), "c": (70,)}
    parameters = Parameters(4, shapes)
    for name, shape in shapes.items():
        assert parameters[name].shape == (4, *shape)
        for run in range(4):  # no vector of PAD numbers belongs to two runs
            assert (parameters[name][run].data_ptr() - parameters.flat.data_ptr()) % (4 * PAD) == 0
        parameters.fill(name, np.random.default_rng(0).standard_normal((4, *shape)))
    other = Parameters(4, shapes)
    other.load_state(parameters.state())
    assert torch.equal(other.flat, parameters.flat)
    state = parameters.state()
    parameters.flat.zero_()
    assert np.array_equal(state["flat"], other.flat.numpy())  # a copy, not a window
    third = Parameters(4, shapes)
    third.copy_(other)
    assert torch.equal(third.flat, other.flat)
    assert all(np.array_equal(value, other[name][2].detach().numpy()) for name, value in other.of_run(2).items())


@pytest.mark.parametrize("bad", [inf, -inf, math.nan])
def test_finite_is_per_run(bad: float) -> None:
    parameters = Parameters(3, {"a": (3, 5), "b": (1, 1)})
    assert parameters.finite().tolist() == [True] * 3
    with torch.no_grad():
        parameters["b"][1, 0, 0] = bad
    assert parameters.finite().tolist() == [True, False, True]


def test_initializers() -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((64, 64), (17, 64), (64, 6), (64, 1)):
        matrix = orthogonal(math.sqrt(2))(rng, rows, columns)
        assert matrix.shape == (rows, columns)
        gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
        assert np.allclose(gram, 2 * np.eye(min(rows, columns)), atol=1e-10)
        matrix = normalized_columns(0.01)(rng, rows, columns)
        assert matrix.shape == (rows, columns) and np.allclose(np.linalg.norm(matrix, axis=0), 0.01)
        matrix = fan_in_uniform(rng, rows, columns)
        assert matrix.shape == (rows, columns) and np.abs(matrix).max() <= 1 / math.sqrt(rows)
    # A QR decomposition's signs are not random by themselves; corrected, the mean over many is zero.
    entries = np.stack([orthogonal(1.0)(rng, 4, 4) for _ in range(4000)])
    assert np.abs(entries.mean(0)).max() < 5 * 0.5 / math.sqrt(4000)


def test_initialize_draws_from_each_run_s_own_generator() -> None:
    mlp = MLP("net", (7, 16, 2))
    parameters, alone = Parameters(3, mlp.shapes()), Parameters(1, mlp.shapes())
    mlp.initialize(parameters, Streams([4, 5, 6])["net"], normalized_columns(1.0), normalized_columns(0.01))
    mlp.initialize(alone, Streams([6])["net"], normalized_columns(1.0), normalized_columns(0.01))
    for name, value in alone.of_run(0).items():
        assert np.array_equal(value, parameters.of_run(2)[name])
        assert value.any() == name.startswith("net.weight")  # biases are zero
    assert torch.allclose(torch.linalg.vector_norm(parameters["net.weight1"], dim=1), torch.tensor(0.01))
    mlp.initialize(parameters, Streams([4, 5, 6])["net"], fan_in_uniform, fan_in_uniform, fan_in_uniform)
    for k, rows in ((0, 7), (1, 16)):
        bias = parameters[f"net.bias{k}"].detach()
        assert (bias != 0).all() and (bias.abs() <= 1 / math.sqrt(rows)).all() and len(bias.unique()) == bias.numel()


# ---------------------------------------------------------------------------------------------------------- optimizer
SHAPES = {"weight": (5, 7), "bias": (1, 7), "log_std": (1, 3)}
RATES = np.array([1e-2, 3e-4, 1e-1, 1e-3])
NORMS = np.array([inf, 0.5, 1e3, 0.05])


def gradients(parameters: Parameters, step: int) -> None:
    rng = np.random.default_rng(step)
    for name, shape in SHAPES.items():
        values = rng.standard_normal((parameters.num_runs, *shape)) * 10.0 ** rng.integers(-3, 2)
        parameters.grads[name].copy_(torch.from_numpy(values))


def test_adam_agrees_with_torch_run_by_run() -> None:
    """Step sizes that differ and change, norms clipped over all of a run's parameters, masked runs that stand still."""
    parameters = Parameters(4, SHAPES)
    optimizer = Adam(parameters, epsilon=1e-5)
    models, optimizers = [], []
    for run in range(4):
        models.append([nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()])
        optimizers.append(torch.optim.Adam(models[run], lr=RATES[run], eps=1e-5))
    counts = np.zeros(4, np.int64)
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
        before = parameters.flat.clone()
        optimizer.step(rates, NORMS, active)
        counts += active
        for run in range(4):
            for ours, was, theirs in zip(
                parameters.views.values(), parameters.split(before).values(), models[run], strict=True
            ):
                assert torch.allclose(ours[run], theirs, rtol=1e-4, atol=1e-6)
                if not active[run]:
                    assert torch.equal(ours[run], was[run])
    assert np.array_equal(optimizer.steps, counts)


def test_adam_first_step_by_hand() -> None:
    """After bias correction the first step is lr g / (|g| + eps), whatever g's size."""
    parameters = Parameters(2, {"a": (1, 3)})
    parameters.grads["a"].copy_(torch.tensor([[[4.0, -0.5, 1e-8]], [[4.0, -0.5, 0.0]]]))
    Adam(parameters, epsilon=1e-8).step(np.array([0.1, 0.2]))
    assert parameters["a"].flatten().tolist() == pytest.approx([-0.1, 0.1, -0.05, -0.2, 0.2, 0.0], rel=1e-5)


def test_adam_gives_the_same_bits_shared_or_per_run() -> None:
    """A run's bits do not depend on whether the others share its step size, its bound, its count or its fate."""
    results = {}
    for company in (False, True):
        runs = 5 if company else 1
        parameters = Parameters(runs, SHAPES)
        optimizer = Adam(parameters)
        for step in range(20):
            rng = np.random.default_rng(step)
            for name, shape in SHAPES.items():
                values = torch.from_numpy(rng.standard_normal((1, *shape)).astype(np.float32))
                parameters.grads[name].copy_(values * torch.arange(1, runs + 1).view(-1, 1, 1).flip(0))
            rates, norms, active = np.full(runs, 3e-3), np.full(runs, inf), np.ones(runs, bool)
            if company:
                rates[:4], norms[:4], active[step % 4] = [0.1, 0.0, 1e30, 1e-3], [1.0, inf, 1e-3, inf], False
            optimizer.step(rates, norms, active)
        results[company] = [view[-1].clone() for view in parameters.views.values()]
    assert all(torch.equal(*both) for both in zip(results[False], results[True], strict=True))


def test_adam_state() -> None:
    one, two = Parameters(4, SHAPES), Parameters(4, SHAPES)
    first, second = Adam(one), Adam(two)
    for step in range(3):
        gradients(one, step)
        first.step(RATES, NORMS, np.arange(4) != step)
    two.load_state(one.state())
    second.load_state(first.state())
    state = first.state()
    for parameters, optimizer in ((one, first), (two, second)):
        gradients(parameters, 9)
        optimizer.step(RATES, NORMS)
    assert torch.equal(one.flat, two.flat) and np.array_equal(first.steps, second.steps)
    assert state["steps"].tolist() == [2, 2, 2, 3]
    assert not np.array_equal(state["first_moment"], first.state()["first_moment"])


# ------------------------------------------------------------------------------------------------------ normalization
def test_running_moments_are_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    batches = [
        rng.standard_normal((3, size, 4)) * scale + 5 for size, scale in ((1, 1.0), (7, 3.0), (64, 0.1), (1, 2.0))
    ]
    moments = RunningMoments(3, (4,))
    for batch in batches:
        moments.update(batch)
    everything = np.concatenate(batches, 1)
    assert np.allclose(moments.mean, everything.mean(1), rtol=1e-4)  # the prior N(0, 1) weighs 1e-4 samples
    assert np.allclose(moments.variance, everything.var(1), rtol=1e-3)
    assert moments.count == pytest.approx(everything.shape[1], abs=1e-3)
    # With the prior's mean 0 and variance 1 at its weight it is exact.
    weights = np.r_[np.full(everything.shape[1], 1.0), 1e-4] / (everything.shape[1] + 1e-4)
    samples = np.concatenate([everything, np.zeros((3, 1, 4))], 1)
    mean = np.einsum("b,rbo->ro", weights, samples)
    variance = np.einsum("b,rbo->ro", weights, (samples - mean[:, None]) ** 2) + weights[-1] * 1.0
    assert np.allclose(moments.mean, mean, rtol=1e-12) and np.allclose(moments.variance, variance, rtol=1e-10)


def test_running_moments_state_goes_on() -> None:
    rng = np.random.default_rng(0)
    one, two = RunningMoments(2, (3,)), RunningMoments(2, (3,))
    one.update(rng.standard_normal((2, 5, 3)))
    two.load_state(one.state())
    batch = rng.standard_normal((2, 5, 3))
    one.update(batch), two.update(batch)
    assert np.array_equal(one.mean, two.mean) and np.array_equal(one.variance, two.variance) and one.count == two.count


def test_observations_are_normalized_per_run_and_clipped() -> None:
    normalizer = ObservationNormalizer(2, (3,))
    rng = np.random.default_rng(0)
    observations = (rng.standard_normal((2, 500, 3)) * [[[1, 2, 3]], [[4, 5, 6]]] + 7).astype(np.float32)
    normalizer.update(observations)
    scaled = normalizer(observations)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled.mean(1), 0, atol=1e-3) and np.allclose(scaled.std(1), 1, atol=1e-3)
    assert normalizer(np.full((2, 1, 3), 1e6, np.float32)).tolist() == [[[10.0] * 3]] * 2
    assert normalizer(np.full((2, 1, 3), -1e6, np.float32)).min() == -10
    assert np.array_equal(normalizer(observations[:, 0]), scaled[:, 0])  # [R, O] as well as [R, N, O]


def test_reward_scaler_against_a_loop() -> None:
    """R <- gamma R + r, from 0 in every episode; the divisor is the deviation of all R so far and the prior."""
    rng, gammas = np.random.default_rng(0), np.array([0.9, 0.5])
    scaler = RewardScaler(2, 3, gammas)
    seen: list[list[float]] = [[], []]
    totals = np.zeros((2, 3))
    for _ in range(40):
        rewards, ends = rng.standard_normal((2, 3)) * 4 + 1, rng.random((2, 3)) < 0.2
        scaled = scaler(rewards, ends)
        for run in range(2):
            for n in range(3):
                totals[run, n] = totals[run, n] * gammas[run] + rewards[run, n]
                seen[run].append(totals[run, n])
            values, weight = np.array(seen[run]), 1e-4
            mean = values.sum() / (len(values) + weight)
            variance = (((values - mean) ** 2).sum() + weight * (1 + mean**2)) / (len(values) + weight)
            expected = np.clip(rewards[run] / np.sqrt(variance + 1e-8), -10, 10)
            assert np.allclose(scaled[run], expected, rtol=1e-10)
        totals[ends] = 0.0


# ------------------------------------------------------------------------------------------------------------ streams
def test_streams_depend_on_seed_and_purpose_alone() -> None:
    one, two = Streams([3, 4, 5]), Streams([9, 4])
    two["other"][1].random(100)  # another purpose's draws move nothing
    shape = (4, 5)
    for draw in ("normal", "uniform", "gumbel"):
        assert np.array_equal(getattr(one, draw)(draw, shape)[1], getattr(two, draw)(draw, shape)[1])
    assert np.array_equal(one.permutation("order", 50)[1], two.permutation("order", 50)[1])
    numbers = np.concatenate([one.normal("x", (8,)).ravel(), one.normal("y", (8,)).ravel()])
    assert len(np.unique(numbers)) == 48


def test_streams_shapes_and_ranges() -> None:
    streams = Streams([1, 2, 3])
    assert streams.normal("a", (4, 5), axis=1).shape == (4, 3, 5) and streams.normal("a", (2,)).dtype == np.float32
    uniform = streams.uniform("b", (10_000,))
    assert uniform.shape == (3, 10_000) and uniform.min() >= 0 and uniform.max() < 1
    order = streams.permutation("c", 64)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order, 1), np.tile(np.arange(64), (3, 1)))
    noise = streams.gumbel("d", (100_000,))
    assert np.isfinite(noise).all() and noise.dtype == np.float32
    assert np.allclose(noise.mean(1), np.euler_gamma, atol=0.02) and np.allclose(
        noise.var(1), math.pi**2 / 6, rtol=0.03
    )


def test_gumbel_noise_of_the_extreme_numbers_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams([1])
    extremes = np.array([[0.0, np.float32(1) - np.finfo(np.float32).epsneg]], np.float32)
    monkeypatch.setattr(streams, "uniform", lambda *_: extremes)
    assert np.isfinite(streams.gumbel("x", (2,))).all()


def test_streams_go_on_from_their_state() -> None:
    one, two = Streams([1, 2]), Streams([7, 8])
    one.normal("a", (3,)), one.uniform("b", (5,)), two.normal("c", (1,))
    two.seeds = one.seeds
    two.load_state(one.state())
    for purpose in ("a", "b", "c"):  # c is first used after the pause
        assert np.array_equal(one.uniform(purpose, (6,)), two.uniform(purpose, (6,)))


def test_generators_of_large_seeds_and_indices_differ() -> None:
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**100]
    numbers = {int(generator(s, p, i).integers(2**63)) for s in seeds for p in ("a", "b") for i in (None, 1, 2, 3)}
    assert len(numbers) == len(seeds) * 2 * 4


# ------------------------------------------------------------------------------------------------------ configuration
@dataclasses.dataclass(frozen=True)
class Example:
    learning_rate: config.PerRun = 1e-3
    clip_coef: config.PerRun = 0.2
    num_steps: int = 8
    hidden_sizes: tuple[int, ...] = (64, 64)
    scale: bool = False
    kind: Literal["one", "two"] = "one"

    def __post_init__(self) -> None:
        config.require(self.num_steps > 0, f"num_steps is {self.num_steps}; it must be positive")


def build(**values: Any) -> Example:
    return config.build(Example, values, "example")


def test_config_takes_what_files_and_command_lines_hold() -> None:
    cfg = build(learning_rate=1, clip_coef="inf", hidden_sizes=[32, 16], scale=True, kind="two")
    assert cfg == Example(1.0, inf, 8, (32, 16), True, "two")
    assert isinstance(cfg.learning_rate, float)
    assert config.to_dict(cfg) == {
        "learning_rate": 1.0, "clip_coef": "inf", "num_steps": 8,
        "hidden_sizes": [32, 16], "scale": True, "kind": "two",
    }  # fmt: skip
    assert build(**config.to_dict(cfg)) == cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 1.0}, "unknown setting 'learning_rte'.*did you mean learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be of type float"),
        ({"learning_rate": True}, "learning_rate is True"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"num_steps": 1.5}, "num_steps is 1.5; it must be of type int"),
        ({"num_steps": True}, "num_steps is True"),
        ({"num_steps": 0}, "num_steps is 0; it must be positive"),
        ({"hidden_sizes": 64}, "hidden_sizes is 64"),
        ({"hidden_sizes": [64, "a"]}, "hidden_sizes is 'a'"),
        ({"scale": 1}, "scale is 1; it must be of type bool"),
        ({"kind": "three"}, "kind is 'three'; it must be one of 'one', 'two'"),
    ],
)
def test_config_names_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**values)


def test_stack_keeps_per_run_values_and_refuses_different_structures() -> None:
    assert config.per_run_fields(Example) == {"learning_rate", "clip_coef"}
    group = config.stack([build(learning_rate=0.1), build(clip_coef=inf), build()])
    assert group.learning_rate.tolist() == [0.1, 1e-3, 1e-3] and group.clip_coef.tolist() == [0.2, inf, 0.2]
    assert group.num_steps == 8 and group.hidden_sizes == (64, 64)
    for other in ({"num_steps": 9}, {"hidden_sizes": [64]}, {"scale": True}, {"kind": "two"}):
        with pytest.raises(ValueError, match="structural"):
            config.stack([build(), build(**other)])


def test_unknown_algorithms_and_presets_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'pppo'.*did you mean ppo"):
        config.load_config("pppo")
    with pytest.raises(ValueError, match=r"no preset 'baseline'.*did you mean baselines"):
        config.load_config("ppo", "baseline")
    with pytest.raises(ValueError, match=r"unknown setting 'clip_coeff'.*did you mean clip_coef"):
        config.load_config("ppo", None, {"clip_coeff": 0.1})


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_has_what_the_driver_needs(name: str) -> None:
    module = algorithms.load(name)
    assert module.SUPPORTS and set(module.SUPPORTS) <= {"discrete", "continuous", "tabular"}
    assert module.__doc__ and "Departures" in module.__doc__
    defaults = config.load_config(name)
    assert config.build(module.Config, config.to_dict(defaults), name) == defaults
    assert config.per_run_fields(module.Config) >= ({"gamma"} if name not in EVOLUTION else set())
    for method in ("iterate", "act", "state", "load_state", "parameters_of", "diverged"):
        assert callable(getattr(module.Agent, method))


@pytest.mark.parametrize(
    ("name", "preset"), [(name, preset) for name in algorithms.names() for preset in config.presets(name)]
)
def test_every_preset_loads(name: str, preset: str) -> None:
    cfg = config.load_config(name, preset)
    assert config.build(type(cfg), config.to_dict(cfg), name) == cfg


# ------------------------------------------------------------------------------------------------------------ runtime
def test_this_process_is_prepared() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["MKL_CBWR"]
    facts = runtime.configure_torch("cpu")
    assert facts["device"] == "cpu" and facts["threads"] == 1 and "float32" in facts["precision"]
    assert torch.get_num_threads() == 1 and torch.get_float32_matmul_precision() == "highest"


def test_a_missing_gpu_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"device 'cuda'.*--device cpu"):
        runtime.configure_torch("cuda")
    assert runtime.configure_torch("auto")["device"] == "cpu"


def test_preparing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from algorithms.common import runtime; runtime.prepare(); import algorithms; algorithms.names();"
        "print([name for name in ('numpy', 'torch', 'gymnasium') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("algorithm", "needs_torch"), [("q_learning", False), ("dqn", True)])
def test_torch_is_imported_where_it_computes(algorithm: str, needs_torch: bool) -> None:
    """A worker that trains tables starts in a tenth of the time; what it records names no torch setting."""
    code = (
        "import json, sys, bench.drive, algorithms; from algorithms.common import runtime;"
        f"module = algorithms.load('{algorithm}'); facts = runtime.configure('cpu');"
        "print(json.dumps(['torch' in sys.modules, facts]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, facts = json.loads(done.stdout)
    assert imported is needs_torch and ("mkl_cbwr" in facts) is needs_torch
    assert facts["device"] == "cpu" and facts["threads"] == 1 and facts["isa"]
