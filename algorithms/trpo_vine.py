"""TRPO's vine procedure: Schulman, Levine, Moritz, Jordan, Abbeel 2015, arXiv:1502.05477, section 5.2.

The policy plays a trunk, some of whose states are kept: the rollout set. From each state s of it start K branches,
short rollouts whose first actions are a_1, ..., a_K, and whose return is an estimate of Q,

    Q(s, a_k) = sum_{i < L} gamma^i r_i.

The branches of a state share their random numbers: the policy's noise, and the generators of the environment. The
surrogate is the self-normalised estimator over every state's branches (equation 16),

    L(theta) = E_s[ sum_k w_k Q(s, a_k) / sum_k w_k ],   w_k = pi(a_k|s) / q(a_k|s),

where q is pi_old for continuous actions, and for discrete ones every action is tried once: w_k = pi(a_k|s) then sum to
1, and this is the exact sum over actions (equation 15). A constant in Q cancels, so that no critic and no baseline is
needed; the policy's step is that of TRPO, with E[KL(pi_old || pi)] over the rollout set.

Axes: the trunk [T, R, N, ...]; rollout set [S, R, N, ...] or [R, B, ...], B = S N states of a run; branches
[R, B, K, ...]; vectors of weights [R, D]. R runs, N environments, T steps, S = T / branch_period states kept of each
environment, K branches of L steps.

Departures from the paper:
- The rollout set is every `branch_period`-th state of the trunk; there its states are chosen, it is not said how.
- The trunk goes on in the next iteration where it was; there each iteration's begin where episodes do. Its steps and
  those of all branches are env_steps, T N + S K L N an iteration, as the paper counts "simulation steps per iteration".
  They include those that a branch whose episode has ended makes beside the others.
- The end of an episode by its time limit ends a branch, as does its length L; there is no critic to say what follows.
- Discrete actions are never sampled, however many there are: K is their number.
- The Fisher matrix is damped (`cg_damping`) and of all states in the rollout set.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import PerRun, require
from algorithms.common.natural import assign, backtrack, fisher_product, natural_step, to_vectors
from algorithms.common.on_policy import OnPolicyAgent, require_positive, require_shares
from algorithms.common.rollouts import Rollout, by_run, evaluate

SUPPORTS = {"discrete", "continuous"}


@dataclasses.dataclass(frozen=True)
class Config:
    """delta, gamma, k, K and L are those of arXiv:1502.05477 (Table 2, appendix C.1), the line search is TRPO's."""

    delta: PerRun = 0.01  # bound of the KL
    cg_damping: PerRun = 0.1  # multiple of the identity added to F (npg.TRPO_MPI)
    cg_iterations: int = 10  # k
    kl_slack: PerRun = 1.0  # a step is refused where its KL exceeds this times delta
    shrink: PerRun = 0.5  # from one step that is tried to the next (npg.TRPO_MPI)
    line_search_steps: int = 10  # tried before the policy stays as it is (npg.TRPO_MPI)
    gamma: PerRun = 0.99
    num_envs: int = 16  # N
    num_steps: int = 256  # T, of the trunk in every environment
    branch_period: int = 16  # steps of the trunk from one state that is kept to the next
    num_branches: int = 4  # K for continuous actions; of discrete ones every branch has its own
    branch_steps: int = 50  # L
    hidden_sizes: tuple[int, ...] = (64, 64)

    # Details that the paper does not state; the values off are the defaults.
    initialization: Literal["normc", "orthogonal"] = "normc"  # npg.TRPO_MPI
    clip_actions: PerRun = 0.0  # 1: to the box, before the environment charges for them
    normalize_observations: bool = False  # running mean and variance of the trunk's, clip at 10

    def __post_init__(self) -> None:
        require_positive(self, "delta", "cg_iterations", "kl_slack", "line_search_steps", "num_envs", "num_steps")
        require_positive(self, "branch_period", "branch_steps")
        require(bool(np.all(np.asarray(self.cg_damping) >= 0)), "cg_damping must not be negative")
        require_shares(self, "gamma")
        shrink = np.asarray(self.shrink)
        require(bool(np.all((shrink > 0) & (shrink < 1))), f"shrink is {shrink}; it must lie between 0 and 1")
        require(
            self.num_steps % self.branch_period == 0,
            f"branch_period is {self.branch_period}; it must divide num_steps = {self.num_steps}",
        )
        require(self.num_branches > 1, f"num_branches is {self.num_branches}; one action has none to compare it with")


class Batch(NamedTuple):
    """The rollout set of R runs; `old` is the distribution of pi_old at its states."""

    observations: Tensor  # [R, B, ...]
    actions: Tensor  # a_k, [K, R, B, ...]
    old: Any
    old_log_probs: Tensor  # [R, B, K]
    shares: Tensor  # pi_old(a_k|s) / q(a_k|s), to a sum of 1 over k; [R, B, K]
    advantages: Tensor  # Q - sum_k shares Q, [R, B, K]


def self_normalised_gain(log_ratio: Tensor, shares: Tensor, advantages: Tensor) -> Tensor:
    """L(theta) - L(theta_old) [R] (equations 15 and 16), of log pi / pi_old, `shares` and advantages [R, B, K].

    Where w_k is shares times the ratio, and sum_k shares A = 0, it is E_s[ sum_k w_k A / sum_k w_k ].
    """
    weights = shares * torch.exp(log_ratio)
    return ((shares * torch.expm1(log_ratio) * advantages).sum(-1) / weights.sum(-1)).mean(1)


class Agent(OnPolicyAgent):
    """TRPO with vine for R runs at once."""

    memory = ("parameters", "streams", "collector", "iteration")

    def __init__(self, cfg: Config, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        super().__init__(cfg, envs, seeds, device, with_critic=False)
        self.num_branches = envs.num_actions if self.policy.discrete else cfg.num_branches  # K
        self.num_states = cfg.num_steps // cfg.branch_period  # S
        self.steps_per_branches = self.num_states * self.num_branches * cfg.branch_steps * cfg.num_envs
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps + self.steps_per_branches  # env_steps per run
        try:
            envs.state()
        except NotImplementedError as error:
            raise ValueError(
                "trpo_vine starts rollouts from states it has kept, but these environments cannot give their state or"
                " be set to one: use trpo, which follows single paths"
            ) from error

    def iterate(self) -> dict[str, np.ndarray]:
        """The trunk, its branches, and a step of the policy. Returns metrics, each [R]."""
        rollout, states = self._trunk()
        observations = rollout.observations[:: self.cfg.branch_period]  # [S, R, N, O]
        actions = self._first_actions(observations)
        q_values = self._branches(states, actions)
        start = time.perf_counter()
        batch = self._prepare(observations, actions, q_values)
        metrics = self._take(batch, self._step(batch))
        self.iteration += 1
        self.timers["learn"] += time.perf_counter() - start
        return {name: value.double().cpu().numpy().copy() for name, value in metrics.items()}

    def _trunk(self) -> tuple[Rollout, list[dict[str, Any]]]:
        """T steps in every environment, and the environments' states at every `branch_period`th of them, S in all."""
        cfg, states = self.cfg, list[dict[str, Any]]()
        sampler = self.policy.sampler(self.streams, cfg.num_steps, cfg.num_envs)

        def policy(observations: np.ndarray, t: int) -> np.ndarray:
            if t % cfg.branch_period == 0:
                states.append(self.envs.state())
            return sampler(observations, t)

        return self.collector.collect(cfg.num_steps, policy), states

    def _first_actions(self, observations: np.ndarray) -> np.ndarray:
        """a_k at the states [S, R, N, O]: every action once, or draws from pi_old; [S, K, R, N, ...]."""
        shape = (self.num_states, self.num_branches, *observations.shape[1:3])
        if self.policy.discrete:
            return np.broadcast_to(np.arange(self.num_branches)[:, None, None], shape).copy()
        log_std = self.policy.log_std()
        assert log_std is not None
        count = self.num_states * self.num_branches
        noise = self.streams.normal("first_actions", (count, shape[3], self.policy.num_outputs), axis=1)
        mean = np.stack([self.policy.act(at) for at in observations])
        actions: np.ndarray = mean[:, None] + np.exp(log_std.cpu().numpy()) * noise.reshape(*shape, -1)
        return actions

    def _branches(self, states: list[dict[str, Any]], actions: np.ndarray) -> np.ndarray:
        """Q of the actions [S, K, R, N, ...] in the environments' states, [S, K, R, N]; the trunk then goes on."""
        cfg, envs, collector = self.cfg, self.envs, self.collector
        begin, in_envs = time.perf_counter(), 0.0
        trunk = envs.state()
        q_values, errors = np.zeros(actions.shape[:4]), dict[int, str]()
        for s, state in enumerate(states):
            policy = self.policy.sampler(self.streams, cfg.branch_steps, cfg.num_envs)  # one noise for all K
            for k in range(self.num_branches):
                envs.load_state(state)
                action, going, discount = actions[s, k], np.ones(q_values.shape[2:], bool), np.ones((self.num_runs, 1))
                for i in range(cfg.branch_steps):
                    start = time.perf_counter()
                    step = envs.step(collector.clip(action))
                    in_envs += time.perf_counter() - start
                    q_values[s, k] += np.where(going, discount * step.rewards, 0.0)
                    going &= ~(step.terminations | step.truncations)
                    discount *= cfg.gamma[:, None]
                    action = policy(collector.normalize(step.observations), i)
                errors |= envs.errors
        envs.load_state(trunk)
        envs.account(trunk["env_steps"] + self.steps_per_branches, (), errors)
        self.timers["env"] += in_envs
        self.timers["act"] += time.perf_counter() - begin - in_envs
        return q_values

    def _prepare(self, observations: np.ndarray, actions: np.ndarray, q_values: np.ndarray) -> Batch:
        """The rollout set as a batch: its states [S, R, N, O], actions and Q [S, K, R, N, ...]."""
        states = by_run(observations, self.device)
        tried = torch.stack([by_run(actions[:, k], self.device) for k in range(self.num_branches)])
        q = torch.stack([by_run(q_values[:, k], self.device) for k in range(self.num_branches)], -1)
        log_std = self.policy.log_std()
        outputs = evaluate(self.policy.network, self.parameters, states)
        old: Any = self.policy.distribution(outputs, None if log_std is None else log_std.clone())
        old_log_probs = torch.stack([old.log_prob(one) for one in tried], -1)
        shares = torch.exp(old_log_probs) if self.policy.discrete else torch.full_like(q, 1 / self.num_branches)
        advantages = q - (shares * q).sum(-1, keepdim=True)
        return Batch(states, tried, old, old_log_probs, shares.float(), advantages.float())

    def _gradient(self, batch: Batch) -> Tensor:
        """The gradient [R, D] of L at pi_old: E_s[ sum_k shares A grad log pi(a_k|s) ]."""
        layers = self.policy.network.forward(self.parameters, batch.observations)
        policy = self.policy.distribution(layers[-1], self.policy.log_std())
        weights = batch.shares * batch.advantages / batch.shares.shape[1]
        by_output, by_log_std = torch.zeros_like(layers[-1]), None
        for k, actions in enumerate(batch.actions):
            of_mean, of_log_std = policy.gradient(actions, weights[..., k].contiguous())
            by_output += of_mean
            if of_log_std is not None:
                by_log_std = of_log_std if by_log_std is None else by_log_std + of_log_std
        self.policy.write_gradient(layers, by_output, by_log_std)
        return to_vectors(self.of_policy.grads)

    def _step(self, batch: Batch) -> Tensor:
        """sqrt(2 delta / g^T F^-1 g) F^-1 g, [R, D]."""
        gradient = self._gradient(batch)
        product = fisher_product(self.policy, batch.observations, self.coef["cg_damping"])
        return natural_step(product, gradient, self.coef["delta"], self.cfg.cg_iterations)

    def _take(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        """Backtrack along the step [R, D], each run to the first that is good enough; what it did, each [R]."""
        bound = (self.coef["kl_slack"] * self.coef["delta"]).squeeze(1)

        def accept() -> Tensor:
            gain, kl, _ = self._compare(batch)
            return (gain > 0) & (kl <= bound)

        def move(vectors: Tensor) -> None:
            assign(self.of_policy, vectors)

        start = to_vectors(self.of_policy.views)
        accepted, refused = backtrack(move, accept, start, step, self.coef["shrink"], self.cfg.line_search_steps)
        gain, kl, entropy = self._compare(batch)
        return {
            "step_accepted": accepted, "backtracks": refused, "kl": kl, "surrogate_gain": gain, "entropy": entropy,
        }  # fmt: skip

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The present policy's gain, E[KL(pi_old || pi)] and entropy over the rollout set, each [R]."""
        outputs = evaluate(self.policy.network, self.parameters, batch.observations)
        new: Any = self.policy.distribution(outputs, self.policy.log_std())
        log_probs = torch.stack([new.log_prob(actions) for actions in batch.actions], -1)
        gain = self_normalised_gain(log_probs - batch.old_log_probs, batch.shares, batch.advantages)
        return gain, batch.old.kl(new).mean(1), new.entropy().mean(1)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("trpo_vine")
