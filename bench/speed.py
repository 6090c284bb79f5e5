"""Env steps per second on one core, by number of runs, beside another library in the same call.

A process of its own (`python -m bench.speed JSON`), set up like a worker: one thread, torch configured the same. The
contestants take turns, so that a change in the machine's load meets all of them; medians over the turns are reported.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from bench import CRASHED, DONE, UserError, import_plugins  # noqa: E402

PARTS = ("env", "act", "learn")


class Outcome(NamedTuple):
    """What a contestant did in one turn."""

    env_steps: int  # of all its runs
    seconds: float
    parts: dict[str, float]  # seconds


Contestant = Callable[[float], Outcome]  # trains for about that many seconds, one iteration at least


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


def sb3(algorithm: str, cfg: Any, task: str) -> Contestant:
    """Stable-Baselines3 with the same hyperparameters, one run."""
    try:
        import stable_baselines3
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize
    except ImportError as error:
        cure = "pip install stable-baselines3==2.9.2"
        raise UserError(f"--against sb3 needs Stable-Baselines3 ({error}): {cure}") from None
    import torch

    env: Any = make_vec_env(task, cfg.num_envs, seed=0)
    shared = {"gamma": cfg.gamma, "learning_rate": cfg.learning_rate, "batch_size": cfg.batch_size, "device": "cpu"}
    if algorithm == "ppo":
        if cfg.normalize_observations or cfg.scale_rewards:
            env = VecNormalize(env, norm_obs=cfg.normalize_observations, norm_reward=cfg.scale_rewards, gamma=cfg.gamma)
        model: Any = stable_baselines3.PPO(
            "MlpPolicy",
            env,
            n_steps=cfg.num_steps,
            n_epochs=cfg.num_epochs,
            gae_lambda=cfg.gae_lambda,
            clip_range=min(cfg.clip_coef, 1e9),
            clip_range_vf=cfg.value_clip if cfg.value_clip < math.inf else None,
            normalize_advantage=bool(cfg.normalize_advantages),
            ent_coef=cfg.ent_coef,
            vf_coef=cfg.vf_coef,
            max_grad_norm=min(cfg.max_grad_norm, 1e9),
            policy_kwargs={"net_arch": list(cfg.hidden_sizes), "activation_fn": torch.nn.Tanh},
            **shared,
        )
        chunk = cfg.num_envs * cfg.num_steps
    elif algorithm == "dqn":
        model = stable_baselines3.DQN(
            "MlpPolicy",
            env,
            buffer_size=cfg.buffer_size,
            learning_starts=cfg.learning_starts,
            train_freq=max(cfg.train_period // cfg.num_envs, 1),
            target_update_interval=int(cfg.target_period),
            policy_kwargs={"net_arch": list(cfg.hidden_sizes), "activation_fn": torch.nn.ReLU},
            **shared,
        )
        chunk = 256
        model.learn(int(cfg.learning_starts) + chunk)  # the first steps only fill the buffer
    else:
        raise UserError(f"--against sb3 knows ppo and dqn, not {algorithm}")

    def train(seconds: float) -> Outcome:
        steps, begin = model.num_timesteps, time.perf_counter()
        while True:
            model.learn(chunk, reset_num_timesteps=False)
            if (spent := time.perf_counter() - begin) >= seconds:
                return Outcome(model.num_timesteps - steps, spent, {})

    return train


def measure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Median env steps per second of every contestant over interleaved turns; for ours, microseconds by part."""
    algorithm, task = order["algorithm"], order["task"]
    cfg = config.load_config(algorithm, order["preset"], order["overrides"])
    computing = runtime.configure_torch("cpu")
    contestants = {f"R = {runs}": ours(algorithm, cfg, task, runs) for runs in order["runs"]}
    if order["against"]:
        contestants["sb3"] = sb3(algorithm, cfg, task)
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
    if order["against"]:
        for row in rows[:-1]:
            row["times_sb3"] = row["env_steps_per_second"] / rows[-1]["env_steps_per_second"]
    facts = {key: order[key] for key in ("algorithm", "task", "preset", "repetitions", "seconds")}
    return facts | {"config": config.to_dict(cfg), "computing": computing, "rows": rows}


def show(found: Mapping[str, Any]) -> None:
    """Print the measurement as a table."""
    turns = f"median of {found['repetitions']} turns of {found['seconds']:g} s"
    print(f"{found['algorithm']} on {found['task']}, one core, {turns}; us of one env step by part")
    heads = [*PARTS, "rest"]
    print(f"{'':8} {'env steps/s':>12} {'low':>9} {'high':>9}", *(f"{head:>8}" for head in heads), f"{'x sb3':>7}")
    for row in found["rows"]:
        parts = [f"{row['us'][head]:8.2f}" if "us" in row else " " * 8 for head in heads]
        ratio = f"{row['times_sb3']:7.1f}" if "times_sb3" in row else ""
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
