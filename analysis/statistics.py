"""Statistics of score matrices, with stratified bootstrap intervals.

scores are `[n, E]` (runs, tasks) or, in the vectorised functions, `[..., n, E]`. An interval is the percentile interval of
a stratified bootstrap: runs are drawn with replacement within each task, independently (Agarwal et al. 2021,
arXiv:2108.13264). Every function that draws takes `generator` (a NumPy Generator, or an int seed to make one) and uses it:
equal seeds give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A point estimate and its interval; floats, or arrays of one shape for curves and profiles."""

    point: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over tasks of the mean over runs: [..., n, E] -> [...]."""
    raise NotImplementedError


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs: [..., n, E] -> [...]."""
    raise NotImplementedError


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: mean of the middle half of all n E scores: [..., n, E] -> [...]."""
    raise NotImplementedError


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """How far the runs fall short of `target` on average, excess not counted: [..., n, E] -> [...]."""
    raise NotImplementedError


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean, "median": median, "iqm": iqm, "optimality_gap": optimality_gap,
}  # fmt: skip


def aggregate_intervals(
    scores: np.ndarray, generator: np.random.Generator | int = 0, reps: int = 2000, engine: str = "rliable", size: float = 0.95
) -> dict[str, Interval]:
    """name of AGGREGATES -> Interval for scores [n, E]. engine: `rliable` (slower) or `numpy` (the same, vectorised)."""
    raise NotImplementedError


def bootstrap(
    scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator | int = 0,
    reps: int = 2000, size: float = 0.95,
) -> Interval:  # fmt: skip
    """Stratified bootstrap interval of a vectorised statistic ([..., n, E] -> [...] or [..., K]) of scores [n, E(, C)]."""
    raise NotImplementedError


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y)/2, averaged over tasks: [..., n, E], [..., m, E] -> [...]."""
    raise NotImplementedError


def improvement_interval(
    x: np.ndarray, y: np.ndarray, generator: np.random.Generator | int = 0, reps: int = 2000, size: float = 0.95
) -> Interval:
    """The same with its interval, x [n, E] and y [m, E] resampled independently."""
    raise NotImplementedError


def performance_profile(
    scores: np.ndarray, taus: np.ndarray, generator: np.random.Generator | int = 0, reps: int = 2000, size: float = 0.95
) -> Interval:
    """Share of runs (over all tasks) with score > tau, for each tau: [n, E], [K] -> Interval of arrays [K]."""
    raise NotImplementedError


def sample_efficiency(
    curves: np.ndarray, generator: np.random.Generator | int = 0, reps: int = 500, size: float = 0.95
) -> Interval:
    """IQM over runs and tasks at each checkpoint: normalized curves [n, E, C] -> Interval of arrays [C]."""
    raise NotImplementedError


def mean_interval(
    values: np.ndarray, generator: np.random.Generator | int = 0, reps: int = 2000, size: float = 0.95
) -> Interval:
    """Mean over runs of one task (or of a curve) with its bootstrap interval: [n] -> floats, [n, C] -> arrays [C]."""
    raise NotImplementedError
