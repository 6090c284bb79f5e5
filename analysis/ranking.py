"""A ranking table against ours: the eleven surrogate objectives of Table 1, PPO paper (arXiv:1707.06347, section 6.1).

The paper prints one number per row: per task, scores shifted and scaled so that the random policy is 0 and the best
result 1, averaged over 7 tasks x 3 seeds. It prints no spread and does not say what "the best result" is, so everything
here is done for both readings (`scores.READINGS`: best single run, best setting's mean), and they must agree.

A row. With y_ei the normalized scores of E tasks and n seeds, anchors taken as fixed, and b the printed number:

    d = mean_e mean_i y_ei - b,    v = sum_e s_e^2/n / E^2 + sum_e s_e^2/3 / E^2

the second term because the paper states no spread: ours stands in for its 3 seeds (grade C). nu by Satterthwaite over
the tasks, n - 1 each. The unit is the distance from random to best, so R = 1 and the margin is D = 0.10 for every row.
Beside it stands the row's own 95 % stratified bootstrap interval; rows whose intervals overlap are tied, not ranked.

The order. Spearman's rank correlation of our averages with the printed ones over the rows, with a stratified bootstrap
interval; the printed numbers are taken as exact.

The statements, decided by resamples whose spread is corrected for small n (`widened`). "Clip 0.2 is best": holds if
its average is above every other row's in at least 95 % of them; fails if some row's is above it in all but
0.05/(rows - 1) of them. The probability of improvement over each row is shown. "No clipping or penalty is below
random": its average's interval lies below 0 (above: fails). "Because of HalfCheetah": besides, HalfCheetah's interval
lies below 0 and that of the average over the other tasks above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis import rule, scores, statistics
from analysis.load import Results
from analysis.rule import INCONCLUSIVE, NOT_COMPARABLE, Verdict
from analysis.statistics import Interval

BEST, UNBOUNDED, CULPRIT = "clip-0.2", "no-clip", "HalfCheetah"  # rows and task that the paper's text speaks of
REPS = 2000


@dataclass(frozen=True)
class Ranking:
    """One reading of the table. All per row, in the published order of rows; normalized scores.

    scores: variant -> [n, E]; average: variant -> our row with its 95 % bootstrap interval; published: variant ->
    printed; resampled [REPS, rows]: averages over bootstrap resamples, by task in resampled_tasks [REPS, rows, E];
    correlation: Spearman's rho; improvement: variant -> probability that a run of clip-0.2 beats one of that row;
    dropped: variant -> seeds that lack a task and are left out.
    """

    reading: str
    tasks: list[str]
    published: dict[str, float]
    scores: dict[str, np.ndarray]
    average: dict[str, Interval]
    resampled: np.ndarray
    resampled_tasks: np.ndarray
    correlation: Interval
    improvement: dict[str, Interval]
    dropped: dict[str, list[int]]

    def tied(self, variant: str) -> list[str]:
        """The rows whose intervals overlap this one's."""
        mine = self.average[variant]
        return [
            other
            for other, theirs in self.average.items()
            if other != variant and theirs.low <= mine.high and mine.low <= theirs.high
        ]


def rank(
    results: Results,
    published: pd.DataFrame,
    reading: str,
    algorithm: str = "ppo",
    generator: statistics.Generator = 0,
    random: dict[str, float] | None = None,
) -> Ranking:
    """Our rows beside the published ones (columns variant, avg_normalized_score), of the variants that both have."""
    rng = np.random.default_rng(generator)
    runs = results.runs[results.runs["algorithm"] == algorithm]
    anchors = scores.best_anchors(runs, reading, random)
    printed = dict(zip(published["variant"], published["avg_normalized_score"].astype(float), strict=True))
    ours: dict[str, np.ndarray] = {}
    dropped: dict[str, list[int]] = {}
    for variant in printed:
        matrix = scores.score_matrix(runs, algorithm, variant, results.tasks)
        dropped[variant] = matrix.dropped
        if len(matrix.scores):
            ours[variant] = scores.normalize(matrix.scores, results.tasks, anchors)
    resampled = np.stack([_task_means(values, rng) for values in ours.values()], axis=1)  # [REPS, rows, E]
    averages = resampled.mean(axis=-1)
    known = np.array([printed[variant] for variant in ours])
    means = np.array([values.mean() for values in ours.values()])
    rho = statistics.rank_correlation(averages, known) if len(ours) > 2 else np.full(len(averages), np.nan)
    return Ranking(
        reading=reading,
        tasks=results.tasks,
        published={variant: printed[variant] for variant in ours},
        scores=ours,
        average={
            variant: Interval(means[i], *statistics.percentiles(averages[:, i])) for i, variant in enumerate(ours)
        },
        resampled=averages,
        resampled_tasks=resampled,
        correlation=Interval(
            float(statistics.rank_correlation(means, known)) if len(ours) > 2 else math.nan,
            *(float(value) for value in statistics.percentiles(rho)),
        ),
        improvement={
            variant: statistics.improvement_interval(ours[BEST], values, rng)
            for variant, values in ours.items()
            if BEST in ours and variant != BEST
        },
        dropped=dropped,
    )


def _task_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over resampled runs, per task: [n, E] -> [REPS, E]."""
    weights = statistics.resample_weights(len(values), values.shape[1], rng, REPS)  # [REPS, E, n]
    return np.einsum("ben,ne->be", weights, values)


def judge_row(values: np.ndarray, published: float, seeds: int) -> Verdict:
    """The rule for one row: normalized scores [n, E] against a printed average over `seeds` seeds without a spread."""
    n, num_tasks = values.shape
    base = Verdict(
        "", "", INCONCLUSIVE, "C", ours=float(values.mean()), published=published,
        difference=float(values.mean() - published), margin=rule.MARGIN, scale=1.0, n=n, n_published=seeds,
    )  # fmt: skip
    if n < 2:
        return replace(base, note=f"smoke: {n} run per task")
    variances = np.maximum(values.std(axis=0, ddof=1), rule.FLOOR) ** 2  # [E]
    total = float(variances.sum()) / num_tasks**2
    satterthwaite = float(variances.sum() ** 2 / (variances**2).sum())  # nu over the degrees of freedom of one task
    v = total / n + total / seeds
    half = float(stats.t.ppf(1 - rule.ALPHA[1], satterthwaite * (n - 1))) * math.sqrt(v)
    low, high = base.difference - half, base.difference + half
    found = replace(
        base, verdict=str(rule.outcome(low, high, rule.MARGIN)), low=low, high=high, achieved=max(abs(low), abs(high)),
        extra={"v": v, "nu": satterthwaite * (n - 1)},
    )  # fmt: skip
    if n < rule.SMOKE:
        found = replace(found, verdict=INCONCLUSIVE, note=f"smoke: {n} runs per task")
    if found.verdict != INCONCLUSIVE:
        return found
    nu_paper = satterthwaite * (seeds - 1)
    reach = float(stats.t.ppf(0.95, nu_paper) + stats.t.ppf(0.90, nu_paper)) * math.sqrt(total / seeds)
    lean = "better" if low > 0 else "worse" if high < 0 else ""
    if reach > rule.MARGIN:
        return replace(found, lean=lean, blocker="paper")
    needed = math.ceil(total / ((rule.MARGIN / 2.93) ** 2 - total / seeds))
    return replace(found, lean=lean, blocker="ours", seeds_needed=needed)


def judge(
    results: Results,
    published: pd.DataFrame,
    bridge: str,
    algorithm: str = "ppo",
    table: str = "ppo_table1",
    random: dict[str, float] | None = None,
) -> list[Verdict]:
    """Verdicts of the eleven rows, of the order and of the two statements; numbers shown are the best-run reading's."""
    readings = {name: rank(results, published, name, algorithm, random=random) for name in scores.READINGS}
    verdicts = []
    for row in published.itertuples():
        if row.variant not in readings["best-run"].scores:
            note = f"no run of {scores.label(algorithm, row.variant)} has all of {', '.join(results.tasks)}"
            verdicts.append(
                Verdict(table, row.variant, NOT_COMPARABLE, "C", published=row.avg_normalized_score, note=note)
            )
            continue
        judged = {
            name: judge_row(this.scores[row.variant], this.published[row.variant], int(row.n_seeds))
            for name, this in readings.items()
        }
        verdicts.append(replace(_both(judged, readings, row.variant), table=table, subject=row.variant, bridge=bridge))
    statements = [_order(readings), _best(readings), *_below(readings)]
    return verdicts + [replace(statement, table=table, bridge=bridge) for statement in statements if statement]


def _both(judged: dict[str, Verdict], readings: dict[str, Ranking], variant: str) -> Verdict:
    """One verdict of the two readings: theirs if they agree, else INCONCLUSIVE; both are kept in extra."""
    first, second = judged.values()
    lacking = readings["best-run"].dropped[variant]
    left_out = f"without seeds {', '.join(map(str, lacking))}, which lack a task" if lacking else ""
    notes = [first.note, left_out, f"best-setting reading: {second.ours:.2f}, {second.difference:+.2f} "
             f"[{second.low:+.2f}, {second.high:+.2f}], {second.verdict}"]  # fmt: skip
    if first.verdict != second.verdict:
        notes.append(f"the readings disagree (best-run: {first.verdict}), and the paper does not say which it means")
        open_one = next((v for v in (first, second) if v.verdict == INCONCLUSIVE), replace(first, blocker="paper"))
        first = replace(
            first, verdict=INCONCLUSIVE, blocker=open_one.blocker, seeds_needed=open_one.seeds_needed, lean=""
        )
    extra: dict[str, object] = {"reading": "best-run", "tied_with": readings["best-run"].tied(variant)}
    for name, verdict in judged.items():
        row = readings[name].average[variant]
        extra[name] = {
            "ours": verdict.ours, "bootstrap": [float(row.low), float(row.high)], "difference": verdict.difference,
            "low": verdict.low, "high": verdict.high, "verdict": verdict.verdict, "blocker": verdict.blocker,
            "seeds_needed": verdict.seeds_needed, **verdict.extra,
        }  # fmt: skip
    return replace(first, note="; ".join(note for note in notes if note), extra=extra)


# ---- statements ----------------------------------------------------------------------------------------------------


def _statement(subject: str, found: dict[str, str], runs: int, note: str) -> Verdict:
    """holds, fails or inconclusive: what both readings say, or inconclusive."""
    said = set(found.values())
    if len(said) > 1:
        note += "; " + ", ".join(f"{name} reading: {verdict}" for name, verdict in found.items())
    return Verdict("", subject, said.pop() if len(said) == 1 else "inconclusive", "C", n=runs, note=note)


def decide(low: float, high: float, least: float = 0.0) -> str:
    """holds if the interval lies above `least`, fails if below, else inconclusive."""
    return "holds" if low > least else "fails" if high < least else "inconclusive"


def _shown(interval: Interval) -> str:
    return f"{interval.point:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _runs(reading: Ranking) -> int:
    return min(len(values) for values in reading.scores.values())


def widened(reading: Ranking, samples: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Resampled means [REPS, K] about their centers [K], their deviations times sqrt(n / (n-1)).

    The variance of a mean over resamples is (n-1)/n of what it should be: at three seeds a plain percentile interval
    that should cover 90 % covers 75 %. What is decided by resamples is decided by widened ones.
    """
    n = _runs(reading)
    return center + (samples - center) * math.sqrt(n / max(n - 1, 1))


def _order(readings: dict[str, Ranking]) -> Verdict | None:
    """The rows come in the paper's order: rank correlation above 0."""
    first = readings["best-run"]
    if len(first.scores) < 3:
        return None
    found = {name: decide(this.correlation.low, this.correlation.high) for name, this in readings.items()}
    note = "; ".join(f"Spearman's rho {_shown(this.correlation)} ({name})" for name, this in readings.items())
    return _statement("rows ranked as in the paper (rank correlation above 0)", found, _runs(first), note)


def _best(readings: dict[str, Ranking]) -> Verdict | None:
    """Clip 0.2 is best: above every other row in 95 % of the resamples."""
    first = readings["best-run"]
    others = [variant for variant in first.scores if variant != BEST]
    if BEST not in first.scores or not others:
        return None
    found, ahead = {}, {}
    for name, this in readings.items():
        rows = list(this.scores)
        averages = widened(this, this.resampled, np.array([this.average[row].point for row in rows]))
        mine = averages[:, rows.index(BEST)]
        ahead[name] = {variant: float((mine > averages[:, rows.index(variant)]).mean()) for variant in others}
        shares = list(ahead[name].values())
        least = 0.05 / len(others)
        found[name] = "holds" if min(shares) >= 0.95 else "fails" if min(shares) <= least else "inconclusive"
    place = 1 + sum(first.average[variant].point > first.average[BEST].point for variant in others)
    tied = first.tied(BEST)
    note = f"place {place} of {len(first.scores)}, {_shown(first.average[BEST])}"
    note += f"; tied with {', '.join(tied)}" if tied else "; tied with none"
    statement = _statement("clip 0.2 is best", found, _runs(first), note)
    return replace(
        statement,
        extra={
            "probability_of_improvement": _listed({v: _shown(i) for v, i in first.improvement.items()}),
            "share_of_resamples_ahead": _listed({v: f"{share:.3f}" for v, share in ahead["best-run"].items()}),
        },
    )


def _below(readings: dict[str, Ranking]) -> Sequence[Verdict | None]:
    """No clipping or penalty is below random; and because of HalfCheetah."""
    first = readings["best-run"]
    culprits = [index for index, task in enumerate(first.tasks) if task.startswith(CULPRIT)]
    if UNBOUNDED not in first.scores or not culprits:
        return []
    below, because, told = {}, {}, []
    for name, this in readings.items():
        values = this.scores[UNBOUNDED]  # [n, E]
        samples = this.resampled_tasks[:, list(this.scores).index(UNBOUNDED)]
        samples = widened(this, samples, values.mean(axis=0))  # [REPS, E]
        rest = [index for index in range(len(this.tasks)) if index not in culprits]
        culprit = Interval(values[:, culprits].mean(), *statistics.percentiles(samples[:, culprits].mean(axis=1)))
        others = Interval(values[:, rest].mean(), *statistics.percentiles(samples[:, rest].mean(axis=1)))
        average = Interval(values.mean(), *statistics.percentiles(samples.mean(axis=1)))
        below[name] = decide(-average.high, -average.low)
        parts = [below[name], decide(-culprit.high, -culprit.low), decide(others.low, others.high)]
        because[name] = "fails" if "fails" in parts else "holds" if set(parts) == {"holds"} else "inconclusive"
        told.append((name, average, culprit, others))
    return [
        _statement(
            "no clipping or penalty is below random", below, _runs(first),
            "; ".join(f"average {_shown(average)} ({name})" for name, average, _, _ in told),
        ),
        _statement(
            "no clipping or penalty is below random because of HalfCheetah", because, _runs(first),
            "; ".join(
                f"HalfCheetah {_shown(culprit)}, the other tasks {_shown(others)} ({name})"
                for name, _, culprit, others in told
            ),
        ),
    ]  # fmt: skip


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
