"""Fixtures of the bench's tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], Any]:
    """Poll until something is true; fail after two minutes."""

    def wait(condition: Callable[[], Any]) -> Any:
        for _ in range(2400):
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("it never came true")

    return wait
