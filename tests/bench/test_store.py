"""What is written comes back; what is torn is noticed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy
import torch

from bench import ResultsError, store, tensors


def test_state_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {
        "generator": rng.bit_generator.state,  # integers of 128 bits
        "numbers": [1, -(2**200), 0.1, math.inf, -math.inf, True, None, "text", b"\x00\xff"],
        "tuple": (1, (2.5, [3])),
        "keys": {1: "a", (2, 3): np.arange(3), "$array": "not a reference"},
        "arrays": [np.zeros((0, 3)), np.array(7, np.uint64), np.ones((2, 3), np.float32).T, np.array([True, False])],
        "scalar": np.float32(0.1),
        "tensor": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "": {"a.b": np.array([1]), "a": {"b": np.array([2])}},  # names that flatten alike
        "empty": {},
        "strings": np.int8(-3),
    }
    path = tmp_path / "state.safetensors"
    tensors.save_state(path, state)
    back = tensors.load_state(path)
    assert back.keys() == state.keys()
    for key in ("generator", "numbers", "tuple", "empty"):
        assert back[key] == state[key]
        assert type(back[key]) is type(state[key])
    assert back["keys"][(2, 3)].tolist() == [0, 1, 2]
    assert back["keys"]["$array"] == "not a reference"
    for one, other in zip(back["arrays"], state["arrays"], strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.array_equal(one, other)
        assert one.flags.writeable
    assert type(back["scalar"]) is np.float32
    assert torch.equal(back["tensor"], state["tensor"])
    assert back[""]["a.b"] == [1]
    assert back[""]["a"]["b"] == [2]
    rng.bit_generator.state = back["generator"]

    tensors.save_state(path, {"nan": math.nan})
    assert math.isnan(tensors.load_state(path)["nan"])
    assert os.listdir(tmp_path) == ["state.safetensors"]  # nothing temporary is left


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    for bad in (object(), np.array([object()]), {1, 2}, 1j):
        with pytest.raises(TypeError, match="here"):
            tensors.save_state(tmp_path / "state", {"here": bad})


def test_safetensors_reads_ours(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.eye(3), "c": np.array(True)}
    tensors.save(tmp_path / "file", arrays, {"task": "T"})
    for name, array in safetensors.numpy.load_file(tmp_path / "file").items():
        assert np.array_equal(array, arrays[name])


@pytest.mark.parametrize("harm", ["cut", "header", "flip", "empty", "text", "huge"])
def test_corrupt_checkpoint_is_named(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    tensors.save_state(path, {"weights": np.arange(1000.0), "n": 3})
    data = bytearray(path.read_bytes())
    match harm:
        case "cut":
            data = data[:-100]
        case "header":
            data = data[:20]
        case "flip":
            data[-50] ^= 1
        case "empty":
            data = bytearray()
        case "text":
            data = bytearray(b"this is not a checkpoint at all")
        case "huge":
            data[7] = 255
    path.write_bytes(data)
    with pytest.raises(
        ResultsError, match=r"checkpoint\.safetensors is not readable .*; delete .* to train its runs anew"
    ):
        tensors.load_state(path)


def test_weights_hash() -> None:
    weights = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2))}
    assert tensors.weights_hash(weights) == tensors.weights_hash(dict(reversed(weights.items())))
    for other in ({"b": np.ones(3), "a": weights["a"]}, {"b": weights["b"], "a": np.zeros(4)}, {"a": weights["a"]}):
        assert tensors.weights_hash(other) != tensors.weights_hash(weights)


def test_tables_are_cut_back_and_become_parquet(tmp_path: Path) -> None:
    episodes, metrics = store.Episodes(tmp_path), store.Metrics(tmp_path)
    episodes.append(10, 1.5, 10, "train", 0.1)
    episodes.append(20, math.inf, 5, "eval", 0.2)
    metrics.append(16, "loss", math.nan)
    metrics.append(16, 'a "quoted" name', 0.1 + 0.2)
    lengths = episodes.flush(), metrics.flush()
    episodes.append(30, 3.0, 7, "train", 0.3)
    metrics.append(32, "loss", 1.0)
    assert (episodes.flush(), metrics.flush()) > lengths
    for table in store.TABLES:
        with open(tmp_path / table.lines, "ab") as file:
            file.write(b'{"env_steps": 40, "episo')  # torn by a crash
    assert store.read_lines(tmp_path / store.EPISODES.lines, store.EPISODES)["env_steps"] == [10, 20, 30]
    assert store.read_lines(tmp_path / store.METRICS.lines, store.METRICS)["env_steps"] == [16, 16, 32]

    episodes, metrics = store.Episodes(tmp_path, lengths[0]), store.Metrics(tmp_path, lengths[1])
    assert (episodes.flush(to_disk=True), metrics.flush(to_disk=True)) == lengths
    episodes.append(31, 0.1, 7, "train", 0.4)
    episodes.flush(to_disk=True)
    for table in store.TABLES:
        store.write_table(tmp_path, table)
    store.check_tables(tmp_path, store.SCHEMA)
    table = pyarrow.parquet.read_table(tmp_path / "episodes.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "double", "int64", "string", "double"]
    assert table["env_steps"].to_pylist() == [10, 20, 31]
    assert table["episode_return"].to_pylist() == [1.5, math.inf, 0.1]
    assert table["phase"].to_pylist() == ["train", "eval", "train"]
    table = pyarrow.parquet.read_table(tmp_path / "metrics.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "string", "double"]
    assert table["name"].to_pylist() == ["loss", 'a "quoted" name']
    assert math.isnan(table["value"][0].as_py()) and table["value"][1].as_py() == 0.1 + 0.2


def test_a_run_without_metrics_has_an_empty_table(tmp_path: Path) -> None:
    store.Metrics(tmp_path).flush(to_disk=True)
    store.write_table(tmp_path, store.METRICS)
    table = pyarrow.parquet.read_table(tmp_path / "metrics.parquet")
    assert table.num_rows == 0 and table.schema.names == list(store.METRICS.columns)


@pytest.mark.parametrize("table", store.TABLES, ids=lambda table: table.name)
def test_broken_tables_are_named(tmp_path: Path, table: store.Table) -> None:
    with pytest.raises(ResultsError, match="checkpoint needs"):
        store.Lines(tmp_path, table, 10_000)
    (tmp_path / table.lines).write_bytes(b"{}\n{}\n")
    with pytest.raises(ResultsError, match="broken at line 1"):
        store.read_lines(tmp_path / table.lines, table)
    for one in store.TABLES:
        (tmp_path / one.lines).write_bytes(b"")
        store.write_table(tmp_path, one)
    (tmp_path / table.parquet).write_bytes(b"PAR1 and no more")
    with pytest.raises(ResultsError, match=f"{table.parquet} is not readable"):
        store.check_tables(tmp_path, store.SCHEMA)
    (tmp_path / table.parquet).unlink()
    with pytest.raises(ResultsError, match=f"{table.parquet} is missing"):
        store.check_tables(tmp_path, store.SCHEMA)


def test_runs_from_before_metrics_need_none(tmp_path: Path) -> None:
    store.Episodes(tmp_path).flush()
    store.write_table(tmp_path, store.EPISODES)
    store.check_tables(tmp_path, 1)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    store.write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        store.write_json(path, {"new": 1})
    assert store.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["file"]


def test_lock_is_given_back_by_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = "import sys; from pathlib import Path; from bench import store\n"
    code += "with store.locked(Path(sys.argv[1]), 0):\n    print(1, flush=True)\n    input()"
    command = [sys.executable, "-c", code, str(path)]
    assert store.lock_holder(path) is None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=store.ROOT) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert store.lock_holder(path) == str(holder.pid)
        with pytest.raises(ResultsError, match=f"in use by process {holder.pid}"), store.locked(path, 0.1):
            pass
        holder.kill()
    with store.locked(path, 0.0):
        assert store.lock_holder(path) == str(os.getpid())


def test_manifest_never_holds_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "do-not-record")
    assert "do-not-record" not in str([store.commit(), store.versions(), store.machine()])
