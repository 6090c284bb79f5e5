"""Published numbers against ours: the verdicts on what an experiment's `[[published]]` entries ask for.

What may be compared, and how an entry is written, is in `analysis.published`; the rule in `analysis.rule`, that for a
ranking table in `analysis.ranking`. `main` is the command `verify`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import load, ranking, rule, scores
from analysis.load import Results, ResultsError
from analysis.published import Protocol, entries, family, gate, published_table, theirs, truncation_rule
from analysis.rule import BETTER, INCONCLUSIVE, NOT_COMPARABLE, REPRODUCED, WORSE, Verdict

__all__ = ["Verdict", "main", "verdicts"]

RECORDED = scores.REFERENCE / "verdicts.json"
LEVELS = {
    REPRODUCED: 3, BETTER: 3, "holds": 3, INCONCLUSIVE: 2, "inconclusive": 2, NOT_COMPARABLE: 1, WORSE: 0, "fails": 0,
}  # fmt: skip

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
    return [*found, rule.judge_suite(found, scores.label(algorithm, variant))] if len(found) > 1 else found


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
        statistic, int(runs["steps"].iloc[0]), scores.evaluation_of(statistic), task,
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
        first = runs.dropna(subset=["steps"]).iloc[0]  # of a run that is there
        printed = Protocol("final_100_training_episodes", int(published["steps"].iloc[0]), "training",
                           "the seven tasks -v1", entry.get("truncation", ""))  # fmt: skip
        ours = Protocol(results.statistic, int(first["steps"]), scores.evaluation_of(results.statistic),
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
        interval = f"[{_number(v.low)}, {_number(v.high)}]" if np.isfinite(v.low) else ""
        verdict = v.verdict + (f" (leans {v.lean})" if v.lean else "")
        rows.append([v.subject, verdict, _number(v.ours), _number(v.published), _number(v.difference), interval,
                     _number(v.margin), str(v.n or ""), str(v.n_published or ""), v.grade,
                     v.to_settle])  # fmt: skip
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
            if given.record and results.shipped and found:
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
