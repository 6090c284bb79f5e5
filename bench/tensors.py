"""Checkpoints and weights as safetensors files: arrays as tensors, all else as JSON in the header; no pickle.

The rows of a replay memory lie beside its checkpoint, so that each is written once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algorithms.common.memory import Ring
from bench import ResultsError, store

DTYPES = {
    **{f"{sign}int{bits}": f"{sign or 'i'}{bits}".upper() for sign in ("u", "") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bool": "BOOL",
}  # NumPy's name -> the format's
NUMPY = {name: np.dtype(kind) for kind, name in DTYPES.items()}
BLOCK = 1 << 22  # bytes of a ring that are read or written at once
SHARE = 8  # a part of a ring is closed once it holds more than a SHARE-th of the rows


def save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays as a safetensors file, atomically.

    Written by hand (the format is a JSON header, then raw bytes) so that a full disk is an `OSError` like any other and
    no second copy of a replay buffer is made. The header carries a CRC of the data: flipped bits are noticed.
    """
    header: dict[str, Any] = {}
    parts: list[memoryview] = []
    offset = checksum = 0
    for name, array in arrays.items():
        data = np.asarray(array, order="C")
        ends = [offset, offset := offset + data.nbytes]
        header[name] = {"dtype": DTYPES[data.dtype.name], "shape": list(data.shape), "data_offsets": ends}
        parts.append(memoryview(data.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        checksum = zlib.crc32(parts[-1], checksum)
    header["__metadata__"] = {**(metadata or {}), "crc32": str(checksum)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    store.write_atomically(path, struct.pack("<Q", len(text)), text, *parts)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a file that `save` wrote. Raises `ValueError` unless it is whole."""
    data = path.read_bytes()
    try:
        start = 8 + struct.unpack_from("<Q", data)[0]
        header = json.loads(data[8:start])
        metadata = header.pop("__metadata__")
        if zlib.crc32(memoryview(data)[start:]) != int(metadata["crc32"]):
            raise ValueError("its checksum does not agree")
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = NUMPY[entry["dtype"]]
            flat = np.frombuffer(data, kind, (end - begin) // kind.itemsize, start + begin)
            arrays[name] = flat.reshape(entry["shape"]).copy()  # writable, and aligned
    except (struct.error, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is torn, or not a safetensors file ({error!r})") from None
    return arrays, metadata


def save_state(path: Path, state: Any) -> None:
    """Write a nested state as one file; it counts only once it is complete."""
    arrays, metadata = _prepared(state)
    whole = {name: x.rows.cpu().numpy() if isinstance(x, Ring) else x for name, x in arrays.items()}
    save(path, whole, metadata)


def load_state(path: Path) -> Any:
    """Read a state back. A broken file is an error that names it and the cure; training never silently starts again."""
    return Checkpoint(path).load()


class Part(NamedTuple):
    """Rows first to last - 1 of a ring."""

    first: int
    last: int
    crc32: int


class Checkpoint:
    """A state that is written again and again to the same place: of its rings only the rows that are new.

    The rows of a ring lie in parts beside the file, `<stem>.<ring>.<first row>.rows`, one after another as raw bytes
    [R, W]. New rows are appended to the last part, or to a new one; the file tells up to which row each part counts.
    What lies behind that is of a save that was cut short, and is overwritten by the next. Parts that are not needed any
    more are deleted once the new file is in its place: at any instant there is a whole checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path
        self.parts: dict[str, list[Part]] = {}  # of every ring as the file tells them, the oldest first

    def save(self, state: Any) -> None:
        """Write a state, the successor of the one that was saved or loaded last."""
        arrays, metadata = _prepared(state)
        rings = {name: arrays.pop(name) for name in list(arrays) if isinstance(arrays[name], Ring)}
        parts = {name: self._append(name, ring) for name, ring in rings.items()}
        told = {name: [_kind(ring), list(ring.rows.shape), ring.first, parts[name]] for name, ring in rings.items()}
        save(self.path, arrays, metadata | {"rings": json.dumps(told)})
        store.names_to_disk(self.path.parent)  # before the parts that the last checkpoint needs are gone
        self.parts = parts
        self._delete_all_but({self._file(name, part) for name, each in parts.items() for part in each})

    def load(self) -> Any:
        """Read the state back. Broken files are errors that name the file and the cure."""
        try:
            arrays, metadata = load(self.path)
            if metadata.get("schema") != str(store.SCHEMA):
                raise ValueError(f"its schema is {metadata.get('schema')}, this program reads {store.SCHEMA}")
            for name, (kind, shape, first, parts) in json.loads(metadata.get("rings", "{}")).items():
                self.parts[name] = [Part(*part) for part in parts]
                arrays[name] = self._read(name, np.zeros(shape, NUMPY[kind]), first)
            return unpack(json.loads(metadata["skeleton"]), arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(self.path, error) from None

    def remove(self) -> None:
        """Delete the checkpoint, if there is one, and then what belongs to it."""
        self.path.unlink(missing_ok=True)
        self._delete_all_but(set())

    def _append(self, name: str, ring: Ring) -> list[Part]:
        """Write the rows of a ring that are new. Returns its parts."""
        parts = [part for part in self.parts.get(name, []) if part.last > ring.first]
        begin = parts[-1].last if parts else ring.first
        assert begin <= ring.added, f"{name} has lost rows since the last checkpoint"
        if begin == ring.added:
            return parts
        closed = not parts or SHARE * (begin - parts[-1].first) > ring.rows.shape[1]
        part = Part(begin, begin, 0) if closed else parts.pop()
        checksum = part.crc32
        path, known = self._file(name, part), (begin - part.first) * _row_bytes(ring.rows)
        try:
            with open(path, "wb" if closed else "r+b") as file:
                file.seek(known)
                file.truncate()
                for block in _blocks(ring, begin):
                    checksum = zlib.crc32(block, checksum)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # what was written is worth nothing, and others need the space
            if path.exists():
                os.truncate(path, known)
            raise
        return [*parts, Part(part.first, ring.added, checksum)]

    def _read(self, name: str, rows: np.ndarray, oldest: int) -> np.ndarray:
        """Fill `rows` [R, n, W] with those of a ring from number `oldest` on."""
        size, (runs, places, width) = _row_bytes(rows), rows.shape
        for part in self.parts[name]:
            path, checksum = self._file(name, part), 0
            try:
                with open(path, "rb") as file:
                    for first, last in _cuts(part.first, part.last, size):
                        data = file.read((last - first) * size)
                        if len(data) < (last - first) * size:
                            raise ValueError("it is torn")
                        checksum = zlib.crc32(data, checksum)
                        block = np.frombuffer(data, rows.dtype).reshape(last - first, runs, width)
                        numbers = np.arange(max(first, oldest), last)
                        rows[:, numbers % places] = block[numbers - first].swapaxes(0, 1)
                if checksum != part.crc32:
                    raise ValueError("its checksum does not agree")
            except (ValueError, FileNotFoundError) as error:
                raise _unreadable(path, error) from None
        return rows

    def _file(self, name: str, part: Part) -> Path:
        return self.path.with_name(f"{self.path.stem}.{name}.{part.first}.rows")

    def _delete_all_but(self, wanted: set[Path]) -> None:
        """Delete the parts that no checkpoint needs, also those of a save that was cut short."""
        for path in set(self.path.parent.glob(f"{self.path.stem}.*.rows")) - wanted:
            path.unlink()


def _prepared(state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays and rings of a state by name, and what a file's header says of all else."""
    arrays: dict[str, Any] = {}
    skeleton = pack(state, arrays)
    return arrays, {"schema": str(store.SCHEMA), "skeleton": json.dumps(skeleton)}


def _unreadable(path: Path, error: Exception) -> ResultsError:
    reason = "it is missing" if isinstance(error, FileNotFoundError) else error
    return ResultsError(f"{path} is not readable ({reason}); delete {path.parent} to train its runs anew")


def _row_bytes(rows: Any) -> int:
    """Of one row of all runs."""
    return int(rows.shape[0] * rows.shape[2] * rows.dtype.itemsize)


def _kind(ring: Ring) -> str:
    return DTYPES[ring.rows[:, :0].cpu().numpy().dtype.name]


def _cuts(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cuts rows first to last - 1 of `size` bytes each into blocks."""
    step = max(1, BLOCK // size)
    for begin in range(first, last, step):
        yield begin, min(begin + step, last)


def _blocks(ring: Ring, first: int) -> Iterator[memoryview]:
    """The bytes of row `first` and all after it, in the order they came in: [R, W] each."""
    places = ring.rows.shape[1]
    for begin, end in _cuts(first, ring.added, _row_bytes(ring.rows)):
        inside = min(end, begin - begin % places + places)  # the next begins at place 0 again
        for a, b in ((begin, inside), (inside, end)):
            rows = ring.rows[:, a % places : a % places + b - a]
            block = np.ascontiguousarray(rows.cpu().numpy().swapaxes(0, 1))
            yield memoryview(block.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def pack(value: Any, arrays: dict[str, Any], name: str = "") -> Any:
    """Split a nested state: arrays, tensors and rings go into `arrays`, what is returned is JSON that refers to them.

    Holds dicts, lists, tuples, str, bytes, bool, None, ints of any size, floats with inf and nan, NumPy arrays and
    scalars, torch tensors, rings.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, Ring):
        return {"$ring": [_put(value, arrays, name), value.first, value.added]}
    if isinstance(value, (list, tuple)):
        items = [pack(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, arrays, f"{name}.{key}") for key, item in value.items()}
        pairs = [[pack(key, arrays, name), pack(item, arrays, f"{name}.{key}")] for key, item in value.items()]
        return {"$dict": pairs}
    kind = "$scalar" if isinstance(value, np.generic) else "$array"
    if hasattr(value, "detach"):
        kind, value = "$tensor", value.detach().cpu().numpy()
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.name not in DTYPES:
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {name.lstrip('.') or 'the top'}")
    return {kind: _put(np.asarray(value), arrays, name)}


def _put(value: Any, arrays: dict[str, Any], name: str) -> str:
    """Put a value under a name that is still free; returns that."""
    key = name.lstrip(".") or "value"
    while key in arrays or key == "__metadata__":
        key += "_"
    arrays[key] = value
    return key


def unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("$bytes", content)]:
            return bytes.fromhex(content)
        case [("$tuple", content)]:
            return tuple(unpack(item, arrays) for item in content)
        case [("$dict", content)]:
            return {unpack(key, arrays): unpack(item, arrays) for key, item in content}
        case [("$array", content)]:
            return arrays[content]
        case [("$scalar", content)]:
            return arrays[content][()]
        case [("$tensor", content)]:
            import torch

            return torch.from_numpy(arrays[content])
        case [("$ring", (content, first, added))]:
            import torch

            return Ring(torch.from_numpy(arrays[content]), first, added)
    return {key: unpack(item, arrays) for key, item in value.items()}


def weights_hash(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], order="C")
        sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
