"""Every figure of the suite, in one style.

A figure is a short function of one table (a DataFrame whose columns the docstring names) and returns a matplotlib
Figure; nothing is computed here but positions. `caption` says, inside the image, what the reader needs to judge it:
runs, seeds, tasks, what the interval is, and the statistic. `save` writes PNG and SVG. Colours are Okabe and Ito's,
which stay apart for colour-blind readers; dashes repeat what shade says.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

INK, MUTED, FAINT, RULE, ZONE = "#1b1f24", "#5b6570", "#c3c9d0", "#e4e7eb", "#dfe3e8"
SLATE = "#3f4955"  # for what is left out: families called "no-..."
HUES = ("#0072B2", "#D55E00", "#009E73", "#B8569A", "#E69F00", "#56B4E9", "#6A3D9A", "#7A5C2E")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
WIDTH = 7.2  # inches; text stays legible when a page shows the figure at half of it
CROWD = 6  # more lines than this in one panel cannot be told apart: one panel per family then
VERDICTS = {  # verdict -> (sign, colour), used by the figures and by the page
    "reproduced": ("✓", "#00734f"),
    "better": ("▲", "#0072B2"),
    "worse": ("▼", "#b8420a"),
    "inconclusive": ("?", "#5b6570"),
    "not comparable": ("≠", "#8a6d00"),
    "holds": ("✓", "#00734f"),
    "fails": ("✗", "#b8420a"),
    "open": ("…", "#5b6570"),
}


def style() -> Any:  # a dict of matplotlib settings, which matplotlib types by all its keys
    """The one style, as matplotlib settings: light ground, quiet grid, reproducible SVG."""
    return seaborn.axes_style("whitegrid") | {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9.0,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.bottom": False,
        "ytick.left": False,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.7,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.dpi": 200,
        "figure.dpi": 100,
        "svg.fonttype": "path",
        "svg.hashsalt": "touchstone",
    }


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the one style, and leaves matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(style()):
            return draw(*args, **kwargs)

    return drawn


class Look(NamedTuple):
    """How one label's lines are drawn."""

    colour: tuple[float, float, float]
    dash: Any
    hue: str  # the family's colour, for figures whose rows are named on the axis


WITHOUT = "without"  # the family of all that leaves something out


def family(label: str) -> str:
    """`clip-0.2` -> `clip`: variants that differ by a number share a hue, and so do `no-this`, `no-that` and `none`."""
    if re.search(r"\bno(ne\b|[- ])", label.lower()):
        return WITHOUT
    return re.sub(r"[-_= ]*[0-9][0-9.e+-]*$", "", label) or label


def families(labels: Iterable[str]) -> dict[str, list[str]]:
    """family -> its labels, in order of appearance."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(family(label), []).append(label)
    return groups


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A hue per family, from light to dark within it; dashes tell the members apart without colour.

    Where there are more families than hues, those of the second round start with the second dash.
    """
    found = {}
    hues = ((hue, number) for number in itertools.count() for hue in HUES)
    for name, members in families(labels).items():
        hue, first = (SLATE, 0) if name == WITHOUT else next(hues)
        for place, label in enumerate(members):
            shift = 0.0 if len(members) == 1 else np.linspace(0.35, -0.40, len(members))[place]
            base = np.array(to_rgb(hue))
            red, green, blue = (
                float(part) for part in (base + (1.0 - base) * shift if shift > 0 else base * (1 + shift))
            )
            found[label] = Look((red, green, blue), DASHES[(first + place) % len(DASHES)], hue)
    return found


def save(figure: Figure, folder: Path, name: str) -> dict[str, Path]:
    """Writes `name`.png and `name`.svg under a temporary name, then renames; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with matplotlib.rc_context(style()):
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(partial, format=kind, metadata=metadata)
            figure.set_layout_engine("none")  # keep the layout of the first: both alike, and half the work
            os.replace(partial, path)
            paths[kind] = path
    return paths


# Shared parts ---------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str, caption: str, header: float = 0.0) -> Figure:
    """An empty figure: `height` inches of panels between title (and `header` inches for a legend) and caption."""
    columns = int(width * 18)  # characters of 7.5 pt text that fit
    lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, columns)]
    above, below = 0.34 + header, 0.10 + 0.145 * len(lines)
    total = above + height + below
    figure = Figure(figsize=(width, total), layout="constrained")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0.0, below / total, 1.0, height / total), w_pad=0.06, h_pad=0.05, wspace=0.02, hspace=0.02)
    quiet: dict[str, Any] = {"ha": "left", "in_layout": False}
    note = "\n".join(lines)
    figure.text(0.012, 1 - 0.08 / total, title, va="top", fontsize=11.5, fontweight="bold", **quiet)
    figure.text(0.012, 0.06 / total, note, va="bottom", fontsize=7.5, color=MUTED, linespacing=1.35, **quiet)
    return figure


def _columns_that_fit(names: Sequence[str], most: int, width: float = WIDTH) -> int:
    """How many columns of a legend fit beside each other in so many inches, in the rows' order."""
    size = matplotlib.rcParams["legend.fontsize"]
    font, text = FontProperties(size=size), TextToPath()  # type: ignore[no-untyped-call]
    widths = [text.get_text_width_height_descent(name, font, False)[0] for name in names]  # points
    beside = (2.2 + 0.8 + 1.5) * size  # handle, its distance from the text, that of the columns
    for columns in range(min(most, len(names)), 1, -1):
        if sum(max(widths[start::columns]) + beside for start in range(columns)) <= 0.97 * 72 * width:
            return columns
    return 1


def _head_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """A legend under the title, in the room that `header` keeps."""
    legend = figure.legend(
        [h for start in range(columns) for h in handles[start::columns]],  # matplotlib fills columns first
        [n for start in range(columns) for n in names[start::columns]],
        loc="upper left", ncols=columns, columnspacing=1.5, handlelength=2.2, borderaxespad=0.0, borderpad=0.0,
        bbox_to_anchor=(0.014, 1 - 0.37 / figure.get_figheight()),
    )  # fmt: skip
    legend.set_in_layout(False)


def _count(value: float, _: Any = None) -> str:
    """1200000 -> 1.2M, 50000 -> 50k: env_steps on an axis."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"


def _step_axis(axes: Axes, last: float) -> None:
    axes.set_xlim(0, last or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_count))


def _order(values: Iterable[str], order: Sequence[str] | None) -> list[str]:
    present = list(dict.fromkeys(values))
    return [value for value in order if value in present] if order else present


def _line(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    axes.plot(rows[x], rows["estimate"], color=look.colour, linestyle=look.dash, zorder=3)
    if {"low", "high"} <= set(rows):
        low, high = rows["low"].astype(float), rows["high"].astype(float)
        axes.fill_between(rows[x], low, high, color=look.colour, alpha=0.16, linewidth=0, zorder=2)


def _limits(values: Any, pad: float = 0.05, reach: float = 1.0) -> tuple[float, float]:
    """An axis range that a few far-off values cannot squeeze: at most `reach` times the middle's width to either side.

    What lies outside has to be marked by the figure (`_beyond`), so that it is not lost silently.
    """
    known = np.asarray(values, dtype=float).ravel()
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.quantile(known, [0.12, 0.95])
    span = (high - low) or abs(high) or 1.0
    low, high = max(known.min(), low - reach * span), min(known.max(), high + reach * span)
    pad *= (high - low) or abs(high) or 1.0
    return float(low - pad), float(high + pad)


def _beyond(axes: Axes, y: float, value: float, colour: Any) -> bool:
    """Marks, at the edge, a row whose value lies outside of the horizontal range."""
    left, right = axes.get_xlim()
    if left <= value <= right:
        return False
    low = value < left
    text = f"◀ {_count(value)}".replace("-", "−") if low else f"{_count(value)} ▶"
    axes.annotate(text, (0.0 if low else 1.0, y), va="center",
                  xycoords=("axes fraction", "data"), xytext=(2 if low else -2, 0), textcoords="offset points",
                  ha="left" if low else "right", fontsize=8.0, color=colour, zorder=6)  # fmt: skip
    return True


def _handles(labels: Sequence[str], look: Mapping[str, Look]) -> list[Line2D]:
    return [Line2D([], [], color=look[k].colour, linestyle=look[k].dash, linewidth=2.2) for k in labels]


def _panel_legend(
    axes: Axes, labels: Sequence[str], look: Mapping[str, Look], columns: int, longest: int = 99, **more: Any
) -> None:
    """A legend in the head of one panel; names of more than `longest` characters are broken."""
    order = [label for start in range(columns) for label in labels[start::columns]]
    names = [_in_two_lines(label, longest) for label in order]
    axes.legend(_handles(order, look), names, handlelength=2.4, columnspacing=1.2, labelspacing=0.25, ncols=columns,
                loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, **more)  # fmt: skip


def _forest(axes: Axes, heights: Any, rows: pd.DataFrame, colours: Sequence[Any]) -> None:
    """Points with their intervals as rounded bars, one row each; the range of the axis has to be set before."""
    for y, row, colour in zip(heights, rows.itertuples(), colours, strict=True):
        if not np.isfinite(row.estimate) or _beyond(axes, y, row.estimate, colour):
            continue
        axes.plot([row.low, row.high], [y, y], color=colour, alpha=0.36, linewidth=5.0, zorder=2)
        axes.plot(row.estimate, y, "o", color=colour, markersize=5.4, markeredgecolor="white", markeredgewidth=0.7)


def _words(task: str, width: int) -> str:
    """`InvertedDoublePendulum-v5` -> `Inverted\\nDouble\\nPendulum`: a task's name in lines of about `width`."""
    lines = [""]
    for word in re.findall(r"[A-Z]?[a-z0-9]+|[^A-Za-z0-9]+|[A-Z]+(?![a-z])", re.sub(r"-v\d+$", "", task)) or [task]:
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _in_two_lines(label: str, width: int = 26) -> str:
    """A setting's name, broken at the space or comma nearest to its middle where it is longer than `width`."""
    places = [found.end() for found in re.finditer(r"[ ,]", label)]
    if len(label) <= width or not places:
        return label
    place = min(places, key=lambda end: abs(end - len(label) / 2))
    return f"{label[:place].rstrip()}\n{label[place:]}"


def _row(names: Sequence[str], height: float) -> float:
    """Inches of a row of a figure with these names on the left: `height`, or what two lines need."""
    return max(height, 0.3) if any("\n" in name for name in names) else height


def _place(axes: Axes) -> Any:
    return axes.get_subplotspec()


# Figures --------------------------------------------------------------------------------------------------------------


@styled
def learning_curves(
    curves: pd.DataFrame,
    caption: str,
    title: str = "Learning curves",
    ylabel: str = "episode return",
    order: Sequence[str] | None = None,
    x: str = "env_steps",
    zero: bool = False,
) -> Figure:
    """Small multiples of `curves` (task, label, env_steps or what `x` names, estimate, low, high), a panel per task.

    `zero` draws the line at 0. Where one panel would be too crowded, each family of variants gets a column and the
    others stay behind it in grey.
    """
    tasks = list(dict.fromkeys(curves["task"]))
    labels = _order(curves["label"], order)
    look, groups = looks(labels), families(labels)
    split = len(labels) > CROWD and len(groups) <= 5
    if not split:
        groups = {"": labels}
    columns = len(groups) if split else 2 if len(tasks) == 4 else min(3, len(tasks))
    flat = [(task, members) for task in tasks for members in groups.values()]
    rows = -(-len(flat) // columns)
    across = _columns_that_fit(labels, 4)
    header = 0.0 if split else 0.20 * -(-len(labels) // across) + 0.05
    panel = 1.22 if split else 3.0 if columns == 1 else 1.9
    figure = _figure(WIDTH, panel * rows + (0.75 if split else 0.25), title, caption, header)
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if split else False)
    for number, (task, members) in enumerate(flat):
        axes = grid.flat[number]
        here = curves[curves["task"] == task]
        for label in labels:
            rows_of = here[here["label"] == label]
            if label in members:
                _line(axes, rows_of, x, look[label])
            else:
                axes.plot(rows_of[x], rows_of["estimate"], color=FAINT, linewidth=0.7, alpha=0.8, zorder=1)
        _step_axis(axes, float(here[x].max()))
        if zero:
            axes.axhline(0.0, color=MUTED, linewidth=0.8, zorder=1)
        bottom, top = _limits(here[["estimate", "low", "high"]])
        axes.set_ylim(bottom, top)
        for label in members:
            ends = here[here["label"] == label]["estimate"].tail(1)
            if len(ends) and ends.iloc[0] < bottom:
                text = f"▼ to {_count(ends.iloc[0])}".replace("-", "−")
                axes.annotate(text, (1.0, 0.0), xycoords="axes fraction", ha="right", xytext=(-2, 3),
                              textcoords="offset points", fontsize=7.8, color=look[label].colour)  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(_count))
        last = number + columns >= len(flat)
        if last:
            axes.set_xlabel(x)
        if split:
            axes.tick_params(labelbottom=last)
            if number % columns == 0:
                axes.set_ylabel(_words(task, 14), color=INK, fontsize=8.5, fontweight="bold")
            if number < columns:
                longest = int((WIDTH / columns - 0.5) / 0.06)  # inches of a letter of 7.8 points
                _panel_legend(axes, members, look, 1, longest, fontsize=7.8)
        else:
            axes.set_title(task, fontsize=9.5 if len(task) < 20 or columns < 3 else 8.2)
            if number % columns == 0:
                axes.set_ylabel(ylabel)
    for axes in grid.flat[len(flat) :]:
        axes.set_axis_off()
    if header:
        _head_legend(figure, _handles(labels, look), labels, across)
    return figure


@styled
def intervals(
    aggregates: pd.DataFrame,
    caption: str,
    title: str = "Aggregate normalized score",
    order: Sequence[str] | None = None,
) -> Figure:
    """`aggregates` (label, metric, estimate, low, high): one panel per metric, one row per label."""
    labels = _order(aggregates["label"], order)
    metrics = list(dict.fromkeys(aggregates["metric"]))
    look = looks(labels)
    names = [_in_two_lines(label) for label in labels]
    figure = _figure(WIDTH, _row(names, 0.25) * len(labels) + 0.75, title, caption)
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    heights = np.arange(len(labels))[::-1]
    for axes, metric in zip(grid, metrics, strict=True):
        rows = aggregates[aggregates["metric"] == metric].set_index("label").reindex(labels)
        axes.set_xlim(_limits(rows[["estimate", "low", "high"]], reach=5.0))
        _forest(axes, heights, rows, [look[label].hue for label in labels])
        axes.set_title(metric)
        axes.set_xlabel("← lower is better" if "gap" in metric.lower() else "higher is better →", fontsize=7.8)
        axes.set_yticks(heights, names)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        _rows_on_the_left(axes)
    return figure


@styled
def runs(
    table: pd.DataFrame,
    means: pd.DataFrame,
    caption: str,
    title: str = "Every run's score",
    order: Sequence[str] | None = None,
) -> Figure:
    """`table` (task, label, score) as dots, `means` (task, label, estimate, low, high) as bars; one panel per task."""
    tasks, labels = list(dict.fromkeys(table["task"])), _order(table["label"], order)
    look = looks(labels)
    columns = 1 if len(tasks) == 1 else 2 if len(tasks) in (2, 4) else 3
    rows = -(-len(tasks) // columns)
    names = [_in_two_lines(label) for label in labels]
    figure = _figure(WIDTH, rows * (_row(names, 0.19) * len(labels) + 0.55) + 0.1, title, caption)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    heights = np.arange(len(labels))[::-1]
    spread = np.random.default_rng(0)
    for task, axes in zip(tasks, grid.flat, strict=False):
        middle = means[means["task"] == task].set_index("label").reindex(labels)
        axes.set_xlim(_limits([*middle["estimate"], *table[table["task"] == task]["score"]], reach=2.0))
        _forest(axes, heights, middle, [look[label].hue for label in labels])
        for y, label in zip(heights, labels, strict=True):
            values = table[(table["task"] == task) & (table["label"] == label)]["score"].to_numpy(dtype=float)
            jitter = spread.uniform(-0.22, 0.22, len(values))
            shade = max(0.12, 0.7 / max(1.0, len(values) / 10))
            (dots,) = axes.plot(values, y + jitter, "o", color=look[label].hue, markersize=2.6, alpha=shade)
            dots.set(markeredgewidth=0, rasterized=len(table) > 2000)  # so many dots would make an SVG of megabytes
        axes.set_title(task, fontsize=9.0 if len(task) < 20 or columns < 3 else 8.2)
        axes.set_yticks(heights, names)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(_count))
        _rows_on_the_left(axes)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    return figure


def _rows_on_the_left(axes: Axes) -> None:
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _family_panels(
    table: pd.DataFrame, x: str, order: Sequence[str] | None, title: str, caption: str
) -> tuple[Figure, list[Axes]]:
    """One panel with every line, or one per family with the others in grey; legends stand in the panels' heads."""
    labels = _order(table["label"], order)
    look = looks(labels)
    groups = families(labels) if len(labels) > CROWD else {"": labels}
    columns = 2 if len(groups) > 1 else 1
    rows = -(-len(groups) // columns)
    figure = _figure(WIDTH, (2.3 if columns > 1 else 3.1) * rows, title, caption)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, members in zip(grid.flat, groups.values(), strict=False):
        for label in labels:
            rows_of = table[table["label"] == label]
            if label in members:
                _line(axes, rows_of, x, look[label])
            else:
                axes.plot(rows_of[x], rows_of["estimate"], color=FAINT, linewidth=0.7, zorder=1)
        across = _columns_that_fit(members, 2, 0.5 * WIDTH - 0.5) if columns > 1 else min(3, len(members))
        _panel_legend(axes, members, look, across)
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    return figure, list(grid.flat[: len(groups)])


@styled
def profiles(
    table: pd.DataFrame, caption: str, title: str = "Performance profiles", order: Sequence[str] | None = None
) -> Figure:
    """`table` (label, tau, estimate, low, high): the share of runs whose normalized score exceeds tau."""
    figure, panels = _family_panels(table, "tau", order, title, caption)
    for number, axes in enumerate(panels):
        axes.set_xlim(float(table["tau"].min()), float(table["tau"].max()))
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.axvline(0.0, color=MUTED, linewidth=0.8, zorder=1)
        if _place(axes).is_first_col():
            axes.set_ylabel("share of runs above τ")
        if number >= len(panels) - 2:
            axes.set_xlabel("normalized score τ")
            axes.tick_params(labelbottom=True)  # also where another panel would have stood below
    return figure


@styled
def sample_efficiency(
    table: pd.DataFrame,
    caption: str,
    title: str = "Sample efficiency",
    ylabel: str = "IQM normalized score",
    order: Sequence[str] | None = None,
) -> Figure:
    """`table` (label, env_steps, estimate, low, high): the aggregate over all tasks while training goes on."""
    figure, panels = _family_panels(table, "env_steps", order, title, caption)
    for number, axes in enumerate(panels):
        _step_axis(axes, float(table["env_steps"].max()))
        axes.axhline(0.0, color=MUTED, linewidth=0.8, zorder=1)
        if _place(axes).is_first_col():
            axes.set_ylabel(ylabel)
        if number >= len(panels) - 2:
            axes.set_xlabel("env_steps per run")
            axes.tick_params(labelbottom=True)
    return figure


@styled
def improvement(table: pd.DataFrame, caption: str, title: str = "Probability of improvement") -> Figure:
    """`table` (x, y, estimate, low, high): P(a run of x does better than one of y on a task); 0.5: no difference."""
    pairs = list(zip(table["x"], table["y"], strict=True))
    between = "\nover " if any(len(x + y) > 46 for x, y in pairs) else "  over  "
    names = [f"{x}{between}{y}" for x, y in pairs]
    figure = _figure(WIDTH, _row(names, 0.27) * len(table) + 0.65, title, caption)
    axes = figure.subplots()
    heights = np.arange(len(table))[::-1]
    settled = [HUES[0] if row.low > 0.5 else HUES[1] if row.high < 0.5 else MUTED for row in table.itertuples()]
    axes.axvline(0.5, color=MUTED, linewidth=1.0, zorder=1)
    axes.set_xlim(0, 1)
    _forest(axes, heights, table, settled)
    axes.set_yticks(heights, names)
    axes.set_ylim(-0.6, len(table) - 0.4)
    _rows_on_the_left(axes)
    axes.set_xlabel("P(X over Y)      blue: X is better · orange: Y is better · grey: cannot tell", fontsize=8.2)
    return figure


@styled
def sweep(
    table: pd.DataFrame,
    caption: str,
    title: str,
    xlabel: str,
    ylabel: str,
    legend: str,
    lower_is_better: bool = False,
) -> Figure:
    """`table` (task, line, x, estimate, low, high): the score over one setting, a line per value of another.

    Lines run from light to dark in the order of their values, named at `legend`; a dot marks the best of each. Values
    far worse than the middle are cut off: a sweep is about where the best ones lie.
    """
    tasks, values = list(dict.fromkeys(table["task"])), sorted(table["line"].unique())
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    across = min(6, len(values))
    header = 0.20 * -(-len(values) // across) + 0.05
    figure = _figure(WIDTH, (3.4 if columns == 1 else 2.4) * rows, title, caption, header)
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1.0, len(values)))
    look = {
        value: Look((float(shade[0]), float(shade[1]), float(shade[2])), DASHES[place % len(DASHES)], "")
        for place, (value, shade) in enumerate(zip(values, shades, strict=True))
    }
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, (task, axes) in enumerate(zip(tasks, grid.flat, strict=False)):
        here = table[table["task"] == task]
        for value in values:
            mine = here[here["line"] == value].sort_values("x")
            _line(axes, mine, "x", look[value])
            known = mine[np.isfinite(mine["estimate"])]
            if len(known):
                best = known.loc[known["estimate"].idxmin() if lower_is_better else known["estimate"].idxmax()]
                axes.plot(best["x"], best["estimate"], "o", color=look[value].colour, markersize=4.5, zorder=4)
        finite = here["estimate"].to_numpy(dtype=float)
        finite = finite[np.isfinite(finite)] * (1.0 if lower_is_better else -1.0)
        if len(finite):
            best_value, middle, worst = finite.min(), np.median(finite), finite.max()
            reach = min(worst, best_value + 2.5 * (middle - best_value)) - best_value or abs(best_value) or 1.0
            ends = np.array([best_value - 0.08 * reach, best_value + 1.05 * reach])
            axes.set_ylim(*(ends if lower_is_better else -ends[::-1]))
        where = here["x"].to_numpy(dtype=float)
        if where.min() > 0 and where.max() / where.min() > 100:
            axes.set_xscale("log")
        if len(tasks) > 1:
            axes.set_title(task)
        if number % columns == 0:
            axes.set_ylabel(ylabel)
        if number + columns >= len(tasks):
            axes.set_xlabel(xlabel)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    names = [f"{legend} = {value:g}" if isinstance(value, float | int) else f"{legend} = {value}" for value in values]
    handles = [Line2D([], [], color=one.colour, linestyle=one.dash, linewidth=2.2) for one in look.values()]
    _head_legend(figure, handles, names, across)
    return figure


@styled
def ablation(matrix: pd.DataFrame, caption: str, title: str = "Normalized score by task") -> Figure:
    """`matrix`: one row per label, one column per task (and `mean` last); 0 = random, 1 = best, NaN = no score."""
    rows, columns = matrix.shape
    names = [_words(str(name), 10) for name in matrix.columns]
    figure = _figure(WIDTH, 0.29 * rows + 0.13 * max(name.count("\n") for name in names) + 0.45, title, caption)
    axes = figure.subplots()
    values = matrix.astype(float)
    shades = seaborn.diverging_palette(35, 245, s=80, l=68, as_cmap=True)
    seaborn.heatmap(
        values.clip(-1, 1), ax=axes, cmap=shades, vmin=-1, vmax=1, cbar=False, linewidths=1.5, linecolor="white"
    )
    for (y, x), value in np.ndenumerate(values.to_numpy()):
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8.5, color=INK if text != "–" else MUTED)
    axes.set(xlabel="", ylabel="")
    axes.set_xticklabels(names, rotation=0, fontsize=8.2, va="bottom")
    axes.tick_params(axis="x", labeltop=True, labelbottom=False)
    axes.set_yticklabels(matrix.index, rotation=0)
    axes.tick_params(axis="both", labelcolor=INK, length=0)
    axes.grid(visible=False)
    if matrix.columns[-1] == "mean" and columns > 1:
        axes.axvline(columns - 1, color=INK, linewidth=1.2)
    return figure


@styled
def published(
    table: pd.DataFrame,
    caption: str,
    title: str,
    margin: float | None = None,
    zero: str | None = "random policy",
    xlabel: str = "average normalized score",
    source: str = "published",
    interval: str = "95 % interval",
    first: str = "ours",
    other: str = "",
) -> Figure:
    """`table` (label, group, estimate, low, high, published, verdict): ours and its interval on the published value.

    `margin`, in units of the axis, draws the zone in which ours would count as reproduced. Rows stand in the order of
    the table, those of one `group` together. A NaN estimate is a row that has no runs yet. Optional columns: `second`,
    `second_low`, `second_high`: ours by another reading, called `other`, drawn hollow below the first; `paper` and
    `ours`: texts for the two columns of numbers, where the axis shows something else (differences, say).
    """
    groups = list(dict.fromkeys(table["group"]))
    steps = [0.0 if n == 0 else 1.0 if g == table["group"].iloc[n - 1] else 1.35 for n, g in enumerate(table["group"])]
    heights = -np.cumsum(steps)
    figure = _figure(WIDTH, 0.30 * (2.2 - heights[-1]) + 0.45, title, caption, header=0.48 if other else 0.28)
    axes = figure.subplots()
    everything = table[["estimate", "low", "high", "published"]].to_numpy(dtype=float)
    paper = table["published"].to_numpy(dtype=float)
    needed = np.r_[paper - (margin or 0.0), paper + (margin or 0.0), 0.0 if zero is not None else paper[0]]
    left, right = _limits(everything)
    reach = max(needed.max() - needed.min(), 0.6)
    left, right = max(left, needed.min() - reach), min(right, needed.max() + reach)
    axes.set_xlim(min(left, needed.min() - 0.03 * reach), max(right, needed.max() + 0.03 * reach))
    axes.set_ylim(heights[-1] - 0.7, 0.7)
    for place, group in enumerate(groups):  # quiet stripes keep the groups apart
        inside = heights[(table["group"] == group).to_numpy()]
        if place % 2 == 0 and len(groups) > 1:
            axes.axhspan(inside.min() - 0.67, inside.max() + 0.67, color="#f6f7f9", linewidth=0, zorder=0)
    if zero is not None:
        axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
        axes.annotate(f"{zero} = 0", (0.0, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4), ha="center",
                      textcoords="offset points", fontsize=7.8, color=MUTED)  # fmt: skip
    look = looks(groups)
    columns: dict[str, tuple[int, Any]] = {"paper": (34, "right"), "ours": (72, "right"), "verdict": (84, "left")}
    side: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
    for name, (x, side_of) in columns.items():
        axes.annotate(
            name, (1.0, 1.0), xycoords="axes fraction", xytext=(x, 4), ha=side_of, fontsize=7.8, color=MUTED, **side
        )
    digits = 2 if np.nanmax(np.abs(paper)) < 10 else 0
    for height, row in zip(heights, table.itertuples(), strict=True):
        hue = look[row.group].hue
        if margin is not None:
            zone = (row.published - margin, height - 0.33), 2 * margin, 0.66
            axes.add_patch(Rectangle(*zone, facecolor=ZONE, edgecolor="none", zorder=1))
        axes.plot([row.published] * 2, [height - 0.33, height + 0.33], color=INK, linewidth=2.0, solid_capstyle="butt")
        cells = {"paper": f"{row.published:.{digits}f}", "ours": "–"}
        if not np.isnan(row.estimate):
            up, down = (height + 0.13, height - 0.18) if other else (height, height)
            axes.plot([row.low, row.high], [up, up], color=hue, alpha=0.5, linewidth=5.5 - bool(other), zorder=3)
            if not _beyond(axes, up, row.estimate, hue):
                axes.plot(row.estimate, up, "o", color=hue, markersize=6.2, markeredgecolor="white", zorder=5)
            if other and axes.get_xlim()[0] < row.second < axes.get_xlim()[1]:
                axes.plot([row.second_low, row.second_high], [down, down], color=hue, linewidth=1.3, zorder=3)
                axes.plot(row.second, down, "o", color="white", markersize=4.0, markeredgecolor=hue, zorder=5)
            cells["ours"] = f"{row.estimate:.{digits}f}"
        if "ours" in table:
            cells |= {"paper": row.paper, "ours": row.ours}
        sign, tint = VERDICTS.get(str(row.verdict), ("", MUTED))
        cells["verdict"] = f"{sign} {row.verdict}"
        for name, text in cells.items():
            x, side_of = columns[name]
            colour = tint if name == "verdict" else INK
            axes.annotate(text.replace("-", "−"), (1.0, height), xycoords=("axes fraction", "data"), xytext=(x, 0),
                          ha=side_of, va="center", fontsize=8.2, color=colour, **side)  # fmt: skip
    axes.set_yticks(heights, list(table["label"]))
    axes.set_xlabel(xlabel)
    narrow = table["label"].str.len().max() > 35  # long names leave little of the width
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 6))
    _rows_on_the_left(axes)
    point: dict[str, Any] = {"marker": "o", "linewidth": 0}
    bar: dict[str, Any] = {"linewidth": 5.5, "alpha": 0.5}
    tick: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 2.0, "linewidth": 0}
    legend: dict[str, Any] = {
        first: Line2D([], [], color=HUES[0], markersize=6.2, **point),
        interval: Line2D([], [], color=HUES[0], **bar),
        source: Line2D([], [], color=INK, **tick),
    }
    if other:
        legend[other] = Line2D([], [], color="white", markersize=4.0, markeredgecolor=HUES[0], **point)
    if margin is not None:
        legend[f"margin ±{margin:g}"] = Rectangle((0, 0), 1, 1, facecolor=ZONE, edgecolor="none")
    _head_legend(figure, list(legend.values()), list(legend), 3 if other else len(legend))
    return figure
