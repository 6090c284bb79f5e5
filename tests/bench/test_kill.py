"""An experiment killed at ten random instants ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from harness import Bench, workers_of

EXPERIMENT = """
title = "twelve runs on two kinds of tasks"
seeds = 3
[tasks."CartPole-v1"]
steps = 20000
[tasks."InvertedPendulum-v5"]
steps = 6000
[evaluation]
period = 1500
episodes = 2
[[algorithms]]
name = "ppo"
overrides = {num_envs = 2, num_steps = 128, num_epochs = 2}
variants = {"a" = {clip_coef = 0.1}, "b" = {clip_coef = 0.3}}
"""


def test_killed_ten_times(bench: Bench, wait_for: Callable[[Callable[[], Any]], Any]) -> None:
    path = bench.write(EXPERIMENT)
    code, output = bench.run(path)
    assert code == 0, output
    undisturbed = bench.results()
    assert len(undisturbed) == 12

    bench.out = bench.place / "killed"
    rng = random.Random(7)
    command = [
        "run",
        path,
        "--out",
        str(bench.out),
        "--workers",
        "2",
        "--checkpoint-seconds",
        "0.2",
        "--group-size",
        "3",
    ]
    for instant in range(10):
        begun = time.time()
        process = bench.start(*command)
        # Most instants lie in training, two anywhere from the start on.
        if instant not in (3, 7):
            wait_for(lambda begun=begun, process=process: trains_since(begun, bench) or process.poll() is not None)
        time.sleep(1.2 * rng.random())
        workers = workers_of(process.pid) if process.poll() is None else []
        if workers and instant % 2:
            os.kill(rng.choice(workers), signal.SIGKILL)  # the launcher starts this one again
            time.sleep(1.5 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda workers=workers: not any(alive(pid) for pid in workers))  # they end with the launcher
    code, output = bench.run(path)
    assert code == 0, output
    assert bench.results() == undisturbed
    starts = {
        (manifest["group"], session["env_steps"])
        for manifest in bench.manifests().values()
        for session in manifest["sessions"]
    }
    assert len([steps for _, steps in starts if steps]) >= 5  # workers went on from checkpoints that often


def trains_since(moment: float, bench: Bench) -> bool:
    """Whether any worker has told of progress after `moment`."""
    return any(path.stat().st_mtime > moment for path in bench.out.glob("exp/.groups/*/progress.json"))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
