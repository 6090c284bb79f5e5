"""The tables of a report: what was scored, compared, left out and configured, as numbers and as text.

`study` gathers an experiment once (names, anchors, normalized score matrices); every table is a function of it. On a
tree that is only part done, aggregates use the tasks on which every setting has a score, and the seeds that have all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import claims, scores, statistics, verify
from analysis.load import Results
from analysis.statistics import Interval

REPS = 2000  # bootstrap draws
INTERVAL = f"95 % stratified bootstrap interval over runs ({REPS:,} draws, seeded)"
AGGREGATES = {"mean": "mean", "median": "median", "iqm": "IQM", "optimality_gap": "optimality gap"}


@dataclass(frozen=True)
class Table:
    """`data` holds numbers and goes to CSV; `shown` holds the same as text and goes to the page and to Markdown."""

    name: str
    title: str
    data: pd.DataFrame
    shown: pd.DataFrame
    note: str = ""
    remarks: tuple[str, ...] = ()  # on single rows


@dataclass
class Study:
    """What every section needs: the runs, how settings are called, and normalized scores where there are anchors."""

    results: Results
    labels: dict[tuple[str, str], str]  # (algorithm, variant) -> name on the page, in order
    anchors: scores.Anchors | None = None
    second: scores.Anchors | None = None  # the other reading of "best result"
    tasks: list[str] = field(default_factory=list)  # the tasks that are normalized: every setting has a score there
    flat: list[str] = field(default_factory=list)  # those on which no best result is above the random policy
    matrices: dict[str, scores.Matrix] = field(default_factory=dict)  # label -> normalized [n, E]
    raw: str = ""  # why scores are not normalized

    @property
    def order(self) -> list[str]:
        """The settings' names, in the order of tables and figures."""
        return list(self.labels.values())

    @property
    def scored(self) -> pd.DataFrame:
        """The runs that have a score."""
        return self.results.runs[np.isfinite(self.results.runs["score"].astype(float))]

    def pairs(self, runs: pd.DataFrame) -> list[tuple[str, str]]:
        """(algorithm, variant) of each row."""
        return list(zip(runs["algorithm"], runs["variant"], strict=True))


# Words and numbers ----------------------------------------------------------------------------------------------------


def number(value: float, digits: int | None = None) -> str:
    """Three figures or so: 0.72, 12.3, 1,234; an en dash for nothing."""
    if value is None or not np.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def spanned(point: float, low: float, high: float) -> str:
    """`0.72 [0.66, 0.78]`, with the point's number of digits; without the interval where there is none."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(point)
    digits = 0 if abs(point) >= 100 else 1 if abs(point) >= 10 else 2
    return f"{number(point, digits)} [{number(low, digits)}, {number(high, digits)}]"


def plural(count: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def listed(values: Iterable[Any], most: int = 6) -> str:
    """Values with commas between; the number of those past `most`."""
    items = [str(value) for value in values]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def span(counts: Iterable[int]) -> str:
    """`5`, or `3 to 5` where counts differ."""
    found = sorted({int(count) for count in counts}) or [0]
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def label_settings(runs: pd.DataFrame, order: Sequence[str] = ()) -> dict[tuple[str, str], str]:
    """(algorithm, variant) -> name: the algorithm is left out where there is only one and it has variants."""
    pairs = scores.settings(runs)
    alone = len({algorithm for algorithm, _ in pairs}) == 1
    labels = {pair: pair[1] if alone and pair[1] != "default" else scores.label(*pair) for pair in pairs}
    first = {name: place for place, name in enumerate(order)}
    return dict(sorted(labels.items(), key=lambda item: first.get(item[1], first.get(item[0][1], len(first)))))


def study(results: Results) -> Study:
    """Chooses the anchors and collects the normalized score matrices of every setting."""
    runs, report = results.runs, results.experiment.get("report") or {}
    made = Study(results, label_settings(runs, report.get("order", ())))
    scored = made.scored
    have = scored.groupby("task")[["algorithm", "variant"]].apply(lambda rows: len(rows.drop_duplicates()))
    made.tasks = [task for task in results.tasks if len(scored) and have.get(task, 0) == len(made.labels)]
    wanted = (results.experiment.get("score") or {}).get("anchors")
    metric = scores.metric_of(results.statistic)
    try:
        if not made.tasks:
            made.raw = "no task has a score from every setting yet"
        elif metric is not None:
            made.raw = f"{metric} is no return, so that neither the random policy nor a best result anchors it"
        elif len(results.tasks) == 1:
            made.raw = "with a single task, returns say it all"
        elif wanted and wanted not in scores.READINGS:
            made.anchors = scores.table_anchors(wanted)
        elif wanted is None and len(made.labels) < 2:
            made.raw = "a single setting has nothing to be normalized against"
        else:
            rows = scored[scored["task"].isin(made.tasks)]
            first = wanted or "best-run"  # as in `ranking`
            anchors = scores.best_anchors(rows, first)
            second = scores.best_anchors(rows, next(name for name in scores.READINGS if name != first))
            made.flat = [t for t in made.tasks if min(anchors.high[t], second.high[t]) <= anchors.low[t]]
            made.tasks = [task for task in made.tasks if task not in made.flat]
            if made.tasks:
                made.anchors, made.second = anchors, second
            else:
                made.raw = "nowhere is the best result above the random policy's"
        if made.anchors is not None:
            column = scores.normalize_column(runs, made.anchors)
            for pair, name in made.labels.items():
                made.matrices[name] = scores.score_matrix(runs.assign(normal=column), *pair, made.tasks, "normal")
    except (FileNotFoundError, ValueError) as error:
        made.anchors = made.second = None
        made.raw = str(error)
    return made


def runs_phrase(this: Study) -> str:
    """`11 settings x 7 tasks x 5 seeds = 385 runs`, or how many of them have a score."""
    runs = this.results.runs
    seeds, planned, scored = runs["seed"].nunique(), len(runs), len(this.scored)
    parts = [plural(len(this.labels), "setting"), plural(len(this.results.tasks), "task"), plural(seeds, "seed")]
    whole = f"{' × '.join(parts)}: {plural(planned, 'run')}"
    return whole if scored == planned else f"{whole}, of which {scored:,} have a score so far"


def steps_phrase(results: Results) -> str:
    """The budget of a run in words."""
    steps = sorted({int(value) for value in results.runs["steps"].dropna()})
    return (" or ".join(f"{value:,}" for value in steps) or "no") + " env_steps each"


def statistic_phrase(results: Results) -> str:
    """The statistic's name and its meaning."""
    better = "; lower is better" if results.lower_is_better else ""
    return f"{results.statistic} ({scores.meaning(results.statistic)}{better})"


def unit(results: Results) -> str:
    """What the score of a run is, in a word for headings: a return, unless it is a metric's value."""
    return "return" if scores.metric_of(results.statistic) is None else "score"


def caption(this: Study, about: str, normalized: bool = True) -> str:
    """What stands under a figure: runs, budget, what is drawn, statistic, normalization."""
    parts = [f"{runs_phrase(this)}, {steps_phrase(this.results)}.", about, f"Score of a run: {this.results.statistic}."]
    if normalized and this.anchors is not None:
        parts.append(f"Normalized per task: {this.anchors.rule}.")
    return " ".join(parts)


# Tables ---------------------------------------------------------------------------------------------------------------


def headline(this: Study) -> Table:
    """What the page and the terminal lead with: aggregates, or returns by task where nothing is normalized."""
    if len(this.results.tasks) == 1:
        return single_task_table(this)
    return headline_table(this) if this.matrices else task_table(this)


def headline_table(this: Study) -> Table:
    """Setting x aggregate of normalized scores, with intervals; and the mean by the other reading of "best result"."""
    assert this.anchors is not None
    rows, cells = [], []
    for name, matrix in this.matrices.items():
        row: dict[str, Any] = {"setting": name, "seeds": len(matrix.seeds), "tasks": len(matrix.tasks)}
        line = {"setting": name, "seeds": str(len(matrix.seeds))}
        nothing = dict.fromkeys(AGGREGATES, Interval(np.nan, np.nan, np.nan))
        found = statistics.aggregate_intervals(matrix.scores, reps=REPS) if len(matrix.seeds) else nothing
        for key, title in AGGREGATES.items():
            row |= {key: found[key].point, f"{key}_low": found[key].low, f"{key}_high": found[key].high}
            line[title] = spanned(*found[key])
        rows.append(row)
        cells.append(line)
    if this.second is not None:
        runs = this.results.runs.assign(second=scores.normalize_column(this.results.runs, this.second))
        title = f"mean ({'best run' if 'single run' in this.second.rule else 'best setting'} = 1)"
        for pair, row, line in zip(this.labels, rows, cells, strict=True):
            values = scores.score_matrix(runs, *pair, this.tasks, "second").scores
            row["mean_other_reading"] = float(values.mean()) if len(values) else np.nan
            line[title] = number(row["mean_other_reading"])
    note = f"Normalized score over {plural(len(this.tasks), 'task')}: {this.anchors.rule}. In brackets: {INTERVAL}."
    return Table("headline", "Aggregate scores", pd.DataFrame(rows), pd.DataFrame(cells), note)


def task_table(this: Study) -> Table:
    """The mean score of every setting on every task, in raw returns."""
    keys = ["task", "algorithm", "variant"]
    groups = {key: group["score"].to_numpy(float) for key, group in this.scored.groupby(keys)}
    rows, cells = [], []
    for pair, name in this.labels.items():
        line = {"setting": name}
        for task in this.results.tasks:
            values = groups.get((task, *pair), np.empty(0))
            interval = mean_interval(values)
            spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
            rows.append({"setting": name, "task": task, "runs": len(values), "std": spread,
                         "mean": interval.point, "low": interval.low, "high": interval.high})  # fmt: skip
            line[task] = spanned(*interval)
        cells.append(line)
    n = span(len(values) for values in groups.values())
    mean = "Mean raw episode return" if scores.metric_of(this.results.statistic) is None else "Mean"
    note = f"{mean}, {n} runs per cell; statistic {statistic_phrase(this.results)}. In brackets: {INTERVAL}."
    return Table("tasks", "Scores by task", pd.DataFrame(rows), pd.DataFrame(cells), note)


def rank_table(this: Study) -> Table | None:
    """The place of every setting on every task where all have a score, by mean score, and their mean over the tasks.

    None where there is nothing to rank: fewer than three settings, or fewer than two such tasks.
    """
    keys = ["task", "algorithm", "variant"]
    sign = -1.0 if this.results.lower_is_better else 1.0
    groups = {key: sign * group["score"].to_numpy(float) for key, group in this.scored.groupby(keys)}
    shared = [task for task in this.results.tasks if all((task, *pair) in groups for pair in this.labels)]
    if len(this.labels) < 3 or len(shared) < 2:
        return None
    found = {
        task: statistics.ranks([groups[task, *pair] for pair in this.labels], generator=place, reps=REPS)
        for place, task in enumerate(shared)
    }
    found["mean"] = tuple(np.mean(parts, axis=0) for parts in zip(*found.values(), strict=True))
    rows, cells = [], []
    for place, name in enumerate(this.order):
        line = {"setting": name}
        for task, (point, draws) in found.items():
            interval = Interval(float(point[place]), *map(float, statistics.percentiles(draws[:, place])))
            rows.append({"setting": name, "task": task} | dict(zip(("rank", "low", "high"), interval, strict=True)))
            line[task] = f"{interval.point:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
        cells.append(line)
    note = f"1: the best mean score, {len(this.labels)}: the worst; ties share their places. In brackets: {INTERVAL}."
    return Table("ranks", "Ranks by task", pd.DataFrame(rows), pd.DataFrame(cells), note)


def single_task_table(this: Study) -> Table:
    """The runs of each setting on the one task there is: mean with its interval, middle and range."""
    rows, cells = [], []
    for (algorithm, variant), name in this.labels.items():
        mine = this.scored[(this.scored["algorithm"] == algorithm) & (this.scored["variant"] == variant)]
        values = mine["score"].to_numpy(float)
        row: dict[str, Any] = {"setting": name, "seeds": len(values)}
        row |= dict(zip(("mean", "low", "high"), mean_interval(values), strict=True))
        for key, of in (("IQM", lambda x: statistics.iqm(x[:, None])), ("lowest", np.min), ("highest", np.max)):
            row[key] = float(of(values)) if len(values) else np.nan
        rows.append(row)
        shown = {f"mean {unit(this.results)}": spanned(row["mean"], row["low"], row["high"])}
        shown |= {key: number(row[key]) for key in ("IQM", "lowest", "highest")}
        cells.append({"setting": name, "seeds": str(len(values))} | shown)
    raw = "Raw episode returns; statistic" if scores.metric_of(this.results.statistic) is None else "Statistic"
    note = f"{raw} {statistic_phrase(this.results)}. In brackets: {INTERVAL}."
    title = f"{unit(this.results).capitalize()}s on {this.results.tasks[0]}"
    return Table("headline", title, pd.DataFrame(rows), pd.DataFrame(cells), note)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean over runs (axis 0) with its interval; no interval for a single run, nothing for none."""
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    if len(values) == 1:
        return Interval(values[0], np.nan * values[0], np.nan * values[0])
    return statistics.mean_interval(values, reps=REPS)


def verdict_tables(found: Sequence[verify.Verdict]) -> list[Table]:
    """One table per published table, what holds for all its rows in the note; statements in tables of their own."""
    tables = []
    for name in dict.fromkeys(one.table for one in found):
        for statements in (False, True):
            some = [
                one for one in found if one.table == name and one.verdict.islower() == statements
            ]  # as `rule` writes them
            if some:
                tables.append(statement_table(name, some) if statements else comparison_table(name, some))
    return tables


def comparison_table(name: str, found: Sequence[verify.Verdict]) -> Table:
    """Ours beside published, row by row, with the verdict and what it rests on."""
    bridges = list(dict.fromkeys(one.bridge for one in found if one.bridge))
    rows = []
    for one in found:
        row = {
            "compared": one.subject,
            "verdict": one.verdict.lower(),
            "leans": one.lean or "–",
            "ours": number(one.ours),
            "published": number(one.published),
            "difference": spanned(one.difference, one.low, one.high),
            "margin": number(one.margin),
            "shown": f"{one.achieved:.2f} R" if np.isfinite(one.achieved) else "–",
            "n": str(one.n),
            "paper's n": "?" if one.n_published is None else str(one.n_published),
            "grade": one.grade or "–",
            "to settle": one.to_settle or "–",
            "bridge": f"({bridges.index(one.bridge) + 1})" if one.bridge else "–",
        }
        rows.append(row)
    remarks = tuple(f"{one.subject}: {one.note}" for one in found if one.note)
    note = (
        "Equivalence test with a margin of a tenth of the scale: too few seeds end in inconclusive, not in reproduced."
        " In brackets: the interval of the difference, which decides; shown: the margin it would pass, in units of the "
        "scale R = |published − random|. Grade: A per-seed data; B mean, spread and n; "
        "C mean only; D read off a plot."
    )
    shown = pd.DataFrame(rows)
    empty = [column for column in ("leans", "to settle") if (shown[column] == "–").all()]
    if len(bridges) < 2 and all(one.bridge for one in found):  # the same for all: said once, below
        note += "".join(f" Bridge: {bridge}." for bridge in bridges)
        empty.append("bridge")
    else:
        note += "".join(f" Bridge ({place}): {bridge}." for place, bridge in enumerate(bridges, start=1))
    data = pd.DataFrame([{**vars(one), "extra": json.dumps(one.extra, default=str)} for one in found])
    return Table(f"verdicts-{slug(name)}", f"Against {name}", data, shown.drop(columns=empty), note, remarks)


def statement_table(name: str, found: Sequence[verify.Verdict]) -> Table:
    """The statements a table's text makes, with the verdict on each."""
    shown = pd.DataFrame(
        {
            "statement": [one.subject for one in found],
            "verdict": [one.verdict.lower() for one in found],
            "evidence": [one.note for one in found],
        }
    )
    data = pd.DataFrame([{**vars(one), "extra": json.dumps(one.extra, default=str)} for one in found])
    return Table(f"statements-{slug(name)}", f"What {name} states", data, shown)


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")


def claim_table(found: Sequence[claims.Claim]) -> Table:
    """The claims this experiment decides."""
    data = pd.DataFrame([vars(one) for one in found])
    shown = data[["id", "statement", "status", "evidence", "source"]].rename(
        columns={"id": "claim", "status": "verdict"}
    )
    return Table("claims", "Claims", data, shown)


def trouble_table(this: Study) -> Table:
    """Every planned run that did not finish, with its reason; one row per run."""
    runs = this.results.runs
    rows = runs[runs["status"] != "finished"]
    rank = {status: place for place, status in enumerate(("failed", "diverged", "running", "missing"))}
    rows = rows.iloc[np.argsort(rows["status"].map(rank).to_numpy(), kind="stable")]
    data = rows[["status", "task", "algorithm", "variant", "seed", "env_steps", "steps", "error", "score"]]
    usual = {
        "failed": "no message was stored",
        "diverged": "its weights or losses are not finite",
        "running": "under way, or stopped without an end: the same command goes on",
        "missing": "planned, not started",
    }
    shown = pd.DataFrame(
        {
            "status": rows["status"],
            "task": rows["task"],
            "setting": [this.labels[pair] for pair in this.pairs(rows)],
            "seed": rows["seed"].map(str),
            "reached": [f"{at:.0%}" for at in (rows["env_steps"] / rows["steps"].fillna(np.inf)).astype(float)],
            "counted as": rows["score"].map(number),
            "reason": rows["error"].where(
                rows["error"].astype(bool) & rows["error"].notna(), rows["status"].map(usual)
            ),
        }
    )
    stand_in = ", or the random policy's" if scores.metric_of(this.results.statistic) is None else ", if any"
    note = f"Failed and diverged runs count with the score they reached{stand_in}; the others have none yet."
    return Table("unfinished", "Runs that did not finish", data, shown, note)


def anchor_table(this: Study) -> Table:
    """What is 0 and what is 1, per task."""
    assert this.anchors is not None
    data = pd.DataFrame({"task": this.tasks})
    data["low"] = data["task"].map(this.anchors.low)
    data["high"] = data["task"].map(this.anchors.high)
    shown = pd.DataFrame({"task": data["task"], "0 is": data["low"].map(number), "1 is": data["high"].map(number)})
    return Table("anchors", "Anchors of the normalization", data, shown, this.anchors.rule)


def config_tables(manifests: Sequence[dict[str, Any]], this: Study) -> list[Table]:
    """Resolved settings: what all runs of an algorithm share, and what its variants change."""
    tables = []
    for algorithm in dict.fromkeys(name for name, _ in this.labels):
        configs = {m["variant"]: m.get("config") or {} for m in manifests if m["algorithm"] == algorithm}
        keys = list(dict.fromkeys(key for config in configs.values() for key in config))
        values = {key: {name: json.dumps(config.get(key)) for name, config in configs.items()} for key in keys}
        shared = {key: next(iter(found.values())) for key, found in values.items() if len(set(found.values())) == 1}
        frame = pd.DataFrame(shared.items(), columns=["setting", "value"])
        tables.append(Table(f"config-{algorithm}", f"{algorithm}: settings that all its runs share", frame, frame))
        differ = [key for key in keys if key not in shared]
        if differ:
            frame = pd.DataFrame([{"variant": name} | {key: values[key][name] for key in differ} for name in configs])
            tables.append(Table(f"variants-{algorithm}", f"{algorithm}: what its variants change", frame, frame))
    return tables


def numeric(shown: pd.DataFrame) -> set[str]:
    """The columns to align right: those whose cells start like numbers."""
    return {c for c in shown if len(shown) and shown[c].map(lambda v: bool(re.match(r"[−\d–]", str(v)))).all()}


def write_table(table: Table, folder: Path) -> None:
    """A table as Markdown and as CSV."""
    head = list(table.shown.columns)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(str(value).replace('|', '/') for value in row)} |" for row in table.shown.to_numpy()]
    write(
        folder / f"{table.name}.md",
        f"**{table.title}**\n\n"
        + "\n".join(lines)
        + f"\n\n{table.note}\n"
        + "".join(f"- {remark}\n" for remark in table.remarks),
    )
    write(folder / f"{table.name}.csv", table.data.to_csv(index=False, float_format="%.10g"))


def write(path: Path, text: str) -> None:
    """Under a temporary name, then renamed: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
