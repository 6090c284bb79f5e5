"""A3C with a memory: Mnih et al. 2016, arXiv:1602.01783, "A3C LSTM" (section 5.1).

Actor and critic have an LSTM each and see its output, h_t = LSTM(o_1, ..., o_t) over the episode so far, in place of
o_t; the rest is A3C. Every worker has memories of its own, which are empty where an episode begins and are kept from
turn to turn, although the weights that wrote them have been replaced meanwhile. The gradient goes back through the
t_max steps of the turn, across no border of episodes.

With one worker it is recurrent A2C with one environment, as A3C is A2C.

Axes: rollouts [T, K, 1, ...], batches [K, T, ...], memories [K, 1, 4H]; T = t_max steps, H cells, and K = R W workers
of R runs.

Departures from the paper: A3C's (policy and value share nothing here either), and
- A perceptron with tanh in front of the LSTM, where the paper has convolutions, or one layer of 200 ReLU on MuJoCo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from algorithms import a3c
from algorithms.common.asynchronous import AsynchronousAgent
from algorithms.common.config import require
from algorithms.common.on_policy import require_positive
from algorithms.common.recurrent import blank_where
from algorithms.common.recurrent_policy import RecurrentNetworks, Sequences
from algorithms.common.rollouts import Rollout, by_run

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config(a3c.Config):
    """A3C's, and the memory's size. `hidden_sizes` are the encoder's."""

    lstm_size: int = 128  # H, cells: the paper on MuJoCo (section 9); on Atari 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "lstm_size")
        require(len(self.hidden_sizes) > 0, "hidden_sizes is empty; the encoder must have a layer")


class Workers(RecurrentNetworks, a3c.Workers):
    """A3C's actor-learners with memories; `carry` is what these hold, `before` what they held before the turn."""

    memory = (*a3c.Workers.memory, "carry")

    def _make_networks(self) -> None:
        self.parameters, self.device = self.own, "cpu"
        self._build(self.cfg, self.envs)
        self._bind()
        self.carry = np.zeros((self.own.num_runs, 1, 4 * self.lstm_size), np.float32)

    def _policy(self) -> Callable[[np.ndarray, int], np.ndarray]:
        sample = self.policy.sampler(self.streams, self.cfg.num_steps, 1)
        self.before, self.first = self.carry, self.by_entry(self.collector.starts)

        def act(observations: np.ndarray, t: int) -> np.ndarray:
            kept = blank_where(self.by_entry(self.collector.starts), self.carry)
            self.carry = self._remember(observations, kept)
            return sample(self.carry[..., : self.lstm_size], t)

        return act

    def _sequences(self, rollout: Rollout) -> Sequences:
        """The turn, as the networks saw it."""
        ends = (rollout.terminations | rollout.truncations)[:-1]
        starts = np.concatenate((self.first[None], ends)).swapaxes(0, 1)  # [K, T, 1]
        as_seen = torch.from_numpy(self.before), torch.from_numpy(np.ascontiguousarray(starts))
        return Sequences(by_run(rollout.observations), *as_seen)

    def _gradient(self, rollout: Rollout) -> dict[str, Tensor]:
        """Of A3C's loss."""
        forward = self._forward(self._sequences(rollout))
        values = forward.values  # [K, T]
        advantages = self._advantages(rollout, values, self._successor_values(rollout, forward))
        returns = advantages + values  # R_i
        policy = self.policy.distribution(forward.outputs, self.policy.log_std())
        by_outputs, by_log_std = policy.gradient(by_run(rollout.actions), -advantages, w_h=-self.coef["ent_coef"])
        self._backward(forward, by_outputs, by_log_std, (values - returns) * self.coef["vf_coef"])
        return {"value_loss": advantages.square().mean(1), "entropy": policy.entropy().mean(1)}


class Agent(RecurrentNetworks, AsynchronousAgent):
    """A3C with a memory for R runs at once."""

    learners_class = Workers

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self._build(self.cfg, self.envs)

    def _initialize(self) -> None:
        self._draw(self.streams, self.cfg.initialization)
        self._bind()


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("a3c_lstm")
