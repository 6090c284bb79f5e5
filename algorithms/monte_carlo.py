"""Monte-Carlo control: Sutton & Barto 2018, section 5.4, "On-policy first-visit MC control", its version
for epsilon-soft policies.

Play an episode with the epsilon-greedy policy, then go back through it: the return of the first visit to (S, A) is one
sample of Q(S, A), which is the average of its samples,

    G <- R + gamma G;   N(S, A) <- N(S, A) + 1;   Q(S, A) <- Q(S, A) + [ G - Q(S, A) ] / N(S, A).

With `every_visit` each visit counts as one; without `sample_average` a constant alpha takes the place of 1 / N.

Axes: observations [R, N, 1], tables [R, S, A], episodes under way [R, N, L]; R runs, N environments, S states, A
actions, L steps. N environments choose from the same table; episodes that end in the same step follow in order of n.

Departures from the source:
- Ties between greedy actions are broken at random, at every step and not once for each improvement of the policy.
- A time limit is no end of the task: G then starts from what the table says of the policy in the last state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun
from algorithms.common.tabular import (
    STEPS,
    ControlConfig,
    TableAgent,
    choose,
    exploration,
    require_shares,
    soft_values,
    states_of,
)

SUPPORTS = {"tabular"}


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
    """Averages of first visits, as in the source, which leaves epsilon and gamma to the task."""

    alpha: PerRun = 0.1  # step size where samples are not averaged
    sample_average: PerRun = 1.0  # 1: the step size is 1 / visits of (s, a); 0: it is alpha
    every_visit: PerRun = 0.0  # 1: every visit is a sample; 0: the first one of an episode

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(self, "every_visit")


class Agent(TableAgent):
    """Monte-Carlo control for R runs at once."""

    memory = ("observations", "lengths", "visited", "taken", "rewards")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.place = self.runs[:, None], np.arange(cfg.num_envs)  # indices of [R, N]
        self.lengths = np.zeros((self.num_runs, cfg.num_envs), np.int64)  # env_steps of the episodes under way
        self.visited = np.zeros((*self.lengths.shape, STEPS), np.int64)  # [R, N, L] S_t
        self.taken = np.zeros_like(self.visited)  # A_t
        self.rewards = np.zeros(self.visited.shape)  # R_{t+1}

    def iterate(self) -> dict[str, np.ndarray]:
        """The loop of section 5.4 for STEPS steps of every environment. Returns metrics, each [R]: of the episodes
        that ended meanwhile, if any."""
        cfg, clock = self.cfg, time.perf_counter
        env_steps = self.env_steps + cfg.num_envs * np.arange(1, STEPS + 1)  # after each step
        epsilon = self.epsilon_after(env_steps - cfg.num_envs)  # [T, R]
        explore, noise = exploration(self.streams, epsilon, cfg.num_envs, self.num_actions)
        errors, samples = np.zeros(self.num_runs), np.zeros(self.num_runs)
        for t in range(STEPS):
            begin = clock()
            states = states_of(self.observations)
            actions = choose(self.estimates(states), explore[t], noise[t])
            acted = clock()
            step = self.envs.step(actions)
            stepped = clock()
            self._remember(states, actions, step.rewards)
            for run, n in np.argwhere(step.terminations | step.truncations).tolist():
                following = 0.0
                if not step.terminations[run, n]:
                    last = self.q_values[run, int(step.next_observations[run, n, 0])]
                    following = float(soft_values(last, epsilon[t, run]))
                for error in self._learn(run, n, following):
                    errors[run] += abs(error)
                    samples[run] += 1
            self.observations = step.observations
            self.timers["act"] += acted - begin
            self.timers["env"] += stepped - acted
            self.timers["learn"] += clock() - stepped
        self.env_steps = int(env_steps[-1])
        none = np.full(self.num_runs, np.nan)
        return {"errors": np.divide(errors, samples, out=none, where=samples > 0), "epsilon": epsilon[-1]}

    def _remember(self, states: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Adds a step to the episodes under way; a parked run's stand still."""
        if self.lengths.max() == self.visited.shape[2]:
            for name in ("visited", "taken", "rewards"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate((array, np.zeros_like(array)), 2))
        step = *self.place, self.lengths
        self.visited[step], self.taken[step], self.rewards[step] = states, actions, rewards
        self.lengths += ~self.envs.parked[:, None]

    def _learn(self, run: int, n: int, following: float) -> list[float]:
        """Goes back through an ended episode, after which come returns of `following`; G - Q of each sample."""
        length, self.lengths[run, n] = int(self.lengths[run, n]), 0
        gamma, alpha = float(self.cfg.gamma[run]), float(self.cfg.alpha[run])
        average, every_visit = self.cfg.sample_average[run] > 0, self.cfg.every_visit[run] > 0
        q_values, visits, rewards = self.q_values[run], self.visits[run], self.rewards[run, n, :length].tolist()
        pairs = list(zip(self.visited[run, n, :length].tolist(), self.taken[run, n, :length].tolist(), strict=True))
        first = {pair: t for t, pair in reversed(list(enumerate(pairs)))}
        value, errors = following, []  # G
        for t in reversed(range(length)):
            pair = pairs[t]
            value = rewards[t] + gamma * value
            if every_visit or first[pair] == t:
                visits[pair] += 1
                errors.append(value - float(q_values[pair]))
                q_values[pair] += errors[-1] * (1.0 / visits[pair] if average else alpha)
        return errors

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, of the episodes under way only what has happened."""
        state, longest = super().state(), max(1, int(self.lengths.max()))
        happened = np.arange(longest) < self.lengths[..., None]
        return state | {
            name: np.where(happened, state[name][..., :longest], 0) for name in ("visited", "taken", "rewards")
        }


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("monte_carlo")
