"""The LSTM against torch's, against the equations through autograd in float64, and against itself: sequences cut by
resets, steps one by one, runs alone and in company. Then A2C and PPO with it: whole iterations against second
implementations by autograd, one against the other, and a task that nothing without a memory can learn."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, PROBE_OF, assert_same, make, settings
from probes import Recall
from test_policy_gradient import assert_near, follow, leaves, recorded, unit_after
from test_ppo import distribution, literal_loss
from test_properties import assert_same_state
from torch import Tensor, nn

import algorithms
from algorithms.common.config import load_config, stack
from algorithms.common.layers import Parameters, orthogonal
from algorithms.common.recurrent import LSTM, Unrolled, blank_where
from algorithms.common.recurrent_policy import Sequences
from algorithms.common.returns import gae
from algorithms.common.rollouts import Rollout
from bench import drive

inf = math.inf

RUNS, STEPS, ENVS, INPUTS, CELLS = 3, 7, 4, 5, 6
ORDER = (1, 2, 3, 0)  # torch has the gates i, f, g, o


def build(runs: int = RUNS, inputs: int = INPUTS, size: int = CELLS) -> tuple[LSTM, Parameters]:
    """An LSTM with weights, biases included, that differ from run to run."""
    lstm = LSTM("lstm", inputs, size)
    parameters = Parameters(runs, lstm.shapes())
    for name, shape in parameters.shapes.items():
        parameters.fill(name, np.random.default_rng(len(name)).standard_normal((runs, *shape)) / 2)
    return lstm, parameters


def sequences(runs: int = RUNS, inputs: int = INPUTS, size: int = CELLS, steps: int = STEPS) -> tuple[Tensor, ...]:
    """Inputs [R, T*N, I], a carry [R, N, 2H], starts [R, T, N] and a gradient by the outputs [R, T*N, H]."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(runs, steps * ENVS, inputs, generator=rng)
    carry = torch.randn(runs, ENVS, 2 * size, generator=rng) / 2
    starts = torch.rand(runs, steps, ENVS, generator=rng) < 0.3
    return x, carry, starts, torch.randn(runs, steps * ENVS, size, generator=rng)


def literal(weights: list[Tensor], x: Tensor, carry: Tensor, starts: Tensor) -> Tensor:
    """The equations as written, for one run: x [T, N, I], carry [N, 2H], starts [T, N] -> h and c [T, N, 2H]."""
    w, u, b = weights
    h, c = carry.chunk(2, -1)
    carries = []
    for inputs, first in zip(x, starts, strict=True):
        h, c = (torch.where(first[:, None], 0.0, memory) for memory in (h, c))
        o, i, f, g = (inputs @ w + h @ u + b).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        carries.append(torch.cat((h, c), -1))
    return torch.stack(carries)


def test_backward_through_time_against_autograd() -> None:
    """Float64, resets included: gradients of every weight and of the inputs, in every run."""
    lstm, parameters = build()
    x, carry, starts, by_outputs = sequences()
    unrolled = lstm.forward(parameters, x, carry, starts)
    by_inputs = lstm.backward(parameters, unrolled, by_outputs)
    for run in range(RUNS):
        weights = [parameters[name][run].detach().double().requires_grad_() for name in parameters.shapes]
        inputs = x[run].double().view(STEPS, ENVS, -1).requires_grad_()
        outputs = literal(weights, inputs, carry[run].double(), starts[run]).flatten(0, 1)[:, :CELLS]
        assert torch.allclose(unrolled.outputs[run].double(), outputs, atol=1e-6)
        found = [parameters.grads[name][run] for name in parameters.shapes] + [by_inputs[run].view(STEPS, ENVS, -1)]
        loss = (outputs * by_outputs[run].double()).sum()
        for ours, theirs in zip(found, torch.autograd.grad(loss, [*weights, inputs]), strict=True):
            assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=3e-6)


def test_one_run_is_torch_s_lstm() -> None:
    """Without resets inside: outputs, the last carry, and gradients."""
    lstm, parameters = build(1)
    x, carry, starts, by_outputs = sequences(1)
    model = nn.LSTM(INPUTS, CELLS)
    for name, theirs in (("inputs", model.weight_ih_l0), ("hidden", model.weight_hh_l0), ("bias", model.bias_ih_l0)):
        ours = parameters[f"lstm.{name}"][0].detach().chunk(4, 1)
        theirs.data = torch.cat([ours[gate] for gate in ORDER], 1).T.reshape(theirs.shape).clone()
    model.bias_hh_l0.data.zero_()
    h, c = carry[0].chunk(2, -1)
    outputs, (last_h, last_c) = model(x[0].view(STEPS, ENVS, -1), (h[None].contiguous(), c[None].contiguous()))
    unrolled = lstm.forward(parameters, x, carry, torch.zeros_like(starts))
    assert torch.allclose(unrolled.outputs[0], outputs.flatten(0, 1), atol=1e-6)
    assert torch.allclose(unrolled.carries[0, -1], torch.cat((last_h, last_c), -1)[0], atol=1e-6)
    lstm.backward(parameters, unrolled, by_outputs)
    outputs.flatten(0, 1).backward(by_outputs[0])
    for name, theirs in (("inputs", model.weight_ih_l0), ("hidden", model.weight_hh_l0), ("bias", model.bias_ih_l0)):
        ours = torch.cat([parameters.grads[f"lstm.{name}"][0].chunk(4, 1)[gate] for gate in ORDER], 1)
        assert torch.allclose(ours.T.reshape(theirs.shape), theirs.grad, rtol=1e-4, atol=1e-5)


def cut(x: Tensor, first: int, last: int) -> Tensor:
    """Some steps of [R, T*N, ...]."""
    return x.unflatten(1, (STEPS, ENVS))[:, first:last].flatten(1, 2)


def test_a_reset_cuts_a_sequence_in_two() -> None:
    """With a reset of all environments at step 3: what comes after equals a sequence that begins there, what comes
    before does not hear of it, and the gradients are the sums of the two's."""
    lstm, parameters = build()
    x, carry, starts, by_outputs = sequences()
    starts[:] = False
    starts[:, 3] = True
    whole = lstm.forward(parameters, x, carry, starts)
    by_inputs = lstm.backward(parameters, whole, by_outputs)
    gradient = parameters.grad.clone()
    blank = torch.zeros_like(carry)
    parts, sums = [(0, 3, carry), (3, STEPS, blank)], torch.zeros_like(gradient)
    for first, last, before in parts:
        none = torch.zeros(RUNS, last - first, ENVS, dtype=torch.bool)
        part = lstm.forward(parameters, cut(x, first, last), before, none)
        assert torch.allclose(part.outputs, cut(whole.outputs, first, last), atol=1e-6)
        alone = lstm.backward(parameters, part, cut(by_outputs, first, last))
        assert torch.allclose(alone, cut(by_inputs, first, last), atol=1e-5)
        sums += parameters.grad
    assert torch.allclose(sums, gradient, rtol=1e-5, atol=1e-5)


def test_a_reset_is_its_environment_s_own() -> None:
    lstm, parameters = build()
    x, carry, starts, _ = sequences()
    starts[:] = False
    plain = lstm.forward(parameters, x, carry, starts).carries
    starts[1, 4, 2] = True
    changed = (lstm.forward(parameters, x, carry, starts).carries != plain).any(-1)
    expected = torch.zeros_like(starts)
    expected[1, 4:, 2] = True
    assert torch.equal(changed, expected)


def test_acting_takes_the_same_steps() -> None:
    lstm, parameters = build()
    x, carry, starts, _ = sequences()
    unrolled, step, now = lstm.forward(parameters, x, carry, starts), lstm.acting(parameters), carry.numpy()
    before = now.copy()
    for t in range(STEPS):
        now = step(cut(x, t, t + 1).numpy(), blank_where(starts[:, t].numpy(), now))
        assert np.allclose(now, unrolled.carries[:, t].numpy(), atol=1e-6)
    assert np.array_equal(carry.numpy(), before)


@pytest.mark.parametrize(("inputs", "size", "steps"), [(64, 128, 3), (5, 6, 4), (32, 16, 5), (17, 33, 3)])
def test_a_run_does_not_hear_of_the_others(inputs: int, size: int, steps: int) -> None:
    """The bits of R = 9 in groups of 1, 2 and 5, forwards, backwards and acting; with one environment as well."""
    for envs in (ENVS, 1):
        lstm, parameters = build(9, inputs, size)
        x, carry, starts, by_outputs = sequences(9, inputs, size, steps)
        samples = slice(0, steps * envs)
        x, by_outputs, carry, starts = x[:, samples], by_outputs[:, samples], carry[:, :envs], starts[:, :, :envs]
        company = everything(lstm, parameters, x, carry, starts, by_outputs)
        for group in ([0], [8], [3, 6], [7, 1, 4, 2, 5]):
            some = Parameters(len(group), lstm.shapes())
            for name in some.shapes:
                some.fill(name, parameters[name].detach().numpy()[group])
            part = everything(lstm, some, x[group], carry[group], starts[group], by_outputs[group])
            for one, other in zip(part, company, strict=True):
                assert torch.equal(one, other[group]), (group, envs)


def everything(
    lstm: LSTM, parameters: Parameters, x: Tensor, carry: Tensor, starts: Tensor, by_outputs: Tensor
) -> list[Tensor]:
    """All that an LSTM computes of these sequences."""
    x, carry, by_outputs = x.contiguous(), carry.contiguous(), by_outputs.contiguous()
    unrolled: Unrolled = lstm.forward(parameters, x, carry, starts)
    by_inputs = lstm.backward(parameters, unrolled, by_outputs)
    acted = lstm.acting(parameters)(np.ascontiguousarray(x[:, : carry.shape[1]].numpy()), carry.numpy())
    gradients = [gradient.clone() for gradient in parameters.grads.values()]
    return [unrolled.outputs, unrolled.carries, by_inputs, torch.from_numpy(acted), *gradients]


def test_initial_weights_are_each_run_s_own() -> None:
    """Both matrices orthogonal as wholes, biases zero."""
    lstm = LSTM("lstm", INPUTS, CELLS)
    parameters = Parameters(2, lstm.shapes())
    lstm.initialize(parameters, [np.random.default_rng(seed) for seed in (1, 2)], orthogonal(1.0))
    for name in ("lstm.inputs", "lstm.hidden"):
        weights = parameters[name].detach()
        assert torch.allclose(
            weights @ weights.transpose(1, 2), torch.eye(weights.shape[1]).expand(2, -1, -1), atol=1e-5
        )
        assert not torch.equal(*weights)
    assert not parameters["lstm.bias"].any()


# ------------------------------------------------------------------------------------------------------ A2C and PPO
SIZES: dict[str, Any] = {"hidden_sizes": [16, 16], "lstm_size": 8, "num_envs": 4, "num_steps": 6}
SETTINGS: list[dict[str, Any]] = [
    {"ent_coef": 0.0, "vf_coef": 0.5, "gae_lambda": 0.95, "learning_rate": 3e-3, "max_grad_norm": inf},
    {"ent_coef": 0.1, "vf_coef": 1.0, "gae_lambda": 1.0, "learning_rate": 1e-3, "max_grad_norm": 0.1, "gamma": 0.9},
    {"ent_coef": 0.01, "vf_coef": 0.3, "gae_lambda": 0.5, "learning_rate": 1e-3, "max_grad_norm": 0.5}
    | {"time_limit_bootstrap": 0.0, "anneal_steps": 60.0},
]
Weights = dict[str, Tensor]


def networks(weights: Weights, x: Tensor, carry: Tensor, starts: Tensor) -> tuple[Any, Tensor, Tensor]:
    """One run's policy, values [T, N] and carries [T, N, 4H], from observations [T, N, O], by autograd's rules."""
    carries, outputs = [], []
    for name, half in zip(("actor", "critic"), carry.chunk(2, -1), strict=True):
        features = x
        for k in range(2):
            weight, bias = (weights[f"{name}.encoder.{kind}{k}"] for kind in ("weight", "bias"))
            features = torch.tanh(features @ weight + bias)
        lstm = [weights[f"{name}.lstm.{kind}"] for kind in ("inputs", "hidden", "bias")]
        carries.append(literal(lstm, features, half, starts))
        seen = carries[-1].chunk(2, -1)[0]
        outputs.append(seen @ weights[f"{name}.weight0"] + weights[f"{name}.bias0"])
    policy = distribution(outputs[0], weights.get("log_std"))
    return policy, outputs[1].squeeze(-1), torch.cat(carries, -1)


@torch.no_grad()
def targets(
    weights: Weights,
    setting: dict[str, Any],
    rollout: list[np.ndarray],
    carry: Tensor,
    starts: Tensor,
    unit: float = 1.0,
) -> tuple[Any, Tensor, Tensor]:
    """The policy, values and advantages [T, N] before an update; successor by successor with the memory of its step."""
    observations, _, rewards, successors, terminations, truncations = rollout
    old, values, carries = networks(weights, torch.from_numpy(observations), carry, starts)
    values = values * unit
    none = torch.zeros(1, len(carry), dtype=torch.bool)
    following = [
        networks(weights, torch.from_numpy(x[None]), before, none)[1][0] * unit
        for x, before in zip(successors, carries, strict=True)
    ]
    ends = terminations | truncations
    stop = ends if setting.get("time_limit_bootstrap") == 0.0 else terminations
    entries = [rewards, values.numpy(), torch.stack(following).numpy(), stop, ends]
    discounts = np.array([setting.get("gamma", 0.99)]), np.array([setting["gae_lambda"]])
    return old, values, torch.from_numpy(gae(*(entry[:, None] for entry in entries), *discounts)[:, 0])


def watched(algorithm: str, task: str, **more: Any) -> tuple[Any, list[tuple[Rollout, Sequences]], list[np.ndarray]]:
    """An agent, what it collects, with more ends than such short rollouts have, and the orders of its minibatches."""
    agent = make(algorithm, task, [setting | SIZES | more for setting in SETTINGS], [1, 2, 3])
    recorded(agent, [], 0.15)
    seen: list[tuple[Rollout, Sequences]] = []
    orders: list[np.ndarray] = []
    collect, permute = agent._collect_sequences, agent.streams.permutation
    agent._collect_sequences = lambda: seen.append(collect()) or seen[-1]  # type: ignore[func-returns-value]
    agent.streams.permutation = lambda *args: orders.append(permute(*args)) or orders[-1]  # type: ignore
    return agent, seen, orders


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a2c_lstm_iterations_against_a_second_implementation(task: str, scaled: bool) -> None:
    """From the same weights, rollouts and memories, three iterations end with the same weights."""
    agent, seen, _ = watched("a2c_lstm", task, epsilon_inside_root=False, scale_returns=scaled)
    earlier: list[list[Tensor]] = [[], [], []]
    models = [leaves(agent.parameters_of(run)) for run in range(3)]
    optimizers = [torch.optim.RMSprop(list(model.values()), eps=1e-5) for model in models]
    for iteration in range(3):
        agent.iterate()
        rollout, sequences = seen[-1]
        for run, (model, setting) in enumerate(zip(models, SETTINGS, strict=True)):
            entries = [entry[:, run] for entry in rollout]
            begin = sequences.carry[run], sequences.starts[run]
            unit = unit_after(earlier[run]) if scaled else 1.0
            _, old_values, advantages = targets(model, setting, entries, *begin, unit)
            returns = advantages + old_values
            earlier[run].append(returns.flatten())
            policy, values, _ = networks(model, torch.from_numpy(entries[0]), *begin)
            loss = -policy.log_prob(torch.from_numpy(entries[1])) * advantages - setting["ent_coef"] * policy.entropy()
            loss = loss + setting["vf_coef"] * (returns / unit - values) ** 2 / 2
            rate = setting["learning_rate"] * (1 - iteration * 24 / setting.get("anneal_steps", inf))
            follow(list(model.values()), loss.mean(), optimizers[run], setting["max_grad_norm"], rate)
            assert_near(agent, run, model)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_ppo_lstm_iterations_against_a_second_implementation(task: str) -> None:
    """The same with three passes in minibatches of two environments, clipped in every way."""
    details = {"normalize_advantages": 1.0, "value_clip": 0.2, "clip_coef": 0.1, "kl_coef": 0.5}
    agent, seen, orders = watched("ppo_lstm", task, num_epochs=3, batch_size=12, **details)
    models = [leaves(agent.parameters_of(run)) for run in range(3)]
    optimizers = [torch.optim.Adam(list(model.values())) for model in models]
    for iteration in range(2):
        agent.iterate()
        rollout, sequences = seen[-1]
        for run, (model, setting) in enumerate(zip(models, SETTINGS, strict=True)):
            entries = [entry[:, run] for entry in rollout]
            carry, starts = sequences.carry[run], sequences.starts[run]
            old, old_values, advantages = targets(model, setting, entries, carry, starts)
            observations, actions = torch.from_numpy(entries[0]), torch.from_numpy(entries[1])
            old_log_probs = old.log_prob(actions)
            before = {name: weight.detach().clone() for name, weight in model.items()}
            rate = setting["learning_rate"] * (1 - iteration * 24 / setting.get("anneal_steps", inf))
            for order in orders[3 * iteration : 3 * iteration + 3]:
                for some in (order[run][:2], order[run][2:]):
                    part = observations[:, some], carry[some], starts[:, some]
                    policy, values, _ = networks(model, *part)
                    with torch.no_grad():
                        was = networks(before, *part)[0]
                    scaled = advantages[:, some]
                    scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
                    returns = (advantages + old_values)[:, some]
                    terms = actions[:, some], scaled, values, old_values[:, some], returns, old_log_probs[:, some]
                    loss = literal_loss(setting | details, policy, was, *terms)
                    follow(list(model.values()), loss, optimizers[run], setting["max_grad_norm"], rate)
            assert_near(agent, run, model, 5e-5)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_a2c_lstm_is_ppo_lstm_with_one_epoch_of_one_minibatch(task: str) -> None:
    """Bit for bit after ten updates, as without memory; PPO's order of the environments is the identity here."""
    common = SIZES | {"normalize_observations": True, "scale_rewards": True}
    runs = [setting | common for setting in SETTINGS]
    a2c = make("a2c_lstm", task, [run | {"optimizer": "adam", "optimizer_epsilon": 1e-8} for run in runs], [4, 5, 6])
    ppo = make("ppo_lstm", task, [run | {"num_epochs": 1, "batch_size": 24} for run in runs], [4, 5, 6])
    ppo.streams.permutation = lambda _, size: np.tile(np.arange(size), (3, 1))
    start = a2c.parameters_of(0)
    for _ in range(10):
        a2c.iterate(), ppo.iterate()
    for run in range(3):
        assert_same(a2c.parameters_of(run), ppo.parameters_of(run), f"run {run}")
    assert all(not np.array_equal(start[name], weights) for name, weights in a2c.parameters_of(0).items())


def test_learning_sees_the_memories_that_acted() -> None:
    """Over rollouts in which many episodes end: resets lie where the environments' were, and the memory unrolled from
    the carry before a rollout ends with that which acting went on with."""
    agent = make("a2c_lstm", "CartPole-v1", [SIZES | {"num_steps": 40, "learning_rate": 1e-12}] * 2, [1, 2])
    ends, total = np.ones((2, 4), bool), 0  # at the start every episode begins
    for _ in range(4):
        rollout, sequences = agent._collect_sequences()
        over = np.concatenate((ends[None], rollout.terminations | rollout.truncations))
        assert np.array_equal(sequences.starts.numpy(), over[:-1].swapaxes(0, 1))
        assert np.allclose(agent._forward(sequences).carry.numpy(), agent.carry, atol=1e-5)
        ends, total = over[-1], total + over[:-1].sum()
    assert total > 20


def chances(algorithm: str, discrete: bool, env_steps: int) -> np.ndarray:
    """Mean returns [R] of 64 greedy episodes of `Recall` after training; asking for them changes nothing."""
    wanted = settings(algorithm, PROBE | PROBE_OF.get(algorithm, {}), gamma=0.9)
    cfg, seeds = stack([load_config(algorithm, None, wanted)] * 3), [3, 4, 5]
    agent = algorithms.load(algorithm).Agent(cfg, Recall(3, cfg.num_envs, discrete), seeds)
    while agent.envs.env_steps < env_steps:
        agent.iterate()
    before = copy.deepcopy(agent.state())
    found = drive.evaluate(agent, Recall(3, 64, discrete), seeds, 1).returns
    assert_same_state(agent.state(), before)
    return found.mean(1)


@pytest.mark.parametrize(("algorithm", "env_steps"), [("a2c_lstm", 5000), ("ppo_lstm", 2000)])
def test_a_memory_recalls(algorithm: str, env_steps: int) -> None:
    assert (chances(algorithm, True, env_steps) == 1).all()
    assert (chances(algorithm, False, env_steps) > -0.05).all()


def test_no_memory_does_not() -> None:
    """A2C stays at chance: 0 within three deviations of 64 episodes; -0.25 for a number."""
    assert (np.abs(chances("a2c", True, 5000)) < 3 / 8).all()
    assert (chances("a2c", False, 5000) < -0.24).all()


@pytest.mark.parametrize(
    ("algorithm", "values", "named"),
    [
        ("ppo_lstm", {"batch_size": 64}, "whole sequences"),
        ("ppo_lstm", {"batch_size": 384}, "divide"),
        ("a2c_lstm", {"lstm_size": 0}, "lstm_size"),
        ("a2c_lstm", {"hidden_sizes": []}, "hidden_sizes"),
        ("ppo_lstm", {"hidden_sizes": []}, "hidden_sizes"),
    ],
)
def test_impossible_settings_are_refused(algorithm: str, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config(algorithm, None, values)
