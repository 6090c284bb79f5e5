"""How the statements of analysis/claims.toml are decided from the runs of an experiment.

A statement is taken apart into assertions "this quantity is above that number", each with a 95 % interval over seeds:

    holds  the interval lies above        fails  it lies below, at level 5 % / k        inconclusive  otherwise

The claim holds if all of its k assertions hold (so none needs a correction), and fails if any one fails (so each is
held to a k-th of the level). Differences are paired over the seeds that both sides have, with Student's t; shares have
Wilson's interval; probabilities of improvement the stratified bootstrap's, its deviations times sqrt(n / (n-1)), as it
is too narrow for few runs. With fewer than `SMOKE` seeds nothing is decided.

An inconclusive assertion tells the seeds that would settle it, if its estimate is right: n (1.65 h / e)^2 with the
half-width h at n seeds and the distance e to the number, which is 90 % power; for a share, the seeds from which on
Wilson's interval of the same share leaves the number out.

Each function takes the results and returns (status, evidence), status `open` where runs are lacking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import load, scores, statistics
from analysis.load import Results
from analysis.rule import SMOKE
from analysis.statistics import Interval

LEVEL = 0.05
POWER = (stats.norm.ppf(0.975) + stats.norm.ppf(0.90)) / stats.norm.ppf(0.975)  # 1.65
SHORTEST = -13.0  # of CliffWalking: 13 steps along the cliff
Decision = tuple[str, str]


@dataclass(frozen=True)
class Assertion:
    """`words`: a quantity above `least`. n: seeds behind it; interval at 95 %; strict: the same at level 5 % / k.

    seeds: how many would settle it, where the spread of a mean does not tell.
    """

    words: str
    n: int
    interval: Interval
    strict: Interval
    least: float = 0.0
    seeds: int | None = None

    @property
    def status(self) -> str:
        """holds, fails or inconclusive."""
        if self.n < SMOKE or not np.isfinite(self.interval.low):
            return "inconclusive"
        return (
            "holds" if self.interval.low > self.least else "fails" if self.strict.high < self.least else "inconclusive"
        )

    def told(self) -> str:
        """The assertion with its numbers, for the report."""
        text = f"{self.words} = {shown(self.interval)}, n = {self.n}: {self.status}"
        return f"{text} ({self.needed()})" if self.status == "inconclusive" else text

    def needed(self) -> str:
        """The seeds that would settle it, in words."""
        point, low, high = self.interval
        away = abs(point - self.least)
        half = point - low if point > self.least else high - point
        if self.n < SMOKE or not np.isfinite([point, low, high]).all():
            return f"needs at least {SMOKE} seeds"
        if away == 0 or half <= 0:
            return "no number of seeds can be told"
        seeds = self.seeds or max(self.n + 1, math.ceil(self.n * (POWER * half / away) ** 2))
        return (
            f"about {seeds:,} seeds would settle it" if seeds < 10_000 else "no affordable number of seeds settles it"
        )


def decide(found: Sequence[Assertion], *remarks: str) -> Decision:
    """The claim's status from all its assertions, with the evidence of each."""
    said = [one.status for one in found]
    status = "fails" if "fails" in said else "holds" if set(said) == {"holds"} else "inconclusive"
    return status, "; ".join([*(one.told() for one in found), *remarks])


def shown(interval: Interval) -> str:
    """`1.23 [1.01, 1.45]`."""
    return f"{interval.point:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


# ---- intervals -----------------------------------------------------------------------------------------------------


def mean_above(words: str, values: pd.Series | np.ndarray, k: int, least: float = 0.0) -> Assertion:
    """The mean over seeds of values [n] above `least`, Student's t."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        nothing = Interval(float(x.mean()) if n else math.nan, math.nan, math.nan)
        return Assertion(words, n, nothing, nothing, least)
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    halves = [float(stats.t.ppf(1 - level / 2, n - 1)) * error for level in (LEVEL, LEVEL / k)]
    interval, strict = (Interval(mean, mean - half, mean + half) for half in halves)
    return Assertion(words, n, interval, strict, least)


def share_above(words: str, successes: pd.Series, k: int, least: float) -> Assertion:
    """The share of seeds for which something is true above `least`, Wilson's interval."""
    n, count = len(successes), int(successes.sum())
    if not n:
        nothing = Interval(math.nan, math.nan, math.nan)
        return Assertion(words, n, nothing, nothing, least)
    share = count / n
    interval, strict = (Interval(share, *wilson(count, n, level)) for level in (LEVEL, LEVEL / k))
    ends = ((m, *wilson(share * m, m, LEVEL)) for m in range(n + 1, 10_000))
    seeds = next((m for m, low, high in ends if low > least or high < least), 10_000)
    return Assertion(words, n, interval, strict, least, seeds)


def wilson(count: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's interval of a share p, count of n: (p + z^2/2n -+ z sqrt(p (1-p) / n + z^2/4n^2)) / (1 + z^2/n)."""
    p, z = count / n, float(stats.norm.ppf(1 - level / 2))
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle, width = p + z * z / (2 * n), 1 + z * z / n
    return (middle - half) / width, (middle + half) / width


def improvement_above(words: str, x: np.ndarray, y: np.ndarray, k: int) -> Assertion:
    """The probability that a run of x [n, E] does better than one of y [m, E] above a half."""
    n = min(len(x), len(y))
    if not n:
        nothing = Interval(math.nan, math.nan, math.nan)
        return Assertion(words, n, nothing, nothing, 0.5)
    wider = math.sqrt(n / max(n - 1, 1))
    intervals = []
    for level in (LEVEL, LEVEL / k):
        point, low, high = statistics.improvement_interval(x, y, size=1 - level)
        intervals.append(
            Interval(point, max(0.0, point + (low - point) * wider), min(1.0, point + (high - point) * wider))
        )
    return Assertion(words, n, intervals[0], intervals[1], 0.5)


def by_seed(results: Results, algorithm: str, column: str, task: str) -> pd.Series:
    """seed -> value of a column of the run table, for the runs of an algorithm that have a score."""
    runs = results.runs
    mine = runs[(runs["algorithm"] == algorithm) & (runs["task"] == task) & np.isfinite(runs["score"].astype(float))]
    return mine.set_index("seed")[column].astype(float).dropna()


def lacking(results: Results, *settings: str) -> Decision | None:
    """`open`, and why, if one of these settings (called as by `scores.label`) has no scored run; None if all have."""
    runs = results.runs[np.isfinite(results.runs["score"].astype(float))]
    there = {scores.label(*pair) for pair in scores.settings(runs)}
    gone = [name for name in settings if name not in there]
    return ("open", f"no run of {', '.join(gone)} has a score yet") if gone else None


# ---- the claims ----------------------------------------------------------------------------------------------------


def cliff(results: Results) -> Decision:
    """S1: online return over the first 500 episodes and the greedy path of the last evaluation, on CliffWalking.

    SARSA earns more while learning (paired difference above 0); Q-learning's greedy path has the return -13, that of
    the shortest, in over 90 % of the seeds; SARSA's returns less in over half of them, as it keeps away from the cliff.
    """
    if missing := lacking(results, "sarsa", "q_learning"):
        return missing
    statistic = "first_500_training_episodes"
    if results.statistic != statistic:
        return "open", f"the score must be {statistic}, not {results.statistic}"
    task = results.tasks[0]
    online = [by_seed(results, name, "score", task) for name in ("sarsa", "q_learning")]
    greedy = [last_evaluation(results, name, task) for name in ("sarsa", "q_learning")]
    return decide(
        [
            mean_above(
                "return of SARSA minus Q-learning over the first 500 episodes", (online[0] - online[1]).dropna(), 3
            ),
            share_above("share of Q-learning's greedy paths that return -13", greedy[1] > SHORTEST - 0.5, 3, 0.9),
            share_above("share of SARSA's that return less", greedy[0] < SHORTEST - 0.5, 3, 0.5),
        ],
        f"online return: SARSA {online[0].mean():.1f}, Q-learning {online[1].mean():.1f}",
        f"greedy path, median: SARSA {greedy[0].median():.0f}, Q-learning {greedy[1].median():.0f}",
    )


def last_evaluation(results: Results, algorithm: str, task: str) -> pd.Series:
    """seed -> mean return of a run's last evaluation."""
    curves = results.curves
    mine = curves[(curves["algorithm"] == algorithm) & (curves["task"] == task) & (curves["phase"] == "eval")]
    mine = mine[mine["seed"].isin(by_seed(results, algorithm, "score", task).index)]
    return mine.sort_values("env_steps").groupby("seed")["value"].last()


def random_walk(results: Results) -> Decision:
    """S2: the RMS error of n-step TD, which is the score, over n and alpha (of the runs' configurations).

    For each n the alpha, and of the n between the ends the one, with the least mean error are chosen on half of the
    seeds. The other half judges them: the error of the smallest n and that of the largest, each minus the chosen one's,
    paired, above 0. A setting with a run that ended without a finite error is not chosen.
    """
    metric = scores.metric_of(results.statistic)
    if metric is None:
        return "open", f"the score must be final_metric:rms_error_first_10, not {results.statistic}"
    runs = results.runs
    runs = runs[(runs["algorithm"] == "td_n") & runs["status"].isin(["finished", "failed", "diverged"])]
    configs = load.configs(results, scores.settings(runs))
    values = runs["score"].astype(float)
    table = pd.DataFrame(
        {
            "n": [float(configs[pair]["n"]) for pair in zip(runs["algorithm"], runs["variant"], strict=True)],
            "alpha": [float(configs[pair]["alpha"]) for pair in zip(runs["algorithm"], runs["variant"], strict=True)],
            "seed": runs["seed"].to_numpy(),
            "error": values.where(np.isfinite(values), np.inf).to_numpy(),
        }
    )
    errors = table.pivot(index="seed", columns=["n", "alpha"], values="error").dropna()  # seeds that have all settings
    errors = errors.loc[:, np.isfinite(errors).all()]
    sizes = sorted(set(errors.columns.get_level_values("n")))
    if len(sizes) < 3 or len(errors) < 2:
        return "open", f"needs at least three values of n and two seeds, there are {len(sizes)} and {len(errors)}"
    half = len(errors) // 2
    first = errors.iloc[:half].mean()
    chosen = {n: (n, float(first[n].idxmin())) for n in sizes}
    middle = min(sizes[1:-1], key=lambda n: float(first[chosen[n]]))
    judged = errors.iloc[half:]
    found = []
    for end in (sizes[0], sizes[-1]):
        words = f"{metric} of n = {end:g} (alpha {chosen[end][1]:g}) minus n = {middle:g} (alpha {chosen[middle][1]:g})"
        found.append(mean_above(words, judged[chosen[end]] - judged[chosen[middle]], 2))
    least = ", ".join(f"n = {n:g} {errors[chosen[n]].mean():.3g}" for n in sizes)
    return decide(found, f"mean error with the chosen alpha, all {len(errors)} seeds: {least}")


HALVES = 2  # of a claim that two experiments decide: each half's k assertions are among 2 k


def overestimates(results: Results) -> pd.Series:
    """Estimated value minus discounted return, a run's mean over the evaluations in the second half of its budget, by
    `scores.KEYS`; runs that have none are left out."""
    names = ["estimated_value", "discounted_return"]
    metrics = results.metrics.merge(results.runs[[*scores.KEYS, "steps"]], on=scores.KEYS)
    late = metrics[metrics["name"].isin(names) & (metrics["env_steps"] > metrics["steps"] / 2)]
    wide = late.pivot(index=[*scores.KEYS, "env_steps"], columns="name", values="value").reindex(columns=names)
    excess = (wide[names[0]] - wide[names[1]]).groupby(scores.KEYS).mean()
    return excess[np.isfinite(excess)]


def left_out(results: Results, excess: pd.Series) -> list[str]:
    """How many runs `overestimates` leaves out, in words; those may be the ones that overestimate most."""
    missing = len(results.runs) - len(excess)
    return [f"{missing} of {len(results.runs)} runs have no finite difference and are left out"] if missing else []


def overestimation(results: Results) -> Decision:
    """S3, "DQN overestimates values; double Q-learning reduces it": estimated value minus discounted return, a run's
    mean over the evaluations in the second half of its budget. On every task DQN's is above 0, and above Double DQN's
    (paired). The other half is `decisions_off_policy.twin_critics`.
    """
    if missing := lacking(results, "dqn", "double_dqn"):
        return missing
    differences = overestimates(results)
    excess = differences.droplevel("variant").unstack("algorithm")
    if excess.empty:
        return "open", "no estimated_value and discounted_return in the second half of the runs"
    found, k = [], HALVES * 2 * len(results.tasks)
    for task in results.tasks:
        mine = excess.loc[[task]].droplevel("task") if task in excess.index.levels[0] else excess.iloc[:0]
        dqn, double = mine["dqn"], mine["double_dqn"]
        found.append(mean_above(f"{task}: estimated value minus discounted return of DQN", dqn.dropna(), k))
        found.append(mean_above(f"{task}: DQN's minus Double DQN's", (dqn - double).dropna(), k))
    return decide(found, *left_out(results, differences))


SOLVED = 475.0  # CartPole-v1's reward_threshold in Gymnasium, over 100 episodes


def cartpole(results: Results) -> Decision:
    """S21: the share of seeds whose mean return of the last 100 training episodes reaches 475 (at a point of the curve)
    is above 0.8, for Double DQN and for the vanilla policy gradient.
    """
    names = ("double_dqn", "vpg")
    if missing := lacking(results, *names):
        return missing
    curves = results.curves[results.curves["phase"] == "train"]
    best = curves.groupby(["algorithm", "seed"])["value"].max()
    ends = ", ".join(f"{name} {by_seed(results, name, 'score', results.tasks[0]).mean():.0f}" for name in names)
    return decide(
        [share_above(f"share of {name}'s seeds that reach {SOLVED:g}", best[name] >= SOLVED, 2, 0.8) for name in names],
        f"mean return of the last 100 episodes at the end: {ends}",
    )


PARTS = ("double", "dueling", "prioritized", "nstep", "noisy", "distributional")


def rainbow(results: Results) -> Decision:
    """S4: Rainbow does better than itself without any one part ("each helps"), and than DQN with any one part alone
    ("together most"): probabilities of improvement above a half.
    """
    others = [f"no-{part}" for part in PARTS] + list(PARTS)
    if missing := lacking(results, "rainbow rainbow", *(f"rainbow {name}" for name in others)):
        return missing
    whole = variant_scores(results, "rainbow")
    return decide(
        [
            improvement_above(f"P(rainbow over {name})", whole, variant_scores(results, name), len(others))
            for name in others
        ]
    )


def single_parts(results: Results) -> Decision:
    """S5: DQN with dueling networks, prioritized replay, noisy networks or distributions, one at a time, does better
    than DQN: probabilities of improvement above a half. The parts that the claim does not name are told beside.
    """
    if missing := lacking(results, "rainbow dqn", *(f"rainbow {part}" for part in PARTS)):
        return missing
    named = ("dueling", "prioritized", "noisy", "distributional")
    base = variant_scores(results, "dqn")
    found = {
        part: improvement_above(f"P({part} over dqn)", variant_scores(results, part), base, len(named))
        for part in PARTS
    }
    beside = [found[part].told() for part in PARTS if part not in named]
    return decide([found[part] for part in named], f"beside: {', '.join(beside)}")


def variant_scores(results: Results, variant: str) -> np.ndarray:
    """Scores [n, E] of a variant of rainbow, over the seeds that have every task; higher is better."""
    return scores.score_matrix(results.runs, "rainbow", variant, results.tasks).scores
