"""Typed configurations: defaults in the algorithm's file, presets in `algorithms/settings/<name>.toml`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

SETTINGS = Path(__file__).parent.parent / "settings"

PerRun = Annotated[Any, "per run"]
"""A float that may differ between the runs of one group, where it is a float64 array [R] (see `stack`). Any other field
shapes tensors and must agree."""


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def config_class(algorithm: str) -> type:
    """The `Config` dataclass of an algorithm."""
    import algorithms

    return algorithms.load(algorithm).Config


def per_run_fields(cls: type) -> set[str]:
    """Names of the fields that may hold one value per run."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name for name, hint in hints.items() if hint == PerRun}


def presets(algorithm: str) -> dict[str, dict[str, Any]]:
    """The presets of an algorithm: name -> fields that differ from the defaults.

    `inherits = "dqn"` at the top of its file stands for the presets of that algorithm, to which its own of the same
    name are added.
    """
    path = SETTINGS / f"{algorithm}.toml"
    own = tomllib.loads(path.read_text()) if path.exists() else {}
    parent = own.pop("inherits", None)
    inherited = presets(parent) if parent else {}
    return inherited | {name: inherited.get(name, {}) | fields for name, fields in own.items()}


def load_config(algorithm: str, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Any:
    """Defaults, then the preset, then the overrides. Raises `ValueError` for an unknown preset, key or a wrong type."""
    known = presets(algorithm)
    if preset is not None and preset not in known:
        have = ", ".join(known) or "none"
        raise ValueError(f"{algorithm} has no preset {preset!r}{near(preset, known)}; it has: {have}")
    values = {**(known[preset] if preset else {}), **(overrides or {})}
    return build(config_class(algorithm), values, f"{algorithm}" + (f" preset {preset}" if preset else ""))


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A `cls` from plain values, each checked against its field's type."""
    hints = {name: float if hint is Any else hint for name, hint in typing.get_type_hints(cls).items()}
    checked = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{where}: unknown setting {key!r}{near(key, hints)}; it has: {', '.join(hints)}")
        checked[key] = _as_type(value, hints[key], f"{where}: {key}")
    return cls(**checked)


def _as_type(value: Any, kind: Any, where: str) -> Any:
    if value == "inf" and kind is float:  # JSON has no infinity
        return math.inf
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(kind)[0]
        return tuple(_as_type(item, inner, where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, typing.get_args(kind)))}")
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}")
    if kind is float and math.isnan(value):
        raise ValueError(f"{where} is nan; it must be a number")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Fields as JSON can hold them: infinity becomes `"inf"`, tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def structural(config: Any) -> dict[str, Any]:
    """The fields on which the runs of a group must agree."""
    varying = per_run_fields(type(config))
    return {key: value for key, value in to_dict(config).items() if key not in varying}


def stack(configs: Sequence[Any]) -> Any:
    """One configuration for a group: per-run fields become float64 arrays [R], the others must agree."""
    first = configs[0]
    if any(structural(config) != structural(first) for config in configs):
        raise ValueError("runs whose structural settings differ cannot share a group")
    arrays = {
        name: np.array([getattr(config, name) for config in configs], np.float64)
        for name in per_run_fields(type(first))
    }
    return dataclasses.replace(first, **arrays)


def per_run_tensors(config: Any, device: str = "cpu") -> dict[str, Any]:
    """The per-run fields of a group's configuration as float32 tensors [R, 1]."""
    import torch

    values = {name: getattr(config, name) for name in per_run_fields(type(config))}
    return {name: torch.as_tensor(value, dtype=torch.float32, device=device)[:, None] for name, value in values.items()}


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless the condition holds: for `Config.__post_init__`."""
    if not condition:
        raise ValueError(message)
