"""n-step TD prediction: Sutton & Barto 2018, section 7.1.

The values of a policy, here of the one that takes every action with the same probability, from returns of n rewards and
the estimate of the state that follows them,

    G_{t:t+n} = R_{t+1} + gamma R_{t+2} + ... + gamma^(n-1) R_{t+n} + gamma^n V(S_{t+n}),                 (eq. 7.1)
    V(S_t) <- V(S_t) + alpha [ G_{t:t+n} - V(S_t) ].                                                      (eq. 7.2)

n = 1 is TD(0), and an n longer than every episode is constant-alpha Monte-Carlo prediction.

The metric `rms_error` is the root mean square difference to the true values over the states that the policy can be in;
`rms_error_first_10` is its mean over the ends of a run's first ten episodes, the ordinate of figure 7.2, and nan before
the tenth. They alone need the task's model, and are nan where it has none.

Axes: observations [R, N, 1], table [R, S], rings of the last steps [R, N, L]; R runs, N environments, S states, L the
largest n. The updates of N environments follow in order of n-th environment.

Departures from the source:
- A time limit is no end of the task: what is left of an episode then bootstraps from its last state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun, require
from algorithms.common.streams import Streams
from algorithms.common.tabular import STEPS, Floats, Indices, TableAgent, require_shares, states_of

SUPPORTS = {"tabular"}
FIRST = 10  # episodes, figure 7.2


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are about the best of figure 7.2."""

    n: PerRun = 4.0  # env_steps, a whole number
    alpha: PerRun = 0.4
    gamma: PerRun = 1.0
    num_envs: int = 1

    def __post_init__(self) -> None:
        require_shares(self, "alpha", "gamma")
        n = np.asarray(self.n)
        require(bool(np.all((n >= 1) & (n == np.floor(n)) & np.isfinite(n))), f"n is {n}; it must be 1, 2, 3, ...")


def uniform_policy(model: Any) -> tuple[Floats, Floats]:
    """What taking every action with the same probability does: probabilities P [S, S] of going from s to s' without
    the task ending there, and mean rewards r [S]."""
    num_states, num_actions, _ = model.probabilities.shape
    share = model.probabilities / num_actions
    moves = np.zeros((num_states, num_states))
    place = np.broadcast_to(np.arange(num_states)[:, None, None], share.shape)
    np.add.at(moves, (place, model.next_states), np.where(model.terminations, 0.0, share))
    return moves, (share * model.rewards).sum((1, 2))


def visitable(moves: Floats, start: Floats) -> Indices:
    """The states that can be got to by `moves` [S, S] from those where `start` [S] is positive."""
    reached = start > 0
    while (more := reached | (reached @ (moves > 0))).sum() > reached.sum():
        reached = more
    return np.flatnonzero(reached)


class Agent(TableAgent):
    """n-step TD prediction for R runs at once."""

    tables = ("state_values",)
    memory = ("observations", "clock", "visited", "returns", "finished", "error_sum")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.n = np.asarray(cfg.n).astype(np.int64)  # [R]
        self.size = int(self.n.max())  # L
        self.state_values = np.zeros((self.num_runs, self.num_states))
        powers = np.repeat(np.asarray(cfg.gamma)[:, None], self.size, 1)
        self.powers = np.concatenate((np.ones((self.num_runs, 1)), np.multiply.accumulate(powers, 1)), 1)  # gamma^k
        self.clock = np.zeros((self.num_runs, cfg.num_envs), np.int64)  # t, env_steps of the episodes under way
        self.visited = np.zeros((*self.clock.shape, self.size), np.int64)  # S_t at t mod L
        self.returns = np.zeros(self.visited.shape)  # the rewards of G_{t:t+n} that have come so far
        self.finished = np.zeros(self.num_runs, np.int64)  # episodes
        self.error_sum = np.zeros(self.num_runs)  # of the first ten's RMS errors
        self.truth: Floats | None = None
        if envs.model is not None:
            moves, rewards = uniform_policy(envs.model)
            self.judged = visitable(moves, envs.model.start)
            moves, rewards = moves[np.ix_(self.judged, self.judged)], rewards[self.judged]
            solved = {g: np.linalg.solve(np.eye(len(moves)) - g * moves, rewards) for g in set(cfg.gamma.tolist())}
            self.truth = np.stack([solved[g] for g in cfg.gamma.tolist()])  # [R, judged states]

    def iterate(self) -> dict[str, np.ndarray]:
        """The loop of section 7.1 for STEPS steps of every environment. Returns metrics, each [R]."""
        clock = time.perf_counter
        uniform = self.streams.draw("actions", lambda rng: rng.random((STEPS, self.num_envs)), axis=1)
        actions = (uniform * self.num_actions).astype(np.int64)
        states = states_of(self.observations)
        for t in range(STEPS):
            begin = clock()
            step = self.envs.step(actions[t])
            stepped = clock()
            next_states = states_of(step.next_observations)
            for n in range(self.num_envs):
                ended = step.terminations[:, n] | step.truncations[:, n]
                bootstrap = np.where(step.terminations[:, n], 0.0, 1.0)
                self._remember(n, states[:, n], step.rewards[:, n])
                self._learn(n, next_states[:, n], bootstrap, ended)
                self._judge(np.flatnonzero(ended))
            self.observations = step.observations
            states = states_of(self.observations)
            self.timers["env"] += stepped - begin
            self.timers["learn"] += clock() - stepped
        self.env_steps += self.steps_per_iteration
        first = np.where(self.finished >= FIRST, self.error_sum / FIRST, np.nan)
        return {"rms_error": self._rms_error(self.runs), "rms_error_first_10": first}

    def _remember(self, n: int, states: Indices, rewards: Floats) -> None:
        """Starts the return of S_t and adds R_{t+1} to all that are open, where it is not 0."""
        slot = self.clock[:, n] % self.size
        self.visited[self.runs, n, slot], self.returns[self.runs, n, slot] = states, 0.0
        rows = np.flatnonzero(rewards)
        ages = (slot[rows, None] - np.arange(self.size)) % self.size  # [rows, L] env_steps since each one's start
        self.returns[rows, n] += self.powers[rows[:, None], ages] * rewards[rows, None]

    def _learn(self, n: int, next_states: Indices, bootstrap: Floats, ended: np.ndarray) -> None:
        """Updates V(S_tau) for tau = t + 1 - n; where the episode ended, for those after it too. All [R]."""
        now = self.clock[:, n] + 1
        horizon = np.minimum(self.n, now)  # from tau to now
        rows = np.flatnonzero((now >= self.n) | ended)
        while rows.size:
            slot = (now[rows] - horizon[rows]) % self.size
            place = rows, self.visited[rows, n, slot]
            after = self.powers[rows, horizon[rows]] * bootstrap[rows] * self.state_values[rows, next_states[rows]]
            targets = self.returns[rows, n, slot] + after
            self.state_values[place] += self.cfg.alpha[rows] * (targets - self.state_values[place])
            horizon[rows] -= 1
            rows = rows[ended[rows] & (horizon[rows] > 0)]
        self.clock[:, n] = np.where(ended, 0, now)

    def _judge(self, rows: Indices) -> None:
        """Notes the error after an episode of the runs `rows`, if it is one of their first ten."""
        rows = rows[self.finished[rows] < FIRST]
        if rows.size:
            self.error_sum[rows] += self._rms_error(rows)
            self.finished[rows] += 1

    def _rms_error(self, rows: Indices) -> Floats:
        """sqrt(mean_s (V(s) - v(s))^2) of the runs `rows`."""
        if self.truth is None:
            return np.full(len(rows), np.nan)
        return np.sqrt(np.square(self.state_values[rows[:, None], self.judged] - self.truth[rows]).mean(1))

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> Indices:
        """Actions [R, N] for observations [R, N, 1]: the policy's, drawn from the streams; without them action 0, as
        prediction prefers none."""
        if streams is None:
            return np.zeros(observations.shape[:2], np.int64)
        uniform = streams.draw("actions", lambda rng: rng.random((observations.shape[1],)))
        return (uniform * self.num_actions).astype(np.int64)

    def values(self, observations: np.ndarray) -> Floats:
        """V(s), which is the policy's value, not that of acting greedily: [R, N, 1] -> [R, N]."""
        values: Floats = self.state_values[self.runs[:, None], states_of(observations)]
        return values


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("td_n")
