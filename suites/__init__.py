"""Tasks, suites and the environments that step them.

A file in this directory that defines `SUITES` is a family of tasks: `TASKS` (id -> `Task`), `SUITES` (name -> task
ids), `PACKAGES` (on which its numbers depend) and `make(task, num_runs, num_envs, num_threads)`. It is found by its
name; a new task is one entry there. Nothing here imports gymnasium or mujoco before an environment is made: listing
what there is must be quick.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suites.vector import VectorEnv


@dataclass(frozen=True)
class Task:
    """An environment id with its protocol."""

    id: str
    kind: str  # the family's file under suites/
    max_episode_steps: int  # env_steps; the limit of Gymnasium's registry (tested against it)
    steps: int  # env_steps per run; the default budget of an experiment
    env_kwargs: dict[str, Any] = field(default_factory=dict)


@cache
def _families() -> dict[str, ModuleType]:
    """Modules of this package that define SUITES, by name."""
    modules = {info.name: importlib.import_module(f"suites.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "SUITES")}


def task_ids() -> list[str]:
    """Ids of all tasks of all families."""
    return [task_id for family in _families().values() for task_id in family.TASKS]


def names() -> list[str]:
    """Names of all suites."""
    return [name for family in _families().values() for name in family.SUITES]


def find_task(task_id: str) -> Task:
    """The task of that id. Raises ValueError, with near names, when there is none."""
    for family in _families().values():
        if task_id in family.TASKS:
            task: Task = family.TASKS[task_id]
            return task
    raise ValueError(_unknown("task", task_id, task_ids()))


def find_suite(name: str) -> list[Task]:
    """The tasks of that suite. Raises ValueError, with near names, when there is none."""
    for family in _families().values():
        if name in family.SUITES:
            return [find_task(task_id) for task_id in family.SUITES[name]]
    raise ValueError(_unknown("suite", name, names()))


def make(task_id: str, num_runs: int, num_envs: int, num_threads: int = 1) -> VectorEnv:
    """Environments [num_runs, num_envs] of one task; call `reset(seeds)` before the first step.

    `num_threads` > 1 steps environments of MuJoCo in parallel, for machines with more cores than groups; the numbers
    do not depend on it. Raises ValueError for an unknown task or a size below 1.
    """
    for name, value in (("num_runs", num_runs), ("num_envs", num_envs), ("num_threads", num_threads)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1; ask for one or more.")
    task = find_task(task_id)
    envs: VectorEnv = _families()[task.kind].make(task, num_runs, num_envs, num_threads)
    envs.remake = partial(make, task_id, num_runs)
    return envs


def fingerprint(task_id: str) -> dict[str, Any]:
    """What a score on this task depends on beside the algorithm; see `suites.fingerprints`."""
    from suites.fingerprints import fingerprint

    return fingerprint(task_id)


def _unknown(what: str, value: str, known: Iterable[str]) -> str:
    known = sorted(known)
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[name] for name in difflib.get_close_matches(value.lower(), by_lower, n=3, cutoff=0.5)]
    cure = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(known)}."
    return f"{what} {value!r} is not known: {cure}"
