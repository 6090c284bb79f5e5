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

from bench import (
    ALL_WELL,
    DISK_FULL,
    DONE,
    FELL_SHORT,
    REFUSED,
    ROOT,
    STOPPED,
    UserError,
    near,
    plan,
    store,
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
    attempts: int = 0
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
    """One worker process per core on this machine, one thread each; a worker that dies is started again."""

    def __init__(self, workers: int):
        self.workers = workers
        self.processes: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Longest first, as they come; a full disk stops everything."""
        waiting = list(jobs)
        while waiting or self.processes:
            while waiting and len(self.processes) < self.workers:
                self._start(waiting.pop(0))
            yield
            time.sleep(0.1)
            for pid, (job, process) in list(self.processes.items()):
                code = process.poll()
                if code is None:
                    continue
                del self.processes[pid]
                if self._again(job, code):
                    waiting.insert(0, job)
                if job.reason == FULL:
                    waiting.clear()
                    self.stop(0.0)

    def stop(self, patience: float) -> None:
        """SIGTERM, then SIGKILL."""
        for _, process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for job, process in self.processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            job.state = "done" if process.returncode == DONE else "stopped"
        self.processes.clear()

    def _start(self, job: Job) -> None:
        job.state, job.attempts = "running", job.attempts + 1
        with open(job.folder / store.LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.drive", str(job.folder.resolve()), str(os.getpid())],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then stops the workers in order
            )  # fmt: skip
        self.processes[process.pid] = job, process

    def _again(self, job: Job, code: int) -> bool:
        """Note how a worker ended; true if it is to be started again."""
        job.look()
        job.state = {DONE: "done", STOPPED: "stopped"}.get(code, "failed")
        if code in (DONE, STOPPED):
            return False
        if code == DISK_FULL:
            job.reason = FULL
            return False
        if code == REFUSED:
            job.reason = last_line(job.folder / store.LOG).removeprefix("error: ")
            return False
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else f": {last_line(job.folder / store.LOG)}"
        job.crashes.append(job.saved_at)
        stuck = len(job.crashes) > 1 and job.crashes[-1] == job.crashes[-2]  # no progress between the last two
        if stuck or job.attempts > MAX_RETRIES:
            job.reason = f"its worker {how}{hint}, {job.attempts} times; see {job.folder / store.LOG}"
            return False
        job.state = "waiting"
        return True


def find_engine(name: str, workers: int) -> Engine:
    """The engine of that name."""
    if name == "local":
        return LocalEngine(workers)
    if name == "ray":
        raise UserError("--engine ray is not built yet; use --engine local")
    raise UserError(f"unknown engine {name!r}{near(name, ['local', 'ray'])}; there is: local")


def last_line(path: Path) -> str:
    """The last line with text in a log."""
    with contextlib.suppress(OSError):
        lines = path.read_bytes()[-4000:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


# ------------------------------------------------------------------------------------------------------ an experiment
def results_folder(out: Path, experiment: str) -> Path:
    """Where an experiment's results are, made if missing. Refuses places that are not ours or not writable."""
    root = out / experiment
    try:
        root.mkdir(parents=True, exist_ok=True)
        foreign = any(root.iterdir()) and not (root / "experiment.json").exists() and not (root / ".lock").exists()
        if foreign:
            raise UserError(f"{root} is not empty and holds no experiment.json, so it is not a results folder of this "
                            "program; use another --out", FELL_SHORT)  # fmt: skip
        with open(root / ".lock", "a"):
            pass
    except OSError as error:
        if error.errno in store.NO_SPACE:
            raise
        raise UserError(f"cannot write results to {root} ({error.strerror}); use another --out", FELL_SHORT) from None
    return root


def run(
    experiment: plan.Experiment,
    out: Path,
    *,
    workers: int,
    group_size: int,
    engine: str = "local",
    device: str = "auto",
    checkpoint_seconds: float = 45.0,
    tensorboard: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Train what is not yet trained of an experiment. Returns the exit code."""
    import suites

    chosen = find_engine(engine, workers)
    experiment = plan.resolve(experiment)
    root = results_folder(out, experiment.name)
    with store.locked(root / ".lock", str(os.getpid()), wait=1.0):
        tasks = dict.fromkeys(run.task for run in experiment.runs)
        fingerprints = {task: suites.fingerprint(task) for task in tasks}
        kinds = {task: suites.find_task(task).kind for task in tasks}
        groups, ended = plan.outstanding(
            experiment, root, fingerprints, group_size=group_size, workers=workers, kinds=kinds
        )
        store.write_json(root / "experiment.json", {
            "name": experiment.name, "source": experiment.source, "experiment": experiment.raw, "command": list(command),
            "runs": [run.path for run in experiment.runs],
        })  # fmt: skip
        print(f"{experiment.name}: {len(ended)} of {len(experiment.runs)} runs have ended; "
              f"to train: {sum(len(group.runs) for group in groups)} (groups: {len(groups)}, workers: {workers}) into {root}",
              flush=True)  # fmt: skip
        jobs = []
        for group in groups:
            folder = root / ".groups" / group.id
            if group.adopted is None:
                plan.write_plan(experiment, group, folder, fingerprints[group.runs[0].task], device=device,
                                checkpoint_seconds=checkpoint_seconds, tensorboard=tensorboard)  # fmt: skip
                (folder / store.PROGRESS).unlink(missing_ok=True)
            jobs.append(Job(folder, len(group.runs), group.runs[0].steps))
            jobs[-1].look()
        stopped = supervise(chosen, jobs)
        for job in jobs:
            if job.state == "failed" and job.reason != FULL:
                mark_failed(root, job)
        return conclude(experiment, root, jobs, stopped)


def supervise(engine: Engine, jobs: Sequence[Job]) -> bool:
    """Run the jobs with a progress display. True if it was stopped by Ctrl-C or SIGTERM before the end."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with Display(jobs) as display:
            for _ in engine.run(jobs):
                display.update()
        return False
    except KeyboardInterrupt:
        print("stopping: the workers finish their iteration and save (again Ctrl-C: at once)", flush=True)
        try:
            engine.stop(PATIENCE)
        except KeyboardInterrupt:
            engine.stop(0.0)
        return True
    finally:
        signal.signal(signal.SIGTERM, before)


def mark_failed(root: Path, job: Job) -> None:
    """Write down that the runs of a group could not be finished, and why. Its checkpoint stays: a rerun tries again."""
    contents = store.read_json(job.folder / store.PLAN)
    for index, member in enumerate(contents["runs"]):
        directory = root / plan.Run(**member).path
        directory.mkdir(parents=True, exist_ok=True)
        manifest = store.read_manifest(directory) or plan.base_manifest(contents, index, job.folder.name)
        if manifest.get("status") in (None, store.RUNNING, store.FAILED):
            store.write_json(directory / store.MANIFEST, manifest | {"status": store.FAILED, "error": job.reason})


def conclude(experiment: plan.Experiment, root: Path, jobs: Sequence[Job], stopped: bool) -> int:
    """Print how it ended; the exit code."""
    manifests = {run.path: store.read_manifest(root / run.path) or {} for run in experiment.runs}
    counts = Counter(manifest.get("status", "missing") for manifest in manifests.values())
    reasons: dict[str, list[str]] = {}
    for path, manifest in manifests.items():
        if manifest.get("status") in (store.FAILED, store.DIVERGED):
            reasons.setdefault(f"{manifest['status']}: {manifest.get('error')}", []).append(path)
    print(f"{experiment.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    for reason, paths in reasons.items():
        print(f"  {len(paths)} runs ({paths[0]}{', ...' if len(paths) > 1 else ''}) {reason}")
    for job in jobs:
        if job.state == "failed" and job.reason != FULL:
            print(f"error: group {job.folder.name} ({job.runs} runs): {job.reason}", file=sys.stderr)
    if any(job.reason == FULL for job in jobs):
        print(
            f"error: {FULL} ({root}); free some space, then the same command goes on from the last checkpoints",
            file=sys.stderr,
        )
    elif stopped:
        print("stopped; the same command goes on from the last checkpoints")
    well = counts[store.FINISHED] == len(manifests) and not any(job.state == "failed" for job in jobs)
    return ALL_WELL if well else FELL_SHORT


# ----------------------------------------------------------------------------------------------------------- progress
class Display:
    """Runs done, env steps per second, time left, failures: a live line on a terminal, else a line now and then."""

    EVERY = 30.0  # seconds between plain lines

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs
        self.begin = self.told = time.monotonic()
        self.first = self._steps()
        self.bar: Any = None

    def __enter__(self) -> Display:
        if sys.stdout.isatty() and self.jobs:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("{task.percentage:3.0f} %"),
                BarColumn(),
                TextColumn("{task.description}"),
                refresh_per_second=4,
            )
            self.task = self.bar.add_task("starting", total=sum(job.runs * job.steps for job in self.jobs))
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.update(last=True)
        if self.bar:
            self.bar.stop()

    def _steps(self) -> int:
        return sum(
            job.runs * (job.steps if job.state == "done" else min(job.env_steps, job.steps)) for job in self.jobs
        )

    def update(self, last: bool = False) -> None:
        """Read the workers' progress and show it, once a second at most."""
        moment = time.monotonic()
        if moment - self.told < (0.5 if self.bar else self.EVERY) and not (last and moment - self.begin > 1):
            return
        self.told = moment
        for job in self.jobs:
            if job.state == "running":
                job.look()
        done, total = self._steps(), sum(job.runs * job.steps for job in self.jobs)
        rate = (done - self.first) / max(moment - self.begin, 1e-9)
        left = f"{duration((total - done) / rate)} left" if rate > 0 and done < total else ""
        runs = sum(job.runs for job in self.jobs if job.state == "done")
        failed = sum(job.runs for job in self.jobs if job.state == "failed")
        text = f"{runs}/{sum(job.runs for job in self.jobs)} runs, {rate:,.0f} env steps/s"
        text += (f", {left}" if left else "") + (f", {failed} failed" if failed else "")
        if self.bar:
            self.bar.update(self.task, completed=done, description=text)
        elif total:
            print(f"{done / total:4.0%} {text}", flush=True)


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
