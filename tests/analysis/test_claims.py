"""Every statement is decided rightly where the truth is known, in both directions, and stays open without its runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import one_run, write_experiment

from analysis import claims, decisions, load
from analysis.claims import Claim
from analysis.decisions import Assertion
from analysis.statistics import Interval


def decided(folder: Path) -> dict[str, Claim]:
    """id -> claim, from the run tree and again from what is shipped of it: both must agree."""
    shipped = load.ship(folder, folder.parent / "reference" / folder.name)
    found, again = ({one.id: one for one in claims.evaluate(load.load(path))} for path in (folder, shipped))
    assert {key: one.status for key, one in found.items()} == {key: one.status for key, one in again.items()}
    return found


# ---- assertions ----------------------------------------------------------------------------------------------------


def test_a_mean_by_hand() -> None:
    found = decisions.mean_above("x", np.array([1.0, 2.0, 3.0]), 2)  # s = 1, s / sqrt(3) = .577, t(.975, 2) = 4.303
    assert found.interval == pytest.approx((2.0, 2.0 - 2.484, 2.0 + 2.484), abs=1e-3)
    assert found.strict.high == pytest.approx(2.0 + 6.205 * 0.57735, abs=1e-3)  # t(.9875, 2)
    assert found.status == "inconclusive"
    assert found.needed() == "about 13 seeds would settle it"  # 3 (1.654 * 2.484 / 2)^2 = 12.66
    assert decisions.mean_above("x", np.array([4.0, 5.0, 6.0]), 2).status == "holds"
    assert decisions.mean_above("x", np.array([1.0, 2.0, 3.0]), 2, least=9.0).status == "fails"
    assert decisions.mean_above("x", np.array([1.0]), 2).status == "inconclusive"
    assert "at least 3" in decisions.mean_above("x", np.array([5.0, 5.0]), 1).told()


def test_a_share_has_wilsons_interval() -> None:
    found = decisions.share_above("x", pd.Series([True] * 100), 3, 0.9)
    assert found.status == "holds" and found.interval.low == pytest.approx(100 / (100 + 1.96**2), abs=1e-3)
    assert decisions.share_above("x", pd.Series([True] * 92 + [False] * 8), 3, 0.9).status == "inconclusive"
    few = decisions.share_above("x", pd.Series([True] * 20), 3, 0.9)  # n / (n + 1.96^2) > .9 from 35 on
    assert few.status == "inconclusive" and few.needed() == "about 35 seeds would settle it"
    assert decisions.share_above("x", pd.Series([True] * 50 + [False] * 50), 3, 0.9).status == "fails"
    assert decisions.share_above("x", pd.Series([], dtype=bool), 3, 0.9).status == "inconclusive"


def test_all_must_hold_and_one_may_fail() -> None:
    def one(low: float, high: float, strict: float) -> Assertion:
        return Assertion("x", 9, Interval((low + high) / 2, low, high), Interval(0.0, 0.0, strict))

    holds, fails, unclear = one(1, 2, 3), one(-2, -1, -0.5), one(-1, 1, 2)
    nearly = one(-2, -0.1, 0.1)  # below at 5 %, but not at 5 % / k
    assert decisions.decide([holds, holds])[0] == "holds"
    assert decisions.decide([holds, unclear])[0] == "inconclusive"
    assert decisions.decide([holds, nearly])[0] == "inconclusive"
    assert decisions.decide([unclear, fails])[0] == "fails"


def test_true_nulls_seldom_hold_or_fail() -> None:
    rng = np.random.default_rng(0)
    said = [decisions.mean_above("x", rng.standard_normal(5), 6).status for _ in range(2000)]
    assert said.count("holds") / 2000 < 0.035 and said.count("fails") / 2000 < 0.012  # 2.5 % and 2.5 % / 6
    values = rng.standard_normal((300, 2, 5, 4))
    said = [decisions.improvement_above("x", x, y, 6).status for x, y in values]
    assert said.count("holds") / 300 < 0.06 and said.count("fails") / 300 < 0.03


# ---- S1 ------------------------------------------------------------------------------------------------------------


def cliff(root: Path, online: float, shortest: float, safe: float = -17.0, seeds: int = 100) -> Path:
    """SARSA earns `online` more per episode; a share `shortest` of Q-learning's greedy paths is the shortest."""
    folder = write_experiment(root, "cliff_walking", score={"statistic": "first_500_training_episodes"})
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for algorithm, level in (("sarsa", -50.0 + online), ("q_learning", -50.0)):
            path = safe if algorithm == "sarsa" else -13.0 if seed < shortest * seeds else -15.0
            one_run(folder, "CliffWalking-v1", algorithm, "default", seed,
                    returns=level + 30 * rng.standard_normal(520), evaluations={500: -100.0, 1000: path})  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ({"online": 20.0, "shortest": 1.0}, "holds"),
        ({"online": -20.0, "shortest": 1.0}, "fails"),
        ({"online": 20.0, "shortest": 0.5}, "fails"),
        ({"online": 20.0, "shortest": 1.0, "safe": -13.0}, "fails"),  # SARSA's path is no longer
        ({"online": 20.0, "shortest": 0.92}, "inconclusive"),
        ({"online": 20.0, "shortest": 1.0, "seeds": 10}, "inconclusive"),  # ten of ten are not yet over 90 %
    ],
)
def test_cliff(tmp_path: Path, truth: dict[str, Any], status: str) -> None:
    (claim,) = decided(cliff(tmp_path, **truth)).values()
    assert claim.id == "S1" and claim.status == status, claim.evidence
    assert "SARSA" in claim.evidence and "n = " in claim.evidence


def test_cliff_needs_both_and_the_right_score(tmp_path: Path) -> None:
    folder = cliff(tmp_path, 20.0, 1.0, seeds=3)
    for path in (folder / "CliffWalking-v1" / "sarsa").glob("*/*"):
        path.unlink()
    results = load.load(folder)
    assert decisions.cliff(results) == ("open", "no run of sarsa has a score yet")
    assert decisions.cliff(load.load(cliff(tmp_path / "b", 20.0, 1.0, seeds=3), "area_under_curve"))[0] == "open"


# ---- S2 ------------------------------------------------------------------------------------------------------------


def walk(root: Path, depth: float, slope: float = 0.0, noise: float = 0.02, gone: bool = False) -> Path:
    """RMS errors whose best n is 4 by `depth`, and smaller the smaller n by `slope`; the best alpha falls with n, and
    large ones of large n have no error."""
    score = {"statistic": "final_metric:rms_error_first_10", "better": "lower"}
    figure = {"kind": "sweep", "x": "alpha", "lines": "n", "title": "RMS error"}
    folder = write_experiment(root, "random_walk", score=score, report={"figures": [figure]})
    for n, alpha in itertools.product((1, 2, 4, 16), (0.2, 0.4, 0.8)):
        if gone and (n, alpha) == (2, 0.2):
            continue
        for seed in range(12):
            rng = np.random.default_rng([seed, n, int(10 * alpha)])
            error = 0.4 + depth * abs(np.log2(n) - 2) + slope * np.log2(n) + 0.2 * abs(np.log2(alpha * np.sqrt(n)))
            error += noise * rng.standard_normal()
            error = np.nan if alpha * n > 6 and seed == 3 else error
            config = {"n": float(n), "alpha": alpha, "gamma": 1.0}
            values = ([500, 1000], [np.nan, error])
            one_run(folder, "RandomWalk19-v0", "td_n", f"n-{n} alpha-{alpha}", seed, config=config,
                    config_digest=f"{n}{alpha}", metrics={"rms_error_first_10": values})  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ({"depth": 0.05}, "holds"),
        ({"depth": 0.0, "slope": 0.1}, "fails"),
        ({"depth": 0.001, "noise": 0.05}, "inconclusive"),
        ({"depth": 0.05, "gone": True}, "holds"),  # the grid need not be full
    ],
)
def test_random_walk(tmp_path: Path, truth: dict[str, Any], status: str) -> None:
    (claim,) = decided(walk(tmp_path, **truth)).values()
    assert claim.id == "S2" and claim.status == status, claim.evidence
    if status == "holds":
        assert "n = 1 (alpha 0.8) minus n = 4 (alpha 0.4)" in claim.evidence
        assert "n = 6: holds" in claim.evidence  # half of the seeds judge


def test_choosing_does_not_favour(tmp_path: Path) -> None:
    """Where all settings are equal, the best of many on the seeds that chose it is nothing on the others."""
    folder = write_experiment(tmp_path, "random_walk", score={"statistic": "final_metric:rms_error_first_10"})
    rng = np.random.default_rng(0)
    table = pd.DataFrame([("t", "td_n", f"{n} {a}", seed, "finished", 0.0) for n in range(1, 6) for a in range(8)
                          for seed in range(20)], columns=[*load.KEYS, "status", "score"])  # fmt: skip
    configs = {("td_n", f"{n} {a}"): {"n": n, "alpha": a} for n in range(1, 6) for a in range(8)}
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "configs", lambda results, settings: configs)
        for _ in range(60):
            runs = table.assign(score=rng.standard_normal(len(table)))
            statistic = "final_metric:rms_error_first_10"
            results = load.Results({}, runs, pd.DataFrame(), statistic, folder, False)
            said.append(decisions.random_walk(results)[0])
    assert said.count("holds") <= 1 and said.count("inconclusive") > 50


# ---- S3 ------------------------------------------------------------------------------------------------------------


def excess(root: Path, dqn: float, double: float, seeds: int = 10) -> Path:
    """Mean overestimation of both; in the first half of training the values are far too low."""
    figure = {"kind": "difference", "of": ["estimated_value", "discounted_return"]}
    folder = write_experiment(root, "overestimation", report={"figures": [figure]})
    at = list(range(100, 1001, 100))
    for seed, (name, more) in itertools.product(range(seeds), (("dqn", dqn), ("double_dqn", double))):
        rng = np.random.default_rng([seed, len(name)])
        gap = np.where(np.array(at) > 500, more, -50.0) + rng.standard_normal(10)
        metrics = {"estimated_value": (at, 60.0 + gap), "discounted_return": (at, np.full(10, 60.0)), "loss": (at, gap)}
        one_run(folder, "CartPole-v1", name, "default", seed, metrics=metrics)
    return folder


@pytest.mark.parametrize(
    ("dqn", "double", "status"),
    [(5.0, 1.0, "holds"), (5.0, 9.0, "fails"), (-5.0, -9.0, "fails"), (5.0, 5.0, "inconclusive")],
)
def test_overestimation(tmp_path: Path, dqn: float, double: float, status: str) -> None:
    """One half of S3; the claim is in test_claims_off_policy.py."""
    folder = excess(tmp_path, dqn, double)
    for path in (folder, load.ship(folder, tmp_path / "reference" / folder.name)):
        assert decisions.overestimation(load.load(path))[0] == status


def test_overestimation_without_values_is_open(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, "overestimation")
    for name in ("dqn", "double_dqn"):
        one_run(folder, "CartPole-v1", name, "default", 0, metrics={"loss": ([1000], [1.0])})
    assert decisions.overestimation(load.load(folder))[0] == "open"


# ---- S4, S5 --------------------------------------------------------------------------------------------------------


def parts(root: Path, alone: float, without: float, seeds: int = 10, tasks: int = 2, **levels: float) -> Path:
    """DQN is at 0, each part alone at `alone`, Rainbow at 10, without one part at `without`; spread 1."""
    folder = write_experiment(root, "minatar_parts")
    level = {"dqn": 0.0, "rainbow": 10.0} | dict.fromkeys(decisions.PARTS, alone)
    level |= {f"no-{part}": without for part in decisions.PARTS} | levels
    for (place, (variant, mean)), seed, task in itertools.product(enumerate(level.items()), range(seeds), range(tasks)):
        value = mean + np.random.default_rng([place, seed, task]).standard_normal()
        one_run(folder, f"Game{task}-v1", "rainbow", variant, seed, returns=[value] * 3)
    return folder


@pytest.mark.parametrize(
    ("truth", "s4", "s5"),
    [
        ({"alone": 5.0, "without": 5.0}, "holds", "holds"),
        ({"alone": -5.0, "without": 5.0}, "holds", "fails"),
        ({"alone": 5.0, "without": 10.0}, "inconclusive", "holds"),
        ({"alone": 5.0, "without": 5.0, "no-noisy": 15.0, "noisy": -5.0}, "fails", "fails"),
        ({"alone": 5.0, "without": 5.0, "double": 0.0}, "holds", "holds"),  # S5 does not name double Q-learning
        ({"alone": 0.3, "without": 9.7, "seeds": 4}, "inconclusive", "inconclusive"),
        ({"alone": 5.0, "without": 5.0, "seeds": 2}, "inconclusive", "inconclusive"),  # too few to say anything
    ],
)
def test_parts(tmp_path: Path, truth: dict[str, Any], s4: str, s5: str) -> None:
    found = decided(parts(tmp_path, **truth))
    assert (found["S4"].status, found["S5"].status) == (s4, s5), found
    assert found["S4"].evidence.count("P(rainbow over") == 12 and found["S5"].evidence.count("over dqn)") == 6
    if "inconclusive" in (s4, s5):
        assert "seeds" in found["S4"].evidence


def test_parts_without_a_variant_are_open(tmp_path: Path) -> None:
    folder = parts(tmp_path, 5.0, 5.0, seeds=1)
    for path in folder.glob("*/rainbow+no-dueling/*/*"):
        path.unlink()
    found = {one.id: one for one in claims.evaluate(load.load(folder))}
    assert found["S4"].status == "open" and "no-dueling" in found["S4"].evidence
    assert found["S5"].status == "inconclusive"


# ---- S21 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solve", "status"),
    [((20, 20), "holds"), ((20, 19), "inconclusive"), ((20, 8), "fails"), ((0, 20), "fails")],
)
def test_cartpole(tmp_path: Path, solve: tuple[int, int], status: str) -> None:
    """Whoever solves it reaches 500 and then forgets; the others reach 460."""
    folder = write_experiment(tmp_path, "cartpole", score={"statistic": "final_100_training_episodes"})
    for algorithm, count in zip(("double_dqn", "vpg"), solve, strict=True):
        for seed in range(20):
            best = 500.0 if seed < count else 460.0
            returns = np.repeat([20.0, best, 100.0], 200)
            one_run(folder, "CartPole-v1", algorithm, "default", seed, steps=6000, returns=returns)
    (claim,) = decided(folder).values()
    assert claim.id == "S21" and claim.status == status, claim.evidence
