"""Kronecker-factored approximate curvature, K-FAC: Martens and Grosse 2015, arXiv:1503.05671; perceptrons of R runs.

With a = (activations, 1), a layer's sums are s = W^T a, the bias being W's last row, and the score of one sample is
d log p / dW = a g^T, where g = d log p / ds for an output drawn from the model itself. The layer's block of the Fisher
matrix is then E[a a^T (x) g g^T]; K-FAC takes for it

    F = A (x) S,   A = E[a a^T],   S = E[g g^T],   so that   F^-1 G = A^-1 G S^-1   for a gradient G [in + 1, out]

(equation 1 and section 3), which is exact where a a^T and g g^T are independent, and 0 for the blocks between layers
(section 4.2). A and S are running averages (section 5) and damped each by itself, "factored Tikhonov" (section 6.3):

    (A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I),   pi^2 = (tr A / (in + 1)) / (tr S / out).

Inverses are by Cholesky, run by run as LAPACK does, and only every `inverse_period` updates (section 8). The step has
the length of arXiv:1708.05144, section 3.2.

Departures from the papers:
- No rescaling by the exact Fisher matrix, no adaptive damping and momentum (sections 6.4 to 7): a trust region of fixed
  radius, constant damping and momentum, as in ACKTR.
- Perceptrons only: nothing here has a convolution yet (its factors are in arXiv:1602.01407).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import MLP, Parameters

Pair = tuple[Tensor, Tensor]  # of the inputs [R, in + 1, in + 1] and of the sums [R, out, out]


def second_moment(x: Tensor) -> Tensor:
    """E_b[x x^T], [R, n, n] of x [R, B, n]. A single column as a sum, see `layers`."""
    size = x.shape[1]
    return x.square().mean(1, keepdim=True) if x.shape[2] == 1 else torch.bmm(x.transpose(1, 2), x) / size


def factors(inputs: Tensor, slopes: Tensor) -> Pair:
    """A and S of a layer, from its inputs [R, B, in] and the scores of its sums, g [R, B, out]."""
    mean = inputs.mean(1)  # of the products with the constant 1
    upper = torch.cat((second_moment(inputs), mean.unsqueeze(2)), 2)
    lower = torch.cat((mean, torch.ones_like(mean[:, :1])), 1).unsqueeze(1)
    return torch.cat((upper, lower), 1), second_moment(slopes)


def damped(pair: Pair, damping: Tensor) -> Pair:
    """Factored Tikhonov damping (section 6.3): the factors with pi sqrt(lambda) and sqrt(lambda) / pi on the diagonal.

    `damping` is lambda [R, 1]. A factor that is 0 counts as tiny, so that pi is finite.
    """
    means = [matrix.diagonal(dim1=1, dim2=2).contiguous().mean(1, keepdim=True).clamp(min=1e-12) for matrix in pair]
    pi, root = torch.sqrt(means[0] / means[1]), torch.sqrt(damping)
    return _plus(pair[0], pi * root), _plus(pair[1], root / pi)


def _plus(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """A matrix [R, n, n] plus a multiple [R, 1] of the identity."""
    return matrix + torch.diag_embed(diagonal.expand(-1, matrix.shape[1]))


def inverse(matrix: Tensor, otherwise: Tensor) -> Tensor:
    """The inverse of symmetric matrices [R, n, n], or `otherwise` for runs whose matrix is not positive definite."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    failed = (info != 0)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(failed, otherwise, torch.cholesky_inverse(torch.where(failed, identity, lower)))


def solve(inverses: Pair, gradient: Tensor) -> Tensor:
    """A^-1 G S^-1 for G [R, in + 1, out]; with one output as a sum, see `layers`."""
    of_inputs, of_sums = inverses
    if gradient.shape[2] == 1:
        return (of_inputs * gradient.transpose(1, 2)).sum(2, keepdim=True) * of_sums
    return torch.bmm(torch.bmm(of_inputs, gradient), of_sums)


class KFAC:
    """The optimizer of one perceptron of R runs; `parameters` are its weights, perhaps with others after them.

    `diagonal` names those others: their block of the Fisher matrix is known to be this multiple of the identity. Where
    `learning_rate` and `delta` let a step be, it is the natural gradient's; momentum averages the steps.
    """

    def __init__(
        self,
        network: MLP,
        parameters: Parameters,
        damping: Tensor,  # lambda [R, 1]
        stats_decay: float,
        momentum: float,
        inverse_period: int,  # updates from one inversion to the next
        diagonal: Mapping[str, float] | None = None,
    ):
        self.network, self.parameters, self.damping = network, parameters, damping
        self.stats_decay, self.momentum, self.inverse_period = stats_decay, momentum, inverse_period
        self.diagonal = dict(diagonal or {})
        names = list(network.shapes())
        self._layers = list(zip(names[::2], names[1::2], strict=True))
        like = parameters.flat
        self.factors: list[Pair] = []
        for inputs, outputs in (network.shapes()[weight] for weight, _ in self._layers):
            sizes = ((parameters.num_runs, n, n) for n in (inputs + 1, outputs))
            of_inputs, of_sums = (like.new_zeros(size) for size in sizes)
            self.factors.append((of_inputs, of_sums))
        ones = [torch.eye(f.shape[1], device=like.device).expand_as(f).clone() for pair in self.factors for f in pair]
        self.inverses: list[Pair] = list(zip(ones[::2], ones[1::2], strict=True))
        self.velocity = torch.zeros_like(like)
        self.updates = 0

    @torch.no_grad()
    def observe(self, layers: list[Tensor], by_outputs: Tensor) -> None:
        """Add samples to the running averages: `network.forward`'s layers and d log p / d outputs [R, B, out], p being
        the probability of outputs drawn from the model.

        The k-th update counts 1/k, and at least 1 - `stats_decay` (section 5).
        """
        self.updates += 1
        keep = min(1 - 1 / self.updates, self.stats_decay)
        slopes = self.network.deltas(self.parameters, layers, by_outputs)
        for averages, inputs, by_sums in zip(self.factors, layers, slopes, strict=False):
            for average, present in zip(averages, factors(inputs, by_sums), strict=True):
                average.mul_(keep).add_(present.mul_(1 - keep))  # rounded apart, as in `optimizers.RMSProp`

    @torch.no_grad()
    def step(self, learning_rate: np.ndarray, delta: np.ndarray) -> Tensor:
        """One update with the gradient in `parameters.grad`, after `observe`; [R] each.

        With D = F^-1 gradient, momentum gets the step eta D, eta = min(learning_rate, sqrt(2 delta / D^T F D)). Returns
        the model of the KL that this is made for, eta^2 D^T F D / 2.
        """
        if (self.updates - 1) % self.inverse_period == 0:
            for layer, pair in enumerate(self.factors):
                one, other = map(inverse, damped(pair, self.damping), self.inverses[layer])
                self.inverses[layer] = one, other
        curvature = self._precondition()
        longest, radius = (torch.from_numpy(x).to(curvature)[:, None] for x in (learning_rate, delta))
        eta = torch.minimum(longest, torch.sqrt(2 * radius / curvature))
        eta = torch.where(curvature <= 0, 0, eta)  # no gradient
        grad = self.parameters.grad
        for view in self.parameters.grads.values():
            view.mul_(eta.unsqueeze(2))
        self.velocity.mul_(self.momentum).add_(grad.mul_(1 - self.momentum))
        self.parameters.flat.sub_(self.velocity)
        return (0.5 * eta.square() * curvature).squeeze(1)

    def _precondition(self) -> Tensor:
        """Put D = F^-1 gradient in the gradient's place; returns D^T F D, which is the gradient times D, [R, 1]."""
        grads, products = self.parameters.grads, []
        for (weight, bias), inverses in zip(self._layers, self.inverses, strict=True):
            gradient = torch.cat((grads[weight], grads[bias]), 1)
            direction = solve(inverses, gradient)
            grads[weight].copy_(direction[:, :-1])
            grads[bias].copy_(direction[:, -1:])
            products.append((gradient * direction).flatten(1).sum(1))
        for name, fisher in self.diagonal.items():
            direction = grads[name] / (fisher + self.damping.unsqueeze(2))
            products.append((grads[name] * direction).flatten(1).sum(1))
            grads[name].copy_(direction)
        return torch.stack(products, 1).sum(1, keepdim=True)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        matrices = [matrix for pairs in (self.factors, self.inverses) for pair in pairs for matrix in pair]
        return {
            "matrices": [matrix.cpu().numpy().copy() for matrix in matrices],
            "velocity": self.velocity.cpu().numpy().copy(),
            "updates": self.updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        like = self.velocity
        matrices = [torch.from_numpy(matrix.copy()).to(like) for matrix in state["matrices"]]
        pairs = list(zip(matrices[::2], matrices[1::2], strict=True))
        self.factors, self.inverses = pairs[: len(self._layers)], pairs[len(self._layers) :]
        self.velocity.copy_(torch.from_numpy(state["velocity"]))
        self.updates = state["updates"]
