"""The command line as a user meets it: in another process, with a results folder of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

ROOT = Path(__file__).parent.parent.parent

EXPERIMENT = """
title = "a test"
tasks = ["CartPole-v1"]
steps = 400
seeds = 3
[[algorithms]]
name = "fake"
"""


class Bench:
    """`run_bench.py` with the fakes plugged in."""

    def __init__(self, place: Path):
        self.place, self.out = place, place / "out"
        self.environment = os.environ | {
            "TOUCHSTONE_PLUGINS": "fakes", "PYTHONPATH": str(Path(__file__).parent), "FAKES_MARK": str(place / "mark"),
        }  # fmt: skip

    def write(self, text: str = EXPERIMENT, name: str = "exp") -> str:
        """An experiment file; returns its path."""
        path = self.place / f"{name}.toml"
        path.write_text(text)
        return str(path)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        command = [sys.executable, str(ROOT / "run_bench.py"), *arguments]
        # Started in the background, a shell has its children ignore SIGINT; a user's terminal does not.
        return subprocess.Popen(command, cwd=self.place, env=self.environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end: exit code, and all it printed. A traceback is never right."""
        process = self.start(*arguments)
        try:
            output = "".join(process.communicate(timeout=120))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert "Traceback" not in output, output
        return process.returncode, output

    def run(self, experiment: str, *arguments: str) -> tuple[int, str]:
        """Train an experiment into this test's folder."""
        return self("run", experiment, "--out", str(self.out), "--workers", "2", *arguments)

    def manifests(self, name: str = "exp") -> dict[str, Any]:
        """Path -> manifest of every run."""
        root = self.out / name
        return {
            str(path.parent.relative_to(root)): json.loads(path.read_text())
            for path in sorted(root.glob("*/*/*/manifest.json"))
        }

    def results(self, name: str = "exp") -> dict[str, Any]:
        """What must not depend on how the runs came about: tables without wall seconds, hashes, status."""
        read = pyarrow.parquet.read_table
        return {
            path: (
                manifest["status"],
                manifest["env_steps"],
                manifest["weights_sha256"],
                read(self.out / name / path / "episodes.parquet").drop_columns(["wall_seconds"]).to_pydict(),
                self.metrics(path, name),
            )
            for path, manifest in self.manifests(name).items()
        }

    def metrics(self, path: str, name: str = "exp") -> list[tuple[int, str, bytes]]:
        """The metrics of a run, values as their bits: NaN equals itself."""
        table = pyarrow.parquet.read_table(self.out / name / path / "metrics.parquet").to_pydict()
        values = [np.float64(value).tobytes() for value in table["value"]]
        return list(zip(table["env_steps"], table["name"], values, strict=True))


def workers_of(pid: int) -> Sequence[int]:
    """Processes whose parent is `pid`."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
