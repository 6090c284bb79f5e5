"""Every figure draws from small and from crowded tables, says what it shows, and is the same file twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import figures

CAPTION = "5 settings, 2 tasks, 3 seeds; bar: a 95 % interval."
ELEVEN = ["no-clip", *(f"clip-{e}" for e in (0.1, 0.2, 0.3)), *(f"adaptive-kl-{d}" for d in (0.003, 0.01, 0.03)),
          *(f"fixed-kl-{b}" for b in (0.3, 1, 3, 10))]  # fmt: skip


def banded(**columns: Any) -> pd.DataFrame:
    table = pd.DataFrame(columns)
    values = np.sin(np.arange(len(table)))
    return table.assign(estimate=values, low=values - 0.1, high=values + 0.1)


def lines(labels: list[str], x: str, tasks: list[str] | None = None) -> pd.DataFrame:
    parts = [
        banded(task=task, label=label, **{x: np.linspace(0, 1e6, 5)}) for task in tasks or ["one"] for label in labels
    ]
    return pd.concat(parts)


def compared(labels: list[str]) -> pd.DataFrame:
    table = banded(label=labels, group=[figures.family(label) for label in labels])
    return table.assign(published=0.1, verdict=["reproduced", "inconclusive"][len(labels) % 2])


DRAWN: list[Callable[[list[str]], Figure]] = [
    lambda labels: figures.learning_curves(lines(labels, "env_steps", ["A-v1", "LongNamedTask-v5"]), CAPTION),
    lambda labels: figures.learning_curves(lines(labels, "episode", ["A-v1"]), CAPTION, x="episode", zero=True),
    lambda labels: figures.intervals(pd.concat([banded(label=labels, metric=m) for m in ("mean", "IQM")]), CAPTION),
    lambda labels: figures.runs(
        compared(labels).assign(task="A-v1", score=0.2), banded(task="A-v1", label=labels), CAPTION
    ),
    lambda labels: figures.profiles(lines(labels, "tau"), CAPTION),
    lambda labels: figures.sample_efficiency(lines(labels, "env_steps"), CAPTION),
    lambda labels: figures.improvement(banded(x=labels[0], y=labels), CAPTION),
    lambda labels: figures.ablation(pd.DataFrame(0.5, index=labels, columns=["A-v1", "B-v1", "mean"]), CAPTION),
    lambda labels: figures.published(compared(labels), CAPTION, "Ours beside the paper's", margin=0.1),
]


@pytest.mark.parametrize("labels", [["ppo"], ["ppo", "dqn"], ELEVEN], ids=["one", "two", "eleven"])
@pytest.mark.parametrize("draw", DRAWN)
def test_every_figure_says_what_it_shows(draw, labels):
    before = dict(matplotlib.rcParams)
    figure = draw(labels)
    assert dict(matplotlib.rcParams) == before
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(matplotlib.text.Text))
    assert CAPTION in words
    for label in labels:
        assert label in words


def swept(sign: float) -> pd.DataFrame:
    """Errors (times `sign`) over alpha of three n in two tasks, one of them far off."""
    rows = [
        {"task": task, "line": n, "x": alpha, "estimate": sign * (0.3 + (alpha * n - 0.8) ** 2)}
        for task in ("A-v0", "B-v0") for n in (1.0, 2.0, 40.0) for alpha in (0.1, 0.4, 0.8)
    ]  # fmt: skip
    return pd.DataFrame(rows).eval("low = estimate - 0.01\nhigh = estimate + 0.01")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sweep_shows_where_the_best_are(sign: float):
    figure = figures.sweep(swept(sign), CAPTION, "title", "alpha", "error", "n", lower_is_better=sign > 0)
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(matplotlib.text.Text))
    assert CAPTION in words and all(name in words for name in ("n = 1", "n = 2", "n = 40", "alpha", "error", "B-v0"))
    low, high = figure.axes[0].get_ylim()
    assert low < sign * 0.3 < high and not low < sign * 900 < high
    assert figures.sweep(swept(1.0).head(3), CAPTION, "t", "alpha", "error", "n", True).axes[0].get_xlabel() == "alpha"


def test_saved_as_png_and_svg_twice_the_same(tmp_path):
    for folder in ("a", "b"):
        paths = figures.save(DRAWN[0](["ppo", "dqn"]), tmp_path / folder, "curves")
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["curves.png", "curves.svg"]
    for path in paths.values():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_families_share_a_hue_and_no_two_lines_look_alike():
    assert list(figures.families(ELEVEN)) == [figures.WITHOUT, "clip", "adaptive-kl", "fixed-kl"]
    look = figures.looks(ELEVEN)
    assert len({(one.colour, str(one.dash)) for one in look.values()}) == len(ELEVEN)
    assert len({look[label].hue for label in ELEVEN}) == 4
    assert look["clip-0.1"].hue == look["clip-0.3"].hue


def test_more_families_than_hues_are_told_apart_by_dashes() -> None:
    labels = [*(f"+{letter}" for letter in "abcdefghijklmnopqrst"), "none", *(f"no-{letter}" for letter in "abcdef")]
    look = figures.looks(labels)
    assert len({(look[label].colour, str(look[label].dash)) for label in labels}) == len(labels)


def test_a_number_alone_is_its_own_family():
    assert figures.family("100") == "100"


def test_far_off_values_are_cut_and_marked_not_lost():
    labels = [f"s{i}x" for i in range(12)]
    table = banded(label=labels, metric="mean")
    table.loc[0, ["estimate", "low", "high"]] = [-900.0, -950.0, -850.0]
    figure = figures.intervals(table, CAPTION)
    (axes,) = figure.axes
    assert axes.get_xlim()[0] > -100
    assert "◀ −900" in [text.get_text() for text in axes.texts]


def test_limits_keep_ordinary_values():
    low, high = figures._limits([0.0, 0.5, 1.0])
    assert low <= 0.0
    assert high >= 1.0
    assert figures._limits([np.nan]) == (0.0, 1.0)
    low, high = figures._limits([1000.0] * 20)  # wide enough for ticks that differ in three digits
    assert (low, high) == (950.0, 1050.0)


def test_rows_without_runs_are_named_and_not_drawn():
    table = compared(["a", "b"]).assign(estimate=[np.nan, 0.2])
    table.loc[0, "verdict"] = "not comparable"
    words = [text.get_text() for text in figures.published(table, CAPTION, "title", margin=0.1).axes[0].texts]
    assert "≠ not comparable" in words
    assert "–" in words


def test_missing_cells_of_the_heat_map_are_dashes():
    matrix = pd.DataFrame([[0.25, np.nan], [-1.5, 1.0]], index=["a", "b"], columns=["A-v1", "mean"])
    words = [text.get_text() for text in figures.ablation(matrix, CAPTION).axes[0].texts]
    assert words == ["0.25", "–", "−1.50", "1.00"]


@pytest.mark.parametrize("size", [6, 24, 40])
def test_no_legend_leaves_the_figure(size: int) -> None:
    labels = [f"algorithm_{i} {'x' * size}" for i in range(9)]
    figure = figures.learning_curves(lines(labels, "env_steps", ["A-v1", "B-v1"]), CAPTION)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert [text.get_text() for text in legend.get_texts()]
