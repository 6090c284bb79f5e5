"""Natural gradients of R runs: Fisher-vector products, conjugate gradient, a step of given length, a line search.

Vectors [R, D] hold a run's weights one after another. What differs between the runs (a residual that is small enough, a
step that was accepted) is a mask: such a run's numbers stay as they are while the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from algorithms.common.layers import MLP, Parameters
from algorithms.common.policies import Policy

Product = Callable[[Tensor], Tensor]  # a symmetric matrix of each run times its vector, [R, D] -> [R, D]


def to_vectors(views: Mapping[str, Tensor]) -> Tensor:
    """Weights by name, [R, *shape] each, as vectors [R, D] of their own memory."""
    return torch.cat([view.detach().flatten(1) for view in views.values()], 1)


def from_vectors(vectors: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views [R, *shape] into vectors [R, D]."""
    parts = vectors.split([math.prod(shape) for shape in shapes.values()], 1)
    return {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@torch.no_grad()
def assign(parameters: Parameters, vectors: Tensor) -> None:
    """Set weights from vectors [R, D]."""
    for name, values in from_vectors(vectors, parameters.shapes).items():
        parameters[name].copy_(values)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of vectors [R, D], [R, 1]."""
    return (one * other).sum(1, keepdim=True)


def fisher_product(policy: Policy, observations: Tensor, damping: Tensor) -> Product:
    """v -> (F + damping I) v, F the Fisher information of the policy averaged over observations [R, B, O].

    F = E_s[J^T M J] (arXiv:1502.05477, appendix C.1), J the derivative of the distribution's parameters by the weights
    and M their own Fisher information, in closed form: no action is sampled. It is the Hessian of E_s[KL(pi_old || pi)]
    at pi_old. `damping` [R, 1]. Holds until the network's next forward pass, and writes over its gradients.
    """
    network, parameters = policy.network, policy.parameters
    shapes = policy.shapes()
    layers = network.forward(parameters, observations)
    distribution: Any = policy.distribution(layers[-1], policy.log_std())

    def product(vectors: Tensor) -> Tensor:
        direction = from_vectors(vectors, shapes)
        by_outputs = network.tangent(parameters, layers, direction)
        outputs, log_std = distribution.fisher(by_outputs, direction.get("log_std"))
        policy.write_gradient(layers, outputs / observations.shape[1], log_std)
        return to_vectors({name: parameters.grads[name] for name in shapes}) + damping * vectors

    return product


def gauss_newton_product(network: MLP, parameters: Parameters, observations: Tensor, damping: Tensor) -> Product:
    """v -> (H + damping I) v, H = E_s[J^T J] over observations [R, B, O], J the derivative of the network's outputs by
    its weights, which are all of `parameters` (arXiv:1506.02438, section 5).

    H is the Hessian of E_s[(V - V_old)^2] / 2 at V_old. `damping` [R, 1]. Holds until the network's next forward pass,
    and writes over its gradients.
    """
    layers = network.forward(parameters, observations)

    def product(vectors: Tensor) -> Tensor:
        moved = network.tangent(parameters, layers, from_vectors(vectors, parameters.shapes))
        network.backward(parameters, layers, moved / observations.shape[1])
        return to_vectors(parameters.grads) + damping * vectors

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int, tolerance: float = 1e-10) -> Tensor:
    """x with A x = b by at most `iterations` steps from x = 0 (Hestenes and Stiefel 1952), `product` being A; [R, D].

    A run stops where |b - A x|^2 <= `tolerance` |b|^2, and where its next direction p has no p^T A p > 0.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = dot(b, b)
    enough = tolerance * squared
    active = squared > enough
    for _ in range(iterations):
        image = product(direction)
        curvature = dot(direction, image)
        active = active & (curvature > 0)
        alpha = squared / curvature
        x = torch.where(active, x + alpha * direction, x)
        residual = torch.where(active, residual - alpha * image, residual)
        before, squared = squared, dot(residual, residual)
        active = active & (squared > enough)
        direction = torch.where(active, residual + squared / before * direction, direction)
    return x


def natural_step(product: Product, gradient: Tensor, delta: Tensor, iterations: int) -> Tensor:
    """The step s [R, D] along x = F^-1 g for which the KL's quadratic model 1/2 s^T F s is `delta` [R, 1].

    s = sqrt(2 delta / x^T F x) x; zero where the gradient is zero or not finite. For the exact x, and but for rounding
    for every iterate of conjugate gradient, x^T F x = g^T x.
    """
    x = conjugate_gradient(product, gradient, iterations)
    curvature = dot(x, product(x))
    return torch.where(curvature > 0, torch.sqrt(2 * delta / curvature) * x, torch.zeros_like(x))


def bounded_step(product: Product, gradient: Tensor, bound: Tensor, iterations: int) -> Tensor:
    """The step s [R, D] along x = A^-1 g, A being `product`: x itself, or where it is too long as much of it as has
    s^T A s = `bound` [R, 1]. That minimises s^T A s / 2 - g^T s within the bound, up to what conjugate gradient leaves.

    Zero where the gradient is zero or not finite.
    """
    x = conjugate_gradient(product, gradient, iterations)
    curvature = dot(x, product(x))
    return torch.where(curvature > 0, torch.sqrt(bound / curvature).clamp(max=1) * x, torch.zeros_like(x))


def backtrack(
    assign: Callable[[Tensor], None],
    accept: Callable[[], Tensor],
    start: Tensor,
    step: Tensor,
    shrink: Tensor,
    tries: int,
) -> tuple[Tensor, Tensor]:
    """Assign `start` + `shrink`^k `step` [R, D], k = 0, 1, ... < `tries`, until `accept()`, bool [R], holds for a run.

    A run that has accepted keeps its weights while others search, one that never does gets `start` again. Returns which
    accepted, bool [R], and how many steps each refused, int64 [R]; `shrink` [R, 1].
    """
    present = start
    accepted = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    refused = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    for k in range(tries):
        present = torch.where(accepted[:, None], present, start + shrink**k * step)
        assign(present)
        accepted = accepted | accept()
        refused += ~accepted
        if accepted.all():
            break
    assign(torch.where(accepted[:, None], present, start))
    return accepted, refused
