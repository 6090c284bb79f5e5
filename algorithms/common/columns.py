"""Multilayer perceptrons whose samples are columns: activations [R, features, B].

The networks of `layers.MLP`, weights and all, at about four fifths of its time where a batch is wider than a layer: the
last axis is what fills vector registers, and 128 samples fill them where 84 units or 2 outputs do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algorithms.common.layers import MLP, Parameters


class Part:
    """Some neighbouring runs of `Parameters`, as one network's weights and gradients in the order of its layers."""

    def __init__(self, net: MLP, parameters: Parameters, runs: slice):
        self.runs = runs
        names = list(net.shapes())
        self.weights = [parameters[name].detach()[runs] for name in names]
        self.grads = [parameters.grads[name][runs] for name in names]


class ColumnMLP(MLP):
    """`MLP` with ReLU on columns. A few runs at a time (`parts`) keep their activations in the cache."""

    def __init__(self, name: str, sizes: Sequence[int]):
        super().__init__(name, sizes, "relu")

    def parts(self, parameters: Parameters, size: int = 8) -> list[Part]:
        """All runs, `size` at a time: fewer would cost calls, more would leave a cache of 2 MB (120 and 84 units)."""
        return [Part(self, parameters, slice(r, r + size)) for r in range(0, parameters.num_runs, size)]

    @torch.no_grad()
    def forward(self, part: Part, inputs: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Every layer's output [R, features, B], `inputs` first. Hidden ones hold until the next `forward`."""
        layers, last = [inputs], len(part.weights) - 2
        for k in range(0, last, 2):
            weight, bias = part.weights[k].transpose(1, 2), part.weights[k + 1].transpose(1, 2)
            out = self.scratch(f"layer{k}", len(weight), weight.shape[1], inputs.shape[2], like=inputs)
            layers.append(torch.baddbmm(bias, weight, layers[-1], out=out).clamp_(min=0))
        return [*layers, torch.baddbmm(part.weights[-1].transpose(1, 2), part.weights[-2].transpose(1, 2), layers[-1])]

    @torch.no_grad()
    def backward(self, part: Part, layers: list[Tensor], delta: Tensor) -> None:  # type: ignore[override]
        """Write d loss / d weights into the part's gradients, from `forward`'s result and d loss / d outputs."""
        for k in range(len(part.weights) - 2, -1, -2):
            x, weight, grad, bias_grad = layers[k // 2], part.weights[k], part.grads[k], part.grads[k + 1]
            torch.sum(delta, 2, keepdim=True, out=bias_grad.transpose(1, 2))
            if weight.shape[2] < 16:  # the few outputs as rows: a product with few columns is slow
                grad.copy_(torch.bmm(delta, x.transpose(1, 2)).transpose(1, 2))
            elif grad.is_contiguous():
                torch.bmm(x, delta.transpose(1, 2), out=grad)
            else:  # padding between runs; into it, torch multiplies run by run
                grad.copy_(torch.bmm(x, delta.transpose(1, 2)))
            if k > 0:
                delta = torch.bmm(weight, delta, out=self.scratch(f"delta{k}", *x.shape, like=x))
                torch.ops.aten.threshold_backward.grad_input(delta, x, 0.0, grad_input=delta)
