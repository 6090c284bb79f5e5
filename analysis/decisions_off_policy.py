"""How the statements about off-policy learning are decided; the words and rules of analysis/decisions.py hold here."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd

from analysis import scores
from analysis.decisions import (
    HALVES,
    Decision,
    by_seed,
    decide,
    improvement_above,
    lacking,
    left_out,
    mean_above,
    overestimates,
    share_above,
)
from analysis.decisions_policy import settings_of
from analysis.load import Results

STOCHASTIC = {"actor_critic": "the stochastic actor-critic", "offpac": "Off-PAC"}  # rivals of COPDAC-Q


def tuned(table: pd.DataFrame, algorithm: str, task: str) -> pd.DataFrame:
    """The rows of an algorithm on a task with the settings that were chosen for it: the variant of the task's name."""
    return table[(table["algorithm"] == algorithm) & (table["task"] == task) & (table["variant"] == task)]


def deterministic_over_stochastic(results: Results) -> Decision:
    """S22: on every task the probability that a run of COPDAC-Q ends better is above a half, against the on-policy
    actor-critic and against Off-PAC, each with the settings chosen for the task. The score is that of the last
    evaluation, without noise.

    A run that diverged counts as far as it got. Beside it: the means of the scores and, of how soon they are reached,
    those over all evaluations of the runs.
    """
    everyone = ("copdac_q", *STOCHASTIC)
    if missing := lacking(results, *(f"{name} {task}" for name in everyone for task in results.tasks)):
        return missing
    evaluated = results.curves[results.curves["phase"] == "eval"]
    found, said, k = [], [], len(STOCHASTIC) * len(results.tasks)
    for task in results.tasks:
        ends = {name: tuned(results.runs, name, task)["score"].astype(float).dropna().to_numpy() for name in everyone}
        for name, words in STOCHASTIC.items():
            words = f"{task}: P(COPDAC-Q over {words})"
            found.append(improvement_above(words, ends["copdac_q"][:, None], ends[name][:, None], k))
        courses = {name: tuned(evaluated, name, task)["value"].mean() for name in everyone}
        told = ", ".join(f"{name} {np.mean(ends[name]):.4g} ({courses[name]:.4g})" for name in everyone)
        said.append(f"{task} {told}")
    return decide(found, f"mean score (and over all evaluations): {' / '.join(said)}")


def ended(results: Results, algorithm: str, variant: str = "default") -> np.ndarray:
    """Scores [n, E] of a setting over the seeds that have every task."""
    return scores.score_matrix(results.runs, algorithm, variant, results.tasks).scores


def task_means(results: Results, *settings: tuple[str, str]) -> str:
    """The mean score of each setting on each task, in words; the variants' alone where there is but one algorithm."""
    single = len({algorithm for algorithm, _ in settings}) == 1
    names = {pair: pair[1] if single else scores.label(*pair) for pair in settings}
    said = []
    for task in results.tasks:
        runs = results.runs[results.runs["task"] == task]
        means = runs.groupby(["algorithm", "variant"])["score"].mean()
        said.append(f"{task} {', '.join(f'{name} {means.get(pair, np.nan):.4g}' for pair, name in names.items())}")
    return f"mean score: {' / '.join(said)}"


# ---- S15 -----------------------------------------------------------------------------------------------------------

DDPG_PARTS = ("both", "targets", "batch-norm", "neither")


def ddpg_parts(results: Results) -> Decision:
    """S15, over the tasks: the probability that a run of DDPG ends better with target networks than without them is
    above a half, both with and without batch normalization ("needs"); so it is with batch normalization over without,
    where both have target networks ("helps"). Beside it: the same where neither has them.
    """
    if missing := lacking(results, *(f"ddpg {name}" for name in DDPG_PARTS)):
        return missing
    ends = {name: ended(results, "ddpg", name) for name in DDPG_PARTS}
    pairs = {
        "P(target networks over none)": ("targets", "neither"),
        "P(target networks over none, both with batch normalization)": ("both", "batch-norm"),
        "P(batch normalization over none, both with target networks)": ("both", "targets"),
    }
    found = [improvement_above(words, ends[x], ends[y], len(pairs)) for words, (x, y) in pairs.items()]
    beside = improvement_above("P(batch normalization over none)", ends["batch-norm"], ends["neither"], len(pairs))
    return decide(
        found,
        f"beside, without target networks: {beside.told()}",
        task_means(results, *(("ddpg", name) for name in DDPG_PARTS)),
    )


# ---- S17 -----------------------------------------------------------------------------------------------------------

TD3_PARTS = {"twin": "two critics", "smoothing": "target policy smoothing", "delay": "delayed policy updates"}


def td3_parts(results: Results) -> Decision:
    """S17, over the tasks, as in TD3's Table 2: for each of the three changes, the probabilities that a run of DDPG
    with this change alone ends better than one of DDPG, and that one of TD3 ends better than one of TD3 without it, are
    above a half. DDPG has TD3's networks, step sizes and noise (the table's AHE). Beside it: TD3 over DDPG.
    """
    needed = ["td3", "ddpg", *TD3_PARTS, *(f"no-{part}" for part in TD3_PARTS)]
    if missing := lacking(results, *(f"td3 {name}" for name in needed)):
        return missing
    ends = {name: ended(results, "td3", name) for name in needed}
    k = 2 * len(TD3_PARTS)
    alone = [
        improvement_above(f"P(DDPG with {words} over DDPG)", ends[part], ends["ddpg"], k)
        for part, words in TD3_PARTS.items()
    ]
    within = [
        improvement_above(f"P(TD3 over TD3 without {words})", ends["td3"], ends[f"no-{part}"], k)
        for part, words in TD3_PARTS.items()
    ]
    whole = improvement_above("P(TD3 over DDPG)", ends["td3"], ends["ddpg"], k)
    return decide([*alone, *within], f"beside: {whole.told()}", task_means(results, *(("td3", x) for x in needed)))


# ---- S18 -----------------------------------------------------------------------------------------------------------

AUTOMATIC = 0.0  # stands for the automatic temperature; a fixed one is above 0
NO_WORSE = 0.1  # of the way from the random policy to the best fixed temperature: the margin of analysis/rule.py


def temperature(results: Results) -> Decision:
    """S18, on every task: of the fixed temperatures, the best and the worst by the mean score are chosen on half of the
    seeds and judged on the other. The best one's score is above the worst one's ("matters"), and that with the
    automatic temperature is not below the best one's by more than a tenth of the way from the random policy to it
    ("removes it"); differences are paired. The way is measured on the half that chooses. Seeds: those that have every
    task and temperature.
    """
    runs = settings_of(results, "alpha", "automatic")
    runs = runs[runs["algorithm"] == "sac"]
    runs["setting"] = runs["alpha"].where(runs["automatic"] == 0, AUTOMATIC)
    table = runs.pivot(index="seed", columns=["task", "setting"], values="score").astype(float).dropna()
    half, random, found, said = len(table) // 2, scores.random_scores(), [], []
    for task in results.tasks:
        mine = table[task] if task in table.columns.get_level_values("task") else table.iloc[:, :0]
        fixed = mine.drop(columns=AUTOMATIC, errors="ignore")
        if AUTOMATIC not in mine or len(fixed.columns) < 2 or not half:
            return "open", f"needs two seeds of sac on {task} with two fixed temperatures and an automatic one"
        chosen = fixed.iloc[:half].mean()
        best, worst = chosen.idxmax(), chosen.idxmin()
        judged, k = mine.iloc[half:], 2 * len(results.tasks)
        margin = NO_WORSE * max(float(chosen[best]) - random[task], 0.0)
        words = f"{task}: score with the temperature {best:g}, the best, minus with {worst:g}, the worst"
        found.append(mean_above(words, judged[best] - judged[worst], k))
        words = f"{task}: score with the automatic temperature minus with {best:g}"
        found.append(mean_above(words, judged[AUTOMATIC] - judged[best], k, -margin))
        means = ", ".join(f"{name:g} {mean:.4g}" for name, mean in fixed.mean().items())
        said.append(f"{task} {means}, automatic {mine[AUTOMATIC].mean():.4g}")
    return decide(found, f"mean score by temperature, all {len(table)} seeds: {' / '.join(said)}")


# ---- S19 -----------------------------------------------------------------------------------------------------------


def tqc_over_sac(results: Results) -> Decision:
    """S19: the probability that a run of TQC ends better than one of SAC is above a half, over the tasks."""
    if missing := lacking(results, "tqc", "sac"):
        return missing
    found = improvement_above("P(TQC over SAC)", ended(results, "tqc"), ended(results, "sac"), 1)
    return decide([found], task_means(results, ("tqc", "default"), ("sac", "default")))


# ---- S3, the second half -------------------------------------------------------------------------------------------

ONE_AND_TWO = {  # one critic against two -> settings of overestimation_actor_critic
    "DDPG's minus TD3's": (("td3", "ddpg"), ("td3", "td3")),
    "DDPG's minus DDPG's with two critics": (("td3", "ddpg"), ("td3", "ddpg-twin")),
    "SAC's with one critic minus SAC's": (("sac", "single"), ("sac", "twin")),
}


def twin_critics(results: Results) -> Decision:
    """S3, "twin critics reduce it": estimated value minus discounted return, as for DQN, on every task: DDPG's is above
    TD3's and above that of DDPG with TD3's two critics alone, and SAC's with one critic above SAC's (paired). The
    estimate is the first critic's everywhere, as the lesser of two would be lower by construction.

    SAC's values hold the entropy that is still to come, which the returns do not; the temperature, and with it that
    entropy, may differ between one critic and two.
    """
    pairs = list(dict.fromkeys(pair for both in ONE_AND_TWO.values() for pair in both))
    if missing := lacking(results, *(scores.label(*pair) for pair in pairs)):
        return missing
    excess = overestimates(results)
    if excess.empty:
        return "open", "no estimated_value and discounted_return in the second half of the runs"
    found, said, k = [], [], HALVES * len(ONE_AND_TWO) * len(results.tasks)
    for task in results.tasks:
        here = excess[excess.index.get_level_values("task") == task].unstack(["task", "algorithm", "variant"])
        mine = {pair: here.get((task, *pair), pd.Series(dtype=float)) for pair in pairs}
        for words, (one, two) in ONE_AND_TWO.items():
            words = f"{task}: estimated value minus discounted return, {words}"
            found.append(mean_above(words, (mine[one] - mine[two]).dropna(), k))
        said.append(f"{task} {', '.join(f'{scores.label(*pair)} {mine[pair].mean():.3g}' for pair in pairs)}")
    return decide(found, f"means: {' / '.join(said)}", *left_out(results, excess))


# ---- S16 -----------------------------------------------------------------------------------------------------------

OFF_POLICY, ON_POLICY = ("sac", "td3", "tqc"), ("ppo", "trpo")
MARKS = (30_000, 100_000)  # env_steps


def sample_efficiency(results: Results) -> Decision:
    """S16: after 30,000 and after 100,000 env_steps, the probability that a run of SAC, of TD3 and of TQC does better
    (evaluation without noise) than one of PPO and than one of TRPO is above a half, over the tasks: all twelve.

    "Steadier": after 100,000, the distance of a run's return from the median over seeds, in units of the way from the
    random policy to the best algorithm's mean, averaged over tasks and algorithms, is larger for the three than for the
    two (paired over seeds). A method that has learned nothing is steady in this sense; the means stand beside it.
    """
    everyone = (*OFF_POLICY, *ON_POLICY)
    if missing := lacking(results, *everyone):
        return missing
    if (budget := int(results.runs["steps"].min())) < MARKS[-1]:
        return "open", f"the runs have {budget:,} steps, not {MARKS[-1]:,}"
    found, said, k = [], [], len(MARKS) * len(OFF_POLICY) * len(ON_POLICY) + 1
    tables = {mark: {name: returns_at(results, name, mark) for name in everyone} for mark in MARKS}
    for mark, returns in tables.items():
        for one, other in itertools.product(OFF_POLICY, ON_POLICY):
            words = f"{mark:,} steps: P({one} over {other})"
            found.append(improvement_above(words, returns[one].to_numpy(), returns[other].to_numpy(), k))
        means = (f"{name} {', '.join(f'{x:.4g}' for x in table.mean())}" for name, table in returns.items())
        said.append(f"mean return at {mark:,} ({', '.join(results.tasks)}): {' / '.join(means)}")
    random = pd.Series(scores.random_scores())[results.tasks]
    last = tables[MARKS[-1]]
    best = pd.DataFrame({name: table.mean() for name, table in last.items()}).max(axis=1)
    apart = {name: ((table - table.median()) / (best - random)).abs().mean(axis=1) for name, table in last.items()}
    spread = [pd.DataFrame({name: apart[name] for name in names}).mean(axis=1) for names in (OFF_POLICY, ON_POLICY)]
    words = f"{MARKS[-1]:,} steps: distance from the median, off-policy minus on-policy"
    found.append(mean_above(words, (spread[0] - spread[1]).dropna(), k))
    distances = ", ".join(f"{name} {values.mean():.3g}" for name, values in apart.items())
    return decide(found, *said, f"mean distance from the median: {distances}")


def returns_at(results: Results, algorithm: str, env_steps: int) -> pd.DataFrame:
    """[n, E]: mean return of the first evaluation from so many env_steps on, for the seeds that have every task; of a
    run that broke off before, its score."""
    mine = results.runs[(results.runs["algorithm"] == algorithm) & np.isfinite(results.runs["score"].astype(float))]
    curves = results.curves[(results.curves["algorithm"] == algorithm) & (results.curves["phase"] == "eval")]
    curves = curves[curves["env_steps"] >= env_steps].sort_values("env_steps")
    found = curves.groupby(["seed", "task"]).head(1).set_index(["seed", "task"])["value"]
    whole = mine.set_index(["seed", "task"])["score"].astype(float)
    return found.reindex(whole.index).fillna(whole).unstack("task").reindex(columns=results.tasks).dropna()


# ---- S25 -----------------------------------------------------------------------------------------------------------

WORKS = {  # task -> the mean return of 100 episodes from which on it counts as solved
    "CartPole-v1": 475.0,  # Gymnasium's reward_threshold; so are the next two
    "Acrobot-v1": -100.0,
    "InvertedPendulum-v5": 950.0,
    "Pendulum-v1": -200.0,  # has none; the target of kengz/SLM-Lab@02477a9 docs/BENCHMARKS.md
}


def sac_works(results: Results) -> Decision:
    """S25, one kind of actions: on every task the share of seeds of which an evaluation (100 episodes without noise)
    reaches the task's threshold is above 0.8. SAC-Discrete is judged with one critic.
    """
    discrete = "sac_discrete" in set(results.runs["algorithm"])
    algorithm, variant = ("sac_discrete", "one-critic") if discrete else ("sac", "default")
    if missing := lacking(results, scores.label(algorithm, variant)):
        return missing
    runs, curves = (table[table["variant"] == variant] for table in (results.runs, results.curves))
    results = dataclasses.replace(results, runs=runs, curves=curves)
    evaluated = results.curves[(results.curves["algorithm"] == algorithm) & (results.curves["phase"] == "eval")]
    found, said = [], []
    for task in results.tasks:
        ends = by_seed(results, algorithm, "score", task)
        best = evaluated[evaluated["task"] == task].groupby("seed")["value"].max().reindex(ends.index)
        words = f"{task}: share of {algorithm}'s seeds that reach {WORKS[task]:g}"
        found.append(share_above(words, best >= WORKS[task], HALVES * len(results.tasks), 0.8))
        said.append(f"{task} {best.median():.4g} ({ends.median():.4g})")
    return decide(found, f"median over seeds of the best evaluation (and of the last ten episodes): {', '.join(said)}")
