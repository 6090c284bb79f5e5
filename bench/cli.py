"""The command line. Exit codes: 0 all well; 1 a run failed or a check fell short; 2 the call was wrong.

Heavy imports happen inside the commands that need them, so that `list` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench import FELL_SHORT, ROOT, WRONG_CALL, UserError, import_plugins, near

OUT = ROOT / "results" / "runs"


# --------------------------------------------------------------------------------------------------------- arguments
class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, with near names for misspelt options."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, naming the options nearest to an unknown one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = {option for action in self._all_actions() for option in action.option_strings}
            self.error(f"unknown argument {unknown[0]!r}{near(unknown[0].split('=')[0], options)}")
        return found

    def _all_actions(self) -> list[argparse.Action]:
        below = [parser for action in self._actions if isinstance(action, argparse._SubParsersAction) for parser in action.choices.values()]
        return self._actions + [action for parser in below for action in parser._actions]


def positive(text: str) -> int:
    """A positive int, `1_000` and `1e6` included."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(value)


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
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number of seeds, a range such as 0..9, or a list such as 0,1,7")
    return seeds


def names_list(text: str) -> list[str]:
    """Names between commas."""
    return [name for name in text.split(",") if name]


def add_running(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that train."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--seeds", type=seed_list, help="5, 0..9 or 0,1,7")
    parser.add_argument("--steps", type=positive, help="env_steps of every run")
    parser.add_argument("--workers", type=positive, default=cores, help="worker processes (default: one per core)")
    parser.add_argument("--group-size", type=positive, default=33, help="most runs trained as one program (default 33)")
    parser.add_argument("--engine", default="local", help="local")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=OUT, help="results folder (default results/runs)")
    parser.add_argument("--checkpoint-seconds", type=float, default=45.0, help="seconds of work between checkpoints (default 45)")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files into the run folders")


def experiment_of(name: str, out: Path, **chosen: Any) -> Any:
    """An experiment by file, or, for what `train` made, by its results folder."""
    from bench import plan, store

    made = out / name / "experiment.json"
    if name not in plan.experiment_names() and not name.endswith(".toml") and made.exists():
        contents = store.read_json(made)
        return plan.expand(name, contents["experiment"], str(made), **chosen)
    return plan.expand(*plan.read(name), **chosen)


# ---------------------------------------------------------------------------------------------------------- commands
def launch(experiment: Any, options: argparse.Namespace) -> int:
    """Train an experiment with the options of `add_running`."""
    from bench import launch

    check_device(options.device)
    return launch.run(
        experiment, options.out, workers=options.workers, group_size=options.group_size, engine_name=options.engine,
        device=options.device, checkpoint_seconds=options.checkpoint_seconds, tensorboard=options.tensorboard, command=sys.argv,
    )  # fmt: skip


def check_device(device: str) -> None:
    """Refuse CUDA where there is none, before anything is written."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda was asked for and torch sees no CUDA device; use --device cpu or auto")


def run(options: argparse.Namespace) -> int:
    """Train what is not yet trained of an experiment."""
    return launch(experiment_of(options.experiment, options.out, seeds=options.seeds, steps=options.steps, tasks=options.tasks), options)


def train_main(algorithm: str, arguments: Sequence[str] | None = None) -> int:
    """`train ALGORITHM ...`, also the last line of an algorithm's file."""
    return guarded(lambda argv: train(algorithm, argv), sys.argv[1:] if arguments is None else arguments)


def train(algorithm: str, arguments: Sequence[str]) -> int:
    """Train one algorithm: one option per setting; a list of values makes one variant of each."""
    import algorithms
    from bench import plan

    if algorithm not in algorithms.names():
        known = algorithms.names()
        raise UserError(f"unknown algorithm {algorithm!r}{near(algorithm, known)}; there are: {', '.join(known)}")
    from algorithms.common import config

    parser = Parser(prog=f"run_bench.py train {algorithm}", description=train.__doc__)
    parser.add_argument("--task", type=names_list, required=True, help="task id, or several between commas")
    parser.add_argument("--preset", default=None, help=f"one of {', '.join(config.presets(algorithm)) or 'none yet'}")
    add_running(parser)
    hints = typing.get_type_hints(config.config_class(algorithm))
    settings = parser.add_argument_group("settings", "one value, or several between commas; sizes as 64x64")
    for key, kind in hints.items():
        settings.add_argument(flag(key), dest=f"set_{key}", metavar=getattr(kind, "__name__", "value"))
    options = parser.parse_args(arguments)
    chosen = {key: text.split(",") for key in hints if (text := getattr(options, f"set_{key}")) is not None}
    variants = {}
    for values in itertools.product(*chosen.values()):
        pairs = dict(zip(chosen, values, strict=True))
        label = ",".join(([options.preset] if options.preset else []) + [f"{key}={value}" for key, value in pairs.items()])
        variants[label or plan.DEFAULT_VARIANT] = {key: parse_value(key, hints[key], text) for key, text in pairs.items()}
    entry = {"name": algorithm, "variants": variants} | ({"preset": options.preset} if options.preset else {})
    raw = {"title": f"train {algorithm}", "tasks": options.task, "seeds": options.seeds or [0], "algorithms": [entry]}
    raw |= {"steps": options.steps} if options.steps else {}
    return launch(plan.expand(f"train-{algorithm}", raw, "the command line"), options)


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


def list_names(options: argparse.Namespace) -> int:
    """What there is: algorithms, suites, experiments, published tables."""
    import tomllib

    import algorithms
    import suites
    from bench import plan

    def summary(name: str) -> str:
        path = Path(algorithms.__file__).parent / f"{name}.py"
        text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else ""
        return (text or "").partition("\n")[0]

    def title(name: str) -> str:
        try:
            return str(tomllib.loads((plan.EXPERIMENTS / f"{name}.toml").read_text()).get("title", ""))
        except ValueError:
            return "not valid TOML"

    makers: dict[str, Callable[[], dict[str, str]]] = {
        "algorithms": lambda: {name: summary(name) for name in algorithms.names()},
        "suites": lambda: {name: ", ".join(task.id for task in suites.find_suite(name)) for name in suites.names()},
        "experiments": lambda: {name: title(name) for name in plan.experiment_names()},
        "published": lambda: {
            path.stem: f"{sum(1 for _ in open(path)) - 1} rows" for path in sorted((ROOT / "results" / "published").glob("*.csv"))
        },
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded(dispatch, sys.argv[1:] if arguments is None else arguments)


def guarded(command: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Turn what a user can cause into one message and an exit code. `--debug` shows the traceback as well."""
    debug = "--debug" in arguments
    try:
        import_plugins()
        return command([argument for argument in arguments if argument != "--debug"])
    except (UserError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, UserError) else FELL_SHORT
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FELL_SHORT
    except BrokenPipeError:
        return 0


def dispatch(arguments: list[str]) -> int:
    """Parse the command line and run its command."""
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        return train(arguments[1], arguments[2:])
    parser = Parser(prog="run_bench.py", description="Touchstone: reference algorithms, benchmark sweeps, verdicts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, function: Callable[[argparse.Namespace], int]) -> Any:
        command = commands.add_parser(name, help=(function.__doc__ or "").partition("\n")[0], description=function.__doc__)
        command.set_defaults(function=function)
        return command

    command = add("list", list_names)
    command.add_argument("what", nargs="?", choices=["algorithms", "suites", "experiments", "published"])
    command.add_argument("--json", action="store_true")
    command = commands.add_parser("train", help="train one algorithm: train ALGORITHM --task T --seeds 0..9 --steps N [--SETTING VALUE]")
    command.add_argument("algorithm", help="train ALGORITHM --help shows its settings")
    command = add("run", run)
    command.add_argument("experiment", help="a name (list experiments), or the path of a .toml file")
    command.add_argument("--tasks", type=names_list, help="only these tasks, between commas")
    add_running(command)
    options = parser.parse_args(arguments)
    code: int = options.function(options)
    return code
