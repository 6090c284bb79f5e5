"""When is a published number reproduced? The decision rule, as an equivalence test with a margin.

"p > 0.05" and "the error bars overlap" reward few seeds. Here *reproduced* must be shown: the interval of the
difference has to lie inside a margin D, so too few seeds, ours or the paper's, end in *inconclusive*.

    x_1 .. x_n   ours, one score per run              m_p, s_p, n_p   published mean, sample standard deviation, seeds
    r            the random policy's score            R = |m_p - r|   scale;   D = 0.10 R   margin
    d = mean(x) - m_p,   v = s_x^2/n + s_p^2/n_p (+ eps^2/3 for a value read off a plot to +- eps)
    nu = Welch-Satterthwaite,   [lo, hi] = d -+ t(1-a, nu) sqrt(v),   a = 0.05 (0.0221 each for looks at n = 5, 10, 20)

    REPRODUCED  -D < lo and hi < D        BETTER  lo > D        WORSE  hi < -D        INCONCLUSIVE  otherwise

Two one-sided tests at level a each: at a true gap of exactly D at most about a of the comparisons pass as REPRODUCED.

The guard, an addition to the rule: REPRODUCED must also hold when the side with fewer seeds is given at least the other
side's standard deviation. The plain rule keeps its promise for n = n_p (at most 5.3 % at the margin), but not where one
side has few seeds and scores are skewed: three seeds of an agent that fails in every fifth run often show no failure,
so their spread is far too small, and 24 % pass against 20 seeds (log-normal scores: 12 %). With the guard it is at most
5.3 % over all pairs of 3, 5, 10 and 20 seeds (tests/analysis/test_rule.py).

Units are those of the scores unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

MARGIN = 0.10  # of the scale R
FLOOR = 0.001  # of the scale R: the least standard deviation believed
ALPHA = {1: 0.05, 3: 0.0221}  # looks -> level of each one-sided test; 3: looks at n = 5, 10, 20
SMOKE = 3  # runs of ours below which nothing is concluded
COMPARABLE = 0.8  # share of a suite's tasks that must be comparable
NO_SPREAD_SEEDS = 3  # n_p where a paper states none

REPRODUCED, BETTER, WORSE = "REPRODUCED", "BETTER", "WORSE"
INCONCLUSIVE, NOT_COMPARABLE = "INCONCLUSIVE", "NOT COMPARABLE"


@dataclass(frozen=True)
class Published:
    """A published number. spread and kind as printed (kind "" with a spread: unknown); n: seeds; None: not stated.

    grade: A per-seed data (`values`), B mean, spread and n, C mean only, D read off a plot to +- reading_error.
    """

    mean: float
    spread: float | None = None
    kind: str = ""
    n: int | None = None
    grade: str = "C"
    values: tuple[float, ...] = ()
    reading_error: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """One comparison's outcome, a row of the report; NaN, 0, "" or None where a field does not apply.

    verdict: REPRODUCED, BETTER, WORSE, INCONCLUSIVE, NOT COMPARABLE; of a statement: holds, fails, inconclusive.
    subject: what is compared. difference = ours - published with its interval [low, high]; margin D, scale R in units
    of the score. lean: better or worse, where the interval leaves out 0. blocker of an inconclusive one: `paper` (no
    number of our seeds can settle it) or `ours`, then with the seeds needed. achieved: max(|low|, |high|) / R, the
    margin that was shown.
    broken: share of our runs that failed or diverged.
    extra: further numbers of rankings and statements, JSON-able.
    """

    table: str
    subject: str
    verdict: str
    grade: str = ""
    ours: float = math.nan
    published: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    scale: float = math.nan
    n: int = 0
    n_published: int | None = None
    lean: str = ""
    blocker: str = ""
    seeds_needed: int | None = None
    achieved: float = math.nan
    broken: float = 0.0
    bridge: str = ""
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def to_settle(self) -> str:
        """What would settle it, if seeds of ours can; where there are as many as a difference of 0 needs, more."""
        if self.blocker == "ours":
            return f"{self.seeds_needed} seeds" if (self.seeds_needed or 0) > self.n else "more seeds"
        return "no seeds of ours" if self.blocker == "paper" else ""


# ---- the parts of the rule -----------------------------------------------------------------------------------------


def sample_std(spread: float, kind: str, n: int) -> float:
    """A printed spread as a sample standard deviation over seeds, n >= 2. ValueError for an unknown kind.

    std: itself; std (population): * sqrt(n / (n-1)); stderr: * sqrt(n); ci95 (half-width): / t(.975, n-1) * sqrt(n).
    """
    factors: dict[str, Callable[[], float]] = {
        "std": lambda: 1.0,
        "std (population)": lambda: math.sqrt(n / (n - 1)),
        "stderr": lambda: math.sqrt(n),
        "ci95": lambda: math.sqrt(n) / float(stats.t.ppf(0.975, n - 1)),
    }
    if kind not in factors:
        raise ValueError(f"unknown kind of spread {kind!r}; it is one of {', '.join(factors)}")
    return spread * factors[kind]()


def welch(
    mean: Any, std: Any, n: Any, published_mean: Any, published_std: Any, published_n: Any,
    *, alpha: float = 0.05, imputed: bool = False, reading_error: float = 0.0,
) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
    """(d, lo, hi, v, nu), elementwise over arrays or floats.

    nu = v^2 / (a^2/(n-1) + b^2/(n_p-1)) with a = s_x^2/n, b = s_p^2/n_p; if s_p is imputed from s_x, n - 1.
    """
    a, b = std**2 / n, published_std**2 / published_n
    v = a + b + reading_error**2 / 3
    nu = n - 1 + 0 * a if imputed else v**2 / (a**2 / (n - 1) + b**2 / (published_n - 1))
    d = mean - published_mean
    half = stats.t.ppf(1 - alpha, nu) * np.sqrt(v)
    return d, d - half, d + half, v, nu


def outcome(low: Any, high: Any, margin: Any) -> np.ndarray:
    """The verdicts of intervals [low, high], elementwise: an array of strings (0-d for floats)."""
    low, high = np.asarray(low), np.asarray(high)
    inside = (low > -margin) & (high < margin)
    return np.select([inside, low > margin, high < -margin], [REPRODUCED, BETTER, WORSE], INCONCLUSIVE)


def guarded(std: Any, n: int, published_std: Any, published_n: int) -> tuple[Any, Any]:
    """(s_x, s_p) where the side with fewer seeds is given at least the other's standard deviation, elementwise."""
    widest = np.maximum(std, published_std)
    return (widest if n < published_n else std), (widest if published_n < n else published_std)


def what_blocks(std: float, published_std: float, published_n: int, margin: float) -> tuple[str, int | None]:
    """Why an inconclusive comparison is: ("paper", None), or ("ours", seeds needed).

    `paper` if (t(.95, n_p-1) + t(.90, n_p-1)) s_p / sqrt(n_p) > D: 90 % power at a true difference of 0 is out of reach
    however many seeds we run. Else ceil(s_x^2 / ((D/2.93)^2 - s_p^2/n_p)) seeds give that power.
    """
    if published_n < 2:
        return "paper", None
    reach = float(stats.t.ppf(0.95, published_n - 1) + stats.t.ppf(0.90, published_n - 1))
    if reach * published_std / math.sqrt(published_n) > margin:
        return "paper", None
    return "ours", math.ceil(std**2 / ((margin / 2.93) ** 2 - published_std**2 / published_n))


# ---- one task ------------------------------------------------------------------------------------------------------


def judge_task(
    scores: Sequence[float] | np.ndarray, published: Published, random: float, looks: int = 1, **shown: Any
) -> Verdict:
    """The rule for one task: our scores [n] against a published number. `shown`: table, subject, bridge, note, broken.

    A scale R of 0 (the published score is the random policy's) leaves no margin: NOT COMPARABLE. A spread of unknown
    kind is read as std and as stderr, and both must agree. Without a spread or n: s_p = s_x, n_p as stated, else 3.
    """
    x = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(x).all() or not len(x):
        raise ValueError(f"{shown.get('subject', '')}: our scores must be finite and at least one, not {x}")
    shown = {"table": "", "subject": "", "note": ""} | shown
    scale = abs(published.mean - random)
    n_stated = published.n if published.n else NO_SPREAD_SEEDS
    verdict = Verdict(
        verdict=INCONCLUSIVE, grade=published.grade, ours=float(x.mean()), published=published.mean,
        difference=float(x.mean() - published.mean), margin=MARGIN * scale, scale=scale,
        n=len(x), n_published=published.n,
        **shown,
    )  # fmt: skip
    if scale <= 1e-9 * max(1.0, abs(published.mean)):
        note = "the published score is the random policy's: there is no scale"
        return replace(verdict, verdict=NOT_COMPARABLE, note=_join(verdict.note, note))
    if len(x) < 2:
        return replace(verdict, note=_join(verdict.note, f"smoke: {len(x)} run"))
    spreads = _sample_stds(published)
    readings = [_judge(x, published, std, n_stated, looks, verdict) for std in spreads]
    judged = readings[0]
    if len({reading.verdict for reading in readings}) > 1:
        widest = max(readings, key=lambda reading: reading.high - reading.low)
        told = " or ".join(f"{r.verdict} (as {kind})" for r, kind in zip(readings, ("std", "stderr"), strict=True))
        note = _join(widest.note, f"kind of spread unknown: {told}")
        judged = replace(widest, verdict=INCONCLUSIVE, blocker="paper", seeds_needed=None, note=note)
    if len(x) < SMOKE:
        judged = replace(judged, verdict=INCONCLUSIVE, note=_join(judged.note, f"smoke: {len(x)} runs"))
    if min(len(x), len(published.values)) >= 20:
        judged = replace(
            judged, note=_join(judged.note, _bca_check(x, np.array(published.values), judged, ALPHA[looks]))
        )
    return judged


def _sample_stds(published: Published) -> Sequence[float | None]:
    """s_p: one value, two where the kind is unknown, None where there is no spread between seeds."""
    if len(published.values) >= 2:
        return [float(np.std(published.values, ddof=1))]
    if published.spread is None or not published.n or published.n < 2:
        return [None]
    kinds = [published.kind] if published.kind else ["std", "stderr"]
    return [sample_std(published.spread, kind, published.n) for kind in kinds]


def _judge(x: np.ndarray, published: Published, std: float | None, n_p: int, looks: int, verdict: Verdict) -> Verdict:
    """One reading of the published spread, std; None: imputed from ours."""
    floor, margin, n = FLOOR * verdict.scale, verdict.margin, len(x)
    s_x = max(float(x.std(ddof=1)), floor)
    s_p = s_x if std is None else max(std, floor)

    def interval(s_x: float, s_p: float) -> tuple[float, ...]:
        return welch(
            verdict.ours, s_x, n, published.mean, s_p, n_p,
            alpha=ALPHA[looks], imputed=std is None, reading_error=published.reading_error,
        )  # fmt: skip

    _, low, high, v, nu = interval(s_x, s_p)
    found = replace(
        verdict,
        verdict=str(outcome(low, high, margin)),
        grade=published.grade if std is not None or published.grade == "D" else "C",
        low=float(low),
        high=float(high),
        achieved=float(max(abs(low), abs(high)) / verdict.scale),
        extra={"v": float(v), "nu": float(nu)},
    )
    if std is None:
        found = replace(found, note=_join(found.note, f"no published spread: ours stands in, n_p = {n_p}"))
    if found.verdict == REPRODUCED:
        s_x, s_p = guarded(s_x, n, s_p, n_p)
        _, low, high, _, _ = interval(s_x, s_p)
        if outcome(low, high, margin) != REPRODUCED:
            note = (
                f"reproduced but for the guard: [{low:.4g}, {high:.4g}] with the larger sample's spread on both sides"
            )
            found = replace(found, verdict=INCONCLUSIVE, note=_join(found.note, note))
    if found.verdict != INCONCLUSIVE:
        return found
    blocker, needed = what_blocks(s_x, s_p, n_p, margin)
    if needed is not None and needed <= n:
        note = "enough seeds for a difference of 0; this one is near the margin"
        found = replace(found, note=_join(found.note, note))
    lean = "better" if found.low > 0 else "worse" if found.high < 0 else ""
    return replace(found, lean=lean, blocker=blocker, seeds_needed=needed)


def _bca_check(x: np.ndarray, y: np.ndarray, judged: Verdict, alpha: float) -> str:
    """What a BCa bootstrap of the mean difference says beside Welch's interval (from 20 seeds on both sides on)."""
    found = stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), confidence_level=1 - 2 * alpha, method="BCa",
        vectorized=True, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    said = str(outcome(found.low, found.high, judged.margin))
    return f"BCa cross-check [{found.low:.4g}, {found.high:.4g}]: {'agrees' if said == judged.verdict else said}"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


# ---- a suite of tasks ----------------------------------------------------------------------------------------------


def judge_suite(verdicts: Sequence[Verdict], setting: str, alpha: float = 0.05) -> Verdict:
    """The rule for a suite of E tasks, from its tasks' verdicts (of which those with an interval are comparable).
    `setting`: what was judged, for the subject's name.

    Mean of d/R over the comparable tasks, variance sum(v / R^2) / E^2, nu by Satterthwaite, 90 % interval against
    -+0.10. REPRODUCED needs the interval inside, no task WORSE after Holm's correction, and 80 % of the tasks
    comparable.
    """
    table, told = verdicts[0].table, [v for v in verdicts if math.isfinite(v.low)]
    subject = f"suite of {len(verdicts)} tasks: {setting}"
    base = Verdict(
        table,
        subject,
        NOT_COMPARABLE,
        bridge=verdicts[0].bridge,
        note=f"{len(told)} of {len(verdicts)} tasks comparable",
    )
    if len(told) < COMPARABLE * len(verdicts) or not told:
        return base
    pieces = [(t.extra["v"], t.extra["nu"]) for t in told]
    variance = np.array([v / t.scale**2 for (v, _), t in zip(pieces, told, strict=True)])
    nus = np.array([nu for _, nu in pieces])
    d = float(np.mean([t.difference / t.scale for t in told]))
    v = float(variance.sum()) / len(told) ** 2
    nu = float(variance.sum() ** 2 / (variance**2 / nus).sum())
    half = float(stats.t.ppf(1 - alpha, nu)) * math.sqrt(v)
    low, high = d - half, d + half
    # one-sided p values of "not worse by more than D", smallest first, each against alpha / (tasks left)
    p = np.array(
        [stats.t.cdf((t.difference + t.margin) / math.sqrt(var), nu) for t, (var, nu) in zip(told, pieces, strict=True)]
    )
    worse = [told[i].subject for i in holm(p, alpha)]
    found = str(outcome(low, high, MARGIN))
    note = base.note
    if worse:
        note = _join(note, f"worse after Holm's correction: {', '.join(worse)}")
        found = INCONCLUSIVE if found == REPRODUCED else found
    return replace(
        base, verdict=found, grade=max(t.grade for t in told), difference=d, low=low, high=high, margin=MARGIN,
        scale=1.0,
        n=min(t.n for t in told), achieved=max(abs(low), abs(high)), note=note,
        lean=("better" if low > 0 else "worse" if high < 0 else "") if found == INCONCLUSIVE else "",
        broken=float(np.mean([t.broken for t in told])), extra={"tasks": [t.subject for t in told], "worse": worse},
    )  # fmt: skip


def holm(p: np.ndarray, alpha: float) -> list[int]:
    """Indices of the hypotheses that Holm's step-down procedure rejects at family-wise level alpha."""
    rejected: list[int] = []
    for left, index in zip(range(len(p), 0, -1), np.argsort(p, kind="stable"), strict=True):
        if p[index] > alpha / left:
            break
        rejected.append(int(index))
    return rejected
