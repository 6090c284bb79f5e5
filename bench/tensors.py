"""Checkpoints and weights as safetensors files: arrays as tensors, all else as JSON in the header; no pickle."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import ResultsError, store

DTYPES = {
    **{f"{sign}int{bits}": f"{sign or 'i'}{bits}".upper() for sign in ("u", "") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bool": "BOOL",
}  # NumPy's name -> the format's
NUMPY = {name: np.dtype(kind) for kind, name in DTYPES.items()}


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
    arrays: dict[str, np.ndarray] = {}
    skeleton = pack(state, arrays)
    save(path, arrays, {"schema": str(store.SCHEMA), "skeleton": json.dumps(skeleton)})


def load_state(path: Path) -> Any:
    """Read a state back. A broken file is an error that names it and the cure; training never silently starts again."""
    try:
        arrays, metadata = load(path)
        if metadata.get("schema") != str(store.SCHEMA):
            raise ValueError(f"its schema is {metadata.get('schema')}, this program reads {store.SCHEMA}")
        return unpack(json.loads(metadata["skeleton"]), arrays)
    except (ValueError, KeyError) as error:
        raise ResultsError(f"{path} is not readable ({error}); delete {path.parent} to train its runs anew") from None


def pack(value: Any, arrays: dict[str, np.ndarray], name: str = "") -> Any:
    """Split a nested state: arrays and tensors go into `arrays`, what is returned is JSON that refers to them.

    Holds dicts, lists, tuples, str, bytes, bool, None, ints of any size, floats with inf and nan, NumPy arrays and
    scalars, torch tensors.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
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
    key = name.lstrip(".") or "value"
    while key in arrays or key == "__metadata__":
        key += "_"
    arrays[key] = np.asarray(value)
    return {kind: key}


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
    return {key: unpack(item, arrays) for key, item in value.items()}


def weights_hash(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], order="C")
        sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
