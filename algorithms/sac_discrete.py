"""Soft actor-critic for discrete actions: Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings",
arXiv:1910.07207.

SAC whose policy and critics have one output for each action, so that every expectation over actions is a sum in place
of a sample (section 4, its algorithm 1):

    V'(s) = sum_a pi(a|s) ( min_i Q'_i(s, a) - alpha log pi(a|s) ),  y = r + gamma V'(s')       (equation 10)
    descend  mean_b (Q_i(s, a) - y)^2 / 2
    descend  mean_b sum_a pi(a|s) ( alpha log pi(a|s) - min_i Q_i(s, a) )
    descend  mean_b sum_a pi(a|s) ( -alpha (log pi(a|s) + H0) ) in alpha                        (equation 11)

with H0 near the entropy of the uniform policy, 0.98 log A. Nothing is sampled but the transitions and what is done.

Axes: those of SAC, critics' outputs [R, C, B, A], A the number of actions.

Departures: those of SAC; and
- Low-dimensional observations and a multilayer perceptron in place of the paper's convolutions.
- Biases and weights start uniform in 1/sqrt(in), as in the other files; the code named below has He's for its
  convolutions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import sac
from algorithms.common.config import PerRun
from algorithms.common.distributions import Categorical
from algorithms.common.off_policy import STEPS, Learned
from algorithms.common.on_policy import require_positive
from algorithms.common.replay import Transitions
from algorithms.common.schedules import crossings
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """The defaults are the paper's on Atari, as toshikwa/sac-discrete.pytorch@40c9d24 config/sacd.yaml repeats them."""

    target_entropy: PerRun = 0.98  # H0 as a share of log A, the entropy of the uniform policy
    tau: PerRun = 1.0
    target_period: PerRun = 8_000.0  # env_steps from one update of the target networks to the next
    train_period: int = 4
    random_steps: int = 20_000
    learning_starts: int = 20_000
    batch_size: int = 64
    adam_epsilon: float = 1e-4  # vwxyzjn/cleanrl@004f8a0 sac_atari.py

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "target_period")


def soft_values(q_values: Tensor, log_probs: Tensor, alpha: Tensor) -> Tensor:
    """V(s) = sum_a pi(a|s) (Q(s, a) - alpha log pi(a|s)) (equation 10): [R, B, A] each, alpha [R, 1] -> [R, B]."""
    return (log_probs.exp() * (q_values - alpha.unsqueeze(2) * log_probs)).sum(2)


def policy_slopes(q_values: Tensor, log_probs: Tensor, alpha: Tensor) -> Tensor:
    """The derivative of -V(s), which pi descends, with respect to the logits of pi, Q held fixed: [R, B, A].

    It is pi(a|s) (V(s) - Q(s, a) + alpha log pi(a|s)).
    """
    worth = q_values - alpha.unsqueeze(2) * log_probs
    return log_probs.exp() * (soft_values(q_values, log_probs, alpha).unsqueeze(2) - worth)


class Agent(sac.Agent):
    """SAC-Discrete for R runs at once."""

    memory = (*sac.Agent.memory, "updates")
    update_noise = ()

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.num_actions: int = envs.num_actions
        sizes = {"outputs_per_action": self.num_actions, "outputs_per_critic": self.num_actions}
        super().__init__(cfg, envs, seeds, device, critics_see_actions=False, **sizes)
        self.target_entropy = math.log(self.num_actions) * self.coef["target_entropy"]  # H0 [R, 1]
        self.updates = 0

    def _look_at_actions(self) -> int:
        return 1  # the index of an action

    def _random_actions(self) -> np.ndarray:
        shape = (STEPS, self.cfg.num_envs)
        return self.streams.draw("random actions", lambda rng: rng.integers(self.num_actions, size=shape), axis=1)

    def _explorer(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """Samples of the policy, their noise from the stream `actions`."""
        gumbel = self.streams.gumbel("actions", (STEPS, self.cfg.num_envs, self.num_actions), axis=1)
        return lambda observations, t: (self.actor_outputs(observations) + gumbel[t]).argmax(-1)

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """The task takes the indices as they are."""
        return actions

    def _learn(self, uniform: np.ndarray, *noise: Tensor) -> Learned:
        """One update of Q_i, pi, alpha and Q'_i."""
        batch, alpha = self.replay.sample(uniform), self.temperature["log_alpha"].detach().exp()  # [R, 1]
        learned = self._update_critics(batch, self._targets(batch, alpha))
        entropy = self._improve(batch, alpha)
        self._update_temperature(-entropy, alpha)  # the mean of log pi over actions is minus the entropy
        self.updates += 1
        passed = self.updates * self.cfg.train_period  # env_steps since the first update
        due = crossings(passed, self.cfg.train_period, self.cfg.target_period) > 0
        self.critics.follow(np.where(due, self.cfg.tau, 0.0))
        return learned | {"entropy": entropy, "alpha": alpha}

    def _q_values(self, parameters: Any, observations: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Q_i(s, .) [R, C, B, A], and what the critics' backward pass needs."""
        return self.critics.forward(parameters, observations, observations[..., :0])

    @torch.no_grad()
    def _targets(self, batch: Transitions, alpha: Tensor, *noise: Tensor) -> Tensor:
        """y: [R, B]."""
        log_probs = Categorical(self.actor.forward(self.parameters, batch.next_observations)[-1]).log_probs
        next_q_values, _ = self._q_values(self.critics.target, batch.next_observations)
        return batch.rewards + batch.discounts * soft_values(next_q_values.amin(1), log_probs, alpha)

    @torch.no_grad()
    def _update_critics(self, batch: Transitions, targets: Tensor) -> Learned:
        """One step down the mean of (Q_i(s, a) - y)^2 / 2, for each critic."""
        outputs, layers = self._q_values(self.critics.parameters, batch.observations)
        actions = torch.arange(self.num_actions, device=outputs.device)
        taken = (batch.actions == actions).float().unsqueeze(1)  # [R, 1, B, A], 1 or 0
        q_values = (outputs * taken).sum(3, keepdim=True)
        slopes, learned = self._critic_slopes(q_values, targets)
        self.critics.backward(layers, slopes * taken)
        self.critic_optimizer.step(np.repeat(self.cfg.learning_rate, self.critics.num_critics))
        return learned | {"q_values": q_values}

    @torch.no_grad()
    def _improve(self, batch: Transitions, alpha: Tensor) -> Tensor:
        """One step of pi down -V(s); returns its entropy [R, B] before that."""
        q_values = self._q_values(self.critics.parameters, batch.observations)[0].amin(1)
        layers = self.actor.forward(self.parameters, batch.observations)
        policy = Categorical(layers[-1])
        slopes = policy_slopes(q_values, policy.log_probs, alpha)
        self.actor.backward(self.parameters, layers, slopes / self.cfg.batch_size)
        self.actor_optimizer.step(self.cfg.actor_learning_rate)
        return policy.entropy()

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N] for observations [R, N, O]: the likeliest, or a sample when streams are given."""
        logits = self.actor_outputs(observations)
        if streams is not None:
            logits = logits + streams.gumbel("actions", logits.shape[1:])
        return logits.argmax(-1)

    @torch.no_grad()
    def values(self, observations: np.ndarray) -> np.ndarray:
        """min_i Q_i(s, a) [R, N] of observations [R, N, O] at the likeliest action."""
        q_values, _ = self._q_values(self.critics.parameters, torch.from_numpy(observations).to(self.device))
        return np.take_along_axis(q_values.amin(1).cpu().numpy(), self.act(observations)[..., None], 2)[..., 0]


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("sac_discrete")
