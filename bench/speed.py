"""Env steps per second on one core, by number of runs, beside another library or algorithm in the same call.

A process of its own (`python -m bench.speed JSON`), set up like a worker: one thread, torch configured the same. The
contestants take turns, so that a change in the machine's load meets all of them; medians over the turns are reported.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported

import torch  # noqa: E402

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from bench import DONE, REFUSED, UserError, import_plugins  # noqa: E402
from bench.rivals import RIVALS, Contestant, Outcome  # noqa: E402

PARTS = ("env", "act", "learn")
PRODUCTS = {f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "baddbmm_")}
SHOWN = 8  # operators


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


def config_of_rival(order: Mapping[str, Any]) -> Any:
    """The configuration of another algorithm of ours: its own preset, and of the overrides those that it knows."""
    name = order["against"]
    known = {field.name for field in dataclasses.fields(config.config_class(name))}
    shared = {key: value for key, value in order["overrides"].items() if key in known}
    return config.load_config(name, order["against_preset"], shared)


def operators(train: Contestant, seconds: float) -> dict[str, float]:
    """Shares of a turn's time that torch spends in its operators themselves, the greatest first, matrix products as
    one. What NumPy, the tasks and Python take is not among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        turn = train(seconds)
    events = [event for event in profiler.key_averages() if event.key.startswith("aten::")]
    times = {event.key: event.self_cpu_time_total / 1e6 for event in events}
    products = sum(times.pop(name, 0.0) for name in PRODUCTS)
    shares = {"matrix products": products} | dict(sorted(times.items(), key=lambda item: -item[1])[: SHOWN - 1])
    return {name: spent / turn.seconds for name, spent in shares.items()}


def product_speed(size: int = 256, turns: int = 5, products: int = 200) -> float:
    """Median GFLOP/s of one core in float32 products of matrices of this size."""
    x, out = torch.ones(2, 1, size, size), torch.empty(1, size, size)
    spent = []
    for _ in range(turns):
        begin = time.perf_counter()
        for _ in range(products):
            torch.bmm(x[0], x[1], out=out)
        spent.append((time.perf_counter() - begin) / products)
    return 2 * size**3 / median(spent) / 1e9


def measure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Median env steps per second of every contestant over interleaved turns; for ours, microseconds by part.

    Of a contestant that has another beside it, `times` is how many times as many env steps it makes, and `learn_times`,
    if both are ours, how many times as long it learns from one.
    """
    algorithm, task, rival = order["algorithm"], order["task"], order["against"]
    cfg = config.load_config(algorithm, order["preset"], order["overrides"])
    computing = runtime.configure_torch("cpu")
    contestants = {f"R = {runs}": ours(algorithm, cfg, task, runs) for runs in order["runs"]}
    beside = {}  # contestant -> the one that it is compared with
    if rival in RIVALS:
        beside = dict.fromkeys(contestants, rival)
        contestants[rival] = RIVALS[rival](algorithm, cfg, task)
    elif rival:
        beside = {name: f"{rival} {name}" for name in contestants}
        for runs in order["runs"]:
            contestants[f"{rival} R = {runs}"] = ours(rival, config_of_rival(order), task, runs)
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
    by_name = {row["name"]: row for row in rows}
    for name, other in beside.items():
        row, its = by_name[name], by_name[other]
        row["times"] = row["env_steps_per_second"] / its["env_steps_per_second"]
        if "us" in its:
            row["learn_times"] = row["us"]["learn"] / its["us"]["learn"]
    keys = ("algorithm", "task", "preset", "against", "against_preset", "repetitions", "seconds")
    facts = {key: order[key] for key in keys} | {"config": config.to_dict(cfg)}
    if order["operators"]:
        facts["product_gflops"] = product_speed()
        for row in rows:
            if "us" in row:
                row["operators"] = operators(contestants[row["name"]], order["seconds"])
    if rival and rival not in RIVALS:
        facts["against_config"] = config.to_dict(config_of_rival(order))
    return facts | {"computing": computing, "rows": rows}


def show(found: Mapping[str, Any]) -> None:
    """Print the measurement as a table."""
    turns = f"median of {found['repetitions']} turns of {found['seconds']:g} s"
    print(f"{found['algorithm']} on {found['task']}, one core, {turns}; us of one env step by part")
    heads, width = [*PARTS, "rest"], max(len(row["name"]) for row in found["rows"])
    ratios = {"times": f"x {found['against']}", "learn_times": f"learn x {found['against']}"}
    ratios = {key: head for key, head in ratios.items() if any(key in row for row in found["rows"])}
    titles = [*(f"{head:>8}" for head in heads), *ratios.values()]
    print(f"{'':{width}} {'env steps/s':>12} {'low':>9} {'high':>9}", *titles)
    for row in found["rows"]:
        parts = [f"{row['us'][head]:8.2f}" if "us" in row else " " * 8 for head in heads]
        against = [f"{row[key]:{len(head)}.2f}" if key in row else "" for key, head in ratios.items()]
        print(
            f"{row['name']:{width}} {row['env_steps_per_second']:12,.0f} {row['low']:9,.0f} {row['high']:9,.0f}",
            *parts,
            *against,
        )
    if "product_gflops" in found:
        print(f"256 x 256 products make {found['product_gflops']:.0f} GFLOP/s here; shares of time under a profiler:")
    for row in found["rows"]:
        if "operators" in row:
            print(f"{row['name']:{width}} ", ", ".join(f"{name} {x:.0%}" for name, x in row["operators"].items()))


def main(order: Mapping[str, Any]) -> int:
    """Measure and print."""
    import_plugins()
    try:
        found = measure(order)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    print(json.dumps(found, indent=1)) if order["json"] else show(found)
    return DONE


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
