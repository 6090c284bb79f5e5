"""Value networks on columns against the same networks written with torch's functions, in float64 and under autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from algorithms.common.columns import Noise, NoisyLinear, Part, QNetwork
from algorithms.common.layers import Parameters
from algorithms.common.streams import Streams

RUNS, BATCH, ACTIONS = 5, 7, 3
IMAGES = {"minatar": (10, 9, 4), "nature": (36, 44, 2)}
NETWORKS: list[Any] = [
    pytest.param(sizes | structure, id=f"{' '.join(map(str, sizes.values()))} {name}")
    for sizes in (
        *({"observation_shape": (4,), "hidden_sizes": hidden} for hidden in ((32, 24), (17, 20, 18), (6,))),
        *({"observation_shape": IMAGES[name], "hidden_sizes": (16,), "convolutions": name} for name in IMAGES),
    )
    for name, structure in {
        "plain": {},
        "atoms": {"num_atoms": 6},
        "dueling": {"dueling": True},
        "noisy": {"noisy": True},
        "all": {"num_atoms": 6, "dueling": True, "noisy": True},
    }.items()
]


def made(structure: dict[str, Any]) -> tuple[QNetwork, Parameters, Noise | None]:
    net = QNetwork(num_actions=ACTIONS, **structure)
    parameters = Parameters(RUNS, net.shapes())
    net.initialize(parameters, Streams(range(RUNS))["q"])
    return net, parameters, next(net.noise(Streams(range(RUNS)), "noise", 1))


def literal(net: QNetwork, weights: dict[str, Tensor], noise: Noise | None, run: int, x: Tensor, shape: Any) -> Tensor:
    """One run's outputs [B, A, Z] for observations [B, O]."""

    def linear(layer: Any, x: Tensor) -> Tensor:
        weight, bias = weights[layer.weight], weights[layer.bias][0]
        if isinstance(layer, NoisyLinear) and noise is not None:
            eps_in, eps_out = (torch.from_numpy(eps[run]).double() for eps in noise[layer.weight])
            weight = weight + weights[f"{layer.weight}.sigma"] * torch.outer(eps_in[:, 0], eps_out[0])
            bias = bias + weights[f"{layer.bias}.sigma"][0] * eps_out[0]
        return x @ weight + bias

    convolutions = [layer for layer in net.body.layers if hasattr(layer, "kernel")]
    if convolutions:
        x = x.view(-1, *shape).permute(0, 3, 1, 2)
        for layer in convolutions:
            k, channels = layer.kernel, x.shape[1]
            kernels = weights[layer.weight].view(k, k, channels, -1).permute(3, 2, 0, 1)
            x = conv2d(x, kernels, weights[layer.bias][0], stride=layer.stride).relu()
        x = x.flatten(1)
    for layer in net.body.layers[len(convolutions) :]:
        x = linear(layer, x).relu()
    outputs = []
    for head in net.heads:
        y = x
        for layer in head.layers[:-1]:
            y = linear(layer, y).relu()
        outputs.append(linear(head.layers[-1], y).view(len(x), -1, net.num_atoms))
    if len(outputs) == 1:
        return outputs[0]
    value, advantages = outputs
    return value + advantages - advantages.mean(1, keepdim=True)


@pytest.mark.parametrize("structure", NETWORKS)
def test_outputs_and_gradients(structure: dict[str, Any]) -> None:
    net, parameters, noise = made(structure)
    shape = structure["observation_shape"]
    observations = torch.randn(RUNS, BATCH, int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    deltas = torch.randn(RUNS, BATCH, ACTIONS, net.num_atoms, generator=torch.Generator().manual_seed(1))
    acted = net.acting(parameters)(observations.numpy().reshape(RUNS, BATCH, *shape), noise)
    for part in (Part(parameters, slice(0, 2)), Part(parameters, slice(2, RUNS))):
        columns = observations[part.runs].transpose(1, 2)
        outputs, tape = net.forward(part, columns, noise)
        net.backward(part, tape, deltas[part.runs].flatten(2).transpose(1, 2).contiguous(), noise)
        for place, run in enumerate(range(RUNS)[part.runs]):
            weights = {k: torch.from_numpy(v).double().requires_grad_() for k, v in parameters.of_run(run).items()}
            expected = literal(net, weights, noise, run, observations[run].double(), shape)
            found = outputs[place].t().view(BATCH, ACTIONS, net.num_atoms)
            assert torch.allclose(found.double(), expected, atol=1e-5)
            assert np.allclose(acted[run], expected.detach().numpy(), atol=1e-5)
            gradients = torch.autograd.grad((expected * deltas[run].double()).sum(), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                assert torch.allclose(parameters.grads[name][run].double(), gradient, atol=1e-4), (run, name)


@pytest.mark.parametrize("structure", NETWORKS)
def test_a_run_in_a_part_takes_the_same_bits_alone(structure: dict[str, Any]) -> None:
    net, parameters, noise = made(structure)
    shape = structure["observation_shape"]
    observations = torch.randn(RUNS, 64, int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    deltas = torch.randn(RUNS, ACTIONS * net.num_atoms, 64, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[Tensor, Tensor]] = []
    for size in (RUNS, 1, 2):
        parameters.grad.zero_()
        outputs = []
        for start in range(0, RUNS, size):
            part = Part(parameters, slice(start, start + size))
            out, tape = net.forward(part, observations[part.runs].transpose(1, 2), noise)
            net.backward(part, tape, deltas[part.runs].clone(), noise)
            outputs.append(out)
        seen.append((torch.cat(outputs), parameters.grad.clone()))
    for outputs, gradient in seen[1:]:
        assert torch.equal(outputs, seen[0][0]) and torch.equal(gradient, seen[0][1])


def test_the_advantages_of_a_dueling_network_have_mean_zero_around_its_value() -> None:
    """I8, equation 9: mean_a Q = V, whatever the advantages are."""
    net, parameters, _ = made({"observation_shape": (4,), "hidden_sizes": (16, 8), "dueling": True})
    (part, *_) = net.parts(parameters, BATCH)
    outputs, (body, *_) = net.forward(part, torch.randn(RUNS, 4, BATCH))
    values = net.heads[0].forward(part, body[-1], None, net.scratch)[-1]
    assert torch.allclose(outputs.mean(1), values[:, 0], atol=1e-6)
    with torch.no_grad():
        parameters["advantage.bias1"].add_(5.0)
    assert torch.allclose(net.forward(part, body[0])[0], outputs, atol=1e-5)


def test_moments_of_noisy_weights() -> None:
    """f(x) = sign(x) sqrt|x| has mean 0 and E[f^2] = E|x| = sqrt(2/pi), so a product of two has the variance 2/pi."""
    net, parameters, _ = made({"observation_shape": (4,), "hidden_sizes": (8, 6), "noisy": True})
    streams = Streams(range(RUNS))
    draws = list(net.noise(streams, "noise", 4000))
    for layer in net.heads[0].layers:
        eps = np.stack([draw[layer.weight][0] * draw[layer.weight][1] for draw in draws if draw is not None])
        assert eps.shape == (4000, RUNS, layer.inputs, layer.outputs)
        assert abs(eps.mean()) < 0.02 and eps.var() == pytest.approx(2 / np.pi, rel=0.03)
        assert abs(np.corrcoef(eps[:, 0].ravel(), eps[:, 1].ravel())[0, 1]) < 0.02  # runs draw their own
        sigma = parameters[f"{layer.weight}.sigma"].detach()
        assert torch.allclose(sigma, torch.full_like(sigma, 0.5 / layer.inputs**0.5))


def test_images_need_their_size() -> None:
    with pytest.raises(ValueError, match="set convolutions to 'none'"):
        QNetwork((4,), 2, (8,), convolutions="minatar")
    with pytest.raises(ValueError, match="needs a hidden layer"):
        QNetwork((4,), 2, (), noisy=True)


def test_noise_drawn_at_once_is_noise_drawn_one_by_one() -> None:
    net, _, _ = made({"observation_shape": (4,), "hidden_sizes": (7,), "noisy": True})
    one, other = Streams(range(RUNS)), Streams(range(RUNS))
    singly = [next(net.noise(one, "noise", 1)) for _ in range(5)]
    for mine, theirs in zip(net.noise(other, "noise", 5), singly, strict=True):
        for name, pair in theirs.items():
            assert all(np.array_equal(x, y) for x, y in zip(mine[name], pair, strict=True))
