"""Published numbers against ours: the rule of VERIFICATION, for a task, a suite of tasks and a ranking table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.load import Results


@dataclass(frozen=True)
class Verdict:
    """One comparison's outcome, as a row of the report.

    table, subject (what is compared: "HalfCheetah-v5: ppo clip-0.2"), verdict (REPRODUCED, BETTER, WORSE, INCONCLUSIVE,
    NOT COMPARABLE, or for a statement: holds, fails, inconclusive), grade (A-D), ours, published, difference d, low, high
    (its interval), margin D, scale R, n, n_published, lean, blocker, seeds_needed, achieved (margin shown, share of R),
    bridge, note, extra (numbers of a statement).
    """

    table: str
    subject: str
    verdict: str
    grade: str = ""
    ours: float = float("nan")
    published: float = float("nan")
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    margin: float = float("nan")
    scale: float = float("nan")
    n: int = 0
    n_published: int | None = None
    lean: str = ""
    blocker: str = ""
    seeds_needed: int | None = None
    achieved: float = float("nan")
    bridge: str = ""
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def verdicts(results: Results) -> list[Verdict]:
    """Every comparison that the experiment's `[[published]]` entries ask for, in their order."""
    raise NotImplementedError


def main(argv: Sequence[str] | None = None) -> int:
    """`run_bench.py verify [EXPERIMENT|all] [--json]`."""
    raise NotImplementedError
