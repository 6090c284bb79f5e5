"""Made-up run trees in the layout that bench writes: for tests of analysis, and to look at pages before runs exist.

`python tests/analysis/synthetic.py OUT [--seeds 5 --name ppo_table1]` writes the 7 tasks x 11 variants of PPO's
Table 1: invented numbers, shaped so that the paper's order roughly comes out. They must not be shipped as a result.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# task -> (random policy, best policy, episode length in env_steps); round numbers, only for these made-up runs
TASKS = {
    "HalfCheetah-v5": (-280.0, 2200.0, 1000),
    "Hopper-v5": (18.0, 2600.0, 500),
    "InvertedDoublePendulum-v5": (57.0, 9000.0, 500),
    "InvertedPendulum-v5": (6.0, 1000.0, 500),
    "Reacher-v5": (-43.0, -4.0, 50),
    "Swimmer-v5": (1.0, 115.0, 1000),
    "Walker2d-v5": (2.0, 3300.0, 500),
}
VARIANTS = {  # variant -> typical normalized score
    "no-clip": -0.2, "clip-0.1": 0.72, "clip-0.2": 0.80, "clip-0.3": 0.71, "adaptive-kl-0.003": 0.63,
    "adaptive-kl-0.01": 0.72, "adaptive-kl-0.03": 0.70, "fixed-kl-0.3": 0.60, "fixed-kl-1": 0.68,
    "fixed-kl-3": 0.70, "fixed-kl-10": 0.64,
}  # fmt: skip


def episodes(task: str, level: float, steps: int, rng: np.random.Generator, most: int = 2000) -> pa.Table:
    """A saturating learning curve from the random policy to `level` (normalized), with noise."""
    low, high, length = TASKS.get(task, (0.0, 1.0, 100))
    count = int(min(most, max(3, steps // length)))
    env_steps = np.linspace(steps / count, steps, count).astype(np.int64)
    progress = 1.0 - np.exp(-env_steps / (0.25 * steps))
    returns = low + (high - low) * (level * progress + 0.06 * rng.standard_normal(count))
    return pa.table(
        {
            "env_steps": env_steps,
            "episode_return": returns,
            "episode_length": np.diff(env_steps, prepend=0),
            "phase": pa.array(["train"] * count),
            "wall_seconds": env_steps / 18_000.0,
        }
    )


def manifest(experiment: str, task: str, variant: str, seed: int, steps: int, status: str = "finished", **more) -> dict:
    return {
        "schema": 1, "experiment": experiment, "suite": "mujoco-ppo7", "task": task, "algorithm": "ppo",
        "variant": variant, "preset": "paper", "seed": seed, "steps": steps,
        "config": {"learning_rate": 3e-4, "num_steps": 2048, "num_epochs": 10, "gamma": 0.99},
        "config_digest": f"{zlib.crc32(variant.encode()):08x}", "group": f"{task}-00", "group_size": 33,
        "group_index": 0, "status": status, "error": None, "env_steps": steps, "commit": "0123456789abcdef" * 2,
        "dirty": False, "versions": {"python": "3.11.2", "torch": "2.13.0", "gymnasium": "1.4.0", "mujoco": "4.0.0"},
        "machine": {"cpu": "Synthetic CPU", "isa": "avx512", "cores": 2}, "device": "cpu", "precision": "float32",
        "threads": 1,
        "fingerprint": {"task": task, "env_kwargs": {}, "digest": f"{zlib.crc32(task.encode()):08x}"},
        "started": "2030-01-01T10:00:00+00:00", "ended": "2030-01-01T10:20:00+00:00", "wall_seconds": 1200.0,
        "cpu_seconds": 60.0, "weights_sha256": "0" * 64,
    } | more  # fmt: skip


def write_run(root: Path, values: dict, table: pa.Table | None) -> Path:
    name = values["algorithm"] + ("" if values["variant"] == "default" else f"+{values['variant']}")
    folder = root / values["experiment"] / values["task"] / name / str(values["seed"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(values))
    if table is not None and values["status"] == "running":
        rows = (json.dumps(row) for row in table.to_pylist())
        (folder / "episodes.jsonl").write_text("\n".join(rows) + '\n{"env_steps": 12')  # a torn last line
    elif table is not None:
        pq.write_table(table, folder / "episodes.parquet")
    return folder


def write_metrics(folder: Path, values: dict[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Metrics of a run, name -> (env_steps, values), as bench writes them: in order of env_steps."""
    rows = [(at, name, float(x)) for name, pairs in values.items() for at, x in zip(*pairs, strict=True)]
    rows.sort(key=lambda row: row[0])
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    schema = pa.schema([("env_steps", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
    pq.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema), folder / "metrics.parquet")


def write_experiment(root: Path, name: str, **contents) -> Path:
    """The folder of an experiment with its experiment.json; its runs are those that are there."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "experiment.json").write_text(json.dumps({"name": name, "title": name, **contents}))
    return root / name


def one_run(
    folder: Path, task: str, algorithm: str, variant: str, seed: int, *, steps: int = 1000,
    returns: Sequence[float] = (0.0,), evaluations: dict[int, float] | None = None,
    metrics: dict[str, tuple[Sequence[int], Sequence[float]]] | None = None, **more,
) -> Path:  # fmt: skip
    """A run of a made-up experiment: training returns one after the other, evaluations env_steps -> return, metrics."""
    rows = [(round(steps * (i + 1) / len(returns)), float(x), "train") for i, x in enumerate(returns)]
    rows += [(at, float(x), "eval") for at, x in (evaluations or {}).items()]
    rows.sort(key=lambda row: row[0])
    table = pa.table(
        {
            "env_steps": [row[0] for row in rows],
            "episode_return": [row[1] for row in rows],
            "episode_length": [max(1, steps // len(returns))] * len(rows),
            "phase": [row[2] for row in rows],
            "wall_seconds": [0.0] * len(rows),
        }
    )
    more = {"algorithm": algorithm, "schema": 2, "metrics_period": 5, **more}
    place = write_run(folder.parent, manifest(folder.name, task, variant, seed, steps, **more), table)
    write_metrics(place, metrics or {})
    return place


def make_tree(
    root: Path,
    experiment: str = "ppo_table1",
    tasks: Sequence[str] = tuple(TASKS),
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: int = 5,
    steps: int = 1_000_000,
    most: int = 2000,
    troubles: bool = False,
) -> Path:
    """Writes the tree and returns `root`; with `troubles`, one run each is failed, diverged, running and missing."""
    folder = root / experiment
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "name": experiment,
        "title": "PPO's eleven objectives (synthetic)",
        "description": "Invented runs: for looking at the page, not at PPO.",
        "suite": "mujoco-ppo7",
        "tasks": list(tasks),
        "steps": steps,
        "seeds": list(range(seeds)),
        "algorithms": [{"name": "ppo", "preset": "paper", "variants": {v: {} for v in variants}}],
        "score": {"statistic": "final_100_training_episodes"},
        "command": f"python run_bench.py run {experiment} --seeds {seeds} --steps {steps}",
    }
    (folder / "experiment.json").write_text(json.dumps(plan))
    special = {}
    if troubles:
        where = [(task, variant) for task in tasks for variant in variants]
        special = dict(zip([(*where[-1], 0), (*where[0], 0), (*where[-1], 1), (*where[0], 1)],
                           ["failed", "diverged", "running", "missing"], strict=True))  # fmt: skip
    for task in tasks:
        for variant in variants:
            hardness = np.random.default_rng(zlib.crc32(f"{task}{variant}".encode())).normal(0.0, 0.10)
            for seed in range(seeds):
                status = special.get((task, variant, seed), "finished")
                if status == "missing":
                    continue
                rng = np.random.default_rng([zlib.crc32(f"{task}{variant}".encode()), seed])
                level = VARIANTS.get(variant, 0.7) + hardness + 0.12 * rng.standard_normal()
                if variant == "no-clip":
                    level = -3.0 + 0.4 * rng.standard_normal() if task.startswith("HalfCheetah") else level + 0.5
                level = min(level, 1.0)
                table: pa.Table | None = episodes(task, level, steps, rng, most)
                more: dict = {}
                if status == "failed":
                    more = {"error": "FloatingPointError: the environment received a non-finite action", "env_steps": 0}
                    table = None
                if status == "diverged" and table is not None:
                    table = table.slice(0, len(table) // 4)
                    more = {"error": "policy weights are not finite", "env_steps": steps // 4}
                if status == "running" and table is not None:
                    table = table.slice(0, len(table) // 2)
                    more = {"env_steps": steps // 2, "ended": None, "wall_seconds": None, "cpu_seconds": None}
                write_run(root, manifest(experiment, task, variant, seed, steps, status, **more), table)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="ppo_table1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=2000, help="episodes per run at most")
    parser.add_argument("--troubles", action="store_true")
    given = parser.parse_args()
    print(make_tree(given.out, given.name, seeds=given.seeds, most=given.most, troubles=given.troubles))
