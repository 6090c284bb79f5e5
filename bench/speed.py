"""Env steps per second on one core, by number of runs, beside another library in the same call.

A process of its own (`python -m bench.speed JSON`), set up like a worker: one thread, torch configured the same. The
contestants take turns, so that a change in the machine's load meets all of them; medians over the turns are reported.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from bench import CRASHED, DONE, UserError, import_plugins  # noqa: E402

PARTS = ("env", "act", "learn")
Contestant = Callable[[float], tuple[int, float, dict[str, float]]]
"""Train for about that many seconds; returns env steps (of all runs), seconds, and seconds by part."""


def ours(algorithm: str, cfg: Any, task: str, runs: int) -> Contestant:
    """Our agent with `runs` runs."""
    envs = suites.make(task, runs, getattr(cfg, "num_envs", 1))
    agent = algorithms.load(algorithm).Agent(config.stack([cfg] * runs), envs, list(range(runs)))

    def train(seconds: float) -> tuple[int, float, dict[str, float]]:
        timers = dict(getattr(agent, "timers", {}))
        steps, begin = envs.env_steps, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            agent.iterate()
            envs.drain_episodes()
        spent = time.perf_counter() - begin
        parts = {name: total - timers.get(name, 0.0) for name, total in getattr(agent, "timers", {}).items()}
        return runs * (envs.env_steps - steps), spent, parts

    return train


def sb3(algorithm: str, cfg: Any, task: str) -> Contestant:
    """Stable-Baselines3 with the same hyperparameters, one run."""
    try:
        import stable_baselines3
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize
    except ImportError as error:
        raise UserError(
            f"--against sb3 needs Stable-Baselines3 ({error}): pip install --no-deps 'stable-baselines3==2.7.*'"
        ) from None
    import torch

    env = make_vec_env(task, getattr(cfg, "num_envs", 1), seed=0)
    shared = {
        "gamma": cfg.gamma,
        "learning_rate": cfg.learning_rate,
        "batch_size": cfg.batch_size,
        "device": "cpu",
        "seed": 0,
    }
    if algorithm == "ppo":
        normalized = cfg.normalize_observations or cfg.scale_rewards
        if normalized:
            env = VecNormalize(env, norm_obs=cfg.normalize_observations, norm_reward=cfg.scale_rewards, gamma=cfg.gamma)
        layers = {"net_arch": list(cfg.hidden_sizes), "activation_fn": torch.nn.Tanh}
        model: Any = stable_baselines3.PPO(
            "MlpPolicy", env, n_steps=cfg.num_steps, n_epochs=cfg.num_epochs, gae_lambda=cfg.gae_lambda, ent_coef=cfg.ent_coef,
            clip_range=min(cfg.clip_coef, 1e9), clip_range_vf=cfg.value_clip if cfg.value_clip < 1e9 else None, vf_coef=cfg.vf_coef,
            max_grad_norm=min(cfg.max_grad_norm, 1e9), normalize_advantage=bool(cfg.normalize_advantages), policy_kwargs=layers, **shared,
        )  # fmt: skip
        chunk = cfg.num_envs * cfg.num_steps
    elif algorithm == "dqn":
        layers = {"net_arch": list(cfg.hidden_sizes), "activation_fn": torch.nn.ReLU}
        model = stable_baselines3.DQN(
            "MlpPolicy", env, buffer_size=cfg.buffer_size, learning_starts=cfg.learning_starts, train_freq=cfg.train_period,
            gradient_steps=1, target_update_interval=cfg.target_period, policy_kwargs=layers, **shared,
        )  # fmt: skip
        chunk = 256
        model.learn(int(cfg.learning_starts) + chunk)  # the first steps only fill the buffer
    else:
        raise UserError(f"--against sb3 knows ppo and dqn, not {algorithm}")

    def train(seconds: float) -> tuple[int, float, dict[str, float]]:
        steps, begin = model.num_timesteps, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            model.learn(chunk, reset_num_timesteps=False)
        return model.num_timesteps - steps, time.perf_counter() - begin, {}

    return train


def measure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Median env steps per second of every contestant over interleaved turns, with the split of our time in us a step."""
    cfg = config.load_config(order["algorithm"], order["preset"], order["overrides"])
    settings = runtime.configure_torch("cpu")
    contestants: dict[str, Contestant] = {}
    for runs in order["runs"]:
        contestants[f"{runs} run{'s' if runs > 1 else ''}"] = ours(order["algorithm"], cfg, order["task"], runs)
    if order["against"]:
        contestants["sb3, 1 run"] = sb3(order["algorithm"], cfg, order["task"])
    turns: dict[str, list[tuple[int, float, dict[str, float]]]] = {name: [] for name in contestants}
    for turn in range(order["repetitions"] + 1):
        for name, train in contestants.items():
            outcome = train(order["seconds"] if turn else 0.0)  # the first turn, one iteration, only warms up
            if turn:
                turns[name].append(outcome)
    rows = []
    for name, outcomes in turns.items():
        speeds = [steps / spent for steps, spent, _ in outcomes]
        row: dict[str, Any] = {
            "contestant": name,
            "env_steps_per_second": statistics.median(speeds),
            "low": min(speeds),
            "high": max(speeds),
        }
        if outcomes[0][2]:
            each = {
                part: 1e6 * statistics.median(parts.get(part, 0.0) / steps for steps, _, parts in outcomes)
                for part in PARTS
            }
            whole = 1e6 * statistics.median(spent / steps for steps, spent, _ in outcomes)
            row |= {"microseconds": each | {"rest": max(whole - sum(each.values()), 0.0)}}
        rows.append(row)
    if order["against"]:
        for row in rows[:-1]:
            row["ratio_to_sb3"] = row["env_steps_per_second"] / rows[-1]["env_steps_per_second"]
    return {
        "algorithm": order["algorithm"],
        "task": order["task"],
        "config": config.to_dict(cfg),
        "settings": settings,
        "repetitions": order["repetitions"],
        "seconds": order["seconds"],
        "rows": rows,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the measurement as a table."""
    print(
        f"{found['algorithm']} on {found['task']}, one core: median of {found['repetitions']} turns of {found['seconds']:g} s"
    )
    print(
        f"{'':12} {'env steps/s':>12} {'(low to high)':>22} {'us a step: ' + ' / '.join([*PARTS, 'rest']):>42} {'x sb3':>7}"
    )
    for row in found["rows"]:
        spread = f"({row['low']:,.0f} to {row['high']:,.0f})"
        split = " / ".join(f"{value:.2f}" for value in row.get("microseconds", {}).values())
        ratio = f"{row['ratio_to_sb3']:7.1f}" if "ratio_to_sb3" in row else ""
        print(f"{row['contestant']:12} {row['env_steps_per_second']:12,.0f} {spread:>22} {split:>42} {ratio}")


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
