"""Kronecker-factored approximate curvature, K-FAC: Martens and Grosse 2015, arXiv:1503.05671; networks of R runs.

With a = (activations, 1), a layer's sums are s = W^T a, the bias being W's last row, and the score of one sample is
d log p / dW = a g^T, where g = d log p / ds for an output drawn from the model itself. The layer's block of the Fisher
matrix is then E[a a^T (x) g g^T]; K-FAC takes for it

    F = A (x) S,   A = E[a a^T],   S = E[g g^T],   so that   F^-1 G = A^-1 G S^-1   for a gradient G [in + 1, out]

(equation 1 and section 3), which is exact where a a^T and g g^T are independent, and 0 for the blocks between layers
(section 4.2). A convolution is such a layer at each of its positions t: a_t = (the patch of its input there, 1), and
the score of one sample is sum_t a_t g_t^T. Where a and g are independent, and g_t and g_t' uncorrelated with one
covariance at all positions, its block is again A (x) S (Grosse and Martens 2016, arXiv:1602.01407, theorem 1),

    A = E[sum_t a_t a_t^T],   S = E[mean_t g_t g_t^T].

A and S are running averages (section 5) and damped each by itself, "factored Tikhonov" (section 6.3):

    (A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I),   pi^2 = (tr A / (in + 1)) / (tr S / out).

Inverses are by Cholesky, run by run as LAPACK does, and only every `inverse_period` updates (section 8). The step has
the length of arXiv:1708.05144, section 3.2.

Departures from the papers:
- No rescaling by the exact Fisher matrix, no adaptive damping and momentum (sections 6.4 to 7): a trust region of fixed
  radius, constant damping and momentum, as in ACKTR.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from algorithms.common.layers import MLP, Parameters, times_column

Pair = tuple[Tensor, Tensor]  # of the inputs [R, in + 1, in + 1] and of the sums [R, out, out]


def with_one(x: Tensor) -> Tensor:
    """a = (x, 1), [R, B, n + 1] of x [R, B, n]."""
    return functional.pad(x, (0, 1), value=1.0)


def average_in(average: Tensor, x: Tensor, keep: float, times: int = 1) -> Tensor:
    """`keep` times the average [R, n, n] plus 1 - `keep` times `times` E_b[x x^T] of x [R, B, n], in the average's
    place. A single column's product is a sum: torch has another kernel for R = 1. At a `keep` of 0 it does not
    matter what was there."""
    share = (1 - keep) * times / x.shape[1]
    if x.shape[2] == 1:
        return average.mul_(keep).add_(x.square().sum(1, keepdim=True).mul_(share))
    return average.baddbmm_(x.transpose(1, 2), x, beta=keep, alpha=share)


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
    """A^-1 G S^-1 for G [R, in + 1, out]."""
    of_inputs, of_sums = inverses
    if gradient.shape[2] == 1:
        return times_column(of_inputs, gradient) * of_sums
    return torch.bmm(torch.bmm(of_inputs, gradient), of_sums)


class KFAC:
    """The optimizer of one network of R runs; `parameters` are its weights, perhaps with others after them.

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

        def identities(n: int) -> Tensor:
            return torch.eye(n, device=parameters.flat.device).repeat(parameters.num_runs, 1, 1)

        sizes = [network.shapes()[weight] for weight, _ in self._layers]
        self.inverses: list[Pair] = [(identities(inputs + 1), identities(outputs)) for inputs, outputs in sizes]
        self.factors: list[Pair] = [(torch.zeros_like(one), torch.zeros_like(other)) for one, other in self.inverses]
        self.velocity = torch.zeros_like(parameters.flat)
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
        operands, positions = self.network.operands(layers), self.network.positions
        for averages, inputs, by_sums, count in zip(self.factors, operands, slopes, positions, strict=True):
            average_in(averages[0], with_one(inputs), keep, count)
            average_in(averages[1], by_sums, keep)

    @torch.no_grad()
    def step(self, learning_rate: np.ndarray, delta: np.ndarray) -> Tensor:
        """One update with the gradient in `parameters.grad`, after `observe`; [R] each.

        With F the damped matrix that was inverted last and D = F^-1 gradient, momentum averages in the step eta D,
        eta = min(learning_rate, sqrt(2 delta / D^T F D)). Returns this step's model of the KL, eta^2 D^T F D / 2 [R].
        """
        if (self.updates - 1) % self.inverse_period == 0:
            for layer, pair in enumerate(self.factors):
                one, other = map(inverse, damped(pair, self.damping), self.inverses[layer])
                self.inverses[layer] = one, other
        gradients, directions = self._directions()
        products = [(one * other).flatten(1).sum(1) for one, other in zip(gradients, directions, strict=True)]
        curvature = torch.stack(products, 1).sum(1)  # D^T F D = D^T gradient
        longest, radius = (torch.from_numpy(x).to(curvature) for x in (learning_rate, delta))
        eta = torch.minimum(longest, torch.sqrt(2 * radius / curvature))
        eta = torch.where(curvature <= 0, 0, eta)  # no gradient
        grads, eta_of_weights = self.parameters.grads, eta[:, None, None]
        for (weight, bias), direction in zip(self._layers, directions, strict=False):
            torch.mul(direction[:, :-1], eta_of_weights, out=grads[weight])
            torch.mul(direction[:, -1:], eta_of_weights, out=grads[bias])
        for name, direction in zip(self.diagonal, directions[len(self._layers) :], strict=True):
            torch.mul(direction, eta_of_weights, out=grads[name])
        self.velocity.mul_(self.momentum).add_(self.parameters.grad.mul_(1 - self.momentum))
        self.parameters.flat.sub_(self.velocity)
        return 0.5 * eta.square() * curvature

    def _directions(self) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients and D = F^-1 gradient: of the layers, [R, in + 1, out] each, then of the others."""
        grads = self.parameters.grads
        gradients = [torch.cat((grads[weight], grads[bias]), 1) for weight, bias in self._layers]
        directions = [solve(*both) for both in zip(self.inverses, gradients, strict=True)]
        for name, fisher in self.diagonal.items():
            gradients.append(grads[name])
            directions.append(grads[name] / (fisher + self.damping.unsqueeze(2)))
        return gradients, directions

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
