"""Runs the groups of an experiment: an engine behind an interface, its supervision, progress and the final word."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import suites
from bench import (
    ALL_WELL,
    DISK_FULL,
    DONE,
    FELL_SHORT,
    REFUSED,
    ROOT,
    STOPPED,
    ResultsError,
    UserError,
    near,
    plan,
    store,
    tensors,
)

MAX_RETRIES = 3  # of one group in one launch
PATIENCE = 20.0  # seconds a worker has to finish its iteration and save when it is asked to stop
FULL = "the disk is full"


@dataclass
class Job:
    """One group on its way through an engine."""

    folder: Path
    runs: int
    steps: int
    state: str = "waiting"  # waiting | running | done | failed | stopped
    reason: str | None = None
    env_steps: int = 0  # of each run
    saved_at: int = 0  # env_steps of the last checkpoint
    crashes: list[int] = field(default_factory=list)  # `saved_at` at each of them

    def look(self) -> None:
        """Read how far the worker is."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            progress = json.loads((self.folder / store.PROGRESS).read_bytes())
            self.env_steps, self.saved_at = progress["env_steps"], progress["saved_at"]


class Engine(Protocol):
    """Where workers run. A job is `python -m bench.drive FOLDER` everywhere: it may be killed and repeated."""

    def run(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Run the jobs, keeping their `state` and `reason`; yields several times a second while anything goes on."""
        ...

    def stop(self, patience: float) -> None:
        """Ask the workers to save and end; end them after `patience` seconds."""
        ...


class LocalEngine:
    """Worker processes on this machine, one thread each; a worker that dies is started again."""

    def __init__(self, workers: int):
        self.workers = workers
        self.processes: list[tuple[Job, subprocess.Popen[bytes]]] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[None]:
        """In the order of the jobs; a full disk stops everything."""
        waiting = list(jobs)
        while waiting or self.processes:
            while waiting and len(self.processes) < self.workers:
                self._start(waiting.pop(0))
            yield
            time.sleep(0.1)
            for job, process in list(self.processes):
                if (code := process.poll()) is None:
                    continue
                self.processes.remove((job, process))
                if self._again(job, code):
                    waiting.insert(0, job)
            if any(job.reason == FULL for job in jobs):
                waiting.clear()
                self.stop(0.0)

    def stop(self, patience: float) -> None:
        """SIGTERM, then SIGKILL."""
        for _, process in self.processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for job, process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            job.state = "done" if process.returncode == DONE else "stopped"
        self.processes.clear()

    def _start(self, job: Job) -> None:
        job.state = "running"
        command = [sys.executable, "-m", "bench.drive", str(job.folder.resolve()), str(os.getpid())]
        with open(job.folder / store.LOG, "ab") as log:
            # A session of its own: Ctrl-C reaches the launcher alone, which then stops the workers in order.
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append((job, process))

    def _again(self, job: Job, code: int) -> bool:
        """Note how a worker ended; true if it is to be started again."""
        job.look()
        job.state = {DONE: "done", STOPPED: "stopped"}.get(code, "failed")
        if job.state != "failed":
            return False
        log = job.folder / store.LOG
        if code == DISK_FULL:
            job.reason = FULL
            return False
        if code == REFUSED:
            job.reason = last_line(log).removeprefix("error: ")
            return False
        job.crashes.append(job.saved_at)
        progress = len(job.crashes) == 1 or job.crashes[-1] > job.crashes[-2]
        if progress and len(job.crashes) <= MAX_RETRIES:
            job.state = "waiting"
            return True
        hint = " (out of memory?)" if -code == signal.SIGKILL else f" ({last_line(log)})"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        job.reason = f"its worker {how}{hint}, {len(job.crashes)} times; see {log}"
        return False


def find_engine(name: str, workers: int) -> Engine:
    """The engine of that name."""
    if name == "local":
        return LocalEngine(workers)
    if name == "ray":
        raise UserError("--engine ray is not built yet; use --engine local")
    raise UserError(f"unknown engine {name!r}{near(name, ['local', 'ray'])}; use --engine local")


def last_line(path: Path) -> str:
    """The last line with text in a log."""
    with contextlib.suppress(OSError):
        lines = path.read_bytes()[-4000:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


# ---- an experiment -------------------------------------------------------------------------------------------------


def results_folder(out: Path, experiment: str) -> Path:
    """Where an experiment's results are, made if missing. Refuses places that are not ours or not writable."""
    root = out / experiment
    try:
        root.mkdir(parents=True, exist_ok=True)
        if {path.name for path in root.iterdir()} and not any(
            (root / name).exists() for name in ("experiment.json", ".lock")
        ):
            raise ResultsError(f"{root} holds files but no experiment.json: it is no results folder; use another --out")
        with open(root / ".lock", "a"):
            return root
    except OSError as error:
        if error.errno in store.NO_SPACE:
            raise
        raise ResultsError(f"cannot write results to {root} ({error.strerror}); use another --out") from None


def run(
    experiment: plan.Experiment,
    out: Path,
    *,
    workers: int,
    group_size: int = 33,
    engine: str = "local",
    device: str = "auto",
    checkpoint_seconds: float = 45.0,
    tensorboard: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Train what is not yet trained of an experiment. Returns the exit code."""
    chosen = find_engine(engine, workers)
    experiment = plan.resolve(experiment)
    root = results_folder(out, experiment.name)
    with store.locked(root / ".lock", wait=1.0):  # `status` holds it for a moment
        fingerprints = {task: suites.fingerprint(task) for task in experiment.tasks}
        groups, ended = plan.outstanding(experiment, root, fingerprints, group_size, workers)
        store.write_json(
            root / "experiment.json",
            {
                "name": experiment.name,
                "source": experiment.source,
                "command": list(command),
                "experiment": experiment.raw,
                "runs": [run.path for run in experiment.runs],
            },
        )
        print(
            f"{experiment.name}: {len(ended)} of {len(experiment.runs)} runs have ended, to train: "
            f"{sum(len(group.runs) for group in groups)} (groups: {len(groups)}, workers: {workers}), into {root}",
            flush=True,
        )
        settings = {"device": device, "checkpoint_seconds": checkpoint_seconds, "tensorboard": tensorboard}
        for folder in set((root / ".groups").glob("*")) - {root / ".groups" / group.id for group in groups}:
            if not (folder / store.CHECKPOINT).exists():  # its worker may have been killed while it cleared up
                tensors.Checkpoint(folder / store.CHECKPOINT).remove()
        jobs = []
        for group in groups:
            folder = root / ".groups" / group.id
            if group.adopted is None:
                plan.write_plan(experiment, group, folder, fingerprint=fingerprints[group.runs[0].task], **settings)
                (folder / store.PROGRESS).unlink(missing_ok=True)
                tensors.Checkpoint(folder / store.CHECKPOINT).remove()
            jobs.append(Job(folder, len(group.runs), group.runs[0].steps))
            jobs[-1].look()
        stopped = supervise(chosen, jobs)
        for job in jobs:
            if job.state == "failed" and job.reason != FULL:
                mark_failed(root, job)
        return conclude(experiment, root, jobs, stopped)


def supervise(engine: Engine, jobs: Sequence[Job]) -> bool:
    """Run the jobs with a progress display. True if Ctrl-C or SIGTERM stopped them before the end."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with Display(jobs) as display:
            for _ in engine.run(jobs):
                display.update()
    except KeyboardInterrupt:
        print("stopping: the workers finish their iteration and save (Ctrl-C again: at once)", flush=True)
        try:
            engine.stop(PATIENCE)
        except KeyboardInterrupt:
            engine.stop(0.0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return any(job.state in ("waiting", "stopped") for job in jobs)


def mark_failed(root: Path, job: Job) -> None:
    """Write down that the runs of a group could not be finished, and why. Its checkpoint stays: a rerun tries again."""
    contents = store.read_json(job.folder / store.PLAN)
    for index, run in enumerate(plan.members(job.folder / store.PLAN)):
        (directory := root / run.path).mkdir(parents=True, exist_ok=True)
        manifest = store.read_manifest(directory) or plan.base_manifest(contents, index, job.folder.name)
        if manifest.get("status", store.RUNNING) in (store.RUNNING, store.FAILED):
            store.write_json(directory / store.MANIFEST, manifest | {"status": store.FAILED, "error": job.reason})


def conclude(experiment: plan.Experiment, root: Path, jobs: Sequence[Job], stopped: bool) -> int:
    """Print how it ended; the exit code."""
    manifests = {run.path: store.read_manifest(root / run.path) or {} for run in experiment.runs}
    counts = Counter(manifest.get("status", "missing") for manifest in manifests.values())
    print(f"{experiment.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    reasons: dict[str, list[str]] = {}
    for path, manifest in manifests.items():
        if manifest.get("status") in (store.FAILED, store.DIVERGED):
            reasons.setdefault(f"{manifest['status']}: {manifest.get('error')}", []).append(path)
    for reason, paths in reasons.items():
        print(f"  {paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''} {reason}")
    broken = {job.reason for job in jobs if job.state == "failed"}
    for problem in broken - {FULL}:
        print(f"error: {problem}", file=sys.stderr)
    if FULL in broken:
        print(f"error: {FULL} ({root}); free some space, then the same command goes on", file=sys.stderr)
    elif stopped:
        print("stopped; the same command goes on from the last checkpoints")
    return ALL_WELL if counts[store.FINISHED] == len(manifests) and not broken else FELL_SHORT


# ---- progress ------------------------------------------------------------------------------------------------------


class Display:
    """Runs done, env steps per second, time left, failures: a live line on a terminal, else a line now and then."""

    EVERY = 30.0  # seconds between plain lines

    def __init__(self, jobs: Sequence[Job]):
        self.jobs, self.total = jobs, sum(job.runs * job.steps for job in jobs)
        self.history = [(time.monotonic(), self._steps())]  # of the last minute
        self.bar: Any = None

    def __enter__(self) -> Display:
        if sys.stdout.isatty() and self.jobs:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(TextColumn("{task.percentage:3.0f} %"), BarColumn(), TextColumn("{task.description}"))
            self.task = self.bar.add_task("starting", total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._show()
        if self.bar:
            self.bar.stop()

    def update(self) -> None:
        """Show the workers' progress if it is time to."""
        if time.monotonic() - self.history[-1][0] >= (0.5 if self.bar else self.EVERY):
            self._show()

    def _show(self) -> None:
        for job in self.jobs:
            if job.state == "running":
                job.look()
        done = self._steps()
        if done < self.history[-1][1]:  # workers went back to a checkpoint
            self.history.clear()
        self.history.append((time.monotonic(), done))
        while len(self.history) > 2 and self.history[-1][0] - self.history[1][0] > 60:
            self.history.pop(0)
        (begin, before), (end, _) = self.history[0], self.history[-1]
        rate = (done - before) / max(end - begin, 1e-9)
        runs = {state: sum(job.runs for job in self.jobs if job.state == state) for state in ("done", "failed")}
        text = f"{runs['done']}/{sum(job.runs for job in self.jobs)} runs, {rate:,.0f} env steps/s"
        text += f", {duration((self.total - done) / rate)} left" if rate and done < self.total else ""
        text += f", {runs['failed']} failed" if runs["failed"] else ""
        if self.bar:
            self.bar.update(self.task, completed=done, description=text)
        elif self.jobs:
            print(f"{done / self.total:4.0%} {text}", flush=True)

    def _steps(self) -> int:
        return sum(
            job.runs * (job.steps if job.state == "done" else min(job.env_steps, job.steps)) for job in self.jobs
        )


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
