"""From an experiment file to runs, and from runs to groups.

A run is one (algorithm, variant, task, seed). A group is what one worker trains as one program: runs of the same
algorithm, task, budget and structural settings. How runs are grouped never shows in their numbers (the run axis is
bitwise), so groups are cut to fit the machine, and a resumed experiment may be cut differently.
"""

from __future__ import annotations

import heapq
import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import FELL_SHORT, ROOT, UserError, near, store

EXPERIMENTS = ROOT / "suites" / "experiments"
DEFAULT_VARIANT = "default"

# The shape of an experiment file: key -> accepted types. [score], [report] and [published] belong to analysis.
TOP = {"title": (str,), "description": (str,), "suite": (str,), "tasks": (list, dict), "steps": (int,), "seeds": (int, list),
       "first_seed": (int,), "algorithms": (list,), "evaluation": (dict,), "score": (dict,), "report": (dict,),
       "published": (dict, list)}  # fmt: skip
ALGORITHM = {"name": (str,), "preset": (str,), "overrides": (dict,), "variants": (dict,)}
EVALUATION = {"period": (int,), "episodes": (int,)}
TASK = {"steps": (int,)}


@dataclass(frozen=True)
class Run:
    """One (algorithm, variant, task, seed) with everything that decides its numbers."""

    task: str
    algorithm: str
    variant: str
    preset: str | None
    seed: int
    steps: int  # env_steps
    overrides: dict[str, Any]  # on top of the preset
    config: dict[str, Any] = field(default_factory=dict)  # resolved, JSON-able
    structure: str = ""  # digest of the settings that the runs of a group share

    @property
    def path(self) -> str:
        """Directory of the run inside its experiment: a function of what is run."""
        variant = "" if self.variant == DEFAULT_VARIANT else f"+{self.variant}"
        return f"{self.task}/{self.algorithm}{variant}/{self.seed}"

    @property
    def config_digest(self) -> str:
        """A short name for the resolved configuration."""
        return store.digest(self.config)


@dataclass(frozen=True)
class Group:
    """Runs trained by one worker as one program."""

    runs: tuple[Run, ...]
    adopted: str | None = None  # id of an unfinished group on disk, to be gone on with

    @property
    def id(self) -> str:
        """A name that follows from the members."""
        first = self.runs[0]
        return (
            self.adopted
            or f"{first.task}-{first.algorithm}-{store.digest([[r.path, r.steps, r.config] for r in self.runs])[:8]}"
        )


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment file. Its runs have no configuration yet: that needs the algorithm's module."""

    name: str
    raw: dict[str, Any]
    runs: tuple[Run, ...]
    suite: str | None = None
    evaluation: dict[str, int] | None = None
    source: str = ""


# -------------------------------------------------------------------------------------------------- experiment files
def experiment_names() -> list[str]:
    """Experiments there are, by file."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def read(name: str) -> tuple[str, dict[str, Any], str]:
    """Name, contents and place of an experiment given by name or by the path of a .toml file."""
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / f"{name}.toml"
    if not path.is_file():
        known = experiment_names()
        raise UserError(f"unknown experiment {name!r}{near(name, known)}; there are: {', '.join(known) or 'none'}, "
                        "or give the path of a .toml file")  # fmt: skip
    try:
        return path.stem, tomllib.loads(path.read_text()), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def expand(
    name: str,
    raw: dict[str, Any],
    source: str,
    *,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    tasks: Sequence[str] | None = None,
) -> Experiment:
    """Check an experiment's contents and list its runs; `seeds`, `steps`, `tasks` come from the command line."""
    import algorithms
    import suites

    def wrong(key: str, rule: str) -> UserError:
        return UserError(f"{source}: {key} {rule}")

    def check(
        table: Mapping[str, Any], shape: Mapping[str, tuple[type, ...]], where: str, needed: Sequence[str] = ()
    ) -> None:
        for key, value in table.items():
            if key not in shape:
                raise wrong(f"{where}{key}", f"is no key of an experiment{near(key, shape)}; known: {', '.join(shape)}")
            if not isinstance(value, shape[key]) or isinstance(value, bool):
                kinds = " or ".join(kind.__name__ for kind in shape[key])
                raise wrong(f"{where}{key}", f"is {value!r}; it must be of type {kinds}")
            if shape[key] == (int,) and value < (0 if key == "first_seed" else 1):
                raise wrong(f"{where}{key}", f"is {value}; it must be positive")
        for key in needed:
            if key not in table:
                raise wrong(f"{where}{key}", "is missing")

    check(raw, TOP, "", ["seeds", "algorithms"])
    budgets: dict[str, int] = {}
    listed = raw.get("tasks", {})
    special: dict[str, Any] = listed if isinstance(listed, dict) else {}
    for task, table in special.items():
        if not isinstance(table, dict):
            raise wrong(f"tasks.{task}", f"is {table!r}; it must be a table such as [tasks.{task!r}] steps = 1000")
        check(table, TASK, f"tasks.{task}.")
    try:
        if "suite" in raw:
            ids = [task.id for task in suites.find_suite(raw["suite"])]
            if isinstance(listed, list) or not set(listed) <= set(ids):
                raise wrong("tasks", 'beside suite must be tables [tasks."<id>"] for tasks of that suite')
        else:
            ids = list(listed)
        if not ids:
            raise wrong("suite or tasks", "is missing: name a suite, or list task ids")
        if not all(isinstance(task, str) for task in ids):
            raise wrong("tasks", f"is {ids!r}; it must be a list of task ids")
        for task in ids:
            budgets[task] = (
                steps or special.get(task, {}).get("steps") or raw.get("steps") or suites.find_task(task).steps
            )
            suites.find_task(task)
        for task in tasks or ():
            suites.find_task(task)
            if task not in budgets:
                raise wrong("tasks", f"has no {task!r}{near(task, ids)}; it has: {', '.join(ids)}")
    except ValueError as error:
        raise wrong("suite or tasks:", str(error)) from None

    given = raw["seeds"]
    first = raw.get("first_seed", 0)
    seeds = seeds if seeds is not None else given if isinstance(given, list) else range(first, first + given)
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise wrong("seeds", f"is {given!r}; it must be a positive number of seeds or a list of seeds, 0 or more each")

    runs = []
    for index, entry in enumerate(raw["algorithms"]):
        where = f"algorithms[{index}]."
        if not isinstance(entry, dict):
            raise wrong(f"algorithms[{index}]", f"is {entry!r}; it must be a table [[algorithms]]")
        check(entry, ALGORITHM, where, ["name"])
        if entry["name"] not in algorithms.names():
            known = algorithms.names()
            raise wrong(
                f"{where}name",
                f"is {entry['name']!r}, no known algorithm{near(entry['name'], known)}; known: {', '.join(known)}",
            )
        for variant, changes in entry.get("variants", {DEFAULT_VARIANT: {}}).items():
            if not isinstance(changes, dict):
                raise wrong(f"{where}variants.{variant}", f"is {changes!r}; it must be a table of settings")
            if not variant or "/" in variant or variant.startswith("."):
                raise wrong(f"{where}variants.{variant}", "cannot name a directory; use letters, digits, - and =")
            overrides = {**entry.get("overrides", {}), **changes}
            runs += [
                Run(task, entry["name"], variant, entry.get("preset"), seed, budgets[task], overrides)
                for task in tasks or ids
                for seed in dict.fromkeys(seeds)
            ]
    twice = (
        {run.path for run in runs if sum(other.path == run.path for other in runs) > 1}
        if len({r.path for r in runs}) < len(runs)
        else set()
    )
    if twice:
        raise wrong("algorithms", f"names {min(twice)} twice; give the entries different variants")
    if "evaluation" in raw:
        check(raw["evaluation"], EVALUATION, "evaluation.", list(EVALUATION))
    return Experiment(name, raw, tuple(runs), raw.get("suite"), raw.get("evaluation"), source)


def resolve(experiment: Experiment) -> Experiment:
    """Give every run its full configuration. Imports the algorithms, and so torch."""
    from algorithms.common import config

    resolved: dict[str, tuple[dict[str, Any], str]] = {}
    runs = []
    for run in experiment.runs:
        key = store.digest([run.algorithm, run.variant, run.preset, run.overrides, run.steps])
        if key not in resolved:
            try:
                built = config.load_config(run.algorithm, run.preset, run.overrides)
            except ValueError as error:
                variant = "" if run.variant == DEFAULT_VARIANT else f" (variant {run.variant})"
                raise UserError(f"{experiment.source}: {error}{variant}") from None
            resolved[key] = config.to_dict(built), store.digest(config.structural(built))
        runs.append(replace(run, config=resolved[key][0], structure=resolved[key][1]))
    for algorithm, task in dict.fromkeys((run.algorithm, run.task) for run in runs):
        check_supported(algorithm, task)
    return replace(experiment, runs=tuple(runs))


def check_supported(algorithm: str, task: str) -> None:
    """Refuse an algorithm whose actions are of another kind than the task's."""
    import algorithms
    import suites

    kind = "discrete" if suites.make(task, 1, 1).num_actions is not None else "continuous"
    supported = algorithms.load(algorithm).SUPPORTS
    if kind not in supported:
        fitting = [name for name in algorithms.names() if kind in algorithms.load(name).SUPPORTS]
        raise UserError(f"{algorithm} is for {' and '.join(sorted(supported))} actions; {task} has {kind} ones. "
                        f"Algorithms for it: {', '.join(fitting) or 'none yet'}")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ groups
def cost(runs: Sequence[Run], kinds: Mapping[str, str]) -> float:
    """A guess at the seconds a group takes: a share per step for the calls, a share per run for the work."""
    per_run = 4e-6 if kinds.get(runs[0].task) == "classic" else 45e-6  # measured: PROBES, PPO with 1 to 33 runs
    return runs[0].steps * (20e-6 + per_run * len(runs))


def cut(runs: Iterable[Run], group_size: int, workers: int, kinds: Mapping[str, str]) -> list[Group]:
    """Cut runs into groups, longest first, of at most `group_size` runs or fewer where that ends sooner."""
    batches: dict[tuple[str, str, int, str], list[Run]] = {}
    for run in runs:
        batches.setdefault((run.algorithm, run.task, run.steps, run.structure), []).append(run)

    def into(size: int) -> list[list[Run]]:
        """Groups of `size` runs at most, those of a batch as equal as they can be."""
        groups = []
        for batch in batches.values():
            count = -(-len(batch) // size)
            edges = [len(batch) * index // count for index in range(count + 1)]
            groups += [batch[begin:end] for begin, end in itertools.pairwise(edges)]
        return sorted(groups, key=lambda group: -cost(group, kinds))

    def seconds(groups: Iterable[Sequence[Run]]) -> float:
        """When the last worker is done if each takes the next longest group as soon as it is free."""
        free = [0.0] * workers
        for group in groups:
            heapq.heapreplace(free, free[0] + cost(group, kinds))
        return max(free)

    best = into(group_size)
    for size in range(group_size - 1, 0, -1):
        groups = into(size)
        if seconds(groups) < 0.97 * seconds(best):  # smaller groups cost more in all: only for a clear gain
            best = groups
    return [Group(tuple(group)) for group in best]


# --------------------------------------------------------------------------------------------------- what is on disk
def compare(directory: Path, run: Run, fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The manifest of a run that is on disk, or None. Refuses results of another configuration or environment."""
    manifest = store.read_manifest(directory)
    if manifest is None:
        return None
    differences = [
        f"{key} is {manifest['config'].get(key, 'absent')!r} on disk and {run.config.get(key, 'absent')!r} here"
        for key in sorted(set(manifest["config"]) | set(run.config))
        if manifest["config"].get(key, "absent") != run.config.get(key, "absent")
    ]
    if manifest["steps"] != run.steps:
        differences.append(f"steps is {manifest['steps']} on disk and {run.steps} here")
    before, here = manifest.get("fingerprint", {}), fingerprints.get(run.task, {})
    if before.get("digest") != here.get("digest"):
        keys = [key for key in sorted(set(before) | set(here)) if key != "digest" and before.get(key) != here.get(key)]
        differences.append(f"the environment's fingerprint differs in {', '.join(keys)}")
    if differences:
        raise UserError(f"{directory} holds a run with other settings: {'; '.join(differences)}. "
                        "Use another --out, or delete that directory", FELL_SHORT)  # fmt: skip
    return manifest


def outstanding(
    experiment: Experiment,
    root: Path,
    fingerprints: Mapping[str, Mapping[str, Any]],
    *,
    group_size: int,
    workers: int,
    kinds: Mapping[str, str],
) -> tuple[list[Group], list[Run]]:
    """The groups still to be trained, and the runs that have ended. Unfinished groups on disk are gone on with."""
    wanted = {run.path: run for run in experiment.runs}
    manifests = {path: compare(root / path, run, fingerprints) for path, run in wanted.items()}
    ended = {
        path
        for path, manifest in manifests.items()
        if manifest and manifest["status"] in (store.FINISHED, store.DIVERGED)
    }
    adopted: list[Group] = []
    taken: set[str] = set()
    for plan in sorted((root / ".groups").glob(f"*/{store.PLAN}")):
        name, members = plan.parent.name, tuple(Run(**member) for member in store.read_json(plan)["runs"])
        owned = all((store.read_manifest(root / run.path) or {}).get("group") == name for run in members)
        agree = all(wanted.get(run.path, run) == run for run in members)
        open_ = {run.path for run in members if run.path in wanted} - ended
        if owned and agree and open_ and (plan.parent / store.CHECKPOINT).exists():
            adopted.append(Group(members, name))
            taken |= {run.path for run in members}
    ended -= taken  # a group that goes on ends all its runs itself
    for path in ended:
        store.check_table(root / path)
    rest = cut((run for path, run in wanted.items() if path not in ended | taken), group_size, workers, kinds)
    groups = sorted(adopted + rest, key=lambda group: -cost(group.runs, kinds))
    return groups, [wanted[path] for path in wanted if path in ended]


def write_plan(
    experiment: Experiment, group: Group, folder: Path, fingerprint: Mapping[str, Any], **settings: Any
) -> None:
    """Write down what a worker needs to train a group."""
    plan = {"experiment": experiment.name, "suite": experiment.suite, "evaluation": experiment.evaluation,
            "runs": [asdict(run) for run in group.runs], "fingerprint": fingerprint, **settings}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(folder / store.PLAN, plan)


def base_manifest(plan: Mapping[str, Any], index: int, group: str) -> dict[str, Any]:
    """The part of a run's manifest that is known before anything has run."""
    run = Run(**plan["runs"][index])
    return {
        "schema": store.SCHEMA, "experiment": plan["experiment"], "suite": plan["suite"], "task": run.task, "algorithm": run.algorithm,
        "variant": run.variant, "preset": run.preset, "seed": run.seed, "steps": run.steps, "config": run.config,
        "config_digest": run.config_digest, "group": group, "group_size": len(plan["runs"]), "group_index": index,
        "fingerprint": plan["fingerprint"],
    }  # fmt: skip
