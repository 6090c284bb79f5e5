"""How the statements about the course of learning are decided, its steadiness and its speed; the words and rules of
analysis/decisions.py hold here."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis import load, scores
from analysis.decisions import Assertion, Decision, decide, improvement_above, lacking, mean_above
from analysis.decisions_policy import judged, settings_of
from analysis.load import Results
from analysis.statistics import Interval

TAIL = 0.05  # of a run's drawdowns: alpha of google-research/rl-reliability-metrics@40fe3ef metrics_online.py
ROUNDING = 1e-5  # relative, of a KL in a shipped table, which has six digits


def cvar_of_drawdown(values: np.ndarray) -> float:
    """How far a curve [C] falls, in shares of its rise: "long-term risk across time: CVaR on drawdown" of
    arXiv:1912.05663, as its code has it (google-research/rl-reliability-metrics@3f3aea4 metric_utils.py).

    The drawdown at a point is the highest value up to there minus the value, and its conditional value at risk the mean
    of the largest 5 %, those at or above their 95th percentile. It is divided by the curve's range, the 95th percentile
    of its values minus the first one; a curve that does not rise has an infinite risk.
    """
    drawdown = np.maximum.accumulate(values) - values
    worst = drawdown[drawdown >= np.percentile(drawdown, 100 * (1 - TAIL))]
    rise = float(np.percentile(values, 95) - values[0])
    return float(worst.mean()) / rise if rise > 0 else math.inf


def risks(results: Results, algorithm: str, task: str) -> np.ndarray:
    """`cvar_of_drawdown` of the evaluations of each scored run of an algorithm on a task; that of a run that broke off,
    on whatever height, is infinite."""
    runs, curves = results.runs, results.curves
    scored = runs[(runs["algorithm"] == algorithm) & (runs["task"] == task) & np.isfinite(runs["score"].astype(float))]
    mine = curves[(curves["algorithm"] == algorithm) & (curves["task"] == task) & (curves["phase"] == "eval")]
    courses = mine.sort_values("env_steps").groupby(["variant", "seed"])["value"].apply(np.array)
    return np.array(
        [
            cvar_of_drawdown(courses[run.variant, run.seed]) if run.status == "finished" else math.inf
            for run in scored.itertuples()
        ]
    )


def trust_region(results: Results) -> Decision:
    """S9, on every task: at every update of every run TRPO's E[KL(pi_old || pi)] over the states of the rollout, which
    is what its line search looks at, is at most delta; and a run of TRPO is less at risk (`cvar_of_drawdown` of its
    evaluations) than one of DDPG, with a probability above a half.

    The first is about the updates that were made and not about others that might have been: it has no interval. While
    the tables of a run lack an update the claim is open.
    """
    if missing := lacking(results, "trpo", "ddpg"):
        return missing
    runs = settings_of(results, "delta", "num_envs", "num_steps")
    kls = results.metrics[results.metrics["name"] == "kl"].groupby(scores.KEYS)["value"]
    table = runs[runs["algorithm"] == "trpo"].set_index(scores.KEYS).assign(largest=kls.max(), updates=kls.size())
    whole = (table["updates"] * table["num_envs"] * table["num_steps"]).eq(table["env_steps"])
    if not whole.all():
        return "open", f"{(~whole).sum()} runs of trpo lack an update's KL; metrics_period must be at most a rollout"
    over = kls.apply(list).reindex(table.index)
    found, said, k = [], [], 2 * len(results.tasks)
    for task in results.tasks:
        mine = table.xs(task, level="task", drop_level=False)
        least = float((1 - mine["largest"] / mine["delta"]).min())
        limits = mine["delta"] * (1 + ROUNDING)
        above = sum(int(np.sum(~(np.array(over[key]) <= limits[key]))) for key in mine.index)  # NaN is no bound kept
        words = f"{task}: {above} of {int(mine['updates'].sum()):,} updates of TRPO exceed delta, least 1 - KL / delta"
        fact = Interval(least, least, least)
        found.append(Assertion(words, len(mine), fact, fact, -ROUNDING))
        risk = {name: risks(results, name, task) for name in ("trpo", "ddpg")}
        places = pd.Series(np.concatenate(list(risk.values()))).rank().to_numpy()  # of infinities too
        trpo, ddpg = np.split(-places[:, None], [len(risk["trpo"])])
        found.append(improvement_above(f"{task}: P(TRPO at less risk than DDPG)", trpo, ddpg, k))
        said.append(f"{task} {', '.join(f'{name} {np.median(x):.3g}' for name, x in risk.items())}")
    return decide(found, f"median CVaR of the drawdown, in shares of a run's rise: {' / '.join(said)}")


def acktr_over_a2c(results: Results) -> Decision:
    """S11, sample efficiency, on every task: the area under ACKTR's curve minus that under A2C's is above 0, paired
    over seeds, each with the step size that has the best mean on the first half of them, judged on the other."""
    sides = {"ACKTR": judged(results, "acktr"), "A2C": judged(results, "a2c")}
    tables = {name: table for name, table in sides.items() if table is not None}
    if results.statistic != "area_under_curve" or len(tables) < len(sides):
        return "open", "needs area_under_curve as the score, and two seeds with every step size of acktr and a2c"
    found = [
        mean_above(
            f"{task}: area under the curve of ACKTR minus A2C", (tables["ACKTR"][task] - tables["A2C"][task]).dropna(),
            len(results.tasks),
        )
        for task in results.tasks
    ]  # fmt: skip
    means = " / ".join(
        f"{task} {', '.join(f'{name} {table[task].mean():.4g}' for name, table in tables.items())}"
        for task in results.tasks
    )
    return decide(
        found,
        f"mean area: {means}",
        "the cost of an update is not decided here: the command that measures it stands in the experiment",
    )


THRESHOLD = 200.0  # mean return of an evaluation on CartPole-v1; a random policy has 22, the best 500
LEARNERS = ("a3c", "async_one_step_q")


def steps_to(results: Results, algorithm: str) -> pd.DataFrame | None:
    """Env_steps until an evaluation first reaches `THRESHOLD`, [seeds that have all, numbers of workers]; the budget
    for runs that never do. None with fewer than two numbers of workers or two seeds, or without evaluations."""
    runs = settings_of(results, "num_envs")
    mine = runs[runs["algorithm"] == algorithm]
    curves = results.curves
    reached = curves[(curves["phase"] == "eval") & (curves["value"] >= THRESHOLD)]
    first = reached.groupby(scores.KEYS)["env_steps"].min().rename("reached").reset_index()
    mine = mine.merge(first, on=scores.KEYS, how="left")
    mine["reached"] = mine["reached"].fillna(mine["steps"]).astype(float).clip(upper=mine["steps"].astype(float))
    table = mine.pivot(index="seed", columns="num_envs", values="reached").dropna()
    evaluated = (curves["phase"] == "eval").any()
    return table if evaluated and len(table) > 1 and len(table.columns) > 1 and 1.0 in table else None


def seconds_per_step(results: Results, algorithm: str) -> dict[float, float]:
    """Number of workers -> wall-clock seconds of an env_step of all the runs of a group, evaluations included."""
    runs = settings_of(results, "num_envs")
    mine = runs[runs["algorithm"] == algorithm]
    return (mine["wall_seconds"].astype(float) / mine["env_steps"]).groupby(mine["num_envs"]).mean().to_dict()


def workers(results: Results) -> Decision:
    """S14, of A3C and asynchronous one-step Q under Hogwild. Let the speedup by k workers be the time that one needs to
    reach a threshold over the time that k need (arXiv:1602.01783, section 5.5 and Table 2).

    "Speed learning up": in seconds, its logarithm is above 0 (paired over seeds) for 2 workers and for every other k up
    to the number of cores; with more there is nothing to run them on. "Superlinearly at best": where k is best for a
    method, it needs fewer env_steps than one worker, so that k workers that are k times as quick would be more than k
    times as soon. Method and k are chosen on half of the seeds, and judged on the other. That is how the paper finds it
    of its one-step methods: more than computation alone explains.

    A run's seconds are its share of the steps times those of its group, with the evaluations and the start of the
    processes; groups must be of one size. A number of workers was timed as often as it has groups, mostly once: the
    intervals are those of the env_steps, and know nothing of the clock's noise. A run that never gets to the threshold
    counts as if it did at the end.
    """
    tables = {name: table for name in LEARNERS if (table := steps_to(results, name)) is not None}
    if len(tables) < len(LEARNERS):
        return "open", f"needs {' and '.join(LEARNERS)} with one worker and with more, evaluated, two seeds at least"
    sizes = settings_of(results)["group_size"].nunique()
    cores = min(int(manifest["machine"]["cores"]) for manifest in load.manifests(results.path))
    if sizes != 1 or not any(1 < k <= cores for table in tables.values() for k in table):
        return "open", "needs groups of one size, for their seconds to compare (run with --workers 1), and two cores"
    ratios = {name: np.log(table.rdiv(table[1.0], axis=0)) for name, table in tables.items()}  # of env_steps
    many = {name: [k for k in table if 1 < k <= cores] for name, table in tables.items()}
    found, said, total = [], [], 1 + sum(len(each) for each in many.values())
    for name, each in many.items():
        costs = seconds_per_step(results, name)
        for k in each:
            quicker = math.log(costs[1.0] / costs[k])
            words = f"{name}: log of the speedup in seconds by {k:g} workers"
            found.append(mean_above(words, ratios[name][k] + quicker, total))
        others = [k for k in tables[name] if k > 1]
        fewer = ", ".join(f"{k:g}: {math.exp(ratios[name][k].mean()):.2f}" for k in others)
        sooner = ", ".join(f"{k:g}: {math.exp(ratios[name][k].mean()) * costs[1.0] / costs[k]:.2f}" for k in others)
        never = float((tables[name] >= results.runs["steps"].max()).to_numpy().mean())
        said.append(f"{name}, by workers, in env_steps {fewer}, in seconds {sooner}, {never:.0%} never got there")
    halves = {name: len(table) // 2 for name, table in ratios.items()}
    chosen = max(
        ((name, k) for name, table in ratios.items() for k in table if k > 1),
        key=lambda one: float(ratios[one[0]].iloc[: halves[one[0]]][one[1]].mean()),
    )
    gain = ratios[chosen[0]].iloc[halves[chosen[0]] :][chosen[1]]
    words = f"{chosen[0]}: log of the env_steps of one worker over those of {chosen[1]:g}, best on half of the seeds"
    found.append(mean_above(words, gain, total))
    return decide(found, f"on {cores} cores, speedups to a mean return of {THRESHOLD:g}: {' / '.join(said)}")
