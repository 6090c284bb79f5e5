"""COPDAC-Q, compatible off-policy deterministic actor-critic: Silver, Lever, Heess, Degris, Wierstra, Riedmiller 2014,
"Deterministic Policy Gradient Algorithms", sections 4.2, 4.3 and 5.2.

A deterministic policy that is linear in features of the state, mu(s) = theta^T x(s), is learned from the steps of a
noisy one, beta(.|s) = N(mu(s), sigma_beta^2). The critic is compatible with it (theorem 3): its gradient by the action
is linear in that of the policy by its weights, and so leaves the deterministic policy gradient as it is,

    Q(s, a) = (a - mu(s))^T grad_theta mu(s)^T w + v^T x(s) = phi(s, a)^T w + v^T x(s),
    phi(s, a) = grad_theta mu(s) (a - mu(s)).

Q-learning's target is the value of mu's action, where phi vanishes: Q(s', mu(s')) = v^T x(s'). Each step,

    delta = r + gamma Q(s', mu(s')) - Q(s, a)                                                               (eq. 19)
    theta <- theta + alpha_theta grad_theta mu(s) (grad_theta mu(s)^T w)                                    (eq. 20)
    w <- w + alpha_w delta phi(s, a)                                                                        (eq. 21)
    v <- v + alpha_v delta x(s)                                                                             (eq. 22)

With `gradient` it is COPDAC-GQ, whose critic is that of gradient Q-learning (GQ), with weights u for the mean TD error:

    w <- w + alpha_w delta phi(s, a) - alpha_w gamma phi(s', mu(s')) (phi(s, a)^T u)     its last term is 0 (eq. 25)
    v <- v + alpha_v delta x(s) - alpha_v gamma x(s') (phi(s, a)^T u)                                       (eq. 26)
    u <- u + alpha_u (delta - phi(s, a)^T u) phi(s, a)                                                      (eq. 27)

For a linear policy grad_theta mu(s) is x(s) for each number of the action: theta, w and u are [F, A], phi(s, a)^T w is
(a - mu(s)) . (w^T x(s)), and w^T x(s) is dQ/da.

Axes: observations [R, N, O], active features [R, K], weights [R, F, A] and [R, F]; R runs, N environments, F features,
K active, A numbers of an action.

Departures from the paper:
- It tells of tile coding, not which: ten tilings of 10 x 10 and a constant feature, as in rlpark/rlpark@413d21c
  OffPACPuddleWorld.java, the code of one of its authors.
- Step sizes are divided by the number of active features, as there.
- A time limit is no end of the task: only terminations stop bootstrapping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun
from algorithms.common.linear import LinearAgent, Sample, add, check_settings, read, require_nonnegative
from algorithms.common.streams import Streams
from algorithms.common.tiles import Floats, Indices

SUPPORTS = {"continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper sweeps its step sizes and names none; those here are that of the critic in the code named above."""

    learning_rate: PerRun = 0.1  # alpha_v; all four over the number of active features
    advantage_learning_rate: PerRun = 0.1  # alpha_w
    actor_learning_rate: PerRun = 0.1  # alpha_theta
    correction_learning_rate: PerRun = 0.01  # alpha_u, of COPDAC-GQ
    gamma: PerRun = 0.99  # 0.999 on puddle world
    noise_std: PerRun = 1.0  # sigma_beta; half the action's range is 1, as in the paper ("1/2 the legal range")
    gradient: bool = False  # COPDAC-GQ
    num_tilings: int = 10
    num_tiles: int = 10  # of each tiling over the range of an observed number
    memory: int = 4096  # weights at most; more tiles than that share them by hashing
    num_envs: int = 1

    def __post_init__(self) -> None:
        check_settings(self)
        require_nonnegative(
            self, "learning_rate", "advantage_learning_rate", "actor_learning_rate", "correction_learning_rate"
        )
        require_nonnegative(self, "noise_std")


def action_values(distance: Floats, by_action: Floats, values: Floats) -> Floats:
    """Q(s, a) = (a - mu(s)) . (w^T x(s)) + v^T x(s): [R] of a - mu(s) [R, A], w^T x(s) [R, A] and v^T x(s) [R]."""
    q_values: Floats = (distance * by_action).sum(-1) + values
    return q_values


class Agent(LinearAgent):
    """COPDAC-Q for R runs at once."""

    weights: tuple[str, ...] = ("theta", "w", "v")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.theta, self.w, self.u = (self.zeros(self.action_size) for _ in range(3))
        self.v = self.zeros()
        if cfg.gradient:
            self.weights = (*self.weights, "u")
        self.alpha_v, self.alpha_w = self.step_size("learning_rate"), self.step_size("advantage_learning_rate")
        self.alpha_theta = self.step_size("actor_learning_rate")
        self.alpha_u = self.step_size("correction_learning_rate")

    def _noise(self, num_steps: int) -> Floats:
        return self.streams.normal("actions", (num_steps, self.num_envs, self.action_size), axis=1)

    def _choose(self, features: Indices, noise: Floats) -> Floats:
        """mu(s) + sigma_beta N(0, 1)."""
        return read(self.theta, features) + np.reshape(self.cfg.noise_std, (-1, 1, 1)) * noise

    def _learn(self, sample: Sample, n: int) -> Floats:
        """Equations 19 to 22, or 23 to 27 of COPDAC-GQ."""
        x, successors = sample.features, sample.successors
        distance = sample.actions - read(self.theta, x)  # a - mu(s), [R, A]
        by_action = read(self.w, x)  # dQ/da, [R, A]
        q_values = action_values(distance, by_action, read(self.v, x))
        delta = sample.rewards + sample.discounts * read(self.v, successors) - q_values
        add(self.theta, x, self.alpha_theta[:, None] * by_action)
        add(self.w, x, (self.alpha_w * delta)[:, None] * distance)
        add(self.v, x, self.alpha_v * delta)
        if self.cfg.gradient:
            expected = (distance * read(self.u, x)).sum(-1)  # phi(s, a)^T u, [R]
            add(self.v, successors, -self.alpha_v * sample.discounts * expected)
            add(self.u, x, (self.alpha_u * (delta - expected))[:, None] * distance)
        return delta

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, A] for observations [R, N, O]: mu(s), or beta's when streams are given."""
        features = self.coder(observations)
        actions = read(self.theta, features)
        if streams is not None:
            actions = self._choose(features, streams.normal("actions", actions.shape[1:]))
        return self.to_task(actions)  # type: ignore[no-any-return]


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("copdac_q")
