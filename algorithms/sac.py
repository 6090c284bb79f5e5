"""Soft actor-critic: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905.

The policy maximizes reward and entropy, the latter weighted by a temperature alpha. Its algorithm 1, after every step:

    y = r + gamma ( min_i Q'_i(s', a') - alpha log pi(a'|s') ),  a' ~ pi(.|s')
    descend  mean_b (Q_i(s, a) - y)^2 / 2                                                       (equation 5)
    descend  mean_b ( alpha log pi(a|s) - min_i Q_i(s, a) ),  a = tanh(m(s) + std(s) eps)       (equation 9)
    descend  mean_b ( -alpha log pi(a|s) - alpha H0 ) in alpha                                  (equation 18)

with the gradient of the second through the sample. A fixed temperature is `automatic` 0; it is the inverse of the
reward scale of the first version, arXiv:1801.01290.

Axes: observations [R, N, O], batches [R, B, ...], critics' outputs [R, C, B, 1]; R runs, N environments, B drawn
transitions, A numbers of an action, C critics.

Departures from the paper:
- The parameter that Adam moves is log alpha, as in rail-berkeley/softlearning@90247f2 sac.py.
- Uniformly random actions at first, as there (examples/development/variants.py: ten episodes of 1,000 steps).
- A time limit is no end of the task: only terminations stop bootstrapping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun
from algorithms.common.distributions import SquashedGaussian
from algorithms.common.layers import Parameters
from algorithms.common.off_policy import STEPS, Learned, OffPolicyAgent, check_settings
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.optimizers import Adam
from algorithms.common.replay import Transitions
from algorithms.common.streams import Streams

SUPPORTS = {"continuous"}
LOG_STD = (-20.0, 2.0)  # bounds, SamsungLabs/tqc_pytorch@9099c59 structures.py; the paper does not state any


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's (appendix D, Table 1)."""

    learning_rate: PerRun = 3e-4  # of Q
    actor_learning_rate: PerRun = 3e-4
    alpha_learning_rate: PerRun = 3e-4
    gamma: PerRun = 0.99
    tau: PerRun = 0.005
    automatic: PerRun = 1.0  # 0: the temperature stays what it is
    alpha: PerRun = 1.0  # the temperature at first (rail-berkeley/softlearning@90247f2)
    target_entropy: PerRun = -1.0  # H0 for each number of the action
    num_critics: int = 2  # C, of whose values the least counts
    train_period: int = 1  # env_steps per update
    random_steps: int = 10_000  # env_steps of uniformly random actions at first
    learning_starts: int = 10_000  # env_steps before the first update
    buffer_size: int = 1_000_000  # transitions
    batch_size: int = 256  # B
    num_envs: int = 1
    hidden_sizes: tuple[int, ...] = (256, 256)
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_settings(self)
        require_positive(self, "alpha_learning_rate", "alpha", "num_critics")
        require_shares(self, "automatic")


def soft_targets(
    rewards: Tensor, discounts: Tensor, next_values: Tensor, next_log_probs: Tensor, alpha: Tensor
) -> Tensor:
    """y = r + gamma (Q'(s', a') - alpha log pi(a'|s')), and r where the task ended at s': [R, B], alpha [R, 1]."""
    return rewards + discounts * (next_values - alpha * next_log_probs)


def temperature_slope(log_probs: Tensor, alpha: Tensor, target_entropy: Tensor) -> Tensor:
    """The derivative of equation 18 with respect to log alpha, [R, 1]: -alpha mean_b(log pi + H0).

    `log_probs` [R, B], `alpha` and `target_entropy` [R, 1].
    """
    return -alpha * (log_probs + target_entropy).mean(1, keepdim=True)


class Agent(OffPolicyAgent):
    """SAC for R runs at once."""

    memory = (*OffPolicyAgent.memory, "temperature", "temperature_optimizer")
    update_noise: ClassVar[tuple[str, ...]] = ("policy", "next actions")
    metrics = (*OffPolicyAgent.metrics, "entropy", "alpha")

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu", **structure: Any):
        structure = {"num_critics": cfg.num_critics, "outputs_per_action": 2} | structure
        super().__init__(cfg, envs, seeds, device, **structure)
        self.temperature = Parameters(self.num_runs, {"log_alpha": (1,)}, device)
        self.temperature.fill("log_alpha", np.log(cfg.alpha)[:, None])
        self.temperature_optimizer = Adam(self.temperature, cfg.adam_epsilon)
        self.target_entropy = self.action_size * self.coef["target_entropy"]  # H0 [R, 1]

    def _explorer(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """Samples of the policy, their noise from the stream `actions`."""
        noise = self.streams.normal("actions", (STEPS, self.cfg.num_envs, self.action_size), axis=1)
        return lambda observations, t: self._sample(observations, noise[t])

    def _sample(self, observations: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """tanh(m(s) + std(s) noise) [R, N, A], without noise tanh(m(s))."""
        outputs = self.actor_outputs(observations)
        mean = outputs[..., : self.action_size]
        if noise is not None:
            mean = mean + np.exp(np.clip(outputs[..., self.action_size :], *LOG_STD)) * noise
        return np.tanh(mean)

    def _policy(self, observations: Tensor) -> tuple[SquashedGaussian, list[Tensor]]:
        """pi(.|s) for observations [R, B, O], and what the actor's backward pass needs."""
        layers = self.actor.forward(self.parameters, observations)
        mean, log_std = layers[-1].split(self.action_size, 2)
        return SquashedGaussian(mean, log_std.clamp(*LOG_STD)), layers

    def _learn(self, uniform: np.ndarray, *noise: Tensor) -> Learned:
        """One update of Q_i, pi, alpha and Q'_i."""
        batch, (policy_noise, *next_noise) = self.replay.sample(uniform), noise
        alpha = self.temperature["log_alpha"].detach().exp()  # [R, 1]
        learned = self._update_critics(batch, self._targets(batch, alpha, *next_noise))
        q_values, log_probs = self._update_actor(batch, alpha, policy_noise)
        self._update_temperature(log_probs, alpha)
        self._update_targets(batch, q_values - alpha * log_probs)
        return learned | {"entropy": -log_probs, "alpha": alpha}

    @torch.no_grad()
    def _targets(self, batch: Transitions, alpha: Tensor, *noise: Tensor) -> Tensor:
        """What the transitions say Q(s, a) should be: [R, B]."""
        policy, _ = self._policy(batch.next_observations)
        next_actions, next_log_probs = policy.sample(*noise)
        next_values, _ = self.critics.forward(self.critics.target, batch.next_observations, next_actions)
        return soft_targets(batch.rewards, batch.discounts, self._estimate(next_values), next_log_probs, alpha)

    @torch.no_grad()
    def _update_critics(self, batch: Transitions, targets: Tensor) -> Learned:
        """One step down equation 5, for each critic."""
        outputs, layers = self.critics.forward(self.critics.parameters, batch.observations, batch.actions)
        slopes, learned = self._critic_slopes(outputs, targets)
        self.critics.backward(layers, slopes)
        self.critic_optimizer.step(np.repeat(self.cfg.learning_rate, self.critics.num_critics))
        return learned | {"q_values": outputs}

    def _critic_slopes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Learned]:
        """d loss / d outputs [R, C, B, 1], and the samples' losses, for targets [R, B]."""
        errors = outputs - targets[:, None, :, None]
        return errors / self.cfg.batch_size, {"critic_loss": 0.5 * errors.square()}

    @torch.no_grad()
    def _update_actor(self, batch: Transitions, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step down equation 9; returns Q(s, a) and log pi(a|s) of the sample, [R, B] each."""
        size = self.cfg.batch_size
        policy, policy_layers = self._policy(batch.observations)
        actions, log_probs = policy.sample(noise)
        outputs, layers = self.critics.forward(self.critics.parameters, batch.observations, actions)
        by_actions = self.critics.to_actions(layers, self._estimate_slopes(outputs) / -size)
        by_mean, by_log_std = policy.gradient(noise, actions, by_actions, alpha / size)
        inside = policy_layers[-1][..., self.action_size :] == policy.log_std  # of LOG_STD
        self.actor.backward(self.parameters, policy_layers, torch.cat((by_mean, by_log_std * inside), 2))
        self.actor_optimizer.step(self.cfg.actor_learning_rate)
        return self._estimate(outputs), log_probs

    def _estimate_slopes(self, outputs: Tensor) -> Tensor:
        """d Q(s, a) / d outputs [R, C, B, 1], where Q is the least of the critics': 1 for that one, 0 for others."""
        least = outputs.min(1, keepdim=True).indices  # the first of equals, as argmin, at a tenth of its time
        return torch.zeros_like(outputs).scatter_(1, least, 1.0)

    @torch.no_grad()
    def _update_temperature(self, log_probs: Tensor, alpha: Tensor) -> None:
        """One step down equation 18, in the runs whose temperature is automatic."""
        active = self.cfg.automatic > 0
        if active.any():
            self.temperature.grads["log_alpha"].copy_(temperature_slope(log_probs, alpha, self.target_entropy))
            self.temperature_optimizer.step(self.cfg.alpha_learning_rate, active=active)

    def _update_targets(self, batch: Transitions, soft_values: Tensor) -> None:
        """What the targets are made of follows; `soft_values` [R, B] are Q(s, a) - alpha log pi(a|s)."""
        self.critics.follow(self.cfg.tau)

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, A] for observations [R, N, O]: tanh(m(s)), or a sample when streams are given."""
        shape = observations.shape[1], self.action_size
        return self.to_box(self._sample(observations, None if streams is None else streams.normal("actions", shape)))

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return super().diverged() | ~self.temperature.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run, and log alpha where it is learned."""
        learned = self.temperature.of_run(run) if self.cfg.automatic[run] > 0 else {}
        return super().parameters_of(run) | learned


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("sac")
