"""Distributed distributional deterministic policy gradient: Barth-Maron et al. 2018, arXiv:1804.08617.

DDPG with four changes (its algorithm 1), each of which can be switched off. The critic gives a distribution of the
return, probabilities p_i(s, a) (a softmax) on fixed atoms z_i as in c51.py (`distributional`); transitions span N steps
(`n_steps`), are drawn by priority (`prioritized`) and come from K actors (`num_envs`):

    m = projection of  r_1 + gamma r_2 + ... + gamma^(N-1) r_N + gamma^N Z'(s_N, mu'(s_N))  onto the atoms
    descend  mean_b w_b KL(m || p(s, a)),    w_b = (R P(b))^-1 over the largest of the batch
    ascend  mean_b E Z(s, mu(s)),  through  d E Z / d logit_i = p_i (z_i - E Z)

Q' and mu' are overwritten every `target_period`. The priority of a transition is its divergence. With a scalar critic,
one step, uniform replay and targets that follow after every update the file is DDPG, bit for bit.

Axes: those of DDPG, critics' outputs [R, 1, B, Z] for Z atoms.

Departures: those of DDPG; and
- The K actors are environments in step with the learner, not processes that run ahead with older weights.
- Networks are DDPG's, without the paper's layer normalization.
- The interval of the atoms is the task's: see `settings/d4pg.toml`. Returns beyond it are clipped to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import c51, ddpg, nstep_dqn
from algorithms.common.atoms import divergence, project
from algorithms.common.config import PerRun
from algorithms.common.layers import tanh_
from algorithms.common.off_policy import Learned
from algorithms.common.on_policy import require_positive
from algorithms.common.replay import Replay, Transitions
from algorithms.common.schedules import crossings

SUPPORTS = {"continuous"}


@dataclasses.dataclass(frozen=True)
class Config(ddpg.Config):
    """The defaults are those of google-deepmind/acme@4751bad agents/jax/d4pg/config.py where no other is named."""

    learning_rate: PerRun = 1e-4
    actor_learning_rate: PerRun = 1e-4
    tau: PerRun = 1.0
    target_period: PerRun = 100.0  # env_steps from one update of the target networks to the next; there: updates
    weight_decay: PerRun = 0.0
    noise_theta: PerRun = 1.0  # Gaussian
    noise_std: PerRun = 0.3
    learning_starts: int = 1_000
    batch_size: int = 256
    num_envs: int = 4  # K; msinto93/D4PG@076eb09 params.py
    n_steps: int = 5  # N
    distributional: bool = True  # off: DDPG's critic
    num_atoms: int = 51  # Z; google-deepmind/acme@41a13e2 agents/jax/d4pg/networks.py, as are the next two
    v_min: float = -150.0
    v_max: float = 150.0
    prioritized: bool = True  # algorithm 1
    importance_exponent: PerRun = 1.0  # algorithm 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "target_period")
        nstep_dqn.require_steps(self)
        c51.require_atoms(self)


def mean_slopes(probabilities: Tensor, atoms: Tensor) -> Tensor:
    """d E Z / d logits = p_i (z_i - E Z): [..., Z], atoms [Z]."""
    return probabilities * (atoms - (probabilities * atoms).sum(-1, keepdim=True))


class Agent(ddpg.Agent):
    """D4PG for R runs at once."""

    memory = (*ddpg.Agent.memory, "updates")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.atoms = torch.linspace(cfg.v_min, cfg.v_max, cfg.num_atoms, device=device)
        outputs = cfg.num_atoms if cfg.distributional else 1
        super().__init__(cfg, envs, seeds, device, outputs_per_critic=outputs)
        self.updates = 0

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        return super()._memory(kind, n_steps=self.cfg.n_steps, **settings)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """The projected distribution m [R, B, Z], or targets of Q [R, B]."""
        if not self.cfg.distributional:
            return super()._targets(batch)
        next_actions = tanh_(self.actor.forward(self.target_parameters, batch.next_observations)[-1])
        logits, _ = self.critics.forward(self.critics.target, batch.next_observations, next_actions)
        probabilities = torch.softmax(logits.squeeze(1), 2).transpose(1, 2)  # [R, Z, B]
        return project(probabilities, batch.rewards, batch.discounts, self.atoms).transpose(1, 2)

    def _critic_slopes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Learned]:
        """d loss / d logits [R, 1, B, Z] = (p - m) / B, and the samples' divergences [R, 1, B]."""
        if not self.cfg.distributional:
            return super()._critic_slopes(outputs, targets)
        probabilities, logits = torch.softmax(outputs, 3), outputs.squeeze(1)
        losses = divergence(targets.transpose(1, 2), logits.transpose(1, 2)).unsqueeze(1)
        slopes = (probabilities - targets.unsqueeze(1)) / self.cfg.batch_size
        return slopes, losses, {"critic_loss": losses, "q_values": self._estimate(outputs)}

    def _action_slopes(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The derivative of -mean_b E Z(s, a) with respect to the actions: [R, B, A]."""
        if not self.cfg.distributional:
            return super()._action_slopes(observations, actions)
        logits, layers = self.critics.forward(self.critics.parameters, observations, actions)
        slopes = mean_slopes(torch.softmax(logits, 3), self.atoms)
        return self.critics.to_actions(layers, slopes / -self.cfg.batch_size)

    def _estimate(self, outputs: Tensor) -> Tensor:
        """E Z(s, a) [R, B] by the critic's outputs [R, 1, B, Z]."""
        if not self.cfg.distributional:
            return super()._estimate(outputs)
        return (torch.softmax(outputs, 3) * self.atoms).sum(3).squeeze(1)

    def _update_targets(self, tau: np.ndarray) -> None:
        """Q' and mu' follow where their period is over."""
        self.updates += 1
        passed = self.updates * self.cfg.train_period  # env_steps since the first update
        due = crossings(passed, self.cfg.train_period, self.cfg.target_period) > 0
        super()._update_targets(np.where(due, tau, 0.0))


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("d4pg")
