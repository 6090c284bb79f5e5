"""Small groups of every algorithm, for tests of what must hold for all of them.

A new algorithm is picked up by its file: sizes are cut down by the name of the field, a switch is flipped whatever it
is called, and per-run settings take turns with the values in `PER_RUN` (or with fractions of their default).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

import algorithms
import suites
from algorithms.common.config import config_class, load_config, per_run_fields, stack

inf = math.inf

# Sizes of a small run; fields an algorithm does not have are left out.
SMALL = {
    "schedule": "serial", "num_envs": 2, "num_steps": 48, "num_epochs": 2, "batch_size": 16, "hidden_sizes": (32, 32),
    "buffer_size": 64, "learning_starts": 24, "train_period": 2, "target_period": 16, "epsilon_steps": 400.0,
    "num_atoms": 11, "num_quantiles": 5, "num_target_quantiles": 6, "num_acting_quantiles": 4, "num_cosines": 8,
    "num_episodes": 1, "num_value_steps": 3, "line_search_steps": 4, "num_members": 4,
    "num_directions": 2, "num_top": 1,
    "num_tilings": 4, "num_tiles": 5, "memory": 256, "branch_period": 12, "num_branches": 3, "branch_steps": 5,
    "random_steps": 20, "num_critics": 2, "critic_hidden_sizes": (32, 32), "lstm_size": 16,
}  # fmt: skip
SMALL_OF = {"ppo_lstm": {"batch_size": 48}}  # one environment's steps

# A budget that suffices for the probe tasks.
PROBE = {
    "num_envs": 8, "num_steps": 16, "num_epochs": 4, "batch_size": 32, "hidden_sizes": (32, 32), "learning_rate": 3e-3,
    "schedule": "serial",
    "buffer_size": 2000, "learning_starts": 200, "train_period": 8, "target_period": 80.0, "epsilon_steps": 3000.0,
    "v_min": -3.0, "v_max": 3.0, "num_atoms": 31, "num_quantiles": 16, "num_target_quantiles": 8,
    "num_acting_quantiles": 8, "num_cosines": 16, "importance_steps": 6000.0, "alpha": 0.1,
    "num_episodes": 16, "num_value_steps": 8, "value_learning_rate": 3e-3, "baseline": "value", "num_members": 64,
    "num_directions": 16, "num_top": 8, "direction_std": 0.1, "bias": True,
    "num_tilings": 4, "memory": 256,
    "actor_learning_rate": 3e-3, "tau": 0.05, "weight_decay": 0.0, "random_steps": 200, "alpha_learning_rate": 3e-3,
    "critic_hidden_sizes": (32, 32), "num_critics": 2, "lstm_size": 32,
}  # fmt: skip

# The same budget in more updates, for algorithms that make one step of the policy with each rollout; target networks
# that are overwritten whole.
PROBE_OF = {
    "sac_discrete": {"tau": 1.0}, "d4pg": {"tau": 1.0},
    "a2c": {"num_steps": 8}, "a2c_trust_region": {"num_steps": 5}, "vpg": {"num_steps": 4},
    "actor_critic": {"learning_rate": 0.1, "actor_learning_rate": 0.05, "trace_lambda": 0.0, "start_std": 0.3},
    "copdac_q": {"learning_rate": 0.1, "advantage_learning_rate": 0.3, "actor_learning_rate": 1e-3, "noise_std": 0.1},
    "offpac": {"learning_rate": 0.1, "trace_lambda": 0.0},
    "a2c_lstm": {"num_steps": 8},
    "acktr": {
        "num_steps": 8, "fisher_subsample": 1, "kl_target": 0.0, "learning_rate": 0.03, "policy_delta": 0.01,
        "value_learning_rate": 0.3, "value_delta": 0.05,
    },
    "a3c": {"num_envs": 4, "num_steps": 4, "anneal_steps": 6000.0},  # stale gradients want small steps
    "a3c_lstm": {"num_envs": 4, "num_steps": 4, "anneal_steps": 6000.0},
    "async_one_step_q": {"num_envs": 4, "num_steps": 4, "anneal_steps": 6000.0},
    "async_one_step_sarsa": {"num_envs": 4, "num_steps": 4, "anneal_steps": 6000.0, "epsilon_ends": (0.1, 0.01, 0.1)},
    "async_nstep_q": {"num_envs": 4, "num_steps": 4, "anneal_steps": 6000.0},
    "trpo_vine": {"num_steps": 4, "branch_period": 1, "branch_steps": 1, "delta": 0.05},
}  # fmt: skip

# Values that the runs of a mixed group take in turn.
PER_RUN: dict[str, Sequence[float]] = {
    "clip_coef": (0.2, inf, 0.1), "kl_coef": (0.0, 1.0, 0.3, 3.0, 0.0),
    "kl_target": (0.0, 0.003, 0.0, 0.01, 0.0, 0.0, 0.03),
    "anneal_steps": (inf, 300.0, 1000.0, inf), "ent_coef": (0.0, 0.01), "time_limit_bootstrap": (1.0, 0.0, 1.0),
    "normalize_advantages": (0.0, 1.0), "value_clip": (inf, 0.1, inf),
    "clip_actions": (0.0, 1.0, 1.0), "max_grad_norm": (inf, 0.5, inf, 0.05, 10.0),
    "target_kl": (inf, 1e-4, inf, 1e-6, 3e-3),
    "sample_average": (0.0, 1.0, 0.0), "expected": (0.0, 1.0), "every_visit": (0.0, 1.0, 1.0),
    "n": (4.0, 1.0, 9.0, 32.0),
    "delta": (0.01, 0.1, 1e-3), "cg_damping": (0.1, 1e-3, 0.01, 0.1, 1.0), "kl_slack": (1.0, 1.5, 0.01, 0.2),
    "double": (1.0, 0.0),
    "policy_delta": (5e-3, 0.1, inf, 1e-4, inf, 0.03, inf), "value_delta": (0.04, 1.0, inf, 1e-3),
    "noise_theta": (0.15, 1.0), "weight_decay": (0.01, 0.0, 0.1), "tau": (0.01, 1.0, 0.1),
    "policy_period": (2.0, 1.0, 3.0), "automatic": (1.0, 0.0), "scaled": (1.0, 0.0, 1.0),
}  # fmt: skip
EVOLUTION = {"ars", "cem", "es"}  # draw weights, not actions, and know no values
VALUELESS = EVOLUTION | {"trpo_vine"}
PLANNERS = {"policy_iteration", "value_iteration"}  # know the model, and draw nothing
LINEAR = {"actor_critic", "copdac_q", "offpac"}  # start from weights of 0, and draw actions only
FRACTIONS = (1.0, 0.5, 0.9, 0.99)  # of the default, for the other fields


def tasks(algorithm: str) -> list[str]:
    """One task for each kind of action that the algorithm knows, and one of MuJoCo; two for tables."""
    supports = algorithms.load(algorithm).SUPPORTS
    if "tabular" in supports:
        return ["Blackjack-v1", "GridWorld4x3-v0"]
    return ["CartPole-v1"] * ("discrete" in supports) + ["Pendulum-v1", "Hopper-v5"] * ("continuous" in supports)


def switches(algorithm: str) -> dict[str, Any]:
    """Every structural switch in another position than its default."""
    hints = typing.get_type_hints(config_class(algorithm))
    flipped: dict[str, Any] = {}
    for field in dataclasses.fields(config_class(algorithm)):
        if field.name == "convolutions":  # for images only
            continue
        if hints[field.name] is bool:
            flipped[field.name] = not field.default
        elif typing.get_origin(hints[field.name]) is typing.Literal:
            flipped[field.name] = next(x for x in typing.get_args(hints[field.name]) if x != field.default)
    return flipped


def settings(algorithm: str, wanted: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """Those of the wanted settings that the algorithm has, for `load_config`."""
    known = {field.name for field in dataclasses.fields(config_class(algorithm))}
    return {name: value for name, value in (wanted | overrides).items() if name in known}


def small(algorithm: str, **overrides: Any) -> dict[str, Any]:
    """Settings of a small run."""
    return settings(algorithm, SMALL | SMALL_OF.get(algorithm, {})) | overrides


def mixed(algorithm: str, count: int, **overrides: Any) -> list[dict[str, Any]]:
    """Settings of `count` runs that differ in every per-run setting; the first has the defaults."""
    cls = config_class(algorithm)
    runs = [small(algorithm, **overrides) for _ in range(count)]
    for place, field in enumerate(sorted(per_run_fields(cls))):
        default = next(f.default for f in dataclasses.fields(cls) if f.name == field)
        if field in SMALL:
            values: Sequence[float] = [SMALL[field] * fraction for fraction in FRACTIONS]  # type: ignore[operator]
        else:
            values = PER_RUN.get(field) or [default * fraction for fraction in FRACTIONS]
        for i, run in enumerate(runs):
            if field not in overrides:
                run[field] = values[i * (1 + place % 3) % len(values)]
    return runs


def make(algorithm: str, task: str, runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Any:
    """An agent with its environments, `agent.envs`."""
    cfg = stack([load_config(algorithm, None, run) for run in runs])
    envs = suites.make(task, len(runs), getattr(cfg, "num_envs", 1))
    return algorithms.load(algorithm).Agent(cfg, envs, list(seeds))


def advance(agent: Any, env_steps: int) -> list[dict[str, np.ndarray]]:
    """Iterate for about `env_steps` per run, twice at least."""
    return [agent.iterate() for _ in range(max(2, math.ceil(env_steps / agent.steps_per_iteration)))]


def outcome(agent: Any, metrics: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """All that a run leaves behind, for each run: weights, metrics, finished episodes, greedy actions."""
    episodes = agent.envs.drain_episodes()
    actions = agent.act(agent.envs.state()["observations"])
    results = []
    for run in range(agent.num_runs):
        result = {f"weights/{name}": value for name, value in agent.parameters_of(run).items()}
        result |= {f"metrics/{name}": np.array([row[name][run] for row in metrics]) for name in metrics[0]}
        result["episodes"] = np.array([episode[1:] for episode in episodes if episode[0] == run], np.float64)
        result["actions"] = actions[run]
        result["diverged"] = agent.diverged()[run]
        results.append(result)
    return results


def some_observations(agent: Any, count: int) -> np.ndarray:
    """Observations [R, count, ...] such as the task may show, the same for every run."""
    rng, shape, num_states = np.random.default_rng(0), (count, *agent.envs.observation_shape), agent.envs.num_states
    one = rng.standard_normal(shape) if num_states is None else rng.integers(0, num_states, shape)
    return np.repeat(one.astype(np.float32)[None], agent.num_runs, 0)


def train(
    algorithm: str, task: str, runs: Sequence[dict[str, Any]], seeds: Sequence[int], env_steps: int = 288
) -> list[dict[str, np.ndarray]]:
    """What each run of one group leaves behind."""
    agent = make(algorithm, task, runs, seeds)
    return outcome(agent, advance(agent, env_steps))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], what: str = "") -> None:
    """The same bits; nan equals itself."""
    assert one.keys() == other.keys()
    different = [name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)]
    assert not different, f"{what}: {different} differ"
