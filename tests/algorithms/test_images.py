"""Networks on images and K-FAC's convolutional factors: against torch's convolutions and autograd, explicit sums over
positions, and the exact Fisher matrix where the assumptions of arXiv:1602.01407 hold."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from cases import advance, assert_same, make, outcome
from test_policy_gradient import build
from test_ppo import Spaces
from test_trpo import double, normal  # noqa: F401  (a fixture)
from torch import Tensor
from torch.nn import functional

from algorithms.common import kfac
from algorithms.common.columns import CONVOLUTIONS
from algorithms.common.images import ImageNetwork
from algorithms.common.layers import MLP, Parameters

RUNS, BATCH = 2, 3
SHAPES = {"minatar": (5, 4, 2), "nature": (48, 44, 1)}


def network_of(convolutions: str, outputs: int = 2) -> tuple[ImageNetwork, Parameters, Tensor]:
    network = ImageNetwork("net", SHAPES[convolutions], convolutions, (6, outputs))
    parameters = Parameters(RUNS, network.shapes())
    for view in parameters.views.values():
        view.detach().copy_(normal(*view.shape, seed=view.numel()) / view.shape[1] ** 0.5)
    return network, parameters, normal(RUNS, BATCH, *SHAPES[convolutions], seed=2)


def literal(weights: dict[str, Tensor], convolutions: str, images: Tensor) -> Tensor:
    """One run by torch's own convolution: [B, H, W, C] -> [B, out]."""
    x, k = images.movedim(-1, 1), 0
    for k, (_, kernel, stride) in enumerate(CONVOLUTIONS[convolutions]):
        weight = weights[f"net.weight{k}"].unflatten(0, (kernel, kernel, -1)).permute(3, 2, 0, 1)
        x = torch.relu(functional.conv2d(x, weight, weights[f"net.bias{k}"][0], stride))
    x = x.movedim(1, -1).flatten(1)
    x = torch.relu(x @ weights[f"net.weight{k + 1}"] + weights[f"net.bias{k + 1}"])
    return x @ weights[f"net.weight{k + 2}"] + weights[f"net.bias{k + 2}"]


@pytest.mark.parametrize("convolutions", SHAPES)
@pytest.mark.parametrize("outputs", [2, 1])
def test_passes_are_those_of_torch(convolutions: str, outputs: int, double: None) -> None:  # noqa: F811
    """Forward, in NumPy as well, and backward, by hand and through autograd."""
    network, parameters, images = network_of(convolutions, outputs)
    layers, by_outputs = network.forward(parameters, images), normal(RUNS, BATCH, outputs, seed=3)
    parameters.backward((network(parameters, images) * by_outputs).sum())
    by_autograd = {name: grad.clone() for name, grad in parameters.grads.items()}
    network.backward(parameters, layers, by_outputs)
    acted = network.acting(parameters)(images.numpy())
    for run in range(RUNS):
        weights = {name: view[run].detach().requires_grad_() for name, view in parameters.views.items()}
        expected = literal(weights, convolutions, images[run])
        assert torch.allclose(layers[-1][run], expected, rtol=1e-10, atol=1e-12)
        assert torch.allclose(torch.from_numpy(acted[run]), expected, rtol=1e-10, atol=1e-12)
        assert torch.allclose(network(parameters, images)[run], expected, rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad((expected * by_outputs[run]).sum(), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            assert torch.allclose(parameters.grads[name][run], gradient, rtol=1e-9, atol=1e-11), name
            assert torch.allclose(by_autograd[name][run], gradient, rtol=1e-9, atol=1e-11), name


def test_tasks_without_images_are_refused() -> None:
    for shape in ((4,), (10, 2, 4)):
        with pytest.raises(ValueError, match="set convolutions to 'none'"):
            ImageNetwork("net", shape, "minatar", (6, 2))


# --------------------------------------------------------------------------------------------------------- the factors
def updated(network: MLP, parameters: Parameters, inputs: list[Tensor], by_outputs: list[Tensor]) -> kfac.KFAC:
    """K-FAC after an update with each of the batches."""
    optimizer = kfac.KFAC(network, parameters, torch.full((RUNS, 1), 0.01), 0.9, 0.9, 2)
    for x, delta in zip(inputs, by_outputs, strict=True):
        layers = network.forward(parameters, x)
        optimizer.observe(layers, delta)
        network.backward(parameters, layers, delta)
        optimizer.step(np.array([0.1, 0.02]), np.array([1e-2, np.inf]))
    return optimizer


def test_factors_are_sums_over_positions(double: None) -> None:  # noqa: F811
    """Omega = E[sum_t a_t a_t^T] and Gamma = E[mean_t g_t g_t^T], position by position: g_t from autograd by the sums
    there, a_t cut from the image."""
    network, parameters, images = network_of("minatar")
    delta = normal(RUNS, BATCH, 2, seed=3)
    weights = {name: view.detach().clone() for name, view in parameters.views.items()}
    optimizer = updated(network, parameters, [images], [delta])
    for run in range(RUNS):
        omega, gamma = torch.zeros(19, 19), torch.zeros(16, 16)
        for b in range(BATCH):
            patches = [images[run, b, i : i + 3, j : j + 3].flatten() for i in range(3) for j in range(2)]
            sums = torch.stack([p @ weights["net.weight0"][run] + weights["net.bias0"][run, 0] for p in patches])
            sums.requires_grad_()
            x = torch.relu(torch.relu(sums).flatten() @ weights["net.weight1"][run] + weights["net.bias1"][run, 0])
            outputs = x @ weights["net.weight2"][run] + weights["net.bias2"][run, 0]
            (slopes,) = torch.autograd.grad((outputs * delta[run, b]).sum(), sums)
            for patch, slope in zip(patches, slopes, strict=True):
                a = torch.cat((patch, torch.ones(1)))
                omega += torch.outer(a, a) / BATCH
                gamma += torch.outer(slope, slope) / (BATCH * 6)
        assert torch.allclose(optimizer.factors[0][0][run], omega, atol=1e-12)
        assert torch.allclose(optimizer.factors[0][1][run], gamma, atol=1e-12)


def test_one_position_is_a_linear_layer() -> None:
    """On images no larger than the kernel it is a perceptron's K-FAC, to the bit: averages, inverses, weights."""
    image, flat = ImageNetwork("net", (3, 3, 4), "minatar", (8, 2)), MLP("net", (36, 16, 8, 2), "relu")
    assert image.shapes() == flat.shapes() and image.positions == flat.positions
    inputs = [normal(RUNS, 32, 3, 3, 4, seed=k).float() for k in range(3)]
    by_outputs = [normal(RUNS, 32, 2, seed=10 + k).float() for k in range(3)]
    results = []
    for network in (image, flat):
        parameters = Parameters(RUNS, network.shapes())
        parameters.flat.copy_(normal(len(parameters.flat)).float() / 5)
        batches = inputs if network is image else [x.flatten(2) for x in inputs]
        results.append((parameters.flat, updated(network, parameters, batches, by_outputs)))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(
        results[0][1].factors + results[0][1].inverses, results[1][1].factors + results[1][1].inverses, strict=True
    ):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_block_is_the_exact_fisher_where_the_assumptions_hold(double: None) -> None:  # noqa: F811
    """I5 for a convolution: every image beside every map of derivatives, and these g times all signs of the positions,
    so that no two positions are correlated and all have one covariance. With one sign for all positions it is not."""
    network = ImageNetwork("net", (4, 4, 1), "minatar", (2,))
    images, slopes = normal(1, 3, 4, 4, 1), normal(5, 2, seed=2)
    patches = kfac.with_one(network.operands([images.flatten(2), images])[0]).view(3, 4, 10)  # [images, positions, ...]
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))  # [16, positions]
    for signs, exact in ((every, True), (torch.ones(1, 4), False)):
        maps = (signs[:, None, :, None] * slopes[None, :, None, :]).flatten(0, 1)  # [maps, positions, filters]
        scores = torch.einsum("xti,gto->xgio", patches, maps).flatten(0, 1).flatten(1)
        fisher = scores.T @ scores / len(scores)
        rows = patches.repeat_interleave(len(maps), 0).view(1, -1, 10), maps.repeat(3, 1, 1).view(1, -1, 2)
        omega = kfac.average_in(torch.zeros(1, 10, 10), rows[0], 0.0, 4)
        gamma = kfac.average_in(torch.zeros(1, 2, 2), rows[1], 0.0)
        assert torch.allclose(torch.kron(omega[0], gamma[0]), fisher, atol=1e-10) is exact


# --------------------------------------------------------------------------------------------------------------- ACKTR
SIZES: dict[str, Any] = {
    "convolutions": "minatar", "hidden_sizes": [16], "num_envs": 2, "num_steps": 8, "num_value_steps": 2,
    "fisher_subsample": 2, "inverse_period": 10,
}  # fmt: skip


def test_acktr_s_gradients_and_statistics_on_images() -> None:
    """The policy's gradient, and the factor of the convolution's derivatives from the scores of every second sample."""
    spaces = Spaces(observation_shape=(5, 4, 2), num_actions=3, action_shape=None)
    agent = build("acktr", spaces, [SIZES] * 2, [0, 1])
    rng = torch.Generator().manual_seed(0)
    images, advantages = torch.randn(2, 6, 5, 4, 2, generator=rng), torch.randn(2, 6, generator=rng)
    actions = torch.randint(3, (2, 6), generator=rng)
    agent._policy_gradient(images, actions, advantages)
    for run in range(2):
        weights = {
            name.replace("actor", "net"): torch.from_numpy(weight).double().requires_grad_()
            for name, weight in agent.parameters_of(run).items()
            if name.startswith("actor")
        }
        log_probs = torch.log_softmax(literal(weights, "minatar", images[run].double()), -1)[range(6), actions[run]]
        loss = -(log_probs * advantages[run]).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        for name, gradient in zip(weights, gradients, strict=True):
            ours = agent.parameters.grads[name.replace("net", "actor")][run].double()
            assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-6), name
        by_hidden = [torch.autograd.grad(log_probs[b], weights["net.bias1"], retain_graph=True)[0] for b in (0, 2, 4)]
        expected = sum(g.T @ g for g in by_hidden) / 3
        assert torch.allclose(agent.optimizer.factors[1][1][run].double(), expected, rtol=1e-4, atol=1e-7)


def test_runs_on_images_are_alone_and_go_on_where_they_were() -> None:
    """MinAtar: a run among three is what it is alone, and after a pause, bit for bit."""
    runs = [SIZES | {"learning_rate": rate} for rate in (0.03, 0.1, 0.3)]
    task, seeds = "MinAtar-Breakout-v1", [4, 5, 6]
    company = make("acktr", task, runs, seeds)
    metrics = advance(company, 32)
    state, envs = company.state(), company.envs.state()
    metrics += advance(company, 32)
    results = outcome(company, metrics)
    alone = make("acktr", task, runs[1:2], seeds[1:2])
    assert_same(outcome(alone, advance(alone, 64))[0], results[1])
    again = make("acktr", task, runs, [7, 8, 9])
    again.load_state(state)
    again.envs.load_state(envs)
    advance(again, 32)
    for run in range(3):
        assert_same(again.parameters_of(run), company.parameters_of(run))
