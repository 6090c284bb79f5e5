"""Fingerprints: what a score depends on beside the algorithm. Scores with different fingerprints are not mixed."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import json
from functools import cache
from typing import Any

import numpy as np

import suites

TRACE_STEPS = 1_000  # env_steps


def fingerprint(task_id: str) -> dict[str, Any]:
    """Id, keyword arguments, wrappers, package versions and the hash of a scripted trace; `digest` sums up all of them.

    JSON-able. Computed once per process (the trace takes 20 to 400 ms). Raises ValueError for an unknown task.
    """
    return copy.deepcopy(_fingerprint(task_id))


@cache
def _fingerprint(task_id: str) -> dict[str, Any]:
    task = suites.find_task(task_id)
    packages = importlib.import_module(f"suites.{task.kind}").PACKAGES
    facts: dict[str, Any] = {
        "task": task.id,
        "env_kwargs": task.env_kwargs,
        "wrappers": [f"TimeLimit({task.max_episode_steps})", "AutoresetSameStep", "Float32Observation"],
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "trace_sha256": trace_sha256(task_id),
    }
    return {**facts, "digest": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def trace_sha256(task_id: str) -> str:
    """Hash of everything the environment of run seed 0 returns over 1,000 steps of fixed pseudo-random actions."""
    envs = suites.make(task_id, 1, 1)
    script = np.random.default_rng(0)
    digest = hashlib.sha256(envs.reset([0]).tobytes())
    for _ in range(TRACE_STEPS):
        for array in envs.step(envs.random_actions(script, 1, 1)):
            digest.update(array.tobytes())
    return digest.hexdigest()
