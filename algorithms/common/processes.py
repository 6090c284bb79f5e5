"""Worker processes that are asked all at once and answer one by one.

They come from a process that has imported torch and done nothing else yet, so that sixteen of them start as fast as one
and no thread of the parent's is lost in a fork. They end with the parent, however it ends; a failure in one of them is
the parent's, which ends the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from algorithms.common import runtime

PATIENCE = 5.0  # seconds for a process that is told to end


class Crew:
    """`make(w)`, built in process w of `size`, all of them before the first is asked. Whatever `make` holds must be
    picklable."""

    def __init__(self, make: Callable[[int], Any], size: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "algorithms.common.processes"])
        self.channels: list[Connection] = []
        self.processes: list[Any] = []
        self.close = weakref.finalize(self, _end, self.processes)  # with the interpreter at the latest
        for w in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(make, w, theirs), name=f"worker {w}", daemon=True)
            process.start()
            theirs.close()  # so that its end is the end of the channel
            self.channels.append(ours)
            self.processes.append(process)
        for w in range(size):
            self._answer(w)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What every worker's method returns; all of them work on it at the same time."""
        return self.ask_each(method, [arguments] * len(self.channels))

    def ask_each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """The same with arguments for each. Raises RuntimeError, with its message, when one of them fails."""
        for channel, own in zip(self.channels, arguments, strict=True):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # said below
                channel.send((method, own))
        return [self._answer(w) for w in range(len(self.channels))]

    def _answer(self, w: int) -> Any:
        try:
            answer, trace, error = self.channels[w].recv()
        except (EOFError, ConnectionResetError):
            self.processes[w].join(PATIENCE)
            answer, trace, error = None, "", f"exit code {self.processes[w].exitcode}"
        if error:
            self.close()
            raise RuntimeError(f"{trace}worker {w} of {len(self.channels)} failed: {error}")
        return answer


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.0))
        if process.exitcode is None:
            process.kill()
            process.join()


def _work(make: Callable[[int], Any], index: int, channel: Connection) -> None:
    """The life of a worker process."""
    runtime.prepare()  # the environment is the parent's, whose preparation came before all imports
    runtime.configure_torch("cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to decide about
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = make(index)
        channel.send((None, "", ""))
        while True:
            method, arguments = channel.recv()
            channel.send((getattr(worker, method)(*arguments), "", ""))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone
    except Exception as error:
        channel.send((None, f"{traceback.format_exc()}\n", f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
