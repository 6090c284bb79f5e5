"""Published numbers against ours: which comparisons an experiment makes, whether protocols match, and the verdicts.

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
    reading_error = 0.0                         # of a value read off a plot (grade D), in units of the score
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

import argparse
import json
import math
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import load, ranking, rule, scores
from analysis.load import EXPERIMENTS, Results, ResultsError
from analysis.rule import BETTER, INCONCLUSIVE, NOT_COMPARABLE, REPRODUCED, WORSE, Published, Verdict

__all__ = ["Verdict", "entries", "main", "verdicts"]

RECORDED = scores.REFERENCE / "verdicts.json"
LEVELS = {
    REPRODUCED: 3, BETTER: 3, "holds": 3, INCONCLUSIVE: 2, "inconclusive": 2, NOT_COMPARABLE: 1, WORSE: 0, "fails": 0,
}  # fmt: skip
# how a table words its metric -> (statistic, evaluation)
METRICS = {
    r"training returns: per run mean of the last 100 logged episodic": ("final_100_training_episodes", "training"),
    r"mean of the last 100 training episodes per seed": ("final_100_training_episodes", "training"),
    r"max-over-time of the across-seed mean of deterministic evaluations": (
        "max_over_evaluations_of_mean_curve", "deterministic",
    ),
    r"mean over seeds of the per-seed maximum evaluation": ("max_over_evaluations", "deterministic"),
    r"mean of the last deterministic evaluation \(10 episodes\)": ("last_evaluation_10_episodes", "deterministic"),
}  # fmt: skip
# tables with one row per seed -> columns and protocol
PER_SEED: dict[str, dict[str, Any]] = {
    "ppo_ikostrikov_runs": {
        "environment": "env", "value": "last100_mean_return", "steps": 1_000_000,
        "statistic": "final_100_training_episodes", "evaluation": "training",
    },
}  # fmt: skip
EVALUATION = {"final_100_training_episodes": "training", "area_under_curve": "training"}  # of ours; else deterministic
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
    stored: dict[str, Any] = results.experiment
    for path in (EXPERIMENTS / f"{results.name}.toml", results.path / "experiment.toml"):
        if path.is_file():
            try:
                stored = tomllib.loads(path.read_text())
            except ValueError as error:
                raise ResultsError(f"{path}: not valid TOML ({error})") from None
            break
    found = stored.get("published", [])
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
        values = table.loc[table[spec["environment"]] == environment, spec["value"]].astype(float)
        if values.empty:
            return None
        protocol = Protocol(spec["statistic"], spec["steps"], spec["evaluation"], environment, truncation)
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
    return _published(row, entry.get("reading_error", 0.0)), protocol


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


# ---- verdicts ------------------------------------------------------------------------------------------------------


def verdicts(results: Results, random: dict[str, float] | None = None) -> list[Verdict]:
    """Every comparison that the experiment's `[[published]]` entries ask for, in their order; none asked for: []."""
    found = entries(results)
    if not found:
        return []
    random = scores.random_scores() if random is None else random
    return [verdict for entry in found for verdict in _judge_entry(results, entry, random)]


def _judge_entry(results: Results, entry: dict[str, Any], random: dict[str, float]) -> list[Verdict]:
    bridge = entry.get("bridge", {})
    if entry["table"] == "ppo_table1":
        return _judge_ranking(results, entry, bridge, random)
    algorithm, variant = entry.get("algorithm", ""), entry.get("variant", "default")
    statistic = scores.check_statistic(entry.get("statistic", results.statistic))
    found = [
        _judge_environment(results, entry, algorithm, variant, statistic, task, environment, random)
        for task, environment in entry.get("tasks", {}).items()
    ]
    return [*found, rule.judge_suite(found)] if len(found) > 1 else found


def _judge_environment(
    results: Results, entry: dict[str, Any], algorithm: str, variant: str, statistic: str, task: str, environment: str,
    random: dict[str, float],
) -> Verdict:  # fmt: skip
    """One task of an entry."""
    bridge = entry.get("bridge", {})
    named = " ".join(str(value) for value in entry.get("where", {}).values()) or entry["table"]
    shown: dict[str, Any] = {
        "table": f"{entry['table']}: {named}" if named != entry["table"] else named,
        "subject": f"{task}: {scores.label(algorithm, variant)}",
        "bridge": bridge_text(bridge),
    }
    runs = results.runs
    runs = runs[(runs["task"] == task) & (runs["algorithm"] == algorithm) & (runs["variant"] == variant)]
    values = scores.counted_scores(runs, statistic, random) if len(runs) else pd.Series(dtype=float)
    planned, runs, values = len(runs), runs[values.notna()], values[values.notna()]
    known = theirs(entry, environment)
    reasons = []
    if known is None:
        reasons.append(f"no row for {environment} in {entry['table']}")
    if not len(values):
        reasons.append(f"no finished run of {shown['subject']}")
    if task not in random:
        reasons.append(f"no random policy's score for {task}")
    if known is None or reasons:
        return Verdict(verdict=NOT_COMPARABLE, note="; ".join(reasons), **shown)
    published, protocol = known
    ours = Protocol(
        statistic, int(runs["steps"].iloc[0]), EVALUATION.get(statistic, "deterministic"), task,
        truncation_rule(results, algorithm, variant),
    )  # fmt: skip
    blocked = gate(protocol, ours, bridge)
    if blocked:
        pairs = [
            f"{name} (theirs {getattr(protocol, name) or 'not stated'}, ours {getattr(ours, name)})" for name in blocked
        ]
        return Verdict(
            verdict=NOT_COMPARABLE, ours=float(values.mean()), published=published.mean, n=len(values),
            n_published=published.n, grade=published.grade, note=f"no bridge for {', '.join(pairs)}", **shown,
        )  # fmt: skip
    broken = float(runs["status"].isin(["failed", "diverged"]).mean())
    thin = int((runs["train_episodes"] < scores.WINDOW).sum()) if statistic == "final_100_training_episodes" else 0
    told = {
        f"{broken:.0%} of our runs failed or diverged and count with the score they have": broken,
        f"{thin} runs finished fewer than {scores.WINDOW} episodes": thin,
        f"{planned - len(values)} of {planned} planned runs have no score yet": planned - len(values),
    }
    note = "; ".join(text for text, count in told.items() if count)
    return rule.judge_task(
        values.to_numpy(), published, random[task], entry.get("looks", 1), broken=broken, note=note, **shown
    )


def _judge_ranking(
    results: Results, entry: dict[str, Any], bridge: dict[str, str], random: dict[str, float]
) -> list[Verdict]:
    """PPO's Table 1, after the gate."""
    published = published_table("ppo_table1")
    algorithm = entry.get("algorithm", "ppo")
    runs = results.runs[(results.runs["algorithm"] == algorithm) & results.runs["variant"].isin(published["variant"])]
    tasks = {"HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d"}
    reasons = []
    if {family(task) for task in results.tasks} != tasks:
        reasons.append(f"the table is over {', '.join(sorted(tasks))}; ours over {', '.join(results.tasks)}")
    elif not any(len(m.scores) for m in scores.score_matrices(runs, results.tasks).values()):
        reasons.append("no seed of any row has finished all seven tasks yet")
    else:
        first = runs.iloc[0]
        printed = Protocol("final_100_training_episodes", int(published["steps"].iloc[0]), "training",
                           "the seven tasks -v1", entry.get("truncation", ""))  # fmt: skip
        ours = Protocol(results.statistic, int(first["steps"]), EVALUATION.get(results.statistic, "deterministic"),
                        "the seven tasks -v5", truncation_rule(results, algorithm, first["variant"]))  # fmt: skip
        blocked = gate(printed, ours, bridge)
        if blocked:
            reasons.append(f"no bridge for {', '.join(blocked)}")
    if reasons:
        return [
            Verdict("ppo_table1", "all rows", NOT_COMPARABLE, "C", bridge=bridge_text(bridge), note="; ".join(reasons))
        ]
    return ranking.judge(results, published, bridge_text(bridge), algorithm, random=random)


def bridge_text(bridge: dict[str, str]) -> str:
    """The bridges of an entry in one line."""
    return "; ".join(f"{name}: {text}" for name, text in bridge.items())


# ---- the command ---------------------------------------------------------------------------------------------------


def _nulls(value: Any) -> Any:
    """The value with null for NaN, at any depth."""
    if isinstance(value, dict):
        return {key: _nulls(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nulls(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def as_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON-able values; NaN becomes null."""
    return _nulls(asdict(verdict))


def table_of(found: Sequence[Verdict]) -> str:
    """Verdicts as an aligned table for a terminal."""
    head = ["", "verdict", "ours", "published", "difference", "interval", "margin", "n", "n_p", "grade", "to settle"]
    rows = []
    for v in found:
        settle = {"paper": "no seeds of ours", "ours": f"{v.seeds_needed} seeds" if v.seeds_needed else "more seeds"}
        interval = f"[{_number(v.low)}, {_number(v.high)}]" if np.isfinite(v.low) else ""
        verdict = v.verdict + (f" (leans {v.lean})" if v.lean else "")
        rows.append([v.subject, verdict, _number(v.ours), _number(v.published), _number(v.difference), interval,
                     _number(v.margin), str(v.n or ""), str(v.n_published or ""), v.grade,
                     settle.get(v.blocker, "")])  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def key_of(verdict: Verdict) -> str:
    """What a recorded verdict is kept under, inside its experiment."""
    return f"{verdict.table} | {verdict.subject}"


def got_worse(found: Sequence[Verdict], recorded: dict[str, str]) -> list[str]:
    """Sentences on verdicts below the recorded one, unrecorded WORSE ones, and recorded comparisons that are gone.

    A WORSE that is recorded is a known result: shown, and no news.
    """
    told = []
    now = {key_of(verdict): verdict.verdict for verdict in found}
    for key, verdict in now.items():
        before = recorded.get(key)
        if before is not None and LEVELS[verdict] < LEVELS[before]:
            told.append(f"{key}: {verdict}, recorded as {before}")
        elif before is None and verdict == WORSE:
            told.append(f"{key}: {WORSE}, not recorded")
    return told + [
        f"{key}: no longer compared, recorded as {verdict}" for key, verdict in recorded.items() if key not in now
    ]


def read_recorded() -> dict[str, dict[str, str]]:
    """experiment -> comparison -> verdict, from results/reference/verdicts.json; empty if there is none yet."""
    try:
        return json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    except ValueError as error:
        raise ResultsError(
            f"{RECORDED}: not readable ({error}); restore it from the repository or write it with --record"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """`run_bench.py verify [EXPERIMENT|all] [--json] [--record]`.

    Exit 0: nothing got worse; 1: a verdict fell below the recorded one, or is WORSE and not recorded as such; 2: the
    call was wrong or results cannot be read. `all` takes every reference folder; a name takes the run tree where there
    is one.
    """
    parser = argparse.ArgumentParser(prog="run_bench.py verify", description="published numbers against measured ones")
    parser.add_argument("experiment", nargs="?", default="all", help="name, or all shipped ones (default)")
    parser.add_argument("--out", type=Path, default=load.RUNS, help="folder of run trees (default: results/runs)")
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON")
    parser.add_argument("--record", action="store_true", help="keep the verdicts of shipped results in verdicts.json")
    given = parser.parse_args(argv)
    try:
        folders = load.references() if given.experiment == "all" else [load.find(given.experiment, given.out)]
        recorded, everything, worse = read_recorded(), {}, []
        for folder in folders:
            results = load.load(folder)
            found = verdicts(results)
            everything[results.name] = [as_row(verdict) for verdict in found]
            worse += [f"{results.name}: {line}" for line in got_worse(found, recorded.get(results.name, {}))]
            if given.record and results.shipped:
                recorded[results.name] = {key_of(verdict): verdict.verdict for verdict in found}
            if not given.json:
                print(_report(results, found))
        if given.json:
            print(json.dumps({"verdicts": everything, "worse": worse}, indent=1))
        if given.record:
            RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
            return 0
    except (ResultsError, OSError, ValueError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    for line in worse:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if worse else 0


def _report(results: Results, found: Sequence[Verdict]) -> str:
    """An experiment's verdicts for the terminal: per published table its bridges, rows, statements and notes."""
    source = "shipped results" if results.shipped else f"runs in {results.path}"
    lines = [f"{results.name} ({source})"]
    if not found:
        lines.append("  no [[published]] entries: nothing to compare")
    for table in dict.fromkeys(verdict.table for verdict in found):
        mine = [verdict for verdict in found if verdict.table == table]
        rows = [v for v in mine if v.verdict in (REPRODUCED, BETTER, WORSE, INCONCLUSIVE, NOT_COMPARABLE)]
        lines += ["", table]
        lines += [f"  bridge, {bridge}" for bridge in dict.fromkeys(v.bridge for v in mine if v.bridge)]
        lines += [f"  {line}" for line in table_of(rows).splitlines()] if rows else []
        lines += [f"  {v.verdict}: {v.subject}" for v in mine if v not in rows]
        lines += [f"  note, {v.subject}: {v.note}" for v in mine if v.note]
    return "\n".join(lines) + "\n"
