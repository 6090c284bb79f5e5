"""What actor-critics share that are linear in tile-coded features: acting, stepping, the policies, eligibility traces.

Weights are [R, F] or [R, F, P] for P outputs; R runs, N environments, F features, of which K are active (tiles.py), A
numbers of an action. The papers' pseudocode has one environment; N of them act with the same weights, and their updates
follow one another in order of n. Actions are numbers in [-1, 1], half their range is 1, and they are stretched to the
task's box where they leave for it. They may lie outside: what becomes of them then is the task's affair.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithms.common.config import require
from algorithms.common.memory import Remembering
from algorithms.common.streams import Streams
from algorithms.common.tiles import Floats, Indices, TileCoder

STEPS = 50  # of every environment in one iterate(); a matter of speed only, results do not depend on it
LOG_2PI = math.log(2 * math.pi)


class Sample(NamedTuple):
    """One step of one environment of each run."""

    features: Indices  # [R, K] active in s
    actions: Any  # a: float64 [R, A], or int64 [R]
    noise: Floats  # [R, A], what a was drawn by
    rewards: Floats  # [R]
    discounts: Floats  # [R] gamma, and 0 where the task ended at s'
    successors: Indices  # [R, K] active in s'
    ended: NDArray[np.bool_]  # [R] whether the episode did, by the task's end or a time limit


def check_settings(cfg: Any) -> None:
    """What holds for the settings of all of these algorithms."""
    for name in ("num_tilings", "num_tiles", "num_envs"):
        require(getattr(cfg, name) >= 1, f"{name} is {getattr(cfg, name)}; it must be at least 1")
    least = 2 * cfg.num_tilings
    require(cfg.memory >= least, f"memory is {cfg.memory}; it must be at least {least}, two weights for each tiling")
    require_shares(cfg, "gamma")


def require_shares(cfg: Any, *names: str) -> None:
    """Refuse settings outside [0, 1]."""
    for name in names:
        value = np.asarray(getattr(cfg, name))
        require(bool(np.all((value >= 0) & (value <= 1))), f"{name} is {value}; it must lie in [0, 1]")


def require_nonnegative(cfg: Any, *names: str) -> None:
    """Refuse settings below 0."""
    for name in names:
        value = np.asarray(getattr(cfg, name))
        require(bool(np.all(value >= 0)), f"{name} is {value}; it must not be negative")


def require_positive(cfg: Any, *names: str) -> None:
    """Refuse settings that are not above 0."""
    for name in names:
        value = np.asarray(getattr(cfg, name))
        require(bool(np.all(value > 0)), f"{name} is {value}; it must be positive")


class LinearAgent(Remembering):
    """Features, weights and streams of R runs; an algorithm adds how it acts and what it learns from a step.

    `weights` names the attributes [R, F, ...] that hold what was learned, `memory` the others that have to be saved.
    """

    weights: tuple[str, ...] = ()
    memory: ClassVar[tuple[str, ...]] = ("streams", "observations", "env_steps")

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs = cfg, envs  # NumPy on every device: there is nothing here for another one to do
        self.num_runs, self.num_envs = len(seeds), cfg.num_envs
        self.steps_per_iteration = STEPS * cfg.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        unknown = np.full(envs.observation_shape, np.inf)
        low = -unknown if envs.observation_low is None else envs.observation_low
        high = unknown if envs.observation_high is None else envs.observation_high
        self.coder = TileCoder(low, high, cfg.num_tilings, cfg.num_tiles, cfg.memory)
        self.discrete = envs.num_actions is not None
        self.action_size = envs.num_actions if self.discrete else envs.action_shape[0]  # A
        if not self.discrete:
            low, high = envs.action_low, envs.action_high
            require(bool(np.isfinite([low, high]).all()), "the task's actions have no bounds; they are needed here")
            self.centre, self.half_width = (high + low) / 2, (high - low) / 2
        self.env_steps = 0
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = envs.reset(seeds)  # [R, N, O]
        self.features = self.coder(self.observations)  # [R, N, K]

    def zeros(self, *outputs: int) -> Floats:
        """Weights [R, F, *outputs]."""
        return np.zeros((self.num_runs, self.coder.num_features, *outputs))

    def step_size(self, name: str) -> Floats:
        """A learning rate per run [R]: that of the settings over x^T x, the number of active features."""
        size: Floats = np.asarray(getattr(self.cfg, name)) / self.coder.num_active
        return size

    def iterate(self) -> dict[str, np.ndarray]:
        """STEPS steps of every environment, each followed by its update. Returns metrics, each [R]."""
        clock, errors = time.perf_counter, np.zeros(self.num_runs)
        noise = self._noise(STEPS)  # [T, R, N, A]
        gamma = np.reshape(self.cfg.gamma, (-1, 1))
        with np.errstate(all="ignore"):  # `diverged` tells of numbers that are no longer finite
            for t in range(STEPS):
                begin = clock()
                actions = self._choose(self.features, noise[t])
                acted = clock()
                step = self.envs.step(self.to_task(actions))
                stepped = clock()
                successors = self.coder(step.next_observations)
                discounts, ended = np.where(step.terminations, 0.0, gamma), step.terminations | step.truncations
                steps = self.features, actions, noise[t], step.rewards, discounts, successors, ended
                for n in range(self.num_envs):
                    errors += np.abs(self._learn(Sample._make(x[:, n] for x in steps), n))
                self.observations = step.observations
                self.features = self.coder(step.observations) if ended.any() else successors
                self.timers["act"] += acted - begin
                self.timers["env"] += stepped - acted
                self.timers["learn"] += clock() - stepped
        self.env_steps += self.steps_per_iteration
        return {"td_errors": errors / self.steps_per_iteration}

    # ---- what an algorithm fills in

    def _noise(self, num_steps: int) -> Floats:
        """What actions are drawn by [T, R, N, A], from the runs' stream `actions`."""
        raise NotImplementedError

    def _choose(self, features: Indices, noise: Floats) -> Any:
        """The behaviour's actions [R, N, A] or [R, N] for features [R, N, K], drawn by noise [R, N, A]."""
        raise NotImplementedError

    def _learn(self, sample: Sample, n: int) -> Floats:
        """One update on a step of the n-th environments. Returns the TD errors [R]."""
        raise NotImplementedError

    # ----

    def to_task(self, actions: Any) -> Any:
        """What the task takes in place of actions in [-1, 1]; the index of a discrete action as it is."""
        if self.discrete:
            return actions
        return (self.centre + self.half_width * actions).astype(np.float32)

    def values(self, observations: NDArray[np.float32]) -> Floats:
        """V(s) [R, N] of observations [R, N, O]."""
        return read(self.v, self.coder(observations))  # type: ignore[attr-defined, no-any-return]

    def diverged(self) -> NDArray[np.bool_]:
        """Runs whose weights are not finite: bool [R]."""
        finite = [np.isfinite(getattr(self, name)).reshape(self.num_runs, -1).all(1) for name in self.weights]
        return ~np.logical_and.reduce(finite)

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run."""
        return {name: getattr(self, name)[run].copy() for name in self.weights}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        return super().state() | {name: getattr(self, name).copy() for name in self.weights}

    def load_state(self, state: Any) -> None:
        """Go on exactly where `state()` was taken."""
        super().load_state(state)
        for name in self.weights:
            setattr(self, name, np.array(state[name]))
        self.features = self.coder(self.observations)


# ---- weights and traces --------------------------------------------------------------------------------------------


def read(weights: Floats, features: Indices) -> Floats:
    """w^T x: weights [R, F, ...], active features [R, K] or [R, N, K] -> [R, ...] or [R, N, ...]."""
    runs = np.arange(len(weights)).reshape(-1, *[1] * (features.ndim - 1))
    total: Floats = weights[runs, features].sum(features.ndim - 1)
    return total


def add(weights: Floats, features: Indices, amounts: Floats) -> None:
    """w <- w + amounts x: weights [R, F, ...], active features [R, K], amounts [R, ...]."""
    weights[np.arange(len(weights))[:, None], features] += amounts[:, None]


def beside(amounts: Floats, weights: Floats) -> Floats:
    """Amounts [R] in a shape that multiplies weights [R, ...]."""
    return amounts.reshape(-1, *[1] * (weights.ndim - 1))


class Traces:
    """Eligibility traces e [R, F, ...] of weights w [R, F, ...], one for each of N environments.

    Where they are not `kept`, lambda is 0: a trace is what the last step added, and no more than its K features are
    touched.
    """

    def __init__(self, weights: Floats, num_envs: int, kept: bool):
        self.kept = kept
        self._traces = [np.zeros_like(weights) for _ in range(num_envs if kept else 0)]
        self._last: tuple[Indices, Floats]

    def update(self, n: int, shares: Floats, features: Indices, amounts: Floats) -> None:
        """e <- shares e + amounts x: shares [R], active features [R, K], amounts [R, ...]."""
        self._last = features, amounts
        if self.kept:
            self._traces[n] *= beside(shares, self._traces[n])
            add(self._traces[n], features, amounts)

    def move(self, n: int, weights: Floats, sizes: Floats) -> None:
        """w <- w + sizes e, after `update`: sizes [R]."""
        features, amounts = self._last
        if self.kept:
            weights += beside(sizes, weights) * self._traces[n]
        else:
            add(weights, features, beside(sizes, amounts) * amounts)

    def product(self, n: int, weights: Floats) -> Floats:
        """w^T e [R], after `update`, of weights [R, F]."""
        features, amounts = self._last
        product: Floats = (weights * self._traces[n]).sum(1) if self.kept else read(weights, features) * amounts
        return product

    def end(self, n: int, ended: NDArray[np.bool_]) -> None:
        """e <- 0 in the runs that `ended` [R] names."""
        if self.kept:
            self._traces[n][ended] = 0.0

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"traces": [trace.copy() for trace in self._traces]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self._traces = [np.array(trace) for trace in state["traces"]]


# ---- policies whose parameters are linear in the features ----------------------------------------------------------


class Softmax:
    """pi(a|s) = exp(h_a) / sum_b exp(h_b) for outputs h [..., A]."""

    def __init__(self, num_actions: int):
        self.num_outputs = num_actions

    def mode(self, outputs: Floats) -> Indices:
        """The likeliest action, of equals the first: [...]."""
        likeliest: Indices = outputs.argmax(-1)
        return likeliest

    def sample(self, outputs: Floats, noise: Floats) -> Indices:
        """Actions [...] drawn by Gumbel noise [..., A]."""
        drawn: Indices = (outputs + noise).argmax(-1)
        return drawn

    def log_prob(self, outputs: Floats, actions: Indices) -> Floats:
        """log pi(a|s), [...]."""
        return np.log(np.take_along_axis(self._shares(outputs), actions[..., None], -1)[..., 0])

    def slope(self, outputs: Floats, actions: Indices) -> Floats:
        """d log pi(a|s) / d h = 1(a) - pi(.|s): [..., A]."""
        slope: Floats = (np.arange(self.num_outputs) == actions[..., None]) - self._shares(outputs)
        return slope

    def _shares(self, outputs: Floats) -> Floats:
        weights = np.exp(outputs - outputs.max(-1, keepdims=True))
        shares: Floats = weights / weights.sum(-1, keepdims=True)
        return shares


class Normal:
    """pi(a|s) = N(mu, sigma^2) for every number of an action; outputs are [..., 2 A]: mu, then log sigma."""

    def __init__(self, action_size: int):
        self.action_size, self.num_outputs = action_size, 2 * action_size

    def mode(self, outputs: Floats) -> Floats:
        """mu, [..., A]."""
        return outputs[..., : self.action_size]

    def deviation(self, outputs: Floats) -> Floats:
        """sigma, [..., A]."""
        return np.exp(outputs[..., self.action_size :])

    def sample(self, outputs: Floats, noise: Floats) -> Floats:
        """Actions [..., A] drawn by standard normal noise [..., A]."""
        return self.mode(outputs) + self.deviation(outputs) * noise

    def log_prob(self, outputs: Floats, actions: Floats) -> Floats:
        """log pi(a|s), [...]."""
        z = (actions - self.mode(outputs)) / self.deviation(outputs)
        log_probs: Floats = standard_log_prob(z) - outputs[..., self.action_size :].sum(-1)
        return log_probs

    def slope(self, outputs: Floats, actions: Floats) -> Floats:
        """d log pi(a|s) / d (mu, log sigma) = ((a - mu) / sigma^2, (a - mu)^2 / sigma^2 - 1): [..., 2 A]."""
        sigma = self.deviation(outputs)
        z = (actions - self.mode(outputs)) / sigma
        return np.concatenate((z / sigma, z * z - 1), -1)


def standard_log_prob(z: Floats) -> Floats:
    """log of the standard normal density of z [..., A]: [...]."""
    log_probs: Floats = -0.5 * (z * z + LOG_2PI).sum(-1)
    return log_probs


def scaled_slope(policy: Softmax | Normal, outputs: Floats, actions: Any, scaled: NDArray[np.bool_]) -> Floats:
    """`policy.slope` [R, P]; times sigma^2 in runs that are `scaled` [R], if the policy has a sigma.

    The gradient grows without bounds as sigma falls; times sigma^2 it does not (rlpark NormalDistributionScaled.java).
    """
    slope = policy.slope(outputs, actions)
    if not isinstance(policy, Normal):
        return slope
    variance = np.square(policy.deviation(outputs))
    return slope * np.where(scaled[:, None], np.concatenate((variance, variance), -1), 1.0)
