"""A2C with a memory: the LSTM form of Mnih et al. 2016, arXiv:1602.01783 ("A3C LSTM", section 5.1), without its
asynchrony, as OpenAI released it (openai/baselines a2c, `lstm`).

Actor and critic have an LSTM each and see its output, h_t = LSTM(o_1, ..., o_t) over the episode so far, in place of
o_t; everything else is A2C's:

    L(theta) = E[ -log pi(a|h) A - beta H(pi) + c (R - V(h))^2 / 2 ],   A and R held fixed.

The gradient goes back through the T steps of the rollout, across no border of episodes, and ends at the rollout's first
step; what the memory holds there is a constant. The value of the last observation before a cut is that which the memory
of this episode gives, before it is emptied.

PPO's recurrent form with one epoch of one minibatch is this algorithm, as without memory (arXiv:2205.09123).

Axes: rollouts [T, R, N, ...], batches [R, T*N, ...], memories [R, N, 4H]; R runs, N environments, T steps, H cells.

Departures from the paper: A2C's, but for these.
- Policy and value share nothing, as in the paper's MuJoCo experiments; on Atari they share all but the heads, and so
  they do in the released code's default.
- A perceptron with tanh in front of the LSTM, where the paper has convolutions, or one layer of 200 ReLU on MuJoCo.
- With MuJoCo the paper makes one update per episode; here T counts there as elsewhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import a2c
from algorithms.common.config import require
from algorithms.common.on_policy import explained_variance, require_positive
from algorithms.common.optimizers import rmsprop_or_adam
from algorithms.common.recurrent_policy import Pass, RecurrentAgent, Sequences
from algorithms.common.rollouts import by_run

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(a2c.Config):
    """A2C's, and the memory's size. `hidden_sizes` are the encoder's."""

    lstm_size: int = 128  # H, cells: the paper on MuJoCo (section 9), baselines common/models.py; on Atari 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "lstm_size")
        require(len(self.hidden_sizes) > 0, "hidden_sizes is empty; the encoder must have a layer")


class Agent(RecurrentAgent):
    """A2C with a memory for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps  # env_steps per run
        self.optimizer = rmsprop_or_adam(self.parameters, cfg)

    def iterate(self) -> dict[str, np.ndarray]:
        """T steps of every environment and one step of the optimizer. Returns metrics, each [R]."""
        rollout, sequences = self._collect_sequences()
        start = time.perf_counter()
        actions = by_run(rollout.actions, self.device)
        forward = self._forward(sequences)
        unit = self._unit()
        values, next_values = forward.values * unit, self._successor_values(rollout, forward) * unit
        (advantages,) = self._estimates(rollout, values, next_values, self.cfg.gae_lambda)
        returns = advantages + values
        old = self._gradient(forward, actions, advantages, returns / unit)
        self.return_unit.update(returns.cpu().numpy())
        left = self._left(self.iteration * self.steps_per_iteration)
        self.optimizer.step(self.cfg.learning_rate * left, self.cfg.max_grad_norm)
        metrics = self._measure(sequences, old) | {"explained_variance": explained_variance(values, returns)}
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def _gradient(self, forward: Pass, actions: Tensor, advantages: Tensor, returns: Tensor) -> Any:
        """The gradient of mean_b( -log pi(a|h) A - beta H(pi) + c (R - V)^2 / 2 ) into `grad`; returns pi."""
        size, log_std = advantages.shape[1], self.policy.log_std()
        policy = self.policy.distribution(forward.outputs, None if log_std is None else log_std.clone())
        by_outputs, by_log_std = policy.gradient(actions, advantages / -size, w_h=self.coef["ent_coef"] / -size)
        by_values = (forward.values - returns) * (self.coef["vf_coef"] / size)
        self._backward(forward, by_outputs, by_log_std, by_values)
        return policy

    @torch.no_grad()
    def _measure(self, sequences: Sequences, old: Any) -> dict[str, Tensor]:
        """What the update did to the policy, over the rollout; each [R]."""
        new = self.policy.distribution(self._outputs(sequences), self.policy.log_std())
        return {"kl": old.kl(new).mean(1), "entropy": new.entropy().mean(1)}


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("a2c_lstm")
