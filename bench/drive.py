"""The worker: trains one group, from its plan or its last checkpoint to the end. `python -m bench.drive GROUP_FOLDER`.

Its exit code tells the launcher what to do next; everything else it has to say is in the run directories, in
`progress.json` and in `log.txt`. It may be killed at any moment: the next worker goes on from the checkpoint, cuts the
tables back to it, and ends with the same bits (except an agent whose manifest says that it is not reproducible).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported: it decides how they compute

import numpy as np  # noqa: E402

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from algorithms.common.streams import generator  # noqa: E402
from bench import (  # noqa: E402
    CRASHED,
    DISK_FULL,
    DONE,
    REFUSED,
    STOPPED,
    ResultsError,
    UserError,
    import_plugins,
    plan,
    store,
    tensors,
)

PROGRESS_SECONDS = 1.0
PATIENCE = 30.0  # seconds to wait for the last worker of this group, which may still be dying
# What the driver itself has to remember over a pause.
REMEMBERED = (
    "env_steps",
    "evaluations",
    "status",
    "errors",
    "ended_at",
    "wall_seconds",
    "cpu_seconds",
    "started",
    "sessions",
)


def train(folder: Path, should_stop: Callable[[], bool]) -> int:
    """Train the group in `folder`. Returns `DONE`, or `STOPPED` (with a checkpoint) once `should_stop()` is true."""
    import_plugins()
    settings = store.read_json(folder / store.PLAN)
    with store.locked(folder / ".lock", PATIENCE):
        algorithms.load(plan.members(folder / store.PLAN)[0].algorithm)  # which imports what it computes with
        try:
            computing = runtime.configure(settings["device"])
        except ValueError as error:
            raise UserError(str(error)) from None
        return Driver(folder, settings, computing).train(should_stop)


class Driver:
    """One group between its files, its environments and its agent."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], computing: dict[str, Any]):
        self.folder, self.settings = folder, settings
        self.runs = plan.members(folder / store.PLAN)
        self.directories = [folder.parent.parent / run.path for run in self.runs]
        self.seeds, self.task, self.steps = [run.seed for run in self.runs], self.runs[0].task, self.runs[0].steps
        cfg = config.stack([config.load_config(run.algorithm, None, run.config) for run in self.runs])
        self.envs = suites.make(self.task, len(self.runs), getattr(cfg, "num_envs", 1))
        device = computing["device"].split(" ")[0]
        module = algorithms.load(self.runs[0].algorithm)
        self.code = store.code_digest(module.Agent)
        self.agent = module.Agent(cfg, self.envs, self.seeds, device)

        self.evaluation_envs: Any = None  # made when first needed

        self.env_steps = self.evaluations = 0
        self.status = [store.RUNNING] * len(self.runs)
        self.errors: list[str | None] = [None] * len(self.runs)
        self.ended_at = [0] * len(self.runs)  # env_steps at which a run diverged or failed
        self.wall_seconds = self.cpu_seconds = 0.0
        self.started = store.now()
        self.sessions: list[dict[str, Any]] = []  # one entry per process that trained the group
        self.checkpoint = tensors.Checkpoint(folder / store.CHECKPOINT)
        lengths = self._restore() if self.checkpoint.path.exists() else {}

        self.alive = np.array([status == store.RUNNING for status in self.status])
        self.saved_at = self.env_steps
        self._clock = time.perf_counter() - self.wall_seconds, time.process_time() - self.cpu_seconds
        machine = store.machine() | {"isa": computing.pop("isa", None)}
        self.facts = store.commit() | {"versions": store.versions(), "machine": machine} | computing
        self.sessions.append({"started": store.now(), "env_steps": self.env_steps, "commit": self.facts["commit"]})
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)
            for old in (*(table.parquet for table in store.TABLES), store.POLICY):  # of an earlier attempt that failed
                (directory / old).unlink(missing_ok=True)
        nothing = [0] * len(self.runs)
        self.episodes = [
            store.Episodes(*each) for each in zip(self.directories, lengths.get("episodes", nothing), strict=True)
        ]
        self.metrics = [
            store.Metrics(*each) for each in zip(self.directories, lengths.get("metrics", nothing), strict=True)
        ]
        self.boards = [self._board(place) for place in self.directories] if settings["tensorboard"] else []
        for index in range(len(self.runs)):
            self._write_manifest(index)

    def train(self, should_stop: Callable[[], bool]) -> int:
        """Iterate until the budget is spent or no run is left, then write the results."""
        saved = told = time.perf_counter()
        self._tell()
        while self.env_steps < self.steps and self.alive.any():
            self._log(self.agent.iterate())
            self._take_out()
            self._evaluate()
            moment = time.perf_counter()
            if should_stop() or moment - saved >= self.settings["checkpoint_seconds"]:
                self._save()
                if should_stop():
                    return STOPPED
                saved = told = time.perf_counter()
            elif moment - told >= PROGRESS_SECONDS:
                self._tell()
                told = moment
        self._save()
        for index in range(len(self.runs)):
            self._end(index)
        self.checkpoint.remove()  # until here a killed worker's group can be gone on with
        for directory in self.directories:
            for table in store.TABLES:
                (directory / table.lines).unlink()
        return DONE

    def _log(self, metrics: Mapping[str, Any]) -> None:
        """Count the steps; write the episodes that ended, and the metrics if their period was crossed or at the end."""
        before, self.env_steps, seconds = self.env_steps, self.envs.env_steps, self._seconds()
        for index, env_steps, episode_return, length in self.envs.drain_episodes():
            if self.alive[index]:
                self.episodes[index].append(env_steps, episode_return, length, "train", seconds)
                if self.boards:
                    self.boards[index].add_scalar("episode_return", episode_return, env_steps)
        period = self.settings["metrics_period"]
        if period == 0 or before // period < self.env_steps // period or self.env_steps >= self.steps:
            self._record(metrics)
        for index, board in enumerate(self.boards):
            for name, values in metrics.items():
                if self.alive[index]:
                    board.add_scalar(name, float(values[index]), self.env_steps)

    def _record(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics, each [R], of the runs that go on."""
        for index in self.alive.nonzero()[0].tolist():
            for name, values in metrics.items():
                self.metrics[index].append(self.env_steps, name, float(values[index]))

    def _take_out(self) -> None:
        """Park the runs whose environment failed or whose numbers are no longer finite; the others go on unharmed."""
        diverged = self.agent.diverged()
        for index in self.alive.nonzero()[0].tolist():
            if diverged[index]:  # asked first: actions that are NaN upset the environment as well
                self.status[index], self.errors[index] = store.DIVERGED, "weights or losses are no longer finite"
            elif index in self.envs.errors:
                self.status[index], self.errors[index] = store.FAILED, self.envs.errors[index]
            else:
                continue
            self.envs.park(index)
            self.alive[index] = False
            self.ended_at[index] = self.env_steps
            self._write_manifest(index)

    def _evaluate(self) -> None:
        """Evaluate at every crossing of the period, and at the end."""
        if (wanted := self.settings["evaluation"]) is None:
            return
        crossed, rest = divmod(min(self.env_steps, self.steps), wanted["period"])
        due = crossed + (self.env_steps >= self.steps and rest > 0)
        if due > self.evaluations:
            self.evaluations = due
            if self.evaluation_envs is None:
                self.evaluation_envs = suites.make(self.task, len(self.runs), wanted["episodes"])
            found = evaluate(self.agent, self.evaluation_envs, self.seeds, due)
            for index in self.alive.nonzero()[0].tolist():
                for value, length in zip(found.returns[index].tolist(), found.lengths[index].tolist(), strict=True):
                    self.episodes[index].append(self.env_steps, value, length, "eval", self._seconds())
            self._record(found.metrics)

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock[0]

    # ---- files -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tables: dict[str, Sequence[store.Lines]] = {"episodes": self.episodes, "metrics": self.metrics}
        lengths = {name: [lines.flush(to_disk=True) for lines in table] for name, table in tables.items()}
        elsewhere = getattr(self.agent, "cpu_elsewhere", 0.0)  # seconds of processes of the agent's own
        self.wall_seconds, self.cpu_seconds = self._seconds(), time.process_time() - self._clock[1] + elsewhere
        own = {name: getattr(self, name) for name in REMEMBERED}
        state = {"driver": own, "lengths": lengths, "agent": self.agent.state(), "envs": self.envs.state()}
        state["code"] = {"digest": self.code, "commit": self.facts["commit"]}
        self.checkpoint.save(state)
        self.saved_at = self.env_steps
        self._tell()

    def _restore(self) -> dict[str, list[int]]:
        """Load the checkpoint; returns the lengths, table -> bytes [R], to which the tables have to be cut back."""
        state = self.checkpoint.load()
        if state["code"]["digest"] != self.code:  # it would end with the numbers of neither
            raise ResultsError(
                f"{self.checkpoint.path} was written by other code (commit {state['code']['commit']}); go on "
                f"from that commit, or remove {self.folder} to start the group again"
            )
        self.agent.load_state(state["agent"])
        self.envs.load_state(state["envs"])
        for name in REMEMBERED:
            setattr(self, name, state["driver"][name])
        lengths: dict[str, list[int]] = state["lengths"]
        return lengths

    def _tell(self) -> None:
        """Tell the launcher and `status` how far the group is."""
        for lines in (*self.episodes, *self.metrics):
            lines.flush()
        progress = {key: getattr(self, key) for key in ("env_steps", "saved_at", "steps")}
        more = {"runs": len(self.runs), "pid": os.getpid(), "wall_seconds": self._seconds()}
        store.write_json(self.folder / store.PROGRESS, progress | more, to_disk=False)

    def _write_manifest(self, index: int, weights_sha256: str | None = None) -> None:
        manifest = plan.base_manifest(self.settings, index, self.folder.name) | self.facts
        manifest |= {
            "status": self.status[index],
            "error": self.errors[index],
            "env_steps": self.ended_at[index] or self.env_steps,
            "started": self.started,
            "ended": None if self.status[index] == store.RUNNING else store.now(),
            "wall_seconds": self.wall_seconds,  # of the whole group, which has group_size runs
            "cpu_seconds": self.cpu_seconds,
            "sessions": self.sessions,
            "weights_sha256": weights_sha256,
        }
        if not getattr(self.agent, "reproducible", True):  # its workers race: what it computes is never the same again
            manifest["reproducible"] = False
        store.write_json(self.directories[index] / store.MANIFEST, manifest)

    def _end(self, index: int) -> None:
        """The final files of a run. The manifest comes last: what it says is there is there."""
        if self.status[index] == store.RUNNING:
            self.status[index] = store.FINISHED
        directory, run = self.directories[index], self.runs[index]
        for table in store.TABLES:
            store.write_table(directory, table)
        weights = self.agent.parameters_of(index)
        tensors.save(directory / store.POLICY, weights, {"task": run.task, "algorithm": run.algorithm})
        self._write_manifest(index, tensors.weights_hash(weights))

    def _board(self, directory: Path) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        return SummaryWriter(str(directory / "tensorboard"), purge_step=self.env_steps + 1 if self.env_steps else None)


class Evaluation(NamedTuple):
    """What an evaluation found."""

    returns: np.ndarray  # [R, N] undiscounted
    lengths: np.ndarray  # [R, N] env_steps
    metrics: dict[str, np.ndarray]  # each [R]; none of an agent that does not estimate values


def evaluate(agent: Any, envs: Any, seeds: list[int], count: int) -> Evaluation:
    """One greedy episode in each of a run's environments, which are reset for it.

    The `count`-th evaluation of a run has environments seeded by (seed, "evaluation", count): evaluating more often, or
    not at all, changes neither training nor another evaluation, and nothing of it has to be in a checkpoint.

    Of an agent with `values(observations) -> [R, N]`, its estimate of acting greedily from there, the metrics tell
    `estimated_value` at the first observations beside the `discounted_return` that followed (by `cfg.gamma`, up to the
    time limit), means over a run's episodes.

    An agent with a memory has `initial_carry(num_envs)`, what it carries into an episode, and `act_on(observations,
    carry) -> (actions, carry)` in place of `act`; what it carries while training is not touched.
    """
    observations = envs.reset([int(generator(seed, "evaluation", count).integers(2**62)) for seed in seeds])
    shape = len(seeds), envs.num_envs
    estimates = np.asarray(agent.values(observations), np.float64) if hasattr(agent, "values") else None  # [R, N]
    gamma = np.reshape(agent.cfg.gamma, (-1, 1)) if estimates is not None else 1.0  # [R, 1]
    returns, lengths, going = np.zeros(shape), np.zeros(shape, np.int64), np.ones(shape, bool)
    discounted, discounts = np.zeros(shape), np.ones(shape)
    carry = agent.initial_carry(envs.num_envs) if hasattr(agent, "initial_carry") else None
    while going.any():
        if carry is None:
            actions = agent.act(observations, None)
        else:
            actions, carry = agent.act_on(observations, carry)
        step = envs.step(actions)
        returns += np.where(going, step.rewards, 0.0)
        discounted += np.where(going, discounts * step.rewards, 0.0)
        discounts *= gamma
        lengths += going
        going &= ~(step.terminations | step.truncations | envs.parked[:, None])
        observations = step.observations
    if estimates is None:
        return Evaluation(returns, lengths, {})
    told = {"estimated_value": estimates, "discounted_return": discounted}
    return Evaluation(returns, lengths, {name: np.array([row.mean() for row in rows]) for name, rows in told.items()})


def die_with(parent: int) -> None:
    """End this process when the launcher does, so that a new launcher never meets a writer of the old one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:  # for a parent that was gone before, and for systems without prctl
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(CRASHED)

    threading.Thread(target=watch, daemon=True).start()


def listen() -> None:
    """What algorithms have to tell, such as the memory they are about to take, goes to the worker's log."""
    told = logging.getLogger("algorithms")
    told.addHandler(logging.StreamHandler())
    told.setLevel(logging.INFO)


def main(arguments: list[str]) -> int:
    """`GROUP_FOLDER [PARENT_PID]`."""
    if len(arguments) > 1:
        die_with(int(arguments[1]))
    listen()
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):  # the iteration in progress is finished and saved
        signal.signal(number, lambda number, frame: stop.append(number))
    try:
        return train(Path(arguments[0]), lambda: bool(stop))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        if error.errno in store.NO_SPACE:
            return DISK_FULL
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
