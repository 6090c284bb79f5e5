"""Env steps per second on one core, by number of runs, beside another library in the same call.

A process of its own (`python -m bench.speed JSON`), set up like a worker: one thread, torch configured the same. The
contestants take turns, so that a change in the machine's load meets all of them; medians over the turns are reported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from bench import CRASHED, DONE, UserError, import_plugins  # noqa: E402
from bench.rivals import RIVALS, Contestant, Outcome  # noqa: E402

PARTS = ("env", "act", "learn")


def ours(algorithm: str, cfg: Any, task: str, runs: int) -> Contestant:
    """Our agent with `runs` runs."""
    envs = suites.make(task, runs, cfg.num_envs)
    agent = algorithms.load(algorithm).Agent(config.stack([cfg] * runs), envs, list(range(runs)))
    while envs.env_steps < getattr(cfg, "learning_starts", 0):  # the first steps only fill the buffer
        agent.iterate()

    def train(seconds: float) -> Outcome:
        before, steps, begin = dict(agent.timers), envs.env_steps, time.perf_counter()
        while True:
            agent.iterate()
            envs.drain_episodes()
            if (spent := time.perf_counter() - begin) >= seconds:
                parts = {part: agent.timers[part] - before.get(part, 0.0) for part in PARTS}
                return Outcome(runs * (envs.env_steps - steps), spent, parts)

    return train


def measure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Median env steps per second of every contestant over interleaved turns; for ours, microseconds by part."""
    algorithm, task = order["algorithm"], order["task"]
    cfg = config.load_config(algorithm, order["preset"], order["overrides"])
    computing = runtime.configure_torch("cpu")
    contestants = {f"R = {runs}": ours(algorithm, cfg, task, runs) for runs in order["runs"]}
    if rival := order["against"]:
        contestants[rival] = RIVALS[rival](algorithm, cfg, task)
    for train in contestants.values():  # warms up
        train(0.0)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contestants}
    for _ in range(order["repetitions"]):
        for name, train in contestants.items():
            outcomes[name].append(train(order["seconds"]))
    rows = []
    for name, turns in outcomes.items():
        speeds = [turn.env_steps / turn.seconds for turn in turns]
        row: dict[str, Any] = {
            "name": name,
            "env_steps_per_second": median(speeds),
            "low": min(speeds),
            "high": max(speeds),
        }
        if turns[0].parts:
            row["us"] = {part: 1e6 * median(turn.parts[part] / turn.env_steps for turn in turns) for part in PARTS}
            whole = 1e6 * median(turn.seconds / turn.env_steps for turn in turns)
            row["us"]["rest"] = max(whole - sum(row["us"].values()), 0.0)
        rows.append(row)
    if rival:
        for row in rows[:-1]:
            row["times"] = row["env_steps_per_second"] / rows[-1]["env_steps_per_second"]
    facts = {key: order[key] for key in ("algorithm", "task", "preset", "against", "repetitions", "seconds")}
    return facts | {"config": config.to_dict(cfg), "computing": computing, "rows": rows}


def show(found: Mapping[str, Any]) -> None:
    """Print the measurement as a table."""
    turns = f"median of {found['repetitions']} turns of {found['seconds']:g} s"
    print(f"{found['algorithm']} on {found['task']}, one core, {turns}; us of one env step by part")
    heads = [*PARTS, "rest"]
    rival = f"x {found['against']}" if found["against"] else ""
    print(f"{'':8} {'env steps/s':>12} {'low':>9} {'high':>9}", *(f"{head:>8}" for head in heads), f"{rival:>7}")
    for row in found["rows"]:
        parts = [f"{row['us'][head]:8.2f}" if "us" in row else " " * 8 for head in heads]
        ratio = f"{row['times']:7.1f}" if "times" in row else ""
        print(
            f"{row['name']:8} {row['env_steps_per_second']:12,.0f} {row['low']:9,.0f} {row['high']:9,.0f}",
            *parts,
            ratio,
        )


def main(order: Mapping[str, Any]) -> int:
    """Measure and print."""
    import_plugins()
    try:
        found = measure(order)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return CRASHED
    print(json.dumps(found, indent=1)) if order["json"] else show(found)
    return DONE


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
