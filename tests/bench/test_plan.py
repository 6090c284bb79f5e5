"""Experiment files, groups, and what is gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import ResultsError, UserError, plan, store


def raw(**changes: Any) -> dict[str, Any]:
    base = {"title": "t", "tasks": ["CartPole-v1"], "steps": 100, "seeds": 2, "algorithms": [{"name": "ppo"}]}
    return {key: value for key, value in (base | changes).items() if value is not None}


def test_every_experiment_file_resolves() -> None:
    for name in plan.experiment_names():
        experiment = plan.resolve(plan.expand(*plan.read(name)))
        assert experiment.runs
        for run in experiment.runs:
            assert run.config


def test_a_grid_is_every_combination() -> None:
    raw = {"seeds": 1, "tasks": ["CartPole-v1"], "algorithms": [{"name": "ppo"}]}
    raw["algorithms"][0]["grid"] = {"gamma": [0.9, 1.0], "clip_coef": [0.1, 0.2]}
    found = {run.variant: run.overrides for run in plan.expand("grid", raw, "here").runs}
    assert list(found) == [
        "gamma=0.9,clip_coef=0.1",
        "gamma=0.9,clip_coef=0.2",
        "gamma=1.0,clip_coef=0.1",
        "gamma=1.0,clip_coef=0.2",
    ]
    assert found["gamma=0.9,clip_coef=0.2"] == {"gamma": 0.9, "clip_coef": 0.2}


def test_runs_and_paths() -> None:
    entry = {"name": "ppo", "variants": {"a": {"clip_coef": 0.1}, "default": {}}}
    experiment = plan.expand("e", raw(first_seed=5, algorithms=[entry]), "here")
    paths = [run.path for run in experiment.runs]
    assert paths == [f"CartPole-v1/ppo{variant}/{seed}" for variant in ("+a", "") for seed in (5, 6)]
    resolved = plan.resolve(experiment)
    assert resolved.runs[0].config["clip_coef"] == 0.1
    assert len({run.structure for run in resolved.runs}) == 1

    chosen = plan.expand("e", raw(algorithms=[entry, {"name": "dqn"}]), "here", variants=["default"])
    assert [run.path.rpartition("/")[0] for run in chosen.runs] == ["CartPole-v1/ppo"] * 2 + ["CartPole-v1/dqn"] * 2
    several = raw(algorithms=[entry, {"name": "dqn", "variants": {"b": {}, "c": {}}}])
    chosen = plan.expand("e", several, "here", variants=["a", "c"])
    assert [run.variant for run in chosen.runs] == ["a", "a", "c", "c"]
    with pytest.raises(UserError, match="--variant: d is none of e's; they are a, b, c, default"):
        plan.expand("e", several, "here", algorithms=["dqn"], variants=["d"])
    with pytest.raises(UserError, match="--variant: dqn has no variant a or default in e"):
        plan.expand("e", several, "here", algorithms=["dqn", "ppo"], variants=["a", "default"])

    suite = plan.expand("e", raw(tasks={"Pendulum-v1": {"steps": 7}}, suite="classic"), "here")
    budgets = {run.task: run.steps for run in suite.runs}
    assert budgets["Pendulum-v1"] == 7
    assert budgets["CartPole-v1"] == 100
    assert {run.steps for run in plan.expand("e", raw(), "here", steps=9).runs} == {9}
    assert [run.seed for run in plan.expand("e", raw(), "here", seeds=[3, 1]).runs] == [3, 1]
    assert [run.seed for run in plan.expand("e", raw(seeds=[4, 8]), "here").runs] == [4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, r"unknown key 'sede' \(did you mean seeds\?\)"),
        ({"steps": "many"}, "steps is 'many'; it must be of type int"),
        ({"steps": True}, "steps is True; it must be of type int"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"seeds": -3}, "seeds is -3; it must be at least 1"),
        ({"seeds": [1, -1]}, "seeds is .*list of seeds of 0 or more"),
        ({"seeds": None}, "seeds is missing"),
        ({"algorithms": None}, "algorithms is missing"),
        ({"tasks": None}, "suite or tasks is missing"),
        ({"tasks": ["CartPol-v1"]}, "CartPole-v1"),
        ({"tasks": [3]}, "tasks holds 3"),
        ({"tasks": ["CartPole-v1"], "suite": "classic"}, "beside suite"),
        ({"tasks": {"CartPole-v1": 5}}, "must be a table of steps"),
        ({"tasks": {"CartPole-v1": {"step": 5}}}, r"tasks.CartPole-v1: unknown key 'step' \(did you mean steps\?\)"),
        ({"tasks": None, "suite": "clasic"}, "classic"),
        ({"algorithms": ["ppo"]}, r"algorithms\[0\] is 'ppo'; it must be a table"),
        ({"algorithms": [{"preset": "paper"}]}, r"algorithms\[0\]: name is missing"),
        ({"algorithms": [{"name": "ppoo"}]}, r"unknown algorithm 'ppoo' \(did you mean ppo"),
        ({"algorithms": [{"name": "ppo"}, {"name": "ppo"}]}, "CartPole-v1/ppo/0 2 times"),
        ({"algorithms": [{"name": "ppo", "variants": {"a/b": {}}}]}, "cannot name a directory"),
        ({"algorithms": [{"name": "ppo", "variants": {"a": 1}}]}, "variants.a is 1; it must be a table"),
        ({"algorithms": [{"name": "ppo", "grid": {"gamma": 1}}]}, "grid.gamma is 1; it must be a list of values"),
        ({"algorithms": [{"name": "ppo", "grid": {}, "variants": {}}]}, "variants and a grid; give one of them"),
        ({"algorithms": []}, "not none 0 times"),
        ({"evaluation": {"period": 10}}, "evaluation: episodes is missing"),
        ({"metrics_period": -1}, "metrics_period is -1; it must be at least 0"),
    ],
)
def test_broken_experiments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan.expand("e", raw(**changes), "file.toml")
    assert str(caught.value).startswith("file.toml")
    assert caught.value.code == 2


def test_broken_settings() -> None:
    for overrides, message in (
        ({"clip_cof": 1.0}, "clip_coef"),
        ({"num_epochs": "x"}, "num_epochs is 'x'"),
        ({"batch_size": 7}, "must divide"),
    ):
        with pytest.raises(UserError, match=message):
            plan.resolve(plan.expand("e", raw(algorithms=[{"name": "ppo", "overrides": overrides}]), "here"))
    with pytest.raises(UserError, match=r"no preset 'papr' \(did you mean paper"):
        plan.resolve(plan.expand("e", raw(algorithms=[{"name": "ppo", "preset": "papr"}]), "here"))


def test_cut_covers_every_run_once_and_keeps_workers_busy() -> None:
    entries = [{"name": "ppo", "variants": {str(index): {"clip_coef": 0.1 * (index + 1)} for index in range(11)}}]
    runs = plan.resolve(
        plan.expand("e", raw(suite="mujoco-ppo7", tasks=None, seeds=5, algorithms=entries), "here")
    ).runs
    for workers in (1, 2, 3, 8, 64):
        groups = plan.cut(runs, 33, workers)
        assert sorted(run.path for group in groups for run in group.runs) == sorted(run.path for run in runs)
        assert all(
            len(group.runs) <= 33 and len({(run.task, run.structure) for run in group.runs}) == 1 for group in groups
        )
        assert len(groups) >= min(workers, 50)
        costs = [plan.cost(group.runs) for group in groups]
        assert costs == sorted(costs, reverse=True)
    assert len(plan.cut(runs, 33, 1)) == 14  # 55 runs of each task in two groups
    few = [run for run in runs if run.task == "Hopper-v5"][:10]
    assert len(plan.cut(few, 33, 2)) == 2
    assert len(plan.cut(few, 4, 1)) == 3

    other = [replace(run, structure="another") for run in few[:3]]
    assert len(plan.cut([*few[:3], *other], 33, 1)) == 2


def test_metrics_are_written_two_hundred_times_unless_told() -> None:
    assert plan.metrics_period({}, 100_000) == 500
    assert plan.metrics_period({}, 199) == 0  # every iteration
    assert plan.metrics_period({"metrics_period": 0}, 100_000) == 0


def test_compare_names_what_differs(tmp_path: Path) -> None:
    (run,) = plan.resolve(plan.expand("e", raw(seeds=1), "here")).runs
    assert plan.compare(tmp_path, run, {}, {"digest": "x"}) is None
    manifest = {
        "schema": 2,
        "metrics_period": 0,
        "status": "finished",
        "config": run.config,
        "steps": 100,
        "group": "g",
        "fingerprint": {"digest": "x"},
    }
    store.write_json(tmp_path / store.MANIFEST, manifest)
    assert plan.compare(tmp_path, run, {}, {"digest": "x"}) == manifest
    for other, contents, fingerprint, message in (
        (replace(run, steps=200), {}, {"digest": "x"}, "steps is 100 there and 200 here"),
        (
            replace(run, config=run.config | {"clip_coef": 0.7}),
            {},
            {"digest": "x"},
            "clip_coef is 0.2 there and 0.7 here",
        ),
        (run, {"evaluation": {"period": 5}}, {"digest": "x"}, "evaluation is None there"),
        (run, {"metrics_period": 7}, {"digest": "x"}, "metrics_period is 0 there and 7 here"),
        (run, {}, {"digest": "y", "versions": 1}, "fingerprint differs in digest, versions"),
    ):
        with pytest.raises(ResultsError, match=f"{message}.*another --out, or delete"):
            plan.compare(tmp_path, other, contents, fingerprint)
    before = {key: value for key, value in manifest.items() if key != "metrics_period"} | {"schema": 1}
    store.write_json(tmp_path / store.MANIFEST, before)  # of runs that had no metrics
    assert plan.compare(tmp_path, run, {"metrics_period": 7}, {"digest": "x"}) == before
    (tmp_path / store.MANIFEST).write_text('{"schema": 1, "sta')
    with pytest.raises(ResultsError, match=r"manifest.json is not readable"):
        plan.compare(tmp_path, run, {}, {})
    (tmp_path / store.MANIFEST).write_text('{"foreign": 1}')
    with pytest.raises(ResultsError, match="lacks config"):
        plan.compare(tmp_path, run, {}, {})
