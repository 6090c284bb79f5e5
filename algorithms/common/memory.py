"""What an agent has to save and how."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class Ring(NamedTuple):
    """Rows, counted from 0, that never change once they are in: row i lies at i % n, in the place of row i - n.

    A part of a state like any other. But whoever saves it again and again has only to write the rows that are new.
    """

    rows: Any  # [R, n, W], a tensor: the memory itself, no copy
    first: int  # the oldest row that counts
    added: int  # rows so far, those that are gone included


class Remembering:
    """Saves the attributes named in `memory`: parts that have a `state()` by that, arrays and numbers as copies."""

    memory: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        parts = {name: getattr(self, name) for name in self.memory}
        return {name: part.state() if hasattr(part, "state") else copy.copy(part) for name, part in parts.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        for name in self.memory:
            part = getattr(self, name)
            if hasattr(part, "load_state"):
                part.load_state(state[name])
            else:
                setattr(self, name, copy.copy(state[name]))
