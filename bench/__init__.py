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
    """The call was wrong: a message that names the value, the rule it breaks and the cure."""

    code = WRONG_CALL


class ResultsError(UserError):
    """What is on disk cannot be read, is in use, or must not be mixed with what was asked for."""

    code = FELL_SHORT


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def import_plugins() -> None:
    """Import the modules named in `TOUCHSTONE_PLUGINS` (comma separated), here and in every worker.

    The seam for what does not live in this repository: a module may register an algorithm or a task when imported.
    The tests use it to train fakes that crash, raise or turn NaN to order.
    """
    for name in filter(None, os.environ.get("TOUCHSTONE_PLUGINS", "").split(",")):
        importlib.import_module(name)
