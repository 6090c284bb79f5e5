"""A2C with the trust region of ACER: Wang, Bapst, Heess, Mnih, Munos, Kavukcuoglu, de Freitas 2016, arXiv:1611.01224,
section 3.3, without its replay and off-policy corrections.

PPO's Figure 3 compares with "A2C with trust region [Wan+16]" (arXiv:1707.06347, section 6.2; the settings are not
stated). That paper's own name for it, with asynchronous workers, is Trust-A3C (section 6).

A second network pi_a holds a running average of the policy's weights. Per sample, with phi the statistics of pi(.|s),

    g = grad_phi ( log pi(a|s) A + beta H(pi) ),   k = grad_phi KL(pi_a || pi),

A2C's g gives way to the closest z that does not lead away from pi_a faster than delta, k^T z <= delta (equation 12):

    z = g - max(0, (k^T g - delta) / |k|^2) k,

and z goes back through the network. Since k is the gradient of a KL, this is A2C with a KL penalty whose coefficient,
max(0, ...), each sample gets in closed form; with delta = inf it is A2C.

Axes: rollouts [T, R, N, ...], batches [R, B, ...]; R runs, N environments, T steps, B = T N samples.

Departures from the paper:
- Synchronous, and A2C's in everything else: Adam or RMSProp, clipped gradients, means over samples; see there.
- For continuous actions phi is the mean and log_std of the normal, which are learned; the paper has a fixed deviation
  of 0.3, and the mean alone is phi. For discrete ones phi is the vector of probabilities, as in the paper.
- The entropy bonus is part of g, as in openai/baselines@0c3feed acer.py; the paper does not say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import a2c
from algorithms.common.config import PerRun
from algorithms.common.distributions import Categorical, Distribution, Gaussian
from algorithms.common.layers import Parameters
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.rollouts import evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(a2c.Config):
    """A2C's, and the trust region."""

    delta: PerRun = 1.0  # section 4; inf: no trust region
    average_decay: float = 0.99  # alpha, the average's share that stays at every update (section 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "delta")
        require_shares(self, "average_decay")


def statistics_gradients(
    policy: Distribution, average: Distribution, actions: Tensor, advantages: Tensor, ent_coef: Tensor
) -> tuple[Tensor, Tensor]:
    """g and k per sample, [R, B, number of statistics]: with respect to the mean and log_std of a normal, and to the
    probabilities of a categorical distribution. `advantages` [R, B], `ent_coef` [R, 1]."""
    gains, ent_coef = advantages.unsqueeze(-1), ent_coef.unsqueeze(-1)
    if isinstance(policy, Gaussian) and isinstance(average, Gaussian):
        inverse = torch.exp(-policy.log_std)
        z, shift = (actions - policy.mean) * inverse, (policy.mean - average.mean) * inverse
        spread = torch.exp(2 * (average.log_std - policy.log_std))
        g = torch.cat((gains * z * inverse, gains * (z.square() - 1) + ent_coef), -1)
        return g, torch.cat((shift * inverse, 1 - spread - shift.square()), -1)
    assert isinstance(policy, Categorical) and isinstance(average, Categorical)
    of_action = torch.zeros_like(policy.log_probs).scatter_(-1, actions.unsqueeze(-1), gains)
    g = of_action * torch.exp(-policy.log_probs) - ent_coef * (policy.log_probs + 1)
    return g, -torch.exp(average.log_probs - policy.log_probs)


def multiplier(g: Tensor, k: Tensor, delta: Tensor) -> Tensor:
    """max(0, (k^T g - delta) / |k|^2) of equation 12, [R, B]; 0 where k is 0. `delta` [R, 1]."""
    return torch.clamp(((k * g).sum(-1) - delta) / k.square().sum(-1), min=0)


class Agent(a2c.Agent):
    """A2C with a trust region for R runs at once."""

    memory = (*a2c.Agent.memory, "average")
    cfg: Config

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.average = Parameters(self.num_runs, self.policy.shapes(), device)
        self.average.copy_(self.of_policy)

    def iterate(self) -> dict[str, np.ndarray]:
        """A2C's update, then the average's."""
        metrics = super().iterate()
        share = 1 - self.cfg.average_decay
        self.average.flat.mul_(self.cfg.average_decay).add_(self.of_policy.flat * share)
        return metrics | {"constrained": self.constrained.double().cpu().numpy().copy()}

    def _policy_gradient(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> Any:
        """The gradient of mean_b( -z^T phi ), z held fixed, into `parameters.grad`; returns pi."""
        size, ent_coef = advantages.shape[1], self.coef["ent_coef"]
        log_std = None if self.policy.discrete else self.average["log_std"].detach()
        average: Any = self.policy.distribution(evaluate(self.policy.network, self.average, observations), log_std)
        layers = self.policy.network.forward(self.parameters, observations)
        log_std = self.policy.log_std()
        policy = self.policy.distribution(layers[-1], None if log_std is None else log_std.clone())
        g, k = statistics_gradients(policy, average, actions, advantages, ent_coef)
        penalty = multiplier(g, k, self.coef["delta"])
        self.constrained = (penalty > 0).float().mean(1)  # share of the samples, [R]
        by_policy = policy.gradient(actions, advantages / -size, average, penalty / size, ent_coef / -size)
        self.policy.write_gradient(layers, *by_policy)
        return policy


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("a2c_trust_region")
