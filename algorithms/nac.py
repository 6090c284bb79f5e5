"""Natural actor-critic: Peters & Schaal 2008, "Natural Actor-Critic", Neurocomputing 71, with a neural policy.

The critic has two parts. V(s) is a network; the advantage is linear in the policy's own features,

    A(s, a) = w^T grad log pi(a|s),

which are compatible with the policy gradient (Sutton, McAllester, Singh, Mansour 1999): the w that fits best,

    w = argmin_w E[(A - w^T grad log pi(a|s))^2] = F^-1 g,   F = E[grad log pi grad log pi^T],   g = E[grad log pi A],

is the natural gradient (Kakade 2001). So the actor takes its critic's weights,

    theta <- theta + alpha w.

NPG arrives at the same direction by a Fisher matrix that is averaged over actions in closed form, and scales its step
to a KL; here F is that of the actions that were taken, a regression's matrix, and alpha is constant. With advantages
scaled to variance 1 the step keeps a measure all the same: w^T F w is the share of the variance that the features
explain, some percent of it, and alpha^2 w^T F w / 2 the quadratic model of the KL.

Of the paper's two forms this is the one for a network. Episodic NAC solves for w from one equation an episode, and so
needs more episodes than the policy has weights; NAC by LSTD-Q(lambda) has one equation for each step.

Axes: rollouts [T, R, N, ...], batches [R, B, ...], vectors of weights [R, D]; R runs, N environments, T steps.

Departures from the paper:
- LSTD-Q(lambda) solves for V's weights and w together, in linear features, by a matrix of their joint size. Here w is
  fitted to GAE's advantages with the present V, which Adam fits to the returns afterwards; as E_a[grad log pi] = 0,
  features of the state take nothing from those of the action, and the two regressions part.
- The regression is solved by conjugate gradient with products only, and damped (`cg_damping`): a network has more
  weights than a rollout has samples.
- Each rollout gives one step and is forgotten. The paper waits until w has converged, and keeps a decaying share of
  old statistics.
- Time limits bootstrap, as in NPG.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from algorithms import npg
from algorithms.common.config import PerRun, require
from algorithms.common.distributions import Distribution, Gaussian
from algorithms.common.natural import Product, conjugate_gradient, from_vectors, to_vectors
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.policies import Policy

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper leaves the settings to the task. These are NPG's, which names their sources, but for the step size: at
    0.1 CartPole is at 160 after 60,000 env_steps, where NPG is at 500; with 0.5 and 1 it is beside it."""

    step_size: PerRun = 1.0  # alpha; the KL per step is then 0.001 (CartPole) to 0.04 (Hopper), about NPG's 0.01
    cg_damping: PerRun = 0.1  # multiple of the identity added to F
    cg_iterations: int = 10
    gamma: PerRun = 0.99
    gae_lambda: PerRun = 0.95
    normalize_advantages: PerRun = 1.0  # 1: to mean 0 and standard deviation 1 over the rollout
    learning_rate: PerRun = 1e-3  # of V's Adam
    num_epochs: int = 5  # V's passes over the rollout
    batch_size: int = 64  # samples of V's minibatches
    adam_epsilon: float = 1e-8
    num_envs: int = 1
    num_steps: int = 2048  # T
    hidden_sizes: tuple[int, ...] = (64, 64)  # (): linear, as the paper's policies are
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance, clip at 10

    def __post_init__(self) -> None:
        samples = self.num_envs * self.num_steps
        require(
            self.batch_size > 0 and samples % self.batch_size == 0,
            f"batch_size is {self.batch_size}; it must divide num_envs * num_steps = {samples}",
        )
        require_positive(self, "step_size", "cg_iterations", "learning_rate", "num_envs", "num_steps", "num_epochs")
        require_shares(self, "gamma", "gae_lambda")


def derivative_along(policy: Distribution, actions: Tensor, outputs: Tensor, log_std: Tensor | None) -> Tensor:
    """How log pi(a|s) [R, B] changes as the distribution's parameters move by `outputs` [R, B, A] and `log_std`
    [R, 1, A]."""
    ones = torch.ones(outputs.shape[:2], dtype=outputs.dtype, device=outputs.device)
    by_outputs, _ = policy.gradient(actions, ones)
    change = (by_outputs * outputs).sum(-1)
    if isinstance(policy, Gaussian) and log_std is not None:
        z = (actions - policy.mean) * torch.exp(-policy.log_std)
        change = change + ((z.square() - 1) * log_std).sum(-1)
    return change


def regression_product(policy: Policy, observations: Tensor, actions: Tensor, damping: Tensor) -> Product:
    """v -> (F + damping I) v, F = 1/B sum_b x_b x_b^T of the features x_b = grad log pi(a_b|s_b); samples [R, B, ...].

    The matrix of a regression on x, by its two factors: x_b^T v in forward mode, then sum_b x_b u_b as a policy
    gradient with weights u. Holds until the network's next forward pass, and writes over its gradients.
    """
    network, parameters, shapes = policy.network, policy.parameters, policy.shapes()
    layers = network.forward(parameters, observations)
    distribution: Any = policy.distribution(layers[-1], policy.log_std())

    def product(vectors: Tensor) -> Tensor:
        direction = from_vectors(vectors, shapes)
        by_outputs = network.tangent(parameters, layers, direction)
        fitted = derivative_along(distribution, actions, by_outputs, direction.get("log_std"))
        policy.write_gradient(layers, *distribution.gradient(actions, fitted / actions.shape[1]))
        return to_vectors({name: parameters.grads[name] for name in shapes}) + damping * vectors

    return product


class Agent(npg.Agent):
    """The natural actor-critic for R runs at once."""

    def _step(self, batch: npg.Batch) -> Tensor:
        """alpha w, [R, D]: w by the regression of the advantages on the compatible features."""
        gradient = self._gradient(batch)
        product = regression_product(self.policy, batch.observations, batch.actions, self.coef["cg_damping"])
        return self.coef["step_size"] * conjugate_gradient(product, gradient, self.cfg.cg_iterations)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("nac")
