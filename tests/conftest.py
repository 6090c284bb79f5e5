"""Set up the process as a worker's is, before any test imports numpy or torch."""

from __future__ import annotations

from algorithms.common import runtime

runtime.prepare()
