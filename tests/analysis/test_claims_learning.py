"""The statements about the course of learning are decided rightly where the truth is known, in both directions."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic import one_run, write_experiment
from test_claims import decided

from analysis import decisions_learning, load


def test_cvar_of_drawdown_by_hand() -> None:
    """Drawdowns 0 0 4 2 0, of which the 95th percentile is 3.6; the values' 95th percentile is 9.2, the rise 8.2."""
    found = decisions_learning.cvar_of_drawdown(np.array([1.0, 6.0, 2.0, 4.0, 10.0]))
    assert found == pytest.approx(4.0 / 8.2)
    assert decisions_learning.cvar_of_drawdown(np.array([1.0, 2.0, 3.0])) == 0.0
    assert decisions_learning.cvar_of_drawdown(np.array([3.0, 2.0, 1.0])) == math.inf
    many = np.concatenate([np.linspace(0.0, 99.0, 100), [89.0] * 98, [49.0, 59.0]])  # falls by 10 for long, 50 and 40
    assert decisions_learning.cvar_of_drawdown(many) == pytest.approx(
        (50 + 40 + 98 * 10) / 100 / np.percentile(many, 95)
    )


# ---- S9 ------------------------------------------------------------------------------------------------------------


def trust_region(root: Path, kl: float = 0.0099, falls: tuple[float, float] = (5.0, 40.0), seeds: int = 8) -> Path:
    """TRPO's largest KL, and how far the evaluations of TRPO and of DDPG fall on their way from 0 to 100."""
    folder = write_experiment(root, "trust_region", score={"statistic": "area_under_curve"})
    for seed, (name, fall) in itertools.product(range(seeds), zip(("trpo", "ddpg"), falls, strict=True)):
        rng = np.random.default_rng([seed, len(name), name == "ddpg"])
        values = np.linspace(0.0, 100.0, 20) - fall * (np.arange(20) % 4 == 3) + rng.standard_normal(20)
        values -= values * (fall > 1000)
        config = {"delta": 0.01, "num_envs": 1, "num_steps": 100} if name == "trpo" else {"tau": 0.01}
        at = list(range(100, 1001, 100))
        metrics = {"kl": (at, np.where(np.array(at) == 500, kl, 0.005))} if name == "trpo" else {}
        one_run(folder, "Hopper-v5", name, "default", seed, returns=[1.0] * 10, config=config, config_digest=name,
                evaluations=dict(zip(range(50, 1001, 50), values, strict=True)), metrics=metrics)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ({}, "holds"),
        ({"kl": 0.01}, "holds"),
        ({"kl": 0.0101}, "fails"),
        ({"falls": (40.0, 5.0)}, "fails"),
        ({"falls": (20.0, 20.0)}, "inconclusive"),
        ({"falls": (5.0, 1e4)}, "holds"),  # DDPG never rises
        ({"seeds": 2}, "inconclusive"),
    ],
)
def test_trust_region(tmp_path: Path, truth: dict, status: str) -> None:
    (claim,) = decided(trust_region(tmp_path, **truth)).values()
    assert claim.id == "S9" and claim.status == status, claim.evidence
    exceeding = truth.get("seeds", 8) if truth.get("kl", 0) > 0.01 else 0
    assert f"{exceeding} of {10 * truth.get('seeds', 8)} updates of TRPO exceed delta" in claim.evidence


def test_a_run_that_broke_off_is_at_the_greatest_risk(tmp_path: Path) -> None:
    folder = trust_region(tmp_path, seeds=3)
    one_run(folder, "Hopper-v5", "ddpg", "default", 1, returns=[1.0] * 10, evaluations={50: 1.0, 100: 90.0},
            config={"tau": 0.01}, config_digest="ddpg", status="diverged")  # fmt: skip
    found = decisions_learning.risks(load.load(folder), "ddpg", "Hopper-v5")
    assert np.isinf(found).tolist() == [False, True, False]


def test_every_update_must_be_there(tmp_path: Path) -> None:
    folder = trust_region(tmp_path, seeds=3)
    at = list(range(200, 1001, 200))  # every other one
    config = {"delta": 0.01, "num_envs": 1, "num_steps": 100}
    one_run(folder, "Hopper-v5", "trpo", "default", 1, returns=[1.0] * 10, evaluations={1000: 1.0}, config=config,
            config_digest="trpo", metrics={"kl": (at, [0.005] * 5)})  # fmt: skip
    (claim,) = decided(folder).values()
    assert claim.status == "open" and "1 runs of trpo lack an update's KL" in claim.evidence


# ---- S11 -----------------------------------------------------------------------------------------------------------


def acktr_cost(root: Path, **gain: float) -> Path:
    """ACKTR's area is above A2C's by so much on each task with the better step size, which is the first for both."""
    folder = write_experiment(root, "acktr_cost", score={"statistic": "area_under_curve"})
    for name, task, place, seed in itertools.product(("acktr", "a2c"), ("CartPole", "Hopper"), range(2), range(8)):
        rng = np.random.default_rng([seed, len(name), len(task), place])
        level = 100.0 - 50.0 * place + gain.get(task, 0.0) * (name == "acktr") + rng.standard_normal()
        rate = (0.25, 0.03)[place] if name == "acktr" else (7e-4, 7e-3)[place]
        one_run(folder, f"{task}-v1", name, f"{rate}", seed, returns=[level] * 50, config={"learning_rate": rate},
                config_digest=f"{name}{rate}")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("gain", "status"),
    [
        ({"CartPole": 20.0, "Hopper": 20.0}, "holds"),
        ({"CartPole": 20.0, "Hopper": -20.0}, "fails"),
        ({"CartPole": 20.0}, "inconclusive"),
    ],
)
def test_acktr_cost(tmp_path: Path, gain: dict[str, float], status: str) -> None:
    (claim,) = decided(acktr_cost(tmp_path, **gain)).values()
    assert claim.id == "S11" and claim.status == status, claim.evidence
    assert "the cost of an update is not decided here" in claim.evidence


def test_acktr_cost_needs_both(tmp_path: Path) -> None:
    folder = acktr_cost(tmp_path)
    for path in folder.glob("*/a2c*/*/*"):
        path.unlink()
    assert [claim.status for claim in decided(folder).values()] == ["open"]


# ---- S14 -----------------------------------------------------------------------------------------------------------


def workers(root: Path, frames: dict[int, float], seconds: dict[int, float], size: int = 0) -> Path:
    """One-step Q with k workers reaches the threshold after 10,000 env_steps / frames[k], A3C always after 10,000; the
    group of k workers takes 100 s / seconds[k], and has 10 runs, and `size` more for each further worker."""
    folder = write_experiment(root, "workers", score={"statistic": "area_under_curve"})
    for name, count, seed in itertools.product(decisions_learning.LEARNERS, (1, 2, 4), range(8)):
        rng = np.random.default_rng([seed, count, len(name)])
        gain = 1.0 if name == "a3c" else frames.get(count, 1.0)
        needed = 10_000 / gain * math.exp(0.05 * rng.standard_normal())
        evaluations = {at: 20.0 + 480.0 * (at >= needed) for at in range(100, 20_001, 100)}
        more = {"wall_seconds": 100.0 / seconds.get(count, 1.0), "group_size": 10 + size * (count - 1)}
        one_run(folder, "CartPole-v1", name, f"{count}", seed, steps=20_000, config_digest=f"{name}{count}",
                evaluations=evaluations, config={"num_envs": count}, **more)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("frames", "seconds", "status"),
    [
        ({2: 1.5, 4: 2.0}, {2: 1.9, 4: 1.9}, "holds"),
        ({2: 1.0, 4: 1.0}, {2: 1.9, 4: 1.9}, "inconclusive"),  # as many steps: not more than linear
        ({2: 0.8, 4: 0.8}, {2: 1.9, 4: 1.9}, "inconclusive"),  # A3C's best is to need as many
        ({2: 1.5, 4: 2.0}, {2: 0.6, 4: 1.9}, "fails"),  # two are slower than one; four do not count on two cores
    ],
)
def test_workers(tmp_path: Path, frames: dict, seconds: dict, status: str) -> None:
    (claim,) = decided(workers(tmp_path, frames, seconds)).values()
    assert claim.id == "S14" and claim.status == status, claim.evidence
    assert "4 workers" not in claim.evidence and "on 2 cores" in claim.evidence
    if status == "holds":
        assert "async_one_step_q: log of the env_steps of one worker over those of 4" in claim.evidence


def test_workers_need_groups_of_one_size(tmp_path: Path) -> None:
    (claim,) = decided(workers(tmp_path, {}, {}, size=2)).values()
    assert claim.status == "open" and "groups of one size" in claim.evidence
