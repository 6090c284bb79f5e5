"""Statistics of one run, score matrices and normalization, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis import scores
from analysis.scores import Anchors, Episodes


def run(
    returns: list[float], length: int = 10, steps: int | None = None, evaluations: dict[int, list[float]] | None = None
) -> Episodes:
    """Training episodes of equal length, and evaluations: env_steps -> returns."""
    rows = [(length * (i + 1), value, True) for i, value in enumerate(returns)]
    rows += [(at, value, False) for at, values in (evaluations or {}).items() for value in values]
    rows.sort(key=lambda row: row[0])
    at, values, train = (np.array([row[i] for row in rows]) for i in range(3))
    return Episodes(
        at.astype(np.int64),
        values.astype(float),
        np.full(len(rows), length),
        train.astype(bool),
        steps or length * len(returns),
    )


def test_last_100_training_episodes() -> None:
    assert scores.final_100_training_episodes(run([0.0] * 50 + [float(i) for i in range(100)])) == 49.5
    assert scores.final_100_training_episodes(run([1.0, 2.0, 6.0])) == 3.0  # fewer: all of them
    assert math.isnan(scores.final_100_training_episodes(run([], steps=10)))
    assert scores.final_100_training_episodes(run([1.0], evaluations={10: [100.0]})) == 1.0


def test_evaluations_by_hand() -> None:
    episodes = run([0.0] * 4, evaluations={20: [1.0, 3.0], 40: [8.0, 0.0]})
    assert scores.last_evaluation_10_episodes(episodes) == 3.0
    assert scores.max_over_evaluations(episodes) == 4.0
    where, values = scores.evaluation_curve(episodes)
    assert where.tolist() == [20, 40] and values.tolist() == [2.0, 4.0]
    assert math.isnan(scores.max_over_evaluations(run([1.0])))


def test_td3s_maximum_is_of_the_mean_curve() -> None:
    curves = np.array([[0.0, 10.0, 2.0], [0.0, 0.0, 4.0]])
    assert scores.max_over_evaluations_of_mean_curve(curves) == 5.0  # not (10 + 4) / 2


def test_the_metric_of_td3_gives_its_table_from_its_curves() -> None:
    """Mean and spread (population) at the step of the largest mean, to the digits of Table 1; Reacher's curves are of
    other runs than its entry (results/published)."""
    curves = pd.read_csv(scores.PUBLISHED / "td3_learning_curves.csv")
    table = pd.read_csv(scores.PUBLISHED / "mujoco_published.csv")
    table = table[(table["algorithm"] == "TD3") & table["metric"].str.startswith("max-over-time")].set_index("env")
    assert len(table) == 7
    for env, rows in curves[curves["step"] > 0].groupby("env"):
        wide = rows.pivot(index="seed", columns="step", values="eval_return").to_numpy()  # [n, C]
        largest = scores.max_over_evaluations_of_mean_curve(wide)
        spread = wide[:, np.argmax(wide.mean(0))].std()
        printed = (round(largest, 2), round(spread, 2)) == (table.at[env, "score"], round(table.at[env, "std"], 2))
        assert printed == (env != "Reacher"), (env, largest, spread)


def test_training_curve_by_hand() -> None:
    episodes = run([float(i) for i in range(200)], length=1, steps=200)
    curve = scores.training_curve(episodes, points=4)  # at 50, 100, 150, 200 finished episodes
    assert curve.tolist() == [
        np.mean(range(50)),
        np.mean(range(100)),
        np.mean(range(50, 150)),
        np.mean(range(100, 200)),
    ]
    assert curve[-1] == scores.final_100_training_episodes(episodes)


def test_training_curve_is_nan_before_the_first_episode_and_after_the_end() -> None:
    curve = scores.training_curve(run([1.0, 3.0], length=30, steps=200), points=10)  # episodes end at 30 and 60
    assert np.isnan(curve[0]) and curve[1] == 1.0 and curve[2] == 2.0
    assert curve[3] == 2.0  # at 80 the third episode is under way
    assert np.isnan(curve[4:]).all()  # at 100 it would have ended: the run did not get there


def test_area_under_curve_by_hand() -> None:
    episodes = run([0.0] * 100 + [10.0] * 100, length=1, steps=200)
    expected = [0.0] * 25 + [10 * (4 * i / 100) for i in range(1, 26)]
    assert scores.area_under_curve(episodes) == pytest.approx(np.mean(expected))
    assert scores.area_under_curve(run([7.0], length=150, steps=200)) == 7.0  # before its first episode: that value


def test_unknown_statistic_names_near_ones() -> None:
    with pytest.raises(ValueError, match="area_under_curve"):
        scores.check_statistic("area_under_the_curve")


def test_first_training_episodes() -> None:
    episodes = run([float(i) for i in range(20)], evaluations={10: [100.0]})
    assert scores.of_run("first_5_training_episodes", episodes, None)["first_5_training_episodes"] == 2.0
    assert math.isnan(scores.first_training_episodes(episodes, 21))  # fewer finished: another statistic
    assert scores.meaning("first_5_training_episodes") == "mean raw return of the first 5 training episodes"
    assert scores.evaluation_of("first_5_training_episodes") == "training"
    for wrong in ("first_0_training_episodes", "first_training_episodes", "first_5_training_episode"):
        with pytest.raises(ValueError, match="first_500_training_episodes"):
            scores.check_statistic(wrong)


def test_last_evaluation() -> None:
    episodes = run([5.0], evaluations={10: [1.0, 2.0], 20: [3.0, 4.0, 8.0]})
    name = scores.check_statistic("last_evaluation_3_episodes")
    found = scores.of_run(name, episodes, None)
    assert found[name] == 5.0 and found["last_evaluation_10_episodes"] == 3.6  # of both evaluations
    assert list(found) == scores.columns_of(name)
    assert scores.last_evaluation(episodes, 2) == 6.0
    assert math.isnan(scores.last_evaluation(episodes, 4)) and math.isnan(scores.last_evaluation(run([5.0]), 1))
    assert scores.meaning(name) == "mean return of the last evaluation's 3 episodes"
    assert scores.evaluation_of(name) == "deterministic"
    with pytest.raises(ValueError, match="last_evaluation_100_episodes"):
        scores.check_statistic("last_evaluation_0_episodes")


def test_last_value_of_a_metric() -> None:
    name = scores.check_statistic("final_metric:rms_error")
    metrics = {"rms_error": (np.array([5, 10]), np.array([np.nan, 0.25])), "other": (np.array([20]), np.array([9.0]))}
    found = scores.of_run(name, run([1.0, 3.0]), metrics)
    assert found[name] == 0.25 and found["final_100_training_episodes"] == 2.0
    assert list(found) == scores.columns_of(name)
    assert math.isnan(scores.of_run("final_metric:loss", run([1.0]), metrics)["final_metric:loss"])
    assert math.isnan(scores.of_run("final_metric:loss", run([1.0]), None)["final_metric:loss"])
    assert scores.metric_of(name) == "rms_error" and scores.metric_of("area_under_curve") is None
    assert scores.meaning(name) == "last value of the metric rms_error" and scores.evaluation_of(name) == ""
    with pytest.raises(ValueError, match="final_metric:<name>"):
        scores.check_statistic("final_metric:")


def test_nothing_stands_in_for_a_metric() -> None:
    runs = pd.DataFrame({"task": "a", "status": ["finished", "diverged"], "final_metric:x": [1.0, np.nan]})
    found = scores.counted_scores(runs, "final_metric:x", {"a": -7.0})
    assert found.iloc[0] == 1.0 and np.isnan(found.iloc[1])


def test_online_curve_by_hand() -> None:
    episodes = run([float(i) for i in range(9)], evaluations={10: [100.0]})
    where, values = scores.online_curve(episodes, 12, points=4)  # parts of three; the last has not finished
    assert where.tolist() == [3, 6, 9] and values.tolist() == [1.0, 4.0, 7.0]
    where, values = scores.online_curve(episodes, 4)  # never more points than episodes
    assert where.tolist() == [1, 2, 3, 4] and values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(scores.online_curve(run([1.0]), 12, points=4)[0]) == 0


def test_thinned_keeps_the_last() -> None:
    at, values = scores.thinned(np.arange(1, 251), np.arange(250.0))
    assert len(at) == 100 and at[-1] == 250 and values[-1] == 249.0 and at[0] == 2
    assert (np.diff(at) >= 2).all() and (np.diff(at) <= 3).all()
    assert scores.thinned(np.arange(100), np.arange(100.0))[0].tolist() == list(range(100))


def table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "algorithm", "variant", "seed", "score"])


RUNS = table(
    [("a", "x", "default", 0, 1.0), ("a", "x", "default", 1, 3.0), ("b", "x", "default", 0, 10.0),
     ("b", "x", "default", 1, np.nan),
     ("a", "y", "v", 0, 5.0), ("a", "y", "v", 1, 0.0), ("b", "y", "v", 0, 20.0), ("b", "y", "v", 1, 30.0)]
)  # fmt: skip


def test_matrix_keeps_complete_seeds_and_names_the_others() -> None:
    found = scores.score_matrix(RUNS, "x", "default")
    assert found.scores.tolist() == [[1.0, 10.0]] and found.seeds == [0] and found.dropped == [1]
    assert scores.score_matrix(RUNS, "y", "v", ["b", "a"]).scores.tolist() == [[20.0, 5.0], [30.0, 0.0]]
    assert list(scores.score_matrices(RUNS)) == [("x", "default"), ("y", "v")]
    assert scores.label("x", "default") == "x" and scores.label("y", "v") == "y v"


def test_failed_runs_count() -> None:
    runs = pd.DataFrame(
        {"task": "a", "status": ["finished", "failed", "failed", "diverged", "running", "missing"],
         "final_100_training_episodes": [1.0, np.nan, 2.0, 3.0, 4.0, np.nan]}
    )  # fmt: skip
    found = scores.counted_scores(runs, "final_100_training_episodes", {"a": -7.0})
    assert found.iloc[:4].tolist() == [1.0, -7.0, 2.0, 3.0] and found.iloc[4:].isna().all()


def test_both_readings_of_the_best_result() -> None:
    random = {"a": -1.0, "b": 0.0}
    run_anchors = scores.best_anchors(RUNS, "best-run", random)
    assert run_anchors.high == {"a": 5.0, "b": 30.0} and run_anchors.low == random
    setting = scores.best_anchors(RUNS, "best-setting", random)
    assert setting.high == {"a": 2.5, "b": 25.0}  # the mean of y; x has 2.0 and 10.0
    with pytest.raises(ValueError, match="best-run"):
        scores.best_anchors(RUNS, "best")
    with pytest.raises(ValueError, match="b in results/reference"):
        scores.best_anchors(RUNS, "best-run", {"a": 0.0})


def test_normalize_by_hand() -> None:
    anchors = Anchors({"a": -1.0, "b": 0.0}, {"a": 3.0, "b": 20.0}, "")
    assert scores.normalize(np.array([[1.0, 10.0], [3.0, -20.0]]), ["a", "b"], anchors).tolist() == [
        [0.5, 0.5],
        [1.0, -1.0],
    ]
    curves = np.array([[[-1.0, 3.0], [0.0, 5.0]]])  # [1, 2, 2]
    assert scores.normalize(curves, ["a", "b"], anchors).tolist() == [[[0.0, 1.0], [0.0, 0.25]]]
    rows = pd.DataFrame({"task": ["b", "a"], "score": [5.0, 1.0]})
    assert scores.normalize_column(rows, anchors).tolist() == [0.25, 0.5]
    with pytest.raises(ValueError, match="no anchors for c"):
        scores.normalize(np.zeros((1, 1)), ["c"], anchors)
    with pytest.raises(ValueError, match="equal anchors for a"):
        scores.normalize(np.zeros((1, 1)), ["a"], Anchors({"a": 1.0}, {"a": 1.0}, ""))


def test_anchors_that_are_data() -> None:
    atari = scores.table_anchors("atari-noop57")
    assert len(atari.low) == 57 and atari.low["Alien"] == 227.8 and atari.high["Alien"] == 7127.7
    assert len(scores.table_anchors("atari-nature49").high) == 49
    expert = scores.table_anchors("mujoco-expert")
    assert expert.high["HalfCheetah-v5"] == 12135.0 and set(expert.low) == set(expert.high) and len(expert.low) == 11
    assert all(expert.low[task] < expert.high[task] for task in expert.low)
    with pytest.raises(ValueError, match="mujoco-expert"):
        scores.table_anchors("mujoco-experts")


def test_curve_matrix_shapes() -> None:
    rows = [
        (task, "x", "default", seed, "train", 10 * (k + 1), 100.0 * seed + k)
        for task in ("a", "b") for seed in (0, 1) for k in range(3)
        if (task, seed) != ("b", 1)
    ]  # fmt: skip
    curves = pd.DataFrame(rows, columns=["task", "algorithm", "variant", "seed", "phase", "env_steps", "value"])
    found, share = scores.curve_matrix(curves, "x", "default", ["a", "b"])
    assert found.scores.tolist() == [[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]] and found.dropped == [1]
    assert share.tolist() == [1 / 3, 2 / 3, 1.0]
