"""Actor-critic with eligibility traces and linear features: Degris, Pilarski, Sutton 2012, "Model-Free Reinforcement
Learning with Continuous Action in Practice"; the stochastic rival of Silver et al. 2014 (section 5.2, "SAC").

On-policy, one update a step, V(s) = v^T x(s), actions drawn from pi. Of continuous actions pi is the normal
distribution with mu(s) = u_mu^T x(s) and sigma(s) = sigma_0 exp(u_sigma^T x(s)), of discrete ones the softmax of
u_a^T x(s):

    delta = r + gamma V(s') - V(s)
    e_v <- gamma lambda e_v + x(s),                  v <- v + alpha_v delta e_v
    e_u <- gamma lambda e_u + grad_u log pi(a|s),    u <- u + alpha_u delta e_u

where grad_{u_mu} log pi = (a - mu) / sigma^2 x(s), grad_{u_sigma} log pi = ((a - mu)^2 / sigma^2 - 1) x(s). With
`scaled` both are multiplied by sigma^2 (rlpark/rlpark NormalDistributionScaled.java, the first author's code).

Axes: observations [R, N, O], active features [R, K], weights [R, F] and [R, F, P], traces [R, N, ...] of them; R runs,
N environments, F features, K active, P outputs of the policy: mu and log sigma of each number, or one for each action.

Departures from the paper:
- Returns are discounted, never averaged over time, as in Silver et al. 2014, who have sigma^2 where sigma is here.
- Tile coding and step sizes as in copdac_q.py; traces as in rlpark/rlpark@7e65dfa ActorLambda.java: they accumulate,
  and end with an episode.
- A time limit is no end of the task: only terminations stop bootstrapping.
- N environments have a trace each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.common.config import PerRun
from algorithms.common.linear import (
    LinearAgent,
    Normal,
    Sample,
    Softmax,
    Traces,
    check_settings,
    read,
    require_nonnegative,
    require_positive,
    require_shares,
    scaled_slope,
)
from algorithms.common.streams import Streams
from algorithms.common.tiles import Floats, Indices

SUPPORTS = {"continuous", "discrete"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The step sizes are those of rlpark/rlpark@4013f42 ActorCriticPendulum.java (as there, over the number of active
    features), whose lambda is 0.75 for the critic and 0 for the actor; there mu's gradient alone is `scaled`."""

    learning_rate: PerRun = 0.1  # alpha_v
    actor_learning_rate: PerRun = 0.001  # alpha_u
    gamma: PerRun = 0.99  # Silver et al. 2014; 0.999 on puddle world
    trace_lambda: PerRun = 0.75  # lambda, of both traces
    traces: bool = True  # False: lambda is 0, at a fraction of the time
    start_std: PerRun = 1.0  # sigma_0; half the action's range is 1, where Silver et al. 2014 begin
    scaled: PerRun = 1.0  # 1: the policy's gradient times sigma^2; of continuous actions only
    num_tilings: int = 10
    num_tiles: int = 10  # of each tiling over the range of an observed number
    memory: int = 4096  # weights at most; more tiles than that share them by hashing
    num_envs: int = 1

    def __post_init__(self) -> None:
        check_settings(self)
        require_nonnegative(self, "learning_rate", "actor_learning_rate")
        require_positive(self, "start_std")
        require_shares(self, "trace_lambda", "scaled")


class Agent(LinearAgent):
    """Actor-critic for R runs at once."""

    weights: tuple[str, ...] = ("v", "u")
    memory = (*LinearAgent.memory, "value_traces", "policy_traces")

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device)
        self.policy = Softmax(self.action_size) if self.discrete else Normal(self.action_size)
        self.v, self.u = self.zeros(), self.zeros(self.policy.num_outputs)
        self.first_outputs = np.zeros((self.num_runs, self.policy.num_outputs))
        if not self.discrete:
            self.first_outputs[:, self.action_size :] = np.log(cfg.start_std)[:, None]
        self.value_traces, self.policy_traces = (Traces(x, cfg.num_envs, cfg.traces) for x in (self.v, self.u))
        self.trace_lambda = cfg.trace_lambda * cfg.traces
        self.alpha_v, self.alpha_u = self.step_size("learning_rate"), self.step_size("actor_learning_rate")

    def _noise(self, num_steps: int) -> Floats:
        draw = self.streams.gumbel if self.discrete else self.streams.normal
        return draw("actions", (num_steps, self.num_envs, self.action_size), axis=1)

    def _choose(self, features: Indices, noise: Floats) -> Any:
        """Actions drawn from pi."""
        return self.policy.sample(self.outputs(features), noise)

    def outputs(self, features: Indices) -> Floats:
        """What pi is made of: mu(s) and log sigma(s), or the actions' preferences; [R, P] of [R, K], or with N too."""
        first = self.first_outputs if features.ndim == 2 else self.first_outputs[:, None]
        return read(self.u, features) + first

    def _learn(self, sample: Sample, n: int) -> Floats:
        """The five equations above."""
        x, shares = sample.features, self.cfg.gamma * self.trace_lambda
        delta = sample.rewards + sample.discounts * read(self.v, sample.successors) - read(self.v, x)
        slope = scaled_slope(self.policy, self.outputs(x), sample.actions, self.cfg.scaled > 0)
        self.value_traces.update(n, shares, x, np.ones(self.num_runs))
        self.policy_traces.update(n, shares, x, slope)
        self.value_traces.move(n, self.v, self.alpha_v * delta)
        self.policy_traces.move(n, self.u, self.alpha_u * delta)
        for traces in (self.value_traces, self.policy_traces):
            traces.end(n, sample.ended)
        return delta

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, ...] for observations [R, N, O]: the mode of pi, or drawn from it when streams are given."""
        outputs = self.outputs(self.coder(observations))
        if streams is None:
            return self.to_task(self.policy.mode(outputs))  # type: ignore[no-any-return]
        draw = streams.gumbel if self.discrete else streams.normal
        noise = draw("actions", (*observations.shape[1:2], self.action_size))
        return self.to_task(self.policy.sample(outputs, noise))  # type: ignore[no-any-return]


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("actor_critic")
