"""Deep Q-network: Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518:529-533.

Its algorithm 1: act epsilon-greedily on Q(s, a; theta), keep the transitions in a replay memory D, and descend

    L(theta) = E_{(s,a,r,s') ~ U(D)}[ h( r + gamma max_a' Q(s', a'; theta-) - Q(s, a; theta) ) ],

where theta- are the weights of a target network, overwritten by theta every C steps, and h(x) is half the square inside
[-1, 1] and linear outside: "we also found it helpful to clip the error term to be between -1 and 1".

The files of its descendants hold what their papers change: the network (`_network`), the memory (`_memory`), the
targets (`_targets`) and the loss (`_loss`).

Axes: observations [R, N, O], batches [R, B, ...], outputs of the network [R, A * Z, B]; R runs, N environments, B drawn
transitions, A actions, Z numbers per action (one here: Q). The letter r in place of R: some of the runs, a `Part`.

Departures from the paper:
- Low-dimensional observations and a multilayer perceptron, or `convolutions`; rewards unclipped.
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
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from algorithms.common.columns import Part, QNetwork, over_actions
from algorithms.common.config import PerRun, per_run_tensors, require
from algorithms.common.layers import Parameters
from algorithms.common.memory import Remembering
from algorithms.common.optimizers import Adam
from algorithms.common.replay import Replay, Transitions
from algorithms.common.runtime import flushed_denormals
from algorithms.common.schedules import crossings, linear
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}
Learned = tuple[Tensor, ...]  # losses, errors (whose sizes are priorities) and Q(s, a) of a batch, [R, B] each
PASSES = ("online", "target", "selection")  # through the network in an update; the last chooses the action at s'
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
    convolutions: Literal["none", "minatar", "nature"] = "none"  # before the hidden layers; "nature" is the paper's
    hidden_sizes: tuple[int, ...] = (120, 84)  # vwxyzjn/cleanrl@fe8d8a0 dqn.py; paper: 512 after its convolutions
    adam_epsilon: float = 1e-8
    max_grad_norm: PerRun = math.inf

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "td_clip", "epsilon_steps", "target_period", "train_period", "buffer_size", "batch_size"),
        *("num_envs", "hidden_sizes", "adam_epsilon", "max_grad_norm"),
    )
    SHARES: ClassVar[tuple[str, ...]] = ("gamma", "epsilon_start", "epsilon_end", "evaluation_epsilon")

    def __post_init__(self) -> None:
        for name in self.POSITIVE:
            require(bool(np.all(np.asarray(getattr(self, name)) > 0)), f"{name} must be positive")
        for name in self.SHARES:
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


class Agent(Remembering):
    """DQN for R runs at once."""

    memory = ("parameters", "target", "optimizer", "replay", "streams", "observations", "env_steps")

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs, self.device = cfg, envs, device
        self.num_runs, self.num_actions = len(seeds), envs.num_actions
        self.steps_per_iteration = STEPS * cfg.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        self.coef = per_run_tensors(cfg, device)  # [R, 1]
        self.net = self._network()
        self.parameters = Parameters(self.num_runs, self.net.shapes(), device)
        self.net.initialize(self.parameters, self.streams["q"])
        self.target = Parameters(self.num_runs, self.net.shapes(), device)
        self.target.copy_(self.parameters)
        self.parts, self.target_parts = (self.net.parts(p, cfg.batch_size) for p in (self.parameters, self.target))
        self.optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.acting = self.net.acting(self.parameters)
        self.replay = self._memory()
        self.noise: dict[str, Any] = dict.fromkeys(PASSES)  # of the update at hand
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
        acting, noise = self.net.noise(self.streams, "acting noise", STEPS), self._noise(updates.sum())
        learned = None
        with flushed_denormals():
            for t in range(STEPS):
                begin = clock()
                q_values = self.q_values(self.observations, next(acting))
                actions = np.where(explore[t], random_actions[t], q_values.argmax(-1))
                acted = clock()
                step = self.envs.step(actions)
                stepped = clock()
                outcome = step.rewards, step.next_observations, step.terminations, step.truncations
                self.replay.add(self.observations, actions, *outcome)
                self.observations = step.observations
                for _ in range(updates[t]):
                    self.noise = next(noise)
                    learned = self._learn(next(draws))
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

    def _noise(self, count: int) -> Iterator[dict[str, Any]]:
        """For each of `count` updates, fresh noise for every pass of it; None where the network takes none."""
        drawn = [self.net.noise(self.streams, f"{use} noise", count) for use in PASSES]
        return (dict(zip(PASSES, each, strict=True)) for each in zip(*drawn, strict=True))

    def _learn(self, uniform: np.ndarray) -> Learned:
        """One update on transitions drawn by numbers in [0, 1), [R, B]."""
        learned = self._gradient(self.replay.sample(uniform))
        self.optimizer.step(self.cfg.learning_rate, self.cfg.max_grad_norm)
        return learned

    @torch.no_grad()
    def _gradient(self, batch: Transitions, weights: Tensor | None = None) -> Learned:
        """The gradient of the loss's mean, each sample times its weight [R, B], into `parameters.grad`."""
        learned: Learned = tuple(torch.empty_like(batch.rewards) for _ in range(3))
        for part, target_part in zip(self.parts, self.target_parts, strict=True):
            runs = part.runs
            mine = Transitions(*(entry[runs] for entry in batch))
            targets = self._targets(part, target_part, mine)
            outputs, tape = self.net.forward(part, mine.observations.transpose(1, 2), self.noise["online"])
            taken = (mine.actions.transpose(1, 2) == self.action_indices).float().unsqueeze(2)  # [r, A, 1, B], 1 or 0
            slopes, *results = self._loss(over_actions(self._by_action(outputs) * taken), targets, runs)
            if weights is not None:
                slopes = slopes * weights[runs].unsqueeze(1)
            by_outputs = taken * (slopes / self.cfg.batch_size).unsqueeze(1)
            self.net.backward(part, tape, by_outputs.view_as(outputs), self.noise["online"])
            for whole, result in zip(learned, results, strict=True):
                whole[runs] = result
        return learned

    def _by_action(self, outputs: Tensor) -> Tensor:
        """[r, A * Z, B] -> [r, A, Z, B]."""
        return outputs.unflatten(1, (self.num_actions, -1))

    # ---- what a descendant's paper changes

    def _network(self, **structure: Any) -> QNetwork:
        cfg = self.cfg
        return QNetwork(self.envs.observation_shape, self.num_actions, cfg.hidden_sizes, cfg.convolutions, **structure)

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        cfg, size = self.cfg, math.prod(self.envs.observation_shape)
        settings |= {"observation_dtype": self.envs.observation_dtype, "device": self.device}
        return kind(self.num_runs, cfg.buffer_size, cfg.num_envs, size, 1, cfg.gamma, **settings)

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        """What the transitions say Q(s, a) should be: [r, B]."""
        next_q_values, _ = self.net.forward(target_part, batch.next_observations.transpose(1, 2), self.noise["target"])
        return td_targets(batch.rewards, batch.discounts, greedy_values(next_q_values))

    def _loss(self, outputs: Tensor, targets: Tensor, runs: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For the outputs [r, Z, B] of the actions taken: d loss / d outputs; losses, errors, Q(s, a) [r, B] each."""
        q_values, td_clip = outputs.squeeze(1), self.coef["td_clip"][runs]
        td_errors = targets - q_values
        return -huber_slope(td_errors, td_clip).unsqueeze(1), huber(td_errors, td_clip), td_errors, q_values

    def q_values(self, observations: np.ndarray, noise: Any = None) -> np.ndarray:
        """Q(s, .) [R, N, A] of observations [R, N, ...], with the mean weights where no noise is given."""
        return self.acting(observations, noise).squeeze(-1)

    # ----

    def _metrics(self, learned: Learned | None) -> dict[str, np.ndarray]:
        """Means over the last update's batch."""
        names = ("loss", "error", "q_values")
        if learned is None:
            return {name: np.full(self.num_runs, np.nan) for name in names}
        return {name: x.mean(1).double().cpu().numpy() for name, x in zip(names, learned, strict=True)}

    def _update_target(self, due: np.ndarray) -> None:
        if due.all():
            self.target.copy_(self.parameters)
        elif due.any():
            index = torch.from_numpy(due.nonzero()[0]).to(self.device)
            for name, view in self.target.views.items():
                view.detach()[index] = self.parameters[name].detach()[index]

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N] for observations [R, N, O]: greedy, or `evaluation_epsilon`-greedy when streams are given."""
        greedy = self.q_values(observations).argmax(-1)
        if streams is None:
            return greedy
        uniform = streams.draw("actions", lambda rng: rng.random((greedy.shape[1], 2)))  # [R, N, 2]
        explore = uniform[..., 0] < self.cfg.evaluation_epsilon[:, None]
        return np.where(explore, (uniform[..., 1] * self.num_actions).astype(np.int64), greedy)

    def values(self, observations: np.ndarray) -> np.ndarray:
        """max_a Q(s, a) [R, N] of observations [R, N, O]."""
        return self.q_values(observations).max(-1)

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~self.parameters.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run."""
        return self.parameters.of_run(run)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("dqn")
