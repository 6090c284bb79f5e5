"""Off-PAC, off-policy actor-critic: Degris, White, Sutton 2012, "Off-Policy Actor-Critic", arXiv:1205.4839.

A policy pi is learned from the steps of another, b. Each step is weighted by how much likelier pi is to take it; the
critic, V(s) = v^T x(s), is learned by GTD(lambda), with weights w for the mean TD error (algorithm 1):

    delta = r + gamma V(s') - V(s),    rho = pi(a|s) / b(a|s)
    e_v <- rho (x(s) + gamma lambda e_v)
    v <- v + alpha_v (delta e_v - gamma (1 - lambda) (w^T e_v) x(s'))
    w <- w + alpha_w (delta e_v - (w^T x(s)) x(s))
    e_u <- rho (grad_u log pi(a|s) + gamma lambda e_u)
    u <- u + alpha_u delta e_u

The target policies are those of actor_critic.py, normal or softmax. The behaviour b is uniform, as in the paper, over
the actions or their box. Or, as in Silver et al. 2014 (section 5.2), it is normal with pi's own mean and a constant
width, so that it follows the target without ever narrowing (`behaviour`; continuous actions only).

Axes: those of actor_critic.py.

Departures from the paper:
- Tile coding and step sizes as in copdac_q.py, traces as in actor_critic.py.
- Actions are continuous too, as in Silver et al. 2014, and the gradient may be `scaled`, as in actor_critic.py.
- A time limit is no end of the task: only terminations stop bootstrapping.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from algorithms import actor_critic
from algorithms.common.config import PerRun
from algorithms.common.linear import (
    Sample,
    add,
    read,
    require_nonnegative,
    require_positive,
    scaled_slope,
    standard_log_prob,
)
from algorithms.common.tiles import Floats, Indices

SUPPORTS = {"continuous", "discrete"}


@dataclasses.dataclass(frozen=True)
class Config(actor_critic.Config):
    """The step sizes of critic and actor and lambda are those of rlpark/rlpark@413d21c OffPACPuddleWorld.java (over the
    number of active features, as there). Its alpha_w is 0: then the critic is TD(lambda) with importance weights."""

    trace_lambda: PerRun = 0.4
    correction_learning_rate: PerRun = 0.001  # alpha_w, of GTD(lambda)
    behaviour: Literal["normal", "uniform"] = "normal"  # of continuous actions
    noise_std: PerRun = 1.0  # sigma of the normal behaviour; half the action's range is 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_nonnegative(self, "correction_learning_rate")
        require_positive(self, "noise_std")


def importance_weights(log_probs: Floats, behaviour_log_probs: Floats) -> Floats:
    """rho = pi(a|s) / b(a|s): [R] each."""
    rho: Floats = np.exp(log_probs - behaviour_log_probs)
    return rho


class Agent(actor_critic.Agent):
    """Off-PAC for R runs at once."""

    weights = ("v", "w", "u")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.w = self.zeros()
        self.alpha_w = self.step_size("correction_learning_rate")
        self.uniform = self.discrete or cfg.behaviour == "uniform"

    def _noise(self, num_steps: int) -> Floats:
        if self.discrete or not self.uniform:
            return super()._noise(num_steps)
        return 2 * self.streams.uniform("actions", (num_steps, self.num_envs, self.action_size), axis=1) - 1

    def _choose(self, features: Indices, noise: Floats) -> Any:
        """Actions drawn from b."""
        if self.discrete:
            return noise.argmax(-1)
        if self.uniform:
            return noise.astype(np.float64)
        return self.policy.mode(self.outputs(features)) + np.reshape(self.cfg.noise_std, (-1, 1, 1)) * noise

    def behaviour_log_prob(self, noise: Floats) -> Floats:
        """log b(a|s) [R] of the actions drawn by noise [R, A]."""
        if self.discrete:
            return np.full(len(noise), -math.log(self.action_size))
        if self.uniform:  # over [-1, 1]^A
            return np.full(len(noise), -self.action_size * math.log(2.0))
        return standard_log_prob(noise.astype(np.float64)) - self.action_size * np.log(self.cfg.noise_std)

    def _learn(self, sample: Sample, n: int) -> Floats:
        """Algorithm 1."""
        x, outputs = sample.features, self.outputs(sample.features)
        log_probs = self.policy.log_prob(outputs, sample.actions)
        rho = importance_weights(log_probs, self.behaviour_log_prob(sample.noise))
        delta = sample.rewards + sample.discounts * read(self.v, sample.successors) - read(self.v, x)
        slope = scaled_slope(self.policy, outputs, sample.actions, self.cfg.scaled > 0)
        shares = rho * self.cfg.gamma * self.trace_lambda
        self.value_traces.update(n, shares, x, rho)
        self.policy_traces.update(n, shares, x, rho[:, None] * slope)
        expected, along_trace = read(self.w, x), self.value_traces.product(n, self.w)  # w^T x(s), w^T e_v, [R]
        self.value_traces.move(n, self.v, self.alpha_v * delta)
        add(self.v, sample.successors, -self.alpha_v * sample.discounts * (1 - self.trace_lambda) * along_trace)
        self.value_traces.move(n, self.w, self.alpha_w * delta)
        add(self.w, x, -self.alpha_w * expected)
        self.policy_traces.move(n, self.u, self.alpha_u * delta)
        for traces in (self.value_traces, self.policy_traces):
            traces.end(n, sample.ended)
        return rho * delta


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("offpac")
