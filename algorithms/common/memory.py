"""What an agent has to save and how, told by names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar


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
