"""Torch set up as a worker sets it up."""

from __future__ import annotations

from algorithms.common import runtime

runtime.configure_torch("cpu")
