"""What is on disk: run directories, manifests, episodes, metrics, locks. Every file has one writer.

Small files are written under a temporary name and renamed, so a reader sees the old one or the new one. The tables of a
run are appended as JSON lines while it goes on and become Parquet at its end; a line torn by a crash is dropped on
reading.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import ROOT, ResultsError

SCHEMA = 2  # of a manifest; 1: runs had no metrics
RUNNING, FINISHED, FAILED, DIVERGED = "running", "finished", "failed", "diverged"
MANIFEST, POLICY = "manifest.json", "policy.safetensors"  # of a run, beside its tables
PLAN, CHECKPOINT, PROGRESS, LOG = "plan.json", "checkpoint.safetensors", "progress.json", "log.txt"  # of a group
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Table:
    """One table of a run: its file's name without the ending, and its columns."""

    name: str
    columns: dict[str, str]

    @property
    def lines(self) -> str:
        """The file while the run goes on."""
        return f"{self.name}.jsonl"

    @property
    def parquet(self) -> str:
        """The file once it has ended."""
        return f"{self.name}.parquet"


EPISODES = Table(
    "episodes",
    {
        "env_steps": "int64",
        "episode_return": "float64",
        "episode_length": "int64",
        "phase": "string",  # train | eval
        "wall_seconds": "float64",
    },
)
METRICS = Table("metrics", {"env_steps": "int64", "name": "string", "value": "float64"})
TABLES = (EPISODES, METRICS)


def write_atomically(path: Path, *parts: bytes | memoryview, to_disk: bool = True) -> None:
    """Write under a temporary name, flush to the disk, rename: `path` is the old file or the new one, never a part.

    Without `to_disk` this holds when a process is killed, but not when the power fails, and no disk is waited for.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def names_to_disk(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, value: Any, to_disk: bool = True) -> None:
    """Write a small JSON file atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode(), to_disk=to_disk)


def read_json(path: Path, cure: str = "") -> dict[str, Any]:
    """Read a JSON object; a broken one is an error that names the file and the cure."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        cure = cure or f"delete {path.parent} to train it anew"
        raise ResultsError(f"{path} is not readable ({error}); {cure}") from None
    return value


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None where there is none."""
    path = directory / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    missing = {"schema", "status", "config", "steps", "group"} - set(manifest)
    if missing:
        raise ResultsError(f"{path} lacks {', '.join(sorted(missing))}; delete {directory} to train it anew")
    return manifest


def digest(value: Any) -> str:
    """A short name for a JSON-able value: equal values, equal names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# ---- locks ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, wait: float) -> Iterator[None]:
    """Hold an advisory lock; the kernel gives it back when this process ends, however it ends.

    Raises `ResultsError` naming the process that keeps it for longer than `wait` seconds.
    """
    deadline = time.monotonic() + wait
    with open(path, "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = lock_holder(path) or "another"
                    raise ResultsError(
                        f"{path.parent} is in use by process {holder}; wait for it, or stop it"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_holder(path: Path) -> str | None:
    """The process that holds a lock, or None when none does."""
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another"
    return None


# ---- tables of a run ----------------------------------------------------------------------------------------------


class Lines:
    """A growing table of one run: JSON lines, cut back to a checkpoint's length on resume.

    Lines wait in memory until `flush`; no file is held open, so that a group may have thousands of runs.
    """

    def __init__(self, directory: Path, table: Table, length: int = 0):
        self._path = directory / table.lines
        with open(self._path, "ab") as file:
            if (size := file.tell()) < length:
                raise ResultsError(
                    f"{self._path} has {size} bytes where its group's checkpoint needs {length}; delete the group's "
                    "folder, which the run's manifest names, to train it anew"
                )
            file.truncate(length)
        self._waiting: list[bytes] = []
        self._length, self._on_disk = length, 0  # bytes; those that would survive a loss of power

    def flush(self, to_disk: bool = False) -> int:
        """Hand the lines to the system (and to the disk); returns the length in bytes."""
        if self._waiting or (to_disk and self._length > self._on_disk):
            with open(self._path, "ab") as file:
                file.writelines(self._waiting)
                file.flush()
                self._length = file.tell()
                if to_disk:
                    os.fsync(file.fileno())
                    self._on_disk = self._length
            self._waiting.clear()
        return self._length


class Episodes(Lines):
    """The finished episodes of one run."""

    def __init__(self, directory: Path, length: int = 0):
        super().__init__(directory, EPISODES, length)

    def append(self, env_steps: int, episode_return: float, episode_length: int, phase: str, seconds: float) -> None:
        """Add one finished episode."""
        self._waiting.append(
            f'{{"env_steps": {env_steps}, "episode_return": {_text(episode_return)}, "episode_length": '
            f'{episode_length}, "phase": "{phase}", "wall_seconds": {seconds:.3f}}}\n'.encode()
        )  # five times as fast as json.dumps


class Metrics(Lines):
    """The numbers that one run told about itself now and then."""

    def __init__(self, directory: Path, length: int = 0):
        super().__init__(directory, METRICS, length)

    def append(self, env_steps: int, name: str, value: float) -> None:
        """Add one number."""
        line = f'{{"env_steps": {env_steps}, "name": {json.dumps(name)}, "value": {_text(value)}}}\n'
        self._waiting.append(line.encode())


def _text(value: float) -> str:
    """A float in JSON, to the last bit; NaN and Infinity as Python reads them back."""
    value = float(value)
    return repr(value) if math.isfinite(value) else json.dumps(value)


def read_lines(path: Path, table: Table) -> dict[str, list[Any]]:
    """Columns of a JSON-lines table; a last line torn by a crash is dropped, any other broken line is an error."""
    columns: dict[str, list[Any]] = {name: [] for name in table.columns}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last newline is torn
        try:
            row = json.loads(line)
            for name, values in columns.items():
                values.append(row[name])
        except (ValueError, KeyError, TypeError):
            raise ResultsError(
                f"{path} is broken at line {number}; delete {path.parent} and the folder of its group, which its "
                "manifest names, to train it anew"
            ) from None
    return columns


def write_table(directory: Path, table: Table) -> None:
    """Turn the JSON lines of a run's table into Parquet."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in table.columns.items()])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(read_lines(directory / table.lines, table), schema=schema), sink)
    write_atomically(directory / table.parquet, memoryview(sink.getvalue()))


def check_tables(directory: Path, schema: int) -> None:
    """An ended run's Parquet tables must be there and whole, as far as their footers tell, which is quick to read.

    `schema`: of the run's manifest, which says what tables it has.
    """
    import pyarrow
    import pyarrow.parquet

    for table in TABLES if schema > 1 else (EPISODES,):
        path = directory / table.parquet
        try:
            if pyarrow.parquet.read_schema(path).names == list(table.columns):
                continue
            reason = "has other columns"
        except (OSError, pyarrow.ArrowException) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else "is not readable"
        raise ResultsError(f"{path} {reason}, though its run has ended; delete {directory} to train it anew")


# ---- where a result comes from -------------------------------------------------------------------------------------


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> dict[str, Any]:
    """The checked out commit and whether tracked files differ from it; nulls outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def code_digest(agent: type) -> str:
    """A short name for the code that decides a run's numbers: the algorithm's file and those of the algorithms it
    descends from, algorithms/common and suites.

    The layout of a run directory counts as well: a checkpoint of another one lacks what this one goes on from.
    """
    own = {Path(inspect.getfile(cls)) for cls in agent.__mro__ if cls is not object}
    shared = {path for place in ("algorithms/common", "suites") for path in (ROOT / place).glob("*.py")}
    contents = b"".join(path.read_bytes() for path in [*sorted(own - shared), *sorted(shared)])
    return hashlib.sha256(contents + bytes([SCHEMA])).hexdigest()[:16]


def versions(packages: Sequence[str] = ("torch", "numpy", "gymnasium", "mujoco", "pyarrow")) -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The CPU's name, the cores and the system. Environment variables are never recorded."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.platform()}
