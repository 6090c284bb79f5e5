"""The decision rule: hand-computed numbers, its promises by simulation, and its special cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis import rule
from analysis.rule import BETTER, INCONCLUSIVE, NOT_COMPARABLE, REPRODUCED, WORSE, Published, Verdict, judge_task

SCORES = np.array([90.0, 100.0, 110.0])  # mean 100, s_x = 10


def test_spread_kinds_by_hand() -> None:
    assert rule.sample_std(6.0, "std", 3) == 6.0
    assert rule.sample_std(6.0, "std (population)", 3) == pytest.approx(6.0 * math.sqrt(1.5))
    assert rule.sample_std(6.0, "stderr", 9) == pytest.approx(18.0)
    assert rule.sample_std(4.302653, "ci95", 3) == pytest.approx(math.sqrt(3.0), rel=1e-6)  # t(.975, 2) = 4.302653
    with pytest.raises(ValueError, match="iqr"):
        rule.sample_std(1.0, "iqr", 3)


def test_welch_by_hand() -> None:
    # a = 100/3, b = 36/9 = 4: v = 37.333, nu = v^2 / (a^2/2 + b^2/8)
    d, low, high, v, nu = rule.welch(100.0, 10.0, 3, 97.0, 6.0, 9)
    assert d == 3.0 and v == pytest.approx(100 / 3 + 4)
    assert nu == pytest.approx((100 / 3 + 4) ** 2 / ((100 / 3) ** 2 / 2 + 16 / 8))
    half = stats.t.ppf(0.95, nu) * math.sqrt(v)
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_welch_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(1.0, 3.0, size=12)
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.90)
    _, low, high, _, nu = rule.welch(x.mean(), x.std(ddof=1), 7, y.mean(), y.std(ddof=1), 12)
    assert (low, high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert nu == pytest.approx(stats.ttest_ind(x, y, equal_var=False).df)


def test_reading_error_and_imputed_spread() -> None:
    *_, v, nu = rule.welch(0.0, 3.0, 9, 0.0, 3.0, 3, imputed=True, reading_error=6.0)
    assert v == pytest.approx(1 + 3 + 12) and nu == 8


def test_outcomes() -> None:
    low, high = np.array([-0.9, 1.1, -3.0, -0.5, -1.0]), np.array([0.9, 3.0, -1.1, 1.5, 0.5])
    assert rule.outcome(low, high, 1.0).tolist() == [REPRODUCED, BETTER, WORSE, INCONCLUSIVE, INCONCLUSIVE]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.0, REPRODUCED), (25.0, BETTER), (-25.0, WORSE), (10.0, INCONCLUSIVE), (-8.5, INCONCLUSIVE)],
)
def test_one_task(shift: float, verdict: str) -> None:
    ours = 100.0 + shift + np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = judge_task(ours, Published(100.0, 2.0, "std", 10, "B"), random=0.0)
    assert found.verdict == verdict
    assert found.scale == 100 and found.margin == pytest.approx(10.0) and found.difference == pytest.approx(shift)
    assert found.achieved == pytest.approx(max(abs(found.low), abs(found.high)) / 100)
    if verdict == INCONCLUSIVE:
        assert found.lean == ("better" if shift > 0 else "worse") and found.blocker == "ours"


def test_blocker_is_the_paper_when_its_seeds_cannot_settle_it() -> None:
    # n_p = 3: (t(.95,2) + t(.90,2)) / sqrt(3) = (2.91999 + 1.88562) / 1.73205 = 2.7745 times s_p is the least margin
    assert rule.what_blocks(1.0, 10.0, 3, 27.74)[0] == "paper"
    kind, seeds = rule.what_blocks(1.0, 10.0, 3, 27.75)
    assert kind == "ours" and seeds == math.ceil(1 / ((27.75 / 2.93) ** 2 - 100 / 3))
    assert rule.what_blocks(1.0, 1.0, 1, 100.0) == ("paper", None)
    for n, least in ((3, 2.77), (5, 1.64), (10, 1.02), (20, 0.68)):  # the table of VERIFICATION
        assert rule.what_blocks(1.0, 1.0, n, least + 0.01)[0] == "ours"
        assert rule.what_blocks(1.0, 1.0, n, least - 0.01)[0] == "paper"


def test_few_runs_are_a_smoke_test() -> None:
    for runs in ([100.0], [100.0, 100.1]):
        found = judge_task(runs, Published(100.0, 0.1, "std", 30, "B"), random=0.0)
        assert found.verdict == INCONCLUSIVE and "smoke" in found.note


def test_no_spread_takes_ours() -> None:
    found = judge_task(SCORES, Published(100.0, n=5), random=0.0)
    expected = rule.welch(100.0, 10.0, 3, 100.0, 10.0, 5, imputed=True)
    assert (found.low, found.high) == (pytest.approx(expected[1]), pytest.approx(expected[2]))
    assert found.grade == "C" and "n_p = 5" in found.note
    assert "n_p = 3" in judge_task(SCORES, Published(100.0), random=0.0).note
    one_run = judge_task(SCORES, Published(100.0, 5.0, "std", 1, "B"), random=0.0)  # no spread between seeds
    assert one_run.grade == "C" and one_run.verdict == INCONCLUSIVE


def test_unknown_kind_of_spread_must_not_matter() -> None:
    ours = np.linspace(99.0, 101.0, 10)
    assert judge_task(ours, Published(100.0, 0.5, "", 10, "B"), random=0.0).verdict == REPRODUCED
    found = judge_task(ours, Published(100.0, 8.0, "", 10, "B"), random=0.0)  # std: reproduced; stderr: s_p = 25, not
    assert found.verdict == INCONCLUSIVE and "kind of spread unknown" in found.note


def test_floor_keeps_equal_scores_from_dividing_by_zero() -> None:
    found = judge_task([100.0] * 5, Published(100.0, 0.0, "std", 3, "B"), random=0.0)
    assert found.verdict == REPRODUCED and found.high > 0
    assert found.extra["v"] == pytest.approx(0.1**2 / 5 + 0.1**2 / 3)


def test_no_scale_is_not_comparable() -> None:
    found = judge_task([-200.0, -190.0, -180.0], Published(-200.0, 0.0, "std (population)", 3, "B"), random=-200.0)
    assert found.verdict == NOT_COMPARABLE and "random" in found.note


def test_several_looks_ask_for_more() -> None:
    once, thrice = (judge_task(SCORES, Published(100.0, 5.0, "std", 10, "B"), 0.0, looks=k) for k in (1, 3))
    assert thrice.high - thrice.low > once.high - once.low


def test_per_seed_data_gets_a_bca_cross_check_from_20_seeds() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(100, 5, 20), tuple(rng.normal(100, 5, 25))
    found = judge_task(ours, Published(float(np.mean(theirs)), n=25, grade="A", values=theirs), 0.0)
    assert found.verdict == REPRODUCED and "BCa cross-check" in found.note and "agrees" in found.note
    assert "BCa" not in judge_task(ours[:19], Published(100.0, n=25, grade="A", values=theirs), 0.0).note


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        judge_task([1.0, math.nan, 2.0], Published(1.0), 0.0)


# ---- suites --------------------------------------------------------------------------------------------------------


def tasks(*differences: float, v: float = 0.0004, nu: float = 8.0) -> list[Verdict]:
    """Verdicts of tasks with scale 1 and these differences."""
    half = float(stats.t.ppf(0.95, nu)) * math.sqrt(v)
    return [
        Verdict("t", f"task {i}", str(rule.outcome(d - half, d + half, 0.1)), "B", difference=d, low=d - half,
                high=d + half,
                margin=0.1, scale=1.0, n=5, extra={"v": v, "nu": nu})
        for i, d in enumerate(differences)
    ]  # fmt: skip


def test_what_would_settle_it() -> None:
    one = Verdict("t", "x", INCONCLUSIVE, n=5, blocker="ours", seeds_needed=12)
    assert one.to_settle == "12 seeds" and replace(one, seeds_needed=3).to_settle == "more seeds"
    assert replace(one, blocker="paper").to_settle == "no seeds of ours" and replace(one, blocker="").to_settle == ""


def test_suite_by_hand() -> None:
    found = rule.judge_suite(tasks(0.08, -0.02, 0.03), "ppo")
    half = float(stats.t.ppf(0.95, 24.0)) * math.sqrt(3 * 0.0004 / 9)  # equal variances: nu = 3 * 8
    assert found.difference == pytest.approx(0.03) and found.high == pytest.approx(0.03 + half)
    assert found.verdict == REPRODUCED  # though the first task alone is inconclusive


def test_suite_with_a_task_that_is_worse_is_not_reproduced() -> None:
    found = rule.judge_suite(tasks(-0.35, 0.1, 0.1, 0.1), "ppo")
    assert found.verdict == INCONCLUSIVE and "task 0" in found.note


def test_suite_needs_most_of_its_tasks() -> None:
    lost = [replace(Verdict("t", "x", NOT_COMPARABLE), subject=f"lost {i}") for i in range(2)]
    assert rule.judge_suite(tasks(0.0, 0.0, 0.0) + lost, "ppo").verdict == NOT_COMPARABLE
    assert rule.judge_suite(tasks(0.0, 0.0, 0.0, 0.0) + lost[:1], "ppo").verdict == REPRODUCED


def test_holm_by_hand() -> None:
    assert rule.holm(np.array([0.04, 0.01, 0.03]), 0.05) == [1]  # .01 < .05/3; .03 > .05/2
    assert rule.holm(np.array([0.04, 0.01, 0.02]), 0.05) == [1, 2, 0]
    assert rule.holm(np.array([0.02, 0.9]), 0.05) == [0]


# ---- the promise ---------------------------------------------------------------------------------------------------

DRAWS = 10_000
SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    # mean 0, standard deviation 1
    "normal": lambda rng, size: rng.standard_normal(size),
    "log-normal": lambda rng, size: (
        (rng.lognormal(0.0, 0.5, size) - math.exp(0.125)) / math.sqrt((math.exp(0.25) - 1) * math.exp(0.25))
    ),
    # 20 % of the seeds fail: they score far below the others
    "20 % failing": lambda rng, size: (
        (np.where(rng.random(size) < 0.2, -4.0, 0.0) + 0.5 * rng.standard_normal(size) + 0.8) / math.sqrt(2.81)
    ),
}


def verdict_rates(
    shape: str, gap: float, n: int, n_published: int, spread: float, rng: np.random.Generator, guard: bool = True
) -> dict[str, float]:
    """Share of each verdict over DRAWS pairs of experiments; true means differ by `gap`, R = 1, seed spread `spread`.

    The same functions as the rule's, elementwise; guard=False is the plain rule.
    """
    ours = gap + spread * SHAPES[shape](rng, (DRAWS, n))
    theirs = spread * SHAPES[shape](rng, (DRAWS, n_published))
    s_x, s_p = (np.maximum(side.std(1, ddof=1), rule.FLOOR) for side in (ours, theirs))
    _, low, high, _, _ = rule.welch(ours.mean(1), s_x, n, theirs.mean(1), s_p, n_published)
    verdicts = rule.outcome(low, high, rule.MARGIN)
    if guard:
        s_x, s_p = rule.guarded(s_x, n, s_p, n_published)
        _, low, high, _, _ = rule.welch(ours.mean(1), s_x, n, theirs.mean(1), s_p, n_published)
        stands = rule.outcome(low, high, rule.MARGIN) == REPRODUCED
        verdicts = np.where((verdicts == REPRODUCED) & ~stands, INCONCLUSIVE, verdicts)
    names, counts = np.unique(verdicts, return_counts=True)
    return dict(zip(names.tolist(), (counts / DRAWS).tolist(), strict=True))


def worst_false_reproduced(shape: str, n: int, n_published: int, guard: bool) -> float:
    """The highest share of REPRODUCED at a true gap of exactly the margin, over its two sides and four seed spreads."""
    rng = np.random.default_rng([n, n_published])
    return max(
        verdict_rates(shape, gap, n, n_published, spread, rng, guard).get(REPRODUCED, 0.0)
        for spread in (0.02, 0.05, 0.10, 0.20)
        for gap in (-rule.MARGIN, rule.MARGIN)
    )


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_false_reproduced_at_the_margin_is_at_most_6_percent(shape: str, n: int) -> None:
    for n_published in (3, 5, 10, 20):
        assert worst_false_reproduced(shape, n, n_published, guard=True) <= 0.06, n_published
    assert worst_false_reproduced(shape, n, n, guard=False) <= 0.06  # the plain rule, equal numbers of seeds


def test_why_there_is_a_guard() -> None:
    assert worst_false_reproduced("20 % failing", 20, 3, guard=False) > 0.15
    assert worst_false_reproduced("log-normal", 20, 3, guard=False) > 0.10


def test_the_guard_acts_and_says_so() -> None:
    ours = np.array([82.0, 91.0, 95.5, 98.5, 100.0, 100.0, 101.5, 104.5, 109.0, 118.0])  # s_x = 9.7
    found = judge_task(ours, Published(100.0, 0.5, "std", 3, "B"), random=0.0)
    assert found.high < 10 and found.low > -10 and found.verdict == INCONCLUSIVE and "guard" in found.note


def test_equal_agents_are_reproduced_once_there_are_seeds_and_not_before() -> None:
    rng = np.random.default_rng(0)
    assert verdict_rates("normal", 0.0, 20, 20, 0.10, rng)[REPRODUCED] > 0.85  # least provable margin: 0.68 * 0.10
    assert verdict_rates("normal", 0.0, 3, 3, 0.10, rng).get(REPRODUCED, 0.0) < 0.25
    assert verdict_rates("normal", 0.3, 20, 20, 0.10, rng)[BETTER] > 0.99
