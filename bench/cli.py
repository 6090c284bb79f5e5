"""The command line. Exit codes: 0 all well; 1 a run failed or a check fell short; 2 the call was wrong.

Heavy imports happen inside the commands that need them, so that `list` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import errno
import importlib
import itertools
import json
import os
import subprocess
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench import DONE, FELL_SHORT, REFUSED, ROOT, WRONG_CALL, UserError, import_plugins, near

OUT = ROOT / "results" / "runs"


# --------------------------------------------------------------------------------------------------------- arguments
class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, with near names for misspelt options."""

    def error(self, message: str) -> NoReturn:
        """Where argparse would print usage and exit."""
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an unknown option is answered with those nearest to it."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = {option for action in self._actions for option in action.option_strings}
            self.error(f"unknown argument {unknown[0]!r}{near(unknown[0].split('=')[0], options)}")
        return found


def positive(text: str) -> int:
    """A positive int, `1_000` and `1e6` included."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**53 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(value)


def period(text: str) -> int:
    """0 or a positive int."""
    return 0 if text == "0" else positive(text)


def seed_list(text: str) -> list[int]:
    """`5` (five seeds from 0), `0..9` (both included) or `0,1,7`."""
    try:
        if ".." in text:
            first, last = (int(part) for part in text.split(".."))
            seeds = list(range(first, last + 1))
        else:
            seeds = [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        rule = "must be a positive number of seeds, a range such as 0..9, or a list such as 0,1,7"
        raise argparse.ArgumentTypeError(f"{text!r} {rule}")
    return seeds


def numbers(text: str) -> list[int]:
    """Positive ints between commas."""
    return [positive(part) for part in text.split(",")]


def words(text: str) -> list[str]:
    """Names between commas."""
    return [name for name in text.split(",") if name]


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number of seconds")
    return value


def add_out(parser: argparse.ArgumentParser) -> None:
    """The results folder."""
    parser.add_argument("--out", type=Path, default=OUT, help="results folder (default results/runs)")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that train."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    option = parser.add_argument
    option("--seeds", type=seed_list, help="5 (from 0 on), 0..9 or 0,1,7")
    option("--steps", type=positive, help="env_steps of every run")
    option("--workers", type=positive, default=cores, help="worker processes (default: one per core)")
    option("--group-size", type=positive, default=33, help="most runs trained as one program (default 33)")
    option("--engine", default="local", help="where the workers run: local")
    option("--device", default="auto", choices=["auto", "cpu", "cuda"])
    option("--checkpoint-seconds", type=seconds, default=45.0, help="work between checkpoints (default 45 s)")
    option("--tensorboard", action="store_true", help="also write TensorBoard event files into the run folders")
    add_out(parser)


def add_settings(parser: argparse.ArgumentParser, algorithm: str) -> dict[str, Any]:
    """`--preset`, and one option per field of the algorithm's `Config`. Returns the fields' types."""
    import algorithms
    from algorithms.common import config

    if algorithm not in algorithms.names():
        known = algorithms.names()
        raise UserError(f"unknown algorithm {algorithm!r}{near(algorithm, known)}; there are: {', '.join(known)}")
    settings = config.config_class(algorithm)
    hints = typing.get_type_hints(settings) | dict.fromkeys(config.per_run_fields(settings), float)
    parser.add_argument("--preset", help=f"one of {', '.join(config.presets(algorithm)) or 'none yet'}")
    group = parser.add_argument_group(
        "settings", "one value, or several between commas for one variant each; sizes as 64x64"
    )
    for key, kind in hints.items():
        group.add_argument(flag(key), dest=f"set_{key}", metavar=getattr(kind, "__name__", "value"))
    return hints


def settings_of(options: argparse.Namespace, hints: Mapping[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """Every combination of the given values: its `key=value` texts, and the settings."""
    given = {key: text.split(",") for key in hints if (text := getattr(options, f"set_{key}")) is not None}
    found = []
    for texts in itertools.product(*given.values()):
        pairs = dict(zip(given, texts, strict=True))
        values = {key: parse_value(key, hints[key], text) for key, text in pairs.items()}
        found.append(([f"{key}={text}" for key, text in pairs.items()], values))
    return found


def flag(key: str) -> str:
    """The option of a setting."""
    return "--" + key.replace("_", "-")


def parse_value(key: str, kind: Any, text: str) -> Any:
    """A setting's value from the command line."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            return [typing.get_args(kind)[0](part) for part in text.split("x")]
    except (ValueError, KeyError):
        raise UserError(f"{flag(key)} is {text!r}; it must be of type {getattr(kind, '__name__', kind)}") from None
    return text


def experiment_of(name: str, out: Path, **chosen: Any) -> Any:
    """An experiment by its file or, for what `train` made, by its results folder."""
    from bench import plan, store

    made = out / name / "experiment.json"
    if name not in plan.experiment_names() and not name.endswith(".toml") and made.exists():
        return plan.expand(
            name,
            store.read_json(made, "train again: the same command writes it anew")["experiment"],
            str(made),
            **chosen,
        )
    return plan.expand(*plan.read(name), **chosen)


# ---------------------------------------------------------------------------------------------------------- commands
def launch(experiment: Any, options: argparse.Namespace) -> int:
    """Train an experiment with the options of `add_running`."""
    from bench import launch

    if options.device == "cuda":  # refused before anything is written
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda was asked for and torch sees no CUDA device; use --device cpu or auto")
    keys = ("workers", "group_size", "engine", "device", "checkpoint_seconds", "tensorboard")
    return launch.run(experiment, options.out, command=sys.argv, **{key: getattr(options, key) for key in keys})


def run(arguments: Sequence[str]) -> int:
    """Train what is not yet trained of an experiment."""
    parser = Parser(prog="run_bench.py run", description=run.__doc__, allow_abbrev=False)
    parser.add_argument("experiment", help="a name (`list experiments`), or the path of a .toml file")
    parser.add_argument("--tasks", type=words, help="only these tasks, between commas")
    parser.add_argument("--algorithms", type=words, help="only these algorithms, between commas")
    variant = "only this variant of the algorithms; for several, give the option for each"
    parser.add_argument("--variant", dest="variants", action="append", metavar="VARIANT", help=variant)
    add_running(parser)
    options = parser.parse_args(arguments)
    chosen = {key: getattr(options, key) for key in ("seeds", "steps", "tasks", "algorithms", "variants")}
    return launch(experiment_of(options.experiment, options.out, **chosen), options)


def train(arguments: Sequence[str]) -> int:
    """Train one algorithm: one option per setting; a list of values makes one variant of each."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("train needs an algorithm: train ALGORITHM --task T; `list algorithms` shows them")
    from bench import plan

    algorithm = arguments[0]
    parser = Parser(prog=f"run_bench.py train {algorithm}", description=train.__doc__, allow_abbrev=False)
    parser.add_argument("--task", type=words, required=True, help="a task id, or several between commas")
    every = "env_steps between metrics (default: steps / 200; 0: every iteration)"
    parser.add_argument("--metrics-period", type=period, help=every)
    add_running(parser)
    hints = add_settings(parser, algorithm)
    options = parser.parse_args(arguments[1:])
    labels = [options.preset] if options.preset else []
    variants = {
        ",".join(labels + texts) or plan.DEFAULT_VARIANT: values for texts, values in settings_of(options, hints)
    }
    entry = {"name": algorithm, "variants": variants} | ({"preset": options.preset} if options.preset else {})
    raw = {"title": f"train {algorithm}", "tasks": options.task, "seeds": options.seeds or [0], "algorithms": [entry]}
    chosen = {"steps": options.steps, "metrics_period": options.metrics_period}
    raw |= {key: value for key, value in chosen.items() if value is not None}
    return launch(plan.expand(f"train-{algorithm}", raw, "the command line"), options)


def status(arguments: Sequence[str]) -> int:
    """What is done, running, failed, diverged, missing; speed and time left."""
    parser = Parser(prog="run_bench.py status", description=status.__doc__, allow_abbrev=False)
    parser.add_argument("experiment")
    parser.add_argument("--json", action="store_true")
    add_out(parser)
    options = parser.parse_args(arguments)
    experiment = experiment_of(options.experiment, options.out)
    from bench import status as module

    module.show(module.read(experiment, options.out / experiment.name), options.json)
    return 0


def list_names(arguments: Sequence[str]) -> int:
    """What there is: algorithms, suites, experiments, published tables."""
    import tomllib

    import algorithms
    import suites
    from bench import plan

    parser = Parser(prog="run_bench.py list", description=list_names.__doc__, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=["algorithms", "suites", "experiments", "published"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def summary(name: str) -> str:
        path = Path(algorithms.__file__).parent / f"{name}.py"
        text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else ""
        return (text or "").partition("\n")[0]

    def title(name: str) -> str:
        try:
            text = str(tomllib.loads((plan.EXPERIMENTS / f"{name}.toml").read_text()).get("title", ""))
        except ValueError:
            return "not valid TOML"
        return text if (ROOT / "results" / "reference" / name).is_dir() else f"{text} (no shipped results)"

    def rows(path: Path) -> str:
        with open(path) as lines:
            return f"{sum(1 for _ in lines) - 1} rows"

    tables = sorted((ROOT / "results" / "published").glob("*.csv"))
    makers: dict[str, Callable[[], dict[str, str]]] = {
        "algorithms": lambda: {name: summary(name) for name in algorithms.names()},
        "suites": lambda: {name: ", ".join(task.id for task in suites.find_suite(name)) for name in suites.names()},
        "experiments": lambda: {name: title(name) for name in plan.experiment_names()},
        "published": lambda: {path.stem: rows(path) for path in tables},
    }
    found = {what: maker() for what, maker in makers.items() if options.what in (None, what)}
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for what, entries in found.items():
        print(what)
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}")
    return 0


def speed(arguments: Sequence[str]) -> int:
    """Env steps per second on one core, split into env, act and learn."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("speed needs an algorithm: speed ALGORITHM --task T --runs 1,10,33")
    import algorithms
    from algorithms.common import config
    from bench import plan
    from bench.rivals import RIVALS

    algorithm = arguments[0]
    parser = Parser(prog=f"run_bench.py speed {algorithm}", description=speed.__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True)
    parser.add_argument(
        "--runs", type=numbers, default=[1, 10, 33], help="numbers of runs in a group (default 1,10,33)"
    )
    parser.add_argument("--against", help="measure this beside it, in turns: sb3, tianshou, or another algorithm")
    parser.add_argument("--against-preset", help="of another algorithm; settings that it has as well are given to both")
    parser.add_argument("--seconds", type=seconds, default=4.0, help="of one turn (default 4)")
    parser.add_argument("--repetitions", type=positive, default=5, help="turns of each (default 5)")
    parser.add_argument(
        "--operators", action="store_true", help="one turn more of ours under torch's profiler: shares of the time"
    )
    parser.add_argument("--json", action="store_true")
    hints = add_settings(parser, algorithm)
    options = parser.parse_args(arguments[1:])
    every = settings_of(options, hints)
    if len(every) > 1:
        raise UserError("speed measures one setting at a time; give each option one value, and sizes as 64x64")
    keys = ("task", "runs", "preset", "against", "against_preset", "seconds", "repetitions", "operators", "json")
    order = {key: getattr(options, key) for key in keys} | {"algorithm": algorithm, "overrides": every[0][1]}
    with_values(lambda: plan.check_supported(algorithm, options.task))
    if (rival := options.against) and rival not in RIVALS:
        known = [*RIVALS, *algorithms.names()]
        if rival not in known:
            raise UserError(f"--against: there is no {rival!r}{near(rival, known)}; there are: {', '.join(known)}")
        with_values(lambda: plan.check_supported(rival, options.task))
        with_values(lambda: config.load_config(rival, options.against_preset))
    elif options.against_preset:
        raise UserError("--against-preset is for an algorithm; name one with --against")
    done = subprocess.run([sys.executable, "-m", "bench.speed", json.dumps(order)], cwd=ROOT)
    return {DONE: 0, REFUSED: WRONG_CALL}.get(done.returncode, FELL_SHORT)


def with_values(call: Callable[[], Any]) -> Any:
    """Turn a `ValueError`, which suites and algorithms raise for unknown names, into a `UserError`."""
    try:
        return call()
    except ValueError as error:
        raise UserError(str(error)) from None


def analysis_command(name: str, function: str = "main") -> Callable[[Sequence[str]], int]:
    """A command that analysis/ answers."""

    def command(arguments: Sequence[str]) -> int:
        code: int = getattr(importlib.import_module(f"analysis.{name}"), function)(list(arguments))
        return code

    return command


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "list": (list_names, "list [algorithms|suites|experiments|published] [--json]: what there is"),
    "train": (train, "train ALGORITHM --task T --seeds 0..9 --steps N [--SETTING A,B]: one algorithm"),
    "run": (run, "run EXPERIMENT: train what is not yet trained of an experiment"),
    "status": (status, "status EXPERIMENT: what is done, running, failed, diverged, missing; time left"),
    "report": (analysis_command("report"), "report EXPERIMENT: tables, figures and one HTML page"),
    "verify": (analysis_command("verify"), "verify [EXPERIMENT|all]: published against measured"),
    "ship": (analysis_command("load", "ship_main"), "ship EXPERIMENT [--partial]: runs into results/reference/"),
    "speed": (
        speed,
        "speed ALGORITHM --task T --runs 1,10,33 [--against sb3|tianshou|ALGORITHM]: env steps per second",
    ),
}


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("Touchstone: reference algorithms, benchmark sweeps, verdicts.\n\npython run_bench.py COMMAND ...")
        print("\n".join(f"  {text}" for _, text in COMMANDS.values()))
        print("Every command has --help, and --debug for the traceback behind an error.")
        return 0 if arguments else WRONG_CALL
    if arguments[0] not in COMMANDS:
        raise UserError(
            f"unknown command {arguments[0]!r}{near(arguments[0], COMMANDS)}; there are: {', '.join(COMMANDS)}"
        )
    return COMMANDS[arguments[0]][0](arguments[1:])


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Turn what a user can cause into one message and an exit code. `--debug` shows the traceback as well."""
    try:
        import_plugins()
        return command([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        cure = "; free some space, then the same command goes on" if getattr(error, "errno", 0) == errno.ENOSPC else ""
        print(f"error: {error}{cure}", file=sys.stderr)
        return error.code if isinstance(error, UserError) else FELL_SHORT
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FELL_SHORT


def train_main(algorithm: str) -> NoReturn:
    """`train ALGORITHM ...`: the last line of an algorithm's file."""
    sys.exit(guarded(train, [algorithm, *sys.argv[1:]]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded(dispatch, sys.argv[1:] if arguments is None else arguments)
