"""Deep deterministic policy gradient: Lillicrap et al. 2015, "Continuous control with deep reinforcement learning",
arXiv:1509.02971.

Its algorithm 1: act by a deterministic policy mu with noise, keep the transitions, and after every step descend

    L = mean_b( r + gamma Q'(s', mu'(s')) - Q(s, a) )^2,

then ascend the deterministic policy gradient mean_b grad_a Q(s, a)|_{a = mu(s)} grad_theta mu(s) (equation 6). Q' and
mu' are networks whose weights follow those of Q and mu, theta' <- tau theta + (1 - tau) theta'. With tau = 1 there are
no target networks: Q and mu are their own.

The noise is an Ornstein-Uhlenbeck process, x <- x - noise_theta x + noise_std N(0, 1), which begins at 0 with every
episode; with noise_theta = 1 it is independent Gaussian noise. With `prioritized`, transitions are drawn by priority
and weighted as in prioritized_dqn.py. With `batch_norm`, the state and the sums of mu's hidden layers are normalized
(section 3): by the moments of the batch in updates, by averages of these in acting and in targets. (The next states of
a batch have moments of their own; by those they would look like the states they came from.)

Axes: observations [R, N, O], batches [R, B, ...], critics' outputs [R, 1, B, 1]; R runs, N environments, B drawn
transitions, A numbers of an action.

Departures from the paper:
- Low-dimensional observations only. Batch normalization is off unless asked for.
- The critic sees the action at its first layer, not its second, as in sfujim/TD3@6a9f761 OurDDPG.py and most others.
  Of what comes before the action, which is what the paper normalizes, there is the state alone.
- A time limit is no end of the task: only terminations stop bootstrapping.
- Actions are numbers in [-1, 1] for the critic and the noise (see `common/off_policy.py`), and noisy ones are clipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.batch_norm import NormalizedMLP, evaluation
from algorithms.common.config import PerRun, require
from algorithms.common.layers import MLP, Parameters, tanh_
from algorithms.common.off_policy import STEPS, Learned, OffPolicyAgent, check_settings
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.replay import PrioritizedReplay, Replay, Transitions, importance_exponent
from algorithms.common.streams import Streams

SUPPORTS = {"continuous"}
Correction = tuple[np.ndarray, Tensor] | None  # places and weights of prioritized transitions


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's (section 7, "Experiment details")."""

    learning_rate: PerRun = 1e-3  # of Q
    actor_learning_rate: PerRun = 1e-4
    gamma: PerRun = 0.99
    tau: PerRun = 0.001  # 1: no target networks
    weight_decay: PerRun = 1e-2  # of Q: times the weights, added to the gradient as in sfujim/TD3@6a9f761 DDPG.py
    noise_theta: PerRun = 0.15  # share of the noise that is lost in a step; 1: independent from step to step
    noise_std: PerRun = 0.2  # sigma, of what is added in a step; half the action's range is 1
    train_period: int = 1  # env_steps per update
    random_steps: int = 0  # env_steps of uniformly random actions at first
    learning_starts: int = 64  # env_steps before the first update: a batch; the paper does not say
    buffer_size: int = 1_000_000  # transitions
    batch_size: int = 64  # B
    num_envs: int = 1
    prioritized: bool = False  # replay by priority, arXiv:1511.05952
    priority_exponent: PerRun = 0.6  # its alpha
    importance_exponent: PerRun = 0.4  # its beta at the start, which rises linearly to 1
    importance_steps: PerRun = 1_000_000.0  # env_steps until it is 1
    batch_norm: bool = False  # the paper's own has it
    hidden_sizes: tuple[int, ...] = (400, 300)
    last_layer: float = 3e-3  # weights of the last layers start uniform in +- this; 0: in 1/sqrt(in), as the others
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_settings(self)
        require_positive(self, "importance_steps")
        require_shares(self, "noise_theta", "priority_exponent", "importance_exponent")
        for name in ("weight_decay", "noise_std", "last_layer"):
            value = np.asarray(getattr(self, name))
            require(bool(np.all(value >= 0)), f"{name} is {value}; it must not be negative")


def td_targets(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """y = r + gamma Q'(s', a'), and r where the task ended at s' (its discount is 0): [R, B] each."""
    return rewards + discounts * next_values


def noise_step(noise: np.ndarray, theta: np.ndarray, std: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """x - theta x + sigma N(0, 1): [R, N, A], `theta` and `std` [R, 1, 1]."""
    return (1 - theta) * noise + std * normal


class Agent(OffPolicyAgent):
    """DDPG for R runs at once."""

    memory = (*OffPolicyAgent.memory, "target_parameters", "noise")
    replay: Any

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu", **structure: Any):
        super().__init__(cfg, envs, seeds, device, last_layer=cfg.last_layer, **structure)
        self.target_parameters = Parameters(self.num_runs, self.actor.shapes(), device)  # of mu'
        self.target_parameters.copy_(self.parameters)
        self.noise = np.zeros((self.num_runs, cfg.num_envs, self.action_size), np.float32)  # x
        self.normalized = [x for x in (self.actor, self.critics.network) if isinstance(x, NormalizedMLP)]
        if self.normalized:
            self.actor_averages, self.critic_averages = (network.averages for network in self.normalized)
            self.memory = (*self.memory, "actor_averages", "critic_averages")  # type: ignore[misc]

    def _perceptron(self, name: str, sizes: Sequence[int], rows: int) -> MLP:
        if not self.cfg.batch_norm:
            return super()._perceptron(name, sizes, rows)
        return NormalizedMLP(name, sizes, rows, self.observation_size, name == "actor", self.device)

    def _explorer(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """mu(s) + x, x from the stream `actions`."""
        theta, std = (x.astype(np.float32)[:, None, None] for x in (self.cfg.noise_theta, self.cfg.noise_std))
        normal = self.streams.normal("actions", (STEPS, self.cfg.num_envs, self.action_size), axis=1)

        def explore(observations: np.ndarray, t: int) -> np.ndarray:
            noise = np.where(self.started[..., None], 0, self.noise)
            self.noise = noise_step(noise, theta, std, normal[t])
            return np.clip(np.tanh(self.actor_outputs(observations)) + self.noise, -1, 1)

        return explore

    def _learn(self, uniform: np.ndarray, *noise: Tensor) -> Learned:
        """One update of Q, mu, Q' and mu'."""
        batch, correction = self._sample(uniform)
        with evaluation(self.normalized):
            targets = self._targets(batch)
        learned = self._update_critics(batch, targets, correction)
        self._update_actor(batch)
        self._update_targets(self.cfg.tau)
        return learned

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        if self.cfg.prioritized:
            return super()._memory(PrioritizedReplay, alpha=self.cfg.priority_exponent, **settings)
        return super()._memory(kind, **settings)

    def _sample(self, uniform: np.ndarray) -> tuple[Transitions, Correction]:
        """Transitions, and where they are drawn by priority their places [R, B] and weights [R, B]."""
        if not isinstance(self.replay, PrioritizedReplay):
            return self.replay.sample(uniform), None
        beta = importance_exponent(self.cfg, self.envs.env_steps)
        batch, indices, weights = self.replay.sample(uniform, beta)
        return batch, (indices, weights)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """What the transitions say Q(s, a) should be: [R, B]."""
        next_actions = tanh_(self.actor.forward(self.target_parameters, batch.next_observations)[-1])
        next_values, _ = self.critics.forward(self.critics.target, batch.next_observations, next_actions)
        return td_targets(batch.rewards, batch.discounts, self._estimate(next_values))

    @torch.no_grad()
    def _update_critics(self, batch: Transitions, targets: Tensor, correction: Correction = None) -> Learned:
        """One step down mean_b w (y - Q(s, a))^2, for each critic; new priorities are their mean |y - Q(s, a)|."""
        outputs, layers = self.critics.forward(self.critics.parameters, batch.observations, batch.actions)
        self._remember(self.critics.network, layers)
        slopes, errors, learned = self._critic_slopes(outputs, targets)
        if correction is not None:
            indices, weights = correction
            slopes = slopes * weights[:, None, :, None]
            self.replay.update(indices, errors.abs().mean(1))
        self.critics.backward(layers, slopes)
        self._decay_weights()
        self.critic_optimizer.step(np.repeat(self.cfg.learning_rate, self.critics.num_critics))
        return learned

    def _critic_slopes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Learned]:
        """d loss / d outputs [R, N, B, 1], and the samples' errors [R, N, B] and losses, for targets [R, B]."""
        errors = outputs - targets[:, None, :, None]
        slopes = errors * (2 / self.cfg.batch_size)
        return slopes, errors.squeeze(3), {"critic_loss": errors.square(), "q_values": outputs}

    def _decay_weights(self) -> None:
        """Add the gradient of weight_decay / 2 times the squared weights. Rounds twice wherever a run's slice lies."""
        if not self.cfg.weight_decay.any():
            return
        parameters = self.critics.parameters
        shares = self.coef["weight_decay"].repeat_interleave(self.critics.num_critics, 0)
        for view, grad in zip(parameters.views.values(), parameters.grads.values(), strict=True):
            grad.add_(view.detach() * shares.unsqueeze(2))

    @torch.no_grad()
    def _update_actor(self, batch: Transitions, active: np.ndarray | None = None) -> None:
        """One step up mean_b Q_1(s, mu(s)) by equation 6's chain rule; runs that are not active stay as they are."""
        layers = self.actor.forward(self.parameters, batch.observations)
        self._remember(self.actor, layers, active)
        actions = tanh_(layers[-1])
        by_actions = self._action_slopes(batch.observations, actions)
        self.actor.backward(self.parameters, layers, by_actions * (1 - actions.square()))
        self.actor_optimizer.step(self.cfg.actor_learning_rate, active=active)

    def _action_slopes(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The derivative of -mean_b Q_1(s, a) with respect to the actions: [R, B, A]."""
        share = torch.full_like(actions[..., :1], -1 / self.cfg.batch_size)
        return self.critics.first_to_actions(observations, actions, share)

    def _remember(self, network: MLP, layers: list[Any], active: np.ndarray | None = None) -> None:
        """Take a batch's moments into the averages by which is acted, if it is normalized."""
        if isinstance(network, NormalizedMLP):
            network.remember(layers, active)

    def _update_targets(self, tau: np.ndarray) -> None:
        self.critics.follow(tau)
        self.target_parameters.lerp_(self.parameters, tau)

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, A] for observations [R, N, O]: mu(s), or with a step's noise when streams are given."""
        actions = np.tanh(self.actor_outputs(observations))
        if streams is not None:
            std = self.cfg.noise_std.astype(np.float32)[:, None, None]
            actions = np.clip(actions + std * streams.normal("actions", actions.shape[1:]), -1, 1)
        return self.to_box(actions)

    def values(self, observations: np.ndarray) -> np.ndarray:
        """Q(s, mu(s)) [R, N] of observations [R, N, O]."""
        with evaluation(self.normalized):
            return super().values(observations)

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run, and the averages by which it normalizes."""
        averages: dict[str, np.ndarray] = {}
        for network in self.normalized:
            rows = network.averages.num_runs // self.num_runs
            for n in range(rows):
                averages |= network.averages.of_run(run * rows + n, f"averages{n}.")
        return super().parameters_of(run) | averages


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("ddpg")
