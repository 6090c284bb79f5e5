"""Set up the process as a worker's is, before any test imports numpy or torch."""

from __future__ import annotations

from algorithms.common import runtime

runtime.prepare()

import pytest  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first, so that it is not what the others' worker waits for."""
    items.sort(key=lambda item: "test_kill" not in item.nodeid)
