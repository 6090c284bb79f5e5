"""Aggregates by hand and against rliable; intervals that are seeded, agree, and cover."""

from __future__ import annotations

import numpy as np
import pytest
from rliable import library, metrics

from analysis import statistics

SCORES = np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 8.0]])  # 2 runs, 3 tasks: task means 0.5, 2, 5


def test_aggregates_by_hand() -> None:
    assert statistics.mean(SCORES) == pytest.approx(2.5)
    assert statistics.median(SCORES) == 2.0
    assert statistics.iqm(SCORES) == pytest.approx((1 + 1 + 2 + 3) / 4)  # of 0 1 1 2 3 8, one cut at either end
    assert statistics.iqm(np.array([[1.0, 2.0, 9.0]])) == 4.0  # int(3 / 4) = 0: nothing is cut
    assert statistics.optimality_gap(SCORES) == pytest.approx(1 - 5 / 6)
    assert statistics.optimality_gap(SCORES, 2.0) == pytest.approx(2 - (0 + 1 + 2 + 1 + 2 + 2) / 6)


@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (10, 4), (2, 57)])
def test_aggregates_equal_rliables(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(4, *shape))
    for name, theirs in {
        "mean": metrics.aggregate_mean, "median": metrics.aggregate_median, "iqm": metrics.aggregate_iqm,
        "optimality_gap": metrics.aggregate_optimality_gap,
    }.items():  # fmt: skip
        expected = [float(theirs(one)) for one in x]
        np.testing.assert_allclose(statistics.AGGREGATES[name](x), expected, rtol=1e-12)


def test_probability_of_improvement_by_hand() -> None:
    x, y = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [0.0, 5.0], [1.0, 5.0]])
    # task 1: 1 > 0, 1 = 1, 3 > all: (1.5 + 3) / 6; task 2: ties
    assert statistics.probability_of_improvement(x, y) == pytest.approx((0.75 + 0.5) / 2)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)).round(1)
    assert statistics.probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
    assert statistics.probability_of_improvement(x, y) + statistics.probability_of_improvement(y, x) == pytest.approx(1)


def test_ranks_by_hand() -> None:
    best, worst = np.array([5.0, 6.0]), np.array([-1.0, 0.0, 1.0])
    point, draws = statistics.ranks([worst, best, np.full(3, 0.1), np.full(7, 0.1)], reps=50)
    assert point.tolist() == [4, 1, 2.5, 2.5]
    assert draws.shape == (50, 4) and (draws[:, 1] == 1).all() and (draws[:, 2] == draws[:, 3]).all()
    # the first is 4th unless its draw's mean is above 0.1: more 1s than -1s among 3, in 10 of 27 draws
    drawn = statistics.ranks([worst, best, np.full(3, 0.1)], reps=20_000)[1]
    assert (drawn[:, 0] == 2).mean() == pytest.approx(10 / 27, abs=0.02)


def test_two_calls_give_the_same_interval() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4))
    for engine in ("rliable", "numpy"):
        first, again, other = (statistics.aggregate_intervals(x, seed, 200, engine) for seed in (3, 3, 4))
        assert first == again and first != other
        generator = np.random.default_rng(3)
        assert statistics.aggregate_intervals(x, generator, 200, engine) == first
        assert statistics.aggregate_intervals(x, generator, 200, engine) != first  # the generator was used
    for call in (
        lambda seed: statistics.improvement_interval(x, x[:3] + 0.1, seed),
        lambda seed: statistics.mean_interval(x[:, 0], seed),
    ):
        assert call(3) == call(3) != call(4)


def test_rliable_is_seeded_without_touching_the_global_state() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4))
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    statistics.rliable_interval(x, lambda y: np.array([y.mean()]), 0, reps=20)
    assert np.random.random() == expected
    with statistics.seeded_rliable(5):
        first = library.StratifiedBootstrap(x).conf_int(np.mean, reps=50)
    with statistics.seeded_rliable(5):
        assert (library.StratifiedBootstrap(x).conf_int(np.mean, reps=50) == first).all()


@pytest.mark.filterwarnings("ignore:random_state is deprecated")
def test_rliables_own_random_state_is_ignored() -> None:
    """Why there is `seeded_rliable`. When this fails, rliable was fixed and the detour can go."""
    x = np.random.default_rng(0).normal(size=(5, 4))
    a, b = (
        library.get_interval_estimates(
            {"x": x}, lambda y: np.array([y.mean()]), reps=50, random_state=np.random.RandomState(1)
        )[1]
        for _ in range(2)
    )
    assert not np.array_equal(a["x"], b["x"])


@pytest.mark.parametrize("shape", [(5, 7), (20, 3)])
def test_vectorised_intervals_agree_with_rliables(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(2).normal(0.5, 0.3, size=shape)
    slow = statistics.aggregate_intervals(x, 0, 4000, "rliable")
    fast = statistics.aggregate_intervals(x, 0, 20_000, "numpy")
    for name in statistics.AGGREGATES:
        width = slow[name].high - slow[name].low
        assert slow[name].point == fast[name].point
        assert (
            abs(slow[name].low - fast[name].low) < 0.06 * width
            and abs(slow[name].high - fast[name].high) < 0.06 * width
        )


def test_vectorised_improvement_agrees_with_rliable() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.3, 1, size=(6, 4)), rng.normal(size=(5, 4))
    found = statistics.improvement_interval(x, y, 0, 20_000)
    point, (low, high) = statistics.rliable_interval(
        [x, y], lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), 0, reps=400
    )
    assert found.point == pytest.approx(float(point[0]))
    assert (found.low, found.high) == (pytest.approx(float(low[0]), abs=0.04), pytest.approx(float(high[0]), abs=0.04))


def test_performance_profile_by_hand_and_against_rliable() -> None:
    taus = np.array([-1.0, 0.0, 1.0, 2.5, 9.0])
    found = statistics.performance_profile(SCORES, taus)
    assert found.point.tolist() == [1.0, 5 / 6, 3 / 6, 2 / 6, 0.0]
    x = np.random.default_rng(0).normal(size=(8, 3))
    with statistics.seeded_rliable(0):
        point, bands = library.create_performance_profile({"x": x}, taus, reps=4000)
    found = statistics.performance_profile(x, taus, 0, 20_000)
    np.testing.assert_allclose(found.point, point["x"])
    np.testing.assert_allclose([found.low, found.high], bands["x"], atol=0.045)  # steps of 1/24


def test_sample_efficiency_is_the_iqm_at_each_checkpoint() -> None:
    curves = np.random.default_rng(0).normal(size=(5, 3, 4))
    curves[1, 2, 0] = np.nan
    found = statistics.sample_efficiency(curves, 0, 400)
    assert np.isnan(found.point[0]) and np.isnan(found.low[0])
    for k in (1, 2, 3):
        assert (
            found.point[k] == pytest.approx(statistics.iqm(curves[:, :, k]))
            and found.low[k] < found.point[k] < found.high[k]
        )


def test_stratified_means_within_tasks() -> None:
    """A difference between tasks is no uncertainty: identical runs have an interval of width 0."""
    x = np.tile([0.0, 100.0, -50.0], (6, 1))
    for interval in statistics.aggregate_intervals(x, 0, 200, "numpy").values():
        assert interval.low == interval.high == pytest.approx(interval.point)


def test_intervals_cover() -> None:
    """95 % intervals of the mean of 10 x 5 normal scores contain the truth in about 92 to 96 % of 400 experiments."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = statistics.bootstrap(rng.normal(size=(10, 5)), statistics.mean, rng, 400)
        inside += bool(found.low < 0 < found.high)
    assert 0.89 < inside / 400 < 0.98


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    whole = statistics.bootstrap(x, statistics.mean, 1, 100)
    monkeypatch.setattr(statistics, "CHUNK", 18 * 7)
    parts = statistics.bootstrap(x, statistics.mean, 1, 100)
    assert parts.low == pytest.approx(whole.low) and parts.high == pytest.approx(whole.high)


def test_rank_correlation_by_hand_and_against_scipy() -> None:
    from scipy.stats import spearmanr

    assert statistics.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])) == pytest.approx(1)
    assert statistics.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    x, y = np.random.default_rng(0).normal(size=(4, 9)), np.array([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 6.0])
    np.testing.assert_allclose(statistics.rank_correlation(x, y), [spearmanr(row, y).statistic for row in x])


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 2)), np.array([[1.0, np.nan]])])
def test_bad_scores_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"runs, tasks|finite"):
        statistics.aggregate_intervals(bad)
    with pytest.raises(ValueError, match="engine"):
        statistics.aggregate_intervals(np.zeros((2, 2)), engine="scipy")
