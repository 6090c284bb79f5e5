"""PPO with a memory: Schulman et al. 2017, arXiv:1707.06347, with the LSTM of Mnih et al. 2016, arXiv:1602.01783. No
paper describes it; the code that made it known is openai/baselines ppo2, its details are written out by Huang et al.
2022 ("The 37 implementation details of PPO", ICLR blog track) and in vwxyzjn/cleanrl ppo_atari_lstm.py.

Actor and critic have an LSTM each and see its output, h_t = LSTM(o_1, ..., o_t) over the episode so far, in place of
o_t; the objective is PPO's,

    L(theta) = E[ min(r A, clip(r, 1 - eps, 1 + eps) A) - beta KL(pi_old || pi) ],   r = pi(a|h) / pi_old(a|h_old).

Since h_t follows from the steps before it, a minibatch consists of whole sequences: all T steps of some environments,
unrolled anew with the present weights, from the memory that each had when the rollout began, emptied where an episode
begins. The value of the last observation before a cut is that which the memory of this episode gives, before it is
emptied.

Axes: rollouts [T, R, N, ...], batches [R, T*N, ...], memories [R, N, 4H]; R runs, N environments, T steps, H cells.

Departures from the sources: PPO's, but for these.
- Policy and value share nothing, as baselines has it on MuJoCo, without a memory; on Atari both codes share all but
  the heads. The encoder is a perceptron with tanh, not convolutions.
- After an update the memory goes on as the old weights left it, as in both codes; nothing is computed anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import ppo
from algorithms.common.config import require
from algorithms.common.on_policy import explained_variance, require_positive, standardize
from algorithms.common.optimizers import Adam
from algorithms.common.recurrent_policy import RecurrentAgent, Sequences
from algorithms.common.rollouts import Rollout, by_run, shuffled
from algorithms.ppo import Batch, adapt_kl_coef, surrogate_slope, value_slope

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """PPO's, with the sizes of vwxyzjn/cleanrl@004f8a0 ppo_atari_lstm.py. `hidden_sizes` are the encoder's."""

    num_envs: int = 8
    num_steps: int = 128  # T, also how far gradients go back
    num_epochs: int = 4  # K
    batch_size: int = 256  # M, samples per minibatch: the T steps of M / T environments
    lstm_size: int = 128  # H, cells

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.batch_size % self.num_steps == 0,
            f"batch_size is {self.batch_size}; it must be a multiple of num_steps = {self.num_steps}, whole sequences",
        )
        require_positive(self, "lstm_size")
        require(len(self.hidden_sizes) > 0, "hidden_sizes is empty; the encoder must have a layer")


class Agent(RecurrentAgent):
    """PPO with a memory for R runs at once."""

    memory = (*RecurrentAgent.memory, "kl_coef")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.stops, self.clips_values = np.isfinite(cfg.target_kl).any(), np.isfinite(cfg.value_clip).any()
        self.kl_coef = cfg.kl_coef.copy()

    def iterate(self) -> dict[str, np.ndarray]:
        """Algorithm 1: a rollout, then `num_epochs` passes over it. Returns metrics, each [R]."""
        cfg = self.cfg
        rollout, sequences = self._collect_sequences()
        start = time.perf_counter()
        batch = self._prepare(rollout, sequences)
        old_log_std = None if self.policy.discrete else self.parameters["log_std"].detach().clone()
        left = self._left(self.iteration * self.steps_per_iteration)
        active = np.ones(self.num_runs, bool)
        # Drawn for all passes: where runs stop early, how many draws one makes must not depend on its company.
        orders = [self.streams.permutation("minibatches", cfg.num_envs) for _ in range(cfg.num_epochs)]
        for order in orders:
            for minibatch in self._minibatches(sequences, batch, order):
                approx_kl = self._gradient(*minibatch, old_log_std)
                self.optimizer.step(cfg.learning_rate * left, cfg.max_grad_norm, active)
            if approx_kl is not None:
                active &= ~(approx_kl.cpu().numpy() > cfg.target_kl)
                if not active.any():
                    break
        metrics = self._measure(sequences, batch, old_log_std)
        self.kl_coef = adapt_kl_coef(self.kl_coef, metrics["kl"], cfg.kl_target)
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return metrics

    def _prepare(self, rollout: Rollout, sequences: Sequences) -> Batch:
        """Log-probabilities, values and advantages of a rollout [T, R, N, ...], as a batch [R, T*N, ...]."""
        actions, forward = by_run(rollout.actions, self.device), self._forward(sequences)
        values = forward.values
        next_values = self._successor_values(rollout, forward)
        (advantages,) = self._estimates(rollout, values, next_values, self.cfg.gae_lambda)
        log_probs = self.policy.distribution(forward.outputs, self.policy.log_std()).log_prob(actions)
        old = forward.outputs, log_probs, values
        return Batch(sequences.observations, actions, *old, advantages, advantages + values)

    def _minibatches(
        self, sequences: Sequences, batch: Batch, order: np.ndarray
    ) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """One pass in each run's own order [R, N] of the environments: carry [R, n, 4H], starts [R, T, n] and samples
        [R, T*n, ...] of n of them at a time."""
        cfg, (runs, steps, envs) = self.cfg, sequences.starts.shape
        count = cfg.batch_size // steps  # n
        rows = np.arange(steps)[:, None] * envs + order.reshape(runs, -1, 1, count)  # [R, M, T, n]
        fields = (*batch, sequences.starts.flatten(1))
        *samples, starts = shuffled(fields, rows.reshape(runs, -1), cfg.batch_size)  # [M, R, T*n, ...]
        (carries,) = shuffled([sequences.carry], order, count)
        passed = Batch(*samples)
        passed = passed._replace(advantages=standardize(passed.advantages, self.coef["normalize_advantages"]))
        for carry, firsts, *parts in zip(carries, starts, *passed, strict=True):
            yield carry, firsts.view(runs, steps, count), Batch(*parts)

    def _gradient(self, carry: Tensor, starts: Tensor, batch: Batch, old_log_std: Tensor | None) -> Tensor | None:
        """The gradient of equation 9's loss with equation 8's penalty, into `parameters.grad`; for a group that stops
        early, returns the approximate KL [R] (E[r - 1 - log r]).

            loss = mean_b( -surrogate + beta KL(pi_old || pi) - c2 H(pi) + c1 value_loss )
        """
        coef, size = self.coef, self.cfg.batch_size
        forward = self._forward(Sequences(batch.observations, carry, starts))
        policy = self.policy.distribution(forward.outputs, self.policy.log_std())
        log_ratio = policy.log_prob(batch.actions) - batch.old_log_probs
        ratio = torch.exp(log_ratio)
        slope = surrogate_slope(ratio, batch.advantages, coef["clip_coef"])
        kl_coef = torch.as_tensor(self.kl_coef, dtype=torch.float32, device=self.device)[:, None]
        old: Any = self.policy.distribution(batch.old, old_log_std) if (self.kl_coef > 0).any() else None
        weights = slope / -size, old, kl_coef / size, coef["ent_coef"] / -size
        by_outputs, by_log_std = policy.gradient(batch.actions, *weights)
        value_clip = coef["value_clip"] if self.clips_values else None
        by_values = value_slope(forward.values, batch.old_values, batch.returns, value_clip)
        self._backward(forward, by_outputs, by_log_std, by_values * (coef["vf_coef"] / size))
        return ((ratio - 1) - log_ratio).mean(1) if self.stops else None

    @torch.no_grad()
    def _measure(self, sequences: Sequences, batch: Batch, old_log_std: Tensor | None) -> dict[str, np.ndarray]:
        """What the update did, over the whole rollout; each [R]."""
        new: Any = self.policy.distribution(self._outputs(sequences), self.policy.log_std())
        ratio = torch.exp(new.log_prob(batch.actions) - batch.old_log_probs)
        metrics = {
            "kl": self.policy.distribution(batch.old, old_log_std).kl(new).mean(1),
            "clip_fraction": ((ratio - 1).abs() > self.coef["clip_coef"]).float().mean(1),
            "entropy": new.entropy().mean(1),
            "explained_variance": explained_variance(batch.old_values, batch.returns),  # by the values before
            "kl_coef": torch.from_numpy(self.kl_coef),
        }
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("ppo_lstm")
