"""The worker: trains one group, from its plan or its last checkpoint to the end. `python -m bench.drive GROUP_FOLDER`.

Its exit code tells the launcher what to do next; everything else it has to say is in the run directories, in
`progress.json` and in `log.txt`. It may be killed at any moment: the next worker goes on from the checkpoint, cuts the
episodes back to it, and ends with the same bits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from algorithms.common import runtime

runtime.prepare()  # before numpy and torch are imported: it decides how they compute

import numpy as np  # noqa: E402

import algorithms  # noqa: E402
import suites  # noqa: E402
from algorithms.common import config  # noqa: E402
from algorithms.common.streams import generator  # noqa: E402
from bench import CRASHED, DISK_FULL, DONE, REFUSED, STOPPED, UserError, import_plugins, store  # noqa: E402
from bench.plan import Run, base_manifest  # noqa: E402

PROGRESS_SECONDS = 1.0
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


def train(folder: Path, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Train the group in `folder`. Returns `DONE`, or `STOPPED` (with a checkpoint) once `should_stop()` is true."""
    import_plugins()
    plan = store.read_json(folder / store.PLAN)
    with store.locked(folder / ".lock", str(os.getpid()), wait=30.0):  # the last worker may still be dying
        try:
            settings = runtime.configure_torch(plan["device"])
        except ValueError as error:
            raise UserError(str(error)) from None
        return Driver(folder, plan, settings).train(should_stop)


class Driver:
    """One group between its files, its environments and its agent."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], settings: dict[str, Any]):
        self.folder, self.plan = folder, plan
        self.runs = [Run(**run) for run in plan["runs"]]
        self.directories = [folder.parent.parent / run.path for run in self.runs]
        first = self.runs[0]
        self.steps, self.seeds = first.steps, [run.seed for run in self.runs]
        cfg = config.stack([config.load_config(run.algorithm, None, run.config) for run in self.runs])
        self.envs = suites.make(first.task, len(self.runs), getattr(cfg, "num_envs", 1))
        self.agent = algorithms.load(first.algorithm).Agent(
            cfg, self.envs, self.seeds, settings["device"].split(" ")[0]
        )
        self.evaluation = plan.get("evaluation")

        # What the driver itself has to remember; all of it is in the checkpoint.
        self.env_steps = 0
        self.evaluations = 0
        self.status = [store.RUNNING] * len(self.runs)
        self.errors: list[str | None] = [None] * len(self.runs)
        self.ended_at = [0] * len(self.runs)  # env_steps at which a run diverged or failed
        self.wall_seconds = self.cpu_seconds = 0.0
        self.started = store.now()
        self.sessions: list[dict[str, Any]] = []
        lengths = self._restore() if (folder / store.CHECKPOINT).exists() else [0] * len(self.runs)

        self.saved_at = self.env_steps  # of the last checkpoint

        self._clock = time.perf_counter() - self.wall_seconds, time.process_time() - self.cpu_seconds
        machine = store.machine() | {"isa": settings.pop("isa", None)}
        self.facts = store.commit() | {"versions": store.versions(), "machine": machine} | settings
        self.sessions.append({"started": store.now(), "env_steps": self.env_steps, "commit": self.facts["commit"]})
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)
        self.episodes = [store.Episodes(place, length) for place, length in zip(self.directories, lengths, strict=True)]
        self.boards = [self._board(place) for place in self.directories] if plan.get("tensorboard") else []
        for index in range(len(self.runs)):
            self._write_manifest(index)
        self.alive = np.array([status == store.RUNNING for status in self.status])

    # ------------------------------------------------------------------------------------------------------ the loop
    def train(self, should_stop: Callable[[], bool]) -> int:
        """Iterate until the budget is spent or no run is left."""
        saved = told = time.perf_counter()
        self._tell()
        while self.env_steps < self.steps and self.alive.any():
            metrics = self.agent.iterate()
            self._log(metrics)
            self._take_out()
            if self.evaluation:
                self._evaluate()
            moment = time.perf_counter()
            if moment - saved >= self.plan["checkpoint_seconds"] or should_stop():
                self._save()
                saved = told = time.perf_counter()
                if should_stop():
                    return STOPPED
            if moment - told >= PROGRESS_SECONDS:
                self._tell()
                told = moment
        self._save()
        for index in range(len(self.runs)):
            self._end(index)
        (self.folder / store.CHECKPOINT).unlink()  # until here a killed worker's group can be gone on with
        for directory in self.directories:
            (directory / store.LINES).unlink()
        return DONE

    def _log(self, metrics: Mapping[str, Any]) -> None:
        """Write the episodes that ended; count the steps."""
        seconds = time.perf_counter() - self._clock[0]
        for index, env_steps, episode_return, length in self.envs.drain_episodes():
            if self.status[index] == store.RUNNING:
                self.episodes[index].append(env_steps, episode_return, length, "train", seconds)
                if self.boards:
                    self.boards[index].add_scalar("episode_return", episode_return, env_steps)
        self.env_steps = self.envs.env_steps
        for index, board in enumerate(self.boards):
            for name, values in metrics.items():
                if self.alive[index]:
                    board.add_scalar(name, float(values[index]), self.env_steps)

    def _take_out(self) -> None:
        """Park the runs whose environment failed or whose numbers are no longer finite; the others go on unharmed."""
        diverged = self.agent.diverged()
        for index in self.alive.nonzero()[0].tolist():
            if diverged[index]:  # first: actions that are NaN upset the environment too
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
        """Evaluate at every crossing of the period, on environments and streams of its own."""
        due = (
            self.env_steps // self.evaluation["period"]
            if self.env_steps < self.steps
            else -(-self.steps // self.evaluation["period"])
        )
        if due <= self.evaluations:
            return
        self.evaluations = due
        returns, lengths = evaluate(self.agent, self.runs[0].task, self.seeds, self.evaluation["episodes"], due)
        seconds = time.perf_counter() - self._clock[0]
        for index in self.alive.nonzero()[0].tolist():
            for episode_return, length in zip(returns[index].tolist(), lengths[index].tolist(), strict=True):
                self.episodes[index].append(self.env_steps, episode_return, length, "eval", seconds)

    # --------------------------------------------------------------------------------------------------------- files
    def _save(self) -> None:
        lengths = [episodes.flush(to_disk=True) for episodes in self.episodes]
        self.wall_seconds = time.perf_counter() - self._clock[0]
        self.cpu_seconds = time.process_time() - self._clock[1]
        own = {name: getattr(self, name) for name in REMEMBERED}
        state = {"driver": own, "lengths": lengths, "agent": self.agent.state(), "envs": self.envs.state()}
        store.save_checkpoint(self.folder / store.CHECKPOINT, state)
        self.saved_at = self.env_steps
        self._tell()

    def _restore(self) -> list[int]:
        """Load the checkpoint; returns the lengths to which the episode tables have to be cut back."""
        state = store.load_checkpoint(self.folder / store.CHECKPOINT)
        self.agent.load_state(state["agent"])
        self.envs.load_state(state["envs"])
        for name in REMEMBERED:
            setattr(self, name, state["driver"][name])
        lengths: list[int] = state["lengths"]
        return lengths

    def _tell(self) -> None:
        """Tell the launcher and `status` how far the group is."""
        for episodes in self.episodes:
            episodes.flush()
        store.write_json(self.folder / store.PROGRESS, {
            "env_steps": self.env_steps, "saved_at": self.saved_at, "steps": self.steps, "runs": len(self.runs),
            "pid": os.getpid(), "wall_seconds": time.perf_counter() - self._clock[0],
        })  # fmt: skip

    def _write_manifest(self, index: int, **more: Any) -> None:
        manifest = base_manifest(self.plan, index, self.folder.name) | self.facts | {
            "status": self.status[index],
            "error": self.errors[index],
            "env_steps": self.ended_at[index] or self.env_steps,
            "started": self.started,
            "ended": None if self.status[index] == store.RUNNING else store.now(),
            "wall_seconds": self.wall_seconds,  # of the whole group, which has group_size runs
            "cpu_seconds": self.cpu_seconds,
            "sessions": self.sessions,
            "weights_sha256": None,
        } | more  # fmt: skip
        store.write_json(self.directories[index] / store.MANIFEST, manifest)

    def _end(self, index: int) -> None:
        """The final files of a run. The manifest comes last: what it says is there is there."""
        directory = self.directories[index]
        if self.status[index] == store.RUNNING:
            self.status[index] = store.FINISHED
        self.episodes[index].close()
        store.write_table(directory)
        weights = self.agent.parameters_of(index)
        store.save_tensors(
            directory / store.POLICY, weights, {"task": self.runs[index].task, "algorithm": self.runs[index].algorithm}
        )
        self._write_manifest(index, weights_sha256=store.weights_hash(weights))

    def _board(self, directory: Path) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(directory / "tensorboard"), purge_step=self.env_steps + 1 if self.env_steps else None)


def evaluate(agent: Any, task: str, seeds: list[int], episodes: int, count: int) -> tuple[Any, Any]:
    """Returns and lengths [R, episodes] of one greedy episode in each of `episodes` fresh environments a run.

    The `count`-th evaluation of a run has environments seeded by (seed, "evaluation", count): evaluating more often, or
    not at all, changes neither training nor another evaluation, and nothing of it has to be in a checkpoint.
    """
    envs = suites.make(task, len(seeds), episodes)
    observations = envs.reset([int(generator(seed, "evaluation", count).integers(2**62)) for seed in seeds])
    returns, lengths = np.zeros((len(seeds), episodes)), np.zeros((len(seeds), episodes), np.int64)
    going = np.ones((len(seeds), episodes), bool)
    while going.any():
        step = envs.step(agent.act(observations, None))
        returns += np.where(going, step.rewards, 0.0)
        lengths += going
        going &= ~(step.terminations | step.truncations) & ~envs.parked[:, None]
        observations = step.observations
    return returns, lengths


# ------------------------------------------------------------------------------------------------------- the process
def die_with(parent: int) -> None:
    """End this process when the launcher does, so that a new launcher never meets a writer of the old one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:  # also covers a parent that was gone before, and systems without prctl
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(CRASHED)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """`GROUP_FOLDER [PARENT_PID]`."""
    if len(arguments) > 1:
        die_with(int(arguments[1]))
    stop = []

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        stop.append(number)  # the iteration in progress is finished and saved

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
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
