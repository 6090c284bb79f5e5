"""Another process goes on from checkpoints: `python resume.py` is told folders that tests have written, by line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from algorithms.common import runtime  # noqa: E402

runtime.prepare()

import cases  # noqa: E402

from bench.tensors import load_state, save_state  # noqa: E402


def save(path: Path, agent: object, metrics: object = None) -> None:
    """A checkpoint as the driver makes it, with what the run said on its way."""
    envs = agent.envs  # type: ignore[attr-defined]
    state = {"agent": agent.state(), "envs": envs.state(), "metrics": metrics}  # type: ignore[attr-defined]
    save_state(path, state)


def main(folder: Path) -> None:
    """Go on with every case of the folder, and save where it ends."""
    runtime.configure_torch("cpu")
    for name, (algorithm, task, runs, seeds, env_steps) in json.loads((folder / "cases.json").read_text()).items():
        agent = cases.make(algorithm, task, runs, seeds)
        state = load_state(folder / f"{name}.paused")
        agent.load_state(state["agent"])
        agent.envs.load_state(state["envs"])
        save(folder / f"{name}.resumed", agent, cases.advance(agent, env_steps))


if __name__ == "__main__":
    for line in sys.stdin:
        main(Path(line.rstrip("\n")))
        print("done", flush=True)
