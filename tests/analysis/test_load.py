"""Run trees and reference folders read into the same tables; broken files named with their cure."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import make_tree, manifest, one_run, write_experiment

from analysis import load, scores
from analysis.load import ResultsError

TASKS, VARIANTS = ["HalfCheetah-v5", "Reacher-v5"], ["no-clip", "clip-0.2"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path, "small", TASKS, VARIANTS, seeds=3, steps=100_000, most=300) / "small"


def run_folder(tree: Path) -> Path:
    return tree / "Reacher-v5" / "ppo+clip-0.2" / "1"


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """None and NaN are both "nothing"; integers that met NaN are floats."""
    return table.astype(object).where(table.notna(), None)


def test_one_row_per_planned_run(tree: Path) -> None:
    results = load.load(tree)
    assert len(results.runs) == 12 and results.tasks == TASKS
    assert list(results.runs["variant"].unique()) == VARIANTS  # planned order, not the alphabet's
    assert (results.runs["status"] == "finished").all() and results.runs["score"].notna().all()
    assert results.statistic == "final_100_training_episodes" and not results.shipped
    row = results.runs.iloc[0]
    assert row["machine"] == "Synthetic CPU avx512" and row["steps"] == 100_000 and row["config_digest"]


def test_score_is_the_mean_of_the_last_100_training_episodes(tree: Path) -> None:
    table = pd.read_parquet(run_folder(tree) / "episodes.parquet")
    row = load.load(tree).runs.set_index(scores.KEYS).loc[("Reacher-v5", "ppo", "clip-0.2", 1)]
    assert row["score"] == pytest.approx(table["episode_return"].iloc[-100:].mean(), rel=1e-12)


def test_curves_are_on_the_common_grid(tree: Path) -> None:
    curves = load.load(tree).curves
    assert len(curves) == 12 * 50 and set(curves["phase"]) == {"train"}
    mine = curves[(curves.task == "Reacher-v5") & (curves.variant == "clip-0.2") & (curves.seed == 1)]
    assert mine["env_steps"].tolist() == list(range(2_000, 100_001, 2_000))
    table = pd.read_parquet(run_folder(tree) / "episodes.parquet")
    halfway = table[table["env_steps"] <= 50_000]["episode_return"].iloc[-100:].mean()
    assert mine["value"].iloc[24] == pytest.approx(halfway)


def test_troubled_runs_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "random_scores", lambda path=None: {"Reacher-v5": -43.0, "HalfCheetah-v5": -280.0})
    tree = make_tree(tmp_path, "t", TASKS, VARIANTS, seeds=3, steps=100_000, most=300, troubles=True) / "t"
    results = load.load(tree)
    runs = results.runs.set_index("status")
    assert runs.index.value_counts().to_dict() == {
        "finished": 8,
        "failed": 1,
        "diverged": 1,
        "running": 1,
        "missing": 1,
    }
    assert runs.loc["failed", "score"] == -43.0  # no episode: the random policy's
    assert runs.loc["diverged", "score"] == runs.loc["diverged", "final_100_training_episodes"]  # its own
    assert np.isnan(runs.loc["running", "score"]) and np.isnan(runs.loc["missing", "score"])
    assert set(scores.left_out(results.runs)["status"]) == {"running", "missing"}
    curves = results.curves.set_index(scores.KEYS)
    failed = tuple(runs.loc["failed", key] for key in scores.KEYS)
    assert (curves.loc[[failed], "value"] == -43.0).all()
    diverged = curves.loc[[tuple(runs.loc["diverged", key] for key in scores.KEYS)], "value"].to_numpy()
    assert np.isfinite(diverged[-1]) and (diverged[-30:] == diverged[-1]).all()  # holds its last value


def test_torn_last_line_is_dropped_and_a_broken_one_before_it_is_not(tmp_path: Path) -> None:
    good = '{"env_steps": 10, "episode_return": 1.0, "episode_length": 10, "phase": "train", "wall_seconds": 0.1}'
    path = tmp_path / "episodes.jsonl"
    for torn in ("", '{"env_st', '{"env_steps": 20}'):
        path.write_text(f"{good}\n{good}\n{torn}")
        episodes = load.read_episodes(tmp_path, 100)
        assert episodes is not None and episodes.env_steps.tolist() == [10, 10]
    path.write_text(f'{good}\n{{"env_st\n{good}\n')
    with pytest.raises(ResultsError, match="line 2"):
        load.read_episodes(tmp_path, 100)
    path.write_text("")
    empty = load.read_episodes(tmp_path, 100)
    assert empty is not None and np.isnan(scores.final_100_training_episodes(empty))


AT = list(range(5, 1001, 5))  # 200 rows


def metric_tree(root: Path, seeds: int = 2, **experiment: Any) -> Path:
    """Runs of two algorithms with two metrics, one of them nan at first."""
    folder = write_experiment(root, "m", **experiment)
    for algorithm in ("a", "b"):
        for seed in range(seeds):
            loss = np.sin(np.arange(200.0)) + seed
            error = np.where(np.array(AT) < 500, np.nan, 0.5 + seed)
            returns = np.arange(40.0) + (10 if algorithm == "a" else 0)
            metrics = {"loss": (AT, loss), "error": (AT, error)}
            one_run(folder, "T-v0", algorithm, "default", seed, returns=returns, metrics=metrics)
    return folder


def test_metrics_are_read_and_thinned(tmp_path: Path) -> None:
    found = load.load(metric_tree(tmp_path)).metrics
    assert list(found) == [*load.KEYS, "env_steps", "name", "value"] and len(found) == 2 * 2 * 2 * 100
    mine = found[(found["algorithm"] == "b") & (found["seed"] == 1) & (found["name"] == "loss")]
    assert mine["env_steps"].tolist() == AT[1::2]
    assert mine["value"].tolist() == (np.sin(np.arange(200.0)) + 1).tolist()[1::2]
    error = found[found["name"] == "error"]
    assert error["value"].isna().sum() == 4 * 49 and (error.groupby("seed")["value"].last() == [0.5, 1.5]).all()


def test_a_metric_is_the_score(tmp_path: Path) -> None:
    folder = metric_tree(tmp_path, score={"statistic": "final_metric:error", "better": "lower"})
    results = load.load(folder)
    assert results.lower_is_better and results.runs["score"].tolist() == [0.5, 1.5, 0.5, 1.5]
    assert not load.load(folder, "area_under_curve").lower_is_better
    shipped = load.load(load.ship(folder, tmp_path / "r" / "m"))
    assert shipped.lower_is_better and shipped.runs["score"].tolist() == [0.5, 1.5, 0.5, 1.5]
    with pytest.raises(ResultsError, match="no column first_20_training_episodes"):
        load.load(shipped.path, "first_20_training_episodes")
    for broken in ({"better": "smaller"}, {"statistics": "x"}):
        write_experiment(tmp_path, "m", score=broken)
        with pytest.raises(ResultsError, match=r"\[score\]"):
            load.load(folder)


def test_metrics_of_a_run_under_way(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"env_steps": 5, "name": "a", "value": NaN}\n{"env_steps": 5, "name": "b", "value": 2.0}\n'
        '{"env_steps": 9, "name": "a", "value": 0.5}\n{"env_steps": 9, "na'
    )
    found = load.read_metrics(tmp_path)
    assert found is not None and list(found) == ["a", "b"]
    assert found["a"][0].tolist() == [5, 9] and np.isnan(found["a"][1][0]) and found["b"][1].tolist() == [2.0]
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 5, "na\n{"env_steps": 5, "name": "b", "value": 2.0}\n')
    with pytest.raises(ResultsError, match="line 1: not a row of metrics"):
        load.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert load.read_metrics(tmp_path) == {} and load.read_metrics(tmp_path / "nowhere") is None


def test_metrics_that_should_be_there(tmp_path: Path) -> None:
    folder = metric_tree(tmp_path)
    run = folder / "T-v0" / "a" / "0"
    (run / "metrics.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ResultsError, match=r"metrics\.parquet: not a readable table"):
        load.load(folder)
    (run / "metrics.parquet").unlink()
    with pytest.raises(ResultsError, match=r"without metrics\.parquet"):
        load.load(folder)
    values = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(values | {"schema": 1}))  # of before there were metrics
    assert len(load.load(folder).metrics) == 3 * 2 * 100


def test_metrics_of_many_runs_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "METRIC_RUNS", 3)
    folder = metric_tree(tmp_path)
    assert not len(load.load(folder).metrics) and len(load.load(folder, metrics=True).metrics)
    assert load.load(folder, "final_metric:error").runs["score"].notna().all()
    assert len(load.load(load.ship(folder, tmp_path / "r" / "m")).metrics) == 800


def test_metrics_and_online_returns_are_shipped(tmp_path: Path) -> None:
    figure = {"kind": "episodes", "episodes": 20}
    folder = metric_tree(tmp_path, report={"figures": [figure]})
    ours, reference = load.load(folder), load.ship(folder, tmp_path / "r" / "m")
    assert ours.online["episode"].tolist() == 4 * list(range(1, 21))
    assert ours.online["value"].tolist()[:3] == [10.0, 11.0, 12.0]
    shipped = load.load(reference)
    for name in ("metrics", "online"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(shipped, name), check_dtype=False, rtol=1e-5)
    more = metric_tree(tmp_path / "more", seeds=3, report={"figures": [figure]})
    for path in list(more.glob("T-v0/*/[01]")):
        shutil.rmtree(path)
    both = load.load(load.ship(more, reference))
    assert set(both.metrics["seed"]) == set(both.online["seed"]) == {0, 1, 2} and len(both.metrics) == 1200


def test_results_without_metrics_ship_none(tree: Path, tmp_path: Path) -> None:
    reference = load.ship(tree, tmp_path / "r")
    assert not (reference / "metrics.csv.gz").exists() and not (reference / "online.csv.gz").exists()
    assert not len(load.load(reference).metrics) and list(load.load(tree).metrics) == list(load.load(reference).metrics)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "pie"}, "kind is 'pie'; it is one of episodes, sweep, difference"),
        ({"kind": "sweep", "x": "alpha"}, "lines is missing or unknown"),
        ({"kind": "episodes", "episodes": 5, "colour": 1}, "colour is missing or unknown"),
    ],
)
def test_figures_asked_for_are_checked(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    folder = metric_tree(tmp_path, seeds=1, report={"figures": [entry]})
    with pytest.raises(ResultsError, match=message):
        load.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": "x"}', "null"])
def test_corrupt_manifest_names_file_and_cure(tree: Path, content: str) -> None:
    (run_folder(tree) / "manifest.json").write_text(content)
    with pytest.raises(ResultsError, match="manifest") as caught:
        load.load(tree)
    assert str(run_folder(tree) / "manifest.json") in str(caught.value) and "again" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_corrupt_parquet_names_file_and_cure(tree: Path, content: bytes) -> None:
    (run_folder(tree) / "episodes.parquet").write_bytes(content)
    with pytest.raises(ResultsError, match=r"episodes\.parquet") as caught:
        load.load(tree)
    assert "remove" in str(caught.value)


def test_half_a_parquet_file_is_corrupt_too(tree: Path) -> None:
    path = run_folder(tree) / "episodes.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultsError, match=r"episodes\.parquet"):
        load.load(tree)


def test_a_finished_run_needs_its_episodes(tree: Path) -> None:
    (run_folder(tree) / "episodes.parquet").unlink()
    with pytest.raises(ResultsError, match=r"without episodes\.parquet"):
        load.load(tree)


def test_fingerprints_are_not_mixed(tree: Path) -> None:
    path = run_folder(tree) / "manifest.json"
    values = json.loads(path.read_text())
    values["fingerprint"]["digest"] = "another"
    path.write_text(json.dumps(values))
    with pytest.raises(ResultsError, match="fingerprints"):
        load.load(tree)


def test_a_manifest_in_the_wrong_place(tree: Path) -> None:
    other = tree / "Reacher-v5" / "ppo+clip-0.2" / "0" / "manifest.json"
    (run_folder(tree) / "manifest.json").write_text(other.read_text())
    with pytest.raises(ResultsError, match="another run"):
        load.load(tree)


def test_experiment_as_bench_writes_it(tree: Path) -> None:
    raw = json.loads((tree / "experiment.json").read_text())
    paths = [f"{task}/ppo+{variant}/{seed}" for task in TASKS for variant in VARIANTS for seed in range(4)]
    written = {
        "name": "small",
        "source": "somewhere.toml",
        "experiment": raw,
        "command": ["/a/run_bench.py", "run"],
        "runs": paths,
    }
    (tree / "experiment.json").write_text(json.dumps(written))
    results = load.load(tree)
    assert len(results.runs) == 16 and (results.runs["status"] == "missing").sum() == 4
    assert results.experiment["title"] == raw["title"]


def test_ship_and_read_back(tree: Path, tmp_path: Path) -> None:
    raw = json.loads((tree / "experiment.json").read_text())
    command = ["/here/run_bench.py", "run", "small", "--out", "/here/runs"]
    (tree / "experiment.json").write_text(json.dumps(raw | {"source": "/here/x.toml", "command": command}))
    reference = tmp_path / "reference"
    assert load.ship_main(["small", "--out", str(tree.parent), "--to", str(reference)]) == 0
    ours, shipped = load.load(tree), load.load(reference / "small")
    assert shipped.shipped and shipped.statistic == ours.statistic
    columns = [name for name in ours.runs.columns]
    pd.testing.assert_frame_equal(plain(ours.runs), plain(shipped.runs[columns]), check_dtype=False, rtol=1e-9)
    pd.testing.assert_frame_equal(ours.curves, shipped.curves, check_dtype=False, rtol=1e-5)
    assert load.manifests(reference / "small") == load.manifests(tree)
    first = ["task", "algorithm", "variant", "seed", "env_steps", "score", "status", "statistic"]
    assert pd.read_csv(reference / "small" / "scores.csv").columns[:8].tolist() == first
    assert "/here" not in "".join(path.read_text() for path in (reference / "small").glob("*.json*"))
    assert load.config_of(shipped, "ppo", "clip-0.2") == load.config_of(ours, "ppo", "clip-0.2") != {}


def test_what_is_not_over_is_not_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path, "t", TASKS, VARIANTS, seeds=3, steps=10_000, troubles=True)
    assert load.ship_main(["t", "--out", str(tmp_path), "--to", str(tmp_path / "r")]) == 2
    assert "not over" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_partial_ships_add_up(tmp_path: Path) -> None:
    """What is over is shipped with the rest as missing; a later tree adds its runs and keeps those it does not have."""
    make_tree(tmp_path, "t", TASKS, VARIANTS, seeds=3, steps=10_000, troubles=True)
    reference = load.ship(tmp_path / "t", tmp_path / "r" / "t", partial=True)
    whole, first = load.load(tmp_path / "t").runs, load.load(reference).runs
    waiting = whole["status"].isin(["running", "missing"])
    assert waiting.any() and first[waiting]["status"].eq("missing").all()
    pd.testing.assert_series_equal(first["score"], whole["score"].mask(waiting), check_exact=False)

    other = tmp_path / "elsewhere"
    make_tree(other, "t", TASKS, VARIANTS, seeds=4, steps=10_000)
    for seed in range(3):
        for folder in list((other / "t").glob(f"*/*/{seed}")):
            shutil.rmtree(folder)
    load.ship(other / "t", reference, partial=True)
    second = load.load(reference)
    merged = second.runs.set_index(load.KEYS)["score"]
    before = first[first["status"] != "missing"].set_index(load.KEYS)["score"]
    pd.testing.assert_series_equal(merged[before.index], before)
    assert set(merged[merged.notna()].index) == set(before.index) | {key for key in merged.index if key[3] == 3}
    assert set(second.curves["seed"]) == {0, 1, 2, 3}
    assert len(load.manifests(reference)) == second.runs["status"].ne("missing").sum()

    # A run that was shipped as failed and is under way again keeps its row, and has one manifest.
    failed = first[first["status"] == "failed"].iloc[0]
    again = next((tmp_path / "t" / failed.task).glob(f"*{failed.variant}/{failed.seed}")) / "manifest.json"
    again.write_text(json.dumps(json.loads(again.read_text()) | {"status": "running", "error": None}))
    load.ship(tmp_path / "t", reference, partial=True)
    columns = [*load.KEYS, "status", "score"]
    pd.testing.assert_frame_equal(load.load(reference).runs[columns], second.runs[columns])
    assert len(load.manifests(reference)) == second.runs["status"].ne("missing").sum()

    changed = tmp_path / "changed"
    make_tree(changed, "t", TASKS, VARIANTS, seeds=1, steps=20_000)
    with pytest.raises(ResultsError, match="was shipped with another"):
        load.ship(changed / "t", reference, partial=True)


def test_corrupt_reference(tree: Path, tmp_path: Path) -> None:
    for name in ("scores.csv", "curves.csv.gz", "manifests.jsonl", "experiment.json"):
        folder = load.ship(tree, tmp_path / name)
        (folder / name).write_bytes(b"\x1f\x8b garbage")
        with pytest.raises(ResultsError, match=r"restore|again"):
            load.load(folder)


def test_unknown_names(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run_bench\.py run nothing"):
        load.find("nothing", tmp_path)
    with pytest.raises(ValueError, match="final_100_training_episodes"):
        load.load(tree, statistic="final_10_training_episodes")


def test_a_thousand_runs_in_a_second_or_so(tmp_path: Path) -> None:
    """So that ten thousand take seconds. CPU time, as other work may share the machine."""
    import pyarrow.parquet as pq
    from synthetic import episodes

    table = episodes("Reacher-v5", 0.7, 1_000_000, np.random.default_rng(0), 2000)
    for seed in range(1000):
        folder = tmp_path / "many" / "Reacher-v5" / "ppo" / str(seed)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest("many", "Reacher-v5", "default", seed, 1_000_000)))
        if not seed:
            pq.write_table(table, folder / "episodes.parquet")
            first = folder / "episodes.parquet"
        else:
            (folder / "episodes.parquet").hardlink_to(first)
    begin = time.process_time()
    assert len(load.load(tmp_path / "many").runs) == 1000
    assert time.process_time() - begin < 4


def test_analysis_imports_no_training_code() -> None:
    import subprocess
    import sys

    code = (
        "import importlib, pathlib, sys\n"
        "for path in pathlib.Path('analysis').glob('*.py'): importlib.import_module('analysis.' + path.stem)\n"
        "print([name for name in ('torch', 'gymnasium', 'mujoco', 'algorithms', 'bench') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=scores.ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
