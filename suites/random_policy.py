"""Scores of the uniformly random policy: the zero of normalized scores.

    python -m suites.random_policy                      writes results/reference/random_policy.csv (about 5 minutes)
    python -m suites.random_policy --tasks Taxi-v4      writes these rows of it; the others stay as they are

Every action is uniform over the action set or box. 100 runs (seeds 0 to 99) of one environment each play the same
number of whole episodes, so that short episodes do not count more often than long ones. The score is the raw
undiscounted return: its mean, its standard deviation (n - 1) over episodes, the number of episodes and of env_steps.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import suites

NUM_RUNS = 100
COLUMNS = ("task", "mean", "std", "episodes", "env_steps")


def play(task_id: str, episodes_per_run: int, num_runs: int = NUM_RUNS) -> dict[str, Any]:
    """One row of the table."""
    envs = suites.make(task_id, num_runs, 1)
    envs.reset(range(num_runs))
    streams = [np.random.default_rng((seed, zlib.crc32(b"random policy"))) for seed in range(num_runs)]
    returns: list[list[float]] = [[] for _ in range(num_runs)]
    env_steps = 0
    while not envs.parked.all():
        envs.step(np.stack([envs.random_actions(stream, 1) for stream in streams]))
        for episode in envs.drain_episodes():
            returns[episode.run].append(episode.episode_return)
            env_steps += episode.episode_length
            if len(returns[episode.run]) == episodes_per_run:
                envs.park(episode.run)
    if envs.errors:
        raise RuntimeError(f"{task_id}: {envs.errors}")
    scores = np.concatenate(returns)
    mean, std = float(scores.mean()), float(scores.std(ddof=1))
    return {"task": task_id, "mean": mean, "std": std, "episodes": scores.size, "env_steps": env_steps}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m suites.random_policy", description="Scores of the random policy.")
    parser.add_argument("--tasks", nargs="+", default=suites.task_ids(), metavar="T", help="default: all")
    parser.add_argument("--episodes", type=int, default=4, help=f"whole episodes of each of {NUM_RUNS} runs; 4")
    parser.add_argument("--out", type=Path, default=Path("results/reference/random_policy.csv"))
    arguments = parser.parse_args(argv)
    try:
        if arguments.episodes < 1:
            raise ValueError(f"--episodes is {arguments.episodes}: it must be at least 1.")
        for task_id in arguments.tasks:
            suites.find_task(task_id)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    rows: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            rows = {row["task"]: row for row in csv.DictReader(file)}
    for task_id in arguments.tasks:
        row = rows[task_id] = play(task_id, arguments.episodes)
        print("{task:26s} {mean:12.3f} +- {std:10.3f}  {episodes} episodes, {env_steps} env_steps".format(**row))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.out.with_suffix(".tmp")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[task_id] for task_id in suites.task_ids() if task_id in rows)
    os.replace(unfinished, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
