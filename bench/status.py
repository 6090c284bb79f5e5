"""What an experiment has got to: read from its files alone, while it runs or after."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bench import plan, store
from bench.launch import duration

STATES = (store.FINISHED, store.RUNNING, store.FAILED, store.DIVERGED, "missing")


def read(experiment: plan.Experiment, root: Path) -> dict[str, Any]:
    """Status, env_steps and error of every run; who runs it, how fast, and how long it will take."""
    launcher = store.lock_holder(root / ".lock")
    progress = {
        path.parent.name: store.read_json(path) | {"live": store.lock_holder(path.parent / ".lock") is not None}
        for path in (root / ".groups").glob(f"*/{store.PROGRESS}")
    }
    runs, left = [], 0
    for run in experiment.runs:
        manifest = store.read_manifest(root / run.path) or {"status": "missing"}
        env_steps = manifest.get("env_steps", 0)
        if manifest["status"] == store.RUNNING:
            env_steps = progress.get(manifest["group"], {}).get("env_steps", env_steps)
        if manifest["status"] in (store.RUNNING, "missing"):
            left += max(run.steps - env_steps, 0)
        runs.append(
            {
                "run": run.path,
                "task": run.task,
                "algorithm": run.algorithm,
                "variant": run.variant,
                "seed": run.seed,
                "status": manifest["status"],
                "env_steps": env_steps,
                "steps": run.steps,
                "error": manifest.get("error"),
            }
        )
    speed = sum(one["runs"] * one["env_steps"] / one["wall_seconds"] for one in progress.values() if one["live"])
    return {
        "experiment": experiment.name,
        "results": str(root),
        "launcher": launcher,
        "counts": Counter(run["status"] for run in runs),
        "env_steps_per_second": round(speed),
        "seconds_left": round(left / speed) if speed else None,
        "runs": runs,
    }


def show(found: dict[str, Any], as_json: bool) -> None:
    """Print it: a line per task and algorithm, the failures, then the whole."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    rows: dict[tuple[str, str], Counter[str]] = {}
    for run in found["runs"]:
        rows.setdefault((run["task"], run["algorithm"]), Counter())[run["status"]] += 1
    width = max(len(task) + len(algorithm) for task, algorithm in rows) + 2
    print(" " * width, *(f"{state:>9}" for state in STATES))
    for (task, algorithm), counts in rows.items():
        print(f"{task}  {algorithm}".ljust(width), *(f"{counts[state]:9}" for state in STATES))
    for run in found["runs"]:
        if run["status"] in (store.FAILED, store.DIVERGED):
            print(f"  {run['status']} at {run['env_steps']:,} env steps: {run['run']}: {run['error']}")
    ended = sum(found["counts"][state] for state in STATES[:1] + STATES[2:4])
    text = f"{found['experiment']}: {ended} of {len(found['runs'])} runs have ended"
    if found["launcher"] is None:
        text += "" if ended == len(found["runs"]) else f"; nothing runs now, `run {found['experiment']}` goes on"
    else:
        text += f"; process {found['launcher']} trains {found['env_steps_per_second']:,} env steps/s"
        if found["seconds_left"] is not None:
            text += f", {duration(found['seconds_left'])} left"
    print(text)
