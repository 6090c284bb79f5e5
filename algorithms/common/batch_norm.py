"""Perceptrons of R runs with batch normalization: Ioffe, Szegedy 2015, arXiv:1502.03167.

    x^ = (x - mean) / sqrt(variance + eps),    y = scale x^ + shift                                       (algorithm 1)

The moments are those of the batch, over its samples alone, so every run has its own. Where single observations are
acted on or evaluated there is no batch: there they are averages over the batches that were learned from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import MLP, Initializer, Parameters, linear, linear_to_inputs, linear_to_weights

DECAY = 0.99  # of the averages with each batch; keras-team/keras@ef2b7f8 batch_normalization.py, as is the next
EPSILON = 1e-3


class Normalized(NamedTuple):
    """What normalizing a batch leaves for its backward pass and for the averages."""

    values: Tensor  # [R, B, W] x^
    inverse: Tensor  # [R, 1, W] 1 / sqrt(variance + eps)
    mean: Tensor  # [R, 1, W]
    variance: Tensor  # [R, 1, W] of the batch itself, over B


def normalize(x: Tensor) -> Normalized:
    """By the moments over the samples of x [R, B, W]. Every operation rounds once, wherever a run's slice lies."""
    mean = x.mean(1, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(1, keepdim=True)
    inverse = (variance + EPSILON).sqrt().reciprocal()
    return Normalized(centred * inverse, inverse, mean, variance)


def normalize_backward(normalized: Normalized, by_values: Tensor) -> Tensor:
    """d loss / d x [R, B, W], given that by x^, the moments being functions of x too (section 3)."""
    along = (by_values * normalized.values).mean(1, keepdim=True)
    return (by_values - by_values.mean(1, keepdim=True) - normalized.values * along) * normalized.inverse


class NormalizedMLP(MLP):
    """A perceptron, ReLU inside, that normalizes its first `columns` inputs and, if `hidden`, all hidden layers' sums.

    Layer k's inputs are scaled and shifted by `<name>.scale<k>` and `<name>.shift<k>`. `averages` are the means and
    variances used while `evaluating`.
    """

    def __init__(self, name: str, sizes: Sequence[int], num_runs: int, columns: int, hidden: bool, device: str = "cpu"):
        super().__init__(name, sizes, "relu")
        self.widths = [columns, *(sizes[1:-1] if hidden else ())]  # of what is normalized before layer k
        self.evaluating = False
        shapes = {f"{kind}{k}": (1, width) for k, width in enumerate(self.widths) for kind in ("mean", "variance")}
        self.averages = Parameters(num_runs, {f"{name}.{key}": shape for key, shape in shapes.items()}, device)
        for k in range(len(self.widths)):
            self.averages[f"{name}.variance{k}"].detach().fill_(1.0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        kinds = ("scale", "shift")
        own = {f"{self.name}.{kind}{k}": (1, width) for k, width in enumerate(self.widths) for kind in kinds}
        return super().shapes() | own

    def initialize(
        self,
        parameters: Parameters,
        rngs: Iterable[np.random.Generator],
        hidden: Initializer,
        last: Initializer,
        bias: Initializer | None = None,
    ) -> None:
        """Draw the weights as in `MLP`; scales are 1 and shifts 0."""
        super().initialize(parameters, rngs, hidden, last, bias)
        for k in range(len(self.widths)):
            parameters[f"{self.name}.scale{k}"].detach().fill_(1.0)

    @torch.no_grad()
    def forward(self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor) -> list[Any]:
        """Of every layer its inputs and how they were normalized, if they were; the outputs last."""
        layers: list[Any] = []
        weights, x = self._weights(parameters), inputs
        for k in range(len(weights) // 2):
            normalized = None
            if k < len(self.widths):
                width = self.widths[k]
                normalized = self._average(k, x) if self.evaluating else normalize(x[..., :width])
                scaled = normalized.values * parameters[f"{self.name}.scale{k}"] + parameters[f"{self.name}.shift{k}"]
                x = scaled if width == x.shape[2] else torch.cat((scaled, x[..., width:]), 2)
            x = x.clamp_(min=0) if k > 0 else x
            layers.append((x, normalized))
            x = linear(x, weights[2 * k], weights[2 * k + 1])
        return [*layers, x]

    def _average(self, k: int, x: Tensor) -> Normalized:
        """Layer k's inputs normalized by the averages."""
        mean, variance = (self.averages[f"{self.name}.{kind}{k}"].detach() for kind in ("mean", "variance"))
        inverse = (variance + EPSILON).sqrt().reciprocal()
        return Normalized((x[..., : self.widths[k]] - mean) * inverse, inverse, mean, variance)

    @torch.no_grad()
    def remember(self, layers: list[Any], active: np.ndarray | None = None) -> None:
        """Take the moments of a forward pass into the averages, in the runs that are active [R]."""
        share = np.where(True if active is None else active, 1 - DECAY, 0.0) * np.ones(self.averages.num_runs)
        weight = torch.from_numpy(share).to(self.averages.flat)[:, None, None]
        for k in range(len(self.widths)):
            for kind in ("mean", "variance"):
                average = self.averages[f"{self.name}.{kind}{k}"].detach()
                average.copy_(average * (1 - weight) + getattr(layers[k][1], kind) * weight)

    @torch.no_grad()
    def backward(self, parameters: Parameters, layers: list[Any], delta: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`; `layers` from `forward`, `delta` is d loss / d outputs."""
        self._descend(parameters, layers, delta, parameters.grads)

    @torch.no_grad()
    def to_inputs(self, parameters: Parameters | Mapping[str, Tensor], layers: list[Any], delta: Tensor) -> Tensor:
        """d loss / d inputs [R, B, in], weights held fixed; the arguments are those of `backward`."""
        return self._descend(parameters, layers, delta, None)

    def _descend(
        self,
        parameters: Parameters | Mapping[str, Tensor],
        layers: list[Any],
        delta: Tensor,
        grads: Mapping[str, Tensor] | None,
    ) -> Tensor:
        weights, name = self._weights(parameters), self.name
        for k in range(len(weights) // 2 - 1, -1, -1):
            x, normalized = layers[k]
            if grads is not None:
                linear_to_weights(x, delta, grads[f"{name}.weight{k}"], grads[f"{name}.bias{k}"])
                if k + 1 < len(self.widths):
                    grads[f"{name}.bias{k}"].zero_()  # has no effect (section 3.2), and rounding shall not move it
            delta = linear_to_inputs(delta, weights[2 * k], x, "relu" if k > 0 else None)
            if normalized is None:
                continue
            width = self.widths[k]
            by_scaled, rest = delta[..., :width], delta[..., width:]
            if grads is not None:
                torch.sum(by_scaled * normalized.values, 1, keepdim=True, out=grads[f"{name}.scale{k}"])
                torch.sum(by_scaled, 1, keepdim=True, out=grads[f"{name}.shift{k}"])
                if k == 0 and len(self.widths) > 1:
                    grads[f"{name}.shift{k}"].zero_()  # for the same reason
            by_x = normalize_backward(normalized, by_scaled * parameters[f"{name}.scale{k}"].detach())
            delta = torch.cat((by_x, rest), 2) if rest.shape[2] else by_x
        return delta

    def acting(self, parameters: Parameters) -> Callable[[np.ndarray], np.ndarray]:
        """The same function from and to NumPy, by the averages: float32 [R, B, in] -> [R, B, out]."""

        def outputs(x: np.ndarray) -> np.ndarray:
            with evaluation([self]):
                inputs = torch.from_numpy(x).to(parameters.flat.device)
                result: np.ndarray = self.forward(parameters, inputs)[-1].cpu().numpy()
                return result

        return outputs


@contextlib.contextmanager
def evaluation(networks: Sequence[NormalizedMLP]) -> Iterator[None]:
    """Inside, these networks normalize by their averages."""
    for network in networks:
        network.evaluating = True
    try:
        yield
    finally:
        for network in networks:
            network.evaluating = False
