"""A plugin (`TOUCHSTONE_PLUGINS=fakes`): the algorithm `fake`, small and quick, with faults to order.

It sums what it sees into its weights, so that any lost, repeated or reordered bit shows in the hash. `fault` says what
goes wrong with the run whose seed is `fault_seed`, once `fault_step` env_steps are reached: `nan` weights, a `crash` of
the worker by SIGKILL (every time, or `once`), an environment that `raises`, a `full` disk, an exception (`bug`).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import algorithms
from algorithms.common.config import PerRun
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the fake."""

    scale: PerRun = 1.0
    gamma: PerRun = 0.9
    num_envs: int = 2
    num_steps: int = 8
    pause: float = 0.0  # seconds an iteration lasts at least
    fault: Literal["none", "nan", "crash", "once", "raises", "full", "bug"] = "none"
    fault_seed: int = 1
    fault_step: int = 100  # env_steps


class Agent:
    """Adds up what it sees."""

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs, self.seeds = cfg, envs, list(seeds)
        self.streams = Streams(seeds)
        self.weights = np.zeros((len(seeds), 3))
        self.observations = envs.reset(seeds)
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps

    def iterate(self) -> dict[str, np.ndarray]:
        begin = time.perf_counter()
        for _ in range(self.cfg.num_steps):
            noise = self.streams.uniform("actions", (self.cfg.num_envs,))
            step = self.envs.step((noise * self.envs.num_actions).astype(np.int64))
            self.observations = step.observations
            self.weights[:, 0] += step.rewards.sum(1) * self.cfg.scale
            self.weights[:, 1] = np.sin(self.weights[:, 1] + self.observations.sum((1, 2)))
            self.weights[:, 2] += noise.sum(1)
        if self.cfg.fault_seed in self.seeds and self.envs.env_steps >= self.cfg.fault_step:
            self._break(self.seeds.index(self.cfg.fault_seed))
        time.sleep(max(0.0, self.cfg.pause - (time.perf_counter() - begin)))
        return {"noise": self.weights[:, 2].copy()}

    def _break(self, run: int) -> None:
        match self.cfg.fault:
            case "nan":
                self.weights[run] = np.nan
            case "raises":
                self.envs.park(run, "ValueError: the simulation is unstable")
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "bug":
                raise RuntimeError("a bug in the algorithm")
            case "crash" | "once":
                mark = Path(os.environ["FAKES_MARK"])
                if self.cfg.fault == "crash" or not mark.exists():
                    mark.write_text("the worker was here")
                    os.kill(os.getpid(), signal.SIGKILL)

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        return (observations.sum(-1) > 0).astype(np.int64)

    def values(self, observations: np.ndarray) -> np.ndarray:
        return observations.sum(-1) + self.weights[:, :1]

    def diverged(self) -> np.ndarray:
        return ~np.isfinite(self.weights).all(1)

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        return {"weights": self.weights[run]}

    def state(self) -> dict[str, Any]:
        return {"streams": self.streams.state(), "weights": self.weights, "observations": self.observations}

    def load_state(self, state: dict[str, Any]) -> None:
        self.streams.load_state(state["streams"])
        self.weights, self.observations = state["weights"], state["observations"]


module = types.ModuleType("algorithms.fake")
module.__dict__.update(Config=Config, Agent=Agent, SUPPORTS=SUPPORTS)
Config.__module__ = __name__
sys.modules["algorithms.fake"] = module
_names = algorithms.names
algorithms.names = lambda: sorted([*_names(), "fake"])
