"""The page holds everything by itself, lists what did not finish, and its tables carry the numbers of the runs."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import claims, load, pictures, report, scores, tables, verify
from analysis.rule import Verdict
from tests.analysis import synthetic, test_load

TASKS = ("Hopper-v5", "Swimmer-v5")
VARIANTS = ("no-clip", "clip-0.1", "clip-0.2")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return synthetic.make_tree(root, "made_up", TASKS, VARIANTS, seeds=4, most=200, troubles=True) / "made_up"


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory) -> Path:
    rows = [Verdict("ppo_table1", v, "INCONCLUSIVE", "C", 0.5, 0.6, -0.1, -0.2, 0.0, 0.1, 1.0, 4, 3) for v in VARIANTS]
    rows += [Verdict("ppo_table1", "clip 0.2 is best", "holds", note="place 1 of 3")]
    rows += [Verdict("a table: of <them>", "Hopper-v5: ppo", "WORSE", "A", 1.0, 2.0, -1.0, -1.2, -0.8, 0.2, 2.0, 4, 5)]
    decided = [claims.Claim("T1", "a claim", "a paper", "a test", status="holds")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "verdicts", lambda results: rows)
        patch.setattr(claims, "evaluate", lambda results, found: decided)
        return report.make(load.load(tree), tmp_path_factory.mktemp("report"))


def test_the_page_needs_nothing_else(made):
    text = made.read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "<script" not in text


def test_the_page_tells_apart_what_did_not_finish(made):
    text = made.read_text()
    for status, count in {"finished": 20, "failed": 1, "diverged": 1, "running": 1, "missing": 1}.items():
        assert f"<b>{count}</b> {status}" in text
    assert "Part done" in text
    assert "the environment received a non-finite action" in text
    assert "policy weights are not finite" in text
    rows = pd.read_csv(made.parent / "tables" / "unfinished.csv")
    assert rows["status"].tolist() == ["failed", "diverged", "running", "missing"]


def test_the_page_says_how_it_was_made(made):
    text = made.read_text()
    commands = ("python run_bench.py run made_up", "python run_bench.py report made_up")
    for words in (
        *commands,
        "0123456789ab",
        "torch 2.13.0",
        "Synthetic CPU avx512",
        "float32",
        "2 min, added over groups",
        "best single run",
    ):
        assert words in text


def test_verdicts_statements_and_claims_stand_on_the_page(made):
    text = made.read_text()
    assert '<span class="chip inconclusive">? inconclusive</span>' in text
    assert '<span class="chip worse">▼ worse</span>' in text
    assert "place 1 of 3" in text
    assert "a table: of &lt;them&gt;" in text
    assert (made.parent / "figures" / "ppo_table1.png").is_file()
    assert (made.parent / "figures" / "published-a-table-of-them.svg").is_file()


def test_tables_hold_the_numbers_of_the_runs(made, tree):
    runs = load.load(tree).runs
    table = pd.read_csv(made.parent / "tables" / "tasks.csv").set_index(["setting", "task"])
    mine = runs[(runs["variant"] == "clip-0.2") & (runs["task"] == "Swimmer-v5")]["score"].dropna()
    assert table.loc[("clip-0.2", "Swimmer-v5"), "mean"] == pytest.approx(mine.mean())
    assert table.loc[("clip-0.2", "Swimmer-v5"), "runs"] == len(mine)
    headline = pd.read_csv(made.parent / "tables" / "headline.csv").set_index("setting")
    anchors = scores.best_anchors(runs, "best-run")
    normal = runs.assign(normal=scores.normalize_column(runs, anchors))
    whole = normal[(normal["variant"] == "clip-0.1")]
    assert headline.loc["clip-0.1", "mean"] == pytest.approx(whole["normal"].mean())
    assert (
        headline.loc["clip-0.1", "mean_low"] < headline.loc["clip-0.1", "mean"] < headline.loc["clip-0.1", "mean_high"]
    )
    assert len(pd.read_csv(made.parent / "tables" / "runs.csv")) == 24
    assert "| clip-0.2 |" in (made.parent / "tables" / "headline.md").read_text()


def test_no_temporary_file_is_left(made):
    assert not [path for path in made.parent.rglob("*.part")]


def test_metrics_have_a_section_of_their_own(tmp_path):
    folder = test_load.metric_tree(tmp_path)
    text = report.make(load.load(folder), tmp_path / "out").read_text()
    assert '<h2 id="metrics">Metrics</h2>' in text and '<h2 id="asked">' not in text
    assert sorted(path.name for path in (tmp_path / "out" / "figures").glob("metric-*.svg")) == [
        "metric-error.svg",
        "metric-loss.svg",
    ]
    this = tables.study(load.load(folder))
    rows = pictures.metric_rows(this)
    assert (rows["error"]["env_steps"] >= 500).all()  # where every seed has a number
    assert rows["error"]["estimate"].unique().tolist() == [1.0] and set(rows["loss"]["n"]) == {2}
    shipped = load.load(load.ship(folder, tmp_path / "r"))
    pd.testing.assert_frame_equal(pictures.metric_rows(tables.study(shipped))["loss"], rows["loss"], rtol=1e-4)


def test_results_without_metrics_have_no_such_section(made):
    assert 'id="metrics"' not in made.read_text()


def test_metrics_of_many_runs_are_left_out_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "METRIC_RUNS", 3)
    text = report.make(load.load(test_load.metric_tree(tmp_path)), tmp_path / "out").read_text()
    assert 'id="metrics"' not in text and "Metrics are shown of trees of up to 3 runs" in text


def test_a_metric_as_the_score_is_said_to_be_one(tmp_path, capsys):
    """No normalized scores, no talk of returns; lower is better, and the report says so."""
    folder = test_load.metric_tree(tmp_path, 3, score={"statistic": "final_metric:error", "better": "lower"})
    assert report.main([str(folder), "--to", str(tmp_path / "out")]) == 0
    assert "mean score" in capsys.readouterr().out
    text = (tmp_path / "out" / "index.html").read_text()
    assert "last value of the metric error; lower is better" in text
    assert "Scores are not normalized: error is no return" in text
    assert "scores below one of the other" in text


def test_lower_errors_are_improvements(tmp_path):
    folder = synthetic.write_experiment(tmp_path, "e", score={"statistic": "final_metric:error", "better": "lower"})
    for algorithm, level in (("good", 0.1), ("bad", 0.9)):
        for seed in range(3):
            metrics = {"error": ([1000], [level + 0.01 * seed])}
            synthetic.one_run(folder, "T-v0", algorithm, "default", seed, metrics=metrics)
    this = tables.study(load.load(folder))
    whole = {name: -scores.score_matrix(this.results.runs, *pair).scores for pair, name in this.labels.items()}
    assert pictures.baseline(this, whole) == "good"
    drawn = {one.name: one for one in pictures.draw(this, tables.headline(this), [], tmp_path / "f")}
    assert "a run of good scores below" in drawn["improvement"].caption


def test_figures_that_the_experiment_asks_for(tmp_path):
    asked = [
        {"kind": "episodes", "episodes": 20, "title": "While it learns"},
        {"kind": "difference", "of": ["loss", "error"]},
        {"kind": "sweep", "x": "learning_rate", "lines": "gamma"},
        {"kind": "difference", "of": ["loss", "nothing"]},  # no data: no figure
    ]
    folder = test_load.metric_tree(tmp_path, report={"figures": asked})
    for path in (folder, load.ship(folder, tmp_path / "r")):
        results = load.load(path)
        made = pictures.asked_pictures(tables.study(results))
        assert [one["title"] for one in made] == [
            "While it learns", "loss minus error", "final_100_training_episodes over learning_rate",
        ]  # fmt: skip
        episodes, gap, sweep = (one["table"] for one in made)
        assert episodes[episodes["label"] == "a"]["estimate"].tolist() == [10.0 + i for i in range(20)]
        assert (gap["env_steps"] >= 500).all() and len(sweep) == 2 and set(sweep["x"]) == {3e-4}
    text = report.make(load.load(folder), tmp_path / "out").read_text()
    assert '<h2 id="asked">Figures</h2>' in text and "While it learns" in text


def test_more_settings_than_a_figure_can_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MANY", 1)
    asked = [{"kind": "sweep", "x": "learning_rate", "lines": "gamma"}]
    folder = test_load.metric_tree(tmp_path, report={"figures": asked})
    this = tables.study(load.load(folder))
    assert [one.name for one in pictures.draw(this, tables.headline(this), [], tmp_path / "f")] == ["asked-1"]


def one_run(root: Path, **more) -> Path:
    return synthetic.make_tree(root, "one", ("CartPole-v1",), ("default",), seeds=1, steps=5000, **more) / "one"


def test_a_single_run_reports_its_return_and_no_interval(tmp_path, capsys):
    assert report.main([str(one_run(tmp_path)), "--to", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "report:" in out and "mean return" in out
    text = (tmp_path / "out" / "index.html").read_text()
    assert "with a single task, returns say it all" in text
    table = pd.read_csv(tmp_path / "out" / "tables" / "headline.csv")
    assert np.isfinite(table.loc[0, "mean"]) and np.isnan(table.loc[0, "low"])


def test_a_task_that_nothing_learns_has_no_normalized_score(tmp_path):
    folder = synthetic.write_experiment(tmp_path, "flat")
    for seed, (variant, earned) in itertools.product(range(3), {"low": 100.0, "high": 400.0}.items()):
        synthetic.one_run(folder, "CartPole-v1", "a2c", variant, seed, returns=[earned + seed])
        synthetic.one_run(folder, "MountainCar-v0", "a2c", variant, seed, returns=[-200.0])  # what the random one earns
    study = tables.study(load.load(folder))
    assert study.flat == ["MountainCar-v0"] and study.tasks == ["CartPole-v1"]
    table = tables.headline(study).data.set_index("setting")
    assert table["seeds"].tolist() == [3, 3] and table.loc["high", "mean"] == pytest.approx(0.998, abs=0.002)
    assert tables.anchor_table(study).data["task"].tolist() == ["CartPole-v1"]
    text = re.sub(r"\s+", " ", report.make(load.load(folder), tmp_path / "out").read_text())
    assert "Nothing learned MountainCar-v0" in text and "leave it out" in text and "Left out:" not in text
    synthetic.write_experiment(tmp_path, "all_flat")
    for seed, task in itertools.product(range(2), ("Acrobot-v1", "MountainCar-v0")):
        for variant in ("low", "high"):
            synthetic.one_run(tmp_path / "all_flat", task, "a2c", variant, seed, returns=[-500.0])
    nothing = tables.study(load.load(tmp_path / "all_flat"))
    assert nothing.anchors is None and "nowhere is the best result above" in nothing.raw
    assert tables.headline(nothing).data["mean"].tolist() == [-500.0] * 4


def test_ranks_by_task(tmp_path):
    ranked = {"low": 1.0, "middle": 2.0, "high": 3.0}
    for better, places in {"higher": [3, 2, 1], "lower": [1, 2, 3]}.items():
        folder = synthetic.write_experiment(
            tmp_path, better, score={"statistic": "final_100_training_episodes", "better": better}
        )
        for seed, (variant, earned), task in itertools.product(range(3), ranked.items(), ("A-v0", "B-v0", "C-v0")):
            if (variant, task) != ("low", "C-v0"):  # nothing is ranked where one setting has no score
                synthetic.one_run(folder, task, "a2c", variant, seed, returns=[earned])
        table = tables.rank_table(tables.study(load.load(folder)))
        found = table.data.pivot(index="setting", columns="task", values="rank").loc[list(ranked)]
        assert list(found) == ["A-v0", "B-v0", "mean"] and found.T.eq(places).all(axis=None)
    page = report.make(load.load(folder), tmp_path / "out").read_text()
    assert "Ranks by task" in page and (tmp_path / "out" / "tables" / "ranks.csv").is_file()


def test_a_tree_where_nothing_is_over_says_so(tmp_path):
    folder = one_run(tmp_path)
    path = next(folder.glob("*/*/*/manifest.json"))
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"status": "running", "ended": None, "cpu_seconds": None})
    )
    text = report.make(load.load(folder), tmp_path / "out").read_text()
    assert "Part done" in text
    assert "<b>0</b> finished" in text


def test_shipped_results_give_the_same_tables(tmp_path):
    folder = synthetic.make_tree(tmp_path, "made_up", TASKS, VARIANTS[1:], seeds=3, most=120) / "made_up"
    load.ship(folder, tmp_path / "reference")
    ours, shipped = (tables.headline(tables.study(load.load(path))).shown for path in (folder, tmp_path / "reference"))
    pd.testing.assert_frame_equal(ours, shipped)


def test_aggregates_leave_out_tasks_that_a_setting_lacks(tmp_path):
    folder = synthetic.make_tree(tmp_path, "made_up", TASKS, VARIANTS[1:], seeds=2, most=120) / "made_up"
    for path in (folder / "Swimmer-v5" / "ppo+clip-0.2").glob("*/*"):
        path.unlink()
    this = tables.study(load.load(folder))
    assert this.tasks == ["Hopper-v5"]
    assert [len(matrix.seeds) for matrix in this.matrices.values()] == [2, 2]


@pytest.mark.parametrize("wrong", [["nothing_called_so"], ["made_up", "--statistic", "final_100"]])
def test_a_wrong_call_exits_2_with_one_message(wrong, tree, capsys):
    assert report.main([*wrong, "--out", str(tree.parent)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("report: ") and "Traceback" not in said


def test_numbers_are_short_and_intervals_share_their_digits():
    assert tables.number(1234.5) == "1,234"
    assert tables.number(-0.387) == "−0.39"
    assert tables.number(float("nan")) == "–"
    assert tables.spanned(0.7, 0.655, 0.78) == "0.70 [0.66, 0.78]"
    assert tables.spanned(812.4, 9.0, 1000.0) == "812 [9, 1,000]"


def test_names_in_a_description_are_code_and_nothing_else_is_markup():
    assert report.prose("preset `paper` & <b>") == "preset <code>paper</code> &amp; &lt;b&gt;"
    assert report.prose("`run x`") == "<code><span>run</span> <span>x</span></code>"


def test_analysis_does_not_import_what_trains():
    code = "import sys, analysis.report; print({'torch', 'gymnasium', 'algorithms', 'bench'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=scores.ROOT)
    assert run.stdout.strip() == "set()"
