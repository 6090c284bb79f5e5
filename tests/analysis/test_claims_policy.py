"""The statements about policy gradients are decided rightly where the truth is known, in both directions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import one_run, write_experiment
from test_claims import decided

from analysis import decisions_policy, load


def test_shares_apart_by_hand() -> None:
    """Newcombe 1998, table II: 56/70 and 48/80 differ by 0.2 [0.0524, 0.3339]."""
    one, other = [True] * 56 + [False] * 14, [True] * 48 + [False] * 32
    found = decisions_policy.shares_apart("x", one, other, 1)
    assert found.interval == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5) and found.status == "holds"
    assert decisions_policy.shares_apart("x", other, one, 1).status == "fails"
    assert decisions_policy.shares_apart("x", other, one, 1, least=-0.3).status == "inconclusive"
    assert decisions_policy.shares_apart("x", [], one, 1).status == "inconclusive"


# ---- S6 ------------------------------------------------------------------------------------------------------------


def variance(root: Path, mean: float, value: float, gain: float) -> Path:
    """Without a baseline |g|^2 is 100 times a seed's own factor; learning with a value gives `gain` more."""
    folder = write_experiment(root, "variance")
    for seed, (kind, size, more) in itertools.product(
        range(8), (("none", 1.0, 0.0), ("mean", mean, 0.0), ("value", value, gain))
    ):
        rng = np.random.default_rng([seed, len(kind)])
        squares = 100.0 * (1 + seed) * size * np.exp(0.1 * rng.standard_normal(10))
        metrics = {"squared_grad_norm": (list(range(100, 1001, 100)), squares)}
        one_run(folder, "CartPole-v1", "reinforce", f"{kind}-fixed", seed, metrics=metrics)
        score = 50.0 + more + rng.standard_normal()
        one_run(folder, "CartPole-v1", "reinforce", f"{kind}-learning", seed, returns=[score])
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ((0.5, 0.3, 20.0), "holds"),
        ((0.5, 2.0, 20.0), "fails"),
        ((0.5, 0.3, -20.0), "fails"),
        ((1.0, 0.3, 20.0), "inconclusive"),
    ],
)
def test_variance(tmp_path: Path, truth: tuple[float, float, float], status: str) -> None:
    (claim,) = decided(variance(tmp_path, *truth)).values()
    assert claim.id == "S6" and claim.status == status, claim.evidence
    if status == "holds":
        assert "mean 2" in claim.evidence and "value 3" in claim.evidence


# ---- S7 ------------------------------------------------------------------------------------------------------------


def entropy(root: Path, a2c: float, ppo: float, noise: float = 5.0) -> Path:
    """On MountainCar the coefficient 0.01 is worth so much, 0.1 makes for the worst."""
    folder = write_experiment(root, "entropy")
    levels = {0.0: 0.0, 0.01: 1.0, 0.1: -1.0}
    for seed, (name, worth), (coefficient, sign) in itertools.product(
        range(16), (("a2c", a2c), ("ppo", ppo)), levels.items()
    ):
        rng = np.random.default_rng([seed, int(1000 * coefficient), len(name)])
        score = -150.0 + sign * worth + noise * rng.standard_normal()
        one_run(folder, "MountainCar-v0", name, f"ent_coef={coefficient:g}", seed, returns=[score],
                config={"ent_coef": coefficient}, config_digest=f"{name}{coefficient}")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [((40.0, 40.0), "holds"), ((0.0, 40.0), "inconclusive"), ((40.0, 0.0), "inconclusive")],
)
def test_entropy(tmp_path: Path, truth: tuple[float, float], status: str) -> None:
    (claim,) = decided(entropy(tmp_path, *truth)).values()
    assert claim.id == "S7" and claim.status == status, claim.evidence
    assert ("P(ppo with 0.01 over 0)" in claim.evidence) == (truth[1] > 0) or truth[1] == 0


def test_entropy_that_harms_fails(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, "entropy")
    for seed, name, coefficient in itertools.product(range(16), ("a2c", "ppo"), (0.0, 0.1)):
        score = -150.0 - 400 * coefficient + np.random.default_rng([seed, len(name)]).standard_normal()
        one_run(folder, "MountainCar-v0", name, f"ent_coef={coefficient:g}", seed, returns=[score],
                config={"ent_coef": coefficient}, config_digest=f"{name}{coefficient}")  # fmt: skip
    assert decisions_policy.entropy(load.load(folder))[0] == "fails"


# ---- S8 ------------------------------------------------------------------------------------------------------------


def collapse(root: Path, bold: float, small: float, trust: float, slow: float = 0.3) -> Path:
    """Shares of runs that fall back to 10 from 100: with the step size 0.01, with 0.001, and of TRPO and PPO; the speed
    of the small step size beside the large one's 1."""
    folder = write_experiment(root, "collapse", score={"statistic": "area_under_curve"})
    settings: dict[tuple[str, str], tuple[dict[str, Any], float, float]] = {
        ("vpg", "small"): ({"learning_rate": 0.001}, small, slow),
        ("vpg", "large"): ({"learning_rate": 0.01}, bold, 1.0),
        ("trpo", "delta=0.01"): ({"delta": 0.01}, trust, 1.0),
        ("ppo", "clip_coef=0.2"): ({"clip_coef": 0.2}, trust, 1.0),
    }
    for ((algorithm, variant), (config, share, speed)), seed in itertools.product(settings.items(), range(40)):
        rng = np.random.default_rng([seed, len(variant)])
        rise = 10 + 90 * np.minimum(1.0, speed * np.arange(400) / 100)
        falls = rng.permutation(40)[0] < 40 * share
        returns = np.where(np.arange(400) > 240, 10.0, rise) if falls else rise
        one_run(folder, "CartPole-v1", algorithm, variant, seed, returns=returns + rng.standard_normal(400),
                config=config, config_digest=variant)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ({"bold": 0.5, "small": 1.0, "trust": 0.0}, "holds"),
        ({"bold": 0.9, "small": 0.0, "trust": 0.0}, "fails"),  # the small step size is the safer one
        ({"bold": 0.1, "small": 0.2, "trust": 0.9}, "fails"),  # trust regions collapse
        ({"bold": 0.6, "small": 0.7, "trust": 0.0}, "inconclusive"),  # a tenth is not told apart,
    ],
)
def test_collapse(tmp_path: Path, truth: dict[str, float], status: str) -> None:
    (claim,) = decided(collapse(tmp_path, **truth)).values()
    assert claim.id == "S8" and claim.status == status, claim.evidence
    assert "area under the curve with 0.01 minus with 0.001" in claim.evidence


# ---- S12, S13 ------------------------------------------------------------------------------------------------------


def asynchronous(root: Path, seeds: int = 12, **gain: float) -> Path:
    """Everyone ends at 300 on CartPole and at -200 on Acrobot with the step size 0.002, a hundred lower with 0.007, and
    `gain` higher."""
    folder = write_experiment(root, "asynchronous", score={"statistic": "last_evaluation_10_episodes"})
    everyone = [("a2c", None), ("a3c", "hogwild"), ("a3c", "serial")]
    everyone += [(name, "hogwild") for name in decisions_policy.VALUE_BASED]
    levels = {"CartPole-v1": 300.0, "Acrobot-v1": -200.0}
    for (name, schedule), task, rate, seed in itertools.product(everyone, levels, (0.002, 0.007), range(seeds)):
        rng = np.random.default_rng([len(name), len(schedule or ""), len(task), int(rate * 1000), seed])
        score = levels[task] + gain.get(schedule if name == "a3c" else name, 0.0) + rng.standard_normal()
        score -= 100.0 * (rate > 0.005)
        config = {"learning_rate": rate, "gamma": 0.99} | ({"schedule": schedule} if schedule else {})
        one_run(folder, task, name, f"{schedule} {rate}", seed, evaluations={1000: score}, config=config,
                config_digest=f"{name}{schedule}{rate}")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("gain", "s12", "s13"),
    [
        ({"async_one_step_q": -20, "async_one_step_sarsa": -20, "async_nstep_q": -20}, "holds", "holds"),
        ({"async_nstep_q": 20.0}, "holds", "fails"),
        ({"a2c": -30.0}, "fails", "inconclusive"),
        ({"a2c": 30.0, "hogwild": -40.0}, "fails", "fails"),  # worse than the serial schedule: it does harm
    ],
)
def test_asynchronous(tmp_path: Path, gain: dict[str, float], s12: str, s13: str) -> None:
    found = decided(asynchronous(tmp_path, **gain))
    assert (found["S12"].status, found["S13"].status) == (s12, s13), [claim.evidence for claim in found.values()]


def test_asynchronous_needs_every_method(tmp_path: Path) -> None:
    folder = asynchronous(tmp_path, seeds=3)
    for name in ("a2c", "async_nstep_q"):
        for path in folder.glob(f"*/*{name}*/*/*"):
            path.unlink()
    assert {claim.status for claim in decided(folder).values()} == {"open"}


# ---- S10, T4 -------------------------------------------------------------------------------------------------------


def figure_3(root: Path, seeds: int = 6, **levels: float) -> Path:
    folder = write_experiment(root, "ppo_figure3")
    everyone = {"ppo": 10.0} | dict.fromkeys(decisions_policy.FIGURE_3, 5.0) | levels
    for (place, (name, level)), seed, task in itertools.product(enumerate(everyone.items()), range(seeds), range(2)):
        score = level + np.random.default_rng([place, seed, task]).standard_normal()
        variant = "clip-0.2" if name == "ppo" else "default"
        one_run(folder, f"Task{task}-v5", name, variant, seed, returns=[score])
    return folder


@pytest.mark.parametrize(
    ("levels", "t4", "s10"),
    [
        ({}, "holds", "holds"),
        ({"trpo": 15.0}, "fails", "fails"),
        ({"cem": 15.0}, "fails", "holds"),
        ({"trpo": 10.0}, "inconclusive", "inconclusive"),
    ],
)
def test_figure_3(tmp_path: Path, levels: dict[str, float], t4: str, s10: str) -> None:
    found = decided(figure_3(tmp_path, **levels))
    assert (found["T4"].status, found["S10"].status) == (t4, s10), found


def test_figure_3_tells_normalized_advantages_beside_the_verdict(tmp_path: Path) -> None:
    folder = figure_3(tmp_path, seeds=3, trpo=15.0)
    for seed, task in itertools.product(range(3), range(2)):
        one_run(folder, f"Task{task}-v5", "ppo", decisions_policy.NORMALIZED, seed, returns=[20.0])
    found = decided(folder)["S10"]
    assert found.status == "fails" and "P(ppo over trpo) = 0 " in found.evidence.partition("beside")[0], found
    assert "with normalized advantages: P(ppo over trpo) = 1 " in found.evidence


def test_figure_3_without_a_method_is_open_for_t4_alone(tmp_path: Path) -> None:
    folder = figure_3(tmp_path, seeds=3)
    for path in folder.glob("*/cem/*/*"):
        path.unlink()
    results = load.load(folder)
    assert decisions_policy.figure_3(results)[0] == "open" and "cem" in decisions_policy.figure_3(results)[1]
    assert decisions_policy.ppo_over_trpo(results)[0] != "open"
