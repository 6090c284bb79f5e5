"""How the statements about policy gradients are decided; the words and rules of analysis/decisions.py hold here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import load, scores
from analysis.decisions import (
    LEVEL,
    Assertion,
    Decision,
    decide,
    improvement_above,
    lacking,
    mean_above,
    wilson,
)
from analysis.load import Results
from analysis.statistics import Interval

COLLAPSE = 0.5  # of the rise, lost by the end
SAFER = 0.1  # a difference of shares that would make a smaller step size the safer one


def shares_apart(words: str, x: Sequence[bool], y: Sequence[bool], k: int, least: float = 0.0) -> Assertion:
    """The share of runs of x for which something is true minus that of y above `least`.

    Newcombe's interval (Statistics in Medicine 17:873, 1998, method 10), from the two shares' Wilson intervals.
    """
    if not len(x) or not len(y):
        nothing = Interval(math.nan, math.nan, math.nan)
        return Assertion(words, 0, nothing, nothing, least)
    one, other, intervals = sum(x) / len(x), sum(y) / len(y), []
    for level in (LEVEL, LEVEL / k):
        (low1, high1), (low2, high2) = wilson(sum(x), len(x), level), wilson(sum(y), len(y), level)
        below, above = math.hypot(one - low1, high2 - other), math.hypot(high1 - one, other - low2)
        intervals.append(Interval(one - other, one - other - below, one - other + above))
    return Assertion(words, min(len(x), len(y)), intervals[0], intervals[1], least)


def settings_of(results: Results, *fields: str) -> pd.DataFrame:
    """The scored runs, with these fields of their configuration as columns (NaN where an algorithm lacks one)."""
    runs = results.runs[np.isfinite(results.runs["score"].astype(float))].copy()
    configs = load.configs(results, scores.settings(runs))
    pairs = list(zip(runs["algorithm"], runs["variant"], strict=True))
    for field in fields:
        runs[field] = [float(configs[pair].get(field, math.nan)) for pair in pairs]
    return runs


def late_metric(results: Results, name: str) -> pd.Series:
    """A metric's mean over the second half of each run's budget, by `scores.KEYS`."""
    table = results.metrics[results.metrics["name"] == name].merge(results.runs[[*scores.KEYS, "steps"]])
    return table[table["env_steps"] > table["steps"] / 2].groupby(scores.KEYS)["value"].mean().dropna()


def variance(results: Results) -> Decision:
    """S6: on every task, at policies that stand still, the mean of |g|^2 with no baseline is above that with the mean
    of the other episodes and that with a learned value: logarithm of the ratio, paired over seeds. While learning, a
    learned value scores higher than no baseline (paired).

    E|g|^2 = |E g|^2 + variance, and E g does not depend on the baseline: the ratio is at most that of the variances.
    """
    kinds = ("none", "mean", "value")
    if missing := lacking(results, *(f"reinforce {kind}-{way}" for kind in kinds for way in ("fixed", "learning"))):
        return missing
    squares = late_metric(results, "squared_grad_norm")
    found, ratios, k = [], [], 3 * len(results.tasks)
    for task in results.tasks:
        still = squares.xs(("reinforce", task), level=("algorithm", "task"))
        fixed = {kind: still.xs(f"{kind}-fixed", level="variant") for kind in kinds}
        for kind in ("mean", "value"):
            ratio = np.log(fixed["none"] / fixed[kind]).dropna()
            ratios.append(f"{kind} {math.exp(ratio.mean()):.3g}")
            found.append(mean_above(f"{task}: log of |g|^2 without a baseline over that with {kind}", ratio, k))
        runs = results.runs[results.runs["task"] == task].set_index(["variant", "seed"])["score"].astype(float)
        gain = (runs["value-learning"] - runs["none-learning"]).dropna()
        found.append(mean_above(f"{task}: score with a learned value minus that without a baseline", gain, k))
    return decide(found, f"|g|^2 smaller by the factor {', '.join(ratios)}")


def entropy(results: Results) -> Decision:
    """S7: for A2C and PPO each, on MountainCar-v0: the coefficient above 0 with the best mean score, chosen on half of
    the seeds, does better on the other half than 0 does (probability of improvement above a half).
    """
    task, runs = "MountainCar-v0", settings_of(results, "ent_coef")
    runs = runs[runs["task"] == task]
    found, said = [], []
    for algorithm in ("a2c", "ppo"):
        mine = runs[runs["algorithm"] == algorithm].pivot(index="seed", columns="ent_coef", values="score").dropna()
        mine = mine.astype(float)
        if 0.0 not in mine or len(mine.columns) < 2 or len(mine) < 2:
            return "open", f"needs {algorithm} on {task} with ent_coef 0 and above, two seeds at least"
        half = len(mine) // 2
        best = float(mine.iloc[:half].drop(columns=0.0).mean().idxmax())
        judged = mine.iloc[half:]
        words = f"P({algorithm} with {best:g} over 0) on {task}"
        found.append(improvement_above(words, judged[[best]].to_numpy(), judged[[0.0]].to_numpy(), 2))
        said.append(f"{algorithm} {', '.join(f'{c:g}: {mine[c].mean():.4g}' for c in mine)}")
    return decide(found, f"mean score by coefficient, all seeds: {' / '.join(said)}")


def collapsed(results: Results) -> pd.Series:
    """Whether a run collapsed, by `scores.KEYS`: at the end its running mean has lost more than half of its rise.

    A run that never rose by a tenth of the largest rise of any run on its task has nothing to lose, and counts as no.
    """
    train = results.curves[results.curves["phase"] == "train"].dropna(subset="value").sort_values("env_steps")
    ends = train.groupby(scores.KEYS)["value"].agg(["first", "max", "last"])
    rise = ends["max"] - ends["first"]
    return (ends["max"] - ends["last"] > COLLAPSE * rise) & (rise > 0.1 * rise.groupby("task").transform("max"))


def collapse(results: Results) -> Decision:
    """S8, on every task, b the step size of the vanilla policy gradient with the best area under the curve on half of
    the seeds, judged on the other half: a tenth of b (the nearest there is) has a smaller area ("slower", paired), and
    not a smaller share of collapsed runs by more than 0.1 ("not safer"). Over all tasks, runs with b collapse more
    often than TRPO's with delta 0.01 and than PPO's with clip 0.2.
    """
    runs = settings_of(results, "learning_rate", "delta", "clip_coef").set_index(scores.KEYS)
    runs["collapsed"] = collapsed(results).reindex(runs.index)
    runs = runs.dropna(subset="collapsed").reset_index()
    vpg = runs[runs["algorithm"] == "vpg"]
    trust = {
        "TRPO": runs[(runs["algorithm"] == "trpo") & np.isclose(runs["delta"], 0.01)],
        "PPO": runs[(runs["algorithm"] == "ppo") & np.isclose(runs["clip_coef"], 0.2)],
    }
    if vpg["learning_rate"].nunique() < 2 or any(mine.empty for mine in trust.values()):
        return "open", "needs vpg with several step sizes, trpo with delta 0.01 and ppo with clip_coef 0.2"
    found, bold, k = [], [], 2 * len(results.tasks) + len(trust)
    for task in results.tasks:
        mine = vpg[vpg["task"] == task]
        areas = mine.pivot(index="seed", columns="learning_rate", values="score").astype(float).dropna()
        half = len(areas) // 2
        best = float(areas.iloc[:half].mean().idxmax())
        smaller = {abs(math.log(rate * 10 / best)): rate for rate in areas if rate < best}
        if not smaller:
            return "open", f"{task}: the smallest step size of the sweep, {best:g}, is the best; the sweep must go on"
        small = smaller[min(smaller)]
        judged = areas.iloc[half:]
        fell = {rate: mine.loc[mine["learning_rate"] == rate].set_index("seed")["collapsed"] for rate in (best, small)}
        fell = {rate: values[values.index.isin(judged.index)].tolist() for rate, values in fell.items()}
        bold += fell[best]
        words = f"{task}: area under the curve with {best:g} minus with {small:g}"
        found.append(mean_above(words, judged[best] - judged[small], k))
        words = f"{task}: share of collapsed runs with {small:g} minus with {best:g}"
        found.append(shares_apart(words, fell[small], fell[best], k, -SAFER))
    for name, other in trust.items():
        words = f"share of collapsed runs of VPG with the best step size minus {name}'s"
        found.append(shares_apart(words, bold, other["collapsed"].tolist(), k))
    shares = vpg.groupby("learning_rate")["collapsed"].mean()
    return decide(found, f"collapsed, by step size: {', '.join(f'{rate:g} {x:.0%}' for rate, x in shares.items())}")


HARM = 0.05  # of the way from the random policy to the best setting: a difference that matters
VALUE_BASED = ("async_one_step_q", "async_one_step_sarsa", "async_nstep_q")


def judged(results: Results, algorithm: str, schedule: str | None = None) -> pd.DataFrame | None:
    """Scores [seeds of the second half, tasks] of an algorithm, on each task with the step size that has the best mean
    on the first half; None where it has fewer than two seeds with every step size and task."""
    runs = settings_of(results, "learning_rate")
    configs = load.configs(results, scores.settings(runs))
    pairs = zip(runs["algorithm"], runs["variant"], strict=True)
    mine = runs[[name == algorithm and configs[name, variant].get("schedule") == schedule for name, variant in pairs]]
    table = mine.pivot(index="seed", columns=["task", "learning_rate"], values="score").astype(float).dropna()
    if len(table) < 2 or set(table.columns.get_level_values("task")) != set(results.tasks):
        return None
    half = len(table) // 2
    best = {task: table.iloc[:half][task].mean().idxmax() for task in results.tasks}
    return pd.DataFrame({task: table.iloc[half:][task, best[task]] for task in results.tasks})


def synchronous(results: Results) -> Decision:
    """S12: on every task A2C's score is not less than A3C's under Hogwild, and that not less than A3C's under the
    serial schedule, by more than a twentieth of the way from the random policy to the best setting's mean (paired).
    """
    sides = {"A2C": judged(results, "a2c")}
    sides |= {f"A3C {name}": judged(results, "a3c", name) for name in ("hogwild", "serial")}
    tables = {name: table for name, table in sides.items() if table is not None}
    if len(tables) < len(sides):
        return "open", f"needs two seeds with every step size of {', '.join(sorted(set(sides) - set(tables)))}"
    random, found, k = scores.random_scores(), [], 2 * len(results.tasks)
    means = results.runs.groupby(["task", "algorithm", "variant"])["score"].mean()
    for task in results.tasks:
        margin = HARM * (float(means[task].max()) - random[task])
        for one, other in (("A2C", "A3C hogwild"), ("A3C hogwild", "A3C serial")):
            gain = (tables[one][task] - tables[other][task]).dropna()
            found.append(mean_above(f"{task}: score of {one} minus {other}", gain, k, -margin))
    return decide(found)


def actor_critic_over_values(results: Results) -> Decision:
    """S13, per frame: the probability that a run of A3C (Hogwild) does better than one of one-step Q, one-step SARSA
    and n-step Q, each with its own step size, is above a half, over the tasks.
    """
    actor_critic = judged(results, "a3c", "hogwild")
    others = {name: judged(results, name, "hogwild") for name in VALUE_BASED}
    if actor_critic is None or any(table is None for table in others.values()):
        return "open", f"needs two seeds with every step size of a3c, {', '.join(VALUE_BASED)} under hogwild"
    found = [
        improvement_above(f"P(a3c over {name})", actor_critic.to_numpy(), table.to_numpy(), len(others))
        for name, table in others.items()
        if table is not None
    ]
    return decide(found, "per wall-clock is not decided: it depends on the number of cores")


FIGURE_3 = ("a2c", "a2c_trust_region", "cem", "vpg", "trpo")  # beside PPO
NORMALIZED = "clip-0.2-normalized"  # the variant of PPO with normalized advantages


def figure_3(results: Results) -> Decision:
    """T4, "PPO outperforms the previous methods on almost all the continuous control environments": the probability
    that a run of PPO (clip 0.2) does better is above a half against each of the five, over the seven tasks.
    """
    return _ppo_over(results, FIGURE_3)


def ppo_over_trpo(results: Results) -> Decision:
    """S10: the probability that a run of PPO does better than one of TRPO is above a half, over the seven tasks."""
    return _ppo_over(results, ("trpo",))


def _ppo_over(results: Results, others: Sequence[str]) -> Decision:
    """PPO as its paper states it decides; PPO with the normalized advantages of its public code is told beside it."""
    if missing := lacking(results, "ppo clip-0.2", *others):
        return missing

    def of(algorithm: str, variant: str = "default") -> np.ndarray:
        return scores.score_matrix(results.runs, algorithm, variant, results.tasks).scores

    def over(mine: str) -> list[Assertion]:
        return [improvement_above(f"P(ppo over {name})", of("ppo", mine), of(name), len(others)) for name in others]

    if lacking(results, f"ppo {NORMALIZED}"):
        return decide(over("clip-0.2"))
    beside = ", ".join(found.told() for found in over(NORMALIZED))
    return decide(over("clip-0.2"), f"beside, with normalized advantages: {beside}")
