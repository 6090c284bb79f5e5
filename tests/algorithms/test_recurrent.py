"""The LSTM against torch's, against the equations through autograd in float64, and against itself: sequences cut by
resets, steps one by one, runs alone and in company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.common.layers import Parameters, orthogonal
from algorithms.common.recurrent import LSTM, Unrolled, blank_where

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
    """The equations as written, for one run: x [T, N, I], carry [N, 2H], starts [T, N] -> outputs [T, N, H]."""
    w, u, b = weights
    h, c = carry.chunk(2, -1)
    outputs = []
    for inputs, first in zip(x, starts, strict=True):
        h, c = (torch.where(first[:, None], 0.0, memory) for memory in (h, c))
        o, i, f, g = (inputs @ w + h @ u + b).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def test_backward_through_time_against_autograd() -> None:
    """Float64, resets included: gradients of every weight and of the inputs, in every run."""
    lstm, parameters = build()
    x, carry, starts, by_outputs = sequences()
    unrolled = lstm.forward(parameters, x, carry, starts)
    by_inputs = lstm.backward(parameters, unrolled, by_outputs)
    for run in range(RUNS):
        leaves = [parameters[name][run].detach().double().requires_grad_() for name in parameters.shapes]
        inputs = x[run].double().view(STEPS, ENVS, -1).requires_grad_()
        outputs = literal(leaves, inputs, carry[run].double(), starts[run]).flatten(0, 1)
        assert torch.allclose(unrolled.outputs[run].double(), outputs, atol=1e-6)
        found = [parameters.grads[name][run] for name in parameters.shapes] + [by_inputs[run].view(STEPS, ENVS, -1)]
        loss = (outputs * by_outputs[run].double()).sum()
        for ours, theirs in zip(found, torch.autograd.grad(loss, [*leaves, inputs]), strict=True):
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
    blank = torch.from_numpy(lstm.blank(RUNS, ENVS))
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
