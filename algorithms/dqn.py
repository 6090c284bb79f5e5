"""Deep Q-network: Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518:529-533.

Its algorithm 1: act epsilon-greedily on Q(s, a; theta), keep the transitions in a replay memory D, and descend

    L(theta) = E_{(s,a,r,s') ~ U(D)}[ h( r + gamma max_a' Q(s', a'; theta-) - Q(s, a; theta) ) ],

where theta- are the weights of a target network, overwritten by theta every C steps, and h(x) is half the square inside
[-1, 1] and linear outside: "we also found it helpful to clip the error term to be between -1 and 1".

Axes: observations [R, N, O], batches [R, B, ...], Q-values [R, A, B]; R runs, N environments, B drawn transitions,
A actions.

Departures from the paper:
- Low-dimensional observations and a multilayer perceptron; no frames to stack, repeat or preprocess, rewards unclipped.
- Adam in place of RMSProp with momentum, as in the code that low-dimensional results are published with.
- Periods are in env_steps, the target network's too (the paper counts that one in updates, one every 4 env_steps). The
  sizes that belong to its 12.5M env_steps (50M frames) are divided by 25 for classic control's 500,000.
- A time limit is no end of the task: only terminations stop bootstrapping.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.columns import ColumnMLP
from algorithms.common.config import PerRun, require
from algorithms.common.layers import Parameters, fan_in_uniform
from algorithms.common.optimizers import Adam
from algorithms.common.replay import Replay, Transitions
from algorithms.common.runtime import flushed_denormals
from algorithms.common.schedules import crossings, linear
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}
STEPS = 100  # of every environment in one iterate(); a matter of speed only, results do not depend on it


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's (Extended Data Table 1), its sizes / 25 as said above."""

    learning_rate: PerRun = 2.5e-4
    gamma: PerRun = 0.99
    td_clip: PerRun = 1.0  # the TD error's gradient stays within this; inf: half the squared error
    epsilon_start: PerRun = 1.0
    epsilon_end: PerRun = 0.1
    epsilon_steps: PerRun = 10_000.0  # env_steps from the first to the last; paper: 250,000 (1M frames)
    evaluation_epsilon: PerRun = 0.05  # of `act` with streams
    target_period: PerRun = 1_600.0  # C, env_steps; paper: 40,000 (10,000 updates)
    train_period: int = 4  # env_steps per update
    learning_starts: int = 2_000  # env_steps before the first update; paper: 50,000
    buffer_size: int = 40_000  # transitions; paper: 1,000,000
    batch_size: int = 32  # B
    num_envs: int = 1
    hidden_sizes: tuple[int, ...] = (120, 84)  # vwxyzjn/cleanrl@fe8d8a0 dqn.py
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("epsilon_start", "epsilon_end", "evaluation_epsilon", "gamma", "learning_starts"):
                require(bool(np.all(np.asarray(getattr(self, field.name)) > 0)), f"{field.name} must be positive")
        for name in ("gamma", "epsilon_start", "epsilon_end", "evaluation_epsilon"):
            value = np.asarray(getattr(self, name))
            require(bool(np.all((value >= 0) & (value <= 1))), f"{name} is {value}; it must lie in [0, 1]")
        require(self.learning_starts >= 0, f"learning_starts is {self.learning_starts}; it must not be negative")
        require(
            self.buffer_size % self.num_envs == 0,
            f"buffer_size is {self.buffer_size}; it must be a multiple of num_envs = {self.num_envs}",
        )


def greedy_values(next_q_values: Tensor) -> Tensor:
    """max_a' Q(s', a'; theta-): [R, A, B] -> [R, B]."""
    return next_q_values.amax(1)


def td_targets(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """Algorithm 1's y = r + gamma v(s'), and r where the task ended at s' (its discount is 0): [R, B] each."""
    return rewards + discounts * next_values


def huber(td_errors: Tensor, td_clip: Tensor) -> Tensor:
    """h(x) = x^2 / 2 for |x| <= c, c (|x| - c / 2) beyond: [R, B], `td_clip` c [R, 1], inf for the square alone."""
    size = td_errors.abs()
    inside = torch.minimum(size, td_clip)
    return inside * (size - 0.5 * inside)


def huber_slope(td_errors: Tensor, td_clip: Tensor) -> Tensor:
    """h'(x) = clip(x, -c, c): [R, B], `td_clip` [R, 1]."""
    return torch.clamp(td_errors, -td_clip, td_clip)


class Agent:
    """DQN for R runs at once."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs, self.device = cfg, envs, device
        self.num_runs, self.num_actions = len(seeds), envs.num_actions
        self.steps_per_iteration = STEPS * cfg.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        size = math.prod(envs.observation_shape)
        self.net = ColumnMLP("q", (size, *cfg.hidden_sizes, self.num_actions))
        self.parameters = Parameters(self.num_runs, self.net.shapes(), device)
        self.net.initialize(self.parameters, self.streams["q"], fan_in_uniform, fan_in_uniform, fan_in_uniform)
        self.target = Parameters(self.num_runs, self.net.shapes(), device)
        self.target.copy_(self.parameters)
        self.parts, self.target_parts = self.net.parts(self.parameters), self.net.parts(self.target)
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.acting = self.net.acting(self.parameters)
        self.replay = Replay(self.num_runs, cfg.buffer_size, cfg.num_envs, size, 1, cfg.gamma, device=device)
        self.td_clip = torch.as_tensor(cfg.td_clip, dtype=torch.float32, device=device)[:, None]  # [R, 1]
        self.action_indices = torch.arange(self.num_actions, device=device)[:, None]  # [A, 1]
        self.env_steps = 0
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = envs.reset(seeds)  # [R, N, O]

    def iterate(self) -> dict[str, np.ndarray]:
        """Algorithm 1 for STEPS steps of every environment. Returns metrics, each [R]: of the last update, if any."""
        cfg, clock = self.cfg, time.perf_counter
        env_steps = self.env_steps + cfg.num_envs * np.arange(1, STEPS + 1)  # after each step
        epsilon = linear(cfg.epsilon_start, cfg.epsilon_end, cfg.epsilon_steps, env_steps - cfg.num_envs)  # [T, R]
        explore, random_actions = self._exploration(epsilon)
        updates = crossings(env_steps, cfg.num_envs, cfg.train_period) * (env_steps > cfg.learning_starts)
        draws = iter(self.streams.draw("replay", lambda rng: rng.random((updates.sum(), cfg.batch_size)), axis=1))
        learned = None
        with flushed_denormals():
            for t in range(STEPS):
                begin = clock()
                actions = np.where(explore[t], random_actions[t], self.acting(self.observations).argmax(-1))
                acted = clock()
                step = self.envs.step(actions)
                stepped = clock()
                outcome = step.rewards, step.next_observations, step.terminations, step.truncations
                self.replay.add(self.observations, actions, *outcome)
                self.observations = step.observations
                for _ in range(updates[t]):
                    learned = self._gradient(self.replay.sample(next(draws)))
                    self.optimizer.step(cfg.learning_rate)
                self._update_target(crossings(env_steps[t], cfg.num_envs, cfg.target_period) > 0)
                self.timers["act"] += acted - begin
                self.timers["env"] += stepped - acted
                self.timers["learn"] += clock() - stepped
        self.env_steps = int(env_steps[-1])
        return self._metrics(learned) | {"epsilon": epsilon[-1]}

    def _exploration(self, epsilon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether to explore, with probability epsilon [T, R], and with which action; [T, R, N] each."""
        uniform = self.streams.draw("actions", lambda rng: rng.random((len(epsilon), self.cfg.num_envs, 2)), axis=1)
        return uniform[..., 0] < epsilon[..., None], (uniform[..., 1] * self.num_actions).astype(np.int64)

    @torch.no_grad()
    def _gradient(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """The loss's gradient, into `parameters.grad`. Returns TD errors and Q(s, a) of the batch, [R, B] each."""
        observations, next_observations = batch.observations.transpose(1, 2), batch.next_observations.transpose(1, 2)
        next_q_values = torch.cat(
            [self.net.forward(part, next_observations[part.runs])[-1] for part in self.target_parts]
        )
        targets = td_targets(batch.rewards, batch.discounts, greedy_values(next_q_values))
        taken = (batch.actions.transpose(1, 2) == self.action_indices).float()  # [R, A, B], 1 at the action taken
        q_values = torch.empty_like(targets)
        for part in self.parts:
            runs = part.runs
            layers = self.net.forward(part, observations[runs])
            q = torch.sum(layers[-1] * taken[runs], 1, out=q_values[runs])
            slope = huber_slope(targets[runs] - q, self.td_clip[runs]) / -self.cfg.batch_size  # d loss / d Q(s, a)
            self.net.backward(part, layers, taken[runs] * slope.unsqueeze(1))
        return targets - q_values, q_values

    def _metrics(self, learned: tuple[Tensor, Tensor] | None) -> dict[str, np.ndarray]:
        if learned is None:
            return {name: np.full(self.num_runs, np.nan) for name in ("loss", "q_values")}
        td_errors, q_values = learned
        metrics = {"loss": huber(td_errors, self.td_clip).mean(1), "q_values": q_values.mean(1)}
        return {name: value.double().cpu().numpy() for name, value in metrics.items()}

    def _update_target(self, due: np.ndarray) -> None:
        if due.all():
            self.target.copy_(self.parameters)
        elif due.any():
            index = torch.from_numpy(due.nonzero()[0]).to(self.device)
            for name, view in self.target.views.items():
                view.detach()[index] = self.parameters[name].detach()[index]

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N] for observations [R, N, O]: greedy, or `evaluation_epsilon`-greedy when streams are given."""
        greedy = self.acting(observations).argmax(-1)
        if streams is None:
            return greedy
        uniform = streams.draw("actions", lambda rng: rng.random((greedy.shape[1], 2)))  # [R, N, 2]
        explore = uniform[..., 0] < self.cfg.evaluation_epsilon[:, None]
        return np.where(explore, (uniform[..., 1] * self.num_actions).astype(np.int64), greedy)

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~self.parameters.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run."""
        return self.parameters.of_run(run)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        return {
            "parameters": self.parameters.state(),
            "target": self.target.state(),
            "optimizer": self.optimizer.state(),
            "replay": self.replay.state(),
            "streams": self.streams.state(),
            "observations": self.observations,
            "env_steps": self.env_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        for name in ("parameters", "target", "optimizer", "replay", "streams"):
            getattr(self, name).load_state(state[name])
        self.observations, self.env_steps = state["observations"], state["env_steps"]


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("dqn")
