"""The command line end to end, and what happens when something breaks."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import EXPERIMENT, Bench, workers_of

from bench import tensors

Results = dict[str, Any]
Wait = Callable[[Callable[[], Any]], Any]
FAULTY = EXPERIMENT.replace('name = "fake"', 'name = "fake"\noverrides = {{fault = "{0}", fault_step = 200{1}}}')


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of the faulty experiment when nothing goes wrong."""
    bench = Bench(tmp_path_factory.mktemp("sound"))
    assert bench.run(bench.write(FAULTY.format("none", "")))[0] == 0
    return bench.results()


def test_run_skip_grow_status(bench: Bench) -> None:
    path = bench.write(EXPERIMENT + "[evaluation]\nperiod = 150\nepisodes = 2\n")
    code, output = bench.run(path, "--seeds", "2")
    assert code == 0, output
    first = bench.results()
    assert sorted(first) == ["CartPole-v1/fake/0", "CartPole-v1/fake/1"]
    folder = bench.out / "exp/CartPole-v1/fake/0"
    assert sorted(os.listdir(folder)) == ["episodes.parquet", "manifest.json", "metrics.parquet", "policy.safetensors"]
    manifest = bench.manifests()["CartPole-v1/fake/0"]
    expected = {
        "schema": 2,
        "experiment": "exp",
        "task": "CartPole-v1",
        "algorithm": "fake",
        "variant": "default",
        "seed": 0,
    }
    assert expected.items() <= manifest.items()
    assert {
        "steps": 400,
        "env_steps": 400,
        "status": "finished",
        "error": None,
        "device": "cpu",
    }.items() <= manifest.items()
    assert manifest["config"]["num_envs"] == 2
    assert manifest["fingerprint"]["digest"]
    assert manifest["versions"]["torch"]
    table = first["CartPole-v1/fake/0"][3]
    evaluations = [steps for steps, phase in zip(table["env_steps"], table["phase"], strict=True) if phase == "eval"]
    assert evaluations == [160, 160, 304, 304, 400, 400]  # crossings of 150 by iterations of 16, and the end

    code, output = bench.run(path)  # grown to three seeds; the finished two are left alone
    assert code == 0, output
    assert "2 of 3 runs have ended, to train: 1" in output
    assert bench.results().items() >= first.items()
    assert bench.manifests()["CartPole-v1/fake/0"] == manifest
    assert "to train: 0" in bench.run(path)[1]

    code, output = bench("status", path, "--out", str(bench.out), "--json")
    found = json.loads(output)
    assert code == 0
    assert found["counts"] == {"finished": 3}
    assert found["launcher"] is None
    assert "3 of 3 runs have ended" in bench("status", path, "--out", str(bench.out))[1]

    code, output = bench.run(path, "--steps", "500")
    assert code == 1
    assert "steps is 400 there and 500 here" in output
    changed = Path(path).read_text().replace('name = "fake"', 'name = "fake"\noverrides = {scale = 2.0}')
    Path(path).write_text(changed)
    code, output = bench.run(path)
    assert code == 1
    assert "scale is 1.0 there and 2.0 here" in output


def test_metrics_at_crossings_and_at_evaluations(bench: Bench) -> None:
    path = bench.write("metrics_period = 100\n" + EXPERIMENT + "[evaluation]\nperiod = 150\nepisodes = 2\n")
    code, output = bench.run(path)
    assert code == 0, output
    found: dict[str, list[int]] = {}
    for env_steps, name, _ in bench.metrics("CartPole-v1/fake/1"):
        found.setdefault(name, []).append(env_steps)
    assert found["noise"] == [112, 208, 304, 400]  # crossings of 100 by iterations of 16; 400 is the end as well
    assert found["estimated_value"] == found["discounted_return"] == [160, 304, 400]
    (noise, *rest) = [bits for _, name, bits in bench.metrics("CartPole-v1/fake/1") if name == "noise"]
    assert noise != rest[0]

    bench.out = bench.place / "every"  # how often metrics are written down changes nothing else
    path = bench.write("metrics_period = 0\n" + EXPERIMENT)
    assert bench.run(path)[0] == 0
    rows = bench.metrics("CartPole-v1/fake/1")
    assert [env_steps for env_steps, _, _ in rows] == list(range(16, 401, 16))
    assert {row for row in rows if row[0] in (112, 208)} == {
        (112, "noise", noise),
        (208, "noise", rest[0]),
    }
    every = bench.manifests()["CartPole-v1/fake/1"]
    bench.out = bench.place / "out"
    assert every["weights_sha256"] == bench.manifests()["CartPole-v1/fake/1"]["weights_sha256"]
    code, output = bench.run(path)
    assert code == 1
    assert "metrics_period is 100 there and 0 here" in output


def test_runs_that_ended_before_there_were_metrics_are_left_alone(bench: Bench) -> None:
    path = bench.write()
    assert bench.run(path)[0] == 0
    for folder in bench.out.glob("exp/CartPole-v1/*/*"):
        manifest = json.loads((folder / "manifest.json").read_text()) | {"schema": 1}
        del manifest["metrics_period"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "metrics.parquet").unlink()
    code, output = bench.run(path)
    assert code == 0, output
    assert "3 of 3 runs have ended, to train: 0" in output


def test_grouping_and_evaluation_never_show(bench: Bench) -> None:
    path = bench.write(EXPERIMENT.replace("seeds = 3", "seeds = 5"))
    assert bench.run(path)[0] == 0
    together = bench.results()
    bench.out = bench.place / "alone"
    assert bench.run(path, "--group-size", "1", "--workers", "5")[0] == 0
    assert bench.results() == together


def test_train_makes_variants_and_its_status_is_found(bench: Bench) -> None:
    where = ["--out", str(bench.out), "--workers", "1"]
    given = [
        "--task",
        "CartPole-v1",
        "--seeds",
        "0..1",
        "--steps",
        "100",
        "--scale",
        "1,2.5",
        "--num-steps",
        "8",
        "--metrics-period",
        "50",
        *where,
    ]
    code, output = bench("train", "fake", *given, "--tensorboard")
    assert code == 0, output
    assert sorted(bench.manifests("train-fake")) == [
        f"CartPole-v1/fake+scale={scale},num_steps=8/{seed}" for scale in ("1", "2.5") for seed in (0, 1)
    ]
    assert list(bench.out.glob("train-fake/CartPole-v1/*/0/tensorboard/events*"))
    rows = bench.metrics("CartPole-v1/fake+scale=1,num_steps=8/0", "train-fake")
    assert [env_steps for env_steps, _, _ in rows] == [64, 112]
    assert "4 of 4" in bench("status", "train-fake", "--out", str(bench.out))[1]


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [("nan", "diverged", "no longer finite"), ("raises", "failed", "ValueError: the simulation is unstable")],
)
def test_one_run_breaks_the_others_go_on(bench: Bench, sound: Results, fault: str, status: str, reason: str) -> None:
    bench.out = bench.place / fault
    path = bench.write(FAULTY.format(fault, ""))
    code, output = bench.run(path, "--workers", "1")
    assert code == 1
    assert f"{status}: " in output
    assert reason in output
    manifests, results = bench.manifests(), bench.results()
    assert manifests["CartPole-v1/fake/1"]["status"] == status
    assert reason in manifests["CartPole-v1/fake/1"]["error"]
    assert manifests["CartPole-v1/fake/1"]["env_steps"] == 208
    for seed in (0, 2):
        assert results[f"CartPole-v1/fake/{seed}"] == sound[f"CartPole-v1/fake/{seed}"]
    # What diverged is a result; what failed is tried again by the same command.
    code, output = bench.run(path)
    assert code == 1
    assert f"to train: {int(status == 'failed')}" in output


def test_worker_killed_once_is_started_again(bench: Bench, sound: Results) -> None:
    bench.out = bench.place / "killed"
    code, output = bench.run(bench.write(FAULTY.format("once", "")), "--workers", "1", "--checkpoint-seconds", "1e-9")
    assert code == 0, output
    assert bench.results() == sound
    assert len(bench.manifests()["CartPole-v1/fake/0"]["sessions"]) == 2


@pytest.mark.parametrize(
    ("fault", "reason"), [("crash", "killed by SIGKILL (out of memory?)"), ("bug", "a bug in the algorithm")]
)
def test_worker_that_always_dies(bench: Bench, fault: str, reason: str) -> None:
    two = FAULTY.format(fault, "") + '[[algorithms]]\nname = "fake"\nvariants = {sound = {}}\n'
    path = bench.write(two)
    code, output = bench.run(path, "--group-size", "3")
    assert code == 1
    assert reason in output
    statuses = {name: manifest["status"] for name, manifest in bench.manifests().items()}
    assert statuses == {
        f"CartPole-v1/fake{variant}/{seed}": status
        for variant, status in (("", "failed"), ("+sound", "finished"))
        for seed in range(3)
    }
    assert reason in bench.manifests()["CartPole-v1/fake/0"]["error"]
    found = json.loads(bench("status", path, "--out", str(bench.out), "--json")[1])
    assert found["counts"] == {"failed": 3, "finished": 3}


def test_full_disk_stops_and_goes_on(bench: Bench, sound: Results) -> None:
    bench.out = bench.place / "full"
    code, output = bench.run(
        bench.write(FAULTY.format("full", "")), "--checkpoint-seconds", "1e-9", "--group-size", "3", "--workers", "1"
    )
    assert code == 1
    assert "the disk is full" in output
    assert "the same command goes on" in output
    assert {manifest["status"] for manifest in bench.manifests().values()} == {"running"}
    for plan in bench.out.glob("exp/.groups/*/plan.json"):  # space is found: the fault goes away
        plan.write_text(plan.read_text().replace('"fault": "full"', '"fault": "none"'))
    for manifest in bench.out.glob("exp/*/*/*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"fault": "full"', '"fault": "none"'))
    code, output = bench.run(bench.write(FAULTY.format("none", "")))
    assert code == 0, output
    assert bench.results() == sound


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting a small file system needs root"
)
def test_full_file_system(bench: Bench) -> None:
    bench.out.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {bench.out} 2>/dev/null"):
        pytest.skip("no right to mount")
    try:
        quick = EXPERIMENT.replace('name = "fake"', 'name = "fake"\noverrides = {num_envs = 64, num_steps = 64}')
        code, output = bench.run(bench.write(quick.replace("steps = 400", "steps = 400000")))
        assert code == 1
        assert "the disk is full" in output or "No space left" in output
    finally:
        os.system(f"umount {bench.out}")


def start_slowly(bench: Bench, wait_for: Wait, pause: float = 0.2) -> tuple[Any, list[str]]:
    """A launch whose 25 iterations last `pause` seconds each, after its first checkpoint; and its command."""
    path = bench.write(EXPERIMENT.replace('name = "fake"', f'name = "fake"\noverrides = {{pause = {pause}}}'))
    command = ["run", path, "--out", str(bench.out), "--workers", "2", "--checkpoint-seconds", "0.1"]
    process = bench.start(*command)
    wait_for(lambda: len(list(bench.out.glob("exp/.groups/*/checkpoint.safetensors"))) == 2)
    return process, command


def test_two_launches_at_once_and_status_while_running(bench: Bench, wait_for: Wait) -> None:
    process, command = start_slowly(bench, wait_for, pause=2.0)
    code, output = bench(*command)
    assert code == 1
    assert f"in use by process {process.pid}" in output
    found = json.loads(bench("status", command[1], "--out", str(bench.out), "--json")[1])
    assert found["launcher"] == str(process.pid)
    assert found["counts"] == {"running": 3}
    assert found["env_steps_per_second"] > 0
    assert found["seconds_left"] > 0
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_go_on(bench: Bench, wait_for: Wait, number: int) -> None:
    process, command = start_slowly(bench, wait_for)
    workers = workers_of(process.pid)
    os.kill(process.pid, number)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 1
    assert "the same command goes on" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    code, output = bench(*command)
    assert code == 0, output
    stopped = bench.results()
    assert all(manifest["sessions"][1]["env_steps"] > 0 for manifest in bench.manifests().values())
    bench.out = bench.place / "undisturbed"
    assert bench.run(bench.write())[0] == 0
    assert bench.results() == stopped


def test_corrupt_checkpoint_stops_its_group(bench: Bench, wait_for: Wait) -> None:
    process, command = start_slowly(bench, wait_for)
    process.kill()
    process.communicate()
    broken = sorted(bench.out.glob("exp/.groups/*/checkpoint.safetensors"))[0]
    data = broken.read_bytes()
    broken.write_bytes(data[:-7])
    code, output = bench(*command)
    assert code == 1
    assert f"{broken} is not readable" in output
    assert f"delete {broken.parent}" in output
    statuses = sorted(manifest["status"] for manifest in bench.manifests().values())
    assert statuses[0] == "failed"
    assert statuses[-1] == "finished"
    broken.write_bytes(data)  # nothing was lost: whole again, the group goes on
    code, output = bench(*command)
    assert code == 0, output
    assert "finished" in output


def test_checkpoint_of_other_code_stops_its_group(bench: Bench, wait_for: Wait) -> None:
    process, command = start_slowly(bench, wait_for)
    process.kill()
    process.communicate()
    path = sorted(bench.out.glob("exp/.groups/*/checkpoint.safetensors"))[0]
    data = path.read_bytes()
    state = tensors.load_state(path)
    state["code"] = {"digest": "0" * 16, "commit": "abc"}
    tensors.save_state(path, state)
    code, output = bench(*command)
    assert code == 1
    assert "written by other code (commit abc)" in output and f"remove {path.parent}" in output
    path.write_bytes(data)  # nothing was lost: with the code it is of, the group goes on
    code, output = bench(*command)
    assert code == 0, output


def test_corrupt_results(bench: Bench) -> None:
    path = bench.write()
    assert bench.run(path)[0] == 0
    folder = bench.out / "exp/CartPole-v1/fake/0"
    for name in ("episodes.parquet", "metrics.parquet"):
        table = (folder / name).read_bytes()
        (folder / name).write_bytes(table[:-20])
        code, output = bench.run(path)
        assert code == 1
        assert f"{folder / name} is not readable" in output
        (folder / name).write_bytes(table)
    (folder / "manifest.json").write_text('{"schema"')
    for command in ("run", "status"):
        code, output = bench(command, path, "--out", str(bench.out))
        assert code == 1
        assert f"{folder / 'manifest.json'} is not readable" in output
