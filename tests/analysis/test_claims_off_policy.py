"""The statements about off-policy actor-critics are decided rightly where the truth is known, in both directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic import one_run, write_experiment
from test_claims import decided

from analysis import decisions_off_policy, load

TASKS = ("MountainCarRLPark-v0", "PendulumRLPark-v0", "PuddleWorld-v0")


def copdac(root: Path, seeds: int = 12, **gain: float) -> Path:
    """COPDAC-Q ends at 0 on every task, a rival lower by so much (`last`: Off-PAC on the last task), with the settings
    chosen for the task, and at random with those for another; the first of eleven evaluations was 110 lower."""
    folder = write_experiment(root, "copdac", score={"statistic": "last_evaluation_10_episodes"})
    gain = {"actor_critic": 5.0, "offpac": 5.0} | gain
    last = gain.pop("last", gain["offpac"])
    everyone = enumerate(("copdac_q", *gain))
    for (place, name), task, variant, seed in itertools.product(everyone, TASKS, TASKS, range(seeds)):
        less = last if name == "offpac" and task == TASKS[-1] else gain.get(name, 0.0)
        rng = np.random.default_rng([place, TASKS.index(task), TASKS.index(variant), seed])
        score = rng.standard_normal() - less if variant == task else 50 * rng.standard_normal()
        evaluations = {50: score - 110.0} | {100 * i: score for i in range(1, 11)}
        one_run(folder, task, name, variant, seed, evaluations=evaluations)
    return folder


@pytest.mark.parametrize(
    ("truth", "status"),
    [
        ({}, "holds"),
        ({"last": -5.0}, "fails"),  # one rival on one task is enough
        ({"last": 0.0}, "inconclusive"),
        ({"seeds": 2}, "inconclusive"),
    ],
)
def test_copdac(tmp_path: Path, truth: dict[str, float], status: str) -> None:
    (claim,) = decided(copdac(tmp_path, **truth)).values()  # type: ignore[arg-type]
    assert claim.id == "S22" and claim.status == status, claim.evidence
    assert claim.evidence.count("P(COPDAC-Q over") == 6
    if status != "holds":
        return
    told = claim.evidence.split("mean score (and over all evaluations): ")[1].split("; ")
    assert [part.split()[0] for part in told] == list(TASKS)
    ends = [float(part.split("offpac ")[1].split()[0]) for part in told]
    courses = [float(part.split("offpac ")[1].split("(")[1].split(")")[0]) for part in told]
    assert ends == pytest.approx([-5.0] * 3, abs=0.9)  # three sigma
    assert courses == pytest.approx([end - 10 for end in ends], abs=0.02)


def test_copdac_without_a_rival_is_open(tmp_path: Path) -> None:
    folder = copdac(tmp_path, seeds=3)
    for path in folder.glob(f"*/offpac+{TASKS[1]}/*/*"):
        path.unlink()
    assert decisions_off_policy.deterministic_over_stochastic(load.load(folder)) == (
        "open", "no run of offpac PendulumRLPark-v0 has a score yet",
    )  # fmt: skip
