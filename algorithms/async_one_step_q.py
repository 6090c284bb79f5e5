"""Asynchronous one-step Q-learning: Mnih et al. 2016, arXiv:1602.01783, algorithm 1.

W actor-learners run side by side (`common.asynchronous`) in place of a replay memory: what they see at the same time is
as mixed as what DQN draws. Each acts epsilon-greedily, and accumulates over I_AsyncUpdate steps the gradient of

    (y - Q(s, a; theta))^2,   y = r + gamma max_a' Q(s', a'; theta-),   y = r where the task ended at s',

before it applies it to the shared theta by RMSProp with shared mean squares. The target network's theta- is shared as
well; it is overwritten by theta every I_target steps of all workers together.

Every worker explores in its own way: its epsilon falls from 1 to a last value that is drawn for it once, 0.1, 0.01 or
0.5 with probability 0.4, 0.3 and 0.3 (section 8).

The files of its siblings hold what they change: the targets (`_targets`), and what is done before them.

Axes: observations [K, T, ...], outputs of the network [K, A, T]; T = I_AsyncUpdate steps, A actions, and K = R W
workers of R runs.

Departures from the paper: those of `common.asynchronous`, and
- A worker acts and differentiates by a copy of theta from the beginning of its turn, as in algorithms S2 and S3, and
  not by the shared theta itself.
- Epsilon stays the same for a turn.
- Low-dimensional observations and a multilayer perceptron, or `convolutions`.
- A time limit is no end of the task: only terminations stop bootstrapping.
- Periods are in env_steps, of four frames each, and divided by 25 for classic control's 500,000, as DQN's are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from algorithms.common.asynchronous import ActorLearners, AsynchronousAgent, require_workers
from algorithms.common.columns import Part, QNetwork
from algorithms.common.config import PerRun, require
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.rollouts import Rollout, by_run
from algorithms.common.schedules import linear
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's (section 8), its periods / 25 as said above."""

    schedule: Literal["hogwild", "serial"] = "hogwild"  # of the workers' turns
    learning_rate: PerRun = 7e-4  # within the range that the paper drew from, 1e-4 to 1e-2; A3C's best
    anneal_steps: PerRun = math.inf  # env_steps over which it falls linearly to 0, in the paper the whole training
    gamma: PerRun = 0.99
    epsilon_start: PerRun = 1.0
    epsilon_ends: tuple[float, ...] = (0.1, 0.01, 0.5)  # a worker's last epsilon is one of these,
    epsilon_shares: tuple[float, ...] = (0.4, 0.3, 0.3)  # with these probabilities
    epsilon_steps: PerRun = 40_000.0  # env_steps from the first to the last; paper: 1,000,000 (4M frames)
    evaluation_epsilon: PerRun = 0.05  # of `act` with streams
    target_period: PerRun = 400.0  # I_target, env_steps; paper: 10,000 (40,000 frames)
    num_envs: int = 16  # W, the workers: each has one environment
    num_steps: int = 5  # I_AsyncUpdate, or t_max
    convolutions: Literal["none", "minatar", "nature"] = "none"  # before the hidden layers
    hidden_sizes: tuple[int, ...] = (120, 84)  # as DQN's; paper: 256 after its convolutions
    max_grad_norm: PerRun = math.inf
    optimizer_epsilon: float = 1e-5  # A3C's
    rmsprop_decay: float = 0.99  # alpha
    rmsprop_start: float = 0.0  # first value of the mean square
    epsilon_inside_root: bool = True  # False: torch's RMSProp
    share_statistics: bool = True  # the mean squares: "shared RMSProp"; False: each worker has its own

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "anneal_steps", "epsilon_steps", "target_period", "hidden_sizes")
        require_positive(self, "max_grad_norm", "optimizer_epsilon")
        require_shares(self, "gamma", "epsilon_start", "epsilon_ends", "evaluation_epsilon", "rmsprop_decay")
        require_workers(self)
        require(
            len(self.epsilon_shares) == len(self.epsilon_ends) and math.isclose(sum(self.epsilon_shares), 1),
            f"epsilon_shares is {self.epsilon_shares}; it must hold a probability for each of epsilon_ends",
        )


def greedy(q_values: np.ndarray, epsilon: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Actions [K, B] that are random with probability `epsilon` [K], else those of the largest of q_values [K, B, A];
    `uniform` [K, B, 2] in [0, 1)."""
    explore = uniform[..., 0] < epsilon[:, None]
    return np.where(explore, (uniform[..., 1] * q_values.shape[-1]).astype(np.int64), q_values.argmax(-1))


class Workers(ActorLearners):
    """Actor-learners of one-step Q."""

    memory = (*ActorLearners.memory, "epsilon_end")

    def _make_networks(self) -> None:
        cfg = self.cfg
        self.net = network(cfg, self.envs)
        self.acting = self.net.acting(self.own)
        assert self.shared.target is not None
        self.part, self.target_part = (Part(weights, slice(None)) for weights in (self.own, self.shared.target))
        self.actions = torch.arange(self.envs.num_actions)[:, None]  # [A, 1]
        drawn = self.streams.draw("epsilon", lambda rng: rng.random(1))[:, 0]
        bounds = np.cumsum(cfg.epsilon_shares[:-1])
        self.epsilon_end = np.array(cfg.epsilon_ends)[np.searchsorted(bounds, drawn, "right")]  # [K]

    def _epsilon(self) -> np.ndarray:
        """[K], at the present T."""
        cfg, env_steps = self.each, np.array([self.shared.env_steps])
        return linear(cfg.epsilon_start, self.epsilon_end, cfg.epsilon_steps, env_steps)[0]

    def _choose(self, observations: np.ndarray, epsilon: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Epsilon-greedy actions [K, B] for observations [K, B, ...] by theta'; `uniform` [K, B, 2]."""
        return greedy(self.acting(observations).squeeze(-1), epsilon, uniform)

    def _policy(self) -> Callable[[np.ndarray, int], np.ndarray]:
        uniform = self.streams.draw("actions", lambda rng: rng.random((self.cfg.num_steps, 1, 2)), axis=1)
        epsilon = self._epsilon()
        return lambda observations, t: self._choose(observations, epsilon, uniform[t])

    def _gradient(self, rollout: Rollout) -> dict[str, Tensor]:
        """Of sum_i (y_i - Q(s_i, a_i; theta'))^2, the targets held fixed."""
        targets = self._targets(rollout)
        inputs = by_run(rollout.observations).flatten(2).transpose(1, 2)
        outputs, tape = self.net.forward(self.part, inputs)  # [K, A, T]
        taken = (by_run(rollout.actions).unsqueeze(1) == self.actions).float()  # [K, A, T], 1 or 0
        q_values = (outputs * taken).sum(1)  # [K, T]
        td_errors = targets - q_values
        self.net.backward(self.part, tape, taken * (-2 * td_errors).unsqueeze(1))
        epsilon = torch.from_numpy(self._epsilon())
        return {"loss": td_errors.square().mean(1), "q_values": q_values.mean(1), "epsilon": epsilon}

    def _targets(self, rollout: Rollout) -> Tensor:
        """y = r + gamma max_a' Q(s', a'; theta-), r where the task ended: [K, T]."""
        return self._one_step(rollout, self._target_values(rollout).amax(-1))

    def _one_step(self, rollout: Rollout, next_values: Tensor) -> Tensor:
        """r + gamma v(s') [K, T] of next_values v(s') [K, T]; r where the task ended."""
        goes_on = ~by_run(rollout.terminations)
        return by_run(rollout.rewards) + self.coef["gamma"] * goes_on * next_values

    def _target_values(self, rollout: Rollout) -> Tensor:
        """Q(s', .; theta-) [K, T, A] of the rollout's successors."""
        successors = by_run(rollout.next_observations).flatten(2)  # [K, T, O]
        inputs = successors.view(self.num_runs, -1, successors.shape[2]).transpose(1, 2)  # theta- is there for R runs
        outputs, _ = self.net.forward(self.target_part, inputs)
        return outputs.transpose(1, 2).reshape(*successors.shape[:2], -1)


def network(cfg: Any, envs: Any) -> QNetwork:
    """Action values of observations."""
    return QNetwork(envs.observation_shape, envs.num_actions, cfg.hidden_sizes, cfg.convolutions)


class Agent(AsynchronousAgent):
    """Asynchronous one-step Q-learning for R runs at once."""

    learners_class: ClassVar[type[ActorLearners]] = Workers
    with_target = True

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        self.net = network(self.cfg, self.envs)
        return self.net.shapes()

    def _initialize(self) -> None:
        self.net.initialize(self.parameters, self.streams["q"])
        self.acting = self.net.acting(self.parameters)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """Q(s, .; theta) [R, N, A] of observations [R, N, ...]."""
        return self.acting(observations).squeeze(-1)

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N] for observations [R, N, O]: greedy, or `evaluation_epsilon`-greedy when streams are given."""
        q_values = self.q_values(observations)
        if streams is None:
            return q_values.argmax(-1)
        uniform = streams.draw("actions", lambda rng: rng.random((q_values.shape[1], 2)))  # [R, N, 2]
        return greedy(q_values, self.cfg.evaluation_epsilon, uniform)

    def values(self, observations: np.ndarray) -> np.ndarray:
        """max_a Q(s, a; theta) [R, N] of observations [R, N, ...]."""
        return self.q_values(observations).max(-1)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("async_one_step_q")
