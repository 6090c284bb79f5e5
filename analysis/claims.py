"""The claims of the field as data, and their verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from analysis.load import Results


@dataclass(frozen=True)
class Claim:
    """One row of analysis/claims.toml; status: holds, fails, inconclusive or open (not decided yet)."""

    id: str
    statement: str
    source: str
    decided_by: str
    experiment: str = ""
    status: str = "open"
    evidence: str = ""


def claims() -> list[Claim]:
    """Every row of analysis/claims.toml."""
    raise NotImplementedError


def evaluate(results: Results) -> list[Claim]:
    """The claims that this experiment decides, with status and evidence."""
    raise NotImplementedError
