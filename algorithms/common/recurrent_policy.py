"""What recurrent policy-gradient algorithms share: an actor and a critic that have a memory each.

    observation -> encoder (perceptron, tanh) -> LSTM -> linear head: logits, or the mean beside its log_std
    observation -> encoder (perceptron, tanh) -> LSTM -> linear head: V

They share nothing, like those without memory here, as in the MuJoCo experiments of arXiv:1602.01783 (section 9) and by
the default of stable-baselines3-contrib's recurrent PPO; openai/baselines@ea25b9e has it so on MuJoCo, but without a
memory (ppo2/defaults.py, `value_network='copy'`). On Atari, where rewards are clipped, the trunk is shared (section 4
of the paper; vwxyzjn/cleanrl@004f8a0 ppo_atari_lstm.py); with the returns of CartPole, which reach 100, the values'
errors leave the policy no say in a shared one.

The memory is empty where an episode begins. Learning goes over a rollout as it was: T steps in time from the carry that
the rollout began with, resets where they were; gradients end at its first step. That carry is what acting left behind,
although the weights have moved since (the same file of CleanRL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import MLP, Initializer, Parameters, orthogonal, tanh_
from algorithms.common.on_policy import INITIALIZATIONS, OnPolicyAgent
from algorithms.common.policies import Policy
from algorithms.common.recurrent import LSTM, Unrolled, blank_where
from algorithms.common.rollouts import Collector, Rollout, by_run, evaluate
from algorithms.common.streams import Streams


class Sequences(NamedTuple):
    """T steps in N environments of R runs, as the networks see them."""

    observations: Tensor  # [R, T*N, O], time before environments
    carry: Tensor  # [R, N, 4H], from before the first step: the actor's, then the critic's
    starts: Tensor  # bool [R, T, N], the first step of an episode


class Trunk:
    """Encoder and LSTM of one network, `<name>.encoder` and `<name>.lstm` in a `Parameters`."""

    class Pass(NamedTuple):
        """What the way back needs; entries [R, T*N, ...]."""

        encoder: list[Tensor]  # layers; the hidden ones hold until the encoder's next pass
        features: Tensor
        unrolled: Unrolled

    def __init__(self, name: str, cfg: Any, envs: Any):
        self.name = name
        self.encoder = MLP(f"{name}.encoder", (envs.observation_shape[0], *cfg.hidden_sizes))
        self.lstm = LSTM(f"{name}.lstm", cfg.hidden_sizes[-1], cfg.lstm_size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        return self.encoder.shapes() | self.lstm.shapes()

    def initialize(
        self, parameters: Parameters, streams: Streams, hidden: Initializer, bias: Initializer | None
    ) -> None:
        """Either part draws its weights from a stream of its own; the LSTM's are orthogonal and its biases 0 (CleanRL
        as above; also openai/baselines@ea25b9e a2c/utils.py `lstm`)."""
        self.encoder.initialize(parameters, streams[f"{self.name} encoder"], hidden, hidden, bias)
        self.lstm.initialize(parameters, streams[f"{self.name} lstm"], orthogonal(1.0))

    def acting(self, parameters: Parameters) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(observations [R, N, O], carry [R, N, 2H]) -> carry, in NumPy."""
        encode, step = self.encoder.acting(parameters), self.lstm.acting(parameters)
        return lambda observations, carry: step(np.tanh(encode(observations)), carry)

    def forward(self, parameters: Parameters, observations: Tensor, carry: Tensor, starts: Tensor) -> Pass:
        """Over T steps from `carry` [R, N, 2H], as `LSTM.forward`."""
        encoder = self.encoder.forward(parameters, observations)
        features = tanh_(encoder[-1])
        return self.Pass(encoder, features, self.lstm.forward(parameters, features, carry, starts))

    @torch.no_grad()
    def backward(self, parameters: Parameters, forward: Pass, by_outputs: Tensor) -> None:
        """Write d loss / d weights into `parameters.grads`, given that by the LSTM's outputs [R, T*N, H]."""
        by_features = self.lstm.backward(parameters, forward.unrolled, by_outputs)
        by_sums = by_features * (1 - forward.features.square())
        self.encoder.backward(parameters, forward.encoder, by_sums)

    def at_successors(self, parameters: Parameters, successors: Tensor, forward: Pass) -> Tensor:
        """The LSTM's outputs [R, T*N, H] at the steps' true successors [R, T*N, O]."""
        features = tanh_(evaluate(self.encoder, parameters, successors))
        carry = forward.unrolled.carries.flatten(1, 2)  # [R, T*N, 2H]
        none = torch.zeros(carry.shape[0], 1, carry.shape[1], dtype=torch.bool, device=carry.device)
        return self.lstm.forward(parameters, features, carry, none).outputs


class Pass(NamedTuple):
    """A forward pass over `Sequences`, and what the way back needs."""

    actor_trunk: Trunk.Pass
    critic_trunk: Trunk.Pass
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

    @property
    def carry(self) -> Tensor:
        """What is carried on after the last step, [R, N, 4H]."""
        return torch.cat([trunk.unrolled.carries[:, -1] for trunk in (self.actor_trunk, self.critic_trunk)], -1)


class RecurrentNetworks:
    """Actor and critic of a class that has `num_runs`, `device` and a `collector`; their weights lie in its
    `parameters`, the actor's first."""

    num_runs: int
    device: str
    parameters: Parameters
    collector: Collector

    def _build(self, cfg: Any, envs: Any) -> dict[str, tuple[int, ...]]:
        """Make the networks; the shapes of their weights, per run."""
        self.lstm_size = cfg.lstm_size
        self.actor_trunk, self.critic_trunk = Trunk("actor", cfg, envs), Trunk("critic", cfg, envs)
        self.policy = Policy(envs, (), num_inputs=cfg.lstm_size)
        self.critic = MLP("critic", (cfg.lstm_size, 1))
        actor = self.actor_trunk.shapes() | self.policy.shapes()
        return actor | self.critic_trunk.shapes() | self.critic.shapes()

    def _draw(self, streams: Streams, initialization: str) -> None:
        """First weights."""
        hidden, policy_head, critic_head, bias = INITIALIZATIONS[initialization]
        self.actor_trunk.initialize(self.parameters, streams, hidden, bias)
        self.critic_trunk.initialize(self.parameters, streams, hidden, bias)
        self.policy.initialize(self.parameters, streams["actor"], hidden, policy_head, bias)
        self.critic.initialize(self.parameters, streams["critic"], hidden, critic_head, bias)

    def _bind(self) -> None:
        """Act by `parameters` from now on."""
        self.policy.bind(self.parameters)
        self._steps = self.actor_trunk.acting(self.parameters), self.critic_trunk.acting(self.parameters)

    # ---- acting

    def initial_carry(self, num_envs: int) -> np.ndarray:
        """What is carried into the first step of an episode, [R, N, 4H]."""
        return np.zeros((self.num_runs, num_envs, 4 * self.lstm_size), np.float32)

    def act_on(
        self, observations: np.ndarray, carry: np.ndarray, streams: Streams | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions [R, N, ...] for observations [R, N, O], the mode, or a sample when streams are given; and the carry
        [R, N, 4H] after them. Changes nothing."""
        carry = self._remember(self.collector.normalize(observations), carry)
        return self.collector.clip(self.policy.act(carry[..., : self.lstm_size], streams)), carry

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions for the first observations of episodes."""
        return self.act_on(observations, self.initial_carry(observations.shape[1]), streams)[0]

    def _remember(self, observations: np.ndarray, carry: np.ndarray) -> np.ndarray:
        """The carry after these observations; the first H are what the policy's head sees."""
        halves = zip(self._steps, np.split(carry, 2, -1), strict=True)
        return np.concatenate([step(observations, half) for step, half in halves], -1)

    # ---- learning

    @torch.no_grad()
    def _forward(self, sequences: Sequences) -> Pass:
        """What the networks make of a rollout, or of some environments' part of it."""
        parameters, (observations, carry, starts) = self.parameters, sequences
        actors, critics = carry.chunk(2, -1)
        actor = self.actor_trunk.forward(parameters, observations, actors, starts)
        critic = self.critic_trunk.forward(parameters, observations, critics, starts)
        outputs = self.policy.network.forward(parameters, actor.unrolled.outputs)
        return Pass(actor, critic, outputs, self.critic.forward(parameters, critic.unrolled.outputs))

    @torch.no_grad()
    def _outputs(self, sequences: Sequences) -> Tensor:
        """The policy's logits or means alone, [R, T*N, A]."""
        actors = sequences.carry.chunk(2, -1)[0]
        trunk = self.actor_trunk.forward(self.parameters, sequences.observations, actors, sequences.starts)
        return self.policy.network.forward(self.parameters, trunk.unrolled.outputs)[-1]

    @torch.no_grad()
    def _backward(self, forward: Pass, by_outputs: Tensor, by_log_std: Tensor | None, by_values: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`, given `Distribution.gradient`'s result and that by the
        values [R, T*N]."""
        parameters, by_values = self.parameters, by_values.unsqueeze(-1)
        self.policy.write_gradient(forward.actor, by_outputs, by_log_std)
        self.critic.backward(parameters, forward.critic, by_values)
        by_seen = self.policy.network.to_inputs(parameters, forward.actor, by_outputs)
        self.actor_trunk.backward(parameters, forward.actor_trunk, by_seen)
        by_seen = self.critic.to_inputs(parameters, forward.critic, by_values)
        self.critic_trunk.backward(parameters, forward.critic_trunk, by_seen)

    @torch.no_grad()
    def _successor_values(self, rollout: Rollout, forward: Pass) -> Tensor:
        """V [R, T*N] of the true successors, each seen with the memory as it was after the step that led there: of the
        last observation of an episode that was cut, before the reset."""
        successors = by_run(rollout.next_observations, self.device)
        seen = self.critic_trunk.at_successors(self.parameters, successors, forward.critic_trunk)
        return evaluate(self.critic, self.parameters, seen).squeeze(-1)


class RecurrentAgent(RecurrentNetworks, OnPolicyAgent):
    """`OnPolicyAgent` with a memory; `cfg` has `lstm_size` as well. `carry` [R, N, 4H] is what the training
    environments' memories hold."""

    memory = (*OnPolicyAgent.memory, "carry")

    def _make_networks(self, with_critic: bool) -> None:
        assert with_critic
        self.parameters = Parameters(self.num_runs, self._build(self.cfg, self.envs), self.device)
        self.of_policy = self.parameters.part(self.actor_trunk.shapes() | self.policy.shapes())
        self.of_critic = self.parameters.part(self.critic_trunk.shapes() | self.critic.shapes())
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
            return sample(self.carry[..., : self.lstm_size], t)

        return self.collector.collect(steps, act)
