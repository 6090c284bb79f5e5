"""TRPO's vine procedure against explicit rollouts, sums over all actions, and autograd in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from test_policy_gradient import build, leaves, policy_of
from test_ppo import CONTINUOUS, DISCRETE, Spaces
from torch import Tensor

from algorithms import trpo_vine
from algorithms.common.config import load_config, stack
from algorithms.common.natural import from_vectors
from suites.vector import Step, VectorEnv

SIZES: dict[str, Any] = {
    "num_envs": 3, "num_steps": 12, "branch_period": 4, "branch_steps": 5, "hidden_sizes": [8, 8], "num_branches": 3,
}  # fmt: skip


class Line(VectorEnv):
    """Places on a line, left and right; the ends are at 3 and -3, the limit is 6 steps; reward (place + 2 action)^2."""

    def __init__(self, num_runs: int, num_envs: int) -> None:
        super().__init__(num_runs, num_envs, (1,), 6, num_actions=2)
        self.places = np.zeros((num_runs, num_envs), np.int64)

    def _seed(self, seeds: list[list[int]]) -> None:
        self.generators = [np.random.default_rng(seed) for row in seeds for seed in row]

    def _restart(self, indices: np.ndarray, observations: np.ndarray) -> None:
        for i in indices.tolist():
            run, n = divmod(i, self.num_envs)
            self.places[run, n] = observations[run, n] = self.generators[i].integers(-2, 3)

    def _advance(self, actions: np.ndarray, out: Step) -> None:
        out.rewards[:] = (self.places + 2 * actions) ** 2
        self.places += 2 * actions - 1
        out.terminations[:] = np.abs(self.places) == 3
        out.next_observations[:] = self.places[..., None]

    def _save(self) -> dict[str, Any]:
        return {"places": self.places.copy(), "generators": [rng.bit_generator.state for rng in self.generators]}

    def _load(self, state: dict[str, Any]) -> None:
        self.places[:] = state["places"]
        for rng, one in zip(self.generators, state["generators"], strict=True):
            rng.bit_generator.state = one


def agent_of(envs: Any, runs: list[dict[str, Any]]) -> trpo_vine.Agent:
    cfg = stack([load_config("trpo_vine", None, SIZES | run) for run in runs])
    return trpo_vine.Agent(cfg, envs, list(range(len(runs))))


# ------------------------------------------------------------------------------------------------------------ branches
def test_q_values_are_those_of_explicit_rollouts() -> None:
    """Every branch walked again, step by step, from the place and the age that the trunk was at. All K branches of a
    state have the same noise; the trunk does not notice them, but for the steps they count."""
    gammas = (0.5, 0.9)
    agent, twin = (agent_of(Line(2, 3), [{"gamma": gamma} for gamma in gammas]) for _ in range(2))
    noises: list[np.ndarray] = []

    def sampler(streams: Any, steps: int, envs: int) -> Any:
        noise = streams.draw("actions", lambda rng: rng.integers(0, 2, (steps, envs)), 1)
        noises.append(noise)
        return lambda observations, t: (observations[..., 0].astype(np.int64) + noise[t]) % 2

    agent.policy.sampler = twin.policy.sampler = sampler  # type: ignore[method-assign]
    rollout, states = agent._trunk()
    actions = agent._first_actions(rollout.observations[::4])
    assert actions.shape == (3, 2, 2, 3) and np.array_equal(actions[:, 1] - actions[:, 0], np.ones((3, 2, 3)))
    noises.clear()
    ours = agent._branches(states, actions)
    assert len(noises) == len(states) == 3
    lengths = set()
    for s, k, run, n in np.ndindex(3, 2, 2, 3):
        place, age = int(rollout.observations[4 * s, run, n, 0]), int(states[s]["elapsed"][run, n])
        action, total = k, 0.0
        for i in range(5):
            total += gammas[run] ** i * (place + 2 * action) ** 2
            place, age = place + 2 * action - 1, age + 1
            if abs(place) == 3 or age == 6:
                break
            action = (place + int(noises[s][i, run, n])) % 2
        lengths.add(i)
        assert ours[s, k, run, n] == pytest.approx(total, rel=1e-12)
    assert lengths == {0, 1, 2, 3, 4}

    twin._trunk()
    steps = 12 * 3 + 3 * 2 * 5 * 3
    assert agent.envs.env_steps == steps == agent.steps_per_iteration and twin.envs.env_steps == 36
    assert agent.envs.drain_episodes() == twin.envs.drain_episodes()
    walk = np.random.default_rng(0).integers(0, 2, (20, 2, 3))
    for one in walk:
        for ours_now, alone in zip(agent.envs.step(one), twin.envs.step(one), strict=True):
            assert np.array_equal(ours_now, alone)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_branches_share_their_random_numbers(task: str) -> None:
    """With the same first action in all branches of a state, their returns are the same numbers, and not otherwise."""
    agent = make("trpo_vine", task, [SIZES] * 2, [1, 2])
    rollout, states = agent._trunk()
    actions = agent._first_actions(rollout.observations[::4])
    q_values = agent._branches(states, actions)
    same = agent._branches(states, np.repeat(actions[:, :1], actions.shape[1], 1))
    assert np.array_equal(same, np.repeat(same[:, :1], same.shape[1], 1))
    assert len(np.unique(same[:, 0])) > 1 or task == "CartPole-v1"  # pays 1 a step
    assert (q_values[:, 0] != q_values[:, 1]).all() or task == "CartPole-v1"


def test_environments_that_cannot_be_set_are_refused() -> None:
    class Stubborn(Line):
        def _save(self) -> dict[str, Any]:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"cannot give their state.*use trpo"):
        agent_of(Stubborn(1, 3), [{}])


@pytest.mark.parametrize(
    ("values", "named"), [({"branch_period": 5}, "branch_period"), ({"num_branches": 1}, "num_branches")]
)
def test_impossible_settings_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config("trpo_vine", None, values)


# ------------------------------------------------------------------------------------------------------- the surrogate
def test_self_normalised_gain_by_hand() -> None:
    """Two states with three branches: ratios 1, 2, 1 of Q = 3, 0, 0, and no change."""
    ratio = torch.tensor([[[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    q = torch.tensor([[[3.0, 0.0, 0.0], [5.0, 1.0, 0.0]]], dtype=torch.float64)
    for constant in (0.0, 100.0):
        advantages = (q + constant) - (q + constant).mean(-1, keepdim=True)
        gain = trpo_vine.self_normalised_gain(ratio.log(), torch.full_like(q, 1 / 3), advantages)
        assert gain.item() == pytest.approx((3 / 4 - 1) / 2)


class Settable(Spaces):
    """Environments that only say what they look like, and would have a state."""

    def state(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_gain_and_gradient_are_those_of_the_paper_s_estimators(spaces: Spaces) -> None:
    """Equation 15, the sum over all actions, and equation 16, in float64 from log pi alone; the gradient by autograd at
    pi_old, the gain at another policy."""
    agent = build("trpo_vine", Settable(**vars(spaces)), [SIZES] * 2, [0, 1])
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((3, 2, 3, 5)).astype(np.float32)
    actions = agent._first_actions(observations)
    count = 3
    assert actions.shape[:4] == (3, count, 2, 3)
    q_values = rng.standard_normal((3, count, 2, 3)) + 7.0
    batch = agent._prepare(observations, actions, q_values)
    gradient = from_vectors(agent._gradient(batch), agent.policy.shapes())

    def literal(weights: dict[str, Tensor], run: int, old: list[list[float]]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for b, (s, n) in enumerate(np.ndindex(3, 3)):
            policy = policy_of(weights, torch.from_numpy(observations[s, run, n]).double()[None])
            log_probs = [
                policy.log_prob(torch.from_numpy(np.asarray(actions[s, k, run, n]))[None])[0] for k in range(3)
            ]
            q = [float(q_values[s, k, run, n]) for k in range(count)]
            if spaces.num_actions:
                total = total + sum(lp.exp() * x for lp, x in zip(log_probs, q, strict=True))
                continue
            ratio = [(lp - (old[b][k] if old else lp.detach())).exp() for k, lp in enumerate(log_probs)]
            total = total + sum(r * x for r, x in zip(ratio, q, strict=True)) / sum(ratio)
        return total / 9

    before = [leaves(agent.parameters_of(run), torch.float64) for run in range(2)]
    values = [literal(weights, run, []) for run, weights in enumerate(before)]
    for run, weights in enumerate(before):
        by_autograd = torch.autograd.grad(values[run], list(weights.values()))
        for name, expected in zip(weights, by_autograd, strict=True):
            assert torch.allclose(gradient[name][run].double(), expected, rtol=1e-4, atol=1e-5), name
    for name, shape in agent.policy.shapes().items():
        agent.parameters.fill(name, rng.standard_normal((2, *shape)) / 3)
    gain = agent._compare(batch)[0]
    for run in range(2):
        after = leaves(agent.parameters_of(run), torch.float64)
        expected = literal(after, run, batch.old_log_probs[run].tolist()) - values[run]
        assert gain[run].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_the_bound_holds_in_every_run() -> None:
    """A run whose steps are all refused has its old policy to the bit; in the others the KL is at most delta."""
    runs = [SIZES | {"delta": delta, "kl_slack": slack} for delta, slack in ((0.01, 1.0), (0.1, 1.0), (0.01, 1e-12))]
    agent = make("trpo_vine", "Pendulum-v1", runs, [1, 2, 3])
    before = agent.parameters_of(2)
    for _ in range(3):
        metrics = agent.iterate()
        assert metrics["step_accepted"].tolist() == [True, True, False]
        assert (metrics["kl"] <= [0.01, 0.1, 0.0]).all() and (metrics["kl"][:2] > [1e-3, 1e-2]).all()
        assert (metrics["surrogate_gain"][:2] > 0).all() and metrics["surrogate_gain"][2] == 0
    assert all(np.array_equal(before[name], value) for name, value in agent.parameters_of(2).items())
    assert agent.envs.env_steps == 3 * agent.steps_per_iteration
