"""Checkpoints write only what is new, and there is a whole one at any instant."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.common.memory import Ring
from algorithms.common.replay import Replay
from bench import DONE, STOPPED, ResultsError, drive, plan, store, tensors

RUNS, CAPACITY, WIDTH = 2, 40, 3
ROW_BYTES = RUNS * WIDTH * 4


class Killed(BaseException):
    """At this instant."""


class Memory:
    """Rows of random numbers, the last `CAPACITY` of them."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.rows = torch.zeros(RUNS, CAPACITY, WIDTH)
        self.added = 0

    def add(self, count: int) -> None:
        for _ in range(count):
            row = self.rng.standard_normal((RUNS, WIDTH), np.float32)
            self.rows[:, self.added % CAPACITY] = torch.from_numpy(row)
            self.added += 1

    def state(self) -> dict[str, Any]:
        filled = min(self.added, CAPACITY)
        return {"a": {"rows": Ring(self.rows[:, :filled], self.added - filled, self.added)}, "added": self.added}


def assert_loads(path: Path, state: dict[str, Any]) -> tensors.Checkpoint:
    """What is on disk is this state; returns the checkpoint, which can be gone on with."""
    checkpoint = tensors.Checkpoint(path)
    found = checkpoint.load()
    assert found["added"] == state["added"] and found["a"]["rows"][1:] == state["a"]["rows"][1:]
    assert torch.equal(found["a"]["rows"].rows, state["a"]["rows"].rows)
    return checkpoint


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails in these tests."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of rows that were written, block by block."""
    sizes: list[int] = []
    blocks = tensors._blocks

    def counted(*arguments: Any) -> Iterator[memoryview]:
        for block in blocks(*arguments):
            sizes.append(block.nbytes)
            yield block

    monkeypatch.setattr(tensors, "_blocks", counted)
    return sizes


@pytest.mark.parametrize("block", [1, 7 * ROW_BYTES, 1 << 22])
def test_rows_are_written_once(tmp_path: Path, written: list[int], monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Through several rounds of the ring, by processes that come and go: every row once, unless it was gone before."""
    monkeypatch.setattr(tensors, "BLOCK", block)
    path, memory, rng = tmp_path / "checkpoint.safetensors", Memory(), np.random.default_rng(1)
    checkpoint = tensors.Checkpoint(path)
    for count in (*rng.integers(0, 12, 30).tolist(), 0, 40, 41, 100, 0, 3):
        before, at = len(written), memory.added
        memory.add(count)
        checkpoint.save(memory.state())
        assert sum(written[before:]) == min(count, memory.added, CAPACITY) * ROW_BYTES, (at, count)
        files = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.rows")}
        assert sum((tmp_path / name).stat().st_size for name in files) <= 2 * CAPACITY * ROW_BYTES
        assert len(files) <= 3 * tensors.SHARE
        fresh = assert_loads(path, memory.state())
        if rng.random() < 0.5:  # another process goes on
            checkpoint = fresh
        checkpoint.save(memory.state())
        assert sum(written[before:]) == min(count, CAPACITY) * ROW_BYTES
        assert files == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.rows")}
    checkpoint.remove()
    assert not os.listdir(tmp_path)


def test_one_file_holds_it_all_where_that_is_wanted(tmp_path: Path) -> None:
    path, memory = tmp_path / "state.safetensors", Memory()
    memory.add(55)
    tensors.save_state(path, memory.state())
    assert os.listdir(tmp_path) == ["state.safetensors"]
    assert_loads(path, memory.state())
    assert type(tensors.load_state(path)["a"]["rows"]) is Ring


@pytest.mark.parametrize("rows", [5, 60])  # new when it is killed
@pytest.mark.parametrize("instant", ["row", "fsync", "save", "rename", "delete", "deleted"])
def test_a_save_killed_at_any_instant_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str, rows: int
) -> None:
    path, memory = tmp_path / "checkpoint.safetensors", Memory()
    monkeypatch.setattr(tensors, "BLOCK", 2 * ROW_BYTES)
    checkpoint = tensors.Checkpoint(path)
    for _ in range(20):
        memory.add(6)
        checkpoint.save(memory.state())
    before = memory.state()
    before["a"]["rows"] = before["a"]["rows"]._replace(rows=before["a"]["rows"].rows.clone())
    memory.add(rows)

    def killed(*arguments: Any, **options: Any) -> Any:
        raise Killed

    place, name, times = {
        "row": (tensors.zlib, "crc32", 2),
        "fsync": (os, "fsync", 0),
        "save": (tensors, "save", 0),
        "rename": (os, "replace", 0),
        "delete": (Path, "unlink", 0),
        "deleted": (Path, "unlink", 1),
    }[instant]
    function, calls, ended = getattr(place, name), iter(range(times)), False
    with monkeypatch.context() as patch:  # killed at the call after so many
        patch.setattr(place, name, lambda *a, **o: killed() if next(calls, None) is None else function(*a, **o))
        try:
            checkpoint.save(memory.state())
            ended = True  # there was nothing, or not that much, to delete
        except Killed:
            pass
    assert not ended or instant in ("delete", "deleted")
    checkpoint = assert_loads(path, memory.state() if instant.startswith("delete") else before)
    memory.add(3)  # what was not saved is made again, and goes on
    checkpoint.save(memory.state())
    checkpoint = assert_loads(path, memory.state())
    named = {checkpoint._file(name, part).name for name, each in checkpoint.parts.items() for part in each}
    assert {file.name for file in tmp_path.glob("*.rows")} == named


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "missing"])
def test_a_torn_part_is_named(tmp_path: Path, harm: str) -> None:
    path, memory = tmp_path / "checkpoint.safetensors", Memory()
    checkpoint = tensors.Checkpoint(path)
    for _ in range(3):
        memory.add(12)
        checkpoint.save(memory.state())
    for part in sorted(tmp_path.glob("*.rows")):
        data = bytearray(part.read_bytes())
        match harm:
            case "cut":
                part.write_bytes(data[:-1])
            case "flip":
                part.write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
            case "empty":
                part.write_bytes(b"")
            case "missing":
                part.unlink()
        with pytest.raises(ResultsError, match=rf"{part} is not readable .*; delete {tmp_path} to train its runs anew"):
            tensors.load_state(path)
        part.write_bytes(data)
        assert_loads(path, memory.state())


def test_what_lies_beside_it_is_left_alone(tmp_path: Path) -> None:
    others = ["plan.json", "log.txt", "checkpoint.txt", "other.rows", "checkpoints.a.rows"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "checkpoint.a.rows.77.rows").write_text("of a group that is gone")
    memory, checkpoint = Memory(), tensors.Checkpoint(tmp_path / "checkpoint.safetensors")
    memory.add(1)
    checkpoint.save(memory.state())
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "checkpoint.safetensors", "checkpoint.a.rows.0.rows"])
    checkpoint.remove()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize("size", [3, 60])  # of an observation: both in a row, and each kept once
def test_a_replay_memory_goes_on_exactly(tmp_path: Path, size: int) -> None:
    """Saved in between and loaded into another, it draws what it draws without a pause."""
    rng, path = np.random.default_rng(0), tmp_path / "checkpoint.safetensors"

    def drawn() -> np.ndarray:
        return rng.standard_normal((2, 2, size), np.float32)

    memories, observations = [Replay(2, 24, 2, size, 1, np.ones(2), 3) for _ in range(2)], drawn()
    assert memories[0].layout.once is (size == 60)
    checkpoint = tensors.Checkpoint(path)
    for t in range(150):
        numbers, ends, successors = rng.standard_normal((2, 2, 2)), rng.random((2, 2, 2)) < 0.1, drawn()
        for memory in memories:
            memory.add(observations, numbers[0], numbers[1], successors, *ends)
        observations = np.where(ends.any(0)[..., None], drawn(), successors)
        if t % 7 == 0:
            checkpoint.save(memories[1].state())
        if t % 28 == 14:
            memories[1] = Replay(2, 24, 2, size, 1, np.ones(2), 3)
            checkpoint = tensors.Checkpoint(path)
            memories[1].load_state(checkpoint.load())
        if t > 2:
            uniform = rng.random((2, 5))
            for one, other in zip(*(memory.sample(uniform) for memory in memories), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("task", "convolutions"), [("CartPole-v1", "none"), ("MinAtar-Breakout-v1", "minatar")]
)  # images are kept once
def test_the_driver_goes_on_with_a_memory(
    task: str, convolutions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DQN, saved after every iteration, stopped and killed on its way, ends with the same bits as without a pause."""
    structure = {"buffer_size": 300, "hidden_sizes": [8], "learning_starts": 50, "batch_size": 8}
    raw = {
        "tasks": [task], "steps": 1000, "seeds": 2,
        "algorithms": [{"name": "dqn", "overrides": structure | {"convolutions": convolutions}}],
    }  # fmt: skip
    experiment = plan.resolve(plan.expand("test", raw, "here"))

    def prepared(place: str, seconds: float) -> Path:
        folder = tmp_path / place / ".groups" / "group"
        settings = {"device": "cpu", "checkpoint_seconds": seconds, "tensorboard": False, "fingerprint": {}}
        plan.write_plan(experiment, plan.Group(experiment.runs), folder, **settings)
        return folder

    def ended(folder: Path) -> list[str]:
        assert drive.train(folder, lambda: False) == DONE
        assert not list(folder.glob("checkpoint*"))
        manifests = [store.read_json(folder.parent.parent / run.path / store.MANIFEST) for run in experiment.runs]
        return [manifest["weights_sha256"] for manifest in manifests]

    folder, calls, saves, save = prepared("parts", 0.0), iter(range(1000)), iter(range(1000)), tensors.save
    assert drive.train(folder, lambda: next(calls) == 5) == STOPPED
    assert list(folder.glob("checkpoint.agent.replay.rows.*.rows"))
    # killed at the seventh checkpoint from there, when its rows are on disk already
    monkeypatch.setattr(tensors, "save", lambda *a: save(*a) if next(saves) < 6 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drive.train(folder, lambda: False)
    monkeypatch.undo()
    hashes = ended(folder)
    assert hashes == ended(prepared("whole", 1e9)) and len(set(hashes)) == 2


@pytest.mark.parametrize("rows", [5, 60])  # new when the disk is full: in the last part, or in one of their own
def test_a_full_disk_gets_the_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    path, memory = tmp_path / "checkpoint.safetensors", Memory()
    monkeypatch.setattr(tensors, "BLOCK", 2 * ROW_BYTES)
    checkpoint = tensors.Checkpoint(path)
    memory.add(7)
    checkpoint.save(memory.state())
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    kept = memory.state()
    kept["a"]["rows"] = kept["a"]["rows"]._replace(rows=kept["a"]["rows"].rows.clone())
    memory.add(rows)
    blocks = tensors._blocks

    def full(*arguments: Any) -> Iterator[memoryview]:
        yield next(blocks(*arguments))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "_blocks", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(memory.state())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == before
    monkeypatch.setattr(tensors, "_blocks", blocks)
    assert_loads(path, kept)
    checkpoint.save(memory.state())
    assert_loads(path, memory.state())
