"""One self-contained HTML page per experiment, its tables and figures beside it, and the headline on the terminal.

`make(results, folder)` writes into `folder`:

    index.html           verdicts, tables, figures, failures, protocol, manifest; no network, readable on a phone
    figures/*.png *.svg  every figure of the page
    tables/*.csv *.md    every table: numbers to compute with, and text to paste

Nothing is decided here: scores, intervals and verdicts come from `scores`, `statistics`, `verify` and `claims`. It
works on a tree that is only part done, and says so.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shlex
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import claims, figures, load, pictures, scores, tables, verify
from analysis.load import Results
from analysis.tables import Study, Table, listed, plural

REPORTS = scores.ROOT / "results" / "reports"
SHOWN = 200  # rows of a long table on the page; its CSV has all


# The page -------------------------------------------------------------------------------------------------------------


def provenance(results: Results, manifests: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the runs were made with, in words; where runs differ, every value with its number of runs."""
    runs = results.runs[results.runs["status"] != "missing"]
    if not len(runs) or not manifests:
        return []
    versions: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in (manifest.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    commits = runs["commit"].astype(str).str[:12] + runs["dirty"].map({True: ", with uncommitted changes"}).fillna("")
    took = runs.groupby("group", dropna=False)[["wall_seconds", "cpu_seconds"]].max().astype(float).sum()
    most = int(runs["group_size"].fillna(1).max())
    fingerprints = runs.drop_duplicates("task").set_index("task")["fingerprint"].fillna("none").astype(str)
    return [
        ("commit", counted(commits)),
        ("machine", counted(runs["machine"])),
        ("device", counted(runs["device"])),
        ("precision", counted(runs["precision"])),
        ("threads", counted(runs["threads"])),
        ("versions", ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))),
        ("preset", counted(runs["preset"])),
        ("groups", f"{runs['group'].nunique()}, of up to {most} runs trained in one program"),
        ("wall clock", f"{duration(took['wall_seconds'])}, added over groups"),
        ("CPU", f"{duration(took['cpu_seconds'])}, added over groups"),
        ("first start, last end", f"{runs['started'].dropna().min()}, {runs['ended'].dropna().max()}"),
        ("environment fingerprints", listed((f"{task} {digest[:12]}" for task, digest in fingerprints.items()), 99)),
    ]


def duration(seconds: float) -> str:
    """`58 s`, `12 min` or `3.4 hours`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} hours"
    )


def counted(values: Iterable[Any]) -> str:
    """The one value, or every value with its number of runs."""
    found = pd.Series([str(value) for value in values], dtype=object).value_counts()
    if len(found) == 1:
        return str(found.index[0])
    return listed(f"{value} ({plural(n, 'run')})" for value, n in found.items())


def protocol(this: Study) -> list[str]:
    """The protocol in sentences."""
    results = this.results
    seeds = sorted(int(seed) for seed in results.runs["seed"].unique())
    gapless = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    evaluation = results.experiment.get("evaluation")
    unread = len(results.runs) > load.METRIC_RUNS and not results.shipped
    many = f"Metrics are shown of trees of up to {load.METRIC_RUNS:,} runs, and of shipped results of any size."
    return [
        f"{tables.runs_phrase(this)}; {tables.steps_phrase(results)}. An env_step is one decision in one environment; "
        "all count, warm-up included.",
        f"Tasks: {listed(results.tasks, 99)}. Seeds: {f'{seeds[0]} to {seeds[-1]}' if gapless else listed(seeds, 99)}.",
        f"Score of a run: {tables.statistic_phrase(results)}. Returns are raw and undiscounted.",
        f"Normalized score: {this.anchors.rule}; the anchors are listed below."
        if this.anchors is not None
        else f"Scores are not normalized: {this.raw}.",
        f"Evaluation: {json.dumps(evaluation) if evaluation else 'none; training episodes are scored'}.",
        "Failed and diverged runs count as data: the score they reached, or the random policy's. Running and missing "
        "runs have no score and are listed.",
        f"Intervals: {tables.INTERVAL}; pointwise for curves and profiles.",
        *([many] if unread else []),
    ]


def command_line(results: Results) -> str:
    """The command that made the runs, as one would type it."""
    command = results.experiment.get("command") or ["run_bench.py", "run", results.name]
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    words = words[1:] if Path(words[0]).name.startswith("python") else words
    return shlex.join(["python", Path(words[0]).name, *words[1:]])


def data_uri(path: Path) -> str:
    """An SVG as an address that needs no file and no network."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def cell(text: Any, column: str = "") -> Any:
    """A table cell as HTML: intervals set smaller, verdicts and statuses as coloured words."""
    from markupsafe import Markup, escape

    text = str(text)
    if column in ("verdict", "status"):
        sign = figures.VERDICTS.get(text, ("", ""))[0]
        return Markup('<span class="chip {}">{} {}</span>').format(text.replace(" ", "-"), sign, text)
    if match := re.fullmatch(r"(\S+) (\[.*\])", text):
        return Markup('{} <span class="interval">{}</span>').format(*match.groups())
    return Markup(",<wbr>").join(escape(part) for part in text.split(",")) if column == "setting" else escape(text)


def breakable(name: str) -> Any:
    """A long CamelCase name that may be broken between its words."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[a-z])(?=[A-Z])", str(name).replace("-", "‑")))


def prose(text: str) -> Any:
    """A description whose `names` between backticks are set as code; the words of a command are not broken."""
    from markupsafe import Markup, escape

    def code(found: re.Match[str]) -> str:
        words = found[1].split()
        return f"<code>{' '.join(f'<span>{word}</span>' for word in words) if len(words) > 1 else found[1]}</code>"

    return Markup(re.sub(r"`([^`]+)`", code, str(escape(text))))


def make(results: Results, out_dir: Path, command: str | None = None) -> Path:
    """Writes the page, tables and figures of an experiment into `out_dir` and returns the page's path."""
    return compose(tables.study(results), out_dir, command)[0]


def compose(this: Study, out_dir: Path, command: str | None = None) -> tuple[Path, Table]:
    """The same for a prepared study; also returns the headline table."""
    import jinja2

    results = this.results
    found = verify.verdicts(results)
    decided = claims.evaluate(results, found)
    manifests = load.manifests(results.path)
    lead, by_task, troubles = tables.headline(this), tables.task_table(this), tables.trouble_table(this)
    ranked = tables.rank_table(this)
    shown = [lead, by_task] if lead.name != by_task.name and len(results.tasks) > 1 else [lead]
    parts: dict[str, list[Table]] = {
        "verdicts": tables.verdict_tables(found),
        "scores": [*shown, ranked] if ranked else shown,
        "claims": [tables.claim_table(decided)] if decided else [],
        "troubles": [troubles] if len(troubles.shown) else [],
        "anchors": [tables.anchor_table(this)] if this.anchors is not None else [],
        "configs": tables.config_tables(manifests, this),
    }
    for table in (table for some in parts.values() for table in some):
        tables.write_table(table, out_dir / "tables")
    tables.write(out_dir / "tables" / "runs.csv", results.runs.to_csv(index=False, float_format="%.10g"))
    drawn = pictures.draw(this, lead, found, out_dir / "figures")
    counts = {status: int((results.runs["status"] == status).sum()) for status in load.STATUSES}
    dropped = {name: matrix.dropped for name, matrix in this.matrices.items() if matrix.dropped}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "cell": cell,
        "numeric": tables.numeric,
        "data_uri": data_uri,
        "breakable": breakable,
        "prose": prose,
    }
    page = environment.get_template("report.html").render(
        title=results.experiment.get("title") or results.name,
        name=results.name,
        description=results.experiment.get("description", ""),
        counts=counts,
        total=len(results.runs),
        unfinished=counts["running"] + counts["missing"],
        partial_tasks=[task for task in results.tasks if task not in this.tasks and task not in this.flat],
        flat_tasks=this.flat,
        dropped=dropped,
        tables=parts,
        pictures={picture.name: picture for picture in drawn},
        asked=[picture for picture in drawn if picture.section == "asked"],
        metrics=[picture for picture in drawn if picture.section == "metrics"],
        protocol=protocol(this),
        provenance=provenance(results, manifests),
        shipped=results.shipped,
        made_by=command_line(results),
        report_command=command or f"python run_bench.py report {results.name}",
        most=SHOWN,
    )
    path = out_dir / "index.html"
    tables.write(path, page)
    return path, lead


def print_headline(table: Table, this: Study, path: Path) -> None:
    """The headline table, the counts and the page's place, on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Rich

    console = Console(highlight=False)
    title = f"{this.results.name}: {table.title.lower()}"
    shown, right = table.shown.astype(str), tables.numeric(table.shown)
    heads = {column: re.sub(r" (?=\(|=|gap)", "\n", str(column)) for column in shown}

    def too_wide() -> bool:
        return sum(max(map(len, [*shown[c], *heads[c].split("\n")])) + 3 for c in shown) > console.width

    if too_wide():  # a narrow terminal gets the interval of the first value only, then fewer columns
        for column in [column for column in shown if column in right][2:]:
            shown[column] = shown[column].str.replace(r" \[.*", "", regex=True)
    while too_wide() and shown.shape[1] > 2:
        shown = shown.iloc[:, :-1]
    lacking = table.shown.shape[1] - shown.shape[1]
    rich = Rich(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        rich.add_column(heads[column], justify="right" if column in right else "left", no_wrap=True)
    for row in shown.to_numpy():
        rich.add_row(*map(escape, row))
    console.print(rich)
    rest = f" {plural(lacking, 'more column')} in the report." if lacking else ""
    console.print(f"[dim]{escape(table.note + rest)}[/dim]")
    counts = this.results.runs["status"].value_counts()
    console.print("runs: " + ", ".join(f"{counts[s]:,} {s}" for s in load.STATUSES if s in counts), soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`run_bench.py report EXPERIMENT [--open --out DIR --to DIR --statistic NAME]`: exit 0, or 2 with a message."""
    parser = argparse.ArgumentParser(
        prog="run_bench.py report", description="tables, figures and one HTML page of an experiment"
    )
    parser.add_argument("experiment", help="an experiment's name, or a folder of results")
    parser.add_argument("--out", type=Path, default=None, help="folder of run trees (default: results/runs)")
    parser.add_argument("--to", type=Path, default=None, help="where to write (default: results/reports/EXPERIMENT)")
    parser.add_argument(
        "--statistic", default=None, help=f"instead of the experiment's: {', '.join(scores.STATISTICS)}"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    given = parser.parse_args(argv)
    try:
        place = Path(given.experiment)
        folder = place if place.is_dir() and len(place.parts) > 1 else load.find(given.experiment, given.out)
        results = load.load(folder, given.statistic)
        if not len(results.runs):
            raise load.ResultsError(
                f"{folder}: there is no run in it yet; `python run_bench.py run {results.name}` makes them"
            )
        this = tables.study(results)
        command = "python run_bench.py report " + shlex.join(sys.argv[1:] if argv is None else argv)
        path, lead = compose(this, given.to or REPORTS / results.name, command)
    except (load.ResultsError, ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print_headline(lead, this, path)
    if given.open:
        webbrowser.open(path.resolve().as_uri())
    return 0
