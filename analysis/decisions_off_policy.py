"""How the statements about off-policy learning are decided; the words and rules of analysis/decisions.py hold here."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.decisions import Decision, decide, improvement_above, lacking
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
    return decide(found, f"mean score (and over all evaluations): {'; '.join(said)}")
