"""Plan, launch, drive, store: from an experiment file to run directories. Imports nothing heavy by itself."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent

ALL_WELL, FELL_SHORT, WRONG_CALL = 0, 1, 2  # exit codes of the command line
DONE, CRASHED, REFUSED, DISK_FULL, STOPPED = 0, 1, 3, 4, 5  # exit codes of a worker


class UserError(Exception):
    """A message for the person at the terminal: names the value, the rule it breaks and the cure."""

    def __init__(self, message: str, code: int = WRONG_CALL):
        super().__init__(message)
        self.code = code


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def import_plugins() -> None:
    """Import the modules named in `TOUCHSTONE_PLUGINS` (comma separated), here and in every worker.

    The seam for what does not live in this repository: a module may register an algorithm or a task when imported.
    The tests use it to train fakes that crash, raise or turn NaN on purpose.
    """
    for name in filter(None, os.environ.get("TOUCHSTONE_PLUGINS", "").split(",")):
        importlib.import_module(name)
