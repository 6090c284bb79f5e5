"""n-step DQN: Sutton 1988's n-step returns as targets of DQN, the "multi-step learning" of Rainbow, arXiv:1710.02298.

    y = r_1 + gamma r_2 + ... + gamma^(n-1) r_n + gamma^n max_a' Q(s_n, a'; theta-)          (its section 2).

A sum ends early with its episode: at a termination nothing follows, at a time limit the value of the last state does.

Departures: those of DQN; there is no correction for the policy that has changed since, as in the paper.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from algorithms import dqn
from algorithms.common.config import require
from algorithms.common.replay import Replay

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's, and n."""

    n_steps: int = 3  # arXiv:1710.02298, Table 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_steps(self)


def require_steps(cfg: Any) -> None:
    """Refuse an n below 1, and updates before the first transition is there."""
    require(cfg.n_steps > 0, f"n_steps is {cfg.n_steps}; it must be positive")
    first = cfg.n_steps * cfg.num_envs
    require(
        cfg.n_steps == 1 or cfg.learning_starts >= first,
        f"learning_starts is {cfg.learning_starts}; it must be at least n_steps * num_envs = {first}",
    )


class Agent(dqn.Agent):
    """n-step DQN for R runs at once. The sums are made in `replay.Window`."""

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        return super()._memory(kind, n_steps=self.cfg.n_steps, **settings)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("nstep_dqn")
