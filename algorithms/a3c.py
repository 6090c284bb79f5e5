"""Asynchronous advantage actor-critic, A3C: Mnih et al. 2016, arXiv:1602.01783, algorithm S3.

W actor-learners run side by side (`common.asynchronous`). A turn of one of them, with its copy theta' of the weights:

    act for t_max steps by pi(.|s; theta'),
    R = 0 where the task has ended, V(s; theta') where it goes on; backwards through the steps:
        R <- r_i + gamma R
        d theta <- d theta + grad log pi(a_i|s_i; theta') (R - V(s_i; theta')) + beta grad H(pi(.|s_i; theta'))
        d theta_v <- d theta_v + d (R - V(s_i; theta'))^2 / d theta'
    apply d theta to the shared weights by RMSProp, whose mean squares are shared too; copy them to theta'.

With one worker it is A2C with one environment, whose gradient is this one divided by t_max.

Axes: rollouts [T, K, 1, ...], batches [K, T, ...]; T = t_max steps, and K = R W workers of R runs.

Departures from the paper: those of `common.asynchronous`, and
- Policy and value networks share nothing and are small perceptrons, as in the paper's experiments on MuJoCo (its
  section 9), and not a convolutional network with two heads; the variance of a continuous policy is a parameter and not
  an output of the network, and actions get the settings of discrete ones.
- Time limits bootstrap from the true final observation (`time_limit_bootstrap`); with 0 a truncation counts as a
  termination.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from algorithms.common.asynchronous import ActorLearners, AsynchronousAgent, require_workers
from algorithms.common.config import PerRun
from algorithms.common.layers import MLP
from algorithms.common.on_policy import INITIALIZATIONS, require_positive, require_shares
from algorithms.common.policies import Policy
from algorithms.common.returns import gae
from algorithms.common.rollouts import Rollout, by_run, by_time, evaluate
from algorithms.common.streams import Streams

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's (section 8). What it leaves open is A2C's here; the preset `authors` has what they said about it."""

    schedule: Literal["hogwild", "serial"] = "hogwild"  # of the workers' turns
    learning_rate: PerRun = 7e-4  # the best of the paper's, drawn from 1e-4 to 1e-2, by the authors' word (`authors`)
    anneal_steps: PerRun = math.inf  # env_steps over which it falls linearly to 0, in the paper the whole training
    gamma: PerRun = 0.99
    ent_coef: PerRun = 0.01  # beta
    vf_coef: PerRun = 2.0  # times half the squared error; 2 is algorithm S3's
    num_envs: int = 16  # W, the workers: each has one environment
    num_steps: int = 5  # t_max
    hidden_sizes: tuple[int, ...] = (64, 64)
    max_grad_norm: PerRun = math.inf  # over policy and value together
    optimizer_epsilon: float = 1e-5
    rmsprop_decay: float = 0.99  # alpha
    rmsprop_start: float = 0.0  # first value of the mean square
    epsilon_inside_root: bool = True  # False: torch's RMSProp
    share_statistics: bool = True  # the mean squares: "shared RMSProp"; False: each worker has its own
    time_limit_bootstrap: PerRun = 1.0  # 0: a truncation counts as a termination

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal", "fan_in"] = "normc"
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "anneal_steps", "max_grad_norm", "optimizer_epsilon")
        require_shares(self, "gamma", "rmsprop_decay")
        require_workers(self)


def networks(cfg: Config, envs: Any) -> tuple[Policy, MLP]:
    """The policy, and a critic beside it; their weights are in the order of these."""
    policy = Policy(envs, cfg.hidden_sizes)
    return policy, MLP("critic", (envs.observation_shape[0], *cfg.hidden_sizes, 1), scratch=policy.network.scratch)


class Workers(ActorLearners):
    """A3C's actor-learners."""

    def _make_networks(self) -> None:
        self.policy, self.critic = networks(self.cfg, self.envs)
        self.policy.bind(self.own)

    def _policy(self) -> Callable[[np.ndarray, int], np.ndarray]:
        return self.policy.sampler(self.streams, self.cfg.num_steps, 1)

    def _gradient(self, rollout: Rollout) -> dict[str, Tensor]:
        """Of sum_i( -log pi(a_i|s_i) (R_i - V(s_i)) - beta H(pi) + c (R_i - V(s_i))^2 / 2 ), where R_i and the V beside
        log pi are held fixed."""
        observations, actions = by_run(rollout.observations), by_run(rollout.actions)
        critic_layers = self.critic.forward(self.own, observations)
        values = critic_layers[-1].squeeze(-1)  # [K, T]
        next_values = evaluate(self.critic, self.own, by_run(rollout.next_observations)).squeeze(-1)
        advantages = self._advantages(rollout, values, next_values)
        returns = advantages + values  # R_i
        by_values = (values - returns) * self.coef["vf_coef"]
        self.critic.backward(self.own, critic_layers, by_values.unsqueeze(-1))
        layers, log_std = self.policy.network.forward(self.own, observations), self.policy.log_std()
        policy = self.policy.distribution(layers[-1], log_std)
        self.policy.write_gradient(layers, *policy.gradient(actions, -advantages, w_h=-self.coef["ent_coef"]))
        return {"value_loss": advantages.square().mean(1), "entropy": policy.entropy().mean(1)}

    def _advantages(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """R_i - V(s_i) [K, T], given V of the observations and of their successors: generalized advantage estimates
        with lambda = 1 are that."""
        cut = rollout.truncations & (self.each.time_limit_bootstrap == 0)[:, None]
        entries = (
            rollout.rewards,
            by_time(values, self.cfg.num_steps),
            by_time(next_values, self.cfg.num_steps),
            rollout.terminations | cut,
            rollout.terminations | rollout.truncations,
            self.each.gamma,
        )
        return by_run(gae(*entries, np.ones_like(self.each.gamma)))


class Agent(AsynchronousAgent):
    """A3C for R runs at once."""

    learners_class: ClassVar[type[ActorLearners]] = Workers

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        self.policy, self.critic = networks(self.cfg, self.envs)
        return self.policy.shapes() | self.critic.shapes()

    def _initialize(self) -> None:
        hidden, policy_head, critic_head, bias = INITIALIZATIONS[self.cfg.initialization]
        self.policy.initialize(self.parameters, self.streams["actor"], hidden, policy_head, bias)
        self.critic.initialize(self.parameters, self.streams["critic"], hidden, critic_head, bias)

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, ...] for observations [R, N, O]: the mode, or a sample when streams are given."""
        return self.collector.clip(self.policy.act(observations, streams))


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("a3c")
