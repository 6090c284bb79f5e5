"""Comparisons as data: the gate and its bridges, published tables, the ranking of PPO's Table 1, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import VARIANTS, make_tree

from analysis import claims, load, published, ranking, rule, scores, verify
from analysis.load import Results, ResultsError
from analysis.published import Protocol
from analysis.rule import BETTER, INCONCLUSIVE, NOT_COMPARABLE, REPRODUCED, WORSE, Verdict

RANDOM = scores.random_scores()
OURS = Protocol("final_100_training_episodes", 1_000_000, "training", "HalfCheetah-v5", "bootstrap")
TABLE1 = pd.read_csv(scores.PUBLISHED / "ppo_table1.csv")
SEVEN = ["HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5",
         "Walker2d-v5"]  # fmt: skip


def made_up(
    values: dict[tuple[str, str], Any],
    steps: int = 1_000_000,
    published: list[dict] | None = None,
    name: str = "made-up",
) -> Results:
    """Results whose runs of algorithm ppo have the given scores: (task, variant) -> score per seed."""
    rows = [
        {"task": task, "algorithm": "ppo", "variant": variant, "seed": seed, "status": "finished", "steps": steps,
         "train_episodes": 500, "env_steps": steps, "score": float(score), "final_100_training_episodes": float(score)}
        for (task, variant), some in values.items() for seed, score in enumerate(some)
    ]  # fmt: skip
    experiment = {"name": name, "published": published or []}
    return Results(
        experiment, pd.DataFrame(rows), pd.DataFrame(), "final_100_training_episodes", Path("/nowhere"), False
    )


# ---- the gate ------------------------------------------------------------------------------------------------------


def test_equal_protocols_pass_and_every_field_counts() -> None:
    assert published.gate(OURS, OURS, {}) == []
    changes = {
        "statistic": "area_under_curve", "steps": 3_000_000, "evaluation": "deterministic",
        "environment": "HalfCheetah-v2",
        "truncation": "terminal",
    }  # fmt: skip
    for name, value in changes.items():
        theirs = replace(OURS, **{name: value})
        assert published.gate(theirs, OURS, {}) == [name]
        assert published.gate(theirs, OURS, {name: "why it is fair"}) == []
        assert published.gate(theirs, OURS, {"details": "something else"}) == [name]


def test_what_is_not_stated_needs_a_bridge_too() -> None:
    assert published.gate(replace(OURS, truncation=""), OURS, {}) == ["truncation"]
    assert published.gate(replace(OURS, steps=0), OURS, {}) == ["steps"]
    assert published.gate(replace(OURS, steps=999_000), OURS, {}) == []  # within 1 %


def test_no_bridge_between_families() -> None:
    assert published.gate(replace(OURS, environment="Hopper-v5"), OURS, {"environment": "both have legs"}) == [
        "environment"
    ]


# ---- published tables ----------------------------------------------------------------------------------------------


def test_per_seed_table_is_grade_a() -> None:
    found = published.theirs({"table": "ppo_ikostrikov_runs", "truncation": "bootstrap"}, "Reacher-v2")
    assert found is not None
    number, protocol = found
    assert number.grade == "A" and len(number.values) == number.n == 10
    assert number.mean == pytest.approx(np.mean(number.values)) and -5.5 < number.mean < -4.5
    assert protocol == Protocol("final_100_training_episodes", 1_000_000, "training", "Reacher-v2", "bootstrap")
    assert published.theirs({"table": "ppo_ikostrikov_runs"}, "Ant-v2") is None


def test_curves_are_per_seed_data_at_one_step() -> None:
    entry = {"table": "td3_learning_curves", "where": {"step": 100_000}}
    found = published.theirs(entry, "HalfCheetah-v1")
    assert found is not None
    values, protocol = found
    assert values.n == 10 and values.grade == "A" and protocol.steps == 100_000
    assert (protocol.statistic, protocol.evaluation) == ("last_evaluation_10_episodes", "deterministic")
    curves = pd.read_csv(scores.PUBLISHED / "td3_learning_curves.csv")
    rows = curves[(curves["env"] == "HalfCheetah") & (curves["step"] == 100_000)]
    assert values.values == tuple(rows["eval_return"])
    with pytest.raises(ResultsError, match="must name one"):
        published.theirs({"table": "td3_learning_curves"}, "HalfCheetah-v1")


def test_training_curves_are_per_run_data_at_one_step() -> None:
    entry = {"table": "dopamine_sac_curves", "where": {"step": 101_000}, "truncation": "bootstrap"}
    values, protocol = published.theirs(entry, "HalfCheetah-v2") or (None, None)
    curves = pd.read_csv(scores.PUBLISHED / "dopamine_sac_curves.csv")
    rows = curves[(curves["env"] == "HalfCheetah") & (curves["step"] == 101_000)]
    assert values is not None and values.n == 5 and values.grade == "A"
    assert values.values == tuple(rows["train_return"]) and values.values[0] == 4589.006
    sampled = "training_episodes_of_the_last_1000_steps"  # which is no statistic of ours: it takes a bridge
    assert protocol == Protocol(sampled, 101_000, "training", "HalfCheetah-v2", "bootstrap")
    ours = Protocol("last_evaluation_10_episodes", 100_000, "deterministic", "HalfCheetah-v5", "bootstrap")
    assert published.gate(protocol, ours, {}) == ["statistic", "evaluation", "environment"]
    assert published.gate(protocol, ours, dict.fromkeys(("statistic", "evaluation", "environment"), "why")) == []
    with pytest.raises(ResultsError, match="must name one"):
        published.theirs({"table": "dopamine_sac_curves"}, "HalfCheetah-v2")
    assert published.theirs(entry, "Reacher-v2") is None


def test_table_of_means_is_grade_b_with_its_kind_of_spread() -> None:
    entry = {"table": "classic_published", "where": {"algorithm": "CleanRL PPO"}, "truncation": "terminal"}
    number, protocol = published.theirs(entry, "CartPole-v1") or (None, None)
    assert number == rule.Published(490.04, 6.12, "std (population)", 3, "B")
    assert protocol == Protocol("final_100_training_episodes", 500_000, "training", "CartPole-v1", "terminal")


def test_spread_over_episodes_is_no_spread_over_seeds() -> None:
    entry = {"table": "mujoco_published", "where": {"algorithm": "SB3 PPO (rl-zoo)", "steps": 1_000_000}}
    number, protocol = published.theirs(entry, "Hopper-v3") or (None, None)
    assert number is not None and number.grade == "C" and number.spread is None
    assert protocol is not None and protocol.statistic == ""  # an evaluation we have no statistic for: not stated
    assert protocol.evaluation == "deterministic"


def test_episodes_after_training_may_have_drawn_actions() -> None:
    entry = {"table": "mujoco_published", "where": {"algorithm": "PFRL TRPO"}, "truncation": "terminal"}
    number, protocol = published.theirs(entry, "Hopper-v2") or (None, None)
    assert number == rule.Published(3038, 42, "stderr", 20, "B")
    assert protocol == Protocol("last_evaluation_100_episodes", 2_000_000, "", "Hopper-v2", "terminal")


def test_plot_readings_are_grade_d() -> None:
    entry = {
        "table": "mujoco_published",
        "where": {"algorithm": "A2C (PPO paper A2C, plot reading)"},
        "reading_error": 50.0,
    }
    number, _ = published.theirs(entry, "HalfCheetah") or (None, None)
    assert number is not None and number.grade == "D" and number.reading_error == 50.0
    number, _ = published.theirs(entry | {"reading_error": {"Reacher": 1.0}}, "Reacher") or (None, None)
    assert number is not None and number.reading_error == 1.0
    with pytest.raises(ResultsError, match="reading_error has no HalfCheetah; it has Reacher"):
        published.theirs(entry | {"reading_error": {"Reacher": 1.0}}, "HalfCheetah")


def test_ambiguous_or_wrong_selection_is_named() -> None:
    with pytest.raises(ResultsError, match="narrow"):
        published.theirs({"table": "mujoco_published"}, "HalfCheetah-v4")
    with pytest.raises(ResultsError, match="no column 'agent'"):
        published.theirs({"table": "mujoco_published", "where": {"agent": "PPO"}}, "HalfCheetah-v4")
    with pytest.raises(FileNotFoundError, match="classic_published"):
        published.theirs({"table": "classics"}, "CartPole-v1")


def test_every_published_entry_of_the_experiments_is_well_formed() -> None:
    for path in sorted(load.EXPERIMENTS.glob("*.toml")):
        results = replace(made_up({("CartPole-v1", "default"): [0.0]}), experiment={"name": path.stem})
        for entry in published.entries(results):
            assert isinstance(entry.get("bridge", {}), dict)
            for task, environment in entry.get("tasks", {}).items():
                assert published.theirs(entry, environment) is not None, (path.name, environment)
                assert published.family(task) == published.family(environment) and task in RANDOM
            if "tasks" not in entry:
                assert entry["table"] == "ppo_table1"


def test_unknown_key_of_an_entry() -> None:
    with pytest.raises(ResultsError, match="bridges"):
        published.entries(made_up({("CartPole-v1", "default"): [0.0]}, published=[{"table": "x", "bridges": {}}]))


# ---- verdicts on tasks ---------------------------------------------------------------------------------------------

CLEANRL: dict[str, Any] = {
    "table": "classic_published", "where": {"algorithm": "CleanRL PPO"}, "algorithm": "ppo", "truncation": "terminal",
    "tasks": {"CartPole-v1": "CartPole-v1", "Acrobot-v1": "Acrobot-v1", "MountainCar-v0": "MountainCar-v0"},
    "bridge": {"truncation": "theirs ends the task at a time limit"},
}  # fmt: skip
SEEDS = np.linspace(-1.0, 1.0, 10)


def judged(change: dict[str, Any], steps: int = 500_000, **tasks: float) -> dict[str, Verdict]:
    """Verdicts by subject, for ten seeds around the given means."""
    means = {"CartPole-v1": 491.0, "Acrobot-v1": -86.0, "MountainCar-v0": -200.0} | tasks
    values = {(task, "default"): mean + SEEDS for task, mean in means.items()}
    found = verify.verdicts(made_up(values, steps, [CLEANRL | change]), RANDOM)
    return {verdict.subject: verdict for verdict in found}


def test_tasks_and_their_suite() -> None:
    found = judged({})
    assert [verdict.verdict for verdict in found.values()] == [REPRODUCED, REPRODUCED, NOT_COMPARABLE, NOT_COMPARABLE]
    assert "no scale" in found["MountainCar-v0: ppo"].note  # theirs is the random policy's score
    cart = found["CartPole-v1: ppo"]
    assert cart.scale == pytest.approx(490.04 - RANDOM["CartPole-v1"]) and cart.n == 10 and cart.n_published == 3
    assert cart.bridge.startswith("truncation: theirs") and cart.table == "classic_published: CleanRL PPO"
    two = judged({"tasks": {"CartPole-v1": "CartPole-v1", "Acrobot-v1": "Acrobot-v1"}})
    assert two["suite of 2 tasks: ppo"].verdict == REPRODUCED


def test_without_its_bridge_it_is_not_comparable_and_says_why() -> None:
    found = judged({"bridge": {}})["CartPole-v1: ppo"]
    assert found.verdict == NOT_COMPARABLE and "truncation (theirs terminal, ours bootstrap)" in found.note
    assert "steps" in judged({}, steps=100_000)["CartPole-v1: ppo"].note


def test_missing_pieces_are_named() -> None:
    assert "no finished run" in judged({"variant": "other"})["CartPole-v1: ppo other"].note
    assert "no row for Ant-v9" in judged({"tasks": {"CartPole-v1": "Ant-v9"}})["CartPole-v1: ppo"].note
    values = {("CartPole-v1", "default"): 490.0 + SEEDS}
    found = verify.verdicts(made_up(values, 500_000, [CLEANRL | {"tasks": {"CartPole-v1": "CartPole-v1"}}]), {})
    assert "random policy" in found[0].note


def test_worse_and_better() -> None:
    found = judged({}, **{"CartPole-v1": 400.0, "Acrobot-v1": -20.0})
    assert found["CartPole-v1: ppo"].verdict == WORSE and found["Acrobot-v1: ppo"].verdict == BETTER


def test_failed_runs_count_and_are_told() -> None:
    results = made_up(
        {("CartPole-v1", "default"): 490.0 + SEEDS}, 500_000, [CLEANRL | {"tasks": {"CartPole-v1": "CartPole-v1"}}]
    )
    results.runs.loc[:1, "status"] = "failed"
    results.runs.loc[:1, "final_100_training_episodes"] = np.nan
    found = verify.verdicts(results, RANDOM)[0]
    assert found.broken == 0.2 and "20%" in found.note and found.n == 10
    assert found.ours == pytest.approx((8 * 490 + SEEDS[2:].sum() + 2 * RANDOM["CartPole-v1"]) / 10)


def test_no_entries_no_verdicts() -> None:
    assert verify.verdicts(made_up({("CartPole-v1", "default"): [0.0]})) == []


# ---- the ranking table ---------------------------------------------------------------------------------------------


def table1(level: Callable[[str, str], float], seeds: int = 8, spread: float = 0.03, seed: int = 0) -> Results:
    """Seven tasks x eleven rows whose normalized score is about `level(task, variant)` of a made-up best result."""
    rng = np.random.default_rng(seed)
    best = {"HalfCheetah-v5": 2000.0, "Reacher-v5": -4.0}
    values = {}
    for task in SEVEN:
        low, high = RANDOM[task], best.get(task, 1000.0)
        for variant in VARIANTS:
            normalized = level(task, variant) + spread * rng.standard_normal(seeds)
            values[task, variant] = low + (high - low) * np.append(normalized[1:], min(normalized[0], 1.0))
    return made_up(values)


def as_printed(task: str, variant: str) -> float:
    """The printed averages; no-clip's comes from HalfCheetah alone. One row scores about 1 somewhere: the best."""
    printed = dict(zip(TABLE1["variant"], TABLE1["avg_normalized_score"], strict=True))[variant]
    if variant == "no-clip":
        return 7 * printed - 6 * 0.3 if task.startswith("HalfCheetah") else 0.3
    return printed + (0.18 if variant == "clip-0.2" else 0.0) * (1 if task < "J" else -4 / 3)


def test_normalized_rows_by_hand() -> None:
    values = {(task, variant): RANDOM[task] + np.array(some) for task in ("Hopper-v5", "Reacher-v5")
              for variant, some in {"clip-0.2": [2.0, 4.0], "no-clip": [0.0, -1.0]}.items()}  # fmt: skip
    results = made_up(values)
    best_run = ranking.rank(results, TABLE1, "best-run", random=RANDOM)
    assert best_run.average["clip-0.2"].point == pytest.approx(0.75)  # (2 + 4) / 2 / 4
    assert best_run.average["no-clip"].point == pytest.approx(-0.125)
    best_setting = ranking.rank(results, TABLE1, "best-setting", random=RANDOM)
    assert best_setting.average["clip-0.2"].point == pytest.approx(1.0)
    assert best_run.improvement["no-clip"].point == 1.0


def test_row_by_hand() -> None:
    values = np.array([[0.7, 0.5], [0.8, 0.6], [0.9, 0.7]])  # mean .7; s = .1 in both tasks
    found = ranking.judge_row(values, 0.68, 3)
    v = (0.02 / 4) * (1 / 3 + 1 / 3)  # sum of s^2 over E^2, over n and over the paper's 3 seeds
    half = float(__import__("scipy").stats.t.ppf(0.95, 4)) * v**0.5  # two tasks of equal variance: 2 (n - 1) = 4
    assert found.difference == pytest.approx(0.02) and found.extra["v"] == pytest.approx(v)
    assert (found.low, found.high) == (pytest.approx(0.02 - half), pytest.approx(0.02 + half))
    assert found.margin == 0.10 and found.grade == "C" and found.verdict == INCONCLUSIVE and found.blocker == "paper"


def test_table_that_comes_out_as_printed() -> None:
    found = {v.subject: v for v in ranking.judge(table1(as_printed), TABLE1, "a bridge", random=RANDOM)}
    assert [v.subject for v in list(found.values())[:11]] == TABLE1["variant"].tolist()
    assert found["rows ranked as in the paper (rank correlation above 0)"].verdict == "holds"
    assert found["clip 0.2 is best"].verdict == "holds"
    assert found["no clipping or penalty is below random"].verdict == "holds"
    assert found["no clipping or penalty is below random because of HalfCheetah"].verdict == "holds"
    row = found["clip-0.1"]
    assert set(row.extra) >= {"best-run", "best-setting", "tied_with"} and row.published == 0.76
    assert row.bridge == "a bridge" and row.table == "ppo_table1"
    agree = row.extra["best-run"]["verdict"] == row.extra["best-setting"]["verdict"]
    assert agree or (row.verdict == INCONCLUSIVE and "disagree" in row.note)
    assert "clip-0.1" in found["adaptive-kl-0.01"].extra["tied_with"]  # .76 and .74: not ranked
    json.dumps([verify.as_row(v) for v in found.values()], allow_nan=False)


def test_a_run_that_is_missing_does_not_hide_the_others() -> None:
    """The first run listed may be one that has not been trained: it has no steps."""
    results = table1(as_printed)
    missing = results.runs.iloc[[0]].assign(seed=99, steps=np.nan, status="missing")
    partial = replace(results, runs=pd.concat([missing, results.runs], ignore_index=True))
    bridge = dict.fromkeys(("environment", "truncation", "steps", "statistic"), "a bridge")
    found = verify._judge_ranking(partial, {"algorithm": "ppo"}, bridge, RANDOM)
    assert len(found) > 11 and not any(v.verdict == NOT_COMPARABLE for v in found)


def test_table_turned_upside_down() -> None:
    found = {v.subject: v for v in ranking.judge(table1(lambda task, variant: 0.3 - as_printed("Swimmer", variant)),
                                                 TABLE1, "", random=RANDOM)}  # fmt: skip
    assert found["rows ranked as in the paper (rank correlation above 0)"].verdict == "fails"
    assert found["clip 0.2 is best"].verdict == "fails"
    assert found["clip-0.2"].verdict == WORSE


def test_below_random_but_not_because_of_halfcheetah() -> None:
    found = {v.subject: v for v in ranking.judge(
        table1(lambda task, variant: -0.4 if variant == "no-clip" else 0.7), TABLE1, "", random=RANDOM)}  # fmt: skip
    assert found["no clipping or penalty is below random"].verdict == "holds"
    assert found["no clipping or penalty is below random because of HalfCheetah"].verdict == "fails"
    assert (
        found["clip 0.2 is best"].verdict == INCONCLUSIVE.lower()
        and "tied with clip-0.1" in found["clip 0.2 is best"].note
    )


def test_equal_rows_are_tied_and_not_called_best() -> None:
    outcomes = []
    for seed in range(5):
        results = table1(lambda task, variant: 0.7, seeds=5, spread=0.1, seed=seed)
        outcomes += [
            v.verdict for v in ranking.judge(results, TABLE1, "", random=RANDOM) if v.subject == "clip 0.2 is best"
        ]
    assert "holds" not in outcomes and outcomes.count("inconclusive") >= 4


def test_ranking_goes_through_the_gate() -> None:
    entry = {"table": "ppo_table1", "algorithm": "ppo", "bridge": {"environment": "e", "truncation": "t"}}
    results = replace(table1(as_printed), experiment={"name": "x", "published": [entry]})
    assert len(verify.verdicts(results, RANDOM)) == 15
    lacking = replace(results, experiment={"name": "x", "published": [entry | {"bridge": {"truncation": "t"}}]})
    assert verify.verdicts(lacking, RANDOM)[0].verdict == NOT_COMPARABLE
    fewer = replace(results, runs=results.runs[results.runs["task"] != "Swimmer-v5"])
    assert "Swimmer" in verify.verdicts(fewer, RANDOM)[0].note
    rows = replace(results, runs=results.runs[results.runs["variant"] != "clip-0.3"])
    found = {v.subject: v for v in verify.verdicts(rows, RANDOM)}
    assert found["clip-0.3"].verdict == NOT_COMPARABLE and "no run" in found["clip-0.3"].note


def test_unfinished_tables_are_judged_by_what_there_is() -> None:
    entry = {"table": "ppo_table1", "algorithm": "ppo", "bridge": {"environment": "e", "truncation": "t"}}
    results = replace(table1(as_printed, seeds=3), experiment={"name": "x", "published": [entry]})
    runs = results.runs.copy()
    runs.loc[(runs["task"] == "Swimmer-v5") & (runs["seed"] > 0) & (runs["variant"] != "clip-0.1"), "score"] = np.nan
    found = {v.subject: v for v in verify.verdicts(replace(results, runs=runs), RANDOM)}
    assert found["clip-0.2"].verdict == INCONCLUSIVE and "smoke" in found["clip-0.2"].note
    assert "without seeds 1, 2" in found["clip-0.2"].note
    json.dumps([verify.as_row(v) for v in found.values()], allow_nan=False)
    runs.loc[runs["task"] == "Swimmer-v5", "score"] = np.nan
    (nothing,) = verify.verdicts(replace(results, runs=runs), RANDOM)
    assert nothing.verdict == NOT_COMPARABLE and "no seed" in nothing.note


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference folder of made-up runs of Table 1 in a place of its own."""
    reference = tmp_path / "reference"
    tree = make_tree(tmp_path / "runs", seeds=3, most=200) / "ppo_table1"
    monkeypatch.setattr(load, "REFERENCE", reference)
    monkeypatch.setattr(verify, "RECORDED", reference / "verdicts.json")
    return load.ship(tree, reference / "ppo_table1")


def test_command_end_to_end(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["all", "--record"]) == 0
    capsys.readouterr()
    assert verify.main(["all"]) == 0  # nothing got worse, recorded WORSE included
    out = capsys.readouterr().out
    for text in (
        "ppo_table1 (shipped results)",
        "clip-0.2",
        "ppo_ikostrikov_runs",
        "mujoco_published: CleanRL PPO",
        "suite of 4 tasks: ppo",
    ):
        assert text in out
    assert verify.main(["ppo_table1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["verdicts"]["ppo_table1"]
    assert {row["verdict"] for row in found} <= set(verify.LEVELS) and len(found) == 15 + 5 + 5

    recorded = json.loads(verify.RECORDED.read_text())
    key = "ppo_table1 | no-clip"
    recorded["ppo_table1"][key] = REPRODUCED
    verify.RECORDED.write_text(json.dumps(recorded))
    assert verify.main(["all"]) == 1
    assert f"{key}: INCONCLUSIVE, recorded as REPRODUCED" in capsys.readouterr().err


def test_command_with_wrong_input(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["nothing", "--out", str(tmp_path)]) == 2
    assert "no results for experiment 'nothing'" in capsys.readouterr().err
    verify.RECORDED.write_text("{")
    assert verify.main(["all"]) == 2 and "verdicts.json" in capsys.readouterr().err


def test_what_counts_as_worse() -> None:
    found = [Verdict("t", "a", WORSE), Verdict("t", "b", INCONCLUSIVE), Verdict("t", "c", "holds")]
    assert verify.got_worse(found, {"t | a": WORSE, "t | b": INCONCLUSIVE, "t | c": "holds"}) == []
    assert len(verify.got_worse(found, {"t | b": REPRODUCED})) == 2  # a: unrecorded WORSE; b: fell
    assert "no longer compared" in verify.got_worse(found[1:], {"t | a": WORSE})[0]


# ---- claims --------------------------------------------------------------------------------------------------------


def test_every_claim_is_a_row() -> None:
    every = claims.claims()
    ids = [claim.id for claim in every]
    assert ids == [f"I{i}" for i in range(1, 13)] + [f"T{i}" for i in range(1, 5)] + [f"S{i}" for i in range(1, 27)]
    assert all(claim.statement and claim.source and claim.decided_by and claim.status == "open" for claim in every)
    assert not any("L1" in claim.source.split() for claim in every)


def test_table_1_is_decided_by_its_statements(shipped: Path) -> None:
    results = load.load(shipped)
    (claim,) = claims.evaluate(results)
    assert claim.id == "T1" and claim.status in ("holds", "fails", "inconclusive")
    assert "of 11 rows" in claim.evidence and "3 seeds" in claim.evidence
    statements = [Verdict("ppo_table1", "clip 0.2 is best", "holds", n=5),
                  Verdict("ppo_table1", "no clipping or penalty is below random", "holds", n=5)]  # fmt: skip
    assert claims.ppo_table1(claim, results, statements).status == "holds"
    assert claims.ppo_table1(claim, results, [statements[0], replace(statements[1], verdict="fails")]).status == "fails"
    assert claims.ppo_table1(claim, results, statements[:1]).status == "inconclusive"
    assert len([c for c in claims.status() if c.status == "open"]) == 41
