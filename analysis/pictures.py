"""From an experiment's results to the figures of its report: picks the data, computes bands, names what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import figures, load, scores, statistics, verify
from analysis.load import Results
from analysis.scores import KEYS
from analysis.statistics import Interval
from analysis.tables import AGGREGATES, REPS, Study, Table, caption, mean_interval, number, slug, span, unit

SYMBOLS = {"epsilon": "ε", "d_targ": "$d_{targ}$", "beta": "β"}  # of ppo_table1.csv
DECIDES = (
    "Bar: the interval of the difference from the published value, which decides: inside the margin is reproduced."
)
BOTH = (
    "Normalized per task: random policy = 0; the paper does not say whether its best result = 1 is the best run or the "
    "best setting, so both are shown, and a verdict stands if they agree."
)
BAND = f"95 % stratified bootstrap interval over runs ({REPS:,} draws)"
CURVE_REPS = 500  # draws for the IQM of curves, which costs the most
CURVE = "mean return of the last 100 training episodes"
MEAN = "95 % bootstrap interval of that mean"
MANY = 40  # settings; no figure can name more of them and be read


@dataclass(frozen=True)
class Picture:
    """A written figure and the words for it."""

    name: str
    title: str
    caption: str
    svg: Path
    section: str = ""  # `asked` by the experiment's file, or `metrics`


def draw(this: Study, headline: Table, found: Sequence[verify.Verdict], folder: Path) -> list[Picture]:
    """Writes every figure for which there is data, in the order of the page."""
    made: list[Picture] = []

    def add(
        name: str, title: str, text: str, plot: Callable[..., Any], table: pd.DataFrame, section: str = "", **more: Any
    ) -> None:
        paths = figures.save(plot(table, caption=text, title=title, **more), folder, name)
        made.append(Picture(name, title, text, paths["svg"], section))

    for name in dict.fromkeys(one.table for one in found):
        rows = published_rows([one for one in found if one.table == name])
        more: dict[str, Any] = {"margin": 0.1, "interval": "interval that decides"}
        if len(rows) and name == "ppo_table1":
            title = "PPO Table 1: eleven objectives, ours beside the paper's"
            more |= {"source": "Schulman et al. 2017", "first": "ours, best run = 1", "other": "ours, best setting = 1"}
            text = caption(this, f"{DECIDES} {BOTH}", normalized=False)
            add(name, title, text, figures.published, rows, **more)
        elif len(rows):
            more |= {"zero": None, "xlabel": "difference from the published mean, in units of (published − random)"}
            text = caption(this, DECIDES, normalized=False)
            add(f"published-{slug(name)}", f"Ours beside published: {name}", text, figures.published, rows, **more)

    for asked in asked_pictures(this):
        add(section="asked", **asked)
    if len(this.labels) > MANY:
        return made

    for name, rows in metric_rows(this).items():
        about = f"Line: mean over {span(rows['n'])} seeds that finished; band: {MEAN}."
        text = caption(this, about, normalized=False)
        more = {"order": this.order, "ylabel": name, "section": "metrics"}
        add(f"metric-{slug(name)}", name, text, figures.learning_curves, rows, **more)

    curves = whole_curves(this.results)
    rows = curve_rows(this, curves)
    if len(rows):
        about = f"Line: mean over {span(rows['n'])} seeds of the {CURVE}; band: {MEAN}."
        text = caption(this, about, normalized=False)
        add("curves", "Learning curves", text, figures.learning_curves, rows, order=this.order)

    table = this.scored.assign(label=[this.labels[pair] for pair in this.pairs(this.scored)])
    if len(table):
        text = caption(
            this, "Small dot: a run; large dot and bar: their mean and its 95 % bootstrap interval.", normalized=False
        )
        add("runs", "Every run's score", text, figures.runs, table, means=mean_rows(table), order=this.order)

    raw = {name: scores.score_matrix(this.results.runs, *pair, this.tasks) for pair, name in this.labels.items()}
    sign = -1.0 if this.results.lower_is_better else 1.0
    whole = {name: sign * matrix.scores for name, matrix in raw.items() if matrix.scores.size}  # higher is better
    if len(whole) > 1:
        best = baseline(this, whole)
        side = "below" if this.results.lower_is_better else "above"
        about = f"Chance that a run of {best} scores {side} one of the other on a task, mean over tasks; bar: {BAND}."
        text = caption(this, about, normalized=False)
        add("improvement", "Probability of improvement", text, figures.improvement, improvement_rows(best, whole))

    normal = {name: matrix.scores for name, matrix in this.matrices.items() if len(matrix.scores)}
    if not normal:
        return made
    text = caption(this, f"Point: aggregate over runs and tasks; bar: {BAND}.")
    add("aggregates", "Aggregate normalized score", text, figures.intervals, aggregate_rows(headline), order=this.order)
    add("ablation", "Normalized score by task", caption(this, "Mean over seeds."), figures.ablation, ablation(this))
    text = caption(this, f"Band: pointwise {BAND}.")
    add("profiles", "Performance profiles", text, figures.profiles, profile_rows(normal), order=this.order)
    rows = efficiency_rows(this, curves)
    if len(rows):
        around = BAND.replace(f"{REPS:,}", str(CURVE_REPS))
        about = f"Line: interquartile mean over tasks and seeds of the {CURVE}; band: pointwise {around}."
        text = caption(this, about)
        add("efficiency", "Sample efficiency", text, figures.sample_efficiency, rows, order=this.order)
    return made


def band(interval: Interval, **keys: Any) -> pd.DataFrame:
    """An interval of arrays as rows of a figure's table."""
    return pd.DataFrame(keys | {"estimate": interval.point, "low": interval.low, "high": interval.high})


def stacked(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The parts as one table; an empty one for none."""
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def whole_curves(results: Results) -> pd.DataFrame:
    """The training curves without gaps: a run that is over keeps its last value; at its start it has its first.

    Column `over` tells the runs that are over from those under way, whose curves end where they are.
    """
    curves = results.curves[results.curves["phase"] == "train"].copy()
    ended = results.runs[results.runs["status"].isin(["finished", "failed", "diverged"])]
    curves["over"] = pd.MultiIndex.from_frame(curves[KEYS]).isin(pd.MultiIndex.from_frame(ended[KEYS]))
    curves["value"] = curves.groupby(KEYS, sort=False)["value"].bfill()
    kept = curves.groupby(KEYS, sort=False)["value"].ffill()
    curves["value"] = curves["value"].where(~curves["over"], kept)
    return curves


def curve_rows(this: Study, curves: pd.DataFrame) -> pd.DataFrame:
    """task, label, env_steps, estimate, low, high, n: over the runs that are over, or those under way if none is."""
    parts = []
    for (task, algorithm, variant), group in curves.groupby(KEYS[:3], sort=False):
        group = group[group["over"]] if group["over"].any() else group
        wide = group.pivot(index="seed", columns="env_steps", values="value").dropna(axis=1)
        if wide.size:
            keys = {"task": task, "label": this.labels[algorithm, variant], "env_steps": wide.columns, "n": len(wide)}
            parts.append(band(mean_interval(wide.to_numpy(float)), **keys))
    return stacked(parts)


def asked_pictures(this: Study) -> list[dict[str, Any]]:
    """What the experiment's file asks for (`load.asked_figures`), as far as there is data: the arguments of `add`."""
    results = this.results
    makers = {"episodes": episodes_picture, "sweep": sweep_picture, "difference": difference_picture}
    found = []
    for number_, entry in enumerate(load.asked_figures(results.name, results.path, results.experiment), start=1):
        made = makers[entry["kind"]](this, entry)
        if len(made["table"]):
            found.append(made | {"name": f"asked-{number_}", "title": entry.get("title", made["title"])})
    return found


def episodes_picture(this: Study, entry: dict[str, Any]) -> dict[str, Any]:
    """The online return by number of episode."""
    online = this.results.online
    rows = mean_lines(this, online[online["episode"] <= entry["episodes"]], "episode")
    part = round(entry["episodes"] / min(scores.POINTS, entry["episodes"]))
    about = f"Each point: mean return of {part} training episodes, over {span(rows.get('n', []))} seeds; band: {MEAN}."
    return {
        "title": "Return while learning", "text": caption(this, about, normalized=False), "table": rows,
        "plot": figures.learning_curves, "order": this.order, "x": "episode",
    }  # fmt: skip


def difference_picture(this: Study, entry: dict[str, Any]) -> dict[str, Any]:
    """One metric minus another."""
    first, second = entry["of"]
    rows = mean_lines(this, difference(this.results, first, second), "env_steps")
    about = f"Line: mean over {span(rows.get('n', []))} seeds of {first} minus {second}; band: {MEAN}."
    return {
        "title": f"{first} minus {second}", "text": caption(this, about, normalized=False), "table": rows,
        "plot": figures.learning_curves, "order": this.order, "ylabel": "difference", "zero": True,
    }  # fmt: skip


def sweep_picture(this: Study, entry: dict[str, Any]) -> dict[str, Any]:
    """The score over one setting, a line per value of another."""
    results, x, lines = this.results, entry["x"], entry["lines"]
    configs = load.configs(results, list(this.labels))
    parts = []
    for (task, *pair), group in this.scored.groupby(KEYS[:3], sort=False):
        config = configs.get((pair[0], pair[1]), {})
        if x in config and lines in config:
            interval = mean_interval(group["score"].to_numpy(float))
            parts.append({"task": task, "line": config[lines], "x": config[x], **interval._asdict(), "n": len(group)})
    rows = pd.DataFrame(parts).rename(columns={"point": "estimate"})
    about = f"Line: mean over {span(rows.get('n', []))} seeds; band: {MEAN}; dot: the best {x} of each {lines}."
    return {
        "title": f"{results.statistic} over {x}", "text": caption(this, about, normalized=False), "table": rows,
        "plot": figures.sweep, "xlabel": x, "legend": lines, "lower_is_better": results.lower_is_better,
        "ylabel": scores.metric_of(results.statistic) or f"mean {unit(results)}",
    }  # fmt: skip


def difference(results: Results, first: str, second: str) -> pd.DataFrame:
    """KEYS, env_steps, value: one metric minus another, where a run wrote both down."""
    metrics = results.metrics
    wide = [metrics[metrics["name"] == name].set_index([*KEYS, "env_steps"])["value"] for name in (first, second)]
    return (wide[0] - wide[1]).dropna().rename("value").reset_index()


def mean_lines(this: Study, points: pd.DataFrame, x: str) -> pd.DataFrame:
    """task, label, x, estimate, low, high, n: points (KEYS, x, value) over the seeds, where all of a setting have one.

    Of the runs that finished; of those under way where none has.
    """
    finished = this.results.runs[this.results.runs["status"] == "finished"]
    is_done = pd.MultiIndex.from_frame(points[KEYS]).isin(pd.MultiIndex.from_frame(finished[KEYS]))
    points = points.assign(done=is_done, value=points["value"].where(np.isfinite(points["value"])))
    parts = []
    for (task, algorithm, variant), group in points.groupby(KEYS[:3], sort=False):
        group = group[group["done"]] if group["done"].any() else group
        wide = group.pivot(index="seed", columns=x, values="value").dropna(axis=1)
        if wide.size:
            keys = {"task": task, "label": this.labels[algorithm, variant], x: wide.columns, "n": len(wide)}
            parts.append(band(mean_interval(wide.to_numpy(float)), **keys))
    return stacked(parts)


def metric_rows(this: Study) -> dict[str, pd.DataFrame]:
    """metric -> its `mean_lines`, by name, for those that have any."""
    metrics = this.results.metrics
    found = {str(name): mean_lines(this, some, "env_steps") for name, some in metrics.groupby("name")}
    return {name: rows for name, rows in found.items() if len(rows)}


def efficiency_rows(this: Study, curves: pd.DataFrame) -> pd.DataFrame:
    """label, env_steps, estimate, low, high: IQM of the normalized curves over the tasks and the complete seeds.

    Empty where the tasks have different budgets: their curves have no common axis.
    """
    assert this.anchors is not None
    budgets = this.results.runs["steps"].dropna().unique()
    if len(budgets) != 1:
        return pd.DataFrame()
    parts = []
    for (algorithm, variant), name in this.labels.items():
        mine = curves[curves["over"] & curves["seed"].isin(this.matrices[name].seeds)]
        matrix, share = scores.curve_matrix(mine, algorithm, variant, this.tasks)
        if len(matrix.scores):  # every second checkpoint, the last among them: as smooth, and half the work
            normal = scores.normalize(matrix.scores[:, :, 1::2], this.tasks, this.anchors)
            parts.append(
                band(
                    statistics.sample_efficiency(normal, reps=CURVE_REPS),
                    label=name,
                    env_steps=share[1::2] * budgets[0],
                )
            )
    return stacked(parts)


def aggregate_rows(headline: Table) -> pd.DataFrame:
    """label, metric, estimate, low, high: the headline table in the figure's form."""
    parts = []
    for key, title in AGGREGATES.items():
        values = headline.data[["setting", key, f"{key}_low", f"{key}_high"]]
        parts.append(values.set_axis(["label", "estimate", "low", "high"], axis=1).assign(metric=title).dropna())
    return stacked(parts)


def profile_rows(normal: dict[str, np.ndarray]) -> pd.DataFrame:
    """label, tau, estimate, low, high: from the worst run (at least -1) to the best."""
    lowest, highest = min(m.min() for m in normal.values()), max(m.max() for m in normal.values())
    taus = np.linspace(np.clip(lowest, -1.0, 0.0), max(1.0, highest), 101)
    return stacked(
        [band(statistics.performance_profile(m, taus, reps=REPS), label=name, tau=taus) for name, m in normal.items()]
    )


def improvement_rows(best: str, normal: dict[str, np.ndarray]) -> pd.DataFrame:
    """x, y, estimate, low, high: the baseline against every other setting."""
    parts = []
    for seed, name in enumerate(name for name in normal if name != best):
        interval = statistics.improvement_interval(normal[best], normal[name], generator=seed, reps=REPS)
        parts.append({"x": best, "y": name, "estimate": interval.point, "low": interval.low, "high": interval.high})
    return pd.DataFrame(parts)


def baseline(this: Study, whole: dict[str, np.ndarray]) -> str:
    """The setting that the others are compared with: the experiment's, else the one with the best mean (rank)."""
    wanted = (this.results.experiment.get("report") or {}).get("baseline")
    if wanted in whole:
        return str(wanted)
    if this.matrices:
        return max(whole, key=lambda name: float(this.matrices[name].scores.mean()))
    means = pd.DataFrame({name: values.mean(axis=0) for name, values in whole.items()})  # [E, settings]
    return str(means.rank(axis=1).mean().idxmax())


def mean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """task, label, estimate, low, high: the mean over the runs of each task and setting."""
    parts = []
    for (task, label), group in table.groupby(["task", "label"], sort=False):
        interval = mean_interval(group["score"].to_numpy(float))
        parts.append(pd.DataFrame([{"task": task, "label": label, "estimate": interval.point,
                                    "low": interval.low, "high": interval.high}]))  # fmt: skip
    return stacked(parts)


def ablation(this: Study) -> pd.DataFrame:
    """Setting x task: the mean normalized score of the runs that have one; and the mean over tasks."""
    assert this.anchors is not None
    table = this.scored.assign(normal=scores.normalize_column(this.scored, this.anchors))
    means = table.groupby(["algorithm", "variant", "task"])["normal"].mean().unstack("task").reindex(columns=this.tasks)
    matrix = means.reindex(pd.MultiIndex.from_tuples(this.labels)).set_axis(this.order)
    return matrix.assign(mean=matrix.mean(axis=1, skipna=False)) if len(this.tasks) > 1 else matrix


def published_rows(found: Sequence[verify.Verdict]) -> pd.DataFrame:
    """Rows of `figures.published`: PPO's Table 1 in its own units, other tables in units of their scale."""
    names = objective_names() if found[0].table == "ppo_table1" else {}
    rows = []
    for one in found:
        row: dict[str, Any] = {"verdict": one.verdict.lower()}
        if one.subject in names:
            row |= dict(zip(("group", "label"), names[one.subject], strict=True)) | {"published": one.published}
            row |= {"estimate": one.ours, "low": one.published + one.low, "high": one.published + one.high}
            other = one.extra.get("best-setting", {})
            row["second"] = other.get("ours", np.nan)
            row["second_low"] = one.published + other.get("low", np.nan)
            row["second_high"] = one.published + other.get("high", np.nan)
            rows.append(row)
        elif not names and np.isfinite(one.difference / one.scale):
            row |= {"group": "", "label": one.subject, "published": 0.0}
            row |= {"estimate": one.difference / one.scale, "low": one.low / one.scale, "high": one.high / one.scale}
            rows.append(row | {"paper": number(one.published), "ours": number(one.ours)})
    return pd.DataFrame(rows)


def objective_names() -> dict[str, tuple[str, str]]:
    """variant -> (objective, name of the row) of PPO's Table 1, with the paper's symbols."""
    names = {}
    for row in pd.read_csv(scores.PUBLISHED / "ppo_table1.csv", keep_default_na=False).itertuples():
        symbol = SYMBOLS.get(row.hyperparameter)
        names[row.variant] = row.objective, f"{row.objective}, {symbol} = {row.value}" if symbol else row.objective
    return names
