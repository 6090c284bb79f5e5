"""Fingerprints and the random policy's scores."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import suites
from suites import fingerprints, random_policy

ROOT = Path(__file__).parents[2]


def test_fingerprint_says_what_a_score_depends_on() -> None:
    facts = suites.fingerprint("HalfCheetah-v5")
    assert facts.keys() == {"task", "env_kwargs", "wrappers", "versions", "trace_sha256", "digest"}
    assert facts["versions"].keys() == {"gymnasium", "mujoco", "numpy"}
    assert "TimeLimit(1000)" in facts["wrappers"]
    assert json.loads(json.dumps(facts)) == facts


def test_fingerprint_is_computed_once_and_cannot_be_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = suites.fingerprint("CartPole-v1")
    monkeypatch.setattr(fingerprints, "trace_sha256", None)
    facts["versions"]["numpy"] = "0"
    assert suites.fingerprint("CartPole-v1")["versions"]["numpy"] != "0"


def test_fingerprints_differ_and_follow_behaviour(monkeypatch: pytest.MonkeyPatch) -> None:
    from suites.classic import Pendulum

    assert len({suites.fingerprint(task.id)["digest"] for task in suites.find_suite("classic")}) == 5
    before = fingerprints.trace_sha256("Pendulum-v1")
    assert before == fingerprints.trace_sha256("Pendulum-v1")
    monkeypatch.setattr(Pendulum, "start_high", (3.0, 1.0))
    assert fingerprints.trace_sha256("Pendulum-v1") != before


def test_fingerprint_is_the_same_in_another_process() -> None:
    program = "import suites; print(suites.fingerprint('InvertedPendulum-v5')['digest'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == suites.fingerprint("InvertedPendulum-v5")["digest"]


def test_random_policy_is_reproducible_and_counts_whole_episodes() -> None:
    row = random_policy.play("CartPole-v1", 2, num_runs=10)
    assert row == random_policy.play("CartPole-v1", 2, num_runs=10)
    assert row["episodes"] == 20
    assert row["env_steps"] == pytest.approx(20 * row["mean"])  # its reward is 1 a step
    assert 10 < row["mean"] < 40


def test_random_policy_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "random.csv"
    assert random_policy.main(["--tasks", "CartPole-v1", "--episodes", "1", "--out", str(out)]) == 0
    header, row = csv.reader(out.open())
    assert tuple(header) == random_policy.COLUMNS
    assert row[0] == "CartPole-v1"
    assert row[3] == "100"
    assert [path.name for path in out.parent.iterdir()] == ["random.csv"]
    assert random_policy.main(["--tasks", "RandomWalk19-v0", "--episodes", "2", "--out", str(out)]) == 0
    assert [line[:2] for line in csv.reader(out.open())][:2] == [header[:2], row[:2]]  # what was there stays
    assert [line[3] for line in csv.reader(out.open())] == ["episodes", "100", "200"]
    assert random_policy.main(["--tasks", "Cartpole", "--out", str(out)]) == 2
    assert random_policy.main(["--episodes", "0", "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert "did you mean CartPole-v1" in errors
    assert "--episodes is 0" in errors


def test_shipped_scores_cover_every_task() -> None:
    with (ROOT / "results/reference/random_policy.csv").open() as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    assert list(rows) == suites.task_ids()
    assert all(int(row["episodes"]) >= 100 for row in rows.values())
    for task_id in ("CartPole-v1", "InvertedPendulum-v5"):
        assert float(rows[task_id]["mean"]) == pytest.approx(random_policy.play(task_id, 4)["mean"])
