"""Every algorithm finds the known answers of the probe tasks, in every run of a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, PROBE_OF, VALUELESS, settings
from probes import PROBES, Probe

import algorithms
from algorithms.common.config import load_config, stack
from algorithms.common.recurrent_policy import Sequences

SEEDS = [3, 4, 5]
GAMMA = 0.5
PREDICTION = {"td_n"}  # of the uniformly random policy: the probes of actions are not for these
CASES = [
    pytest.param(algorithm, kind, probe, id=f"{algorithm}-{kind}-{probe.__name__}")
    for algorithm in algorithms.names()
    for kind in sorted(algorithms.load(algorithm).SUPPORTS)
    for probe in PROBES
    if algorithm not in PREDICTION or probe(1, 1, True).actions() is None
    if algorithm not in VALUELESS or probe(1, 1, True).actions() is not None
]


def values(agent: Any, observations: torch.Tensor) -> np.ndarray:
    """What the agent takes observations [R, B, O] to be worth, [R, B].

    It says so, or by the attribute in which it keeps its estimate: one line for a new way to keep it.
    """
    if hasattr(agent, "values"):
        return agent.values(observations.numpy())
    estimates = {
        "initial_carry": lambda _: first_values(agent, observations),
        "critic": lambda critic: critic(agent.parameters, observations).squeeze(-1),
        "net": lambda net: net(agent.parameters, observations).amax(-1),
    }
    name = next(name for name in estimates if hasattr(agent, name))
    return estimates[name](getattr(agent, name)).detach().numpy()


def first_values(agent: Any, observations: torch.Tensor) -> np.ndarray:
    """V where episodes begin, of an agent with a memory."""
    carry = torch.from_numpy(agent.initial_carry(observations.shape[1]))
    starts = torch.ones(len(carry), 1, carry.shape[1], dtype=torch.bool)
    return agent._forward(Sequences(observations, carry, starts)).values


def wrong(algorithm: str, agent: Any, envs: Probe) -> str:
    """What the agent answers wrongly by now, in any run; nothing if all is right."""
    questions = np.repeat(envs.questions()[None], len(SEEDS), 0)
    worth, best = envs.values(GAMMA), envs.actions()
    said = ""
    if worth is not None and algorithm not in VALUELESS:
        found = values(agent, torch.from_numpy(questions))
        if not np.abs(found - worth).max() < 0.15:
            said += f"values are {found.tolist()}, should be {worth}; "
    if best is not None:
        acted = agent.act(questions).reshape(len(SEEDS), -1)
        if not np.abs(acted - best).max() < 0.15:
            said += f"actions are {acted.tolist()}, should be {best}"
    return said


@pytest.mark.parametrize(("algorithm", "kind", "probe"), CASES)
def test_probe(algorithm: str, kind: str, probe: type[Probe]) -> None:
    """Asked every 1,000 env_steps; found is what is right twice in a row, or at the end of 6,000."""
    wanted = PROBE | PROBE_OF.get(algorithm, {})
    cfg = stack([load_config(algorithm, None, settings(algorithm, wanted, gamma=GAMMA))] * len(SEEDS))
    envs = probe(len(SEEDS), getattr(cfg, "num_envs", 1), kind != "continuous", kind == "tabular")
    agent = algorithms.load(algorithm).Agent(cfg, envs, SEEDS)
    right = 0
    for asked in range(1000, 6001, 1000):
        while envs.env_steps < asked:
            agent.iterate()
        mistakes = wrong(algorithm, agent, envs)
        right = 0 if mistakes else right + 1
        if right == 2:
            break
    assert not mistakes
    assert not envs.errors and not agent.diverged().any()


def test_the_probes_are_what_they_say() -> None:
    """A probe's values are the returns of its best actions."""
    for discrete, tabular in ((True, False), (False, False), (True, True)):
        for probe in PROBES:
            envs = probe(1, 50, discrete, tabular)
            observations = envs.reset([0])
            known = {float(q[0]): i for i, q in enumerate(envs.questions())}
            best, worth = envs.actions(), envs.values(GAMMA)
            start, returns, discount = observations[0, :, 0], np.zeros(50), 1.0
            going = np.ones(50, bool)
            for _ in range(40):
                chosen = [0.0 if best is None else best[known[float(o)]] for o in observations[0, :, 0]]
                actions = np.array(chosen)[None].astype(np.int64 if discrete else np.float32)
                step = envs.step(actions if discrete else actions[..., None])
                if tabular:
                    s, a = observations[0, :, 0].astype(int), actions[0]
                    assert np.array_equal(envs.model.next_states[s, a, 0], step.next_observations[0, :, 0])
                    assert np.array_equal(envs.model.rewards[s, a, 0], step.rewards[0])
                    assert np.array_equal(envs.model.terminations[s, a, 0], step.terminations[0])
                returns += discount * np.where(going, step.rewards[0], 0.0)
                discount *= GAMMA
                going &= ~step.terminations[0]
                observations = step.observations
            assert set(start.tolist()) <= set(known)
            if worth is not None:
                assert returns == pytest.approx([worth[known[float(o)]] for o in start])
            elif best is not None:
                assert returns == pytest.approx(np.zeros(50))
