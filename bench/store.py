"""What is on disk: run directories, manifests, episodes, checkpoints. Every file has one writer.

Small files are written under a temporary name and renamed, so a reader sees the old one or the new one. Episodes are
appended as JSON lines while a run goes on and become Parquet at its end; a line torn by a crash is dropped on reading.
A checkpoint is one safetensors file: arrays as tensors, all else as JSON in its header. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import struct
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import FELL_SHORT, ROOT, UserError

SCHEMA = 1
RUNNING, FINISHED, FAILED, DIVERGED = "running", "finished", "failed", "diverged"
MANIFEST, LINES, TABLE, POLICY = "manifest.json", "episodes.jsonl", "episodes.parquet", "policy.safetensors"
PLAN, CHECKPOINT, PROGRESS, LOG = "plan.json", "checkpoint.safetensors", "progress.json", "log.txt"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
COLUMNS = {"env_steps": "int64", "episode_return": "float64", "episode_length": "int64", "phase": "string",
           "wall_seconds": "float64"}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- small files
def write_atomically(path: Path, data: bytes | Sequence[bytes | memoryview]) -> None:
    """Write under a temporary name, flush to the disk, rename: `path` is the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a broken one is an error that names the file and the cure."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not readable ({error}); delete {path.parent} to train it anew", FELL_SHORT
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; delete {path.parent} to train it anew", FELL_SHORT)
    return value


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None where there is none."""
    try:
        manifest = read_json(directory / MANIFEST)
    except FileNotFoundError:
        return None
    missing = {"schema", "status", "config_digest", "config", "steps", "group"} - set(manifest)
    if missing:
        raise UserError(f"{directory / MANIFEST} lacks {', '.join(sorted(missing))}; it is not a manifest of this program. "
                        f"Use another --out, or delete {directory}", FELL_SHORT)  # fmt: skip
    return manifest


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def digest(value: Any) -> str:
    """A short name for a JSON-able value: equal values, equal names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path, holder: str, wait: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock; the kernel gives it back when this process ends, however it ends.

    Raises `UserError` naming the holder where another process keeps it for longer than `wait` seconds.
    """
    import time

    with open(path, "a+") as file:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise UserError(f"{path.parent} is in use by process {file.read().strip() or 'unknown'}; "
                                    "wait for it or stop it", FELL_SHORT) from None  # fmt: skip
                time.sleep(0.05)
        file.truncate(0)
        file.write(holder)
        file.flush()
        yield


def lock_holder(path: Path) -> str | None:
    """Who holds a lock, or None when nobody does."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except FileNotFoundError:
        return None


# ---------------------------------------------------------------------------------------------------------- episodes
class Episodes:
    """The growing table of one run: JSON lines, cut back to a checkpoint's length on resume."""

    def __init__(self, directory: Path, length: int = 0):
        self.path = directory / LINES
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < length:
            raise UserError(f"{self.path} has {size} bytes where the checkpoint needs {length}; delete {directory} and its "
                            "group's folder to train it anew", FELL_SHORT)  # fmt: skip
        self._file = open(self.path, "ab")
        self._file.truncate(length)

    def append(self, env_steps: int, episode_return: float, episode_length: int, phase: str, seconds: float) -> None:
        """Add one finished episode."""
        value = repr(float(episode_return)) if math.isfinite(episode_return) else json.dumps(float(episode_return))
        self._file.write(
            f'{{"env_steps": {env_steps}, "episode_return": {value}, "episode_length": {episode_length}, '
            f'"phase": "{phase}", "wall_seconds": {seconds:.3f}}}\n'.encode()
        )

    def flush(self, to_disk: bool = False) -> int:
        """Hand the lines to the system (and to the disk); returns the length in bytes."""
        self._file.flush()
        if to_disk:
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> dict[str, list[Any]]:
    """Columns of a JSON-lines table; a last line torn by a crash is dropped, any other broken line is an error."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last newline is torn
        try:
            row = json.loads(line)
            for name, values in columns.items():
                values.append(row[name])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is broken at line {number}; delete {path.parent} and its group's folder to train "
                            "it anew", FELL_SHORT) from None  # fmt: skip
    return columns


def write_table(directory: Path) -> None:
    """Turn the JSON lines of a run into its Parquet table."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(read_lines(directory / LINES), schema=schema), sink)
    write_atomically(directory / TABLE, bytes(sink.getvalue()))


def read_episodes(directory: Path) -> Any:
    """The episodes of a run as a pyarrow table, whether it is finished or still going on."""
    import pyarrow
    import pyarrow.parquet

    if not (directory / TABLE).exists():
        return pyarrow.table(read_lines(directory / LINES))
    check_table(directory)
    return pyarrow.parquet.read_table(directory / TABLE)


def check_table(directory: Path) -> None:
    """A finished run's Parquet table must be there and whole (its header and footer are looked at, which is quick)."""
    import pyarrow
    import pyarrow.parquet

    path = directory / TABLE
    try:
        if pyarrow.parquet.read_schema(path).names == list(COLUMNS):
            return
        reason = "has other columns"
    except (OSError, pyarrow.ArrowException) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is not readable"
    raise UserError(f"{path} {reason}, though its manifest says the run has ended; delete {directory} to train it anew",
                    FELL_SHORT)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- checkpoints
DTYPES = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
          "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64"}  # fmt: skip
NUMPY = {name: np.dtype(kind) for kind, name in DTYPES.items()}


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays as a safetensors file, atomically.

    Written by hand (the format is a JSON header and raw bytes) so that a full disk is an `OSError` like any other and
    no second copy of a replay buffer is made. The header carries a CRC of the data: flipped bits are noticed.
    """
    header: dict[str, Any] = {}
    parts: list[bytes | memoryview] = []
    offset = checksum = 0
    for name, array in arrays.items():
        data = np.asarray(array, order="C")
        view = memoryview(data.reshape(-1).view(np.uint8))
        header[name] = {
            "dtype": DTYPES[data.dtype.name],
            "shape": list(data.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        offset += data.nbytes
        checksum = zlib.crc32(view, checksum)
        parts.append(view)
    header["__metadata__"] = {**(metadata or {}), "crc32": str(checksum)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, [struct.pack("<Q", len(text)), text, *parts])


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file. Raises `ValueError` unless it is whole."""
    data = bytearray(path.read_bytes())
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        if "crc32" in metadata and zlib.crc32(memoryview(data)[8 + length :]) != int(metadata["crc32"]):
            raise ValueError("its checksum does not agree")
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = NUMPY[entry["dtype"]]
            flat = np.frombuffer(data, kind, (end - begin) // kind.itemsize, 8 + length + begin)
            arrays[name] = flat.reshape(entry["shape"]).copy()  # aligned, and writable on its own
    except (struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is torn or not a safetensors file ({error!r})") from None
    return arrays, metadata


def pack(value: Any, arrays: dict[str, np.ndarray], name: str = "") -> Any:
    """Split a nested state: arrays and tensors go into `arrays`, what is returned is JSON with references to them.

    Holds dicts, lists, tuples, str, bytes, bool, None, ints of any size, floats with inf and nan, NumPy arrays and
    scalars, torch tensors.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, list):
        return [pack(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [pack(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, arrays, f"{name}.{key}") for key, item in value.items()}
        return {
            "$dict": [[pack(key, arrays, name), pack(item, arrays, f"{name}.{key}")] for key, item in value.items()]
        }
    kind = "$array"
    if isinstance(value, np.generic):
        kind, value = "$scalar", np.asarray(value)
    elif not isinstance(value, np.ndarray) and hasattr(value, "detach"):
        kind, value = "$tensor", value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES:
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {name.lstrip('.') or 'the top'}")
    key = name.lstrip(".") or "value"
    while key in arrays or key == "__metadata__":
        key += "_"
    arrays[key] = value
    return {kind: key}


def unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        match kind:
            case "$tuple":
                return tuple(unpack(item, arrays) for item in content)
            case "$bytes":
                return bytes.fromhex(content)
            case "$dict":
                return {unpack(key, arrays): unpack(item, arrays) for key, item in content}
            case "$array":
                return arrays[content]
            case "$scalar":
                return arrays[content][()]
            case "$tensor":
                import torch

                return torch.from_numpy(arrays[content])
    return {key: unpack(item, arrays) for key, item in value.items()}


def save_checkpoint(path: Path, state: Any) -> None:
    """Write a nested state as one file; it counts only once it is complete."""
    arrays: dict[str, np.ndarray] = {}
    skeleton = pack(state, arrays)
    save_tensors(path, arrays, {"schema": str(SCHEMA), "skeleton": json.dumps(skeleton)})


def load_checkpoint(path: Path) -> Any:
    """Read a state back. A broken file is an error that names it and the cure; training never silently starts again."""
    try:
        arrays, metadata = load_tensors(path)
        if metadata.get("schema") != str(SCHEMA):
            raise ValueError(f"its schema is {metadata.get('schema')}, this program reads {SCHEMA}")
        return unpack(json.loads(metadata["skeleton"]), arrays)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Delete {path.parent} to train its runs from the start", FELL_SHORT
        ) from None


# -------------------------------------------------------------------------------------------------------- provenance
def weights_hash(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], order="C")
        sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def commit() -> dict[str, Any]:
    """The checked out commit and whether tracked files differ from it; nulls outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium", "mujoco", "safetensors", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The CPU's name and number of cores. Environment variables are never recorded."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.platform()}
