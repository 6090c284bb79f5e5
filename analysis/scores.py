"""Scores: one number per run by a named statistic, score matrices, and normalization by fixed anchors.

A *score* is one number per run. A *score matrix* is `[n, E]` (seeds, tasks) or `[n, E, C]` (seeds, tasks, checkpoints).
Normalized: (score - low) / (high - low), per task, so that low is 0 and high is 1. The anchors are fixed numbers with a
source; `best_anchors` alone takes them from the compared runs, because that is what Table 1 of the PPO paper does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
REFERENCE = ROOT / "results" / "reference"
KEYS = ["task", "algorithm", "variant", "seed"]  # of every result row
WINDOW = 100  # training episodes in a score, PPO paper section 6.1
POINTS = 50  # points of the common grid of env_steps
THIN = 100  # rows kept of each metric of a run


@dataclass(frozen=True)
class Episodes:
    """One run's finished episodes, in order.

    env_steps int64 [K]: decisions of the run when the episode ended; episode_return float64 [K]: raw, undiscounted;
    episode_length int64 [K]; train bool [K]: False for evaluation episodes. steps: the run's budget in env_steps.
    """

    env_steps: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray
    train: np.ndarray
    steps: int


Metrics = dict[str, tuple[np.ndarray, np.ndarray]]
"""One run's metrics: name -> (env_steps int64 [k], values float64 [k]), in order."""


# ---- statistics of one run -----------------------------------------------------------------------------------------


def final_100_training_episodes(episodes: Episodes) -> float:
    """Mean raw return of the last 100 training episodes (PPO paper, section 6.1); of all if fewer, NaN if none.

    Fewer than 100 are flagged by the column `train_episodes` of the run table.
    """
    returns = episodes.episode_return[episodes.train][-WINDOW:]
    return float(returns.mean()) if len(returns) else float("nan")


def area_under_curve(episodes: Episodes) -> float:
    """Mean of `training_curve` over the common grid: the average return while learning; NaN if no episode finished.

    Grid points before the first finished episode take its value, so that a long first episode is not rewarded; those
    past the end of a run that failed or diverged take its last value.
    """
    values = training_curve(episodes)
    seen = np.flatnonzero(np.isfinite(values))
    if not len(seen):
        return float("nan")
    return float(np.interp(np.arange(len(values)), seen, values[seen]).mean())


def last_evaluation_10_episodes(episodes: Episodes) -> float:
    """Mean return of the last 10 evaluation episodes; NaN if the run was not evaluated."""
    returns = episodes.episode_return[~episodes.train][-10:]
    return float(returns.mean()) if len(returns) else float("nan")


def max_over_evaluations(episodes: Episodes) -> float:
    """The run's best evaluation (mean of the episodes that share an env_steps); NaN if the run was not evaluated.

    The mean of this over seeds is the ChainerRL and PFRL statistic. It is not TD3's, which is
    `max_over_evaluations_of_mean_curve` and belongs to a set of runs, not to one.
    """
    values = evaluation_curve(episodes)[1]
    return float(values.max()) if len(values) else float("nan")


STATISTICS: dict[str, Callable[[Episodes], float]] = {
    "final_100_training_episodes": final_100_training_episodes,
    "area_under_curve": area_under_curve,
    "last_evaluation_10_episodes": last_evaluation_10_episodes,
    "max_over_evaluations": max_over_evaluations,
}


FIRST = re.compile(r"first_([1-9]\d*)_training_episodes")
LAST = re.compile(r"last_evaluation_([1-9]\d*)_episodes")
METRIC = "final_metric:"


def first_training_episodes(episodes: Episodes, count: int) -> float:
    """Mean raw return of the first `count` training episodes: what learning itself earns; NaN if fewer finished."""
    returns = episodes.episode_return[episodes.train][:count]
    return float(returns.mean()) if len(returns) == count else float("nan")


def last_evaluation(episodes: Episodes, count: int) -> float:
    """Mean return of the last `count` evaluation episodes, all of one evaluation; NaN if it had fewer."""
    at, returns = episodes.env_steps[~episodes.train], episodes.episode_return[~episodes.train]
    if len(returns) < count or at[-count] != at[-1]:
        return float("nan")
    return float(returns[-count:].mean())


def metric_of(statistic: str) -> str | None:
    """The metric whose last value is the score, `final_metric:<name>`; None for a statistic of episodes.

    Such a score is no return: no random policy's score is its 0, and it is not normalized.
    """
    return statistic.removeprefix(METRIC) if statistic.startswith(METRIC) else None


def columns_of(statistic: str) -> list[str]:
    """The columns of the run table that hold statistics: the usual ones, and this one."""
    return list(dict.fromkeys([*STATISTICS, statistic]))


def of_run(statistic: str, episodes: Episodes, metrics: Metrics | None) -> dict[str, float]:
    """column of `columns_of` -> value, of one run; a metric that the run did not write down is NaN."""
    found = {name: function(episodes) for name, function in STATISTICS.items()}
    if first := FIRST.fullmatch(statistic):
        found[statistic] = first_training_episodes(episodes, int(first[1]))
    elif statistic not in STATISTICS and (last := LAST.fullmatch(statistic)):
        found[statistic] = last_evaluation(episodes, int(last[1]))
    elif (name := metric_of(statistic)) is not None:
        values = metrics[name][1] if metrics and name in metrics else np.empty(0)
        found[statistic] = float(values[-1]) if len(values) else float("nan")
    return found


def meaning(statistic: str) -> str:
    """What a statistic is, in words."""
    if first := FIRST.fullmatch(statistic):
        return f"mean raw return of the first {int(first[1]):,} training episodes"
    if (name := metric_of(statistic)) is not None:
        return f"last value of the metric {name}"
    if statistic not in STATISTICS and (last := LAST.fullmatch(statistic)):
        return f"mean return of the last evaluation's {int(last[1]):,} episodes"
    text = (STATISTICS[statistic].__doc__ or "").strip().split("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def evaluation_of(statistic: str) -> str:
    """Which episodes a statistic is about: training, or deterministic ones; "" for a metric."""
    if metric_of(statistic) is not None:
        return ""
    learning = statistic in ("final_100_training_episodes", "area_under_curve") or FIRST.fullmatch(statistic)
    return "training" if learning else "deterministic"


def check_statistic(name: str) -> str:
    """The name itself; ValueError with the near names if no statistic is called so."""
    if name in STATISTICS or FIRST.fullmatch(name) or LAST.fullmatch(name) or metric_of(name):
        return name
    known = [*STATISTICS, "first_500_training_episodes", "last_evaluation_100_episodes", f"{METRIC}<name>"]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    raise ValueError(f"unknown score statistic {name!r}; did you mean {', '.join(near)}?")


# ---- curves of one run ---------------------------------------------------------------------------------------------


def grid(steps: int, points: int = POINTS) -> np.ndarray:
    """The common grid of env_steps, int64 [points]: the budget's k/points, k = 1..points, rounded."""
    return np.rint(steps * np.arange(1, points + 1) / points).astype(np.int64)


def training_curve(episodes: Episodes, points: int = POINTS) -> np.ndarray:
    """Mean return of the last 100 training episodes finished by each grid point, float64 [points]; NaN where none is.

    Past the env_steps that a run reached (it is still running, or failed) the value is NaN too, not its last one.
    """
    at, returns = episodes.env_steps[episodes.train], episodes.episode_return[episodes.train]
    if not len(at):
        return np.full(points, np.nan)
    where = grid(episodes.steps, points)
    finished = np.searchsorted(at, where, side="right")  # episodes finished by each grid point
    total = np.concatenate([[0.0], np.cumsum(returns)])
    first = np.maximum(finished - WINDOW, 0)
    with np.errstate(invalid="ignore"):
        values = (total[finished] - total[first]) / (finished - first)
    longest = int(episodes.episode_length.max())  # the episode under way when the budget ended is not over
    values[where > at[-1] + longest] = np.nan
    return values


def evaluation_curve(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """(env_steps int64 [k], mean return float64 [k]) of the run's k evaluations; an evaluation shares one env_steps."""
    at, returns = episodes.env_steps[~episodes.train], episodes.episode_return[~episodes.train]
    where, first, counts = np.unique(at, return_index=True, return_counts=True)
    if not len(where):
        return where, np.empty(0)
    return where, np.add.reduceat(returns, first) / counts


def online_curve(episodes: Episodes, count: int, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(number of the episode int64 [k], mean return float64 [k]) of the first `count` training episodes, in k parts.

    Each point is the mean of the episodes after the point before it; parts that have not finished are left out.
    """
    edges = np.rint(count * np.arange(min(points, count) + 1) / min(points, count)).astype(np.int64)
    returns = episodes.episode_return[episodes.train]
    edges = edges[edges <= len(returns)]
    if len(edges) < 2:
        return edges[:0], np.empty(0)
    sums = np.add.reduceat(returns[: edges[-1]], edges[:-1])
    return edges[1:], sums / np.diff(edges)


def thinned(env_steps: np.ndarray, values: np.ndarray, most: int = THIN) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a metric, evenly chosen, the last one among them."""
    count = len(values)
    if count <= most:
        return env_steps, values
    kept = np.arange(1, most + 1) * count // most - 1
    return env_steps[kept], values[kept]


def max_over_evaluations_of_mean_curve(curves: np.ndarray) -> float:
    """TD3's statistic: the maximum over time of the mean over seeds, curves [n, C] -> scalar. Optimistic by design."""
    return float(np.nanmax(np.mean(curves, axis=0)))


# ---- the random policy, and what failed runs score -----------------------------------------------------------------


def random_scores(path: Path | None = None) -> dict[str, float]:
    """task -> mean episode return of uniformly random actions, from results/reference/random_policy.csv."""
    path = path or REFERENCE / "random_policy.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the random policy's scores are missing; restore the file from the repository")
    table = pd.read_csv(path)
    return dict(zip(table["task"], table["mean"].astype(float), strict=True))


def counted_scores(runs: pd.DataFrame, statistic: str, random: dict[str, float] | None = None) -> pd.Series:
    """The score of each row of the run table by the named statistic: what counts as data.

    finished: its statistic. failed, diverged: its statistic, or the random policy's score if it finished no episode;
    never dropped. running, missing: NaN, and listed by `left_out`. For a metric nothing stands in.
    """
    values = runs[check_statistic(statistic)].astype(float)
    broken = runs["status"].isin(["failed", "diverged"]) & ~np.isfinite(values)
    if broken.any() and metric_of(statistic) is None:
        if random is None:
            random = random_scores() if (REFERENCE / "random_policy.csv").is_file() else {}
        values = values.where(~broken, runs["task"].map(random).astype(float))
    return values.where(runs["status"].isin(["finished", "failed", "diverged"]))


def left_out(runs: pd.DataFrame) -> pd.DataFrame:
    """The planned runs that have no score: missing, running, or without a random score to stand in."""
    return runs[~np.isfinite(runs["score"].astype(float))]


# ---- matrices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """Scores [n, E] (or [n, E, C]) of one algorithm and variant; `dropped`: seeds that lack a task, not in it."""

    scores: np.ndarray
    tasks: list[str]
    seeds: list[int]
    dropped: list[int] = field(default_factory=list)


def settings(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The (algorithm, variant) pairs in order of appearance."""
    return list(dict.fromkeys(zip(runs["algorithm"], runs["variant"], strict=True)))


def label(algorithm: str, variant: str) -> str:
    """How a setting is called in tables and plots: `ppo`, `ppo clip-0.2`."""
    return algorithm if variant == "default" else f"{algorithm} {variant}"


def score_matrix(
    runs: pd.DataFrame, algorithm: str, variant: str, tasks: Sequence[str] | None = None, column: str = "score"
) -> Matrix:
    """Scores [n, E] of the seeds that have every task; seeds lacking one are named in `dropped`."""
    mine = runs[(runs["algorithm"] == algorithm) & (runs["variant"] == variant)]
    tasks = list(dict.fromkeys(runs["task"])) if tasks is None else list(tasks)
    table = mine.pivot(index="seed", columns="task", values=column).reindex(columns=tasks).astype(float)
    whole = table.notna().all(axis=1)
    seeds = [int(seed) for seed in table.index[whole]]
    return Matrix(table[whole].to_numpy(), tasks, seeds, [int(seed) for seed in table.index[~whole]])


def score_matrices(
    runs: pd.DataFrame, tasks: Sequence[str] | None = None, column: str = "score"
) -> dict[tuple[str, str], Matrix]:
    """(algorithm, variant) -> Matrix, in order of appearance, all over the same tasks."""
    return {pair: score_matrix(runs, *pair, tasks=tasks, column=column) for pair in settings(runs)}


def curve_matrix(
    curves: pd.DataFrame, algorithm: str, variant: str, tasks: Sequence[str], phase: str = "train"
) -> tuple[Matrix, np.ndarray]:
    """Training curves [n, E, C] of the seeds that have every task, and the grid as shares of the budget [C].

    A point is NaN before a run's first finished episode. Seeds lacking a task, or still running, are in `dropped`.
    """
    mine = curves[(curves["algorithm"] == algorithm) & (curves["variant"] == variant) & (curves["phase"] == phase)]
    mine = mine[mine["task"].isin(list(tasks))]
    mine = mine.assign(point=mine.groupby(["task", "seed"]).cumcount())
    wide = mine.pivot(index=["seed", "task"], columns="point", values="value")
    seeds = sorted(int(seed) for seed in wide.index.unique("seed"))
    table = wide.reindex(pd.MultiIndex.from_product([seeds, list(tasks)]))
    values = table.to_numpy(dtype=float).reshape(len(seeds), len(tasks), wide.shape[1])
    whole = np.isfinite(values[:, :, -1:]).all(axis=(1, 2))  # a run that is over has a value at its end
    share = np.arange(1, wide.shape[1] + 1) / wide.shape[1]
    kept = [seed for seed, ok in zip(seeds, whole, strict=True) if ok]
    return Matrix(values[whole], list(tasks), kept, [s for s, ok in zip(seeds, whole, strict=True) if not ok]), share


# ---- normalization -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchors:
    """low[task] -> 0 and high[task] -> 1; `rule` says in words where the two come from."""

    low: dict[str, float]
    high: dict[str, float]
    rule: str


READINGS = {
    "best-run": "random policy = 0, best single run of any setting = 1",
    "best-setting": "random policy = 0, best setting's mean over seeds = 1",
}


def best_anchors(runs: pd.DataFrame, reading: str, random: dict[str, float] | None = None) -> Anchors:
    """PPO paper, section 6.1: random = 0, "best result" = 1, per task. The paper does not say what the best result is.

    reading `best-run`: the highest score of any run; `best-setting`: the highest mean over seeds of any setting. The
    second gives the larger normalized scores. Both anchor to the compared set, as the paper does.
    """
    if reading not in READINGS:
        raise ValueError(f"unknown reading {reading!r} of 'best result'; it is one of {', '.join(READINGS)}")
    known = random_scores() if random is None else random
    rows = runs[np.isfinite(runs["score"].astype(float))]
    if reading == "best-run":
        high = rows.groupby("task")["score"].max()
    else:
        high = rows.groupby(["task", "algorithm", "variant"])["score"].mean().groupby("task").max()
    tasks = list(high.index)
    lacking = [task for task in tasks if task not in known]
    if lacking:
        raise ValueError(f"no random policy's score for {', '.join(lacking)} in results/reference/random_policy.csv")
    return Anchors({t: known[t] for t in tasks}, {t: float(high[t]) for t in tasks}, READINGS[reading])


def table_anchors(name: str, random: dict[str, float] | None = None) -> Anchors:
    """Anchors that are data, with their sources in the files.

    `atari-noop57`, `atari-humanstarts57`, `atari-nature49`: random = 0, human = 1, by game (atari_human_random.csv).
    `mujoco-expert`: our random policy = 0, an expert = 1, by task (analysis/anchors.csv).
    """
    if name.startswith("atari-"):
        table = pd.read_csv(PUBLISHED / "atari_human_random.csv").set_index("game")
        table = table[table["regime"] == name.removeprefix("atari-")]
        low, high, rule = table["random"].to_dict(), table["human"].to_dict(), f"random = 0, human = 1 ({name})"
    else:
        table = pd.read_csv(Path(__file__).parent / "anchors.csv").set_index("task")
        table = table[table["anchors"] == name]
        known = random_scores() if random is None else random
        low = {task: known[task] for task in table.index if task in known}
        high, rule = table["high"].to_dict(), f"random policy = 0, expert = 1 ({name})"
    if table.empty:
        there = "atari-noop57, atari-humanstarts57, atari-nature49, mujoco-expert"
        raise ValueError(f"unknown anchors {name!r}; there are {there}")
    return Anchors({str(k): float(v) for k, v in low.items()}, {str(k): float(v) for k, v in high.items()}, rule)


def normalize(scores: np.ndarray, tasks: Sequence[str], anchors: Anchors) -> np.ndarray:
    """(scores - low) / (high - low) along axis 1, the tasks: [n, E] -> [n, E], [n, E, C] -> [n, E, C].

    ValueError if a task has no anchor or its two anchors are equal.
    """
    lacking = [task for task in tasks if task not in anchors.low or task not in anchors.high]
    if lacking:
        raise ValueError(f"no anchors for {', '.join(lacking)} ({anchors.rule})")
    low = np.array([anchors.low[task] for task in tasks])
    span = np.array([anchors.high[task] for task in tasks]) - low
    if not np.all(span):
        raise ValueError(f"equal anchors for {', '.join(t for t, s in zip(tasks, span, strict=True) if not s)}")
    shape = (1, len(tasks)) + (1,) * (np.ndim(scores) - 2)
    return (scores - low.reshape(shape)) / span.reshape(shape)


def normalize_column(runs: pd.DataFrame, anchors: Anchors, column: str = "score") -> pd.Series:
    """The same for a column of the run table (or `value` of the curves): one normalized value per row."""
    low = runs["task"].map(anchors.low)
    return (runs[column] - low) / (runs["task"].map(anchors.high) - low)
