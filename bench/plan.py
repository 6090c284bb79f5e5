"""From an experiment file to runs, and from runs to groups.

A run is one (algorithm, variant, task, seed). A group is what one worker trains as one program: runs of the same
algorithm, task, budget and structural settings. How runs are grouped never shows in their numbers (the run axis is
bitwise), so groups are cut to fit the machine, and a resumed experiment may be cut differently.
"""

from __future__ import annotations

import heapq
import itertools
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import algorithms
import suites
from bench import ROOT, ResultsError, UserError, near, store

EXPERIMENTS = ROOT / "suites" / "experiments"
DEFAULT_VARIANT = "default"

# The shape of an experiment file, key -> types. [score], [report] and [published] are checked by analysis.
EXPERIMENT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("title", "description", "suite"), (str,)),
    **dict.fromkeys(("steps", "first_seed", "metrics_period"), (int,)),
    **dict.fromkeys(("evaluation", "score", "report"), (dict,)),
    "seeds": (int, list),
    "tasks": (list, dict),
    "algorithms": (list,),
    "published": (dict, list),
}
ALGORITHM = {"name": (str,), "preset": (str,), "overrides": (dict,), "variants": (dict,), "grid": (dict,)}
EVALUATION = {"period": (int,), "episodes": (int,)}  # env_steps; in each of so many fresh environments
TASK = {"steps": (int,)}
# what an algorithm SUPPORTS, in words
KINDS = {"continuous": "continuous actions", "discrete": "discrete actions", "tabular": "numbered states"}


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


@dataclass(frozen=True)
class Group:
    """Runs trained by one worker as one program."""

    runs: tuple[Run, ...]
    adopted: str | None = None  # id of an unfinished group on disk, to be gone on with

    @property
    def id(self) -> str:
        """A name that follows from the members."""
        members = store.digest([[run.path, run.steps, run.config] for run in self.runs])
        return self.adopted or f"{self.runs[0].task}-{self.runs[0].algorithm}-{members[:8]}"


@dataclass(frozen=True)
class Experiment:
    """The runs of an experiment file, without their configurations: `resolve` adds them."""

    name: str
    raw: dict[str, Any]
    runs: tuple[Run, ...]
    source: str

    @property
    def tasks(self) -> list[str]:
        """Task ids, in order."""
        return list(dict.fromkeys(run.task for run in self.runs))


# ---- experiment files ----------------------------------------------------------------------------------------------


def experiment_names() -> list[str]:
    """Experiments there are, by file."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def read(name: str) -> tuple[str, dict[str, Any], str]:
    """Name, contents and place of an experiment given by name or by the path of a .toml file."""
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / f"{name}.toml"
    if not path.is_file():
        known = experiment_names()
        there = f"there are: {', '.join(known)}, or give the path of a .toml file"
        raise UserError(f"unknown experiment {name!r}{near(name, known)}; {there}")
    try:
        return path.stem, tomllib.loads(path.read_text()), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def check(table: Any, shape: Mapping[str, tuple[type, ...]], where: str, needed: Sequence[str] = ()) -> None:
    """Refuse unknown and missing keys and wrong types. `where` is the file and the table, for messages."""
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}; it must be a table of {', '.join(shape)}")
    for key, value in table.items():
        if key not in shape:
            raise UserError(f"{where}: unknown key {key!r}{near(key, shape)}; known: {', '.join(shape)}")
        if not isinstance(value, shape[key]) or isinstance(value, bool):
            kinds = " or ".join(kind.__name__ for kind in shape[key])
            raise UserError(f"{where}: {key} is {value!r}; it must be of type {kinds}")
        least = 0 if key in ("first_seed", "metrics_period") else 1
        if isinstance(value, int) and value < least:
            raise UserError(f"{where}: {key} is {value}; it must be at least {least}")
    for key in needed:
        if key not in table:
            raise UserError(f"{where}: {key} is missing")


def expand(
    name: str,
    raw: dict[str, Any],
    source: str,
    *,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    tasks: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
) -> Experiment:
    """Check an experiment's contents and list its runs; what follows `source` comes from the command line."""
    check(raw, EXPERIMENT, source, ["seeds", "algorithms"])
    if "evaluation" in raw:
        check(raw["evaluation"], EVALUATION, f"{source}: evaluation", list(EVALUATION))
    try:
        budgets = task_budgets(raw, source)
        for task in tasks or ():
            if task not in budgets:
                suites.find_task(task)
                raise UserError(f"--tasks: {task} is none of {name}'s tasks; they are {', '.join(budgets)}")
    except ValueError as error:  # an unknown suite or task
        raise UserError(f"{source}: {error}") from None
    if seeds is None:
        first, given = raw.get("first_seed", 0), raw["seeds"]
        seeds = given if isinstance(given, list) else range(first, first + given)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(
            f"{source}: seeds is {list(seeds)}; it must be a positive number, or a list of seeds of 0 or more"
        )
    runs = [
        Run(task, entry["name"], variant, entry.get("preset"), seed, steps or budgets[task], overrides)
        for index, entry in enumerate(raw["algorithms"])
        for variant, overrides in variants_of(entry, f"{source}: algorithms[{index}]").items()
        for task in tasks or budgets
        for seed in dict.fromkeys(seeds)
    ]
    path, count = Counter(run.path for run in runs).most_common(1)[0] if runs else ("", 0)
    if count != 1:
        raise UserError(f"{source}: algorithms must name every run once, not {path or 'none'} {count} times")
    for option, key, chosen in (("--algorithms", "algorithm", algorithms), ("--variant", "variant", variants)):
        names = {getattr(run, key) for run in runs}
        if unknown := next((x for x in chosen or () if x not in names), None):
            raise UserError(f"{option}: {unknown} is none of {name}'s; they are {', '.join(sorted(names))}")
    if variants:
        runs = [run for run in runs if run.variant in variants]
    if algorithms:
        runs = [run for run in runs if run.algorithm in algorithms]
        if lost := next((x for x in algorithms if x not in {run.algorithm for run in runs}), None):
            raise UserError(f"--variant: {lost} has no variant {' or '.join(variants or ())} in {name}")
    return Experiment(name, raw, tuple(runs), source)


def task_budgets(raw: Mapping[str, Any], source: str) -> dict[str, int]:
    """Task id -> env_steps: a suite's tasks or those listed, `steps` of the task's own table before the general one.

    Raises `ValueError` for an unknown suite or task.
    """
    listed = raw.get("tasks", [])
    ids = [task.id for task in suites.find_suite(raw["suite"])] if "suite" in raw else list(listed)
    if not ids:
        raise UserError(f"{source}: suite or tasks is missing; name a suite, or list task ids")
    if "suite" in raw and not (isinstance(listed, dict) and set(listed) <= set(ids)) and listed:
        raise UserError(
            f'{source}: beside suite, tasks may only be tables [tasks."ID"] of its tasks ({", ".join(ids)})'
        )
    budgets = {}
    for task in ids:
        if not isinstance(task, str):
            raise UserError(f"{source}: tasks holds {task!r}; it must be a list of task ids")
        own = listed.get(task, {}) if isinstance(listed, dict) else {}
        check(own, TASK, f"{source}: tasks.{task}")
        budgets[task] = own.get("steps") or raw.get("steps") or suites.find_task(task).steps
        suites.find_task(task)
    return budgets


def metrics_period(raw: Mapping[str, Any], steps: int) -> int:
    """Env_steps between the metrics that a run of so many steps writes down; 0: those of every iteration."""
    period: int = raw.get("metrics_period", steps // 200)
    return period


def variants_of(entry: Any, where: str) -> dict[str, dict[str, Any]]:
    """The variants of one [[algorithms]] entry: name -> settings on top of the preset."""
    check(entry, ALGORITHM, where, ["name"])
    known = algorithms.names()
    if entry["name"] not in known:
        name = entry["name"]
        raise UserError(f"{where}: unknown algorithm {name!r}{near(name, known)}; there are: {', '.join(known)}")
    if "grid" in entry and "variants" in entry:
        raise UserError(f"{where}: it has variants and a grid; give one of them")
    found = {}
    for variant, changes in entry.get("variants", grid(entry.get("grid", {}), where)).items():
        if not isinstance(changes, dict):
            raise UserError(f"{where}: variants.{variant} is {changes!r}; it must be a table of settings")
        if not variant or "/" in variant or variant.startswith("."):
            raise UserError(f"{where}: variant {variant!r} cannot name a directory; use letters, digits, - and =")
        found[variant] = {**entry.get("overrides", {}), **changes}
    return found


def grid(values: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Every combination of the values listed for each setting, named like `n=4,alpha=0.5`; `default` of none."""
    for name, listed in values.items():
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{where}: grid.{name} is {listed!r}; it must be a list of values")
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return {",".join(f"{k}={v}" for k, v in one.items()) or DEFAULT_VARIANT: one for one in combinations}


def resolve(experiment: Experiment) -> Experiment:
    """Give every run its full configuration. Imports the algorithms, and so torch."""
    from algorithms.common import config

    resolved: dict[tuple[str, str], tuple[dict[str, Any], str]] = {}
    runs = []
    for run in experiment.runs:
        key = run.algorithm, run.variant
        if key not in resolved:
            try:
                built = config.load_config(run.algorithm, run.preset, run.overrides)
            except ValueError as error:
                raise UserError(f"{experiment.source}: variant {run.variant}: {error}") from None
            resolved[key] = config.to_dict(built), store.digest(config.structural(built))
        runs.append(replace(run, config=resolved[key][0], structure=resolved[key][1]))
    for algorithm, task in dict.fromkeys((run.algorithm, run.task) for run in runs):
        check_supported(algorithm, task)
    return replace(experiment, runs=tuple(runs))


def check_supported(algorithm: str, task: str) -> None:
    """Refuse an algorithm that is not for the task's kind. On a table the number of a state says nothing about it, so
    that tasks of discrete actions and tables are two kinds."""
    envs = suites.make(task, 1, 1)
    kind = "continuous" if envs.num_actions is None else "discrete" if envs.num_states is None else "tabular"
    supported = algorithms.load(algorithm).SUPPORTS
    if kind not in supported:
        fitting = [name for name in algorithms.names() if kind in algorithms.load(name).SUPPORTS]
        rule = f"{algorithm} is for {' or '.join(KINDS[each] for each in sorted(supported))}, {task} has {KINDS[kind]}"
        raise UserError(f"{rule}; algorithms for it: {', '.join(fitting) or 'none yet'}")


# ---- groups --------------------------------------------------------------------------------------------------------


def cost(runs: Sequence[Run]) -> float:
    """A guess at the seconds a group takes: a share per step for the calls, a share per run for the work."""
    per_run = 4e-6 if suites.find_task(runs[0].task).kind == "classic" else 45e-6  # PPO with 1 to 33 runs, measured
    return runs[0].steps * (20e-6 + per_run * len(runs))


def cut(runs: Iterable[Run], group_size: int, workers: int) -> list[Group]:
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
        return sorted(groups, key=cost, reverse=True)

    def seconds(groups: Iterable[Sequence[Run]]) -> float:
        """When the last worker is done if each takes the next longest group as soon as it is free."""
        free = [0.0] * workers
        for group in groups:
            heapq.heapreplace(free, free[0] + cost(group))
        return max(free)

    best = into(group_size)
    for size in range(group_size - 1, 0, -1):
        groups = into(size)
        if seconds(groups) < 0.97 * seconds(best):  # smaller groups cost more in all: only for a clear gain
            best = groups
    return [Group(tuple(group)) for group in best]


def outstanding(
    experiment: Experiment, root: Path, fingerprints: Mapping[str, Mapping[str, Any]], group_size: int, workers: int
) -> tuple[list[Group], list[Run]]:
    """The groups still to be trained, and the runs that have ended. Unfinished groups on disk are gone on with."""
    wanted = {run.path: run for run in experiment.runs}
    raw = experiment.raw
    manifests = {path: compare(root / path, run, raw, fingerprints[run.task]) for path, run in wanted.items()}
    ended = {path for path, found in manifests.items() if found and found["status"] in (store.FINISHED, store.DIVERGED)}
    adopted: list[Group] = []
    taken: set[str] = set()
    for plan in sorted((root / ".groups").glob(f"*/{store.PLAN}")):
        name, runs = plan.parent.name, members(plan)
        owned = all((store.read_manifest(root / run.path) or {}).get("group") == name for run in runs)
        agree = all(wanted.get(run.path, run) == run for run in runs)
        open_ = {run.path for run in runs if run.path in wanted} - ended
        if owned and agree and open_ and (plan.parent / store.CHECKPOINT).exists():
            adopted.append(Group(runs, name))
            taken |= {run.path for run in runs}
    ended -= taken  # a group that goes on ends all its runs itself
    for path in ended:
        store.check_tables(root / path, (manifests[path] or {})["schema"])
    rest = cut((run for path, run in wanted.items() if path not in ended | taken), group_size, workers)
    groups = sorted(adopted + rest, key=lambda group: -cost(group.runs))
    return groups, [run for path, run in wanted.items() if path in ended]


def compare(directory: Path, run: Run, raw: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a run that is on disk, or None. Refuses results of another configuration or environment.

    `raw`: the experiment's contents. How often metrics are written down must agree as well, of a run that has some.
    """
    manifest = store.read_manifest(directory)
    if manifest is None:
        return None
    before = {"steps": manifest["steps"], "evaluation": manifest.get("evaluation"), **manifest["config"]}
    here = {"steps": run.steps, "evaluation": raw.get("evaluation"), **run.config}
    if manifest["schema"] > 1:
        before["metrics_period"] = manifest.get("metrics_period")
        here["metrics_period"] = metrics_period(raw, run.steps)
    differences = [
        f"{key} is {before.get(key, 'absent')!r} there and {here.get(key, 'absent')!r} here"
        for key in sorted(before.keys() | here.keys())
        if before.get(key, "absent") != here.get(key, "absent")
    ]
    trace = manifest.get("fingerprint", {})
    if trace.get("digest") != fingerprint.get("digest"):
        keys = [key for key in sorted(trace.keys() | fingerprint.keys()) if trace.get(key) != fingerprint.get(key)]
        differences.append(f"the environment's fingerprint differs in {', '.join(keys)}")
    if differences:
        told = "; ".join(differences)
        raise ResultsError(f"{directory} holds another run: {told}. Use another --out, or delete that directory")
    return manifest


# ---- what a worker is given ----------------------------------------------------------------------------------------


def write_plan(experiment: Experiment, group: Group, folder: Path, **settings: Any) -> None:
    """Write down what a worker needs to train a group."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "experiment": experiment.name,
        "suite": experiment.raw.get("suite"),
        "evaluation": experiment.raw.get("evaluation"),
        "metrics_period": metrics_period(experiment.raw, group.runs[0].steps),
        "runs": [asdict(run) for run in group.runs],
    }
    store.write_json(folder / store.PLAN, plan | settings)


def members(path: Path) -> tuple[Run, ...]:
    """The runs of a group's plan."""
    try:
        return tuple(Run(**run) for run in store.read_json(path)["runs"])
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} is no plan of this program ({error}); delete {path.parent} to train it anew"
        ) from None


def base_manifest(plan: Mapping[str, Any], index: int, group: str) -> dict[str, Any]:
    """The part of a run's manifest that is known before anything has run."""
    run = Run(**plan["runs"][index])
    known = {key: getattr(run, key) for key in ("task", "algorithm", "variant", "preset", "seed", "steps", "config")}
    return {
        "schema": store.SCHEMA,
        "experiment": plan["experiment"],
        "suite": plan["suite"],
        **known,
        "config_digest": store.digest(run.config),
        "evaluation": plan["evaluation"],
        "metrics_period": plan["metrics_period"],
        "group": group,
        "group_size": len(plan["runs"]),
        "group_index": index,
        "fingerprint": plan["fingerprint"],
    }
