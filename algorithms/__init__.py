"""Reference algorithms, one file each; `names()` finds them by file."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def names() -> list[str]:
    """Algorithms there are: every module of this package."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of one algorithm. Raises `ValueError` with near names for an unknown one."""
    if name not in names():
        from algorithms.common.config import near

        raise ValueError(f"unknown algorithm {name!r}{near(name, names())}; `run_bench.py list algorithms` shows all")
    return importlib.import_module(f"algorithms.{name}")
