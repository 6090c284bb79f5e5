"""The claims of the field as data (analysis/claims.toml), and the verdicts on those that an experiment decides.

A claim is `open` until an experiment that decides it has results; then it `holds`, `fails` or is `inconclusive`, always
with the numbers it rests on. A claim that fails here is a result, and stands beside the claim in the report. Of a claim
that several experiments decide together, the others' part is taken from their shipped results.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import decisions, decisions_learning, decisions_off_policy, decisions_policy, load, verify
from analysis.load import Results
from analysis.rule import Verdict

FILE = Path(__file__).with_name("claims.toml")


@dataclass(frozen=True)
class Claim:
    """One row of analysis/claims.toml, and what became of it.

    decided_by: how it is put to the test, in words; experiments: whose runs decide it (in the file `experiment`, a name
    or a list; none yet: empty); status: holds, fails, inconclusive or open; evidence: the numbers behind the status.
    """

    id: str
    statement: str
    source: str
    decided_by: str
    experiments: tuple[str, ...] = ()
    status: str = "open"
    evidence: str = ""


def claims() -> list[Claim]:
    """Every row of analysis/claims.toml, as written: all open. Sources are spelled out."""
    read = tomllib.loads(FILE.read_text())
    names, found = read["sources"], []
    for row in read["claims"]:
        experiments = row.pop("experiment", [])
        row["experiments"] = (experiments,) if isinstance(experiments, str) else tuple(experiments)
        row["source"] = re.sub(r"\bL\d\b", lambda match: names[match.group()], row["source"])
        found.append(Claim(**row))
    return found


def evaluate(results: Results, found: Sequence[Verdict] | None = None) -> list[Claim]:
    """The claims that this experiment decides, with status and evidence; `found`: its verdicts, where known."""
    mine = [claim for claim in claims() if results.name in claim.experiments and claim.id in DECIDE]
    if not mine:
        return []
    return [DECIDE[claim.id](claim, results, found) for claim in mine]


def status() -> list[Claim]:
    """Every claim, decided from the shipped results where there are some."""
    decided = {claim.id: claim for folder in load.references() for claim in evaluate(load.load(folder))}
    return [decided.get(claim.id, claim) for claim in claims()]


def ppo_table1(claim: Claim, results: Results, found: Sequence[Verdict] | None = None) -> Claim:
    """T1: holds if both statements of the paper's text hold, fails if one fails; rows and order are evidence."""
    found = verify.verdicts(results) if found is None else found
    mine = [verdict for verdict in found if verdict.table == "ppo_table1"]
    statements = {v.subject: v.verdict for v in mine if v.verdict in ("holds", "fails", "inconclusive")}
    text = [statements.get(name) for name in ("clip 0.2 is best", "no clipping or penalty is below random")]
    rows = Counter(v.verdict for v in mine if v.subject not in statements)
    if not statements:
        return claim
    status = "fails" if "fails" in text else "holds" if set(text) == {"holds"} else "inconclusive"
    evidence = [f"{name}: {verdict}" for name, verdict in statements.items()]
    evidence.append(f"of {rows.total()} rows " + ", ".join(f"{count} {name}" for name, count in rows.most_common()))
    seeds = min((v.n for v in mine if v.n), default=0)
    return replace(claim, status=status, evidence="; ".join(evidence) + f"; {seeds} seeds per task and row")


def by(decision: Callable[[Results], decisions.Decision]) -> Callable[..., Claim]:
    """A statement decided from its runs alone."""

    def decided(claim: Claim, results: Results, found: Sequence[Verdict] | None = None) -> Claim:
        status, evidence = decision(results)
        return replace(claim, status=status, evidence=evidence)

    return decided


def by_parts(**parts: Callable[[Results], decisions.Decision]) -> Callable[..., Claim]:
    """A statement of several parts, experiment -> decision: each is decided from that experiment's runs.

    It fails if one part fails, is open while one is open, holds if all hold, and is else inconclusive.
    """

    def decided(claim: Claim, results: Results, found: Sequence[Verdict] | None = None) -> Claim:
        said: dict[str, decisions.Decision] = {}
        for name, decision in parts.items():
            folder = load.REFERENCE / name
            if name == results.name:
                said[name] = decision(results)
            elif (folder / "scores.csv").is_file():
                said[name] = decision(load.load(folder))
            else:
                said[name] = "open", "no shipped results yet"
        every = [status for status, _ in said.values()]
        status = next((one for one in ("fails", "open", "inconclusive") if one in every), "holds")
        return replace(claim, status=status, evidence="; ".join(f"{name}: {told}" for name, (_, told) in said.items()))

    return decided


DECIDE: dict[str, Callable[..., Claim]] = {
    "T1": ppo_table1,
    "S1": by(decisions.cliff),
    "S2": by(decisions.random_walk),
    "S3": by_parts(
        overestimation=decisions.overestimation,
        overestimation_actor_critic=decisions_off_policy.twin_critics,
    ),
    "S4": by(decisions.rainbow),
    "S5": by(decisions.single_parts),
    "S12": by(decisions_policy.synchronous),
    "S13": by(decisions_policy.actor_critic_over_values),
    "S21": by(decisions.cartpole),
    "S6": by(decisions_policy.variance),
    "S7": by(decisions_policy.entropy),
    "S8": by(decisions_policy.collapse),
    "S9": by(decisions_learning.trust_region),
    "S10": by(decisions_policy.ppo_over_trpo),
    "S11": by(decisions_learning.acktr_over_a2c),
    "S14": by(decisions_learning.workers),
    "T4": by(decisions_policy.figure_3),
    "S22": by(decisions_off_policy.deterministic_over_stochastic),
    "S15": by(decisions_off_policy.ddpg_parts),
    "S16": by(decisions_off_policy.sample_efficiency),
    "S17": by(decisions_off_policy.td3_parts),
    "S18": by(decisions_off_policy.temperature),
    "S19": by(decisions_off_policy.tqc_over_sac),
    "S25": by_parts(sac_discrete=decisions_off_policy.sac_works, sac_continuous=decisions_off_policy.sac_works),
}
