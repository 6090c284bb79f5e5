"""What recurrent policy-gradient algorithms share: an actor and a critic that see the outputs of one LSTM.

    observation -> encoder (perceptron, tanh) -> LSTM -> actor: logits, or the mean beside its log_std
                                                      -> critic: V

Encoder and LSTM are shared, and the heads are linear, as in arXiv:1602.01783 (section 5.1, "A3C LSTM" on Atari) and in
vwxyzjn/cleanrl@004f8a0 ppo_atari_lstm.py. The memory is empty where an episode begins. Learning goes over a rollout as
it was: T steps in time from the carry that the rollout began with, resets where they were; gradients end at its first
step. That carry is what acting left behind, although the weights have moved since (the same file of CleanRL).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import MLP, Parameters, orthogonal, tanh_
from algorithms.common.on_policy import INITIALIZATIONS, OnPolicyAgent
from algorithms.common.policies import Policy
from algorithms.common.recurrent import LSTM, Unrolled, blank_where
from algorithms.common.rollouts import Collector, Rollout, by_run, evaluate
from algorithms.common.streams import Streams


class Sequences(NamedTuple):
    """T steps in N environments of R runs, as the networks see them."""

    observations: Tensor  # [R, T*N, O], time before environments
    carry: Tensor  # [R, N, 2H], from before the first step
    starts: Tensor  # bool [R, T, N], the first step of an episode


class Pass(NamedTuple):
    """A forward pass over `Sequences`, and what the way back needs; entries [R, T*N, ...]."""

    encoder: list[Tensor]  # layers; the hidden ones hold until the encoder's next pass
    features: Tensor
    unrolled: Unrolled
    actor: list[Tensor]
    critic: list[Tensor]

    @property
    def outputs(self) -> Tensor:
        """The policy's logits or means, [R, T*N, A]."""
        return self.actor[-1]

    @property
    def values(self) -> Tensor:
        """V, [R, T*N]."""
        return self.critic[-1].squeeze(-1)


class RecurrentNetworks:
    """Encoder, LSTM and heads of a class that has `num_runs`, `device` and a `collector`; their weights lie in its
    `parameters`."""

    num_runs: int
    device: str
    parameters: Parameters
    collector: Collector

    def _build(self, cfg: Any, envs: Any) -> dict[str, tuple[int, ...]]:
        """Make the networks; the shapes of their weights, per run."""
        self.encoder = MLP("encoder", (envs.observation_shape[0], *cfg.hidden_sizes))
        self.lstm = LSTM("lstm", cfg.hidden_sizes[-1], cfg.lstm_size)
        self.policy = Policy(envs, (), num_inputs=cfg.lstm_size)
        self.critic = MLP("critic", (cfg.lstm_size, 1))
        return self.encoder.shapes() | self.lstm.shapes() | self.policy.shapes() | self.critic.shapes()

    def _draw(self, streams: Streams, initialization: str) -> None:
        """Every part draws its weights from a stream of its own; the LSTM's are orthogonal and its biases 0 (CleanRL as
        above; also openai/baselines@ea25b9e a2c/utils.py `lstm`)."""
        hidden, policy_head, critic_head, bias = INITIALIZATIONS[initialization]
        self.encoder.initialize(self.parameters, streams["encoder"], hidden, hidden, bias)
        self.lstm.initialize(self.parameters, streams["lstm"], orthogonal(1.0))
        self.policy.initialize(self.parameters, streams["actor"], hidden, policy_head, bias)
        self.critic.initialize(self.parameters, streams["critic"], hidden, critic_head, bias)

    def _bind(self) -> None:
        """Act by `parameters` from now on."""
        self.policy.bind(self.parameters)
        self._encode, self._step = self.encoder.acting(self.parameters), self.lstm.acting(self.parameters)

    # ---- acting

    def initial_carry(self, num_envs: int) -> np.ndarray:
        """What is carried into the first step of an episode, [R, N, 2H]."""
        return self.lstm.blank(self.num_runs, num_envs)

    def act_on(
        self, observations: np.ndarray, carry: np.ndarray, streams: Streams | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions [R, N, ...] for observations [R, N, O], the mode, or a sample when streams are given; and the carry
        [R, N, 2H] after them. Changes nothing."""
        carry = self._remember(self.collector.normalize(observations), carry)
        return self.collector.clip(self.policy.act(carry[..., : self.lstm.size], streams)), carry

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions for the first observations of episodes."""
        return self.act_on(observations, self.initial_carry(observations.shape[1]), streams)[0]

    def _remember(self, observations: np.ndarray, carry: np.ndarray) -> np.ndarray:
        """The carry after these observations."""
        return self._step(np.tanh(self._encode(observations)), carry)

    # ---- learning

    @torch.no_grad()
    def _forward(self, sequences: Sequences) -> Pass:
        """What the networks make of a rollout, or of some environments' part of it."""
        parameters = self.parameters
        encoder = self.encoder.forward(parameters, sequences.observations)
        features = tanh_(encoder[-1])
        unrolled = self.lstm.forward(parameters, features, sequences.carry, sequences.starts)
        seen = unrolled.outputs
        heads = self.policy.network.forward(parameters, seen), self.critic.forward(parameters, seen)
        return Pass(encoder, features, unrolled, *heads)

    @torch.no_grad()
    def _backward(self, forward: Pass, by_outputs: Tensor, by_log_std: Tensor | None, by_values: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`, given `Distribution.gradient`'s result and that by the
        values [R, T*N]."""
        parameters, by_values = self.parameters, by_values.unsqueeze(-1)
        self.policy.write_gradient(forward.actor, by_outputs, by_log_std)
        self.critic.backward(parameters, forward.critic, by_values)
        by_seen = self.policy.network.to_inputs(parameters, forward.actor, by_outputs)
        by_seen = by_seen + self.critic.to_inputs(parameters, forward.critic, by_values)
        by_features = self.lstm.backward(parameters, forward.unrolled, by_seen)
        by_sums = by_features * (1 - forward.features.square())
        self.encoder.backward(parameters, forward.encoder, by_sums)

    @torch.no_grad()
    def _successor_values(self, rollout: Rollout, forward: Pass) -> Tensor:
        """V [R, T*N] of the true successors, each seen with the memory as it was after the step that led there: of the
        last observation of an episode that was cut, before the reset."""
        features = tanh_(evaluate(self.encoder, self.parameters, by_run(rollout.next_observations, self.device)))
        carry = forward.unrolled.carries.flatten(1, 2)  # [R, T*N, 2H]
        none = torch.zeros(carry.shape[0], 1, carry.shape[1], dtype=torch.bool, device=carry.device)
        seen = self.lstm.forward(self.parameters, features, carry, none).outputs
        return evaluate(self.critic, self.parameters, seen).squeeze(-1)


class RecurrentAgent(RecurrentNetworks, OnPolicyAgent):
    """`OnPolicyAgent` with a memory; `cfg` has `lstm_size` as well. `carry` [R, N, 2H] is what the training
    environments' memories hold."""

    memory = (*OnPolicyAgent.memory, "carry")

    def _make_networks(self, with_critic: bool) -> None:
        assert with_critic
        self.parameters = Parameters(self.num_runs, self._build(self.cfg, self.envs), self.device)
        self.of_policy = self.parameters.part(self.policy.shapes())
        self.of_critic = self.parameters.part(self.critic.shapes())
        self._draw(self.streams, self.cfg.initialization)
        self._bind()
        self.carry = self.initial_carry(self.cfg.num_envs)

    def _collect_sequences(self) -> tuple[Rollout, Sequences]:
        """T steps in every environment with the present policy, the memory of each emptied where an episode begins."""
        carry, first = self.carry, self.collector.starts
        rollout = self._collect()
        ends = (rollout.terminations | rollout.truncations)[:-1]
        starts = np.concatenate((first[None], ends)).swapaxes(0, 1)  # [R, T, N]
        device, observations = self.device, by_run(rollout.observations, self.device)
        as_seen = torch.from_numpy(carry).to(device), torch.from_numpy(np.ascontiguousarray(starts)).to(device)
        return rollout, Sequences(observations, *as_seen)

    def _collect(self) -> Rollout:
        steps, envs = self.cfg.num_steps, self.cfg.num_envs
        sample = self.policy.sampler(self.streams, steps, envs)

        def act(observations: np.ndarray, t: int) -> np.ndarray:
            self.carry = self._remember(observations, blank_where(self.collector.starts, self.carry))
            return sample(self.carry[..., : self.lstm.size], t)

        return self.collector.collect(steps, act)
