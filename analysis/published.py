"""Which published numbers an experiment is compared with, and whether the protocols match.

Which comparisons are made is data: `[[published]]` entries of suites/experiments/<name>.toml, in two forms. Tasks, one
by one and together as a suite:

    [[published]]
    table = "mujoco_published"                  # results/published/<table>.csv
    where = { algorithm = "CleanRL PPO" }       # rows to take, by equality; a list means any of
    algorithm = "ppo"                           # ours
    variant = "clip-0.2"                        # default: "default"
    tasks = { "HalfCheetah-v5" = "HalfCheetah-v4" }     # ours = theirs
    statistic = "final_100_training_episodes"   # ours, of scores.STATISTICS; default: the experiment's
    truncation = "terminal"                     # theirs at a time limit: "terminal" or "bootstrap"; absent: not known
    looks = 1                                   # 3 if our seeds are looked at when there are 5, 10 and 20
    reading_error = 0.0                         # of a value read off a plot (grade D), in units of the score; may be a
                                                # table of them by their environments
    [published.bridge]                          # what differs and why the comparison is still fair, by field
    environment = "v4 to v5: ..."
    truncation = "..."
    details = "..."                             # shown with the others; needs no mismatch

and a ranking table (`analysis.ranking`): table = "ppo_table1", algorithm, truncation, bridge.

The protocol gate: statistic, steps (within 1 %), evaluation (training or deterministic episodes), environment and
truncation. A field that differs, or that the source does not state, needs a bridge of that name, or the comparison is
NOT COMPARABLE. No bridge leads from one environment family to another (HalfCheetah to Hopper).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from analysis import load, scores
from analysis.load import Results, ResultsError
from analysis.rule import Published

# how a table words its metric -> (statistic, evaluation); "": none that we have, or not stated
METRICS = {
    r"training returns: per run mean of the last 100 logged episodic": ("final_100_training_episodes", "training"),
    r"mean of the last 100 training episodes per seed": ("final_100_training_episodes", "training"),
    r"max-over-time of the across-seed mean of deterministic evaluations": (
        "max_over_evaluations_of_mean_curve", "deterministic",
    ),
    r"mean over seeds of the per-seed maximum evaluation": ("max_over_evaluations", "deterministic"),
    r"mean of the last deterministic evaluation \(10 episodes\)": ("last_evaluation_10_episodes", "deterministic"),
    r"mean of 100 evaluation episodes after training": ("last_evaluation_100_episodes", ""),
    r"deterministic evaluation of one trained agent": ("", "deterministic"),
}  # fmt: skip
# tables with one row per seed -> columns and protocol; of curves, a row per seed and step, `where` names the step
PER_SEED: dict[str, dict[str, Any]] = {
    "ppo_ikostrikov_runs": {
        "environment": "{env}", "value": "last100_mean_return", "steps": 1_000_000,
        "statistic": "final_100_training_episodes", "evaluation": "training",
    },
    "td3_learning_curves": {
        "environment": "{env}-v1", "value": "eval_return", "seed": "seed",
        "statistic": "last_evaluation_10_episodes", "evaluation": "deterministic",
    },
    "dopamine_sac_curves": {
        "environment": "{env}-v2", "value": "train_return", "seed": "run",
        "statistic": "training_episodes_of_the_last_1000_steps", "evaluation": "training",
    },
}  # fmt: skip
KEYS = {
    "table",
    "where",
    "algorithm",
    "variant",
    "tasks",
    "statistic",
    "truncation",
    "looks",
    "reading_error",
    "bridge",
}


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share to be compared. "" or 0: not stated."""

    statistic: str
    steps: int  # env_steps per run
    evaluation: str  # training or deterministic
    environment: str
    truncation: str  # terminal or bootstrap


# ---- what to compare -----------------------------------------------------------------------------------------------


def entries(results: Results) -> list[dict[str, Any]]:
    """The `[[published]]` entries: of the experiment's file, else of what was stored with the results. Checked."""
    found = load.contents(results.name, results.path, results.experiment).get("published", [])
    found = found if isinstance(found, list) else [found]
    for entry in found:
        unknown = set(entry) - KEYS
        if unknown or "table" not in entry:
            wrong = f"unknown key {', '.join(sorted(unknown))}" if unknown else "no table"
            raise ResultsError(f"experiment {results.name}, [[published]]: {wrong}; keys are {', '.join(sorted(KEYS))}")
    return found


def published_table(name: str) -> pd.DataFrame:
    """results/published/<name>.csv; FileNotFoundError names it and the tables there are."""
    path = scores.PUBLISHED / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in scores.PUBLISHED.glob("*.csv")))
        raise FileNotFoundError(f"{path}: no such published table; there are {known}")
    return pd.read_csv(path, keep_default_na=True)


def select(table: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    """The rows whose columns equal the given values (or one of a list of them)."""
    for column, value in where.items():
        if column not in table:
            raise ResultsError(f"[[published]] where: no column {column!r}; there are {', '.join(table.columns)}")
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    return table


def theirs(entry: dict[str, Any], environment: str) -> tuple[Published, Protocol] | None:
    """The published number for one environment id, with its protocol; None if the table has no row for it."""
    name, truncation = entry["table"], entry.get("truncation", "")
    table = select(published_table(name), entry.get("where", {}))
    if name in PER_SEED:
        spec = PER_SEED[name]
        rows = table[[spec["environment"].format(env=env) == environment for env in table["env"]]]
        values = rows[spec["value"]].astype(float)
        if values.empty:
            return None
        if "seed" in spec and (rows["step"].nunique() > 1 or rows[spec["seed"]].duplicated().any()):
            raise ResultsError(
                f"[[published]] {name} has a row per step; `where` must name one: where = {{ step = 100_000 }}"
            )
        steps = spec.get("steps") or int(rows["step"].iloc[0])
        protocol = Protocol(spec["statistic"], steps, spec["evaluation"], environment, truncation)
        return Published(float(values.mean()), n=len(values), grade="A", values=tuple(values)), protocol
    ids = table["env"] + table["version"].map(lambda version: "" if pd.isna(version) else f"-{version}")
    rows = table[(ids == environment) & table["score"].notna()]
    if rows.empty:
        return None
    if len(rows) > 1:
        raise ResultsError(f"[[published]] {name}: {len(rows)} rows for {environment}; narrow `where` down to one")
    row = rows.iloc[0]
    statistic, evaluation = _metric(str(row["metric"]))
    protocol = Protocol(statistic, _int(row["steps"]) or 0, evaluation, environment, truncation)
    error = entry.get("reading_error", 0.0)
    if isinstance(error, dict):
        if environment not in error:
            raise ResultsError(f"[[published]] {name}: reading_error has no {environment}; it has {', '.join(error)}")
        error = error[environment]
    return _published(row, error), protocol


def _metric(words: str) -> tuple[str, str]:
    return next((meaning for pattern, meaning in METRICS.items() if re.search(pattern, words)), ("", ""))


def _int(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _published(row: pd.Series, reading_error: float) -> Published:
    """A row of mean, spread and n, with its grade; a spread over episodes is none over seeds."""
    n, spread, kind = _int(row["n_seeds"]), row["std"], "" if pd.isna(row["std_kind"]) else str(row["std_kind"])
    if pd.isna(spread) or kind == "std (over episodes)":
        spread, kind = None, ""
    if "plot reading" in str(row["algorithm"]) or "read off" in str(row["metric"]):
        grade = "D"
    else:
        grade = "B" if spread is not None and n and n > 1 else "C"
    return Published(
        float(row["score"]), None if spread is None else float(spread), kind, n, grade, reading_error=reading_error
    )


def truncation_rule(results: Results, algorithm: str, variant: str) -> str:
    """Ours at a time limit, from the runs' configuration: bootstrap unless `time_limit_bootstrap` is 0."""
    return "bootstrap" if load.config_of(results, algorithm, variant).get("time_limit_bootstrap", 1) else "terminal"


def family(environment: str) -> str:
    """An environment id without its version."""
    return re.sub(r"-v\d+$", "", environment)


def gate(published: Protocol, ours: Protocol, bridge: dict[str, str]) -> list[str]:
    """The fields that keep two protocols from being compared: they differ or are not stated, and have no bridge."""
    differ = [
        f.name for f in fields(Protocol) if f.name != "steps" and getattr(published, f.name) != getattr(ours, f.name)
    ]
    differ += [f.name for f in fields(Protocol) if f.name not in differ and not getattr(published, f.name)]
    if published.steps and abs(published.steps - ours.steps) > 0.01 * published.steps:
        differ.append("steps")
    blocked = [name for name in differ if not bridge.get(name)]
    if family(published.environment) != family(ours.environment) and "environment" not in blocked:
        blocked.append("environment")
    return blocked
