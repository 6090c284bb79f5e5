"""Read results: a run tree that bench wrote, or a shipped reference folder, into the same tables.

A run tree is `<out>/<experiment>/<task>/<algorithm>[+variant]/<seed>/` with manifest.json, episodes.parquet and
metrics.parquet (.jsonl while running). A reference folder `results/reference/<experiment>/` holds

    scores.csv       one row per planned run: task, algorithm, variant, seed, env_steps, score, status, and the rest
    curves.csv.gz    the training curve of every run on a common grid of env_steps, and its evaluations
    metrics.csv.gz   the metrics of every run, at most 100 rows of each; where there are any
    online.csv.gz    returns by number of episode; where the experiment asks for a figure of them
    manifests.jsonl  what every run was made with; the first line holds what all runs share
    experiment.json  the experiment's contents, its runs and the command; experiment.toml its file, where there is one

`load(folder)` reads either; `find(name)` looks for one by the experiment's name; `ship` makes the latter from
the former.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import shutil
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import scores
from analysis.scores import KEYS, POINTS, REFERENCE, ROOT, Episodes, Metrics

RUNS = ROOT / "results" / "runs"
EXPERIMENTS = ROOT / "suites" / "experiments"
STATUSES = ("finished", "failed", "diverged", "running", "missing")
DEFAULT_STATISTIC = "final_100_training_episodes"
COLUMNS = ["env_steps", "episode_return", "episode_length", "phase"]
METRIC_COLUMNS = ["env_steps", "name", "value"]
LONG = {  # table with a row per point -> its columns beside KEYS
    "curves": ["phase", "env_steps", "value"],
    "metrics": ["env_steps", "name", "value"],
    "online": ["episode", "value"],
}
FIGURES = {"episodes": {"episodes"}, "sweep": {"x", "lines"}, "difference": {"of"}}  # kind -> keys, see `asked_figures`
METRIC_RUNS = 2000  # a tree of more runs is read without its metrics, unless they are asked for: that takes too long
# of a manifest, into the run table; the rest is reached through `manifests`
FIELDS = ["preset", "steps", "env_steps", "status", "error", "wall_seconds", "cpu_seconds", "commit", "dirty", "device",
          "precision", "threads", "config_digest", "group", "group_size", "started", "ended",
          "weights_sha256"]  # fmt: skip
FACTS = [*FIELDS, "machine", "fingerprint"]


class ResultsError(ValueError):
    """Results that cannot be read or must not be mixed; the message names the file and the cure."""


@dataclass(frozen=True)
class Results:
    """What an experiment left, as tables.

    experiment: the resolved experiment (name, title, tasks, steps, seeds, algorithms, score, command, ...).
    runs: one row per planned run, in planned order: task, algorithm, variant, seed, status (finished, failed, diverged,
        running, missing), score (by the experiment's statistic; NaN where running or missing), a column per statistic
        of `scores.STATISTICS`, train_episodes (fewer than 100 make a thin score), env_steps, steps (the budget), and of
        the manifest: preset, error, wall_seconds, cpu_seconds, commit, dirty, device, precision, threads,
        config_digest, fingerprint (digest), group, group_size, started, ended, weights_sha256, machine (cpu and isa).
    curves: task, algorithm, variant, seed, phase (train, eval), env_steps, value. train: mean return of the last 100
        training episodes finished by each of the 50 points of the common grid (NaN where none is; a failed or diverged
        run keeps its last value); eval: mean return of
        each evaluation, at the env_steps where it was made.
    statistic: the name of the statistic behind `score`. path: where it was read. shipped: True for a reference folder.
    metrics: task, algorithm, variant, seed, env_steps, name, value: what the runs told about themselves, thinned to
        `scores.THIN` rows per run and name, the last one kept.
    online: task, algorithm, variant, seed, episode, value: `scores.online_curve`, for a figure of kind `episodes`.
    """

    experiment: dict[str, Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    statistic: str
    path: Path
    shipped: bool
    metrics: pd.DataFrame = field(default_factory=lambda: _long([], "metrics"))
    online: pd.DataFrame = field(default_factory=lambda: _long([], "online"))

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.experiment.get("name") or self.path.name)

    @property
    def tasks(self) -> list[str]:
        """Tasks in planned order."""
        return list(dict.fromkeys(self.runs["task"]))

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower score is the better one: `better = "lower"` under [score], of the statistic named there."""
        score = self.experiment.get("score") or {}
        return score.get("statistic") == self.statistic and score.get("better") == "lower"


# ---- finding -------------------------------------------------------------------------------------------------------


def find(experiment: str, out: Path | None = None) -> Path:
    """The folder that holds an experiment's results: the run tree if there is one, else the reference folder."""
    places = [(out or RUNS) / experiment, REFERENCE / experiment]
    for place in places:
        if place.is_dir():
            return place
    near = difflib.get_close_matches(experiment, [path.stem for path in EXPERIMENTS.glob("*.toml")], n=3)
    cure = f"did you mean {', '.join(near)}? " if near and experiment not in near else ""
    raise FileNotFoundError(
        f"no results for experiment {experiment!r}: neither {places[0]} nor {places[1]} exists; {cure}"
        f"`python run_bench.py run {near[0] if near else experiment}` makes them"
    )


def references() -> list[Path]:
    """Every reference folder, by name."""
    return sorted(path.parent for path in REFERENCE.glob("*/scores.csv"))


def load(folder: Path | str, statistic: str | None = None, metrics: bool | None = None) -> Results:
    """Reads a run tree or a reference folder; `statistic` overrides the experiment's own.

    `metrics`: whether to read those of a tree; None: unless it has more than `METRIC_RUNS` runs.
    ResultsError names a file that cannot be read, or two fingerprints of one task; FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such results folder")
    if (folder / "scores.csv").is_file():
        return _load_reference(folder, statistic)
    return _load_tree(folder, statistic, metrics)


def contents(name: str, folder: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """An experiment's file as it is now, else the one shipped with its results, else what was stored with them.

    For what is shown and compared, which may be added when the runs are over.
    """
    for path in (EXPERIMENTS / f"{name}.toml", folder / "experiment.toml"):
        if path.is_file():
            try:
                return tomllib.loads(path.read_text())
            except ValueError as error:
                raise ResultsError(f"{path}: not valid TOML ({error})") from None
    return stored


def asked_figures(name: str, folder: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The `[[report.figures]]` entries of an experiment, checked. `title` is free; by `kind`:

    episodes: the online return by number of episode, the first `episodes` of them, a line per setting.
    sweep: the score over the setting `x`, a line for each value of the setting `lines`, such as alpha and n.
    difference: the first of two metrics `of` minus the second, over env_steps, a line per setting.
    """
    found: list[dict[str, Any]] = (contents(name, folder, stored).get("report") or {}).get("figures", [])
    for entry in found:
        kind = entry.get("kind")
        if kind not in FIGURES:
            raise ResultsError(
                f"experiment {name}, [[report.figures]]: kind is {kind!r}; it is one of {', '.join(FIGURES)}"
            )
        if wrong := (set(entry) - {"kind", "title"}) ^ FIGURES[kind]:
            keys = ", ".join(sorted(FIGURES[kind]))
            raise ResultsError(
                f"experiment {name}, [[report.figures]] of kind {kind}: {', '.join(sorted(wrong))} is missing or "
                f"unknown; it takes {keys}, and title"
            )
    return found


def planned(experiment: dict[str, Any]) -> list[tuple[str, str, str, int]]:
    """The runs asked for, (task, algorithm, variant, seed): as listed in `runs`, else every combination."""
    if "runs" in experiment:
        return [_key_of(path) for path in experiment["runs"]]
    seeds = experiment.get("seeds", [])
    if isinstance(seeds, int):
        first = int(experiment.get("first_seed", 0))
        seeds = range(first, first + seeds)
    pairs = [
        (entry["name"], variant)
        for entry in experiment.get("algorithms", [])
        for variant in entry.get("variants") or ["default"]
    ]
    return [(task, *pair, int(seed)) for task, pair, seed in product(experiment.get("tasks", []), pairs, seeds)]


def _key_of(path: str) -> tuple[str, str, str, int]:
    """The key of a run from its path `<task>/<algorithm>[+variant]/<seed>`; a task's id may hold a slash."""
    task, setting, seed = path.rsplit("/", 2)
    algorithm, _, variant = setting.partition("+")
    return task, algorithm, variant or "default", int(seed)


# ---- a run tree ----------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> dict[str, Any]:
    """One run's manifest.json; ResultsError if it is not one."""
    try:
        manifest = json.loads(path.read_bytes())
        lacking = [key for key in (*KEYS, "status", "steps") if key not in manifest]
    except (ValueError, TypeError) as error:
        raise ResultsError(
            f"{path}: not a readable manifest ({error}); remove {path.parent} and run the experiment again: "
            "the same command makes this run anew and keeps the others"
        ) from None
    if lacking:
        raise ResultsError(
            f"{path}: the manifest lacks {', '.join(lacking)}; remove {path.parent} and run the experiment again"
        )
    return manifest


def read_episodes(folder: Path, steps: int) -> Episodes | None:
    """One run's episodes, from episodes.parquet or episodes.jsonl (its torn last line dropped); None if neither."""
    whole, growing = folder / "episodes.parquet", folder / "episodes.jsonl"
    if whole.is_file():
        try:
            table = _parquet(whole, COLUMNS)
            columns = [table.column(name).to_numpy() for name in COLUMNS[:3]]
            train = _is_train(table.column("phase").combine_chunks())
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ResultsError(
                f"{whole}: not a readable table of episodes ({_first_line(error)}); remove {folder} and run the "
                "experiment again: the same command makes this run anew and keeps the others"
            ) from None
    elif growing.is_file():
        rows = list(_json_lines(growing, COLUMNS))
        columns = [np.array([row[name] for row in rows]) for name in COLUMNS[:3]]
        train = np.array([row["phase"] == "train" for row in rows], dtype=bool)
    else:
        return None
    env_steps, episode_return, episode_length = columns
    return Episodes(
        env_steps.astype(np.int64), episode_return.astype(np.float64), episode_length.astype(np.int64), train, steps
    )


def read_metrics(folder: Path) -> Metrics | None:
    """One run's metrics, from metrics.parquet or metrics.jsonl (its torn last line dropped); None if neither."""
    whole, growing = folder / "metrics.parquet", folder / "metrics.jsonl"
    if whole.is_file():
        try:
            table = _parquet(whole, METRIC_COLUMNS)
            names = table.column("name").combine_chunks()
            names = names if pa.types.is_dictionary(names.type) else names.dictionary_encode()
            env_steps, values = (table.column(name).to_numpy() for name in ("env_steps", "value"))
            number = names.indices.to_numpy()
            known = names.dictionary.to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ResultsError(
                f"{whole}: not a readable table of metrics ({_first_line(error)}); remove {folder} and run the "
                "experiment again: the same command makes this run anew and keeps the others"
            ) from None
    elif growing.is_file():
        rows = list(_json_lines(growing, METRIC_COLUMNS))
        known = list(dict.fromkeys(row["name"] for row in rows))
        places = {name: place for place, name in enumerate(known)}
        env_steps = np.array([row["env_steps"] for row in rows], np.int64)
        values = np.array([row["value"] for row in rows], np.float64)
        number = np.array([places[row["name"]] for row in rows], np.int64)
    else:
        return None
    return {name: (env_steps[number == place], values[number == place]) for place, name in enumerate(known)}


def _parquet(path: Path, columns: list[str]) -> pa.Table:
    """A small Parquet file; to read it in one piece takes a third of the time."""
    return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(columns=columns, use_threads=False)


def _is_train(phase: pa.Array) -> np.ndarray:
    if pa.types.is_dictionary(phase.type):
        phase = phase.dictionary_decode()
    return np.asarray(pa.compute.equal(phase, "train"), dtype=bool)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; a torn last line is dropped, a broken one before it is an error."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not all(name in row for name in columns):
                raise ValueError("a column is missing")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was stopped in the middle
                return
            raise ResultsError(
                f"{path}, line {number}: not a row of {path.stem} ({error}); remove {path.parent} and run the "
                "experiment again"
            ) from None
        yield row


def run_folders(folder: Path) -> list[Path]:
    """The run folders `<task>/<algorithm>[+variant]/<seed>` of a tree that hold a manifest, sorted by name."""
    found = (path.parent for path in folder.glob("*/*/*/manifest.json"))
    return sorted(path for path in found if not path.relative_to(folder).parts[0].startswith("."))


class Wanted(NamedTuple):
    """What is to be read of every run beside its scores."""

    statistic: str
    metrics: bool
    online: int  # training episodes; 0: no such curve


class Read(NamedTuple):
    """One run as read: its row of the run table, and its points of the long tables."""

    row: dict[str, Any]
    curve: np.ndarray  # training curve [POINTS]
    evaluations: tuple[np.ndarray, np.ndarray]  # env_steps [k], means [k]
    metrics: Metrics
    online: tuple[np.ndarray, np.ndarray]  # number of the episode [k], means [k]


def _read_run(folder: Path, wanted: Wanted) -> Read:
    manifest = read_manifest(folder / "manifest.json")
    episodes = read_episodes(folder, int(manifest["steps"]))
    if episodes is None and manifest["status"] == "finished":
        raise ResultsError(
            f"{folder}: a finished run without episodes.parquet; remove the folder and run the experiment again"
        )
    row = _facts(manifest)
    if tuple(str(row[key]) for key in KEYS) != tuple(str(part) for part in _key_of("/".join(folder.parts[-3:]))):
        raise ResultsError(
            f"{folder}: its manifest is that of another run; remove the folder and run the experiment again"
        )
    metrics = None
    if wanted.metrics or scores.metric_of(wanted.statistic) is not None:
        metrics = read_metrics(folder)
        if metrics is None and manifest["status"] == "finished" and manifest.get("schema", 1) > 1:
            raise ResultsError(
                f"{folder}: a finished run without metrics.parquet; remove the folder and run the experiment again"
            )
    nothing = np.empty(0, np.int64), np.empty(0)
    if episodes is None:
        return Read(row | {"train_episodes": 0}, np.full(POINTS, np.nan), nothing, {}, nothing)
    row["train_episodes"] = int(episodes.train.sum())
    row |= scores.of_run(wanted.statistic, episodes, metrics)
    return Read(
        row,
        scores.training_curve(episodes),
        scores.evaluation_curve(episodes),
        {name: scores.thinned(*points) for name, points in (metrics or {}).items()} if wanted.metrics else {},
        scores.online_curve(episodes, wanted.online) if wanted.online else nothing,
    )


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the run table takes from a manifest."""
    machine, fingerprint = manifest.get("machine") or {}, manifest.get("fingerprint") or {}
    facts = {key: manifest[key] for key in KEYS} | {key: manifest.get(key) for key in FIELDS}
    facts["machine"] = " ".join(str(machine[key]) for key in ("cpu", "isa") if key in machine)
    facts["fingerprint"] = fingerprint.get("digest", "")
    return facts


def manifests(folder: Path) -> list[dict[str, Any]]:
    """Every run's manifest, of a run tree or of a reference folder."""
    if (folder / "scores.csv").is_file():
        shipped = folder / "manifests.jsonl"
        try:
            shared, *lines = [json.loads(line) for line in shipped.read_text().splitlines()]
        except (ValueError, OSError) as error:
            raise ResultsError(
                f"{shipped}: not readable ({error}); restore it from the repository or ship the runs again"
            ) from None
        whole = [shared["common"] | shared.get("group", {}).get(line.get("group"), {}) | line for line in lines]
        return [
            line | {name: shared[name][line[name]] for name in ("config", "fingerprint") if name in line}
            for line in whole
        ]
    return [read_manifest(path / "manifest.json") for path in run_folders(folder)]


def config_of(results: Results, algorithm: str, variant: str) -> dict[str, Any]:
    """The resolved configuration of a setting's runs, from one of their manifests; {} if there is none."""
    return configs(results, [(algorithm, variant)]).get((algorithm, variant), {})


def configs(results: Results, settings: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(algorithm, variant) -> resolved configuration, of those settings that have runs."""
    if results.shipped:
        every = manifests(results.path)
    else:
        folders = [a if v == "default" else f"{a}+{v}" for a, v in settings]
        firsts = (sorted(results.path.glob(f"*/{glob.escape(name)}/*/manifest.json"))[:1] for name in folders)
        every = [read_manifest(path) for some in firsts for path in some]
    found = {(m["algorithm"], m["variant"]): m.get("config") or {} for m in reversed(every)}
    return {pair: found[pair] for pair in settings if pair in found}


def _read_experiment(folder: Path) -> dict[str, Any]:
    """The experiment with what the launch added (name, runs, command), from experiment.json; {"name"} without it."""
    path = folder / "experiment.json"
    if not path.is_file():
        return {"name": folder.name}
    try:
        read = json.loads(path.read_text())
        launched = {key: value for key, value in read.items() if key != "experiment"}
        experiment: dict[str, Any] = {"name": folder.name} | read.get("experiment", {}) | launched
        score = dict(experiment.get("score", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise ResultsError(
            f"{path}: not readable ({error}); start the experiment again: the same command writes the file anew"
        ) from None
    if unknown := set(score) - {"statistic", "anchors", "better"}:
        raise ResultsError(f"{path}, [score]: unknown key {unknown.pop()!r}; it takes statistic, anchors and better")
    if score.get("better", "higher") not in ("higher", "lower"):
        raise ResultsError(f"{path}, [score]: better is {score['better']!r}; it is higher or lower")
    return experiment


def _portable(experiment: dict[str, Any]) -> dict[str, Any]:
    """The experiment without the places of the machine that ran it."""
    kept = {key: value for key, value in experiment.items() if key != "source"}
    command = kept.get("command")
    if isinstance(command, list) and command:
        words = ["python", Path(command[0]).name, *command[1:]]
        while "--out" in words:  # where the runs were put is that machine's affair
            del words[(place := words.index("--out")) : place + 2]
        kept["command"] = words
    return kept


def _load_tree(folder: Path, statistic: str | None, metrics: bool | None) -> Results:
    experiment = _read_experiment(folder)
    statistic = scores.check_statistic(statistic or experiment.get("score", {}).get("statistic", DEFAULT_STATISTIC))
    folders = run_folders(folder)
    asked = asked_figures(str(experiment["name"]), folder, experiment)
    online = max((int(entry["episodes"]) for entry in asked if entry["kind"] == "episodes"), default=0)
    wanted = Wanted(statistic, len(folders) <= METRIC_RUNS if metrics is None else metrics, online)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        read = list(pool.map(_read_run, folders, repeat(wanted)))
    columns = [*KEYS, *FACTS, "train_episodes", *scores.columns_of(statistic)]
    table = pd.DataFrame([run.row for run in read], columns=columns)
    keys = [tuple(run.row[key] for key in KEYS) for run in read]
    # planned order first; runs that are there without being planned (fewer seeds asked for later) after it
    order = list(dict.fromkeys([*planned(experiment), *keys]))
    table = table.set_index(KEYS).reindex(pd.MultiIndex.from_tuples(order, names=KEYS)).reset_index()
    table["status"] = table["status"].fillna("missing")
    table[["env_steps", "train_episodes"]] = table[["env_steps", "train_episodes"]].fillna(0).astype(np.int64)
    _one_fingerprint(table, folder)
    table["score"] = scores.counted_scores(table, statistic)
    stand_in = dict(zip(table[KEYS].itertuples(index=False, name=None), table["score"], strict=True))
    return Results(
        experiment,
        table,
        _long_curves(read, stand_in),
        statistic,
        folder,
        shipped=False,
        metrics=_long([(run.row, (at, name, x)) for run in read for name, (at, x) in run.metrics.items()], "metrics"),
        online=_long([(run.row, run.online) for run in read], "online"),
    )


def _long_curves(read: Sequence[Read], stand_in: dict[tuple, float]) -> pd.DataFrame:
    """All curves in one long table, see `Results.curves`; stand_in: key -> score, for failed runs without episodes."""
    parts: list[tuple[dict[str, Any], tuple]] = []
    for run in read:
        values = run.curve
        if run.row["status"] in ("failed", "diverged"):
            values = hold(values, stand_in[tuple(run.row[key] for key in KEYS)])
        if np.isfinite(values).any():
            parts.append((run.row, ("train", scores.grid(int(run.row["steps"])), values)))
        if len(run.evaluations[0]):
            parts.append((run.row, ("eval", *run.evaluations)))
    return _long(parts, "curves")


def _long(parts: Sequence[tuple[dict[str, Any], tuple]], name: str) -> pd.DataFrame:
    """A table of `LONG` from (row with KEYS, its columns: arrays, or text for all points; the last is an array)."""
    counts = [len(columns[-1]) for _, columns in parts]
    table: dict[str, Any] = {
        key: np.repeat(np.array([row[key] for row, _ in parts], dtype=object), counts) for key in KEYS
    }
    for place, column in enumerate(LONG[name]):
        values = [columns[place] for _, columns in parts]
        if column in ("phase", "name"):
            table[column] = np.repeat(np.array(values, dtype=object), counts)
        else:
            kind = np.float64 if column == "value" else np.int64
            table[column] = np.concatenate([np.empty(0, kind), *values])
    return pd.DataFrame(table).astype({"seed": np.int64})


def hold(values: np.ndarray, otherwise: float) -> np.ndarray:
    """A curve [C] that keeps its last value after the run broke off; `otherwise` throughout if it has none."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.full(len(values), otherwise)
    return np.where(np.arange(len(values)) > known[-1], values[known[-1]], values)


def _one_fingerprint(table: pd.DataFrame, folder: Path) -> None:
    """Scores made on different environments must not be mixed."""
    known = table[table["fingerprint"].fillna("") != ""]
    for task, digests in known.groupby("task")["fingerprint"].unique().items():
        if len(digests) > 1:
            raise ResultsError(
                f"{folder}: the runs of {task} were made on {len(digests)} different environments (fingerprints "
                f"{', '.join(sorted(digests))}); keep them in separate result folders, or remove the older ones "
                "and run again"
            )


# ---- a reference folder --------------------------------------------------------------------------------------------


def _load_reference(folder: Path, statistic: str | None) -> Results:
    experiment = _read_experiment(folder)
    statistic = scores.check_statistic(statistic or experiment.get("score", {}).get("statistic", DEFAULT_STATISTIC))
    path = folder / "scores.csv"
    try:
        table = pd.read_csv(path, dtype={"task": str, "algorithm": str, "variant": str, "error": object})
        lacking = [name for name in (*KEYS, "env_steps", "score", "status", statistic) if name not in table]
        if lacking:
            raise ValueError(f"no column {', '.join(lacking)}")
        facts = pd.DataFrame([_facts(manifest) for manifest in manifests(folder)], columns=[*KEYS, *FACTS])
        table = table.merge(facts.drop(columns=["status", "env_steps"]), on=KEYS, how="left", validate="1:1")
        table["score"] = scores.counted_scores(table, statistic)
        texts = dict.fromkeys([*KEYS[:3], "phase", "name"], str)
        paths = {name: folder / f"{name}.csv.gz" for name in LONG}
        long = {n: pd.read_csv(at, dtype=texts) if at.is_file() else _long([], n) for n, at in paths.items()}
    except (ValueError, OSError, EOFError, pd.errors.ParserError) as error:
        raise ResultsError(
            f"{path}: not a readable reference table ({_first_line(error)}); restore the folder from the repository "
            "or ship the runs again"
        ) from None
    return Results(experiment, table, statistic=statistic, path=folder, shipped=True, **long)


def ship(run_tree: Path, reference: Path, partial: bool = False) -> Path:
    """Writes the compact reference folder of a run tree (see the module's docstring), each file by rename; returns it.

    Runs that the folder holds already and this tree does not (other seeds or tasks, another machine) stay in it.
    ResultsError if a run is still running or missing, for what is shipped is complete, unless `partial`: then such runs
    are listed as missing. ResultsError, too, if the two have different settings, budgets or fingerprints.
    """
    results = load(run_tree, metrics=True)
    if results.shipped:
        raise ResultsError(f"{run_tree} is a reference folder already; ship takes the run tree")
    table, every = results.runs, manifests(run_tree)
    long = {name: getattr(results, name) for name in LONG}
    if (reference / "scores.csv").is_file():
        table, long, every = _joined(load(reference, results.statistic), table, long, every)
    waiting = table["status"].isin(["running", "missing"])
    if waiting.any() and not partial:
        first = table[waiting].iloc[0]
        raise ResultsError(
            f"{run_tree}: {waiting.sum()} of {len(table)} runs are not over (first: "
            f"{'/'.join(str(first[key]) for key in KEYS)}, {first['status']}); run the experiment again with the same "
            "command, then ship, or ship --partial what there is"
        )
    table = table.assign(status=table["status"].mask(waiting, "missing"), statistic=results.statistic)
    statistics = scores.columns_of(results.statistic)
    table.loc[waiting, ["score", *statistics]] = np.nan
    over = set(table.loc[~waiting, KEYS].itertuples(index=False, name=None))
    every = [manifest for manifest in every if tuple(manifest[key] for key in KEYS) in over]

    reference.mkdir(parents=True, exist_ok=True)
    columns = [*KEYS, "env_steps", "score", "status", "statistic", "train_episodes", *statistics]
    _write(reference / "scores.csv", lambda path: table[columns].to_csv(path, index=False, float_format="%.10g"))
    packed: dict[str, Any] = {"float_format": "%.6g", "compression": {"method": "gzip", "mtime": 0}}
    for name, points in long.items():
        points = points[_of(points, over)]
        if len(points) or name == "curves":
            _write(reference / f"{name}.csv.gz", lambda path, points=points: points.to_csv(path, index=False, **packed))
    _write(reference / "manifests.jsonl", lambda path: path.write_text("\n".join(_compact(every)) + "\n"))
    described = json.dumps(_portable(results.experiment), indent=1) + "\n"
    _write(reference / "experiment.json", lambda path: path.write_text(described))
    for source in (run_tree / "experiment.toml", EXPERIMENTS / f"{results.name}.toml"):
        if source.is_file():
            _write(reference / "experiment.toml", lambda path, source=source: shutil.copyfile(source, path))
            break
    return reference


def _of(table: pd.DataFrame, keys: set[tuple]) -> list[bool]:
    """Which rows belong to the runs with these keys."""
    return [key in keys for key in table[KEYS].itertuples(index=False, name=None)]


def _joined(
    old: Results, table: pd.DataFrame, long: dict[str, pd.DataFrame], every: list[dict[str, Any]]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """The tree's runs, and those that only the reference folder has."""
    over = table[~table["status"].isin(["running", "missing"])]
    mine = set(over[KEYS].itertuples(index=False, name=None))
    kept = old.runs[~np.array(_of(old.runs, mine), bool)]
    kept = kept[kept["status"] != "missing"]
    theirs = set(kept[KEYS].itertuples(index=False, name=None))
    both = pd.concat([over, kept])
    for keys, column in ((["algorithm", "variant", "task"], "config_digest"), (["algorithm", "task"], "steps")):
        mixed = both.groupby(keys)[column].nunique()
        if (mixed > 1).any():
            raise ResultsError(
                f"{old.path}: {'/'.join(mixed.idxmax())} was shipped with another {column}; move that folder away, "
                "or run with the settings that it names"
            )
    rest = table[~np.array(_of(table, theirs), bool)]
    joined = pd.concat([rest, kept[rest.columns]]).sort_values(KEYS, ignore_index=True)
    _one_fingerprint(joined, old.path)
    for name in LONG:
        before = getattr(old, name)
        long[name] = pd.concat([long[name], before[_of(before, theirs)]], ignore_index=True)
    every = [manifest for manifest in every if tuple(manifest[key] for key in KEYS) in mine]  # not those under way
    others = [manifest for manifest in manifests(old.path) if tuple(manifest[key] for key in KEYS) in theirs]
    return joined, long, every + others


def _write(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    os.replace(temporary, path)


def _compact(every: list[dict[str, Any]]) -> list[str]:
    """A first line of what runs share, then the runs.

    {"common": fields equal in all runs, "group": name -> other fields equal in a group, "config" and "fingerprint":
    digest -> value}.
    """
    shared: dict[str, Any] = {"common": {}, "group": {}, "config": {}, "fingerprint": {}}
    lines = []
    for manifest in every:
        line = dict(manifest)
        for name, digest in (
            ("config", line.get("config_digest")),
            ("fingerprint", (line.get("fingerprint") or {}).get("digest")),
        ):
            if name in line and digest:
                shared[name][digest] = line[name]
                line[name] = digest
            else:
                line.pop(name, None)
        lines.append(line)
    shared["common"] = _alike(lines)
    lines = [_without(line, shared["common"]) for line in lines]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "group" in line:
            groups[line["group"]].append(line)
    shared["group"] = {name: _alike(members) for name, members in groups.items()}
    kept = [_without(line, shared["group"].get(line.get("group"), {})) for line in lines]
    return [json.dumps(entry, sort_keys=True) for entry in (shared, *kept)]


def _alike(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields that have one value in all lines, but for the group's name, by which others are found."""
    first = lines[0] if lines else {}
    return {
        name: value
        for name, value in first.items()
        if name != "group" and all(name in line and line[name] == value for line in lines)
    }


def _without(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in fields}


def ship_main(argv: Sequence[str] | None = None) -> int:
    """`run_bench.py ship EXPERIMENT [--out DIR] [--to DIR]`: exit 0, or 2 with a message."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="run_bench.py ship", description="turn a run tree into a reference folder, or add it to one"
    )
    parser.add_argument("experiment")
    parser.add_argument("--out", type=Path, default=RUNS, help="folder of run trees (default: results/runs)")
    parser.add_argument(
        "--to", type=Path, default=REFERENCE, help="folder of reference folders (default: results/reference)"
    )
    parser.add_argument("--partial", action="store_true", help="ship what is over, list the rest as missing")
    given = parser.parse_args(argv)
    try:
        written = ship(given.out / given.experiment, given.to / given.experiment, given.partial)
    except (ResultsError, OSError, ValueError) as error:
        print(f"ship: {error}", file=sys.stderr)
        return 2
    print(f"shipped to {written}: {', '.join(sorted(path.name for path in written.iterdir()))}")
    return 0
