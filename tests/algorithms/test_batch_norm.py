"""Batch normalization: forward and backward passes against torch's own under autograd in float64, averages against a
loop, and DDPG with it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, advance, make, settings, small
from probes import Discounting
from test_off_policy import Weights, assert_gradient, random_batch, weights64
from torch import Tensor

from algorithms import ddpg
from algorithms.common.batch_norm import DECAY, EPSILON, NormalizedMLP, evaluation
from algorithms.common.config import load_config, stack
from algorithms.common.layers import Parameters, fan_in_uniform

RUNS, BATCH, SIZES = 3, 9, (5, 8, 7, 2)
CASES = [pytest.param(5, True, id="all"), pytest.param(3, False, id="some inputs alone"), pytest.param(4, True, id="4")]


def network_of(columns: int, hidden: bool) -> tuple[NormalizedMLP, Parameters, Tensor]:
    """With scales and shifts that are not what they start from, and inputs whose moments are not 0 and 1."""
    network = NormalizedMLP("net", SIZES, RUNS, columns, hidden)
    parameters, rng = Parameters(RUNS, network.shapes()), np.random.default_rng(0)
    rngs = [np.random.default_rng(run) for run in range(RUNS)]
    network.initialize(parameters, rngs, fan_in_uniform, fan_in_uniform, fan_in_uniform)
    for name, view in parameters.views.items():
        if "scale" in name or "shift" in name:
            view.detach().add_(torch.from_numpy(rng.standard_normal(view.shape, np.float32)))
    return network, parameters, torch.from_numpy(3 * rng.standard_normal((RUNS, BATCH, SIZES[0]), np.float32) + 2)


def normalized64(weights: Weights, x: Tensor, columns: int, hidden: bool, name: str, averages: Any = None) -> Tensor:
    """One run's outputs by `torch.nn.functional.batch_norm`."""
    depth = sum("weight" in key for key in weights)
    for k in range(depth):
        width = columns if k == 0 else x.shape[1]
        if k == 0 or hidden:
            own = (weights[f"{name}.{kind}{k}"][0] for kind in ("scale", "shift"))
            given = averages and [averages[f"{name}.{kind}{k}"][0].detach() for kind in ("mean", "variance")]
            mean, variance = given or (None, None)
            scaled = torch.nn.functional.batch_norm(
                x[:, :width], mean, variance, *own, training=given is None, eps=EPSILON
            )
            x = torch.cat((scaled, x[:, width:]), 1)
        x = (x.relu() if k > 0 else x) @ weights[f"{name}.weight{k}"] + weights[f"{name}.bias{k}"][0]
    return x


@pytest.mark.parametrize(("columns", "hidden"), CASES)
def test_both_passes_are_torchs(columns: int, hidden: bool) -> None:
    network, parameters, inputs = network_of(columns, hidden)
    by_outputs = torch.randn(RUNS, BATCH, SIZES[-1], generator=torch.Generator().manual_seed(1))
    layers = network.forward(parameters, inputs)
    network.backward(parameters, layers, by_outputs)
    by_inputs = network.to_inputs(parameters, layers, by_outputs)
    for run in range(RUNS):
        weights, x = weights64(parameters, run), inputs[run].double().requires_grad_()
        outputs = normalized64(weights, x, columns, hidden, "net")
        assert torch.allclose(layers[-1][run].double(), outputs, rtol=1e-4, atol=1e-5)
        loss = (outputs * by_outputs[run]).sum()
        (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert torch.allclose(by_inputs[run].double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        without = [weights[key] for key in weights if vanishes(key, hidden)]
        assert len(without) == (3 if hidden else 0)
        for by_weight in torch.autograd.grad(loss, without, retain_graph=True) if without else ():
            assert by_weight.abs().max().item() < 1e-12
        assert all(parameters.grads[key][run].abs().max() == 0 for key in weights if vanishes(key, hidden))
        effective = {key: weight for key, weight in weights.items() if not vanishes(key, hidden)}
        assert_gradient(parameters, run, loss, effective)


def vanishes(key: str, hidden: bool) -> bool:
    """What is added before normalizing has no effect; its gradient is 0, not the rounding errors of one."""
    return hidden and key.split(".")[1] in ("bias0", "bias1", "shift0")


@pytest.mark.parametrize(("columns", "hidden"), CASES)
def test_averages_and_what_is_computed_by_them(columns: int, hidden: bool) -> None:
    network, parameters, inputs = network_of(columns, hidden)
    expected = {key: view.detach().clone().double() for key, view in network.averages.views.items()}
    for n in range(4):
        active = np.array([True, n > 1, False])
        layers = network.forward(parameters, inputs * (n + 1))
        network.remember(layers, active)
        for k, run in itertools.product(range(len(network.widths)), active.nonzero()[0].tolist()):
            for kind in ("mean", "variance"):
                own, new = expected[f"net.{kind}{k}"][run], getattr(layers[k][1], kind)[run]
                own.copy_(DECAY * own + (1 - DECAY) * new)
    for key, view in network.averages.views.items():
        assert torch.allclose(view.double(), expected[key], rtol=1e-5)
        assert view[2].unique().tolist() == [1.0 if "variance" in key else 0.0]  # a run that is not active
    acted = network.acting(parameters)(inputs.numpy())
    with evaluation([network]):
        assert np.array_equal(network.forward(parameters, inputs)[-1].numpy(), acted)
        assert np.allclose(network.forward(parameters, inputs[:, :2])[-1].numpy(), acted[:, :2], atol=1e-5)
    assert not network.evaluating
    for run in range(RUNS):
        averages = {key: view[run].detach().double() for key, view in network.averages.views.items()}
        outputs = normalized64(weights64(parameters, run), inputs[run].double(), columns, hidden, "net", averages)
        assert np.allclose(acted[run], outputs.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_ddpg_with_batch_norm(name: str) -> None:
    """Gradients by the batch's moments, targets by the averages; of the critic the state alone is normalized."""
    sizes = {"hidden_sizes": (10, 7), "batch_size": 12, "batch_norm": True, "weight_decay": 0.0}
    extra = {"smoothing_std": 0.0} if name == "td3" else {}
    agent = make(name, "Hopper-v5", [small(name, **sizes, **extra)] * RUNS, range(RUNS))
    rng = np.random.default_rng(5)
    for parameters in (agent.parameters, agent.critics.target, agent.critics.parameters, agent.target_parameters):
        parameters.flat.add_(torch.from_numpy(0.3 * rng.standard_normal(parameters.flat.shape, np.float32)))
    batch, count = random_batch(agent), agent.critics.num_critics
    noise = [torch.zeros_like(batch.actions)] if name == "td3" else []

    def mu(weights: Weights, states: Tensor, averages: Any = None) -> Tensor:
        return normalized64(weights, states, 11, True, "actor", averages).tanh()

    def q(weights: Weights, states: Tensor, actions: Tensor, averages: Any = None) -> Tensor:
        return normalized64(weights, torch.cat((states, actions), 1), 11, False, "critic", averages)[:, 0]

    averages = agent.actor_averages, agent.critic_averages
    for one in averages:
        one.flat.add_(torch.from_numpy(rng.random(one.flat.shape, np.float32)))
    with evaluation(agent.normalized):
        found = agent._targets(batch, *noise)
    for run in range(RUNS):
        states, rows = batch.next_observations[run].double(), range(run * count, (run + 1) * count)
        actions = mu(weights64(agent.target_parameters, run), states, weights64(averages[0], run))
        targets = [(weights64(agent.critics.target, row), weights64(averages[1], row)) for row in rows]
        worth = [q(weights, states, actions, of_row) for weights, of_row in targets]
        expected = batch.rewards[run] + batch.discounts[run] * torch.stack(worth).amin(0)
        assert torch.allclose(found[run].double(), expected, rtol=1e-3, atol=1e-4)

    critics = [weights64(agent.critics.parameters, row) for row in range(RUNS * count)]
    before = averages[1]["critic.mean0"].detach().clone()
    agent._update_critics(batch, found)
    for row, critic in enumerate(critics):
        run = row // count
        estimates = q(critic, batch.observations[run].double(), batch.actions[run].double())
        assert_gradient(agent.critics.parameters, row, (found[run].double() - estimates).square().mean(), critic)
    seen = batch.observations.mean(1, keepdim=True).repeat_interleave(count, 0)
    assert torch.allclose(averages[1]["critic.mean0"], DECAY * before + (1 - DECAY) * seen, atol=1e-5)

    actors = [weights64(agent.parameters, run) for run in range(RUNS)]
    agent._update_actor(batch)
    for run, actor in enumerate(actors):
        states = batch.observations[run].double()
        loss = -q(weights64(agent.critics.parameters, run * count), states, mu(actor, states)).mean()
        effective = {key: weight for key, weight in actor.items() if not vanishes(key, True)}
        assert_gradient(agent.parameters, run, loss, effective)


def test_states_and_their_successors_are_told_apart() -> None:
    """Rewards 0 and 1, observed as 0 and 1. By the moments of the successors 1 would look as 0 does among the states,
    and its value could not reach that of 0."""
    wanted = settings("ddpg", PROBE, gamma=0.5, batch_norm=True)
    envs, questions = Discounting(2, 8, False), np.array([[[0.0], [1.0]]] * 2, np.float32)
    agent = ddpg.Agent(stack([load_config("ddpg", None, wanted)] * 2), envs, [3, 4])
    while agent.env_steps < 2000:
        agent.iterate()
    assert np.abs(agent.values(questions) - [0.5, 1.0]).max() < 0.15


def test_acting_and_values_use_the_averages() -> None:
    """One observation at a time gives what all of them give, which a batch's moments would not."""
    agent = make("ddpg", "Pendulum-v1", [small("ddpg", batch_norm=True)] * 2, [0, 1])
    advance(agent, 200)
    observations = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    actions, values = agent.act(observations), agent.values(observations)
    for n in range(6):
        assert np.allclose(agent.act(observations[:, n : n + 1])[:, 0], actions[:, n], atol=1e-5)
        assert np.allclose(agent.values(observations[:, n : n + 1])[:, 0], values[:, n], atol=1e-4)
    assert {"averages0.actor.mean1", "averages0.critic.variance0"} <= set(agent.parameters_of(0))
    assert "averages0.critic.variance1" not in agent.parameters_of(0)
